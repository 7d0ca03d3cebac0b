"""Decoded images, kept on disk or in memory: a JPEG is decoded once, not once an epoch. Moves no number.

Decoding is a third to a half of the cost of a training sample; reading from here takes a fifth of its time from disk,
a tenth or less from memory (bench/data.py). That pays where loading holds training up: many epochs, a fast GPU, few
cores. It takes 3 bytes a pixel, about ten times what the JPEG files take.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import mmap
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL

from wsss.artifacts import write_atomically
from wsss.data.base import ImageSet
from wsss.errors import ConfigError

log = logging.getLogger(__name__)

Kind = Literal["none", "memory", "disk"]

VERSION = 2
"""Raise it when ``read_image`` gives other pixels for the same file: what was kept before is then not looked at."""

MB = 1_000_000
HEADER = 128
"""Bytes that a ``.npy`` file has before its values."""


def cached(data: ImageSet, kind: Kind, *, folder: Path) -> ImageSet:
    """The same set, whose ``image`` decodes a file once and then reads what was kept.

    Asked again for the same set it returns the same object, so that the stages of one run share what is in memory.
    Masks are not kept: indexed PNG files decode in less than half the time of a photograph.

    Args:
        data: the set; it stays as it is.
        kind: ``none`` returns ``data``; ``disk`` see ``DiskImages``; ``memory`` see ``MemoryImages``.
        folder: where ``disk`` keeps images; made where it is missing, and may be deleted when no run uses it.

    Raises:
        ConfigError: the disk has no room for the images, or ``kind`` is none of these.
        DataError: an image cannot be read.
    """
    if kind == "none":
        return data
    if kind not in ("memory", "disk"):
        raise ConfigError(f"cache={kind} must be none, memory or disk")
    return _kept(data, kind, folder)


@lru_cache(maxsize=1)
def _kept(data: ImageSet, kind: Kind, folder: Path) -> ImageSet:
    kept = copy.copy(data)
    kept.image = DiskImages(data, folder) if kind == "disk" else MemoryImages(data)  # type: ignore[method-assign]
    return kept


class DiskImages:
    """Reads images of ``data`` from one ``.npy`` file each, written when an image is first asked for.

    A file stands for the path, size and time of change of its image, for the set's ``white``, for the version of the
    decoder, and for nothing else: an image that changes is decoded again, and what was kept of it before is removed.
    Processes and runs share the files. Files are read, not mapped: a mapped one costs more in page faults than the copy
    it saves.

    Raises:
        ConfigError: what is still to be written is more than the disk has left.
        DataError: an image cannot be read.
    """

    def __init__(self, data: ImageSet, folder: Path) -> None:
        self.data = data
        self.folder = folder.absolute() / f"v{VERSION}-pillow{PIL.__version__}"
        ids = _all_ids(data)
        missing = [id for id in ids if not self._is_kept(id)]
        needed = sum(height * width * 3 + HEADER for height, width in _shapes(data, missing))
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ConfigError(
                f"cache=disk needs {_mb(needed)} MB for {len(missing)} decoded images in {self.folder}, and that disk "
                f"has {_mb(free)} MB left. Make room, set paths.artifacts to another disk, or use cache=none"
            )
        log.info(
            "cache: %d of %d images are decoded in %s; the others will take %d MB (free: %d MB)",
            len(ids) - len(missing), len(ids), self.folder, _mb(needed), _mb(free),
        )  # fmt: skip

    def path(self, id: str) -> Path:
        """Where the image is or will be kept. Raises OSError where the image itself is gone."""
        name, stamp = self._key(id)
        return self.folder / name[:2] / f"{name}-{stamp}.npy"

    def _is_kept(self, id: str) -> bool:
        try:
            return self.path(id).is_file()
        except OSError:
            return False

    def _key(self, id: str) -> tuple[str, str]:
        path = self.data.image_path(id)
        name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:24]
        scale = () if self.data.white is None else (f"white{self.data.white}",)
        return name, "-".join(map(str, (*_stamp(path), *scale)))

    def __call__(self, id: str) -> np.ndarray:
        """The image as ``(H, W, 3)`` uint8 RGB; the caller may write into it. See ``read_image``."""
        try:
            path = self.path(id)
        except OSError:  # the image is gone: its reader has the words for it
            return self.data.image(id)
        try:
            image = np.load(path, allow_pickle=False)
            if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
                return image
        except (OSError, ValueError, EOFError):  # not there, cut off, or something else
            pass
        image = self.data.image(id)
        self._keep(image, path)
        return image

    def _keep(self, image: np.ndarray, path: Path) -> None:
        def write(partial: Path) -> None:
            with partial.open("wb") as file:  # an open file: numpy would add .npy to a name
                np.save(file, image, allow_pickle=False)

        try:
            write_atomically(path, write)
            for other in path.parent.glob(f"{path.name.split('-')[0]}-*.npy"):
                if other != path:
                    other.unlink(missing_ok=True)
        except OSError as error:  # costs time, not the run
            log.warning("cache: %s cannot be written (%s); its image will be decoded each time", path, error)


class MemoryImages:
    """Keeps the decoded images of ``data`` in memory that this process shares with those forked from it.

    Room is set aside for as many images as fit into ``limit``, in the order of the splits, and used as images are first
    asked for; the others are decoded each time. Loader processes that are forked, as on Linux, fill and read the same
    memory; those that are started otherwise have each their own. A file that has changed since is decoded each time.

    Args:
        data: the set.
        limit: bytes; None takes half of the memory that is free.

    Raises:
        DataError: an image cannot be read.
    """

    def __init__(self, data: ImageSet, *, limit: int | None = None) -> None:
        self.data = data
        free = _free_memory()
        limit = free // 2 if limit is None else limit
        self._places: dict[str, tuple[int, int, tuple[int, int], tuple[int, int]]] = {}
        ids, size = _all_ids(data), 0
        for number, (id, shape) in enumerate(zip(ids, _shapes(data, ids), strict=True)):
            taken = shape[0] * shape[1] * 3
            if size + taken <= limit:
                self._places[id] = number, size, shape, _stamp(data.image_path(id))
                size += taken
        self._count, self._size = len(ids), size
        self._allocate()
        log.info(
            "cache: %d of %d decoded images will be kept in memory, %d MB in all (free: %d MB)",
            len(self._places), len(ids), _mb(size), _mb(free),
        )  # fmt: skip

    def _allocate(self) -> None:
        # Anonymous and shared; pages are taken as they are first written.
        self._pixels = np.frombuffer(mmap.mmap(-1, max(1, self._size)), dtype=np.uint8)
        self._filled = np.frombuffer(mmap.mmap(-1, max(1, self._count)), dtype=np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_pixels", "_filled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()

    def __call__(self, id: str) -> np.ndarray:
        """The image as ``(H, W, 3)`` uint8 RGB; the caller may write into it. See ``read_image``."""
        if id not in self._places:
            return self.data.image(id)
        number, start, shape, stamp = self._places[id]
        try:
            unchanged = _stamp(self.data.image_path(id)) == stamp
        except OSError:
            unchanged = False
        if not unchanged:
            return self.data.image(id)
        place = self._pixels[start : start + shape[0] * shape[1] * 3].reshape(*shape, 3)
        if self._filled[number]:
            return place.copy()
        image = self.data.image(id)
        if image.shape == place.shape:
            place[:] = image  # another process may do the same at the same time: with the same pixels
            self._filled[number] = 1
        return image


def _all_ids(data: ImageSet) -> list[str]:
    """The images of both splits, each once."""
    return list(dict.fromkeys((*data.ids(data.train), *data.ids(data.val))))


def _shapes(data: ImageSet, ids: Iterable[str]) -> list[tuple[int, int]]:
    """Height and width of images, from their headers."""
    with ThreadPoolExecutor() as pool:
        return [(height, width) for width, height in pool.map(data.image_size, ids)]


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew: its size and its time."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _mb(size: int) -> int:
    return -(-size // MB)


def _free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of the control group that it runs in."""
    found = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        values = _read(group / most).strip(), _read(group / used).strip()
        if all(value.isdigit() for value in values):
            found.append(max(0, int(values[0]) - int(values[1])))
    if found:
        return min(found)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 2 * 1000 * MB


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
