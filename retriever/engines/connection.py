"""JSON over HTTP to a server that may be slow, busy or rate-limited: many requests at a time, tried again with growing pauses."""

from __future__ import annotations

import concurrent.futures
import datetime
import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from retriever.engines.settings import ServerSettings
from retriever.errors import ConfigError, RetrieverError
from retriever.openers import opener_for

BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Answers after which the same request may succeed."""

LONGEST_PAUSE = 300.0
"""Seconds; a server that asks for more gets its next request after this."""


class _TryAgainError(Exception):
    """A request that may succeed later, and the seconds that the server asks for."""

    def __init__(self, what: str, pause: float | None = None) -> None:
        super().__init__(what)
        self.pause = pause


class _StoppedError(RetrieverError):
    """A request that was not made because another one failed."""


class Connection:
    """Requests to one server.

    Attributes:
        settings: address, limits, prices and the name of the variable that holds the key.
        where: begins error messages.
    """

    def __init__(self, settings: ServerSettings, where: str, first_pause_seconds: float = 1.0) -> None:
        self.settings = settings
        self.where = where
        self.first_pause_seconds = first_pause_seconds
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next_start = 0.0
        self._failure: RetrieverError | None = None
        self._opener = opener_for(urllib.parse.urlsplit(settings.url).hostname)
        self._headers = {"Content-Type": "application/json", "User-Agent": "retriever-distill", **self._authorization()}

    def _authorization(self) -> dict[str, str]:
        variable = self.settings.api_key_env
        if variable is None:
            return {}
        if not (key := os.environ.get(variable, "").strip()):
            raise ConfigError(f"{self.where}: the environment variable {variable} holds no key. Set it, or leave api_key_env out for a server without keys")
        return {"Authorization": f"Bearer {key}"}

    def post_all(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The server's answers to some requests, in their order.

        Raises:
            ConfigError: the server refuses a request for good: key, address, model or fields are wrong.
            RetrieverError: it did not answer however often it was asked.
        """
        self._stop.clear()
        self._failure = None
        pool = concurrent.futures.ThreadPoolExecutor(self.settings.concurrency)
        try:
            return list(pool.map(lambda body: self._post(path, body), bodies))
        except _StoppedError as stopped:  # earlier in their order than the one that failed
            raise self._failure or stopped from None
        finally:
            self._stop.set()  # after a failure or Ctrl-C nobody waits for a pause to end
            pool.shutdown(wait=True, cancel_futures=True)

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One answer; a failure stops the other workers before their next request."""
        try:
            return self._post_patiently(path, body)
        except _StoppedError:
            raise
        except RetrieverError as error:
            with self._lock:
                self._failure = self._failure or error
            self._stop.set()
            raise

    def _post_patiently(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.settings.url}{path}", json.dumps(body).encode(), self._headers, method="POST")
        attempt = 0
        while True:
            self._wait_for_start()
            if self._stop.is_set():
                raise _StoppedError(f"{self.where}: stopped")
            try:
                return self._send(request)
            except _TryAgainError as error:
                if attempt == self.settings.retries:
                    raise RetrieverError(
                        f"{self.where}: {self.settings.url} failed {attempt + 1} times, at last: {error}. "
                        "What is stored is kept: run the same command again when the server is well, or lower concurrency"
                    ) from error
                pause = self.first_pause_seconds * 2**attempt * random.uniform(0.75, 1.25)  # so that workers do not come back all at once
                self._pause(min(max(pause, error.pause or 0.0), LONGEST_PAUSE), everybody=error.pause is not None)
                attempt += 1

    def _send(self, request: urllib.request.Request) -> dict[str, Any]:
        try:
            with self._opener.open(request, timeout=self.settings.timeout_seconds) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # no connection, a time-out, a cut answer, no JSON
            reason = getattr(error, "reason", error)
            raise _TryAgainError(f"no answer in {self.settings.timeout_seconds:g} s" if isinstance(reason, TimeoutError) else str(reason)[:200]) from error
        if not isinstance(answer, dict):
            raise _TryAgainError("the answer is no JSON object")
        return answer

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What an answer with an error's status means: busy, or wrong for good."""
        said = _message(error)
        if error.code in BUSY:
            return _TryAgainError(f"status {error.code} {said}".rstrip(), _retry_after(error.headers.get("Retry-After")))
        advice = {
            401: f"check the key in {self.settings.api_key_env}" if self.settings.api_key_env else "it wants a key: set api_key_env",
            403: "the key may not do this",
            404: "check url (it ends with the version, such as /v1), endpoint and model",
        }.get(error.code, "check url and model" if 300 <= error.code < 400 else "check model, endpoint, top_logprobs and max_length")
        return ConfigError(f"{self.where}: {self.settings.url} answered with status {error.code}: {said or 'nothing'}; {advice}")

    def _wait_for_start(self) -> None:
        """Waits until the rate limit and the pauses that the server asked for allow another request."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + (60.0 / self.settings.requests_per_minute if self.settings.requests_per_minute else 0.0)
        if start > now:
            self._stop.wait(start - now)

    def _pause(self, seconds: float, *, everybody: bool) -> None:
        if everybody:
            with self._lock:
                self._next_start = max(self._next_start, time.monotonic() + seconds)
        else:
            self._stop.wait(seconds)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    if not value:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max((when - datetime.datetime.now(when.tzinfo or None)).total_seconds(), 0.0)


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says of its error, in one short line."""
    try:
        text = error.read(10_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        value = json.loads(text)
        inner = value.get("error", value)
        text = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:200]
