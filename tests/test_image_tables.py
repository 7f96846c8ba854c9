"""Data sets of images in Parquet and Arrow files, in the layouts that the library datasets writes."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retriever import readers
from retriever.collection import Collection, open_collection
from retriever.errors import DataError
from retriever.images.files import image_bytes, tar_members
from retriever.images.reading import read_image
from retriever.readers import Source
from retriever.settings.collection import CollectionSettings
from retriever.types import Document, Query

STORED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RED, BLUE, GREEN = (220, 20, 20), (30, 40, 220), (20, 180, 40)


def encoded(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(stream, kind)
    return stream.getvalue()


def table_of(images: Sequence[Mapping[str, Any] | None], column: str = "image", **others: Any) -> pa.Table:
    """A table with the metadata that the library writes."""
    table = pa.table({column: pa.array(images, STORED), **others})
    features = {name: {"_type": "Image"} if name == column else {"dtype": "string", "_type": "Value"} for name in table.column_names}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    """Parquet, or the stream of batches that save_to_disk writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
        return path
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def train_table() -> pa.Table:
    images = [{"bytes": encoded(RED), "path": "red one.png"}, {"bytes": encoded(BLUE, "JPEG"), "path": None}]
    return table_of(images, caption=[["a red square", "red"], ["blue"]], label=["warm", "cold"])


def held_out_table() -> pa.Table:
    return table_of([{"bytes": encoded(GREEN), "path": "/home/anyone/green.png"}], caption=[["grass"]], label=["cold"])


