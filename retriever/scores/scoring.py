"""The pairs of a run as keys: which of them a teacher has scored already, and the scoring of the others."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from retriever.errors import StoreError
from retriever.files import text_hash
from retriever.images.files import image_sha256
from retriever.runs import Run
from retriever.scores.shards import ListColumns, PairColumns
from retriever.types import Document, ListTeacher, OrderedList, Query, ScoredPairs, Teacher, Usage, usage_of
from retriever.workers.tasks import Engine, here

if TYPE_CHECKING:
    from retriever.collection import Collection

BLOCK = 65_536
"""Pairs or ids that are turned into Python objects or temporary arrays at a time."""

IMAGE_CHARACTERS = 1000
"""Characters that an image counts as where a teacher's time is estimated: all images are scaled to one size."""

Pairs = list[tuple[Query, Document]]


def query_variant(query: Query) -> int:
    """64 bits of what a query says: the hash of its text; its earlier turns and its image count when it has them."""
    if not query.turns and query.image is None:
        return text_hash(query.text)
    turns = [[turn.speaker, turn.text] for turn in query.turns]
    return text_hash(json.dumps([query.text, turns, image_sha256(query.image) if query.image else None]))


@dataclasses.dataclass(frozen=True)
class PairKeys:
    """The n pairs of a run as sorted keys: exact, 16 bytes a pair, found by binary search.

    A pair is (query variant, document variant). Only the variants of this run can match, so a key is the place of the
    query's variant times their number plus the place of the document's: 64 bits without collisions.

    Of a teacher that orders lists, the list takes the place of the query: a pair counts as stored only if the very list was
    ordered.

    Attributes:
        query_variants: uint64, the distinct ones, sorted.
        document_variants: uint64, likewise.
        keys: int64 [n], sorted; equal keys are pairs with the same texts.
        order: int64 [n], the pair of the run that each key belongs to; of equal keys, the first pair comes first.
    """

    query_variants: NDArray[np.uint64]
    document_variants: NDArray[np.uint64]
    keys: NDArray[np.int64]
    order: NDArray[np.int64]

    @property
    def first(self) -> NDArray[np.bool_]:
        """[n], whether a key is the first of its kind."""
        first = np.ones(len(self.keys), dtype=np.bool_)
        np.not_equal(self.keys[1:], self.keys[:-1], out=first[1:])
        return first

    def find(self, query_variants: NDArray[np.uint64], document_variants: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The places in `keys` [m] of m stored pairs: the first of equal keys, -1 for a pair that is not in the run."""
        if not len(self.keys):
            return np.full(len(query_variants), -1, dtype=np.int64)
        queries, documents = _place(self.query_variants, query_variants), _place(self.document_variants, document_variants)
        keys = np.where((queries < 0) | (documents < 0), -1, queries * len(self.document_variants) + documents)
        return _place(self.keys, keys)

    def pending(self, done: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The pairs of the run to be scored, in its order: one for each key that is not `done` [n]."""
        return np.sort(self.order[self.first & ~done])

    def spread(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores [n] in the order of the run, given by the place of the first of equal keys."""
        places = np.arange(len(self.keys))
        places[~self.first] = 0
        spread = np.empty_like(scores)
        spread[self.order] = scores[np.maximum.accumulate(places)]
        return spread


@dataclasses.dataclass(frozen=True)
class CandidatePairs:
    """The pairs of a run with the way to their texts; the texts themselves are fetched a shard at a time.

    Attributes:
        candidates: the run.
        queries: query id -> query.
        collection: where the documents are.
        rows: int64 [V], the row of each of the run's document ids in the collection.
        query_variants: uint64 [Q].
        document_variants: uint64 [V].
        list_variants: uint64 [Q], each query's list, for a teacher that orders lists; None for one that scores pairs.
    """

    candidates: Run
    queries: Mapping[str, Query]
    collection: Collection
    rows: NDArray[np.int64]
    query_variants: NDArray[np.uint64]
    document_variants: NDArray[np.uint64]
    list_variants: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, candidates: Run, queries: Mapping[str, Query], collection: Collection, *, lists: bool = False) -> CandidatePairs:
        """Looks up the candidates' queries and documents.

        Raises:
            StoreError: one of them is not there.
        """
        rows = _rows(candidates, collection)
        variants = np.asarray(collection.variants[rows], dtype=np.uint64)
        asked = _query_variants(candidates, queries)
        return cls(candidates, queries, collection, rows, asked, variants, list_variants(candidates, asked, variants) if lists else None)

    def keys(self) -> PairKeys:
        """The pairs' keys, sorted; 160 MB for ten million, to be dropped when the pending pairs are known."""
        asked = self.query_variants if self.list_variants is None else self.list_variants
        query_variants, query_places = np.unique(asked, return_inverse=True)
        document_variants, document_places = np.unique(self.document_variants, return_inverse=True)
        keys = np.repeat(query_places.astype(np.int64) * len(document_variants), self.candidates.counts)
        for start in range(0, len(keys), BLOCK):
            block = slice(start, start + BLOCK)
            keys[block] += document_places[self.candidates.codes[block]]
        order = np.argsort(keys, kind="stable")
        return PairKeys(query_variants, document_variants, keys[order], order)

    def texts(self, positions: NDArray[np.int64]) -> Pairs:
        """The queries and documents of some pairs; each document is fetched once."""
        rows, inverse = np.unique(self.rows[self.candidates.codes[positions]], return_inverse=True)
        documents = self.collection.documents_by_row(rows.tolist())
        query_ids = self.candidates.query_ids
        numbers = self._query_numbers(positions)
        return [(self.queries[query_ids[number]], documents[place]) for number, place in zip(numbers.tolist(), inverse.tolist(), strict=True)]

    def columns(self, positions: NDArray[np.int64]) -> PairColumns:
        """What a shard says of who some pairs are."""
        numbers, codes = self._query_numbers(positions), self.candidates.codes[positions]
        query_ids = [self.candidates.query_ids[number] for number in numbers.tolist()]
        return PairColumns(query_ids, self.candidates.vocabulary[codes].tolist(), self.query_variants[numbers], self.document_variants[codes])

    def cut(self, pending: NDArray[np.int64], shard_pairs: int) -> Iterator[NDArray[np.int64]]:
        """The pending pairs, a shard at a time: `shard_pairs` of them; of lists, which stay whole, the fewest that are as many."""
        if self.list_variants is None:
            yield from (pending[start : start + shard_pairs] for start in range(0, len(pending), shard_pairs))
            return
        start = 0
        for end in self._list_ends(pending):
            if end - start >= shard_pairs or end == len(pending):
                yield pending[start:end]
                start = end

    def lists(self, positions: NDArray[np.int64]) -> list[tuple[Query, list[Document]]]:
        """The lists that some pairs are, a list's pairs side by side."""
        pairs, ends = self.texts(positions), self._list_ends(positions)
        return [(pairs[start][0], [document for _, document in pairs[start:end]]) for start, end in itertools.pairwise([0, *ends])]

    def _list_ends(self, positions: NDArray[np.int64]) -> list[int]:
        """Where the list of each query ends in positions that are sorted by query."""
        numbers = self._query_numbers(positions)
        return [*(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)] if len(numbers) else []

    def list_columns(self, positions: NDArray[np.int64], ordered: list[OrderedList]) -> ListColumns:
        """What a shard says of the lists that some pairs are."""
        if self.list_variants is None:
            raise TypeError("these pairs were made without lists")
        sizes = [len(one.ranks) for one in ordered]
        return ListColumns(
            self.list_variants[self._query_numbers(positions)],
            np.concatenate([one.ranks for one in ordered]),
            np.repeat(np.array([one.passes for one in ordered], dtype=np.int32), sizes),
            [one.status for one, size in zip(ordered, sizes, strict=True) for _ in range(size)],
        )

    def _query_numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.candidates.offsets, positions, side="right") - 1


def list_variants(candidates: Run, query_variants: NDArray[np.uint64], document_variants: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[Q], 64 bits of what each list is: the query's variant and the set of its documents' variants, whatever their order."""
    found = np.empty(len(candidates), dtype=np.uint64)
    for number in range(len(candidates)):
        documents = np.unique(document_variants[candidates.codes[candidates.pairs_of(number)]])
        digest = hashlib.sha256(np.concatenate([query_variants[number : number + 1], documents]).astype("<u8").tobytes()).digest()
        found[number] = int.from_bytes(digest[:8], "big")
    return found


@dataclasses.dataclass(frozen=True)
class ScoredShard:
    """What a teacher says of a shard's pairs, the lists of one that orders lists, and what its language model was asked for."""

    scored: ScoredPairs
    lists: ListColumns | None
    usage: Usage


def scored_shard(teacher: Teacher | ListTeacher, pairs: CandidatePairs, positions: NDArray[np.int64]) -> ScoredShard:
    """One shard with what it took.

    Raises:
        StoreError: as `score_pairs` and `order_lists` say.
    """
    before = usage_of(teacher)
    scored, lists = score_shard(teacher, pairs, positions)
    return ScoredShard(scored, lists, usage_of(teacher) - before)


ScoringEngine = Engine[Teacher | ListTeacher, CandidatePairs, NDArray[np.int64], ScoredShard]
"""Asks a teacher for shards of pairs, given by their positions, and yields what it said in their order."""

local_engine: ScoringEngine = here(scored_shard)
"""Asks the teacher in this process, one shard after the other."""


def part_of(candidates: Run, queries: Mapping[str, Query], number: int, parts: int) -> Run:
    """The lists of part `number`, 1 to `parts`: those of every `parts`-th query text, counted in the order of the candidates.

    It depends on the candidates and not on what is stored. Lists stay whole, and queries of equal texts come to the same
    part, so that no pair is scored in two. The other queries stay without documents.
    """
    turns: dict[int, int] = {}
    asked = [query_id for query_id, count in zip(candidates, candidates.counts.tolist(), strict=True) if count]
    mine = {query_id for query_id in asked if turns.setdefault(query_variant(queries[query_id]), len(turns)) % parts == number - 1}
    return candidates.keep(np.array([query_id in mine for query_id in candidates], dtype=np.bool_)[candidates.query_numbers])


def score_shard(teacher: Teacher | ListTeacher, pairs: CandidatePairs, positions: NDArray[np.int64]) -> tuple[ScoredPairs, ListColumns | None]:
    """What a teacher says of some pairs, checked; of one that orders lists, minus the ranks as scores and the lists.

    Raises:
        StoreError: as `score_pairs` and `order_lists` say.
    """
    if not teacher.identity.orders_lists:
        return score_pairs(cast(Teacher, teacher), pairs.texts(positions)), None
    ordered = order_lists(cast(ListTeacher, teacher), pairs.lists(positions))
    joined = {column: np.concatenate([getattr(one, column) for one in ordered]) for column in ("ranks", "n_tokens", "truncated")}
    return ScoredPairs(-joined["ranks"].astype(np.float32), joined["n_tokens"], joined["truncated"]), pairs.list_columns(positions, ordered)


def order_lists(teacher: ListTeacher, lists: list[tuple[Query, list[Document]]]) -> list[OrderedList]:
    """The teacher's orders of some lists, checked.

    Raises:
        StoreError: not one order per list, or one that is no order of all its documents; the message names the query.
    """
    ordered = list(teacher.order(lists))
    name = teacher.identity.name
    if len(ordered) != len(lists):
        raise StoreError(f'teacher "{name}": {len(ordered)} orders for {len(lists)} lists; it must give one for each. Mend the teacher')
    for (query, documents), one in zip(lists, ordered, strict=True):
        shapes = {np.shape(one.ranks), np.shape(one.n_tokens), np.shape(one.truncated)}
        if shapes != {(len(documents),)} or sorted(one.ranks.tolist()) != list(range(1, len(documents) + 1)):
            raise StoreError(
                f'teacher "{name}": query {query.query_id}: the ranks of {len(documents)} documents are {one.ranks.tolist()!r:.80}; '
                f"they must be 1 to {len(documents)}, each once, with n_tokens and truncated for each. Nothing of this shard was stored; mend the teacher"
            )
    return ordered


def score_pairs(teacher: Teacher, pairs: Pairs) -> ScoredPairs:
    """The teacher's scores of some pairs, checked.

    Raises:
        StoreError: not one score per pair, or one that is not finite; the message names query and document.
    """
    scored = teacher.score(pairs)
    name = teacher.identity.name
    with np.errstate(over="ignore"):  # beyond float32's range is infinite, which the next check names
        scores = np.asarray(scored.scores, dtype=np.float32)
    checked = ScoredPairs(scores, np.asarray(scored.n_tokens, dtype=np.int32), np.asarray(scored.truncated, dtype=np.bool_))
    for column in dataclasses.fields(checked):
        if (shape := getattr(checked, column.name).shape) != (len(pairs),):
            raise StoreError(f'teacher "{name}": {column.name} of shape {list(shape)} for {len(pairs)} pairs; it must give one for each. Mend the teacher')
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        query, document = pairs[wrong[0]]
        raise StoreError(
            f'teacher "{name}": query {query.query_id}, document {document.doc_id}: the score {scores[wrong[0]]} is not a finite number '
            f"({len(wrong)} such of {len(pairs)}). Nothing of this shard was stored; try dtype float32, or look at the two texts"
        )
    return checked


def estimate_seconds(teacher: Teacher | ListTeacher, pairs: CandidatePairs, pending: NDArray[np.int64], sample_pairs: int = 64) -> float:
    """Seconds that the teacher needs for the pending pairs: measured on a few of them, extrapolated by text length.

    The sample is spread evenly over the pending pairs. Texts longer than what the teacher was seen to read count as
    that long. Of a teacher that orders lists, the sample is the first lists. Nothing is stored.
    """
    if not len(pending):
        return 0.0
    positions = _evenly(pending, sample_pairs) if pairs.list_variants is None else next(pairs.cut(pending, min(sample_pairs, len(pending))))
    sample = pairs.texts(positions)
    if pairs.list_variants is None:
        score_shard(teacher, pairs, positions[:2])  # loads the model and warms it up
    start = time.perf_counter()
    scored, _ = score_shard(teacher, pairs, positions)
    seconds = time.perf_counter() - start
    lengths, others = _lengths(sample), _lengths(pairs.texts(_evenly(pending, 32 * sample_pairs)))
    longest = int(lengths[scored.truncated].min(initial=np.iinfo(np.int64).max))
    per_character = seconds / max(int(np.minimum(lengths, longest).sum()), 1)
    return float(per_character * np.minimum(others, longest).mean() * len(pending))


def _evenly(pending: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return pending[np.unique(np.linspace(0, len(pending) - 1, num=min(count, len(pending)), dtype=np.int64))]


def _lengths(pairs: Pairs) -> NDArray[np.int64]:
    images = ((query.image is not None) + (document.image is not None) for query, document in pairs)
    texts = (len(query.text) + len(document.full_text) for query, document in pairs)
    return np.array([text + IMAGE_CHARACTERS * image for text, image in zip(texts, images, strict=True)], dtype=np.int64)


def _rows(candidates: Run, collection: Collection) -> NDArray[np.int64]:
    vocabulary = candidates.vocabulary
    blocks = [collection.rows_of(vocabulary[start : start + BLOCK].tolist()) for start in range(0, len(vocabulary), BLOCK)]
    rows: NDArray[np.int64] = np.concatenate([np.zeros(0, dtype=np.int64), *blocks])
    used = np.zeros(len(vocabulary), dtype=np.bool_)
    used[candidates.codes] = True
    if (absent := used & (rows < 0)).any():
        doc_id = vocabulary[np.flatnonzero(absent)[0]]
        raise StoreError(
            f'candidates "{candidates.name}": the document {doc_id} is not in the collection "{collection.name}" ({absent.sum()} such). Make the run again'
        )
    return np.maximum(rows, 0)


def _query_variants(candidates: Run, queries: Mapping[str, Query]) -> NDArray[np.uint64]:
    variants = np.zeros(len(candidates), dtype=np.uint64)
    for number, query_id in enumerate(candidates.query_ids):
        query = queries.get(query_id)
        if query is not None:
            variants[number] = query_variant(query)
        elif candidates.offsets[number] < candidates.offsets[number + 1]:
            raise StoreError(f'candidates "{candidates.name}": the query {query_id} is not among the {len(queries)} queries given. Make the candidates again')
    return variants


def _place(table: NDArray[np.uint64] | NDArray[np.int64], values: NDArray[np.uint64] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the values stand in a sorted table that is not empty; -1 for those that do not."""
    places = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return np.where(table[places] == values, places, -1)
