"""Retrieval measures: our rule for order and gaps, ranx for the numbers.

The rule, stated once and held by tests against pytrec_eval and a plain loop:

- documents stand by score descending, then by document id descending (trec_eval's rule for ties; `Run` keeps it);
- every query of the qrels counts; one without results, or without a relevant document, counts as 0;
- queries of the run that the qrels lack are left out;
- unjudged documents and grades below 1 gain nothing; nDCG's gain is the grade itself (trec_eval's, not 2^grade - 1);
- binary measures take a document as relevant from grade `relevant_from` on.

ranx sorts by its own rule and compares hashes of ids, which can collide. It is therefore handed small integers, in our order, and only its
measure functions are called. They compile once per environment (about 2 s each, kept on disk by numba) and are imported on first use.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retriever.errors import ConfigError, DataError
from retriever.runs import Run
from retriever.types import Qrels

Floats = NDArray[np.float64]
QUERIES_AT_ONCE = 2048


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """A measure without its cutoff.

    Attributes:
        function: its name in `ranx.metrics`.
        cutoff: whether "@k" must, may or cannot follow.
        graded: gains are grades, so that `relevant_from` does not apply.
    """

    function: str
    cutoff: Literal["required", "optional", "refused"] = "optional"
    graded: bool = False


FAMILIES: Mapping[str, Family] = {
    "nDCG": Family("ndcg", graded=True),
    "nDCG_burges": Family("ndcg_burges", graded=True),  # gain 2^grade - 1
    "DCG": Family("dcg", graded=True),
    "DCG_burges": Family("dcg_burges", graded=True),
    "RR": Family("reciprocal_rank"),
    "R": Family("recall"),
    "AP": Family("average_precision"),
    "P": Family("precision", cutoff="required"),
    "F1": Family("f1", cutoff="required"),
    "Success": Family("hit_rate"),
    "Hits": Family("hits"),
    "Rprec": Family("r_precision", cutoff="refused"),
}
"""What ranx computes, without Bpref (it divides by zero where nothing was judged not relevant) and RBP (it takes grades for probabilities)."""

OTHER_SPELLINGS: Mapping[str, str] = {
    "accuracy": "Success",
    "hit": "Success",
    "hit_rate": "Success",
    "map": "AP",
    "mrr": "RR",
    "ndcg_cut": "nDCG",
    "precision": "P",
    "r-precision": "Rprec",
    "recall": "R",
    "recip_rank": "RR",
}
"""What other libraries call them, so that an error can name ours."""

_one_at_a_time = threading.Lock()  # ranx's threads end the process when two callers meet


@dataclasses.dataclass(frozen=True, slots=True)
class Measure:
    """A measure as people write it: `str(Measure("nDCG", 10))` is "nDCG@10"."""

    name: str
    cutoff: int | None = None

    def __str__(self) -> str:
        return self.name if self.cutoff is None else f"{self.name}@{self.cutoff}"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What a run is worth, per query.

    Attributes:
        run: the run's name.
        query_ids: [Q], every query of the qrels, sorted.
        values: measure as text -> float64 [Q], aligned with `query_ids`.
    """

    run: str
    query_ids: tuple[str, ...]
    values: Mapping[str, Floats]

    def __len__(self) -> int:
        """Q, the number of queries."""
        return len(self.query_ids)

    @cached_property
    def means(self) -> dict[str, float]:
        """Measure as text -> mean over the queries."""
        return {measure: float(values.mean()) for measure, values in self.values.items()}


