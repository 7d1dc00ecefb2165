"""Texts and pictures become the very numbers that open_clip makes of them."""

from __future__ import annotations

import html
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
from open_clip.tokenizer import get_clean_fn
from open_clip.transform import image_transform
from PIL import Image

from zoo.data.images import open_image
from zoo.data.processors import open_clip_tokenizer
from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption, Picture
from zoo.errors import SampleError, ZooError
from zoo.files import PACKAGED
from zoo.types import Item, Sample

CLIP = Caption(
    bos="<start_of_text>", eos="<end_of_text>", pad="!", cleaning="lower", padding="max_length", max_length=77
)
CLEANINGS = ("whitespace", "lower", "canonicalize")
NASTY = [
    "a photo of a cat",
    "A Photo of a CAT, isn't it? We've; I'LL; they'd; O'REILLY'S",
    "  runs \t of \n\n space\u00a0and\u2003others\u200bzero ",
    "&lt;b&gt; &amp;amp;amp; &quot;x&quot; &#39;s &eacute; &nbsp;end",
    "Ã©tÃ© â€™ mojibake â€œquotedâ€\x9d schÃ¶n",
    "ﬁne ﬂow ﬆ ＦＵＬＬ ｗｉｄｔｈ ½ ² Ⅳ ① 123456789",
    "👩🏽‍🚀 🏳️‍🌈 🇩🇪 ❤️ 🤷🏿‍♂️",
    "東京タワー 北京 서울 กรุงเทพ हिन्दी বাংলা Ελλάς ΟΔΥΣΣΕΥΣ",
    "İstanbul ẞ ß ſ 'ſ ǅ e\u0301 é \u0345 a\u0345b",
    "__init__ {text} {} <html> a_b-c/d\\e ... !!! ?!?! —– “”‘’ \x1b[31mred\x1b[0m \x00\x07",
    "http://example.com/?q=1&amp;r=2#top user@example.com $3.50 50% 1,000.00",
    "word " * 300,
    "x" * 2000,
    "ends with <end_of_text> and starts <start_of_text> or <START_OF_TEXT>",
]


@pytest.fixture(scope="module")
def clip() -> DualProcessor:
    return DualProcessor(open_clip_tokenizer.SOURCE, caption=CLIP)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return open_clip.get_tokenizer("ViT-B-32")


def ids(processor: DualProcessor, text: str) -> list[int]:
    """Of the text alone, without what surrounds it."""
    arrays = processor.arrays
    assert arrays.tokenizer is not None
    return list(arrays.tokenizer.encode(arrays.caption.words(text), add_special_tokens=False).ids)


def written() -> list[str]:
    """Every name and tag of the packaged emoji, in 28 languages."""
    table = pq.read_table(PACKAGED / "emoji.parquet", columns=["names", "tags"]).to_pylist()
    names = [name for row in table for name in row["names"].values() if name]
    tags = [tag for row in table for tags in row["tags"].values() for tag in tags or ()]
    return sorted({*names, *tags})


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY)
def test_tensors_are_those_of_open_clip(text: str, clip: DualProcessor, theirs: Any) -> None:
    batch = clip([Sample("s", {"query": Item(text=text)}), Sample("t", {"query": Item(text="dog")})])
    np.testing.assert_array_equal(batch.views["query"]["input_ids"], theirs([text, "dog"]))


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_names_in_28_languages(step: int, clip: DualProcessor, theirs: Any) -> None:
    texts = written()
    assert len(texts) > 50_000
    wrong = [text for text in texts[::step] if ids(clip, text) != theirs.encode(text)]
    assert not wrong, wrong[:5]


