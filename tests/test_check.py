from __future__ import annotations

from pathlib import Path

from retriever.check import ConversationsReport, check_collection
from retriever.collection import write_collection
from retriever.queries import judged_queries
from retriever.settings.collection import CollectionSettings
from retriever.types import Document, Query, Turn
from tests.tiny_experiment import command, write_experiment


def test_a_clean_collection_is_counted_and_has_no_warnings(tmp_path: Path) -> None:
    documents = [Document(f"d{number}", "word " * number + f"n{number}", "a title") for number in range(1, 101)]
    queries = {f"q{number}": Query(f"q{number}", f"query {number}") for number in range(4)}
    qrels = {"train": {"q0": {"d1": 1, "d2": 0}, "q1": {"d3": 2, "d4": 0}}, "test": {"q2": {"d5": 1}}}
    report = check_collection(write_collection(tmp_path / "c", documents, queries, qrels))
    assert (report.name, report.documents, report.queries, report.empty_texts, report.duplicate_texts) == ("c", 100, 4, 0, 0)
    assert report.text_words == {"min": 4, "p5": 8, "p50": 53, "p95": 98, "max": 103}  # document n has n + 3 words
    train = report.splits["train"]
    assert (train.queries, train.judged_pairs, train.grades, train.queries_without_relevant) == (2, 4, {0: 2, 1: 1, 2: 1}, 0)
    assert (report.splits["test"].queries, report.splits["test"].grades) == (1, {1: 1})
    assert report.warnings == ()


def test_repeated_texts_are_counted_with_the_first_that_has_them(tmp_path: Path) -> None:
    documents = [Document("a", "same"), Document("b", "other"), Document("c", "", "same"), Document("d", "same"), Document("e", ""), Document("f", "")]
    report = check_collection(write_collection(tmp_path / "c", documents))
    assert (report.duplicate_texts, report.duplicate_examples) == (2, (("a", "c"), ("a", "d")))
    assert report.empty_texts == 2
    assert report.warnings[:2] == (
        "documents without any text: 2. They are never found: leave them out",
        "documents that repeat an earlier text: 2 (a = c, a = d). Unless each is judged, a right answer counts as wrong",
    )


def test_only_five_repeated_texts_are_named(tmp_path: Path) -> None:
    report = check_collection(write_collection(tmp_path / "c", [Document(f"d{number}", "same") for number in range(20)]))
    assert (report.duplicate_texts, report.duplicate_examples) == (19, tuple(("d0", f"d{number}") for number in range(1, 6)))


def test_a_test_query_that_stands_in_train_is_warned_of_whatever_its_case(tmp_path: Path) -> None:
    turns = (Turn("user", "before"),)
    queries = [Query("q1", "What is  yeast"), Query("q2", "what is yeast"), Query("q3", "what is yeast", turns, None, "c"), Query("q4", "another")]
    qrels = {"train": {"q1": {"d": 1}, "q4": {"d": 1}}, "test": {"q2": {"d": 1}, "q3": {"d": 1}}}
    report = check_collection(write_collection(tmp_path / "c", [Document("d", "text")], queries, qrels))
    assert (report.overlapping_queries, report.overlap_examples) == (1, (("q1", "q2"),))
    assert report.warnings == ('queries of "test" whose text stands in "train" too: 1 (q1 = q2). They flatter the evaluation',)


def test_what_the_check_warns_of_is_left_out_of_training(tmp_path: Path) -> None:
    before, spaced = (Turn("user", "Who baked it"),), (Turn("user", " who  baked it\n"),)
    queries = [
        Query("a", "What is  yeast "),
        Query("b", "what is\tyeast"),
        Query("c", "and why", spaced),
        Query("d", "and  why", before),
        Query("e", "and why"),
    ]
    qrels = {split: {query_id: {"d": 1} for query_id in own} for split, own in {"train": "ace", "test": "bd"}.items()}
    collection, said = write_collection(tmp_path / "c", [Document("d", "text")], queries, qrels), list[str]()
    assert check_collection(collection).overlap_examples == (("a", "b"), ("c", "d"))
    asked = judged_queries(collection, CollectionSettings(path=tmp_path), said.append)
    assert {split: list(found) for split, found in asked.items()} == {"train": ["e"], "test": ["b", "d"]}
    assert said == ["train: 2 queries left out, their texts are test queries too (a, c)"]


