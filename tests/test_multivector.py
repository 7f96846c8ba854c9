"""The multi-vector index against a slow loop and stock sentence-transformers, and what becomes of damaged files."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers.util.similarity import maxsim

from retriever import encodings
from retriever.errors import SearchIndexError
from retriever.indexing import multivector
from retriever.ragged import Ragged
from retriever.ragged_encodings import RaggedVectors
from retriever.settings.index import MultiVectorSettings

Texts = list[NDArray[np.float32]]


def random_texts(seed: int, texts: int, longest: int = 9, dimensions: int = 8, shortest: int = 0) -> Texts:
    """Unit vectors for each token of each text, exact in float16."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(shortest, longest + 1, texts)
    return [rounded(generator.normal(size=(length, dimensions))) for length in lengths]


def rounded(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def ragged(texts: Texts) -> Ragged:
    return Ragged.of_lists("vectors", texts, texts[0].shape[1])


def stored(folder: Path, texts: Texts, dimensions: int = 8, kind: type = np.float16) -> RaggedVectors:
    """The texts as an encoder leaves them on disk, in blocks."""
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(texts), encodings.BLOCK)):
        block = Ragged.of_lists("vectors", [text.astype(kind) for text in texts[start : start + encodings.BLOCK]], dimensions)
        np.save(folder / f"{number:06d}.vectors.npy", block.columns["vectors"])
        np.save(folder / f"{number:06d}.offsets.npy", block.offsets)
    return RaggedVectors(folder, len(texts), ("vectors",), "an encoder", dimensions)


def slow_scores(queries: Texts, documents: Texts) -> NDArray[np.float64]:
    """[B, N] in double precision, token by token."""
    return np.array([[sum(best_of(token, document) for token in query.astype(np.float64)) for document in documents] for query in queries])


def best_of(token: NDArray[np.float64], document: NDArray[np.float32]) -> float:
    return max((float(token @ other) for other in document.astype(np.float64)), default=-float(np.linalg.norm(token)))


def check(index: multivector.MultiVectorIndex, queries: Texts, documents: Texts, k: int) -> None:
    rows, scores = (np.array(found) for found in index.search(ragged(queries), k))
    expected = slow_scores(queries, documents)
    assert (rows.shape, rows.dtype, scores.dtype) == ((len(queries), min(k, len(documents))), np.int64, np.float32)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :k], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, rows, axis=1), scores, atol=1e-5)
    assert all(len(set(found)) == len(found) for found in rows.tolist())


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few documents already take several blocks of every kind."""
    monkeypatch.setattr(encodings, "BLOCK", 10)
    monkeypatch.setattr(multivector, "DOCUMENT_TOKENS", 16)
    monkeypatch.setattr(multivector, "QUERY_TOKENS", 12)
    monkeypatch.setattr(multivector, "DOCUMENTS", 7)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with an index of 25 documents of 8 dimensions."""
    multivector.build(stored(tmp_path / "tokens", random_texts(1, 25)), tmp_path, MultiVectorSettings())
    return tmp_path


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), documents=st.integers(1, 30), queries=st.integers(1, 6), k=st.integers(1, 40))
def test_rows_and_scores_are_those_of_a_slow_loop(tmp_path_factory: pytest.TempPathFactory, seed: int, documents: int, queries: int, k: int) -> None:
    folder = tmp_path_factory.mktemp("index")
    texts, asked = random_texts(seed, documents), random_texts(seed + 1, queries, shortest=1)
    multivector.build(stored(folder / "tokens", texts), folder, MultiVectorSettings())
    index = multivector.open_index(folder)
    assert (len(index), index.dimensions) == (documents, 8)
    check(index, asked, texts, k)
    check(multivector.of_vectors(stored(folder / "tokens", texts)), asked, texts, k)


def test_the_usual_sizes_of_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch, built: Path) -> None:
    queries = ragged(random_texts(2, 9, shortest=1))
    small = multivector.open_index(built).search(queries, 10)
    monkeypatch.undo()
    large = multivector.open_index(built).search(queries, 10)
    assert np.array_equal(small[0], large[0])
    np.testing.assert_allclose(small[1], large[1], atol=1e-6)


