"""Ranking and exact search against torchmetrics and faiss.

    python benchmarks/retrieval.py

recall@10 of 1,000 queries x 50,000 candidates against torchmetrics' RetrievalRecall on the same scores (theirs is given the
scores, ours the vectors); exact top-100 of 10,000 x 100,000 vectors of 512 values against faiss.IndexFlatIP. Results must be
equal first. Extra memory is what the process' peak grew by during ours.
"""

from __future__ import annotations

import argparse

import faiss
import torch
import torch.nn.functional as F
from alternating import alternate, machine, peak, row, start_of_peak
from torchmetrics.retrieval import RetrievalRecall

from zoo.metrics.retrieval import retrieval_metrics
from zoo.metrics.search import search


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def recall(repeats: int) -> str:
    queries, candidates = unit(1000, 256, 0), unit(50_000, 256, 1)
    relevant = torch.arange(1000) * 50
    candidates[relevant] = F.normalize(candidates[relevant] + 0.35 * queries, dim=-1)
    lists = [[int(i)] for i in relevant]
    scores = queries @ candidates.T
    target = torch.zeros_like(scores, dtype=torch.bool)
    target[torch.arange(1000), relevant] = True
    indexes = torch.arange(1000)[:, None].expand_as(scores).flatten()

    def ours() -> float:
        return float(retrieval_metrics(queries, candidates, lists, metrics=("recall@10",))["recall@10"].mean())

    def theirs() -> float:
        metric = RetrievalRecall(top_k=10)
        metric.update(scores.flatten(), target.flatten(), indexes=indexes)
        return float(metric.compute())

    mine, peer = ours(), theirs()
    assert abs(mine - peer) < 1e-6, (mine, peer)
    return row("recall@10, 1,000 x 50,000, vs torchmetrics", *alternate(ours, theirs, repeats), f"both {mine:.3f}")


def top(repeats: int, queries_count: int, candidates_count: int) -> str:
    queries, candidates = unit(queries_count, 512, 0), unit(candidates_count, 512, 1)
    index = faiss.IndexFlatIP(512)
    index.add(candidates.numpy())
    before = start_of_peak()
    found = search(queries, candidates, 100)
    extra = peak() - before
    _, peer = index.search(queries.numpy(), 100)
    same = (found.indexes.sort(1).values == torch.from_numpy(peer).sort(1).values).float().mean()
    assert same > 0.9999, same  # scores closer than fp32 rounding may trade places
    seconds = alternate(lambda: search(queries, candidates, 100), lambda: index.search(queries.numpy(), 100), repeats)
    name = f"top-100, {queries_count:,} x {candidates_count:,} x 512, vs faiss.IndexFlatIP"
    return row(name, *seconds, f"{same:.4%} of ids equal, {extra:.0f} MiB extra")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=100_000)
    arguments = parser.parse_args()
    print(machine())
    print("| task | ours s | theirs s | theirs / ours | equality |\n|---|---|---|---|---|")
    print(recall(arguments.repeats), flush=True)
    print(top(arguments.repeats, arguments.queries, arguments.candidates))


if __name__ == "__main__":
    main()
