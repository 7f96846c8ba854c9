"""An index of the starting checkpoint serves the student whose queries alone were trained, as it lies there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from retriever.collection import Collection
from retriever.config import read_experiment
from retriever.encodings import encode_collection
from retriever.errors import ConfigError, SearchIndexError
from retriever.files import sha256_file
from retriever.index.changes import add, compact, publish
from retriever.index.elsewhere import facts_of
from retriever.index.layout import MANIFEST, Version, read_version
from retriever.index.soundness import repair, stats, verify
from retriever.models.routes import modules_of
from retriever.pipeline import Pipeline
from retriever.search import SearchIndex, open_index
from retriever.settings.index import AutoSettings
from retriever.types import Document, Query
from tests.frozen_material import KINDS, animals, encodings_of, opened, student_of
from tests.tiny_experiment import command, write_experiment

QUERY = Query("q", "an animal that hunts at night")


class Served(NamedTuple):
    """An index of a start, and the folder of a student whose queries have gone another way since."""

    index: Path
    student: Path


def nudged(student: Any, folder: Path) -> Any:
    """The student with other weights where queries are encoded, saved and opened."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in modules_of(student.model, "query"):
            for weight in module.parameters():
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.05 * weight.std())
    return opened(student, folder)


def index_of(student: Any, collection: Collection, folder: Path) -> Path:
    student.save(folder / "start")
    publish(folder / "index", AutoSettings(), student.kind, folder / "start", student, encodings_of(student, collection, folder / "encodings"), collection)
    return folder / "index"


def found_in(index: SearchIndex, k: int = 100) -> dict[str, float]:
    return {hit.document.doc_id: hit.score for hit in index.hits(QUERY, k)}


def by_hand(student: Any, collection: Collection) -> dict[str, float]:
    """The scores of all documents, from nothing but texts; of a sparse student those above 0."""
    read = student.encode_documents(list(collection.documents()))
    asked = student.encode_queries([QUERY])[np.zeros(len(collection), dtype=np.int64)]
    scores = dict(zip(collection.doc_ids.tolist(), student.score(asked, read).tolist(), strict=True))
    return {doc_id: score for doc_id, score in scores.items() if score > 0} if student.kind == "sparse" else scores


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return animals(tmp_path_factory.mktemp("animals") / "collection")


