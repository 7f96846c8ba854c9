"""Synthetic captions: answers by hand, tiny models that see, a server that is shown the image, stops, and the way into reinforced training."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from retriever.captioning.answers import BLIP_PROMPT, CHAT_PROMPT, read_caption
from retriever.captioning.identity import identity_of
from retriever.captioning.local import LocalCaptioner, RowDraws
from retriever.captioning.model import open_captioner
from retriever.captioning.server import as_data_url
from retriever.captioning.step import COLUMN, SHARD_IMAGES, caption, captions_of, read_captions
from retriever.config import experiment_from, read_experiment
from retriever.errors import ConfigError, DataError, RetrieverError
from retriever.images.files import image_sha256
from retriever.pipeline import Pipeline
from retriever.reinforced import step as reinforce_step
from retriever.reinforced.shards import ReinforcedDataset
from retriever.reinforced.step import prospect, reinforce
from retriever.settings.captioner import CaptionerSettings
from retriever.writing.shards import read_all
from tests.captioner_material import CaptionServer, caption_server, save_blip_captioner, save_chat_captioner
from tests.forked_commands import RETRIEVER, ForkedCommands
from tests.fusion_material import COLOURS, save_blip, write_squares
from tests.test_reinforced import stub_teachers
from tests.tiny_experiment import command


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip_captioner(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def server() -> Iterator[CaptionServer]:
    with caption_server() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection of the squares: the last three colours are the test split, and two train files have the same bytes."""
    folder = tmp_path / "squares"
    folder.mkdir()
    write_squares(folder)
    (folder / "crimson.png").write_bytes((folder / "red.png").read_bytes())
    names = [*list(COLOURS)[:-3], "crimson", *list(COLOURS)[-3:]]
    records = [{"image": f"{name}.png", "captions": [f"it is {name}"], "split": "test" if name in list(COLOURS)[-3:] else "train"} for name in names]
    (folder / "captions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def settings_of(**changes: Any) -> CaptionerSettings:
    return CaptionerSettings.model_validate({"model": "m", **changes})


def experiment_of(folder: Path, *captioners: dict[str, Any], **changes: Any) -> Pipeline:
    values = {
        "name": "squares",
        "collection": {"path": str(folder)},
        "candidates": {"sources": ["student"]},
        "teacher": [{"kind": "embedding"}],
        "student": {"kind": "image_text", "model": "none"},
        "captioner": list(captioners),
        **changes,
    }
    return Pipeline(experiment_from(values), folder.parent / "work")


def table_of(running: CaptionServer, server: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {"name": "seer", "model": "m", "samples": 2, "server": {"url": running.url, "retries": 0, **(server or {})}, **changes}


# Answers


@pytest.mark.parametrize(
    ("raw", "text", "status"),
    [
        ("A red square on a table.", "A red square on a table.", "written"),
        (' "A red square." ', "A red square.", "written"),
        ("Caption: a red square", "a red square", "written"),
        ("**Caption:** A red square.\n\nIt is red.", "A red square.", "written"),
        ("Caption:\nA red square", "A red square", "written"),
        ("Sure! Here is a caption for the image: A red square", "A red square", "written"),
        ("Here is one caption:\n1. A red square", "A red square", "written"),
        ("2 dogs share a picture of no visible person", "2 dogs share a picture of no visible person", "written"),
        ("The image shows a dog and no visible people", "The image shows a dog and no visible people", "written"),
        ("", "", "empty"),
        (" ... \n", "", "empty"),
        ("I'm sorry, but I can't help with that.", "", "refusal"),
        ("I don't see an image. Please upload it.", "", "blind"),
        ("I cannot see the picture you mention", "", "blind"),
        ("There is no image attached to your message.", "", "blind"),
        ("red red red red", "", "broken"),
        ("a <|im_end|> square", "", "broken"),
        ("The image shows:\n- a square", "", "broken"),
        (CHAT_PROMPT, "", "instruction"),
        ("a single sentence that says what is seen in it", "", "instruction"),
        (" ".join(f"w{number}" for number in range(33)), "", "too_long"),  # 4 times the 8 tokens are 32
    ],
)
def test_the_caption_is_found_in_an_answer_and_what_is_none_is_told(raw: str, text: str, status: str) -> None:
    assert read_caption(raw, CHAT_PROMPT, 8) == (text, status)


# Draws


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = RowDraws(range(5_000), temperature=2.0, top_p=1.0)(torch.zeros(5_000, 1), logits.repeat(5_000, 1)).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=4) / 5_000
    expected = torch.softmax(logits / 2.0, dim=0)
    assert (shares - expected).abs().max() < 4 * 0.5 / 5_000**0.5  # four standard deviations
    likely = RowDraws(range(500), temperature=1.0, top_p=0.8)(torch.zeros(500, 1), logits.repeat(500, 1)).argmax(dim=1)
    assert set(likely.tolist()) == {0, 1}  # 0.64 and 0.24 are the first to reach 0.8


def test_a_caption_depends_on_the_image_the_sample_and_the_seed_and_not_on_who_else_is_asked_about(blip: Path, squares: dict[str, Path]) -> None:
    paths = list(squares.values())
    together = open_captioner(settings_of(model=str(blip), answer_tokens=8, batch_size=5), 1)
    alone = open_captioner(settings_of(model=str(blip), answer_tokens=8, batch_size=1), 1)
    first = together.write(paths, 0)
    assert first == alone.write(paths, 0)
    assert first[3:7] == together.write(paths[3:7], 0)
    assert len(set(first)) > 3
    assert first != together.write(paths, 1)
    assert first != open_captioner(settings_of(model=str(blip), answer_tokens=8), 2).write(paths, 0)
    assert together.usage.requests == 2 * 12 + 4
    assert together.usage.prompt_tokens == (2 * 12 + 4) * 5  # [CLS] a picture of [SEP]
    assert together.usage.completion_tokens > 2 * 12


def test_the_likeliest_caption_is_what_transformers_itself_writes(blip: Path, squares: dict[str, Path]) -> None:
    from transformers import AutoProcessor, BlipForConditionalGeneration

    captioner = open_captioner(settings_of(model=str(blip), temperature=0, samples=1, answer_tokens=7, prompt="a square"), 1)
    model = BlipForConditionalGeneration.from_pretrained(blip)
    processor = AutoProcessor.from_pretrained(blip, backend="pil")
    for path in list(squares.values())[:3]:
        inputs = processor(images=Image.open(path), text="a square", return_tensors="pt")
        whole = processor.decode(model.generate(**inputs, max_new_tokens=7, do_sample=False)[0], skip_special_tokens=True)
        (written,) = captioner.write([path], 0)
        assert whole == f"a square {written}".strip()


def test_blip_goes_on_after_its_own_words_and_a_model_that_chats_is_told_what_to_do(blip: Path, squares: dict[str, Path], tmp_path: Path) -> None:
    captioner = open_captioner(settings_of(model=str(blip)), 1)
    assert isinstance(captioner, LocalCaptioner)
    assert captioner.prompt == BLIP_PROMPT
    assert len(open_captioner(settings_of(model=str(blip), prompt="", answer_tokens=8), 1).write([squares["red"]], 0)) == 1
    chat = open_captioner(settings_of(model=str(save_chat_captioner(tmp_path / "llava")), prompt="a square in", answer_tokens=4), 1)
    assert isinstance(chat, LocalCaptioner)
    assert chat.prompt == "<image> a square in [SEP]"
    paths = list(squares.values())[:6]
    written = chat.write(paths, 0)
    assert len(set(written)) > 2
    assert all(len(text.split()) <= 4 for text in written)
    assert written[2:4] == chat.write(paths[2:4], 0)


def test_more_tokens_than_a_model_has_places_for_are_refused(blip: Path, squares: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"captioner blip: the prompt's 5 tokens and 20 of a caption are more than the 24 that the model has places for"):
        open_captioner(settings_of(model=str(blip), answer_tokens=20), 1).write([squares["red"]], 0)


def test_a_model_without_the_weights_that_write_is_refused(tmp_path: Path) -> None:
    matcher = save_blip(tmp_path / "blip-itm")
    with pytest.raises(ConfigError, match=r"captioner blip-itm: .*blip-itm lacks the weights of text_decoder\..* so it was never taught to write captions"):
        open_captioner(settings_of(model=str(matcher)), 1)
    with pytest.raises(ConfigError, match=r"captioner gone: .*gone"):
        identity_of(settings_of(model=str(tmp_path / "gone")), 1)


# The server


def test_the_server_sees_the_pixels_and_nothing_else_and_each_image_has_a_seed_of_its_own(folder: Path, server: CaptionServer, tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    image = Image.new("RGBA", (900, 300), (*COLOURS["orange"], 255))
    image.save(big, exif=Image.Exif(), pnginfo=None)
    captioner = open_captioner(settings_of(**table_of(server, image_size=90)), 1)
    (said,) = captioner.write([big], 0)
    assert said.startswith("a orange square number ")
    (body,) = server.seen
    assert {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p")} == {"model": "m", "max_tokens": 48, "temperature": 1.0, "top_p": 0.9}
    content = body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]
    assert content[1]["text"] == CHAT_PROMPT
    sent = as_data_url(Image.open(big).convert("RGB"), 90)
    assert content[0]["image_url"]["url"] == sent
    seeds = [open_captioner(settings_of(**table_of(server)), seed).write([folder / name], sample) for seed, name, sample in
             [(1, "red.png", 0), (1, "red.png", 1), (1, "blue.png", 0), (2, "red.png", 0), (1, "crimson.png", 0)]]  # fmt: skip
    assert len({said[0].split()[-1] for said in seeds}) == 4
    assert seeds[0] == seeds[4]  # the same bytes
    assert (captioner.usage.requests, captioner.usage.prompt_tokens, captioner.usage.completion_tokens) == (1, 50, 5)


def test_price_retries_and_requests_at_a_time_are_those_of_the_server_engine(folder: Path, server: CaptionServer) -> None:
    server.faults = [lambda handler: handler.send(503, {"error": "busy"}), lambda handler: handler.send(429, {}, Retry_After="0.01")]
    server.delay_seconds = 0.05
    table = table_of(server, samples=1, server={"retries": 3, "concurrency": 3, "prompt_price": 2.0, "completion_price": 10.0})
    done = caption(experiment_of(folder, table))
    told = done.result["captioners"]["seer"]
    assert told["statuses"]["written"] == 10
    assert told["usage"]["requests"] == 9  # nine files that differ
    assert told["usage"]["cost"] == pytest.approx(9 * (50 * 2.0 + 5 * 10.0) / 1e6)
    assert len(server.seen) == 9 + 2
    assert server.most_running == 3


# The step


def test_every_train_image_has_its_captions_with_their_lineage_and_equal_files_are_asked_about_once(folder: Path, server: CaptionServer) -> None:
    pipeline = experiment_of(folder, table_of(server))
    done = caption(pipeline)
    rows = read_captions(done.folder)
    assert len(rows) == 10 * 2
    assert len(server.seen) == 9 * 2
    assert {row["doc_id"] for row in rows} == {f"{name}.png" for name in (*list(COLOURS)[:-3], "crimson")}
    identity = identity_of(pipeline.experiment.captioner[0], 1)
    one = next(row for row in rows if row["doc_id"] == "blue.png" and row["sample"] == 2)
    assert one["text"] == one["raw"]
    assert one["text"].startswith("a blue square number ")
    assert (one["captioner"], one["kind"], one["status"], one["seed"]) == ("seer", "synthetic_caption", "written", 1)
    assert (one["generator"], one["sha256"]) == (identity.fingerprint, image_sha256(folder / "blue.png"))
    assert json.loads(one["parameters"])["settings"]["prompt"] == CHAT_PROMPT
    by_image = captions_of(pipeline)
    assert by_image["red.png"] == by_image["crimson.png"]
    assert [len(texts) for texts in by_image.values()] == [2] * 10
    assert caption(pipeline).done_now is False


def test_only_what_is_missing_is_asked_for(folder: Path, server: CaptionServer) -> None:
    caption(experiment_of(folder, table_of(server, samples=1)))
    before = captions_of(experiment_of(folder, table_of(server, samples=1)))
    caption(experiment_of(folder, table_of(server, samples=3)))
    assert len(server.seen) == 9 * 3
    Image.new("RGB", (16, 16), COLOURS["brown"]).save(folder / "blue.png")
    os.utime(folder / "captions.jsonl", ns=(1, 1))  # prepared anew: it is what tells that something changed
    after = captions_of(experiment_of(folder, table_of(server, samples=3)))
    assert len(server.seen) == 9 * 3 + 3
    assert after["blue.png"][0].startswith("a brown square")
    assert after["green.png"][0] == before["green.png"][0]
    caption(experiment_of(folder, table_of(server, samples=1, temperature=0.5)))
    assert len(server.seen) == 9 * 3 + 3 + 9  # another captioner, for all that is known


def test_answers_that_are_no_captions_are_counted_told_and_left_out(folder: Path, server: CaptionServer) -> None:
    odd = {"red": "", "green": "I don't see any image.", "blue": "I'm sorry, I cannot.", "yellow": None, "black": 7, "white": "square square square square"}
    server.says = lambda colour, seed: odd.get(colour, f"a {colour} square")
    said: list[str] = []
    pipeline = experiment_of(folder, table_of(server))
    pipeline.reporter.say = said.append  # type: ignore[method-assign]
    statuses = caption(pipeline).result["captioners"]["seer"]["statuses"]
    # red stands for two files; 7 is the text "7", which is a caption for all that words can tell
    assert statuses == {"written": 2 * 4, "empty": 2 * 3, "refusal": 2, "blind": 2, "broken": 2, "instruction": 0, "too_long": 0}
    (line,) = [one for one in said if "no captions" in one]
    assert line == ("captioner seer: 12 of 20 answers are no captions (empty 6, refusal 2, blind 2, broken 2) and are left out; 6 images have none by it")
    assert captions_of(pipeline) == {"grey.png": ["a grey square"], "pink.png": ["a pink square"], "orange.png": ["a orange square"], "black.png": ["7"]} | {}


def test_a_model_that_says_the_same_of_all_images_is_refused(folder: Path, server: CaptionServer) -> None:
    server.says = lambda colour, seed: "a picture"
    with pytest.raises(DataError, match=r'captioner seer: it says the same of all 9 images: "a picture"\. Does its model see images\?'):
        caption(experiment_of(folder, table_of(server)))


def test_two_captioners_write_one_after_the_other(folder: Path, server: CaptionServer, blip: Path) -> None:
    texts = captions_of(experiment_of(folder, table_of(server, samples=1), {"model": str(blip), "samples": 2, "answer_tokens": 6}))
    assert all(own[0].startswith("a ") and "number" in own[0] for own in texts.values())
    assert Counter(len(own) for own in texts.values())[3] >= 5


# Stops


def many(folder: Path, count: int) -> None:
    """A collection of that many images that differ."""
    folder.mkdir()
    generator = np.random.default_rng(3)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    lines = [json.dumps({"image": f"{number}.png", "captions": [f"picture {number}"], "split": "test" if number == 0 else "train"}) for number in range(count)]
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_a_server_that_fails_costs_the_shard_and_the_same_command_goes_on(tmp_path: Path, server: CaptionServer) -> None:
    many(tmp_path / "many", 2 * SHARD_IMAGES + 1)
    pipeline = experiment_of(tmp_path / "many", table_of(server, samples=1, server={"concurrency": 1}))
    asked = 0

    def failing(colour: str, seed: int) -> str:
        nonlocal asked
        asked += 1
        if asked > SHARD_IMAGES + 5:
            raise RuntimeError
        return f"number {seed}"

    server.says = failing
    with pytest.raises(RetrieverError, match=r"captioner seer: .* What is stored is kept: run the same command again"):
        caption(pipeline)
    (kept,) = (tmp_path / "work" / "squares" / "captioned").iterdir()
    before = read_all(kept, COLUMN)
    assert len(before) == SHARD_IMAGES
    server.seen.clear()
    server.says = lambda colour, seed: f"number {seed}"
    assert len(read_captions(caption(pipeline).folder)) == 2 * SHARD_IMAGES
    assert len(server.seen) == SHARD_IMAGES
    assert before.items() <= read_all(kept, COLUMN).items()


@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_it_had_written(tmp_path: Path, server: CaptionServer, forked_commands: ForkedCommands) -> None:
    many(tmp_path / "many", 2 * SHARD_IMAGES + 1)
    server.delay_seconds = 0.02
    server.says = lambda colour, seed: f"number {seed}"
    path = tmp_path / "many.toml"
    path.write_text(
        'name = "many"\ncollection = { path = "many" }\ncandidates = { sources = ["student"] }\nteacher = [{ kind = "embedding" }]\n'
        'student = { kind = "image_text", model = "none" }\n'
        f'[[captioner]]\nname = "seer"\nmodel = "m"\nsamples = 1\nserver = {{ url = "{server.url}", concurrency = 2 }}\n',
        encoding="utf-8",
    )
    process_id = forked_commands.start(*RETRIEVER, "caption", path, folder=tmp_path)
    while len(server.seen) <= SHARD_IMAGES + 4 and forked_commands.ended(process_id) is None:
        time.sleep(0.01)
    os.kill(process_id, signal.SIGKILL)
    assert forked_commands.wait(process_id).status == -signal.SIGKILL
    (kept,) = (tmp_path / "work" / "many" / "captioned").iterdir()
    before = read_all(kept, COLUMN)
    assert len(before) == SHARD_IMAGES
    server.seen.clear()
    done = command("caption", path, "--work", tmp_path / "work", "--json")
    assert done.status == 0
    assert json.loads(done.out)["captioners"]["seer"]["statuses"]["written"] == 2 * SHARD_IMAGES
    assert len(server.seen) == SHARD_IMAGES
    assert before.items() <= read_all(kept, COLUMN).items()
    assert [one.name for one in kept.iterdir() if one.suffix not in (".parquet", ".json")] == []


# The way into reinforced training


def test_reinforce_writes_the_captions_it_lacks_and_keeps_their_vectors_behind_those_of_a_file(
    folder: Path, server: CaptionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reinforce_step, "load_teachers", lambda pipeline, _=None: stub_teachers())
    listed = folder / "written.jsonl"
    listed.write_text(json.dumps({"image": "blue.png", "captions": ["by hand"]}), encoding="utf-8")
    own = {"augmentations": 1, "image_size": 8, "precision": "float32", "synthetic_captions": str(listed)}
    pipeline = experiment_of(folder, table_of(server), reinforce=own)
    found = prospect(pipeline)
    assert (found.images, found.captions, found.synthetic, found.to_write) == (10, 10, 1, 18)
    assert server.seen == []  # a plan asks nobody
    done = reinforce(pipeline)
    assert done.result == {"images": 10, "captions": 10, "synthetic": 21, "augmentations": 1, "made": 10}
    item = ReinforcedDataset(done.folder).of_document("blue.png")
    assert item.captions == ("it is blue",)
    assert item.synthetic == ("by hand", *captions_of(pipeline)["blue.png"])
    expected = stub_teachers().texts([*item.captions, *item.synthetic])
    np.testing.assert_allclose(item.texts, expected, atol=1e-6)
    assert reinforce(pipeline).done_now is False
    found = prospect(pipeline)
    assert (found.done, found.synthetic, found.to_write) == (10, 21, 0)
    documents = {document.full_text for document in pipeline.collection.documents()}
    assert not any("number" in text for text in documents)  # they reach nothing but reinforced training


def test_the_command_counts_before_it_asks_shows_examples_and_exports_what_a_file_may_name(folder: Path, server: CaptionServer, tmp_path: Path) -> None:
    path = tmp_path / "squares.toml"
    path.write_text(
        'name = "squares"\ncollection = { path = "squares" }\ncandidates = { sources = ["student"] }\nteacher = [{ kind = "embedding" }]\n'
        'student = { kind = "image_text", model = "none" }\n'
        f'[[captioner]]\nname = "seer"\nmodel = "m"\nsamples = 2\nserver = {{ url = "{server.url}" }}\n',
        encoding="utf-8",
    )
    work = ("--work", tmp_path / "work")
    said = command("caption", path, *work, "--dry-run")
    assert said.out.startswith("seer: 18 captions of 10 images to write, 0 done; about ")
    assert len(server.seen) == 4  # measured on four, of which nothing is kept
    said = command("caption", path, *work, "--export", tmp_path / "out.jsonl")
    assert said.out.startswith("seer: 10 images: written 20\n\n")
    assert "red.png\n  seer: a red square number " in said.out
    assert f"retriever reinforce {path}" in said.err
    exported = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert exported == [{"image": doc_id, "captions": texts} for doc_id, texts in captions_of(Pipeline(read_experiment(path), tmp_path / "work")).items()]
    assert command("caption", path, *work, "--dry-run", "--json").out.count('"done": 18') == 1
    table = pq.read_table(tmp_path / "work" / "squares" / "caption" / "captions.parquet")
    assert table.num_rows == 20
    said = command("caption", path, *work, "--set", "captioner=[]")
    assert said.error.startswith("the experiment file has no table [[captioner]]. Write one")


# The table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"temperature": 0}, r"captioner\.0: temperature = 0 writes the same caption 3 times\. Set samples = 1"),
        ({"server": {"url": "http://x/v1", "endpoint": "completions"}}, r'captioner\.0\.server: images go into chats alone; set endpoint = "chat"'),
        ({"server": {"url": "http://x/v1"}, "prompt": " "}, r"captioner\.0: a model on a server must be told what to do"),
        ({"sample": 2}, r'unknown key "captioner\.0\.sample", did you mean "samples"'),
        ({"model": ""}, r"captioner\.0\.model"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(folder: Path, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment_of(folder, {"model": "m", **table})


def test_two_captioners_of_one_name_are_refused_and_a_folder_beside_the_file_is_found(folder: Path, blip: Path) -> None:
    with pytest.raises(ConfigError, match=r'captioner: the name "m" is given twice; set captioner\.name'):
        experiment_of(folder, {"model": "m"}, {"model": "a/m"})
    values = {"name": "a", "collection": {"path": "x"}, "teacher": [{"kind": "lexical"}], "student": {"model": "m"}, "captioner": [{"model": "blip"}]}
    assert experiment_from(values, base=blip.parent).captioner[0].model == str(blip.resolve())
