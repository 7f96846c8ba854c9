"""Vectors on disk: made once, continued after a stop, never another encoder's."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retriever.collection import Collection, write_collection
from retriever.encodings import Vectors, encode_collection
from retriever.errors import DataError
from retriever.types import Document, Query

N = 11  # documents: blocks of 4, 4 and 3


class CountingEncoder:
    """Document number n becomes [n, -n]; remembers which documents it was asked for."""

    def __init__(self, identity: str = "counting", dimensions: int = 2) -> None:
        self.identity = identity
        self.dimensions = dimensions
        self.asked: list[int] = []

    def encode_queries(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        return np.zeros((len(queries), self.dimensions), dtype=np.float32)

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        numbers = [int(document.doc_id[1:]) for document in documents]
        self.asked += numbers
        return np.array([[number, -number] for number in numbers], dtype=np.float32).reshape(len(numbers), 2)


class DyingEncoder(CountingEncoder):
    """Is stopped in its second block."""

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        if self.asked:
            raise KeyboardInterrupt
        return super().encode_documents(documents)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retriever.encodings.BLOCK", 4)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return write_collection(tmp_path / "collection", [Document(f"d{number}", f"text {number}") for number in range(N)])


def matrix_of(vectors: Vectors) -> list[list[float]]:
    matrix: list[list[float]] = np.concatenate(list(vectors.blocks())).tolist()
    return matrix


EXPECTED = [[number, -number] for number in range(N)]


def test_every_document_is_encoded_once_in_the_collections_order(collection: Collection, tmp_path: Path) -> None:
    encoder, told = CountingEncoder(), []
    vectors = encode_collection(encoder, collection, tmp_path / "vectors", told.append)
    assert encoder.asked == list(range(N))
    assert matrix_of(vectors) == EXPECTED
    assert (len(vectors), vectors.dimensions, vectors.encoder) == (N, 2, "counting")
    assert told == [4, 4, 3]


def test_vectors_that_are_there_are_not_made_again(collection: Collection, tmp_path: Path) -> None:
    encode_collection(CountingEncoder(), collection, tmp_path / "vectors")
    encoder, told = CountingEncoder(), []
    assert matrix_of(encode_collection(encoder, collection, tmp_path / "vectors", told.append)) == EXPECTED
    assert encoder.asked == []
    assert told == [4, 4, 3]  # a bar still reaches its end


def test_a_stopped_encoding_goes_on_at_its_block(collection: Collection, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_collection(DyingEncoder(), collection, tmp_path / "vectors")
    encoder = CountingEncoder()
    assert matrix_of(encode_collection(encoder, collection, tmp_path / "vectors")) == EXPECTED
    assert encoder.asked == list(range(4, N))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_bytes(path: Path) -> None:
    path.write_bytes(b"not numpy's")


def other_shape(path: Path) -> None:
    np.save(path, np.zeros((4, 3), dtype=np.float32))


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty, other_bytes, other_shape])
@pytest.mark.parametrize(("block", "again"), [(0, range(4)), (1, range(4, 8)), (2, range(8, N))])
def test_a_damaged_block_is_made_again_and_no_other(
    collection: Collection, tmp_path: Path, damage: Callable[[Path], None], block: int, again: Sequence[int]
) -> None:
    encode_collection(CountingEncoder(), collection, tmp_path / "vectors")
    damage(tmp_path / "vectors" / f"{block:06d}.npy")
    encoder = CountingEncoder()
    assert matrix_of(encode_collection(encoder, collection, tmp_path / "vectors")) == EXPECTED
    assert encoder.asked == list(again)


def test_the_first_and_the_last_block_are_made_again_around_a_whole_one(collection: Collection, tmp_path: Path) -> None:
    encode_collection(CountingEncoder(), collection, tmp_path / "vectors")
    for block in (0, 2):
        (tmp_path / "vectors" / f"{block:06d}.npy").unlink()
    assert matrix_of(encode_collection(CountingEncoder(), collection, tmp_path / "vectors")) == EXPECTED


def test_another_encoders_vectors_are_refused(collection: Collection, tmp_path: Path) -> None:
    encode_collection(CountingEncoder(), collection, tmp_path / "vectors")
    with pytest.raises(DataError, match=r"vectors: holds the vectors of another encoder or collection\. Remove it"):
        encode_collection(CountingEncoder("another"), collection, tmp_path / "vectors")


def test_another_collections_vectors_are_refused(collection: Collection, tmp_path: Path) -> None:
    encode_collection(CountingEncoder(), collection, tmp_path / "vectors")
    other = write_collection(tmp_path / "other", [Document(f"d{number}", "changed") for number in range(N)])
    with pytest.raises(DataError, match="another encoder or collection"):
        encode_collection(CountingEncoder(), other, tmp_path / "vectors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused_with_its_document(collection: Collection, tmp_path: Path, value: float) -> None:
    class BrokenEncoder(CountingEncoder):
        def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
            vectors = super().encode_documents(documents)
            vectors[[document.doc_id == "d6" for document in documents], 1] = value
            return vectors

    with pytest.raises(DataError, match="document d6: the encoder gave a vector that is not finite"):
        encode_collection(BrokenEncoder(), collection, tmp_path / "vectors")
    assert not (tmp_path / "vectors" / "000001.npy").exists()


@pytest.mark.parametrize("rows", [[], [0], [10, 0, 5], [3, 3, 4, 7, 3], list(range(N))[::-1]])
def test_rows_equal_slices_of_the_whole(collection: Collection, tmp_path: Path, rows: list[int]) -> None:
    vectors = encode_collection(CountingEncoder(), collection, tmp_path / "vectors")
    assert vectors.rows(np.array(rows, dtype=np.int64)).tolist() == [EXPECTED[row] for row in rows]


def test_vectors_are_stored_as_float32_without_pickles(collection: Collection, tmp_path: Path) -> None:
    class DoubleEncoder(CountingEncoder):
        def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
            return super().encode_documents(documents).astype(np.float64)  # type: ignore[return-value]

    encode_collection(DoubleEncoder(), collection, tmp_path / "vectors")
    assert np.load(tmp_path / "vectors" / "000000.npy", allow_pickle=False).dtype == np.float32
