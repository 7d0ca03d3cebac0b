"""Cost of measuring a segmenter, against what a user would pick instead: torchmetrics, and loops over classes.

    python bench/evaluation.py [--images 8] [--rounds 3] [--clock cpu]

IoU and boundary F-score of labels of 500x375 pixels with 21 values, and the losses of a training batch.
"""

from __future__ import annotations

import argparse

import wsss  # noqa: F401  before torch: it tells OpenMP's threads not to spin while they wait

# isort: split
import numpy as np
import torch
from scipy import ndimage
from skimage.segmentation import find_boundaries
from timing import CLOCKS, measure
from torchmetrics.classification import MulticlassJaccardIndex

from wsss.metrics import BoundaryFScore, ConfusionMatrix
from wsss.training.losses import (
    BootstrappedCrossEntropy,
    ClassBalancedCrossEntropy,
    CrossEntropy,
    SymmetricCrossEntropy,
    TrimmedCrossEntropy,
)

LABELS, HEIGHT, WIDTH = 21, 375, 500
Pair = tuple[np.ndarray, np.ndarray]


def pairs(count: int) -> list[Pair]:
    """Truth and prediction: regions of three labels, moved by four pixels in the prediction, 255 between them."""
    made, generator = [], np.random.default_rng(0)
    for _ in range(count):
        field = ndimage.gaussian_filter(generator.standard_normal((3, HEIGHT, WIDTH)), (0, 25, 25))
        labels = generator.choice(LABELS, 3, replace=False).astype(np.uint8)[field.argmax(axis=0)]
        truth = labels.copy()
        truth[find_boundaries(labels)] = 255
        made.append((truth, np.roll(labels, 4, axis=(0, 1))))
    return made


def with_torchmetrics(found: list[Pair]) -> None:
    """The data set's IoU by torchmetrics."""
    metric = MulticlassJaccardIndex(LABELS, ignore_index=255, average=None)
    for truth, prediction in found:
        metric.update(torch.from_numpy(prediction).long()[None], torch.from_numpy(truth).long()[None])
    metric.compute()


def with_masks(found: list[Pair]) -> None:
    """Intersections and unions from a mask of each class."""
    counts = np.zeros((2, LABELS))
    for truth, prediction in found:
        known = truth != 255
        for label in range(LABELS):
            one, other = (prediction == label) & known, truth == label
            counts[:, label] += (one & other).sum(), (one | other).sum()


def with_ours(found: list[Pair]) -> None:
    """One confusion matrix."""
    confusion = ConfusionMatrix(LABELS)
    for truth, prediction in found:
        confusion.update(truth, prediction)


def boundary_with_masks(found: list[Pair]) -> None:
    """A distance transform of each class, truth and prediction, over the whole image."""
    for truth, prediction in found:
        tolerance = 0.0075 * np.hypot(*truth.shape)
        for label in range(LABELS):
            edges = [find_boundaries(labels == label, mode="inner") for labels in (truth, prediction)]
            near = [ndimage.distance_transform_edt(~edge) < tolerance for edge in edges]
            for edge, other in zip(edges, reversed(near), strict=True):
                (edge & other).sum() / max(1, edge.sum())


def boundary_with_ours(found: list[Pair]) -> None:
    """Distances between boundary pixels alone, of the labels that are there."""
    score = BoundaryFScore(LABELS)
    for truth, prediction in found:
        score.update(truth, prediction)


def main() -> None:
    """Print milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, beside other work")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = pairs(options.images)

    def compare(title: str, variants: dict, *, images: int = len(found), **more: bool) -> None:
        measure(title, list(variants.items()), rounds=options.rounds, images=images, clock=options.clock, **more)

    compare(
        "IoU of a data set, an image",
        {
            "torchmetrics MulticlassJaccardIndex": lambda: with_torchmetrics(found),
            "a mask of each class": lambda: with_masks(found),
            "ConfusionMatrix": lambda: with_ours(found),
        },
    )
    compare(
        "boundary F-score, an image",
        {
            "a distance transform of each class": lambda: boundary_with_masks(found),
            "BoundaryFScore": lambda: boundary_with_ours(found),
        },
    )
    logits = torch.randn(8, LABELS, 224, 224, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.randint(0, LABELS, (8, 224, 224), generator=torch.Generator().manual_seed(1))
    losses = {
        "torch cross_entropy": lambda a, b: torch.nn.functional.cross_entropy(a, b, ignore_index=255),
        "cross_entropy": CrossEntropy(),
        "symmetric": SymmetricCrossEntropy(),
        "bootstrapped": BootstrappedCrossEntropy(),
        "trimmed": TrimmedCrossEntropy(),
        "class_balanced": ClassBalancedCrossEntropy(),
    }
    compare(
        "loss and gradient of a batch of 8 at 224 pixels, an image",
        {name: (lambda loss=loss: loss(logits, labels).backward()) for name, loss in losses.items()},
        images=8,
        warm_up=True,
    )


if __name__ == "__main__":
    main()
