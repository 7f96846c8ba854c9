"""The tables of README.md and docs/, made from benchmarks/results.

    python benchmarks/tables.py             # writes each table between its marks
    python benchmarks/tables.py --check     # says which are not up to date; exit status 1 where there is one
    python benchmarks/tables.py --show losses

A table stands between <!-- table:NAME --> and <!-- /table -->, each on a line of its own. Nothing else of a page is touched.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retriever.eval.measures import Evaluation
from retriever.eval.significance import Comparison, compare

ROOT = Path(__file__).resolve().parent.parent
Results = Mapping[str, Any]
"""The name of a file in benchmarks/results, without .json -> what it holds."""

MARKED = re.compile(r"^<!-- table:(?P<name>[\w-]+) -->\n(?P<table>.*?)^<!-- /table -->$", flags=re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^<!-- (?:table:[\w-]+|/table) -->$", flags=re.MULTILINE)
KIND_NAMES = {
    "dense": "dense",
    "sparse": "sparse",
    "late-interaction": "late interaction",
    "static": "static",
    "cross-encoder": "cross-encoder, re-ranks",
}


class TableError(Exception):
    """A table that cannot be made; the message says which and why."""


def main() -> None:
    """Writes, checks or shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="*", help="README.md and docs/*.md when left out")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a table is not up to date")
    parser.add_argument("--show", choices=TABLES, help="print this table and touch no page")
    arguments = parser.parse_args()
    try:
        results = read_results(ROOT / "benchmarks" / "results")
        if arguments.show:
            print(made(arguments.show, results))
            return
        pages = arguments.pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        old = [name for page in pages for name in update(page, results, arguments.check)]
    except TableError as error:
        sys.exit(f"error: {error}")
    if arguments.check and old:
        sys.exit("\n".join([*(f"not up to date: {name}" for name in old), "Make them with: python benchmarks/tables.py"]))


def read_results(folder: Path) -> dict[str, Any]:
    """What every benchmark kept."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def update(page: Path, results: Results, check: bool = False) -> list[str]:
    """The names of a page's tables that were not up to date; they are written anew unless this is a check."""
    text = page.read_text(encoding="utf-8")
    new, old = with_tables(text, results, page.name)
    if old and not check:
        page.write_text(new, encoding="utf-8")
    return [f"{name} in {page.name}" for name in old]


def with_tables(text: str, results: Results, where: str = "page") -> tuple[str, list[str]]:
    """The text with the tables of the results between its marks, and the names of those that are not the same as before.

    Raises:
        TableError: a mark has no counterpart, there is no such table, or no results for it.
    """
    found = list(MARKED.finditer(text))
    if len(MARK.findall(text)) != 2 * len(found) or any(MARK.search(one["table"]) for one in found):
        raise TableError(f"{where}: a table's marks do not match; each <!-- table:NAME --> needs one <!-- /table --> below it")
    tables = {one["name"]: made(one["name"], results) for one in found}
    old = [one["name"] for one in found if one["table"] != f"{tables[one['name']]}\n"]
    return MARKED.sub(lambda one: f"<!-- table:{one['name']} -->\n{tables[one['name']]}\n<!-- /table -->", text), old


def made(name: str, results: Results) -> str:
    """A table by its name.

    Raises:
        TableError: there is none of that name, or its results are not there.
    """
    if name not in TABLES:
        raise TableError(f"no table {name}; known are {', '.join(TABLES)}")
    source, make = TABLES[name]
    if source not in results:
        raise TableError(f"table {name}: benchmarks/results/{source}.json is missing. Make it with: python benchmarks/{source}.py")
    return make(results[source])


# The tables


