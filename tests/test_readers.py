from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retriever import readers
from retriever.collection import Collection, open_collection
from retriever.errors import ConfigError, DataError
from retriever.readers import (
    Reader,
    Source,
    beir,
    captions,
    files,
    hugging_face,
    hugging_face_images,
    jsonl,
    msmarco,
    mtrag,
    parquet,
    qrecc,
    topiocqa,
    trec,
    trec_cast,
    trec_ikat,
    webdataset,
)
from retriever.readers import ir_datasets as ir_datasets_reader
from retriever.settings.collection import CollectionSettings
from retriever.types import Document, Query, Turn

DOCUMENTS = [Document("d1", "Bread rises with yeast.", "Bread"), Document("d2", "Oil burns; water puts out wood.", ""), Document("d3", "", "")]
QUERIES = {"q1": Query("q1", "how does bread rise"), "q2": Query("q2", "putting out a fire")}
QRELS = {"train": {"q1": {"d1": 2, "d2": 0}}, "test": {"q2": {"d2": 1}}}


def records(kind: type[Document] | type[Query], identifier: str, text: str) -> list[dict[str, Any]]:
    if kind is Document:
        return [{identifier: d.doc_id, "title": d.title, text: d.text} for d in DOCUMENTS]
    return [{identifier: q.query_id, text: q.text} for q in QUERIES.values()]


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


def write_jsonl(path: Path, values: list[dict[str, Any]]) -> None:
    write_lines(path, [json.dumps(value) for value in values])


def qrels_lines(split: str, *, form: str) -> list[str]:
    pairs = [(query_id, doc_id, grade) for query_id, judged in QRELS[split].items() for doc_id, grade in judged.items()]
    if form == "trec":
        return [f"{query_id} 0 {doc_id} {grade}" for query_id, doc_id, grade in pairs]
    return ["query-id\tcorpus-id\tscore", *(f"{query_id}\t{doc_id}\t{grade}" for query_id, doc_id, grade in pairs)]


def make_beir(folder: Path, ending: str = "") -> None:
    write_jsonl(folder / f"corpus.jsonl{ending}", records(Document, "_id", "text"))
    write_jsonl(folder / f"queries.jsonl{ending}", records(Query, "_id", "text"))
    for split in QRELS:
        write_lines(folder / "qrels" / f"{split}.tsv{ending}", qrels_lines(split, form="beir"))


def make_beir_gzip(folder: Path) -> None:
    make_beir(folder, ".gz")


def make_jsonl(folder: Path) -> None:
    write_jsonl(folder / "documents.jsonl", records(Document, "docid", "contents"))
    write_jsonl(folder / "queries.jsonl", records(Query, "qid", "query"))
    judged = [(split, q, d, grade) for split, qrels in QRELS.items() for q, documents in qrels.items() for d, grade in documents.items()]
    write_jsonl(folder / "qrels.jsonl", [{"query_id": q, "doc_id": d, "grade": grade, "split": split} for split, q, d, grade in judged])


def make_jsonl_with_tables(folder: Path) -> None:
    write_jsonl(folder / "documents.jsonl.gz", records(Document, "id", "body"))
    write_jsonl(folder / "queries.jsonl", records(Query, "id", "text"))
    for split in QRELS:
        write_lines(folder / f"qrels.{split}.txt", qrels_lines(split, form="trec"))


def make_trec(folder: Path) -> None:
    first, *others = DOCUMENTS
    write_lines(folder / "a.trec", ["<DOC>", f"<DOCNO> {first.doc_id} </DOCNO>", f"<TITLE>{first.title}</TITLE>", "<TEXT>", first.text, "</TEXT>", "</DOC>"])
    write_lines(folder / "documents" / "b.gz", [f"<DOC><DOCNO>{d.doc_id}</DOCNO><TEXT>{d.text}</TEXT></DOC>" for d in others])
    topics = [["<top>", f"<num> Number: {q.query_id}", f"<title> {q.text}", "<desc> Description:", "More words.", "</top>"] for q in QUERIES.values()]
    write_lines(folder / "topics.txt", [line for topic in topics for line in topic])
    for split in QRELS:
        write_lines(folder / f"qrels.{split}", qrels_lines(split, form="trec"))


def make_trec_with_tables(folder: Path) -> None:
    make_trec(folder)
    (folder / "topics.txt").unlink()
    write_lines(folder / "topics.tsv", [f"{q.query_id}\t{q.text}" for q in QUERIES.values()])


