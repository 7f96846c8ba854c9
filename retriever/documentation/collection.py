"""A collection made from the documentation that is installed with Python and its packages; docs/demo-collection.md says how.

A document is the docstring of a public module, class, function or method without its summary sentence, without code and
without what it says of other objects. A query is a held-out summary sentence, or what another object's "See Also" says of it.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.documentation import rules as documentation_rules
from retriever.documentation.rules import DocumentationCollection, make_collection
from retriever.errors import DataError
from retriever.files import replace_folder, write_json, write_text

PACKAGES = ("stdlib", "numpy", "scipy", "pandas", "torch")
DEMO_DOCUMENTS = 2500
"""So many documents two cores encode twice, and train on, within the demo's minutes."""
Progress = Callable[[str], None]


def build_documentation_collection(
    folder: Path, progress: Progress | None = None, limit: int | None = None, packages: Sequence[str] = PACKAGES, path: Sequence[str] | None = None
) -> Path:
    """Writes the collection as a BEIR folder and returns the folder; an earlier one is replaced once the new one is whole.

    Args:
        folder: where `corpus.jsonl`, `queries.jsonl`, `qrels/train.tsv`, `qrels/test.tsv` and `PROVENANCE.json` go.
        progress: told in a sentence what is being done.
        limit: at most this many documents, whole families in the order of their hashes; all when None.
        packages: import names of packages; "stdlib" stands for the standard library.
        path: where packages are imported from; `sys.path` when None.

    Raises:
        DataError: the packages could not be read, or no query is left.
    """
    tell = progress or (lambda _: None)
    tell(f"reading the documentation of {', '.join(packages)}")
    raw = installed_documentation(packages, path)
    tell(f"{len(raw):,} docstrings: taking out near-duplicates, boilerplate and leaks")
    collection = make_collection(raw, limit)
    if not any(query.split == "train" for query in collection.queries) or not any(query.split == "test" for query in collection.queries):
        raise DataError(
            f"{folder}: the documentation of {', '.join(packages)} gives no queries for one of the splits. Take more packages, or a larger limit than {limit}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        _write(Path(temporary) / "new", collection, packages, limit)
        replace_folder(Path(temporary) / "new", folder)
    tell(f"{len(collection.entries):,} documents, {len(collection.queries):,} queries: {folder}")
    return folder


def installed_documentation(packages: Sequence[str] = PACKAGES, path: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The docstrings of every public module, class, function and method, each object once, as `harvest` finds them.

    The packages are imported in a process of their own: nothing they do on import reaches this one.

    Raises:
        DataError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "documentation.json"
        command = [sys.executable, "-I", "-W", "ignore", str(Path(__file__).with_name("harvest.py")), str(result)]
        request = json.dumps({"path": list(sys.path if path is None else path), "packages": list(packages)})
        done = subprocess.run(command, input=request, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode or not result.exists():
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise DataError(f"reading the documentation of {', '.join(packages)} failed: {reason}. Import these packages by hand to see which one fails")
        return list(json.loads(result.read_text(encoding="utf-8")))


def _write(folder: Path, collection: DocumentationCollection, packages: Sequence[str], limit: int | None) -> None:
    def write_lines(name: str, records: Iterable[Mapping[str, Any]]) -> None:
        write_text(folder / name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    entries, queries = collection.entries, collection.queries
    write_lines("corpus.jsonl", ({"_id": entry.name, "title": entry.name, "text": " ".join(entry.units)} for entry in entries))
    write_lines("queries.jsonl", ({"_id": query.query_id, "text": query.text, "metadata": {"source": query.source}} for query in queries))
    for split in ("train", "test"):
        rows = [f"{query.query_id}\t{entries[answer].name}\t1\n" for query in queries if query.split == split for answer in sorted(query.answers)]
        write_text(folder / "qrels" / f"{split}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(rows))
    versions = {package: platform.python_version() if package == "stdlib" else _version(package) for package in packages}
    counts = {"documents": len(entries), **{split: sum(query.split == split for query in queries) for split in ("train", "test")}}
    rules = {name.lower(): value for name, value in vars(documentation_rules).items() if name.isupper() and isinstance(value, int | float)}
    write_json(folder / "PROVENANCE.json", {"made_by": "retriever.documentation", "versions": versions, "limit": limit, "rules": rules, "counts": counts})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
