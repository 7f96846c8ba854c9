"""Searches with an image on the page at `/`, in a real Chromium: it finds what the interface finds, is shrunk before it is sent, and is taken away again."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from PIL.ExifTags import Base

from retriever.types import Document
from tests.image_text_material import COLOURS, index_squares
from tests.page_material import Visit, chromium, until, visits
from tests.serving_material import Running, running
from tests.test_images import encoded, noise
from tests.test_index import built

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LIMITS = {"body_bytes": 200_000, "image_pixels": 100_000}
SQUARES, BESIDE = "#in=squares", "#in=squares&beside=texts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """Of a dozen coloured squares and their captions: `squares/images`, and `index`."""
    return index_squares(tmp_path_factory.mktemp("squares"), encoder_folder)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Iterator[Running]:
    """A server of an index whose student reads texts alone, and of the squares."""
    texts = built(tmp_path_factory.mktemp("texts"), "dense", encoder_folder, [Document("owl", "a bird"), Document("lime", "a square in lime")])
    with running(tmp_path_factory.mktemp("state"), f"texts={texts}", f"squares={folder / 'index'}", limits=LIMITS) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser: Browser, server: Running) -> Iterator[Callable[..., Visit]]:
    with visits(browser, server.url) as begin:
        yield begin


@pytest.fixture
def red(folder: Path) -> Path:
    return folder / "squares" / "images" / "red.png"


def choose(page: Page, file: Path) -> None:
    """As people do it: a press on the button, and a file in the window that opens."""
    with page.expect_file_chooser() as opened:
        page.get_by_role("button", name="Image", exact=True).click()
    opened.value.set_files(file)


def told(page: Page, beginning: str) -> None:
    page.locator("#status", has_text=re.compile(f"^{re.escape(beginning)}")).wait_for()


def sent(page: Page, file: Path) -> tuple[Image.Image, int]:
    """The image that is sent when a file is chosen, and the bytes of the request."""
    with page.expect_request("**/v1/search") as asked:
        choose(page, file)
    body = asked.value.post_data_json
    assert isinstance(body, dict)
    with Image.open(io.BytesIO(base64.b64decode(body["image"].partition(",")[2]))) as image:
        image.load()
    return image, len(asked.value.post_data_buffer or b"")


def found_for(server: Running, file: Path, k: int = 10) -> list[str]:
    image = base64.b64encode(file.read_bytes()).decode()
    return [result["id"] for result in server.post("/v1/search", {"image": image, "index": "squares", "k": k}).json["results"]]


def saved(path: Path, image: Image.Image, **more: Any) -> Path:
    image.save(path, **more)
    return path


def test_a_file_that_is_chosen_finds_what_the_interface_finds(visit: Callable[..., Visit], server: Running, red: Path) -> None:
    one = visit()
    page = one.open(SQUARES)
    choose(page, red)
    told(page, "10 results for the image red.png in ")
    assert one.ids() == found_for(server, red)
    until(page, "document.querySelector('#chosen img').naturalWidth > 0")
    assert page.get_by_alt_text("Searched with: red.png").is_visible()
    assert (page.url, page.title()) == (f"{server.url}/{SQUARES}", "red.png \N{EN DASH} retriever")
    assert page.locator(".ask-why, .relevant, .irrelevant").count() == 0  # they are of texts
    page.click("#more")
    told(page, "20 results for the image red.png in ")
    assert one.ids() == found_for(server, red, 20)


def test_an_image_is_taken_away_by_its_button_by_a_text_and_by_the_way_back(visit: Callable[..., Visit], server: Running, red: Path) -> None:
    page = visit().open(SQUARES)
    choose(page, red)
    told(page, "10 results for the image red.png")
    page.get_by_role("button", name="Take away the image red.png").click()
    told(page, "36 documents in squares")
    assert page.locator("#chosen").is_hidden()
    assert page.evaluate("document.activeElement.id") == "query"
    page.go_back()
    told(page, "10 results for the image red.png")
    page.fill("#query", "lime")
    told(page, "10 results in ")
    assert page.locator("#chosen").is_hidden()
    page.locator(".ask-why").first.wait_for()
    page.go_back()
    told(page, "10 results for the image red.png")
    assert page.input_value("#query") == ""
    page.go_back()
    told(page, "36 documents in squares")


def test_a_page_that_is_loaded_anew_or_shared_begins_without_the_image(visit: Callable[..., Visit], red: Path) -> None:
    page = visit().open(SQUARES)
    choose(page, red)
    told(page, "10 results for the image red.png")
    page.select_option("#depth", "20")
    told(page, "20 results for the image red.png")
    page.reload()
    told(page, "36 documents in squares")
    assert page.input_value("#depth") == "20"
    assert page.locator("#chosen").is_hidden()


def test_images_are_offered_where_an_index_reads_them(visit: Callable[..., Visit], server: Running, red: Path) -> None:
    assert server.ask("GET", "/v1/abilities").json["images"] == ["squares"]
    one = visit(viewport={"width": 1_300, "height": 900})
    page = one.open("#in=texts")
    button = page.get_by_role("button", name="Image", exact=True)
    assert button.is_hidden()
    page.keyboard.press("Escape")
    page.keyboard.press("i")  # the key does nothing either
    page.select_option("#beside", "squares")
    button.wait_for()
    page.select_option("#index", "squares")
    page.select_option("#beside", "texts")
    choose(page, red)
    told(page, "10 results for the image red.png")
    assert one.ids(1) == found_for(server, red)
    refused = page.inner_text("[data-side='0'] .wrong")
    assert refused.startswith("image: the student of this index is a dense one, which reads no images. Search with a text")
    assert all("400 (Bad Request)" in line for line in one.complaints)  # the browser writes down that a request was refused
    one.complaints.clear()


def test_a_conversation_takes_no_image(visit: Callable[..., Visit], red: Path) -> None:
    page = visit().open(SQUARES)
    choose(page, red)
    told(page, "10 results for the image red.png")
    page.click("#conversation")
    told(page, "36 documents in squares")
    assert page.get_by_role("button", name="Image", exact=True).is_hidden()
    assert page.locator("#chosen").is_hidden()
    page.click("#conversation")
    page.get_by_role("button", name="Image", exact=True).wait_for()


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_an_image_is_pasted_into_the_box_or_dropped_on_the_page(visit: Callable[..., Visit], server: Running, red: Path, event: str) -> None:
    one = visit()
    page = one.open(SQUARES)
    page.evaluate(
        """([kind, bytes]) => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(bytes)], "red.png", { type: "image/png" }));
            const about = { bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried };
            if (kind === "paste") return document.getElementById("query").dispatchEvent(new ClipboardEvent(kind, about));
            document.body.dispatchEvent(new DragEvent("dragover", about));
            if (!document.body.hasAttribute("data-dropping")) throw new Error("the page does not say that it takes files");
            document.body.dispatchEvent(new DragEvent(kind, about));
        }""",
        [event, list(red.read_bytes())],
    )
    told(page, "10 results for the image red.png")
    assert one.ids() == found_for(server, red)
    assert not page.evaluate("document.body.hasAttribute('data-dropping')")


def test_everything_can_be_done_by_keyboard(visit: Callable[..., Visit], red: Path) -> None:
    page = visit().open(SQUARES)
    with page.expect_file_chooser() as opened:
        page.keyboard.press("Escape")
        until(page, "document.activeElement === document.body")  # the window is waited for by now, which a key alone is too quick for
        page.keyboard.press("i")
    opened.value.set_files(red)
    told(page, "10 results for the image red.png")
    page.keyboard.press("/")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Take away the image red.png"
    page.keyboard.press("Enter")
    told(page, "36 documents in squares")


def test_an_image_is_sent_upright_and_within_the_limits(visit: Callable[..., Visit], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    page = visit().open(SQUARES)
    image, size = sent(page, saved(tmp_path / "photo.jpg", noise(1_800, 1_200), exif=exif, quality=95))
    told(page, "10 results for the image photo.jpg")
    width, height = image.size
    assert (image.format, dict(image.getexif())) == ("JPEG", {})
    assert width / height == pytest.approx(2 / 3, abs=0.01)
    assert width * height <= LIMITS["image_pixels"]
    assert size <= LIMITS["body_bytes"]
    image, size = sent(page, saved(tmp_path / "long.png", noise(4_000, 40)))
    told(page, "10 results for the image long.png")
    assert (image.format, image.size) == ("PNG", (640, 6))


def test_what_lets_something_through_lies_on_white_as_on_the_server(visit: Callable[..., Visit], tmp_path: Path) -> None:
    image, _ = sent(visit().open(SQUARES), saved(tmp_path / "clear.png", Image.new("RGBA", (20, 10), (255, 0, 0, 0))))
    assert (image.size, image.convert("RGB").getcolors()) == ((20, 10), [(200, (255, 255, 255))])


def test_what_is_no_image_is_told_in_one_line_and_nothing_is_sent(visit: Callable[..., Visit], server: Running, tmp_path: Path) -> None:
    one = visit()
    page = one.open(SQUARES)
    large = tmp_path / "large.png"
    with large.open("wb") as stream:
        stream.truncate(65 << 20)
    files = {"notes.txt": b"a red square", "cut.png": encoded(noise())[:100], "empty.png": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        choose(page, tmp_path / name)
        told(page, f"{name} is no image that this browser reads, or too large a one. PNG, JPEG, WebP, GIF and BMP are read.")
    choose(page, large)
    told(page, "large.png is too large: it has 65 MiB, and 64 are read.")
    assert page.locator("#status.wrong").count() == 1
    assert page.locator("#chosen").is_hidden()
    assert f"{server.url}/v1/search" not in one.asked


@pytest.mark.parametrize(
    "context", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}], ids=["light", "dark", "phone"]
)
def test_nobody_is_kept_out(visit: Callable[..., Visit], folder: Path, tmp_path: Path, context: dict[str, Any], request: pytest.FixtureRequest) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    one = visit(**context)
    page = one.open(BESIDE)
    choose(page, folder / "squares" / "images" / f"{COLOURS[1]}.png")
    told(page, "10 results for the image lime.png")
    one.complaints.clear()  # of the side that reads texts alone
    one.shoot(tmp_path / "screenshots", f"by-image-{request.node.callspec.id}")
    violations = axe.Axe().run(page).response["violations"]
    assert [(found["id"], found["nodes"][0]["html"]) for found in violations if found["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.select_option("#beside", "")
    told(page, "10 results for the image lime.png")
    until(page, "document.querySelectorAll('#columns section').length === 1")
    one.shoot(tmp_path / "screenshots", f"by-image-alone-{request.node.callspec.id}")
