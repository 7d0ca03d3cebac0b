"""Fetching public data sets: checked, resumed where it broke off, and never half in place."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wsss.console import Bar, progress
from wsss.errors import ConfigError, DataError

log = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT = 60
"""Seconds without a byte after which a connection counts as broken."""

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Archive:
    """One file to fetch and what it unpacks to.

    Attributes:
        url: its official address.
        md5: its checksum; None where no sure one is known, so that only ``holds`` speaks for it.
        member: folder inside the archive that is the data.
        target: folder below the root of the set that it becomes; empty: the root itself.
        holds: number of files that it has at least, by pattern relative to ``target``. They tell an archive that is
            whole from one that is not, and a set that is there from one that is missing.
    """

    url: str
    md5: str | None
    member: str
    target: str
    holds: Mapping[str, int]

    @property
    def filename(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        page: what its publishers say about it, for people.
        archives: what to fetch; empty: it cannot be fetched without a person.
        by_hand: what a person has to do instead.
        holds: files that a set obtained by hand has at least, by pattern relative to its root.
    """

    page: str
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""
    holds: Mapping[str, int] | None = None


SOURCES: Mapping[str, Source] = {
    # Checksums of VOC and SBD: those of torchvision 0.28.
    "voc2012": Source(
        page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
        archives=(
            Archive(
                url="https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                md5="6cd6e144f989b92b3379bac3b3de84fd",
                member="VOCdevkit/VOC2012",
                target="",
                holds={
                    "JPEGImages/*.jpg": 17125,
                    "Annotations/*.xml": 17125,
                    "SegmentationClass/*.png": 2913,
                    "ImageSets/Segmentation/*.txt": 3,
                },
            ),
        ),
    ),
    "sbd": Source(
        page="http://home.bharathh.info/pubs/codes/SBD/download.html",
        archives=(
            Archive(
                url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                md5="82b4d87ceb2ed10f6038a1cba92111cb",
                member="benchmark_RELEASE/dataset",
                target="",
                holds={"cls/*.mat": 11355, "img/*.jpg": 11355, "train.txt": 1, "val.txt": 1},
            ),
        ),
    ),
    # COCO publishes no checksums. These are the ones that several independent public programs check its files against.
    "coco2014": Source(
        page="https://cocodataset.org/#download",
        archives=(
            Archive(
                url="http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
                md5="0a379cfc70b0e71301e0f377548639bd",
                member="annotations",
                target="annotations",
                holds={"instances_train2014.json": 1, "instances_val2014.json": 1},
            ),
            Archive(
                url="http://images.cocodataset.org/zips/val2014.zip",
                md5="a3d79f5ed8d289b7a7554ce06a5782b3",
                member="val2014",
                target="val2014",
                holds={"*.jpg": 40504},
            ),
            Archive(
                url="http://images.cocodataset.org/zips/train2014.zip",
                md5="0da8c0bd3d6becc4dcb32757491aca88",
                member="train2014",
                target="train2014",
                holds={"*.jpg": 82783},
            ),
        ),
    ),
    "dagm2007": Source(
        page="https://hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection",
        by_hand="Get Class1.zip to Class10.zip from that page and unpack them in that folder, such that it has "
        "Class1/Train/Label/Labels.txt",
        holds={"Class*/Train/Label/Labels.txt": 1},
    ),
}
"""The public sets by name."""


def advice(name: str) -> str:
    """What to do where a set is missing, for messages."""
    source = SOURCES[name]
    return "fetch it with data.download=true" if source.archives else f"get it by hand from {source.page}"


