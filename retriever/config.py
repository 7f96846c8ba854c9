"""The experiment file: one TOML, every key checked, with the defaults filled in."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from retriever.errors import ConfigError
from retriever.settings.captioner import CaptionerSettings, check_captioners
from retriever.settings.collection import NAMED_SOURCES, CandidateSettings, CollectionSettings, TransferSettings
from retriever.settings.evaluation import EvaluationSettings
from retriever.settings.generation import GenerationSettings
from retriever.settings.index import EXACT, INDEX_KINDS, STUDENTS_OF, AnyIndexSettings, AutoSettings, PrivateIndexSettings
from retriever.settings.reinforce import ReinforceSettings
from retriever.settings.rewriter import RewriterSettings, check_rewriters
from retriever.settings.section import PositiveInt, Settings, nearest
from retriever.settings.stage import NAMED_RANKERS, StageSettings, check_stages
from retriever.settings.student import STUDENT_KINDS, AnyStudentSettings, PrivateStudentSettings
from retriever.settings.teacher import TEACHER_KINDS, AnyTeacherSettings, ModelTeacherSettings, PrivateSettings, RunSettings, TeacherSettings
from retriever.settings.training import TrainingSettings
from retriever.types import ViewName

Combination = Literal["mean", "weighted_mean", "softmax_mean", "reciprocal_rank", "routing"]


class EnsembleSettings(Settings):
    """How several teachers become one target."""

    normalise: ViewName = Field(
        "z_score",
        description="how each teacher is seen: none, z_score, min_max, rank or reciprocal_rank within a list, "
        "standardised over all pairs, calibration to log-odds or temperature by the train qrels",
    )
    combine: Combination = Field("mean", description="mean, weighted_mean, softmax_mean, reciprocal_rank, or routing: the teacher or the mean, by query")
    select: str = Field("auto", description='"auto": what ranks held-out train queries best, "all": the ensemble, or one teacher\'s name')


class ScoringSettings(Settings):
    """Where models read many texts: teachers score, documents are encoded, a language model writes queries."""

    engine: Literal["local", "ray"] = Field("local", description='"local": in this process; "ray": by workers on a Ray cluster, extra [ray]')
    workers: PositiveInt = Field(2, description="Ray: how many hold a model at the same time")
    gpus_per_worker: float = Field(0.0, ge=0, description="Ray: such as 1, or 0.5 for two workers on each")
    address: str | None = Field(None, description='Ray: of a cluster, such as "auto"; one is started on this machine when left out')


class Experiment(Settings):
    """A whole experiment file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="its folder's name under the work folder")
    seed: int = Field(1, ge=0)
    collection: CollectionSettings
    generation: GenerationSettings | None = None
    rewriter: tuple[RewriterSettings, ...] = Field((), strict=False)
    candidates: CandidateSettings = CandidateSettings()
    teacher: tuple[AnyTeacherSettings, ...] = Field(strict=False, min_length=1)
    scoring: ScoringSettings = ScoringSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    student: AnyStudentSettings
    captioner: tuple[CaptionerSettings, ...] = Field((), strict=False)
    reinforce: ReinforceSettings | None = None
    training: TrainingSettings = TrainingSettings()
    index: AnyIndexSettings = AutoSettings()
    stage: tuple[StageSettings, ...] = Field((), strict=False)
    evaluation: EvaluationSettings = EvaluationSettings()
    transfer: tuple[TransferSettings, ...] = Field((), strict=False)

    @property
    def exact_index(self) -> str:
        """The kind of index that finds exactly what the student ranks best; of an own student "flat"."""
        return EXACT.get(self.student.kind, "flat")

    @property
    def trainings(self) -> dict[str, dict[str, float]]:
        """Run -> losses of the trainings that the student is held against."""
        found = {"contrastive": {"contrastive": 1.0}} if self.evaluation.ablation else {}
        found |= {"judged": self.training.losses} if self.evaluation.ablation and self.collection.unjudged else {}
        return found | self.evaluation.other_losses

    @model_validator(mode="after")
    def _teacher_names(self) -> Experiment:
        labels = [teacher.label for teacher in self.teacher]
        for label in labels:
            if labels.count(label) > 1 or label == "ensemble":
                raise ValueError(f'teacher: the name "{label}" is {"reserved" if label == "ensemble" else "given twice"}; set teacher.name')
        if self.ensemble.select not in ("auto", "all", *labels):
            raise ValueError(f'ensemble.select: "{self.ensemble.select}" is none of auto, all, {", ".join(labels)}')
        return self

    @model_validator(mode="after")
    def _cascade(self) -> Experiment:
        """What a teacher does not read is chosen and filled in by others that read everything."""
        if all(getattr(teacher, "cascade", None) for teacher in self.teacher):
            raise ValueError(
                f'teacher {self.teacher[0].label}: a cascade needs a teacher without one, which scores every pair; add a cheap one, such as kind = "lexical"'
            )
        return self

    @model_validator(mode="after")
    def _adapters(self) -> Experiment:
        """Only a transformer has layers for adapters, and a new head needs more than those."""
        why = {
            "static": "has no transformer that could have adapters",
            "cross_encoder": "has a new head, which adapters leave as it is",
        }
        if self.training.lora and self.student.kind in why:
            raise ValueError(f"training.lora: a {self.student.kind} student {why[self.student.kind]}. Leave training.lora out")
        return self

    @model_validator(mode="after")
    def _frozen(self) -> Experiment:
        """Texts have states between layers only where a transformer reads them one by one."""
        why = {
            "static": "has no transformer whose layers could stay as they are",
            "cross_encoder": "reads query and document together, so no text has states of its own",
        }
        if self.training.frozen_layers and self.student.kind in why:
            raise ValueError(f"training.frozen_layers: a {self.student.kind} student {why[self.student.kind]}. Leave training.frozen_layers out")
        if self.student.frozen_documents and self.training.frozen_layers:
            raise ValueError("student.frozen_documents reads no document in training, which training.frozen_layers would make cheap. Leave one of them out")
        return self

    @model_validator(mode="after")
    def _queue(self) -> Experiment:
        """A queue keeps one vector a document, which must be able to change."""
        if self.training.queue and self.student.kind in ("sparse", "late_interaction", "cross_encoder"):
            raise ValueError(f"training.queue: keeps one vector a document, which a {self.student.kind} student does not give. Leave training.queue out")
        if self.training.queue and self.student.frozen_documents:
            raise ValueError("student.frozen_documents: documents do not change, so that training.queue has nothing to follow. Leave one of them out")
        return self

    @model_validator(mode="after")
    def _sizes(self) -> Experiment:
        """Only one vector for a text can be cut and stay one."""
        if self.training.matryoshka and self.student.kind in ("sparse", "late_interaction", "cross_encoder"):
            why = "gives logits" if self.student.kind == "cross_encoder" else "does not give one vector for a text, whose first dimensions could stand for it"
            raise ValueError(f"training.matryoshka: a {self.student.kind} student {why}. Leave training.matryoshka out")
        return self

    @model_validator(mode="after")
    def _index_fits(self) -> Experiment:
        """An index takes the encodings of some kinds of student."""
        kind, fits = self.index.kind, STUDENTS_OF.get(self.index.kind, (self.student.kind,))
        if self.student.kind in EXACT and self.student.kind not in fits:
            possible = [name for name, students in STUDENTS_OF.items() if self.student.kind in students]
            raise ValueError(f'index.kind: "{kind}" is for students of the kind {" or ".join(fits)}, not {self.student.kind}. Choose {", ".join(possible)}')
        return self

    @model_validator(mode="after")
    def _rewriters(self) -> Experiment:
        check_rewriters(self.rewriter)
        check_captioners(self.captioner)
        return self

    @model_validator(mode="after")
    def _transfer(self) -> Experiment:
        labels = [one.label for one in self.transfer]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f'transfer: the name "{twice[0]}" is given twice; set transfer.name')
        if self.transfer and self.student.kind == "cross_encoder":
            raise ValueError("transfer: a cross_encoder student retrieves nothing by itself, so it cannot be measured on other collections. Leave transfer out")
        return self

    @model_validator(mode="after")
    def _stages(self) -> Experiment:
        check_stages(self.stage, reranks=self.student.kind == "cross_encoder")
        return self

    @model_validator(mode="after")
    def _generation(self) -> Experiment:
        """Generated queries are no judged ones that folds could cut, and no file of scores has heard of them."""
        if self.generation is None:
            return self
        if self.collection.folds:
            raise ValueError("collection.folds: cuts the queries that people judged, and [generation] writes others. Leave one of the two out")
        if strict := [one.label for one in self.teacher if isinstance(one, RunSettings) and one.missing == "error"]:
            raise ValueError(f'teacher {strict[0]}: its file has no scores of generated queries; set missing = "lowest", or leave [generation] out')
        return self

    @model_validator(mode="after")
    def _critic(self) -> Experiment:
        """The teacher that judges generated queries must be able to, before there are any."""
        name = self.generation.teacher if self.generation else None
        if name is None:
            return self
        found = next((teacher for teacher in self.teacher if teacher.label == name), None)
        if found is None:
            raise ValueError(f'generation.teacher: "{name}" is none of {", ".join(teacher.label for teacher in self.teacher)}')
        if found.kind in ("run", "llm_listwise") or getattr(found, "train", None):
            why = "it is taught after they are written" if getattr(found, "train", None) else f"the kind {found.kind} scores no new pairs"
            raise ValueError(f'generation.teacher: "{name}" cannot judge generated queries: {why}. Name another teacher, or none')
        return self

    @model_validator(mode="after")
    def _ensemble_keys(self) -> Experiment:
        """Keys that would be read by nothing, or twice."""
        combine, together = self.ensemble.combine, len(self.teacher) > 1
        for teacher in self.teacher:
            divides = "temperature" in (teacher.normalise, self.ensemble.normalise if together and not teacher.normalise else None)
            softmax = together and combine == "softmax_mean"
            if teacher.temperature and not divides and not softmax:
                raise ValueError(f'teacher {teacher.label}: nothing reads its temperature; set normalise = "temperature", or ensemble.combine = "softmax_mean"')
            if divides and softmax:
                raise ValueError(f'teacher {teacher.label}: softmax_mean divides by the temperature already; set normalise = "none"')
        weighted = [teacher.label for teacher in self.teacher if teacher.weight]
        if combine == "weighted_mean" and 0 < len(weighted) < len(self.teacher):
            raise ValueError(f"teacher {weighted[0]}: has a weight and others have none; give all teachers one, or none, and they are fitted")
        return self


