"""The bytes of members of tar shards, read from their places."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from zoo.data.tar_index import TarIndex
from zoo.data.text_files import decoded
from zoo.errors import SampleError

OPEN_FILES = 64  # shards that a process keeps open


class ShardFiles:
    """Members of shards, by number of the shard and of the file in it. Each process opens the shards for itself."""

    def __init__(self, indexes: list[TarIndex]) -> None:
        self.indexes = indexes
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"indexes": self.indexes, "_open": OrderedDict(), "_process": 0}

    def forget_names(self) -> None:
        """Free what is not needed to read: which file belongs to which key under which ending."""
        nothing = np.zeros(0, np.int64)
        self.indexes = [replace(index, record=nothing, ending=nothing) for index in self.indexes]

    def read(self, shard: int, file: int, where: str) -> bytes:
        """A file's content. SampleError, beginning with `where`, if the shard is no longer what was indexed."""
        index = self.indexes[shard]
        size, parts = int(index.size[file]), []
        try:
            opened = self._file(shard, where)
            opened.seek(int(index.offset[file]))
            while size and (part := opened.read(size)):  # a raw read may give less than it was asked for
                parts.append(part)
                size -= len(part)
        except OSError as error:
            raise SampleError(f"{where} can't be read from {index.path}: {error.strerror or error}") from error
        if size:
            raise SampleError(f"{where} is cut off: {index.path} is shorter than it was when it was indexed")
        return b"".join(parts)

    def read_text(self, shard: int, file: int, where: str) -> str:
        """The same as text."""
        return decoded(self.read(shard, file, where), f"{where}: its text")

    def _file(self, shard: int, where: str) -> BinaryIO:
        if self._process != os.getpid():  # a forked process would share the position in the file with its parent
            self._open, self._process = OrderedDict(), os.getpid()
        if shard not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = self._opened(shard, where)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _opened(self, shard: int, where: str) -> BinaryIO:
        index = self.indexes[shard]
        file = index.path.open("rb", buffering=0)
        about = os.fstat(file.fileno())
        if (about.st_size, about.st_mtime_ns) != (index.length, index.changed):
            file.close()
            raise SampleError(f"{where}: {index.path} was changed since it was indexed; start the run again")
        return file
