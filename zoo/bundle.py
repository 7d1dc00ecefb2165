"""A Bundle: the folder in which a model is released. Written at once or not at all; nothing in it is used unverified.

model.safetensors   all tensors, the objective's included, shared ones once
recipe.yaml         how to build the module; `bundle:FILE` in it means a file of this folder
README.md           the card
bundle.json         sha256 and size of every file, versions of what wrote it
...                 tokenizer and other files of the processor
"""

from __future__ import annotations

import copy
import ctypes
import errno
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from zoo.card import card_text
from zoo.errors import NonFiniteError, RecipeError, WeightsError, ZooError
from zoo.recipe import read_mapping, read_recipe
from zoo.weights import plain, read_state, sha256

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.module import EmbeddingModule

MANIFEST = "bundle.json"
WEIGHTS = "model.safetensors"
RECIPE = "recipe.yaml"
FORMAT = 1
# those that vectors depend on
_LIBRARIES = (
    *("torch", "lightning", "transformers", "timm", "open_clip_torch", "tokenizers", "safetensors"),
    *("numpy", "pillow"),  # read and resize images
)
_PREFIX = "bundle:"
_LONGEST_NAME = 200  # ours: it becomes a part of file names
StorageDtype = Literal["float16", "bfloat16"]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `recipe` is ready to build from: its `bundle:` entries are paths."""

    folder: Path
    name: str
    recipe: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the weights."""
        return str(self.manifest["files"][WEIGHTS]["sha256"])

    def state(self) -> dict[str, Tensor]:
        """The tensors, in the precision in which they are stored."""
        return read_state(self.folder / WEIGHTS)


# ---- writing --------------------------------------------------------------------------------------------------------


