"""Score files of other frameworks: what is read of each, what is written again, and what a mistake in one is called."""

import gzip
import json
import pickle  # noqa: TID251 (makes what other programs write; the package reads none with it)
import tempfile
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.collection import open_collection
from retriever.config import read_experiment
from retriever.errors import ConfigError, DataError
from retriever.files import text_hash
from retriever.formats import Pair, format_named, formats, recognise
from retriever.formats._json_object import entries
from retriever.formats._lines import id_of
from retriever.pipeline import Pipeline
from retriever.runs import Run, read_qrels, unit_of
from retriever.scores.exchange import export_scores, import_scores
from retriever.settings.collection import CollectionSettings
from tests.tiny_experiment import command, write_experiment

SAMPLES = Path(__file__).parent / "data" / "formats"
PUBLIC = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "formats"

TEXT_OF = {
    "q1": "animals of the night",
    "q2": "tools for wood",
    "d1": "owls see well in the dark",
    "d2": "a hammer drives nails",
    "d3": "moths fly at night",
    "d4": "saws cut wood",
}
BY_TEXT = {key: id_of(text) for key, text in TEXT_OF.items()}
SCORES = {"q1": {"d1": 3.5, "d3": 0.5, "d2": -1.25}, "q2": {"d4": 12.75, "d1": -8.0}}
POSITIVES = {"q1": {"d1": 1}, "q2": {"d4": 1}}
GRADES = {"q1": {"d1": 1, "d2": 0}, "q2": {"d4": 2}}
ORDER = {"q1": {"d1": -1.0, "d3": -2.0, "d2": -3.0}, "q2": {"d4": -1.0, "d1": -2.0}}
Lists = dict[str, dict[str, float]]
Value = TypeVar("Value", int, float)


def by_text(lists: dict[str, dict[str, Value]]) -> dict[str, dict[str, Value]]:
    """The same lists under the ids that are made from texts."""
    return {BY_TEXT[query_id]: {BY_TEXT[doc_id]: score for doc_id, score in documents.items()} for query_id, documents in lists.items()}


EXPECTED: dict[str, tuple[Lists | None, dict[str, dict[str, int]]]] = {
    "trec_run": (SCORES, {}),
    "trec_qrels": (None, GRADES),
    "margin_mse": (SCORES, POSITIVES),
    "colbert_nway": (SCORES, POSITIVES),
    "colbert_scores": (SCORES, {}),
    "colbert_run": (SCORES, {}),
    "pylate": (SCORES, {}),
    "st_hard_negatives": ({"q1": {"d1": -1, "d3": -2, "d2": -3, "d5": -4}, "q2": ORDER["q2"]}, POSITIVES),
    "disco": (SCORES, {}),
    "disco_qrels": (None, GRADES),
    "flagembedding": (by_text(SCORES), by_text(POSITIVES)),
    "tevatron": (SCORES, POSITIVES),
    "tevatron_scores": (SCORES, {}),
    "msmarco_triples": (by_text({"q1": {"d1": -1, "d3": -2, "d2": -4}, "q2": ORDER["q2"]}), by_text(POSITIVES)),
    "msmarco_id_triples": ({"q1": {"d1": -1, "d3": -2, "d2": -4}, "q2": ORDER["q2"]}, POSITIVES),
}
"""Format -> run and qrels of its sample; the place of a document in a file of triples counts every mention."""


def sample_of(name: str) -> Path:
    return next(SAMPLES.glob(f"{name}.*"))


def held(path: Path, folder: Path, name: str | None = None) -> tuple[Lists | None, dict[str, dict[str, int]]]:
    """What an import of a file leaves on the disk."""
    imported = import_scores(path, folder / "run.parquet", name)
    return Run.read_parquet(imported.run).to_dict() if imported.run else None, read_qrels(imported.qrels) if imported.qrels else {}


