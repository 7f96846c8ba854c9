"""Conversations as values, what their history contributed by hand, and `retriever chat` with lines from a pipe."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retriever.commands import chat as chat_command
from retriever.conversations import chat as chatting
from retriever.conversations.chat import Conversation, LeftOut, Term, Word, contributions
from retriever.errors import DataError
from retriever.plugins import load_kind
from retriever.search import SearchIndex, open_index
from retriever.settings.student import STUDENT_KINDS
from retriever.students._reading import query_room, reader_for
from retriever.types import Document, Query, Turn
from tests.test_index import built
from tests.tiny_experiment import Said, command

DOCUMENTS = [
    Document("owl", "a bird that hunts mice at night", "Owl"),
    Document("beaver", "a rodent that builds dams", "Beaver"),
    Document("saw", "a tool that cuts wood", "Saw"),
    Document("hammer", "a tool that drives nails into wood", "Hammer"),
    Document("bee", "an insect that makes honey", "Bee"),
]
TURNS = (Turn("user", "a rodent that builds"), Turn("agent", "dams"))
QUERY = Query("q", "a bird", TURNS)


def student_of(kind: str, folder: Path, reading: str, **settings: Any) -> Any:
    """A student of the tiny encoder that reads conversations."""
    student = load_kind("students", kind, "student").load(STUDENT_KINDS[kind](kind=kind, model=str(folder), **settings))
    student.reader = reader_for(student.model, reading, query_room(student.model))
    return student


def nothing(_: Query) -> list[Any]:
    return []


@pytest.fixture(scope="module")
def folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a dense student that reads the last turn alone."""
    return built(tmp_path_factory.mktemp("chat"), "dense", encoder_folder, DOCUMENTS)


@pytest.fixture(scope="module")
def index(folder: Path) -> SearchIndex:
    opened = open_index(folder)
    opened.encoder.reader = reader_for(opened.encoder.model, "all", 62)
    return opened


# Conversations


def test_a_conversation_grows_by_new_values_and_asks_with_what_was_said_before() -> None:
    empty = Conversation()
    begun = empty.said("a rodent that builds ").heard(" dams")
    assert begun.asked(" a bird ") == Query("query", "a bird", TURNS)
    assert (empty.turns, begun.turns) == ((), TURNS)


def test_only_the_latest_turns_are_kept() -> None:
    conversation = Conversation(most_turns=2)
    for text in ("one", "two", "three"):
        conversation = conversation.said(text)
    assert [turn.text for turn in conversation.turns] == ["two", "three"]


