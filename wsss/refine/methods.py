"""The steps that Hydra builds: smoothing steps (scores to scores) and labelling steps (scores to labels).

A new method is a new class with one of the two call signatures in ``refiner``; nothing else has to know
about it. What each brings on photographs, and at what cost, is measured in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsss.refine.background import Background, as_background
from wsss.refine.crf import DEEPLAB, dense_crf_each, hard_probabilities, soft_probabilities
from wsss.refine.graphcut import cut_labels
from wsss.refine.mean_field import mean_field, pairwise_kernels
from wsss.refine.pamr import pamr
from wsss.refine.random_walk import walk
from wsss.refine.refiner import Extras
from wsss.refine.regions import merge_regions
from wsss.refine.step import Step
from wsss.refine.superpixel import felzenszwalb, slic, superpixel_smoothing
from wsss.refine.threshold import threshold
from wsss.types import BACKGROUND, IGNORE


class Superpixels(Step):
    """Mean of each score over superpixels (LayerCAM, TIP 2021, Eq. 10).

    Args:
        algorithm: "slic" or "felzenszwalb". SLIC makes segments of nearly equal size, so that a vote over them moves a
            border by less than a segment: merge them. Felzenszwalb's segments follow objects by themselves.
        segments: SLIC's number of superpixels per image, default 400.
        compactness: SLIC's weight of position against colour, default 20.
        scale: Felzenszwalb's preference for large segments, default 200.
        min_size: Felzenszwalb's smallest segment in pixels, default 20.
        sigma: Gaussian smoothing of the image beforehand in pixels, default 0 (slic) or 0.8 (felzenszwalb).
        merge: neighbours whose mean colours differ by less than this (CIELAB, dE76) become one; None: they stay apart.
    """

    gives = "scores"

    def __init__(
        self,
        *,
        algorithm: str = "slic",
        segments: int | None = None,
        compactness: float | None = None,
        scale: float | None = None,
        min_size: int | None = None,
        sigma: float | None = None,
        merge: float | None = None,
    ) -> None:
        self.algorithm = algorithm
        self.segments = segments
        self.compactness = compactness
        self.scale = scale
        self.min_size = min_size
        self.sigma = sigma
        self.merge = merge
        own = {"slic": ("segments", "compactness", "sigma"), "felzenszwalb": ("scale", "min_size", "sigma")}
        self.check_choice("algorithm", *own)
        for name in ("segments", "compactness", "scale", "min_size", "sigma"):
            if getattr(self, name) is None:
                continue
            if name not in own[self.algorithm]:
                takes = ", ".join(own[self.algorithm])
                raise self.wrong(name, f"null with {self.algorithm}, which takes {takes}")
            if name in ("segments", "min_size"):
                self.check_count(name)
            elif name == "sigma":
                self.check_not_negative(name)
            else:
                self.check_positive(name)
        if merge is not None:
            self.check_positive("merge")
        defaults = {"slic": (400, 20.0, 0.0), "felzenszwalb": (200.0, 20, 0.8)}
        for name, default in zip(own[algorithm], defaults[algorithm], strict=True):
            if getattr(self, name) is None:
                setattr(self, name, default)

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        """Scores that are constant on each superpixel."""
        return superpixel_smoothing(extras.superpixels(image, repr(self), lambda: self.segment(image)), scores)

    def segment(self, image: np.ndarray) -> np.ndarray:
        """The superpixels of an image, ``(H, W)`` ids 0..S-1."""
        segments = self._unmerged(image)
        return segments if self.merge is None else merge_regions(image, segments, threshold=self.merge)

    def _unmerged(self, image: np.ndarray) -> np.ndarray:
        settings = self.settings()
        if self.algorithm == "slic":
            found = {name: settings[name] for name in ("compactness", "sigma")}
            return slic(image, segments=int(settings["segments"]), **found)
        found = {name: settings[name] for name in ("scale", "sigma")}
        return felzenszwalb(image, min_size=int(settings["min_size"]), **found)


class Pamr(Step):
    """Scores averaged over similar neighbours, near and far (pixel-adaptive mask refinement; CVPR 2020).

    Args:
        iterations: how often.
        dilations: distances of the neighbours in pixels.
    """

    gives = "scores"

    def __init__(self, *, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)) -> None:
        self.iterations = iterations
        self.dilations = tuple(dilations) if isinstance(dilations, Sequence) else dilations
        self._device = "cpu"
        self.check_count("iterations")
        counts = isinstance(self.dilations, tuple) and all(isinstance(value, int) for value in self.dilations)
        if not counts or not self.dilations or min(self.dilations) < 1:
            raise self.wrong("dilations", "whole numbers of 1 or more, at least one")

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        """Scores by :func:`wsss.refine.pamr.pamr`."""
        pixels, maps = as_batch(image, self._device), torch.from_numpy(scores)[None].to(self._device)
        return pamr(pixels, maps, iterations=int(self.iterations), dilations=self.dilations)[0].cpu().numpy()

    def to(self, device: str) -> bool:
        """As every step; this one can."""
        self._device = device
        return True


class RandomWalk(Step):
    """Scores spread along learned affinities, held back by class boundaries (IRN; Ahn, Cho and Kwak, CVPR 2019).

    The boundaries come from the affinity stage of the pipeline. Scores come out relative to the largest of the image,
    so that another threshold suits them than the seeds: 0.25 in IRN's program and 0.35 in LPCAM's, where boundaries
    are fainter; 0.5 suits ours (docs/results.md).

    Args:
        beta: power of an affinity; the larger, the less a faint boundary lets through.
        steps: of the walk; time is proportional to it.
        radius: cells of 4 pixels that one step may cross.
    """

    gives = "scores"
    needs_boundaries = True

    def __init__(self, *, beta: float = 10.0, steps: int = 256, radius: int = 5) -> None:
        self.beta = beta
        self.steps = steps
        self.radius = radius
        self.check_positive("beta")
        self.check_count("steps")
        self.check("radius", lambda value: value >= 2 and value == int(value), "a whole number of 2 or more")

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        """Scores by :func:`wsss.refine.random_walk.walk`."""
        return walk(scores, extras.boundaries(), radius=int(self.radius), beta=self.beta, steps=int(self.steps))


class Threshold(Step):
    """The strongest class where its score is greater than the background's, else background.

    Args:
        background: a number, or an option of conf/threshold/; 0.3 by default.
    """

    gives = "labels"

    def __init__(self, *, background: Background | float | None = None) -> None:
        self.background = as_background(background)

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        """Labels by :func:`wsss.refine.threshold.threshold`."""
        compared, background = self.background(scores)
        return threshold(compared, class_ids, background=background)


class Crf(Step):
    """A fully connected CRF: its pairwise terms, and what computes it.

    Args:
        iterations: of mean field.
        gaussian_sxy: and the rest: see :func:`wsss.refine.crf.dense_crf`; the default is the preset DEEPLAB.
            ``Crf(**IRN)`` takes another.
        backend: "pydensecrf", one image at a time on the CPU, or "torch", which uses a GPU where there is one.
    """

    def __init__(
        self,
        *,
        iterations: int = 10,
        backend: str = "pydensecrf",
        gaussian_sxy: float = DEEPLAB["gaussian_sxy"],
        gaussian_compat: float = DEEPLAB["gaussian_compat"],
        bilateral_sxy: float = DEEPLAB["bilateral_sxy"],
        bilateral_srgb: float = DEEPLAB["bilateral_srgb"],
        bilateral_compat: float = DEEPLAB["bilateral_compat"],
    ) -> None:
        self.iterations = iterations
        self.backend = backend
        self.gaussian_sxy = gaussian_sxy
        self.gaussian_compat = gaussian_compat
        self.bilateral_sxy = bilateral_sxy
        self.bilateral_srgb = bilateral_srgb
        self.bilateral_compat = bilateral_compat
        self._device = "cpu"
        self.check_choice("backend", "pydensecrf", "torch")
        self.check_count("iterations")
        self.check_positive("gaussian_sxy", "bilateral_sxy", "bilateral_srgb")
        self.check_not_negative("gaussian_compat", "bilateral_compat")

    def posteriors(self, image: np.ndarray, probabilities: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Posteriors ``(L, H, W)`` for several unaries of one image, given as probabilities of that shape."""
        settings = self.settings()
        settings.pop("backend")
        iterations = int(settings.pop("iterations"))
        if self.backend == "pydensecrf":
            return dense_crf_each(image, probabilities, iterations=iterations, **settings)
        pixels = as_batch(image, self._device)
        unaries = torch.from_numpy(np.stack(probabilities)[:, None]).to(self._device)
        found = mean_field(pairwise_kernels(pixels, **settings), unaries, iterations=iterations)
        return list(found[:, 0].cpu().numpy())

    @property
    def holds_the_interpreter(self) -> bool:
        """As pydensecrf does."""
        return self.backend == "pydensecrf"

    def to(self, device: str) -> bool:
        """As every step; only the torch backend can."""
        self._device = device
        return self.backend == "torch"