def test_every_format_that_is_written_has_a_sample_here() -> None:
    assert set(EXPECTED) == {name for name in formats() if hasattr(format_named(name), "write")}
    assert set(formats()) - set(EXPECTED) == {"st_scores"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sample_is_recognised_and_read(name: str, tmp_path: Path) -> None:
    expected = "disco, disco_qrels" if name == "disco_qrels" else name
    if name == "disco_qrels":
        with pytest.raises(DataError, match=r"could be of several formats \(disco: .*; disco_qrels: .*\)\. Choose one with --format disco"):
            recognise(sample_of(name))
    else:
        assert recognise(sample_of(name)) == expected
    run, qrels = held(sample_of(name), tmp_path, name)
    assert (run, qrels) == EXPECTED[name]
    assert run is None or {query_id: list(documents) for query_id, documents in run.items()} == {
        query_id: list(documents) for query_id, documents in (EXPECTED[name][0] or {}).items()
    }


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_what_is_read_is_written_and_read_again_the_same(name: str, ending: str, tmp_path: Path) -> None:
    if name == "msmarco_id_triples":
        lists = {"q1": [("d1", 1), ("d3", None), ("d2", None)], "q2": [("d4", 1), ("d1", None)]}
        pairs = [Pair("", query_id, doc_id, None, grade) for query_id, listed in lists.items() for doc_id, grade in listed]
    else:
        pairs = list({(pair.query_id, pair.doc_id): pair for pair in [*format_named(name).read(sample_of(name))][::-1]}.values())[::-1]
    written = format_named(name).write(tmp_path / f"again{ending}", pairs, "bm25")
    assert written == 2
    again = [pair._replace(where="") for pair in format_named(name).read(tmp_path / f"again{ending}")]
    first = [pair._replace(where="") for pair in format_named(name).read(sample_of(name))]
    assert set(again) == set(first)
    assert ((tmp_path / f"again{ending}").read_bytes()[:2] == b"\x1f\x8b") == (ending == ".gz")


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public samples are not here")
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("trec.run", "trec_run"),
        ("trec.qrels", "trec_qrels"),
        ("margin_mse.t2.tsv", "margin_mse"),
        ("colbert_nway.jsonl", "colbert_nway"),
        ("colbert_distillation_scores.jsonl", "colbert_scores"),
        ("pylate_kd.jsonl", "pylate"),
        ("st_hard_negatives.jsonl", "st_hard_negatives"),
        ("disco_run.json", "disco"),
    ],
)
def test_the_public_samples_are_read_and_written_again(file: str, name: str, tmp_path: Path) -> None:
    assert recognise(PUBLIC / file) == name
    pairs = list(format_named(name).read(PUBLIC / file))
    format_named(name).write(tmp_path / "again", pairs, "elser")
    assert {pair[1:] for pair in format_named(name).read(tmp_path / "again")} == {pair[1:] for pair in pairs}
    if "scores" in format_named(name).HOLDS:
        best = {(pair.query_id.split("::>")[1], pair.doc_id): pair.score for pair in pairs}
        assert best["2", "822086267_6698-7277-0-579"] == 22.761951


IDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6).filter(lambda text: text.split() == [text])
RUNS = st.dictionaries(IDS, st.dictionaries(IDS, st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4), min_size=1, max_size=4)


@pytest.mark.parametrize("name", ["trec_run", "colbert_scores", "colbert_run", "pylate", "disco"])
@settings(max_examples=30, deadline=None)
@given(lists=RUNS)
def test_any_ids_and_scores_come_back_exactly(name: str, lists: Lists) -> None:
    pairs = [Pair("", query_id, doc_id, score) for query_id, documents in lists.items() for doc_id, score in documents.items()]
    with tempfile.TemporaryDirectory() as folder:
        format_named(name).write(Path(folder) / "file", pairs, "a name")
        again = list(format_named(name).read(Path(folder) / "file"))
    assert [(pair.query_id, pair.doc_id, np.float32(pair.score or 0.0)) for pair in again] == [
        (pair.query_id, pair.doc_id, np.float32(pair.score or 0.0)) for pair in pairs
    ]