def parse_measure(text: str) -> Measure:
    """The measure that a text such as "nDCG@10", "RR@10", "R@100" or "AP" names.

    Raises:
        ConfigError: nothing is called so, or its cutoff is missing, out of place or not a positive whole number; the message names the nearest.
    """
    name, at, cutoff = text.partition("@")
    family = FAMILIES.get(name)
    if family is None:
        raise ConfigError(f'"{text}" is not a measure. Did you mean {_nearest(text)}? The names are {", ".join(FAMILIES)}')
    if family.cutoff == "refused" and at:
        raise ConfigError(f'"{text}": this measure has no cutoff. Write {name}')
    if family.cutoff == "required" and not at:
        raise ConfigError(f'"{text}" needs a cutoff. Write for example {name}@10')
    if at and not re.fullmatch(r"[1-9][0-9]*", cutoff):
        raise ConfigError(f'"{text}": the cutoff "{cutoff}" is not a whole number from 1 on. Write for example {name}@10')
    return Measure(name, int(cutoff) if at else None)


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str | Measure], *, relevant_from: int = 1, without_own_documents: bool = False) -> Evaluation:
    """The measures of a run for every query of the qrels, under the rule at the top of this module.

    Args:
        run: results; its order is canonical.
        qrels: grades; negative ones are as good as 0.
        measures: as text or `Measure`.
        relevant_from: the lowest grade that counts as relevant for binary measures; graded ones (nDCG, DCG) take every positive grade.
        without_own_documents: leaves out results whose id is the query's, before anything is counted.

    Raises:
        ConfigError: an unknown measure, or relevant_from below 1.
        DataError: the qrels hold no query.
    """
    parsed = [parse_measure(str(measure)) for measure in measures]
    if relevant_from < 1:
        raise ConfigError(f"relevant_from is {relevant_from}, but grade 0 means judged not relevant. The lowest value is 1")
    if not qrels:
        raise DataError(f'run "{run.name}": the qrels hold no query, so there is nothing to evaluate. Look at the split\'s name and its qrels file')
    query_ids = tuple(sorted(qrels))
    wanted = run.select(query_ids)
    if without_own_documents:
        wanted = wanted.without_own_documents()
    blocks = [_compute(*arrays, parsed, relevant_from) for arrays in _blocks(wanted, qrels)]
    return Evaluation(run.name, query_ids, {str(measure): np.concatenate([block[number] for block in blocks]) for number, measure in enumerate(parsed)})


def _nearest(text: str) -> str:
    """The measure that a wrong text most likely meant, with its cutoff where it had one."""
    matched = re.fullmatch(r"(.*?)(?:[@_](\d+))?", text.strip().lower(), flags=re.DOTALL)
    name, cutoff = matched.groups() if matched else (text.lower(), None)
    spellings = {**{family.lower(): family for family in FAMILIES}, **OTHER_SPELLINGS}
    nearest = spellings[difflib.get_close_matches(name, spellings, n=1, cutoff=0.0)[0]]
    return f"{nearest}@{cutoff}" if cutoff else nearest


def _blocks(run: Run, qrels: Qrels) -> Iterator[tuple[Floats, Floats]]:
    """Judgements [B, J, 2] and results [B, K, 2] for ranx, a few thousand queries at a time.

    The first column is a document as its place among the query's judged ones (results: -1 where unjudged or filled up), the second a grade or
    minus the rank. Judgements stand by grade, best first, because ranx takes their order for the ideal one; filled-up ones have grade 0.
    """
    for start in range(0, len(run), QUERIES_AT_ONCE):
        numbers = range(start, min(start + QUERIES_AT_ONCE, len(run)))
        judged = [dict(sorted(qrels[run.query_ids[number]].items(), key=lambda item: -item[1])) for number in numbers]
        places = [_places(run, number, documents) for number, documents in zip(numbers, judged, strict=True)]
        yield _stack([list(documents.values()) for documents in judged]), _stack_results(places)


def _places(run: Run, number: int, judged: Mapping[str, int]) -> list[int]:
    place_of = {doc_id: place for place, doc_id in enumerate(judged)}
    doc_ids = run.vocabulary[run.codes[run.pairs_of(number)]].tolist()
    return [place_of.get(doc_id, -1) for doc_id in doc_ids]


def _stack(grades: Sequence[Sequence[int]]) -> Floats:
    width = max(map(len, grades))
    judgements = np.zeros((len(grades), width, 2))
    judgements[:, :, 0] = np.arange(width)
    for row, values in enumerate(grades):
        judgements[row, : len(values), 1] = values
    return judgements


def _stack_results(places: Sequence[Sequence[int]]) -> Floats:
    width = max(map(len, places))
    results = np.full((len(places), width, 2), -1.0)
    results[:, :, 1] = -np.arange(width)
    for row, values in enumerate(places):
        results[row, : len(values), 0] = values
    return results


def _compute(judgements: Floats, results: Floats, measures: Iterable[Measure], relevant_from: int) -> list[Floats]:
    import ranx.metrics
    from numba.core.errors import NumbaWarning

    values = []
    for measure in measures:
        family = FAMILIES[measure.name]
        function: Callable[..., Floats] = getattr(ranx.metrics, family.function)
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore", category=NumbaWarning)  # about casts inside ranx, while it compiles
            values.append(function(judgements, results, measure.cutoff or 0, 1 if family.graded else relevant_from))
    return values
