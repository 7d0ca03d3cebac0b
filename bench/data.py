"""Cost of loading images, against what a user would pick instead.

    python bench/data.py [--images 32] [--rounds 5] [--size 321] [--only WORDS] [--clock wall|cpu]

Images are drawn: 500x375 JPEG files of about 50 KB with indexed masks. In each round every variant of a group runs once
over all of them, in changing order; medians over the rounds are printed, per image, with the speed relative to the
group's first row. Read the ratios; milliseconds belong to the machine and its neighbours. ``--clock cpu`` takes
processor time of this process, which neighbours disturb less (not for loader and training: work elsewhere).
Rows of OpenCV, simplejpeg and albumentations are left out where those are not installed. Before the clock starts, the
views of Augment and of torchvision are compared: they must be equal, pixel for pixel.

decode        a file to RGB pixels, and the same pixels out of the caches
augment       scale, flip and crop of image and mask; and with changes of colour
sample        all of a training sample: read image and mask, augment, tags
loader        batches through the DataModule with 0, 1 and 2 loader processes
training      steps of a classifier (EfficientNet-Lite0, --size 128 or so is enough) fed by 0, 1 and 2 loader processes
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import wsss  # noqa: F401  before torch: it tells OpenMP's threads not to spin while they wait

# isort: split
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from timing import CLOCKS, Variant, measure
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from wsss.data import Augment, DataModule, ImageSet, VocLayout
from wsss.data.cache import cached
from wsss.data.images import read_image
from wsss.data.loading import TrainingViews, cores, tag_vector
from wsss.data.transforms import to_tensor
from wsss.palette import voc_palette
from wsss.types import IGNORE

with contextlib.suppress(ImportError):
    import cv2

    cv2.setNumThreads(1)
with contextlib.suppress(ImportError):
    import simplejpeg
with contextlib.suppress(ImportError), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import albumentations

SCALE, JITTER, FILL, BATCH = (1.0, 1.5), 0.4, 127, 16


class Sets(NamedTuple):
    """One data set with each of the caches; those are filled."""

    none: ImageSet
    disk: ImageSet
    memory: ImageSet

    @property
    def ids(self) -> tuple[str, ...]:
        """The images to load."""
        return self.none.ids(self.none.train)


def drawn(folder: Path, count: int) -> Sets:
    """A set of ``count`` photographs of 500x375, as far as noise can pass for them."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / "set" / name).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        smooth = ndimage.gaussian_filter(draw.normal(size=(375, 500, 3)), (7, 7, 0)) * 900 + 128
        photograph = (smooth + draw.normal(scale=11, size=smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(photograph).save(folder / f"set/JPEGImages/{number:04}.jpg", quality=82)
        heights = ndimage.gaussian_filter(draw.normal(size=(375, 500)), 30)
        mask = np.digitize(heights, np.quantile(heights, [0.6, 0.8])).astype(np.uint8) * (1 + number % 10)
        indexed = Image.fromarray(mask)
        indexed.putpalette(voc_palette().tobytes())
        indexed.save(folder / f"set/SegmentationClass/{number:04}.png")
    names = "\n".join(f"{number:04}" for number in range(count))
    for split in ("train", "val"):
        (folder / f"set/ImageSets/Segmentation/{split}.txt").write_text(names)
    data = VocLayout(folder / "set", name="drawn")
    data.tags("train")
    sets = Sets(data, *(cached(data, kind, folder=folder / "decoded") for kind in ("disk", "memory")))
    for id in sets.ids:
        assert np.array_equal(sets.disk.image(id), sets.memory.image(id))
    return sets


def drain(results: Iterable[Any]) -> None:
    """Have all computed and keep none: memory that is held would be a cost of its own."""
    for _ in results:
        pass


def there(*variants: tuple[str, Variant]) -> list[Variant]:
    """The variants whose library is installed; an empty name asks for none."""
    return [variant for library, variant in variants if not library or library in globals()]


class TorchvisionViews(Dataset[dict[str, torch.Tensor]]):
    """The same samples as a user of torchvision writes them: Pillow, v2 transforms, tags."""

    def __init__(self, data: ImageSet, size: int, jitter: float = 0.0) -> None:
        self.data, self.steps = data, torchvision_steps(size, jitter)

    def __len__(self) -> int:
        return len(self.data.ids(self.data.train))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        id = self.data.ids(self.data.train)[index]
        with Image.open(self.data.image_path(id)) as file:
            image = tv_tensors.Image(v2.functional.pil_to_tensor(file.convert("RGB")))
        with Image.open(self.data.root / f"SegmentationClass/{id}.png") as file:
            mask = tv_tensors.Mask(torch.from_numpy(np.array(file)))
        view, labels = self.steps(image, mask)
        tags = tag_vector(self.data.class_ids(id), len(self.data.classes))
        return {"image": view, "labels": labels.long(), "tags": tags}


def torchvision_steps(size: int, jitter: float) -> v2.Compose:
    """The transforms that Augment computes, from torchvision."""
    return v2.Compose(
        [
            v2.ScaleJitter((size, size), scale_range=SCALE, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            *([v2.ColorJitter(jitter, jitter, jitter)] if jitter else []),
            v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: FILL, tv_tensors.Mask: IGNORE}),
        ]
    )


def albumentations_steps(size: int, jitter: float) -> Callable[..., Any]:
    """The nearest that albumentations has: its resizing does not smooth."""
    low, high = (round(factor * size) for factor in SCALE)
    colours = (max(0.0, 1 - jitter), 1 + jitter)
    return albumentations.Compose(
        [
            albumentations.LongestMaxSize(max_size=list(range(low, high + 1))),
            albumentations.HorizontalFlip(p=0.5),
            *([albumentations.ColorJitter(colours, colours, colours, (0, 0), p=1)] if jitter else []),
            albumentations.PadIfNeeded(size, size, fill=FILL, fill_mask=IGNORE),
            albumentations.RandomCrop(size, size),
        ]
    )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=321)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    if arguments.images < BATCH:
        parser.error(f"--images must be {BATCH} or more, one batch")
    torch.set_num_threads(1)
    groups = {
        "decode": bench_decode, "augment": bench_augment, "sample": bench_sample, "loader": bench_loader,
        "training": bench_training,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        sets = drawn(Path(folder), arguments.images)
        size = np.mean([sets.none.image_path(id).stat().st_size for id in sets.ids]) / 1000
        print(f"{len(sets.ids)} images of 500x375, {size:.0f} KB each; {cores()} cores")
        for name, bench in groups.items():
            if not arguments.only or name in arguments.only:
                run = partial(
                    measure, warm_up=True, rounds=arguments.rounds, images=len(sets.ids), clock=arguments.clock
                )
                bench(sets, arguments.size, run)


def bench_decode(sets: Sets, size: int, run: Callable[..., None]) -> None:
    """Files to pixels."""
    data, ids = sets.none, sets.ids
    paths = [data.image_path(id) for id in ids]

    def plain(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))

    def mapped(id: str) -> np.ndarray:
        return np.array(np.load(sets.disk.image.path(id), mmap_mode="r"))  # type: ignore[attr-defined]

    run(
        "decode a JPEG file",
        there(
            ("", ("Pillow, plain", lambda: drain(plain(path) for path in paths))),
            (
                "",
                (
                    "read_image (checks, EXIF orientation, transparency)",
                    lambda: drain(read_image(path) for path in paths),
                ),
            ),
            ("cv2", ("OpenCV", lambda: drain(cv2.cvtColor(cv2.imread(str(p)), cv2.COLOR_BGR2RGB) for p in paths))),
            ("simplejpeg", ("simplejpeg", lambda: drain(simplejpeg.decode_jpeg(path.read_bytes()) for path in paths))),
            ("", ("cache: disk", lambda: drain(sets.disk.image(id) for id in ids))),
            ("", ("the same files mapped, each value read once", lambda: drain(mapped(id) for id in ids))),
            ("", ("cache: memory", lambda: drain(sets.memory.image(id) for id in ids))),
            ("", ("an indexed mask, checked", lambda: drain(data.truth(id) for id in ids))),
        ),
    )


