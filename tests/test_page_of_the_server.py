"""The page at `/` in a real Chromium: what it shows is what the interface answers, by mouse and by keyboard, and it asks nobody but its server."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
from PIL import Image

from retriever.commands.serve import offer_page
from retriever.serving.keys import new_key
from retriever.serving.web_routes import FOLDER
from tests.page_material import HOSTILE, REPORT, Visit, chromium, indexes, until, visits
from tests.serving_material import STAGES, Running, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUERY = "an animal that hunts mice"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> list[str]:
    return indexes(tmp_path_factory.mktemp("indexes"), encoder_folder)


@pytest.fixture(scope="module")
def server(places: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("state"), *places) as found:
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
def shots(tmp_path: Path) -> Path:
    return tmp_path / "screenshots"


def address(*said: str, **state: object) -> str:
    """As the page writes it: behind #, where no server sees it."""
    return "#" + urlencode([*state.items(), *(("user", text) for text in said)])


def focused(page: Page) -> str | None:
    """The id of the document whose card has the focus."""
    found = page.evaluate("document.activeElement.closest('.card')?.dataset.id ?? null")
    return None if found is None else str(found)


def first_card(doc_id: str) -> str:
    return f"li:first-child[data-id='{doc_id}']"


# What is shown


def test_results_come_while_a_query_is_typed_with_the_words_marked_that_the_server_marks(visit: Callable[..., Visit], server: Running, shots: Path) -> None:
    one = visit()
    page = one.open()
    assert page.inner_text("#status") == "16 documents in notes, version 1. Type to search; ? shows the keys."
    page.keyboard.type(QUERY)
    page.wait_for_selector(".card")
    page.wait_for_url(f"**{address(q=QUERY)}")
    assert one.ids() == server.ids(QUERY, 10)
    found = server.post("/v1/search", {"query": QUERY}).json["results"]
    first = page.locator(".card").first
    assert first.locator("mark").all_inner_texts() == [found[0]["snippet"]["text"][start:end] for start, end in found[0]["snippet"]["marks"]]
    assert first.locator(".score").text_content() == f"score {found[0]['score']:.3f}"
    assert page.inner_text("#status").startswith("10 results in ")
    one.shoot(shots, "search")
    page.click("#more")
    until(page, "document.querySelectorAll('.card').length === 16")


def test_a_text_of_a_document_is_never_read_as_html(visit: Callable[..., Visit]) -> None:
    one = visit()
    page = one.open(address(q=f"an animal {HOSTILE}", k=20))
    card = page.locator("[data-id=hostile]")
    assert card.locator(".title").inner_text() == HOSTILE
    card.locator(".title").click()
    page.wait_for_selector(".whole")
    assert card.locator(".text").inner_text() == f"an animal {HOSTILE}"
    assert page.locator("#columns img, #columns script").count() == 0
    page.evaluate("() => { try { document.body.innerHTML = '<p>'; } catch { document.body.dataset.refused = 'yes'; } }")
    assert page.evaluate("document.body.dataset.refused") == "yes"
    one.complaints.clear()  # the browser tells what it refused just now


def test_two_indexes_side_by_side_say_how_far_documents_move(visit: Callable[..., Visit], server: Running, shots: Path) -> None:
    one = visit(viewport={"width": 1_300, "height": 900})
    page = one.open(address(q=QUERY, beside="words"))
    left, right = (server.ids(QUERY, 10, index=name) for name in ("words", "notes"))
    assert (one.ids(0), one.ids(1)) == (left, right)
    before, after = ({doc_id: rank for rank, doc_id in enumerate(ids, 1)} for ids in (left, right))

    def sign(doc_id: str) -> str:
        by = before[doc_id] - after[doc_id] if doc_id in before else None
        return "new" if by is None else "=" if by == 0 else f"{'▲' if by > 0 else '▼'} {abs(by)}"

    assert page.locator("[data-side='1'] .move > :first-child").all_inner_texts() == [sign(doc_id) for doc_id in right]
    signs = ["dropped" if doc_id not in after else "=" if after[doc_id] == before[doc_id] else f"→ {after[doc_id]}" for doc_id in left]
    assert page.locator("[data-side='0'] .move > :first-child").all_inner_texts() == signs
    moved = sum(doc_id in before and before[doc_id] != after[doc_id] for doc_id in right)
    fresh = sum(doc_id not in before for doc_id in right)
    dropped = sum(doc_id not in after for doc_id in left)
    assert page.inner_text("#status").startswith(f"{moved} moved, {len(right) - moved - fresh} unmoved, {fresh} new, {dropped} dropped; ")
    one.shoot(shots, "side-by-side")


