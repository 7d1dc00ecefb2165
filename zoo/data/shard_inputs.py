"""What `zoo data shard` can read: folders of pictures, tables, tar shards, the packaged emoji."""

from __future__ import annotations

from pathlib import Path

from zoo.data.pairs import Record, RecordSource
from zoo.data.patterns import braces
from zoo.data.sources.folder import CaptionedImages, Captions
from zoo.errors import SampleError, ZooError


class FolderRecords:
    """A folder of pictures, with captions as `ImageFolder` reads them."""

    def __init__(self, path: str, captions: Captions = "file") -> None:
        self.images = CaptionedImages(path, captions)
        self.name = self.images.root.name

    def __len__(self) -> int:
        return len(self.images.files)

    def record(self, index: int) -> Record:
        """See `RecordSource`."""
        file = self.images.files[index]
        where = f"{self.name}/{self.images.name(file)}"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SampleError(f"{where} can't be read: {error.strerror or error}") from error
        return Record(where, content, tuple(self.images.texts(file)))


class EmojiRecords:
    """The drawings of the packaged emoji, each with its English name."""

    def __init__(self, split: str = "train") -> None:
        from zoo.data.sources.emoji import STYLES, read_emoji

        self.drawings = [(one, style) for one in read_emoji(split) for style in STYLES]
        self.name = f"emoji-{split}"

    def __len__(self) -> int:
        return len(self.drawings)

    def record(self, index: int) -> Record:
        """See `RecordSource`."""
        emoji, style = self.drawings[index]
        return Record(f"{self.name}/{emoji.id}/{style}", emoji.drawings[style], (emoji.names["en"],), emoji.id)


def open_records(
    place: str, *, captions: Captions = "file", image: str = "image", caption: str = "", image_id: str = ""
) -> RecordSource:
    """The records of one source.

    Args:
        place: `emoji` or `emoji:SPLIT`, a folder of pictures, Parquet files, the folder of a saved Hugging Face data set,
            tar shards.
        captions: of a folder of pictures, see `ImageFolder`.
        image: column of a table.
        caption: column of a table (default: caption), or what `WebDataset` calls caption (default: txt).
        image_id: column of a table, or field of tar shards.

    Raises:
        ZooError: nothing there, or nothing that can be read.
    """
    from zoo.data.sources.hf_dataset import is_saved_dataset
    from zoo.data.sources.table import TablePairs
    from zoo.data.sources.webdataset import WebDataset

    name, _, split = place.partition(":")
    if name == "emoji":
        return EmojiRecords(split or "train")
    folder = Path(place).expanduser()
    if is_saved_dataset(folder) or _holds(folder, place, ".parquet"):
        return TablePairs(place, image, caption or "caption", image_id=image_id)
    if _holds(folder, place, ".tar"):
        return WebDataset(place, caption or "txt", image_id=image_id)
    if folder.is_dir():
        return FolderRecords(place, captions)
    raise ZooError(
        f"'{place}' can't be read: give a folder of pictures, .parquet or .tar files, the folder of a saved Hugging Face "
        "data set, or emoji"
    )


def _holds(folder: Path, place: str, ending: str) -> bool:
    """Whether a folder has files with this ending, or a pattern is for such files."""
    if folder.is_dir():
        return any(file.suffix == ending for file in folder.iterdir())
    return braces(place)[0].endswith(ending)
