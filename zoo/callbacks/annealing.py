"""Kept for recipes that name it."""

from __future__ import annotations

from lightning.pytorch import Callback


class Annealing(Callback):
    """Does nothing any more: every architecture tells its parts the step by itself (`EmbeddingModule.begin_step`)."""
