"""Generated queries: the critic's rules by hand, shards that a stop does not change, and a bare folder distilled with them."""

import math
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.collection import Collection, open_collection, with_queries, write_collection
from retriever.config import experiment_from, read_experiment
from retriever.engines import open_engine
from retriever.errors import ConfigError
from retriever.eval.report import read_report
from retriever.files import fingerprint
from retriever.generation import critic, rules
from retriever.generation.critic import Criticised, counts_of, criticise, kept_of
from retriever.generation.generators import LanguageModel, drawn_sentence, first_sentence, open_generator, sentences
from retriever.generation.prompts import PRESETS, template_of
from retriever.generation.samples import SHARD_DOCUMENTS, plan_samples
from retriever.runs import Run
from retriever.settings.collection import CollectionSettings
from retriever.settings.generation import GenerationSettings
from retriever.types import Document, Qrels, Query
from retriever.writing.shards import pending, write_samples
from retriever.writing.text import cleaned, is_refusal
from tests.forked_commands import RETRIEVER, ForkedCommands
from tests.llm_material import FunctionEngine, save_tiny_model
from tests.tiny_experiment import command, write_experiment

WORDS = st.lists(st.sampled_from(["owl", "sees", "at", "night"]), max_size=8)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, shared_beir_folder: Path) -> Collection:
    return open_collection(CollectionSettings(path=shared_beir_folder), tmp_path_factory.mktemp("generation") / "collection")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llm")


@pytest.fixture
def bare(tmp_path: Path, shared_beir_folder: Path) -> Path:
    """A folder with documents and nothing else."""
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(shared_beir_folder / "corpus.jsonl", folder)
    return folder


def nothing(_: object) -> None:
    """For bars and notes that nobody reads."""


# Rules


@pytest.mark.parametrize(
    ("raw", "query"),
    [
        ('Sure, here is a question:\n\n1. "What flies at night?"', "What flies at night?"),
        ("Sure! Here's a possible search query: **night flying animals**", "night flying animals"),
        ("Here are the keywords: owl night hearing", "owl night hearing"),
        ("Search query: owl hearing\nAnother one: owl wings", "owl hearing"),
        ("  - how do owls hear  ", "how do owls hear"),
        ("Q1: how do owls hear", "how do owls hear"),
        ("A search query for this text would be: owls", "owls"),
        ("a question of trust, and an answer", "a question of trust, and an answer"),
        ("Yes or no questions in a test", "Yes or no questions in a test"),
        ("Sure footing: how to walk on ice", "Sure footing: how to walk on ice"),
        ("\n \n", ""),
        ("?!", ""),
    ],
)
def test_the_query_is_found_in_what_a_model_says(raw: str, query: str) -> None:
    assert cleaned(raw) == query


@pytest.mark.parametrize(
    ("query", "refused"),
    [
        ("I'm sorry, but I cannot help with that", True),
        ("As an AI language model I have no access", True),
        ("I cannot write a question", True),
        ("i can hear an owl, where is it", False),
        ("sorrel or dock: which is edible", False),
    ],
)
def test_refusals(query: str, refused: bool) -> None:
    assert is_refusal(query) == refused


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("what is the main topic of this document", True),
        ("<|im_start|>user what flies", True),
        ("how to use [insert tool]", True),
        ("owl owl owl owl", True),
        ("small owls and small owls and small owls and", True),
        ("small owls and large owls and small owls", False),
        ("moth � wings", True),
        ("how to scan a document", False),
        ("had had a point", False),
    ],
)
def test_artefacts(query: str, found: bool) -> None:
    assert rules.has_artefact(query) == found


@given(WORDS, WORDS)
def test_the_longest_common_run_is_that_of_all_runs_tried(one: list[str], other: list[str]) -> None:
    def runs(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)}

    assert rules.longest_common_run(one, other) == max((len(run) for run in runs(one) & runs(other)), default=0)


def test_a_copied_share_counts_words_of_a_run_that_is_long_enough() -> None:
    document = "The owl hunts mice in the dark, and hears them under snow."
    assert rules.copied_share("why owl hunts mice in the dark ?", document) == pytest.approx(6 / 7)  # "owl ... dark" of seven words
    assert rules.copied_share("owl hunts mice", document) == rules.copied_share("owl hunts", "owl hunts") == 0.0


