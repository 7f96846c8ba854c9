"""The demonstration: the main job on real text that every installation carries, the documentation of Python and its packages."""

from __future__ import annotations

from pathlib import Path

from retriever.config import read_experiment
from retriever.documentation.collection import DEMO_DOCUMENTS, build_documentation_collection
from retriever.files import write_text
from retriever.pipeline import Pipeline
from retriever.progress import Reporter

EXPERIMENT = """\
# The demonstration's experiment: search the documentation of Python and its packages by what a thing does.
# Docstrings are the documents, held-out summary sentences the queries. Change a key and run it again:
#     retriever distill {path}
name = "demo"
seed = 1

[collection]
path = "demo-documentation"

[candidates]
sources = ["bm25", "student"] # "student" is the starting checkpoint
depth = 50

[[teacher]]
kind = "lexical" # BM25

[[teacher]]
kind = "embedding" # the starting checkpoint itself: fused with BM25 it knows more than alone
model = "student"
weight = 2.0

[student]
model = "sentence-transformers/all-MiniLM-L6-v2"
max_length = 96

[training]
documents_per_query = 2
epochs = 1
batch_size = 32
learning_rate = 5e-5
max_length = 64
losses = {{ kl_divergence = 1.0, contrastive = 1.0 }}
negative_depth = 20
validation_queries = 200
validation_depth = 5

[evaluation]
measures = ["nDCG@10", "RR@10", "R@100"]
depth = 100
"""


def prepare_demo(work: Path, reporter: Reporter) -> Pipeline:
    """The demonstration's pipeline; its collection and its experiment file are made if they are not there."""
    documentation = work / "demo-documentation"
    if not (documentation / "PROVENANCE.json").exists():
        build_documentation_collection(documentation, reporter.say, DEMO_DOCUMENTS)
    path = work / "demo.toml"
    if not path.exists():
        write_text(path, EXPERIMENT.format(path=path))
    return Pipeline(read_experiment(path), work, reporter)