def write_bundle(
    module: EmbeddingModule,
    recipe: Mapping[str, Any] | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    metrics: Mapping[str, float] | None = None,
    dtype: StorageDtype | None = None,
) -> Path:
    """Write `module` as a bundle; an earlier bundle at that place is replaced at the last moment.

    Args:
        module: what is written.
        recipe: what built the module: the parsed recipe, or its file.
        folder: what to create.
        name: the public name, for the card; default the recipe's file stem, else the folder's name.
        metrics: measured figures for the card, name -> value.
        dtype: store matrices in this type to halve the file (they are loaded back into fp32 modules); vectors and
            scalars stay as they are, they weigh nothing and a temperature loses by rounding. None = as they are.

    Raises:
        ZooError: the folder exists and is no bundle. NonFiniteError: weights that are not finite. WeightsError: no space
            left, or not writable; then nothing is left behind.
    """
    place = check_place(folder)
    name = name or (recipe.stem if isinstance(recipe, Path) else place.name)
    parsed = read_recipe(recipe).raw if isinstance(recipe, Path) else dict(recipe)
    tensors = _tensors(module, dtype)
    if broken := [key for key in module.not_finite(tensors) if not key.startswith("objective.")]:
        raise NonFiniteError(f"no bundle was written to {place}: the weights are not finite, first {broken[:3]}")
    with whole_or_nothing(place, sum(t.nbytes for t in tensors.values())) as partial:
        from safetensors.torch import save_file

        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        written = _with_processor(parsed, module.processor.save(partial))  # type: ignore[attr-defined]
        (partial / RECIPE).write_text(yaml.safe_dump(written, sort_keys=False, allow_unicode=True), "utf-8")
        parameters = sum(p.numel() for p in module.parameters())
        (partial / "README.md").write_text(card_text(name, parsed, parameters, metrics), "utf-8")
        manifest = {
            "format": FORMAT,
            "name": name,
            "parameters": parameters,
            "stored_as": dtype or "as trained",
            "kept_elsewhere": module.digests_elsewhere(),
            "versions": versions(),
            "files": _listed(partial),
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return place


def bundle_around(recipe: Path) -> Path | None:
    """The bundle whose recipe this file is; None = it is none's."""
    return recipe.parent if recipe.name == RECIPE and is_bundle(recipe.parent) else None


def check_place(folder: str | Path) -> Path:
    """Where a bundle is to be written. ZooError if something else is there."""
    place = Path(folder).expanduser().absolute()
    if place.exists() and not is_bundle(place) and (place.is_file() or any(place.iterdir())):
        raise ZooError(f"{place} exists and is no bundle; choose another folder")
    return place


def _listed(folder: Path) -> dict[str, dict[str, str | int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): {"sha256": sha256(p), "bytes": p.stat().st_size} for p in files}


def versions() -> dict[str, str]:
    """Versions of the zoo and of what its vectors depend on."""
    found = {"python": platform.python_version()}
    for distribution in ("embedding-zoo", *_LIBRARIES):
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[distribution] = "not installed"
    return found


def _tensors(module: EmbeddingModule, dtype: StorageDtype | None) -> dict[str, Tensor]:
    import torch

    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    storages: set[int] = set()
    elsewhere = tuple(f"{name}." for name in module.kept_elsewhere())
    for key, tensor in module.state_dict(keep_vars=True).items():
        if elsewhere and key.startswith(elsewhere):
            continue
        if id(tensor) in seen:  # tied: loading finds it under its first name
            continue
        seen.add(id(tensor))
        value = tensor.detach()
        if dtype is not None and value.is_floating_point() and value.ndim >= 2:
            value = value.to(getattr(torch, dtype))
            if not torch.isfinite(value).all() and torch.isfinite(tensor).all():
                raise WeightsError(
                    f"'{key}' does not fit into {dtype}: its largest value is {tensor.abs().max().item():g}"
                )
        value = value.cpu().contiguous()
        if value.untyped_storage().data_ptr() in storages:  # a view of something kept; the format wants its own copy
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        kept[plain(key)] = value
    return kept


@contextmanager
def whole_or_nothing(folder: Path, need: int) -> Iterator[Path]:
    """A temporary folder beside `folder`: takes its place when the block ends well, vanishes when it does not."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        free = shutil.disk_usage(partial).free
        if free < need:
            raise OSError(errno.ENOSPC, f"{need / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")
        yield partial
        _replace(partial, folder)
    except Exception as error:
        raise _explained(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
    elif not _exchanged(partial, folder):
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old)


def _exchanged(first: Path, second: Path) -> bool:
    """Swap two folders at once, so that there is always one; False where the system or the disk can't (renameat2, Linux)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def clear_leftovers(folder: Path) -> None:
    """Undo what a process that was killed while it wrote the bundle `folder` has left beside it.

    Only for who knows that nobody else writes there.
    """
    for path in folder.parent.glob(f".{folder.name}.*.old"):
        if folder.exists():
            shutil.rmtree(path)
        else:
            path.rename(folder)
    for path in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _explained(error: Exception, folder: Path) -> Exception:
    told = re.search(r"os error (\d+)", str(error))  # safetensors reports trouble with the disk as text
    number = int(told[1]) if told else getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return WeightsError(
            f"no space left to write {folder} ({error}); free some or choose a folder on another disk. "
            "Nothing was left behind"
        )
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return WeightsError(f"{folder} can't be written ({error}); choose a folder that can")
    return error


def _with_processor(recipe: Mapping[str, Any], replaced: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the processor's init arguments replaced by those that hold inside the bundle."""
    written: dict[str, Any] = copy.deepcopy({key: recipe[key] for key in recipe})
    arguments = written.get("model", {}).get("init_args", {})
    processor = arguments.get("processor")
    if isinstance(processor, str):
        processor = arguments["processor"] = {"class_path": processor}
    if not isinstance(processor, dict):
        if replaced:
            raise RecipeError(
                "the recipe names no processor in model.init_args.processor; a bundle has to say which it needs"
            )
        return written
    processor["init_args"] = {**(processor.get("init_args") or {}), **replaced}
    return written


# ---- reading --------------------------------------------------------------------------------------------------------


def is_bundle(folder: Path) -> bool:
    """Whether the folder claims to be one."""
    return (folder / MANIFEST).is_file()


def read_bundle(folder: Path) -> Bundle:
    """Open and verify a bundle.

    Raises:
        WeightsError: a file is missing, truncated or changed (names it), or a newer zoo wrote the bundle. RecipeError: its
            recipe can't be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        files, form = manifest["files"], int(manifest["format"])
        digests = {str(name): str(entry["sha256"]) for name, entry in files.items()}
        name, elsewhere = str(manifest.get("name", folder.name)), dict(manifest.get("kept_elsewhere") or {})
    except FileNotFoundError as error:
        raise WeightsError(f"{folder} is no bundle: it has no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{folder / MANIFEST} is damaged ({error!r}); fetch or copy the bundle again") from error
    if form > FORMAT:
        raise WeightsError(f"{folder} has bundle format {form}, this zoo reads up to {FORMAT}; upgrade embedding-zoo")
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise WeightsError(f"{folder / MANIFEST} gives the bundle a name that can't be shown; fetch or copy it again")
    _verify(folder, digests)
    recipe = read_mapping(folder / RECIPE)
    if not isinstance(recipe.get("model"), dict):
        raise RecipeError(f"{folder / RECIPE} has no `model:` mapping; fetch or copy the bundle again")
    if not isinstance(recipe.get("card", {}), dict):
        raise RecipeError(f"{folder / RECIPE} has a `card:` that is no mapping; fetch or copy the bundle again")
    recipe["model"] = _resolved(recipe["model"], folder, digests)
    return Bundle(folder, name, recipe, manifest | {"kept_elsewhere": elsewhere})


def _verify(folder: Path, digests: Mapping[str, str]) -> None:
    for needed in (WEIGHTS, RECIPE):
        if needed not in digests:
            raise WeightsError(f"{folder / MANIFEST} does not list '{needed}'; fetch or copy the bundle again")
    for name, digest in digests.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise WeightsError(f"{folder / MANIFEST} lists '{name}', which lies outside the bundle")
        if not path.is_file():
            raise WeightsError(f"the bundle {folder} is incomplete: '{name}' is missing; fetch or copy it again")
        if sha256(path) != digest:
            raise WeightsError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}; fetch or copy it again")


def _resolved(value: Any, folder: Path, listed: Mapping[str, str]) -> Any:
    """`bundle:FILE` -> the path of that verified file, wherever it stands in the recipe."""
    if isinstance(value, dict):
        return {key: _resolved(entry, folder, listed) for key, entry in value.items()}
    if isinstance(value, list):
        return [_resolved(entry, folder, listed) for entry in value]
    if isinstance(value, str) and value.startswith(_PREFIX):
        name = value.removeprefix(_PREFIX)
        if name not in listed:
            raise WeightsError(f"the recipe of {folder} needs '{name}', which {MANIFEST} does not list")
        return str((folder / name).absolute())
    return value