def test_a_conversation_survives_json() -> None:
    conversation = Conversation(TURNS, most_turns=5)
    assert Conversation.from_json(json.loads(json.dumps(conversation.to_json()))) == conversation
    assert Conversation.from_json({"turns": []}) == Conversation()
    many = {"turns": [{"speaker": "user", "text": str(number)} for number in range(9)], "most_turns": 3}
    assert [turn.text for turn in Conversation.from_json(many).turns] == ["6", "7", "8"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], 'body: expected an object with a list "turns", found []'),
        ({"turns": "user: hello"}, 'body: expected an object with a list "turns"'),
        ({"turns": [{"speaker": "user", "text": "x"}, {"speaker": "bot", "text": "x"}]}, 'body: turn 2: expected {"speaker": "user" or "agent"'),
        ({"turns": [{"speaker": "user", "text": " "}]}, "body: turn 1: expected"),
        ({"turns": [], "most_turns": 0}, "body: most_turns is 0; it is a whole number from 1 on"),
    ],
)
def test_what_is_no_conversation_is_told(value: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        Conversation.from_json(value, "body")
    assert str(caught.value).startswith(message)


def test_an_empty_turn_is_refused() -> None:
    with pytest.raises(DataError, match="the utterance is empty"):
        Conversation().asked(" ")
    with pytest.raises(DataError, match="the answer is empty"):
        Conversation().heard("")


# What the history contributed


def test_the_history_gives_an_inference_free_query_its_words_with_the_weight_one(encoder_folder: Path) -> None:
    student = student_of("sparse", encoder_folder, "all", inference_free_queries=True)
    found = contributions(student, QUERY, nothing)
    assert found.kind == "terms"
    assert set(found.rows) == {Term(word, 1.0, 0.0) for word in ("rodent", "that", "builds", "dams")}
    assert found.whole == pytest.approx(1 - 2 / np.sqrt(2 * 6), abs=1e-6)  # "a bird" inside "a rodent that builds dams a bird"
    assert len(contributions(student, QUERY, nothing, most=2).rows) == 2


def test_the_terms_of_a_sparse_student_are_those_of_its_two_encodings(encoder_folder: Path) -> None:
    student = student_of("sparse", encoder_folder, "user")
    found = contributions(student, QUERY, nothing, most=1000)
    both = student.encode_queries([Query("q", "a rodent that builds a bird"), Query("q", "a bird")])
    weights = np.zeros((2, student.dimensions), dtype=np.float32)
    for number in range(2):
        entries = slice(both.offsets[number], both.offsets[number + 1])
        weights[number, both.columns["dimensions"][entries]] = both.columns["values"][entries]
    expected = {student.vocabulary[place]: pytest.approx(weights[:, place].tolist(), abs=1e-5) for place in np.flatnonzero(weights[0] != weights[1]).tolist()}
    rows = [row for row in found.rows if isinstance(row, Term)]
    assert {row.term: [row.weight, row.alone] for row in rows if abs(row.weight - row.alone) > 1e-4}.items() <= expected.items()
    assert [abs(row.weight - row.alone) for row in rows] == sorted((abs(row.weight - row.alone) for row in rows), reverse=True)


@pytest.mark.parametrize("reading", ["all", "latest_first"])
def test_the_words_of_late_interaction_have_their_tokens_share_of_the_maxima(encoder_folder: Path, tmp_path: Path, reading: str) -> None:
    index = open_index(built(tmp_path, "late_interaction", encoder_folder, DOCUMENTS))
    student: Any = index.encoder
    student.reader = reader_for(student.model, reading, query_room(student.model))
    found = contributions(student, QUERY, lambda query: index.hits(query, 2), most=100)
    assert found.kind == "words"
    tokens = student.model.tokenizer(student.reader.text(QUERY).text)["input_ids"]
    words = student.model.tokenizer.convert_ids_to_tokens(tokens)
    vectors = student.encode_queries([QUERY]).columns["vectors"]
    documents = student.encode_documents([hit.document for hit in index.hits(QUERY, 2)])
    shares = dict.fromkeys(("rodent", "that", "builds", "dams"), 0.0)
    for number in range(2):
        document = documents.columns["vectors"][documents.offsets[number] : documents.offsets[number + 1]].astype(np.float32)
        maxima = [max(float(token @ other) for other in document) for token in vectors]
        for word, value in zip(words, maxima, strict=False):  # behind them stand the [MASK] tokens
            if word in shares:
                shares[word] += value / sum(maxima) / 2
    listed = {row.word: row.share for row in found.rows if isinstance(row, Word)}
    assert {word: listed[word] for word in shares} == pytest.approx(shares, abs=1e-4)
    assert set(listed) == {"a", *shares}
    assert found.whole == pytest.approx(sum(listed.values()))


def test_a_dense_student_moves_when_a_turn_is_left_out(index: SearchIndex) -> None:
    found = contributions(index.encoder, QUERY, lambda query: index.hits(query, 2))
    texts = ["a rodent that builds dams a bird", "dams a bird", "a rodent that builds a bird", "a bird"]
    vectors = index.encoder.model.encode(texts, normalize_embeddings=True)
    vectors = vectors.astype(np.float64)
    best = [[DOCUMENTS[row].doc_id for row in np.argsort(-(index.encoder.encode_documents(DOCUMENTS) @ vector))[:2]] for vector in vectors]
    assert found.kind == "turns"
    for number, row in enumerate(found.rows, 1):
        assert isinstance(row, LeftOut)
        assert (row.turn, row.text) == (number, TURNS[number - 1].text)
        assert row.moved == pytest.approx(1 - vectors[0] @ vectors[number], abs=1e-5)
        assert (set(row.gone), set(row.come)) == (set(best[0]) - set(best[number]), set(best[number]) - set(best[0]))
    assert found.whole == pytest.approx(1 - vectors[0] @ vectors[3], abs=1e-5)


def test_a_student_that_reads_the_last_turn_alone_owes_the_history_nothing(encoder_folder: Path, folder: Path) -> None:
    alone = open_index(folder)
    dense = contributions(alone.encoder, QUERY, lambda query: alone.hits(query, 2))
    assert [row.gone for row in dense.rows if isinstance(row, LeftOut)] == [(), ()]
    assert [row.moved for row in dense.rows if isinstance(row, LeftOut)] == pytest.approx([0, 0], abs=1e-6)
    sparse = contributions(student_of("sparse", encoder_folder, "last"), QUERY, nothing)
    assert sparse.rows == ()
    assert sparse.whole == pytest.approx(0, abs=1e-6)


def test_vectors_of_zeros_have_not_moved_from_one_another() -> None:
    zero, one = np.zeros(2), np.array([1.0, 0.0])
    assert [chatting._moved(*both) for both in ((zero, zero), (zero, one), (one, one), (one, -one))] == [0.0, 1.0, 0.0, 2.0]


# The command


class Typed(io.StringIO):
    """Lines as if somebody typed them, and Ctrl-C where a line says so."""

    def isatty(self) -> bool:
        return True

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]  # what the class above it says of bytes
        line = super().readline(size)
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


