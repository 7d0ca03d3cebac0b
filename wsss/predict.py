"""``python -m wsss.predict``: masks of one's own images from a finished segmenter.

    python -m wsss.predict artifacts/segmenter/53cbf2f250e9 photos/ -o predicted/

Exit code 0: all images done; 1: some could not be read, the others are done; 2: nothing can be done as asked.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import errno
import gzip
import io
import logging
import re
import shutil
import sys
import tarfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.artifacts import FINGERPRINT_DIGITS, Artifact, read_json, write_atomically, write_json
from wsss.build import build
from wsss.cli import INTERRUPTED, USER_ERROR
from wsss.console import progress, quiet_libraries, setup_logging, table
from wsss.data import VOC_CLASSES
from wsss.data.base import read_lines
from wsss.data.folder import DELIMITERS, index_images
from wsss.data.images import image_size, read_image
from wsss.data.transforms import to_tensor
from wsss.errors import ConfigError, CorruptArtifact, DataError, MissingArtifact, UserError
from wsss.inference import Inference
from wsss.palette import voc_palette
from wsss.pipeline import environment
from wsss.report.experiments import read_experiments
from wsss.show import composed, known, options
from wsss.training.shells import to_unit
from wsss.types import BACKGROUND
from wsss.viz import WHITE, css_color, encode, overlay_labels, resize_to

log = logging.getLogger("wsss.predict")  # run as a command, this module is called __main__

SOME_FAILED = 1
"""Exit code where some images could not be read."""

RESULTS = MASKS, OVERLAYS, PROBABILITIES = "masks", "overlays", "probabilities"
AREAS, RECORD, DONE = "areas.csv", "predict.json", "done.csv"
COLUMNS = ("image", "class", "label", "pixels", "share")

LARGE = 4_000_000
"""Pixels of a view from which a network needs gigabytes; the log says so."""

OVERLAY_SIDE = 1600
"""Pixels of the long side of an overlay, at most."""

NO_CRF = "none"
NAMED = 5
"""Images that a message names, at most."""

COMPETITIONS = ("comp5", "comp6")

T = TypeVar("T", int, float)


# --- the segmenter ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A finished segmenter.

    Attributes:
        artifact: where it lies.
        manifest: what it was made with.
        network: in evaluation mode; ``(N, 3, H, W)`` in [0,1] to logits ``(N, C+1, h, w)``.
    """

    artifact: Artifact
    manifest: Mapping[str, Any]
    network: nn.Module

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1..C."""
        return tuple(self.manifest["data"]["classes"])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels 0..C."""
        return ("background", *self.classes)

    @property
    def white(self) -> int | None:
        """Which grey value of deep images is white, as in training (``data.white``)."""
        return self.manifest["config"].get("data", {}).get("white")

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from another: a stage that was forced again keeps its fingerprint."""
        return {"fingerprint": self.manifest["fingerprint"], "created": self.manifest["created"]}


def find_segmenter(given: str) -> Artifact:
    """The artifact of a directory, of a file of it, or of the first digits of a fingerprint below ``paths.artifacts``.

    Raises:
        MissingArtifact: there is none, or several begin like that.
    """
    path = Path(given)
    if path.name in ("manifest.json", "weights.safetensors") and path.is_file():
        path = path.parent
    if path.is_dir():
        whole = path.resolve()
        return Artifact(whole.parent.parent, whole.parent.name, whole.name)
    root = Path(composed([])[0].paths.artifacts)
    names = sorted(file.parent.name for file in (root / "segmenter").glob("*/manifest.json"))
    digits = re.compile(f"[0-9a-f]{{{FINGERPRINT_DIGITS}}}")  # a result that was set aside is called <fingerprint>.old
    finished = [name for name in names if digits.fullmatch(name)]
    found = [name for name in finished if re.fullmatch("[0-9a-f]+", given) and name.startswith(given)]
    if len(found) == 1:
        return Artifact(root, "segmenter", found[0])
    if found:
        raise MissingArtifact(f"several segmenters in {root} begin with {given}: {', '.join(found)}. Give more digits")
    if path.is_file():
        raise MissingArtifact(f"{given} is a file. Give the folder of a finished segmenter")
    there = f"Finished there: {', '.join(finished)}" if finished else "Train one with train_seg.py or python -m wsss"
    below = (
        (one.fingerprint, stage, artifact.fingerprint)
        for one in (read_experiments(root) if finished else ())
        for stage, artifact in one.chain.items()
    )
    made_from = [(own, stage) for own, stage, other in below if other.startswith(given) and stage != "segmenter"]
    if made_from:
        there = f"It is of {made_from[0][1]}; segmenters made from it: {', '.join(own for own, _ in made_from)}"
    raise MissingArtifact(
        f"no directory {given}, and no segmenter of that fingerprint in {root / 'segmenter'}. {there}"
    )


def load_segmenter(given: str) -> Trained:
    """The network of a finished segmenter, as it was trained; see ``find_segmenter``.

    Raises:
        MissingArtifact: there is none, or it is not finished.
        ConfigError: it is the result of another stage, or its network cannot be built.
        CorruptArtifact: its manifest or its weights cannot be read.
    """
    artifact = find_segmenter(given)
    if not artifact.complete:
        raise MissingArtifact(
            f"no finished segmenter in {artifact.directory} (it has no manifest.json). Give a directory like "
            f"artifacts/segmenter/53cbf2f250e9; a training that was interrupted goes on with the command that began it"
        )
    manifest = artifact.manifest
    stage = manifest.get("stage") if isinstance(manifest, dict) else None
    if stage != "segmenter":
        raise ConfigError(f"{artifact.directory} is the result of the stage {stage}. Give that of a segmenter")
    if not artifact.has_weights:
        raise CorruptArtifact(f"{artifact.directory} has lost its weights.safetensors. Copy the whole directory")
    try:
        node, labels = dict(manifest["config"]["segmenter"]), len(manifest["data"]["classes"]) + 1
    except (KeyError, TypeError) as error:
        raise CorruptArtifact(f"the manifest of {artifact.directory} lacks the network or the classes") from error
    if "weights" in node:
        node["weights"] = None  # those that training started from are not needed, nor perhaps there any more
    network = build(OmegaConf.create({"segmenter": node}), "segmenter", num_labels=labels)
    artifact.read_weights(network)
    return Trained(artifact, manifest, network.eval())


def default_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """How a segmenter looked at the images that it was measured on; what its manifest does not say has the default."""
    config = manifest["config"]
    return {
        "scales": list(config.get("evaluation.scales") or (1.0,)),
        "flip": bool(config.get("evaluation.flip", False)),
        "window": config.get("evaluation.window"),
        "overlap": config.get("evaluation.overlap", 1 / 3),
        "crf": config.get("evaluation.crf"),
    }


def device_named(name: str) -> torch.device:
    """The device of a name; ``auto`` is the GPU where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


