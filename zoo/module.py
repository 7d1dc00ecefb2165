"""The one base class of all architectures: training and evaluation steps, optimizer, freezing, gathering, chunking."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from zoo.data.source import Processor
from zoo.distributed import group_of, world_size
from zoo.errors import NonFiniteError, RecipeError, WeightsError
from zoo.nn.fingerprint import weights_digest
from zoo.nn.parameter_groups import built_optimizer, built_scheduler, matching
from zoo.nn.picture_mixing import refuse_unread
from zoo.objectives.objective import Objective
from zoo.rows import gathered, joined, without_rows
from zoo.types import Batch, Embedding, Encoded, Graph, Inputs
from zoo.weights import named_as_in, plain


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with the settings of the recipes that do not say otherwise (ours)."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))


class EmbeddingModule(LightningModule):
    """An architecture writes `encode` and `export_graphs`; all the rest is here, once.

    Args:
        processor: samples to tensors; the same object everywhere.
        objective: needed to fit.
        optimizer: given the parameter groups: with and without weight decay, and those of `rates`.
        scheduler: stepped after every optimizer step; None = constant.
        chunk_size: encode this many rows at a time and recompute them in the backward pass (GradCache, arXiv:2101.06983):
            the gradient of the whole batch for the memory of one chunk. Batch norms must be frozen. None = all at once.
        gather_group: ranks that share their rows with one another; the loss is the mean over such groups, and each one's
            batch is its own (grouped aggregation, M2-Encoder, arXiv:2401.15896: less to send and fewer negatives). None =
            all ranks are one group, which is the loss of the joined batch.
        freeze: regular expressions; parameters whose name matches one of them (from its start) are not trained, and parts
            that have no other parameters stay in evaluation mode.
        rates: regular expression -> factor of the learning rate, for parameters whose name it matches from its start; of
            several the first one counts. One that matches nothing is refused.
    """

    def __init__(
        self,
        processor: Processor,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = adamw,
        scheduler: LRSchedulerCallable | None = None,
        chunk_size: int | None = None,
        gather_group: int | None = None,
        freeze: Sequence[str] = (),
        rates: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise RecipeError(f"chunk_size is {chunk_size}; it is a number of rows, or null for all at once")
        self.processor = processor
        self.objective = objective
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.chunk_size = chunk_size
        self.gather_group = gather_group
        self.freeze_patterns = tuple(freeze)
        self.rates = dict(rates or {})
        self._frozen: set[str] = set()  # parameters that would be trained but for `freeze`
        self._frozen_parts: list[nn.Module] = []
        self._begun: int | None = None

    # ---- what an architecture writes ----------------------------------------------------------------------------

    def encode(self, inputs: Inputs) -> Embedding:
        """One view's inputs (R rows) -> Embedding (R, E)."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def export_graphs(self) -> list[Graph]:
        """The parts that deploy alone, with inputs to trace and to verify them."""
        raise NotImplementedError(f"{type(self).__name__} has no export_graphs")

    def merge_adapters(self) -> None:
        """Make adapters that act on every row part of the weights, in place: graphs are then as small as without any."""

    def kept_elsewhere(self) -> list[str]:
        """Names of parts that are read from where they were released and never change (frozen encoders): they are in no
        checkpoint and no bundle, which hold their digests instead.
        """
        return []

    def digests_elsewhere(self) -> dict[str, str]:
        """Name of every part of `kept_elsewhere` -> sha256 of its weights."""
        return {name: weights_digest(self.get_submodule(name)) for name in self.kept_elsewhere()}

    def check_elsewhere(self, digests: Mapping[str, str], source: str) -> None:
        """Raise WeightsError if a part that is kept elsewhere is not the one that `source` was trained with."""
        for name, digest in self.digests_elsewhere().items():
            if digests.get(name, digest) != digest:
                place = getattr(self.get_submodule(name), "pretrained", "")
                raise WeightsError(
                    f"'{name}' has other weights than those that {source} was trained with (now from '{place}'): "
                    "install or name the same version, or train again"
                )

    def not_finite(self, state: Mapping[str, Tensor]) -> list[str]:
        """Names in a state dict of this module: parameters with a NaN or infinite value, and buffers with a NaN (masks hold
        infinities).
        """
        parameters = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        return [name for name, value in state.items() if not _is_finite(value, infinities=name not in parameters)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what is kept elsewhere. NonFiniteError if weights or optimizer states are not finite: then nothing is
        saved, and the last good checkpoint stays.
        """
        broken = [f"'{name}'" for name in self.not_finite(checkpoint["state_dict"])]
        if "optimizer_states" in checkpoint:
            broken += self._broken_states()
        if broken:
            raise NonFiniteError(
                f"after step {self.global_step} {', '.join(broken[:3])}{' and more' * (len(broken) > 3)} are not finite, so "
                "nothing was saved: lower the learning rate, and start from the last good checkpoint or anew"
            )
        left_out = tuple(f"{name}." for name in self.kept_elsewhere())
        if left_out:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(left_out)}
            checkpoint["kept_elsewhere"] = self.digests_elsewhere()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put back what is kept elsewhere. WeightsError if it changed meanwhile, or if weights are not finite."""
        checkpoint["state_dict"] = named_as_in(self, checkpoint["state_dict"])
        if broken := self.not_finite(checkpoint["state_dict"]):
            raise WeightsError(f"the checkpoint's weights are not finite, first {broken[:3]}; take an earlier one")
        self.check_elsewhere(checkpoint.get("kept_elsewhere", {}), "the checkpoint")
        left_out = tuple(f"{name}." for name in self.kept_elsewhere())
        if left_out:
            own = {key: value for key, value in self.state_dict().items() if key.startswith(left_out)}
            checkpoint["state_dict"] = own | checkpoint["state_dict"]

    def _broken_states(self) -> list[str]:
        """What the optimizers remember and is not finite."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.named_parameters()}
        return [
            f"{key} of '{names[parameter]}'"
            for optimizer in self.trainer.optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor) and not _is_finite(value)
        ]

    # ---- fitting ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Freeze, and read pretrained weights where fitting starts (a checkpoint, restored later, overrides them).

        In the other stages read what no checkpoint holds.
        """
        if stage != "fit":
            _read_pretrained(self.get_submodule(name) for name in self.kept_elsewhere())
            return
        if self.objective is None:
            raise RecipeError(f"{type(self).__name__} has no objective; fitting needs one (model.init_args.objective)")
        refuse_unread(getattr(self, "mixing", None), self.objective)
        _read_pretrained(self.modules())
        self.apply_freeze()
        # data-parallel training would send these to all processes in every step
        self._ddp_params_and_buffers_to_ignore = [
            f"{prefix}.{name}" for prefix, part in self.named_modules() for name in getattr(part, "not_broadcast", ())
        ]

    def apply_freeze(self) -> None:
        """Switch gradients off where `freeze` matches, and on again where it did before and no longer does. RecipeError for
        a pattern that matches nothing.
        """
        names = dict(self.named_parameters())
        for name in self._frozen & set(names):
            names[name].requires_grad_(True)
        self._frozen = set()
        for pattern in self.freeze_patterns:
            hits = matching(pattern, names, "freeze")
            if not hits:
                raise RecipeError(f"freeze pattern '{pattern}' matches no parameter; there are e.g. {list(names)[:6]}")
            self._frozen |= {name for name in hits if names[name].requires_grad}
            for name in hits:
                names[name].requires_grad_(False)
        self._frozen_parts = [part for prefix, part in self.named_modules() if prefix and self._freezes(prefix, part)]
        self.train(self.training)

    def _freezes(self, prefix: str, part: nn.Module) -> bool:
        """Whether `freeze` names all parameters of a part that has some."""
        names = [plain(f"{prefix}.{name}") for name, _ in part.named_parameters()]
        return bool(names) and all(any(re.match(p, name) for p in self.freeze_patterns) for name in names)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but parts that `freeze` names stay in evaluation mode: a locked tower (LiT, arXiv:2111.07991)
        must not drop anything out nor go on averaging batch statistics.
        """
        super().train(mode)
        for part in self._frozen_parts:
            part.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of any module, but where weights become half precision (`precision: bf16-true`), the objective's do not: beside
        a scale of 4.6, a step of 1e-3 is none in bfloat16.
        """
        before = {name: parameter.data for name, parameter in _parameters(self.objective).items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, parameter in _parameters(self.objective).items():
            if parameter.dtype in _HALF and before[name].dtype not in _HALF:
                parameter.data = before[name].to(parameter.device)
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Where an optimizer step begins, say so. With `accumulate_grad_batches` several batches make one step."""
        if self._begun != self.global_step:
            self._begun = self.global_step
            self.begin_step(self.global_step)

    def begin_step(self, step: int) -> None:
        """Tell every part that has a method `anneal` which optimizer step begins, counted from 0."""
        for part in self.modules():
            anneal = getattr(part, "anneal", None)
            if callable(anneal):
                anneal(step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Encode all views, gather over ranks, ask the objective."""
        local = self._encoded(batch)
        everyone = self._gathered(local)
        assert self.objective is not None  # setup() refused otherwise
        losses = self.objective(local, everyone)
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}, batch {batch_idx}); "
                f"its samples are {_named(batch.ids)}. This step changed no weights: lower the learning rate or "
                "look at these samples, then start from the last checkpoint, if one was saved, or anew"
            )
        size = len(batch.ids)
        for name, value in losses.items():
            # ranks hold shares of their group's loss
            value = value * self._group_size if name == "loss" else value
            self.log(f"train/{name}", value, prog_bar=name == "loss", sync_dist=True, batch_size=size)
        # data-parallel training averages the gradients of all ranks: a group's shares must add up all the same
        return loss * self._group_size

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop before a gradient that is not finite reaches the weights."""
        if self.trainer.scaler is not None:  # fp16: the scaler skips such steps by design
            return
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if not torch.isfinite(norm):
            bad = [n for n, p in self.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
            raise NonFiniteError(
                f"the gradient is {norm.item()} at step {self.global_step}, first in {bad[:3]}; the weights were not changed"
            )
        self.log("train/grad_norm", norm)

    def on_validation_epoch_start(self) -> None:
        """Parts that keep what they computed from their weights (`GeneralizedPooling`) do so anew: a callback that averages
        weights has just put others in their place.
        """
        self.eval()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Embedding]:
        """Embeddings of the batch's views; callbacks measure."""
        return self._of_all_views(batch, self.encode)

    test_step = validation_step
    predict_step = validation_step

    def configure_optimizers(self) -> Any:
        """Weight decay for matrices only: not for norms, biases, temperatures. RecipeError: nothing is trained, or a pattern
        of `rates` matches nothing that is.
        """
        optimizer = built_optimizer(self, self.optimizer, self.rates)
        if self.scheduler is None:
            return optimizer
        scheduler = built_scheduler(self.scheduler, optimizer, keeps_ratios=bool(self.rates))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- rows ---------------------------------------------------------------------------------------------------

    def embed(self, inputs: Inputs) -> Embedding:
        """`encode`, in chunks of `chunk_size` rows if set.

        Each chunk is a checkpoint: only its embeddings stay, and the backward pass runs it again under the same random
        state. Autograd then yields exactly GradCache's two-pass gradient, with mixed precision and data-parallel training
        as they are (see docs/decisions/gradcache.md).
        """
        if self.chunk_size is None:
            return self.encode(inputs)
        chunks = self.processor.split(inputs, self.chunk_size)
        if not torch.is_grad_enabled():
            return joined([self.encode(chunk) for chunk in chunks])
        self._refuse_batch_statistics()
        return joined([_checkpointed(self, chunk) for chunk in chunks])

    def embed_views(self, batch: Batch) -> dict[str, Embedding]:
        """`embed` of all views. One that no sample of the batch has is an Embedding of 0 rows, of the width and type of the
        others, so that all processes have the same views to gather, and the same gradients: all that encodes gets one of 0.
        """
        return self._of_all_views(batch, self.embed)

    def _of_all_views(self, batch: Batch, encode: Callable[[Inputs], Embedding]) -> dict[str, Embedding]:
        found = {name: encode(inputs) for name, inputs in batch.views.items() if len(batch.owners[name])}
        trained = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("objective.")]
        trained = trained if torch.is_grad_enabled() else []
        return {name: found.get(name) or without_rows(found.values(), trained) for name in batch.views}

    def _refuse_batch_statistics(self) -> None:
        """A chunk is no batch: averaged over it, batch norms would give other vectors, and count it twice."""
        trained = (n for n, part in self.named_modules() if isinstance(part, _BatchNorm) and part.training)
        names = [name for name in trained if not name.startswith("objective.")]
        if names:
            raise RecipeError(
                "`chunk_size` gives the gradient of the whole batch only where rows do not depend on each other; through "
                f"{len(names)} batch norms they do (the first: {names[0]}). Freeze these, which fixes their statistics "
                f"(freeze: ['.*{names[0].rpartition('.')[2]}.*']), or leave `chunk_size` out"
            )

    def _encoded(self, batch: Batch) -> Encoded:
        return Encoded(
            views=self.embed_views(batch),
            owners=batch.owners,
            keys=batch.keys,
            labels=batch.labels,
            weights=batch.weights,
            sample=torch.arange(len(batch.ids), device=batch.labels.device),
            mixed=batch.mixed,
        )

    @property
    def _group_size(self) -> int:
        return self.gather_group or world_size()

    def _gathered(self, local: Encoded) -> Encoded:
        """Rows of all ranks of the group; renumbers the owners of `local` in place so that both agree."""
        group = group_of(self._group_size)
        return local if world_size() == 1 else gathered(local, group)


_PARTS = tuple(part.name for part in fields(Embedding))
_HALF = (torch.float16, torch.bfloat16)


def _parameters(objective: Objective | None) -> dict[str, nn.Parameter]:
    return dict(objective.named_parameters()) if isinstance(objective, nn.Module) else {}


def _is_finite(value: Tensor, infinities: bool = False) -> bool:
    if not value.is_floating_point():
        return True
    return bool((~torch.isnan(value) if infinities else torch.isfinite(value)).all())


def _read_pretrained(parts: Iterable[nn.Module]) -> None:
    for part in parts:
        if getattr(part, "pretrained", None) is not None:  # timm's models have a `load_pretrained` of their own
            part.load_pretrained()  # type: ignore[operator]


def _checkpointed(module: EmbeddingModule, chunk: Inputs) -> Embedding:
    def run() -> tuple[Tensor | None, ...]:
        e = module.encode(chunk)
        return tuple(getattr(e, name) for name in _PARTS)

    return Embedding(*checkpoint(run, use_reentrant=False))  # type: ignore[arg-type]  # a vector there always is


def _named(ids: Sequence[str], most: int = 8) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")
