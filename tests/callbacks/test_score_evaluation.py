"""Ranking by the objective's score equals a loop over pairs, whichever side the pictures are on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from callbacks.towers import Pairs, Towers, task, trainer_of, vectors_of

from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.score_evaluation import ScoreEvaluation
from zoo.errors import RecipeError
from zoo.metrics.retrieval import retrieval_metrics, summary
from zoo.objectives.regions import BestMatch
from zoo.objectives.token_matching import TokenMatching
from zoo.types import Embedding

PICTURES_FOUND = task()
TEXTS_FOUND = replace(
    task("image_to_text[en]", 41, 23),
    queries=PICTURES_FOUND.candidates,
    candidates=PICTURES_FOUND.queries,
    relevant=[[i % 23] for i in range(41)],
)
POOLED = task("pooled", 30, 19, pools=True)


class TokenTowers(Towers):
    """Each vector, cut into tokens of two values; rows of even batches have one more token, which is padding."""

    def __init__(self, single: bool = False) -> None:
        super().__init__()
        self.single = single
        self.objective = TokenMatching(BestMatch())

    def encode(self, view: str, x: torch.Tensor) -> Embedding:
        vector = super().encode(view, x).vector
        tokens = vector[:, None] if self.single else vector.unflatten(1, (4, 2))
        mask = torch.ones(tokens.shape[:2], dtype=torch.int64)
        if len(x) % 2 == 0:
            tokens, mask = F.pad(tokens, (0, 0, 0, 1), value=9.0), F.pad(mask, (0, 1))
        return Embedding(vector, tokens=tokens, mask=mask)


@pytest.mark.parametrize("one", [PICTURES_FOUND, TEXTS_FOUND, POOLED], ids=lambda one: one.name)
def test_equals_a_loop_over_pairs(one, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    module, data = TokenTowers(), Pairs([one])
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), scores := ScoreEvaluation())
    trainer.test(module, data, verbose=False)
    queries, candidates = (v.unflatten(1, (4, 2)) for v in vectors_of(module, data, 0))
    hits = 0
    for i, query in enumerate(queries):
        words, regions = (query, candidates) if one.queries[0].text else (candidates, query[None])
        found = torch.stack([sum((r @ w).max() for w in ws) for r, ws in _pairs(regions, words, len(candidates))])
        pool = range(len(candidates)) if one.pools is None else one.pools[i]
        own = found[one.relevant[i][0]]
        hits += sum(bool(found[j] > own) for j in set(pool)) == 0
    logged = trainer.callback_metrics[f"test/{one.name}/score/recall@1"].item()
    assert logged == pytest.approx(hits / len(queries), abs=1e-6)
    assert (one.name, "recall@1", f"{100 * logged:.1f} %") in [row[:3] for row in scores.measures["test"].rows]


def _pairs(regions, words, count):  # type: ignore[no-untyped-def]
    """(regions, words) of every candidate."""
    return [(regions[j], words) if len(regions) == count else (regions[0], words[j]) for j in range(count)]


def test_one_token_ranks_as_vectors_do(tmp_path: Path) -> None:
    module, data = TokenTowers(single=True), Pairs([PICTURES_FOUND])
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), ScoreEvaluation())
    trainer.test(module, data, verbose=False)
    expected = summary(retrieval_metrics(*vectors_of(module, data, 0), PICTURES_FOUND.relevant))
    for metric, value in expected.items():
        name = f"test/{PICTURES_FOUND.name}/score/{metric}"
        assert trainer.callback_metrics[name].item() == pytest.approx(value, abs=1e-6)


def test_what_cannot_be_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), ScoreEvaluation(most_items=10))
    trainer.test(TokenTowers(), Pairs([PICTURES_FOUND]), verbose=False)
    assert (
        "ScoreEvaluation leaves out the task 'text_to_image[en]': it has more than 10 items" in capsys.readouterr().out
    )
    with pytest.raises(RecipeError, match="this objective scores no pairs"):
        trainer_of(tmp_path, RetrievalEvaluation(), ScoreEvaluation()).test(Towers(), Pairs([task()]), verbose=False)
    alike = replace(PICTURES_FOUND, queries=PICTURES_FOUND.candidates[:23])
    with pytest.raises(RecipeError, match="no pictures on one side and texts on the other"):
        trainer_of(tmp_path, RetrievalEvaluation(), ScoreEvaluation()).test(
            TokenTowers(), Pairs([alike]), verbose=False
        )