# Telling formats apart


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("[1, [7, 3.5], [8, -1.0]]", "colbert_nway"),
        ("[1, [[3.5, 7], [-1.0, 8]]]", "colbert_scores"),
        ('["1", ["7", 3]]', "colbert_nway"),
        ('["1", [[3, "7"]]]', "colbert_scores"),
        ("[1, 7, 8]", "colbert_nway"),
        ("1 Q0 7 1 3.5 tag", "trec_run"),
        ("1\t0\t7\t1\t3.5\ttag", "trec_run"),
        ("query-id\tcorpus-id\tscore\n1\t7\t1", "trec_qrels"),
        ("1 7 1\n1 8 2\n2 7 1", "colbert_run"),
        ("1\t7\t0\t3.5\n1\t8\t1\t3.0", "colbert_run"),
        ("1\t7\t8\n1\t7\t9", "msmarco_id_triples"),
        ("-0.5\t1e-3\t1\t7\t8", "margin_mse"),
    ],
)
def test_formats_are_told_apart(line: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(f"{line}\n", encoding="utf-8")
    assert recognise(tmp_path / "file") == name
    assert list(format_named(name).read(tmp_path / "file"))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("[1, [7, 3], [8, 2]]", ["colbert_nway", "colbert_scores"]),
        ("[1, [[7, 3], [8, 2]]]", ["colbert_nway", "colbert_scores"]),
        ("1\t7\t1", ["colbert_run", "msmarco_id_triples"]),
        ('{"1": {"7": 1}}', ["disco", "disco_qrels"]),
    ],
)
def test_a_file_that_could_be_of_two_formats_is_refused_and_both_are_named(content: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text(f"{content}\n", encoding="utf-8")
    said = command("import", tmp_path / "file", "--out", tmp_path / "run.parquet")
    layouts = "; ".join(f"{name}: {format_named(name).LAYOUT}" for name in names)
    assert said.error == f"{tmp_path}/file: could be of several formats ({layouts}). Choose one with --format {names[0]}"
    for name in names:
        assert command("import", tmp_path / "file", "--out", tmp_path / f"{name}.parquet", "--format", name).status == 0


def test_the_order_of_score_and_document_is_the_formats(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[1, [7, 3], [8, 2]]\n", encoding="utf-8")
    assert held(tmp_path / "file", tmp_path, "colbert_nway")[0] == {"1": {"7": 3.0, "8": 2.0}}
    assert held(tmp_path / "file", tmp_path, "colbert_scores")[0] == {"1": {"3": 7.0, "2": 8.0}}


@pytest.mark.parametrize("content", ["", "\n\n", "hello\n", '{"a": 1}\n', "[1]\n", "1 2\n"])
def test_a_file_of_no_known_format_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content, encoding="utf-8")
    assert "which is no known format. Name one with --format: colbert_nway, " in command("import", tmp_path / "file", "--out", tmp_path / "run.parquet").error


# Mistakes


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("trec_run", "q1 Q0 d9 4 1.5", ":6: the line has 5 fields; allowed: 6 (query Q0 document rank score tag)"),
        ("trec_run", "q1 Q0 d9 4 high ce", ':6: the score "high" is not a finite number'),
        ("trec_run", "q1 Q0 d9 4 nan ce", ':6: the score "nan" is not a finite number'),
        ("trec_run", "q1 Q0 d9 4 1e39 ce", ":6: the score 1e+39 is beyond what 32 bits hold"),
        ("trec_run", "q1 Q0 d1 4 -3.5 ce", ":6: query q1 and document d1 have the score -3.5, but 3.5 at {path}:1. Keep one of the two"),
        ("trec_qrels", "q1 0 d9 yes", ':4: the grade "yes" is not a whole number'),
        ("trec_qrels", "q1 0 d1 0", ":4: query q1 and document d1 have grade 0, but 1 before. Keep one of the two"),
        ("margin_mse", "1.5\t2.5\tq1\td9", ":4: the line has 4 fields; allowed: 5"),
        ("colbert_nway", '["q3", [3.5, "d1"]]', ":3: [3.5, 'd1'] does not begin with a document's id. Scores come first in the format colbert_scores"),
        ("colbert_nway", '["q3", ["d1", 3.5, 1]]', ":3: ['d1', 3.5, 1] is no pair of a document and its score"),
        ("colbert_nway", '["q3"]', ":3: the line is no list of a query and its documents"),
        ("colbert_nway", '["q3", ["d1", 3.5]', ":3: malformed JSON ("),
        ("colbert_scores", '["q3", [["d1", 3.5]]]', ":3: ['d1', 3.5] does not begin with a score. Documents come first in the format colbert_nway"),
        ("colbert_run", "q3\td1\tone", ':6: the score "one" is not a finite number'),
        ("pylate", '{"query_id": "q3", "document_ids": ["d1"], "scores": [1, 2]}', ':3: "scores" has 2 scores for 1 documents'),
        ("pylate", '{"query_id": "q3", "document_ids": ["d1"]}', ':3: the key "scores" is missing; the object has query_id, document_ids'),
        ("pylate", '{"query_id": "q 3", "document_ids": ["d1"], "scores": [1]}', ":3: the id 'q 3' contains white space"),
        ("pylate", '{"query_id": 1.5, "document_ids": ["d1"], "scores": [1]}', ":3: the id 1.5 is neither a string nor a whole number"),
        ("st_hard_negatives", '{"qid": 1, "pos": [2], "neg": [3]}', ':3: "neg" is list; it must be an object with a list for each system'),
        ("flagembedding", '{"query": "", "pos": ["a"], "neg": []}', ':3: the query is ""; it must be a text'),
        ("flagembedding", '{"query": "a", "pos": ["b"], "neg": []}', ":3: some pairs of the file have scores and others have none"),
        ("tevatron", '{"query_id": "q3", "query": "a", "positive_passages": ["b"]}', ':3: a document is str; it must be an object with "text"'),
        ("tevatron", '{"query_id": "q1", "query": "b", "positive_passages": [{"text": "c", "score": 1}]}', ":3: the query q1 has another text than before"),
        ("tevatron_scores", '{"query": "a", "passages": [{"docid": "d1", "text": "b"}], "scores": [1]}', ":3: the document d1 has another text than before"),
        ("msmarco_triples", "query\tpositive", ":4: the line has 2 fields; allowed: 3"),
        ("msmarco_id_triples", "q1\td1", ":4: the line has 2 fields; allowed: 3"),
        ("disco", '{"q3": {}}', ":3: something follows the object; the file must hold one object"),
    ],
)
def test_a_malformed_line_is_named_and_nothing_is_written(name: str, line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(sample_of(name).read_text(encoding="utf-8") + f"{line}\n", encoding="utf-8")
    (tmp_path / "out").mkdir()
    said = command("import", path, "--format", name, "--out", tmp_path / "out" / "run.parquet")
    assert said.error.startswith(f"{path}{message.format(path=path)}")
    assert [*(tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "trec"], 'the format "trec" is unknown; known are colbert_nway, '),
        (["--unit", "points"], "--unit points: unknown; known are logit, "),
    ],
)
def test_unknown_names_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    assert command("import", sample_of("trec_run"), "--out", tmp_path / "run.parquet", *options).error.startswith(message)