def bench_augment(sets: Sets, size: int, run: Callable[..., None]) -> None:
    """Views of what is already in memory."""
    pairs = [(sets.none.image(id), sets.none.truth(id)) for id in sets.ids]
    for jitter in (0.0, JITTER):
        ours, theirs = Augment(size=size, scale=SCALE, jitter=jitter, fill=FILL), torchvision_steps(size, jitter)

        def by_torchvision(image: np.ndarray, mask: np.ndarray, steps: v2.Compose = theirs) -> tuple[Any, Any]:
            return steps(tv_tensors.Image(to_tensor(image)), tv_tensors.Mask(torch.from_numpy(mask)))

        for seed, (image, mask) in enumerate(pairs):
            torch.manual_seed(seed)
            for mine, other in zip(ours(image, mask, seed=seed), by_torchvision(image, mask), strict=True):
                assert torch.equal(mine, other.as_subclass(torch.Tensor))
        rows = [
            ("", ("torchvision v2", lambda view=by_torchvision: drain(view(*pair) for pair in pairs))),
            ("", ("Augment", lambda view=ours: drain(view(*pair, seed=seed) for seed, pair in enumerate(pairs)))),
        ]
        if "albumentations" in globals():
            steps = albumentations_steps(size, jitter)
            rows.append(("", ("albumentations", lambda steps=steps: drain(steps(image=i, mask=m) for i, m in pairs))))
        run(f"augment image and mask to {size}, {'colours changed' if jitter else 'no change of colour'}", there(*rows))


