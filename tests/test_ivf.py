"""The inverted file against numpy and against stock FAISS, a build that stops, and what becomes of damaged files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from retriever.encodings import DocumentEncodings, Vectors
from retriever.errors import ConfigError, SearchIndexError
from retriever.indexing import _lists, ivf
from retriever.indexing._vector_files import digest
from retriever.settings.index import IvfSettings
from tests.vector_material import best, check_complete, clustered, flip, random_matrix, recall, small_integers, stored


class Stopping:
    """Vectors that stop whoever reads behind a row."""

    def __init__(self, vectors: Vectors, last: int) -> None:
        self.vectors, self.last = vectors, last
        self.folder, self.encoder, self.dimensions = vectors.folder, vectors.encoder, vectors.dimensions

    def __len__(self) -> int:
        return len(self.vectors)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        return self.vectors.blocks()

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if len(rows) < len(self) and rows[-1] > self.last:
            raise KeyboardInterrupt
        return self.vectors.rows(rows)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with an index of 500 documents of 8 dimensions in 20 lists of int8 codes, and full vectors."""
    ivf.build(stored(tmp_path / "vectors", random_matrix(500, 8)), tmp_path, IvfSettings(lists=20, probes=3, quantisation="int8", refine=2))
    return tmp_path


def test_what_is_chosen_on_documents_holds_for_other_queries(tmp_path: Path) -> None:
    documents, queries = clustered(4000, 24, seed=1), clustered(300, 24, seed=2)
    told = ivf.build(stored(tmp_path / "vectors", documents), tmp_path, IvfSettings(recall=0.9))
    assert (told["lists"], told["queries"], told["wanted_recall"]) == (253, 300, 0.9)
    assert 0.9 <= told["recall_at_10"] < 1
    assert json.loads((tmp_path / "ivf.json").read_text())["probes"] == told["probes"]
    index = ivf.open_index(tmp_path)
    rows, scores = index.search(queries, 10)
    assert recall(rows, best(queries, documents, 10)) == pytest.approx(told["recall_at_10"], abs=0.05)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, rows, axis=1), atol=1e-5)
    assert (index.effort, index.refine, len(index), index.dimensions) == (told["probes"], 1, 4000, 24)
    assert not (tmp_path / "parts").exists()


@settings(max_examples=25, deadline=None)
@given(
    documents=st.integers(1, 60),
    lists=st.integers(1, 8),
    probes=st.integers(1, 8),
    k=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    seed=st.integers(0, 1000),
)
def test_there_are_never_fewer_than_are_allowed(
    tmp_path_factory: pytest.TempPathFactory, documents: int, lists: int, probes: int, k: int, share: float, seed: int
) -> None:
    folder, matrix, queries = tmp_path_factory.mktemp("index"), small_integers(documents, seed), small_integers(3, seed + 1)
    ivf.build(stored(folder / "vectors", matrix), folder, IvfSettings(lists=min(lists, documents), probes=probes))
    index, everything = ivf.open_index(folder), np.ones(documents, dtype=bool)
    some = np.random.default_rng(seed).random(documents) < share
    for allowed, (rows, scores) in ((everything, index.search(queries, k)), (some, index.search(queries, k, some))):
        check_complete(rows, scores, allowed, k)
        assert np.array_equal(scores, np.take_along_axis(queries @ matrix.T, rows, axis=1))
    index.effort = lists
    rows, scores = index.search(queries, k, some)
    assert np.array_equal(scores, np.take_along_axis(queries @ matrix.T, best(queries, matrix, k, some), axis=1))
    assert np.array_equal(index.encodings(np.arange(documents)), matrix)


@pytest.mark.parametrize("quantisation", ["none", "fp16", "int8", "rabitq", "pq"])
def test_the_file_is_the_one_that_faiss_would_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantisation: str) -> None:
    monkeypatch.setattr(_lists, "PART_BYTES", 600)
    documents = clustered(1000, 16, seed=1)
    kept: list[Path] = []
    monkeypatch.setattr(ivf, "remove_parts", kept.append)
    ivf.build(stored(tmp_path / "vectors", documents), tmp_path, IvfSettings(lists=10, probes=2, quantisation=quantisation, refine=1))
    [trained] = (tmp_path / "parts").rglob("trained.faiss")
    assert len(list(trained.parent.glob("*.part"))) > 1
    expected = faiss.read_index(str(trained))
    expected.add(documents)
    faiss.write_index(expected, str(tmp_path / "expected.faiss"))
    assert (tmp_path / "index.faiss").read_bytes() == (tmp_path / "expected.faiss").read_bytes()


