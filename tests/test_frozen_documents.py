"""Only the encoding of queries learns: what such a student is, that it trains by stored encodings, and that documents stay as they are to the bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from torch import Tensor

from retriever.collection import Collection
from retriever.encodings import Vectors, document_identity
from retriever.errors import ConfigError
from retriever.models.routes import freeze_documents, is_routed, modules_of
from retriever.progress import Quiet
from retriever.ragged import Ragged
from retriever.settings.student import STUDENT_KINDS
from retriever.settings.training import LoraSettings, TrainingSettings
from retriever.steps.train import excess, read_curve, teach_student
from retriever.students._identity import document_fingerprint
from retriever.students._reading import query_room
from retriever.students.late_interaction import LateInteractionStudent
from retriever.training.adapter import DistillationLoss
from retriever.training.batches import Batcher
from retriever.training.documents import stored_documents
from retriever.training.loss_table import LOSS_TABLE
from retriever.training.samples import TeacherVectors, TrainingSamples, make_samples
from retriever.training.sparsity import SparsityController
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision
from tests.frozen_material import DOCUMENTS, KINDS, QUERIES, TRAINING, animals, encodings_of, lesson_of, opened, same, scores, student_of
from tests.training_material import weights

STOCK: dict[str, Any] = {"dense": SentenceTransformer, "sparse": SparseEncoder, "late_interaction": MultiVectorEncoder}
PROMPTS = {"query_prompt": "ask ", "document_prompt": "read "}
VARIANTS: dict[str, dict[str, Any]] = {
    **KINDS,
    "dense with prompts and a length": {**PROMPTS, "max_length": 9, "projection": 48},
    "dense, cut": {"dimensions": 12, "layers": 1},
    "sparse with prompts and a length": {**KINDS["sparse"], **PROMPTS, "max_length": 9},
    "late interaction, pooled": {**KINDS["late_interaction"], **PROMPTS, "max_length": 20, "pool_factor": 2},
    "late interaction, expanded": {"kind": "late_interaction", "dimensions": 32},
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return animals(tmp_path_factory.mktemp("animals") / "collection")


@pytest.fixture(scope="module")
def steady(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder without dropout."""
    folder = shutil.copytree(encoder_folder, tmp_path_factory.mktemp("steady") / "encoder")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}), encoding="utf-8")
    return folder


def frozen(folder: Path, name: str, **more: Any) -> Any:
    return student_of(folder, frozen_documents=True, **VARIANTS[name], **more)


def samples_of(collection: Collection, training: TrainingSettings = TRAINING, encodings: Any = None) -> TrainingSamples:
    lesson = lesson_of(collection, None, training)
    samples = make_samples(lesson.target, lesson.queries, lesson.qrels, collection, training, np.random.default_rng(1))
    return dataclasses.replace(samples, encodings=encodings)


def repeated(samples: TrainingSamples, size: int, times: int) -> TrainingSamples:
    """The first samples, over and over: batches that are all the same."""
    numbers = np.tile(np.arange(size), times)
    arrays = {name: getattr(samples, name)[numbers] for name in ("documents", "teacher", "mask")}
    lists: dict[str, Any] = {name: [getattr(samples, name)[number] for number in numbers] for name in ("queries", "not_negative")}
    return dataclasses.replace(samples, **arrays, **lists)


# What the student is


