"""The approximate late-interaction index: its codes against the definition, its search against slow MaxSim, and what becomes of damaged files."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retriever import encodings
from retriever.errors import SearchIndexError
from retriever.indexing import _arrays, _centroids, _token_files, multivector, token_clusters
from retriever.indexing._residuals import Buckets, fit_buckets
from retriever.indexing._token_sample import choose, sample_queries, sample_tokens, share
from retriever.ragged import Ragged
from retriever.ragged_encodings import RaggedVectors
from retriever.settings.index import TokenClustersSettings

Texts = list[NDArray[np.float32]]
FILES = ("offsets.npy", "centroids.npy", "codes.npy", "scales.npy", "residuals.npy", "lists.npy", "rows.npy")
CHOSEN = TokenClustersSettings(centroids=12, probes=2, candidates=4)


def random_texts(seed: int, texts: int, longest: int = 9, dimensions: int = 8, shortest: int = 0, words: int = 20) -> Texts:
    """Unit vectors near those of a few words, exact in float16."""
    generator = np.random.default_rng(seed)
    vocabulary = np.random.default_rng(0).normal(size=(words, dimensions))
    made = []
    for length in generator.integers(shortest, longest + 1, texts):
        vectors = vocabulary[generator.integers(0, words, length)] + 0.3 * generator.normal(size=(length, dimensions))
        made.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32))
    return made


def ragged(texts: Texts, dimensions: int = 8) -> Ragged:
    return Ragged.of_lists("vectors", texts, dimensions)


def stored(folder: Path, texts: Texts, dimensions: int = 8, kind: type = np.float16) -> RaggedVectors:
    """The texts as an encoder leaves them on disk, in blocks."""
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(texts), encodings.BLOCK)):
        block = Ragged.of_lists("vectors", [text.astype(kind) for text in texts[start : start + encodings.BLOCK]], dimensions)
        np.save(folder / f"{number:06d}.vectors.npy", block.columns["vectors"])
        np.save(folder / f"{number:06d}.offsets.npy", block.offsets)
    return RaggedVectors(folder, len(texts), ("vectors",), "an encoder", dimensions)


def decompressed(folder: Path) -> list[NDArray[np.float64]]:
    """The documents' vectors as the files say, number by number."""
    facts = json.loads((folder / "token_clusters.json").read_text())
    offsets, centroids, codes, scales, residuals = (np.load(folder / name) for name in FILES[:5])
    vectors = np.zeros((len(codes), facts["dimensions"]))
    for token in range(len(codes)):
        for dimension in range(facts["dimensions"]):
            bit = dimension * facts["bits"]
            code = int(residuals[token, bit // 8]) >> (bit % 8) & (2 ** facts["bits"] - 1)
            vectors[token, dimension] = float(centroids[codes[token], dimension]) + facts["values"][code] * facts["spread"][dimension]
    return np.split(vectors * scales.astype(np.float64)[:, None], offsets[1:-1])


def slow_scores(queries: Texts, documents: list[NDArray[Any]]) -> NDArray[np.float64]:
    """[B, N] in double precision, token by token."""
    return np.array([[sum(best_of(token, document) for token in query.astype(np.float64)) for document in documents] for query in queries])


def best_of(token: NDArray[np.float64], document: NDArray[Any]) -> float:
    return max((float(token @ other) for other in document.astype(np.float64)), default=-float(np.linalg.norm(token)))


def best_rows(scores: NDArray[np.float64], k: int) -> list[int]:
    return list(np.argsort(-scores, kind="stable")[:k].tolist())


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few documents already take several blocks of every kind."""
    monkeypatch.setattr(encodings, "BLOCK", 10)
    monkeypatch.setattr(token_clusters, "DOCUMENT_TOKENS", 16)
    monkeypatch.setattr(_token_files, "TOKENS", 13)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Texts, dict[str, Any]]:
    """A folder with an index of 60 documents of 8 dimensions, the documents, and what building told; read it only."""
    folder, texts = tmp_path_factory.mktemp("index"), random_texts(1, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encodings, "BLOCK", 10)
        told = token_clusters.build(stored(folder / "tokens", texts), folder, CHOSEN)
    return folder, texts, told


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with an index of 25 documents, which a test may damage."""
    token_clusters.build(stored(tmp_path / "tokens", random_texts(1, 25)), tmp_path, CHOSEN)
    return tmp_path


# Search


@pytest.mark.parametrize(("bits", "dimensions"), [(1, 8), (2, 8), (4, 8), (2, 5), (4, 3)])
def test_scores_are_maxsim_of_what_the_files_say(tmp_path: Path, bits: int, dimensions: int) -> None:
    texts, queries = random_texts(1, 30, dimensions=dimensions), random_texts(2, 4, shortest=1, dimensions=dimensions)
    settings = TokenClustersSettings.model_validate({"kind": "token_clusters", "bits": bits, "centroids": 10, "candidates": 30})
    token_clusters.build(stored(tmp_path / "tokens", texts, dimensions), tmp_path, settings)
    index = token_clusters.open_index(tmp_path)
    assert (len(index), index.dimensions, index.encodings(np.arange(2))) == (30, dimensions, None)
    rows, scores = index.search(ragged(queries, dimensions), 30)
    expected = slow_scores(queries, decompressed(tmp_path))
    for query in range(4):
        assert sorted(rows[query].tolist()) == list(range(30))
        np.testing.assert_allclose(scores[query], expected[query][rows[query]], atol=1e-5)
        np.testing.assert_allclose(scores[query], -np.sort(-expected[query]), atol=1e-5)
        assert (rows[query].dtype, scores[query].dtype) == (np.int64, np.float32)


def test_more_bits_lose_less_and_every_vector_keeps_its_length(tmp_path: Path) -> None:
    texts = random_texts(1, 40, shortest=2)
    texts[3] *= 3
    lost = []
    for bits in (1, 2, 4):
        settings = TokenClustersSettings.model_validate({"kind": "token_clusters", "bits": bits, "centroids": 10, "probes": 1, "candidates": 40})
        token_clusters.build(stored(tmp_path / "tokens", texts), tmp_path, settings)
        found = np.concatenate(decompressed(tmp_path))
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(np.concatenate(texts), axis=1), rtol=1e-3)
        lost.append(float(np.square(found - np.concatenate(texts)).sum()))
    assert lost[0] > lost[1] > 4 * lost[2]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 70), share=st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0]))
