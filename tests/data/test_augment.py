"""Changes of samples: random, but a function of `rng`, and within their bounds."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.augment import (
    Affine,
    Background,
    ColourJitter,
    Crop,
    Erase,
    LowerCase,
    Mirror,
    PictureChange,
    WordDropout,
)
from zoo.data.processors.collate import content_key
from zoo.data.source import Augment
from zoo.errors import RecipeError, SampleError, UnknownNameError
from zoo.types import Item, Sample

ALL = [Background(), Crop(), Affine(), Mirror(), ColourJitter(), Erase(1.0), WordDropout(), LowerCase()]


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def noise(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, len(mode)), dtype=np.uint8), mode)


def clear() -> bytes:
    """Transparent, with a black square."""
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (4, 4, 12, 12))
    return png(picture)


def sample(image: object = None, text: str = "A red Bus in the Street") -> Sample:
    item = Item(text=text, images=(image if image is not None else png(noise()),), instruction="Find IT now")
    return Sample(
        "s", {"query": Item(text="Where IS the bus"), "target": item, "negatives": (item, Item(text="No No"))}
    )


def picture(changed: Sample, view: str = "target") -> Image.Image:
    return changed.views[view].images[0]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("change", ALL, ids=lambda change: type(change).__name__)
def test_a_change_is_a_function_of_rng_and_leaves_the_sample_alone(change: Augment) -> None:
    before = sample(clear() if isinstance(change, Background) else None)
    original = before.views["target"]

    def made(seed: int) -> bytes:
        item = change(before, random.Random(seed)).views["target"]
        image = item.images[0]
        return f"{item.text}".encode() + (image if isinstance(image, bytes) else image.tobytes())

    assert [made(seed) for seed in range(5)] == [made(seed) for seed in range(5)]
    assert len({made(seed) for seed in range(40)}) > 1
    assert before.views["target"] is original


@pytest.mark.parametrize("change", ALL, ids=lambda change: type(change).__name__)
def test_size_mode_instruction_id_and_other_fields_stay(change: Augment) -> None:
    before = Sample("s", sample(noise()).views, label=3, weight=0.5, source="x")
    for seed in range(10):
        after = change(before, random.Random(seed))
        assert (after.id, after.label, after.weight, after.source) == ("s", 3, 0.5, "x")
        assert list(after.views) == list(before.views) and len(after.views["negatives"]) == 2
        item = after.views["target"]
        assert (item.instruction, picture(after).size, picture(after).mode) == ("Find IT now", (32, 24), "RGB")


@pytest.mark.parametrize("change", ALL[:6], ids=lambda change: type(change).__name__)
def test_views_limit_a_change_and_an_unknown_one_is_named(change: PictureChange) -> None:
    limited = type(change)(views=("target",))
    after = limited(sample(clear()), random.Random(0))
    assert isinstance(picture(after), Image.Image)
    assert isinstance(after.views["negatives"][0].images[0], bytes)
    with pytest.raises(UnknownNameError, match=r"view 'targt'; did you mean 'target'\?.*sample 's' has query, target"):
        type(change)(views=("targt",))(sample(), random.Random(0))


def test_two_changes_of_one_picture_count_as_the_same_content() -> None:
    one, two = (Crop()(sample(), random.Random(seed)).views["target"] for seed in (1, 2))
    other = Crop()(sample(png(noise().rotate(90))), random.Random(1)).views["target"]
    assert one.images[0].tobytes() != two.images[0].tobytes()
    assert content_key(one) == content_key(two) != content_key(other)


@pytest.mark.parametrize("kind", ["bytes", "path", "picture"])
def test_a_key_that_the_source_gave_stays_and_a_missing_one_is_made(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(noise()))
    image = {"bytes": png(noise()), "path": tmp_path / "a.png", "picture": noise()}[kind]
    keys = [
        Mirror()(Sample("s", {"x": Item(images=(image,), key=k)}), random.Random(0)).views["x"].key for k in ("", "k")
    ]
    assert keys[0] and keys[1] == "k"


def test_a_bad_picture_is_named() -> None:
    with pytest.raises(SampleError, match=r"s: image is not a picture"):
        Crop()(sample(b"nothing"), random.Random(0))


def test_background_fills_what_is_transparent_and_nothing_else() -> None:
    colours = set()
    for seed in range(30):
        image = picture(Background(probability=0.5, darkest=100)(sample(clear()), random.Random(seed)))
        assert image.getpixel((8, 8)) == (0, 0, 0)
        colours.add(image.getpixel((0, 0)))
    assert (255, 255, 255) in colours and len(colours) > 8
    assert min(min(colour) for colour in colours) >= 100
    assert np.array_equal(pixels(picture(Background(1.0)(sample(), random.Random(0)))), pixels(noise()))


def test_borders_of_a_rotated_picture_take_the_page_s_colour() -> None:
    rotate = Affine(degrees=45, scale=(0.5, 0.5), shift=0.0)
    rng = random.Random(0)
    on_colour = Background(1.0)(sample(clear()), rng)
    page = picture(on_colour).getpixel((0, 0))
    assert picture(rotate(on_colour, rng)).getpixel((0, 0)) == page != (255, 255, 255)
    assert picture(rotate(sample(), rng)).getpixel((0, 0)) == (255, 255, 255)


def test_affine_turns_about_the_centre_and_shifts() -> None:
    image = Image.new("RGB", (41, 41), "white")
    image.paste((0, 0, 0), (18, 18, 23, 23))  # a dot in the middle
    still = Affine(degrees=180, scale=(1.0, 1.0), shift=0.0)
    for seed in range(8):
        assert picture(still(sample(image), random.Random(seed))).getpixel((20, 20)) == (0, 0, 0)
    moved = [picture(Affine(0, (1.0, 1.0), 0.25)(sample(image), random.Random(seed))) for seed in range(40)]
    centres = [np.argwhere(pixels(m)[..., 0] < 128).mean(0) - 20 for m in moved]
    assert max(np.abs(c).max() for c in centres) <= 0.25 * 41 + 1
    assert np.ptp(centres, axis=0).min() > 8, "both directions"


def test_mirror_and_crop() -> None:
    assert np.array_equal(pixels(picture(Mirror(1.0)(sample(), random.Random(0)))), pixels(noise())[:, ::-1])
    assert np.array_equal(pixels(picture(Mirror(0.0)(sample(), random.Random(0)))), pixels(noise()))
    whole = picture(Crop((1.0, 1.0), (1.0, 1.0))(sample(), random.Random(0)))
    assert np.array_equal(pixels(whole), pixels(noise()))
    ramp = Image.fromarray(np.tile(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    for seed in range(20):
        row = pixels(picture(Crop((0.25, 0.25), (1.0, 1.0))(sample(ramp), random.Random(seed))))[50, :, 0]
        assert np.ptp(row) == pytest.approx(100, abs=6), "half of the width"


def test_colour_jitter_is_a_mean_kept_by_contrast_and_a_grey_kept_by_saturation() -> None:
    grey = Image.fromarray(np.repeat(np.random.default_rng(0).integers(90, 160, (32, 32, 1), dtype=np.uint8), 3, 2))
    for seed in range(10):
        rng = random.Random(seed)
        assert np.ptp(pixels(picture(ColourJitter(0, 0, 0.9)(sample(noise()), rng))), axis=2).mean() > 0
        saturated = pixels(picture(ColourJitter(0, 0, 0.9)(sample(grey), rng)))
        assert np.abs(saturated - pixels(grey)).max() <= 1, "grey has no colour to lose"
        contrast = pixels(picture(ColourJitter(0, 0.5, 0)(sample(grey), rng)))
        assert contrast.mean() == pytest.approx(pixels(grey).mean(), abs=1)
        brighter = pixels(picture(ColourJitter(0.5, 0, 0)(sample(grey), rng)))
        assert 0.49 <= brighter.mean() / pixels(grey).mean() <= 1.51
    assert np.abs(pixels(picture(ColourJitter(0, 0, 0)(sample(), random.Random(0)))) - pixels(noise())).max() <= 1


def test_erase_paints_one_rectangle() -> None:
    for seed in range(20):
        changed = (pixels(picture(Erase(1.0, (0.1, 0.2))(sample(), random.Random(seed)))) != pixels(noise())).any(2)
        rows, columns = changed.any(1), changed.any(0)
        assert 0.05 < rows.sum() * columns.sum() / changed.size < 0.3
        assert changed[np.ix_(rows, columns)].mean() > 0.95
    assert np.array_equal(pixels(picture(Erase(0.0)(sample(), random.Random(0)))), pixels(noise()))


def test_texts_lose_words_but_never_all() -> None:
    texts = {WordDropout(0.9)(sample(), random.Random(seed)).views["target"].text for seed in range(50)}
    assert all(text and set(text.split()) <= set(["A", "red", "Bus", "in", "the", "Street"]) for text in texts)
    assert min(len(text.split()) for text in texts) == 1 < len(texts)
    one = Sample("s", {"query": Item(text="alone"), "target": Item(images=(png(noise()),))})
    assert WordDropout(1.0)(one, random.Random(0)) == one


def test_lower_case_is_for_texts_alone() -> None:
    after = LowerCase(1.0, views=("target",))(sample(), random.Random(0))
    assert after.views["target"].text == "a red bus in the street"
    assert after.views["target"].instruction == "Find IT now"
    assert after.views["query"].text == "Where IS the bus"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Mirror(1.5),
        lambda: WordDropout(-0.1),
        lambda: Crop(area=(0.9, 0.5)),
        lambda: Crop(area=(0.0, 1.0)),
        lambda: Affine(scale=(0.0, 1.0)),
        lambda: Erase(area=(0.5, 1.5)),
    ],
)
def test_settings_out_of_range_are_refused(wrong: object) -> None:
    with pytest.raises(RecipeError):
        wrong()