# --- the images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One image to predict.

    Attributes:
        path: of its file.
        image: how tables call it: the path below the folder that was given.
        name: of its results: the same without suffix.
        allowed: the class ids that may come out; None: all.
    """

    path: Path
    image: str
    name: str
    allowed: tuple[int, ...] | None = None


def find_items(given: Sequence[Path], out: Path) -> list[Item]:
    """The images named, and those below the folders named; results of this command, in ``out`` or not, are left out.

    Raises:
        DataError: there is no such file, a folder holds no image, or two images would have the same result.
    """
    items: dict[str, Item] = {}
    own = out.resolve()
    for place in given:
        if place.is_dir():
            files = index_images(place)
            folders = {path.parent for path in files.by_id.values()}
            of_results = {folder: run for folder in folders if (run := _run_of(folder, place, own)) is not None}
            found = [
                Item(path, path.relative_to(place).as_posix(), id)
                for id, path in files.by_id.items()
                if path.parent not in of_results
            ]
            if not found:
                raise DataError(f"{place} holds only results of this command, no images")
            if of_results:
                runs = sorted({str(run) for run in of_results.values()})
                log.info("%s: the results of earlier runs are left out (%s)", place, _some(runs))
            if files.left_out:
                log.info("%s: %d files are no images, such as %s", place, len(files.left_out), files.left_out[0].name)
        elif place.is_file():
            found = [Item(place, place.name, place.stem)]
        else:
            raise DataError(f"no image {place}: there is no such file or folder")
        for item in found:
            same = items.setdefault(item.name, item)
            if same.path != item.path and same.path.resolve() != item.path.resolve():
                raise DataError(
                    f"{same.path} and {item.path} would both be written to {item.name}.png. Rename one, or give the "
                    f"folder above them"
                )
    return list(items.values())


def _run_of(folder: Path, place: Path, own: Path) -> Path | None:
    """The folder of the run whose results lie in ``folder``; None where images do.

    Args:
        folder: below ``place``.
        place: what was given: results that were asked for by name are images.
        own: the folder of this run, resolved.
    """
    whole = folder.resolve()
    if any(whole.is_relative_to(own / results) for results in RESULTS):
        return own
    while folder != place:
        if folder.name in RESULTS and (folder.parent / RECORD).is_file():
            return folder.parent
        folder = folder.parent
    return None


def chosen(items: Sequence[Item], ids: Path | None) -> list[Item]:
    """The images that a list names, in its order; all without a list.

    Raises:
        DataError: the list cannot be read, is empty, or names an image that is not there.
    """
    if ids is None:
        return list(items)
    wanted = list(dict.fromkeys(read_lines(ids)))
    find = _finder({item.name: item for item in items})
    found = {id: item for id in wanted if (item := find(id)) is not None}
    missing = [id for id in wanted if id not in found]
    if missing or not wanted:
        lacking = f"{len(missing)} of the {len(wanted)} images of {ids} are missing: {_some(missing)}"
        raise DataError(f"{lacking}. Give the folder they lie in" if wanted else f"{ids} names no image")
    return list(dict.fromkeys(found.values()))


def tagged(items: Sequence[Item], path: Path, classes: Sequence[str]) -> list[Item]:
    """The images with the classes that a table allows them.

    Args:
        items: the images.
        path: CSV with the columns image and tags (joined by ';', none where only background may come out), as the
            tags.csv of a data set; other columns and rows of other images do not matter.
        classes: names of 1..C.

    Raises:
        DataError: the table cannot be read, a row has too many or too few fields, names an unknown class or an image
            twice, or an image has no row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}). Save it as UTF-8") from error
    found: dict[str, tuple[int, ...]] = {}
    find = _finder({key: item for item in items for key in (item.name, item.image)})
    ids = {name: position for position, name in enumerate(classes, 1)}
    for number, row in _rows(path, text):
        item = find(row["image"].replace("\\", "/"))
        if item is None:
            continue
        if item.name in found:
            raise DataError(f"{path}, line {number} names the image {item.image} again")
        tags = [tag for part in row["tags"].split(";") if (tag := part.strip())]
        unknown = [tag for tag in tags if tag not in ids]
        if unknown:
            near = difflib.get_close_matches(unknown[0], classes, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"The segmenter knows: {', '.join(classes)}"
            raise DataError(f"{path}, line {number} has the unknown tag {unknown[0]!r}. {hint}")
        found[item.name] = tuple(sorted({ids[tag] for tag in tags}))
    without = [item.image for item in items if item.name not in found]
    if without:
        raise DataError(f"{path} has no row for {len(without)} of {len(items)} images: {_some(without)}. Add them")
    return [Item(item.path, item.image, item.name, found[item.name]) for item in items]


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table, stripped, with their last line's number; its header names the columns image and tags."""
    head = next((line for line in text.splitlines() if line.strip()), "")

    def columns(delimiter: str) -> list[str]:
        return [name.strip().lower() for name in next(csv.reader([head], delimiter=delimiter), [])]

    delimiter = next((one for one in DELIMITERS if {"image", "tags"} <= set(columns(one))), None)
    if delimiter is None:
        raise DataError(f"{path} begins with {head[:100]!r}. Its header must have the columns image and tags")
    header = columns(delimiter)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    filled = (values for values in lines if any(value.strip() for value in values))
    try:
        next(filled)
        for values in filled:
            if len(values) != len(header):
                raise DataError(
                    f"{path}, line {lines.line_num} has {len(values)} fields, the header {len(header)}. Tags are "
                    f"joined by ';', and a field that holds the separator of the columns is put in double quotes"
                )
            yield lines.line_num, dict(zip(header, (value.strip() for value in values), strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num} cannot be read ({error}). Check the double quotes") from error


def _finder(by_name: Mapping[str, Item]) -> Callable[[str], Item | None]:
    """Finds images by name; where none has exactly that name, by the same letters in other code points.

    macOS gives files an e and a combining accent where editors write the one letter é.
    """
    images = {unicodedata.normalize("NFC", name): item for name, item in by_name.items()} | dict(by_name)
    return lambda name: images.get(name) or images.get(unicodedata.normalize("NFC", name))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)


def read_picture(path: Path, *, white: int | None) -> np.ndarray:
    """``read_image``, without its advice on the splits of a data set.

    Raises:
        DataError: see ``read_image``.
    """
    try:
        return read_image(path, white=white)
    except DataError as error:
        if error.__cause__ is None:
            raise
        reason = error.__cause__
        raise DataError(f"the image {path} does not decode ({reason}). Replace the file, or leave it out") from reason


# --- one image --------------------------------------------------------------------------------------------------------


def shrunk(picture: np.ndarray, max_side: int | None) -> np.ndarray:
    """An image ``(H, W, 3)`` uint8 made smaller where its long side is above ``max_side`` pixels.

    >>> shrunk(np.zeros((300, 400, 3), np.uint8), 100).shape
    (75, 100, 3)
    """
    height, width = picture.shape[:2]
    factor = 1.0 if max_side is None else max_side / max(height, width)
    if factor >= 1:
        return picture
    return resize_to(picture, max(1, round(width * factor)), height=max(1, round(height * factor)))


def enlarged(probabilities: Tensor, size: Sequence[int]) -> np.ndarray:
    """The most probable label of each pixel at another size: probabilities ``(L, h, w)`` to labels ``(H, W)`` uint8.

    They are interpolated one label at a time, so that all of them never stand in memory at full size.
    """
    best = torch.full(tuple(size), -1.0, device=probabilities.device)
    labels = torch.zeros(tuple(size), dtype=torch.uint8, device=probabilities.device)
    for label, plane in enumerate(probabilities):
        plane = F.interpolate(plane[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]
        better = plane > best
        best, labels = torch.where(better, plane, best), labels.masked_fill(better, label)
    return labels.cpu().numpy()


def predict_image(
    network: nn.Module,
    picture: np.ndarray,
    inference: Inference,
    *,
    allowed: Sequence[int] | None = None,
    max_side: int | None = None,
    probabilities: bool = False,
) -> tuple[np.ndarray, Tensor | None]:
    """Labels of an image, and if asked for their probabilities.

    Args:
        network: see ``Inference``.
        picture: ``(H, W, 3)`` uint8, RGB.
        inference: how the network looks at it.
        allowed: class ids that may come out; None: all.
        max_side: the network sees the image with a long side of at most so many pixels. Probabilities are brought back
            to its size, smoothly; labels of a CRF, which sees the small image too, by the nearest pixel.
        probabilities: whether to return them.

    Returns:
        Labels ``(H, W)`` uint8, and probabilities ``(C+1, h, w)`` at the size that the network sees, before a CRF.
    """
    small = shrunk(picture, max_side)
    device = next(network.parameters()).device
    image = to_unit(to_tensor(small)).to(device)
    smaller = small.shape != picture.shape
    found = None
    if probabilities or (smaller and inference.crf is None):
        found = inference.probabilities(network, image, allowed=allowed)
    if found is not None and inference.crf is None:
        labels = enlarged(found, picture.shape[:2]) if smaller else found.argmax(0).to(torch.uint8).cpu().numpy()
    else:
        labels = inference.labels(network, image, picture=small, allowed=allowed)
        if smaller:
            labels = resize_to(labels, picture.shape[1], height=picture.shape[0], nearest=True)
    return labels, found if probabilities else None


def areas(labels: np.ndarray, names: Sequence[str]) -> list[tuple[str, int, int, float]]:
    """Class, label, pixels and share of the image, for background and each class in it.

    >>> areas(np.array([[0, 2, 2, 2]], np.uint8), ("background", "cat", "dog"))
    [('background', 0, 1, 0.25), ('dog', 2, 3, 0.75)]
    """
    counts = np.bincount(labels.ravel(), minlength=len(names)).tolist()
    return [
        (names[label], label, count, count / labels.size)
        for label, count in enumerate(counts)
        if count or label == BACKGROUND
    ]


def overlay(picture: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """An image tinted with its labels, above a legend of the classes in it: ``(H', W', 3)`` uint8.

    Images above ``OVERLAY_SIDE`` are made smaller first, so that outlines stay visible.
    """
    small = shrunk(picture, OVERLAY_SIDE)
    plane = resize_to(labels, small.shape[1], height=small.shape[0], nearest=True)
    painted = overlay_labels(small, plane, alpha=0.5)
    width = painted.shape[1]
    legend = _legend(areas(labels, names), width=width, size=max(12, width // 50))
    return np.concatenate([painted, legend])


def _legend(found: Iterable[tuple[str, int, int, float]], *, width: int, size: int) -> np.ndarray:
    """A line of colours, names and shares, the largest first, folded to the width of the picture."""
    font = ImageFont.load_default(size)
    entries = sorted((entry for entry in found if entry[1] != BACKGROUND), key=lambda entry: -entry[2])
    texts = [(f"{name} {_percent(share)}", label) for name, label, _, share in entries] or [("background alone", 0)]
    gap, line, box = size // 2, round(1.5 * size), size
    places, left, row = [], gap, 0
    for text, label in texts:
        room = box + gap + round(font.getlength(text))
        if left > gap and left + room > width:
            left, row = gap, row + 1
        places.append((left, row * line + gap, text, label))
        left += room + 2 * gap
    canvas = Image.new("RGB", (width, (row + 1) * line + gap), WHITE)
    draw = ImageDraw.Draw(canvas)
    for x, y, text, label in places:
        draw.rectangle((x, y, x + box - 1, y + box - 1), fill=css_color(label))
        draw.text((x + box + gap, y + box // 2), text, fill=(40, 40, 40), font=font, anchor="lm")
    return np.asarray(canvas)


def _percent(share: float) -> str:
    return "below 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


# --- the results ------------------------------------------------------------------------------------------------------


def allowed_ids(item: Item) -> str:
    """The class ids that may come out in an image, ``1 3``, or ``all``."""
    return "all" if item.allowed is None else " ".join(map(str, item.allowed))


class State(NamedTuple):
    """What an image was when it was predicted: the same again, and nothing needs to be done.

    Attributes:
        bytes: of its file.
        modified: the time of its file, in nanoseconds.
        allowed: see ``allowed_ids``.
    """

    bytes: str
    modified: str
    allowed: str

    @classmethod
    def of(cls, item: Item) -> State:
        """That of an image now; the first two are empty where there is no file."""
        try:
            found = item.path.stat()
        except OSError:
            return cls("", "", allowed_ids(item))
        return cls(str(found.st_size), str(found.st_mtime_ns), allowed_ids(item))


@dataclass(frozen=True)
class Results:
    """The folder that results are written to.

    Attributes:
        folder: of everything.
        overlays: whether there are overlays.
        probabilities: whether there are probabilities.
        states: of the images that are done, by name; ``claim`` reads them, ``write`` adds to them.
    """

    folder: Path
    overlays: bool = True
    probabilities: bool = False
    states: dict[str, State] = field(default_factory=dict)

    def mask(self, name: str) -> Path:
        """The indexed mask of an image; it is written last, so that an image that has it is done."""
        return self.folder / MASKS / f"{name}.png"

    def claim(self, record: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder one of these settings, or go on in one that is.

        Raises:
            ConfigError: it holds results of other settings, or of something else, or is no folder.
        """
        if self.folder.is_file():
            raise ConfigError(f"-o {self.folder} is a file. Give a folder")
        check_parents(self.folder)
        path = self.folder / RECORD
        folders = [self.folder / name for name in RESULTS]
        self.states.clear()
        if path.is_file():
            old = read_json(path)
            other = _differences(old if isinstance(old, dict) else {}, record)
            if other and not overwrite:
                raise ConfigError(
                    f"{self.folder} holds results of other settings ({'; '.join(other)}). Choose another folder with "
                    f"-o, or delete those results with --overwrite"
                )
            if overwrite:
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)
            else:
                self.states.update(_read_states(self.folder / DONE))
        elif strangers := [str(folder) for folder in folders if folder.exists()]:
            raise ConfigError(
                f"{strangers[0]} exists, but {RECORD} is not beside it: it is not from this command, which might "
                f"overwrite it. Choose another folder with -o"
            )
        (self.folder / AREAS).unlink(missing_ok=True)
        done = _lines((name, *state) for name, state in self.states.items())  # a line that was cut off goes
        write_atomically(self.folder / DONE, partial(_write, done))
        write_json(path, {**record, "finished": False})

    def kept(self, item: Item) -> np.ndarray | None:
        """The labels of an image that is done: all its files are there, and it is what it was."""
        files = [self.mask(item.name)]
        files += [self._overlay(item.name)] * self.overlays + [self._probabilities(item.name)] * self.probabilities
        if State.of(item) != self.states.get(item.name) or not all(file.is_file() for file in files):
            return None
        try:
            with Image.open(files[0]) as image:
                labels = np.array(image)
            return labels if labels.shape[::-1] == image_size(item.path) else None
        except (OSError, SyntaxError, ValueError, DataError):
            return None

    def forget(self, item: Item) -> None:
        """Delete what was found in an earlier state of an image that can no longer be done."""
        for path in (self.mask(item.name), self._overlay(item.name), self._probabilities(item.name)):
            path.unlink(missing_ok=True)

    def write(
        self,
        item: Item,
        state: State,
        picture: np.ndarray,
        labels: np.ndarray,
        found: Tensor | None,
        names: Sequence[str],
    ) -> None:
        """Keep what was found in one image, which was in ``state`` when it was read."""
        self.forget(item)  # a mask of an earlier state must not be found beside the new state
        if found is not None:
            array = found.cpu().numpy().astype(np.float16)
            write_atomically(self._probabilities(item.name), partial(_save_array, array))
        if self.overlays:
            content = encode(overlay(picture, labels, names), image_format="jpeg", quality=88)
            write_atomically(self._overlay(item.name), lambda path: _write(content, path))
        with (self.folder / DONE).open("ab") as file:
            file.write(_lines([(item.name, *state)]))
        self.states[item.name] = state
        mask = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
        mask.putpalette(voc_palette().tobytes())
        write_atomically(self.mask(item.name), lambda path: mask.save(path, format="PNG"))

    def _overlay(self, name: str) -> Path:
        return self.folder / OVERLAYS / f"{name}.jpg"

    def _probabilities(self, name: str) -> Path:
        return self.folder / PROBABILITIES / f"{name}.npz"


def _save_array(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # an open file: numpy would add .npz to a name
        np.savez_compressed(file, allow_pickle=False, probabilities=array)


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """CSV, in UTF-8 or whatever else the names of files are in."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def _read_states(path: Path) -> dict[str, State]:
    """The states that were written, the last one of each image; a line that was cut off, or no file, tells nothing."""
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (FileNotFoundError, csv.Error):
        return {}
    return {name: State(*state) for name, *state in filter(None, rows) if len(state) == len(State._fields)}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two records disagree about, of what moves a mask."""
    pairs = []
    for part in ("segmenter", "settings"):
        before, after = old.get(part) or {}, new[part]
        pairs += [(key, before.get(key), after[key]) for key in after]
    pairs = [(key, bool(before), after) if key == "tags" else (key, before, after) for key, before, after in pairs]
    return [
        f"{key} {_told(key, before)} there, {_told(key, after)} now" for key, before, after in pairs if before != after
    ]


def _told(key: str, value: Any) -> str:
    """A setting as the command line has it."""
    if key == "tags":
        return "given" if value else "not given"
    if key != "crf":
        return str(value)
    if value is None:
        return NO_CRF
    named = (name for name in options("crf") if _crf(name) == value)
    return next(named, f"with {', '.join(f'{name} {one}' for name, one in value.items() if name != '_target_')}")


def _crf(name: str) -> dict[str, Any]:
    """The values of an option of conf/crf/."""
    return cast(dict[str, Any], OmegaConf.to_container(composed([f"crf={name}"])[0].crf, resolve=True))


def write_submission(folder: Path, masks: Mapping[str, Path], *, competition: str, name: str) -> Path:
    """The result format of the VOC 2012 test server: a folder of masks, and the archive that is sent in.

    Args:
        folder: ``results/VOC2012/Segmentation/<competition>_test_cls/<id>.png`` is made below it.
        masks: indexed PNG file of each image, by id.
        competition: ``comp5`` or ``comp6``.
        name: of the archive.

    Returns:
        The archive, of the same bytes for the same masks.
    """
    place = Path("results", "VOC2012", "Segmentation", f"{competition}_test_cls")
    content = {(place / f"{id}.png").as_posix(): mask.read_bytes() for id, mask in sorted(masks.items())}

    def pack(path: Path) -> None:
        with (
            path.open("wb") as file,
            gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for inside, data in content.items():
                member = tarfile.TarInfo(inside)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

    for inside, data in content.items():
        write_atomically(folder / inside, partial(_write, data))
    archive = folder / f"{competition}_{name}.tgz"
    write_atomically(archive, pack)
    return archive


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was done.

    Attributes:
        rows: of ``areas.csv``.
        failed: images that could not be done, and why.
        predicted: images that the network has seen.
        reused: images that were done before.
    """

    rows: list[tuple[str, str, int, int, str]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    predicted: int = 0
    reused: int = 0

    def add(self, image: str, found: Iterable[tuple[str, int, int, float]]) -> None:
        """Count the areas of one image."""
        self.rows += [(image, name, label, pixels, f"{share:.6f}") for name, label, pixels, share in found]


def settings_of(arguments: argparse.Namespace, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What moves a mask: the settings of the segmenter's own test where the command line does not say otherwise.

    Raises:
        ConfigError: there is no such CRF, or an overlap without windows.
    """
    settings = default_settings(manifest)
    settings |= {key: value for key in settings if (value := getattr(arguments, key)) is not None and key != "crf"}
    if arguments.crf == NO_CRF:
        settings["crf"] = None
    elif arguments.crf is not None:
        known(arguments.crf, [*options("crf"), NO_CRF], "CRF")
        settings["crf"] = _crf(arguments.crf)
    if arguments.window == 0:
        settings["window"] = None
    if settings["window"] is None and arguments.overlap is not None:
        raise ConfigError("--overlap is that of windows, and there are none. Add --window 512, or leave --overlap out")
    return settings | {"max_side": arguments.max_side, "tags": arguments.tags is not None}


def run(arguments: argparse.Namespace) -> bool:
    """Predict what a command line asks for; return whether every image could be done.

    Raises:
        UserError: the segmenter, the images or the settings cannot be used; nothing has been predicted then.
    """
    trained = load_segmenter(arguments.segmenter)
    items = chosen(find_items(arguments.images, arguments.out), arguments.ids)
    _check_submission(arguments, trained, items)
    settings = settings_of(arguments, trained.manifest)
    supervision = trained.manifest["supervision"]
    if arguments.tags is not None:
        items = tagged(items, arguments.tags, trained.classes)
        supervision += f"; at prediction: image tags ({arguments.tags})"
    elif trained.manifest["config"].get("evaluation.tags"):
        log.warning("this segmenter was measured with the tags of its test images; without --tags expect less")
    inference = Inference(
        scales=tuple(settings["scales"]),
        flip=settings["flip"],
        window=settings["window"],
        overlap=settings["overlap"],
        crf=None if settings["crf"] is None else build(OmegaConf.create({"crf": settings["crf"]}), "crf"),
        tags=arguments.tags is not None,
    )
    device = device_named(arguments.device)
    trained.network.to(device)
    record = {
        "segmenter": trained.identity,
        "supervision": supervision,
        "labels": dict(enumerate(trained.names)),
        "settings": settings,
        "images": len(items),
    }
    results = Results(arguments.out, overlays=arguments.overlays, probabilities=arguments.probabilities)
    results.claim(record, overwrite=arguments.overwrite)
    other = [item for item in items if (old := results.states.get(item.name)) and old.allowed != allowed_ids(item)]
    if other:
        log.info("another tags file: %d images have other tags there and are done again", len(other))

    started = time.perf_counter()
    tally = predict_items(trained, items, inference, results, max_side=arguments.max_side)
    write_atomically(arguments.out / AREAS, partial(_write, _lines([COLUMNS, *tally.rows])))
    write_json(
        arguments.out / RECORD,
        {
            **record,
            "finished": not tally.failed,
            "predicted": tally.predicted,
            "reused": tally.reused,
            "failed": tally.failed,
            "device": str(device),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(time.perf_counter() - started, 1),
            **environment(),
        },
    )
    _summarise(trained, tally, arguments.out)
    if arguments.voc is not None and not tally.failed:
        masks = {item.name: results.mask(item.name) for item in items}
        archive = write_submission(
            arguments.voc, masks, competition=arguments.competition, name=trained.manifest["fingerprint"]
        )
        log.info("to send to the VOC server: %s (%d masks)", archive, len(masks))
    elif arguments.voc is not None:
        log.error("nothing is written for the VOC server: it wants a mask of every image")
    return not tally.failed


def predict_items(
    trained: Trained, items: Sequence[Item], inference: Inference, results: Results, *, max_side: int | None
) -> Tally:
    """Predict and keep each image that is not done yet. One that cannot be done is told in the result, not raised."""
    tally, told = Tally(), False
    for item in progress(items, "predict", unit="img"):
        labels = results.kept(item)
        if labels is not None:
            tally.reused += 1
            tally.add(item.image, areas(labels, trained.names))
            continue
        state, picture = State.of(item), None  # the state first: an image that changes meanwhile is done again
        try:
            picture = read_picture(item.path, white=trained.white)
            told = told or _tell_large(item, shrunk_size(picture, max_side), inference, trained.manifest)
            labels, found = predict_image(
                trained.network,
                picture,
                inference,
                allowed=item.allowed,
                max_side=max_side,
                probabilities=results.probabilities,
            )
        except DataError as error:
            tally.failed[item.image] = str(error)
            results.forget(item)
            continue
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if picture is None:
                tally.failed[item.image] = "reading it takes more memory than there is. Save it smaller"
            else:
                size = f"{picture.shape[1]}x{picture.shape[0]}"
                tally.failed[item.image] = f"{size} is too much for the memory. Try --max-side 2000, or --window 512"
            results.forget(item)
            continue
        results.write(item, state, picture, labels, found, trained.names)
        tally.predicted += 1
        tally.add(item.image, areas(labels, trained.names))
    return tally


def shrunk_size(picture: np.ndarray, max_side: int | None) -> tuple[float, float]:
    """Height and width that the network sees of an image, before ``scales``."""
    height, width = picture.shape[:2]
    factor = min(1.0, (max_side or max(height, width)) / max(height, width))
    return height * factor, width * factor


def _tell_large(item: Item, size: tuple[float, float], inference: Inference, manifest: Mapping[str, Any]) -> bool:
    """Say of an image that the network sees much at once; return whether it does."""
    pixels = size[0] * size[1] * max(inference.scales) ** 2
    if inference.window is not None or pixels <= LARGE:
        return False
    augment = (manifest["config"].get("recipe.segmenter") or {}).get("augment") or {}
    learnt = f" (it learnt from crops of {augment['size']} pixels)" if "size" in augment else ""
    log.warning(
        "%s is large: the network sees %.1f megapixels at once, which takes time and gigabytes (told once; there may "
        "be more). --max-side N makes images smaller for it%s, --window 512 shows it one part after the other",
        item.image, pixels / 1e6, learnt,
    )  # fmt: skip
    return True


def _out_of_memory(error: Exception) -> bool:
    """Whether memory was short; torch has an error of its own for that on a GPU alone."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def _check_submission(arguments: argparse.Namespace, trained: Trained, items: Sequence[Item]) -> None:
    if arguments.voc is None:
        return
    if trained.classes != VOC_CLASSES:
        raise ConfigError(
            f"--voc needs the 20 classes of VOC in their order, and {trained.artifact.directory} has "
            f"{len(trained.classes)}: {_some(trained.classes)}"
        )
    if arguments.tags is not None:
        raise ConfigError("--voc and --tags: the test server's images have no tags that one may use")
    below = [item.image for item in items if "/" in item.name]
    if below:
        raise ConfigError(f"--voc: ids have no folders, but {below[0]} lies in one. Give the folder JPEGImages itself")
    if arguments.ids is None:
        log.warning("--voc without --ids: nothing checks that these are the images of the test set")


def _summarise(trained: Trained, tally: Tally, out: Path) -> None:
    pixels, images = Counter[str](), Counter[str]()
    for _, name, _, count, _ in tally.rows:
        pixels[name] += count
        images[name] += count > 0
    total = sum(pixels.values())
    rows = [(name, images[name], pixels[name] / total) for name in trained.names if pixels[name]]
    title = f"segmenter {trained.manifest['fingerprint']}: images predicted {tally.predicted}, reused {tally.reused}"
    table(title, rows, columns=("class", "images", "% of pixels"))
    log.info("written to %s: %s, %s", out, AREAS, RECORD)
    for image, reason in tally.failed.items():
        log.error("%s: %s", image, reason)
    if tally.failed:
        log.error("%d of %d images could not be done", len(tally.failed), len(tally.failed) + len(_images(tally)))


def _images(tally: Tally) -> set[str]:
    return {row[0] for row in tally.rows}


def check_parents(out: Path) -> None:
    """Raise ConfigError where a file stands in the way of a path that shall be written."""
    for place in out.parents:
        if place.is_file():
            raise ConfigError(f"-o {out}: {place} is a file, not a folder. Choose another path")


def explain(error: OSError, out: Path) -> str:
    """What the system refused, at which path (``out`` where it does not say), and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space, or choose another place with -o"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Allow it, or choose another place with -o"
    else:
        remedy = "Check that path, or choose another with -o"
    return f"{error.filename or out}: {error.strerror or error}. {remedy}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The body of ``python -m wsss.predict``; returns the exit code."""
    chosen_options = parser().parse_args(list(sys.argv[1:] if arguments is None else arguments))
    setup_logging()
    quiet_libraries()
    try:
        return 0 if run(chosen_options) else SOME_FAILED
    except UserError as error:
        log.error("%s: %s", type(error).__name__, error)
        return USER_ERROR
    except OSError as error:
        log.error("%s", explain(error, chosen_options.out))
        return USER_ERROR
    except KeyboardInterrupt:
        log.warning("interrupted; the same command goes on from here")
        return INTERRUPTED


EXAMPLES = """\
examples:
  python -m wsss.predict artifacts/segmenter/53cbf2f250e9 photos/ -o predicted/
  python -m wsss.predict 53cbf2 photo.jpg other.png -o predicted/ --scales 0.75 1 1.25 --crf deeplab
  python -m wsss.predict 53cbf2 photos/ -o predicted/ --tags tags.csv --probabilities
  python -m wsss.predict 53cbf2 VOC2012/JPEGImages -o predicted/ --voc submission/ \\
      --ids VOC2012/ImageSets/Segmentation/test.txt

OUT/masks/<image>.png      indexed: 0 background, k the k-th class; the colours are those of PASCAL VOC
OUT/overlays/<image>.jpg   the image, tinted, with a legend
OUT/areas.csv              image,class,label,pixels,share: background and each class in the image; a class without a
                           row is not in it
OUT/predict.json           the segmenter, its classes, supervision and settings; images that failed
OUT/done.csv               each image's file (bytes, time) and allowed class ids: tells which to do again

Sub-folders are mirrored. The same command goes on where it was stopped, and predicts images that are new or have
changed, or have other tags. Exit code 0: all done; 1: some images could not be read; 2: nothing can be done as asked.
"""


def add_segmenter(parser: argparse.ArgumentParser) -> None:
    """Let a command take a finished segmenter, as ``find_segmenter`` does."""
    parser.add_argument(
        "segmenter",
        metavar="SEGMENTER",
        help="its directory (artifacts/segmenter/...), or first digits of its fingerprint below paths.artifacts",
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m wsss.predict",
        usage="%(prog)s SEGMENTER IMAGE... -o OUT [options]",
        description="Masks of one's own images from a finished segmenter.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_segmenter(made)
    made.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files, or folders of any depth")
    made.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    made.add_argument("--overwrite", action="store_true", help="delete the results of an earlier run in OUT first")
    made.add_argument("--no-overlays", dest="overlays", action="store_false", help="masks and areas alone")
    made.add_argument(
        "--probabilities",
        action="store_true",
        help="OUT/probabilities/<image>.npz too: 'probabilities', (C+1, h, w) float16, before a CRF, at the size that "
        "the network sees (large files)",
    )
    made.add_argument("--ids", type=Path, metavar="FILE", help="predict the images that this list names, all of them")
    made.add_argument("--device", default="auto", help="auto (default: a GPU where there is one), cpu, cuda, cuda:1")

    test = made.add_argument_group("settings", "default: those that the segmenter was measured with")
    test.add_argument("--scales", nargs="+", type=_scale, metavar="S", help="sizes of the views, relative to the image")
    test.add_argument("--flip", action=argparse.BooleanOptionalAction, help="see each view mirrored too")
    test.add_argument(
        "--window", type=_window, metavar="N", help="side in pixels of windows that slide over a view; 0: none"
    )
    test.add_argument("--overlap", type=_overlap, metavar="F", help="of neighbouring windows, as a fraction of a side")
    test.add_argument("--crf", metavar="NAME", help=f"{', '.join(options('crf'))}, or {NO_CRF}")
    test.add_argument(
        "--max-side",
        type=_side,
        metavar="N",
        help="images with a longer side are made smaller for the network; masks have full size",
    )
    test.add_argument(
        "--tags",
        type=Path,
        metavar="FILE",
        help="CSV with image,tags: only an image's tags (joined by ';') can come out. This is told in predict.json",
    )

    voc = made.add_argument_group("PASCAL VOC")
    voc.add_argument("--voc", type=Path, metavar="DIR", help="write what the VOC 2012 test server takes, and its .tgz")
    voc.add_argument(
        "--competition",
        choices=COMPETITIONS,
        default="comp6",
        help="comp5: learnt from VOC data alone; comp6 (default): from other data too, such as ImageNet pre-training",
    )
    return made


def _scale(text: str) -> float:
    return _number(text, float, lambda value: 0 < value <= 8, "above 0 and at most 8")


def _overlap(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value < 1, "0 or more and below 1")


def _window(text: str) -> int:
    return _number(text, int, lambda value: value == 0 or value >= 32, "a whole number, 32 or more, or 0 for none")


def _side(text: str) -> int:
    return _number(text, int, lambda value: value >= 32, "a whole number, 32 or more")


def _number(text: str, kind: type[T], holds: Callable[[T], bool], expected: str) -> T:
    with suppress(ValueError):
        if holds(value := kind(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text} must be {expected}")


if __name__ == "__main__":
    raise SystemExit(main())
