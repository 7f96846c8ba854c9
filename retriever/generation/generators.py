"""Who writes queries: a language model, or the document itself by its title or a sentence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from retriever.engines import Engine, Prompt, open_engine, prompt_text
from retriever.files import text_hash
from retriever.generation.prompts import template_of
from retriever.settings.generation import GenerationSettings
from retriever.teachers._prompts import cut_documents
from retriever.types import Document, Usage
from retriever.writing.writers import Writer, WriterIdentity, check_chat, room_left

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


Generator = Writer[Document]
"""Writes queries for documents."""


@dataclasses.dataclass(frozen=True)
class DocumentsOwnWords:
    """A generator without a model: a function of the document, the sample number and the seed."""

    identity: WriterIdentity
    words_of: Callable[[Document, int, int], str]
    usage: Usage = dataclasses.field(default_factory=Usage)

    def write(self, documents: Sequence[Document], sample: int) -> list[str]:
        """The words of each document for that sample number."""
        return [self.words_of(document, sample, self.identity.seed) for document in documents]


class LanguageModel:
    """A language model that is shown one document at a time.

    The draws depend on the seed, the sample number and the documents that are asked about together, so the same
    documents get the same queries on the same machine, whatever was written before.
    """

    def __init__(self, settings: GenerationSettings, engine: Engine, seed: int) -> None:
        self.settings = settings
        self.engine = engine
        self.template = template_of(settings)
        in_chat = self.template.is_chat(engine)
        check_chat(settings, in_chat, "generation")
        self.stop = () if in_chat else ("\n",)
        decides = {"prompt": self.template.text, "prompt_hash": self.template.hash, "chat": in_chat, "temperature": settings.temperature}
        decides |= {"answer_tokens": settings.answer_tokens, "max_length": engine.max_length, "dtype": engine.identity.dtype, "engine": engine.identity.engine}
        if settings.server and settings.server.request:
            decides["request"] = settings.server.request
        self.identity = WriterIdentity("llm", engine.identity.model, seed, decides)

    @property
    def usage(self) -> Usage:
        """Prompts, tokens and price so far."""
        return self.engine.usage

    def write(self, documents: Sequence[Document], sample: int) -> list[str]:
        """One answer for each document.

        Raises:
            ConfigError: the prompt leaves no room for a document.
        """
        room = self._room()
        texts, _ = cut_documents(self.engine, list(documents), [room] * len(documents))
        seed = text_hash(f"{self.identity.seed} {sample} {' '.join(document.doc_id for document in documents)}") % 2**31
        return self.engine.generate([self._prompt(text) for text in texts], self.settings.answer_tokens, self.settings.temperature, seed, self.stop)

    def _prompt(self, text: str) -> Prompt:
        return self.template.fill(self.engine, {"document": text})

    def _room(self) -> int:
        """Tokens of a document that are read."""
        taken = int(self.engine.count_tokens([prompt_text(self._prompt(""))])[0])
        return room_left(taken, self.settings.answer_tokens, self.engine.max_length, "generation")


def sentences(document: Document) -> list[str]:
    """The sentences of a document's text in their order, none twice, lines joined."""
    return list(dict.fromkeys(" ".join(sentence.split()) for sentence in SENTENCE_END.split(document.text.strip())))


def title(document: Document, sample: int, seed: int) -> str:
    """A document's title, whatever the sample and the seed."""
    return document.title


def first_sentence(document: Document, sample: int, seed: int) -> str:
    """The first sentence of a document's text, whatever the sample and the seed."""
    return next(iter(sentences(document)), "")


def drawn_sentence(document: Document, sample: int, seed: int) -> str:
    """A sentence of a document's text, none twice: "" where it has no more than `sample`."""
    found = sentences(document)
    order = np.random.default_rng(text_hash(f"{seed} {document.doc_id}")).permutation(len(found))
    return found[order[sample]] if sample < len(found) else ""


OWN_WORDS = {"title": title, "first_sentence": first_sentence, "sentence": drawn_sentence}
"""Method of [generation] -> what it takes of a document."""


def open_generator(settings: GenerationSettings, seed: int) -> Generator:
    """The generator that [generation] names.

    Raises:
        ConfigError: there is no such model or preset.
    """
    if settings.method == "llm":
        return LanguageModel(settings, open_engine(settings.engine, "generation"), seed)
    return DocumentsOwnWords(WriterIdentity(settings.method, "", seed), OWN_WORDS[settings.method])
