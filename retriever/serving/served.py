"""What is served: something with a name that opens its newest version, whatever keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from retriever.errors import ConfigError
from retriever.filters import Condition
from retriever.remote.addresses import is_address
from retriever.serving.encoder_thread import Asked, EncoderThread, Found
from retriever.serving.settings import Place, ServeSettings
from retriever.serving.shared_encoder import SharedEncoder
from retriever.tables.fields import Kind
from retriever.types import Document, Query

if TYPE_CHECKING:
    from retriever.stages import Standing


class OpenView(Protocol):
    """A version, opened. It answers the same whatever is changed meanwhile."""

    @property
    def version(self) -> int | None:
        """Its number; None where nobody counts versions."""
        ...

    @property
    def documents(self) -> int:
        """How many can be found."""
        ...

    @property
    def encoder(self) -> SharedEncoder:
        """The student."""
        ...

    @property
    def fields(self) -> Mapping[str, Kind]:
        """What the values of documents' fields are."""
        ...

    @property
    def stages(self) -> Sequence[str]:
        """The names of the stages in which it searches; none for a search in one go."""
        ...

    def check(self, conditions: Sequence[Condition]) -> None:
        """Refuses conditions that the documents cannot answer.

        Raises:
            ConfigError: they cannot.
        """
        ...

    def remembered(self, asked: Asked) -> Found | None:
        """What was found when the same was asked before; None where that is not known."""
        ...

    def answer(self, asked: Sequence[Asked]) -> list[Found]:
        """What is found for each query; called in the encoder thread alone."""
        ...

    def standings(self, query: Query, doc_id: str) -> Sequence[Standing]:
        """What each stage gives a document; empty for a search in one go. Called in the encoder thread alone."""
        ...

    def document(self, doc_id: str) -> Document | None:
        """The document of an id; None where there is none.

        Raises:
            ConfigError: it finds no documents by their ids.
        """
        ...


class Served(Protocol):
    """Something that is searched under a name."""

    @property
    def name(self) -> str:
        """By which requests name it."""
        ...

    @property
    def kind(self) -> str:
        """The name of what keeps it: index, engine or stages."""
        ...

    @property
    def folder(self) -> Path | None:
        """Of an index whose documents can be changed."""
        ...

    @property
    def behind(self) -> bool:
        """Whether the newest version could not be served, and the one before answers on; the log says why."""
        ...

    @property
    def paths(self) -> Mapping[str, str]:
        """Paths that messages may name -> what clients are told instead."""
        ...

    def fresh(self) -> OpenView | None:
        """The newest version, where it is open already; takes microseconds."""
        ...

    def reopened(self) -> OpenView:
        """The newest version, opened now where it is not yet.

        Raises:
            SearchIndexError: it cannot be.
        """
        ...

    def close(self) -> None:
        """Ends what is open to elsewhere."""
        ...


def open_served(place: Place, settings: ServeSettings, thread: EncoderThread) -> Served:
    """What a place names, opened, its student loaded.

    Raises:
        RetrieverError: it cannot be, or a student is missing or given where none is wanted.
    """
    if is_address(place.where):
        from retriever.serving.served_elsewhere import ServedEngine

        if settings.student is None:
            raise ConfigError(f"serve: {place.where} keeps no student. Give the one that made it: --student FOLDER")
        return ServedEngine(place, settings, thread)
    if place.where.endswith(".toml"):
        from retriever.serving.served_elsewhere import ServedStages

        if settings.student is not None:
            raise ConfigError("serve: --student is for indexes and engines' addresses; the student of an experiment file's stages is its own")
        return ServedStages(place, settings, thread)
    from retriever.serving.served_index import ServedIndex

    return ServedIndex(place, settings, thread)