def opened(folder: Path, work: Path, **settings: Any) -> Collection:
    return open_collection(CollectionSettings(path=folder, **settings), work / "collection")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow"),
    ],
)
def test_images_and_captions_of_every_layout_come_back_as_they_were_written(tmp_path: Path, train: str, test: str) -> None:
    folder = tmp_path / "set"
    write(folder / train, train_table())
    write(folder / test, held_out_table())
    if train.endswith(".arrow"):
        (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
        write(folder / "train" / "cache-1234.arrow", held_out_table())
    assert readers.recognise(folder) == "hugging_face_images"
    collection = opened(folder, tmp_path / "work", fields=("label",))
    found = {document.doc_id: document for document in collection.documents()}
    red, blue, green = f"{train}/red_one.png", f"{train}/2", f"{test}/green.png"
    assert list(found) == [green, f"{green}#0", red, f"{red}#0", f"{red}#1", blue, f"{blue}#0"] or list(found) == [
        *(red, f"{red}#0", f"{red}#1", blue, f"{blue}#0"),
        *(green, f"{green}#0"),
    ]
    assert found[f"{red}#1"] == Document(f"{red}#1", "red", fields={"kind": "caption", "split": "train", "label": "warm"})
    for name, image, ending in ((red, encoded(RED), ".png"), (blue, encoded(BLUE, "JPEG"), ".jpg"), (green, encoded(GREEN), ".png")):
        path = found[name].image
        assert path is not None
        assert path.is_absolute()
        assert path.is_relative_to(tmp_path / "work" / "collection-images")
        assert path.suffix == ending
        assert image_bytes(path) == image
    assert read_image(found[green].image or Path()).getpixel((0, 0)) == GREEN
    queries = collection.queries("train.text_to_image")
    assert queries[f"{red}#0"] == Query(
        f"{red}#0", "a red square", fields={"direction": "text_to_image", "label": "warm"}, among={"kind": "image", "split": "train"}
    )
    assert collection.qrels("test") == {f"{green}#0": {green: 1}, green: {f"{green}#0": 1}}
    assert collection.counts["images"] == 3


def test_images_are_taken_out_once_and_again_when_their_file_changes(tmp_path: Path) -> None:
    folder, work = tmp_path / "set", tmp_path / "work"
    file = write(folder / "train-00000-of-00002.parquet", train_table())
    write(folder / "train-00001-of-00002.parquet", table_of([{"bytes": encoded(GREEN), "path": None}], caption=["grass"]))
    opened(folder, work)
    kept = work / "collection-images"
    first, second = sorted(kept.iterdir())
    assert list(tar_members(first)) == ["00000001.png", "00000002.jpg"]
    written = {path: path.stat().st_mtime_ns for path in (first, second)}
    opened(folder, work, fields=("label",))  # prepared anew, from the same files
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == written
    (kept / f".{first.name[:36]}.99999.tmp").write_bytes(b"of a process that was killed")
    write(file, table_of([{"bytes": encoded(BLUE), "path": None}], caption=["blue"]))
    collection = opened(folder, work)
    images = [document.image for document in collection.documents() if document.image]
    assert [read_image(image).getpixel((0, 0)) for image in images] == [BLUE, GREEN]
    assert second in kept.iterdir()
    assert len(list(kept.iterdir())) == 2
    (folder / "train-00000-of-00002.parquet").unlink()
    (folder / "train-00001-of-00002.parquet").unlink()
    folder.rmdir()
    assert opened(folder, work).fingerprint == collection.fingerprint  # a prepared collection outlives its source


def test_a_table_of_many_row_groups_and_batches_keeps_each_image_with_its_caption(tmp_path: Path) -> None:
    colours = [(number * 9 % 256, number * 31 % 256, number) for number in range(40)]
    images = [{"bytes": encoded(colour), "path": f"{number}.png"} for number, colour in enumerate(colours)]
    for name, options in (("a.parquet", {"row_group_size": 7}), ("b.arrow", {})):
        folder = tmp_path / name[0]
        write(folder / name, table_of(images, text=[f"colour {number}" for number in range(40)]), **options)
        collection = opened(folder, tmp_path / f"work-{name[0]}")
        for number, colour in enumerate(colours):
            document = collection.document(f"{name}/{number}.png")
            assert read_image(document.image or Path()).getpixel((0, 0)) == colour
            assert collection.document(f"{name}/{number}.png#0").text == f"colour {number}"


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_rows_that_repeat_an_image_are_one_image_with_all_their_captions(tmp_path: Path, name: str) -> None:
    paths = ["red.png"] * 9 + ["blue.png", None, None, "green.png", "green.png"]  # more than are in memory together; an image without a path is its own
    colours = [RED] * 9 + [BLUE, GREEN, GREEN, GREEN, GREEN]
    images = [{"bytes": encoded(colour), "path": path} for colour, path in zip(colours, paths, strict=True)]
    captions = [*(f"red {number}" for number in range(8)), "red 0", "blue", "green", "grass", "moss", "leaf"]
    splits = ["train"] * 13 + ["test"]
    write(tmp_path / "set" / name, table_of(images[:13], caption=captions[:13], split=splits[:13], row=[str(number) for number in range(13)]))
    collection = opened(tmp_path / "set", tmp_path / "work", fields=("row",))
    found = [(document.doc_id, document.text, document.fields["row"]) for document in collection.documents()]
    red = [(f"{name}/red.png", "", "0"), *((f"{name}/red.png#{number}", f"red {number}", "0") for number in range(8))]
    single = [(f"{name}/blue.png", "blue", "9"), (f"{name}/11", "green", "10"), (f"{name}/12", "grass", "11"), (f"{name}/green.png", "moss", "12")]
    assert found == [*red, *(one for doc_id, text, row in single for one in ((doc_id, "", row), (f"{doc_id}#0", text, row)))]
    assert [read_image(document.image).getpixel((0, 0)) for document in collection.documents() if document.image] == [RED, BLUE, GREEN, GREEN, GREEN]
    (tar,) = (tmp_path / "work" / "collection-images").iterdir()
    assert [int(member.partition(".")[0]) for member in tar_members(tar)] == [1, 10, 11, 12, 13]
    write(tmp_path / "other" / name, table_of(images, caption=captions, split=splits))
    with pytest.raises(DataError, match=r'row 14: is of the split "test", and the same image in row 13 of "train"\. Keep an image in one'):
        opened(tmp_path / "other", tmp_path / "work-2")


def test_images_of_one_name_in_two_folders_are_two_and_refused_as_ever(tmp_path: Path) -> None:
    images = [{"bytes": encoded(RED), "path": "a/x.png"}, {"bytes": encoded(BLUE), "path": "b/x.png"}]
    write(tmp_path / "set" / "train.parquet", table_of(images, caption=["red", "blue"]))
    with pytest.raises(DataError, match=r"row 2: the image train\.parquet/x\.png stands already at .*row 1"):
        opened(tmp_path / "set", tmp_path / "work")


@pytest.mark.parametrize(
    ("columns", "captions"),
    [
        ({"caption": ["one"]}, ["one"]),
        ({"sentences": [["one", "two"]]}, ["one", "two"]),
        ({"caption_10": ["ten"], "caption_2": ["two"], "caption_3": pa.array([None], pa.string())}, ["two", "ten"]),
        ({"text": ["words"], "caption": ["caption"]}, ["caption"]),
    ],
)
def test_captions_are_found_under_the_names_that_data_sets_use(tmp_path: Path, columns: dict[str, Any], captions: list[str]) -> None:
    write(tmp_path / "set" / "train.parquet", table_of([{"bytes": encoded(RED), "path": None}], column="picture", **columns))
    collection = opened(tmp_path / "set", tmp_path)
    assert [document.text for document in collection.documents() if not document.image] == captions


def test_a_column_may_name_the_split_and_one_file_may_be_named_with_its_format(tmp_path: Path) -> None:
    images = [{"bytes": encoded(colour), "path": None} for colour in (RED, BLUE)]
    file = write(tmp_path / "set" / "all.parquet", table_of(images, caption=["red", "blue"], split=["train", "test"]))
    collection = opened(file, tmp_path, format="hugging_face_images")
    assert [list(collection.qrels(f"{split}.text_to_image")) for split in ("train", "test")] == [["all.parquet/1#0"], ["all.parquet/2#0"]]


@pytest.mark.parametrize(
    ("images", "others", "words"),
    [
        ([None], {"caption": ["a"]}, r"train\.parquet: row 1: holds no bytes of an image, only its path or nothing\. Save the data set with its images inside"),
        ([{"bytes": None, "path": "gone.png"}], {"caption": ["a"]}, r"train\.parquet: row 1: holds no bytes of an image"),
        ([{"bytes": b"x", "path": None}], {"caption": [""]}, r"train\.parquet: row 1: caption 0 is empty"),
        ([{"bytes": b"x", "path": None}], {"caption": pa.array([[]], pa.list_(pa.string()))}, r"train\.parquet: row 1: there are no captions"),
        ([{"bytes": b"x", "path": None}], {"caption": [7]}, r"train\.parquet: row 1: caption 0 must be a text, found 7"),
        ([{"bytes": b"x", "path": None}], {"words": ["a"]}, r"row 1: there is no column of captions; known are captions, caption, .* found words\. Rename it"),
        (
            [{"bytes": b"x", "path": "a.png"}, {"bytes": b"x", "path": None}, {"bytes": b"x", "path": "a.png"}],
            {"caption": ["a", "b", "c"]},
            r"row 3: the image train\.parquet/a\.png stands already at .*train\.parquet: row 1\. Give each image one entry with all its captions",
        ),
    ],
)
def test_a_bad_row_is_told_by_its_number(tmp_path: Path, images: list[Any], others: dict[str, Any], words: str) -> None:
    write(tmp_path / "set" / "train.parquet", table_of(images, **others))
    with pytest.raises(DataError, match=words):
        opened(tmp_path / "set", tmp_path)
    assert not (tmp_path / "collection").exists()
    if "bytes" in words:
        assert list((tmp_path / "collection-images").iterdir()) == []


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(RED)[:-30], "the image is cut off or damaged"),
        (b"<html>", r"is no image \(it begins with b'<html>'\)"),
        (b"", "is empty; allowed are PNG"),
        (bomb(100_000), "the image has 100,000 x 100,000 pixels, more than the 67,108,864 allowed"),
    ],
)
def test_what_is_no_good_image_is_told_in_one_line_with_its_file_and_row_when_it_is_read(tmp_path: Path, data: bytes, words: str) -> None:
    write(tmp_path / "set" / "train.parquet", table_of([{"bytes": encoded(RED), "path": None}, {"bytes": data, "path": None}], caption=["good", "bad"]))
    image = opened(tmp_path / "set", tmp_path).document("train.parquet/2").image or Path()
    with pytest.raises(DataError, match=rf"train\.parquet\.[0-9a-f]{{8}}\.tar/00000002\.\w+: {words}") as told:
        read_image(image)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "data-00000-of-00001.arrow"])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "set" / name, train_table())
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(DataError, match=rf"{name}: cannot be read as (parquet|arrow) \(.*\)\. The file may be cut off: fetch or write it again"):
        opened(tmp_path / "set", tmp_path)