def test_only_allowed_documents_are_found_and_never_fewer_than_there_are(
    collection: tuple[Path, Texts, dict[str, Any]], seed: int, k: int, share: float
) -> None:
    folder, _, _ = collection
    allowed = np.random.default_rng(seed).random(60) < share
    queries = random_texts(seed, 2, shortest=1)
    expected = slow_scores(queries, decompressed(folder))
    for found, scores, of_all in zip(*token_clusters.open_index(folder).search(ragged(queries), k, allowed), expected, strict=True):
        assert len(set(found.tolist())) == len(found) == min(k, allowed.sum())
        assert allowed[found].all()
        np.testing.assert_allclose(scores, of_all[found], atol=1e-5)
        assert (np.diff(scores) <= 0).all()
        if allowed.sum() <= 8 or k >= allowed.sum():  # twice the 4 candidates: none is left out
            np.testing.assert_allclose(scores, -np.sort(-of_all[allowed])[:k], atol=1e-5)


def test_with_all_centroids_the_candidates_are_the_best_by_their_centroids(collection: tuple[Path, Texts, dict[str, Any]]) -> None:
    folder, _, _ = collection
    offsets, centroids, codes = (np.load(folder / name) for name in FILES[:3])
    by_centroid = np.split(centroids[codes].astype(np.float64), offsets[1:-1])
    vectors = decompressed(folder)
    index = token_clusters.TokenClustersIndex(token_clusters.open_index(folder).files, probes=12, candidates=5)
    for query in random_texts(7, 10, shortest=1):
        filled = [row for row in range(60) if len(vectors[row])]
        candidates = np.array(filled)[best_rows(slow_scores([query], [by_centroid[row] for row in filled])[0], 5)]
        scores = slow_scores([query], [vectors[row] for row in candidates])[0]
        rows, found = index.search(ragged([query]), 3)
        np.testing.assert_allclose(found[0], -np.sort(-scores)[:3], atol=1e-5)
        assert set(rows[0].tolist()) <= set(candidates.tolist())