def read_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The checked experiment of a TOML file, with `--set` style overrides ("training.epochs=3") applied.

    Relative paths in it become relative to the file.

    Raises:
        ConfigError: no such file, no TOML, an unknown key (the nearest known one is named) or a wrong value.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f'{path}: cannot be read ({error.strerror}). "retriever init" writes a new experiment file') from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _apply(values, override)
    return experiment_from(values, str(path), path.parent)


def experiment_from(values: Mapping[str, Any], where: str = "experiment", base: Path | None = None) -> Experiment:
    """The checked experiment of nested mappings; `where` begins the error message, `base` anchors relative paths.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from error
    return _anchor(experiment, base) if base else experiment


def _anchor(experiment: Experiment, base: Path) -> Experiment:
    """Relative paths, and model names that are folders beside the file, made absolute."""

    def model(name: str | None) -> str | None:
        return str((base / name).resolve()) if name and ((base / name).is_dir() or name.endswith(".gguf")) else name

    def anchored(teacher: TeacherSettings) -> dict[str, Any]:
        if isinstance(teacher, RunSettings):
            return {"path": (base / teacher.path.expanduser()).resolve()}
        return {"model": model(teacher.model)} if isinstance(teacher, ModelTeacherSettings) else {}

    collection, student = experiment.collection, experiment.student
    if collection.path:
        collection = collection.model_copy(update={"path": (base / collection.path.expanduser()).resolve()})
    models = ("model", "image_model", "text_model")
    student = student.model_copy(update={name: model(getattr(student, name)) for name in models if hasattr(student, name)})
    teachers = tuple(teacher.model_copy(update=anchored(teacher)) for teacher in experiment.teacher)
    sources = [
        source if source in NAMED_SOURCES or not (base / source).exists() else str((base / source).resolve()) for source in experiment.candidates.sources
    ]
    candidates = experiment.candidates.model_copy(update={"sources": tuple(sources)})
    generation = experiment.generation and experiment.generation.model_copy(update={"model": model(experiment.generation.model)})
    stages = [
        stage.model_copy(update={"by": tuple(name if name in NAMED_RANKERS else str((base / name).resolve()) for name in stage.by)})
        for stage in experiment.stage
    ]
    transfer = tuple(one.model_copy(update={"path": (base / one.path.expanduser()).resolve()}) for one in experiment.transfer)
    rewriters = tuple(one.model_copy(update={"model": model(one.model)}) for one in experiment.rewriter)
    captioners = tuple(one.model_copy(update={"model": model(one.model)}) for one in experiment.captioner)
    reinforce = experiment.reinforce
    if reinforce and reinforce.synthetic_captions:
        reinforce = reinforce.model_copy(update={"synthetic_captions": (base / reinforce.synthetic_captions.expanduser()).resolve()})
    training = experiment.training
    if training.reinforced:
        training = training.model_copy(update={"reinforced": (base / training.reinforced.expanduser()).resolve()})
    changed = {
        "reinforce": reinforce,
        "training": training,
        "transfer": transfer,
        "rewriter": rewriters,
        "captioner": captioners,
        "collection": collection,
        "generation": generation,
        "candidates": candidates,
        "student": student,
        "teacher": teachers,
    }
    return experiment.model_copy(update={**changed, "stage": tuple(stages)})


def _apply(values: dict[str, Any], override: str) -> None:
    """Sets one `a.b=c`; the value is read as TOML, and as a plain string where that fails. `teacher.0.model=x` reaches into lists."""
    key, equals, text = override.partition("=")
    *parents, last = (part.strip() for part in key.split("."))
    if not equals or not all((*parents, last)):
        raise ConfigError(f"--set {override}: expected KEY=VALUE, for example --set training.epochs=3")
    value = _toml_value(text)
    place: Any = values
    for part in parents:
        place = _step_into(place, part, override)
    if isinstance(place, list):
        place[_number(last, place, override)] = value
    else:
        place[last] = value


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _step_into(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_number(part, place, override)]
    inner = place.setdefault(part, {})
    if not isinstance(inner, dict | list):
        raise ConfigError(f'--set {override}: "{part}" is a value, not a section')
    return inner


def _number(part: str, place: list[Any], override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise ConfigError(f'--set {override}: here stands a list, so "{part}" must be a number from 0 to {len(place) - 1}, as in teacher.0.batch_size=8')
    return int(part)


def _first_problem(error: ValidationError) -> str:
    """One line for the first of pydantic's errors, in the words of the file."""
    problems = [found for found in error.errors() if found["type"] != "too_short" or not found["input"]]  # pydantic counts only the good ones of a list
    problem = min(problems, key=lambda found: found["type"] != "extra_forbidden")  # a misspelt key explains the missing one
    place = ".".join(str(part) for part in _without_kind(problem["loc"]))
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        *parents, key = problem["loc"]
        return f'unknown key "{place}"{nearest(str(key), _keys_at(tuple(parents)))}{more}'
    if problem["type"] == "missing":
        return f'the key "{place}" is missing{more}'
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{place + ': ' if place else ''}{message}{more}"
    wanted = _IN_OUR_WORDS.get(problem["type"], problem["msg"].replace("Input should", "must"))
    if problem["loc"] == ("teacher",):
        wanted = "must be a list of tables: write [[teacher]]"
    return f"{place}: {wanted}, found {problem['input']!r:.80}{more}"


