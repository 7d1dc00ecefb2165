"""Large images take little memory, and give the pixels that they give in one piece."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.data.images import open_image, open_images
from zoo.data.processors import image_arrays
from zoo.data.processors.dual_arrays import Picture
from zoo.data.processors.image_arrays import PAGE
from zoo.data.processors.png_rows import png_exif, png_rows
from zoo.data.processors.vlm_arrays import Pixels
from zoo.errors import SampleError

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(mode: str, width: int = 61, height: int = 47) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = RNG.integers(0, 255, (height, width, channels), dtype=np.uint8)
    values[: height // 2] //= 16  # rows of another kind, for which an encoder takes another filter
    return Image.frombytes(mode, (width, height), values.tobytes())


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


FILES = {
    "rgb.png": encoded(noise("RGB")),
    "rgb, one colour clear.png": encoded(Image.new("RGB", (61, 47), (1, 2, 3)), transparency=(1, 2, 3)),
    "rgba.png": encoded(noise("RGBA")),
    "la.png": encoded(noise("LA")),
    "l.png": encoded(noise("L")),
    "palette.png": encoded(noise("RGB").quantize(16), transparency=3),
    "sixteen.png": encoded(Image.fromarray(RNG.integers(0, 65535, (47, 61), dtype=np.uint16))),
    "cmyk.jpg": encoded(noise("CMYK"), "JPEG", quality=95),
    "film.gif": encoded(noise("P"), "GIF"),
    "floats.tif": encoded(Image.fromarray(RNG.random((47, 61), dtype=np.float32) * 3), "TIFF"),
    **{f"turned {n}.png": encoded(noise("RGBA"), exif=turned(n)) for n in range(2, 9)},
    **{f"turned {n}.jpg": encoded(noise("RGB"), "JPEG", quality=95, exif=turned(n)) for n in (3, 6, 8)},
}
FITS = {
    "shortest": Picture(16).fit,
    "squash": Picture(16, "squash", interpolation="bilinear").fit,
    "longest": Picture(16, "longest").fit,
    "wider": Picture(100, "squash").fit,
    "patches": Pixels(patch_size=4, min_pixels=64, max_pixels=600).fit,
    "none": None,
}


@pytest.mark.parametrize(("name", "fit"), list(itertools.product(FILES, FITS)))
def test_bands_give_the_pixels_of_the_whole(name: str, fit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = {"background": (10, 200, 90), "fit": FITS[fit]}
    whole = open_image(FILES[name], "x", **colours)
    assert fit == "none" or whole.size == FITS[fit].size(*open_image(FILES[name], "x").size)  # type: ignore[union-attr]
    monkeypatch.setattr(image_arrays, "_BAND", 5 * 61)
    monkeypatch.setattr(image_arrays, "_ALONE", 0)
    banded = open_image(FILES[name], "x", **colours)
    assert banded.mode == "RGB" and banded.info.get(PAGE) == whole.info.get(PAGE)
    np.testing.assert_array_equal(np.asarray(banded), np.asarray(whole))


@pytest.mark.parametrize("picture", [Picture(16), Picture(16, "longest"), Picture(16, "squash")])
def test_what_is_read_to_fit_is_left_as_it_is(picture: Picture) -> None:
    for width, height in itertools.product((1, 5, 16, 17, 31, 64, 200, 333), repeat=2):
        image = noise("RGB", width, height)
        fitted = open_image(image, "x", fit=picture.fit)
        np.testing.assert_array_equal(picture.bytes_of(fitted), picture.bytes_of(image))


@pytest.mark.parametrize("rounded", [False, True])
def test_so_it_is_in_patches(rounded: bool) -> None:
    for low, high in ((64, 600), (300, 300), (1000, 1100)):
        pixels = Pixels(patch_size=4, min_pixels=low, max_pixels=high, rounded_first=rounded)
        for width, height in itertools.product((5, 16, 17, 31, 64, 200, 333), repeat=2):
            image = noise("RGB", width, height)
            fitted, grid = pixels.patches(open_image(image, "x", fit=pixels.fit))
            whole, expected = pixels.patches(image)
            assert grid == expected
            np.testing.assert_array_equal(fitted, whole)


def test_a_thread_takes_no_more_than_its_middle() -> None:
    """2 x 60,000 pixels: with the shorter side at 224, the whole would have 1.5 billion."""
    image = Image.new("RGB", (60_000, 2), "blue")
    image.paste("red", (29_990, 0, 30_010, 2))
    found = Picture(224).bytes_of(open_image(image, "x", fit=Picture(224).fit))
    assert found.shape == (224, 224, 3) and (found == (255, 0, 0)).all()


# ---- the ways to save memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
@pytest.mark.parametrize("step", [1, 7, 46, 47, 100])
def test_rows_of_a_png(mode: str, step: int, tmp_path: Path) -> None:
    image = noise(mode)
    (tmp_path / "a.png").write_bytes(encoded(image))
    for source in (tmp_path / "a.png", encoded(image, compress_level=0)):
        rows = list(png_rows(source, step) or [])
        assert [part.height for part in rows] == [min(step, 47 - y) for y in range(0, 47, step)]
        np.testing.assert_array_equal(np.concatenate([np.asarray(part) for part in rows]), np.asarray(image))


def test_what_is_no_png_in_order_has_no_rows() -> None:
    png = encoded(noise("RGB"))
    assert png_rows(png[:28] + b"\1" + png[29:], 5) is None  # interlaced
    assert png_rows(png[:24] + b"\x10" + png[25:], 5) is None  # 16 bits
    for other in (encoded(noise("L")), encoded(noise("P")), encoded(noise("RGB"), "JPEG"), b"", png[:20]):
        assert png_rows(other, 5) is None


@pytest.mark.parametrize("cut", [45, 400, 2000, -30])
def test_rows_of_a_truncated_png_are_an_error(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    png = encoded(noise("RGB"))
    with pytest.raises(EOFError, match="truncated"):
        list(png_rows(png[:cut], 5) or [])
    monkeypatch.setattr(image_arrays, "_ALONE", 0)
    with pytest.raises(SampleError, match=r"x: image is damaged: .*truncated"):
        open_image(png[:cut], "x", fit=Picture(16).fit)


def test_a_png_may_end_behind_its_pixels_but_its_sum_must_be_right() -> None:
    """As Pillow has it."""
    png = encoded(noise("RGB"))
    for cut in (-4, -12, -16, -20):
        assert len(list(png_rows(png[:cut], 5) or [])) == 10
    wrong = bytearray(png)
    wrong[-17] ^= 1
    for decode in (lambda: list(png_rows(bytes(wrong), 5) or []), lambda: Image.open(io.BytesIO(wrong)).load()):
        with pytest.raises((ValueError, OSError), match="broken"):
            decode()


def test_the_orientation_may_stand_behind_the_pixels() -> None:
    png = encoded(noise("RGB"), exif=turned(6))
    start, end = png.index(b"eXIf") - 4, png.index(b"IDAT") - 4
    behind = png[:start] + png[end:-12] + png[start:end] + png[-12:]
    assert png_exif(behind) == png_exif(png) != b"" and png_exif(encoded(noise("RGB"))) == b""


def test_a_very_large_jpeg_is_decoded_at_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[0:600, 0:801]
    image = Image.fromarray(np.dstack([x * 255 // 801, y * 255 // 600, (x // 90 + y // 70) % 2 * 200]).astype(np.uint8))
    data = encoded(image, "JPEG", quality=95, exif=turned(6))
    whole = open_image(data, "x", fit=Picture(64).fit)
    monkeypatch.setattr(image_arrays, "_ALONE", 0)
    monkeypatch.setattr(image_arrays, "_REDUCED", 0)
    found = open_image(data, "x", fit=Picture(64).fit)
    assert found.size == whole.size == (64, 85)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(whole))
    assert 0 < difference.mean() < 2  # another way of shrinking, and nearly the same pixels
    given = Image.open(io.BytesIO(data))  # in memory it stays as it is
    open_image(given, "x", fit=Picture(64).fit)
    assert given.size == (801, 600)


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, decoded = [], [], image_arrays._decoded

    def watched(*arguments: Any) -> Image.Image:
        running.append(threading.get_ident())
        most.append(len(running))
        time.sleep(0.01)
        running.remove(threading.get_ident())
        return decoded(*arguments)

    monkeypatch.setattr(image_arrays, "_decoded", watched)
    monkeypatch.setattr("zoo.data.images.usable_cores", lambda: 4)
    files = [[FILES["rgb.png"]] for _ in range(8)]
    open_images(files, list("abcdefgh"))
    assert max(most) > 1
    most.clear()
    monkeypatch.setattr(image_arrays, "_ALONE", 0)
    open_images(files, list("abcdefgh"))
    assert max(most) == 1


MEASURE = """
import sys
from pathlib import Path
from zoo.data.images import open_image
from zoo.data.processors.dual_arrays import Picture

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024