Chat = Callable[..., Said]


@pytest.fixture
def chat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    def run(lines: str | io.StringIO, *options: object) -> Said:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines) if isinstance(lines, str) else lines)
        return command("chat", folder, *options)

    return run


def test_each_line_of_a_pipe_is_a_turn_that_is_read_with_those_before_it(chat: Chat, index: SearchIndex) -> None:
    said = chat("a rodent that builds\n\n/answer dams\na bird\n/history\n/new\na bird\n/quit\nnever read\n", "--reads", "all", "-k", "2", "--json")
    assert (said.status, said.err) == (0, "")
    first, second, history, third = map(json.loads, said.out.splitlines())
    assert [one["read"] for one in (first, second, third)] == ["a rodent that builds", "a rodent that builds dams a bird", "a bird"]
    assert [one["turn"] for one in (first, second, third)] == [1, 3, 1]
    assert [found["id"] for found in second["results"]] == [hit.document.doc_id for hit in index.hits(QUERY, 2)]
    assert [found["score"] for found in second["results"]] == pytest.approx([hit.score for hit in index.hits(QUERY, 2)], abs=1e-6)
    assert Conversation.from_json(history).turns == (*TURNS, Turn("user", "a bird"))


def test_results_look_as_those_of_search_do(chat: Chat, folder: Path) -> None:
    said = chat("a bird\n", "-k", "2")
    assert said.status == 0
    assert said.out == command("search", folder, "a bird", "-k", "2").out
    assert said.err == "hint: this student reads the last turn alone, not the history; to have it read all turns: --reads all\n"


def test_a_result_can_be_taken_for_the_answer(chat: Chat, index: SearchIndex) -> None:
    said = chat("a bird\n/take 2\n/take 3\n/take x\n/history\n", "--reads", "all", "-k", "2")
    second = index.hits("a bird", 2)[1].document
    assert said.out.splitlines()[-3:] == [f"agent: {second.text}", "user: a bird", f"agent: {second.text}"]
    assert said.err.splitlines() == [f"/take {wrong}: expected the rank of a result, from 1 to 2" for wrong in ("3", "x")]


def test_why_says_which_turns_moved_the_query(chat: Chat, index: SearchIndex) -> None:
    said = chat("/why\na rodent that builds\n/why\n/answer dams\na bird\n/why\n/wyh\n/take 1\n/new\n/take 1\n", "--reads", "all", "-k", "2")
    assert said.status == 0
    found = contributions(index.encoder, QUERY, lambda query: index.hits(query, 2))
    assert "this is the first turn: there is no history\n" in said.out
    assert f"the history moves the query by {found.whole:.3f} (1 - cosine); without:\n" in said.out
    for row in found.rows:
        assert isinstance(row, LeftOut)
        assert f"  turn {row.turn}   {row.moved:.3f}  " in said.out
    commands = ", ".join(chat_command.COMMANDS)
    assert said.err.splitlines() == ["/why: nothing was asked yet", f"/wyh is no command; there are {commands}", "/take 1: there are no results yet"]


def test_turns_that_are_not_read_for_want_of_room_are_told(chat: Chat) -> None:
    said = chat(f"/answer {'dams ' * 80}\n/answer a rodent\na bird\n", "--reads", "all")
    assert said.err == "(22 tokens of the oldest turns are not read: 0 turns left out, one cut)\n"  # 62 tokens, 2 of them asked, 2 of the answer


def test_conditions_hold_in_every_turn_and_one_that_cannot_is_an_error(chat: Chat) -> None:
    assert "year" in chat("a bird\n", "--filter", "year>=2020").err
    assert chat("a bird\n", "--filter", "year>=2020").status == 2


@pytest.mark.parametrize("end", ["", "^C\na saw\n"])
def test_the_end_of_the_input_and_ctrl_c_leave_without_a_word(chat: Chat, end: str) -> None:
    said = chat(Typed(f"a bird\n{end}"), "--reads", "all", "--json")
    assert said.status == 0
    assert len(said.out.splitlines()) == 1
    assert said.err.endswith("> > \n")
    assert "/why: what the history contributed" in said.err


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ("everything", '--reads: unknown reading "everything"; it is one of last, user, all'),
        ("rewrite", 'the student reads "rewrite", and a chat has no rewrites. Choose what it reads, for example with: --reads all'),
    ],
)
def test_a_reading_that_a_chat_cannot_have_is_refused(chat: Chat, reads: str, message: str) -> None:
    assert message in chat("a bird\n", "--reads", reads).error
