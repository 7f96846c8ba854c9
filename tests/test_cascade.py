"""A slow teacher that reads a part of each list: which part, what the rest is filled in with, and that calls really go down."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retriever.config import experiment_from, read_experiment
from retriever.errors import ConfigError
from retriever.pipeline import Pipeline
from retriever.runs import Run
from retriever.scores.cascade import READ_TOP, call_order, choose, fill
from retriever.steps.cascade import always_read, asked_pairs, cascade_inputs
from tests.scoring_material import LoggingTeacher, score_of, shard_bytes
from tests.tiny_experiment import command, write_experiment

SLOW = "counting"


# Which pairs


def test_every_fifth_call_goes_to_an_anchor_the_lowest_first_then_the_middle_then_the_quarters() -> None:
    """The anchors of 41 ranks are 40 * (1, 1/2, 1/4, 3/4); rank 10 is an anchor before the top reaches it."""
    assert call_order(41)[:17].tolist() == [0, 40, 1, 2, 3, 4, 20, 5, 6, 7, 8, 10, 9, 11, 12, 30, 13]
    assert call_order(0).tolist() == []
    assert call_order(1).tolist() == [0]


@given(st.integers(0, 400))
def test_every_rank_is_called_once(size: int) -> None:
    assert sorted(call_order(size).tolist()) == list(range(size))


def test_a_share_of_each_list_is_chosen_with_what_is_always_read_among_it() -> None:
    offsets = np.array([0, 10, 10, 13, 23])
    always = np.zeros(23, dtype=np.bool_)
    always[13 + 5] = True
    chosen = np.flatnonzero(choose(offsets, always, 0.3))
    assert chosen[:3].tolist() == [0, 1, 9]  # 3 of 10: the two best and the lowest
    assert chosen[3:4].tolist() == [10]  # 0.9 of a call is one
    assert chosen[4:].tolist() == [13, 13 + 5, 13 + 9]


def test_what_is_always_read_is_read_even_where_it_is_more_than_the_share() -> None:
    always = np.array([False, False, False, True, True, True, False, False, False, False])
    assert np.flatnonzero(choose(np.array([0, 10]), always, 0.1)).tolist() == [3, 4, 5]


@st.composite
def lists(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Borders of some lists, empty ones among them, and what is always read of them."""
    counts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    always = draw(st.lists(st.integers(0, 9), min_size=int(offsets[-1]), max_size=int(offsets[-1])))
    return offsets, np.array([one == 0 for one in always], dtype=np.bool_)


