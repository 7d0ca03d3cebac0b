"""Fully connected CRF on one image (Kraehenbuehl and Koltun, NIPS 2011), through pydensecrf.

pydensecrf holds the interpreter lock while it works, so that threads gain nothing: use processes
(:func:`wsss.refine.pool.map_images`). Its cost grows with the number of labels, so only those present go in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

import numpy as np
from pydensecrf.densecrf import DenseCRF2D

SMALLEST_PROBABILITY = 1e-5
"""Smaller ones count as this much: their logarithm must be finite."""


class CrfParameters(TypedDict):
    """The pairwise terms: widths in pixels (sxy) and in 8-bit colour values (srgb), and weights (compat)."""

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float


IRN = CrfParameters(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=50, bilateral_srgb=5, bilateral_compat=10)
"""As in IRN and the methods built on it, LPCAM among them."""

PSA = CrfParameters(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10)
"""As in PSA and the methods built on it."""

DEEPLAB = CrfParameters(gaussian_sxy=1, gaussian_compat=3, bilateral_sxy=67, bilateral_srgb=3, bilateral_compat=4)
"""As in DeepLab-v2 and CLIP-ES."""


def dense_crf(
    image: np.ndarray,
    probabilities: np.ndarray,
    *,
    iterations: int = 10,
    **parameters: Unpack[CrfParameters],
) -> np.ndarray:
    """Mean-field posterior of a fully connected CRF with a Gaussian and a bilateral Potts term.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        probabilities: ``(L, H, W)``, one map per label that may occur, background among them; normally from
            :func:`soft_probabilities` or :func:`hard_probabilities`. The unary energy is their negative logarithm.
        iterations: of mean field.
        parameters: ``gaussian_sxy``, the width in pixels of the smoothness term, and ``gaussian_compat``, its weight;
            ``bilateral_sxy``, the width in pixels of the appearance term, ``bilateral_srgb``, its width in 8-bit colour
            values, and ``bilateral_compat``, its weight. For example ``**IRN``.

    Returns:
        ``(L, H, W)`` float32 that sums to 1 over the labels. With one label the input is returned as it came.

    Raises:
        ValueError: the image is not ``(H, W, 3)`` uint8. pydensecrf would take other types and wrap them around.
    """
    (posterior,) = dense_crf_each(image, [probabilities], iterations=iterations, **parameters)
    return posterior


def dense_crf_each(
    image: np.ndarray,
    probabilities: Sequence[np.ndarray],
    *,
    iterations: int = 10,
    gaussian_sxy: float,
    gaussian_compat: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_compat: float,
) -> list[np.ndarray]:
    """:func:`dense_crf` for several unaries of one image: the pairwise terms are set up once.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        probabilities: arrays ``(L, H, W)``, all of one shape.
        iterations: and the rest: as in :func:`dense_crf`.

    Returns:
        A posterior ``(L, H, W)`` for each.

    Raises:
        ValueError: the image is not ``(H, W, 3)`` uint8, or the shapes differ.
    """
    shapes = {unary.shape for unary in probabilities}
    if len(shapes) != 1:
        raise ValueError(f"expected probabilities of one shape (L, H, W), got {sorted(shapes)}")
    labels, height, width = shapes.pop()
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise ValueError(f"expected a uint8 image {(height, width, 3)}, got {image.dtype} {image.shape}")
    if labels == 1:
        return list(probabilities)
    crf = DenseCRF2D(width, height, labels)
    crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=bilateral_sxy,
        srgb=bilateral_srgb,
        rgbim=np.require(image, requirements=("C", "W")),
        compat=bilateral_compat,
    )
    posteriors = []
    for unary in probabilities:
        energy = -np.log(np.clip(unary, SMALLEST_PROBABILITY, 1, dtype=np.float32))
        crf.setUnaryEnergy(np.ascontiguousarray(energy.reshape(labels, -1)))
        found = np.array(crf.inference(iterations), dtype=np.float32)
        posteriors.append(found.reshape(labels, height, width))
    return posteriors


def soft_probabilities(scores: np.ndarray, *, background: float | np.ndarray) -> np.ndarray:
    """Background and class scores, divided by their sum.

    Args:
        scores: ``(K, H, W)`` in [0, 1].
        background: score of the background, one number or ``(H, W)``.

    Returns:
        ``(K + 1, H, W)`` float32, background first; uniform where all scores are 0.
    """
    stack = np.empty((len(scores) + 1, *scores.shape[1:]), dtype=np.float32)
    stack[0] = background
    stack[1:] = scores
    total = stack.sum(axis=0)
    return np.where(total > 0, stack / np.where(total > 0, total, 1), np.float32(1 / len(stack)))


def hard_probabilities(labels: np.ndarray, class_ids: np.ndarray, *, gt_prob: float) -> np.ndarray:
    """``gt_prob`` for the label of each pixel, the rest shared by the others; uniform where the label is another (255).

    Args:
        labels: ``(H, W)`` in {0} and ``class_ids``, or 255.
        class_ids: ``(K,)`` with ``K >= 1``.
        gt_prob: in (0, 1).

    Returns:
        ``(K + 1, H, W)`` float32, background first.
    """
    members = np.stack([labels == label for label in (0, *class_ids)])
    probabilities = np.where(members, gt_prob, (1 - gt_prob) / len(class_ids)).astype(np.float32)
    probabilities[:, ~members.any(axis=0)] = 1 / len(members)
    return probabilities
