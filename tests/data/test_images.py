"""Whatever may stand where a picture is expected."""

from __future__ import annotations

import io
import multiprocessing
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from zoo.data.images import open_image, open_images
from zoo.errors import SampleError


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def noise(width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"this is no picture", "not a picture"),
        (encoded(noise())[:200], "damaged"),
        (encoded(noise(), "JPEG")[:300], "damaged"),
        (png_claiming(65_000, 65_000), "65000x65000|too large"),
        (png_claiming(9_000, 9_000), "9000x9000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    ],
    ids=["empty", "text", "truncated png", "truncated jpeg", "bomb", "huge", "eps", "svg"],
)
def test_unusable_pictures_are_refused_by_name(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.png"
    file.write_bytes(data)
    with pytest.raises(SampleError, match=f"sample 3.*({message})"):
        open_image(data, "sample 3")
    with pytest.raises(SampleError, match=rf"sample 3.*odd\.png.*({message})"):
        open_image(file, "sample 3")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"sample 3.*gone\.png does not exist"):
        open_image(tmp_path / "gone.png", "sample 3")


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data, "x").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    data = encoded(clear, transparency=0) if mode == "P" else encoded(clear)
    assert open_image(data, "x").getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    picture = noise(20, 10)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert open_image(encoded(picture, "JPEG", exif=exif), "x").size == (10, 20)


def test_sixteen_bits_keep_their_range() -> None:
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    picture = open_image(encoded(Image.fromarray(values)), "x")
    assert [picture.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    picture = open_image(encoded(Image.new("RGB", (8, 8), "white").convert(mode), kind), "x")
    assert picture.mode == "RGB" and picture.getpixel((4, 4))[0] > 250


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "image is a int, not a path, encoded bytes, an open file, a PIL image, an array or a tensor"),
        (None, "is a NoneType, not"),
        (
            "https://example.org/a.png",
            "is an address, and nothing is fetched from addresses: download it and give the path",
        ),
        ("data:image/png;base64,AAAA", "not a picture in one of the formats"),
        ("data:image/png;base64,AAA", "no valid data: address"),
        ("data:image/png;base64", "no valid data: address"),
        (Path("s3://bucket/a.png"), "s3:/bucket/a.png is an address"),
        ("a\0b.png", "can't be read|does not exist"),
        ("x" * 5000, "can't be read|does not exist"),
        (Path(), "is a folder"),
    ],
)
def test_what_is_no_file_is_refused_by_name(source: object, message: str) -> None:
    with pytest.raises(SampleError, match=rf"^sample 3: .*({message})"):
        open_image(source, "sample 3")


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(SampleError, match="9000x9000 pixels, more than 64000000"):
        open_image(png_claiming(9_000, 9_000), "x")
    with pytest.raises(SampleError, match="40x30 pixels, more than 1000"):
        open_image(encoded(noise(40, 30)), "x", max_pixels=1000)


def test_transparency_shows_the_background_and_edges_are_mixed() -> None:
    picture = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    picture.putpixel((2, 0), (10, 20, 30, 255))
    opened = open_image(encoded(picture), "x", background=(200, 100, 0))
    assert opened.getpixel((0, 0)) == (200, 100, 0)
    assert opened.getpixel((1, 0)) == pytest.approx((100, 50, 0), abs=1)
    assert opened.getpixel((2, 0)) == (10, 20, 30)


def test_one_transparent_colour_becomes_white() -> None:
    for mode, colour in (("RGB", (9, 9, 9)), ("L", 9), ("1", 0)):
        data = encoded(Image.new(mode, (4, 4), colour), transparency=colour)
        assert open_image(data, "x").getpixel((0, 0)) == (255, 255, 255), mode


def test_a_picture_in_memory_is_not_changed() -> None:
    plain, clear = noise(), Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert open_image(plain, "x") is plain
    assert open_image(clear, "x").mode == "RGB" and clear.mode == "RGBA"
    turned = noise(20, 10)
    turned.getexif()[0x0112] = 8
    assert open_image(turned, "x").size == (10, 20) and turned.size == (20, 10)


