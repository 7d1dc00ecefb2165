"""`zoo.load`: recipe -> verified weights -> module, strictly -> Embedder. No Trainer, no data, no code from the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from zoo import catalog, trust
from zoo.building import build_model as build_model  # also found here
from zoo.building import built_for_weights, tried_and_written_out
from zoo.bundle import Bundle, bundle_around, is_bundle, read_bundle
from zoo.convert.transformers_folder import load_folder
from zoo.embedder import Embedder
from zoo.errors import RecipeError, WeightsError, ZooError
from zoo.hub import HubPlace
from zoo.module import EmbeddingModule
from zoo.recipe import Recipe, Weights, read_recipe
from zoo.weights import fetch_folder, load_strictly, missing_keys, named_as_in, read_state, verify

if TYPE_CHECKING:
    from torch import Tensor

_OBJECTIVE = "objective."
_DTYPES = ("float32", "bfloat16", "float16")


def load(
    name: str,
    *,
    weights: bool | str | Path = True,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Embedder:
    """A model ready to embed.

    Args:
        name: `STEM` or `STEM.TAG` of a recipe (`zoo list`), or `path:PLACE`: a bundle, the folder or a checkpoint of a
            training run, or a recipe file.
        weights: True = those of the recipe's card; False = random; a path = this copy of them: a bundle, a checkpoint,
            a folder in the layout of the card's source, or a folder that holds the card's repositories by name.
        device: default CUDA if there is one, else the CPU.
        dtype: "float32", "bfloat16" or "float16"; default float32. Of the weights and of what is computed with them: vectors
            are fp32 in any case.

    Raises:
        UnknownNameError: no such recipe; says which ones are near. WeightsError: the weights can't be had (says the
            ways out), are not what the card says, or do not fit. RecipeError: the recipe can't be built. ZooError: no such
            dtype or device.
    """
    precision, place = _precision(dtype), _device(device)
    with _default_dtype(precision):
        if name.startswith("path:"):
            embedder = _from_place(Path(name.removeprefix("path:")).expanduser(), weights)
        else:
            recipe, tag = catalog.find(name)
            embedder = _from_recipe(recipe, tag, weights)
    if precision != torch.float32 and embedder.weights is not None:
        embedder.in_full = partial(_in_full, _for_later(name), weights)
    _round(embedder.module, precision)
    embedder.module.to(place)
    return embedder


def _for_later(name: str) -> str:
    """The name as it holds in any working folder."""
    kind, colon, place = name.partition(":")
    return f"{kind}:{Path(place).expanduser().absolute()}" if colon and kind == "path" else name


def _in_full(name: str, weights: bool | str | Path) -> Mapping[str, Tensor]:
    return load(name, weights=weights, device="cpu").module.state_dict()


def _round(module: EmbeddingModule, precision: torch.dtype) -> None:
    """Weights to `precision`; not buffers, nor those of parts that say so: frequencies lose too much in half precision.

    Batch norms keep theirs, which have to be in the precision of their statistics.
    """
    for part in module.modules():
        if not getattr(part, "full_precision", False) and not isinstance(part, _BatchNorm):
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(precision)


def load_weights(module: EmbeddingModule, recipe: str | Path, weights: bool | str | Path = True) -> str:
    """Put released weights into a module that a recipe (its name, or its file) built; returns where they came from."""
    found, tag = (read_recipe(recipe), None) if isinstance(recipe, Path) else catalog.find(recipe)
    released, places = _released(found, tag, weights)
    if len(places) == 1 and is_bundle(places[0]):
        return _fill(module, _bundle_of(released, places[0]).state(), str(places[0]))
    return _fill(module, _converted(released, places), _described(released, places), released.base, _local(weights))


def recipe_of(name: str) -> tuple[str, dict[str, Any]]:
    """Public name and recipe of what `load` takes, without its weights. Raises as `load`.

    A model that a bundle or a run brings is built once, without memory, so that it names nothing that it may not.
    """
    if not name.startswith("path:"):
        recipe = catalog.find(name)[0]
        return recipe.name, recipe.raw
    place = _existing(Path(name.removeprefix("path:")).expanduser())
    if place.suffix in (".yaml", ".yml"):
        return place.stem, read_recipe(place).raw
    if (folder := _bundle_in(place)) is not None:
        bundle = read_bundle(folder)
        name, raw = bundle.name, bundle.recipe
    else:
        recipe = _recipe_beside(place if place.is_file() else _checkpoint(place))
        name, raw = recipe.name, recipe.raw
    with trust.elsewhere(place):
        return name, raw | {"model": tried_and_written_out(raw["model"], name)}


def recipe_at(file: Path) -> Recipe:
    """A recipe file. One that lies in a bundle is called like it and names its files. Raises as `load`."""
    recipe = read_recipe(file)
    if (bundle := bundle_around(file)) is not None:
        name, raw = recipe_of(f"path:{bundle}")
        return replace(recipe, name=name, raw=raw)
    return recipe


# ---- from a recipe ---------------------------------------------------------------------------------------------------


def _from_recipe(recipe: Recipe, tag: str | None, weights: bool | str | Path) -> Embedder:
    if weights is False:
        return Embedder(build_model(recipe.raw["model"], recipe.name), recipe.raw, name=recipe.name, weights=None)
    released, places = _released(recipe, tag, weights)
    if len(places) == 1 and is_bundle(places[0]):
        return _from_bundle(_bundle_of(released, places[0]), name=recipe.name, card=recipe.raw["card"])
    state = _converted(released, places)  # before building: what is damaged is refused at once
    local = _local(weights)
    raw = recipe.raw if local is None else recipe.raw | {"model": _with_local_files(recipe.raw["model"], local)}
    module = built_for_weights(raw["model"], recipe.name)
    described = _described(released, places) if isinstance(weights, bool) else str(weights)
    source = _fill(module, state, described, released.base, local)
    return Embedder(module, raw, name=recipe.name, weights=source)


def _released(recipe: Recipe, tag: str | None, weights: bool | str | Path) -> tuple[Weights, list[Path]]:
    """The card's entry for these weights, and the places on this disk where its sources lie."""
    entries, local = recipe.card.weights, _local(weights)
    released = entries[tag or next(iter(entries))] if entries else None
    if local is not None:
        if not local.exists():
            raise WeightsError(f"there is no '{local}' to take the weights of '{recipe.name}' from")
        if released is None or is_bundle(local) or local.suffix == ".ckpt":  # ours: nothing to convert
            ours = is_bundle(local) or local.suffix == ".ckpt"
            return Weights(str(local), convert="" if ours else recipe.card.convert), [local]
        if len(released.sources) == 1 and not _holds_repository(local, released.sources):
            return released, [_named_file(local, released.sources[0]) or local]
    if released is None:
        train = f"train it (zoo fit --config {recipe.path})" if recipe.path else recipe.card.notes
        raise WeightsError(
            f"'{recipe.name}' has no released weights: {train}, give a copy (in Python weights='FOLDER'), or take "
            "random ones (in Python weights=False)"
        )
    wanted = released.sources
    return released, [fetch_folder(source, name=recipe.name, local=local, together=wanted) for source in wanted]


