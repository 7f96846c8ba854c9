"""BM25 over a collection: candidates, the lexical teacher and the baseline come from this one index."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.errors import ConfigError, DataError
from retriever.files import write_json

FACTS = "bm25.json"


@dataclasses.dataclass(frozen=True)
class BM25:
    """A BM25 index in memory, or mapped into it (bm25s; Robertson et al. 1994, in Lucene's form).

    Attributes:
        engine: the bm25s index.
        vocabulary: token -> number.
        language: of the Snowball stemmer and the stop words.
        n_documents: N.
    """

    engine: Any
    vocabulary: dict[str, int]
    language: str
    n_documents: int

    @property
    def n_bytes(self) -> int:
        """What the postings take in memory."""
        return sum(int(self.engine.scores[part].nbytes) for part in ("data", "indices", "indptr")) if self.vocabulary else 0

    def scores(self, query: str) -> NDArray[np.float32]:
        """[N], the score of every document for a query; zeros where they share no word."""
        numbers = [self.vocabulary[token] for token in _tokens(query, self.language) if token in self.vocabulary]
        if not numbers:
            return np.zeros(self.n_documents, dtype=np.float32)
        return np.asarray(self.engine.get_scores_from_ids(numbers), dtype=np.float32)

    def search(self, query: str, depth: int, allowed: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of the best `depth` documents that share a word with the query, best first; ties by row.

        Args:
            query: its text.
            depth: documents at most.
            allowed: [N], those that may be found; all when left out.
        """
        scores = self.scores(query)
        rows = np.flatnonzero(scores > 0 if allowed is None else (scores > 0) & allowed)
        if len(rows) > depth:
            edge = np.partition(scores[rows], -depth)[-depth]
            rows = rows[scores[rows] >= edge]
        rows = rows[np.argsort(-scores[rows], kind="stable")][:depth]
        return rows, scores[rows]

    def save(self, folder: Path) -> None:
        """Writes bm25s' own files, and beside them what it does not keep, into an empty folder."""
        if self.vocabulary:
            self.engine.save(folder, show_progress=False)
        write_json(folder / FACTS, {"language": self.language, "documents": self.n_documents, "words": len(self.vocabulary)})


def open_bm25(folder: Path) -> BM25:
    """The index that `BM25.save` wrote; its postings are mapped, so that processes share them.

    Raises:
        DataError: it is damaged.
    """
    import bm25s

    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        engine = bm25s.BM25.load(folder, mmap=True, show_progress=False) if facts["words"] else bm25s.BM25()
        found = BM25(engine, engine.vocab_dict if facts["words"] else {}, facts["language"], facts["documents"])
        if not _whole(found, facts["words"]):
            raise ValueError("its files do not belong together")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{folder}: the BM25 index is damaged ({error}). Delete this folder and run the same command again") from error
    return found


def _whole(index: BM25, words: int) -> bool:
    """Whether the files of an index have each other's sizes."""
    if not words:
        return True
    parts = index.engine.scores
    sizes = (len(parts["data"]), len(parts["indices"]), int(parts["indptr"][-1]))
    return len(set(sizes)) == 1 and len(index.vocabulary) == words and parts["num_docs"] == index.n_documents


def build_bm25(texts: Iterable[str], k1: float = 0.9, b: float = 0.4, language: str = "english") -> BM25:
    """A BM25 index of texts, in their order; row numbers are places in that order.

    Args:
        texts: one a document.
        k1: term saturation; 0.9 is Anserini's default.
        b: length normalisation; 0.4 is Anserini's default.
        language: a Snowball stemmer's name.

    Raises:
        ConfigError: there is no such stemmer.
    """
    import bm25s
    from bm25s.tokenization import Tokenized

    _stemmer(language)  # a wrong name is refused before the first text is read
    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(token, len(vocabulary)) for token in _tokens(text, language)] for text in texts]
    engine = bm25s.BM25(k1=k1, b=b)
    if vocabulary:  # bm25s cannot index a collection without a single word, and no search will ask it to
        engine.index(Tokenized(ids=ids, vocab=vocabulary), show_progress=False)
    return BM25(engine, vocabulary, language, len(ids))


def _tokens(text: str, language: str) -> Sequence[str]:
    """Stemmed words without stop words, lower case, two letters at least (bm25s' pattern)."""
    stop_words = _stop_words(language)
    words = [word for word in re.findall(r"(?u)\b\w\w+\b", text.lower()) if word not in stop_words]
    stemmed: list[str] = _stemmer(language).stemWords(words)
    return stemmed


@functools.cache
def _stemmer(language: str) -> Any:
    import Stemmer

    try:
        return Stemmer.Stemmer(language)
    except KeyError as error:
        raise ConfigError(f'candidates.language: no stemmer for "{language}"; known are {", ".join(Stemmer.algorithms())}') from error


@functools.cache
def _stop_words(language: str) -> frozenset[str]:
    from bm25s.tokenization import _infer_stopwords

    try:
        return frozenset(_infer_stopwords(language))
    except ValueError:
        return frozenset()
