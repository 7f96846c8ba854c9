"""The sections [collection] and [candidates] of an experiment file: what is searched, what is asked, and which pairs teachers score."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from retriever.conversations.reading import READINGS, Reading
from retriever.settings.section import PositiveInt, Settings


class CollectionSettings(Settings):
    """Where documents, queries and qrels come from: `path` or `ir_datasets`, one of the two."""

    path: Path | None = Field(None, strict=False, description="folder or file; relative to the experiment file")
    ir_datasets: str | None = Field(None, description='id without the split, such as "beir/scifact"')
    format: str | None = Field(None, description="a reader's name; recognised from the files when left out")
    fields: tuple[str, ...] = Field((), strict=False, description="of a document's record, kept to filter searches by, such as year; those in its metadata too")
    conversation: Reading = Field("last", description="what is read of a turn of a conversation: " + ", ".join((*READINGS, "rewrite or rewrite:NAME")))
    train: str = Field("train", description="split whose queries teach")
    unjudged: bool = Field(False, description="queries that no qrels name teach too, by the teacher's scores alone; its best document stands for the positive")
    folds: int | None = Field(
        None, ge=2, description="train and test are one split, cut into so many parts by conversation: every part is scored by a student of the others"
    )
    test: str = Field("test", description="split that is evaluated, and used for nothing else")
    missing_documents: Literal["error", "ignore"] = Field("error", description="what to do with qrels that name absent documents")

    @model_validator(mode="after")
    def _one_source(self) -> CollectionSettings:
        if (self.path is None) == (self.ir_datasets is None):
            raise ValueError("give either path or ir_datasets")
        if self.train == self.test and not self.folds:
            raise ValueError(
                f'train and test are the same split, "{self.test}": a student must be tested on other queries than it learns from. '
                "Name two splits, or set folds = 5 to let students learn from one part and be tested on the others"
            )
        if self.folds and self.train != self.test:
            raise ValueError(f'folds cuts one split, but train is "{self.train}" and test "{self.test}". Name the same split twice, or leave folds out')
        if self.folds and self.unjudged:
            raise ValueError("folds cuts judged queries, and unjudged takes others. Leave one of the two out")
        return self


class TransferSettings(Settings):
    """Another collection on which the systems are measured; nothing is learned from it."""

    path: Path = Field(strict=False, description="folder or file; relative to the experiment file")
    name: str | None = Field(None, description="as the report calls it; the folder's name when left out")
    test: str = Field("test", description="split that is evaluated")
    format: str | None = Field(None, description="a reader's name; recognised from the files when left out")
    missing_documents: Literal["error", "ignore"] = Field("error", description="what to do with qrels that name absent documents")

    @property
    def label(self) -> str:
        """The name reports use."""
        return self.name or self.path.name


NAMED_SOURCES = ("bm25", "lucene", "student")
"""The sources of candidates that are neither a model nor a file."""


class CandidateSettings(Settings):
    """Which documents a teacher scores for each query."""

    sources: tuple[str, ...] = Field(
        ("bm25",), strict=False, min_length=1, description='"bm25", "lucene" (Pyserini), "student" (the starting checkpoint), a model\'s name or a run\'s file'
    )
    depth: PositiveInt = Field(100, description="documents per query and source")
    reads: tuple[Reading, ...] = Field(
        (),
        strict=False,
        description="readings of conversations with which every source is searched; collection.conversation when left out",
    )
    k1: float = Field(0.9, ge=0, description="BM25's term saturation")
    b: float = Field(0.4, ge=0, le=1, description="BM25's length normalisation")
    language: str = Field("english", description="Snowball stemmer and stop words")
