"""Held-out queries about documents that no teaching query is about."""

from collections.abc import Callable
from pathlib import Path

from retriever.config import read_experiment
from retriever.conversations.facets import relevant_to
from retriever.errors import DataError
from retriever.pipeline import Pipeline
from retriever.queries import connected, kept_together
from retriever.types import Query
from tests.tiny_experiment import write_experiment


def test_queries_are_connected_by_what_they_are_about_directly_or_through_others() -> None:
    groups = connected({"q1": ["", "a"], "q2": ["", "a", "b"], "q3": ["talk", "b"], "q4": ["talk", "c"], "q5": ["", "d"], "q6": [""]})
    assert groups["q1"] == groups["q2"] == groups["q3"] == groups["q4"]
    assert len({groups[query_id] for query_id in ("q1", "q5", "q6")}) == 3
    assert [groups[query_id] for query_id in ("q1", "q5", "q6")] == ["0", "1", "2"]  # another name would be drawn otherwise


def test_relevant_documents_keep_queries_together_where_held_out_ones_must_be_new() -> None:
    queries = {name: Query(name, name, conversation=talk) for name, talk in (("a", "one"), ("b", "one"), ("c", "two"), ("d", ""), ("e", ""))}
    qrels = {"a": {"d1": 1}, "b": {"d2": 1, "d9": 0}, "c": {"d2": 2}, "d": {"d3": 1, "d9": 0}, "e": {"one": 1}}
    groups = kept_together(queries, qrels, "new")
    assert groups["a"] == groups["b"] == groups["c"]  # a and b by their talk, b and c by d2; what is judged as not relevant ties nobody
    assert len({groups[name] for name in "ade"}) == 3  # a document may be called as a conversation is
    assert kept_together(queries, qrels) == {"a": "one", "b": "one", "c": "two", "d": "", "e": ""}


def rejudge(folder: Path, document_of: Callable[[int], str]) -> None:
    """Gives each of the 20 train queries one relevant document."""
    lines = [f"train{number}\t{document_of(number)}\t1" for number in range(1, 21)]
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n", encoding="utf-8")


def held_out(path: Path, work: Path, *overrides: str) -> tuple[set[str], set[str], int]:
    """The relevant documents of the queries that teach and of those held out, and how many of the latter there are."""
    pipeline = Pipeline(read_experiment(path, ["training.validation_fraction=0.2", *overrides]), work)
    about = [set[str]().union(*(relevant_to(pipeline.qrels("train"), query_id) for query_id in ids)) for ids in pipeline.held_out]
    return about[0], about[1], len(pipeline.held_out[1])


def test_an_experiments_held_out_queries_share_no_relevant_document_with_those_that_teach(tmp_path: Path, beir_folder: Path, encoder_folder: Path) -> None:
    path = write_experiment(tmp_path, beir_folder, encoder_folder)
    rejudge(beir_folder, lambda number: ("beaver", "gecko", "frog", "turtle", "hammer")[number % 5])
    taught, held, count = held_out(path, tmp_path / "new", 'training.validation_documents="new"')
    assert (len(taught), len(held), count) == (4, 1, 4)
    assert not taught & held
    taught, held, count = held_out(path, tmp_path / "any")
    assert count == 4
    assert taught & held


def test_documents_that_connect_most_queries_are_refused(tmp_path: Path, beir_folder: Path, encoder_folder: Path) -> None:
    path = write_experiment(tmp_path, beir_folder, encoder_folder)
    rejudge(beir_folder, lambda number: "frog" if number <= 4 else "beaver")
    found = set()
    for seed in range(8):
        try:
            found.add(held_out(path, tmp_path / str(seed), 'training.validation_documents="new"', f"seed={seed}")[2])
        except DataError as error:
            found.add(str(error))
    assert found == {
        4,
        'training.validation_documents = "new" would hold out 16 of 20 train queries, which shared relevant documents connect. Leave it out',
    }
