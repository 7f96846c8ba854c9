"""Text to image and image to text: told apart in names, questions, measures, tests and reports."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from retriever.config import experiment_from
from retriever.errors import ConfigError
from retriever.eval import wording
from retriever.eval.changes import changes_of
from retriever.eval.directions import direction_of, directions_of, in_direction, pairs_in_directions, system_of
from retriever.eval.latency import Latency
from retriever.eval.measures import evaluate
from retriever.eval.ranks import FIRST_RANK, SAMPLES, first_ranks, median_rank, with_first_ranks
from retriever.eval.report import ReportData, RunResult, read_report, redraw_report, report_json, write_report
from retriever.eval.significance import compare
from retriever.eval.terminal import terminal_table
from retriever.eval.transfer import Transfer, transfer_of
from retriever.progress import Quiet
from retriever.runs import Run, read_run
from retriever.settings.evaluation import EvaluationSettings
from retriever.steps import evaluate as evaluate_step
from retriever.steps.image_report import image_clusters
from retriever.steps.systems import System
from retriever.types import Query
from tests.page_tags import tags_of

TEXT, IMAGE = "text_to_image", "image_to_text"
CAPTIONS = {f"{number}.png#{n}": {f"{number}.png": 1} for number in range(12) for n in range(2)}
IMAGES = {f"{number}.png": {f"{number}.png#0": 1, f"{number}.png#1": 1} for number in range(12)}
QRELS: dict[str, dict[str, int]] = {**IMAGES, **CAPTIONS}
MEASURES = ["Success@1", "Success@5"]


def asked() -> dict[str, Query]:
    """Images and captions, mixed as their source has them; every third image is a tool."""

    def query(query_id: str, direction: str) -> Query:
        category = "tools" if int(query_id.split(".", maxsplit=1)[0]) % 3 == 0 else "animals"
        fields = {"direction": direction, "category": category}
        return Query(query_id, f"caption {query_id}", fields=fields) if direction == TEXT else Query(query_id, "", image=Path(query_id), fields=fields)

    return {query_id: query(query_id, TEXT if "#" in query_id else IMAGE) for query_id in sorted(QRELS)}


def run_that_finds(name: str, places: dict[str, int]) -> Run:
    """A relevant document of each direction's queries at a rank of its own, among documents that nobody judged."""

    def listed(query_id: str) -> dict[str, float]:
        place = places[TEXT if "#" in query_id else IMAGE]
        doc_ids = [f"other{rank}" for rank in range(1, place)] + [next(iter(QRELS[query_id]))]
        return {doc_id: -float(rank) for rank, doc_id in enumerate(doc_ids)}

    return Run.from_dict(name, {query_id: listed(query_id) for query_id in QRELS})


def results(systems: dict[str, dict[str, int]]) -> list[RunResult]:
    found = []
    for way, qrels in ((TEXT, CAPTIONS), (IMAGE, IMAGES)):
        for name, places in systems.items():
            run = run_that_finds(in_direction(name, way), places).select(qrels)
            found.append(RunResult(run.name, with_first_ranks(evaluate(run, qrels, MEASURES), run, qrels, 10), Latency(1, 2, 1, 9), 1000, "a run"))
    return found


@pytest.fixture(scope="module")
def data() -> ReportData:
    """The student finds every image at once and gets worse at captions."""
    runs = results({"student_before": {TEXT: 4, IMAGE: 1}, "contrastive": {TEXT: 1, IMAGE: 1}, "student": {TEXT: 1, IMAGE: 3}})
    evaluations = {run.name: run.evaluation for run in runs}
    clusters = image_clusters(asked(), QRELS)
    pairs = pairs_in_directions(evaluations, [("student", "student_before"), ("student", "contrastive"), ("student", "bm25")])
    return ReportData(
        title="squares",
        runs=runs,
        comparisons=compare(evaluations, pairs, MEASURES, 1, clusters),
        measures=MEASURES,
        settings={},
        versions={},
        seed=1,
        query_texts={query_id: query.shown or query_id for query_id, query in asked().items()},
        clusters=clusters,
        clustered_by="image",
    )