class CrfLabelling(Step):
    """What labels from a CRF have in common: its unaries, from scores against a background.

    Args:
        background: a number, or an option of conf/threshold/; 0.3 by default.
        unary: "soft", from the scores, or "hard", from the thresholded labels.
        gt_prob: with "hard", how far such a label is trusted, in (0, 1).
        crf: an option of conf/crf/; the preset DEEPLAB by default.
    """

    gives = "labels"

    def __init__(self, *, background: Background | float | None, unary: str, gt_prob: float, crf: Crf | None) -> None:
        self.background = as_background(background)
        self.unary = unary
        self.gt_prob = gt_prob
        self.crf = crf or Crf()
        if not isinstance(self.crf, Crf):
            raise self.wrong("crf", "an option of conf/crf/ (crf=deeplab crf.backend=torch)")
        self.check_choice("unary", "soft", "hard")
        self.check("gt_prob", lambda value: 0 < value < 1, "a number between 0 and 1")

    def probabilities(self, class_ids: np.ndarray, compared: np.ndarray, background: float | np.ndarray) -> np.ndarray:
        """What goes into the CRF: ``(K + 1, H, W)`` float32, background first.

        Args:
            class_ids: ``(K,)``.
            compared: ``(K, H, W)`` scores in [0, 1].
            background: its score, one number or ``(H, W)``.
        """
        if self.unary == "soft":
            return soft_probabilities(compared, background=background)
        labels = threshold(compared, class_ids, background=background)
        return hard_probabilities(labels, class_ids, gt_prob=self.gt_prob)


