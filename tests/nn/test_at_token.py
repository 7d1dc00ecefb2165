"""The state of one token: which one it is of a picture and of a text, as recipes/prolip-emoji.yaml has them."""

from __future__ import annotations

import torch

from zoo.data.processors.dual import DualProcessor
from zoo.data.processors.dual_arrays import Caption
from zoo.nn.backbones.timm_image import TimmImage
from zoo.nn.gaussian import GaussianHead, LogVariance
from zoo.nn.heads import Projection
from zoo.nn.latent_heads import AtToken
from zoo.nn.towers import States
from zoo.types import Item, Sample


def test_reads_that_token_alone() -> None:
    head = AtToken(1, LogVariance(4, 3))
    tokens = torch.randn(2, 5, 4, requires_grad=True)
    out = head(States(tokens.mean(1), tokens))
    assert torch.equal(out, head.head(tokens[:, 1]))
    (gradient,) = torch.autograd.grad(out.sum(), tokens)
    assert gradient.abs().sum((0, 2)).nonzero().flatten().tolist() == [1]
    assert GaussianHead(Projection(4, 3), head).needs_tokens


def test_the_register_token_of_a_picture_stands_behind_the_class_token() -> None:
    """Without blocks, prefix tokens do not know the picture; the register token is then what was learned, normalised."""
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 0, "num_heads": 2, "reg_tokens": 1}
    tower = TimmImage("vit_tiny_patch16_224", arguments)
    states = tower(torch.randn(2, 3, 32, 32))
    assert states.tokens.shape[1] == 2 + 16
    learned = tower.model.reg_token[0, 0] + tower.model.pos_embed[0, 1]
    torch.testing.assert_close(states.tokens[:, 1], tower.model.norm(learned).expand(2, -1))


def test_a_text_begins_with_bos_whatever_its_length() -> None:
    caption = Caption(max_length=6, bos="<|image_pad|>", eos="<|endoftext|>")
    processor = DualProcessor("packaged:emoji-tokenizer.json", caption=caption)
    texts = ["cat", "a very long text about many cats and dogs"]
    inputs = processor([Sample(text, {"query": Item(text=text)}) for text in texts]).views["query"]
    assert inputs["input_ids"][:, 0].tolist() == [1, 1]
    last = inputs["attention_mask"].sum(1) - 1
    assert inputs["input_ids"][torch.arange(2), last].tolist() == [0, 0]
    assert not (inputs["input_ids"][:, 1:] == 1).any()
