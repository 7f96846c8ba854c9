"""Frozen layers: what is stored of a text stands in for them, changes no gradient above them, and survives a kill."""

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from torch import Tensor
from transformers import AutoTokenizer

from retriever.collection import Collection
from retriever.config import read_experiment
from retriever.errors import ConfigError
from retriever.pipeline import Pipeline
from retriever.progress import Quiet
from retriever.settings.training import TrainingSettings
from retriever.steps.train import read_curve
from retriever.training import frozen as module
from retriever.training.adapter import DistillationLoss
from retriever.training.batches import Batcher
from retriever.training.frozen import CacheProgress, FrozenLayers, frozen
from retriever.training.samples import TrainingSamples
from retriever.training.states import STATES, StoredStates
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision, TrainingProgress
from tests.forked_commands import ForkedCommands
from tests.tiny_experiment import process_environment, write_experiment
from tests.training_material import Stopped, animal_lessons, weights

ROOT = Path(__file__).resolve().parent.parent
TRAINING = TrainingSettings(documents_per_query=4, epochs=2, batch_size=4, learning_rate=1e-3, checkpoint_steps=4, frozen_layers=2, precision="fp32")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 140, "pad_token_id": 0}
ARCHITECTURES = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "MPNet": SIZES,
    "DistilBert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 140, "pad_token_id": 0},
    "Electra": {**SIZES, "embedding_size": 16},
    "ModernBert": {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8, "attn_implementation": "sdpa"},
}
BELOW = ("embeddings", "layer.0.", "layer.1.", "layers.0.", "layers.1.", "relative_attention_bias")
"""Parts of the names of weights below the third layer."""

Lessons = tuple[Collection, TrainingSamples]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    return animal_lessons(tmp_path_factory.mktemp("lessons") / "collection", TRAINING)


