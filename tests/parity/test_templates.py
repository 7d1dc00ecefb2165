"""Prompts of the official recipes: as strings that must never change, and against the template they come from."""

from __future__ import annotations

from typing import Any

import official_layout
import pytest
from official_layout import chat_prompt

from zoo.data.processors.vlm_arrays import Template

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
END = "<|im_end|>\n<|im_start|>assistant\n"
ABC = {
    "text": (("a dog", 0, None), f"{SYSTEM}a dog{END}"),
    "picture": ((None, 1, None), f"{SYSTEM}{PICTURE}{END}"),
    "picture and instruction": (
        (None, 1, "what is the animal on the left?"),
        f"{SYSTEM}{PICTURE}Instruction: what is the animal on the left?{END}",
    ),
}
# the demo of the official repository asks its picture without the newline; its evaluation ends every query with one
VLM2VEC = {
    "class name": (("a cat", 0, None), False, "a cat"),
    "picture": ((None, 1, "Represent the given image."), False, "<|image_pad|> Represent the given image."),
    "question": (
        ("What is in the image", 1, "Represent the given image with the following question:"),
        True,
        "<|image_pad|> Represent the given image with the following question: What is in the image\n",
    ),
    "caption": (
        ("a man with a red helmet", 0, "Find me an everyday image that matches the given caption:"),
        True,
        "Find me an everyday image that matches the given caption: a man with a red helmet\n",
    ),
}


def template(stem: str) -> Template:
    arguments = official_layout.recipe(stem)["model"]["init_args"]["processor"]["init_args"]["template"]
    return Template(**arguments)


@pytest.mark.parametrize("stem", ["abc-qwen2vl", "abc-qwen2vl-pretrain"])
@pytest.mark.parametrize("kind", ABC)
@pytest.mark.parametrize("query", [True, False])
def test_abc(stem: str, kind: str, query: bool) -> None:
    (text, images, instruction), prompt = ABC[kind]
    assert template(stem).render(text, images, instruction, query) == prompt


@pytest.mark.parametrize("kind", ABC)
def test_abc_is_what_transformers_renders(kind: str) -> None:
    (text, images, instruction), prompt = ABC[kind]
    content: list[dict[str, Any]] = [{"type": "image"}] * images
    content.append({"type": "text", "text": f"Instruction: {instruction}" if instruction else text or ""})
    assert chat_prompt(content) == prompt


@pytest.mark.parametrize("kind", VLM2VEC)
def test_vlm2vec(kind: str) -> None:
    (text, images, instruction), query, prompt = VLM2VEC[kind]
    assert template("vlm2vec-qwen2vl-2b").render(text, images, instruction, query) == prompt
