"""What the first process tells the others arrives as it was sent, in JSON and arrays alone."""

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retriever.encodings import Vectors
from retriever.ragged_encodings import RaggedVectors
from retriever.settings.training import TrainingSettings
from retriever.training.samples import TeacherVectors, TrainingSamples
from retriever.types import Query, Turn
from retriever.workers.orders import Order, from_bytes, to_bytes

ASKED = Query(
    "q1",
    "und dann? \N{SNOWMAN}",
    (Turn("user", "hello"), Turn("agent", "hi")),
    Path("pictures/one.png"),
    "c1",
    {"human": "what then?"},
    {"domain": "cloud"},
    {"kind": "image"},
)
SETTINGS = TrainingSettings(documents_per_query=3, losses={"kl_divergence": 1.0, "contrastive": 0.1}, teacher_temperature=0.5)


def order(**changes: Any) -> Order:
    samples = TrainingSamples(
        queries=[ASKED, Query("q2", "plain"), ASKED],
        documents=np.array([[0, 1, 2], [3, 4, 0], [1, 0, 5]]),
        teacher=np.array([[0.1, np.nan, 1 / 3], [1e-30, 2.0, -7.5], [0.0, 1.0, 2.0]], dtype=np.float32),
        mask=np.array([[True, False, True], [True, True, True], [True, True, True]]),
        not_negative=[np.array([0, 7]), np.array([], dtype=np.int64), np.array([1])],
        unit="logit",
    )
    return Order(dataclasses.replace(samples, **changes), SETTINGS, Path("work/train"), 11, (32.0, None))


def test_an_order_arrives_as_it_was_sent() -> None:
    sent = order()
    found = from_bytes(to_bytes(sent))
    assert (found.settings, found.folder, found.seed, found.active) == (SETTINGS, Path("work/train"), 11, (32.0, None))
    assert isinstance(found.samples, TrainingSamples)
    assert list(found.samples.queries) == [ASKED, Query("q2", "plain"), ASKED]
    assert found.samples.unit == "logit"
    for name in ("documents", "teacher", "mask"):
        array, expected = getattr(found.samples, name), getattr(sent.samples, name)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    assert [rows.tolist() for rows in found.samples.not_negative] == [[0, 7], [], [1]]
    assert found.samples.not_negative[1].dtype == np.int64
    assert found.samples.encodings is None
    assert from_bytes(to_bytes(dataclasses.replace(sent, active=None))).active is None


@pytest.mark.parametrize(
    "encodings",
    [Vectors(Path("work/encodings"), 9, 384, "sixteen digits"), RaggedVectors(Path("work/encodings"), 9, ("vectors", "tokens"), "sixteen digits", 8)],
)
def test_stored_encodings_are_named_and_not_sent(encodings: Vectors | RaggedVectors) -> None:
    assert from_bytes(to_bytes(order(encodings=encodings))).samples.encodings == encodings


def test_what_is_not_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="not sent"):
        to_bytes(order(vectors=TeacherVectors({}, Vectors(Path("a"), 1, 1, "b"))))
    with pytest.raises(ValueError, match="not sent"):
        to_bytes(order(scored=[]))


def test_a_query_of_two_samples_is_written_once_and_no_entry_is_a_pickle() -> None:
    with zipfile.ZipFile(io.BytesIO(to_bytes(order()))) as file:
        header = json.loads(np.load(io.BytesIO(file.read("header.npy")), allow_pickle=False).tobytes())
        kinds = {name: np.load(io.BytesIO(file.read(name)), allow_pickle=False).dtype.kind for name in file.namelist()}
    assert [row["query_id"] for row in header["queries"]] == ["q1", "q2"]
    assert set(kinds.values()) <= set("uifb")
