"""Queries that may find a part of the documents only: every way to retrieve against filtering afterwards what everything would find."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from retriever.bm25 import BM25, build_bm25
from retriever.candidates import bm25_run, hybrid_run, index_run
from retriever.collection import Collection, write_collection
from retriever.conversations.reading import ConversationReader
from retriever.encodings import Vectors, encode_collection
from retriever.errors import ConfigError, DataError
from retriever.index.changes import publish
from retriever.index.snapshot import Snapshot
from retriever.indexing.flat import of_vectors
from retriever.remote.engine import Point
from retriever.remote.search import RemoteSearch
from retriever.resources import Resources
from retriever.runs import Run
from retriever.scopes import by_conditions
from retriever.scores.scoring import CandidatePairs
from retriever.search import SearchIndex, open_index
from retriever.settings.index import FlatSettings
from retriever.settings.teacher import EmbeddingSettings
from retriever.students import dense
from retriever.teachers.embedding import EmbeddingTeacher
from retriever.types import Document, Query, Turn

WORDS = ("owl", "moth", "hammer", "nail", "night", "hunt", "wood", "iron")
N, DEPTH = 60, 7
SCOPES: list[dict[str, Any]] = [
    {},
    {"kind": "animal"},
    {"kind": "tool", "split": "test"},
    {"year": {">=": 2010}},
    {"split": ["train", "dev"]},
    {"kind": "nothing"},
]


class WordStudent:
    """A vector has the counts of eight words, and something of the text's length so that few scores are equal."""

    kind = "dense"
    identity = document_identity = "words"
    dimensions = len(WORDS) + 1
    unit = "dot"

    def encode_queries(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        return np.stack([vector(query.text) for query in queries])

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        return np.stack([vector(document.full_text) for document in documents])

    def score(self, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray((queries * documents).sum(axis=1))


def vector(text: str) -> NDArray[np.float32]:
    return np.array([*(text.split().count(word) for word in WORDS), len(text) / 100], dtype=np.float32)


def words(random: np.random.Generator, most: int) -> str:
    return " ".join(random.choice(WORDS, size=random.integers(1, most)))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    random = np.random.default_rng(1)
    documents = [
        Document(
            f"d{number}",
            words(random, 12),
            fields={
                "kind": str(random.choice(["animal", "tool", "nothing else"])),
                "split": str(random.choice(["train", "dev", "test"])),
                "year": 2000 + number % 20,
            },
        )
        for number in range(N)
    ]
    return write_collection(tmp_path_factory.mktemp("scopes") / "words", documents)


@pytest.fixture(scope="module")
def queries() -> dict[str, Query]:
    random = np.random.default_rng(2)
    return {f"q{number}": Query(f"q{number}", words(random, 4), among=SCOPES[number % len(SCOPES)]) for number in range(20)}


@pytest.fixture(scope="module")
def student() -> WordStudent:
    return WordStudent()


@pytest.fixture(scope="module")
def vectors(student: WordStudent, collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return encode_collection(student, collection, tmp_path_factory.mktemp("scopes") / "vectors")


@pytest.fixture(scope="module")
def index(student: WordStudent, vectors: Vectors, collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    folder = tmp_path_factory.mktemp("scopes")
    (folder / "student").mkdir()
    publish(folder / "index", FlatSettings(), student.kind, folder / "student", student, vectors, collection)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "load_folder", lambda *_: student)
        return open_index(folder)


@pytest.fixture(scope="module")
def bm25(collection: Collection) -> BM25:
    return build_bm25(document.full_text for document in collection.documents())


def meets(document: Document, among: dict[str, Any]) -> bool:
    """The conditions of SCOPES, written out."""
    fields = document.fields
    if "year" in among:
        return bool(fields["year"] >= 2010)
    if "split" in among and "kind" not in among:
        return fields["split"] in among["split"]
    return all(fields[name] == value for name, value in among.items())


def unscoped(queries: dict[str, Query]) -> dict[str, Query]:
    return {query_id: dataclasses.replace(query, among={}) for query_id, query in queries.items()}


def filtered(everything: Run, queries: dict[str, Query], collection: Collection) -> dict[str, list[tuple[str, float]]]:
    """What remains of a run over all documents."""
    documents = {document.doc_id: document for document in collection.documents()}
    return {
        query_id: [(doc_id, score) for doc_id, score in everything[query_id] if meets(documents[doc_id], dict(query.among))]
        for query_id, query in queries.items()
    }


def same(run: Run, expected: dict[str, list[tuple[str, float]]]) -> None:
    """The best of what was expected; of equal scores at the end of a list, either document."""
    assert list(run.query_ids) == list(expected)
    for query_id, found in expected.items():
        np.testing.assert_allclose([score for _, score in run[query_id]], [score for _, score in found[:DEPTH]], rtol=1e-5)
        scores = dict(found)
        assert all(scores[doc_id] == pytest.approx(score, rel=1e-5) for doc_id, score in run[query_id])


# Every way to retrieve


def test_some_documents_meet_each_scope_but_the_last(collection: Collection) -> None:
    counts = [sum(meets(document, scope) for document in collection.documents()) for scope in SCOPES]
    assert (counts[0], counts[3], counts[5]) == (N, N // 2, 0)
    assert all(1 < count < N for count in counts[1:5])


@pytest.mark.parametrize("batch", [1, 6, 7, 256])
def test_an_index_in_memory_finds_the_best_of_what_each_query_may_find(
    student: WordStudent, vectors: Vectors, collection: Collection, queries: dict[str, Query], batch: int
) -> None:
    everything = index_run("all", student, of_vectors(vectors), collection, unscoped(queries), N)
    same(index_run("own", student, of_vectors(vectors), collection, queries, DEPTH, batch=batch), filtered(everything, queries, collection))


def test_bm25_finds_the_best_of_what_each_query_may_find(bm25: BM25, collection: Collection, queries: dict[str, Query]) -> None:
    everything = bm25_run("all", bm25, collection, unscoped(queries), N)
    same(bm25_run("own", bm25, collection, queries, DEPTH), filtered(everything, queries, collection))


def test_an_index_on_disk_finds_the_best_of_what_each_query_may_find(index: SearchIndex, collection: Collection, queries: dict[str, Query]) -> None:
    expected = filtered(index.run(unscoped(queries), N), queries, collection)
    same(index.run(queries, DEPTH), expected)
    for query_id, query in queries.items():
        hits = index.hits(query, DEPTH)
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected[query_id][:DEPTH]], rel=1e-5)
        assert all(meets(hit.document, dict(query.among)) for hit in hits)


def test_conditions_of_a_search_are_added_to_the_query_s_own(index: SearchIndex, collection: Collection) -> None:
    query = Query("q", "owl moth", among={"kind": "animal"})
    later = [document.doc_id for document in collection.documents() if document.fields["kind"] == "animal" and document.fields["year"] >= 2015]
    assert 0 < len(later) < N
    assert {hit.document.doc_id for hit in index.hits(query, N, {"year": {">=": 2015}})} == set(later)
    assert {doc_id for doc_id, _ in index.run({"q": query}, N, where={"year": {">=": 2015}})["q"]} == set(later)


def test_a_hybrid_fuses_what_both_find_among_what_each_query_may_find(
    index: SearchIndex, bm25: BM25, vectors: Vectors, collection: Collection, queries: dict[str, Query]
) -> None:
    run = hybrid_run(bm25, index.snapshot, vectors, collection, queries, DEPTH, ConversationReader())
    parts = (bm25_run("bm25", bm25, collection, queries, DEPTH), index.run(queries, DEPTH))
    for query_id in queries:
        assert {doc_id for doc_id, _ in run[query_id]} == {doc_id for part in parts for doc_id, _ in part[query_id]}


def test_a_collection_of_an_engine_is_asked_with_each_query_s_conditions(
    student: WordStudent, collection: Collection, vectors: Vectors, queries: dict[str, Query]
) -> None:
    documents = list(collection.documents())
    asked: list[int] = []

    class Remote:
        def search(self, encoded: NDArray[np.float32], k: int, conditions: Sequence[Any]) -> list[list[Point]]:
            asked.append(len(encoded))
            (scope,) = [scope for scope in SCOPES if conditions_of(scope) == list(conditions)]
            rows = [row for row, document in enumerate(documents) if meets(document, scope)]
            products = encoded @ vectors.rows(np.array(rows, dtype=np.int64)).T if rows else np.zeros((len(encoded), 0))
            order = [sorted(range(len(rows)), key=lambda place, one=one: -one[place])[:k] for one in products]
            return [[Point(rows[place], float(one[place]), documents[rows[place]]) for place in places] for places, one in zip(order, products, strict=True)]

    remote: Any = Remote()
    search = RemoteSearch(remote, student)
    everything = index_run("all", student, of_vectors(vectors), collection, unscoped(queries), N)
    same(search.run(queries, DEPTH, "remote"), filtered(everything, queries, collection))
    assert asked == [4, 4, 3, 3, 3, 3]
    hits = search.hits(queries["q1"], DEPTH)
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in filtered(everything, queries, collection)["q1"][:DEPTH]], rel=1e-5)


