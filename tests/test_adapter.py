"""The losses on a batch: which documents stand in which sum, in which unit, and with gradients from a cache."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch import Tensor

from retriever.settings.training import TrainingSettings
from retriever.training.adapter import DistillationLoss, Targets
from retriever.training.in_batch import positive_first
from retriever.training.losses import kl_divergence, margin_mse, margin_mse_all_pairs
from retriever.training.samples import TrainingSamples
from tests.training_material import samples_of, untrained

SAMPLES = samples_of([[1, 2, 3], [4, 5, 1], [6, 2, 7]], not_negative=[[1], [4], [5, 6]])


def labels_of(samples: TrainingSamples, numbers: list[int]) -> dict[str, Tensor]:
    """As a `Batcher` gives them, with the documents in a random order."""
    rows = sorted({row for number in numbers for row, real in zip(samples.documents[number].tolist(), samples.mask[number], strict=True) if real})
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))
    return {"samples": torch.tensor(numbers), "rows": torch.tensor(rows)[order]}


def targets_of(samples: TrainingSamples, labels: dict[str, Tensor]) -> Targets:
    return Targets.of(samples, labels, torch.device("cpu"))


def in_the_sum(samples: TrainingSamples, numbers: list[int]) -> list[list[int]]:
    """Plain loops: for each query its own positive, then every other document of the batch that is surely no positive of it."""
    found = []
    for own in numbers:
        rows, known = [int(samples.documents[own, 0])], set(samples.not_negative[own].tolist())
        for number in numbers:
            for row, real in zip(samples.documents[number].tolist(), samples.mask[number], strict=True):
                if real and row not in known and row not in rows:
                    rows.append(row)
        found.append(rows)
    return found


def rows_in_the_sum(samples: TrainingSamples, numbers: list[int]) -> list[list[int]]:
    """The same by `positive_first`: a score that is the document's row tells which one it is."""
    labels = labels_of(samples, numbers)
    targets = targets_of(samples, labels)
    rows, allowed = positive_first(labels["rows"].float().expand(len(numbers), -1), targets.negatives, targets.places[:, 0])
    return [row[real].int().tolist() for row, real in zip(rows, allowed, strict=True)]


def same_sums(samples: TrainingSamples, numbers: list[int]) -> bool:
    expected, found = in_the_sum(samples, numbers), rows_in_the_sum(samples, numbers)
    return [(row[0], sorted(row)) for row in found] == [(row[0], sorted(row)) for row in expected]


def test_the_sum_holds_the_own_positive_and_all_that_is_surely_negative() -> None:
    # the batch holds the rows 1 2 3 | 4 5 1 | 6 2 7; document 1 is a negative of the second query, 5 is suspected of the third
    assert in_the_sum(SAMPLES, [0, 1, 2]) == [[1, 2, 3, 4, 5, 6, 7], [4, 1, 2, 3, 5, 6, 7], [6, 1, 2, 3, 4, 7]]
    assert same_sums(SAMPLES, [0, 1, 2])


def test_two_samples_of_one_query_do_not_push_each_others_positive_away() -> None:
    both_positive = samples_of([[1, 3], [2, 4]], not_negative=[[1, 2], [1, 2]])
    assert in_the_sum(both_positive, [0, 1]) == [[1, 3, 4], [2, 3, 4]]
    assert same_sums(both_positive, [0, 1])


def test_padding_is_in_no_sum() -> None:
    padded = samples_of([[1, 0], [2, 0]], mask=[[True, False], [True, True]])  # row 0 is padding of the first, a document of the second
    assert in_the_sum(padded, [0, 1]) == [[1, 2, 0], [2, 1, 0]]
    assert in_the_sum(padded, [0]) == [[1]]
    assert same_sums(padded, [0, 1])
    assert same_sums(padded, [0])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), batch=st.integers(1, 5), size=st.integers(2, 4))
def test_the_sum_is_that_of_plain_loops(data: st.DataObject, batch: int, size: int) -> None:
    rows = [data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size, unique=True)) for _ in range(batch)]
    mask = [[True, *data.draw(st.lists(st.booleans(), min_size=size - 1, max_size=size - 1))] for _ in range(batch)]
    known = [[row[0], *data.draw(st.lists(st.integers(0, 9), max_size=3))] for row in rows]
    samples = samples_of(rows, mask=mask, not_negative=known)
    assert same_sums(samples, data.draw(st.permutations(range(batch))))


def test_places_find_each_lists_documents() -> None:
    labels = labels_of(SAMPLES, [2, 0])
    places = targets_of(SAMPLES, labels).places
    assert labels["rows"][places].tolist() == [[6, 2, 7], [1, 2, 3]]


# Units and weights


