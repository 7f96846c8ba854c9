"""What is served and lies in no index folder: an engine's collection, and the stages of an experiment file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from retriever.filters import parse_condition
from retriever.remote.search import open_remote_search
from retriever.serving.shared_encoder import SharedEncoder
from retriever.types import Document, Query
from tests.serving_material import STAGES, running
from tests.test_index import built
from tests.tiny_experiment import command

DOCUMENTS = [Document("owl", "a bird that hunts mice", "Owl", fields={"legs": 2}), Document("saw", "a tool that cuts wood", "Saw", fields={"legs": 0})]


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


def test_stages_are_searched_as_many_as_are_asked_for(finished_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retriever.config import read_experiment
    from retriever.pipeline import Pipeline
    from retriever.steps.stages import open_stages

    file = tmp_path / "tiny.toml"
    file.write_text((finished_experiment / "tiny.toml").read_text() + STAGES)
    hits = open_stages(Pipeline(read_experiment(file), finished_experiment / "work")).hits("an animal that hunts", 10)
    monkeypatch.chdir(finished_experiment)
    with running(tmp_path / "state", file, work=Path("work")) as server:
        assert server.service.served["tiny"].paths == {str(finished_experiment / "work" / "tiny"): "tiny"}
        found = server.post("/v1/search", {"query": "an animal that hunts"}).json
        assert [(one["id"], one["score"]) for one in found["results"]] == [(hit.document.doc_id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]
        assert {"bm25 + student, best 6", "student, best 4"} < set(found["timings_ms"])
        assert len(server.ids("an animal that hunts", 10, stages=1)) == 6
        assert server.post("/v1/search", {"query": "a", "stages": 3}).error == '400 invalid_request: stages: 3, and "tiny" has 2'
        assert server.post("/v1/search", {"query": "a", "filter": {"x": 1}}).error.startswith("400 invalid_request: filter: stages take none")
        assert server.ask("GET", "/v1/documents/owl").json["index"] == "tiny"
        assert server.client().indexes()[0].stages == ["bm25 + student, best 6", "student, best 4"]


def test_an_explanation_says_what_each_stage_gave(finished_experiment: Path, tmp_path: Path) -> None:
    query = "an animal that hunts"
    file = tmp_path / "tiny.toml"
    file.write_text((finished_experiment / "tiny.toml").read_text() + STAGES)
    with running(tmp_path / "state", file, work=finished_experiment / "work") as server:
        first, last = (server.post("/v1/search", {"query": query, "stages": number}).json["results"] for number in (1, 2))
        told = {one["id"]: server.post("/v1/explain", {"query": query, "id": one["id"]}).json for one in first}
        for place, results in enumerate((first, last)):
            assert [told[one["id"]]["stages"][place]["rank"] for one in results] == [one["rank"] for one in results]
            assert [told[one["id"]]["stages"][place]["score"] for one in results] == pytest.approx([one["score"] for one in results], abs=1e-5)
        kept = {one["id"] for one in last}
        ends = {doc_id: why["stages"][1] for doc_id, why in told.items()}
        assert {doc_id for doc_id, stage in ends.items() if stage["kept"]} == kept
        assert sorted(stage["rank"] for stage in ends.values()) == [1, 2, 3, 4, 5, 6]
        for why in told.values():
            parts = [[part["ranker"] for part in stage["parts"]] for stage in why["stages"]]
            assert parts == [["bm25", "student"], ["student"]]
            by_student = [stage["parts"][-1]["score"] for stage in why["stages"]]
            assert by_student == pytest.approx([why["explanation"]["score"]] * 2, abs=1e-4)  # the index keeps what the student says of the text
        explained = server.client().explain(query, last[0]["id"]).stages[1]
        assert (explained.name, explained.candidates, explained.rank, explained.kept) == ("student, best 4", 6, 1, True)
        assert server.post("/v1/explain", {"query": query, "text": "an owl"}).json["stages"] == []
        listed = server.ask("GET", "/openapi.json").json["components"]["schemas"]
        assert listed["ExplainAnswer"]["properties"]["stages"]["items"] == {"$ref": "#/components/schemas/StageAnswer"}
        served = server.service.served["tiny"]
        pairs = SharedEncoder(SimpleNamespace(kind="cross_encoder"), server.service.encoder)  # as of a student that reads query and document together
        served._view = dataclasses.replace(served.reopened(), encoder=pairs)  # type: ignore[attr-defined, type-var]
        without = server.post("/v1/explain", {"query": query, "id": last[0]["id"], "turns": [{"speaker": "user", "text": "a"}]}).json
        assert (without["explanation"], without["history"], [stage["name"] for stage in without["stages"]]) == (None, None, list(served.reopened().stages))
        assert server.post("/v1/explain", {"query": query, "text": "an owl"}).error.startswith('400 invalid_request: "tiny" has a student that reads query and')


def test_the_stages_student_reads_a_conversation_as_it_is_told(finished_experiment: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text((finished_experiment / "tiny.toml").read_text() + '\n[[stage]]\nby = ["student"]\nkeep = 4\n')
    turns = [{"speaker": "user", "text": "an animal"}]
    with running(tmp_path / "state", file, work=finished_experiment / "work", reads=["tiny=all"]) as server:
        found = server.post("/v1/search", {"query": "that hunts", "turns": turns}).json
        assert found["read"]["text"] == "an animal that hunts"
        whole = server.post("/v1/search", {"query": "an animal that hunts"}).json["results"]
        assert [(one["id"], one["score"]) for one in found["results"]] == [(one["id"], pytest.approx(one["score"], abs=1e-5)) for one in whole]
