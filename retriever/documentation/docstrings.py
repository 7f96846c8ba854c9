"""Docstrings as prose: the summary sentence, the text without code and mark-up, and what is said of related objects."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

DROPPED_SECTIONS = frozenset({
    "references", "see also", "methods", "attributes", "example", "examples", "usage", "sample", "code sample", "array api standard support",
})  # fmt: skip
PARAMETER_SECTIONS = frozenset({
    "parameters", "other parameters", "returns", "return", "yields", "raises", "warns", "args", "arguments", "keyword args", "keyword arguments",
})  # fmt: skip

_SIGNATURE = re.compile(r"[A-Za-z_][\w.]*\s?\(")
_PROSE_AFTER_CALL = re.compile(r"\)\s*[^-\s:=)]")
_UNDERLINE = re.compile(r"[-=~]{3,}")
_DROPPED_DIRECTIVE = re.compile(
    r"\.\. +(?:math|code|code-block|plot|ipython|doctest|testcode|image|figure|versionadded|versionchanged|_|\[|index|include|currentmodule|table)"
)
_DIRECTIVE = re.compile(r"\.\. +[\w-]+::")
_RULE = re.compile(r"[-=~^+*#|\s]{3,}")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<!vs\.)(?<!etc\.)\s+(?=[\"'(]?[A-Z0-9])")
_SEE_ALSO = re.compile(r"^See [Aa]lso\n-+\n(.*?)(?=\n\n[^\s:][^\n]*\n[-=]{3,}|\Z)", re.DOTALL | re.MULTILINE)
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_INLINE = (
    (re.compile(r":[a-z:+]+:`([^`<]*?)\s*<[^`>]*>`"), r"\1"),  # :func:`text <target>`
    (re.compile(r":[a-z:+]+:`~(?:\w+\.)*([^`]*)`"), r"\1"),  # :class:`~torch.nn.Linear` shows its last part
    (re.compile(r":[a-z:+]+:`!?([^`]*)`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `text <address>`_
    (re.compile(r"\s*\[[#*\w]{1,12}\]_"), ""),  # [1]_
    (re.compile(r"https?://\S+"), ""),
    (re.compile(r"`+([^`]*)`+_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"\\(?:text|math\w+|operatorname|left|right)\b\{?([^{}]*)\}?"), r"\1"),  # \text{input}
    (re.compile(r"\\(?=[_*|a-zA-Z])"), ""),
)


def plain(text: str) -> str:
    """The text on one line without reStructuredText mark-up, addresses of objects and links."""
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return " ".join(_ADDRESS.sub("", text).split())


def sentences(text: str) -> list[str]:
    """The sentences of a plain text."""
    return _SENTENCE_END.split(text) if text else []


def parse_docstring(doc: str) -> Docstring:
    """Takes a docstring (numpy's, Google's or free style; already cleaned of its indentation) apart."""
    blocks = [block for section in _sections(_without_signature(doc.expandtabs().split("\n"))) for block in _blocks(section)]
    related = tuple(_related(doc))
    if not blocks:
        return Docstring("", (), related)
    summary, *rest = ["", blocks[0].text] if blocks[0].section else sentences(blocks[0].text)
    units = (" ".join(rest), *(block.text for block in blocks[1:]))
    return Docstring(summary, tuple(unit for unit in units if unit), related)


def _without_signature(lines: list[str]) -> list[str]:
    """The lines without the call signatures at their beginning, which may run over several lines."""
    start = 0
    while start < len(lines) and (not lines[start].strip() or _SIGNATURE.match(lines[start])):
        end, depth = start, lines[start].count("(") - lines[start].count(")")
        while depth > 0 and end + 1 < len(lines) and lines[end + 1].strip():
            end += 1
            depth += lines[end].count("(") - lines[end].count(")")
        if depth or _PROSE_AFTER_CALL.search(lines[end]):
            break
        start = end + 1
    return lines[start:]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _sections(lines: list[str]) -> Iterator[Section]:
    """The lines cut at numpy's underlined headers and at Google's `Args:`, whose section ends with its indentation."""
    name, google, body = "", False, list[str]()
    for number, line in enumerate(lines):
        underlined = number + 1 < len(lines) and _UNDERLINE.fullmatch(lines[number + 1].strip()) is not None
        header = line.strip().rstrip(":").lower()
        starts_google = line.rstrip().endswith(":") and header in DROPPED_SECTIONS | PARAMETER_SECTIONS
        if line.strip() and _indent(line) == 0 and (underlined or starts_google or google):
            yield Section(name, body)
            name, google, body = (header, starts_google, []) if underlined or starts_google else ("", False, [line])
        else:
            body.append(line)
    yield Section(name, body)


def _visible(lines: Iterable[str]) -> Iterator[str]:
    """The lines with an empty one in the place of each that is code, a formula, a table's rule or a directive's name."""
    hidden_below = -1  # lines indented deeper than this belong to something that is left out
    session = False
    for line in lines:
        indent, stripped = _indent(line), line.strip()
        session = bool(stripped) and (session or stripped.startswith(">>>"))
        if not stripped or session or 0 <= hidden_below < indent or _RULE.fullmatch(stripped):
            yield ""
            continue
        hidden_below = -1
        if _DROPPED_DIRECTIVE.match(stripped) or stripped.endswith("::"):
            hidden_below = indent
        if _DROPPED_DIRECTIVE.match(stripped):
            yield ""
        elif stripped.startswith(".. "):
            hidden_below = -1
            yield " " * indent + _DIRECTIVE.sub("", stripped)
        else:
            yield line.removesuffix(":") if stripped.endswith("::") else line


def _blocks(section: Section) -> Iterator[Block]:
    """The paragraphs of a section, or the entries of one that lists parameters."""
    if section.name in DROPPED_SECTIONS:
        return
    lines = list(_visible(section.lines))
    first = next((line for line in lines if line.strip()), "")
    entry_indent = _indent(first) if section.name in PARAMETER_SECTIONS else -1
    block: list[str] = []
    for line in [*lines, ""]:
        if block and (not line.strip() or _indent(line) <= entry_indent):
            if text := plain(" ".join(block)):
                yield Block(section.name, text)
            block = []
        if line.strip():
            block.append(line.strip())


def _related(doc: str) -> Iterator[tuple[str, str]]:
    """Pairs of a name and its description from the section "See Also"."""
    found = _SEE_ALSO.search(doc)
    for entry in re.split(r"\n(?=\S)", found[1]) if found else ():
        head, separator, description = entry.partition(" :")
        if separator and "," not in head:
            yield plain(head).rstrip("()"), plain(description.split("\n\n")[0])


@dataclasses.dataclass(frozen=True)
class Section:
    """A section's name in lower case, "" for the text outside all of them, and its lines."""

    name: str
    lines: list[str]


@dataclasses.dataclass(frozen=True)
class Block:
    """A paragraph or one parameter's entry as plain text, and the section it stands in."""

    section: str
    text: str


@dataclasses.dataclass(frozen=True)
class Docstring:
    """A docstring taken apart.

    Attributes:
        summary: the first sentence, "" when there is none before the first section.
        units: the rest as plain paragraphs and parameter entries, in their order.
        related: names of other objects, each with the description given of it.
    """

    summary: str
    units: tuple[str, ...]
    related: tuple[tuple[str, str], ...]
