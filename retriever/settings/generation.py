"""The section [generation] of an experiment file: queries that are written for a collection which has none, or few."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from retriever.engines.settings import EngineSettings
from retriever.settings.section import Fraction, PositiveInt

NARROWER = ("system", "chat")
"""Keys that only a language model reads, beside those of `EngineSettings`."""


class GenerationSettings(EngineSettings):
    """Who writes queries, how many, and what a query must be to be kept. The keys of the model are read by method = "llm" only."""

    method: Literal["llm", "title", "first_sentence", "sentence"] = Field(
        "first_sentence",
        description='"llm": a language model writes them; "title", "first_sentence", "sentence" (drawn) take them from the document: easy queries',
    )
    queries: PositiveInt = Field(2000, description="wanted; the best are kept where there are more")
    per_document: PositiveInt = Field(3, description='queries written for a document by "llm" and "sentence"; it has one title and one first sentence')
    over_generation: float = Field(2.0, ge=1, description="queries written for each one wanted: the critic drops some")
    test_fraction: Fraction = Field(0.2, description="of the documents, whose queries are the test split of a collection that has none")
    prompt: str = Field("question", description='"question", "keywords", "search_query", or a text with {document}')
    system: str | None = Field(None, description="the system's turn of a chat; the prompt's own when left out")
    chat: bool | None = Field(None, description="whether to use the model's chat template; when left out, where it has one")
    temperature: float = Field(0.8, ge=0, description="divides the logits before a token is drawn; 0 takes the likeliest, so give per_document = 1")
    answer_tokens: PositiveInt = Field(48, description="of an answer at most")
    round_trip: tuple[Literal["bm25", "student"], ...] = Field(
        ("bm25",), strict=False, min_length=1, description="one of these must find the document that the query was written for"
    )
    rank: PositiveInt = Field(20, description="among its first so many")
    teacher: str | None = Field(None, description="a teacher's name; it must rank that document high among BM25's best; not asked when left out")
    teacher_rank: PositiveInt = Field(3, description="the lowest rank that is high enough")
    teacher_depth: PositiveInt = Field(20, description="documents that it ranks")
    shortest: PositiveInt = Field(2, description="words of a query")
    longest: PositiveInt = Field(40, description="words of a query")
    copied: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of a query that may be one run of the document's words; when left out, 0.7 for a language model, else 1",
    )
    near_duplicate: float = Field(0.8, gt=0, le=1, description="share of common words from which on two queries are one")

    @model_validator(mode="after")
    def _only_models_have_keys_of_models(self) -> GenerationSettings:
        if self.method == "llm":
            if not self.model:
                raise ValueError('method = "llm" needs a model: a folder, a GGUF file, an installed package or a hub id')
            if self.temperature == 0 and self.per_document > 1:
                raise ValueError(f"temperature = 0 writes the same query {self.per_document} times. Set per_document = 1, or a temperature such as 0.8")
            return self
        given = [key for key in (*EngineSettings.model_fields, *NARROWER) if getattr(self, key) != type(self).model_fields[key].default]
        if given:
            raise ValueError(f'nothing reads {given[0]} with method = "{self.method}"; set method = "llm", or take it out')
        return self

    @property
    def engine(self) -> EngineSettings:
        """The model and how it is run."""
        return EngineSettings(**{key: getattr(self, key) for key in EngineSettings.model_fields})

    @property
    def samples_per_document(self) -> int:
        """Queries written for one document: a document has one title and one first sentence."""
        return self.per_document if self.method in ("llm", "sentence") else 1

    @property
    def copied_share(self) -> float:
        """The share from which on a query is called copied."""
        return self.copied or (0.7 if self.method == "llm" else 1.0)
