"""Students in another runtime: what they encode is what torch makes of it, and torch computes none of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from retriever.errors import ConfigError
from retriever.models.exported import Runtime
from retriever.models.routes import transformers_of
from retriever.models.runtime import compute_in
from retriever.plugins import load_kind
from retriever.ragged import Ragged
from retriever.types import Document, Query
from tests import image_text_material
from tests.serving_material import running
from tests.test_index import built

QUERIES = [Query(str(number), "an owl " * number + "hunts a mouse at night") for number in range(1, 6)]
DOCUMENTS = [Document("a", "large eyes and soft feathers", "Owl"), Document("b", "dams " * 30), Document("c", "")]


@pytest.fixture(params=["onnx", "openvino"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    pytest.importorskip(request.param)
    name: Runtime = request.param
    return name


def student_of(kind: str, folder: Path, **settings: Any) -> Any:
    module = load_kind("students", kind, "student.kind")
    own = {"dense": "DenseSettings", "sparse": "SparseSettings", "late_interaction": "LateInteractionSettings", "static": "StaticSettings"}[kind]
    return module.load(getattr(module, own).model_validate({"model": str(folder), **settings}))


def numbers(encoding: Any) -> list[NDArray[Any]]:
    return list(encoding.columns.values()) if isinstance(encoding, Ragged) else [encoding]


def encoded(student: Any) -> list[NDArray[Any]]:
    return [*numbers(student.encode_queries(QUERIES)), *numbers(student.encode_documents(DOCUMENTS))]


def forget(transformer: Any) -> None:
    """Takes from torch what it would need."""
    for weight in transformer.parameters():
        weight.data.fill_(torch.nan)


@pytest.mark.parametrize("kind", ["dense", "sparse", "late_interaction"])
def test_a_student_encodes_as_before_without_torchs_weights(kind: str, encoder_folder: Path, tmp_path: Path, runtime: Runtime) -> None:
    student = student_of(kind, encoder_folder)
    before = encoded(student)
    assert compute_in(runtime, student, "student", tmp_path) == 1
    for transformer in transformers_of(student.model):
        forget(transformer.base_model if kind != "sparse" else transformer)
    for one, other in zip(before, encoded(student), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_queries_and_documents_that_go_different_ways_each_have_an_export(encoder_folder: Path, tmp_path: Path, runtime: Runtime) -> None:
    student = student_of("dense", encoder_folder, frozen_documents=True)
    transformers_of(student.model)[0].encoder.layer[0].output.dense.weight.data.mul_(3)
    before = encoded(student)
    assert compute_in(runtime, student, "student", tmp_path) == 2
    assert len([path for path in tmp_path.glob("exports/*") if path.is_dir()]) == 2
    for one, other in zip(before, encoded(student), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_the_tower_of_texts_is_exported_and_that_of_images_stays(tmp_path: Path, encoder_folder: Path, runtime: Runtime) -> None:
    student = image_text_material.student_of(image_text_material.save_vit(tmp_path / "vit"), encoder_folder)
    before = student.encode_queries(QUERIES)
    assert compute_in(runtime, student, "student", tmp_path) == 1
    np.testing.assert_allclose(student.encode_queries(QUERIES), before, atol=1e-5)


def test_a_static_student_has_nothing_to_export(encoder_folder: Path, tmp_path: Path) -> None:
    assert compute_in("onnx", student_of("static", encoder_folder), "student", tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_made_once_and_one_of_other_weights_is_refused(encoder_folder: Path, tmp_path: Path, runtime: Runtime) -> None:
    compute_in(runtime, student_of("dense", encoder_folder), "student", tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.*")}
    compute_in(runtime, student_of("dense", encoder_folder), "student", tmp_path)
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.*")}
    other = student_of("dense", encoder_folder)
    transformers_of(other.model)[0].encoder.layer[0].output.dense.weight.data.mul_(3)
    with pytest.raises(ConfigError, match=r"^student: the exported model says something else than torch: outputs differ by .*Leave --backend out"):
        compute_in(runtime, other, "student", tmp_path)


@pytest.mark.parametrize("kind", ["dense", "late_interaction"])
def test_a_server_with_a_backend_finds_what_one_with_torch_finds(kind: str, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("RETRIEVER_CACHE", str(tmp_path / "cache"))
    folder = built(tmp_path / "notes", kind, encoder_folder, DOCUMENTS)
    found = []
    for backend in ("torch", "openvino"):
        with running(tmp_path / backend, folder, backend=backend) as server:
            found.append([server.post("/v1/search", {"query": query.text, "k": 3}).json["results"] for query in QUERIES])
    for one, other in zip(*found, strict=True):
        assert [result["id"] for result in one] == [result["id"] for result in other]
        np.testing.assert_allclose([result["score"] for result in one], [result["score"] for result in other], atol=1e-4)
    assert list((tmp_path / "cache" / "exports").glob("*/openvino-*/model.xml"))
