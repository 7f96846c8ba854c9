"""The text in what a language model answers: without what introduces it, and whether it is one at all."""

from __future__ import annotations

import re

_LABEL = r"(?:question|query|keywords?|answer|output|search|rewrite|rewritten|standalone|[qa])"
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok|yes)(?:\s*[:!.,]\s*|\s+(?=here\b)))?"
    r"(?:here(?:'s| is| are)\b[^:\n]{0,80}:\s*)?"
    r"(?:(?:the |a |my )?(?:user's )?(?:search |possible |generated |rewritten |standalone |last )*"
    + _LABEL
    + r"\s*(?:\d+\s*|\b(?:for|about|of)\b[^:\n]{0,80})?:\s*)?",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^(?:[-*•#>]+|\(?\d{1,2}[.)])\s+")
_QUOTES = "\"'`*_“”\u2018\u2019«» \t"
_REFUSAL = re.compile(
    r"^(?:i(?:'m| am)? (?:sorry|unable|afraid)|sorry\b|as an? (?:ai|language model)|i (?:can(?:'t|not)|could not|do(?:n't| not) have|won't)\b)", re.IGNORECASE
)
_CONTROL = re.compile(r"<\||\|>|</?s>|\{\w*\}|\[(?:insert|your|query|question|document)\b|```|�", re.IGNORECASE)
_REPEATED = re.compile(r"\b(\w+(?:\W+\w+){0,7})(?:\W+\1\b){2,}", re.IGNORECASE)


def cleaned(raw: str) -> str:
    """The first line with words of an answer, without what introduces it, bullets and quotation marks.

    "Sure, here is a question:" alone is no text: the next line is.
    """
    for line in raw.splitlines():
        text = line.strip()
        before = None
        while text != before:
            before = text
            text = _PREAMBLE.sub("", _BULLET.sub("", text.strip(_QUOTES)), count=1).strip(_QUOTES)
        if words(text):
            return " ".join(text.split())
    return ""


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+(?:['\u2019]\w+)*", text.lower())


def is_refusal(text: str) -> bool:
    """Whether the model said that it will not, or cannot, do what it was asked for."""
    return bool(_REFUSAL.match(text))


def is_broken(text: str) -> bool:
    """Whether the text shows what no person types: control tokens, places to be filled, the same words three times in a row."""
    return bool(_CONTROL.search(text) or _REPEATED.search(text))