def test_scores_are_stock_sentence_transformers(built: Path) -> None:
    documents, queries = random_texts(1, 25), random_texts(2, 5, shortest=1)
    filled = [number for number, document in enumerate(documents) if len(document)]
    expected = maxsim(queries, [documents[number] for number in filled]).numpy()
    rows, scores = multivector.open_index(built).search(ragged(queries), len(filled))
    assert np.array(rows).tolist() == np.array(filled)[np.argsort(-expected, axis=1)].tolist()
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1), atol=1e-5)


def test_by_hand() -> None:
    documents = [np.array(text, dtype=np.float32).reshape(-1, 2) for text in ([[1, 0]], [], [[0, 1], [1, 0]], [[-1, 0]], [[1, 0]])]
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
    index = multivector.MultiVectorIndex(np.concatenate(documents).astype(np.float16), offsets, Path("by hand"))
    rows, scores = index.search(ragged([np.array([[1, 0], [0, 2]], dtype=np.float32)]), 5)
    # Equal ones in the collection's order; the one without tokens is as bad as can be: minus the lengths 1 and 2.
    assert rows[0].tolist() == [2, 0, 4, 3, 1]
    assert scores[0].tolist() == [3, 1, 1, -1, -3]


def test_a_query_without_tokens_finds_every_document_equally_good(built: Path) -> None:
    rows, scores = multivector.open_index(built).search(ragged([np.zeros((0, 8), dtype=np.float32), *random_texts(3, 1, shortest=2)]), 4)
    assert (rows[0].tolist(), scores[0].tolist()) == ([0, 1, 2, 3], [0, 0, 0, 0])
    assert scores[1][0] > scores[1][3]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), documents=st.integers(1, 30), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), k=st.integers(1, 40))
def test_only_allowed_documents_are_found_and_none_of_them_is_lost(seed: int, documents: int, share: float, k: int) -> None:
    texts, asked = random_texts(seed, documents), random_texts(seed + 1, 3, shortest=1)
    allowed = np.random.default_rng(seed).random(documents) < share
    index = multivector.MultiVectorIndex(np.concatenate(texts).astype(np.float16), np.cumsum([0, *(len(text) for text in texts)]), Path("in memory"))
    expected = np.where(allowed, slow_scores(asked, texts), -np.inf)
    for rows, scores, wanted in zip(*index.search(ragged(asked), k, allowed), expected, strict=True):
        assert len(rows) == min(k, allowed.sum())
        np.testing.assert_allclose(scores, -np.sort(-wanted)[: len(rows)], atol=1e-5)
        np.testing.assert_allclose(scores, wanted[rows], atol=1e-5)
        assert len(set(rows.tolist())) == len(rows)


def test_the_vectors_of_documents_come_back_as_they_were_given(built: Path) -> None:
    documents = random_texts(1, 25)
    found = multivector.open_index(built).encodings(np.array([7, 0, 7, 24]))
    assert [len(documents[row]) for row in (7, 0, 7, 24)] == found.counts.tolist()
    assert found.columns["vectors"].dtype == np.float16
    assert np.array_equal(found.columns["vectors"], np.concatenate([documents[row] for row in (7, 0, 7, 24)]))


def test_no_queries_find_nothing(built: Path) -> None:
    assert multivector.open_index(built).search(Ragged.of_lists("vectors", [], 8), 5) == ([], [])


def test_the_files_are_numpys_and_hold_the_vectors_as_they_are(built: Path) -> None:
    documents = random_texts(1, 25)
    vectors, offsets = np.load(built / "vectors.npy", allow_pickle=False), np.load(built / "offsets.npy", allow_pickle=False)
    assert (vectors.dtype, offsets.dtype) == (np.float16, np.int64)
    assert np.array_equal(vectors, np.concatenate(documents))
    assert offsets.tolist() == np.cumsum([0, *(len(document) for document in documents)]).tolist()


def test_float32_vectors_are_stored_as_float16(tmp_path: Path) -> None:
    documents = random_texts(1, 5)
    multivector.build(stored(tmp_path / "tokens", documents, kind=np.float32), tmp_path, MultiVectorSettings())
    assert np.array_equal(np.load(tmp_path / "vectors.npy"), np.concatenate(documents))


