"""The section [training] of an experiment file: losses, lists, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from retriever.settings.section import Fraction, NumberOrAuto, PositiveInt, Settings, nearest

LOSSES = (
    *("margin_mse", "margin_mse_all_pairs", "pointwise_mse", "kl_divergence", "standardised_kl", "dynamic_contrastive"),
    *("ranknet", "lambda_loss", "list_mle", "partial_ranking", "adr_mse"),
    *("contrastive", "contrastive_four_ways", "in_batch_similarity"),
    *("vector_mse", "vector_distance", "vector_cosine", "gram", "order_hinge"),
    "reinforced",
)


def check_losses(losses: Mapping[str, float]) -> None:
    """Sees to it that a weighted sum of losses is one.

    Raises:
        ValueError: a loss is unknown, a weight is negative, or none is above 0.
    """
    for name, weight in losses.items():
        if name not in LOSSES:
            raise ValueError(f'unknown loss "{name}"{nearest(name, LOSSES)}')
        if weight < 0:
            raise ValueError(f"the weight of {name} is {weight}, it must not be negative")
    if not any(losses.values()):
        raise ValueError(f"at least one weight must be above 0; known losses are {', '.join(LOSSES)}")


class LoraSettings(Settings):
    """Low-rank adapters, which are trained instead of the transformer's own weights."""

    rank: PositiveInt = 16
    alpha: PositiveInt = Field(32, description="alpha / rank multiplies what the adapters add")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapters' input in training")
    modules: tuple[str, ...] | None = Field(
        None, strict=False, min_length=1, description='linear layers that get an adapter, such as ["query", "value"]; all of the transformer when left out'
    )


class QueueSettings(Settings):
    """Documents of past batches as negatives, as a slowly following copy of the student encoded them."""

    size: PositiveInt = Field(4096, description="documents kept; a document stands there once, as it was encoded last")
    momentum: float = Field(0.995, ge=0, lt=1, description="the copy's weights: so much of their own and the rest of the student's, at every step")
    hardest: PositiveInt = Field(16, description="of those kept that the teacher scored for a query, so many that the student likes best join its list")