def test_quality_is_one_over_the_logarithm_of_the_rank() -> None:
    assert [rules.quality(1), rules.quality(3), rules.quality(7), rules.quality(None)] == [1.0, 0.5, pytest.approx(1 / 3), 0.0]
    assert rules.quality(2) == pytest.approx(1 / math.log2(3))


# The critic


DOCUMENTS = {
    "owl": Document("owl", "It hunts mice by night."),
    "bee": Document("bee", "It makes honey in a hive."),
    "ant": Document("ant", "It lives in a hill."),
}


def settings_of(**changes: object) -> GenerationSettings:
    return GenerationSettings.model_validate({"method": "llm", "model": "m", **changes})


def test_each_rule_is_asked_of_what_those_before_it_kept_and_every_answer_has_one_verdict() -> None:
    answers = {
        ("owl", 0): "what hunts mice by night",
        ("owl", 1): "which animal hunts mice at night",
        ("owl", 2): "I'm sorry, I cannot",
        ("bee", 0): "honey",
        ("bee", 1): "where is honey made",
        ("bee", 2): "what hunts by night mice",  # the words of the first one
        ("ant", 0): "who lives here",
        ("ant", 1): "",
        ("ant", 2): "this passage is about what",
    }
    ranks = {"generated:owl:0": 1, "generated:owl:1": 2, "generated:bee:1": 2, "generated:bee:2": 3, "generated:ant:0": None}
    asked: list[set[str]] = []

    def retrieve(queries: Mapping[str, Query]) -> dict[str, Run]:
        asked.append(set(queries))
        listed = {}
        for query_id, rank in ranks.items():
            others = [f"other{number}" for number in range(3)]
            doc_id = query_id.split(":")[1]
            order = others if rank is None else [*others[: rank - 1], doc_id, *others[rank - 1 :]]
            listed[query_id] = {doc: 10.0 - place for place, doc in enumerate(order)}
        return {"bm25": Run.from_dict("bm25", listed)}

    def score(queries: Mapping[str, Query], _: Qrels) -> Run:
        asked.append(set(queries))
        return Run.from_dict(
            "teacher",
            {
                "generated:owl:0": {"owl": 5.0, "ant": 1.5},
                "generated:owl:1": {"owl": 1.0, "ant": 4.0, "bee": 2.0},
                "generated:bee:1": {"bee": 3.0, "ant": 4.0},
                "generated:bee:2": {"bee": 3.0},
            },
        )

    found = criticise(answers, DOCUMENTS, settings_of(near_duplicate=0.7, teacher_rank=2), retrieve, score)
    assert [one.verdict for one in found] == [
        *("kept", "teacher", "refusal"),
        *("too_short", "kept", "near_duplicate"),
        *("round_trip", "empty", "artefact"),
    ]
    assert asked == [set(ranks), set(ranks) - {"generated:ant:0"}]
    assert [one.quality for one in found[:2]] == [1.0, pytest.approx(1 / math.log2(3))]
    assert [(one.teacher_rank, one.teacher_margin) for one in (*found[:2], *found[4:6])] == [(1, 3.5), (3, -3.0), (2, -1.0), (1, None)]
    assert sum(counts_of(found).values()) == len(answers)
    assert [one.query for one in kept_of(found)] == [Query("generated:owl:0", "what hunts mice by night"), Query("generated:bee:1", "where is honey made")]


def test_surplus_takes_the_best_of_each_document_before_a_second_one() -> None:
    queries = [Criticised(doc, number, "", f"{doc} {number}", "kept", quality=value) for doc, number, value in [("a", 0, 0.9), ("a", 1, 1.0), ("b", 0, 0.2)]]
    kept = kept_of(critic.drop_surplus(queries, 2))
    assert [(one.doc_id, one.sample) for one in kept] == [("a", 1), ("b", 0)]
    assert len(kept_of(critic.drop_surplus(queries, 9))) == 3


