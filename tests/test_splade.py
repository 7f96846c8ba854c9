"""Word weights without a table of logits: those of the stock modules, and their gradients."""

import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM, MPNetConfig, MPNetForMaskedLM

from retriever.models import splade
from retriever.models.routes import with_frozen_documents
from retriever.models.splade import largest_logits, without_logits

TEXTS = ["an owl hunts mice at night", "a saw", "", "flies in the dark " * 9]
SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
HEADS = {"bert": (BertForMaskedLM, BertConfig), "mpnet": (MPNetForMaskedLM, MPNetConfig), "modernbert": (ModernBertForMaskedLM, ModernBertConfig)}


@pytest.fixture(params=HEADS)
def model(request: pytest.FixtureRequest, encoder_folder: Any, tmp_path: Any) -> SparseEncoder:
    return sparse_encoder(encoder_folder, tmp_path, request.param)


@pytest.fixture
def bert(encoder_folder: Any, tmp_path: Any) -> SparseEncoder:
    return sparse_encoder(encoder_folder, tmp_path, "bert")


def sparse_encoder(encoder_folder: Any, folder: Any, head: str) -> SparseEncoder:
    """A random one with many active dimensions, that is not trained and drops nothing."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    kind, config = HEADS[head]
    special = {"pad_token_id": tokenizer.pad_token_id, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        masked = kind(config(vocab_size=len(tokenizer), **SIZES, **special))
        cast(Any, masked).get_input_embeddings().weight.data.mul_(20)
        cast(Any, masked).get_output_embeddings().bias.data.fill_(-1)
    masked.save_pretrained(folder / "masked")
    tokenizer.save_pretrained(folder / "masked")
    return SparseEncoder(str(folder / "masked"), device="cpu", local_files_only=True).eval()


def pooled(model: SparseEncoder, lean: bool, task: str = "document") -> tuple[Tensor, dict[str, Tensor]]:
    """The weights of the texts, and the gradients of a function of them."""
    for module in model.modules():
        if isinstance(module, SpladePooling):
            module.train()  # stock computes in place elsewhere, and has no gradients
    model.zero_grad()
    with without_logits(model) if lean else contextlib.nullcontext():
        weights = model(dict(model.preprocess(TEXTS, task=task)), task=task)["sentence_embedding"]
        (weights * torch.linspace(-1, 1, weights.numel()).view(weights.shape)).sum().backward()
    return weights.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], stock: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], stock[0], rtol=1e-5, atol=1e-6)
    assert ours[1].keys() == stock[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in stock[1].values())
    for name, gradient in stock[1].items():
        assert float((ours[1][name] - gradient).abs().max()) <= 1e-5 * largest, name


def by_hand(states: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The definition, one text and one word after the other."""
    rows = []
    for text, counts in zip(states, mask.bool().tolist(), strict=True):
        tokens = [state for state, counted in zip(text, counts, strict=True) if counted]
        logits = [[token @ vector + (bias[word] if bias is not None else 0) for token in tokens] for word, vector in enumerate(weight)]
        rows.append(torch.stack([torch.stack([*of_word, torch.zeros(())]).max() for of_word in logits]))
    return torch.stack(rows)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("small", [True, False])
def test_the_largest_logits_and_their_gradients_are_those_of_the_definition(with_bias: bool, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:  # several parts of the texts and of the words
        monkeypatch.setattr(splade, "TOKENS", 4)
        monkeypatch.setattr(splade, "LOGITS", {"cpu": 12})
    draw = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=draw, requires_grad=True) for shape in ((3, 4, 5), (7, 5), (7,))]
    states, weight, bias = tensors[0], tensors[1], tensors[2] if with_bias else None
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1]])  # the last one is padded on the left
    slopes = torch.randn((3, 7), generator=draw)
    found = []
    for function in (largest_logits, by_hand):
        values = function(states, mask, weight, bias)
        wanted = [tensor for tensor in (states, weight, bias) if tensor is not None]
        found.append((values, *torch.autograd.grad((values * slopes).sum(), wanted)))
    assert 0 < (found[0][0] > 0).sum() < 21
    for ours, defined in zip(*found, strict=True):
        torch.testing.assert_close(ours, defined)


