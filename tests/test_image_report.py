"""Images in reports, in zero-shot classification and in searches; a student whose vectors can be followed by hand."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retriever.collection import Collection, write_collection
from retriever.encodings import encode_collection
from retriever.errors import ConfigError, DataError
from retriever.eval.directions import in_direction
from retriever.eval.measures import Evaluation
from retriever.eval.report import ReportData, RunResult, read_report, redraw_report, report_json, write_report
from retriever.eval.shown import ShownDocument
from retriever.eval.wording import hints
from retriever.eval.zero_shot import accuracy
from retriever.index.changes import publish
from retriever.runs import Run
from retriever.search import SearchIndex, open_index
from retriever.settings.index import FlatSettings
from retriever.steps import image_report
from retriever.steps.image_report import shows_images, thumbnail, with_images
from retriever.steps.zero_shot import classify, names_of
from retriever.types import Document, Query
from tests.colour_student import COLOURS, ColourStudent, save_squares
from tests.page_tags import tags_of
from tests.tiny_experiment import command

TEXT, IMAGE = "text_to_image", "image_to_text"
CAPTIONS = {f"{colour}.png#0": f"a {colour} <square>" for colour in COLOURS}
QRELS = {f"{colour}.png": {f"{colour}.png#0": 1} for colour in COLOURS} | {f"{colour}.png#0": {f"{colour}.png": 1} for colour in COLOURS}


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_squares(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def queries(squares: dict[str, Path]) -> dict[str, Query]:
    bright = {colour: "bright" if colour in ("white", "yellow") else "dark" for colour in COLOURS}
    images = {
        path.name: Query(path.name, "", image=path, fields={"direction": IMAGE, "tone": bright[colour]}, among={"kind": "caption"})
        for colour, path in squares.items()
    }
    captions = {query_id: Query(query_id, text, fields={"direction": TEXT}, among={"kind": "image"}) for query_id, text in CAPTIONS.items()}
    return images | captions


@pytest.fixture(scope="module")
def collection(squares: dict[str, Path], queries: dict[str, Query], tmp_path_factory: pytest.TempPathFactory) -> Collection:
    documents = [Document(path.name, "", image=path, fields={"kind": "image"}) for path in squares.values()]
    documents += [Document(doc_id, text, fields={"kind": "caption"}) for doc_id, text in CAPTIONS.items()]
    return write_collection(tmp_path_factory.mktemp("prepared") / "squares", documents, queries, {"test": QRELS})


@pytest.fixture(scope="module")
def folder(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the squares and their captions."""
    where = tmp_path_factory.mktemp("index")
    (where / "student").mkdir()
    (where / "student" / "modules.json").write_text("[]")
    student = ColourStudent()
    vectors = encode_collection(student, collection, where / "encodings")
    publish(where / "index", FlatSettings(), student.kind, where / "student", student, vectors, collection)
    return where / "index"


@pytest.fixture(scope="module")
def index(folder: Path) -> SearchIndex:
    return open_index(folder)


