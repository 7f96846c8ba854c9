"""A language model as a judge of one pair at a time: log-odds of yes against no, or the likelihood of the query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.engines import Engine, Prompt, open_engine, prompt_text
from retriever.errors import ConfigError, StoreError
from retriever.resources import Resources
from retriever.settings.teacher import LlmSettings
from retriever.teachers._probe import ENOUGH_CANDIDATES, Pairs, probe
from retriever.teachers._prompts import Template, cut_documents, fill, query_text, template_of
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity, Unit, Usage
from retriever.writing.writers import check_chat

ROOM = 8
"""Tokens kept free: texts that are joined may be cut into a few more tokens than each alone, and the answer is one."""

LEAST_MASS = 0.005
"""Of the probability that yes and no have together where the answer begins. Below it the model is about to say something else."""


class LlmTeacher:
    """Scores pairs by what a causal language model says next.

    yes_no: log(sum of P(yes)) - log(sum of P(no)) where the answer begins, over the spellings of each word that are one token:
    with and without a space before it; small, capital first letter, capitals (a sum of probabilities, so that a model may
    spell the word as it likes). Log-odds, never the probability, in which 12, 18 and 25 are all 1. query_likelihood: the mean
    log-probability of the query's tokens after the document (Sachan et al. 2022, arXiv:2204.07496).

    Only the document is cut when a prompt is too long.
    """

    shard_pairs = 128

    def __init__(self, settings: LlmSettings, engine: Engine, others: Sequence[Document], where: str) -> None:
        self.settings = settings
        self.engine = engine
        self.others = others
        self.where = where
        self.template: Template = template_of(settings, where)
        self.in_chat = self.template.is_chat(engine)
        check_chat(settings, self.in_chat, where)
        self.yes, self.no = (_spellings(engine, word, where) if settings.form == "yes_no" else [] for word in (settings.yes, settings.no))
        self.unchecked = settings.probe
        decides = {"form": settings.form, "prompt": self.template.text, "prompt_hash": self.template.hash, "chat": self.in_chat}
        decides |= {"yes": self.yes, "no": self.no} if settings.form == "yes_no" else {}
        decides |= {"max_length": engine.max_length, "dtype": engine.identity.dtype, "engine": engine.identity.engine}
        if settings.server and settings.server.request:
            decides["request"] = settings.server.request
        unit: Unit = "log_odds" if settings.form == "yes_no" else "log_likelihood"
        self.identity = TeacherIdentity(settings.label, "llm", engine.identity.model, unit, decides)

    @property
    def usage(self) -> Usage:
        """What the model was asked for, the probe included."""
        return self.engine.usage

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        """Log-odds or mean log-likelihoods of the pairs.

        Raises:
            ConfigError: the first call's probe shows that the answers are no judgement of the document.
            StoreError: a query leaves no room for a document.
        """
        if self.unchecked and pairs:
            self._check(pairs)
            self.unchecked = len(pairs) < ENOUGH_CANDIDATES  # so few say little: the next ones are looked at again
        prompts, continuations, truncated = self._prompts(list(pairs))
        scores = self._likelihoods(prompts, continuations) if self.settings.form == "query_likelihood" else _log_odds(*self._masses(prompts))
        texts = [prompt_text(prompt) + continuation for prompt, continuation in zip(prompts, continuations, strict=True)]
        counts = self.engine.count_tokens(texts) if self.engine.counts_exactly else np.zeros(len(pairs), dtype=np.int32)
        return ScoredPairs(scores, counts, np.array(truncated, dtype=np.bool_))

    def _prompts(self, pairs: Pairs) -> tuple[list[Prompt], list[str], list[bool]]:
        """Prompt, continuation ("" for yes or no) and whether the document was cut, of each pair."""
        queries = {query: self.engine.plain(query_text(query)) for query, _ in pairs}
        room = self._room(list(queries.values()))
        for query, text in queries.items():
            if room[text] < 1:
                raise StoreError(
                    f"{self.where}: query {query.query_id} and the instructions take all of the {self.engine.max_length} tokens that are read. "
                    "Raise max_length, or shorten the query"
                )
        documents, truncated = cut_documents(self.engine, [document for _, document in pairs], [room[queries[query]] for query, _ in pairs])
        asked = [queries[query] for query, _ in pairs]
        prompts = [self.template.fill(self.engine, {"query": query, "document": document}) for query, document in zip(asked, documents, strict=True)]
        return prompts, [self._continuation(query) for query in asked], truncated

    def _continuation(self, query: str) -> str:
        if self.settings.form == "yes_no":
            return ""
        return fill(self.template.continuation if self.in_chat else self.template.base_continuation, {"query": query})

    def _room(self, queries: list[str]) -> dict[str, int]:
        """Tokens that each query's prompt leaves for the document."""
        distinct = list(dict.fromkeys(queries))
        empty = [prompt_text(self.template.fill(self.engine, {"query": query, "document": ""})) + self._continuation(query) for query in distinct]
        return {query: self.engine.max_length - ROOM - int(length) for query, length in zip(distinct, self.engine.count_tokens(empty), strict=True)}

    def _likelihoods(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> NDArray[np.float32]:
        return self.engine.log_likelihood(prompts, continuations).means

    def _masses(self, prompts: Sequence[Prompt]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[n] and [n], logarithms of the probability of yes and of no."""
        logits = self.engine.next_token_logits(prompts, [*self.yes, *self.no])  # [n, T]
        split = len(self.yes)
        return np.logaddexp.reduce(logits[:, :split], axis=1), np.logaddexp.reduce(logits[:, split:], axis=1)

    # The probe

    def _check(self, pairs: Sequence[tuple[Query, Document]]) -> None:
        masses: list[NDArray[np.float32]] = []

        def score(asked: Pairs) -> NDArray[np.float32]:
            prompts, continuations, _ = self._prompts(asked)
            if self.settings.form == "query_likelihood":
                return self._likelihoods(prompts, continuations)
            yes, no = self._masses(prompts)
            masses.append(np.exp(np.logaddexp(yes, no)))
            return _log_odds(yes, no)

        found = probe(score, pairs, self.others)
        if masses and (mass := float(np.median(np.concatenate(masses)))) < LEAST_MASS:
            said = self.engine.generate(self._prompts(list(pairs[:1]))[0], max_tokens=8)[0]
            raise self._refusal(
                f'where "{self.settings.yes}" or "{self.settings.no}" should stand, both together have a probability of {mass:.2g}; the model says {said!r:.60}'
            )
        if found.problem:
            raise self._refusal(found.problem)

    def _refusal(self, seen: str) -> ConfigError:
        with_template = "with the model's chat template" if self.in_chat else "without a chat template"
        return ConfigError(
            f"{self.where}: the answers are no judgement of the document: {seen} ({with_template}). "
            "Set the prompt that the model was trained with, or chat; probe = false scores all the same"
        )


def _spellings(engine: Engine, word: str, where: str) -> list[str]:
    """The spellings of an answer that are one token."""
    cases = dict.fromkeys([word, word.lower(), word.capitalize(), word.upper()])
    found = engine.single_tokens([space + case for case in cases for space in ("", " ")])
    if not found:
        raise ConfigError(f'{where}: no spelling of "{word}" is one token of the model. Choose other words with yes and no')
    return found


def _log_odds(yes: NDArray[np.float32], no: NDArray[np.float32]) -> NDArray[np.float32]:
    return (yes - no).astype(np.float32)


def load(settings: LlmSettings, resources: Resources) -> LlmTeacher:
    """The language model of the file.

    Raises:
        ConfigError: no model is named, there is none, or prompt and words do not fit it.
        MissingExtraError: a GGUF file is named and the package gguf is missing.
    """
    where = f"teacher {settings.label}"
    template_of(settings, where)  # a mistake in it is told before a model is loaded
    return LlmTeacher(settings, open_engine(settings.engine, where), some_documents(resources), where)


def some_documents(resources: Resources, count: int = 8) -> list[Document]:
    """A few documents from all over the collection."""
    rows = np.unique(np.linspace(0, len(resources.collection) - 1, count, dtype=np.int64))
    return list(resources.collection.documents_by_row(rows.tolist()))
