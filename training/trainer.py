"""The training loop of sentence-transformers with our data, losses, validation and resume around it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.base.modules import Dense
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from retriever.collection import Collection
from retriever.errors import ConfigError, MissingExtraError
from retriever.models.names import check_length
from retriever.models.routes import freeze_documents, readers_of
from retriever.models.splade import without_logits
from retriever.settings.training import TrainingSettings
from retriever.training import parallel
from retriever.training.adapter import DistillationLoss
from retriever.training.ahead import ReadAhead
from retriever.training.batches import IMAGES, Batcher, as_dataset
from retriever.training.documents import check_stored
from retriever.training.dropout import cheap_dropout
from retriever.training.families import family_of
from retriever.training.frozen import frozen
from retriever.training.lora import Adapters, with_adapters
from retriever.training.memory import explain_memory, training_advice
from retriever.training.momentum import MomentumQueue, check_queue, with_queue
from retriever.training.pairs import PairBatcher, PairLoss
from retriever.training.reinforced_batches import ReinforcedBatcher, ReinforcedSamples
from retriever.training.reinforced_terms import ReinforcedLoss
from retriever.training.samples import TrainingSamples
from retriever.training.scale import LearnedScale
from retriever.training.states import FrozenTexts
from retriever.training.towers import FrozenTowers
from retriever.training.watcher import Supervision, Watcher, last_whole_checkpoint, step_of


@dataclasses.dataclass(frozen=True)
class Beside:
    """What stands beside the model: for parts that do not learn, what they made of texts and images; a queue of past documents; images read ahead."""

    states: FrozenTexts | None
    towers: FrozenTowers
    queue: MomentumQueue | None = None
    ahead: ReadAhead | None = None


FROZEN = "frozen"
"""The folder of the states of texts after the frozen layers; of no use when training is done."""


def train_student(
    model: Any,
    samples: TrainingSamples,
    collection: Collection,
    settings: TrainingSettings,
    folder: Path,
    seed: int,
    supervision: Supervision,
) -> list[dict[str, float]]:
    """Trains the model in place, ends with the checkpoint that validates best, and returns the curve.

    Run again with the same arguments after a stop, it continues from the last whole checkpoint in `folder`. Where torch has a
    process group, all its processes must call this together: the first one validates, writes and has the best model afterwards.

    Args:
        model: the starting checkpoint, a model of sentence-transformers; afterwards the best one.
        samples: S lists in training order; with encodings of the documents, only the encoding of queries learns.
        collection: where their documents are.
        settings: of the experiment file.
        folder: for checkpoints, the best model so far and the curve.
        seed: of dropout.
        supervision: what measures the model, watches the loop and steers it.

    Returns:
        One mapping per logged point: step, loss or validation, and each loss term.

    Raises:
        ConfigError: the model cannot read texts of `settings.max_length`, or a setting does not fit the model, the device or
            the number of processes.
        DataError: the loss is no longer finite.
        RetrieverError: memory will not do; the message names settings that help.
    """
    check_training(settings)
    check_queue(model, settings)
    if settings.queue and parallel.processes().count > 1:
        raise ConfigError("training.queue: each process would keep a queue of its own part. Train with one process, or leave training.queue out")
    if samples.encodings is not None:
        check_stored(samples.encodings, settings)
        freeze_documents(model)
    check_sizes(model, settings)
    parallel.check_batch_size(settings.batch_size, parallel.processes().count)
    check_length(settings.max_length, getattr(model, "config", None), "training.max_length")
    with _texts_cut(model, settings.max_length):
        return _train(model, samples, collection, settings, folder, seed, supervision)


def check_sizes(model: Any, settings: TrainingSettings) -> None:
    """Sees to it that vectors are as long as the sizes of a Matryoshka student, of which the largest is the whole.

    Raises:
        ConfigError: they are shorter.
    """
    if not settings.matryoshka:
        return
    cut, model.truncate_dim = model.truncate_dim, None
    try:
        width = model.get_embedding_dimension()
    finally:
        model.truncate_dim = cut
    if max(settings.matryoshka) > width:
        raise ConfigError(f"training.matryoshka: {max(settings.matryoshka)}, but the student's vectors have {width} dimensions. Give {width} at most")


@contextlib.contextmanager
def _texts_cut(model: Any, max_length: int | None) -> Iterator[None]:
    """Lets the model read so many tokens of a text at most, and all that it can afterwards."""
    lengths: dict[Any, Any] = {reader: getattr(reader, "max_seq_length", None) for reader in readers_of(model)}
    cut = {reader: length for reader, length in lengths.items() if max_length and length and length != math.inf}  # a table of vectors reads all at no cost
    for reader, length in cut.items():
        reader.max_seq_length = min(max_length or length, length)
    try:
        yield
    finally:
        for reader, length in cut.items():
            reader.max_seq_length = length


def _train(
    model: Any, samples: TrainingSamples, collection: Collection, settings: TrainingSettings, folder: Path, seed: int, supervision: Supervision
) -> list[dict[str, float]]:
    """The loop itself, from the last whole checkpoint to the best model."""
    group = parallel.processes()
    adapters = Adapters(model, settings.lora, seed) if settings.lora else None
    if settings.learn_scale and isinstance(model, CrossEncoder):
        raise ConfigError("training.learn_scale: a cross_encoder gives logits, whose scale it learns. Leave training.learn_scale out")
    scale = LearnedScale(settings.student_scale) if settings.learn_scale else None
    watcher = Watcher(folder, supervision, _validation_steps(settings, len(samples)), settings.patience, adapters, scale)
    towers = FrozenTowers(model)
    newest = last_whole_checkpoint(folder / "checkpoints") if group.first else None
    last = Path(name) if (name := parallel.shared(newest and str(newest))) else None
    with (
        contextlib.closing(watcher),
        towers.attached(),
        ThreadPoolExecutor(1, "images") as reading,
        _states(model, samples, collection, settings, folder, watcher) as states,
    ):
        if group.first:
            watcher.resume(model, last, settings.tensorboard)
        if scale:
            scale.restore(parallel.shared(scale.state()))
        queue = MomentumQueue(model, settings.queue) if settings.queue else None
        if queue and last:
            queue.load(last)
        trainer = _trainer(model, samples, collection, settings, folder, seed, watcher, Beside(states, towers, queue, ReadAhead(reading, settings.batch_size)))
        if parallel.shared(watcher.spent):  # a stop came between the last step and the end
            watcher.tell(step_of(last), -(-len(samples) // settings.batch_size))
        else:
            reads = {"max_length": int(model.max_seq_length)} if isinstance(model.max_seq_length, int) else {}
            with (
                explain_memory("training", training_advice(settings, group.count, isinstance(model, CrossEncoder), reads)),
                parallel.no_warning_of_buffers(),
                cheap_dropout() if model.device.type == "cpu" else contextlib.nullcontext(),
                without_logits(model),
            ):
                trainer.train(resume_from_checkpoint=str(last) if last else None)
        parallel.shared(None)  # from here on the first process may remove what others wrote
    if group.first:
        watcher.load_best(model)
    if adapters:
        adapters.merge()
    return watcher.curve


def check_training(settings: TrainingSettings) -> None:
    """Sees to it that what the settings ask for is there: a device, packages.

    Raises:
        ConfigError: the device cannot do it.
        MissingExtraError: a package is missing.
    """
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError('training.precision: "fp16" needs a CUDA GPU, and there is none here. Use "auto", "fp32" or "bf16"')
    for package, extra, asked in (("peft", "lora", settings.lora), ("tensorboard", "tensorboard", settings.tensorboard)):
        if asked and not find_spec(package):
            raise MissingExtraError(package, extra)


@contextlib.contextmanager
def _states(
    model: Any, samples: TrainingSamples, collection: Collection, settings: TrainingSettings, folder: Path, watcher: Watcher
) -> Iterator[FrozenTexts | None]:
    """The states of all texts, where the experiment freezes layers; the first process writes them before others open them."""
    if settings.frozen_layers is None:
        yield None
        return
    if isinstance(model, CrossEncoder):
        raise ConfigError("training.frozen_layers: a cross_encoder reads query and document together, so no text has states of its own. Leave it out")
    first = parallel.processes().first
    if not first:
        parallel.shared(None)
    with frozen(Batcher(model, samples, collection, settings.max_length), settings.frozen_layers, folder / FROZEN, watcher.tell_cached) as states:
        if first:
            parallel.shared(None)
        yield states


def _trainer(
    model: Any,
    samples: TrainingSamples,
    collection: Collection,
    settings: TrainingSettings,
    folder: Path,
    seed: int,
    watcher: Watcher,
    beside: Beside,
) -> Any:
    """sentence-transformers' trainer of the model's kind, for one process or for one of several."""
    model.model_card_data.generate_widget_examples = False  # it would encode documents at every checkpoint
    reranks = isinstance(model, CrossEncoder)
    kind, arguments = (CrossEncoderTrainer, CrossEncoderTrainingArguments) if reranks else family_of(model).trainers
    kind = without_model_card(kind)
    kind = with_adapters(kind, watcher.adapters) if watcher.adapters else kind
    kind = with_queue(kind, beside.queue) if beside.queue else kind
    read = (model, samples, collection, settings.max_length)
    together = IMAGES if settings.gradient_cache else None
    batches, losses = (ReinforcedBatcher, ReinforcedLoss) if isinstance(samples, ReinforcedSamples) else (Batcher, DistillationLoss)
    batcher: Any = PairBatcher(*read) if reranks else batches(*read, beside.states, beside.towers, together, beside.ahead)
    loss: torch.nn.Module = PairLoss(model, samples, settings) if reranks else losses(model, samples, settings, watcher.sparsity, watcher.scale, beside.queue)
    given = _arguments(settings, folder, seed, len(samples))
    if settings.projection_learning_rate:
        given |= {"learning_rate_mapping": dict.fromkeys(_projections(loss), settings.projection_learning_rate)}
    if watcher.sparsity:  # at a rate of nearly 0, weights of the regularisers could move nothing any more
        given |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.3}}
    dataset = as_dataset(samples)
    callbacks: list[TrainerCallback] = [watcher]
    if (group := parallel.processes()).count > 1:
        batcher = parallel.PartBatcher(batcher, len(samples), settings.batch_size, group)
        kind, dataset = parallel.with_averaged_gradients(kind), batcher.dataset()
        loss = loss if isinstance(loss, ReinforcedLoss) else parallel.PartLoss(loss)  # its terms are those of the whole batch in every process
        given |= {"per_device_train_batch_size": 1, "dataloader_drop_last": True}  # a row of this data set is a part of a batch; none is left over
        callbacks = [watcher if group.first else parallel.Companion(watcher.steps), *([parallel.SharedSparsity(watcher.sparsity)] if watcher.sparsity else [])]
    trainer = kind(model=model, args=on_one_device(arguments(**given)), train_dataset=dataset, data_collator=batcher, loss=loss, callbacks=callbacks)
    print_nothing(trainer)
    return trainer


def _projections(loss: torch.nn.Module) -> list[str]:
    """Patterns of the names of weights that have a learning rate of their own: of linear layers after transformers, and of a learned scale."""
    heads = tuple(f"{name}." for name, module in loss.named_modules() if isinstance(module, Dense | LearnedScale))
    names = [name for name, weight in loss.named_parameters() if weight.requires_grad and name.startswith(heads)]
    if not names:
        raise ConfigError("training.projection_learning_rate: the student has no linear layer after its transformer, and no scale learns. Leave it out")
    return [rf"(^|\.){re.escape(name)}$" for name in names]


def without_model_card(trainer: type[Any]) -> type[Any]:
    """A trainer that makes no model card: ours is written after the evaluation.

    The stock one reads a thousand samples and draws a bar at the beginning, and at every checkpoint it compiles a template, which takes longer
    than to write a small model. Nor do checkpoints hold the pickled arguments, which resuming does not read.
    """

    def save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)

    return type(trainer.__name__, (trainer,), {"add_model_card_callback": lambda self, default_args_dict: None, "_save": save})


def multiplies_bf16() -> bool:
    """Whether the device has instructions for bf16; without them it is slower than fp32, with them up to twice as fast."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.backends.mps.is_available():
        return False
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))  # not public, and not in every version
    return any(supported() for supported in known if supported)


