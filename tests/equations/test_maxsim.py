"""MaxSim for training: by hand, against slow loops with their gradients, and against sentence-transformers on texts of their own length."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util.similarity import maxsim
from torch import Tensor

from retriever.training.maxsim import maxsim_matrix


def batch(seed: int, texts: int, tokens: int, dimensions: int = 5, empty: bool = False) -> tuple[Tensor, Tensor]:
    """Random vectors and a random mask; every text has a token unless `empty`."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(texts, tokens, dimensions, generator=generator)
    mask = torch.rand(texts, tokens, generator=generator) < 0.6
    if not empty:
        mask[torch.arange(texts), torch.randint(tokens, (texts,), generator=generator)] = True
    return vectors, mask


def slow_maxsim(queries: Tensor, query_mask: Tensor, documents: Tensor, document_mask: Tensor) -> Tensor:
    """[B, U], token by token in double precision."""
    rows = []
    for query, counts in zip(queries.double(), query_mask, strict=True):
        row = []
        for document, there in zip(documents.double(), document_mask, strict=True):
            score = torch.zeros((), dtype=torch.float64)
            for token in query[counts]:
                products = [token @ other for other in document[there]]
                score = score + (torch.stack(products).max() if products else -token.detach().norm())
            row.append(score)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_by_hand() -> None:
    queries = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [9.0, 9.0]]])
    query_mask = torch.tensor([[True, True], [True, False]])
    documents = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, -1.0], [9.0, 9.0]], [[5.0, 5.0], [7.0, 7.0]]])
    document_mask = torch.tensor([[True, True], [True, False], [False, False]])
    # The third document has no tokens: minus the lengths of the queries' vectors, 1 + 2 and the root of 2.
    expected = torch.tensor([[1 + 2, -1 - 2, -3], [1, -2, -math.sqrt(2)]])
    torch.testing.assert_close(maxsim_matrix(queries, query_mask, documents, document_mask), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), queries=st.integers(1, 3), documents=st.integers(1, 4), tokens=st.integers(1, 4), chunk=st.sampled_from([1, 60, 2**24]))
def test_values_and_gradients_are_those_of_a_slow_loop(seed: int, queries: int, documents: int, tokens: int, chunk: int) -> None:
    query, query_mask = batch(seed, queries, 3)
    document, document_mask = batch(seed + 1, documents, tokens, empty=True)
    weights = torch.randn(queries, documents, generator=torch.Generator().manual_seed(seed))
    fast = [query.clone().requires_grad_(), document.clone().requires_grad_()]
    slow = [query.clone().requires_grad_(), document.clone().requires_grad_()]
    scores = maxsim_matrix(fast[0], query_mask, fast[1], document_mask, chunk)
    expected = slow_maxsim(slow[0], query_mask, slow[1], document_mask) + 0 * (slow[0].sum() + slow[1].sum())  # a graph also where all documents are empty
    torch.testing.assert_close(scores, expected.float())
    (scores * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_it_is_sentence_transformers_maxsim_of_the_tokens_that_count() -> None:
    query, query_mask = batch(1, 4, 6)
    document, document_mask = batch(2, 7, 9)
    lists = [[text[there] for text, there in zip(vectors, mask, strict=True)] for vectors, mask in ((query, query_mask), (document, document_mask))]
    torch.testing.assert_close(maxsim_matrix(query, query_mask, document, document_mask), maxsim(*lists))


@pytest.mark.parametrize("value", [1e4, -1e4, 0.0])
def test_padding_never_wins_and_never_learns(value: float) -> None:
    query, query_mask = batch(3, 3, 5)
    document, document_mask = batch(4, 4, 6, empty=True)
    before = maxsim_matrix(query, query_mask, document, document_mask)
    query[~query_mask], document[~document_mask] = value, value
    query.requires_grad_()
    document.requires_grad_()
    after = maxsim_matrix(query, query_mask, document, document_mask)
    torch.testing.assert_close(after, before)
    after.sum().backward()
    assert query.grad is not None
    assert document.grad is not None
    assert query.grad[~query_mask].abs().max() == 0
    assert document.grad[~document_mask].abs().max() == 0
    assert document.grad[document_mask].abs().max() > 0


def test_chunks_of_documents_change_nothing() -> None:
    query, query_mask = batch(5, 3, 4)
    document, document_mask = batch(6, 11, 5)
    whole = maxsim_matrix(query, query_mask, document, document_mask)
    for chunk in (1, 100, 300, 1000):
        torch.testing.assert_close(maxsim_matrix(query, query_mask, document, document_mask, chunk), whole)


def test_what_is_kept_for_the_gradient_is_one_number_for_each_query_token_and_document() -> None:
    (query, query_mask), (document, document_mask) = batch(9, 8, 16), batch(10, 32, 64)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        maxsim_matrix(query.requires_grad_(), query_mask, document.requires_grad_(), document_mask, chunk=2**14)
    assert max(kept) <= 32 * 64 * 5  # the documents themselves; the similarities of all tokens are 8 * 16 * 32 * 64 numbers
    assert sum(kept) < 8 * 16 * 32 * 64


def test_scores_are_float32_of_half_precision_vectors_and_under_autocast() -> None:
    query, query_mask = batch(7, 2, 4)
    document, document_mask = batch(8, 3, 5)
    exact = maxsim_matrix(query, query_mask, document, document_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = maxsim_matrix(query, query_mask, document, document_mask)
    torch.testing.assert_close(scores, exact, atol=0, rtol=0)
    rounded = maxsim_matrix(query.bfloat16(), query_mask, document.bfloat16(), document_mask)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, maxsim_matrix(query.bfloat16().float(), query_mask, document.bfloat16().float(), document_mask))
