"""The files of a store of teacher scores, which say everything without the collection: who the teachers are, how much, whether it is whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retriever.errors import StoreError
from retriever.files import fingerprint, write_json
from retriever.scores.shards import DamagedShardError, ShardProblem, check_shard, list_shards, not_redone, read_shard, scores_in, teacher_of
from retriever.types import TeacherIdentity, Usage

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of a teacher's stored scores: pairs, mean, standard deviation, truncated share, tokens in all.

    `mended` is the share of the pairs whose status is not "ok", `usage` what a language model was asked for.
    """

    pairs: int
    mean: float
    std: float
    truncated: float
    tokens: int
    mended: float = 0.0
    usage: Usage = dataclasses.field(default_factory=Usage)


@dataclasses.dataclass(frozen=True)
class StoreFiles:
    """What a store's folder says by itself; made by `StoreFiles.at`.

    Attributes:
        folder: where `store.json` lies.
    """

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> StoreFiles:
        """The store in a folder, or in the folder `score` of an experiment's work folder.

        Raises:
            StoreError: there is none, or one of another format.
        """
        found = next((place for place in (folder, folder / "score") if (place / "store.json").is_file()), None)
        if found is None:
            raise StoreError(f"{folder}: no store of teacher scores lies here. Name an experiment's work folder, or its folder score")
        files = cls(found)
        files.facts()
        return files

    def facts(self) -> dict[str, Any]:
        """What store.json says: format, and the collection's fingerprint and name.

        Raises:
            StoreError: it cannot be read, or has another format.
        """
        path = self.folder / "store.json"
        found = read_json(path)
        if found.get("format") != FORMAT:
            raise StoreError(
                f"{path}: the store has format {found.get('format')!r}, this version reads {FORMAT}. Use another folder, or the version that wrote it"
            )
        return found

    def teachers(self) -> list[TeacherIdentity]:
        """The teachers whose scores are here, by fingerprint."""
        return [self.identity(teacher_of(path.parent)) for path in sorted(self.folder.glob("scores/teacher=*/teacher.json"))]

    def statistics(self, teacher: str) -> Statistics:
        """Numbers about all scores of the teacher with this fingerprint; of merged stores, a pair may count twice.

        Raises:
            StoreError: the store does not know the fingerprint.
        """
        self.identity(teacher)
        entry = read_json(self.folder_of(teacher) / "teacher.json")
        known, usage = entry.get("statistics", {}), Usage(**entry.get("usage", {}))
        if known.pop("content", None) == self.content(teacher):
            return Statistics(**known, usage=usage)
        return dataclasses.replace(_statistics(self.folder_of(teacher)), usage=usage)

    def content(self, teacher: str) -> str:
        """A fingerprint of everything a teacher said here: of the checksums of its shards."""
        return fingerprint([path.name for path in list_shards(self.folder_of(teacher))])

    def verify(self) -> list[ShardProblem]:
        """What is wrong in the store, nothing changed; empty when all is well."""
        problems = []
        for folder in sorted(self.folder.glob("scores/teacher=*")):
            shards = list_shards(folder)
            problems += [problem for path in shards if (problem := check_shard(path)) is not None]
            problems += [ShardProblem(path, "was set aside as damaged, and its pairs are not scored again yet") for path in not_redone(folder)]
            try:
                if shards:
                    self.identity(teacher_of(folder))
            except StoreError as error:
                problems.append(ShardProblem(folder / "teacher.json", str(error)))
        return problems

    # Who the teachers are

    def folder_of(self, teacher: str) -> Path:
        """Where the shards of the teacher with this fingerprint lie."""
        return self.folder / "scores" / f"teacher={teacher}"

    def identity(self, teacher: str) -> TeacherIdentity:
        """The teacher with this fingerprint.

        Raises:
            StoreError: the store does not know it, or its file says another.
        """
        path = self.folder_of(teacher) / "teacher.json"
        if not path.exists():
            known = ", ".join(f"{identity.name} ({identity.fingerprint})" for identity in self.teachers()) or "none"
            raise StoreError(f'{self.folder}: no teacher has the fingerprint "{teacher}"; there are scores by: {known}. Run "retriever score" first')
        entry = read_json(path)
        fields = [field.name for field in dataclasses.fields(TeacherIdentity)]
        if any(field not in entry for field in fields) or (identity := TeacherIdentity(**{field: entry[field] for field in fields})).fingerprint != teacher:
            raise StoreError(f'{path}: this is not the teacher of the folder. Run "retriever score" with that teacher: it writes the file anew')
        return identity

    def introduce(self, identity: TeacherIdentity) -> None:
        """Writes who the teacher is, unless its folder says so already."""
        try:
            self.identity(identity.fingerprint)
        except StoreError:
            entry = {"name": identity.name, "kind": identity.kind, "model": identity.model, "unit": identity.unit, "settings": dict(identity.settings)}
            write_json(self.folder_of(identity.fingerprint) / "teacher.json", {**entry, "fingerprint": identity.fingerprint})

    def summarise(self, teacher: str) -> None:
        """Adds the statistics of the shards that are there to teacher.json."""
        path = self.folder_of(teacher) / "teacher.json"
        entry, content = read_json(path), self.content(teacher)
        if entry.get("statistics", {}).get("content") != content:
            numbers = dataclasses.asdict(_statistics(path.parent))
            del numbers["usage"]  # has an entry of its own, which scores cannot tell
            write_json(path, {**entry, "statistics": {"content": content, **numbers}})

    def add_usage(self, teacher: str, usage: Usage) -> None:
        """Adds to teacher.json what a shard took; what a shard took that was never written is not known to it."""
        if usage != Usage():
            path = self.folder_of(teacher) / "teacher.json"
            entry = read_json(path)
            write_json(path, {**entry, "usage": dataclasses.asdict(Usage(**entry.get("usage", {})) + usage)})


def _statistics(folder: Path) -> Statistics:
    """Statistics of the good shards, accumulated in float64 (Chan, Golub and LeVeque's update for mean and variance)."""
    pairs, mean, squares, truncated, tokens, mended = 0, 0.0, 0.0, 0, 0, 0
    for path in list_shards(folder):
        try:
            table = read_shard(path, ["score", "rank", "n_tokens", "truncated", "status"])
        except DamagedShardError:
            continue
        scores = scores_in(table).astype(np.float64)
        difference = float(scores.mean()) - mean
        total = pairs + len(scores)
        squares += float(((scores - scores.mean()) ** 2).sum()) + difference**2 * pairs * len(scores) / total
        mean += difference * len(scores) / total
        pairs = total
        truncated += int(table["truncated"].to_numpy().sum())
        tokens += int(table["n_tokens"].to_numpy().sum(dtype=np.int64))
        mended += pc.sum(pc.not_equal(table["status"].cast(pa.string()), "ok")).as_py()
    return Statistics(pairs, mean, float(np.sqrt(squares / max(pairs, 1))), truncated / max(pairs, 1), tokens, mended / max(pairs, 1))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the store.

    Raises:
        StoreError: it cannot be read, or is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}). Restore it, or remove it and run the same command again") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path}: not a JSON object. Restore it, or remove it and run the same command again")
    return value
