"""Teaches a cross-encoder on qrels: positives against hard negatives, list by list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import LambdaLoss
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from retriever.collection import Collection
from retriever.errors import ConfigError, DataError
from retriever.models.names import ModelFolder
from retriever.runs import Run
from retriever.settings.teacher import TeachingSettings
from retriever.training.trainer import on_one_device, print_nothing, without_model_card
from retriever.training.watcher import last_whole_checkpoint
from retriever.types import Qrels, Query

SAVE_STEPS = 100
"""Steps between two checkpoints: what a stop costs at most."""


def teach_cross_encoder(
    start: ModelFolder, lists: Dataset, settings: TeachingSettings, folder: Path, seed: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Trains a cross-encoder from any encoder or cross-encoder and saves it as a stock folder in `folder`/model.

    The loss is sentence-transformers' LambdaLoss. A stop loses at most the last `SAVE_STEPS` steps.

    Args:
        start: the encoder it starts from; its head is new where it has none.
        lists: of `training_lists`.
        settings: of the teacher's `train` table.
        folder: for checkpoints and the model.
        seed: of head and dropout.
        progress: called after every step with its number and the number of all.

    Raises:
        ConfigError: the model is a classifier of several labels.
    """
    torch.manual_seed(seed)  # the head is made of this
    model = _with_one_output(start, settings.max_length)
    given = CrossEncoderTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=max(1, settings.batch_size // (1 + settings.negatives_per_positive)),
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,  # a share of all steps
        seed=seed,
        data_seed=seed,
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    last = last_whole_checkpoint(folder / "checkpoints")
    callbacks: list[TrainerCallback] = [_Told(progress)] if progress else []
    trainer = without_model_card(CrossEncoderTrainer)(
        model=model, args=on_one_device(given), train_dataset=lists, loss=LambdaLoss(model, mini_batch_size=settings.batch_size), callbacks=callbacks
    )
    print_nothing(trainer)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    model.save_pretrained(str(folder / "model"), create_model_card=False)


class _Told(TrainerCallback):
    """Tells how far it is."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After every step."""
        self.progress(state.global_step, state.max_steps)


def _with_one_output(start: ModelFolder, max_length: int) -> CrossEncoder:
    try:
        model: CrossEncoder = CrossEncoder(str(start.folder), num_labels=1, local_files_only=True, model_kwargs={"use_safetensors": True})
    except RuntimeError as error:  # transformers: the shapes of the head do not match
        raise ConfigError(f"teach: {start.name} has another number of labels than 1. Start from an encoder, or from a cross-encoder with one label") from error
    model.max_seq_length = min(max_length, getattr(model.config, "max_position_embeddings", max_length))
    return model


def training_lists(
    candidates: Run, queries: Mapping[str, Query], qrels: Qrels, collection: Collection, settings: TeachingSettings, generator: np.random.Generator
) -> Dataset:
    """Columns query, docs and labels: a positive first, then drawn candidates that are not judged relevant.

    Args:
        candidates: of the train queries; negatives are drawn from them.
        queries: the train queries.
        qrels: grades above 0 are positives.
        collection: where the documents are.
        settings: how many negatives a positive gets.
        generator: decides the draws.

    Raises:
        DataError: no train query has a positive and a negative.
    """
    lists: dict[str, list[object]] = {"query": [], "docs": [], "labels": []}
    for query_id, query in queries.items():
        grades = qrels.get(query_id, {})
        negatives = [doc_id for doc_id, _ in candidates[query_id] if grades.get(doc_id, 0) <= 0]
        for doc_id in [doc_id for doc_id, grade in grades.items() if grade > 0] if negatives else []:
            drawn = generator.choice(len(negatives), size=min(settings.negatives_per_positive, len(negatives)), replace=False)
            chosen = [doc_id, *(negatives[place] for place in drawn)]
            lists["query"].append(query.text)
            lists["docs"].append([document.full_text for document in collection.documents_by_row(collection.rows_of(chosen).tolist())])
            lists["labels"].append([1.0] + [0.0] * len(drawn))
    if not lists["query"]:
        raise DataError("teach: no train query has both a positive and a candidate that is not judged relevant. Check the train qrels with: retriever check")
    return Dataset.from_dict(lists)
