"""The queries of an experiment: those that are judged, and what is read of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from retriever.collection import Collection
from retriever.conversations.facets import relevant_to
from retriever.conversations.reading import ConversationReader
from retriever.errors import ConfigError, DataError
from retriever.eval.directions import direction_of_query
from retriever.files import fingerprint
from retriever.near_duplicates import groups
from retriever.settings.collection import CollectionSettings
from retriever.tables.queries import row_of_query
from retriever.types import Qrels, Query

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def judged_queries(collection: Collection, settings: CollectionSettings, say: Callable[[str], None]) -> dict[str, dict[str, Query]]:
    """The queries of "train" and "test" as the collection has them; a train query that is a test query too is left out of "train".

    Raises:
        DataError: a split has none.
    """
    names = {"train": settings.train, "test": settings.test}
    for split, name in names.items():
        if name not in collection.splits:
            listed = ", ".join(collection.splits) or "none"
            raise DataError(f'{collection.name}: no {split} queries: there are no qrels for the split "{name}"; splits with qrels: {listed}')
    queries = {split: collection.queries(name) for split, name in names.items()}
    for split, name in names.items():
        if not queries[split]:
            raise DataError(f'{collection.name}: no {split} queries: the qrels of the split "{name}" hold none. Fill them, or name another split')
    if settings.folds:
        return queries
    tested = {plain_words(query) for query in queries["test"].values()}
    leaked = [query_id for query_id, query in queries["train"].items() if plain_words(query) in tested]
    if leaked:
        say(f"train: {len(leaked)} queries left out, their texts are test queries too ({', '.join(leaked[:3])})")
    return queries | {"train": {query_id: query for query_id, query in queries["train"].items() if query_id not in set(leaked)}}


def without_judgements(collection: Collection) -> dict[str, Query]:
    """The queries that no split judges, in the order of the source."""
    judged = {query_id for split in collection.splits for query_id in collection.qrels(split)}
    return {query.query_id: query for query in collection.all_queries() if query.query_id not in judged}


def unjudged_queries(collection: Collection, settings: CollectionSettings) -> dict[str, Query]:
    """The queries that no split judges, where they are to teach: by a teacher's scores alone.

    Left out are those whose text is that of a test query, or of a train query, of which people say more; and turns of conversations of which
    a split that does not teach judges a turn: those are for tests, as wholes.
    """
    if not settings.unjudged:
        return {}
    judged = {split: collection.queries(split).values() for split in collection.splits}
    elsewhere = {query.conversation for split, queries in judged.items() if split != settings.train for query in queries} - {""}
    known = {plain_words(query) for split in {settings.train, settings.test} for query in judged.get(split, ())}
    free = without_judgements(collection).items()
    return {query_id: query for query_id, query in free if query.conversation not in elsewhere and plain_words(query) not in known}


def plain_words(query: Query) -> tuple[str, ...]:
    """What makes two queries the same, whatever their case and white space: "yes" after different turns is none of them, nor are two images."""
    words = (" ".join(text.split()).casefold() for text in (*(turn.text for turn in query.turns), query.text))
    return (*words, "" if query.image is None else str(query.image))


def kept_together(queries: Mapping[str, Query], qrels: Qrels, documents: Literal["any", "new"] = "any") -> dict[str, str]:
    """Query id -> what it must not be parted from when queries are held out; "" where it stands alone.

    The turns of a conversation belong together; so do an image and the captions that look for it: each of them has the pairs of the
    others, the other way round. Captions of one image stay together where no image asks, too: all of them teach that image. Where held-out
    queries must be about "new" documents, those that share a relevant one stay together as well.
    """
    images, captioned = {query_id for query_id, query in queries.items() if query.image is not None}, captioned_images(queries, qrels)

    def image_of(query_id: str) -> str:
        asked = (doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade > 0 and doc_id in images)
        return query_id if query_id in images else next(asked, captioned.get(query_id, ""))

    together = {query_id: query.conversation or image_of(query_id) for query_id, query in queries.items()}
    if documents == "any":
        return together
    return connected({query_id: [f"with {other}" if other else "", *sorted(relevant_to(qrels, query_id))] for query_id, other in together.items()})


def connected(about: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Query id -> its group: queries share one where they are about the same thing, or each is about one with a third. An empty name is no thing.

    Groups are numbered from 0 in the order in which they come first: their names decide what is drawn, and results that were drawn so are kept.
    """
    first: dict[str, int] = {}
    pairs = [(number, first.setdefault(thing, number)) for number, things in enumerate(about.values()) for thing in things if thing]
    _, numbers = np.unique(groups(len(about), pairs), return_inverse=True)
    return {query_id: str(number) for query_id, number in zip(about, numbers, strict=True)}


