"""Prompts of the official recipes: as strings that must never change, and against the template they come from."""

from __future__ import annotations

import json
from typing import Any

import jsonargparse
import official_layout
import pytest
from official_layout import chat_prompt

from zoo.data.processors.vlm import VlmProcessor
from zoo.data.processors.vlm_arrays import Template, VlmArrays
from zoo.types import Item

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


# ---- prompts of other systems: each must be sayable in a recipe ------------------------------------------------------

NEWS = "Find an image that matches the given text"
SYSTEMS: dict[str, dict[str, Any]] = {
    # TIGER-AI-Lab/VLM2Vec 6e1e1d4, src/model/baseline_backbone/gme/gme_inference.py
    "GME": {
        "template": {
            "prefix": "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n",
            "image": PICTURE,
            "separator": "",
            "suffix": END + "<|endoftext|>",
            "default_instruction": "You are a helpful assistant.",
        },
        "target_template": {
            "prefix": SYSTEM,
            "image": PICTURE,
            "separator": "",
            "suffix": END + "<|endoftext|>",
            "order": ("image", "text"),  # a document's instruction is not read
        },
    },
    # same repository, lamra/lamra_inference.py, through the chat template of Qwen2-VL
    "LamRA": {
        "template": {
            "prefix": SYSTEM,
            "image": PICTURE,
            "separator": "",
            "order": ("image", "text"),
            "suffix": "{words}<|im_end|>\n<|im_start|>assistant\n<emb>." + END,
            "words": {"text": "\n", "image": "\nSummarize above image in one word: ", "image text": ""},
        }
    },
    # friedrichor/UNITE da30e44, unite/prompt_template.py and inference/inference_demo.py
    "UNITE": {
        "template": {
            "prefix": SYSTEM,
            "image": PICTURE,
            "separator": "",
            "suffix": "\nSummary above {words} in one word:" + END + "<|endoftext|>",
            "words": {"text": "sentence", "image": "image", "image text": "sentence and image"},
        }
    },
    # QwenLM/Qwen3-VL-Embedding 8ce3aab, src/models/qwen3_vl_embedding.py; the report ends prompts in the second way
    "Qwen3-VL": {
        "template": {
            "prefix": "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n",
            "image": PICTURE,
            "separator": "",
            "suffix": END,
            "default_instruction": "Represent the user's input.",
            "instruction_end": ".",
        }
    },
    "Qwen3-VL, report": {
        "template": {
            "prefix": "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n",
            "image": PICTURE,
            "separator": "",
            "suffix": "<|im_end|><|endoftext|>",
            "default_instruction": "Represent the user's input.",
            "instruction_end": ".",
        }
    },
    # DeepLearnXMU/LLaVE 2c23053, demo.py with conv_templates["qwen_1_5"]
    "LLaVE": {
        "template": {
            "prefix": SYSTEM,
            "image": "<image>",
            "image_token": "<image>",
            "suffix": END + "\n<|im_end|>\n",
        }
    },
    # TIGER-AI-Lab/VLM2Vec 6e1e1d4, src/model/processor.py, e5_v_prompt_template
    "E5-V": {
        "template": {
            "prefix": "<|start_header_id|>user<|end_header_id|>\n\n",
            "image": "<image>",
            "image_token": "<image>",
            "separator": "\n",
            "suffix": "\nSummary above {words} in one word: <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n",
            "words": {"text": "sentence", "image": "image", "image text": "image and text"},
        }
    },
    # haon-chen/mmE5 4818cdf: the image stands in front of the token that begins a text
    "mmE5": {
        "template": {
            "prefix": "{words}",
            "image": "<|image|><|begin_of_text|>",
            "image_token": "<|image|>",
            "instruction": "{instruction} ",
            "separator": "",
            "query_suffix": "\n",
            "words": {"text": "<|begin_of_text|>", "image": "", "image text": ""},
        }
    },
    # illuin-tech/colpali 9be8f19, ColQwen2
    "ColQwen2": {
        "template": {"order": ("text",), "suffix": "<|endoftext|>" * 10},
        "target_template": {
            "prefix": "<|im_start|>user\n",
            "image": PICTURE,
            "suffix": "Describe the image.<|im_end|><|endoftext|>",
        },
    },
}
LLAMA = "<|start_header_id|>user<|end_header_id|>\n\n"
LLAMA_END = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n"
# system, (text, images, instruction), query -> prompt
PROMPTS = [
    (
        "GME",
        ("a dog", 0, NEWS),
        True,
        f"<|im_start|>system\n{NEWS}<|im_end|>\n<|im_start|>user\na dog{END}<|endoftext|>",
    ),
    ("GME", ("a dog", 1, None), True, f"{SYSTEM}{PICTURE}a dog{END}<|endoftext|>"),
    ("GME", ("a dog", 1, NEWS), False, f"{SYSTEM}{PICTURE}a dog{END}<|endoftext|>"),
    ("LamRA", ("a dog", 0, NEWS), True, f"{SYSTEM}a dog\n<|im_end|>\n<|im_start|>assistant\n<emb>.{END}"),
    (
        "LamRA",
        (None, 1, None),
        False,
        f"{SYSTEM}{PICTURE}\nSummarize above image in one word: <|im_end|>\n<|im_start|>assistant\n<emb>.{END}",
    ),
    ("LamRA", ("a dog", 1, None), True, f"{SYSTEM}{PICTURE}a dog<|im_end|>\n<|im_start|>assistant\n<emb>.{END}"),
    ("UNITE", ("a dog", 0, None), True, f"{SYSTEM}a dog\nSummary above sentence in one word:{END}<|endoftext|>"),
    ("UNITE", (None, 1, None), False, f"{SYSTEM}{PICTURE}\nSummary above image in one word:{END}<|endoftext|>"),
    (
        "UNITE",
        ("a dog", 1, None),
        True,
        f"{SYSTEM}{PICTURE}a dog\nSummary above sentence and image in one word:{END}<|endoftext|>",
    ),
    (
        "Qwen3-VL",
        ("a dog", 1, NEWS),
        True,
        f"<|im_start|>system\n{NEWS}.<|im_end|>\n<|im_start|>user\n{PICTURE}a dog{END}",
    ),
    ("Qwen3-VL", ("a", 0, "Why? "), True, f"<|im_start|>system\nWhy?<|im_end|>\n<|im_start|>user\na{END}"),
    (
        "Qwen3-VL, report",
        ("a dog", 0, None),
        False,
        "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\na dog<|im_end|><|endoftext|>",
    ),
    (
        "LLaVE",
        (None, 1, "Represent the given image."),
        False,
        f"{SYSTEM}<image> Represent the given image.<|im_end|>\n<|im_start|>assistant\n\n<|im_end|>\n",
    ),
    ("LLaVE", ("a cat", 0, None), True, f"{SYSTEM}a cat<|im_end|>\n<|im_start|>assistant\n\n<|im_end|>\n"),
    ("E5-V", ("a dog", 0, None), True, f"{LLAMA}a dog\nSummary above sentence in one word: {LLAMA_END}"),
    ("E5-V", (None, 1, None), False, f"{LLAMA}<image>\nSummary above image in one word: {LLAMA_END}"),
    ("E5-V", ("a dog", 1, None), True, f"{LLAMA}<image>\na dog\nSummary above image and text in one word: {LLAMA_END}"),
    (
        "mmE5",
        ("What is it?", 1, "Represent the given image with the following question:"),
        True,
        "<|image|><|begin_of_text|>Represent the given image with the following question: What is it?\n",
    ),
    ("mmE5", ("a cat", 0, None), False, "<|begin_of_text|>a cat"),
    ("ColQwen2", ("a dog", 0, None), True, "a dog" + "<|endoftext|>" * 10),
    ("ColQwen2", (None, 1, None), False, f"<|im_start|>user\n{PICTURE}Describe the image.<|im_end|><|endoftext|>"),
]