@pytest.fixture(scope="module")
def data(queries: dict[str, Query]) -> ReportData:
    """Before, nothing was found; the student finds all captions' images, and the captions of two images."""
    before = {way: np.zeros(len(COLOURS)) for way in (TEXT, IMAGE)}
    after = {TEXT: np.ones(len(COLOURS)), IMAGE: np.array([colour in ("red", "blue") for colour in sorted(COLOURS)], dtype=np.float64)}
    ids = {TEXT: tuple(sorted(CAPTIONS)), IMAGE: tuple(sorted(set(QRELS) - set(CAPTIONS)))}
    runs = [
        RunResult(name := in_direction(system, way), Evaluation(name, ids[way], {"Success@1": values[way]}))
        for way in (TEXT, IMAGE)
        for system, values in (("student_before", before), ("student", after))
    ]
    texts = {query_id: query.shown for query_id, query in queries.items()}
    return ReportData("squares", runs, [], ["Success@1"], {}, {}, 1, query_texts=texts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every query finds red, green, blue, yellow, black and white in this order, white only from image to text."""
    where = tmp_path_factory.mktemp("runs")
    for way, ending, asked, found in ((TEXT, ".png", CAPTIONS, COLOURS[:-1]), (IMAGE, ".png#0", set(QRELS) - set(CAPTIONS), COLOURS)):
        listed = {f"{colour}{ending}": -float(place) for place, colour in enumerate(found)}
        Run.from_dict("student", dict.fromkeys(sorted(asked), listed)).write_trec(where / f"student.{way}.trec")
    return where


@pytest.fixture(scope="module")
def illustrated(data: ReportData, queries: dict[str, Query], collection: Collection, runs: Path) -> ReportData:
    return with_images(data, queries, collection, QRELS, runs)


@pytest.fixture(scope="module")
def page(illustrated: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report"), illustrated)


def picture_in(uri: str) -> Image.Image:
    kind, _, encoded = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_a_thumbnail_is_the_whole_image_at_most_64_pixels_wide_and_high(squares: dict[str, Path], tmp_path: Path) -> None:
    small = picture_in(thumbnail(squares["red"]))
    assert small.size == (64, 32)
    assert np.asarray(small).mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=3)
    assert thumbnail(squares["red"]) == thumbnail(squares["red"])
    Image.new("RGBA", (3, 5), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    tiny = picture_in(thumbnail(tmp_path / "clear.png"))
    assert tiny.size == (3, 5)
    assert np.asarray(tiny).min() > 250  # what is transparent is white
    with pytest.raises(DataError, match=r"gone\.png"):
        thumbnail(tmp_path / "gone.png")


def test_below_a_caption_stand_the_images_that_it_found_and_the_right_one(illustrated: ReportData) -> None:
    shown = illustrated.shown
    assert shown
    found = shown.found["black.png#0"]
    assert [(one.doc_id, one.rank, one.relevant) for one in found] == [
        *((f"{colour}.png", rank, False) for rank, colour in enumerate(COLOURS[:4], 1)),
        ("black.png", 5, True),
    ]
    assert np.asarray(picture_in(shown.thumbnails[found[-1].thumbnail])).max() < 5
    assert [one.relevant for one in shown.found["green.png#0"]] == [False, True, False, False]


def test_a_right_document_that_was_not_found_is_shown_without_a_rank(data: ReportData, queries: dict[str, Query], collection: Collection, runs: Path) -> None:
    only = dataclasses.replace(data, runs=[dataclasses.replace(run, evaluation=_only(run.evaluation, "white.png#0")) for run in data.runs[:2]])
    shown = with_images(only, queries, collection, QRELS, runs).shown
    assert shown
    assert [(one.doc_id, one.rank) for one in shown.found["white.png#0"]][-1] == ("white.png", None)


def _only(evaluation: Evaluation, query_id: str) -> Evaluation:
    place = evaluation.query_ids.index(query_id)
    return Evaluation(evaluation.run, (query_id,), {measure: values[place : place + 1] for measure, values in evaluation.values.items()})


def test_below_an_image_stand_the_captions_that_it_found(illustrated: ReportData) -> None:
    shown = illustrated.shown
    assert shown
    assert set(shown.queries) == {"blue.png", "red.png"}  # those that changed
    assert np.asarray(picture_in(shown.thumbnails[shown.queries["blue.png"]]))[0, 0].tolist() == pytest.approx([0, 0, 255], abs=3)
    assert shown.found["blue.png"][2] == ShownDocument("blue.png#0", 3, relevant=True, text="a blue <square>")


def test_each_image_is_there_once_and_no_more_of_them_than_a_report_may_have(
    illustrated: ReportData, data: ReportData, queries: dict[str, Query], collection: Collection, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert illustrated.shown
    assert len(illustrated.shown.thumbnails) == len(set(illustrated.shown.thumbnails.values())) == len(COLOURS)
    monkeypatch.setattr(image_report, "MOST_THUMBNAILS", 2)
    few = with_images(data, queries, collection, QRELS, runs).shown
    assert few
    assert len(few.thumbnails) == 2
    assert [bool(one.thumbnail) for one in few.found["black.png#0"]] == [True, True, False, False, False]


def test_a_report_without_images_stays_as_it_is(data: ReportData, collection: Collection, runs: Path) -> None:
    plain = {"q": Query("q", "text")}
    assert not shows_images(plain)
    assert with_images(data, plain, collection, QRELS, runs) is data


def test_the_page_holds_its_images_and_loads_none(page: Path, illustrated: ReportData) -> None:
    text = page.read_text(encoding="utf-8")
    tags = tags_of(text)
    assert illustrated.shown
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert set(sources) == set(illustrated.shown.thumbnails.values())
    assert {attributes["alt"] for tag, attributes in tags if tag == "img"} >= {"red.png", "black.png"}
    assert not {"script", "link", "iframe", "square"} & {tag for tag, _ in tags}
    assert not re.findall(r"@import|url\((?!#)", text)
    assert "a blue &lt;square&gt;" in text
    assert sum("relevant" in (attributes.get("class") or "") for _, attributes in tags) == len(illustrated.shown.found)


def test_the_page_is_drawn_again_with_its_images(page: Path, illustrated: ReportData) -> None:
    first = page.read_bytes()
    found = read_report(page.parent)
    assert report_json(found) == report_json(illustrated)
    assert found.shown == illustrated.shown
    assert redraw_report(page.parent).read_bytes() == first


def test_damaged_pictures_of_a_report_are_named(page: Path, tmp_path: Path) -> None:
    for name in ("report.json", "per_query.json"):
        (tmp_path / name).write_bytes((page.parent / name).read_bytes())
    (tmp_path / "shown.json").write_text('{"queries": {}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"shown\.json is not from this program"):
        read_report(tmp_path)


def test_the_right_name_has_to_be_nearest() -> None:
    scores = np.array([[3, 1, 2], [1, 3, 2], [1, 1, 0], [0, 1, 2]], dtype=np.float32)
    right = np.array([[True, False, False], [False, False, True], [True, True, False], [False, False, True]])
    found = accuracy("student", scores, right, 1)
    assert found.value == 3 / 4  # the second is named wrong; of the third's equal scores the first name counts
    assert found.interval == accuracy("student", scores, right, 1).interval
    assert 0 <= found.interval[0] <= 3 / 4 <= found.interval[1] <= 1


def test_images_are_named_by_the_texts_of_a_field_s_values(queries: dict[str, Query]) -> None:
    images = [query for query in queries.values() if query.image]
    colours = [dataclasses.replace(query, fields={"colour": query.query_id.removesuffix(".png")}) for query in images]
    names = names_of(colours, colours, "colour")
    assert names == sorted(COLOURS)
    found = classify({"student": ColourStudent()}, colours, names, "colour", "a {} thing", 1)
    assert (found.images, found.most_frequent, found.accuracies["student"].value) == (6, pytest.approx(1 / 6), 1)
    wrong = [dataclasses.replace(query, fields={"colour": ["white", "black"]}) for query in colours[:4]] + colours[4:]
    several = classify({"student": ColourStudent()}, wrong, names, "colour", "{}", 1)
    assert several.accuracies["student"].value == 2 / 6  # the others are named by their own colours, which are not among theirs
    assert several.most_frequent == 5 / 6


def test_what_cannot_be_named_is_refused_with_the_fields_there_are(queries: dict[str, Query]) -> None:
    with pytest.raises(ConfigError, match=r'has a field "colour"; the fields are: direction, tone\. Name one of them'):
        names_of(queries.values(), [query for query in queries.values() if query.image], "colour")
    with pytest.raises(ConfigError, match=r'every image has the same direction, "image_to_text"'):
        names_of(queries.values(), [query for query in queries.values() if query.image], "direction")
    with pytest.raises(ConfigError, match="no query of the test split is an image"):
        names_of(queries.values(), [query for query in queries.values() if not query.image], "tone")


def test_the_report_has_a_table_of_accuracies(data: ReportData, queries: dict[str, Query], tmp_path: Path) -> None:
    images = [query for query in queries.values() if query.image]
    found = classify({"student_before": ColourStudent(), "student": ColourStudent()}, images, ["bright", "dark"], "tone", "a {} square", 1)
    report = dataclasses.replace(data, runs=[], zero_shot=found)
    text = write_report(tmp_path, report).read_text(encoding="utf-8")
    assert "<h2>Zero-shot classification</h2>" in text
    assert "The most frequent name alone is right 0.667 of the time." in text
    assert read_report(tmp_path).zero_shot == found
    assert hints(report) == [f"zero-shot tone of student: {found.accuracies['student'].value:.3f} (6 images)"]


def test_an_image_finds_itself_first_and_its_caption_among_captions(index: SearchIndex, queries: dict[str, Query], squares: dict[str, Path]) -> None:
    alone = Query("any", "", image=squares["blue"])
    first, second, *_ = index.hits(alone, 3)
    assert {first.document.doc_id, second.document.doc_id} == {"blue.png", "blue.png#0"}
    assert (first.score, second.score) == (pytest.approx(1), pytest.approx(1))
    assert [hit.document.doc_id for hit in index.hits(queries["blue.png"], 1)] == ["blue.png#0"]
    assert [hit.document.image for hit in index.hits(queries["blue.png#0"], 1)] == [squares["blue"]]


def test_a_search_with_an_image_prints_the_paths_of_images(folder: Path, squares: dict[str, Path]) -> None:
    said = command("search", folder, "--image", squares["red"], "-k", "1", "--filter", "kind=image")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines() == ["  1  1.0000  red.png", f"             {squares['red']}"]
    said = command("search", folder, "--image", squares["red"], "-k", "1", "--filter", "kind=caption")
    assert said.out.splitlines() == ["  1  1.0000  red.png#0", "             a red <square>"]


def test_json_has_the_image_asked_with_and_those_that_were_found(folder: Path, squares: dict[str, Path]) -> None:
    said = command("search", folder, "--image", squares["green"], "-k", "1", "--filter", "kind=image", "--json")
    found = json.loads(said.out)
    assert (found["query"], found["image"]) == ("", str(squares["green"]))
    assert found["results"][0] == {
        "rank": 1,
        "score": pytest.approx(1),
        "id": "green.png",
        "title": "",
        "text": "",
        "image": str(squares["green"]),
        "fields": {"kind": "image"},
    }
    said = command("search", folder, "a green square", "-k", "1", "--filter", "kind=caption", "--json")
    assert "image" not in json.loads(said.out)
    assert "image" not in json.loads(said.out)["results"][0]


def test_an_image_that_cannot_be_read_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert command("search", folder, "--image", tmp_path / "text.png").error.startswith(f"{tmp_path / 'text.png'}: ")
    assert "gone.png" in command("search", folder, "--image", tmp_path / "gone.png").error
    assert (
        command("search", folder, "red", "--image", tmp_path / "text.png").error
        == "search: give a query, a file of them with --queries, or an image with --image"
    )


def test_a_student_of_texts_refuses_an_image(collection: Collection, encoder_folder: Path, squares: dict[str, Path], tmp_path: Path) -> None:
    from retriever.students.dense import load_folder

    texts = write_collection(tmp_path / "texts", [Document("d", "a red square")])
    student = load_folder(encoder_folder)
    publish(tmp_path / "index", FlatSettings(), "dense", encoder_folder, student, encode_collection(student, texts, tmp_path / "encodings"), texts)
    said = command("search", tmp_path / "index", "--image", squares["red"])
    assert said.error.startswith(f"{squares['red']}: the student of this index is a dense one, which reads no images.")
    with pytest.raises(ConfigError, match="reads no images"):
        open_index(tmp_path / "index").run({"q": Query("q", "", image=squares["red"])})
