"""How programs here ask a server over HTTP: that server and no other."""

from __future__ import annotations

import urllib.request
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Names of this machine, which nothing else can reach."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows none: the key must not travel to another host, and what is posted would go there as a question."""

    def redirect_request(self, *_: Any) -> None:
        """No request."""


def opener_for(host: str | None) -> urllib.request.OpenerDirector:
    """What asks a host without following redirects, and one on this machine without a proxy between."""
    return urllib.request.build_opener(NoRedirects, *([urllib.request.ProxyHandler({})] if host in LOOPBACK else []))
