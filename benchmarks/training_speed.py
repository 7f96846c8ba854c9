"""Documents per second in training against sentence-transformers' own trainer: same model, lists, batches and loss, same run.

    python benchmarks/training_speed.py                                     # about 20 minutes on 2 quiet cores
    python benchmarks/training_speed.py --quality --work work/benchmark-training-speed     # what freezing costs; goes on after a stop

The lists are those of scifact's train queries: a positive and documents of BM25's best 30, cut to 128 tokens. The teacher's scores are a
tenth of BM25's, which is about the student's scale; the loss is Margin-MSE, the model all-MiniLM-L6-v2 in fp32. All contenders train on
all lists in turn, several rounds; the first step of each is not timed. Printed are medians, ratios within a round, and GFLOP/s from the
tokens of the lists beside those of the largest square product of the same run: padding counts for nothing, and a document that stands in
a batch twice counts twice. Documents that stay as they are (student.frozen_documents) are encoded once, before, and not read in training. Both
trainers drop with the model's own chance of .1; two more contenders train without dropout, which is how the gradients are compared: their
largest difference, beside the largest gradient.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cross_encoder_speed import floating_point_operations, largest_square_product
from datasets import Dataset
from numpy.typing import NDArray
from record import MACHINE, against, keep
from scifact import EXPERIMENT, share
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import MarginMSELoss
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from retriever.bm25 import build_bm25
from retriever.collection import Collection, open_collection
from retriever.config import read_experiment
from retriever.eval.report import read_report
from retriever.models.names import find_model
from retriever.models.routes import with_frozen_documents
from retriever.pipeline import Pipeline
from retriever.progress import Terminal, silence_libraries
from retriever.runs import Run
from retriever.scores.store import TeacherScores
from retriever.settings.collection import CollectionSettings
from retriever.settings.training import TrainingSettings
from retriever.steps.evaluate import evaluate_experiment
from retriever.training.adapter import DistillationLoss
from retriever.training.batches import Batcher
from retriever.training.samples import TrainingSamples, make_samples
from retriever.training.trainer import print_nothing, train_student, without_model_card
from retriever.training.watcher import Supervision, TrainingProgress

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEPTH = 30
SCALE = 20.0
SEED = 1


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to train: whose trainer, with how many layers frozen, with dropout as the model comes or without, with documents that stay as they are."""

    stock: bool
    frozen: int | None = None
    drops: bool = True
    documents_stay: bool = False


