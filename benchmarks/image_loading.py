"""Whether images keep up with training, and whether augmented ones are made again as the teachers saw them.

    python benchmarks/image_loading.py                          # about 5 minutes on 2 quiet cores
    python benchmarks/image_loading.py --collection FOLDER      # a folder of photographs with captions.jsonl

A student of two towers is trained on some train images of the collection by the real training loop, with and without a reinforced dataset
(`--augmentations` an image), with towers that learn and with frozen ones. Printed is the share of the time of training in which a step
waits for its batch: files read, decoded, augmented, resized, and what else is done for a batch. What a frozen tower computes is no
waiting: images go through it once, which takes the place of steps; the first epoch, in which that happens, and the others stand apart. The same
without reading ahead shows what that brings. Validation and checkpoints count on neither side. The bar is under 10 %.

Then the pixels: of all augmented images the SHA-256 of what the teacher was given when it made its vectors, against that of the image made
again from the stored parameters by another process. The bar is that all are equal. Keeps benchmarks/results/image_loading.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from record import MACHINE, keep
from students import EXAMPLES

from retriever.config import read_experiment
from retriever.images.augmentation import apply
from retriever.images.reading import read_image
from retriever.pipeline import Pipeline
from retriever.progress import silence_libraries
from retriever.reinforced import step as reinforce_step
from retriever.reinforced.shards import ReinforcedDataset
from retriever.reinforced.step import reinforce
from retriever.reinforced.teachers import TeacherModels, load_teachers
from retriever.runs import Run
from retriever.scores.store import TeacherScores
from retriever.settings.training import TrainingSettings
from retriever.training.ahead import ReadAhead
from retriever.training.batches import Batcher
from retriever.training.reinforced_batches import ReinforcedBatcher, make_reinforced_samples
from retriever.training.samples import make_samples
from retriever.training.towers import FrozenTowers
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision, Watcher

EMOJI = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "emoji-noto"
BAR = 0.10
TOWERS = 'kind="image_text", image_model="efficientnet-lite0", text_model="sentence-transformers/all-MiniLM-L6-v2", dimensions=256'
BATCH, CANDIDATES, TEST_IMAGES = 32, 12, 8
LOSSES = {"plain": {"contrastive": 1.0, "kl_divergence": 1.0}, "reinforced": {"reinforced": 0.75, "contrastive": 0.25}}

Interval = tuple[float, float]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, default=EMOJI, help="a folder with captions.jsonl")
    parser.add_argument("--images", type=int, default=256, help="of the train split")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--augmentations", type=int, default=4)
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    parser.add_argument("--remake", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.remake:
        print(json.dumps(made_again(arguments.remake)))
        return
    silence_libraries()
    with tempfile.TemporaryDirectory() as work:
        folder = some_images(arguments.collection, arguments.images, Path(work) / "collection")
        measured = Measured(Path(work), folder, arguments.image_size, arguments.augmentations)
        pixels = same_pixels(measured)
        print(f"\n{pixels['equal']:,} of {pixels['augmented']:,} augmented images have the SHA-256 of what the teacher saw; the bar is all of them\n")
        rows = {f"{way}, {towers}": measured.shares(way, frozen) for way in LOSSES for towers, frozen in (("towers learn", False), ("towers frozen", True))}
    print(table(rows))
    if not arguments.no_results:
        about = {"machine": MACHINE, "collection": arguments.collection.name, "images": arguments.images, "image_size": arguments.image_size}
        keep("image_loading", {arguments.collection.name: {**about, "waiting": rows, "pixels": pixels}})


def some_images(collection: Path, count: int, target: Path) -> Path:
    """A collection of the first train images and a few test images of another."""
    target.mkdir(parents=True)
    chosen, left = [], {"train": count, "test": TEST_IMAGES}
    for line in (collection / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        split = json.loads(line).get("split", "train")
        if left.get(split, 0):
            left[split] -= 1
            chosen.append(line)
            name = json.loads(line)["image"]
            path = next(path for path in (collection / name, collection / "images" / name) if path.exists())
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
    (target / "captions.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return target


class Measured:
    """Experiments on some images, and what their trainings wait for."""

    def __init__(self, work: Path, folder: Path, image_size: int, augmentations: int) -> None:
        self.work = work
        self.folder = folder
        self.image_size = image_size
        self.augmentations = augmentations
        self.reinforced: Path | None = None

    def pipeline(self, frozen: bool = False) -> Pipeline:
        """The example with these images; its start is the teacher of the reinforced dataset, for what it says of them takes no time from training."""
        stays = ", frozen_image=true, frozen_text=true" if frozen else ""
        settings = [
            f'name="{"frozen" if frozen else "learning"}"',
            f'collection.path="{self.folder}"',
            f"student={{{TOWERS}, image_size={self.image_size}{stays}}}",
            'teacher=[{kind="embedding", model="student", logit_scale=20.0}]',
            f"reinforce={{augmentations={self.augmentations}, crop_scale=[0.3, 1.0]}}",
        ]
        return Pipeline(read_experiment(EXAMPLES / "emoji.toml", settings), self.work)

    def shares(self, way: str, frozen: bool) -> dict[str, float]:
        """Shares of waiting of a training with and without reading ahead, and how many images a second it takes."""
        with_it = self.trained(way, frozen)
        with patch.object(ReadAhead, "begin", lambda *_: None):
            without = self.trained(way, frozen)
        return {**with_it.shares(), **{f"{name}, without reading ahead": value for name, value in without.shares().items()}}

    def trained(self, way: str, frozen: bool) -> Clock:
        """The clock of one training; more epochs where they are short."""
        pipeline = self.pipeline(frozen)
        epochs = (3 if frozen else 1) * (4 if way == "reinforced" else 1)
        settings = TrainingSettings(
            losses=LOSSES[way], epochs=epochs, batch_size=BATCH, documents_per_query=4, learning_rate=1e-4, learn_scale=True, checkpoint_steps=10**6
        )
        samples: Any = self.reinforced_samples(pipeline, epochs) if way == "reinforced" else plain_samples(pipeline, settings)
        clock = Clock(-(-len(samples) // BATCH) // epochs)
        with tempfile.TemporaryDirectory() as folder, clock.running():
            train_student(pipeline.start.model, samples, pipeline.collection, settings, Path(folder), 1, Supervision(lambda: {"validation": 0.0}))
        return clock

    def reinforced_samples(self, pipeline: Pipeline, epochs: int) -> Any:
        """Draws of the reinforced dataset."""
        dataset = ReinforcedDataset(self.reinforced or Path())
        return make_reinforced_samples(dataset, pipeline.queries("train"), pipeline.qrels("train"), [], pipeline.collection, epochs, np.random.default_rng(1))


def plain_samples(pipeline: Pipeline, settings: TrainingSettings) -> Any:
    """Lists in both directions, with scores of chance."""
    queries, qrels, generator = pipeline.queries("train"), pipeline.qrels("train"), np.random.default_rng(1)
    documents = list(pipeline.collection.documents())
    of_kind = {image: [one.doc_id for one in documents if (one.image is not None) == image] for image in (True, False)}
    scores = {
        query_id: {str(one): float(generator.normal()) for one in generator.choice(of_kind[query.image is None], CANDIDATES, replace=False)}
        | dict.fromkeys(qrels[query_id], 5.0)
        for query_id, query in queries.items()
    }
    target = TeacherScores(Run.from_dict("chance", scores), "logit", "0" * 16, "chance")
    return make_samples(target, queries, qrels, pipeline.collection, settings, generator)


@dataclasses.dataclass
class Clock:
    """When steps waited, computed, and towers that do not learn computed.

    Attributes:
        per_epoch: steps of the first epoch, which stands apart.
    """

    per_epoch: int
    waited: list[Interval] = dataclasses.field(default_factory=list)
    computed: list[Interval] = dataclasses.field(default_factory=list)
    towers: list[Interval] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Takes the time of every batch, step and pass through a frozen tower within the block."""
        begun: list[float] = []

        def begin(*_: Any, **__: Any) -> None:
            begun.append(time.perf_counter())

        ended: Any = Watcher.on_step_end

        def end(watcher: Any, *arguments: Any, **named: Any) -> None:
            self.computed.append((begun.pop(), time.perf_counter()))
            ended(watcher, *arguments, **named)

        with contextlib.ExitStack() as stack:
            for kind in (Batcher, ReinforcedBatcher):
                stack.enter_context(patch.object(kind, "__call__", timed(kind.__call__, self.waited)))
            stack.enter_context(patch.object(FrozenTowers, "_made", timed(FrozenTowers._made, self.towers)))
            stack.enter_context(patch.object(Watcher, "on_step_begin", begin))
            stack.enter_context(patch.object(Watcher, "on_step_end", end))
            yield

    def shares(self) -> dict[str, float]:
        """The share of waiting in the first epoch and in the others, and of all."""
        found = {"all": self._share(0, len(self.computed))}
        if self.towers:
            found |= {"first epoch": self._share(0, self.per_epoch), "other epochs": self._share(self.per_epoch, len(self.computed))}
        return found

    def _share(self, first: int, end: int) -> float:
        """Waiting as a share of waiting, steps and passes through frozen towers for which a step waited."""
        inside = [(max(a, c), min(b, d)) for a, b in self.waited[first:end] for c, d in self.towers]
        of_towers = sum(b - a for a, b in inside if a < b)
        whole = sum(b - a for a, b in self.waited[first:end])
        return (whole - of_towers) / (whole + sum(b - a for a, b in self.computed[first:end]))


