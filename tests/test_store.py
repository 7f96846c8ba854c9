import errno
import json
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from retriever.collection import Collection
from retriever.errors import RetrieverError, StoreError
from retriever.files import lock, sha256_file, text_hash
from retriever.scores.files import Statistics
from retriever.scores.scoring import query_variant
from retriever.scores.shards import ShardProblem
from retriever.scores.store import ScoreStore
from retriever.types import Document, Query, ScoredPairs, Turn
from tests.scoring_material import ALL_PAIRS, DISTINCT_PAIRS, DOCUMENTS, QUERIES, LoggingTeacher, expected_run, run_of, shard_bytes, write_tiny_collection

SOME_PAIRS = {"q1": ["d1", "d3"], "q2": ["d5", "d7", "d2"]}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return write_tiny_collection(tmp_path_factory.mktemp("collection") / "tiny")


@pytest.fixture
def store(tmp_path: Path, collection: Collection) -> ScoreStore:
    return ScoreStore.open(tmp_path / "store", collection)


def teacher_folder(store: ScoreStore, teacher: LoggingTeacher) -> Path:
    return store.folder / "scores" / f"teacher={teacher.identity.fingerprint}"


def test_scores_come_back_as_the_teacher_gave_them(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    scores = store.read(teacher.identity, run_of(SOME_PAIRS), QUERIES)
    assert scores.run.to_dict() == expected_run(SOME_PAIRS)
    assert (scores.run.name, scores.unit, scores.name, scores.teacher) == ("logging", "logit", "logging", teacher.identity.fingerprint)
    assert store.read(teacher.identity.fingerprint, run_of(SOME_PAIRS), QUERIES).run.to_dict() == expected_run(SOME_PAIRS)


def test_pairs_with_equal_texts_are_scored_once_whatever_their_ids(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    store.score(teacher, run_of(ALL_PAIRS), QUERIES)
    assert len(teacher.asked) == len(set(teacher.asked)) == DISTINCT_PAIRS
    assert store.read(teacher.identity, run_of(ALL_PAIRS), QUERIES).run.to_dict() == expected_run(ALL_PAIRS)


def test_a_stored_pair_is_never_scored_again(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    assert len(teacher.asked) == 5
    store.score(teacher, run_of(ALL_PAIRS), QUERIES)
    assert len(teacher.asked) == len(set(teacher.asked)) == DISTINCT_PAIRS


def test_a_conversation_is_another_query_than_its_last_turn_alone() -> None:
    alone, after_owls = Query("q", "and at night?"), Query("q", "and at night?", turns=(Turn("user", "owls"),))
    assert query_variant(alone) == text_hash("and at night?")
    assert len({query_variant(alone), query_variant(after_owls), query_variant(Query("q", "and at night?", turns=(Turn("user", "bats"),)))}) == 3


def test_a_shards_name_carries_its_checksum_and_its_columns_say_who_the_pairs_are(store: ScoreStore) -> None:
    teacher = LoggingTeacher(shard_pairs=2)
    store.score(teacher, run_of({"q1": ["d1", "d3", "d2"]}), QUERIES)
    shards = sorted(teacher_folder(store, teacher).glob("*.parquet"))
    assert [path.name for path in shards] == [f"00000{number}-{sha256_file(path)[:16]}.parquet" for number, path in enumerate(shards)]
    assert pq.read_table(shards[0]).to_pylist()[0] == {
        "query_id": "q1",
        "doc_id": "d1",
        "query_variant": text_hash("animals of the night"),
        "doc_variant": text_hash("owls the owl sees well in the dark"),
        "score": expected_run({"q1": ["d1"]})["q1"]["d1"],
        "rank": None,
        "list_id": None,
        "pass_id": 0,
        "n_tokens": 12,
        "truncated": True,
        "status": "ok",
    }
    assert [pq.read_table(path).num_rows for path in shards] == [2, 1]


def test_the_bytes_depend_on_the_pairs_and_not_on_how_the_run_was_made(tmp_path: Path, collection: Collection) -> None:
    run = run_of(ALL_PAIRS)
    run.write_parquet(tmp_path / "run.parquet")
    for number, candidates in enumerate([run, run.read_parquet(tmp_path / "run.parquet").rename("dense"), run.select(ALL_PAIRS)]):
        ScoreStore.open(tmp_path / str(number), collection).score(LoggingTeacher(), candidates, QUERIES)
    assert shard_bytes(tmp_path / "0") == shard_bytes(tmp_path / "1") == shard_bytes(tmp_path / "2")


def test_the_plan_counts_distinct_pairs_and_changes_nothing(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    before = shard_bytes(store.folder)
    plan = store.plan(teacher.identity, run_of(ALL_PAIRS), QUERIES)
    assert (plan.pending, plan.done, plan.damaged) == (DISTINCT_PAIRS - 5, 5, ())
    assert shard_bytes(store.folder) == before
    assert plan.estimated_bytes > 0
    assert store.plan(teacher.identity, run_of(SOME_PAIRS), QUERIES).estimated_bytes == 0


def test_the_estimated_bytes_are_near_the_written_ones(tmp_path: Path) -> None:
    documents = [Document(f"document-{number}", f"text {number}") for number in range(5_000)]
    store = ScoreStore.open(tmp_path / "store", write_tiny_collection(tmp_path / "collection", documents))
    doc_ids = [document.doc_id for document in documents]
    candidates = run_of({"q1": doc_ids, "q2": doc_ids, "q4": doc_ids})
    teacher = LoggingTeacher(shard_pairs=10_000)
    estimate = store.plan(teacher.identity, candidates, QUERIES).estimated_bytes
    store.score(teacher, candidates, QUERIES)
    assert estimate == pytest.approx(sum(len(data) for data in shard_bytes(store.folder).values()), rel=0.2)


def test_progress_counts_what_is_on_the_disk(store: ScoreStore) -> None:
    teacher, stored = LoggingTeacher(shard_pairs=4), list[int]()
    store.score(teacher, run_of(ALL_PAIRS), QUERIES, progress=stored.append)
    assert stored == [4, 4, 4, 4, 2]


def test_missing_pairs_are_counted_or_left_out(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    with pytest.raises(StoreError, match=r'1 of 6 pairs have no score by teacher "logging"\. Run "retriever score"'):
        store.read(teacher.identity, run_of({**SOME_PAIRS, "q4": ["d1"]}), QUERIES)
    scores = store.read(teacher.identity, run_of({**SOME_PAIRS, "q4": ["d1"]}), QUERIES, allow_missing=True)
    assert scores.run.to_dict() == {**expected_run(SOME_PAIRS), "q4": {}}


def test_an_unknown_teacher_is_named_with_those_that_are_known(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    with pytest.raises(StoreError, match=rf'no teacher has the fingerprint "0123"; there are scores by: logging \({teacher.identity.fingerprint}\)'):
        store.read("0123", run_of(SOME_PAIRS), QUERIES)


def test_candidates_that_name_what_is_not_there_are_refused(store: ScoreStore) -> None:
    with pytest.raises(StoreError, match='candidates "bm25": the document d99 is not in the collection'):
        store.score(LoggingTeacher(), run_of({"q1": ["d1", "d99"]}), QUERIES)
    with pytest.raises(StoreError, match='candidates "bm25": the query q9 is not among the 4 queries'):
        store.score(LoggingTeacher(), run_of({"q9": ["d1"]}), QUERIES)
    assert shard_bytes(store.folder) == {}


def test_queries_without_candidates_need_no_scores(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    candidates = run_of({"q9": [], "q1": ["d1"], "q2": []})
    store.score(teacher, candidates, QUERIES)
    assert store.read(teacher.identity, candidates, QUERIES).run.to_dict() == {"q9": {}, **expected_run({"q1": ["d1"]}), "q2": {}}
    empty = LoggingTeacher(prompt="never asked")
    store.score(empty, run_of({"q1": []}), QUERIES)
    assert store.statistics(empty.identity.fingerprint).pairs == 0


def test_a_store_of_another_collection_is_refused_by_both_names(store: ScoreStore, tmp_path: Path) -> None:
    other = write_tiny_collection(tmp_path / "other", DOCUMENTS[:3])
    with pytest.raises(
        StoreError, match=rf'collection "{store.collection.name}" \({store.collection.fingerprint}\), not to "{other.name}" \({other.fingerprint}\)'
    ):
        ScoreStore.open(store.folder, other)


@pytest.mark.parametrize(("text", "message"), [('{"format": 2}', "format 2, this version reads 1"), ("{", "cannot be read"), ("[]", "not a JSON object")])
def test_a_store_that_cannot_be_understood_is_refused(store: ScoreStore, text: str, message: str) -> None:
    (store.folder / "store.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        ScoreStore.open(store.folder, store.collection)


def test_a_store_in_the_place_of_a_file_is_refused(tmp_path: Path, collection: Collection) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt: no store can be made here"):
        ScoreStore.open(tmp_path / "notes.txt", collection)


def test_each_teacher_has_a_folder_of_its_own(store: ScoreStore) -> None:
    first, second = LoggingTeacher(name="first"), LoggingTeacher(name="second", prompt="Is it relevant?")
    store.score(first, run_of(SOME_PAIRS), QUERIES)
    before = shard_bytes(store.folder)
    store.score(second, run_of(SOME_PAIRS), QUERIES)
    assert before.items() <= shard_bytes(store.folder).items()
    assert sorted(store.teachers(), key=lambda teacher: teacher.name) == [first.identity, second.identity]


def test_a_damaged_teacher_file_is_named_and_written_anew(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    path = teacher_folder(store, teacher) / "teacher.json"
    path.write_text(path.read_text().replace("logit", "cosine"))
    assert [problem.path for problem in store.verify()] == [path]
    with pytest.raises(StoreError, match="not the teacher of the folder"):
        store.teachers()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    assert store.teachers() == [teacher.identity]
    assert store.verify() == []


def test_statistics_are_those_of_all_scores(store: ScoreStore) -> None:
    teacher = LoggingTeacher(shard_pairs=3)
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    store.score(teacher, run_of(ALL_PAIRS), QUERIES)
    scores = np.array(
        [score for documents in expected_run({q: ALL_PAIRS[q] for q in ("q1", "q2", "q4")}).values() for d, score in documents.items() if d != "d4"]
    )
    tokens = [len(f"{query} {document}".split()) for query, document in teacher.asked]
    for statistics in (store.statistics(teacher.identity.fingerprint), _computed_anew(store, teacher)):
        assert (statistics.pairs, statistics.tokens) == (DISTINCT_PAIRS, sum(tokens))
        assert statistics.mean == pytest.approx(scores.mean())
        assert statistics.std == pytest.approx(scores.std())
        assert statistics.truncated == pytest.approx(np.mean([count > 10 for count in tokens]))


def _computed_anew(store: ScoreStore, teacher: LoggingTeacher) -> Statistics:
    path = teacher_folder(store, teacher) / "teacher.json"
    entry = json.loads(path.read_text())
    assert entry.pop("statistics")["pairs"] == DISTINCT_PAIRS
    path.write_text(json.dumps(entry))
    return store.statistics(teacher.identity.fingerprint)


def test_two_stores_merge_by_copying_their_folders(tmp_path: Path, collection: Collection) -> None:
    one, two, teacher = (ScoreStore.open(tmp_path / "one", collection), ScoreStore.open(tmp_path / "two", collection), LoggingTeacher())
    one.score(teacher, run_of(SOME_PAIRS), QUERIES)
    two.score(teacher, run_of({"q4": ["d1", "d2"], "q1": ["d1"]}), QUERIES)
    two.score(LoggingTeacher(prompt="another"), run_of({"q4": ["d1"]}), QUERIES)
    shutil.copytree(two.folder / "scores", one.folder / "scores", dirs_exist_ok=True)
    merged = {"q1": ["d1", "d3"], "q2": SOME_PAIRS["q2"], "q4": ["d1", "d2"]}
    assert one.read(teacher.identity, run_of(merged), QUERIES).run.to_dict() == expected_run(merged)
    assert one.statistics(teacher.identity.fingerprint).pairs == 8
    assert (len(one.teachers()), one.verify()) == (2, [])


def test_the_content_changes_with_the_scores_and_with_nothing_else(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    content = store.content(teacher.identity.fingerprint)
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    assert store.content(teacher.identity.fingerprint) == content
    store.score(teacher, run_of(ALL_PAIRS), QUERIES)
    assert store.content(teacher.identity.fingerprint) != content


def _hold_lock(path: Path, ready: Event) -> None:
    with lock(path, "scoring"):
        ready.set()
        multiprocessing.Event().wait(60)


def test_a_second_writer_is_told_who_the_first_is(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold_lock, args=(teacher_folder(store, teacher) / ".lock", ready))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RetrieverError, match=rf"process {other.pid} is already scoring"):
            store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    finally:
        other.kill()
        other.join()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)  # the lock died with its holder
    assert len(teacher.asked) == 5


def test_a_reader_needs_no_lock_and_sees_whole_shards_only(store: ScoreStore) -> None:
    teacher, seen = LoggingTeacher(shard_pairs=2), []

    def look(_: int) -> None:
        seen.append(store.read(teacher.identity, run_of(SOME_PAIRS), QUERIES, allow_missing=True).run.n_pairs)

    store.score(teacher, run_of(SOME_PAIRS), QUERIES, progress=look)
    assert seen == [2, 4, 5]


def test_what_a_killed_writer_left_is_removed(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    folder = teacher_folder(store, teacher)
    folder.mkdir(parents=True)
    left = folder / ".000000-0123456789abcdef.parquet.77.tmp"
    left.write_bytes(b"half")
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    assert not left.exists()


def test_a_full_disk_is_one_line_and_nothing_half_written(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, write_bytes = LoggingTeacher(shard_pairs=2), Path.write_bytes

    def fill_up(path: Path, data: bytes) -> int:
        if "000001" in path.name:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(RetrieverError, match="the disk is full; nothing half-written was kept"):
        store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    assert sorted(path.name[:6] for path in teacher_folder(store, teacher).iterdir()) == [".lock", "000000", "teache"]
    monkeypatch.undo()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    assert store.read(teacher.identity, run_of(SOME_PAIRS), QUERIES).run.to_dict() == expected_run(SOME_PAIRS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e39])
def test_a_score_that_is_not_finite_is_named_and_not_stored(store: ScoreStore, bad: float) -> None:
    class Broken(LoggingTeacher):
        def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
            good = super().score(pairs)
            scores = [bad if document.doc_id == "d7" else score for (_, document), score in zip(pairs, good.scores.tolist(), strict=True)]
            return ScoredPairs(np.array(scores), good.n_tokens, good.truncated)

    broken = Broken(shard_pairs=3)
    with pytest.raises(StoreError, match=r'teacher "logging": query q2, document d7: the score (nan|inf) is not a finite number \(1 such of 2\)'):
        store.score(broken, run_of(SOME_PAIRS), QUERIES)
    assert len(shard_bytes(store.folder)) == 1
    good = LoggingTeacher(shard_pairs=3)
    store.score(good, run_of(SOME_PAIRS), QUERIES)
    assert len(good.asked) == 2


def test_a_teacher_that_gives_too_few_scores_is_refused(store: ScoreStore) -> None:
    class Short(LoggingTeacher):
        def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
            return super().score(pairs[1:])

    with pytest.raises(StoreError, match=r'teacher "logging": scores of shape \[4\] for 5 pairs'):
        store.score(Short(), run_of(SOME_PAIRS), QUERIES)
    with pytest.raises(StoreError, match="shard_pairs is 0"):
        store.score(LoggingTeacher(shard_pairs=0), run_of(SOME_PAIRS), QUERIES)
    assert shard_bytes(store.folder) == {}


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip_a_bit(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


def _empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _empty])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_damaged_shard_is_found_named_and_redone_with_the_same_bytes(store: ScoreStore, damage: Callable[[bytes], bytes], number: int) -> None:
    teacher, problems = LoggingTeacher(shard_pairs=5), list[ShardProblem]()
    store.score(teacher, run_of(ALL_PAIRS), QUERIES)
    before = shard_bytes(store.folder)
    path = sorted(teacher_folder(store, teacher).glob("*.parquet"))[number]
    lost = pq.read_table(path).num_rows
    path.write_bytes(damage(path.read_bytes()))

    assert [problem.path for problem in store.verify()] == [path]
    assert store.plan(teacher.identity, run_of(ALL_PAIRS), QUERIES).pending == lost
    with pytest.raises(StoreError, match=rf"pairs have no score by teacher \"logging\" \({path}"):
        store.read(teacher.identity, run_of(ALL_PAIRS), QUERIES)

    again = LoggingTeacher(shard_pairs=5)
    store.score(again, run_of(ALL_PAIRS), QUERIES, on_damage=problems.append)
    assert [problem.path for problem in problems] == [path]
    assert len(again.asked) == lost
    assert shard_bytes(store.folder) == before
    assert path.with_name(f"{path.name}.damaged").exists()
    assert store.verify() == []


def test_damage_is_a_warning_unless_somebody_asks_for_it(store: ScoreStore) -> None:
    teacher = LoggingTeacher()
    store.score(teacher, run_of(SOME_PAIRS), QUERIES)
    (path,) = teacher_folder(store, teacher).glob("*.parquet")
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"{path.name}: the 0 bytes are not the ones that were written"):
        store.score(teacher, run_of(SOME_PAIRS), QUERIES)


def test_several_damaged_shards_of_a_run_that_was_stopped_come_back_with_the_same_bytes(tmp_path: Path, collection: Collection) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def stop_after_four(path: Path) -> None:
        store, stored = ScoreStore.open(path, collection), []

        def count(pairs: int) -> None:
            stored.append(pairs)
            if len(stored) == 4:
                raise Stop

        with pytest.raises(Stop):
            store.score(LoggingTeacher(shard_pairs=3), run_of(ALL_PAIRS), QUERIES, progress=count)

    whole = ScoreStore.open(tmp_path / "whole", collection)
    whole.score(LoggingTeacher(shard_pairs=3), run_of(ALL_PAIRS), QUERIES)
    stop_after_four(tmp_path / "stopped")
    for number in (1, 3):
        (path,) = (tmp_path / "stopped").rglob(f"00000{number}-*.parquet")
        path.write_bytes(b"PAR1")
    stopped = ScoreStore.open(tmp_path / "stopped", collection)
    stopped.score(LoggingTeacher(shard_pairs=3), run_of(ALL_PAIRS), QUERIES, on_damage=lambda _: None)
    assert shard_bytes(tmp_path / "stopped") == shard_bytes(tmp_path / "whole")


def test_a_shard_in_another_teachers_folder_is_not_believed(store: ScoreStore) -> None:
    one, two = LoggingTeacher(), LoggingTeacher(prompt="another")
    store.score(one, run_of(SOME_PAIRS), QUERIES)
    store.score(two, run_of({"q4": ["d1"]}), QUERIES)
    (shard,) = teacher_folder(store, one).glob("*.parquet")
    shutil.copy(shard, teacher_folder(store, two))
    (problem,) = store.verify()
    assert "which has another folder" in problem.problem
