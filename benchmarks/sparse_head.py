"""What a SPLADE head costs with and without its table of logits: seconds of a training step and of encoding, and memory.

    python benchmarks/sparse_head.py                       # about three minutes on 2 quiet cores
    python benchmarks/sparse_head.py --texts 64 --frozen-layers 0

Documents of scifact, cut to 128 tokens, through all-MiniLM-L6-v2 with the head that a sparse student is given, in fp32: as sentence-transformers'
own modules do it, and as our training and encoding do it with the same modules (retriever/models/splade.py). Both see the same texts in turn, several
rounds; printed are medians, and the largest difference of a weight and of a gradient beside the largest there is. A step is a pass
forwards and one backwards; by default through the upper half of the layers, whose lower ones are frozen, as in the examples. Memory is
what the process held at most above what it held before (Linux), each contender in a process of its own. Writes benchmarks/results/sparse_head.json.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from record import MACHINE, keep
from scifact import EXPERIMENT
from torch import Tensor

from retriever.collection import open_collection
from retriever.config import read_experiment
from retriever.models.splade import without_logits
from retriever.progress import silence_libraries
from retriever.settings.student import SparseSettings
from retriever.students.sparse import load
from retriever.training.frozen import FrozenLayers

CONTENDERS = {"stock": False, "retriever": True}


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=32, help="of a step; stock holds about 64 MB of each")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--frozen-layers", type=int, default=3, help="of 6")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    silence_libraries()
    model, features = material(arguments)
    seconds: dict[str, dict[str, list[float]]] = {name: {"step": [], "encode": []} for name in CONTENDERS}
    outcomes: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for number in range(arguments.rounds + 1):
        for name, lean in CONTENDERS.items():
            start = time.perf_counter()
            outcomes[name] = step(model, features, lean)
            between = time.perf_counter()
            encode(model, features, lean)
            if number:  # the first round warms up
                seconds[name]["step"].append(between - start)
                seconds[name]["encode"].append(time.perf_counter() - between)
    result = {
        "seconds": {name: {kind: statistics.median(times) for kind, times in found.items()} for name, found in seconds.items()},
        "ratio": {kind: statistics.median(ratios(seconds, kind)) for kind in ("step", "encode")},
        "gigabytes": {name: peak(arguments, lean) for name, lean in CONTENDERS.items()},
        **differences(outcomes),
        "texts": arguments.texts,
        "tokens": int(features["attention_mask"].sum()),
        "frozen_layers": arguments.frozen_layers,
        "machine": MACHINE,
    }
    for name in CONTENDERS:
        found = result["seconds"][name]
        print(f"{name:10} step {found['step']:6.2f} s   encoding {found['encode']:6.2f} s   {result['gigabytes'][name]:5.2f} GB more in a step")
    print(f"a step {result['ratio']['step']:.1f} times as fast, encoding {result['ratio']['encode']:.1f} times")
    print(f"weights differ by {result['weights'][0]:.1e} where the largest is {result['weights'][1]:.2g},", end=" ")
    print(f"gradients by {result['gradients'][0]:.1e} where the largest is {result['gradients'][1]:.2g}")
    if not arguments.no_results:
        keep("sparse_head", result)


def material(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The student's model, made as for training, with frozen layers, and the texts of a step."""
    experiment = read_experiment(EXPERIMENT, arguments.overrides)
    collection = open_collection(experiment.collection, Path("work/benchmark-sparse-head"))
    documents = list(islice(collection.documents(), 1000))
    settings = SparseSettings(kind="sparse", model="sentence-transformers/all-MiniLM-L6-v2", max_length=arguments.max_length)
    model = load(settings, sample=documents).model.train()
    if arguments.frozen_layers:
        for weight in FrozenLayers(model, arguments.frozen_layers).weights:
            weight.requires_grad_(False)
    return model, dict(model.preprocess([document.full_text for document in documents[: arguments.texts]], task="document"))


def step(model: Any, features: dict[str, Any], lean: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The weights of the texts and the gradients of the sum of their squares; the same numbers are dropped each time."""
    torch.manual_seed(1)
    model.train()
    model.zero_grad()
    with without_logits(model) if lean else contextlib.nullcontext():
        weights = model(dict(features), task="document")["sentence_embedding"]
        weights.square().sum().backward()
    return weights.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def encode(model: Any, features: dict[str, Any], lean: bool) -> None:
    """The weights alone."""
    model.eval()
    with torch.inference_mode(), without_logits(model) if lean else contextlib.nullcontext():
        model(dict(features), task="document")


def ratios(seconds: dict[str, dict[str, list[float]]], kind: str) -> list[float]:
    """How many times as fast as stock, round by round."""
    return [stock / ours for stock, ours in zip(seconds["stock"][kind], seconds["retriever"][kind], strict=True)]


def differences(outcomes: dict[str, tuple[Tensor, dict[str, Tensor]]]) -> dict[str, list[float]]:
    """The largest difference between the contenders, and the largest value."""
    (stock, slopes), (ours, our_slopes) = outcomes["stock"], outcomes["retriever"]
    gradients = [(float((our_slopes[name] - slope).abs().max()), float(slope.abs().max())) for name, slope in slopes.items()]
    return {
        "weights": [float((ours - stock).abs().max()), float(stock.max())],
        "gradients": [max(difference for difference, _ in gradients), max(largest for _, largest in gradients)],
    }


def peak(arguments: argparse.Namespace, lean: bool) -> float:
    """Gigabytes that a step takes at most, in a process that does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (arguments, lean))


def _peak(arguments: argparse.Namespace, lean: bool) -> float:
    silence_libraries()
    model, features = material(arguments)
    small = {name: value[:1] if isinstance(value, Tensor) else value for name, value in features.items()}
    step(model, small, lean)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux forgets the peak so far, that of the parent among it
    before = memory("VmRSS")
    step(model, features, lean)
    return memory("VmHWM") - before


def memory(name: str) -> float:
    """Gigabytes of this process."""
    found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(found[name].split()[0]) / 2**20


if __name__ == "__main__":
    main()
