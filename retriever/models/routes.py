"""Models that encode queries and documents by modules of their own: taken apart, put together, one side of them frozen."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, cast

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer
from torch import nn
from transformers import PreTrainedModel

from retriever.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

OF_SOME_MODELS = ("truncate_dim", "max_active_dims")
"""What a dense or a sparse model can be made with, beside its modules; None in a plain one."""


def is_routed(model: BaseModel) -> bool:
    """Whether queries go another way through the model than documents: sentence-transformers' Router, by task and not by modality."""
    first = model[0]
    return isinstance(first, Router) and {"query", "document"} <= set(first.sub_modules) and not first.route_mappings


def modules_of(model: BaseModel, task: Literal["query", "document"]) -> list[nn.Module]:
    """The modules that texts of a task go through, in their order."""
    first, *others = model
    return [*cast(Any, first).sub_modules[task], *others] if is_routed(model) else [first, *others]


def readers_of(model: BaseModel) -> list[nn.Module]:
    """The modules that read texts: one, or that of the queries and that of the documents."""
    return list(dict.fromkeys((modules_of(model, "query")[0], modules_of(model, "document")[0])))


def transformers_of(model: BaseModel) -> list[PreTrainedModel]:
    """The transformers that read texts: none, one, or that of the queries and that of the documents."""
    return [reader.auto_model for reader in readers_of(model) if isinstance(reader, Transformer)]


def rebuilt(model: Model, modules: Sequence[nn.Module]) -> Model:
    """A stock model of the same kind with these modules, and everything else as the model has it."""
    given: Any = model
    options = {name: value for name in OF_SOME_MODELS if (value := getattr(model, name, None)) is not None}
    options |= {"similarity_fn_name": given.similarity_fn_name, "prompts": dict(given.prompts), "default_prompt_name": given.default_prompt_name}
    return type(model)(modules=list(modules), device=str(model.device), **options)


def document_model(model: Model) -> Model:
    """The symmetric model that documents are encoded by: the model itself, unless queries go another way; it shares the modules."""
    return rebuilt(model, modules_of(model, "document")) if is_routed(model) else model


def with_frozen_documents(model: Model) -> Model:
    """A model that encodes as this one does, of which only the encoding of queries can learn: a copy of the modules that they go through.

    Documents go through the modules of the model itself, whose weights take no gradients, so that an index made by it serves
    the trained model unchanged (DiSCo, Lupart et al. 2024, arXiv:2410.14609). It is a stock model with a Router.
    """
    router = Router.for_query_document(cast(Any, copy.deepcopy(modules_of(model, "query"))), cast(Any, modules_of(model, "document")))
    routed = rebuilt(model, [router])
    freeze_documents(routed)
    return routed


def freeze_documents(model: BaseModel) -> None:
    """Takes the gradients from all weights that documents are encoded by.

    Raises:
        ConfigError: queries are encoded by some of them too.
    """
    asked, read = ({weight for module in modules_of(model, task) for weight in module.parameters()} for task in ("query", "document"))
    if asked & read:
        raise ConfigError(
            "student.frozen_documents: this model encodes queries and documents by the same weights. Load it with student.frozen_documents = true"
        )
    for weight in read:
        weight.requires_grad_(False)


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """All modules evaluate for as long as the block runs; afterwards each does what it did, for a loaded model has parts that evaluate already."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
