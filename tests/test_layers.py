"""Who may import whom, what no module may do, and what a start must not load."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SIDE_FOLDERS = ("teachers", "indexing", "training", "eval")
FOUNDATION = frozenset(
    f"retriever.{name}"
    for name in [
        *("types", "errors", "files", "resources", "plugins", "config", "openers", "settings", "models", "tables", "readers", "engines"),
        *("collection", "filters", "runs", "bm25", "ragged", "encodings", "ragged_encodings", "vector_index"),
        *("conversations.reading", "images.reading", "images.files", "images.augmentation", "reinforced.records", "reinforced.shards"),
        *("scores.store", "scores.files", "scores.shards", "scores.scoring", "scores.units", "scores.views", "scores.calibration"),
        *("workers.tasks", "writing.writers"),
    ]
)
"""Modules, and folders with all that is in them."""

RUN_CODE_WHEN_READ = frozenset({"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})
HEAVY = frozenset({"torch", "transformers", "sentence_transformers", "pandas", "scipy", "datasets", "faiss", "ranx", "numba", "matplotlib", "pyarrow", "bm25s"})


def package_files() -> dict[str, Path]:
    """Module name -> file, as the wheel lays them out."""
    files = {
        f"retriever.{file.relative_to(ROOT / 'retriever').with_suffix('').as_posix().replace('/', '.')}": file for file in (ROOT / "retriever").rglob("*.py")
    }
    for folder in SIDE_FOLDERS:
        files |= {f"retriever.{file.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')}": file for file in (ROOT / folder).rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in files.items()}


def layer_of(module: str) -> str:
    """The layer of a module: foundation, application, or the name of its side folder."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in (*SIDE_FOLDERS, "students"):
        return parts[1]
    return "foundation" if any(".".join(parts[:length]) in FOUNDATION for length in (2, 3)) else "application"


def imported_modules(tree: ast.AST, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """(line, module of the package) for every import, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = sorted({name if name in known else str(node.module) for name in whole})
        elif isinstance(node, ast.Call) and called(node).endswith("import_module") and node.args and isinstance(node.args[0], ast.Constant):
            names = [str(node.args[0].value)]
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "retriever")


def called(node: ast.Call) -> str:
    """The dotted name of what is called: "torch.load"; "" where it is not a plain name."""
    parts = []
    function: ast.expr = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join(reversed([*parts, function.id])) if isinstance(function, ast.Name) else ""


def broken_layers(module: str, source: str, known: frozenset[str]) -> list[str]:
    """The imports of a module that its layer may not make."""
    own = layer_of(module)
    imports = imported_modules(ast.parse(source), known)
    return [f"{module}:{line} imports {name}" for line, name in imports if own != "application" and layer_of(name) not in (own, "foundation")]


def dangers(module: str, source: str) -> list[str]:
    """What could run a stranger's text as code: pickles, eval, shells, unchecked weights, remote code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            found += [f"{module}:{node.lineno} imports {name}" for name in names if name.split(".")[0] in RUN_CODE_WHEN_READ]
        elif isinstance(node, ast.Call) and is_dangerous_call(node):
            found.append(f"{module}:{node.lineno} calls {ast.unparse(node)[:60]}")
    return found


def is_dangerous_call(node: ast.Call) -> bool:
    """True for a call that runs text as code, or may."""
    name = called(node)
    true_arguments = {word.arg for word in node.keywords if isinstance(word.value, ast.Constant) and word.value.value is True}
    return (
        name in ("eval", "exec", "os.system", "os.popen")
        or name.endswith(("read_pickle", "_object", "_object_list"))  # torch.distributed pickles what it calls objects
        or (name == "torch.load" and "weights_only" not in true_arguments)
        or bool(true_arguments & {"shell", "allow_pickle", "trust_remote_code"})
    )


def test_the_side_folders_know_only_the_foundation_and_the_foundation_only_itself() -> None:
    files = package_files()
    known = frozenset(files)
    assert [broken for module, file in files.items() for broken in broken_layers(module, file.read_text(encoding="utf-8"), known)] == []


def test_every_module_of_the_foundation_that_the_rule_names_exists() -> None:
    assert FOUNDATION - set(package_files()) == set()


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("retriever.teachers.llm", "from retriever.training.losses import margin_mse", True),
        ("retriever.teachers.llm", "def load():\n    from retriever.students import dense", True),
        ("retriever.eval.report", "import retriever.distillation", True),
        ("retriever.eval.report", "from retriever import distillation", True),
        ("retriever.eval.report", "from importlib import import_module\nimport_module('retriever.indexing.flat')", True),
        ("retriever.scores.store", "from retriever.teachers import lexical", True),
        ("retriever.readers.beir", "from retriever.readers import jsonl", False),
        ("retriever.teachers.llm", "from retriever.teachers.embedding import load\nfrom retriever.runs import Run\nimport numpy", False),
        ("retriever.cli", "from retriever.training.losses import margin_mse", False),
    ],
)
def test_the_rule_finds_what_it_should(module: str, source: str, broken: bool) -> None:
    known = frozenset({"retriever.distillation", "retriever.students.dense", "retriever.teachers.lexical", "retriever.readers.jsonl"})
    assert bool(broken_layers(module, source, known)) == broken


def test_nothing_in_the_package_runs_a_strangers_text_as_code() -> None:
    assert [danger for module, file in package_files().items() for danger in dangers(module, file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("source", "dangerous"),
    [
        ("import pickle", True),
        ("from joblib import load", True),
        ("eval('1')", True),
        ("import os\nos.system('ls')", True),
        ("subprocess.run('ls', shell=True)", True),
        ("torch.load(path)", True),
        ("distributed.broadcast_object_list(box)", True),
        ("distributed.all_gather_object(box, 1)", True),
        ("torch.load(path, weights_only=False)", True),
        ("numpy.load(path, allow_pickle=True)", True),
        ("torch.load(path, weights_only=True)", False),
        ("model.eval()", False),
        ("subprocess.run(['ls'])", False),
    ],
)
def test_the_search_for_dangers_finds_what_it_should(source: str, dangerous: bool) -> None:
    assert bool(dangers("module", source)) == dangerous


@pytest.mark.parametrize("module", ["retriever", "retriever.cli"])
def test_a_start_loads_no_heavy_package(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY & set(json.loads(result.stdout)) == set()
