"""FuseMix: pairs of latents mixed into new pairs (arXiv:2312.10144)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.types import Batch, Inputs


class LatentMixing(nn.Module):
    """Mixes the latents of two halves of a batch, before any head: B / 2 new pairs take the place of B.

    Formula:
        x_i = l x_i + (1 - l) x_(i + B/2), l ~ Beta(a, a), one for the batch; the same l and the same partners in every view,
        so that mixed views of one sample belong together (equation 2; labels are not mixed)

    Args:
        alpha: a; 1, which is uniform, in the official scripts.

    Of an odd batch the last sample stays as it is. The paper's batch of 20,000 pairs is therefore a `batch_size` of 40,000.
    Random numbers are those of torch's global generator, as dropout's.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if alpha <= 0:
            raise RecipeError(f"LatentMixing draws from Beta(alpha, alpha); alpha is {alpha}, it must be above 0")
        self.alpha = alpha

    def forward(self, batch: Batch) -> Batch:
        """Batch of latents (`{modality}_pooled` in every view) -> mixed batch.

        Raises:
            RecipeError: a view without exactly one row per sample and one part of one modality per row, or with tokens.
        """
        half = len(batch.ids) // 2
        if half == 0:
            return batch
        samples = torch.arange(len(batch.ids), device=batch.labels.device)
        for name, owners in batch.owners.items():  # as many rows as samples are not yet one of each
            if not torch.equal(owners, samples):
                raise RecipeError(
                    f"LatentMixing needs one row per sample; the view '{name}' has {len(owners)} rows of "
                    f"{len(owners.unique())} of {len(samples)} samples"
                )
        share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())

        def mixed(values: Tensor) -> Tensor:
            halves = share * values[:half] + (1 - share) * values[half : 2 * half]
            return torch.cat([halves, values[2 * half :]])

        count = half + len(batch.ids) % 2
        owners = torch.arange(count, device=batch.labels.device)
        names = [f"{a} + {b}" for a, b in zip(batch.ids, batch.ids[half : 2 * half], strict=False)][:half]
        return replace(
            batch,
            views={
                name: _mixed_view(name, inputs, len(batch.ids), owners, mixed) for name, inputs in batch.views.items()
            },
            owners=dict.fromkeys(batch.owners, owners),
            keys={name: _both(keys, half) for name, keys in batch.keys.items()},
            labels=_labels(batch.labels, half),
            weights=mixed(batch.weights),
            ids=names + batch.ids[2 * half :],
            sources=[*batch.sources[:half], *batch.sources[2 * half :]],
        )


def _mixed_view(name: str, inputs: Inputs, samples: int, rows: Tensor, mixed) -> Inputs:  # type: ignore[no-untyped-def]
    kinds = [key.removesuffix("_pooled") for key in inputs if key.endswith("_pooled")]
    if len(kinds) != 1 or len(inputs[f"{kinds[0]}_pooled"]) != samples or len(inputs["rows"]) != samples:
        raise RecipeError(
            f"LatentMixing needs one part of one modality per sample; the view '{name}' has {len(inputs['rows'])} rows "
            f"of {' and '.join(kinds) or 'nothing'} for {samples} samples"
        )
    if any(key.endswith("_tokens") for key in inputs):
        raise RecipeError(
            f"LatentMixing mixes pooled latents; the view '{name}' has tokens, which have no common length"
        )
    return {"rows": rows, f"{kinds[0]}_rows": rows, f"{kinds[0]}_pooled": mixed(inputs[f"{kinds[0]}_pooled"])}


def _both(marks: Tensor, half: int) -> Tensor:
    """One mark for two: equal where both parents are equal. int64 wraps around, which is what a hash wants."""
    joined = marks[:half] * 0x5851F42D4C957F2D + marks[half : 2 * half]
    return torch.cat([joined, marks[2 * half :]])


def _labels(labels: Tensor, half: int) -> Tensor:
    """A mixture is labelled where both parents are."""
    first, second = labels[:half], labels[half : 2 * half]
    joined = torch.where((first >= 0) & (second >= 0), _both(labels, half)[:half] & (2**62 - 1), -1)
    return torch.cat([joined, labels[2 * half :]])