def test_a_probed_document_has_the_best_of_its_probed_centroids_for_each_token(collection: tuple[Path, Texts, dict[str, Any]]) -> None:
    folder, _, _ = collection
    index = token_clusters.open_index(folder)
    offsets, codes = np.load(folder / "offsets.npy"), np.load(folder / "codes.npy")
    near = np.random.default_rng(3).permutation(24).reshape(2, 12).astype(np.float32)
    rows, scores = index._probed(near, 3, None)
    expected = {}
    for row in range(60):
        own = set(codes[offsets[row] : offsets[row + 1]].tolist())
        probed = [np.argsort(-token)[:3] for token in near]
        if any(own & set(some.tolist()) for some in probed):
            gains = [max([token[c] for c in some if c in own], default=token[some[-1]]) - token[some[-1]] for token, some in zip(near, probed, strict=True)]
            expected[row] = sum(gains)
    assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == expected


def test_what_is_chosen_on_a_sample_finds_the_wanted_share_for_new_queries(tmp_path: Path) -> None:
    texts = random_texts(1, 250, longest=12, shortest=6, dimensions=16, words=60)
    vectors = stored(tmp_path / "tokens", texts, 16)
    told = token_clusters.build(vectors, tmp_path, TokenClustersSettings.model_validate({"kind": "token_clusters", "bits": 4, "recall": 0.9}))
    assert told["recall"] >= 0.9
    assert 2 * told["candidates"] < 250  # so that centroids are probed
    queries = ragged(random_texts(5, 60, longest=8, shortest=4, dimensions=16, words=60), 16)
    exact, _ = multivector.search_blocks(vectors, queries, 10)
    found, _ = token_clusters.open_index(tmp_path).search(queries, 10)
    assert share(list(found), list(exact)) > 0.85


def test_what_the_settings_say_is_kept_and_told(collection: tuple[Path, Texts, dict[str, Any]]) -> None:
    folder, texts, told = collection
    tokens = sum(len(text) for text in texts)
    chosen = {"documents": 60, "dimensions": 8, "tokens": tokens, "bits": 2, "centroids": 12, "probes": 2, "candidates": 4}
    assert {name: told[name] for name in chosen} == chosen
    assert 0 < told["recall"] <= 1
    index = token_clusters.open_index(folder)
    assert (index.probes, index.candidates, index.folder) == (2, 4, folder)


def test_equal_documents_are_found_in_the_order_of_their_rows(tmp_path: Path) -> None:
    one, other = random_texts(1, 2, shortest=3)
    token_clusters.build(stored(tmp_path / "tokens", [other, one, one, other, one]), tmp_path, TokenClustersSettings(centroids=4))
    rows, scores = token_clusters.open_index(tmp_path).search(ragged([one]), 5)
    assert rows[0].tolist() == [1, 2, 4, 0, 3]
    assert scores[0][0] == scores[0][2]


def test_documents_without_tokens_come_last_and_queries_without_tokens_find_the_first_rows(tmp_path: Path) -> None:
    nothing = np.zeros((0, 8), dtype=np.float32)
    token_clusters.build(stored(tmp_path / "tokens", [nothing, *random_texts(1, 3, shortest=1), nothing]), tmp_path, TokenClustersSettings())
    index = token_clusters.open_index(tmp_path)
    rows, scores = index.search(ragged([np.eye(8, dtype=np.float32)[:2] * 2, nothing]), 9)
    assert (sorted(rows[0].tolist()[:3]), rows[0].tolist()[3:], scores[0].tolist()[3:]) == ([1, 2, 3], [0, 4], [-4, -4])
    assert (rows[1].tolist(), scores[1].tolist()) == ([0, 1, 2, 3, 4], [0, 0, 0, 0, 0])
    rows, _ = index.search(ragged([nothing]), 2, np.array([False, False, True, True, True]))
    assert rows[0].tolist() == [2, 3]


