"""Cross-encoder: reads query and document together and gives one raw logit, or the log-odds of its labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from scipy.special import logsumexp
from scipy.stats import kendalltau
from sentence_transformers import CrossEncoder

from retriever.errors import ConfigError
from retriever.models.backends import Backend, BackendPlan, TorchBackend, all_logits, devices, int8_bits, open_backend, plan_backend
from retriever.models.names import ModelFolder, check_length, find_model
from retriever.models.token_batches import PROBE, PairTemplate, TokenBatch, batches, learn_template, tokenise_pairs
from retriever.resources import Resources
from retriever.settings.teacher import CrossEncoderSettings, LabelSettings
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity

PROBE_QUERIES, PROBE_DOCUMENTS = 10, 10
"""Lists on which the cost of 8-bit weights is measured, and their length."""

Texts = Sequence[tuple[str, str]]


class CrossEncoderTeacher:
    """Any cross-encoder that sentence-transformers loads, its activation bypassed.

    A sigmoid would squash logits of 12, 18 and 25 into the same 1.0; what is stored is what the last layer said.

    Attributes:
        identity: what decides the scores.
        shard_pairs: the window across which lengths are sorted.
        measure_cost: says what rounding to 8 bits does to the ranking; None where nothing is rounded.
    """

    def __init__(self, model: CrossEncoder, backend: Backend, template: PairTemplate | None, identity: TeacherIdentity, settings: CrossEncoderSettings) -> None:
        on_cpu = devices() == ["cpu"] or settings.backend != "torch"
        self.model = model
        self.backend = backend
        self.template = template
        self.identity = identity
        self.labels: Mapping[str, Any] | None = identity.settings.get("labels")
        self.label_names = label_names(model)
        self.batch_pairs = settings.batch_size
        self.batch_tokens = settings.batch_tokens or (4096 if on_cpu else 65_536)
        self.multiple = 1 if on_cpu else 8  # GPUs multiply by tiles
        self.shard_pairs = 1024 if on_cpu else 8192
        self.measure_cost: Callable[[], str] | None = None

    @cached_property
    def notes(self) -> list[str]:
        """Lines for the user, to be told before scoring. They are measured when they are asked for, because most loads score nothing."""
        return [self.measure_cost()] if self.measure_cost else []

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """The raw score of each pair; the longer of two texts is cut to the model's length, and that is counted."""
        texts = [(query.text, document.full_text) for query, document in pairs]
        if self.template is None:
            return self._predicted(texts)
        tokens = tokenise_pairs(self.model.tokenizer, self.template, texts, self.model.max_seq_length)
        lengths = tokens.lengths
        work = (tokens.batch(places, self.multiple) for places in batches(lengths, self.batch_tokens, self.batch_pairs, self.multiple))
        return ScoredPairs(self._reduced(all_logits(self.backend, work, len(pairs))), lengths.astype(np.int32), tokens.truncated)

    def _predicted(self, texts: Texts) -> ScoredPairs:
        """By sentence-transformers, for models that it gives a prompt or a chat template; a pair as long as the model reads counts as cut."""
        logits = self.model.predict(list(texts), batch_size=min(self.batch_pairs, 32), show_progress_bar=False, activation_fn=torch.nn.Identity())
        lengths = np.array([int(self.model.preprocess([pair])["attention_mask"].sum()) for pair in texts], dtype=np.int32)
        truncated = lengths >= (self.model.max_seq_length or np.iinfo(np.int32).max)
        return ScoredPairs(self._reduced(np.asarray(logits, dtype=np.float32).reshape(len(texts), -1)), lengths, truncated)

    def _reduced(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n] of [n, labels]."""
        return logits[:, 0] if self.labels is None else log_odds(logits, self.label_names, self.labels["relevant"], self.labels["other"])


def log_odds(logits: NDArray[np.float32], names: Sequence[str], relevant: Sequence[str], other: Sequence[str]) -> NDArray[np.float32]:
    """[n], the logarithm of how much more probable the relevant labels are than the others: log-sum-exp of the ones minus that of the others.

    Args:
        logits: [n, labels].
        names: of the labels.
        relevant: labels that say the document answers the query.
        other: labels that say it does not; those in neither list count for nothing.
    """
    places = {name: place for place, name in enumerate(names)}
    ones, others = (logits[:, [places[name] for name in side]].astype(np.float64) for side in (relevant, other))
    return np.asarray(logsumexp(ones, axis=1) - logsumexp(others, axis=1), dtype=np.float32)


def label_names(model: CrossEncoder) -> list[str]:
    """The names of a model's labels, in the order of its logits."""
    named = getattr(model.config, "id2label", None) or {}
    return [str(named.get(number, f"LABEL_{number}")) for number in range(model.num_labels)]


