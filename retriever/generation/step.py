"""The generate step: queries.parquet with every written query and its lineage, and a collection that has the kept ones as its queries."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from retriever.candidates import bm25_run, index_run, with_positives
from retriever.collection import Collection, with_queries
from retriever.engines.settings import EngineSettings
from retriever.errors import ConfigError, DataError
from retriever.files import fingerprint, text_hash, write_atomic
from retriever.generation.critic import GENERATED, Criticised, counts_of, criticise, kept_of
from retriever.generation.generators import Generator, open_generator, sentences
from retriever.generation.samples import Plan, plan_samples
from retriever.plugins import load_kind
from retriever.runs import Run
from retriever.scores.scoring import scored_shard
from retriever.settings.generation import GenerationSettings
from retriever.settings.teacher import TeacherSettings
from retriever.steps.step import Done
from retriever.tables.documents import document_variant, image_hash
from retriever.tables.queries import row_of_query
from retriever.types import Document, Qrels, Query, Usage
from retriever.workers.loader import Loader, engine_of
from retriever.writing.shards import WritingEngine, pending, read_rows, write_here, write_samples, write_shard
from retriever.writing.writers import WriterIdentity

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline

QUERIES = "queries.parquet"
BESIDE = "unjudged"
"""What stands for a split where generated queries teach beside a collection's judged ones."""
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("query_id", "doc_id")),
        *((name, pa.uint64()) for name in ("variant_id", "doc_variant")),  # text hashes, as in the store of scores
        ("sample", pa.int32()),
        *((name, pa.string()) for name in ("kind", "text", "raw", "verdict", "split")),
        *((name, pa.float32()) for name in ("critic_score", "copied_share")),
        *((name, pa.int32()) for name in ("rank_bm25", "rank_student", "teacher_rank")),
        *((name, pa.float32()) for name in ("teacher_score", "teacher_margin")),
        *((name, pa.string()) for name in ("generator", "parameters")),
        ("seed", pa.int64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Prospect:
    """What generating would do: documents asked about, samples in all, and those that are written already."""

    documents: int
    samples: int
    done: int


def generation_of(pipeline: Pipeline) -> GenerationSettings:
    """The section [generation].

    Raises:
        ConfigError: the file has none.
    """
    if pipeline.experiment.generation is None:
        raise ConfigError('the experiment file has no section [generation]. Write one, for example with: method = "first_sentence"')
    return pipeline.experiment.generation


def prospect(pipeline: Pipeline) -> Prospect:
    """What `generate` would do, without asking the generator."""
    settings = generation_of(pipeline)
    check_beside(pipeline)
    plan = _plan(pipeline, settings)
    folder = _samples_folder(pipeline, open_generator(settings, pipeline.experiment.seed).identity)
    return Prospect(len(plan.rows), len(plan), len(plan) - pending(plan, folder))


def generate(pipeline: Pipeline) -> Done:
    """The finished step: `queries.parquet` with all that was written, and `collection` with the kept queries.

    A kept query is judged relevant (grade 1) for the document that it was written for. The kept ones are the train split.
    A collection that has the test split of the file keeps it; else the queries of a part of the documents are the test split,
    and no document has queries in both. Under `collection.unjudged` the collection keeps all of its queries and judgements, and
    the kept ones stand beside them without any.

    Raises:
        ConfigError: there is no section [generation], or no such model.
        DataError: the critic kept too few queries for two splits, or unjudged ones have no judged ones to stand beside.
    """
    settings, experiment = generation_of(pipeline), pipeline.experiment
    check_beside(pipeline)
    generator = open_generator(settings, experiment.seed)
    inputs = {"documents": pipeline.documents.fingerprint, "generator": generator.identity.fingerprint}
    if experiment.collection.unjudged:
        inputs["queries"] = fingerprint([list(map(row_of_query, pipeline.documents.all_queries())), _own_qrels(pipeline.documents)])
    elif experiment.collection.test in pipeline.documents.splits:
        inputs["test"] = pipeline.documents.queries_fingerprint(experiment.collection.test)
    if "student" in settings.round_trip:
        inputs["student"] = pipeline.start.identity
    kept_settings = settings.model_dump(mode="json", exclude=set(EngineSettings.model_fields))
    kept_settings |= experiment.collection.model_dump(include={"train", "test", *(["unjudged"] if experiment.collection.unjudged else [])})
    kept_settings |= experiment.candidates.model_dump(include={"k1", "b", "language"})
    if settings.teacher:
        inputs["critic"] = pipeline.load_teacher(_critic_of(pipeline, settings)).identity.fingerprint
    return pipeline.step("generate", inputs, kept_settings, lambda folder: _work(pipeline, settings, generator, folder))


def generated_collection(pipeline: Pipeline) -> Collection:
    """The experiment's documents with the generated queries; generated now unless they lie there already."""
    _, collection = pipeline.open_step(lambda: generate(pipeline), lambda folder: Collection(folder / "collection"))
    return collection


def query_quality(pipeline: Pipeline) -> dict[str, float]:
    """The critic's quality of each kept generated query; empty for an experiment without a section [generation]."""
    if pipeline.experiment.generation is None:
        return {}
    done = generate(pipeline)
    return {row["query_id"]: row["critic_score"] for row in read_generated(done.folder) if row["split"]}


def generation_note(collection: Collection) -> str:
    """What a report says of generated queries, with a space at its end; "" for a collection without them."""
    source = collection.source
    if source.get("format") != "generated":
        return ""
    if source.get("beside"):
        return f"Beside the judged train queries, generated ones ({source['method']}) teach by the target's scores. "
    if source["test"] != "generated":
        return f"Train queries are generated ({source['method']}). "
    return (
        f"Train queries are generated ({source['method']}); test queries are generated, too, from other documents: "
        "the measures say how well the document that a query was made from is found, not how well people's questions are answered. "
    )


def read_generated(folder: Path) -> list[dict[str, Any]]:
    """The rows of the queries.parquet that the step left.

    Raises:
        DataError: the file is damaged.
    """
    return read_rows(folder / QUERIES, SCHEMA)


def _critic_of(pipeline: Pipeline, settings: GenerationSettings) -> TeacherSettings:
    """The table of the teacher that judges what is written."""
    return next(teacher for teacher in pipeline.experiment.teacher if teacher.label == settings.teacher)


def _plan(pipeline: Pipeline, settings: GenerationSettings) -> Plan:
    written = (lambda document: len(sentences(document))) if settings.method == "sentence" else None
    wanted = settings.queries, settings.samples_per_document, settings.over_generation
    return plan_samples(pipeline.documents, *wanted, pipeline.experiment.seed, written)


def _samples_folder(pipeline: Pipeline, identity: WriterIdentity) -> Path:
    return pipeline.folder / "generated" / fingerprint([identity.fingerprint, pipeline.documents.fingerprint])


def _work(pipeline: Pipeline, settings: GenerationSettings, generator: Generator, folder: Path) -> dict[str, Any]:
    plan = _plan(pipeline, settings)
    samples = _samples_folder(pipeline, generator.identity)
    used = Usage()

    def tell(usage: Usage) -> None:
        nonlocal used
        used = usage
        if usage.requests:
            pipeline.reporter.update(str(usage))

    with pipeline.reporter.bar(f"generating queries ({settings.method})", pending(plan, samples)) as advance, _engine(pipeline, settings) as engine:
        answers = write_samples(plan, generator, samples, advance, tell, engine)
    documents = {document.doc_id: document for document in plan.collection.documents_by_row(plan.rows)}
    judged = criticise(answers, documents, settings, _Retrievers(pipeline, settings), _Scorer(pipeline, settings) if settings.teacher else None)
    test = _test_documents(pipeline, settings, judged)
    queries = _split(pipeline, judged, test)
    _write_lineage(folder / QUERIES, judged, documents, generator.identity, queries)
    return {**_write_collection(pipeline, settings, folder, queries), **_counts(judged, documents), "usage": dataclasses.asdict(used)}


def _engine(pipeline: Pipeline, settings: GenerationSettings) -> contextlib.AbstractContextManager[WritingEngine]:
    """Who asks the generator; one without a model is asked here."""
    if settings.method != "llm":
        return contextlib.nullcontext(write_here)
    return engine_of(pipeline.experiment.scoring, functools.partial(open_generator, settings, pipeline.experiment.seed), write_shard, "generation")


@dataclasses.dataclass(frozen=True)
class _Retrievers:
    """The round trip's retrievers over the experiment's documents."""

    pipeline: Pipeline
    settings: GenerationSettings

    def __call__(self, queries: Mapping[str, Query]) -> dict[str, Run]:
        pipeline, depth, runs = self.pipeline, self.settings.rank, {}
        if "bm25" in self.settings.round_trip:
            runs["bm25"] = bm25_run("round trip, BM25", pipeline.bm25, pipeline.documents, queries, depth, pipeline.reporter)
        if "student" in self.settings.round_trip:
            index = load_kind("indexing", pipeline.experiment.exact_index, "generation").of_vectors(pipeline.encodings(pipeline.start, "start"))
            runs["student"] = index_run("round trip, student", pipeline.start, index, pipeline.documents, queries, depth, pipeline.reporter)
        return runs


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """The critic's teacher. Its scores go into the experiment's store, where the score step finds them again."""

    pipeline: Pipeline
    settings: GenerationSettings

    def __call__(self, queries: Mapping[str, Query], qrels: Qrels) -> Run:
        pipeline = self.pipeline
        settings = _critic_of(pipeline, self.settings)
        teacher, store = pipeline.load_teacher(settings), pipeline.store
        run = bm25_run("candidates of generated queries", pipeline.bm25, pipeline.documents, queries, self.settings.teacher_depth, pipeline.reporter)
        pairs = with_positives(run, qrels)
        pending = store.plan(teacher.identity, pairs, queries).pending
        load = Loader.of(pipeline, type(pipeline).load_teacher, settings)
        by = engine_of(pipeline.experiment.scoring, load, scored_shard, f'teacher "{settings.label}"')
        with pipeline.reporter.bar(f"scoring generated queries ({settings.label})", pending) as advance, by as engine:
            store.score(teacher, pairs, queries, advance, engine=engine)
        return store.read(teacher.identity, pairs, queries).run


def _test_documents(pipeline: Pipeline, settings: GenerationSettings, judged: Sequence[Criticised]) -> frozenset[str]:
    """The documents whose queries are the test split: the first of the drawn order; none where the collection has one.

    Raises:
        DataError: too few documents have a kept query.
    """
    doc_ids = list(dict.fromkeys(query.doc_id for query in kept_of(judged)))
    judged_test = pipeline.experiment.collection.test in pipeline.documents.splits
    needed = 1 if judged_test else 2
    if len(doc_ids) < needed:
        dropped = ", ".join(f"{rule} {count}" for rule, count in counts_of(judged).items() if count and rule != "kept") or "none was written"
        raise DataError(
            f"generation: queries of {len(doc_ids)} documents were kept, and {needed} are needed at least; dropped: {dropped}. "
            "Loosen the rule that dropped most in [generation], or write other queries with another method, model or prompt"
        )
    return frozenset() if judged_test else frozenset(doc_ids[: min(max(1, round(settings.test_fraction * len(doc_ids))), len(doc_ids) - 1)])


def _split(pipeline: Pipeline, judged: Sequence[Criticised], test: frozenset[str]) -> dict[str, list[Criticised]]:
    """Split -> the generated queries in it."""
    names = pipeline.experiment.collection
    if names.unjudged:
        return {BESIDE: kept_of(judged)}
    queries = {names.train: [one for one in kept_of(judged) if one.doc_id not in test]}
    return queries | ({names.test: [one for one in kept_of(judged) if one.doc_id in test]} if test else {})


def _write_collection(pipeline: Pipeline, settings: GenerationSettings, folder: Path, queries: Mapping[str, Sequence[Criticised]]) -> dict[str, Any]:
    """Writes `collection`; returns how many queries each split has and where the test split is from."""
    documents, test = pipeline.documents, pipeline.experiment.collection.test
    listed = [one.query for split in queries.values() for one in split]
    if BESIDE in queries:
        listed, splits = [*documents.all_queries(), *listed], _own_qrels(documents)
    else:
        splits = {name: {one.query.query_id: {one.doc_id: 1} for one in split} for name, split in queries.items()}
        if test not in splits:
            listed += documents.queries(test).values()
            splits[test] = documents.qrels(test)
    origin = "generated" if test in queries else "judged"
    source = {"format": "generated", "method": settings.method, "test": origin, "beside": BESIDE in queries, "of": documents.source}
    with_queries(documents, folder / "collection", listed, splits, source)
    counts = {name: len(split) for name, split in splits.items()}
    return {"splits": counts | ({BESIDE: len(queries[BESIDE])} if BESIDE in queries else {}), "test": origin}


def check_beside(pipeline: Pipeline) -> None:
    """Sees to it that queries which are to stand beside a collection's own can.

    Raises:
        DataError: none of these are judged, or some have the names of those that will be written.
    """
    if not pipeline.experiment.collection.unjudged:
        return
    names, documents = pipeline.experiment.collection, pipeline.documents
    missing = [split for split in (names.train, names.test) if split not in documents.splits]
    if missing:
        raise DataError(
            f'generation: under collection.unjudged the queries stand beside judged ones, and {documents.name} has no split "{missing[0]}". '
            "Take unjudged out: then the generated queries are judged, each by the document that it was written for"
        )
    if taken := next((query.query_id for query in documents.all_queries() if query.query_id.startswith(GENERATED)), None):
        raise DataError(f"generation: {documents.name} has generated queries already ({taken}). Take [generation] out: unjudged ones teach as they are")


def _own_qrels(documents: Collection) -> dict[str, Qrels]:
    """Every split of a collection."""
    return {split: documents.qrels(split) for split in documents.splits}


def _counts(judged: Sequence[Criticised], documents: Mapping[str, Document]) -> dict[str, Any]:
    verdicts = counts_of(judged)
    return {"documents": len(documents), "written": len(judged), "verdicts": verdicts, "yield": verdicts["kept"] / max(len(judged), 1)}


def _write_lineage(
    path: Path,
    judged: Sequence[Criticised],
    documents: Mapping[str, Document],
    identity: WriterIdentity,
    queries: Mapping[str, Sequence[Criticised]],
) -> None:
    """One row for each written query: the document, the generator, the raw answer, the critic's values, verdict and split."""
    split_of = {one.query.query_id: name for name, split in queries.items() for one in split}
    shared = {"kind": "synthetic_query", "generator": identity.fingerprint, "seed": identity.seed, "parameters": json.dumps(dataclasses.asdict(identity))}
    rows = [
        {
            **dataclasses.asdict(one),
            **shared,
            "query_id": one.query.query_id,
            "variant_id": text_hash(one.text),
            "doc_variant": document_variant(documents[one.doc_id].full_text, image_hash(one.doc_id, documents[one.doc_id].image)),
            "split": split_of.get(one.query.query_id),
            "critic_score": one.quality,
            "rank_bm25": one.ranks.get("bm25"),
            "rank_student": one.ranks.get("student"),
        }
        for one in judged
    ]
    write_atomic(path, lambda temporary: pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary))
