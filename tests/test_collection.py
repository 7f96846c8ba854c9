from __future__ import annotations

import copy
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever import collection as collection_module
from retriever.collection import Collection, open_collection, write_collection
from retriever.errors import DataError, RetrieverError
from retriever.files import lock, text_hash
from retriever.settings.collection import CollectionSettings
from retriever.tables import documents as document_table
from retriever.tables.documents import DocumentTable
from retriever.types import Document, Query, Turn

DOCUMENTS = [Document("d1", "Bread rises with yeast.", "Bread"), Document("d2", "Water puts out wood.", ""), Document("d3", "", "")]
QUERIES = {"q1": Query("q1", "how does bread rise"), "q2": Query("q2", "putting out a fire", (Turn("user", "my house burns"),))}
QRELS = {"train": {"q1": {"d1": 2, "d2": 0}}, "test": {"q2": {"d2": 1}}}

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
IDS = TEXTS.filter(lambda text: text.split() == [text])


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return write_collection(tmp_path / "kitchen", DOCUMENTS, QUERIES, QRELS)


@pytest.fixture
def source(tmp_path: Path, collection: Collection) -> Path:
    collection.to_beir(tmp_path / "source")
    return tmp_path / "source"


def opened(source: Path, folder: Path | None = None, **options: Any) -> Collection:
    return open_collection(CollectionSettings(path=source, **options), folder or source.parent / "prepared")


def append(path: Path, line: str | bytes) -> None:
    with path.open("ab") as stream:
        stream.write((line.encode() if isinstance(line, str) else line) + b"\n")


# What a collection gives


def test_documents_queries_and_qrels_come_back_in_their_order(collection: Collection) -> None:
    assert (collection.name, len(collection), collection.splits) == ("kitchen", 3, ("train", "test"))
    assert list(collection.documents()) == DOCUMENTS
    assert list(collection.documents(start=2)) == DOCUMENTS[2:]
    assert list(collection.documents(start=3)) == []
    assert collection.queries("train") == {"q1": QUERIES["q1"]}
    assert collection.queries("dev") == QUERIES
    assert (collection.qrels("train"), collection.qrels("dev")) == (QRELS["train"], {})
    splits = {"pairs": {"train": 2, "test": 1}, "dropped_pairs": {"train": 0, "test": 0}}
    assert collection.counts == {"documents": 3, "empty_texts": 1, "images": 0, "queries": 2, "image_queries": 0, **splits}


def test_documents_are_found_by_id_and_by_row(collection: Collection) -> None:
    assert collection.document("d2") == DOCUMENTS[1]
    assert collection.documents_by_row([2, 0, 0]) == [DOCUMENTS[2], DOCUMENTS[0], DOCUMENTS[0]]
    assert collection.documents_by_row([]) == []
    assert collection.rows_of(["d3", "absent", "d1"]).tolist() == [2, -1, 0]
    assert collection.rows_of(collection.doc_ids).tolist() == [0, 1, 2]
    assert collection.rows_of([]).tolist() == []
    assert collection.doc_ids.tolist() == ["d1", "d2", "d3"]


def test_an_absent_document_is_an_error_and_a_wrong_row_is_a_mistake(collection: Collection) -> None:
    with pytest.raises(DataError, match=r"kitchen: there is no document d9"):
        collection.document("d9")
    for rows in ([-1], [0, 3]):
        with pytest.raises(IndexError, match="of a collection of 3 documents"):
            collection.documents_by_row(rows)


def test_variants_are_the_hashes_of_the_full_texts(collection: Collection) -> None:
    assert collection.variants.dtype == np.uint64
    assert isinstance(collection.variants, np.memmap)
    assert collection.variants.tolist() == [text_hash("Bread Bread rises with yeast."), text_hash("Water puts out wood."), text_hash("")]


def test_a_collection_can_be_given_to_another_process(collection: Collection) -> None:
    assert list(copy.copy(collection).documents()) == DOCUMENTS


def test_the_fingerprint_is_the_hash_of_ids_titles_texts_and_images_each_after_its_length(tmp_path: Path) -> None:
    fields = [b"d1", b"Brot", "süß".encode(), b""]
    by_hand = hashlib.sha256(b"".join(len(field).to_bytes(8, "big") + field for field in fields)).hexdigest()[:16]
    assert write_collection(tmp_path / "c", [Document("d1", "süß", "Brot")]).fingerprint == by_hand