def conditions_of(scope: dict[str, Any]) -> list[Any]:
    from retriever.filters import conditions_from

    return conditions_from(scope)


def test_queries_without_conditions_are_searched_as_before_a_batch_at_a_time(
    student: WordStudent, vectors: Vectors, collection: Collection, queries: dict[str, Query]
) -> None:
    calls: list[tuple[int, int]] = []

    class Counting:
        def search(self, encoded: NDArray[np.float32], k: int) -> Any:  # takes no conditions: none may be given
            calls.append((len(encoded), k))
            return of_vectors(vectors).search(encoded, k)

    index_run("all", student, Counting(), collection, unscoped(queries), DEPTH, batch=8)
    assert calls == [(8, DEPTH), (8, DEPTH), (4, DEPTH)]


def test_a_condition_that_the_documents_cannot_answer_is_named(student: WordStudent, vectors: Vectors, collection: Collection, bm25: BM25) -> None:
    asked = {"q": Query("q", "owl", among={"kinds": "animal"})}
    with pytest.raises(ConfigError, match=r'among: no document has a field "kinds"; did you mean "kind"\?'):
        index_run("own", student, of_vectors(vectors), collection, asked, DEPTH)
    with pytest.raises(ConfigError, match='no document has a field "kinds"'):
        bm25_run("own", bm25, collection, asked, DEPTH)


