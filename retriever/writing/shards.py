"""What language models wrote, as it came: shards of a few answers, each whole or absent, continued where a stop left them.

    <folder>/samples.json     who wrote them
    <folder>/<shard>.parquet  the answers for some documents or turns

They lie outside the step that reads them: other rules for what an answer must be ask for no answer a second time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from retriever.errors import DataError
from retriever.files import explain_full_disk, write_atomic, write_json
from retriever.types import Usage
from retriever.workers.tasks import Engine, here
from retriever.writing.writers import Writer

Answers = dict[tuple[str, int], str]
"""(id of the document or turn, sample number) -> what was written."""

Task = TypeVar("Task")


class Plan(Protocol[Task]):
    """Which samples there shall be, in shards."""

    @property
    def column(self) -> str:
        """The name of the ids, in the files."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """What samples.json says beside the writer."""
        ...

    def shards(self) -> Mapping[str, Task]:
        """File name of each shard, and what is asked for it."""
        ...

    def items(self, task: Task) -> list[tuple[str, int]]:
        """The (id, sample number) of a shard."""
        ...

    def asked(self, task: Task) -> Iterable[tuple[int, Mapping[str, Any]]]:
        """The same as a writer is asked: sample number, and what it is shown by its id."""
        ...


@dataclasses.dataclass(frozen=True)
class Written:
    """A shard's answers, and what a language model was asked for them."""

    answers: Answers
    usage: Usage


def write_shard(writer: Writer[Any], plan: Plan[Any], task: Any) -> Written:
    """All of a shard, because draws depend on what is asked together."""
    before, answers = writer.usage, Answers()
    for sample, things in plan.asked(task):
        answers |= {(name, sample): raw for name, raw in zip(things, writer.write(list(things.values()), sample), strict=True)}
    return Written(answers, writer.usage - before)


WritingEngine = Engine[Writer[Any], Plan[Any], Any, Written]
"""Asks a writer for shards of a plan and yields what it wrote in their order."""

write_here: WritingEngine = here(write_shard)
"""Asks the writer in this process, one shard after the other."""


def missing(plan: Plan[Task], task: Task, found: Answers) -> int:
    """How many samples of a shard were not found."""
    return len(set(plan.items(task)) - set(found))


def pending(plan: Plan[Any], folder: Path) -> int:
    """How many samples are still to be written."""
    return sum(missing(plan, task, read_answers(folder / name, plan.column)) for name, task in plan.shards().items())


def write_samples(
    plan: Plan[Any], writer: Writer[Any], folder: Path, advance: Callable[[int], None], tell: Callable[[Usage], None], engine: WritingEngine = write_here
) -> Answers:
    """All answers of the plan: those in the folder, and the missing ones, written shard by shard.

    Args:
        plan: what there shall be.
        writer: asked for what is missing.
        folder: of this writer.
        advance: called with the number of samples of each shard that is on the disk.
        tell: called after each with what a language model was asked for so far.
        engine: who asks the writer, here or on other machines; writing is done here, in the same order and bytes.
    """
    with explain_full_disk(folder):
        write_json(folder / "samples.json", {**plan.about, "generator": dataclasses.asdict(writer.identity)})
    shards = plan.shards()
    found = {name: read_answers(folder / name, plan.column) for name in shards}
    absent = {name: count for name, task in shards.items() if (count := missing(plan, task, found[name]))}
    used = Usage()
    for (name, count), written in zip(absent.items(), engine(writer, plan, [shards[name] for name in absent]), strict=True):
        _write(folder / name, plan.column, written.answers)
        found[name] = written.answers
        used += written.usage
        advance(count)
        tell(used)
    return {item: found[name][item] for name, task in shards.items() for item in plan.items(task)}


def read_rows(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows of the table that a step left.

    Raises:
        DataError: the file is damaged.
    """
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, schema=schema).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error}). Remove {path.parent} and run the step again") from error
    return rows


def read_answers(path: Path, column: str) -> Answers:
    """The answers of a shard; none where it is absent or damaged, and is written again then."""
    try:
        rows = pq.read_table(path, schema=_schema(column)).to_pylist()
    except (OSError, ValueError, pa.ArrowException):
        return {}
    return {(row[column], row["sample"]): row["raw"] for row in rows}


def read_all(folder: Path, column: str) -> Answers:
    """Everything that was written in a folder, by whatever shards."""
    found: Answers = {}
    for path in sorted(folder.glob("*.parquet")):
        found |= read_answers(path, column)
    return found


def _schema(column: str) -> pa.Schema:
    return pa.schema([(column, pa.string()), ("sample", pa.int32()), ("raw", pa.string())])


def _write(path: Path, column: str, answers: Answers) -> None:
    rows = [{column: name, "sample": sample, "raw": raw} for (name, sample), raw in answers.items()]
    write_atomic(path, lambda temporary: pq.write_table(pa.Table.from_pylist(rows, schema=_schema(column)), temporary))
