"""Searching a folder: hits, runs and TREC files agree, and damage is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retriever.commands.queries_file import read_queries
from retriever.errors import ConfigError, DataError, SearchIndexError
from retriever.index.changes import publish
from retriever.runs import Run
from retriever.search import SearchIndex, open_index, snippet
from retriever.settings.index import FlatSettings
from retriever.types import Query
from tests.tiny_experiment import command


@pytest.fixture(scope="module")
def folder(finished_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index folder alone, far from the experiment that built it."""
    return shutil.copytree(finished_experiment / "work" / "tiny" / "index", tmp_path_factory.mktemp("elsewhere") / "animals")


@pytest.fixture(scope="module")
def index(folder: Path) -> SearchIndex:
    return open_index(folder)


def test_hits_are_numbered_from_one_best_first_and_carry_their_documents(index: SearchIndex) -> None:
    hits = index.hits("a rodent that builds dams", k=5)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    vectors = index.encoder.encode_documents([hit.document for hit in hits])
    query = index.encoder.encode_queries([Query("q", "a rodent that builds dams")])[0]
    assert [hit.score for hit in hits] == pytest.approx((vectors @ query).tolist(), abs=1e-5)
    assert all(hit.document.title and hit.document.text for hit in hits)


def test_a_query_may_be_a_text_or_a_query(index: SearchIndex) -> None:
    assert index.hits("a bird", 3) == index.hits(Query("any", "a bird"), 3)


def test_more_than_there_is_cannot_be_asked_for(index: SearchIndex) -> None:
    hits = index.hits("a bird", k=1000)
    assert len(hits) == len(index) == 60
    assert len({hit.document.doc_id for hit in hits}) == 60


def test_hits_runs_and_trec_files_agree(index: SearchIndex, folder: Path, tmp_path: Path) -> None:
    queries = {"q1": Query("q1", "a rodent that builds dams"), "q2": Query("q2", "tool that cuts wood")}
    run = index.run(queries, k=7)
    assert run.name == "animals"
    for query_id, query in queries.items():
        assert dict(run[query_id]) == {hit.document.doc_id: pytest.approx(hit.score, abs=1e-6) for hit in index.hits(query, 7)}
    (tmp_path / "queries.tsv").write_text("".join(f"{query_id}\t{query.text}\n" for query_id, query in queries.items()))
    said = command("search", folder, "--queries", tmp_path / "queries.tsv", "--trec", tmp_path / "out" / "run.trec", "-k", "7")
    assert (said.status, said.out, said.err) == (0, "", f"wrote {tmp_path / 'out' / 'run.trec'}\n")
    written = Run.read_trec(tmp_path / "out" / "run.trec")
    assert written.to_dict() == run.to_dict()
    lines = (tmp_path / "out" / "run.trec").read_text().splitlines()
    assert [line.split()[3] for line in lines] == [str(rank) for rank in [*range(1, 8)] * 2]


def test_what_is_printed_are_titles_scores_and_texts(index: SearchIndex, folder: Path) -> None:
    said = command("search", folder, "a rodent that builds dams", "-k", "2")
    assert (said.status, said.err) == (0, "")
    expected = []
    for hit in index.hits("a rodent that builds dams", 2):
        expected += [f"{hit.rank:>3}  {hit.score:.4f}  {hit.document.title}", f"             {hit.document.text}"]
    assert said.out.splitlines() == expected


def test_json_is_an_object_for_each_query(index: SearchIndex, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("a bird\n\na saw\n")
    said = command("search", folder, "--queries", tmp_path / "queries.txt", "-k", "2", "--json")
    assert (said.status, said.err) == (0, "")
    first, second = map(json.loads, said.out.splitlines())
    assert [(found["query_id"], found["query"]) for found in (first, second)] == [("1", "a bird"), ("3", "a saw")]  # a line's number is its id
    best = index.hits("a bird", 1)[0]
    assert first["results"][0] == {
        "rank": 1,
        "score": pytest.approx(best.score, abs=1e-6),
        "id": best.document.doc_id,
        "title": best.document.title,
        "text": best.document.text,
    }


def test_the_experiment_s_folder_leads_to_its_index(finished_experiment: Path, index: SearchIndex) -> None:
    assert open_index(finished_experiment / "work" / "tiny").hits("a bird", 3) == index.hits("a bird", 3)


def test_an_index_searches_after_its_experiment_is_gone(finished_experiment: Path, index: SearchIndex, tmp_path: Path) -> None:
    experiment = shutil.copytree(finished_experiment / "work" / "tiny", tmp_path / "experiment")
    (experiment / "index").rename(tmp_path / "index")
    shutil.rmtree(experiment)
    assert open_index(tmp_path / "index").hits("a bird", 3) == index.hits("a bird", 3)


def test_an_index_says_what_it_takes_on_disk(index: SearchIndex, folder: Path) -> None:
    assert index.bytes == (folder / "segments" / "000001" / "index.faiss").stat().st_size >= 60 * 32 * 4  # 60 vectors of 32 float32


def other_manifest(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def cut(name: str, length: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, length)


def student_of(folder: Path) -> Path:
    return next((folder / "students").iterdir())


def another_student(folder: Path) -> None:
    path = student_of(folder) / "sentence_bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_seq_length": 9}))


