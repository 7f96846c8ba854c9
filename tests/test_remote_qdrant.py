"""Qdrant's own local mode against brute force: what is uploaded is found with the same scores, once, and by its own student alone."""

from __future__ import annotations

import importlib.util
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from retriever.errors import ConfigError, DataError, MissingExtraError, RetrieverError, SearchIndexError
from retriever.filters import Condition, met
from retriever.ragged import Ragged
from retriever.remote import qdrant
from retriever.remote.addresses import is_address, parse_address
from retriever.remote.comparison import exact_scores
from retriever.remote.index import RemoteIndex, connect, open_remote
from retriever.remote.upload import upload
from retriever.tables.fields import FieldColumns
from retriever.types import Document
from tests.remote_material import D, N, V, agree, blocks_of, columns, conditions, documents, encodings_of, expected, facts_of, queries_of

KINDS = ["dense", "sparse", "late_interaction"]
needs_qdrant = pytest.mark.skipif(importlib.util.find_spec("qdrant_client") is None, reason="qdrant-client is not installed")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for kind in KINDS:
            upload(f"qdrant+local://{name}/{kind}", blocks_of(kind), facts_of(kind))
        yield Path(name)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> FieldColumns:
    return columns(tmp_path_factory.mktemp("fields"))


@pytest.fixture
def index(folder: Path, request: pytest.FixtureRequest) -> Iterator[RemoteIndex]:
    opened = open_remote(f"qdrant+local://{folder}/{request.param}", "student-1")
    yield opened
    opened.close()


# Addresses


@pytest.mark.parametrize(
    ("text", "place", "name"),
    [
        ("qdrant://host/docs", "http://host:6333", "docs"),
        ("qdrant://host:1234/docs-2", "http://host:1234", "docs-2"),
        ("qdrant+https://host:443/docs", "https://host:443", "docs"),
        ("qdrant+local:///some/where/docs", Path("/some/where"), "docs"),
        ("milvus://[::1]/docs", "http://[::1]:19530", "docs"),
        ("milvus+https://host/docs", "https://host:19530", "docs"),
    ],
)
def test_an_address_names_an_engine_and_a_collection(text: str, place: str | Path, name: str) -> None:
    address = parse_address(text)
    assert (address.place, address.collection, str(address), is_address(text)) == (place, name, text, True)


@pytest.mark.parametrize(
    "text",
    [
        "folder/docs",
        "",
        "redis://host/docs",
        "qdrant://host",
        "qdrant://host/",
        "qdrant:///docs",
        "qdrant://host/a/b",
        "qdrant://host:port/docs",
        "qdrant://host:99999/docs",
        "qdrant://host/do cs",
        "qdrant://[::1/docs",
        "qdrant+local://folder/docs",
        "qdrant+local:///docs",
        "milvus://host/docs-2",
        "milvus://host/2docs",
        "milvus://host/docs.db",
    ],
)
def test_a_wrong_address_is_one_line_with_the_right_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r"[^\n]*qdrant\+local:///FOLDER/NAME[^\n]*$"):
        parse_address(text)


@pytest.mark.parametrize("text", ["qdrant://me:s3cret@host/docs", "qdrant://s3cret@host/docs", "milvus://host/docs?token=s3cret", "milvus://host/docs#s3cret"])
def test_a_key_in_an_address_is_refused_and_not_printed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Put the key into the environment variable (QDRANT_API_KEY|MILVUS_TOKEN)") as refusal:
        parse_address(text)
    assert "s3cret" not in str(refusal.value)


def test_the_key_comes_from_the_environment_and_stands_in_no_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", " s3cret ")
    address = parse_address("qdrant+https://host/docs")
    assert address.key == "s3cret"
    assert "s3cret" not in repr(address) + str(address)
    monkeypatch.delenv("QDRANT_API_KEY")
    assert address.key is None


# Searching


@needs_qdrant
@pytest.mark.parametrize(("index", "kind"), [(kind, kind) for kind in KINDS], indirect=["index"])
@pytest.mark.parametrize("k", [1, 5, N, 10 * N])
def test_a_search_finds_what_brute_force_finds(index: RemoteIndex, kind: str, k: int) -> None:
    assert (len(index), index.dimensions) == (N, V if kind == "sparse" else D)
    agree(index.search(queries_of(kind), k), expected(kind), k)


@needs_qdrant
@pytest.mark.parametrize("index", ["dense"], indirect=True)
def test_no_document_or_query_may_be_asked_for_and_equal_ones_come_in_their_order(index: RemoteIndex) -> None:
    assert index.search(queries_of("dense"), 0) == [[], [], [], []]
    assert index.search(np.zeros((0, D), dtype=np.float32), 3) == []
    rows = [point.row for point in index.search(queries_of("dense")[:1], N)[0]]
    assert rows.index(N - 1) == rows.index(0) + 1


