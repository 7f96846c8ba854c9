"""What language models are told: templates by name, filled for a query and a document."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from retriever.engines import Engine, Prompt
from retriever.errors import ConfigError
from retriever.files import fingerprint
from retriever.settings.teacher import LlmSettings
from retriever.types import Document, Query

PLACE = re.compile(r"\{(query|document|instruction|count|documents)\}")
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt with places to be filled.

    Attributes:
        text: what the user says; for a model without a chat template, or with chat = False, the whole prompt.
        system: the system's turn of a chat; "" for none.
        base: the whole prompt for a model without a chat template; "" where `text` is it.
        chat: whether `text` goes into the model's chat template, where it has one.
        continuation: what the model is to find likely, in the form query_likelihood; begins behind the prompt.
        base_continuation: the same behind `base`.
        instruction: fills {instruction}.
    """

    text: str
    system: str = ""
    base: str = ""
    chat: bool = True
    continuation: str = "{query}"
    base_continuation: str = " {query}"
    instruction: str = WEB_SEARCH

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that change with any of its words."""
        return fingerprint(dataclasses.asdict(self))

    def fill(self, engine: Engine, values: Mapping[str, str]) -> Prompt:
        """The prompt with the values in their places, for a base model or in the model's chat template."""
        filled = {"instruction": self.instruction, **values}
        if self.chat:
            turns = [{"role": "system", "content": fill(self.system, filled)}] if self.system else []
            prompt = engine.chat([*turns, {"role": "user", "content": fill(self.text, filled)}])
            if prompt is not None:
                return prompt
        return fill(self.base or self.text, filled)

    def is_chat(self, engine: Engine) -> bool:
        """Whether the engine puts the prompt into a chat template."""
        return self.chat and engine.chat([{"role": "user", "content": "x"}]) is not None


PRESETS = {
    "yes_no": {
        "yes_no": Template(
            "Query: {query}\n\nDocument: {document}\n\nIs the document relevant to the query? Answer with yes or no.",
            system="You judge whether a document is relevant to a query. You answer with yes or no and nothing else.",
            base="Document: {document}\nQuery: {query}\nIs the document relevant to the query (yes or no)? Answer:",
        ),
        # Zhang et al. 2025, arXiv:2506.05176: the words and the empty thought that Qwen3-Reranker was trained with.
        "qwen3_reranker": Template(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
            'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            chat=False,
        ),
    },
    "query_likelihood": {
        # Sachan et al. 2022, arXiv:2204.07496, in other words.
        "query_likelihood": Template(
            "Document: {document}\n\nWrite a search query that this document answers. Write the query and nothing else.",
            base="Document: {document}\nA search query that this document answers:",
        ),
    },
}
"""Form -> name -> template."""


def template_of(settings: LlmSettings, where: str) -> Template:
    """The template of a teacher's table: a preset or its own text, with what the table sets otherwise.

    Raises:
        ConfigError: no preset has that name, and the text is none that holds query and document.
    """
    presets = PRESETS[settings.form]
    name = settings.prompt or settings.form
    wanted = ("query", "document") if settings.form == "yes_no" else ("document",)
    if name in presets:
        template = presets[name]
    elif all(f"{{{place}}}" in name for place in wanted):
        template = Template(name)
    else:
        needed = " and ".join(f"{{{place}}}" for place in wanted)
        raise ConfigError(f'{where}: prompt is {name!r:.60}; with form = "{settings.form}" it is one of {", ".join(presets)}, or a text with {needed}')
    if settings.instruction is not None and "{instruction}" not in template.text + template.base + template.system:
        raise ConfigError(f"{where}: instruction is set, but the prompt has no place {{instruction}}. Take it out, or write a prompt with the place")
    return changed(template, settings.system, settings.chat, settings.instruction)


def changed(template: Template, system: str | None, chat: bool | None, instruction: str | None = None) -> Template:
    """The template with what is set otherwise."""
    given: dict[str, Any] = {"system": system, "chat": chat, "instruction": instruction}
    return dataclasses.replace(template, **{key: value for key, value in given.items() if value is not None})


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its places filled in one go: braces in a query or document stay what they are."""
    return PLACE.sub(lambda place: values.get(place[1], place[0]), text)


def query_text(query: Query) -> str:
    """What a query says, after the turns of its conversation."""
    return "\n".join([*(f"{turn.speaker}: {turn.text}" for turn in query.turns), query.text])


def cut_documents(engine: Engine, documents: list[Document], budgets: list[int]) -> tuple[list[str], list[bool]]:
    """The documents' texts without control tokens, each no longer than its budget of tokens, and whether it was cut."""
    texts = [engine.plain(document.full_text) for document in documents]
    distinct = list(dict.fromkeys(texts))
    lengths = dict(zip(distinct, engine.count_tokens(distinct).tolist(), strict=True))
    truncated = [lengths[text] > budget for text, budget in zip(texts, budgets, strict=True)]
    return [engine.cut(text, budget) if long else text for text, budget, long in zip(texts, budgets, truncated, strict=True)], truncated