def test_every_character(clip: DualProcessor, theirs: Any) -> None:
    """Those that Python knows: what was added to Unicode later is classified by each library as old as it is."""
    planes = [*range(0x3100), *range(0xA000, 0xAC10), *range(0xF900, 0x10000), *range(0x1D400, 0x1D800)]
    planes += [*range(0x1F000, 0x20000), 0x4E2D, 0x20000, 0xE0041, 0x10FFFF]
    known = [chr(c) for c in planes if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    wrong = [c for c in known if ids(clip, f"a{c}b {c}") != theirs.encode(f"a{c}b {c}")]
    assert len(known) > 15_000 and not wrong, [hex(ord(c)) for c in wrong[:9]]


def test_random_mixtures(clip: DualProcessor, theirs: Any) -> None:
    pool = [
        "'s",
        "'S",
        "'re",
        "'LL",
        " ",
        "  ",
        "\t",
        "\n",
        " <start_of_text>",
        "&amp;",
        "&#39;",
        "Ã©",
        "â€™",
        "“",
        "”",
    ]
    pool += ["'ſ", "İ", "Σ", "ΑΣ", "ß", "ﬁ", "don't", "é", "e\u0301", "\u0345", "日本", "🏳️‍🌈", "1234", "½", "__", "!!"]
    pool += ["{}", "\u200b", "\u00a0", "\x1b[31m", "\x00", "A", "word", "ＡＢ", "&amp;lt;", "a<END_OF_TEXT>"]
    chance = random.Random(0)
    for _ in range(5_000):
        text = "".join(chance.choices(pool, k=chance.randint(1, 8)))
        assert ids(clip, text) == theirs.encode(text), ascii(text)


def test_where_we_differ(clip: DualProcessor, theirs: Any) -> None:
    """A control token that is spelled out right after punctuation; a text of nothing."""
    assert ids(clip, "!!<start_of_text>")[-1] == 49406 and theirs.encode("!!<start_of_text>")[-1] != 49406
    with pytest.raises(SampleError, match="the text is empty"):
        clip([Sample("s", {"query": Item(text=" \n ")})])
    assert theirs(" \n ")[0].tolist()[:3] == [49406, 49407, 0]


def test_its_normalizer_does_without_ftfy_what_it_can(clip: DualProcessor, theirs: Any) -> None:
    """For runtimes that have nothing but the tokenizer.json: the share of names that is not damaged."""
    tokenizer = clip.arrays.tokenizer
    assert tokenizer is not None
    texts = written()[::100]
    wrong = [t for t in texts if tokenizer.encode(t, add_special_tokens=False).ids != theirs.encode(t)]
    assert len(wrong) / len(texts) < 0.05


@pytest.mark.parametrize("cleaning", CLEANINGS)
def test_cleaning(cleaning: Any) -> None:
    reference = get_clean_fn(cleaning)
    for text in [*NASTY, *written()[::200]]:
        assert Caption(cleaning=cleaning).words(text) == reference(text), ascii(text)


def test_the_prompt_is_cleaned_with_the_text() -> None:
    assert Caption(cleaning="lower", prompt="A  Photo of {text}!").words("&quot;X") == 'a photo of "x!'


def test_cleaning_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, clip: DualProcessor) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(SampleError, match=r"s \(query\): .*pip install ftfy"):
        clip([Sample("s", {"query": Item(text="cat")})])


def test_the_tokenizer_is_written_into_bundles_and_exports(clip: DualProcessor, tmp_path: Path) -> None:
    assert clip.save(tmp_path) == {"tokenizer": "bundle:tokenizer.json"}
    saved = DualProcessor(str(tmp_path / "tokenizer.json"), caption=CLIP)
    assert all(ids(saved, text) == ids(clip, text) for text in NASTY)
    (tmp_path / "export").mkdir()
    spec = clip.export(tmp_path / "export")
    assert spec["caption"]["cleaning"] == "lower"
    exported = DualProcessor(str(tmp_path / "export/tokenizer.json"), caption=CLIP)
    assert all(ids(exported, text) == ids(clip, text) for text in NASTY)


def test_a_damaged_installation_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gzip

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(open_clip_tokenizer, "find_spec", lambda name: Spec)
    with pytest.raises(ZooError, match="can't be read from"):
        open_clip_tokenizer.tokenizer_json.__wrapped__()
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(b"#version\na b\n"))
    with pytest.raises(ZooError, match="is not CLIP's vocabulary"):
        open_clip_tokenizer.tokenizer_json.__wrapped__()
    monkeypatch.setattr(open_clip_tokenizer, "find_spec", lambda name: None)
    with pytest.raises(ZooError, match="pip install open_clip_torch"):
        open_clip_tokenizer.tokenizer_json.__wrapped__()


