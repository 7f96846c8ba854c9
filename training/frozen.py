"""Frozen lower layers: every text goes through them once, and training begins with what they made of it.

The hidden states of the texts lie on disk, so that a training of several epochs computes the upper layers alone. Dropout is off in the
frozen part: each text has the same states in every epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from retriever.encodings import write_array
from retriever.errors import ConfigError
from retriever.files import make_folder
from retriever.models.routes import without_dropout
from retriever.training.batches import Batcher, length_groups
from retriever.training.states import STATES, FrozenTexts, StoredStates

BLOCK = 128
"""Texts whose states a file holds: what a stop costs at most, and what is in memory at a time."""

SETTING = "training.frozen_layers"
PROBE = ("an owl hears a mouse under the snow", "saw")


@dataclasses.dataclass(frozen=True)
class CacheProgress:
    """How many of all texts went through the frozen layers, and the bytes that their states take so far."""

    done: int
    texts: int
    bytes: int


class FrozenLayers:
    """The embeddings and the lower layers of a model's transformer, for which stored states can stand in.

    While `attached`, their weights take no gradients, and features with `frozen_states` skip the layers. All other features are read as
    ever: validation, checkpoints and what is saved see the whole stock model. What the states depend on is frozen: of a SPLADE
    model, whose head shares the word embeddings, the head's word vectors too.
    """

    def __init__(self, model: Any, count: int) -> None:
        """Finds the layers of a sentence-transformers model, and tries on two texts whether states can stand in for them.

        Raises:
            ConfigError: the model has too few layers, or they are built in a way that this does not know.
        """
        self.model = model
        self.transformer = _transformer(model)
        self.layers = _lower_layers(self.transformer.auto_model, count)
        self._given: Tensor | None = None
        self._in_tuples = False
        with self._standing_in():
            try:
                same, self.weights = self._probe()
            except Exception as error:  # whatever a foreign architecture says of states that it did not expect
                raise _unlike(self.transformer, str(error)) from error
        if not same:
            raise _unlike(self.transformer, "its upper layers read more than the states")

    @property
    def identity(self) -> str:
        """Changes with the frozen weights, their number and the settings of the transformer."""
        digest = hashlib.sha256(f"{len(self.layers)} {self.transformer.auto_model.config.to_json_string()}".encode())
        for weight in self.weights:
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Freezes the weights, and lets states stand in, for as long as the block runs."""
        for weight in self.weights:
            weight.requires_grad_(False)
        try:
            with self._standing_in():
                yield
        finally:
            for weight in self.weights:
                weight.requires_grad_(True)

    def states(self, features: Mapping[str, Any], task: str) -> Tensor | None:
        """What the frozen layers make of texts without dropout, [n, L, H]; None where texts of the task do not go through them."""
        with torch.no_grad():
            return self._reached(features, task)

    def read(self, task: str) -> bool:
        """Whether texts of a task go through the layers; queries of a model that looks them up in a table do not."""
        return self.states(self.model.preprocess(list(PROBE), task=task), task) is not None

    def _reached(self, features: Mapping[str, Any], task: str) -> Tensor | None:
        """The output of the last frozen layer, at which the pass ends: a head of 30,000 words costs more than all layers."""

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            self._in_tuples = isinstance(output, tuple)
            raise _Reached(output[0] if self._in_tuples else output)

        hook = self.layers[-1].register_forward_hook(stop)
        try:
            self._encode(features, task)
        except _Reached as reached:
            return reached.states
        finally:
            hook.remove()
        return None

    def _encode(self, features: Mapping[str, Any], task: str) -> dict[str, Any]:
        """The model's output without dropout."""
        here = {name: value.to(self.model.device) if isinstance(value, Tensor) else value for name, value in features.items()}
        with without_dropout(self.model):
            return dict(self.model(here, task=task))

    @contextlib.contextmanager
    def _standing_in(self) -> Iterator[None]:
        """The forward passes of the layers give the states of the features, where there are any."""
        hooks = [
            self.transformer.register_forward_pre_hook(self._take),
            self.transformer.register_forward_hook(self._forget, always_call=True),
        ]
        for layer in self.layers:
            vars(layer)["forward"] = self._or_given(layer.forward)
        try:
            yield
        finally:
            for layer in self.layers:
                del vars(layer)["forward"]
            for hook in hooks:
                hook.remove()

    def _take(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        given = args[0].pop(STATES, None)
        self._given = None if given is None else given.to(next(self.layers[-1].parameters()).dtype)

    def _forget(self, module: nn.Module, args: Any, output: Any) -> None:
        self._given = None

    def _or_given(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if self._given is None:
                return forward(*args, **kwargs)
            return (self._given,) if self._in_tuples else self._given

        return stand_in

    def _probe(self) -> tuple[bool, list[nn.Parameter]]:
        """Whether two texts give the same from their states, and the weights that the states depend on."""
        features = dict(self.model.preprocess(list(PROBE), task="document"))
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        with torch.enable_grad():
            states = self._reached(features, "document")
            if states is None:
                raise ValueError("documents do not go through it")
            slopes = torch.autograd.grad(states.sum(), weights, allow_unused=True)
        outputs = [self._output(features), self._output({**features, STATES: states.detach()})]
        same = all(torch.allclose(outputs[0][name], outputs[1][name], rtol=1e-4, atol=1e-5) for name in outputs[0])
        return same, [weight for weight, slope in zip(weights, slopes, strict=True) if slope is not None]

    def _output(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the model makes of texts: their vectors, and those of the tokens that are no padding."""
        with torch.no_grad():
            output = self._encode(features, "document")
        found = {name: output[name] for name in ("sentence_embedding", "token_embeddings") if isinstance(output.get(name), Tensor)}
        return {name: value[output["attention_mask"].bool()] if value.ndim == 3 else value for name, value in found.items()}


@contextlib.contextmanager
def frozen(
    batcher: Batcher, count: int, folder: Path, progress: Callable[[CacheProgress], None] | None = None, dtype: DTypeLike = np.float16
) -> Iterator[FrozenTexts]:
    """The states of all texts of a training; for as long as the block runs, the lower layers take no gradients and the states stand in for them.

    The states are kept in `folder`, in blocks that are named by what went in: frozen weights, token ids and masks. So a stop loses one
    block at most, and states of another model, prompt or length are never read.

    Args:
        batcher: of the training; what it reads of a text is what goes through the layers.
        count: frozen layers, beside the embeddings.
        folder: of the states; who calls removes it when training is done.
        progress: called after every block.
        dtype: of the states; float16 takes 2 bytes x tokens x hidden size.

    Raises:
        ConfigError: as `FrozenLayers`; or the model pads texts on the left, or a state is too large for the type.
    """
    layers = FrozenLayers(batcher.model, count)
    queries = list(dict.fromkeys(query.text for query in batcher.samples.queries)) if layers.read("query") else []
    rows = np.unique(batcher.samples.documents[batcher.samples.mask]).tolist()
    with layers.attached():
        cache = _Cache(layers, batcher, folder, np.dtype(dtype), len(queries) + len(rows), progress)
        texts = FrozenTexts(cache.states("query", queries, list) if queries else None, cache.states("document", rows, cache.full_texts))
        cache.clean()
        yield texts


class _Reached(Exception):  # noqa: N818, it is no error
    """Ends a forward pass."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


class _Cache:
    """Makes blocks of states, or finds them."""

    def __init__(
        self, layers: FrozenLayers, batcher: Batcher, folder: Path, dtype: np.dtype[Any], texts: int, progress: Callable[[CacheProgress], None] | None
    ) -> None:
        self.layers = layers
        self.batcher = batcher
        self.folder = folder
        self.dtype = dtype
        self.progress = progress
        self.told = CacheProgress(0, texts, 0)
        self.identity = f"{layers.identity} {dtype.name}"
        self.names: set[str] = set()

    def full_texts(self, rows: Sequence[int]) -> list[str]:
        """Of the documents with these numbers."""
        return [document.full_text for document in self.batcher.collection.documents_by_row(list(rows))]

    def states(self, task: str, names: Sequence[Any], texts_of: Callable[[Sequence[Any]], list[str]]) -> StoredStates:
        """The states of texts with these names, block by block."""
        counts: list[NDArray[np.int64]] = []
        blocks: list[Path] = []
        for start in range(0, len(names), BLOCK):
            features = self.batcher.read(texts_of(names[start : start + BLOCK]), task)
            lengths = _lengths(features)
            path = self.folder / f"{self._name(features, task)}.npy"
            if not _is_whole(path, int(lengths.sum())):
                self._make(path, features, lengths, task)
            counts.append(lengths)
            blocks.append(path)
            self._tell(path, len(lengths))
        starts = np.concatenate([np.cumsum(lengths) - lengths for lengths in counts])
        return StoredStates(BLOCK, {name: place for place, name in enumerate(names)}, starts, np.concatenate(counts), blocks)

    def clean(self) -> None:
        """Removes what an earlier training with other texts or another model left."""
        for path in self.folder.glob("*.npy"):
            if path.name not in self.names:
                path.unlink(missing_ok=True)

    def _make(self, path: Path, features: Mapping[str, Any], lengths: NDArray[np.int64], task: str) -> None:
        make_folder(self.folder)
        groups, order = length_groups(features) if task == "document" else ([dict(features)], torch.arange(len(lengths)))
        parts: list[NDArray[Any]] = []
        for group in groups:
            states = self.layers.states(group, task)
            if states is None:  # `FrozenLayers.read` saw to it
                raise ConfigError(f"{SETTING}: {task} texts do not go through the transformer")
            parts += [text[:count].cpu().float().numpy() for text, count in zip(states, lengths[order[len(parts) :].numpy()].tolist(), strict=False)]
        whole = np.concatenate([parts[place] for place in order.argsort().tolist()]).astype(self.dtype)
        if not np.isfinite(whole).all():
            raise ConfigError(f"{SETTING}: a hidden state is not finite, or too large for {self.dtype.name}. Leave {SETTING} out")
        write_array(path, whole)

    def _name(self, features: Mapping[str, Any], task: str) -> str:
        """Of the block of some texts: a digest of all that decides their states."""
        digest = hashlib.sha256(f"{self.identity} {task}".encode())
        for name, value in sorted(features.items()):
            if isinstance(value, Tensor):
                digest.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
        return digest.hexdigest()[:32]

    def _tell(self, path: Path, texts: int) -> None:
        self.names.add(path.name)
        self.told = CacheProgress(self.told.done + texts, self.told.texts, self.told.bytes + path.stat().st_size)
        if self.progress:
            self.progress(self.told)


def _transformer(model: Any) -> Transformer:
    """The one transformer of a model."""
    found: list[Transformer] = [module for module in model.modules() if isinstance(module, Transformer)]
    if len(found) != 1:
        raise ConfigError(f"{SETTING}: the student has {len(found) or 'no'} transformers, and layers of one can be frozen. Leave {SETTING} out")
    return found[0]


def _lower_layers(transformer: nn.Module, count: int) -> list[nn.Module]:
    """The first `count` modules of the one list of as many as the transformer has layers; at least one layer is left to learn."""
    total = getattr(transformer.config, "num_hidden_layers", None)
    lists = [module for module in transformer.modules() if isinstance(module, nn.ModuleList) and len(module) == total]
    if not isinstance(total, int) or len(lists) != 1:
        raise ConfigError(f"{SETTING}: {type(transformer).__name__} does not hold its layers in one list. Leave {SETTING} out")
    if count >= total:
        raise ConfigError(f"{SETTING}: {count} layers, but the student has {total}, and one at least must learn. Give at most {total - 1}")
    return list(lists[0])[:count]


def _is_whole(path: Path, tokens: int) -> bool:
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False)) == tokens
    except (OSError, EOFError, ValueError):
        return False


def _lengths(features: Mapping[str, Any]) -> NDArray[np.int64]:
    """[n], places up to a text's last token, [MASK] tokens that only count in the score among them."""
    mask = features["attention_mask"].bool()
    if not bool(mask[:, 0].all()):
        raise ConfigError(f"{SETTING}: the student's tokenizer pads on the left. Leave {SETTING} out")
    if "query_expansion_positions" in features:
        mask = mask | features["query_expansion_positions"].bool()
    last = mask.shape[1] - mask.flip(1).int().argmax(dim=1)
    return np.asarray(last.numpy(), dtype=np.int64)


def _unlike(transformer: Transformer, why: str) -> ConfigError:
    name = type(transformer.auto_model).__name__
    return ConfigError(f"{SETTING}: the layers of {name} are unlike those of BERT, RoBERTa, MPNet and DistilBERT ({why}). Leave {SETTING} out")
