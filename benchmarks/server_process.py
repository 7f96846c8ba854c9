"""A server in a process of its own, for as long as a benchmark asks it."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def serving(*arguments: str, program: Sequence[str] = ("-m", "retriever", "serve")) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of `retriever serve`, or another program that prints where it listens; in a process group of its own."""
    with _running([sys.executable, *program, *arguments], subprocess.PIPE) as process:
        yield _address(process), process


@contextlib.contextmanager
def infinity(program: Path, model: Path) -> Iterator[str]:
    """The address of infinity-emb with a model, called "model"; it is installed in an environment of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"model-id": model, "served-model-name": "model", "engine": "torch", "device": "cpu", "batch-size": 32, "host": "127.0.0.1", "port": port}
    flags = ("--no-bettertransformer", "--no-model-warmup")  # transformers has that kind of attention by itself since, and warming up loads nothing else
    command = [str(program), "v2", *flags, *(str(part) for name, value in told.items() for part in (f"--{name}", value))]
    with _running(command, subprocess.DEVNULL) as process:
        while not _is_healthy(url := f"http://127.0.0.1:{port}"):
            if (status := process.poll()) is not None:
                sys.exit(f"{program} ended with status {status} before it listened")
            time.sleep(0.5)
        yield url


@contextlib.contextmanager
def _running(command: Sequence[str], stdout: int) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, told to end with the block."""
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _address(process: subprocess.Popen[str]) -> str:
    """What a server prints when it listens."""
    if process.stdout is None:
        raise OSError("no pipe")
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return found[0].rstrip("/")
    sys.exit(f"the server ended with status {process.wait()} before it listened")
