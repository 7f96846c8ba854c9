"""What the server answers, as its OpenAPI page shows it and as `retriever.client` gives it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Read from JSON; keys of a newer server are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Snippet(Answer):
    """A stretch of a text.

    Attributes:
        text: the stretch.
        marks: [start, end) of the query's words in it, in characters as Unicode counts them.
    """

    text: str
    marks: list[tuple[int, int]] = []


class Result(Answer):
    """A document that was found."""

    rank: int
    id: str
    score: float
    title: str
    snippet: Snippet
    fields: dict[str, Any] = {}
    image: bool = Field(False, description="whether the document is or has an image")
    text: str | None = Field(None, description="the whole text, where it was asked for")


class Read(Answer):
    """What the student read of a conversation.

    Attributes:
        text: all that it saw.
        left_out: earlier turns of which it saw nothing, for want of room.
        cut: whether it saw a turn in part.
        tokens: of the conversation that it did not see.
    """

    text: str
    left_out: int
    cut: bool
    tokens: int


class _Searched(Answer):
    index: str
    version: int | None = Field(description="of the index that answered; null where nobody counts versions")
    timings_ms: dict[str, float] = Field(description="encode and search, or the stages' names, of the whole batch; queue, documents and total of this request")
    cached: bool = Field(False, description="whether all was answered from memory")
    request_id: str


class SearchAnswer(_Searched):
    """What was found: for `query` a list of results, for `queries` such a list for each."""

    results: list[Result] | list[list[Result]]
    read: Read | None = None


class ChangeAnswer(Answer):
    """What a change did. It is on the disk, and every search that begins from now on knows of it."""

    index: str
    version: int
    added: int
    replaced: int
    deleted: int
    documents: int


class PruneAnswer(Answer):
    """So much is free on the disk again."""

    index: str
    freed_bytes: int


class DocumentAnswer(Answer):
    """A document of an index."""

    index: str
    id: str
    title: str
    text: str
    fields: dict[str, Any] = {}
    image: bool = False


class IndexAnswer(Answer):
    """Something that is served."""

    name: str
    kind: Literal["index", "engine", "stages"]
    version: int | None
    documents: int
    student: str
    fields: dict[str, str] = {}
    stages: list[str] = []
    writable: bool = False


class IndexesAnswer(Answer):
    """All that is served; the first one answers where none is named."""

    indexes: list[IndexAnswer]


class PartAnswer(Answer):
    """What one ranker of a stage says of a document."""

    ranker: str
    score: float | None = Field(description="its own, before those of the stage are fused; null for a document that it does not have")


class StageAnswer(Answer):
    """What a stage gave a document."""

    name: str = Field(description="who ranks, and how many are kept")
    candidates: int = Field(description="documents that the stage ranked")
    rank: int | None = Field(description="of the document among them, from 1; null where it fell out before, was not found, or a ranker does not have it")
    score: float | None = Field(description="by which it has this rank; null without one")
    kept: bool = Field(description="whether the stage hands it on; the last one: whether it is a result")
    parts: list[PartAnswer] = Field(description="of each ranker; empty where the document did not come to this stage")


class ExplainAnswer(Answer):
    """Why a document has its score, and what the history contributed.

    Attributes:
        explanation: as `retriever.explanation.Explanation`, of the student alone; null where no document was named, and where the
            student of an experiment's stages reads query and document together.
        history: as `retriever.conversations.chat.Contributions`; null where there were no turns, and likewise.
        stages: of an experiment, what each gave the document `id`; empty for other indexes, and for a text.
    """

    index: str
    version: int | None
    explanation: dict[str, Any] | None
    history: dict[str, Any] | None
    stages: list[StageAnswer] = []


class ConversationAnswer(Answer):
    """A conversation, whose id is a secret of the key that began it."""

    id: str
    index: str
    turns: list[dict[str, str]]
    forgotten_at: str = Field(description="in UTC, unless something is said before")


class TurnAnswer(_Searched):
    """What was found for a turn of the user, with all that was said before; no results for the agent's."""

    conversation: str
    results: list[Result]
    read: Read | None = None


class FeedbackAnswer(Answer):
    """So many events are on the disk."""

    kept: int


class Embedding(Answer):
    """One of `EmbeddingsAnswer`."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(Answer):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Answer):
    """As OpenAI's interface has it."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Reranked(Answer):
    """A document, by its place in the request, and its score."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class RerankAnswer(Answer):
    """As Cohere's interface has it, best first."""

    id: str
    results: list[Reranked]
    meta: dict[str, Any] = {}


class RankedText(Answer):
    """As text-embeddings-inference's interface has it; a list of them, best first."""

    index: int
    score: float
    text: str | None = None


class AbilitiesAnswer(Answer):
    """What a page may offer, so that it offers nothing that would be refused.

    Attributes:
        feedback: whether clicks and judgements are kept.
        reports: the names of those that a report belongs to.
        images: the names of those that can be searched with an image.
        limits: that a page must know.
    """

    feedback: bool
    reports: list[str]
    images: list[str] = []
    limits: dict[str, int]


class ErrorBody(Answer):
    """What was wrong: a type for programs, a line for people."""

    type: str
    message: str


class ErrorAnswer(Answer):
    """Every answer that is none of what was asked for."""

    error: ErrorBody