def test_the_fingerprint_follows_ids_texts_and_order_and_nothing_else(tmp_path: Path, collection: Collection) -> None:
    variations = {
        "order": DOCUMENTS[::-1],
        "id": [Document("d0", DOCUMENTS[0].text, DOCUMENTS[0].title), *DOCUMENTS[1:]],
        "title or text": [Document("d1", "Bread Bread rises with yeast."), *DOCUMENTS[1:]],
    }
    found = {name: write_collection(tmp_path / name, documents).fingerprint for name, documents in variations.items()}
    assert len({collection.fingerprint, *found.values()}) == 4
    assert write_collection(tmp_path / "another name", iter(DOCUMENTS)).fingerprint == collection.fingerprint


def test_the_queries_fingerprint_follows_texts_turns_and_grades_of_its_split(tmp_path: Path, collection: Collection) -> None:
    def fingerprints(queries: dict[str, Query], qrels: dict[str, dict[str, dict[str, int]]]) -> tuple[str, str]:
        other = write_collection(tmp_path / "other", DOCUMENTS, queries, qrels)
        return other.queries_fingerprint("train"), other.queries_fingerprint("test")

    train, test = collection.queries_fingerprint("train"), collection.queries_fingerprint("test")
    assert train != test
    reordered = {"test": QRELS["test"], "train": {"q1": {"d2": 0, "d1": 2}}}
    assert fingerprints(dict(reversed(QUERIES.items())), reordered) == (train, test)
    regraded = fingerprints(QUERIES, {**QRELS, "train": {"q1": {"d1": 1, "d2": 0}}})
    assert (regraded[0] != train, regraded[1] == test) == (True, True)
    without_turns = fingerprints({**QUERIES, "q2": Query("q2", QUERIES["q2"].text)}, QRELS)
    assert (without_turns[0] == train, without_turns[1] != test) == (True, True)


def test_an_images_bytes_count_in_the_fingerprint_and_its_path_does_not(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, data in zip(paths, (b"cat", b"cat", b"dog"), strict=True):
        path.write_bytes(data)
    a, b, c = (write_collection(tmp_path / path.stem, [Document("d", "", image=path)]) for path in paths)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert (a.document("d").image, a.counts["empty_texts"]) == (paths[0], 0)
    with pytest.raises(DataError, match=r"document 1: the image .*absent\.png: cannot be read"):
        write_collection(tmp_path / "x", [Document("d", "", image=tmp_path / "absent.png")])


def test_rows_are_right_across_record_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_table, "_TOGETHER", 4)
    monkeypatch.setattr(document_table, "_IDS", 7)
    documents = [Document(f"d{number}", "x" * (number % 7) * 20) for number in range(50)]
    collection = write_collection(tmp_path / "c", documents)
    assert [list(collection.documents(start)) for start in range(51)] == [documents[start:] for start in range(51)]
    rows = np.random.default_rng(1).permutation(50)
    assert collection.documents_by_row(rows) == [documents[row] for row in rows]
    assert collection.rows_of([f"d{row}" for row in rows]).tolist() == rows.tolist()
    assert collection.doc_ids.tolist() == [document.doc_id for document in documents]


def test_ids_with_equal_hashes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_table, "text_hash", len)
    documents = [Document(f"d{number}", "") for number in range(30)]
    collection = write_collection(tmp_path / "c", documents)
    assert collection.rows_of([*(d.doc_id for d in documents), "e1", "d10000"]).tolist() == [*range(30), -1, -1]
    with pytest.raises(DataError, match=r"^document 32: the document id d7 stands already at document 8 \(2 such documents in all\)\. Ids must be unique$"):
        write_collection(tmp_path / "e", [*documents, Document("e1", ""), Document("d7", ""), Document("e1", "")])


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(st.tuples(IDS, TEXTS, TEXTS), min_size=1, max_size=5, unique_by=lambda fields: fields[0]),
    queries=st.lists(
        st.tuples(IDS, TEXTS.filter(str.strip), st.lists(st.tuples(TEXTS, TEXTS.filter(str.strip)), max_size=2)), max_size=3, unique_by=lambda fields: fields[0]
    ),
)
def test_any_text_survives_the_way_through_a_prepared_folder_and_a_beir_folder(documents: list[Any], queries: list[Any]) -> None:
    given_documents = [Document(doc_id, text, title) for doc_id, text, title in documents]
    given_queries = {query_id: Query(query_id, text, tuple(Turn(*turn) for turn in turns)) for query_id, text, turns in queries}
    qrels = {"test": {query_id: {documents[0][0]: 3} for query_id in given_queries}}
    with tempfile.TemporaryDirectory() as name:
        written = write_collection(Path(name) / "written", given_documents, given_queries, qrels)
        written.to_beir(Path(name) / "beir")
        read = opened(Path(name) / "beir")
        for collection in (written, read):
            assert list(collection.documents()) == given_documents
            assert (collection.queries("all"), collection.qrels("test")) == (given_queries, qrels["test"])
            assert collection.rows_of([document.doc_id for document in given_documents]).tolist() == list(range(len(given_documents)))
        assert (read.fingerprint, read.queries_fingerprint("test")) == (written.fingerprint, written.queries_fingerprint("test"))


