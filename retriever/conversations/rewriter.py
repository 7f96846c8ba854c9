"""A language model that rewrites turns of conversations: what it is shown of them, and what decides its rewrites."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from retriever.conversations.prompts import UTTERANCE, RewritingPrompt, line_of, prompt_of
from retriever.engines import Engine, open_engine, prompt_text
from retriever.engines.gguf import find_language_model
from retriever.engines.settings import EngineSettings
from retriever.files import fingerprint, text_hash
from retriever.settings.rewriter import FORMS, RewriterSettings
from retriever.types import Query, Usage
from retriever.writing.writers import WriterIdentity, check_chat, room_left


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a model sees of a turn.

    Attributes:
        utterance: what was said in it, on one line.
        history: a line for each of the turns before it, oldest first.
        left_out: turns of which nothing is in it.
        cut: turns of which only the first words are in it.
        tokens: how many are not in it.
    """

    utterance: str
    history: str
    left_out: int
    cut: int
    tokens: int


class Rewriter:
    """A language model that is shown one turn with those before it at a time.

    The last turn is shown first of all. Earlier ones are as long as there is room, the latest first, of each its first `turn_tokens`;
    the one that does not fit is cut to its first words, and those before it are left out. The draws depend on the seed, the sample number and the turns that
    are asked about together.

    Attributes:
        settings: the table [[rewriter]].
        engine: the model.
        prompt: with its examples.
        identity: what decides the rewrites.
    """

    def __init__(self, settings: RewriterSettings, engine: Engine, identity: WriterIdentity) -> None:
        self.settings = settings
        self.engine = engine
        self.identity = identity
        self.prompt: RewritingPrompt = prompt_of(settings)
        in_chat = self.prompt.is_chat(engine)
        check_chat(settings, in_chat, self._where)
        self.stop = () if in_chat else self.prompt.stop

    @property
    def usage(self) -> Usage:
        """Prompts, tokens and price so far."""
        return self.engine.usage

    def write(self, turns: Sequence[Query], sample: int) -> list[str]:
        """One raw answer for each turn.

        Raises:
            ConfigError: the prompt leaves no room for a turn.
        """
        seed = text_hash(f"{self.identity.seed} {sample} {' '.join(map(turn_key, turns))}") % 2**31
        prompts = [self.prompt.fill(self.engine, one.history, one.utterance) for one in self.shown(turns)]
        return self.engine.generate(prompts, self.settings.answer_tokens, self.settings.temperature, seed, self.stop)

    def shown(self, turns: Sequence[Query]) -> list[Shown]:
        """What the model sees of each turn.

        Raises:
            ConfigError: the prompt leaves no room for a turn.
        """
        taken = int(self.engine.count_tokens([prompt_text(self.prompt.fill(self.engine, "", ""))])[0])
        room = room_left(taken, self.settings.answer_tokens, self.engine.max_length, self._where)
        return [self._fitted(turn, room) for turn in turns]

    def _fitted(self, turn: Query, room: int) -> Shown:
        said = self.engine.plain(" ".join(turn.text.split()))
        length, places = int(self.engine.count_tokens([said])[0]), max(1, self.prompt.text.count(UTTERANCE))
        missing = max(0, length - room // places)
        left = min(self.settings.history_tokens or room, room - length * places)
        history, left_out, cut, tokens = self._earlier(turn, left)
        return Shown(self.engine.cut(said, room // places) if missing else said, history, left_out, cut + (missing > 0), tokens + missing)

    def _earlier(self, turn: Query, room: int) -> tuple[str, int, int, int]:
        """The turns before one, how many of them are left out and cut, and the tokens that are missing."""
        lines = [self.engine.plain(line_of(one)) for one in turn.turns]
        lengths = self.engine.count_tokens(lines).tolist()
        shown: list[str] = []
        cut = kept = 0
        for line, length in zip(reversed(lines), reversed(lengths), strict=True):
            wanted = min(length, self.settings.turn_tokens or length)
            taken = min(wanted, room - 1)  # a line's end is a token
            if taken > 0:
                shown.append(line if taken == length else self.engine.cut(line, taken))
                cut += taken < length
                kept += taken
            if taken < wanted:
                break
            room -= taken + 1
        return "\n".join(reversed(shown)), len(lines) - len(shown), cut, sum(lengths) - kept

    @property
    def _where(self) -> str:
        return f"rewriter {self.settings.label}"


def turn_key(turn: Query) -> str:
    """Sixteen hexadecimal digits of what was said up to a turn: the same conversation is rewritten once."""
    return fingerprint([*([one.speaker, one.text] for one in turn.turns), turn.text])


def identity_of(settings: RewriterSettings, seed: int) -> WriterIdentity:
    """What decides the rewrites, told without loading the model; its dtype counts as the table names it.

    Raises:
        ConfigError: there is no such model.
        MissingExtraError: a GGUF file is named and the package gguf is missing.
    """
    prompt = prompt_of(settings)
    decides: dict[str, Any] = {"prompt": prompt.text, "prompt_hash": prompt.hash, "chat": settings.chat}
    decides |= settings.model_dump(include={"temperature", "answer_tokens", "turn_tokens", "history_tokens", "max_length", "dtype"})
    decides |= {"engine": "transformers"}
    if settings.server:
        decides |= {"engine": f"server:{settings.server.endpoint}"} | ({"request": settings.server.request} if settings.server.request else {})
    form = settings.form if settings.form in FORMS else "own"
    return WriterIdentity(form, _model(settings.engine, f"rewriter {settings.label}"), seed, decides)


def open_rewriter(settings: RewriterSettings, seed: int) -> Rewriter:
    """The rewriter of a table [[rewriter]], its model loaded.

    Raises:
        ConfigError: there is no such model, or the table does not fit it.
        MissingExtraError: a GGUF file is named and the package gguf is missing.
    """
    return Rewriter(settings, open_engine(settings.engine, f"rewriter {settings.label}"), identity_of(settings, seed))


def _model(settings: EngineSettings, where: str) -> str:
    """A hash of the model's files; of one on a server the name and revision that it knows it by, and the tokenizer that is used here."""
    name = str(settings.model)
    if settings.server:
        return "@".join(part for part in (name, settings.revision, settings.server.tokenizer) if part)
    return find_language_model(name, settings.revision, where).identity
