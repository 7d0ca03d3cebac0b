"""Fully connected CRF (Kraehenbuehl and Koltun, NIPS 2011) in torch: batches, and any device.

The same model and the same approximation as :func:`wsss.refine.crf.dense_crf` (pydensecrf): the two Gaussian filters of
each mean-field iteration run on a permutohedral lattice (Adams, Baek and Davis, Eurographics 2010). Here the lattice of
an image is a handful of index tensors, made once by sorting and used for as many unaries as one likes, and each of its
three steps (splat, blur, slice) is a sum over rows of a table, ``embedding_bag``. That sum has a fixed order and no
atomic additions, so that a result does not depend on the run, and work on one image does not hold the interpreter lock.

    kernels = pairwise_kernels(images, **DEEPLAB)
    posterior = mean_field(kernels, probabilities)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Unpack

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from wsss.refine.crf import SMALLEST_PROBABILITY, CrfParameters

_LARGEST_INDEX = 2**31 - 1


@dataclass(frozen=True)
class Lattice:
    """Where ``P`` points in ``d`` dimensions lie in a permutohedral lattice of ``M`` occupied vertices.

    Each point lies in a simplex of d + 1 vertices and is the mean of them with its barycentric weights. Row ``M`` of
    the table of vertex values stands for all vertices that no point touches, and stays 0. Indices are int32, weights
    float32.

    Attributes:
        splat_points: ``((d + 1) P,)`` the points around vertex 0, those around vertex 1, and so on.
        splat_starts: ``(M + 1,)`` where those of each vertex start.
        splat_weights: ``((d + 1) P,)``.
        neighbours: ``(d + 1, M + 1, 2)`` the two neighbours of each vertex along each axis.
        slice_vertices: ``(P, d + 1)``.
        slice_weights: ``(P, d + 1)``.
    """

    splat_points: Tensor
    splat_starts: Tensor
    splat_weights: Tensor
    neighbours: Tensor
    slice_vertices: Tensor
    slice_weights: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Filter ``(P, C)`` float32 to the same shape, each column alone."""
        table = embedding_bag(
            self.splat_points, values, self.splat_starts, mode="sum", per_sample_weights=self.splat_weights
        )
        for neighbours in self.neighbours:
            table = table.add(embedding_bag(neighbours, table, mode="sum"), alpha=0.5)
        return embedding_bag(self.slice_vertices, table, mode="sum", per_sample_weights=self.slice_weights)


@dataclass(frozen=True)
class PairwiseKernels:
    """The pairwise terms of a batch of images, from :func:`pairwise_kernels`.

    Attributes:
        shape: ``(N, H, W)``.
        gaussian: on the ``H W`` positions, shared by all images; weighted and normalised.
        bilateral: on the ``N H W`` pixels, images apart; weighted and normalised.
    """

    shape: tuple[int, int, int]
    gaussian: Lattice
    bilateral: Lattice

    def __call__(self, beliefs: Tensor) -> Tensor:
        """What the pixels tell each other, ``(N H W, C)`` to the same shape: the sum of both filters."""
        count, height, width = self.shape
        columns = beliefs.shape[1]
        by_position = beliefs.reshape(count, height * width, columns).transpose(0, 1)
        smooth = self.gaussian(by_position.reshape(height * width, -1)).view_as(by_position)
        return self.bilateral(beliefs).add_(smooth.transpose(0, 1).reshape(-1, columns))


