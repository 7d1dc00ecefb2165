"""Pixels decide whether an image can be used, and nothing that stands around them."""

from __future__ import annotations

import io
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from zoo.data.images import SUFFIXES, open_image
from zoo.data.processors import image_arrays
from zoo.data.sources.webdataset import WebDataset
from zoo.errors import SampleError
from zoo.items import to_items
from zoo.vectors.rows import open_rows

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
BROKEN_EXIF = b"\x00\x08\x00\x02\x01\x12\x00\x03"


def encoded(kind: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, content: bytes, check: int | None = None) -> bytes:
    check = zlib.crc32(name + content) if check is None else check
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def in_png(*chunks: bytes, last: bool = False) -> bytes:
    """Chunks behind the header, or behind the pixels."""
    png = encoded("PNG")
    at = len(png) - 12 if last else 33
    return png[:at] + b"".join(chunks) + png[at:]


def in_jpeg(number: int, content: bytes) -> bytes:
    jpeg = encoded("JPEG", quality=95)
    return jpeg[:2] + bytes([0xFF, number]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def in_webp(name: bytes, content: bytes, flag: int) -> bytes:
    webp = encoded("WEBP", lossless=True)
    header = bytes([flag, 0, 0, 0]) + struct.pack("<I", 19)[:3] + struct.pack("<I", 11)[:3]
    parts = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + header + webp[12:]
    parts += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


LONG = zlib.compress(b"a" * 3_000_000)
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3
ODD = {
    "png, exif": in_png(chunk(b"eXIf", BROKEN_EXIF)),
    "png, exif behind": in_png(chunk(b"eXIf", BROKEN_EXIF), last=True),
    "png, long text": in_png(chunk(b"zTXt", b"Comment\0\0" + LONG)),
    "png, long text behind": in_png(chunk(b"zTXt", b"Comment\0\0" + LONG), last=True),
    "png, long international text": in_png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG)),
    "png, long profile": in_png(chunk(b"iCCP", b"profile\0\0" + LONG)),
    "png, many texts": in_png(*[chunk(b"tEXt", b"a\0" + b"b" * 900_000)] * 80),
    "png, check sum of a text": in_png(chunk(b"tEXt", b"a\0b", check=7)),
    "webp, exif": in_webp(b"EXIF", BROKEN_EXIF, 0x08),
    "webp, xmp": in_webp(b"XMP ", b"<x>\xa8\xa9</x>", 0x04),
    "jpeg, exif": in_jpeg(0xE1, b"Exif\0\0" + BROKEN_EXIF),
    "jpeg, short header": in_jpeg(0xE0, b"JFIF\0"),
    "jpeg, short colour mark": in_jpeg(0xEE, b"Adobe"),
    "jpeg, broken index of images": in_jpeg(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
}
CLEAN = {"png": encoded("PNG"), "webp": encoded("WEBP", lossless=True), "jpeg": encoded("JPEG", quality=95)}


@pytest.mark.parametrize("name", ODD)
def test_the_pixels_count(name: str, tmp_path: Path) -> None:
    expected = np.asarray(Image.open(io.BytesIO(CLEAN[name.partition(",")[0]])))
    path = tmp_path / "odd.png"
    path.write_bytes(ODD[name])
    for source in (ODD[name], path):
        np.testing.assert_array_equal(np.asarray(open_image(source, "x")), expected)


def test_the_side_that_is_up_counts_too() -> None:
    """Where it can be read, beside something that can't."""
    exif = UPSIDE_DOWN.tobytes().removeprefix(b"Exif\0\0")
    png = in_png(chunk(b"eXIf", exif), chunk(b"zTXt", b"Comment\0\0" + LONG))
    np.testing.assert_array_equal(np.asarray(open_image(png, "x")), PIXELS[::-1, ::-1])
    jpeg = encoded("JPEG", quality=95, exif=UPSIDE_DOWN)
    odd = jpeg[:2] + b"\xff\xe0\0\7JFIF\0" + jpeg[2:]
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))[::-1, ::-1]
    np.testing.assert_array_equal(np.asarray(open_image(odd, "x")), expected)


@pytest.mark.parametrize("name", ["png, long text", "jpeg, short header"])
def test_broken_pixels_are_still_an_error(name: str) -> None:
    with pytest.raises(SampleError, match=r"x: image is (damaged|not a picture)"):
        open_image(ODD[name][:-200], "x")


def test_in_every_reader(tmp_path: Path) -> None:
    for name, content in ODD.items():
        with tarfile.open(tmp_path / "a.tar", "a") as tar:
            for ending, data in (("png", content), ("txt", b"a caption")):
                info = tarfile.TarInfo(f"{list(ODD).index(name):03d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    records = WebDataset(str(tmp_path / "a.tar"))
    tar_images = [records.record(index).image for index in range(len(records))]
    pq.write_table(pa.table({"image": pa.array(list(ODD.values()))}), tmp_path / "a.parquet")
    [(_, rows)] = open_rows(tmp_path / "a.parquet").shards(100, [0])
    given = [*to_items(list(ODD.values())), *(row.item for row in rows)]
    images = [*tar_images, *(image for item in given for image in item.images)]
    assert len(images) == 3 * len(ODD)
    assert {open_image(image, "x").size for image in images} == {(20, 12)}


# ---- formats of phones -----------------------------------------------------------------------------------------------

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100


def test_heic_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    image_arrays._formats.cache_clear()
    try:
        with pytest.raises(
            SampleError, match=r"x: image is a HEIC image, which needs pillow-heif .*pip install pillow-heif"
        ):
            open_image(HEIC, "x")
    finally:
        image_arrays._formats.cache_clear()
    assert {".heic", ".heif", ".avif"} <= SUFFIXES  # a folder's reader names and counts them


def test_heic_is_decoded() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    smooth = np.broadcast_to(np.arange(40, 200, 2, dtype=np.uint8)[None, :, None], (60, 80, 3))
    image = open_image(encoded("HEIF", smooth, quality=95), "x")
    assert image.mode == "RGB" and np.abs(np.asarray(image).astype(int) - smooth).mean() < 3


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_decoded() -> None:
    smooth = np.broadcast_to(np.arange(40, 200, 2, dtype=np.uint8)[None, :, None], (60, 80, 3))
    image = open_image(encoded("AVIF", smooth, quality=95), "x")
    assert image.mode == "RGB" and np.abs(np.asarray(image).astype(int) - smooth).mean() < 3
