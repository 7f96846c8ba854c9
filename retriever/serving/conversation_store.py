"""Conversations of all worker processes, in a file that forgets: each belongs to the key that began it."""

from __future__ import annotations

import dataclasses
import json
import secrets
import sqlite3
import threading
import time
from pathlib import Path

from retriever.conversations.chat import Conversation
from retriever.serving.faults import RequestError, beyond

_TABLE = """
CREATE TABLE IF NOT EXISTS conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, place TEXT NOT NULL, said TEXT NOT NULL, turns INTEGER NOT NULL, until REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_owner ON conversations (owner);
CREATE INDEX IF NOT EXISTS by_end ON conversations (until);
"""


@dataclasses.dataclass(frozen=True)
class Kept:
    """A conversation as it is kept.

    Attributes:
        conversation_id: 24 random characters.
        place: the name of the index that is searched.
        conversation: what was said.
        count: turns that were ever said, by which two that come at once are told apart.
        until: when it is forgotten, in seconds since 1970.
    """

    conversation_id: str
    place: str
    conversation: Conversation
    count: int
    until: float


class ConversationStore:
    """Conversations that one key cannot reach from another, forgotten some hours after their last turn."""

    def __init__(self, path: Path, hours: float, most: int, most_turns: int) -> None:
        """Opens the file, and makes it where it is missing.

        Args:
            path: of the file; what is forgotten is overwritten in it.
            hours: after which a conversation is forgotten.
            most: conversations of one key.
            most_turns: that are kept of each.
        """
        self._seconds, self._most, self._most_turns = hours * 3600, most, most_turns
        self._lock = threading.Lock()
        path.touch(mode=0o600)
        self._file = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA secure_delete = ON")
        self._file.executescript(_TABLE)

    def begin(self, owner: str, place: str) -> Kept:
        """A new conversation of a key.

        Raises:
            RequestError: it has too many.
        """
        kept = Kept(secrets.token_urlsafe(18), place, Conversation(most_turns=self._most_turns), 0, self._end())
        with self._lock:
            self._forget()
            (count,) = self._file.execute("SELECT count(*) FROM conversations WHERE owner = ?", (owner,)).fetchone()
            if count >= self._most:
                raise beyond("conversations of this key", count + 1, self._most)
            values = (kept.conversation_id, owner, place, json.dumps(kept.conversation.to_json()), 0, kept.until)
            self._file.execute("INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?)", values)
        return kept

    def get(self, owner: str, conversation_id: str) -> Kept:
        """A conversation of this key.

        Raises:
            RequestError: there is none, it is forgotten, or it is another key's; nobody can tell which.
        """
        with self._lock:
            self._forget()
            query = "SELECT place, said, turns, until FROM conversations WHERE id = ? AND owner = ?"
            found = self._file.execute(query, (conversation_id, owner)).fetchone()
        if found is None:
            raise _unknown()
        place, said, count, until = found
        return Kept(conversation_id, place, Conversation.from_json(json.loads(said)), count, until)

    def keep(self, owner: str, kept: Kept, conversation: Conversation) -> Kept:
        """The conversation after something was said in `kept`.

        Raises:
            RequestError: something else was said meanwhile, or it is gone.
        """
        until = self._end()
        with self._lock:
            change = "UPDATE conversations SET said = ?, turns = turns + 1, until = ? WHERE id = ? AND owner = ? AND turns = ?"
            values = (json.dumps(conversation.to_json()), until, kept.conversation_id, owner, kept.count)
            changed = self._file.execute(change, values).rowcount
        if not changed:
            self.get(owner, kept.conversation_id)
            raise RequestError(409, "conflict", "another turn of this conversation came at the same time; send this one again")
        return dataclasses.replace(kept, conversation=conversation, count=kept.count + 1, until=until)

    def forget(self, owner: str, conversation_id: str) -> None:
        """Forgets a conversation of this key.

        Raises:
            RequestError: there is none.
        """
        with self._lock:
            gone = self._file.execute("DELETE FROM conversations WHERE id = ? AND owner = ?", (conversation_id, owner)).rowcount
        if not gone:
            raise _unknown()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._file.close()

    def _forget(self) -> None:
        self._file.execute("DELETE FROM conversations WHERE until < ?", (time.time(),))

    def _end(self) -> float:
        return time.time() + self._seconds


def _unknown() -> RequestError:
    return RequestError(404, "not_found", "there is no such conversation; it may have been forgotten")
