"""The inverted index against brute force, and what becomes of a damaged file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retriever.errors import SearchIndexError
from retriever.indexing import inverted
from retriever.ragged import Ragged
from retriever.settings.index import InvertedSettings
from tests.sparse_material import Blocks, brute_force, pairs, random_matrix, sparse

FILES = ("offsets.npy", "rows.npy", "values.npy")


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


@settings(max_examples=30, deadline=None)
@given(documents=st.integers(0, 25), k=st.integers(0, 30), block=st.integers(1, 30), seed=st.integers(0, 1000))
def test_blocks_of_documents_change_nothing_and_only_allowed_documents_are_found(documents: int, k: int, block: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrix, queries = (draw.integers(0, 3, (rows, 4)).astype(np.float32) for rows in (documents, 3))
    allowed = draw.random(documents) < draw.random()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverted, "DOCUMENTS", block)
        index = inverted.of_vectors(Blocks(matrix))
        assert pairs(index.search(sparse(queries), k)) == brute_force(queries, matrix, k)
        assert pairs(index.search(sparse(queries), k, allowed)) == brute_force(queries, matrix * allowed[:, None], k)


def test_thousands_of_documents_are_ranked_as_by_a_sort_of_all_scores() -> None:
    matrix, queries = random_matrix(5000, 40, seed=5).round(1), random_matrix(3, 40, seed=6).round(1)
    products = queries.astype(np.float64) @ matrix.T.astype(np.float64)
    found, scores = inverted.of_vectors(Blocks(matrix, 1000)).search(sparse(queries), 50)
    for rows, values, exact in zip(found, scores, products, strict=True):
        np.testing.assert_allclose(values, np.sort(exact)[::-1][:50], rtol=1e-6)
        np.testing.assert_allclose(values, exact[rows], rtol=1e-6)


def test_sums_of_hundreds_of_products_are_exact_to_a_hundred_thousandth() -> None:
    matrix = random_matrix(20, 500, share=1.0)
    exact = matrix.astype(np.float64) @ matrix[0].astype(np.float64)
    rows, scores = inverted.of_vectors(Blocks(matrix)).search(sparse(matrix[:1]), 20)
    np.testing.assert_allclose(scores[0], exact[rows[0]], rtol=1e-5)


def test_a_term_that_a_query_has_twice_counts_twice() -> None:
    query = Ragged(np.array([0, 2]), {"dimensions": np.array([0, 0], dtype=np.int32), "values": np.array([1, 2], dtype=np.float32)})
    assert pairs(inverted.of_vectors(Blocks(np.array([[2]], dtype=np.float32))).search(query, 1)) == [[(0, 6)]]


# Encodings


@settings(max_examples=30, deadline=None)
@given(documents=st.integers(1, 20), asked=st.lists(st.integers(0, 19), max_size=8), part=st.integers(1, 40), gap=st.integers(1, 20))
def test_the_entries_of_documents_are_rebuilt_from_the_postings(documents: int, asked: list[int], part: int, gap: int) -> None:
    matrix = random_matrix(documents, 6, seed=documents, share=0.5)
    rows = np.array([row % documents for row in asked], dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverted, "POSTINGS", part)
        patch.setattr(inverted, "GAP", gap)
        found, expected = inverted.of_vectors(Blocks(matrix)).encodings(rows), sparse(matrix[rows])
    assert found is not None
    for one, other in ((found.offsets, expected.offsets), *((found.columns[name], expected.columns[name]) for name in ("dimensions", "values"))):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()


def test_damaged_rows_are_met_when_documents_are_rebuilt(built: Path) -> None:
    rows = np.load(built / "rows.npy")
    np.save(built / "rows.npy", rows[::-1].copy())
    with pytest.raises(SearchIndexError, match=r"rows\.npy: the index file is cut or damaged"):
        inverted.open_index(built).encodings(np.arange(10, 20))


# Quantised


def test_quantised_values_are_the_nearest_of_255_levels_up_to_the_largest_of_the_term(tmp_path: Path) -> None:
    matrix = np.array([[51, 0], [10.3, 4], [0.01, 2.01]], dtype=np.float32)  # a level of the first term is 0.2, of the second 4 / 255
    inverted.build(Blocks(matrix), tmp_path, InvertedSettings(quantised=True))
    index = inverted.open_index(tmp_path)
    assert index.values.tolist() == [255, 52, 1, 255, 128]  # nothing becomes 0: 10.3 / 0.2 is 51.5, and an even number is nearest
    found, scores = index.search(sparse(np.array([[1, 0], [0, 1]], dtype=np.float32)), 3)
    assert [rows.tolist() for rows in found] == [[0, 1, 2], [1, 2]]
    np.testing.assert_allclose(scores[0], [51, 10.4, 0.2], rtol=1e-6)
    np.testing.assert_allclose(scores[1], [4, 128 * 4 / 255], rtol=1e-6)


def test_a_quantised_entry_takes_5_bytes_and_cannot_be_expectedback(tmp_path: Path) -> None:
    matrix = random_matrix(50, 30)
    inverted.build(Blocks(matrix), tmp_path, InvertedSettings(quantised=True))
    entries = np.count_nonzero(matrix)
    assert [(tmp_path / name).stat().st_size - 128 for name in (*FILES, "scales.npy")] == [8 * 31, 4 * entries, entries, 4 * 30]
    assert inverted.open_index(tmp_path).encodings(np.array([0])) is None


def test_quantised_scores_are_within_a_level_for_each_product(tmp_path: Path) -> None:
    matrix, queries = random_matrix(200, 30), random_matrix(5, 30, seed=2)
    inverted.build(Blocks(matrix), tmp_path, InvertedSettings(quantised=True))
    found, scores = inverted.open_index(tmp_path).search(sparse(queries), 200)
    level = matrix.max(axis=0) / 255
    for rows, values, query in zip(found, scores, queries, strict=True):
        off = np.abs(values - matrix[rows] @ query)
        assert (off <= (matrix[rows] > 0) @ (level * query) + 1e-6).all()


@pytest.mark.parametrize("wrong", [-0.5, np.nan])
def test_a_value_that_is_not_above_0_cannot_be_quantised(tmp_path: Path, wrong: float) -> None:
    matrix = np.array([[1, wrong]], dtype=np.float32)
    with pytest.raises(SearchIndexError, match=r"vectors: has the value .*, and quantised = true needs values above 0"):
        inverted.build(Blocks(matrix), tmp_path, InvertedSettings(quantised=True))
    with pytest.raises(SearchIndexError, match=r"inverted\.json: the index file is missing"):
        inverted.open_index(tmp_path)


def test_missing_scales_are_one_clear_line(tmp_path: Path) -> None:
    inverted.build(Blocks(random_matrix(5, 3)), tmp_path, InvertedSettings(quantised=True))
    (tmp_path / "scales.npy").unlink()
    with pytest.raises(SearchIndexError, match=r"scales\.npy: the index file is missing"):
        inverted.open_index(tmp_path)


def test_an_index_that_is_no_longer_quantised_leaves_no_scales(tmp_path: Path) -> None:
    inverted.build(Blocks(random_matrix(5, 3)), tmp_path, InvertedSettings(quantised=True))
    inverted.build(Blocks(random_matrix(5, 3)), tmp_path, InvertedSettings())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inverted.json", *FILES]


# Files


def test_an_entry_takes_8_bytes_and_a_term_8(built: Path) -> None:
    entries = np.count_nonzero(random_matrix(50, 30))
    sizes = [(built / name).stat().st_size - 128 for name in FILES]  # numpy's header has 128 bytes
    assert sizes == [8 * 31, 4 * entries, 4 * entries]


def test_numpy_opens_the_arrays(built: Path) -> None:
    assert [np.load(built / name).dtype for name in FILES] == [np.int64, np.int32, np.float32]


@pytest.mark.parametrize("part", [1, 50, 300])
@pytest.mark.parametrize("quantised", [False, True])
def test_terms_written_in_parts_are_those_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, quantised: bool) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, postings in ((whole, inverted.POSTINGS), (parts, part)):
        folder.mkdir()
        monkeypatch.setattr(inverted, "POSTINGS", postings)
        inverted.build(Blocks(random_matrix(50, 30)), folder, InvertedSettings(quantised=quantised))
    assert [path.read_bytes() for path in sorted(parts.iterdir())] == [path.read_bytes() for path in sorted(whole.iterdir())]


def test_facts_of_an_earlier_version_do_not_say_whether_values_are_quantised(built: Path) -> None:
    path = built / "inverted.json"
    facts = json.loads(path.read_text())
    del facts["quantised"]
    path.write_text(json.dumps(facts))
    assert inverted.open_index(built).values.dtype == np.float32


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
