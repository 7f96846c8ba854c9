"""What a reinforced dataset holds of one image, as the files that DataCompDR has of it.

    UID.png           the image's own file (.jpg, ...), where images are stored
    UID.txt           its captions, one a line
    UID.syn.json      {"syn_text": [synthetic captions]}
    UID.paug.json     {"param_aug": [[[top, left, height, width], [[operation, magnitude], ...]], ...], "image_size": side}
    UID.npz           image_emb [augmentations, D], text_emb [captions, D], the synthetic ones last; UID.pth.gz in bfloat16
    UID.json          uid, doc_id, sha256 of the image's file, pixels: a fingerprint of each augmented image

D is the sum of the teachers' dimensions: their unit vectors stand one after the other (Vasu et al. 2024, arXiv:2311.17049). What
others published in this layout is read too: parameters as a JSON string, captions of several generators, their vectors apart.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retriever.errors import DataError
from retriever.images.augmentation import Augmentation
from retriever.images.reading import EXTENSIONS
from retriever.settings.reinforce import Precision

MAX_VECTOR_BYTES = 1 << 28
"""Of one image's vectors when they are unpacked: 30 augmentations of two teachers with 768 dimensions take 200 kB."""

WITHOUT_SIZE = 256
"""Side of an augmented image where the files do not say it, in pixels: that of the published sets."""


@dataclasses.dataclass(frozen=True)
class Reinforced:
    """One image with A augmentations and C captions, and what the teachers make of them.

    Attributes:
        uid: 32 hexadecimal digits.
        captions: written by people.
        synthetic: written by a captioner.
        augmentations: A of them.
        images: [A, D], the teachers' unit vectors of the augmented images, one teacher after the other.
        texts: [C, D], of the captions and then the synthetic ones.
        about: whatever else is known: doc_id, sha256, pixels, made_from.
    """

    uid: str
    captions: tuple[str, ...]
    synthetic: tuple[str, ...]
    augmentations: tuple[Augmentation, ...]
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self) -> tuple[str, ...]:
        """A fingerprint of each augmented image as the teachers saw it; none in sets that do not keep them."""
        return tuple(self.about.get("pixels", ()))


def uid_of(doc_id: str) -> str:
    """The name that an image's files have: 32 hexadecimal digits of the SHA-256 of its id."""
    return hashlib.sha256(doc_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def as_line(caption: str) -> str:
    """A caption as it stands in a file with one a line: white space becomes a space."""
    return " ".join(caption.split())


def files_of(item: Reinforced, precision: Precision, image: tuple[str, bytes] | None = None) -> dict[str, bytes]:
    """Ending -> bytes of an image's files, in the order in which a shard has them; equal items give equal bytes.

    Args:
        item: what they hold.
        precision: of the stored vectors.
        image: how the name of the image's own file ends, and its bytes; none is kept when left out.
    """
    size = item.augmentations[0].size if item.augmentations else WITHOUT_SIZE
    own = {} if image is None else {image[0].lstrip("."): image[1]}
    text = {"txt": "".join(f"{caption}\n" for caption in item.captions).encode()}
    return {
        **own,
        **text,
        "syn.json": _json({"syn_text": list(item.synthetic)}),
        "paug.json": _json({"param_aug": [one.to_json() for one in item.augmentations], "image_size": size}),
        **_encode_vectors({"image_emb": item.images, "text_emb": item.texts}, precision),
        "json": _json({"uid": item.uid, **item.about}),
    }


def item_of(uid: str, files: Mapping[str, bytes], where: str) -> Reinforced:
    """An image's item from its files, ours or those of a published set.

    Args:
        uid: the name of the files.
        files: ending -> bytes; the image's own is not needed.
        where: begins messages.

    Raises:
        DataError: a file is missing, or is not what the layout says.
    """
    about = _read_json(files, "json", where) if "json" in files else {}
    images, texts, synthetic_texts = _decode_vectors(files, where)
    synthetic = tuple(_synthetic(_read_json(files, "syn.json", where), where)) if "syn.json" in files else ()
    if synthetic_texts is not None:
        texts = np.concatenate([texts, synthetic_texts])
    captions = _captions(files, len(texts) - len(synthetic), where)
    augmentations = _augmentations(_read_json(files, "paug.json", where), where)
    if len(augmentations) != len(images):
        raise DataError(f"{where}: {len(augmentations)} augmentations and {len(images)} vectors of them")
    return Reinforced(uid, captions, synthetic, augmentations, images, texts, about)


def image_ending(files: Iterator[str] | Sequence[str] | Mapping[str, Any]) -> str | None:
    """How the name of the image's own file ends among the endings of an image's files; None where it is not there."""
    return next((ending for ending in files if f".{ending}" in EXTENSIONS), None)


def _captions(files: Mapping[str, bytes], expected: int, where: str) -> tuple[str, ...]:
    """The captions in UID.txt, one a line; a single one may have several lines."""
    if "txt" not in files:
        raise DataError(f"{where}: its file of captions, .txt, is missing. Sets that were published without texts need those of their source beside them")
    text = files["txt"].decode("utf-8", "replace")
    captions = [line for line in text.splitlines() if line.strip()]
    if len(captions) != expected and expected == 1:
        captions = [as_line(text)]
    if len(captions) != expected or not all(captions):
        raise DataError(f"{where}: {len(captions)} captions and {expected} vectors of them")
    return tuple(captions)


def _synthetic(value: Mapping[str, Any], where: str) -> Iterator[str]:
    """The captions of all generators, in the order of the file."""
    for name, texts in value.items():
        if name.startswith("syn_text"):
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise DataError(f'{where}: "{name}" must be a list of texts')
            yield from texts


def _augmentations(value: Mapping[str, Any], where: str) -> tuple[Augmentation, ...]:
    """The parameters in UID.paug.json, which may be a JSON string in it."""
    listed, size = value.get("param_aug"), value.get("image_size", WITHOUT_SIZE)
    if isinstance(listed, str):
        listed = _parsed(listed.encode(), f'{where}: "param_aug"')
    if not isinstance(listed, list) or type(size) is not int or size < 1:
        raise DataError(f'{where}: "param_aug" must be a list of augmentations, and "image_size", where it stands, a number of pixels')
    return tuple(Augmentation.from_json(one, size, where) for one in listed)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _read_json(files: Mapping[str, bytes], ending: str, where: str) -> dict[str, Any]:
    if ending not in files:
        raise DataError(f"{where}: its file .{ending} is missing")
    value = _parsed(files[ending], f"{where}.{ending}")
    if not isinstance(value, dict):
        raise DataError(f"{where}.{ending}: must hold a JSON object")
    return value


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error})") from error