def test_a_filter_is_made_of_the_fields_of_the_index(visit: Callable[..., Visit], server: Running, shots: Path) -> None:
    one = visit()
    page = one.open(address(q=QUERY))
    page.click("#filters")
    assert page.locator("#field option").all_inner_texts() == ["kind", "legs", "sharp", "topics"]
    page.select_option("#field", "legs")
    page.fill("#value", "many")
    page.click("#add-filter")
    assert page.inner_text("#filter-wrong") == "The field holds numbers, and “many” is none."
    page.fill("#value", "4")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=legs at least 4")
    until(page, "document.querySelectorAll('.card').length === 3")
    assert one.ids() == server.ids(QUERY, 10, filter={"legs": {">=": 4}})
    page.select_option("#field", "topics")
    page.select_option("#comparison", "in")
    page.fill("#value", "water, air")
    page.click("#add-filter")
    until(page, "document.querySelectorAll('.card').length === 1")
    one.shoot(shots, "filters")
    page.get_by_role("button", name="Remove the filter: legs at least 4").click()
    page.get_by_role("button", name="Remove the filter: topics has one of water, air").click()
    until(page, "document.querySelectorAll('.card').length === 10")
    page.select_option("#field", "sharp")
    page.select_option("#value", "true")
    page.click("#add-filter")
    until(page, "document.querySelectorAll('.card').length === 2")
    assert set(one.ids()) == {"saw", "plane"}
    page.locator(".field", has_text="kind tool").first.click()
    page.wait_for_selector("text=kind is tool")
    page.wait_for_url(f"**{quote('kind')}**{quote('tool')}**")
    assert focused(page) in {"saw", "plane"}  # the focus stays where the results are


def test_an_explanation_says_what_the_interface_says(visit: Callable[..., Visit], server: Running, shots: Path) -> None:
    one = visit()
    page = one.open(address(q="large eyes", filter='{"kind": {"=": "animal"}}'))
    card = page.locator("[data-id=owl]")
    card.get_by_role("button", name="Why?").click()
    card.locator("table").wait_for()
    why = server.post("/v1/explain", {"query": "large eyes", "id": "owl"}).json["explanation"]
    assert card.locator("tbody th").all_inner_texts() == [row["text"] for row in why["rows"]]
    assert card.locator("tbody td:nth-child(2)").all_inner_texts() == [f"{row['lost']:+.3f}".replace("-", "\N{MINUS SIGN}") for row in why["rows"]]
    one.shoot(shots, "explanation")
    card.get_by_role("button", name="Why?").click()
    assert card.locator("table").count() == 0
    page.select_option("#index", "words")
    page.wait_for_url("**in=words**")
    until(page, "!document.querySelector('[aria-busy]')")
    first = page.locator(".card").first
    first.get_by_role("button", name="Why?").click()
    first.locator("table").wait_for()
    words = server.post("/v1/explain", {"query": "large eyes", "id": first.get_attribute("data-id"), "index": "words"}).json["explanation"]["rows"]
    assert first.locator("tbody th").all_inner_texts() == [row["word"] for row in words]


def test_a_conversation_shows_what_the_student_read_and_what_each_turn_changed(visit: Callable[..., Visit], server: Running, shots: Path) -> None:
    one = visit()
    page = one.open(address(q="a rodent that builds dams"))
    page.click("#conversation")
    page.keyboard.type("of what?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#history table")
    turns = [{"speaker": "user", "text": "a rodent that builds dams"}]
    assert one.ids() == server.ids("of what?", 10, turns=turns)
    assert page.locator("blockquote").inner_text() == "a rodent that builds dams of what?"
    assert page.locator("blockquote b").inner_text() == "of what?"
    history = server.post("/v1/explain", {"query": "of what?", "turns": turns, "k": 10}).json["history"]
    assert f"moves the query by {history['whole']:.3f}" in page.inner_text("#history")
    assert page.locator("#history tbody td:nth-child(2)").all_inner_texts() == [f"{row['moved']:.3f}" for row in history["rows"]]
    one.shoot(shots, "conversation")
    page.select_option("#beside", "/alone")
    page.wait_for_selector("[data-side='1'] .card")
    assert (one.ids(0), one.ids(1)) == (server.ids("of what?", 10), server.ids("of what?", 10, turns=turns))
    page.locator(".card .take").first.click()
    page.wait_for_selector("#said .agent")
    page.go_back()
    page.wait_for_selector("#said .agent", state="detached")
    page.click("#anew")
    until(page, "!document.querySelector('.card')")


