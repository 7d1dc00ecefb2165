"""ECCV Caption's ground truth: the sizes that the paper states, and its own metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.data.sources import eccv
from zoo.data.sources.eccv import EccvCaption
from zoo.errors import RecipeError, ZooError
from zoo.metrics.retrieval import retrieval_metrics, summary

package = pytest.importorskip("eccv_caption._metrics")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of COCO, with empty pictures and captions that are their numbers."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "val2014").mkdir()
    answers = eccv._answers("original", "image_to_text")
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in answers]
    for image in images:
        (folder / "val2014" / str(image["file_name"])).touch()
    captions = [
        {"id": caption, "image_id": number, "caption": f" caption {caption}\n"}
        for number, right in answers.items()
        for caption in right
    ]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}), "utf-8")
    return folder


def source(coco: Path, **options: Any) -> EccvCaption:
    return EccvCaption(str(coco / "captions.json"), str(coco / "val2014"), **options)


def test_sizes_are_those_of_the_paper(coco: Path) -> None:
    pictures, texts = source(coco).tasks()
    assert (len(pictures.queries), len(pictures.candidates), sum(map(len, pictures.relevant))) == (
        1261,
        25000,
        22550 - 2,
    )
    assert (len(texts.queries), len(texts.candidates), sum(map(len, texts.relevant))) == (1332, 5000, 11279)
    assert texts.queries[0].text is not None and texts.queries[0].text.startswith("caption ")
    assert [len(task.queries) for task in source(coco, truth="cxc").tasks()] == [5000, 24972]


def test_metrics_are_those_of_the_package(coco: Path) -> None:
    """Vectors near the right candidates, so that every metric is far from 0 and from 1."""
    _, task = source(coco).tasks()
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(5000, 24, generator=generator)
    queries = torch.stack([candidates[right].mean(0) for right in task.relevant])
    queries = torch.nn.functional.normalize(queries + 0.1 * torch.randn(queries.shape, generator=generator), dim=1)
    candidates = torch.nn.functional.normalize(candidates, dim=1)
    found = summary(retrieval_metrics(queries, candidates, task.relevant, metrics=task.metrics))
    numbers = sorted(eccv._answers("original", "image_to_text"))
    asked = sorted(eccv._answers("eccv", "text_to_image"))
    order = (queries @ candidates.T).argsort(dim=1, descending=True)[:, :500].numpy()
    ranked = {query: [numbers[i] for i in row] for query, row in zip(asked, order, strict=True)}
    theirs = package.compute_eccv_metrics(ranked, eccv._answers("eccv", "text_to_image"))
    for ours, name in (("map@r", "eccv_map_at_r"), ("r_precision", "eccv_rprecision"), ("recall@1", "eccv_r1")):
        assert found[ours] == pytest.approx(float(theirs[name]), abs=1e-6), name
        assert 0.05 < found[ours] < 0.999


def test_what_is_missing_is_named(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZooError, match=r"picture .*COCO_val2014_.* is missing; check `images`"):
        EccvCaption(str(coco / "captions.json"), str(tmp_path)).tasks()
    other = tmp_path / "other.json"
    other.write_text('{"images": [], "annotations": []}', "utf-8")
    with pytest.raises(ZooError, match=r"these are not COCO's captions_val2014\.json"):
        EccvCaption(str(other), str(tmp_path)).tasks()
    other.write_text('{"info": 1}', "utf-8")
    with pytest.raises(ZooError, match="is not in COCO's layout"):
        EccvCaption(str(other), str(tmp_path)).tasks()
    monkeypatch.setattr(eccv, "_PACKAGE", "no_such_package")
    with pytest.raises(RecipeError, match="pip install no_such_package"):
        source(coco).tasks()