def students_table(kept: Mapping[str, Any], dataset: str) -> str:
    """Every kind of student on a dataset: a line for its start, for training without the teacher, and for the distilled one."""
    kinds = {kind: kept[f"{dataset}-{kind}"] for kind in KIND_NAMES if f"{dataset}-{kind}" in kept}
    if not kinds:
        raise TableError(f"table students-{dataset}: no results. Make them with: python benchmarks/students.py --datasets {dataset}")
    first = next(iter(kinds.values()))
    rows = [_student_row("BM25", first, "bm25"), _student_row(f"teacher ({first['target']}, re-ranks)", first, "teacher")]
    if "hybrid_before" in kinds.get("dense", first)["runs"]:
        rows.append(_student_row("BM25 and the dense start, fused", kinds.get("dense", first), "hybrid_before"))
    for kind, result in kinds.items():
        named = {"student_before": "start", "contrastive": "contrastive only", "student": "**distilled**"}
        rows += [_student_row(f"{KIND_NAMES[kind]}: {name}", result, run) for run, name in named.items() if run in result["runs"]]
    heads = [
        *("", first["measure"], "95 % interval", "of the teacher's"),
        *("above contrastive", "above its start", "above BM25", "query, ms", "bytes a document", "minutes of training"),
        *(["on new documents"] if any("new" in result for result in kinds.values()) else []),
    ]
    rows = [row[: len(heads)] for row in rows]
    seeds = sorted({result["seed"] for result in kinds.values()})
    said = (
        f"{first['queries']:,} test queries, {first['documents']:,} documents, seed {', '.join(map(str, seeds))}, {first['machine']}. "
        "In brackets: p of the paired randomisation test, after Holm's correction over the three of its row."
    )
    if new := next((result["new"] for result in kinds.values() if "new" in result), None):
        said += f" New documents: the {new['queries']:,} queries none of whose relevant documents a judged train query had."
    return f"{markdown(heads, rows)}\n\n{said}"


def _student_row(name: str, result: Mapping[str, Any], run: str) -> list[str]:
    """The cells of one run."""
    found = result["runs"][run]
    latency = None if run == "teacher" else found["latency_ms"]  # where its scores were read from a file, it would be that of a look-up
    gains = [gain(*result["p_values"][f"student > {other}"]) if run == "student" else "" for other in ("contrastive", "student_before", "bm25")]
    minutes = result["minutes"].get(run)
    return [
        *(name, *_effectiveness(result, run), *gains),
        "" if latency is None else f"{latency:.3g}",
        "" if found["bytes"] is None else f"{found['bytes'] / result['documents']:,.0f}",
        "" if minutes is None else f"{minutes:.1f}",
        f"{result['new']['means'][run]:.3f}" if run in result.get("new", {}).get("means", {}) else "",
    ]


def _effectiveness(result: Mapping[str, Any], run: str) -> list[str]:
    """The cells of a run's mean, its interval, and its share of the teacher's mean."""
    found, measure = result["runs"][run], result["measure"]
    mean, teacher, (low, high) = found["mean"][measure], result["runs"]["teacher"]["mean"][measure], found["interval"]
    return [f"{mean:.3f}", f"{low:.3f} to {high:.3f}", f"{mean / teacher:.1%}".replace("%", " %") if teacher else ""]


def unjudged_table(kept: Mapping[str, Any]) -> str:
    """What each kind of student learns from a few judged queries, and from those that nobody judged beside them."""
    first = next(iter(kept.values()))
    rows = [_unjudged_row("BM25", first, "bm25"), _unjudged_row(f"teacher ({first['target']}, re-ranks)", first, "teacher")]
    named = {
        "student_before": "start",
        "contrastive": "judged queries, contrastive only",
        "judged": "judged queries, distilled",
        "student": "**unjudged ones too, distilled**",
    }
    for result in kept.values():
        kind = result["settings"]["student"]["kind"].replace("_", " ")
        rows += [_unjudged_row(f"{kind}: {name}", result, run) for run, name in named.items()]
    said = (
        f"{first['queries']:,} test queries, {first['judged']:,} judged and {first['unjudged']:,} unjudged train queries, seed {first['seed']}, "
        f"{first['machine']}. In brackets: p of the paired randomisation test, after Holm's correction over four comparisons."
    )
    heads = ["", first["measure"], "95 % interval", "of the teacher's", "above judged, distilled", "above contrastive", "above its start"]
    return f"{markdown(heads, rows)}\n\n{said}"


def _unjudged_row(name: str, result: Mapping[str, Any], run: str) -> list[str]:
    tests = [result["p_values"].get(f"{run} > {other}") for other in ("judged", "contrastive", "student_before")]
    gains = [gain(*test) if test else "" for test in tests]
    return [name, *_effectiveness(result, run), *gains]


BOTH = "kl_divergence + contrastive"
"""The sum of losses that benchmarks/losses.py trains with the unjudged queries and without."""


