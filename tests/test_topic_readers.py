from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retriever import readers
from retriever.collection import open_collection
from retriever.errors import DataError
from retriever.settings.collection import CollectionSettings
from retriever.types import Document, Query, Turn
from tests.conversation_material import ANSWER, FIRST, corpus, opened, queries, write, write_json, write_jsonl

# TREC CAsT


def cast(folder: Path, *topics: dict[str, Any], name: str = "topics.json") -> None:
    corpus(folder)
    write_json(folder / name, list(topics))


def test_cast_topics_of_2019_have_the_earlier_questions_as_history(tmp_path: Path) -> None:
    turns = [{"number": 1, "raw_utterance": "who baked it"}, {"number": 2, "raw_utterance": "and when?"}]
    cast(tmp_path / "s", {"number": 31, "title": "bread", "description": "all of it", "turn": turns})
    write(tmp_path / "s" / "rewrites" / "human.tsv", "31_2\twhen was it baked?")
    write(tmp_path / "s" / "qrels" / "test.txt", "31_2 0 d1 3", "31_2 0 d2 0")
    assert readers.recognise(tmp_path / "s") == "trec_cast"
    collection = opened(tmp_path / "s")
    assert collection.queries("test") == {"31_2": Query("31_2", "and when?", (FIRST,), None, "31", {"human": "when was it baked?"}, {"title": "bread"})}
    assert collection.qrels("test") == {"31_2": {"d1": 3, "d2": 0}}
    assert next(iter(collection.documents())) == Document("d1", "text of d1")


def test_cast_topics_of_2020_take_answers_from_the_documents_that_they_name(tmp_path: Path) -> None:
    turns = [
        {"number": 1, "raw_utterance": "who baked it", "manual_canonical_result_id": "d2", "automatic_canonical_result_id": "d1"},
        {"number": 2, "raw_utterance": "and when?", "automatic_canonical_result_id": "absent", "query_turn_dependence": [1], "result_turn_dependence": 1},
        {"number": 3, "raw_utterance": "why?", "manual_rewritten_utterance": "why rye?", "automatic_rewritten_utterance": "why bread?"},
    ]
    cast(tmp_path / "s", {"number": 81, "turn": turns})
    found = queries(tmp_path / "s")
    assert found["81_2"] == Query("81_2", "and when?", (FIRST, Turn("agent", "text of d2")), None, "81", {}, {"result_turn_dependence": 1})
    assert found["81_3"].turns == (FIRST, Turn("agent", "text of d2"), Turn("user", "and when?"))
    assert found["81_3"].rewrites == {"human": "why rye?", "automatic": "why bread?"}


def test_cast_topics_of_2021_have_passages_as_answers(tmp_path: Path) -> None:
    turns = [
        {"number": 1, "raw_utterance": "who baked it", "passage": "Ada did", "canonical_result_id": "d1", "passage_id": 7},
        {"number": 2, "raw_utterance": "and when?", "passage": ""},
    ]
    cast(tmp_path / "s", {"number": 106, "turn": turns})
    assert queries(tmp_path / "s")["106_2"] == Query("106_2", "and when?", (FIRST, ANSWER), None, "106")


TREE: list[dict[str, Any]] = [
    {"number": "1-1", "participant": "User", "utterance": "who baked it", "manual_rewritten_utterance": "who baked the rye"},
    {"number": "1-2", "parent": "1-1", "participant": "System", "response": "Ada did", "provenance": ["d1"]},
    {"number": "1-3", "parent": "1-2", "participant": "User", "utterance": "and when?"},
    {"number": "1-4", "parent": "1-3", "participant": "System", "response": "at dawn"},
    {"number": "2-1", "parent": "1-2", "participant": "User", "utterance": "why?"},
]


def test_cast_trees_of_2022_follow_the_parents(tmp_path: Path) -> None:
    cast(tmp_path / "s", {"number": 132, "turn": TREE})
    found = queries(tmp_path / "s")
    assert list(found) == ["132_1-1", "132_1-3", "132_2-1"]
    assert found["132_2-1"] == Query("132_2-1", "why?", (FIRST, ANSWER), None, "132")
    assert found["132_1-1"].rewrites == {"human": "who baked the rye"}


