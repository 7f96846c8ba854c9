"""The report: its JSON, its words, its page."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from retriever.errors import DataError
from retriever.eval import wording
from retriever.eval.curves import ScoreDistribution, score_distribution, training_curve
from retriever.eval.latency import Latency
from retriever.eval.measures import Evaluation
from retriever.eval.report import (
    ReportData,
    RunResult,
    read_report,
    redraw_report,
    report_json,
    write_report,
)
from retriever.eval.significance import Comparison, compare
from retriever.eval.terminal import terminal_table
from tests.page_tags import tags_of

QUERIES = 24


def evaluation(run: str, gain: float) -> Evaluation:
    values = np.clip(np.linspace(0, 0.7, QUERIES) + gain * (np.arange(QUERIES) % 4 != 0), 0, 1)
    return Evaluation(run, tuple(f"q{number:02}" for number in range(QUERIES)), {"nDCG@10": values, "R@100": np.sqrt(values)})


@pytest.fixture
def data() -> ReportData:
    """A report with everything in it."""
    evaluations = {name: evaluation(name, gain) for name, gain in [("bm25", 0.02), ("student_before", 0.0), ("teacher", 0.25), ("student", 0.2)]}
    costs: dict[str, tuple[Latency | None, int | None]] = {
        "bm25": (Latency(1.2, 3.4, 1.5, 24), 5_300_000),
        "student_before": (Latency(8.0, 12.0, 8.5, 24), 7_960_000),
        "student": (Latency(8.1, 12.5, 8.6, 24), 7_960_000),
        "teacher": (Latency(1240.0, 3000.0, 1300.0, 24), None),
    }
    generator = np.random.default_rng(1)
    return ReportData(
        title="<tiny> & sound",
        runs=[RunResult(name, found, *costs[name], description=f"{name} <i>") for name, found in evaluations.items()],
        comparisons=compare(evaluations, [("student", "student_before"), ("student", "bm25")], ["nDCG@10", "R@100"], seed=1),
        measures=["nDCG@10", "R@100"],
        settings={"name": "tiny", "training": {"losses": {"margin_mse": 1.0}}},
        versions={"numpy": "2.4"},
        seed=1,
        query_texts={f"q{number:02}": f"<script>query {number}</script>" for number in range(QUERIES)},
        training=training_curve(
            [
                {"step": 0, "validation": 0.5},
                {"step": 10, "loss": 2.0, "learning_rate": 1e-5},
                {"step": 20, "validation": 0.7},
                {"step": 20, "loss": float("nan")},
            ],
            "nDCG@10 on held-out queries",
        ),
        distributions=[score_distribution(name, "cosine", generator.normal(1, 1, 50), generator.normal(0, 1, 500)) for name in ("teacher", "student")],
    )


def compared(difference: float, p_value: float, better: int = 1, worse: int = 0) -> Comparison:
    return Comparison("student", "student_before", "nDCG@10", difference, (0.0, 0.0), p_value, p_value, 300, better, worse)


def test_report_json_has_the_shape_that_programs_read(tmp_path: Path, data: ReportData) -> None:
    write_report(tmp_path, data)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {"runs", "comparisons", "settings", "versions", "seed"} <= report.keys()
    student = report["runs"]["student"]
    assert student["mean"]["nDCG@10"] == pytest.approx(evaluation("student", 0.2).values["nDCG@10"].mean())
    low, high = student["interval"]["nDCG@10"]
    assert low < student["mean"]["nDCG@10"] < high
    assert (student["queries"], student["bytes"]) == (QUERIES, 7_960_000)
    assert (student["latency_ms"]["p50"], student["latency_ms"]["p99"]) == (8.1, 12.5)
    assert report["runs"]["teacher"]["bytes"] is None
    assert {"run", "baseline", "measure", "difference", "p_value", "p_value_corrected", "interval"} <= report["comparisons"][0].keys()
    per_query = json.loads((tmp_path / report["per_query"]).read_text(encoding="utf-8"))
    assert per_query["runs"]["student"]["values"]["R@100"] == evaluation("student", 0.2).values["R@100"].tolist()


def test_a_report_is_read_back_as_it_was_and_drawn_again_to_the_same_bytes(tmp_path: Path, data: ReportData) -> None:
    page = write_report(tmp_path, data)
    first = page.read_bytes()
    assert report_json(read_report(tmp_path)) == report_json(data)
    page.unlink()
    assert redraw_report(tmp_path).read_bytes() == first


def test_a_damaged_report_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"runs": {}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"per_query\.json: cannot be read"):
        redraw_report(tmp_path)
    (tmp_path / "per_query.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="not from this program"):
        redraw_report(tmp_path)


def test_the_page_loads_nothing_runs_nothing_and_escapes_what_users_wrote(tmp_path: Path, data: ReportData) -> None:
    page = write_report(tmp_path, data).read_text(encoding="utf-8")
    tags = tags_of(page)
    assert not {"script", "link", "img", "iframe", "i"} & {tag for tag, _ in tags}
    assert not [url for _, attributes in tags for name, url in attributes.items() if name in {"src", "href", "xlink:href"} and not str(url).startswith("#")]
    assert not re.findall(r"@import|url\((?!#)", page)
    assert "&lt;tiny&gt; &amp; sound" in page
    assert "&lt;script&gt;query" in page
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags
    assert "prefers-color-scheme: dark" in page


def test_pictures_share_no_ids_and_keep_no_stand_in_colours(tmp_path: Path, data: ReportData) -> None:
    page = write_report(tmp_path, data).read_text(encoding="utf-8")
    ids = [attributes["id"] for _, attributes in tags_of(page) if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page))
    assert used <= set(ids)
    assert not re.search(r"#0000(?:0[1-6]|a\d)\b", page)
    assert page.count("<figure>") == 6  # latency, bytes, differences, training, two score distributions


def test_what_is_absent_leaves_its_section_out(tmp_path: Path, data: ReportData) -> None:
    bare_runs = [dataclasses.replace(run, latency=None, bytes=None, description="") for run in data.runs[:2]]
    bare = dataclasses.replace(data, runs=bare_runs, comparisons=[], training=None, distributions=(), query_texts={})
    page = write_report(tmp_path, bare).read_text(encoding="utf-8")
    tags_of(page)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Runs", "How to do it again"]
    assert "p50" not in page


@pytest.mark.parametrize(
    ("comparison", "sentence", "tone"),
    [
        (compared(0.0412, 0.0003), "The student gains +0.041 nDCG@10 over its start (p = 0.0003, 300 queries).", "gain"),
        (compared(-0.02, 0.00001), "The student loses 0.020 nDCG@10 against its start (p < 0.0001, 300 queries).", "loss"),
        (compared(0.004, 0.41), "No gain or loss is shown: +0.004 nDCG@10 for the student against its start (p = 0.41, 300 queries).", "unclear"),
        (compared(0, 1, better=0), "The student and its start have the same nDCG@10 on every query (300 queries).", "unclear"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(data: ReportData, comparison: Comparison, sentence: str, tone: str) -> None:
    found = wording.verdict(dataclasses.replace(data, comparisons=[comparison]))
    assert (found.sentence.replace("\N{NO-BREAK SPACE}", " "), found.tone) == (sentence, tone)


def test_the_verdict_uses_the_corrected_p_value(data: ReportData) -> None:
    nearly = dataclasses.replace(compared(0.02, 0.02), p_value_corrected=0.06)
    found = wording.verdict(dataclasses.replace(data, comparisons=[nearly, nearly]))
    assert found.tone == "unclear"
    assert "p = 0.060 after correction for several comparisons" in found.sentence.replace("\N{NO-BREAK SPACE}", " ")


def test_without_the_comparison_the_verdict_names_the_best_run(data: ReportData) -> None:
    found = wording.verdict(dataclasses.replace(data, comparisons=[]))
    assert found.sentence.startswith("teacher has the highest nDCG@10")
    assert found.sentence.endswith("student was not tested against student_before.")


@pytest.mark.parametrize(("value", "text"), [(0.0412, "+0.041"), (-0.0021, "\N{MINUS SIGN}0.002"), (-0.0001, "0.000")])
def test_differences_carry_their_sign(value: float, text: str) -> None:
    assert wording.signed(value) == text


def test_sizes_and_times_have_three_figures_or_so() -> None:
    assert [wording.size(value) for value in (0, 512, 7_960_000, 130_000_000, 2.5e12)] == ["0 B", "512 B", "8.0 MB", "130 MB", "2.5 TB"]
    assert [wording.milliseconds(value) for value in (0.854, 12.34, 1240.4)] == ["0.85 ms", "12.3 ms", "1,240 ms"]


def test_a_training_curve_keeps_losses_and_the_first_best_validation() -> None:
    points = [
        {"step": 0, "validation": 0.5},
        {"step": 10, "loss": 2.0, "margin_mse": 1.5, "learning_rate": 1e-5, "grad_norm": 3.0},
        {"step": 10, "validation": 0.7},
        {"step": 20, "loss": 1.0, "margin_mse": 0.5},
        {"step": 20, "validation": 0.7},
    ]
    curve = training_curve(points, "nDCG@10")
    assert curve.steps == [10, 20]
    assert curve.losses == {"loss": [2.0, 1.0], "margin_mse": [1.5, 0.5]}
    assert curve.validation_steps == [0, 10, 20]
    assert curve.chosen_step == 10


def test_a_sparse_student_keeps_the_best_of_those_that_are_as_sparse_as_was_asked_for() -> None:
    points = [{"step": 0, "validation": 0.6, "excess": 0.6}, {"step": 10, "validation": 0.55, "excess": 0.0}, {"step": 20, "validation": 0.5, "excess": 0.0}]
    assert training_curve(points, "nDCG@10").chosen_step == 10


def test_separation_is_the_chance_that_a_positive_outscores_a_negative() -> None:
    # Of the 6 pairs, (3, 1), (3, 2), (3, 2), (2, 1) are won and the two (2, 2) are ties.
    assert score_distribution("r", "dot", [3, 2], [1, 2, 2], bins=2).separation == (4 + 2 / 2) / 6


def test_a_distribution_holds_shares_of_each_kind() -> None:
    found = score_distribution("r", "dot", [0, 4], [0, 1, 1, 1], bins=2)
    assert found == ScoreDistribution("r", "dot", [0, 2, 4], [0.5, 0.5], [1, 0], found.separation)
    assert score_distribution("r", "dot", [], []).separation == 0.5


def test_the_terminal_table_marks_the_best_and_what_is_significant(data: ReportData) -> None:
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(terminal_table(data))
    rows = {cells[1].strip(): cells for line in captured.get().splitlines() if len(cells := re.split("[│┃]", line)) > 2}
    assert list(rows) == ["run", "bm25", "student_before", "teacher", "student"]
    assert rows["student"][2].strip() == f"{evaluation('student', 0.2).means['nDCG@10']:.3f}*"
    assert [cell.strip() for cell in rows["teacher"][4:7]] == ["1,240 ms", "3,000 ms", ""]
    assert "* better than student_before" in captured.get()