def _holds_repository(local: Path, sources: list[str]) -> bool:
    repositories = [s.removeprefix("hf:").partition("@")[0].partition(":")[0] for s in sources if s.startswith("hf:")]
    return any((local / r).is_dir() or (local / r.rpartition("/")[2]).is_dir() for r in repositories)


def _named_file(local: Path, source: str) -> Path | None:
    """The file of the repository that the source names, in a folder that is a copy of it."""
    return HubPlace.parse(source).within(local) if source.startswith("hf:") else None


def _bundle_of(released: Weights, place: Path) -> Bundle:
    """The bundle at `place`, which must also be the one that the card means."""
    _verify(released, [place])
    return read_bundle(place)


def _with_local_files(part: Any, local: Path) -> Any:
    """A recipe's `model:` in which files of the hub (a tokenizer) are those of the local copy, where it has them."""
    if isinstance(part, Mapping):
        return {key: _with_local_files(value, local) for key, value in part.items()}
    if isinstance(part, list):
        return [_with_local_files(value, local) for value in part]
    if isinstance(part, str) and part.startswith("hf:") and (place := HubPlace.parse(part)).file:
        for folder in (local / place.repo, local / place.repo.rpartition("/")[2], local):
            if (folder / str(place.file)).is_file():
                return str(folder / str(place.file))
    return part


