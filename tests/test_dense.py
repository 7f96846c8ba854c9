"""The dense student: what it encodes, what it saves, and what its identity changes with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from retriever.errors import ConfigError
from retriever.settings.student import DenseSettings
from retriever.students._identity import model_fingerprint
from retriever.students.dense import DenseStudent, load, load_folder
from retriever.types import Document, Query

QUERIES = [Query("q1", "a bird of prey at night"), Query("q2", "cuts wood")]
DOCUMENTS = [
    Document("d1", "hunts mice at night with soft feathers", title="Owl"),
    Document("d2", "A blade with teeth that cuts wood", title="Saw"),
    Document("d3", "", title="Hammer"),
    Document("d4", "flies in the dark"),
]

OPTIONS: list[dict[str, object]] = [{}, {"max_length": 9, "query_prompt": "ask: ", "document_prompt": "read: "}, {"layers": 1, "dimensions": 12}]


@pytest.fixture(scope="module")
def student(encoder_folder: Path) -> DenseStudent:
    return load_folder(encoder_folder)


@pytest.fixture(scope="module")
def dot_folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoder without normalisation, compared by dot product."""
    stock = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    model = SentenceTransformer(modules=[stock[0], stock[1]], device="cpu", similarity_fn_name="dot")
    folder = tmp_path_factory.mktemp("models") / "tiny-dot"
    model.save(str(folder), create_model_card=False)
    return folder


def with_settings(folder: Path, **settings: object) -> DenseStudent:
    return load(DenseSettings.model_validate({"model": str(folder), **settings}))


# Encoding


def test_vectors_are_those_of_stock_sentence_transformers(student: DenseStudent, encoder_folder: Path) -> None:
    stock = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    texts = ["Owl hunts mice at night with soft feathers", "Saw A blade with teeth that cuts wood", "Hammer", "flies in the dark"]
    np.testing.assert_allclose(student.encode_documents(DOCUMENTS), stock.encode(texts), atol=1e-6)
    np.testing.assert_allclose(student.encode_queries(QUERIES), stock.encode([query.text for query in QUERIES]), atol=1e-6)


def test_a_cosine_students_vectors_have_length_1_and_a_dot_students_have_not(student: DenseStudent, dot_folder: Path) -> None:
    np.testing.assert_allclose(np.linalg.norm(student.encode_documents(DOCUMENTS), axis=1), 1, atol=1e-6)
    assert (np.linalg.norm(load_folder(dot_folder).encode_documents(DOCUMENTS), axis=1) > 1.5).all()


def test_a_cosine_student_without_a_normalising_module_still_gives_unit_vectors(encoder_folder: Path) -> None:
    stock = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    student = DenseStudent(SentenceTransformer(modules=[stock[0], stock[1]], device="cpu"))
    np.testing.assert_allclose(np.linalg.norm(student.encode_queries(QUERIES), axis=1), 1, atol=1e-6)


def test_prompts_go_before_queries_and_documents(student: DenseStudent, encoder_folder: Path) -> None:
    prompted = with_settings(encoder_folder, query_prompt="ask: ", document_prompt="read: ")
    asked, read = [Query("q", f"ask: {query.text}") for query in QUERIES], [Document("d", f"read: {document.full_text}") for document in DOCUMENTS]
    np.testing.assert_allclose(prompted.encode_queries(QUERIES), student.encode_queries(asked), atol=1e-6)
    np.testing.assert_allclose(prompted.encode_documents(DOCUMENTS), student.encode_documents(read), atol=1e-6)


def test_max_length_cuts_texts(student: DenseStudent, encoder_folder: Path) -> None:
    long, short = [Document("d", "owl " * 50)], [Document("d", "owl " * 5)]
    cut = with_settings(encoder_folder, max_length=7)  # with [CLS] and [SEP]
    np.testing.assert_allclose(cut.encode_documents(long), student.encode_documents(short), atol=1e-6)
    assert np.abs(student.encode_documents(long) - student.encode_documents(short)).max() > 1e-3


def test_the_batch_size_changes_nothing(student: DenseStudent, encoder_folder: Path) -> None:
    np.testing.assert_allclose(load_folder(encoder_folder, batch_size=1).encode_documents(DOCUMENTS), student.encode_documents(DOCUMENTS), atol=1e-5)


