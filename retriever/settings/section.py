"""What every section of the experiment file shares."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def _number_or_auto(value: Any) -> Any:
    """The value, where it is one: a union's own refusal would name its first branch alone."""
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0):
        return value
    raise ValueError(f'must be a number greater than 0, or "auto", found {value!r:.80}')


NumberOrAuto = Annotated[float | Literal["auto"], BeforeValidator(_number_or_auto)]
"""A number that is found from the data where nobody gives one."""


def check_kind(values: Any, known: Mapping[str, Any]) -> Any:
    """What a table of an own kind, a module named "package.module", was given, as it is.

    Raises:
        ValueError: its kind has no dot, so that it is a known one misspelt.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if isinstance(kind, str) and "." not in kind:
        near = difflib.get_close_matches(kind, known, n=1)
        advice = f'did you mean "{near[0]}"?' if near else f'known are {", ".join(known)}, or your own as "package.module"'
        raise ValueError(f'unknown kind "{kind}"; {advice}')
    return values


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message on an unknown word: the known one that is most like it, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f', did you mean "{near[0]}"?' if near else f"; known are {', '.join(known)}"


class Settings(BaseModel):
    """A section of the experiment file: frozen, unknown keys refused, no value taken for one of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
