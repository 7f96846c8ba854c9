"""What "auto" becomes, with numbers that can be worked out by hand."""

import importlib.util

import pytest

from retriever.index.choice import EXACT_SPARSE, EXACT_TOKENS, choose, in_words, machine_memory
from retriever.settings.index import AutoSettings, FlatSettings, HnswSettings, IvfSettings, TokenClustersSettings

GRAPH = 4 * 66 + 16
MILLION = 1_000_000


def auto(memory: str | None = None, recall: float = 0.9) -> AutoSettings:
    return AutoSettings(memory=memory, recall=recall, batch_size=32)


@pytest.mark.parametrize("kind", ["dense", "static"])
def test_few_vectors_are_all_compared(kind: str) -> None:
    settings, why = choose(auto(), kind, 100_000, 400)
    assert settings == FlatSettings(batch_size=32, recall=0.9)
    assert why == "100,000 vectors of 400 dimensions are few enough to compare them all, with nothing lost"
    assert choose(auto("100GB"), kind, 100_001, 400)[0] == HnswSettings(batch_size=32, recall=0.9)


def test_the_reason_names_the_bytes_and_what_would_not_fit() -> None:
    vectors = 4 * 1000 * MILLION
    needed = vectors + GRAPH * MILLION + 2**30
    settings, why = choose(auto(f"{needed}B"), "dense", MILLION, 1000)
    assert settings == HnswSettings(batch_size=32, recall=0.9)
    assert why == "a graph with whole vectors, about 5.4 GB of memory to build and to search, fits into the 5.4 GB allowed"
    settings, why = choose(auto(f"{needed - 1}B"), "dense", MILLION, 1000)
    assert settings == HnswSettings(batch_size=32, recall=0.9, quantisation="int8")
    assert why.startswith("a graph with a byte for each number, about 2.4 GB of memory")
    assert why.endswith("; a graph with whole vectors would take 5.4 GB")


@pytest.mark.parametrize(("memory", "kind", "quantisation"), [("6GB", "hnsw", "int8"), ("5.8GB", "ivf", "int8"), ("2GB", "ivf", "pq"), ("1GB", "ivf", "pq")])
def test_less_memory_makes_lists_and_then_shorter_codes(memory: str, kind: str, quantisation: str) -> None:
    settings, why = choose(auto(memory), "dense", 8 * MILLION, 320)
    assert isinstance(settings, HnswSettings | IvfSettings)
    assert (settings.kind, settings.quantisation, settings.recall) == (kind, quantisation, 0.9)
    assert in_words(int(float(memory[:-2]) * 1e9)) in why
    assert ("the smallest there is" in why) == (memory == "1GB")


def test_half_of_the_machines_memory_is_allowed_when_none_is_named() -> None:
    assert in_words(machine_memory() // 2) in choose(auto(), "dense", MILLION, 100)[1]


def test_tokens_are_clustered_when_there_are_many() -> None:
    assert choose(auto(), "late_interaction", EXACT_TOKENS, 128)[0].kind == "multivector"
    settings, why = choose(auto(), "late_interaction", EXACT_TOKENS + 1, 128)
    assert settings == TokenClustersSettings(batch_size=32, recall=0.9)
    assert "20,001 documents are more than the 20,000" in why


def test_many_sparse_documents_are_skipped_over_where_seismic_is_installed() -> None:
    assert choose(auto(), "sparse", EXACT_SPARSE, 30_522)[0].kind == "inverted"
    settings, why = choose(auto(), "sparse", EXACT_SPARSE + 1, 30_522)
    installed = importlib.util.find_spec("seismic") is not None
    assert settings.kind == ("seismic" if installed else "inverted")
    assert ("[sparse]" in why) == (not installed)


@pytest.mark.parametrize(("size", "words"), [(0, "0.0 KB"), (1500, "1.5 KB"), (2_500_000, "2.5 MB"), (12_600_000_000, "12.6 GB"), (5 * 10**12, "5000.0 GB")])
def test_bytes_are_said_as_people_say_them(size: int, words: str) -> None:
    assert in_words(size) == words


def test_the_recall_that_is_wanted_decides_the_bits_of_token_vectors() -> None:
    wanted = {0.9: 2, 0.95: 4}
    for recall, bits in wanted.items():
        settings, why = choose(AutoSettings(recall=recall), "late_interaction", 30_000, 128)
        assert (settings.kind, settings.model_dump()["bits"]) == ("token_clusters", bits)
        assert f"{bits} bits a number for a recall of {recall}" in why
    assert choose(AutoSettings(), "late_interaction", 20_000, 128)[0].kind == "multivector"
