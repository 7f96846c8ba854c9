"""The interface as a page for people: made of its OpenAPI document, without a script."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "pre{overflow-x:auto;padding:.5rem;border:1px solid}code{font-weight:600}summary{cursor:pointer}"
)


def api_page(document: Mapping[str, Any]) -> str:
    """The page: every route with its words, and the schemas of what it takes and gives."""
    parts = "".join(_routes(document))
    title = html.escape(document["info"]["title"])
    schemas = "".join(_folded(name, schema, f"s-{name}") for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f"{head}<style>{_STYLE}</style><h1>{title}</h1><p>As a document for programs: /openapi.json</p>{parts}<h2>Schemas</h2>{schemas}</html>"


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            words = html.escape(route.get("description") or route.get("summary", ""))
            yield f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{words}</p>"
            takes = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            gives = route.get("responses", {}).get("200", {}).get("content", {}).get("application/json", {}).get("schema")
            yield "".join(f"<p>{word} {html.escape(_named(schema))}</p>" for word, schema in (("takes", takes), ("answers", gives)) if schema)


def _named(schema: Mapping[str, Any]) -> str:
    """The name of a schema, or what it is."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_named(one) for one in schema["anyOf"])
    return f"a list of {_named(schema['items'])}" if schema.get("type") == "array" else str(schema.get("type", "JSON"))


def _folded(name: str, schema: Any, anchor: str) -> str:
    shown = html.escape(json.dumps(schema, indent=2, ensure_ascii=False))
    return f'<details id="{html.escape(anchor)}"><summary>{html.escape(name)}</summary><pre>{shown}</pre></details>'
