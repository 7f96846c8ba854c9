"""The controller of active dimensions: by hand, on a simulated student, and on a tiny SPLADE model that really trains."""

import dataclasses
import math
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from retriever.collection import open_collection
from retriever.settings.collection import CollectionSettings
from retriever.settings.student import SparseSettings
from retriever.students.sparse import SparseStudent, load
from retriever.training.sparsity import Side, SparsityController, calibrated, updated, wanted
from retriever.training.sparsity_losses import flops
from retriever.types import Document, Query


@dataclasses.dataclass
class Simulated:
    """Texts whose active dimensions answer a weight late, up to a largest speed, and drift back to what the other losses want.

    Attributes:
        active: dimensions now.
        natural: dimensions without a regulariser.
        speed: largest change of the logarithm in a step.
        sensitive: the weight at which half of that is reached.
        lag: share of the last step's speed that is kept, as an optimiser with momentum does.
    """

    active: float
    natural: float
    speed: float = 0.03
    sensitive: float = 0.01
    lag: float = 0.9
    moving: float = 0.0

    def step(self, weight: float) -> float:
        push = -self.speed * weight / (abs(weight) + self.sensitive)
        drift = 0.2 * self.speed * math.log(self.natural / self.active)
        self.moving = self.lag * self.moving + (1 - self.lag) * (push + drift)
        self.active *= math.exp(self.moving)
        return self.active


# By hand


def test_without_a_measurement_nothing_is_regularised() -> None:
    assert SparsityController(32, 150).weights() == (0, 0)


def test_more_than_wanted_raises_the_weight_and_less_lowers_it_below_0() -> None:
    controller = SparsityController(32, 150, warmup=0)
    query, document = controller.update(64, 75)
    assert query > 0 > document
    assert controller.weights() == (query, document)


def test_the_level_moves_by_a_proportion_of_the_errors_change_and_of_the_error() -> None:
    error = math.log(33 / 32)
    once = updated(Side(32), 33, warmup=0)
    assert once.level == pytest.approx((15 + 0.3) * error)
    twice = updated(once, 33, warmup=0)
    assert twice.level == pytest.approx(once.level + 0.3 * error)
    assert updated(Side(32), 3200, warmup=0).level == 1  # the largest change
    assert updated(Side(32), 0, warmup=0).level == -1


def test_a_weight_is_a_hyperbolic_sine_of_its_level() -> None:
    assert Side(32, level=2.0).weight == pytest.approx(1e-3 * (math.e**2 - math.e**-2) / 2)
    assert Side(32, level=-2.0).weight == -Side(32, level=2.0).weight


def test_counts_are_smoothed() -> None:
    side = updated(updated(Side(32), 40, warmup=0), 50, warmup=0)
    assert side.smoothed == pytest.approx(0.7 * 40 + 0.3 * 50)
    assert side.average == pytest.approx(0.9 * 40 + 0.1 * 50)


def test_the_wanted_count_falls_by_equal_ratios_over_the_warm_up() -> None:
    side = updated(Side(100), 400, warmup=10)
    levels = [wanted(dataclasses.replace(side, updates=step), 10) for step in (0, 5, 10, 99)]
    assert levels == pytest.approx([400, 200, 100, 100])


def test_a_start_with_too_few_dimensions_has_no_warm_up() -> None:
    assert wanted(updated(Side(100), 50, warmup=10), 10) == 100


def test_a_level_has_bounds() -> None:
    high = low = Side(32)
    for _ in range(500):
        high, low = updated(high, 1e6, 0), updated(low, 0, 0)
    assert high.weight == pytest.approx(1e-3 * math.sinh(10))
    assert low.weight == pytest.approx(-1e-3 * math.sinh(5))


def test_queries_that_are_looked_up_have_no_weight() -> None:
    controller = SparsityController(None, 150, warmup=0)
    assert controller.update(12, 300)[0] == 0
    controller.calibrate(12, 300)
    assert set(controller.state()) == {f"document_{field.name}" for field in dataclasses.fields(Side)}


def test_encoding_with_more_dimensions_than_batches_moves_the_goal_by_half_of_the_news() -> None:
    side = Side(32)
    for _ in range(10):
        side = updated(side, 40, warmup=0)
    moved = calibrated(side, 40 * 1.44, warmup=0)
    assert moved.factor == pytest.approx(1.2)
    assert wanted(moved, 0) == pytest.approx(32 / 1.2)
    assert updated(moved, 40, 0).level == pytest.approx(moved.level + 0.3 * math.log(40 * 1.2 / 32))  # no jump: the count did not move


@pytest.mark.parametrize(("warmup", "updates"), [(0, 9), (50, 49)])
def test_calibration_before_the_counts_are_steady_changes_nothing(warmup: int, updates: int) -> None:
    controller = SparsityController(32, 150, warmup)
    for _ in range(updates):
        controller.update(40, 200)
    controller.calibrate(64, 300)
    assert controller.state()["query_factor"] == controller.state()["document_factor"] == 1
    controller.update(40, 200)
    controller.calibrate(64, 300)
    assert controller.state()["query_factor"] == pytest.approx(math.sqrt(64 / 40))


def test_an_error_counts_as_half_a_logarithm_at_most() -> None:
    assert updated(Side(32), 320, 0).error == 0.5
    assert updated(Side(320), 32, 0).error == -0.5