@pytest.mark.parametrize(("system", "item", "query", "prompt"), PROMPTS)
def test_prompts_of_other_systems(system: str, item: tuple[Any, ...], query: bool, prompt: str) -> None:
    settings = SYSTEMS[system]
    chosen = Template(**settings["template" if query or "target_template" not in settings else "target_template"])
    assert chosen.render(*item, query) == prompt


def test_a_recipe_says_them_and_the_processor_takes_the_right_one() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--processor", type=VlmProcessor)
    arguments = {"tokenizer": "packaged:emoji-tokenizer.json", **SYSTEMS["GME"]}
    given = json.loads(json.dumps({"class_path": "zoo.data.processors.vlm.VlmProcessor", "init_args": arguments}))
    processor = parser.instantiate(parser.parse_object({"processor": given})).processor
    ids = {
        view: processor.encode_view(view, [Item("dog", instruction="find it")], ["one"])["input_ids"][0].tolist()
        for view in ("query", "target")
    }
    assert len(ids["query"]) != len(ids["target"])
    again = VlmArrays(processor.arrays.tokenizer, Template(**processor.spec()["template"]))
    assert again(["dog"], [[]], ["find it"], True)["input_ids"][0].tolist() == ids["query"]


def test_what_can_not_be_said_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="image '<img>' does not hold its image_token '<image>'"):
        Template(image="<img>", image_token="<image>")
    with pytest.raises(ValueError, match="no words for an item of image and text"):
        Template(suffix="{words}", words={"text": "sentence"}).render("a", 1, None, True)
    assert (
        Template(prefix="{instruction} {words}", words={"text": "w"}, instruction="").render(
            "{instruction}", 0, "{words}", True
        )
        == "{words} w{instruction}"
    ), "what people write is no field"
