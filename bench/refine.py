"""Cost of refining seeds on a CPU, against what a user would pick instead.

    python bench/refine.py [--images 8] [--rounds 3] [--size 500] [--only WORDS] [--clock wall|cpu]

Images and masks are drawn by the demo set's generator, seeds are its masks blurred, one to three classes an image. In
each round every variant of a group runs once, in changing order; medians over the rounds are printed, per image, with
the speed relative to the group's first row. Read the ratios; milliseconds belong to the machine and its neighbours.
``--clock cpu`` takes processor time of this process, which neighbours disturb less (not for the pool, whose work is
elsewhere). Before the clock starts, labels of variants that should agree are compared, and the share that does printed.

crf           a loop over images in one process with 21 labels, as published pipelines run it, against present labels
confident     two CRFs for two backgrounds, against pairwise terms that are set up once
torch         pydensecrf against the lattice in torch: one image, two unaries, a batch; and PAMR
pool          the same work in 1 and 2 processes
superpixels   a Python loop over segments against bincount; segments computed against read from the store
cut           the graph cut beside the dense CRF
walk          the dense matrix power that published programs compute against the walk along diagonals
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import wsss  # noqa: F401  before torch: it tells OpenMP's threads not to spin while they wait

# isort: split
import numpy as np
import torch
from scipy import ndimage
from timing import CLOCKS, measure

from wsss.artifacts import SuperpixelStore
from wsss.data.demo import render_demo
from wsss.data.voc import VocLayout
from wsss.refine import DEEPLAB, IRN, Crf, DenseCrf, Extras, map_images
from wsss.refine.crf import dense_crf, dense_crf_each, soft_probabilities
from wsss.refine.graphcut import cut_labels
from wsss.refine.mean_field import dense_crf_batch, mean_field, pairwise_kernels
from wsss.refine.methods import winners
from wsss.refine.pamr import pamr
from wsss.refine.random_walk import affinities, propagate
from wsss.refine.superpixel import felzenszwalb, slic, superpixel_smoothing

VOC_LABELS = 21


class Item(NamedTuple):
    """One image with its seeds."""

    image: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """What goes into the CRF."""
        return soft_probabilities(self.scores, background=0.3)


def drawn(folder: Path, count: int, size: int) -> list[Item]:
    """Images of the demo set at ``size`` x 3/4 ``size`` with blurred masks as seeds."""
    render_demo(folder / "demo", seed=0, train=count, val=1, size=size)
    data = VocLayout(folder / "demo", name="demo")
    items = []
    for id in data.ids("train"):
        image, truth = data.image(id)[: size * 3 // 4].copy(), data.truth(id)[: size * 3 // 4]
        ids = np.array(data.class_ids(id), dtype=np.int64)
        blurred = np.stack([ndimage.gaussian_filter((truth == c).astype(np.float32), size / 25) for c in ids])
        largest = blurred.max(axis=(1, 2), keepdims=True)
        items.append(Item(image, ids, blurred / np.where(largest > 0, largest, 1)))
    return items


def published_loop(items: list[Item]) -> list[np.ndarray]:
    """One process, image by image, with all 21 labels in the CRF."""
    labels = []
    for item in items:
        unaries = np.full((VOC_LABELS, *item.scores.shape[1:]), 1e-5, dtype=np.float32)
        unaries[[0, *item.class_ids]] = item.probabilities
        labels.append(dense_crf(item.image, unaries, **DEEPLAB).argmax(axis=0))
    return labels


def present_only(items: list[Item]) -> list[np.ndarray]:
    """The same with the labels of each image alone."""
    return [winners(dense_crf(i.image, i.probabilities, **DEEPLAB), i.class_ids) for i in items]


def refine_one(item: Item) -> np.ndarray:
    """One image, in whatever process."""
    return DenseCrf(crf=Crf(**DEEPLAB))(item.image, item.class_ids, item.scores, Extras())


def in_processes(items: list[Item], workers: int) -> list[np.ndarray]:
    """The images in a pool. Processes that start are part of the time, as they are in a run."""
    named = ((str(at), item) for at, item in enumerate(items))
    found = dict(map_images(refine_one, named, workers=workers))
    return [found[str(at)] for at in range(len(items))]


def tensors(item: Item) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and unaries as batches of one."""
    return torch.from_numpy(item.image).permute(2, 0, 1)[None], torch.from_numpy(item.probabilities)[None]