def test_a_long_copied_sentence_is_dropped_from_a_model_and_kept_where_it_was_asked_for() -> None:
    document = Document("d", "The small owl hunts mice in the dark.", "Owl")
    raw = first_sentence(document, 0, 1)
    assert raw == "The small owl hunts mice in the dark."
    assert critic.judge_words("d", 0, raw, document, settings_of()).verdict == "copied"
    assert critic.judge_words("d", 0, raw, document, GenerationSettings()).verdict == "kept"


# Generators and their shards


def test_a_document_s_sentence_is_taken_whole_and_nothing_of_it_is_a_label() -> None:
    document = Document("d", "The owl hunts mice,\nvoles and rats. Question: the answer\nis in the book.", "Owl")
    assert sentences(document) == ["The owl hunts mice, voles and rats.", "Question: the answer is in the book."]
    own = GenerationSettings(method="sentence")
    judged = [critic.judge_words("d", 0, sentence, document, own) for sentence in sentences(document)]
    assert [(one.text, one.verdict) for one in judged] == list(zip(sentences(document), ["kept", "artefact"], strict=True))


def test_documents_with_few_sentences_count_for_the_samples_that_they_have_words_for(tmp_path: Path) -> None:
    short = write_collection(tmp_path / "c", [Document(f"d{number}", f"Only sentence {number}." if number % 2 else "") for number in range(40)])
    assert len(plan_samples(short, 9, 3, 2.0, 1, lambda document: 1).rows) == 18
    assert len(plan_samples(short, 9, 3, 2.0, 1).rows) == 6


def test_a_document_is_cut_so_that_prompt_and_answer_fit() -> None:
    engine = FunctionEngine(write=lambda prompt: prompt, max_length=200)
    generator = LanguageModel(settings_of(prompt="About {document} ask:", answer_tokens=10), engine, seed=1)
    (prompt,) = generator.write([Document("d", " ".join(f"w{number}" for number in range(500)))], 0)
    assert len(prompt.split()) == 200 - 10 - 8  # the answer, and the room for joins
    with pytest.raises(ConfigError, match="the prompt and an answer of 195 tokens take all of the 200 tokens that are read"):
        LanguageModel(settings_of(prompt="About {document} ask:", answer_tokens=195), engine, seed=1).write([Document("d", "x")], 0)


def test_every_preset_holds_the_document_in_both_forms_and_others_are_refused() -> None:
    assert all("{document}" in template.text and template.base.count("Document: ") == 4 for template in PRESETS.values())
    with pytest.raises(ConfigError, match=r"generation\.prompt is 'questions'; it is one of question, keywords, search_query, or a text with \{document\}"):
        template_of(settings_of(prompt="questions"))


def test_documents_are_drawn_once_for_each_text_and_a_longer_plan_begins_as_a_shorter_one(tmp_path: Path, collection: Collection) -> None:
    repeated = write_collection(tmp_path / "c", [Document("a", "one"), Document("b", "one"), Document("c", ""), Document("d", "two")])
    assert [repeated.documents_by_row(plan_samples(repeated, 100, 1, 1.0, seed).rows.tolist())[0].doc_id in "ad" for seed in range(9)] == [True] * 9
    assert len(plan_samples(repeated, 100, 1, 1.0, 1).rows) == 2
    short, long = (plan_samples(collection, queries, 3, 2.0, 1) for queries in (10, 40))
    assert (len(short.rows), len(long.rows)) == (7, 27)  # 10 * 2 / 3 and 40 * 2 / 3, rounded up
    assert long.rows[:7].tolist() == short.rows.tolist()
    assert plan_samples(collection, 40, 3, 2.0, 2).rows.tolist() != long.rows.tolist()


