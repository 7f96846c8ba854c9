from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from retriever import readers
from retriever.check import check_collection
from retriever.collection import Collection, open_collection
from retriever.config import experiment_from
from retriever.errors import ConfigError, DataError
from retriever.images.readers import check_readers
from retriever.images.reading import read_image
from retriever.queries import judged_queries, kept_together, parts_of
from retriever.settings.collection import CollectionSettings
from retriever.types import Document, Query

SQUARES = {"red.png": (255, 0, 0), "deep/light blue.png": (128, 128, 255), "green.png": (0, 255, 0)}
RECORDS = [
    {"image": "red.png", "captions": ["a red square", "red"], "label": "red", "tags": ["warm"], "wave": 700},
    {"image": "deep/light blue.png", "captions": ["a pale sky"], "split": "test", "label": "blue"},
    {"image": "./green.png", "captions": ["grass"], "split": "dev"},
]


def png(colour: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(stream, "PNG")
    return stream.getvalue()


def write_captions(folder: Path, records: list[dict[str, Any]], images: str = "") -> Path:
    for name, colour in SQUARES.items():
        path = folder / images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour))
    (folder / "captions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def write_shard(path: Path, members: Mapping[str, str | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            raw = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def opened(source: Path, **settings: Any) -> Collection:
    return open_collection(CollectionSettings(path=source, **settings), source.parent / "prepared")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "squares", RECORDS)


# Folders


def test_images_and_captions_are_documents(folder: Path) -> None:
    assert readers.recognise(folder) == "captions"
    collection = opened(folder, fields=("label", "wave"))
    assert list(collection.documents()) == [
        Document("red.png", "", image=folder / "red.png", fields={"kind": "image", "split": "train", "label": "red", "wave": 700}),
        Document("red.png#0", "a red square", fields={"kind": "caption", "split": "train", "label": "red", "wave": 700}),
        Document("red.png#1", "red", fields={"kind": "caption", "split": "train", "label": "red", "wave": 700}),
        Document("deep/light_blue.png", "", image=folder / "deep/light blue.png", fields={"kind": "image", "split": "test", "label": "blue"}),
        Document("deep/light_blue.png#0", "a pale sky", fields={"kind": "caption", "split": "test", "label": "blue"}),
        Document("green.png", "", image=folder / "green.png", fields={"kind": "image", "split": "dev"}),
        Document("green.png#0", "grass", fields={"kind": "caption", "split": "dev"}),
    ]
    assert (collection.counts["images"], collection.counts["image_queries"], collection.has_images) == (3, 3, True)


def test_each_is_a_query_for_the_other_kind_in_its_split(folder: Path) -> None:
    image, first, second = opened(folder).queries("train").values()
    about = {"label": "red", "wave": 700}  # and no tags: a list tells no results apart
    to_text, to_image = {"kind": "caption", "split": "train"}, {"kind": "image", "split": "train"}
    assert image == Query("red.png", "", image=folder / "red.png", fields={"direction": "image_to_text", **about}, among=to_text)
    assert first == Query("red.png#0", "a red square", fields={"direction": "text_to_image", **about}, among=to_image)
    assert second == Query("red.png#1", "red", fields={"direction": "text_to_image", **about}, among=to_image)


def test_a_caption_has_its_image_and_an_image_all_its_captions(folder: Path) -> None:
    collection = opened(folder)
    captions, images = {"red.png#0": {"red.png": 1}, "red.png#1": {"red.png": 1}}, {"red.png": {"red.png#0": 1, "red.png#1": 1}}
    assert collection.splits[:3] == ("train", "test", "dev")
    assert collection.qrels("train") == {**captions, **images}
    assert collection.qrels("train.text_to_image") == captions
    assert collection.qrels("train.image_to_text") == images
    assert list(collection.queries("test.text_to_image")) == ["deep/light_blue.png#0"]
    assert list(collection.queries("dev.image_to_text")) == ["green.png"]


