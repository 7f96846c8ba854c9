"""A language model that orders lists, stood in for by functions of the prompt: what windows, repairs and aggregation do."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import ConfigError, StoreError
from retriever.scores.store import ScoreStore
from retriever.settings.teacher import LlmListwiseSettings
from retriever.teachers.llm_listwise import LlmListwiseTeacher, aggregate, load, parse_order, windows
from retriever.types import Document, OrderedList, Query
from tests.llm_material import FunctionEngine, save_tiny_model
from tests.llm_server import Handler, running_server
from tests.scoring_material import QUERIES, run_of, write_tiny_collection
from tests.tiny_experiment import command, write_experiment

Q = Query("q", "the larger number is the better document")


def teacher_of(write: Callable[[str], str], max_length: int = 100_000, **settings: Any) -> LlmListwiseTeacher:
    return LlmListwiseTeacher(LlmListwiseSettings(**{"name": "sorter", **settings}), FunctionEngine(write=write, max_length=max_length), "teacher sorter")


def shown(prompt: str) -> list[int]:
    """The worth of each document of a window, in its order."""
    return [int(worth) for _, worth in re.findall(r"\[(\d+)\] worth (\d+)", prompt)]


def written(places: list[int]) -> str:
    return " > ".join(f"[{place + 1}]" for place in places)


def right(prompt: str) -> str:
    """The best document first."""
    worth = shown(prompt)
    return written(sorted(range(len(worth)), key=lambda place: -worth[place]))


def as_it_stands(prompt: str) -> str:
    return written(list(range(len(shown(prompt)))))


def documents_of(worth: list[int]) -> list[Document]:
    return [Document(f"d{number}", f"worth {number}") for number in worth]


def order_of(teacher: LlmListwiseTeacher, worth: list[int]) -> tuple[list[int], OrderedList]:
    """The worths in the teacher's order, best first."""
    (ordered,) = teacher.order([(Q, documents_of(worth))])
    return [worth[place] for place in np.argsort(ordered.ranks)], ordered


# Windows


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, []),
        (2, [(0, 2)]),
        (20, [(0, 20)]),
        (21, [(1, 21), (0, 11)]),
        (25, [(5, 25), (0, 15)]),
        (50, [(30, 50), (20, 40), (10, 30), (0, 20)]),
    ],
)
def test_windows_go_from_the_end_to_the_beginning(count: int, expected: list[tuple[int, int]]) -> None:
    assert windows(count, 20, 10) == expected


@given(st.integers(2, 120), st.integers(2, 30), st.integers(1, 29))
def test_windows_overlap_and_cover_the_list(count: int, window: int, stride: int) -> None:
    stride = min(stride, window - 1)
    found = windows(count, window, stride)
    assert (found[0][1], found[-1][0]) == (count, 0)
    assert all(end - start <= window for start, end in found)
    assert all(lower[0] < upper[1] < lower[1] for lower, upper in itertools.pairwise(found))


def test_a_relevant_document_moves_from_the_bottom_to_the_top_in_one_pass() -> None:
    worth = [*range(100, 1, -1), 1000]  # 99 documents in order and the best at the end
    order, _ = order_of(teacher_of(right, passes=1), worth)
    assert order == [1000, *range(100, 1, -1)]


def test_the_first_ten_of_a_hundred_are_right_after_one_pass_whatever_the_order_before() -> None:
    worth = np.random.default_rng(7).permutation(100).tolist()
    order, _ = order_of(teacher_of(right, passes=1), worth)
    assert order[:10] == list(range(99, 89, -1))
    assert sorted(order) == list(range(100))


@pytest.mark.parametrize("passes", [1, 4])
def test_a_model_that_always_orders_right_gives_the_right_order(passes: int) -> None:
    worth = np.random.default_rng(3).permutation(20).tolist()
    order, ordered = order_of(teacher_of(right, passes=passes), worth)
    assert order == list(range(19, -1, -1))
    assert (ordered.passes, ordered.status) == (passes, "ok")


def test_the_best_ten_stay_right_when_shuffled_passes_over_a_long_list_are_aggregated() -> None:
    worth = np.random.default_rng(4).permutation(60).tolist()
    order, _ = order_of(teacher_of(right, passes=3), worth)
    assert order[:10] == list(range(59, 49, -1))


def test_the_first_pass_begins_with_the_candidates_and_the_others_with_shuffles_that_the_list_decides() -> None:
    teacher = teacher_of(as_it_stands, passes=3)
    worth = list(range(10))
    order_of(teacher, worth)
    starts = [shown(prompt) for prompt in teacher.engine.prompts]
    assert starts[0] == worth
    assert sorted(starts[1]) == sorted(starts[2]) == worth
    assert starts[0] != starts[1] != starts[2]
    again, other = teacher_of(as_it_stands, passes=3), teacher_of(as_it_stands, passes=3, seed=2)
    again.order([(Q, documents_of([5, 6])), (Q, documents_of(worth))])
    assert [shown(prompt) for prompt in again.engine.prompts][3:] == starts  # what else is ordered does not matter
    order_of(other, worth)
    assert [shown(prompt) for prompt in other.engine.prompts] != starts


