"""Requests made from the interface's own description, right and wrong ones: every answer is one that the description promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from retriever.types import Document
from tests.serving_material import Running, running
from tests.test_index import built

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = 8
"""Of each route, right and wrong ones each."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Iterator[Running]:
    documents = [
        Document("owl", "a bird that hunts mice", "Owl", fields={"kind": "animal", "legs": 2}),
        Document("saw", "a tool that cuts wood", "Saw", fields={"kind": "tool"}),
    ]
    whole = built(tmp_path_factory.mktemp("served"), "dense", encoder_folder, documents)
    with running(tmp_path_factory.mktemp("state"), f"notes={whole}", write=True) as found:
        yield found


def operations(server: Running) -> list[Any]:
    """The routes, as the server describes them."""
    return [found.ok() for found in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations()]


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_one_that_the_interface_describes(server: Running, mode: str) -> None:
    from schemathesis.checks import load_all_checks, not_a_server_error
    from schemathesis.specs.openapi import checks

    load_all_checks()
    conform = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
    conform += [checks.response_schema_conformance, checks.response_headers_conformance, checks.negative_data_rejection]
    asked = 0
    for operation in operations(server):
        if mode == "negative" and not (operation.body or operation.query):
            continue  # any text is right in a path

        @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            case.validate_response(case.call(base_url=server.url, timeout=120), checks=conform)

        ask()
    assert asked > 60
