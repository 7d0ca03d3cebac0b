"""COCO: tags and masks from the official annotations of instances, indexed once and rendered on demand."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import threading
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from wsss.artifacts import UNREADABLE, write_atomically
from wsss.data.base import ImageSet, read_lines, split_hint
from wsss.data.download import advice, fetch
from wsss.data.images import read_mask
from wsss.errors import DataError
from wsss.palette import voc_palette
from wsss.types import BACKGROUND, IGNORE

VERSION = 1
"""Raised whenever the same annotations would give another index or other pixels."""

SMALLEST_POLYGON = 6
"""Coordinates of a triangle: fewer enclose nothing."""

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_writing = threading.Lock()
"""Temporary files are named after the process, so its threads write one after the other."""


class CocoSet(ImageSet):
    """COCO in its official layout; the 80 classes of COCO 2014 are numbered 1..80 in the order of their category ids.

    ::

        root/<split>/<id>.jpg                        the splits are train2014 and val2014, of 2017 as well
        root/annotations/instances_<split>.json      categories, images and annotations with polygons or run lengths

    The tags of an image are the classes of all its annotations. Its mask is rendered from them when it is first asked
    for, and kept below ``cache``; see ``render``. An image without annotations has no tag and a mask of background.

    Nothing of the annotations stays in memory but an index of some bytes for each: where it stands in the JSON file,
    its class and whether it is a crowd. The index is kept below ``cache`` too. What is kept is found by a hash of the
    JSON file, so other annotations make other files.

    Args:
        root: folder of the set.
        cache: folder for indexes and masks; it may be deleted at any time.
        name: how reports call it.
        train: name of the split that stages 1-4 learn from.
        val: name of the split that they are measured on.
        train_list: file with the ids of a part of ``train``, one a line, with or without suffix; a relative path is
            taken below ``root``. None takes all images that the JSON file lists, in its order.
        val_list: the same of ``val``.
        untagged: whether images without any tag are in the splits. Many papers leave them out: 82,081 and 40,137 images
            of COCO 2014 are left of 82,783 and 40,504.
        crowd_tags: whether a class that an image shows as a crowd alone (``iscrowd``) is a tag. True as in multi-label
            classification on COCO, whose loaders take every annotation; such a class has no pixel in the mask.
        download: fetch what is missing. See ``wsss.data.download.fetch``.
        white: as for ``ImageSet``.

    Raises:
        DataError: a folder or file is missing, the JSON file is broken or contradicts itself, both JSON files differ in
            their categories, or ``cache`` cannot be written; see also ``ImageSet``.
    """

    tags_in_memory = True

    def __init__(
        self,
        root: str | Path,
        *,
        cache: str | Path,
        name: str = "coco2014",
        train: str = "train2014",
        val: str = "val2014",
        train_list: str | Path | None = None,
        val_list: str | Path | None = None,
        untagged: bool = True,
        crowd_tags: bool = True,
        download: bool = False,
        white: int | None = None,
    ) -> None:
        self.root = Path(root)
        self.crowd_tags = crowd_tags
        if download:
            fetch("coco2014", self.root)
        if not self.root.is_dir():
            raise DataError(
                f"no data set at {self.root.absolute()}. Set its folder with data.root=/path/to/{name}, or "
                f"{advice('coco2014')}"
            )
        for split in (train, val):
            files = self._json(split).parent.glob("instances_*.json")
            splits = sorted(path.stem.removeprefix("instances_") for path in files)
            if splits and split not in splits:
                raise DataError(
                    f"no split {split!r}: {self._json(split)} is missing (splits there: {', '.join(splits)}). "
                    f"{split_hint(splits, train=train, val=val)}, or {advice('coco2014')}"
                )
        self._indexes = {split: open_index(self._json(split), Path(cache)) for split in dict.fromkeys((train, val))}
        classes = self._indexes[train].classes
        if self._indexes[val].classes != classes:
            raise DataError(
                f"{self._json(train)} and {self._json(val)} differ in their categories. Take both from one release"
            )
        self._split_of: dict[str, str] = {}
        images: dict[str, Path] = {}
        for split, index in self._indexes.items():
            there = set(os.listdir(self._folder(split)))
            for id, file in zip(index.rows, index.files, strict=True):
                if self._split_of.setdefault(id, split) != split:
                    raise DataError(f"{self._json(train)} and {self._json(val)} both list an image {id}. Rename one")
                if file in there:
                    images[id] = self._folder(split) / file
        lists = {train: train_list, val: val_list}
        super().__init__(
            root=root,
            name=name,
            train=train,
            val=val,
            classes=classes,
            classes_from=self._json(train),
            images=images,
            splits={split: self._members(split, lists[split], untagged=untagged) for split in lists},
            splits_from={
                split: self._json(split) if path is None else self.root / path for split, path in lists.items()
            },
            tag_source="annotations",
            white=white,
        )

    def _json(self, split: str) -> Path:
        return self.root / "annotations" / f"instances_{split}.json"

    def _folder(self, split: str) -> Path:
        folder = self.root / split
        if not folder.is_dir():
            raise DataError(f"no folder {split} in {self.root}. Put the images there, or {advice('coco2014')}")
        return folder

    def _members(self, split: str, listed: str | Path | None, *, untagged: bool) -> Sequence[str]:
        index = self._indexes[split]
        ids: Sequence[str] = list(index.rows)
        if listed is not None:
            ids = [PurePosixPath(line.split()[0]).name.partition(".")[0] for line in read_lines(self.root / listed)]
        return [id for id in ids if untagged or id not in index.rows or index.tags(id, crowds=self.crowd_tags)]

    def _read_tags(self, id: str) -> tuple[int, ...]:
        return self._indexes[self._split_of[id]].tags(id, crowds=self.crowd_tags)

    def _has_mask(self, id: str) -> bool:
        return True

    def _image_origin(self, id: str) -> str:
        return f"{self.root / self._split_of.get(id, '*') / id}.*"

    def _mask_origin(self, id: str) -> str:
        return f"of {id} in {self._json(self._split_of[id])}"

    def _read_mask(self, id: str) -> np.ndarray:
        index = self._indexes[self._split_of[id]]
        path = index.masks / f"{id}.png"
        if path.is_file():
            with suppress(DataError):  # an unreadable file of the cache is rendered again
                return read_mask(path, id=id)
        segments = index.segments(id)
        width, height = index.sizes[index.rows[id]].tolist()
        try:
            mask = render(segments, height=height, width=width)
        except ValueError as error:
            raise DataError(
                f"{index.path}, image {id}: {error}. Mend the annotation or fetch the file again"
            ) from error
        _keep(path, partial(_save_mask, mask=mask))
        return mask


# --- masks -------------------------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """One annotation.

    Attributes:
        segmentation: as in COCO's JSON: polygons, each a list x0, y0, x1, y1, ... in pixels, or run lengths, a mapping
            of ``size`` (H, W) and ``counts``, plain or compressed.
        class_id: 1..C.
        crowd: whether it covers a group of things that nobody told apart.
    """

    segmentation: Any
    class_id: int
    crowd: bool = False


def render(segments: Sequence[Segment], *, height: int, width: int) -> np.ndarray:
    """The label mask of one image from its annotations.

    Crowds are painted first, as ignored pixels, then single things from large to small in pixels (of equal ones, the
    later in the list lies on top). So a small thing annotated inside a large one stays visible, such as the tie of a
    person, and a thing in front of a crowd counts. Other tools paint in the order of the file, where the last or the
    first annotation wins: their masks differ from these wherever things overlap. Polygons are filled as pycocotools
    fills them.

    Args:
        segments: the annotations; those that enclose nothing leave nothing.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        ``(height, width)`` uint8: 0 background, class ids, 255 in crowds.

    Raises:
        ValueError: a segmentation is neither polygons nor run lengths of this size.
    """
    found = [(segment, _runs(segment.segmentation, height, width)) for segment in segments]
    found.sort(key=lambda pair: (not pair[0].crowd, -int(pair[1][1::2].sum())))  # stable
    pixels = np.full(height * width, BACKGROUND, dtype=np.uint8)  # down the columns, as runs go
    for segment, runs in found:
        ends = np.cumsum(runs).tolist()
        for begin, end in zip(ends[0::2], ends[1::2], strict=False):
            pixels[begin:end] = IGNORE if segment.crowd else segment.class_id
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def _runs(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The lengths of the runs of pixels outside and inside in turn, down the columns: 1-D int64.

    Raises:
        ValueError: see ``render``.
    """
    from pycocotools import mask as polygon_runs  # compiled, and needed by this set alone

    try:
        if isinstance(segmentation, list):
            # pycocotools would take four numbers for a box
            polygons = [points for points in segmentation if len(points) >= SMALLEST_POLYGON]
            if not polygons:
                return np.array([height * width])
            segmentation = polygon_runs.merge(polygon_runs.frPyObjects(polygons, height, width))
        size, counts = list(segmentation["size"]), segmentation["counts"]
        if isinstance(counts, str):
            counts = counts.encode()
        runs = decompress(counts) if isinstance(counts, bytes) else np.array(counts, dtype=np.int64)
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"a segmentation that is neither polygons nor run lengths: {str(segmentation)[:80]}"
        ) from error
    if size != [height, width] or runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"run lengths of {runs.sum()} pixels for height and width {size}, in an image of {[height, width]}"
        )
    return runs


