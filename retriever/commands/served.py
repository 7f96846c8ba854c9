"""A server that is searched from the command line as an index on disk is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from retriever.client import Client
from retriever.conversations.chat import Contributions, LeftOut, Term, Word
from retriever.conversations.reading import ReadText
from retriever.errors import ConfigError, DataError
from retriever.filters import Condition
from retriever.runs import Run
from retriever.search import Hit
from retriever.serving.answers import Result
from retriever.types import Document, Query

TOGETHER = 32
"""Queries asked in one request."""


@dataclasses.dataclass(frozen=True)
class ServedSearch:
    """An index of a server.

    Attributes:
        client: the server.
        index: its name; None for the server's first one.
    """

    client: Client
    index: str | None = None

    def hits(self, query: Query, k: int, where: Sequence[Condition] = ()) -> list[Hit]:
        """The best k documents of a query, best first."""
        return self.ask(query, k, where)[1]

    def run(self, queries: Mapping[str, Query], k: int, where: Sequence[Condition] = ()) -> Run:
        """The best k documents of many queries, as a run."""
        listed = list(queries.items())
        scores: dict[str, dict[str, float]] = {}
        for start in range(0, len(listed), TOGETHER):
            some = listed[start : start + TOGETHER]
            if any(query.image is not None for _, query in some):  # a request holds one image
                scores |= {query_id: {hit.document.doc_id: hit.score for hit in self.hits(query, k, where)} for query_id, query in some}
                continue
            found = self.client.search_all([query.text for _, query in some], k, self.index, filter_of(where))
            for (query_id, _), results in zip(some, found.results, strict=True):
                scores[query_id] = {one.id: one.score for one in results} if isinstance(results, list) else {}
        return Run.from_dict(self.index or "served", scores)

    def ask(self, query: Query, k: int, where: Sequence[Condition] = ()) -> tuple[ReadText, list[Hit]]:
        """What the student read of a query, and the best k documents."""
        text = query.text if query.image is None else None
        found = self.client.search(text, k, self.index, filter_of(where), query.turns, whole_text=True, image=query.image)
        read = ReadText(**found.read.model_dump()) if found.read else ReadText(query.text)
        return read, [_hit(result) for result in found.results if isinstance(result, Result)]

    def why(self, query: Query, k: int, where: Sequence[Condition] = ()) -> Contributions:
        """What the history contributed to a query.

        Raises:
            DataError: it has none.
        """
        if not query.turns:
            raise DataError("/why: this is the first turn: there is no history")
        body = self.client.explain(query.text, index=self.index, turns=query.turns, k=k, where=filter_of(where)).history or {}
        kind: Any = {"terms": Term, "words": Word, "turns": LeftOut}[body["kind"]]
        rows = tuple(kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}) for row in body["rows"])
        return Contributions(body["kind"], rows, body["whole"])


def served_search(command: str, url: str, index: str | None, **here: object) -> ServedSearch:
    """An index of a server.

    Args:
        command: that is run.
        url: of the server.
        index: its name; None for the server's first one.
        here: options of the command for an index on this machine.

    Raises:
        ConfigError: one of these options is given.
    """
    if given := next((name for name, value in here.items() if value is not None), None):
        raise ConfigError(f"{command}: --{given} is for an index on this machine, and --url asks a server. Leave one out")
    return ServedSearch(Client(url), index)


def filter_of(conditions: Sequence[Condition]) -> dict[str, Any]:
    """Conditions as requests hold them.

    Raises:
        ConfigError: two of them compare one field in the same way.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in conditions:
        own = found.setdefault(one.field, {})
        if one.comparison in own:
            raise ConfigError(f'--filter: two conditions compare "{one.field}" by {one.comparison}, and a server takes one of them. Search the index itself')
        own[one.comparison] = list(one.value) if isinstance(one.value, tuple) else one.value
    return found


def _hit(result: Result) -> Hit:
    return Hit(result.rank, result.score, Document(result.id, result.text or "", result.title, fields=result.fields))
