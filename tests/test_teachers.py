"""Each kind of teacher: what its number is, that it is raw, and what its identity changes with."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from retriever.bm25 import BM25, build_bm25
from retriever.collection import Collection
from retriever.encodings import Encoder, Encoding, Vectors, encode_collection
from retriever.errors import ConfigError
from retriever.plugins import load_kind
from retriever.resources import Resources
from retriever.settings.collection import CandidateSettings
from retriever.settings.teacher import TEACHER_KINDS, EmbeddingSettings
from retriever.types import Document, Query, Teacher, Unit
from tests.scoring_material import DOCUMENTS, QUERIES, write_tiny_collection

PAIRS = [(query, document) for query in QUERIES.values() for document in DOCUMENTS]
LONG = (Query("q", "what hunts at night"), Document("d", "the owl sees well in the dark " * 30))


class CountingEncoder:
    """Vectors of letter counts; remembers how many texts it read."""

    identity = "letters"
    dimensions = 3
    unit: Unit = "dot"

    def __init__(self) -> None:
        self.read = 0

    def encode_queries(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        return self._encode([query.text for query in queries])

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        return self._encode([document.full_text for document in documents])

    def score(self, queries: Encoding, documents: Encoding) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = np.einsum("nd,nd->n", queries, documents)
        return scores

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        self.read += len(texts)
        return np.array([[text.count(letter) for letter in "aet"] for text in texts], dtype=np.float32)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return write_tiny_collection(tmp_path / "collection")


@pytest.fixture
def resources(collection: Collection, tmp_path: Path) -> Resources:
    """BM25 with parameters of its own, and the encoder above."""
    candidates = CandidateSettings(k1=1.2, b=0.75)

    def bm25() -> BM25:
        return build_bm25((document.full_text for document in collection.documents()), candidates.k1, candidates.b)

    def encode(settings: EmbeddingSettings) -> tuple[Encoder, Vectors]:
        encoder = CountingEncoder()
        return encoder, encode_collection(encoder, collection, tmp_path / "vectors")

    return Resources(collection, candidates, bm25, encode)


def load(kind: str, resources: Resources, **settings: object) -> Teacher:
    teacher: Teacher = load_kind("teachers", kind, "teacher").load(TEACHER_KINDS[kind].model_validate(settings), resources)
    return teacher


# BM25


def test_the_lexical_teacher_says_what_bm25_says(resources: Resources) -> None:
    scored = load("lexical", resources).score(PAIRS)
    index = resources.bm25()
    expected = [index.scores(query.text)[row] for query in QUERIES.values() for row in range(len(DOCUMENTS))]
    assert scored.scores.tolist() == expected
    assert scored.scores.dtype == np.float32
    assert 0 < (scored.scores > 0).sum() < len(PAIRS)
    assert not scored.truncated.any()


def test_the_lexical_teacher_scores_pairs_in_any_order(resources: Resources) -> None:
    teacher, order = load("lexical", resources), np.random.default_rng(1).permutation(len(PAIRS))
    shuffled = teacher.score([PAIRS[place] for place in order])
    assert shuffled.scores.tolist() == teacher.score(PAIRS).scores[order].tolist()


def test_parameters_and_collection_are_part_of_the_lexical_teachers_identity(resources: Resources, tmp_path: Path) -> None:
    identity = load("lexical", resources).identity
    assert (identity.kind, identity.unit, identity.name) == ("lexical", "bm25", "lexical")
    other_collection = write_tiny_collection(tmp_path / "other", DOCUMENTS[:-1])
    others = [
        Resources(resources.collection, CandidateSettings(k1=1.3, b=0.75), resources.bm25, resources.encode),
        Resources(resources.collection, CandidateSettings(k1=1.2, b=0.5), resources.bm25, resources.encode),
        Resources(resources.collection, CandidateSettings(k1=1.2, b=0.75, language="german"), resources.bm25, resources.encode),
        Resources(other_collection, CandidateSettings(k1=1.2, b=0.75), resources.bm25, resources.encode),
    ]
    assert len({identity.fingerprint, *(load("lexical", other).identity.fingerprint for other in others)}) == 5
    assert load("lexical", resources, name="another name").identity.fingerprint == identity.fingerprint


# Vectors


def test_the_embedding_teacher_says_inner_products(resources: Resources) -> None:
    scored = load("embedding", resources).score(PAIRS)
    encoder = CountingEncoder()
    expected = [float(encoder.encode_queries([query])[0] @ encoder.encode_documents([document])[0]) for query, document in PAIRS]
    assert scored.scores.tolist() == expected
    assert len(set(expected)) > 5


def test_the_embedding_teacher_reads_each_text_once(resources: Resources) -> None:
    encoder, vectors = CountingEncoder(), resources.encode(EmbeddingSettings())[1]
    teacher = load_kind("teachers", "embedding", "teacher").EmbeddingTeacher(EmbeddingSettings(name="mine"), encoder, vectors, resources)
    teacher.score(PAIRS)
    assert encoder.read == 3  # q1 and q3 ask the same; documents come from the stored vectors
    assert (teacher.identity.model, teacher.identity.unit) == ("letters", "dot")


# Cross-encoder


def raw_logits(folder: Path, pairs: Sequence[tuple[Query, Document]]) -> NDArray[np.float32]:
    """By transformers alone, one pair at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return np.array(
            [
                model(**tokenizer(query.text, document.full_text, truncation=True, max_length=128, return_tensors="pt")).logits.item()
                for query, document in pairs
            ],
            dtype=np.float32,
        )