def decompress(counts: bytes) -> np.ndarray:
    """Run lengths from COCO's compressed form (the text of pycocotools).

    Each length is a number of base 32, lowest digit first; a character less 48 has the digit in its lower 5 bits and in
    the sixth whether more digits follow; the last digit of a negative number is 16 or more. From the fourth length on,
    it is the difference to the length two before.

    Returns:
        1-D int64.

    Raises:
        ValueError: the text ends inside a number.

    >>> decompress(b"132M").tolist()  # 1, 3, 2, 3 - 3
    [1, 3, 2, 0]
    """
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if not codes.size or not last[-1]:
        raise ValueError(f"compressed run lengths that end inside a number: {counts[-20:]!r}")
    begins = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    digits = np.diff(np.append(begins, len(codes)))
    place = np.arange(len(codes)) - np.repeat(begins, digits)
    runs = np.add.reduceat((codes & 31) << 5 * place, begins)
    runs -= np.where(codes[last] & 16, 1 << 5 * digits, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _save_mask(path: Path, *, mask: np.ndarray) -> None:
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())
    image.save(path, format="PNG")


def _keep(path: Path, write: Any) -> None:
    """Write a file of the cache; whoever looks meanwhile sees the whole file or none."""
    try:
        with _writing:
            write_atomically(path, write)
    except OSError as error:
        raise DataError(f"cannot write {path} ({error}). Choose another folder with data.cache=/path") from error