def losses_table(kept: Mapping[str, Any]) -> str:
    """Each loss on each student: mean over the seeds and standard deviation, best first-stage mean first, and a paired test against contrast alone.

    Of a student with which some losses have more seeds than others, as after a stop, those that all have count.
    """
    made = [run for name, run in kept.items() if name != "measured" and not name.startswith("settings ")]
    students = list(dict.fromkeys(run["student"] for run in made))
    seeds = {student: _seeds_of_all([run for run in made if run["student"] == student]) for student in students}
    runs = [run for run in made if run["seed"] in (None, *seeds[run["student"]])]
    by_loss = {loss: [[run for run in runs if (run["student"], run["loss"]) == (student, loss)] for student in students] for loss in _losses(runs)}
    order = sorted(by_loss, key=lambda loss: -statistics.fmean(run["first_stage"] for found in by_loss[loss] for run in found))
    tests = {student: _against_contrast(kept["measured"], student, runs) for student in students}
    rows = [
        [_in_code(loss), *(cell for student, found in zip(students, by_loss[loss], strict=True) for cell in _loss_cells(found, tests[student].get(loss)))]
        for loss in order
    ]
    heads = ["", *(head for student in students for head in (student.replace("_", " "), "above contrastive", "re-ranking"))]
    first = runs[0]
    over = {student: ", ".join(map(str, own)) for student, own in seeds.items()}
    told = next(iter(over.values())) if len(set(over.values())) == 1 else " and ".join(f"{own} ({student.replace('_', ' ')})" for student, own in over.items())
    said = (
        f"{first['measure']} on {first['queries']:,} train queries that teach nobody, mean and standard deviation over the seeds {told}; "
        f"{first['judged']:,} judged queries and {first['unjudged']:,} unjudged ones taught; "
        f"one epoch of both, or as many steps of the judged alone. The target, {first['target']}, re-ranks at {first['teacher']:.3f}. "
        "In brackets: p of the paired randomisation test of each query's mean over the seeds, whole dialogues at a time, after Holm's correction over a column."
    )
    tested = {student: _what_unjudged_queries_add(kept["measured"], student, runs) for student in students}
    added = [f"{student.replace('_', ' ')} {gain(test.difference, test.p_value, test.p_value)}" for student, test in tested.items() if test]
    if added:
        said += f" What the unjudged queries add to {_in_code(BOTH)}, uncorrected: {', '.join(added)}."
    return f"{markdown(heads, rows)}\n\n{said}"


def _seeds_of_all(runs: Sequence[Mapping[str, Any]]) -> list[int]:
    """The seeds that every loss was trained with; the start has none."""
    of_loss = [{run["seed"] for run in runs if run["loss"] == loss} for loss in _losses(runs) if loss != "start"]
    return sorted(set.intersection(*of_loss)) if of_loss else []


def _against_contrast(measured: Mapping[str, Any], student: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Comparison]:
    """Loss -> its test."""
    losses = _losses([run for run in runs if run["student"] == student])
    pairs = [(loss, "contrastive") for loss in losses if loss not in ("start", "contrastive")]
    return {test.run: test for test in _tested(measured, student, runs, pairs)} if "contrastive" in losses else {}


def _what_unjudged_queries_add(measured: Mapping[str, Any], student: str, runs: Sequence[Mapping[str, Any]]) -> Comparison | None:
    """The test of one sum of losses against itself on the judged queries alone, in as many steps; None where one of the two was not trained."""
    pair = (BOTH, f"{BOTH}, judged alone")
    known = set(pair) <= set(_losses([run for run in runs if run["student"] == student]))
    return _tested(measured, student, runs, [pair])[0] if known else None


