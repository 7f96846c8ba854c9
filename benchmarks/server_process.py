"""A server in a process of its own, for as long as a benchmark asks it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def serving(*arguments: str, program: Sequence[str] = ("-m", "retriever", "serve")) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of `retriever serve`, or another program that prints where it listens; in a process group of its own."""
    command = [sys.executable, *program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True) as process:
        try:
            yield _address(process), process
        finally:
            process.send_signal(signal.SIGTERM)


def _address(process: subprocess.Popen[str]) -> str:
    """What a server prints when it listens."""
    if process.stdout is None:
        raise OSError("no pipe")
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return found[0].rstrip("/")
    sys.exit(f"the server ended with status {process.wait()} before it listened")