# Preparing it


def test_a_second_opening_prepares_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(source)
    monkeypatch.setattr(collection_module, "DocumentWriter", None)
    assert opened(source).fingerprint == first.fingerprint


def test_a_source_that_changed_is_prepared_anew(source: Path) -> None:
    first = opened(source)
    append(source / "corpus.jsonl", '{"_id": "d4", "text": "new"}')
    second = opened(source)
    assert (len(first), len(second)) == (3, 4)
    assert second.document("d4").text == "new"
    assert list(first.documents()) == DOCUMENTS  # what is open stays whole


def test_another_source_takes_the_place_of_the_first(source: Path, tmp_path: Path) -> None:
    opened(source)
    write_collection(tmp_path / "o", [Document("other", "text")]).to_beir(tmp_path / "another")
    assert opened(tmp_path / "another", source.parent / "prepared").doc_ids.tolist() == ["other"]


def test_other_files_in_the_source_do_not_matter(source: Path) -> None:
    opened(source, source / "work" / "collection")
    before = (source / "work" / "collection" / "collection.json").stat().st_mtime_ns
    (source / "notes.txt").write_text("unrelated")
    opened(source, source / "work" / "collection")
    assert (source / "work" / "collection" / "collection.json").stat().st_mtime_ns == before


def test_a_prepared_collection_outlives_its_source(source: Path) -> None:
    opened(source)
    source.rename(source.with_name("moved"))
    assert list(opened(source).documents()) == DOCUMENTS
    with pytest.raises(DataError, match="there is no such folder or file"):
        opened(source, source.parent / "elsewhere")


@pytest.mark.parametrize("name", ["documents.arrow", "ids.arrow", "ids.npy", "variants.npy", "collection.json"])
def test_a_damaged_prepared_collection_is_refused_by_name_and_prepared_anew_from_its_source(name: str, source: Path) -> None:
    prepared = opened(source).folder
    data = (prepared / name).read_bytes()
    (prepared / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"prepared.*damaged.*Delete (this|the) folder .*and run the same command again"):
        Collection(prepared)
    assert list(opened(source).documents()) == DOCUMENTS


def test_files_of_different_lengths_are_refused(collection: Collection, tmp_path: Path) -> None:
    np.save(collection.folder / "variants.npy", np.zeros(2, dtype=np.uint64))
    with pytest.raises(DataError, match=r"damaged \(files of \[2, 3\] documents\)"):
        DocumentTable(collection.folder)
    with pytest.raises(DataError, match=r"absent: is no prepared collection"):
        Collection(tmp_path / "absent")


def test_a_prepared_collection_of_another_version_is_refused(collection: Collection) -> None:
    path = collection.folder / "collection.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layout": 99}))
    with pytest.raises(DataError, match=r"another version \(layout 99, not 4\)"):
        Collection(collection.folder)


def test_an_error_leaves_the_old_collection_and_nothing_else(source: Path) -> None:
    prepared = opened(source).folder
    append(source / "corpus.jsonl", "{")
    with pytest.raises(DataError, match=r"corpus\.jsonl:4: malformed JSON"):
        opened(source)
    assert list(Collection(prepared).documents()) == DOCUMENTS
    assert sorted(path.name for path in source.parent.iterdir()) == [".kitchen.lock", ".prepared.lock", ".source.lock", "kitchen", "prepared", "source"]


def test_a_first_error_leaves_no_folder(source: Path) -> None:
    append(source / "corpus.jsonl", "{")
    with pytest.raises(DataError):
        opened(source)
    assert not (source.parent / "prepared").exists()
    assert not (source.parent / ".prepared.new").exists()


