"""The card that goes with a trained student: what taught it, on what, and what it reaches."""

from __future__ import annotations

from pathlib import Path

from retriever.eval.report import ReportData
from retriever.eval.wording import verdict
from retriever.files import write_text
from retriever.pipeline import Pipeline


def write_model_card(pipeline: Pipeline, report: ReportData, folder: Path) -> None:
    """Writes README.md into a student's folder; the weights' identity does not depend on it."""
    write_text(folder / "README.md", model_card(pipeline, report))


def model_card(pipeline: Pipeline, report: ReportData) -> str:
    """The card in Markdown with the front matter that model hubs read."""
    experiment = pipeline.experiment
    target, quality = pipeline.target
    teachers = "\n".join(f"- `{name}` ({teacher.identity.kind}, unit {teacher.identity.unit})" for name, teacher in pipeline.teachers.items())
    training = experiment.training
    losses = ", ".join(f"{name} x {weight}" for name, weight in training.losses.items())
    measure = report.measures[0]
    kind = experiment.student.kind
    return f"""---
library_name: sentence-transformers
pipeline_tag: {"text-ranking" if kind == "cross_encoder" else "sentence-similarity"}
tags: [sentence-transformers, {kind.replace("_", "-")}, distillation, retriever]
base_model: {experiment.student.model}
---

# {experiment.name}

A {_WORDS.get(kind, kind)} distilled from `{target}`. {verdict(report).sentence}

```python
{_USE.get(kind, _two_sides("SentenceTransformer"))}
```

## Results

{report.summary}

{_results(report)}

95 % bootstrap intervals; {len(report.runs[0].evaluation)} test queries, used for nothing else.

## Training

- start: `{experiment.student.model}`
- target: `{target}`, {measure} {quality[target]:.4f} as re-ranker of held-out train queries
- losses: {losses}
- {training.documents_per_query} documents a query, {training.epochs} epochs, batch {training.batch_size}, learning rate {training.learning_rate}
- seed {experiment.seed}

Teachers:

{teachers}
"""


def _two_sides(name: str) -> str:
    """How a model is used that encodes queries and documents apart."""
    return f"""from sentence_transformers import {name}

model = {name}("path/of/this/folder")
scores = model.similarity(model.encode_query(["a query"]), model.encode_document(["a document"]))"""


_USE = {
    "sparse": _two_sides("SparseEncoder"),
    "late_interaction": _two_sides("MultiVectorEncoder"),
    "cross_encoder": """from sentence_transformers import CrossEncoder

model = CrossEncoder("path/of/this/folder")
scores = model.predict([("a query", "a document")])""",
}
"""How stock sentence-transformers uses a student, by its kind."""

_WORDS = {
    "dense": "dense retriever",
    "sparse": "learned sparse retriever",
    "late_interaction": "late-interaction retriever",
    "static": "static embedding retriever",
    "cross_encoder": "cross-encoder that re-ranks,",
}


def _results(report: ReportData) -> str:
    """The table of runs, measures with their intervals."""
    rows = [f"| run | {' | '.join(report.measures)} |", f"|---|{'---|' * len(report.measures)}"]
    for run in report.runs:
        cells = []
        for measure in report.measures:
            low, high = report.interval(run, measure)
            cells.append(f"{run.evaluation.means[measure]:.4f} [{low:.4f}, {high:.4f}]")
        rows.append(f"| {run.name} | {' | '.join(cells)} |")
    return "\n".join(rows)
