"""How many texts a model reads at a time: on a CPU few, where a transformer reads them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from retriever.students import dense, late_interaction
from retriever.students._batches import texts_at_a_time


@pytest.mark.parametrize(("threads", "asked", "read"), [(1, 64, 8), (2, 64, 16), (2, 3, 3), (16, 64, 64)])
def test_a_cpu_reads_eight_texts_for_each_thread_and_not_more_than_asked_for(
    encoder_folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int, asked: int, read: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert dense.load_folder(encoder_folder, asked).batch_size == read
    assert late_interaction.load_folder(encoder_folder, asked).batch_size == read


def test_another_device_reads_as_many_as_asked_for(encoder_folder: Path) -> None:
    model = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True)
    assert texts_at_a_time(SimpleNamespace(device=torch.device("cuda")), 512) == 512
    assert texts_at_a_time(model, 512) < 512


def test_a_table_of_vectors_reads_as_many_as_asked_for(encoder_folder: Path) -> None:
    tokenizer = SentenceTransformer(str(encoder_folder), device="cpu", local_files_only=True).tokenizer
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=4)], device="cpu")
    assert texts_at_a_time(model, 4096) == 4096