def test_what_a_killed_process_left_is_swept_away(source: Path) -> None:
    leftover = source.parent / ".prepared.new"
    leftover.mkdir()
    (leftover / "documents.arrow").write_bytes(b"half")
    assert list(opened(source).documents()) == DOCUMENTS
    assert not leftover.exists()


def test_a_swap_cut_in_the_middle_is_undone(source: Path) -> None:
    prepared = opened(source).folder
    prepared.rename(prepared.with_name(".prepared.old"))
    before = (prepared.with_name(".prepared.old") / "collection.json").stat().st_mtime_ns
    assert (opened(source).folder / "collection.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("bytes_left", [0, 400, 2_000, 4_000, 10_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(bytes_left: int, tmp_path: Path) -> None:
    program = """
import errno, resource, signal, sys
from pathlib import Path
from retriever import files
from retriever.collection import write_collection
from retriever.errors import RetrieverError
from retriever.types import Document
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
errno.ENOSPC = errno.EFBIG  # a limit on a file's size stands for a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    write_collection(Path(sys.argv[2]) / "c", [Document(f"d{number}", "word " * 10) for number in range(1000)])
except RetrieverError as error:
    print(error)
"""
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-B", "-c", program, str(bytes_left), str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("the disk is full; nothing half-written was kept")) == (0, 1), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".c.lock"]


def test_two_processes_do_not_prepare_one_folder(source: Path) -> None:
    with lock(source.parent / ".prepared.lock", "preparing the collection"), pytest.raises(RetrieverError, match="is already preparing the collection here"):
        opened(source)


def test_a_folder_that_holds_something_else_is_left_alone(source: Path, collection: Collection) -> None:
    precious = source.parent / "prepared" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years")
    for write in (opened, lambda _: write_collection(precious.parent, DOCUMENTS), lambda _: collection.to_beir(precious.parent)):
        with pytest.raises(DataError, match=r"prepared: is in the way: it holds something else"):
            write(source)
    assert precious.read_text() == "years"


def test_memory_stays_flat_however_many_documents_there_are(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from retriever.collection import write_collection
from retriever.types import Document
documents = (Document(f"d{number}", f"{number} " + "word " * 200) for number in range(int(sys.argv[1])))
write_collection(Path(sys.argv[2]), documents)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    peaks = []
    for count in (20_000, 120_000):  # 20 and 120 MB of text
        command = [sys.executable, "-c", program, str(count), str(tmp_path / str(count))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 25, peaks  # 32 bytes a document are 3 MB; the rest is what the allocator keeps


# What is refused


def bad_documents() -> Iterator[tuple[str, str | bytes, str]]:
    yield "malformed JSON", '{"_id": "d4", "text": ', r"corpus\.jsonl:4: malformed JSON \(Expecting value.*\); a line must hold one whole object"
    yield "not an object", '["d4", "text"]', r"corpus\.jsonl:4: the line holds list, not an object"
    yield "missing text", '{"_id": "d4", "title": "x"}', r"corpus\.jsonl:4: there is no field text or contents or body; the record has _id, title"
    yield "missing id", '{"text": "x"}', r"corpus\.jsonl:4: there is no field _id or id or doc_id or docid; the record has text"
    yield "text of a wrong type", '{"_id": "d4", "text": ["x"]}', r'corpus\.jsonl:4: the field "text" is a list; it must be a string'
    yield "null text", '{"_id": "d4", "text": null}', r'corpus\.jsonl:4: the field "text" is null; it must be a string'
    yield "title of a wrong type", '{"_id": "d4", "text": "x", "title": 5}', r'corpus\.jsonl:4: the field "title" is a number; it must be a string'
    yield "id of a wrong type", '{"_id": true, "text": "x"}', r'corpus\.jsonl:4: the field "_id" is a boolean; an id must be a string'
    yield "empty id", '{"_id": "", "text": "x"}', r"corpus\.jsonl:4: the id '' is not a non-empty string"
    yield "white space in an id", '{"_id": "d 4", "text": "x"}', r"corpus\.jsonl:4: the id 'd 4' contains white space"
    yield "repeated id", '{"_id": "d2", "text": "x"}', r"corpus\.jsonl:4: the document id d2 stands already at .*corpus\.jsonl:2\. Ids must be unique"
    yield "invalid UTF-8", b'{"_id": "d4", "text": "caf\xe9"}', r"corpus\.jsonl:4: byte 27 of the line is not UTF-8\. Convert the file"
    yield (
        "lone surrogate",
        r'{"_id": "d4", "text": "x\ud83d"}',
        r"corpus\.jsonl:4: the text has the lone surrogate '\\ud83d' at character 2, which UTF-8 cannot carry",
    )
    yield "lone surrogate in an id", r'{"_id": "\udc00", "text": "x"}', r"corpus\.jsonl:4: the id has the lone surrogate '\\udc00' at character 1"


@pytest.mark.parametrize(("line", "message"), [pytest.param(*case, id=name) for name, *case in bad_documents()])
def test_a_bad_document_is_refused_in_one_line_that_names_file_and_line(line: str | bytes, message: str, source: Path) -> None:
    append(source / "corpus.jsonl", line)
    with pytest.raises(DataError, match=message) as caught:
        opened(source)
    assert "\n" not in str(caught.value)
    assert not (source.parent / "prepared").exists()


def bad_queries() -> Iterator[tuple[str, str, str]]:
    yield "malformed JSON", "{]", r"queries\.jsonl:3: malformed JSON"
    yield "missing text", '{"_id": "q3"}', r"queries\.jsonl:3: there is no field text or query or utterance"
    yield "wrong type", '{"_id": "q3", "text": 1}', r'queries\.jsonl:3: the field "text" is a number'
    yield "empty text", '{"_id": "q3", "text": " "}', r"queries\.jsonl:3: the query q3 is empty\. Give it a text, or leave it out together with its qrels"
    yield "white space in an id", '{"_id": "q\\t3", "text": "x"}', r"queries\.jsonl:3: the id 'q\\t3' contains white space"
    yield "repeated id", '{"_id": "q1", "text": "x"}', r"queries\.jsonl:3: the query id q1 stands already at .*queries\.jsonl:1\. Ids must be unique"
    yield "turns of a wrong type", '{"_id": "q3", "text": "x", "turns": "y"}', r'queries\.jsonl:3: the field "turns" is str; it must be a list of turns'
    yield (
        "a turn without text",
        '{"_id": "q3", "text": "x", "turns": [{"speaker": "y"}]}',
        r'queries\.jsonl:3: a turn in the field "turns" is not an object with a speaker and a text: turn 1',
    )
    yield (
        "lone surrogate in a turn",
        r'{"_id": "q3", "text": "x", "turns": [{"speaker": "u", "text": "\ud800"}]}',
        r"queries\.jsonl:3: the text of turn 1 has the lone surr",
    )


@pytest.mark.parametrize(("line", "message"), [pytest.param(*case, id=name) for name, *case in bad_queries()])
def test_a_bad_query_is_refused_in_one_line_that_names_file_and_line(line: str, message: str, source: Path) -> None:
    append(source / "queries.jsonl", line)
    with pytest.raises(DataError, match=message) as caught:
        opened(source)
    assert "\n" not in str(caught.value)


def bad_qrels() -> Iterator[tuple[str, str, str]]:
    yield "absent query", "q8\td1\t1\nq9\td1\t1", r"train\.tsv:4: the qrels name queries that are not there \(2\): q8, q9\. Add them, or take these lines out"
    yield (
        "absent document",
        "q1\td8\t1\nq2\td8\t1\nq1\td9\t1",
        r"train\.tsv:4: the qrels name documents that are not there \(2, in 3 pairs\): d8, d9\. Add them, or leave",
    )
    yield "grade", "q1\td3\thigh", r'train\.tsv:4: the grade "high" is not a whole number'
    yield "fields", "q1\td3", r"train\.tsv:4: qrels have 3 fields \(query document grade\) or 4 \(query 0 document grade\), this line has 2"
    yield "contradiction", "q1\td1\t1", r"train\.tsv:4: query q1 and document d1 have grade 1, but 2 at .*train\.tsv:2\. Keep one of the two"


@pytest.mark.parametrize(("lines", "message"), [pytest.param(*case, id=name) for name, *case in bad_qrels()])
def test_bad_qrels_are_refused_in_one_line_that_names_file_and_line(lines: str, message: str, source: Path) -> None:
    append(source / "qrels" / "train.tsv", lines)
    with pytest.raises(DataError, match=message) as caught:
        opened(source)
    assert "\n" not in str(caught.value)


def test_many_absent_documents_are_counted_and_only_five_named(source: Path) -> None:
    append(source / "qrels" / "train.tsv", "\n".join(f"q1\tx{number}\t1" for number in range(8)))
    with pytest.raises(DataError, match=r"name documents that are not there \(8, in 8 pairs\): x0, x1, x2, x3, x4 and 3 more\. Add"):
        opened(source)


def test_absent_documents_can_be_left_out_and_are_counted(source: Path) -> None:
    append(source / "qrels" / "train.tsv", "q1\tx\t1\nq2\tx\t1")
    collection = opened(source, missing_documents="ignore")
    assert collection.qrels("train") == QRELS["train"]
    assert collection.counts["dropped_pairs"] == {"train": 2, "test": 0}
    with pytest.raises(DataError, match=r"the qrels name documents that are not there \(1, in 2 pairs\): x\."):
        opened(source)


def test_the_same_judgement_twice_is_no_contradiction(source: Path) -> None:
    append(source / "qrels" / "train.tsv", "q1\td1\t2")
    assert opened(source).counts["pairs"] == {"test": 1, "train": 2}


def test_an_empty_collection_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "corpus.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"source: the collection is empty: it has no documents"):
        opened(source)
    with pytest.raises(DataError, match=r"python: the collection is empty"):
        write_collection(tmp_path / "python", [])


def test_a_truncated_gzip_is_refused(source: Path) -> None:
    lines = "".join(json.dumps({"_id": f"n{number}", "text": hashlib.sha256(str(number).encode()).hexdigest()}) + "\n" for number in range(2000))
    (source / "corpus.jsonl").unlink()
    data = gzip.compress(lines.encode())
    (source / "corpus.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz:\d+: the gzip file is truncated or damaged after this line \(.*\)\. Fetch or compress it again"):
        opened(source)


def test_a_damaged_gzip_is_refused(source: Path) -> None:
    (source / "queries.jsonl").unlink()
    data = bytearray(gzip.compress(b'{"_id": "q1", "text": "x"}\n'))
    data[15] ^= 255
    (source / "queries.jsonl.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"queries\.jsonl\.gz"):
        opened(source)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(source: Path) -> None:
    path = source / "corpus.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert list(opened(source).documents()) == DOCUMENTS


@pytest.mark.parametrize("split", ["../outside", "", "a//b", "/tmp/x", "."])
def test_a_split_cannot_write_outside_the_folder(split: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the split name .* cannot be a file's name"):
        write_collection(tmp_path / "c", DOCUMENTS, QUERIES, {split: {}})


def test_a_split_may_have_a_slash(tmp_path: Path) -> None:
    collection = write_collection(tmp_path / "c", DOCUMENTS, QUERIES, {"dev/small": QRELS["train"]})
    assert (collection.splits, collection.qrels("dev/small")) == (("dev/small",), QRELS["train"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("d", None), r"document 1: the text is NoneType None; it must be a string"),  # type: ignore[arg-type]
        (Document(7, "text"), r"document 1: the id 7 is not a non-empty string"),  # type: ignore[arg-type]
        (Document("d", "\ud800"), r"document 1: the text has the lone surrogate"),
    ],
)
def test_python_values_are_checked_too(document: Document, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_collection(tmp_path / "c", [document])


def test_a_turn_keeps_its_conversation_its_rewrites_and_its_fields(tmp_path: Path) -> None:
    turns = (Turn("User", "how do I dry wood"), Turn("agent", "stack it in the shade"))
    rewrites = {"human": "how do I dry wood when it rains"}
    queries = [Query("q1", "and when it rains", turns, None, "c1", rewrites, {"topic": "wood", "hard": True}), Query("q2", "alone")]
    written = write_collection(tmp_path / "collection", [Document("d1", "wood")], queries, {"train": {"q1": {"d1": 1}, "q2": {"d1": 1}}})
    written.to_beir(tmp_path / "beir")
    for collection in (written, opened(tmp_path / "beir"), copied(written)):
        assert collection.queries("train") == {"q1": queries[0], "q2": queries[1]}
        assert collection.queries_fingerprint("train") == written.queries_fingerprint("train")
    unnamed = write_collection(
        tmp_path / "other", [Document("d1", "wood")], [queries[1], Query("q1", "and when it rains", turns)], {"train": {"q1": {"d1": 1}}}
    )
    assert unnamed.queries_fingerprint("train") != written.queries_fingerprint("train")


def copied(collection: Collection) -> Collection:
    """As another process makes it."""
    make, arguments = collection.__reduce__()
    return make(*arguments)