@given(lists(), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_share_reads_all_that_a_smaller_one_does(drawn: tuple[NDArray[np.int64], NDArray[np.bool_]], one: float, other: float) -> None:
    offsets, always = drawn
    smaller, larger = (choose(offsets, always, share) for share in sorted((one, other)))
    assert not (smaller & ~larger).any()
    assert smaller[always].all()
    for start, end in itertools.pairwise(offsets.tolist()):
        calls = max(round(min(one, other) * (end - start)), int(end > start), int(always[start:end].sum()))
        assert smaller[start:end].sum() == calls
    assert choose(offsets, always, 1.0).all()


# What the others are filled in with

NONE = np.nan


def filled(cheap: list[float], scores: list[float], offsets: list[int] | None = None, always: tuple[int, ...] = ()) -> list[float]:
    mask = np.isin(np.arange(len(scores)), always)
    borders = np.array(offsets or [0, len(scores)])
    return fill(np.array(cheap, dtype=np.float32), borders, np.array(scores, dtype=np.float32), mask).tolist()


def below(score: float) -> float:
    """The largest number of float32 under it."""
    return float(np.nextafter(np.float32(score), np.float32(-np.inf)))


CHEAP = [2.5, 1.5, 0.5, -0.5, -1.5, -2.5]


def test_the_unread_lie_on_the_line_through_the_read_pairs_beside_them() -> None:
    """Ranks 2, 3 and 4 lie between 1 and 5, so the line is that through (1.5, 8) and (-2.5, 0), whatever rank 0 has."""
    assert filled(CHEAP, [100, 8, NONE, NONE, NONE, 0]) == [100, 8, 6, 4, 2, 0]


def test_a_pair_of_the_fit_weighs_as_much_as_it_stands_for() -> None:
    """Without spread in what the cheap teachers say the guess is a mean: of 9, which stands for half of rank 1, and 3, for the other half and 3 to 5."""
    assert filled([0.0] * 6, [9, NONE, 3, NONE, NONE, NONE]) == [9, 3.75, 3, 3.75, 3.75, 3.75]


def test_each_list_has_its_own_offset_and_all_have_one_slope() -> None:
    read = [100, 8, NONE, NONE, NONE, 0]
    assert filled([*CHEAP, 1, -1], [*read, 3, NONE], [0, 6, 8])[6:] == [3, -1]
    assert filled([*CHEAP, 1, -1], [*read, 30, NONE], [0, 6, 6, 8])[6:] == [30, 26]


def test_what_is_always_read_stays_as_it_is_and_out_of_the_fit() -> None:
    assert filled(CHEAP, [100, 8, NONE, 50, NONE, 0], always=(3,)) == [100, 8, 6, 50, 2, 0]


def test_a_list_with_nothing_in_the_fit_takes_the_mean_offset() -> None:
    """Offset 5 of the first list, for three unread pairs, and 1 of the second, for one: 4. The slope is 2."""
    cheap, read = [*CHEAP, 1, -1, 1, -1], [100, 8, NONE, NONE, NONE, 0, 3, NONE, 50, NONE]
    assert filled(cheap, read, [0, 6, 8, 10], always=(8,))[8:] == [50, 2]


def test_where_only_judged_pairs_were_read_they_are_the_fit() -> None:
    assert filled(CHEAP, [100, 8, NONE, NONE, NONE, 0], always=(0, 1, 5)) == [100, 8, 6, 4, 2, 0]


def test_cheap_teachers_that_are_wrong_have_no_say() -> None:
    """The slope would be -10 / 3, and is 0: the guess is the mean of 4 and -6, each of which stands for one unread pair."""
    assert filled([2, 1, 0, -1, -2], [12, -6, NONE, NONE, 4])[2:4] == [-1, -1]


def test_a_guess_stays_below_the_better_half_of_what_was_read() -> None:
    """The mean of -4 and 0 is above -4, the second best of three."""
    assert filled([2, 1, 0, -1, -2], [-5, -4, NONE, NONE, 0]) == [-5, -4, below(-4), below(-4), 0]


def test_a_guess_never_stands_among_the_ten_best() -> None:
    cheap = [float(-rank) for rank in range(40)]
    read = [*map(float, range(-30, 0)), *[NONE] * 9, 0.0]  # the teacher turns the order of the top around
    found = filled(cheap, read)
    assert sorted(found, reverse=True)[:READ_TOP] == [0, -1, -2, -3, -4, -5, -6, -7, -8, -9]
    assert max(found[30:39]) == below(-9)


def test_scores_that_are_all_there_are_handed_back() -> None:
    assert filled(CHEAP, [3, 1, 4, 1, 5, 9]) == [3, 1, 4, 1, 5, 9]
    assert filled([], [], [0, 0]) == []


@st.composite
def cascaded(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Lists with the cheap teachers' and the slow one's scores, what is always read, and what is chosen."""
    offsets, always = draw(lists())
    chosen = choose(offsets, always, draw(st.floats(0.05, 1)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cheap = generator.standard_normal(len(always)).astype(np.float32)
    for start, end in itertools.pairwise(offsets.tolist()):
        cheap[start:end] = -np.sort(-cheap[start:end])
    noise, mix = generator.standard_normal(len(always)), draw(st.sampled_from([-1.0, 0.0, 1.0]))
    return cheap, offsets, (draw(st.sampled_from([1e-3, 1.0, 1e4])) * (mix * cheap + noise)).astype(np.float32), always, chosen


@given(cascaded())
def test_filled_scores_are_finite_keep_the_cheap_order_and_leave_read_ones_alone(drawn: tuple[NDArray[Any], ...]) -> None:
    cheap, offsets, scores, always, chosen = drawn
    found = fill(cheap, offsets, np.where(chosen, scores, np.float32(np.nan)), always)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.array_equal(found[chosen], scores[chosen])
    for start, end in itertools.pairwise(offsets.tolist()):
        unread, read = found[start:end][~chosen[start:end]], -np.sort(-found[start:end][chosen[start:end]])
        assert (np.diff(unread) <= 0).all()
        assert (unread < read[: min(READ_TOP, (len(read) + 1) // 2), None]).all()


@given(st.lists(st.integers(6, 40), min_size=1, max_size=5), st.floats(0.4, 0.9), st.floats(0.1, 10))
def test_a_teacher_that_says_what_the_cheap_ones_say_is_filled_in_exactly(counts: list[int], share: float, slope: float) -> None:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    numbers = np.repeat(np.arange(len(counts)), counts)
    cheap = ((offsets[numbers] - np.arange(len(numbers))) / 8).astype(np.float32)
    scores, never = (slope * cheap + 5 * numbers).astype(np.float32), np.zeros(len(cheap), dtype=np.bool_)
    chosen = choose(offsets, never, share)
    np.testing.assert_allclose(fill(cheap, offsets, np.where(chosen, scores, np.float32(np.nan)), never), scores, rtol=1e-4, atol=1e-4)


# In an experiment


def experiment_file(folder: Path, collection: Path, model: Path, cascade: str = "cascade = 0.3") -> Path:
    """The tiny experiment with a slow teacher that stands first in the file."""
    slow = f'kind = "tests.counting_teacher"\nname = "{SLOW}"\n{cascade}\n\n[[teacher]]\nkind = "lexical"'
    return write_experiment(folder, collection, model, {'kind = "lexical"': slow})


@pytest.fixture
def path(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> Path:
    return experiment_file(tmp_path, shared_beir_folder, encoder_folder)


def opened(path: Path, *overrides: str, work: str = "work") -> Pipeline:
    return Pipeline(read_experiment(path, overrides), path.parent / work)


def asked(pipeline: Pipeline) -> list[tuple[str, str]]:
    """The texts of the pairs that the slow teacher was asked for, in turn."""
    return cast(LoggingTeacher, pipeline.teachers[SLOW]).asked


def texts_of(pipeline: Pipeline, split: str, run: Run) -> dict[tuple[str, str], tuple[str, str]]:
    """(query id, document id) -> the texts of the run's pairs."""
    documents = {document.doc_id: document.full_text for document in pipeline.collection.documents()}
    queries = pipeline.queries(split)
    return {(query_id, doc_id): (queries[query_id].text, documents[doc_id]) for query_id in run for doc_id, _ in run[query_id]}


def test_the_slow_teacher_is_asked_for_its_share_and_the_target_has_every_pair(path: Path) -> None:
    pipeline = opened(path)
    scores = pipeline.scores
    everything = opened(path, f'teacher.0={{kind="tests.counting_teacher", name="{SLOW}"}}', work="full")
    full = everything.scores
    assert len(asked(pipeline)) == len(set(asked(pipeline)))
    assert len(asked(everything)) > 3 * len(asked(pipeline)) > 0
    for split in ("train", "test"):
        texts, read = texts_of(pipeline, split, scores[split][SLOW]), set(asked(pipeline))
        assert list(scores[split]) == [SLOW, "lexical", "embedding-student"]
        assert scores[split][SLOW].counts.tolist() == pipeline.pairs(split).counts.tolist()
        assert {name for name, text in texts.items() if text in read} != texts.keys()
        for (query_id, doc_id), text in texts.items():
            if text in read:
                assert dict(scores[split][SLOW][query_id])[doc_id] == score_of(*text) == dict(full[split][SLOW][query_id])[doc_id]
    assert pipeline.target.run("train").n_pairs == pipeline.pairs("train").n_pairs


def test_the_store_holds_what_the_teacher_said_and_nothing_else(path: Path) -> None:
    pipeline = opened(path)
    _ = pipeline.scores
    identity = pipeline.identities[SLOW]
    assert pipeline.store.statistics(identity.fingerprint).pairs == len(asked(pipeline))
    for split in ("train", "test"):
        kept = pipeline.store.read(identity, pipeline.pairs(split), pipeline.queries(split), allow_missing=True).run
        texts = texts_of(pipeline, split, kept)
        assert all(dict(kept[query_id])[doc_id] == score_of(*text) for (query_id, doc_id), text in texts.items())


def test_a_larger_share_asks_for_the_additional_pairs_only_and_a_smaller_one_for_none(path: Path) -> None:
    first = opened(path)
    small = first.scores
    second = opened(path, "teacher.0.cascade=0.6")
    _ = second.scores
    assert asked(second)
    assert not set(asked(first)) & set(asked(second))
    again = opened(path)
    assert {split: runs[SLOW].to_dict() for split, runs in again.scores.items()} == {split: runs[SLOW].to_dict() for split, runs in small.items()}
    assert asked(again) == []
    whole = opened(path, f'teacher.0={{kind="tests.counting_teacher", name="{SLOW}"}}')
    assert whole.scores["test"][SLOW].to_dict() != small["test"][SLOW].to_dict()
    assert len(asked(first)) + len(asked(second)) + len(asked(whole)) == len({*asked(first), *asked(second), *asked(whole)})


def test_positives_are_read_unless_they_are_retrieved_for_a_held_out_query_and_none_of_the_test_queries(path: Path) -> None:
    pipeline = opened(path)
    pairs = pipeline.pairs("train")
    mask, held = always_read(pipeline, "train", pairs), set(pipeline.held_out[1])
    names = [(query_id, doc_id) for query_id in pairs for doc_id, _ in pairs[query_id]]
    expected = [
        pipeline.qrels("train")[query_id].get(doc_id, 0) > 0 and not (query_id in held and doc_id in dict(pipeline.candidates["train"][query_id]))
        for query_id, doc_id in names
    ]
    assert mask.tolist() == expected
    assert {query_id in held for (query_id, _), always in zip(names, expected, strict=True) if always} == {False, True}
    assert not always_read(pipeline, "test", pipeline.pairs("test")).any()
    read = set(texts_of(pipeline, "train", pairs.keep(mask)).values())
    _ = pipeline.scores
    assert read <= set(asked(pipeline))


def test_a_shard_that_is_gone_is_read_again_and_nothing_else(path: Path) -> None:
    first = opened(path)
    before = first.scores["train"][SLOW].to_dict()
    shards = shard_bytes(first.folder / "score")
    slow = [name for name in sorted(shards) if first.identities[SLOW].fingerprint in name]
    (first.folder / "score" / slow[0]).unlink()
    again = opened(path)
    assert again.scores["train"][SLOW].to_dict() == before
    assert 0 < len(asked(again)) < len(asked(first))
    assert shard_bytes(first.folder / "score") == shards


def test_without_a_cascade_the_score_step_depends_on_what_it_did(path: Path, finished_experiment: Path) -> None:
    assert cascade_inputs(opened(path)).keys() == {"judgements", "held"}
    assert cascade_inputs(Pipeline(read_experiment(finished_experiment / "tiny.toml"), finished_experiment / "work")) == {}


def test_a_dry_run_counts_the_calls_before_and_after_the_cheap_teachers_scored(path: Path) -> None:
    def planned() -> dict[str, tuple[int, int]]:
        plans = json.loads(command("score", path, "--work", path.parent / "work", "--dry-run", "--json").out)
        return {plan["teacher"]: (plan["pending"], plan["done"]) for plan in plans}

    before = planned()
    pipeline = opened(path)
    _ = pipeline.scores
    assert list(before) == [SLOW, "lexical", "embedding-student"]
    assert before[SLOW][1] == 0
    assert abs(before[SLOW][0] - len(asked(pipeline))) <= 3  # other pairs, of which more or fewer have equal texts
    assert planned()[SLOW] == (0, len(asked(pipeline)))
    pending, done = planned_at(path, 0.6)
    assert (pending > 0, done) == (True, len(asked(pipeline)))


def planned_at(path: Path, share: float) -> tuple[int, int]:
    said = command("score", path, "--work", path.parent / "work", "--dry-run", "--json", "--set", f"teacher.0.cascade={share}")
    plan = next(plan for plan in json.loads(said.out) if plan["teacher"] == SLOW)
    return plan["pending"], plan["done"]


def test_parts_merge_into_the_scores_of_one_run(path: Path) -> None:
    whole = opened(path, work="whole")
    expected = whole.scores
    stores = [command("score", path, "--work", path.parent / "work", "--shard", f"{number}/2").out.strip() for number in (1, 2)]
    assert command("store", "merge", *stores, path.parent / "work" / "tiny").status == 0
    merged = opened(path)
    for split in ("train", "test"):
        for query_id, scores in merged.scores[split][SLOW].to_dict().items():
            assert scores == pytest.approx(expected[split][SLOW].to_dict()[query_id], abs=1e-3)
    assert asked(merged) == []
    assert merged.store.statistics(merged.identities[SLOW].fingerprint).pairs == len(asked(whole))


def test_the_audit_says_how_many_pairs_were_read(path: Path) -> None:
    pipeline = opened(path)
    _ = pipeline.scores
    report = json.loads(command("teachers", path, "--work", path.parent / "work", "--json").out)
    held = pipeline.pairs("train").select(pipeline.held_out[1])
    read = dict(asked_pairs(pipeline, {"train": held}, [pipeline.store]))[SLOW]["train"].n_pairs
    assert 0 < read < 0.5 * held.n_pairs
    assert f" {SLOW} read {read:,} of the pairs, the others are filled in." in report["summary"]
    assert f"{held.n_pairs:,} pairs" in report["summary"]


# What is refused

SMALL: Mapping[str, Any] = {"name": "small", "collection": {"path": "data"}, "student": {"model": "some/model"}}


@pytest.mark.parametrize(
    ("teachers", "said"),
    [
        ([{"kind": "llm", "model": "m", "cascade": 0.3}], "teacher llm-m: a cascade needs a teacher without one, which scores every pair"),
        ([{"kind": "llm", "model": "m", "cascade": 0.3}, {"kind": "a.b", "cascade": 0.5}], "teacher llm-m: a cascade needs a teacher without one"),
        ([{"kind": "lexical"}, {"kind": "cross_encoder", "model": "m", "cascade": 1.0}], "teacher.1.cascade: must be less than 1, found 1.0"),
        ([{"kind": "lexical"}, {"kind": "cross_encoder", "model": "m", "cascade": 0}], "teacher.1.cascade: must be greater than 0, found 0"),
        ([{"kind": "lexical"}, {"kind": "cross_encoder", "model": "m", "cascade": True}], "teacher.1.cascade: must be a number, found True"),
        ([{"kind": "lexical", "cascade": 0.3}], 'unknown key "teacher.0.cascade"'),
        ([{"kind": "lexical"}, {"kind": "embedding", "model": "m", "cascade": 0.3}], 'unknown key "teacher.1.cascade"'),
        ([{"kind": "lexical"}, {"kind": "run", "path": "r", "cascade": 0.3}], 'unknown key "teacher.1.cascade"'),
        ([{"kind": "lexical"}, {"kind": "llm_listwise", "model": "m", "cascade": 0.3}], 'unknown key "teacher.1.cascade"'),
    ],
)
def test_a_cascade_that_makes_no_sense_is_refused(teachers: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment_from({**SMALL, "teacher": teachers}, "small.toml")
    assert str(caught.value).startswith(f"small.toml: {said}")


def test_a_private_teacher_that_orders_lists_is_refused_before_anything_is_scored(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    lists_whole = 'kind = "tests.alphabetic_teacher"\nname = "lists"\ncascade = 0.5\n\n[[teacher]]\nkind = "lexical"'
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "lexical"': lists_whole})
    pipeline = opened(path)
    with pytest.raises(ConfigError, match="teacher lists: it orders whole lists, so it cannot read a part of one"):
        _ = pipeline.scores
    assert shard_bytes(pipeline.folder / "score") == {}
