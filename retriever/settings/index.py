"""The table `[index]` of an experiment file: a class for each kind, which knows that kind's keys and no others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from retriever.settings.section import Fraction, PositiveInt, Settings, check_kind

EXACT = {"dense": "flat", "static": "flat", "image_text": "flat", "sparse": "inverted", "late_interaction": "multivector"}
"""The exact index of each kind of student."""

Quantisation = Literal["none", "fp16", "int8", "rabitq", "pq"]
"""How a vector of D numbers is kept: 4D bytes, 2D, D, about D / 8, or `pq_bytes`."""

_SIZE = re.compile(r"^(\d+(?:\.\d+)?) ?([KMGT]?B)$")


def bytes_of(size: str) -> int:
    """The bytes that "4GB" or "512 MB" stands for; a kilobyte has 1,000.

    Raises:
        ValueError: it is no such size.
    """
    found = _SIZE.match(size.strip().upper())
    if not found:
        raise ValueError(f'"{size}" is no size; write it like "4GB" or "512MB"')
    return int(float(found[1]) * 1000 ** ("B", "KB", "MB", "GB", "TB").index(found[2]))


class IndexSettings(Settings):
    """What every index has, whatever its kind."""

    kind: str
    batch_size: PositiveInt = Field(64, description="texts encoded at a time at most; on a CPU 8 for each thread fill it")


class ApproximateSettings(IndexSettings):
    """What every index has that may miss a document: how many it may miss."""

    recall: Fraction = Field(0.95, description="share of the exact best 10 that is to be found; what is left out below is chosen on a sample to reach it")


class AutoSettings(ApproximateSettings):
    """The kind that serves the collection best within the memory; what was chosen, why, and what it reaches are told and kept."""

    kind: Literal["auto"] = "auto"
    memory: str | None = Field(None, description='that searching and building may take, such as "4GB"; half of the machine\'s when left out')

    @field_validator("memory")
    @classmethod
    def _is_size(cls, memory: str | None) -> str | None:
        if memory is not None:
            bytes_of(memory)
        return memory


class QuantisedSettings(ApproximateSettings):
    """What the indexes of vectors share."""

    quantisation: Quantisation = Field("none", description="how a vector is kept: fp16 halves it, int8 quarters it, rabitq keeps a bit of a number, pq codes")
    pq_bytes: PositiveInt | None = Field(None, description="bytes of a pq code; a sixteenth of the dimensions' number when left out")
    refine: PositiveInt | None = Field(
        None, description="so many times the wanted documents are scored again by their full vectors, kept on disk; chosen on a sample when left out, 1 never"
    )

    @model_validator(mode="after")
    def _has_codes(self) -> QuantisedSettings:
        if self.pq_bytes and self.quantisation != "pq":
            raise ValueError(f'pq_bytes is of quantisation = "pq", found "{self.quantisation}". Leave one of them out')
        if self.refine and self.refine > 1 and self.quantisation == "none":
            raise ValueError('refine is of a quantisation; found "none", whose scores are exact already. Leave it out')
        return self


class FlatSettings(QuantisedSettings):
    """Every document's vector is compared: exact, unless quantised."""

    kind: Literal["flat"] = "flat"


class IvfSettings(QuantisedSettings):
    """Vectors in lists around centroids, of which the nearest are read."""

    kind: Literal["ivf"] = "ivf"
    lists: PositiveInt | None = Field(None, description="centroids; about 4 times the root of the documents when left out")
    probes: PositiveInt | None = Field(None, description="lists read for a query; chosen on a sample when left out")


class HnswSettings(QuantisedSettings):
    """A graph of near vectors, walked from far to near (Malkov and Yashunin 2018)."""

    kind: Literal["hnsw"] = "hnsw"
    quantisation: Literal["none", "fp16", "int8"] = Field("none", description="how a vector is kept: fp16 halves it, int8 quarters it")
    neighbours: PositiveInt = Field(32, description="edges of a vector: memory, and recall")
    ef_construction: PositiveInt = Field(100, description="candidates when a vector is put in: building time, and recall")
    ef_search: PositiveInt | None = Field(None, description="candidates when a query walks; chosen on a sample when left out")


