"""Pairs of texts as token ids: each text tokenised once, pairs joined as the tokenizer would, batches of similar length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.errors import ConfigError

Ids = NDArray[np.int64]
Texts = tuple[str, str]
"""A query's text and a document's."""

PROBE = ("how do owls hunt", "an owl hears a mouse under the snow")


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """B pairs, padded to L tokens.

    Attributes:
        inputs: what the model takes, such as input_ids and attention_mask, each int64 [B, L].
        places: int64 [B], which of the pairs these are.
    """

    inputs: dict[str, Ids]
    places: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class PairTemplate:
    """How a tokenizer joins two texts: `before` query `between` document `after`, and the type of each part.

    Attributes:
        before: special tokens in front.
        between: those in the middle.
        after: those at the end.
        types: token types of the five parts in their order; each special part has one for every token.
    """

    before: Ids
    between: Ids
    after: Ids
    types: tuple[Ids, int, Ids, int, Ids]

    @property
    def n_special(self) -> int:
        """Special tokens of a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, query: Ids, document: Ids) -> tuple[Ids, Ids]:
        """Token ids and token types of a pair, both [L]."""
        before, of_query, between, of_document, after = self.types
        ids = np.concatenate([self.before, query, self.between, document, self.after])
        types = np.concatenate([before, np.full(len(query), of_query), between, np.full(len(document), of_document), after])
        return ids, types


