"""The rules that make documents and queries of docstrings: near-duplicates, boilerplate, leaks, look-ups, and the split."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import Stemmer

from retriever.documentation.docstrings import Docstring, parse_docstring, sentences
from retriever.near_duplicates import groups, shingles, similar_pairs

TEST_SHARE = 0.3
SAME_DOCUMENT = 0.8
"""Jaccard similarity of the 3-word shingles from which two docstrings are one document."""
SAME_QUERY = 0.8
"""Jaccard similarity of the content words from which two queries are one, if their numbers are the same too."""
RELATED_QUERY = 0.6
"""Jaccard similarity of the content words from which two queries must not lie on both sides of the split."""
LEAK = 0.75
"""Share of a query's content words in one sentence of its document from which that sentence is taken out."""
COMMON_UNIT = 5
"""A paragraph or parameter entry that stands in this many documents is boilerplate."""
COMMON_QUERY = 4
"""A sentence said of this many documents asks for none of them."""
DOCUMENT_WORDS = 15
QUERY_CONTENT_WORDS = 4
QUERY_WORDS = 40

_STOP_WORDS = frozenset(
    """
    a an and any are as at be been but by can cannot could do does for from had has have if in into is it its may more most must no not of on or
    other over same should so some such than that the their them then there these they this those through to under up use used uses using was were
    what when where which while will with within without you your each given also all new via per return returns get gets set sets
    """.split()  # noqa: SIM905 - a list would take a line for every few words
)
_WORD = re.compile(r"[a-z0-9]+")
_POINTS_BACK = re.compile(  # what only makes sense beside the object whose "See Also" it stands in
    r"\b(?:this|these|same|equivalent|similar|analogous|counterpart|corresponding|alternative|above|also|instead|inverse of|version|variant|more)\b",
    re.IGNORECASE,
)


def make_collection(raw: Sequence[Mapping[str, Any]], limit: int | None = None) -> DocumentationCollection:
    """Documents and queries from what `installed_documentation` gives: every rule of the collection, in order."""
    entries = read_entries(raw)
    add_related(entries)
    remove_boilerplate(entries)
    entries = [entry for entry in entries if entry.is_long_enough]
    queries = hold_out_queries(entries)
    remove_leaks(entries, queries)
    entries, queries = keep(entries, queries, [number for number, entry in enumerate(entries) if entry.is_long_enough])
    family = families(len(entries), queries)
    for query in queries:
        query.split = "test" if _hash(f"split {entries[family[min(query.answers)]].name}") < TEST_SHARE else "train"
    return DocumentationCollection(*keep(entries, queries, chosen(entries, queries, family, limit)))


def content_words(text: str) -> list[str]:
    """The stemmed words of a text in lower case, without function words."""
    return _stem(word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS)


@functools.cache
def _stemmer() -> Stemmer.Stemmer:
    return Stemmer.Stemmer("english")


def _stem(words: Iterable[str]) -> list[str]:
    stemmed: list[str] = _stemmer().stemWords(list(words))
    return stemmed


def _bare(text: str) -> str:
    """The words of a text in lower case without punctuation, to tell whether two texts are the same."""
    return " ".join(_WORD.findall(text.lower()))


def _hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def best_name(names: Iterable[str], qualified: str) -> str:
    """The public name a reader would use: the least nested, then the one that ends as the object calls itself, then the shortest."""
    return min(names, key=lambda name: (name.count("."), not f".{name}".endswith(f".{qualified}"), len(name), name))