def test_a_stopped_build_continues_with_what_was_trained_and_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lists, "PART_BYTES", 100 * 4 * 8)
    vectors, options = stored(tmp_path / "vectors", random_matrix(1000, 8)), IvfSettings(lists=10, probes=2)
    once, twice = tmp_path / "once", tmp_path / "twice"
    ivf.build(vectors, once, options)
    with pytest.raises(KeyboardInterrupt):
        ivf.build(cast(DocumentEncodings, Stopping(vectors, 555)), twice, options)
    parts = sorted((twice / "parts").rglob("*.part"))
    assert [path.name for path in parts] == [f"{start:012d}.part" for start in range(0, 500, 100)]
    written = [path.stat().st_mtime_ns for path in parts]
    with pytest.raises(KeyboardInterrupt):
        ivf.build(cast(DocumentEncodings, Stopping(vectors, 777)), twice, options)
    assert [path.stat().st_mtime_ns for path in parts] == written
    ivf.build(vectors, twice, options)
    assert (twice / "index.faiss").read_bytes() == (once / "index.faiss").read_bytes()
    assert sorted(path.name for path in twice.iterdir()) == ["index.faiss", "ivf.json"]


def test_parts_of_another_index_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lists, "PART_BYTES", 100 * 4 * 8)
    vectors = stored(tmp_path / "vectors", random_matrix(1000, 8))
    with pytest.raises(KeyboardInterrupt):
        ivf.build(cast(DocumentEncodings, Stopping(vectors, 555)), tmp_path, IvfSettings(lists=10, probes=2))
    with pytest.raises(KeyboardInterrupt):
        ivf.build(cast(DocumentEncodings, Stopping(vectors, 55)), tmp_path, IvfSettings(lists=11, probes=2))
    assert list((tmp_path / "parts").rglob("*.part")) == []


@pytest.mark.parametrize("quantisation", ["fp16", "int8", "rabitq", "pq"])
def test_codes_find_and_full_vectors_score(tmp_path: Path, quantisation: str) -> None:
    documents, queries = clustered(2000, 32, seed=1), clustered(30, 32, seed=2)
    told = ivf.build(stored(tmp_path / "vectors", documents), tmp_path, IvfSettings(quantisation=quantisation, refine=32, recall=0.9, lists=20))
    index = ivf.open_index(tmp_path)
    rows, scores = index.search(queries, 10)
    assert recall(rows, best(queries, documents, 10)) == pytest.approx(told["recall_at_10"], abs=0.05)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, rows, axis=1), atol=1e-5)
    assert np.array_equal(index.encodings(np.array([7, 3])), documents[[7, 3]])
    for allowed in (np.arange(2000) % 2 == 0, np.arange(2000) < 15):
        found, values = index.search(queries, 20, allowed)
        check_complete(found, values, allowed, 20)
    assert found.tolist() == best(queries, documents, 20, allowed).tolist()


@pytest.mark.parametrize(("quantisation", "kept"), [("none", 1e-6), ("fp16", 1e-3), ("int8", None), ("rabitq", None), ("pq", None)])
def test_without_refinement_the_scores_are_stock_faisss(tmp_path: Path, quantisation: str, kept: float | None) -> None:
    documents, queries = clustered(600, 16, seed=1), clustered(5, 16, seed=2)
    ivf.build(stored(tmp_path / "vectors", documents), tmp_path, IvfSettings(quantisation=quantisation, refine=1, lists=6, probes=6))
    stock = faiss.read_index(str(tmp_path / "index.faiss"))
    stock.nprobe = 6
    index = ivf.open_index(tmp_path)
    expected, expected_rows = stock.search(queries, 600)
    scores = index.search(queries, 600)[1]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    allowed = np.arange(600) % 40 == 0
    found, values = index.search(queries, 15, allowed)
    check_complete(found, values, allowed, 15)
    np.testing.assert_allclose(values, expected[allowed[expected_rows]].reshape(5, 15), atol=1e-5)
    assert not (tmp_path / "vectors.npy").exists()
    encodings = index.encodings(np.array([5, 2]))
    assert (encodings is None) == (kept is None)
    if encodings is not None and kept is not None:
        np.testing.assert_allclose(encodings, documents[[5, 2]], atol=kept)


