"""Latency with a clock that the tests turn."""

import pytest

from retriever.errors import DataError
from retriever.eval.latency import measure_latency
from retriever.types import Query

QUERIES = [Query(f"q{number}", str(number)) for number in range(100)]


class Clock:
    """A clock that only moves when a search takes time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.asked: list[str] = []

    def __call__(self) -> float:
        return self.seconds

    def search(self, query: Query) -> None:
        """Takes as many milliseconds as the query's text says."""
        self.asked.append(query.query_id)
        self.seconds += float(query.text) / 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("retriever.eval.latency.perf_counter", clock)
    return clock


def test_percentiles_and_mean_are_of_the_searches_in_milliseconds(clock: Clock) -> None:
    latency = measure_latency(clock.search, QUERIES, warmup=0)
    assert latency.p50_ms == pytest.approx(49.5)
    assert latency.p99_ms == pytest.approx(98.01)
    assert latency.mean_ms == pytest.approx(49.5)
    assert latency.queries == 100


def test_the_warm_up_is_not_timed_and_takes_the_queries_in_turn(clock: Clock) -> None:
    slow_once = [Query("slow", "0"), Query("fast", "0")]
    latency = measure_latency(clock.search, slow_once, warmup=3, repeats=2)
    assert clock.asked == ["slow", "fast", "slow", "slow", "fast", "slow", "fast"]
    assert latency.queries == 4


def test_latency_of_no_query_is_refused(clock: Clock) -> None:
    with pytest.raises(DataError, match="no query to time"):
        measure_latency(clock.search, [])
