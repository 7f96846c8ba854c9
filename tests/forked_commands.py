"""Commands in processes of their own, forked from one that has imported everything: many starts in the time of one."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType

from tests.tiny_experiment import ROOT, Said, process_environment

RETRIEVER = ("-m", "retriever")
STREAMS = {"in": os.O_RDONLY, "out": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "err": os.O_WRONLY | os.O_CREAT | os.O_TRUNC}
IMPORTED = (
    *("retriever", "faiss", "peft", "pytest", "matplotlib.pyplot", "torch.utils.tensorboard", "uvicorn", "mcp", "mcp.server.stdio", "ranx.metrics"),
    *("sentence_transformers", "sentence_transformers.sentence_transformer.losses", "sentence_transformers.sentence_transformer.modules"),
    *("transformers.trainer", "transformers.integrations", "transformers.models.bert.modeling_bert", "transformers.models.bert.tokenization_bert"),
)
"""What most commands import sooner or later; of packages that are there, and of retriever every module."""

SIDE_FOLDERS = ("teachers", "indexing", "training", "eval")

READ_AT_IMPORT = ("HF_HOME", "HF_HUB_OFFLINE", "MPLBACKEND", "PYTHONHASHSEED", "PYTHONPATH")
"""A child cannot change these."""


class ForkedCommands:
    """Starts Python processes that can be signalled; use it as a context.

    A line is what stands behind `python`: "-m", a module and its arguments, or "-c", code and its arguments.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pipes = 0
        self._ended: dict[int, int] = {}

    def __enter__(self) -> ForkedCommands:
        line = [sys.executable, "-m", "tests.forked_commands"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(line, cwd=ROOT, env=process_environment(), start_new_session=True, text=True, **pipes)
        self._ask({})  # answered when everything is imported
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.process.communicate()

    def start(self, *line: object, folder: Path = ROOT, environment: Mapping[str, str] | None = None, streams: Mapping[str, str | Path] | None = None) -> int:
        """Starts a process and gives its id.

        Args:
            line: of the command.
            folder: the current one.
            environment: that of `process_environment`, where none is given.
            streams: "in", "out", "err" -> a path; else nothing is read, and what is written goes to files of this folder.
        """
        chosen = {"in": os.devnull, "out": self.folder / "{process_id}.out", "err": self.folder / "{process_id}.err", **(streams or {})}
        process_id = self._ask(
            {
                "line": [str(part) for part in line],
                "folder": str(folder),
                "environment": dict(environment or process_environment()),
                "streams": {name: str(path) for name, path in chosen.items()},
            }
        )
        assert process_id
        self._ended.pop(process_id, None)  # of another process that had this id
        return process_id

    def pipe(self) -> Path:
        """A named pipe for a stream; opening it waits for the other end."""
        self._pipes += 1
        os.mkfifo(path := self.folder / f"{self._pipes}.pipe")
        return path

    def ended(self, process_id: int) -> int | None:
        """The exit status, negative when a signal ended it; None while it runs."""
        if process_id not in self._ended and (status := self._ask({"ended": process_id})) is not None:
            self._ended[process_id] = status
        return self._ended.get(process_id)

    def wait(self, process_id: int, timeout_seconds: float = 300) -> Said:
        """What a command printed when it has ended; a hang is an error too."""
        deadline = time.monotonic() + timeout_seconds
        while (status := self.ended(process_id)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(self._log(process_id, "err"))
            time.sleep(0.005)
        return Said(status, self._log(process_id, "out"), self._log(process_id, "err"))

    def run(self, *line: object, folder: Path = ROOT, environment: Mapping[str, str] | None = None, streams: Mapping[str, str | Path] | None = None) -> Said:
        """Starts a process and waits for its end."""
        return self.wait(self.start(*line, folder=folder, environment=environment, streams=streams))

    def together(self, *line: object, count: int = 2, timeout_seconds: float = 300) -> Said:
        """So many processes as torchrun starts them: they find each other, and when one fails the others are ended; what all of them said."""
        from torch.distributed import TCPStore

        meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        group = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting.port}
        group |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
        places = [{name: str(value) for name, value in {**group, "RANK": rank, "LOCAL_RANK": rank}.items()} for rank in range(count)]
        running = [self.start(*line, environment=process_environment(**place)) for place in places]
        deadline = time.monotonic() + timeout_seconds
        while None in (statuses := [self.ended(process_id) for process_id in running]) and not any(statuses) and time.monotonic() < deadline:
            time.sleep(0.005)
        for process_id, status in zip(running, statuses, strict=True):
            if status is None:
                os.kill(process_id, signal.SIGTERM)
        said = [self.wait(process_id) for process_id in running]
        failed = (status for status in (*statuses, *(one.status for one in said)) if status)  # the one that ended the others comes first
        return Said(next(failed, 0), "".join(one.out for one in said), "".join(one.err for one in said))

    def _log(self, process_id: int, stream: str) -> str:
        path = self.folder / f"{process_id}.{stream}"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _ask(self, request: object) -> int | None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: int | None = json.loads(self.process.stdout.readline())
        return answer


# The process that forks. It imports, and computes nothing: a child would wait for threads that it has not.


def serve() -> None:
    """Answers requests until standard input ends, then ends what still runs."""
    running: set[int] = set()
    for line in sys.stdin:
        request, answer = json.loads(line), None
        if "line" in request:
            answer = os.fork()
            if not answer:
                return become(**request)
            os.setpgid(answer, answer)
            running.add(answer)
        elif "ended" in request:
            process_id, status = os.waitpid(request["ended"], os.WNOHANG)
            if process_id:
                running.remove(process_id)
                answer = os.waitstatus_to_exitcode(status)
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
    for process_id in running:
        os.killpg(process_id, signal.SIGKILL)
    return None


def become(line: list[str], folder: str, environment: dict[str, str], streams: dict[str, str]) -> None:
    """Makes a forked process what it would be had it been started anew, and runs its line."""
    import numpy as np
    import torch

    changed = [name for name in READ_AT_IMPORT if environment.get(name) != os.environ.get(name)]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    _open_streams(streams)
    if changed:
        sys.exit(f"a forked process cannot change {', '.join(changed)}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background has it ignored
    tempfile.tempdir = None  # TMPDIR is read again
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    torch.seed()  # all children would draw alike
    np.random.set_state(np.random.RandomState().get_state())
    if line[0] == "-m":
        sys.path[0], sys.argv = str(Path.cwd()), line[1:]
        runpy.run_module(line[1], run_name="__main__", alter_sys=True)
    else:
        assert line[0] == "-c", line
        sys.path[0], sys.argv = "", ["-c", *line[2:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(line[1], "<string>", "exec"), main.__dict__)  # noqa: S102


def _open_streams(streams: dict[str, str]) -> None:
    for number, (name, flags) in enumerate(STREAMS.items()):
        opened = os.open(streams[name].replace("{process_id}", str(os.getpid())), flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
        before = getattr(sys, f"std{name}")
        by_line = name == "err" or os.isatty(number)
        stream = open(number, "r" if name == "in" else "w", 1 if by_line else -1, before.encoding, before.errors, closefd=False)  # noqa: SIM115
        setattr(sys, f"std{name}", stream)
        setattr(sys, f"__std{name}__", stream)


def _import_everything() -> None:
    for name in (*IMPORTED, *_modules("retriever", "retriever"), *(name for side in SIDE_FOLDERS for name in _modules(side, f"retriever.{side}"))):
        with contextlib.suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child would look at all of it again, and copy its pages


def _modules(folder: str, package: str) -> list[str]:
    paths = [path.relative_to(ROOT / folder).with_suffix("") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [".".join((package, *path.parts)) for path in paths if path.name not in ("__init__", "__main__")]


if __name__ == "__main__":
    _import_everything()
    serve()