def test_a_text_without_tokens_has_no_weights() -> None:
    bias = torch.ones(3)
    assert largest_logits(torch.ones(2, 2, 4), torch.tensor([[1, 0], [0, 0]]), torch.zeros(3, 4), bias).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_without_gradients_no_token_is_looked_up(bert: SparseEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = pooled(bert, lean=False)[0]
    monkeypatch.setattr(splade, "_tokens_of", None)
    with torch.no_grad(), without_logits(bert):
        torch.testing.assert_close(bert(dict(bert.preprocess(TEXTS, task="document")), task="document")["sentence_embedding"], stock)


def test_only_what_learns_gets_a_gradient() -> None:
    weight, bias = torch.ones(3, 4), torch.zeros(3, requires_grad=True)
    largest_logits(torch.ones(1, 2, 4), torch.ones(1, 2), weight, bias).sum().backward()
    assert (weight.grad, cast(Tensor, bias.grad).tolist()) == (None, [1, 1, 1])


def test_a_sparse_encoder_weighs_and_learns_as_the_stock_one(model: SparseEncoder) -> None:
    stock = pooled(model, lean=False)
    assert 0.05 < (stock[0] > 0).float().mean() < 0.95
    assert_same(pooled(model, lean=True), stock)


def test_weights_that_go_twice_through_the_logarithm_do_so_here_too(bert: SparseEncoder) -> None:
    cast(Any, bert[-1]).activation_function = "log1p_relu"
    assert_same(pooled(bert, lean=True), pooled(bert, lean=False))


def test_each_side_of_a_model_with_two_has_its_own_decoder(bert: SparseEncoder) -> None:
    model = with_frozen_documents(bert)
    with torch.no_grad():
        cast(Any, model[0]).sub_modules["query"][0].auto_model.get_output_embeddings().bias.add_(1)
    weights = {}
    for task in ("query", "document"):
        with torch.no_grad(), without_logits(model):
            weights[task] = model(dict(model.preprocess(TEXTS, task=task)), task=task)["sentence_embedding"]
        with torch.no_grad():
            torch.testing.assert_close(weights[task], model(dict(model.preprocess(TEXTS, task=task)), task=task)["sentence_embedding"])
    assert (weights["query"] > weights["document"]).any()


def test_no_table_of_logits_is_kept_for_the_way_back(bert: SparseEncoder) -> None:
    """What is kept instead goes with the tokens or with the words, not with both."""
    sizes: dict[bool, int] = {}
    for lean in (False, True):
        kept: list[int] = []

        def see(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with saved_tensors_hooks(see, lambda tensor: tensor):
            pooled(bert, lean)
        sizes[lean] = max(kept)
    tokens = bert.preprocess(TEXTS)["attention_mask"].numel()
    words = len(cast(Any, bert.transformers_model).get_output_embeddings().weight)
    assert sizes[False] >= tokens * words
    assert sizes[True] < tokens * words / 4


def test_in_half_precision_weights_and_gradients_are_about_as_near_the_exact_ones_as_those_of_stock(bert: SparseEncoder) -> None:
    exact = pooled(bert, lean=False)
    with torch.autocast("cpu", torch.bfloat16):
        ours, stock = pooled(bert, lean=True), pooled(bert, lean=False)
    assert ours[0].dtype == stock[0].dtype == torch.bfloat16
    words = next(name for name in exact[1] if name.endswith("word_embeddings.weight"))
    for whole, half, of_stock in ((exact[0], ours[0], stock[0]), (exact[1][words], ours[1][words], stock[1][words])):
        assert 0 < (half - whole).norm() < 1.5 * (of_stock - whole).norm()  # which of two equal logits is the largest is chance


class Scaled(nn.Module):
    """A head that does something to the logits after its decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_output_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.model.get_output_embeddings())

    def forward(self, *args: Any, **settings: Any) -> Any:
        output = self.model(*args, **settings)
        return type(output)(logits=output.logits * 2)


def scale_logits(model: SparseEncoder) -> None:
    transformer = cast(Any, model[0])
    transformer.model = Scaled(transformer.model)


def pool_sums(model: SparseEncoder) -> None:
    cast(Any, model[-1]).pooling_strategy = "sum"


@pytest.mark.parametrize("change", [scale_logits, pool_sums])
def test_a_model_that_does_more_than_take_the_largest_is_left_alone(bert: SparseEncoder, change: Callable[[SparseEncoder], None]) -> None:
    change(bert)
    with without_logits(bert):
        assert "forward" not in vars(bert[-1])
    assert_same(pooled(bert, lean=True), pooled(bert, lean=False))


def test_models_of_other_kinds_are_left_alone(encoder_folder: Any) -> None:
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    with without_logits(model):
        assert not any("forward" in vars(module) for module in model.modules())


def test_threads_that_encode_at_once_find_what_one_finds(bert: SparseEncoder) -> None:
    with torch.no_grad():
        wanted = bert(dict(bert.preprocess(TEXTS, task="document")), task="document")["sentence_embedding"]

    def encoded(_: int) -> Tensor:
        with torch.inference_mode(), without_logits(bert):
            found: Tensor = bert(dict(bert.preprocess(TEXTS, task="document")), task="document")["sentence_embedding"]
            return found

    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(encoded, range(200)):
            torch.testing.assert_close(found, wanted)
    assert "forward" not in vars(bert[-1])


@pytest.mark.parametrize("training", [True, False])
def test_afterwards_the_model_is_the_stock_one_again(bert: SparseEncoder, training: bool) -> None:
    bert.train(training)
    modes = [module.training for module in bert.modules()]
    with contextlib.suppress(KeyboardInterrupt), without_logits(bert):
        with without_logits(bert):
            pass
        assert "forward" in vars(bert[-1])  # the inner block leaves the outer one as it was
        raise KeyboardInterrupt
    transformer = cast(Any, bert[0])
    assert not any("forward" in vars(module) for module in itertools.chain(bert.modules(), transformer.auto_model.modules()))
    assert not transformer._forward_hooks
    assert [module.training for module in bert.modules()] == modes
