"""What every data set offers, whatever its layout on disk."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from wsss.data.images import WHITE, Depth, deep_range, image_size, read_image, stored_size
from wsss.errors import ConfigError, DataError
from wsss.types import IGNORE, Sample


def existing_root(root: str | Path, name: str, *, remedy: str = "") -> Path:
    """The folder of a data set; ``remedy`` is what else the message may advise.

    Raises:
        DataError: there is no such folder.
    """
    if not Path(root).is_dir():
        raise DataError(
            f"no data set at {Path(root).absolute()}. Set its folder with data.root=/path/to/{name}{remedy}"
        )
    return Path(root)


TRAINING = ("train", "training", "learn", "fit")
VALIDATION = ("val", "valid", "validation", "test", "testing", "dev", "eval")
"""What splits are called elsewhere, in any case; the first that is there is meant."""


def split_hint(there: Iterable[str], *, train: str, val: str) -> str:
    """How to choose splits that are called otherwise, as the end of a message.

    Args:
        there: the splits that the set has.
        train: the training split that was asked for.
        val: likewise the validation split.

    >>> split_hint(["Train", "validation"], train="train", val="val")
    'Choose them with data.train=Train data.val=validation'
    >>> split_hint(["train", "fold 2"], train="train", val="val")
    "Choose of those there with data.val=..., or add the split 'val'"
    """
    names = list(there)
    folded = {name.lower().rstrip("0123456789"): name for name in reversed(names)}  # train2017
    wanted = (("train", train, TRAINING), ("val", val, VALIDATION))
    missing = [(key, name, words) for key, name, words in wanted if name not in names]
    found = {key: next((folded[word] for word in words if word in folded), None) for key, _, words in missing}
    if missing and all(found.values()):
        which = "them" if len(found) > 1 else "it"
        return f"Choose {which} with {' '.join(f'data.{key}={shlex.quote(str(name))}' for key, name in found.items())}"
    options = " ".join(f"data.{key}=..." for key, _, _ in missing)
    absent = " and ".join(repr(name) for _, name, _ in missing)
    return f"Choose of those there with {options}, or add the split{'s' * (len(missing) > 1)} {absent}"


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold something, stripped; the byte-order mark of Windows editors is dropped.

    Raises:
        DataError: the file is missing or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}). Save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


class ImageSet(ABC):
    """Images with image-level tags in a training and a validation split, and true masks where there are any.

    A layout reads its lists, hands them to this constructor, which checks what all sets share, and says how the tags
    and the mask of one image are read: ``_read_tags``, ``_has_mask`` and ``_read_mask``. These may be called from
    several threads and, after pickling, from several processes; ``_has_mask`` is already called by the constructor, so
    what it looks at is set before ``super().__init__``.

    Args:
        root: folder of the set.
        name: how reports call it.
        train: name of the split that stages 1-4 learn from.
        val: name of the split that they are measured on.
        classes: class names in the order of their ids 1..C, without background.
        images: the file of every image by its id. An id names all that is derived from the image: a plain name or a
            relative path with ``/``.
        splits: the ids of ``train`` and of ``val``, in order.
        tag_source: where the tags come from, for reports.
        classes_from: file that lists the classes, for messages.
        splits_from: file that lists each split, for messages.
        white: the grey value in 1..65535 that becomes 255 in images of more than 8 bits, such as 4095 for 12 bits; None
            takes 65535. See ``read_image``.

    Raises:
        ConfigError: ``white`` is out of its range.
        DataError: no class, a class twice, background as a class or more than 254 classes; a split without images,
            with an id twice or with an id that has no image; a split of which only a part has masks.
    """

    tags_in_memory = False
    """Whether ``_read_tags`` reads no file: threads then only cost time and memory."""

    def __init__(
        self,
        *,
        root: str | Path,
        name: str,
        train: str,
        val: str,
        classes: Sequence[str],
        images: Mapping[str, Path],
        splits: Mapping[str, Sequence[str]],
        tag_source: str,
        classes_from: Path | None = None,
        splits_from: Mapping[str, Path] | None = None,
        white: int | None = None,
    ) -> None:
        if white is not None and not 1 <= white <= WHITE:
            raise ConfigError(
                f"data.white={white} must be the grey value that becomes 255, from 1 to {WHITE} (4095 for 12 bits)"
            )
        self.root = Path(root)
        self.name = name
        self.train = train
        self.val = val
        self.tag_source = tag_source
        self.white = white
        self.classes = tuple(classes)
        self._images = dict(images)
        self._tags: dict[str, tuple[int, ...]] = {}
        _check_classes(self.classes, str(classes_from or f"the set {name}"))
        self._ids = {split: tuple(splits[split]) for split in (train, val)}
        for split, ids in self._ids.items():
            self._check_split(ids, str((splits_from or {}).get(split) or f"the split {split} of {name}"))
        self._masked = {split: self._find_masks(split) for split in self._ids}

    # --- what a layout says --------------------------------------------------------------------------------------

    @abstractmethod
    def _read_tags(self, id: str) -> tuple[int, ...]:
        """The tags of one image as sorted class ids in 1..C; called once an image. Raises DataError."""

    @abstractmethod
    def _has_mask(self, id: str) -> bool:
        """Whether one image has a true mask; called for every image of both splits, so it should be quick."""

    @abstractmethod
    def _read_mask(self, id: str) -> np.ndarray:
        """The true mask of one image as ``(H, W)`` uint8 labels; ``truth`` checks values and size. Raises DataError."""

    def _mask_origin(self, id: str) -> str:
        """Where the mask of one image lies or would lie, for messages."""
        return f"of {id}"

    def _image_origin(self, id: str) -> str:
        """Where an image that is missing would lie, for messages."""
        return id

    # --- what a data set offers ----------------------------------------------------------------------------------

    def ids(self, split: str) -> tuple[str, ...]:
        """The image ids of ``train`` or ``val`` in their order."""
        return self._ids[split]

    def has_masks(self, split: str) -> bool:
        """Whether the images of ``train`` or ``val`` have true masks: all of them, or none."""
        return self._masked[split]

    def class_ids(self, id: str) -> tuple[int, ...]:
        """The image-level tags of one image: sorted class ids in 1..C, empty for an image of background alone."""
        if id not in self._tags:
            self._tags[id] = self._read_tags(id)
        return self._tags[id]

    def tags(self, split: str) -> dict[str, tuple[int, ...]]:
        """The tags of every image of a split, read in parallel and kept."""
        if self.tags_in_memory:
            return {id: self.class_ids(id) for id in self.ids(split)}
        with ThreadPoolExecutor() as pool:
            return dict(zip(self.ids(split), pool.map(self.class_ids, self.ids(split)), strict=True))

    def image_path(self, id: str) -> Path:
        """Where the image lies."""
        return self._images[id]

    def image(self, id: str) -> np.ndarray:
        """The image as ``(H, W, 3)`` uint8 RGB. See ``read_image``."""
        return read_image(self._images[id], white=self.white)

    def depth(self, id: str) -> Depth | None:
        """What the image uses of its range, where it has more than 8 bits a channel. See ``deep_range``."""
        return deep_range(self._images[id])

    def image_size(self, id: str) -> tuple[int, int]:
        """Width and height of the image as it is seen (EXIF orientation applied), from its header alone."""
        return image_size(self._images[id])

    def mask(self, id: str) -> np.ndarray | None:
        """The true mask as ``(H, W)`` uint8, or None where there is none.

        Raises:
            DataError: the mask is unreadable, of another size than its image, or has a value that is no class.
        """
        return self.truth(id) if self._has_mask(id) else None

    def truth(self, id: str) -> np.ndarray:
        """The true mask of an image that must have one; see ``mask``."""
        mask = self._read_mask(id)
        wrong = np.unique(mask[(mask > len(self.classes)) & (mask != IGNORE)])
        if wrong.size:
            raise DataError(
                f"the mask {self._mask_origin(id)} has the value {wrong[0]}, but {self.name} has {len(self.classes)} "
                f"classes (allowed: 0..{len(self.classes)} and {IGNORE}). Mend the mask or list "
                "the class in classes.txt"
            )
        width, height = self.image_size(id)
        if mask.shape != (height, width):
            path = self._images[id]
            told = (
                f"the mask {self._mask_origin(id)} is {mask.shape[1]}x{mask.shape[0]} but its image {path} is "
                f"{width}x{height}"
            )
            if mask.shape[::-1] != stored_size(path):
                raise DataError(f"{told}. Export the mask at the size of the image")
            # It is not turned here: the tool that drew it left the masks of square images and of those that stand on
            # their head unturned too, and their size does not tell.
            raise DataError(
                f"{told} as it is seen: its EXIF orientation turns it. Export the masks upright, or remove the "
                f"orientation from the images they were drawn on"
            )
        return mask

    def sample(self, id: str, *, with_mask: bool = False) -> Sample:
        """One image with its tags, and its true mask where asked for and at hand."""
        return Sample(id, self.image(id), self.class_ids(id), self.mask(id) if with_mask else None)

    # --- what all sets must hold to ------------------------------------------------------------------------------

    def _check_split(self, ids: Sequence[str], origin: str) -> None:
        if not ids:
            raise DataError(f"{origin} names no image. Write one image id a line")
        twice = [id for id, count in Counter(ids).items() if count > 1]
        if twice:
            raise DataError(f"{origin} names {twice[0]} more than once. Remove the repeated lines")
        missing = [id for id in ids if id not in self._images]
        if missing:
            raise DataError(
                f"{origin} names {missing[0]!r}, but there is no image {self._image_origin(missing[0])} "
                f"({len(missing)} of {len(ids)} ids have none). Add the images or take the ids out of the split"
            )
        for id in ids:
            # Seeds and masks are written under the id: it must not lead out of their folder.
            if {"", ".", ".."} & set(id.split("/")):
                raise DataError(f"{origin} names {id!r}: an id is a name, or names joined by '/'. Rename the image")

    def _find_masks(self, split: str) -> bool:
        """Whether a split has masks; part of a split with masks is a mistake, not a choice."""
        ids = self._ids[split]
        missing = [id for id in ids if not self._has_mask(id)]
        if missing and len(missing) < len(ids):
            raise DataError(
                f"no mask {self._mask_origin(missing[0])} for image {missing[0]} of {split} "
                f"({len(missing)} of {len(ids)} have none). Masks only measure: add those that are missing, or put "
                f"those of {split} elsewhere, and it is not measured"
            )
        return not missing


def _check_classes(classes: tuple[str, ...], origin: str) -> None:
    if not classes:
        raise DataError(f"{origin} is empty. Write one class name a line, without background")
    twice = sorted(name for name, count in Counter(classes).items() if count > 1)
    if twice:
        raise DataError(f"{origin} names {', '.join(twice)} twice. Each class stands on one line")
    if "background" in (name.lower() for name in classes):
        raise DataError(f"{origin} lists background as a class. Remove that line: background is always label 0")
    if len(classes) >= IGNORE:
        raise DataError(f"{origin} has {len(classes)} classes; masks of 8 bits hold at most {IGNORE - 1}")
