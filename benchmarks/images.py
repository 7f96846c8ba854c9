"""Which loss teaches images and texts: small dual encoders of emoji, from a fusion teacher that is taught first.

    python benchmarks/images.py                                       # 3 seeds, 7 losses
    python benchmarks/images.py --seeds 1 --losses contrastive partial_ranking
    python benchmarks/images.py --collection FOLDER --image-size 160  # a folder of photographs with captions.jsonl
    python benchmarks/images.py --whole-towers                        # the towers learn too: hours

For each seed a student learns by contrast alone; what it finds are the hard negatives that the fusion teacher scores; from there each
loss trains it on, equally long, contrastive alone among them. The towers (EfficientNet-Lite0, all-MiniLM-L6-v2) stay as they are, of
students and teacher, and linear layers learn: a training takes a minute or two on 2 cores, the teacher about ten. Nothing is chosen on
the test images; checkpoints are chosen on held-out train images.

The fusion teacher sees larger images (`--teacher-image-size`) than the students. `reinforced` learns from a reinforced dataset instead of
lists: its teacher is a dual encoder that sees images of that size too, taught by contrast alone, and it has as many steps as the others.

Prints Success@1, 5 and 10 (R@k, as the field calls them) of both directions, mean and spread over the seeds, with differences to
contrastive and kl_divergence under paired tests in which captions of one image stay together; the teacher re-ranking what the contrastive
student finds; what `image_findings.py` measures of CPRD's three findings; how many queries a second student and teacher answer at 10,000
images. Keeps benchmarks/results/images.json; finished seeds are not made again. Needs ../shared/data/emoji-noto.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from image_findings import findings, told
from record import MACHINE, keep, kept
from students import EXAMPLES, share_steps

from retriever.config import Experiment, read_experiment
from retriever.eval.directions import in_direction
from retriever.eval.measures import Evaluation
from retriever.eval.report import read_report
from retriever.eval.significance import compare
from retriever.pipeline import Pipeline
from retriever.progress import Terminal
from retriever.steps.evaluate import evaluate_experiment
from retriever.training.sureness import entropy_of_lists

LOSSES: dict[str, dict[str, float]] = {
    "contrastive": {"contrastive": 1.0},
    "kl_divergence": {"kl_divergence": 1.0, "contrastive": 1.0},
    "margin_mse": {"margin_mse": 0.05, "contrastive": 1.0},
    "dynamic_contrastive": {"dynamic_contrastive": 1.0, "contrastive": 1.0},
    "partial_ranking": {"partial_ranking": 1.0, "contrastive": 1.0},
    "standardised_kl": {"standardised_kl": 1.0, "contrastive": 1.0},
    "reinforced": {"reinforced": 0.75, "contrastive": 0.25},
}
MEASURES = ("Success@1", "Success@5", "Success@10")
DIRECTIONS = ("text_to_image", "image_to_text")
BASELINES = ("contrastive", "kl_divergence")
TOWERS = 'image_model="efficientnet-lite0", text_model="sentence-transformers/all-MiniLM-L6-v2"'
START_DEPTH = 200
"""Of the untrained start: its candidates are chance, and of only 20 of them any student puts the right one first, so that checkpoints look alike."""
IMAGES = 10_000
"""Of the collection in which queries a second are counted."""


def read_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, help="a folder with captions.jsonl and the splits train and test")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--teacher-image-size", type=int, default=128, help="of teachers, whose towers an image goes through once")
    parser.add_argument("--augmentations", type=int, default=5, help="of each image, for reinforced")
    parser.add_argument("--depth", type=int, default=20, help="candidates that the teacher scores for each query")
    parser.add_argument("--epochs", type=int, nargs=2, default=[10, 5], help="of the start, and of each loss after it")
    parser.add_argument("--whole-towers", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-images"))
    parser.add_argument("--no-results", action="store_true", help="print only, keep nothing")
    return parser.parse_args()


def main() -> None:
    """Trains what is not there yet, and prints."""
    arguments = read_arguments()
    results: dict[str, Any] = {} if arguments.no_results else kept("images")
    found: dict[str, list[dict[str, Evaluation]]] = {}
    clusters: Mapping[str, str] | None = None
    by_teacher: dict[int, Pipeline] = {}
    for seed in arguments.seeds:
        start = Pipeline(start_of(arguments, seed), arguments.work, Terminal()).trained.folder / "student"
        for loss in arguments.losses:
            make = reinforced_pipeline if loss == "reinforced" else pipeline_of
            pipeline = make(arguments, seed, loss, start)
            report = read_report(evaluate_experiment(pipeline).folder)
            clusters = report.clusters
            evaluations = {run.name: run.evaluation for run in report.runs}
            found.setdefault(loss, []).append(at_directions(evaluations, "student"))
            if loss != "reinforced":
                by_teacher[seed] = pipeline
            if loss == "contrastive":
                found.setdefault("teacher", []).append(at_directions(evaluations, "teacher"))
                results[f"seed {seed}: scores of the teacher"] = spread_of_scores(pipeline)
            if not arguments.no_results:
                results[f"seed {seed}: {loss}"] = {name: one.means for name, one in evaluations.items()}
                keep("images", results)
    results["summary"] = summary(found, clusters, len(arguments.seeds))
    if by_teacher:
        first, *others = by_teacher.values()
        losses = {name: LOSSES[name] for name in arguments.losses if name not in ("contrastive", "reinforced")}
        results["findings"] = findings(first, others[0] if others else None, losses)
        results["speed"] = speed(first)
    if not arguments.no_results:
        keep("images", results)
    print(table(results["summary"]))
    if by_teacher:
        print("\n" + told(results["findings"]))
        speeds = "\n{student:,.0f} queries a second by the student among {images:,} images, {teacher:.3f} by the teacher: {ratio:,.0f} times"
        print(speeds.format(**results["speed"]))


def start_of(arguments: argparse.Namespace, seed: int) -> Experiment:
    """The example that learns by contrast alone, from towers and new projections."""
    student = f"{TOWERS}, image_size={arguments.image_size}, dimensions=256"
    teacher = 'kind="embedding", model="student"'  # is not listened to
    return experiment(arguments, seed, "start", student, teacher, LOSSES["contrastive"], arguments.epochs[0], START_DEPTH)


def pipeline_of(arguments: argparse.Namespace, seed: int, loss: str, start: Path) -> Pipeline:
    """A loss from there on; candidates and the taught teacher's scores are shared by all losses of a seed."""
    teacher = f'kind="fusion", {TOWERS}, train={{epochs=10, image_size={arguments.teacher_image_size}{frozen(arguments)}}}'
    one = experiment(arguments, seed, loss, f'model="{start.resolve()}"', teacher, LOSSES[loss], arguments.epochs[1], arguments.depth)
    share_steps(arguments.work, one.name)
    return Pipeline(one, arguments.work, Terminal())


