"""The artifact store: one directory per stage and fingerprint, and every on-disk format the stages exchange.

``<root>/<stage>/<fingerprint>/manifest.json`` is written last, by rename: its presence means that the artifact is
complete. Every file is written under a temporary name first. Nothing is pickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor, nn

from wsss.errors import ConfigError, CorruptArtifact, LockTimeout
from wsss.palette import voc_palette

log = logging.getLogger(__name__)

FINGERPRINT_DIGITS = 12
PARTIAL = ".partial"
UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What numpy raises at an npz file that is missing, cut off or something else."""


def fingerprint(facts: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that stand for ``facts`` (JSON types). Whole floats count as integers: 1.0 is 1.

    >>> fingerprint({"a": 1.0, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    True
    """
    text = json.dumps(_canonical(facts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it. A killed process leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, readable by people, atomically. Refuses NaN: JSON has none."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # an open file: numpy would add .npz to a name
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_atomically(path, write)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CorruptArtifact: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}). {_redo(path.parent)}") from error


class Seeds(NamedTuple):
    """The seeds of one image.

    Attributes:
        class_ids: ``(K,)`` uint8, the image's tags in 1..C.
        scores: ``(K, h, w)`` float32 in [0,1], one value per stride.
        size: ``(H, W)`` of the image.
    """

    class_ids: np.ndarray
    scores: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Artifact:
    """The result of one stage for one fingerprint; it may be absent, in the making, or complete."""

    root: Path
    stage: str
    fingerprint: str

    @property
    def directory(self) -> Path:
        """Where everything of this artifact lies."""
        return self.root / self.stage / self.fingerprint

    @property
    def complete(self) -> bool:
        """Whether the manifest is there."""
        return (self.directory / "manifest.json").is_file()

    @property
    def checkpoint(self) -> Path:
        """Training state to resume from."""
        return self.directory / "last.ckpt"

    @property
    def manifest(self) -> dict[str, Any]:
        """What was run, on what, and when."""
        return read_json(self.directory / "manifest.json")

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers of this stage; fractions in [0,1]."""
        return read_json(self.directory / "metrics.json")

    def prepare(self) -> None:
        """Make the directory and drop what a killed process left half written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for partial in self.directory.rglob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the artifact. The manifest goes first, so that no half-deleted one looks complete."""
        (self.directory / "manifest.json").unlink(missing_ok=True)
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def set_aside(self) -> None:
        """Put a finished artifact out of the way of a new one; ``restore`` or ``drop_old`` follows."""
        if not self.complete:
            self.restore()  # what a run that was killed had set aside is the only finished one
        self.drop_old()
        if self.complete:
            self.directory.rename(self._old)
        elif self.directory.exists():
            shutil.rmtree(self.directory)

    def restore(self) -> None:
        """Bring back what was set aside, in place of what was made since."""
        if self._old.is_dir():
            self.remove()
            self._old.rename(self.directory)

    def drop_old(self) -> None:
        """Delete what was set aside."""
        if self._old.is_dir():
            shutil.rmtree(self._old)

    @property
    def _old(self) -> Path:
        return self.directory.with_name(f"{self.fingerprint}.old")

    def publish(self, manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write the metrics, then the manifest: from now on the artifact is complete."""
        write_json(self.directory / "metrics.json", metrics)
        write_json(self.directory / "manifest.json", manifest)
        self._seconds_path.unlink(missing_ok=True)

    @property
    def seconds(self) -> list[float]:
        """Wall times of the shards, and of the runs that were interrupted, that have worked on it so far."""
        if not self._seconds_path.is_file():
            return []
        lines = self._seconds_path.read_text(encoding="utf-8").splitlines()
        return [float(line) for line in lines if re.fullmatch(r"\d+\.\d", line)]  # a killed process ends anywhere

    def add_seconds(self, seconds: float) -> None:
        """Keep the wall time of a run that leaves the artifact unfinished. Shards may do so at the same time."""
        with self._seconds_path.open("a", encoding="utf-8") as file:
            file.write(f"{seconds:.1f}\n")

    @property
    def _seconds_path(self) -> Path:
        return self.directory / "seconds.txt"

    # --- weights -----------------------------------------------------------------------------------------------

    @property
    def has_weights(self) -> bool:
        """Whether a network has been kept."""
        return (self.directory / "weights.safetensors").is_file()

    def write_weights(self, network: nn.Module) -> None:
        """Keep the parameters and buffers of a network."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        write_atomically(self.directory / "weights.safetensors", lambda path: save_tensors(state, path))

    def read_weights(self, network: nn.Module) -> None:
        """Load the kept weights into ``network``.

        Raises:
            CorruptArtifact: the file is unreadable or belongs to another network.
        """
        path = self.directory / "weights.safetensors"
        try:
            network.load_state_dict(load_tensors(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CorruptArtifact(f"{path} cannot be loaded ({error}). {_redo(self.directory)}") from error

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep named tensors, for example prototypes, as ``<name>.safetensors``."""
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        write_atomically(self.directory / f"{name}.safetensors", lambda path: save_tensors(state, path))

    def read_tensors(self, name: str) -> dict[str, Tensor] | None:
        """Named tensors, or None where they were not written.

        Raises:
            CorruptArtifact: the file is there but unreadable.
        """
        path = self.directory / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            return load_tensors(path)
        except (OSError, SafetensorError) as error:
            raise CorruptArtifact(f"{path} cannot be loaded ({error}). {_redo(self.directory)}") from error

    # --- seeds -------------------------------------------------------------------------------------------------

    def has_seeds(self, id: str) -> bool:
        """Whether the seeds of an image are there."""
        return self._seeds_path(id).is_file()

    def write_seeds(self, id: str, seeds: Seeds) -> None:
        """Keep the seeds of one image: half precision, compressed."""
        path = self._seeds_path(id)
        arrays: dict[str, np.ndarray] = {
            "class_ids": np.asarray(seeds.class_ids, dtype=np.uint8),
            "scores": np.asarray(seeds.scores, dtype=np.float16),
            "size": np.asarray(seeds.size, dtype=np.int32),
        }
        _write_npz(path, **arrays)

    def read_seeds(self, id: str) -> Seeds:
        """The seeds of one image.

        Raises:
            CorruptArtifact: the file is missing or broken, or its arrays do not belong together.
        """
        path = self._seeds_path(id)
        try:
            with np.load(path, allow_pickle=False) as file:
                class_ids, scores, size = file["class_ids"], file["scores"], file["size"]
        except UNREADABLE as error:
            raise CorruptArtifact(f"{path} cannot be read ({error}). {_redo(self.directory)}") from error
        scores = scores.astype(np.float32)
        if scores.ndim != 3 or class_ids.shape != scores.shape[:1] or size.shape != (2,):
            raise CorruptArtifact(
                f"{path} holds class_ids of shape {class_ids.shape}, scores of shape {scores.shape}, a size of shape "
                f"{size.shape}; they do not belong together. {_redo(self.directory)}"
            )
        if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
            raise CorruptArtifact(f"{path} holds scores outside [0,1] or NaN. {_redo(self.directory)}")
        return Seeds(class_ids, scores, (int(size[0]), int(size[1])))

    def _seeds_path(self, id: str) -> Path:
        return self.directory / "maps" / f"{id}.npz"

    # --- masks -------------------------------------------------------------------------------------------------

    def has_mask(self, id: str, *, folder: str = "masks") -> bool:
        """Whether the mask of an image is there."""
        return (self.directory / folder / f"{id}.png").is_file()

    def write_mask(self, id: str, labels: np.ndarray, *, folder: str = "masks") -> None:
        """Keep ``(H, W)`` uint8 labels as an indexed PNG with the VOC palette."""
        image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
        image.putpalette(voc_palette().tobytes())
        write_atomically(self.directory / folder / f"{id}.png", lambda path: image.save(path, format="PNG"))

    def read_mask(self, id: str, *, folder: str = "masks") -> np.ndarray:
        """Labels of one image, ``(H, W)`` uint8.

        Raises:
            CorruptArtifact: the file is missing or broken.
        """
        path = self.directory / folder / f"{id}.png"
        try:
            with Image.open(path) as image:
                return np.array(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise CorruptArtifact(f"{path} cannot be read ({error}). {_redo(self.directory)}") from error

    # --- boundaries --------------------------------------------------------------------------------------------

    def has_boundaries(self, id: str) -> bool:
        """Whether the class boundaries of an image are there."""
        return self._boundaries_path(id).is_file()

    def write_boundaries(self, id: str, boundaries: np.ndarray) -> None:
        """Keep ``(h, w)`` class boundaries in [0, 1]: half precision, compressed."""
        _write_npz(self._boundaries_path(id), boundaries=boundaries.astype(np.float16))

    def read_boundaries(self, id: str) -> np.ndarray:
        """Class boundaries of one image, ``(h, w)`` float32 in [0, 1].

        Raises:
            CorruptArtifact: the file is missing or broken.
        """
        path = self._boundaries_path(id)
        try:
            with np.load(path, allow_pickle=False) as file:
                boundaries = file["boundaries"].astype(np.float32)
        except UNREADABLE as error:
            raise CorruptArtifact(f"{path} cannot be read ({error}). {_redo(self.directory)}") from error
        if boundaries.ndim != 2 or not (boundaries.min() >= 0 and boundaries.max() <= 1):
            raise CorruptArtifact(f"{path} does not hold a map (h, w) in [0,1]. {_redo(self.directory)}")
        return boundaries

    def _boundaries_path(self, id: str) -> Path:
        return self.directory / "boundaries" / f"{id}.npz"

    # --- lock --------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(
        self, *, timeout: float | None = None, poll: float = 1.0, shared: bool = False, part: str = ""
    ) -> Iterator[None]:
        """Hold the one right to work on this artifact; wait while another process has it.

        The kernel holds the lock for a living process and drops it with the process, so a lock file left by a killed
        one blocks nobody; that it was left is logged. The file says who works.

        Args:
            timeout: seconds to wait; None waits for ever.
            poll: seconds between looks.
            shared: together with others that hold it so, each of which does images of its own.
            part: name of a part of the artifact that has a lock of its own.

        Raises:
            LockTimeout: another process still works on it after ``timeout``.
            ConfigError: the file system has no locks.
        """
        path = self.root / self.stage / f"{self.fingerprint}{part and '.' + part}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8") as file:
            self._acquire(file.fileno(), path, timeout, poll, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if shared:
                yield
                return
            left = path.read_text(encoding="utf-8").strip()
            if left:
                log.warning(
                    "%s %s: taking over from %s, which ended before it was done", self.stage, self.fingerprint, left
                )
            file.truncate(0)
            file.write(
                f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            )
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def _acquire(self, descriptor: int, path: Path, timeout: float | None, poll: float, kind: int) -> None:
        started, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = path.read_text(encoding="utf-8").strip() or "another process"
                remedy = f"If that process no longer exists (another machine, a network disk), delete {path}"
                if timeout is not None and time.monotonic() - started >= timeout:
                    raise LockTimeout(f"{holder} works on {self.directory}. {remedy}") from None
                if not told:
                    log.warning("waiting: %s works on %s %s. %s", holder, self.stage, self.fingerprint, remedy)
                    told = True
                time.sleep(poll)
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be locked ({error.strerror}): this file system has no file locks, and without them "
                    f"two processes could write the same artifact at once. Put the store on one that has them, with "
                    f"paths.artifacts=DIRECTORY, or have it mounted with locks (NFS without nolock, Lustre with flock)"
                ) from error


class SuperpixelStore:
    """Superpixels of images, computed once and kept for every later run that asks for the same.

    A file stands for the pixels of one image, the settings and the library's version; nothing refers to it, so that
    the folder may be deleted at any time.

    Args:
        root: the artifact store.
    """

    VERSION = 1
    """Raise it when our part of making superpixels changes what comes out for the same settings."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "superpixels"

    def __call__(self, image: np.ndarray, settings: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """``(H, W)`` int64 superpixels of ``(H, W, 3)`` uint8 pixels: as kept, or made by ``make`` and kept."""
        pixels = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
        made_by = {"settings": settings, "version": self.VERSION, "scikit-image": version("scikit-image")}
        name = f"{pixels[:24]}-{image.shape[0]}x{image.shape[1]}.npz"
        path = self.directory / fingerprint(made_by) / pixels[:2] / name  # millions do not fit into one folder
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    kept = file["segments"].astype(np.int64)
                if kept.shape == image.shape[:2]:
                    return kept
            except UNREADABLE:
                pass
            log.warning("%s cannot be read; the superpixels are computed again", path)
        segments = make()
        _write_npz(path, segments=segments.astype(np.uint16 if segments.max() < 65536 else np.uint32))
        return segments


def _redo(directory: Path) -> str:
    """The remedy for a broken file of the artifact in ``directory``."""
    return f"Delete {directory} and run its stage again"


__all__ = [
    "Artifact",
    "Seeds",
    "SuperpixelStore",
    "fingerprint",
    "read_json",
    "write_atomically",
    "write_json",
    "write_text",
]