def test_images_of_documents_are_shown(visit: Callable[..., Visit], shots: Path) -> None:
    one = visit()
    page = one.open(address(**{"in": "squares", "q": "a red square", "filter": '{"kind": {"=": "image"}}'}))
    assert one.ids()[0] == "red.png"
    until(page, "[...document.querySelectorAll('.picture')].every((picture) => picture.naturalWidth > 0)")
    assert page.locator(".picture").count() == 6
    assert page.get_by_alt_text("Image: red.png").count() == 1
    one.shoot(shots, "images")


def test_a_judgement_is_kept(visit: Callable[..., Visit], server: Running) -> None:
    page = visit().open(address(q=QUERY))
    page.locator("[data-id=cat] .relevant").click()
    page.wait_for_selector("[data-id=cat] .relevant[aria-pressed=true]")
    page.locator("[data-id=cat] .irrelevant").click()
    page.wait_for_selector("[data-id=cat] .relevant[aria-pressed=false]")
    assert server.service.feedback is not None
    events = [json.loads(line) for line in server.service.feedback.read_text().splitlines()]
    assert [(event["query"], event["id"], event["index"], event["grade"]) for event in events] == [(QUERY, "cat", "notes", 1), (QUERY, "cat", "notes", 0)]


def test_the_report_of_the_experiment_is_a_link_away(visit: Callable[..., Visit]) -> None:
    one = visit()
    page = one.open()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Report").click()
    report = opened.value
    report.wait_for_load_state()
    assert report.locator("p").inner_text() == "means"
    assert report.evaluate("getComputedStyle(document.querySelector('p')).color") == "rgb(0, 128, 0)"
    page.select_option("#index", "words")
    assert page.locator("#report").is_hidden()


# How it is used


def test_everything_can_be_done_by_keyboard(visit: Callable[..., Visit]) -> None:
    one = visit(viewport={"width": 1_300, "height": 900})
    page = one.open(address(q=QUERY, beside="words"))
    left, right = one.ids(0), one.ids(1)
    page.keyboard.press("ArrowDown")
    assert focused(page) == left[0]
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert focused(page) == left[2]
    page.keyboard.press("k")
    assert focused(page) == left[1]
    page.keyboard.press("l")
    assert focused(page) == (left[1] if left[1] in right else right[1])
    assert page.evaluate("document.activeElement.closest('[data-side]').dataset.side") == "1"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-side='0'] .whole")
    page.keyboard.press("w")
    page.wait_for_selector("[data-side='0'] .why table")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    page.get_by_label("Keys of one character").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_hidden()


def test_the_address_says_what_is_shown_and_the_way_back_is_open(visit: Callable[..., Visit], server: Running) -> None:
    one = visit()
    page = one.open()
    page.keyboard.type("a tool")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    page.fill("#query", QUERY)
    page.keyboard.press("Enter")
    page.wait_for_selector(first_card(server.ids(QUERY, 1)[0]))
    page.select_option("#index", "words")
    page.wait_for_url("**in=words**")
    page.go_back()
    page.go_back()
    page.wait_for_selector(first_card(server.ids("a tool", 1)[0]))
    shared = page.url
    assert visit().open(shared.removeprefix(f"{server.url}/")).input_value("#query") == "a tool"


def test_the_theme_is_the_systems_until_it_is_switched_and_then_stays(visit: Callable[..., Visit], shots: Path) -> None:
    one = visit(color_scheme="dark")
    page = one.open(address(q=QUERY))
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(21, 24, 28)"
    one.shoot(shots, "dark")
    page.click("#theme")
    assert (page.inner_text("#theme"), page.evaluate(paper)) == ("Theme: light", "rgb(255, 255, 255)")
    page.reload()
    assert page.evaluate(paper) == "rgb(255, 255, 255)"


