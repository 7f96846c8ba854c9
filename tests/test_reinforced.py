"""Reinforced datasets: made, stopped, damaged, read back and learned from; teachers of 8 dimensions whose vectors can be followed."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from retriever.collection import Collection, write_collection
from retriever.config import experiment_from
from retriever.errors import ConfigError, DataError
from retriever.images.augmentation import apply
from retriever.images.reading import read_image
from retriever.pipeline import Pipeline
from retriever.reinforced import step as reinforce_step
from retriever.reinforced.check import verify
from retriever.reinforced.plan import wanted_images
from retriever.reinforced.records import item_of, uid_of
from retriever.reinforced.shards import ReinforcedDataset, ReinforcedTeacher, encode_shard, list_shards, write_manifest
from retriever.reinforced.step import prospect, reinforce
from retriever.reinforced.teachers import TeacherModels, load_teachers, logit_scale_of
from retriever.steps.step import Done
from retriever.training.reinforced_loss import both_ways, ensemble_target, paired_contrastive, reinforced
from retriever.types import Document, Query
from tests.tiny_experiment import command

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange")


class StubModel:
    """An image becomes its mean colour and that of its corner, a text the places of its letters; `turn` makes two of them differ."""

    def __init__(self, turn: int) -> None:
        self.turn = turn

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        pixels = [np.asarray(image).reshape(-1, 3) / 255 for image in images]
        return self._turned([np.array([*own.mean(axis=0), *own[0], 0.5, 1.0]) for own in pixels])

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._turned([np.bincount([ord(letter) % 8 for letter in text], minlength=8) + 0.5 for text in texts])

    def _turned(self, vectors: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        return np.roll(np.stack(vectors), self.turn, axis=1).astype(np.float32)


def stub_teachers() -> TeacherModels:
    teachers = (ReinforcedTeacher("small", 8, 70.0, "one"), ReinforcedTeacher("large", 8, 60.0, "two"))
    return TeacherModels(teachers, (StubModel(0), StubModel(3)))


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def save_images(folder: Path) -> dict[str, Path]:
    """A square of each colour with a white corner; the last one is for the test split."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (20 + number, 18), colour)
        image.putpixel((0, 0), (255, 255, 255))
        image.save(folder / f"{colour}.png")
    return {f"{colour}.png": folder / f"{colour}.png" for colour in COLOURS}


def make_collection(folder: Path, captions: dict[str, list[str]] | None = None, image_queries: bool = True) -> Collection:
    """Images and captions are documents and queries alike, as readers of captions make them."""
    images = save_images(folder / "images")
    texts = captions or {image: [f"a {image[:-4]} square", f"all  {image[:-4]}\n"] for image in images}
    told = {f"{image}#{number}": text for image, listed in texts.items() for number, text in enumerate(listed)}
    documents = [Document(image, "", image=images[image]) for image in texts] + [Document(name, text) for name, text in told.items()]
    queries = [Query(name, text) for name, text in told.items()] + [Query(image, "", image=images[image]) for image in texts]
    forth = {name: {name.split("#")[0]: 1} for name in told}
    back = {image: {f"{image}#{number}": 1 for number in range(len(listed))} for image, listed in texts.items()} if image_queries else {}
    judged = forth | back
    test = COLOURS[-1]
    qrels = {
        "train": {name: grades for name, grades in judged.items() if not name.startswith(test)},
        "test": {name: grades for name, grades in judged.items() if name.startswith(test)},
    }
    return write_collection(folder / "collection", documents, queries, qrels)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pipeline]:
    """Pipelines of an experiment whose teachers are the stubs; further keys go into [reinforce]."""
    collection = make_collection(tmp_path / "data")
    monkeypatch.setattr(reinforce_step, "load_teachers", lambda pipeline, _=None: stub_teachers())

    def build(seed: int = 1, **changes: Any) -> Pipeline:
        values = {
            "name": "squares",
            "seed": seed,
            "collection": {"path": str(collection.folder)},
            "candidates": {"sources": ["student"]},
            "teacher": [{"kind": "embedding"}],
            "student": {"kind": "image_text", "model": "none"},
            "reinforce": {"augmentations": 3, "image_size": 12, "shard_images": 2, **changes},
        }
        return Pipeline(experiment_from(values), tmp_path / "work")

    return build