def other_segment(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "segments" / "000001" / "segment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


ONE = "segments/000001"
AGAIN = "Build the index again with: retriever index FILE.toml"
DAMAGE = {
    "no manifest": (lambda folder: (folder / "index.json").unlink(), "no index here (index.json is missing). Build one with: retriever index FILE.toml"),
    "cut manifest": (cut("index.json", 20), f"/index.json: damaged (Unterminated string starting at: line 3 column 3 (char 19)). {AGAIN}"),
    "list as manifest": (lambda folder: (folder / "index.json").write_text("[]"), f"/index.json: damaged (no JSON object). {AGAIN}"),
    "empty manifest": (lambda folder: (folder / "index.json").write_text('{"layout": 2}'), f"/index.json: damaged (number: field required). {AGAIN}"),
    "another layout": (other_manifest(layout=9), f": an index of layout 9; this version of retriever reads layout 2. {AGAIN}"),
    "segment outside": (other_manifest(segments=[{"name": "../x", "documents": 1}]), "/index.json: damaged (segments.0.name: string should match pattern"),
    "unknown student": (other_manifest(student_kind="dence"), 'unknown kind "dence"; did you mean "dense"?'),
    "unknown engine": (other_segment(kind="flaat"), 'unknown kind "flaat"; did you mean "flat"?'),
    "wrong count": (other_segment(documents=61), "60 vectors, 60 documents and 60 in the index disagree"),
    "other encoder": (other_segment(encoder="0" * 16), ": segment 000001 was built with the student 0000000000000000, the index has "),
    "other student": (another_student, " holds "),
    "no student": (lambda folder: shutil.rmtree(student_of(folder)), ": its student cannot be loaded (student.model: "),
    "cut student": (lambda folder: os.truncate(student_of(folder) / "model.safetensors", 1000), "/model.safetensors: the weights are cut or damaged ("),
    "no segment": (lambda folder: shutil.rmtree(folder / ONE), f"/{ONE}/segment.json: missing. {AGAIN}"),
    "no engine": (lambda folder: (folder / ONE / "index.faiss").unlink(), "/index.faiss: the index file is missing. Build it again with: retriever index"),
    "cut engine": (cut(f"{ONE}/index.faiss", 1000), "/index.faiss: the index file is cut or damaged. Build it again with: retriever index"),
    "empty engine": (cut(f"{ONE}/index.faiss", 0), "/index.faiss: the index file is cut or damaged. Build it again with: retriever index"),
    "no documents": (lambda folder: shutil.rmtree(folder / ONE / "documents"), f": its documents are missing or damaged. {AGAIN}"),
    "cut documents": (cut(f"{ONE}/documents/documents.arrow", 500), f": its documents are missing or damaged. {AGAIN}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_the_command_that_mends_it(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    harm, said = DAMAGE[damage]
    harm(copy)
    with pytest.raises((SearchIndexError, ConfigError)) as caught:
        open_index(copy)
    message = str(caught.value)
    assert message.startswith(str(copy))
    assert said.format(folder=copy) in message
    assert "\n" not in message


def test_vectors_of_another_student_are_refused(index: SearchIndex, tmp_path: Path, finished_experiment: Path) -> None:
    from retriever.collection import Collection
    from retriever.encodings import Vectors

    vectors = Vectors(tmp_path / "vectors", 60, 32, "another")
    collection = Collection(finished_experiment / "work" / "tiny" / "collection")
    with pytest.raises(SearchIndexError, match=r"these vectors were made by another student \(another, not [0-9a-f]{16}\)"):
        publish(tmp_path / "index", FlatSettings(), "dense", tmp_path, index.encoder, vectors, collection)
    assert not (tmp_path / "index" / "index.json").exists()


def test_a_snippet_is_the_stretch_with_most_of_the_query_s_words() -> None:
    text = " ".join(["filler"] * 30 + ["Beavers", "build", "dams."] + ["filler"] * 30)
    assert snippet(text, "which animals build dams", words=5) == "... filler filler Beavers build dams. ..."
    assert snippet("short text", "anything") == "short text"
    assert snippet("one two three", "zzz", words=2) == "one two ..."
    assert snippet("", "query") == ""
    assert snippet("a  b\nc", "") == "a b c"


def test_a_file_of_queries_has_ids_or_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "queries"
    path.write_text("q1\ta bird\n\nplain text, with commas\nq2\ta\ttab\n  \n", encoding="utf-8")
    assert read_queries(path) == {"q1": Query("q1", "a bird"), "3": Query("3", "plain text, with commas"), "q2": Query("q2", "a\ttab")}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ": holds no query. Write one a line: a text, or an id, a tab and a text"),
        (b"\n \n", ": holds no query. Write one a line: a text, or an id, a tab and a text"),
        (b"a\tx\nb\ty\na\tz\n", ":3: the query id a stands twice"),
        (b"text\n1\ttext\n", ":2: the query id 1 stands twice"),
        (b"a\tx\na b\ty\n", ":2: the id 'a b' contains white space, which TREC files cannot carry. Replace it, for example by _"),
        (b"\tx\n", ":1: the id '' is not a non-empty string"),
        (b"a\tx\nb\t \n", ":2: the query b is empty. Give it a text, or take the line out"),
        (b"a\t\xff\n", ": is not in UTF-8 (byte 3). Save it as UTF-8"),
    ],
)
def test_a_wrong_file_of_queries_is_named_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "queries.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_queries(path)
    assert str(caught.value) == f"{path}{said}"


def test_a_file_of_queries_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "absent", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError) as caught:
            read_queries(path)
        assert str(caught.value) == f"{path}: cannot be read ({why})"


def test_scores_of_a_run_are_float32_and_finite(index: SearchIndex) -> None:
    run = index.run({"q": Query("q", "a bird")}, k=60)
    assert run.scores.dtype == np.float32
    assert np.isfinite(run.scores).all()
