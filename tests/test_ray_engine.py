import copy
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retriever.collection import Collection, open_collection
from retriever.config import ScoringSettings, read_experiment
from retriever.encodings import encode_block, encode_collection
from retriever.errors import ConfigError, DataError, MissingExtraError, RetrieverError, StoreError
from retriever.generation.generators import open_generator
from retriever.generation.samples import plan_samples
from retriever.generation.step import generate
from retriever.pipeline import Pipeline
from retriever.plugins import load_kind
from retriever.ragged_encodings import encode_ragged
from retriever.scores.maintenance import verify_store
from retriever.scores.scoring import scored_shard
from retriever.scores.store import ScoreStore
from retriever.settings.collection import CollectionSettings
from retriever.settings.generation import GenerationSettings
from retriever.settings.student import STUDENT_KINDS
from retriever.workers.ray_engine import connect, ray_engine
from retriever.writing.shards import write_samples, write_shard
from tests.llm_material import save_tiny_model
from tests.ray_material import BrokenTeacher, Fall, FallingTeacher, falling, killed
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
    with ray_engine(settings, load, scored_shard, f'teacher "{load().identity.name}"') as engine:
        store.score(load(), run_of(ALL_PAIRS), QUERIES, engine=engine)
    return store


@pytest.mark.ray
@pytest.mark.parametrize("slow", [False, True])
def test_ray_writes_the_bytes_of_the_local_engine_and_the_driver_scores_nothing(
    ray: Any, tmp_path: Path, collection: Collection, local: dict[str, bytes], slow: bool
) -> None:
    store = score_by_ray(tmp_path / "ray", collection, partial(FallingTeacher, Fall(driver=os.getpid(), slow=slow)))
    assert shard_bytes(store.folder) == local
    assert store.read(FallingTeacher().identity, run_of(ALL_PAIRS), QUERIES).run.to_dict() == expected_run(ALL_PAIRS)


@pytest.mark.ray
def test_a_worker_that_is_killed_in_the_middle_is_started_again_and_its_shard_scored_again(
    ray: Any, tmp_path: Path, collection: Collection, local: dict[str, bytes]
) -> None:
    (tmp_path / "kills").mkdir()
    store = score_by_ray(tmp_path / "ray", collection, partial(FallingTeacher, Fall("d5", tmp_path / "kills", times=2)))
    assert len(killed(tmp_path / "kills")) == 2
    assert shard_bytes(store.folder) == local
    assert verify_store(store.folder) == []


@pytest.mark.ray
def test_a_shard_that_kills_every_worker_ends_in_one_line_and_the_shards_before_it_are_kept(
    ray: Any, tmp_path: Path, collection: Collection, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retriever.workers.ray_engine.RESTARTS", 1)
    (tmp_path / "kills").mkdir()
    with pytest.raises(RetrieverError, match=r'teacher "falling": a Ray worker died and was not brought back by 1 restarts'):
        score_by_ray(tmp_path / "ray", collection, partial(FallingTeacher, Fall("d7", tmp_path / "kills", times=100)), ScoringSettings(workers=1))
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
    refused = pytest.raises(RetrieverError, match=r'^teacher "logging": a Ray worker has another one \([0-9a-f]{16}, here [0-9a-f]{16}\)')
    with ray_engine(SETTINGS, partial(LoggingTeacher, prompt="other"), scored_shard, 'teacher "logging"') as engine, refused:
        store.score(LoggingTeacher(), run_of(ALL_PAIRS), QUERIES, engine=engine)


@pytest.mark.ray
def test_a_gpu_that_is_not_here_is_one_line(ray: Any) -> None:
    with pytest.raises(ConfigError, match=r"2 workers with 64 GPUs each need 128"):
        connect(ScoringSettings(engine="ray", gpus_per_worker=64))


# Documents


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, shared_beir_folder: Path) -> Collection:
    """Sixty of them."""
    return open_collection(CollectionSettings(path=shared_beir_folder), tmp_path_factory.mktemp("documents") / "collection")


def loads_student(kind: str, folder: Path, **settings: Any) -> Callable[[], Any]:
    """What loads a student in any process."""
    load = load_kind("students", kind, "student.kind").load
    return partial(load, STUDENT_KINDS[kind].model_validate({"model": str(folder), **settings}), 8)


def files_in(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of the arrays and tables below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".npy", ".parquet")}


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["dense", "late_interaction"])
def test_ray_encodes_what_is_missing_to_the_bytes_of_this_process_and_a_killed_worker_changes_nothing(
    ray: Any, tmp_path: Path, documents: Collection, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("retriever.encodings.BLOCK", 16)
    load, encode = loads_student(kind, encoder_folder), encode_collection if kind == "dense" else encode_ragged
    told: dict[str, list[int]] = {"local": [], "ray": []}
    encode(load(), documents, tmp_path / "local", told["local"].append)
    local = files_in(tmp_path / "local")
    shutil.copytree(tmp_path / "local", tmp_path / "ray", ignore=lambda _, names: [name for name in names if name.endswith(".npy") and name[5] != "1"])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "ray").glob("*.npy")}
    (tmp_path / "kills").mkdir()
    dying = partial(falling, load, "encode_documents", Fall(documents.ids_of([40])[0], tmp_path / "kills"))
    with ray_engine(SETTINGS, dying, encode_block, 'encoder "tiny"') as engine:
        encode(falling(load, "encode_documents", Fall(driver=os.getpid())), documents, tmp_path / "ray", told["ray"].append, engine)
    assert files_in(tmp_path / "ray") == local
    assert told["ray"] == told["local"] == [16, 16, 16, 12]
    assert len(killed(tmp_path / "kills")) == 1
    assert len(kept) == (1 if kind == "dense" else 2)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.ray
