"""What a language model is told to rewrite a turn: a prompt for each form, with examples, and the text in its answer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from retriever.conversations.reading import is_user
from retriever.engines import Engine, Prompt
from retriever.files import fingerprint
from retriever.settings.rewriter import SHOTS, RewriterSettings
from retriever.types import Turn
from retriever.writing.text import cleaned, is_broken, is_refusal, words

STATUSES = ("written", "alone", "empty", "refusal", "broken", "instruction", "example", "too_long")
"""Of a rewrite. "alone" is a first turn, which nobody was asked about; after all others but "written" the utterance stands in its place."""

LONGEST = 4
"""Words of an answer for each token that it has room for; more of them come from a server that keeps to no limit."""

UTTERANCE = "{utterance}"
"""Where the last turn stands in a prompt."""

_PLACE = re.compile(r"\{(history|utterance)\}")
_SPEAKER = re.compile(r"^user:\s*", re.IGNORECASE)
_SENTENCES = re.compile(r".*[.!?](?=\s|$)", re.DOTALL)
_ANSWER = re.compile(r"\s*(?:\b|[*#\"]+)(?:possible |hypothetical )?(?:answer|response)\s*:[*]*\s*", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Shot:
    """An example: a conversation, and what is written of its last turn in each form."""

    history: tuple[Turn, ...]
    utterance: str
    written: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class RewritingPrompt:
    """What is said before an answer.

    Attributes:
        text: what the user says, with {history} and {utterance}; of a model without a chat template, each example and the end of the prompt.
        system: the system's turn of a chat; "" for none.
        shots: earlier turns, utterance and answer of each example.
        chat: whether it goes into the model's chat template, where there is one.
        stop: texts that end the answer of a model without a chat template.
    """

    text: str
    system: str = ""
    shots: tuple[tuple[str, str, str], ...] = ()
    chat: bool = True
    stop: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that change with any of its words."""
        return fingerprint(dataclasses.asdict(self))

    def fill(self, engine: Engine, history: str, utterance: str) -> Prompt:
        """The prompt for a turn; in a chat the examples are turns that were answered before."""
        asked = _filled(self.text, history, utterance)
        if self.chat:
            turns = [{"role": "system", "content": self.system}] if self.system else []
            for earlier, said, answer in self.shots:
                turns += [{"role": "user", "content": _filled(self.text, earlier, said)}, {"role": "assistant", "content": answer}]
            prompt = engine.chat([*turns, {"role": "user", "content": asked}])
            if prompt is not None:
                return prompt
        shown = "".join(f"{_filled(self.text, earlier, said)} {answer}\n\n" for earlier, said, answer in self.shots)
        return shown + asked

    def is_chat(self, engine: Engine) -> bool:
        """Whether the engine puts the prompt into a chat template."""
        return self.chat and engine.chat([{"role": "user", "content": "x"}]) is not None

    def instructions(self, utterance: str) -> Iterator[str]:
        """The system's turn and the prompt without earlier turns, whole and by lines and sentences."""
        for part in (self.system, _filled(self.text, "", utterance)):
            yield part
            yield from re.split(r"(?<=[.!?:])\s+|\n", part)


def line_of(turn: Turn) -> str:
    """A turn on one line, after its speaker."""
    return f"{'User' if is_user(turn) else 'Agent'}: {' '.join(turn.text.split())}"


def _said(*texts: str) -> tuple[Turn, ...]:
    """Turns of the user and the agent, in turn."""
    return tuple(Turn("agent" if place % 2 else "user", text) for place, text in enumerate(texts))


EXAMPLES = (
    Shot(
        _said("Which trains go from Lyon to Turin?", "There are three direct trains a day."),
        "Do I need a visa for Turkey?",
        {
            "rewrite": "Do I need a visa for Turkey?",
            "keywords": "Turkey visa requirement",
            "rewrite_and_answer": "Do I need a visa for Turkey?\nAnswer: Citizens of many countries can stay in Turkey for 90 days without a visa.",
        },
    ),
    Shot(
        _said("How tall is Mount Kenya?", "It is 5,199 metres high, which makes it the second highest mountain in Africa."),
        "And when was it first climbed?",
        {
            "rewrite": "When was Mount Kenya first climbed?",
            "keywords": "Mount Kenya first ascent year",
            "rewrite_and_answer": "When was Mount Kenya first climbed?\nAnswer: Mount Kenya was first climbed in 1899 by Halford Mackinder and two guides.",
        },
    ),
    Shot(
        _said("My bread does not rise.", "How old is your yeast?", "Two years.", "That is too old. Buy new yeast."),
        "What else could be the reason?",
        {
            "rewrite": "What are the reasons why bread does not rise, besides old yeast?",
            "keywords": "bread dough does not rise reasons",
            "rewrite_and_answer": "What are the reasons why bread does not rise, besides old yeast?\n"
            "Answer: Bread does not rise either when the dough is too cold, has too much salt, or was not kneaded long enough.",
        },
    ),
    Shot(
        _said("What does the Basic plan of CityBike cost?", "The Basic plan of CityBike costs 9 euros a month."),
        "Cancellation",
        {
            "rewrite": "How can the Basic plan of CityBike be cancelled?",
            "keywords": "CityBike Basic plan cancellation",
            "rewrite_and_answer": "How can the Basic plan of CityBike be cancelled?\n"
            "Answer: The Basic plan of CityBike can be cancelled in the settings of the account, with effect from the end of the month.",
        },
    ),
    Shot(
        _said("Does the Alpha 6 camera have a flash?", "Yes, the Alpha 6 has a built-in flash."),
        "ok, what about the battery? how long",
        {
            "rewrite": "How long does the battery of the Alpha 6 camera last?",
            "keywords": "Alpha 6 camera battery life",
            "rewrite_and_answer": "How long does the battery of the Alpha 6 camera last?\n"
            "Answer: The battery of the Alpha 6 camera lasts for about 350 pictures or 90 minutes of video.",
        },
    ),
    Shot(
        _said("Does the museum offer guided tours?", "Yes, every Sunday at 11.", "In which languages?", "In English and French."),
        "Price",
        {
            "rewrite": "What is the price of a guided tour of the museum?",
            "keywords": "museum guided tour price",
            "rewrite_and_answer": "What is the price of a guided tour of the museum?\n"
            "Answer: A guided tour of the museum costs 5 euros on top of the ticket; children under 12 pay nothing.",
        },
    ),
    Shot(
        _said("Can students get a discount on the pass?", "Yes. Are you enrolled full time?"),
        "No, only in the evenings",
        {
            "rewrite": "Can evening students, who are not enrolled full time, get a discount on the pass?",
            "keywords": "pass discount part-time evening students",
            "rewrite_and_answer": "Can evening students, who are not enrolled full time, get a discount on the pass?\n"
            "Answer: The discount on the pass is for full-time students; evening students pay the full price.",
        },
    ),
)
"""Of the prompts of all forms, in the order in which they are taken."""