def test_a_killed_generation_continues_and_ends_with_the_same_shards(
    bare: Path, model: Path, encoder_folder: Path, tmp_path: Path, forked_commands: ForkedCommands
) -> None:
    table = f'\n[generation]\nmethod = "llm"\nmodel = "{model}"\nqueries = 60\nper_document = 2\nanswer_tokens = 6\n'
    path = write_experiment(tmp_path, bare, encoder_folder)
    path.write_text(path.read_text(encoding="utf-8") + table, encoding="utf-8")
    settings = read_experiment(path).generation
    assert settings
    documents = open_collection(CollectionSettings(path=bare), tmp_path / "collection")
    plan, generator = plan_samples(documents, 60, 2, 2.0, 1), open_generator(settings, 1)
    assert len(plan.rows) == 60 > SHARD_DOCUMENTS
    whole = tmp_path / "whole"
    write_samples(plan, generator, whole, nothing, nothing)
    folder = tmp_path / "work" / "tiny" / "generated" / fingerprint([generator.identity.fingerprint, documents.fingerprint])
    first = folder / "000000.parquet"
    line = (*RETRIEVER, "generate", path, "--work", tmp_path / "work")
    process = forked_commands.start(*line)
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    forked_commands.wait(process)
    written = first.stat().st_mtime_ns
    planned = forked_commands.run(*line, "--dry-run")
    assert planned.status == 0, planned.err
    forked_commands.run(*line)
    assert first.stat().st_mtime_ns == written
    assert len(list(whole.glob("*.parquet"))) == 2
    assert {file.name: file.read_bytes() for file in folder.glob("*.parquet")} == {file.name: file.read_bytes() for file in whole.glob("*.parquet")}


def test_a_damaged_shard_and_a_longer_plan_are_written_anew_and_nothing_else(collection: Collection, model: Path, tmp_path: Path) -> None:
    settings = settings_of(model=str(model), per_document=1, answer_tokens=4)
    generator, plan = LanguageModel(settings, open_engine(settings.engine, "generation"), 5), plan_samples(collection, 60, 1, 1.0, 5)
    answers = write_samples(plan, generator, tmp_path / "s", nothing, nothing)
    assert (len(answers), pending(plan, tmp_path / "s")) == (60, 0)
    kept, damaged = (tmp_path / "s" / name for name in ("000000.parquet", "000001.parquet"))
    before, told = kept.stat().st_mtime_ns, []
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert pending(plan, tmp_path / "s") == 60 - SHARD_DOCUMENTS
    assert write_samples(plan, generator, tmp_path / "s", told.append, nothing) == answers
    assert (told, kept.stat().st_mtime_ns) == ([60 - SHARD_DOCUMENTS], before)
    assert pending(plan_samples(collection, 60, 2, 2.0, 5), tmp_path / "s") == 60  # the second sample of each


def test_samples_of_a_document_differ(model: Path) -> None:
    settings = settings_of(model=str(model), answer_tokens=8)
    generator = LanguageModel(settings, open_engine(settings.engine, "generation"), 5)
    documents = list(DOCUMENTS.values())
    assert generator.write(documents, 0) == generator.write(documents, 0)
    assert generator.write(documents, 0) != generator.write(documents, 1)


def test_sentences_are_drawn_in_an_order_of_the_seed_and_none_comes_twice() -> None:
    document = Document("d", "Owls hear well. They hunt at night!  They hunt at night! Do they sleep by day?", "Owl")
    sentences = {"Owls hear well.", "They hunt at night!", "Do they sleep by day?"}
    orders = [[drawn_sentence(document, sample, seed) for sample in range(4)] for seed in range(20)]
    assert all(set(order[:3]) == sentences and order[3] == "" for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    drawn = open_generator(GenerationSettings(method="sentence"), 7)
    assert [drawn.write([document], sample) for sample in range(4)] == [[sentence] for sentence in orders[7]]


# Settings


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"method": "llm"}, 'method = "llm" needs a model'),
        ({"model": "m"}, 'nothing reads model with method = "first_sentence"'),
        ({"method": "llm", "model": "m", "temperature": 0.0}, "temperature = 0 writes the same query 3 times"),
        ({"teacher": "nobody"}, 'generation.teacher: "nobody" is none of lexical, taught'),
        ({"teacher": "taught"}, 'generation.teacher: "taught" cannot judge generated queries: it is taught after they are written'),
        ({"method": "title", "folds": 2}, "collection.folds: cuts the queries that people judged, and [generation] writes others"),
        ({"method": "title", "run": True}, 'teacher run-x: its file has no scores of generated queries; set missing = "lowest"'),
        ({"qeries": 3}, 'unknown key "generation.qeries", did you mean "queries"?'),
    ],
)
def test_mistakes_in_the_section_are_told(table: dict[str, object], message: str) -> None:
    taught = {"kind": "cross_encoder", "model": "m", "name": "taught", "train": {}}
    values = {"name": "x", "collection": {"path": "/x"}, "teacher": [{"kind": "lexical"}, taught], "student": {"model": "m"}}
    table = dict(table)
    if folds := table.pop("folds", None):
        values["collection"] = {"path": "/x", "train": "all", "test": "all", "folds": folds}
    if table.pop("run", None):
        values["teacher"] = [{"kind": "run", "path": "x.trec"}]
    with pytest.raises(ConfigError) as caught:
        experiment_from({**values, "generation": table})
    assert message in str(caught.value)


