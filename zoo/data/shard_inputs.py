"""What `zoo data shard` can read: folders of pictures, tables, tar shards, the packaged emoji."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from zoo.data.pairs import Record, RecordSource, image_name, read_captions, read_picture
from zoo.data.patterns import braces, expand, has_files
from zoo.data.sources.folder import CaptionedImages, Captions
from zoo.data.sources.record_files import check_columns
from zoo.data.text_files import JsonLines, check_unicode
from zoo.errors import SampleError, ZooError
from zoo.files import state_of


class FolderRecords:
    """A folder of pictures, with captions as `ImageFolder` reads them."""

    def __init__(self, path: str, captions: Captions = "file") -> None:
        self.images = CaptionedImages(path, captions)
        self.name, self.left_out = self.images.root.name, self.images.left_out

    def __len__(self) -> int:
        return len(self.images.files)

    def record(self, index: int) -> Record:
        """See `RecordSource`."""
        file = self.images.files[index]
        where = check_unicode(f"{self.name}/{self.images.name(file)}", "the name of a file")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SampleError(f"{where} can't be read: {error.strerror or error}") from error
        return Record(where, content, tuple(self.images.texts(file)))

    def state(self) -> str:
        """See `OnDisk`."""
        texts = [file.with_suffix(".txt") for file in self.images.files] if self.images.captions == "file" else []
        return state_of([*self.images.files, *texts], self.images.root)


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

    def state(self) -> str:
        """See `OnDisk`."""
        from zoo.data.sources.emoji import PACKAGED

        return hashlib.sha256(PACKAGED.read_bytes()).hexdigest()


class JsonPairs:
    """The objects of a JSONL file, with a path to a picture (relative to the file) and a caption or a list of them.

    Raises:
        ZooError: it can't be read, has no rows, or none of its first lines has one of the fields.
    """

    def __init__(self, path: Path, image: str = "image", caption: str = "caption", image_id: str = "") -> None:
        self.lines = JsonLines(path)
        if not len(self.lines):
            raise ZooError(f"there are no rows in {path}")
        check_columns(path, self.lines.names(), [image, caption, *([image_id] if image_id else [])])
        self.path, self.name = path, path.stem
        self.image, self.caption, self.image_id = image, caption, image_id

    def __len__(self) -> int:
        return len(self.lines)

    def record(self, index: int) -> Record:
        """See `RecordSource`."""
        row, where = self.lines[index], f"{self.path} row {index}"
        picture = read_picture(row.get(self.image), self.path.parent, f"{where} ({self.image})")
        captions = read_captions(row.get(self.caption), f"{where} ({self.caption})")
        name = image_name(row.get(self.image_id)) if self.image_id else ""
        return Record(f"{self.name}/{index}", picture, captions, name)

    def state(self) -> str:
        """See `OnDisk`."""
        return state_of([self.path, *self._named()], self.path.parent)

    def _named(self) -> Iterator[Path]:
        for index in range(len(self)):
            try:
                picture = read_picture(self.lines.value(self.image, index), self.path.parent, "")
            except SampleError:  # said when the record is read
                continue
            if isinstance(picture, Path):
                yield picture

    def captions(self) -> Iterator[tuple[str, ...]]:
        """See `zoo.data.curation.Captioned`."""
        for index in range(len(self)):
            try:
                yield read_captions(self.lines[index].get(self.caption), "")
            except SampleError:
                yield ()


def open_records(
    place: str, *, captions: Captions = "file", image: str = "image", caption: str = "", image_id: str = ""
) -> RecordSource:
    """The records of one source.

    Args:
        place: `emoji` or `emoji:SPLIT`, a folder of pictures, Parquet files, a JSONL file, the folder of a saved Hugging
            Face data set, tar shards.
        captions: of a folder of pictures, see `ImageFolder`.
        image: column of a table, or field of JSONL.
        caption: column of a table (default: caption), or what `WebDataset` calls caption (default: txt).
        image_id: column of a table, or field of tar shards.

    Raises:
        ZooError: nothing there, or nothing that can be read.
    """
    from zoo.data.curation import Chosen
    from zoo.data.sources.hf_dataset import is_saved_dataset
    from zoo.data.sources.table import TablePairs
    from zoo.data.sources.webdataset import WebDataset

    name, _, split = place.partition(":")
    if name == "emoji":
        return EmojiRecords(split or "train")
    folder = Path(place).expanduser()
    if folder.suffix.lower() in (".jsonl", ".ndjson"):
        files = [JsonPairs(file, image, caption or "caption", image_id) for file in expand(place, ".jsonl")]
        return files[0] if len(files) == 1 else Chosen(files, range(sum(map(len, files))))
    if is_saved_dataset(folder) or _holds(folder, place, ".parquet"):
        return TablePairs(place, image, caption or "caption", image_id=image_id)
    if _holds(folder, place, ".tar"):
        return WebDataset(place, caption or "txt", image_id=image_id)
    if folder.is_dir():
        return FolderRecords(place, captions)
    raise ZooError(
        f"'{place}' can't be read: give a folder of pictures, .parquet, .jsonl or .tar files, the folder of a saved "
        "Hugging Face data set, or emoji"
    )


def _holds(folder: Path, place: str, ending: str) -> bool:
    """Whether a folder has files with this ending, or a pattern is for such files."""
    if folder.is_dir():
        return has_files(folder, (ending,))
    return braces(place)[0].lower().endswith(ending)
