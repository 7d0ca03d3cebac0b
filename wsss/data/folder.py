"""A folder of images of one's own, with the tags in a table, in the names of folders or in COCO's JSON."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.base import ImageSet, existing_root, read_lines, split_hint
from wsss.data.images import IMAGE_SUFFIXES, read_mask
from wsss.errors import ConfigError, DataError

log = logging.getLogger(__name__)

TABLE = "tags.csv"
ANNOTATIONS = "annotations.json"
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test"})
"""Folders of these names alone are no classes."""

UNTAGGED = ("background", "none", "good")
"""Folders and tags of these names, in any case, stand for no class, unless ``classes.txt`` lists them."""

SHOWN = 10
"""Faults of a source of tags that a message lists; the others are counted."""

COLUMNS = ("image", "tags", "split")
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Row:
    """What is known of one image.

    Attributes:
        tags: names of its classes.
        split: its split; None where the source names none.
        origin: file and line, for messages.
    """

    tags: tuple[str, ...]
    split: str | None
    origin: str


@dataclass(frozen=True)
class Listing:
    """What a source of tags says.

    Attributes:
        rows: by image id.
        origin: the file or folder, for messages.
        classes: names in the order that the source itself gives; empty: none.
    """

    rows: Mapping[str, Row]
    origin: Path
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """The image files below a folder.

    Attributes:
        folder: where they lie.
        by_id: file by id: its path relative to ``folder`` with ``/``, without suffix.
        left_out: files that are no images by their name.
    """

    folder: Path
    by_id: Mapping[str, Path]
    left_out: tuple[Path, ...] = field(default=())

    def find(self, name: str) -> str | None:
        """The id of the image that a list calls ``name``: a path relative to ``folder``, with or without suffix."""
        plain = posixpath.normpath(name.strip().replace("\\", "/"))
        candidates = (plain, plain.removeprefix(f"{self.folder.name}/"))
        for candidate in candidates:  # a file of that very name goes before an id with a dot in it
            id = posixpath.splitext(candidate)[0]
            if id in self.by_id and self.by_id[id].name == posixpath.basename(candidate):
                return id
        return next((candidate for candidate in candidates if candidate in self.by_id), None)

    def hint(self, name: str) -> str:
        """What a name that is not found may have meant."""
        for path in self.left_out:
            if path.relative_to(self.folder).as_posix() in (name, name.removeprefix(f"{self.folder.name}/")):
                return f" {path.name} is there, but {path.suffix or 'no suffix'} is no kind of image that is read."
        names = {path.relative_to(self.folder).as_posix(): path for path in self.by_id.values()}
        same = [known for known in names if posixpath.splitext(known)[0] == posixpath.splitext(name)[0]]
        folded = {known.lower(): known for known in names if len(names) <= 20_000}  # beyond, it would take seconds
        near = same or [folded[key] for key in difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.75)]
        return f" Did you mean {near[0]!r}?" if near else ""


class FolderSet(ImageSet):
    """A set of one's own: a folder of images, and tags.

    ::

        root/images/**/<name>.jpg     also .jpeg, .png, .bmp, .webp, .tif, .gif; the id is the path without suffix
        root/tags.csv                 image,tags[,split]: tags joined by ';', none for an image without any class
        root/images/<class>/**        or: a folder per class
        root/annotations.json         or: COCO's JSON, of which images, annotations and categories are read
        root/classes.txt              optional, one class name a line, without background
        root/masks/<id>.png           optional, indexed or grey: 0 background, k line k of classes.txt, 255 ignored;
                                      an image without tags needs none where all tagged ones of its split have one

    Without ``classes.txt`` the classes are those that the tags name: sorted, or from ``annotations.json`` in the order
    of their category ids. Folders, and tags in ``tags.csv``, that are called background, none or good stand for no
    class, unless ``classes.txt`` lists good or none as one.

    ``tags.csv`` is UTF-8 and separated by commas, semicolons or tabs. Where it has the column ``split``, the splits are
    the rows that say ``train`` and ``val``; the images of other splits are left out, which is logged. Else the images
    are divided by ``stratified_split``.

    Args:
        root: folder of the set.
        name: how reports call it.
        tags: where tags come from: ``csv``, ``folders`` or ``json``; None takes the one that is there.
        train: what the column ``split`` says of images that stages 1-4 learn from.
        val: what it says of images that they are measured on.
        val_fraction: share of the images for validation where there is no column ``split``, in (0, 1).
        seed: of that division.
        white: as for ``ImageSet``.

    Raises:
        ConfigError: ``tags`` or ``val_fraction`` is none of those allowed.
        DataError: a file is missing, cannot be read or contradicts another; the message names the lines. See also
            ``ImageSet``.
    """

    TAG_SOURCES = ("csv", "folders", "json")

    tags_in_memory = True

    def __init__(
        self,
        root: str | Path,
        *,
        name: str = "own",
        tags: str | None = None,
        train: str = "train",
        val: str = "val",
        val_fraction: float = 0.2,
        seed: int = 0,
        white: int | None = None,
    ) -> None:
        if tags is not None and tags not in self.TAG_SOURCES:
            raise ConfigError(f"data.tags={tags!r} is unknown. Choose one of: {', '.join(self.TAG_SOURCES)}")
        if not 0 < val_fraction < 1:
            raise ConfigError(f"data.val_fraction={val_fraction} must lie between 0 and 1, both excluded")
        self.root = existing_root(root, name)
        files = index_images(self.root / "images")
        tags = tags or _tag_source(self.root, files)
        for name_of in ("classes.txt", "masks"):
            _refuse_other_case(self.root, name_of)
        class_list = self.root / "classes.txt"
        listed = tuple(read_lines(class_list)) if class_list.is_file() else None
        listing = _READERS[tags](self.root, files, listed)
        if files.left_out:
            log.warning(
                "%s: %d files that are no images by their name are left out (%s), such as %s. Images among them: "
                "convert them to .png or .jpg",
                files.folder,
                len(files.left_out),
                _suffixes(files.left_out),
                files.left_out[0].name,
            )
        classes = _classes(listing) if listed is None else listed
        self._mask_paths = _index_masks(self.root / "masks", files)
        self._tag_ids = _tag_ids(listing, classes)
        splits = _splits(listing, train=train, val=val, val_fraction=val_fraction, seed=seed)
        self._blank = self._without_objects(splits.values())
        super().__init__(
            root=root,
            name=name,
            train=train,
            val=val,
            classes=classes,
            classes_from=listing.origin if listed is None else class_list,
            images=files.by_id,
            splits=splits,
            splits_from=dict.fromkeys((train, val), listing.origin),
            tag_source=tags,
            white=white,
        )

    def _read_tags(self, id: str) -> tuple[int, ...]:
        return self._tag_ids[id]

    def _has_mask(self, id: str) -> bool:
        return id in self._mask_paths or id in self._blank

    def _without_objects(self, splits: Iterable[Sequence[str]]) -> frozenset[str]:
        """Images without tag and mask in splits whose tagged images all have a mask: theirs is background alone."""
        blank: set[str] = set()
        for ids in splits:
            tagged = [id for id in ids if self._tag_ids[id]]
            if tagged and all(id in self._mask_paths for id in tagged):
                blank.update(id for id in ids if not self._tag_ids[id] and id not in self._mask_paths)
        if blank:
            log.info("%d images without tag and mask count as background alone", len(blank))
        return frozenset(blank)

    def _mask_origin(self, id: str) -> str:
        return str(self._mask_path(id))

    def _mask_path(self, id: str) -> Path:
        return self._mask_paths.get(id, self.root / "masks" / f"{id}.png")

    def _read_mask(self, id: str) -> np.ndarray:
        if id in self._blank:
            width, height = self.image_size(id)
            return np.zeros((height, width), dtype=np.uint8)
        return read_mask(self._mask_path(id), id=id)


# --- files -------------------------------------------------------------------------------------------------------


def index_images(folder: Path) -> Files:
    """The images below ``folder`` at any depth, sorted by id; hidden files are passed over.

    Raises:
        DataError: there is no such folder, no image in it, or two images share an id.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder.name} in {folder.parent}. {_elsewhere(folder)}")
    found: dict[str, Path] = {}
    left_out: list[Path] = []
    for name, path in _walk(folder):
        id, suffix = posixpath.splitext(name)
        if suffix.lower() not in IMAGE_SUFFIXES:
            left_out.append(path)
        elif id in found:
            raise DataError(f"{found[id]} and {path.name} share the id {id!r}. Rename or remove one")
        else:
            found[id] = path
    if not found:
        remedy = "Put the images there"
        if left_out:
            remedy = f"There are {len(left_out)} other files ({_suffixes(left_out)}): convert them to .png or .jpg"
        raise DataError(f"no image in {folder} (looked for {', '.join(IMAGE_SUFFIXES)}). {remedy}")
    return Files(folder, {id: found[id] for id in sorted(found)}, tuple(sorted(left_out)))


def _suffixes(paths: Iterable[Path]) -> str:
    """The kinds of files by their names, and how many there are of each."""
    counts = Counter(path.suffix.lower() or "no suffix" for path in paths)
    return ", ".join(f"{suffix}: {count}" for suffix, count in counts.most_common(5)) + ", ..." * (len(counts) > 5)


def _elsewhere(folder: Path) -> str:
    """What to do where there is no folder of images: where in the root do they lie?"""
    root = folder.parent
    if other := _other_case(root, folder.name):
        return f"There is {other}: rename it to {folder.name}"
    inside = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    classes = [
        path.name
        for path in inside
        if path.is_dir()
        and path.name != "masks"
        and any(posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES for name, _ in _walk(path))
    ]
    if classes:
        named = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
        return f"There are folders of images ({named}): move them into {folder}, so that they are {folder.name}/<class>"
    loose = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in inside)
    if loose:
        return f"There are {loose} images in {root} itself: move them into {folder}"
    return "Put the images there"


def _other_case(root: Path, name: str) -> str | None:
    """What in ``root`` is called ``name`` up to capital letters, where nothing is called so itself."""
    names = sorted(path.name for path in root.iterdir())
    return None if name in names else next((other for other in names if other.lower() == name.lower()), None)


def _refuse_other_case(root: Path, name: str) -> None:
    """Capital letters matter on some disks: what would be passed over there is told instead."""
    if (root / name).exists():
        return
    if other := _other_case(root, name):
        raise DataError(f"{root} holds {other}, but no {name}. Rename it to {name}")


def _index_masks(folder: Path, files: Files) -> dict[str, Path]:
    """The masks of images, by id; what belongs to no image is told.

    Raises:
        DataError: there are files, and none of them is named after an image.
    """
    found = [(*posixpath.splitext(name), path) for name, path in (_walk(folder) if folder.is_dir() else ())]
    masks = {id: path for id, suffix, path in found if suffix.lower() == ".png" and id in files.by_id}
    others = [path for id, suffix, path in found if suffix.lower() != ".png" or id not in files.by_id]
    if others and not masks:
        raise DataError(
            f"{folder} holds {len(others)} files, and none is named after an image: {others[0].name}, for example; "
            f"expected {next(iter(files.by_id))}.png. Rename them, or move the folder away to go without masks"
        )
    if others:
        log.warning("%s: %d files belong to no image, such as %s", folder, len(others), others[0].name)
    return masks


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files below a folder with their relative names, through links to folders too, but into no folder twice."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(place).relative_to(folder).as_posix()
        for name in sorted(names):
            if not name.startswith("."):
                yield name if inside == "." else f"{inside}/{name}", Path(place, name)


def _tag_source(root: Path, files: Files) -> str:
    """The one source of tags that is there; folders count only where there is no file."""
    there = [tags for tags, name in (("csv", TABLE), ("json", ANNOTATIONS)) if (root / name).is_file()]
    if len(there) > 1:
        raise DataError(f"{root} holds both {TABLE} and {ANNOTATIONS}. Choose with data.tags=csv or data.tags=json")
    if there:
        return there[0]
    for name in (TABLE, ANNOTATIONS):
        _refuse_other_case(root, name)
    if all("/" in id for id in files.by_id):
        return "folders"
    raise DataError(
        f"no tags in {root}: neither {TABLE} (image,tags[,split]) nor {ANNOTATIONS} (COCO's JSON), and not every image "
        f"of {files.folder} lies in a folder named after its class ({_outside(files)} does not)"
    )


def _outside(files: Files) -> str:
    return next(path.name for id, path in files.by_id.items() if "/" not in id)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16. Save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8 (byte 0x{data[error.start]:02x}). Save it as UTF-8"
        ) from error


# --- sources of tags ---------------------------------------------------------------------------------------------


def read_table(root: Path, files: Files, listed: Sequence[str] | None = None) -> Listing:
    """The rows of ``tags.csv``; see ``FolderSet``.

    Raises:
        DataError: the table is missing, empty, not UTF-8 or has another header; a row has too many or too few fields,
            no split, a tag that is no class of ``listed`` or stands for none beside others, or names no image; an image
            has two rows or none. All such lines are told at once.
    """
    path = root / TABLE
    if not path.is_file():
        _refuse_other_case(root, TABLE)
        raise DataError(f"no table {path}. Write it with the header image,tags or image,tags,split")
    text = _read_text(path)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
    filled = (values for values in lines if any(value.strip() for value in values))
    nothing = _untagged(listed)
    rows: dict[str, Row] = {}
    first: dict[str, int] = {}
    faults: list[str] = []
    emptied = 0
    try:
        header = [name.strip().lower() for name in next(filled)]
        for values in filled:
            number = lines.line_num
            if len(values) != len(header):
                faults.append(
                    f"line {number} has {len(values)} fields, the header {len(header)}. Tags are joined by ';', and a "
                    f"field that holds the separator of the columns is put in double quotes"
                )
                continue
            row = dict(zip(header, (value.strip() for value in values), strict=True))
            id = files.find(row["image"])
            if id is None:
                faults.append(
                    f"line {number} names the image {row['image']!r}, which is not in {files.folder}."
                    f"{files.hint(row['image'])} Add the image or remove the line"
                )
                continue
            if id in rows:
                faults.append(
                    f"line {number} names the image {row['image']!r} again (first on line {first[id]}). Write one row "
                    f"an image, with its tags joined by ';'"
                )
                continue
            if "split" in row and not row["split"]:
                faults.append(f"line {number} names no split. Write train, val, or another name to leave the image out")
            named = tuple(dict.fromkeys(tag for part in row["tags"].split(";") if (tag := part.strip())))
            tags = tuple(tag for tag in named if tag.lower() not in nothing)
            if tags and len(tags) < len(named):
                word = next(tag for tag in named if tag not in tags)
                faults.append(
                    f"line {number} has the tag {word}, which stands for no class, beside {tags[0]!r}. Remove it, or "
                    f"leave tags empty for an image without any class"
                )
            emptied += len(tags) < len(named)
            if listed:
                faults += [f"line {number} {_unlisted(tag, listed)}" for tag in tags if tag not in listed]
            rows[id], first[id] = Row(tags, row.get("split"), f"{path}, line {number}"), number
    except csv.Error as error:
        faults.append(f"line {lines.line_num} cannot be read ({error}). Check the double quotes")
    if faults:
        raise DataError(_told(path, faults))
    if not rows:
        raise DataError(f"{path} has no row below its header. Write one row an image")
    missing = [id for id in files.by_id if id not in rows]
    if missing:
        raise DataError(
            f"{path} has no row for the image {files.by_id[missing[0]]} ({len(missing)} of {len(files.by_id)} images "
            f"have none). Add a row, with empty tags where the image shows no class, or move the image elsewhere"
        )
    if emptied:
        log.warning(
            "%s: the tag of %d images stands for no class (%s). To learn one that is called so, list it in classes.txt",
            path, emptied, ", ".join(sorted(nothing)),
        )  # fmt: skip
    return Listing(rows, path)


def _untagged(listed: Sequence[str] | None) -> frozenset[str]:
    """The names, in lower case, that stand for no class."""
    return frozenset(UNTAGGED) - {name.lower() for name in listed or ()}


def _unlisted(tag: str, classes: Sequence[str]) -> str:
    """What is wrong with a tag that is no class, and what to do."""
    same = [name for name in classes if name.lower() == tag.lower()]
    near = same or difflib.get_close_matches(tag, classes, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"names the class {tag!r}, which is none of the {len(classes)} in classes.txt.{hint} Mend the tag or list the "
        f"class in classes.txt"
    )


def _told(path: Path, faults: Sequence[str]) -> str:
    """One fault in a line; several below each other, the first ``SHOWN`` of them."""
    if len(faults) == 1:
        return f"{path}, {faults[0]}"
    rest = len(faults) - SHOWN
    lines = [*faults[:SHOWN], *([f"... and {rest} more"] if rest > 0 else [])]
    return "\n  ".join((f"{path} has {len(faults)} faults:", *lines))


def _delimiter(path: Path, text: str) -> str:
    """What separates the columns of a table: the header has known names, so nothing needs to be guessed."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    if not header:
        raise DataError(f"{path} is empty. Write the header image,tags or image,tags,split and one row an image")
    for delimiter in DELIMITERS:
        names = [name.strip().strip('"').strip().lower() for name in header.split(delimiter)]
        if {"image", "tags"} <= set(names):
            unknown = [name for name in names if name not in COLUMNS]
            twice = [name for name, count in Counter(names).items() if count > 1]
            if not unknown and not twice:
                return delimiter
            near = [name for name in difflib.get_close_matches((unknown or twice)[0], COLUMNS, n=1) if unknown]
            remedy = f"Rename it to {near[0]!r}" if near and near[0] not in names else "Remove it"
            what = f"{unknown[0]!r} is unknown" if unknown else f"{twice[0]!r} stands there twice"
            fault = f": the column {what}. {remedy}"
            break
    else:
        fault = ""
    raise DataError(
        f"{path} begins with {header[:100]!r}{fault}. The header must be image,tags or image,tags,split and nothing "
        f"else (separated by commas, semicolons or tabs)"
    )


def read_folders(root: Path, files: Files, listed: Sequence[str] | None = None) -> Listing:
    """The first folder below ``images`` as the one tag of each image; see ``FolderSet``.

    Raises:
        DataError: an image lies beside the folders.
    """
    outside = [id for id in files.by_id if "/" not in id]
    if outside:
        raise DataError(
            f"{files.by_id[outside[0]]} lies in no folder named after its class ({len(outside)} of {len(files.by_id)} "
            f"images do not). Move it into one, or into {files.folder / UNTAGGED[0]} where it shows none"
        )
    names = {id.split("/")[0].lower() for id in files.by_id} - {name.lower() for name in listed or ()}
    if names and names <= SPLIT_NAMES:
        raise DataError(
            f"the folders of {files.folder} are called {', '.join(sorted(names))}, as splits are, and would be learnt "
            f"as classes. Put images into {files.folder.name}/<class>/, and name splits in {TABLE}"
        )
    untagged = _untagged(listed)
    rows = {}
    for id in files.by_id:
        folder = id.split("/")[0]
        rows[id] = Row(() if folder.lower() in untagged else (folder,), None, f"the folder {files.folder / folder}")
    return Listing(rows, files.folder)


def read_annotations(root: Path, files: Files, listed: Sequence[str] | None = None) -> Listing:
    """The classes annotated in each image of ``annotations.json``, crowds included; see ``FolderSet``.

    Raises:
        DataError: the file is missing, no JSON or has no images, annotations and categories; an entry lacks a key, has
            an id twice or refers to what is not there; an image file is not listed.
    """
    path = root / ANNOTATIONS
    if not path.is_file():
        raise DataError(f"no file {path}. Write COCO's JSON there: images, annotations, categories")
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON ({error}). Export it again") from error
    tables = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(table), list) for table in tables):
        raise DataError(f"{path} is not COCO's JSON: it needs the lists {', '.join(tables)}")
    categories = _numbered(content, "categories", "name", path)
    images = _numbered(content, "images", "file_name", path)
    same = [name for name, count in Counter(categories.values()).items() if count > 1]
    if same:
        raise DataError(f"{path}, categories: {same[0]!r} stands there twice. Each class has one entry")
    ids: dict[int, str] = {}
    for number, name in images.items():
        id = files.find(name)
        if id is None:
            raise DataError(
                f"{path}, images: {name!r} is not in {files.folder}.{files.hint(name)} "
                f"Add the image or remove the entry"
            )
        ids[number] = id
    twice = [id for id, count in Counter(ids.values()).items() if count > 1]
    if twice:
        raise DataError(f"{path}, images: {files.by_id[twice[0]].name!r} is listed twice. Each image stands there once")
    missing = sorted(files.by_id.keys() - set(ids.values()))
    if missing:
        raise DataError(
            f"{path}, images: {files.by_id[missing[0]]} is not listed ({len(missing)} of {len(files.by_id)} images are "
            f"not). List it, without annotations where it shows no class, or move the image elsewhere"
        )
    tags: dict[str, set[int]] = {id: set() for id in ids.values()}
    for place, item in enumerate(content["annotations"]):
        entry = item if isinstance(item, dict) else {}
        for key, known in (("image_id", ids), ("category_id", categories)):
            if not isinstance(entry.get(key), int) or entry[key] not in known:
                raise DataError(
                    f"{path}, annotations[{place}] has the {key} {entry.get(key)!r}, which is no entry's id"
                )
        tags[ids[entry["image_id"]]].add(entry["category_id"])
    used = sorted(set().union(*tags.values()))
    return Listing(
        {
            id: Row(tuple(categories[number] for number in sorted(numbers)), None, f"{path}, image {id!r}")
            for id, numbers in tags.items()
        },
        path,
        tuple(categories[number] for number in used),
    )


def _numbered(content: Mapping[str, Any], table: str, key: str, path: Path) -> dict[int, str]:
    """The values of ``key`` by ``id``."""
    found: dict[int, str] = {}
    for place, item in enumerate(content[table]):
        number, value = (item.get(name) if isinstance(item, dict) else None for name in ("id", key))
        if not isinstance(number, int) or not isinstance(value, str) or not value.strip():
            raise DataError(f"{path}, {table}[{place}] needs a whole number as id and a text as {key}")
        if number in found:
            raise DataError(f"{path}, {table}[{place}] has the id {number} of an earlier entry. Ids are unique")
        found[number] = value.strip()
    return found


_READERS: Mapping[str, Callable[[Path, Files, Sequence[str] | None], Listing]] = {
    "csv": read_table,
    "folders": read_folders,
    "json": read_annotations,
}

# --- classes and splits ------------------------------------------------------------------------------------------


def _classes(listing: Listing) -> tuple[str, ...]:
    """The classes that the tags name."""
    classes = listing.classes or tuple(sorted({tag for row in listing.rows.values() for tag in row.tags}))
    if not classes:
        raise DataError(f"{listing.origin} gives no image a tag, so there is nothing to learn. Tag the images")
    return classes


def _tag_ids(listing: Listing, classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The tags of each image as sorted class ids."""
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    for row in listing.rows.values() if classes else ():
        for tag in row.tags:
            if tag not in numbers:
                raise DataError(f"{row.origin} {_unlisted(tag, classes)}")
    return {id: tuple(sorted(numbers.get(tag, 0) for tag in row.tags)) for id, row in listing.rows.items()}


def _splits(listing: Listing, *, train: str, val: str, val_fraction: float, seed: int) -> dict[str, tuple[str, ...]]:
    """The ids of both splits, sorted: as the source names them, else divided by ``stratified_split``."""
    named = {id: row.split for id, row in listing.rows.items() if row.split is not None}
    if not named:
        if train == val:
            raise ConfigError(f"data.train and data.val are both {train!r}, but {listing.origin} names no splits")
        parts = stratified_split(
            {id: row.tags for id, row in listing.rows.items()}, val_fraction=val_fraction, seed=seed
        )
        if not all(parts):
            raise DataError(
                f"{listing.origin}: {len(listing.rows)} images cannot be divided for training and validation such that "
                f"classes of one image stay in training. Add images, or name the splits in {TABLE}"
            )
        return dict(zip((train, val), parts, strict=True))
    counts = Counter(named.values())
    there = ", ".join(f"{split}: {count}" for split, count in sorted(counts.items()))
    for split in (train, val):
        if split not in counts:
            hint = split_hint(counts, train=train, val=val)
            raise DataError(f"{listing.origin} has no image of the split {split!r} (images there: {there}). {hint}")
    others = sorted(counts.keys() - {train, val})
    if others:
        left = sum(counts[split] for split in others)
        log.warning("%s: %d images of other splits are left out (%s)", listing.origin, left, ", ".join(others))
    return {split: tuple(sorted(id for id, of in named.items() if of == split)) for split in (train, val)}


def stratified_split(
    tags: Mapping[str, Sequence[str]], *, val_fraction: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide images such that each class, and images without any, have about the same share in validation.

    Classes are gone through from the rarest on, as in iterative stratification (Sechidis et al., ECML PKDD 2011): of
    its images that no rarer class has placed, as many go to validation as bring the class to its share. Every class of
    two images or more asks for one on each side; a class of one image stays in training. The order in which images are
    taken is a hash of seed and id, so that the result depends on neither the order nor the machine, and an image more
    moves few others.

    Args:
        tags: the classes of each image by its id.
        val_fraction: in (0, 1).
        seed: another one gives another division.

    Returns:
        The ids of the training and of the validation images, each sorted.

    >>> stratified_split({"a": ["x"], "b": ["x"], "c": [], "d": []}, val_fraction=0.5, seed=0)
    (('a', 'd'), ('b', 'c'))
    """
    order = sorted(tags, key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest())
    groups: dict[str | None, list[str]] = {}  # None: no class at all
    for id in order:
        for tag in (*set(tags[id]),) or (None,):
            groups.setdefault(tag, []).append(id)
    placed: set[str] = set()
    held_out: set[str] = set()
    for _, members in sorted(groups.items(), key=lambda item: (len(item[1]), item[0] or "")):
        wanted = min(max(1, int(val_fraction * len(members) + 0.5)), len(members) - 1)
        free = [id for id in members if id not in placed]
        held_out.update(free[: max(0, wanted - len(held_out.intersection(members)))])
        placed.update(free)
    return tuple(sorted(placed - held_out)), tuple(sorted(held_out))
