"""What is served and lies in no index folder: an engine's collection, and the stages of an experiment file."""

from __future__ import annotations

from pathlib import Path

import pytest

from retriever.filters import parse_condition
from retriever.remote.search import open_remote_search
from retriever.types import Document, Query
from tests.serving_material import running
from tests.test_index import built
from tests.tiny_experiment import command

DOCUMENTS = [Document("owl", "a bird that hunts mice", "Owl", fields={"legs": 2}), Document("saw", "a tool that cuts wood", "Saw", fields={"legs": 0})]
STAGES = '\n[[stage]]\nby = ["bm25", "student"]\nkeep = 6\nfusion = "z_score"\n\n[[stage]]\nby = ["student"]\nkeep = 4\n'


def test_a_collection_of_an_engine_is_searched_as_it_is_in_the_terminal(tmp_path: Path, encoder_folder: Path) -> None:
    pytest.importorskip("qdrant_client", reason="needs the extra [qdrant]")
    index = built(tmp_path, "dense", encoder_folder, DOCUMENTS)
    address = f"qdrant+local://{tmp_path}/engine/animals"
    assert command("index", "upload", index, address).status == 0
    with running(tmp_path / "state", address, student=index, write=True) as server:
        found = server.post("/v1/search", {"queries": ["an owl", "a tool"], "k": 2}).json
        assert server.ids("an owl", 2, filter={"legs": {"<": 1}}) == ["saw"]
        assert found["version"] is None
        assert server.ask("GET", "/v1/documents/owl").error.startswith("400 invalid_request: the document owl cannot be looked up")
        assert server.post("/v1/documents", {"documents": [{"id": "a", "text": "b"}]}).error.startswith('403 read_only: "animals" is no index folder')
        assert server.post("/v1/search", {"query": "a", "filter": {"wings": 2}}).error.startswith(
            '400 invalid_request: filter: no document has a field "wings"'
        )
    remote = open_remote_search(address, index)
    for results, query in zip(found["results"], ("an owl", "a tool"), strict=True):
        hits = remote.hits(query, 2)
        assert [result["id"] for result in results] == [hit.document.doc_id for hit in hits]
        assert [result["score"] for result in results] == pytest.approx([hit.score for hit in hits], abs=1e-5)
    assert [hit.document.doc_id for hit in remote.hits(Query("q", "an owl"), 2, [parse_condition("legs<1")])] == ["saw"]
    remote.index.close()


def test_stages_are_searched_as_many_as_are_asked_for(finished_experiment: Path, tmp_path: Path) -> None:
    from retriever.config import read_experiment
    from retriever.pipeline import Pipeline
    from retriever.stage_step import open_stages

    file = tmp_path / "tiny.toml"
    file.write_text((finished_experiment / "tiny.toml").read_text() + STAGES)
    hits = open_stages(Pipeline(read_experiment(file), finished_experiment / "work")).hits("an animal that hunts", 10)
    with running(tmp_path / "state", file, work=finished_experiment / "work") as server:
        found = server.post("/v1/search", {"query": "an animal that hunts"}).json
        assert [(one["id"], one["score"]) for one in found["results"]] == [(hit.document.doc_id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]
        assert {"bm25 + student, best 6", "student, best 4"} < set(found["timings_ms"])
        assert len(server.ids("an animal that hunts", 10, stages=1)) == 6
        assert server.post("/v1/search", {"query": "a", "stages": 3}).error == '400 invalid_request: stages: 3, and "tiny" has 2'
        assert server.post("/v1/search", {"query": "a", "filter": {"x": 1}}).error.startswith("400 invalid_request: filter: stages take none")
        assert server.ask("GET", "/v1/documents/owl").json["index"] == "tiny"
        assert server.client().indexes()[0].stages == ["bm25 + student, best 6", "student, best 4"]