@pytest.fixture(scope="module")
def backbone(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny random transformer of three layers."""
    made: dict[str, str] = {}

    def folder_of(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp("models") / name
            tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
            kind, settings = (name.removesuffix("ForMaskedLM"), ARCHITECTURES[name.removesuffix("ForMaskedLM")])
            config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **settings)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(5)
                model = getattr(transformers, f"{kind}ForMaskedLM" if name.endswith("ForMaskedLM") else f"{kind}Model")(config)
                for weight in model.parameters():
                    weight.data.add_(torch.randn_like(weight) * 0.05)  # no bias stays 0
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name] = str(folder)
        return made[name]

    return folder_of


def dense(folder: str) -> SentenceTransformer:
    transformer = Transformer(folder, max_seq_length=64)
    modules = [transformer, Pooling(transformer.get_embedding_dimension()), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu", prompts={"query": "ask: ", "document": "read: "})


def late(folder: str, attend: bool = False) -> MultiVectorEncoder:
    """ColBERT as it is published: [MASK] tokens fill queries up and count in the score, but no token attends to them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        modules = [
            Transformer(folder, max_seq_length=64, query_expansion={"strategy": "fixed", "attend": attend, "length": 12}),
            Dense(32, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"),
            MultiVectorMask(skiplist_words=[",", "."]),
            Normalize(module_input_name="token_embeddings"),
        ]
        return MultiVectorEncoder(modules=modules, device="cpu")


def sparse(folder: str) -> SparseEncoder:
    return SparseEncoder(modules=[Transformer(folder, transformer_task="fill-mask", max_seq_length=64), SpladePooling()], device="cpu")


def free(folder: str) -> SparseEncoder:
    """Queries are looked up."""
    model = sparse(folder)
    table = SparseStaticEmbedding(model.tokenizer, torch.ones(len(model.tokenizer)))
    return SparseEncoder(modules=[Router.for_query_document([table], list(model))], device="cpu")


def without_dropout(model: Any) -> Any:
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model.train()


def gradients(model: Any, batcher: Batcher, training: TrainingSettings = TRAINING) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the first batch, and the gradients of what learns."""
    batch = batcher([{"label": number} for number in range(6)])
    prefixes = sorted({key[: -len("input_ids")] for key in batch if key.endswith("input_ids")}, key=lambda prefix: (not prefix.startswith("query"), prefix))
    features = [{key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)} for prefix in prefixes]
    model.zero_grad(set_to_none=True)
    loss = torch.stack(list(DistillationLoss(model, batcher.samples, training)(features, batch["label"]).values())).sum()
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


CASES = [
    *((dense, name) for name in ARCHITECTURES),
    *((late, name) for name in ("Bert", "MPNet", "DistilBert")),
    *((sparse, f"{name}ForMaskedLM") for name in ("Bert", "Roberta", "MPNet", "DistilBert")),
    (free, "BertForMaskedLM"),
]


@pytest.mark.parametrize(("student", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_gradients_are_those_of_training_with_the_lower_weights_fixed(
    student: Callable[[str], Any], name: str, backbone: Callable[[str], str], lessons: Lessons, tmp_path: Path
) -> None:
    collection, samples = lessons
    plain = without_dropout(student(backbone(name)))
    for weight_name, weight in plain.named_parameters():
        weight.requires_grad_(not any(part in weight_name for part in BELOW))
    expected_loss, expected = gradients(plain, Batcher(plain, samples, collection))
    model = without_dropout(student(backbone(name)))
    batcher = Batcher(model, samples, collection)
    for dtype, close in ((np.float32, 1e-5), (np.float16, 0.03)):
        with frozen(batcher, 2, tmp_path / np.dtype(dtype).name, dtype=dtype) as states:
            loss, found = gradients(model, Batcher(model, samples, collection, states=states))
        assert found.keys() == expected.keys()
        torch.testing.assert_close(loss, expected_loss, rtol=close, atol=close)
        for weight_name, gradient in expected.items():
            difference = float((found[weight_name] - gradient).norm())
            assert difference <= close * max(1.0, float(gradient.norm())), f"{weight_name} with {dtype}"


def test_with_gradients_from_a_cache_too(backbone: Callable[[str], str], lessons: Lessons, tmp_path: Path) -> None:
    collection, samples = lessons
    model = without_dropout(dense(backbone("Bert")))
    with frozen(Batcher(model, samples, collection), 2, tmp_path) as states:
        batcher = Batcher(model, samples, collection, states=states)
        expected, at_once = gradients(model, batcher)
        loss, cached = gradients(model, batcher, TRAINING.model_copy(update={"gradient_cache": True}))
    torch.testing.assert_close(loss, expected)
    for name, gradient in at_once.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-4, atol=1e-5)


# What is stored


def test_states_are_the_hidden_states_that_transformers_gives_without_dropout(backbone: Callable[[str], str], lessons: Lessons, tmp_path: Path) -> None:
    collection, samples = lessons
    model = dense(backbone("Bert")).train()  # with dropout
    with frozen(Batcher(model, samples, collection), 2, tmp_path, dtype=np.float32) as states:
        assert states.documents is not None
        rows = sorted(states.documents.places)[:20]
        features = Batcher(model, samples, collection).read([document.full_text for document in collection.documents_by_row(rows)], "document")
        found = states.documents.padded(rows, features["input_ids"].shape[1])
    assert model.training
    bert = model.eval()[0].auto_model
    with torch.no_grad():
        names = ("input_ids", "attention_mask", "token_type_ids")
        expected = bert(**{name: features[name] for name in names}, output_hidden_states=True).hidden_states[2]
    mask = features["attention_mask"].bool()
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-5)
    assert not found[~mask].any()


def test_the_size_told_is_the_size_on_disk_and_float16_takes_two_bytes_a_number(backbone: Callable[[str], str], lessons: Lessons, tmp_path: Path) -> None:
    collection, samples = lessons
    model = dense(backbone("Bert"))
    told: list[CacheProgress] = []
    with frozen(Batcher(model, samples, collection), 2, tmp_path, told.append) as states:
        assert states.queries is not None
        assert states.documents is not None
        tokens = int(states.queries.counts.sum() + states.documents.counts.sum())
        texts = len(states.queries.places) + len(states.documents.places)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert told[-1] == CacheProgress(texts, texts, size)
    assert size == tokens * 32 * 2 + 128 * len(told)  # numpy's header


@settings(deadline=None)  # a busy machine may stop in the middle
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=20), block=st.integers(1, 6))
def test_a_stored_text_is_found_in_its_block(counts: list[int], block: int) -> None:
    texts = [np.full((count, 2), number, dtype=np.float32) for number, count in enumerate(counts)]
    starts = [sum(counts[number // block * block : number]) for number in range(len(counts))]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{start}.npy" for start in range(0, len(texts), block)]
        for file, start in zip(files, range(0, len(texts), block), strict=True):
            np.save(file, np.concatenate(texts[start : start + block]))
        stored = StoredStates(block, {f"text {number}": number for number in range(len(counts))}, np.array(starts), np.array(counts), files)
        found = stored.padded([f"text {number}" for number in reversed(range(len(counts)))], 5)
    for row, number in enumerate(reversed(range(len(counts)))):
        assert found[row, :, 0].tolist() == [float(number)] * counts[number] + [0.0] * (5 - counts[number])


def test_states_of_another_prompt_length_or_weight_are_not_read_and_are_removed(backbone: Callable[[str], str], lessons: Lessons, tmp_path: Path) -> None:
    collection, samples = lessons

    def files(change: Callable[[SentenceTransformer], None], max_length: int | None = None) -> set[str]:
        model = dense(backbone("Bert"))
        change(model)
        with frozen(Batcher(model, samples, collection, max_length), 2, tmp_path):
            return {path.name for path in tmp_path.iterdir()}

    def nothing(model: SentenceTransformer) -> None:
        pass

    def prompt(model: SentenceTransformer) -> None:
        model.prompts = {"query": "what: ", "document": "that: "}

    def lower(model: SentenceTransformer) -> None:
        model[0].auto_model.encoder.layer[1].output.dense.bias.data[3] += 1e-3

    def upper(model: SentenceTransformer) -> None:
        model[0].auto_model.encoder.layer[2].output.dense.bias.data[3] += 1e-3

    first = files(nothing)
    assert files(upper) == first  # what learns is above
    for other in (files(prompt), files(lower), files(nothing, max_length=6)):
        assert not other & first
    assert files(nothing) == first


def test_a_stop_loses_one_block_at_most(backbone: Callable[[str], str], lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)
    collection, samples = lessons
    batcher = Batcher(dense(backbone("Bert")), samples, collection)

    def stop(at: CacheProgress) -> None:
        if at.done > 30:
            raise Stopped

    with pytest.raises(Stopped), frozen(batcher, 2, tmp_path / "states", stop):
        pass
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "states").iterdir()}
    assert len(written) >= 4
    cut = min(written)
    cut.write_bytes(cut.read_bytes()[:300])
    with frozen(batcher, 2, tmp_path / "states") as again:
        assert {path for path, time in written.items() if path.stat().st_mtime_ns == time} == written.keys() - {cut}
    with frozen(batcher, 2, tmp_path / "whole") as expected:
        pass
    for one, other in ((again.queries, expected.queries), (again.documents, expected.documents)):
        assert one is not None
        assert other is not None
        assert all(np.array_equal(np.load(block), np.load(wanted)) for block, wanted in zip(one.blocks, other.blocks, strict=True))


# Models that this does not fit


def test_one_layer_at_least_must_learn(backbone: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=r"training.frozen_layers: 3 layers, but the student has 3, and one at least must learn. Give at most 2"):
        FrozenLayers(dense(backbone("Bert")), 3)


def test_a_student_without_a_transformer_is_refused(encoder_folder: Path) -> None:
    table = StaticEmbedding(AutoTokenizer.from_pretrained(encoder_folder), embedding_dim=8)
    with pytest.raises(ConfigError, match="the student has no transformers"):
        FrozenLayers(SentenceTransformer(modules=[table], device="cpu"), 1)


def test_layers_that_are_one_and_the_same_cannot_be_frozen_apart(encoder_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    transformers.AlbertModel(transformers.AlbertConfig(vocab_size=len(tokenizer), **SIZES, embedding_size=16)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"training.frozen_layers: AlbertModel does not hold its layers in one list. Leave training.frozen_layers out"):
        FrozenLayers(dense(str(tmp_path)), 1)


def test_layers_that_hand_on_more_than_their_states_are_refused(encoder_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    config = transformers.DebertaV2Config(vocab_size=len(tokenizer), **SIZES, conv_kernel_size=3, relative_attention=True, pos_att_type=["c2p"])
    transformers.DebertaV2Model(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"the layers of DebertaV2Model are unlike those of BERT, RoBERTa, MPNet and DistilBERT .*Leave"):
        FrozenLayers(dense(str(tmp_path)), 2)


def test_a_cross_encoder_is_refused(cross_encoder_folder: Path, lessons: Lessons, tmp_path: Path) -> None:
    collection, samples = lessons
    model = CrossEncoder(str(cross_encoder_folder), device="cpu", local_files_only=True)
    with pytest.raises(ConfigError, match=r"training.frozen_layers: a cross_encoder reads query and document together"):
        train_student(model, samples, collection, TRAINING, tmp_path, 1, Supervision(lambda: {"validation": 0.0}))


def test_a_model_is_as_before_when_the_block_ends(backbone: Callable[[str], str], lessons: Lessons, tmp_path: Path) -> None:
    collection, samples = lessons
    model = dense(backbone("Bert"))
    layers = model[0].auto_model.encoder.layer
    modes = [part.training for part in model.modules()]
    with frozen(Batcher(model, samples, collection), 2, tmp_path):
        assert not layers[0].output.dense.weight.requires_grad
    assert all(weight.requires_grad for weight in model.parameters())
    assert [part.training for part in model.modules()] == modes
    assert not any("forward" in vars(layer) for layer in layers)
    features = model.preprocess(["owl"])
    states = torch.zeros(1, features["input_ids"].shape[1], 32)
    expected = model(dict(features))["sentence_embedding"]
    torch.testing.assert_close(model({**features, STATES: states})["sentence_embedding"], expected)  # nobody reads them any more


# The loop


def train(model: Any, lessons: Lessons, folder: Path, progress: Callable[[TrainingProgress], None] | None = None) -> list[dict[str, float]]:
    collection, samples = lessons

    def validate() -> dict[str, float]:
        vectors = model.encode(["owl", "saw", "a red hunter", "it drives nails"], convert_to_tensor=True, show_progress_bar=False)
        return {"validation": -float((vectors @ vectors.T).mean())}

    return train_student(model, samples, collection, TRAINING, folder, 7, Supervision(validate, progress))


def test_only_what_is_above_learns_and_what_is_saved_is_a_whole_stock_model(backbone: Callable[[str], str], lessons: Lessons, tmp_path: Path) -> None:
    model = dense(backbone("Bert"))
    start = weights(model)
    train(model, lessons, tmp_path / "run")
    for name, tensor in weights(model).items():
        below = any(part in name for part in BELOW)
        assert torch.equal(tensor, start[name]) == (below or "pooler" in name), name
    model.save_pretrained(str(tmp_path / "student"), create_model_card=False)
    stock = SentenceTransformer(str(tmp_path / "student"), device="cpu", local_files_only=True)
    assert weights(stock).keys() == start.keys()
    torch.testing.assert_close(stock.encode_query(["owl"], convert_to_tensor=True), model.encode_query(["owl"], convert_to_tensor=True))


@pytest.fixture(scope="module")
def uninterrupted(backbone: Callable[[str], str], lessons: Lessons, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[float]]:
    """Weights, and the steps of the curve, of a run that nothing stopped."""
    model = dense(backbone("Bert"))
    curve = train(model, lessons, tmp_path_factory.mktemp("whole"))
    return weights(model), [point["step"] for point in curve]


@pytest.mark.parametrize("stop_at", [0, 5])
def test_a_killed_training_goes_on(
    backbone: Callable[[str], str],
    lessons: Lessons,
    tmp_path: Path,
    uninterrupted: tuple[dict[str, Tensor], list[float]],
    forked_commands: ForkedCommands,
    stop_at: int,
) -> None:
    code = f"""
from pathlib import Path
from tests.test_frozen import TRAINING, animal_lessons, dense, module, train
module.BLOCK = 16
lessons = animal_lessons(Path({str(tmp_path / "collection")!r}), TRAINING)
train(dense({backbone("Bert")!r}), lessons, Path({str(tmp_path / "run")!r}), lambda at: print(0 if at.cached else at.step, flush=True))
"""
    environment = process_environment(OMP_NUM_THREADS=str(torch.get_num_threads()))
    child = forked_commands.start("-c", code, environment=environment, streams={"out": (pipe := forked_commands.pipe())})
    with pipe.open() as lines:
        next(line for line in lines if int(line) == stop_at)
        os.kill(child, signal.SIGKILL)
    assert forked_commands.wait(child).status == -signal.SIGKILL
    model = dense(backbone("Bert"))
    again = train(model, lessons, tmp_path / "run")
    assert [point["step"] for point in again] == uninterrupted[1]
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, uninterrupted[0][name], rtol=1e-4, atol=1e-5, msg=name)


class Said(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_step_tells_the_size_of_the_states_and_removes_them(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    said = Said()
    settings = ["training.frozen_layers=1", "training.epochs=2"]
    pipeline = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder), settings), tmp_path / "work", said)
    folder = pipeline.trained.folder
    assert not (folder / "frozen").exists()
    (told,) = [line for line in said.lines if line.startswith("frozen layers")]
    assert "texts went through once; what they became takes 0 MB of disk until training is done" in told
    assert any("loss" in point for point in read_curve(folder))


def test_frozen_layers_and_adapters_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="take one of the two"):
        TrainingSettings.model_validate({"frozen_layers": 2, "lora": {}})
