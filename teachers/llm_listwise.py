"""A language model that orders lists: a window of documents at a time, from the end of the list to its beginning."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.engines import Engine, Prompt, open_engine, prompt_text
from retriever.errors import ConfigError, StoreError
from retriever.files import text_hash
from retriever.resources import Resources
from retriever.settings.teacher import LlmListwiseSettings
from retriever.teachers._prompts import Template, changed, cut_documents, query_text
from retriever.types import Document, OrderedList, Query, TeacherIdentity, Usage
from retriever.writing.writers import check_chat

ORDER = re.compile(r"\[\d+\](?:\s*>\s*\[\d+\])*")
"""A whole answer: "[2] > [1] > [3]"."""

NUMBER = re.compile(r"\[(\d+)\]")
THOUGHT = re.compile(r".*</think>", re.DOTALL)
ROOM = 16
TOKENS_PER_NUMBER = 6
"""Of an answer: bracket, one to three digits, bracket, sign."""

LISTWISE = Template(
    "Here are {count} documents, each after its number in brackets.\n\n{documents}\n\nQuery: {query}\n\n"
    "Order the {count} documents by how well they answer the query, the best one first. Write the numbers in brackets with > between them, as in "
    "[2] > [3] > [1], each number once, and nothing else.",
    system="You order documents by their relevance to a query.",
    base="{documents}\n\nQuery: {query}\n\nThe {count} documents above, by how well they answer the query, the best one first, as in [2] > [3] > [1]:",
)

Window = tuple[int, int]


class LlmListwiseTeacher:
    """Orders lists by sliding windows (Sun et al. 2023, arXiv:2304.09542).

    A pass orders the last `window` documents, moves up by `stride` and orders again; so a document may come from the end
    of a list to its beginning, and the first `stride` places are those of a full sort when the model is right. Here the
    last window of a pass always reaches the beginning of the list (the paper's own program may leave the first places out).

    The first pass begins with the candidates' order, each further one with a shuffled order, against the model's liking of
    places (Tang et al. 2023, arXiv:2310.07712). The passes are aggregated by the mean rank, which is Borda's count; the
    first pass decides between equals.

    An answer counts as well-formed when it is exactly the numbers of its window, each once, with > between; a thought before
    it, up to </think>, does not count. Any other is repaired: the numbers that are valid, each at its first place, then
    the documents that are missing, in the order that they had before. How many answers were repaired is the list's status.
    """

    shard_pairs = 400

    def __init__(self, settings: LlmListwiseSettings, engine: Engine, where: str) -> None:
        self.settings = settings
        self.engine = engine
        self.where = where
        self.template = changed(template_of(settings, where), settings.system, settings.chat)
        self.answer_tokens = settings.answer_tokens or TOKENS_PER_NUMBER * settings.window + 16
        self.unchecked = True
        in_chat = self.template.is_chat(engine)
        check_chat(settings, in_chat, where)
        decides = {"prompt": self.template.text, "prompt_hash": self.template.hash, "chat": in_chat}
        decides |= {key: getattr(settings, key) for key in ("window", "stride", "passes", "seed")} | {"answer_tokens": self.answer_tokens}
        decides |= {"max_length": engine.max_length, "dtype": engine.identity.dtype, "engine": engine.identity.engine}
        if settings.server and settings.server.request:
            decides["request"] = settings.server.request
        self.identity = TeacherIdentity(settings.label, "llm_listwise", engine.identity.model, "rank", decides)

    @property
    def usage(self) -> Usage:
        """What the model was asked for."""
        return self.engine.usage

    def order(self, lists: Sequence[tuple[Query, Sequence[Document]]]) -> list[OrderedList]:
        """The aggregated order of each list; all lists and passes move up together, so that a server gets many requests at once.

        Raises:
            ConfigError: not one of the first answers has a valid number: this model cannot order lists, or not with this prompt.
            StoreError: a query leaves no room for documents.
        """
        texts = [self._texts(query, documents) for query, documents in lists]
        passes = [self._passes(query, documents) for query, documents in lists]
        every = [(number, one) for number, of_list in enumerate(passes) for one in of_list]
        for step in range(max((len(one.windows) for _, one in every), default=0)):
            asked = [(number, one) for number, one in every if step < len(one.windows)]
            prompts = [self._prompt(lists[number][0], [texts[number][0][place] for place in one.inside(step)]) for number, one in asked]
            answers = self.engine.generate(prompts, self.answer_tokens)
            lengths = self.engine.count_tokens([prompt_text(prompt) for prompt in prompts]) if self.engine.counts_exactly else [0] * len(prompts)
            for (_, one), answer, length in zip(asked, answers, lengths, strict=True):
                one.take(step, answer, int(length))
            self._check([one for _, one in every], answers)
        return [_ordered(of_list, truncated) for of_list, (_, truncated) in zip(passes, texts, strict=True)]

    def _passes(self, query: Query, documents: Sequence[Document]) -> list[_Pass]:
        """The passes over a list, each in the order that it begins with; what the list says decides the shuffles."""
        key = text_hash("\n".join([query_text(query), *(document.full_text for document in documents)]))
        generator = np.random.default_rng([self.settings.seed, key])
        spans = windows(len(documents), self.settings.window, self.settings.stride)
        shuffles = [generator.permutation(len(documents)).tolist() for _ in range(self.settings.passes - 1)]
        return [_Pass(order, spans) for order in (list(range(len(documents))), *shuffles)]

    def _texts(self, query: Query, documents: Sequence[Document]) -> tuple[list[str], list[bool]]:
        """The documents' texts, all cut to the same share of the room, and whether each was."""
        shown = min(self.settings.window, len(documents))
        empty = prompt_text(self._prompt(query, [""] * shown))
        room = self.engine.max_length - self.answer_tokens - ROOM - int(self.engine.count_tokens([empty])[0])
        share = room // max(shown, 1)
        if share < 1:
            raise StoreError(
                f"{self.where}: query {query.query_id}, instructions and answer leave no room for {shown} documents in {self.engine.max_length} tokens. "
                "Raise max_length, or lower window"
            )
        return cut_documents(self.engine, list(documents), [share] * len(documents))

    def _prompt(self, query: Query, texts: Sequence[str]) -> Prompt:
        listed = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(texts, 1))
        return self.template.fill(self.engine, {"query": self.engine.plain(query_text(query)), "documents": listed, "count": str(len(texts))})

    def _check(self, passes: Sequence[_Pass], answers: Sequence[str]) -> None:
        """Refuses a model whose first answers, three at least, hold no valid number."""
        if self.unchecked and len(answers) >= 3:
            if not any(one.understood for one in passes):
                raise ConfigError(
                    f"{self.where}: none of the first {len(answers)} answers holds a number of a document; the first is {answers[0]!r:.80}. "
                    'This model cannot order lists with this prompt: set prompt or chat, a smaller window, or use kind = "llm"'
                )
            self.unchecked = False


