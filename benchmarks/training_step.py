"""One training step of CLIP against a bare loop over open_clip, and what share of the machine's matrix rate it uses (MFU).

    python benchmarks/training_step.py                                              # ViT-B-32, 32 pairs, fp32
    python benchmarks/training_step.py --device cuda --batch 1024 --precision bf16

Both hold the same random weights and see the same pixels and captions (theirs padded to 77 tokens, as open_clip's
tokenizer does; ours to the longest of the batch): forward, loss, backward, clipping, AdamW. Loss and gradients of a first
step in fp32 must agree to 1e-5 and 1e-4 (of 32 pairs at most, since both graphs are held). MFU: multiplications and
additions of our step, as torch counts them (on a CPU without attention's own), per second, over the rate of a product of
two 4,096 x 4,096 matrices on the same device in the same precision.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from alternating import alternate, machine, row
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from zoo.convert.open_clip import to_open_clip
from zoo.loading import build_model
from zoo.types import Item, Sample

RECIPE = Path(__file__).parent.parent / "recipes" / "clip-paper.yaml"
Loss = Callable[[], torch.Tensor]


def pairs(count: int) -> list[Sample]:
    """Noise, and captions of 5 to 20 words."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 224, 224, 3), np.uint8)
    captions = [" ".join(["word"] * int(words)) for words in rng.integers(5, 21, count)]
    return [
        Sample(
            f"{i}", {"query": Item(text=f"{i} {caption}"), "target": Item(images=(Image.fromarray(picture),))}, label=i
        )
        for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True))
    ]


def both(model_name: str, batch: int, device: str) -> tuple[Any, Any, Loss, Loss]:
    """Our module, open_clip's model, and what gives the loss of each on the same batch."""
    model = yaml.safe_load(RECIPE.read_text())["model"]
    for tower in ("image", "text"):
        model["init_args"][tower]["init_args"]["config"] = model_name
    ours: Any = build_model(model, "clip-paper").to(device).train()
    theirs = open_clip.create_model(model_name, force_quick_gelu=True).to(device).train()
    theirs.load_state_dict(to_open_clip(ours.state_dict(), custom_text=False))
    inputs = ours.transfer_batch_to_device(ours.processor(pairs(batch)), torch.device(device), 0)
    pixels, tokens = inputs.views["target"]["pixels"], inputs.views["query"]["input_ids"]
    tokens = torch.nn.functional.pad(tokens, (0, theirs.context_length - tokens.shape[1]))
    criterion = open_clip.loss.ClipLoss()

    def zoo_loss() -> torch.Tensor:
        encoded = ours._encoded(inputs)
        found: torch.Tensor = ours.objective(encoded, encoded)["loss"]
        return found

    def open_clip_loss() -> torch.Tensor:
        found: torch.Tensor = criterion(*theirs(pixels, tokens)[:3])
        return found

    return ours, theirs, zoo_loss, open_clip_loss


def check(ours: Any, theirs: Any, zoo_loss: Loss, open_clip_loss: Loss) -> float:
    """The largest difference of a gradient, over the norm of that gradient."""
    mine, other = zoo_loss(), open_clip_loss()
    mine.backward(), other.backward()
    assert abs(float(mine.detach() - other.detach())) < 1e-5, (mine, other)
    grads = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None and "temperature" not in name}
    named = to_open_clip({**ours.state_dict(), **grads}, custom_text=False)
    worst = max(
        float((named[name] - p.grad).norm() / p.grad.norm())
        for name, p in theirs.named_parameters()
        if name != "logit_scale"  # kept as its inverse here
    )
    assert worst < 1e-4, worst
    return worst


def step(model: torch.nn.Module, loss: Loss, context: Callable[[], Any]) -> Callable[[], None]:
    """A whole training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6)

    def run() -> None:
        optimizer.zero_grad()
        with context():
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def matrix_rate(device: str, dtype: torch.dtype, size: int = 4096) -> float:
    """FLOP/s of a large product, median of five."""
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):  # the first warms up
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="ViT-B-32", help="a configuration of open_clip with the class CLIP")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    worst = check(*both(arguments.model, min(32, arguments.batch), arguments.device))
    ours, theirs, zoo_loss, open_clip_loss = both(arguments.model, arguments.batch, arguments.device)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32

    def context() -> Any:
        return torch.autocast(arguments.device, dtype) if dtype != torch.float32 else contextlib.nullcontext()

    with FlopCounterMode(display=False) as counter, context():
        zoo_loss().backward()
    seconds = alternate(step(ours, zoo_loss, context), step(theirs, open_clip_loss, context), repeats=arguments.repeats)
    rate = matrix_rate(arguments.device, dtype)
    used = counter.get_total_flops() / seconds[0]
    print(f"{machine()}, {arguments.device}, {arguments.precision}; products of 4,096: {rate / 1e12:.2f} TFLOP/s")
    print("| task | ours s | theirs s | theirs / ours | notes |\n|---|---|---|---|---|")
    note = f"gradients {worst:.0e}; {arguments.batch / seconds[0]:,.1f} pairs/s, MFU {used / rate:.0%}"
    print(row(f"{arguments.model}, {arguments.batch} pairs", *seconds, note))


if __name__ == "__main__":
    main()