def test_no_texts_give_no_vectors(student: DenseStudent) -> None:
    assert student.encode_queries([]).shape == (0, 32)


def test_scores_are_inner_products_pair_by_pair(student: DenseStudent) -> None:
    queries = np.array([[1, 2], [0, 1], [3, -1]], dtype=np.float32)
    documents = np.array([[5, 6], [7, 8], [1, 2]], dtype=np.float32)
    assert student.score(queries, documents).tolist() == [17, 8, 1]
    assert student.dimensions == 32


# Fewer layers and dimensions


def test_a_student_of_fewer_layers_is_what_stock_sentence_transformers_makes_of_those_layers(encoder_folder: Path) -> None:
    stock = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    del stock[0].model.encoder.layer[0]  # of two
    student = with_settings(encoder_folder, layers=1)
    np.testing.assert_allclose(student.encode_documents(DOCUMENTS), stock.encode([document.full_text for document in DOCUMENTS]), atol=1e-6)


@pytest.mark.parametrize("cosine", [True, False])
def test_a_student_of_fewer_dimensions_gives_the_first_of_them(encoder_folder: Path, dot_folder: Path, cosine: bool) -> None:
    folder = encoder_folder if cosine else dot_folder
    whole = load_folder(folder).encode_documents(DOCUMENTS)[:, :12]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True) if cosine else whole
    student = with_settings(folder, dimensions=12)
    assert student.dimensions == 12
    np.testing.assert_allclose(student.encode_documents(DOCUMENTS), expected, atol=1e-6)


def test_all_dimensions_are_the_same_as_none_asked_for(student: DenseStudent, encoder_folder: Path) -> None:
    assert with_settings(encoder_folder, dimensions=32).identity == student.identity


def test_a_truncated_student_can_be_given_more_dimensions_again(student: DenseStudent, encoder_folder: Path, tmp_path: Path) -> None:
    with_settings(encoder_folder, dimensions=4).save(tmp_path / "truncated")
    assert load_folder(tmp_path / "truncated").dimensions == 4
    assert with_settings(tmp_path / "truncated", dimensions=32).identity == student.identity


# What is saved


