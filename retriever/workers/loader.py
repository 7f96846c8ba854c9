"""Who does an experiment's work on many texts, as the section [scoring] says: this process, or workers that load a model each."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retriever.config import Experiment, ScoringSettings
from retriever.workers.tasks import Answer, Ask, Engine, Model, Shared, Task, here

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Loader:
    """Loads one model of an experiment in another process, from its files; made by `Loader.of`.

    Attributes:
        experiment: the checked file, of which a worker starts no workers.
        work: the folder that holds the experiment's folder; other machines must see it under the same name.
        load: a method of `Pipeline`, such as `Pipeline.load_teacher`.
        argument: what it is given: settings, or the folder of a trained model.
    """

    experiment: Experiment
    work: Path
    load: Callable[[Pipeline, Any], Any]
    argument: Any

    @classmethod
    def of(cls, pipeline: Pipeline, load: Callable[[Pipeline, Any], Any], argument: Any) -> Loader:
        """The loader of a model of this experiment."""
        alone = pipeline.experiment.model_copy(update={"scoring": ScoringSettings()})
        return cls(alone, pipeline.folder.parent.resolve(), load, argument.resolve() if isinstance(argument, Path) else argument)

    def __call__(self) -> Any:
        """The loaded model."""
        from retriever.pipeline import Pipeline

        return self.load(Pipeline(self.experiment, self.work), self.argument)


@contextlib.contextmanager
def engine_of(
    settings: ScoringSettings, load: Callable[[], Model], ask: Ask[Model, Shared, Task, Answer], what: str
) -> Iterator[Engine[Model, Shared, Task, Answer]]:
    """Who asks a model: this process, or workers that live as long as the block.

    Args:
        settings: of the section [scoring].
        load: makes the model in a worker.
        ask: what is asked of it.
        what: the model, at the beginning of messages.

    Raises:
        MissingExtraError: Ray is wanted and not installed.
        ConfigError: its cluster cannot be reached or has too few GPUs.
    """
    if settings.engine == "local":
        yield here(ask)
        return
    from retriever.workers.ray_engine import ray_engine

    with ray_engine(settings, load, ask, what) as engine:
        yield engine
