"""Commands in processes of their own, forked from one that has imported everything: many stops in the time of few starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.tiny_experiment import ROOT, Said, process_environment


class ForkedCommands:
    """Starts `retriever` commands that can be signalled; use it as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> ForkedCommands:
        line = [sys.executable, "-m", "tests.forked_commands"]
        self.process = subprocess.Popen(line, cwd=ROOT, env=process_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ask({})  # answered when everything is imported
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.process.communicate()

    def start(self, *arguments: object) -> int:
        """Starts a command and gives its process id."""
        return self._ask({"run": [str(argument) for argument in arguments], "log": str(self.folder)})

    def wait(self, process_id: int) -> Said:
        """What a command printed when it has ended; the status is negative when a signal ended it."""
        status = self._ask({"wait": process_id})
        out, err = (self.folder / f"{process_id}.{stream}" for stream in ("out", "err"))
        return Said(status, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))

    def run(self, *arguments: object) -> Said:
        """Starts a command and waits for its end."""
        return self.wait(self.start(*arguments))

    def _ask(self, request: object) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def run_command(arguments: list[str], log: Path) -> None:
    """The forked process: the command with its streams in files named by the process id."""
    from retriever import cli

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background has it ignored
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(log / f"{os.getpid()}.{stream}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["retriever", *arguments]
    cli.main()


def serve() -> None:
    """Answers requests until standard input ends."""
    import faiss  # noqa: F401

    import retriever.distillation  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        answer = 0
        if "run" in request:
            answer = os.fork()
            if not answer:
                return run_command(request["run"], Path(request["log"]))
        elif "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    return None


if __name__ == "__main__":
    serve()