class _Pass:
    """One order of one list while windows move over it."""

    def __init__(self, order: list[int], spans: list[Window]) -> None:
        self.order = order
        self.windows = spans
        self.n_tokens = self.repaired = self.understood = 0

    def inside(self, step: int) -> list[int]:
        """The documents of a window, in their present order."""
        return self.order[slice(*self.windows[step])]

    def take(self, step: int, answer: str, n_tokens: int) -> None:
        """Puts a window's documents into the order of the answer to a prompt of so many tokens."""
        inside = self.inside(step)
        places, well_formed = parse_order(answer, len(inside))
        self.order[slice(*self.windows[step])] = [inside[place] for place in places]
        self.n_tokens += n_tokens
        self.repaired += not well_formed
        self.understood += any(0 < int(number) <= len(inside) for number in NUMBER.findall(answer))


def windows(count: int, window: int, stride: int) -> list[Window]:
    """The windows of one pass over `count` documents, the last one first; the one that reaches the beginning ends the pass."""
    found = [(max(0, count - window), count)] if count > 1 else []
    while found and found[-1][0] > 0:
        end = found[-1][1] - stride
        found.append((max(0, end - window), end))
    return found


def parse_order(answer: str, count: int) -> tuple[list[int], bool]:
    """The places [count] that an answer puts in order, from 0, and whether it was well-formed; repaired where it was not."""
    text = THOUGHT.sub("", answer).strip().removesuffix(".")
    numbers = [int(number) - 1 for number in NUMBER.findall(text)]
    well_formed = ORDER.fullmatch(text) is not None and sorted(numbers) == list(range(count))
    valid = dict.fromkeys(number for number in numbers if 0 <= number < count)
    return [*valid, *(place for place in range(count) if place not in valid)], well_formed


def aggregate(orders: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """int32 [n], the rank of each of n documents by the mean of its ranks in several orders; the first order decides between equals."""
    ranks = np.array([np.argsort(order) for order in orders])  # [passes, n], from 0
    best_first = np.lexsort((ranks[0], ranks.sum(axis=0)))
    return (np.argsort(best_first) + 1).astype(np.int32)


def _ordered(passes: Sequence[_Pass], truncated: list[bool]) -> OrderedList:
    count, answers, repaired = len(passes[0].order), sum(len(one.windows) for one in passes), sum(one.repaired for one in passes)
    share, rest = divmod(sum(one.n_tokens for one in passes), count)
    shares = np.full(count, share, dtype=np.int32)
    shares[:rest] += 1
    status = f"repaired {repaired} of {answers}" if repaired else "ok"
    return OrderedList(aggregate([one.order for one in passes]), len(passes), shares, np.array(truncated, dtype=np.bool_), status)


def template_of(settings: LlmListwiseSettings, where: str) -> Template:
    """The prompt of a teacher's table: its own text, or ours.

    Raises:
        ConfigError: the text has no place for the query or for the documents.
    """
    if settings.prompt is None:
        return LISTWISE
    if not all(place in settings.prompt for place in ("{query}", "{documents}")):
        raise ConfigError(f"{where}: prompt is {settings.prompt!r:.60}; it must hold {{query}} and {{documents}}, and may hold {{count}}")
    return Template(settings.prompt)


def load(settings: LlmListwiseSettings, resources: Resources) -> LlmListwiseTeacher:
    """The language model of the file.

    Raises:
        ConfigError: no model is named, there is none, or the prompt lacks a place.
        MissingExtraError: a GGUF file is named and the package gguf is missing.
    """
    del resources
    where = f"teacher {settings.label}"
    template_of(settings, where)
    return LlmListwiseTeacher(settings, open_engine(settings.engine, where), where)
