"""Results told apart by turn, topic, need of history and fields: the groups, and the numbers of each."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from retriever.conversations.facets import (
    by_field,
    clusters_of,
    content_words,
    depths_of,
    facets_of,
    first_or_later,
    needs_history,
    needs_history_by_run,
    seen_documents,
    topic_switch,
    turn_depth,
)
from retriever.errors import ConfigError, DataError
from retriever.eval.facets import Facet, facet_table, facet_table_from_json, per_conversation
from retriever.eval.measures import Evaluation
from retriever.eval.significance import mean_interval
from retriever.runs import Run
from retriever.types import Query, Turn


def turn(query_id: str, earlier: int, conversation: str = "c", text: str = "and then?", rewrites: dict[str, str] | None = None, **fields: Any) -> Query:
    """A query after `earlier` turns of the user, each with an answer."""
    turns = tuple(Turn(speaker, f"{speaker} {number}") for number in range(earlier) for speaker in ("user", "agent"))
    return Query(query_id, text, turns=turns, conversation=conversation, rewrites=rewrites or {}, fields=fields)


def by_id(*queries: Query) -> dict[str, Query]:
    return {query.query_id: query for query in queries}


def labels_of(facet: Facet) -> dict[str, str]:
    """Query id -> its labels, joined."""
    return {query_id: " and ".join(labels) for query_id, labels in facet.groups.items()}


def evaluation(run: str, **values: float) -> Evaluation:
    found = np.array([values[query_id] for query_id in sorted(values)], dtype=np.float64)
    return Evaluation(run, tuple(sorted(values)), {"RR": found, "R@100": found / 2})


def test_depth_counts_the_users_turns_and_ends_with_five_and_more() -> None:
    queries = by_id(*(turn(f"q{earlier}", earlier) for earlier in (0, 1, 4, 9)))
    assert depths_of(queries) == {"q0": 1, "q1": 2, "q4": 5, "q9": 10}
    found = turn_depth(queries)
    assert labels_of(found) == {"q0": "1", "q1": "2", "q4": "5+", "q9": "5+"}
    assert found.labels == ("1", "2", "5+")


def test_an_agents_greeting_makes_no_later_turn() -> None:
    greeted = Query("q", "hello", turns=(Turn("agent", "How can I help?"),), conversation="c")
    assert depths_of({"q": greeted}) == {"q": 1}
    assert labels_of(first_or_later({"q": greeted})) == {"q": "first turn"}


def test_a_switch_shares_no_relevant_document_with_any_earlier_turn() -> None:
    queries = by_id(*(turn(f"q{earlier}", earlier) for earlier in range(5)))
    qrels = {"q0": {"a": 1, "x": 0}, "q1": {"a": 1, "b": 1}, "q2": {"x": 2}, "q3": {"b": 1}, "q4": {"a": 0}}
    found = topic_switch(queries, qrels)
    assert labels_of(found) == {"q0": "first turn", "q1": "continuation", "q2": "switch", "q3": "continuation"}  # nothing relevant to q4 is known
    assert found.note == "A switch or not is told by whether a turn shares a relevant document with the earlier ones of its conversation."


def test_a_later_turn_whose_earlier_ones_are_not_in_the_set_is_neither_switch_nor_continuation() -> None:
    queries = by_id(turn("q3", 3, "one"), turn("q2", 2, "other"), turn("alone", 2, ""))
    assert labels_of(topic_switch(queries, {"q3": {"a": 1}, "q2": {"b": 1}, "alone": {"a": 1}})) == {}


def test_what_the_collection_says_of_topics_comes_before_the_documents() -> None:
    same = {"d": 1}
    queries = by_id(turn("q0", 0, topic="tax"), turn("q1", 1, topic="law"), turn("q2", 2, topic="law"), turn("q3", 3, topic="law", topic_switch=True))
    found = topic_switch(queries, dict.fromkeys(queries, same))
    assert labels_of(found) == {"q0": "first turn", "q1": "switch", "q2": "continuation", "q3": "switch"}
    assert found.note == 'A switch or not is told by the field "topic" of a turn and the one before it, or by the field "topic_switch".'


def test_a_turn_needs_its_history_where_the_rewrite_has_another_content_word() -> None:
    queries = by_id(
        turn("first", 0, text="does it bake?", rewrites={"human": "does the oven bake?"}),
        turn("same", 1, text="How are ovens cleaned?", rewrites={"human": "How do you clean an oven?"}),
        turn("needy", 2, text="And what does it cost?", rewrites={"human": "What does an oven cost?", "llm": "And what does it cost?"}),
        turn("by_llm", 3, text="Why?", rewrites={"llm": "Why are ovens so dear?", "other": "Why?"}),
        turn("unknown", 4, text="Why?"),
    )
    found = needs_history(queries)
    assert labels_of(found) == {"first": "first turn", "same": "stands alone", "needy": "needs history", "by_llm": "needs history"}
    assert "by a person" not in found.note
    assert "by a person" in needs_history({query_id: query for query_id, query in queries.items() if query_id != "by_llm"}).note


def test_content_words_are_stems_without_stop_words() -> None:
    assert content_words("What does the oven cost, and which ovens?", "english") == {"oven", "cost"}
    assert content_words("Was kosten die Öfen?", "german") == content_words("Öfen kosten", "german")
    assert content_words("wat is dit", "basque")  # no stop words are known


def test_without_rewrites_the_last_turns_run_tells_and_the_note_warns() -> None:
    queries = by_id(turn("q0", 0), turn("q1", 1), turn("q2", 2), turn("q3", 3), turn("q4", 4))
    ranked = {f"d{number}": float(20 - number) for number in range(12)}
    run = Run.from_dict("last_turn", {"q1": ranked, "q2": ranked, "q3": ranked})
    qrels = {"q0": {"d0": 1}, "q1": {"d9": 1}, "q2": {"d10": 1}, "q3": {"d0": 0}}
    found = needs_history_by_run(queries, run, qrels)
    missed = "last turn misses it"
    assert labels_of(found) == {"q0": "first turn", "q1": "last turn finds it", "q2": missed, "q3": missed, "q4": missed}
    assert "flatters all other runs against last_turn where it misses" in found.note


def test_a_list_counts_in_each_of_its_values_and_numbers_stand_by_size() -> None:
    queries = by_id(turn("a", 0, kinds=["How-To", "Factoid"], year=10), turn("b", 1, kinds=["Factoid", "Factoid"], year=9, open=True), turn("c", 2, kinds=[]))
    found = by_field(queries, "kinds")
    assert found.groups == {"a": ("How-To", "Factoid"), "b": ("Factoid",), "c": ()}
    assert found.labels == ("Factoid", "How-To")
    assert by_field(queries, "year").labels == ("9", "10")
    assert by_field(queries, "open").groups == {"a": (), "b": ("yes",), "c": ()}


def test_a_field_that_no_query_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r'no query has a field "topics" .* the fields are: domain, topic\.'):
        facets_of(by_id(turn("a", 0, topic="tax"), turn("b", 0, domain="law")), {}, ["topics"])


def test_what_is_the_same_for_all_queries_is_no_facet_unless_asked_for() -> None:
    alone = by_id(Query("a", "baking", fields={"domain": "food"}), Query("b", "tools", fields={"domain": "food"}))
    assert facets_of(alone, {}) == []
    assert [facet.name for facet in facets_of(alone, {}, ["domain"])] == ["domain"]
    later = by_id(turn("a", 0), turn("b", 1, text="Why?", rewrites={"human": "Why bake?"}))
    qrels = {"a": {"x": 1}, "b": {"x": 1}}
    assert [facet.name for facet in facets_of(later, qrels)] == ["turn depth", "first or later turn", "topic", "need of history"]


def test_clusters_are_the_conversations_of_those_that_have_one() -> None:
    assert clusters_of(by_id(turn("a", 0, "one"), turn("b", 1, "one"), Query("c", "alone"))) == {"a": "one", "b": "one"}


FACET = Facet("kind", ("x", "y", "z"), {"q0": ("x",), "q1": ("x", "y"), "q2": ("y",), "q3": ()}, "made up")
RUNS = {"student": evaluation("student", q0=1, q1=0.5, q2=0, q3=1), "bm25": evaluation("bm25", q0=0, q1=0.5, q2=0.5, q3=0)}


def test_each_group_has_its_own_means_and_differences() -> None:
    table = facet_table(RUNS, FACET, ["RR", "R@100"], [("student", "bm25")], seed=1)
    assert (table.name, table.note, table.unlabelled) == ("kind", "made up", 1)
    x, y = table.groups  # no query is in z
    assert (x.label, x.queries, x.clusters, y.label, y.queries) == ("x", 2, None, "y", 2)
    assert x.means == {"student": {"RR": 0.75, "R@100": 0.375}, "bm25": {"RR": 0.25, "R@100": 0.125}}
    assert [(one.measure, one.difference) for one in y.differences] == [("RR", -0.25), ("R@100", -0.125)]
    assert x.differences[0].interval == (0, 1)  # of two queries with differences 1 and 0


def test_all_queries_as_one_group_have_the_runs_own_means() -> None:
    everything = Facet("all", ("all",), dict.fromkeys(RUNS["student"].query_ids, ("all",)))
    (group,) = facet_table(RUNS, everything, ["RR"], [], seed=1).groups
    assert {name: means["RR"] for name, means in group.means.items()} == {name: found.means["RR"] for name, found in RUNS.items()}


def test_intervals_of_a_group_take_whole_conversations() -> None:
    generator = np.random.default_rng(1)
    values = {f"q{number:02}": float(generator.random()) for number in range(12)}
    runs = {"a": evaluation("a", **values), "b": evaluation("b", **dict.fromkeys(values, 0.0))}
    everything = Facet("all", ("all",), dict.fromkeys(values, ("all",)))
    clusters = {query_id: f"c{number // 6}" for number, query_id in enumerate(values)}
    (group,) = facet_table(runs, everything, ["RR"], [("a", "b")], seed=1, clusters=clusters).groups
    assert group.clusters == 2
    found = np.array(list(values.values()))
    assert group.differences[0].interval == pytest.approx(tuple(sorted((found[:6].mean(), found[6:].mean()))))  # both are drawn twice a quarter of the time


def test_a_group_of_a_single_conversation_has_no_interval() -> None:
    clusters = dict.fromkeys(RUNS["student"].query_ids, "one")
    groups = facet_table(RUNS, FACET, ["RR"], [("student", "bm25")], seed=1, clusters=clusters).groups
    assert [(group.clusters, group.differences[0].interval) for group in groups] == [(1, None), (1, None)]


def test_a_table_comes_back_from_json_as_it_was() -> None:
    for clusters in (None, dict.fromkeys(RUNS["student"].query_ids, "one")):
        table = facet_table(RUNS, FACET, ["RR"], [("student", "bm25")], seed=1, clusters=clusters)
        assert facet_table_from_json(json.loads(json.dumps(dataclasses.asdict(table)))) == table


def test_runs_of_different_queries_are_not_told_apart_together() -> None:
    with pytest.raises(DataError, match='runs "student" and "other" were evaluated on different queries'):
        facet_table({"student": RUNS["student"], "other": evaluation("other", q0=1)}, FACET, ["RR"], [], seed=1)
    with pytest.raises(DataError, match='no run "teacher" to compare; the runs are student, bm25'):
        facet_table(RUNS, FACET, ["RR"], [("student", "teacher")], seed=1)


def test_a_conversations_mean_is_that_of_its_turns() -> None:
    assert per_conversation(RUNS["student"], {"q0": "a", "q1": "b", "q2": "a", "q3": ""}, "RR") == {"a": 0.5, "b": 0.5}


def test_the_interval_of_a_mean_without_conversations_is_that_over_queries() -> None:
    values = np.array([0.0, 1.0])
    ids = ["q0", "q1"]
    assert mean_interval(ids, values, None, np.random.default_rng(1)) == mean_interval(ids, values, {}, np.random.default_rng(1)) == (0, 1)


def test_queries_whose_documents_were_seen_in_training_stand_apart() -> None:
    qrels = {"old": {"d1": 1, "d9": 1}, "new": {"d9": 2}, "graded 0": {"d1": 0, "d9": 1}, "nothing": {"d1": 0}}
    (facet,) = seen_documents(qrels, [{"d1"}, {"d2"}])
    assert facet.groups == {"old": ("seen in training",), "new": ("new",), "graded 0": ("new",)}
    assert seen_documents(qrels, [{"d1", "d9"}]) == []
    assert seen_documents(qrels, []) == []
