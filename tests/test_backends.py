"""Backends: exported models say what torch says or are refused; several replicas share the work."""

import copy
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from retriever.errors import ConfigError
from retriever.models.backends import Backend, BackendPlan, TorchBackend, all_logits, int8_bits, open_backend
from retriever.models.token_batches import TokenBatch, TokenPairs, batches, learn_template, tokenise_pairs

TEXTS = [(f"owl {'night ' * (place % 4)}", "hammer mole " * (1 + place % 7)) for place in range(23)]


def largest_difference(one: Backend, other: Backend, work: list[TokenBatch]) -> float:
    return max(float(np.abs(one.logits(batch) - other.logits(batch)).max()) for batch in work)


@pytest.fixture(scope="module")
def model(cross_encoder_folder: Path) -> CrossEncoder:
    """With a head 1000 times as sure: that of the fixture hardly tells pairs apart."""
    model = CrossEncoder(str(cross_encoder_folder), device="cpu", local_files_only=True).eval()
    model.model.classifier.weight.data.mul_(1000)
    return model


@pytest.fixture(scope="module")
def tokens(model: CrossEncoder) -> TokenPairs:
    return tokenise_pairs(model.tokenizer, learn_template(model.tokenizer, "model"), TEXTS, 128)


@pytest.fixture(scope="module")
def work(tokens: TokenPairs) -> list[TokenBatch]:
    return [tokens.batch(places) for places in batches(tokens.lengths, 60, 4)]


def test_replicas_on_several_devices_give_every_pair_its_own_logit(model: CrossEncoder, work: list[TokenBatch], tokens: TokenPairs) -> None:
    """Two replicas on the processor stand in for two GPUs."""
    one, two = TorchBackend(model, ["cpu"], "fp32"), TorchBackend(model, ["cpu", "cpu"], "fp32")
    assert (one.workers, two.workers) == (1, 2)
    alone = np.concatenate([one.logits(tokens.batch(np.array([place]))) for place in range(len(TEXTS))])
    for backend in (one, two):
        found = all_logits(backend, iter(work), len(TEXTS))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, alone, atol=1e-3)
    assert np.ptp(alone) > 0.05


def test_no_pairs_give_no_logits(model: CrossEncoder) -> None:
    assert all_logits(TorchBackend(model, ["cpu"], "fp32"), iter([]), 0).shape == (0, 1)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_exports_agree_with_torch_on_any_shape(model: CrossEncoder, work: list[TokenBatch], tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    exported = open_backend(BackendPlan(name, "fp32", False), model, tmp_path, work[:2], "teacher x")  # type: ignore[arg-type]
    assert largest_difference(exported, TorchBackend(model, ["cpu"], "fp32"), work) < 1e-3


def test_int8_of_onnx_is_near_torch_and_not_equal(model: CrossEncoder, work: list[TokenBatch], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    rounded = open_backend(BackendPlan("onnx", "fp32", True), model, tmp_path, work[:2], "teacher x")
    assert 0 < largest_difference(rounded, TorchBackend(model, ["cpu"], "fp32"), work) < 0.5
    assert [path.name for path in tmp_path.rglob("int8*.onnx")] == ["int8.onnx" if int8_bits() == 8 else "int8-of-7-bits.onnx"]


def test_an_export_of_other_weights_is_refused_with_numbers(model: CrossEncoder, work: list[TokenBatch], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    open_backend(BackendPlan("openvino", "fp32", False), model, tmp_path, work[:2], "teacher x")
    other = copy.deepcopy(model)
    other.model.classifier.bias.data.add_(0.5)
    with pytest.raises(ConfigError, match=r"teacher x: the exported model says something else than torch: outputs differ by 0\.5, allowed is 0\.001"):
        open_backend(BackendPlan("openvino", "fp32", False), other, tmp_path, work[:2], "teacher x")
