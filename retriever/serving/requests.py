"""What clients send. How much of it is allowed is a matter of the server's limits, to which `retriever.serving.service` holds it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from retriever.types import Turn

MOST = 2**31
"""Above every number that means anything here."""


class Body(BaseModel):
    """A request: unknown keys are refused, and no value is taken for one of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Foreign(BaseModel):
    """A request in the shape of another program's interface: what is not known of it is passed over, as clients send it with nothing meant."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class SaidTurn(Body):
    """An earlier turn of a conversation."""

    speaker: Literal["user", "agent"]
    text: str = Field(min_length=1)

    def turn(self) -> Turn:
        """As students read it."""
        return Turn(self.speaker, self.text)


Filter = Annotated[dict[str, Any], Field(description='conditions on fields, such as {"language": ["de", "fr"], "year": {">=": 2020}}; all must be met')]
INDEX = Field(None, max_length=100, description="the index's name; the first one when left out")


class SearchRequest(Body):
    """One query, or several, or an image."""

    query: str | None = Field(None, description="a text")
    queries: list[str] | None = Field(None, min_length=1, description="several texts, in the place of one")
    image: str | None = Field(
        None,
        min_length=1,
        description="an image file in base64, plain or as a data: URL, in the place of a text: PNG, JPEG, WebP, GIF, BMP or TIFF",
        json_schema_extra={"contentEncoding": "base64"},
    )
    k: int = Field(10, ge=1, le=MOST, description="documents for each query")
    index: str | None = INDEX
    filter: Filter = {}
    turns: list[SaidTurn] = Field([], description="what was said before the query, oldest first")
    stages: int | None = Field(None, ge=1, le=MOST, description="of an experiment's stages, how many are searched; all when left out")
    text: bool = Field(False, description="whether results hold the whole texts beside their snippets")

    @model_validator(mode="after")
    def _asks_once(self) -> SearchRequest:
        if sum(one is not None for one in (self.query, self.queries, self.image)) != 1:
            raise ValueError("give query, queries or image, one of the three")
        if self.query is None and self.turns:
            raise ValueError(f"turns go with one query, not with {'several' if self.queries else 'an image'}")
        return self

    @property
    def texts(self) -> list[str]:
        """What is asked; nothing for an image."""
        return [self.query] if self.query is not None else list(self.queries or [])


class NewDocument(Body):
    """A document. One whose id is there already takes the place of the old one."""

    id: str = Field(min_length=1, max_length=1_000, description="without white space")
    text: str
    title: str = ""
    fields: dict[str, Any] = Field({}, description="to filter by: a number, true or false, a text, or a list of texts each")


class AddRequest(Body):
    """Documents to add or to put in the place of old ones: all of them, or none where one is wrong."""

    documents: list[NewDocument] = Field(min_length=1)
    index: str | None = INDEX


class DeleteRequest(Body):
    """Documents to delete: all of them, or none where one is not there."""

    ids: list[str] = Field(min_length=1)
    index: str | None = INDEX
    ignore_missing: bool = Field(False, description="passes over ids that are not there")


class ExplainRequest(Body):
    """A query, and the document whose score is to be explained: by its id, or its text."""

    query: str
    id: str | None = Field(None, min_length=1, max_length=1_000)
    text: str | None = Field(None, description="of a document that need not be in the index")
    index: str | None = INDEX
    filter: Filter = {}
    turns: list[SaidTurn] = Field([], description="what was said before the query; what it contributed is explained too")
    k: int = Field(5, ge=1, le=MOST, description="results that are compared with and without the history")
    rows: int = Field(20, ge=1, le=200, description="words, pairs or sentences at most")

    @model_validator(mode="after")
    def _explains_something(self) -> ExplainRequest:
        if self.id is not None and self.text is not None:
            raise ValueError("give id or text, one of the two")
        if self.id is None and self.text is None and not self.turns:
            raise ValueError("give the id of a document, its text, or turns before the query: else there is nothing to explain")
        return self


class NewConversation(Body):
    """A conversation that begins."""

    index: str | None = INDEX


class NewTurn(Body):
    """What is said next. The user's turns are searched with; the agent's are remembered."""

    text: str = Field(min_length=1)
    speaker: Literal["user", "agent"] = "user"
    k: int = Field(10, ge=1, le=MOST)
    filter: Filter = {}
    whole_text: bool = Field(False, description="whether results hold the whole texts beside their snippets")


class Feedback(Body):
    """What a user thought of a result: clicked on it, or judged it."""

    query: str = Field(min_length=1)
    id: str = Field(min_length=1, max_length=1_000, description="of the document")
    index: str | None = INDEX
    turns: list[SaidTurn] = []
    grade: int | None = Field(None, ge=0, le=100, description="0 for irrelevant, more for better; left out for a click")
    rank: int | None = Field(None, ge=1, le=MOST, description="at which the document stood")


class FeedbackRequest(Body):
    """Several at once: all of them are kept, or none."""

    events: list[Feedback] = Field(min_length=1, max_length=1_000)


class EmbeddingsRequest(Foreign):
    """As OpenAI's interface has it."""

    input: str | list[str]
    model: str | None = Field(None, max_length=500, description="the name of an index; the first one when left out")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=MOST, description="the student's own, or left out")
    input_type: Literal["query", "document"] = Field("query", description="which way through the student; not in OpenAI's interface")

    @property
    def texts(self) -> list[str]:
        """What is to be encoded."""
        return [self.input] if isinstance(self.input, str) else self.input


class GivenText(Foreign):
    """A document of a request for scores."""

    text: str


class RerankRequest(Foreign):
    """As Cohere's interface has it with `documents`, or as text-embeddings-inference's with `texts`."""

    query: str
    documents: list[str | GivenText] | None = None
    texts: list[str] | None = None
    model: str | None = Field(None, max_length=500, description="the name of an index; the first one when left out")
    top_n: int | None = Field(None, ge=1, le=MOST)
    return_documents: bool = False
    return_text: bool = False
    raw_scores: bool = Field(False, description="scores are the student's own either way")

    @model_validator(mode="after")
    def _gives_texts_once(self) -> RerankRequest:
        if (self.documents is None) == (self.texts is None):
            raise ValueError("give documents or texts, one of the two")
        return self

    @property
    def given(self) -> list[str]:
        """The texts to be scored."""
        return self.texts if self.texts is not None else [one if isinstance(one, str) else one.text for one in self.documents or []]
