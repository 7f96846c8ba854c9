"""A teacher and a collection for the tests of scoring: every score can be derived from the two texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from retriever.collection import Collection, write_collection
from retriever.files import text_hash
from retriever.runs import Run
from retriever.types import Document, Query, ScoredPairs, TeacherIdentity

DOCUMENTS = [
    Document("d1", "the owl sees well in the dark", title="owls"),
    Document("d2", "a hammer drives nails"),
    Document("d3", "moths fly at night"),
    Document("d4", "a hammer drives nails"),  # the text of d2
    Document("d5", "saws cut wood"),
    Document("d6", "bats hear where they fly"),
    Document("d7", "chisels shape wood"),
]
QUERIES = {
    "q1": Query("q1", "animals of the night"),
    "q2": Query("q2", "tools for wood"),
    "q3": Query("q3", "animals of the night"),  # the text of q1
    "q4": Query("q4", "what flies"),
}
ALL_PAIRS = {query_id: [document.doc_id for document in DOCUMENTS] for query_id in QUERIES}
DISTINCT_PAIRS = 18  # 3 query texts x 6 document texts


class LoggingTeacher:
    """A teacher that remembers which texts it was asked for."""

    def __init__(self, shard_pairs: int = 5, name: str = "logging", prompt: str = "") -> None:
        self.identity = TeacherIdentity(name, "logging", "", "logit", {"prompt": prompt})
        self.shard_pairs = shard_pairs
        self.asked: list[tuple[str, str]] = []

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> ScoredPairs:
        texts = [(query.text, document.full_text) for query, document in pairs]
        self.asked += texts
        n_tokens = np.array([len(f"{query} {document}".split()) for query, document in texts], dtype=np.int32)
        return ScoredPairs(np.array([score_of(*pair) for pair in texts], dtype=np.float32), n_tokens, n_tokens > 10)


def score_of(query_text: str, document_text: str) -> float:
    """A number that float32 holds exactly."""
    return text_hash(f"{query_text}\n{document_text}") % 4096 / 16 - 128


def run_of(pairs: Mapping[str, Sequence[str]]) -> Run:
    """Candidates in the order given."""
    return Run.from_dict("bm25", {query_id: {doc_id: float(-place) for place, doc_id in enumerate(doc_ids)} for query_id, doc_ids in pairs.items()})


def expected_run(pairs: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """What the teacher says of the pairs."""
    texts = {document.doc_id: document.full_text for document in DOCUMENTS}
    return {query_id: {doc_id: score_of(QUERIES[query_id].text, texts[doc_id]) for doc_id in doc_ids} for query_id, doc_ids in pairs.items()}


def write_tiny_collection(folder: Path, documents: Sequence[Document] = DOCUMENTS) -> Collection:
    """The documents and queries above, on disk."""
    return write_collection(folder, documents, QUERIES, {"test": {"q1": {documents[0].doc_id: 1}}})


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all shards of a store."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}