def reinforced_pipeline(arguments: argparse.Namespace, seed: int, loss: str, start: Path) -> Pipeline:
    """From there on by a reinforced dataset; an epoch of it has each image once, so it has as many more of them as an image has pairs."""
    student = f"{TOWERS}, image_size={arguments.teacher_image_size}, dimensions=256"
    own = 'kind="embedding", model="student"'
    larger = experiment(arguments, seed, "dual", student, own, LOSSES["contrastive"], arguments.epochs[0], START_DEPTH)
    taught = Pipeline(larger, arguments.work, Terminal()).trained.folder / "student"
    teacher = f'kind="embedding", name="dual", family="image_text", model="{taught.resolve()}"'
    augmented = f"reinforce={{augmentations={arguments.augmentations}, image_size={arguments.teacher_image_size}, crop_scale=[0.3, 1.0]}}"
    epochs = arguments.epochs[1] * pairs_of_an_image(Pipeline(larger, arguments.work))
    one = experiment(arguments, seed, loss, f'model="{start.resolve()}"', teacher, LOSSES[loss], epochs, arguments.depth, [augmented])
    return Pipeline(one, arguments.work, Terminal())


def pairs_of_an_image(pipeline: Pipeline) -> int:
    """Lists that a train image and its captions make on average, in both directions."""
    qrels = pipeline.qrels("train")
    images = sum(query.image is not None for query in pipeline.queries("train").values())
    return max(1, round(sum(grade > 0 for grades in qrels.values() for grade in grades.values()) / max(1, images)))


def experiment(  # noqa: PLR0913, PLR0917, what two kinds of experiment have in common
    arguments: argparse.Namespace,
    seed: int,
    name: str,
    student: str,
    teacher: str,
    losses: Mapping[str, float],
    epochs: int,
    depth: int,
    more: Sequence[str] = (),
) -> Experiment:
    """The example with another student, teacher and sum of losses."""
    family = f"seed{seed}{'whole' if arguments.whole_towers else ''}"
    settings = [
        # `share_steps` goes by what stands before the first dash: of one seed, those that the fusion teacher teaches
        f'name="{family}-{name}"' if name in LOSSES and name != "reinforced" else f'name="{name}-{family}"',
        f"seed={seed}",
        f'student={{kind="image_text", {student}{frozen(arguments)}}}',
        f"teacher=[{{{teacher}}}]",
        f"candidates.depth={depth}",
        f"training.validation_depth={depth}",
        f"training.losses={{{', '.join(f'{term}={weight}' for term, weight in losses.items())}}}",
        f"training.epochs={epochs}",
        "training.rounds=1",
        "training.documents_per_query=8",
        f"evaluation.measures={json.dumps(MEASURES)}",
        "evaluation.ablation=false",
        *more,
        *([f'collection.path="{arguments.collection.resolve()}"'] if arguments.collection else []),
    ]
    return read_experiment(EXAMPLES / "emoji.toml", settings)


