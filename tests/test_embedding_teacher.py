"""Sparse and late-interaction teachers against sentence-transformers' own similarities, and what of their vectors is kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder

from retriever.collection import Collection, write_collection
from retriever.config import read_experiment
from retriever.encodings import encode_collection, score_rows
from retriever.errors import ConfigError, DataError
from retriever.pipeline import Pipeline
from retriever.plugins import load_kind
from retriever.ragged import Ragged
from retriever.ragged_encodings import RaggedEncoder, RaggedVectors, encode_ragged
from retriever.resources import Resources
from retriever.settings.collection import CandidateSettings
from retriever.settings.student import STUDENT_KINDS
from retriever.settings.teacher import EmbeddingSettings
from retriever.steps.encoders import load_encoder
from retriever.students import dense
from retriever.types import Document, Teacher
from tests.scoring_material import DOCUMENTS, QUERIES, write_tiny_collection
from tests.tiny_experiment import write_experiment

PAIRS = [(query, document) for query in QUERIES.values() for document in DOCUMENTS]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retriever.encodings.BLOCK", 3)


@pytest.fixture(scope="module")
def sparse_folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SPLADE of the tiny BERT: its head is random, its bias makes most dimensions 0."""
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = BertForMaskedLM(BertConfig.from_pretrained(encoder_folder)).eval()
        model.cls.predictions.decoder.weight.data.normal_()
        model.cls.predictions.decoder.bias.data.fill_(-12)
    bert = tmp_path_factory.mktemp("models") / "masked"
    model.save_pretrained(bert)
    AutoTokenizer.from_pretrained(encoder_folder).save_pretrained(bert)
    sparse = SparseEncoder(modules=[MLMTransformer(str(bert)), SpladePooling("max")], device="cpu")
    folder = tmp_path_factory.mktemp("models") / "tiny-sparse"
    sparse.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def late_folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ColBERT of the tiny BERT, 16 dimensions a token, punctuation of documents left out."""
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        modules = [
            Transformer(str(encoder_folder), max_seq_length=64),
            Dense(32, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"),
            MultiVectorMask(skiplist_words=[",", "."]),
            Normalize(module_input_name="token_embeddings"),
        ]
        model = MultiVectorEncoder(modules=modules, device="cpu")
    folder = tmp_path_factory.mktemp("models") / "tiny-late"
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return write_tiny_collection(tmp_path / "collection")


@pytest.fixture
def resources(collection: Collection, tmp_path: Path) -> Resources:
    """Vectors go to folders by the encoder's identity."""

    def no_bm25() -> Any:
        raise AssertionError("no words are compared here")

    def ragged(encoder: RaggedEncoder, what: str) -> RaggedVectors:
        assert what
        return encode_ragged(encoder, collection, tmp_path / encoder.identity)

    def encode(settings: EmbeddingSettings) -> Any:
        student = STUDENT_KINDS[settings.family](model=str(settings.model), max_length=settings.max_length)
        encoder = load_kind("students", settings.family, settings.label).load(student, settings.batch_size)
        return encoder, ragged(encoder, settings.label)

    return Resources(collection, CandidateSettings(), no_bm25, encode, ragged)


def load(resources: Resources, **settings: object) -> Teacher:
    teacher: Teacher = load_kind("teachers", "embedding", "teacher").load(EmbeddingSettings.model_validate(settings), resources)
    return teacher


def own_scores(model: Any) -> list[float]:
    """By sentence-transformers alone."""
    plain = {"convert_to_sparse_tensor": False} if isinstance(model, SparseEncoder) else {}  # torch warns of its sparse tensors
    queries = model.encode_query([query.text for query, _ in PAIRS], **plain)
    documents = model.encode_document([document.full_text for _, document in PAIRS], **plain)
    scores: list[float] = model.similarity_pairwise(queries, documents).tolist()
    return scores


# Scores


@pytest.mark.parametrize("family", ["dense", "sparse", "late_interaction"])
def test_an_encoder_in_half_precision_differs_by_the_digits_that_it_lacks(
    encoder_folder: Path, sparse_folder: Path, late_folder: Path, collection: Collection, tmp_path: Path, family: str
) -> None:
    model = str({"dense": encoder_folder, "sparse": sparse_folder, "late_interaction": late_folder}[family])
    whole, half = (load_encoder(EmbeddingSettings(family=family, model=model, precision=precision)) for precision in ("fp32", "bf16"))
    assert len({whole.identity, half.identity, half.document_identity}) == 3 - (half.identity == half.document_identity)
    assert half.unit == whole.unit

    def scores_of(encoder: Any) -> Any:
        encode = encode_ragged if family != "dense" else encode_collection
        encodings = encode(encoder, collection, tmp_path / encoder.identity)
        queries = encoder.encode_queries([query for query, _ in PAIRS])
        rows = collection.rows_of([document.doc_id for _, document in PAIRS])
        return score_rows(encoder, queries, np.arange(len(PAIRS)), encodings, rows)

    exact, near = scores_of(whole), scores_of(half)
    assert near.dtype == np.float32
    assert not np.array_equal(exact, near)
    np.testing.assert_allclose(near, exact, rtol=0.05, atol=0.02 * float(np.abs(exact).max()))