# --- the index of a JSON file ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Index:
    """What is kept of a JSON file with N images and A annotations.

    Attributes:
        path: the JSON file.
        masks: folder of the masks rendered from it.
        classes: names of the classes 1..C.
        files: ``(N,)`` names of the image files.
        rows: place of each image by its id, the file name without suffix.
        sizes: ``(N, 2)`` int32, width and height in pixels.
        starts: ``(N + 1,)`` int64: image n has the annotations ``starts[n]`` to ``starts[n + 1]``.
        class_ids: ``(A,)`` uint8, in 1..C.
        crowds: ``(A,)`` bool.
        spans: ``(A, 2)`` int64: first byte of the annotation in the file and the one after its last.
    """

    path: Path
    masks: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    rows: dict[str, int]
    sizes: np.ndarray
    starts: np.ndarray
    class_ids: np.ndarray
    crowds: np.ndarray
    spans: np.ndarray

    def _annotations(self, id: str) -> slice:
        row = self.rows[id]
        return slice(int(self.starts[row]), int(self.starts[row + 1]))

    def tags(self, id: str, *, crowds: bool) -> tuple[int, ...]:
        """The sorted class ids of an image, with or without those of crowds alone."""
        here = self._annotations(id)
        class_ids = self.class_ids[here] if crowds else self.class_ids[here][~self.crowds[here]]
        return tuple(sorted(set(class_ids.tolist())))

    def segments(self, id: str) -> list[Segment]:
        """The annotations of an image, read from the JSON file in its order.

        Raises:
            DataError: the file is not what it was.
        """
        here = self._annotations(id)
        try:
            with self.path.open("rb") as file:
                parts = [
                    json.loads(_slice(file, begin, end))["segmentation"] for begin, end in self.spans[here].tolist()
                ]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{self.path} has no annotation of {id} where it had one ({type(error).__name__}: {error}). "
                f"If the file was replaced, start again"
            ) from error
        return [
            Segment(*values)
            for values in zip(parts, self.class_ids[here].tolist(), self.crowds[here].tolist(), strict=True)
        ]


