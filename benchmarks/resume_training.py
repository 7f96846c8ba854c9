"""kill -9 while training, again and again, and the same command each time: the student must come out as if nothing had happened.

    python benchmarks/resume_training.py             # 20 kills
    python benchmarks/resume_training.py --kills 5

A student is trained on the tests' collection once without a stop and once with kills at random instants. Prints the
largest difference between the two students' weights, beside how far training moved them, and between their rankings.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = """
name = "NAME"
[collection]
path = "COLLECTION"
[candidates]
sources = ["bm25", "student"]
depth = 20
[[teacher]]
kind = "lexical"
[[teacher]]
kind = "embedding"
model = "student"
[student]
model = "sentence-transformers/all-MiniLM-L6-v2"
[training]
documents_per_query = 4
batch_size = 4
epochs = 6
checkpoint_steps = 5
learning_rate = 5e-5
losses = { kl_divergence = 1.0, contrastive = 0.5 }
"""


def main() -> int:
    """Trains twice and compares; 1 where the students differ by more than a thousandth of what training moved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        start = time.perf_counter()
        whole = train(work, "whole")
        seconds = time.perf_counter() - start
        kills = kill_and_train(work, "killed", arguments.kills, seconds, random.Random(arguments.seed))
        killed = train(work, "killed")
        moved = largest_difference(work / "whole" / "start" / "student" / "model.safetensors", whole)
        apart = largest_difference(whole, killed)
    print(f"{kills} kills in a training of {seconds:.0f} s; weights moved by {moved:.2e} at most")
    print(f"the two students differ by {apart:.2e} at most: {apart / moved:.2%} of that")
    return int(apart > moved / 1000)


def train(work: Path, name: str) -> Path:
    """Runs the training to its end; the weights' file."""
    subprocess.run(command(work, name), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*command(work, name, "evaluate")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return work / name / "train" / "student" / "model.safetensors"


def kill_and_train(work: Path, name: str, kills: int, seconds: float, chance: random.Random) -> int:
    """Starts the same command again and again and kills it at a random instant; how many kills hit before it was done."""
    for number in range(kills):
        process = subprocess.Popen(command(work, name), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(timeout=chance.uniform(0.3, 1.0) * seconds)
            return number
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return kills


def command(work: Path, name: str, what: str = "train") -> list[str]:
    """The command line; the experiment file is written if need be."""
    path = work / f"{name}.toml"
    path.write_text(EXPERIMENT.replace("NAME", name).replace("COLLECTION", str(ROOT / "tests" / "data" / "animals_and_tools")), encoding="utf-8")
    return [sys.executable, "-m", "retriever", what, str(path), "--work", str(work)]


def largest_difference(one: Path, other: Path) -> float:
    """The largest absolute difference between two files of weights."""
    first, second = load_file(one), load_file(other)
    return max(float(np.abs(first[name].astype(np.float64) - second[name].astype(np.float64)).max()) for name in second if name in first)


if __name__ == "__main__":
    sys.exit(main())
