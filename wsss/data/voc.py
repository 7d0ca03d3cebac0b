"""The reader of the PASCAL VOC directory layout, used for VOC itself, for the demo set and for sets of one's own."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from wsss.data.base import ImageSet, existing_root, read_lines, split_hint
from wsss.data.download import advice, fetch
from wsss.data.images import IMAGE_SUFFIXES, read_mask
from wsss.errors import ConfigError, DataError
from wsss.types import BACKGROUND, IGNORE

log = logging.getLogger(__name__)

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 classes of PASCAL VOC in their official order: class id = position + 1."""

AUGMENTED = "train_aug"
"""Name of the split that joins the images of VOC and SBD."""


class VocLayout(ImageSet):
    """A data set in the layout of PASCAL VOC.

    ::

        root/JPEGImages/<id>.jpg             also .png, .jpeg, .bmp, .webp, .tif, .gif
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
        masks: name of the folder of masks below ``root``.
        difficult: with ``tags=xml``, whether objects marked difficult count.
        white: as for ``ImageSet``.

    Raises:
        ConfigError: ``tags`` is neither of the two.
        DataError: the folder, a split or an image named by a split is missing; see also ``ImageSet``.
    """

    TAG_SOURCES = ("masks", "xml")

    def __init__(
        self,
        root: str | Path,
        *,
        name: str = "voc",
        train: str = "train",
        val: str = "val",
        tags: str = "masks",
        masks: str = "SegmentationClass",
        difficult: bool = True,
        white: int | None = None,
    ) -> None:
        if tags not in self.TAG_SOURCES:
            raise ConfigError(f"data.tags={tags!r} is unknown. Choose one of: {', '.join(self.TAG_SOURCES)}")
        self.root = existing_root(root, name)
        self.train, self.val = train, val
        self.mask_folder = self.root / masks
        self.difficult = difficult
        # One listing instead of a look at every file: on a network disk the second takes minutes.
        self._mask_ids = frozenset(path.stem for path in self.mask_folder.glob("*.png"))
        class_list = self.root / "classes.txt"
        super().__init__(
            root=root,
            name=name,
            train=train,
            val=val,
            classes=read_lines(class_list) if class_list.is_file() else VOC_CLASSES,
            classes_from=class_list,
            images=self._index_images(),
            splits={split: self._read_split(split) for split in (train, val)},
            splits_from={split: self._split_path(split) for split in (train, val)},
            tag_source=tags,
            white=white,
        )

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

    def _split_path(self, split: str) -> Path:
        return self.root / "ImageSets" / "Segmentation" / f"{split}.txt"

    def _read_split(self, split: str) -> Sequence[str]:
        path = self._split_path(split)
        if not path.is_file():
            there = sorted(file.stem for file in path.parent.glob("*.txt"))
            raise DataError(
                f"no split {split!r}: {path} is missing (splits there: {', '.join(there) or 'none'}). "
                f"{split_hint(there, train=self.train, val=self.val)}"
            )
        return [line.split()[0] for line in read_lines(path)]

    def _image_origin(self, id: str) -> str:
        return f"{self.root / 'JPEGImages' / id}.*"

    def _mask_origin(self, id: str) -> str:
        return str(self._mask_path(id))

    def _mask_path(self, id: str) -> Path:
        return self.mask_folder / f"{id}.png"

    def _has_mask(self, id: str) -> bool:
        return id in self._mask_ids

    def _read_mask(self, id: str) -> np.ndarray:
        return read_mask(self._mask_path(id), id=id)

    def _read_tags(self, id: str) -> tuple[int, ...]:
        return self._tags_from_xml(id) if self.tag_source == "xml" else self._tags_from_mask(id)

    def _tags_from_mask(self, id: str) -> tuple[int, ...]:
        if not self._has_mask(id) and not self.mask_folder.is_dir():
            raise DataError(
                f"tags are to come from masks, but {self.root} has no folder {self.mask_folder.name}. "
                f"Add the masks, or take the tags from annotations with data.tags=xml"
            )
        return tuple(int(label) for label in np.unique(self.truth(id)) if label not in (BACKGROUND, IGNORE))

    def _tags_from_xml(self, id: str) -> tuple[int, ...]:
        path = self.root / "Annotations" / f"{id}.xml"
        try:
            objects = ElementTree.parse(path).iterfind("object")
        except FileNotFoundError:
            raise DataError(
                f"no annotation {path} for image {id}. Add it, or take the tags from masks with data.tags=masks"
            ) from None
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise DataError(f"the annotation {path} is no valid XML ({error}). Replace the file") from error
        counted = [item for item in objects if self.difficult or item.findtext("difficult", "0").strip() != "1"]
        names = {name for item in counted if (name := item.findtext("name", "").strip())}
        for name in sorted(names - set(self.classes)):
            near = difflib.get_close_matches(name, self.classes, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{path} names the class {name!r}, which is none of the {len(self.classes)} classes of {self.name}."
                f"{hint} Mend the annotation or list the class in classes.txt"
            )
        return tuple(sorted(self.classes.index(name) + 1 for name in names))


