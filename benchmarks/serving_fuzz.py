"""Requests made from the server's own description, right and wrong ones: how many of its answers are not ones that the description promises.

    python benchmarks/serving_fuzz.py                       # 200 right and 200 wrong requests to each route: about two minutes
    python benchmarks/serving_fuzz.py --examples 5 --no-results

schemathesis makes them, from /openapi.json, with a fixed seed. No answer may be a 5xx, each must have a described status, type, shape and headers, and
what is wrong must be refused. The server keeps documents that may be changed, so that those routes are asked too. Prints the figures
and adds to benchmarks/results/serving_fuzz.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from index_changes import built
from record import MACHINE, keep
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi import checks
from serving_changes import written_to

from retriever.progress import silence_libraries
from retriever.settings.index import INDEX_KINDS

DOCUMENTS = 200


def main() -> None:
    """Asks, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="right and wrong ones each, of each route")
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    silence_libraries()
    load_all_checks()
    with tempfile.TemporaryDirectory() as name:
        index = built(Path(name), range(DOCUMENTS), INDEX_KINDS["flat"](kind="flat"))
        with written_to(index, 1) as (url, _):
            found = asked(url, arguments.examples)
    if not arguments.no_results:
        keep("serving_fuzz", {f"{arguments.examples} examples": found})
    print(json.dumps(found, indent=2))
    print(f"{'holds ' if not found['wrong'] else 'MISSED'}  no 5xx, and no answer that is not described")


def asked(url: str, examples: int) -> dict[str, Any]:
    """Requests by the status of their answers, and what was wrong with an answer, once for each kind of fault and route."""
    conform = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
    conform += [checks.response_schema_conformance, checks.response_headers_conformance, checks.negative_data_rejection]
    statuses: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    routes = [found.ok() for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
    for route in routes:
        for mode in ("positive", "negative"):
            if mode == "negative" and not (route.body or route.query):
                continue  # any text is right in a path

            @given(route.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
            @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
            def ask(case: Any) -> None:
                answer = case.call(base_url=url, timeout=120)
                statuses[str(answer.status_code)] += 1
                case.validate_response(answer, checks=conform)

            try:
                ask()
            except Exception as error:  # noqa: BLE001 (whatever is wrong with an answer is a figure here)
                wrong.append(f"{route.method.upper()} {route.path}, {mode}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}")
    return {"routes": len(routes), "requests": statuses.total(), "statuses": dict(sorted(statuses.items())), "wrong": wrong, "machine": MACHINE}


if __name__ == "__main__":
    main()
