"""A reinforced dataset on disk: tar files of images' files, each whole and proven by its name, and who made them.

    <folder>/reinforced.json                teachers with their dimensions and logit scales, augmentation settings, counts
    <folder>/<number>-<checksum>.tar        the files of some images, grouped by their name (`retriever.reinforced.records`)

Tar files of other names are read too, without the proof. A set that others published needs a reinforced.json of one's own:
{"teachers": [{"name": "...", "dimensions": 768, "logit_scale": 100.0}, ...]}, in the order of its vectors.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.files import fingerprint, sha256_file, write_atomic, write_json
from retriever.images.files import tar_members
from retriever.reinforced.records import Reinforced, image_ending, item_of, uid_of

MANIFEST = "reinforced.json"
SHARD_NAME = re.compile(r"(\d{6,})-([0-9a-f]{16})\.tar")
"""Number, and the first 16 hexadecimal digits of the SHA-256 of the file's bytes."""

Places = Mapping[str, tuple[int, int]]
"""Ending -> (offset, bytes) of an image's files in their tar file."""


@dataclasses.dataclass(frozen=True)
class ReinforcedTeacher:
    """A teacher of a reinforced dataset.

    Attributes:
        name: what the experiment file called it.
        dimensions: D of its unit vectors.
        logit_scale: what a cosine of its vectors is multiplied with to become a logit.
        identity: of its weights; "" where it is not known.
    """

    name: str
    dimensions: int
    logit_scale: float
    identity: str = ""


