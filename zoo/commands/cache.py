"""Encode the data of a recipe once, for training on frozen encoders: `zoo cache --config recipes/NAME.yaml`.

What is there already is kept, and a stopped run goes on. A fit with `cache: {enabled: true}` fills by itself; this fills
without training. --list shows what is kept, --remove frees it. The exit code is 3 if parts could not be used and were
skipped.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import RecipeError, ZooError
from zoo.tables import table

if TYPE_CHECKING:
    from zoo.latents import Filled

EXIT_SOME_BAD = 3  # as of `zoo embed`
_ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zoo cache` takes."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="RECIPE", help="a recipe: its file, or its name as `zoo list` prints it")
    what.add_argument("--list", action="store_true", help="what is kept, with sizes")
    what.add_argument("--remove", metavar="FOLDER", help=f"a folder as --list prints it, or {_ALL}")
    parser.add_argument("--batch_size", type=int, metavar="N", help="default: that of the recipe's section `cache`")
    parser.add_argument("--dtype", choices=("float32", "float16"), help="of the files; default as above")
    parser.add_argument(
        "--tokens", action="store_true", help="keep tokens of every encoder, also if the recipe doesn't"
    )
    parser.add_argument(
        "--folder", default="", metavar="FOLDER", help="where latents are kept; default: the zoo's cache"
    )


def run(args: argparse.Namespace) -> int:
    """Fill, list or remove."""
    from zoo.data.latent_folder import latents_folder

    if args.list:
        _print_list(latents_folder(args.folder))
    elif args.remove:
        _remove(args.remove, latents_folder(args.folder))
    else:
        filled = _fill(args)
        _verify(filled)
        _print_filled(filled)
        return EXIT_SOME_BAD if any(one.manifest.left_out for one in filled) else 0
    return 0


# ---- filling ---------------------------------------------------------------------------------------------------------


def _fill(args: argparse.Namespace) -> list[Filled]:
    import sys

    from zoo.bundle import bundle_around
    from zoo.callbacks.latent_caching import check_module
    from zoo.catalog import find_path
    from zoo.data.listing import list_data
    from zoo.latents import fill
    from zoo.loading import recipe_at

    path = find_path(args.config)
    recipe = recipe_at(path)
    module, data, settings = _built(recipe.raw, recipe.name, bundle_around(path))
    check_module(module)
    listings = list_data(data)  # before weights are read: what can't be listed is refused at once
    module.setup("fit")
    if args.tokens:
        module.tokens = list(module.encoders)
    return fill(
        _on_device(module),
        listings,
        folder=args.folder or settings.folder,
        batch_size=args.batch_size or settings.batch_size,
        dtype=args.dtype or settings.dtype,
        show=sys.stderr.isatty(),
    )


def _built(raw: dict[str, Any], name: str, bundle: Path | None) -> tuple[Any, Any, Any]:
    """Model, data and the section `cache` of a recipe, which may be a bundle's. RecipeError names what does not fit."""
    from jsonargparse import ArgumentError, ArgumentParser
    from lightning.pytorch import seed_everything

    from zoo import trust
    from zoo.callbacks.latent_caching import LatentCaching
    from zoo.data.datamodule import EmbeddingData
    from zoo.module import EmbeddingModule
    from zoo.parsing import explain, explain_built
    from zoo.registry import import_parts

    if not raw.get("data"):
        raise RecipeError(f"recipe '{name}' has no `data:`, so there is nothing to encode")
    import_parts()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(EmbeddingModule, "model", required=True)
    parser.add_subclass_arguments(EmbeddingData, "data", required=True)
    parser.add_class_arguments(LatentCaching, "cache")
    parser.add_argument("--seed_everything", type=int, default=0)
    sections = ("model", "data", "cache", "seed_everything")
    try:
        with trust.parsing(bundle):
            settings = parser.parse_object({name: raw[name] for name in sections if raw.get(name)})
    except ArgumentError as error:
        raise explain(error, name) from error
    # as in a fit: encoders with random weights are then the same ones
    seed_everything(settings.seed_everything, verbose=False)
    try:
        with trust.making(bundle):
            built = parser.instantiate(settings)
    except Exception as error:  # constructors of libraries raise what they like
        raise explain_built(error, name) from error
    return built.model, built.data, built.cache


