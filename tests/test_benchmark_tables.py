"""The tables of the pages are those of benchmarks/results, and the benchmarks of students keep, share and time what they should."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from retriever.collection import write_collection
from retriever.config import experiment_from, read_experiment
from retriever.eval.measures import evaluate
from retriever.eval.report import ReportData, RunResult
from retriever.eval.transfer import transfer_of
from retriever.pipeline import Pipeline
from retriever.runs import Run
from retriever.steps.step import Done
from retriever.types import Document, Query
from tests.tiny_experiment import write_experiment

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a benchmark as its own command would find it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)

    def imported(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield imported
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


def student_result(**p_values: list[float]) -> dict[str, Any]:
    means = {"bm25": 0.4, "student_before": 0.5, "hybrid_before": 0.55, "teacher": 0.8, "contrastive": 0.6, "student": 0.78}
    runs = {
        name: {"mean": {"nDCG@10": mean}, "interval": [mean - 0.1, mean + 0.1], "latency_ms": 12.345, "bytes": None if name == "teacher" else 20_000}
        for name, mean in means.items()
    }
    tests = {"contrastive": [0.18, 0.0004, 0.0008], "student_before": [0.28, 0.004, 0.008], "bm25": [0.38, 0.2, 0.2]}
    found = {"measure": "nDCG@10", "runs": runs, "p_values": {f"student > {name}": values for name, values in tests.items()}, "documents": 10, "queries": 1234}
    return found | {"seed": 1, "target": "ensemble", "minutes": {"contrastive": 3.14, "student": None}, "machine": "2 cores, x86_64"}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


LOSS_RUN = {"queries": 7, "judged": 5, "unjudged": 9, "target": "ensemble", "teacher": 0.65}


def loss_run(student: str, loss: str, seed: int | None, first: float) -> dict[str, Any]:
    one = {"student": student, "loss": loss, "seed": seed, "first_stage": first, "re_ranking": 0.9, "measure": "nDCG@10", **LOSS_RUN}
    return one | {"of_each_query": " ".join([f"{first:.4f}"] * 4)}


def test_the_tables_of_the_pages_are_those_of_the_kept_results(benchmark: Any) -> None:
    tables = benchmark("tables")
    results = tables.read_results(ROOT / "benchmarks" / "results")
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert [name for page in pages for name in tables.update(page, results, check=True)] == []


def test_a_table_is_written_between_its_marks_and_nothing_else_is_touched(benchmark: Any, tmp_path: Path) -> None:
    tables, page = benchmark("tables"), tmp_path / "page.md"
    results = {"sparsity": {"here": {"sides": {"queries": {"wanted": 32, "found": 36.0}}}}}
    page.write_text("before\n<!-- table:sparsity -->\nold\n<!-- /table -->\nafter\n")
    assert tables.update(page, results, check=True) == ["sparsity in page.md"]
    assert "old" in page.read_text()
    assert tables.update(page, results) == ["sparsity in page.md"]
    first, mark, heads, rule, row, end, last = page.read_text().splitlines()
    assert (first, mark, end, last) == ("before", "<!-- table:sparsity -->", "<!-- /table -->", "after")
    assert cells(heads) == ["active dimensions", "asked for", "found", "off by"]
    assert cells(rule) == ["---"] * 4
    assert cells(row) == ["here, queries", "32", "36.0", "+12.5 %"]
    assert tables.update(page, results, check=True) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table:sparsity -->\n", "marks do not match"),
        ("<!-- /table -->\n", "marks do not match"),
        ("<!-- table:sparsity -->\n<!-- table:losses -->\n<!-- /table -->\n<!-- /table -->\n", "marks do not match"),
        ("<!-- table:sparcity -->\n<!-- /table -->\n", "no table sparcity; known are "),
        ("<!-- table:sparsity -->\n<!-- /table -->\n", r"benchmarks/results/sparsity.json is missing. Make it with: python benchmarks/sparsity.py"),
    ],
)
def test_a_table_that_cannot_be_made_says_why(benchmark: Any, text: str, said: str) -> None:
    tables = benchmark("tables")
    with pytest.raises(tables.TableError, match=said):
        tables.with_tables(text, {})


def test_the_check_ends_with_status_1_and_names_the_table(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, page = benchmark("tables"), tmp_path / "page.md"
    page.write_text("<!-- table:scifact -->\nold\n<!-- /table -->\n")
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check", str(page)])
    with pytest.raises(SystemExit) as stopped:
        tables.main()
    assert str(stopped.value.code).startswith("not up to date: scifact in page.md\n")  # a text as the code is printed, and the status is 1


def test_a_row_of_students_has_the_share_of_the_teacher_and_the_corrected_p_values(benchmark: Any) -> None:
    table = benchmark("tables").students_table({"doc2dial-late-interaction": student_result(), "scifact-dense": student_result()}, "doc2dial")
    *lines, empty, said = table.splitlines()
    assert len(lines) == 2 + 3 + 3  # heads, BM25 and the two of the teacher, the three of the only kind
    assert cells(lines[3])[:4] == ["teacher (ensemble, re-ranks)", "0.800", "0.700 to 0.900", "100.0 %"]
    assert cells(lines[3])[8] == ""  # no index
    gains = ["+0.180 (p < 0.001)", "+0.280 (p = 0.008)", "+0.380 (p = 0.20)"]
    assert cells(lines[-1]) == ["late interaction: **distilled**", "0.780", "0.680 to 0.880", "97.5 %", *gains, "12.3", "2,000", ""]
    assert cells(lines[-2])[-1] == "3.1"
    assert empty == ""
    assert said.startswith("1,234 test queries, 10 documents, seed 1,")


def test_what_was_learnt_by_heart_is_told_where_it_is_known(benchmark: Any) -> None:
    result = student_result() | {"new": {"queries": 12, "means": {"student": 0.7, "contrastive": 0.4}}}
    heads, _, bm25, *_, distilled, _, said = benchmark("tables").students_table({"scifact-dense": result}, "scifact").splitlines()
    assert cells(heads)[-1] == "on new documents"
    assert (cells(bm25)[-1], cells(distilled)[-1]) == ("", "0.700")
    assert said.endswith("New documents: the 12 queries none of whose relevant documents a judged train query had.")


def test_what_unjudged_queries_add_stands_beside_the_judged_alone(benchmark: Any) -> None:
    result = student_result()
    result["runs"]["judged"] = result["runs"]["contrastive"]
    result |= {"p_values": {"student > judged": [0.02, 0.001, 0.004]}, "judged": 5, "unjudged": 19, "settings": {"student": {"kind": "late_interaction"}}}
    lines = benchmark("tables").unjudged_table({"late_interaction, 5 judged": result}).splitlines()
    assert [cells(line)[0] for line in lines[4:8]] == [
        *("late interaction: start", "late interaction: judged queries, contrastive only", "late interaction: judged queries, distilled"),
        "late interaction: **unjudged ones too, distilled**",
    ]
    assert cells(lines[7])[1:] == ["0.780", "0.680 to 0.880", "97.5 %", "+0.020 (p = 0.004)", "", ""]
    assert lines[-1].startswith("1,234 test queries, 5 judged and 19 unjudged train queries, seed 1")


def test_losses_are_ordered_by_their_mean_and_show_the_spread_over_seeds(benchmark: Any) -> None:
    values = [0.5, 0.52, 0.57]
    kept = {f"dense ranknet {seed}": loss_run("dense", "ranknet", seed, value) for seed, value in enumerate(values, 1)}
    kept |= {
        "settings 1": {},
        "measured": {"query_ids": ["q1", "q2", "q3", "q4"], "conversations": ["a", "a", "b", ""]},
        "dense start": loss_run("dense", "start", None, 0.4),
        **{f"dense kl + b {seed}": loss_run("dense", "kl_divergence + contrastive", seed, 0.6) for seed in (1, 2, 3)},
        "dense kl + b 4": loss_run("dense", "kl_divergence + contrastive", 4, 0.9),  # the others were stopped before
    }
    lines = benchmark("tables").losses_table(kept).splitlines()
    assert [cells(line)[:2] for line in lines[2:5]] == [
        ["`kl_divergence` + `contrastive`", "0.600 ± 0.000"],
        ["`ranknet`", f"{0.53:.3f} ± {statistics.stdev(values):.3f}"],
        ["start, untrained", "0.400"],
    ]
    assert "over the seeds 1, 2, 3; 5 judged queries and 9 unjudged ones taught" in lines[-1]
    kept["late ranknet 1"] = loss_run("late_interaction", "ranknet", 1, 0.5)
    assert "over the seeds 1, 2, 3 (dense) and 1 (late interaction); 5 judged" in benchmark("tables").losses_table(kept)
    assert "The target, ensemble, re-ranks at 0.650." in lines[-1]


def test_losses_are_tested_against_contrast_by_each_query_s_mean_over_seeds_and_whole_dialogues(benchmark: Any) -> None:
    kept = {f"dense ranknet {seed}": loss_run("dense", "ranknet", seed, value) for seed, value in enumerate([0.5, 0.7], 1)}
    kept |= {f"dense contrastive {seed}": loss_run("dense", "contrastive", seed, 0.5) for seed in (1, 2)}
    kept |= {"dense start": loss_run("dense", "start", None, 0.4)}
    kept |= {"measured": {"query_ids": ["q1", "q2", "q3", "q4"], "conversations": ["a", "a", "b", ""]}}
    _, _, ranknet, contrastive, start, *_ = benchmark("tables").losses_table(kept).splitlines()
    assert cells(ranknet)[2] == "+0.100 (p = 0.25)"  # three clusters of one sign: 2 of 2^3 patterns are as far from 0
    assert (cells(contrastive)[2], cells(start)[2]) == ("", "")


def test_what_unjudged_queries_add_is_tested_where_both_were_trained(benchmark: Any) -> None:
    both = "kl_divergence + contrastive"
    kept = {"with": loss_run("dense", both, 1, 0.7), "measured": {"query_ids": ["q1", "q2", "q3", "q4"], "conversations": ["a", "a", "b", ""]}}
    assert "unjudged queries add" not in benchmark("tables").losses_table(kept)
    kept["without"] = loss_run("dense", f"{both}, judged alone", 1, 0.5)
    said = benchmark("tables").losses_table(kept).splitlines()[-1]
    assert said.endswith("What the unjudged queries add to `kl_divergence` + `contrastive`, uncorrected: dense +0.200 (p = 0.25).")


def test_a_report_becomes_means_bytes_and_the_three_tests_of_the_student(benchmark: Any) -> None:
    qrels = {f"q{number}": {"a": 1} for number in range(6)}
    good = Run.from_dict("good", {query_id: {"a": 2.0, "b": 1.0} for query_id in qrels})
    bad = Run.from_dict("bad", {query_id: {"a": 1.0, "b": 2.0} for query_id in qrels})
    names = {"bm25": bad, "student_before": bad, "contrastive": good, "student": good}
    runs = [RunResult(name, evaluate(run.rename(name), qrels, ["RR@10"]), None, 100) for name, run in names.items()]
    report = ReportData(title="t", runs=runs, comparisons=[], measures=["RR@10"], settings={}, versions={}, seed=1)
    found = benchmark("students").measured(report)
    assert found["runs"]["student"] == {"mean": {"RR@10": 1.0}, "interval": (1.0, 1.0), "latency_ms": None, "bytes": 100}
    one_in_32 = 2 / 2**6  # of all sign patterns of six equal differences, two are as far from 0
    assert found["p_values"]["student > bm25"] == [0.5, one_in_32, 3 * one_in_32]
    assert found["p_values"]["student > contrastive"] == [0.0, 1.0, 1.0]


def test_what_a_student_gains_elsewhere_is_kept_and_told_in_the_first_measure(benchmark: Any) -> None:
    qrels = {f"q{number}": {"a": 1} for number in range(6)}
    first, second = ({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 2.0})
    runs = {name: Run.from_dict(name, dict.fromkeys(qrels, found)) for name, found in {"bm25": second, "student": first}.items()}
    measures = ["RR@10", "R@100"]  # both find the document, one of them first
    evaluations = {name: evaluate(run, qrels, measures) for name, run in runs.items()}
    there = transfer_of("other", "dev", evaluations, [("student", "bm25")], measures, 1)
    results = [RunResult(name, found) for name, found in evaluations.items()]
    report = ReportData(title="t", runs=results, comparisons=[], measures=measures, settings={}, versions={}, seed=1, transfer=[there])
    conversations = benchmark("conversations")
    found = conversations.measured(report)
    kept = found["transfer"]["other dev"]
    assert kept["tests"]["student > bm25"][:2] == [0.5, 2 / 2**6]
    assert kept["intervals"] == {"bm25": (0.5, 0.5), "student": (1.0, 1.0)}
    lines = conversations.told("here", {**found, "queries": 6, "conversations": 0, "target": "t"}).splitlines()
    assert lines[3:5] == ["here, tested on other dev:", "  bm25            RR@10 0.500 [0.500, 0.500]  student +0.500, p 0.0312 (0.0625 corrected)"]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_students_of_conversations_are_tested_on_the_other_collection_in_both_directions(benchmark: Any, kind: str) -> None:
    conversations = benchmark("conversations")
    doc2dial, mtrag = (conversations.experiment_of(f"{name}-{kind}", []) for name in ("doc2dial", "mtrag"))
    for here, there in ((doc2dial, mtrag), (mtrag, doc2dial)):
        (elsewhere,) = here.transfer
        assert (elsewhere.path, elsewhere.test) == (there.collection.path, there.collection.test)
        assert elsewhere.path != here.collection.path


def test_kept_settings_say_nothing_of_where_the_collection_lies(benchmark: Any) -> None:
    values = {"name": "n", "collection": {"path": "/home/somebody/data/scifact"}, "student": {"model": "m"}, "teacher": [{"kind": "lexical"}]}
    settings = benchmark("students").settings_of(experiment_from(values))
    assert settings["collection"]["path"] == "scifact"
    assert "somebody" not in json.dumps(settings)


@pytest.mark.parametrize(("dataset", "kind"), [(dataset, kind) for dataset in ("doc2dial", "scifact") for kind in ("dense", "sparse", "late_interaction")])
def test_all_kinds_of_a_dataset_share_what_teachers_score(benchmark: Any, dataset: str, kind: str) -> None:
    students = benchmark("students")
    one, first = (students.experiment_of(students.folder_of(dataset, other), []) for other in (kind, "sparse"))
    assert one.evaluation.ablation
    assert one.name == students.folder_of(dataset, kind)
    for section in ("collection", "candidates", "teacher", "ensemble", "seed"):
        assert getattr(one, section) == getattr(first, section), section


def test_scores_of_another_kind_are_linked_and_what_is_there_stays(benchmark: Any, tmp_path: Path) -> None:
    students = benchmark("students")
    for name in ("scifact-dense/score", "scifact-dense/candidates", "scifact-dense/train", "scifact-dense/teach-taught", "scifact-sparse/candidates"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text(json.dumps({"key": name, "result": {}}))
    students.share_steps(tmp_path, "scifact-sparse")
    assert (tmp_path / "scifact-sparse/score/manifest.json").samefile(tmp_path / "scifact-dense/score/manifest.json")
    assert (tmp_path / "scifact-sparse/teach-taught").is_dir()
    assert "sparse" in (tmp_path / "scifact-sparse/candidates/manifest.json").read_text()
    assert not (tmp_path / "scifact-sparse/train").exists()


def test_scores_of_a_taught_teacher_stand_in_for_it_where_they_lie(benchmark: Any, tmp_path: Path) -> None:
    students = benchmark("students")
    experiment = students.experiment_of("doc2dial-static", [])
    assert students.with_scores(experiment, None) == students.with_scores(experiment, tmp_path) == experiment
    path = students.scores_file(experiment, "taught", tmp_path)
    Run.from_dict("taught", {"q": {"d": 0.5}}).write_parquet(path, "cosine")
    lexical, taught, small = students.with_scores(experiment, tmp_path).teacher  # of the last one no scores lie there
    assert (lexical, taught.kind, taught.label, taught.path, small) == (experiment.teacher[0], "run", "taught", path, experiment.teacher[2])
    assert path == students.scores_file(students.experiment_of("doc2dial-dense", []), "taught", tmp_path)
    others = ("seed=2", "candidates.depth=20", "generation.queries=9", 'collection.path="fewer"', 'training.validation_documents="any"')
    for other in others:  # another teacher's scores, or those of other pairs
        changed = students.experiment_of("doc2dial-static", [other])
        assert students.with_scores(changed, tmp_path) == changed


def test_minutes_of_a_stopped_training_are_added_and_those_of_a_killed_one_unknown(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    students = benchmark("students")
    clock = iter([0.0, 60.0, 100.0, 220.0, 0.0, 0.0, 0.0, 60.0])  # stopped after 1 minute, done after 2 more; two of which only the start is asked; 1 minute
    monkeypatch.setattr(students, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    def done(now: bool = True) -> Done:
        return Done(tmp_path / "train", "key", {}, now)

    def stopped() -> Done:
        (tmp_path / ".train.partial").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        students.timed(tmp_path, "train", stopped)
    assert students.timed(tmp_path, "train", done) == 3.0
    (tmp_path / ".train.partial").rmdir()
    assert students.timed(tmp_path, "train", lambda: done(now=False)) == 3.0  # nothing was trained
    (tmp_path / ".train.partial").mkdir()
    (tmp_path / "minutes.json").write_text(json.dumps({"train": None}))  # as a kill leaves it
    assert students.timed(tmp_path, "train", done) is None
    (tmp_path / ".train.partial").rmdir()
    assert students.timed(tmp_path, "train", done) == 1.0  # from nothing, after a change of the settings


@pytest.mark.slow
def test_a_kind_is_measured_and_a_second_one_scores_nothing(benchmark: Any, tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    students = benchmark("students")
    teachers = f'teacher=[{{kind="lexical"}}, {{kind="embedding", name="judge", model="{encoder_folder}"}}]'
    tiny = [f"collection.path={shared_beir_folder}", 'candidates.sources=["bm25"]', teachers, f"student.model={encoder_folder}", "training.frozen_layers=1"]
    steered = ["student.query_dimensions=8", "student.document_dimensions=16"]
    sparse = students.experiment_of("doc2dial-sparse", [*tiny, *steered])
    result = students.run_experiment(sparse, tmp_path)
    assert (result["documents"], result["queries"]) == (60, 10)
    assert result["minutes"]["student"] > 0
    table = benchmark("tables").students_table({"doc2dial-sparse": result}, "doc2dial")
    assert "sparse: contrastive only" in table
    again = students.run_experiment(students.experiment_of("doc2dial-dense", tiny), tmp_path)
    assert again["runs"]["teacher"]["mean"] == result["runs"]["teacher"]["mean"]
    shards = [{path.name for path in (tmp_path / name / "score").rglob("*.parquet")} for name in ("doc2dial-sparse", "doc2dial-dense")]
    assert shards[0] == shards[1] != set()
    pipeline = students.Pipeline(sparse, tmp_path)
    found = benchmark("sparsity").active_dimensions(pipeline, tmp_path / "doc2dial-sparse" / "train", 20)
    documents = pipeline.student.model.encode_document([one.full_text for one in pipeline.collection.documents()], convert_to_sparse_tensor=False)
    counts = (documents != 0).sum(1)
    assert counts.min() <= found["sides"]["documents"]["found"] <= counts.max()
    assert (found["sides"]["queries"]["texts"], found["sides"]["documents"]["texts"]) == (10, 20)


@pytest.mark.slow
def test_a_loss_is_tried_on_queries_whose_documents_teach_nobody(benchmark: Any, tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    losses = benchmark("losses")
    teacher = f'teacher=[{{kind="embedding", name="judge", model="{encoder_folder}"}}]'
    sizes = ["student.layers=2", "student.max_length=32", "training.max_length=32", "training.learning_rate=2e-2", "training.validation_fraction=0.3"]
    sizes += ["training.frozen_layers=1"]
    tiny = [f"collection.path={shared_beir_folder}", 'candidates.sources=["bm25"]', teacher, f"student.model={encoder_folder}", *sizes]
    asked = losses.asked_of("dense", tiny)
    pipeline = losses.pipeline_of(asked, losses.Parts(judged=8, unjudged=5, measured=6), tmp_path)
    lesson, alone = losses.lesson_of(pipeline, "ranknet", 1), losses.lesson_of(pipeline, "contrastive", 1)
    measured, taught = set(pipeline.qrels("test")), {*lesson.train, *lesson.held}
    assert (len(measured), len(taught)) == (6, 8)
    assert taught == set(pipeline.qrels("train"))
    assert not {*taught, *lesson.unjudged} & measured
    assert (len(lesson.unjudged), alone.unjudged, len(pipeline.conversations("train"))) == (5, (), 13)
    assert alone.settings.epochs == round((len(lesson.train) + len(lesson.unjudged)) / len(lesson.train)) > lesson.settings.epochs == 1
    start = losses.run(pipeline, "start", None)
    first, again = (losses.run(pipeline, "ranknet", 1) for _ in range(2))
    for found in (start, first):
        assert 0 < found["first_stage"] <= 1
        assert found["re_ranking"] > 0
        assert statistics.fmean(map(float, found["of_each_query"].split())) == pytest.approx(found["first_stage"], abs=1e-4)
    assert [first[stage] for stage in ("first_stage", "re_ranking")] == [again[stage] for stage in ("first_stage", "re_ranking")]
    assert first["teacher"] == evaluate(pipeline.target.run("test"), pipeline.qrels("test"), ["nDCG@10"]).means["nDCG@10"]
    assert list((pipeline.folder / "runs").iterdir()) == []  # the students of a benchmark are not kept
    assert losses.pipeline_of(asked, losses.Parts(judged=8, unjudged=5, measured=6), tmp_path).qrels("test") == pipeline.qrels(
        "test"
    )  # its part lies there already


def test_a_teacher_of_fewer_queries_is_taught_in_about_as_many_steps(benchmark: Any) -> None:
    whole = read_experiment(ROOT / "examples" / "doc2dial-dense.toml", ["teacher=[{kind='lexical'}, {kind='cross_encoder', model='x', train={epochs=2}}]"])
    lexical, taught = benchmark("unjudged").taught_longer(whole, 3.6).teacher
    assert (lexical, taught.train.epochs) == (whole.teacher[0], 7)
    assert taught.model_copy(update={"train": whole.teacher[1].train}) == whole.teacher[1]


def test_the_benchmark_keeps_the_judgements_of_whole_dialogues_and_all_queries(benchmark: Any, encoder_folder: Path, tmp_path: Path) -> None:
    few = benchmark("unjudged")
    queries = [Query(f"c{talk}_{turn}", f"text {talk} {turn}", conversation=f"c{talk}") for talk in range(9) for turn in range(3)]
    qrels = {"train": {query.query_id: {"d1": 1} for query in queries[:24]}, "test": {query.query_id: {"d2": 1} for query in queries[24:]}}
    write_collection(tmp_path / "c", [Document(f"d{number}", f"text {number}") for number in range(4)], queries, qrels).to_beir(tmp_path / "beir")
    folded = "teacher=[{kind='cross_encoder', model='x', train={epochs=2, folds=2}}]"
    whole = read_experiment(write_experiment(tmp_path, tmp_path / "beir", encoder_folder), [folded])
    experiment = few.with_few_judged(whole, tmp_path / "work", 7)
    assert experiment == few.with_few_judged(whole, tmp_path / "work", 7)  # its collection lies there already
    pipeline = Pipeline(experiment, tmp_path / "work")
    talks = {query_id.split("_")[0] for query_id in pipeline.qrels("train")}
    assert (len(pipeline.qrels("train")), len(talks)) == (9, 3)
    assert len(pipeline.conversations("train")) == 24
    assert pipeline.qrels("test") == qrels["test"]
    assert list(experiment.trainings) == ["contrastive", "judged"]
    taught = [(teacher.train.epochs, teacher.train.folds) for teacher in experiment.teacher]
    assert taught == [(round(2 * 24 / 9), None)]