@pytest.mark.parametrize("name", VARIANTS)
def test_it_encodes_documents_as_its_start_and_is_known_by_that(encoder_folder: Path, name: str) -> None:
    start, student = student_of(encoder_folder, **VARIANTS[name]), frozen(encoder_folder, name)
    plain = student_of(encoder_folder, **{key: value for key, value in VARIANTS[name].items() if key != "inference_free_queries"})
    assert student.document_identity == plain.identity == start.document_identity
    assert student.document_identity != student.identity
    assert document_identity(student) == student.document_identity
    assert same(student.encode_documents(DOCUMENTS), start.encode_documents(DOCUMENTS))
    assert same(student.encode_queries(QUERIES), start.encode_queries(QUERIES))
    learning = [weight for weight in student.model.parameters() if weight.requires_grad]
    assert sum(map(torch.numel, learning)) == sum(weight.numel() for module in modules_of(student.model, "query") for weight in module.parameters()) > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_stock_sentence_transformers_loads_it_and_ranks_the_same(encoder_folder: Path, tmp_path: Path, name: str) -> None:
    student = frozen(encoder_folder, name)
    with torch.no_grad():
        for module in modules_of(student.model, "query"):
            for weight in module.parameters():
                weight.mul_(1.1)  # as training would, the routes go apart
    again = opened(student, tmp_path / "student")
    assert again.document_identity == student.document_identity
    if isinstance(again, LateInteractionStudent):
        again = LateInteractionStudent(again.model, again.batch_size, again.pooling, np.float32)
    stock = STOCK[student.kind](str(tmp_path / "student"), device="cpu", local_files_only=True)
    form = {"convert_to_sparse_tensor": False} if student.kind == "sparse" else {}
    asked = stock.encode_query([query.text for query in QUERIES], **form)
    read = stock.encode_document([document.full_text for document in DOCUMENTS], **form)
    np.testing.assert_allclose(scores(again), stock.similarity(asked, read), atol=1e-5, rtol=1e-5)


def test_lengths_of_queries_alone_leave_documents_and_their_identity_as_they_are(encoder_folder: Path) -> None:
    start = student_of(encoder_folder, **KINDS["late_interaction"])
    student = frozen(encoder_folder, "late_interaction", query_length=40, query_expansion=True)
    assert student.document_identity == start.identity
    assert student.encode_queries(QUERIES).counts.tolist() == [40, 40]
    assert same(student.encode_documents(DOCUMENTS), start.encode_documents(DOCUMENTS))
    assert query_room(student.model) == 38  # without [CLS] and [SEP]


def test_it_becomes_the_start_of_a_further_one(encoder_folder: Path, tmp_path: Path) -> None:
    first = frozen(encoder_folder, "dense")
    with torch.no_grad():
        next(first.model[0].sub_modules["query"].parameters()).mul_(1.1)
    first = opened(first, tmp_path / "first")
    second = student_of(tmp_path / "first", frozen_documents=True)
    assert (second.identity, second.document_identity) == (first.identity, first.document_identity)
    with pytest.raises(ConfigError, match=r"^student\.projection: the model encodes queries and documents by modules of their own"):
        student_of(tmp_path / "first", projection=8)
    looked_up = student_of(encoder_folder, **KINDS["sparse"], frozen_documents=True)
    looked_up.save(tmp_path / "sparse")
    again = student_of(tmp_path / "sparse", kind="sparse", inference_free_queries=True, frozen_documents=True)
    assert again.document_identity == looked_up.document_identity
    assert again.encode_queries(QUERIES).counts.max() <= 6  # words, and not what a transformer makes of them


def test_a_symmetric_model_cannot_be_frozen_on_one_side(encoder_folder: Path) -> None:
    student = student_of(encoder_folder)
    assert not is_routed(student.model)
    assert student.document_identity == student.identity == document_fingerprint(student.model)
    with pytest.raises(ConfigError, match=r"^student\.frozen_documents: this model encodes queries and documents by the same weights"):
        freeze_documents(student.model)


@pytest.mark.parametrize(("kind", "said"), [("static", "a static student has one table"), ("cross_encoder", "a cross_encoder encodes no documents")])
def test_students_that_cannot_freeze_documents_refuse_it(kind: str, said: str) -> None:
    with pytest.raises(ValidationError, match=rf'{said}.*leave frozen_documents out, or take kind = "dense"'):
        STUDENT_KINDS[kind].model_validate({"model": "x", "frozen_documents": True})


# Encodings


class Unasked:
    """An encoder that encodes documents as a student does, and is not asked to."""

    def __init__(self, student: Any) -> None:
        self.identity, self.document_identity, self.dimensions = "another", student.document_identity, student.dimensions
        if hasattr(student, "columns"):
            self.columns = student.columns

    def encode_documents(self, documents: Any) -> Any:
        raise AssertionError(documents)


