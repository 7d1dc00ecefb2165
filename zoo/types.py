"""The nouns that every part of the zoo shares: dataclasses, no behaviour.

Shapes: R rows of one view, B samples of a batch, E embedding width, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    ImageSource = str | Path | bytes | Image
    Inputs = dict[str, Tensor]
else:  # the names stay importable without torch and Pillow
    ImageSource = object
    Inputs = dict


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to embed: any mix of text, images and a place, read under an optional instruction.

    `instruction` says what to look for in the item; it is not content, so an item that holds nothing else is refused.
    `images` are paths, encoded bytes or PIL images, decoded late, in the worker that needs them.
    `key` identifies the content when duplicates are looked for; empty means "derive it from the content". Sources set it
    where augmentation would change the content (two crops of one file are the same picture).
    `place` is latitude and longitude in degrees.
    `image_at`: where in `text` each image stands, as counts of characters in front of it, ascending. Such a text is taken
    as it is: the prompt template adds no separator and no words for a query. None = the template places the images.
    """

    text: str | None = None
    images: tuple[ImageSource, ...] = ()
    instruction: str | None = None
    key: str = ""
    place: tuple[float, float] | None = None
    image_at: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One training record: named views. A view that holds several items (hard negatives) is a tuple.

    `label` marks samples that are positives of one another (-1: none but itself); `source` names the dataset it came
    from, `weight` its share in the loss.
    """

    id: str
    views: Mapping[str, Item | tuple[Item, ...]]
    label: int = -1
    weight: float = 1.0
    source: str = ""


@dataclass(slots=True)
class Batch:
    """Collated samples: per view the tensors that `encode` takes, and what an objective may know about its rows.

    views:  view name -> inputs of R rows (R = B where every sample has one item in that view)
    owners: view name -> (R,) int64, the sample that each row belongs to
    keys:   view name -> (R,) int64, content hash of each row, equal for equal content
    labels: (B,) int64, -1 = none; weights: (B,) float32; ids, sources: one string per sample
    mixed:  view name -> what its rows were mixed with, only for views that were
    """

    views: dict[str, Inputs]
    owners: dict[str, Tensor]
    keys: dict[str, Tensor]
    labels: Tensor
    weights: Tensor
    ids: list[str]
    sources: list[str]
    mixed: dict[str, Mixture] = field(default_factory=dict)


@dataclass(slots=True)
class Mixture:
    """Rows of a view, each mixed with a row of another sample (mixup, CutMix).

    partner: (R,) int64, the sample that the other row belongs to. share: (R,) float32, how much of the mixture is the row's
    own; 1 = it is not mixed.
    """

    partner: Tensor
    share: Tensor


@dataclass(slots=True)
class Embedding:
    """What encoding gives.

    vector: (R, E) unit norm, fp32. log_var: (R, E), probabilistic entries only: the log of the variance around `vector`.
    tokens: (R, L, E) with mask (R, L), only for entries that score by token.
    given: (R, D) unit norm, only where an objective looks at what came out of a frozen encoder: the vector of a frozen
        entry (ProbVLM), or the latent that is to be rebuilt from a sample (MEME).
    log_shape: (R, E), ProbVLM only: the log of the exponent of the generalised Gaussian around `vector` (a Gaussian has 2).
    words: (R, L) int64, masked views of texts only: the ids of the words that were hidden, -1 at all other tokens.
    norm: (R,), beside tokens only: the length that `vector` had before it was made 1.
    """

    vector: Tensor
    log_var: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    given: Tensor | None = None
    log_shape: Tensor | None = None
    words: Tensor | None = None
    norm: Tensor | None = None


@dataclass(slots=True)
class Encoded:
    """The rows of all views after encoding, as an objective sees them (see `Batch` for the fields).

    `owners` are unique over all ranks, so a row and a gathered column belong together when their owners are equal.
    """

    views: dict[str, Embedding]
    owners: dict[str, Tensor]
    keys: dict[str, Tensor]
    labels: Tensor
    weights: Tensor
    sample: Tensor
    """(B,) int64, the owner number of each entry of `labels` and `weights`."""
    mixed: dict[str, Mixture] = field(default_factory=dict)


@dataclass(slots=True)
class Graph:
    """One part of a model that deploys alone.

    `examples[0]` traces the graph; every other example has other sizes and proves that the exported file is dynamic.
    dynamic_axes: input or output name -> {axis: axis name}; equal names stand for equal sizes.
    outputs: names in the order in which `module` returns them.
    """

    name: str
    module: nn.Module
    examples: Sequence[Mapping[str, Tensor]]
    dynamic_axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...] = ("embeddings",)


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """An evaluation task: rank `candidates` for every query.

    relevant: per query, the indexes of its right candidates (at least one).
    pools: per query, the indexes it is ranked against (MMEB's own candidate lists); None = all candidates.
    groups: per candidate, the class it is a prompt of (0, 1, ... without gaps). Classes are then what is ranked, each by
        the mean of its prompts' vectors, and `relevant` and `pools` hold classes. None = every candidate for itself.
    also: further tasks on the vectors of this one, which are not embedded again: their `queries` and `candidates` are the
        very objects of this task (COCO's folds of 1,000 images).
    rsum: the recall@1, @5 and @10 of all tasks with the same name here are added up (RSUM); empty = nothing is.
    """

    name: str
    queries: Sequence[Item]
    candidates: Sequence[Item]
    relevant: Sequence[Sequence[int]]
    pools: Sequence[Sequence[int]] | None = None
    metrics: tuple[str, ...] = field(default=("recall@1", "recall@10", "mrr", "ndcg@10"))
    groups: Sequence[int] | None = None
    also: tuple[RetrievalTask, ...] = ()
    rsum: str = ""
