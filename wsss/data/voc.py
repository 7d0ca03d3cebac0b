"""The reader of the PASCAL VOC directory layout, used for VOC itself, for the demo set and for sets of one's own."""

from __future__ import annotations

import difflib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import ExifTags, Image, ImageOps

from wsss.errors import ConfigError, DataError
from wsss.types import BACKGROUND, IGNORE, Sample

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 classes of PASCAL VOC in their official order: class id = position + 1."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: Path) -> np.ndarray:
    """An image file as ``(H, W, 3)`` uint8 RGB, turned as its EXIF orientation says.

    Grey images of 16 bits are brought to 8 bits by division, not cut off at 255.

    Raises:
        DataError: the file is missing or does not decode.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I") or upright.mode == "F":
                return _deep_grey(np.asarray(upright), path)
            return np.array(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"the image {path} does not decode ({error}). Replace the file, or take {path.stem} out of the split"
        ) from error


def _deep_grey(values: np.ndarray, path: Path) -> np.ndarray:
    """Grey values of more than 8 bits as RGB of 8 bits."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high < 65536):
        raise DataError(f"the image {path} has grey values from {low} to {high}; save it with 8 or 16 bits")
    grey = (values if high < 256 else values // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold something, stripped; the byte-order mark of Windows editors is dropped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}). Save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


class VocLayout:
    """A data set in the layout of PASCAL VOC.

    ::

        root/JPEGImages/<id>.jpg             also .png, .jpeg, .bmp, .webp, .tif
        root/SegmentationClass/<id>.png      indexed or grey: 0 background, 1..C classes, 255 ignored
        root/Annotations/<id>.xml            only for tags=xml
        root/ImageSets/Segmentation/<split>.txt
        root/classes.txt                     one class name a line, without background; absent: the 20 VOC classes

    Args:
        root: folder of the set.
        name: how reports call it.
        train: name of the split that stages 1-4 learn from.
        val: name of the split that they are measured on.
        tags: where image-level tags come from: ``masks`` (classes present in the mask) or ``xml`` (VOC annotations).

    Raises:
        ConfigError: ``tags`` is neither of the two.
        DataError: the folder, a split or an image named by a split is missing.
    """

    TAG_SOURCES = ("masks", "xml")

    def __init__(
        self, root: str | Path, *, name: str = "voc", train: str = "train", val: str = "val", tags: str = "masks"
    ) -> None:
        if tags not in self.TAG_SOURCES:
            raise ConfigError(f"data.tags={tags!r} is unknown. Choose one of: {', '.join(self.TAG_SOURCES)}")
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"no data set at {self.root.absolute()}. Set its folder with data.root=/path/to/{name}")
        self.name = name
        self.train = train
        self.val = val
        self.tag_source = tags
        self.classes = self._read_classes()
        self._images = self._index_images()
        self._ids = {split: self._read_split(split) for split in (train, val)}
        self._masked = {split: self._find_masks(split) for split in (train, val)}
        self._tags: dict[str, tuple[int, ...]] = {}

    def ids(self, split: str) -> tuple[str, ...]:
        """The image ids of ``train`` or ``val`` in the order of the split file."""
        return self._ids[split]

    def has_masks(self, split: str) -> bool:
        """Whether the images of ``train`` or ``val`` have true masks: all of them, or none."""
        return self._masked[split]

    def class_ids(self, id: str) -> tuple[int, ...]:
        """The image-level tags of one image: sorted class ids in 1..C, empty for an image of background alone."""
        if id not in self._tags:
            self._tags[id] = self._tags_from_xml(id) if self.tag_source == "xml" else self._tags_from_mask(id)
        return self._tags[id]

    def tags(self, split: str) -> dict[str, tuple[int, ...]]:
        """The tags of every image of a split, read in parallel and kept."""
        with ThreadPoolExecutor() as pool:
            return dict(zip(self.ids(split), pool.map(self.class_ids, self.ids(split)), strict=True))

    def image_path(self, id: str) -> Path:
        """Where the image lies."""
        return self._images[id]

    def image(self, id: str) -> np.ndarray:
        """The image as ``(H, W, 3)`` uint8 RGB. See ``read_image``."""
        return read_image(self._images[id])

    def image_size(self, id: str) -> tuple[int, int]:
        """Width and height of the image as it is seen (EXIF orientation applied), from its header alone."""
        path = self._images[id]
        try:
            with Image.open(path) as image:
                on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return image.size[::-1] if on_its_side else image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"the image {path} does not decode ({error}). Replace the file") from error

    def mask(self, id: str) -> np.ndarray | None:
        """The true mask as ``(H, W)`` uint8, or None where there is none.

        Raises:
            DataError: the mask is unreadable, of another size than its image, or has a value that is no class.
        """
        return self.truth(id) if self._mask_path(id).is_file() else None

    def truth(self, id: str) -> np.ndarray:
        """The true mask of an image that must have one; see ``mask``."""
        mask, path = self._read_mask(id), self._mask_path(id)
        width, height = self.image_size(id)
        if mask.shape != (height, width):
            raise DataError(
                f"the mask {path} is {mask.shape[1]}x{mask.shape[0]} but its image {self._images[id]} is "
                f"{width}x{height}. Export the mask at the size of the image"
            )
        return mask

    def sample(self, id: str, *, with_mask: bool = False) -> Sample:
        """One image with its tags, and its true mask where asked for and at hand."""
        return Sample(id, self.image(id), self.class_ids(id), self.mask(id) if with_mask else None)

    def _read_classes(self) -> tuple[str, ...]:
        path = self.root / "classes.txt"
        if not path.is_file():
            return VOC_CLASSES
        classes = tuple(_read_lines(path))
        if not classes:
            raise DataError(f"{path} is empty. Write one class name a line, without background")
        if len(set(classes)) != len(classes):
            twice = sorted({name for name in classes if classes.count(name) > 1})
            raise DataError(f"{path} names {', '.join(twice)} twice. Each class stands on one line")
        if "background" in (name.lower() for name in classes):
            raise DataError(f"{path} lists background as a class. Remove that line: background is always label 0")
        if len(classes) >= IGNORE:
            raise DataError(f"{path} has {len(classes)} classes; masks of 8 bits hold at most {IGNORE - 1}")
        return classes

    def _index_images(self) -> dict[str, Path]:
        folder = self.root / "JPEGImages"
        if not folder.is_dir():
            raise DataError(f"no folder JPEGImages in {self.root}. The layout is described in the README")
        images: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if path.stem in images:
                raise DataError(f"{images[path.stem]} and {path.name} share the id {path.stem!r}. Rename or remove one")
            images[path.stem] = path
        return images

    def _read_split(self, split: str) -> tuple[str, ...]:
        folder = self.root / "ImageSets" / "Segmentation"
        path = folder / f"{split}.txt"
        if not path.is_file():
            there = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
            raise DataError(f"no split {split!r}: {path} is missing (splits there: {there})")
        ids = tuple(line.split()[0] for line in _read_lines(path))
        if not ids:
            raise DataError(f"{path} names no image. Write one image id a line")
        if len(set(ids)) != len(ids):
            twice = next(id for id in ids if ids.count(id) > 1)
            raise DataError(f"{path} names {twice} more than once. Remove the repeated lines")
        missing = [id for id in ids if id not in self._images]
        if missing:
            raise DataError(
                f"{path} names {missing[0]!r}, but there is no image {self.root / 'JPEGImages' / missing[0]}.* "
                f"({len(missing)} of {len(ids)} ids have none). Add the images or take the ids out of the split"
            )
        return ids

    def _find_masks(self, split: str) -> bool:
        """Whether a split has masks; part of a split with masks is a mistake, not a choice."""
        there = {path.stem for path in (self.root / "SegmentationClass").glob("*.png")}
        missing = [id for id in self._ids[split] if id not in there]
        if missing and len(missing) < len(self._ids[split]):
            raise DataError(
                f"no mask {self._mask_path(missing[0])} for image {missing[0]} of {split} "
                f"({len(missing)} of {len(self._ids[split])} have none). Add them, or take the ids out of the split"
            )
        return not missing

    def _mask_path(self, id: str) -> Path:
        return self.root / "SegmentationClass" / f"{id}.png"

    def _read_mask(self, id: str) -> np.ndarray:
        path = self._mask_path(id)
        try:
            with Image.open(path) as image:
                mode, mask = image.mode, np.array(image)
        except FileNotFoundError:
            raise DataError(f"no mask {path} for image {id}. Add it, or take {id} out of the split") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"the mask {path} does not decode ({error}). Replace the file") from error
        if mode not in ("P", "L", "1"):
            raise DataError(f"the mask {path} has mode {mode}; masks are indexed or 8-bit grey PNG files of class ids")
        mask = mask.astype(np.uint8)
        wrong = np.unique(mask[(mask > len(self.classes)) & (mask != IGNORE)])
        if wrong.size:
            raise DataError(
                f"the mask {path} has the value {wrong[0]}, but {self.name} has {len(self.classes)} classes "
                f"(allowed: 0..{len(self.classes)} and {IGNORE}). Mend the mask or list the class in classes.txt"
            )
        return mask

    def _tags_from_mask(self, id: str) -> tuple[int, ...]:
        if not (self.root / "SegmentationClass").is_dir():
            raise DataError(
                f"tags are to come from masks, but {self.root} has no folder SegmentationClass. "
                f"Add the masks, or take the tags from annotations with data.tags=xml"
            )
        return tuple(int(label) for label in np.unique(self.truth(id)) if label not in (BACKGROUND, IGNORE))

    def _tags_from_xml(self, id: str) -> tuple[int, ...]:
        path = self.root / "Annotations" / f"{id}.xml"
        try:
            names = {node.text.strip() for node in ElementTree.parse(path).iterfind("object/name") if node.text}
        except FileNotFoundError:
            raise DataError(
                f"no annotation {path} for image {id}. Add it, or take the tags from masks with data.tags=masks"
            ) from None
        except ElementTree.ParseError as error:
            raise DataError(f"the annotation {path} is no valid XML ({error}). Replace the file") from error
        for name in names - set(self.classes):
            near = difflib.get_close_matches(name, self.classes, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{path} names the class {name!r}, which is none of the {len(self.classes)} classes of {self.name}."
                f"{hint} Mend the annotation or list the class in classes.txt"
            )
        return tuple(sorted(self.classes.index(name) + 1 for name in names))