@pytest.mark.parametrize("texts", [[], [np.zeros((0, 8), dtype=np.float32)] * 3, [np.eye(8, dtype=np.float32)[:1]]])
def test_hardly_anything_has_an_index(tmp_path: Path, texts: Texts) -> None:
    told = token_clusters.build(stored(tmp_path / "tokens", texts), tmp_path, TokenClustersSettings())
    index = token_clusters.open_index(tmp_path)
    rows, scores = index.search(ragged([np.eye(8, dtype=np.float32)[:2]]), 5)
    assert (len(index), told["recall"], rows[0].tolist()) == (len(texts), 1, list(range(len(texts))))
    np.testing.assert_allclose(scores[0], slow_scores([np.eye(8, dtype=np.float32)[:2]], list(texts))[0] if texts else [], atol=2e-3)
    assert index.search(Ragged.of_lists("vectors", [], 8), 5) == ([], [])


def test_two_builds_write_the_same_bytes(tmp_path: Path) -> None:
    vectors = stored(tmp_path / "tokens", random_texts(1, 40))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        token_clusters.build(vectors, tmp_path / name, TokenClustersSettings())
    for name in (*FILES, "token_clusters.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_float32_vectors_give_the_index_of_their_float16_ones(built: Path) -> None:
    before = {name: (built / name).read_bytes() for name in FILES}
    token_clusters.build(stored(built / "single", random_texts(1, 25), kind=np.float32), built, CHOSEN)
    assert before == {name: (built / name).read_bytes() for name in FILES}


def test_a_token_of_128_dimensions_takes_40_bytes_at_most(tmp_path: Path) -> None:
    texts = random_texts(1, 50, dimensions=128, longest=20)
    told = token_clusters.build(stored(tmp_path / "tokens", texts, 128), tmp_path, TokenClustersSettings(centroids=30, probes=1, candidates=9))
    sizes = {name: (tmp_path / name).stat().st_size - 128 for name in FILES}  # numpy's header has 128 bytes
    tokens = told["tokens"]
    assert (sizes["codes.npy"], sizes["scales.npy"], sizes["residuals.npy"]) == (2 * tokens, 2 * tokens, 32 * tokens)
    assert sizes["rows.npy"] <= 4 * tokens


def test_the_list_of_a_centroid_has_every_document_of_it_once(collection: tuple[Path, Texts, dict[str, Any]]) -> None:
    offsets, _, codes, _, _, lists, rows = (np.load(collection[0] / name) for name in FILES)
    for centroid in range(12):
        expected = [row for row in range(60) if centroid in codes[offsets[row] : offsets[row + 1]]]
        assert rows[lists[centroid] : lists[centroid + 1]].tolist() == expected
    assert lists[-1] == len(rows)


# Parts


@settings(max_examples=50, deadline=None)
@given(scores=st.lists(st.integers(0, 3), max_size=12), count=st.integers(1, 12))
def test_the_best_of_equal_ones_are_the_first(scores: list[int], count: int) -> None:
    rows = np.arange(len(scores)) * 2
    expected = sorted(2 * place for place in sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count])
    assert token_clusters._best(rows, np.array(scores, dtype=np.float32), count).tolist() == expected


