"""What the model reads of a batch: every distinct document once, in groups of like length, with nothing but the padding gone."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from retriever.collection import Collection
from retriever.settings.training import TrainingSettings
from retriever.training import batches
from retriever.training.batches import Batcher, as_dataset, group_starts, length_groups, length_to_read
from retriever.training.samples import TrainingSamples
from tests.training_material import animal_lessons

TRAINING = TrainingSettings(documents_per_query=4, epochs=1)
Lessons = tuple[Collection, TrainingSamples]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    return animal_lessons(tmp_path_factory.mktemp("lessons") / "collection", TRAINING)


@pytest.fixture
def model(encoder_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True).eval()


def test_the_dataset_is_the_samples_numbers(lessons: Lessons) -> None:
    _, samples = lessons
    assert as_dataset(samples)[:3] == {"label": [0, 1, 2]}
    assert len(as_dataset(samples)) == len(samples)


def test_a_batch_has_every_distinct_document_once_and_nothing_else(lessons: Lessons, model: SentenceTransformer) -> None:
    collection, samples = lessons
    batch = Batcher(model, samples, collection)([{"label": 5}, {"label": 2}, {"label": 5}])
    assert batch["label"]["samples"].tolist() == [5, 2, 5]
    assert sorted(batch["label"]["rows"].tolist()) == sorted(set(samples.documents[[5, 2]].flatten().tolist()))
    assert len(batch["query_input_ids"]) == 3


def test_a_documents_row_stands_where_its_text_stands(lessons: Lessons, model: SentenceTransformer) -> None:
    collection, samples = lessons
    batch = Batcher(model, samples, collection)([{"label": number} for number in range(8)])
    texts = [text for group in sorted(key for key in batch if key.startswith("document_") and key.endswith("_input_ids")) for text in batch[group].tolist()]
    for row, ids in zip(batch["label"]["rows"].tolist(), texts, strict=True):
        (document,) = collection.documents_by_row([row])
        assert [number for number in ids if number] == model.tokenizer(document.full_text)["input_ids"]  # 0 is padding


def test_training_reads_no_more_of_a_text_than_the_model_does(lessons: Lessons, model: SentenceTransformer) -> None:
    collection, samples = lessons
    longest = {length: Batcher(model, samples, collection, length)([{"label": 0}])["document_0_input_ids"].shape[1] for length in (None, 4, 30)}
    model.max_seq_length = 6
    assert (longest[4], longest[30]) == (4, longest[None])
    assert longest[None] > 6
    assert Batcher(model, samples, collection, 30)([{"label": 0}])["document_0_input_ids"].shape[1] == 6
    assert Batcher(model, samples, collection, 4)([{"label": 0}])["document_0_input_ids"].shape[1] == 4


def test_a_task_may_have_a_length_of_its_own() -> None:
    assert length_to_read(None, 128, 32) == {}
    assert length_to_read(64, 128, 32) == {"max_length": 32}
    assert length_to_read(64, float("inf"), None) == {"max_length": 64}


def test_padding_is_no_document(lessons: Lessons, model: SentenceTransformer) -> None:
    collection, samples = lessons
    mask = samples.mask.copy()
    mask[0, 2:] = False
    cut = TrainingSamples(samples.queries, samples.documents, samples.teacher, mask, samples.not_negative, samples.unit)
    rows = Batcher(model, cut, collection)([{"label": 0}])["label"]["rows"]
    assert sorted(rows.tolist()) == sorted(samples.documents[0, :2].tolist())


def test_groups_give_the_vectors_of_one_padded_batch(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "GROUP", 1)
    texts = ["owl", "it cuts wood into boards with its teeth", "a bat finds insects in the dark", "saw", "a bird of prey"]
    whole = model.preprocess(texts)
    groups, order = length_groups(whole)
    assert len(groups) > 1
    assert all(group["attention_mask"].any(dim=0).all() for group in groups)  # no column is padding in all of a group's texts
    expected = model(dict(whole))["sentence_embedding"]
    found = torch.cat([model(dict(group))["sentence_embedding"] for group in groups])
    torch.testing.assert_close(found, expected[order], rtol=1e-5, atol=1e-6)


def test_texts_padded_on_the_left_stay_one_group() -> None:
    features = {"input_ids": torch.tensor([[0, 7], [8, 9]]), "attention_mask": torch.tensor([[0, 1], [1, 1]])}
    groups, order = length_groups(features)
    assert [group["input_ids"].tolist() for group in groups] == [[[0, 7], [8, 9]]]
    assert order.tolist() == [0, 1]


def test_bags_of_words_stay_one_group() -> None:
    features = {"input_ids": torch.tensor([4, 5, 6]), "offsets": torch.tensor([0, 2])}  # two texts, of two words and of one
    groups, order = length_groups(features)
    assert len(groups) == 1
    assert order.tolist() == [0, 1]


def test_a_group_ends_where_a_text_is_a_quarter_shorter_and_the_group_is_not_small() -> None:
    lengths = [100] * 10 + [74] * 10 + [60] * 3
    assert group_starts(lengths) == [0, 16]  # sixteen stay together, then one of 74 begins a group, in which 60 stays
    assert group_starts([9, 9]) == [0]


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=200))
def test_groups_are_not_small_but_the_last_one(lengths: list[int]) -> None:
    falling = sorted(lengths, reverse=True)
    starts = group_starts(falling)
    assert starts[0] == 0
    assert all(after - before >= batches.GROUP for before, after in itertools.pairwise(starts))