class DenseCrf(CrfLabelling):
    """Labels from a fully connected CRF over background and the classes present.

    Args:
        background: and the rest: see :class:`CrfLabelling`.
    """

    def __init__(
        self,
        *,
        background: Background | float | None = None,
        unary: str = "soft",
        gt_prob: float = 0.7,
        crf: Crf | None = None,
    ) -> None:
        super().__init__(background=background, unary=unary, gt_prob=gt_prob, crf=crf)

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        """The label of the largest posterior (the first of equals, background before the classes)."""
        (posterior,) = self.crf.posteriors(image, [self.probabilities(class_ids, *self.background(scores))])
        return winners(posterior, class_ids)


class GraphCut(Step):
    """Labels by a minimum cut of each class against the rest (for shallow maps in LayerCAM, TIP 2021).

    Args:
        background: a number, or an option of conf/threshold/; 0.3 by default.
        smoothness: weight of a border's length.
        colour: weight of the colours of the thresholded regions.
        largest_region: of each class keep the largest connected region alone, for boxes around single objects.
    """

    gives = "labels"

    def __init__(
        self,
        *,
        background: Background | float | None = None,
        smoothness: float = 0.04,
        colour: float = 1.0,
        largest_region: bool = False,
    ) -> None:
        self.background = as_background(background)
        self.smoothness = smoothness
        self.colour = colour
        self.largest_region = largest_region
        self.check_not_negative("smoothness", "colour")

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        """Labels by :func:`wsss.refine.graphcut.cut_labels`."""
        compared, background = self.background(scores)
        return cut_labels(
            image,
            class_ids,
            compared,
            background=background,
            smoothness=self.smoothness,
            colour=self.colour,
            largest=self.largest_region,
        )


class ConfidentCrf(CrfLabelling):
    """Labels where two backgrounds agree, 255 elsewhere (IRN, CVPR 2019).

    The scores go through the CRF twice. What is foreground against the higher background keeps its class; what is
    background even against the lower one is background; the rest is ignored. IRN's program has 0.05 and 0.30 (0.175
    with a margin of 0.125), LPCAM's 0.25 and 0.45 (0.35 with 0.1).

    Args:
        background: between the two: a number, or an option of conf/threshold/; 0.3 by default.
        margin: how far both lie from it, in [0, 0.5].
        unary: "hard" as in IRN's program by default; this and the rest: see :class:`CrfLabelling`.
    """

    def __init__(
        self,
        *,
        background: Background | float | None = None,
        margin: float = 0.1,
        unary: str = "hard",
        gt_prob: float = 0.7,
        crf: Crf | None = None,
    ) -> None:
        super().__init__(background=background, unary=unary, gt_prob=gt_prob, crf=crf)
        self.margin = margin
        self.check("margin", lambda value: 0 <= value <= 0.5, "a number from 0 to 0.5")

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        """Labels by :func:`confident`."""
        compared, background = self.background(scores)
        unaries = [
            self.probabilities(class_ids, compared, np.clip(background + shift, 0, 1))
            for shift in (self.margin, -self.margin)
        ]
        strict, lenient = (winners(found, class_ids) for found in self.crf.posteriors(image, unaries))
        return confident(strict, lenient)


def confident(strict: np.ndarray, lenient: np.ndarray) -> np.ndarray:
    """Labels of two backgrounds as one.

    Args:
        strict: ``(H, W)`` labels against a high background score: its foreground is trusted.
        lenient: ``(H, W)`` labels against a low one: its background is trusted.

    Returns:
        ``(H, W)`` uint8: the class of ``strict``, 0 where both are 0, 255 elsewhere.
    """
    doubtful = (strict == BACKGROUND) & (lenient != BACKGROUND)
    return np.where(doubtful, np.uint8(IGNORE), strict).astype(np.uint8)


def winners(posterior: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """The label of the largest value of ``(K + 1, H, W)``, background first; the first of equals. ``(H, W)`` uint8."""
    values = np.concatenate([[BACKGROUND], class_ids]).astype(np.uint8)
    return values[posterior.argmax(axis=0)]


def as_batch(image: np.ndarray, device: str) -> Tensor:
    """``(H, W, 3)`` uint8 as a torch batch ``(1, 3, H, W)``."""
    return torch.tensor(image, device=device).permute(2, 0, 1)[None]
