"""The cross-encoder student: its logits, the head it starts with, and what it saves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from retriever.errors import ConfigError
from retriever.settings.student import CrossEncoderStudentSettings
from retriever.students.cross_encoder import CrossEncoderStudent, load, load_folder
from retriever.types import Document, Query

PAIRS = [
    (Query("q1", "a bird of prey at night"), Document("d1", "hunts mice at night with soft feathers", title="Owl")),
    (Query("q1", "a bird of prey at night"), Document("d2", "A blade with teeth that cuts wood", title="Saw")),
    (Query("q2", "cuts wood"), Document("d3", "", title="Hammer")),
    (Query("q2", "cuts wood"), Document("d4", "flies in the dark " * 60)),
]
TEXTS = [(query.text, document.full_text) for query, document in PAIRS]


@pytest.fixture(scope="module")
def student(cross_encoder_folder: Path) -> CrossEncoderStudent:
    return load_folder(cross_encoder_folder)


def with_settings(folder: Path, **settings: object) -> CrossEncoderStudent:
    return load(CrossEncoderStudentSettings.model_validate({"model": str(folder), **settings}))


# Scores


def test_scores_are_the_raw_logits_of_transformers_pair_by_pair(student: CrossEncoderStudent, cross_encoder_folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder_folder)
    with torch.inference_mode():
        logits = [float(model(**tokenizer(*pair, truncation=True, max_length=128, return_tensors="pt")).logits) for pair in TEXTS]
    np.testing.assert_allclose(student.score_pairs(PAIRS), logits, atol=1e-5)
    assert student.score_pairs(PAIRS).dtype == np.float32
    assert student.unit == "logit"


def test_the_batch_size_and_the_order_change_nothing(student: CrossEncoderStudent, cross_encoder_folder: Path) -> None:
    one_by_one = load_folder(cross_encoder_folder, batch_size=1)
    np.testing.assert_allclose(one_by_one.score_pairs(PAIRS[::-1])[::-1], student.score_pairs(PAIRS), atol=1e-5)


def test_no_pairs_have_no_scores(student: CrossEncoderStudent) -> None:
    assert student.score_pairs([]).shape == (0,)


def test_max_length_cuts_the_longer_text(student: CrossEncoderStudent, cross_encoder_folder: Path) -> None:
    long, short = [(Query("q", "cuts wood"), Document("d", "saw " * repeats)) for repeats in (50, 4)]
    cut = with_settings(cross_encoder_folder, max_length=9)  # [CLS] cuts wood [SEP] saw saw saw saw [SEP]
    np.testing.assert_allclose(cut.score_pairs([long]), student.score_pairs([short]), atol=1e-6)


# Where it starts from


def test_an_encoder_gets_a_new_head_that_is_always_the_same_and_leaves_the_random_numbers_alone(encoder_folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = with_settings(encoder_folder)
    assert torch.equal(torch.rand(3), expected)
    assert first.identity == with_settings(encoder_folder).identity
    assert first.model.num_labels == 1
    assert np.ptp(first.score_pairs(PAIRS)) > 0


def test_fewer_layers_can_be_kept(encoder_folder: Path) -> None:
    small = with_settings(encoder_folder, layers=1)
    assert small.model.config is not None
    assert small.model.config.num_hidden_layers == 1
    assert small.identity != with_settings(encoder_folder).identity


@pytest.mark.parametrize("settings", [{}, {"max_length": 9}, {"layers": 1}])
def test_a_saved_student_is_a_stock_folder_with_the_same_scores_and_identity(encoder_folder: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    student = with_settings(encoder_folder, **settings)
    student.save(tmp_path / "saved")
    stock = CrossEncoder(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(stock.predict(TEXTS), student.score_pairs(PAIRS), atol=1e-5)
    assert load_folder(tmp_path / "saved").identity == student.identity


def test_a_sigmoid_saved_with_a_model_does_not_squash_the_scores(cross_encoder_folder: Path, tmp_path: Path, student: CrossEncoderStudent) -> None:
    squashed = CrossEncoder(str(cross_encoder_folder), device="cpu", local_files_only=True, activation_fn=torch.nn.Sigmoid())
    squashed.save_pretrained(str(tmp_path), create_model_card=False)
    assert json.loads((tmp_path / "config_sentence_transformers.json").read_text())["activation_fn"].endswith("Sigmoid")
    np.testing.assert_allclose(load_folder(tmp_path).score_pairs(PAIRS), student.score_pairs(PAIRS), atol=1e-6)


# What is refused


def test_an_encoders_folder_is_no_trained_student(encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match="is an encoder without a head for ranking, so its scores would be random"):
        load_folder(encoder_folder)


def test_several_labels_are_refused(three_labels_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^student\.model: .*three-labels has another number of labels than 1\. Start from an encoder"):
        with_settings(three_labels_folder)


def test_a_length_above_the_models_positions_is_refused(cross_encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.max_length: 129 tokens, but the model reads 128 at most"):
        with_settings(cross_encoder_folder, max_length=129)


def test_more_layers_than_the_model_has_are_refused(cross_encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.layers: 3 layers are asked for, but the model has 2"):
        with_settings(cross_encoder_folder, layers=3)


@pytest.mark.parametrize("prompt", ["query_prompt", "document_prompt"])
def test_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=f"a cross_encoder reads pairs and takes no {prompt}; put the words into the texts, or leave {prompt} out"):
        CrossEncoderStudentSettings.model_validate({"model": "m", prompt: "find: "})
