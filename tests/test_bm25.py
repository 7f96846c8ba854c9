"""BM25 against bm25s' own retrieval and against the formula."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.bm25 import build_bm25, open_bm25
from retriever.errors import ConfigError, DataError

WORDS = ["owl", "owls", "hammer", "nail", "nails", "night", "moth", "wood", "drives", "driving", "the", "of", "x", "Über"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=12)


def scores_of_bm25s(texts: list[str], query: str, k1: float, b: float) -> list[float]:
    """bm25s from text to scores, by its own tokenizer and retrieval; in the order of the texts."""
    words = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    engine = bm25s.BM25(k1=k1, b=b)
    engine.index(bm25s.tokenize(texts, **words), show_progress=False)
    rows, scores = engine.retrieve(bm25s.tokenize([query], **words), k=len(texts), show_progress=False)
    return [score for _, score in sorted(zip(rows[0].tolist(), scores[0].tolist(), strict=True))]


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, query=st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), k1=st.sampled_from([0.9, 1.5]), b=st.sampled_from([0.0, 0.4, 1.0]))
def test_scores_are_those_of_bm25s(texts: list[str], query: str, k1: float, b: float) -> None:
    texts = [*texts, "owl"]  # bm25s refuses a collection without a word
    ours = build_bm25(texts, k1, b).scores(query)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, scores_of_bm25s(texts, query, k1, b), rtol=1e-6)


def test_a_score_is_lucenes_formula() -> None:
    texts = ["owl owl moth", "owl", "hammer nail wood night"]
    k1, b, average = 0.9, 0.4, 8 / 3
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = [idf * tf / (tf + k1 * (1 - b + b * length / average)) for tf, length in ((2, 3), (1, 1))]
    np.testing.assert_allclose(build_bm25(texts, k1, b).scores("owl"), [*expected, 0], rtol=1e-6)


def test_a_word_asked_twice_counts_twice() -> None:
    index = build_bm25(["owl moth", "owl", "moth wood wood"])
    np.testing.assert_allclose(index.scores("owl owl moth"), 2 * index.scores("owl") + index.scores("moth"), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(texts=TEXTS, query=st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join), depth=st.integers(1, 14))
def test_search_gives_the_best_scores_and_of_equal_ones_the_first_rows(texts: list[str], query: str, depth: int) -> None:
    index = build_bm25(texts)
    scores = index.scores(query)
    rows, found = index.search(query, depth)
    expected = sorted((row for row in range(len(texts)) if scores[row] > 0), key=lambda row: (-scores[row], row))[:depth]
    assert rows.tolist() == expected
    assert found.tolist() == scores[expected].tolist()


@pytest.mark.parametrize("query", ["zebra", "the of", "", "x"])
def test_a_query_without_a_common_word_finds_nothing(query: str) -> None:
    index = build_bm25(["the owl and x", "a hammer"])
    rows, scores = index.search(query, 10)
    assert (rows.tolist(), scores.tolist()) == ([], [])
    assert index.scores(query).tolist() == [0, 0]


@pytest.mark.parametrize("texts", [[], ["", " "], ["the of", "a x"]])
def test_a_collection_without_a_word_answers_with_nothing(texts: list[str]) -> None:
    index = build_bm25(texts)
    assert index.scores("owl").tolist() == [0] * len(texts)
    assert index.search("owl", 5)[0].tolist() == []
    assert index.n_bytes == 0


def test_an_empty_document_keeps_its_row() -> None:
    assert build_bm25(["owl", "", "moth"]).search("moth", 5)[0].tolist() == [2]


def test_a_language_has_its_own_stemmer_and_stop_words() -> None:
    index = build_bm25(["die Häuser und der Wald", "ein Hammer"], language="german")
    assert index.search("Haus", 5)[0].tolist() == [0]
    assert index.search("und", 5)[0].tolist() == []


@pytest.mark.parametrize("texts", [[], ["owl"]])
def test_an_unknown_language_is_refused_with_the_known_ones(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r'candidates\.language: no stemmer for "klingon"; known are arabic, ') as refusal:
        build_bm25(texts, language="klingon")
    assert "english" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("texts", [["owl owl moth", "owl", "hammer nail", ""], [], ["the of"]])
def test_a_saved_index_answers_as_before(texts: list[str], tmp_path: Path) -> None:
    built = build_bm25(texts, 1.2, 0.75, "german")
    built.save(tmp_path)
    opened = open_bm25(tmp_path)
    assert (opened.n_documents, opened.language, opened.n_bytes) == (len(texts), "german", built.n_bytes)
    for query in ("owl", "moth hammer owl", "zebra"):
        assert opened.scores(query).tolist() == built.scores(query).tolist()
        assert [part.tolist() for part in opened.search(query, 2)] == [part.tolist() for part in built.search(query, 2)]


def test_the_postings_of_a_saved_index_are_mapped_and_not_read(tmp_path: Path) -> None:
    build_bm25(["owl owl moth", "owl"]).save(tmp_path)
    assert isinstance(open_bm25(tmp_path).engine.scores["data"], np.memmap)


@pytest.mark.parametrize("name", ["data.csc.index.npy", "indptr.csc.index.npy", "vocab.index.json", "params.index.json", "bm25.json"])
@pytest.mark.parametrize("damage", [lambda whole: whole[:-9], lambda whole: b"", None])
def test_a_damaged_index_is_named(name: str, damage: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    build_bm25(["owl owl moth", "owl"]).save(tmp_path)
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=r"the BM25 index is damaged \(.+\)\. Delete this folder and run the same command again"):
        open_bm25(tmp_path)


def test_files_of_two_indexes_do_not_pass_for_one(tmp_path: Path) -> None:
    for name, texts in (("one", ["owl owl moth", "owl"]), ("other", ["owl owl moth nail", "owl", "nail"])):
        build_bm25(texts).save(tmp_path / name)
    shutil.copy(tmp_path / "other" / "indices.csc.index.npy", tmp_path / "one")
    with pytest.raises(DataError, match="do not belong together"):
        open_bm25(tmp_path / "one")