PRESETS = {
    "rewrite": RewritingPrompt(
        '{history}\nUser: {utterance}\n\nRewrite "{utterance}" as a complete question:',
        system="You rewrite the user's last question so that it can be understood without the conversation. "
        "You answer with the rewritten question and nothing else.",
        stop=("\n",),
    ),
    "keywords": RewritingPrompt(
        '{history}\nUser: {utterance}\n\nKeywords of "{utterance}":',
        system="You write the keywords that find an answer to the user's last question in a search engine that does not see the conversation. "
        "You answer with the keywords on one line and nothing else.",
        stop=("\n",),
    ),
    "rewrite_and_answer": RewritingPrompt(
        '{history}\nUser: {utterance}\n\nRewrite "{utterance}" as a complete question, and answer it:',
        system="You rewrite the user's last question so that it can be understood without the conversation, and answer it in one sentence. "
        "You write the rewritten question on one line and the answer on the next.",
        stop=("\n\n",),
    ),
}
"""Form -> prompt, without its examples. SmolLM2-135M was the judge of the words: short prompts with the utterance at their end lead it astray least."""


def prompt_of(settings: RewriterSettings) -> RewritingPrompt:
    """The prompt of a table: its form's with so many examples, or its own, with what the table sets otherwise."""
    prompt = PRESETS.get(settings.form) or RewritingPrompt(settings.form)
    if settings.form in PRESETS:
        chosen = EXAMPLES[: SHOTS if settings.shots is None else settings.shots]
        shots = tuple(("\n".join(map(line_of, shot.history)), shot.utterance, shot.written[settings.form]) for shot in chosen)
        prompt = dataclasses.replace(prompt, shots=shots)
    system = prompt.system if settings.system is None else settings.system
    return dataclasses.replace(prompt, system=system, chat=settings.chat is not False)


def read_rewrite(raw: str, utterance: str, form: str, prompt: RewritingPrompt, answer_tokens: int) -> tuple[str, str]:
    """The rewrite in an answer, and its status; the utterance, where the answer is none.

    Args:
        raw: what the model wrote.
        utterance: what was said.
        form: of the table.
        prompt: that it was asked with.
        answer_tokens: that it had room for.
    """
    question, guess = _parts(raw) if form == "rewrite_and_answer" else (raw, "")
    text, guess = _SPEAKER.sub("", cleaned(question)), "" if is_broken(guess) else guess
    said, unchanged = words(text), words(text) == words(utterance)
    failed = {
        "empty": not said,
        "refusal": is_refusal(text) and not is_refusal(utterance),
        "broken": is_broken(text) and not is_broken(utterance),
        "instruction": not unchanged and any(said == words(one) for one in prompt.instructions(utterance)),
        "example": not unchanged and any(said == words(_parts(answer)[0]) for _, _, answer in prompt.shots),
        "too_long": len(said) + len(words(guess)) > LONGEST * answer_tokens,
    }
    status = next((fault for fault, found in failed.items() if found), "written")
    return (" ".join(f"{text} {guess}".split()), status) if status == "written" else (utterance, status)


def _parts(raw: str) -> tuple[str, str]:
    """A question and the answer after it, behind its label or else on the lines below, up to an empty line and the last whole sentence."""
    labelled = _ANSWER.split(raw, maxsplit=1)
    if len(labelled) == 2 and words(labelled[0]):
        question, answer = labelled
    else:
        first = next((number for number, line in enumerate(raw.splitlines()) if words(cleaned(line))), 0)
        question, answer = ("\n".join(part) for part in (raw.splitlines()[: first + 1], raw.splitlines()[first + 1 :]))
    answer = answer.strip().partition("\n\n")[0]
    whole = _SENTENCES.match(answer)
    return question, whole[0] if whole else answer


def _filled(text: str, history: str, utterance: str) -> str:
    """The text with its places filled in one go: braces in a turn stay what they are."""
    values = {"history": history, "utterance": utterance}
    return _PLACE.sub(lambda place: values[place[1]], text)
