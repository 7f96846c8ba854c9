"""The losses on a batch: which documents stand in which sum, in which unit, and inside sentence-transformers' wrappers."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from torch import Tensor, nn

from retriever.config import TrainingSettings
from retriever.training.adapter import DistillationLoss, first_places, in_batch
from retriever.training.losses import contrastive, kl_divergence, margin_mse, margin_mse_all_pairs
from retriever.training.samples import TrainingSamples
from tests.training_material import NamedSimilarity, random_embeddings, samples_of

SAMPLES = samples_of([[1, 2, 3], [4, 5, 1], [6, 2, 7]], not_negative=[[1], [4], [5, 6]])


def places_in_the_sum(samples: TrainingSamples, labels: list[int]) -> list[list[tuple[int, int]]]:
    """Plain loops: for each query its own positive, then every other document once, as (list, column) of the batch."""
    batch = []
    for own, label in enumerate(labels):
        places, seen = [(own, 0)], set(samples.not_negative[label].tolist())
        for other, number in enumerate(labels):
            for column, row in enumerate(samples.documents[number].tolist()):
                if samples.mask[number, column] and row not in seen:
                    places.append((other, column))
                    seen.add(row)
        batch.append(places)
    return batch


def pair_scores(samples: TrainingSamples, labels: list[int]) -> tuple[list[list[float]], list[list[float]]]:
    """What stands in each query's sum: by the loops, and by `in_batch`; the positive's score first, the others sorted."""
    queries, *columns = random_embeddings(len(labels), samples.documents.shape[1])
    documents = torch.stack(columns, dim=1)
    products = torch.einsum("bd,ckd->bck", queries, documents)
    slow = [[products[b, other, column].item() for other, column in places] for b, places in enumerate(places_in_the_sum(samples, labels))]
    scores, mask = in_batch(queries, documents, samples, torch.tensor(labels))
    fast = [row[real].tolist() for row, real in zip(scores, mask, strict=True)]
    return [[row[0], *sorted(row[1:])] for row in slow], [[row[0], *sorted(row[1:])] for row in fast]


def test_the_sum_holds_the_own_positive_and_all_that_is_surely_negative() -> None:
    # the batch holds the rows 1 2 3 | 4 5 1 | 6 2 7; document 1 is a negative of the second query, 5 is suspected of the third
    assert places_in_the_sum(SAMPLES, [0, 1, 2]) == [
        [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 2)],
        [(1, 0), (0, 0), (0, 1), (0, 2), (1, 1), (2, 0), (2, 2)],
        [(2, 0), (0, 0), (0, 1), (0, 2), (1, 0), (2, 2)],
    ]
    slow, fast = pair_scores(SAMPLES, [0, 1, 2])
    for expected, found in zip(slow, fast, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_own_positive_stands_first() -> None:
    queries, *columns = random_embeddings(3, 3)
    scores, mask = in_batch(queries, torch.stack(columns, dim=1), SAMPLES, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(scores[:, 0], (queries * columns[0]).sum(dim=1))
    assert mask[:, 0].all()
    assert scores.shape == mask.shape == (3, 9)


def test_two_samples_of_one_query_do_not_push_each_others_positive_away() -> None:
    both_positive = samples_of([[1, 3], [2, 4]], not_negative=[[1, 2], [1, 2]])
    assert places_in_the_sum(both_positive, [0, 1]) == [[(0, 0), (0, 1), (1, 1)], [(1, 0), (0, 1), (1, 1)]]
    slow, fast = pair_scores(both_positive, [0, 1])
    assert [len(row) for row in fast] == [3, 3]
    assert fast[0] == pytest.approx(slow[0], rel=1e-5)


def test_padding_is_in_no_sum_and_hides_no_document_of_its_row() -> None:
    padded = samples_of([[1, 0], [2, 0]], mask=[[True, False], [True, True]])  # row 0 is padding of the first, a document of the second
    slow, fast = pair_scores(padded, [0, 1])
    assert [len(row) for row in fast] == [3, 3]
    for expected, found in zip(slow, fast, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), batch=st.integers(1, 5), size=st.integers(2, 4))
def test_the_mask_is_that_of_plain_loops(data: st.DataObject, batch: int, size: int) -> None:
    rows = [data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size, unique=True)) for _ in range(batch)]
    mask = [[True, *data.draw(st.lists(st.booleans(), min_size=size - 1, max_size=size - 1))] for _ in range(batch)]
    known = [[row[0], *data.draw(st.lists(st.integers(0, 9), max_size=3))] for row in rows]
    samples = samples_of(rows, mask=mask, not_negative=known)
    labels = data.draw(st.permutations(range(batch)))
    slow, fast = pair_scores(samples, labels)
    for expected, found in zip(slow, fast, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(values=st.lists(st.integers(-1, 5), min_size=1, max_size=12))
def test_a_value_counts_where_it_stands_first(values: list[int]) -> None:
    assert first_places(torch.tensor(values)).tolist() == [value not in values[:place] for place, value in enumerate(values)]


# Units and weights


def terms_of(similarity: str, labels: list[int], training: TrainingSettings) -> dict[str, float]:
    loss = DistillationLoss(NamedSimilarity(similarity), SAMPLES, training)
    terms = loss.compute_loss_from_embeddings(random_embeddings(len(labels), 3), torch.tensor(labels))
    return {name: term.item() for name, term in terms.items()}


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_cosine_is_scaled_to_a_logit_and_a_dot_product_is_one_already(similarity: str) -> None:
    training = TrainingSettings(
        losses={"margin_mse": 1, "margin_mse_all_pairs": 1, "kl_divergence": 1, "contrastive": 1}, student_scale=7, teacher_scale=3, teacher_temperature=2
    )
    labels = [2, 0]
    queries, *columns = (torch.nn.functional.normalize(vectors, dim=-1) if similarity == "cosine" else vectors for vectors in random_embeddings(2, 3))
    documents, scale = torch.stack(columns, dim=1), 7 if similarity == "cosine" else 1
    student = scale * torch.einsum("bd,bkd->bk", queries, documents)
    teacher, mask = torch.tensor(SAMPLES.teacher[labels]), torch.ones(2, 3, dtype=torch.bool)
    scores, negatives = in_batch(queries, documents, SAMPLES, torch.tensor(labels))
    expected = {
        "margin_mse": margin_mse(student, 3 * teacher, mask).item(),
        "margin_mse_all_pairs": margin_mse_all_pairs(student, 3 * teacher, mask).item(),
        "kl_divergence": kl_divergence(student, teacher, mask, 2).item(),
        "contrastive": contrastive(scale * scores, teacher, negatives).item(),
    }
    assert terms_of(similarity, labels, training) == pytest.approx(expected, rel=1e-4)


def test_each_loss_comes_back_with_its_weight_and_those_of_weight_zero_do_not() -> None:
    whole = terms_of("dot", [0, 1], TrainingSettings(losses={"margin_mse": 1, "contrastive": 1}))
    part = terms_of("dot", [0, 1], TrainingSettings(losses={"margin_mse": 0.25, "contrastive": 3, "kl_divergence": 0}))
    assert part == pytest.approx({"margin_mse": 0.25 * whole["margin_mse"], "contrastive": 3 * whole["contrastive"]})


def test_labels_find_their_samples_in_any_order() -> None:
    training = TrainingSettings(losses={"margin_mse": 1})
    shuffled, alone = samples_of([[1, 2], [3, 4]], [[5, 1], [-3, 8]]), samples_of([[3, 4]], [[-3, 8]])
    embeddings = random_embeddings(1, 2)
    values = [
        DistillationLoss(NamedSimilarity("dot"), samples, training).compute_loss_from_embeddings(embeddings, torch.tensor([label]))["margin_mse"].item()
        for samples, label in ((shuffled, 1), (alone, 0))
    ]
    assert values[0] == values[1]


# With a real model


@pytest.fixture
def model(encoder_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True).eval()


def features_of(model: SentenceTransformer) -> list[dict[str, Tensor]]:
    """Two samples: a column of queries and three of documents of other lengths."""
    texts = [
        ["owl at night", "saw"],
        ["a bird of prey", "it cuts wood into boards with its teeth"],
        ["hammer", "nail"],
        ["a bat finds insects in the dark", "axe"],
    ]
    return [model.preprocess(column) for column in texts]


def distillation(model: SentenceTransformer) -> DistillationLoss:
    return DistillationLoss(model, SAMPLES, TrainingSettings(losses={"margin_mse": 1.0, "contrastive": 0.2}))


def test_texts_give_the_terms_of_their_embeddings(model: SentenceTransformer) -> None:
    loss, labels = distillation(model), torch.tensor([0, 1])
    embeddings = [model(column)["sentence_embedding"] for column in features_of(model)]
    expected = loss.compute_loss_from_embeddings(embeddings, labels)
    found = loss(features_of(model), labels)
    assert {name: term.item() for name, term in found.items()} == pytest.approx({name: term.item() for name, term in expected.items()}, rel=1e-4)


class Summed(nn.Module):
    """The terms as one number, for wrappers that multiply what a loss returns."""

    def __init__(self, loss: DistillationLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        return torch.stack(list(self.loss(features, labels).values())).sum()


def test_matryoshka_takes_the_sum_of_the_terms_and_not_the_terms(model: SentenceTransformer) -> None:
    labels, loss = torch.tensor([0, 1]), distillation(model)
    with pytest.raises(TypeError):  # sentence-transformers 6.2 multiplies the loss by the dimension's weight
        MatryoshkaLoss(model, loss, [32, 8])(features_of(model), labels)
    embeddings = [model(column)["sentence_embedding"] for column in features_of(model)]
    cut = [loss.compute_loss_from_embeddings([vectors[:, :size] for vectors in embeddings], labels) for size in (32, 8)]
    expected = sum(weight * term.item() for weight, terms in zip((1.0, 0.5), cut, strict=True) for term in terms.values())
    found = MatryoshkaLoss(model, Summed(loss), [32, 8], [1.0, 0.5])(features_of(model), labels)
    assert found.item() == pytest.approx(expected, rel=1e-4)


class Cached(CachedLossMixin, nn.Module):
    """The loss with sentence-transformers' gradient cache, one text at a time."""

    def __init__(self, loss: DistillationLoss) -> None:
        super().__init__()
        self.model, self.inner, self.mini_batch_size = loss.model, loss, 1

    def calculate_loss(self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False) -> Tensor:
        assert labels is not None
        value = torch.stack(list(self.inner.compute_loss_from_embeddings([torch.cat(column) for column in reps], labels).values())).sum()
        if with_backward:
            value.backward()
            return value.detach()
        return value

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        return self.forward_cached(features, labels)


def test_a_gradient_cache_gives_the_same_gradients(model: SentenceTransformer) -> None:
    labels, loss = torch.tensor([0, 1]), distillation(model)
    gradients = []
    for module in (Summed(loss), Cached(loss)):
        model.zero_grad()
        module(features_of(model), labels).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]))
    assert gradients[0].abs().max() > 0.01
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)