class InvertedSettings(IndexSettings):
    """Sparse vectors, every document that shares a term scored: exact."""

    kind: Literal["inverted"] = "inverted"
    quantised: bool = Field(False, description="a value is kept in a byte: 5 bytes an entry and not 8, and the scores are those of the rounded values")


class SeismicSettings(ApproximateSettings):
    """Sparse vectors in blocks of each term's postings, skipped by their summaries (Bruch et al. 2024)."""

    kind: Literal["seismic"] = "seismic"
    postings: PositiveInt | None = Field(None, description="kept of a term on average: a tenth of what it has, or as many as reach the recall, when left out")
    query_cut: PositiveInt | None = Field(None, description="heaviest terms of a query whose blocks are looked at; chosen on a sample when left out")
    heap_factor: float | None = Field(None, gt=0, le=1, description="blocks below this share of the least kept score are skipped; chosen when left out")


class MultiVectorSettings(IndexSettings):
    """A vector for each token, every document scored by MaxSim: exact."""

    kind: Literal["multivector"] = "multivector"


class TokenClustersSettings(ApproximateSettings):
    """A vector for each token as its nearest centroid and a coarse residual; MaxSim for documents near the query's tokens alone."""

    kind: Literal["token_clusters"] = "token_clusters"
    bits: Literal[1, 2, 4] = Field(2, description="of each dimension of a token's residual; 4 where rounding to 2 loses more than recall allows")
    centroids: PositiveInt | None = Field(None, description="of the token vectors; about 16 times the root of their number when left out")
    probes: PositiveInt | None = Field(None, description="centroids looked at for each token of a query; chosen on a sample when left out")
    candidates: PositiveInt | None = Field(None, description="documents scored by all their tokens' vectors for a query; chosen on a sample when left out")


class PrivateIndexSettings(IndexSettings):
    """An index of the user's own: a module named "package.module" with the functions `build` and `open_index`."""

    options: dict[str, Any] = Field(default={}, description="handed to the module as they stand")

    @model_validator(mode="before")
    @classmethod
    def _is_module(cls, values: Any) -> Any:
        return check_kind(values, INDEX_KINDS)


INDEX_KINDS: dict[str, type[IndexSettings]] = {
    "auto": AutoSettings,
    "flat": FlatSettings,
    "ivf": IvfSettings,
    "hnsw": HnswSettings,
    "inverted": InvertedSettings,
    "seismic": SeismicSettings,
    "multivector": MultiVectorSettings,
    "token_clusters": TokenClustersSettings,
}

STUDENTS_OF = {
    "auto": ("dense", "static", "image_text", "sparse", "late_interaction"),
    **dict.fromkeys(("flat", "ivf", "hnsw"), ("dense", "static", "image_text")),
    **dict.fromkeys(("inverted", "seismic"), ("sparse",)),
    **dict.fromkeys(("multivector", "token_clusters"), ("late_interaction",)),
}
"""The kinds of student whose encodings each kind of index takes."""


def _kind_of(values: Any) -> str:
    kind = values.get("kind", "auto") if isinstance(values, Mapping) else getattr(values, "kind", None)
    return kind if kind in INDEX_KINDS else "private"


AnyIndexSettings = Annotated[
    Annotated[AutoSettings, Tag("auto")]
    | Annotated[FlatSettings, Tag("flat")]
    | Annotated[IvfSettings, Tag("ivf")]
    | Annotated[HnswSettings, Tag("hnsw")]
    | Annotated[InvertedSettings, Tag("inverted")]
    | Annotated[SeismicSettings, Tag("seismic")]
    | Annotated[MultiVectorSettings, Tag("multivector")]
    | Annotated[TokenClustersSettings, Tag("token_clusters")]
    | Annotated[PrivateIndexSettings, Tag("private")],
    Discriminator(_kind_of),
]
"""The table `[index]`, checked by the class of its kind."""