def encoded(labels: dict[str, Tensor], dimensions: int = 8) -> tuple[Tensor, Tensor]:
    """Random queries [B, D] and documents [U, D], of lengths that are not 1."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(labels["samples"]), dimensions, generator=generator), torch.randn(len(labels["rows"]), dimensions, generator=generator)


def terms_of(similarity: str, numbers: list[int], training: TrainingSettings, samples: TrainingSamples = SAMPLES) -> dict[str, float]:
    labels = labels_of(samples, numbers)
    queries, documents = encoded(labels)
    terms = DistillationLoss(untrained(similarity), samples, training).terms((queries,), (documents,), labels)
    return {name: term.item() for name, term in terms.items()}


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_cosine_is_scaled_to_a_logit_and_a_dot_product_is_one_already(similarity: str) -> None:
    training = TrainingSettings(
        losses={"margin_mse": 1, "margin_mse_all_pairs": 1, "kl_divergence": 1, "contrastive": 1}, student_scale=7, teacher_scale=3, teacher_temperature=2
    )
    labels = labels_of(SAMPLES, [2, 0])
    queries, documents = (torch.nn.functional.normalize(vectors, dim=-1) if similarity == "cosine" else vectors for vectors in encoded(labels))
    place_of = {row: place for place, row in enumerate(labels["rows"].tolist())}
    every = (7 if similarity == "cosine" else 1) * queries @ documents.T
    student = torch.stack([every[number, [place_of[row] for row in SAMPLES.documents[sample].tolist()]] for number, sample in enumerate([2, 0])])
    teacher, mask = torch.tensor(SAMPLES.teacher[[2, 0]]), torch.ones(2, 3, dtype=torch.bool)
    sums = [torch.logsumexp(every[number, [place_of[row] for row in rows]], 0) for number, rows in enumerate(in_the_sum(SAMPLES, [2, 0]))]
    expected = {
        "margin_mse": margin_mse(student, 3 * teacher, mask).item(),
        "margin_mse_all_pairs": margin_mse_all_pairs(student, 3 * teacher, mask).item(),
        "kl_divergence": kl_divergence(student, teacher, mask, 2).item(),
        "contrastive": (torch.stack(sums) - student[:, 0]).mean().item(),
    }
    assert terms_of(similarity, [2, 0], training) == pytest.approx(expected, rel=1e-4)


def test_each_loss_comes_back_with_its_weight_and_those_of_weight_zero_do_not() -> None:
    whole = terms_of("dot", [0, 1], TrainingSettings(losses={"margin_mse": 1, "contrastive": 1}))
    part = terms_of("dot", [0, 1], TrainingSettings(losses={"margin_mse": 0.25, "contrastive": 3, "kl_divergence": 0}))
    assert part == pytest.approx({"margin_mse": 0.25 * whole["margin_mse"], "contrastive": 3 * whole["contrastive"]})


def test_labels_find_their_samples_in_any_order() -> None:
    training = TrainingSettings(losses={"margin_mse": 1}, teacher_scale=1.0)
    shuffled, alone = samples_of([[1, 2], [3, 4]], [[5, 1], [-3, 8]]), samples_of([[3, 4]], [[-3, 8]])
    assert terms_of("dot", [1], training, shuffled) == terms_of("dot", [0], training, alone)


def test_the_sizes_of_a_matryoshka_student_count_alike() -> None:
    training = TrainingSettings(losses={"margin_mse": 1.0, "contrastive": 0.5})
    labels = labels_of(SAMPLES, [0, 1])
    queries, documents = encoded(labels)
    cut = [DistillationLoss(untrained("cosine"), SAMPLES, training).terms((queries[:, :size],), (documents[:, :size],), labels) for size in (8, 3)]
    found = DistillationLoss(untrained("cosine"), SAMPLES, training.model_copy(update={"matryoshka": (8, 3)})).terms((queries,), (documents,), labels)
    assert {name: term.item() for name, term in found.items()} == pytest.approx({name: (cut[0][name] + cut[1][name]).item() / 2 for name in found}, rel=1e-5)


# With a real model


@pytest.fixture
def model(encoder_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True).eval()


def features_of(model: SentenceTransformer) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Two queries, and their five distinct documents in two groups."""
    queries = ["owl at night", "saw"]
    groups = [["it cuts wood into boards with its teeth", "a bat finds insects in the dark", "a bird of prey"], ["hammer", "axe"]]
    return [model.preprocess(texts) for texts in (queries, *groups)], {"samples": torch.tensor([0, 1]), "rows": torch.tensor([5, 2, 1, 4, 3])}


def distillation(model: SentenceTransformer, **settings: object) -> DistillationLoss:
    return DistillationLoss(model, SAMPLES, TrainingSettings.model_validate({"losses": {"margin_mse": 1.0, "contrastive": 0.2}, **settings}))


def test_groups_of_texts_give_the_terms_of_their_vectors(model: SentenceTransformer) -> None:
    features, labels = features_of(model)
    queries, *documents = [model(dict(group))["sentence_embedding"] for group in features]
    loss = distillation(model)
    expected = loss.terms((queries,), (torch.cat(documents),), labels)
    assert {name: term.item() for name, term in loss(features, labels).items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=1e-4
    )


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_gradient_cache_gives_the_same_terms_and_gradients(model: SentenceTransformer, scale: float) -> None:
    features, labels = features_of(model)
    model.train()  # with dropout: the second pass must draw what the first drew
    gradients, values = [], []
    for cached in (False, True):
        model.zero_grad()
        torch.manual_seed(5)
        terms = distillation(model, gradient_cache=cached)(features, labels)
        (torch.stack(list(terms.values())).sum() * scale).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]))
        values.append({name: term.item() for name, term in terms.items()})
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert gradients[0].abs().max() > 0.001
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)
