"""Embedder: what may be embedded, in which order, on which side; and what it says about things that can't be."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from PIL import Image

from zoo.embedder import Embedder
from zoo.errors import NonFiniteError, SampleError, ZooError
from zoo.types import Item


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def as_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    return Embedder(toy.build(tmp_path), toy.recipe(tmp_path), name="toy", weights="a test")


def by_hand(embedder: Embedder, item: Item, query: bool) -> np.ndarray[Any, Any]:
    """The vector from the toy's definition."""
    row = torch.tensor(embedder.processor.row(item, "x", query))
    value = embedder.module.linear.weight @ row + embedder.module.linear.bias
    return (value / value.norm()).detach().numpy()


def test_every_form_of_the_same_thing(embedder: Embedder, tmp_path: Path) -> None:
    image = picture((200, 10, 10))
    path = tmp_path / "red.png"
    image.save(path)
    expected = by_hand(embedder, Item(images=(image,)), query=False)
    forms = [
        image,
        path,
        as_bytes(image),
        {"image": str(path)},
        {"images": [path]},
        {"image": image},
        Item(images=(path,)),
    ]
    vectors = embedder.encode(forms)
    assert vectors.shape == (7, 4) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.tile(expected, (7, 1)), atol=1e-6)


def test_a_str_is_text_even_if_a_file_has_that_name(embedder: Embedder, tmp_path: Path, monkeypatch: Any) -> None:
    picture((200, 10, 10)).save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(
        embedder.encode("red.png"), by_hand(embedder, Item(text="red.png"), query=False), atol=1e-6
    )


def test_sides_and_instructions(embedder: Embedder) -> None:
    query, document = embedder.encode_query("red cat"), embedder.encode_document("red cat")
    np.testing.assert_allclose(query, by_hand(embedder, Item(text="red cat"), query=True), atol=1e-6)
    np.testing.assert_allclose(document, embedder.encode("red cat"), atol=0)
    assert np.abs(query - document).max() > 1e-3
    item = Item(text="red", instruction="find dog")
    np.testing.assert_allclose(
        embedder.encode_query([{"text": "red"}, {"text": "red", "instruction": "find cat"}], instruction="find dog"),
        [by_hand(embedder, item, True), by_hand(embedder, Item(text="red", instruction="find cat"), True)],
        atol=1e-6,
    )
    with pytest.raises(ZooError, match="side must be"):
        embedder.encode("x", side="left")  # type: ignore[arg-type]


def test_order_and_batches_do_not_matter(embedder: Embedder) -> None:
    words = ["red", "green cat dog dog dog", "blue", "cat " * 40, "dog", "red dog", "find", "green"]
    things: list[Any] = [*words, *(picture((i * 20, 0, 0), (4 + i, 9 - i)) for i in range(7))]
    alone = np.stack([embedder.encode(thing) for thing in things])
    for size in (1, 2, 4, 100):
        np.testing.assert_allclose(embedder.encode(things, batch_size=size), alone, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(things))
    np.testing.assert_allclose(embedder.encode([things[i] for i in order], batch_size=3), alone[order], atol=1e-6)


