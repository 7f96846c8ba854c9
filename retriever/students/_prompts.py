"""What a student puts before its texts."""

from __future__ import annotations

from sentence_transformers.base.model import BaseModel

from retriever.settings.student import StudentSettings


def set_prompts(model: BaseModel, settings: StudentSettings) -> None:
    """Puts the prompts of the experiment file into a model, where they are set there."""
    prompts = {"query": settings.query_prompt, "document": settings.document_prompt}
    model.prompts = {**model.prompts, **{task: prompt for task, prompt in prompts.items() if prompt is not None}}