@pytest.mark.parametrize("value", [np.nan, np.inf, 70_000])
def test_a_vector_that_float16_cannot_hold_is_refused(tmp_path: Path, value: float) -> None:
    documents = random_texts(1, 5, shortest=1)
    documents[3][0, 2] = value
    tokens = stored(tmp_path / "tokens", documents, kind=np.float32)
    for make in (lambda: multivector.build(tokens, tmp_path, MultiVectorSettings()), lambda: multivector.of_vectors(tokens)):
        with pytest.raises(SearchIndexError, match="not of 8 finite numbers that float16 can hold"):
            make()
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize("texts", [0, 3])
def test_a_collection_without_tokens_has_an_index(tmp_path: Path, texts: int) -> None:
    multivector.build(stored(tmp_path / "tokens", [np.zeros((0, 8), dtype=np.float32)] * texts), tmp_path, MultiVectorSettings())
    index = multivector.open_index(tmp_path)
    rows, scores = index.search(ragged([np.eye(8, dtype=np.float32)[:2]]), 5)
    assert (len(index), index.dimensions) == (texts, 8)
    assert (rows[0].tolist(), scores[0].tolist()) == (list(range(texts)), [-2] * texts)


# What is refused


@pytest.mark.parametrize("file", ["vectors.npy", "offsets.npy"])
@pytest.mark.parametrize("change", [-1000, -129, -128, -2, -1, 1, 2, 16])
def test_a_file_of_another_length_is_one_clear_line(built: Path, file: str, change: int) -> None:
    path = built / file
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) + change)] if change < 0 else content + bytes(change))
    with pytest.raises(SearchIndexError, match=r"cut or damaged\. Build it again with: retriever index") as refusal:
        multivector.open_index(built)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("file", ["vectors.npy", "offsets.npy"])
def test_a_damaged_header_is_refused_whatever_its_byte(built: Path, file: str) -> None:
    path = built / file
    content = path.read_bytes()
    for place in range(128):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])
        with pytest.raises(SearchIndexError, match="cut or damaged"):
            multivector.open_index(built)


@pytest.mark.parametrize("offsets", [[], [1, 5], [0, 9, 5, 12], [0, 5], [[0, 12]], [0.0, 12.0]])
def test_offsets_that_do_not_fit_are_refused(built: Path, offsets: list[object]) -> None:
    np.save(built / "offsets.npy", np.array(offsets))
    with pytest.raises(SearchIndexError, match="cut or damaged"):
        multivector.open_index(built)


@pytest.mark.parametrize("file", ["vectors.npy", "offsets.npy"])
def test_a_missing_file_is_one_clear_line(built: Path, file: str) -> None:
    (built / file).unlink()
    with pytest.raises(SearchIndexError, match=rf"{re.escape(file)}: the index file is missing"):
        multivector.open_index(built)


def test_a_build_that_stops_between_its_files_leaves_no_mixture(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(multivector, "write_array", stop)
    with pytest.raises(KeyboardInterrupt):
        multivector.build(stored(built / "other", random_texts(4, 25)), built, MultiVectorSettings())
    with pytest.raises(SearchIndexError, match=r"offsets\.npy: the index file is missing"):
        multivector.open_index(built)


def test_an_opened_index_outlives_its_replacement(built: Path) -> None:
    index = multivector.open_index(built)
    queries = ragged(random_texts(5, 2, shortest=1))
    before = index.search(queries, 5)
    multivector.build(stored(built / "other", random_texts(6, 12)), built, MultiVectorSettings())
    after = index.search(queries, 5)
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert len(multivector.open_index(built)) == 12


def test_a_query_of_another_dimension_is_refused(built: Path) -> None:
    with pytest.raises(SearchIndexError, match="holds vectors of 8 dimensions, the query has 7"):
        multivector.open_index(built).search(ragged(random_texts(1, 1, dimensions=7, shortest=1)), 5)


def test_a_query_that_is_not_finite_is_refused(built: Path) -> None:
    query = random_texts(1, 1, shortest=1)
    query[0][0, 3] = np.nan
    with pytest.raises(SearchIndexError, match="a query's vector is not finite"):
        multivector.open_index(built).search(ragged(query), 5)
