"""Cheaper random bits: the same chances, and attention whose gradients are those of the formula."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from retriever.settings.training import TrainingSettings
from retriever.training import dropout
from retriever.training.adapter import DistillationLoss
from retriever.training.batches import Batcher
from retriever.training.dropout import cheap_dropout, kept
from retriever.training.trainer import train_student
from retriever.training.watcher import Supervision
from tests.training_material import animal_lessons

TRAINING = TrainingSettings(documents_per_query=4, epochs=1, batch_size=8, precision="fp32")


def seeded(seed: int) -> None:
    torch.manual_seed(seed)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_numbers_are_dropped_with_the_chance_asked_for_and_keep_their_mean(p: float) -> None:
    seeded(1)
    factors = kept((1000, 1003), p)
    dropped = float((factors == 0).float().mean())
    assert dropped == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / factors.numel()))
    assert factors.unique().tolist() == [0.0, pytest.approx(1 / (1 - p), rel=1e-3)]
    assert float(factors.mean()) == pytest.approx(1, abs=4 * math.sqrt(p / (1 - p) / factors.numel()) + 1e-4)


def test_each_of_the_four_numbers_of_a_draw_has_the_same_chance_and_none_tells_of_another() -> None:
    seeded(2)
    dropped = (kept((250_000, 4), 0.1) == 0).double()
    near = 4 * math.sqrt(0.1 * 0.9 / 250_000)
    assert dropped.mean(dim=0).tolist() == pytest.approx([0.1] * 4, abs=near)
    assert float((torch.corrcoef(dropped.T) - torch.eye(4)).abs().max()) < 4 / math.sqrt(250_000)
    assert abs(float(torch.corrcoef(torch.stack([dropped[:-1, 3], dropped[1:, 0]]))[0, 1])) < 4 / math.sqrt(250_000)


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), p=st.floats(0.001, 0.999))
def test_any_shape_has_its_factors(shape: list[int], p: float) -> None:
    assert kept(shape, p).shape == torch.Size(shape)


def test_a_seed_gives_the_same_factors_again_and_others_next_time() -> None:
    seeded(3)
    first, second = kept((100,), 0.5), kept((100,), 0.5)
    assert not torch.equal(first, second)
    seeded(3)
    assert torch.equal(kept((100,), 0.5), first)


def test_a_module_drops_with_these_factors_while_it_trains_and_not_else() -> None:
    values = torch.randn(5, 7, requires_grad=True)
    module = nn.Dropout(0.4)
    seeded(4)
    factors = kept((5, 7), 0.4)
    with cheap_dropout():
        seeded(4)
        found = module(values)
        assert torch.equal(module.eval()(values), values)
        assert torch.equal(nn.Dropout(0.0)(values), values)
    assert torch.equal(found, values * factors)
    found.sum().backward()
    assert torch.equal(values.grad, factors)
    seeded(5)
    expected = functional.dropout(values, 0.4)
    seeded(5)
    assert torch.equal(nn.Dropout(0.4)(values), expected)  # afterwards torch's own


def by_the_formula(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, factors: Tensor, scale: float) -> Tensor:
    scores = query @ key.transpose(-1, -2) * scale
    return (torch.softmax(scores if bias is None else scores + bias, dim=-1) * factors) @ value


@pytest.mark.parametrize("chunk", [1, 100, 10**6])
@pytest.mark.parametrize("masked", ["not", "bool", "float", "one for all"])
def test_attention_and_its_gradients_are_those_of_the_formula(chunk: int, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "CHUNK", chunk)
    seeded(6)
    inputs = [torch.randn(3, 2, 5, 4, requires_grad=True) for _ in range(3)]
    mask = torch.rand(3, 1, 5, 5) < 0.7
    mask[..., 0] = True
    bias = torch.randn(1 if masked == "one for all" else 3, 2, 5, 5, requires_grad=True)
    given_mask = {"not": None, "bool": mask}.get(masked, bias)
    upstream = torch.randn(3, 2, 5, 4)
    seeded(7)
    factors = kept((3, 2, 5, 5), 0.3)
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if masked == "bool" else given_mask
    expected = by_the_formula(*inputs, added, factors, 0.5)
    learns = [*inputs, *([bias] if given_mask is bias else [])]
    wanted = torch.autograd.grad((expected * upstream).sum(), learns)
    with cheap_dropout():
        seeded(7)
        found = functional.scaled_dot_product_attention(*inputs, attn_mask=given_mask, dropout_p=0.3, scale=0.5)
    torch.testing.assert_close(found, expected)
    for slope, other in zip(torch.autograd.grad((found * upstream).sum(), learns), wanted, strict=True):
        torch.testing.assert_close(slope, other)


def test_heads_that_lie_apart_are_read_as_those_that_lie_together() -> None:
    """A transformer gives [B, L, H, D], seen as [B, H, L, D]."""
    apart = [torch.randn(3, 5, 2, 4).transpose(1, 2).requires_grad_() for _ in range(3)]
    together = [one.detach().contiguous().requires_grad_() for one in apart]
    found = []
    for inputs in (apart, together):
        seeded(11)
        with cheap_dropout():
            output = functional.scaled_dot_product_attention(*inputs, dropout_p=0.3)
        found.append((output, *torch.autograd.grad((output**2).sum(), inputs)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_attention_of_bf16_is_computed_in_float32_under_autocast_too() -> None:
    seeded(9)
    inputs = [torch.randn(3, 2, 5, 4).bfloat16().requires_grad_() for _ in range(3)]
    bias, upstream = torch.randn(3, 1, 5, 5).bfloat16(), torch.randn(3, 2, 5, 4).bfloat16()
    seeded(10)
    factors = kept((3, 2, 5, 5), 0.3)
    exact = [one.detach().float().requires_grad_() for one in inputs]
    expected = by_the_formula(*exact, bias.float(), factors, 0.5)
    wanted = torch.autograd.grad((expected * upstream.float()).sum(), exact)
    with cheap_dropout(), torch.autocast("cpu", dtype=torch.bfloat16):
        seeded(10)
        found = functional.scaled_dot_product_attention(*inputs, attn_mask=bias, dropout_p=0.3, scale=0.5)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())  # rounded once, at the end
    for slope, other in zip(torch.autograd.grad((found * upstream).sum(), inputs), wanted, strict=True):
        assert torch.equal(slope, other.bfloat16())


def test_attention_that_this_does_not_know_is_torchs() -> None:
    inputs = [torch.randn(1, 2, 3, 4) for _ in range(3)]
    for settings in ({}, {"dropout_p": 0.0}, {"is_causal": True, "dropout_p": 0.5}):
        seeded(8)
        expected = functional.scaled_dot_product_attention(*inputs, **settings)
        with cheap_dropout():
            seeded(8)
            assert torch.equal(functional.scaled_dot_product_attention(*inputs, **settings), expected)


def test_gradients_from_a_cache_drop_the_same_numbers_again(encoder_folder: Path, tmp_path: Path) -> None:
    collection, samples = animal_lessons(tmp_path / "collection", TRAINING)
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True).train()
    batch = Batcher(model, samples, collection)([{"label": number} for number in range(8)])
    prefixes = ["query_", *sorted({key[: -len("input_ids")] for key in batch if key.startswith("document_") and key.endswith("input_ids")})]
    features = [{key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)} for prefix in prefixes]
    found = []
    for cached in (False, True):
        model.zero_grad(set_to_none=True)
        seeded(9)
        with cheap_dropout():
            loss = DistillationLoss(model, samples, TRAINING.model_copy(update={"gradient_cache": cached}))(features, batch["label"])
            torch.stack(list(loss.values())).sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_training_on_a_cpu_takes_its_chances_from_here(encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    chance_of = dropout._chance

    def counted(p: float) -> tuple[int, float]:
        asked.append(p)
        return chance_of(p)

    monkeypatch.setattr(dropout, "_chance", counted)
    collection, samples = animal_lessons(tmp_path / "collection", TRAINING)
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    train_student(model, samples, collection, TRAINING, tmp_path, 1, Supervision(lambda: {"validation": 0.0}))
    steps = -(-len(samples) // TRAINING.batch_size)
    per_pass = 1 + 2 * 3  # embeddings; attention, its output and the end of each layer
    assert len(asked) >= 2 * steps * per_pass  # queries and at least one group of documents
    assert set(asked) == {0.1}


def test_layers_that_are_computed_again_on_the_way_back_drop_the_same_numbers() -> None:
    values, module = torch.randn(6, 8, requires_grad=True), nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    slopes = []
    for again in (False, True):
        seeded(10)
        with cheap_dropout():
            output = checkpoint(module, values, use_reentrant=False) if again else module(values)
            (output**2).sum().backward()
        slopes.append(values.grad)
        values.grad = None
    torch.testing.assert_close(slopes[0], slopes[1])