def _local(weights: bool | str | Path) -> Path | None:
    return None if isinstance(weights, bool) else Path(str(weights).removeprefix("path:")).expanduser()


def _described(released: Weights, places: list[Path]) -> str:
    return " + ".join(s if s.startswith("hf:") else str(p) for s, p in zip(released.sources, places, strict=True))


def _converted(released: Weights, places: list[Path]) -> dict[str, Tensor]:
    """The verified tensors of all sources, under the names that the module has."""
    _verify(released, places)
    if released.convert:
        return converter(released.convert)(*(load_folder(place) for place in places))
    if len(places) != 1:
        raise RecipeError(f"weights from {len(places)} sources need a converter (card.weights: convert) to join them")
    return read_state(places[0])


def _verify(released: Weights, places: list[Path]) -> None:
    """Compare what lies there with the card's digests."""
    digests = released.sha256 if isinstance(released.sha256, list) else [released.sha256]
    if released.sha256 is not None and len(digests) != len(places):
        raise RecipeError(
            f"card.weights: {len(places)} sources, but {len(digests)} entries of sha256; give one for each"
        )
    for place, expected in zip(places, digests, strict=False):
        if expected is not None:
            verify(place, expected)


def converter(path: str) -> Callable[..., dict[str, Tensor]]:
    """`FILE.FUNCTION` in zoo/convert/, or `package.module:function` of a plug-in.

    A converter takes one `Checkpoint` per source of the card, in order, and returns the state dict of the module.
    """
    module, colon, function = path.rpartition(":")
    if not colon:
        module, _, function = f"zoo.convert.{path}".rpartition(".")
    try:
        found: Callable[..., dict[str, Tensor]] = trust.attribute(module, function)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"there is no converter '{path}' ({error})") from error
    return found


# ---- from a place on this disk ---------------------------------------------------------------------------------------


def _from_place(place: Path, weights: bool | str | Path) -> Embedder:
    if _existing(place).suffix in (".yaml", ".yml"):
        return _from_recipe_file(place, weights)
    if not isinstance(weights, bool):
        raise WeightsError(f"'path:{place}' brings its own weights; leave weights='{weights}' out, or name the recipe")
    if (folder := _bundle_in(place)) is not None:
        return _from_bundle(read_bundle(folder), weights=weights)
    checkpoint = place if place.is_file() else _checkpoint(place)
    recipe = _recipe_beside(checkpoint)
    with trust.elsewhere(place):
        return _from_recipe(recipe, None, checkpoint if weights else False)


def _from_recipe_file(file: Path, weights: bool | str | Path) -> Embedder:
    """A recipe that somebody wrote, or that of a bundle or a run."""
    recipe = read_recipe(file)
    if is_bundle(file.parent) or (file.parent / "checkpoints").is_dir():
        with trust.elsewhere(file):
            return _from_recipe(recipe, None, weights)
    return _from_recipe(recipe, None, weights)


def _existing(place: Path) -> Path:
    if not place.exists():
        raise WeightsError(f"there is no '{place}'")
    return place


def _bundle_in(place: Path) -> Path | None:
    """A bundle, or that of a run."""
    return next((folder for folder in (place, place / "bundle") if is_bundle(folder)), None)


def _from_bundle(bundle: Bundle, *, name: str | None = None, card: Any = None, weights: bool = True) -> Embedder:
    """`name` and `card`: of the recipe that names the bundle as its weights; the rest of it is the bundle's own."""
    recipe = bundle.recipe | ({"card": card} if card else {})
    name = name or bundle.name
    if not weights:
        with trust.elsewhere(bundle.folder):
            return Embedder(build_model(recipe["model"], name), recipe, name=name, weights=None)
    elsewhere = bundle.manifest.get("kept_elsewhere", {})
    with _default_dtype(torch.float32 if elsewhere else torch.get_default_dtype()):  # digests are those of fp32 weights
        with trust.elsewhere(bundle.folder):
            module = built_for_weights(recipe["model"], name)
        source = _fill(module, bundle.state(), str(bundle.folder))
    module.check_elsewhere(elsewhere, f"the bundle '{name}'")
    return Embedder(module, recipe, name=name, weights=source)


