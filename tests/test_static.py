"""The static student: how its table is made from an encoder, what it encodes, and what it saves."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding
from transformers import BertTokenizer

from retriever.errors import ConfigError
from retriever.settings.student import DenseSettings, StaticSettings
from retriever.students import dense
from retriever.students._token_table import FREQUENCY, RIDGE, token_table, used_tokens, vectors_alone, whiten, zipf_weights
from retriever.students.static import StaticStudent, load, load_folder
from retriever.types import Document, Query

QUERIES = [Query("q1", "a bird of prey at night"), Query("q2", "cuts wood")]
DOCUMENTS = [
    Document("d1", "hunts mice at night with soft feathers", title="Owl"),
    Document("d2", "A blade with teeth that cuts wood", title="Saw"),
    Document("d3", "", title="Hammer"),
    Document("d4", "flies in the dark"),
]
OPTIONS: list[dict[str, object]] = [{}, {"dimensions": 8}, {"max_length": 3, "query_prompt": "ask: ", "document_prompt": "read: "}]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Made tables lie here and not in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def student(cache: Path, encoder_folder: Path) -> StaticStudent:
    return load(StaticSettings(model=str(encoder_folder)))


def with_settings(folder: Path, **settings: object) -> StaticStudent:
    return load(StaticSettings.model_validate({"model": str(folder), **settings}))


def table_of(model: SentenceTransformer) -> NDArray[np.float32]:
    weights = model[0].embedding.weight
    assert isinstance(weights, torch.Tensor)
    return np.asarray(weights.detach())


def mean_of_tokens(text: str, table: NDArray[np.float32], tokenizer: BertTokenizer) -> NDArray[np.float32]:
    """The unit vector of a text, token by token."""
    total = np.zeros(table.shape[1])
    for token in tokenizer.tokenize(text):
        total += table[tokenizer.convert_tokens_to_ids(token)]
    return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), dtype=np.float32)


# The table


def test_a_tokens_vector_is_what_the_encoder_makes_of_a_text_with_nothing_else(encoder: SentenceTransformer) -> None:
    words = ["owl", "saw", "night", "cuts", "wood"]
    numbers = np.array(encoder.tokenizer.convert_tokens_to_ids(words))
    np.testing.assert_allclose(vectors_alone(encoder, numbers), encoder.encode(words), atol=1e-6)


def test_the_vectors_that_the_table_is_made_of_are_the_truncated_ones_of_a_truncated_encoder(encoder_folder: Path) -> None:
    encoder = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True, truncate_dim=12)
    assert token_table(encoder).shape[1] == 12


def test_special_and_unused_tokens_have_a_vector_of_zeros(encoder_folder: Path) -> None:
    encoder = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    encoder.tokenizer.add_tokens(["[unused7]"])
    encoder[0].model.resize_token_embeddings(len(encoder.tokenizer))
    table = token_table(encoder)
    silent = encoder.tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused7]"])
    assert table.shape == (len(encoder.tokenizer), 32)
    assert not table[silent].any()
    assert np.linalg.norm(np.delete(table, silent, axis=0), axis=1).min() > 0
    assert len(used_tokens(encoder.tokenizer)) == len(encoder.tokenizer) - 6


def test_whitened_vectors_are_the_principal_components_divided_by_their_deviations() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 6)) @ np.diag([9, 5, 3, 1, 0.5, 0.1]) + 4
    left, singular, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    variances = singular**2 / 50
    expected = left * singular / np.sqrt(variances + RIDGE * variances.mean())
    for dimensions in (6, 3):
        white = whiten(vectors, dimensions)
        own = expected[:, :dimensions] / np.sqrt((expected[:, :dimensions] ** 2).sum() / 50)
        signs = np.sign((white * own).sum(axis=0))  # a principal component is defined up to its sign
        np.testing.assert_allclose(white, own * signs, atol=1e-10)
        assert (white**2).sum(axis=1).mean() == pytest.approx(1)


def test_whitening_bears_directions_without_any_variance() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 4)) @ np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    white = whiten(vectors, 5)
    assert np.isfinite(white).all()
    np.testing.assert_allclose(white[:, 3:], 0, atol=1e-7)


def test_weights_follow_zipfs_law_with_lone_characters_at_the_ends() -> None:
    ranks = {"\u00e9": 6, "the": 2, "a": 1, "##\u00e9": 7, "\u0120of": 3, "##s": 4, "cat": 5}  # e with an accent is a rare character
    total = sum(Fraction(1, rank) for rank in range(1, 8))
    frequencies = [float(Fraction(1, rank) / total) for rank in ranks.values()]
    np.testing.assert_allclose(zipf_weights(list(ranks)), [FREQUENCY / (FREQUENCY + frequency) for frequency in frequencies], rtol=1e-12)


def test_marks_of_a_words_begin_do_not_hide_a_lone_character() -> None:
    assert np.argsort(zipf_weights(["the", "\u0120a", "\u2581b", "\u2581\u4e2d"])).tolist() == [1, 2, 0, 3]


def test_the_table_is_whitened_vectors_times_weights(encoder: SentenceTransformer) -> None:
    numbers = used_tokens(encoder.tokenizer)
    tokens = encoder.tokenizer.convert_ids_to_tokens(numbers.tolist())
    expected = whiten(encoder_vectors := vectors_alone(encoder, numbers), 32) * zipf_weights(tokens)[:, None]
    assert encoder_vectors.shape == (len(numbers), 32)
    np.testing.assert_allclose(token_table(encoder)[numbers], expected, atol=1e-6)


def test_fewer_dimensions_are_the_first_of_all_up_to_a_common_factor(encoder: SentenceTransformer) -> None:
    whole, short = token_table(encoder), token_table(encoder, 8)
    factor = short[200, 0] / whole[200, 0]
    np.testing.assert_allclose(short, whole[:, :8] * factor, atol=1e-5)


# Encoding


def test_a_vector_is_the_mean_of_the_tokens_vectors_without_special_tokens(student: StaticStudent, encoder_folder: Path) -> None:
    tokenizer, table = BertTokenizer.from_pretrained(encoder_folder), table_of(student.model)
    expected = [mean_of_tokens(document.full_text, table, tokenizer) for document in DOCUMENTS]
    np.testing.assert_allclose(student.encode_documents(DOCUMENTS), expected, atol=1e-6)
    np.testing.assert_allclose(student.encode_queries(QUERIES), [mean_of_tokens(query.text, table, tokenizer) for query in QUERIES], atol=1e-6)


def test_scores_are_cosines(student: StaticStudent) -> None:
    queries, documents = student.encode_queries(QUERIES), student.encode_documents(DOCUMENTS[:2])
    assert (student.kind, student.unit, student.dimensions) == ("static", "cosine", 32)
    np.testing.assert_allclose(np.linalg.norm(documents, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(student.score(queries, documents), (queries * documents).sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("texts", [["", "owl", ""], ["", ""], ["\u4e2d"]], ids=["some empty", "all empty", "an unknown character"])
def test_a_text_without_a_known_token_has_a_vector_of_zeros_and_not_nan(student: StaticStudent, texts: list[str]) -> None:
    vectors = student.encode_queries([Query(f"q{number}", text) for number, text in enumerate(texts)])
    assert np.linalg.norm(vectors, axis=1).round(6).tolist() == [float(text == "owl") for text in texts]


def test_an_empty_text_does_not_spoil_the_gradient(encoder_folder: Path) -> None:
    model = load(StaticSettings(model=str(encoder_folder))).model
    vectors = model(model.preprocess(["", "owl", ""]))["sentence_embedding"]
    torch.nn.functional.normalize(vectors).sum().backward()
    gradient = model[0].embedding.weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient.isfinite().all()
    assert gradient.any(dim=1).sum() == 1  # of the one token


def test_a_long_text_is_read_to_its_end_whatever_the_encoder_reads(student: StaticStudent, encoder: SentenceTransformer) -> None:
    texts = [Document("d1", "owl " * 200), Document("d2", "owl " * 200 + "saw")]
    assert encoder.max_seq_length == 64
    assert np.abs(np.subtract(*student.encode_documents(texts))).max() > 1e-4


def test_max_length_reads_so_many_tokens(student: StaticStudent, encoder_folder: Path) -> None:
    cut = with_settings(encoder_folder, max_length=3)
    expected = student.encode_documents([Document("d", "owl hunts mice")])
    np.testing.assert_allclose(cut.encode_documents([Document("d", "owl hunts mice at night")]), expected, atol=1e-6)
    assert cut.identity != student.identity


def test_prompts_go_before_queries_and_documents(student: StaticStudent, encoder_folder: Path) -> None:
    prompted = with_settings(encoder_folder, query_prompt="ask: ", document_prompt="read: ")
    np.testing.assert_allclose(prompted.encode_queries(QUERIES), student.encode_queries([Query("q", f"ask: {query.text}") for query in QUERIES]), atol=1e-6)
    read = [Document("d", f"read: {document.full_text}") for document in DOCUMENTS]
    np.testing.assert_allclose(prompted.encode_documents(DOCUMENTS), student.encode_documents(read), atol=1e-6)


def test_no_texts_give_no_vectors(student: StaticStudent) -> None:
    assert student.encode_documents([]).shape == (0, 32)


# What is saved


@pytest.mark.parametrize("settings", OPTIONS)
def test_a_saved_student_is_a_stock_folder_with_the_same_scores(encoder_folder: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    student = with_settings(encoder_folder, **settings)
    student.save(tmp_path / "static")
    stock = SentenceTransformer(str(tmp_path / "static"), device="cpu", local_files_only=True)
    queries = stock.encode_query([query.text for query in QUERIES])
    documents = stock.encode_document([document.full_text for document in DOCUMENTS])
    ours = student.encode_queries(QUERIES) @ student.encode_documents(DOCUMENTS).T
    np.testing.assert_allclose(ours, stock.similarity(queries, documents), atol=1e-5)


@pytest.mark.parametrize("settings", OPTIONS)
def test_saving_and_loading_keeps_the_identity(encoder_folder: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    student = with_settings(encoder_folder, **settings)
    student.save(tmp_path / "once")
    again = load_folder(tmp_path / "once")
    again.save(tmp_path / "twice")
    assert student.identity == again.identity == load_folder(tmp_path / "twice").identity


def test_a_dense_student_reads_the_folder_too(student: StaticStudent, tmp_path: Path) -> None:
    student.save(tmp_path / "static")
    as_dense = dense.load_folder(tmp_path / "static")
    assert as_dense.identity == student.identity
    np.testing.assert_allclose(as_dense.encode_documents(DOCUMENTS), student.encode_documents(DOCUMENTS), atol=1e-6)


# Where it starts from


def test_a_table_is_made_once(student: StaticStudent, cache: Path, encoder_folder: Path) -> None:
    def written() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in cache.rglob("model.safetensors")}

    before = written()
    assert with_settings(encoder_folder).identity == student.identity
    assert written() == before
    with_settings(encoder_folder, dimensions=5)
    assert len(written()) == len(before) + 1


def test_training_a_student_does_not_change_the_table_that_the_next_one_starts_from(student: StaticStudent, encoder_folder: Path) -> None:
    trained = with_settings(encoder_folder)
    with torch.no_grad():
        trained.model[0].embedding.weight.zero_()  # type: ignore[operator, union-attr]
    assert with_settings(encoder_folder).identity == student.identity


def test_a_table_that_was_half_written_is_made_again(student: StaticStudent, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETRIEVER_CACHE", str(tmp_path))
    with_settings(encoder_folder)
    made = next(path for path in (tmp_path / "static").iterdir() if path.is_dir())
    (made / "model.safetensors").write_bytes(b"half")
    made.rename(made.with_name(f".{made.name}.1.new"))  # as a stop before the last rename leaves it
    assert with_settings(encoder_folder).identity == student.identity


def test_a_stock_static_embedding_is_taken_as_it_is_and_fewer_dimensions_are_its_first(encoder_folder: Path, tmp_path: Path) -> None:
    table = np.random.default_rng(1).normal(size=(len(tokenizer := BertTokenizer.from_pretrained(encoder_folder)), 6)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu").save(str(tmp_path / "stock"), create_model_card=False)
    assert np.array_equal(table_of(load_folder(tmp_path / "stock").model), table)
    cut = with_settings(tmp_path / "stock", dimensions=4)
    assert np.array_equal(table_of(cut.model), table[:, :4])
    assert cut.dimensions == 4


def test_more_dimensions_than_there_are_are_refused(encoder_folder: Path, student: StaticStudent, tmp_path: Path) -> None:
    student.save(tmp_path / "static")
    for folder in (encoder_folder, tmp_path / "static"):
        with pytest.raises(ConfigError, match=r"^student\.dimensions: 33, but the vectors of student\.model have 32\. Give 32 at most, or leave student\.di"):
            with_settings(folder, dimensions=33)


def test_a_static_embedding_with_more_behind_it_is_refused(student: StaticStudent, tmp_path: Path) -> None:
    SentenceTransformer(modules=[student.model[0], Dense(32, 4)], device="cpu").save(str(tmp_path / "deep"), create_model_card=False)
    with pytest.raises(ConfigError, match=r'has a Dense after its static embedding; use kind = "dense", or a start without it'):
        load_folder(tmp_path / "deep")


def test_a_length_for_a_dense_student_without_a_transformer_is_refused(student: StaticStudent, tmp_path: Path) -> None:
    student.save(tmp_path / "static")
    with pytest.raises(ConfigError, match=r'^student\.max_length: the model is a static embedding, whose length is set under kind = "static"'):
        dense.load(DenseSettings(model=str(tmp_path / "static"), max_length=9))
