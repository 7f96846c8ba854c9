"""POST /v1/embeddings as OpenAI has it, and /v1/rerank as Cohere and text-embeddings-inference have it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from retriever.serving.answers import EmbeddingsAnswer, RankedText, RerankAnswer
from retriever.serving.faults import bad_request
from retriever.serving.requests import EmbeddingsRequest, RerankRequest
from retriever.serving.routes import WRONG, Here, Searcher, answer, note, note_query
from retriever.serving.shared_encoder import SharedEncoder
from retriever.types import Document, Query

router = APIRouter(tags=["compatible"], responses=WRONG)


@router.post("/v1/embeddings", response_model=EmbeddingsAnswer)
async def embed(body: EmbeddingsRequest, request: Request, service: Here, who: Searcher) -> Response:
    """Encode texts with the student of an index, as OpenAI's interface has it."""
    served = service.named(body.model)
    texts = service.texts("input", body.texts)
    note(request, index=served.name)
    note_query(request, service, list(texts))
    encoder = (await service.view(served)).encoder
    if hasattr(encoder.own, "columns") or not hasattr(encoder.own, "encode_queries"):
        raise bad_request(f'model: the student of "{served.name}" is a {encoder.own.kind} one, which gives no vector for a text')
    if body.dimensions not in (None, encoder.own.dimensions):
        raise bad_request(f"dimensions: {body.dimensions}, and the student gives {encoder.own.dimensions}")
    counting = service.work(served, lambda: encoder.count_tokens(texts))
    vectors, tokens = await asyncio.gather(service.encoded(served, _vectors(encoder, texts, body.input_type)), counting)
    data = [{"object": "embedding", "index": number, "embedding": _written(vector, body.encoding_format)} for number, vector in enumerate(vectors)]
    return answer({"object": "list", "data": data, "model": served.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


@router.post("/rerank", response_model=list[RankedText], include_in_schema=False)
@router.post("/v1/rerank", response_model=RerankAnswer | list[RankedText])
async def rerank(body: RerankRequest, request: Request, service: Here, who: Searcher) -> Response:
    """Score texts for a query: `documents` as Cohere's interface has them, or `texts` as text-embeddings-inference's has them."""
    served = service.named(body.model)
    query = service.query(body.query)
    texts = service.texts("documents" if body.documents is not None else "texts", body.given)
    note(request, index=served.name)
    note_query(request, service, [body.query])
    encoder = (await service.view(served)).encoder
    scores = await service.encoded(served, _scores(encoder, query, texts))
    order = np.argsort(-scores, kind="stable").tolist()
    if body.texts is not None:
        listed = [{"index": number, "score": float(scores[number]), **({"text": texts[number]} if body.return_text else {})} for number in order]
        return answer(listed)
    found = [
        {"index": number, "relevance_score": float(scores[number]), **({"document": {"text": texts[number]}} if body.return_documents else {})}
        for number in order[: body.top_n]
    ]
    return answer({"id": request.state.request_id, "results": found, "meta": {"model": served.name, "unit": encoder.own.unit}})


async def _vectors(encoder: SharedEncoder, texts: Sequence[str], task: str) -> NDArray[np.float32]:
    """[n, D]."""
    if task == "query":
        found: NDArray[np.float32] = await encoder.awaited(encoder.own.encode_queries, [Query("text", text) for text in texts])
    else:
        found = await encoder.awaited(encoder.own.encode_documents, [Document("text", text) for text in texts])
    return found


async def _scores(encoder: SharedEncoder, query: Query, texts: Sequence[str]) -> NDArray[np.float32]:
    """[n], the student's own scores of texts for a query."""
    own, documents = encoder.own, [Document("text", text) for text in texts]
    if hasattr(own, "score_pairs"):
        return np.asarray(await encoder.awaited(own.score_pairs, [(query, document) for document in documents]), dtype=np.float32)
    asked, read = await asyncio.gather(encoder.awaited(own.encode_queries, [query]), encoder.awaited(own.encode_documents, documents))
    return np.asarray(await asyncio.to_thread(own.score, asked[np.zeros(len(texts), dtype=np.int64)], read), dtype=np.float32)


def _written(vector: NDArray[np.float32], form: str) -> list[float] | str:
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
