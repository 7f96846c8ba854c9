"""The graph against numpy and stock FAISS, and what becomes of damaged files."""

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retriever.encodings import Vectors
from retriever.errors import SearchIndexError
from retriever.indexing import hnsw
from retriever.settings.index import HnswSettings
from tests.vector_material import best, check_complete, clustered, flip, random_matrix, recall, small_integers, stored


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with a graph of 300 documents of 8 dimensions, int8 codes, and full vectors."""
    hnsw.build(stored(tmp_path / "vectors", random_matrix(300, 8)), tmp_path, HnswSettings(neighbours=8, ef_search=20, quantisation="int8", refine=2))
    return tmp_path


def test_what_is_chosen_on_documents_holds_for_other_queries(tmp_path: Path) -> None:
    documents, queries = clustered(4000, 24, seed=1), clustered(300, 24, seed=2)
    told = hnsw.build(stored(tmp_path / "vectors", documents), tmp_path, HnswSettings(neighbours=12, recall=0.97))
    assert told["recall_at_10"] >= 0.97
    assert json.loads((tmp_path / "hnsw.json").read_text())["ef_search"] == told["ef_search"]
    index = hnsw.open_index(tmp_path)
    rows, scores = index.search(queries, 10)
    assert recall(rows, best(queries, documents, 10)) > 0.93
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, rows, axis=1), atol=1e-5)
    assert (index.effort, index.refine, len(index), index.dimensions) == (told["ef_search"], 1, 4000, 24)
    assert np.array_equal(index.encodings(np.array([9, 4])), documents[[9, 4]])


@settings(max_examples=20, deadline=None)
@given(documents=st.integers(1, 60), k=st.integers(1, 70), share=st.sampled_from([0.0, 0.1, 0.6, 1.0]), seed=st.integers(0, 1000), quantised=st.booleans())
def test_there_are_never_fewer_than_are_allowed(
    tmp_path_factory: pytest.TempPathFactory, documents: int, k: int, share: float, seed: int, quantised: bool
) -> None:
    folder, matrix, queries = tmp_path_factory.mktemp("index"), small_integers(documents, seed), small_integers(3, seed + 1)
    options: dict[str, Any] = {"quantisation": "int8", "refine": 2} if quantised else {}
    hnsw.build(stored(folder / "vectors", matrix), folder, HnswSettings(neighbours=4, ef_search=2, **options))
    index, everything = hnsw.open_index(folder), np.ones(documents, dtype=bool)
    some = np.random.default_rng(seed).random(documents) < share
    for allowed, (rows, scores) in ((everything, index.search(queries, k)), (some, index.search(queries, k, some))):
        check_complete(rows, scores, allowed, k)
        assert np.array_equal(scores, np.take_along_axis(queries @ matrix.T, rows, axis=1))


def test_a_document_that_no_walk_reaches_is_found_among_all(tmp_path: Path) -> None:
    documents = np.repeat(np.eye(4, dtype=np.float32), 100, axis=0)  # equal ones are neighbours of each other alone
    hnsw.build(stored(tmp_path / "vectors", documents), tmp_path, HnswSettings(neighbours=2, ef_search=1))
    rows, scores = hnsw.open_index(tmp_path).search(np.array([[1, 2, 3, 4]], dtype=np.float32), 400)
    check_complete(rows, scores, np.ones(400, dtype=bool), 400)
    assert scores[0].tolist() == [4.0] * 100 + [3.0] * 100 + [2.0] * 100 + [1.0] * 100


@pytest.mark.parametrize("allowed_share", [0.001, 0.02, 0.5])
def test_what_is_not_allowed_is_not_found_and_the_best_of_the_rest_are(tmp_path: Path, allowed_share: float) -> None:
    documents, queries = clustered(6000, 16, seed=1), clustered(50, 16, seed=2)
    hnsw.build(stored(tmp_path / "vectors", documents), tmp_path, HnswSettings(neighbours=8, ef_search=16))
    allowed = np.random.default_rng(3).random(6000) < allowed_share
    rows, scores = hnsw.open_index(tmp_path).search(queries, 10, allowed)
    check_complete(rows, scores, allowed, 10)
    assert recall(rows, best(queries, documents, 10, allowed)) > 0.9


@pytest.mark.parametrize(("quantisation", "refine"), [("fp16", 1), ("int8", 1), ("int8", 4)])
def test_quantised_graphs_open_in_stock_faiss(tmp_path: Path, quantisation: str, refine: int) -> None:
    documents, queries = clustered(1000, 16, seed=1), clustered(20, 16, seed=2)
    options: dict[str, Any] = {"quantisation": quantisation}
    hnsw.build(stored(tmp_path / "vectors", documents), tmp_path, HnswSettings(neighbours=16, refine=refine, ef_search=64, **options))
    index, stock = hnsw.open_index(tmp_path), faiss.read_index(str(tmp_path / "index.faiss"))
    assert (stock.ntotal, stock.d, stock.metric_type) == (1000, 16, faiss.METRIC_INNER_PRODUCT)
    rows, scores = index.search(queries, 10)
    assert recall(rows, best(queries, documents, 10)) > 0.85
    if refine == 1:
        stock.hnsw.efSearch = 64
        np.testing.assert_allclose(scores, stock.search(queries, 10)[0], atol=1e-6)
    else:
        np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, rows, axis=1), atol=1e-5)
    assert (index.encodings(np.array([1])) is None) == (quantisation == "int8" and refine == 1)
    assert (tmp_path / "vectors.npy").exists() == (refine > 1)


def test_one_document_is_a_graph_and_none_is_refused(tmp_path: Path) -> None:
    hnsw.build(stored(tmp_path / "vectors", random_matrix(1, 8)), tmp_path, HnswSettings())
    assert hnsw.open_index(tmp_path).search(random_matrix(3, 8), 5)[0].tolist() == [[0]] * 3
    with pytest.raises(SearchIndexError, match="there are no documents to index"):
        hnsw.build(Vectors(tmp_path, 0, 8, "an encoder"), tmp_path, HnswSettings())


@pytest.mark.parametrize("quantisation", ["rabitq", "pq"])
def test_a_quantisation_that_no_graph_has_is_refused(quantisation: str) -> None:
    with pytest.raises(ValidationError, match="Input should be 'none', 'fp16' or 'int8'"):
        HnswSettings.model_validate({"quantisation": quantisation})


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_cut_file_is_one_clear_line(built: Path, share: float) -> None:
    path = built / "index.faiss"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(SearchIndexError, match=r"index\.faiss: the index file is cut or damaged\. Build it again with: retriever index") as refusal:
        hnsw.open_index(built)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("place", [0, 4, 8, 40, 100, 1000, 5000, 20_000, -1])
def test_a_flipped_byte_is_refused_before_faiss_follows_it(built: Path, place: int) -> None:
    flip(built / "index.faiss", place)
    with pytest.raises(SearchIndexError, match="cut or damaged"):
        hnsw.open_index(built)


def test_the_whole_graph_is_checked_however_large(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retriever.indexing._vector_files.EDGE_BYTES", 16)
    hnsw.build(stored(built / "vectors", random_matrix(300, 8)), built, HnswSettings(neighbours=8, ef_search=20))
    whole = (built / "index.faiss").read_bytes()
    codes = 300 * 8 * 4
    for place in range(0, len(whole) - codes, 997):
        (built / "index.faiss").write_bytes(whole)
        flip(built / "index.faiss", place)
        with pytest.raises(SearchIndexError, match="cut or damaged"):
            hnsw.open_index(built)
    (built / "index.faiss").write_bytes(whole)
    assert len(hnsw.open_index(built)) == 300


@pytest.mark.parametrize("name", ["hnsw.json", "index.faiss", "vectors.npy"])
def test_a_missing_file_is_one_clear_line(built: Path, name: str) -> None:
    (built / name).unlink()
    with pytest.raises(SearchIndexError, match=rf"{name}: the index file is missing"):
        hnsw.open_index(built)