def test_images_may_lie_in_a_folder_beside_the_captions(tmp_path: Path) -> None:
    folder = write_captions(tmp_path / "squares", RECORDS, "images")
    assert [document.doc_id for document in opened(folder).documents() if document.image] == ["red.png", "deep/light_blue.png", "green.png"]
    assert opened(folder).document("red.png").image == folder / "images" / "red.png"


def test_images_may_lie_in_a_tar_file(tmp_path: Path) -> None:
    folder = tmp_path / "squares"
    shard = write_shard(folder / "000.tar", {"a.png": png((9, 9, 9))})
    (folder / "captions.jsonl").write_text(json.dumps({"image": "000.tar/a.png", "captions": ["nearly black"]}))
    assert readers.recognise(folder) == "captions"
    found = opened(folder).document("000.tar/a.png").image
    assert found == shard / "a.png"
    assert read_image(found).getpixel((0, 0)) == (9, 9, 9)


def link_out(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(png((1, 2, 3)))
    (folder / "red.png").unlink()
    (folder / "red.png").symlink_to(folder.parent / "secret.png")


def remove(folder: Path) -> None:
    (folder / "red.png").unlink()


@pytest.mark.parametrize(
    ("line", "words", "change"),
    [
        ({"captions": ["a"]}, '"image" must be the path of an image below the folder; there is none', None),
        ({"image": 3, "captions": ["a"]}, '"image" must be the path of an image below the folder; found 3', None),
        ({"image": "absent.png", "captions": ["a"]}, "the image absent.png is not there, neither in", None),
        ({"image": "red.png", "captions": ["a"]}, "the image red.png is not there", remove),
        ({"image": "/etc/passwd", "captions": ["a"]}, "the image '/etc/passwd' leads out of the folder", None),
        ({"image": "../a.png", "captions": ["a"]}, "leads out of the folder", None),
        ({"image": "a\0.png", "captions": ["a"]}, "leads out of the folder", None),
        ({"image": "red.png", "captions": ["a"]}, "the image red.png is a link that leads out of", link_out),
        ({"image": "red.png"}, "there are no captions", None),
        ({"image": "red.png", "captions": []}, "there are no captions", None),
        ({"image": "red.png", "captions": "red"}, "\"captions\" must be a list of texts, found 'red'", None),
        ({"image": "red.png", "captions": ["red", 7]}, "caption 1 must be a text, found 7", None),
        ({"image": "red.png", "captions": ["red", " "]}, "caption 1 is empty", None),
        ({"image": "red.png", "captions": ["red"], "split": 1}, '"split" must be a name without white space', None),
        ({"image": "green.png", "captions": ["red"]}, "the image green.png stands already at", None),
        ({"image": "deep/light_blue.png", "captions": ["red"]}, "the image deep/light_blue.png is not there", None),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, line: dict[str, Any], words: str, change: Callable[[Path], None] | None) -> None:
    folder = write_captions(tmp_path / "squares", [RECORDS[2], line])
    if change:
        change(folder)
    with pytest.raises(DataError) as error:
        opened(folder)
    assert str(error.value).startswith(f"{folder / 'captions.jsonl'}:2: ")
    assert words in str(error.value)
    assert not (tmp_path / "prepared").exists()


def test_two_paths_that_white_space_alone_tells_apart_are_refused(tmp_path: Path) -> None:
    folder = write_captions(tmp_path / "squares", [*RECORDS, {"image": "deep/light_blue.png", "captions": ["again"]}])
    (folder / "deep" / "light_blue.png").write_bytes(png((0, 0, 1)))
    with pytest.raises(DataError, match=r":4: the image deep/light blue\.png has the same id, deep/light_blue\.png, at .*:2"):
        opened(folder)


def test_the_check_of_a_collection_of_images_warns_of_nothing(folder: Path) -> None:
    report = check_collection(opened(folder))
    assert (report.warnings, report.overlapping_queries, report.empty_texts) == ((), 0, 0)


def test_images_of_the_train_split_are_not_taken_for_those_of_the_test_split(folder: Path) -> None:
    said: list[str] = []
    queries = judged_queries(opened(folder), CollectionSettings(path=folder), said.append)
    assert ({split: list(found) for split, found in queries.items()}, said) == (
        {"train": ["red.png", "red.png#0", "red.png#1"], "test": ["deep/light_blue.png", "deep/light_blue.png#0"]},
        [],
    )


def test_an_image_and_its_captions_are_held_out_together(folder: Path) -> None:
    collection = opened(folder)
    queries = {query.query_id: query for query in collection.all_queries()}
    qrels = {query_id: judged for split in ("train", "test", "dev") for query_id, judged in collection.qrels(split).items()}
    blue = "deep/light_blue.png"
    together = {"red.png": "red.png", "red.png#0": "red.png", "red.png#1": "red.png", blue: blue, f"{blue}#0": blue}
    assert kept_together(queries, qrels) == {**together, "green.png": "green.png", "green.png#0": "green.png"}
    texts = {"q": Query("q", "alone"), "t": Query("t", "a turn", conversation="c")}
    assert kept_together(texts, {"q": {"q": 1}}) == {"q": "", "t": "c"}


def test_captions_of_an_image_are_kept_together_where_no_image_asks(folder: Path) -> None:
    collection, split = opened(folder), "train.text_to_image"
    assert kept_together(collection.queries(split), collection.qrels(split)) == {"red.png#0": "red.png", "red.png#1": "red.png"}
    qrels = {f"{image}.png#{number}": {f"{image}.png": 1, "other.png": 0} for image in range(4) for number in range(5)}
    queries = {query_id: Query(query_id, f"caption {query_id}", fields={"direction": "text_to_image"}) for query_id in qrels}
    for seed in range(5):
        parts = parts_of(kept_together(queries, qrels), 2, seed, "folds")
        first, second = ({query_id.partition("#")[0] for query_id in part} for part in parts)
        assert ([len(part) for part in parts], len(first), len(second), first & second) == ([10, 10], 2, 2, set())


def test_images_and_conditions_survive_the_way_through_beir_files(folder: Path, tmp_path: Path) -> None:
    collection = opened(folder, fields=("label",))
    collection.to_beir(tmp_path / "beir")
    again = open_collection(CollectionSettings(path=tmp_path / "beir", fields=("kind", "split", "label")), tmp_path / "again")
    assert list(again.documents()) == list(collection.documents())
    for split in ("train", "test"):
        assert again.queries(split) == collection.queries(split)
        assert again.queries_fingerprint(split) == collection.queries_fingerprint(split)
    assert again.fingerprint == collection.fingerprint


# Shards


def test_shards_are_read_in_place(tmp_path: Path) -> None:
    source = tmp_path / "shards"
    red, blue = png((255, 0, 0)), png((0, 0, 255))
    write_shard(source / "train-000.tar", {"0001.png": red, "0001.txt": "a red square\n\nred\n", "0001.npz": b"not ours", "0001.paug.json": "[]"})
    write_shard(source / "test-000.tar", {"a/0001.png": blue, "a/0001.json": json.dumps({"caption": "blue", "category": "cold", "url": None})})
    assert readers.recognise(source) == "webdataset"
    collection = opened(source)
    assert list(collection.documents()) == [
        Document("test-000.tar/a/0001.png", "", image=source / "test-000.tar/a/0001.png", fields={"kind": "image", "split": "test"}),
        Document("test-000.tar/a/0001.png#0", "blue", fields={"kind": "caption", "split": "test"}),
        Document("train-000.tar/0001.png", "", image=source / "train-000.tar/0001.png", fields={"kind": "image", "split": "train"}),
        Document("train-000.tar/0001.png#0", "a red square", fields={"kind": "caption", "split": "train"}),
        Document("train-000.tar/0001.png#1", "red", fields={"kind": "caption", "split": "train"}),
    ]
    assert collection.queries("test")["test-000.tar/a/0001.png#0"].fields == {"direction": "text_to_image", "category": "cold"}
    assert collection.qrels("train.image_to_text") == {"train-000.tar/0001.png": {"train-000.tar/0001.png#0": 1, "train-000.tar/0001.png#1": 1}}
    assert read_image(collection.document("train-000.tar/0001.png").image or tmp_path).getpixel((0, 0)) == (255, 0, 0)


def test_one_shard_is_a_collection_and_its_records_may_name_the_split(tmp_path: Path) -> None:
    members = {f"{number}.jpg": png((number, 0, 0)) for number in (1, 2)}
    members |= {"1.json": b'{"captions": ["one", "first"], "split": "test"}', "2.json": b'{"caption": "two"}'}
    shard = write_shard(tmp_path / "00000.tar", members)
    collection = opened(shard)
    assert {split: len(collection.qrels(split)) for split in ("train", "test")} == {"train": 2, "test": 3}
    assert collection.document("00000.tar/1.jpg#1").text == "first"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"1.png": b"x"}, "1.png: there are no captions"),
        ({"1.png": b"x", "1.txt": b"\n"}, "1.png: there are no captions"),
        ({"0.png": b"x", "0.txt": b"a", "1.txt": b"a"}, "1.txt has no image of its name beside it"),
        ({"1.png": b"x", "1.jpg": b"x", "1.txt": b"a"}, "1.png and 1.jpg share a name"),
        ({"1.png": b"x", "1.json": b"{"}, "1.json: malformed JSON"),
        ({"1.png": b"x", "1.json": b"[]"}, "1.json: must hold an object"),
        ({"1.png": b"x", "1.json": b'{"caption": 3}'}, "caption 0 must be a text, found 3"),
        ({"1.png": b"x", "1.txt": b"\xff"}, "1.txt: byte 1 is not UTF-8"),
    ],
)
def test_a_bad_sample_of_a_shard_is_named(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    shard = write_shard(tmp_path / "train.tar", members)
    with pytest.raises(DataError) as error:
        opened(shard)
    assert str(error.value).startswith(f"{shard}: ")
    assert words in str(error.value)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"there is no file that ends in \.tar; shards are files that end in \.tar"):
        opened(tmp_path / "empty", format="webdataset")