def encode_shard(images: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """The bytes of a tar file: UID -> ending -> bytes. Equal files give equal bytes, whenever and wherever they are written."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for uid, files in images.items():
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{uid}.{ending}")  # its time, owner and group are 0
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def write_shard(folder: Path, number: int, data: bytes) -> Path:
    """Writes the bytes of a shard under the name that proves them; they are on the disk when this returns."""
    path = folder / f"{number:06d}-{hashlib.sha256(data).hexdigest()[:16]}.tar"
    write_atomic(path, lambda temporary: temporary.write_bytes(data))
    return path


def list_shards(folder: Path) -> list[Path]:
    """The tar files of a dataset in the order of their names."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def number_of(shard: Path) -> int:
    """The number in a shard's name; -1 for one of another name."""
    found = SHARD_NAME.fullmatch(shard.name)
    return int(found[1]) if found else -1


def damage(shard: Path) -> str:
    """What is wrong with the bytes of a shard, by its name; "" for a good one, and for one whose name proves nothing."""
    found = SHARD_NAME.fullmatch(shard.name)
    if found is None:
        return ""
    return "" if sha256_file(shard).startswith(found[2]) else "the bytes are not the ones that were written (their SHA-256 does not fit the name)"


def places_in(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """UID -> ending -> where the file lies in the shard. An image's name ends at its first dot.

    Raises:
        DataError: it is no sound tar file.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, place in tar_members(shard).items():
        folder, slash, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        found.setdefault(f"{folder}{slash}{stem}", {})[ending] = place
    return found


def read_files(shard: Path, places: Places, skip_image: bool = True) -> dict[str, bytes]:
    """Ending -> bytes of an image's files; its own is left out unless `skip_image` is false.

    Raises:
        DataError: the shard cannot be read.
    """
    own = image_ending(places) if skip_image else None
    try:
        with shard.open("rb") as stream:
            return {ending: os.pread(stream.fileno(), size, offset) for ending, (offset, size) in places.items() if ending != own}
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror})") from error


def write_manifest(folder: Path, teachers: Sequence[ReinforcedTeacher], facts: Mapping[str, Any]) -> None:
    """Writes who made the vectors, and what else is known of the dataset."""
    write_json(folder / MANIFEST, {"teachers": [dataclasses.asdict(teacher) for teacher in teachers], **facts})


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote, the teachers as `ReinforcedTeacher`.

    Raises:
        DataError: it is not there, or is no such file.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        teachers = tuple(ReinforcedTeacher(**teacher) for teacher in found["teachers"])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). A reinforced dataset has this file; make one with: retriever reinforce") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: must be a JSON object whose teachers have a name, dimensions and a logit_scale ({error})") from error
    good = teachers and all(type(one.dimensions) is int and one.dimensions > 0 and type(one.logit_scale) in (int, float) for one in teachers)
    if not good or any(one.logit_scale <= 0 for one in teachers):
        raise DataError(f"{path}: each teacher needs dimensions and a logit_scale above 0")
    return {**found, "teachers": teachers}


class ReinforcedDataset:
    """The images of a reinforced dataset, read one at a time; places in the tar files are all that is in memory.

    Attributes:
        folder: where it lies.
        teachers: in the order of their vectors.
        facts: whatever else reinforced.json says.
        uids: of the images, in the order of the shards.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a folder.

        Raises:
            DataError: it holds no reinforced dataset, one that is not finished, or a shard that is no tar file.
        """
        self.folder = folder
        self.facts = read_manifest(folder)
        self.teachers: tuple[ReinforcedTeacher, ...] = self.facts.pop("teachers")
        if not self.facts.get("complete", True):
            raise DataError(f"{folder}: the dataset is not finished. Run the same command, retriever reinforce, again")
        self._places = {uid: (shard, places) for shard in list_shards(folder) for uid, places in places_in(shard).items()}
        self.uids = tuple(self._places)
        wanted = self.facts.get("images", len(self.uids))
        if not self.uids or len(self.uids) != wanted:
            raise DataError(f"{folder}: holds {len(self.uids):,} images, and there should be {wanted:,}. Make the missing ones with: retriever reinforce")

    def __len__(self) -> int:
        return len(self.uids)

    def __contains__(self, doc_id: object) -> bool:
        return isinstance(doc_id, str) and uid_of(doc_id) in self._places

    @property
    def dimensions(self) -> tuple[int, ...]:
        """D of each teacher."""
        return tuple(teacher.dimensions for teacher in self.teachers)

    @property
    def logit_scales(self) -> tuple[float, ...]:
        """Of each teacher."""
        return tuple(teacher.logit_scale for teacher in self.teachers)

    def of_document(self, doc_id: str) -> Reinforced:
        """What is known of the image with an id.

        Raises:
            DataError: the dataset does not have it, or its files are damaged.
        """
        if doc_id not in self:
            raise DataError(f"{self.folder}: has no image {doc_id}. It was made of another collection or split; make it again with: retriever reinforce")
        return self.item(uid_of(doc_id))

    def item(self, uid: str) -> Reinforced:
        """What is known of an image.

        Raises:
            DataError: its files are not what the layout says, or its vectors are not those of the teachers.
        """
        shard, places = self._places[uid]
        item = item_of(uid, read_files(shard, places), str(shard / uid))
        if item.images.shape[1] != sum(self.dimensions):
            told = " and ".join(str(size) for size in self.dimensions)
            raise DataError(f"{shard / uid}: its vectors have {item.images.shape[1]} dimensions; {MANIFEST} names teachers with {told}")
        return item

    def image_path(self, uid: str) -> Path | None:
        """Where an image's own file is, for `retriever.images.reading.read_image`; None where the dataset does not keep it."""
        shard, places = self._places[uid]
        ending = image_ending(places)
        return shard / f"{uid}.{ending}" if ending else None

    def path_of_document(self, doc_id: str) -> Path | None:
        """The same for the image with an id; None too where the dataset has no such image."""
        return self.image_path(uid_of(doc_id)) if doc_id in self else None

    def by_teacher(self, vectors: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """[n, D of that teacher] for each teacher, from vectors [n, sum of D]."""
        return np.split(vectors, np.cumsum(self.dimensions)[:-1], axis=1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the shards and the teachers' scales: what a training depends on."""
        told = [f"{shard.name} {shard.stat().st_size}" for shard in list_shards(self.folder)]
        return fingerprint([told, self.dimensions, self.logit_scales])
