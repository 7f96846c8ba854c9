import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from retriever.collection import Collection
from retriever.errors import RetrieverError, StoreError
from retriever.files import lock
from retriever.scores import maintenance as store_maintenance
from retriever.scores.files import StoreFiles
from retriever.scores.maintenance import compact_store, drop_teacher, list_teachers, merge_stores, verify_store
from retriever.scores.scoring import part_of
from retriever.scores.shards import set_aside
from retriever.scores.store import ScoreStore
from retriever.types import Document, OrderedList, Query, ScoredPairs, TeacherIdentity
from tests.scoring_material import ALL_PAIRS, DISTINCT_PAIRS, DOCUMENTS, QUERIES, LoggingTeacher, expected_run, run_of, shard_bytes, write_tiny_collection
from tests.tiny_experiment import ROOT, command, process_environment

FEW = {"q1": ["d1", "d3"], "q2": ["d5", "d7", "d2"]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment's folder with its collection; copy it."""
    folder = tmp_path_factory.mktemp("work")
    write_tiny_collection(folder / "collection")
    return folder


@pytest.fixture
def folder(work: Path, tmp_path: Path) -> Path:
    shutil.copytree(work, tmp_path / "experiment")
    return tmp_path / "experiment"


def scored(folder: Path, pairs: dict[str, list[str]], teacher: LoggingTeacher | None = None) -> ScoreStore:
    store = ScoreStore.open(folder / "score", Collection(folder / "collection"))
    store.score(teacher or LoggingTeacher(), run_of(pairs), QUERIES)
    return store


def stored_rows(folder: Path) -> list[tuple[int, int, float]]:
    rows = [row for path in sorted(folder.rglob("*.parquet")) if path.parent.name.startswith("teacher=") for row in pq.read_table(path).to_pylist()]
    return sorted((row["query_variant"], row["doc_variant"], row["score"]) for row in rows)


# Verify and list


def test_a_whole_store_has_no_problems_and_is_not_changed_by_looking(folder: Path) -> None:
    scored(folder, ALL_PAIRS)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert verify_store(folder) == verify_store(folder / "score") == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert command("store", "verify", folder) == (0, "nothing is wrong\n", "")


def test_damage_is_named_with_exit_status_1(folder: Path) -> None:
    scored(folder, ALL_PAIRS)
    shard = sorted(folder.rglob("score/scores/*/*.parquet"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    said = command("store", "verify", folder, "--json")
    assert said.status == 1
    assert [problem["path"] for problem in json.loads(said.out)] == [str(shard)]


def test_pairs_of_a_document_that_changed_its_text_are_named(folder: Path) -> None:
    store = scored(folder, FEW)
    changed = [DOCUMENTS[0], *(DOCUMENTS[number] for number in range(2, 7))]
    write_tiny_collection(folder / "collection", changed)  # without d2
    facts = json.loads((store.folder / "store.json").read_text())
    (store.folder / "store.json").write_text(json.dumps({**facts, "collection": Collection(folder / "collection").fingerprint}))
    (problem,) = verify_store(folder)
    assert "1 of its pairs name a document that the collection lacks or has with another text, such as d2" in problem.problem


def test_a_folder_without_a_store_is_one_line(tmp_path: Path) -> None:
    assert (
        command("store", "list", tmp_path).error == f"{tmp_path}: no store of teacher scores lies here. Name an experiment's work folder, or its folder score"
    )


def test_teachers_are_listed_with_their_numbers(folder: Path) -> None:
    scored(folder, FEW, LoggingTeacher(name="second", prompt="other"))
    store = scored(folder, FEW, LoggingTeacher(shard_pairs=2, name="first"))
    first, second = list_teachers(folder)
    scores = np.array([score for documents in expected_run(FEW).values() for score in documents.values()])
    assert (first.name, second.name, first.kind, first.unit, first.pairs, first.shards) == ("first", "second", "logging", "logit", 5, 3)
    assert (first.mean, first.std) == (pytest.approx(scores.mean()), pytest.approx(scores.std()))
    assert first.bytes == sum(path.stat().st_size for path in store.folder_of(first.fingerprint).glob("*.parquet"))
    assert json.loads(command("store", "list", folder, "--json").out)[0]["fingerprint"] == first.fingerprint
    assert "second" in command("store", "list", folder).out


# Merge


def test_merging_copies_what_is_missing_and_again_changes_nothing(folder: Path, work: Path, tmp_path: Path) -> None:
    store = scored(folder, FEW)
    shutil.copytree(work, tmp_path / "other")
    scored(tmp_path / "other", {"q4": ["d1", "d2"], "q1": ["d1"]})
    scored(tmp_path / "other", {"q4": ["d1"]}, LoggingTeacher(name="another", prompt="another"))
    changes = merge_stores([tmp_path / "other"], folder)
    assert sorted((change.teacher, change.shards_written, change.pairs_written) for change in changes) == [("another", 1, 1), ("logging", 1, 3)]
    merged = {"q1": ["d1", "d3"], "q2": FEW["q2"], "q4": ["d1", "d2"]}
    assert store.read(LoggingTeacher().identity, run_of(merged), QUERIES).run.to_dict() == expected_run(merged)
    before = shard_bytes(folder)
    assert [change.shards_written for change in merge_stores([tmp_path / "other"], folder)] == [0, 0]
    assert shard_bytes(folder) == before
    assert verify_store(folder) == []


def test_a_store_that_is_not_there_is_made_by_merging(folder: Path, tmp_path: Path) -> None:
    scored(folder, FEW)
    said = command("store", "merge", folder, tmp_path / "copy")
    assert said.out == "logging: 1 shards with 5 pairs copied\n"
    assert stored_rows(tmp_path / "copy") == stored_rows(folder)


def test_stores_of_two_collections_are_not_merged(folder: Path, tmp_path: Path) -> None:
    scored(folder, FEW)
    write_tiny_collection(tmp_path / "other" / "collection", DOCUMENTS[:3])
    scored(tmp_path / "other", {"q1": ["d1"]})
    with pytest.raises(StoreError, match="Only stores of one collection can be merged"):
        merge_stores([tmp_path / "other"], folder)
    with pytest.raises(StoreError, match="is the store that it would be merged into"):
        merge_stores([folder], folder / "score")
    assert "name one store at least" in command("store", "merge", folder).error


def test_a_damaged_source_is_refused_before_anything_is_copied(folder: Path, work: Path, tmp_path: Path) -> None:
    scored(folder, FEW)
    shutil.copytree(work, tmp_path / "other")
    scored(tmp_path / "other", ALL_PAIRS)
    sorted((tmp_path / "other").rglob("scores/*/*.parquet"))[2].write_bytes(b"PAR1")
    before = shard_bytes(folder)
    with pytest.raises(StoreError, match=r"000002.*\(1 such\)\. Nothing was merged"):
        merge_stores([tmp_path / "other"], folder)
    assert shard_bytes(folder) == before


# Parts


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_of_candidates_are_whole_lists_each_in_one_part(parts: int) -> None:
    candidates = run_of({**ALL_PAIRS, "q9": []})
    found = [part_of(candidates, QUERIES, number, parts).to_dict() for number in range(1, parts + 1)]
    for query_id, documents in candidates.to_dict().items():
        assert [part[query_id] for part in found if part[query_id]] == ([documents] if documents else [])


def test_parts_scored_apart_then_merged_and_compacted_are_the_bytes_of_one_run_compacted(folder: Path, work: Path, tmp_path: Path) -> None:
    whole = scored(folder, ALL_PAIRS)
    parts = []
    for number in (1, 2, 3):
        parts.append(shutil.copytree(work, tmp_path / f"part-{number}"))
        scored(parts[-1], part_of(run_of(ALL_PAIRS), QUERIES, number, 3).to_dict())  # type: ignore[arg-type]
    shutil.copytree(work, tmp_path / "merged")
    merge_stores(parts, tmp_path / "merged")
    merged = ScoreStore.open(tmp_path / "merged" / "score", whole.collection)
    assert merged.read(LoggingTeacher().identity, run_of(ALL_PAIRS), QUERIES).run.to_dict() == expected_run(ALL_PAIRS)
    compact_store(tmp_path / "merged")
    compact_store(folder)
    assert list(shard_bytes(tmp_path / "merged" / "score").values()) == list(shard_bytes(folder / "score").values())


# Compact


def test_compacting_keeps_every_pair_once_and_again_changes_nothing(folder: Path) -> None:
    store, teacher = scored(folder, ALL_PAIRS, LoggingTeacher(shard_pairs=2)), LoggingTeacher()
    rows = stored_rows(folder)
    shards = sorted(store.folder_of(teacher.identity.fingerprint).glob("*.parquet"))
    twice = shards[3].with_name(f"000050-{shards[3].name[7:]}")
    shutil.copy(shards[3], twice)
    (change,) = compact_store(folder, shard_rows=10)
    assert (change.shards_removed, change.pairs_removed, change.shards_written, change.pairs_written) == (10, DISTINCT_PAIRS + 2, 2, DISTINCT_PAIRS)
    assert stored_rows(folder) == rows
    assert store.read(teacher.identity, run_of(ALL_PAIRS), QUERIES).run.to_dict() == expected_run(ALL_PAIRS)
    assert store.statistics(teacher.identity.fingerprint).pairs == DISTINCT_PAIRS
    before = shard_bytes(folder)
    assert [change.shards_written for change in compact_store(folder, shard_rows=10)] == [0]
    assert shard_bytes(folder) == before
    assert verify_store(folder) == []


def stop_before(step_number: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a compaction be stopped before one of the files that it writes or removes, counted from 0."""
    steps = iter(range(100))

    def counted(step: Callable[..., object]) -> Callable[..., object]:
        def maybe_stop(*arguments: object, **options: object) -> object:
            if next(steps) == step_number:
                raise KeyboardInterrupt
            return step(*arguments, **options)

        return maybe_stop

    monkeypatch.setattr(store_maintenance, "write_shard", counted(store_maintenance.write_shard))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))


@pytest.mark.parametrize("stop_at", range(10))
def test_a_compaction_that_is_stopped_anywhere_reads_the_same_and_can_be_finished(folder: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    store, teacher = scored(folder, ALL_PAIRS), LoggingTeacher()
    rows = stored_rows(folder)

    stop_before(stop_at, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        compact_store(folder, shard_rows=6)
    monkeypatch.undo()
    assert store.read(teacher.identity, run_of(ALL_PAIRS), QUERIES).run.to_dict() == expected_run(ALL_PAIRS)
    compact_store(folder, shard_rows=6)
    assert stored_rows(folder) == rows
    assert verify_store(folder) == []


@pytest.mark.parametrize("stop_at", [None, *range(10)])
def test_what_was_damaged_and_scored_again_is_gone_for_good_wherever_a_compaction_was_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int | None
) -> None:
    store = scored(folder, ALL_PAIRS)
    rows, shards = stored_rows(folder), sorted(folder.rglob("score/scores/*/*.parquet"))
    for path in (shards[0], shards[1]):
        path.write_bytes(path.read_bytes()[:-1])
    store.score(LoggingTeacher(), run_of(ALL_PAIRS), QUERIES, on_damage=lambda _: None)
    assert len(list(folder.rglob("*.damaged"))) == 2

    stop_before(stop_at, monkeypatch)
    with pytest.raises(KeyboardInterrupt) if stop_at is not None else contextlib.nullcontext():
        compact_store(folder, shard_rows=6)
    monkeypatch.undo()
    assert verify_store(folder) == []
    compact_store(folder, shard_rows=6)
    assert verify_store(folder) == []
    assert (stored_rows(folder), list(folder.rglob("*.damaged"))) == (rows, [])


def test_what_was_damaged_and_is_not_scored_again_yet_is_told_after_compacting_too(folder: Path) -> None:
    store = scored(folder, ALL_PAIRS)
    aside = set_aside(sorted(store.folder_of(LoggingTeacher().identity.fingerprint).glob("*.parquet"))[1])
    compact_store(folder, shard_rows=6)
    assert [problem.path for problem in verify_store(folder)] == [aside]
    store.score(LoggingTeacher(), run_of(ALL_PAIRS), QUERIES)  # under its number, though compacting left lower ones free
    assert verify_store(folder) == []


def test_of_unequal_scores_of_a_pair_the_one_stays_that_was_read_before(folder: Path, work: Path, tmp_path: Path) -> None:
    class Other(LoggingTeacher):
        def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
            good = super().score(pairs)
            return ScoredPairs(good.scores + 1, good.n_tokens, good.truncated)

    store = scored(folder, FEW)
    shutil.copytree(work, tmp_path / "other")
    scored(tmp_path / "other", FEW, Other())
    merge_stores([tmp_path / "other"], folder)
    read = store.read(LoggingTeacher().identity, run_of(FEW), QUERIES).run.to_dict()
    compact_store(folder)
    assert store.read(LoggingTeacher().identity, run_of(FEW), QUERIES).run.to_dict() == read
    assert len(stored_rows(folder)) == 5


def test_ordered_lists_stay_ordered(folder: Path) -> None:
    class Lister:
        identity = TeacherIdentity("lister", "lister", "", "rank")
        shard_pairs = 1

        def order(self, lists: Sequence[tuple[Query, Sequence[Document]]]) -> Sequence[OrderedList]:
            return [OrderedList(np.arange(len(d), 0, -1, dtype=np.int32), 1, np.zeros(len(d), np.int32), np.zeros(len(d), np.bool_)) for _, d in lists]

    store = ScoreStore.open(folder / "score", Collection(folder / "collection"))
    store.score(Lister(), run_of(FEW), QUERIES)
    store.score(Lister(), run_of({"q1": ["d1", "d3", "d6"]}), QUERIES)
    runs = [run_of(FEW), run_of({"q1": ["d1", "d3", "d6"]})]
    before = [store.read(Lister.identity, run, QUERIES).run.to_dict() for run in runs]
    compact_store(folder)
    assert [store.read(Lister.identity, run, QUERIES).run.to_dict() for run in runs] == before
    assert store.plan(Lister.identity, runs[0], QUERIES).pending == 0


def test_a_damaged_store_is_not_compacted(folder: Path) -> None:
    scored(folder, ALL_PAIRS)
    sorted(folder.rglob("scores/*/*.parquet"))[0].write_bytes(b"")
    assert 'Run "retriever score" with this teacher first' in command("store", "compact", folder).error


def test_care_waits_for_a_writer(folder: Path) -> None:
    store = scored(folder, FEW)
    with lock(store.folder_of(LoggingTeacher().identity.fingerprint) / ".lock", "scoring"):
        for change in (lambda: compact_store(folder), lambda: drop_teacher(folder, "logging")):
            with pytest.raises(RetrieverError, match="is already using"):
                change()
    assert verify_store(folder) == []


# Drop


def test_a_teacher_is_dropped_by_name_or_fingerprint_and_the_others_stay(folder: Path) -> None:
    second = LoggingTeacher(name="second", prompt="other")
    scored(folder, FEW)
    scored(folder, FEW, second)
    assert drop_teacher(folder, "logging").name == "logging"
    assert [entry.name for entry in list_teachers(folder)] == ["second"]
    with pytest.raises(StoreError, match=rf'no teacher is named "logging"; there are: second \({second.identity.fingerprint}\)'):
        drop_teacher(folder, "logging")
    assert command("store", "drop", folder, second.identity.fingerprint, "--yes").status == 0
    assert list_teachers(folder) == []


def test_a_name_that_two_teachers_have_needs_the_fingerprint(folder: Path) -> None:
    scored(folder, FEW)
    scored(folder, FEW, LoggingTeacher(prompt="other"))
    with pytest.raises(StoreError, match='several teachers are named "logging"'):
        drop_teacher(folder, "logging")
    assert len(StoreFiles.at(folder).teachers()) == 2


# Faults


def test_a_clock_that_was_set_back_changes_nothing(folder: Path) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def stop(_: int) -> None:
        raise Stop

    store, again = ScoreStore.open(folder / "score", Collection(folder / "collection")), LoggingTeacher()
    with pytest.raises(Stop):
        store.score(LoggingTeacher(), run_of(ALL_PAIRS), QUERIES, progress=stop)
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, ((0, 4_102_444_800)[number % 2],) * 2)
    store.score(again, run_of(ALL_PAIRS), QUERIES)
    assert len(again.asked) == DISTINCT_PAIRS - 5
    assert store.read(again.identity, run_of(ALL_PAIRS), QUERIES).run.to_dict() == expected_run(ALL_PAIRS)
    assert verify_store(folder) == []


@pytest.mark.slow
def test_under_every_fault_nothing_is_lost_and_nothing_stands_twice() -> None:
    line = [sys.executable, ROOT / "benchmarks" / "store_faults.py", "--kills", "1", "--queries", "40", "--no-results"]
    done = subprocess.run(line, capture_output=True, text=True, env=process_environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2 + 8