def _slice(file: Any, begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)


def open_index(path: Path, cache: Path) -> Index:
    """The index of a JSON file of instances, made if it is not below ``cache``.

    Raises:
        DataError: the file is missing or broken, or ``cache`` cannot be written.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error}). Put the annotations of the instances there, or {advice('coco2014')}"
        ) from error
    folder = cache / f"{path.stem}-{digest}-v{VERSION}"
    kept = folder / "index.npz"
    try:
        with np.load(kept, allow_pickle=False) as file:
            columns = dict(file)
    except UNREADABLE:
        columns = read_columns(path)
        _keep(kept, partial(_save_columns, columns=columns))
    files = tuple(columns["files"].tolist())
    return Index(
        path=path,
        masks=folder / "masks",
        classes=tuple(columns["classes"].tolist()),
        files=files,
        rows={PurePosixPath(file).stem: row for row, file in enumerate(files)},
        **{name: columns[name] for name in ("sizes", "starts", "class_ids", "crowds", "spans")},
    )


def _save_columns(path: Path, *, columns: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # an open file: numpy would add .npz to a name
        np.savez(file, allow_pickle=False, **columns)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of ``Index`` from a JSON file of instances, one entry of it in memory at a time.

    Returns:
        ``classes`` and ``files`` as text, the others as in ``Index``.

    Raises:
        DataError: the file is no JSON, has no images or categories, an entry lacks a key, an id or a file name stands
            there twice, or an annotation refers to what is not there.
    """
    categories: dict[int, str] = {}
    files: list[str] = []
    # image: id, width, height; annotation: image id, category id, crowd, begin, end
    images, annotations = array("q"), array("q")
    try:
        # As Latin-1 a character is a byte, whatever the encoding, so that places in the text are places in the file.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            text = str(content, "latin-1")
        for table, item, begin, end in entries(text, ("categories", "images", "annotations")):
            try:
                if table == "categories":
                    if item["id"] in categories:
                        raise DataError(f"{path}, categories has the id {item['id']} twice")
                    categories[item["id"]] = _name(item, "name", text[begin:end])
                elif table == "images":
                    files.append(_name(item, "file_name", text[begin:end]))
                    images.extend((item["id"], item["width"], item["height"]))
                else:
                    crowd = item.get("iscrowd", 0)
                    annotations.extend((item["image_id"], item["category_id"], crowd, begin, end))
                    item["segmentation"]  # read later, and its lack is to be told now
            except (KeyError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
                raise DataError(
                    f"{path}, {table}: the entry {text[begin : min(end, begin + 80)]} lacks a key or has a value of "
                    f"another type ({type(error).__name__}: {error}). Fetch the file again"
                ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no whole JSON file ({error}). Fetch it again") from error
    if not categories or not files:
        raise DataError(f"{path} has no {'images' if categories else 'categories'}. It is to be the JSON of instances")
    stems = [PurePosixPath(file).stem for file in files]
    if len(set(stems)) < len(stems):
        twice = next(stem for place, stem in enumerate(stems) if stem in stems[:place])
        raise DataError(f"{path} lists the image {twice} twice. Fetch it again")
    image_table = np.array(images, dtype=np.int64).reshape(-1, 3)
    table_ = np.array(annotations, dtype=np.int64).reshape(-1, 5)
    numbers = sorted(categories)
    row = _places(table_[:, 0], image_table[:, 0], f"{path}: an annotation has the image_id")
    class_id = 1 + _places(table_[:, 1], np.array(numbers), f"{path}: an annotation has the category_id")
    order = np.argsort(row, kind="stable")
    return {
        "classes": np.array([categories[number] for number in numbers]),
        "files": np.array(files),
        "sizes": image_table[:, 1:].astype(np.int32),
        "starts": np.searchsorted(row[order], np.arange(len(files) + 1)),
        "class_ids": np.minimum(class_id, IGNORE)[order].astype(np.uint8),  # more classes are refused by ImageSet
        "crowds": table_[order, 2] != 0,
        "spans": table_[order, 3:],
    }


def _name(item: Any, key: str, source: str) -> str:
    """A text of an entry that was parsed as Latin-1; other letters than ASCII are parsed again."""
    found: str = item[key]
    return found if found.isascii() else json.loads(source.encode("latin-1"))[key]


def _places(values: np.ndarray, ids: np.ndarray, what: str) -> np.ndarray:
    """The place of each value in ``ids``.

    Raises:
        DataError: an id stands there twice, or a value is none of them.
    """
    order = np.argsort(ids)
    ordered = ids[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise DataError(
            f"{what} {ordered[:-1][ordered[1:] == ordered[:-1]][0]}, which two entries have. Fetch it again"
        )
    found = np.minimum(np.searchsorted(ordered, values), len(ids) - 1)
    missing = ordered[found] != values
    if missing.any():
        raise DataError(f"{what} {values[missing][0]}, which no entry has. Fetch the file again")
    return order[found]


def entries(text: str, tables: Collection[str]) -> Iterator[tuple[str, Any, int, int]]:
    """The entries of the lists that a JSON object holds under the keys ``tables``, one at a time and with their places.

    Yields:
        The key, the entry, and where it begins and ends in ``text``.

    Raises:
        ValueError: the text is no JSON object.

    >>> [(item, text[a:b]) for text in ['{"a": [1, [2]], "b": [3]}'] for _, item, a, b in entries(text, ("a",))]
    [(1, '1'), ([2], '[2]')]
    """
    at = _past(text, 0, "{")
    while not text.startswith("}", at):
        key, at = _DECODER.raw_decode(text, at)
        at = _past(text, _skip(text, at), ":")
        if key in tables and text.startswith("[", at):
            at = _past(text, at, "[")
            while not text.startswith("]", at):
                item, end = _DECODER.raw_decode(text, at)
                yield key, item, at, end
                at = _skip(text, end)
                if not text.startswith("]", at):
                    at = _past(text, at, ",")
            at = _skip(text, at + 1)
        else:
            at = _skip(text, _DECODER.raw_decode(text, at)[1])
        if not text.startswith("}", at):
            at = _past(text, at, ",")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _past(text: str, at: int, sign: str) -> int:
    """Where the text goes on after ``sign``."""
    at = _skip(text, at)
    if not text.startswith(sign, at):
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, at)
    return _skip(text, at + 1)
