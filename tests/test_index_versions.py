"""Names in an index that are never given again, and versions whose files are damaged or missing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retriever.errors import SearchIndexError
from retriever.index import changes
from retriever.index.changes import add, compact, delete, prune, roll_back
from retriever.index.elsewhere import facts_of
from retriever.index.layout import kept_versions, read_version
from retriever.index.soundness import repair, stats, verify
from retriever.search import SearchIndex, open_index
from retriever.types import Document
from tests.test_index import built, listed
from tests.tiny_experiment import command

WRONG, RIGHT, BEE = Document("wrong", "a fish"), Document("right", "a horse"), Document("bee", "an insect")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    return built(tmp_path_factory.mktemp("versions"), "dense", encoder_folder, [Document("owl", "a bird"), Document("saw", "a tool")])


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """An index of its own of one segment, with owl and saw."""
    return shutil.copytree(whole, tmp_path / "index")


def found(index: SearchIndex | Path) -> set[str]:
    """The ids of all that is found."""
    opened = open_index(index) if isinstance(index, Path) else index
    return {hit.document.doc_id for hit in opened.hits("a fish", 100)}


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "segments").iterdir())


def version_file(folder: Path, number: int) -> Path:
    return folder / "versions" / f"{number:06d}.json"


def older(folder: Path) -> None:
    """Takes from an index what older programs did not write."""
    for path in (folder / "index.json", *(folder / "versions").iterdir()):
        values = json.loads(path.read_text())
        values.pop("segments_made", None)
        path.write_text(json.dumps(values))


# Names


def replaced_by_delete(folder: Path) -> None:
    delete(folder, ["wrong"])


def replaced_by_rollback(folder: Path) -> None:
    roll_back(folder, 1)


@pytest.mark.parametrize("without_wrong", [replaced_by_delete, replaced_by_rollback])
def test_the_name_of_a_pruned_segment_is_not_given_again_to_an_open_reader(folder: Path, without_wrong: Callable[[Path], None]) -> None:
    index = open_index(folder)
    add(folder, listed([WRONG]))
    assert found(index) == {"owl", "saw", "wrong"}
    without_wrong(folder)
    prune(folder)
    add(folder, listed([RIGHT]))
    assert segments(folder) == ["000001", "000003"]
    assert found(index) == found(folder) == {"owl", "saw", "right"}


def test_a_name_is_not_given_again_however_often_is_pruned(folder: Path) -> None:
    for name in ("000002", "000003", "000004"):
        add(folder, listed([WRONG]))
        assert segments(folder) == ["000001", name]
        delete(folder, ["wrong"])
        prune(folder)
        assert segments(folder) == ["000001"]
    compact(folder)
    assert segments(folder) == ["000001", "000005"]


def test_the_first_pruning_of_an_older_index_remembers_the_names_that_it_removes(folder: Path) -> None:
    add(folder, listed([WRONG]))
    delete(folder, ["wrong"])
    older(folder)
    index = open_index(folder)
    prune(folder)
    assert (segments(folder), found(index)) == (["000001"], {"owl", "saw"})
    add(folder, listed([RIGHT]))
    assert segments(folder) == ["000001", "000003"]


def named_again(folder: Path) -> None:
    """Replaces the segment with "wrong" by one with "right", of the same name, as older programs did."""
    delete(folder, ["wrong"])
    prune(folder)
    add(folder, listed([RIGHT]))
    version = read_version(folder)
    name = version.segments[1].name
    (folder / "segments" / name).rename(folder / "segments" / "000002")
    for path in (folder / "index.json", version_file(folder, version.number)):
        path.write_text(path.read_text().replace(f'"{name}"', '"000002"'))
    assert read_version(folder).segments[1].name == "000002"


def test_a_segment_of_an_open_reader_is_not_taken_for_another_one_of_its_name(folder: Path) -> None:
    add(folder, listed([WRONG]))
    index = open_index(folder)
    open_already = index.snapshot
    named_again(folder)
    assert found(index) == {"owl", "saw", "right"}
    assert index.snapshot.segments[0] is open_already.segments[0]


def test_an_addition_takes_nothing_from_an_open_segment_that_is_another_one_by_now(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(folder, listed([WRONG]))
    before = open_index(folder).snapshot
    named_again(folder)
    monkeypatch.setattr(changes, "SMALL_SEGMENTS", 2)
    add(folder, listed([BEE]), before=before)
    assert len(read_version(folder).segments) == 1
    assert found(folder) == {"owl", "saw", "right", "bee"}


def test_an_upload_is_told_by_what_the_documents_are_and_not_by_names_and_counts(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    first = facts_of(open_index(folder).snapshot)
    assert facts_of(open_index(copy).snapshot) == first
    delete(folder, ["owl"])
    delete(copy, ["saw"])
    assert facts_of(open_index(folder).snapshot) != facts_of(open_index(copy).snapshot)
    roll_back(folder, 1)
    assert facts_of(open_index(folder).snapshot) == first
    add(folder, listed([WRONG]))
    wrong = facts_of(open_index(folder).snapshot)
    named_again(folder)
    right = facts_of(open_index(folder).snapshot)
    assert (right.documents, right.encoder) == (wrong.documents, wrong.encoder)
    assert right.collection != wrong.collection


# Versions


def cut(path: Path) -> Path:
    os.truncate(path, 20)
    return path


def test_a_damaged_manifest_and_newest_version_leave_the_version_before_under_a_number_of_its_own(folder: Path) -> None:
    delete(folder, ["owl"])
    index = open_index(folder)
    assert found(index) == {"saw"}
    cut(folder / "index.json")
    damaged = cut(version_file(folder, 2))
    said = repair(folder)
    assert said[0].startswith(f"version 1 is the current one again, as version 3 ({folder}/index.json: damaged")
    assert said[1] == f"{damaged} is damaged and set aside as 000002.json.damaged; what only version 2 may need stays until: retriever index prune {folder}"
    assert len(said) == 2
    assert (repair(folder), verify(folder), found(index)) == ([], [], {"owl", "saw"})
    delete(folder, ["saw"])  # as many of as many as in version 2: not its file of deletions
    assert found(index) == {"owl"}
    assert sorted(path.name for path in (folder / "deletions").iterdir()) == ["000001-000002.npy", "000001-000004.npy"]


def test_what_a_damaged_version_may_need_stays_until_it_is_pruned(folder: Path) -> None:
    add(folder, listed([BEE]))
    cut(folder / "index.json")
    cut(version_file(folder, 2))
    for _ in range(2):
        repair(folder)
        assert segments(folder) == ["000001", "000002"]
    assert prune(folder) > 0
    assert segments(folder) == ["000001"]
    assert [path.name for path in (folder / "versions").iterdir()] == ["000003.json"]
    add(folder, listed([BEE]))
    assert segments(folder) == ["000001", "000003"]
    assert (verify(folder), found(folder)) == ([], {"owl", "saw", "bee"})


def test_one_damaged_older_version_is_named_shown_set_aside_and_removed(folder: Path) -> None:
    delete(folder, ["owl"])
    add(folder, listed([BEE]))
    damaged = cut(version_file(folder, 2))
    assert [str(problem) for problem in verify(folder)] == [f"{damaged}: damaged; version 2 cannot be gone back to"]
    told = [(one["number"], one["change"], one["documents"]) for one in stats(folder)["versions"]]
    assert told == [(1, "built from 2 documents", 2), (2, "damaged", None), (3, "added 1", 2)]
    assert ["2", "damaged"] in [line.split() for line in command("index", "stats", folder).out.splitlines()]
    assert "set aside as 000002.json.damaged" in repair(folder)[0]
    assert (verify(folder), kept_versions(folder), found(folder)) == ([], [1, 3], {"saw", "bee"})
    assert [one["change"] for one in stats(folder)["versions"]] == ["built from 2 documents", "damaged", "added 1"]
    prune(folder)
    assert [one["number"] for one in stats(folder)["versions"]] == [3]
    assert (verify(folder), found(folder)) == ([], {"saw", "bee"})


def test_pruning_removes_a_damaged_version_that_nobody_set_aside(folder: Path) -> None:
    add(folder, listed([BEE]))
    compact(folder)
    cut(version_file(folder, 2))
    assert prune(folder) > 0
    assert (kept_versions(folder), segments(folder), verify(folder)) == ([3], ["000003"], [])


@pytest.mark.parametrize("harm", [Path.unlink, cut])
@pytest.mark.parametrize("mend", [prune, repair])
def test_the_current_version_needs_no_file_of_its_own(folder: Path, harm: Callable[[Path], object], mend: Callable[[Path], object]) -> None:
    add(folder, listed([BEE]))
    compact(folder)
    path = version_file(folder, 3)
    content = path.read_bytes()
    harm(path)
    wrong = "damaged" if path.exists() else "missing"
    assert [str(problem) for problem in verify(folder)] == [f"{path}: {wrong}; the current version stands in index.json alone"]
    assert stats(folder)["versions"][-1] == {"number": 3, "made": read_version(folder).made, "change": "compacted", "documents": 3}
    done = mend(folder)
    assert done == [f"{path} was {wrong} and is written again from index.json"] or mend is prune
    assert path.read_bytes() == content
    assert (verify(folder), found(folder)) == ([], {"owl", "saw", "bee"})


def test_nothing_is_pruned_where_the_current_version_is_damaged(folder: Path) -> None:
    add(folder, listed([BEE]))
    compact(folder)
    shutil.rmtree(folder / "segments" / "000003")
    with pytest.raises(SearchIndexError, match=r"segments/000003/segment\.json: missing"):
        prune(folder)
    assert kept_versions(folder) == [1, 2, 3]
    roll_back(folder, 2)
    assert found(folder) == {"owl", "saw", "bee"}
    cut(folder / "index.json")
    with pytest.raises(SearchIndexError, match=r"index\.json: damaged"):
        prune(folder)
    assert kept_versions(folder) == [1, 2, 3, 4]


def test_going_back_gives_no_number_again_where_the_current_versions_file_is_missing(folder: Path) -> None:
    delete(folder, ["owl"])
    version_file(folder, 2).unlink()
    assert roll_back(folder, 1).number == 3
