"""A wheel in an empty environment, outside the clone, does the main job: install, demo, search, evaluate.

    python benchmarks/wheel.py            # in a temporary folder, about 10 minutes

Prints how long each part took; ends with status 1 at the first that fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Builds, installs and runs; 0 when all of it worked."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = folder / "environment" / "bin" / "python"
        command = str(python.with_name("retriever"))
        timed("new environment", lambda: venv.create(folder / "environment", with_pip=True))
        run("wheel", folder, sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
        wheel = next(folder.glob("*.whl"))
        run("installation", folder, str(python), "-m", "pip", "install", "--quiet", f"{wheel}[cpu,demo]")
        run("retriever demo", folder, command, "demo", "--work", "work")
        run("retriever search", folder, command, "search", "work/demo", "sort an array and give the positions")
        run("retriever evaluate", folder, command, "evaluate", "work/demo.toml", "--work", "work")
        where = subprocess.run([str(python), "-c", "import retriever; print(retriever.__file__)"], cwd=folder, capture_output=True, text=True, check=True)
        print("imported from the environment:", str(folder) in where.stdout)
    return int(str(folder) not in where.stdout)


def run(what: str, folder: Path, *command: str) -> None:
    """Runs one command in `folder`, with nothing of the caller's Python in its environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    timed(what, lambda: subprocess.run(command, cwd=folder, env=clean, check=True))


def timed(what: str, work: Callable[[], object]) -> None:
    """Prints the seconds that a part took."""
    start = time.perf_counter()
    work()
    print(f"{what}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
