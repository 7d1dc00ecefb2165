"""A text tower that reads from left to right and from right to left, and a pooling that weighs every state.

R rows, L tokens, D width of the token vectors, H width of one direction, W = 2 H.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.nn.pooling import MeanPooling, Pooling
from zoo.nn.towers import States, TextTower

_ONNX_GATES = {"gru": (1, 0, 2), "relu": (0,)}  # torch keeps reset, update, new; ONNX wants update, reset, new
_OPSET = 20  # of the operators GRU and RNN as written here; they read the same since opset 14


class BiRnnText(nn.Module, TextTower):
    """Token vectors and one recurrent layer in each direction; a state is what both know at its token.

    Padding must be at the right; the backward direction starts at the last real token of each row. With bytes as tokens it
    is the tower of visually grounded sentence embeddings (arXiv:1903.11393: 20, 1024, `VectorAttention`); with words and
    `relu` that of deep visual-semantic alignments (arXiv:1412.2306, equations 2 to 5, but for one layer on each side that
    has no input from other words: the token vectors, which are learned here, and the head stand for them).

    Args:
        vocabulary: number of tokens.
        dim: D.
        hidden: H.
        cell: "gru", or "relu" = h = ReLU(W x + U h + b).
        pooling: states to one; default the mean over real tokens.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int = 20,
        hidden: int = 1024,
        cell: Literal["gru", "relu"] = "gru",
        pooling: Pooling | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        options = {"batch_first": True, "bidirectional": True}
        self.rnn = (
            nn.GRU(dim, hidden, **options) if cell == "gru" else nn.RNN(dim, hidden, nonlinearity="relu", **options)
        )
        self.cell = cell
        self.pooling = pooling or MeanPooling()
        self.width = 2 * hidden

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> States:
        """Token ids and mask (R, L) -> States; states of padding are 0."""
        vectors, lengths = self.embedding(input_ids), attention_mask.sum(1)
        hidden = self._exported(vectors, lengths) if torch.onnx.is_in_onnx_export() else self._run(vectors, lengths)
        return States(self.pooling(hidden, attention_mask, input_ids), hidden, attention_mask)

    def _run(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(vectors, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden: Tensor = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=vectors.shape[1])[0]
        return hidden

    def _exported(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """The same as one ONNX operator, which takes lengths, too. torch would trace one step after the other."""
        rows, length = vectors.shape[:2]
        hidden = torch.onnx.ops.symbolic(
            "GRU" if self.cell == "gru" else "RNN",
            (vectors.transpose(0, 1), *self._onnx_weights(), lengths.to(torch.int32)),
            attrs={
                "direction": "bidirectional",
                "hidden_size": self.rnn.hidden_size,
                **({"linear_before_reset": 1} if self.cell == "gru" else {"activations": ["Relu", "Relu"]}),
            },
            dtype=vectors.dtype,
            shape=(length, 2, rows, self.rnn.hidden_size),
            version=_OPSET,
        )
        return hidden.permute(2, 0, 1, 3).flatten(2)  # (L, 2, R, H) before

    def _onnx_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input weights (2, gates x H, D), recurrent weights (2, gates x H, H), both biases (2, 2 x gates x H)."""

        def both(name: str) -> Tensor:
            found = [getattr(self.rnn, f"{name}_l0{direction}") for direction in ("", "_reverse")]
            gates = [weight.chunk(len(_ONNX_GATES[self.cell])) for weight in found]
            return torch.stack([torch.cat([parts[gate] for gate in _ONNX_GATES[self.cell]]) for parts in gates])

        return both("weight_ih"), both("weight_hh"), torch.cat([both("bias_ih"), both("bias_hh")], dim=1)


class VectorAttention(nn.Module, Pooling):
    """Every dimension of the states is averaged with its own weights: sum_t softmax_t(V tanh(U h_t + a) + b) * h_t
    (arXiv:1903.11393, equation 3). The official code lets padding take part with states of 0; here it does not.

    Args:
        width: W.
        hidden: inner width (official: 128).
    """

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        wide = torch.promote_types(self.down.weight.dtype, torch.float32)  # no half precision has this decomposition
        start = nn.init.orthogonal_(torch.empty_like(self.down.weight, dtype=wide))
        self.down.weight.data.copy_(start)

    def forward(self, hidden: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        """See `Pooling`."""
        scores = self.up(torch.tanh(self.down(hidden))).masked_fill(mask.unsqueeze(-1) == 0, -torch.inf)
        pooled: Tensor = (scores.softmax(dim=1) * hidden).sum(dim=1)
        return pooled
