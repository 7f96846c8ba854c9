"""A file of queries for `retriever search`: id, tab, text; or one text a line."""

from __future__ import annotations

from pathlib import Path

from retriever.errors import DataError
from retriever.types import Query, check_id


def read_queries(path: Path) -> dict[str, Query]:
    """The queries of a file by id; lines without a tab are numbered from 1, empty lines are left out.

    Raises:
        DataError: the file cannot be read, an id is wrong or stands twice, or there is no query.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not in UTF-8 (byte {error.start + 1}). Save it as UTF-8") from error
    queries: dict[str, Query] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        first, tab, rest = line.partition("\t")
        query_id, text = (check_id(first, f"{path}:{number}"), rest) if tab else (str(number), line)
        if query_id in queries:
            raise DataError(f"{path}:{number}: the query id {query_id} stands twice")
        if not text.strip():
            raise DataError(f"{path}:{number}: the query {query_id} is empty. Give it a text, or take the line out")
        queries[query_id] = Query(query_id, text.strip())
    if not queries:
        raise DataError(f"{path}: holds no query. Write one a line: a text, or an id, a tab and a text")
    return queries
