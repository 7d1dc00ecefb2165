"""k nearest neighbours and a linear probe on the vectors of classification tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.measures import Measures, measures_table
from zoo.callbacks.terminal import show
from zoo.callbacks.vectors import embed_items
from zoo.data.source import TaskSource
from zoo.errors import RecipeError, SampleError
from zoo.metrics.classification import by_class
from zoo.metrics.probes import GRID, TEMPERATURE, hits, knn_votes, linear_probe
from zoo.metrics.retrieval import Ties
from zoo.types import Item, RetrievalTask

_NOTE = (
    "Trained on the vectors of the train split, right answers on those of this one. ± is the standard error over items; "
    "majority is the share of right answers of always naming the commonest class of the train split."
)


class ProbeEvaluation(Callback):
    """Logs `val/<task>/knn@20` and `val/<task>/linear_probe`: what a simple classifier reads from the embeddings.

    Labelled items are the queries of a classification task (each has one relevant candidate, whose text is the class),
    such as `EmojiTasks(which=[group])` or `ImageFolderTasks(captions=folder)`. Every task in `train` is paired with the
    validation and test tasks of the same name, whose vectors are there already; only the train split is embedded. A class
    that the train split does not have counts as wrong.

    Args:
        train: classification tasks on the train split.
        linear: whether to fit the linear probe.
        knn: the numbers of neighbours.
        temperature: of the neighbours' votes.
        grid: L2 weights that the linear probe chooses from.
        ties: how equal scores of classes count, see `zoo.metrics.probes.hits`.
        every_n_validations: probe while fitting, too: at every n-th validation. 0 = only in `zoo validate|test` and in
            the test that ends a fit.
        batch_size: items that the module gets at once.

    Raises:
        RecipeError: no task of the datamodule has the name of one in `train`; settings that do not fit.
        SampleError: a query that has not exactly one class.
    """

    def __init__(
        self,
        train: list[TaskSource],
        linear: bool = True,
        knn: Sequence[int] = (1, 20),
        temperature: float = TEMPERATURE,
        grid: Sequence[float] = GRID,
        ties: Ties = "expected",
        every_n_validations: int = 0,
        batch_size: int = 128,
    ) -> None:
        if not train or not (linear or knn) or any(k < 1 for k in knn) or batch_size < 1:
            raise RecipeError(
                "ProbeEvaluation needs `train` tasks, a probe (`linear`, `knn` of 1 or more), a batch size"
            )
        self.train, self.linear, self.knn, self.temperature, self.grid = train, linear, knn, temperature, grid
        self.ties, self.every_n_validations, self.batch_size = ties, every_n_validations, batch_size
        self.measures: dict[str, Measures] = {}
        self._tasks: dict[str, RetrievalTask] = {}
        self._embedded: list[tuple[Sequence[Item], Tensor]] = []
        self._logged: list[str] = []
        self._validations = 0
        self._due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the train tasks, look for their partners."""
        self._tasks = {task.name: by_class(task) for source in self.train for task in source.tasks()}
        data = getattr(trainer, "datamodule", None)
        if data is None or not hasattr(data, "tasks"):
            raise RecipeError("ProbeEvaluation needs a datamodule with tasks(stage), e.g. EmbeddingData")
        known = {task.name for part in ("val", "test") for task in data.tasks(part)}
        for name in self._tasks:
            if name not in known:
                raise RecipeError(
                    f"ProbeEvaluation: no validation or test task is called '{name}' (there are {sorted(known)}); "
                    "add the same task on their split to data.init_args.val or .test"
                )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether it is time."""
        if trainer.state.fn != "fit":
            self._due = True
        elif not trainer.sanity_checking:
            self._validations += 1
            self._due = self.every_n_validations > 0 and self._validations % self.every_n_validations == 0
        self._forget(trainer, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is time."""
        self._due = True
        self._forget(trainer, "test")

    def _forget(self, trainer: Trainer, stage: str) -> None:
        """Of the last time; or its values would be taken for those of a validation that is passed over."""
        self._embedded = []
        for name in self._logged:
            trainer.callback_metrics.pop(name, None)
        self._logged = []
        if self._due:
            self.measures.pop(stage, None)

    def on_task_vectors(
        self,
        trainer: Trainer,
        module: LightningModule,
        stage: str,
        task: RetrievalTask,
        queries: Tensor,
        candidates: Tensor,
    ) -> None:
        """Probe one task."""
        if not self._due or task.name not in self._tasks:
            return
        own = self._tasks[task.name]
        texts = _classes(own)
        classes = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        labels = torch.tensor([classes[text] for text in texts], device=queries.device)
        wanted = torch.tensor([classes.get(text, -1) for text in _classes(task)], device=queries.device)
        train = self._vectors(trainer, module, own).to(queries.device)
        found = self._probe(train, labels, queries, wanted, len(classes))
        commonest = hits(labels.bincount(minlength=len(classes)).expand(len(wanted), -1), wanted)
        table = self.measures.setdefault(stage, _table(stage))
        for name, right in found.items():
            self._logged.append(f"{stage}/{task.name}/{name}")
            module.log(self._logged[-1], float(right.mean()), batch_size=1, sync_dist=True)
            table.rows.append((task.name, name, *_cells(right, commonest), f"{len(train):,}", str(len(classes))))

    def _probe(self, train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor, classes: int) -> dict[str, Tensor]:
        found = {
            f"knn@{k}": hits(knn_votes(train, labels, test, classes, k, self.temperature), wanted, self.ties)
            for k in self.knn
        }
        if self.linear:
            found["linear_probe"] = hits(linear_probe(train, labels, classes, self.grid)(test), wanted, self.ties)
        return found

    def _vectors(self, trainer: Trainer, module: LightningModule, task: RetrievalTask) -> Tensor:
        for items, vectors in self._embedded:  # tasks on the same pictures share them
            if items == task.queries:
                return vectors
        vectors = embed_items(trainer, module, task.queries, f"{task.name} (train split)", self.batch_size).vector
        self._embedded.append((task.queries, vectors))
        return vectors

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table."""
        self._show(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table."""
        self._show(trainer, "test")

    def _show(self, trainer: Trainer, stage: str) -> None:
        self._embedded = []
        if self._due and stage in self.measures:
            show(trainer, measures_table(self.measures[stage]))


def _table(stage: str) -> Measures:
    columns = ("task", "probe", "value", "±", "majority", "train items", "classes")
    return Measures(f"Probes ({stage})", columns, note=_NOTE)


def _cells(right: Tensor, commonest: Tensor) -> tuple[str, str, str]:
    error = f"{100 * float(right.std()) / len(right) ** 0.5:.1f}" if len(right) > 1 else ""
    return f"{100 * float(right.mean()):.1f} %", error, f"{100 * float(commonest.mean()):.1f} %"


def _classes(task: RetrievalTask) -> list[str]:
    """The class of every query: the text of its one relevant candidate."""
    texts = []
    for query, right in enumerate(task.relevant):
        text = task.candidates[right[0]].text if len(right) == 1 else None
        if not text:
            raise SampleError(
                f"task '{task.name}': query {query} has not one right candidate with a text to be its class"
            )
        texts.append(text)
    return texts