# What is made


def test_every_train_image_is_there_with_what_the_teachers_make_of_its_augmentations_and_captions(make: Callable[..., Pipeline]) -> None:
    pipeline = make(precision="float32")
    done = reinforce(pipeline)
    assert done.result == {"images": 6, "captions": 12, "synthetic": 0, "augmentations": 3, "made": 6}
    dataset = ReinforcedDataset(done.folder)
    assert len(list_shards(done.folder)) == 3
    assert (dataset.dimensions, dataset.logit_scales) == ((8, 8), (70.0, 60.0))
    assert {dataset.item(uid).about["doc_id"] for uid in dataset.uids} == {f"{colour}.png" for colour in COLOURS[:-1]}
    item = dataset.of_document("green.png")
    assert (item.uid, item.captions, item.synthetic) == (uid_of("green.png"), ("a green square", "all green"), ())
    own = read_image(pipeline.collection.document("green.png").image or Path())
    seen = [apply(own, one) for one in item.augmentations]
    assert [image.size for image in seen] == [(12, 12)] * 3
    for turn, of_images, of_texts in zip((0, 3), dataset.by_teacher(item.images), dataset.by_teacher(item.texts), strict=True):
        np.testing.assert_allclose(of_images, unit(StubModel(turn).images(seen)), atol=1e-6)
        np.testing.assert_allclose(of_texts, unit(StubModel(turn).texts(item.captions)), atol=1e-6)
    assert "orange.png" not in dataset
    assert "green.png" in dataset
    assert read_image(dataset.image_path(item.uid) or Path()).tobytes() == own.tobytes()


@pytest.mark.parametrize(("precision", "ending", "close"), [("float16", "npz", 5e-4), ("bfloat16", "pth.gz", 4e-3), ("float32", "npz", 1e-7)])
def test_vectors_are_kept_as_precisely_as_is_asked_and_equal_bytes_are_written_again(
    make: Callable[..., Pipeline], precision: str, ending: str, close: float
) -> None:
    pipeline = make(precision=precision)
    folder = reinforce(pipeline).folder
    (first, *_) = shards = list_shards(folder)
    with tarfile.open(first) as archive:
        names = archive.getnames()
    assert [name.split(".", 1)[1] for name in names[:6]] == ["png", "txt", "syn.json", "paug.json", ending, "json"]
    item = ReinforcedDataset(folder).of_document("red.png")
    np.testing.assert_allclose(item.texts[:, :8], unit(StubModel(0).texts(item.captions)), atol=close)
    bytes_before = {shard.name: shard.read_bytes() for shard in shards}
    for shard in shards:
        shard.unlink()
    (folder / "manifest.json").unlink()
    assert reinforce(pipeline).result["made"] == 6
    assert {shard.name: shard.read_bytes() for shard in list_shards(folder)} == bytes_before


def test_it_is_the_same_whichever_way_round_captions_and_images_are_judged(tmp_path: Path) -> None:
    both, one_way = make_collection(tmp_path / "a"), make_collection(tmp_path / "b", image_queries=False)
    found = [wanted_images(one, one.queries("train"), one.qrels("train"), None) for one in (both, one_way)]
    assert [image.captions for image in found[0]] == [image.captions for image in found[1]]
    qrels = {name: grades for name, grades in both.qrels("train").items() if "#" not in name}
    queries = {name: query for name, query in both.queries("train").items() if query.image}
    assert wanted_images(both, queries, qrels, None) == found[0]


