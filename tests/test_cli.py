"""The commands: help, what goes to which stream, the hints for the next step, and stops."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retriever.config import read_experiment
from tests.forked_commands import RETRIEVER, ForkedCommands
from tests.tiny_experiment import RUNS, STEPS, command, manifest_times, process_environment, write_experiment

COMMANDS = (
    *("doctor", "init", "check", "generate", "rewrite", "candidates", "teach", "score", "teachers", "caption", "reinforce", "train", "evaluate", "distill"),
    *("search", "chat", "serve", "feedback", "export", "demo", "import", "index", "store"),
)


# Help


def test_help_lists_every_command_with_a_whole_sentence() -> None:
    said = command("--help")
    assert (said.status, said.err) == (0, "")
    listed = dict(re.findall(r"^  (\w+) {2,}(\S.*)$", said.out, flags=re.MULTILINE))
    assert tuple(listed) == COMMANDS
    for sentence in listed.values():
        assert re.fullmatch(r"[A-Z].*\.", sentence)
        assert "..." not in sentence


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_each_of_its_options(name: str) -> None:
    said = command(name, "--help")
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith(f"Usage: retriever {name} [OPTIONS]")
    options = said.out.partition("Options:")[2]
    assert "--help" in options
    for line in re.findall(r"^  -.*$", options, flags=re.MULTILINE):
        assert re.search(r" {2}[A-Z]", line), f"{line} explains nothing"


def test_no_command_at_all_shows_the_help() -> None:
    said = command()
    assert "Commands:" in said.out + said.err


def test_a_misspelt_command_or_option_exits_with_2() -> None:
    assert command("distil", "x.toml").status == 2
    assert "Did you mean 'distill'?" in command("distil", "x.toml").err
    assert command("distill", "x.toml", "--sett", "a=b").status == 2


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; sys.argv = ['retriever', '--help']\nfrom retriever import cli\ntry: cli.main()\nexcept SystemExit: pass\nprint(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], env=process_environment(), capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1]
    assert not [name for name in ("torch", "numpy", "pydantic", "transformers", "pyarrow") if f"'{name}'" in modules]


# A first hour


def test_init_writes_a_file_that_is_valid_and_explained(tmp_path: Path, shared_beir_folder: Path) -> None:
    said = command("init", tmp_path / "notes", "--collection", shared_beir_folder, "--student", "some/model")
    path = tmp_path / "notes" / "experiment.toml"
    assert (said.status, said.out) == (0, f"{path}\n")
    assert said.err == f"wrote {path}; next: retriever check {path}\n"
    experiment = read_experiment(path)
    assert (experiment.name, experiment.collection.path, experiment.student.model) == ("notes", shared_beir_folder, "some/model")
    assert len(re.findall(r"^\w+ = .*  # ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)) > 30
    assert command("init", tmp_path / "notes", "--collection", "elsewhere").error == f"{path}: is there already; it was left as it is. Give another folder"
    assert read_experiment(path) == experiment


def test_a_table_can_be_added_to_the_file_that_init_writes(tmp_path: Path, shared_beir_folder: Path) -> None:
    assert command("init", tmp_path / "notes", "--collection", shared_beir_folder, "--student", "some/model").status == 0
    path = tmp_path / "notes" / "experiment.toml"
    with path.open("a", encoding="utf-8") as stream:
        stream.write('\n[[stage]]\nby = ["bm25", "student"]\nkeep = 50\n\n[[transfer]]\npath = "other"\n\n[[rewriter]]\nmodel = "m"\n')
    added = read_experiment(path)
    assert ([stage.keep for stage in added.stage], len(added.transfer), added.rewriter[0].model) == ([50], 1, "m")


def test_init_takes_an_id_of_ir_datasets(tmp_path: Path) -> None:
    assert command("init", tmp_path / "scifact", "--collection", "ir_datasets:beir/scifact").status == 0
    assert read_experiment(tmp_path / "scifact" / "experiment.toml").collection.ir_datasets == "beir/scifact"


def test_init_refuses_a_name_that_is_no_experiment_s(tmp_path: Path) -> None:
    assert "name: may hold letters, digits and . _ - only" in command("init", tmp_path / "my notes", "--collection", "x").error
    assert not (tmp_path / "my notes").exists()


def test_check_prints_the_filled_in_file_and_counts(finished_experiment: Path, tmp_path: Path) -> None:
    path = finished_experiment / "tiny.toml"
    said = command("check", path, "--work", tmp_path / "a work", "--set", "seed=3")
    assert said.status == 0
    (tmp_path / "filled.toml").write_text(said.out, encoding="utf-8")
    assert read_experiment(tmp_path / "filled.toml") == read_experiment(path, ["seed=3"])
    counts, following = said.err.splitlines()
    assert counts == "60 documents; test: 10 queries with 20 judged pairs, train: 20 queries with 31 judged pairs"
    assert shlex.split(following) == ["next:", "retriever", "distill", str(path), "--set", "seed=3", "--work", str(tmp_path / "a work")]


def test_check_as_json_has_the_experiment_and_the_collection(finished_experiment: Path) -> None:
    said = command("check", finished_experiment / "tiny.toml", "--work", finished_experiment / "work", "--json")
    found = json.loads(said.out)
    assert (found["experiment"]["name"], found["collection"]["documents"], found["collection"]["warnings"]) == ("tiny", 60, [])


def test_check_warns_of_what_will_spoil_the_evaluation(beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    with (beir_folder / "corpus.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"_id": "blank", "title": "", "text": ""}\n')
    said = command("check", write_experiment(tmp_path, beir_folder, encoder_folder), "--work", tmp_path / "work")
    assert "warning: documents without any text: 1. They are never found: leave them out" in said.err.splitlines()


def test_dry_run_says_pairs_time_and_bytes_and_scores_nothing(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    said = command("score", path, "--work", tmp_path / "work", "--dry-run")
    assert said.status == 0
    first, second = said.out.splitlines()
    assert re.fullmatch(r"lexical: [1-9]\d* pairs to score, 0 done; about \d+ s here, \d+\.\d kB", first)
    assert second.startswith("embedding-student: ")
    assert list((tmp_path / "work").rglob("score/scores/*/*.parquet")) == []
    plans = json.loads(command("score", path, "--work", tmp_path / "work", "--dry-run", "--json").out)
    assert [(plan["teacher"], plan["done"]) for plan in plans] == [("lexical", 0), ("embedding-student", 0)]
    assert command("score", path, "--work", tmp_path / "work").status == 0
    said = command("score", path, "--work", tmp_path / "work", "--dry-run")
    assert said.out.splitlines()[0] == f"lexical: 0 pairs to score, {plans[0]['pending']} done; about 0 s here, 0 B"


STEP_COMMANDS = {"candidates": "score", "score": "train", "train": "index", "index": "evaluate"}


@pytest.mark.parametrize("name", STEP_COMMANDS)
def test_a_step_s_command_prints_its_result_and_names_the_next(finished_experiment: Path, name: str) -> None:
    before = manifest_times(finished_experiment / "work" / "tiny")
    arguments = (name, finished_experiment / "tiny.toml", "--work", finished_experiment / "work")
    said = command(*arguments)
    assert said.status == 0
    assert said.out.strip()
    assert said.err.splitlines()[-1].startswith(f"next: retriever {STEP_COMMANDS[name]} ")
    assert json.loads(command(*arguments, "--json").out)
    assert manifest_times(finished_experiment / "work" / "tiny") == before


def test_distill_ends_with_a_table_the_report_and_the_next_command(finished_experiment: Path) -> None:
    work = finished_experiment / "work"
    said = command("distill", finished_experiment / "tiny.toml", "--work", work)
    assert said.status == 0
    lines = said.out.splitlines()
    for name in RUNS:
        assert [line for line in lines if re.match(rf"\W*{name}\b", line)]
    assert lines[-2] == f"report: {work / 'tiny' / 'evaluate' / 'report.html'}"
    following = shlex.split(lines[-1].removeprefix("next:"))
    assert following[:3] == ["retriever", "search", str(work / "tiny")]
    assert command(*following[1:]).status == 0
    assert [line for line in said.err.splitlines() if ": unchanged, " in line]


def test_distill_as_json_is_the_report(finished_experiment: Path) -> None:
    said = command("distill", finished_experiment / "tiny.toml", "--work", finished_experiment / "work", "--json")
    assert list(json.loads(said.out)["runs"]) == RUNS


def test_the_page_can_be_drawn_again_without_measuring(finished_experiment: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_experiment, tmp_path / "copy")
    page = copy / "work" / "tiny" / "evaluate" / "report.html"
    page.unlink()
    before = manifest_times(copy / "work" / "tiny")
    assert command("evaluate", copy / "tiny.toml", "--work", copy / "work", "--redraw").status == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert manifest_times(copy / "work" / "tiny") == before


def test_teaching_without_a_teacher_to_teach_is_refused(finished_experiment: Path) -> None:
    path = finished_experiment / "tiny.toml"
    assert command("teach", path, "--work", finished_experiment / "work").error == f'{path}: no teacher has a "train" table, so there is nothing to teach'


def test_doctor_says_what_is_here() -> None:
    said = command("doctor", "--json")
    found = {finding["name"]: finding for finding in json.loads(said.out)}
    assert {"python", "torch", "faiss", "threads", "devices", "hub", "disk"} <= found.keys()
    assert said.status == (1 if any(finding["status"] == "problem" for finding in found.values()) else 0)
    assert "torch" in command("doctor").out


# In a terminal


def test_a_terminal_shows_our_bars_and_no_library_s(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path, forked_commands: ForkedCommands) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    shown = shown_in_terminal(forked_commands, "distill", path, "--work", tmp_path / "work", columns=80)
    assert "scoring train pairs (lexical)" in shown
    assert re.search(r"training \(train\).*(\d+)/\1.*loss \d", shown)
    assert "next:   retriever search" in shown
    for leaked in ("it/s", "Loading weights", "widget", "Writing model shards", "Warning", "Map:", "0%|"):
        assert leaked not in shown
    drawn = [line for line in re.split(r"[\r\n]+", shown) if "━" in line and "│" not in line and "┃" not in line and "┏" not in line]
    assert [line for line in drawn if len(line.rstrip()) > 80] == []


def shown_in_terminal(forked_commands: ForkedCommands, *arguments: object, columns: int) -> str:
    """What a terminal of this width is sent, without the codes for colours and places."""
    ours, theirs = pty.openpty()
    environment = process_environment(COLUMNS=str(columns), LINES="40", TERM="xterm")
    process_id = forked_commands.start(*RETRIEVER, *arguments, environment=environment, streams=dict.fromkeys(("in", "out", "err"), os.ttyname(theirs)))
    select.select([ours], [], [], 120)
    os.close(theirs)  # what is shown comes from the process, which has opened it
    shown = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not part:
            break
        shown += part
    assert forked_commands.wait(process_id).status == 0, shown.decode()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


# Stops


@pytest.fixture
def killed_experiment(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> Path:
    """An experiment with a checkpoint at every step and small shards, so that a stop can fall between them."""
    return write_experiment(tmp_path, shared_beir_folder, encoder_folder, {"batch_size = 8": "batch_size = 4\ncheckpoint_steps = 3"})


def stored(work: Path) -> dict[str, bytes]:
    return {str(path.relative_to(work)): path.read_bytes() for path in sorted(work.rglob("score/scores/*/*.parquet"))}


def test_kill_9_at_random_instants_changes_nothing_in_the_end(killed_experiment: Path, forked_commands: ForkedCommands) -> None:
    work, whole = killed_experiment.parent / "work", killed_experiment.parent / "whole"
    start = time.monotonic()
    assert forked_commands.run(*RETRIEVER, "distill", killed_experiment, "--work", whole).status == 0
    seconds = time.monotonic() - start
    draw = random.Random(1)
    killed = 0
    while killed < 5:
        process_id = forked_commands.start(*RETRIEVER, "distill", killed_experiment, "--work", work)
        time.sleep(draw.uniform(0.05, 0.6) * seconds)
        os.kill(process_id, signal.SIGKILL)
        assert forked_commands.wait(process_id).status in (0, -signal.SIGKILL)
        killed += 1
    said = forked_commands.run(*RETRIEVER, "distill", killed_experiment, "--work", work)
    assert said.status == 0, said.err
    assert stored(work) == stored(whole)
    assert set(manifest_times(work / "tiny")) == set(STEPS)
    assert [path.name for path in (work / "tiny").iterdir() if path.name.endswith((".partial", ".new", ".old"))] == []
    reports = [json.loads((place / "tiny" / "evaluate" / "report.json").read_text(encoding="utf-8")) for place in (work, whole)]
    for name in ("bm25", "student_before", "hybrid_before", "teacher"):
        assert reports[0]["runs"][name]["mean"] == reports[1]["runs"][name]["mean"]
    for name in ("student", "hybrid"):
        assert reports[0]["runs"][name]["mean"] == pytest.approx(reports[1]["runs"][name]["mean"], abs=1e-3)


def test_ctrl_c_is_one_line_and_the_next_run_goes_on(killed_experiment: Path, forked_commands: ForkedCommands) -> None:
    work = killed_experiment.parent / "work"
    process_id = forked_commands.start(*RETRIEVER, "distill", killed_experiment, "--work", work)
    deadline = time.monotonic() + 60
    while not (work / "tiny" / "score" / "manifest.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process_id, signal.SIGINT)
    said = forked_commands.wait(process_id)
    assert (said.status, said.out) == (130, "")
    assert said.err.splitlines()[-1] == "stopped; what is done is kept, and the same command goes on from there"
    assert "Traceback" not in said.err
    scores = stored(work)
    said = forked_commands.run(*RETRIEVER, "distill", killed_experiment, "--work", work)
    assert said.status == 0
    assert f"score: unchanged, {work / 'tiny' / 'score'}" in said.err.splitlines()
    assert stored(work) == scores


def test_of_two_processes_at_once_one_finishes_and_the_other_says_so_in_one_line(killed_experiment: Path, forked_commands: ForkedCommands) -> None:
    started = [forked_commands.start(*RETRIEVER, "distill", killed_experiment, "--work", killed_experiment.parent / "work") for _ in range(2)]
    said = [forked_commands.wait(process_id) for process_id in started]
    assert 0 in [one.status for one in said], said
    for one in said:
        if one.status:
            assert re.fullmatch(r".*: process \d+ is already .* here\. Wait for it, or stop it first", one.error)


def test_a_reader_that_stops_reading_is_no_crash(finished_experiment: Path, forked_commands: ForkedCommands) -> None:
    line = (*RETRIEVER, "search", finished_experiment / "work" / "tiny", "bird", "-k", 60)
    process_id = forked_commands.start(*line, streams={"out": (pipe := forked_commands.pipe())})
    assert subprocess.run(["head", "-n", "1", pipe], capture_output=True, text=True, check=True).stdout.startswith("  1  ")
    assert forked_commands.wait(process_id).err == ""
