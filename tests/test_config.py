"""The experiment file: defaults, misspelt keys, wrong values, overrides, relative paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retriever.config import Experiment, experiment_from, read_experiment
from retriever.errors import ConfigError
from retriever.settings.evaluation import RUNS
from retriever.settings.training import LOSSES

SMALLEST: dict[str, Any] = {"name": "small", "collection": {"path": "data"}, "teacher": [{"kind": "lexical"}], "student": {"model": "some/model"}}
FILE = """
name = "small"
[collection]
path = "data"
[[teacher]]
kind = "lexical"
[[teacher]]
kind = "embedding"
model = "student"
[student]
model = "some/model"
"""


def written(folder: Path, text: str = FILE) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(**changes: Any) -> str:
    """What is said about the smallest experiment with these changes."""
    with pytest.raises(ConfigError) as caught:
        experiment_from(SMALLEST | changes, "small.toml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_default_is_filled_in() -> None:
    experiment = experiment_from(SMALLEST)
    assert (experiment.seed, experiment.collection.train, experiment.collection.test) == (1, "train", "test")
    assert (experiment.candidates.sources, experiment.candidates.depth) == (("bm25",), 100)
    assert (experiment.candidates.k1, experiment.candidates.b) == (0.9, 0.4)  # Anserini's
    assert (experiment.training.documents_per_query, experiment.training.epochs) == (8, 2)
    assert experiment.training.losses == {"margin_mse": 1.0, "contrastive": 0.2}
    assert (experiment.student.kind, experiment.index.kind, experiment.ensemble.select) == ("dense", "auto", "auto")
    assert experiment.evaluation.measures == ("nDCG@10", "RR@10", "R@100")


def test_what_was_checked_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        experiment_from(SMALLEST).seed = 2  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["sparse", "late_interaction", "cross_encoder"])
def test_only_single_vectors_are_trained_at_several_sizes(kind: str) -> None:
    changes = {"training": {"matryoshka": [64, 32]}}
    assert f"training.matryoshka: a {kind} student" in problem(**changes, student={"kind": kind, "model": "m"})
    assert experiment_from({**SMALLEST, **changes}).training.matryoshka == (64, 32)


@pytest.mark.parametrize(
    ("kind", "setting", "value"), [(kind, key, value) for kind in ("static", "cross_encoder") for key, value in (("frozen_layers", 3), ("lora", {}))]
)
def test_what_layers_a_student_lacks_is_said_before_anything_is_scored(kind: str, setting: str, value: object) -> None:
    changes = {"training": {setting: value}}
    assert f"training.{setting}: a {kind} student" in problem(**changes, student={"kind": kind, "model": "m"})
    assert experiment_from({**SMALLEST, **changes}).student.kind == "dense"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"candidate": {}}, 'unknown key "candidate", did you mean "candidates"?'),
        ({"collection": {"path": "d", "tset": "dev"}}, 'unknown key "collection.tset", did you mean "test"?'),
        ({"candidates": {"dephts": 3}}, 'unknown key "candidates.dephts", did you mean "depth"?'),
        ({"teacher": [{"kind": "lexical"}, {"knid": "x"}]}, 'unknown key "teacher.1.knid", did you mean "kind"? (1 more)'),
        ({"teacher": [{"kind": "cross_encoder", "model": "m", "train": {"epoch": 1}}]}, 'unknown key "teacher.0.train.epoch", did you mean "epochs"?'),
        ({"student": {"model": "m", "query_promt": ""}}, 'unknown key "student.query_promt", did you mean "query_prompt"?'),
        ({"training": {"learning_rat": 1.0}}, 'unknown key "training.learning_rat", did you mean "learning_rate"?'),
        ({"transfer": [{"path": "d", "tst": "x"}]}, 'unknown key "transfer.0.tst", did you mean "test"?'),
        ({"index": {"knd": "flat"}}, 'unknown key "index.knd", did you mean "kind"?'),
        (
            {"evaluation": {"zzz": 1}},
            'unknown key "evaluation.zzz"; known are measures, depth, remove_own_document, latency_queries, ablation, other_losses, readings, by, zero_shot',
        ),
        ({"ensemble": {"selct": "all"}}, 'unknown key "ensemble.selct", did you mean "select"?'),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(changes: dict[str, Any], named: str) -> None:
    assert problem(**changes) == f"small.toml: {named}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": 3}, "name: must be a text in quotes, found 3"),
        ({"name": "../elsewhere"}, "name: may hold letters, digits and . _ - only, and begins with a letter or a digit, found '../elsewhere'"),
        ({"seed": 1.5}, "seed: must be a whole number, found 1.5"),
        ({"seed": -1}, "seed: must be greater than or equal to 0, found -1"),
        ({"collection": "data"}, "collection: must be a table, found 'data'"),
        ({"collection": {"path": 3}}, "collection.path: must be a path in quotes, found 3"),
        ({"teacher": {"kind": "lexical"}}, "teacher: must be a list of tables: write [[teacher]], found {'kind': 'lexical'}"),
        ({"teacher": []}, "teacher: must be a list of tables: write [[teacher]], found []"),
        ({"candidates": {"sources": "bm25"}}, "candidates.sources: must be a list, found 'bm25'"),
        ({"candidates": {"sources": []}}, "candidates.sources: must hold one at least, found []"),
        ({"candidates": {"depth": "ten"}}, "candidates.depth: must be a whole number, found 'ten'"),
        ({"candidates": {"depth": 0}}, "candidates.depth: must be greater than or equal to 1, found 0"),
        ({"training": {"epochs": True}}, "training.epochs: must be a whole number, found True"),
        ({"training": {"epochs": "3"}}, "training.epochs: must be a whole number, found '3'"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate: must be a finite number, found inf"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: must be a finite number, found nan"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate: must be greater than 0, found 0"),
        *(
            ({"training": {"teacher_scale": wrong}}, f'training.teacher_scale: must be a number greater than 0, or "auto", found {wrong!r}')
            for wrong in ("car", 0, -1.5, True, float("inf"))
        ),
        ({"training": {"documents_per_query": 1}}, "training.documents_per_query: must be greater than or equal to 2, found 1"),
        ({"training": {"validation_fraction": 1.0}}, "training.validation_fraction: must be less than 1, found 1.0"),
        ({"evaluation": {"other_losses": {"convdr": {"vector": 1.0}}}}, 'evaluation.other_losses: unknown loss "vector", did you mean "vector_mse"?'),
        (
            {"evaluation": {"other_losses": {"student": {"gram": 1.0}}}},
            'evaluation.other_losses: "student" cannot be a run\'s name: small letters, digits and _, and none of ' + ", ".join(RUNS),
        ),
        ({"evaluation": {"ablation": 1}}, "evaluation.ablation: must be true or false, found 1"),
        ({"collection": {"path": "d", "missing_documents": "skip"}}, "collection.missing_documents: must be 'error' or 'ignore', found 'skip'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    assert problem(**changes) == f"small.toml: {said}"


def test_a_long_wrong_value_is_cut() -> None:
    assert len(problem(seed="x" * 10_000)) < 150


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"margin_mze": 1.0}, 'unknown loss "margin_mze", did you mean "margin_mse"?'),
        ({"margin_mse": -1.0}, "the weight of margin_mse is -1.0, it must not be negative"),
        ({"margin_mse": 0.0}, f"at least one weight must be above 0; known losses are {', '.join(LOSSES)}"),
    ],
)
def test_losses_are_known_and_one_of_them_weighs_something(losses: dict[str, float], said: str) -> None:
    assert problem(training={"losses": losses}) == f"small.toml: training.losses: {said}"


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r'^small.toml: the key "student" is missing$'):
        experiment_from({key: value for key, value in SMALLEST.items() if key != "student"}, "small.toml")


def test_a_collection_has_one_source_and_two_splits() -> None:
    assert problem(collection={}).endswith("collection: give either path or ir_datasets")
    assert problem(collection={"path": "data", "ir_datasets": "beir/scifact"}).endswith("collection: give either path or ir_datasets")
    assert 'collection: train and test are the same split, "dev"' in problem(collection={"path": "data", "train": "dev", "test": "dev"})


def test_teachers_are_told_apart_by_name() -> None:
    two = [{"kind": "embedding", "model": "a/small"}, {"kind": "embedding", "model": "b/small/"}]
    assert problem(teacher=two) == 'small.toml: teacher: the name "embedding-small" is given twice; set teacher.name'
    experiment = experiment_from(SMALLEST | {"teacher": [two[0], two[1] | {"name": "other"}]})
    assert [teacher.label for teacher in experiment.teacher] == ["embedding-small", "other"]
    assert "is reserved" in problem(teacher=[{"kind": "lexical", "name": "ensemble"}])


def test_what_is_distilled_is_a_teacher_that_is_there() -> None:
    assert problem(ensemble={"select": "lexicl"}) == 'small.toml: ensemble.select: "lexicl" is none of auto, all, lexical'
    assert experiment_from(SMALLEST | {"ensemble": {"select": "lexical"}}).ensemble.select == "lexical"


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some" / "model").mkdir(parents=True)
    monkeypatch.chdir("/")
    experiment = read_experiment(written(tmp_path))
    assert experiment.collection.path == tmp_path / "data"
    assert experiment.student.model == str(tmp_path / "some" / "model")  # a folder beside the file
    assert experiment.teacher[1].model == "student"  # no folder: left as it is
    monkeypatch.setenv("HOME", "/home/someone")
    assert read_experiment(written(tmp_path), ["collection.path=~/data"]).collection.path == Path("/home/someone/data")
    assert read_experiment(written(tmp_path), ["collection.path=/abs/data"]).collection.path == Path("/abs/data")


def overridden(folder: Path, *overrides: str) -> Experiment:
    return read_experiment(written(folder), overrides)


def test_overrides_are_read_as_toml_or_else_as_text(tmp_path: Path) -> None:
    experiment = overridden(
        tmp_path,
        "seed=7",
        "training.learning_rate=1e-4",
        "student.model=other/model",
        'collection.train="dev"',
        "training.losses={kl_divergence=1.0}",
        'evaluation.measures=["AP"]',
        "teacher.1.batch_size=4",
        " candidates . depth =5",
    )
    assert (experiment.seed, experiment.training.learning_rate, experiment.student.model) == (7, 1e-4, "other/model")
    assert (experiment.collection.train, experiment.training.losses, experiment.evaluation.measures) == ("dev", {"kl_divergence": 1.0}, ("AP",))
    assert (experiment.teacher[0].kind, experiment.teacher[1].batch_size, experiment.candidates.depth) == ("lexical", 4, 5)


def test_the_last_of_two_overrides_holds(tmp_path: Path) -> None:
    assert overridden(tmp_path, "seed=2", "seed=3").seed == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epochs", "--set training.epochs: expected KEY=VALUE, for example --set training.epochs=3"),
        ("=3", "--set =3: expected KEY=VALUE, for example --set training.epochs=3"),
        ("training..epochs=3", "--set training..epochs=3: expected KEY=VALUE, for example --set training.epochs=3"),
        ("name.x=3", '--set name.x=3: "name" is a value, not a section'),
        ("teacher.7.kind=x", '--set teacher.7.kind=x: here stands a list, so "7" must be a number from 0 to 1, as in teacher.0.batch_size=8'),
        ("teacher.kind=x", '--set teacher.kind=x: here stands a list, so "kind" must be a number from 0 to 1, as in teacher.0.batch_size=8'),
        ("teacher.-1.kind=x", '--set teacher.-1.kind=x: here stands a list, so "-1" must be a number from 0 to 1, as in teacher.0.batch_size=8'),
    ],
)
def test_an_override_that_cannot_be_placed_is_refused(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden(tmp_path, override)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epoch=3", 'unknown key "training.epoch", did you mean "epochs"?'),
        ("training.epochs=", "training.epochs: must be a whole number, found ''"),
        ("training.epochs=three", "training.epochs: must be a whole number, found 'three'"),
        ("training.epochs=3\nseed=4", r"training.epochs: must be a whole number, found '3\nseed=4'"),
    ],
)
def test_an_overridden_value_meets_the_same_checks(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden(tmp_path, override)
    assert str(caught.value) == f"{tmp_path / 'experiment.toml'}: {said}"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "absent.toml", "cannot be read (No such file or directory)"), (tmp_path, "cannot be read (Is a directory)")):
        with pytest.raises(ConfigError) as caught:
            read_experiment(path)
        assert str(caught.value) == f'{path}: {said}. "retriever init" writes a new experiment file'


@pytest.mark.parametrize("content", [b'name = "small', b"name = 1\nname = 2", b"\xff\xfe", b"name = \n"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "experiment.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_experiment(path)
    assert str(caught.value).startswith(f"{path}: not valid TOML: ")
    assert "\n" not in str(caught.value)


def test_each_kind_of_teacher_has_its_own_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'unknown key "teacher.0.model"; known are kind, name, reads, normalise, temperature, weight'):
        overridden(tmp_path, "teacher.0.model=x")
    with pytest.raises(ConfigError, match=r'teacher.0: unknown kind "crossencoder"; did you mean "cross_encoder"\?'):
        overridden(tmp_path, "teacher.0.kind=crossencoder", "teacher.0.anything=1")
    private = overridden(tmp_path, 'teacher.0={kind="my.module", options={depth=3}}').teacher[0]
    assert (private.kind, private.label, private.options) == ("my.module", "my.module", {"depth": 3})


@pytest.mark.parametrize(("kind", "index"), [("dense", "flat"), ("static", "flat"), ("sparse", "inverted"), ("late_interaction", "multivector")])
def test_a_student_has_an_exact_index_and_goes_into_the_one_that_fits(kind: str, index: str) -> None:
    experiment = experiment_from(SMALLEST | {"student": {"kind": kind, "model": "some"}})
    assert (experiment.exact_index, experiment.index.kind) == (index, "auto")
    assert experiment_from(SMALLEST | {"student": {"kind": kind, "model": "some"}, "index": {"kind": index}}).index.kind == index
    assert experiment_from(SMALLEST | {"student": {"kind": kind, "model": "some"}, "index": {"kind": "my.index"}}).index.kind == "my.index"


def test_an_index_for_other_students_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'index.kind: "seismic" is for students of the kind sparse, not dense. Choose auto, flat, ivf, hnsw$'):
        overridden(tmp_path, "index.kind=seismic")


def test_each_kind_of_index_has_its_own_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'unknown key "index.probes"; known are kind, batch_size, recall, .*, neighbours'):
        overridden(tmp_path, "index.kind=hnsw", "index.probes=4")
    with pytest.raises(ConfigError, match=r'index.memory: "much" is no size; write it like "4GB" or "512MB"'):
        overridden(tmp_path, "index.memory=much")
    with pytest.raises(ConfigError, match='index: pq_bytes is of quantisation = "pq", found "int8"'):
        overridden(tmp_path, "index.kind=ivf", "index.quantisation=int8", "index.pq_bytes=16")
    assert overridden(tmp_path, "index.kind=ivf", "index.probes=4").index.model_dump()["probes"] == 4


def test_a_key_of_another_kind_of_student_is_refused_by_its_name_in_the_file() -> None:
    with pytest.raises(ConfigError, match=r'unknown key "student\.query_dimensions", did you mean "dimensions"'):
        experiment_from(SMALLEST | {"student": {"kind": "static", "model": "some", "query_dimensions": 3}})
    with pytest.raises(ConfigError, match=r"student.layers: .*, found 0"):
        experiment_from(SMALLEST | {"student": {"model": "some", "layers": 0}})
    with pytest.raises(ConfigError, match='student: unknown kind "spars"; did you mean "sparse"'):
        experiment_from(SMALLEST | {"student": {"kind": "spars", "model": "some"}})
