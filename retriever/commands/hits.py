"""How results of a search are shown."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from retriever.search import Hit


_INDENT = " " * 13


def show_hits(hits: Sequence[Hit], text: str) -> None:
    """Rank, score and title of each result, and under it the stretch of its text that has most of the words of `text`, or the image's path."""
    from retriever.search import snippet

    for hit in hits:
        typer.secho(f"{hit.rank:>3}  {hit.score:.4f}  {hit.document.title or hit.document.doc_id}", bold=True)
        if hit.document.text:
            typer.echo(_folded(snippet(hit.document.text, text)))
        if hit.document.image:
            typer.echo(f"{_INDENT}{hit.document.image}")  # never folded, so that it can be copied


def plain_hit(hit: Hit) -> dict[str, Any]:
    """A result as JSON has it."""
    document = hit.document
    found = {"rank": hit.rank, "score": hit.score, "id": document.doc_id, "title": document.title, "text": document.text}
    image = {"image": str(document.image)} if document.image else {}
    return {**found, **image, **({"fields": dict(document.fields)} if document.fields else {})}


def _folded(text: str) -> str:
    """A snippet under its title: indented, and folded where a person reads it."""
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.fill(text, width, initial_indent=_INDENT, subsequent_indent=_INDENT) if sys.stdout.isatty() else _INDENT + text
