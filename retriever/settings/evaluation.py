"""The section [evaluation] of an experiment file: what the report measures, and what the student is held against."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from retriever.conversations.reading import Reading
from retriever.settings.section import PositiveInt, Settings
from retriever.settings.training import check_losses

RUNS = ("bm25", "student", "student_before", "hybrid", "hybrid_before", "teacher", "contrastive", "judged", "last_turn", "user_turns", "all_turns", "rewrite")
"""The runs that a report has anyway."""


class ZeroShotSettings(Settings):
    """Classification of the test images by the names that a field of theirs has."""

    field: str = Field(min_length=1, description="of the images, whose values are the names, such as category")
    template: str = Field("{}", description="the text of a name, which stands where {} is, such as an emoji of {}")

    @field_validator("template")
    @classmethod
    def _has_one_place(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError(f'has {{}} where the name stands, once; found "{template}"')
        return template


class EvaluationSettings(Settings):
    """What the report measures."""

    measures: tuple[str, ...] = Field(("nDCG@10", "RR@10", "R@100"), strict=False, min_length=1, description="the first one decides")
    depth: PositiveInt = Field(1000, description="documents kept per query")
    remove_own_document: bool = Field(False, description="leave out documents whose id is the query's, as candidates and as results")
    latency_queries: PositiveInt = 200
    ablation: bool = Field(
        False, description="train once more without the teacher and add the run `contrastive`; with unjudged queries without those, too: `judged`"
    )
    other_losses: dict[str, dict[str, float]] = Field(
        default={}, description="run -> losses: train once more for each, in the same way otherwise, such as { convdr = { vector_mse = 1.0 } }"
    )
    readings: tuple[Reading, ...] | None = Field(
        None, strict=False, description="of conversations, under which the start is measured; last, all and the rewrites that are there when left out"
    )
    by: tuple[str, ...] = Field((), strict=False, description="fields of queries by which results are told apart, such as domain")
    zero_shot: ZeroShotSettings | None = Field(
        None, description='how often students name what is in a test image, such as { field = "category", template = "a photo of {}" }'
    )

    @field_validator("other_losses")
    @classmethod
    def _are_losses(cls, other: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, losses in other.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RUNS:
                raise ValueError(f'"{name}" cannot be a run\'s name: small letters, digits and _, and none of {", ".join(RUNS)}')
            check_losses(losses)
        return other