def test_a_list_of_one_document_is_not_asked_for() -> None:
    teacher = teacher_of(right)
    order, ordered = order_of(teacher, [4])
    assert (order, ordered.status, teacher.engine.prompts) == ([4], "ok", [])


# Aggregation


def test_ranks_are_averaged_by_hand() -> None:
    # Documents 0, 1, 2, 3 have the ranks (1, 2, 3, 4), (3, 1, 2, 4) and (1, 3, 4, 2): sums 5, 6, 9, 10.
    assert aggregate([[0, 1, 2, 3], [1, 2, 0, 3], [0, 3, 1, 2]]).tolist() == [1, 2, 3, 4]
    assert aggregate([[0, 1, 2], [1, 0, 2]]).tolist() == [1, 2, 3]  # equal sums: the first order decides
    assert aggregate([[1, 0, 2], [0, 1, 2]]).tolist() == [2, 1, 3]


@given(st.lists(st.permutations(range(6)), min_size=1, max_size=5))
def test_aggregation_is_borda_s_count(orders: list[list[int]]) -> None:
    points = [sum(6 - order.index(document) for order in orders) for document in range(6)]
    best_first = sorted(range(6), key=lambda document: (-points[document], orders[0].index(document)))
    assert aggregate(orders).tolist() == [best_first.index(document) + 1 for document in range(6)]


# Answers


@pytest.mark.parametrize(
    ("answer", "places", "well_formed"),
    [
        ("[2] > [1] > [3]", [1, 0, 2], True),
        (" [2]>[1] >\n[3]. ", [1, 0, 2], True),
        ("<think>[3] is best</think>\n[2] > [1] > [3]", [1, 0, 2], True),
        ("[2] > [1]", [1, 0, 2], False),
        ("[2] > [1] > [1] > [3]", [1, 0, 2], False),
        ("[3] > [7] > [0] > [1]", [2, 0, 1], False),
        ("[2], [1], [3]", [1, 0, 2], False),
        ("The order is [2] > [1] > [3]", [1, 0, 2], False),
        ("2 > 1 > 3", [0, 1, 2], False),
        ("", [0, 1, 2], False),
    ],
)
def test_answers_are_read_strictly_and_repaired_by_rule(answer: str, places: list[int], well_formed: bool) -> None:
    assert parse_order(answer, 3) == (places, well_formed)


@given(st.permutations(range(8)))
def test_a_well_formed_answer_is_the_order_that_it_says(order: list[int]) -> None:
    assert parse_order(written(order), 8) == (order, True)


@given(st.text(alphabet="[]>0123456789 ,a", max_size=40), st.integers(1, 12))
def test_whatever_is_answered_each_document_has_one_place(answer: str, count: int) -> None:
    places, well_formed = parse_order(answer, count)
    assert sorted(places) == list(range(count))
    valid = list(dict.fromkeys(int(n) - 1 for n in re.findall(r"\[(\d+)\]", answer) if 1 <= int(n) <= count))
    assert places[: len(valid)] == valid
    assert places[len(valid) :] == sorted(set(range(count)) - set(valid))
    assert not well_formed or len(valid) == count


def test_repaired_answers_are_counted_in_the_status() -> None:
    def sometimes(prompt: str) -> str:
        return "I think [2] is best" if shown(prompt)[0] == 0 else right(prompt)

    _, ordered = order_of(teacher_of(sometimes, passes=1, window=4, stride=2), [0, 1, 2, 3, 4, 5, 6, 7])
    assert ordered.status == "repaired 1 of 3"


def test_a_model_that_names_no_document_is_refused_with_its_words() -> None:
    teacher = teacher_of(lambda prompt: "I am sorry, [99]")
    with pytest.raises(ConfigError, match=r"teacher sorter: none of the first 3 answers holds a number of a document; the first is 'I am sorry, \[99\]'"):
        order_of(teacher, [1, 2, 3])


# What is shown


