"""What processes that train along are told, in JSON and arrays: nothing that comes over the connection is unpickled."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.encodings import DocumentEncodings, Vectors
from retriever.ragged_encodings import RaggedVectors
from retriever.reinforced.shards import ReinforcedDataset
from retriever.settings.training import TrainingSettings
from retriever.tables.queries import query_of_row, row_of_query
from retriever.training.reinforced_batches import ReinforcedSamples
from retriever.training.samples import TrainingSamples

HEADER = "header"


@dataclasses.dataclass(frozen=True)
class Order:
    """What the other processes must know to train along.

    Attributes:
        samples: in training order, without a teacher's vectors.
        settings: of this training.
        folder: of the step; every process reads its checkpoints.
        seed: of dropout.
        active: wanted active dimensions of a sparse student.
    """

    samples: TrainingSamples | ReinforcedSamples
    settings: TrainingSettings
    folder: Path
    seed: int
    active: tuple[float | None, float | None] | None


def to_bytes(order: Order) -> bytes:
    """An order as a file of numpy's format .npz, whose entry `header` is JSON."""
    header, arrays = _packed_reinforced(order.samples) if isinstance(order.samples, ReinforcedSamples) else _packed_lists(order.samples)
    header |= {"settings": order.settings.model_dump(mode="json"), "folder": str(order.folder), "seed": order.seed, "active": order.active}
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays, **{HEADER: np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)})
    return stream.getvalue()


def from_bytes(data: bytes) -> Order:
    """The order that `to_bytes` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = dict(file)
    header = json.loads(arrays.pop(HEADER).tobytes())
    samples = _reinforced(header, arrays) if "dataset" in header else _lists(header, arrays)
    active = header["active"]
    settings = TrainingSettings.model_validate_json(json.dumps(header["settings"]))
    return Order(samples, settings, Path(header["folder"]), header["seed"], active and (active[0], active[1]))


def _packed_lists(samples: TrainingSamples) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What JSON says of lists of documents, and their arrays. A query of several samples is written once."""
    if samples.vectors is not None or samples.scored is not None:
        raise ValueError("a teacher's vectors and a queue's scores are not sent")
    numbers = {query: number for number, query in enumerate(dict.fromkeys(samples.queries))}
    header = {"queries": [row_of_query(query) for query in numbers], "unit": samples.unit, "encodings": _encodings_header(samples.encodings)}
    return header, {
        "query": np.array([numbers[query] for query in samples.queries]),
        "documents": samples.documents,
        "teacher": samples.teacher,
        "mask": samples.mask,
        "not_negative": np.concatenate([np.zeros(0, dtype=np.int64), *samples.not_negative]),
        "not_negative_ends": np.cumsum([len(rows) for rows in samples.not_negative]),
    }


def _lists(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> TrainingSamples:
    queries = [query_of_row(row) for row in header["queries"]]
    return TrainingSamples(
        queries=[queries[number] for number in arrays["query"]],
        documents=arrays["documents"],
        teacher=arrays["teacher"],
        mask=arrays["mask"],
        not_negative=np.split(arrays["not_negative"], arrays["not_negative_ends"][:-1]),
        unit=header["unit"],
        encodings=_encodings_of(header["encodings"]),
    )


def _packed_reinforced(samples: ReinforcedSamples) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The same of augmented images; what the teachers made of them is read by every process."""
    header = {"dataset": str(samples.dataset.folder), "doc_ids": list(samples.doc_ids)}
    return header, {"augmentations": samples.augmentations, "captions": samples.captions, "synthetic": samples.synthetic}


def _reinforced(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ReinforcedSamples:
    return ReinforcedSamples(ReinforcedDataset(Path(header["dataset"])), header["doc_ids"], arrays["augmentations"], arrays["captions"], arrays["synthetic"])


def _encodings_header(encodings: DocumentEncodings | None) -> dict[str, Any] | None:
    """Where encodings lie and what is known of them; their files are read by every process."""
    if encodings is None:
        return None
    if not isinstance(encodings, Vectors | RaggedVectors):
        raise TypeError(f"encodings of the kind {type(encodings).__name__} cannot be sent")
    return {"kind": "vectors" if isinstance(encodings, Vectors) else "ragged", **dataclasses.asdict(encodings), "folder": str(encodings.folder)}


def _encodings_of(header: dict[str, Any] | None) -> DocumentEncodings | None:
    if header is None:
        return None
    where, encoder = Path(header["folder"]), header["encoder"]
    if header["kind"] == "vectors":
        return Vectors(where, header["n_documents"], header["dimensions"], encoder)
    return RaggedVectors(where, header["n_documents"], tuple(header["names"]), encoder, header["dimensions"])
