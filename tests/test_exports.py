"""What is exported is read back: impacts as Anserini reads them, vectors by stock FAISS."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import ConfigError, RetrieverError, SearchIndexError
from retriever.index import exports
from retriever.index.exports import export_faiss, export_impacts, terms_of, write_topics
from retriever.lucene import java_home, start_java
from retriever.ragged import Ragged
from tests.remote_material import D, N, V, blocks_of, brute_force, documents, encodings_of, facts_of, queries_of

Test = TypeVar("Test", bound=Callable[..., None])
VOCABULARY = ["[PAD]", "", "two words", "Ġthe", "##ing", "“", "字", "a\u00a0b", *(f"t{number}" for number in range(8, V - 1)), "##ing"]


def lucene_is_missing() -> bool:
    try:
        java_home()
    except RetrieverError:
        return True
    return importlib.util.find_spec("pyserini") is None


def needs_lucene(test: Test) -> Test:
    return pytest.mark.lucene(pytest.mark.skipif(lucene_is_missing(), reason="Pyserini or Java is not installed")(test))


def anserini_reads(folder: Path) -> list[dict[str, Any]]:
    """Every line of every file, in the order of the files' names."""
    files = sorted((folder / "collection").iterdir())
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def rounded(encodings: Ragged, row: int, scale: float) -> dict[int, int]:
    some = encodings[np.array([row])].columns
    pairs = zip(some["dimensions"].tolist(), some["values"].tolist(), strict=True)
    return {dimension: round(value * scale) for dimension, value in pairs if round(value * scale)}


# Impacts


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_impacts_are_rounded_weights_under_their_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    monkeypatch.setattr(exports, "FILE_DOCUMENTS", 12)
    encodings, terms = encodings_of("sparse"), terms_of(VOCABULARY)
    assert isinstance(encodings, Ragged)
    manifest = export_impacts(tmp_path / "impacts", blocks_of("sparse"), facts_of("sparse"), VOCABULARY, scale)
    assert [file.name for file in sorted((tmp_path / "impacts" / "collection").iterdir())] == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    read = anserini_reads(tmp_path / "impacts")
    assert [line["id"] for line in read] == [document.doc_id for document in documents()]
    assert [line["contents"] for line in read] == [document.full_text for document in documents()]
    impacts = [rounded(encodings, row, scale) for row in range(N)]
    assert [line["vector"] for line in read] == [{terms[dimension]: impact for dimension, impact in some.items()} for some in impacts]
    assert manifest["weights_rounded_to_0"] == encodings.offsets[-1] - sum(len(some) for some in impacts)
    assert json.loads((tmp_path / "impacts" / "export.json").read_text(encoding="utf-8")) == manifest
    assert (manifest["scale"], manifest["encoder"], manifest["documents"]) == (scale, "student-1", N)
    assert manifest["terms_renamed"] == {"#1": "", "#2": "two words", "#7": "a\u00a0b", f"#{V - 1}": "##ing"}
    assert [path.name for path in tmp_path.iterdir()] == ["impacts"]


def test_topics_repeat_each_term_as_often_as_its_impact_says(tmp_path: Path) -> None:
    queries = Ragged(np.array([0, 3, 3]), {"dimensions": np.array([4, 9, 20], dtype=np.int32), "values": np.array([0.02, 0.031, 0.001], dtype=np.float32)})
    assert write_topics(tmp_path / "topics.tsv", ["q1", "empty"], queries, facts_of("sparse"), VOCABULARY) == 1
    assert (tmp_path / "topics.tsv").read_text(encoding="utf-8") == "q1\t##ing ##ing t9 t9 t9\n"


@given(st.lists(st.text(max_size=4) | st.sampled_from(["#0", "##1", "a" * 300, "😀" * 128, "\ud800", "\u2028"]), max_size=8))
def test_every_term_is_one_word_of_its_own(vocabulary: list[str]) -> None:
    terms = terms_of(vocabulary)
    assert len(set(terms)) == len(terms) == len(vocabulary)
    assert all(term.split() == [term] and len(term.encode("utf-16-le")) <= 510 for term in terms)
    fine = [token for token in vocabulary if token.isalnum() and len(token) < 100 and vocabulary.count(token) == 1]
    assert set(fine) <= set(terms)


