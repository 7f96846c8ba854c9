"""Fields of documents and conditions on them: what a filter lets through is what plain Python would."""

from __future__ import annotations

import operator
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.collection import open_collection, write_collection
from retriever.errors import ConfigError, DataError
from retriever.filters import Condition, check_conditions, conditions_from, met, parse_condition
from retriever.settings.collection import CollectionSettings
from retriever.tables.documents import DocumentTable
from retriever.tables.fields import FieldColumns, FieldWriter
from retriever.types import Document

FIELDS: list[dict[str, Any]] = [
    {"year": 2019, "language": "de", "topics": ["law", "tax"], "open": True},
    {"year": 2021, "language": "fr", "topics": [], "open": False},
    {"year": 2020.5, "topics": ["tax"]},
    {},
    {"year": 2021, "language": "de", "topics": ["health", "law"], "open": True},
]


def columns(folder: Path, fields: list[dict[str, Any]]) -> FieldColumns:
    writer = FieldWriter()
    for number, one in enumerate(fields):
        writer.add(f"document {number}", one)
    writer.write(folder / "fields.arrow")
    return FieldColumns(folder, len(fields))


def found(folder: Path, *conditions: str) -> list[int]:
    return np.flatnonzero(met(columns(folder, FIELDS), [parse_condition(one) for one in conditions])).tolist()


def test_equality_ranges_and_sets_let_through_what_they_say(tmp_path: Path) -> None:
    assert found(tmp_path) == [0, 1, 2, 3, 4]
    assert found(tmp_path, "year=2021") == [1, 4]
    assert found(tmp_path, "year > 2019", "year<=2020.5") == [2]
    assert found(tmp_path, "language=de") == [0, 4]
    assert found(tmp_path, "language in de, fr") == [0, 1, 4]
    assert found(tmp_path, "language>=e") == [1]
    assert found(tmp_path, "topics=law") == [0, 4]
    assert found(tmp_path, "topics in health,tax") == [0, 2, 4]
    assert found(tmp_path, "open=true", "year=2021") == [4]
    assert found(tmp_path, "year in 2019,2020.5") == [0, 2]


def test_a_document_without_the_field_meets_no_condition_on_it(tmp_path: Path) -> None:
    assert found(tmp_path, "language!=de") == [1]
    assert found(tmp_path, "open!=true") == [1]
    assert found(tmp_path, "topics!=law") == [2]
    assert found(tmp_path, "year!=2021") == [0, 2]


def test_conditions_may_come_as_json() -> None:
    asked = conditions_from({"year": {">=": 2020, "<": 2024}, "language": ["de", "fr"], "open": True})
    assert asked == [Condition("year", ">=", 2020), Condition("year", "<", 2024), Condition("language", "in", ("de", "fr")), Condition("open", "=", True)]


@pytest.mark.parametrize(
    "value", [{"year": {"~": 1}}, {"year": {"in": 3}}, {"year": {"=": [3]}}, {"year": None}, {"year": [{}]}, {"year": {"=": float("nan")}}]
)
def test_json_that_is_no_condition_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^filter: "):
        conditions_from(value)


@pytest.mark.parametrize("text", ["", "year", "year>=", "=3", "in de", "year in "])
def test_a_text_that_is_no_condition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no condition; write it like 'year>=2020'"):
        parse_condition(text)


def test_what_the_fields_cannot_answer_is_refused(tmp_path: Path) -> None:
    kinds = columns(tmp_path, FIELDS).kinds
    assert kinds == {"year": "number", "language": "text", "topics": "texts", "open": "truth"}
    for text, said in {
        "yaer=3": 'x: no document has a field "yaer"; did you mean "year"?',
        "colour=red": 'x: no document has a field "colour"; known are language, open, topics, year',
        "year=new": "x: the field \"year\" holds numbers, found 'new'",
        "open=maybe": "x: the field \"open\" is true or false, found 'maybe'",
    }.items():
        with pytest.raises(ConfigError) as caught:
            check_conditions(kinds, [parse_condition(text)], "x")
        assert str(caught.value) == said
    with pytest.raises(ConfigError, match="holds texts, found 3"):
        check_conditions(kinds, [Condition("language", "=", 3)], "x")
    with pytest.raises(ConfigError, match="known are none: the documents were indexed without fields"):
        check_conditions({}, [Condition("language", "=", "de")], "x")


TEXTS = st.text("abc", max_size=2)
ROWS = st.fixed_dictionaries({}, optional={"n": st.integers(-3, 3), "t": TEXTS, "l": st.lists(TEXTS, max_size=3), "b": st.booleans()})
COMPARE = {"=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=12), name=st.sampled_from("ntlb"), comparison=st.sampled_from(list(COMPARE)), number=st.integers(-3, 3), text=TEXTS
)
def test_any_condition_answers_as_plain_python_does(rows: list[dict[str, Any]], name: str, comparison: Any, number: int, text: str) -> None:
    wanted: Any = {"n": number, "b": number > 0}.get(name, text)
    with tempfile.TemporaryDirectory() as folder:
        allowed = met(columns(Path(folder), rows), [Condition(name, comparison, wanted)])
    values = [row.get(name) for row in rows]
    lists = [value if isinstance(value, list) else [] if value is None else [value] for value in values]
    assert allowed.tolist() == [any(COMPARE[comparison](value, wanted) for value in one) for one in lists]


def test_fields_of_a_record_or_its_metadata_are_kept_when_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    lines = ['{"_id": "a", "text": "x", "metadata": {"year": 2020, "url": "u"}, "language": "de"}', '{"_id": "b", "text": "y"}']
    (tmp_path / "c" / "corpus.jsonl").write_text("\n".join(lines))
    plain = open_collection(CollectionSettings(path=tmp_path / "c"), tmp_path / "plain")
    kept = open_collection(CollectionSettings(path=tmp_path / "c", fields=("year", "language")), tmp_path / "kept")
    assert plain.document("a").fields == {}
    assert (kept.document("a").fields, kept.document("b").fields) == ({"year": 2020, "language": "de"}, {})
    assert plain.fingerprint != kept.fingerprint
    assert met(kept.fields, [Condition("year", "=", 2020)]).tolist() == [True, False]
    kept.to_beir(tmp_path / "out")
    again = open_collection(CollectionSettings(path=tmp_path / "out", fields=("year", "language")), tmp_path / "again")
    assert again.fingerprint == kept.fingerprint


def test_fields_that_cannot_be_kept_are_named_with_their_document(tmp_path: Path) -> None:
    for value in (None, float("nan"), {"a": 1}, [1]):
        with pytest.raises(DataError, match=r'^document 1: the field "x" is .*; a field holds a finite number'):
            write_collection(tmp_path / "c", [Document("a", "", fields={"x": value})])
    with pytest.raises(DataError, match=r'^document 2: the field "x" is a text here and a number in documents before'):
        write_collection(tmp_path / "c", [Document("a", "", fields={"x": 1}), Document("b", "", fields={"x": "1"})])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("text")
    with pytest.raises(ConfigError, match='documents of the format "files" have no fields'):
        open_collection(CollectionSettings(path=tmp_path / "notes", fields=("year",)), tmp_path / "p")


def test_cut_fields_are_refused(tmp_path: Path) -> None:
    collection = write_collection(tmp_path / "c", [Document("a", "", fields={"x": 1}), Document("b", "")])
    path = collection.folder / "fields.arrow"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="the documents' fields are cut or damaged"):
        DocumentTable(collection.folder)