@dataclasses.dataclass(frozen=True)
class TokenPairs:
    """n pairs whose distinct texts were tokenised once.

    Attributes:
        tokenizer: of transformers.
        template: how it joins.
        queries: ids of each distinct query, without special tokens.
        documents: likewise.
        which: int64 [n, 2], the query and the document of each pair.
        kept: int64 [n, 2], how many tokens of each are read.
        truncated: bool [n], whether that is fewer than there are.
    """

    tokenizer: Any
    template: PairTemplate
    queries: list[Ids]
    documents: list[Ids]
    which: NDArray[np.int64]
    kept: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n], tokens read of each pair, special ones included."""
        return np.asarray(self.kept.sum(axis=1) + self.template.n_special, dtype=np.int64)

    def pair(self, place: int) -> tuple[Ids, Ids]:
        """Token ids and token types of one pair."""
        query, document = self.which[place]
        of_query, of_document = self.kept[place]
        side = self.tokenizer.truncation_side
        return self.template.join(_end_cut(self.queries[query], of_query, side), _end_cut(self.documents[document], of_document, side))

    def batch(self, places: NDArray[np.int64], multiple: int = 1) -> TokenBatch:
        """Some of the pairs, padded to the longest of them, that rounded up to a multiple."""
        longest = int(self.lengths[places].max())
        shape = (len(places), -(-longest // multiple) * multiple)
        ids = np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64)
        types = np.full(shape, self.tokenizer.pad_token_type_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, place in enumerate(places):
            own_ids, own_types = self.pair(int(place))
            here = slice(0, len(own_ids)) if self.tokenizer.padding_side == "right" else slice(shape[1] - len(own_ids), shape[1])
            ids[row, here], types[row, here], mask[row, here] = own_ids, own_types, 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return TokenBatch({name: inputs[name] for name in inputs if name in self.tokenizer.model_input_names}, places)


def tokenise_pairs(tokenizer: Any, template: PairTemplate, texts: Sequence[Texts], max_length: int | None) -> TokenPairs:
    """Pairs ready to be batched.

    Args:
        tokenizer: of transformers.
        template: of `learn_template`.
        texts: n pairs.
        max_length: tokens of a pair, special ones included; None reads all.
    """
    queries, of_queries = _distinct(tokenizer, [query for query, _ in texts])
    documents, of_documents = _distinct(tokenizer, [document for _, document in texts])
    which = np.stack([of_queries, of_documents], axis=1)
    n_query = np.array([len(ids) for ids in queries], dtype=np.int64)[of_queries]
    n_document = np.array([len(ids) for ids in documents], dtype=np.int64)[of_documents]
    whole = np.stack([n_query, n_document], axis=1)
    kept = whole if max_length is None else cut_longest_first(whole, max(0, max_length - template.n_special))
    return TokenPairs(tokenizer, template, queries, documents, which, kept, np.asarray((kept < whole).any(axis=1)))


def cut_longest_first(lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """[n, 2], how many tokens of query and document are kept: the longer gives way; where both are too long, they share.

    This is the rule of the library tokenizers, "longest_first", which sentence-transformers asks for.

    Args:
        lengths: int64 [n, 2].
        room: tokens of a pair, special ones not counted.
    """
    shorter = lengths.min(axis=1)
    kept_longer = np.where(shorter > room, shorter, np.maximum(shorter, room - shorter))
    shared = shorter + kept_longer > room
    kept_shorter = np.where(shared, room // 2, shorter)
    kept_longer = np.where(shared, room // 2 + room % 2, kept_longer)
    query_is_longer = lengths[:, 0] > lengths[:, 1]
    kept = np.stack([np.where(query_is_longer, kept_longer, kept_shorter), np.where(query_is_longer, kept_shorter, kept_longer)], axis=1)
    return np.where((lengths.sum(axis=1) <= room)[:, None], lengths, kept)


def batches(lengths: NDArray[np.int64], tokens: int, pairs: int, multiple: int = 1) -> Iterator[NDArray[np.int64]]:
    """Places of pairs, the longest first, in batches whose padded size stays within a budget; each place comes once.

    The longest come first, so that a batch that does not fit into memory is met at once.

    Args:
        lengths: int64 [n], tokens of each pair.
        tokens: a batch's pairs times its padded length at most; a single longer pair is a batch of its own.
        pairs: a batch's pairs at most.
        multiple: a batch's length is rounded up to it.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = -(-int(lengths[order[start]]) // multiple) * multiple
        size = max(1, min(pairs, tokens // max(longest, 1)))
        yield order[start : start + size]
        start += size


def learn_template(tokenizer: Any, where: str) -> PairTemplate:
    """How this tokenizer joins a pair, read off two short texts and checked on another pair.

    Raises:
        ConfigError: it joins them in another way than with special tokens around; or it has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"{where}: its tokenizer has no padding token. Set pad_token in its tokenizer_config.json")
    first, second = _alone(tokenizer, PROBE)
    joined = tokenizer(*PROBE, return_token_type_ids=True)
    ids, types = np.asarray(joined["input_ids"]), np.asarray(joined["token_type_ids"])
    at_first = _find(ids, first, 0)
    at_second = _find(ids, second, at_first + len(first)) if at_first >= 0 else -1
    if at_second < 0:
        raise ConfigError(f"{where}: its tokenizer changes a text when it joins it to another, so it cannot read pairs")
    parts = np.split(types, [at_first, at_first + len(first), at_second, at_second + len(second)])
    ends = np.split(ids, [at_first, at_first + len(first), at_second, at_second + len(second)])
    template = PairTemplate(ends[0], ends[2], ends[4], (parts[0], int(parts[1][0]), parts[2], int(parts[3][0]), parts[4]))
    _check(tokenizer, template, where)
    return template


def _check(tokenizer: Any, template: PairTemplate, where: str) -> None:
    other = (PROBE[1].title(), f"{PROBE[0]}?")
    joined = tokenizer(*other, return_token_type_ids=True)
    ids, types = template.join(*_alone(tokenizer, other))
    if ids.tolist() != joined["input_ids"] or types.tolist() != joined["token_type_ids"]:
        raise ConfigError(f"{where}: its tokenizer does not join a query and a document with fixed special tokens, so it cannot read pairs")


def _alone(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    return [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]


def _distinct(tokenizer: Any, texts: list[str]) -> tuple[list[Ids], NDArray[np.int64]]:
    """The ids of each distinct text, and which one each text is."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return _alone(tokenizer, list(numbers)), np.array([numbers[text] for text in texts], dtype=np.int64)


def _find(ids: Ids, part: Ids, start: int) -> int:
    """Where `part` begins in `ids`, from `start` on; -1 where it does not."""
    return next((at for at in range(start, len(ids) - len(part) + 1) if np.array_equal(ids[at : at + len(part)], part)), -1)


def _end_cut(ids: Ids, kept: int, side: str) -> Ids:
    return ids[:kept] if side == "right" else ids[len(ids) - kept :]
