"""An index that is changed: what is found is what is there, old versions are kept, and a stop at any instant leaves one version whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retriever.collection import Collection, write_collection
from retriever.encodings import encode_collection
from retriever.errors import ConfigError, DataError, SearchIndexError
from retriever.index import changes
from retriever.index.changes import add, compact, delete, prune, publish, roll_back
from retriever.index.layout import kept_versions, read_version
from retriever.index.soundness import repair, stats, verify
from retriever.plugins import load_kind
from retriever.ragged_encodings import encode_ragged
from retriever.search import SearchIndex, open_index
from retriever.settings.index import (
    AutoSettings,
    FlatSettings,
    HnswSettings,
    InvertedSettings,
    IvfSettings,
    MultiVectorSettings,
    SeismicSettings,
    TokenClustersSettings,
)
from retriever.settings.student import STUDENT_KINDS
from retriever.types import Document, Query
from tests.forked_commands import RETRIEVER, ForkedCommands
from tests.tiny_experiment import command, process_environment

NEW = [
    Document("n1", "a small owl that hunts at dusk", "Owl", fields={"year": 2021, "kind": "animal"}),
    Document("n2", "a saw with a thin blade", "Saw", fields={"year": 2019, "kind": "tool"}),
    Document("n3", "a hammer of wood", "Mallet", fields={"year": 2020, "kind": "tool"}),
]


def listed(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    return ((f"document {number}", document) for number, document in enumerate(documents, 1))


def built(folder: Path, kind: str, encoder: Path, documents: list[Document], settings: Any = None) -> Path:
    """An index of documents by a student of a kind, started from the tiny encoder."""
    collection = write_collection(folder / "collection", documents)
    student = load_kind("students", kind, "student").load(STUDENT_KINDS[kind](kind=kind, model=str(encoder)))
    student.save(folder / "student")
    student = load_kind("students", kind, "student").load_folder(folder / "student")
    encode: Callable[..., Any] = encode_ragged if hasattr(student, "columns") else encode_collection
    vectors = encode(student, collection, folder / "encodings")
    publish(folder / "index", settings or AutoSettings(), kind, folder / "student", student, vectors, collection)
    return folder / "index"


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, shared_beir_folder: Path) -> list[Document]:
    from retriever.collection import open_collection
    from retriever.settings.collection import CollectionSettings

    return list(open_collection(CollectionSettings(path=shared_beir_folder), tmp_path_factory.mktemp("c") / "c").documents())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, documents: list[Document]) -> Path:
    return built(tmp_path_factory.mktemp("dense"), "dense", encoder_folder, documents)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """An index of its own, of 60 documents."""
    return shutil.copytree(whole, tmp_path / "index")


def all_found(index: SearchIndex, query: str = "an animal that hunts") -> dict[str, float]:
    return {hit.document.doc_id: hit.score for hit in index.hits(query, 1000)}


def by_hand(index: SearchIndex, documents: list[Document], query: str = "an animal that hunts") -> dict[str, float]:
    """The same by numpy, from nothing but texts."""
    asked = index.encoder.encode_queries([Query("q", query)])
    vectors = index.encoder.encode_documents(documents)
    return dict(zip([document.doc_id for document in documents], np.asarray(vectors @ asked[0]).tolist(), strict=True))


def test_what_is_added_is_found_at_once_by_a_reader_that_is_open(folder: Path, documents: list[Document]) -> None:
    index = open_index(folder)
    assert len(all_found(index)) == 60
    changed = add(folder, listed(NEW))
    assert (changed.version, changed.added, changed.replaced, changed.documents) == (2, 3, 0, 63)
    assert len(index) == 63
    assert all_found(index) == pytest.approx(by_hand(index, documents + NEW), abs=1e-5)
    best = index.hits("a small owl that hunts at dusk owl", 1)[0].document
    assert best == NEW[0]


def test_what_is_deleted_is_not_found_and_the_others_move_up(folder: Path, documents: list[Document]) -> None:
    index = open_index(folder)
    gone = [hit.document.doc_id for hit in index.hits("an animal that hunts", 5)]
    assert delete(folder, gone).documents == 55
    left = [document for document in documents if document.doc_id not in gone]
    assert all_found(index) == pytest.approx(by_hand(index, left), abs=1e-5)
    assert len(index.hits("an animal that hunts", 5)) == 5


def test_a_document_given_again_takes_the_place_of_the_old_one(folder: Path, documents: list[Document]) -> None:
    new = Document(documents[7].doc_id, "something else altogether", "")
    changed = add(folder, listed([new, NEW[0]]))
    assert (changed.added, changed.replaced, changed.documents) == (1, 1, 61)
    index = open_index(folder)
    expected = [*documents[:7], *documents[8:], new, NEW[0]]
    assert all_found(index) == pytest.approx(by_hand(index, expected), abs=1e-5)
    found = {hit.document.doc_id: hit.document for hit in index.hits("x", 100)}
    assert found[new.doc_id].text == "something else altogether"


def test_ids_that_are_not_there_or_stand_twice_change_nothing(folder: Path, documents: list[Document]) -> None:
    with pytest.raises(DataError, match=r"no document absent \(2 such ids\); nothing was deleted. Leave it out, or pass over it with --ignore-missing"):
        delete(folder, ["absent", documents[0].doc_id, "other"])
    with pytest.raises(DataError, match=r"^document 3: the id n1 stands already at document 1. Ids must be unique; nothing was added"):
        add(folder, listed([NEW[0], NEW[1], NEW[0]]))
    assert read_version(folder).number == 1
    assert delete(folder, ["absent"], ignore_missing=True).deleted == 0
    assert add(folder, iter(())).added == 0
    assert (read_version(folder).number, verify(folder)) == (1, [])


def test_filters_find_what_meets_them_also_where_few_do(folder: Path) -> None:
    add(folder, listed(NEW))
    index = open_index(folder)
    assert [hit.document.doc_id for hit in index.hits("a", 10, {"kind": "animal"})] == ["n1"]
    assert {hit.document.doc_id for hit in index.hits("a", 10, {"year": {">=": 2019, "<": 2021}})} == {"n2", "n3"}
    assert index.hits("a", 10, {"kind": ["plant"]}) == []
    assert set(index.run({"q": Query("q", "a")}, 10, where={"kind": "tool"}).to_dict()["q"]) == {"n2", "n3"}
    with pytest.raises(ConfigError, match='no document has a field "knid"; did you mean "kind"'):
        index.hits("a", 10, {"knid": "tool"})
    with pytest.raises(DataError, match='the field "year" is a text in the new documents and a number in the index'):
        add(folder, listed([Document("n4", "x", fields={"year": "new"})]))


def test_compaction_keeps_what_is_found_and_pruning_removes_what_nobody_needs(folder: Path, documents: list[Document]) -> None:
    add(folder, listed(NEW))
    delete(folder, [documents[0].doc_id, "n2"])
    index = open_index(folder)
    before = all_found(index)
    assert compact(folder).documents == 61
    assert all_found(index) == pytest.approx(before, abs=1e-6)
    assert [segment.used.documents for segment in index.snapshot.segments] == [61]
    assert kept_versions(folder) == [1, 2, 3, 4]
    assert prune(folder) > 0
    assert kept_versions(folder) == [4]
    assert [path.name for path in (folder / "segments").iterdir()] == ["000003"]
    assert not list((folder / "deletions").iterdir())
    assert all_found(index) == pytest.approx(before, abs=1e-6)
    assert all_found(open_index(folder)) == pytest.approx(before, abs=1e-6)
    assert verify(folder) == []


def test_an_earlier_version_can_be_gone_back_to(folder: Path) -> None:
    index = open_index(folder)
    before = all_found(index)
    delete(folder, list(before)[:30])
    assert len(index) == 30
    assert roll_back(folder, 1).number == 3
    assert all_found(index) == before
    with pytest.raises(SearchIndexError, match="version 9 is not kept; there are 1, 2, 3"):
        roll_back(folder, 9)


def test_many_small_additions_are_put_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "SMALL_SEGMENTS", 3)
    for number in range(5):
        add(folder, listed([Document(f"x{number}", f"owl number {number}")]))
    index = open_index(folder)
    assert len(index.snapshot.segments) <= 3
    assert len(all_found(index)) == 65
    assert verify(folder) == []


def test_everything_can_be_deleted_and_filled_again(folder: Path, documents: list[Document]) -> None:
    index = open_index(folder)
    delete(folder, [document.doc_id for document in documents])
    assert (len(index), index.hits("an owl"), index.run({"q": Query("q", "x")}).to_dict()) == (0, [], {"q": {}})
    compact(folder)
    assert index.hits("an owl") == []
    add(folder, listed(NEW))
    assert len(index.hits("an owl")) == 3
    assert verify(folder) == []


@pytest.mark.parametrize(("kind", "settings"), [("sparse", InvertedSettings()), ("late_interaction", MultiVectorSettings())])
def test_every_kind_of_student_has_an_index_that_changes(kind: str, settings: Any, tmp_path: Path, encoder_folder: Path, documents: list[Document]) -> None:
    folder = built(tmp_path, kind, encoder_folder, documents[:20], settings)
    index = open_index(folder)
    add(folder, listed([*NEW, Document(documents[3].doc_id, "a new text of an owl")]))
    delete(folder, [documents[0].doc_id])
    expected = [*documents[1:3], *documents[4:20], *NEW, Document(documents[3].doc_id, "a new text of an owl")]
    asked = index.encoder.encode_queries([Query("q", "an owl that hunts")])
    pairs = [np.zeros(len(expected), dtype=np.int64), np.arange(len(expected))]
    scores = index.encoder.score(asked[pairs[0]], index.encoder.encode_documents(expected)[pairs[1]])
    wanted = {document.doc_id: score for document, score in zip(expected, scores.tolist(), strict=True) if score > 0 or kind != "sparse"}
    assert all_found(index, "an owl that hunts") == pytest.approx(wanted, abs=2e-3)
    assert {hit.document.doc_id for hit in index.hits("an owl", 10, {"kind": "tool"})} <= {"n2", "n3"}
    before = all_found(index)
    compact(folder)
    assert all_found(index) == pytest.approx(before, abs=1e-4)
    assert verify(folder) == []


APPROXIMATE = [
    ("dense", HnswSettings(neighbours=8)),
    ("dense", IvfSettings(lists=4, quantisation="int8")),
    ("dense", FlatSettings(quantisation="rabitq")),
    ("sparse", SeismicSettings()),
    ("late_interaction", TokenClustersSettings()),
]


@pytest.mark.parametrize(("kind", "settings"), APPROXIMATE, ids=lambda value: getattr(value, "kind", value))
def test_an_approximate_index_changes_and_filters_too(kind: str, settings: Any, tmp_path: Path, encoder_folder: Path, documents: list[Document]) -> None:
    if settings.kind == "seismic":
        pytest.importorskip("seismic", reason="needs the extra [sparse]")
    folder = built(tmp_path, kind, encoder_folder, [*documents[:40], *NEW[1:]], settings)
    index = open_index(folder)
    assert index.snapshot.segments[0].facts.kind == settings.kind
    add(folder, listed(NEW[:1]))
    assert index.hits("owl a small owl that hunts at dusk", 1)[0].document.doc_id == "n1"
    delete(folder, ["n1", documents[0].doc_id])
    assert not {"n1", documents[0].doc_id} & set(all_found(index, documents[0].full_text))
    assert {hit.document.doc_id for hit in index.hits("a tool", 10, {"kind": "tool"})} == {"n2", "n3"}
    assert {hit.document.doc_id for hit in index.hits("a tool", 10, {"year": {">": 2019}})} == {"n3"}
    before = [hit.document.doc_id for hit in index.hits("a hammer of wood", 3)]
    compact(folder)
    assert index.snapshot.segments[0].facts.kind == settings.kind
    assert index.hits("a hammer of wood", 1)[0].document.doc_id == before[0] == "n3"
    assert verify(folder) == []


def test_an_index_that_is_built_again_keeps_the_old_version_and_says_what_was_added_by_hand(
    whole: Path, tmp_path: Path, folder: Path, documents: list[Document], capsys: pytest.CaptureFixture[str]
) -> None:
    add(folder, listed(NEW))
    said: list[str] = []

    class Noted(changes.Quiet):
        def say(self, text: str) -> None:
            said.append(text)

    source = whole.parent
    student = load_kind("students", "dense", "student").load_folder(source / "student")
    collection = Collection(source / "collection")
    vectors = encode_collection(student, collection, source / "encodings")
    publish(folder, FlatSettings(), "dense", source / "student", student, vectors, collection, Noted())
    assert any("version 2 had 3 documents added and 0 deleted by hand" in line and "--to 2" in line for line in said)
    index = open_index(folder)
    assert (index.snapshot.version.number, len(index)) == (3, 60)
    roll_back(folder, 2)
    assert len(index) == 63


# Damage


def test_a_flipped_byte_is_found_and_mended(folder: Path, documents: list[Document]) -> None:
    add(folder, listed(NEW))
    index = open_index(folder)
    before = all_found(index)
    engine = folder / "segments" / "000001" / "index.faiss"
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(bytes(data))
    problems = verify(folder)
    assert [str(problem) for problem in problems] == [f"{engine}: its bytes are not those that were written"]
    assert repair(folder)[0].startswith("segment 000001 is built again from its 60 documents")
    assert verify(folder) == []
    assert all_found(open_index(folder)) == pytest.approx(before, abs=1e-6)


def test_a_segment_without_its_documents_is_left_out_and_said_to_be_lost(folder: Path) -> None:
    add(folder, listed(NEW))
    shutil.rmtree(folder / "segments" / "000002" / "documents")
    assert verify(folder)
    assert repair(folder)[0] == "segment 000002 is left out: its documents are damaged. 3 documents are lost; add them again"
    assert (verify(folder), len(open_index(folder))) == ([], 60)


def test_a_cut_manifest_is_mended_from_the_versions(folder: Path) -> None:
    add(folder, listed(NEW))
    os.truncate(folder / "index.json", 20)
    with pytest.raises(SearchIndexError, match="damaged"):
        open_index(folder)
    assert repair(folder)[0].startswith("version 2 is the current one again")
    assert len(open_index(folder)) == 63


def test_another_student_in_the_folder_is_found(folder: Path) -> None:
    config = next((folder / "students").iterdir()) / "sentence_bert_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_seq_length": 9}))
    assert any("holds" in str(problem) for problem in verify(folder))
    with pytest.raises(SearchIndexError, match="holds"):
        repair(folder)


# Kills

CHANGE_FOREVER = """
import sys
from pathlib import Path
from retriever.index.changes import add, compact, delete
from retriever.types import Document
folder = Path(sys.argv[1])
print("ready", flush=True)
for number in range(1000):
    add(folder, [(f"document {i}", Document(f"x{i}", f"owl number {i} of round {number}")) for i in range(6)])
    print(f"added {number}", flush=True)
    delete(folder, [f"x{i}" for i in range(6)])
    print(f"deleted {number}", flush=True)
    if number % 3 == 2:
        compact(folder)
