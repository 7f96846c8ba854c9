"""The flat index against numpy, and what becomes of a damaged file."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retriever.encodings import BLOCK, Vectors
from retriever.errors import SearchIndexError
from retriever.index_settings import FlatSettings
from retriever.indexing import flat


def stored(folder: Path, matrix: NDArray[np.float32]) -> Vectors:
    """The matrix as vectors on disk, in blocks."""
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(matrix), BLOCK)):
        np.save(folder / f"{number:06d}.npy", matrix[start : start + BLOCK])
    return Vectors(folder, len(matrix), matrix.shape[1], "an encoder")


def random_matrix(rows: int, dimensions: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, dimensions)).astype(np.float32)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with an index of 50 documents of 8 dimensions."""
    flat.build(stored(tmp_path / "vectors", random_matrix(50, 8)), tmp_path, FlatSettings())
    return tmp_path


def test_rows_and_scores_are_numpys(tmp_path: Path) -> None:
    documents, queries = random_matrix(2 * BLOCK + 7, 16), random_matrix(5, 16, seed=2)
    flat.build(stored(tmp_path / "vectors", documents), tmp_path, FlatSettings())
    index = flat.open_index(tmp_path)
    assert (len(index), index.dimensions) == (2 * BLOCK + 7, 16)
    rows, scores = index.search(queries, 20)
    products = queries.astype(np.float64) @ documents.T.astype(np.float64)
    expected = np.argsort(-products, axis=1)[:, :20]
    assert rows.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, axis=1), atol=1e-5)
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(documents=st.integers(1, 30), k=st.integers(1, 40), seed=st.integers(0, 1000))
def test_the_index_in_memory_ranks_as_numpy_does(tmp_path_factory: pytest.TempPathFactory, documents: int, k: int, seed: int) -> None:
    matrix, queries = random_matrix(documents, 4, seed), random_matrix(2, 4, seed + 1)
    rows, scores = flat.of_vectors(stored(tmp_path_factory.mktemp("vectors"), matrix)).search(queries, k)
    products = queries @ matrix.T
    assert rows.shape == (2, min(k, documents))
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :k], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(products, rows, axis=1), scores, atol=1e-5)
    assert all(len(set(found)) == len(found) for found in rows.tolist())


def test_equal_vectors_are_all_found_with_equal_scores(tmp_path: Path) -> None:
    matrix = np.array([[1, 0], [3, 4], [0, 1], [3, 4], [3, 4]], dtype=np.float32)
    rows, scores = flat.of_vectors(stored(tmp_path, matrix)).search(np.array([[3, 4]], dtype=np.float32), 4)
    assert (set(rows[0, :3].tolist()), rows[0, 3]) == ({1, 3, 4}, 2)
    assert scores.tolist() == [[25, 25, 25, 4]]


def test_stock_faiss_opens_the_file(built: Path) -> None:
    index = faiss.read_index(str(built / "index.faiss"))
    assert (index.ntotal, index.d, index.metric_type) == (50, 8, faiss.METRIC_INNER_PRODUCT)
    assert np.array_equal(index.reconstruct_n(0, 50), random_matrix(50, 8))


def test_an_opened_index_outlives_its_replacement(built: Path) -> None:
    index = flat.open_index(built)
    before = index.search(random_matrix(1, 8, seed=3), 5)
    flat.build(stored(built / "other", random_matrix(10, 8, seed=4)), built, FlatSettings())
    after = index.search(random_matrix(1, 8, seed=3), 5)
    assert np.array_equal(before[0], after[0])
    assert len(flat.open_index(built)) == 10


@pytest.mark.parametrize("size", [0, 1, 44, 45, 46, 45 + 1600 - 1, 45 + 1600 + 1])
def test_a_file_of_another_length_is_one_clear_line(built: Path, size: int) -> None:
    path = built / "index.faiss"
    path.write_bytes(path.read_bytes().ljust(size, b"\0")[:size])
    with pytest.raises(SearchIndexError, match=r"cut or damaged\. Build it again with: retriever index") as refusal:
        flat.open_index(built)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("place", [0, 3, 4, 7, 8, 15, 33, 37, 40, 44])
def test_a_damaged_header_is_refused_before_faiss_believes_it(built: Path, place: int) -> None:
    path = built / "index.faiss"
    content = bytearray(path.read_bytes())
    content[place] ^= 0x41
    path.write_bytes(bytes(content))
    with pytest.raises(SearchIndexError, match="cut or damaged"):
        flat.open_index(built)


def test_an_index_of_another_kind_is_refused(built: Path) -> None:
    index = faiss.IndexFlatL2(8)
    index.add(random_matrix(50, 8))
    faiss.write_index(index, str(built / "index.faiss"))
    with pytest.raises(SearchIndexError, match="cut or damaged"):
        flat.open_index(built)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SearchIndexError, match=r"index\.faiss: the index file is missing"):
        flat.open_index(tmp_path)


def test_a_query_of_another_dimension_is_refused(built: Path) -> None:
    with pytest.raises(SearchIndexError, match="holds vectors of 8 dimensions, the query has 7"):
        flat.open_index(built).search(random_matrix(1, 7), 5)


def test_a_query_that_is_not_finite_is_refused(built: Path) -> None:
    query = random_matrix(1, 8)
    query[0, 3] = np.nan
    with pytest.raises(SearchIndexError, match="a query's vector is not finite"):
        flat.open_index(built).search(query, 5)
