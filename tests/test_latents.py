"""Filling the cache: the same bits after any stop, bad items named or left out, keys that change with what they should."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_towers import FrozenTowers, ManyPairs, build, files_in, processor
from torch import nn

from zoo.ahead import ahead
from zoo.data import latent_folder
from zoo.data.latent_folder import read_manifest
from zoo.data.latents import Latents
from zoo.data.listing import list_parts, list_source
from zoo.errors import NonFiniteError, RecipeError, SampleError
from zoo.latents import Filled, encoder_key, fill, notes
from zoo.nn.fingerprint import architecture_digest, weights_digest
from zoo.types import Inputs, Item


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_folder, "_ROWS", dict.fromkeys(latent_folder._ROWS, 8))


def run(folder: Path, source: ManyPairs | None = None, module: Any = None, **options: Any) -> list[Filled]:
    listings = list_source(source or ManyPairs(30))
    return fill(module or build(), listings, folder=folder, batch_size=3, show=False, **options)


class Killed(BaseException):
    """What ends a run in the middle."""


class Stopping(FrozenTowers):
    """Its encoders end the run after so many parts."""

    def __init__(self, after: int) -> None:
        super().__init__(processor=processor())
        self.after = after

    def latents(self, inputs: Inputs) -> Inputs:
        if self.calls >= self.after:
            raise Killed
        return super().latents(inputs)


def stopping(after: int) -> Stopping:
    torch.manual_seed(0)
    return Stopping(after)


@pytest.mark.parametrize("after", [0, 1, 8, 13, 29, 31, 44, 57])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(after: int, tmp_path: Path) -> None:
    run(tmp_path / "unbroken")
    with pytest.raises(Killed):
        run(tmp_path / "broken", module=stopping(after))
    before = files_in(tmp_path / "broken")
    module = build()
    filled = run(tmp_path / "broken", module=module)
    assert files_in(tmp_path / "broken") == files_in(tmp_path / "unbroken")
    kept = sum(one.asked - one.encoded for one in filled)
    assert module.calls == 60 - kept and kept >= 8 * (len(before) - 1)
    assert not list((tmp_path / "broken").rglob("*.partial"))


def test_what_is_complete_is_not_encoded_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    module = build()
    again = run(tmp_path, module=module)
    assert module.calls == 0
    assert [one.encoded for one in first] == [30, 30] and [one.encoded for one in again] == [0, 0]
    assert [one.folder for one in first] == [one.folder for one in again]


def test_equal_parts_are_encoded_once(tmp_path: Path) -> None:
    module = build()
    listings = list_parts("twice", lambda: [*ManyPairs(5).items(), *ManyPairs(7).items()])
    filled = fill(module, listings, folder=tmp_path, show=False)
    assert module.calls == 14
    assert [(one.asked, one.manifest.rows) for one in filled] == [(12, 7), (12, 7)]


def test_texts_of_like_length_are_encoded_together(tmp_path: Path) -> None:
    """Longest first, by tokens: by letters they come in another order."""
    texts = ["the cat", "qzxjk", "a cat sat", "zebra quiz", "aaaaaaaaa"]
    seen: list[int] = []

    class Watching(FrozenTowers):
        def latents(self, inputs: Inputs) -> Inputs:
            seen.extend(inputs["attention_mask"].sum(1).tolist())
            return super().latents(inputs)

    module = Watching(processor=processor())
    fill(
        module,
        list_parts("texts", lambda: [Item(text=text) for text in texts]),
        folder=tmp_path,
        batch_size=2,
        show=False,
    )
    assert seen == sorted(seen, reverse=True) and len(set(seen)) > 3


def test_two_sources_with_the_same_parts_share_a_folder(tmp_path: Path) -> None:
    module = build()
    listings = [one for name in ("a", "b") for one in list_source(ManyPairs(5, name=name))]
    filled = fill(module, listings, folder=tmp_path, show=False)
    assert module.calls == 10 and len({one.folder for one in filled}) == 2


def test_a_file_that_is_not_whole_is_made_again(tmp_path: Path) -> None:
    run(tmp_path / "unbroken")
    (one, _) = run(tmp_path / "broken")
    (one.folder / "manifest.json").unlink()
    part = one.folder / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-7])
    module = build()
    run(tmp_path / "broken", module=module)
    assert module.calls == 8
    assert files_in(tmp_path / "broken") == files_in(tmp_path / "unbroken")


def test_the_manifest_says_what_was_made_of_what(tmp_path: Path) -> None:
    for one, (modality, dim) in zip(run(tmp_path), (("image", 6), ("text", 5)), strict=True):
        found = read_manifest(one.folder)
        assert (found.modality, found.source, found.rows, found.dim, found.dtype) == (
            modality,
            "pairs",
            30,
            dim,
            "float32",
        )
        assert found.encoder == encoder_key(build(), modality).digest
        assert [part.rows for part in found.parts] == [8, 8, 8, 6]
        assert found.bytes == sum(len(content) for content in files_in(one.folder).values())
        assert {"weights", "architecture", "preparation", "dtype", "tokens"} <= set(found.made_of)


def test_latents_are_those_of_the_encoder_whatever_the_batch(tmp_path: Path) -> None:
    module, source = build(), ManyPairs(30)
    _, texts = run(tmp_path, source, module)
    latents = Latents([texts.folder])
    listing = list_source(source)[1]
    with torch.no_grad():
        samples = [item for item in source.items() if item.text]
        inputs = module.processor.encode_view("target", samples, [""] * 30)
        expected = module.encoders["text"](inputs["input_ids"], inputs["attention_mask"]).pooled
    np.testing.assert_allclose(latents.pooled(latents.find(listing.keys)), expected.numpy(), atol=1e-6)


# ---- items that can't be used ----------------------------------------------------------------------------------------


def test_a_bad_item_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"pairs, image 11 \(image of 11 bytes\).*is not a picture"):
        run(tmp_path, ManyPairs(30, bad=(11,)))


@pytest.mark.parametrize("bad", [(11,), (0, 29), tuple(range(8, 16))], ids=["one", "ends", "a whole file"])
def test_bad_items_are_left_out_and_listed_where_that_is_wanted(bad: tuple[int, ...], tmp_path: Path) -> None:
    def broken(module: FrozenTowers) -> list[Filled]:
        listings = list_source(ManyPairs(30, bad=bad), skip=True)
        return fill(module, listings, folder=tmp_path, batch_size=3, show=False)

    with pytest.raises(Killed):
        broken(stopping(20))
    (images, texts) = broken(build())
    assert [part.row for part in images.manifest.left_out] == list(bad)
    assert images.manifest.rows == 30 - len(bad) and texts.manifest.rows == 30
    assert f"{len(bad)} images of pairs can't be used" in notes(images)[0] and not notes(texts)
    latents = Latents([images.folder])
    found = latents.find(list_source(ManyPairs(30, bad=bad))[0].keys)
    assert np.flatnonzero(found < 0).tolist() == list(bad)
    assert broken(build())[0].encoded == 0


class Poisoned(nn.Module):
    """An encoder with a value for the latents of long texts."""

    def __init__(self, tower: nn.Module, value: float) -> None:
        super().__init__()
        self.tower, self.value = tower, value

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        states = self.tower(input_ids, attention_mask)
        states.pooled[attention_mask.sum(1) > 12] = self.value
        return states


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (torch.nan, "float32", r"latent of pairs, text 6 \(text 'number 6 and more.* is not finite"),
        (torch.inf, "float16", r"latent of pairs, text 6 .* is not finite"),
        (
            1e5,
            "float16",
            r"latent of pairs, text 6 .* has the value 100000, too large for float16: keep latents as float32",
        ),
    ],
)
def test_latents_that_are_not_finite_name_the_item(value: float, dtype: Any, said: str, tmp_path: Path) -> None:
    module = build()
    module.encoders["text"] = Poisoned(module.encoders["text"], value)
    with pytest.raises(NonFiniteError, match=said):
        run(tmp_path, module=module, dtype=dtype)
    if value == 1e5:
        assert len(run(tmp_path, module=module)) == 2


def test_half_precision_takes_half_the_space(tmp_path: Path) -> None:
    whole, half = run(tmp_path), run(tmp_path, dtype="float16")
    assert whole[0].folder != half[0].folder
    assert half[0].manifest.dtype == "float16"
    assert whole[0].manifest.bytes - half[0].manifest.bytes == 30 * 6 * 2


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="batches of 0; at least 1"):
        fill(build(), [], folder=tmp_path, batch_size=0)
    with pytest.raises(
        RecipeError, match=r"the data holds places, but the model has no encoder for them \(it has image, t"
    ):
        fill(build(), list_parts("map", lambda: [Item(place=(1.0, 2.0))]), folder=tmp_path)


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_the_key_changes_with_all_that_decides_a_latent() -> None:
    def digests(module: FrozenTowers, **options: Any) -> tuple[str, str]:
        return tuple(encoder_key(module, name, **options).digest for name in ("image", "text"))  # type: ignore[return-value]

    image, text = digests(build())
    assert digests(build()) == (image, text)
    other = digests(build(seed=1))
    assert other[0] != image and other[1] != text
    larger = digests(build(size=20))
    assert larger[0] != image and larger[1] == text
    shorter = digests(build(max_length=9))
    assert shorter[0] == image and shorter[1] != text
    tokens = digests(build(tokens=["text"]))
    assert tokens[0] == image and tokens[1] != text
    assert digests(build(), dtype="float16")[0] != image


def test_weights_are_hashed_again_when_they_change() -> None:
    tower = nn.Linear(3, 2)
    first = weights_digest(tower)
    assert weights_digest(tower) == first
    with torch.no_grad():
        tower.bias[0] += 1
    assert weights_digest(tower) != first
    tower.bias.data = tower.bias.data.clone()
    assert weights_digest(tower) == weights_digest(tower) != first


def test_an_architecture_is_told_by_more_than_its_weights() -> None:
    heads = [nn.MultiheadAttention(8, count) for count in (2, 2, 4)]
    digests = [architecture_digest(part) for part in heads]
    assert digests[0] == digests[1] != digests[2]
    assert architecture_digest(nn.Sequential(nn.GELU())) != architecture_digest(nn.Sequential(nn.ReLU()))
    part = nn.Linear(2, 2)
    assert architecture_digest(part.train()) == architecture_digest(part.eval())


def test_latents_of_an_earlier_encoder_are_pointed_out(tmp_path: Path) -> None:
    earlier = run(tmp_path)
    later = run(tmp_path, module=build(seed=1))
    assert later[0].encoded == 30
    assert notes(later[0]) == [f"{earlier[0].folder} holds the same parts by an encoder that differs in: weights"]


# ---- several at once -------------------------------------------------------------------------------------------------


def _fill_in_a_process(folder: Path) -> None:
    torch.set_num_threads(1)
    latent_folder._ROWS = dict.fromkeys(latent_folder._ROWS, 8)
    run(folder)


def test_two_processes_fill_the_same_folder(tmp_path: Path) -> None:
    run(tmp_path / "alone")
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_fill_in_a_process, args=(tmp_path / "both",)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert files_in(tmp_path / "both") == files_in(tmp_path / "alone")
    for one in run(tmp_path / "both"):
        assert one.encoded == 0 and len(Latents([one.folder])) == 30


def test_a_file_that_another_process_made_meanwhile_stays(tmp_path: Path) -> None:
    """The other process finishes everything while this one is at work on its first batch."""
    run(tmp_path / "alone")
    module = build()
    latents = module.latents

    def late(inputs: Inputs) -> Inputs:
        module.latents = latents  # type: ignore[method-assign]
        run(tmp_path / "both")
        return latents(inputs)

    module.latents = late  # type: ignore[method-assign]
    run(tmp_path / "both", module=module)
    assert files_in(tmp_path / "both") == files_in(tmp_path / "alone")
    assert module.calls < 60


# ---- ahead -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_things_come_in_order_and_only_a_few_ahead(device: str) -> None:
    made = []

    def things() -> Any:
        for number in range(6):
            made.append(number)
            yield number

    found = ahead(things(), device, depth=2)
    assert next(found) == 0
    wanted = 1 if device == "cpu" else 3
    end = time.monotonic() + 10
    while len(made) < wanted and time.monotonic() < end:
        time.sleep(0.01)
    assert len(made) == wanted
    assert list(found) == [1, 2, 3, 4, 5] and list(ahead([], device)) == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_error_arrives_where_its_thing_would_have_come(device: str) -> None:
    def things() -> Any:
        yield 1
        raise SampleError("the second is bad")

    found = ahead(things(), device)
    assert next(found) == 1
    with pytest.raises(SampleError, match="the second is bad"):
        next(found)
