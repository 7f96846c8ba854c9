"""Milvus Lite over the wire against brute force: what is uploaded is found with the same scores, once, and by its own student alone."""

from __future__ import annotations

import importlib.util
import itertools
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retriever.errors import ConfigError, MissingExtraError, SearchIndexError
from retriever.filters import Condition, met
from retriever.ragged import Ragged
from retriever.remote import milvus
from retriever.remote.addresses import parse_address
from retriever.remote.engine import Wanted
from retriever.remote.index import RemoteIndex, connect, open_remote
from retriever.remote.upload import upload
from retriever.tables.fields import FieldColumns
from tests.remote_material import HOSTILE, D, N, V, agree, blocks_of, columns, conditions, documents, encodings_of, expected, facts_of, queries_of

KINDS = ["dense", "sparse"]
MISSING = [name for name in ("pymilvus", "milvus_lite") if importlib.util.find_spec(name) is None]
needs_milvus = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server without its collection's name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", folder, "--host", "127.0.0.1", "--port", str(port)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                for _ in range(600):
                    with socket.socket() as attempt:
                        if process.poll() is not None or attempt.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.1)
                yield f"milvus://127.0.0.1:{port}"
            finally:
                process.terminate()


@pytest.fixture(scope="module")
def uploaded(server: str) -> str:
    for kind in KINDS:
        upload(f"{server}/{kind}", blocks_of(kind), facts_of(kind))
    return server


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> FieldColumns:
    return columns(tmp_path_factory.mktemp("fields"))


@pytest.fixture
def index(uploaded: str, request: pytest.FixtureRequest) -> Iterator[RemoteIndex]:
    opened = open_remote(f"{uploaded}/{request.param}", "student-1")
    yield opened
    opened.close()


@pytest.fixture
def new(server: str) -> Callable[[], str]:
    """Addresses of collections that are not there yet."""
    return lambda: f"{server}/new_{next(NUMBERS)}"


# Searching


@needs_milvus
@pytest.mark.parametrize(("index", "kind"), [(kind, kind) for kind in KINDS], indirect=["index"])
@pytest.mark.parametrize("k", [1, 5, N, 10 * N])
def test_a_search_finds_what_brute_force_finds(index: RemoteIndex, kind: str, k: int) -> None:
    assert (len(index), index.dimensions) == (N, V if kind == "sparse" else D)
    agree(index.search(queries_of(kind), k), expected(kind), k)


@needs_milvus
@pytest.mark.parametrize("index", ["dense"], indirect=True)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=conditions(text_ranges=True))
def test_a_filter_lets_through_what_the_local_one_does(index: RemoteIndex, fields: FieldColumns, asked: list[Condition]) -> None:
    agree(index.search(queries_of("dense"), N, asked), expected("dense"), N, met(fields, asked))


@needs_milvus
@pytest.mark.parametrize("index", ["dense"], indirect=True)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_value_is_never_read_as_a_part_of_the_filter(index: RemoteIndex, text: str) -> None:
    right = [row for row, document in enumerate(documents()) if document.fields.get("language") == text]
    assert sorted(point.row for point in index.search(queries_of("dense")[:1], N, [Condition("language", "=", text)])[0]) == right
    with pytest.raises(ConfigError, match="no document has a field"):
        index.search(queries_of("dense"), N, [Condition(f'language"] == "{text}" or fields["year', "=", text)])


def test_a_filter_is_written_with_escaped_texts_and_every_condition_in_brackets() -> None:
    wanted = [
        Wanted("language", "text", "=", ('a"\\\n',)),
        Wanted("year", "number", "!=", (2000.0,)),
        Wanted("topics", "texts", "in", ("x", "y")),
        Wanted("open", "truth", "=", (True,)),
    ]
    assert milvus.expression(wanted) == (
        r'(fields["language"] == "a\"\\\n") and (exists fields["year"] and not (fields["year"] == 2000.0))'
        r' and (json_contains(fields["topics"], "x") or json_contains(fields["topics"], "y")) and (fields["open"] == true)'
    )


@needs_milvus
def test_a_field_whose_name_could_be_read_as_a_filter_cannot_be_asked_for(new: Callable[[], str]) -> None:
    name = 'x"] == 1 or fields["y'
    document = documents(1)[0]
    address = new()
    upload(address, [([type(document)("d", "text", fields={name: 1.0})], encodings_of("dense")[:1])], facts_of("dense", 1))
    index = open_remote(address)
    assert index.search(queries_of("dense")[:1], 1)[0][0].document.fields == {name: 1.0}
    with pytest.raises(ConfigError, match="only letters, digits, _ and - are safe in a name"):
        index.search(queries_of("dense"), 1, [Condition(name, "=", 1.0)])
    index.close()


@needs_milvus
@pytest.mark.parametrize("index", ["sparse"], indirect=True)
def test_queries_of_another_kind_or_dimension_are_refused(index: RemoteIndex) -> None:
    beyond = Ragged(np.array([0, 1]), {"dimensions": np.array([V], dtype=np.int32), "values": np.ones(1, dtype=np.float32)})
    for queries in (np.zeros((1, V), dtype=np.float32), beyond):
        with pytest.raises(SearchIndexError, match=r"holds sparse encodings of 40 dimensions, a query has .*Use the student student-1$"):
            index.search(queries, 3)


# Uploading


