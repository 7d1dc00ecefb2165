"""Peak memory and time of distances and losses of distributions, against the tensors of all pairs of the official codes.

    python benchmarks/probabilistic.py                      # the table of docs/performance.md
    python benchmarks/probabilistic.py --what csd --sizes 64 --width 128

Forward and backward. Every measurement is a process of its own, ours and theirs by turns. Memory is what the process' peak
grew by over the inputs, at least 1 MiB (resident set on the CPU, allocator's peak on a GPU). Before anything is timed,
values and gradients must agree: 1e-5 of their norm, fp32. Theirs is written from the formulas of the official codes:

    csd      |mu_i - mu_j|^2 and the variances of a pair, as tensors B x B x D (naver-ai/pcmepp)
    pcmepp   PCME++'s loss with pseudo-positives: the former, three times
    pcme     PCME's loss, K = 7: samples of all pairs side by side, B^2 x K x K x D (naver-ai/pcme)
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from alternating import machine, peak, start_of_peak
from torch import Tensor

SAMPLES = 7
SIZES = {"csd": [512], "pcmepp": [512], "pcme": [32]}
SIDES = ("ours", "theirs")


def inputs(size: int, width: int, device: str) -> list[Tensor]:
    """Means and log variances of queries and of targets."""
    generator = torch.Generator().manual_seed(0)
    mean, noise, *spread = (torch.randn(size, width, generator=generator) for _ in range(4))
    means = F.normalize(mean, dim=1), F.normalize(mean + 2 * noise, dim=1)
    leaves = [means[0], spread[0] - 7, means[1], spread[1] - 7]
    return [leaf.to(device).requires_grad_() for leaf in leaves]


def ours(what: str, *leaves: Tensor) -> Tensor:
    from zoo.objectives.pcme import PCME
    from zoo.objectives.pcmepp import PCMEPP
    from zoo.similarity.distances import CSD
    from zoo.types import Embedding, Encoded

    views = {"query": Embedding(*leaves[:2]), "target": Embedding(*leaves[2:])}
    if what == "csd":
        scores = CSD()(views["query"], views["target"])
        return (weights(scores.shape, scores) * scores).sum()
    number = torch.arange(len(leaves[0]), device=leaves[0].device)
    marks = {"query": number, "target": number}
    ones = torch.ones(len(number), device=number.device)
    rows = Encoded(views, marks, marks, torch.full_like(number, -1), ones, number)
    if what == "pcmepp":
        return PCMEPP(vib=0.0).to(number.device)(rows, rows)["loss"]
    return PCME(samples=SAMPLES, vib=0.0, form="official").to(number.device)(rows, rows)["loss"]


def theirs(what: str, *leaves: Tensor) -> Tensor:
    if what == "csd":
        scores = -all_pairs(*leaves)
        return (weights(scores.shape, scores) * scores).sum()
    matched = torch.eye(len(leaves[0]), device=leaves[0].device)
    if what == "pcmepp":
        loss = 2 * F.binary_cross_entropy_with_logits(5 - 5 * all_pairs(*leaves), matched)
        for sides in (leaves, (*leaves[2:], *leaves[:2])):
            logits = 5 - 5 * all_pairs(*sides)
            near = logits >= logits.diagonal()[:, None]
            loss = loss + 0.1 * F.binary_cross_entropy_with_logits(logits, torch.where(near, 1.0, matched))
        return loss
    x, y = (samples(*leaves[n : n + 2], stream) for stream, n in enumerate((0, 2)))
    return side_by_side(x, y, matched) + side_by_side(y, x, matched)


def all_pairs(mean: Tensor, log_var: Tensor, other: Tensor, other_log_var: Tensor) -> Tensor:
    means = ((mean.unsqueeze(1) - other.unsqueeze(0)) ** 2).sum(-1)
    return means + (log_var.exp().unsqueeze(1) + other_log_var.exp().unsqueeze(0)).sum(-1)


def samples(mean: Tensor, log_std: Tensor, stream: int) -> Tensor:
    from zoo.objectives.draws import Draws

    noise = Draws().normal((len(mean), SAMPLES, mean.shape[1]), mean, stream)
    return mean[:, None] + log_std.exp()[:, None] * noise


def side_by_side(x: Tensor, y: Tensor, matched: Tensor) -> Tensor:
    left, right = x.repeat_interleave(len(y), 0), y.repeat(len(x), 1, 1)
    distances = (((left.unsqueeze(1) - right.unsqueeze(2)) ** 2).sum(-1) + 1e-6).sqrt().flatten(1)
    logits = 15 - 15 * distances
    sign = (2 * matched - 1).flatten()[:, None]
    likely = (logits * sign - torch.stack((logits, -logits), 2).logsumexp(2)).logsumexp(1)
    return (math.log(SAMPLES**2) - likely).sum()


def weights(shape: torch.Size, like: Tensor) -> Tensor:
    """So that no gradient is the same for all pairs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(like)


def measure(what: str, side: str, size: int, width: int, device: str) -> dict[str, float]:
    """In this process: peak growth in MiB, and seconds of a second pass (the first one warms up on few rows)."""
    run: Callable[..., Tensor] = {"ours": ours, "theirs": theirs}[side]
    run(what, *inputs(8, width, device)).backward()
    leaves = inputs(size, width, device)
    before = _peak(device, reset=True)
    start = time.perf_counter()
    run(what, *leaves).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "mib": max(1.0, _peak(device) - before)}


def _peak(device: str, reset: bool = False) -> float:
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 2**20
        return torch.cuda.max_memory_allocated() / 2**20
    return start_of_peak() if reset else peak()


def agreement(what: str, size: int, width: int, device: str) -> float:
    """Largest relative difference of value and gradients. SystemExit if it is above 1e-5."""
    results = []
    for run in (ours, theirs):
        leaves = inputs(size, width, device)
        value = run(what, *leaves)
        value.backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    worst = max(float((left - right).norm() / right.norm()) for left, right in zip(*results, strict=True))
    if not worst <= 1e-5:
        raise SystemExit(f"{what}, B = {size}: ours and theirs differ by {worst:.1e} of their norm")
    return worst


def line(what: str, size: int, arguments: argparse.Namespace) -> str:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    worst = agreement(what, size, arguments.width, arguments.device)
    for _ in range(arguments.repeats):
        for side, values in found.items():
            command = [sys.executable, __file__, "--one", f"{what},{side},{size}"]
            command += ["--width", str(arguments.width), "--device", arguments.device]
            values.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    mine, peer = ({k: statistics.median(v[k] for v in found[side]) for k in ("mib", "seconds")} for side in SIDES)
    return (
        f"| {what} | {size} | {arguments.width} | {mine['mib']:.1f} | {peer['mib']:.0f} | 1/{peer['mib'] / mine['mib']:.0f} "
        f"| {mine['seconds']:.4f} | {peer['seconds']:.3f} | {peer['seconds'] / mine['seconds']:.1f}x | {worst:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--what", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--sizes", type=int, nargs="+", help="instead of 512 rows, and of 32 for pcme")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, side, size = arguments.one.split(",")
        print(json.dumps(measure(what, side, int(size), arguments.width, arguments.device)))
        return
    print(f"{machine()}, {arguments.device}")
    print(
        "| what | B | D | ours MiB | theirs MiB | ratio | ours s | theirs s | faster | agreement |\n"
        + "|---" * 10
        + "|"
    )
    for what in arguments.what:
        for size in arguments.sizes or SIZES[what]:
            print(line(what, size, arguments), flush=True)


if __name__ == "__main__":
    main()