def label_rule(names: Sequence[str], settings: LabelSettings | None, where: str) -> dict[str, list[str]] | None:
    """Which labels stand against which; None for a model with a single logit.

    Two labels are taken as (other, relevant), and of several the one called "entailment" as the relevant one.

    Raises:
        ConfigError: the labels do not say which of them means relevant, or the setting names one that there is not.
    """
    known = ", ".join(names)
    if len(names) == 1:
        if settings:
            raise ConfigError(f"{where}: labels are set, but the model has a single logit. Leave labels out")
        return None
    if settings:
        relevant = list(settings.relevant)
        other = list(settings.other) or [name for name in names if name not in relevant]
    elif len(names) == 2:
        other, relevant = [names[0]], [names[1]]
    elif entailed := [name for name in names if name.casefold() == "entailment"]:
        relevant, other = entailed, [name for name in names if name not in entailed]
    else:
        raise ConfigError(f'{where}: the model has the labels {known}. Say which mean relevant: labels = {{ relevant = ["{names[-1]}"] }}')
    if unknown := [name for name in (*relevant, *other) if name not in names]:
        raise ConfigError(f'{where}: labels: the model has no label "{unknown[0]}"; it has {known}')
    if not other or set(relevant) & set(other):
        raise ConfigError(f"{where}: labels: relevant and other must be different labels, and neither empty; the model has {known}")
    return {"relevant": relevant, "other": other}


def load(settings: CrossEncoderSettings, resources: Resources) -> CrossEncoderTeacher:
    """The cross-encoder of the file: a ready one, or the folder that `retriever teach` wrote.

    Raises:
        ConfigError: no model is named, there is none, it was never taught to rank, its labels do not say which of them
            means relevant, it cannot read so long pairs, or the backend does not give its logits.
    """
    where = f"teacher {settings.label}"
    if not settings.model:
        raise ConfigError(f"{where}: a cross_encoder needs a model")
    found = find_model(settings.model, settings.revision, where)
    plan = plan_backend(settings.backend, settings.precision, settings.int8, where)
    model = _open(found, settings, where)
    rule = label_rule(label_names(model), settings.labels, where)
    template = _template(model, where)
    if template is None and settings.backend != "torch":
        raise ConfigError(f'{where}: the model reads pairs through a prompt or a chat template; backend = "torch" does that')
    exports = resources.collection.folder.parent / "exports" / found.identity
    backend = open_backend(plan, model, exports, _probe_batches(model, template), where)
    teacher = CrossEncoderTeacher(model, backend, template, _identity(settings, found, model, plan, rule), settings)
    if plan.int8:
        teacher.measure_cost = lambda: _cost_of_int8(teacher, settings, resources)
    return teacher


def _open(found: ModelFolder, settings: CrossEncoderSettings, where: str) -> CrossEncoder:
    arguments = {"use_safetensors": True, "dtype": torch.float32}
    model: CrossEncoder = CrossEncoder(str(found.folder), max_length=settings.max_length, local_files_only=True, model_kwargs=arguments, device="cpu")
    check_length(settings.max_length, model.config, f"{where}: max_length")
    if missing := _missing_head(model, found.folder):
        raise ConfigError(
            f"{where}: {settings.model} is an encoder without a head for ranking ({missing[0]} is not among its weights), so its scores would be random. "
            "Teach it first: add train = {} to this teacher, or name a cross-encoder"
        )
    model.eval()
    return model