@pytest.fixture(scope="module")
def dense(encoder_folder: Path, collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    index = index_of(student_of(encoder_folder), collection, folder)
    nudged(student_of(encoder_folder, frozen_documents=True), folder / "student")
    return Served(index, folder / "student")


@pytest.fixture
def served(dense: Served, tmp_path: Path) -> Served:
    """A copy of its own."""
    return Served(shutil.copytree(dense.index, tmp_path / "index"), dense.student)


@pytest.mark.parametrize("name", KINDS)
def test_an_index_of_the_start_is_searched_with_the_student_and_stays_as_it_is(encoder_folder: Path, collection: Collection, tmp_path: Path, name: str) -> None:
    symmetric = {key: value for key, value in KINDS[name].items() if key != "inference_free_queries"}
    index = index_of(student_of(encoder_folder, **symmetric), collection, tmp_path)
    before = {path: sha256_file(path) for path in index.rglob("*") if path.is_file()}
    student = nudged(student_of(encoder_folder, **KINDS[name], frozen_documents=True), tmp_path / "student")
    found = found_in(open_index(index, tmp_path / "student"))
    assert found == pytest.approx(by_hand(student, collection), abs=2e-3, rel=1e-3)  # token vectors are kept in half precision
    assert found != pytest.approx(found_in(open_index(index)), abs=2e-3)
    assert {path: sha256_file(path) for path in index.rglob("*") if path.is_file()} == before


def test_a_student_that_encodes_documents_otherwise_is_refused(served: Served, encoder_folder: Path, tmp_path: Path) -> None:
    other = opened(student_of(encoder_folder, document_prompt="read ", frozen_documents=True), tmp_path / "other")
    own = read_version(served.index).document_encoder
    said = rf"{served.index}: its documents were encoded by {own}, and the student .* encodes them as {other.document_identity} does\. "
    with pytest.raises(SearchIndexError, match=said):
        open_index(served.index, tmp_path / "other")
    with pytest.raises(ConfigError, match="no student here"):
        open_index(served.index, tmp_path / "nowhere")


def test_what_is_added_is_found_by_the_student_too(served: Served) -> None:
    index = open_index(served.index, served.student)
    asking = index.encoder
    add(served.index, [("here", Document("n1", "an animal that hunts at night"))])
    assert "n1" in found_in(index)
    assert index.encoder is asking
    assert len(index) == 61


def test_an_index_of_the_student_takes_the_starts_vectors_and_can_be_changed(
    encoder_folder: Path, collection: Collection, served: Served, tmp_path: Path
) -> None:
    student = student_of(served.student)
    vectors = encode_collection(student_of(encoder_folder), collection, tmp_path / "encodings")
    publish(tmp_path / "own", AutoSettings(), "dense", served.student, student, vectors, collection)
    version = read_version(tmp_path / "own")
    assert (version.encoder, version.document_encoder) == (student.identity, vectors.encoder)
    assert found_in(open_index(tmp_path / "own")) == pytest.approx(found_in(open_index(served.index, served.student)), abs=1e-6)
    assert found_in(open_index(tmp_path / "own", served.index)) == pytest.approx(found_in(open_index(served.index)), abs=1e-6)  # and the other way round
    add(tmp_path / "own", [("here", Document("n1", "an animal that hunts at night"))])
    compact(tmp_path / "own")
    assert verify(tmp_path / "own") == []
    assert (stats(tmp_path / "own")["encoder"], stats(tmp_path / "own")["document_encoder"]) == (student.identity, vectors.encoder)
    (tmp_path / "own" / "segments" / "000003" / "index.faiss").write_bytes(b"damaged")
    assert "is built again" in repair(tmp_path / "own")[0]
    assert verify(tmp_path / "own") == []


def test_vectors_of_another_encoder_are_refused(encoder_folder: Path, collection: Collection, served: Served, tmp_path: Path) -> None:
    vectors = encode_collection(student_of(encoder_folder, layers=1), collection, tmp_path / "encodings")
    with pytest.raises(SearchIndexError, match="these vectors were made by another student"):
        publish(tmp_path / "own", AutoSettings(), "dense", served.student, student_of(served.student), vectors, collection)


def older(index: Path, encoder: str) -> None:
    """Writes an index as an older program did, which took the whole student for what decides documents' encodings."""
    for path in (index / MANIFEST, index / "versions" / "000001.json", index / "segments" / "000001" / "segment.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("document_encoder", None)
        path.write_text(json.dumps(values | {"encoder": encoder}), encoding="utf-8")


def test_an_older_manifest_says_nothing_of_documents_alone(served: Served) -> None:
    version = read_version(served.index)
    older(served.index, version.encoder)
    assert read_version(served.index) == version
    values = json.loads((served.index / MANIFEST).read_text(encoding="utf-8"))
    assert "document_encoder" not in values
    assert Version.model_validate(values).document_encoder == version.encoder
    assert "n1" not in found_in(open_index(served.index, served.student))


def test_an_older_index_of_looked_up_queries_can_still_be_changed(encoder_folder: Path, collection: Collection, tmp_path: Path) -> None:
    student = student_of(encoder_folder, **KINDS["looked_up"])
    index = index_of(student, collection, tmp_path)
    assert read_version(index).document_encoder != student.identity
    older(index, student.identity)
    assert read_version(index).document_encoder == student.identity
    add(index, [("here", Document("n1", "an owl hunts at night"))])
    assert "n1" in found_in(open_index(index))
    assert "n1" in found_in(open_index(index, tmp_path / "start"))
    assert verify(index) == []


def test_the_command_searches_an_index_with_another_student(served: Served, encoder_folder: Path, tmp_path: Path) -> None:
    said = command("search", served.index, QUERY.text, "--student", served.student, "--json", "-k", 3)
    assert said.status == 0, said.err
    expected = open_index(served.index, served.student).hits(QUERY, 3)
    assert [(one["id"], one["score"]) for one in json.loads(said.out)["results"]] == [(hit.document.doc_id, hit.score) for hit in expected]
    student_of(encoder_folder, layers=1).save(tmp_path / "other")
    assert "its documents were encoded by" in command("search", served.index, QUERY.text, "--student", tmp_path / "other").error
    assert "--student is for an index" in command("search", tmp_path / "some.toml", QUERY.text, "--student", served.student).error


def test_an_experiment_encodes_documents_once_and_as_its_start(shared_beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    file = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    pipeline = Pipeline(read_experiment(file, ["student.frozen_documents=true", "training.epochs=1"]), tmp_path / "work")
    versions = [read_version(index.folder) for index in (pipeline.index_before, pipeline.index)]
    assert {version.document_encoder for version in versions} == {student_of(encoder_folder).identity}
    assert all(version.encoder != version.document_encoder for version in versions)
    assert len(list((tmp_path / "work" / "tiny" / "encodings").iterdir())) == 1


def test_an_engines_collection_of_the_start_is_searched_with_the_student(served: Served, encoder_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="needs the extra [qdrant]")
    address = f"qdrant+local://{tmp_path}/engine/animals"
    assert command("index", "upload", served.index, address).status == 0
    assert facts_of(open_index(served.index).snapshot).encoder == student_of(encoder_folder).identity
    said = command("search", address, QUERY.text, "--student", served.student, "--json", "-k", 3)
    assert said.status == 0, said.err
    expected = open_index(served.index, served.student).hits(QUERY, 3)
    assert [one["id"] for one in json.loads(said.out)["results"]] == [hit.document.doc_id for hit in expected]
    student_of(encoder_folder, layers=1).save(tmp_path / "other")
    assert "encodes documents as" in command("search", address, QUERY.text, "--student", tmp_path / "other").error