def test_the_paths_through_a_cast_tree_give_the_same_queries_each_once(tmp_path: Path) -> None:
    cast(tmp_path / "tree", {"number": 132, "turn": TREE})
    trunk = {"number": "1-1", "utterance": "who baked it", "manual_rewritten_utterance": "who baked the rye", "response": "Ada did", "provenance": ["d1"]}
    leaves = [{"number": "1-3", "utterance": "and when?", "response": "at dawn"}, {"number": "2-1", "utterance": "why?", "response": "to eat"}]
    cast(tmp_path / "paths", *({"number": 132, "turn": [trunk, leaf]} for leaf in leaves))
    assert queries(tmp_path / "paths") == queries(tmp_path / "tree")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"number": 1, "raw_utterance": "a"}, {"number": 1, "raw_utterance": "b"}], "topic 9, turn 1: stands already in this topic"),
        ([{"number": 2, "raw_utterance": "a"}, {"number": 1, "raw_utterance": "b"}], "topic 9, turn 1: stands after turn 2"),
        (
            [{"number": "1-3", "parent": "1-2", "participant": "User", "utterance": "a"}],
            "topic 9, turn 1-3: its parent is turn 1-2, which does not stand before",
        ),
        ([{"number": 1, "title": "x"}], "topic 9, turn 1: there is no field raw_utterance or utterance; the record has number, title"),
        ([{"raw_utterance": "x"}], "topic 9: there is no field number"),
        ([{"number": 1, "raw_utterance": " "}], "topic 9, turn 1: the query 9_1 is empty"),
        (["x"], 'the field "turn" must be a list of objects'),
    ],
)
def test_broken_cast_topics_are_refused_with_file_topic_and_turn(turns: list[Any], message: str, tmp_path: Path) -> None:
    good = {"number": 8, "turn": [{"number": 1, "raw_utterance": "fine"}]}
    cast(tmp_path / "s", good, {"number": 9, "turn": turns})
    with pytest.raises(DataError, match=rf"topics\.json: record 2: {message}"):
        opened(tmp_path / "s")


def test_one_turn_that_two_cast_files_tell_differently_is_refused(tmp_path: Path) -> None:
    cast(tmp_path / "s", {"number": 9, "turn": [{"number": 1, "raw_utterance": "a"}]}, name="automatic.json")
    cast(tmp_path / "s", {"number": 9, "turn": [{"number": 1, "raw_utterance": "b"}]}, name="manual.json")
    with pytest.raises(DataError, match=r"manual\.json: record 1: topic 9, turn 1: the query id 9_1 stands already at .*automatic\.json"):
        opened(tmp_path / "s")


# TREC iKAT


def test_ikat_topics_have_responses_and_resolved_utterances(tmp_path: Path) -> None:
    turns = [
        {"turn_id": 1, "utterance": "who baked it", "resolved_utterance": "who baked the rye", "response": "Ada did", "response_provenance": ["d1"]},
        {"turn_id": 2, "utterance": "and when?", "resolved_utterance": "when was it baked?", "response": "", "ptkb_provenance": [3]},
    ]
    corpus(tmp_path / "s")
    write_json(tmp_path / "s" / "2023_test_topics.json", [{"number": "9-1", "title": "bread", "ptkb": {"1": "I bake."}, "turns": turns}])
    write(tmp_path / "s" / "qrels.test.txt", "9-1_2 0 d1 1")
    assert readers.recognise(tmp_path / "s") == "trec_ikat"
    expected = Query("9-1_2", "and when?", (FIRST, ANSWER), None, "9-1", {"human": "when was it baked?"}, {"title": "bread"})
    assert opened(tmp_path / "s").queries("test") == {"9-1_2": expected}