CONTENDERS = {
    "stock": Contender(stock=True),
    "ours": Contender(stock=False),
    "ours, lower half frozen": Contender(stock=False, frozen=3),
    "ours, documents stay": Contender(stock=False, documents_stay=True),
    "stock, no dropout": Contender(stock=True, drops=False),
    "ours, no dropout": Contender(stock=False, drops=False),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What all contenders train on."""

    collection: Collection
    samples: TrainingSamples
    training: TrainingSettings

    @property
    def lists(self) -> Dataset:
        """The samples as sentence-transformers takes them: a column for the query and each document, and the teacher's scores."""
        texts = [[document.full_text for document in self.collection.documents_by_row(rows.tolist())] for rows in self.samples.documents]
        columns = {f"document_{place}": [row[place] for row in texts] for place in range(self.training.documents_per_query)}
        return Dataset.from_dict({"query": [query.text for query in self.samples.queries], **columns, "label": self.samples.teacher.tolist()})


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The vectors of a task's documents [N, D], as training looks them up by row."""

    vectors: Mapping[int, NDArray[np.float32]]
    dimensions: int

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[len(rows), D]."""
        return np.stack([self.vectors[row] for row in rows.tolist()])


@dataclasses.dataclass
class Clock:
    """When each step ended, and when the texts had gone through the frozen layers."""

    begun: float = 0.0
    steps: list[float] = dataclasses.field(default_factory=list)
    cached: float = 0.0
    texts: int = 0

    def tell(self, at: TrainingProgress) -> None:
        """Of our trainer."""
        if at.cached:
            self.cached, self.texts = time.perf_counter() - self.begun, at.cached.done
        else:
            self.steps.append(time.perf_counter())

    def tell_encoded(self, texts: int) -> None:
        """Of documents that stay as they are, before the first step."""
        self.cached, self.texts = time.perf_counter() - self.begun, texts

    @property
    def seconds(self) -> float:
        """Of all steps but the first."""
        return self.steps[-1] - self.steps[0]


class _Timer(TrainerCallback):
    """Tells a clock of sentence-transformers' steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.steps.append(time.perf_counter())


def main() -> None:
    """Measures and prints one of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, default=Path("../shared/data/scifact"))
    parser.add_argument("--lists", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quality", action="store_true", help="train the scifact experiment whole and with the lower half frozen, and compare nDCG@10")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-training-speed"), help="of --quality; a finished scifact in it is used")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of --quality")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quality:
        found = quality(arguments.work, [f'collection.path="{arguments.collection.resolve()}"', *arguments.overrides])
        show_quality(found)
        keep("training_speed", {"quality": found})
        return
    silence_libraries()
    with tempfile.TemporaryDirectory() as name:
        report = measure(arguments, Path(name))
    show(report)
    keep("training_speed", {"speed": report})


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every figure of the first part."""
    task = task_of(arguments, folder)
    difference = largest_difference(task)
    peak = largest_square_product()
    clocks: dict[str, list[Clock]] = {name: [] for name in CONTENDERS}
    for number in range(arguments.rounds):
        for name, contender in CONTENDERS.items():
            clocks[name].append(timed(task, contender, folder / f"{number}-{len(clocks[name])}-{name.replace(' ', '')}"))
            print(f"round {number + 1}: {name}: {clocks[name][-1].seconds:.1f} s", file=sys.stderr)
    peak = max(peak, largest_square_product())
    later = slice(task.training.batch_size, None)  # the first batch is not timed
    documents = int(task.samples.mask[later].sum())
    flops = 3 * operations(task, later)  # backwards costs twice as much as forwards
    rows = {name: row_of(name, clocks, documents, len(task.samples) - task.training.batch_size, flops) for name in CONTENDERS}
    settings = {key: getattr(arguments, key) for key in ("lists", "batch", "documents", "length", "rounds", "threads")}
    return {**settings, "seed": SEED, "machine": MACHINE, "peak_gflops": peak, "largest_difference": difference, "rows": rows}


def row_of(name: str, clocks: Mapping[str, list[Clock]], documents: int, lists: int, flops: float) -> dict[str, Any]:
    """The figures of one contender."""
    contender, own = CONTENDERS[name], clocks[name]
    stock = clocks["stock" if contender.drops else "stock, no dropout"]
    seconds = statistics.median(clock.seconds for clock in own)
    row: dict[str, Any] = {
        "rows_per_second": lists / seconds,
        "documents_per_second": documents / seconds,
        "against_stock": statistics.median(base.seconds / clock.seconds for base, clock in zip(stock, own, strict=True)),
        "seconds": [clock.seconds for clock in own],
    }
    if contender.frozen or contender.documents_stay:
        return {**row, "texts_cached_per_second": statistics.median(clock.texts / clock.cached for clock in own)}
    return {**row, "gflops": flops / seconds / 1e9}


def task_of(arguments: argparse.Namespace, folder: Path) -> Task:
    """Lists of some train queries, drawn with a fixed seed."""
    collection = open_collection(CollectionSettings(path=arguments.collection.resolve()), folder / "collection")
    queries, qrels, bm25 = collection.queries("train"), collection.qrels("train"), build_bm25(document.full_text for document in collection.documents())
    chosen = np.random.default_rng(SEED).permutation(sorted(queries))[: arguments.lists].tolist()
    found: dict[str, dict[str, float]] = {}
    for query_id in chosen:
        scores = bm25.scores(queries[query_id].text)
        best = np.argsort(-scores, kind="stable")[:DEPTH]
        judged = collection.rows_of([doc_id for doc_id, grade in qrels[query_id].items() if grade > 0])
        rows = np.union1d(best, judged)
        found[query_id] = dict(zip(collection.doc_ids[rows].tolist(), (scores[rows] / 10).tolist(), strict=True))
    training = TrainingSettings(
        documents_per_query=arguments.documents,
        epochs=1,
        batch_size=arguments.batch,
        max_length=arguments.length,
        losses={"margin_mse": 1.0},
        student_scale=SCALE,
        teacher_scale=1.0,  # as the stock loss has it
        precision="fp32",
        false_negatives="keep",
        checkpoint_steps=10**6,
    )
    target = TeacherScores(Run.from_dict("bm25", found), "logit", "0" * 16, "bm25")
    samples = make_samples(target, {query_id: queries[query_id] for query_id in chosen}, qrels, collection, training, np.random.default_rng(SEED))
    whole = len(samples) // arguments.batch * arguments.batch
    first = {name: getattr(samples, name)[:whole] for name in ("queries", "documents", "teacher", "mask", "not_negative")}
    return Task(collection, dataclasses.replace(samples, **first), training)


def student_of(task: Task, contender: Contender) -> SentenceTransformer:
    """The starting checkpoint."""
    model = SentenceTransformer(str(find_model(MODEL).folder), device="cpu", local_files_only=True)
    model.max_seq_length = task.training.max_length
    if not contender.drops:
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
    return model


def timed(task: Task, contender: Contender, folder: Path) -> Clock:
    """One training."""
    model, clock = student_of(task, contender), Clock()
    torch.manual_seed(SEED)
    clock.begun = time.perf_counter()
    samples = task.samples
    if contender.documents_stay:
        model = with_frozen_documents(model)
        samples = dataclasses.replace(samples, encodings=encoded(task, model))
        clock.tell_encoded(len(np.unique(samples.documents)))
    if contender.stock:
        stock_trainer(task, model, folder, [_Timer(clock)]).train()
    else:
        training = task.training.model_copy(update={"frozen_layers": contender.frozen})
        train_student(model, samples, task.collection, training, folder, SEED, Supervision(lambda: {"validation": 0.0}, clock.tell))
    return clock


def encoded(task: Task, model: SentenceTransformer) -> Any:
    """What a model makes of all documents of the lists."""
    rows = np.unique(task.samples.documents)
    texts = [document.full_text for document in task.collection.documents_by_row(rows.tolist())]
    vectors = model.encode_document(texts, batch_size=64, show_progress_bar=False)
    return Encoded(dict(zip(rows.tolist(), vectors, strict=True)), vectors.shape[1])


def stock_trainer(task: Task, model: SentenceTransformer, folder: Path, callbacks: list[TrainerCallback]) -> SentenceTransformerTrainer:
    """sentence-transformers' own trainer and loss on the same lists in the same order."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=task.training.batch_size,
        learning_rate=task.training.learning_rate,
        batch_sampler=lambda dataset, batch_size, drop_last, **_: DefaultBatchSampler(SequentialSampler(dataset), batch_size, drop_last),
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    loss = MarginMSELoss(model, similarity_fct=lambda left, right: SCALE * torch.cosine_similarity(left, right))
    trainer = without_model_card(SentenceTransformerTrainer)(model=model, args=arguments, train_dataset=task.lists, loss=loss, callbacks=callbacks)
    print_nothing(trainer)
    return trainer


def largest_difference(task: Task) -> dict[str, float]:
    """Of the gradients of the first batch without dropout, over all weights, beside the largest gradient; and a look that both train the same."""
    batch = range(task.training.batch_size)
    found: list[dict[str, Tensor]] = []
    with tempfile.TemporaryDirectory() as folder:
        for stock in (True, False):
            model = student_of(task, Contender(stock=stock, drops=False)).train()
            trainer = stock_trainer(task, model, Path(folder), [])
            lists = task.lists
            inputs = trainer.data_collator([lists[number] for number in batch]) if stock else batch_of_ours(task, model)
            features, labels = trainer.collect_features(inputs)
            loss = trainer.loss(features, labels) if stock else DistillationLoss(model, task.samples, task.training)(features, labels)["margin_mse"]
            loss.backward()
            found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    if found[0].keys() != found[1].keys() or not all(bool(gradient.any()) for gradient in found[0].values() if gradient.ndim > 1):
        sys.exit("the two trainers do not train the same weights")
    difference = max(float((gradient - found[1][name]).abs().max()) for name, gradient in found[0].items())
    return {"absolute": difference, "largest_gradient": max(float(gradient.abs().max()) for gradient in found[0].values())}


def batch_of_ours(task: Task, model: SentenceTransformer) -> dict[str, Any]:
    """Features of the first batch."""
    return Batcher(model, task.samples, task.collection, task.training.max_length)([{"label": number} for number in range(task.training.batch_size)])


def operations(task: Task, part: slice) -> float:
    """Of one pass forwards over a part of the lists, as they stand: by the tokens that each text has."""
    model = student_of(task, CONTENDERS["stock"])
    texts = [query.text for query in task.samples.queries[part]]
    for rows in task.samples.documents[part]:
        texts += [document.full_text for document in task.collection.documents_by_row(rows.tolist())]
    lengths = [len(ids) for ids in model.tokenizer(texts, truncation=True, max_length=task.training.max_length)["input_ids"]]
    return float(floating_point_operations(model, np.array(lengths)).sum())  # type: ignore[arg-type]


def quality(work: Path, overrides: list[str]) -> dict[str, Any]:
    """nDCG@10 of examples/scifact.toml whole and with the lower half frozen; all else is shared, and a stop loses little."""
    names = {"full": "scifact", "lower half frozen": "scifact-frozen"}
    extra = {"full": [], "lower half frozen": ["training.frozen_layers=3"]}
    evaluations, training = {}, {}
    for what, name in names.items():
        if what != "full":
            share(work / names["full"], work / name)
        experiment = read_experiment(EXPERIMENT, [*overrides, *extra[what], f'name="{name}"'])
        report = read_report(evaluate_experiment(Pipeline(experiment, work, Terminal())).folder)
        evaluations[what] = next(run.evaluation for run in report.runs if run.name == "student")
        training[what] = experiment.training.model_dump(mode="json")
        seed = experiment.seed
    rows = against(evaluations, "full", "nDCG@10", seed)
    return {"seed": seed, "machine": MACHINE, "training": training["full"], "rows": rows}


def show(report: Mapping[str, Any]) -> None:
    """The table and the bars of the first part."""
    print(f"{report['lists']} lists of a query and {report['documents']} documents of {report['length']} tokens, {report['batch']} a batch")
    print(f"{report['threads']} threads, largest square fp32 product: {report['peak_gflops']:.0f} GFLOP/s")
    print(f"{'':<26}{'rows/s':>8}{'documents/s':>13}{'x stock':>9}{'GFLOP/s':>9}{'of peak':>9}")
    for name, row in report["rows"].items():
        work = f"{row['gflops']:9.0f}{row['gflops'] / report['peak_gflops']:9.0%}" if "gflops" in row else ""
        print(f"{name:<26}{row['rows_per_second']:8.2f}{row['documents_per_second']:13.1f}{row['against_stock']:9.2f}{work}")
    frozen = report["rows"]["ours, lower half frozen"]
    stay = report["rows"]["ours, documents stay"]
    print(f"of documents that stay as they are, {stay['texts_cached_per_second']:.0f} a second are encoded before the first step, each once for all trainings")
    print(f"before the first step, {frozen['texts_cached_per_second']:.0f} texts a second go through the frozen half, each once for all epochs")
    difference = report["largest_difference"]
    print(f"largest difference of a gradient: {difference['absolute']:.1e}, where the largest is {difference['largest_gradient']:.1e}")
    same = difference["absolute"] <= 1e-5 * max(1.0, difference["largest_gradient"])
    print_bars(
        {
            "1.2 x stock with gradients equal to 1e-5": report["rows"]["ours"]["against_stock"] >= 1.2 and same,
            "2 x stock with the lower half frozen": frozen["against_stock"] >= 2,
        }
    )


def show_quality(found: Mapping[str, Any]) -> None:
    """The table and the bar of the second part."""
    for name, row in found["rows"].items():
        print(f"{name:<20} nDCG@10 {row['mean']:.4f}  {row['difference']:+.4f} (p {row['p_value']:.3f}, {row['queries']} queries)")
    print_bars({"freezing the lower half costs .01 nDCG@10 at most": found["rows"]["lower half frozen"]["difference"] >= -0.01})


def print_bars(bars: Mapping[str, bool]) -> None:
    """What was to be reached, and whether it was."""
    for bar, met in bars.items():
        print(f"{'met   ' if met else 'MISSED'}  {bar}")


if __name__ == "__main__":
    main()