def test_columns_that_are_not_images_are_not_taken_for_them(tmp_path: Path) -> None:
    sound = table_of([{"bytes": b"x", "path": None}], caption=["a"])
    features = {"image": {"sampling_rate": 16000, "_type": "Audio"}, "caption": {"dtype": "string", "_type": "Value"}}
    sound = sound.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder = tmp_path / "set"
    file = write(folder / "train.parquet", sound)
    assert not readers.reader("hugging_face_images").recognises(folder)
    with pytest.raises(DataError, match=r"train\.parquet: has no column of images \(bytes and path\); its columns are image, caption"):
        opened(folder, tmp_path, format="hugging_face_images")
    both = table_of([{"bytes": b"x", "path": None}], column="left", caption=["a"])
    write(file, both.append_column("right", both.column("left")).replace_schema_metadata({}))
    with pytest.raises(DataError, match=r'has several columns of images: left, right\. Call the one that is meant "image"'):
        opened(folder, tmp_path)
    write(folder / "corpus.parquet", pa.table({"_id": ["1"], "text": ["a"]}))
    file.unlink()
    assert readers.recognise(folder) == "parquet"


def test_texts_alone_are_read_without_a_place_for_images(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", train_table())
    source = Source(str(tmp_path))
    reader = readers.reader("hugging_face_images")
    assert reader.splits(source) == ("train", "train.text_to_image", "train.image_to_text")
    assert [judgement.doc_id for judgement in reader.qrels(source, "train.text_to_image")] == ["train.parquet/red_one.png"] * 2 + ["train.parquet/2"]
    with pytest.raises(DataError, match="images in tables are read by way of a prepared collection"):
        list(reader.documents(source))


def test_what_the_library_itself_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))})
    rows = {"image": [{"bytes": encoded(RED), "path": "red.png"}], "caption": [["a red square", "red"]]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(str(tmp_path / "a" / "data" / "train-00000-of-00001.parquet"))
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "b"))
    for name, count in (("a", 1), ("b", 2)):
        assert readers.recognise(tmp_path / name) == "hugging_face_images"
        collection = opened(tmp_path / name, tmp_path / f"work-{name}")
        images = [document.image for document in collection.documents() if document.image]
        assert [image_bytes(image) for image in images] == [encoded(RED)] * count
