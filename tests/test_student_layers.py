"""Students with fewer layers: which of them stay, and that what is left computes, saves and loads as a model of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from retriever.errors import ConfigError
from retriever.students._layers import keep_layers, spread

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40}
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


def distilbert() -> PreTrainedModel:
    return DistilBertModel(DistilBertConfig(vocab_size=50, dim=16, n_layers=5, n_heads=2, hidden_dim=24))


def modernbert() -> PreTrainedModel:
    """Every third layer looks at all tokens, the others at their neighbours."""
    return ModernBertModel(ModernBertConfig(**SIZES, pad_token_id=0, local_attention=2, attn_implementation="eager"))


MAKE: dict[str, Any] = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "bert with a vocabulary head": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "bert with a class head": lambda: BertForSequenceClassification(BertConfig(**SIZES, num_labels=1)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES)),
    "electra": lambda: ElectraModel(ElectraConfig(**SIZES, embedding_size=16)),
    "distilbert": distilbert,
    "modernbert": modernbert,
}


def output(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        first: Tensor = model.eval()(input_ids=IDS)[0]
    return first


def weight_sums(model: PreTrainedModel) -> set[float]:
    """Tells which of several random layers a model holds."""
    return {round(float(tensor.double().sum()), 9) for name, tensor in model.state_dict().items() if "layer" in name and tensor.ndim == 2}


@pytest.mark.parametrize(
    ("total", "count", "kept"), [(6, 3, [0, 2, 5]), (12, 4, [0, 4, 7, 11]), (5, 2, [0, 4]), (5, 1, [4]), (4, 4, [0, 1, 2, 3]), (1, 1, [0])]
)
def test_the_kept_layers_are_spread_evenly_and_the_last_is_among_them(total: int, count: int, kept: list[int]) -> None:
    assert spread(total, count) == kept


@pytest.mark.parametrize("kind", MAKE)
def test_a_cut_model_saves_and_loads_as_one_of_its_own_with_the_same_output(kind: str, tmp_path: Path) -> None:
    model = MAKE[kind]()
    before, whole = weight_sums(model), output(model)
    keep_layers(model, 3, "student.layers")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.num_hidden_layers == 3
    assert weight_sums(again) == weight_sums(model) < before
    torch.testing.assert_close(output(again), output(model), atol=1e-6, rtol=0)
    assert not torch.equal(output(model), whole)


def test_the_cut_model_is_the_first_the_middle_and_the_last_layer_one_after_the_other() -> None:
    model = BertModel(BertConfig(**SIZES)).eval()
    hidden = model.embeddings(input_ids=IDS)
    for number in (0, 2, 4):
        hidden = model.encoder.layer[number](hidden)
    keep_layers(model, 3, "student.layers")
    torch.testing.assert_close(output(model), hidden, atol=1e-6, rtol=0)


def test_a_layer_that_looks_at_its_neighbours_only_still_does() -> None:
    model = modernbert()
    assert model.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    keep_layers(model, 3, "student.layers")
    assert model.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]  # layers 0, 2 and 4


def test_as_many_layers_as_there_are_change_nothing() -> None:
    model = BertModel(BertConfig(**SIZES))
    whole = output(model)
    keep_layers(model, 5, "student.layers")
    assert torch.equal(output(model), whole)


# What is refused


def test_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^student\.layers: 6 layers are asked for, but the model has 5\. Give at most 5, or leave student\.layers out$"):
        keep_layers(BertModel(BertConfig(**SIZES)), 6, "student.layers")


def test_a_model_that_shares_one_layer_is_refused() -> None:
    albert = AlbertModel(AlbertConfig(**SIZES, embedding_size=16))
    with pytest.raises(ConfigError, match=r"student\.layers: AlbertModel does not hold its 5 layers in one list"):
        keep_layers(albert, 3, "student.layers")


def test_a_model_without_a_transformer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.layers: the model has no transformer"):
        keep_layers(None, 3, "student.layers")


def test_one_layer_of_a_model_whose_first_is_unlike_the_others_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"student\.layers: the first layer of ModernBertModel is unlike the others, and must stay\. Give 2 at least, and 5 at most"
    ):
        keep_layers(modernbert(), 1, "student.layers")