def test_a_stop_costs_a_shard_and_the_same_command_makes_what_is_missing(make: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {shard.name for shard in list_shards(reinforce(make()).folder)}
    pipeline = make(seed=2)
    write, written = reinforce_step.write_shard, []

    def stop_after_one(folder: Path, number: int, data: bytes) -> Path:
        if written:
            raise KeyboardInterrupt
        written.append(number)
        return write(folder, number, data)

    monkeypatch.setattr(reinforce_step, "write_shard", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        reinforce(pipeline)
    folder = pipeline.folder / "reinforced"
    assert len(list_shards(folder)) == 1  # another seed: the six old ones went
    with pytest.raises(DataError, match=r"the dataset is not finished. Run the same command"):
        ReinforcedDataset(folder)
    monkeypatch.setattr(reinforce_step, "write_shard", write)
    found = prospect(pipeline)
    assert (found.images, found.done, found.captions, found.augmentations) == (6, 2, 12, 3)
    assert found.bytes > 0
    assert reinforce(pipeline).result["made"] == 4
    assert reinforce(pipeline).done_now is False
    assert reinforce(make(seed=1)).result["made"] == 6
    assert {shard.name for shard in list_shards(folder)} == whole


def test_only_shards_that_changed_are_made_again(make: Callable[..., Pipeline], tmp_path: Path) -> None:
    before = {shard.name for shard in list_shards(reinforce(make()).folder)}
    texts = {f"{colour}.png": [f"a {colour} square", f"all {colour}"] for colour in COLOURS}
    texts["blue.png"].append("like the sea")
    make_collection(tmp_path / "data", texts)
    done = reinforce(make())
    assert done.result["made"] == 2  # blue and the other one of its shard
    assert len({shard.name for shard in list_shards(done.folder)} & before) == 2
    assert ReinforcedDataset(done.folder).of_document("blue.png").captions == ("a blue square", "all blue", "like the sea")


def test_a_damaged_shard_is_set_aside_and_made_again(make: Callable[..., Pipeline]) -> None:
    folder = reinforce(make()).folder
    shard = list_shards(folder)[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2000] + b"?" + whole[2001:])
    assert any("the bytes are not the ones that were written" in problem for problem in verify(folder).problems)
    (folder / "manifest.json").unlink()
    assert reinforce(make()).result["made"] == 2
    assert shard.read_bytes() == whole
    assert shard.with_name(f"{shard.name}.damaged").exists()
    assert verify(folder).problems == ()


def test_synthetic_captions_stand_behind_the_others(make: Callable[..., Pipeline], tmp_path: Path) -> None:
    path = tmp_path / "written.jsonl"
    path.write_text('{"image": "red.png", "captions": ["a tomato", "a  brick"]}\n\n{"image": "red.png", "captions": ["fire"]}\n', encoding="utf-8")
    done = reinforce(make(synthetic_captions=str(path), precision="float32"))
    assert done.result["synthetic"] == 3
    item = ReinforcedDataset(done.folder).of_document("red.png")
    assert (item.captions, item.synthetic) == (("a red square", "all red"), ("a tomato", "a brick", "fire"))
    np.testing.assert_allclose(item.texts[:, :8], unit(StubModel(0).texts([*item.captions, *item.synthetic])), atol=1e-6)
    assert ReinforcedDataset(done.folder).of_document("blue.png").synthetic == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"written\.jsonl:1: is no JSON"),
        ('{"image": "red.png"}', r'written\.jsonl:1: must be \{"image"'),
        ('{"image": "red.png", "captions": [" "]}', r'written\.jsonl:1: must be \{"image"'),
        ('\n{"image": "pink.png", "captions": ["x"]}', r'written\.jsonl:2: the collection collection has no image "pink.png"'),
    ],
)
def test_a_bad_file_of_captions_is_named_with_its_line(make: Callable[..., Pipeline], tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "written.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        reinforce(make(synthetic_captions=str(path)))
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read .* named by reinforce\.synthetic_captions"):
        reinforce(make(synthetic_captions=str(tmp_path / "gone.jsonl")))


def test_a_collection_without_images_is_refused(shared_beir_folder: Path, make: Callable[..., Pipeline], tmp_path: Path) -> None:
    values = {"name": "texts", "collection": {"path": str(shared_beir_folder)}, "teacher": [{"kind": "lexical"}], "student": {"model": "none"}}
    with pytest.raises(DataError, match=r"the train split has no image with a caption"):
        reinforce(Pipeline(experiment_from(values), tmp_path / "work"))
    with pytest.raises(ConfigError, match=r'no \[\[teacher\]\] encodes images and texts into one space. Add one of kind = "embedding"'):
        load_teachers(Pipeline(experiment_from(values), tmp_path / "work"))


# What is checked


def test_verifying_makes_the_pixels_again_that_the_teachers_saw(make: Callable[..., Pipeline]) -> None:
    folder = reinforce(make()).folder
    told: list[int] = []
    found = verify(folder, told.append)
    assert (found.images, found.remade, found.problems, sum(told)) == (6, 18, (), 6)
    said = command("reinforce", "--verify", folder)
    assert (said.status, said.out) == (0, "6 images in order; 18 augmented ones were made again, and are the pixels that the teachers saw\n")
    assert json.loads(command("reinforce", "--verify", folder, "--json").out) == {"images": 6, "remade": 18, "problems": []}
    without = make(store_images=False)
    assert verify(reinforce(without).folder).remade == 0
    images = {f"{colour}.png": without.collection.document(f"{colour}.png").image for colour in COLOURS}
    elsewhere = verify(folder, elsewhere=images.get)
    assert (elsewhere.remade, elsewhere.problems) == (18, ())
    Image.new("RGB", (20, 18), "pink").save(images["red.png"] or Path())
    (problem,) = verify(folder, elsewhere=images.get).problems
    assert "3 of 3 augmented images are not those that the teachers saw (made with Pillow" in problem


def test_verifying_finds_vectors_that_are_no_unit_vectors(make: Callable[..., Pipeline]) -> None:
    folder = reinforce(make(precision="float32")).folder
    shard = list_shards(folder)[0]
    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as archive:
        for member in archive.getmembers():
            uid, ending = member.name.split(".", 1)
            data = (archive.extractfile(member) or io.BytesIO()).read()
            if ending == "npz":
                with np.load(io.BytesIO(data)) as arrays:
                    stream = io.BytesIO()
                    np.savez(stream, image_emb=arrays["image_emb"] * 2, text_emb=arrays["text_emb"])
                    data = stream.getvalue()
            files.setdefault(uid, {})[ending] = data
    shard.unlink()
    (folder / "of-another-name.tar").write_bytes(encode_shard(files))
    found = verify(folder)
    assert len(found.problems) == 4
    assert all("the vectors of images by" in problem and "from 2.000 to 2.000" in problem for problem in found.problems)
    said = command("reinforce", "--verify", folder)
    assert said.status == 2
    assert "(3 more; --json lists them). Make it again with: retriever reinforce FILE.toml" in said.err


def test_the_command_says_what_there_is_and_what_follows(make: Callable[..., Pipeline], tmp_path: Path) -> None:
    path = tmp_path / "squares.toml"
    path.write_text(
        'name = "told"\n[collection]\npath = "data/collection"\n[candidates]\nsources = ["student"]\n[[teacher]]\nkind = "embedding"\n'
        '[student]\nkind = "image_text"\nmodel = "none"\n[reinforce]\n'
        'augmentations = 2\nimage_size = 8\nsynthetic_captions = "written.jsonl"\n'
    )
    (tmp_path / "written.jsonl").write_text('{"image": "red.png", "captions": ["a tomato"]}\n')
    plan = command("reinforce", path, "--work", tmp_path / "work", "--dry-run")
    assert plan.status == 0
    assert plan.out.startswith("6 images to reinforce, 0 done: 2 augmentations of each, 12 captions and 1 synthetic ones in all; about ")
    assert not (tmp_path / "work" / "told" / "reinforced").exists()
    said = command("reinforce", path, "--work", tmp_path / "work")
    folder = tmp_path / "work" / "told" / "reinforced"
    assert said.out.splitlines() == [
        "6 images, 2 augmentations of each, 12 captions, 1 synthetic",
        "teachers: small (8 dimensions, logit scale 70), large (8 dimensions, logit scale 60)",
        f"dataset:  {folder}",
    ]
    assert f"next: retriever train {path} --set 'training.losses={{ reinforced = 1.0 }}' --work {tmp_path / 'work'}\n" in said.err
    assert json.loads(command("reinforce", path, "--work", tmp_path / "work", "--json").out)["images"] == 6
    assert command("reinforce").error.startswith("reinforce: name an experiment file to make a dataset, or a dataset to look at")


# What others published


def published(folder: Path, **changes: bytes | None) -> Path:
    """One image in the layout of the published sets: parameters as a JSON string, one caption, two generators, bfloat16."""
    torch.manual_seed(1)
    unit_vectors = {name: torch.nn.functional.normalize(torch.randn(count, 2, 4), dim=2).flatten(1).bfloat16() for name, count in SIZES.items()}
    stream = io.BytesIO()
    torch.save(unit_vectors, stream)
    files: dict[str, bytes | None] = {
        "url.txt": b"https://example.org/1.jpg",
        "txt": b"a castle\non a hill",
        "syn.json": json.dumps({"syn_text": ["a house", "a tower"], "syn_text_other": ["stones"]}).encode(),
        "paug.json": json.dumps({"param_aug": json.dumps([[[0, 0, 5, 6], [[6, 0.5], None]], [[1, 1, 3, 3], [[0, 0], [13, 0]]]])}).encode(),
        "pth.gz": gzip.compress(stream.getvalue()),
        "json": b'{"uid": "0123"}',
    }
    files |= {name.replace("_", "."): data for name, data in changes.items()}
    folder.mkdir(exist_ok=True)
    (folder / "00000000.tar").write_bytes(encode_shard({"0123": {name: data for name, data in files.items() if data is not None}}))
    write_manifest(folder, [ReinforcedTeacher("a", 4, 100.0), ReinforcedTeacher("b", 4, 100.0)], {})
    return folder


SIZES = {"image_emb": 2, "text_emb": 4}


def test_a_published_set_is_read(tmp_path: Path) -> None:
    dataset = ReinforcedDataset(published(tmp_path / "set"))
    item = dataset.item("0123")
    assert (item.captions, item.synthetic) == (("a castle on a hill",), ("a house", "a tower", "stones"))
    assert [(one.crop, one.operations, one.size) for one in item.augmentations] == [
        ((0, 0, 5, 6), ((6, 0.5), None), 256),
        ((1, 1, 3, 3), ((0, 0), (13, 0)), 256),
    ]
    assert (item.images.shape, item.texts.shape, item.images.dtype) == ((2, 8), (4, 8), np.float32)
    assert dataset.image_path("0123") is None
    assert verify(tmp_path / "set").problems == ()


def test_vectors_of_synthetic_captions_may_be_kept_apart(tmp_path: Path) -> None:
    stream = io.BytesIO()
    ones = np.eye(8, dtype=np.float32)[:, :8] + np.roll(np.eye(8, dtype=np.float32), 4, axis=1)
    np.savez(stream, image_emb=ones[:2], text_emb=ones[2:3], syn_text_emb=ones[3:6])
    dataset = ReinforcedDataset(published(tmp_path / "set", pth_gz=None, npz=stream.getvalue()))
    np.testing.assert_array_equal(dataset.item("0123").texts, ones[2:6])


class Runs:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("it ran",)


def bytes_of_torch(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return gzip.compress(stream.getvalue())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"txt": None}, r"0123: its file of captions, \.txt, is missing"),
        ({"txt": b"\n"}, r"0123: 0 captions and 1 vectors|0123: 1 captions and 1 vectors"),
        ({"paug_json": None}, r"0123: its file \.paug\.json is missing"),
        ({"paug_json": b"["}, r"0123\.paug\.json: is no JSON"),
        ({"paug_json": b'{"param_aug": "["}'}, r'0123: "param_aug": is no JSON'),
        ({"paug_json": b'{"param_aug": [[[1, 1, 3, 3]]]}'}, r"0123: 1 augmentations and 2 vectors of them"),
        ({"paug_json": b'{"param_aug": [[1]]}'}, r"is no augmentation"),
        ({"syn_json": b'{"syn_text": "a"}'}, r'0123: "syn_text" must be a list of texts'),
        ({"pth_gz": None}, r"0123: its vectors are missing"),
        ({"pth_gz": b"no gzip"}, r"0123\.pth\.gz: cannot be read"),
        ({"pth_gz": bytes_of_torch({"image_emb": Runs()})}, r"0123\.pth\.gz: cannot be read"),
        ({"pth_gz": bytes_of_torch([1])}, r"0123\.pth\.gz: must hold tensors by name"),
        ({"pth_gz": None, "npz": b"PK"}, r"0123\.npz: cannot be read"),
    ],
)
def test_files_that_are_not_what_the_layout_says_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, bytes | None], said: str
) -> None:
    dataset = ReinforcedDataset(published(tmp_path / "set", **changes))
    with pytest.raises(DataError, match=said):
        dataset.item("0123")
    assert capfd.readouterr().out == ""


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reinforced\.json: cannot be read .* make one with: retriever reinforce"):
        ReinforcedDataset(tmp_path)
    (tmp_path / "reinforced.json").write_text('{"teachers": [{"name": "a"}]}')
    with pytest.raises(DataError, match=r"must be a JSON object whose teachers have a name, dimensions and a logit_scale"):
        ReinforcedDataset(tmp_path)
    write_manifest(tmp_path, [ReinforcedTeacher("a", 4, 0.0)], {})
    with pytest.raises(DataError, match=r"each teacher needs dimensions and a logit_scale above 0"):
        ReinforcedDataset(tmp_path)
    write_manifest(tmp_path, [ReinforcedTeacher("a", 4, 1.0)], {"images": 3})
    with pytest.raises(DataError, match=r"holds 0 images, and there should be 3"):
        ReinforcedDataset(tmp_path)
    write_manifest(published(tmp_path / "set"), [ReinforcedTeacher("a", 5, 1.0)], {})
    with pytest.raises(DataError, match=r"its vectors have 8 dimensions; reinforced\.json names teachers with 5"):
        ReinforcedDataset(tmp_path / "set").item("0123")
    with pytest.raises(DataError, match=r"has no image x\.png"):
        ReinforcedDataset(tmp_path / "set").of_document("x.png")