@pytest.mark.parametrize("settings", [{"model": "student"}, {"model": "m", "family": "image_text"}, {"model": "m", "store_vectors": "tokens"}])
def test_half_precision_is_refused_where_it_would_not_be_read(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="eave precision out"):
        EmbeddingSettings.model_validate({**settings, "precision": "bf16"})


def test_a_sparse_teacher_says_inner_products(resources: Resources, sparse_folder: Path) -> None:
    teacher = load(resources, family="sparse", model=str(sparse_folder), batch_size=4)
    scores = teacher.score(PAIRS).scores
    np.testing.assert_allclose(scores, own_scores(SparseEncoder(str(sparse_folder), device="cpu")), rtol=1e-4)
    assert scores.dtype == np.float32
    assert (teacher.identity.unit, teacher.identity.kind) == ("dot", "embedding")
    assert len(np.unique(scores.round(3))) > 10


def test_a_sparse_teacher_of_cosines_says_so(resources: Resources, sparse_folder: Path, tmp_path: Path) -> None:
    model = SparseEncoder(str(sparse_folder), device="cpu", similarity_fn_name="cosine")
    model.save_pretrained(str(tmp_path / "cosine"), create_model_card=False)
    teacher = load(resources, family="sparse", model=str(tmp_path / "cosine"))
    np.testing.assert_allclose(teacher.score(PAIRS).scores, own_scores(model), rtol=1e-4)
    assert teacher.identity.unit == "cosine"


@pytest.mark.parametrize("similarity", ["maxsim", "meanmaxsim"])
def test_a_late_interaction_teacher_says_maxsim(resources: Resources, late_folder: Path, tmp_path: Path, similarity: str) -> None:
    model = MultiVectorEncoder(str(late_folder), device="cpu", similarity_fn_name=similarity)
    model.save_pretrained(str(tmp_path / similarity), create_model_card=False)
    teacher = load(resources, family="late_interaction", model=str(tmp_path / similarity), batch_size=4)
    scores = teacher.score(PAIRS).scores
    np.testing.assert_allclose(scores, own_scores(model), rtol=2e-3, atol=2e-3)  # documents' vectors are kept in float16
    assert scores.dtype == np.float32
    assert teacher.identity.unit == "maxsim"
    assert len(np.unique(scores.round(3))) > 10


@pytest.mark.parametrize("family", ["sparse", "late_interaction"])
def test_the_order_of_the_pairs_changes_nothing(resources: Resources, sparse_folder: Path, late_folder: Path, family: str) -> None:
    teacher = load(resources, family=family, model=str(sparse_folder if family == "sparse" else late_folder))
    order = np.random.default_rng(1).permutation(len(PAIRS))
    np.testing.assert_allclose(teacher.score([PAIRS[place] for place in order]).scores, teacher.score(PAIRS).scores[order], rtol=1e-5)