def test_batches_hold_things_of_like_size(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    prepare = embedder._prepared
    monkeypatch.setattr(
        embedder, "_prepared", lambda samples, rows, *rest: seen.append(rows) or prepare(samples, rows, *rest)
    )
    embedder.encode(["a", "a " * 9, "a a", "a " * 8], batch_size=2)
    assert [rows for rows in seen if len(rows) == 2] == [[1, 3], [2, 0]]


def test_shapes_of_what_comes_back(embedder: Embedder) -> None:
    assert embedder.dim == 4
    assert embedder.encode("red").shape == (4,)
    assert embedder.encode(["red"]).shape == (1, 4)
    assert embedder.encode(()).shape == (0, 4)
    assert embedder.encode(f"{i}" for i in range(3)).shape == (3, 4)
    assert embedder.encode_query([]).shape == (0, 4)
    tensor = embedder.encode(["red"], convert_to_numpy=False)
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 and not tensor.requires_grad
    assert embedder.encode({"text": "red"}).shape == (4,)


def test_truncated_vectors_are_unit_again(embedder: Embedder) -> None:
    full, short = embedder.encode(["red", "cat"]), embedder.encode(["red", "cat"], truncate_dim=2)
    np.testing.assert_allclose(short, full[:, :2] / np.linalg.norm(full[:, :2], axis=1, keepdims=True), atol=1e-6)
    for wrong in (0, 5):
        with pytest.raises(ZooError, match=f"truncate_dim={wrong} does not fit: toy gives 4"):
            embedder.encode("red", truncate_dim=wrong)


def test_similarity_is_cosine_in_fp32(embedder: Embedder) -> None:
    a, b = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([4.0, 3.0])
    np.testing.assert_allclose(embedder.similarity(a, b), [[0.96], [0.0]], atol=1e-6)
    result = embedder.similarity(torch.tensor(a, dtype=torch.bfloat16), torch.tensor(b))
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float32
    with pytest.raises(ZooError, match="2 and of 3 values"):
        embedder.similarity(a, np.ones(3))


def test_training_mode_and_gradients_are_off(embedder: Embedder) -> None:
    embedder.module.train()
    embedder.encode("red")
    assert not embedder.module.training
    assert embedder.module.linear.weight.grad is None


# ---- what can't be embedded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("", "item 2: the text is empty"),
        ("  \n", "item 2: the text is empty"),
        (Item(), "item 2: the item has neither text nor image"),
        ({}, "item 2: the item has neither text nor image"),
        (Item(instruction="find"), "item 2: the item has an instruction but no text, image or place"),
        ({"instruction": "find"}, "item 2: the item has an instruction but no text, image or place"),
        (None, "item 2: a NoneType can't be embedded"),
        (3.5, "item 2: a float can't be embedded"),
        ({"txt": "red"}, "item 2: unknown field 'txt'; did you mean 'text'?"),
        ({"image": 3}, "item 2: image is a int, not a path"),
        ({"text": b"red"}, "item 2: 'text' is a bytes, not a str"),
        (["nested"], "item 2: a list can't be embedded"),
    ],
)
def test_unusable_things_are_named_by_position(embedder: Embedder, thing: Any, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        embedder.encode(["red", "cat", thing], batch_size=1)
    assert str(caught.value).startswith(message)


def test_unreadable_pictures_are_named_by_position(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(as_bytes(picture((1, 2, 3), (64, 64)))[:60])
    good = picture((1, 2, 3))
    for thing in (tmp_path / "broken.png", tmp_path / "nowhere.png", b"no picture", b""):
        with pytest.raises(SampleError, match="item 1"):
            embedder.encode([good, thing, "red"], batch_size=2)


def test_stream_leaves_out_what_is_bad_and_reports_it(embedder: Embedder) -> None:
    items = [Item(images=(b"no picture",)) if i in (1, 2, 6) else Item(text=f"red {i}") for i in range(8)]
    bad: dict[int, str] = {}
    found = dict.fromkeys(range(8), 0)
    for rows, vectors in embedder.stream(items, batch_size=3, on_bad=lambda row, e: bad.__setitem__(row, str(e))):
        assert len(rows) == len(vectors)
        for row, vector in zip(rows, vectors, strict=True):
            found[row] += 1
            np.testing.assert_allclose(vector, by_hand(embedder, items[row], False), atol=1e-6)
    assert set(bad) == {1, 2, 6} and all(f"item {row}" in text for row, text in bad.items())
    assert found == {row: int(row not in bad) for row in range(8)}


def test_nan_names_the_item(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    row = embedder.processor.row

    def broken(item: Item, name: str, query: bool) -> list[float]:
        return [float("nan")] * 11 if item.text == "dog" else row(item, name, query)

    monkeypatch.setattr(embedder.processor, "row", broken)
    with pytest.raises(NonFiniteError, match=r"not finite for item 2, item 4;"):
        embedder.encode(["red", "cat", "dog", "blue", "dog"])


# ---- identity --------------------------------------------------------------------------------------------------------


def test_fingerprint_follows_what_decides_a_vector(embedder: Embedder, tmp_path: Path) -> None:
    before = embedder.fingerprint()
    moved = tmp_path / "moved"
    moved.mkdir()
    training = {"objective": {"class_path": "X"}, "chunk_size": 3, "gather_group": 2, "momentum": 0.99, "mixing": {}}
    training |= {"masking": {}, "rates": {"text": 0.1}}
    recipe = toy.recipe(moved, **training)
    assert Embedder(embedder.module, recipe, name="other", weights=None).fingerprint() == before
    embedder.module.slow = torch.nn.Linear(2, 2)  # as dual encoders with `momentum` keep
    embedder.module.mixing = torch.nn.Linear(2, 2)  # as projectors with `PartialPairs` learn
    assert embedder.fingerprint() == before
    (moved / "words.json").write_text('["other"]')
    assert Embedder(embedder.module, recipe, name="toy", weights=None).fingerprint() != before
    embedder.module.linear.bias.data[0] += 1e-3
    assert embedder.fingerprint() != before


def test_repr_warns_of_random_weights(embedder: Embedder) -> None:
    assert "a test" in repr(embedder) and "RANDOM" not in repr(embedder)
    assert "RANDOM WEIGHTS" in repr(Embedder(embedder.module, embedder.recipe, name="toy", weights=None))


def test_progress_bar_counts_to_the_end(embedder: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    embedder.encode(["red"] * 5, batch_size=2, show_progress_bar=True)
    assert "5/5" in capsys.readouterr().out
