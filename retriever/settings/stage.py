"""The tables `[[stage]]` of an experiment file: a search in several stages, each cheaper for a document than the next one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retriever.settings.section import PositiveInt, Settings

Fusion = Literal["weighted", "z_score", "reciprocal_rank"]

NAMED_RANKERS = ("bm25", "student", "teacher")
"""What a stage may name beside folders."""


class StageSettings(Settings):
    """One stage: the first one retrieves, the others score again what the stage before keeps."""

    by: tuple[str, ...] = Field(
        strict=False,
        min_length=1,
        description='"bm25", "student", the folder of another experiment, or after the first stage "teacher"; several are fused',
    )
    keep: PositiveInt = Field(description="documents of each query that it hands on, or shows if it is the last")
    fusion: Fusion = Field(
        "weighted", description="of several: a mean of z-scores with weights fitted on held-out train queries, with equal ones, or the sum of 1 / (60 + rank)"
    )


def check_stages(stages: tuple[StageSettings, ...], reranks: bool) -> None:
    """Refuses stages that cannot follow each other.

    Args:
        stages: in their order.
        reranks: whether the experiment's student reads query and document together, so that it cannot retrieve.

    Raises:
        ValueError: which stage, and why.
    """
    for number, stage in enumerate(stages):
        if number == 0:
            alone = [name for name in stage.by if name == "teacher" or (name == "student" and reranks)]
            if alone:
                raise ValueError(f'stage.0.by: "{alone[0]}" retrieves nothing, it scores what is found. Put it into a later stage')
        elif stage.keep > stages[number - 1].keep:
            raise ValueError(f"stage.{number}.keep: {stage.keep} are more than the {stages[number - 1].keep} that the stage before hands on")
        if len(set(stage.by)) < len(stage.by):
            raise ValueError(f"stage.{number}.by: one stands twice in {', '.join(stage.by)}. Take it out")
