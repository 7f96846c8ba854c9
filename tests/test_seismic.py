"""The Seismic index against brute force and the exact index, what it chooses, and what becomes of a damaged file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retriever.errors import SearchIndexError
from retriever.ragged import Ragged
from retriever.settings.index import SeismicSettings
from tests.sparse_material import Blocks, brute_force, pairs, random_matrix, sparse

pytest.importorskip("seismic")

from retriever.indexing import inverted, seismic

ARRAYS = ("document_offsets.npy", "document_dimensions.npy", "document_values.npy")
FILES = (*ARRAYS, "seismic.bin", "seismic.json")
SETTINGS = SeismicSettings(postings=40, query_cut=4, heap_factor=0.9)


@pytest.fixture(scope="module")
def matrix() -> NDArray[np.float32]:
    """3,000 documents of 60 terms: so many postings that the settings leave most of them out."""
    return random_matrix(3000, 60, share=0.15)


@pytest.fixture(scope="module")
def approximate(matrix: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its index."""
    folder = tmp_path_factory.mktemp("approximate")
    seismic.build(Blocks(matrix, 700), folder, SETTINGS)
    return folder


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with an index of 50 documents and 30 terms."""
    seismic.build(Blocks(random_matrix(50, 30)), tmp_path, SeismicSettings(postings=50, query_cut=30, heap_factor=0.5))
    return tmp_path


# Search


def test_all_documents_that_share_a_term_are_ranked_as_by_brute_force(built: Path) -> None:
    documents, queries = random_matrix(50, 30), random_matrix(5, 30, seed=2)
    index = seismic.open_index(built)
    assert (len(index), index.dimensions) == (50, 30)
    rows, scores = index.search(sparse(queries), 50)
    for found, expected in zip(pairs((rows, scores)), brute_force(queries, documents, 50), strict=True):
        assert [row for row, _ in found] == [row for row, _ in expected]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-6)
    assert {array.dtype for array in rows} == {np.dtype(np.int64)}
    assert {array.dtype for array in scores} == {np.dtype(np.float32)}


def test_scores_are_exact_and_best_first_whatever_is_missed(approximate: Path, matrix: NDArray[np.float32]) -> None:
    queries = random_matrix(20, 60, seed=2)
    found, scores = seismic.open_index(approximate).search(sparse(queries), 10)
    exact = inverted.of_vectors(Blocks(matrix)).search(sparse(queries), 10)[0]
    assert 0.2 < np.mean([np.isin(rows, best).mean() for rows, best in zip(found, exact, strict=True)]) < 1.0
    for rows, values, query in zip(found, scores, queries, strict=True):
        assert len(set(rows.tolist())) == 10
        np.testing.assert_allclose(values, matrix[rows].astype(np.float64) @ query, rtol=1e-6)
        assert (np.diff(values) <= 0).all()


@settings(max_examples=15, deadline=None)
@given(documents=st.integers(0, 12), k=st.integers(0, 15), seed=st.integers(0, 1000))
def test_no_fewer_are_found_than_there_are(tmp_path_factory: pytest.TempPathFactory, documents: int, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrix, queries = (draw.integers(0, 3, (rows, 4)).astype(np.float32) for rows in (documents, 3))
    allowed = draw.random(documents) < draw.random()
    folder = tmp_path_factory.mktemp("small")
    seismic.build(Blocks(matrix), folder, SeismicSettings(postings=1, query_cut=1, heap_factor=1.0))
    index = seismic.open_index(folder)
    for mask in (np.ones(documents, dtype=bool), allowed):
        expected = brute_force(queries, matrix * mask[:, None], k)
        found = index.search(sparse(queries), k, None if mask.all() else mask)
        assert [len(rows) for rows in found[0]] == [len(rows) for rows in expected]
        for rows in found[0]:
            assert mask[rows].all()


@pytest.mark.parametrize("n_allowed", [0, 1, 5, 200])
def test_few_allowed_documents_are_all_compared(approximate: Path, matrix: NDArray[np.float32], n_allowed: int) -> None:
    allowed = np.zeros(len(matrix), dtype=bool)
    allowed[np.random.default_rng(3).choice(len(matrix), n_allowed, replace=False)] = True
    queries = sparse(random_matrix(5, 60, seed=2))
    found = seismic.open_index(approximate).search(queries, 10, allowed)
    exact = inverted.of_vectors(Blocks(matrix)).search(queries, 10, allowed)
    assert [rows.tolist() for rows in found[0]] == [rows.tolist() for rows in exact[0]]


def test_of_many_allowed_documents_as_many_are_found_as_wanted(approximate: Path, matrix: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seismic, "FEW", 0)
    allowed = np.random.default_rng(3).random(len(matrix)) < 0.1
    found, scores = seismic.open_index(approximate).search(sparse(random_matrix(20, 60, seed=2)), 25, allowed)
    assert {len(rows) for rows in found} == {25}
    assert all(allowed[rows].all() for rows in found)
    assert all((np.diff(values) <= 0).all() for values in scores)


def test_more_than_the_engine_finds_are_taken_from_all_documents(approximate: Path, matrix: NDArray[np.float32]) -> None:
    queries = sparse(random_matrix(3, 60, seed=2))
    found = seismic.open_index(approximate).search(queries, 3000)
    exact = inverted.of_vectors(Blocks(matrix)).search(queries, 3000)
    for one, other in zip(found[1], exact[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_queries_without_entries_or_with_terms_that_no_document_has_find_nothing(tmp_path: Path) -> None:
    matrix = np.zeros((5, 9), dtype=np.float32)
    matrix[:, 2] = 1
    seismic.build(Blocks(matrix), tmp_path, SETTINGS)
    queries = np.zeros((3, 9), dtype=np.float32)
    queries[1, 8] = queries[2, 8] = queries[2, 2] = 1
    assert pairs(seismic.open_index(tmp_path).search(sparse(queries), 3)) == [[], [], [(0, 1), (1, 1), (2, 1)]]


@pytest.mark.parametrize("documents", [0, 4])
def test_no_documents_and_empty_ones_make_an_index_that_finds_nothing(tmp_path: Path, documents: int) -> None:
    seismic.build(Blocks(np.zeros((documents, 3), dtype=np.float32)), tmp_path, SeismicSettings())
    index = seismic.open_index(tmp_path)
    assert (len(index), index.dimensions) == (documents, 3)
    assert pairs(index.search(sparse(np.ones((2, 3), dtype=np.float32)), 5)) == [[], []]
    assert pairs(index.search(sparse(np.zeros((0, 3), dtype=np.float32)), 5)) == []


def test_the_order_of_a_querys_entries_does_not_matter(built: Path) -> None:
    query = sparse(random_matrix(1, 30, seed=2))
    turned = Ragged(query.offsets, {name: column[::-1] for name, column in query.columns.items()})
    index = seismic.open_index(built)
    assert pairs(index.search(turned, 5)) == pairs(index.search(query, 5))


def test_dimensions_beyond_two_bytes_are_kept(tmp_path: Path) -> None:
    offsets = np.array([0, 2, 3], dtype=np.int64)
    documents = Ragged(offsets, {"dimensions": np.array([5, 70_000, 70_001], dtype=np.int32), "values": np.array([1, 2, 3], dtype=np.float32)})
    vectors = Blocks(np.zeros((2, 80_000), dtype=np.float32))
    vectors.blocks = lambda: iter([documents])  # type: ignore[method-assign]
    seismic.build(vectors, tmp_path, SETTINGS)
    index = seismic.open_index(tmp_path)
    assert pairs(index.search(documents, 2)) == [[(0, 5)], [(1, 9)]]
    assert index.encodings(np.array([1])).columns["dimensions"].tolist() == [70_001]


# Encodings


def test_the_entries_of_documents_are_those_given(built: Path) -> None:
    rows = np.array([7, 3, 7, 49])
    found, expected = seismic.open_index(built).encodings(rows), sparse(random_matrix(50, 30)[rows])
    for one, other in ((found.offsets, expected.offsets), *((found.columns[name], expected.columns[name]) for name in ("dimensions", "values"))):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()


# What is chosen


def test_what_was_left_out_is_chosen_to_reach_the_recall_and_told(tmp_path: Path, matrix: NDArray[np.float32]) -> None:
    facts = seismic.build(Blocks(matrix, 700), tmp_path, SeismicSettings(recall=0.9))
    assert facts["recall"] >= 0.9
    assert facts == json.loads((tmp_path / "seismic.json").read_text())
    assert {facts["query_cut"], facts["heap_factor"]} <= {*seismic.QUERY_CUTS, *seismic.HEAP_FACTORS}
    queries = sparse(random_matrix(50, 60, seed=2))
    found = seismic.open_index(tmp_path).search(queries, 10)[0]
    exact = inverted.of_vectors(Blocks(matrix)).search(queries, 10)[0]
    assert np.mean([np.isin(rows, best).mean() for rows, best in zip(found, exact, strict=True)]) > 0.85


def test_more_recall_takes_no_less_effort(tmp_path: Path, matrix: NDArray[np.float32]) -> None:
    made = [seismic.build(Blocks(matrix), tmp_path, SeismicSettings(recall=recall)) for recall in (0.3, 0.99)]
    assert made[0]["postings"] <= made[1]["postings"]
    assert made[0]["recall"] < made[1]["recall"]


def test_what_was_given_is_kept(built: Path) -> None:
    facts = json.loads((built / "seismic.json").read_text())
    assert [facts[name] for name in ("postings", "query_cut", "heap_factor")] == [50, 30, 0.5]


def test_the_same_documents_make_the_same_files(approximate: Path, matrix: NDArray[np.float32], tmp_path: Path) -> None:
    seismic.build(Blocks(matrix, 11), tmp_path, SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert [(tmp_path / name).read_bytes() for name in FILES] == [(approximate / name).read_bytes() for name in FILES]


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seismic.build(Blocks(random_matrix(50, 30)), tmp_path, SETTINGS)
    seismic.open_index(tmp_path).search(sparse(random_matrix(1, 30)), 3)
    assert capfd.readouterr().out == ""


# Files


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_clear_line(built: Path, name: str) -> None:
    (built / name).unlink()
    with pytest.raises(SearchIndexError, match=rf"{name}: the index file is missing\. Build it again with: retriever index"):
        seismic.open_index(built)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_cut_file_is_one_clear_line(built: Path, name: str, share: float) -> None:
    content = (built / name).read_bytes()
    (built / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(SearchIndexError, match=rf"{name}: the index file is cut or damaged") as refusal:
        seismic.open_index(built)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_flipped_byte_is_found_before_the_engine_reads_the_file(built: Path, share: float) -> None:
    content = bytearray((built / "seismic.bin").read_bytes())
    content[int(share * len(content))] ^= 1
    (built / "seismic.bin").write_bytes(bytes(content))
    with pytest.raises(SearchIndexError, match=r"seismic\.bin: the index file is cut or damaged"):
        seismic.open_index(built)


def test_a_file_that_this_seismic_cannot_read_says_which_wrote_it(built: Path) -> None:
    (built / "seismic.bin").write_bytes(b"of another version")
    facts = json.loads((built / "seismic.json").read_text())
    facts |= {"bytes": 18, "sha256": seismic.sha256_file(built / "seismic.bin"), "seismic": "0.1"}
    (built / "seismic.json").write_text(json.dumps(facts))
    with pytest.raises(SearchIndexError, match=r"seismic\.bin: Seismic .* cannot read what 0\.1 wrote"):
        seismic.open_index(built)


@pytest.mark.parametrize("facts", ["[]", "{}", "3", '{"documents": 1, "dimensions": 1, "entries": 1, "query_cut": 1, "heap_factor": 1.0}'])
def test_facts_of_another_shape_are_refused(built: Path, facts: str) -> None:
    (built / "seismic.json").write_text(facts)
    with pytest.raises(SearchIndexError, match=r"seismic\.json: the index file is cut or damaged"):
        seismic.open_index(built)


@pytest.mark.parametrize("allowed", [None, np.arange(50) < 20])
def test_a_damaged_dimension_is_met_before_it_is_looked_up(built: Path, allowed: NDArray[np.bool_] | None) -> None:
    path = built / "document_dimensions.npy"
    np.save(path, np.full_like(np.load(path), 60_000))
    with pytest.raises(SearchIndexError, match=r"document_dimensions\.npy: the index file is cut or damaged"):
        seismic.open_index(built).search(sparse(random_matrix(1, 30)), 5, allowed)


def test_a_stop_before_the_engine_is_written_leaves_no_index(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(seismic, "sha256_file", stop)
    with pytest.raises(KeyboardInterrupt):
        seismic.build(Blocks(random_matrix(50, 30, seed=9)), built, SETTINGS)
    monkeypatch.undo()
    assert not (built / seismic.INPUT).exists()
    with pytest.raises(SearchIndexError, match=r"seismic\.json: the index file is missing"):
        seismic.open_index(built)


# Queries


@pytest.mark.parametrize(("dimension", "value", "message"), [(-1, 1.0, "the query has dimension -1"), (30, 1.0, "dimension 30"), (3, np.inf, "not finite")])
def test_a_query_that_does_not_fit_is_refused(built: Path, dimension: int, value: float, message: str) -> None:
    query = Ragged(np.array([0, 1]), {"dimensions": np.array([dimension], dtype=np.int32), "values": np.array([value], dtype=np.float32)})
    with pytest.raises(SearchIndexError, match=message):
        seismic.open_index(built).search(query, 5)