@pytest.mark.parametrize("family", ["sparse", "late_interaction"])
def test_weights_and_length_are_the_identity(resources: Resources, sparse_folder: Path, late_folder: Path, family: str) -> None:
    folder = str(sparse_folder if family == "sparse" else late_folder)
    identities = [load(resources, family=family, model=folder, **more).identity for more in ({}, {"batch_size": 2}, {"max_length": 8})]
    assert identities[0].fingerprint == identities[1].fingerprint != identities[2].fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "sparse"}, "teacher embedding: family sparse needs a model"),
        ({"family": "late_interaction", "model": "student"}, "teacher embedding-student: family late_interaction needs a model"),
        ({"family": "sparse", "model": "x", "store_vectors": "tokens"}, "a sparse model has no token vectors to store"),
        ({"family": "late_interaction", "model": "nobody/has-this"}, '"nobody/has-this" is no folder'),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(resources: Resources, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(resources, **settings)


# What is kept


def test_documents_are_encoded_once_for_the_whole_collection(resources: Resources, late_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(resources, family="late_interaction", model=str(late_folder))

    def again(*_: object, **__: object) -> None:
        raise AssertionError("a document is encoded again")

    monkeypatch.setattr(MultiVectorEncoder, "encode_document", again)
    assert len(load(resources, family="late_interaction", model=str(late_folder)).score(PAIRS).scores) == len(PAIRS)


def test_pooled_vectors_of_tokens_are_their_normalised_mean(resources: Resources, late_folder: Path, tmp_path: Path) -> None:
    load(resources, family="late_interaction", model=str(late_folder), store_vectors="pooled")
    folders = {json.loads(path.read_text())["encoder"]: path.parent for path in tmp_path.glob("*/encodings.json")}
    assert len(folders) == 2
    stored = [RaggedVectors(folder, len(DOCUMENTS), ("vectors",), "", 0).rows(np.arange(len(DOCUMENTS))) for folder in folders.values()]
    pooled, tokens = sorted(stored, key=lambda one: len(one.columns["vectors"]))
    assert pooled.counts.tolist() == [1] * len(DOCUMENTS)
    model = MultiVectorEncoder(str(late_folder), device="cpu")
    for row, vectors in enumerate(model.encode_document([document.full_text for document in DOCUMENTS], convert_to_numpy=True)):
        mean = vectors.mean(axis=0)
        np.testing.assert_allclose(pooled.columns["vectors"][row], mean / np.linalg.norm(mean), atol=2e-3)
        np.testing.assert_allclose(tokens.columns["vectors"][tokens.offsets[row] : tokens.offsets[row + 1]], vectors, atol=1e-3)
    assert {one.columns["vectors"].dtype for one in stored} == {np.dtype(np.float16)}


def test_a_dense_teacher_keeps_token_vectors_when_asked(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    changes = {'kind = "embedding"': 'kind = "embedding"\nstore_vectors = "tokens"'}
    pipeline = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder, changes)), tmp_path / "work")
    teacher = pipeline.teachers["embedding-student"]
    assert teacher.identity.unit == "cosine"
    folder = next(path.parent for path in pipeline.folder.glob("encodings/*/000000.offsets.npy"))
    stored = RaggedVectors(folder, len(pipeline.collection), ("vectors",), "", 0).rows(np.array([5, 0]))
    documents = pipeline.collection.documents_by_row([5, 0])
    model = SentenceTransformer(str(encoder_folder), device="cpu")
    for place, vectors in enumerate(model.encode_document([document.full_text for document in documents], output_value="token_embeddings")):
        np.testing.assert_allclose(stored.columns["vectors"][stored.offsets[place] : stored.offsets[place + 1]], vectors.numpy(), rtol=2e-3, atol=2e-3)


def test_a_sparse_teacher_scores_an_experiment(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, sparse_folder: Path) -> None:
    changes = {'kind = "embedding"\nmodel = "student"': f'kind = "embedding"\nfamily = "sparse"\nmodel = "{sparse_folder}"'}
    pipeline = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder, changes)), tmp_path / "work")
    run = pipeline.scores["test"]["embedding-tiny-sparse"]
    model = SparseEncoder(str(sparse_folder), device="cpu")
    query_id = next(iter(run))
    doc_id, score = run[query_id][0]
    document = pipeline.collection.documents_by_row(pipeline.collection.rows_of([doc_id]).tolist())[0]
    query = model.encode_query(pipeline.queries("test")[query_id].text, convert_to_sparse_tensor=False)
    vector = model.encode_document(document.full_text, convert_to_sparse_tensor=False)
    assert 0 < int((vector > 0).sum()) < len(vector) / 2
    assert score == pytest.approx(float(query @ vector), rel=1e-4)


@pytest.mark.parametrize("part", ["train", "train/student"])
def test_another_trained_student_is_a_teacher(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, finished_experiment: Path, part: str) -> None:
    folder = finished_experiment / "work" / "tiny" / part
    changes = {'model = "student"': f'model = "{folder}"\nname = "replay"'}
    pipeline = Pipeline(read_experiment(write_experiment(tmp_path, shared_beir_folder, encoder_folder, changes)), tmp_path / "work")
    student = dense.load_folder(finished_experiment / "work" / "tiny" / "train" / "student")
    teacher = pipeline.teachers["replay"]
    assert teacher.identity.model == student.identity != pipeline.start.identity
    query, documents = next(iter(pipeline.queries("test").values())), list(pipeline.collection.documents())
    expected = student.encode_documents(documents) @ student.encode_queries([query])[0]
    np.testing.assert_allclose(teacher.score([(query, document) for document in documents]).scores, expected, rtol=1e-4, atol=1e-5)


# Vectors of any length on disk