@pytest.fixture(scope="module")
def page(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html, beside what it is drawn from, with results on another collection too."""
    return write_report(tmp_path_factory.mktemp("report"), dataclasses.replace(data, transfer=[elsewhere(data)]))


def elsewhere(data: ReportData) -> Transfer:
    evaluations = {run.name: run.evaluation for run in data.runs}
    return transfer_of("photographs", "test", evaluations, pairs_in_directions(evaluations, [("student", "contrastive")]), MEASURES, 1)


def test_a_run_s_name_carries_its_direction_and_gives_it_back() -> None:
    assert in_direction("student", TEXT) == "student.text_to_image"
    assert (direction_of("student.text_to_image"), system_of("student.text_to_image")) == (TEXT, "student")
    assert in_direction("student", "") == "student"
    for plain in ("student", "rewrite_gpt-4.1", "stage_1", "text_to_image"):
        assert (direction_of(plain), system_of(plain)) == ("", plain)


@given(st.from_regex(r"[a-z][a-z0-9_.]{0,12}", fullmatch=True), st.sampled_from(["", TEXT, IMAGE]))
def test_names_go_both_ways(name: str, direction: str) -> None:
    if direction or not direction_of(name):
        assert (system_of(in_direction(name, direction)), direction_of(in_direction(name, direction))) == (name, direction)


def test_queries_are_told_apart_only_where_all_of_them_say_their_way_and_there_are_two() -> None:
    queries = asked()
    assert {way: set(query_ids) for way, query_ids in directions_of(queries).items()} == {IMAGE: set(IMAGES), TEXT: set(CAPTIONS)}
    captions = {query_id: queries[query_id] for query_id in CAPTIONS}
    assert directions_of(captions) == {"": list(CAPTIONS)}
    assert list(directions_of(queries | {"q": Query("q", "a text")})) == [""]
    north = Query("n", "north", fields={"direction": "north"})
    assert list(directions_of({"n": north, "s": dataclasses.replace(north, fields={"direction": "south"})})) == [""]  # another field of that name


def test_questions_are_asked_within_each_direction() -> None:
    runs = ["bm25.text_to_image", "student.text_to_image", "student.image_to_text", "teacher.image_to_text"]
    wanted = [("student", "bm25"), ("student", "teacher"), ("student", "gone")]
    assert pairs_in_directions(runs, wanted) == [
        ("student.text_to_image", "bm25.text_to_image"),
        ("student.image_to_text", "teacher.image_to_text"),
    ]
    assert pairs_in_directions(["student", "bm25"], wanted) == [("student", "bm25")]


def test_the_rank_of_the_first_relevant_document_is_counted_from_one() -> None:
    run = Run.from_dict("run", {"a": {"x": 3, "y": 2, "z": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 1}})
    qrels = {"c": {"other": 1}, "b": {"x": 1, "y": 1}, "a": {"y": 0, "z": 2}, "d": {"x": 1}}
    assert first_ranks(run, qrels, 10).tolist() == [3, 1, 11, 11]  # a, b, c, d
    assert first_ranks(run, qrels, 2).tolist() == [3, 1, 3, 3]


def test_a_median_of_an_even_number_of_ranks_lies_between_the_two_in_the_middle() -> None:
    found = median_rank(list("abcd"), np.array([1.0, 9.0, 2.0, 3.0]), None, np.random.default_rng(1))
    assert found.value == 2.5
    assert 1 <= found.interval[0] <= 2.5 <= found.interval[1] <= 9


def test_the_interval_of_a_median_is_that_of_medians_of_drawn_queries_or_images() -> None:
    ranks = np.random.default_rng(3).integers(1, 40, 25).astype(np.float64)
    query_ids = [f"q{number}" for number in range(25)]
    images = {query_id: f"image {number // 5}" for number, query_id in enumerate(query_ids)}
    for clusters, groups in ((None, ranks[:, None]), (images, ranks.reshape(5, 5))):
        found = median_rank(query_ids, ranks, clusters, np.random.default_rng(1))
        drawn = np.random.default_rng(1).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), SAMPLES)
        medians = [np.median(np.repeat(groups, times, axis=0)) for times in drawn]
        assert found.value == np.median(ranks)
        assert found.interval == pytest.approx(tuple(np.quantile(medians, [0.025, 0.975])), abs=1e-12)


def test_captions_of_one_image_are_taken_together_where_images_have_several() -> None:
    clusters = image_clusters(asked(), QRELS)
    assert clusters == {f"{number}.png#{n}": f"{number}.png" for number in range(12) for n in range(2)}
    single = {query_id: query for query_id, query in asked().items() if not query_id.endswith("#1")}
    assert image_clusters({query_id: query for query_id, query in single.items() if "#" in query_id}, QRELS) == {}
    assert image_clusters({"q": Query("q", "text"), "r": Query("r", "text")}, {"q": {"d": 1}, "r": {"d": 1}}) == {}


def test_systems_are_run_once_and_measured_and_written_in_each_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def system(name: str, places: dict[str, int]) -> System:
        return System(name, "", lambda: (ran.append(name), run_that_finds(name, places))[1], lambda query: query.query_id, 7)

    there = [system("student_before", {TEXT: 2, IMAGE: 2}), system("student", {TEXT: 1, IMAGE: 3})]
    monkeypatch.setattr(evaluate_step, "systems", lambda pipeline: there)
    settings = EvaluationSettings(measures=("Success@1",), latency_queries=5)
    pipeline: Any = SimpleNamespace(
        experiment=SimpleNamespace(evaluation=settings),
        reporter=Quiet(),
        conversations=lambda split: asked(),
        qrels=lambda split: QRELS,
        counted=lambda run: run,
    )
    found = evaluate_step._results(pipeline, tmp_path)
    assert ran == ["student_before", "student"]
    ways = [TEXT, IMAGE]  # though an image comes first among the queries
    assert [result.name for result in found] == [in_direction(name, way) for way in ways for name in ran]
    by_name = {result.name: result for result in found}
    assert by_name["student.text_to_image"].evaluation.means["Success@1"] == 1
    assert by_name["student.text_to_image"].evaluation.query_ids == tuple(sorted(CAPTIONS))
    assert by_name["student.image_to_text"].evaluation.values[FIRST_RANK].tolist() == [3] * len(IMAGES)
    assert {result.bytes for result in found} == {7}
    assert {result.latency.queries for result in found if result.latency} == {5}
    written = read_run(tmp_path / "runs" / "student.image_to_text.trec")
    assert written.to_dict() == run_that_finds("student", {TEXT: 1, IMAGE: 3}).select(IMAGES).to_dict()


def test_facets_are_told_apart_within_each_direction(data: ReportData, tmp_path: Path) -> None:
    pipeline: Any = SimpleNamespace(
        experiment=SimpleNamespace(
            evaluation=EvaluationSettings(measures=("Success@1",), by=("category",)),
            candidates=SimpleNamespace(language="english"),
            collection=SimpleNamespace(folds=None),
            seed=1,
        ),
        held_out=([], []),
        conversations=lambda split: asked(),
        qrels=lambda split: QRELS,
    )
    evaluations = {run.name: run.evaluation for run in data.runs}
    tables = {table.name: table for table in evaluate_step.told_apart(pipeline, evaluations, tmp_path)}
    assert set(tables) == {"category, text to image", "category, image to text"}
    animals, tools = tables["category, text to image"].groups
    assert (animals.label, animals.queries, animals.clusters, tools.queries) == ("animals", 16, 8, 8)
    assert set(animals.means) == {in_direction(name, TEXT) for name in ("student_before", "contrastive", "student")}
    assert {(one.run, system_of(one.baseline)) for one in animals.differences} == {
        ("student.text_to_image", name) for name in ("student_before", "contrastive")
    }
    found = wording.hints(dataclasses.replace(data, facets=[tables["category, text to image"]]))
    assert found == ["Success@1 of student by category, text to image: animals 1.000, tools 1.000"]


def test_a_report_is_read_back_and_drawn_again_to_the_same_bytes(data: ReportData, page: Path) -> None:
    first = page.read_bytes()
    assert report_json(read_report(page.parent)) == report_json(dataclasses.replace(data, transfer=[elsewhere(data)]))
    assert redraw_report(page.parent).read_bytes() == first
    report = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    assert report["directions"] == [TEXT, IMAGE]
    assert report["runs"]["student.image_to_text"]["median_rank"] == {"value": 3, "interval": [3, 3]}
    assert report["runs"]["student_before.text_to_image"]["queries"] == 24


def test_a_report_from_before_there_were_images_is_read_as_it_was(data: ReportData, page: Path, tmp_path: Path) -> None:
    report, per_query = (json.loads((page.parent / name).read_text(encoding="utf-8")) for name in ("report.json", "per_query.json"))
    names = [run.name for run in data.runs if direction_of(run.name) == TEXT]
    report = {key: value for key, value in report.items() if key not in ("clustered_by", "directions", "zero_shot")} | {"comparisons": [], "transfer": []}
    report["runs"] = {system_of(name): {key: value for key, value in report["runs"][name].items() if key != "median_rank"} for name in names}
    values = {name: {measure: per_query["runs"][name]["values"][measure] for measure in MEASURES} for name in names}
    runs = {system_of(name): {"query_ids": per_query["runs"][name]["query_ids"], "values": values[name]} for name in names}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (tmp_path / "per_query.json").write_text(json.dumps({**per_query, "conversations": None, "runs": runs}), encoding="utf-8")
    found = read_report(tmp_path)
    assert [run.name for run in found.runs] == ["student_before", "contrastive", "student"]
    assert (found.directions, found.median_ranks, found.clustered_by, found.shown, found.zero_shot) == (("",), {}, "conversation", None, None)


def test_the_best_of_each_direction_is_marked(data: ReportData) -> None:
    best = {run.name for run in data.runs if data.is_best(run, "Success@1")}
    assert best == {"contrastive.text_to_image", "student.text_to_image", "student_before.image_to_text", "contrastive.image_to_text"}
    assert data.places == {in_direction(name, way): place for place, name in enumerate(["student_before", "contrastive", "student"]) for way in (TEXT, IMAGE)}


def test_the_verdict_has_a_sentence_for_each_direction(data: ReportData) -> None:
    found = wording.verdict(data)
    text, image = found.sentence.replace("\N{NO-BREAK SPACE}", " ").split(" Image to text: ")
    assert text.startswith("Text to image: the student gains +1.000 Success@1 over its start (p = ")
    assert text.endswith("24 queries of 12 images).")
    assert image.startswith("the student loses 1.000 Success@1 against its start (p = ")
    assert image.endswith("12 queries).")
    assert found.tone == "unclear"
    untested = wording.verdict(dataclasses.replace(data, comparisons=[]))
    assert untested.sentence.startswith("Text to image: contrastive has the highest Success@1, 1.000 (24 queries of 12 images); student was not tested")


def test_the_page_shows_a_picture_of_costs_and_of_changes_for_each_direction(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    for way in ("text to image", "image to text"):
        assert f"Success@1 against latency of a query, {way}" in titles
        assert f"student against student_before, query by query, {way}" in titles
    assert titles.count("Most improved") == titles.count("Most hurt") == 1
    assert "Means over 24 queries of 12 images from text to image and 12 queries from image to text" in text
    assert "images with all their captions" in text
    ids = [attributes["id"] for _, attributes in tags_of(text) if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_terminal_table_shows_both_directions_with_their_median_ranks(data: ReportData) -> None:
    console = Console(width=140, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(terminal_table(data))
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:]] for line in captured.get().splitlines() if len(cells := re.split("[│┃]", line)) > 2}
    assert list(rows) == ["run", *(in_direction(name, way) for way in (TEXT, IMAGE) for name in ("student_before", "contrastive", "student"))]
    assert rows["run"][2] == "median rank"
    assert rows["student.text_to_image"][:3] == ["1.000*", "1.000", "1"]
    assert rows["student_before.text_to_image"][2] == "4"
    assert "* better than student_before" in captured.get()


def test_what_changed_most_is_listed_for_each_direction(data: ReportData) -> None:
    text, image = changes_of(data)
    assert (text.subject, text.baseline, len(text.improved), len(text.hurt)) == ("student.text_to_image", "student_before.text_to_image", 5, 0)
    assert (image.subject, len(image.improved), [change.query_id for change in image.hurt]) == (
        "student.image_to_text",
        0,
        ["9.png", "8.png", "7.png", "6.png", "5.png"],
    )


def test_results_elsewhere_hold_the_runs_of_both_directions(data: ReportData, page: Path) -> None:
    there = elsewhere(data)
    assert (there.queries, len(there.comparisons)) == (36, 4)
    column = re.findall(r'data-label="photographs test"( class="best")?>([0-9.]+)', page.read_text(encoding="utf-8"))
    assert [(value, bool(best)) for best, value in column] == [("0.000", False), *[("1.000", True)] * 4, ("0.000", False)]


def test_a_zero_shot_template_has_one_place_for_the_name() -> None:
    values: dict[str, Any] = {"name": "x", "collection": {"path": "c"}, "teacher": [{"kind": "lexical"}], "student": {"model": "m"}}
    with pytest.raises(ConfigError, match=r'evaluation\.zero_shot\.template: has \{\} where the name stands, once; found "a photo"'):
        experiment_from({**values, "evaluation": {"zero_shot": {"field": "category", "template": "a photo"}}})
