"""What Prometheus scrapes: requests, batches, caches, indexes. Worker processes add theirs together through files."""

from __future__ import annotations

import os
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder through which processes add up."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("route", "method", "status")
        self.requests = Counter("retriever_requests_total", "Requests that were answered.", labels, registry=registry)
        self.seconds = Histogram(
            "retriever_request_seconds", "From the first byte of a request to the last of its answer.", ("route",), registry=registry, buckets=_SECONDS
        )
        self.refused = Counter("retriever_refused_total", "Requests that were refused because too much was to be done.", registry=registry)
        self.batch = Histogram("retriever_batch_queries", "Queries that were answered together.", registry=registry, buckets=_SIZES)
        self.batch_seconds = Histogram("retriever_batch_seconds", "To encode and search a batch.", registry=registry, buckets=_SECONDS)
        self.queries = Counter(
            "retriever_queries_total", "Queries that were searched for, from memory (cached) or not.", ("index", "cached"), registry=registry
        )
        self.changes = Counter("retriever_changes_total", "Changes of documents that were acknowledged.", ("index", "kind"), registry=registry)
        self.waiting = Gauge("retriever_waiting_queries", "Queries that wait for the encoder.", registry=registry, multiprocess_mode="livesum")
        self.documents = Gauge("retriever_documents", "Documents that can be found.", ("index",), registry=registry, multiprocess_mode="mostrecent")
        self.version = Gauge("retriever_index_version", "The version that is searched.", ("index",), registry=registry, multiprocess_mode="mostrecent")

    def text(self, indexes: Sequence[tuple[str, int, int | None]], waiting: int) -> bytes:
        """In Prometheus' format.

        Args:
            indexes: name, documents and version of each.
            waiting: queries that wait.
        """
        self.waiting.set(waiting)
        for name, documents, version in indexes:
            self.documents.labels(name).set(documents)
            if version is not None:
                self.version.labels(name).set(version)
        if os.environ.get(SHARED):
            together = CollectorRegistry()
            MultiProcessCollector(together)  # type: ignore[no-untyped-call]
            return generate_latest(together)
        return generate_latest(self.registry)