def test_an_archive_that_unpacks_to_far_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retriever.reinforced.records.MAX_VECTOR_BYTES", 5000)
    stream = io.BytesIO()
    np.savez_compressed(stream, image_emb=np.zeros((100, 100)))
    for ending, data in (("pth.gz", gzip.compress(bytes(5001))), ("npz", stream.getvalue())):
        assert len(data) < 5000
        with pytest.raises(DataError, match=r"here\.(npz|pth\.gz): unpacks to (80,\d\d\d bytes, )?more than the 5,000"):
            item_of("0", {"txt": b"a", "paug.json": b'{"param_aug": []}', ending: data}, "here")


# Teachers


def test_the_logit_scale_is_the_models_own_and_a_model_without_one_is_told() -> None:
    class Encoder:
        logit_scale: float | None = None

    with pytest.raises(ConfigError, match=r"teacher clip: its model does not say what turns its cosines into logits. Set logit_scale"):
        logit_scale_of(Encoder(), "clip")
    Encoder.logit_scale = 50.0
    assert logit_scale_of(Encoder(), "clip") == pytest.approx(50)
    Encoder.logit_scale = 2981.0
    assert logit_scale_of(Encoder(), "clip") == 100


def test_a_vector_of_no_direction_is_refused() -> None:
    class Zero(StubModel):
        def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return np.zeros((len(texts), 8), dtype=np.float32)

    with pytest.raises(DataError, match=r"teacher t: it gave a vector that is not finite, or 0"):
        TeacherModels((ReinforcedTeacher("t", 8, 1.0),), (Zero(0),)).texts(["a"])