def make_msmarco_documents(folder: Path) -> None:
    write_lines(folder / "msmarco-docs.tsv.gz", [f"{d.doc_id}\thttps://example.org/{d.doc_id}\t{d.title}\t{d.text}" for d in DOCUMENTS])
    for (split, qrels), query in zip(QRELS.items(), QUERIES.values(), strict=True):
        write_lines(folder / f"msmarco-doc{split}-queries.tsv", [f"{query.query_id}\t{query.text}"])
        assert list(qrels) == [query.query_id]
        write_lines(folder / f"msmarco-doc{split}-qrels.tsv", qrels_lines(split, form="trec"))


def make_parquet(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(records(Document, "doc_id", "text")), folder / "documents.parquet", row_group_size=2)
    pq.write_table(pa.Table.from_pylist(records(Query, "query_id", "text")), folder / "queries.parquet")
    (folder / "qrels").mkdir()
    for split, qrels in QRELS.items():
        pairs = [{"query_id": q, "doc_id": d, "grade": grade} for q, judged in qrels.items() for d, grade in judged.items()]
        pq.write_table(pa.Table.from_pylist(pairs), folder / "qrels" / f"{split}.parquet")


def make_parquet_parts(folder: Path) -> None:
    for number, record in enumerate(records(Document, "_id", "text")):
        pq.write_table(pa.Table.from_pylist([record]), folder / f"corpus-{number:05d}-of-00003.parquet")
    pq.write_table(pa.Table.from_pylist(records(Query, "_id", "text")), folder / "queries.parquet")
    judged = [(split, q, d, grade) for split, qrels in QRELS.items() for q, documents in qrels.items() for d, grade in documents.items()]
    table = [{"split": split, "query-id": q, "corpus-id": d, "score": float(grade)} for split, q, d, grade in judged]
    pq.write_table(pa.Table.from_pylist(table), folder / "qrels.parquet")


def hugging_face_parts() -> dict[str, Any]:
    import datasets

    qrels = {
        split: datasets.Dataset.from_list(
            [{"query-id": q, "corpus-id": d, "score": float(grade)} for q, judged in qrels.items() for d, grade in judged.items()]
        )
        for split, qrels in QRELS.items()
    }
    return {
        "corpus": datasets.DatasetDict({"corpus": datasets.Dataset.from_list(records(Document, "_id", "text"))}),
        "queries": datasets.Dataset.from_list(records(Query, "_id", "text")),
        "default": datasets.DatasetDict(qrels),
    }


def make_hugging_face(folder: Path) -> None:
    for name, part in hugging_face_parts().items():
        part.save_to_disk(str(folder / name))


def make_hugging_face_split_folders(folder: Path) -> None:
    parts = hugging_face_parts()
    parts["corpus"]["corpus"].save_to_disk(str(folder / "corpus"))
    parts["queries"].save_to_disk(str(folder / "queries"))
    for split, table in parts["default"].items():
        table.save_to_disk(str(folder / "qrels" / split))


MAKERS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "beir": ("beir", make_beir),
    "beir, gzip": ("beir", make_beir_gzip),
    "jsonl": ("jsonl", make_jsonl),
    "jsonl, trec qrels": ("jsonl", make_jsonl_with_tables),
    "trec": ("trec", make_trec),
    "trec, tabs": ("trec", make_trec_with_tables),
    "msmarco": ("msmarco", make_msmarco_documents),
    "parquet": ("parquet", make_parquet),
    "parquet, parts": ("parquet", make_parquet_parts),
    "hugging_face": ("hugging_face", make_hugging_face),
    "hugging_face, folders": ("hugging_face", make_hugging_face_split_folders),
}


def opened(source: Path, folder: Path, **settings: Any) -> Collection:
    return open_collection(CollectionSettings(path=source, **settings), folder)


def same_as_expected(collection: Collection) -> None:
    assert list(collection.documents()) == DOCUMENTS
    assert {split: collection.qrels(split) for split in collection.splits} == QRELS
    assert collection.queries("train") == {"q1": QUERIES["q1"]}
    assert collection.queries("test") == {"q2": QUERIES["q2"]}
    assert collection.queries("of no qrels") == QUERIES


@pytest.mark.parametrize("made", MAKERS)
def test_every_format_gives_the_same_collection(made: str, tmp_path: Path) -> None:
    name, make = MAKERS[made]
    source = tmp_path / "source"
    source.mkdir()
    make(source)
    assert readers.recognise(source) == name
    collection = opened(source, tmp_path / "prepared")
    same_as_expected(collection)
    assert collection.name == "source"
    assert opened(source, tmp_path / "again", format=name).fingerprint == collection.fingerprint