def bench_sample(sets: Sets, size: int, run: Callable[..., None]) -> None:
    """All that a loader process does for one sample."""
    count = range(len(sets.ids))
    for jitter in (0.0, JITTER):
        augment = Augment(size=size, scale=SCALE, jitter=jitter, fill=FILL)

        def ours(data: ImageSet, augment: Augment = augment) -> Callable[[], Any]:
            views = TrainingViews(data, sets.ids, augment=augment, seed=0, masks=sets.none.truth)
            return lambda: drain(views[0, index] for index in count)

        theirs = TorchvisionViews(sets.none, size, jitter)
        run(
            f"one training sample with its mask at {size}, {'colours changed' if jitter else 'no change of colour'}",
            [
                ("Pillow and torchvision v2", lambda theirs=theirs: drain(theirs[index] for index in count)),
                ("TrainingViews, cache=none", ours(sets.none)),
                ("TrainingViews, cache=disk", ours(sets.disk)),
                ("TrainingViews, cache=memory", ours(sets.memory)),
            ],
        )


def module(data: ImageSet, size: int, workers: int) -> DataModule:
    """Training batches as the stages make them, with masks."""
    augment = Augment(size=size, scale=SCALE, fill=FILL)
    return DataModule(data, augment=augment, batch_size=BATCH, workers=workers, seed=0, masks=data.truth)


class Epochs:
    """Passes over a loader whose processes stay, as in a training."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __call__(self) -> None:
        """One pass."""
        drain(self.loader)


def bench_loader(sets: Sets, size: int, run: Callable[..., None]) -> None:
    """Nobody else uses the cores: what a fast GPU would be given."""

    def torchvision_loader(workers: int) -> DataLoader[Any]:
        views = TorchvisionViews(sets.none, size)
        return DataLoader(
            views, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )

    rows: list[Variant] = []
    for workers in (0, 1, 2):
        rows.append((f"Pillow and torchvision v2, {workers} processes", Epochs(torchvision_loader(workers))))
        for kind, data in sets._asdict().items():
            loader = module(data, size, workers).train_dataloader()
            rows.append((f"DataModule, cache={kind}, {workers} processes", Epochs(loader)))
    run(f"batches of {BATCH} with masks at {size}, nothing else to do, wall clock", rows, clock="wall")


def bench_training(sets: Sets, size: int, run: Callable[..., None]) -> None:
    """Training on the cores that load: does a process help, or take what it gives?"""
    from wsss.models import TimmClassifier

    network = TimmClassifier(encoder="tf_efficientnet_lite0", num_classes=len(sets.none.classes), weights=None)
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def train(loader: DataLoader[Any], threads: int) -> None:
        torch.set_num_threads(threads)
        for batch in loader:
            optimizer.zero_grad()
            images = (batch["image"] / 255).contiguous(memory_format=torch.channels_last)
            F.multilabel_soft_margin_loss(network(images), batch["tags"]).backward()
            optimizer.step()
        torch.set_num_threads(1)

    rows: list[Variant] = []
    for workers in (0, 1, 2):
        for kind, data in (("none", sets.none), ("disk", sets.disk)):
            loader = module(data, size, workers).train_dataloader()
            name = f"cache={kind}, {workers} processes, {cores()} threads of torch"
            rows.append((name, partial(train, loader, cores())))
    run(f"training at {size}, batches of {BATCH}, on the CPU, wall clock", rows, clock="wall")


if __name__ == "__main__":
    main()
