"""Space diagnostics, probes and text similarity: what they log is what the metrics give, on one process and on two."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from callbacks.pictures import colour_folder, data_of, encoder
from callbacks.towers import Pairs, Towers, task, trainer_of, vectors_of
from lightning.pytorch import Trainer

from zoo.callbacks.evaluation import RetrievalEvaluation
from zoo.callbacks.history import History
from zoo.callbacks.probes import ProbeEvaluation
from zoo.callbacks.report import Report
from zoo.callbacks.similarity import TextSimilarity
from zoo.callbacks.space import SpaceDiagnostics
from zoo.data.sources.folder import ImageFolderTasks
from zoo.data.sources.zero_shot import ZeroShot
from zoo.errors import RecipeError, SampleError, ZooError
from zoo.metrics.space import NAMES, space_metrics
from zoo.types import Item, RetrievalTask


def logged(trainer: Trainer, part: str = "") -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if part in name}


# ---- space -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_space_of_every_task(first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether the callback stands before or behind the one that collects vectors."""
    module, data = Towers(), Pairs([task(), task("pooled", 30, 19, pools=True)])
    callbacks = [RetrievalEvaluation(), SpaceDiagnostics(), Report(tmp_path / "run")]
    if first:
        callbacks[:2] = callbacks[1::-1]
    trainer = trainer_of(tmp_path, *callbacks)
    trainer.validate(module, data, verbose=False)
    for number, one in enumerate(data.tasks("val")):
        wanted = space_metrics(*vectors_of(module, data, number), one.relevant)
        found = {name: logged(trainer)[f"val/{one.name}/{name}"] for name in NAMES}
        assert found == pytest.approx(wanted, abs=1e-5)
    assert "Embedding space (val)" in capsys.readouterr().out
    page = (tmp_path / "run/report-validate.html").read_text("utf-8")
    assert "<h2>Embedding space (val)</h2>" in page and page.count("<td>pooled</td>") == 1


def test_space_while_fitting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history, space = History(), SpaceDiagnostics(tasks=["text_to_image[en]"])
    trainer = trainer_of(tmp_path, space, RetrievalEvaluation(), history, max_epochs=2)
    trainer.fit(Towers(), Pairs([task(), task("pooled", 30, 19, pools=True)]))
    assert [step for step, _ in history.curves["val/text_to_image[en]/modality_gap"]] == [10, 20]
    assert "val/pooled/modality_gap" not in history.curves
    assert len(space.measures["val"].rows) == 1
    assert "Embedding space" not in capsys.readouterr().out


def test_values_that_there_are_not(tmp_path: Path) -> None:
    """One vector has no spread: nothing is logged, and a NaN would be."""
    space = SpaceDiagnostics()
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), space)
    trainer.validate(Towers(), Pairs([task("one", 1, 1)]), verbose=False)
    assert "val/one/modality_gap" in logged(trainer) and "val/one/separability" not in logged(trainer)
    assert not any(math.isnan(value) for value in logged(trainer).values())
    assert space.measures["val"].rows[0][-1] == "-"


# ---- probes ----------------------------------------------------------------------------------------------------------


def folder_task(folder: Path) -> ImageFolderTasks:
    return ImageFolderTasks(str(folder), captions="folder", which=("image_to_text",), name="colours")


def probe(folder: Path, missing: str = "", **arguments: Any) -> ProbeEvaluation:
    colour_folder(folder / "train", missing=missing)
    colour_folder(folder / "val", each=2)
    return ProbeEvaluation([folder_task(folder / "train")], batch_size=4, **arguments)


