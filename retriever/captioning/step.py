"""The caption step: captions.parquet with what each captioner wrote of each train image, for reinforced training and nothing else.

The answers lie outside the step, in <experiment>/captioned/<fingerprint of the captioner>, by the SHA-256 of the image's file: a
changed image alone is asked about again, and equal files are asked about once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from retriever.captioning.answers import STATUSES, read_caption
from retriever.captioning.identity import identity_of, prompt_of
from retriever.captioning.model import open_captioner
from retriever.errors import ConfigError, DataError
from retriever.files import fingerprint, text_hash, write_atomic, write_text
from retriever.images.files import image_sha256
from retriever.reinforced.plan import wanted_images
from retriever.settings.captioner import CaptionerSettings
from retriever.steps.step import Done
from retriever.types import Usage
from retriever.workers.loader import engine_of
from retriever.writing.plans import KeyedPlan, plan_missing
from retriever.writing.shards import Answers, read_all, read_rows, write_samples, write_shard
from retriever.writing.writers import WriterIdentity

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline

SHARD_IMAGES = 32
"""Images of a shard: what a stop costs at most."""

TOLD_APART = 4
"""From so many images on a captioner that says the same of all of them is refused."""

CAPTIONS = "captions.parquet"
COLUMN = "image"
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("doc_id", "sha256")),
        ("variant_id", pa.uint64()),  # a text hash, as in the store of scores
        ("captioner", pa.string()),
        ("sample", pa.int32()),
        *((name, pa.string()) for name in ("kind", "text", "raw", "status", "generator", "parameters")),
        ("seed", pa.int64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Prospect:
    """What one captioner would do: images, captions in all, those that are written, and seconds for the others."""

    captioner: str
    images: int
    captions: int
    done: int
    seconds: float


def caption(pipeline: Pipeline) -> Done:
    """The finished step: captions.parquet, a row for each train image, captioner and sample.

    Raises:
        ConfigError: the file has no [[captioner]], or there is no such model.
        DataError: there are no train images, one cannot be read, or a captioner says the same of all.
    """
    tables, seed = _tables(pipeline), pipeline.experiment.seed
    identities = {one.label: identity_of(one, seed) for one in tables}
    images = train_images(pipeline)
    inputs = {"images": fingerprint([[doc_id, image_sha256(path)] for doc_id, path in images.items()])}
    inputs |= {f"captioner {label}": one.fingerprint for label, one in identities.items()}

    def work(folder: Path) -> dict[str, Any]:
        rows, told = [], {}
        for one in tables:
            own, told[one.label] = _caption(pipeline, one, identities[one.label], images)
            rows += own
        write_atomic(folder / CAPTIONS, lambda temporary: pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary))
        return {"images": len(images), "captioners": told}

    return pipeline.step("caption", inputs, {"samples": {one.label: one.samples for one in tables}}, work)


def captions_of(pipeline: Pipeline) -> dict[str, list[str]]:
    """Image id -> what the file's captioners wrote of it; written now unless it lies there. Empty for a file without captioners."""
    if not pipeline.experiment.captioner:
        return {}
    _, rows = pipeline.open_step(lambda: caption(pipeline), read_captions)
    return texts_of(rows)


def captions_so_far(pipeline: Pipeline) -> tuple[dict[str, list[str]], int]:
    """The same of those that lie there, nobody being asked, and how many are still to be written."""
    images = train_images(pipeline) if pipeline.experiment.captioner else {}
    rows: list[dict[str, Any]] = []
    pending = 0
    for one in pipeline.experiment.captioner:
        identity = identity_of(one, pipeline.experiment.seed)
        answers = read_all(_folder(pipeline, identity), COLUMN)
        pending += len(_plan(images, one, answers))
        rows += _rows(images, one, identity, answers)
    return texts_of(rows), pending


def read_captions(folder: Path) -> list[dict[str, Any]]:
    """The rows of the captions.parquet that the step left.

    Raises:
        DataError: the file is damaged.
    """
    return read_rows(folder / CAPTIONS, SCHEMA)


def texts_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Image id -> its captions, each once: those of the first captioner first; no id for an image without any."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["status"] == "written":
            found.setdefault(row["doc_id"], {})[row["text"]] = None
    return {doc_id: list(texts) for doc_id, texts in found.items()}