def _checkpoint(run: Path) -> Path:
    """The best checkpoint of a run, else its last."""
    for stem in ("best", "last"):
        for folder in (run / "checkpoints", run):
            if (folder / f"{stem}.ckpt").is_file():
                return folder / f"{stem}.ckpt"
    raise WeightsError(
        f"{run} is neither a bundle (it has no bundle.json) nor a run (no checkpoints/best.ckpt or last.ckpt); "
        "for weights in the layout of their authors name the model: zoo.load('NAME', weights='FOLDER')"
    )


def _recipe_beside(checkpoint: Path) -> Recipe:
    for folder in list(checkpoint.absolute().parents)[:2]:
        if (folder / "recipe.yaml").is_file():
            return replace(read_recipe(folder / "recipe.yaml"), name=folder.name)
    raise RecipeError(
        f"there is no recipe.yaml beside {checkpoint} or above it; "
        f"name the recipe: zoo.load('NAME', weights='{checkpoint}')"
    )


# ---- filling ---------------------------------------------------------------------------------------------------------


def _fill(
    module: EmbeddingModule, state: dict[str, Tensor], source: str, base: str = "", local: Path | None = None
) -> str:
    """Load `state` strictly; returns `source`.

    The objective only matters for fitting: its tensors are taken where they fit and are never missed. What else is
    missing must be frozen and belong to parts that read it from `base`, or from where fitting started (a LoRA
    checkpoint holds no backbone).
    """
    expected, state = module.state_dict(), named_as_in(module, state)
    kept = {
        key: value
        for key, value in state.items()
        if not key.startswith(_OBJECTIVE) or (key in expected and expected[key].shape == value.shape)
    }
    missing = missing_keys(module, kept)
    may_miss = {key for key in missing if key.startswith(_OBJECTIVE)}
    may_miss |= _read_frozen(module, missing - may_miss, base, local)
    load_strictly(module, kept, source, may_miss)
    _draw({key for key in may_miss if key.startswith(_OBJECTIVE)}, module)
    loaded = module.state_dict()
    if broken := module.not_finite({key: loaded[key] for key in kept if not key.startswith(_OBJECTIVE)}):
        dtype = str(loaded[broken[0]].dtype).removeprefix("torch.")
        others = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise WeightsError(f"the weights from {source} are broken: '{broken[0]}'{others} is not finite in {dtype}")
    return source


def _draw(missing: set[str], module: EmbeddingModule) -> None:
    """Random numbers for the objective's layers that the weights lack: the model was built without drawing any, and may be
    saved or trained further.
    """
    with torch.random.fork_rng(devices=[]):
        for name, part in module.named_modules():
            own = {f"{name}.{key}" for key, _ in part.named_parameters(recurse=False)}
            reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))  # the latter: attention
            if own & missing and reset is not None:
                reset()


def _read_frozen(module: EmbeddingModule, missing: set[str], base: str, local: Path | None) -> set[str]:
    """Have the parts that start from published weights read them, if that covers `missing`; the keys covered."""
    parts: dict[str, Any] = {
        f"{name}.": part
        for name, part in module.named_modules()
        if hasattr(part, "pretrained") and (base or part.pretrained)
    }
    module.apply_freeze()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    covered = {key for key in missing if key.startswith(tuple(parts)) and key not in trained}
    if not missing or covered != missing:
        return set()
    for prefix, part in parts.items():
        if any(key.startswith(prefix) for key in missing):
            part.pretrained = str(fetch_folder(base or part.pretrained, local=local))
            part.load_pretrained()
    return covered


def _precision(dtype: str | torch.dtype | None) -> torch.dtype:
    name = str(dtype or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise ZooError(f"unknown dtype '{name}'; there are {', '.join(_DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


def _device(device: str | torch.device | None) -> torch.device:
    """Where the model is to be. ZooError if there is no such device here."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's builds differ in what they raise
        told = " ".join(str(error).split()).partition(". ")[0]
        raise ZooError(
            f"the device '{device}' can't be used here ({told}); `zoo doctor` lists what there is"
        ) from error
    return place


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Modules built within have this type from the start, instead of needing room for both."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
