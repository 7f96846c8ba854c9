"""How many texts a model reads at a time."""

from __future__ import annotations

from typing import Any

import torch

from retriever.models.routes import transformers_of

TEXTS_A_THREAD = 8
"""They fill a thread of a CPU. More gain nothing there: what is padded to the longest of them grows, and what was computed leaves the cache."""


def texts_at_a_time(model: Any, batch_size: int) -> int:
    """The batch size that was asked for; for a transformer on a CPU at most `TEXTS_A_THREAD` for each of torch's threads.

    With two threads, queries of all-MiniLM-L6-v2 that are encoded 64 together go 1.6 times as fast in batches of 16, sorted by length, as in one.
    """
    if model.device.type != "cpu" or not transformers_of(model):
        return batch_size
    return min(batch_size, TEXTS_A_THREAD * torch.get_num_threads())