def test_documents_share_the_room_and_a_cut_is_said() -> None:
    teacher = teacher_of(as_it_stands, max_length=200, passes=1, window=2, stride=1, answer_tokens=20)
    long = Document("l", "worth 1 " + "word " * 300)
    (ordered,) = teacher.order([(Q, [long, Document("s", "worth 2")])])
    assert ordered.truncated.tolist() == [True, False]
    (prompt,) = teacher.engine.prompts
    assert teacher.engine.count_tokens([prompt])[0] <= 200 - 20
    assert ordered.n_tokens.sum() == teacher.engine.count_tokens([prompt])[0]
    with pytest.raises(StoreError, match="query q, instructions and answer leave no room for 2 documents"):
        teacher_of(as_it_stands, max_length=80).order([(Q, documents_of([1, 2]))])


def test_the_prompt_is_the_tables_own_where_it_has_one() -> None:
    teacher = teacher_of(as_it_stands, prompt="{count}|{query}|{documents}", passes=1)
    order_of(teacher, [3, 4])
    assert teacher.engine.prompts == [f"2|{Q.text}|[1] worth 3\n\n[2] worth 4"]
    with pytest.raises(ConfigError, match=r"it must hold \{query\} and \{documents\}"):
        teacher_of(right, prompt="{query}")
    with pytest.raises(ValueError, match="stride is 20, it must be below window, 20"):
        LlmListwiseSettings(stride=20)


def test_what_decides_the_order_is_in_the_fingerprint() -> None:
    variants: list[dict[str, Any]] = [{}, {"window": 10, "stride": 5}, {"stride": 5}, {"passes": 1}, {"seed": 2}, {"prompt": "{query} {documents}"}]
    fingerprints = {teacher_of(right, **settings).identity.fingerprint for settings in variants}
    assert len(fingerprints) == len(variants)
    assert teacher_of(right, name="b", batch_size=1).identity.fingerprint in fingerprints


# In the store


def test_orders_go_into_the_store_as_ranks_with_what_was_repaired(tmp_path: Path) -> None:
    documents = documents_of([3, 1, 2])
    store = ScoreStore.open(tmp_path / "store", write_tiny_collection(tmp_path / "collection", documents))
    teacher = teacher_of(lambda prompt: right(prompt) if shown(prompt)[0] != 1 else "[3]", passes=2)
    candidates = run_of({"q1": ["d3", "d1", "d2"], "q2": ["d1", "d2", "d3"]})
    store.score(teacher, candidates, QUERIES)
    assert store.read(teacher.identity, candidates, QUERIES).run.to_dict()["q1"] == {"d3": -1.0, "d2": -2.0, "d1": -3.0}
    (shard,) = store.folder.rglob("*.parquet")
    rows = pq.read_table(shard).to_pylist()
    assert {row["score"] for row in rows} == {None}
    assert {row["pass_id"] for row in rows} == {2}
    statuses = [row["status"] for row in rows]
    assert statuses[3].startswith("repaired")
    statistics = store.statistics(teacher.identity.fingerprint)
    assert statistics.mended == pytest.approx(sum(status != "ok" for status in statuses) / 6)
    assert statistics.usage.requests == 4


def test_a_real_model_is_asked_and_its_babble_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    teacher = load(LlmListwiseSettings(model=str(folder), answer_tokens=8, passes=3, prompt="{query} {documents}", chat=False), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="none of the first 3 answers holds a number"):
        teacher.order([(Q, documents_of([1, 2]))])


TEACHERS = """[[teacher]]
kind = "llm"
name = "judge"
model = "{model}"
form = "query_likelihood"
probe = false # a model of random weights does not pass it

[[teacher]]
kind = "llm_listwise"
name = "sorter"
model = "served"
window = 4
stride = 2
passes = 2
server = {{ url = "{url}", prompt_price = 5.0, concurrency = 2 }}

[student]"""


def test_both_kinds_score_an_experiment_and_say_what_it_cost(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    def backwards(handler: Handler) -> None:
        count = len(re.findall(r"^\[\d+\] ", handler.body["prompt"], re.MULTILINE))
        answer = {"choices": [{"text": written(list(range(count))[::-1])}], "usage": {"prompt_tokens": 1000, "completion_tokens": 9}}
        handler.send(200, answer)

    folder = save_tiny_model(tmp_path / "tiny-llm")
    with running_server(folder) as server:
        server.faults = [backwards] * 10_000
        changes = {"[student]": TEACHERS.format(model=folder, url=server.url), "depth = 10": "depth = 5"}
        path = write_experiment(tmp_path, shared_beir_folder, encoder_folder, changes)
        done = command("score", path, "--work", tmp_path / "work", "--json")
        asked = len(server.seen)
        again = command("score", path, "--work", tmp_path / "work", "--json")
    assert (done.status, again.status) == (0, 0), done.err
    assert len(server.seen) == asked
    assert re.search(r"scoring test pairs \(judge\).* [\d,]+ tokens", done.err)
    assert re.search(rf"scoring test pairs \(sorter\).* {1009 * asked:,} tokens, cost {asked / 200:.4f}", done.err)