def test_a_unit_of_scores_that_are_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='has no scores, so that they cannot be in "logit"'):
        import_scores(sample_of("msmarco_id_triples"), tmp_path / "run.parquet", unit="logit")


@pytest.mark.parametrize(("file", "out"), [("ce.trec", "ce.trec"), ("a.qrels", "a.parquet")])
def test_a_file_is_not_overwritten_by_its_own_import(file: str, out: str, tmp_path: Path) -> None:
    content = sample_of("trec_run" if file == "ce.trec" else "trec_qrels").read_bytes()
    (tmp_path / file).write_bytes(content)
    assert command("import", tmp_path / file, "--out", tmp_path / out).error.endswith(
        "would be overwritten by what is made of it. Name another file with --out"
    )
    assert (tmp_path / file).read_bytes() == content


def test_a_missing_and_a_cut_file_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in command("import", tmp_path / "none", "--out", tmp_path / "run.parquet").error
    (tmp_path / "cut.gz").write_bytes(gzip.compress(sample_of("trec_run").read_bytes() * 100)[:-20])
    assert "cut.gz" in command("import", tmp_path / "cut.gz", "--out", tmp_path / "run.parquet").error


# What an import leaves


def test_unit_and_name_are_kept_in_the_run(tmp_path: Path) -> None:
    imported = import_scores(sample_of("pylate"), tmp_path / "ce.parquet", unit="logit")
    assert (unit_of(tmp_path / "ce.parquet"), Run.read_parquet(tmp_path / "ce.parquet").name) == ("logit", "pylate")
    assert (imported.queries, imported.pairs, imported.repeated, imported.scored, imported.unit) == (2, 5, 0, True, "logit")
    assert (imported.qrels, imported.texts) == (None, None)