class Letters:
    """Entry i of a document is its i-th letter; remembers which documents it was asked for."""

    columns = ("codes", "places")

    def __init__(self, identity: str = "letters") -> None:
        self.identity = identity
        self.asked: list[str] = []

    def encode_documents(self, documents: Sequence[Document]) -> Ragged:
        self.asked += [document.doc_id for document in documents]
        texts = [document.text for document in documents]
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
        codes = np.array([ord(letter) for text in texts for letter in text], dtype=np.float32)
        places = np.array([place for text in texts for place in range(len(text))], dtype=np.int32)
        return Ragged(offsets, {"codes": codes, "places": places})


TEXTS = ["abc", "", "de", "f", "", "", "", "ghij"]


@pytest.fixture
def letters(tmp_path: Path) -> Collection:
    return write_collection(tmp_path / "letters", [Document(f"d{number}", text) for number, text in enumerate(TEXTS)])


def read(vectors: RaggedVectors, rows: Sequence[int]) -> list[str]:
    found = vectors.rows(np.array(rows, dtype=np.int64))
    text = "".join(map(chr, found.columns["codes"].astype(int).tolist()))
    return [text[start:end] for start, end in zip(found.offsets[:-1], found.offsets[1:], strict=True)]


@pytest.mark.parametrize("rows", [[], [0], [7, 0], [1, 4, 6], [3, 3, 2], [*range(8)], [*range(8)][::-1]])
def test_rows_are_those_of_the_documents(letters: Collection, tmp_path: Path, rows: list[int]) -> None:
    told: list[int] = []
    vectors = encode_ragged(Letters(), letters, tmp_path / "vectors", told.append)
    assert read(vectors, rows) == [TEXTS[row] for row in rows]
    assert (len(vectors), told) == (8, [3, 3, 2])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [Path.unlink, cut])
@pytest.mark.parametrize("name", ["codes", "places", "offsets"])
@pytest.mark.parametrize(("block", "again"), [(0, ["d0", "d1", "d2"]), (2, ["d6", "d7"])])
def test_a_damaged_block_is_made_again_and_no_other(
    letters: Collection, tmp_path: Path, damage: Callable[[Path], None], name: str, block: int, again: list[str]
) -> None:
    encode_ragged(Letters(), letters, tmp_path / "vectors")
    damage(tmp_path / "vectors" / f"{block:06d}.{name}.npy")
    encoder = Letters()
    assert read(encode_ragged(encoder, letters, tmp_path / "vectors"), range(8)) == TEXTS
    assert encoder.asked == again


def test_a_stopped_encoding_goes_on_at_its_block(letters: Collection, tmp_path: Path) -> None:
    class Dying(Letters):
        def encode_documents(self, documents: Sequence[Document]) -> Ragged:
            if self.asked:
                raise KeyboardInterrupt
            return super().encode_documents(documents)

    with pytest.raises(KeyboardInterrupt):
        encode_ragged(Dying(), letters, tmp_path / "vectors")
    encoder = Letters()
    assert read(encode_ragged(encoder, letters, tmp_path / "vectors"), range(8)) == TEXTS
    assert encoder.asked == [f"d{number}" for number in range(3, 8)]


def test_another_encoders_folder_and_an_infinite_entry_are_refused(letters: Collection, tmp_path: Path) -> None:
    class Broken(Letters):
        def encode_documents(self, documents: Sequence[Document]) -> Ragged:
            made = super().encode_documents(documents)
            made.columns["codes"][made.columns["codes"] == ord("e")] = np.nan
            return made

    with pytest.raises(DataError, match="document d2: the encoder gave a vector that is not finite"):
        encode_ragged(Broken(), letters, tmp_path / "broken")
    encode_ragged(Letters(), letters, tmp_path / "vectors")
    with pytest.raises(DataError, match="holds the vectors of another encoder"):
        encode_ragged(Letters("others"), letters, tmp_path / "vectors")


def test_queries_of_the_same_text_are_encoded_once(resources: Resources, late_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load(resources, family="late_interaction", model=str(late_folder))
    asked: list[str] = []
    encode = MultiVectorEncoder.encode_query

    def counted(self: MultiVectorEncoder, texts: list[str], **more: Any) -> Any:
        asked.extend(texts)
        return encode(self, texts, **more)

    monkeypatch.setattr(MultiVectorEncoder, "encode_query", counted)
    teacher.score(PAIRS)
    assert asked == list(dict.fromkeys(query.text for query in QUERIES.values()))
    assert len(asked) == 3


def test_no_pairs_have_no_scores(resources: Resources, late_folder: Path) -> None:
    assert load(resources, family="late_interaction", model=str(late_folder)).score([]).scores.shape == (0,)