def _tested(measured: Mapping[str, Any], student: str, runs: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """Paired tests of (loss, baseline), of the queries' means over the seeds."""
    own = [run for run in runs if run["student"] == student]
    evaluations = {}
    for loss in {loss for pair in pairs for loss in pair}:
        values = np.mean([np.array(run["of_each_query"].split(), dtype=np.float64) for run in own if run["loss"] == loss], axis=0)
        evaluations[loss] = Evaluation(loss, tuple(measured["query_ids"]), {own[0]["measure"]: values})
    clusters = dict(zip(measured["query_ids"], measured["conversations"], strict=True))
    return compare(evaluations, pairs, [own[0]["measure"]], 1, clusters)


def _loss_cells(found: Sequence[Mapping[str, Any]], test: Comparison | None) -> list[str]:
    tested = gain(test.difference, test.p_value, test.p_value_corrected) if test else ""
    return [_spread([run["first_stage"] for run in found]), tested, _spread([run["re_ranking"] for run in found])]


def _in_code(loss: str) -> str:
    """The names of a sum of losses, as an experiment file has them."""
    if loss == "start":
        return "start, untrained"
    names, *said = loss.split(", ")
    return ", ".join([" + ".join(f"`{name}`" for name in names.split(" + ")), *said])


def _losses(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(run["loss"] for run in runs))


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of some seeds; a single value has no spread."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def static_speed_table(kept: Mapping[str, Any]) -> str:
    """The encoding speed of a static student beside the transformer's it was made from."""
    rows = [
        [
            "static student" if name == "static" else kept["model"],
            f"{found['documents_per_second']:,.0f}",
            f"{found['batch_size']:,}",
            *(f"{value:.3f}" if (value := found.get(key)) is not None else "" for key in ("start", "distilled")),
        ]
        for name, found in kept["encoders"].items()
    ]
    said = (
        f"{kept['documents']:,} documents of {kept['dataset']}, {kept['threads']} threads, {kept['machine']}: "
        f"the static student encodes {kept['ratio']:,.0f} times as fast."
    )
    heads = ["", "documents a second", "best batch size", f"{kept['measure']} as it comes", f"{kept['measure']} distilled"]
    return f"{markdown(heads, rows)}\n\n{said}"


def sparsity_table(kept: Mapping[str, Any]) -> str:
    """Active dimensions that were asked for, and where training ended."""
    rows = [
        [f"{name}, {side}", f"{found['wanted']:,}", f"{found['found']:.1f}", f"{found['found'] / found['wanted'] - 1:+.1%}".replace("%", " %")]
        for name, sides in kept.items()
        for side, found in sides["sides"].items()
    ]
    return markdown(["active dimensions", "asked for", "found", "off by"], rows)


def scifact_table(kept: Mapping[str, Any]) -> str:
    """The runs of examples/scifact.toml."""
    result = kept["fusion+contrastive"]
    named = {
        "bm25": "BM25 (k1 0.9, b 0.4)",
        "student_before": "all-MiniLM-L6-v2 as it comes",
        "teacher": "both fused, which is also the teacher",
        "student": "**student**",
        "hybrid": "student fused with BM25",
    }
    rows = []
    for run, name in named.items():
        mean, (low, high) = result["runs"][run]["mean"], result["runs"][run]["interval"]
        rows.append([name, f"{mean['nDCG@10']:.3f}", f"{low:.3f} to {high:.3f}", f"{mean['RR@10']:.3f}", f"{mean['R@100']:.3f}"])
    return markdown([f"scifact, {result['queries']} test queries", "nDCG@10", "95 % interval", "RR@10", "R@100"], rows)


def scoring_scale_table(kept: Sequence[Mapping[str, Any]]) -> str:
    """Time and memory of scoring with a teacher that costs nothing."""
    heads = ["scoring with a stand-in teacher", "microseconds a pair", "peak memory above idle", "the same, reading all back"]
    rows = [
        [f"{found['pairs']:,} pairs", f"{found['us_per_pair']:.0f}", f"{found['peak_mb']:,.0f} MB", f"{found['peak_mb_read']:,.0f} MB"]
        for found in sorted(kept, key=lambda found: int(found["pairs"]))
    ]
    return markdown(heads, rows)


# How they are written


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") for cells in lines)


def gain(difference: float, _: float, corrected: float) -> str:
    """A difference with its corrected p-value."""
    return f"{difference:+.3f} ({p_value(corrected)})"


def p_value(p: float) -> str:
    """As it is written: small ones as a bound."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "students-doc2dial": ("students", partial(students_table, dataset="doc2dial")),
    "students-scifact": ("students", partial(students_table, dataset="scifact")),
    "losses": ("losses", losses_table),
    "unjudged": ("unjudged", unjudged_table),
    "static-speed": ("static_speed", static_speed_table),
    "sparsity": ("sparsity", sparsity_table),
    "scifact": ("scifact", scifact_table),
    "scoring-scale": ("scoring_scale", scoring_scale_table),
}
"""Name of a table -> the name of the results it is made from, and what makes it."""


if __name__ == "__main__":
    main()
