import dataclasses
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from retriever.runs import Run, strings
from retriever.scores import scoring
from retriever.scores.scoring import CandidatePairs, estimate_seconds
from retriever.scores.store import ScoreStore
from retriever.types import Document, ScoredPairs
from tests.scoring_material import DOCUMENTS, QUERIES, LoggingTeacher, expected_run, run_of, write_tiny_collection

ROOT = Path(__file__).resolve().parent.parent


# The keys of pairs, against slow loops


@st.composite
def runs_with_variants(draw: st.DrawFn) -> tuple[Run, list[int], list[int]]:
    """A run over 6 documents, with few enough variants that texts repeat."""
    lists = draw(st.lists(st.lists(st.integers(0, 5), unique=True), max_size=5))
    variant = st.sampled_from([0, 1, 2**63, 2**64 - 1])
    query_variants, document_variants = draw(st.lists(variant, min_size=len(lists), max_size=len(lists))), draw(st.lists(variant, min_size=6, max_size=6))
    codes = np.array([code for codes in lists for code in codes], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    run = Run("r", tuple(f"q{number}" for number in range(len(lists))), offsets, codes, strings("abcdef"), np.zeros(len(codes), dtype=np.float32))
    return run, query_variants, document_variants


def keys_of(run: Run, query_variants: list[int], document_variants: list[int]) -> tuple[scoring.PairKeys, list[tuple[int, int]]]:
    pairs = CandidatePairs(run, {}, None, np.arange(6), np.array(query_variants, dtype=np.uint64), np.array(document_variants, dtype=np.uint64))  # type: ignore[arg-type]
    slow = [(query_variants[query], document_variants[code]) for query, code in zip(run.query_numbers.tolist(), run.codes.tolist(), strict=True)]
    return pairs.keys(), slow


@given(runs_with_variants(), st.sets(st.tuples(st.sampled_from([0, 1, 2, 2**63, 2**64 - 1]), st.sampled_from([0, 1, 2, 2**63, 2**64 - 1]))))
def test_pending_pairs_are_the_first_of_their_texts_that_are_not_stored(drawn: tuple[Run, list[int], list[int]], stored: set[tuple[int, int]]) -> None:
    keys, slow = keys_of(*drawn)
    listed = sorted(stored)
    places = keys.find(*(np.array([pair[side] for pair in listed], dtype=np.uint64) for side in (0, 1)))
    assert [place >= 0 for place in places] == [pair in slow for pair in listed]
    done = np.zeros(len(slow), dtype=np.bool_)
    done[places[places >= 0]] = True
    assert keys.pending(done).tolist() == [number for number, pair in enumerate(slow) if pair not in stored and pair not in slow[:number]]


@given(runs_with_variants())
def test_pairs_with_equal_texts_get_the_same_score(drawn: tuple[Run, list[int], list[int]]) -> None:
    keys, slow = keys_of(*drawn)
    distinct = sorted(set(slow))
    scores = np.full(len(slow), np.nan, dtype=np.float32)
    places = keys.find(*(np.array([pair[side] for pair in distinct], dtype=np.uint64) for side in (0, 1)))
    scores[places] = np.arange(len(distinct))
    assert keys.spread(scores).tolist() == [distinct.index(pair) for pair in slow]


# The estimate


class Clock:
    """Time that only a teacher's work moves."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds


class SlowTeacher(LoggingTeacher):
    """A hundredth of a second for each character, of the first 60 of a pair."""

    def __init__(self, clock: Clock, reads: int) -> None:
        super().__init__()
        self.clock, self.reads = clock, reads

    def score(self, pairs: Any) -> ScoredPairs:
        lengths = np.array([len(query.text) + len(document.full_text) for query, document in pairs])
        self.clock.seconds += float(np.minimum(lengths, self.reads).sum()) / 100
        return dataclasses.replace(super().score(pairs), truncated=lengths > self.reads)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(scoring, "time", clock)
    return clock


def estimate(teacher: SlowTeacher, texts: list[str], folder: Path) -> float:
    documents = [Document(f"d{number}", text) for number, text in enumerate(texts)]
    collection = write_tiny_collection(folder / "collection", documents)
    pairs = CandidatePairs.of(run_of({"q4": [document.doc_id for document in documents]}), QUERIES, collection)
    return estimate_seconds(teacher, pairs, np.arange(len(texts)))


def test_the_estimate_is_exact_for_a_teacher_whose_time_is_its_characters(clock: Clock, tmp_path: Path) -> None:
    texts = [f"{number} x" + "x" * (number % 90) for number in range(1_000)]
    assert estimate(SlowTeacher(clock, 10_000), texts, tmp_path) == pytest.approx(sum(len("what flies") + len(text) for text in texts) / 100)


def test_what_the_teacher_does_not_read_costs_nothing(clock: Clock, tmp_path: Path) -> None:
    texts = [f"{number} " + "x" * (5_000 if number % 3 == 0 else 60) for number in range(1_000)]
    assert estimate(SlowTeacher(clock, 60), texts, tmp_path) == pytest.approx(1_000 * 60 / 100, rel=0.1)


def test_nothing_pending_takes_no_time(clock: Clock, tmp_path: Path) -> None:
    teacher = SlowTeacher(clock, 60)
    store = ScoreStore.open(tmp_path / "store", write_tiny_collection(tmp_path / "collection"))
    assert store.estimate_seconds(teacher, run_of({"q1": ["d1"]}), QUERIES) > 0
    store.score(teacher, run_of({"q1": ["d1"]}), QUERIES)
    asked = len(teacher.asked)
    assert store.estimate_seconds(teacher, run_of({"q1": ["d1"], "q3": ["d1"]}), QUERIES) == 0
    assert len(teacher.asked) == asked


# The store as a whole, against a dictionary


class StoreMachine(RuleBasedStateMachine):
    """Scores any pairs in any order, opens anew, loses shards; a dictionary of texts says what must be there."""

    @initialize()
    def begin(self) -> None:
        self.work = Path(tempfile.mkdtemp())
        self.collection = write_tiny_collection(self.work / "collection")
        self.stored: dict[tuple[str, str], float] = {}
        self.reopen()

    def teardown(self) -> None:
        if hasattr(self, "work"):
            shutil.rmtree(self.work)

    @rule()
    def reopen(self) -> None:
        self.store = ScoreStore.open(self.work / "store", self.collection)

    @rule(chosen=st.sets(st.tuples(st.sampled_from(sorted(QUERIES)), st.sampled_from([d.doc_id for d in DOCUMENTS]))), shard_pairs=st.integers(1, 7))
    def score(self, chosen: set[tuple[str, str]], shard_pairs: int) -> None:
        teacher, pairs = LoggingTeacher(shard_pairs), grouped(chosen)
        candidates, wanted = run_of(pairs), {texts_of(*pair) for pair in chosen}
        plan = self.store.plan(teacher.identity, candidates, QUERIES)
        assert (plan.pending, plan.done) == (len(wanted - set(self.stored)), len(wanted & set(self.stored)))
        self.store.score(teacher, candidates, QUERIES, on_damage=lambda _: None)
        assert sorted(teacher.asked) == sorted(wanted - set(self.stored))
        self.stored |= {pair: expected_score(pair) for pair in wanted}
        assert self.store.read(teacher.identity, candidates, QUERIES).run.to_dict() == expected_run(pairs)

    @rule(chance=st.randoms(use_true_random=False), kind=st.sampled_from(["cut", "flip", "remove"]))
    def lose_a_shard(self, chance: Any, kind: str) -> None:
        shards = sorted(self.work.rglob("scores/*/*.parquet"))
        good = [path for path in shards if path not in {problem.path for problem in self.store.verify()}]
        if not good:
            return
        path = chance.choice(good)
        lost = [texts_of(row["query_id"], row["doc_id"]) for row in pq.read_table(path, columns=["query_id", "doc_id"]).to_pylist()]
        data = path.read_bytes()
        place = chance.randrange(len(data))
        if kind == "remove":
            path.unlink()
        else:
            path.write_bytes(data[:place] if kind == "cut" else data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        for pair in lost:
            del self.stored[pair]

    @invariant()
    def what_is_stored_can_be_read_and_nothing_else(self) -> None:
        everything = run_of({query_id: [document.doc_id for document in DOCUMENTS] for query_id in QUERIES})
        found = self.store.read(LoggingTeacher().identity, everything, QUERIES, allow_missing=True).run.to_dict()
        assert {texts_of(query, doc): score for query, documents in found.items() for doc, score in documents.items()} == self.stored


def texts_of(query_id: str, doc_id: str) -> tuple[str, str]:
    return QUERIES[query_id].text, next(document.full_text for document in DOCUMENTS if document.doc_id == doc_id)


def expected_score(pair: tuple[str, str]) -> float:
    query_id = next(query.query_id for query in QUERIES.values() if query.text == pair[0])
    doc_id = next(document.doc_id for document in DOCUMENTS if document.full_text == pair[1])
    return expected_run({query_id: [doc_id]})[query_id][doc_id]


def grouped(pairs: set[tuple[str, str]]) -> dict[str, list[str]]:
    return {query_id: sorted(doc_id for query, doc_id in pairs if query == query_id) for query_id in sorted({query for query, _ in pairs})}


def test_the_store_is_a_dictionary_that_survives_anything() -> None:
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)))


# Kills


def test_a_killed_scoring_continues_and_ends_with_the_same_bytes() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "resume_scoring.py"), "--kills", "3", "--queries", "100"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "stored pairs that were scored again     0\n" in result.stdout
    assert "bytes as in the uninterrupted run       identical (40 shards)" in result.stdout