open_image(Path(sys.argv[1]).with_name("small.png"), "x", fit=Picture().fit)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = peak()
open_image(Path(sys.argv[1]), "x", fit=Picture().fit)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what a process took at most")
@pytest.mark.parametrize(
    "name",
    [
        "clear palette.png",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("rgba.png", "rgb.png", "base.jpg", "progressive.jpg", "p.gif")
        ),
    ],
)
def test_64_megapixels_take_200_megabytes_at_most(name: str, tmp_path: Path) -> None:
    size, path = (8000, 8000), tmp_path / name
    make = {
        "clear palette.png": lambda: Image.new("P", size, 1).save(path, transparency=0, compress_level=1),
        "rgba.png": lambda: Image.new("RGBA", size, (1, 2, 3, 4)).save(path, compress_level=1),
        "rgb.png": lambda: Image.new("RGB", size, (1, 2, 3)).save(path, compress_level=1),
        "base.jpg": lambda: Image.new("RGB", size, (1, 2, 3)).save(path),
        "progressive.jpg": lambda: Image.new("RGB", size, (1, 2, 3)).save(path, progressive=True),
        "p.gif": lambda: Image.new("P", size, 1).save(path),
    }
    make[name]()
    Image.new("RGB", (300, 300)).save(tmp_path / "small.png")
    run = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 200