def fetch(name: str, root: str | Path) -> None:
    """Fetch a public set into ``root``; return at once if it is there.

    An archive is fetched into a folder beside ``root``, named after it, its checksum is compared, it is unpacked there,
    its files are counted, and only then is it moved into place by one rename and the archive deleted. So what is in
    place is whole. A broken connection is taken up again where it ended, in the same run as long as something arrives,
    else in the next one. An archive obtained in another way can be put into that folder.

    Args:
        name: of the set in ``SOURCES``.
        root: where its files are to lie, as the reader of the set takes it.

    Raises:
        ConfigError: there is no such set.
        DataError: something else is in the way, the connection fails, or what arrives is not what was announced.
    """
    if name not in SOURCES:
        raise ConfigError(f"no data set {name!r} to fetch. Choose one of: {', '.join(SOURCES)}")
    source, root = SOURCES[name], Path(root).absolute()
    if not source.archives:
        if _lacks(root, source.holds or {}):
            raise DataError(f"{name} is not in {root} and cannot be fetched: see {source.page}. {source.by_hand}")
        return
    missing = [archive for archive in source.archives if _lacks(root / archive.target, archive.holds)]
    if not missing:
        return
    work = root.with_name(f".{root.name}.download")
    try:
        with _alone(work):
            for archive in missing:
                _bring(archive, root / archive.target, work, source.page)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{name} cannot be fetched into {root} ({error}). Mend that, and run again") from error


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Wait until no other process fetches the same; the kernel frees the lock of one that was killed."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lacks(folder: Path, holds: Mapping[str, int]) -> str:
    """What a folder has too little of, in words; empty if nothing."""
    counts = {pattern: sum(1 for _ in folder.glob(pattern)) for pattern in holds}
    return ", ".join(
        f"{counts[pattern]} of {least} {pattern}" for pattern, least in holds.items() if counts[pattern] < least
    )


def _bring(archive: Archive, target: Path, work: Path, page: str) -> None:
    """Fetch, check and unpack one archive, and move it to ``target``."""
    lack = _lacks(target, archive.holds)
    if not lack:  # another process was quicker
        return
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise DataError(
            f"{target} is not complete ({lack}), and nothing of it was touched. Complete it by hand from "
            f"{archive.url}, or move it away and run again"
        )
    file = work / archive.filename
    elsewhere = f"Or get {archive.filename} in another way (see {page}), put it into {work} as it is, and run again"
    _download(archive, file, elsewhere)
    unpacked = work / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    log.info("unpacking %s", file)
    try:
        if tarfile.is_tarfile(file):
            shutil.unpack_archive(file, unpacked, filter="data")  # else a tar could write anywhere
        else:
            shutil.unpack_archive(file, unpacked)
    except (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        file.unlink()
        raise DataError(
            f"{archive.url} does not unpack ({error}), so it was deleted. Run again. {elsewhere}"
        ) from error
    lack = _lacks(unpacked / archive.member, archive.holds)
    if lack:
        file.unlink()
        raise DataError(f"{archive.url} is not complete ({lack} in {archive.member}), so it was deleted. {elsewhere}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        target.rmdir()  # empty
    (unpacked / archive.member).rename(target)
    shutil.rmtree(unpacked, ignore_errors=True)
    file.unlink()


def _download(archive: Archive, file: Path, elsewhere: str) -> None:
    """Have the archive as ``file``, with the right checksum."""
    if not file.is_file():
        part = file.with_name(f"{file.name}.part")
        log.info("fetching %s", archive.url)
        while True:
            had = _size(part)
            try:
                whole = _transfer(archive.url, part)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if _size(part) > had:
                    continue
                raise DataError(f"cannot fetch {archive.url} ({error}). Run again later. {elsewhere}") from error
            if whole:
                break
            if _size(part) <= had:
                raise DataError(f"{archive.url} breaks off after {had} bytes. Run again later. {elsewhere}")
        part.rename(file)
    if archive.md5 is not None and (found := _md5(file)) != archive.md5:
        file.unlink()
        raise DataError(
            f"{archive.url} has the checksum {found} instead of {archive.md5}, so it was deleted. Run again. "
            f"{elsewhere}"
        )


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _transfer(url: str, part: Path) -> bool:
    """Append to ``part`` what it lacks; whether it is whole then, as far as the server tells."""
    had = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={had}-"} if had else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is left; the checksum will tell
            return True
        raise
    with response:
        if getattr(response, "status", None) != http.HTTPStatus.PARTIAL_CONTENT:  # all of it, from the beginning
            had = 0
        announced = response.headers.get("Content-Length")
        total = had + int(announced) if announced else 0
        shown: Bar[int] = progress(total // MEGABYTE, f"fetching {part.stem}", unit="MB", completed=had // MEGABYTE)
        with part.open("r+b" if had else "wb") as file, shown as bar:
            file.seek(had)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(file.tell() // MEGABYTE)
            return not total or file.tell() >= total