# The whole way


@pytest.mark.usefixtures("blank_figures")
def test_a_bare_folder_is_distilled_with_its_first_sentences(bare: Path, encoder_folder: Path, tmp_path: Path) -> None:
    assert command("init", tmp_path / "notes", "--collection", bare, "--student", encoder_folder).status == 0
    experiment = read_experiment(tmp_path / "notes" / "experiment.toml")
    assert experiment.generation
    assert experiment.generation.method == "first_sentence"
    path = write_experiment(tmp_path, bare, encoder_folder)
    assert "no train queries" in command("check", path, "--work", tmp_path / "work").error
    path.write_text(path.read_text(encoding="utf-8") + '\n[generation]\nround_trip = ["bm25", "student"]\nteacher = "lexical"\n', encoding="utf-8")
    checked = command("check", path, "--work", tmp_path / "work")
    assert "60 documents; no queries\n" in checked.err
    planned = command("generate", path, "--work", tmp_path / "work", "--dry-run")
    assert planned.out == "60 queries to write for 60 documents, 0 written already\n"
    said = command("distill", path, "--work", tmp_path / "work")
    assert said.status == 0, said.err
    folder = tmp_path / "work" / "tiny"
    assert "test queries are generated, too, from other documents" in read_report(folder / "evaluate").summary
    rows = pq.read_table(folder / "generate" / "queries.parquet").to_pylist()
    assert [row["verdict"] for row in rows] == ["kept"] * 60
    assert {row["rank_bm25"] for row in rows} == {1}
    assert {row["critic_score"] for row in rows} == {1.0}
    prepared = Collection(folder / "generate" / "collection")
    documents = {document.doc_id: document for document in prepared.documents()}
    sources = {split: {doc_id for judged in prepared.qrels(split).values() for doc_id in judged} for split in ("train", "test")}
    assert (len(sources["train"]), len(sources["test"]), sources["train"] & sources["test"]) == (48, 12, set())
    assert all(query.text == documents[query.query_id.split(":")[1]].text.split(". ")[0] for query in prepared.queries("train").values())
    again = command("generate", path, "--work", tmp_path / "work")
    assert "kept 60 of 60 (100 %): 48 train, 12 test; test queries are generated" in again.out
    assert "generate: unchanged" in again.err