def test_a_worker_with_another_encoder_or_none_is_told_in_one_line_and_nothing_is_written(
    ray: Any, tmp_path: Path, documents: Collection, encoder_folder: Path
) -> None:
    encoder = loads_student("dense", encoder_folder)()
    mistakes = {
        loads_student("dense", encoder_folder, max_length=7): r'^encoder "tiny": a Ray worker has another one',
        loads_student("dense", tmp_path / "nowhere"): r"^student\.model: .*nowhere",
    }
    for load, message in mistakes.items():
        with ray_engine(ScoringSettings(workers=1), load, encode_block, 'encoder "tiny"') as engine, pytest.raises(RetrieverError, match=message):
            encode_collection(encoder, documents, tmp_path / "vectors", engine=engine)
    assert files_in(tmp_path / "vectors") == {}


def test_an_error_that_another_process_raised_says_what_it_said_there() -> None:
    error = MissingExtraError("onnx", "export")
    assert str(copy.copy(error)) == str(error)  # by way of what a pickle holds


# Generated queries


@pytest.mark.ray
def test_ray_writes_the_queries_of_this_process_and_a_killed_worker_changes_nothing(
    ray: Any, tmp_path: Path, documents: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retriever.generation.samples.SHARD_DOCUMENTS", 16)
    model = save_tiny_model(tmp_path / "tiny-llm")
    settings = GenerationSettings.model_validate({"method": "llm", "model": str(model), "per_document": 2, "answer_tokens": 6})
    load, plan = partial(open_generator, settings, 1), plan_samples(documents, 60, 2, 2.0, 1)
    told: dict[str, list[object]] = {"local": [], "ray": []}
    answers = write_samples(plan, load(), tmp_path / "local", told["local"].append, told["local"].append)
    (tmp_path / "kills").mkdir()
    dying = partial(falling, load, "write", Fall(documents.ids_of(plan.rows[20:21])[0], tmp_path / "kills"))
    with ray_engine(SETTINGS, dying, write_shard, "generation") as engine:
        asked = falling(load, "write", Fall(driver=os.getpid()))
        assert write_samples(plan, asked, tmp_path / "ray", told["ray"].append, told["ray"].append, engine) == answers
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "local")
    assert len(files_in(tmp_path / "ray")) == 4
    assert told["ray"] == told["local"]
    assert len(killed(tmp_path / "kills")) == 1


# Experiments


def pipelines(tmp_path: Path, path: Path, table: str) -> tuple[Pipeline, Pipeline]:
    """An experiment with a section [generation], here and by Ray."""
    path.write_text(f"{path.read_text(encoding='utf-8')}\n[generation]\n{table}", encoding="utf-8")
    by_ray = ["scoring.engine=ray", "scoring.workers=1"]
    return Pipeline(read_experiment(path), tmp_path / "here"), Pipeline(read_experiment(path, by_ray), tmp_path / "there")


@pytest.mark.ray
def test_an_experiment_by_ray_has_the_files_of_one_here(
    ray: Any, tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, cross_encoder_folder: Path
) -> None:
    teachers = f'kind = "cross_encoder"\nmodel = "{cross_encoder_folder}"\ncascade = 0.5\n\n[[teacher]]\nkind = "lexical"'
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, {'kind = "lexical"': teachers})
    here, there = pipelines(tmp_path, path, 'method = "first_sentence"\nqueries = 20\nround_trip = ["student"]\nteacher = "lexical"')
    assert there.scores["test"].keys() == here.scores["test"].keys() == {"cross_encoder-tiny-cross-encoder", "lexical", "embedding-student"}
    for made in ("generated", "generate", "encodings", "score"):
        assert files_in(there.folder / made) == files_in(here.folder / made) != {}


@pytest.mark.ray
def test_a_language_model_writes_an_experiments_queries_by_ray(ray: Any, tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    model = save_tiny_model(tmp_path / "tiny-llm")
    for pipeline in pipelines(tmp_path, path, f'method = "llm"\nmodel = "{model}"\nqueries = 20\nper_document = 1\nanswer_tokens = 6'):
        with pytest.raises(DataError, match="queries of 0 documents were kept"):  # what it writes is worth nothing
            generate(pipeline)
    assert files_in(tmp_path / "there" / "tiny" / "generated") == files_in(tmp_path / "here" / "tiny" / "generated") != {}


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