@pytest.mark.parametrize(
    "context", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}], ids=["light", "dark", "phone"]
)
def test_nobody_is_kept_out(visit: Callable[..., Visit], shots: Path, context: dict[str, Any], request: pytest.FixtureRequest) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    one = visit(**context)
    page = one.open(address("a rodent that builds", "and an animal that hunts", talk=1, beside="words", filter='{"kind": {"in": ["animal", "tool"]}}'))
    page.wait_for_selector("#history table")
    page.click("#filters")
    page.locator(".ask-why:visible").first.click()
    page.wait_for_selector(".why table")
    one.shoot(shots, f"all-{request.node.callspec.id}")
    violations = axe.Axe().run(page).response["violations"]
    page.click("#help")
    violations += axe.Axe().run(page).response["violations"]
    assert [(found["id"], found["nodes"][0]["html"]) for found in violations if found["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_on_a_small_screen_one_side_is_shown_at_a_time(visit: Callable[..., Visit], shots: Path) -> None:
    one = visit(viewport={"width": 360, "height": 740})
    page = one.open(address(q=QUERY, beside="words"))
    assert (page.locator("[data-side='0']").is_visible(), page.locator("[data-side='1']").is_visible()) == (False, True)
    page.locator("#sides button").first.click()
    assert (page.locator("[data-side='0']").is_visible(), page.locator("[data-side='1']").is_visible()) == (True, False)
    one.shoot(shots, "phone")


def test_on_a_small_screen_what_is_searched_is_shown_first_also_where_nothing_was_asked_yet(visit: Callable[..., Visit]) -> None:
    one = visit(viewport={"width": 360, "height": 740})
    page = one.open(address(beside="words"))
    page.fill("#query", QUERY)
    page.wait_for_selector("[data-side='1'] .card")
    assert (page.locator("[data-side='0']").is_visible(), page.locator("[data-side='1']").is_visible()) == (False, True)
    page.locator("#sides button").first.click()
    page.fill("#query", "")
    page.wait_for_selector(".card", state="detached")
    page.fill("#query", QUERY)
    page.wait_for_selector("[data-side='0'] .card")
    assert (page.locator("[data-side='0']").is_visible(), page.locator("[data-side='1']").is_visible()) == (True, False)  # the reader's own choice


def test_an_explanation_in_stages_says_what_each_gave(finished_experiment: Path, browser: Browser, tmp_path: Path, shots: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text((finished_experiment / "tiny.toml").read_text() + STAGES)
    with running(tmp_path / "state", file, work=finished_experiment / "work") as server, visits(browser, server.url) as visit:
        one = visit(viewport={"width": 360, "height": 740})
        page = one.open(address(q=QUERY, **{"in": "tiny/1"}))
        found, kept = server.ids(QUERY, 10, stages=1), server.ids(QUERY, 10)
        gone = next(doc_id for doc_id in found if doc_id not in kept)
        card = page.locator(f".card[data-id='{gone}']")
        card.get_by_role("button", name="Why?").click()
        card.locator("table").first.wait_for()
        first, second = server.post("/v1/explain", {"query": QUERY, "id": gone}).json["stages"]
        lines = [line.locator("th, td").all_text_contents() for line in card.locator("table").first.locator("tbody tr").all()]
        made_of = [", ".join(f"{part['ranker']} {part['score']:.3f}" for part in stage["parts"]) for stage in (first, second)]
        ranks = [f"{found.index(gone) + 1} of {first['candidates']}", f"{second['rank']} of 6, not kept"]
        assert lines == [
            ["bm25 + student, best 6", ranks[0], "", f"{first['score']:.3f}", made_of[0]],
            ["student, best 4", ranks[1], "", f"{second['score']:.3f}", made_of[1]],
        ]
        assert card.locator("table").count() == 2  # the student's own explanation stands below
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        one.shoot(shots, "stages")


def test_what_goes_wrong_is_one_line(visit: Callable[..., Visit]) -> None:
    one = visit()
    page = one.open(address(q=QUERY, filter='{"colour": {"=": "red"}}'))
    assert page.inner_text("#columns .wrong").startswith('filter: no document has a field "colour"')
    assert page.inner_text("#status") == "No results."
    page.get_by_role("button", name="Remove the filter: colour is red").click()
    page.wait_for_selector(".card")
    page.context.set_offline(True)
    page.select_option("#index", "words")
    page.wait_for_selector("text=the server does not answer; is it still running?")
    # The browser itself writes down that a request was refused, and that others, its own for the icon among them, had no answer.
    assert all("400 (Bad Request)" in line or "INTERNET_DISCONNECTED" in line for line in one.complaints)
    one.complaints.clear()


def test_a_key_is_asked_for_and_forgotten_with_the_tab(browser: Browser, places: list[str], tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.json", "search")
    with running(tmp_path / "state", *places, keys=tmp_path / "keys.json") as guarded, contextlib.closing(_Ending(browser, guarded.url)) as one:
        page = one.page
        page.goto(f"{guarded.url}/{address(**{'in': 'squares', 'q': 'a red square'})}")
        page.fill("#key-value", f"{key}x")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=The server does not know this key.")
        page.fill("#key-value", key)
        page.keyboard.press("Enter")
        until(page, "[...document.querySelectorAll('.picture')].filter((picture) => picture.naturalWidth > 0).length >= 4")
        assert page.evaluate("JSON.stringify([localStorage.length, Object.values(sessionStorage)])") == json.dumps([0, [key]], separators=(",", ":"))
        assert key not in page.url
        page.select_option("#index", "notes")
        with page.expect_download() as saved:
            page.get_by_role("link", name="Report").click()
        assert saved.value.suggested_filename == "notes-report.html"
        one.complaints.clear()  # of the answers that asked for a key


class _Ending(Visit):
    close = Visit.end


# What the server gives


def test_the_page_may_load_and_ask_its_own_server_alone(server: Running) -> None:
    page = server.ask("GET", "/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; ")
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    texts = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert page.body.decode() == texts["index.html"]
    for name, text in texts.items():
        assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", ' style="', "https://")), name
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), name


def test_files_of_the_page_are_given_by_name_and_nothing_else_is(server: Running) -> None:
    script = server.ask("GET", "/web/main.js")
    assert (script.status, script.headers["content-type"], script.headers["cache-control"]) == (200, "text/javascript; charset=utf-8", "no-cache")
    assert server.ask("GET", "/web/main.js", If_None_Match=script.headers["etag"]).status == 304
    for path in ("/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fapp.py", "/web/app.py", "/web/", "/web/index.html"):
        assert server.ask("GET", path).status == 404, path


def test_an_image_is_given_by_the_id_of_its_document_alone_and_drawn_anew(server: Running, places: list[str]) -> None:
    found = server.ask("GET", "/v1/images/red.png?index=squares&size=50")
    with Image.open(io.BytesIO(found.body)) as image:
        assert (image.format, image.size) == ("JPEG", (50, 25))
        assert image.getpixel((10, 10)) == pytest.approx((254, 0, 0), abs=3)
    assert found.headers["cache-control"] == "private, max-age=600"
    assert server.ask("GET", "/v1/images/red.png?index=squares&size=50", If_None_Match=found.headers["etag"]).status == 304
    folder = Path(places[2].partition("=")[2]).parent / "images"
    for name in (str(folder / "red.png"), "../images/red.png", "owl", "caption/red"):
        refused = server.ask("GET", f"/v1/images/{quote(name, safe='')}?index=squares")
        assert refused.error == f'404 not_found: there is no document "{name:.100}" with an image'
    assert server.ask("GET", "/v1/images/red.png?index=squares&size=5000").status == 400
    shutil.move(folder / "blue.png", folder / "away.png")
    (folder / "blue.png").write_bytes(b"no image")
    try:
        refused = server.ask("GET", "/v1/images/blue.png?index=squares")
        assert refused.error == '404 not_found: the image of the document "blue.png" cannot be read; the log of the server says why'
    finally:
        shutil.move(folder / "away.png", folder / "blue.png")


def test_a_report_beside_an_index_is_given_where_no_script_of_it_would_run(server: Running) -> None:
    assert server.ask("GET", "/v1/abilities").json["reports"] == ["notes"]
    report = server.ask("GET", "/v1/reports/notes")
    assert (report.body.decode(), report.headers["content-type"]) == (REPORT, "text/html; charset=utf-8")
    assert report.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
    assert server.ask("GET", "/v1/reports/words").error == '404 not_found: beside "words" lies no report'


def test_with_keys_only_the_pages_own_files_are_given_without_one(places: list[str], tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.json", "search")
    with running(tmp_path / "state", *places, keys=tmp_path / "keys.json") as guarded:
        assert [guarded.ask("GET", path).status for path in ("/", "/web/main.js")] == [200, 200]
        asked = ("/v1/images/red.png?index=squares", "/v1/abilities", "/v1/reports/notes")
        assert [guarded.ask("GET", path).status for path in asked] == [401, 401, 401]
        assert [guarded.ask("GET", path, key=key).status for path in asked] == [200, 200, 200]


def test_the_demo_ends_with_the_line_that_opens_its_page_and_asks_nothing_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    offer_page({"student": Path("work/demo"), "before": Path("work/demo/index_before")})
    assert capsys.readouterr().out == "page:   retriever serve student=work/demo before=work/demo/index_before\n"