@pytest.mark.parametrize("name", KINDS)
def test_the_starts_encodings_are_not_made_again(encoder_folder: Path, collection: Collection, tmp_path: Path, name: str) -> None:
    start = student_of(encoder_folder, **{key: value for key, value in KINDS[name].items() if key != "inference_free_queries"})
    made = encodings_of(start, collection, tmp_path / "encodings")
    again = encodings_of(Unasked(frozen(encoder_folder, name)), collection, tmp_path / "encodings")
    assert made == again
    assert again.encoder == start.identity


def test_stored_documents_are_what_the_model_makes_of_them(encoder_folder: Path, collection: Collection, tmp_path: Path) -> None:
    rows = np.array([7, 0, 59, 7])
    for name in KINDS:
        student = frozen(encoder_folder, name)
        found = stored_documents(encodings_of(student, collection, tmp_path / name), rows, torch.device("cpu"))
        expected = student.encode_documents(collection.documents_by_row(rows.tolist()))
        if name == "late_interaction":
            vectors, mask = found
            assert mask.sum(dim=1).tolist() == expected.counts.tolist()
            np.testing.assert_allclose(vectors[mask], expected.columns["vectors"].astype(np.float32), atol=1e-3)
            assert not vectors[~mask].any()
        elif isinstance(expected, Ragged):
            assert found[0].shape == (4, student.dimensions)
            np.testing.assert_allclose(found[0][found[0] > 0], expected.columns["values"], atol=1e-5)
        else:
            np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_documents_without_tokens_have_an_empty_mask(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Empty:
        dimensions: int = 3

        def rows(self, rows: Any) -> Ragged:
            return Ragged.of_lists("vectors", [np.zeros((0, 3), dtype=np.float16)] * len(rows), 3)

    vectors, mask = stored_documents(Empty(), np.array([1, 2]), torch.device("cpu"))  # type: ignore[arg-type]
    assert (tuple(vectors.shape), mask.any().item()) == ((2, 1, 3), False)


# The losses


def terms_and_slopes(student: Any, samples: TrainingSamples, training: TrainingSettings, **more: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The loss terms of a batch, and their gradients; with `blind`, without any collection to read documents from."""
    model = student.model.train()
    model.zero_grad()
    collection = None if more.get("blind") else animals(more["folder"])
    batch = Batcher(model, samples, collection, None)([{"label": number} for number in range(5)])  # type: ignore[arg-type]
    labels = batch.pop("label")
    prefixes = list(dict.fromkeys(key.removesuffix("input_ids") for key in batch if key.endswith("input_ids")))
    features = [{key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)} for prefix in prefixes]
    terms = DistillationLoss(model, samples, training)(features, labels)
    torch.stack(list(terms.values())).sum().backward()
    slopes = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    return {name: term.item() for name, term in terms.items()}, slopes


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("cached", [False, True])
def test_losses_and_gradients_are_those_of_documents_that_are_encoded(steady: Path, collection: Collection, tmp_path: Path, name: str, cached: bool) -> None:
    losses = [loss for loss, entry in LOSS_TABLE.items() if not entry.needs_teacher_vectors and loss != "reinforced"]  # which teaches images
    training = TRAINING.model_copy(update={"losses": dict.fromkeys(losses, 1.0)})
    student = frozen(steady, name)
    if name == "late_interaction":
        student = LateInteractionStudent(student.model, document_type=np.float32)
    encodings = encodings_of(student, collection, tmp_path / "encodings")
    expected, slopes = terms_and_slopes(student, samples_of(collection, training), training, folder=tmp_path / "collection")
    chosen = training.model_copy(update={"gradient_cache": cached})
    found, learned = terms_and_slopes(student, samples_of(collection, training, encodings), chosen, blind=True)
    assert found == pytest.approx(expected, rel=2e-4, abs=1e-4)
    assert learned.keys() == slopes.keys()
    assert all("document" not in weight for weight in learned)
    for weight, slope in slopes.items():
        torch.testing.assert_close(learned[weight], slope, rtol=1e-3, atol=1e-3 * float(slope.abs().max()) + 1e-6)


def test_losses_of_vectors_compare_those_of_queries_alone(steady: Path, collection: Collection, tmp_path: Path) -> None:
    losses = [loss for loss, entry in LOSS_TABLE.items() if entry.needs_teacher_vectors]
    training = TRAINING.model_copy(update={"losses": dict.fromkeys(losses, 1.0)})
    teacher, student = student_of(steady, layers=1), frozen(steady, "dense")
    encodings = encodings_of(student, collection, tmp_path / "encodings")
    queries = collection.queries("train")
    vectors = TeacherVectors(dict(zip(queries, teacher.encode_queries(list(queries.values())), strict=True)), encodings_of(teacher, collection, tmp_path / "t"))
    samples = dataclasses.replace(samples_of(collection, training, encodings), vectors=vectors)
    found, _ = terms_and_slopes(student, samples, training, blind=True)
    asked = samples.queries[:5]
    own, others = student.encode_queries(asked), teacher.encode_queries(asked)
    assert found["vector_cosine"] == pytest.approx(float(np.mean(1 - (own * others).sum(axis=1))), abs=1e-6)
    assert found["vector_mse"] == pytest.approx(float(((own - others) ** 2).mean()), abs=1e-7)
    assert found.keys() == set(losses)


# Training


@pytest.mark.parametrize("name", [*KINDS, "late interaction, pooled", "dense with prompts and a length"])
def test_queries_learn_and_documents_stay_as_they_are(steady: Path, collection: Collection, tmp_path: Path, name: str) -> None:
    student = frozen(steady, name)
    identity, before = student.document_identity, weights(student.model)
    encodings, qualities = encodings_of(student, collection, tmp_path / "encodings"), itertools.count()
    supervision = Supervision(lambda: {"validation": next(qualities)})  # the last one is the best
    samples = repeated(samples_of(collection, encodings=encodings), TRAINING.batch_size, 10)
    curve = train_student(student.model, samples, collection, TRAINING, tmp_path / "run", 3, supervision)
    losses = [point["loss"] for point in curve if "loss" in point]
    assert losses[-1] < losses[0]
    changed = {key for key, tensor in student.model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed
    assert all(".query." in key for key in changed)
    again = opened(student, tmp_path / "again")
    assert again.document_identity == identity
    assert again.identity != student.identity


def test_documents_of_a_sparse_student_keep_their_dimensions_and_have_no_cost(encoder_folder: Path, collection: Collection, tmp_path: Path) -> None:
    student = frozen(encoder_folder, "sparse")
    lesson = lesson_of(collection, encodings_of(student, collection, tmp_path / "encodings"), active=(8, 20))
    teach_student(student, lesson, tmp_path / "step", Quiet())
    curve = read_curve(tmp_path / "step")
    validated = [point for point in curve if "validation" in point]
    assert len({point["active_documents"] for point in validated}) == 1
    assert [point["excess"] for point in validated] == [excess([point["active_queries"]], [8]) for point in validated]
    assert all(("flops_queries" in point) and ("flops_documents" not in point) for point in curve if "loss" in point)
    assert type(student)(student.model).document_identity == student.document_identity


def test_validation_scores_stored_documents(encoder_folder: Path, collection: Collection, tmp_path: Path) -> None:
    values = []
    for name, settings in (("frozen", {"frozen_documents": True}), ("both", {})):
        student = student_of(encoder_folder, **settings)
        encodings = encodings_of(student, collection, tmp_path / name / "encodings") if settings else None
        values.append(teach_student(student, lesson_of(collection, encodings), tmp_path / name, Quiet())["validation"]["before"])
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def test_what_was_stopped_goes_on_to_the_same_end(encoder_folder: Path, collection: Collection, tmp_path: Path) -> None:
    encodings = encodings_of(frozen(encoder_folder, "sparse"), collection, tmp_path / "encodings")
    lesson = lesson_of(collection, encodings, TRAINING.model_copy(update={"epochs": 1, "checkpoint_steps": 2}), active=(8, 20))
    whole = frozen(encoder_folder, "sparse")
    teach_student(whole, lesson, tmp_path / "whole", Quiet())

    class Impatient(Quiet):
        told = 0

        def update(self, message: str) -> None:
            self.told += 1
            if self.told == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach_student(frozen(encoder_folder, "sparse"), lesson, tmp_path / "stopped", Impatient())
    assert list((tmp_path / "stopped" / "checkpoints").iterdir())
    continued = frozen(encoder_folder, "sparse")
    teach_student(continued, lesson, tmp_path / "stopped", Quiet())
    assert read_curve(tmp_path / "stopped") == read_curve(tmp_path / "whole")
    assert all(torch.equal(tensor, continued.model.state_dict()[name]) for name, tensor in whole.model.state_dict().items())


def test_adapters_learn_queries_alone_and_are_merged(encoder_folder: Path, collection: Collection, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra [lora]")
    student = frozen(encoder_folder, "dense")
    identity, names = student.document_identity, set(student.model.state_dict())
    training = TRAINING.model_copy(update={"lora": LoraSettings(rank=2)})
    teach_student(student, lesson_of(collection, encodings_of(student, collection, tmp_path / "encodings"), training), tmp_path / "step", Quiet())
    again = type(student)(student.model)
    assert set(student.model.state_dict()) == names
    assert again.document_identity == identity
    assert {name.split(".")[2] for name, weight in student.model.named_parameters() if weight.requires_grad} == {"query"}


def test_the_length_of_training_cuts_queries_and_leaves_the_models_own(encoder_folder: Path, collection: Collection, tmp_path: Path) -> None:
    student = frozen(encoder_folder, "dense")
    training = TRAINING.model_copy(update={"max_length": 5, "epochs": 1})
    teach_student(student, lesson_of(collection, encodings_of(student, collection, tmp_path / "encodings"), training), tmp_path / "step", Quiet())
    assert [module.max_seq_length for module in (modules_of(student.model, task)[0] for task in ("query", "document"))] == [64, 64]


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"frozen_layers": 1}, r"^training\.frozen_layers: with student\.frozen_documents no document is read in training"),
        ({"matryoshka": (64, 16)}, r"^training\.matryoshka: 64, but the documents.* have 32 dimensions\. Give 32 at most"),
    ],
)
def test_what_does_not_go_together_with_frozen_documents_is_refused(
    encoder_folder: Path, collection: Collection, tmp_path: Path, training: dict[str, Any], said: str
) -> None:
    student = frozen(encoder_folder, "dense")
    lesson = lesson_of(collection, encodings_of(student, collection, tmp_path / "encodings"), TRAINING.model_copy(update=training))
    with pytest.raises(ConfigError, match=said):
        teach_student(student, lesson, tmp_path / "step", Quiet())


def test_encodings_of_another_and_a_student_that_is_not_frozen_are_refused(encoder_folder: Path, collection: Collection, tmp_path: Path) -> None:
    student = student_of(encoder_folder)
    with pytest.raises(ConfigError, match=rf"holds what another makes of documents, and the student encodes them as {student.identity} does"):
        teach_student(student, lesson_of(collection, Vectors(tmp_path, 60, 32, "another")), tmp_path / "step", Quiet())
    encodings = encodings_of(student, collection, tmp_path / "encodings")
    with pytest.raises(ConfigError, match=r"encodes queries and documents by the same weights"):
        teach_student(student, lesson_of(collection, encodings), tmp_path / "step", Quiet())


def test_a_side_without_a_goal_has_no_weight_and_no_state() -> None:
    controller = SparsityController(8, None, warmup=0)
    for _ in range(5):
        controller.update(16, 300)
    assert controller.weights()[0] > 0
    assert controller.weights()[1] == 0
    assert all(name.startswith("query_") for name in controller.state())
    other = SparsityController(8, None)
    other.restore(controller.state())
    assert other.state() == controller.state()
