"""The tools that assistants are given, as they see them: names, descriptions, schemas, answers, and one line for each mistake."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from mcp_types import CallToolResult, TextContent, Tool, ToolAnnotations
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from retriever.errors import RetrieverError
from retriever.serving.answers import DocumentAnswer, IndexesAnswer
from retriever.serving.assistant_answers import Answers
from retriever.serving.faults import RequestError, printable, said
from retriever.serving.logs import LOG
from retriever.serving.requests import MOST, SaidTurn, SearchRequest

INSTRUCTIONS = (
    "Searches collections of documents by meaning. Call search with what you want to know, then get_document for the whole text of a result whose "
    "snippet looks right. Cite documents by their ids."
)


def _plain(value: Any) -> Any:
    """The value of a text of JSON: some assistants send objects and lists so."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


class Arguments(BaseModel):
    """What an assistant sends to a tool."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_INDEX = Field(None, max_length=100)


class SearchArguments(Arguments):
    """Find the documents that answer a question best, by their meaning. Gives ids, scores, titles, snippets and fields, best first."""

    query: str = Field(description="what to look for: a question, a statement or a few words; a full sentence is understood")
    k: int = Field(10, ge=1, le=MOST, description="how many documents at most")
    index: str | None = _INDEX
    filter: Annotated[dict[str, Any], BeforeValidator(_plain)] = Field({}, description="")
    turns: Annotated[list[SaidTurn], BeforeValidator(_plain)] = Field(
        [], description="what was said in the conversation before the query, oldest first; for a query that cannot be understood without it"
    )


class GetDocumentArguments(Arguments):
    """Read a document as a whole: its title, its text and its fields."""

    id: str = Field(min_length=1, max_length=1_000, description="of the document, as search gives it")
    index: str | None = _INDEX


class ListIndexesArguments(Arguments):
    """List the indexes that can be searched: how many documents each has, and the fields that filters can name."""


class FoundDocument(BaseModel):
    """A document that was found."""

    id: str = Field(description="for get_document")
    score: float = Field(description="comparable within one search alone; higher is better")
    title: str
    snippet: str = Field(description="the stretch of the text with most words of the query")
    fields: dict[str, Any]
    image: bool = Field(description="whether the document is or has an image")


class FoundDocuments(BaseModel):
    """What was found, best first."""

    index: str
    results: list[FoundDocument]


async def tools_of(answers: Answers) -> list[Tool]:
    """The tools, whose schemas name the indexes and fields that there are."""
    listed = (await answers.indexes())["indexes"]
    return [
        _tool("search", "Search documents", SearchArguments, FoundDocuments, listed),
        _tool("get_document", "Read a document", GetDocumentArguments, DocumentAnswer, listed),
        _tool("list_indexes", "List what can be searched", ListIndexesArguments, IndexesAnswer, listed),
    ]


async def call_tool(answers: Answers, name: str, arguments: Mapping[str, Any]) -> CallToolResult:
    """What a tool answers; a mistake is an answer too, of one line."""
    try:
        found = await _called(answers, name, arguments)
    except ValidationError as error:
        return _refused(_mistake(error))
    except (RequestError, RetrieverError) as error:
        return _refused(str(error))
    except Exception:  # noqa: BLE001 (the assistant gets one line, the log the rest)
        LOG.exception("the tool %s failed", name)
        return _refused("the server made a mistake; its log says which")
    plain = found.model_dump(mode="json")
    return CallToolResult(content=[TextContent(type="text", text=json.dumps(plain, ensure_ascii=False))], structured_content=plain)


async def _called(answers: Answers, name: str, arguments: Mapping[str, Any]) -> BaseModel:
    if name == "search":
        asked = SearchArguments.model_validate(arguments)
        body = SearchRequest(query=asked.query, k=asked.k, index=asked.index, filter=asked.filter, turns=asked.turns)
        return _found(await answers.search(body))
    if name == "get_document":
        wanted = GetDocumentArguments.model_validate(arguments)
        return DocumentAnswer.model_validate(await answers.document(wanted.id, wanted.index))
    if name == "list_indexes":
        ListIndexesArguments.model_validate(arguments)
        return IndexesAnswer.model_validate(await answers.indexes())
    raise RequestError(404, "not_found", f'there is no tool "{name:.100}"; there are search, get_document, list_indexes')


def _found(answer: Mapping[str, Any]) -> FoundDocuments:
    results = [FoundDocument.model_validate({**one, "score": round(one["score"], 6), "snippet": one["snippet"]["text"]}) for one in answer["results"]]
    return FoundDocuments(index=answer["index"], results=results)


def _tool(name: str, title: str, arguments: type[BaseModel], result: type[BaseModel], indexes: Sequence[Mapping[str, Any]]) -> Tool:
    return Tool(
        name=name,
        title=title,
        description=arguments.__doc__,
        input_schema=_schema(arguments, indexes),
        output_schema=result.model_json_schema(mode="serialization"),
        annotations=ToolAnnotations(title=title, read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False),
    )


def _schema(arguments: type[BaseModel], indexes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of what a tool takes, with the names that there are in it, so that none needs to be guessed."""
    schema = arguments.model_json_schema()
    properties = schema["properties"]
    for part in (schema, *properties.values()):
        part.pop("title", None)
    schema.pop("description", None)
    names = [one["name"] for one in indexes]
    if "index" in properties:
        properties["index"] = {"type": "string", "enum": names, "default": names[0], "description": f"which index; {names[0]} when left out"}
    if "filter" in properties:
        properties["filter"]["description"] = _about_filters(indexes)
    return schema


def _about_filters(indexes: Sequence[Mapping[str, Any]]) -> str:
    known = [f"{one['name']}: {', '.join(f'{name} ({kind})' for name, kind in one['fields'].items()) or 'none'}" for one in indexes]
    return (
        'conditions on fields, all of which must be met: {"language": "de"}, {"language": ["de", "fr"]} for one of several, {"year": {">=": 2020, "<": 2024}} '
        f"for ranges, and != for all others. The fields: {'; '.join(known)}"
    )


def _mistake(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "arguments"
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return f"{place:.100}: there is no such argument"
    return f"{place:.200}: {said(first)}"


def _refused(line: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=printable(line))], is_error=True)
