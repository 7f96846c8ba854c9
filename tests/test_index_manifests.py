"""Manifests of an index that somebody damaged or wrote by hand: they are read, or refused in one line, whatever stands in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retriever.errors import RetrieverError
from retriever.index.changes import add
from retriever.index.layout import MANIFEST, SEGMENT, read_version
from retriever.index.snapshot import open_snapshot
from retriever.types import Document
from tests.test_index import built, listed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.sampled_from(["../../etc", "000002", "flat", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "name", "documents", "x"]), inner, max_size=3),
    max_leaves=4,
)
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """An index of two segments."""
    folder = built(tmp_path_factory.mktemp("whole"), "dense", encoder_folder, [Document("owl", "a bird", fields={"legs": 2}), Document("saw", "a tool")])
    add(folder, listed([Document("bee", "an insect")]))
    return folder


@pytest.fixture(scope="module")
def folder(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "index")


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a value of JSON something stands: keys and numbers, from outside inwards."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(place for key, one in inner for place in places(one, (*before, key)))]


def changed(value: Any, place: tuple[Any, ...], new: Callable[[Any], Any]) -> Any:
    """A value with something else at a place."""
    if not place:
        return new(value)
    key, *rest = place
    if isinstance(value, dict):
        return {name: changed(one, tuple(rest), new) if name == key else one for name, one in value.items()}
    return [changed(one, tuple(rest), new) if number == key else one for number, one in enumerate(value)]


def refusal(folder: Path) -> str:
    """What is said of an index that cannot be opened, in one line; "" of one that can."""
    said = ""
    try:
        open_snapshot(folder, read_version(folder))
    except RetrieverError as error:
        said = str(error)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", [MANIFEST, f"segments/000001/{SEGMENT}"])
@given(data=st.data())
@FEW
def test_any_value_at_any_place_is_read_or_refused(whole: Path, folder: Path, name: str, data: st.DataObject) -> None:
    values = json.loads((whole / name).read_text())
    place = data.draw(st.sampled_from(places(values)))
    new = data.draw(JSON)
    (folder / name).write_text(json.dumps(changed(values, place, lambda old: new)))
    try:
        refusal(folder)
    finally:
        shutil.copyfile(whole / name, folder / name)


@pytest.mark.parametrize("name", [MANIFEST, f"segments/000001/{SEGMENT}"])
@given(data=st.data())
@FEW
def test_bytes_that_were_cut_or_flipped_are_read_or_refused(whole: Path, folder: Path, name: str, data: st.DataObject) -> None:
    content = bytearray((whole / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    try:
        refusal(folder)
    finally:
        shutil.copyfile(whole / name, folder / name)


def test_the_whole_index_opens(whole: Path) -> None:
    assert refusal(whole) == ""