def frozen(arguments: argparse.Namespace) -> str:
    """The keys of students and teacher that keep the towers as they are."""
    return "" if arguments.whole_towers else ", frozen_image=true, frozen_text=true"


def at_directions(evaluations: Mapping[str, Evaluation], system: str) -> dict[str, Evaluation]:
    """Direction -> a system's evaluation."""
    return {direction: evaluations[in_direction(system, direction)] for direction in DIRECTIONS}


def mean_of(evaluations: Sequence[Evaluation], name: str) -> Evaluation:
    """Each query's mean over the seeds."""
    first = evaluations[0]
    return Evaluation(name, first.query_ids, {measure: np.mean([one.values[measure] for one in evaluations], axis=0) for measure in MEASURES})


def summary(found: Mapping[str, Sequence[Mapping[str, Evaluation]]], clusters: Mapping[str, str] | None, seeds: int) -> dict[str, Any]:
    """Direction -> system -> means with their spread over the seeds, and paired tests of the queries' means over the seeds."""
    rows: dict[str, Any] = {"seeds": seeds, "machine": MACHINE}
    for direction in DIRECTIONS:
        whole = {system: mean_of([one[direction] for one in runs], system) for system, runs in found.items()}
        pairs = [(system, baseline) for baseline in BASELINES for system in whole if baseline in whole and system != baseline]
        tests = {(one.run, one.baseline): one for one in compare(whole, pairs, ["Success@1"], 1, clusters)}
        rows[direction] = {
            system: {
                "queries": len(evaluation),
                "mean": evaluation.means,
                "spread": {
                    measure: statistics.stdev([one[direction].means[measure] for one in found[system]]) if len(found[system]) > 1 else 0.0
                    for measure in MEASURES
                },
                "against": {
                    baseline: [tests[system, baseline].difference, tests[system, baseline].p_value] for baseline in BASELINES if (system, baseline) in tests
                },
            }
            for system, evaluation in whole.items()
        }
    return rows


def spread_of_scores(pipeline: Pipeline) -> dict[str, float]:
    """How concentrated the teacher's scores of train queries' candidates are (mean entropy, a share of the highest), and how often a right one comes first."""
    run, qrels = pipeline.target.run("train"), pipeline.qrels("train")
    mask = np.arange(run.counts.max()) < run.counts[:, None]
    scores = np.zeros(mask.shape, dtype=np.float32)
    scores[mask] = run.scores
    right = [qrels[query_id].get(run[query_id][0][0], 0) > 0 for query_id in run if len(run[query_id]) > 1]
    return {"entropy": entropy_of_lists(scores, mask), "first_is_right": float(np.mean(right)), "queries": len(right)}


def speed(pipeline: Pipeline, asked: int = 50) -> dict[str, float]:
    """Captions a second that the student answers among `IMAGES` images (its vectors, repeated), and that the teacher would by scoring all of them."""
    queries = [query for query in pipeline.student_queries("test").values() if query.image is None][:asked]
    student = pipeline.student
    images = [document for document in pipeline.collection.documents() if document.image is not None]
    vectors = student.encode_documents(images)
    among = np.tile(vectors, (-(-IMAGES // len(vectors)), 1))[:IMAGES]
    for query in queries[:5]:
        student.encode_queries([query])
    begun = time.perf_counter()
    for query in queries:
        np.argpartition(-(among @ student.encode_queries([query])[0]), 10)
    own = len(queries) / (time.perf_counter() - begun)
    (teacher,) = pipeline.teachers.values()
    pairs = [(queries[0], image) for image in images[:1024]]
    teacher.score(pairs)  # images have gone through their tower
    begun = time.perf_counter()
    teacher.score([(queries[1], image) for image in images[:1024]])
    slow = 1024 / (time.perf_counter() - begun) / IMAGES
    return {"images": IMAGES, "student": own, "teacher": slow, "ratio": own / slow}


def table(rows: Mapping[str, Any]) -> str:
    """A Markdown table for each direction."""
    lines = []
    for direction in DIRECTIONS:
        queries = next(iter(rows[direction].values()))["queries"]
        lines += [
            f"\n{direction.replace('_', ' ')}, {queries} queries, {rows['seeds']} seeds",
            "",
            "| | Success@1 | @5 | @10 | @1 against contrastive | against KL |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for system, row in rows[direction].items():
            cells = [f"{row['mean'][measure]:.3f} ± {row['spread'][measure]:.3f}" for measure in MEASURES]
            tests = [f"{row['against'][name][0]:+.3f} (p = {row['against'][name][1]:.3f})" if name in row["against"] else "" for name in BASELINES]
            lines.append(f"| {system} | {' | '.join([*cells, *tests])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
