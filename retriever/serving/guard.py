"""What stands before every request: its id, its size, its time, who may call from where; and behind it the log and the counters."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import pydantic_core
from fastapi import FastAPI

from retriever.serving.faults import RequestError, bad_request, busy, unavailable
from retriever.serving.logs import LOG, tell
from retriever.serving.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CHANGES = ("/v1/documents", "/v1/indexes")
"""Below these, what is not GET has a time limit of its own."""


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: FastAPI) -> None:
        """Takes the application, whose state holds the service when it has started."""
        self._app = app
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, and what is none as the application does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service: Service = self._app.state.service
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        request = _Request(scope, headers, send)
        self._requests += 1
        size = 0
        try:
            _check_caller(service, headers)
            if self._requests > service.limits.requests:
                raise busy()
            async with asyncio.timeout(_seconds(service, scope)):
                body = bytearray()
                async for part in _parts(receive):
                    size += len(part)
                    self._bytes += len(part)
                    if max(size, _length(headers)) > service.limits.body_bytes:
                        raise RequestError(413, "too_large", f"the body has more than {service.limits.body_bytes:,} bytes", {"Connection": "close"})
                    if self._bytes > service.limits.bodies_bytes:
                        raise busy()
                    body += part
                _check_text(bytes(body))
                await self._app(scope, _replay(bytes(body), receive), request.send)
        except RequestError as fault:
            await request.refuse(fault)
        except TimeoutError:
            await request.refuse(RequestError(504, "timeout", f"no answer within {_seconds(service, scope):g} s; ask for less at a time, or try again"))
        except _GoneError:
            request.status = 499
        except Exception:  # noqa: BLE001 (the client gets one line, the log the rest)
            LOG.exception("request %s failed", request.request_id)
            await request.refuse(RequestError(500, "internal", f"the server made a mistake; its log names the request {request.request_id}"))
        finally:
            self._requests -= 1
            self._bytes -= size
            request.tell(service)


class _Request:
    """A request on its way, and what is told of it in the end."""

    def __init__(self, scope: Scope, headers: dict[bytes, str], send: Send) -> None:
        given = headers.get(b"x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self.status = 0
        self._scope, self._send = scope, send
        self._start = time.perf_counter()
        self.facts: dict[str, Any] = {}
        scope.setdefault("state", {})
        scope["state"] |= {"request_id": self.request_id, "facts": self.facts}

    async def send(self, message: Message) -> None:
        """Passes on what is answered, the request's id among its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name.lower() for name, _ in message["headers"]}
            ours = [header for header in HEADERS if header[0] not in own]  # the page has its own policy, and pictures may be kept
            message = {**message, "headers": [*message["headers"], *ours, (b"x-request-id", self.request_id.encode())]}
        await self._send(message)

    async def refuse(self, fault: RequestError) -> None:
        """Answers a fault, unless an answer has begun."""
        if self.status:
            return
        body = pydantic_core.to_json(fault.body())
        headers = {"content-type": "application/json", "content-length": str(len(body)), **fault.headers}
        await self.send(
            {"type": "http.response.start", "status": fault.status, "headers": [(name.lower().encode(), text.encode()) for name, text in headers.items()]}
        )
        await self.send({"type": "http.response.body", "body": body})

    def tell(self, service: Service) -> None:
        """Counts the request, and writes a line of the log: the route, and not the path, which may hold ids."""
        seconds = time.perf_counter() - self._start
        route = getattr(self._scope.get("route"), "path", "") or "none"
        method = self._scope["method"] if self._scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
        service.metrics.requests.labels(route, method, str(self.status)).inc()
        service.metrics.seconds.labels(route).observe(seconds)
        if self.status == 429:
            service.metrics.refused.inc()
        facts = {"method": method, "route": route, "status": self.status, "ms": round(seconds * 1_000, 1), **self.facts}
        tell("request", request_id=self.request_id, **facts)


class _GoneError(Exception):
    """The client hung up before it had said all."""


async def _parts(receive: Receive) -> Any:
    """The body, as it comes."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


def _length(headers: dict[bytes, str]) -> int:
    said = headers.get(b"content-length", "")
    return int(said) if said.isascii() and said.isdigit() else 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body in one piece, and what comes after it."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


def _seconds(service: Service, scope: Scope) -> float:
    changes = scope["method"] != "GET" and scope["path"].startswith(_CHANGES)
    return service.limits.timeout_seconds + (service.limits.write_timeout_seconds if changes else 0.0)


def _check_caller(service: Service, headers: dict[bytes, str]) -> None:
    """Refuses what a page of another site has a browser send: where there are no keys, nothing else would keep it away.

    Raises:
        RequestError: the request is of that kind, or the server is about to stop.
    """
    if service.closing:
        raise unavailable("the server is stopping")
    if service.keys is not None:
        return
    host, origin = headers.get(b"host", ""), headers.get(b"origin")
    if service.settings.hosts and _name(f"//{host}") not in service.settings.hosts:
        raise RequestError(403, "forbidden", "the server is not called by this name; add it with --allow-host, or use keys")
    if origin is not None and _site(origin) != host:
        raise RequestError(403, "forbidden", "pages of other sites may not ask this server")


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _site(origin: str) -> str | None:
    """Where a page comes from, as a Host header names it; None for what names no place: "null", or no address at all."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _check_text(body: bytes) -> None:
    """Refuses what no text can hold; JSON's readers let it through.

    Raises:
        RequestError: the body is not UTF-8, or holds half of a surrogate pair.
    """
    try:
        body.decode()
        if b"\\ud" in body.lower():
            json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise bad_request("body: holds half of a surrogate pair, which UTF-8 cannot carry") from error
    except UnicodeDecodeError as error:
        raise bad_request(f"body: is not in UTF-8 (byte {error.start + 1})") from error
    except (ValueError, RecursionError):
        return  # the application says what is wrong with it
