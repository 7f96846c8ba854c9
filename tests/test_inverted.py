"""The inverted index against brute force, and what becomes of a damaged file."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retriever.errors import SearchIndexError
from retriever.index_settings import InvertedSettings
from retriever.indexing import inverted
from retriever.ragged import Ragged

FILES = ("offsets.npy", "rows.npy", "values.npy")


class Blocks:
    """A matrix [N, V] as sparse vectors, a few documents at a time."""

    def __init__(self, matrix: NDArray[np.float32], size: int = 7, folder: Path = Path("vectors")) -> None:
        self.matrix = matrix
        self.size = size
        self.folder = folder
        self.dimensions = matrix.shape[1]

    def __len__(self) -> int:
        return len(self.matrix)

    def blocks(self) -> Iterator[Ragged]:
        for start in range(0, len(self.matrix), self.size):
            yield sparse(self.matrix[start : start + self.size])


def sparse(matrix: NDArray[np.float32]) -> Ragged:
    """The entries of each row that are not 0."""
    places, dimensions = np.nonzero(matrix)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=len(matrix)))]).astype(np.int64)
    return Ragged(offsets, {"dimensions": dimensions.astype(np.int32), "values": matrix[places, dimensions]})


def random_matrix(rows: int, dimensions: int, seed: int = 1, share: float = 0.2) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return (draw.random((rows, dimensions)) * (draw.random((rows, dimensions)) < share)).astype(np.float32)


def brute_force(queries: NDArray[np.float32], documents: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
    """By the definition: every product, those above 0, best first, equal ones by row."""
    found = []
    for query in queries:
        scores = [sum(float(a) * float(b) for a, b in zip(query, document, strict=True)) for document in documents]
        ranked = sorted((-score, row) for row, score in enumerate(scores) if score > 0)
        found.append([(row, -score) for score, row in ranked[:k]])
    return found


def pairs(found: tuple[Sequence[NDArray[np.int64]], Sequence[NDArray[np.float32]]]) -> list[list[tuple[int, float]]]:
    return [list(zip(rows.tolist(), scores.tolist(), strict=True)) for rows, scores in zip(*found, strict=True)]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with an index of 50 documents and 30 terms."""
    inverted.build(Blocks(random_matrix(50, 30)), tmp_path, InvertedSettings())
    return tmp_path


# Search


def test_rows_and_scores_are_those_of_brute_force(built: Path) -> None:
    documents, queries = random_matrix(50, 30), random_matrix(5, 30, seed=2)
    index = inverted.open_index(built)
    assert (len(index), index.dimensions) == (50, 30)
    rows, scores = index.search(sparse(queries), 20)
    for found, expected in zip(pairs((rows, scores)), brute_force(queries, documents, 20), strict=True):
        assert [row for row, _ in found] == [row for row, _ in expected]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-6)
    assert {array.dtype for array in rows} == {np.dtype(np.int64)}
    assert {array.dtype for array in scores} == {np.dtype(np.float32)}


@settings(max_examples=50, deadline=None)
@given(documents=st.integers(0, 25), k=st.integers(1, 30), size=st.integers(1, 30), seed=st.integers(0, 1000))
def test_small_whole_numbers_with_many_ties_are_ranked_exactly(documents: int, k: int, size: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrix, queries = (draw.integers(0, 3, (rows, 4)).astype(np.float32) for rows in (documents, 3))
    assert pairs(inverted.of_vectors(Blocks(matrix, size)).search(sparse(queries), k)) == brute_force(queries, matrix, k)


def test_the_postings_of_a_term_are_the_documents_that_have_it_in_their_order() -> None:
    matrix = np.array([[0, 2, 0], [1, 0, 0], [3, 4, 0]], dtype=np.float32)
    index = inverted.of_vectors(Blocks(matrix, size=2))
    assert index.offsets.tolist() == [0, 2, 4, 4]
    assert index.rows.tolist() == [1, 2, 0, 2]
    assert index.values.tolist() == [1, 3, 2, 4]


def test_only_documents_with_a_score_above_0_are_found() -> None:
    matrix = np.array([[1, 0], [0, 1], [1, 2], [0, 0]], dtype=np.float32)
    index = inverted.of_vectors(Blocks(matrix))
    assert pairs(index.search(sparse(np.array([[1, 0], [0, 0]], dtype=np.float32)), 10)) == [[(0, 1), (2, 1)], []]
    assert pairs(index.search(sparse(np.array([[1, -1]], dtype=np.float32)), 10)) == [[(0, 1)]]


def test_a_cut_among_equal_scores_keeps_the_first_rows() -> None:
    matrix = np.array([[1], [2], [1], [1], [2], [1]], dtype=np.float32)
    index = inverted.of_vectors(Blocks(matrix))
    assert pairs(index.search(sparse(np.array([[1]], dtype=np.float32)), 4)) == [[(1, 2), (4, 2), (0, 1), (2, 1)]]


def test_no_queries_and_no_documents_find_nothing(tmp_path: Path) -> None:
    inverted.build(Blocks(np.zeros((0, 3), dtype=np.float32)), tmp_path, InvertedSettings())
    index = inverted.open_index(tmp_path)
    assert (len(index), index.dimensions) == (0, 3)
    assert pairs(index.search(sparse(np.ones((2, 3), dtype=np.float32)), 5)) == [[], []]
    assert pairs(index.search(sparse(np.zeros((0, 3), dtype=np.float32)), 5)) == []


def test_the_index_in_memory_finds_what_the_one_on_disk_does(built: Path) -> None:
    queries = sparse(random_matrix(4, 30, seed=3))
    assert pairs(inverted.of_vectors(Blocks(random_matrix(50, 30))).search(queries, 9)) == pairs(inverted.open_index(built).search(queries, 9))


def test_an_opened_index_outlives_its_replacement(built: Path) -> None:
    index = inverted.open_index(built)
    queries = sparse(random_matrix(1, 30, seed=3))
    before = pairs(index.search(queries, 5))
    inverted.build(Blocks(random_matrix(10, 30, seed=4)), built, InvertedSettings())
    assert pairs(index.search(queries, 5)) == before
    assert len(inverted.open_index(built)) == 10


# Files


def test_an_entry_takes_8_bytes_and_a_term_8(built: Path) -> None:
    entries = np.count_nonzero(random_matrix(50, 30))
    sizes = [(built / name).stat().st_size - 128 for name in FILES]  # numpy's header has 128 bytes
    assert sizes == [8 * 31, 4 * entries, 4 * entries]


def test_numpy_opens_the_arrays(built: Path) -> None:
    assert [np.load(built / name).dtype for name in FILES] == [np.int64, np.int32, np.float32]


@pytest.mark.parametrize("name", [*FILES, "inverted.json"])
def test_a_missing_file_is_one_clear_line(built: Path, name: str) -> None:
    (built / name).unlink()
    with pytest.raises(SearchIndexError, match=rf"{name}: the index file is missing\. Build it again with: retriever index"):
        inverted.open_index(built)


@pytest.mark.parametrize("name", [*FILES, "inverted.json"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_cut_file_is_one_clear_line(built: Path, name: str, share: float) -> None:
    path = built / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SearchIndexError, match=rf"{name}: the index file is cut or damaged") as refusal:
        inverted.open_index(built)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 5, 6, 8, 9, 20, 59, 60, 70, 100, 126, 127])