class TrainingSettings(Settings):
    """How the student learns from the scores."""

    documents_per_query: int = Field(8, ge=2, description="K: a positive and K - 1 others")
    epochs: PositiveInt = Field(2, description="times that each train query teaches")
    batch_size: PositiveInt = Field(16, description="lists of documents that a step learns from")
    learning_rate: float = Field(2e-5, gt=0, description="at its highest, after the warmup")
    projection_learning_rate: float | None = Field(
        None, gt=0, description="of linear layers after a student's transformers, and of a learned scale; learning_rate when left out"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises; it falls in the others")
    max_length: PositiveInt | None = Field(None, description="tokens read of a text in training; the student's when left out")
    losses: dict[str, float] = Field(default={"margin_mse": 1.0, "contrastive": 0.2}, description="weight of each loss; docs/training.md says what each learns")
    student_scale: float = Field(20.0, gt=0, description="factor that turns a cosine into a logit")
    learn_scale: bool = Field(False, description="student_scale is where a learned factor starts, which all losses share; 100 at most")
    teacher_scale: NumberOrAuto = Field(
        "auto",
        description="multiplies the teacher's scores in margin_mse, margin_mse_all_pairs and pointwise_mse; found as teacher_temperature is when left out",
    )
    teacher_temperature: NumberOrAuto = Field(
        "auto",
        description="divides the teacher's scores in kl_divergence and dynamic_contrastive; found from how sure the teacher is of its lists when left out",
    )
    vectors_from: str | None = Field(None, description="the embedding teacher whose vectors such losses as gram compare with; the first one when left out")
    in_batch_temperature: float = Field(0.05, gt=0, description="divides the similarities of the teacher's vectors in in_batch_similarity")
    lambda_mu: float = Field(10.0, ge=0, description="lambda_loss: weight of NDCG-Loss2 beside LambdaRank; 0 is LambdaRank alone")
    lambda_highest_grade: float = Field(4.0, gt=0, description="lambda_loss: grade of the teacher's best document; that of its worst is 0")
    partial_ranking_in_batch: bool = Field(True, description="partial_ranking: the batch's sure negatives stand below all candidates")
    adr_alpha: float = Field(1.0, gt=0, description="adr_mse: how sharply the student's scores become ranks")
    partial_ranking_top: PositiveInt = Field(16, description="partial_ranking: the student learns the order of the teacher's best so many candidates")
    partial_ranking_lowest_score: float | None = Field(None, description="partial_ranking: and of those only that the teacher scores so high, in its unit")
    partial_ranking_margin: float | None = Field(None, ge=0, description="partial_ranking: and of those only at most this far below the positive")
    partial_ranking_above_positive: Literal["keep", "drop"] = Field("keep", description="partial_ranking: candidates that the teacher puts above the positive")
    partial_ranking_per: Literal["choice", "query"] = Field("choice", description="partial_ranking: mean over all places that are ordered, or over queries")
    reinforced: Path | None = Field(
        None, strict=False, description="reinforced: folder of a reinforced dataset; when left out, the experiment's own, which is made when it is needed"
    )
    order_margin: float = Field(0.015, gt=0, description="order_hinge: by how much the student's cosines keep the teacher's order")
    negative_depth: PositiveInt = Field(30, description="negatives are drawn from this many of the teacher's best")
    sampling: Literal["random", "stratified"] = Field(
        "random", description='"stratified": one negative from each of K - 1 equal stretches of the teacher\'s order'
    )
    false_negatives: Literal["filter", "relative", "threshold", "keep"] = Field(
        "filter",
        description="an unjudged document is no negative when the teacher scores it above the query's lowest positive minus the margin (filter), "
        "minus the margin times that score's size (relative), or above the margin itself (threshold)",
    )
    false_negative_margin: float = Field(0.0, description="in the teacher's unit; a share, such as 0.05, under relative")
    positive_score: Literal["teacher", "best"] = Field(
        "teacher", description='of a judged positive in its list: as the teacher says, or "best", where the teacher prefers others, theirs'
    )
    queue: QueueSettings | None = Field(None, description="negatives beyond the batch: a queue of past documents, encoded by a momentum copy of the student")
    rounds: PositiveInt = Field(1, description="of training; before each further one the new student finds candidates, which the teachers score")
    validation_fraction: Fraction = Field(0.1, description="of the train queries, held out to pick the checkpoint")
    validation_queries: PositiveInt = Field(150, description="at most")
    validation_documents: Literal["any", "new"] = Field(
        "any", description='of held-out queries: "new" ones are relevant to no query that teaches, as where users ask about documents that nobody has judged'
    )
    validation_depth: PositiveInt = Field(20, description="candidates re-ranked per held-out query")
    evaluations_per_epoch: PositiveInt = 1
    matryoshka: tuple[PositiveInt, ...] | None = Field(
        None, strict=False, min_length=1, description="sizes to which vectors may be cut; all are trained at once"
    )
    gradient_cache: bool = Field(False, description="encode every text twice and keep the activations of a few: large batches in little memory")
    lora: LoraSettings | None = Field(None, description="train low-rank adapters alone and merge them into the model at the end; extra [lora]")
    frozen_layers: PositiveInt | None = Field(
        None, description="lower layers that do not learn, nor do the embeddings; what they make of a text, without dropout, is computed once and kept on disk"
    )
    checkpoint_steps: PositiveInt = Field(50, description="what a stop costs at most")
    patience: PositiveInt | None = Field(None, description="validations without a gain after which training ends; never before its last step when left out")
    tensorboard: bool = Field(False, description="write event files for TensorBoard beside the curve; extra [tensorboard]")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of matrix products in training; auto is bf16 where the processor multiplies it; fp16 is for GPUs that do not"
    )

    @model_validator(mode="after")
    def _frozen_layers(self) -> TrainingSettings:
        if self.frozen_layers and self.lora:
            raise ValueError("frozen_layers leaves the upper layers to learn, lora leaves adapters of all layers; take one of the two")
        return self

    @model_validator(mode="after")
    def _best_of_list(self) -> TrainingSettings:
        if self.queue and self.positive_score == "best":
            raise ValueError('positive_score = "best" is the best of the documents that were drawn, and the queue adds others later; take one of the two')
        return self

    @field_validator("losses")
    @classmethod
    def _known_losses(cls, losses: dict[str, float]) -> dict[str, float]:
        check_losses(losses)
        return losses