def read_entries(raw: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """One entry for each group of near-identical docstrings, ordered by name; the least nested one of the group stands for it.

    A near-duplicate with the same last name is the same thing elsewhere (DataFrame.head, Series.head): its names and its
    summary count too. One with another name (sin, cos) is left out: its text could not be told from the other's.
    """
    by_name: dict[str, Entry] = {}
    for item in raw:
        name = best_name(item["names"], item["qualified"])
        parsed = parse_docstring(item["doc"])
        by_name.setdefault(name, Entry(name, list(item["names"]), parsed, list(parsed.units), [(parsed.summary, "summary")]))
    found = sorted(by_name.values(), key=lambda entry: (entry.name.count("."), entry.name))
    labels = groups(len(found), similar_pairs([shingles(_bare(" ".join((entry.parsed.summary, *entry.units))).split()) for entry in found], SAME_DOCUMENT))
    for entry, label in zip(found, labels, strict=True):
        if found[label] is not entry and found[label].last_name == entry.last_name:
            found[label].names += entry.names
            found[label].asked.append((entry.parsed.summary, f"summary of {entry.name}"))
    return sorted((entry for number, entry in enumerate(found) if labels[number] == number), key=lambda entry: entry.name)


def add_related(entries: Sequence[Entry]) -> None:
    """Hands each "See Also" description to the entry it speaks of."""
    by_name = {name: entry for entry in entries for name in entry.names}
    for entry in entries:
        for name, description in entry.parsed.related:
            target = _resolve(name, entry.name, by_name)
            if target is not None and target is not entry and description and not _POINTS_BACK.search(description):
                target.asked.append((sentences(description)[0], f"see also of {entry.name}"))


def _resolve(name: str, seen_from: str, by_name: Mapping[str, Entry]) -> Entry | None:
    """The entry a name means inside the object `seen_from`: first in its innermost scope, then outwards."""
    parts = seen_from.split(".")
    scopes = [".".join(parts[:length]) + "." for length in range(len(parts) - 1, 0, -1)]
    return next((by_name[scope + name] for scope in (*scopes, "") if scope + name in by_name), None)


def remove_boilerplate(entries: Iterable[Entry]) -> None:
    """Takes out the units that stand in several documents, such as numpy's description of `out`; an object's own name does not count."""
    entries = list(entries)
    keys = [[_bare(re.sub(rf"\b{re.escape(entry.last_name)}\b", "_", unit)) for unit in entry.units] for entry in entries]
    frequency = Counter(key for units in keys for key in set(units))
    for entry, units in zip(entries, keys, strict=True):
        entry.units = [unit for unit, key in zip(entry.units, units, strict=True) if key and frequency[key] < COMMON_UNIT]


def names_itself(text: str, name: str) -> bool:
    """Whether a query names what it looks for: the object's last name stands in it, whole or with all of its parts."""
    last = name.rpartition(".")[2]
    parts = _WORD.findall(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", last).lower().replace("_", " "))
    return set(_stem(parts)) <= set(_stem(_WORD.findall(text.lower()))) or last.lower() in re.findall(r"\w+", text.lower())


def is_query(text: str, name: str) -> bool:
    """Whether a sentence can ask for an object: it says enough, is short enough to ask, is no warning, and no look-up of a name."""
    says_enough = sum(not word.isdigit() for word in set(content_words(text))) >= QUERY_CONTENT_WORDS and len(text.split()) <= QUERY_WORDS
    return says_enough and not text.lower().startswith(("warning", "note")) and not names_itself(text, name)


def hold_out_queries(entries: Sequence[Entry]) -> list[HeldOutQuery]:
    """The queries; of those that say the same the first is kept, and the documents of all of them are relevant.

    What is said of many objects in the same words ("Equivalent method of ndarray") asks for none of them.
    """
    said_of = Counter(_bare(text) for entry in entries for text in {text for text, _ in entry.asked})
    asked = [
        HeldOutQuery(text.rstrip(". "), {number}, source)
        for number, entry in enumerate(entries)
        for text, source in entry.asked
        if said_of[_bare(text)] < COMMON_QUERY and is_query(text, entry.name)
    ]
    words = [frozenset(content_words(query.text)) for query in asked]
    same = defaultdict(list)
    for later, earlier in similar_pairs(words, SAME_QUERY):
        if _numbers(words[later]) == _numbers(words[earlier]):
            same[later].append(earlier)
    kept: dict[int, HeldOutQuery] = {}
    for number, query in enumerate(asked):
        first = next((earlier for earlier in sorted(same[number]) if earlier in kept), None)
        if first is None:
            kept[number] = query
        else:
            kept[first].answers |= query.answers
    return list(kept.values())


def _numbers(words: Iterable[str]) -> set[str]:
    return {word for word in words if any(letter.isdigit() for letter in word)}


def remove_leaks(entries: Sequence[Entry], queries: Iterable[HeldOutQuery]) -> None:
    """Takes out of each document the sentences that nearly say one of its queries, and out of all documents those that are one."""
    asked: dict[int, list[set[str]]] = defaultdict(list)
    literal = set()
    for query in queries:
        literal.add(_bare(query.text))
        for answer in query.answers:
            asked[answer].append(set(content_words(query.text)))
    for number, entry in enumerate(entries):
        units = (
            " ".join(sentence for sentence in sentences(unit) if _bare(sentence) not in literal and not _leaks(sentence, asked[number])) for unit in entry.units
        )
        entry.units = [unit for unit in units if unit]


def _leaks(sentence: str, queries: Sequence[set[str]]) -> bool:
    words = set(content_words(sentence)) if queries else set()
    return any(len(query & words) >= LEAK * len(query) for query in queries)


def keep(entries: Sequence[Entry], queries: Iterable[HeldOutQuery], chosen: Sequence[int]) -> tuple[list[Entry], list[HeldOutQuery]]:
    """The chosen entries, and the queries that still have an answer among them."""
    place = {number: new for new, number in enumerate(chosen)}
    kept = [dataclasses.replace(query, answers={place[answer] for answer in query.answers if answer in place}) for query in queries]
    return [entries[number] for number in chosen], [query for query in kept if query.answers]


def families(count: int, queries: Sequence[HeldOutQuery]) -> list[int]:
    """For each of `count` documents the first of its family: those that share a query, or whose queries are nearly the same."""
    words = [frozenset(content_words(query.text)) for query in queries]
    shared = [(min(query.answers), answer) for query in queries for answer in query.answers]
    near = [(min(queries[one].answers), min(queries[other].answers)) for one, other in similar_pairs(words, RELATED_QUERY)]
    return groups(count, shared + near)


def chosen(entries: Sequence[Entry], queries: Iterable[HeldOutQuery], family: Sequence[int], limit: int | None) -> list[int]:
    """The documents of whole families as long as they fit into the limit: those with queries first, each kind in the order of hashes."""
    if limit is None:
        return list(range(len(entries)))
    size = Counter(family)
    asked = {family[answer] for query in queries for answer in query.answers}
    taken, room = set(), limit
    for first in sorted(size, key=lambda first: (first not in asked, _hash(entries[first].name))):
        if size[first] <= room:
            taken.add(first)
            room -= size[first]
    return [number for number, first in enumerate(family) if first in taken]


@dataclasses.dataclass
class Entry:
    """One object's documentation.

    Attributes:
        name: its best public name.
        names: every public name that leads to it or to one of its near-duplicates.
        parsed: its docstring.
        units: what is left of the docstring's paragraphs and parameter entries for the document.
        asked: sentences that may become queries which it answers, each with where it was found.
    """

    name: str
    names: list[str]
    parsed: Docstring
    units: list[str]
    asked: list[tuple[str, str]]

    @property
    def last_name(self) -> str:
        """The name without the modules and classes around it."""
        return self.name.rpartition(".")[2]

    @property
    def is_long_enough(self) -> bool:
        """Whether enough words are left to be found by."""
        return sum(len(unit.split()) for unit in self.units) >= DOCUMENT_WORDS


@dataclasses.dataclass
class HeldOutQuery:
    """A query, the places of its relevant documents among the entries, where its sentence stood, and its split."""

    text: str
    answers: set[int]
    source: str
    split: str = ""

    @property
    def query_id(self) -> str:
        """An id that depends on the text alone."""
        return "q" + hashlib.sha256(self.text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class DocumentationCollection:
    """The documents in the order of their names, and the queries."""

    entries: list[Entry]
    queries: list[HeldOutQuery]