"""


def test_a_kill_at_any_instant_leaves_the_version_before_or_the_one_after(folder: Path, documents: list[Document], forked_commands: ForkedCommands) -> None:
    original = {document.doc_id for document in documents}
    added = {f"x{number}" for number in range(6)}
    chance = random.Random(1)
    for _ in range(4):
        process_id = forked_commands.start("-c", CHANGE_FOREVER, folder, streams={"out": (pipe := forked_commands.pipe())})
        with pipe.open() as stream:
            assert stream.readline() == "ready\n"
            time.sleep(chance.uniform(0.2, 2.5))
            os.kill(process_id, signal.SIGKILL)
            told = [line for line in stream.read().splitlines() if line]
        assert forked_commands.wait(process_id).status == -signal.SIGKILL
        index = open_index(folder)
        found = set(all_found(index))
        assert found in (original, original | added)
        if told and told[-1].startswith("added"):
            last = int(told[-1].split()[1])
            version = index.snapshot.version
            assert found == original | added or version.change.startswith(("deleted", "compacted")), (last, version)
        assert verify(folder) == []
    assert set(all_found(open_index(folder))) >= original


# Commands


def test_the_commands_change_verify_and_mend_an_index(folder: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"id": document.doc_id, "title": document.title, "text": document.text, **document.fields}) for document in NEW]
    (tmp_path / "new.jsonl").write_text("\n".join(lines))
    said = command("index", "add", folder, tmp_path / "new.jsonl", "--field", "kind", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out) == {"index": str(folder), "version": 2, "added": 3, "replaced": 0, "deleted": 0, "documents": 63}
    said = command("search", folder, "an owl", "-k", "5", "--filter", "kind in tool,plant", "--json")
    assert {(found["id"], found["fields"]["kind"]) for found in json.loads(said.out)["results"]} == {("n2", "tool"), ("n3", "tool")}
    assert command("search", folder, "an owl", "--filter", "kind").error.startswith("--filter 'kind': is no condition; write it like")
    assert command("index", "delete", folder, "n2").out == f"{folder}: 1 deleted; version 3, 62 documents\n"
    assert command("index", "delete", folder, "n2").status == 2
    assert command("index", "verify", folder).out == "nothing is wrong\n"
    told = json.loads(command("index", "stats", folder, "--json").out)
    assert (told["documents"], told["deleted"], len(told["segments"]), told["segments"][1]["fields"]) == (62, 1, 2, {"kind": "text"})
    assert "version 3, 62 documents" in command("index", "stats", folder).out
    assert "62 documents" in command("index", "compact", folder).out
    assert command("index", "rollback", folder, "--to", "1").out == f"{folder}: version 5 is as version 1 was, 60 documents\n"
    assert command("index", "prune", folder).status == 0
    os.truncate(folder / "segments" / "000001" / "index.faiss", 100)
    said = command("index", "verify", folder)
    assert (said.status, said.out) == (1, f"{folder}/segments/000001/index.faiss: its bytes are not those that were written\n")
    assert command("index", "repair", folder).status == 0
    assert command("index", "verify", folder).status == 0


def test_documents_come_from_a_pipe_too(folder: Path, forked_commands: ForkedCommands) -> None:
    lines = "".join(json.dumps({"id": document.doc_id, "text": document.text}) + "\n" for document in NEW)
    ours, theirs = os.pipe()  # not a named one: /dev/stdin is opened once more, and would wait for another writer
    process_id = forked_commands.start(*RETRIEVER, "index", "add", folder, streams={"in": f"/proc/{os.getpid()}/fd/{ours}"})
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        stream.write(lines)
    done = forked_commands.wait(process_id)
    os.close(ours)
    assert (done.status, done.out) == (0, f"{folder}: 3 added; version 2, 63 documents\n"), done.err


def test_deleting_loads_no_student(folder: Path, documents: list[Document]) -> None:
    program = "import sys; from pathlib import Path; from retriever.index.changes import delete; delete(Path(sys.argv[1]), [sys.argv[2]])"
    program += "; print('sentence_transformers' in sys.modules)"
    arguments = [sys.executable, "-c", program, str(folder), documents[0].doc_id]
    done = subprocess.run(arguments, capture_output=True, text=True, env=process_environment(), check=True)
    assert done.stdout == "False\n"
    assert len(open_index(folder)) == 59


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "a"}', "new.jsonl:1: there is no field text or contents or body; the record has id"),
        ("{", "new.jsonl:1: malformed JSON"),
        ('{"id": "a b", "text": "x"}', "new.jsonl:1: the id 'a b' contains white space"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_added(folder: Path, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "new.jsonl").write_text(line)
    assert said in command("index", "add", folder, tmp_path / "new.jsonl").error
    assert read_version(folder).number == 1


def test_stats_are_plain_values(folder: Path) -> None:
    found = json.loads(json.dumps(stats(folder)))
    assert (found["version"], found["documents"], found["student_kind"], found["segments"][0]["kind"]) == (1, 60, "dense", "flat")
    assert found["bytes"] == (folder / "segments" / "000001" / "index.faiss").stat().st_size


def test_an_index_goes_to_an_engine_and_is_searched_there_alike(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="needs the extra [qdrant]")
    add(folder, listed(NEW))
    delete(folder, ["n2"])
    address = f"qdrant+local://{tmp_path}/engine/animals"
    said = command("index", "upload", folder, address, "--json")
    assert said.status == 0, said.err
    assert (json.loads(said.out)["documents"], json.loads(said.out)["recall"]) == (62, 1.0)
    here = json.loads(command("search", folder, "an owl", "--json").out)["results"]
    there = json.loads(command("search", address, "an owl", "--student", folder, "--json").out)["results"]
    assert [one["id"] for one in there] == [one["id"] for one in here]
    assert [one["score"] for one in there] == pytest.approx([one["score"] for one in here], abs=1e-5)
    assert there[0]["text"] == here[0]["text"]
    filtered = json.loads(command("search", address, "an owl", "--student", folder, "--filter", "kind=tool", "--json").out)["results"]
    assert [one["id"] for one in filtered] == ["n3"]
    assert command("search", address, "an owl").error.endswith("keeps no student. Give the one that made it: --student FOLDER")
    assert "no student here" in command("search", address, "an owl", "--student", tmp_path / "engine").error


def test_an_index_is_written_for_stock_faiss(folder: Path, tmp_path: Path) -> None:
    import faiss

    add(folder, listed(NEW))
    assert command("index", "export", folder, tmp_path / "out", "--format", "faiss").out == f"{tmp_path / 'out'}: 63 documents\n"
    stock, ids = faiss.read_index(str(tmp_path / "out" / "index")), (tmp_path / "out" / "docid").read_text().split()
    index = open_index(folder)
    _, rows = stock.search(index.encoder.encode_queries([Query("q", "an owl")]), 5)
    assert [ids[row] for row in rows[0]] == [hit.document.doc_id for hit in index.hits("an owl", 5)]
    assert "impacts are of a sparse student" in command("index", "export", folder, tmp_path / "other", "--format", "impacts").error
    assert "allowed are impacts and faiss" in command("index", "export", folder, tmp_path / "other", "--format", "lucene").error


def test_a_sparse_index_is_written_as_impacts_in_words(tmp_path: Path, encoder_folder: Path, documents: list[Document]) -> None:
    folder = built(tmp_path, "sparse", encoder_folder, documents[:10], InvertedSettings())
    assert command("index", "export", folder, tmp_path / "out", "--format", "impacts").status == 0
    lines = [json.loads(line) for path in sorted((tmp_path / "out" / "collection").iterdir()) for line in path.read_text().splitlines()]
    index = open_index(folder)
    kept = index.snapshot.encodings(np.arange(10))
    words, values = index.encoder.vocabulary, kept.columns["values"]
    first = dict(zip([words[number] for number in kept.columns["dimensions"][: kept.offsets[1]]], values[: kept.offsets[1]].tolist(), strict=True))
    assert [line["id"] for line in lines] == [document.doc_id for document in documents[:10]]
    assert lines[0]["vector"] == {word: round(100 * value) for word, value in first.items() if round(100 * value)}
