from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retriever import readers
from retriever.errors import DataError
from retriever.types import Query, Turn
from tests.conversation_material import ANSWER, FIRST, corpus, opened, queries, write, write_jsonl

# Turns in JSON lines


def test_a_turn_keeps_its_conversation_its_rewrites_and_what_else_is_known_of_it(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    turn = {"id": "c_2", "split": "test", "conversation_id": "c", "turn": 2, "history": [{"speaker": "user", "text": "who baked it"}], "utterance": "and when?"}
    facts = {"domain": "bread", "multi_turn": ["Follow-up"], "answerable": True, "year": 2021, "weight": 0.5}
    ignored = {"nothing": None, "numbers": [1, 2], "nested": {"a": 1}, "empty": "", "none": [], "relevant": {"d1": 1}, "response": "at dawn"}
    rewrites = {"rewrite": "when was it baked?", "rewrites": {"t5": "when was the bread baked?", "gone": None, "blank": " "}}
    write_jsonl(tmp_path / "s" / "conversations.jsonl", turn | facts | ignored | rewrites | {"metadata": {"source": "kitchen", "year": 1900}})
    expected = {"human": "when was it baked?", "t5": "when was the bread baked?"}
    assert queries(tmp_path / "s") == {"c_2": Query("c_2", "and when?", (FIRST,), None, "c", expected, {**facts, "source": "kitchen"})}


def test_a_collection_of_conversations_written_as_beir_is_read_back_the_same(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    turn = {"_id": "c_2", "text": "when?", "conversation_id": "c", "turns": [{"speaker": "user", "text": "who?"}], "rewrites": {"t5": "when?"}, "kind": ["a"]}
    write_jsonl(tmp_path / "s" / "queries.jsonl", turn, {"_id": "q", "text": "alone"})
    collection = opened(tmp_path / "s")
    collection.to_beir(tmp_path / "copy")
    assert list(opened(tmp_path / "copy").all_queries()) == list(collection.all_queries())


TURNS: list[dict[str, Any]] = [
    {"conversation_id": "a", "turn": 1, "utterance": "who baked it", "response": "Ada did"},
    {"id": "other", "conversation_id": "b", "turn": 1, "utterance": "what is rye"},
    {"conversation_id": "a", "turn": 2, "utterance": "and when?", "answer": None},
    {"conversation_id": "a", "turn": 4, "utterance": "at what heat?", "domain": "bread"},
]


def test_turns_without_a_history_have_the_earlier_turns_of_their_conversation(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    write_jsonl(tmp_path / "s" / "conversations.jsonl", *TURNS)
    assert queries(tmp_path / "s") == {
        "a_1": Query("a_1", "who baked it", (), None, "a"),
        "other": Query("other", "what is rye", (), None, "b"),
        "a_2": Query("a_2", "and when?", (FIRST, ANSWER), None, "a"),
        "a_4": Query("a_4", "at what heat?", (FIRST, ANSWER, Turn("user", "and when?")), None, "a", {}, {"domain": "bread"}),
    }


def test_parquet_tables_and_plain_json_lines_hold_turns_too(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "jsonl" / "documents.jsonl", {"id": "d1", "text": "one"})
    write_jsonl(tmp_path / "jsonl" / "queries.jsonl", *TURNS)
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table({"id": ["d1"], "text": ["one"]}), tmp_path / "parquet" / "documents.parquet")
    columns = dict.fromkeys(name for turn in TURNS for name in turn)
    (tmp_path / "parquet" / "queries").mkdir()
    for number, half in enumerate((TURNS[:2], TURNS[2:])):  # a conversation may go on in the next part
        pq.write_table(pa.Table.from_pylist([columns | turn for turn in half]), tmp_path / "parquet" / "queries" / f"{number}.parquet")
    plain, table = queries(tmp_path / "jsonl"), queries(tmp_path / "parquet")
    assert plain == table
    assert plain["a_4"].turns == (FIRST, ANSWER, Turn("user", "and when?"))


def test_a_record_of_another_speaker_is_a_turn_of_the_agent_and_no_query(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    said = [("user", "who baked it"), ("librarian", "Ada did"), ("User", "and when?")]
    records = [{"conversation": "c", "turn": number, "speaker": speaker, "text": text} for number, (speaker, text) in enumerate(said)]
    write_jsonl(tmp_path / "s" / "queries.jsonl", *records)
    found = queries(tmp_path / "s")
    assert list(found) == ["c_0", "c_2"]
    assert found["c_2"].turns == (FIRST, Turn("librarian", "Ada did"))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"conversation_id": "c", "turn": 1}, {"conversation_id": "c", "turn": 1}], r":2: turn 1 of the conversation c stands already at .*:1\. Number each"),
        (
            [{"conversation_id": "c", "turn": 1}, {"conversation_id": "c", "turn": 3}, {"conversation_id": "c", "turn": 2}],
            r":3: turn 2 .* after turn 3 \(.*:2\)",
        ),
        ([{"conversation_id": "c", "turn": 2}], r":1: turn 2 of the conversation c is the first one here: the turns before it are missing"),
        ([{"conversation_id": None, "turn": 2}], r":1: turn 2 names no conversation in the field conversation_id or conversation or conv_id"),
        ([{"conversation_id": "c", "turn": "two"}], r":1: the field \"turn\" is 'two'; it must be a whole number"),
        ([{"conversation_id": "c", "turn": 1, "utterance": " "}], r":1: turn 1 of the conversation c is empty"),
        ([{"conversation_id": "c", "turn": 1, "speaker": 5}], r':1: the field "speaker" is a number; it must be a string'),
        ([{"id": "q", "history": [{"speaker": 1, "text": "x"}]}], r':1: a turn in the field "history" is not an object with a speaker and a text: turn 1'),
        ([{"id": "q", "history": [{"speaker": "user", "text": ""}]}], r':1: turn 1 in the field "history" is empty'),
        ([{"id": "q", "rewrite": 5}], r':1: the rewrite by "human" is a number; it must be a string'),
        ([{"id": "q", "rewrites": ["x"]}], r':1: the field "rewrites" is a list; it must be an object such as {"human": "\.\.\."}'),
        ([{"id": "q", "conversation_id": []}], r':1: the field "conversation_id" is a list; an id must be a string'),
        ([{"id": "q", "utterance": ""}], r":1: the query q is empty"),
    ],
)
def test_broken_turns_are_refused_with_file_and_line(records: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    write_jsonl(tmp_path / "s" / "conversations.jsonl", *({"utterance": "what?", **record} for record in records))
    with pytest.raises(DataError, match=r"conversations\.jsonl" + message) as caught:
        opened(tmp_path / "s")
    assert "\n" not in str(caught.value)


# Rewrites in files


def test_files_of_rewrites_are_further_rewriters(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    write_jsonl(tmp_path / "s" / "queries.jsonl", {"_id": "q1", "text": "it?", "rewrite": "bread?"}, {"_id": "q2", "text": "that?"})
    write_jsonl(tmp_path / "s" / "rewrites" / "t5.jsonl", {"id": "q2", "rewrite": "the rye?"}, {"id": "q1", "rewrite": None})
    write(tmp_path / "s" / "rewrites" / "llama.v2.tsv", "q1\tthe loaf?")
    found = queries(tmp_path / "s")
    assert {query_id: dict(query.rewrites) for query_id, query in found.items()} == {
        "q1": {"human": "bread?", "llama.v2": "the loaf?"},
        "q2": {"t5": "the rye?"},
    }


def test_a_changed_file_of_rewrites_is_read_again(tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    write_jsonl(tmp_path / "s" / "queries.jsonl", {"_id": "q1", "text": "it?"})
    write(tmp_path / "s" / "rewrites" / "t5.tsv", "q1\tbread?")
    assert queries(tmp_path / "s")["q1"].rewrites == {"t5": "bread?"}
    write(tmp_path / "s" / "rewrites" / "t5.tsv", "q1\tthe bread?")
    assert queries(tmp_path / "s")["q1"].rewrites == {"t5": "the bread?"}


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("t5.tsv", ["q1\tbread?", "q7\trye?", "q8\toats?"], r't5\.tsv:2: the rewrite by "t5" is for the query q7, which is not there \(2 such rewrites\)'),
        ("t5.tsv", ["q1\tbread?", "q1\trye?"], r"t5\.tsv:2: a rewrite for the query q1 stands already at .*t5\.tsv:1"),
        ("t5.tsv", ["q1"], r"t5\.tsv:1: the line has 1 tab-separated fields; allowed: 2 \(id, rewrite\)"),
        ("human.tsv", ["q1\tbread?"], r'human\.tsv:1: the query q1 has a rewrite by "human" already \(.*queries\.jsonl:1\)'),
        ("t5.jsonl", ['{"id": "q1", "rewrite": 5}'], r't5\.jsonl:1: the field "rewrite" is a number; it must be a string'),
        ("t5.jsonl", ['{"id": "q1"}'], r"t5\.jsonl:1: there is no field rewrite or text; the record has id"),
    ],
)
def test_broken_files_of_rewrites_are_refused(name: str, lines: list[str], message: str, tmp_path: Path) -> None:
    corpus(tmp_path / "s")
    write_jsonl(tmp_path / "s" / "queries.jsonl", {"_id": "q1", "text": "it?", "rewrite": "bread?"})
    write(tmp_path / "s" / "rewrites" / name, *lines)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "s")


# Real collections, where they lie beside the project


def test_the_shared_collections_have_their_conversations_and_rewrites() -> None:
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (data / "mtrag-cloud").is_dir():
        pytest.skip("the shared data does not lie here")
    counts = {}
    for name in ("doc2dial", "mtrag-cloud"):
        turns = [query for _, query in readers.reader("beir").queries(readers.Source(str(data / name)))]
        counts[name] = len(turns), len({turn.conversation for turn in turns}), sum("human" in turn.rewrites for turn in turns)
        assert {turn.fields["domain"] for turn in turns} <= {"cloud", "dmv", "ssa", "studentaid", "va"}
    assert counts == {"doc2dial": (3972, 661, 0), "mtrag-cloud": (274, 112, 188)}
