"""What a language model is told to write a query: presets by name, with examples for models that do not chat."""

from __future__ import annotations

from retriever.errors import ConfigError
from retriever.settings.generation import GenerationSettings
from retriever.teachers._prompts import Template, changed

EXAMPLES = (
    "Bread dough rises because yeast turns sugar into carbon dioxide. In a cold kitchen this takes twice as long.",
    "The ferry to the island leaves at 7:30 and 16:00 from May to September. Bicycles travel free of charge.",
    "A circuit breaker that trips again at once points to a short circuit. Unplug everything before you switch it on.",
)
"""Documents of the few-shot prompts."""


def few_shot(word: str, queries: tuple[str, str, str]) -> str:
    """The prompt of a model without a chat template: three documents with a query each, then the document."""
    shown = "".join(f"Document: {document}\n{word}: {query}\n\n" for document, query in zip(EXAMPLES, queries, strict=True))
    return f"{shown}Document: {{document}}\n{word}:"


PRESETS = {
    "question": Template(
        "Document: {document}\n\nWrite one question that a person could type into a search engine and that this document answers. "
        "Use other words than the document where you can. Do not mention the document. Write the question on one line and nothing else.",
        base=few_shot(
            "Question",
            ("why does my dough take so long to rise", "when does the boat to the island go in summer?", "what does it mean if the fuse keeps jumping out?"),
        ),
    ),
    "keywords": Template(
        "Document: {document}\n\nWrite the two to six keywords that a person would type into a search engine to find this document. "
        "Write them on one line, separated by spaces, and nothing else.",
        base=few_shot("Keywords", ("slow dough rising cold", "island ferry timetable summer bicycle", "breaker keeps tripping short circuit")),
    ),
    "search_query": Template(
        "Document: {document}\n\nWrite one short search query whose best answer is this document, as a person would type it. "
        "Do not mention the document. Write the query on one line and nothing else.",
        base=few_shot(
            "Search query", ("yeast dough rising time in a cold room", "ferry departure times island bikes", "breaker trips immediately after reset")
        ),
    ),
}
"""Name -> template."""


def template_of(settings: GenerationSettings) -> Template:
    """The template that [generation] names or holds.

    Raises:
        ConfigError: no preset has that name, and the text has no place for the document.
    """
    if settings.prompt in PRESETS:
        template = PRESETS[settings.prompt]
    elif "{document}" in settings.prompt:
        template = Template(settings.prompt)
    else:
        raise ConfigError(f"generation.prompt is {settings.prompt!r:.60}; it is one of {', '.join(PRESETS)}, or a text with {{document}}")
    return changed(template, settings.system, settings.chat)
