"""What the pages are filled with: templates, and pictures with the words around them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from retriever.eval import wording

TEMPLATES = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Picture:
    """An SVG text with the words around it."""

    svg: Any
    title: str
    caption: str


def picture(svg: str, title: str, caption: str) -> Picture:
    """An SVG text that the page takes as it stands."""
    from markupsafe import Markup

    return Picture(Markup(svg), title, caption)


def fill_template(name: str, **values: Any) -> str:
    """The template of that name beside this file, filled; what it names and is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["words"] = wording
    return environment.get_template(name).render(values)
