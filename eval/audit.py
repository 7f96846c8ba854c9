"""What the audit of the teachers found, as values: teachers.json is their plain form, teachers.html their picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from retriever.errors import DataError
from retriever.eval.curves import ScoreDistribution
from retriever.eval.directions import direction_of
from retriever.eval.significance import Comparison
from retriever.files import write_json, write_text


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """The pairs whose calibrated probability lies in one tenth of 0 to 1: their mean probability, the share that is relevant, their number."""

    probability: float
    share: float
    pairs: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How a score tells the probability of being relevant, on judged pairs alone.

    Attributes:
        pairs: judged pairs.
        relevant: how many of them are relevant.
        slope: of Platt's fit to all of them, probability = 1 / (1 + exp(-(slope * score + offset))).
        offset: likewise.
        error: expected calibration error of probabilities fitted on other queries.
        bins: what the error is made of, those that hold pairs.
    """

    pairs: int
    relevant: int
    slope: float
    offset: float
    error: float
    bins: tuple[ReliabilityBin, ...]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Standard deviations of the scores: of the pairs of a list around its mean, and of the lists' means."""

    within: float
    between: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a teacher's scores take; of an ensemble, those of all its members together.

    Attributes:
        pairs_per_second: measured here on whole lists, the model loaded and the documents' vectors (where it keeps some) made before.
        truncated: share of all its stored pairs that are longer than it reads; of an ensemble, that of the member with the most.
        mended: likewise, share of the pairs in answers that had to be repaired.
        tokens: mean tokens that it reads of a pair, 0 where it counts none.
        pairs: stored.
        bytes: of them on the disk.
        price: what a server has asked for them, in its currency; 0 for a model of one's own.
    """

    pairs_per_second: float
    truncated: float
    mended: float
    tokens: float
    pairs: int
    bytes: int
    price: float


@dataclasses.dataclass(frozen=True)
class Ruined:
    """A query that a teacher ranks worse than a baseline does.

    Attributes:
        query_id: of the query.
        baseline: the baseline's name.
        before: the baseline's value of the first measure.
        after: the teacher's.
        relevant: the relevant document that the baseline ranks best.
        rank_before: its rank there, from 1.
        rank_after: its rank by the teacher.
        first: the document that the teacher puts first.
    """

    query_id: str
    baseline: str
    before: float
    after: float
    relevant: str
    rank_before: int
    rank_after: int
    first: str


@dataclasses.dataclass(frozen=True)
class TeacherFindings(Cost):
    """All about one teacher or ensemble, its cost among it.

    Attributes:
        kind: of the teacher; "ensemble".
        members: of an ensemble.
        unit: of its scores.
        mean: measure -> mean over the held-out queries.
        interval: measure -> 95 % bootstrap interval.
        agreement: other teacher or ensemble -> Kendall's tau-b within lists, the mean over queries; None where no list gives one.
        overlap: likewise -> shared part of the ten best.
        spread: of its scores.
        distribution: of its scores, judged relevant documents against all other candidates.
        calibration: None where there are too few judged pairs of both kinds.
        ruined: its largest losses, first against BM25, then against the starting student.
    """

    kind: str
    members: tuple[str, ...]
    unit: str
    mean: dict[str, float]
    interval: dict[str, tuple[float, float]]
    agreement: dict[str, float | None]
    overlap: dict[str, float]
    spread: Spread
    distribution: ScoreDistribution
    calibration: Calibration | None
    ruined: tuple[Ruined, ...]


@dataclasses.dataclass(frozen=True)
class BaselineFindings:
    """A ranking of the same candidates that the teachers are held against."""

    description: str
    mean: dict[str, float]
    interval: dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A judgement that the teachers contradict.

    Attributes:
        query_id: of the query.
        doc_id: the document whose judgement is in doubt.
        teachers: those that contradict.
        strength: by how much, for sorting.
        positive: for an unjudged document, the judged positive that they rank best.
    """

    query_id: str
    doc_id: str
    teachers: tuple[str, ...]
    strength: float
    positive: str | None = None


@dataclasses.dataclass(frozen=True)
class Suspects:
    """Judgements in doubt: how many, in how many queries, and the strongest."""

    pairs: int
    queries: int
    listed: tuple[Suspect, ...]


@dataclasses.dataclass(frozen=True)
class AuditVerdict:
    """What to distil, by name: one teacher, one ensemble, or nothing; `members` are those of the ensemble; the reason in sentences."""

    distil: tuple[str, ...]
    reason: str
    members: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Texts:
    """What the ids in the findings stand for: id -> text, shortened."""

    queries: dict[str, str]
    documents: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Audit:
    """The whole audit.

    Attributes:
        title: the experiment's name.
        summary: a sentence on what was looked at.
        measures: the first one decides.
        queries: how many held-out judged train queries.
        teachers: name -> findings, ensembles last.
        baselines: name -> findings.
        deciding: every teacher and ensemble against the starting student in the first measure, corrected together.
        comparisons: all other tests, corrected together.
        false_negatives: unjudged documents that the teachers rank above every positive.
        mislabelled: documents judged relevant that all teachers rank at the bottom.
        verdict: what to do.
        texts: of the queries and documents that are named.
        seed: of tests and intervals.
        versions: package -> version.
        directions: everyone once more in each direction, as NAME.text_to_image and NAME.image_to_text; empty where queries go one way.
    """

    title: str
    summary: str
    measures: tuple[str, ...]
    queries: int
    teachers: dict[str, TeacherFindings]
    baselines: dict[str, BaselineFindings]
    deciding: tuple[Comparison, ...]
    comparisons: tuple[Comparison, ...]
    false_negatives: Suspects
    mislabelled: Suspects
    verdict: AuditVerdict
    texts: Texts
    seed: int
    versions: dict[str, str]
    directions: dict[str, BaselineFindings] = dataclasses.field(default_factory=dict)

    @property
    def everyone(self) -> dict[str, BaselineFindings | TeacherFindings]:
        """The rows of a table: baselines, teachers, and all of them in each direction."""
        return {**self.baselines, **self.teachers, **self.directions}

    def best(self, name: str, measure: str) -> bool:
        """Whether a row's mean is the highest of those of its direction."""
        alike = [found.mean[measure] for other, found in self.everyone.items() if direction_of(other) == direction_of(name)]
        return self.everyone[name].mean[measure] == max(alike)


def write_audit(folder: Path, audit: Audit) -> Path:
    """Writes teachers.json and teachers.html into `folder`; returns the path of teachers.html."""
    from retriever.eval.audit_page import render_audit

    write_json(folder / "teachers.json", dataclasses.asdict(audit))
    path = folder / "teachers.html"
    write_text(path, render_audit(audit))
    return path


def read_audit(folder: Path) -> Audit:
    """What `write_audit` wrote into `folder`.

    Raises:
        DataError: teachers.json is missing or not from this program.
    """
    path = folder / "teachers.json"
    try:
        return TypeAdapter(Audit).validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error}). Run "retriever teachers" again') from error
    except ValidationError as error:
        raise DataError(f'{path}: not an audit of this version ({error.error_count()} problems). Remove {folder} and run "retriever teachers" again') from error
