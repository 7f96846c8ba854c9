"""Which documents teach: positives, draws, masks, suspected false negatives, and the queries held out."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from retriever.collection import Collection, write_collection
from retriever.errors import DataError
from retriever.runs import Run
from retriever.settings.training import TrainingSettings
from retriever.training.samples import TrainingSamples, highest_negative, hold_out, make_samples, stratified
from retriever.types import Document, Query
from tests.training_material import in_logits, samples_of

QUERIES = {name: Query(name, f"query {name}") for name in ("q1", "q2", "q3")}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Documents d0 to d19; d7 is row 7."""
    return write_collection(tmp_path_factory.mktemp("samples") / "collection", [Document(f"d{row}", f"text {row}") for row in range(20)])


def made(
    collection: Collection, scores: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], seed: int = 1, **settings: object
) -> TrainingSamples:
    training = TrainingSettings.model_validate({"documents_per_query": 3, "epochs": 1, **settings})
    queries = {query_id: query for query_id, query in QUERIES.items() if query_id in scores}
    return make_samples(in_logits(Run.from_dict("teacher", scores)), queries, qrels, collection, training, np.random.default_rng(seed))


def falling(count: int, start: float = 10.0) -> dict[str, float]:
    """d0 with the highest score, then d1, and so on, one apart."""
    return {f"d{row}": start - row for row in range(count)}


def test_a_sample_is_the_positive_and_drawn_candidates_with_the_teachers_scores(collection: Collection) -> None:
    samples = made(collection, {"q1": falling(10)}, {"q1": {"d4": 1}})
    assert samples.documents.shape == samples.teacher.shape == samples.mask.shape == (1, 3)
    assert samples.documents[0, 0] == 4
    assert samples.queries[0] == QUERIES["q1"]
    assert samples.teacher[0].tolist() == [10.0 - row for row in samples.documents[0]]
    assert samples.teacher.dtype == np.float32
    assert len(set(samples.documents[0].tolist())) == 3
    assert samples.mask.all()


def test_draws_come_from_the_teachers_best_and_reach_all_of_them(collection: Collection) -> None:
    samples = made(collection, {"q1": falling(20)}, {"q1": {"d2": 1, "d19": 1}}, negative_depth=5, epochs=40)
    drawn = set(samples.documents[:, 1:].ravel().tolist())
    assert drawn == {0, 1, 3, 4, 5}  # the five best without the positives


def test_each_positive_teaches_once_an_epoch(collection: Collection) -> None:
    samples = made(collection, {"q1": falling(8), "q2": falling(8)}, {"q1": {"d1": 1, "d3": 2}, "q2": {"d5": 1}}, epochs=3)
    lessons = sorted((query.query_id, row) for query, row in zip(samples.queries, samples.documents[:, 0].tolist(), strict=True))
    assert lessons == sorted([("q1", 1), ("q1", 3), ("q2", 5)] * 3)
    for epoch in range(3):  # none comes again before all have come
        assert len(set(zip([query.query_id for query in samples.queries[3 * epoch : 3 * epoch + 3]], samples.documents[3 * epoch :, 0], strict=False))) == 3


def test_positives_come_from_the_qrels_alone(collection: Collection) -> None:
    samples = made(collection, {"q1": falling(6)}, {"q1": {"d0": 0, "d5": 1, "d17": 3}})  # d17 was not scored
    assert samples.documents[:, 0].tolist() == [5]


@pytest.mark.parametrize("positive", ["d2", "d0"])
def test_a_positive_takes_the_score_of_the_best_where_that_is_asked(collection: Collection, positive: str) -> None:
    scores, qrels = {"q1": falling(3)}, {"q1": {positive: 1}}
    asked, plain = made(collection, scores, qrels, positive_score="best"), made(collection, scores, qrels)
    assert asked.documents.tolist() == plain.documents.tolist()
    assert asked.teacher[0, 0] == 10.0
    assert plain.teacher[0, 0] == scores["q1"][positive]
    assert asked.teacher[0, 1:].tolist() == plain.teacher[0, 1:].tolist() == [10.0 - row for row in asked.documents[0, 1:]]


