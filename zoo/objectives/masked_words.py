"""Words that were hidden are told from the rest of the text and from the picture: what only training has.

P pairs of a text and its picture, L tokens of a text, M of a picture, E width, H hidden words, V words there are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.objectives.contrastive import at_least_fp32
from zoo.objectives.objective import Objective, view
from zoo.objectives.own_pairs import OwnPairs, own_pairs
from zoo.types import Embedding, Encoded


class MaskedWords(nn.Module, Objective):
    """Masked language modelling with a fusion module on top of two towers (LightCLIP, arXiv:2312.00674).

    Formula:
        L = mean over hidden words of -(weight of its sample) log softmax(W LN(fusion(text tokens, picture tokens)) + b)_word

    Inputs:
        a view of pictures with tokens, whole, and a masked view of their texts with tokens and hidden words (`tokens: true`
        and `masking` of the model); one row per sample or several.

    Args:
        width: E of the tokens. words: V, at least the largest id and one.
        layers, heads: of the fusion module, whose blocks attend to the text, then to the picture, then apply an MLP of four
            times the width.
        views: pictures, masked texts.

    Use with: `Weighted`, beside a contrastive loss. Relations: BERT's loss (arXiv:1810.04805) without pictures; every hidden
    word is replaced by one token here, where BERT leaves some or puts random ones.

    LightCLIP has no code: that its fusion "at different network stages" is one attention to the picture per block of a small
    transformer behind the towers, and all sizes, are ours.

    Raises:
        RecipeError: no masked view, no tokens, or none of the hidden words.
    """

    def __init__(
        self,
        width: int,
        words: int,
        layers: int = 2,
        heads: int = 3,
        views: tuple[str, str] = ("query", "target_masked"),
    ) -> None:
        super().__init__()
        options = {"dim_feedforward": 4 * width, "dropout": 0.0, "activation": F.gelu, "batch_first": True}
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, norm_first=True, **options)  # type: ignore[arg-type]
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, words)
        nn.init.normal_(self.classify.weight, std=0.02)  # BERT's
        nn.init.zeros_(self.classify.bias)
        self.pictures, self.texts = views

    def forward(self, local: Encoded, everyone: Encoded) -> dict[str, Tensor]:
        """See `Objective`. Besides `loss`: `accuracy`, the share of hidden words that are told right."""
        pairs = own_pairs(local, everyone, self.texts, self.pictures)
        everywhere = pairs if local is everyone else own_pairs(everyone, everyone, self.texts, self.pictures)
        total = max(1, int((self._words(everyone)[everywhere.left] >= 0).sum()))
        words = self._words(local)[pairs.left]
        hidden = words >= 0
        logits = self.classify(self._fused(local, pairs)[hidden])
        losses = F.cross_entropy(at_least_fp32(logits), words[hidden], reduction="none")
        weights = pairs.weights[:, None].expand_as(words)[hidden]
        right = (logits.detach().argmax(1) == words[hidden]).sum() / total
        part = len(local.sample) / len(everyone.sample)
        return {"loss": (losses * weights).sum() / total, "accuracy": right / part}

    def _words(self, encoded: Encoded) -> Tensor:
        """(R, L) ids of the hidden words, -1 elsewhere."""
        words = view(encoded, self.texts).words
        if words is None:
            raise RecipeError(
                f"MaskedWords learns from hidden words, and the view '{self.texts}' has none: name in its `views` a masked "
                "view of texts (`masking` of the model, with words above 0; and `tokens: true`)"
            )
        return words

    def _fused(self, local: Encoded, pairs: OwnPairs) -> Tensor:
        """(P, L, E) states of the texts' tokens that have seen the pictures."""
        text, ignored = self._tokens(local.views[self.texts], self.texts, pairs.left)
        picture, blank = self._tokens(local.views[self.pictures], self.pictures, pairs.right)
        if not len(text):  # attention refuses no rows at all; every parameter gets its gradient of 0 all the same
            return text + 0 * sum(parameter.sum() for parameter in self.parameters())
        for block in self.blocks:
            text = block(text, picture, tgt_key_padding_mask=ignored, memory_key_padding_mask=blank)
        fused: Tensor = self.norm(text)
        return fused

    def _tokens(self, embedding: Embedding, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of some rows, and where there are none."""
        if embedding.tokens is None or embedding.mask is None:
            raise RecipeError(
                f"MaskedWords needs tokens, and the view '{name}' has none: set `tokens: true` of the model"
            )
        return at_least_fp32(embedding.tokens[rows]), embedding.mask[rows] == 0
