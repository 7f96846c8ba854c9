"""What the tests of the page search in: small indexes of several kinds of students, and a browser."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from retriever.collection import write_collection
from retriever.conversations.chat import read_as
from retriever.encodings import encode_collection
from retriever.index.changes import publish
from retriever.plugins import load_kind
from retriever.ragged_encodings import encode_ragged
from retriever.settings.index import AutoSettings
from retriever.settings.student import STUDENT_KINDS
from retriever.types import Document
from tests.colour_student import COLOURS, ColourStudent, save_squares

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SHOTS = "RETRIEVER_SCREENSHOTS"
"""The variable that names the folder where screenshots are kept; pytest's own, where it names none."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
REPORT = '<!doctype html><style>p{color:rgb(0,128,0)}</style><p style="margin:0">means</p><script>document.querySelector("p").remove()</script>'
HOSTILE = '<img src="x" onerror="document.title=1"><b>bold</b> & <script>document.title=2</script>'

DOCUMENTS = [
    Document("owl", "a bird that hunts mice at night. It has large eyes. It flies without a sound.", "Owl", fields={"kind": "animal", "legs": 2}),
    Document("beaver", "a rodent that builds dams of branches. It fells trees.", "Beaver", fields={"kind": "animal", "legs": 4, "topics": ["wood", "water"]}),
    Document("saw", "a tool that cuts wood", "Saw", fields={"kind": "tool", "sharp": True, "topics": ["wood"]}),
    Document("hammer/claw", "a tool that drives nails into wood", "Hammer", fields={"kind": "tool", "sharp": False}),
    Document("bee", "an insect that makes honey", "Bee", fields={"kind": "animal", "legs": 6}),
    Document("cat", "an animal that hunts mice and purrs", "Cat", fields={"kind": "animal", "legs": 4}),
    Document("plane", "a tool that makes wood smooth", "Plane", fields={"kind": "tool", "sharp": True}),
    Document("hostile", f"an animal {HOSTILE}", HOSTILE, fields={"kind": "text"}),
    *(Document(f"n{number}", f"an animal and a tool of number {number}", f"Number {number}") for number in range(8)),
]


def indexes(folder: Path, encoder: Path) -> list[str]:
    """A dense index with a report beside it, a sparse one of the same documents, and one of coloured squares with captions; as they are named to a server."""
    (folder / "notes" / "evaluate").mkdir(parents=True)
    for name, text in (("report.html", REPORT), ("report.json", "{}")):
        (folder / "notes" / "evaluate" / name).write_text(text)
    return [
        f"notes={_texts(folder / 'notes', 'dense', encoder)}",
        f"words={_texts(folder / 'words', 'sparse', encoder)}",
        f"squares={squares_index(folder / 'squares')}",
    ]


def _texts(folder: Path, kind: str, encoder: Path) -> Path:
    """By a student that reads all of a conversation."""
    students = load_kind("students", kind, "student")
    student = students.load(STUDENT_KINDS[kind](kind=kind, model=str(encoder)))
    read_as(student, "all", kind)
    student.save(folder / "student")
    return _published(folder, students.load_folder(folder / "student"), DOCUMENTS)


def squares_index(folder: Path) -> Path:
    """Of coloured squares and their captions; its student reads conversations in its own way, the last turn alone."""
    files = save_squares(folder / "images")
    images = [Document(f"{colour}.png", "", image=files[colour], fields={"kind": "image"}) for colour in COLOURS]
    captions = [Document(f"caption/{colour}", f"a {colour} square", fields={"kind": "caption"}) for colour in COLOURS]
    (folder / "student").mkdir()
    return _published(folder, ColourStudent(), [*images, *captions])


def _published(folder: Path, student: Any, documents: list[Document]) -> Path:
    collection = write_collection(folder / "collection", documents)
    encode: Callable[..., Any] = encode_ragged if hasattr(student, "columns") else encode_collection
    publish(folder / "index", AutoSettings(), student.kind, folder / "student", student, encode(student, collection, folder / "encodings"), collection)
    return folder / "index"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that runs while the block does; tests are skipped where there is none."""
    reason = "the page is tested in a browser: pip install playwright, and Chromium (on Debian: apt install chromium)"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    with playwright.sync_playwright() as started:
        found = next(filter(None, map(shutil.which, BROWSERS)), None) or started.chromium.executable_path
        if not Path(found).exists():
            pytest.skip(f"no Chromium was found; {reason}")
        try:
            browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"{found} does not start ({str(error).splitlines()[0]}); {reason}")
        yield browser
        browser.close()


def until(page: Page, condition: str) -> None:
    """Waits for it; the policy of the page forbids a browser to do so by itself for a text of JavaScript."""
    deadline = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


class Visit:
    """A visit to the page: what the browser complained of, and whom it asked."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(**{"viewport": {"width": 1_100, "height": 800}, **context})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str = "") -> Page:
        """The page, when it has found what an address asks for."""
        self.page.goto(f"{self.url}/{address}")
        until(self.page, "document.getElementById('status').textContent !== ''")
        return self.page

    def ids(self, side: int = 0) -> list[str]:
        """Of the cards, from top to bottom."""
        cards = self.page.locator(f"[data-side='{side}'] .card")
        return [str(card.get_attribute("data-id")) for card in cards.all()]

    def shoot(self, folder: Path, name: str) -> None:
        """Keeps a screenshot."""
        kept = Path(os.environ.get(SHOTS) or folder)
        kept.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=kept / f"{name}.png")

    def end(self) -> None:
        """Closes, and complains of what the browser did."""
        self.context.close()
        assert self.complaints == []
        assert [url for url in self.asked if not url.startswith((f"{self.url}/", f"blob:{self.url}/"))] == []


@contextmanager
def visits(browser: Browser, url: str) -> Iterator[Callable[..., Visit]]:
    """Begins visits, none of which may end with a complaint of the browser or a request to somebody else."""
    begun: list[Visit] = []

    def begin(**context: Any) -> Visit:
        begun.append(Visit(browser, url, **context))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()