@pytest.fixture(scope="module")
def confident_folder(cross_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny cross-encoder with a head 1000 times as sure, so that a sigmoid would be 0 or 1."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "confident"
    shutil.copytree(cross_encoder_folder, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.mul_(1000)
    model.save_pretrained(folder)
    return folder


def with_activation(folder: Path, target: Path, activation: str) -> Path:
    """The same model whose configuration names an activation, as published cross-encoders' do."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": activation, "version": "4.0.1"}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("activation", ["torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"])
def test_logits_are_raw_whatever_activation_the_model_names(resources: Resources, confident_folder: Path, tmp_path: Path, activation: str) -> None:
    folder = with_activation(confident_folder, tmp_path / "model", activation)
    configured = CrossEncoder(str(folder), local_files_only=True)
    assert f"{type(configured.activation_fn).__module__}.{type(configured.activation_fn).__name__}" == activation
    scored = load("cross_encoder", resources, model=str(folder)).score(PAIRS)
    np.testing.assert_allclose(scored.scores, raw_logits(folder, PAIRS), rtol=1e-3, atol=1e-3)
    assert scored.scores.dtype == np.float32
    assert np.abs(scored.scores).max() > 2  # out of reach of a sigmoid or a tanh
    assert not scored.truncated.any()


def test_tokens_and_cuts_are_counted(resources: Resources, cross_encoder_folder: Path) -> None:
    pairs = [(Query("q", "owl at night"), Document("d", "the owl hunts")), LONG]
    scored = load("cross_encoder", resources, model=str(cross_encoder_folder), max_length=20).score(pairs)
    assert scored.n_tokens.tolist() == [3 + 3 + 3, 20]  # with [CLS] and two [SEP]
    assert scored.truncated.tolist() == [False, True]
    assert scored.n_tokens.dtype == np.int32


@pytest.mark.parametrize(("max_length", "truncated"), [(8, True), (9, False), (10, False)])
def test_a_pair_that_just_fits_is_not_cut(resources: Resources, cross_encoder_folder: Path, max_length: int, truncated: bool) -> None:
    pair = (Query("q", "owl at night"), Document("d", "the owl hunts"))
    scored = load("cross_encoder", resources, model=str(cross_encoder_folder), max_length=max_length).score([pair])
    assert scored.truncated.tolist() == [truncated]
    assert scored.n_tokens.tolist() == [min(9, max_length)]


def test_a_longer_document_is_read_to_the_models_length(resources: Resources, cross_encoder_folder: Path) -> None:
    teacher = load("cross_encoder", resources, model=str(cross_encoder_folder))
    query, document = LONG
    longer = Document("d", f"{document.text} and a hammer drives nails")
    assert teacher.score([LONG]).scores.tolist() == teacher.score([(query, longer)]).scores.tolist()
    np.testing.assert_allclose(teacher.score([LONG]).scores, raw_logits(cross_encoder_folder, [LONG]), rtol=1e-4, atol=1e-5)


def test_batches_change_nothing_beyond_rounding(resources: Resources, cross_encoder_folder: Path) -> None:
    one, many = (load("cross_encoder", resources, model=str(cross_encoder_folder), batch_size=size).score(PAIRS).scores for size in (1, 32))
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-5)


def test_weights_and_length_are_part_of_the_cross_encoders_identity(resources: Resources, cross_encoder_folder: Path, confident_folder: Path) -> None:
    identities = [
        load("cross_encoder", resources, model=str(cross_encoder_folder)).identity,
        load("cross_encoder", resources, model=str(confident_folder)).identity,
        load("cross_encoder", resources, model=str(cross_encoder_folder), max_length=20).identity,
    ]
    assert len({identity.fingerprint for identity in identities}) == 3
    assert {identity.unit for identity in identities} == {"logit"}
    assert identities[0].name == "cross_encoder-tiny-cross-encoder"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "teacher cross_encoder: a cross_encoder needs a model"),
        ({"model": "nobody/has-this-one"}, 'teacher cross_encoder-has-this-one: "nobody/has-this-one" is no folder'),
    ],
)
def test_a_cross_encoder_without_a_model_is_one_clear_line(resources: Resources, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load("cross_encoder", resources, **settings)
    assert str(refusal.value).startswith(message)


def test_a_classifier_whose_labels_say_nothing_is_refused(resources: Resources, three_labels_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"the model has the labels LABEL_0, LABEL_1, LABEL_2\. Say which mean relevant"):
        load("cross_encoder", resources, model=str(three_labels_folder))


def test_a_length_above_the_models_positions_is_refused(resources: Resources, cross_encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match="max_length: 129 tokens, but the model reads 128 at most"):
        load("cross_encoder", resources, model=str(cross_encoder_folder), max_length=129)
