"""A kind is a file, ours or the user's."""

from pathlib import Path

import pytest

from retriever.errors import ConfigError
from retriever.plugins import kinds, load_kind


def test_a_folders_files_are_its_kinds() -> None:
    assert {"lexical", "embedding", "cross_encoder"} <= set(kinds("teachers"))
    assert kinds("students") == ["cross_encoder", "dense", "image_text", "late_interaction", "sparse", "static"]
    assert kinds("indexing") == ["flat", "hnsw", "inverted", "ivf", "multivector", "seismic", "token_clusters"]
    assert not [name for package in ("teachers", "students", "indexing") for name in kinds(package) if name.startswith("_")]


def test_a_kind_is_loaded_by_its_name() -> None:
    assert load_kind("teachers", "lexical", "teacher").__name__ == "retriever.teachers.lexical"


def test_a_users_own_kind_is_loaded_by_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rankers").mkdir()
    (tmp_path / "my_rankers" / "__init__.py").write_text("")
    (tmp_path / "my_rankers" / "teacher.py").write_text("def load(settings, resources):\n    return 'mine'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_kind("teachers", "my_rankers.teacher", "teacher").load(None, None) == "mine"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lexcial", 'teacher mine: unknown kind "lexcial"; did you mean "lexical"?'),
        ("oracle", 'teacher mine: unknown kind "oracle"; known are cross_encoder, '),
        ("no_such_package.teacher", 'teacher mine: no module named "no_such_package.teacher" can be imported'),
        ("ensemble", 'teacher mine: "ensemble" is no kind that can be chosen: retriever.teachers.ensemble has no function "load"'),
        ("json.decoder", 'teacher mine: "json.decoder" is no kind that can be chosen: json.decoder has no function "load"'),
        ("json.no_such_module", 'teacher mine: no module named "json.no_such_module" can be imported'),
    ],
)
def test_an_unknown_kind_is_one_clear_line(kind: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_kind("teachers", kind, "teacher mine")
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


def test_what_a_users_module_misses_is_not_taken_for_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "needs_more.py").write_text("import no_such_requirement\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_requirement"):
        load_kind("teachers", "outer.needs_more", "teacher")
