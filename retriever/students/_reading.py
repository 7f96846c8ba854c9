"""How a student reads the turns of a conversation, kept beside its stock files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedTokenizerBase

from retriever.conversations.reading import READER, ConversationReader, Reading, check_reading
from retriever.errors import ConfigError
from retriever.files import write_json
from retriever.models.routes import modules_of
from retriever.settings.student import StudentSettings


def reader_for(model: Any, reading: str, tokens: int | None) -> ConversationReader:
    """A reader with the tokenizer of a sentence-transformers model; one whose tokenizer tells no places of tokens has room for everything."""
    tokenizer = model.tokenizer
    counts = isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.is_fast
    return ConversationReader(reading, tokens if counts else None, tokenizer if counts else None)


def query_room(model: Any) -> int | None:
    """Tokens that a model reads of a query, special ones and the prompt not counted; None for a model that reads everything."""
    first = modules_of(model, "query")[0]
    expansion = getattr(first, "query_expansion", None) or {}
    length = expansion["length"] if expansion.get("strategy") == "fixed" else getattr(first, "query_length", None)
    length = length or (first.max_seq_length if isinstance(first, Transformer) else None)
    if length is None or length > 1_000_000:
        return None
    prompt = (model.prompts or {}).get("query") or ""
    special = len(model.tokenizer(prompt)["input_ids"])
    return max(1, int(length) - special)


def save_reader(reader: ConversationReader, folder: Path) -> None:
    """Writes how the student reads conversations; nothing for one that reads the last turn alone."""
    if reader.reading != "last":
        write_json(folder / READER, reader.settings())


def saved_reader(folder: Path, model: Any) -> ConversationReader:
    """The reader of a saved student; that of the last turn where the folder says nothing.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / READER
    if not path.is_file():
        return ConversationReader()
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        reading, tokens = check_reading(said["reading"]), said["tokens"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: does not say how the student reads conversations ({error!r}). Copy the folder again, or train again") from error
    return reader_for(model, reading, tokens)


def set_reader(student: Any, settings: StudentSettings, reading: Reading, longest: int | None = None) -> None:
    """Lets a student read conversations as its section says.

    Args:
        student: one of a known kind, or of the user's own.
        settings: of the section [student].
        reading: what is read where they say nothing.
        longest: tokens that training reads of a text, where those are fewer.

    Raises:
        ConfigError: a student of the user's own has no reader to be set.
    """
    if not hasattr(student, "reader"):
        if settings.reads or settings.history_tokens:
            raise ConfigError(f"student.reads: a student of the kind {settings.kind} has no reader that could be set. Leave reads and history_tokens out")
        return
    known = [length for length in (query_room(student.model), longest and max(1, longest - 2)) if length]
    room = settings.history_tokens or min(known, default=None)
    if room and isinstance(student.model, CrossEncoder) and not settings.history_tokens:
        room = max(1, room // 2)  # the rest is the document's
    student.reader = reader_for(student.model, settings.reads or reading, room)