def test_codes_by_hand() -> None:
    buckets = Buckets(np.array([-3, -1, 1, 3], dtype=np.float32), np.array([1, 1, 1, 2, 1], dtype=np.float32))
    packed = buckets.encode(np.array([[-9, -1.5, 0.5, 8, 1]], dtype=np.float32))
    assert packed.tolist() == [[0b11100100, 0b00000010]]  # codes 0, 1, 2, 3 and 2, the first in the lowest bits
    assert buckets.decode(packed).tolist() == [[-3, -1, 1, 6, 1]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_residuals_of_as_many_values_as_there_are_codes_are_kept_exactly(bits: int) -> None:
    values = np.linspace(-1, 1, 2**bits, dtype=np.float32)
    residuals = np.random.default_rng(1).permutation(np.tile(values, 40))[:, None] * np.ones(3, dtype=np.float32)
    buckets = fit_buckets(residuals, bits)
    np.testing.assert_allclose(buckets.decode(buckets.encode(residuals)), residuals, atol=1e-6)


def test_two_bits_of_a_normal_number_lose_what_the_best_quantiser_does() -> None:
    numbers = np.random.default_rng(1).normal(size=(20_000, 4)).astype(np.float32) * np.array([1, 2, 3, 4], dtype=np.float32)
    buckets = fit_buckets(numbers, 2)
    lost = np.square(buckets.decode(buckets.encode(numbers)) - numbers).mean(axis=0) / np.array([1, 4, 9, 16])
    np.testing.assert_allclose(lost, 0.1175, atol=0.004)  # Max 1960, table I
    np.testing.assert_allclose(buckets.values, [-1.510, -0.4528, 0.4528, 1.510], atol=0.03)


def test_the_nearest_centroid_is_that_of_brute_force_and_with_cells_nearly_always(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = np.concatenate(random_texts(1, 300, words=200))
    distances = np.linalg.norm(sample[:, None] - sample[None, :150], axis=2)
    assert np.array_equal(_centroids.Centroids(torch.from_numpy(sample[:150])).nearest(sample), distances.argmin(axis=1))
    monkeypatch.setattr(_centroids, "FLAT", 40)
    trained = _centroids.train_centroids(sample, 150, np.random.default_rng(1))
    assert trained.near is not None
    assert trained.near.shape == (12, 41)
    expected = np.linalg.norm(sample[:, None] - trained.vectors.numpy()[None], axis=2).argmin(axis=1)
    assert (trained.nearest(sample) == expected).mean() > 0.95


def test_centroids_of_separate_heaps_are_their_means() -> None:
    heaps = np.array([[0.0, 0], [10, 0], [0, 10]])
    generator = np.random.default_rng(2)
    sample = (np.repeat(heaps, 50, axis=0) + 0.1 * generator.normal(size=(150, 2))).astype(np.float32)
    trained = _centroids.train_centroids(sample[[0, 1, 60, 61, 110, 111]], 9, generator)  # no more than there are vectors
    assert len(trained.vectors) == 6
    found = [_centroids.train_centroids(sample, 3, np.random.default_rng(seed)).vectors.numpy() for seed in range(8)]
    means = sample.reshape(3, 50, 2).mean(axis=1)
    assert any(np.allclose(one[np.argsort(one @ [1, 2])], means[np.argsort(means @ [1, 2])], atol=0.01) for one in found)


def test_probes_and_candidates_are_the_least_work_that_reaches_the_recall() -> None:
    def recall(probes: int, candidates: int) -> float:
        return min(0.8 + 0.02 * probes, 0.99) * min(1, candidates / 64)

    def work(probes: int, candidates: int) -> float:
        return 10 * probes + candidates

    assert choose(TokenClustersSettings(recall=0.95), 10_000, recall, work) == (8, 64, pytest.approx(0.96))
    assert choose(TokenClustersSettings(recall=0.85), 10_000, recall, work)[:2] == (4, 64)
    assert choose(TokenClustersSettings(recall=0.95, probes=1), 10_000, recall, work)[:2] == (1, 64)  # out of reach: the cheapest of the best
    assert choose(TokenClustersSettings(recall=0.95, candidates=32), 10_000, recall, work)[:2] == (16, 32)
    assert choose(TokenClustersSettings(recall=0.95), 40, recall, work)[:2] == (16, 32)  # no more candidates than documents


def test_the_share_that_was_found_by_hand() -> None:
    assert share([np.array([1, 2, 3]), np.array([7])], [np.array([3, 4, 1]), np.array([5])]) == 0.5
    assert share([], []) == 1


def test_the_sample_is_of_different_tokens_and_queries_are_pieces_of_their_documents(tmp_path: Path) -> None:
    texts = random_texts(1, 30, longest=50, dimensions=8)
    vectors, counts = stored(tmp_path / "tokens", texts), np.array([len(text) for text in texts])
    everything = np.concatenate(texts)
    assert np.array_equal(sample_tokens(vectors, len(everything), 10**6, np.random.default_rng(1)), everything)
    some = sample_tokens(vectors, len(everything), 40, np.random.default_rng(1))
    assert len(np.unique(some, axis=0)) == 40
    assert len(np.unique(np.concatenate([some, everything]), axis=0)) == len(everything)
    queries, own = sample_queries(vectors, counts, np.random.default_rng(1))
    assert own.tolist() == np.flatnonzero(counts).tolist()
    for number, row in enumerate(own):
        piece = queries[np.array([number])].columns["vectors"]
        assert len(piece) == min(32, counts[row])
        assert any(np.array_equal(piece, texts[row][start : start + len(piece)]) for start in range(counts[row]))


def test_a_long_file_is_told_apart_by_its_length_and_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = np.random.default_rng(1).bytes(3 * 2**20)
    path.write_bytes(content)
    digest = _arrays.quick_digest(path)
    for other in (content[:-1], content + b"\0", b"x" + content[1:], content[:-1] + b"x", content[: -(2**20)] + bytes(2**20)):
        path.write_bytes(other)
        assert _arrays.quick_digest(path) != digest


# What is refused


@pytest.mark.parametrize("file", [*FILES, "token_clusters.json"])
def test_a_missing_file_is_one_clear_line(built: Path, file: str) -> None:
    (built / file).unlink()
    with pytest.raises(SearchIndexError, match=rf"{re.escape(file)}: the index file is missing\. Build it again with: retriever index"):
        token_clusters.open_index(built)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", [-10_000, -1, 1, 64])
def test_a_file_of_another_length_is_one_clear_line(built: Path, file: str, change: int) -> None:
    path = built / file
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) + change)] if change < 0 else content + bytes(change))
    with pytest.raises(SearchIndexError, match="cut or damaged") as refusal:
        token_clusters.open_index(built)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_is_refused_wherever_it_is(built: Path, file: str) -> None:
    path = built / file
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 20)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(SearchIndexError, match="cut or damaged"):
            token_clusters.open_index(built)


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in ("documents", "tokens", "centroids", "probes") for value in (-1, 1.5, "1", None, True)),
        *({"bits": bits} for bits in (0, 3, 4)),
        {"probes": 0},
        {"values": [0.0]},
        {"values": [0.0, 1.0, 2.0, "3"]},
        {"spread": None},
        {"files": {}},
        {"files": []},
        {"another": 1},
        {"centroids": 11},
        {"dimensions": 7},
    ],
)
def test_facts_that_are_not_those_of_an_index_are_refused(built: Path, change: dict[str, Any]) -> None:
    path = built / "token_clusters.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SearchIndexError, match="cut or damaged"):
        token_clusters.open_index(built)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000])
