"""Text towers of transformers: any of its encoders that turns token ids into hidden states."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.errors import RecipeError, UnknownNameError
from zoo.nn.pooling import MeanPooling, Pooling
from zoo.nn.towers import States, TextTower


class TransformersText(nn.Module, TextTower):
    """An encoder of transformers (BERT, RoBERTa, CLIP's text model, ...) and a pooling.

    Args:
        kind: `model_type` of transformers, e.g. `bert`, `roberta`, `clip_text_model`, `siglip_text_model`.
        config: fields of that model's configuration; what is not named has transformers' default.
        pooling: states to one; default the mean over real tokens.
        pretrained: where fitting starts from: `hf:ORG/REPO[@REVISION]` or a folder in transformers' layout. None = random.

    Raises:
        UnknownNameError: a kind, or a field of its configuration, that transformers does not have; says the nearest.
        RecipeError: a value that the configuration does not take.
    """

    def __init__(
        self,
        kind: str,
        config: dict[str, Any] | None = None,
        pooling: Pooling | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        from transformers import AutoModel

        settings = _settings(kind, config or {})
        extra = {"add_pooling_layer": False} if _has_pooler(settings, AutoModel) else {}
        self.model = AutoModel.from_config(settings, attn_implementation="sdpa", **extra)
        self.pooling = pooling or MeanPooling()
        self.width: int = settings.hidden_size
        self.pretrained = pretrained

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> States:
        """Token ids and mask (R, L) -> States."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return States(self.pooling(hidden, attention_mask, input_ids), hidden, attention_mask)

    def load_pretrained(self) -> None:
        """Read the weights named by `pretrained`. Raises WeightsError when they can't be had or don't fit."""
        if self.pretrained is None:
            return
        from zoo.convert.transformers_folder import load_folder
        from zoo.weights import fetch_folder, load_strictly

        tensors = load_folder(fetch_folder(self.pretrained)).tensors
        prefix = f"{self.model.base_model_prefix}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items()}
        # heads of tasks that nothing here uses, and a constant that old checkpoints hold
        wanted = {k: v for k, v in state.items() if not k.startswith(("pooler.", "cls.")) and "position_ids" not in k}
        load_strictly(self.model, wanted, self.pretrained)


def _settings(kind: str, given: dict[str, Any]) -> Any:
    """The configuration of a kind of model. Transformers takes any field and goes on with its defaults; that is refused."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        raise UnknownNameError("kind of transformers model", kind, CONFIG_MAPPING.keys(), "(its `model_type`)")
    known = CONFIG_MAPPING[kind]().to_dict()
    for name in given:
        if name not in known:
            raise UnknownNameError(f"field in the configuration of '{kind}':", name, known)
    try:
        return CONFIG_MAPPING[kind](**given)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise RecipeError(
            f"the configuration of '{kind}' does not take {given}: {' '.join(str(error).split())}"
        ) from error


def _has_pooler(settings: Any, auto: Any) -> bool:
    """Whether the model has an own pooling layer that can be left out: it would get no gradient."""
    import inspect

    return "add_pooling_layer" in inspect.signature(auto._model_mapping[type(settings)].__init__).parameters
