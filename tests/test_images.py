from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retriever.collection import write_collection
from retriever.errors import DataError
from retriever.images.files import image_bytes, image_sha256, tar_members
from retriever.images.reading import read_image
from retriever.scores.scoring import query_variant
from retriever.types import Document, Query

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}


def pixels(image: Image.Image) -> list[list[tuple[int, ...]]]:
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def saved(path: Path, image: Image.Image, **settings: Any) -> Path:
    image.save(path, **settings)
    return path


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def noise(width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


# What is read


@pytest.mark.parametrize("ending", FORMATS)
def test_every_allowed_format_is_read_by_its_bytes_and_not_by_its_name(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(encoded(Image.new("RGB", (3, 2), GREEN), FORMATS[ending]))
    read = read_image(path)
    assert (read.mode, read.size, read.info) == ("RGB", (3, 2), {})
    assert np.abs(np.asarray(read).astype(int) - GREEN).max() <= 3  # JPEG and WebP round


def grey_16() -> Image.Image:
    return Image.fromarray(np.array([[0, 257 * 128, 65535]], dtype=np.uint16))


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    return image


@pytest.mark.parametrize(
    ("image", "form", "row"),
    [
        (Image.new("1", (1, 1), 1), "PNG", [WHITE]),
        (Image.new("L", (1, 1), 7), "PNG", [(7, 7, 7)]),
        (Image.new("LA", (1, 1), (0, 255)), "PNG", [BLACK]),
        (Image.new("LA", (1, 1), (0, 0)), "PNG", [WHITE]),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "PNG", [WHITE]),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 51)), "PNG", [(204, 204, 204)]),  # a fifth of black on white
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "WEBP", [WHITE]),
        (palette(), "PNG", [RED, BLUE]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF", [BLACK]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF", [RED]),
        (grey_16(), "PNG", [BLACK, (128, 128, 128), WHITE]),
        (grey_16(), "TIFF", [BLACK, (128, 128, 128), WHITE]),
        (Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)), "TIFF", [BLACK, (51, 51, 51), WHITE]),
        (Image.fromarray(np.array([[np.nan, 51.0, 400.0]], dtype=np.float32)), "TIFF", [BLACK, (51, 51, 51), WHITE]),
    ],
)
def test_every_mode_becomes_rgb_with_transparency_on_white(tmp_path: Path, image: Image.Image, form: str, row: list[tuple[int, ...]]) -> None:
    assert pixels(read_image(saved(tmp_path / "a", image, format=form, **({"lossless": True, "exact": True} if form == "WEBP" else {})))) == [row]


def test_a_transparent_entry_of_a_palette_is_white(tmp_path: Path) -> None:
    for form in ("PNG", "GIF"):
        path = saved(tmp_path / form, palette(), format=form, transparency=1)
        assert pixels(read_image(path)) == [[RED, WHITE]]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, form: str) -> None:
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)
    path = saved(tmp_path / "moving", first, format=form, save_all=True, append_images=[second], **({"lossless": True} if form == "WEBP" else {}))
    with Image.open(path) as moving:
        assert getattr(moving, "n_frames", 1) == 2
    assert pixels(read_image(path))[0][0] == RED


STORED = Image.fromarray(np.array([[RED, GREEN], [BLUE, BLACK], [BLACK, BLACK]], dtype=np.uint8))
UPRIGHT = {
    1: [[RED, GREEN], [BLUE, BLACK], [BLACK, BLACK]],
    2: [[GREEN, RED], [BLACK, BLUE], [BLACK, BLACK]],
    3: [[BLACK, BLACK], [BLACK, BLUE], [GREEN, RED]],
    4: [[BLACK, BLACK], [BLUE, BLACK], [RED, GREEN]],
    5: [[RED, BLUE, BLACK], [GREEN, BLACK, BLACK]],
    6: [[BLACK, BLUE, RED], [BLACK, BLACK, GREEN]],
    7: [[BLACK, BLACK, GREEN], [BLACK, BLUE, RED]],
    8: [[GREEN, BLACK, BLACK], [RED, BLUE, BLACK]],
}
"""EXIF orientation -> what is seen of STORED: 2 is mirrored, 3 upside down, 6 needs a quarter turn clockwise."""


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_image_is_turned_upright_once(tmp_path: Path, orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_image(saved(tmp_path / "turned", STORED, format=form, exif=exif, **({"lossless": True} if form == "WEBP" else {})))
    assert pixels(read) == UPRIGHT[orientation]
    assert read.getexif().get(0x0112, 1) == 1


def test_a_photograph_is_turned_upright_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    left_red = Image.new("RGB", (32, 16), BLUE)
    left_red.paste(RED, (0, 0, 16, 16))
    read = read_image(saved(tmp_path / "a.jpg", left_red, exif=exif, quality=95))
    assert read.size == (16, 32)
    assert np.asarray(read)[4, 8].argmax() == 0  # red came up, blue down
    assert np.asarray(read)[28, 8].argmax() == 2


def test_broken_exif_data_leave_the_pixels_as_they_are(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (2, 1), RED), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert pixels(read_image(path)) == [[RED, RED]]


# What is refused


def refused(path: Path, words: str, **settings: Any) -> None:
    with pytest.raises(DataError) as error:
        read_image(path, **settings)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    for name, content, words in (("empty", b"", "is empty"), ("text", b"hello there", "is no image"), ("riff", b"RIFF1234WAVEfmt ", "is no image")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, words)
    refused(tmp_path / "absent.png", "cannot be read (No such file")
    refused(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a device or pipe")
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    refused(tmp_path / "page.png", "PNG, JPEG, WebP, GIF, BMP or TIFF")


@pytest.mark.parametrize("ending", FORMATS)
def test_a_truncated_image_is_refused_and_not_half_read(tmp_path: Path, ending: str) -> None:
    whole = encoded(noise(), FORMATS[ending])
    for share in (0.3, 0.6):
        path = tmp_path / f"cut.{ending}"
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, "cut off or damaged")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    for side in (9_000, 12_000, 60_000):  # below, between and above what the image library warns of and refuses by itself
        path.write_bytes(png_that_claims(side, side))
        assert path.stat().st_size < 100
        refused(path, f"{side:,} x {side:,} pixels, more than the 67,108,864 allowed")


def test_the_pixel_limit_counts_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (6, 4)))
    assert read_image(path, max_pixels=24).size == (6, 4)
    refused(path, "6 x 4 pixels, more than the 23 allowed", max_pixels=23)