def test_facts_that_are_no_object_are_refused(built: Path, content: str) -> None:
    (built / "token_clusters.json").write_text(content)
    with pytest.raises(SearchIndexError, match=r"token_clusters\.json: the index file is cut or damaged"):
        token_clusters.open_index(built)


def test_numbers_that_lead_nowhere_are_an_error_and_no_crash(built: Path) -> None:
    codes = np.load(built / "codes.npy")
    np.save(built / "codes.npy", np.full_like(codes, 60_000))
    path = built / "token_clusters.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": _token_files.digests(built)}))
    with pytest.raises(SearchIndexError, match="the index is damaged"):
        token_clusters.open_index(built).search(ragged(random_texts(5, 1, shortest=1)), 5)


def test_a_build_that_stops_between_its_files_leaves_no_mixture(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_token_files, "_lists", stop)
    with pytest.raises(KeyboardInterrupt):
        token_clusters.build(stored(built / "other", random_texts(4, 25)), built, CHOSEN)
    with pytest.raises(SearchIndexError, match=r"token_clusters\.json: the index file is missing"):
        token_clusters.open_index(built)


def test_an_opened_index_outlives_its_replacement(built: Path) -> None:
    index, queries = token_clusters.open_index(built), ragged(random_texts(5, 2, shortest=1))
    before = index.search(queries, 5)
    token_clusters.build(stored(built / "other", random_texts(6, 12)), built, CHOSEN)
    after = index.search(queries, 5)
    assert np.array_equal(before, after)
    assert len(token_clusters.open_index(built)) == 12


def test_queries_and_vectors_that_do_not_fit_are_refused(built: Path) -> None:
    index, query = token_clusters.open_index(built), random_texts(1, 1, shortest=1)
    with pytest.raises(SearchIndexError, match="holds vectors of 8 dimensions, the query has 7"):
        index.search(ragged(random_texts(1, 1, dimensions=7, shortest=1), 7), 5)
    query[0][0, 3] = np.nan
    with pytest.raises(SearchIndexError, match="a query's vector is not finite"):
        index.search(ragged(query), 5)
    with pytest.raises(SearchIndexError, match="not of 8 finite numbers that float16 can hold"):
        token_clusters.build(stored(built / "infinite", query), built, CHOSEN)