def pairwise_kernels(
    images: Tensor,
    *,
    gaussian_sxy: float,
    gaussian_compat: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_compat: float,
) -> PairwiseKernels:
    """The lattices of a batch of images; the part of the work that does not depend on labels and iterations.

    They take 98 to 130 bytes a pixel (96, and 48 for each vertex of the bilateral lattice), once per batch 52 to 80 for
    each position (the Gaussian's), and about 500 bytes a pixel while they are made: more images than fit are several
    batches. The Gaussian's lattices of the last four sizes and widths are kept for the next call.

    Args:
        images: ``(N, 3, H, W)`` uint8 RGB, on the device that shall do the work.
        gaussian_sxy: and the rest: see :func:`wsss.refine.crf.dense_crf`.

    Raises:
        ValueError: the images are not ``(N, 3, H, W)`` uint8, a width is not positive, or the widths are so small that
            the lattice cannot be numbered in 64 bits (a ``bilateral_srgb`` of 0.001, say).
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"expected uint8 images (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    for name, width in (
        ("gaussian_sxy", gaussian_sxy),
        ("bilateral_sxy", bilateral_sxy),
        ("bilateral_srgb", bilateral_srgb),
    ):
        if not (width > 0 and math.isfinite(width)):
            raise ValueError(f"expected a positive {name}, got {width}")
    count, _, rows, columns = images.shape
    spatial = _positions(rows, columns, images.device, width=bilateral_sxy)[:, None].expand(-1, count, -1)
    colours = _divided(images.reshape(count, 3, -1).transpose(0, 1), bilateral_srgb)
    bilateral = _lattice(torch.cat([spatial, colours]).reshape(5, -1), items=count)
    return PairwiseKernels(
        shape=(count, rows, columns),
        gaussian=_gaussian(rows, columns, images.device, width=gaussian_sxy, weight=gaussian_compat),
        bilateral=_normalised(bilateral, weight=bilateral_compat),
    )


@torch.no_grad()
def mean_field(
    kernels: PairwiseKernels, probabilities: Tensor, *, iterations: int = 10, valid: Tensor | None = None
) -> Tensor:
    """Mean-field posterior with a Gaussian and a bilateral Potts term (Kraehenbuehl and Koltun, Algorithm 1).

    It takes about 20 bytes a pixel and label, besides the kernels. Several unaries of the same images cost less in one
    call than in several: looking a row up is most of the work, whatever its length.

    Args:
        kernels: of the images.
        probabilities: ``(N, L, H, W)`` in [0, 1], or with further dimensions in front, ``(U, N, L, H, W)``: ``U``
            unaries of the same images. The unary energy is their negative logarithm.
        iterations: of mean field, 0 or more.
        valid: ``(N, L)`` bool, the labels an image has, at least one; all by default. The others get probability 0, and
            the result of those it has is what it is without the others.

    Returns:
        The shape of ``probabilities``, float32, summing to 1 over the labels.

    Raises:
        ValueError: shapes, types or devices do not fit together, or the iterations are negative.
    """
    _check_unaries(kernels, probabilities, valid)
    if iterations < 0:
        raise ValueError(f"expected iterations of 0 or more, got {iterations}")
    count, height, width = kernels.shape
    *front, _, labels, _, _ = probabilities.shape
    stacked = probabilities.reshape(-1, count, labels, height * width).to(torch.float32)
    log_unary = stacked.clamp(SMALLEST_PROBABILITY, 1).log()
    if valid is not None:
        log_unary = log_unary.masked_fill(~valid[None, :, :, None], -torch.inf)
    log_unary = log_unary.permute(1, 3, 0, 2).reshape(count * height * width, -1, labels)
    beliefs = _softmax(log_unary.clone())
    for _ in range(iterations):
        message = kernels(beliefs.flatten(1)).view_as(log_unary)
        beliefs = _softmax(message.add_(log_unary))
    posterior = beliefs.reshape(count, height * width, -1, labels).permute(2, 0, 3, 1)
    return posterior.reshape(*front, count, labels, height, width)


def dense_crf_batch(
    images: Tensor,
    probabilities: Tensor,
    *,
    iterations: int = 10,
    valid: Tensor | None = None,
    **parameters: Unpack[CrfParameters],
) -> Tensor:
    """:func:`pairwise_kernels` and :func:`mean_field` in one call: :func:`wsss.refine.crf.dense_crf` of each image.

    The posteriors differ from pydensecrf's by rounding, and, where the number of pixels is no multiple of 4, by a trace
    of the black pixels at the origin that pydensecrf fills its last block with.

    Args:
        images: ``(N, 3, H, W)`` uint8 RGB.
        probabilities: ``(N, L, H, W)`` in [0, 1] on the same device.
        iterations: of mean field.
        valid: ``(N, L)`` bool, the labels an image has; all by default.
        parameters: see :func:`wsss.refine.crf.dense_crf`.

    Returns:
        ``(N, L, H, W)`` float32 that sums to 1 over the labels.

    Raises:
        ValueError: as the two functions do.
    """
    kernels = pairwise_kernels(images, **parameters)
    return mean_field(kernels, probabilities, iterations=iterations, valid=valid)


def _check_unaries(kernels: PairwiseKernels, probabilities: Tensor, valid: Tensor | None) -> None:
    count, height, width = kernels.shape
    shape = tuple(probabilities.shape)
    if probabilities.ndim < 4 or (shape[-4], *shape[-2:]) != kernels.shape or not probabilities.is_floating_point():
        raise ValueError(
            f"expected probabilities ({count}, L, {height}, {width}) of a floating type, "
            f"got {shape} of {probabilities.dtype}"
        )
    if not probabilities.numel():
        raise ValueError(f"expected at least one label, got probabilities {shape}")
    if probabilities.device != kernels.bilateral.slice_weights.device:
        raise ValueError(f"images on {kernels.bilateral.slice_weights.device}, probabilities on {probabilities.device}")
    if valid is None:
        return
    if valid.dtype != torch.bool or tuple(valid.shape) != (count, shape[-3]):
        raise ValueError(f"expected valid ({count}, {shape[-3]}) of bool, got {tuple(valid.shape)} of {valid.dtype}")
    if not valid.any(dim=1).all():
        raise ValueError("expected at least one valid label in each image")


def _softmax(values: Tensor) -> Tensor:
    """Over the last dimension, in place: on CPU five times faster than torch's own where that has a few elements."""
    exponentials = values.sub_(values.amax(dim=-1, keepdim=True)).exp_()
    return exponentials.div_(exponentials.sum(dim=-1, keepdim=True))


