"""What files take on disk; a file with several links counts once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """The files below some directories.

    Attributes:
        inodes: (device, inode) -> bytes on disk, links that the file has, links that were found.
        newest: seconds since 1970 of the last change; 0 where there is nothing.
    """

    inodes: Mapping[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)
    newest: float = 0.0

    @property
    def size(self) -> int:
        """Bytes on disk; a file with several links counts once."""
        return sum(size for size, _, _ in self.inodes.values())

    @property
    def freed(self) -> int:
        """Bytes that come free when these directories go: those of files that have no link elsewhere."""
        return sum(size for size, links, found in self.inodes.values() if found >= links)


def usage(path: Path) -> Usage:
    """The files below ``path``, or that file itself. Symlinks are not followed; what vanishes meanwhile is left out."""
    inodes: dict[tuple[int, int], tuple[int, int, int]] = {}
    newest = 0.0
    for status in _walk(path):
        newest = max(newest, status.st_mtime)
        if not stat.S_ISDIR(status.st_mode):
            at = (status.st_dev, status.st_ino)
            found = inodes.get(at, (0, 0, 0))[2]
            inodes[at] = (status.st_blocks * 512, status.st_nlink, found + 1)
    return Usage(inodes, newest)


def _walk(path: Path | os.DirEntry[str]) -> Iterator[os.stat_result]:
    try:
        status = os.lstat(path)
        yield status
        if stat.S_ISDIR(status.st_mode):
            for entry in os.scandir(path):
                yield from _walk(entry)
    except FileNotFoundError:
        return


def together(parts: Iterable[Usage]) -> Usage:
    """The files of all parts; one that several hold counts once."""
    inodes: dict[tuple[int, int], tuple[int, int, int]] = {}
    newest = 0.0
    for part in parts:
        newest = max(newest, part.newest)
        for at, (size, links, found) in part.inodes.items():
            inodes[at] = (size, links, found + inodes.get(at, (0, 0, 0))[2])
    return Usage(inodes, newest)