def _missing_head(model: CrossEncoder, folder: Path) -> list[str]:
    """The weights of a sequence classifier's head that its files do not hold; transformers makes them of random numbers and only warns."""
    inner = model.transformers_model
    if inner is None or not type(inner).__name__.endswith("ForSequenceClassification"):
        return []
    stored = [name for path in folder.rglob("*.safetensors") for name in _names(path)]
    head = [name for name, _ in inner.named_parameters() if not name.startswith(f"{inner.base_model_prefix}.")]
    return [name for name in head if not any(one == name or one.endswith(f".{name}") for one in stored)]


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="numpy") as weights:
        return list(weights.keys())


def _template(model: CrossEncoder, where: str) -> PairTemplate | None:
    """How the model's tokenizer joins pairs; None for a model that sentence-transformers feeds in another way than as two plain texts."""
    if model.tokenizer is None or model.default_prompt_name:
        return None
    template = learn_template(model.tokenizer, where)
    expected = model.preprocess([PROBE])["input_ids"][0].tolist()
    joined = tokenise_pairs(model.tokenizer, template, [PROBE], model.max_seq_length).pair(0)[0].tolist()
    return template if joined == expected else None


def _probe_batches(model: CrossEncoder, template: PairTemplate | None) -> list[TokenBatch]:
    """Two batches of different size and length, with padding in them."""
    if template is None:
        return []
    texts = [(PROBE[0], " ".join([PROBE[1]] * times)) for times in (1, 3, 2, 4, 1)]
    tokens = tokenise_pairs(model.tokenizer, template, texts, model.max_seq_length)
    return [tokens.batch(np.arange(3)), tokens.batch(np.arange(5))]


def _identity(
    settings: CrossEncoderSettings, found: ModelFolder, model: CrossEncoder, plan: BackendPlan, rule: Mapping[str, list[str]] | None
) -> TeacherIdentity:
    dtype = {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}[plan.precision]
    deciding: dict[str, Any] = {"max_length": model.max_seq_length, "dtype": dtype}
    deciding |= {"backend": plan.name} if plan.name != "torch" else {}
    deciding |= {"int8": True, "input_bits": int8_bits()} if plan.int8 else {}
    deciding |= {"labels": {**rule, "rule": "logsumexp(relevant) - logsumexp(other)"}} if rule else {}
    return TeacherIdentity(settings.label, "cross_encoder", found.identity, "log_odds" if rule else "logit", deciding)


def _cost_of_int8(teacher: CrossEncoderTeacher, settings: CrossEncoderSettings, resources: Resources) -> str:
    """How well the ranking by 8-bit weights agrees with that by float32, on lists of the user's own collection."""
    pairs, lists = _probe_lists(resources)
    if not lists:
        return f"{settings.label}: int8: there are no train queries to measure its cost on"
    exact = CrossEncoderTeacher(teacher.model, TorchBackend(teacher.model, ["cpu"], "fp32"), teacher.template, teacher.identity, settings)
    tau, difference = agreement(exact.score(pairs).scores, teacher.score(pairs).scores, lists)
    return f"{settings.label}: int8 against fp32 on {len(lists)} lists: Kendall tau {tau:.3f}, scores differ by {difference:.3g} at most"


def agreement(exact: NDArray[np.float32], rounded: NDArray[np.float32], lists: Sequence[slice]) -> tuple[float, float]:
    """The mean Kendall tau within lists, and the largest difference of two scores; lists whose scores are all equal are left out."""
    taus = [kendalltau(exact[one], rounded[one]).statistic for one in lists if np.ptp(exact[one]) > 0 and np.ptp(rounded[one]) > 0]
    return float(np.mean(taus)) if taus else float("nan"), float(np.abs(exact - rounded).max(initial=0.0))


def _probe_lists(resources: Resources) -> tuple[list[tuple[Query, Document]], list[slice]]:
    """The documents that BM25 finds for a few queries, and where each query's list lies."""
    collection = resources.collection
    queries = list(resources.train_queries().values())[:PROBE_QUERIES]
    pairs: list[tuple[Query, Document]] = []
    lists = []
    for query in queries:
        best = np.argsort(-resources.bm25().scores(query.text), kind="stable")[:PROBE_DOCUMENTS]
        lists.append(slice(len(pairs), len(pairs) + len(best)))
        pairs += [(query, document) for document in collection.documents_by_row(best.tolist())]
    return pairs, lists
