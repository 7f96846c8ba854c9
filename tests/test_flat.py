"""The flat index against numpy, and what becomes of a damaged file."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.encodings import BLOCK
from retriever.errors import ConfigError, SearchIndexError
from retriever.indexing import flat
from retriever.indexing._faiss import library
from retriever.settings.index import FlatSettings
from tests.vector_material import best, check_complete, clustered, flip, random_matrix, recall, small_integers, stored


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


@settings(max_examples=30, deadline=None)
@given(documents=st.integers(1, 60), k=st.integers(1, 70), share=st.sampled_from([0.0, 0.1, 0.6, 1.0]), seed=st.integers(0, 1000))
def test_equal_scores_are_in_the_order_of_their_rows(tmp_path_factory: pytest.TempPathFactory, documents: int, k: int, share: float, seed: int) -> None:
    matrix, queries = small_integers(documents, seed), small_integers(3, seed + 1)
    allowed = np.random.default_rng(seed).random(documents) < share
    index = flat.of_vectors(stored(tmp_path_factory.mktemp("vectors"), matrix))
    assert index.search(queries, k)[0].tolist() == best(queries, matrix, k).tolist()
    rows, scores = index.search(queries, k, allowed)
    assert rows.tolist() == best(queries, matrix, k, allowed).tolist()
    check_complete(rows, scores, allowed, k)


def test_many_queries_at_once_find_what_each_finds_and_equal_vectors_in_the_order_of_their_rows(tmp_path: Path) -> None:
    draw = np.random.default_rng(7)
    vectors = draw.normal(size=(3_001, 97)).astype(np.float32)
    vectors[-5:] = vectors[:5]  # in a product's last columns sums are added up in another order
    queries = draw.normal(size=(64, 97)).astype(np.float32)
    assert queries.size >= library().cvar.distance_compute_blas_threshold  # FAISS multiplies them together
    rows, scores = flat.of_vectors(stored(tmp_path, vectors)).search(queries, 3_001)
    expected = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1), atol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, axis=1), atol=1e-5)
    equal = (vectors[rows[:, 1:]] == vectors[rows[:, :-1]]).all(axis=2)
    assert equal.sum() == 5 * 64
    assert (scores[:, 1:] == scores[:, :-1])[equal].all()
    assert (rows[:, 1:] > rows[:, :-1])[equal].all()


def test_a_threshold_that_the_program_has_set_stays() -> None:
    before = faiss.cvar.distance_compute_blas_threshold
    try:
        for set_to, used in ((128_000, 800 * faiss.omp_get_max_threads()), (20, 20)):
            faiss.cvar.distance_compute_blas_threshold = set_to
            assert library().cvar.distance_compute_blas_threshold == used
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


@pytest.mark.parametrize("allowed_share", [0.02, 0.9])
def test_what_is_not_allowed_is_not_found(tmp_path: Path, allowed_share: float) -> None:
    documents, queries = random_matrix(2000, 8), random_matrix(4, 8, seed=2)
    allowed = np.random.default_rng(3).random(2000) < allowed_share
    rows, scores = flat.of_vectors(stored(tmp_path, documents)).search(queries, 30, allowed)
    assert rows.tolist() == best(queries, documents, 30, allowed).tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, rows, axis=1), atol=1e-5)


def test_a_word_on_other_documents_than_there_are_is_refused(built: Path) -> None:
    with pytest.raises(SearchIndexError, match="which of 50 documents are allowed was said of 49"):
        flat.open_index(built).search(random_matrix(1, 8), 5, np.ones(49, dtype=bool))


@pytest.mark.parametrize(("quantisation", "bytes_each"), [("fp16", 64), ("int8", 32), ("rabitq", 4 + 8), ("pq", 2)])
def test_a_quantised_index_finds_by_codes_and_scores_again_by_full_vectors(tmp_path: Path, quantisation: str, bytes_each: int) -> None:
    documents, queries = clustered(1500, 32, seed=1), clustered(20, 32, seed=2)
    told = flat.build(stored(tmp_path / "vectors", documents), tmp_path, FlatSettings(quantisation=quantisation, refine=32))
    index = flat.open_index(tmp_path)
    rows, scores = index.search(queries, 10)
    assert recall(rows, best(queries, documents, 10)) > 0.9
    assert told["recall_at_10"] > 0.9
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, rows, axis=1), atol=1e-5)
    stock = faiss.read_index(str(tmp_path / "index.faiss"))
    assert (stock.ntotal, stock.sa_code_size()) == (1500, bytes_each)
    allowed = np.random.default_rng(3).random(1500) < 0.5
    for some in (allowed, allowed & (np.arange(1500) < 20), np.zeros(1500, dtype=bool)):
        check_complete(*index.search(queries, 10, some), some, 10)
    assert np.array_equal(index.encodings(np.array([3, 1])), documents[[3, 1]])


@pytest.mark.parametrize(("quantisation", "kept"), [("none", 0.0), ("fp16", 1e-3), ("int8", None), ("rabitq", None), ("pq", None)])
def test_without_refinement_the_scores_are_of_what_is_kept(tmp_path: Path, quantisation: str, kept: float | None) -> None:
    documents, queries = clustered(600, 16, seed=1), clustered(5, 16, seed=2)
    flat.build(stored(tmp_path / "vectors", documents), tmp_path, FlatSettings(quantisation=quantisation, refine=1))
    assert not (tmp_path / "vectors.npy").exists()
    index = flat.open_index(tmp_path)
    rows, scores = index.search(queries, 600)
    check_complete(rows, scores, np.ones(600, dtype=bool), 600)
    stock_scores, _ = faiss.read_index(str(tmp_path / "index.faiss")).search(queries, 600)
    np.testing.assert_allclose(scores, stock_scores, atol=1e-5)
    allowed = np.arange(600) % 3 == 0
    filtered_scores = index.search(queries, 600, allowed)[1]
    np.testing.assert_allclose(np.sort(filtered_scores), np.sort(scores[allowed[rows]].reshape(5, -1)), atol=1e-5)
    encodings = index.encodings(np.array([5, 2]))
    assert (encodings is None) == (kept is None)
    if encodings is not None and kept is not None:
        np.testing.assert_allclose(encodings, documents[[5, 2]], atol=kept)


def test_the_least_refinement_that_reaches_the_recall_is_chosen(tmp_path: Path) -> None:
    documents = clustered(1500, 32, seed=1)
    reached = {}
    for refine in (1, 2, 4, 8, 16, 32):
        folder = tmp_path / str(refine)
        folder.mkdir()
        reached[refine] = flat.build(stored(tmp_path / "vectors", documents), folder, FlatSettings(quantisation="rabitq", refine=refine))["recall_at_10"]
    told = flat.build(stored(tmp_path / "vectors", documents), tmp_path, FlatSettings(quantisation="rabitq", recall=0.8))
    assert told["refine"] == min(refine for refine, found in reached.items() if found >= 0.8) > 1
    assert told["recall_at_10"] == reached[told["refine"]]
    assert flat.open_index(tmp_path).refine == told["refine"]


@pytest.mark.parametrize("quantisation", ["fp16", "int8", "rabitq", "pq"])
def test_one_document_can_be_quantised(tmp_path: Path, quantisation: str) -> None:
    told = flat.build(stored(tmp_path / "vectors", random_matrix(1, 8)), tmp_path, FlatSettings(quantisation=quantisation))
    assert told["recall_at_10"] == 1
    assert flat.open_index(tmp_path).search(random_matrix(3, 8), 5)[0].tolist() == [[0]] * 3


def test_codes_that_do_not_divide_the_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"index\.pq_bytes: 5 does not divide the 8 dimensions; possible are 1, 2, 4, 8$"):
        flat.build(stored(tmp_path / "vectors", random_matrix(9, 8)), tmp_path, FlatSettings(quantisation="pq", pq_bytes=5))


@pytest.mark.parametrize("name", ["index.faiss", "vectors.npy"])
@pytest.mark.parametrize("place", [0, 10, 60, 500, -1])
def test_damaged_files_of_a_quantised_index_are_refused(tmp_path: Path, name: str, place: int) -> None:
    flat.build(stored(tmp_path / "vectors", random_matrix(50, 8)), tmp_path, FlatSettings(quantisation="int8", refine=4))
    flip(tmp_path / name, place)
    with pytest.raises(SearchIndexError, match=r"cut or damaged\. Build it again with: retriever index") as refusal:
        flat.open_index(tmp_path)
    assert str(tmp_path / name) in str(refusal.value)


def test_an_index_takes_the_place_of_a_quantised_one(tmp_path: Path) -> None:
    vectors = stored(tmp_path / "vectors", random_matrix(50, 8))
    flat.build(vectors, tmp_path, FlatSettings(quantisation="int8", refine=4))
    flat.build(vectors, tmp_path, FlatSettings())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.faiss", "vectors"]
    assert np.array_equal(flat.open_index(tmp_path).encodings(np.arange(50)), random_matrix(50, 8))


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