def _encode_vectors(vectors: Mapping[str, NDArray[np.float32]], precision: Precision) -> dict[str, bytes]:
    """UID.npz, or UID.pth.gz: numpy knows no bfloat16."""
    stream = io.BytesIO()
    if precision == "bfloat16":
        torch.save({name: torch.tensor(array).bfloat16() for name, array in vectors.items()}, stream)
        return {"pth.gz": gzip.compress(stream.getvalue(), mtime=0)}
    np.savez(stream, allow_pickle=False, **{name: array.astype(precision) for name, array in vectors.items()})
    return {"npz": stream.getvalue()}


def _decode_vectors(files: Mapping[str, bytes], where: str) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
    """The vectors of images and of texts [n, D], and those of synthetic captions where they are kept apart."""
    found = _npz(files["npz"], where) if "npz" in files else _pth(files["pth.gz"], where) if "pth.gz" in files else None
    if found is None:
        raise DataError(f"{where}: its vectors are missing; they are in .npz or .pth.gz")
    arrays = {}
    for name in ("image_emb", "text_emb", "syn_text_emb"):
        if name in found or name != "syn_text_emb":
            arrays[name] = _vectors(found.get(name), f"{where}: {name}")
    if len({array.shape[1] for array in arrays.values()}) > 1:
        raise DataError(f"{where}: its vectors have {' and '.join(str(array.shape[1]) for array in arrays.values())} dimensions; they must have as many")
    return arrays["image_emb"], arrays["text_emb"], arrays.get("syn_text_emb")


def _vectors(value: Any, where: str) -> NDArray[np.float32]:
    try:
        if isinstance(value, list | tuple):
            value = torch.stack([torch.as_tensor(row) for row in value])
        array = value.float().numpy() if isinstance(value, torch.Tensor) else np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} holds no vectors") from error
    if array.ndim != 2 or not np.isfinite(array).all():
        raise DataError(f"{where} must be a matrix of finite numbers")
    return array


def _npz(data: bytes, where: str) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_VECTOR_BYTES:
            raise DataError(f"{where}.npz: unpacks to {unpacked:,} bytes, more than the {MAX_VECTOR_BYTES:,} allowed")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{where}.npz: cannot be read ({error})") from error


def _pth(data: bytes, where: str) -> dict[str, Any]:
    """Tensors by name; the format could hold more than tensors, and nothing else is taken from it."""
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            unpacked = stream.read(MAX_VECTOR_BYTES + 1)
        if len(unpacked) > MAX_VECTOR_BYTES:
            raise DataError(f"{where}.pth.gz: unpacks to more than the {MAX_VECTOR_BYTES:,} bytes allowed")
        found = torch.load(io.BytesIO(unpacked), weights_only=True, map_location="cpu")
    except DataError:
        raise
    except Exception as error:  # torch raises many kinds over damaged bytes, and one of its own over a pickle with anything but tensors
        raise DataError(f"{where}.pth.gz: cannot be read ({(str(error).splitlines() or [''])[0][:100]})") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}.pth.gz: must hold tensors by name")
    return found
