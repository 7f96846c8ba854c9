"""The card that goes with a trained student: what taught it, on what, and what it reaches."""

from __future__ import annotations

from pathlib import Path

from retriever.eval.report import ReportData
from retriever.eval.wording import means_over, verdict
from retriever.files import write_text
from retriever.pipeline import Pipeline
from retriever.settings.student import ImageTextSettings, StudentSettings


def write_model_card(pipeline: Pipeline, report: ReportData, folder: Path) -> None:
    """Writes README.md into a student's folder; the weights' identity does not depend on it."""
    write_text(folder / "README.md", model_card(pipeline, report))


def model_card(pipeline: Pipeline, report: ReportData) -> str:
    """The card in Markdown with the front matter that model hubs read."""
    experiment = pipeline.experiment
    target, quality = pipeline.target.name, pipeline.target.held_out
    teachers = "\n".join(f"- `{name}` ({teacher.identity.kind}, unit {teacher.identity.unit})" for name, teacher in pipeline.teachers.items())
    training = experiment.training
    losses = ", ".join(f"{name} x {weight}" for name, weight in training.losses.items())
    measure = report.measures[0]
    kind = experiment.student.kind
    return f"""---
library_name: sentence-transformers
pipeline_tag: {"text-ranking" if kind == "cross_encoder" else "sentence-similarity"}
tags: [sentence-transformers, {kind.replace("_", "-")}, distillation, retriever]
base_model: {_base_model(experiment.student)}
---

# {experiment.name}

A {_WORDS.get(kind, kind)} distilled from `{target}`. {verdict(report).sentence}

```python
{_USE.get(kind, _two_sides("SentenceTransformer"))}
```

## Results

{report.summary}

{_results(report)}

95 % bootstrap intervals; {means_over(report)}, used for nothing else.

## Training

- start: `{experiment.student.start}`
- target: `{target}`, {measure} {quality[target]:.4f} as re-ranker of held-out train queries
- losses: {losses}
- {training.documents_per_query} documents a query, {training.epochs} epochs, batch {training.batch_size}, learning rate {training.learning_rate}
- seed {experiment.seed}

Teachers:

{teachers}
"""


def _base_model(student: StudentSettings) -> str:
    """What the student was made from, as the head of a model card has it: a name, or a list of two."""
    towers = [student.image_model, student.text_model] if isinstance(student, ImageTextSettings) and not student.model else []
    return f"[{', '.join(str(tower) for tower in towers)}]" if towers else student.model


def _two_sides(name: str) -> str:
    """How a model is used that encodes queries and documents apart."""
    return f"""from sentence_transformers import {name}

model = {name}("path/of/this/folder")
scores = model.similarity(model.encode_query(["a query"]), model.encode_document(["a document"]))"""


_USE = {
    "sparse": _two_sides("SparseEncoder"),
    "late_interaction": _two_sides("MultiVectorEncoder"),
    "image_text": """from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/of/this/folder")
scores = model.similarity(model.encode(["words for an image"]), model.encode([Image.open("image.png").convert("RGB")]))""",
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
    "image_text": "dual encoder of images and texts",
    "cross_encoder": "cross-encoder that re-ranks,",
}


def _results(report: ReportData) -> str:
    """The table of runs, measures with their intervals."""
    headings = [*report.measures, *(["median rank"] if report.median_ranks else [])]
    rows = [f"| run | {' | '.join(headings)} |", f"|---|{'---|' * len(headings)}"]
    for run in report.runs:
        cells = []
        for measure in report.measures:
            low, high = report.interval(run, measure)
            cells.append(f"{run.evaluation.means[measure]:.4f} [{low:.4f}, {high:.4f}]")
        if report.median_ranks:
            rank = report.median_ranks.get(run.name)
            cells.append(f"{rank.value:g} [{rank.interval[0]:g}, {rank.interval[1]:g}]" if rank else "")
        rows.append(f"| {run.name} | {' | '.join(cells)} |")
    return "\n".join(rows)
