"""Every mistake of a user is one line that says where, what was found and what to do; exit status 2, nothing half-written."""

from __future__ import annotations

import errno
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_experiment import command, write_experiment

PRIVATE_TEACHER = """
import numpy as np
from retriever.types import ScoredPairs, TeacherIdentity

class Teacher:
    identity = TeacherIdentity("private", "private", "", "logit")
    shard_pairs = 50

    def __init__(self, bad, bad_at):
        self.bad, self.bad_at, self.scored = bad, bad_at, 0

    def score(self, pairs):
        scores = np.array([len(document.text) for _, document in pairs], dtype=np.float32)
        if self.scored <= self.bad_at < self.scored + len(pairs):
            scores[self.bad_at - self.scored] = self.bad
        self.scored += len(pairs)
        return ScoredPairs(scores, np.zeros(len(pairs), np.int32), np.zeros(len(pairs), bool))

def load(settings, resources):
    return Teacher(float(settings.model or "0"), 120)
"""


@pytest.fixture
def experiment(tmp_path: Path, beir_folder: Path, encoder_folder: Path) -> Path:
    """An experiment file beside a collection of its own, which a test may damage."""
    return write_experiment(tmp_path, beir_folder, encoder_folder)


@pytest.fixture
def private_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dotted name of a teacher outside our package; its model is the score of its pair 120."""
    package = tmp_path / "packages" / "private"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "teacher.py").write_text(PRIVATE_TEACHER)
    (package / "nothing.py").write_text("")
    (package / "needy.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(str(package.parent))
    for name in [name for name in sys.modules if name.partition(".")[0] == "private"]:
        monkeypatch.delitem(sys.modules, name)
    return "private.teacher"


def mistake(name: str, experiment: Path, *overrides: str, work: Path | None = None) -> str:
    """The error line of a command."""
    options = [part for override in overrides for part in ("--set", override)]
    return command(name, experiment, "--work", work or experiment.parent / "work", *options).error


def leftovers(experiment: Path) -> list[Path]:
    """What is under the work folder beyond locks."""
    return sorted(path for path in (experiment.parent / "work").rglob("*") if path.is_file() and not path.name.endswith("lock"))


# The file and its overrides


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainig.epochs=3", 'unknown key "trainig", did you mean "training"?'),
        ("training.epoch=3", 'unknown key "training.epoch", did you mean "epochs"?'),
        ("training.epochs=many", "training.epochs: must be a whole number, found 'many'"),
        ("training.documents_per_query=1", "training.documents_per_query: must be greater than or equal to 2, found 1"),
        ("collection.train=test", 'collection: train and test are the same split, "test"'),
    ],
)
@pytest.mark.parametrize("name", ["check", "distill"])
def test_a_wrong_key_or_value_is_named_before_anything_is_done(experiment: Path, name: str, override: str, said: str) -> None:
    assert said in mistake(name, experiment, override)
    assert not (experiment.parent / "work").exists()


def test_an_override_without_a_value_is_named(experiment: Path) -> None:
    assert mistake("distill", experiment, "training.epochs") == "--set training.epochs: expected KEY=VALUE, for example --set training.epochs=3"


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    assert mistake("distill", path) == f'{path}: cannot be read (No such file or directory). "retriever init" writes a new experiment file'


def test_a_file_that_is_no_toml_is_named(experiment: Path) -> None:
    experiment.write_text("name = tiny", encoding="utf-8")
    assert mistake("distill", experiment).startswith(f"{experiment}: not valid TOML: ")


# The collection


def append(name: str, line: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    return change


def empty(name: str, header: str = "") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(header)


HEADER = "query-id\tcorpus-id\tscore\n"
COLLECTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "malformed JSON": (append("corpus.jsonl", '{"_id": "x", "text": '), "/corpus.jsonl:61: malformed JSON ("),
    "document twice": (append("corpus.jsonl", '{"_id": "otter", "text": "x"}'), "/corpus.jsonl:61: the document id otter stands already at "),
    "query twice": (append("queries.jsonl", '{"_id": "train1", "text": "x"}'), "/queries.jsonl:31: the query id train1 stands already at "),
    "white space": (append("corpus.jsonl", '{"_id": "a b", "text": "x"}'), "/corpus.jsonl:61: the id 'a b' contains white space"),
    "no text": (append("corpus.jsonl", '{"_id": "x"}'), "/corpus.jsonl:61: there is no field text"),
    "absent document": (
        append("qrels/train.tsv", "train1\tunicorn\t1"),
        "/train.tsv:33: the qrels name documents that are not there (1, in 1 pairs): unicorn.",
    ),
    "absent query": (append("qrels/train.tsv", "train99\totter\t1"), "/train.tsv:33: the qrels name queries that are not there (1): train99."),
    "grade": (append("qrels/test.tsv", "test1\totter\tgood"), 'the grade "good" is not a whole number'),
    "short line": (append("qrels/test.tsv", "test1\totter"), "this line has 2"),
    "no documents": (empty("corpus.jsonl"), "animals_and_tools: the collection is empty: it has no documents"),
    "no train queries": (empty("qrels/train.tsv", HEADER), 'animals_and_tools: no train queries: the qrels of the split "train" hold none.'),
    "no test queries": (empty("qrels/test.tsv", HEADER), 'animals_and_tools: no test queries: the qrels of the split "test" hold none.'),
    "no train file": (lambda folder: (folder / "qrels" / "train.tsv").unlink(), 'there are no qrels for the split "train"; splits with qrels: test'),
    "no corpus": (lambda folder: (folder / "corpus.jsonl").unlink(), "which is no collection. Allowed layouts are "),
    "nothing": (shutil.rmtree, "animals_and_tools: there is no such folder or file"),
}


@pytest.mark.parametrize("fault", COLLECTIONS)
def test_a_fault_of_the_collection_is_named_with_its_line(experiment: Path, beir_folder: Path, fault: str) -> None:
    harm, said = COLLECTIONS[fault]
    harm(beir_folder)
    for name in ("check", "distill"):
        assert said in mistake(name, experiment)
    kept = {path.relative_to(experiment.parent / "work" / "tiny").parts[0] for path in leftovers(experiment)}
    assert kept <= {"collection"}  # whole, where the collection itself is sound and only a split is empty
    assert ("collection" in kept) == fault.startswith(("no train", "no test"))


def test_a_misspelt_split_is_named_with_those_there_are(experiment: Path) -> None:
    said = 'animals_and_tools: no train queries: there are no qrels for the split "trian"; splits with qrels: test, train'
    assert mistake("distill", experiment, "collection.train=trian") == said


def test_one_train_query_is_too_few_to_hold_one_out(experiment: Path, beir_folder: Path) -> None:
    empty("qrels/train.tsv", HEADER + "train1\tbeaver\t1\n")(beir_folder)
    assert "at least 2 are needed, one of them to pick the checkpoint" in mistake("distill", experiment)


def test_train_queries_without_anything_relevant_teach_nothing(experiment: Path, beir_folder: Path) -> None:
    path = beir_folder / "qrels" / "train.tsv"
    path.write_text(HEADER + "".join(f"train{number}\tbeaver\t0\n" for number in range(1, 21)))
    assert "train queries has a scored positive" in mistake("distill", experiment)


def test_scores_of_another_collection_are_refused(experiment: Path, beir_folder: Path) -> None:
    assert command("score", experiment, "--work", experiment.parent / "work").status == 0
    kept = {path: path.read_bytes() for path in leftovers(experiment) if "score" in path.parts}
    append("corpus.jsonl", '{"_id": "unicorn", "text": "a horse with one horn"}')(beir_folder)
    said = mistake("distill", experiment)
    assert said.startswith(f'{experiment.parent / "work" / "tiny" / "score"}: the scores belong to the collection "animals_and_tools" (')
    assert said.endswith("Give the experiment another name or work folder, or the collection as it was")
    assert {path: path.read_bytes() for path in leftovers(experiment) if "score" in path.parts} == kept


# Models and kinds


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student.model=no/such-model", 'student.model: "no/such-model" is no folder, no installed package carries it, and the hub did not give it ('),
        ("student.kind=dence", '{file}: student: unknown kind "dence"; did you mean "dense"?'),
        ("index.kind=flatt", '{file}: index: unknown kind "flatt"; did you mean "flat"?'),
        ('teacher=[{kind="cross_encoder"}]', "teacher cross_encoder: a cross_encoder needs a model"),
        ('candidates.sources=["bm52"]', 'candidates.sources: "bm52" is no folder'),
        ("candidates.language=elvish", 'candidates.language: no stemmer for "elvish"; known are arabic, '),
        ('evaluation.measures=["nDGC@10"]', 'evaluation.measures: "nDGC@10" is not a measure. Did you mean nDCG@10?'),
        ("student.max_length=1000", "student.max_length: 1000 tokens, but the model reads 128 at most"),
        ("training.max_length=1000", "training.max_length: 1000 tokens, but the model reads 128 at most"),
    ],
)
def test_a_name_or_number_that_does_not_fit_the_models_is_named(experiment: Path, override: str, said: str) -> None:
    assert mistake("distill", experiment, override).startswith(said.replace("{file}", str(experiment)))


@pytest.mark.skipif(importlib.util.find_spec("pyserini") is not None, reason="the extra [lucene] is installed")
def test_a_missing_extra_is_named_with_the_line_that_brings_it(experiment: Path) -> None:
    said = mistake("distill", experiment, 'candidates.sources=["lucene"]')
    assert said == 'the package "pyserini" is not installed. Install it with: pip install "retriever-distill[lucene]"'


def test_cut_weights_are_named(experiment: Path, encoder_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(encoder_folder, tmp_path / "cut")
    (copy / "model.safetensors").write_bytes((encoder_folder / "model.safetensors").read_bytes()[:5000])
    said = mistake("distill", experiment, f"student.model={copy}")
    assert said.startswith(f"student.model: {copy / 'model.safetensors'}: the weights are cut or damaged (")


def test_a_private_teacher_that_cannot_be_imported_is_named(experiment: Path, private_teacher: str) -> None:
    assert 'no module named "private.absent" can be imported' in mistake("score", experiment, "teacher.0.kind=private.absent")
    assert 'private.nothing has no function "load"' in mistake("score", experiment, "teacher.0.kind=private.nothing")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):  # a mistake of the module, not of the experiment
        command("score", experiment, "--work", experiment.parent / "work", "--set", "teacher.0.kind=private.needy")


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_score_that_is_not_finite_is_named_and_its_shard_not_stored(experiment: Path, private_teacher: str, bad: str) -> None:
    teacher = f"teacher=[{{kind='{private_teacher}', model='{bad}'}}]"
    said = mistake("distill", experiment, teacher)
    assert said.startswith('teacher "private": query train')
    assert f"the score {bad} is not a finite number (1 such of 50). Nothing of this shard was stored" in said
    assert len([path for path in leftovers(experiment) if path.suffix == ".parquet" and "score" in path.parts]) == 2  # the pairs 0 to 99


def test_a_mended_private_teacher_goes_on_where_it_failed(experiment: Path, private_teacher: str) -> None:
    mistake("score", experiment, f"teacher=[{{kind='{private_teacher}', model='nan'}}]")
    kept = {path: path.read_bytes() for path in leftovers(experiment) if "score" in path.parts and path.suffix == ".parquet"}
    said = command("score", experiment, "--work", experiment.parent / "work", "--set", f"teacher=[{{kind='{private_teacher}', model='7'}}]")
    assert said.status == 0
    assert {path: path.read_bytes() for path in kept} == kept


# Places


@pytest.mark.parametrize("inner", [".", "deep/er"])
def test_a_file_in_the_place_of_the_work_folder_is_named(experiment: Path, inner: str) -> None:
    place = experiment.parent / "work"
    place.write_text("a file")
    for name in ("check", "distill"):
        said = f"{place}: is a file, and a folder is needed in its place. Move it away, or name another folder"
        assert mistake(name, experiment, work=place / inner) == said
    assert place.read_text() == "a file"


def test_a_file_in_the_place_of_a_step_s_folder_is_named(experiment: Path) -> None:
    place = experiment.parent / "work" / "tiny" / "candidates"
    place.parent.mkdir(parents=True)
    place.write_text("a file")
    assert str(place) in mistake("candidates", experiment)


def test_a_folder_that_is_something_else_is_not_overwritten(experiment: Path) -> None:
    place = experiment.parent / "work" / "tiny" / "collection"
    place.mkdir(parents=True)
    (place / "letter.txt").write_text("dear")
    assert mistake("check", experiment) == f"{place}: is in the way: it holds something else, which would be lost. Name a new folder"
    assert (place / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_place_that_the_system_refuses_is_named(experiment: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    import os

    def refuse(source: object, target: object) -> None:
        raise OSError(error, os.strerror(error), str(source), None, str(target))

    monkeypatch.setattr("retriever.files.os.replace", refuse)
    said = mistake("candidates", experiment)
    assert str(experiment.parent / "work" / "tiny") in said
    assert ("the disk is full" if error == errno.ENOSPC else os.strerror(error)) in said
    monkeypatch.undo()
    assert leftovers(experiment) == []


def test_a_damaged_manifest_is_named(finished_experiment: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_experiment, tmp_path / "copy")
    path = copy / "work" / "tiny" / "candidates" / "manifest.json"
    path.write_text("{")
    said = mistake("distill", copy / "tiny.toml", work=copy / "work")
    assert said.startswith(f"{path}: not a manifest (")
    assert said.endswith(f"Remove {path.parent} and run the step again")


# Searching


def test_a_search_needs_one_query_or_a_file_of_them(finished_experiment: Path, tmp_path: Path) -> None:
    folder = finished_experiment / "work" / "tiny"
    for arguments in ((), ("bird", "--queries", tmp_path / "queries")):
        assert command("search", folder, *arguments).error == "search: give a query, a file of them with --queries, or an image with --image"
    for text in ("", "  "):
        assert command("search", folder, text).error == "search: the query is empty"


def test_a_search_where_no_index_is_says_how_to_build_one(tmp_path: Path) -> None:
    assert command("search", tmp_path, "bird").error == f"{tmp_path}: no index here (index.json is missing). Build one with: retriever index FILE.toml"


def test_a_wrong_file_of_queries_is_named_with_its_line(finished_experiment: Path, tmp_path: Path) -> None:
    folder, path = finished_experiment / "work" / "tiny", tmp_path / "queries.tsv"
    assert command("search", folder, "--queries", path).error == f"{path}: cannot be read (No such file or directory)"
    path.write_text("a\tbird\na\tsaw\n")
    assert command("search", folder, "--queries", path).error == f"{path}:2: the query id a stands twice"


def test_a_run_that_cannot_be_written_is_named(finished_experiment: Path, tmp_path: Path) -> None:
    said = command("search", finished_experiment / "work" / "tiny", "bird", "--trec", tmp_path)
    assert said.error.startswith(f"{tmp_path}: Is a directory")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_index_is_named_and_its_command_mends_it(finished_experiment: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_experiment, tmp_path / "copy")
    path = copy / "work" / "tiny" / "index" / "segments" / "000001" / "index.faiss"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert command("search", copy / "work" / "tiny", "bird").error == f"{path}: the index file is cut or damaged. Build it again with: retriever index"
    assert command("index", copy / "tiny.toml", "--work", copy / "work").status == 0
    assert (path.parents[1] / "000002" / path.name).read_bytes() == whole  # a new version: the old one is kept until it is pruned
    found: dict[str, Any] = json.loads(command("search", copy / "work" / "tiny", "bird", "--json").out)
    assert len(found["results"]) == 10
