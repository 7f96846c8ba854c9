"""The report on conversations: by turn, conversation by conversation, on other collections, with folds."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from retriever.eval import wording
from retriever.eval.facets import TURN_DEPTH, Facet, FacetGroup, FacetTable, facet_table
from retriever.eval.measures import Evaluation
from retriever.eval.report import ReportData, RunResult, read_report, redraw_report, report_json, write_report
from retriever.eval.significance import compare
from retriever.eval.terminal import terminal_table
from retriever.eval.transfer import transfer_of
from retriever.eval.turns_page import GROUPS_SHOWN, by_turn, elsewhere
from tests.page_tags import tags_of

CONVERSATIONS, TURNS = 10, 4
QUERY_IDS = tuple(f"c{conversation}_{turn}" for conversation in range(CONVERSATIONS) for turn in range(TURNS))
CLUSTERS = {query_id: query_id.split("_")[0] for query_id in QUERY_IDS}
DEPTHS = {query_id: int(query_id.split("_")[1]) + 1 for query_id in QUERY_IDS}
MEASURES = ["nDCG@10", "R@100"]
PAIRS = [("student", "last_turn"), ("student", "all_turns")]


def evaluation(run: str, gain: float) -> Evaluation:
    """Values that fall from turn to turn, and a gain that only later turns have."""
    turns = np.array([DEPTHS[query_id] for query_id in QUERY_IDS])
    values = np.repeat(np.linspace(0.2, 0.5, CONVERSATIONS), TURNS) - 0.05 * turns + gain * (turns > 1)
    return Evaluation(run, QUERY_IDS, {"nDCG@10": values, "R@100": np.sqrt(values)})


@pytest.fixture(scope="module")
def data() -> ReportData:
    """A report on conversations with everything in it."""
    evaluations = {name: evaluation(name, gain) for name, gain in [("last_turn", 0.0), ("all_turns", 0.2), ("teacher", 0.4), ("student", 0.3)]}
    depth = Facet(TURN_DEPTH, ("1", "2", "3", "4"), {query_id: (str(depth),) for query_id, depth in DEPTHS.items()}, "How deep.")
    kinds = Facet("kind", ("<b>",), dict.fromkeys(QUERY_IDS[:5], ("<b>",)))
    fewer = {name: found for name, found in evaluations.items() if name != "teacher"}
    same = {**fewer, "all_turns": dataclasses.replace(fewer["student"], run="all_turns")}
    return ReportData(
        title="talks",
        runs=[RunResult(name, found) for name, found in evaluations.items()],
        comparisons=compare(evaluations, [*PAIRS, ("student", "teacher")], MEASURES, 1, CLUSTERS),
        measures=MEASURES,
        settings={},
        versions={},
        seed=1,
        baseline="all_turns",
        collection="talks test",
        clusters=CLUSTERS,
        depths=DEPTHS,
        facets=[facet_table(evaluations, facet, MEASURES, PAIRS, 1, CLUSTERS) for facet in (depth, kinds)],
        transfer=[transfer_of("other", "dev", same, PAIRS, MEASURES, 1, CLUSTERS), transfer_of("third", "", {"student": fewer["student"]}, [], MEASURES, 1)],
        folds=5,
    )


def test_report_json_has_conversations_groups_and_other_collections(tmp_path: Path, data: ReportData) -> None:
    write_report(tmp_path, data)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {one["clusters"] for one in report["comparisons"]} == {CONVERSATIONS}
    assert report["folds"] == 5
    depth = report["facets"][0]
    assert [(group["label"], group["queries"], group["clusters"]) for group in depth["groups"]] == [(label, 10, 10) for label in "1234"]
    assert [group["differences"][2]["difference"] for group in depth["groups"]] == pytest.approx([0, 0.1, 0.1, 0.1])  # to all_turns, in nDCG@10
    assert report["transfer"][0]["means"]["student"]["nDCG@10"] == pytest.approx(evaluation("student", 0.3).means["nDCG@10"])
    means = report["conversations"]["means"]
    assert list(means) == ["student", "all_turns"]
    assert means["student"]["c0"] == pytest.approx(0.2 - 0.05 * 2.5 + 0.3 * 3 / 4)
    per_query = json.loads((tmp_path / "per_query.json").read_text(encoding="utf-8"))
    assert (per_query["conversations"]["c3_1"], per_query["depths"]["c3_1"]) == ("c3", 2)


def test_it_is_read_back_as_it_was_and_drawn_again_to_the_same_bytes(tmp_path: Path, data: ReportData) -> None:
    page = write_report(tmp_path, data)
    first = page.read_bytes()
    read = read_report(tmp_path)
    assert report_json(read) == report_json(data)
    assert (read.facets, read.transfer, read.clusters, read.depths) == (data.facets, data.transfer, data.clusters, data.depths)
    page.unlink()
    assert redraw_report(tmp_path).read_bytes() == first


def test_a_report_from_before_there_were_conversations_is_read_without_them(tmp_path: Path, data: ReportData) -> None:
    write_report(tmp_path, dataclasses.replace(data, facets=(), transfer=(), clusters=None, depths={}, folds=None, collection=""))
    for name, absent in (("report.json", ("collection", "conversations", "facets", "transfer", "folds")), ("per_query.json", ("conversations", "depths"))):
        written = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        (tmp_path / name).write_text(json.dumps({key: value for key, value in written.items() if key not in absent}), encoding="utf-8")
    read = read_report(tmp_path)
    assert (list(read.facets), list(read.transfer), read.clusters, read.depths, read.folds, read.conversations) == ([], [], None, {}, None, {})


def test_the_page_says_how_the_tests_were_clustered_and_what_folds_mean(tmp_path: Path, data: ReportData) -> None:
    page = write_report(tmp_path, data).read_text(encoding="utf-8")
    tags_of(page)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Runs", "Differences", "By turn", "Other collections", "What changed", "How to do it again"]
    assert "Means over 40 queries in 10 conversations, below them 95&nbsp;% bootstrap intervals over whole conversations" in page
    assert "tests and intervals take whole conversations, 10 in all" in page
    assert "split into 5 folds, and every query was scored by a student that did not see its conversation" in page
    assert page.count("<figure>") == 3  # by turn, by conversation, the differences
    assert "&lt;b&gt;" in page
    assert "35 queries in no group." in page
    assert not re.search(r"#0000(?:0[1-6]|a\d)\b", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_without_conversations_the_page_says_nothing_of_them(tmp_path: Path, data: ReportData) -> None:
    bare = dataclasses.replace(data, facets=(), transfer=(), clusters=None, depths={}, folds=None, comparisons=[])
    page = write_report(tmp_path, bare).read_text(encoding="utf-8")
    assert "conversation" not in page
    assert "folds" not in page
    assert re.findall(r"<h2>(.*?)</h2>", page)[:2] == ["Runs", "What changed"]


def test_the_best_baseline_is_the_best_that_was_compared_and_no_teacher(data: ReportData) -> None:
    assert data.best_baseline is data.runs[1]
    assert dataclasses.replace(data, comparisons=[]).best_baseline is None


def test_conversations_are_counted_against_the_best_baseline(data: ReportData) -> None:
    section = by_turn(data)
    assert section is not None
    assert section["pictures"][1].caption == (
        "Means over each of 10 conversations. Against all_turns, the best baseline, student is better in 10, worse in 0 and equal in 0."
    )


def test_a_group_table_has_runs_and_then_differences(data: ReportData) -> None:
    section = by_turn(data)
    assert section is not None
    depth, kinds = section["tables"]
    assert (depth.title, depth.headings[0]) == ("Turn depth", ("1", "10 queries"))
    assert [(row.name, row.small) for row in depth.rows[-3:]] == [("student", ""), ("student", "against last_turn"), ("student", "against all_turns")]
    assert [cell.value for cell in depth.rows[-1].cells] == ["0.000", "+0.100", "+0.100", "+0.100"]
    assert [cell.best for cell in depth.rows[2].cells] == [True] * 4  # the teacher
    assert depth.note.startswith("nDCG@10, below it R@100. How deep. Differences with 95")
    assert len(kinds.rows[0].cells) == 1


def test_of_many_groups_the_largest_are_shown_in_their_order(data: ReportData) -> None:
    sizes = [3, 1, *[2] * GROUPS_SHOWN]
    groups = [FacetGroup(f"g{number}", size, None, {"student": {"nDCG@10": 0.5}}, []) for number, size in enumerate(sizes)]
    section = by_turn(dataclasses.replace(data, facets=[FacetTable("kind", ["nDCG@10"], groups, 0)], clusters=None))
    assert section is not None
    (table,) = section["tables"]
    assert section["title"] == "By group"
    assert [heading for heading, _ in table.headings] == ["g0", *(f"g{number}" for number in range(2, GROUPS_SHOWN + 1))]
    assert table.note == f"nDCG@10. The {GROUPS_SHOWN} largest of {GROUPS_SHOWN + 2} groups; report.json has all."


def test_other_collections_stand_beside_ours_with_what_the_student_gains(data: ReportData) -> None:
    table = elsewhere(data)
    assert table is not None
    assert table.headings == [("in domain", "talks test"), ("other dev", "40 queries in 10 conversations"), ("third", "40 queries")]
    rows = {row.name: row.cells for row in table.rows}
    assert list(rows) == ["last_turn", "all_turns", "teacher", "student"]
    assert rows["last_turn"][1].lines[1] == ("student +0.225", "gain")
    assert rows["all_turns"][1].lines[1] == ("student 0.000", "")  # the same values there
    assert (rows["teacher"][1].value, len(rows["student"][0].lines), rows["student"][2].best) == ("", 1, True)
    assert rows["teacher"][0].lines[1] == ("student \N{MINUS SIGN}0.075", "loss")


def test_the_verdict_counts_conversations(data: ReportData) -> None:
    assert "after correction for several comparisons, 40 queries in 10 conversations)" in wording.verdict(data).sentence


def test_the_terminal_hints_at_the_groups(data: ReportData) -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(terminal_table(data))
    said = " ".join(captured.get().split())
    assert "nDCG@10 of student by turn depth: 1 0.300, 2 0.550, 3 0.500, 4 0.450 report.html has it by kind too" in said