def test_queries_without_a_relevant_document_absent_splits_and_dropped_pairs_are_warned_of(tmp_path: Path) -> None:
    queries = [Query("q1", "one"), Query("q2", "two")]
    qrels = {"test": {"q1": {"d": 0, "gone": 1}, "q2": {"d": 1}}}
    report = check_collection(write_collection(tmp_path / "c", [Document("d", "text")], queries, qrels, missing_documents="ignore"))
    assert (report.splits["test"].queries_without_relevant, report.splits["test"].dropped_pairs) == (1, 1)
    assert report.warnings == (
        'there are no qrels for the split "train"; there are: test',
        'queries of "test" without a relevant document: 1 of 2. Every run scores 0 on them',
        'judged pairs of "test" that were left out because their document is absent: 1',
    )


def test_a_split_without_any_judgement_is_warned_of(tmp_path: Path) -> None:
    report = check_collection(write_collection(tmp_path / "c", [Document("d", "text")], (), {"test": {}, "train": {}}))
    assert report.warnings == ('the split "test" has no judged query', 'the split "train" has no judged query')


def test_the_splits_of_an_experiment_may_have_other_names(tmp_path: Path) -> None:
    queries = [Query("q1", "one"), Query("q2", "one")]
    collection = write_collection(tmp_path / "c", [Document("d", "text")], queries, {"dev": {"q1": {"d": 1}}, "final": {"q2": {"d": 1}}})
    assert check_collection(collection, train="dev", test="final").overlapping_queries == 1
    assert check_collection(collection, train="dev", test="dev").overlapping_queries == 0


def conversation_turn(name: str, number: int, **rewrites: str) -> Query:
    turns = tuple(Turn(speaker, text) for earlier in range(1, number) for speaker, text in (("user", f"{name} {earlier}"), ("agent", "yes")))
    return Query(f"{name}_{number}", f"{name} {number}", turns, None, name, rewrites)


def test_conversations_are_counted_by_depth_and_rewriter(tmp_path: Path) -> None:
    turns = [conversation_turn("a", 1), conversation_turn("a", 2, human="x"), conversation_turn("a", 5, human="x", t5="y"), conversation_turn("b", 1)]
    qrels = {"train": {"a_1": {"d": 1}}, "test": {"b_1": {"d": 1}}}
    report = check_collection(write_collection(tmp_path / "c", [Document("d", "text")], [*turns, Query("q", "alone")], qrels))
    assert report.conversations == ConversationsReport(
        conversations=2,
        turns=4,
        turns_by_depth={1: 2, 2: 1, 5: 1},
        median_depth=1,
        max_depth=5,
        rewrites={"human": 2, "t5": 1},
        turns_without_conversation=0,
    )
    assert (report.shared_conversations, report.warnings) == (0, ())


def test_a_collection_without_conversations_has_no_report_of_them(tmp_path: Path) -> None:
    assert check_collection(write_collection(tmp_path / "c", [Document("d", "text")], [Query("q", "alone")])).conversations is None


def test_conversations_in_train_and_test_and_turns_without_a_conversation_are_warned_of(tmp_path: Path) -> None:
    turns = [*(conversation_turn(name, number) for name in "abc" for number in (1, 2)), Query("lone", "and?", (Turn("user", "what"),))]
    qrels = {"train": {"a_1": {"d": 1}, "b_1": {"d": 1}, "c_1": {"d": 1}}, "test": {"b_2": {"d": 1}, "a_2": {"d": 1}, "lone": {"d": 1}}}
    report = check_collection(write_collection(tmp_path / "c", [Document("d", "text")], turns, qrels))
    assert (report.shared_conversations, report.shared_examples) == (2, ("a", "b"))
    assert report.warnings == (
        'conversations with turns in both "train" and "test": 2 (a, b). They flatter the evaluation: keep each conversation in one split',
        "turns with earlier turns but without the id of their conversation: 1 of 7. Results cannot be told apart by conversation",
    )


def test_the_command_tells_the_conversations(tmp_path: Path) -> None:
    turns = [conversation_turn("a", 1), conversation_turn("a", 2, human="x"), conversation_turn("b", 1), conversation_turn("b", 4)]
    qrels = {"train": {"a_1": {"d": 1}, "a_2": {"d": 1}}, "test": {"b_1": {"d": 1}, "b_4": {"d": 1}}}
    write_collection(tmp_path / "c", [Document("d", "text")], turns, qrels)
    said = command("check", write_experiment(tmp_path, tmp_path / "c", tmp_path / "no model yet"), "--work", tmp_path / "work")
    lines = said.err.splitlines()
    assert lines[0] == "1 documents; train: 2 queries with 2 judged pairs, test: 2 queries with 2 judged pairs"
    assert lines[1] == "2 conversations with 4 turns, 1 deep in the median, 4 at most; turns with a rewrite: human 1"