_IN_OUR_WORDS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "model_type": "must be a table",
    "path_type": "must be a path in quotes",
    "string_pattern_mismatch": "may hold letters, digits and . _ - only, and begins with a letter or a digit",
    "string_type": "must be a text in quotes",
    "too_short": "must hold one at least",
    "tuple_type": "must be a list",
}
"""What is allowed, by the type of pydantic's error, where pydantic's words are those of Python."""


def _without_kind(place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A problem's place as the file has it: pydantic adds the kind of a teacher's, the student's or the index's table."""
    tag = {"teacher": 2, "student": 1, "index": 1}.get(str(place[0]) if place else "", len(place))
    return (*place[:tag], *place[tag + 1 :])


def _keys_at(parents: tuple[str | int, ...]) -> tuple[str, ...]:
    """The known keys of a section, for the advice on an unknown one."""
    section: type[BaseModel] = Experiment
    for before, part in zip((None, *parents), parents, strict=False):
        if before == "student":
            section = STUDENT_KINDS.get(str(part), PrivateStudentSettings)
        elif before == "index":
            section = INDEX_KINDS.get(str(part), PrivateIndexSettings)
        elif part in (*TEACHER_KINDS, "private"):
            section = TEACHER_KINDS.get(str(part), PrivateSettings)
        elif isinstance(part, str):
            section = _section_in(section.model_fields[part].annotation) or section
    return tuple(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key's type names, alone, optional or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_in(inner))), None)
