"""Tiny checkpoints in the layout of the official ones, written by transformers and peft, and the vectors these give.

It is what the zoo's converters and encoder are compared with.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

RECIPES = Path(__file__).parent.parent / "recipes"
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
IDS = {token: 256 + i for i, token in enumerate(SPECIAL)}
TEXT: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
}
VISION: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": 32,
    "num_heads": 4,
    "mlp_ratio": 2,
    "patch_size": 4,
    "initializer_range": 0.2,
}
HEAD = 24
# chat_template of Qwen/Qwen2-VL-2B-Instruct and -7B-Instruct (tokenizer_config.json), as public copies of them have it
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LANGUAGE_TARGETS = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
VISION_TARGETS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
# the default of VLM2Vec's first release, matched by suffix: on Qwen2-VL it hits q, k, v, o and down of the LLM
VLM2VEC_TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "k_proj", "q_proj", "out_proj", "v_proj"]


def write_tokenizer(folder: Path) -> Path:
    """Every byte a token (0 is "!", as in Qwen's vocabulary), and Qwen's special tokens."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def recipe(stem: str) -> dict[str, Any]:
    """The recipe as it is released."""
    raw = yaml.safe_load((RECIPES / f"{stem}.yaml").read_text("utf-8"))
    assert isinstance(raw, dict)
    return raw


def tiny_recipe(stem: str) -> dict[str, Any]:
    """The released recipe with nothing changed but the sizes of the model and of the pictures."""
    raw = copy.deepcopy(recipe(stem))
    arguments = raw["model"]["init_args"]
    backbone = arguments["backbone"]["init_args"]
    backbone |= {"text": TEXT, "vision": VISION, "image_token_id": IDS["<|image_pad|>"]}
    pixels = {"patch_size": 4, "min_pixels": 64 * 4, "max_pixels": 64 * 16}
    arguments["processor"]["init_args"]["pixels"] = arguments["processor"]["init_args"].get("pixels", {}) | pixels
    if "head" in arguments:
        arguments["head"]["init_args"] = {"width": TEXT["hidden_size"], "hidden": HEAD}
    raw["card"].pop("parameters", None)
    return raw


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Smooth colours: noise would hide what a resize does."""
    generator = torch.Generator().manual_seed(seed)
    coarse = (torch.rand(6, 6, 3, generator=generator) * 255).byte().numpy()
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def rounded(image: Image.Image) -> Image.Image:
    """What Qwen's `process_vision_info` does before the processor, at the tiny patch size."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rows, columns = smart_resize(image.height, image.width, factor=8, min_pixels=4 * 64, max_pixels=16384 * 64)
    return image.resize((columns, rows))


# ---- the reference: transformers and peft alone ----------------------------------------------------------------------


class Reference:
    """transformers' Qwen2-VL with peft's adapters and the parts that a release adds, one item at a time.

    bidirectional: give the language model a mask that hides nothing, instead of its own causal one.
    """

    def __init__(self, seed: int = 0, bidirectional: bool = False) -> None:
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        torch.manual_seed(seed)
        config = Qwen2VLConfig(
            text_config=dict(TEXT),
            vision_config=dict(VISION),
            image_token_id=IDS["<|image_pad|>"],
            video_token_id=IDS["<|video_pad|>"],
            vision_start_token_id=IDS["<|vision_start|>"],
            vision_end_token_id=IDS["<|vision_end|>"],
        )
        self.model: Any = Qwen2VLForConditionalGeneration(config).eval()
        for (
            name,
            parameter,
        ) in self.model.named_parameters():  # biases and norms start as constants, which hide mistakes
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") or "norm" in name else 0.0, 0.2)
        self.peft: Any = None
        self.bidirectional = bidirectional

    def adapt(self, folder: Path, r: int, alpha: int, targets: list[str], **options: Any) -> None:
        """Put an adapter with random weights on the model and save it, as peft does."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, lora_dropout=0.05, **options)
        self.peft = get_peft_model(self.model, config)
        for name, parameter in self.peft.named_parameters():
            if "lora_A" in name or "lora_B" in name or "modules_to_save" in name:
                nn.init.normal_(
                    parameter, 0.07 if name.endswith("temp") else 0.0, 0.01 if name.endswith("temp") else 0.1
                )
            if "lora_magnitude" in name:
                parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        self.peft.eval().save_pretrained(folder)

    def merge(self) -> None:
        """Fold the adapter into the model."""
        self.model, self.peft = self.peft.merge_and_unload(), None

    def states(
        self, prompt: str, images: list[Image.Image], positions: str, pixels: dict[str, int]
    ) -> tuple[Tensor, Tensor]:
        """Ids (1, T) and final hidden states (1, T, D) of a prompt in which each picture is one placeholder."""
        inputs = _processor(pixels)(text=[prompt], images=images or None, return_tensors="pt")
        ids = inputs.pop("input_ids")
        inputs.pop("attention_mask")
        length = ids.shape[1]
        if positions == "flat":
            position_ids = torch.arange(length).expand(3, 1, length)
        else:
            position_ids, _ = self.model.model.get_rope_index(
                ids, inputs["mm_token_type_ids"], image_grid_thw=inputs.get("image_grid_thw")
            )
        mask = torch.zeros(1, 1, length, length) if self.bidirectional else torch.ones(1, length, dtype=torch.long)
        with torch.no_grad():
            out = self.model.model(input_ids=ids, attention_mask=mask, position_ids=position_ids, **inputs)
        return ids, out.last_hidden_state


def _processor(pixels: dict[str, int]) -> Any:
    import tempfile

    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(write_tokenizer(Path(folder))), pad_token="<|endoftext|>"
        )
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def chat_prompt(content: list[dict[str, Any]]) -> str:
    """One user turn, rendered by transformers."""
    prompt = _processor({}).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(prompt, str)
    return prompt


# ---- ABC -------------------------------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """The head under the names of the official class."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_layer1 = nn.Linear(TEXT["hidden_size"], HEAD)
        self.linear_layer2 = nn.Linear(HEAD, TEXT["hidden_size"])


class Temperature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(0.07))


