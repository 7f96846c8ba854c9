"""What was said before a turn, gathered from the turns of its conversation that stand before it in a file."""

from __future__ import annotations

from collections.abc import Sequence

from retriever.errors import DataError
from retriever.types import Turn

USER, AGENT = "user", "agent"


class Histories:
    """The turns so far of each conversation of a file, whose conversations may be mixed."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Turn, ...]] = {}
        self._last: dict[str, tuple[int, str]] = {}

    def before(self, where: str, conversation: str, number: int) -> tuple[Turn, ...]:
        """The turns before a turn of the file, oldest first.

        Args:
            where: the turn stands.
            conversation: its id.
            number: of the turn in the conversation; 0 or 1 is the first, and gaps are allowed.

        Raises:
            DataError: the turn is out of order, numbered as an earlier one, or without the beginning of its conversation.
        """
        begun = conversation in self._last
        self.check(where, conversation, number)
        if not begun and number > 1:
            found = f"turn {number} of the conversation {conversation} is the first one here: the turns before it are missing"
            raise DataError(f"{where}: {found}. Add them, or give the turn its history")
        return self._said.get(conversation, ())

    def check(self, where: str, conversation: str, number: int) -> None:
        """Refuses a turn that is out of order, or numbered as an earlier one."""
        last, last_where = self._last.get(conversation, (-1, ""))
        if number == last:
            raise DataError(f"{where}: turn {number} of the conversation {conversation} stands already at {last_where}. Number each turn once")
        if number < last:
            raise DataError(f"{where}: turn {number} of the conversation {conversation} stands after turn {last} ({last_where}). Put them in their order")
        self._last[conversation] = number, where

    def add(self, conversation: str, *turns: Turn) -> None:
        """Adds what is said in a turn, for those that follow."""
        self._said[conversation] = (*self._said.get(conversation, ()), *turns)


def exchange(utterance: str, answer: str = "") -> tuple[Turn, ...]:
    """What the user says, and what the agent answers where it does."""
    return (Turn(USER, utterance), *([Turn(AGENT, answer)] if answer.strip() else []))


def alternating(texts: Sequence[str]) -> tuple[Turn, ...]:
    """Turns of texts that are the user's and the agent's by turns, the user's first; empty ones, which say nothing, are left out."""
    return tuple(Turn(AGENT if place % 2 else USER, text) for place, text in enumerate(texts) if text.strip())
