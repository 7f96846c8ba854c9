"""The tables [[rewriter]] of an experiment file: language models that rewrite turns of conversations so that they stand alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from retriever.conversations.reading import HUMAN
from retriever.engines.settings import EngineSettings
from retriever.settings.section import PositiveInt, nearest

FORMS = {
    "rewrite": "the utterance as a question that stands alone",
    "keywords": "the words that a person would search with",
    "rewrite_and_answer": "the question and a guess of its answer after it (LLM4CS, arXiv:2303.06573)",
}
"""Name -> what is written; beside them a prompt of one's own."""

SHOTS = 6
"""Examples in a preset prompt, when the file says nothing."""

MOST_SHOTS = 7
"""Examples that there are."""


class RewriterSettings(EngineSettings):
    """Who rewrites turns, and how. Readings, candidates and teachers name the rewrites as "rewrite:NAME"."""

    name: str | None = Field(None, description="of the rewrites: what rewrite:NAME reads; the model's when left out")
    form: str = Field("rewrite", description=", ".join(f'"{name}"' for name in FORMS) + ", or a text with {history} and {utterance}")
    system: str | None = Field(None, description="the system's turn of a chat; the form's own when left out")
    chat: bool | None = Field(None, description="whether to use the model's chat template; when left out, where it has one")
    shots: int | None = Field(None, ge=0, le=MOST_SHOTS, description=f"examples in the prompt of a form; {SHOTS} when left out, 0 for a model that needs none")
    samples: PositiveInt = Field(1, description="rewrites of a turn; the second one is read as rewrite:NAME.2, and so on")
    temperature: float = Field(0.0, ge=0, description="divides the logits before a token is drawn; 0 takes the likeliest")
    answer_tokens: PositiveInt = Field(64, description="of a rewrite at most")
    turn_tokens: PositiveInt | None = Field(64, description="of each earlier turn that are shown, the first ones; long answers lead small models astray")
    history_tokens: PositiveInt | None = Field(None, description="of the earlier turns that are shown, the latest ones; as many as fit when left out")
    splits: tuple[Literal["train", "test"], ...] = Field(
        ("train", "test"), strict=False, min_length=1, description="whose turns are rewritten; with test those of [[transfer]] collections too"
    )

    @field_validator("form")
    @classmethod
    def _is_form(cls, form: str) -> str:
        if form in FORMS or all(place in form for place in ("{history}", "{utterance}")):
            return form
        if "{" in form or " " in form:
            raise ValueError(f"a prompt of one's own holds {{history}} and {{utterance}}, where the earlier turns and the last one stand, found {form!r:.60}")
        raise ValueError(f'unknown form "{form}"{nearest(form, list(FORMS))}; or a text with {{history}} and {{utterance}}')

    @model_validator(mode="after")
    def _keys_that_are_read(self) -> RewriterSettings:
        if not self.model:
            raise ValueError("a rewriter needs a model: a folder, a GGUF file, an installed package, a hub id, or the name that its server knows it by")
        if self.shots is not None and self.form not in FORMS:
            raise ValueError("nothing reads shots with a prompt of one's own; write the examples into it, or leave shots out")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature = 0 writes the same rewrite {self.samples} times. Set samples = 1, or a temperature such as 0.7")
        if self.label == HUMAN:
            raise ValueError(f'the name "{HUMAN}" belongs to the rewrites that came with the collection; set another name')
        if not self.label or self.label.split() != [self.label] or "/" in self.label:
            raise ValueError(f'the name "{self.label}" cannot be a file\'s name: it is empty, or holds white space or a slash; set name')
        return self

    @property
    def label(self) -> str:
        """The name of the first rewrites."""
        return self.name if self.name is not None else str(self.model).rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")

    @property
    def names(self) -> tuple[str, ...]:
        """The rewriters that readings can name, one for each sample: NAME, NAME.2, ..."""
        return (self.label, *(f"{self.label}.{number}" for number in range(2, self.samples + 1)))

    @property
    def engine(self) -> EngineSettings:
        """The model and how it is run."""
        return EngineSettings(**{key: getattr(self, key) for key in EngineSettings.model_fields})


def check_rewriters(rewriters: Sequence[RewriterSettings]) -> None:
    """Sees to it that every rewrite has a name of its own.

    Raises:
        ValueError: two have the same.
    """
    names = [name for one in rewriters for name in one.names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'rewriter: the name "{name}" is given twice; set rewriter.name')
