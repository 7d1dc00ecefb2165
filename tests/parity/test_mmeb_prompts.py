"""Rows of MMEB, both versions and every kind of side, read and put through VLM2Vec's template: the authors' strings.

Version 1 (their `replace` of the placeholder in the row's text, src/dataset.py on branch v1): real rows of MMEB-train.
Version 2: what `data_prepare` of src/data/eval_dataset/image_{cls,qa,i2t,t2i,i2i_vg}*.py (6e1e1d4) writes for such rows.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import official_layout
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from zoo.data.processors.vlm_arrays import Pixels, Template, VlmArrays
from zoo.data.sources.mmeb import MmebEval, MmebTrain
from zoo.types import Item

IMG = "<|image_pad|>"
# qry, has an image; pos_text, has an image -> the two prompts
VERSION_1 = {
    "Visual7W": (
        ("<|image_1|>\nRepresent the given image with the following question: What is written on the bus?\n", True),
        ("Fox's Ginger Biscuits.", False),
        (IMG + "\nRepresent the given image with the following question: What is written on the bus?\n",
         "Fox's Ginger Biscuits."),
    ),
    "CIRR": (
        ("<|image_1|>\nGiven an image, find a similar everyday image with the described changes: Many hamster.\n", True),
        ("<|image_1|>\nRepresent the given image.\n", True),
        (IMG + "\nGiven an image, find a similar everyday image with the described changes: Many hamster.\n",
         IMG + "\nRepresent the given image.\n"),
    ),
    "MSCOCO": (
        ('<|image_1|>\nSelect the portion of the image that isolates the object labeled as "hot dog"\n', True),
        ("<|image_1|>\nRepresent the given cropped image of the object", True),
        (IMG + '\nSelect the portion of the image that isolates the object labeled as "hot dog"\n',
         IMG + "\nRepresent the given cropped image of the object"),
    ),
    "VisDial": (
        ("Represent the given dialogue about an image: Q:is it sunny\nA:yes\n\n", False),
        ("<|image_1|>\nRepresent the given image\n", True),
        ("Represent the given dialogue about an image: Q:is it sunny\nA:yes\n\n", IMG + "\nRepresent the given image\n"),
    ),
    "WebQA": (  # the authors leave a bare image token in front of the query's newline
        ("<|image_1|>\nFind a Wikipedia image that answers this question: Which body part?\n", False),
        ("<|image_1|>\nRepresent the given Wikipedia image with related text information: 1913-D half.\n", True),
        ("Find a Wikipedia image that answers this question: Which body part?\n",
         IMG + "\nRepresent the given Wikipedia image with related text information: 1913-D half.\n"),
    ),
    "diverse_instruction": (
        ("Represent <|image_1|> for classification.", True), ("cat", False),
        (f"Represent {IMG} for classification.", "cat"),
    ),
}  # fmt: skip
# qry_inst, qry_text, has an image; tgt_inst, tgt_text, has an image -> the two prompts
VERSION_2 = {
    "ImageNet-1K": (
        ("<|image_1|>\nRepresent the given image for classification", "", True), ("", "plane", False),
        (IMG + "\nRepresent the given image for classification\n", "plane"),
    ),
    "N24News": (
        ("<|image_1|> Represent the given news image with the following caption for classification:", "A storm", True),
        ("", "weather", False),
        (IMG + "  Represent the given news image with the following caption for classification: A storm\n", "weather"),
    ),
    "OK-VQA": (
        ("<|image_1|> Represent the given image with the following question: ", "What is it?", True), ("", "a cat", False),
        (IMG + "\nRepresent the given image with the following question: What is it?\n", "a cat"),
    ),
    "MSCOCO_i2t": (
        ("<|image_1|>\nFind an image caption describing the given everyday image.", "", True), ("", "A zebra.", False),
        (IMG + "\nFind an image caption describing the given everyday image.\n", "A zebra."),
    ),
    "MSCOCO_t2i": (
        ("Find me an everyday image that matches the given caption:", "A zebra.", False),
        ("<|image_1|>\nRepresent the given image.", "", True),
        ("Find me an everyday image that matches the given caption: A zebra.\n", IMG + "\nRepresent the given image.\n"),
    ),
    "VisDial": (
        ("Represent the given dialogue about an image:", "Q:sunny\nA:yes", False),
        ("<|image_1|>\nRepresent the given image", "", True),
        ("Represent the given dialogue about an image: Q:sunny\nA:yes\n\n", IMG + "\nRepresent the given image\n"),
    ),
    "EDIS": (
        ("<|image_1|>\nFind a news image that matches the provided caption:", "A storm", False),
        ("<|image_1|>\nRepresent the given image with related text information:", "Rain in Oslo.", True),
        ("Find a news image that matches the provided caption: A storm\n",
         IMG + "\nRepresent the given image with related text information: Rain in Oslo.\n"),
    ),
    "RefCOCO": (
        ("<|image_1|> Select the portion of the image that follows the language expressions.", "the left cat", True),
        ("<|image_1|>\nRepresent the given cropped image of the object", "", True),
        (IMG + "\nSelect the portion of the image that follows the language expressions. the left cat\n",
         IMG + "\nRepresent the given cropped image of the object"),
    ),
    "RefCOCO-Matching": (
        ("<|image_1|> Select the portion of the image that follows the language expressions:", '"left cat"', True),
        ("<|image_1|>\nSelect the portion of the image that follows the language expressions:", '"right cat"', True),
        (IMG + '\nSelect the portion of the image that follows the language expressions: "left cat"\n',
         IMG + '\nSelect the portion of the image that follows the language expressions: "right cat"\n'),
    ),
}  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    return tmp_path


def prompt(item: Item, query: bool) -> str:
    arguments = official_layout.recipe("vlm2vec-qwen2vl-2b")["model"]["init_args"]["processor"]["init_args"]["template"]
    return Template(**arguments).render(item.text, len(item.images), item.instruction, query, item.image_at)


def written(folder: Path, name: str, row: dict[str, Any]) -> str:
    (folder / f"{name}.jsonl").write_text(json.dumps(row), "utf-8")
    return str(folder / f"{name}.jsonl")


@pytest.mark.parametrize("name", VERSION_1)
def test_a_training_row_of_version_1(name: str, images: Path) -> None:
    (query, seen), (target, shown), expected = VERSION_1[name]
    row = {"qry": query, "qry_image_path": "a.png" * seen, "pos_text": target, "pos_image_path": "a.png" * shown}
    sample = MmebTrain(written(images, name, row), str(images)).draw(0, random.Random(0))
    assert tuple(prompt(sample.views[view], view == "query") for view in ("query", "target")) == expected


@pytest.mark.parametrize("name", VERSION_1)
def test_an_evaluation_row_of_version_1(name: str, images: Path) -> None:
    (query, seen), (target, shown), expected = VERSION_1[name]
    row = {"qry_text": query, "qry_img_path": "a.png" * seen, "tgt_text": [target], "tgt_img_path": ["a.png" * shown]}
    (task,) = MmebEval([written(images, name, row)], str(images)).tasks()
    assert (prompt(task.queries[0], True), prompt(task.candidates[0], False)) == expected


@pytest.mark.parametrize("name", VERSION_2)
def test_an_evaluation_row_of_version_2(name: str, images: Path) -> None:
    (inst, query, seen), (task_inst, target, shown), expected = VERSION_2[name]
    row = {
        "qry_inst": inst, "qry_text": query, "qry_img_path": "a.png" * seen,
        "tgt_inst": task_inst, "tgt_text": [target], "tgt_img_path": ["a.png" * shown],
    }  # fmt: skip
    (task,) = MmebEval([written(images, name, row)], str(images)).tasks()
    assert (prompt(task.queries[0], True), prompt(task.candidates[0], False)) == expected


def test_a_shortened_text_keeps_its_image_where_it_stands() -> None:
    words = {word: i for i, word in enumerate(["<|endoftext|>", IMG, "a", "b", "c", "d"])}
    tokenizer = Tokenizer(models.WordLevel(words, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([IMG, "<|endoftext|>"])
    arrays = VlmArrays(tokenizer, pixels=Pixels(patch_size=4, min_pixels=64, max_pixels=64), max_length=3)
    picture = Image.new("RGB", (8, 8))
    for at, expected in ((2, [2, 1, 3]), (8, [2, 3, 1])):
        with pytest.warns(UserWarning, match="cut to"):
            found = VlmArrays(tokenizer, pixels=arrays.pixels, max_length=3)(
                ["a b c d"], [[picture]], [None], True, [(at,)]
            )
        assert found["input_ids"][0].tolist() == expected