def test_ikat_topics_of_2024_and_2025_have_other_names(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    write_json(tmp_path / "s" / "2024.json", [{"number": 0, "ptkb": {}, "turns": [{"turn_id": 1, "utterance": "who baked it"}]}])
    write_json(tmp_path / "s" / "2025.json", [{"number": "1-1", "ptkb": [], "responses": [{"turn_id": 1, "user_utterance": "why?", "citations": ["d1"]}]}])
    assert queries(tmp_path / "s") == {"0_1": Query("0_1", "who baked it", (), None, "0"), "1-1_1": Query("1-1_1", "why?", (), None, "1-1")}


def test_an_ikat_turn_out_of_order_is_refused(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    turns = [{"turn_id": number, "utterance": "why?"} for number in (1, 3, 2)]
    write_json(tmp_path / "s" / "topics.json", [{"number": "9-1", "ptkb": {}, "turns": turns}])
    with pytest.raises(DataError, match=r"topics\.json: record 1: topic 9-1, turn 2: turn 2 of the conversation 9-1 stands after turn 3"):
        opened(tmp_path / "s")


# QReCC and TopiOCQA


def test_qrecc_turns_have_context_rewrite_and_source(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    first = {"Context": [], "Question": "who baked it", "Rewrite": "who baked the rye", "Answer": "Ada did", "Conversation_no": 7, "Turn_no": 1}
    second = {"Context": ["who baked it", "Ada did"], "Question": "and when?", "Rewrite": "", "Answer": "", "Conversation_no": 7, "Turn_no": 2}
    write_json(tmp_path / "s" / "qrecc_train.json", [first | {"Conversation_source": "trec"}, second | {"Conversation_source": "quac"}])
    write(tmp_path / "s" / "qrels" / "train.tsv", "train_7_2\td1\t1")
    assert readers.recognise(tmp_path / "s") == "qrecc"
    collection = opened(tmp_path / "s")
    assert next(iter(collection.all_queries())) == Query("train_7_1", "who baked it", (), None, "train_7", {"human": "who baked the rye"}, {"source": "trec"})
    assert collection.queries("train") == {"train_7_2": Query("train_7_2", "and when?", (FIRST, ANSWER), None, "train_7", {}, {"source": "quac"})}


def test_qrecc_of_the_challenge_has_passages_and_gathers_its_context(tmp_path: Path) -> None:
    corpus(tmp_path / "s", "d1", "http://a/b_p0")
    common = {"Conversation_no": 7, "Conversation_source": "nq"}
    first = {**common, "Turn_no": 1, "Question": "who baked it", "Truth_rewrite": "who?", "Truth_answer": "Ada did", "Truth_passages": []}
    second = {**common, "Turn_no": 2, "Question": "and when?", "Truth_rewrite": "when?", "Truth_answer": "", "Truth_passages": ["http://a/b_p0", "d1"]}
    for split in ("training", "test"):  # the two number their conversations alike
        write_json(tmp_path / "s" / f"scai-qrecc21-{split}-turns.json", [first, second])
    collection = opened(tmp_path / "s")
    assert collection.splits == ("test", "train")
    assert collection.qrels("train") == {"train_7_2": {"http://a/b_p0": 1, "d1": 1}}
    assert collection.queries("test")["test_7_2"].turns == (FIRST, ANSWER)


def test_an_answer_that_qrecc_does_not_have_is_left_out_of_the_context(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    turn = {"Context": ["who baked it", "", "why?", "to eat"], "Question": "and?", "Rewrite": "and?", "Conversation_no": 1, "Turn_no": 3}
    write_json(tmp_path / "s" / "dev.json", [turn])
    assert queries(tmp_path / "s")["dev_1_3"].turns == (FIRST, Turn("user", "why?"), Turn("agent", "to eat"))


def topiocqa(number: int, topic: str, gold: str | None, context: list[str]) -> dict[str, Any]:
    passage = {"id": gold, "title": "t", "text": "x"} if gold else {}
    record = {"Conversation_no": 1, "Turn_no": number, "Question": f"question {number}", "Answer": f"answer {number}", "Topic_section": "Introduction"}
    return record | {"Topic": topic, "Context": context, "Gold_passage": passage, "is_nq": number == 1}


def test_topiocqa_turns_know_whether_the_topic_has_switched(tmp_path: Path) -> None:
    corpus(tmp_path / "s", "wiki:1", "wiki:2")
    turns = [topiocqa(1, "Rye", "wiki:1", []), topiocqa(2, "Rye", None, ["question 1", "answer 1"]), topiocqa(3, "Oats", "wiki:2", ["question 1", "answer 1"])]
    write_json(tmp_path / "s" / "topiocqa_train.json", turns)
    write_jsonl(tmp_path / "s" / "validation.jsonl", *turns[:1])
    assert readers.recognise(tmp_path / "s") == "topiocqa"
    collection = opened(tmp_path / "s")
    found = {query.query_id: query for query in collection.all_queries()}
    assert [dict(found[f"train_1_{number}"].fields) for number in (1, 2, 3)] == [
        {"topic": "Rye"},
        {"topic": "Rye", "topic_switch": False},
        {"topic": "Oats", "topic_switch": True},
    ]
    assert found["train_1_3"].turns == (Turn("user", "question 1"), Turn("agent", "answer 1"))
    assert found["dev_1_1"].conversation == "dev_1"
    assert {split: collection.qrels(split) for split in sorted(collection.splits)} == {
        "dev": {"dev_1_1": {"wiki:1": 1}},
        "train": {"train_1_1": {"wiki:1": 1}, "train_1_3": {"wiki:2": 1}},
    }


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [topiocqa(2, "Rye", None, []), topiocqa(1, "Rye", None, [])],
            r"record 2 \(conversation 1, turn 1\): turn 1 of the conversation dev_1 stands after turn 2",
        ),
        ([topiocqa(1, "Rye", None, [])] * 2, r"record 2 \(conversation 1, turn 1\): turn 1 of the conversation dev_1 stands already at .*record 1"),
        ([{**topiocqa(1, "Rye", None, []), "Context": "who?"}], r'record 1 .*: the field "Context" must be a list of questions and answers by turns'),
        ([{**topiocqa(2, "Rye", None, []), "Context": None}], r"record 1 .*: turn 2 of the conversation dev_1 is the first one here"),
        ([topiocqa(1, "Rye", None, []), 5], r"record 2 of the list is int, not an object"),
    ],
)
def test_broken_turns_of_topiocqa_are_refused(records: list[Any], message: str, tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    write_json(tmp_path / "s" / "dev.json", records)
    with pytest.raises(DataError, match=r"dev\.json: " + message):
        opened(tmp_path / "s")


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    for name in ("a_train.json", "b_training.json"):
        write_json(tmp_path / "s" / name, [topiocqa(1, "Rye", None, [])])
    with pytest.raises(DataError, match=r'b_training\.json: is of the split "train", as a_train\.json is'):
        opened(tmp_path / "s")


# MTRAG


def mtrag(folder: Path, *, rewritten: str = "a_22") -> None:
    texts = {"a_11": "|user|: who  baked it", "a_22": "|user|: who baked it\n|user|: and when,\nand why?", "b_11": "|user|: who baked it"}
    write_jsonl(folder / "bread_questions.jsonl", *({"_id": query_id, "text": text} for query_id, text in texts.items()))
    write_jsonl(folder / "bread_rewrite.jsonl", {"_id": rewritten, "text": "|user|: when was it baked?"})
    write(folder / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore", "a_22\td1\t1")


def test_mtrag_questions_hold_the_turns_of_the_user(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    mtrag(tmp_path / "s")
    assert readers.recognise(tmp_path / "s") == "mtrag"
    expected = Query("a_22", "and when,\nand why?", (Turn("user", "who baked it"),), None, "a_11", {"human": "when was it baked?"}, {"domain": "bread"})
    collection = opened(tmp_path / "s")
    assert collection.queries("dev") == {"a_22": expected}
    assert [query.conversation for query in collection.all_queries()] == ["a_11", "a_11", "b_11"]


def test_mtrag_answers_come_from_the_conversations_and_passages_from_the_repository(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "human" / "retrieval_tasks" / "bread"
    mtrag(folder)
    enrichments = {"Question Type": ["Factoid"], "Multi-Turn": ["Follow-up"], "Answerability": ["ANSWERABLE"]}
    messages = [
        {"speaker": "user", "text": "who baked it "},
        {"speaker": "agent", "text": "Ada did"},
        {"speaker": "user", "text": "and when, and why?", "enrichments": enrichments},
    ]
    write_json(tmp_path / "repository" / "human" / "conversations" / "conversations.json", [{"author": "z", "messages": messages}])
    write_jsonl(tmp_path / "repository" / "corpora" / "passage_level" / "bread.jsonl", {"_id": "d1", "title": "Rye", "text": "one", "url": ""})
    collection = opened(folder)
    query = collection.queries("dev")["a_22"]
    assert query.turns == (Turn("user", "who baked it "), ANSWER)
    assert query.fields == {"domain": "bread", "question_type": ["Factoid"], "multi_turn": ["Follow-up"], "answerability": ["ANSWERABLE"]}
    assert list(collection.documents()) == [Document("d1", "one", "Rye")]


def test_mtrag_ids_of_the_second_release_name_their_conversation(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    write_jsonl(tmp_path / "s" / "bread_questions.jsonl", {"_id": "abc<::>3", "text": "|user|: who baked it\n|user|: why?"})
    assert queries(tmp_path / "s") == {"abc<::>3": Query("abc<::>3", "why?", (FIRST,), None, "abc", {}, {"domain": "bread"})}


def test_an_mtrag_turn_of_a_missing_conversation_and_a_rewrite_of_a_missing_turn_are_refused(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    mtrag(tmp_path / "s", rewritten="a_33")
    with pytest.raises(DataError, match=r"bread_rewrite\.jsonl: the rewrite a_33 is for no query of bread_questions\.jsonl \(1 such rewrites\)"):
        opened(tmp_path / "s")
    write_json(tmp_path / "s" / "conversations.json", [{"messages": [{"speaker": "user", "text": "who baked it"}]}])
    with pytest.raises(DataError, match=r"bread_questions\.jsonl:2: .*conversations\.json has no conversation with the 2 turns of the query a_22"):
        opened(tmp_path / "s")


# Documents beside topics


def document_makers() -> dict[str, Callable[[Path], None]]:
    return {
        "msmarco": lambda folder: write(folder / "collection.tsv", "d1\ttext of d1", "d2\ttext of d2"),
        "trec": lambda folder: write(folder / "docs.trec", *(f"<DOC><DOCNO>{name}</DOCNO><TEXT>text of {name}</TEXT></DOC>" for name in ("d1", "d2"))),
        "jsonl": lambda folder: write_jsonl(folder / "documents.jsonl", {"id": "d1", "text": "text of d1"}, {"id": "d2", "text": "text of d2"}),
    }


@pytest.mark.parametrize("made", document_makers())
def test_topics_search_the_documents_of_any_format_beside_them(made: str, tmp_path: Path) -> None:
    cast(tmp_path / "s", {"number": 1, "turn": [{"number": 1, "raw_utterance": "why?"}]})
    (tmp_path / "s" / "corpus.jsonl").unlink()
    (tmp_path / "s" / "README.md").write_text("How this was made.", encoding="utf-8")
    document_makers()[made](tmp_path / "s")
    collection = opened(tmp_path / "s")
    assert list(collection.documents()) == [Document("d1", "text of d1"), Document("d2", "text of d2")]
    assert [query.query_id for query in collection.all_queries()] == ["1_1"]


def test_topics_without_documents_or_with_those_of_two_formats_are_refused(tmp_path: Path) -> None:
    cast(tmp_path / "s", {"number": 1, "turn": [{"number": 1, "raw_utterance": "why?"}]})
    write(tmp_path / "s" / "collection.tsv", "d1\ttext")
    with pytest.raises(DataError, match=r"has the documents of several formats: beir, msmarco\. Leave those of one"):
        opened(tmp_path / "s")
    (tmp_path / "s" / "corpus.jsonl").unlink()
    (tmp_path / "s" / "collection.tsv").unlink()
    with pytest.raises(DataError, match=r"holds topics\.json, but no documents\. Lay them beside the topics, as corpus\.jsonl"):
        opened(tmp_path / "s")


@pytest.mark.parametrize("name", readers.TOPICS)
def test_a_folder_without_the_topics_of_a_format_says_what_they_are(name: str, tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    with pytest.raises(DataError, match=r"there are no topics; they are (JSON lists of|NAME_questions)"):
        open_collection(CollectionSettings(path=tmp_path / "s", format=name), tmp_path / "p")


def test_a_json_list_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    cast(tmp_path / "s", {"number": 1, "turn": [{"number": 1, "raw_utterance": "why?"}]})
    path = tmp_path / "s" / "topics.json"
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    with pytest.raises(DataError, match=r"topics\.json: malformed JSON \(.*\); the file must hold one whole list"):
        opened(tmp_path / "s")