def in_torch(item: Item) -> np.ndarray:
    """The CRF in torch."""
    image, unary = tensors(item)
    return winners(dense_crf_batch(image, unary, **DEEPLAB)[0].numpy(), item.class_ids)


def two_unaries(item: Item) -> None:
    """Two unaries, the pairwise terms set up once."""
    dense_crf_each(item.image, [item.probabilities] * 2, **DEEPLAB)


def two_unaries_in_torch(item: Item) -> None:
    """Two unaries on one lattice."""
    image, unary = tensors(item)
    mean_field(pairwise_kernels(image, **DEEPLAB), torch.stack([unary, unary.flip(-1)]))


def batch_in_torch(items: list[Item]) -> None:
    """Images of one size with as many labels as the one with the most; the others' are masked."""
    most = max(len(item.class_ids) for item in items) + 1
    images = torch.stack([torch.from_numpy(item.image).permute(2, 0, 1) for item in items])
    unaries = torch.zeros(len(items), most, *images.shape[-2:])
    valid = torch.zeros(len(items), most, dtype=torch.bool)
    for at, item in enumerate(items):
        labels = len(item.class_ids) + 1
        unaries[at, :labels], valid[at, :labels] = torch.from_numpy(item.probabilities), True
    dense_crf_batch(images, unaries, valid=valid, **DEEPLAB)