def parts_of(queries: Mapping[str, str], folds: int, seed: int, setting: str) -> list[list[str]]:
    """Query ids in `folds` parts of about equal size; the turns of a conversation stay together, and so do an image and its captions.

    Args:
        queries: with what each must not be parted from, as `kept_together` gives it.
        folds: how many parts.
        seed: of the order in which conversations of equal length are dealt.
        setting: what asks for so many, as messages call it.

    Raises:
        ConfigError: there are fewer conversations than parts.
    """
    together: dict[str, list[str]] = {}
    for query_id, conversation in queries.items():
        together.setdefault(f"conversation {conversation}" if conversation else f"query {query_id}", []).append(query_id)
    if len(together) < folds:
        raise ConfigError(f"{setting} = {folds}, but there are {len(together)} queries or conversations. Set {setting} = {max(2, len(together))} at most")
    names = sorted(together)
    np.random.default_rng(seed).shuffle(names)
    parts: list[list[str]] = [[] for _ in range(folds)]
    for name in sorted(names, key=lambda name: -len(together[name])):  # the longest first, each to the smallest part: sizes stay close
        min(parts, key=len).extend(together[name])
    return parts


def captioned_images(queries: Mapping[str, Query], qrels: Qrels) -> dict[str, str]:
    """Caption -> the images that it is a caption of, of all queries that look for images; whether the images are queries does not matter."""
    captions = [query_id for query_id, query in queries.items() if direction_of_query(query) and query.image is None]
    return {query_id: " ".join(sorted(relevant_to(qrels, query_id))) for query_id in captions}


def read_queries(reader: ConversationReader, queries: Mapping[str, Query]) -> dict[str, Query]:
    """What a reader makes of queries; under "last" they keep their turns, which language models are shown."""
    return dict(queries) if reader.reading == "last" else reader.read_all(queries)


def reader_of(student: Any) -> ConversationReader:
    """How a student reads conversations; one of the user's own without a reader is given queries as the collection has them."""
    reader = getattr(student, "reader", None)
    return reader if isinstance(reader, ConversationReader) else ConversationReader()


def read_otherwise(asked: Mapping[str, Query], read: Mapping[str, Query]) -> dict[str, str]:
    """Query id -> what is read of it; empty where that is the last turn of each."""
    texts = {query_id: query.text for query_id, query in read.items()}
    return {} if all(asked[query_id].text == text for query_id, text in texts.items()) else texts


def reading_input(pipeline: Pipeline, splits: Sequence[str] = ("train",)) -> dict[str, str]:
    """What the student reads of the queries of some splits, where that is not just what is asked: an input of every step that its reading decides."""
    found = [read_otherwise(pipeline.conversations(split), pipeline.student_queries(split)) for split in splits]
    texts = {query_id: text for of_split in found for query_id, text in of_split.items()}
    return {"read by the student": fingerprint(texts)} if texts else {}


def asked_fingerprint(collection: Collection, split: str, read: Mapping[str, Query]) -> str:
    """Changes with the queries of a split, their grades, and what is read of them; and with the unjudged queries that are read beside them."""
    asked = collection.queries(split)
    texts = read_otherwise(asked, {query_id: query for query_id, query in read.items() if query_id in asked})
    unjudged = [row_of_query(query) for query_id, query in sorted(read.items()) if query_id not in asked]
    found = [collection.queries_fingerprint(split), *([texts] if texts or unjudged else []), *([unjudged] if unjudged else [])]
    return fingerprint(found) if len(found) > 1 else str(found[0])
