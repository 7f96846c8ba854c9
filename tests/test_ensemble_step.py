"""The ensemble step on an experiment: what is fitted, on what, in which unit, and which target is taken."""

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from retriever.config import Combination, experiment_from, read_experiment
from retriever.errors import ConfigError, DataError
from retriever.eval.measures import evaluate
from retriever.pipeline import Pipeline
from retriever.scores.views import z_scores
from retriever.steps.ensemble import Targets, check_target_units, choose_target, fit_notes, keep_pairs
from retriever.teachers.ensemble import mean_of_z_scores
from retriever.types import Unit, ViewName


@pytest.fixture(scope="module")
def work(finished_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished experiment's folder, copied: a step is done again for each of the other settings."""
    return shutil.copytree(finished_experiment, tmp_path_factory.mktemp("ensemble") / "copy")


def pipeline_of(folder: Path, *overrides: str) -> Pipeline:
    return Pipeline(read_experiment(folder / "tiny.toml", overrides), folder / "work")


def fitted(folder: Path) -> bytes:
    return (folder / "work" / "tiny" / "ensemble" / "ensemble.json").read_bytes()


def test_by_default_the_ensemble_is_the_mean_of_z_scores_to_the_last_bit(work: Path) -> None:
    pipeline = pipeline_of(work)
    for split in ("train", "test"):
        runs = pipeline.target.runs(split)
        expected = mean_of_z_scores("ensemble", [runs["lexical"], runs["embedding-student"]], [1, 1])
        assert runs["ensemble"].fingerprint == expected.fingerprint
        assert runs["lexical"] is pipeline.scores[split]["lexical"]  # raw
    assert pipeline.target.units == {name: identity.unit for name, identity in pipeline.identities.items()} | {"ensemble": "z_score"}


def test_each_target_is_measured_as_a_re_ranker_of_the_held_out_candidates(work: Path) -> None:
    pipeline = pipeline_of(work)
    _, held = pipeline.held_out
    qrels = {query_id: pipeline.qrels("train")[query_id] for query_id in held}
    name, quality = pipeline.target.name, pipeline.target.held_out
    for target, run in pipeline.target.runs("train").items():
        reranked = keep_pairs(run.select(held), pipeline.candidates["train"].select(held))
        assert quality[target] == pytest.approx(evaluate(reranked, qrels, ["nDCG@10"]).means["nDCG@10"], abs=1e-12)
    assert name == max(quality, key=lambda target: quality[target])
    assert pipeline.target.reason.startswith(f"it ranks the 6 held-out train queries best: nDCG@10 {quality[name]:.3f}, ")


@pytest.mark.parametrize("combine", get_args(Combination))
@pytest.mark.parametrize("normalise", ["z_score", "calibration"])
def test_every_combination_goes_the_whole_way_and_is_read_back(work: Path, combine: Combination, normalise: ViewName) -> None:
    overrides = [f"ensemble.combine={combine}", f"ensemble.normalise={normalise}", "ensemble.select=all"]
    pipeline = pipeline_of(work, *overrides)
    run = pipeline.target.run("test")
    units = {"softmax_mean": "log_probability", "reciprocal_rank": "reciprocal_rank"}
    assert pipeline.target.scores("test").unit == units.get(combine, "log_odds" if normalise == "calibration" else "z_score")
    again = pipeline_of(work, *overrides)
    assert again.target.run("test").fingerprint == run.fingerprint
    assert not again.target._fitted[0].done_now
    assert Targets.read(work / "work" / "tiny" / "ensemble") == again.target._fitted[1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["ensemble.combine=weighted_mean", "ensemble.normalise=calibration"],
        ["ensemble.combine=mean", "ensemble.normalise=standardised"],
        ["ensemble.combine=softmax_mean"],
        ["ensemble.combine=routing"],
        ["ensemble.combine=reciprocal_rank", "ensemble.normalise=temperature"],
    ],
)
def test_test_scores_influence_no_fit(work: Path, overrides: list[str]) -> None:
    first = pipeline_of(work, *overrides)
    quality, before = first.target.held_out, fitted(work)
    shutil.rmtree(work / "work" / "tiny" / "ensemble")
    second = pipeline_of(work, *overrides)
    noise = np.random.default_rng(1)
    second.__dict__["scores"] = {
        "train": first.scores["train"],
        "test": {name: run.with_scores(name, noise.normal(100, 50, run.n_pairs)) for name, run in first.scores["test"].items()},
    }
    assert second.target.held_out == quality
    assert fitted(work) == before
    assert second.target.run("test").fingerprint != first.target.run("test").fingerprint


def test_another_choice_of_the_target_repeats_no_fit(work: Path) -> None:
    first, second = pipeline_of(work), pipeline_of(work, "ensemble.select=lexical")
    _ = first.target.name
    assert second.target.name == "lexical"
    assert second.target.reason == 'ensemble.select = "lexical" asks for it'
    assert not second.target._fitted[0].done_now


def test_a_teachers_own_view_holds_when_it_is_distilled_alone(work: Path) -> None:
    pipeline = pipeline_of(work, "teacher.0.normalise=z_score", "ensemble.select=lexical")
    raw, scores = pipeline.scores["test"]["lexical"], pipeline.target.scores("test")
    assert scores.unit == "z_score"
    assert scores.run.scores.tolist() == z_scores(raw.scores, raw.offsets).tolist()
    other = pipeline_of(work, "ensemble.select=lexical").target.scores("test")
    assert other.unit == "bm25"
    assert other.teacher != scores.teacher
    assert other.teacher == pipeline.identities["lexical"].fingerprint


