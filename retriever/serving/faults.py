"""What goes wrong, as a client is told: one status, one type, one line, and never a path or a traceback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retriever.errors import ConfigError, DataError, RetrieverError
from retriever.serving.logs import LOG


class RequestError(Exception):
    """An answer that is none of what was asked for.

    Attributes:
        status: of HTTP.
        kind: as programs tell faults apart.
        headers: that go with it.
    """

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """As it is sent."""
        return {"error": {"type": self.kind, "message": printable(str(self))}}


class FullError(Exception):
    """So much waits already that no more is taken.

    Attributes:
        seconds: after which it is worth trying again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__("too much waits already")
        self.seconds = seconds


def bad_request(message: str) -> RequestError:
    """For what the client can mend."""
    return RequestError(400, "invalid_request", message)


def beyond(what: str, found: int, allowed: int) -> RequestError:
    """For what is more than a limit allows."""
    return bad_request(f"{what}: {found:,}, and {allowed:,} are allowed")


def busy(seconds: float = 1.0) -> RequestError:
    """For what would have to wait too long."""
    after = max(1, min(60, round(seconds)))
    return RequestError(429, "busy", f"the server has more to do than it can hold; try again in {after} s", {"Retry-After": str(after)})


def unavailable(message: str) -> RequestError:
    """For what the client cannot mend."""
    return RequestError(503, "unavailable", message, {"Retry-After": "5"})


def fault_of(error: RetrieverError, places: Mapping[str, str]) -> RequestError:
    """A mistake as the client is told of it; one that is none of the client's goes into the log.

    Args:
        error: of a user, whose messages may name folders of this machine.
        places: path -> the name that takes its place; absolute ones, which stand in a message for nothing else.
    """
    if not isinstance(error, ConfigError | DataError):
        LOG.error("%s", error)
        return unavailable("the index cannot be read or changed at the moment; the server's log says why")
    message = str(error)
    for path in sorted(places, key=len, reverse=True):
        message = message.replace(path, places[path])
    return bad_request(message)


def said(mistake: Mapping[str, Any]) -> str:
    """What pydantic says is wrong with a value."""
    return str(mistake.get("msg", "")).removeprefix("Value error, ")


def printable(text: str) -> str:
    """A text that UTF-8 can carry, on one line, and not too long."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:1_000]