# On a simulated student


def steered(student: Simulated, noise: float = 0.1) -> float:
    """The mean of the last hundred of 500 steps."""
    draw = np.random.default_rng(0)
    controller = SparsityController(None, 150, warmup=200)
    ends = []
    for _ in range(500):
        _, weight = controller.update(0, student.active * math.exp(noise * draw.normal()))
        ends.append(student.step(weight))
    return float(np.mean(ends[-100:]))


@tried(max_examples=25, deadline=None)
@given(start=st.floats(1, 8), natural=st.floats(1.2, 8), speed=st.floats(0.01, 0.1), sensitive=st.floats(1e-3, 1), lag=st.floats(0, 0.9))
def test_a_student_with_too_many_dimensions_ends_near_the_target(start: float, natural: float, speed: float, sensitive: float, lag: float) -> None:
    assert steered(Simulated(150 * start, 150 * natural, speed, sensitive, lag)) == pytest.approx(150, rel=0.1)


@tried(max_examples=25, deadline=None)
@given(natural=st.floats(0.5, 1), speed=st.floats(0.01, 0.1), sensitive=st.floats(1e-3, 1e-2), lag=st.floats(0, 0.9))
def test_a_student_that_would_have_too_few_ends_near_the_target_too(natural: float, speed: float, sensitive: float, lag: float) -> None:
    assert steered(Simulated(300, 150 * natural, speed, sensitive, lag)) == pytest.approx(150, rel=0.1)


def test_a_student_whose_encoding_has_more_dimensions_than_its_batches_is_steered_by_encoding() -> None:
    student = Simulated(600, 600)
    controller = SparsityController(None, 150, warmup=100)
    for step in range(400):
        _, weight = controller.update(0, 0.7 * student.active)
        student.step(weight)
        if step % 25 == 0:
            controller.calibrate(0, student.active)
    assert student.active == pytest.approx(150, rel=0.05)


def test_a_restored_controller_goes_on_as_if_never_stopped() -> None:
    whole, first = SparsityController(32, 150, warmup=20), SparsityController(32, 150, warmup=20)
    counts = np.random.default_rng(1).uniform(20, 300, (40, 2)).tolist()
    for query, document in counts[:25]:
        whole.update(query, document)
        first.update(query, document)
    whole.calibrate(40, 200)
    first.calibrate(40, 200)
    second = SparsityController(32, 150, warmup=20)
    second.restore(first.state())
    assert all(isinstance(value, float) for value in first.state().values())
    assert [whole.update(*pair) for pair in counts[25:]] == [second.update(*pair) for pair in counts[25:]]


# On a model that trains


def training_pairs(folder: Path, prepared: Path) -> list[tuple[Query, Document]]:
    """The train queries, each with a document that is relevant to it."""
    collection = open_collection(CollectionSettings(path=folder), prepared)
    documents = {document.doc_id: document for document in collection.documents()}
    queries = collection.queries("train")
    return [(queries[query], documents[doc]) for query, grades in collection.qrels("train").items() for doc, grade in grades.items() if grade > 0]


def train(student: SparseStudent, pairs: list[tuple[Query, Document]], controller: SparsityController, steps: int) -> None:
    """Contrastive training with both regularisers, as the adapter weighs them; every 20 steps all texts are encoded."""
    draw = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(student.model.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.3, steps)
    for step in range(steps):
        batch = [pairs[number] for number in draw.choice(len(pairs), 8, replace=False)]
        student.model.train()
        queries, documents = (vectors(student, texts) for texts in ([query.text for query, _ in batch], [document.full_text for _, document in batch]))
        query_weight, document_weight = controller.update(active(queries), active(documents))
        loss = cross_entropy(queries @ documents.T, torch.arange(8)) + query_weight * flops(queries) + document_weight * flops(documents)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        if step % 20 == 19:
            controller.calibrate(*encoded_counts(student, pairs))


def vectors(student: SparseStudent, texts: list[str]) -> Tensor:
    return cast(Tensor, student.model(student.model.preprocess(texts))["sentence_embedding"])


def active(found: Tensor) -> float:
    return (found > 0).sum(dim=1).float().mean().item()


def encoded_counts(student: SparseStudent, pairs: list[tuple[Query, Document]]) -> tuple[float, float]:
    queries = student.encode_queries([query for query, _ in pairs])
    return float(queries.counts.mean()), float(student.encode_documents([document for _, document in pairs]).counts.mean())


@pytest.mark.parametrize(("query", "document"), [(5, 35)], ids=["sparser queries, fuller documents"])
def test_a_splade_model_that_trains_ends_within_an_eighth_of_both_targets(
    encoder_folder: Path, shared_beir_folder: Path, tmp_path: Path, query: int, document: int
) -> None:
    pairs = training_pairs(shared_beir_folder, tmp_path)
    settings = SparseSettings(model=str(encoder_folder), query_dimensions=query, document_dimensions=document)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        student = load(settings, sample=[document for _, document in pairs])
        train(student, pairs, SparsityController(query, document, warmup=100), steps=240)
    assert encoded_counts(student, pairs) == (pytest.approx(query, rel=0.125), pytest.approx(document, rel=0.125))
