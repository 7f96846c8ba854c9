"""CPRD's three findings about a cross-encoder as a teacher (Chen et al. 2024, arXiv:2407.07479), measured where `images.py` trains.

1. Its scores are more concentrated than a dual encoder's, which makes them hard to copy. Here: the excess kurtosis of both sides' scores
   (0 of a normal distribution), and how many of the teacher's probabilities are below .01 or above .99.
2. Only the order of hard negatives carries knowledge. Here: Kendall's tau within a query's hard negatives, which the start found, and within
   as many drawn at random, of the teacher with one that was taught with another seed, and with the start. Where two teachers do
   not agree, their order is chance.
3. A loss should pull where the contrastive one pulls. Here: the mean cosine of both gradients at the start.

All on train queries that are held out; nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retriever.pipeline import Pipeline
from retriever.training.adapter import DistillationLoss
from retriever.training.batches import Batcher
from retriever.training.samples import make_samples
from retriever.training.towers import FrozenTowers
from retriever.types import Document, Query

QUERIES, NEGATIVES, BATCHES = 100, 12, 8

Pairs = list[tuple[Query, Document]]


def findings(pipeline: Pipeline, other: Pipeline | None, losses: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The three findings.

    Args:
        pipeline: an experiment whose teacher has scored.
        other: the same with another seed; None leaves out whether teachers agree.
        losses: by the names of the benchmark.
    """
    hard, easy = negatives(pipeline)
    scores = {name: [scored(one, pairs) for pairs in (hard, easy)] for name, one in (("teacher", pipeline), *([("other", other)] if other else []))}
    scores["student"] = [by_student(pipeline, pairs) for pairs in (hard, easy)]
    agreement = {
        f"with {name}": {"hard": tau(scores["teacher"][0], scores[name][0]), "easy": tau(scores["teacher"][1], scores[name][1])}
        for name in scores
        if name != "teacher"
    }
    chances = 1 / (1 + np.exp(-np.concatenate(scores["teacher"], axis=1)))
    return {
        "kurtosis": {name: kurtosis(np.concatenate(scores[name], axis=1)) for name in ("teacher", "student")},
        "saturated": float(((chances < 0.01) | (chances > 0.99)).mean()),
        "agreement": agreement,
        "gradients": {name: cosine_of_gradients(pipeline, weights) for name, weights in losses.items() if "contrastive" in weights and len(weights) > 1},
        "queries": len(hard) // NEGATIVES,
    }


def negatives(pipeline: Pipeline) -> tuple[Pairs, Pairs]:
    """Held-out train queries with the negatives that the start ranks first, and with as many of the same kind drawn at random; `NEGATIVES` of each a query."""
    run, qrels, queries = pipeline.candidates["train"], pipeline.qrels("train"), pipeline.student_queries("train")
    every = {document.doc_id: document for document in pipeline.collection.documents()}
    of_kind = {image: [one for one in every if (every[one].image is not None) == image] for image in (True, False)}
    generator = np.random.default_rng(1)
    hard: Pairs = []
    easy: Pairs = []
    for query_id in pipeline.held_out[1]:
        query, known = queries[query_id], qrels[query_id]
        first = [doc_id for doc_id, _ in run[query_id] if known.get(doc_id, 0) <= 0][:NEGATIVES] if query_id in run else []
        if len(first) == NEGATIVES and len(hard) < QUERIES * NEGATIVES:
            drawn = [one for one in generator.permutation(of_kind[query.image is None]).tolist() if one not in known and one not in first][:NEGATIVES]
            hard += [(query, every[doc_id]) for doc_id in first]
            easy += [(query, every[doc_id]) for doc_id in drawn]
    return hard, easy


def scored(pipeline: Pipeline, pairs: Pairs) -> NDArray[np.float64]:
    """[Q, N], the teacher's scores."""
    (teacher,) = pipeline.teachers.values()
    return np.asarray(teacher.score(pairs).scores, dtype=np.float64).reshape(-1, NEGATIVES)


def by_student(pipeline: Pipeline, pairs: Pairs) -> NDArray[np.float64]:
    """[Q, N], the start's scores."""
    student: Any = pipeline.start
    queries = student.encode_queries([query for query, _ in pairs[::NEGATIVES]])
    documents = student.encode_documents([document for _, document in pairs])
    return np.asarray(student.score(np.repeat(queries, NEGATIVES, axis=0), documents), dtype=np.float64).reshape(-1, NEGATIVES)


def tau(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Kendall's tau of two scores [Q, N] within each query, mean over queries; a tie counts as half an agreement."""
    signs = [np.sign(scores[:, :, None] - scores[:, None, :]) for scores in (one, other)]
    rows, columns = np.triu_indices(one.shape[1], 1)
    return float((signs[0] * signs[1])[:, rows, columns].mean())


def kurtosis(scores: NDArray[np.float64]) -> float:
    """The fourth moment over the squared second one, minus 3: 0 of a normal distribution."""
    centred = scores - scores.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2 - 3)


def cosine_of_gradients(pipeline: Pipeline, losses: Mapping[str, float]) -> float:
    """The mean over some batches of the cosine of the contrastive loss's gradient with that of the other one, at the start."""
    training = pipeline.experiment.training.model_copy(update={"losses": dict(losses), "epochs": 1})
    queries = {query_id: pipeline.student_queries("train")[query_id] for query_id in pipeline.held_out[0]}
    target, qrels = pipeline.target.scores("train"), pipeline.qrels("train")
    samples = make_samples(target, queries, qrels, pipeline.collection, training, np.random.default_rng(1))
    model = pipeline.load_student(pipeline.experiment.student).model
    towers = FrozenTowers(model)
    found: list[float] = []
    batcher = Batcher(model, samples, pipeline.collection, towers=towers)
    loss = DistillationLoss(model, samples, training)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with towers.attached():
        for start in range(0, min(BATCHES * training.batch_size, len(samples)), training.batch_size):
            batch = batcher([{"label": number} for number in range(start, min(start + training.batch_size, len(samples)))])
            label = batch.pop("label")
            terms = loss(grouped(batch), label)
            contrastive, other = (slopes(terms[name], weights) for name in sorted(terms, key=lambda name: name != "contrastive"))
            found.append(float(torch.nn.functional.cosine_similarity(contrastive, other, dim=0)))
    return float(np.mean(found))


def grouped(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The features of queries, and of each group of documents, by the prefixes of their names."""
    prefixes = ["query_", *sorted({"_".join(name.split("_")[:2]) + "_" for name in batch if name.startswith("document_")})]
    return [{name[len(prefix) :]: value for name, value in batch.items() if name.startswith(prefix)} for prefix in prefixes]


def slopes(term: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The gradient as one vector; 0 where a weight was not used."""
    found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(weight) if slope is None else slope).reshape(-1) for slope, weight in zip(found, weights, strict=True)])


def told(results: Mapping[str, Any]) -> str:
    """The findings in a few lines."""
    kurtoses, agreement = results["kurtosis"], results["agreement"]
    lines = [
        f"1. excess kurtosis of scores: teacher {kurtoses['teacher']:.1f}, student {kurtoses['student']:.1f} (normal 0); "
        f"{results['saturated']:.0%} of the teacher's probabilities are below .01 or above .99",
        *(f"2. Kendall's tau of the teacher {name}: hard negatives {one['hard']:.2f}, easy {one['easy']:.2f}" for name, one in agreement.items()),
        "3. cosine with the contrastive gradient: " + ", ".join(f"{name} {value:.2f}" for name, value in results["gradients"].items()),
    ]
    return "\n".join(lines)