# What a query keeps


@given(st.lists(st.sampled_from(SCOPES), max_size=12))
def test_queries_are_grouped_by_equal_conditions_and_none_is_lost(scopes: list[dict[str, Any]]) -> None:
    queries = [Query(str(number), "x", among=dict(reversed(scope.items()))) for number, scope in enumerate(scopes)]
    groups = by_conditions(queries)
    assert sorted(place for _, places in groups for place in places) == list(range(len(queries)))
    assert all(dict(among) == scopes[place] for among, places in groups for place in places)
    if queries:
        assert len(groups) == len({str(sorted(scope.items())) for scope in scopes})


def test_a_collection_keeps_conditions_and_its_fingerprint_knows_them(tmp_path: Path) -> None:
    documents, qrels = [Document("d", "owl", fields={"kind": "animal"})], {"test": {"q": {"d": 1}}}
    fingerprints = []
    for number, among in enumerate(({}, {"kind": "animal"}, {"kind": ["animal", "tool"]})):
        collection = write_collection(tmp_path / str(number), documents, [Query("q", "owl", among=among)], qrels)
        assert collection.queries("test")["q"].among == among
        fingerprints.append(collection.queries_fingerprint("test"))
    assert len(set(fingerprints)) == 3


@pytest.mark.parametrize(
    ("among", "words"),
    [
        ({"kinds": "animal"}, r'query 1: among: no document has a field "kinds"; did you mean "kind"\?'),
        ({"kind": 3}, 'query 1: among: the field "kind" holds texts, found 3'),
        ({"kind": {"~": "a"}}, '"~" is no comparison'),
    ],
)
def test_conditions_that_cannot_be_met_are_refused_when_the_collection_is_prepared(tmp_path: Path, among: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        write_collection(tmp_path / "c", [Document("d", "owl", fields={"kind": "animal"})], [Query("q", "owl", among=among)])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("reading", ["last", "all", "latest_first", "rewrite"])
def test_a_query_that_was_read_keeps_its_image_its_conditions_and_its_fields(reading: str) -> None:
    query = Query("q", "and at night?", (Turn("user", "what is an owl"),), Path("owl.png"), "c", {"human": "owls at night"}, {"domain": "birds"}, {"kind": "a"})
    read = ConversationReader(reading).read(query)
    assert (read.turns, read.image, read.conversation, read.fields, read.among) == ((), Path("owl.png"), "c", {"domain": "birds"}, {"kind": "a"})


def test_people_are_shown_the_name_of_an_image(tmp_path: Path) -> None:
    image = tmp_path / "owl.png"
    assert [Query("q", "", image=image).shown, Query("q", "an owl", image=image).shown, Query("q", "").shown] == ["owl.png", "an owl", ""]
    assert [Document("d", "", image=image).shown, Document("d", "hunts", "Owl").shown] == ["owl.png", "Owl hunts"]


# Image queries of a teacher


class BrightnessStudent(WordStudent):
    """Of an image its brightness, of a text its length."""

    identity = document_identity = "brightness"
    dimensions = 1

    def encode_queries(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        return np.stack([self.encode(query.image, query.text) for query in queries])

    def encode_documents(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        return np.stack([self.encode(document.image, document.text) for document in documents])

    def encode(self, image: Path | None, text: str) -> NDArray[np.float32]:
        if image is None:
            return np.array([len(text)], dtype=np.float32)
        with Image.open(image) as opened:
            return np.array([np.asarray(opened).mean()], dtype=np.float32)


def test_a_teacher_tells_image_queries_apart(tmp_path: Path) -> None:
    images = {value: tmp_path / f"{value}.png" for value in (3, 5)}
    for value, path in images.items():
        Image.new("L", (1, 1), value).save(path)
    documents = [Document("ten", "x" * 10), Document("two", "xx"), Document("seven", "x" * 7, image=None)]
    queries = {str(value): Query(str(value), "", image=path) for value, path in images.items()} | {"text": Query("text", "xxxx")}
    collection = write_collection(tmp_path / "c", documents, queries)
    student: Any = BrightnessStudent()
    encodings = encode_collection(student, collection, tmp_path / "vectors")
    resources: Any = Resources(collection, None, None, None, None, None)  # type: ignore[arg-type]
    teacher = EmbeddingTeacher(EmbeddingSettings(model="x"), student, encodings, resources)
    run = Run.from_dict("all", {query_id: {"ten": 3.0, "two": 2.0, "seven": 1.0} for query_id in queries})
    pairs = CandidatePairs.of(run, queries, collection).texts(np.arange(run.n_pairs))
    assert teacher.score(pairs).scores.tolist() == [30, 6, 21, 50, 10, 35, 40, 8, 28]


def test_pairs_of_different_images_are_scored_each(tmp_path: Path) -> None:
    documents = []
    for value in (3, 5, 5):
        path = tmp_path / f"{len(documents)}.png"
        Image.new("L", (1, 1), value).save(path)
        documents.append(Document(str(len(documents)), "", image=path))
    collection = write_collection(tmp_path / "c", documents, [Query("q", "a text")])
    run = Run.from_dict("all", {"q": {"0": 3.0, "1": 2.0, "2": 1.0}})
    keys = CandidatePairs.of(run, collection.queries("any"), collection).keys()
    assert keys.pending(np.zeros(3, dtype=np.bool_)).tolist() == [0, 1]  # the third has the second's pixels


def test_a_snapshot_takes_conditions(index: SearchIndex) -> None:
    assert isinstance(index.snapshot, Snapshot)
    rows, _ = index.snapshot.search(vector("owl")[None], N, conditions_of({"kind": "nothing"}))
    assert len(rows[0]) == 0