@needs_qdrant
@pytest.mark.parametrize("index", ["dense"], indirect=True)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=conditions(text_ranges=False))
def test_a_filter_lets_through_what_the_local_one_does(index: RemoteIndex, fields: FieldColumns, asked: list[Condition]) -> None:
    agree(index.search(queries_of("dense"), N, asked), expected("dense"), N, met(fields, asked))


@needs_qdrant
@pytest.mark.parametrize("index", ["dense"], indirect=True)
@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Condition("colour", "=", "red"), 'no document has a field "colour"'),
        (Condition("year", "=", "new"), "holds numbers"),
        (Condition("year", "<", float("inf")), "is no number to compare with"),
        (Condition("topics", "<", "law"), "asked for by =, != and in"),
        (Condition("language", "<", "fr"), "Qdrant orders numbers and dates such as 2024-05-31"),
    ],
)
def test_a_condition_that_the_fields_cannot_answer_is_refused(index: RemoteIndex, condition: Condition, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        index.search(queries_of("dense"), 3, [condition])


@needs_qdrant
@pytest.mark.parametrize("index", ["dense"], indirect=True)
def test_queries_of_another_kind_or_dimension_are_refused(index: RemoteIndex) -> None:
    for queries in (np.zeros((1, D + 1), dtype=np.float32), queries_of("sparse"), queries_of("late_interaction")):
        with pytest.raises(SearchIndexError, match=r"holds dense encodings of 8 dimensions, a query has .*Use the student student-1$"):
            index.search(queries, 3)
    with pytest.raises(SearchIndexError, match="a query has an encoding that is not finite"):
        index.search(np.full((1, D), np.nan, dtype=np.float32), 3)


@needs_qdrant
@pytest.mark.parametrize("index", ["sparse"], indirect=True)
def test_a_sparse_query_with_a_term_beyond_the_vocabulary_is_refused(index: RemoteIndex) -> None:
    query = Ragged(np.array([0, 1]), {"dimensions": np.array([V], dtype=np.int32), "values": np.ones(1, dtype=np.float32)})
    with pytest.raises(SearchIndexError, match=f"a query has the dimension {V}"):
        index.search(query, 3)


# Uploading


@needs_qdrant
def test_another_student_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(SearchIndexError, match=r"was made with the student student-1, and the queries' student is student-2"):
        open_remote(f"qdrant+local://{folder}/dense", "student-2")
    with pytest.raises(SearchIndexError, match=r"holds another upload, of encoder student-1 and not student-2\. Give another name"):
        upload(f"qdrant+local://{folder}/dense", blocks_of("dense"), facts_of("dense", encoder="student-2"))
    with pytest.raises(SearchIndexError, match="holds another upload, of documents 30 and not 20"):
        upload(f"qdrant+local://{folder}/dense", blocks_of("dense", 20), facts_of("dense", 20))


@needs_qdrant
def test_an_upload_that_was_stopped_is_no_index_and_continues_without_sending_anything_twice(tmp_path: Path) -> None:
    address = f"qdrant+local://{tmp_path}/docs"

    def stopped() -> Iterator[Any]:
        blocks = blocks_of("dense")
        yield next(blocks)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(address, stopped(), facts_of("dense"))
    with pytest.raises(SearchIndexError, match=r"13 of 30 documents are uploaded\. Run the upload again, it continues"):
        open_remote(address)
    engine = connect(parse_address(address), create=False)
    engine.write([20], [documents()[20]], encodings_of("dense")[np.array([20])])
    engine.close()
    done: list[int] = []
    uploaded = upload(address, blocks_of("dense", size=7), facts_of("dense"), done.append)
    assert (uploaded.documents, uploaded.sent, uploaded.recall, sum(done)) == (N, N - 14, 1.0, N)
    assert upload(address, blocks_of("dense"), facts_of("dense")).sent == 0
    index = open_remote(address)
    agree(index.search(queries_of("dense"), N), expected("dense"), N)
    index.close()


@needs_qdrant
def test_a_document_that_the_engine_holds_with_another_encoding_is_noticed(tmp_path: Path) -> None:
    address = f"qdrant+local://{tmp_path}/docs"
    upload(address, blocks_of("dense"), facts_of("dense"))
    engine = connect(parse_address(address), create=False)
    engine.write([3], [documents()[3]], 100 * encodings_of("dense")[np.array([4])])
    engine.close()
    with pytest.raises(SearchIndexError, match=r"row 3 has the score .* by its encoding\. Delete the collection, and upload it again"):
        upload(address, blocks_of("dense"), facts_of("dense"))


@needs_qdrant
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1])
def test_a_collection_may_have_one_document_or_none(tmp_path: Path, kind: str, count: int) -> None:
    address = f"qdrant+local://{tmp_path}/docs"
    rows = np.arange(3, 3 + count)
    uploaded = upload(address, [([documents()[row] for row in rows], encodings_of(kind)[rows])], facts_of(kind, count))
    assert (uploaded.documents, uploaded.recall) == (count, 1.0)
    index = open_remote(address)
    assert [[point.document.doc_id for point in points] for points in index.search(encodings_of(kind)[np.array([3])], 5)] == [["d/3é"] * count]
    index.close()


