"""Runs the graphs of an exported folder: what people hand over -> vectors. Used by `embed.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .embed_folder import Folder, check_providers
from .embed_items import EmbedError, Item, is_single, to_item

Array = np.ndarray[Any, Any]
VIEWS = {"query": "query", "document": "target"}
"""Side -> the view whose prompt it has."""

_ATTENTION_CELLS = 2**26  # the vision graph needs memory for pictures x patches^2 x heads: so many cells at a time


class Embedder:
    """Embeds texts, pictures and mixes of them, and places where the model has an encoder for them.

    One thing to embed is a str (text), an image, or a dict with any of `text`, `image` (or `images`), `place` and
    `instruction`. An image is a Path, encoded bytes, an open file, a PIL image, a numpy array or a tensor; in a dict a str
    is a path, a `data:` address or base64.

    A model is `probabilistic` if it gives a log-variance beside every value of a vector.

    Args:
        folder: what `zoo export` wrote.
        threads: for onnxruntime; None = all cores.
        providers: onnxruntime's execution providers, first choice first.

    Raises:
        EmbedError: a file of the folder is missing, truncated or changed (graphs: at their first use), another zoo wrote it,
            or a provider is not there.
    """

    def __init__(
        self, folder: str | Path, *, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        if threads is not None and threads < 1:
            raise EmbedError(f"threads={threads}: give 1 or more, or None for all cores")
        check_providers(providers)
        self.folder = Path(folder)
        self._export = Folder(self.folder)
        self.manifest: dict[str, Any] = self._export.manifest
        self.name: str = self._export.name
        self.dim: int = self._export.dim
        self.probabilistic: bool = self.manifest.get("probabilistic", False)
        self._outputs = ("embeddings", "log_var") if self.probabilistic else ("embeddings",)
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 3  # errors
        self._options.intra_op_num_threads = threads or 0
        self._providers = list(providers)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._arrays = self._export.arrays
        self._compose = {"vlm": self._of_language_model, "dual": self._of_towers}[self._export.kind]

    def encode_query(self, items: Any, **options: Any) -> Array:
        """`encode` with the prompt of queries."""
        return self.encode(items, side="query", **options)

    def encode_document(self, items: Any, **options: Any) -> Array:
        """`encode` with the prompt of documents (candidates)."""
        return self.encode(items, side="document", **options)

    def encode(
        self, items: Any, *, side: str = "document", instruction: str | None = None, batch_size: int = 32
    ) -> Array:
        """Things -> unit vectors (N, E) float32 in the order given; (E,) for one thing.

        Args:
            items: one thing (see the class) or a list of them.
            side: "query" or "document": whose prompt to use.
            instruction: for items that have none of their own.
            batch_size: how many items run at once.

        Raises:
            EmbedError: an item can't be used; names its position.
        """
        vectors: Array = self._encoded(items, side, instruction, batch_size)[0]
        return vectors[0] if self._is_single(items) else vectors

    def encode_gaussian(
        self, items: Any, *, side: str = "document", instruction: str | None = None, batch_size: int = 32
    ) -> tuple[Array, Array]:
        """Things -> unit means and log-variances, both (N, E) float32; N = 1 for one thing. Arguments as of `encode`.

        Raises:
            EmbedError: the model is not probabilistic. Others: as `encode`.
        """
        self.check_probabilistic()
        means, log_var = self._encoded(items, side, instruction, batch_size)
        return means, log_var

    def check_probabilistic(self) -> None:
        """Raise EmbedError if the model gives no variances."""
        if not self.probabilistic:
            raise EmbedError(
                f"{self.name} gives vectors without variances: use encode, or export a probabilistic model (one that an "
                "older zoo exported has to be exported again)"
            )

    def check(self) -> dict[str, float]:
        """Embed the golden items of the folder: description -> largest difference to the values that torch gave.

        Relative to the largest of them where that is above 1, as log-variances are; infinite for what is not finite.
        """
        items = json.loads(self._export.sound(self._export.golden).read_text("utf-8"))
        differences = {}
        for item in items:
            images = tuple(self._export.sound(image) for image in item["images"])
            given = Item(item["text"], images, item["instruction"], tuple(item["place"]) if "place" in item else None)
            expected = [item["vector"], item["log_var"]] if self.probabilistic else [item["vector"]]
            found = self._encoded(given, item["side"], None, 1)[:, 0]
            differences[item["name"]] = max(map(_difference, found, np.array(expected, np.float32)))
        return differences

    def verify_files(self) -> None:
        """Raise EmbedError if a file is not the one that was exported (sha256)."""
        self._export.verify()

    def encode_usable(
        self, items: Mapping[str, Any], *, side: str = "document", instruction: str | None = None, batch_size: int = 32
    ) -> tuple[Array, dict[str, str]]:
        """As `encode`, of many things by their names, without those that can't be used.

        Returns:
            vectors (1, N, E), and log-variances behind them (2, N, E) if the model is probabilistic, of the others in the
            order given; name -> why, of those left out.
        """
        left_out: dict[str, str] = {}
        found = self._encoded(list(items.values()), side, instruction, batch_size, list(items), left_out)
        return found[:, [name not in left_out for name in items]], left_out

    def _is_single(self, items: Any) -> bool:
        return is_single(items, self._export.sources) or not isinstance(items, Iterable)

    def _encoded(
        self,
        items: Any,
        side: str,
        instruction: str | None,
        batch_size: int,
        names: Sequence[str] | None = None,
        left_out: dict[str, str] | None = None,
    ) -> Array:
        """(1, N, E) vectors, or (2, N, E) means and log-variances, in the order given. With `left_out` what can't be used is
        put there instead of raised.
        """
        if side not in VIEWS:
            raise EmbedError(f"side must be 'query' or 'document', not '{side}'")
        if batch_size < 1:
            raise EmbedError(f"batch_size={batch_size}: give 1 or more")
        things = [items] if self._is_single(items) else list(items)
        names = names or [f"item {i}" for i in range(len(things))]
        listed: dict[int, Item] = {}
        for i, thing in enumerate(things):
            try:
                item = to_item(thing, names[i], self._export.sources)
            except EmbedError as error:
                _leave_out(names[i], error, left_out)
            else:
                listed[i] = replace(item, instruction=instruction) if item.instruction is None else item
        order = sorted(listed, key=lambda i: (len(listed[i].images), len(listed[i].text or "")))
        found = np.zeros((len(self._outputs), len(things), self.dim), np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            try:
                found[:, rows] = self._embed([listed[row] for row in rows], [names[row] for row in rows], side)
            except EmbedError:
                for row in rows:  # one by one: finds the culprits
                    try:
                        found[:, [row]] = self._embed([listed[row]], [names[row]], side)
                    except EmbedError as error:
                        _leave_out(names[row], error, left_out)
        return found

    def _embed(self, items: Sequence[Item], names: Sequence[str], side: str) -> Array:
        images = [self._opened(item, name) for item, name in zip(items, names, strict=True)]
        query = VIEWS[side] in self._export.query_views
        try:
            places = self._places(items)
            arrays = self._arrays([i.text for i in items], images, [i.instruction for i in items], query, *places)
        except ValueError as error:
            raise EmbedError(f"{names[0]}: {error}") from error
        return self._compose(arrays)

    def _opened(self, item: Item, name: str) -> list[Any]:
        """The images of an item as RGB, exactly as in training, and as small as the model wants them."""
        fit = getattr(self._arrays, "fit", None)
        try:
            return [self._export.images.read_image(image, f"{name}: image", fit=fit) for image in item.images]
        except self._export.sources.ImageError as error:
            raise EmbedError(str(error)) from error

    def _places(self, items: Sequence[Item]) -> list[list[tuple[float, float] | None]]:
        """What the arrays are given about places: nothing, where the model can't know any."""
        if self._export.kind == "dual":
            return [[item.place for item in items]]
        if any(item.place is not None for item in items):
            raise ValueError("this model takes no places; leave the place out")
        return []

    def _of_language_model(self, arrays: dict[str, Array]) -> Array:
        """Pictures become features, and a language model reads them with the text."""
        return np.stack(self._run("language", arrays | {"image_features": self._image_features(arrays)}, self._outputs))

    def _of_towers(self, arrays: dict[str, Array]) -> Array:
        """The unit vectors of an item's pictures, texts and places are added up and normalised.

        Variances add up as well, and shrink with the square of the norm that is divided by.
        """
        total = np.zeros((len(arrays["rows"]), self.dim), np.float32)
        log_var = np.full_like(total, -np.inf)  # a sum of variances, kept as its logarithm: no variance is out of range
        for graph in ("image", "text", "place"):
            owner = f"{graph}_rows"
            if owner not in arrays:
                continue
            vectors, *variances = self._run(graph, arrays, self._outputs)
            np.add.at(total, arrays[owner], vectors)
            for values in variances:
                np.logaddexp.at(log_var, arrays[owner], values)
        norm = np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        return np.stack([total / norm, log_var - 2 * np.log(norm)][: len(self._outputs)])

    def _image_features(self, arrays: Mapping[str, Array]) -> Array:
        if "patches" not in arrays:  # text only: one row that no token asks for
            inputs = self._export.graphs["language"]["inputs"]
            shape = next(entry["shape"] for entry in inputs if entry["name"] == "image_features")
            return np.zeros((1, 1, shape[-1]), np.float32)
        count, patches = arrays["patches"].shape[:2]
        step = max(1, _ATTENTION_CELLS // patches**2)
        names = ("patches", "patch_positions", "patch_mask")
        parts = [self._run("vision", {n: arrays[n][i : i + step] for n in names})[0] for i in range(0, count, step)]
        return np.concatenate(parts)

    def _run(self, graph: str, arrays: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """The outputs of these names; None = all."""
        if graph not in self._sessions:  # at first use: a text search never loads the vision graph
            self._sessions[graph] = self._export.session(graph, self._options, self._providers)
        inputs = {entry["name"]: arrays[entry["name"]] for entry in self._export.graphs[graph]["inputs"]}
        result: list[Array] = self._sessions[graph].run(outputs, inputs)
        return result


def _leave_out(name: str, error: Exception, left_out: dict[str, str] | None) -> None:
    """Note what can't be used, or raise where nobody keeps notes."""
    if left_out is None:
        raise error
    left_out[name] = str(error)


def _difference(found: Array, expected: Array) -> float:
    """See `Embedder.check`."""
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