def test_a_collection_with_test_queries_keeps_them(shared_beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    path.write_text(path.read_text(encoding="utf-8") + '\n[generation]\nmethod = "title"\nqueries = 20\nshortest = 1\n', encoding="utf-8")
    said = command("generate", path, "--work", tmp_path / "work", "--json")
    assert said.status == 0, said.err
    prepared, judged = Collection(tmp_path / "work" / "tiny" / "generate" / "collection"), Collection(tmp_path / "work" / "tiny" / "collection")
    assert prepared.qrels("test") == judged.qrels("test")
    assert len(prepared.queries("train")) == 20
    assert {query.text for query in prepared.queries("train").values()} <= {document.title for document in prepared.documents()}
    assert prepared.fingerprint == judged.fingerprint


@pytest.mark.usefixtures("blank_figures")
def test_queries_of_a_judged_collection_stand_beside_its_own(shared_beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    section = '\n[generation]\nmethod = "sentence"\nqueries = 20\nper_document = 2\n'
    path.write_text(path.read_text(encoding="utf-8") + section, encoding="utf-8")
    options = ("--work", tmp_path / "work", "--set", "collection.unjudged=true")
    assert "queries are generated to teach beside the judged ones (sentence)" in command("check", path, *options).err
    assert "20 unjudged; test queries are judged" in command("generate", path, *options).out
    prepared, own = Collection(tmp_path / "work" / "tiny" / "generate" / "collection"), Collection(tmp_path / "work" / "tiny" / "collection")
    assert {split: prepared.qrels(split) for split in prepared.splits} == {split: own.qrels(split) for split in own.splits}
    generated = [query.query_id for query in prepared.all_queries()][-20:]
    assert all(query_id.startswith("generated:") for query_id in generated)
    assert list(prepared.all_queries())[:-20] == list(own.all_queries())

    distilled = command("distill", path, *options, "--set", "training.epochs=1", "--set", "evaluation.ablation=true")
    assert distilled.status == 0, distilled.err
    assert " queries (20 unjudged), " in distilled.err
    report = read_report(tmp_path / "work" / "tiny" / "evaluate")
    assert "Beside the judged train queries, generated ones (sentence) teach by the target's scores." in report.summary
    assert {"contrastive", "judged"} <= {run.name for run in report.runs}
    assert "generate: unchanged" in command("generate", path, *options).err
    other = command("generate", path, "--work", tmp_path / "work")  # the same section without `unjudged`
    assert "generate: again; changed" in other.err
    assert f"20 train, {len(own.qrels('test'))} test; test queries are judged" in other.out


def test_queries_that_were_generated_before_are_not_written_beside_themselves(shared_beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    path.write_text(path.read_text(encoding="utf-8") + '\n[generation]\nmethod = "title"\nqueries = 5\nshortest = 1\n', encoding="utf-8")
    options = ("--work", tmp_path / "work", "--set", "collection.unjudged=true")
    assert command("generate", path, *options).status == 0
    Collection(tmp_path / "work" / "tiny" / "generate" / "collection").to_beir(tmp_path / "written")
    said = command("generate", path, *options, "--set", f"collection.path={tmp_path / 'written'}")
    assert "written has generated queries already (generated:" in said.error
    assert "Take [generation] out" in said.error


def test_another_critic_judges_anew_and_another_batch_size_does_not(shared_beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    section = '\n[generation]\nmethod = "title"\nqueries = 5\nshortest = 1\nteacher = "lexical"\n'
    path.write_text(path.read_text(encoding="utf-8") + section, encoding="utf-8")
    assert command("generate", path, "--work", tmp_path / "work").status == 0
    assert "generate: unchanged" in command("generate", path, "--work", tmp_path / "work", "--set", "teacher.0.normalise=min_max").err
    said = command("generate", path, "--work", tmp_path / "work", "--set", "candidates.k1=1.2").err
    assert "generate: again; changed: " in said
    assert "critic" in said


def test_generated_queries_have_none_to_stand_beside_in_a_bare_folder(bare: Path, encoder_folder: Path, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, bare, encoder_folder)
    path.write_text(path.read_text(encoding="utf-8") + '\n[generation]\nmethod = "title"\n', encoding="utf-8")
    said = command("generate", path, "--work", tmp_path / "work", "--set", "collection.unjudged=true")
    assert 'queries stand beside judged ones, and bare has no split "train". Take unjudged out' in said.error
    assert not (tmp_path / "work" / "tiny" / "generate").exists()


def test_too_strict_a_critic_says_which_rule_dropped_most(bare: Path, encoder_folder: Path, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, bare, encoder_folder)
    path.write_text(path.read_text(encoding="utf-8") + "\n[generation]\nlongest = 2\n", encoding="utf-8")
    assert "queries of 0 documents were kept, and 2 are needed at least; dropped: too_long 60" in command("generate", path, "--work", tmp_path / "work").error


def test_other_queries_share_the_documents_files(collection: Collection, tmp_path: Path) -> None:
    changed = with_queries(collection, tmp_path / "other", [Query("q", "owl")], {"train": {"q": {"otter": 1}}}, {"format": "generated"})
    assert (tmp_path / "other" / "documents.arrow").samefile(collection.folder / "documents.arrow")
    assert changed.queries("train") == {"q": Query("q", "owl")}
    assert (changed.splits, changed.fingerprint, changed.counts["queries"]) == (("train",), collection.fingerprint, 1)


def test_a_disk_without_hard_links_gets_a_copy(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    changed = with_queries(collection, tmp_path / "other", [], {}, {})
    assert list(changed.documents()) == list(collection.documents())