# The loss


def slow_softmax(row: Sequence[float]) -> list[float]:
    exponents = [float(np.exp(value - max(row))) for value in row]
    return [value / sum(exponents) for value in exponents]


def slow_loss(scores: NDArray[Any], images: list[NDArray[Any]], texts: list[NDArray[Any]], scales: list[float]) -> float:
    """Both directions by loops, as the equations stand."""
    total, B = 0.0, len(scores)
    for left, right, own in ((images, texts, scores), (texts, images, scores.T)):
        for i in range(B):
            student = slow_softmax(own[i].tolist())
            targets = [slow_softmax([scale * float(np.dot(a[i], b[j])) for j in range(B)]) for a, b, scale in zip(left, right, scales, strict=True)]
            for j in range(B):
                mean = sum(target[j] for target in targets) / len(scales)
                total -= mean * float(np.log(student[j])) / B / 2
    return total


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_loss_is_that_of_slow_loops(B: int, K: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    images, texts = ([unit(generator.normal(size=(B, 3 + k))) for k in range(K)] for _ in range(2))
    scores, scales = generator.normal(size=(B, B)) * 3, [float(scale) for scale in generator.uniform(1, 20, K)]
    found = loss_of(torch.tensor(scores), [torch.tensor(one) for one in images], [torch.tensor(one) for one in texts], scales)
    assert float(found) == pytest.approx(slow_loss(scores, images, texts, scales), rel=1e-4)


def loss_of(scores: Tensor, images: Sequence[Tensor], texts: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    student, teacher = both_ways(scores, images, texts, scales)
    return reinforced(student, teacher, torch.ones_like(student, dtype=torch.bool))


def random_units(count: int, dimensions: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_one_teacher_is_its_own_softmax_and_two_are_averaged_after_it() -> None:
    a, b = random_units(4, 6, 1), random_units(4, 6, 2)
    one = ensemble_target([a], [b], [10.0]).exp()
    torch.testing.assert_close(one, torch.softmax(10 * (a @ b.T).float(), dim=1))
    assert one.sum(dim=1) == pytest.approx([1] * 4)
    c, d = random_units(4, 5, 3), random_units(4, 5, 4)
    both = ensemble_target([a, c], [b, d], [10.0, 1e-9]).exp()  # the second one does not mind: a quarter for each
    torch.testing.assert_close(both, one / 2 + 1 / 8)


def test_a_student_that_agrees_has_no_gradient_and_the_loss_is_the_entropy() -> None:
    a, b = random_units(5, 6, 1), random_units(5, 6, 2)
    scores = (10 * (a @ b.T)).requires_grad_()
    loss = loss_of(scores, [a], [b], [10.0])
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-6
    entropies = [-(p.exp() * p).sum(dim=1).mean() for p in (ensemble_target([a], [b], [10.0]), ensemble_target([b], [a], [10.0]))]
    assert float(loss.detach()) == pytest.approx(float(sum(entropies)) / 2, rel=1e-5)
    other = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
    loss_of(other, [a], [b], [10.0]).backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 1e-3


def test_what_is_left_out_takes_no_part() -> None:
    student, teacher = torch.tensor([[1.0, 2.0, 50.0]]), torch.tensor([[3.0, 3.0, 50.0]])
    expected = -(np.log(np.exp(1) / (np.exp(1) + np.exp(2))) + np.log(np.exp(2) / (np.exp(1) + np.exp(2)))) / 2
    assert float(reinforced(student, teacher, torch.tensor([[True, True, False]]))) == pytest.approx(expected, rel=1e-5)


def test_the_contrastive_term_is_that_of_clip_and_leaves_twins_out() -> None:
    values = np.array([[2.0, 0.0, 2.0], [0.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
    scores = torch.tensor(values)
    rows = [-np.log(np.exp(values[i, i]) / np.exp(values[i]).sum()) for i in range(3)]
    columns = [-np.log(np.exp(values[i, i]) / np.exp(values[:, i]).sum()) for i in range(3)]
    assert float(paired_contrastive(scores)) == pytest.approx(float(sum(rows) + sum(columns)) / 6, rel=1e-5)
    twins = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])  # captions 0 and 2 have the same words
    first = -np.log(np.exp(2.0) / (np.exp(2.0) + 1))
    third = -np.log(np.exp(3.0) / (np.exp(3.0) + 1))
    second = -np.log(np.exp(1.0) / (np.exp(1.0) + 2))
    assert float(paired_contrastive(scores, twins)) == pytest.approx((first + second + third) / 3, rel=1e-5)


def test_done_steps_are_only_opened(make: Callable[..., Pipeline]) -> None:
    first: Done = reinforce(make())
    assert first.done_now
    assert reinforce(make()).done_now is False
    again = reinforce(make(augmentations=4))
    assert (again.done_now, again.result["made"]) == (True, 6)
