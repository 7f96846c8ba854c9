"""Starting and stopping: the socket, the processes, and what they share."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from uvicorn.supervisors import Multiprocess

from retriever.doctor import usable_cores
from retriever.errors import ConfigError
from retriever.index.layout import index_folder, read_version
from retriever.openers import LOOPBACK
from retriever.remote.addresses import is_address
from retriever.serving.app import application, open_service
from retriever.serving.logs import write_log
from retriever.serving.metrics import SHARED
from retriever.serving.settings import ENVIRONMENT, ServeSettings

FACTORY = "retriever.serving.app:app_from_environment"
STOP_SECONDS = 30
"""For which a stop waits for what was begun, before it cuts it off."""


def serve(settings: ServeSettings, host: str, port: int, workers: int, say: Callable[[str], None]) -> None:
    """Serves until it is told to stop by SIGTERM or Ctrl-C; then finishes what it began.

    Args:
        settings: of the server.
        host: name or address of the interface.
        port: 0 for one that is free.
        workers: processes.
        say: is told the address.

    Raises:
        RetrieverError: something cannot be opened, or the port is taken.
    """
    write_log()
    if workers == 1:
        service = open_service(settings)
        with listening(host, port) as own:
            say(address_of(own, host))
            _until_told(lambda: uvicorn.Server(_config(application(settings, service), 1)).run([own]))
        return
    for place in settings.places:
        if not is_address(place.where) and not place.where.endswith(".toml"):
            read_version(index_folder(Path(place.where)))  # a wrong folder is told once, and here
    with listening(host, port) as own, _shared(settings, max(1, usable_cores() // workers)):
        say(address_of(own, host))
        _until_told(lambda: Multiprocess(_config(FACTORY, workers), [own]).run())


@contextlib.contextmanager
def state_folder(wanted: Path | None) -> Iterator[Path]:
    """The folder of conversations and feedback; without one, one that is gone when the block ends.

    Raises:
        ConfigError: it cannot be made.
    """
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="retriever-serve-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--state {wanted}: cannot be made ({error.strerror})") from error
    yield wanted


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that takes connections from now on; they wait until somebody answers.

    Raises:
        ConfigError: the address is none of this machine, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        own = socket.create_server(address[:2], family=family, backlog=2_048)
    except OSError as error:
        raise ConfigError(f"serve: {host} port {port} cannot be listened on ({error.strerror}). Take another one, or --port 0 for one that is free") from error
    own.set_inheritable(True)
    with own:
        yield own


def address_of(own: socket.socket, host: str) -> str:
    """The address as a browser takes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{own.getsockname()[1]}"


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach it."""
    return host in LOOPBACK or host.startswith("127.")


def _config(app: object, workers: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        factory=isinstance(app, str),
        workers=workers,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 << 10,
        timeout_worker_healthcheck=120,
    )


@contextlib.contextmanager
def _shared(settings: ServeSettings, threads: int) -> Iterator[None]:
    """The environment that worker processes start in; each computes with so many threads, unless the user said otherwise."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="retriever-metrics-", ignore_cleanup_errors=True) as counters:
        os.environ |= {ENVIRONMENT: settings.model_dump_json(), SHARED: counters}
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _until_told(run: Callable[[], None]) -> None:
    """Runs, and comes back after the signals that stop it: uvicorn raises them once more when it is done."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