def write_caption_file(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the captions as JSON lines, as `reinforce.synthetic_captions` reads them."""
    lines = (json.dumps({"image": doc_id, "captions": texts}, ensure_ascii=False) + "\n" for doc_id, texts in texts_of(rows).items())
    write_text(path, "".join(lines))


def estimate(pipeline: Pipeline, sample_images: int = 4) -> list[Prospect]:
    """What each captioner would do, its speed measured on a few of the images that are to be captioned; nothing is stored."""
    found, images = [], train_images(pipeline)
    for one in _tables(pipeline):
        identity = identity_of(one, pipeline.experiment.seed)
        plan = _plan(images, one, read_all(_folder(pipeline, identity), COLUMN))
        captions = len(_by_content(images)) * one.samples
        seconds = _seconds(one, pipeline.experiment.seed, plan, sample_images) if len(plan) else 0.0
        found.append(Prospect(one.label, len(images), captions, captions - len(plan), seconds))
    return found


def train_images(pipeline: Pipeline) -> dict[str, Path]:
    """Id -> file of the images that a reinforced dataset holds: those of the train split with a caption.

    Raises:
        DataError: there are none.
    """
    wanted = wanted_images(pipeline.collection, pipeline.queries("train"), pipeline.qrels("train"), None)
    return {image.doc_id: image.image for image in wanted}


def _seconds(settings: CaptionerSettings, seed: int, plan: KeyedPlan[Path], sample_images: int) -> float:
    captioner = open_captioner(settings, seed)
    keys = [key for _, keys in plan.wanted.values() for key in keys]
    sample = keys[:: max(1, len(keys) // sample_images)][:sample_images]
    start = time.perf_counter()
    captioner.write([plan.things[key] for key in sample], 0)
    return (time.perf_counter() - start) * len(keys) / len(sample)


def _tables(pipeline: Pipeline) -> tuple[CaptionerSettings, ...]:
    tables: tuple[CaptionerSettings, ...] = pipeline.experiment.captioner
    if not tables:
        raise ConfigError(
            'the experiment file has no table [[captioner]]. Write one, with a model, for example: model = "Salesforce/blip-image-captioning-base"'
        )
    return tables


def _by_content(images: Mapping[str, Path]) -> dict[str, Path]:
    return {image_sha256(path): path for path in images.values()}


def _plan(images: Mapping[str, Path], settings: CaptionerSettings, found: Answers) -> KeyedPlan[Path]:
    return plan_missing(_by_content(images), settings.samples, found, SHARD_IMAGES, COLUMN)


def _folder(pipeline: Pipeline, identity: WriterIdentity) -> Path:
    """Beside the encodings, which the folds of an experiment share too."""
    return pipeline.encodings_folder.with_name("captioned") / identity.fingerprint


def _caption(
    pipeline: Pipeline, settings: CaptionerSettings, identity: WriterIdentity, images: Mapping[str, Path]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of one captioner, and what the manifest remembers of it."""
    folder, used = _folder(pipeline, identity), Usage()
    answers = read_all(folder, COLUMN)
    plan = _plan(images, settings, answers)

    def tell(usage: Usage) -> None:
        nonlocal used
        used = usage
        pipeline.reporter.update(str(usage))

    if len(plan):
        load: Callable[[], Any] = functools.partial(open_captioner, settings, pipeline.experiment.seed)
        by = engine_of(pipeline.experiment.scoring, load, write_shard, f"captioner {settings.label}")
        with pipeline.reporter.bar(f"captioning images ({settings.label})", len(plan)) as advance, by as engine:
            answers = answers | write_samples(plan, load(), folder, advance, tell, engine)
    rows = list(_rows(images, settings, identity, answers))
    _refuse_the_same(settings, rows)
    counts = Counter(row["status"] for row in rows)
    _tell_faults(pipeline, settings, rows, counts)
    return rows, {"statuses": {status: counts[status] for status in STATUSES}, "usage": dataclasses.asdict(used)}


def _rows(images: Mapping[str, Path], settings: CaptionerSettings, identity: WriterIdentity, answers: Answers) -> Iterator[dict[str, Any]]:
    """A row for each image and sample that was answered, image by image."""
    shared = {"captioner": settings.label, "kind": "synthetic_caption", "generator": identity.fingerprint, "seed": identity.seed}
    shared |= {"parameters": json.dumps(dataclasses.asdict(identity))}
    for doc_id, path in images.items():
        key = image_sha256(path)
        for sample in range(settings.samples):
            if (raw := answers.get((key, sample))) is not None:
                text, status = read_caption(raw, prompt_of(settings), settings.answer_tokens)
                read = {"text": text, "raw": raw, "status": status}
                yield {**shared, **read, "doc_id": doc_id, "sha256": key, "variant_id": text_hash(text), "sample": sample + 1}


def _refuse_the_same(settings: CaptionerSettings, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses a model that does not see: one that says the same of every image.

    Raises:
        DataError: it does.
    """
    said = {row["sha256"]: row["text"] for row in rows if row["status"] == "written"}
    if len(said) >= TOLD_APART and len({row["text"] for row in rows if row["status"] == "written"}) == 1:
        raise DataError(
            f'captioner {settings.label}: it says the same of all {len(said):,} images: "{next(iter(said.values())):.60}". '
            "Does its model see images? Look at the prompt, or take another model"
        )


def _tell_faults(pipeline: Pipeline, settings: CaptionerSettings, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> None:
    """Says how many answers were no captions, and how many images have none."""
    faults = {status: counts[status] for status in STATUSES if status != "written" and counts[status]}
    if faults:
        listed = ", ".join(f"{status} {count:,}" for status, count in faults.items())
        bare = len({row["doc_id"] for row in rows} - {row["doc_id"] for row in rows if row["status"] == "written"})
        pipeline.reporter.say(
            f"captioner {settings.label}: {sum(faults.values()):,} of {len(rows):,} answers are no captions ({listed}) and are left out; "
            f"{bare:,} images have none by it"
        )