@pytest.mark.parametrize(("turn", "corner"), [(1, 0), (2, 1), (3, 3), (4, 2), (5, 0), (6, 2), (7, 3), (8, 1)])
def test_every_orientation_puts_the_right_corner_first(turn: int, corner: int) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    picture = Image.new("RGB", (2, 2))
    for place, colour in enumerate(colours):
        picture.putpixel((place % 2, place // 2), colour)
    exif = picture.getexif()
    exif[0x0112] = turn
    assert open_image(encoded(picture, "PNG", exif=exif), "x").getpixel((0, 0)) == colours[corner]


def test_floats_are_read_up_to_one_or_to_their_largest() -> None:
    for top in (1.0, 80.0):
        values = np.array([[0.0, top / 2, top, np.nan]], np.float32)
        opened = open_image(encoded(Image.fromarray(values), "TIFF"), "x")
        assert [opened.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_every_kind_of_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert open_image(data, "x").getpixel((0, 0)) == (255, 0, 0)


def test_damage_anywhere_is_an_error_that_names_the_sample_or_no_error() -> None:
    rng = np.random.default_rng(0)
    whole = [encoded(noise(), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    refused = 0
    for number in range(300):
        data = bytearray(whole[number % len(whole)])
        data[rng.integers(0, min(len(data), 80))] ^= int(rng.integers(1, 256))
        try:
            assert open_image(bytes(data), "sample 3", max_pixels=10**6).mode == "RGB"
        except SampleError as error:
            assert str(error).startswith("sample 3: image")
            refused += 1
    assert refused > 50


# ---- several ---------------------------------------------------------------------------------------------------------


def _sides(sources: list[list[bytes]], threads: set[int]) -> list[list[int]]:
    def watched(picture: Image.Image) -> Image.Image:
        threads.add(threading.get_ident())
        return picture

    return [[one.width for one in row] for row in open_images(sources, [f"s{i}" for i in range(len(sources))], watched)]


def _in_a_process(queue: Any, sources: list[list[bytes]]) -> None:
    threads: set[int] = set()
    queue.put((_sides(sources, threads), threads == {threading.get_ident()}))


def test_several_pictures_are_opened_in_threads_but_not_in_a_worker() -> None:
    sources = [[encoded(noise(8 + i, 8))] * (i % 3) for i in range(12)]
    wanted = [[8 + i] * (i % 3) for i in range(12)]
    threads: set[int] = set()
    assert _sides(sources, threads) == wanted and threading.get_ident() not in threads
    queue: Any = multiprocessing.get_context("fork").Queue()
    process = multiprocessing.get_context("fork").Process(target=_in_a_process, args=(queue, sources))
    process.start()
    assert queue.get(timeout=60) == (wanted, True)
    process.join()
    few: set[int] = set()
    assert _sides(sources[:3], few) == wanted[:3] and few == {threading.get_ident()}


@pytest.mark.parametrize("count", [3, 20])
def test_the_first_of_several_bad_pictures_is_named(count: int) -> None:
    sources = [[encoded(noise())] for _ in range(count)]
    sources[1] = [b"bad"]
    sources[-1] = [b""]
    with pytest.raises(SampleError, match=r"^s1: image is not a picture"):
        open_images(sources, [f"s{i}" for i in range(count)])


def test_one_picture_that_is_not_read_yet_may_stand_in_several_samples(tmp_path: Path) -> None:
    noise(300, 300).save(tmp_path / "one.jpg")
    with Image.open(tmp_path / "one.jpg") as picture:
        found = open_images([[picture]] * 16, [f"s{i}" for i in range(16)])
    assert all(row[0].tobytes() == found[0][0].tobytes() for row in found)


def test_a_file_that_vanishes_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder was listed, and others work in it."""
    path, opened = tmp_path / "a.png", Image.open
    for error in (None, UnidentifiedImageError("?")):
        path.write_bytes(encoded(noise()))

        def vanishing(source: Path, error: Exception | None = error, **options: Any) -> Image.Image:
            source.unlink()
            if error is not None:
                raise error
            return opened(source, **options)

        monkeypatch.setattr(Image, "open", vanishing)
        with pytest.raises(SampleError, match=r"^x: image .*a\.png (does not exist|is unreadable: .*No such file)"):
            open_image(path, "x")
