"""Searches with an image that comes with the request: it finds what the file finds, and what is no image is told in one line."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.client import ServiceError
from retriever.errors import DataError
from retriever.images import reading as images
from retriever.images.reading import decoded, held, read_image
from retriever.search import open_index
from retriever.serving.faults import RequestError
from retriever.serving.uploads import bytes_of
from retriever.types import Document, Query
from tests.image_text_material import index_squares
from tests.serving_material import Reply, Running, running
from tests.test_images import encoded, noise, png_that_claims
from tests.test_index import built
from tests.tiny_experiment import command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """Of a dozen coloured squares and their captions: `squares/images`, and `index`."""
    return index_squares(tmp_path_factory.mktemp("squares"), encoder_folder)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Iterator[Running]:
    """A server of the squares, and of an index whose student reads texts alone."""
    texts = built(tmp_path_factory.mktemp("texts"), "dense", encoder_folder, [Document("owl", "a bird")])
    limits = {"body_bytes": 200_000, "image_pixels": 5_000}
    with running(tmp_path_factory.mktemp("state"), f"squares={folder / 'index'}", f"texts={texts}", limits=limits) as found:
        yield found


def asked(server: Running, image: bytes, **more: Any) -> Reply:
    return server.post("/v1/search", {"image": base64.b64encode(image).decode(), **more})


def found(reply: Reply) -> list[tuple[str, float]]:
    assert reply.status == 200, reply.body
    return [(one["id"], pytest.approx(one["score"], abs=1e-6)) for one in reply.json["results"]]


def test_an_uploaded_image_finds_what_its_file_finds(server: Running, folder: Path) -> None:
    path = folder / "squares" / "images" / "red.png"
    index = open_index(folder / "index")
    for where in ({}, {"kind": "image"}, {"kind": "caption"}):
        hits = [(hit.document.doc_id, hit.score) for hit in index.hits(Query("query", "", image=path), 5, where)]
        assert hits == found(asked(server, path.read_bytes(), k=5, filter=where))
    address = f"data:image/png;base64,{base64.encodebytes(path.read_bytes()).decode()}"
    assert hits == found(server.post("/v1/search", {"image": address, "k": 5, "filter": {"kind": "caption"}}))
    assert images._HELD == {}
    assert sorted(place.name.partition(".")[0] for place in server.service.settings.state.iterdir()) == ["conversations"] * 3


def test_the_client_and_the_command_line_send_images(server: Running, folder: Path, tmp_path: Path) -> None:
    path = folder / "squares" / "images" / "blue.png"
    hits = [(hit.document.doc_id, pytest.approx(hit.score, abs=1e-6)) for hit in open_index(folder / "index").hits(Query("query", "", image=path), 3)]
    for image in (path, path.read_bytes()):
        assert [(one.id, one.score) for one in server.client().search(image=image, k=3).results if not isinstance(one, list)] == hits
    for named in ([], ["squares"]):
        said = command("search", *named, "--url", server.url, "--image", path, "-k", 3, "--json")
        told = json.loads(said.out)
        assert ([(one["id"], one["score"]) for one in told["results"]], told["image"]) == (hits, str(path))
    assert command("search", "--url", server.url, "--image", path, "-k", 3, "--trec", tmp_path / "run").status == 0
    assert [line.split()[2] for line in (tmp_path / "run").read_text().splitlines()] == [doc_id for doc_id, _ in hits]
    shown = command("search", "--url", server.url, "--image", path, "-k", 3, "--filter", "kind=image").out
    assert [line.split()[2] for line in shown.splitlines()] == [doc_id for doc_id, _ in found(asked(server, path.read_bytes(), k=3, filter={"kind": "image"}))]
    assert command("search", "--url", server.url, "--image", tmp_path / "none.png").error.startswith(f"{tmp_path / 'none.png'}: cannot be read")
    assert "search: names no index" in command("search", "--image", path).error
    with pytest.raises(ServiceError, match="reads no images"):
        server.client().search(image=path, index="texts")


def test_what_is_remembered_of_an_image_is_that_of_its_bytes(server: Running) -> None:
    one, other = (encoded(noise(20 + side, 20)) for side in (0, 1))
    first = asked(server, one)
    assert (first.json["cached"], found(asked(server, one))) == (False, found(first))
    assert asked(server, one).json["cached"]
    assert not asked(server, other).json["cached"]


def test_images_that_come_together_are_answered_as_one_by_one(server: Running) -> None:
    several = [encoded(noise(30 + side, 30)) for side in range(6)] * 3
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(lambda image: found(asked(server, image, k=4)), several))
    assert together == [found(asked(server, image, k=4)) for image in several]
    assert images._HELD == {}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"image": "drawing.png"}, "image: is not base64 ("),
        ({"image": "/etc/passwd"}, "image: is not base64 ("),
        ({"image": "é"}, "image: is not base64 ("),
        ({"image": "data:image/png,abc"}, "image: is a data: URL without base64; write it as data:image/png;base64,..."),
        ({"image": "data:image/png;base64"}, "image: is a data: URL without base64"),
        ({"image": ""}, "image: String should have at least 1 character"),
        ({"image": " "}, "image: is empty; allowed are PNG, JPEG, WebP, GIF, BMP or TIFF"),
        ({"image": 3}, "image: Input should be a valid string"),
        ({"image": base64.b64encode(b"%!PS-Adobe").decode()}, "image: is no image (it begins with b'%!PS-Ado'); allowed are PNG"),
        ({"image": base64.b64encode(encoded(noise())[:900]).decode()}, "image: the image is cut off or damaged ("),
        ({"image": base64.b64encode(png_that_claims(90, 60)).decode()}, "image: the image has 90 x 60 pixels, more than the 5,000 allowed."),
        ({"image": base64.b64encode(png_that_claims(2**31 - 1, 2**31 - 1)).decode()}, "image: the image "),
        ({"image": "AAAA", "query": "red"}, "body: give query, queries or image, one of the three"),
        ({"image": "AAAA", "turns": [{"speaker": "user", "text": "red"}]}, "body: turns go with one query, not with an image"),
        ({"image": "AAAA", "k": 5_000}, "k: 5,000, and 1,000 are allowed"),
        ({"image": "AAAA", "index": "texts"}, "image: the student of this index is a dense one, which reads no images. Search with a text, or train one"),
    ],
)
def test_what_cannot_be_searched_with_is_told_in_one_line(server: Running, body: dict[str, Any], error: str) -> None:
    assert server.post("/v1/search", body).error.startswith(f"400 invalid_request: {error}")


def test_an_image_in_too_many_bytes_is_refused_before_it_is_read(server: Running) -> None:
    assert asked(server, bytes(200_000)).error == "413 too_large: the body has more than 200,000 bytes"


def test_an_image_is_held_as_long_as_one_of_its_requests_is_answered() -> None:
    image = decoded(encoded(noise()), "image")
    with held(image, "one") as address:
        with held(decoded(encoded(noise()), "image"), "one") as same:
            assert (same, read_image(same)) == (address, image)
        assert read_image(address) is image
        assert not address.exists()
    with pytest.raises(DataError, match="cannot be read"):
        read_image(address)


def test_threads_that_hold_and_let_go_leave_nothing() -> None:
    image, wrong = decoded(encoded(noise()), "image"), []

    def hold() -> None:
        for _ in range(200):
            with held(image, "shared") as address:
                try:
                    read_image(address)
                except DataError as error:
                    wrong.append(error)

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, images._HELD) == ([], {})


def test_an_image_stays_while_one_of_two_holders_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    holders_at_removal = []

    class Watched(dict[Path, tuple[Any, int]]):
        def __delitem__(self, address: Path) -> None:
            holders_at_removal.append(self[address][1])
            super().__delitem__(address)

        def pop(self, address: Path) -> tuple[Any, int]:  # type: ignore[override]
            holders_at_removal.append(self[address][1])
            return super().pop(address)

    monkeypatch.setattr(images, "_HELD", Watched())
    image = decoded(encoded(noise()), "image")
    with held(image, "twice"), held(image, "twice"):
        pass
    assert holders_at_removal == [1]


@given(st.binary(max_size=40))
def test_bytes_come_back_from_base64_however_it_is_written(content: bytes) -> None:
    text = base64.b64encode(content).decode()
    assert bytes_of(text) == bytes_of(f"data:;base64,{text}") == bytes_of(f"DATA:image/png;charset=x;BASE64,\n{text}\n") == content


@given(st.text(max_size=40))
def test_any_text_is_bytes_or_a_mistake(text: str) -> None:
    try:
        told = f"image: is {len(bytes_of(text))} bytes"
    except RequestError as error:
        told = str(error)
    assert told.startswith("image: is ")