@pytest.mark.parametrize(
    ("eos", "pad", "clean"), [("</s>", "</s>", "canonicalize"), ("<eos>", "<pad>", "canonicalize")]
)
def test_tokenizers_of_transformers(tmp_path: Path, eos: str, pad: str, clean: Any) -> None:
    """SigLIP's scheme, with a small vocabulary of the same kind: text, end, padding up to the context length."""
    from open_clip.tokenizer import HFTokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [pad, eos, "a", "photo", "of", "cat", "dog", "<unk>"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, vocabulary[eos])]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, unk_token="<unk>")
    fast.save_pretrained(tmp_path)
    reference = HFTokenizer(str(tmp_path), context_length=6, clean=clean)
    caption = Caption(max_length=6, padding="max_length", eos=eos, pad=pad, cleaning=clean)
    ours = DualProcessor(str(tmp_path / "tokenizer.json"), caption=caption)
    texts = ["A photo, of a_cat!", "dog", "a a a a a a a a a", html.escape("<cat>")]
    batch = ours([Sample(str(i), {"query": Item(text=text)}) for i, text in enumerate(texts)])
    np.testing.assert_array_equal(batch.views["query"]["input_ids"], reference(texts))


# ---- pixels ----------------------------------------------------------------------------------------------------------


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


SETTINGS = {
    "OpenAI's": Picture(size=32),
    "SigLIP's": Picture(size=30, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
    "CLIPA's": Picture(
        size=36, resize="squash", interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    "MobileCLIP's": Picture(size=33, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_pixels_are_bit_equal(settings: str) -> None:
    picture = SETTINGS[settings]
    reference = image_transform(
        picture.size,
        is_train=False,
        mean=picture.mean,
        std=picture.std,
        resize_mode=picture.resize,
        interpolation=picture.interpolation,
    )
    sizes = [(64, 64), (61, 47), (47, 61), (31, 200), (333, 32), (10, 7), (1, 1), (32, 33), (500, 375), (999, 100)]
    images = [noise(*size) for size in sizes]
    images += [noise(70, 50, "L"), noise(31, 99, "L")]
    for image in images:
        found = picture.pixels([open_image(image, "x")])[0]
        np.testing.assert_array_equal(found, reference(image).numpy(), err_msg=f"{image.mode} {image.size}")


def test_pixels_where_we_differ_on_purpose() -> None:
    """What is transparent is white here and whatever lies under it there; 16 bits are not clipped; EXIF turns; palettes
    become RGB before they are resized, not after it."""
    picture, reference = Picture(size=32), image_transform(32, is_train=False)
    clear = noise(40, 40).convert("RGBA")
    clear.putalpha(0)
    white = picture.pixels([Image.new("RGB", (40, 40), "white")])[0]
    np.testing.assert_array_equal(picture.pixels([open_image(clear, "x")])[0], white)
    assert not np.allclose(reference(clear).numpy(), white)
    turned = noise(40, 60)
    turned.getexif()[0x0112] = 6
    np.testing.assert_array_equal(
        picture.pixels([open_image(turned, "x")])[0],
        reference(noise(40, 60).transpose(Image.Transpose.ROTATE_270)).numpy(),
    )
    deep = Image.fromarray(np.full((40, 40), 30000, np.uint16))
    assert picture.pixels([open_image(deep, "x")]).max() < reference(deep.convert("I")).max().item()
    for mode in ("P", "1"):
        image = noise(70, 50, mode)
        found = picture.pixels([open_image(image, "x")])[0]
        np.testing.assert_array_equal(found, reference(image.convert("RGB")).numpy())
        assert not np.allclose(found, reference(image).numpy(), atol=0.01)


def test_settings_of_every_release_are_ours() -> None:
    """Every mean, filter and way of resizing that open_clip lists can be stated."""
    from open_clip.pretrained import _PRETRAINED

    listed = {
        (tuple(entry["mean"]), tuple(entry["std"]), entry["interpolation"], entry["resize_mode"])
        for tags in _PRETRAINED.values()
        for entry in tags.values()
    }
    for mean, std, interpolation, resize in listed:
        assert resize in ("shortest", "squash") and interpolation in ("bicubic", "bilinear")
        Picture(mean=mean, std=std, interpolation=interpolation, resize=resize)
    assert len(json.dumps(sorted(listed))) > 0 and len(listed) > 5
