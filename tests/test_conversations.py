"""What a reader makes of a turn: which turns, in which order, and how many of them when there is little room."""

import pytest

from retriever.config import experiment_from
from retriever.conversations.reading import ConversationReader, ReadText, told_cuts
from retriever.errors import ConfigError, DataError
from retriever.settings.collection import CollectionSettings
from retriever.types import Query, Turn

TURNS = (Turn("User", "how do I dry wood"), Turn("agent", "stack it in the shade"), Turn("user", "for how long"), Turn("agent", "a year"))
QUERY = Query("q1", "and when it rains", TURNS, rewrites={"human": "how do I dry wood when it rains", "smol": "rain"})


class Words:
    """A tokenizer whose tokens are words."""

    sep_token = "[SEP]"

    def __call__(self, text: list[str], **settings: object) -> dict[str, list[list[tuple[int, int]]]]:
        found = []
        for one in text:
            places, start = [], 0
            for word in one.split():
                start = one.index(word, start)
                places.append((start, start + len(word)))
                start += len(word)
            found.append(places)
        return {"offset_mapping": found}


@pytest.mark.parametrize(
    ("reading", "text"),
    [
        ("last", "and when it rains"),
        ("user", "how do I dry wood for how long and when it rains"),
        ("all", "how do I dry wood stack it in the shade for how long a year and when it rains"),
        ("latest_first", "and when it rains a year for how long stack it in the shade how do I dry wood"),
        ("user_latest_first", "and when it rains for how long how do I dry wood"),
        ("last_and_answer", "and when it rains a year"),
        ("rewrite", "how do I dry wood when it rains"),
        ("rewrite:smol", "rain"),
    ],
)
def test_a_reading_says_which_turns_are_read_and_in_which_order(reading: str, text: str) -> None:
    read = ConversationReader(reading).read(QUERY)
    assert (read.query_id, read.text, read.turns) == ("q1", text, ())
    assert ConversationReader(reading).read(read) == read  # read again it stays the same
    assert ConversationReader(reading).read(Query("q2", "alone")).text == "alone"


def test_the_separator_of_the_tokenizer_stands_between_turns_that_come_latest_first() -> None:
    assert ConversationReader("last_and_answer", None, Words()).text(QUERY).text == "and when it rains [SEP] a year"
    assert ConversationReader("all", None, Words()).text(QUERY).text == ConversationReader("all").text(QUERY).text


@pytest.mark.parametrize(
    ("reading", "room", "expected"),
    [
        ("latest_first", 30, ReadText("and when it rains [SEP] a year [SEP] for how long [SEP] stack it in the shade [SEP] how do I dry wood")),
        # 4 words of the utterance, 1 + 2 of the answer, 1 + 3 of the question: 11; then one word of five, and five more of the oldest turn are lost
        ("latest_first", 13, ReadText("and when it rains [SEP] a year [SEP] for how long [SEP] stack", 1, True, 9)),
        ("latest_first", 12, ReadText("and when it rains [SEP] a year [SEP] for how long", 2, False, 10)),
        ("latest_first", 3, ReadText("and when it rains", 4, False, 15)),
        ("all", 9, ReadText("for how long a year and when it rains", 2, False, 10)),
        ("all", 11, ReadText("stack it for how long a year and when it rains", 1, True, 8)),
        ("user", 7, ReadText("for how long and when it rains", 1, False, 5)),
        ("user_latest_first", 8, ReadText("and when it rains [SEP] for how long", 1, False, 5)),
    ],
)
def test_the_oldest_turns_go_first_where_there_is_no_room(reading: str, room: int, expected: ReadText) -> None:
    assert ConversationReader(reading, room, Words()).text(QUERY) == expected


def test_what_was_cut_is_said() -> None:
    said: list[str] = []
    told_cuts(ConversationReader("latest_first", 13, Words()), [QUERY, Query("q2", "alone")], "train", said.append)
    told_cuts(ConversationReader("latest_first", 99, Words()), [QUERY], "test", said.append)
    assert said == [
        "train: 1 of 1 turns with a history are longer than 13 tokens; of the oldest turns 1 were left out and 1 cut short, 9 tokens in all",
    ]


def test_a_rewrite_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(DataError, match=r'^query q1: has no rewrite by "t5"; its rewrites: human, smol\. '):
        ConversationReader("rewrite:t5").read(QUERY)
    assert ConversationReader("rewrite").read(Query("q0", "a first turn")).text == "a first turn"


def test_a_misspelt_reading_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r'^experiment: collection\.conversation: unknown reading "lats"; it is one of last, user, all, .* or rewrite:NAME'):
        experiment_from(
            {"name": "x", "collection": {"path": "x", "conversation": "lats"}, "teacher": [{"kind": "lexical"}], "student": {"kind": "dense", "model": "m"}}
        )
    assert CollectionSettings.model_validate({"path": "x", "conversation": "rewrite:smol"}).conversation == "rewrite:smol"