@lru_cache(maxsize=4)
def _gaussian(rows: int, columns: int, device: torch.device, *, width: float, weight: float) -> Lattice:
    # Kept for the few sizes that most images of a data set have: it takes up to half as long as the bilateral one.
    return _normalised(_lattice(_positions(rows, columns, device, width=width), items=1), weight=weight)


def _positions(rows: int, columns: int, device: torch.device, *, width: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return _divided(torch.stack([x, y]).reshape(2, -1), width)


def _divided(values: Tensor, width: float) -> Tensor:
    # By a tensor on the same device: by a number, CUDA would multiply with its reciprocal and round differently.
    return values.to(torch.float32) / torch.tensor(width, dtype=torch.float32, device=values.device)


def _normalised(lattice: Lattice, *, weight: float) -> Lattice:
    """Its filter K as ``weight D K D`` with ``D = diag(K 1)^(-1/2)``: pydensecrf's symmetric normalisation."""
    points = len(lattice.slice_vertices)
    root = lattice(lattice.slice_weights.new_ones(points, 1)).squeeze(1).add_(1e-20).rsqrt_()
    return replace(
        lattice,
        splat_weights=lattice.splat_weights * root.index_select(0, lattice.splat_points),
        slice_weights=lattice.slice_weights * (weight * root)[:, None],
    )


def _lattice(features: Tensor, *, items: int) -> Lattice:
    """The lattice of points with features ``(d, P)`` in units of their standard deviation.

    The points come in ``items`` groups of equal length that do not see each other. Float operations follow pydensecrf's
    order, so that each point falls into the same simplex, to the last bit of its weights.
    """
    dims, points = features.shape
    corner, rank, weights = _simplex(features)
    keys, box = _keys(corner, rank, items=items)
    ordered, order = keys.reshape(-1).sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    vertex = first.cumsum(0, dtype=torch.int32) - 1
    vertices = torch.empty_like(vertex).scatter_(0, order, vertex)
    starts = first.nonzero().squeeze(1)
    alpha = 1 / (1 + 2**-dims)  # scales the blur, which is not a mean
    return Lattice(
        splat_points=(order % points).to(torch.int32),
        splat_starts=torch.cat([starts, starts.new_full((1,), order.numel())]).to(torch.int32),
        splat_weights=weights.reshape(-1).index_select(0, order),
        neighbours=_neighbours(ordered.index_select(0, starts), box),
        slice_vertices=vertices.view(dims + 1, points).T.contiguous(),
        slice_weights=weights.T.contiguous() * alpha,
    )


def _simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each point (Adams et al., Section 3.1).

    Returns:
        ``(d, P)`` its vertex of remainder 0, in units of d + 1 and without the last coordinate, which follows from the
        others; ``(d + 1, P)`` int64 position of each coordinate in falling order of the distances to that vertex; and
        ``(d + 1, P)`` barycentric weights, by remainder.
    """
    dims, points = features.shape
    deviation = torch.tensor(math.sqrt(2 / 3) * (dims + 1), dtype=torch.float32).item()  # of the three steps together
    share = torch.tensor(1 / (dims + 1), dtype=torch.float32, device=features.device)
    elevated = features.new_empty(dims + 1, points)
    total = features.new_zeros(points)
    for j in range(dims, 0, -1):
        scaled = features[j - 1] * torch.tensor(deviation / math.sqrt(j * (j + 1)), dtype=torch.float32).item()
        elevated[j] = total - j * scaled
        total = total + scaled
    elevated[0] = total

    corner = (elevated * share).round()
    excess = corner.sum(dim=0).to(torch.int8)
    distance = elevated - corner * (dims + 1)
    rank = torch.zeros_like(distance, dtype=torch.int8)
    for i in range(dims):
        for j in range(i + 1, dims + 1):
            smaller = distance[i] < distance[j]
            rank[i] += smaller
            rank[j] += ~smaller
    rank += excess
    # The rounded point is off the plane of coordinate sum 0 by its excess: the nearest coordinates bring it back.
    back = (rank < 0).to(torch.int8) - (rank > dims).to(torch.int8)
    rank += back * (dims + 1)
    corner += back
    distance = (elevated - corner * (dims + 1)) * share
    places = rank.to(torch.int64)
    falling = torch.empty_like(distance).scatter_(0, dims - places, distance)
    weights = falling.clone()
    weights[1:] -= falling[:-1]
    weights[0] += 1 - falling[-1]
    return corner[:dims], places, weights


class _Box(NamedTuple):
    """How the digits of a vertex make its key."""

    cells: int
    strides: list[int]


def _keys(corner: Tensor, rank: Tensor, *, items: int) -> tuple[Tensor, _Box]:
    """An integer for each vertex of each simplex, ``(d + 1, P)`` int64 by remainder: item, remainder, coordinates.

    All coordinates of a vertex have the same remainder by d + 1, so that ``(coordinate - remainder) / (d + 1)`` is
    whole. These quotients are the digits, in a range one wider on both sides than what occurs, for the neighbours.
    """
    dims, points = corner.shape
    quotients = corner.to(torch.int64)
    least = quotients.amin(dim=1) - 2
    sizes = (quotients.amax(dim=1) - least + 2).tolist()
    box = _Box(math.prod(sizes), [math.prod(sizes[:i]) for i in range(dims)])
    of_item = box.cells * (dims + 1)
    if of_item * items > torch.iinfo(torch.int64).max or points * (dims + 1) > _LARGEST_INDEX:
        raise ValueError(
            f"a lattice of {' x '.join(map(str, sizes))} cells for {items} images of together {points} pixels cannot "
            f"be numbered. Use wider kernels or smaller batches"
        )
    strides = torch.tensor(box.strides, device=corner.device)[:, None]
    keys = torch.empty_like(rank)
    keys[0] = ((quotients - least[:, None]) * strides).sum(dim=0)
    keys[0].view(items, -1).add_(torch.arange(items, device=corner.device)[:, None] * of_item)
    # From remainder r - 1 to r all coordinates grow by 1, but that of rank d + 1 - r falls by d: one quotient less.
    falls = torch.empty_like(rank).scatter_(0, rank, torch.cat([strides, strides.new_zeros(1, 1)]).expand_as(rank))
    for remainder in range(1, dims + 1):
        keys[remainder] = keys[remainder - 1] - falls[dims + 1 - remainder] + box.cells
    return keys, box


def _neighbours(keys: Tensor, box: _Box) -> Tensor:
    """Indices ``(d + 1, M + 1, 2)`` of the neighbours among the sorted ``keys`` ``(M,)``; M where there is none.

    Along axis j all coordinates fall by 1 but the j-th, which grows by d; the other neighbour is the same step back.
    The remainder falls by 1, and 0 wraps around to d, where all quotients but the j-th are one less.
    """
    dims, count = len(box.strides), len(keys)
    wraps = keys // box.cells % (dims + 1) == 0
    step = torch.where(wraps, dims * box.cells - sum(box.strides), -box.cells)
    table = torch.full((dims + 1, count + 1, 2), count, dtype=torch.int32, device=keys.device)
    index = torch.arange(count, dtype=torch.int32, device=keys.device)
    for neighbours, stride in zip(table, (*box.strides, 0), strict=True):
        wanted = keys + (step + stride)
        found = torch.searchsorted(keys, wanted).clamp_(max=count - 1)
        found.masked_fill_(keys.index_select(0, found) != wanted, count)
        neighbours[:-1, 0] = found
        neighbours[:, 1].scatter_(0, found, index)
        neighbours[count] = count
    return table