def test_a_tar_file_without_images_is_no_collection(tmp_path: Path) -> None:
    write_shard(tmp_path / "code.tar", {"a.py": "print()"})
    with pytest.raises(DataError, match=r"captions: captions\.jsonl with lines such as .*webdataset: files that end in \.tar"):
        readers.recognise(tmp_path)


# What reads texts alone


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"candidates": {"sources": ["bm25"]}}, r'candidates\.sources: "bm25" finds by words, and the collection "squares" has 3 documents and 3 queries'),
        ({"candidates": {"sources": ["student", "lucene"]}}, r'candidates\.sources: "lucene" finds by words'),
        ({"student": {"kind": "dense", "model": "x"}}, r'student\.kind: a student of the kind "dense" reads texts alone, .* Set student\.kind = "image_text"'),
        ({"teacher": [{"kind": "lexical"}]}, r'teacher lexical: one of the kind "lexical" reads texts alone'),
        ({"teacher": [{"kind": "embedding", "model": "x"}]}, r'teacher embedding-x: one of the kind "embedding" and the family "dense" reads texts alone'),
        ({"generation": {}}, r"generation: queries are written of texts and find texts, and the collection .* let a \[\[captioner\]\] write more of them"),
        ({"stage": [{"by": ["bm25"], "keep": 10}]}, r'stage\.0\.by: "bm25" finds by words'),
    ],
)
def test_what_finds_or_reads_by_words_alone_is_refused_in_one_line(folder: Path, changed: dict[str, Any], words: str | None) -> None:
    values = {
        "name": "squares",
        "collection": {"path": str(folder)},
        "candidates": {"sources": ["student"]},
        "teacher": [{"kind": "embedding", "model": "student"}],
        "student": {"kind": "image_text", "model": "x"},
        **changed,
    }
    collection = opened(folder)
    if words is None:
        check_readers(experiment_from(values), collection)
        return
    with pytest.raises(ConfigError, match=words):
        check_readers(experiment_from(values), collection)