@pytest.mark.parametrize("prompted", [False, True], ids=["names", "prompts"])
def test_probes_read_the_colour(prompted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where every class has several prompts for candidates."""
    callback, on = probe(tmp_path, knn=(1, 3)), folder_task(tmp_path / "val")
    if prompted:
        callback.train = [ZeroShot(source, ["a {}", "{}"]) for source in callback.train]
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), callback)
    trainer.validate(encoder(tmp_path), data_of(ZeroShot(on, ["a {}", "{}"]) if prompted else on), verbose=False)
    wanted = dict.fromkeys((f"val/image_to_text[colours]/{name}" for name in ("knn@1", "knn@3", "linear_probe")), 1.0)
    assert {name: value for name, value in logged(trainer).items() if "knn" in name or "probe" in name} == wanted
    printed = capsys.readouterr().out
    assert "Probes (val)" in printed and "33.3 %" in printed and "100.0 %" in printed


def test_a_class_that_was_not_trained_on_counts_as_wrong(tmp_path: Path) -> None:
    callback = probe(tmp_path, missing="blue")
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), callback)
    trainer.validate(encoder(tmp_path), data_of(folder_task(tmp_path / "val")), verbose=False)
    assert logged(trainer)["val/image_to_text[colours]/linear_probe"] == pytest.approx(2 / 3)
    assert [row[-1] for row in callback.measures["val"].rows] == ["2"] * 3


def test_tasks_on_the_same_pictures_embed_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.callbacks import probes

    asked: list[str] = []
    embed = probes.embed_items
    monkeypatch.setattr(probes, "embed_items", lambda *a: asked.append(a[3]) or embed(*a))
    colour_folder(tmp_path / "train")
    train = [ImageFolderTasks(str(tmp_path / "train"), "folder", which=("image_to_text",), name=n) for n in "ab"]
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), ProbeEvaluation([*train], linear=False))
    trainer.validate(encoder(tmp_path), data_of(*train), verbose=False)
    assert asked == ["image_to_text[a] (train split)"]
    assert logged(trainer)["val/image_to_text[b]/knn@1"] == 1


class Fitted(Towers):
    """Towers with a processor: of pictures that it does not look at."""

    def __init__(self, kind: str = "linear") -> None:
        super().__init__(kind)
        self.processor = _rows


def _rows(samples: list[Any]) -> Any:
    from callbacks.towers import batch_of

    rows = [torch.randn(12, generator=torch.Generator().manual_seed(len(s.views["query"].text))) for s in samples]
    return batch_of(torch.stack(rows), [s.id for s in samples], "query")


class Labelled:
    """23 queries, as many as the task has, of 4 classes."""

    def __init__(self, name: str = "classes") -> None:
        self.name = name

    def tasks(self) -> list[RetrievalTask]:
        queries = [Item(text="x" * (i + 1)) for i in range(23)]
        return [RetrievalTask(self.name, queries, [Item(text=c) for c in "abcd"], [[i % 4] for i in range(23)])]


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [10, 20, 30]), (2, [20])])
def test_probes_while_fitting(every: int, steps: list[int], tmp_path: Path) -> None:
    history = History()
    callback = ProbeEvaluation([Labelled()], linear=False, knn=(1,), every_n_validations=every)
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), callback, history, max_epochs=3)
    trainer.fit(Fitted(), Pairs(Labelled().tasks()))
    assert [step for step, _ in history.curves.get("val/classes/knn@1", [])] == steps
    trainer.test(Fitted(), Pairs(Labelled().tasks()), verbose=False)
    assert "test/classes/knn@1" in logged(trainer)


def run(folder: Path, devices: int) -> dict[str, float]:
    pairs = folder / "pairs.jsonl"
    rows = [{"text1": "x" * (i + 1), "text2": "x" * (2 * i + 3), "score": i % 4} for i in range(9)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    callbacks = [RetrievalEvaluation(), SpaceDiagnostics(), ProbeEvaluation([Labelled()]), TextSimilarity(str(pairs))]
    settings = {"devices": 2, "strategy": "ddp_spawn"} if devices == 2 else {}
    trainer = trainer_of(folder, *callbacks, **settings)
    trainer.validate(Fitted(), Pairs(Labelled().tasks()), verbose=False)
    assert trainer.world_size == devices
    return logged(trainer)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = run(tmp_path, 1), run(tmp_path, 2)
    assert one == pytest.approx(two, abs=1e-6)
    assert len([name for name in one if "knn" in name or "probe" in name or "pairs" in name]) == 5


def test_what_can_not_be_probed(tmp_path: Path) -> None:
    for arguments in ({"linear": False, "knn": ()}, {"knn": (0,)}, {"batch_size": 0}, {"train": []}):
        with pytest.raises(RecipeError, match="ProbeEvaluation needs"):
            ProbeEvaluation(**({"train": [Labelled()]} | arguments))  # type: ignore[arg-type]
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), ProbeEvaluation([Labelled("grop")]))
    with pytest.raises(RecipeError, match=r"task is called 'grop' \(there are \['classes'\]\)"):
        trainer.validate(Fitted(), Pairs(Labelled().tasks()), verbose=False)
    several = RetrievalTask("classes", [Item(text="x")], [Item(text=c) for c in "ab"], [[0, 1]])
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), ProbeEvaluation([Labelled()]))
    with pytest.raises(SampleError, match="task 'classes': query 0 has not one right candidate with a text"):
        trainer.validate(Fitted(), Pairs([several]), verbose=False)
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), ProbeEvaluation([Labelled()]))
    with pytest.raises(RecipeError, match="Towers has no processor to embed classes"):
        trainer.validate(Towers(), Pairs(Labelled().tasks()), verbose=False)


# ---- text similarity -------------------------------------------------------------------------------------------------


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_cosines_follow_the_scores_of_people(tmp_path: Path) -> None:
    """`red` with itself, with two words more, with another word."""
    texts = [("red red", "red red", 5), ("red", "red red cat", 3.5), ("red", "green", 1), ("dog dog dog", "find", 0)]
    rows = [{"a": a, "b": b, "gold": score} for a, b, score in texts]
    callback = TextSimilarity(write(tmp_path / "sts.jsonl", *rows), ("a", "b", "gold"))
    module = encoder(tmp_path)
    trainer = trainer_of(tmp_path, RetrievalEvaluation(), callback)
    trainer.validate(module, data_of(folder_task(colour_folder(tmp_path / "c"))), verbose=False)
    stats = pytest.importorskip("scipy.stats")
    words = sorted({text for a, b, _ in texts for text in (a, b)})
    from zoo.types import Sample

    batch = module.processor([Sample(text, {"query": Item(text=text)}) for text in words])
    vectors = dict(zip(words, module.encode(batch.views["query"]).vector.detach().double(), strict=True))
    cosines = [float(vectors[a] @ vectors[b]) for a, b, _ in texts]
    scores = [score for *_, score in texts]
    assert logged(trainer)["val/sts/spearman"] == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-6)
    assert logged(trainer)["val/sts/pearson"] == pytest.approx(stats.pearsonr(cosines, scores).statistic, abs=1e-5)


def test_constant_embeddings_tell_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "sts.jsonl", *({"text1": "x" * (i + 1), "text2": "y", "score": i} for i in range(5)))
    trainer = trainer_of(tmp_path, TextSimilarity(path))
    trainer.test(Fitted("constant"), Pairs([task()]), verbose=False)
    assert logged(trainer) == {"test/sts/spearman": 0, "test/sts/pearson": 0}


def test_pairs_that_can_not_be_used(tmp_path: Path) -> None:
    good = {"text1": "a", "text2": "b", "score": 1}
    for number, (bad, message) in enumerate(
        [
            ({"score": "high"}, r"row 0: 'score' is 'high', not a number"),
            ({"text2": ""}, r"row 0: 'text1' or 'text2' is empty"),
            ({"score": None}, r"row 0: 'score' is .*, not a number"),
        ]
    ):
        trainer = trainer_of(tmp_path, TextSimilarity(write(tmp_path / f"{number}.jsonl", good | bad)))
        with pytest.raises(SampleError, match=message):
            trainer.validate(Fitted(), Pairs([task()]), verbose=False)
    trainer = trainer_of(tmp_path, TextSimilarity(write(tmp_path / "x.jsonl", {"text1": "a", "txt2": "b", "score": 1})))
    with pytest.raises(ZooError, match="has no column 'text2'; did you mean 'txt2'"):
        trainer.validate(Fitted(), Pairs([task()]), verbose=False)


# ---- from a recipe ---------------------------------------------------------------------------------------------------


def test_a_recipe_names_them_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`zoo fit` with every one of them, and ties counted as wrong."""
    import toy

    from zoo.commands.fit import run_lightning

    for split in ("train", "val"):
        colour_folder(tmp_path / split, each=3)
    path = write(tmp_path / "sts.jsonl", *({"text1": "red", "text2": w, "score": i} for i, w in enumerate(toy.WORDS)))

    def folder(split: str) -> dict[str, Any]:
        arguments = {"path": str(tmp_path / split), "captions": "folder", "which": ["image_to_text"], "name": "colours"}
        return {"class_path": "zoo.data.sources.folder.ImageFolderTasks", "init_args": arguments}

    def prompted(split: str) -> dict[str, Any]:
        return {
            "class_path": "zoo.data.sources.zero_shot.ZeroShot",
            "init_args": {"tasks": folder(split), "templates": ["a {} cat", "{}"]},
        }

    raw = toy.recipe(tmp_path, objective={"class_path": "zoo.objectives.infonce.InfoNCE"})
    train = {"class_path": "ImageFolder", "init_args": {"path": str(tmp_path / "train"), "captions": "folder"}}
    raw["data"] = {
        "class_path": "EmbeddingData",
        "init_args": {"train": [train], "val": [prompted("val")], "test": [prompted("val")], "batch_size": 3},
    }
    raw["trainer"] = {
        "accelerator": "cpu",
        "max_steps": 1,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "zoo.callbacks.space.SpaceDiagnostics"},
            {"class_path": "zoo.callbacks.probes.ProbeEvaluation", "init_args": {"train": [prompted("train")]}},
            {"class_path": "zoo.callbacks.similarity.TextSimilarity", "init_args": {"path": path}},
        ],
    }
    raw["evaluation"] = {"ties": "wrong"}
    recipe = tmp_path / "toy-colours.yaml"
    recipe.write_text(yaml.safe_dump(raw), "utf-8")
    assert run_lightning("fit", ["--config", str(recipe), "--run_dir", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run/report.html").read_text("utf-8")
    for text in ("Embedding space (test)", "Probes (test)", "Text similarity (test)", "count against the model"):
        assert text in page, text
    assert "Probes (test)" in capsys.readouterr().out
