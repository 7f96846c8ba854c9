"""Cross-encoders: labels as log-odds, heads that were never taught, backends and precisions, each in the identity."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from retriever.bm25 import build_bm25
from retriever.collection import Collection
from retriever.encodings import Encoder, Vectors
from retriever.errors import ConfigError
from retriever.resources import Resources
from retriever.settings.collection import CandidateSettings
from retriever.settings.teacher import CrossEncoderSettings, EmbeddingSettings, LabelSettings
from retriever.teachers.cross_encoder import CrossEncoderTeacher, agreement, label_rule, load, log_odds
from tests.scoring_material import DOCUMENTS, QUERIES, write_tiny_collection

PAIRS = [(query, document) for query in QUERIES.values() for document in DOCUMENTS]


@pytest.fixture
def resources(tmp_path: Path) -> Resources:
    collection: Collection = write_tiny_collection(tmp_path / "collection")

    def encode(settings: EmbeddingSettings) -> tuple[Encoder, Vectors]:
        raise AssertionError("a cross-encoder needs no vectors")

    return Resources(
        collection,
        CandidateSettings(),
        lambda: build_bm25(document.full_text for document in collection.documents()),
        encode,
        train_queries=lambda: collection.queries("train"),
    )


def open_teacher(folder: Path, resources: Resources, **settings: Any) -> CrossEncoderTeacher:
    return load(CrossEncoderSettings.model_validate({"model": str(folder), **settings}), resources)


def surer(source: Path, target: Path) -> Path:
    """The same model with a head 1000 times as sure: those of the fixtures differ by less than a comparison's tolerance."""
    shutil.copytree(source, target)
    model = AutoModelForSequenceClassification.from_pretrained(source)
    model.classifier.weight.data.mul_(1000)
    model.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def folder(cross_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return surer(cross_encoder_folder, tmp_path_factory.mktemp("models") / "surer")


def named_labels(source: Path, target: Path, names: list[str]) -> Path:
    """The same classifier with other names of its labels."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    (target / "config.json").write_text(json.dumps(config))
    return target


def all_logits(folder: Path) -> np.ndarray:
    """By transformers alone, a pair at a time."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        found = [model(**tokenizer(query.text, document.full_text, truncation=True, return_tensors="pt")).logits[0].numpy() for query, document in PAIRS]
    return np.stack(found)


# Labels


def test_log_odds_compare_sums_of_probabilities() -> None:
    logits = np.log(np.array([[1, 2, 5, 2]], dtype=np.float32))
    names = ["none", "little", "much", "unknown"]
    assert log_odds(logits, names, ["little", "much"], ["none"])[0] == pytest.approx(math.log(7))
    assert log_odds(logits, names, ["much"], ["none", "little", "unknown"])[0] == pytest.approx(0, abs=1e-6)


def test_two_labels_are_other_and_relevant() -> None:
    rule = label_rule(["no", "yes"], None, "teacher x")
    assert rule == {"relevant": ["yes"], "other": ["no"]}
    assert log_odds(np.array([[1.5, 4.0]], dtype=np.float32), ["no", "yes"], rule["relevant"], rule["other"]).tolist() == [2.5]


@pytest.mark.parametrize(
    ("names", "labels", "rule"),
    [
        (["x"], None, None),
        (["contradiction", "ENTAILMENT", "neutral"], None, {"relevant": ["ENTAILMENT"], "other": ["contradiction", "neutral"]}),
        (["0", "1", "2"], {"relevant": ["1", "2"]}, {"relevant": ["1", "2"], "other": ["0"]}),
        (["yes", "no"], {"relevant": ["yes"]}, {"relevant": ["yes"], "other": ["no"]}),
        (["0", "1", "2"], {"relevant": ["2"], "other": ["0"]}, {"relevant": ["2"], "other": ["0"]}),
    ],
)
def test_names_and_setting_decide_which_labels_stand_against_which(names: list[str], labels: dict[str, Any] | None, rule: dict[str, list[str]] | None) -> None:
    assert label_rule(names, LabelSettings.model_validate(labels) if labels else None, "teacher x") == rule


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["a", "b", "c"], None, r'teacher x: the model has the labels a, b, c\. Say which mean relevant: labels = \{ relevant = \["c"\] \}'),
        (["a", "b"], {"relevant": ["d"]}, 'the model has no label "d"; it has a, b'),
        (["a", "b"], {"relevant": ["a"], "other": ["a"]}, "relevant and other must be different"),
        (["a", "b"], {"relevant": ["a", "b"]}, "neither empty"),
        (["a"], {"relevant": ["a"]}, "a single logit. Leave labels out"),
    ],
)
def test_labels_that_make_no_log_odds_are_refused(names: list[str], labels: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        label_rule(names, LabelSettings.model_validate(labels) if labels else None, "teacher x")


def test_a_classifier_scores_the_log_odds_of_its_labels(resources: Resources, three_labels_folder: Path, tmp_path: Path) -> None:
    folder = named_labels(surer(three_labels_folder, tmp_path / "sure"), tmp_path / "nli", ["entailment", "neutral", "contradiction"])
    teacher = open_teacher(folder, resources)
    scores, logits = teacher.score(PAIRS).scores, all_logits(folder).astype(np.float64)
    np.testing.assert_allclose(scores, logits[:, 0] - np.log(np.exp(logits[:, 1]) + np.exp(logits[:, 2])), atol=1e-3)
    assert teacher.identity.unit == "log_odds"
    other = open_teacher(folder, resources, labels={"relevant": ["entailment"], "other": ["contradiction"]})
    assert other.identity.settings["labels"]["other"] == ["contradiction"]
    assert other.identity.fingerprint != teacher.identity.fingerprint
    np.testing.assert_allclose(other.score(PAIRS).scores, logits[:, 0] - logits[:, 2], atol=1e-3)


# Heads


def test_an_encoder_without_a_head_is_refused_with_the_way_out(resources: Resources, encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny-encoder is an encoder without a head for ranking \(classifier\.weight is not .*train = \{\}"):
        open_teacher(encoder_folder, resources)


# What the identity changes with


def test_the_plain_identity_is_that_of_earlier_stores(resources: Resources, folder: Path) -> None:
    assert open_teacher(folder, resources).identity.settings == {"max_length": 128, "dtype": "torch.float32"}


def test_half_precision_gives_other_scores_under_another_identity(resources: Resources, folder: Path) -> None:
    exact, half = (open_teacher(folder, resources, precision=precision) for precision in ("fp32", "bf16"))
    np.testing.assert_allclose(half.score(PAIRS).scores, exact.score(PAIRS).scores, atol=0.3)
    assert half.score(PAIRS).scores.tolist() != exact.score(PAIRS).scores.tolist()
    assert half.identity.settings["dtype"] == "torch.bfloat16"
    assert half.identity.fingerprint != exact.identity.fingerprint


def test_the_pairs_of_these_tests_are_told_apart(folder: Path) -> None:
    assert np.ptp(all_logits(folder)) > 0.05


def test_scores_equal_those_of_sentence_transformers(resources: Resources, folder: Path) -> None:
    stock = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    texts = [(query.text, document.full_text) for query, document in PAIRS]
    expected = stock.predict(texts, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    for tokens in (20, 100, 5000):
        np.testing.assert_allclose(open_teacher(folder, resources, batch_tokens=tokens).score(PAIRS).scores, expected, atol=1e-3)


def test_a_model_with_a_prompt_is_read_as_sentence_transformers_reads_it(resources: Resources, folder: Path, tmp_path: Path) -> None:
    prompted = tmp_path / "prompted"
    stock = CrossEncoder(str(folder), device="cpu", local_files_only=True, prompts={"search": "find: "})
    stock.default_prompt_name = "search"
    stock.save_pretrained(str(prompted), create_model_card=False)
    texts = [(query.text, document.full_text) for query, document in PAIRS]
    expected = stock.predict(texts, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    assert np.abs(expected - all_logits(folder)[:, 0]).max() > 1e-2
    np.testing.assert_allclose(open_teacher(prompted, resources).score(PAIRS).scores, expected, atol=1e-3)


# Eight bits


def test_int8_says_what_it_costs_before_scoring(resources: Resources, folder: Path) -> None:
    exact, rounded = open_teacher(folder, resources), open_teacher(folder, resources, int8=True)
    difference = np.abs(exact.score(PAIRS).scores - rounded.score(PAIRS).scores).max()
    assert 0 < difference < 0.5
    assert rounded.identity.settings["int8"] is True
    assert rounded.identity.fingerprint != exact.identity.fingerprint
    assert len(rounded.notes) == 1
    assert rounded.notes[0].startswith("cross_encoder-surer: int8 against fp32 on 4 lists: Kendall tau ")
    assert exact.notes == []


def test_agreement_is_kendalls_tau_within_lists() -> None:
    exact = np.array([1, 2, 3, 4, 1, 2, 5, 5], dtype=np.float32)
    rounded = np.array([1, 2, 4, 3, 1, 2, 5, 6], dtype=np.float32)
    tau, difference = agreement(exact, rounded, [slice(0, 4), slice(4, 6), slice(6, 8)])
    assert tau == pytest.approx((4 / 6 + 1) / 2)  # 5 pairs in order and 1 not; 1 and 0; the third list is all ties
    assert difference == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "openvino", "int8": True}, "int8 = true is for the backends torch and onnx"),
        ({"precision": "bf16", "int8": True}, "int8 = true runs on the processor in fp32"),
        ({"backend": "onnx", "precision": "fp16"}, 'backend "onnx" computes in fp32 here'),
    ],
)
def test_parts_that_do_not_go_together_are_refused(resources: Resources, folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_teacher(folder, resources, **settings)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_exported_teacher_says_the_same_under_another_identity(resources: Resources, folder: Path, backend: str) -> None:
    pytest.importorskip(backend)
    stock, exported = open_teacher(folder, resources), open_teacher(folder, resources, backend=backend)
    np.testing.assert_allclose(exported.score(PAIRS).scores, stock.score(PAIRS).scores, atol=1e-3)
    assert exported.identity.settings["backend"] == backend
    assert len({teacher.identity.fingerprint for teacher in (stock, exported)}) == 2
    folders = list((resources.collection.folder.parent / "exports").glob(f"*/{backend}-*"))
    assert len(folders) == 1
    before = {path: path.stat().st_mtime_ns for path in folders[0].iterdir()}
    again = open_teacher(folder, resources, backend=backend)
    assert dataclasses.asdict(again.identity) == dataclasses.asdict(exported.identity)
    assert {path: path.stat().st_mtime_ns for path in folders[0].iterdir()} == before
