"""Peak memory and time of the contrastive losses against open_clip's, forward and backward.

    python benchmarks/contrastive_loss.py                      # the table of docs/performance.md
    python benchmarks/contrastive_loss.py --device cuda --sizes 32768 131072

Every measurement is a process of its own, ours and theirs by turns. Memory is what the process' peak grew by over the inputs
(resident set on the CPU, allocator's peak on a GPU). Before anything is timed, loss and gradients must agree: 1e-6 of
their norm in fp32 at the size measured. The last line of each loss is the exponent p of memory ~ N^p, fitted over all sizes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from alternating import peak, start_of_peak

PAIRS = {
    "InfoNCE": "open_clip.loss.ClipLoss",
    "SigLIP": "open_clip.loss.SigLipLoss",
}


def inputs(size: int, width: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(size, width, generator=generator) for _ in range(2))
    image, text = F.normalize(image, dim=-1), F.normalize(image + 2 * noise, dim=-1)
    leaves = [image, text, torch.tensor(2.659), torch.tensor(-10.0)]
    return tuple(leaf.to(device).requires_grad_() for leaf in leaves)  # type: ignore[return-value]


def ours(name: str, image, text, log_scale, bias) -> torch.Tensor:  # type: ignore[no-untyped-def]
    from zoo.objectives.infonce import InfoNCE
    from zoo.objectives.siglip import SigLIP
    from zoo.types import Embedding, Encoded

    number = torch.arange(len(image), device=image.device)
    marks = {"query": number, "target": number}
    rows = Encoded(
        {"query": Embedding(image), "target": Embedding(text)},
        marks,
        marks,
        torch.full_like(number, -1),
        torch.ones(len(image), device=image.device),
        number,
    )
    objective = InfoNCE(learn="log", symmetric=True) if name == "InfoNCE" else SigLIP()
    del objective.temperature.parameter
    objective.temperature.parameter = log_scale
    if name == "SigLIP":
        del objective.bias
        objective.bias = bias
    return objective(rows, rows)["loss"]


def theirs(name: str, image, text, log_scale, bias) -> torch.Tensor:  # type: ignore[no-untyped-def]
    from open_clip.loss import ClipLoss, SigLipLoss

    if name == "InfoNCE":
        return ClipLoss()(image, text, log_scale.exp())
    return SigLipLoss()(image, text, log_scale.exp(), bias)


def measure(name: str, side: str, size: int, width: int, device: str) -> dict[str, float]:
    """In this process: peak growth in MiB and seconds of a second pass (the first one warms up at N = 1,024)."""
    run = {"ours": ours, "theirs": theirs}[side]
    run(name, *inputs(1024, width, device)).backward()
    leaves = inputs(size, width, device)
    before = _peak(device, reset=True)
    start = time.perf_counter()
    run(name, *leaves).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "mib": _peak(device) - before}


def _peak(device: str, reset: bool = False) -> float:
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 2**20
        return torch.cuda.max_memory_allocated() / 2**20
    return start_of_peak() if reset else peak()


def agree(name: str, size: int, width: int, device: str) -> float:
    """Largest relative difference of loss and gradients."""
    worst = 0.0
    results = []
    for run in (ours, theirs):
        leaves = inputs(size, width, device)
        loss = run(name, *leaves)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    for left, right in zip(*results, strict=True):
        worst = max(worst, float((left - right).norm() / right.norm()))
    return worst


def exponent(sizes: list[int], mib: list[float]) -> float:
    """Slope of log memory over log N, least squares."""
    if len(sizes) < 2:
        return float("nan")
    x, y = (torch.tensor(values, dtype=torch.float64).log2() for values in (sizes, mib))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--losses", nargs="+", default=list(PAIRS))
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, side, size = arguments.one.split(",")
        print(json.dumps(measure(name, side, int(size), arguments.width, arguments.device)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.device}, D = {arguments.width}")
    print("| loss | N | ours MiB | theirs MiB | ratio | ours s | theirs s | ratio | agreement |\n" + "|---" * 9 + "|")
    for name in arguments.losses:
        grown: dict[str, list[float]] = {"ours": [], "theirs": []}
        for size in arguments.sizes:
            found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
            for _ in range(arguments.repeats):
                for side, values in found.items():
                    command = [sys.executable, __file__, "--one", f"{name},{side},{size}"]
                    command += ["--width", str(arguments.width), "--device", arguments.device]
                    values.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            row = {s: {k: statistics.median(v[k] for v in values) for k in values[0]} for s, values in found.items()}
            mine, peer = row["ours"], row["theirs"]
            worst = agree(name, size, arguments.width, arguments.device)
            print(
                f"| {name} | {size:,} | {mine['mib']:.0f} | {peer['mib']:.0f} | 1/{peer['mib'] / mine['mib']:.1f} "
                f"| {mine['seconds']:.2f} | {peer['seconds']:.2f} | {mine['seconds'] / peer['seconds']:.2f} | {worst:.0e} |",
                flush=True,
            )
            for side in grown:
                grown[side].append(row[side]["mib"])
        fits = {side: exponent(arguments.sizes, values) for side, values in grown.items()}
        print(f"{name}: memory grows as N^{fits['ours']:.2f}, theirs as N^{fits['theirs']:.2f}", flush=True)


if __name__ == "__main__":
    main()
