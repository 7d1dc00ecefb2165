"""What `zoo.load` returns: a model that owns everything between a thing and its vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo.ahead import ahead
from zoo.errors import NonFiniteError, SampleError, ZooError
from zoo.identity import fingerprint, former_fingerprint
from zoo.items import is_single, padding_size, to_items
from zoo.progress import counting
from zoo.types import Embedding, Inputs, Item, Sample

if TYPE_CHECKING:
    from zoo.bundle import StorageDtype
    from zoo.module import EmbeddingModule

Vectors = npt.NDArray[np.float32]
Side = Literal["query", "document"]
OnBad = Callable[[int, SampleError], None]
_DEGREES = ("places",)
_VIEWS: dict[str, str] = {"query": "query", "document": "target"}


class Embedder:
    """Embeds texts, pictures and mixes of them.

    One thing to embed is
        str                   a text (also if a file of that name exists)
        Path, bytes, PIL      an image: its file, its encoded bytes, or the image itself; also an open binary file, a numpy
                              array (H, W, 3) or (H, W), or a tensor (3, H, W), of uint8
        dict                  any of `text`, `image` (or `images`), `place` and `instruction`; a str under `image` is a path,
                              a `data:` address or base64, a place is latitude and longitude in degrees
        Item                  the same, typed
    Queries and documents are rendered by the prompt of their side; for most models the two differ, so embed the two
    sides of a search with `encode_query` and `encode_document`.

    Args:
        module: in any state; is put in evaluation mode.
        recipe: the parsed recipe that built it.
        weights: where its weights came from, for people; None = random.
    """

    def __init__(self, module: EmbeddingModule, recipe: Mapping[str, Any], *, name: str, weights: str | None) -> None:
        self.module = module.eval()
        self.recipe = dict(recipe)
        self.name = name
        self.weights = weights
        self.in_full: Callable[[], Mapping[str, Tensor]] | None = None
        """Of a model in half precision: gives its weights as they were before they were rounded."""
        self._digests: dict[str, str] = {}
        self._dim: int | None = None
        self._probabilistic: bool | None = None

    @property
    def card(self) -> dict[str, Any]:
        """The recipe's card: paper, licence, measured figures."""
        return dict(self.recipe.get("card") or {})

    @property
    def processor(self) -> Any:
        """Samples to tensors (see `zoo.data.source.Processor`)."""
        return self.module.processor

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, and of what is computed with them. Vectors are fp32 and of unit norm in any case."""
        kinds = {p.dtype for p in self.module.parameters() if p.is_floating_point()}
        return next((kind for kind in (torch.bfloat16, torch.float16) if kind in kinds), torch.float32)

    @property
    def dim(self) -> int:
        """E, the width of a vector."""
        if self._dim is None:
            self._dim = int(self._encoded(_probe(self.processor)).vector.shape[1])
        return self._dim

    @property
    def probabilistic(self) -> bool:
        """Whether the model gives a log-variance beside every value."""
        if self._probabilistic is None:
            self._probabilistic = self._encoded(_probe(self.processor)).log_var is not None
        return self._probabilistic

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.module.parameters())
        weights = self.weights or "RANDOM WEIGHTS: its vectors mean nothing"
        return f"Embedder({self.name}, {parameters / 1e6:.1f}M parameters, {self.device}, {weights})"

    # ---- encoding ---------------------------------------------------------------------------------------------------

    @property
    def shortened(self) -> int:
        """How many texts were longer than the model takes, so far, and were cut."""
        return int(getattr(getattr(self.processor, "arrays", None), "shortened", 0))

    def encode(
        self,
        items: Any,
        *,
        side: Side = "document",
        batch_size: int = 32,
        instruction: str | None = None,
        show_progress_bar: bool = False,
        convert_to_numpy: bool = True,
        truncate_dim: int | None = None,
    ) -> Any:
        """Things -> unit vectors, in the order given.

        Args:
            items: one thing (see the class) or a list of them.
            side: whose prompt to use.
            batch_size: items that the model gets at once.
            instruction: for items that have none of their own.
            show_progress_bar: with rate and time left.
            convert_to_numpy: else a torch tensor on the CPU.
            truncate_dim: keep the first so many values and normalise again (for models trained that way).

        Returns:
            (N, E) float32, (E,) for one thing, (0, E) for an empty list.

        Raises:
            SampleError: an item can't be used; names its position. NonFiniteError: a vector is NaN or infinite.
        """
        single = is_single(items)
        listed = to_items([items] if single else list(items), instruction)
        if truncate_dim is not None and not 0 < truncate_dim <= self.dim:
            raise ZooError(f"truncate_dim={truncate_dim} does not fit: {self.name} gives {self.dim} values")
        vectors = np.zeros((len(listed), self.dim), np.float32)
        with counting(len(listed), f"embedding with {self.name}", show=show_progress_bar) as advance:
            for rows, part in self.stream(listed, side=side, batch_size=batch_size):
                vectors[rows] = part
                advance(len(rows))
        if truncate_dim is not None:
            vectors = _unit(vectors[:, :truncate_dim])
        result = vectors[0] if single else vectors
        return result if convert_to_numpy else torch.from_numpy(result)

    def encode_gaussian(
        self, items: Any, *, side: Side = "document", batch_size: int = 32, instruction: str | None = None
    ) -> tuple[Vectors, Vectors]:
        """Things -> unit means and log-variances, both (N, E) float32, of a probabilistic model. Arguments as of `encode`.

        Raises:
            ZooError: the model is not probabilistic. Others: as `encode`.
        """
        listed = to_items([items] if is_single(items) else list(items), instruction)
        both = np.zeros((len(listed), 2 * self.dim), np.float32)
        for rows, part in self.stream(listed, side=side, batch_size=batch_size, log_var=True):
            both[rows] = part
        return both[:, : self.dim], both[:, self.dim :]

    def encode_query(self, items: Any, **options: Any) -> Any:
        """`encode` with the prompt of queries."""
        return self.encode(items, side="query", **options)

    def encode_document(self, items: Any, **options: Any) -> Any:
        """`encode` with the prompt of documents (candidates)."""
        return self.encode(items, side="document", **options)

    def stream(
        self,
        items: Sequence[Item],
        *,
        side: Side = "document",
        batch_size: int = 32,
        names: Sequence[str] | None = None,
        on_bad: OnBad | None = None,
        log_var: bool = False,
    ) -> Iterator[tuple[list[int], Vectors]]:
        """Positions and their vectors, batch by batch, in an order that saves padding.

        Args:
            items: what to embed.
            side: whose prompt to use.
            batch_size: items that the model gets at once.
            names: of the items, for messages; default their positions.
            on_bad: called with the position and the error of an item that can't be used, which is then left out;
                None = raise.
            log_var: of probabilistic models: behind the E values of each vector their E log-variances, too.
        """
        if side not in _VIEWS:
            raise ZooError(f"side must be 'query' or 'document', not '{side}'")
        if batch_size < 1:
            raise ZooError(f"batch_size must be at least 1, not {batch_size}")
        view = _VIEWS[side]
        samples = [Sample(names[i] if names else f"item {i}", {view: item}) for i, item in enumerate(items)]
        # largest first: if the memory does not suffice, that shows at once
        order = sorted(range(len(items)), key=lambda i: padding_size(items[i]), reverse=True)
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        prepared = (self._prepared(samples, rows, view, on_bad is None) for rows in batches)
        for rows, inputs, bad in ahead(prepared, self.device.type):
            for row, error in bad:
                assert on_bad is not None  # without it, preparing raises
                on_bad(row, error)
            if inputs is not None:
                yield rows, self._vectors(inputs, [samples[row].id for row in rows], log_var)

    def _prepared(
        self, samples: Sequence[Sample], rows: list[int], view: str, strict: bool
    ) -> tuple[list[int], Inputs | None, list[tuple[int, SampleError]]]:
        """Inputs of the usable rows, and the errors of the others."""
        shortened = self.shortened
        try:
            return rows, self.processor([samples[row] for row in rows]).views[view], []
        except SampleError:
            if strict:
                raise
        good, bad = [], []
        for row in rows:
            try:
                self.processor([samples[row]])
                good.append(row)
            except SampleError as error:
                bad.append((row, error))
        if shortened != self.shortened:
            self.processor.arrays.shortened = shortened  # what was tried counts once, when it is used
        return good, self.processor([samples[row] for row in good]).views[view] if good else None, bad

    def _encoded(self, inputs: Inputs) -> Embedding:
        """Vectors and log-variances on the CPU, fp32."""
        device = self.device
        self.module.eval()
        with torch.inference_mode():
            found = self.module.encode({key: self._moved(key, value, device) for key, value in inputs.items()})
        log_var = None if found.log_var is None else found.log_var.float().cpu()
        return Embedding(found.vector.float().cpu(), log_var)

    def _moved(self, key: str, value: Tensor, device: torch.device) -> Tensor:
        """On the device, and in the precision of the weights; degrees stay as they are: half precision moves them by km."""
        casts = value.is_floating_point() and key not in _DEGREES
        return value.to(device, self.dtype if casts else value.dtype)

    def _vectors(self, inputs: Inputs, names: list[str], log_var: bool) -> Vectors:
        found = self._encoded(inputs)
        vectors = found.vector
        if log_var:
            if found.log_var is None:
                raise ZooError(f"{self.name} gives vectors without variances: it is no probabilistic entry")
            vectors = torch.cat([vectors, found.log_var], 1)
        finite = torch.isfinite(vectors).all(dim=1)
        if not finite.all():
            bad = [name for name, ok in zip(names, finite.tolist(), strict=True) if not ok]
            listed = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            half = any(p.dtype == torch.float16 for p in self.module.parameters())
            hint = (
                "float16 may overflow: load it with dtype='bfloat16' or 'float32'"
                if half
                else "its weights are damaged"
            )
            raise NonFiniteError(f"{self.name} gives values that are not finite for {listed}; {hint}")
        result: Vectors = vectors.numpy()
        return result

    # ---- comparing --------------------------------------------------------------------------------------------------

    @staticmethod
    def similarity(a: Any, b: Any) -> Any:
        """Cosine of all pairs, in fp32: (N, E) and (M, E) -> (N, M). Tensors if one of them is a tensor, else numpy."""
        tensors = isinstance(a, Tensor) or isinstance(b, Tensor)
        left, right = (_unit(np.atleast_2d(np.asarray(_numpy(x), np.float32))) for x in (a, b))
        if left.shape[1] != right.shape[1]:
            raise ZooError(f"vectors of {left.shape[1]} and of {right.shape[1]} values can't be compared")
        cosine = left @ right.T
        return torch.from_numpy(cosine) if tensors else cosine

    # ---- identity ---------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """sha256 over all that decides a vector: weights, architecture, prompt, preprocessing. Equal = comparable.

        In half precision it is that of the weights as they were read: rounding moves a vector by far less than what tells
        two things apart (docs/start.md has figures), so vectors of all precisions can be searched with each other.
        """
        return self._digest(fingerprint)

    def gave(self, digest: str) -> bool:
        """Whether vectors that were kept with this fingerprint are those of this model."""
        return digest in (self.fingerprint(), self.former_fingerprint())

    def former_fingerprint(self) -> str:
        """What the first version called the fingerprint, for vectors that were kept since."""
        return self._digest(former_fingerprint)

    def _digest(self, made: Callable[[Mapping[str, Any], Mapping[str, Tensor]], str]) -> str:
        if self.in_full is None:
            return made(self.recipe, self.module.state_dict())
        if made.__name__ not in self._digests:  # the weights are read again, once
            self._digests[made.__name__] = made(self.recipe, self.in_full())
        return self._digests[made.__name__]

    def save(
        self,
        folder: str | Path,
        *,
        metrics: Mapping[str, float] | None = None,
        dtype: StorageDtype | None = None,
    ) -> Path:
        """Write a bundle that `zoo.load("path:FOLDER")` reads (see `zoo.bundle.write_bundle`)."""
        from zoo.bundle import write_bundle

        return write_bundle(self.module, self.recipe, folder, name=self.name, metrics=metrics, dtype=dtype)


# ---- helpers ------------------------------------------------------------------------------------------------------


def _probe(processor: Any) -> Inputs:
    """Inputs of something that the model can embed, to see how wide its vectors are."""
    from PIL import Image

    try:
        inputs = processor([Sample("probe", {"target": Item(text="a")})])
    except SampleError:  # a model of pictures alone
        inputs = processor([Sample("probe", {"target": Item(images=(Image.new("RGB", (64, 64)),))})])
    found: Inputs = inputs.views["target"]
    return found


def _numpy(value: Any) -> Any:
    return value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value


def _unit(vectors: Vectors) -> Vectors:
    norm = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    result: Vectors = (vectors / np.maximum(norm, np.finfo(np.float32).tiny)).astype(np.float32)
    return result
