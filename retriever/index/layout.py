"""What an index folder holds, and how it is changed so that a stop at any instant leaves the version before or the one after.

- index.json: the current version, its segments and which of their documents are deleted;
- versions/000003.json: every version that is kept, the current one too; 000003.json.damaged is one that cannot be read and was set aside;
- segments/000002/: documents, the engine's files and segment.json, never changed once it is there;
- deletions/000002-000003.npy: bool [N], the documents of segment 2 that are deleted from version 3 on;
- students/IDENTITY/: the student that encoded a version's documents and encodes its queries.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retriever.encodings import write_array
from retriever.errors import SearchIndexError
from retriever.files import write_json
from retriever.settings.index import INDEX_KINDS, IndexSettings, PrivateIndexSettings

MANIFEST, SEGMENT, DAMAGED = "index.json", "segment.json", ".damaged"
LAYOUT = 2
VERSIONS, SEGMENTS, DELETIONS, STUDENTS = "versions", "segments", "deletions", "students"
PARTS = (VERSIONS, SEGMENTS, DELETIONS, STUDENTS)
AGAIN = "Build the index again with: retriever index FILE.toml"

Read = TypeVar("Read", bound=BaseModel)


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UsedSegment(_Facts):
    """A segment of a version.

    Attributes:
        name: its folder's.
        documents: N of it, deleted ones included.
        deleted: how many of them are deleted.
        deletions: the file that says which; None where none is.
    """

    name: str = Field(pattern=r"^\d{6,}$")
    documents: int = Field(ge=0)
    deleted: int = Field(0, ge=0)
    deletions: str | None = Field(None, pattern=r"^\d{6,}-\d{6,}\.npy$")


class Version(_Facts):
    """A state of the index.

    Attributes:
        number: counted from 1.
        made: when, in UTC.
        change: what made it from the version before.
        student_kind: the file under students/ that loads the student.
        encoder: the student's identity, and its folder's name.
        document_encoder: what decides its documents' encodings; an older manifest, which does not say, takes the whole student for it.
        collection: the fingerprint of the documents that it was built from.
        settings: the table [index] that it was built by.
        by_hand: documents added to that and deleted from it since.
        segments: in the order of their rows.
        segments_made: the highest number that a segment has had so far, pruned ones included; 0 in an older manifest, which does not say.
    """

    layout: int = LAYOUT
    number: int = Field(ge=1)
    made: str
    change: str
    student_kind: str
    encoder: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    document_encoder: str
    collection: str
    settings: dict[str, Any]
    by_hand: tuple[int, int] = (0, 0)
    segments: tuple[UsedSegment, ...]
    segments_made: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _names_the_encoder_of_documents(cls, values: Any) -> Any:
        return {"document_encoder": values["encoder"], **values} if isinstance(values, Mapping) and "encoder" in values else values

    @property
    def index_settings(self) -> IndexSettings:
        """The same, checked."""
        return INDEX_KINDS.get(self.settings["kind"], PrivateIndexSettings).model_validate(self.settings)

    @property
    def documents(self) -> int:
        """How many can be found."""
        return sum(segment.documents - segment.deleted for segment in self.segments)


class SegmentFacts(_Facts):
    """What a segment is.

    Attributes:
        kind: the file under indexing/ that opens it.
        settings: of that kind.
        told: what building it had to say: what was chosen and measured.
        documents: N.
        dimensions: D of its vectors, the vocabulary's size for sparse ones.
        encoder: what decides the vectors: the version's `document_encoder`.
        bytes: of the engine's files.
        sha256: of every file but this one.
    """

    kind: str
    settings: dict[str, Any]
    told: dict[str, Any]
    documents: int
    dimensions: int
    encoder: str
    bytes: int
    sha256: dict[str, str]


def index_folder(path: Path) -> Path:
    """The index in a folder, or in the folder of the experiment that built it."""
    return path / "index" if (path / "index" / MANIFEST).is_file() else path


def read_version(folder: Path, number: int | None = None) -> Version:
    """The current version of an index, or an earlier one that is kept.

    Raises:
        SearchIndexError: there is none, it is damaged, or another version of this program wrote it.
    """
    path = folder / MANIFEST if number is None else version_path(folder, number)
    if not path.is_file():
        if number is None:
            raise SearchIndexError(f"{folder}: no index here ({MANIFEST} is missing). Build one with: retriever index FILE.toml")
        raise SearchIndexError(f"{folder}: version {number} is not kept; there are {', '.join(map(str, kept_versions(folder))) or 'none'}")
    values = _values(path)
    if values.get("layout") != LAYOUT:
        raise SearchIndexError(f"{folder}: an index of layout {values.get('layout')}; this version of retriever reads layout {LAYOUT}. {AGAIN}")
    return _checked(Version, values, path)


def readable_version(folder: Path, number: int | None = None) -> Version | None:
    """The same; None where there is none that can be read."""
    try:
        return read_version(folder, number)
    except SearchIndexError:
        return None


def read_versions(folder: Path) -> dict[int, Version | None]:
    """All versions by their numbers, the first one first; None where a file is damaged. The current one is what index.json says, whatever its own file does.

    Raises:
        SearchIndexError: index.json cannot be read.
    """
    current = read_version(folder)
    found = {number: readable_version(folder, number) for number in version_files(folder).values()}
    return dict(sorted({**found, current.number: current}.items()))


def read_segment(folder: Path, name: str) -> SegmentFacts:
    """What a segment is.

    Raises:
        SearchIndexError: it is missing or damaged.
    """
    path = segment_folder(folder, name) / SEGMENT
    return _checked(SegmentFacts, _values(path), path)


def read_deleted(folder: Path, used: UsedSegment) -> NDArray[np.bool_] | None:
    """[N], the deleted documents of a segment; None where there are none.

    Raises:
        SearchIndexError: the file is missing, damaged or of another segment.
    """
    if used.deletions is None:
        return None
    path = folder / DELETIONS / used.deletions
    try:
        deleted: NDArray[np.bool_] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SearchIndexError(f"{path}: {'damaged' if path.exists() else 'missing'}. {AGAIN}") from error
    if deleted.dtype != np.bool_ or deleted.shape != (used.documents,) or int(deleted.sum()) != used.deleted:
        raise SearchIndexError(f"{path}: damaged (not {used.deleted} deletions among {used.documents} documents). {AGAIN}")
    return deleted


def write_deleted(folder: Path, used: UsedSegment, deleted: NDArray[np.bool_], version: int) -> UsedSegment:
    """The segment with these documents deleted from a version on."""
    name = f"{used.name}-{version:06d}.npy"
    write_array(folder / DELETIONS / name, deleted)
    return used.model_copy(update={"deleted": int(deleted.sum()), "deletions": name})


def write_version(folder: Path, version: Version) -> Version:
    """Makes a version the current one, and returns it as it remembers the segments so far. Everything that it names is there already."""
    version = version.model_copy(update={"segments_made": max(version.segments_made, segments_made(folder))})
    values = version.model_dump(mode="json")
    write_json(version_path(folder, version.number), values)
    write_json(folder / MANIFEST, values)
    return version


def kept_versions(folder: Path) -> list[int]:
    """The numbers of all versions that are kept."""
    return sorted(number for path, number in version_files(folder).items() if path.suffix != DAMAGED)


def version_files(folder: Path) -> dict[Path, int]:
    """The files of all versions with their numbers, those that are damaged and set aside included."""
    return _numbered(folder / VERSIONS, rf"(\d+)\.json(?:{re.escape(DAMAGED)})?")


def version_path(folder: Path, number: int) -> Path:
    """Where a version is written."""
    return folder / VERSIONS / f"{number:06d}.json"


def segment_folder(folder: Path, name: str) -> Path:
    """Where a segment lies."""
    return folder / SEGMENTS / name


def next_version(folder: Path) -> int:
    """A number that no version has had, not even one whose file is damaged or missing: files of deletions, which a reader may have open, are named by it."""
    current = readable_version(folder)
    deletions = _numbered(folder / DELETIONS, r"\d+-(\d+)\.npy")
    return 1 + max([current.number if current else 0, *version_files(folder).values(), *deletions.values()])


def next_segment(folder: Path) -> str:
    """A name that no segment of a version has had, pruned ones included: a reader may have such a one open."""
    return f"{segments_made(folder) + 1:06d}"


def segments_made(folder: Path) -> int:
    """The highest number that a segment has had: of those that are there, that versions name, and that the current version remembers."""
    current = readable_version(folder)
    versions = [current]
    if current is None or not current.segments_made:  # else it knows already what those before it named
        versions += [readable_version(folder, number) for number in kept_versions(folder)]
    made = [*_numbered(folder / SEGMENTS, r"(\d+)").values()]
    for version in versions:
        if version is not None:
            made += [version.segments_made, *(int(used.name) for used in version.segments)]
    return max(made, default=0)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _numbered(folder: Path, pattern: str) -> dict[Path, int]:
    """What in a folder is named by a pattern, with the number that is the pattern's group."""
    found = ((path, re.fullmatch(pattern, path.name)) for path in folder.glob("*"))
    return {path: int(match[1]) for path, match in found if match}


def _values(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SearchIndexError(f"{path}: missing. {AGAIN}") from error
    except (OSError, ValueError) as error:
        raise SearchIndexError(f"{path}: damaged ({error}). {AGAIN}") from error
    if not isinstance(values, dict):
        raise SearchIndexError(f"{path}: damaged (no JSON object). {AGAIN}")
    return values


def _checked(kind: type[Read], values: Mapping[str, Any], path: Path) -> Read:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise SearchIndexError(f"{path}: damaged ({'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}). {AGAIN}") from error
