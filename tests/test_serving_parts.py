"""The parts of the server by themselves: batches, caches, keys, conversations, feedback, snippets."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retriever.collection import open_collection
from retriever.commands.served import filter_of
from retriever.errors import ConfigError, DataError
from retriever.explanation import sentences_of
from retriever.filters import Condition, conditions_from, parse_condition
from retriever.ragged import Ragged
from retriever.serving import keys as keys_module
from retriever.serving.cache import RecentValues
from retriever.serving.conversation_store import ConversationStore
from retriever.serving.encoder_thread import PASSAGE, PIECE, TOGETHER, Asked, EncoderThread, Found
from retriever.serving.faults import FullError, RequestError, fault_of
from retriever.serving.feedback import append, to_qrels, write_training
from retriever.serving.keys import Keys, new_key
from retriever.serving.settings import limits_of, place_of, places_of
from retriever.serving.snippets import marked_snippet
from retriever.settings.collection import CollectionSettings
from retriever.types import Document, Query
from tests.tiny_experiment import command

# The encoder's thread


@dataclasses.dataclass(eq=False)
class Slow:
    """A view that answers when it may, and remembers its batches."""

    may: threading.Event = dataclasses.field(default_factory=threading.Event)
    batches: list[list[str]] = dataclasses.field(default_factory=list)

    def answer(self, asked: Sequence[Asked]) -> list[Found]:
        self.may.wait(10)
        texts = [one.query.text for one in asked]
        self.batches.append(texts)
        if "wrong" in texts:
            raise DataError("wrong")
        return [Found([float(len(text))], list, {}) for text in texts]


@pytest.fixture
def thread() -> Iterator[EncoderThread]:
    own = EncoderThread(batch=3, wait_seconds=0.0, queue=5)
    yield own
    own.close()


def asked(*texts: str) -> list[Asked]:
    return [Asked(Query("q", text), 1) for text in texts]


def begun(thread: EncoderThread, view: Slow) -> None:
    """The thread works on a query "first", so that what comes now waits."""
    thread.submit(view, asked("first"))
    while thread.waiting:
        time.sleep(0.001)


def test_what_waits_is_answered_in_batches_in_its_order(thread: EncoderThread) -> None:
    view = Slow()
    begun(thread, view)
    futures = [thread.submit(view, asked(text))[0] for text in ("a", "bb", "ccc", "dddd")]
    view.may.set()
    assert [future.result(10).scores for future in futures] == [[1.0], [2.0], [3.0], [4.0]]
    assert view.batches == [["first"], ["a", "bb", "ccc"], ["dddd"]]


def test_one_querys_mistake_is_its_own(thread: EncoderThread) -> None:
    view = Slow()
    begun(thread, view)
    right, wrong, other = thread.submit(view, asked("right", "wrong", "other"))
    view.may.set()
    assert (right.result(10).scores, other.result(10).scores) == ([5.0], [5.0])
    with pytest.raises(DataError, match="wrong"):
        wrong.result(10)


def test_more_than_the_queue_holds_is_refused_and_what_nobody_waits_for_any_more_is_not_answered(thread: EncoderThread) -> None:
    view = Slow()
    begun(thread, view)
    futures = thread.submit(view, asked("a", "b", "c", "d"))
    with pytest.raises(FullError):
        thread.submit(view, asked("e", "f"))
    futures[1].cancel()
    view.may.set()
    assert futures[3].result(10).scores == [1.0]
    assert view.batches == [["first"], ["a", "c"], ["d"]]


def test_pieces_of_other_work_take_turns_with_batches(thread: EncoderThread) -> None:
    view, order = Slow(), []
    begun(thread, view)
    futures = thread.submit(view, asked("a", "b", "c", "d"))
    pieces = [thread.call(lambda number=number: order.append((number, len(view.batches)))) for number in (1, 2)]  # type: ignore[misc]
    view.may.set()
    for future in (*futures, *pieces):
        future.result(10)  # type: ignore[attr-defined]
    assert order[0] == (1, 1)  # between "first" and the next batch, not behind all of them


def test_texts_of_several_requests_are_encoded_together_each_giving_its_own_result(thread: EncoderThread) -> None:
    view, together = Slow(), list[list[str]]()

    def lengths(texts: Sequence[str]) -> Any:
        together.append(list(texts))
        return np.array([[len(text)] for text in texts])

    def ragged(texts: Sequence[str]) -> Any:
        return Ragged(np.cumsum([0, *map(len, texts)]), {"letters": np.array([ord(letter) for letter in "".join(texts)])})

    begun(thread, view)
    long = ["l" * (PASSAGE + 100)] * (PIECE - 1)
    futures = [thread.encode(lengths, texts) for texts in (["a"], ["bb", "ccc"], long)]
    futures[2:2] = [thread.encode(ragged, ["xy"])]
    futures.append(thread.encode(ragged, ["", "z"]))
    with pytest.raises(FullError):
        thread.encode(ragged, ["more"])
    view.may.set()
    assert [future.result(10).tolist() for future in (*futures[:2], futures[3])] == [[[1]], [[2], [3]], [[PASSAGE + 100]] * (PIECE - 1)]
    assert together == [["a", "bb", "ccc"], long]  # the long ones have no room beside the others
    assert [future.result(10).columns["letters"].tolist() for future in (futures[2], futures[4])] == [[ord("x"), ord("y")], [ord("z")]]
    assert futures[4].result(10).offsets.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("read", "together"),
    [
        (["a short text"] * PIECE, TOGETHER // PIECE),
        ([Query("q", "a short query")] * PIECE, TOGETHER // PIECE),
        ([("a query", "a passage")] * PIECE, TOGETHER // PIECE),
        ([Document("d", "t" * PASSAGE)] * PIECE, 1),
        ([Document("d", "its caption", image=Path("a.png"))] * PIECE, 1),
    ],
    ids=lambda read: type(read[0]).__name__ if isinstance(read, list) else str(read),
)
def test_short_texts_of_more_requests_are_encoded_together_than_long_ones(read: list[Any], together: int) -> None:
    thread, view, sizes = EncoderThread(batch=2, wait_seconds=0, queue=8), Slow(), list[int]()

    def encode(texts: Sequence[Any]) -> Any:
        sizes.append(len(texts))
        return np.arange(len(texts))

    begun(thread, view)
    futures = [thread.encode(encode, read) for _ in range(6)]
    view.may.set()
    assert [len(future.result(10)) for future in futures] == [PIECE] * 6
    thread.close()
    assert sizes[0] == PIECE * together


def test_one_requests_mistake_is_its_own_where_texts_are_encoded_together(thread: EncoderThread) -> None:
    view = Slow()

    def encode(texts: Sequence[str]) -> Any:
        if "wrong" in texts:
            raise DataError("wrong")
        return np.array([len(text) for text in texts])

    begun(thread, view)
    right, wrong, cancelled, other = (thread.encode(encode, [text]) for text in ("right", "wrong", "wrong", "other"))
    cancelled.cancel()
    view.may.set()
    assert (right.result(10).tolist(), other.result(10).tolist()) == ([5], [5])
    with pytest.raises(DataError, match="wrong"):
        wrong.result(10)


# The cache


def test_the_cache_gives_up_what_was_used_the_longest_ago_and_counts_bytes() -> None:
    cache: RecentValues[str] = RecentValues(10)
    cache.put("a", "A", 4)
    cache.put("b", "B", 4)
    assert cache.get("a") == "A"
    cache.put("c", "C", 4)
    assert [cache.get(key) for key in "abc"] == ["A", None, "C"]
    cache.put("a", "AA", 10)
    assert [cache.get(key) for key in "abc"] == ["AA", None, None]
    cache.put("d", "D", 11)
    assert (cache.get("d"), len(cache)) == (None, 1)


# Keys


def test_a_key_is_known_by_its_hash_alone_and_no_longer_once_its_line_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    writer, searcher = new_key(path, "write"), new_key(path, "search")
    assert path.stat().st_mode & 0o777 == 0o600
    assert writer.split("_", 2)[2] not in path.read_text()
    keys = Keys(path)
    found = keys.check(writer)
    assert found is not None
    assert (found.role, found.may("search"), found.may("write"), found.may("admin")) == ("write", True, True, False)
    assert keys.remembered(writer) == (True, found)
    assert keys.check(f"{writer}x") is None
    assert keys.check(searcher.rsplit("_", 1)[0]) is None
    assert keys.check("") is None
    held = json.loads(path.read_text())
    path.write_text(json.dumps({"keys": [record for record in held["keys"] if record["role"] == "search"]}))
    assert keys.remembered(writer) == (False, None)
    assert keys.check(writer) is None
    path.write_text("{")
    assert keys.check(searcher) is None


@contextlib.contextmanager
def half_checked(keys: Keys, key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """Another thread computes the hash of a key for as long as the block runs, which gets threads to ask for others in."""
    begun, free, hashed = threading.Event(), threading.Event(), keys_module._hashed

    def slow(secret: str, salt: bytes) -> bytes:
        begun.set()
        assert free.wait(60)
        return hashed(secret, salt)

    monkeypatch.setattr(keys_module, "_hashed", slow)
    with ThreadPoolExecutor(2) as pool:
        checked = pool.submit(keys.check, key)
        assert begun.wait(20)
        try:
            yield pool
        finally:
            free.set()
            checked.result(20)


def test_a_known_key_is_looked_up_while_another_one_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = new_key(tmp_path / "keys.json", "search")
    keys = Keys(tmp_path / "keys.json")
    found = keys.check(known)
    with half_checked(keys, f"{known}x", monkeypatch) as pool:
        assert pool.submit(keys.remembered, known).result(5) == (True, found)
        assert pool.submit(keys.remembered, f"{known}x").result(5) == (False, None)
    assert keys.remembered(f"{known}x") == (True, None)


def test_a_key_whose_line_is_taken_out_while_it_is_checked_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    gone, kept = new_key(path, "write"), new_key(path, "search")
    keys = Keys(path)
    held = json.loads(path.read_text())
    with half_checked(keys, gone, monkeypatch) as pool:
        path.write_text(json.dumps({"keys": [record for record in held["keys"] if record["role"] == "search"]}))
        assert pool.submit(keys.remembered, kept).result(5) == (False, None)  # which reads the file again
    assert keys.remembered(gone) == (False, None)
    assert keys.check(gone) is None


def test_wrong_keys_push_no_right_one_out_of_the_memory_and_take_no_more_room_than_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "_REMEMBERED", 3)
    right = new_key(tmp_path / "keys.json", "search")
    keys = Keys(tmp_path / "keys.json")
    found = keys.check(right)
    wrong = [f"{right}{number}" for number in range(5)]
    assert [keys.check(key) for key in wrong] == [None] * 5
    assert keys.remembered(right) == (True, found)
    assert [keys.remembered(key) for key in wrong] == [(False, None)] * 2 + [(True, None)] * 3


def test_a_file_of_keys_that_lets_nobody_in_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file of keys. Make one with: retriever serve --new-key admin"):
        Keys(tmp_path / "none")
    (tmp_path / "empty").write_text('{"keys": []}')
    with pytest.raises(ConfigError, match="holds no key"):
        Keys(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no such role; allowed are search, write, admin"):
        new_key(tmp_path / "keys", "root")


def test_a_new_key_is_printed_once(tmp_path: Path) -> None:
    said = command("serve", "--new-key", "search", "--keys", tmp_path / "keys")
    assert Keys(tmp_path / "keys").check(said.out.strip()) is not None
    assert command("serve", "--new-key", "search").error == "--new-key: into which file? Name it: --keys FILE"


# Conversations


def test_a_conversation_is_reached_by_its_owner_alone_and_forgotten_in_time(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "c.sqlite3", hours=0.2 / 3600, most=2, most_turns=3)
    kept = store.begin("anna", "notes")
    kept = store.keep("anna", kept, kept.conversation.said("hello"))
    assert [turn.text for turn in store.get("anna", kept.conversation_id).conversation.turns] == ["hello"]
    for refused in (store.get, store.forget):
        with pytest.raises(RequestError, match="there is no such conversation"):
            refused("ben", kept.conversation_id)
    with pytest.raises(RequestError, match="there is no such conversation"):
        store.keep("ben", kept, kept.conversation.said("hi"))
    store.begin("anna", "notes")
    with pytest.raises(RequestError, match="conversations of this key: 3, and 2 are allowed"):
        store.begin("anna", "notes")
    assert store.begin("ben", "notes").conversation.turns == ()
    time.sleep(0.25)
    with pytest.raises(RequestError, match="may have been forgotten"):
        store.get("anna", kept.conversation_id)
    store.begin("anna", "notes")
    store.close()
    assert b"hello" not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if "wal" not in path.name)


def test_of_two_turns_at_once_one_is_told_to_come_again(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "c.sqlite3", hours=1, most=2, most_turns=3)
    kept = store.begin("", "notes")
    store.keep("", kept, kept.conversation.said("first"))
    with pytest.raises(RequestError, match="another turn of this conversation came at the same time"):
        store.keep("", kept, kept.conversation.said("second"))
    store.close()


# Feedback


def test_feedback_becomes_a_collection_that_experiments_read(tmp_path: Path) -> None:
    log = tmp_path / "feedback.jsonl"
    turns = [{"speaker": "user", "text": "a bird\u2028that"}]
    append(log, [{"query": "hunts", "id": "owl", "index": "notes", "turns": turns, "grade": 2}, {"query": "cuts", "id": "saw", "index": "notes"}])
    with log.open("ab") as stream:
        stream.write(b'{"query": "cut in the mid')  # a crash
    append(log, [{"query": "cuts", "id": "axe", "index": "notes"}, {"query": "cuts", "id": "axe", "index": "notes", "grade": 0}])
    append(log, [{"query": "cuts", "id": "gone", "index": "notes"}, {"query": "other", "id": "owl", "index": "other"}])
    learned = to_qrels(log, "notes")
    assert sorted(learned.qrels.values(), key=len) == [{"owl": 2}, {"saw": 1, "axe": 0, "gone": 1}]
    assert learned.damaged == 1
    documents = [Document("owl", "a bird", "Owl"), Document("saw", "a tool"), Document("axe", "another")]
    done = write_training(tmp_path / "learned", learned, documents)
    assert done.absent == 1
    collection = open_collection(CollectionSettings(path=tmp_path / "learned"), tmp_path / "c")
    queries, qrels = collection.queries("train"), collection.qrels("train")
    read = {query.text: (tuple(turn.text for turn in query.turns), dict(qrels[query_id])) for query_id, query in queries.items()}
    assert read == {"hunts": (("a bird\u2028that",), {"owl": 2}), "cuts": ((), {"saw": 1, "axe": 0})}
    assert [document.title for document in collection.documents()] == ["Owl", "", ""]


def test_a_log_without_feedback_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n")
    with pytest.raises(DataError, match='holds no feedback on the index "notes"'):
        to_qrels(tmp_path / "log", "notes")
    with pytest.raises(DataError, match="cannot be read"):
        to_qrels(tmp_path / "none")


# Words


def test_snippets_mark_the_words_of_the_query_where_they_stand() -> None:
    text, marks = marked_snippet("The Owl hunts mice; owls do.", "what does an OWL hunt: mice?")
    assert [text[start:end] for start, end in marks] == ["mice"]
    text, marks = marked_snippet(f"{'before ' * 100}a saw cuts{' after' * 100}", "a saw that cuts", words=5)
    assert [text[start:end] for start, end in marks] == ["cuts"]
    assert marked_snippet("", "a saw") == ("", [])
    assert marked_snippet("?!", "?") == ("?!", [])


def test_sentences_end_at_full_stops_and_lines() -> None:
    text = "Owls hunt. They weigh 1.5 kg!  Why?\nNobody knows"
    assert [text[start:end] for start, end in sentences_of(text)] == ["Owls hunt.", "They weigh 1.5 kg!", "Why?", "Nobody knows"]
    assert [text[start:end] for start, end in sentences_of(text, 2)] == ["Owls hunt.", "They weigh 1.5 kg!  Why?\nNobody knows"]
    assert sentences_of(" \n ") == []


@pytest.mark.parametrize(
    ("text", "name", "where"),
    [
        ("work/notes", "notes", "work/notes"),
        ("work/notes/index", "notes", "work/notes/index"),
        ("mine=work/a=b", "mine", "work/a=b"),
        ("qdrant://localhost:6333/things", "things", "qdrant://localhost:6333/things"),
        ("examples/tiny.toml", "tiny", "examples/tiny.toml"),
    ],
)
def test_an_index_has_the_name_of_its_folder_or_the_one_that_is_given(text: str, name: str, where: str) -> None:
    assert (place_of(text).name, place_of(text).where) == (name, where)


def test_a_reading_is_for_the_index_that_it_names_or_for_those_that_none_names() -> None:
    places = ["work/notes", "old=work/a", "work/b"]
    assert [place.reads for place in places_of(places)] == [None, None, None]
    assert [place.reads for place in places_of(places, ["old=user"])] == [None, "user", None]
    assert [place.reads for place in places_of(places, ["old=user", "all"])] == ["all", "user", "all"]


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        (["everything"], '--reads everything: unknown reading "everything"; it is one of last, user, all'),
        (["old=everything"], '--reads old=everything: unknown reading "everything"; it is one of last, user, all'),
        (["old="], '--reads old=: unknown reading ""; it is one of last, user, all'),
        (["note=all"], '--reads note=all: there is no index "note", did you mean "notes"?'),
        (["x=all"], '--reads x=all: there is no index "x"; known are notes, old'),
        (["all", "user"], '--reads user: the second reading, after "all", of all indexes; name one: --reads NAME=READING'),
        (["rewrite"], "--reads rewrite: nobody writes rewrites of what is asked here. Choose another reading, for example: all"),
        (["old=rewrite:a=b"], "--reads old=rewrite:a=b: nobody writes rewrites"),
        (["old=all", "old=user"], '--reads old=user: the second reading, after "all", of the index "old"'),
    ],
)
def test_a_reading_that_no_index_can_have_is_refused(reads: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        places_of(["work/notes", "old=work/a"], reads)
    assert str(caught.value).startswith(said)


def test_limits_are_set_by_name() -> None:
    assert limits_of(["k=7", "batch_wait_ms=0.5"]).k == 7
    with pytest.raises(ConfigError, match='there is no limit "kk"'):
        limits_of(["kk=7"])
    with pytest.raises(ConfigError, match="--limit k: input should be greater than or equal to 1"):
        limits_of(["k=0"])
    with pytest.raises(ConfigError, match="has no value"):
        limits_of(["k"])


def test_no_path_is_told() -> None:
    fault = fault_of(ConfigError("/secret/work/notes: no document has a field"), {"/secret/work/notes": "notes"})
    assert fault.body() == {"error": {"type": "invalid_request", "message": "notes: no document has a field"}}


def test_conditions_of_a_command_line_are_a_filter() -> None:
    conditions = [parse_condition(text) for text in ("year>=2020", "year<2024", "language in de,fr")]
    wanted = filter_of(conditions)
    assert wanted == {"year": {">=": "2020", "<": "2024"}, "language": {"in": ["de", "fr"]}}
    assert conditions_from(wanted) == conditions
    with pytest.raises(ConfigError, match='two conditions compare "topic" by ='):
        filter_of([Condition("topic", "=", "law"), Condition("topic", "=", "tax")])
