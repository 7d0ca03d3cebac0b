"""``python -m wsss.check``: is a data set sound? Every file is decoded before a night is spent on it.

    python -m wsss.check data=voc_layout data.root=/path/to/set
    python -m wsss.check +experiment=msrc15 data.root=/path/to/msrc15 --contact-sheet 24

Exit code 0: sound, perhaps with warnings; 1: errors; 2: the set or the configuration cannot be used at all.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import logging
import math
import pickle
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import numpy as np
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont

from wsss.artifacts import read_json, write_atomically, write_json
from wsss.build import build
from wsss.cli import INTERRUPTED, USER_ERROR
from wsss.console import Cell, console, progress, quiet_libraries, setup_logging, table
from wsss.data.base import ImageSet
from wsss.data.images import WHITE as WHITE_OF_16_BITS
from wsss.data.images import Depth
from wsss.data.loading import worker_count
from wsss.errors import ConfigError, DataError, UserError
from wsss.palette import voc_palette
from wsss.refine import ItemError, map_images
from wsss.show import composed
from wsss.types import BACKGROUND, IGNORE
from wsss.viz import WHITE, Tile, encode, overlay_labels, panel

log = logging.getLogger("wsss.check")  # run as a command, this module is called __main__

T = TypeVar("T")

UNSOUND = 1
"""Exit code where errors were found."""

ERROR, WARNING = "error", "warning"

FEW = 10
"""A class with fewer training images is warned of, unless ``--few`` says otherwise."""

SMALLEST = 32
"""Pixels of the short side: below, an encoder of stride 32 has no cell left."""

LONGEST_ASPECT = 4.0
"""Long side over short side: above, a square crop shows little of the image."""

USED_RANGE = 4
"""Images of 16 bits whose highest value is below this part of what counts as white look dark to every network."""

RECIPES = ("classifier", "segmenter")
"""The trainings that every run has; they refuse images that are too narrow for their crops."""

SEPARATORS = ",|/"
"""Signs that join tags elsewhere; here it is the semicolon."""

NEAR_BITS = 3
"""Images whose difference hashes differ in this many bits of 64, or fewer, may be the same picture ..."""

NEAR_CORRELATION = 0.98
"""... and are taken for it where the grey levels of their thumbnails correlate so well: another exposure or contrast
does not matter, as with parts photographed under several lights."""

MOST_PAIRS = 10_000
"""Near-duplicates are no longer looked for above: a set with more is one scene over and over."""

KEPT = 1000
"""Examples of one finding in check.json."""

PRINTED = 5
"""Examples of one finding on the console."""

TOP_PAIRS = 10
IMAGES_PER_WORKER = 1000
"""To start a process takes as long as to decode about this many photographs."""

CONTACT_SHEET = 12
COLUMNS = 6
TILE = 200
CAPTION_LINES, LINE = 2, 16


# --- one image --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of an image once it has been decoded: under a kilobyte.

    Attributes:
        id: of the image.
        problems: (code of a finding, what is wrong) of this image.
        size: width and height; None where the image does not decode, and then the next five mean nothing.
        digest: of the decoded pixels and their shape.
        difference: 64-bit difference hash.
        thumbnail: ``9 * 8`` grey levels.
        grey: all pixels are grey.
        blank: all pixels are the same.
        class_ids: the image-level tags; None where they cannot be read.
        mask_classes: the class ids in the mask; None without a mask that can be read.
        ignored: share of the mask's pixels that are ignored.
        depth: what an image of more than 8 bits a channel uses of its range; None for 8 bits.
    """

    id: str
    problems: tuple[tuple[str, str], ...] = ()
    size: tuple[int, int] | None = None
    digest: bytes = b""
    difference: int = 0
    thumbnail: bytes = b""
    grey: bool = False
    blank: bool = False
    class_ids: tuple[int, ...] | None = None
    mask_classes: tuple[int, ...] | None = None
    ignored: float = 0.0
    depth: Depth | None = None