@needs_qdrant
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    address = f"qdrant+local://{tmp_path}/docs"
    with pytest.raises(SearchIndexError, match=r"10 documents were given, 10 are there, and there should be 30"):
        upload(address, blocks_of("dense", 10), facts_of("dense"))
    with pytest.raises(SearchIndexError, match="more documents were given than the 30 that there should be"):
        upload(address, [*blocks_of("dense"), *blocks_of("dense", 1)], facts_of("dense"))
    with pytest.raises(SearchIndexError, match="a block has 2 documents and 1 encodings"):
        upload(address, [(documents(2), encodings_of("dense")[:1])], facts_of("dense"))
    with pytest.raises(SearchIndexError, match="a document has encodings of another kind"):
        upload(address, blocks_of("sparse"), facts_of("dense"))
    mixed = [Document("a", "", fields={"year": 1}), Document("b", "", fields={"year": "new"})]
    with pytest.raises(DataError, match="document b: the field \"year\" is 'new', in documents before it is a number"):
        upload(f"qdrant+local://{tmp_path}/other", [(mixed, encodings_of("dense")[:2])], facts_of("dense", 2))
    with pytest.raises(ConfigError, match='a student of kind "cross_encoder" has no encodings'):
        facts_of("cross_encoder")


def test_large_encodings_are_sent_in_several_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qdrant_client")
    monkeypatch.setattr("retriever.remote.upload.REQUEST_BYTES", 500)
    requests: list[int] = []
    write = qdrant.QdrantEngine.write

    def counted(self: qdrant.QdrantEngine, rows: Any, *others: Any) -> None:
        requests.append(len(rows))
        write(self, rows, *others)

    monkeypatch.setattr(qdrant.QdrantEngine, "write", counted)
    upload(f"qdrant+local://{tmp_path}/docs", blocks_of("dense", 6), facts_of("dense", 6))
    assert requests == [2, 2, 1, 1]  # 160 bytes of numbers each; of text 0, 24, 48, 0, very many and 48


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_scores_that_an_upload_is_compared_with_are_those_of_brute_force(kind: str) -> None:
    exact, slow = exact_scores(queries_of(kind), encodings_of(kind)), expected(kind)
    asked = queries_of(kind).counts > 0 if kind != "dense" else np.ones(4, dtype=bool)
    np.testing.assert_allclose(exact[asked], np.where(np.isfinite(slow[asked]), slow[asked], 0.0 if kind == "sparse" else -np.inf), rtol=1e-5, atol=1e-5)


# What is not there


@needs_qdrant
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # the client leaves its lock open when it cannot have it
def test_what_is_not_there_or_is_anothers_is_one_line(tmp_path: Path, folder: Path) -> None:
    from qdrant_client import QdrantClient, models

    with pytest.raises(SearchIndexError, match=r"there is no folder .*nowhere\. Upload a collection first"):
        open_remote(f"qdrant+local://{tmp_path}/nowhere/docs")
    with pytest.raises(SearchIndexError, match=r'there is no collection "docs"\. Upload one first'):
        open_remote(f"qdrant+local://{folder}/docs")
    client = QdrantClient(path=str(tmp_path))
    client.create_collection("theirs", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    client.create_collection("newer", vectors_config={}, metadata={"retriever_facts": {"layout": 99}})
    client.create_collection("odd", vectors_config={}, metadata={"retriever_facts": {"layout": 1, "colour": "red"}})
    with pytest.raises(SearchIndexError, match=r"the folder cannot be opened .*Close the program that uses it"):
        open_remote(f"qdrant+local://{tmp_path}/theirs")
    client.close()
    for name, said in (("theirs", "was made by something else"), ("newer", "has layout 99, this version reads 1"), ("odd", "its notes are damaged")):
        with pytest.raises(SearchIndexError, match=said):
            open_remote(f"qdrant+local://{tmp_path}/{name}")
    with pytest.raises(SearchIndexError, match=r"was made by something else\. Give another name"):
        upload(f"qdrant+local://{tmp_path}/theirs", blocks_of("dense"), facts_of("dense"))


@needs_qdrant
def test_an_engine_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant, "FIRST_ANSWER_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        for listening in (False, True):
            if listening:
                silent.listen()
            with pytest.raises(
                SearchIndexError, match=rf"^qdrant://127\.0\.0\.1:{port}/docs: Qdrant does not answer \([^\n]+\)\. Start it, or mend the address$"
            ):
                open_remote(f"qdrant://127.0.0.1:{port}/docs")


def test_a_missing_client_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingExtraError, match=r'"retriever-distill\[qdrant\]"'):
        upload(f"qdrant+local://{tmp_path}/docs", blocks_of("dense"), facts_of("dense"))
    assert issubclass(MissingExtraError, RetrieverError)
