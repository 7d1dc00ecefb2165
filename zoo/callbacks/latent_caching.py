"""Training on cached latents: the frozen encoders see every picture and text once, before the first step."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.callbacks.terminal import show
from zoo.data.datamodule import EmbeddingData
from zoo.data.latent_files import StorageDtype
from zoo.data.listing import list_data
from zoo.data.processors.cached import CachedProcessor
from zoo.errors import RecipeError
from zoo.latents import BATCH_SIZE, Filled, cached_processor, fill, notes


class LatentCaching(Callback):
    """Fills the cache when a fit starts and lets its training, validation and test read from there.

    Outside of these the module has its own processor, so a bundle works on items that nobody has cached. What is there
    already is kept: further runs on the same encoders and data start at once. `zoo cache` fills without training.

    Args:
        enabled: False = encode anew in every step.
        batch_size: parts that an encoder gets at once while filling.
        dtype: of the files; float16 takes half the space.
        folder: where latents are kept; "" = in the cache of the zoo.

    Raises:
        RecipeError: a model without frozen encoders, augmentation, a source that can't be listed. Others: see `fill`.
    """

    def __init__(
        self,
        enabled: bool = False,
        batch_size: int = BATCH_SIZE,
        dtype: StorageDtype = "float32",
        folder: str = "",
    ) -> None:
        self.enabled, self.batch_size, self.dtype, self.folder = enabled, batch_size, dtype, folder
        self._cached: CachedProcessor | None = None
        self._data: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill, and change the processor."""
        if not self.enabled:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, EmbeddingData):
            raise RecipeError("cache.enabled needs data whose items can be listed: use EmbeddingData as data module")
        check_module(pl_module)
        if not trainer.is_global_zero:
            trainer.strategy.barrier("latents")  # until the first process has filled the cache
        filled = fill(
            pl_module,  # type: ignore[arg-type]  # checked above
            list_data(data),
            folder=self.folder,
            batch_size=self.batch_size,
            dtype=self.dtype,
            show=trainer.is_global_zero and sys.stderr.isatty(),
        )
        if trainer.is_global_zero:
            trainer.strategy.barrier("latents")
        for one in filled:
            show(trainer, _told(one))
        self._data, self._cached = data, cached_processor(pl_module.processor, filled)
        pl_module.processor = self._cached  # type: ignore[assignment]  # no tensor, no module

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The test behind a fit on the same data reads from the cache, too."""
        if stage == "test" and self._cached is not None and getattr(trainer, "datamodule", None) is self._data:
            pl_module.processor = self._cached  # type: ignore[assignment]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its own processor back."""
        self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its own processor back."""
        self._restore(pl_module)

    def _restore(self, module: LightningModule) -> None:
        if self._cached is not None:
            module.processor = self._cached.processor


def check_module(module: Any) -> None:
    """RecipeError if it has no frozen encoders whose latents could be kept."""
    if not hasattr(module, "latents") or not hasattr(module, "encoders"):
        raise RecipeError(
            f"{type(module).__name__} has no frozen encoders whose latents could be cached; use the architecture "
            "Projector, or set cache.enabled: false"
        )


def _told(one: Filled) -> str:
    """One line about a list."""
    manifest = one.manifest
    rate = (
        f", {one.encoded:,} encoded now ({one.encoded / one.seconds:,.0f}/s)" if one.encoded else ", all cached before"
    )
    line = f"latents: {manifest.rows:,} {manifest.modality}s of {manifest.source}, {manifest.dim} wide{rate}"
    return "\n".join([line, *(f"latents: {note}" for note in notes(one) if one.encoded)])