def look(data: ImageSet, id: str) -> Seen:
    """Decode one image and its mask and read its tags. Whatever is wrong with them is told in the result, not raised.

    >>> class Empty:
    ...     def image(self, id): raise DataError("no pixels")
    ...     mask = class_ids = image
    >>> look(Empty(), "a").problems
    (('image', 'no pixels'),)
    """
    problems: dict[str, tuple[str, str]] = {}

    def attempt(code: str, read: Callable[[str], T]) -> T | None:
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                found = read(id)
        except DataError as error:
            # one fault shows wherever the file is read; only the hint behind the brackets differs
            problems.setdefault(str(error).partition(" (")[0], (code, str(error)))
            return None
        except Exception as error:  # a decoder may raise anything, and the other files are still to be looked at
            text = f"{id}: {type(error).__name__}: {error}"
            problems.setdefault(text, (code, text))
            return None
        for warning in heard:
            text = f"{id}: {warning.message}"
            problems.setdefault(text, ("decoder_warning", text))
        return found

    image = attempt("image", data.image)
    if image is not None and (image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0):
        problems["pixels"] = ("image", f"{id}: expected (H, W, 3) uint8 pixels, got {image.shape} {image.dtype}")
        image = None
    mask = attempt("mask", data.mask)
    class_ids = attempt("tags", data.class_ids)
    facts: dict[str, Any] = {}
    if image is not None:
        size = (image.shape[1], image.shape[0])
        header = attempt("image", data.image_size)
        if header is not None and tuple(header) != size:
            problems["header"] = ("image", f"{id}: its header says {_by(header)}, but {_by(size)} pixels are decoded")
        difference, thumbnail = difference_hash(image)
        grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all())
        facts |= {
            "size": size,
            "digest": pixel_digest(image),
            "difference": difference,
            "thumbnail": thumbnail,
            "grey": grey,
            "blank": bool((image == image[0, 0]).all()),
            "depth": attempt("image", data.depth),
        }
    if mask is not None:
        wrong = _mask_problem(mask, None if image is None else image.shape[:2], len(data.classes))
        if wrong:
            problems["mask"] = ("mask", f"{id}: {wrong}")
        else:
            counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
            present = np.flatnonzero(counts).tolist()
            facts |= {
                "mask_classes": tuple(label for label in present if label not in (BACKGROUND, IGNORE)),
                "ignored": float(counts[IGNORE] / mask.size),
            }
    return Seen(id, tuple(problems.values()), class_ids=class_ids, **facts)


def _mask_problem(mask: np.ndarray, shape: tuple[int, ...] | None, classes: int) -> str:
    """What is wrong with a decoded mask, whichever layout it is of; empty where nothing is."""
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.size == 0:
        return f"expected an (H, W) uint8 mask, got {mask.shape} {mask.dtype}"
    if shape is not None and mask.shape != tuple(shape):
        return f"the mask is {_by(mask.shape[::-1])}, but its image is {_by(shape[::-1])}"
    wrong = np.unique(mask[(mask > classes) & (mask != IGNORE)])
    if wrong.size:
        return f"the mask has the value {wrong[0]} (allowed: 0..{classes} and {IGNORE})"
    return ""


