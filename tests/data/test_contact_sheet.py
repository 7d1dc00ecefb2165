"""A contact sheet goes where it should, or says why it can't."""

from __future__ import annotations

from pathlib import Path

import pytest
from pair_files import picture
from PIL import Image

from zoo.data.contact_sheet import Cell, contact_sheet, save_picture
from zoo.errors import ZooError


def test_cells_stand_row_by_row(tmp_path: Path) -> None:
    """The colours of the pictures are found where their cells are."""
    cells = [Cell((picture(seed),), f"number {seed}") for seed in (1, 2, 3)]
    save_picture(contact_sheet(cells, columns=2, size=32), tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 16)}
    assert {(seed * 37 % 256, seed * 101 % 256, seed % 256) for seed in (1, 2, 3)} <= colours


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    sheet = contact_sheet([Cell((picture(1),), "one")])
    with pytest.raises(ZooError, match=r"file/sub/sheet\.png can't be written"):
        save_picture(sheet, tmp_path / "file" / "sub" / "sheet.png")
    with pytest.raises(ZooError, match=r"'\.nothing' is not a picture format; end the name in \.png"):
        save_picture(sheet, tmp_path / "sheet.nothing")


def test_nothing_to_draw() -> None:
    with pytest.raises(ZooError, match="at least one picture"):
        contact_sheet([])
