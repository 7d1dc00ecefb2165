"""Hub repositories: found beside us, in the cache, or fetched; and what to do where none of that works.

The cache is asked first, for branches too: a fetched copy needs no network, and results do not change behind one's back
(`hf download` renews it).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import WeightsError

TIMEOUT = (
    5.0  # seconds that the hub may stay silent, so that a machine without network fails at once instead of hanging
)
_ADDRESS = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@]+))?(?::(?P<file>.+))?")
_SHARD = re.compile(r"(?P<head>.*-)\d+-of-(?P<count>\d{5})(?P<tail>\.\w+)")
_COMMON = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.yaml", "README.md", "LICENSE*"]


@dataclass(frozen=True)
class HubPlace:
    """A repository on the hub, or one file of it (`FILE|FILE`: the first of these that it has)."""

    repo: str
    revision: str
    file: str | None = None

    @staticmethod
    def parse(source: str) -> HubPlace:
        """`hf:ORG/REPO[@REVISION][:FILE]` -> HubPlace. Raises WeightsError for anything else."""
        match = _ADDRESS.fullmatch(source)
        if match is None:
            raise WeightsError(f"'{source}' is no hub address; write hf:ORG/REPO[@REVISION][:FILE]")
        return HubPlace(match["repo"], match["revision"] or "main", match["file"])

    @property
    def files(self) -> list[str]:
        """The files that will do, best first; empty = the whole repository."""
        return self.file.split("|") if self.file else []

    def within(self, folder: Path) -> Path | None:
        """The best of the files that lies in a copy of the repository."""
        return next((folder / file for file in self.files if (folder / file).is_file()), None)


def fetch(source: str, *, name: str, local: Path | None = None, together: Sequence[str] = ()) -> Path:
    """The folder of `hf:ORG/REPO[@REVISION]`, or the file of `hf:ORG/REPO[@REVISION]:FILE`, on this disk.

    Args and errors: see `zoo.weights.fetch_folder`; an empty `name`: the file is no model's weights.
    """
    place = HubPlace.parse(source)
    folder = _beside(place, local)
    if place.file is None:
        return folder or _cached_folder(place) or _download_folder(place, name, together)
    if folder is None:
        return _file(place, name)
    found = place.within(folder)
    if found is None:
        raise WeightsError(f"there is no '{folder / place.files[0]}' (from '{source}')")
    return found


def _file(place: HubPlace, name: str) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    for file in place.files:
        cached = try_to_load_from_cache(place.repo, file, revision=place.revision)
        if isinstance(cached, str):
            return Path(cached)
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set and the file is not in the cache")
        there = _ask(place)
        file = next((file for file in place.files if file in there), place.files[0])
        return Path(hf_hub_download(place.repo, file, revision=place.revision, etag_timeout=TIMEOUT))
    except Exception as error:  # the classes of the hub's http library, which differ between its releases
        raise _unreachable(place, error, name) from error


def _beside(place: HubPlace, local: Path | None) -> Path | None:
    root = local or (Path(os.environ["ZOO_WEIGHTS"]).expanduser() if os.environ.get("ZOO_WEIGHTS") else None)
    if root is None:
        return None
    candidates = (root / place.repo, root / place.repo.partition("/")[2])
    return next((c for c in candidates if c.is_dir()), None)


def _cached_folder(place: HubPlace) -> Path | None:
    """The repository's folder in the hub cache, if all its weights are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(place.repo, revision=place.revision, local_files_only=True, allow_patterns=_COMMON)
        )
    except LocalEntryNotFoundError:
        return None
    return folder if _has_all_weights(folder) else None


def _has_all_weights(folder: Path) -> bool:
    """Whether there are weight files, and all of those that an index or their own names (`-00001-of-00002`) speak of."""
    for ending in ("safetensors", "bin"):
        there = {path.name for path in folder.glob(f"*.{ending}")}
        wanted = {name for index in folder.glob(f"*.{ending}.index.json") for name in shards_of(index)}
        for name in there:
            if match := _SHARD.fullmatch(name):
                width, count = len(match["count"]), int(match["count"])
                wanted |= {
                    f"{match['head']}{i:0{width}}-of-{match['count']}{match['tail']}" for i in range(1, count + 1)
                }
        if there or (wanted and ending == "safetensors"):
            return wanted <= there
    return False


def shards_of(index: Path) -> list[str]:
    """The weight files that an index names. WeightsError: it is damaged."""
    try:
        return sorted({Path(name).name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is damaged ({type(error).__name__}); fetch or copy it again") from error


def _download_folder(place: HubPlace, name: str, together: Sequence[str]) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set and the repository is not in the cache")
        names = _ask(place)
        patterns = _COMMON if any(n.endswith(".safetensors") for n in names) else [*_COMMON, "*.bin"]
        folder = snapshot_download(
            place.repo, revision=place.revision, allow_patterns=patterns, etag_timeout=TIMEOUT, max_workers=4
        )
        return Path(folder)
    except Exception as error:  # the classes of the hub's http library, which differ between its releases
        raise _unreachable(place, error, name, together) from error


def _ask(place: HubPlace) -> list[str]:
    """The repository's file names: one short request that fails fast where there is no network."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(place.repo, revision=place.revision, timeout=TIMEOUT)
    return [s.rfilename for s in info.siblings or []]


def _unreachable(place: HubPlace, error: Exception, name: str, together: Sequence[str] = ()) -> WeightsError:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return WeightsError(f"no space left in {cache} for {place.repo}: free some, or set HF_HOME to another disk")
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return WeightsError(f"{cache} can't be written ({error}): set HF_HOME to a folder that can")
    why = (str(error) or type(error).__name__).splitlines()[0].rstrip(" .")
    wanted = [HubPlace.parse(source) for source in together if source.startswith("hf:")] or [place]
    commands = "".join(
        f"\n       hf download {w.repo}{f' {w.files[0]}' if w.file else ''} --revision {w.revision}" for w in wanted
    )
    ways = [
        f"on a connected machine run{commands}\n"
        f"     and copy its HF_HOME (~/.cache/huggingface) here, to {cache.parent}\n"
        "     (private or gated repositories: accept their terms on the hub and run  hf auth login  first)",
        f"set ZOO_WEIGHTS=FOLDER, a copy being in FOLDER/{place.repo}"
        if not name
        else f'give a local copy: set ZOO_WEIGHTS=FOLDER, or in Python zoo.load("{name}", weights="FOLDER");\n'
        f"     a copy of one repository, or all of them as FOLDER/{place.repo} and so on",
    ]
    if name:
        ways.append(f'random weights, to try the architecture in Python: zoo.load("{name}", weights=False)')
    return WeightsError(
        f"{place.repo} at revision {place.revision} can't be fetched: {why}. "
        f"{'Three' if ways[2:] else 'Two'} ways out:\n" + "\n".join(f"  {i}. {way}" for i, way in enumerate(ways, 1))
    )
