"""An experiment on the tiny collection, and commands run on it as a user would, without a new process for each."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from retriever import cli
from retriever.progress import Advance, Quiet

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("bm25", "candidates", "ensemble", "evaluate", "index", "index_before", "score", "start", "train")
RUNS = ["bm25", "student_before", "hybrid_before", "teacher", "student", "hybrid"]

EXPERIMENT = """\
name = "tiny"

[collection]
path = "{collection}"

[candidates]
sources = ["bm25", "student"]
depth = 10

[[teacher]]
kind = "lexical"

[[teacher]]
kind = "embedding"
model = "student"

[student]
model = "{model}"

[training]
documents_per_query = 4
batch_size = 8
learning_rate = 2e-2
validation_fraction = 0.3
precision = "fp32"
losses = {{ kl_divergence = 1.0, contrastive = 0.5 }}

[evaluation]
measures = ["nDCG@10", "AP"]
latency_queries = 3
"""


class Said(NamedTuple):
    """What a command printed, and its exit status."""

    status: object
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a user's mistake, after "error: "."""
        assert self.status == 2, self.err
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(f"{lines[0]}\n")
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


def command(*arguments: object) -> Said:
    """`retriever` with these arguments, in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["retriever", *map(str, arguments)]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code
    return Said(status, out.getvalue(), err.getvalue())


def process_environment(**more: str) -> dict[str, str]:
    """What a `python -m retriever` in another folder needs."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


class Noted(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.bars: dict[str, tuple[int, int]] = {}

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """Remembers how far each bar came, and of how much."""

        def advance(count: int) -> None:
            self.bars[description] = (self.bars.get(description, (0, 0))[0] + count, total)

        yield advance

    @property
    def done(self) -> set[str]:
        """The steps that were done, not only opened."""
        return {line.partition(":")[0] for line in self.said if ": done, " in line}


def write_experiment(folder: Path, collection: Path, model: Path, changes: Mapping[str, str] | None = None) -> Path:
    """The experiment file in a folder, some of its words changed."""
    text = EXPERIMENT.format(collection=collection, model=model)
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def manifest_times(experiment: Path) -> dict[str, int]:
    """Step -> when its manifest was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in experiment.glob("*/manifest.json")}