def test_other_positives_are_neither_drawn_nor_negatives(collection: Collection) -> None:
    samples = made(collection, {"q1": falling(6)}, {"q1": {"d2": 1, "d3": 1, "d17": 1}}, epochs=20, false_negatives="keep")
    assert not {2, 3} & set(samples.documents[:, 1:].ravel().tolist())
    assert all(rows.tolist() == [2, 3, 17] for rows in samples.not_negative)


def test_a_short_list_is_padded_and_masked(collection: Collection) -> None:
    samples = made(collection, {"q1": {"d3": 1.0, "d4": 7.0}}, {"q1": {"d3": 1}}, documents_per_query=5)
    assert samples.mask.tolist() == [[True, True, False, False, False]]
    assert samples.documents[0, :2].tolist() == [3, 4]
    assert samples.teacher[0, :2].tolist() == [1, 7]


def test_a_positive_without_other_candidates_is_alone_in_its_list(collection: Collection) -> None:
    samples = made(collection, {"q1": {"d3": 1.0}, "q2": falling(4)}, {"q1": {"d3": 1}, "q2": {"d0": 1}})
    masks = {query.query_id: mask.tolist() for query, mask in zip(samples.queries, samples.mask, strict=True)}
    assert masks == {"q1": [True, False, False], "q2": [True, True, True]}


@pytest.mark.parametrize(
    ("start", "margin", "suspected"),
    [
        (10.0, 0.0, {0, 1, 2}),
        (-10.0, 0.0, {0, 1, 2}),  # all scores below 0: the rule is a difference, not a share
        (10.0, 1.5, {0, 1, 2, 4}),
        (-10.0, 1.5, {0, 1, 2, 4}),
        (10.0, 1.0, {0, 1, 2}),  # exactly at the edge is not above it
        (10.0, -2.5, {0}),
        (10.0, None, set()),
    ],
)
def test_what_the_teacher_puts_above_the_positive_is_no_negative(collection: Collection, start: float, margin: float | None, suspected: set[int]) -> None:
    samples = made(
        collection, {"q1": falling(8, start)}, {"q1": {"d3": 1}}, **({"false_negatives": "keep"} if margin is None else {"false_negative_margin": margin})
    )
    assert set(samples.not_negative[0].tolist()) == suspected | {3}


@pytest.mark.parametrize(
    ("rule", "margin", "positives", "edge"),
    [
        ("filter", 0.5, [3.0, 2.0], 1.5),
        ("relative", 0.05, [10.0, 8.0], 7.6),
        ("relative", 0.05, [-2.0, -10.0], -10.5),  # below the positive, not above it
        ("threshold", 4.0, [3.0], 4.0),
        ("threshold", 4.0, [], 4.0),
        ("filter", 0.5, [], float("inf")),
        ("keep", 0.5, [3.0], float("inf")),
    ],
)
def test_a_rule_says_above_which_score_a_document_is_no_negative(rule: str, margin: float, positives: list[float], edge: float) -> None:
    training = TrainingSettings.model_validate({"false_negatives": rule, "false_negative_margin": margin})
    assert highest_negative(np.array(positives, dtype=np.float32), training) == pytest.approx(edge)


@given(data=st.data(), size=st.integers(1, 40))
def test_strata_are_as_many_equal_stretches_with_one_document_each(data: st.DataObject, size: int) -> None:
    count = data.draw(st.integers(size, 200))
    places = stratified(count, size, np.random.default_rng(data.draw(st.integers(0, 99)))).tolist()
    for number, place in enumerate(places):  # in whole numbers: stretch i is [i * count // size, (i + 1) * count // size)
        assert number * count // size <= place < (number + 1) * count // size