@needs_milvus
def test_another_student_is_refused_by_name(uploaded: str) -> None:
    with pytest.raises(SearchIndexError, match=r"was made with the student student-1, and the queries' student is student-2"):
        open_remote(f"{uploaded}/dense", "student-2")
    with pytest.raises(SearchIndexError, match=r"holds another upload, of encoder student-1 and not student-2\. Give another name"):
        upload(f"{uploaded}/dense", blocks_of("dense"), facts_of("dense", encoder="student-2"))


def test_late_interaction_is_refused_with_what_is_possible() -> None:
    with pytest.raises(ConfigError, match=r"Milvus compares no token vectors by MaxSim; .*Upload to qdrant://, which keeps all three"):
        upload("milvus://127.0.0.1/docs", blocks_of("late_interaction"), facts_of("late_interaction"))


@needs_milvus
@pytest.mark.parametrize("kind", KINDS)
def test_an_upload_that_was_stopped_is_no_index_and_continues_without_sending_anything_twice(new: Callable[[], str], kind: str) -> None:
    address = new()

    def stopped() -> Iterator[Any]:
        blocks = blocks_of(kind)
        yield next(blocks)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(address, stopped(), facts_of(kind))
    with pytest.raises(SearchIndexError, match=r"13 of 30 documents are uploaded\. Run the upload again, it continues"):
        open_remote(address)
    engine = connect(parse_address(address), create=False)
    engine.write([20], [documents()[20]], encodings_of(kind)[np.array([20])])
    engine.close()
    done: list[int] = []
    result = upload(address, blocks_of(kind, size=7), facts_of(kind), done.append)
    assert (result.documents, result.sent, result.recall, sum(done)) == (N, N - 14, 1.0, N)
    assert upload(address, blocks_of(kind), facts_of(kind)).sent == 0
    index = open_remote(address)
    agree(index.search(queries_of(kind), N), expected(kind), N)
    index.close()


@needs_milvus
def test_several_writers_send_every_document_once_and_a_failure_stops_them(new: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus.MilvusEngine, "workers", property(lambda self: 4))
    monkeypatch.setattr("retriever.remote.upload.REQUEST_BYTES", 500)
    monkeypatch.setattr("retriever.remote.upload.PAUSES", (0.0, 0.0))
    write, failures = milvus.MilvusEngine.write, itertools.count()

    def failing(self: milvus.MilvusEngine, rows: Any, *others: Any) -> None:
        if 5 in rows and next(failures) < tolerated:
            raise SearchIndexError("busy")
        write(self, rows, *others)

    monkeypatch.setattr(milvus.MilvusEngine, "write", failing)
    tolerated = 2
    assert upload(new(), blocks_of("sparse"), facts_of("sparse")).sent == N
    tolerated = 100
    with pytest.raises(SearchIndexError, match=r"^busy$"):
        upload(new(), blocks_of("sparse"), facts_of("sparse"))


@needs_milvus
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1])
def test_a_collection_may_have_one_document_or_none(new: Callable[[], str], kind: str, count: int) -> None:
    address, rows = new(), np.arange(3, 3 + count)
    assert upload(address, [([documents()[row] for row in rows], encodings_of(kind)[rows])], facts_of(kind, count)).documents == count
    index = open_remote(address)
    assert [[point.document.doc_id for point in points] for points in index.search(encodings_of(kind)[np.array([3])], 5)] == [["d/3é"] * count]
    index.close()


@needs_milvus
def test_a_larger_collection_has_a_graph_that_is_compared_with_exact_search(new: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus, "EXACT_DOCUMENTS", 10)
    monkeypatch.setattr("retriever.remote.index.EXACT_DOCUMENTS", 10)
    address = new()
    assert upload(address, blocks_of("dense"), facts_of("dense")).recall >= 0.9
    engine = connect(parse_address(address), create=False)
    assert isinstance(engine, milvus.MilvusEngine)
    assert engine.client.describe_index(address.rpartition("/")[2], "vector")["index_type"] == "HNSW"
    engine.close()


@settings(deadline=None)
@given(st.text(alphabet="aé字😀", max_size=30))
def test_a_long_text_is_cut_between_characters_and_joined_again(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(milvus, "TEXT_BYTES", 7)
        pieces = milvus._pieces(text)
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= 7 for piece in pieces)


# What is not there


@needs_milvus
def test_what_is_not_there_or_is_anothers_is_one_line(uploaded: str) -> None:
    from pymilvus import MilvusClient

    with pytest.raises(SearchIndexError, match=r'there is no collection "docs"\. Upload one first'):
        open_remote(f"{uploaded}/docs")
    client = MilvusClient(uploaded.replace("milvus:", "http:"))
    client.create_collection("theirs", dimension=2)
    with pytest.raises(SearchIndexError, match=r"was made by something else\. Give another name"):
        upload(f"{uploaded}/theirs", blocks_of("dense"), facts_of("dense"))


@pytest.mark.skipif("pymilvus" in MISSING, reason="pymilvus is not installed")
def test_an_engine_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(milvus, "FIRST_ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("MILVUS_TOKEN", "s3cret")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        for listening in (False, True):
            if listening:
                silent.listen()
            with pytest.raises(
                SearchIndexError, match=rf"^milvus://127\.0\.0\.1:{port}/docs: Milvus does not answer \([^\n]+\)\. Start it, or mend the address$"
            ) as refusal:
                open_remote(f"milvus://127.0.0.1:{port}/docs")
            assert "s3cret" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingExtraError, match=r'"retriever-distill\[milvus\]"'):
        open_remote("milvus://127.0.0.1/docs")
