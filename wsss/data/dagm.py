"""DAGM 2007: generated textures with defects, for weakly supervised optical inspection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data.base import ImageSet, read_lines, split_hint
from wsss.data.download import advice, fetch
from wsss.data.images import UNDECODABLE
from wsss.errors import ConfigError, DataError
from wsss.types import BACKGROUND

TEXTURES = tuple(range(1, 11))
"""The ten textures, each with one kind of defect."""


@dataclass(frozen=True)
class Row:
    """What is known of one image.

    Attributes:
        class_id: of its defect; 0 where it has none.
        label: the file of its mask; None for an image without defect.
    """

    class_id: int
    label: Path | None


class DagmSet(ImageSet):
    """The set of the DAGM 2007 competition, as published: grey images of 512x512, 575 or 1150 a split and texture.

    ::

        root/Class<texture>/<split>/<number>.PNG                   the splits are Train and Test
        root/Class<texture>/<split>/Label/Labels.txt               which images have a defect
        root/Class<texture>/<split>/Label/<number>_label.PNG       masks of those that have one

    The first line of ``Labels.txt`` is a heading; each other line holds, separated by tabs, the number of an image, 1
    if it has a defect or 0, its file, a 0, and the file of its mask or 0. Ids are ``Class<texture>_<split>_<number>``.

    The masks are coarse: an ellipse drawn around the defect, with much sound surface inside. A result that follows the
    defect itself is counted as wrong there, so IoU says how well ellipses are matched, not how well defects are.
    Images without defect have no tag and a mask of background.

    Args:
        root: folder of the set.
        name: how reports call it.
        train: name of the split that stages 1-4 learn from.
        val: name of the split that they are measured on.
        textures: the textures to read, of 1..10.
        classes: ``defect``: one class on all textures; ``texture``: a class for each texture's defect, ``defect_1`` to
            ``defect_10``, numbered from 1 in the order of the textures that are read.
        download: look whether the set is there, and say where to get it; it cannot be fetched without a person.
        white: as for ``ImageSet``.

    Raises:
        ConfigError: ``textures`` or ``classes`` is none of those allowed.
        DataError: a folder, a list or an image is missing or contradicts another; see also ``ImageSet``.
    """

    CLASSES = ("defect", "texture")

    tags_in_memory = True

    def __init__(
        self,
        root: str | Path,
        *,
        name: str = "dagm2007",
        train: str = "Train",
        val: str = "Test",
        textures: Sequence[int] = TEXTURES,
        classes: str = "defect",
        download: bool = False,
        white: int | None = None,
    ) -> None:
        if classes not in self.CLASSES:
            raise ConfigError(f"data.classes={classes!r} is unknown. Choose one of: {', '.join(self.CLASSES)}")
        if not textures or len(set(textures)) < len(textures) or not set(textures) <= set(TEXTURES):
            raise ConfigError(f"data.textures={list(textures)} is to name textures of 1..{len(TEXTURES)}, each once")
        self.root, self.train, self.val = Path(root), train, val
        if download:
            fetch("dagm2007", self.root)
        if not self.root.is_dir():
            raise DataError(
                f"no data set at {self.root.absolute()}. Set its folder with data.root=/path/to/{name}, or "
                f"{advice('dagm2007')}"
            )
        textures = sorted(textures)
        self._rows: dict[str, Row] = {}
        images: dict[str, Path] = {}
        splits: dict[str, list[str]] = {}
        for split in dict.fromkeys((train, val)):
            splits[split] = []
            for place, texture in enumerate(textures, start=1):
                folder = self._folder(texture, split)
                rows, paths = read_split(folder, texture=texture, class_id=place if classes == "texture" else 1)
                self._rows |= rows
                images |= paths
                splits[split] += rows
        super().__init__(
            root=root,
            name=name,
            train=train,
            val=val,
            classes=[f"defect_{texture}" for texture in textures] if classes == "texture" else ["defect"],
            images=images,
            splits=splits,
            tag_source="Labels.txt",
            white=white,
        )

    def _folder(self, texture: int, split: str) -> Path:
        folder = self.root / f"Class{texture}" / split
        if not folder.is_dir():
            there = ", ".join(sorted(path.name for path in self.root.glob("Class*"))) or "none"
            if folder.parent.is_dir():
                splits = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
                raise DataError(
                    f"no folder {folder} (splits there: {', '.join(splits) or 'none'}). "
                    f"{split_hint(splits, train=self.train, val=self.val)}"
                )
            raise DataError(
                f"no folder {folder} (textures there: {there}). Unpack Class{texture}.zip in {self.root}, or choose "
                f"others with data.textures=[1,2]"
            )
        return folder

    def _read_tags(self, id: str) -> tuple[int, ...]:
        class_id = self._rows[id].class_id
        return () if class_id == BACKGROUND else (class_id,)

    def _has_mask(self, id: str) -> bool:
        return True

    def _mask_origin(self, id: str) -> str:
        return str(self._rows[id].label or f"of {id}")

    def _read_mask(self, id: str) -> np.ndarray:
        row = self._rows[id]
        if row.label is None:
            width, height = self.image_size(id)
            return np.full((height, width), BACKGROUND, dtype=np.uint8)
        return read_ellipse(row.label, class_id=row.class_id)


def read_ellipse(path: Path, *, class_id: int) -> np.ndarray:
    """A mask file, in which the region of the defect is white: ``(H, W)`` uint8, 0 background, ``class_id`` the region.

    Raises:
        DataError: the file does not decode or has no white pixel.
    """
    try:
        with Image.open(path) as image:
            region = np.asarray(image.convert("L")) > 0
    except UNDECODABLE as error:
        raise DataError(f"the mask {path} does not decode ({error}). Replace the file") from error
    if not region.any():
        raise DataError(f"the mask {path} is empty, but Labels.txt says that there is a defect. Replace the file")
    return np.where(region, class_id, BACKGROUND).astype(np.uint8)


def read_split(folder: Path, *, texture: int, class_id: int) -> tuple[dict[str, Row], dict[str, Path]]:
    """The images of one texture in one split, as its ``Label/Labels.txt`` lists them.

    Args:
        folder: ``Class<texture>/<split>``.
        texture: 1..10.
        class_id: of the defect.

    Returns:
        What is known of each image, and its file, both by id and in the order of the list.

    Raises:
        DataError: the list is missing or has a line of another form, an image stands there twice or not at all, or an
            image or mask that it names is missing.
    """
    labels = folder / "Label"
    path = labels / "Labels.txt"
    images = {file.name for file in folder.iterdir() if file.suffix.lower() == ".png"}
    masks = {file.name for file in labels.iterdir()} if labels.is_dir() else set()
    rows: dict[str, Row] = {}
    paths: dict[str, Path] = {}
    for number, line in enumerate(read_lines(path)[1:], start=2):
        fields = line.split()
        if len(fields) != 5 or fields[1] not in ("0", "1"):
            raise DataError(
                f"{path}, line {number} is {line[:80]!r} instead of a number, 0 or 1, the image, 0, and the mask or 0. "
                f"Unpack it again"
            )
        image, mask, defect = fields[2], fields[4], fields[1] == "1"
        if image not in images:
            raise DataError(f"{path}, line {number} names the image {image}, which is not in {folder}. Unpack it again")
        if defect and mask not in masks:
            raise DataError(f"{path}, line {number} names the mask {mask}, which is not in {labels}. Unpack it again")
        if not defect and mask != "0":
            raise DataError(f"{path}, line {number} names a mask for an image without defect. Unpack it again")
        id = f"Class{texture}_{folder.name}_{Path(image).stem}"
        if id in rows:
            raise DataError(f"{path}, line {number} names the image {image} again. Unpack it again")
        rows[id] = Row(class_id if defect else BACKGROUND, labels / mask if defect else None)
        paths[id] = folder / image
    unlisted = sorted(images - {file.name for file in paths.values()})
    if unlisted:
        raise DataError(f"{path} does not list {unlisted[0]} ({len(unlisted)} images are not listed). Unpack it again")
    return rows, paths
