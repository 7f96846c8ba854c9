"""Language models for tests: a tiny real one with random weights, and engines whose answers a function gives."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever.engines import EngineIdentity, Likelihoods, Message, Prompt, prompt_text
from retriever.types import Usage

TEXTS = [
    "the owl sees well in the dark",
    "a hammer drives nails into wood",
    "Query: what flies at night? Document: moths fly at night. Answer yes or no: yes Yes no No",
    "Is the document relevant to the query? system user assistant",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_tiny_model(folder: Path, *, chat: bool = True, start: bool = False, seed: int = 3) -> Path:
    """A Llama of 2 layers with random weights and a byte-level tokenizer of about 330 tokens; its opinions are strong, and worth nothing."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS * 5, trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", pad_token="<|im_end|>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), **sizes, bos_token_id=0, eos_token_id=2, initializer_range=0.15)).eval()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


class FunctionEngine:
    """An engine whose tokens are words, and whose answers are functions of the prompt's text."""

    counts_exactly = True

    def __init__(
        self,
        next_tokens: Callable[[str], dict[str, float]] = lambda prompt: {"yes": 0.5, "no": 0.5},
        write: Callable[[str], str] = lambda prompt: "",
        likelihood: Callable[[str, str], float] = lambda prompt, continuation: 0.0,
        max_length: int = 1000,
    ) -> None:
        self.next_tokens, self.write, self.likelihood = next_tokens, write, likelihood
        self.identity = EngineIdentity("function", "float64", "function")
        self.max_length = max_length
        self.usage = Usage()
        self.prompts: list[str] = []

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int32]:
        return np.array([len(text.split()) for text in texts], dtype=np.int32)

    def cut(self, text: str, n_tokens: int) -> str:
        return " ".join(text.split()[:n_tokens])

    def plain(self, text: str) -> str:
        return text

    def chat(self, messages: Sequence[Message]) -> Prompt | None:
        return None

    def single_tokens(self, texts: Sequence[str]) -> list[str]:
        return [text for text in texts if re.fullmatch(r" ?\w+", text)]

    def next_token_logits(self, prompts: Sequence[Prompt], tokens: Sequence[str]) -> NDArray[np.float32]:
        texts = self._ask(prompts)
        return np.log([[self.next_tokens(text).get(token, 1e-9) for token in tokens] for text in texts]).astype(np.float32)

    def log_likelihood(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> Likelihoods:
        sums = [self.likelihood(text, continuation) for text, continuation in zip(self._ask(prompts), continuations, strict=True)]
        return Likelihoods(np.array(sums, dtype=np.float32), self.count_tokens(continuations))

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, temperature: float = 0.0, seed: int = 0, stop: Sequence[str] = ()) -> list[str]:
        return [self.write(text) for text in self._ask(prompts)]

    def _ask(self, prompts: Sequence[Prompt]) -> list[str]:
        texts = [prompt_text(prompt) for prompt in prompts]
        self.prompts += texts
        self.usage += Usage(len(texts), int(self.count_tokens(texts).sum()))
        return texts
