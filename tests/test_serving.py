"""The HTTP interface on a real server: what is asked is answered as the index answers it, and what is wrong is told in one line."""

from __future__ import annotations

import base64
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retriever.client import Client, ServiceError
from retriever.errors import ConfigError
from retriever.index.changes import add, delete, roll_back
from retriever.index.layout import read_version
from retriever.search import open_index
from retriever.serving import served_index
from retriever.serving.keys import new_key
from retriever.settings.index import AutoSettings
from retriever.types import Document, Query, Turn
from tests.page_material import squares_index
from tests.serving_material import Running, running
from tests.test_index import NEW, built, listed
from tests.tiny_experiment import command

QUERY = "an animal that hunts"
BEHIND = "503 unavailable: notes: its newest version cannot be served, and the one before is served on; the server's log says why"
DOCUMENTS = [
    Document("owl", "a bird that hunts mice at night. It has large eyes.", "Owl", fields={"kind": "animal", "legs": 2}),
    Document("beaver", "a rodent that builds dams", "Beaver", fields={"kind": "animal", "legs": 4}),
    Document("saw", "a tool that cuts wood", "Saw", fields={"kind": "tool"}),
    Document("hammer/claw", "a tool that drives nails into wood", "Hammer", fields={"kind": "tool"}),
    Document("bee", "an insect that makes honey", "Bee", fields={"kind": "animal", "legs": 6}),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    return built(tmp_path_factory.mktemp("served"), "dense", encoder_folder, DOCUMENTS)


@pytest.fixture(scope="module")
def server(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that reads."""
    with running(tmp_path_factory.mktemp("state"), f"notes={whole}", f"again={whole}", reads=["all"], limits={"timeout_seconds": 20.0}) as found:
        yield found


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """An index of its own."""
    return shutil.copytree(whole, tmp_path / "notes")


# Searching


def test_a_search_gives_what_the_index_gives(server: Running, whole: Path) -> None:
    hits = open_index(whole).hits(QUERY, 3)
    found = server.post("/v1/search", {"query": QUERY, "k": 3}).json
    assert [result["id"] for result in found["results"]] == [hit.document.doc_id for hit in hits]
    assert [result["score"] for result in found["results"]] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    first = found["results"][0]
    assert (first["rank"], first["title"], first["fields"]) == (1, hits[0].document.title, dict(hits[0].document.fields))
    assert (found["index"], found["version"]) == ("notes", 1)
    assert {"encode", "search", "queue", "documents", "total"} == set(found["timings_ms"])
    owl = server.post("/v1/search", {"query": "what hunts mice", "filter": {"legs": 2}, "text": True, "index": "again"}).json
    assert [result["id"] for result in owl["results"]] == ["owl"]
    assert [owl["results"][0]["snippet"]["text"][start:end] for start, end in owl["results"][0]["snippet"]["marks"]] == ["hunts", "mice"]
    assert (owl["results"][0]["text"], owl["index"]) == (DOCUMENTS[0].text, "again")


def test_several_queries_are_answered_each_by_a_list(server: Running) -> None:
    queries = ["a tool", QUERY]
    found = server.post("/v1/search", {"queries": queries, "k": 2, "filter": {"kind": ["animal"]}}).json["results"]
    assert [[result["id"] for result in results] for results in found] == [server.ids(query, 2, filter={"kind": "animal"}) for query in queries]


def test_queries_that_come_together_are_answered_as_one_by_one(server: Running, whole: Path) -> None:
    queries = [
        f"{word} number {number}" for number in range(8) for word in ("owl", "a beaver that builds", "saw", "an insect and another one that makes honey")
    ]
    index = open_index(whole)
    alone = [{hit.document.doc_id: hit.score for hit in index.hits(query, 5)} for query in queries]
    before = {bucket.name: bucket.value for metric in server.service.metrics.batch.collect() for bucket in metric.samples}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda query: server.post("/v1/search", {"query": query, "k": 5}).json, queries))
    together = [{result["id"]: result["score"] for result in answer["results"]} for answer in answers]
    for one, other in zip(alone, together, strict=True):
        assert other == pytest.approx(one, abs=1e-6)
    after = {bucket.name: bucket.value for metric in server.service.metrics.batch.collect() for bucket in metric.samples}
    assert after["retriever_batch_queries_sum"] - before["retriever_batch_queries_sum"] == len(queries)
    assert after["retriever_batch_queries_count"] - before["retriever_batch_queries_count"] < len(queries)


def test_vectors_of_a_batch_are_those_of_single_queries(server: Running, whole: Path) -> None:
    texts = ["owl", "a beaver that builds dams of wood", "x"]
    encoder = open_index(whole).encoder
    found = server.post("/v1/embeddings", {"input": texts, "model": "notes", "user": "somebody"}).json
    vectors = np.array([one["embedding"] for one in found["data"]])
    assert vectors == pytest.approx(np.concatenate([encoder.encode_queries([Query("q", text)]) for text in texts]), abs=1e-6)
    assert (found["object"], found["model"], found["usage"]["prompt_tokens"] > 8) == ("list", "notes", True)
    packed = server.post("/v1/embeddings", {"input": "owl", "encoding_format": "base64"}).json["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), dtype="<f4") == pytest.approx(vectors[0], abs=1e-6)


def test_the_texts_of_many_requests_wait_for_the_encoder_together_and_hold_no_thread(server: Running, whole: Path) -> None:
    texts, released, encoder = [f"owl {number}" for number in range(12)], threading.Event(), server.service.encoder
    encoder.call(released.wait)
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = [pool.submit(server.post, "/v1/embeddings", {"input": text, "model": "notes"}) for text in texts]
        try:
            deadline = time.monotonic() + 20
            while len(encoder._pieces) < len(texts):  # more than the server has threads for what waits
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            released.set()
        found = np.array([one.result().json["data"][0]["embedding"] for one in answers])
    assert found == pytest.approx(open_index(whole).encoder.encode_queries([Query("q", text) for text in texts]), abs=1e-6)


def test_texts_are_scored_in_the_shapes_of_two_interfaces(server: Running, whole: Path) -> None:
    encoder = open_index(whole).encoder
    texts = ["a bird", "a tool that cuts", "a tool"]
    scores = (encoder.encode_documents([Document("d", text) for text in texts]) @ encoder.encode_queries([Query("q", "a tool")])[0]).tolist()
    order = sorted(range(3), key=lambda number: -scores[number])
    found = server.post("/v1/rerank", {"query": "a tool", "documents": [texts[0], {"text": texts[1]}, texts[2]], "top_n": 2, "return_documents": True}).json
    assert [one["index"] for one in found["results"]] == order[:2]
    assert [one["relevance_score"] for one in found["results"]] == pytest.approx([scores[number] for number in order[:2]], abs=1e-6)
    assert found["results"][0]["document"] == {"text": texts[order[0]]}
    listed = server.post("/rerank", {"query": "a tool", "texts": texts, "raw_scores": True}).json
    assert [one["index"] for one in listed] == order
    assert [one["score"] for one in listed] == pytest.approx([scores[number] for number in order], abs=1e-6)


def test_a_dense_score_is_explained_by_sentences(server: Running, whole: Path) -> None:
    encoder = open_index(whole).encoder
    found = server.post("/v1/explain", {"query": "large eyes", "id": "owl"}).json["explanation"]

    def score(text: str) -> float:
        return float(encoder.encode_documents([Document("d", text)])[0] @ encoder.encode_queries([Query("q", "large eyes")])[0])

    text = DOCUMENTS[0].full_text
    first, second = "Owl a bird that hunts mice at night.", "It has large eyes."
    assert (found["kind"], [row["text"] for row in found["rows"]]) == ("sentences", [first, second])
    assert found["score"] == pytest.approx(score(text), abs=1e-5)
    assert [row["alone"] for row in found["rows"]] == pytest.approx([score(first), score(second)], abs=1e-5)
    assert [row["lost"] for row in found["rows"]] == pytest.approx([score(text) - score(second), score(text) - score(first)], abs=1e-5)


@pytest.mark.parametrize("kind", ["sparse", "late_interaction"])
def test_other_students_are_served_and_explained_by_words_and_tokens(kind: str, tmp_path: Path, encoder_folder: Path) -> None:
    index = built(tmp_path, kind, encoder_folder, DOCUMENTS, AutoSettings())
    hit = open_index(index).hits("a rodent that builds", 1)[0]
    with running(tmp_path / "state", index) as server:
        assert server.ids("a rodent that builds", 1) == [hit.document.doc_id]
        found = server.post("/v1/explain", {"query": "a rodent that builds", "id": hit.document.doc_id, "rows": 200}).json["explanation"]
        assert found["score"] == pytest.approx(hit.score, abs=1e-3)
        refused = server.post("/v1/embeddings", {"input": "x"})
        assert refused.error == f'400 invalid_request: model: the student of "{index.parent.name}" is a {kind} one, which gives no vector for a text'
        assert len(server.post("/v1/rerank", {"query": "a bird", "documents": ["a bird", "a tool"]}).json["results"]) == 2
    parts = [row["product"] if kind == "sparse" else row["similarity"] for row in found["rows"]]
    assert sum(parts) == pytest.approx(found["score"], abs=1e-3)  # all of the score, and nothing but the score
    if kind == "late_interaction":
        text = hit.document.full_text
        assert all(row["document"] == (text[slice(*row["place"])] if row["place"] else "") for row in found["rows"])
        assert {row["query"] for row in found["rows"]} >= {"rodent", "builds"}


# Conversations


def test_turns_are_read_with_what_was_said_before(server: Running) -> None:
    turns = [{"speaker": "user", "text": "a rodent that builds dams"}]
    found = server.post("/v1/search", {"query": "and", "turns": turns, "k": 1}).json
    assert found["read"] == {"text": "a rodent that builds dams and", "left_out": 0, "cut": False, "tokens": 0}
    assert found["results"][0]["id"] == "beaver"
    why = server.post("/v1/explain", {"query": "and", "turns": turns}).json
    assert (why["explanation"], why["history"]["kind"], why["history"]["rows"][0]["text"]) == (None, "turns", turns[0]["text"])


def test_what_a_student_reads_is_set_for_each_index(whole: Path, tmp_path: Path) -> None:
    turns = [{"speaker": "user", "text": "a rodent"}, {"speaker": "agent", "text": "which one?"}]
    places = [f"notes={whole}", f"again={whole}", f"squares={squares_index(tmp_path / 'squares')}"]
    with running(tmp_path / "state", *places, reads=["notes=all", "again=user"]) as server:
        read = {name: server.post("/v1/search", {"query": "and", "turns": turns, "index": name}).json["read"]["text"] for name in server.service.served}
    assert read == {"notes": "a rodent which one? and", "again": "a rodent and", "squares": "and"}
    message = "--reads: the student of squares reads conversations in its own way. Leave it out there: --reads NAME=READING is for one index"
    for reads in (["all"], ["squares=all"]):
        with pytest.raises(ConfigError, match=re.escape(message)), running(tmp_path / "state", *places, reads=reads):
            pass


def test_a_conversation_goes_on_and_is_forgotten_on_demand(server: Running) -> None:
    client = server.client()
    begun = client.begin()
    client.say(begun.id, "a rodent")
    client.hear(begun.id, "which one?")
    found = client.say(begun.id, "that builds dams", 1)
    assert found.read is not None
    assert found.read.text == "a rodent which one? that builds dams"
    assert [(turn["speaker"], turn["text"]) for turn in client.conversation(begun.id).turns] == [
        ("user", "a rodent"),
        ("agent", "which one?"),
        ("user", "that builds dams"),
    ]
    client.forget(begun.id)
    with pytest.raises(ServiceError, match="there is no such conversation"):
        client.say(begun.id, "hello")


# Keys and changes


def test_roles_are_held_and_conversations_are_their_keys_own(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    anna, ben, writer, admin = (new_key(path, role) for role in ("search", "search", "write", "admin"))
    document = {"documents": [{"id": "cat", "text": "an animal that purrs"}]}
    with running(tmp_path / "state", folder, keys=path, write=True) as server:
        assert server.ask("GET", "/health").status == 200
        refused = server.post("/v1/search", {"query": QUERY})
        assert refused.error == "401 unauthorised: no key was given; send one as Authorization: Bearer KEY"
        assert server.post("/v1/search", {"query": QUERY}, f"{anna}x").error.startswith("401 unauthorised: there is no such key")
        assert server.post("/v1/search", {"query": QUERY}, anna).status == 200
        assert server.ask("POST", "/v1/search", {"query": QUERY}, X_API_Key=anna).status == 200
        assert server.ask("GET", "/metrics").status == 401
        assert server.post("/v1/documents", document, anna).error == '403 forbidden: this key has the role "search", and this needs "write"'
        assert server.ask("DELETE", "/v1/documents/owl", key=anna).status == 403
        assert server.post("/v1/documents", document, writer).json["added"] == 1
        assert server.post("/v1/indexes/notes/compact", {}, writer).error == '403 forbidden: this key has the role "write", and this needs "admin"'
        assert server.post("/v1/indexes/notes/compact", {}, admin).json["documents"] == 6
        assert server.post("/v1/indexes/notes/prune", {}, admin).json["freed_bytes"] > 0
        own = server.post("/v1/conversations", {}, anna).json["id"]
        for other in (ben, writer, admin):
            for method, where, body in (("GET", "", None), ("DELETE", "", None), ("POST", "/turns", {"text": "hello"})):
                assert server.ask(method, f"/v1/conversations/{own}{where}", body, other).status == 404
        assert server.ask("GET", f"/v1/conversations/{own}", key=anna).json["turns"] == []


def test_documents_come_and_go_and_every_search_after_the_answer_knows_of_it(folder: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", folder, write=True) as server:
        client = server.client()
        owl = Document("new/owl", "a snowy owl that hunts by day", "Snowy owl", fields={"kind": "animal", "legs": 2})
        done = client.add([owl, Document("saw", "a saw for metal", fields={"kind": "tool"})])
        assert (done.version, done.added, done.replaced, done.documents) == (2, 1, 1, 6)
        assert server.ids("a snowy owl that hunts by day snowy owl", 1) == ["new/owl"]
        found = client.document("new/owl")
        assert (found.title, found.text, found.fields) == (owl.title, owl.text, owl.fields)
        assert client.document("hammer/claw").title == "Hammer"
        assert client.delete(["new/owl", "bee"]).deleted == 2
        assert set(server.ids(QUERY, 100)) == {"owl", "beaver", "saw", "hammer/claw"}
        for wrong in (lambda: client.document("bee"), lambda: client.delete(["bee"])):
            with pytest.raises(ServiceError, match="there is no document"):
                wrong()
        assert server.ask("DELETE", "/v1/documents/hammer/claw").json["documents"] == 3
        wrong_kind = server.post("/v1/documents", {"documents": [{"id": "x", "text": "x", "fields": {"kind": 3}}]})
        assert wrong_kind.error.startswith('400 invalid_request: notes: the field "kind" is a number in the new documents and a text in the index')
        twice = server.post("/v1/documents", {"documents": [{"id": "x", "text": "x"}, {"id": "x", "text": "y"}]})
        assert "the id x stands already at document 1" in twice.error
        assert client.indexes()[0].version == 4
    add(folder, listed(NEW))  # the lock is free, and the index whole
    assert len(open_index(folder)) == 6


@pytest.mark.parametrize(("inside", "place"), [("work", "."), ("work/index", "."), (".", "work/index"), ("work", "index")])
def test_words_of_a_message_are_no_path_wherever_the_server_was_started(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, place: str
) -> None:
    shutil.copytree(whole, tmp_path / "work" / "index")
    monkeypatch.chdir(tmp_path / inside)
    with running(tmp_path / "state", f"notes={place}", write=True) as server:
        refused = server.post("/v1/documents", {"documents": [{"id": "x", "text": "x", "fields": {"kind": 3}}]})
    message = 'notes: the field "kind" is a number in the new documents and a text in the index. Give all of them the same'
    assert refused.error == f"400 invalid_request: {message}"


def test_a_server_that_only_reads_says_so(server: Running) -> None:
    assert server.post("/v1/documents", {"documents": [{"id": "a", "text": "b"}]}).error.startswith("403 read_only: this server changes nothing")
    assert server.ask("DELETE", "/v1/documents/owl").status == 403


def test_versions_change_under_load_without_a_failed_request_or_a_stale_document(folder: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", folder, write=True) as server:
        stop, wrong, gone, answered = threading.Event(), [], set(), [0]

        def ask() -> None:
            while not stop.is_set():
                known_gone = set(gone)
                found = server.post("/v1/search", {"query": f"{QUERY} {answered[0] % 7}", "k": 100})
                answered[0] += 1
                if found.status != 200 or known_gone & {result["id"] for result in found.json["results"]}:
                    wrong.append(found)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(4):
            new = Document(f"n{number}", f"an animal that hunts {number}")
            if number % 2:
                add(folder, listed([new]))  # by another process' means
                delete(folder, [new.doc_id])
            else:
                server.client().add([new])
                server.client().delete([new.doc_id])
            gone.add(new.doc_id)
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert answered[0] > 8
        assert server.post("/v1/search", {"query": QUERY}).json["version"] == read_version(folder).number == 9


def test_a_version_that_cannot_be_opened_leaves_the_one_before_in_service(folder: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", folder) as server:
        (folder / "index.json").write_text("{")
        assert len(server.ids(QUERY)) == 5
        assert server.ask("GET", "/ready").error == BEHIND


def test_a_version_whose_student_does_not_suit_leaves_the_one_before_in_service_and_is_told(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(served_index._LOG, "exception", lambda message, *values: logged.append(message % values))
    folder = shutil.copytree(whole, tmp_path / "notes" / "index")
    with running(tmp_path / "state", folder, reads=["all"]) as server:
        assert server.ask("GET", "/ready").status == 200
        squares_index(tmp_path / "notes")  # its student reads conversations in its own way, and so takes no reading
        assert read_version(folder).number == 2
        answers = [server.post("/v1/search", {"query": QUERY}).json for _ in range(2)]
        assert [(found["version"], len(found["results"])) for found in answers] == [(1, 5)] * 2
        assert server.ask("GET", "/ready").error == BEHIND
        assert logged == ["notes: the new version cannot be served; the one before is served on"]
        monkeypatch.setattr(served_index, "_AGAIN_SECONDS", 0.0)
        roll_back(folder, 1)
        assert server.post("/v1/search", {"query": QUERY}).json["version"] == 3
        assert server.ask("GET", "/ready").json == {"status": "ready", "indexes": ["notes"]}


def test_a_version_that_could_not_be_served_is_tried_again_when_much_more_time_has_passed_than_it_took(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, own = list[bool](), served_index.shared_encoder

    def fails_once(*arguments: Any) -> Any:
        tries.append(True)
        if len(tries) == 1:
            raise ConfigError("the disk is full")
        return own(*arguments)

    folder = shutil.copytree(whole, tmp_path / "notes" / "index")
    with running(tmp_path / "state", folder) as server:
        monkeypatch.setattr(served_index, "shared_encoder", fails_once)
        monkeypatch.setattr(served_index, "_AGAIN_SECONDS", 0.0)
        monkeypatch.setattr(served_index, "_PATIENCE", 1e12)
        squares_index(tmp_path / "notes")
        assert [server.post("/v1/search", {"query": "red"}).json["version"] for _ in range(3)] == [1, 1, 1]
        assert len(tries) == 1
        monkeypatch.setattr(served_index, "_PATIENCE", 0.0)
        assert server.post("/v1/search", {"query": "red", "k": 1}).json["version"] == 2
        assert len(tries) == 2


def test_the_version_before_is_not_given_out_while_the_new_one_is_opened(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path / "state", folder) as server:
        served: Any = server.service.served["notes"]
        begun, free, view_of = threading.Event(), threading.Event(), served._view_of

        def slow(*arguments: Any) -> Any:
            begun.set()
            assert free.wait(20)
            return view_of(*arguments)

        monkeypatch.setattr(served, "_view_of", slow)
        delete(folder, ["owl"])
        with ThreadPoolExecutor(1) as pool:
            opened = pool.submit(served.reopened)
            assert begun.wait(20)
            assert served.fresh() is None
            free.set()
            assert served.reopened() is opened.result() is served.fresh()
        assert served.fresh().version == 2


def test_the_same_query_is_answered_from_memory_until_the_index_changes(folder: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", folder) as server:
        answers = [server.post("/v1/search", {"query": QUERY, "k": k}).json for k in (3, 3, 2)]
        assert [answer["cached"] for answer in answers] == [False, True, False]
        assert answers[0]["results"] == answers[1]["results"]
        delete(folder, ["owl"])
        again = server.post("/v1/search", {"query": QUERY, "k": 3}).json
        assert (again["cached"], "owl" in [result["id"] for result in again["results"]]) == (False, False)
        text = server.ask("GET", "/metrics").body.decode()
        assert 'retriever_queries_total{cached="yes",index="notes"} 1.0' in text
        assert 'retriever_documents{index="notes"} 4.0' in text


def test_a_filter_takes_its_room_in_the_memory_of_answers(folder: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", folder, limits={"cache_bytes": 10_000}) as server:
        for kinds, cached in ((["animal"], [False, True]), (["animal", *map(str, range(1_000))], [False, False])):
            asked = {"query": QUERY, "filter": {"kind": kinds}}
            assert [server.post("/v1/search", asked).json["cached"] for _ in range(2)] == cached


# Limits and mistakes

WRONG: list[tuple[str, Any, str]] = [
    ("/v1/search", {}, "body: give query, queries or image, one of the three"),
    ("/v1/search", {"query": "a", "queries": ["b"]}, "body: give query, queries or image, one of the three"),
    ("/v1/search", {"query": " "}, "query: is empty"),
    ("/v1/search", {"query": 1}, "query: Input should be a valid string"),
    ("/v1/search", {"query": "a", "limit": 1}, "limit: Extra inputs are not permitted"),
    ("/v1/search", {"query": "a", "k": 1_001}, "k: 1,001, and 1,000 are allowed"),
    ("/v1/search", {"query": "a", "k": True}, "k: Input should be a valid integer"),
    ("/v1/search", {"query": "a" * 9_000}, "query: characters: 9,000, and 8,192 are allowed"),
    ("/v1/search", {"queries": ["a"] * 65}, "queries: 65, and 64 are allowed"),
    ("/v1/search", {"query": "a", "stages": 2}, 'stages: 2, and "notes" has none'),
    ("/v1/search", {"query": "a", "filter": {"leg": 2}}, 'filter: no document has a field "leg"; did you mean "legs"?'),
    ("/v1/search", {"query": "a", "filter": {"legs": {"~": 2}}}, 'filter: "~" is no comparison; allowed are = != < <= > >= in'),
    ("/v1/search", {"query": "a", "filter": {"legs": 10**400}}, "filter: legs = 1000"),
    ("/v1/search", {"query": "a", "turns": [{"speaker": "bot", "text": "a"}]}, "turns.0.speaker: Input should be 'user' or 'agent'"),
    ("/v1/search", b'{"query": "\\ud800"}', "body: holds half of a surrogate pair"),
    ("/v1/search", b'{"query": "\xff"}', "body: is not in UTF-8 (byte 12)"),
    ("/v1/search", b'{"query": ', "body: is no JSON (Expecting value)"),
    ("/v1/search", b"[" * 100_000, "There was an error parsing the body"),
    ("/v1/search", b"[]", "body: "),
    ("/v1/explain", {"query": "a"}, "body: give the id of a document, its text, or turns before the query"),
    ("/v1/embeddings", {"input": [1, 2]}, "input"),
    ("/v1/embeddings", {"input": ["a", " "]}, "input: number 1 is empty"),
    ("/v1/embeddings", {"input": "a", "dimensions": 7}, "dimensions: 7, and the student gives 32"),
    ("/v1/rerank", {"query": "a"}, "body: give documents or texts, one of the two"),
    ("/v1/rerank", {"query": "a", "texts": ["a"] * 257}, "texts: 257, and 256 are allowed"),
    ("/v1/feedback", {"events": [{"query": "a", "id": "a b"}]}, "id: the id 'a b' contains white space"),
]


@pytest.mark.parametrize(("path", "body", "said"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_request_is_told_in_one_line(server: Running, path: str, body: Any, said: str) -> None:
    refused = server.post(path, body)
    assert refused.error.startswith(f"400 invalid_request: {said}")
    assert refused.headers["x-request-id"]


def test_what_is_not_there_is_told(server: Running) -> None:
    assert server.post("/v1/search", {"query": "a", "index": "../notes"}).error == '404 not_found: there is no index "../notes"; served are notes, again'
    assert server.post("/v1/explain", {"query": "a", "id": "cat"}).error == '404 not_found: there is no document "cat"'
    assert server.ask("GET", "/v1/documents/../../etc/passwd").error == '404 not_found: there is no document "../../etc/passwd"'
    assert server.ask("GET", "/v1/nothing").error == "404 not_found: GET /v1/nothing: not found"
    assert server.ask("GET", "/v1/search").error == "405 method_not_allowed: GET /v1/search: method not allowed"
    assert server.ask("POST", "/v1/search", b'{"query": "a"}', Content_Type="text/plain").error.startswith("400 invalid_request: body: expected a JSON object")


def test_what_nobody_foresaw_is_told_in_one_line_too(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str | None) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(server.service, "named", broken)
    refused = server.ask("POST", "/v1/search", {"query": "a"}, X_Request_Id="mine-2")
    assert refused.error == "500 internal: the server made a mistake; its log names the request mine-2"


def test_pages_of_other_sites_may_not_ask(server: Running, whole: Path, tmp_path: Path) -> None:
    for origin in ("http://evil.example", "null", "", "http://[", server.url.removeprefix("http://")):
        refused = server.ask("POST", "/v1/search", {"query": "a"}, Origin=origin)
        assert refused.error == "403 forbidden: pages of other sites may not ask this server"
    assert server.ask("POST", "/v1/search", {"query": "a"}, Origin=server.url).status == 200
    assert "access-control-allow-origin" not in server.ask("OPTIONS", "/v1/search", Origin="http://evil.example").headers
    with running(tmp_path / "state", whole, hosts=("127.0.0.1",)) as guarded:
        assert guarded.ask("GET", "/health", Host="evil.example").error.startswith("403 forbidden: the server is not called by this name")
        assert guarded.ask("GET", "/health").status == 200


def test_a_request_keeps_the_id_that_it_came_with(server: Running) -> None:
    assert server.ask("POST", "/v1/search", {"query": "a"}, X_Request_Id="mine-1").json["request_id"] == "mine-1"
    assert server.ask("GET", "/health", X_Request_Id="no good\tone").headers["x-request-id"] != "no good\tone"


def test_a_body_that_is_too_large_is_not_read(whole: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", whole, limits={"body_bytes": 1_000}) as server:
        assert server.post("/v1/search", {"query": "a" * 2_000}).error == "413 too_large: the body has more than 1,000 bytes"
        assert server.ids("a", 1)


def test_too_much_at_once_is_told_to_come_again_and_what_takes_too_long_is_given_up(whole: Path, tmp_path: Path) -> None:
    limits = {"queue": 2, "batch": 1, "timeout_seconds": 0.4, "cache_bytes": 0}
    with running(tmp_path / "state", whole, limits=limits) as server:
        free = threading.Event()
        blocked = server.service.encoder.call(lambda: free.wait(20))
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(server.post, "/v1/search", {"query": f"{number}"}) for number in range(4)]
            replies = [future.result() for future in waiting]
        busy = [reply for reply in replies if reply.status == 429]
        late = [reply for reply in replies if reply.status == 504]
        assert (len(busy), len(late)) == (2, 2)
        assert busy[0].error.startswith("429 busy: the server has more to do than it can hold; try again in ")
        assert int(busy[0].headers["retry-after"]) >= 1
        assert late[0].error == "504 timeout: no answer within 0.4 s; ask for less at a time, or try again"
        free.set()
        blocked.result(10)
        deadline = time.monotonic() + 10
        while server.service.encoder.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.service.encoder.waiting == 0  # nobody waits for them, so they were not answered


BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["owl", "a tool", "notes", "kind"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["=", ">=", "in", "text", "speaker", "kind", "legs", "id", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "query",
    "queries",
    "k",
    "index",
    "filter",
    "turns",
    "stages",
    "text",
    "id",
    "rows",
    "input",
    "model",
    "documents",
    "texts",
    "top_n",
    "events",
    "speaker",
]
ROUTES = ["search", "explain", "embeddings", "rerank", "conversations", "conversations/x/turns", "feedback", "documents"]


@given(st.sampled_from(ROUTES), st.dictionaries(st.sampled_from(KEYS), BODIES, max_size=5), st.sampled_from([{}, {"query": "owl"}, {"input": "a"}]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_body_makes_the_server_fail(server: Running, route: str, body: dict[str, Any], valid: dict[str, Any]) -> None:
    found = server.post(f"/v1/{route}", json.dumps({**body, **valid}).encode())
    assert found.status < 500, (route, body, found.body)
    assert found.status < 300 or found.error


# The interface


def test_the_interface_is_described_for_programs_and_for_people(server: Running) -> None:
    document = server.ask("GET", "/openapi.json").json
    assert {"/v1/search", "/v1/documents", "/v1/embeddings", "/v1/rerank", "/v1/explain", "/v1/conversations", "/v1/feedback", "/health"} <= set(
        document["paths"]
    )
    page = server.ask("GET", "/docs")
    assert "<script" not in page.body.decode()
    assert "POST /v1/search" in page.body.decode()
    assert server.ask("GET", "/ready").json == {"status": "ready", "indexes": ["notes", "again"]}


def test_the_client_gives_typed_answers(server: Running, tmp_path: Path) -> None:
    client = server.client()
    assert [(one.name, one.documents, one.writable) for one in client.indexes()] == [("notes", 5, False), ("again", 5, False)]
    found = client.search("a tool", 2, where={"kind": "tool"}, turns=[Turn("user", "wood")])
    assert found.read is not None
    assert found.read.text == "wood a tool"
    assert len(client.search_all(["a", "b"], 2).results) == 2
    assert len(client.embeddings(["a"]).data[0].embedding) == 32
    assert client.rerank("a tool", ["a bird", "a tool"]).results[0].index == 1
    explained = client.explain("a tool", "saw").explanation
    assert explained is not None
    assert explained["kind"] == "sentences"
    assert client.feedback("a tool", "saw", grade=2, index="again").kept == 1
    assert json.loads((server.service.settings.state / "feedback.jsonl").read_text().splitlines()[-1])["grade"] == 2
    with pytest.raises(ServiceError, match=r"there is no index") as caught:
        client.search("a", index="none")
    assert (caught.value.status, caught.value.kind) == (404, "not_found")
    with pytest.raises(ServiceError, match=r"no answer .* Is the server running there"):
        Client("http://127.0.0.1:9").search("a")
    with pytest.raises(ServiceError, match="is no address of a server"):
        Client("file:///etc/passwd").search("a")


def test_the_command_line_asks_a_server_as_it_asks_a_folder(server: Running, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    def results(*arguments: object) -> list[tuple[str, str, float]]:
        said = command("search", *arguments, "--json", "-k", 2, "--filter", "kind=animal")
        assert said.status == 0, said.err
        return [(one["id"], one["text"], pytest.approx(one["score"], abs=1e-5)) for one in json.loads(said.out)["results"]]

    assert results(QUERY, "--url", server.url) == results("again", QUERY, "--url", server.url) == results(whole, QUERY)
    (tmp_path / "queries.tsv").write_text("q1\ta bird\nq2\ta tool\n")
    runs = [tmp_path / name for name in ("there.trec", "here.trec")]
    assert command("search", "notes", "--url", server.url, "--queries", tmp_path / "queries.tsv", "--trec", runs[0]).status == 0
    assert command("search", whole, "--queries", tmp_path / "queries.tsv", "--trec", runs[1]).status == 0
    there, here = ([line.split()[:4] for line in run.read_text().splitlines()] for run in runs)
    assert there == here

    def talk(*arguments: object) -> list[Any]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("a rodent\n/take 1\nthat builds\n/why\n"))
        said = command("chat", *arguments, "--json", "-k", 2)
        assert said.status == 0, said.err
        return [json.loads(line) for line in said.out.splitlines()]

    assert shape(talk("--url", server.url)) == shape(talk(whole, "--reads", "all"))
    assert "give a query, a file" in command("search", "notes", "x", "--url", server.url, "--queries", "y").error
    assert "--student is for an index on this machine" in command("chat", "--url", server.url, "--student", whole).error


def shape(value: Any) -> Any:
    """A value with its numbers to 4 digits."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


@pytest.mark.parametrize("path", ["/v1/documents/owl", "/v1/indexes", "/health", "/nowhere"])
def test_no_page_of_another_site_may_embed_an_answer(server: Running, path: str) -> None:
    headers = server.ask("GET", path).headers
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
