"""Where a file named in a recipe lies: inside the package, on this disk, or in a hub repository."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import ZooError

PACKAGED = Path(__file__).parent / "data" / "packaged"


def locate(source: str) -> Path:
    """`packaged:FILE`, `hf:ORG/REPO[@REVISION]:FILE` or a path -> the file on this disk.

    Raises:
        ZooError: no such file; WeightsError (a ZooError): the hub can't be reached, with the ways out.
    """
    kind, _, rest = source.partition(":")
    if kind == "hf":
        from zoo.weights import fetch_file

        return fetch_file(source)
    path = PACKAGED / rest if kind == "packaged" else Path(source).expanduser()
    if not path.is_file():
        raise ZooError(f"there is no file '{path}' (from '{source}')")
    return path