def _validation_steps(settings: TrainingSettings, samples: int) -> frozenset[int]:
    """Steps after which the model is validated: evenly spread, the last one among them."""
    steps = -(-samples // settings.batch_size)
    times = settings.epochs * settings.evaluations_per_epoch
    return frozenset(round(steps * time / times) for time in range(1, times + 1)) - {0}


def _arguments(settings: TrainingSettings, folder: Path, seed: int, samples: int) -> dict[str, Any]:
    """Of the trainer, whatever the kind of student."""
    steps = -(-samples // settings.batch_size)
    return {
        "output_dir": str(folder / "checkpoints"),
        "num_train_epochs": 1,  # the samples hold every epoch already, each with its own draw
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "warmup_steps": round(settings.warmup * steps),
        "bf16": settings.precision == "bf16" or (settings.precision == "auto" and multiplies_bf16()),
        "fp16": settings.precision == "fp16",  # the trainer scales the loss, so that small gradients are not lost
        "seed": seed,
        "data_seed": seed,
        "batch_sampler": _in_order,
        "logging_steps": max(1, steps // 40),
        "logging_nan_inf_filter": False,  # it would show the mean of the losses before instead
        "save_steps": max(1, min(settings.checkpoint_steps, steps)),
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def on_one_device(arguments: Any) -> Any:
    """The same arguments for a single device of each process, however many GPUs there are.

    transformers would otherwise let one process train on all of them, with as many times the batch; several processes (`parallel`) are the way to that.
    """
    _ = arguments.device  # counts the GPUs
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _in_order(dataset: Dataset, batch_size: int, drop_last: bool, **_: Any) -> DefaultBatchSampler:
    """The samples' own order, which is shuffled already; a resumed run goes on at the same sample."""
    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


def print_nothing(trainer: Trainer) -> None:
    """Takes away the callback that prints logs to standard output, where only results belong."""
    trainer.remove_callback(PrinterCallback)
