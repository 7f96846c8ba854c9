"""Teachers that order whole lists: what the store keeps of them, and when a list is ordered anew."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from retriever import distill
from retriever.collection import Collection
from retriever.errors import StoreError
from retriever.files import text_hash
from retriever.scores.store import ScoreStore
from retriever.types import Document, OrderedList, Query, Usage
from tests.alphabetic_teacher import AlphabeticTeacher
from tests.scoring_material import QUERIES, run_of, shard_bytes, write_tiny_collection
from tests.tiny_experiment import write_experiment

LISTS = {"q1": ["d3", "d1", "d2"], "q2": ["d5", "d2", "d4", "d7"], "q4": ["d6", "d3"]}  # d4 has the text of d2


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return write_tiny_collection(tmp_path_factory.mktemp("collection") / "tiny")


@pytest.fixture
def store(tmp_path: Path, collection: Collection) -> ScoreStore:
    return ScoreStore.open(tmp_path / "store", collection)


def test_ranks_come_back_as_minus_the_rank_in_unit_rank(store: ScoreStore) -> None:
    teacher = AlphabeticTeacher()
    store.score(teacher, run_of(LISTS), QUERIES)
    scores = store.read(teacher.identity, run_of(LISTS), QUERIES)
    assert scores.unit == "rank"
    assert scores.run.to_dict() == {
        "q1": {"d2": -1.0, "d3": -2.0, "d1": -3.0},  # a hammer, moths, owls
        "q2": {"d4": -1.0, "d2": -1.0, "d7": -2.0, "d5": -3.0},  # equal texts were one document: a hammer, chisels, saws
        "q4": {"d6": -1.0, "d3": -2.0},
    }


def test_the_teacher_sees_whole_lists_in_the_candidates_order_without_repeated_texts(store: ScoreStore) -> None:
    teacher = AlphabeticTeacher(shard_pairs=1)
    store.score(teacher, run_of({**LISTS, "q3": ["d1", "d2", "d3"]}), QUERIES)  # q3 says what q1 says, and its documents are the same set
    assert teacher.asked == [
        ("animals of the night", ["moths fly at night", "owls the owl sees well in the dark", "a hammer drives nails"]),
        ("tools for wood", ["saws cut wood", "a hammer drives nails", "chisels shape wood"]),
        ("what flies", ["bats hear where they fly", "moths fly at night"]),
    ]
    read = store.read(teacher.identity, run_of({"q3": ["d1", "d2", "d3"]}), QUERIES).run.to_dict()
    assert read == {"q3": {"d2": -1.0, "d3": -2.0, "d1": -3.0}}


def test_only_ranks_are_stored_with_the_list_the_number_of_orders_and_what_was_mended(store: ScoreStore) -> None:
    teacher = AlphabeticTeacher(status="repaired 1 of 2")
    store.score(teacher, run_of({"q1": ["d3", "d1"], "q4": ["d3"]}), QUERIES)
    (shard,) = store.folder.rglob("*.parquet")
    rows = pq.read_table(shard).to_pylist()
    assert rows[0] == {
        "query_id": "q1",
        "doc_id": "d3",
        "query_variant": text_hash("animals of the night"),
        "doc_variant": text_hash("moths fly at night"),
        "score": None,
        "rank": 1,
        "list_id": rows[1]["list_id"],
        "pass_id": 2,
        "n_tokens": 7,
        "truncated": False,
        "status": "repaired 1 of 2",
    }
    assert rows[2]["list_id"] != rows[0]["list_id"]
    assert store.verify() == []
    statistics = store.statistics(teacher.identity.fingerprint)
    assert (statistics.pairs, statistics.mean, statistics.tokens, statistics.mended) == (3, pytest.approx(-4 / 3), 21, 1.0)


def test_a_list_with_another_document_is_ordered_anew_and_the_old_ranks_are_not_mixed_in(store: ScoreStore) -> None:
    teacher = AlphabeticTeacher()
    store.score(teacher, run_of({"q1": ["d3", "d1"]}), QUERIES)
    longer = run_of({"q1": ["d3", "d1", "d2"]})
    assert store.plan(teacher.identity, longer, QUERIES).pending == 3
    with pytest.raises(StoreError, match="3 of 3 pairs have no score"):
        store.read(teacher.identity, longer, QUERIES)
    store.score(teacher, longer, QUERIES)
    assert store.read(teacher.identity, longer, QUERIES).run.to_dict() == {"q1": {"d2": -1.0, "d3": -2.0, "d1": -3.0}}
    assert store.read(teacher.identity, run_of({"q1": ["d3", "d1"]}), QUERIES).run.to_dict() == {"q1": {"d3": -1.0, "d1": -2.0}}


def test_a_stored_list_is_never_ordered_again_however_the_candidates_order_it(store: ScoreStore) -> None:
    teacher = AlphabeticTeacher()
    store.score(teacher, run_of(LISTS), QUERIES)
    store.score(teacher, run_of({query_id: doc_ids[::-1] for query_id, doc_ids in LISTS.items()}), QUERIES)
    assert len(teacher.asked) == 3


@pytest.mark.parametrize(("shard_pairs", "sizes"), [(1, [3, 3, 2]), (3, [3, 3, 2]), (4, [6, 2]), (100, [8])])
def test_a_shard_holds_whole_lists_and_a_lost_one_is_written_again_with_the_same_bytes(store: ScoreStore, shard_pairs: int, sizes: list[int]) -> None:
    store.score(AlphabeticTeacher(shard_pairs), run_of(LISTS), QUERIES)
    before = shard_bytes(store.folder)
    shards = sorted(store.folder.rglob("*.parquet"))
    assert [pq.read_table(path).num_rows for path in shards] == sizes
    shards[0].write_bytes(b"PAR1")
    store.score(AlphabeticTeacher(shard_pairs), run_of(LISTS), QUERIES, on_damage=lambda _: None)
    assert shard_bytes(store.folder) == before


def test_ranks_that_are_no_order_are_refused_with_the_query(store: ScoreStore) -> None:
    class Tied(AlphabeticTeacher):
        def _order(self, texts: list[str]) -> OrderedList:
            return OrderedList(np.ones(len(texts), dtype=np.int32), 1, np.zeros(len(texts), dtype=np.int32), np.zeros(len(texts), dtype=np.bool_))

    with pytest.raises(StoreError, match=r'teacher "alphabetic": query q1: the ranks of 3 documents are \[1, 1, 1\]; they must be 1 to 3, each once'):
        store.score(Tied(), run_of(LISTS), QUERIES)
    assert shard_bytes(store.folder) == {}


def test_the_time_is_estimated_on_whole_lists(store: ScoreStore) -> None:
    teacher = AlphabeticTeacher()
    assert store.estimate_seconds(teacher, run_of(LISTS), QUERIES, sample_pairs=2) > 0
    assert teacher.asked == [("animals of the night", ["moths fly at night", "owls the owl sees well in the dark", "a hammer drives nails"])]


def test_what_a_language_model_was_asked_for_adds_up_over_stops_and_processes(store: ScoreStore) -> None:
    class Paid(AlphabeticTeacher):
        usage = Usage()

        def order(self, lists: Sequence[tuple[Query, Sequence[Document]]]) -> list[OrderedList]:
            self.usage += Usage(len(lists), 100, 10, 0.25)
            return super().order(lists)

    teacher = Paid(shard_pairs=1)
    store.score(teacher, run_of({"q1": ["d3", "d1"], "q2": ["d5"]}), QUERIES)
    store.score(Paid(), run_of(LISTS), QUERIES)  # three other lists in one shard, by a process that knows nothing of the first
    assert store.statistics(teacher.identity.fingerprint).usage == Usage(5, 300, 30, 0.75)
    assert str(Usage(5, 300, 30, 0.75)) == "330 tokens, cost 0.7500"


def test_a_list_teacher_is_distilled_and_timed_to_the_end(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    changes = {
        'kind = "lexical"\n\n[[teacher]]\nkind = "embedding"\nmodel = "student"': 'kind = "tests.alphabetic_teacher"\nname = "alphabetic"',
        "{ kl_divergence = 1.0, contrastive = 0.5 }": "{ contrastive = 1.0 }",
    }
    report = distill(write_experiment(tmp_path, shared_beir_folder, encoder_folder, changes), tmp_path / "work").report
    (teacher,) = (run for run in report.runs if run.name == "teacher")
    assert teacher.latency is not None
    assert teacher.latency.queries > 0
