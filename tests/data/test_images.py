"""Whatever may stand where a picture is expected."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.images import open_image
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
