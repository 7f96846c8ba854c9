"""The collection made of installed documentation: what is harvested, and each rule on its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from retriever.documentation.collection import build_documentation_collection, installed_documentation
from retriever.documentation.docstrings import parse_docstring, plain, sentences
from retriever.documentation.rules import (
    RELATED_QUERY,
    Entry,
    HeldOutQuery,
    best_name,
    chosen,
    content_words,
    families,
    hold_out_queries,
    is_query,
    make_collection,
    names_itself,
    read_entries,
    remove_boilerplate,
    remove_leaks,
)
from retriever.errors import DataError
from retriever.near_duplicates import jaccard, similar_pairs

BODY = "Bread rises slowly while yeast eats sugar; a warm oven finishes what patience began in the bowl at dawn on Sunday."

FAKE_PACKAGE = {
    "fakelib/__init__.py": '''
        """A package about bread."""
        print("imported aloud")
        from json import dumps
        from fakelib._inner import knead
        def bake(dough):
            """Turns dough into a loaf."""
        toast = bake
        def _hidden():
            """Nobody sees this."""
        class Oven:
            """Something hot."""
            def heat(self):
                """Raises the temperature."""
            def _cool(self):
                """Lowers it."""
            class dial:
                """Chooses the temperature."""
        class Grill(Oven):
            """An oven with fire above."""
    ''',
    "fakelib/_inner.py": '''
        def knead(dough):
            """Works the dough."""
        def unlisted():
            """Stays in the private module."""
    ''',
    "fakelib/listed.py": '''
        __all__ = ["_shown", "missing"]
        def _shown():
            """Listed, hence public."""
        def left_out():
            """Not listed, hence private."""
    ''',
    "fakelib/broken.py": "raise RuntimeError('not on this machine')",
    "fakelib/leaving.py": "raise SystemExit(3)",
    "fakelib/tests/__init__.py": '"""Tests are not documentation."""',
}


def write_package(folder: Path) -> Path:
    for name, source in FAKE_PACKAGE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = source.strip("\n").split("\n")
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("\n".join(line[indent:] for line in lines))
    return folder


def entry(name: str, *units: str, asked: tuple[str, ...] = ()) -> Entry:
    return Entry(name, [name], parse_docstring(""), list(units), [(text, "summary") for text in asked])


def item(name: str, doc: str) -> dict[str, Any]:
    return {"names": [name], "qualified": name.rpartition(".")[2], "kind": "function", "doc": doc}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_qrels(path: Path) -> dict[str, list[str]]:
    qrels: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query_id, doc_id, grade = line.split("\t")
        assert grade == "1"
        qrels.setdefault(query_id, []).append(doc_id)
    return qrels


@pytest.fixture(scope="module")
def standard_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_documentation_collection(tmp_path_factory.mktemp("documentation") / "stdlib", packages=["stdlib"])


def test_public_objects_are_harvested_once_and_under_all_their_names(tmp_path: Path) -> None:
    found = {
        best_name(each["names"], each["qualified"]): each for each in installed_documentation(["fakelib"], [str(write_package(tmp_path)), *_standard_path()])
    }
    assert set(found) == {
        "fakelib", "fakelib.bake", "fakelib.knead", "fakelib.Oven", "fakelib.Oven.heat", "fakelib.Oven.dial", "fakelib.Grill", "fakelib.listed._shown",
    }  # fmt: skip
    assert found["fakelib.bake"]["names"] == ["fakelib.bake", "fakelib.toast"]
    assert set(found["fakelib.Oven.heat"]["names"]) == {"fakelib.Grill.heat", "fakelib.Oven.heat"}


def _standard_path() -> list[str]:
    return list(sys.path)


def test_the_best_name_is_the_least_nested_then_the_objects_own() -> None:
    assert best_name(["torch.nn.GRU.cuda", "torch.nn.Module.cuda"], "Module.cuda") == "torch.nn.Module.cuda"
    assert best_name(["pandas.io.formats.style.NDFrame.tail", "pandas.Series.tail", "pandas.DataFrame.tail"], "NDFrame.tail") == "pandas.Series.tail"


def test_a_numpy_docstring_is_taken_apart() -> None:
    parsed = parse_docstring(
        "knead(dough, times=3)\n\nWork the dough. It is then\nelastic.\n\n.. versionadded:: 1.2\n   Or so.\n\n.. note::\n   Use :func:`~oven.bake` later.\n\n"
        "Parameters\n----------\ndough : Dough\n    What to work.\ntimes : int\n    How often, e.g. `3` [1]_.\n\n"
        "See Also\n--------\nbake : Make a loaf\n    of it.\nrest, wait : Do nothing.\n\n"
        "Notes\n-----\nThe law is\n\n.. math:: E = mc^2\n\nand holds::\n\n    code()\n\nalways.\n\nExamples\n--------\n>>> knead(1)\n2\n"
    )
    assert parsed.summary == "Work the dough."
    assert parsed.units == (
        "It is then elastic.", "Use bake later.", "dough : Dough What to work.", "times : int How often, e.g. 3.", "The law is", "and holds:", "always.",
    )  # fmt: skip
    assert parsed.related == (("bake", "Make a loaf of it."),)


def test_a_google_docstring_is_taken_apart() -> None:
    parsed = parse_docstring("Works.\n\nArgs:\n    dough: what\n      to work\n    times: how often\n\nExample::\n\n    >>> knead()\n\nAfterwards it rests.")
    assert parsed.summary == "Works."
    assert parsed.units == ("dough: what to work", "times: how often", "Afterwards it rests.")


def test_a_docstring_that_begins_with_its_parameters_has_no_summary() -> None:
    assert parse_docstring("Args:\n    dough: what to work").summary == ""
    assert parse_docstring("").summary == ""


def test_prose_with_a_call_in_it_is_no_signature() -> None:
    assert parse_docstring("open(name) makes a file.").summary == "open(name) makes a file."
    assert parse_docstring("range(stop) -> range object\nrange(start, stop,\n      step) -> range object\n\nCounts.").summary == "Counts."


def test_markup_goes_and_words_stay() -> None:
    assert plain("See :func:`~a.b`, ``code``, `text <https://x.y>`_ and\n**bold** at 0x7f00aa12bb") == "See b, code, text and bold at"
    assert sentences("One, e.g. This. Two! three? Four") == ["One, e.g. This.", "Two! three?", "Four"]


def test_near_duplicates_with_one_last_name_are_one_document_and_others_are_left_out() -> None:
    twins = [item("lib.Frame.head", f"First rows. {BODY}"), item("lib.Series.head", f"First rows. {BODY}"), item("lib.tail", f"First rows. {BODY}")]
    entries = read_entries(twins)
    assert [(each.name, each.names) for each in entries] == [("lib.tail", ["lib.tail"])]
    entries = read_entries(twins[:2])
    assert [(each.name, each.names) for each in entries] == [("lib.Frame.head", ["lib.Frame.head", "lib.Series.head"])]


def test_boilerplate_is_what_five_documents_say_their_own_names_aside() -> None:
    entries = [entry(f"lib.f{number}", f"f{number} takes out, an array.", "alone" * number) for number in range(1, 6)]
    remove_boilerplate(entries)
    assert [each.units for each in entries] == [["alone" * number] for number in range(1, 6)]


@pytest.mark.parametrize(
    ("text", "name", "named"),
    [
        ("Return a sorted copy", "builtins.sort", True),
        ("Return a copy in order", "builtins.sort", False),
        ("Mask an array where a condition is met", "numpy.ma.masked_where", True),
        ("Apply a linear map to the input", "torch.nn.LinearMap", True),
        ("Draw samples from a Beta distribution", "numpy.random.beta", True),
    ],
)
def test_a_query_that_names_its_object_is_a_look_up(text: str, name: str, named: bool) -> None:
    assert names_itself(text, name) is named
    assert is_query(f"{text} of bread, butter, salt and pepper", name) is not named


def test_trivial_and_endless_sentences_are_no_queries() -> None:
    assert not is_query("Alias for field number 0", "lib.f")
    assert not is_query("Initialize self.", "lib.f")
    assert is_query("Knead bread dough until elastic", "lib.f")
    assert not is_query("Knead bread dough until elastic " * 11, "lib.f")


def test_queries_that_say_the_same_are_one_query_with_all_their_documents() -> None:
    entries = [
        entry("lib.a", asked=("Pool the 1D signal by averaging windows.",)),
        entry("lib.b", asked=("Pool a 1D signal by averaging its windows",)),
        entry("lib.c", asked=("Pool the 2D signal by averaging windows.",)),
    ]
    queries = hold_out_queries(entries)
    assert [(query.text, query.answers) for query in queries] == [
        ("Pool the 1D signal by averaging windows", {0, 1}),
        ("Pool the 2D signal by averaging windows", {2}),
    ]


def test_what_is_said_of_four_documents_asks_for_none() -> None:
    entries = [entry(f"lib.{name}", asked=("Knead bread dough until elastic.",)) for name in "abcd"]
    assert hold_out_queries(entries) == []
    assert len(hold_out_queries(entries[:3])) == 1


def test_sentences_that_say_the_query_leave_its_document_and_literal_ones_leave_all() -> None:
    entries = [
        entry("lib.a", "It kneads the bread dough until it is elastic. Then it rests.", "A bowl helps."),
        entry("lib.b", "Knead bread dough until elastic. It kneads the bread dough until it is elastic."),
    ]
    remove_leaks(entries, [HeldOutQuery("Knead bread dough until elastic", {0}, "summary")])
    assert [each.units for each in entries] == [["Then it rests.", "A bowl helps."], ["It kneads the bread dough until it is elastic."]]


def test_documents_with_a_common_or_related_query_are_one_family() -> None:
    queries = [
        HeldOutQuery("Knead bread dough until elastic", {0, 2}, ""),
        HeldOutQuery("Knead bread dough until very elastic", {3}, ""),
        HeldOutQuery("Paint a wooden fence", {4}, ""),
    ]
    assert families(5, queries) == [0, 1, 0, 0, 4]


def test_a_limit_takes_whole_families_and_those_with_queries_first() -> None:
    entries = [entry(f"lib.{name}") for name in "abcde"]
    queries = [HeldOutQuery("one", {0, 1}, ""), HeldOutQuery("two", {3}, "")]
    family = [0, 0, 2, 3, 4]
    assert chosen(entries, queries, family, None) == [0, 1, 2, 3, 4]
    assert chosen(entries, queries, family, 3) == [0, 1, 3]
    assert 3 in chosen(entries, queries, family, 2) or chosen(entries, queries, family, 2) == [0, 1]
    assert len(chosen(entries, queries, family, 4)) == 4


def test_a_see_also_description_asks_for_the_object_it_names() -> None:
    related = (
        f"Eats bread quietly.\n\n{BODY}\n\nSee Also\n--------\nbake : Turn raw dough into warm loaves.\nroast : Equivalent way to heat bread dough loaves.\n"
    )
    other = "Heats the oven well. A long fire of beech wood keeps the stones hot all night, and the first loaf tells how hot they became."
    collection = make_collection([item("lib.eat", related), item("lib.bake", other), item("lib.roast", other.replace("stones", "iron plates of old"))])
    asked = {query.text: [collection.entries[answer].name for answer in query.answers] for query in collection.queries}
    assert asked["Turn raw dough into warm loaves"] == ["lib.bake"]
    assert not any("Equivalent" in text for text in asked)
    assert all("warm loaves" not in " ".join(each.units) for each in collection.entries)


def test_a_package_without_enough_documentation_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    write_package(tmp_path / "source")
    with pytest.raises(DataError, match="gives no queries for one of the splits"):
        build_documentation_collection(tmp_path / "out", packages=["fakelib"], path=[str(tmp_path / "source"), *_standard_path()])
    assert not (tmp_path / "out").exists()


def test_the_standard_library_gives_a_collection_of_whole_and_distinct_documents(standard_library: Path) -> None:
    corpus = read_lines(standard_library / "corpus.jsonl")
    names = [document["_id"] for document in corpus]
    assert len(names) > 1000
    assert names == sorted(set(names))
    assert {"statistics.median_high", "functools.lru_cache"} & set(names)
    assert all(len(document["text"].split()) >= 15 for document in corpus)
    counts = json.loads((standard_library / "PROVENANCE.json").read_text())["counts"]
    assert counts["documents"] == len(corpus)


def test_no_query_of_the_standard_library_stands_in_its_documents(standard_library: Path) -> None:
    texts = {document["_id"]: " ".join(content_words(document["text"])) for document in read_lines(standard_library / "corpus.jsonl")}
    queries = {query["_id"]: query["text"] for query in read_lines(standard_library / "queries.jsonl")}
    for split in ("train", "test"):
        for query_id, answers in read_qrels(standard_library / "qrels" / f"{split}.tsv").items():
            for answer in answers:
                assert " ".join(content_words(queries[query_id])) not in texts[answer]


def test_no_document_and_no_nearly_equal_query_is_on_both_sides_of_the_split(standard_library: Path) -> None:
    train, test = (read_qrels(standard_library / "qrels" / f"{split}.tsv") for split in ("train", "test"))
    queries = {query["_id"]: query["text"] for query in read_lines(standard_library / "queries.jsonl")}
    assert set(train) | set(test) == set(queries)
    assert not {answer for answers in train.values() for answer in answers} & {answer for answers in test.values() for answer in answers}
    words = {query_id: set(content_words(text)) for query_id, text in queries.items()}
    assert max(jaccard(words[one], words[other]) for one in test for other in train) < RELATED_QUERY


def test_building_twice_gives_the_same_bytes(standard_library: Path, tmp_path: Path) -> None:
    again = build_documentation_collection(tmp_path / "again", packages=["stdlib"])
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv", "PROVENANCE.json"):
        assert (again / name).read_bytes() == (standard_library / name).read_bytes()


def test_similar_pairs_are_those_of_slow_loops() -> None:
    sets = [{f"w{(number * 7 + step * step) % 11}" for step in range(number % 5 + 1)} for number in range(40)]
    for threshold in (0.3, 0.5, 0.8, 1.0):
        slow = {(one, other) for one in range(40) for other in range(one) if jaccard(sets[one], sets[other]) >= threshold}
        assert set(similar_pairs(sets, threshold)) == slow