def test_a_margin_is_kept_as_both_scores_and_a_pair_of_many_lines_once(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("3.5\t1.0\tq1\td1\td2\n3.5001\t0.5\tq1\td1\td3\n", encoding="utf-8")  # half precision repeats with other last digits
    imported = import_scores(tmp_path / "t", tmp_path / "run.parquet")
    assert Run.read_parquet(tmp_path / "run.parquet").to_dict() == {"q1": {"d1": 3.5, "d2": 1.0, "d3": 0.5}}
    assert (imported.pairs, imported.repeated) == (3, 1)


def test_texts_become_a_collection(tmp_path: Path) -> None:
    imported = import_scores(sample_of("flagembedding"), tmp_path / "flag.parquet")
    assert imported.texts == tmp_path / "flag-texts"
    collection = open_collection(CollectionSettings(path=imported.texts), tmp_path / "prepared")
    assert {document.doc_id: document.full_text for document in collection.documents()} == {BY_TEXT[key]: TEXT_OF[key] for key in ("d1", "d2", "d3", "d4")}
    assert {query.query_id: query.text for query in collection.all_queries()} == {BY_TEXT[key]: TEXT_OF[key] for key in ("q1", "q2")}
    assert collection.qrels("train") == by_text(POSITIVES)
    assert collection.splits == ("train",)
    assert BY_TEXT["q1"] == f"{text_hash('animals of the night'):016x}"


def test_titles_and_ids_of_tevatron_are_kept(tmp_path: Path) -> None:
    import_scores(sample_of("tevatron"), tmp_path / "t.parquet")
    corpus = [json.loads(line) for line in (tmp_path / "t-texts" / "corpus.jsonl").read_text().splitlines()]
    assert corpus[0] == {"_id": "d1", "title": "owls", "text": "see well in the dark"}
    assert [record["_id"] for record in corpus] == ["d1", "d3", "d2", "d4"]


def test_something_else_in_the_place_of_the_texts_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t-texts").mkdir()
    (tmp_path / "t-texts" / "diary.txt").write_text("mine")
    with pytest.raises(DataError, match="t-texts: is in the way"):
        import_scores(sample_of("tevatron"), tmp_path / "t.parquet")
    assert (tmp_path / "t-texts" / "diary.txt").read_text() == "mine"


def test_the_command_says_what_there_is_and_what_is_next(tmp_path: Path) -> None:
    said = command("import", sample_of("margin_mse"), "--out", tmp_path / "ce.parquet", "--json")
    assert json.loads(said.out) == {
        "format": "margin_mse",
        "queries": 2,
        "pairs": 5,
        "repeated": 1,
        "scored": True,
        "unit": None,
        "run": f"{tmp_path}/ce.parquet",
        "qrels": f"{tmp_path}/ce.qrels",
        "texts": None,
    }
    assert said.err.startswith(f'next: in the experiment file, candidates.sources = ["{tmp_path}/ce.parquet"], and\n[[teacher]]\nkind = "run"\n')
    said = command("import", sample_of("trec_run"), "--out", tmp_path / "ce.parquet", "--unit", "logit")
    assert said.out == f"{tmp_path}/ce.parquet: 2 queries, 5 pairs (trec_run, with scores)\n"
    assert "unit" not in said.err


# Pickles, read as data


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "scores",
    [
        {7: {8: 1.5, 9: -2.25}, 10: {8: 0.5}},
        {7: {8: np.float32(1.5), 9: np.float32(-2.25)}, 10: {8: np.float32(0.5)}},
        {"7": {"8": 1.5, "9": -2.25}, "10": {"8": np.float64(0.5)}},
    ],
)
def test_a_pickle_of_scores_is_read_as_data(scores: object, protocol: int, tmp_path: Path) -> None:
    (tmp_path / "scores.pkl.gz").write_bytes(gzip.compress(pickle.dumps(scores, protocol)))
    assert recognise(tmp_path / "scores.pkl.gz") == "st_scores"
    assert held(tmp_path / "scores.pkl.gz", tmp_path)[0] == {"7": {"8": 1.5, "9": -2.25}, "10": {"8": 0.5}}


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(), st.dictionaries(st.integers(), st.floats(allow_nan=False, allow_infinity=False), min_size=1), min_size=1))
def test_any_table_of_numbers_is_read_as_it_was_written(scores: dict[int, dict[int, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.pkl"
        path.write_bytes(pickle.dumps(scores))
        pairs = list(format_named("st_scores").read(path))
    expected = [(str(query), str(document), score) for query, documents in scores.items() for document, score in documents.items()]
    assert [(pair.query_id, pair.doc_id, pair.score) for pair in pairs] == expected


class Malicious:
    """Makes a file when a pickle of it is read as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_runs_nothing_and_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scores.pkl").write_bytes(pickle.dumps({7: {8: Malicious(tmp_path / "harm")}}))
    with pytest.raises(DataError, match=r"this pickle holds more than a table of scores .* which could run code"):
        held(tmp_path / "scores.pkl", tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content", [pickle.dumps([1, 2]), pickle.dumps({7: 8.0}), pickle.dumps({7: {8: [1.0]}}), pickle.dumps({7: {8: 1.0}})[:-9], b"\x80\x04."]
)
def test_another_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "scores.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"scores\.pkl"):
        held(tmp_path / "scores.pkl", tmp_path)


# One large JSON object


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_an_object_is_read_in_pieces_of_any_size(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retriever.formats._json_object.CHUNK", chunk)
    value = {"a": {"b": 1.5, "\u00e9\n}": -2e10}, "": {}, 'c"': [1, 234567]}
    for indent in (None, 2):
        (tmp_path / "file").write_text(json.dumps(value, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert {key: found for _, key, found in entries(tmp_path / "file")} == value
    assert [place.rsplit(":", 1)[1] for place, _, _ in entries(tmp_path / "file")] == ["2", "6", "7"]


@pytest.mark.parametrize("content", ["", "{", '{"a"', '{"a": ', '{"a": {}', '{"a": {},}', '{"a": {}} {}', "[]", "{1: {}}", '{"a" {}}', '{"a": {"b": 1.}}'])
def test_a_broken_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"file:1: "):
        list(entries(tmp_path / "file"))


# Export


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, shared_beir_folder: Path, encoder_folder: Path) -> Pipeline:
    folder = tmp_path_factory.mktemp("export")
    return Pipeline(read_experiment(write_experiment(folder, shared_beir_folder, encoder_folder)), folder / "work")


WITH_ALL_PAIRS = [name for name in EXPECTED if "scores" in format_named(name).HOLDS and "positives" not in format_named(name).HOLDS]


@pytest.mark.parametrize("name", WITH_ALL_PAIRS)
@pytest.mark.parametrize("teacher", ["lexical", "ensemble"])
def test_stored_scores_come_back_from_every_format_that_holds_them(pipeline: Pipeline, name: str, teacher: str, tmp_path: Path) -> None:
    exported = export_scores(pipeline, name, tmp_path / "out", teacher)
    run, _ = held(tmp_path / "out", tmp_path, name)
    stored = pipeline.target.runs("train")[teacher].to_dict()
    assert run == stored
    assert (exported.queries, exported.left_out) == (len(stored), 0)


@pytest.mark.parametrize("name", ["margin_mse", "colbert_nway", "tevatron"])
def test_formats_of_positives_hold_the_judged_ones_with_their_scores(pipeline: Pipeline, name: str, tmp_path: Path) -> None:
    export_scores(pipeline, name, tmp_path / "out", "lexical")
    run, qrels = held(tmp_path / "out", tmp_path, name)
    positive = {query_id: {doc_id: 1 for doc_id, grade in judged.items() if grade > 0} for query_id, judged in pipeline.qrels("train").items()}
    assert (run, qrels) == (pipeline.target.runs("train")["lexical"].to_dict(), positive)


@pytest.mark.parametrize("name", ["flagembedding", "msmarco_triples"])
def test_formats_of_texts_hold_the_collections_texts(pipeline: Pipeline, name: str, tmp_path: Path) -> None:
    export_scores(pipeline, name, tmp_path / "out", "lexical")
    pairs = list(format_named(name).read(tmp_path / "out"))
    documents = {document.full_text for document in pipeline.collection.documents()}
    assert {pair.query for pair in pairs} == {query.text for query in pipeline.queries("train").values()}
    assert {pair.document.full_text for pair in pairs if pair.document} <= documents


def test_a_query_that_a_format_cannot_hold_is_left_out_and_counted(tmp_path: Path) -> None:
    pairs = [Pair("", "q1", "d1", 1.0, 1), Pair("", "q1", "d2", 0.5), Pair("", "q2", "d1", 3.0)]
    assert format_named("margin_mse").write(tmp_path / "out", pairs, "x") == 1
    assert (tmp_path / "out").read_text() == "1.0\t0.5\tq1\td1\td2\n"
    with pytest.raises(DataError, match="nothing can be written: this format needs relevant documents"):
        format_named("margin_mse").write(tmp_path / "none", pairs[2:], "x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_export_command(pipeline: Pipeline, tmp_path: Path) -> None:
    file, work = pipeline.folder.parent.parent / "tiny.toml", pipeline.folder.parent
    said = command("export", file, "--format", "trec_run", "--teacher", "lexical", "--split", "test", "--out", tmp_path / "bm25.trec", "--work", work)
    assert said.out == f"{tmp_path}/bm25.trec: 10 queries, scores of lexical as trec_run\n"
    assert Run.read_trec(tmp_path / "bm25.trec").to_dict() == pipeline.target.runs("test")["lexical"].to_dict()


def test_the_tables_of_texts_beside_ids(pipeline: Pipeline, tmp_path: Path) -> None:
    file, work = pipeline.folder.parent.parent / "tiny.toml", pipeline.folder.parent
    said = command("export", file, "--format", "pylate", "--teacher", "lexical", "--out", tmp_path / "kd.jsonl", "--work", work, "--texts", "--json")
    tables = [f"{tmp_path}/kd.queries.jsonl", f"{tmp_path}/kd.documents.jsonl"]
    assert json.loads(said.out)["texts"] == tables
    queries, documents = ([json.loads(line) for line in Path(table).read_text().splitlines()] for table in tables)
    lists = [json.loads(line) for line in (tmp_path / "kd.jsonl").read_text().splitlines()]
    assert {record["query_id"]: record["text"] for record in queries} == {query.query_id: query.text for query in pipeline.queries("train").values()}
    named = {doc_id for record in lists for doc_id in record["document_ids"]}
    texts = {document.doc_id: document.full_text for document in pipeline.collection.documents()}
    assert {record["document_id"]: record["text"] for record in documents} == {doc_id: texts[doc_id] for doc_id in named}
    assert len(documents) == len(named)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "trec"], 'the format "trec" is unknown; known are '),
        (["--format", "st_scores"], 'the format "st_scores" is only read; its scores can be written as trec_run'),
        (["--format", "trec_run"], "there are several teachers; choose one with --teacher: lexical, embedding-student, ensemble"),
        (["--format", "trec_run", "--teacher", "gpt"], 'no teacher is named "gpt"; choose one with --teacher: '),
        (["--format", "trec_run", "--teacher", "lexical", "--split", "dev"], 'there is no split "dev"; allowed are train and test'),
    ],
)
def test_what_cannot_be_exported_is_one_clear_line(pipeline: Pipeline, options: list[str], message: str, tmp_path: Path) -> None:
    file, work = pipeline.folder.parent.parent / "tiny.toml", pipeline.folder.parent
    assert command("export", file, "--out", tmp_path / "out", "--work", work, *options).error.startswith(message)
    assert not (tmp_path / "out").exists()