def test_stratified_draws_hold_the_teachers_best_and_worst(collection: Collection) -> None:
    samples = made(collection, {"q1": falling(13)}, {"q1": {"d0": 1}}, epochs=30, sampling="stratified", documents_per_query=5, negative_depth=12)
    for row in samples.documents:
        thirds = [int(collection.doc_ids[number].removeprefix("d")) for number in row[1:]]
        assert [(place - 1) // 3 for place in thirds] == [0, 1, 2, 3]


def test_a_query_of_half_quality_teaches_in_about_half_of_the_epochs(collection: Collection) -> None:
    training = TrainingSettings(documents_per_query=3, epochs=400)
    scores = Run.from_dict("teacher", {name: falling(8) for name in QUERIES})
    qrels = {name: {"d1": 1} for name in QUERIES}
    samples = make_samples(in_logits(scores), QUERIES, qrels, collection, training, np.random.default_rng(1), {"q1": 0.5, "q2": 0.0})
    times = Counter(query.query_id for query in samples.queries)
    assert (times["q2"], times["q3"]) == (0, 400)
    assert 160 < times["q1"] < 240  # 200 and four standard deviations of 10


def test_queries_of_no_quality_at_all_leave_one_an_epoch(collection: Collection) -> None:
    training = TrainingSettings(documents_per_query=3, epochs=3)
    scores = Run.from_dict("teacher", {name: falling(8) for name in QUERIES})
    samples = make_samples(
        in_logits(scores), QUERIES, {name: {"d1": 1} for name in QUERIES}, collection, training, np.random.default_rng(1), dict.fromkeys(QUERIES, 0.0)
    )
    assert len(samples) == 3


def test_of_several_positives_the_lowest_sets_the_edge(collection: Collection) -> None:
    samples = made(collection, {"q1": falling(8)}, {"q1": {"d1": 1, "d4": 1}})
    assert [rows.tolist() for rows in samples.not_negative] == [[0, 1, 2, 3, 4]] * 2


def test_a_document_judged_0_stays_a_negative_whatever_the_teacher_says(collection: Collection) -> None:
    samples = made(collection, {"q1": falling(8)}, {"q1": {"d0": 0, "d3": 1}})
    assert samples.not_negative[0].tolist() == [1, 2, 3]


def test_order_and_draws_come_from_the_seed(collection: Collection) -> None:
    scores, qrels = {"q1": falling(15), "q2": falling(15), "q3": falling(15)}, {name: {"d3": 1, "d4": 1} for name in QUERIES}
    first, again, other = (made(collection, scores, qrels, seed, epochs=4) for seed in (1, 1, 2))
    assert first.documents.tolist() == again.documents.tolist()
    assert [query.query_id for query in first.queries] == [query.query_id for query in again.queries]
    assert first.documents.tolist() != other.documents.tolist()


def test_each_epoch_has_its_own_order_and_draws(collection: Collection) -> None:
    samples = made(collection, {name: falling(20) for name in QUERIES}, {name: {"d3": 1, "d4": 1, "d5": 1} for name in QUERIES}, epochs=2)
    assert len(samples) == 18
    assert samples.documents[:9].tolist() != samples.documents[9:].tolist()


def test_queries_without_a_scored_positive_are_left_out(collection: Collection) -> None:
    samples = made(collection, {"q1": falling(5), "q2": falling(5), "q3": {}}, {"q1": {"d1": 1}, "q2": {"d9": 1}, "q3": {"d1": 1}})
    assert [query.query_id for query in samples.queries] == ["q1"]


@pytest.mark.parametrize("qrels", [{}, {"q1": {}}, {"q1": {"d1": 0}}, {"q1": {"d9": 1}}, {"q9": {"d1": 1}}])
def test_qrels_without_a_scored_positive_are_refused(collection: Collection, qrels: dict[str, dict[str, int]]) -> None:
    with pytest.raises(DataError, match=r"none of the 1 train queries has a scored positive\. Check the train qrels with: retriever check"):
        made(collection, {"q1": falling(5)}, qrels)


def test_the_teachers_best_is_the_positive_of_a_query_that_nobody_judged(collection: Collection) -> None:
    scores = in_logits(Run.from_dict("teacher", {"q1": falling(6), "q2": {"d3": 2.0, "d5": 9.0, "d8": 8.5, "d9": 1.0}, "q3": {}}))
    training = TrainingSettings(documents_per_query=4, epochs=1, false_negative_margin=1.0)
    samples = make_samples(scores, QUERIES, {"q1": {"d4": 1}}, collection, training, np.random.default_rng(1), unjudged={"q2", "q3"})
    place = [query.query_id for query in samples.queries].index("q2")
    assert len(samples) == 2  # of q3 the teacher says nothing
    assert samples.documents[place].tolist() == [5, 8, 3, 9]
    assert samples.teacher[place].tolist() == [9.0, 8.5, 2.0, 1.0]
    assert samples.not_negative[place].tolist() == [5, 8]  # the positive, and what is less than the margin below it


def test_an_unjudged_query_whose_documents_are_all_alike_to_the_teacher_teaches_nothing(collection: Collection) -> None:
    scores = in_logits(Run.from_dict("teacher", {"q1": falling(6), "q2": dict.fromkeys(("d3", "d5", "d8"), 0.0), "q3": {"d3": 1.0}}))
    training = TrainingSettings(documents_per_query=4, epochs=1)
    samples = make_samples(scores, QUERIES, {"q1": {"d4": 1}}, collection, training, np.random.default_rng(1), unjudged={"q2", "q3"})
    assert [query.query_id for query in samples.queries] == ["q1"]


def test_lists_of_one_document_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        TrainingSettings(documents_per_query=1)
    with pytest.raises(DataError, match="1 samples of 1 documents; at least one sample of two documents is needed"):
        samples_of([[3]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_teachers_score_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="a teacher's score is not a finite number"):
        samples_of([[1, 2]], teacher=[[1, value]])
    assert len(samples_of([[1, 2]], teacher=[[1, value]], mask=[[True, False]])) == 1  # nobody looks at padding


# Held-out queries


@given(count=st.integers(2, 60), fraction=st.floats(0.01, 0.99), at_most=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_query_is_on_one_side_and_neither_side_is_empty(count: int, fraction: float, at_most: int, seed: int) -> None:
    query_ids = [f"q{number}" for number in range(count)]
    train, held = hold_out(dict.fromkeys(query_ids, ""), fraction, at_most, np.random.default_rng(seed))
    assert sorted([*train, *held]) == sorted(query_ids)
    assert train
    assert 1 <= len(held) <= at_most


def test_what_is_held_out_depends_on_ids_and_seed_alone() -> None:
    query_ids = [f"q{number}" for number in range(40)]
    splits = [hold_out(dict.fromkeys(order, ""), 0.25, 100, np.random.default_rng(3)) for order in (query_ids, query_ids[::-1], set(query_ids))]
    assert splits[0] == splits[1] == splits[2]
    assert len(splits[0][1]) == 10
    assert hold_out(dict.fromkeys(query_ids, ""), 0.25, 100, np.random.default_rng(4)) != splits[0]
    assert len(hold_out(dict.fromkeys(query_ids, ""), 0.25, 7, np.random.default_rng(3))[1]) == 7


@pytest.mark.parametrize("query_ids", [[], ["q1"]])
def test_fewer_than_two_queries_are_refused(query_ids: list[str]) -> None:
    with pytest.raises(DataError, match=f"{len(query_ids)} train queries or conversations; at least 2 are needed"):
        hold_out(dict.fromkeys(query_ids, ""), 0.1, 10, np.random.default_rng(1))


@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=12), alone=st.integers(0, 5), seed=st.integers(0, 99))
def test_a_conversation_teaches_or_is_held_out_as_a_whole(sizes: list[int], alone: int, seed: int) -> None:
    queries = {f"c{number}_{turn}": f"c{number}" for number, size in enumerate(sizes) for turn in range(size)} | {f"q{number}": "" for number in range(alone)}
    train, held = hold_out(queries, 0.3, 10, np.random.default_rng(seed))
    assert sorted([*train, *held]) == sorted(queries)
    assert train
    assert held
    assert not {queries[query_id] for query_id in train if queries[query_id]} & {queries[query_id] for query_id in held}
    assert len(held) < min(10, max(1, round(0.3 * len(queries)))) + 6  # at most the rest of a conversation more
