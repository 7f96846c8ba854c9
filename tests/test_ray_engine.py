import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retriever.collection import Collection
from retriever.config import ScoringSettings, read_experiment
from retriever.errors import ConfigError, MissingExtraError, RetrieverError, StoreError
from retriever.pipeline import Pipeline
from retriever.ray_engine import connect, ray_engine
from retriever.store import ScoreStore
from retriever.store_maintenance import verify_store
from tests.ray_material import BrokenTeacher, FallingTeacher, killed
from tests.scoring_material import ALL_PAIRS, QUERIES, LoggingTeacher, expected_run, run_of, shard_bytes, write_tiny_collection
from tests.tiny_experiment import ROOT, command, write_experiment

SETTINGS = ScoringSettings(engine="ray", workers=2)


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """A real Ray on this machine with two CPUs."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # its workers import the tests' teachers
        module = connect(SETTINGS)
        yield module
        module.shutdown()


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return write_tiny_collection(tmp_path_factory.mktemp("collection") / "tiny")


@pytest.fixture
def local(tmp_path: Path, collection: Collection) -> dict[str, bytes]:
    """The shards that the local engine writes."""
    store = ScoreStore.open(tmp_path / "local", collection)
    store.score(FallingTeacher(), run_of(ALL_PAIRS), QUERIES)
    return shard_bytes(store.folder)


def score_by_ray(folder: Path, collection: Collection, load: Any, settings: ScoringSettings = SETTINGS) -> ScoreStore:
    store = ScoreStore.open(folder, collection)
    with ray_engine(settings, load) as engine:
        store.score(load(), run_of(ALL_PAIRS), QUERIES, engine=engine)
    return store


@pytest.mark.ray
@pytest.mark.parametrize("slow", [False, True])
def test_ray_writes_the_bytes_of_the_local_engine_and_the_driver_scores_nothing(
    ray: Any, tmp_path: Path, collection: Collection, local: dict[str, bytes], slow: bool
) -> None:
    store = score_by_ray(tmp_path / "ray", collection, partial(FallingTeacher, driver=os.getpid(), slow=slow))
    assert shard_bytes(store.folder) == local
    assert store.read(FallingTeacher().identity, run_of(ALL_PAIRS), QUERIES).run.to_dict() == expected_run(ALL_PAIRS)


@pytest.mark.ray
def test_a_worker_that_is_killed_in_the_middle_is_started_again_and_its_shard_scored_again(
    ray: Any, tmp_path: Path, collection: Collection, local: dict[str, bytes]
) -> None:
    (tmp_path / "kills").mkdir()
    store = score_by_ray(tmp_path / "ray", collection, partial(FallingTeacher, doc_id="d5", kills=tmp_path / "kills", times=2))
    assert len(killed(tmp_path / "kills")) == 2
    assert shard_bytes(store.folder) == local
    assert verify_store(store.folder) == []


@pytest.mark.ray
def test_a_shard_that_kills_every_worker_ends_in_one_line_and_the_shards_before_it_are_kept(
    ray: Any, tmp_path: Path, collection: Collection, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retriever.ray_engine.RESTARTS", 1)
    (tmp_path / "kills").mkdir()
    with pytest.raises(RetrieverError, match=r'teacher "falling": a Ray worker died and was not brought back by 1 restarts'):
        score_by_ray(tmp_path / "ray", collection, partial(FallingTeacher, doc_id="d7", kills=tmp_path / "kills", times=100), ScoringSettings(workers=1))
    kept = shard_bytes(tmp_path / "ray")
    assert kept.items() < local.items()
    store = score_by_ray(tmp_path / "ray", collection, FallingTeacher)
    assert shard_bytes(store.folder) == local


@pytest.mark.ray
def test_a_mistake_that_a_worker_meets_is_the_same_line_as_here(ray: Any, tmp_path: Path, collection: Collection) -> None:
    with pytest.raises(StoreError, match=r'^teacher "logging": query q1, document d1: the score nan is not a finite number'):
        score_by_ray(tmp_path / "ray", collection, BrokenTeacher)
    assert shard_bytes(tmp_path / "ray") == {}


@pytest.mark.ray
def test_a_worker_with_another_teacher_is_refused(ray: Any, tmp_path: Path, collection: Collection) -> None:
    store = ScoreStore.open(tmp_path / "ray", collection)
    with ray_engine(SETTINGS, partial(LoggingTeacher, prompt="other")) as engine, pytest.raises(StoreError, match="a Ray worker has another one"):
        store.score(LoggingTeacher(), run_of(ALL_PAIRS), QUERIES, engine=engine)


@pytest.mark.ray
def test_a_gpu_that_is_not_here_is_one_line(ray: Any) -> None:
    with pytest.raises(ConfigError, match=r"2 workers with 64 GPUs each need 128"):
        connect(ScoringSettings(engine="ray", gpus_per_worker=64))


@pytest.mark.ray
def test_an_experiment_scored_by_ray_has_the_store_of_one_scored_here(
    ray: Any, tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, cross_encoder_folder: Path
) -> None:
    teachers = f'kind = "cross_encoder"\nmodel = "{cross_encoder_folder}"\ncascade = 0.5\n\n[[teacher]]\nkind = "lexical"'
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "lexical"': teachers})
    here, there = (Pipeline(read_experiment(path, overrides), tmp_path / name) for overrides, name in (([], "here"), (["scoring.engine=ray"], "there")))
    assert there.scores["test"].keys() == here.scores["test"].keys() == {"cross_encoder-tiny-cross-encoder", "lexical", "embedding-student"}
    assert shard_bytes(there.folder / "score") == shard_bytes(here.folder / "score")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "retriever-distill\[ray\]"'):
        connect(SETTINGS)


# Parts without Ray


def test_parts_of_an_experiment_merge_into_the_scores_of_one_run(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    whole = Pipeline(read_experiment(path), tmp_path / "whole").scores
    stores = [command("score", path, "--work", tmp_path / "work", "--shard", f"{number}/3").out.strip() for number in (1, 2, 3)]
    assert stores == [str(tmp_path / "work" / "tiny" / f"score-{number}-of-3") for number in (1, 2, 3)]
    assert command("store", "merge", *stores, tmp_path / "work" / "tiny").status == 0
    merged = Pipeline(read_experiment(path), tmp_path / "work")
    for name, teacher in merged.teachers.items():
        for split in ("train", "test"):
            assert merged.store.plan(teacher.identity, merged.pairs(split), merged.queries(split)).pending == 0
            assert merged.scores[split][name].to_dict() == {
                query_id: pytest.approx(scores, abs=1e-5) for query_id, scores in whole[split][name].to_dict().items()
            }


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b"])
def test_a_part_that_does_not_exist_is_one_line(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, shard: str) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    assert command("score", path, "--shard", shard).error == f"--shard {shard}: expected the number of a part and the count of parts, for example 1/4 to 4/4"
