"""Joining, cutting and batching of token ids, against the tokenizers themselves."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from retriever.errors import ConfigError
from retriever.models.token_batches import batches, cut_longest_first, learn_template, tokenise_pairs

WORDS = ["owl", "night", "hammer", "zzz", "the", "42", "?", "mole"]
texts = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)
TOKENIZERS = ["bert", "roberta", "left"]


@pytest.fixture(scope="module")
def tokenizers(cross_encoder_folder: Path) -> dict[str, PreTrainedTokenizerBase]:
    """BERT's, one that joins as RoBERTa's does (two separators, no types), and one that pads and cuts on the left."""
    vocabulary = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS, *"how", "do", "owls", "hunt", "an", "hears"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    roberta = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", model_input_names=["input_ids", "attention_mask"])
    left = AutoTokenizer.from_pretrained(cross_encoder_folder, padding_side="left", truncation_side="left")
    return {"bert": AutoTokenizer.from_pretrained(cross_encoder_folder), "roberta": roberta, "left": left}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=6), max_length=st.integers(5, 30))
@settings(max_examples=60, deadline=None)
def test_batches_hold_what_the_tokenizer_gives(
    tokenizers: dict[str, PreTrainedTokenizerBase], name: str, pairs: list[tuple[str, str]], max_length: int
) -> None:
    tokenizer = tokenizers[name]
    tokens = tokenise_pairs(tokenizer, learn_template(tokenizer, "model"), pairs, max_length)
    queries, documents = (list(side) for side in zip(*pairs, strict=True))
    expected = tokenizer(queries, documents, truncation="longest_first", max_length=max_length, padding=True, return_tensors="np")
    made = tokens.batch(np.arange(len(pairs))).inputs
    assert set(made) == set(expected)
    for key in made:
        assert made[key].tolist() == expected[key].tolist(), key
    whole = tokenizer(queries, documents)["input_ids"]
    assert tokens.truncated.tolist() == [len(ids) > max_length for ids in whole]
    assert tokens.lengths.tolist() == [min(len(ids), max_length) for ids in whole]


def test_each_distinct_text_is_tokenised_once(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    pairs = [("owl", "night"), ("owl", "mole"), ("mole", "night")]
    tokens = tokenise_pairs(tokenizers["bert"], learn_template(tokenizers["bert"], "model"), pairs, None)
    assert (len(tokens.queries), len(tokens.documents)) == (2, 2)
    assert tokens.which.tolist() == [[0, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("lengths", "room", "kept"),
    [((3, 4), 7, (3, 4)), ((3, 9), 7, (3, 4)), ((9, 3), 7, (4, 3)), ((9, 8), 7, (4, 3)), ((8, 9), 7, (3, 4)), ((2, 9), 1, (0, 1))],
)
def test_the_longer_text_gives_way(lengths: tuple[int, int], room: int, kept: tuple[int, int]) -> None:
    assert cut_longest_first(np.array([lengths]), room).tolist() == [list(kept)]


@given(lengths=st.lists(st.integers(1, 50), max_size=40), tokens=st.integers(1, 200), pairs=st.integers(1, 9), multiple=st.sampled_from([1, 8]))
def test_batches_cover_all_pairs_once_within_the_budget(lengths: list[int], tokens: int, pairs: int, multiple: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    found = list(batches(array, tokens, pairs, multiple))
    assert sorted(place for places in found for place in places) == list(range(len(lengths)))
    for places in found:
        longest = -(-array[places].max() // multiple) * multiple
        assert len(places) == 1 or (len(places) <= pairs and len(places) * longest <= tokens)
    assert [array[place] for places in found for place in places] == sorted(lengths, reverse=True)


def test_a_batch_is_padded_to_a_multiple(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokens = tokenise_pairs(tokenizers["bert"], learn_template(tokenizers["bert"], "model"), [("owl", "night mole")], None)
    batch = tokens.batch(np.array([0]), multiple=8)
    assert batch.inputs["input_ids"].shape == (1, 8)
    assert batch.inputs["attention_mask"].tolist() == [[1] * 6 + [0] * 2]


def test_a_tokenizer_without_padding_is_refused(cross_encoder_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder_folder)
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match=r"model: its tokenizer has no padding token. Set pad_token"):
        learn_template(tokenizer, "model")