@pytest.mark.parametrize("settings", OPTIONS)
def test_a_saved_student_is_a_stock_folder_with_the_same_scores_and_ranking(
    encoder_folder: Path, dot_folder: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    for folder in (encoder_folder, dot_folder):
        student = with_settings(folder, **settings)
        student.save(tmp_path / folder.name)
        stock = SentenceTransformer(str(tmp_path / folder.name), device="cpu", local_files_only=True)
        queries = stock.encode_query([query.text for query in QUERIES])
        documents = stock.encode_document([document.full_text for document in DOCUMENTS])
        ours = student.encode_queries(QUERIES) @ student.encode_documents(DOCUMENTS).T
        np.testing.assert_allclose(ours, stock.similarity(queries, documents), atol=1e-5)
        assert np.argsort(-stock.similarity(queries, documents).numpy(), axis=1).tolist() == np.argsort(-ours, axis=1).tolist()


@pytest.mark.parametrize("settings", OPTIONS)
def test_saving_and_loading_keeps_the_identity(encoder_folder: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    student = with_settings(encoder_folder, **settings)
    student.save(tmp_path / "once")
    again = load_folder(tmp_path / "once")
    again.save(tmp_path / "twice")
    assert student.identity == again.identity == load_folder(tmp_path / "twice").identity


def test_encoding_keeps_the_identity(encoder_folder: Path) -> None:
    student = load_folder(encoder_folder)
    student.encode_queries(QUERIES)
    student.encode_documents(DOCUMENTS)
    assert model_fingerprint(student.model) == student.identity


# What changes the identity


def change_a_weight(model: SentenceTransformer) -> None:
    with torch.no_grad():
        next(model.parameters())[3, 4] += 1e-6


def change_the_pooling(model: SentenceTransformer) -> None:
    model[1] = Pooling(32, pooling_mode="cls")


def drop_the_normalisation(model: SentenceTransformer) -> None:
    del model[2]


def change_the_precision(model: SentenceTransformer) -> None:
    model.bfloat16()


def change_the_length(model: SentenceTransformer) -> None:
    model.max_seq_length = 63


def change_the_query_prompt(model: SentenceTransformer) -> None:
    model.prompts = {**model.prompts, "query": "ask: "}


def change_the_similarity(model: SentenceTransformer) -> None:
    model.similarity_fn_name = "dot"


def truncate(model: SentenceTransformer) -> None:
    model.truncate_dim = 31


def add_a_word(model: SentenceTransformer) -> None:
    model.tokenizer.add_tokens(["platypus"])


CHANGES: list[Callable[[SentenceTransformer], None]] = [
    change_a_weight,
    change_the_pooling,
    drop_the_normalisation,
    change_the_precision,
    change_the_length,
    change_the_query_prompt,
    change_the_similarity,
    truncate,
    add_a_word,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(getattr(change, "__name__", change)))
def test_whatever_changes_the_vectors_changes_the_identity(encoder_folder: Path, change: Callable[[SentenceTransformer], None]) -> None:
    student = load_folder(encoder_folder)
    change(student.model)
    assert model_fingerprint(student.model) != student.identity


@pytest.mark.parametrize("settings", [{"max_length": 63}, {"query_prompt": "ask: "}, {"document_prompt": "read: "}, {"layers": 1}, {"dimensions": 31}])
def test_settings_that_change_the_vectors_change_the_identity(student: DenseStudent, encoder_folder: Path, settings: dict[str, object]) -> None:
    assert with_settings(encoder_folder, **settings).identity != student.identity


def test_a_scalar_weight_can_be_fingerprinted(encoder_folder: Path) -> None:
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    model[1].register_parameter("scale", torch.nn.Parameter(torch.tensor(2.0)))
    before = model_fingerprint(model)
    with torch.no_grad():
        model[1].scale.mul_(2)
    assert model_fingerprint(model) != before


# What is refused


def test_another_similarity_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True, similarity_fn_name="euclidean")
    model.save(str(tmp_path / "euclidean"), create_model_card=False)
    with pytest.raises(ConfigError, match='compares by "euclidean"; a dense student compares by cosine or dot'):
        load_folder(tmp_path / "euclidean")


def test_a_length_above_the_models_positions_is_refused(encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.max_length: 129 tokens, but the model reads 128 at most"):
        with_settings(encoder_folder, max_length=129)


def test_more_layers_or_dimensions_than_the_model_has_are_refused(encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^student\.layers: 3 layers are asked for, but the model has 2\. Give at most 2, or leave student\.layers out$"):
        with_settings(encoder_folder, layers=3)
    with pytest.raises(ConfigError, match=r"^student\.dimensions: 33, but the model's vectors have 32\. Give 32 at most, or leave student\.dimensions out$"):
        with_settings(encoder_folder, dimensions=33)


def test_a_plain_transformer_becomes_a_student_with_mean_pooling(encoder_folder: Path, tmp_path: Path) -> None:
    stock = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    assert isinstance(stock[0], Transformer)
    stock[0].auto_model.save_pretrained(tmp_path / "bert")
    stock.tokenizer.save_pretrained(tmp_path / "bert")
    student = load_folder(tmp_path / "bert")
    np.testing.assert_allclose(student.encode_queries(QUERIES), stock.encode([query.text for query in QUERIES]), atol=1e-6)


# A projection


@pytest.mark.parametrize("cosine", [True, False])
def test_a_wider_projection_keeps_every_inner_product_at_first(encoder_folder: Path, dot_folder: Path, cosine: bool) -> None:
    folder = encoder_folder if cosine else dot_folder
    plain, wide = load_folder(folder), with_settings(folder, projection=48)
    assert (wide.dimensions, wide.unit) == (48, plain.unit)
    expected = plain.encode_queries(QUERIES) @ plain.encode_documents(DOCUMENTS).T
    np.testing.assert_allclose(wide.encode_queries(QUERIES) @ wide.encode_documents(DOCUMENTS).T, expected, rtol=1e-4, atol=1e-5)


def test_a_projection_is_saved_in_the_stock_folder(encoder_folder: Path, tmp_path: Path) -> None:
    student = with_settings(encoder_folder, projection=8, query_prompt="ask: ")
    student.save(tmp_path / "student")
    stock = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    np.testing.assert_allclose(stock.encode_query([query.text for query in QUERIES]), student.encode_queries(QUERIES), atol=1e-5)
    assert load_folder(tmp_path / "student").identity == student.identity == with_settings(encoder_folder, projection=8, query_prompt="ask: ").identity
