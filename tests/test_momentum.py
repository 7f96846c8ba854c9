"""Negatives beyond the batch: the copy that follows the student, the queue of what it encoded, and what losses read of it."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from retriever.collection import Collection
from retriever.config import experiment_from
from retriever.errors import ConfigError
from retriever.runs import Run
from retriever.scores.store import TeacherScores
from retriever.settings.training import QueueSettings, TrainingSettings
from retriever.students.image_text import ImageTextStudent
from retriever.training.adapter import DistillationLoss
from retriever.training.momentum import FILE, MomentumQueue, Past, check_queue, hardest, scores_of
from retriever.training.reinforced_batches import is_reinforced
from retriever.training.samples import TrainingSamples, direction, make_samples
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision, TrainingProgress
from retriever.types import Query
from tests.image_text_material import open_squares, save_vit, student_of
from tests.training_material import Stopped, in_logits, samples_of, untrained, weights


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("towers") / "vit")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return open_squares(tmp_path_factory.mktemp("squares"))


def rows_of(*rows: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)


# The copy


def test_the_copy_keeps_its_momentum_and_takes_the_rest_from_the_student() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    queue = MomentumQueue(model, QueueSettings(momentum=0.75))
    nn.init.constant_(model.weight, 2.0)
    found = []
    for _ in range(2):
        queue.follow(model)
        found.append(queue.weights["weight"].item())
    assert found == [1.25, 1.4375]  # 3/4 x 1 + 1/4 x 2, then 3/4 x 1.25 + 1/4 x 2
    assert model.weight.item() == 2


def test_the_copy_encodes_with_its_own_weights_and_without_dropout(vision: Path, encoder_folder: Path) -> None:
    model = student_of(vision, encoder_folder).model.train()
    queue, before = MomentumQueue(model, QueueSettings(momentum=0.5)), weights(model)
    features = model.preprocess([{"text": "an owl"}, {"text": "a red hunter"}], modality="text")
    read = lambda output: (output["sentence_embedding"],)  # noqa: E731
    with torch.no_grad():
        expected = model.eval()(dict(features))["sentence_embedding"]
        model.train()
        for weight in model.parameters():
            weight.add_(1.0)
    assert torch.equal(queue.encode(model, [features], read), expected)
    assert all(module.training for module in model.modules())
    queue.follow(model)
    for name, weight in queue.weights.items():
        torch.testing.assert_close(weight, before[name] + 0.5, rtol=0, atol=1e-5)


# The queue


def test_what_came_first_leaves_first_and_a_document_stands_there_once() -> None:
    past = Past(rows_of(), torch.zeros(0, 1))
    for rows in ([1, 2], [3], [1, 4], [5]):
        past = past.then(rows_of(*rows), torch.tensor(rows)[:, None] + len(past.rows) / 10, size=4)
    assert past.rows.tolist() == [3, 1, 4, 5]  # 1 2 | 1 2 3 | 2 3 1 4 | 3 1 4 5
    assert past.vectors[:, 0].tolist() == pytest.approx([3.2, 1.3, 4.3, 5.4])  # 1 as it was encoded last
    assert past.without(rows_of(4, 7)).rows.tolist() == [3, 1, 5]
    assert past.then(rows_of(6, 7, 8), torch.zeros(3, 1), size=2).rows.tolist() == [7, 8]


def test_scores_are_looked_up_by_document_and_the_hardest_are_those_that_the_student_likes_best() -> None:
    scores, found = scores_of(np.array([7, 2, 9]), np.array([2, 5, 9]), np.array([0.5, 1.5, -1.0], dtype=np.float32))
    assert scores.tolist() == [0, 0.5, -1]
    assert found.tolist() == [False, True, True]
    places, there = hardest(torch.tensor([[3.0, 1.0, 2.0, 9.0]] * 2), torch.tensor([[True, True, True, False], [False, True, False, False]]), 2)
    assert places[0].tolist() == [0, 2]
    assert places[1, 0] == 1
    assert there.tolist() == [[True, True], [True, False]]
    assert hardest(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 3)[0].shape == (2, 0)


def test_a_sample_knows_all_that_the_teacher_scored_but_positives() -> None:
    target = in_logits(Run.from_dict("teacher", {"q": {"c": 3.0, "a": 2.0, "b": 1.0}}))
    collection: Any = Rows()
    for queue in (QueueSettings(), None):
        settings = TrainingSettings(documents_per_query=2, negative_depth=1, epochs=1, queue=queue)
        found = make_samples(target, {"q": Query("q", "q")}, {"q": {"c": 1}}, collection, settings, np.random.default_rng(1)).scored
        assert (found and [part.tolist() for part in found[0]]) == (queue and [[2, 4], [1.0, 2.0]])


class Rows:
    """A collection in which three documents have rows that are not in their order."""

    def rows_of(self, doc_ids: list[str]) -> Any:
        return np.array([{"a": 4, "b": 2, "c": 9}[doc_id] for doc_id in doc_ids], dtype=np.int64)


# Losses


DOCUMENTS, PAST = [[1, 2], [3, 1]], [3, 5, 6, 7, 8]
"""Two lists, and the rows of a queue, whose row 3 the batch has too."""
SCORED = [([5, 7], [0.5, 2.5]), ([8], [9.0])]
NOT_NEGATIVE = [[1, 6], [3]]


def batch() -> tuple[TrainingSamples, dict[str, Tensor], dict[int, Tensor], Tensor]:
    """Samples whose teacher scores are 4 and 1, and 5 and 2; random vectors of documents, and of queries."""
    generator = torch.Generator().manual_seed(3)
    samples = samples_of(DOCUMENTS, [[4.0, 1.0], [5.0, 2.0]], not_negative=NOT_NEGATIVE)
    scored = [(np.array(rows), np.array(scores, dtype=np.float32)) for rows, scores in SCORED]
    samples = TrainingSamples(**{**vars(samples), "scored": scored})
    vectors = {row: torch.randn(4, generator=generator) for row in (1, 2, 3, 5, 6, 7, 8)}
    return samples, {"samples": rows_of(0, 1), "rows": rows_of(2, 3, 1)}, vectors, torch.randn(2, 4, generator=generator)


def terms_of(name: str, hardest_count: int) -> float:
    samples, labels, vectors, queries = batch()
    settings = TrainingSettings(losses={name: 1.0}, queue=QueueSettings(hardest=hardest_count))
    queue = MomentumQueue(nn.Identity(), QueueSettings())
    queue.add(direction(samples.queries[0]), rows_of(*PAST), torch.stack([vectors[row] if row != 3 else torch.ones(4) for row in PAST]))
    loss = DistillationLoss(untrained("dot"), samples, settings, queue=queue)
    return float(loss.terms((queries,), (torch.stack([vectors[row] for row in (2, 3, 1)]),), labels)[name])


def chosen(first: float, others: list[float]) -> float:
    """Minus the logarithm of the chance of the first among all."""
    return math.log(sum(math.exp(score - first) for score in [first, *others]))


def student_score(number: int, row: int) -> float:
    _, _, vectors, queries = batch()
    return float(queries[number] @ vectors[row])


def test_contrastive_holds_the_queues_sure_negatives_without_the_batchs_own_documents() -> None:
    # query 0: its positive 1, the batch's 2 and 3, the queue's 5, 7 and 8 (6 may be relevant); query 1: 3, then 1, 2, 5, 6, 7 and 8
    expected = [chosen(student_score(number, own), [student_score(number, row) for row in rows]) for number, own, rows in CONTRASTED]
    assert terms_of("contrastive", 16) == pytest.approx(sum(expected) / 2, rel=1e-5)


CONTRASTED = [(0, 1, [2, 3, 5, 7, 8]), (1, 3, [1, 2, 5, 6, 7, 8])]


def test_the_hardest_that_the_teacher_scored_are_ordered_and_the_others_stand_below_them() -> None:
    # query 0 orders 7 (2.5), 2 (1.0), 5 (0.5), below them the batch's 3 and the queue's 8; query 1 orders 8 (9.0), 1 (2.0), below 2, 5, 6, 7
    terms = []
    for number, ordered, below in ((0, [7, 2, 5], [3, 8]), (1, [8, 1], [2, 5, 6, 7])):
        for place, row in enumerate(ordered):
            terms.append(chosen(student_score(number, row), [student_score(number, other) for other in (*ordered[place + 1 :], *below)]))
    assert terms_of("partial_ranking", 16) == pytest.approx(sum(terms) / 5, rel=1e-5)


def test_of_those_scored_only_the_hardest_join_and_the_rest_is_not_put_below_them() -> None:
    harder = max((5, 7), key=lambda row: student_score(0, row))
    terms = []
    for number, ordered, below in ((0, [7, 2] if harder == 7 else [2, 5], [3, 8]), (1, [8, 1], [2, 5, 6, 7])):
        for place, row in enumerate(ordered):
            terms.append(chosen(student_score(number, row), [student_score(number, other) for other in (*ordered[place + 1 :], *below)]))
    assert terms_of("partial_ranking", 1) == pytest.approx(sum(terms) / 4, rel=1e-5)


def test_losses_of_lists_read_longer_lists() -> None:
    terms = []
    for number, known in ((0, {1: 4.0, 2: 1.0, 5: 0.5, 7: 2.5}), (1, {3: 5.0, 1: 2.0, 8: 9.0})):
        student, teacher = (torch.tensor(list(scores)).double() for scores in ([student_score(number, row) for row in known], known.values()))
        chances = teacher.softmax(0)
        terms.append(float((chances * (chances.log() - student.log_softmax(0))).sum()))
    assert terms_of("kl_divergence", 16) == pytest.approx(sum(terms) / 2, rel=1e-5)


# Training


SETTINGS: dict[str, Any] = {
    "documents_per_query": 3,
    "negative_depth": 2,
    "batch_size": 6,
    "epochs": 1,
    "checkpoint_steps": 3,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "losses": {"contrastive": 1.0, "partial_ranking": 1.0},
    "queue": {"size": 16, "momentum": 0.6, "hardest": 4},
}


def lessons_of(collection: Collection, training: TrainingSettings) -> TrainingSamples:
    """The judgements of all, and a teacher that gives every other pair a score of chance."""
    queries, qrels, generator = collection.queries("train"), collection.qrels("train"), np.random.default_rng(5)
    images = {document.doc_id: document.image is not None for document in collection.documents()}
    scores = {
        query_id: {one: 9.0 if one in qrels[query_id] else float(generator.normal()) for one, image in images.items() if image != (query.image is not None)}
        for query_id, query in queries.items()
    }
    target = TeacherScores(Run.from_dict("target", scores), "logit", "0" * 16, "target")
    return make_samples(target, queries, qrels, collection, training, np.random.default_rng(2))


def trained(student: ImageTextStudent, squares: Collection, folder: Path, stop_at: int | None = None, **settings: Any) -> dict[str, Tensor]:
    """The weights after training; validation counts up, so that the last model is kept."""
    training = TrainingSettings.model_validate({**SETTINGS, **settings})
    steps = itertools.count(100 if (folder / "curve.json").exists() else 0)

    def progress(at: TrainingProgress) -> None:
        if at.step == stop_at:
            raise Stopped

    supervision = Supervision(lambda: {"validation": float(next(steps))}, progress)
    train_student(student.model, lessons_of(squares, training), squares, training, folder, 1, supervision)
    return weights(student.model)


@pytest.mark.parametrize("towers", [{}, {"frozen_image": True}])
@pytest.mark.parametrize("settings", [{}, {"gradient_cache": True}])
def test_a_stopped_training_goes_on_with_its_queue(
    vision: Path, encoder_folder: Path, squares: Collection, tmp_path: Path, towers: dict[str, Any], settings: dict[str, Any]
) -> None:
    whole = trained(student_of(vision, encoder_folder, **towers), squares, tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        trained(student_of(vision, encoder_folder, **towers), squares, tmp_path / "stopped", stop_at=5, **settings)
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-3" / FILE).exists()
    again = trained(student_of(vision, encoder_folder, **towers), squares, tmp_path / "stopped", **settings)
    assert all(torch.equal(weight, whole[name]) for name, weight in again.items())
    if not towers and not settings:
        alone = trained(student_of(vision, encoder_folder), squares, tmp_path / "alone", queue=None)
        assert any(not torch.equal(weight, whole[name]) for name, weight in alone.items())


# Mistakes


def test_what_a_queue_cannot_serve_is_refused_in_one_line(encoder_folder: Path) -> None:
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    settings = TrainingSettings(losses={"gram": 1.0}, queue=QueueSettings())
    with pytest.raises(ConfigError, match=r"training\.queue: holds further documents for lists and for contrastive, and gram reads neither"):
        check_queue(model, settings)
    check_queue(model, TrainingSettings(queue=QueueSettings()))
    with pytest.raises(ConfigError, match=r"training\.queue: keeps one vector a document, which only dense, static and image_text students give"):
        check_queue(nn.Identity(), TrainingSettings(queue=QueueSettings()))
    with pytest.raises(ConfigError, match=r"training\.queue: reinforced training has no lists"):
        is_reinforced(TrainingSettings(losses={"reinforced": 1.0}, queue=QueueSettings()))
    values = {"name": "tiny", "collection": {"path": "x"}, "teacher": [{"kind": "lexical"}], "training": {"queue": {}}}
    with pytest.raises(ConfigError, match=r"training\.queue: keeps one vector a document, which a sparse student does not give"):
        experiment_from({**values, "student": {"kind": "sparse", "model": "m"}})
    with pytest.raises(ConfigError, match=r'positive_score = "best" is the best of the documents that were drawn, and the queue adds others later'):
        experiment_from({**values, "training": {"queue": {}, "positive_score": "best"}, "student": {"model": "m"}})
    with pytest.raises(ConfigError, match=r"student\.frozen_documents: documents do not change, so that training\.queue has nothing to follow"):
        experiment_from({**values, "student": {"kind": "dense", "model": "m", "frozen_documents": True}})