def _on_device(module: Any) -> Any:
    import torch

    return module.to("cuda") if torch.cuda.is_available() else module


def _verify(filled: list[Filled]) -> None:
    """What was there before is read once: a damaged file is told now, not by the fit. LatentError names it."""
    from zoo.data.latent_folder import open_folder

    for one in filled:
        if not one.encoded:
            open_folder(one.folder)


def _print_filled(filled: list[Filled]) -> None:
    from zoo.latents import notes

    header = ("modality", "source", "items", "distinct", "dims", "MB", "items/s", "folder")
    print("\n".join(table(header, [_row(one) for one in filled])))
    for one in filled:
        for note in notes(one):
            print(f"note: {note}")


def _row(one: Filled) -> tuple[str, ...]:
    manifest = one.manifest
    return (
        manifest.modality,
        manifest.source,
        f"{one.asked:,}",
        f"{manifest.rows:,}",
        str(manifest.dim),
        f"{manifest.bytes / 1e6:,.1f}",
        f"{one.encoded / one.seconds:,.0f}" if one.encoded else "cached before",
        str(one.folder),
    )


# ---- what is kept ----------------------------------------------------------------------------------------------------


def _print_list(root: Path) -> None:
    from zoo.data.latent_files import LatentError
    from zoo.data.latent_folder import MANIFEST, folders_in, read_manifest

    rows = []
    for folder in folders_in(root):
        place = folder.relative_to(root).as_posix()
        try:
            one = read_manifest(folder)
            facts = (one.modality, one.source, f"{one.rows:,}", str(one.dim), one.dtype)
        except LatentError:
            state = "damaged" if (folder / MANIFEST).is_file() else "unfinished"
            facts = (place.partition("-")[0], "", state, "", "")
        rows.append((*facts, f"{_bytes_in(folder) / 1e6:,.1f}", place))
    print(f"latents in {root}:")
    print("\n".join(table(("modality", "source", "rows", "dims", "dtype", "MB", "folder"), rows)))


def _remove(wanted: str, root: Path) -> None:
    """Delete the folder of a list, of an encoder, or all; never anything outside `root`, and nothing but latents.

    Raises:
        ZooError: no such latents, a link, or files of somebody else among them; then nothing is removed.
    """
    from zoo.data.latent_folder import folders_in

    named = {(root / wanted).resolve(), Path(wanted).expanduser().resolve()}
    chosen = [
        folder for folder in folders_in(root) if wanted == _ALL or {folder.resolve(), folder.parent.resolve()} & named
    ]
    if not chosen and wanted != _ALL:
        raise ZooError(
            f"there are no latents in '{wanted}'; `zoo cache --list` names the folders in {root} (--folder names another)"
        )
    for folder in chosen:
        _check_removable(folder)
    size = sum(map(_bytes_in, chosen))
    try:
        for folder in chosen:
            shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
    except OSError as error:
        raise ZooError(f"{error.filename} can't be removed: {error.strerror}") from error
    print(f"{len(chosen)} folder{'s' * (len(chosen) != 1)} removed, {size / 1e6:,.1f} MB: {root}")


def _check_removable(folder: Path) -> None:
    from zoo.data.latent_folder import foreign_in

    for path in (folder, folder.parent):
        if path.is_symlink():
            raise ZooError(f"{path} is a link, and what it leads to stays; remove the link by hand")
    if foreign := foreign_in(folder):
        raise ZooError(f"{folder} holds more than latents, for example '{foreign[0]}'; move that, or remove it by hand")


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
