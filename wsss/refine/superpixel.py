"""Superpixels, and scores averaged over them."""

from __future__ import annotations

import numpy as np
from skimage import segmentation


def slic(
    image: np.ndarray, *, segments: int, compactness: float = 20.0, sigma: float = 0.0, iterations: int = 10
) -> np.ndarray:
    """SLIC superpixels (Achanta et al., TPAMI 2012): k-means in colour (CIELAB) and position.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        segments: about how many to make, at most one per pixel. A count, not an area: the same objects photographed at
            another resolution get the same superpixels.
        compactness: weight of position against colour.
        sigma: width in pixels of a Gaussian that smooths the image first; 0 is none.
        iterations: of k-means.

    Returns:
        ``(H, W)`` int64, connected segments with contiguous ids 0..S-1.
    """
    found = segmentation.slic(
        image,
        n_segments=min(segments, image.shape[0] * image.shape[1]),
        compactness=compactness,
        sigma=sigma,
        max_num_iter=iterations,
        start_label=0,
        channel_axis=-1,
    )
    return _contiguous(found)


def felzenszwalb(image: np.ndarray, *, scale: float, sigma: float = 0.8, min_size: int = 20) -> np.ndarray:
    """Graph-based segments (Felzenszwalb and Huttenlocher, IJCV 2004); their number follows from the image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        scale: larger means larger segments.
        sigma: width in pixels of a Gaussian that smooths the image first; 0 is none.
        min_size: segments of fewer pixels are merged into a neighbour.

    Returns:
        ``(H, W)`` int64, segments with contiguous ids 0..S-1.
    """
    return _contiguous(segmentation.felzenszwalb(image, scale=scale, sigma=sigma, min_size=min_size, channel_axis=-1))


def segment_means(segments: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Mean score of each map in each segment, ``S_c(O)`` of LayerCAM (TIP 2021, Eq. 10).

    Args:
        segments: ``(H, W)`` ids 0..S-1, each of which occurs.
        scores: ``(K, H, W)``.

    Returns:
        ``(K, S)`` float32.
    """
    flat = segments.reshape(-1)
    sizes = np.bincount(flat)
    sums = [np.bincount(flat, weights=score.reshape(-1)) for score in scores]
    return (np.array(sums).reshape(len(scores), len(sizes)) / sizes).astype(np.float32)


def superpixel_smoothing(segments: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Each score replaced by its mean over the superpixel; thresholding then is LayerCAM's vote (Eq. 10).

    Args:
        segments: ``(H, W)`` ids 0..S-1, each of which occurs.
        scores: ``(K, H, W)``.

    Returns:
        ``(K, H, W)`` float32, constant on each segment.
    """
    return segment_means(segments, scores)[:, segments]


def _contiguous(segments: np.ndarray) -> np.ndarray:
    """The same segments with ids 0..S-1 in their order; the libraries may leave gaps."""
    occurs = np.bincount(segments.reshape(-1)) > 0
    return (np.cumsum(occurs) - 1)[segments]