def test_a_file_with_too_many_bytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.bmp").open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: it takes no space
    refused(tmp_path / "huge.bmp", "1,099,511,627,776 bytes")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), ending=st.sampled_from(sorted(FORMATS)))
def test_damaged_bytes_give_an_image_or_one_clear_line(data: st.DataObject, ending: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = bytearray(encoded(noise(9, 7), FORMATS[ending]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged", numbered=True) / "a"
    path.write_bytes(whole)
    try:
        assert read_image(path, max_pixels=10_000).mode == "RGB"
    except DataError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 (either is right)


# In tar files


def test_a_member_of_a_tar_file_is_read_in_place(tmp_path: Path) -> None:
    red, blue = encoded(Image.new("RGB", (1, 1), RED)), encoded(Image.new("RGB", (1, 1), BLUE))
    shard = write_tar(tmp_path / "000.tar", {"./a.png": red, "deep/b.png": blue})
    assert pixels(read_image(shard / "a.png")) == [[RED]]
    assert pixels(read_image(shard / "deep" / "b.png")) == [[BLUE]]
    assert image_bytes(shard / "a.png") == red
    assert [path.name for path in tmp_path.iterdir()] == ["000.tar"]
    refused(shard / "c.png", "holds no file of the name c.png")
    refused(shard / ".." / "a.png", "holds no file of the name ../a.png")


def test_a_tar_file_is_indexed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "000.tar", {"a.png": b"one"})
    first = tar_members(shard)
    assert tar_members(shard) is first
    write_tar(shard, {"b.png": b"other", "c.png": b"third"})
    assert list(tar_members(shard)) == ["b.png", "c.png"]
    assert image_bytes(shard / "c.png") == b"third"


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "deep/../../a.png"])
def test_a_name_that_leads_out_of_the_tar_file_is_refused(tmp_path: Path, name: str) -> None:
    shard = write_tar(tmp_path / "000.tar", {"good.png": b"x", name: b"y"})
    with pytest.raises(DataError, match=r"000\.tar: holds the name .* leads out of it"):
        image_bytes(shard / "good.png")


def test_links_in_a_tar_file_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "000.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"a\.png is a link"):
        image_bytes(tmp_path / "000.tar" / "a.png")


def damage_nothing(shard: Path) -> None:
    shard.write_bytes(b"no tar file at all, but long enough to be looked at " * 20)


def damage_end(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:700])


@pytest.mark.parametrize(("damage", "words"), [(damage_nothing, "cannot be read as a tar file"), (damage_end, "000.tar")])
def test_a_damaged_tar_file_is_named(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    shard = write_tar(tmp_path / "000.tar", {"a.png": b"x" * 2000})
    damage(shard)
    with pytest.raises(DataError, match=words):
        image_bytes(shard / "a.png")


# Who is who


def test_images_of_equal_bytes_are_the_same_wherever_they_lie(tmp_path: Path) -> None:
    red, blue = encoded(Image.new("RGB", (1, 1), RED)), encoded(Image.new("RGB", (1, 1), BLUE))
    shard = write_tar(tmp_path / "000.tar", {"a.png": red, "b.png": blue})
    (tmp_path / "loose.png").write_bytes(red)
    places = [tmp_path / "loose.png", shard / "a.png", shard / "b.png"]
    hashes = [image_sha256(place) for place in places]
    assert hashes[0] == hashes[1] != hashes[2]
    asked = [query_variant(Query("q", "", image=place)) for place in places]
    assert asked[0] == asked[1] != asked[2]
    collection = write_collection(tmp_path / "both", [Document(str(number), "", image=place) for number, place in enumerate(places)])
    variants = collection.variants.tolist()
    assert variants[0] == variants[1] != variants[2]
    assert (collection.counts["images"], collection.has_images) == (3, True)


def test_a_document_of_an_image_and_a_text_is_neither_of_them(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", Image.new("RGB", (1, 1), RED))
    documents = [Document("both", "red", image=image), Document("text", "red"), Document("image", "", image=image)]
    assert len(set(write_collection(tmp_path / "all", documents).variants.tolist())) == 3


def test_an_image_that_changes_is_read_again(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (1, 1), RED))
    before = image_sha256(path)
    path.write_bytes(encoded(Image.new("RGB", (2, 2), RED)))
    assert image_sha256(path) != before
