"""The way from a collection to an index, step by step: each is made when first asked for and then kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retriever.bm25 import BM25
from retriever.candidates import pair_scores, with_positives
from retriever.collection import Collection, open_collection
from retriever.config import Experiment
from retriever.conversations.reading import ConversationReader, Reading, told_cuts
from retriever.conversations.rewriting import rewritten, with_rewrites
from retriever.encodings import DocumentEncodings, document_identity
from retriever.errors import ConfigError, DataError, SearchIndexError, StoreError
from retriever.eval.measures import parse_measure
from retriever.generation.step import generated_collection
from retriever.images.readers import check_readers
from retriever.index.changes import publish
from retriever.plugins import load_kind
from retriever.progress import Quiet, Reporter
from retriever.queries import asked_fingerprint, judged_queries, kept_together, read_queries, reader_of, unjudged_queries
from retriever.resources import Resources
from retriever.runs import Run
from retriever.scores.store import ScoreStore
from retriever.search import SearchIndex, open_index
from retriever.settings.student import SparseSettings, StudentSettings
from retriever.settings.teacher import CrossFittedSettings, EmbeddingSettings, TeacherSettings
from retriever.settings.training import TrainingSettings
from retriever.steps.bm25 import bm25_of
from retriever.steps.candidates import find_candidates
from retriever.steps.cascade import cascade_inputs, cascades, stored_scores
from retriever.steps.encoders import encode_documents, load_encoder
from retriever.steps.rounds import train_in_rounds
from retriever.steps.score import score_pairs_of
from retriever.steps.step import Done, Step, changed, forget, run_step
from retriever.steps.target import Target
from retriever.steps.teach import teach
from retriever.students._reading import set_reader
from retriever.teachers._cross_fitted import CrossFittedTeacher
from retriever.training.samples import hold_out
from retriever.training.trainer import check_training
from retriever.types import Document, Query, Teacher, TeacherIdentity
from retriever.workers.loader import Loader

Opened = TypeVar("Opened")


def check_names(experiment: Experiment) -> None:
    """Sees to it that the kinds, measures, devices and packages that an experiment asks for exist, before hours of work meet one that does not.

    Raises:
        ConfigError: one does not exist, or a measure stands twice.
        MissingExtraError: a package is not installed.
    """
    for teacher in experiment.teacher:
        load_kind("teachers", teacher.kind, f"teacher {teacher.label}")
    load_kind("students", experiment.student.kind, "student.kind")
    if experiment.index.kind != "auto":
        load_kind("indexing", experiment.index.kind, "index.kind")
    check_training(experiment.training)
    try:
        measures = [str(parse_measure(measure)) for measure in experiment.evaluation.measures]
    except ConfigError as error:
        raise ConfigError(f"evaluation.measures: {error}") from error
    if len(set(measures)) < len(measures):
        raise ConfigError(f"evaluation.measures: one stands twice in {', '.join(measures)}. Take it out")


class Pipeline:
    """An experiment's steps. Asking for a result makes what it needs; what is on disk already is only opened.

    Attributes:
        experiment: the checked file.
        folder: work folder / experiment's name.
        reporter: where progress is told.
        encodings_folder: where documents' encodings are kept; experiments on the same documents may share it.
        rewritten_folder: where rewriters' answers are kept, by what was said; experiments may share it.

    Raises:
        ConfigError: a kind or a measure of the experiment does not exist; nothing was begun.
    """

    def __init__(self, experiment: Experiment, work: Path = Path("work"), reporter: Reporter | None = None) -> None:
        check_names(experiment)
        self.experiment = experiment
        self.folder = work / experiment.name
        self.reporter: Reporter = reporter or Quiet()
        self.encodings_folder = self.folder / "encodings"
        self.rewritten_folder = self.folder / "rewritten"
        self._encodings: dict[str, DocumentEncodings] = {}
        self._loaders: dict[str, Loader] = {}
        self._reranked: dict[str, Run] = {}
        self._read: dict[tuple[str, Reading], dict[str, Query]] = {}
        self._read_by_student: dict[str, dict[str, Query]] = {}

    # The same experiment on other queries or documents

    def on(self, name: str, source: Mapping[str, Any], changes: Mapping[str, Any], parent: Path) -> Pipeline:
        """The experiment on another collection, in the folder `parent` / `name`; it shares encodings and rewriters' answers with this one.

        Args:
            name: its own.
            source: what is set in the section [collection].
            changes: what is set in other sections.
            parent: of its folder.
        """
        collection = self.experiment.collection.model_copy(update={"ir_datasets": None, "fields": (), "folds": None, "unjudged": False, **source})
        changed = {"transfer": (), **changes, "name": name, "collection": collection}
        other = type(self)(self.experiment.model_copy(update=changed), parent, self.reporter)
        other.encodings_folder, other.rewritten_folder = self.encodings_folder, self.rewritten_folder
        return other

    @cached_property
    def elsewhere(self) -> list[Pipeline]:
        """The experiment on each of the other collections, for what needs no training; its rewriters that rewrite test turns do so there too."""
        rewriters = tuple(one.model_copy(update={"splits": ("test",)}) for one in self.experiment.rewriter if "test" in one.splits)
        return [
            self.on(
                there.label,
                {**there.model_dump(include={"path", "format", "missing_documents", "test"}), "train": there.test},
                {"generation": None, "rewriter": rewriters},
                self.folder / "transfer",
            )
            for there in self.experiment.transfer
        ]

    # What is searched

    @cached_property
    def documents(self) -> Collection:
        """The prepared collection as its source has it: all that encoders, BM25 and teachers need.

        Raises:
            ConfigError: it has images, and the experiment something that reads texts alone.
        """
        collection = open_collection(self.experiment.collection, self.folder / "collection")
        check_readers(self.experiment, collection)
        return collection

    @cached_property
    def collection(self) -> Collection:
        """The same, with generated queries where the file has a section [generation]."""
        return generated_collection(self) if self.experiment.generation else self.documents

    @cached_property
    def bm25(self) -> BM25:
        """The BM25 index of all documents, made once."""
        return bm25_of(self)

    def conversations(self, split: str) -> dict[str, Query]:
        """The queries of "train" or "test" as the collection has them; a train query that is a test query too is left out of "train".

        Unjudged queries that teach stand in "train" after the others.

        Raises:
            DataError: the split has none.
        """
        return self._conversations[split]

    @cached_property
    def _conversations(self) -> dict[str, dict[str, Query]]:
        settings = self.experiment.collection
        found = judged_queries(self.collection, settings, self.reporter.say)
        found["train"] |= unjudged_queries(self.collection, settings)
        rewrites = rewritten(self)
        queries = {split: with_rewrites(own, rewrites) for split, own in found.items()}
        for reading in self.experiment.evaluation.readings or ():
            read_queries(ConversationReader(reading), queries["test"])  # a turn without the rewrite is told now, not after training
        return queries

    def queries(self, split: str, reading: Reading | None = None) -> dict[str, Query]:
        """The same, read: by `collection.conversation` unless another reading is given."""
        key = split, reading or self.experiment.collection.conversation
        if key not in self._read:
            self._read[key] = read_queries(ConversationReader(key[1]), self.conversations(split))
        return self._read[key]

    def queries_of(self, teacher: str, split: str) -> dict[str, Query]:
        """The same as a teacher reads them."""
        return self.queries(split, self.reads[teacher])

    @cached_property
    def reads(self) -> dict[str, Reading]:
        """What each teacher of the file reads of a conversation."""
        return {teacher.label: teacher.reads or self.experiment.collection.conversation for teacher in self.experiment.teacher}

    def student_queries(self, split: str) -> dict[str, Query]:
        """The same as the student reads them; where it has no room for all, that is said once."""
        if split not in self._read_by_student:
            told_cuts(self.reader, self.conversations(split).values(), f"{split}, student", self.reporter.say)
            self._read_by_student[split] = read_queries(self.reader, self.conversations(split))
        return self._read_by_student[split]

    @property
    def reader(self) -> ConversationReader:
        """How the student reads a conversation."""
        return reader_of(self.start)

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """The qrels of "train" or "test"."""
        return self._qrels[split]

    @cached_property
    def _qrels(self) -> dict[str, dict[str, dict[str, int]]]:
        return {split: self.collection.qrels(getattr(self.experiment.collection, split)) for split in ("train", "test")}

    @cached_property
    def judgements(self) -> str:
        """The fingerprint of the judged train queries with their grades: what teachers are taught on and choices are made by."""
        judged = {query_id: query for query_id, query in self.queries("train").items() if query_id in self.qrels("train")}
        return asked_fingerprint(self.collection, self.experiment.collection.train, judged)

    @cached_property
    def lessons(self) -> str:
        """The fingerprint of all train queries: the judged ones with their grades, and the unjudged ones that teach beside them."""
        return asked_fingerprint(self.collection, self.experiment.collection.train, self.queries("train"))

    def counted(self, run: Run) -> Run:
        """A run without the documents whose id is their query's, where the file leaves these out: they are no candidates, no negatives and no results."""
        return run.without_own_documents() if self.experiment.evaluation.remove_own_document else run

    def judged(self, run: Run) -> Run:
        """A run's judged train queries."""
        return run.select([query_id for query_id in run.query_ids if query_id in self.qrels("train")])

    @cached_property
    def held_out(self) -> tuple[list[str], list[str]]:
        """Ids of the judged train queries, and those of them held out to choose the target and the checkpoint."""
        training, qrels = self.experiment.training, self.qrels("train")
        generator = np.random.default_rng(self.experiment.seed)
        judged = {query_id: query for query_id, query in self.conversations("train").items() if query_id in qrels}
        together = kept_together(judged, qrels, training.validation_documents)
        train, held = hold_out(together, training.validation_fraction, training.validation_queries, generator)
        if training.validation_documents == "new" and len(held) > len(train):
            raise DataError(
                f'training.validation_documents = "new" would hold out {len(held):,} of {len(together):,} train queries, which shared relevant documents '
                "connect. Leave it out"
            )
        return train, held

    @cached_property
    def unjudged(self) -> list[str]:
        """Ids of the unjudged train queries, for students to learn from; no turn of a held-out conversation is among them."""
        queries, qrels = self.conversations("train"), self.qrels("train")
        held = {queries[query_id].conversation for query_id in self.held_out[1]} - {""}
        return [query_id for query_id, query in queries.items() if query_id not in qrels and query.conversation not in held]

    # Encoders

    def load_student(self, settings: StudentSettings) -> Any:
        """A student by the file under retriever/students that its kind names."""
        kind = load_kind("students", settings.kind, "student.kind")
        words = [self._spread_documents] if isinstance(settings, SparseSettings) else []  # how often words stand there decides their first weights
        student = kind.load(settings, self.experiment.index.batch_size, *words)
        return self._loaded(self._reading(student), Pipeline.load_student, settings)

    def _reading(self, student: Any) -> Any:
        """The student, which reads conversations as the file says."""
        experiment = self.experiment
        set_reader(student, experiment.student, experiment.collection.conversation, experiment.training.max_length)
        return student

    def load_encoder(self, settings: EmbeddingSettings) -> Any:
        """The encoder of an embedding teacher that names a model."""
        return self._loaded(load_encoder(settings), Pipeline.load_encoder, settings)

    def _loaded(self, encoder: Any, load: Callable[[Pipeline, Any], Any], argument: Any) -> Any:
        """The encoder, after it was noted how a worker loads the same one."""
        self._loaders[encoder.identity] = Loader.of(self, load, argument)
        return encoder

    @cached_property
    def _spread_documents(self) -> list[Document]:
        """A thousand documents from all over the collection, always the same."""
        rows = np.linspace(0, len(self.documents) - 1, min(len(self.documents), 1000)).astype(np.int64)
        return self.documents.documents_by_row(rows.tolist())

    @cached_property
    def start(self) -> Any:
        """The student before training."""
        return self.load_student(self.experiment.student)

    @property
    def reranks(self) -> bool:
        """Whether the student reads query and document together, so that there is nothing to index."""
        return not hasattr(self.start, "encode_queries")

    def reranked(self, student: Any) -> Run:
        """The test candidates with the scores of a student that reads query and document together, made once for every student."""
        if student.identity not in self._reranked:
            candidates = self.candidates["test"]
            scores = pair_scores(student, candidates, self.student_queries("test"), self.collection, self.reporter)
            self._reranked[student.identity] = candidates.with_scores("reranked", scores)
        return self._reranked[student.identity]

    def encodings(self, encoder: Any, what: str) -> DocumentEncodings:
        """An encoder's vectors, token vectors or sparse entries of all documents, made once for every encoder."""
        key = document_identity(encoder)
        if key not in self._encodings:
            self._encodings[key] = encode_documents(self, encoder, what, self._loaders.get(encoder.identity))
        return self._encodings[key]

    def encoder_of(self, settings: EmbeddingSettings) -> tuple[Any, DocumentEncodings]:
        """An embedding teacher's encoder and the encodings of all documents; "student" is the starting checkpoint."""
        if settings.model in (None, "student"):
            if self.reranks:
                raise ConfigError(f'"student" encodes nothing: it is a {self.experiment.student.kind}. Name a model, such as {self.experiment.student.model}')
            return self.start, self.encodings(self.start, "start")
        encoder = self.load_encoder(settings)
        return encoder, self.encodings(encoder, settings.label)

    # Steps

    def step(self, name: str, inputs: Mapping[str, str], settings: Mapping[str, Any], work: Any, in_place: bool = False) -> Done:
        """Runs one step of this experiment, unless its folder holds it already, and says why it is done again."""
        step = Step(name, inputs, settings, self.experiment.seed)
        if reasons := changed(step, self.folder):
            self.reporter.say(f"{name}: again; changed: {', '.join(reasons)}")
        done = run_step(step, self.folder, work, in_place)
        self.reporter.say(f"{name}: {'done' if done.done_now else 'unchanged'}, {done.folder}")
        return done

    def open_step(self, make: Callable[[], Done], read: Callable[[Path], Opened]) -> tuple[Done, Opened]:
        """A step and what it left, opened; where that is damaged, the step is done again, once."""
        done = make()
        try:
            return done, read(done.folder)
        except (ConfigError, DataError, SearchIndexError) as error:
            if done.done_now:
                raise
            self.reporter.say(f"{done.folder.name}: again; damaged: {error}")
            forget(done)
            done = make()
            return done, read(done.folder)

    @cached_property
    def candidates(self) -> dict[str, Run]:
        """The retrieved candidates of the train and the test queries, without added positives."""
        _ = self.store  # one of another collection is refused before the candidates are replaced
        return find_candidates(self)

    def pairs(self, split: str) -> Run:
        """The pairs that teachers score: the candidates, and for train queries the judged positives too."""
        return self._train_pairs if split == "train" else self.candidates[split]

    @cached_property
    def _train_pairs(self) -> Run:
        return with_positives(self.candidates["train"], self.qrels("train"))

    @cached_property
    def resources(self) -> Resources:
        """What teachers may use."""
        return Resources(self.documents, self.experiment.candidates, lambda: self.bm25, self.encoder_of, self.encodings, lambda: self.queries("train"))

    @cached_property
    def taught(self) -> dict[str, TeacherSettings]:
        """The settings of the file's teachers by their names, those of taught models where there is a `train` table."""
        return {one.label: one for one in (teach(self, settings) for settings in self.experiment.teacher)}

    def load_teacher(self, settings: TeacherSettings) -> Teacher:
        """A teacher that is ready to score."""
        if isinstance(settings, CrossFittedSettings):
            return CrossFittedTeacher(settings.label, [self.load_teacher(part) for part in settings.parts], settings.fold_of)
        told = settings.model_copy(update={"reads": settings.reads or self.experiment.collection.conversation})
        teacher: Teacher = load_kind("teachers", settings.kind, f"teacher {settings.label}").load(told, self.resources)
        return teacher

    @cached_property
    def teachers(self) -> dict[str, Teacher]:
        """The teachers of the file, taught and loaded, by their names."""
        return {name: self.load_teacher(settings) for name, settings in self.taught.items()}

    @cached_property
    def store(self) -> ScoreStore:
        """The store of teacher scores."""
        return ScoreStore.open(self.folder / "score", self.documents)

    @cached_property
    def scores(self) -> dict[str, dict[str, Run]]:
        """Split -> teacher -> the pairs of the split with its raw scores, filled in where a `cascade` spared it the pair."""
        inputs = {split: self.pairs(split).fingerprint for split in ("train", "test")} | cascade_inputs(self)
        fingerprints = {name: identity.fingerprint for name, identity in self.identities.items()}

        def work(folder: Path) -> dict[str, Any]:
            score_pairs_of(self, {split: self.pairs(split) for split in ("train", "test")})
            return {"teachers": fingerprints}

        shares = {f"cascade of {name}": share for name, share in cascades(self.experiment).items()}
        done = self.step("score", inputs | fingerprints, shares, work, in_place=True)
        try:
            return self._stored_scores()
        except StoreError:  # a shard was damaged or removed since
            work(done.folder)
            return self._stored_scores()

    @cached_property
    def held_out_scores(self) -> dict[str, Run]:
        """Teacher -> the held-out train queries' pairs with its raw scores; only these are scored, where they are not stored."""
        pairs = self.pairs("train").select(self.held_out[1])
        score_pairs_of(self, {"train": pairs})
        return stored_scores(self, "train", pairs)

    def _stored_scores(self) -> dict[str, dict[str, Run]]:
        return {split: stored_scores(self, split, self.pairs(split)) for split in ("train", "test")}

    @cached_property
    def identities(self) -> dict[str, TeacherIdentity]:
        """What decides each teacher's scores, by its name."""
        return {name: teacher.identity for name, teacher in self.teachers.items()}

    @cached_property
    def target(self) -> Target:
        """What is distilled, and why."""
        return Target(self)

    # The student

    @property
    def trained(self) -> Done:
        """The step that trained the student: `student` holds the stock folder, `curve.json` the curve."""
        return self._trained[0]

    def train(self, name: str, training: TrainingSettings, teacher: bool = True, unjudged: bool = True) -> Done:
        """The last train step of these settings, the experiment's own or others; each round's is done first.

        With the target or without any teacher, with the unjudged queries or without.
        """
        return train_in_rounds(self, name, training, teacher, self.unjudged if teacher and unjudged else [])

    def open_student(self, folder: Path) -> Any:
        """A student that a train step saved."""
        kind = load_kind("students", self.experiment.student.kind, "student.kind")
        return self._loaded(self._reading(kind.load_folder(folder, self.experiment.index.batch_size)), Pipeline.open_student, folder)

    @property
    def student(self) -> Any:
        """The trained student."""
        return self._trained[1]

    @cached_property
    def _trained(self) -> tuple[Done, Any]:
        return self.open_step(lambda: self.train("train", self.experiment.training), lambda folder: self.open_student(folder / "student"))

    def index_of(self, name: str, student: Any, student_folder: Path) -> SearchIndex:
        """The index step of a student."""
        if self.reranks:
            raise ConfigError(
                f"student.kind: a {self.experiment.student.kind} re-ranks what others find, so there is nothing to index. "
                'Distil it with: retriever distill; or take student.kind = "dense"'
            )
        settings = self.experiment.index
        inputs = {"encoder": student.identity, "collection": self.collection.fingerprint}

        def work(folder: Path) -> dict[str, Any]:
            version = publish(folder, settings, student.kind, student_folder, student, self.encodings(student, name), self.collection, self.reporter)
            return {"version": version.number}

        kept = settings.model_dump(mode="json", exclude={"batch_size"})
        if (reader := reader_of(student)).reading != "last":
            kept["reader"] = reader.settings()  # of conversations, which the index's copy of the student reads so too
        _, index = self.open_step(lambda: self.step(name, inputs, kept, work, in_place=True), open_index)
        return index

    @cached_property
    def index(self) -> SearchIndex:
        """The trained student's index."""
        return self.index_of("index", self.student, self.trained.folder / "student")

    @cached_property
    def index_before(self) -> SearchIndex:
        """The starting checkpoint's index: what there was before training."""
        done = self.step(
            "start",
            {"encoder": self.start.identity},
            self.reader.settings() if self.reader.reading != "last" else {},
            lambda folder: self.start.save(folder / "student"),
        )
        return self.index_of("index_before", self.start, done.folder / "student")
