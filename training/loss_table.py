"""Every loss by the name that an experiment file gives it: its function, what it compares, and where its parameters are set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from retriever.settings.training import TrainingSettings
from retriever.training import losses, rank_losses, reinforced_loss, vector_losses

Needs = Literal["target", "batch", "negatives", "four_ways", "teacher_batch", "vectors", "reinforced"]
"""What a loss compares.

- target: the student's scores of a query's own K documents with the target's, [B, K];
- batch: the same, followed in the student's scores and the mask by the batch's sure negatives, [B, K + M];
- negatives: the student's scores of the positive and the batch's sure negatives, [B, U]; no teacher;
- four_ways: what `in_batch.four_ways` makes of the student's scores; no teacher;
- teacher_batch: the student's and the teacher's scores of all documents of the batch, [B, U];
- vectors: the student's and the teacher's vectors of the same n texts, [n, D];
- reinforced: the student's scores of a batch's images and captions, and what teachers want of them, in both directions, [2B, B].
"""


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss as training uses it.

    Attributes:
        function: called with student, teacher, mask and the parameters by name.
        needs: what it compares.
        parameters: the function's parameter -> the key of `TrainingSettings` that sets it.
    """

    function: Callable[..., Tensor]
    needs: Needs = "target"
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def needs_teacher_vectors(self) -> bool:
        """Whether it compares with vectors of a teacher, and not with scores alone."""
        return self.needs in ("vectors", "teacher_batch")

    def arguments(self, settings: TrainingSettings) -> dict[str, Any]:
        """The function's parameters as the experiment sets them."""
        return {name: getattr(settings, key) for name, key in self.parameters.items()}


_SCALED = {"teacher_scale": "teacher_scale"}

LOSS_TABLE: Mapping[str, Loss] = {
    "margin_mse": Loss(losses.margin_mse, parameters=_SCALED),
    "margin_mse_all_pairs": Loss(losses.margin_mse_all_pairs, parameters=_SCALED),
    "pointwise_mse": Loss(losses.pointwise_mse, parameters=_SCALED),
    "kl_divergence": Loss(losses.kl_divergence, parameters={"temperature": "teacher_temperature"}),
    "standardised_kl": Loss(losses.standardised_kl),
    "dynamic_contrastive": Loss(losses.dynamic_contrastive, parameters={"temperature": "teacher_temperature"}),
    "ranknet": Loss(rank_losses.ranknet),
    "lambda_loss": Loss(rank_losses.lambda_loss, parameters={"mu": "lambda_mu", "highest_grade": "lambda_highest_grade"}),
    "list_mle": Loss(rank_losses.list_mle),
    "adr_mse": Loss(rank_losses.adr_mse, parameters={"alpha": "adr_alpha"}),
    "partial_ranking": Loss(
        rank_losses.partial_ranking,
        "batch",
        {name: f"partial_ranking_{name}" for name in ("top", "lowest_score", "margin", "above_positive", "per", "in_batch")},
    ),
    "contrastive": Loss(losses.contrastive, "negatives"),
    "contrastive_four_ways": Loss(losses.contrastive, "four_ways"),
    "in_batch_similarity": Loss(losses.in_batch_similarity, "teacher_batch", {"temperature": "in_batch_temperature"}),
    "vector_mse": Loss(vector_losses.vector_mse, "vectors"),
    "vector_distance": Loss(vector_losses.vector_distance, "vectors"),
    "vector_cosine": Loss(vector_losses.vector_cosine, "vectors"),
    "gram": Loss(vector_losses.gram, "vectors"),
    "order_hinge": Loss(vector_losses.order_hinge, "vectors", {"margin": "order_margin"}),
    "reinforced": Loss(reinforced_loss.reinforced, "reinforced"),
}