def test_what_is_no_sparse_student_or_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"impacts are of a sparse student, and this one is dense"):
        export_impacts(tmp_path / "impacts", blocks_of("dense"), facts_of("dense"), VOCABULARY)
    with pytest.raises(ConfigError, match=r"the vocabulary has 3 terms, and the encodings 40 dimensions"):
        export_impacts(tmp_path / "impacts", blocks_of("sparse"), facts_of("sparse"), ["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"keeps one vector of each document, and the student is sparse"):
        export_faiss(tmp_path / "faiss", blocks_of("sparse"), facts_of("sparse"))
    assert list(tmp_path.iterdir()) == []


@needs_lucene
def test_anserini_indexes_the_impacts_and_scores_by_them(tmp_path: Path) -> None:
    java = start_java()
    export_impacts(tmp_path / "impacts", blocks_of("sparse"), facts_of("sparse"), VOCABULARY)
    ids = [f"q{number}" for number in range(4)]
    write_topics(tmp_path / "topics.tsv", ids, queries_of("sparse"), facts_of("sparse"), VOCABULARY)
    index, run = str(tmp_path / "index"), tmp_path / "run.txt"
    options = "-collection JsonVectorCollection -generator DefaultLuceneDocumentGenerator -impact -pretokenized"
    java("io.anserini.index.IndexCollection").main([*options.split(), "-input", str(tmp_path / "impacts" / "collection"), "-index", index])
    asked = ["-topicReader", "TsvString", "-impact", "-pretokenized", "-topics", str(tmp_path / "topics.tsv"), "-index", index, "-output", str(run)]
    java("io.anserini.search.SearchCollection").main(asked)
    assert_scores_of_impacts(run)


def assert_scores_of_impacts(run: Path) -> None:
    """Each document that shares a term with a query has the inner product of their impacts, in whole numbers."""
    encodings, queries = encodings_of("sparse"), queries_of("sparse")
    assert isinstance(encodings, Ragged)
    assert isinstance(queries, Ragged)
    expected = {}
    for number in range(len(queries)):
        query = rounded(queries, number, 100.0)
        for row, document in enumerate(documents()):
            score = sum(weight * query.get(dimension, 0) for dimension, weight in rounded(encodings, row, 100.0).items())
            if score:
                expected[f"q{number}", document.doc_id] = score
    lines = [line.split() for line in run.read_text(encoding="utf-8").splitlines()]
    assert {(line[0], line[2]): round(float(line[4])) for line in lines} == expected


# FAISS


def test_stock_faiss_opens_the_vectors_and_the_ids_stand_beside_them(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    manifest = export_faiss(tmp_path / "faiss", blocks_of("dense"), facts_of("dense"))
    assert (manifest["documents"], manifest["encoder"]) == (N, "student-1")
    index = faiss.read_index(str(tmp_path / "faiss" / "index"))
    ids = (tmp_path / "faiss" / "docid").read_text(encoding="utf-8").splitlines()
    assert (index.ntotal, index.d, ids) == (N, D, [document.doc_id for document in documents()])
    np.testing.assert_array_equal(index.reconstruct_n(0, N), encodings_of("dense"))
    scores, rows = index.search(queries_of("dense"), 5)
    exact = brute_force("dense", queries_of("dense"), encodings_of("dense"))
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :5], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), scores, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_a_collection_may_have_one_document_or_none(tmp_path: Path, count: int) -> None:
    faiss = pytest.importorskip("faiss")
    export_faiss(tmp_path / "faiss", blocks_of("dense", count), facts_of("dense", count))
    assert faiss.read_index(str(tmp_path / "faiss" / "index")).ntotal == count
    export_impacts(tmp_path / "impacts", blocks_of("sparse", count), facts_of("sparse", count), VOCABULARY)
    assert len(anserini_reads(tmp_path / "impacts")) == count


# Folders


def test_a_stop_or_a_wrong_block_leaves_the_export_before_it_as_it_was(tmp_path: Path) -> None:
    export_faiss(tmp_path / "faiss", blocks_of("dense", 3), facts_of("dense", 3))
    before = {path.name: path.read_bytes() for path in (tmp_path / "faiss").iterdir()}

    def stopped() -> Iterator[Any]:
        yield from blocks_of("dense", 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_faiss(tmp_path / "faiss", stopped(), facts_of("dense", 6))
    for blocks, said in (
        (blocks_of("dense", 3), "3 documents were given, and there should be 6"),
        (blocks_of("dense", 13), "do not fit"),
        (blocks_of("sparse"), "another kind"),
    ):
        with pytest.raises(SearchIndexError, match=said):
            export_faiss(tmp_path / "faiss", blocks, facts_of("dense", 6))
    assert {path.name: path.read_bytes() for path in (tmp_path / "faiss").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["faiss"]
    export_faiss(tmp_path / "faiss", blocks_of("dense", 6), facts_of("dense", 6))
    assert json.loads((tmp_path / "faiss" / "export.json").read_text(encoding="utf-8"))["documents"] == 6


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(SearchIndexError, match=r"is in the way: it holds no export\.json"):
        export_faiss(tmp_path, blocks_of("dense"), facts_of("dense"))
    assert (tmp_path / "thesis.tex").read_text() == "years"