def test_fingerprints_do_not_depend_on_the_format(tmp_path: Path) -> None:
    found = set()
    for number, (_, make) in enumerate(MAKERS.values()):
        source = tmp_path / f"source{number}"
        source.mkdir()
        make(source)
        collection = opened(source, tmp_path / f"prepared{number}")
        found.add((collection.fingerprint, collection.queries_fingerprint("train"), collection.queries_fingerprint("test")))
    assert len(found) == 1


def test_msmarco_tables_of_two_columns_have_no_titles(tmp_path: Path) -> None:
    write_lines(tmp_path / "s" / "collection.tsv", ["1\tone text", "2\tanother"])
    collection = opened(tmp_path / "s", tmp_path / "p")
    assert list(collection.documents()) == [Document("1", "one text"), Document("2", "another")]
    assert collection.splits == ()


def test_a_query_that_stands_in_two_msmarco_splits_comes_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "s" / "collection.tsv", ["1\tone"])
    write_lines(tmp_path / "s" / "queries.dev.tsv", ["7\tseven", "8\teight"])
    write_lines(tmp_path / "s" / "queries.dev.small.tsv", ["7\tseven"])
    write_lines(tmp_path / "s" / "qrels.dev.small.tsv", ["7\t0\t1\t1"])
    collection = opened(tmp_path / "s", tmp_path / "p")
    assert [query.query_id for query in collection.all_queries()] == ["7", "8"]
    assert collection.qrels("dev.small") == {"7": {"1": 1}}


def test_an_msmarco_query_with_two_texts_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "s" / "collection.tsv", ["1\tone"])
    write_lines(tmp_path / "s" / "queries.dev.tsv", ["7\tseven"])
    write_lines(tmp_path / "s" / "queries.train.tsv", ["6\tsix", "7\tanother seven"])
    with pytest.raises(DataError, match=r"queries\.train\.tsv:2: the query id 7 stands already at .*queries\.dev\.tsv:1"):
        opened(tmp_path / "s", tmp_path / "p")


def test_an_msmarco_line_with_three_fields_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "s" / "collection.tsv", ["1\tone", "2\ttwo\tthree"])
    with pytest.raises(DataError, match=r"collection\.tsv:2: the line has 3 tab-separated fields; allowed: 2 \(id, text\) or 4 \(id, url, title, body\)"):
        opened(tmp_path / "s", tmp_path / "p")


def test_trec_markup_entities_and_headers_are_taken_out(tmp_path: Path) -> None:
    lines = ["<doc>", "<docno>A-1</docno>", "<DOCHDR>", "http://x", "</DOCHDR>", "<html><title>A &amp; B</title>", "<p>1 &lt; 2 <b>and</b> 3 < 4</p>", "</doc>"]
    write_lines(tmp_path / "s" / "docs.sgml", lines)
    assert list(opened(tmp_path / "s", tmp_path / "p").documents()) == [Document("A-1", "1 < 2 and 3 < 4", "A & B")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["<DOC>", "<DOCNO>1</DOCNO>", "</DOC>", "<DOC>", "cut"], r"docs:4: the <DOC> that begins here has no </DOC>"),
        (["<DOC>", "<DOC>", "</DOC>"], r"docs:1: a <DOC> must begin here and end before the next one"),
        (["<DOC>", "words", "</DOC>"], r"docs:1: the document has no <DOCNO>"),
        (["<DOC><DOCNO>1</DOCNO></DOC>", "stray", "<DOC><DOCNO>2</DOCNO></DOC>"], r"docs:2: a <DOC> must begin here"),
    ],
)
def test_broken_trec_documents_are_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "s" / "docs", lines)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "s", tmp_path / "p")


def test_a_trec_topic_without_title_takes_its_description(tmp_path: Path) -> None:
    write_lines(tmp_path / "s" / "docs", ["<DOC><DOCNO>1</DOCNO>text</DOC>"])
    write_lines(tmp_path / "s" / "topics", ["<top>", "<num>7</num>", "<desc> Description:", "what is it", "<narr> Narrative: long", "</top>"])
    assert list(opened(tmp_path / "s", tmp_path / "p").all_queries()) == [Query("7", "what is it")]