def timed(function: Callable[..., Any], intervals: list[Interval]) -> Callable[..., Any]:
    """The same function, whose calls are noted."""

    def noted(*arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            intervals.append((begun, time.perf_counter()))

    return noted


def same_pixels(measured: Measured) -> dict[str, int]:
    """How many augmented images another process makes again as the teacher was given them."""
    pipeline = measured.pipeline()
    seen: list[str] = []
    loaded = load_teachers(pipeline)
    recording = TeacherModels(loaded.teachers, tuple(Recorder(model, seen) for model in loaded.models))
    with patch.object(reinforce_step, "load_teachers", lambda *_: recording):
        measured.reinforced = reinforce(pipeline).folder
    command = [sys.executable, str(Path(__file__).resolve()), "--remake", str(measured.reinforced)]
    remade = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if len(remade) != len(seen):
        raise RuntimeError(f"the teacher was given {len(seen)} images, and {len(remade)} were made again")
    return {"augmented": len(seen), "equal": sum(one == other for one, other in zip(seen, remade, strict=True))}


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A teacher that notes which pixels it is given."""

    model: Any
    seen: list[str]

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """[n, D]."""
        self.seen.extend(sha256_of(image) for image in images)
        found: NDArray[np.float32] = self.model.images(images)
        return found

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, D]."""
        found: NDArray[np.float32] = self.model.texts(texts)
        return found


def made_again(folder: Path) -> list[str]:
    """The SHA-256 of all augmented images of a dataset, from their stored parameters, in the order in which they were made."""
    dataset = ReinforcedDataset(folder)
    found: list[str] = []
    for uid in dataset.uids:
        image = read_image(dataset.image_path(uid) or Path())
        found += [sha256_of(apply(image, augmentation)) for augmentation in dataset.item(uid).augmentations]
    return found


def sha256_of(image: Image.Image) -> str:
    """Of mode, size and pixels."""
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table of shares beside the bar."""
    lines = ["| waiting for data | with reading ahead | without | bar |", "|---|---|---|---|"]
    for name, shares in rows.items():
        for what in ("all", "first epoch", "other epochs"):
            if what in shares:
                told = f"{name}, {what}" if len(shares) > 2 else name
                verdict = "met" if shares[what] < BAR else "not met"
                lines.append(f"| {told} | {shares[what]:.1%} | {shares[f'{what}, without reading ahead']:.1%} | under {BAR:.0%}: {verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
