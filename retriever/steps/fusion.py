"""Fusion teachers with a `train` table: made of two towers and taught on the train qrels, each as a step of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from retriever.files import fingerprint, write_json
from retriever.models.fusion import FusionModel, FusionShape, ImageTower, TextTower
from retriever.models.names import ModelFolder, find_model
from retriever.models.vision import find_vision_model
from retriever.progress import bar_of_steps
from retriever.settings.teacher import CrossFittedSettings, FusionSettings, FusionTeachingSettings
from retriever.steps.cross_fitting import cross_fitted, parts_to_score, teach_without_each
from retriever.training.fusion import matched_pairs, teach_fusion
from retriever.workers.processes import refuse_several

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


def taught_fusion(pipeline: Pipeline, settings: FusionSettings, teaching: FusionTeachingSettings) -> FusionSettings | CrossFittedSettings:
    """The settings of the taught model, or of several where the table asks for folds.

    Raises:
        ConfigError: a tower cannot be found, is none, or does not read what it is given.
        DataError: the train qrels bring no images and texts together, or an image cannot be read.
    """
    where = f"teacher {settings.label}"
    image = find_vision_model(str(settings.image_model), settings.revision, f"{where}: image_model")
    text = find_model(str(settings.text_model), settings.revision, f"{where}: text_model")
    queries = pipeline.queries("train", settings.reads)
    inputs = {"image_model": image.identity, "text_model": text.identity, "collection": pipeline.collection.fingerprint}
    inputs |= {"judgements": pipeline.judgements, "queries": fingerprint(pipeline.held_out)}
    inputs |= {"reads": fingerprint({query_id: query.text for query_id, query in queries.items()})} if settings.reads else {}

    parts = parts_to_score(pipeline, settings.label, teaching.folds)

    def one_model(label: str, unseen: Sequence[str], folder: Path) -> dict[str, Any]:
        """Leaves a model in `folder / "model"`, which has not seen some of the train queries, their images and their texts."""
        lessons, held = pipeline.held_out
        pairs, others = matched_pairs(queries, lessons, held, pipeline.qrels("train"), pipeline.collection, unseen)
        model = new_fusion_model(image, text, teaching, pipeline.experiment.seed, where)
        with bar_of_steps(pipeline.reporter, f"teaching {label}") as progress:
            curve = teach_fusion(model, pairs, others, teaching, folder, pipeline.experiment.seed, progress)
        write_json(folder / "curve.json", curve)
        return {"pairs": len(pairs.pairs), "images": len(pairs.images), "texts": len(pairs.texts)}

    def work(folder: Path) -> dict[str, Any]:
        refuse_several(f"teaching {settings.label}", "retriever teach")
        if not parts:
            return one_model(settings.label, (), folder)
        teach_without_each(parts, folder, lambda number, unseen, begun: one_model(f"{settings.label}, fold {number}", unseen, begun))
        return {"folds": [len(part) for part in parts]}

    done = pipeline.step(f"teach-{settings.label}", inputs, teaching.model_dump(mode="json", exclude=None if parts else {"folds"}), work)
    ready = {"name": settings.label, "model": str(done.folder / "model"), "revision": None, "image_model": None, "text_model": None, "train": None}
    taught = settings.model_copy(update=ready)
    return cross_fitted(taught, parts, done.folder) if parts else taught


def new_fusion_model(image: ModelFolder, text: ModelFolder, teaching: FusionTeachingSettings, seed: int, where: str) -> FusionModel:
    """A fusion model of two towers, its other layers new: the same seed gives the same.

    Raises:
        ConfigError: a tower is none, or does not read what it is given.
    """
    shape = FusionShape(**teaching.model_dump(include={"width", "layers", "heads", "dimensions", "dropout", "max_length"}))
    towers = ImageTower.open(image.folder, teaching.image_size, where), TextTower.open(text.folder, teaching.max_length, where)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FusionModel(*towers, shape)
