"""kill -9 while training, again and again, and the same command each time: the student must come out as if nothing had happened.

    python benchmarks/resume_training.py             # 20 kills, about 10 minutes on 2 cores
    python benchmarks/resume_training.py --kills 5

A student is trained on a small part of the demo's documentation, once without a stop and then with kills at random
instants; when a training ends between kills, the next one begins. Prints the largest difference between the students'
weights, beside how far training moved them. Writes benchmarks/results/resume_training.json.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import MACHINE, keep
from safetensors.numpy import load_file

from retriever.documentation.collection import build_documentation_collection

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = 400
KILLS = 20
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
documents_per_query = 2
batch_size = 8
epochs = 4
max_length = 48
checkpoint_steps = 5
learning_rate = 5e-5
losses = { kl_divergence = 1.0, contrastive = 1.0 }
"""


def main() -> int:
    """Trains without and with kills and compares; 1 where the students differ by more than a thousandth of what training moved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        build_documentation_collection(work / "documentation", lambda _: None, DOCUMENTS)
        run(work, "whole", "score")
        run(work, "killed", "score")
        seconds = run(work, "whole", "train")
        opening = run(work, "whole", "train")  # everything is done: what is left is starting Python and opening the steps
        students = kill_and_train(work, "killed", arguments.kills, opening, seconds - opening, random.Random(arguments.seed))
        run(work, "whole", "evaluate")
        moved = largest_difference(work / "whole" / "start" / "student" / "model.safetensors", weights(work, "whole"))
        apart = max(largest_difference(weights(work, "whole"), student) for student in students)
    print(f"{arguments.kills} kills in {len(students)} trainings of {seconds - opening:.0f} s each; weights moved by {moved:.2e} at most")
    print(f"the students differ from the uninterrupted one by {apart:.2e} at most: {apart / moved:.2%} of that")
    facts = {"kills": arguments.kills, "trainings": len(students), "seconds": round(seconds - opening, 1), "weights_moved": moved, "students_apart": apart}
    if arguments.kills >= KILLS:  # fewer say too little to be kept
        keep("resume_training", {**facts, "seed": arguments.seed, "machine": MACHINE})
    return int(not apart <= moved / 1000)


def kill_and_train(work: Path, name: str, kills: int, opening: float, training: float, chance: random.Random) -> list[Path]:
    """Starts the same command again and again and kills it at a random instant of its training; the weights of every student that came out."""
    students: list[Path] = []
    while kills:
        process = subprocess.Popen(command(work, name, "train"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(timeout=opening + chance.uniform(0, 0.6) * training)
            students.append(put_away(work, name, len(students)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills -= 1
    run(work, name, "train")
    return [*students, put_away(work, name, len(students))]


def put_away(work: Path, name: str, number: int) -> Path:
    """Keeps a finished student's weights and forgets its training, so that the next command trains anew."""
    kept = work / f"student-{number}.safetensors"
    shutil.copy(weights(work, name), kept)
    shutil.rmtree(work / name / "train")
    return kept


def run(work: Path, name: str, what: str) -> float:
    """Runs a command to its end; the seconds it took."""
    start = time.perf_counter()
    subprocess.run(command(work, name, what), cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def command(work: Path, name: str, what: str) -> list[str]:
    """The command line; the experiment file is written if need be."""
    path = work / f"{name}.toml"
    path.write_text(EXPERIMENT.replace("NAME", name).replace("COLLECTION", str(work / "documentation")), encoding="utf-8")
    return [sys.executable, "-m", "retriever", what, str(path), "--work", str(work)]


def weights(work: Path, name: str) -> Path:
    """The trained student's weights."""
    return work / name / "train" / "student" / "model.safetensors"


def largest_difference(one: Path, other: Path) -> float:
    """The largest absolute difference between two files of weights."""
    first, second = load_file(one), load_file(other)
    return max(float(np.abs(first[name].astype(np.float64) - second[name].astype(np.float64)).max()) for name in second)


if __name__ == "__main__":
    sys.exit(main())
