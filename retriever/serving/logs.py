"""The log: a JSON object a line, on standard error. It holds no query and no key unless the server was told to log queries."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

LOG = logging.getLogger("retriever.serving")
_OWN = "retriever_facts"


class JsonLines(logging.Formatter):
    """One object a record: when, how grave, what, and facts beside it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "event": record.getMessage(), **getattr(record, _OWN, {})}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def write_log() -> None:
    """Sends our records and uvicorn's to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("retriever.serving", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.propagate = name == "uvicorn.error"
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def tell(event: str, **facts: Any) -> None:
    """Writes a line."""
    LOG.info(event, extra={_OWN: facts})
