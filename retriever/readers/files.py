"""A folder of plain texts and Markdown (.txt, .md): one document a file, a long file in parts; there are no queries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from retriever.errors import DataError
from retriever.readers import Judgement, Source
from retriever.types import Document, Query

LAYOUT = "files that end in .txt or .md, in folders at will, and no tables beside them"
ENDINGS = (".txt", ".md")
TABLES = (".jsonl", ".tsv", ".parquet", ".gz", ".arrow", ".trec", ".qrels")
PART_WORDS = 200
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def recognises(path: Path) -> bool:
    """Whether a folder holds texts, and at its top no file or folder of another format."""
    if not path.is_dir() or any(entry.name.endswith(TABLES) or entry.name.startswith("qrels") for entry in path.iterdir()):
        return False
    return any(file.stat().st_size for file in _texts(path)) and not (path / "dataset_info.json").exists()


def files(source: Source) -> list[Path]:
    """The texts."""
    return list(_texts(source.path))


def documents(source: Source) -> Iterator[tuple[str, Document]]:
    """The files by name; the parts of a long one are PATH#1, PATH#2 and so on, all with its title.

    White space in a path becomes "_" in the id. The title is the first heading, else the file's name. Files without words
    are left out.
    """
    for file in _texts(source.path):
        title, text = _title_and_text(file)
        identifier = "_".join(file.relative_to(source.path).as_posix().split())
        found = parts(text) or ([""] if title != file.stem else [])
        for number, part in enumerate(found, 1):
            yield str(file), Document(identifier if len(found) == 1 else f"{identifier}#{number}", part, title)


def queries(source: Source) -> Iterator[tuple[str, Query]]:
    """None."""
    yield from ()


def splits(source: Source) -> tuple[str, ...]:
    """None."""
    return ()


def qrels(source: Source, split: str) -> Iterator[Judgement]:
    """None."""
    yield from ()


def parts(text: str, words: int = PART_WORDS) -> list[str]:
    """A text in parts of about so many words: whole paragraphs where they are short enough; one part where it has no more."""
    if len(text.split()) <= words:
        return [text.strip()] if text.strip() else []
    found: list[list[str]] = [[]]
    for paragraph in _paragraphs(text, words):
        if found[-1] and _count(found[-1]) + _count([paragraph]) > words:
            found.append([])
        found[-1].append(paragraph)
    return ["\n\n".join(part) for part in found]


def _paragraphs(text: str, words: int) -> Iterator[str]:
    """What blank lines part; a longer paragraph is cut after each `words` words."""
    for paragraph in re.split(r"\n\s*\n", text):
        listed = paragraph.split()
        if len(listed) <= words:
            yield from [paragraph.strip()] if listed else []
        else:
            yield from (" ".join(listed[start : start + words]) for start in range(0, len(listed), words))


def _count(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _title_and_text(file: Path) -> tuple[str, str]:
    """The first heading of a Markdown file and the text without it; else the file's name and the whole text."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start + 1} is not UTF-8. Convert the file, for example with: iconv -f latin1 -t utf-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    heading = HEADING.search(text) if file.suffix == ".md" else None
    return (heading[1], text[: heading.start()] + text[heading.end() :]) if heading else (file.stem, text)


def _texts(folder: Path) -> Iterator[Path]:
    """The texts below a folder by name, hidden ones left out."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in ENDINGS and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path