def test_conversations_become_queries_with_their_earlier_turns(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "s" / "corpus.jsonl", [{"_id": "d", "text": "t"}])
    turn = {"id": "c_2", "history": [{"speaker": "user", "text": "first"}, {"speaker": "agent", "text": "answer"}], "utterance": "and then?", "rewrite": None}
    write_jsonl(tmp_path / "s" / "conversations.jsonl", [turn])
    write_lines(tmp_path / "s" / "qrels" / "test.tsv", ["c_2\td\t1"])
    collection = opened(tmp_path / "s", tmp_path / "p")
    assert collection.queries("test") == {"c_2": Query("c_2", "and then?", (Turn("user", "first"), Turn("agent", "answer")))}


def test_a_single_file_of_json_lines_is_a_collection_without_queries(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "notes.jsonl", [{"id": 17, "text": "seventeen", "title": None}])
    collection = opened(tmp_path / "notes.jsonl", tmp_path / "p")
    assert (collection.name, list(collection.documents()), list(collection.all_queries())) == ("notes", [Document("17", "seventeen")], [])


def test_a_single_parquet_file_is_a_collection_without_queries(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "text": ["one"], "vector": [[0.5]]}), tmp_path / "notes.parquet")
    assert list(opened(tmp_path / "notes.parquet", tmp_path / "p").documents()) == [Document("1", "one")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["1", None], "text": ["a", "b"]}, r'row 2: the field "id" is null; an id must be a string'),
        ({"id": ["1", "2"], "text": ["a", None]}, r'row 2: the field "text" is null; it must be a string'),
        ({"id": ["1"], "text": [1.5]}, r'row 1: the field "text" is a number; it must be a string'),
        ({"id": ["1"], "title": ["a"]}, r"row 1: there is no field text or contents or body; the record has id, title"),
    ],
)
def test_wrong_parquet_columns_are_refused(table: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    pq.write_table(pa.table(table), tmp_path / "s" / "documents.parquet")
    with pytest.raises(DataError, match=r"documents\.parquet: " + message):
        opened(tmp_path / "s", tmp_path / "p")


def test_a_parquet_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    make_parquet(tmp_path / "s")
    path = tmp_path / "s" / "documents.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"documents\.parquet: row 1: cannot be read as Parquet"):
        opened(tmp_path / "s", tmp_path / "p")


def test_a_grade_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    make_parquet(tmp_path / "s")
    pq.write_table(pa.table({"query_id": ["q1"], "doc_id": ["d1"], "score": [0.5]}), tmp_path / "s" / "qrels" / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: row 1: the grade 0\.5 is not a whole number"):
        opened(tmp_path / "s", tmp_path / "p")


def test_a_hugging_face_corpus_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    make_hugging_face_split_folders(tmp_path / "s")
    (data,) = (tmp_path / "s" / "corpus").glob("*.arrow")
    data.write_bytes(data.read_bytes()[:40])
    with pytest.raises(DataError, match=r"s: neither a whole dataset on disk nor one that the hub gave"):
        opened(tmp_path / "s", tmp_path / "p")


def test_a_hub_id_is_loaded_by_its_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    parts = hugging_face_parts()

    def load(name: str, configuration: str | None = None) -> Any:
        assert name == "mteb/kitchen"
        return parts[str(configuration)]

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: list(parts))
    monkeypatch.setattr(datasets, "load_dataset", load)
    same_as_expected(opened(Path("mteb/kitchen"), tmp_path / "p", format="hugging_face"))


def test_qrels_in_a_hub_repository_of_their_own_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    parts = hugging_face_parts()
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["corpus", "queries"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, part=None: parts["default"] if name == "BeIR/kitchen-qrels" else parts[str(part)])
    same_as_expected(opened(tmp_path / "BeIR" / "kitchen", tmp_path / "p", format="hugging_face"))


def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(name: str) -> list[str]:
        raise ConnectionError(f"no route\nto {name}")

    monkeypatch.setattr(datasets, "get_dataset_config_names", fail)
    with pytest.raises(
        DataError, match=r"^mteb/kitchen: neither a whole dataset on disk nor one that the hub gave \(ConnectionError: no route to mteb/kitchen\)$"
    ):
        opened(Path("mteb/kitchen"), tmp_path / "p", format="hugging_face")


def test_a_registered_ir_datasets_id_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_datasets

    write_lines(tmp_path / "documents.tsv", [f"{d.doc_id}\t{d.text}" for d in DOCUMENTS])
    write_lines(tmp_path / "queries.tsv", [f"{q.query_id}\t{q.text}" for q in QUERIES.values()])
    monkeypatch.setattr(ir_datasets.registry, "_registered", dict(ir_datasets.registry._registered))
    ir_datasets.registry.register("kitchen", ir_datasets.create_dataset(docs_tsv=str(tmp_path / "documents.tsv")))
    for split in QRELS:
        write_lines(tmp_path / f"{split}.qrels", qrels_lines(split, form="trec"))
        data = ir_datasets.create_dataset(queries_tsv=str(tmp_path / "queries.tsv"), qrels_trec=str(tmp_path / f"{split}.qrels"))
        ir_datasets.registry.register(f"kitchen/{split}", data)
    collection = open_collection(CollectionSettings(ir_datasets="kitchen"), tmp_path / "p")
    assert [document.text for document in collection.documents()] == [document.text for document in DOCUMENTS]
    assert list(collection.all_queries()) == list(QUERIES.values())
    assert {split: collection.qrels(split) for split in collection.splits} == QRELS
    assert readers.reader("ir_datasets").splits(Source("kitchen")) == ("train", "test")


def test_qrels_without_a_split_of_their_own_are_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_datasets

    write_lines(tmp_path / "documents.tsv", ["d1\tone", "d2\ttwo"])
    write_lines(tmp_path / "queries.tsv", ["q2\tsecond"])
    write_lines(tmp_path / "qrels", qrels_lines("test", form="trec"))
    monkeypatch.setattr(ir_datasets.registry, "_registered", dict(ir_datasets.registry._registered))
    paths = {"docs_tsv": tmp_path / "documents.tsv", "queries_tsv": tmp_path / "queries.tsv", "qrels_trec": tmp_path / "qrels"}
    ir_datasets.registry.register("small-kitchen", ir_datasets.create_dataset(**{key: str(path) for key, path in paths.items()}))
    collection = open_collection(CollectionSettings(ir_datasets="small-kitchen"), tmp_path / "p")
    assert (collection.splits, collection.qrels("test")) == (("test",), QRELS["test"])


def test_beir_scifact_comes_from_the_files_that_ir_datasets_keeps(tmp_path: Path) -> None:
    make_beir(tmp_path / "scifact")
    archive = tmp_path / "home" / "beir" / "scifact" / "source.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as stream:
        for path in (tmp_path / "scifact").rglob("*.*"):
            stream.write(path, path.relative_to(tmp_path))
    program = """
import json, sys
from pathlib import Path
from retriever.collection import open_collection
from retriever.settings.collection import CollectionSettings
collection = open_collection(CollectionSettings(ir_datasets="beir/scifact", train="train", test="test"), Path(sys.argv[1]))
queries = {split: list(collection.queries(split)) for split in collection.splits}
qrels = {split: collection.qrels(split) for split in collection.splits}
print(json.dumps([collection.name, [[d.doc_id, d.text, d.title] for d in collection.documents()], queries, qrels]))
"""
    environment = {**os.environ, "IR_DATASETS_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "p")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = ["beir/scifact", [[d.doc_id, d.text, d.title] for d in DOCUMENTS], {"train": ["q1"], "test": ["q2"]}, QRELS]
    assert json.loads(done.stdout) == expected


def test_an_unknown_ir_datasets_id_names_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'^ir_datasets knows no id "beir/scifcat"\. Near it are .*beir/scifact'):
        open_collection(CollectionSettings(ir_datasets="beir/scifcat"), tmp_path / "p")


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_datasets

    monkeypatch.setattr(ir_datasets.registry, "_registered", dict(ir_datasets.registry._registered))
    ir_datasets.registry.register("gone", ir_datasets.create_dataset(docs_tsv=str(tmp_path / "absent.tsv")))
    with pytest.raises(DataError, match=r'^ir_datasets "gone": the library could not fetch or read it \(.*absent\.tsv.*\)$'):
        open_collection(CollectionSettings(ir_datasets="gone"), tmp_path / "p")


def test_a_folder_of_no_format_is_refused_with_what_was_found_and_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.md").touch()
    with pytest.raises(
        DataError, match=r"holds notes\.md, photos/, which is no collection\. Allowed layouts are beir: corpus\.jsonl.*; files: .*; msmarco: .*; trec: "
    ) as caught:
        readers.recognise(tmp_path)
    assert "\n" not in str(caught.value)
    assert "ir_datasets" not in str(caught.value)


def test_texts_and_markdown_become_documents_with_titles_and_parts(tmp_path: Path) -> None:
    source = tmp_path / "notes"
    (source / "my garden").mkdir(parents=True)
    (source / ".hidden").mkdir()
    (source / ".hidden" / "secret.md").write_text("secret", encoding="utf-8")
    (source / "my garden" / "bees.md").write_text("# Bees\n\nThey make *honey*.\n", encoding="utf-8")
    (source / "list.txt").write_bytes("\ufeff# no heading\nmilk".encode())
    (source / "empty.txt").touch()
    (source / "photo.png").write_bytes(b"x")
    paragraphs = [" ".join(f"{letter}{number}" for number in range(90)) for letter in "abc"]
    (source / "long.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    assert readers.recognise(source) == "files"
    collection = opened(source, tmp_path / "prepared")
    assert list(collection.documents()) == [
        Document("list.txt", "# no heading\nmilk", "list"),
        Document("long.txt#1", "\n\n".join(paragraphs[:2]), "long"),
        Document("long.txt#2", paragraphs[2], "long"),
        Document("my_garden/bees.md", "They make *honey*.", "Bees"),
    ]
    assert (collection.splits, list(collection.all_queries())) == ((), [])
    (source / "latin.txt").write_bytes("café".encode("latin1"))
    with pytest.raises(DataError, match=r"latin\.txt: byte 4 is not UTF-8"):
        opened(source, tmp_path / "prepared")


def test_a_paragraph_longer_than_a_part_is_cut_between_words() -> None:
    words = [str(number) for number in range(450)]
    assert [len(part.split()) for part in files.parts(" ".join(words))] == [200, 200, 50]
    assert " ".join(files.parts(" ".join(words))).split() == words


def test_a_read_me_beside_the_files_of_a_format_is_no_collection(tmp_path: Path) -> None:
    make_trec(tmp_path)
    (tmp_path / "README.md").write_text("How this was made.", encoding="utf-8")
    assert readers.recognise(tmp_path) == "trec"


def test_an_empty_folder_is_called_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is an empty folder, which is no collection"):
        readers.recognise(tmp_path)


def test_files_of_two_formats_are_refused(tmp_path: Path) -> None:
    make_beir(tmp_path)
    make_jsonl(tmp_path)
    with pytest.raises(DataError, match=r'has the files of several formats: beir, jsonl\. Choose one with collection\.format = "beir"'):
        readers.recognise(tmp_path)
    assert opened(tmp_path, tmp_path / "p", format="jsonl").qrels("test") == QRELS["test"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for settings in ({}, {"format": "trec"}):
        with pytest.raises(DataError, match=r"absent: there is no such folder or file"):
            opened(tmp_path / "absent", tmp_path / "p", **settings)


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    known = r"beir, captions, files, .*, msmarco, mtrag, parquet, .*, trec, trec_cast, trec_ikat, webdataset"
    with pytest.raises(ConfigError, match=rf'collection\.format = "bier" is unknown; allowed: {known}'):
        opened(tmp_path, tmp_path / "p", format="bier")


@pytest.mark.parametrize(
    ("name", "file"),
    [("captions", "captions.jsonl"), ("beir", "corpus.jsonl"), ("jsonl", "documents.jsonl"), ("msmarco", "collection.tsv"), ("parquet", "documents.parquet")],
)
def test_a_format_that_the_folder_lacks_names_the_missing_file(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"there is no {file}"):
        opened(tmp_path, tmp_path / "p", format=name)


def test_every_file_is_a_whole_reader() -> None:
    images: tuple[Reader, ...] = (captions, hugging_face_images, webdataset)  # mypy compares the signatures
    documents: tuple[Reader, ...] = (beir, files, hugging_face, ir_datasets_reader, jsonl, msmarco, parquet, trec)
    topics: tuple[Reader, ...] = (mtrag, qrecc, topiocqa, trec_cast, trec_ikat)
    every = (*images, *documents, *topics)
    assert {module.__name__.rpartition(".")[2] for module in topics if isinstance(module, ModuleType)} == set(readers.TOPICS)
    assert {module.__name__.rpartition(".")[2] for module in every if isinstance(module, ModuleType)} == set(readers.formats())


def test_documents_are_read_one_by_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl", [json.dumps({"_id": "d1", "text": "first"}), "not JSON"])
    documents = readers.reader("beir").documents(Source(str(tmp_path)))
    assert next(documents) == (f"{tmp_path / 'corpus.jsonl'}:1", Document("d1", "first"))
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: malformed JSON"):
        next(documents)
