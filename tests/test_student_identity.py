"""The identity of every family of sentence-transformers' models: the same after saving and loading, another after a change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, Transformer
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SparseStaticEmbedding, SpladePooling
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from retriever.students._identity import model_fingerprint


@pytest.fixture(scope="module")
def bert_folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a vocabulary head, and the tiny encoder's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    tokenizer = BertTokenizer.from_pretrained(encoder_folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sparse(folder: Path) -> SparseEncoder:
    return SparseEncoder(modules=[MLMTransformer(str(folder)), SpladePooling()], device="cpu")


def inference_free(folder: Path) -> SparseEncoder:
    transformer = MLMTransformer(str(folder))
    routes = {"query": [SparseStaticEmbedding(transformer.tokenizer)], "document": [transformer, SpladePooling()]}
    return SparseEncoder(modules=[Router(routes, default_route="document")], device="cpu")  # type: ignore[arg-type]


def late_interaction(folder: Path) -> MultiVectorEncoder:
    return MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)


def late_interaction_of_two_routes(folder: Path) -> MultiVectorEncoder:
    routes = {task: list(late_interaction(folder)) for task in ("query", "document")}
    return MultiVectorEncoder(modules=[Router(routes, default_route="document")], device="cpu")  # type: ignore[arg-type]


def cross_encoder(folder: Path) -> CrossEncoder:
    return CrossEncoder(str(folder), num_labels=1, device="cpu", local_files_only=True)


def static(folder: Path) -> SentenceTransformer:
    tokenizer = BertTokenizer.from_pretrained(folder)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


def change_the_pooling(model: Any) -> None:
    model[1] = SpladePooling(pooling_strategy="sum")


def change_a_routes_pooling(model: Any) -> None:
    model[0].sub_modules["document"][1] = SpladePooling(pooling_strategy="sum")


def keep_fewer_entries(model: Any) -> None:
    model.max_active_dims = 5


def change_a_routes_length(model: Any) -> None:
    model[0].sub_modules["document"][0].max_seq_length = 9


def change_the_query_length(model: Any) -> None:
    model[0].query_length = 7


def expand_queries(model: Any) -> None:
    model[0].query_expansion = {"strategy": "fixed", "attend": True, "length": 12}


def change_a_routes_query_length(model: Any) -> None:
    model[0].sub_modules["query"][0].query_length = 7


def expand_a_routes_queries(model: Any) -> None:
    model[0].sub_modules["query"][0].query_expansion = {"strategy": "fixed", "attend": True, "length": 12}


def change_the_similarity(model: Any) -> None:
    model.similarity_fn_name = "meanmaxsim"


def change_the_length(model: Any) -> None:
    model.max_seq_length = 9


def truncate_texts(model: Any) -> None:
    model.tokenizer.enable_truncation(9)


Make = Callable[[Path], Any]
Change = Callable[[Any], None]
FAMILIES: list[tuple[Make, list[Change]]] = [
    (sparse, [change_the_pooling, keep_fewer_entries, change_the_length]),
    (inference_free, [change_a_routes_pooling, change_a_routes_length]),
    (late_interaction, [change_the_query_length, expand_queries, change_the_similarity]),
    (late_interaction_of_two_routes, [change_a_routes_query_length, expand_a_routes_queries]),
    (cross_encoder, [change_the_length]),
    (static, [truncate_texts]),
]


@pytest.mark.parametrize("make", [make for make, _ in FAMILIES], ids=lambda make: make.__name__)
def test_saving_and_loading_keeps_the_identity(make: Make, bert_folder: Path, tmp_path: Path) -> None:
    model = make(bert_folder)
    model.save_pretrained(str(tmp_path), create_model_card=False)
    again = type(model)(str(tmp_path), device="cpu", local_files_only=True)
    assert model_fingerprint(again) == model_fingerprint(model)


@pytest.mark.parametrize(
    ("make", "change"), [(make, change) for make, changes in FAMILIES for change in changes], ids=lambda function: getattr(function, "__name__", "")
)
def test_a_change_of_the_output_changes_the_identity_and_is_kept_by_saving(make: Make, change: Change, bert_folder: Path, tmp_path: Path) -> None:
    model = make(bert_folder)
    before = model_fingerprint(model)
    change(model)
    after = model_fingerprint(model)
    model.save_pretrained(str(tmp_path), create_model_card=False)
    assert before != after == model_fingerprint(type(model)(str(tmp_path), device="cpu", local_files_only=True))


def test_the_settings_of_a_transformer_alone_do_not_count(bert_folder: Path) -> None:
    """They hold names of inputs and outputs, which differ between versions of the library, and change nothing."""
    model = SentenceTransformer(str(bert_folder), device="cpu", local_files_only=True)
    before = model_fingerprint(model)
    assert isinstance(model[0], Transformer)
    model[0].unpad_inputs = False
    assert model_fingerprint(model) == before
