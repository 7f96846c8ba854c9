"""What is served and lies in no index folder: a collection of an engine, and the stages of an experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retriever.errors import ConfigError
from retriever.filters import Condition, check_conditions
from retriever.remote.engine import Point
from retriever.remote.search import RemoteSearch, open_remote_search
from retriever.serving.encoder_thread import Asked, EncoderThread, Found, in_groups
from retriever.serving.settings import Place, ServeSettings
from retriever.serving.shared_encoder import SharedEncoder, shared_encoder
from retriever.serving.timing import Stopwatch
from retriever.tables.fields import Kind
from retriever.types import Document, Query

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline
    from retriever.stages import StagedSearch, Standing


@dataclasses.dataclass(frozen=True)
class EngineView:
    """A collection that an engine keeps. Nobody says when it changes, so no answer is remembered."""

    found: RemoteSearch
    encoder: SharedEncoder
    version: None = None
    stages: tuple[str, ...] = ()

    @property
    def documents(self) -> int:
        """How many there were when it was opened."""
        return len(self.found)

    @property
    def fields(self) -> Mapping[str, Kind]:
        """What the values of documents' fields are."""
        return self.found.index.kinds

    def check(self, conditions: Sequence[Condition]) -> None:
        """Refuses conditions that the documents cannot answer."""
        check_conditions(self.fields, conditions, "filter")

    def remembered(self, asked: Asked) -> None:
        """Nothing."""
        return

    def answer(self, asked: Sequence[Asked]) -> list[Found]:
        """Encodes all together, and asks the engine together for what has the same depth and conditions."""
        watch = Stopwatch()
        vectors = self.encoder.own.encode_queries([one.query for one in asked])
        watch.lap("encode")

        def search(places: list[int]) -> list[list[Point]]:
            one = asked[places[0]]
            return self.found.index.search(vectors[np.array(places)], one.k, one.conditions)

        points = in_groups(asked, lambda one: (one.k, one.conditions), search)
        watch.lap("search")
        return [_of_points(own, watch.milliseconds) for own in points]

    def standings(self, query: Query, doc_id: str) -> tuple[()]:
        """None: it searches in one go."""
        return ()

    def document(self, doc_id: str) -> Document | None:
        """None is found by its id."""
        raise ConfigError(f"the document {doc_id:.100} cannot be looked up: an engine finds documents by queries alone")


def _of_points(points: Sequence[Point], milliseconds: Mapping[str, float]) -> Found:
    return Found([point.score for point in points], lambda: [point.document for point in points], milliseconds)


class ServedEngine:
    """A collection of an engine under a name."""

    kind = "engine"
    folder = None
    behind = False
    paths: Mapping[str, str] = {}

    def __init__(self, place: Place, settings: ServeSettings, thread: EncoderThread) -> None:
        self.name = place.name
        found = open_remote_search(place.where, Path(settings.student or ""))
        self._view = EngineView(found, shared_encoder(found.encoder, thread, settings, place))

    def fresh(self) -> EngineView:
        """The collection."""
        return self._view

    def reopened(self) -> EngineView:
        """The same."""
        return self._view

    def close(self) -> None:
        """Ends the connection."""
        self._view.found.index.close()


@dataclasses.dataclass(frozen=True)
class StagesView:
    """The stages of an experiment over its collection."""

    found: StagedSearch
    encoder: SharedEncoder
    version: None = None

    @property
    def documents(self) -> int:
        """How many the collection has."""
        return len(self.found.documents)

    @property
    def fields(self) -> Mapping[str, Kind]:
        """None that could be asked for."""
        return {}

    @property
    def stages(self) -> tuple[str, ...]:
        """Who ranks in each stage, and how many are kept."""
        return tuple(stage.name for stage in self.found.stages)

    def check(self, conditions: Sequence[Condition]) -> None:
        """Refuses all of them."""
        if conditions:
            raise ConfigError("filter: stages take none. Search the index of the student")

    def remembered(self, asked: Asked) -> None:
        """Nothing: a teacher's answers may change."""
        return

    def answer(self, asked: Sequence[Asked]) -> list[Found]:
        """Searches together what goes through the same stages."""
        return in_groups(asked, lambda one: one.stages, lambda places: self._searched([asked[place] for place in places]))

    def standings(self, query: Query, doc_id: str) -> tuple[Standing, ...]:
        """What each stage gives a document."""
        from retriever.stages import standings

        return standings(self.found.stages, query, doc_id)

    def document(self, doc_id: str) -> Document | None:
        """The document of an id."""
        row = int(self.found.documents.rows_of([doc_id])[0])
        return None if row < 0 else self.found.documents.documents_by_row([row])[0]

    def _searched(self, asked: Sequence[Asked]) -> list[Found]:
        """Of queries that go through the same stages."""
        from retriever.stages import search

        queries = {str(number): dataclasses.replace(one.query, query_id=str(number)) for number, one in enumerate(asked)}
        watch = Stopwatch()
        run = search(self.found.stages[: asked[0].stages], queries, watch.lap)
        return [self._found(run[query_id][: one.k], watch.milliseconds) for query_id, one in zip(queries, asked, strict=True)]

    def _found(self, pairs: Sequence[tuple[str, float]], milliseconds: Mapping[str, float]) -> Found:
        documents = self.found.documents
        return Found(
            [float(score) for _, score in pairs],
            lambda: documents.documents_by_row(documents.rows_of([doc_id for doc_id, _ in pairs])),
            milliseconds,
        )


class ServedStages:
    """The stages of an experiment file under a name."""

    kind = "stages"
    folder = None
    behind = False

    def __init__(self, place: Place, settings: ServeSettings, thread: EncoderThread) -> None:
        from retriever.config import read_experiment
        from retriever.pipeline import Pipeline
        from retriever.steps.stages import open_stages

        self.name = place.name
        pipeline = Pipeline(read_experiment(Path(place.where), settings.overrides), settings.work.absolute())
        self.paths: Mapping[str, str] = {str(pipeline.folder): place.name}
        found = open_stages(pipeline)
        self._view = StagesView(found, shared_encoder(_student_of(pipeline), thread, settings, place))

    def fresh(self) -> StagesView:
        """The stages."""
        return self._view

    def reopened(self) -> StagesView:
        """The same."""
        return self._view

    def close(self) -> None:
        """Nothing: files are only mapped."""


def _student_of(pipeline: Pipeline) -> Any:
    """The experiment's student, as the stages hold it where they name it: an index loads one of its own, and how that reads decides what is found."""
    named = any("student" in stage.by for stage in pipeline.experiment.stage)
    return pipeline.index.encoder if named and not pipeline.reranks else pipeline.student
