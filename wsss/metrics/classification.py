"""Average precision of multi-label scores."""

from __future__ import annotations

import numpy as np


def average_precision(scores: np.ndarray, tags: np.ndarray) -> np.ndarray:
    """Average precision of each class, ``sum_n (R_n - R_{n-1}) P_n`` over the distinct scores in decreasing order.

    The exact area under the step curve, without interpolation; equal scores are one step, so that the order of images
    does not matter. Equal to scikit-learn's ``average_precision_score`` of each class.

    Args:
        scores: ``(N, C)``, finite; only their order matters.
        tags: ``(N, C)`` in {0, 1} or bool.

    Returns:
        ``(C,)`` float64 in [0, 1]; NaN for a class without a positive image.
    """
    if scores.ndim != 2 or scores.shape != tags.shape:
        raise ValueError(f"expected scores and tags (N, C), got {scores.shape} and {tags.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if not np.isin(tags, (0, 1)).all():
        raise ValueError(f"tags must be 0 or 1, got {np.setdiff1d(tags, (0, 1)).tolist()[:5]}")
    return np.array([_average_precision(scores[:, c], tags[:, c]) for c in range(scores.shape[1])], dtype=np.float64)


def mean_average_precision(scores: np.ndarray, tags: np.ndarray) -> float:
    """Mean of :func:`average_precision` over the classes that have a positive image; NaN if none has."""
    per_class = average_precision(scores, tags)
    defined = per_class[~np.isnan(per_class)]
    return defined.mean().item() if defined.size else float("nan")


def _average_precision(scores: np.ndarray, tags: np.ndarray) -> float:
    positives = int(np.count_nonzero(tags))
    if positives == 0:
        return float("nan")
    scores = scores.astype(np.float64)  # so that the minus below is safe for unsigned integers too
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_equals = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    hits = np.cumsum(tags[order].astype(np.int64))[last_of_equals]
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / (last_of_equals + 1)).sum() / positives)
