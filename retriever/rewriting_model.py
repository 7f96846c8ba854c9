"""A language model that rewrites turns of conversations: what it is shown of them, and what decides its rewrites."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from retriever.engines import Engine, Prompt, open_engine, prompt_text
from retriever.engines.gguf import convert, find_gguf
from retriever.engines.settings import EngineSettings
from retriever.files import fingerprint, text_hash
from retriever.models import find_model
from retriever.rewriter_settings import FORMS, RewriterSettings
from retriever.rewriting_prompts import RewritingPrompt, line_of, prompt_of
from retriever.types import Query, Usage
from retriever.writers import WriterIdentity, check_chat, room_left


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a model sees of the turns before one.

    Attributes:
        text: a line for each, oldest first.
        left_out: turns of which nothing is in it.
        cut: turns of which only the first words are in it.
        tokens: how many are not in it.
    """

    text: str
    left_out: int
    cut: int
    tokens: int


class Rewriter:
    """A language model that is shown one turn with those before it at a time.

    The last turn always stays. Earlier ones are shown as long as there is room, the latest first, of each its first `turn_tokens`;
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
        prompts = [self._prompt(turn, shown) for turn, shown in zip(turns, self.shown(turns), strict=True)]
        return self.engine.generate(prompts, self.settings.answer_tokens, self.settings.temperature, seed, self.stop)

    def shown(self, turns: Sequence[Query]) -> list[Shown]:
        """The earlier turns as the model sees them, and what there was no room for.

        Raises:
            ConfigError: the prompt leaves no room for a turn.
        """
        taken = int(self.engine.count_tokens([prompt_text(self.prompt.fill(self.engine, "", ""))])[0])
        room = room_left(taken, self.settings.answer_tokens, self.engine.max_length, self._where)
        said = self.engine.count_tokens([self._utterance(turn) for turn in turns]).tolist()
        return [self._fitted(turn, min(self.settings.history_tokens or room, room - own)) for turn, own in zip(turns, said, strict=True)]

    def _fitted(self, turn: Query, room: int) -> Shown:
        lines = [self.engine.plain(line_of(one)) for one in turn.turns]
        lengths = self.engine.count_tokens(lines).tolist()
        shown: list[str] = []
        cut = tokens = 0
        for line, length in zip(reversed(lines), reversed(lengths), strict=True):
            wanted = min(length, self.settings.turn_tokens or length)
            taken = min(wanted, room - 1)  # a line's end is a token
            if taken > 0:
                shown.append(line if taken == length else self.engine.cut(line, taken))
                cut += taken < length
                tokens += taken
            if taken < wanted:
                break
            room -= taken + 1
        return Shown("\n".join(reversed(shown)), len(lines) - len(shown), cut, sum(lengths) - tokens)

    def _prompt(self, turn: Query, shown: Shown) -> Prompt:
        return self.prompt.fill(self.engine, shown.text, self._utterance(turn))

    def _utterance(self, turn: Query) -> str:
        return self.engine.plain(" ".join(turn.text.split()))

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
    gguf = find_gguf(name)
    return find_model(str(convert(gguf, where)) if gguf else name, settings.revision, where).identity