class Voc2012(VocLayout):
    """PASCAL VOC 2012, with the split ``train_aug`` of the field where the annotations of SBD are at hand.

    SBD (Hariharan et al., ICCV 2011) has masks for 11,355 images of VOC. ``train_aug`` is VOC's train and SBD's train
    and val without VOC's val: 10,582 images, sorted. Their masks are those of VOC where it has one, else those of SBD,
    which are drawn more coarsely and have no ignored border.

    ::

        sbd/train.txt, sbd/val.txt, sbd/cls/<id>.mat     the folder benchmark_RELEASE/dataset, or the one above it

    Without ``sbd``, ``train_aug`` is a split like others: ``ImageSets/Segmentation/train_aug.txt``, with masks in the
    folder ``masks``, often one named ``SegmentationClassAug``.

    Args:
        root: folder of the set, VOCdevkit/VOC2012.
        name, train, val, tags, masks, difficult, white: as for ``VocLayout``.
        sbd: folder of SBD.
        sbd_count: how many images ``train_aug`` must have with ``sbd``; None does not check.
        download: fetch what is missing of VOC, and of SBD into ``sbd``. See ``wsss.data.download.fetch``.

    Raises:
        ConfigError, DataError: as for ``VocLayout``; ``train_aug`` has another number of images; a download fails.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        name: str = "voc2012",
        train: str = "train",
        val: str = "val",
        tags: str = "masks",
        masks: str = "SegmentationClass",
        difficult: bool = True,
        sbd: str | Path | None = None,
        sbd_count: int | None = 10582,
        download: bool = False,
        white: int | None = None,
    ) -> None:
        if download:
            fetch("voc2012", root)
            if sbd is not None:
                fetch("sbd", _sbd_folder(Path(sbd)))
        existing_root(root, name, remedy=f", or {advice('voc2012')}")
        self.sbd = None if sbd is None else _sbd_folder(Path(sbd))
        if self.sbd and not (self.sbd / "cls").is_dir():
            raise DataError(
                f"no folder cls in {self.sbd.absolute()}: it is not SBD. Set "
                f"data.sbd=/path/to/benchmark_RELEASE/dataset, or {advice('sbd')}"
            )
        self.sbd_count = sbd_count
        self._mat_ids = frozenset(path.stem for path in (self.sbd / "cls").glob("*.mat")) if self.sbd else frozenset()
        super().__init__(
            root, name=name, train=train, val=val, tags=tags, masks=masks, difficult=difficult, white=white
        )
        if sbd is not None and AUGMENTED not in (train, val):
            log.warning("data.sbd adds no image: it makes the split %s, see data.train", AUGMENTED)

    def _split_path(self, split: str) -> Path:
        return self.sbd if self.sbd and split == AUGMENTED else super()._split_path(split)

    def _read_split(self, split: str) -> Sequence[str]:
        if split != AUGMENTED:
            return super()._read_split(split)
        if self.sbd is None:
            if not self._split_path(split).is_file():
                raise DataError(
                    f"no split {split!r}: {self._split_path(split)} is missing. Add that list, or give the folder of "
                    f"SBD with data.sbd=/path/to/benchmark_RELEASE/dataset"
                )
            return super()._read_split(split)
        train, val = super()._read_split("train"), super()._read_split("val")
        parts = [read_lines(self.sbd / f"{part}.txt") for part in ("train", "val")]
        ids = sorted({*train, *parts[0], *parts[1]} - {*val})
        if self.sbd_count is not None and len(ids) != self.sbd_count:
            raise DataError(
                f"train_aug has {len(ids)} images instead of {self.sbd_count}: {len(train)} of VOC train and "
                f"{len(parts[0])} + {len(parts[1])} of train and val in {self.sbd}, without the {len(val)} of VOC val "
                f"(complete: 1464, 8498 + 2857, 1449). Restore the lists, or set data.sbd_count=null for a part of VOC"
            )
        return ids

    def _in_sbd(self, id: str) -> bool:
        """Whether the mask of an image is that of SBD."""
        return id in self._mat_ids and not super()._has_mask(id)

    def _has_mask(self, id: str) -> bool:
        return super()._has_mask(id) or id in self._mat_ids

    def _mask_origin(self, id: str) -> str:
        if self._in_sbd(id):
            return str(self._mat_path(id))
        drawn = super()._mask_origin(id)
        return f"{drawn} or {self._mat_path(id)}" if self.sbd and not self._has_mask(id) else drawn

    def _mat_path(self, id: str) -> Path:
        assert self.sbd is not None
        return self.sbd / "cls" / f"{id}.mat"

    def _read_mask(self, id: str) -> np.ndarray:
        return read_sbd_mask(self._mat_path(id)) if self._in_sbd(id) else super()._read_mask(id)


def read_sbd_mask(path: Path) -> np.ndarray:
    """The class mask of an SBD file ``cls/<id>.mat``: ``(H, W)`` uint8, 0 background, 1..20 classes.

    Raises:
        DataError: the file is missing, does not decode, or has no ``GTcls.Segmentation``.
    """
    from scipy.io import loadmat  # a third of a second to import, for SBD alone

    try:
        found = np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # loadmat raises whatever the broken bytes lead it to
        raise DataError(
            f"the mask {path} does not decode as a file of SBD with GTcls.Segmentation "
            f"({type(error).__name__}: {error}). Replace the file"
        ) from error
    if (
        found.ndim != 2
        or found.dtype.kind not in "ui"
        or (found.size and not 0 <= found.min() <= found.max() <= IGNORE)
    ):
        raise DataError(
            f"the mask {path} holds {found.dtype} of shape {found.shape} in GTcls.Segmentation instead of labels "
            f"(H, W). Replace the file"
        )
    return found.astype(np.uint8)


def _sbd_folder(folder: Path) -> Path:
    """The folder of the lists and ``cls``: ``dataset`` below ``folder`` where that is SBD, else ``folder`` itself."""
    return folder / "dataset" if (folder / "dataset" / "cls").is_dir() else folder
