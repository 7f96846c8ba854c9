"""Training by several processes: which samples each of them gets, and how their gradients become one.

A step takes the same `batch_size` samples, in the same order, whatever the number of processes: the first process gets the first
part of them, the second the next, and so on (`part_of`). What they have in common is averaged with the parts' sizes as weights, so that
the gradient is that of one process with the whole batch, for losses whose mean over the batch is a mean over its queries. It is not
quite the same for

- in-batch terms: a query sees the documents of its own part only (contrastive, in_batch_similarity, gram and the like), and the cost of
  sparse vectors is that of a part. Reinforced training is the exception: its processes gather their vectors (`gather_rows`);
- norms over batches, of a convolutional tower that learns: they see the images of a part, and the first process's statistics are kept;
- lists of fewer than K documents, where a loss takes its mean over pairs and not over queries;
- dropout, which every process draws for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from datasets import Dataset
from torch import Tensor, distributed, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from retriever.errors import ConfigError, RetrieverError
from retriever.training.sparsity import SparsityController

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        count: how many there are; 1 without a process group.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that validates and writes."""
        return self.rank == 0

    def part_of(self, start: int, end: int) -> range:
        """The numbers of this process among start ... end - 1: a stretch for each process, in order; their lengths differ by one at most."""
        first, following = (start + -(-(end - start) * rank // self.count) for rank in (self.rank, self.rank + 1))
        return range(first, following)


def processes() -> Processes:
    """This process among its like: those of torch's process group, where there is one."""
    if not distributed.is_available() or not distributed.is_initialized():
        return Processes()
    return Processes(distributed.get_rank(), distributed.get_world_size())


def shared(value: T) -> T:
    """The first process's value, in every process; all must call this.

    Args:
        value: what JSON can say: texts, numbers, None, lists and tables of them.
    """
    if processes().count == 1:
        return value
    found: T = json.loads(shared_bytes(json.dumps(value).encode()))
    return found


def shared_bytes(data: bytes) -> bytes:
    """The first process's bytes, in every process; all must call this. Torch's own way for objects would unpickle what comes over the connection."""
    if processes().count == 1:
        return data
    with _explain_lost_process():
        size = torch.tensor(len(data))
        distributed.broadcast(size, src=0)
        buffer = torch.frombuffer(bytearray(data or b"0"), dtype=torch.uint8) if processes().first else torch.empty(max(1, int(size)), dtype=torch.uint8)
        distributed.broadcast(buffer, src=0)
    return buffer[: int(size)].numpy().tobytes()


def check_batch_size(batch_size: int, count: int) -> None:
    """Sees to it that a batch can be divided.

    Raises:
        ConfigError: there are fewer samples in a batch than processes.
    """
    if batch_size < count:
        raise ConfigError(f"training.batch_size: {batch_size} samples cannot be divided among {count} processes. Set {count} at least, or start fewer")


@dataclasses.dataclass(frozen=True)
class PartBatcher:
    """The data collator of one of several processes: the number of a step's part in, features of its samples out.

    Attributes:
        batcher: what makes features of samples.
        samples: S, their number.
        batch_size: of all processes together.
        group: this process.
    """

    batcher: Any
    samples: int
    batch_size: int
    group: Processes
    valid_label_columns: tuple[str, ...] = ("label",)

    @property
    def steps(self) -> int:
        """Batches in all."""
        return -(-self.samples // self.batch_size)

    def dataset(self) -> Dataset:
        """A row for each part of each batch, in order; dealt out one by one, every process gets its part of every batch, of the last one too."""
        return Dataset.from_dict({"label": list(range(self.steps * self.group.count))})

    def __call__(self, batch: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """The features of one part; its label says with which weight it counts."""
        start = batch[0]["label"] // self.group.count * self.batch_size
        end = min(start + self.batch_size, self.samples)
        part = self.group.part_of(start, end)
        numbers = part or range(start, start + 1)  # of a short last batch nothing may be left for this process: weight 0
        features: dict[str, Any] = self.batcher([{"label": number} for number in numbers])
        features["label"]["weight"] = torch.tensor(len(part) * self.group.count / (end - start))
        return features


class PartLoss(nn.Module):
    """A loss whose terms count as much as the part of the batch that they come from."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.model = loss.model  # the trainer looks for it here, and puts its own into both
        self.loss = loss

    def forward(self, features: Sequence[Mapping[str, Any]], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss times the weight of the part."""
        return {name: term * labels["weight"] for name, term in self.loss(features, labels).items()}

    def get_config_dict(self) -> Mapping[str, Any]:
        """What a model card says of the loss."""
        config: Mapping[str, Any] = self.loss.get_config_dict()  # type: ignore[operator]
        return config


def gather_rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The rows of all processes, those of the first process first: [n, ...] in, [the sum of n, ...] out, for each tensor; all must call this.

    The gradient is right where every process computes the same from all rows: each passes on its own rows' part of it times the number
    of processes, by which `average_gradients` divides. Weights that see all rows, such as a scale that learns, need no factor.

    Args:
        tensors: in every process the same kinds; n may differ from process to process and be 0.
    """
    if processes().count == 1:
        return list(tensors)
    with _explain_lost_process():
        own = torch.tensor([len(rows) for rows in tensors], device=tensors[0].device)
        counts = [torch.empty_like(own) for _ in range(processes().count)]
        distributed.all_gather(counts, own)
        lengths = torch.stack(counts, dim=1).tolist()
        return [_Gathered.apply(rows, of_each) for rows, of_each in zip(tensors, lengths, strict=True)]  # type: ignore[no-untyped-call]


class _Gathered(torch.autograd.Function):
    """The rows of all processes. What torch has for this takes as many rows from each, and adds up gradients that are equal here."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        """[the sum of counts, ...] of [n, ...], filled up to the largest count on the way."""
        ctx.counts = counts
        sent = rows.new_zeros(max(counts), *rows.shape[1:])
        sent[: len(rows)] = rows
        received = [torch.empty_like(sent) for _ in counts]
        if max(counts):
            distributed.all_gather(received, sent)
        return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Of this process's rows."""
        group = processes()
        return torch.split(gradient, ctx.counts)[group.rank] * group.count, None


def with_averaged_gradients(trainer: type[Any]) -> type[Any]:
    """A trainer that averages gradients over processes once a step.

    DistributedDataParallel would do so while it goes backwards, for models that go forwards once a step and use every weight. Ours
    encode queries and several groups of documents, some with weights of their own, and not the same number of groups everywhere.
    """

    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        with model.no_sync():
            loss: Tensor = super(averaging, self).training_step(model, inputs, num_items_in_batch)
        with _explain_lost_process():
            average_gradients(self.loss)  # which holds the model, and a scale that learns beside it
        return loss

    averaging: type[Any] = type(trainer.__name__, (trainer,), {"training_step": training_step})
    return averaging


@contextlib.contextmanager
def no_warning_of_buffers() -> Iterator[None]:
    """Keeps away what torch says of an option that sentence-transformers sets: whoever trains can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        yield


def average_gradients(model: nn.Module) -> None:
    """Replaces each gradient by its mean over processes; a weight that one process did not use counts as 0 there, one that none used stays without."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    used = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32, device=weights[0].device)
    distributed.all_reduce(used, distributed.ReduceOp.MAX)
    sums = []
    for weight, anywhere in zip(weights, used.tolist(), strict=True):
        if anywhere:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad / processes().count
            sent = weight.grad.contiguous()
            sums.append((weight.grad, sent, distributed.all_reduce(sent, async_op=True)))
    for gradient, sent, work in sums:
        work.wait()
        gradient.copy_(sent)  # in place: a fused optimiser takes a gradient to lie in memory as its weight does


@contextlib.contextmanager
def _explain_lost_process() -> Iterator[None]:
    """Says so where a process waits for one that has ended, which its closed connection shows at once."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("Connection closed", "Connection reset", "Broken pipe")):
            raise
        again = "Run the same command again: it goes on from the last checkpoint"
        raise RetrieverError(f"training: another of the {processes().count} processes has ended; what it said last tells why. {again}") from error


class Companion(TrainerCallback):
    """What a process does beside the first one: it saves and stops when the first does, and takes over the weights of a sparse student's cost."""

    def __init__(self, validations: frozenset[int]) -> None:
        self.validations = validations

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Waits at the steps where the first process validates."""
        if state.global_step in self.validations:
            control.should_save = True
            control.should_training_stop |= shared(False)


class SharedSparsity(TrainerCallback):
    """Lets all processes weigh the cost of sparse vectors as the first one does, which measures its own part of each batch."""

    def __init__(self, controller: SparsityController) -> None:
        self.controller = controller

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Before each step."""
        self.controller.restore(shared(self.controller.state()))