def test_one_document_is_a_list(tmp_path: Path) -> None:
    assert ivf.build(stored(tmp_path / "vectors", random_matrix(1, 8)), tmp_path, IvfSettings(quantisation="pq"))["lists"] == 1
    assert ivf.open_index(tmp_path).search(random_matrix(3, 8), 5)[0].tolist() == [[0]] * 3


def test_no_documents_cannot_be_indexed(tmp_path: Path) -> None:
    with pytest.raises(SearchIndexError, match="there are no documents to index"):
        ivf.build(Vectors(tmp_path, 0, 8, "an encoder"), tmp_path, IvfSettings())


def test_more_lists_than_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"index\.lists: 51 for 50 documents"):
        ivf.build(stored(tmp_path / "vectors", random_matrix(50, 8)), tmp_path, IvfSettings(lists=51))


def test_refinement_without_quantisation_is_refused() -> None:
    with pytest.raises(ValidationError, match="refine is of a quantisation"):
        IvfSettings(refine=2)


@pytest.mark.parametrize("name", ["index.faiss", "vectors.npy"])
@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: whole[:100], lambda whole: b"", lambda whole: whole + b"\0"])
def test_a_file_of_another_length_is_one_clear_line(built: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (built / name).write_bytes(damage((built / name).read_bytes()))
    with pytest.raises(SearchIndexError, match=r"cut or damaged\. Build it again with: retriever index") as refusal:
        ivf.open_index(built)
    assert str(built / name) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("place", [0, 5, 12, 40, 300, 700, 900, -1])
def test_a_flipped_byte_is_refused_before_faiss_believes_it(built: Path, place: int) -> None:
    flip(built / "index.faiss", place)
    with pytest.raises(SearchIndexError, match=r"index\.faiss: the index file is cut or damaged"):
        ivf.open_index(built)


@pytest.mark.parametrize("name", ["ivf.json", "index.faiss", "vectors.npy"])
def test_a_missing_file_is_one_clear_line(built: Path, name: str) -> None:
    (built / name).unlink()
    with pytest.raises(SearchIndexError, match=rf"{name}: the index file is missing"):
        ivf.open_index(built)


@pytest.mark.parametrize(
    ("key", "value"),
    [("probes", "3"), ("probes", 0), ("refine", True), ("documents", -1), ("quantisation", "int9"), ("bytes", {}), ("blake2b", 3), ("codes", None)],
)
def test_what_is_written_beside_the_index_is_checked(built: Path, key: str, value: object) -> None:
    path = built / "ivf.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(SearchIndexError, match=r"ivf\.json: the index file is cut or damaged"):
        ivf.open_index(built)


def test_an_index_of_another_collection_is_refused(built: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    ivf.build(stored(tmp_path / "others", random_matrix(500, 8, seed=2)), other, IvfSettings(lists=20, probes=3, quantisation="int8", refine=2))
    (other / "index.faiss").replace(built / "index.faiss")
    with pytest.raises(SearchIndexError, match="cut or damaged"):
        ivf.open_index(built)


def test_a_row_that_there_is_not_is_no_document(built: Path) -> None:
    path = built / "ivf.json"
    facts = json.loads(path.read_text())
    content = bytearray((built / "index.faiss").read_bytes())
    content[-8:] = (10**6).to_bytes(8, "little")
    (built / "index.faiss").write_bytes(bytes(content))
    facts["blake2b"] = {name: digest(built / name, facts["codes"] if name == "index.faiss" else 4 * 500 * 8) for name in facts["blake2b"]}
    path.write_text(json.dumps(facts))
    with pytest.raises(SearchIndexError, match="cut or damaged"):
        ivf.open_index(built).search(random_matrix(2, 8), 250)


def test_queries_of_another_dimension_or_not_finite_are_refused(built: Path) -> None:
    index = ivf.open_index(built)
    with pytest.raises(SearchIndexError, match="holds vectors of 8 dimensions, the query has 7"):
        index.search(random_matrix(1, 7), 5)
    with pytest.raises(SearchIndexError, match="a query's vector is not finite"):
        index.search(np.full((1, 8), np.inf, dtype=np.float32), 5)