def test_a_damaged_header_is_refused_before_numpy_evaluates_it(built: Path, name: str, place: int) -> None:
    content = bytearray((built / name).read_bytes())
    content[place] ^= 0x41
    (built / name).write_bytes(bytes(content))
    with pytest.raises(SearchIndexError, match=rf"{name}: the index file is cut or damaged"):
        inverted.open_index(built)


@pytest.mark.parametrize("name", FILES)
def test_a_longer_file_and_one_of_another_type_are_refused(built: Path, name: str) -> None:
    whole = (built / name).read_bytes()
    (built / name).write_bytes(whole + b"\0")
    with pytest.raises(SearchIndexError, match=rf"{name}: the index file is cut or damaged"):
        inverted.open_index(built)
    (built / name).write_bytes(whole)
    np.save(built / name, np.load(built / name).astype(np.float64))
    with pytest.raises(SearchIndexError, match=rf"{name}: the index file is cut or damaged"):
        inverted.open_index(built)


@pytest.mark.parametrize(
    "facts", ["[]", "{}", "3", '{"documents": -1, "dimensions": 30, "postings": 0}', '{"documents": "5", "dimensions": 30, "postings": 0}']
)
def test_facts_of_another_shape_are_refused(built: Path, facts: str) -> None:
    (built / "inverted.json").write_text(facts)
    with pytest.raises(SearchIndexError, match=r"inverted\.json: the index file is cut or damaged"):
        inverted.open_index(built)


@pytest.mark.parametrize(("key", "name"), [("dimensions", "offsets.npy"), ("postings", "offsets.npy")])
def test_arrays_of_another_length_than_the_facts_say_are_refused(built: Path, key: str, name: str) -> None:
    path = built / "inverted.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {key: facts[key] + 1}))
    with pytest.raises(SearchIndexError, match=f"{name}: the index file is cut or damaged"):
        inverted.open_index(built)


def test_offsets_that_do_not_rise_are_refused(built: Path) -> None:
    offsets = np.load(built / "offsets.npy")
    offsets[3] = offsets[-1] + 1
    np.save(built / "offsets.npy", offsets)
    with pytest.raises(SearchIndexError, match=r"offsets\.npy: the index file is cut or damaged"):
        inverted.open_index(built)


@pytest.mark.parametrize("row", [-1, 50, 2**31 - 1])
def test_a_damaged_row_is_met_before_it_is_counted(built: Path, row: int) -> None:
    rows = np.load(built / "rows.npy")
    rows[:] = row
    np.save(built / "rows.npy", rows)
    with pytest.raises(SearchIndexError, match=r"rows\.npy: the index file is cut or damaged"):
        inverted.open_index(built).search(sparse(random_matrix(1, 30)), 5)


def test_a_stop_between_the_arrays_of_a_new_index_leaves_none(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path, array: NDArray[np.float32]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inverted, "write_array", stop)
    with pytest.raises(KeyboardInterrupt):
        inverted.build(Blocks(random_matrix(50, 30, seed=9)), built, InvertedSettings())
    with pytest.raises(SearchIndexError, match=r"inverted\.json: the index file is missing"):
        inverted.open_index(built)


# Queries


@pytest.mark.parametrize("dimension", [-1, 30, 1000])
def test_a_query_with_a_dimension_that_the_index_lacks_is_refused(built: Path, dimension: int) -> None:
    query = Ragged(np.array([0, 1]), {"dimensions": np.array([dimension], dtype=np.int32), "values": np.ones(1, dtype=np.float32)})
    with pytest.raises(SearchIndexError, match=f"holds vectors of 30 dimensions, the query has dimension {dimension}"):
        inverted.open_index(built).search(query, 5)


def test_a_query_that_is_not_finite_is_refused(built: Path) -> None:
    query = Ragged(np.array([0, 1]), {"dimensions": np.array([3], dtype=np.int32), "values": np.array([np.nan], dtype=np.float32)})
    with pytest.raises(SearchIndexError, match="a query's vector is not finite"):
        inverted.open_index(built).search(query, 5)