class AbcReference(Reference):
    """Base, first adapter merged, second adapter: written to `root` as the three hub repositories of ABC."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        super().__init__(seed, bidirectional=True)
        save_base(self.model, root / "Qwen/Qwen2-VL-7B-Instruct")
        self.model.mlp_head = Mlp()
        self.model.temperature = Temperature()
        self.adapt(
            root / "TIGER-Lab/ABC-Qwen2VL-Pretrain",
            r=64,
            alpha=128,
            targets=LANGUAGE_TARGETS + VISION_TARGETS,
            modules_to_save=["temperature", "mlp_head"],
        )
        self.merge()
        self.adapt(root / "TIGER-Lab/ABC-Qwen2VL-Instruct", r=16, alpha=32, targets=LANGUAGE_TARGETS)

    @property
    def temperature(self) -> float:
        return float(self.model.temperature.temp)

    def embed(
        self, text: str | None = None, image: Image.Image | None = None, instruction: str | None = None
    ) -> Tensor:
        """(E,) of a text, of a picture, or of a picture under an instruction: the adapter is on for the last alone."""
        content: list[dict[str, Any]] = [{"type": "image", "image": image}] if image is not None else []
        content.append({"type": "text", "text": f"Instruction: {instruction}" if instruction else text or ""})
        pixels = {"patch_size": 4, "min_pixels": 64 * 4, "max_pixels": 64 * 16}
        arguments = (chat_prompt(content), [rounded(image)] if image is not None else [], "flat", pixels)
        if instruction:
            ids, hidden = self.states(*arguments)
        else:
            with self.peft.disable_adapter():
                ids, hidden = self.states(*arguments)
        pooled = ((ids != 0).unsqueeze(-1) * hidden).mean(dim=1)  # token 0 adds nothing but is counted
        with torch.no_grad():
            head = self.model.mlp_head
            projected = pooled + head.linear_layer2(F.selu(head.linear_layer1(pooled)))
        return F.normalize(projected.float(), dim=-1)[0]


# ---- VLM2Vec ---------------------------------------------------------------------------------------------------------


class Vlm2VecReference(Reference):
    """Base and a DoRA adapter, written to `root` as the hub repositories of VLM2Vec."""

    def __init__(self, root: Path, seed: int = 0, **options: Any) -> None:
        super().__init__(seed)
        save_base(self.model, root / "Qwen/Qwen2-VL-2B-Instruct")
        arguments = {"r": 8, "alpha": 64, "use_dora": True, "init_lora_weights": "gaussian"} | options
        self.adapt(root / "TIGER-Lab/VLM2Vec-Qwen2VL-2B", targets=VLM2VEC_TARGETS, **arguments)

    def embed(self, prompt: str, image: Image.Image | None = None) -> Tensor:
        """(E,) of a raw prompt, in which `<|image_pad|>` stands for the picture."""
        pixels = {"patch_size": 4, "min_pixels": 64 * 4, "max_pixels": 64 * 16}
        _, hidden = self.states(prompt, [image] if image is not None else [], "flat", pixels)
        return F.normalize(hidden[0, -1].float(), dim=-1)


# ---- folders ---------------------------------------------------------------------------------------------------------


def save_base(model: Any, folder: Path) -> None:
    """As the hub has it: transformers' own save_pretrained, in two shards, and the tokenizer."""
    model.save_pretrained(folder, max_shard_size="60KB")
    write_tokenizer(folder)


def with_new_base_names(folder: Path) -> None:
    """Rewrite a saved base under the names that its parameters have in memory since transformers 4.52."""
    from safetensors.torch import load_file, save_file

    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    renamed = {_new_name(key): value for key, value in state.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def _new_name(key: str) -> str:
    if key.startswith("visual."):
        return "model." + key
    return key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key


def with_old_adapter_names(folder: Path) -> None:
    """Rewrite a saved adapter under the names of transformers before 4.52."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    state = {
        key.replace("model.model.language_model.", "model.model.").replace(
            "model.model.visual.", "model.visual."
        ): value
        for key, value in load_file(path).items()
    }
    assert any(".model.layers.0." in key for key in state) and not any("language_model" in key for key in state)
    save_file(state, path, metadata={"format": "pt"})


def as_pickle(folder: Path) -> None:
    """Replace adapter_model.safetensors by adapter_model.bin, the format of the first releases."""
    from safetensors.torch import load_file

    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def hub_cache(home: Path, root: Path) -> None:
    """Lay the repositories under `root` (ORG/REPO) out as a hub cache below `home` (what HF_HOME names)."""
    for repository in sorted(p for p in root.glob("*/*") if p.is_dir()):
        folder = home / "hub" / f"models--{repository.parent.name}--{repository.name}"
        revision = "0123456789abcdef0123456789abcdef01234567"
        snapshot = folder / "snapshots" / revision
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(revision)
        snapshot.mkdir(parents=True)
        (folder / "blobs").mkdir()
        for file in repository.iterdir():
            blob = folder / "blobs" / f"{len(list((folder / 'blobs').iterdir())):040d}"
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(blob)


def adapter_config(folder: Path, **changes: Any) -> None:
    """Change entries of a saved adapter_config.json; None removes one."""
    path = folder / "adapter_config.json"
    config = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}
    path.write_text(json.dumps(config))