def loop_over_segments(segments: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The superpixel vote as a loop."""
    voted = np.empty_like(scores)
    for segment in range(segments.max() + 1):
        inside = segments == segment
        voted[:, inside] = scores[:, inside].mean(axis=1, keepdims=True)
    return voted


def dense_walk(scores: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
    """The transition matrix multiplied with itself eight times, as published programs do."""
    power = torch.from_numpy(affinities(boundaries).toarray())
    for _ in range(8):
        power = power @ power
    start = torch.from_numpy((scores * (1 - boundaries)).reshape(len(scores), -1))
    return (start @ power.T).reshape(scores.shape).numpy()


def agreement(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Share of equal labels."""
    return float(np.mean([np.mean(a == b) for a, b in zip(ours, theirs, strict=True)]))


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    groups = {
        "crf": bench_crf, "confident": bench_confident, "torch": bench_torch, "pool": bench_pool,
        "superpixels": bench_superpixels, "cut": bench_cut, "walk": bench_walk,
    }  # fmt: skip
    parser.add_argument("--only", nargs="*", choices=groups, default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        items = drawn(Path(folder), arguments.images, arguments.size)
        shapes = ", ".join(f"{len(item.class_ids)}" for item in items)
        print(f"{len(items)} images of {items[0].image.shape[1]}x{items[0].image.shape[0]}, classes: {shapes}")
        for name, bench in groups.items():
            if not arguments.only or name in arguments.only:
                bench(items, partial(measure, rounds=arguments.rounds, images=len(items), clock=arguments.clock))


def bench_crf(items: list[Item], run: Callable[..., None]) -> None:
    """Labels present against all of a data set."""
    print(f"\nequal labels, 21 against present: {agreement(present_only(items), published_loop(items)):.4f}")
    run(
        "dense CRF, 10 iterations, one process",
        [
            ("21 labels, a loop over images", lambda: published_loop(items)),
            ("present labels", lambda: present_only(items)),
        ],
    )


def bench_confident(items: list[Item], run: Callable[..., None]) -> None:
    """Two unaries of an image."""
    pairs = [(i.image, [soft_probabilities(i.scores, background=b) for b in (0.3, 0.05)]) for i in items]
    run(
        "two backgrounds through the CRF",
        [
            ("two CRFs", lambda: [[dense_crf(image, unary, **IRN) for unary in two] for image, two in pairs]),
            ("pairwise terms set up once", lambda: [dense_crf_each(image, two, **IRN) for image, two in pairs]),
        ],
    )


def bench_torch(items: list[Item], run: Callable[..., None]) -> None:
    """The CRF in torch, on one thread of this CPU."""
    ours = [in_torch(item) for item in items]
    print(f"\nequal labels, torch against pydensecrf: {agreement(ours, present_only(items)):.4f}")
    voted = [pamr(tensors(i)[0], torch.from_numpy(i.scores)[None])[0].numpy() for i in items]
    pamr_labels = [
        winners(soft_probabilities(v, background=0.3), i.class_ids) for v, i in zip(voted, items, strict=True)
    ]
    print(f"equal labels, PAMR against pydensecrf: {agreement(pamr_labels, present_only(items)):.4f}")
    run(
        "CRF in torch, one thread",
        [
            ("pydensecrf", lambda: present_only(items)),
            ("torch, image by image", lambda: [in_torch(item) for item in items]),
            ("torch, all images in one batch", lambda: batch_in_torch(items)),
            ("pydensecrf, two unaries, one set-up", lambda: [two_unaries(item) for item in items]),
            ("torch, two unaries, one lattice", lambda: [two_unaries_in_torch(item) for item in items]),
            ("PAMR", lambda: [pamr(tensors(i)[0], torch.from_numpy(i.scores)[None]) for i in items]),
        ],
    )  # fmt: skip


def bench_pool(items: list[Item], run: Callable[..., None]) -> None:
    """Processes; enough work that their start does not decide."""
    work = items * 20

    run(
        f"the pool: {len(work)} images, times of one pass over all by {len(items)}, wall clock",
        [
            ("a loop in this process", lambda: in_processes(work, 0)),
            ("1 process", lambda: in_processes(work, 1)),
            ("2 processes", lambda: in_processes(work, 2)),
        ],
        clock="wall",  # the work is in other processes
    )


def bench_superpixels(items: list[Item], run: Callable[..., None]) -> None:
    """The vote, and the segments."""
    segments = [slic(item.image, segments=400) for item in items]
    for item, found in zip(items, segments, strict=True):
        assert np.allclose(loop_over_segments(found, item.scores), superpixel_smoothing(found, item.scores), atol=1e-5)
    pairs = list(zip(segments, items, strict=True))
    run(
        "superpixel vote, SLIC 400",
        [
            ("a loop over segments", lambda: [loop_over_segments(s, i.scores) for s, i in pairs]),
            ("bincount", lambda: [superpixel_smoothing(s, i.scores) for s, i in pairs]),
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        store = SuperpixelStore(Path(folder))

        def kept() -> None:
            for item in items:
                store(item.image, "felzenszwalb", lambda item=item: felzenszwalb(item.image, scale=200))

        kept()
        run(
            "superpixels, Felzenszwalb",
            [
                ("computed", lambda: [felzenszwalb(item.image, scale=200) for item in items]),
                ("from the store", kept),
            ],
        )


def bench_cut(items: list[Item], run: Callable[..., None]) -> None:
    """Every class of an image against the rest, beside the CRF."""
    run(
        "graph cut",
        [
            ("dense CRF, DEEPLAB", lambda: present_only(items)),
            ("graph cut", lambda: [cut_labels(i.image, i.class_ids, i.scores, background=0.3) for i in items]),
        ],
    )


def bench_walk(items: list[Item], run: Callable[..., None]) -> None:
    """The random walk, at a quarter of the size for the sake of the dense matrix, and at the size of a run."""
    grids = []
    for item in items:
        grey = item.image.mean(axis=2)
        edges = ndimage.gaussian_gradient_magnitude(grey, 2)[::8, ::8].astype(np.float32)
        grids.append((item.scores[:, ::8, ::8], edges / edges.max()))
    for scores, boundaries in grids:
        assert np.abs(dense_walk(scores, boundaries) - propagate(scores, boundaries)).max() < 1e-3
    height, width = grids[0][1].shape
    run(
        f"random walk, 2^8 steps on {height}x{width} cells (stride 8: at stride 4 the dense matrix is 16 times larger)",
        [
            ("dense matrix, squared 8 times", lambda: [dense_walk(*grid) for grid in grids]),
            ("along diagonals", lambda: [propagate(*grid) for grid in grids]),
        ],
    )


if __name__ == "__main__":
    main()
