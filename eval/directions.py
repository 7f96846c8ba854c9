"""Text to image and image to text: the two ways through a collection of both are told apart in every report, and never put together.

A query says its way in its field "direction", such as "text_to_image"; a report calls the runs of one way NAME.text_to_image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from retriever.types import Query

FIELD = "direction"
_DIRECTION = re.compile(r"[a-z]+_to_[a-z]+")
_ENDING = re.compile(rf"\.({_DIRECTION.pattern})$")


def in_direction(system: str, direction: str) -> str:
    """What a report calls a system's run of one direction, "student.text_to_image"; the system's name where there are none ("")."""
    return f"{system}.{direction}" if direction else system


def direction_of(run: str) -> str:
    """The direction in a run's name; "" where it has none."""
    found = _ENDING.search(run)
    return found[1] if found else ""


def system_of(run: str) -> str:
    """A run's name without its direction."""
    return _ENDING.sub("", run)


def directions_in(runs: Iterable[str]) -> tuple[str, ...]:
    """The directions of runs, in their order; ("",) where they are not told apart."""
    return tuple(dict.fromkeys(map(direction_of, runs))) or ("",)


def in_words(direction: str) -> str:
    """A direction as a sentence has it: "text to image"."""
    return direction.replace("_", " ")


def direction_of_query(query: Query) -> str:
    """The direction that a query says; "" where it says none."""
    said = query.fields.get(FIELD)
    return said if isinstance(said, str) and _DIRECTION.fullmatch(said) else ""


def directions_of(queries: Mapping[str, Query]) -> dict[str, list[str]]:
    """Direction -> ids of its queries, directions from texts first; {"": all ids} where there are not two of them.

    Queries that say no direction have none of their own: beside them nothing is told apart.
    """
    found: dict[str, list[str]] = {}
    for query_id, query in queries.items():
        found.setdefault(direction_of_query(query), []).append(query_id)
    if len(found) < 2 or "" in found:
        return {"": list(queries)}
    return {way: found[way] for way in sorted(found, key=lambda way: not way.startswith("text_"))}


def pairs_in_directions(runs: Iterable[str], asked: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs (run, baseline) of systems that can be asked of runs, within each direction.

    Args:
        runs: names.
        asked: pairs of systems, in the order in which they are wanted.
    """
    there, wanted = list(runs), list(asked)
    pairs = [(in_direction(run, way), in_direction(baseline, way)) for way in directions_in(there) for run, baseline in wanted]
    return [(run, baseline) for run, baseline in pairs if run in there and baseline in there]