def pixel_digest(image: np.ndarray) -> bytes:
    """16 bytes that are equal for equal pixels of equal shape, whatever file they come from."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def difference_hash(image: np.ndarray) -> tuple[int, bytes]:
    """Where the picture gets brighter from left to right, on a grid of 9 x 8 cells.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.

    Returns:
        64 bits, row by row, the first the highest; and the ``9 * 8`` grey levels that they are of.

    >>> ramp = np.repeat(np.arange(0, 180, 20, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(8, axis=0)
    >>> hex(difference_hash(ramp)[0]), difference_hash(ramp[:, ::-1])[0]
    ('0xffffffffffffffff', 0)
    """
    grey = np.asarray(Image.fromarray(image).convert("L").resize((9, 8), Image.Resampling.BOX))
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(bits.tobytes(), "big"), grey.tobytes()


class Look:
    """``look`` for worker processes: the set is read once a process, and not sent along with every id."""

    def __init__(self, pickled: Path) -> None:
        self.pickled = pickled

    def __call__(self, id: str) -> Seen:
        """``look`` at one id."""
        return look(_unpickled(self.pickled), id)


@lru_cache(maxsize=1)
def _unpickled(path: Path) -> ImageSet:
    data: ImageSet = pickle.loads(path.read_bytes())
    return data


def look_at_all(data: ImageSet, ids: Sequence[str], *, workers: int) -> Iterator[Seen]:
    """``look`` at every id, each once, in the order of completion; ``workers`` as for ``map_images``.

    A file whose decoder takes its process down is told as a problem too, if there are processes.
    """
    with TemporaryDirectory(prefix="wsss_check_") as folder:
        function: Callable[[str], Seen] = partial(look, data)
        if workers:
            pickled = Path(folder) / "set.pickle"
            pickled.write_bytes(pickle.dumps(data))
            function = Look(pickled)
        left = dict.fromkeys(ids)
        while left:
            try:
                for id, seen in map_images(function, [(id, id) for id in left], workers=workers):
                    del left[id]
                    yield seen
            except ItemError as error:
                fatal = [id for id in left if str(error).startswith(f"{id}: ")]
                if not fatal:
                    raise
                id = max(fatal, key=len)  # "a: b" is an id like another
                del left[id]
                yield Seen(id, (("image", f"{id}: the process that decodes it dies"),))


# --- findings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or may be.

    Attributes:
        level: ``error`` or ``warning``.
        code: a name for programs.
        text: what it is, in a sentence.
        examples: one line for each occurrence.
        more: occurrences that were not looked for any further.
    """

    level: str
    code: str
    text: str
    examples: Sequence[str]
    more: bool = False

    @property
    def count(self) -> str:
        """The number of occurrences, as it is shown."""
        return f"{len(self.examples)}{'+' * self.more}"


@dataclass
class Check:
    """All that was found out about a set.

    Attributes:
        classes: their names.
        train: name of the training split.
        val: name of the validation split; it may be the same.
        splits: what was seen of each split's images, in its order.
        masked: whether the set says that a split has masks.
        few: a class with fewer training images is warned of.
        longest: long side over short side beyond which training refuses an image.
        white: the set's option of this name.
        findings: errors first.
    """

    classes: Sequence[str]
    train: str
    val: str
    splits: Mapping[str, Sequence[Seen]]
    masked: Mapping[str, bool]
    few: int = FEW
    longest: float = math.inf
    white: int | None = None
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = (_files, _identical, _near, _names, _tags, _pairs, _sizes, _depths, _masks)
        found = [finding for part in parts for finding in part(self) if finding.examples]
        self.findings = sorted(found, key=lambda finding: finding.level != ERROR)

    @property
    def sound(self) -> bool:
        """Whether there are no errors; warnings may be."""
        return not self.of(ERROR)

    def of(self, level: str) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def everything(self) -> dict[str, Seen]:
        """Each image once, also where two splits have it."""
        return {seen.id: seen for split in self.splits.values() for seen in split}

    def name(self, class_id: int) -> str:
        """The name of a class id."""
        return self.classes[class_id - 1]

    def class_counts(self, split: str) -> list[int]:
        """The number of images of each class, by the tags."""
        counts = Counter(class_id for seen in self.splits[split] for class_id in seen.class_ids or ())
        return [counts[class_id] for class_id in range(1, len(self.classes) + 1)]

    def together(self) -> np.ndarray:
        """``(C, C)``: the training images that have both tags; on the diagonal those that have the one."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        for seen in self.splits[self.train]:
            at = np.array(seen.class_ids or (), dtype=np.int64) - 1
            counts[np.ix_(at, at)] += 1
        return counts


def _files(check: Check) -> Iterator[Finding]:
    """Files that cannot be read."""
    said: dict[str, list[str]] = {}
    for seen in check.everything().values():
        for code, text in seen.problems:
            said.setdefault(code, []).append(text)
    yield Finding(ERROR, "image", "images that cannot be decoded", said.get("image", ()))
    yield Finding(ERROR, "mask", "masks that cannot be used", said.get("mask", ()))
    yield Finding(ERROR, "tags", "tags that cannot be read", said.get("tags", ()))
    yield Finding(WARNING, "decoder_warning", "files that the decoder complains about", said.get("decoder_warning", ()))


def _identical(check: Check) -> Iterator[Finding]:
    """The same pixels more than once."""
    if check.train == check.val:
        text = "train and val are the same split: results are measured on what was learnt from"
        yield Finding(WARNING, "same_split", text, [check.train])
    both = {seen.id for seen in check.splits[check.train]} & {seen.id for seen in check.splits[check.val]}
    if check.train != check.val:
        text = "images that both train and val name"
        yield Finding(ERROR, "in_both_splits", text, [seen.id for seen in check.splits[check.val] if seen.id in both])
    groups: dict[bytes, dict[str, list[Seen]]] = {}
    for split, images in check.splits.items():
        for seen in images:
            if seen.size is not None:
                groups.setdefault(seen.digest, {}).setdefault(split, []).append(seen)
    across, within, contradicting = [], [], []
    for group in groups.values():
        alike = {seen.id: seen for images in group.values() for seen in images}
        if len(alike) == 1:
            continue
        if len(group) > 1:
            sides = (", ".join(seen.id for seen in group[split]) for split in check.splits)
            across.append(" = ".join(f"{split}: {ids}" for split, ids in zip(check.splits, sides, strict=True)))
        for split, images in group.items():
            if len(images) > 1:
                within.append(f"{split}: {' = '.join(seen.id for seen in images)}")
        if len({seen.class_ids for seen in alike.values()} - {None}) > 1:
            contradicting.append(", ".join(f"{seen.id} ({_named(check, seen.class_ids)})" for seen in alike.values()))
    yield Finding(ERROR, "duplicates_across", "the same pixels in train and in val", across)
    yield Finding(WARNING, "duplicates_within", "the same pixels more than once in a split", within)
    yield Finding(WARNING, "contradicting_tags", "the same pixels with different tags", contradicting)


def _near(check: Check) -> Iterator[Finding]:
    """Almost the same picture in both splits."""
    if check.train == check.val:
        return
    train, val = ([s for s in check.splits[split] if s.size is not None] for split in (check.train, check.val))
    pairs = near_pairs(train, val, most=MOST_PAIRS)
    examples = [f"{check.train}: {a.id} ~ {check.val}: {b.id} ({bits} of 64 bits differ)" for a, b, bits in pairs]
    text = f"nearly the same picture in train and in val: {len({b.id for _, b, _ in pairs})} images of {check.val}"
    yield Finding(WARNING, "near_duplicates", text, examples, more=len(pairs) >= MOST_PAIRS)


def near_pairs(train: Sequence[Seen], val: Sequence[Seen], *, most: int) -> list[tuple[Seen, Seen, int]]:
    """Pairs of images that look the same but are not pixel by pixel the same, and the bits that differ.

    Every pair is compared; 50,000 x 50,000 take a few seconds. Blank images look like nothing and are left out.

    Args:
        train, val: images that decode.
        most: the search ends there.
    """
    train, val = ([seen for seen in images if not seen.blank] for images in (train, val))
    hashes = np.array([seen.difference for seen in train], dtype=np.uint64)
    thumbnails = [np.frombuffer(seen.thumbnail, np.uint8) for seen in train]  # views: no copy of what is held anyway
    found: list[tuple[Seen, Seen, int]] = []
    for other in val:
        bits = bit_counts(hashes ^ np.uint64(other.difference))
        grey = np.frombuffer(other.thumbnail, np.uint8)
        for at in np.flatnonzero(bits <= NEAR_BITS):
            distinct = train[at].id != other.id and train[at].digest != other.digest
            if distinct and correlation(thumbnails[at], grey) >= NEAR_CORRELATION:
                found.append((train[at], other, int(bits[at])))
                if len(found) == most:
                    return found
    return found


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two ``(N,)`` arrays; 0 where one of them is constant.

    >>> correlation(np.array([1, 2, 3]), np.array([10, 30, 50])), correlation(np.array([1, 2]), np.array([4, 4]))
    (1.0, 0.0)
    """
    x, y = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return round(float(x @ y) / scale, 9) if scale else 0.0


def bit_counts(values: np.ndarray) -> np.ndarray:
    """The number of bits that are set in each of ``(N,)`` uint64: sums of neighbours, of pairs, of nibbles, of bytes.

    >>> bit_counts(np.array([0, 7, 2**64 - 1], dtype=np.uint64)).tolist()
    [0, 3, 64]
    """
    one, two, four, fifty_six = (np.uint64(shift) for shift in (1, 2, 4, 56))
    pairs, nibbles = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
    in_bytes, ones = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
    sums = values - ((values >> one) & pairs)
    sums = (sums & nibbles) + ((sums >> two) & nibbles)
    sums = (sums + (sums >> four)) & in_bytes
    return ((sums * ones) >> fifty_six).astype(np.uint8)


def _tags(check: Check) -> Iterator[Finding]:
    """Classes that cannot be learnt, or not measured."""
    train, val = (check.class_counts(split) for split in (check.train, check.val))
    counts = list(zip(check.classes, train, val, strict=True))
    text = "classes without any training image that val has"
    yield Finding(
        ERROR, "class_only_in_val", text, [f"{name}: {b} of {check.val}" for name, a, b in counts if b > a == 0]
    )
    text = "classes without any image"
    yield Finding(ERROR, "class_without_images", text, [name for name, a, b in counts if a == b == 0])
    text = f"classes with fewer than {check.few} training images"
    yield Finding(WARNING, "few_images", text, [f"{name}: {a}" for name, a, _ in counts if 0 < a < check.few])
    text = "classes that val does not have: they cannot be measured"
    yield Finding(
        WARNING, "class_not_in_val", text, [f"{name}: {a} of {check.train}" for name, a, b in counts if a > b == 0]
    )


def _names(check: Check) -> Iterator[Finding]:
    """Classes that may be one class, or several."""
    text = "classes that may be one class written in two ways, or several in one (tags are joined by ';')"
    yield Finding(WARNING, "similar_classes", text, similar_classes(check.classes))


def similar_classes(classes: Sequence[str]) -> list[str]:
    """Names that are equal up to case, blanks, underscores and hyphens; and names made of others with ``SEPARATORS``.

    >>> similar_classes(["dog", "Dog", "cat|dog", "tram / bus", "hot_dog", "hot-dog"])
    ["'dog' and 'Dog'", "'hot_dog' and 'hot-dog'", "'cat|dog' holds 'dog'"]
    """

    def plain(name: str) -> str:
        return re.sub(r"[\s_-]", "", name).casefold()

    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(plain(name), []).append(name)
    found = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    parts = {name: [part for part in re.split(f"[{SEPARATORS}]", name) if plain(part)] for name in classes}
    for name, pieces in parts.items():
        others = {plain(other) for other in classes if other != name}
        others |= {plain(piece) for other, theirs in parts.items() if other != name for piece in theirs}
        held = [piece.strip() for piece in pieces if plain(piece) in others]
        if len(pieces) > 1 and held:
            found.append(f"{name!r} holds {', '.join(map(repr, held))}")
    return found


class Pair(NamedTuple):
    """A class, another, the training images that have both, and their share of those that have the first."""

    class_id: int
    other: int
    images: int
    share: float


def top_pairs(together: np.ndarray) -> list[Pair]:
    """Which other class the images of a class have too: the strongest pairs first, none without an image.

    Args:
        together: ``(C, C)``, as ``Check.together`` gives it.

    >>> top_pairs(np.array([[4, 1], [1, 1]]))
    [Pair(class_id=2, other=1, images=1, share=1.0), Pair(class_id=1, other=2, images=1, share=0.25)]
    """
    pairs = [
        Pair(int(a) + 1, int(b) + 1, int(together[a, b]), float(together[a, b] / together[a, a]))
        for a, b in np.argwhere(together)
        if a != b
    ]
    return sorted(pairs, key=lambda pair: (-pair.share, -pair.images, pair.class_id, pair.other))


def _pairs(check: Check) -> Iterator[Finding]:
    """Classes that tags cannot tell apart."""
    always: dict[int, list[int]] = {}
    for pair in top_pairs(check.together()):
        if pair.share == 1:
            always.setdefault(pair.class_id, []).append(pair.other)
    counts = check.class_counts(check.train)
    examples = [
        f"{check.name(class_id)} ({_images(counts[class_id - 1])}) always with {_named(check, sorted(others))}"
        for class_id, others in sorted(always.items())
    ]
    text = "classes that no training image has without another: they cannot be told apart from tags"
    yield Finding(WARNING, "never_alone", text, examples)


def _sizes(check: Check) -> Iterator[Finding]:
    """Images of odd shape."""
    small, long, narrow, blank = [], [], [], []
    learnt = {seen.id for seen in check.splits[check.train]}
    for seen in check.everything().values():
        if seen.size is None:
            continue
        if min(seen.size) < SMALLEST:
            small.append(f"{seen.id}: {_by(seen.size)}")
        if seen.id in learnt and max(seen.size) > check.longest * min(seen.size):
            narrow.append(f"{seen.id}: {_by(seen.size)}")
        elif max(seen.size) > LONGEST_ASPECT * min(seen.size):
            long.append(f"{seen.id}: {_by(seen.size)}")
        if seen.blank:
            blank.append(seen.id)
    text = (
        f"training images that are refused as too narrow to learn from: a side more than {check.longest:g} times the "
        f"other (crop them, or take them out of {check.train})"
    )
    yield Finding(ERROR, "too_narrow", text, narrow)
    yield Finding(WARNING, "small", f"images with a side of less than {SMALLEST} pixels", small)
    text = f"images with a side more than {LONGEST_ASPECT:g} times the other"
    yield Finding(WARNING, "aspect", text, long)
    yield Finding(WARNING, "blank", "images of one colour", blank)


def _depths(check: Check) -> Iterator[Finding]:
    """Images of more than 8 bits that do not use their range, or go beyond it."""
    deep = [(seen, seen.depth) for seen in check.everything().values() if seen.depth is not None]
    grey, coloured = ([(seen, depth) for seen, depth in deep if depth.grey is kind] for kind in (True, False))
    white = check.white or WHITE_OF_16_BITS
    highest = max((depth.highest for _, depth in grey), default=white)
    # the highest value that as many bits can have: 4095 where 4001 was met
    meant = (1 << max(8, highest.bit_length())) - 1
    dark = [f"{seen.id}: highest value {depth.highest}" for seen, depth in grey] if USED_RANGE * highest < white else []
    text = (
        f"images of 16 bits that are read as dark: the highest value of all is {highest}, and {white} counts as white "
        f"(set data.white={meant})"
    )
    yield Finding(WARNING, "dark_range", text, dark)
    cut = [f"{seen.id}: highest value {depth.highest}" for seen, depth in grey if depth.highest > white]
    text = f"images with values above data.white={white}, which are cut off (the highest is {highest})"
    yield Finding(WARNING, "beyond_white", text, cut)
    highest = max((depth.highest for _, depth in coloured), default=WHITE_OF_16_BITS)
    dark = (
        [f"{s.id}: about {depth.highest}" for s, depth in coloured] if USED_RANGE * highest < WHITE_OF_16_BITS else []
    )
    text = (
        f"colour images of 16 bits that are read as dark: the highest value of all is about {highest} of "
        f"{WHITE_OF_16_BITS} (save them with 8 bits a channel, scaled to use them)"
    )
    yield Finding(WARNING, "dark_colours", text, dark)


def _masks(check: Check) -> Iterator[Finding]:
    """Masks that are missing, say nothing or contradict the tags."""
    failed = {seen.id for seen in check.everything().values() if any(code == "mask" for code, _ in seen.problems)}
    missing, stray = [], []
    for split, images in check.splits.items():
        there = [seen for seen in images if seen.mask_classes is not None]
        if check.masked[split]:
            missing += [f"{split}: {s.id}" for s in images if s.mask_classes is None and s.id not in failed and s.size]
        elif there:
            stray.append(f"{split}: {len(there)} of {len(images)} images have one")
    yield Finding(ERROR, "missing_masks", "images without a mask in a split that has masks", missing)
    yield Finding(WARNING, "part_masks", "splits that count as without masks although some images have one", stray)
    ignored, untold, unseen = [], [], []
    for seen in check.everything().values():
        if seen.mask_classes is None:
            continue
        if seen.ignored == 1:
            ignored.append(seen.id)
        elif seen.class_ids is not None:
            if extra := sorted(set(seen.mask_classes) - set(seen.class_ids)):
                untold.append(f"{seen.id}: {_named(check, extra)}")
            if absent := sorted(set(seen.class_ids) - set(seen.mask_classes)):
                unseen.append(f"{seen.id}: {_named(check, absent)}")
    yield from _classes_of_masks(check, contradicted=len(untold))
    yield Finding(WARNING, "all_ignored", "masks of ignored pixels alone", ignored)
    yield Finding(WARNING, "mask_not_in_tags", "images whose mask has a class that is not in their tags", untold)
    yield Finding(WARNING, "tag_not_in_mask", "images whose tags have a class that is not in their mask", unseen)


def _classes_of_masks(check: Check, *, contradicted: int) -> Iterator[Finding]:
    """Masks whose numbers mean something else than the classes do: nothing they say could be measured."""
    masked = [seen for seen in check.everything().values() if seen.mask_classes is not None]
    tagged = Counter(class_id for seen in masked for class_id in seen.class_ids or ())
    drawn = Counter(class_id for seen in masked for class_id in seen.mask_classes or ())
    lost = [
        f"{check.name(class_id)}: {count} tagged images" for class_id, count in tagged.items() if not drawn[class_id]
    ]
    text = "classes that are in no mask although tagged images have masks (is an object 1..C in them, and not 255?)"
    yield Finding(ERROR, "class_in_no_mask", text, sorted(lost))
    objects = sum(bool(seen.mask_classes) for seen in masked)
    wrong = [f"{contradicted} of {objects} masks with an object"] if 2 * contradicted >= objects > 0 else []
    text = "half of the masks or more have a class that is not in the tags (is it the order of classes.txt?)"
    yield Finding(ERROR, "masks_contradict_tags", text, wrong)


def _named(check: Check, class_ids: Iterable[int] | None) -> str:
    return ", ".join(check.name(class_id) for class_id in class_ids or ()) or "no tag"


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _by(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size)


# --- numbers and tables -----------------------------------------------------------------------------------------------


def split_numbers(images: Sequence[Seen]) -> dict[str, Any]:
    """What check.json says of one split; sizes are of the images that decode, in pixels."""
    sizes = [seen.size for seen in images if seen.size is not None]
    masks = [seen for seen in images if seen.mask_classes is not None]
    tags = [seen.class_ids for seen in images if seen.class_ids is not None]
    grey = sum(seen.grey for seen in images)
    return {
        "images": len(images),
        "decoded": len(sizes),
        "untagged": sum(not class_ids for class_ids in tags),
        "tags_per_image": sum(map(len, tags)) / len(tags) if tags else None,
        "width": _spread([width for width, _ in sizes]),
        "height": _spread([height for _, height in sizes]),
        "aspect": _spread([max(size) / min(size) for size in sizes]),
        "grey": grey,
        "colour": len(sizes) - grey,
        "masks": len(masks),
        "ignored": sum(seen.ignored for seen in masks) / len(masks) if masks else None,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


def numbers(check: Check) -> dict[str, Any]:
    """All numbers of a check, as check.json has them. Shares are fractions in [0,1]."""
    together = check.together()
    train, val = (check.class_counts(split) for split in (check.train, check.val))
    return {
        "sound": check.sound,
        "errors": len(check.of(ERROR)),
        "warnings": len(check.of(WARNING)),
        "findings": [
            {
                "level": finding.level,
                "code": finding.code,
                "text": finding.text,
                "count": len(finding.examples),
                "more": finding.more,
                "examples": list(finding.examples[:KEPT]),
            }
            for finding in check.findings
        ],
        "train": check.train,
        "val": check.val,
        "splits": {split: split_numbers(images) for split, images in check.splits.items()},
        "classes": [{"name": name, "train": a, "val": b} for name, a, b in zip(check.classes, train, val, strict=True)],
        "together": together.tolist(),
        "pairs": [
            {"class": check.name(a), "with": check.name(b), "images": images, "share": share}
            for a, b, images, share in top_pairs(together)
        ],
    }


def print_tables(check: Check, *, title: str) -> None:
    """Print splits, classes, pairs and findings."""
    found = {split: split_numbers(images) for split, images in check.splits.items()}
    keys = ("images", "decoded", "masks", "untagged", "tags_per_image", "width", "height", "aspect", "grey", "ignored")
    rows = [(_HEADS.get(key, key), *(_cell(numbers[key]) for numbers in found.values())) for key in keys]
    rows[-1] = (rows[-1][0], *(numbers["ignored"] for numbers in found.values()))
    table(title, rows, columns=("", *found), wide=True)

    pairs = top_pairs(check.together())
    partner = {pair.class_id: pair for pair in reversed(pairs)}  # the first of each class wins
    lines: list[list[Cell]] = []
    counts = [check.class_counts(split) for split in check.splits]
    for class_id, name in enumerate(check.classes, 1):
        pair = partner.get(class_id)
        with_it: list[Cell] = ["-", None] if pair is None else [check.name(pair.other), pair.share]
        lines.append([name, *(of[class_id - 1] for of in counts), *with_it])
    heads = ("class", *check.splits, "most often with", f"% of its {check.train}")
    table("images of each class, by the tags", lines, columns=heads, wide=True)
    if pairs:
        table(
            f"classes together in {check.train}",
            [(check.name(a), check.name(b), images, share) for a, b, images, share in pairs[:TOP_PAIRS]],
            columns=("class", "with", "images", "% of the class"),
            wide=True,
        )
    if not check.findings:
        return
    table(
        "findings",
        [(finding.level, finding.count, finding.text) for finding in check.findings],
        columns=("", "number", "what"),
        wide=True,
    )
    for finding in check.findings:
        console.print(
            f"{finding.level}: {finding.text} ({finding.count})", markup=False, highlight=False, soft_wrap=True
        )
        rest = len(finding.examples) - PRINTED
        for example in [*finding.examples[:PRINTED], *([f"... and {rest} more: see check.json"] if rest > 0 else [])]:
            console.print(f"  {example}", markup=False, highlight=False, soft_wrap=True)


_HEADS = {
    "masks": "with a mask",
    "untagged": "without a tag",
    "tags_per_image": "tags an image",
    "width": "width: least, median, most",
    "height": "height",
    "aspect": "long side / short side",
    "ignored": "ignored pixels (% of a mask)",
}


def _cell(value: Any) -> Cell:
    if isinstance(value, Mapping):
        return ", ".join(f"{number:g}" if float(number).is_integer() else f"{number:.2f}" for number in value.values())
    return f"{value:.2f}" if isinstance(value, float) else value


# --- the contact sheet ------------------------------------------------------------------------------------------------


def contact_sheet(data: ImageSet, check: Check, *, count: int) -> np.ndarray | None:
    """Pictures of each split, evenly spaced over it: the id above, the tags below, the mask tinted and outlined.

    Args:
        data: where the pictures come from.
        check: tells which of them decode.
        count: pictures of each split, 1 or more.

    Returns:
        ``(H, W, 3)`` uint8; None where no image decodes.
    """
    panels = []
    for split, images in check.splits.items():
        whole = [seen for seen in images if seen.size is not None]
        chosen = [whole[at * len(whole) // count] for at in range(count)] if len(whole) > count else whole
        tiles = [Tile(seen.id, _picture(data, check, seen)) for seen in chosen]
        if tiles:
            title = f"{split}: {len(tiles)} of {len(images)} images"
            panels.append(panel(tiles, columns=COLUMNS, tile_width=TILE, title=title))
    if not panels:
        return None
    width = max(part.shape[1] for part in panels)
    padding = [((0, 0), (0, width - part.shape[1]), (0, 0)) for part in panels]
    return np.concatenate([np.pad(part, pad, constant_values=255) for part, pad in zip(panels, padding, strict=True)])


def _picture(data: ImageSet, check: Check, seen: Seen) -> np.ndarray:
    """One image within a square of ``TILE``, on white, and its tags below."""
    image = Image.fromarray(data.image(seen.id))
    factor = TILE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    small = np.array(image.resize(size, Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BOX))
    mask = data.mask(seen.id) if seen.mask_classes is not None else None
    if mask is not None:  # brought to size before it is drawn, so that outlines stay one pixel wide
        small = overlay_labels(
            small, np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)), alpha=0.35
        )
    canvas = np.full((size[1] + CAPTION_LINES * LINE, TILE, 3), 255, np.uint8)
    left = (TILE - size[0]) // 2
    canvas[: size[1], left : left + size[0]] = small
    canvas[size[1] :] = caption([(check.name(id), tuple(voc_palette()[id])) for id in seen.class_ids or ()])
    return canvas


def caption(tags: Sequence[tuple[str, tuple[int, ...]]]) -> np.ndarray:
    """Names, each behind a square of its colour, in ``CAPTION_LINES`` lines; what has no room becomes dots.

    Returns:
        ``(CAPTION_LINES * LINE, TILE, 3)`` uint8.
    """
    canvas = Image.new("RGB", (TILE, CAPTION_LINES * LINE), WHITE)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    if not tags:
        draw.text((0, 0), "no tag", fill=(150, 150, 150), font=font)
    left, line = 0, 0
    for name, colour in tags:
        width = 13 + int(draw.textlength(name, font=font)) + 8
        if left and left + width > TILE - 14 * (line == CAPTION_LINES - 1):
            if line == CAPTION_LINES - 1:
                draw.text((left, line * LINE), "...", fill=(40, 40, 40), font=font)
                break
            left, line = 0, line + 1
        draw.rectangle((left, line * LINE + 3, left + 8, line * LINE + 11), fill=colour)
        draw.text((left + 13, line * LINE), name, fill=(40, 40, 40), font=font)
        left += width
    return np.asarray(canvas)


# --- the command ------------------------------------------------------------------------------------------------------


def longest_aspect(config: DictConfig) -> float:
    """Long side over short side beyond which a training of the configuration refuses an image.

    Raises:
        ConfigError: the recipe of a training cannot be built.
    """
    views = (build(config, f"recipe.{recipe}.augment") for recipe in RECIPES)
    return min(float(getattr(view, "longest_aspect", math.inf)) for view in views)


def output_folder(folder: Path, data: ImageSet) -> Path:
    """Where the check of a set is written by default: below ``folder``, by the names of the set and of its root.

    A number follows where another set's check lies there, so that no check overwrites that of another set.
    """
    root = Path(data.root).absolute()
    name = "_".join(dict.fromkeys(part for part in (data.name, root.name) if part))
    for number in itertools.count(1):
        place = folder / (name if number == 1 else f"{name}_{number}")
        try:
            same = read_json(place / "check.json")["root"] == str(root)
        except (OSError, UserError, ValueError, LookupError, TypeError):  # none, or none that can be read
            return place
        if same:
            return place
    raise AssertionError


def check_set(data: ImageSet, *, workers: int | None = None, few: int = FEW, longest: float = math.inf) -> Check:
    """Look at every file of both splits.

    Args:
        data: the set.
        workers: processes; 0 works in this one, None takes as many as the cores allow and the set is worth.
        few: a class with fewer training images is warned of.
        longest: long side over short side beyond which training refuses an image; see ``longest_aspect``.
    """
    names = tuple(dict.fromkeys((data.train, data.val)))
    ids = {split: data.ids(split) for split in names}
    every = list(dict.fromkeys(id for split in ids.values() for id in split))
    count = worker_count(workers, most=min(16, len(every) // IMAGES_PER_WORKER))
    looks = progress(look_at_all(data, every, workers=count), "check", unit="img", total=len(every))
    seen = {found.id: found for found in looks}
    splits = {split: [seen[id] for id in ids[split]] for split in names}
    masked = {split: data.has_masks(split) for split in names}
    return Check(data.classes, data.train, data.val, splits, masked, few, longest, data.white)


def run(options: argparse.Namespace) -> bool:
    """Check the set that a command line chooses, print and write what was found; return whether it is sound.

    Raises:
        UserError: the configuration or the set cannot be used.
    """
    config, _ = composed(options.overrides)
    if config.workers is not None and config.workers < 0:
        raise ConfigError(f"workers={config.workers} must be 0 or more, or null")
    data: ImageSet = build(config, "data")
    out = options.out or output_folder(Path(config.paths.logs) / "check", data)
    longest = longest_aspect(config)
    started = time.perf_counter()
    check = check_set(data, workers=config.workers, few=options.few, longest=longest)
    seconds = time.perf_counter() - started
    images = len(check.everything())
    print_tables(check, title=f"{data.name}: {data.root}")
    written = ["check.json"]
    facts = {"name": data.name, "root": str(Path(data.root).absolute()), "images": images}
    speed = {"seconds": round(seconds, 3), "images_per_second": round(images / seconds, 1)}
    write_json(out / "check.json", facts | numbers(check) | speed)
    sheet = contact_sheet(data, check, count=options.contact_sheet) if options.contact_sheet else None
    if sheet is not None:
        content = encode(sheet, image_format="png")
        write_atomically(out / "contact_sheet.png", partial(_write, content))
        written.append("contact_sheet.png")
    log.info("written to %s: %s", out, ", ".join(written))
    kinds = f"{len(check.of(ERROR))} kinds of errors, {len(check.of(WARNING))} of warnings"
    verdict = f"{data.name} is {'sound' if check.sound else 'NOT sound'}: {kinds}; {images} images in {seconds:.1f} s"
    log.log(logging.INFO if check.sound else logging.ERROR, "%s (%.0f img/s)", verdict, images / seconds)
    return check.sound


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """The body of ``python -m wsss.check``; returns the exit code."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    setup_logging()
    quiet_libraries()
    try:
        return 0 if run(options) else UNSOUND
    except UserError as error:
        log.error("%s: %s", type(error).__name__, error)
        return USER_ERROR
    except KeyboardInterrupt:
        log.warning("interrupted")
        return INTERRUPTED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wsss.check",
        description="Decode every file of a data set and look for what would spoil a run: broken files, duplicates "
        "across splits, classes without images, masks that contradict the tags. Exit code 0: sound, perhaps with "
        "warnings; 1: errors; 2: the set cannot be read at all.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="OVERRIDE",
        help="as for the scripts: data=voc2012 data.root=..., +experiment=NAME",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: <paths.logs>/check/<set>_<its folder>")
    parser.add_argument(
        "--contact-sheet",
        type=_count,
        default=CONTACT_SHEET,
        metavar="N",
        help=f"pictures of each split on the contact sheet, 0 for none; default: {CONTACT_SHEET}",
    )
    parser.add_argument(
        "--few",
        type=_count,
        default=FEW,
        metavar="N",
        help=f"warn of classes with fewer training images; default: {FEW}",
    )
    return parser.parse_intermixed_args(list(arguments))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 0 or more")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
