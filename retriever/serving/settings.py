"""What a server is started with: which indexes, who may do what, and how much of everything. Worker processes read it from their environment."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from retriever.conversations.reading import Reading, check_reading, rewriter_of
from retriever.errors import ConfigError
from retriever.models.backends import BackendName
from retriever.remote.addresses import is_address, parse_address
from retriever.settings.section import PositiveInt, Settings, nearest

ENVIRONMENT = "RETRIEVER_SERVE"
"""The variable that carries the settings to worker processes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Limits(Settings):
    """How much of everything. What goes beyond is refused with one line that names the limit."""

    body_bytes: PositiveInt = Field(4 << 20, description="of one request")
    bodies_bytes: PositiveInt = Field(256 << 20, description="of all requests that are being answered by one process, before it answers 429")
    requests: PositiveInt = Field(256, description="answered at a time by one process, before it answers 429")
    k: PositiveInt = Field(1_000, description="documents for a query")
    queries: PositiveInt = Field(64, description="of one search")
    query_characters: PositiveInt = Field(8_192, description="of a query, with all turns before it")
    image_pixels: PositiveInt = Field(1 << 24, description="width times height, of an image that is searched with")
    turns: PositiveInt = Field(100, description="before a query, and kept of a conversation")
    texts: PositiveInt = Field(256, description="of one request for embeddings or scores")
    text_characters: PositiveInt = Field(65_536, description="of one of these texts")
    documents: PositiveInt = Field(1_000, description="added or deleted by one request")
    batch: PositiveInt = Field(32, description="queries encoded together")
    batch_wait_ms: float = Field(2.0, ge=0, le=100, description="that a query waits for others")
    queue: PositiveInt = Field(256, description="queries, and pieces of other work, that wait for the encoder, before the answer is 429")
    writes: PositiveInt = Field(16, description="that wait for their turn in one process, before the answer is 429")
    timeout_seconds: float = Field(30.0, gt=0, description="for an answer")
    write_timeout_seconds: float = Field(600.0, gt=0, description="for the answer to a change")
    cache_bytes: int = Field(64 << 20, ge=0, description="of encoded queries, and as many of answers; 0 for neither")
    conversation_hours: float = Field(24.0, gt=0, description="after its last turn, when a conversation is forgotten")
    conversations: PositiveInt = Field(1_000, description="that one key can have at a time")


class Place(Settings):
    """One thing that is served.

    Attributes:
        name: by which requests name it.
        where: a folder, an experiment file with stages, or an engine's address.
        reads: what its student reads of a conversation; None for what it was taught.
    """

    name: str
    where: str
    reads: Reading | None = None

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f'"{name}" is no name of an index: letters, digits, dots, _ and -, at most 100')
        return name


class ServeSettings(Settings):
    """All that a server process needs to know.

    Attributes:
        places: what is served; the first one answers requests that name none.
        student: folder of another student that encodes the queries.
        backend: what computes the students' transformers.
        overrides: of experiment files, as --set gives them.
        work: folder of experiments.
        write: whether documents may be changed.
        keys: the file of keys; None where everybody may do everything that `write` allows.
        state: folder of conversations and, where it is kept, of feedback.
        keep: whether the state stays when the server stops; feedback is refused where it does not.
        hosts: names by which the server may be called where there are no keys; empty for any.
        log_queries: whether the log holds what was asked.
    """

    places: tuple[Place, ...] = Field(min_length=1, strict=False)
    student: Path | None = Field(None, strict=False)
    backend: BackendName = "torch"
    overrides: tuple[str, ...] = Field((), strict=False)
    work: Path = Field(Path("work"), strict=False)
    write: bool = False
    keys: Path | None = Field(None, strict=False)
    state: Path = Field(strict=False)
    keep: bool = False
    hosts: tuple[str, ...] = Field((), strict=False)
    log_queries: bool = False
    limits: Limits = Limits()

    @field_validator("places")
    @classmethod
    def _have_own_names(cls, places: tuple[Place, ...]) -> tuple[Place, ...]:
        names = [place.name for place in places]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f'two indexes have the name "{twice[0]}". Give one another: NAME={places[-1].where}')
        return places


def place_of(text: str) -> Place:
    """What INDEX or NAME=INDEX names.

    Raises:
        ConfigError: the name is none.
    """
    first, equals, rest = text.partition("=")
    if equals and "/" not in first and rest:
        name, where = first, rest
    else:
        name, where = _own_name(text), text
    try:
        return Place(name=name, where=where)
    except ValidationError as error:
        raise ConfigError(f"serve: {_said(error)}. Give one: NAME={where}") from error


def places_of(texts: Sequence[str], reads: Sequence[str] = ()) -> tuple[Place, ...]:
    """What INDEX or NAME=INDEX names, one after the other.

    Args:
        texts: of the places.
        reads: NAME=READING for one of them, or READING for those that are not named so.

    Raises:
        ConfigError: a name is none, or a reading is unknown, of no place, or one of two.
    """
    places = tuple(place_of(text) for text in texts)
    named: dict[str, str] = {}
    for text in reads:
        name, reading = _named_reading(text, [place.name for place in places])
        if name in named:
            whose = f'of the index "{name}"' if name else "of all indexes; name one: --reads NAME=READING"
            raise ConfigError(f'--reads {text}: the second reading, after "{named[name]}", {whose}')
        named[name] = reading
    return tuple(place.model_copy(update={"reads": named.get(place.name, named.get(""))}) for place in places)


def _named_reading(text: str, names: Sequence[str]) -> tuple[str, str]:
    """The index and the reading of NAME=READING; "" for the index of a READING alone."""
    name, equals, reading = text.partition("=")
    if equals and name not in names:
        raise ConfigError(f'--reads {text}: there is no index "{name}"{nearest(name, names)}')
    try:
        found = (name, check_reading(reading)) if equals else ("", check_reading(text))
    except ValueError as error:
        raise ConfigError(f"--reads {text}: {error}") from error
    if rewriter_of(found[1]) is not None:
        raise ConfigError(f"--reads {text}: nobody writes rewrites of what is asked here. Choose another reading, for example: all")
    return found


def limits_of(texts: Sequence[str]) -> Limits:
    """The limits with those changed that `--limit NAME=VALUE` names.

    Raises:
        ConfigError: there is no such limit, or the value is none.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in Limits.model_fields:
            raise ConfigError(f'--limit {text}: there is no limit "{name}"{nearest(name, list(Limits.model_fields))}')
        if not equals:
            raise ConfigError(f"--limit {text}: has no value. Write --limit {name}=NUMBER")
        values[name] = value
    try:
        return Limits.model_validate_strings(values)
    except ValidationError as error:
        raise ConfigError(f"--limit {error.errors()[0]['loc'][0]}: {_said(error).lower()}") from error


def checked(settings: dict[str, object]) -> ServeSettings:
    """The settings of a server.

    Raises:
        ConfigError: something of them is wrong.
    """
    try:
        return ServeSettings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"serve: {_said(error)}") from error


def settings_from_environment() -> ServeSettings:
    """What the parent process wrote for this worker."""
    return ServeSettings.model_validate_json(os.environ[ENVIRONMENT])


def _own_name(where: str) -> str:
    if is_address(where):
        return parse_address(where).collection
    path = Path(where).absolute()
    return path.stem if path.suffix == ".toml" else path.parent.name if path.name == "index" else path.name


def _said(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ")