def test_a_damaged_fit_is_made_again(work: Path) -> None:
    expected = pipeline_of(work).target.run("train").fingerprint
    path = work / "work" / "tiny" / "ensemble" / "ensemble.json"
    path.write_text('{"alone": 7}', encoding="utf-8")
    with pytest.raises(DataError, match="not a fitted ensemble"):
        Targets.read(path.parent)
    assert pipeline_of(work).target.run("train").fingerprint == expected


# Units


def test_units_that_do_not_mix_are_refused_before_anything_is_scored(finished_experiment: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(read_experiment(finished_experiment / "tiny.toml", ["ensemble.normalise=none"]), tmp_path)
    with pytest.raises(ConfigError, match='mean cannot add up scores of different units: "lexical" in "bm25", "embedding-student" in'):
        _ = pipeline.target.name
    assert not (tmp_path / "tiny" / "score" / "manifest.json").exists()


def test_a_single_teacher_may_be_asked_for_where_the_ensembles_units_do_not_mix(work: Path) -> None:
    pipeline = pipeline_of(work, "ensemble.normalise=none", "ensemble.select=lexical")
    assert set(pipeline.target.runs("train")) == set(pipeline.target.units) == {"lexical", "embedding-student"}


def test_a_loss_that_cannot_learn_from_any_target_is_refused_before_anything_is_scored(finished_experiment: Path, tmp_path: Path) -> None:
    overrides = ["ensemble.normalise=rank", "ensemble.select=all", "training.losses={margin_mse=1.0}"]
    pipeline = Pipeline(read_experiment(finished_experiment / "tiny.toml", overrides), tmp_path)
    with pytest.raises(ConfigError, match='target "ensemble": scores are in unit "rank", but loss margin_mse needs'):
        _ = pipeline.trained
    assert not (tmp_path / "tiny" / "score" / "manifest.json").exists()


def test_a_target_that_may_be_chosen_is_not_refused_before_it_is() -> None:
    values = {"name": "n", "collection": {"path": "/data"}, "student": {"model": "m"}}
    experiment = experiment_from({**values, "teacher": [{"kind": "lexical", "name": "a"}, {"kind": "lexical", "name": "b"}]})
    units: dict[str, Unit] = {"a": "rank", "b": "logit", "ensemble": "z_score"}
    check_target_units(experiment, experiment.training, units)
    check_target_units(experiment, experiment.training, units, "b")
    with pytest.raises(ConfigError, match='target "a": scores are in unit "rank", but loss margin_mse needs'):
        check_target_units(experiment, experiment.training, units, "a")
    check_target_units(experiment, experiment.training.model_copy(update={"losses": {"contrastive": 1.0}}), units, "a")


# The file's keys


def problem(**sections: object) -> str:
    """What is wrong with an experiment of two teachers."""
    values = {"name": "n", "collection": {"path": "/data"}, "student": {"model": "m"}}
    two = [{"kind": "lexical", "name": "a"}, {"kind": "lexical", "name": "b"}]
    with pytest.raises(ConfigError) as caught:
        experiment_from({**values, "teacher": two, **sections})
    return str(caught.value).removeprefix("experiment: ")


def test_keys_that_nothing_reads_or_that_contradict_are_refused() -> None:
    hot = [{"kind": "lexical", "name": "a", "temperature": 2.0}, {"kind": "lexical", "name": "b"}]
    assert problem(teacher=hot).startswith('teacher a: nothing reads its temperature; set normalise = "temperature"')
    assert problem(teacher=hot[:1]).startswith("teacher a: nothing reads its temperature")
    twice = {"combine": "softmax_mean", "normalise": "temperature"}
    assert problem(ensemble=twice) == 'teacher a: softmax_mean divides by the temperature already; set normalise = "none"'
    some = [{"kind": "lexical", "name": "a", "weight": 2.0}, {"kind": "lexical", "name": "b"}]
    assert "give all teachers one, or none, and they are fitted" in problem(teacher=some, ensemble={"combine": "weighted_mean"})
    assert "ensemble.combine" in problem(ensemble={"combine": "median"})


# What is said


def test_the_choice_and_its_reason() -> None:
    quality = {"a": 0.4, "b": 0.6, "ensemble": 0.5}
    assert choose_target("auto", quality, "nDCG@10", 9) == ("b", "it ranks the 9 held-out train queries best: nDCG@10 0.600, ensemble 0.500")
    assert choose_target("all", quality, "nDCG@10", 9) == ("ensemble", 'ensemble.select = "all" asks for it')
    assert choose_target("a", quality, "nDCG@10", 9) == ("a", 'ensemble.select = "a" asks for it')
    assert choose_target("all", {"a": 0.4}, "nDCG@10", 9) == ("a", "it is the only teacher")


def test_what_was_fitted_is_said_with_what_it_was_worth() -> None:
    assert fit_notes({}, ["a", "b"]) == ""
    weights = {"weights": [0.7, 0.3], "fitted_out_of_fold": 0.61, "equal_weights": 0.6, "used": True}
    assert fit_notes(weights, ["a", "b"]) == "Fitted weights reach 0.610 on queries they were not fitted on, equal ones 0.600: a 0.70, b 0.30."
    routing = {"routed_out_of_fold": 0.5, "mean": 0.5, "used": False}
    assert fit_notes(routing, ["a", "b"]).endswith("the mean 0.500, not clearly above it, so every query takes the mean.")


def test_the_result_of_training_says_which_target_why_and_in_which_unit(finished_experiment: Path) -> None:
    result = json.loads((finished_experiment / "work" / "tiny" / "train" / "manifest.json").read_text(encoding="utf-8"))["result"]
    assert result["target"] in {"lexical", "embedding-student", "ensemble"}
    assert result["reason"].startswith("it ranks the 6 held-out train queries best: nDCG@10 ")
    assert result["unit"] in {"bm25", "cosine", "dot", "z_score"}
