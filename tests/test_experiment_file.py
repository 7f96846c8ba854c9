"""Experiment files written: what is read back is the same, and every key is explained."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.config import EnsembleSettings, Experiment, experiment_from, read_experiment
from retriever.experiment_file import as_toml
from retriever.settings.collection import CandidateSettings, CollectionSettings
from retriever.settings.evaluation import EvaluationSettings
from retriever.settings.index import AutoSettings
from retriever.settings.student import DenseSettings, SparseSettings, StaticSettings
from retriever.settings.teacher import (
    CrossEncoderSettings,
    EmbeddingSettings,
    FusionSettings,
    FusionTeachingSettings,
    LexicalSettings,
    PrivateSettings,
    TeachingSettings,
)
from retriever.settings.training import LOSSES, TrainingSettings

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COUNTS = st.integers(1, 10**9)
POSITIVE = st.floats(1e-9, 1e9)


def sections(section: type, **strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A section with some of its keys given and the others left at their defaults."""
    return st.fixed_dictionaries({}, optional=strategies).map(lambda values: section(**values))


TEACHING = sections(TeachingSettings, epochs=COUNTS, learning_rate=POSITIVE, warmup=st.floats(0, 0.99))
FUSION_TEACHING = sections(FusionTeachingSettings, epochs=COUNTS, image_size=COUNTS, frozen_image=st.booleans(), dropout=st.floats(0, 0.99))
NAMES = TEXTS.filter(lambda name: name not in ("", "ensemble"))
VIEWS = st.sampled_from(["none", "z_score", "standardised", "min_max", "rank", "calibration", "temperature"])
TEACHERS = (
    st.builds(CrossEncoderSettings, name=NAMES, model=st.none() | TEXTS, weight=POSITIVE, train=st.none() | TEACHING)
    | st.builds(EmbeddingSettings, name=NAMES, model=st.none() | TEXTS, batch_size=COUNTS)
    | st.builds(FusionSettings, name=NAMES, image_model=TEXTS.filter(bool), text_model=TEXTS.filter(bool), train=FUSION_TEACHING)
    | st.builds(LexicalSettings, name=NAMES, weight=POSITIVE, normalise=st.none() | VIEWS)
    | st.builds(PrivateSettings, kind=TEXTS.map("package.{}".format), name=NAMES, options=st.dictionaries(TEXTS, COUNTS))
)
TRAINING = sections(
    TrainingSettings,
    documents_per_query=st.integers(2, 100),
    losses=st.dictionaries(st.sampled_from(LOSSES), POSITIVE, min_size=1),
    max_length=st.none() | COUNTS,
    validation_fraction=st.floats(1e-6, 0.999),
    precision=st.sampled_from(["fp32", "bf16"]),
)
EXPERIMENTS = st.builds(
    Experiment,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    seed=st.integers(0, 2**40),
    collection=st.builds(CollectionSettings, ir_datasets=TEXTS, format=st.none() | TEXTS, train=st.just("dev"), missing_documents=st.just("ignore"))
    | st.builds(CollectionSettings, path=TEXTS.map(lambda name: Path("/data") / name.replace("/", ""))),
    candidates=sections(CandidateSettings, sources=st.lists(TEXTS, min_size=1).map(tuple), k1=st.floats(0, 100), b=st.floats(0, 1)),
    teacher=st.lists(TEACHERS, min_size=1, max_size=3, unique_by=lambda teacher: teacher.label).map(tuple),
    student=st.builds(DenseSettings, model=TEXTS, query_prompt=st.none() | TEXTS, max_length=st.none() | COUNTS)
    | st.builds(SparseSettings, model=TEXTS, query_dimensions=COUNTS)
    | st.builds(StaticSettings, model=TEXTS, dimensions=st.none() | COUNTS),
    ensemble=sections(EnsembleSettings, normalise=VIEWS, combine=st.sampled_from(["mean", "reciprocal_rank", "routing"])),
    training=TRAINING,
    index=sections(AutoSettings, batch_size=COUNTS, memory=st.none() | COUNTS.map("{}MB".format)),
    evaluation=sections(EvaluationSettings, measures=st.lists(TEXTS, min_size=1).map(tuple), ablation=st.booleans()),
)


@settings(max_examples=100, deadline=None)
@given(EXPERIMENTS)
def test_a_written_file_is_read_back_as_the_same_experiment(experiment: Experiment) -> None:
    for explain in (False, True):
        assert experiment_from(tomllib.loads(as_toml(experiment, explain))) == experiment


def smallest() -> Experiment:
    return experiment_from({"name": "small", "collection": {"path": "/data"}, "teacher": [{"kind": "lexical"}], "student": {"model": "m"}})


def test_a_file_on_disk_is_read_back_as_the_same_experiment(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(as_toml(smallest()), encoding="utf-8")
    assert read_experiment(path) == smallest()


def test_every_default_is_written_and_keys_without_a_value_are_comments() -> None:
    text = as_toml(smallest())
    assert "depth = 100\n" in text
    assert 'measures = ["nDCG@10", "RR@10", "R@100"]\n' in text
    assert "losses = { margin_mse = 1.0, contrastive = 0.2 }\n" in text
    assert "# ir_datasets =\n" in text
    written = tomllib.loads(text)
    tables_to_be_added = {"generation", "reinforce", "stage", "rewriter", "captioner", "transfer"}
    assert set(written) == set(Experiment.model_fields) - tables_to_be_added
    assert set(written["training"]) == {key for key, field in TrainingSettings.model_fields.items() if field.default is not None}


def test_each_key_that_has_a_description_carries_it() -> None:
    lines = as_toml(smallest(), explain=True).splitlines()
    described = [field.description for field in TrainingSettings.model_fields.values() if field.description]
    assert described
    assert [words for words in described if not any(line.endswith(f"  # {words}") for line in lines)] == []


def test_a_teacher_s_own_training_is_written_in_its_line() -> None:
    teacher = {"kind": "cross_encoder", "model": "m", "train": {"epochs": 3}}
    experiment = experiment_from({"name": "small", "collection": {"path": "/data"}, "teacher": [teacher], "student": {"model": "m"}})
    assert re.search(r"^train = \{ epochs = 3, .* \}$", as_toml(experiment), flags=re.MULTILINE)
