"""What a captioner is told, and the caption in what it answers."""

from __future__ import annotations

import re

from retriever.writing.text import cleaned, is_broken, is_refusal, words

CHAT_PROMPT = "Write one caption for this image: a single sentence that says what is seen in it. Write the caption and nothing else."
"""For models that chat."""

BLIP_PROMPT = "a picture of"
"""The words that BLIP's captions went on after when it was trained (arXiv:2201.12086)."""

STATUSES = ("written", "empty", "refusal", "blind", "broken", "instruction", "too_long")
"""Of an answer; all but "written" are no captions. "blind" is one that asks where the image is."""

LONGEST = 4
"""Words of an answer for each token that it has room for; more of them come from a server that keeps to no limit."""

_LABEL = re.compile(r"^[\s*_#\"]*(?:the |an? )?(?:image |short |suggested )?(?:caption|description)(?: \d+)?[*_\"]*:[*_\"]*\s*", re.IGNORECASE)
_BLIND = re.compile(
    r"\b(?:no|any) (?:image|picture|photo)\b[^.]{0,20}\b(?:provided|attached|shared|uploaded|visible)\b"
    r"|\bplease (?:provide|upload|share|attach|send)\b"
    r"|\bi(?: can(?:'t|not)| do(?:n't| not)| am unable to|'m unable to|'m not able to| am not able to) (?:actually |currently )?(?:see|view|look at)\b",
    re.IGNORECASE,
)


def read_caption(raw: str, prompt: str, answer_tokens: int) -> tuple[str, str]:
    """The caption in an answer, on one line, and its status; "" where the answer is none.

    Args:
        raw: what the model wrote.
        prompt: that it was asked with.
        answer_tokens: that it had room for.
    """
    text = cleaned(_LABEL.sub("", cleaned(_LABEL.sub("", raw))))
    said = words(text)
    failed = {
        "empty": not said,
        "blind": bool(_BLIND.search(text)),
        "refusal": is_refusal(text),
        "broken": is_broken(text) or text.endswith(":"),  # an introduction whose list is on the next lines
        "instruction": said == words(prompt) or text in CHAT_PROMPT,
        "too_long": len(said) > LONGEST * answer_tokens,
    }
    status = next((fault for fault, found in failed.items() if found), "written")
    return (text, status) if status == "written" else ("", status)
