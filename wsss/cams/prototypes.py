"""LPCAM (Chen and Sun, CVPR 2023): class activation maps from prototypes of local features instead of class weights.

The features of a class's training images are clustered, those that its CAM marks apart from the rest. The classifier
says which cluster centres stand for the class and which for its context (rails under a train). A map is the mean
similarity to the former minus the mean similarity to the latter.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wsss.cams import functional
from wsss.cams.methods import FeatureCam
from wsss.cams.signals import ClassIds, frozen, pair_items
from wsss.errors import ConfigError, CorruptArtifact
from wsss.models.classifier import Classifier

log = logging.getLogger(__name__)

Over = Literal["classes", "centres"]
Fallback = Literal["best", "relative"]

ITERATIONS = 25
"""Rounds of k-means, faiss's default."""

POOL_LIMIT = 65_536
"""Positions in a pool, whatever the memory allows: thousands for each centre, and more only cost time."""

PATCHES = 5
"""Training positions remembered for each cluster, so that a person can see what it stands for."""

FREE = -1.0
"""Key of a pool's empty slot; keys of positions lie in [0,1)."""


# --- maps -------------------------------------------------------------------------------------------------------------


def unit(vectors: Tensor, *, dim: int = -1) -> Tensor:
    """Vectors scaled to length 1 in float32. A zero vector stays zero, so that its similarity to anything is 0."""
    return F.normalize(vectors.float(), dim=dim)


def cosine_maps(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine similarity of each position to each prototype (LPCAM, section 3.1), as one matrix product.

    Args:
        features: ``(N, D, H, W)``.
        prototypes: ``(K, D)``.

    Returns:
        ``(N, K, H, W)`` float32 in [-1,1]; 0 where either vector is zero.
    """
    return torch.einsum("ndhw,kd->nkhw", unit(features, dim=1), unit(prototypes))


def lpcam(features: Tensor, foreground: Tensor, context: Tensor | None = None) -> Tensor:
    """LPCAM map of one class (Eqs. 5-6, before the division by the maximum). Without ``context``: LPCAM-F (Table 1).

    The released program leaves out the ReLU where there is no context prototype; here it is always applied.

    Args:
        features: ``(N, D, H, W)``, the block that global average pooling sees.
        foreground: ``(Kf, D)``, at least one prototype of the class.
        context: ``(Kb, D)`` prototypes of its context; none of them: that term is 0.

    Returns:
        ``(N, H, W)`` float32, non-negative, not normalised.
    """
    maps = cosine_maps(features, foreground).mean(dim=1)
    if context is not None and len(context):
        maps = maps - cosine_maps(features, context).mean(dim=1)
    return maps.relu()


def direction(foreground: Tensor, context: Tensor | None = None) -> Tensor:
    """The one vector that stands for all prototypes of a class in ``lpcam``.

    A mean of cosines is linear in the unit feature: ``mean_k u.p_k = u.(mean_k p_k)``. So the map of ``lpcam`` is
    ``functional.cam(unit(features, dim=1), direction)``, exactly, at the cost of one prototype.

    Args:
        foreground: ``(Kf, D)``, at least one.
        context: ``(Kb, D)``, or None.

    Returns:
        ``(D,)`` float32, mean of the unit foreground prototypes minus mean of the unit context prototypes.
    """
    vector = unit(foreground).mean(dim=0)
    return vector if context is None or not len(context) else vector - unit(context).mean(dim=0)


# --- clustering and selection -----------------------------------------------------------------------------------------


def split_by_cam(cams: Tensor, *, tau: float) -> Tensor:
    """Which positions are foreground (Eqs. 1-2): CAM divided by its maximum is at least ``tau``.

    Args:
        cams: ``(N, H, W)``, non-negative. One that is zero everywhere is context everywhere.
        tau: in (0,1].

    Returns:
        ``(N, H, W)`` bool.
    """
    return functional.scale_to_peak(cams) >= tau


def class_probabilities(centres: Tensor, weights: Tensor, class_id: int, *, over: Over = "classes") -> Tensor:
    """How sure the classifier is that a cluster centre shows a class (Eqs. 3-4).

    Eq. 3 can be read as a softmax over the centres; the released program takes the classes, and so does the default.
    With a single class a softmax over classes is 1 whatever the centre; there the class competes with a logit of 0,
    which is the sigmoid that the classifier was trained with.

    Args:
        centres: ``(P, D)``, means of raw features: their length matters.
        weights: ``(C, D)`` of the classifier's linear layer.
        class_id: in 1..C.
        over: ``classes`` or ``centres``.

    Returns:
        ``(P,)`` float64 in [0,1].

    Raises:
        ValueError: another ``over``.
    """
    logits = centres.double() @ weights.double().T
    if over == "centres":
        return logits[:, class_id - 1].softmax(dim=0)
    if over == "classes":
        rivals = logits if logits.shape[1] > 1 else F.pad(logits, (0, 1))
        return rivals.softmax(dim=1)[:, class_id - 1]
    raise ValueError(f"over={over!r} is unknown; there are classes and centres")


def load_faiss() -> Any:
    """The faiss module, imported only by those who cluster.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"LPCAM clusters with faiss, which cannot be imported ({error}). Install it:\n  pip install faiss-cpu\n"
            "or choose another method, for example cam=layercam"
        ) from error
    return faiss


def cosine_kmeans(features: Tensor, *, clusters: int, seed: int) -> Tensor:
    """K-means by cosine distance (LPCAM, section 3.1): spherical k-means of the unit vectors.

    Args:
        features: ``(N, D)`` float32 on the CPU, N at least 1, no zero vector.
        clusters: K; fewer points than that make as many clusters as there are points.
        seed: of the initial centres. Equal points, order and seed give equal clusters, with any number of threads.

    Returns:
        ``(N,)`` int64, the cluster of each point in 0..K-1. A cluster may be empty where points are equal.
    """
    points = np.ascontiguousarray(unit(features).numpy())
    kmeans = load_faiss().Kmeans(
        points.shape[1],
        min(clusters, len(points)),
        niter=ITERATIONS,
        spherical=True,
        seed=seed % 2**31,
        min_points_per_centroid=1,  # it warns below this number and
        max_points_per_centroid=len(points),  # drops points above that one
    )
    kmeans.train(points)
    return torch.from_numpy(kmeans.assign(points)[1].astype(np.int64))


# --- what is learnt ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prototypes:
    """All cluster centres of all classes, ordered by class, foreground before context, large clusters first.

    The same names and tensors are kept in ``prototypes.safetensors`` of the seeds artifact.

    Attributes:
        centres: ``(P, D)`` float32, mean of the raw features of each cluster.
        class_ids: ``(P,)`` int64 in 1..C.
        context: ``(P,)`` bool, whether the cluster is one of the class's context.
        probabilities: ``(P,)`` float32, of the class (``class_probabilities``).
        sizes: ``(P,)`` int64, pooled positions in the cluster; 0 for a class whose own weights stand in.
        kept: ``(P,)`` bool, whether maps use it.
        patch_images: ``(P, 5)`` int64, training images (place in the split) of the nearest positions; -1 for none.
        patch_cells: ``(P, 5, 4)`` int64, row and column of those positions, height and width of their feature grid.
        patch_similarities: ``(P, 5)`` float32, cosine similarity to the centre, falling among distinct images.
    """

    centres: Tensor
    class_ids: Tensor
    context: Tensor
    probabilities: Tensor
    sizes: Tensor
    kept: Tensor
    patch_images: Tensor
    patch_cells: Tensor
    patch_similarities: Tensor

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Prototypes:
        """The prototypes that ``to_tensors`` made.

        Raises:
            CorruptArtifact: a tensor is missing.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise CorruptArtifact(
                f"the kept prototypes lack {', '.join(missing)}: another method or version wrote them. "
                "Run the seeds stage again with force=true"
            )
        return cls(**{name: tensors[name] for name in names})

    @classmethod
    def joined(cls, parts: Sequence[Prototypes]) -> Prototypes:
        """Several as one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]).contiguous() for field in fields(cls)))

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors, one for each attribute."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def of(self, class_id: int) -> tuple[Tensor, Tensor]:
        """The kept prototypes of a class: foreground ``(Kf, D)`` and context ``(Kb, D)``."""
        mine = (self.class_ids == class_id) & self.kept
        return self.centres[mine & ~self.context], self.centres[mine & self.context]

    def directions(self, num_classes: int) -> Tensor:
        """``direction`` of each class, ``(C, D)``.

        Raises:
            CorruptArtifact: a class has no foreground prototype.
        """
        pairs = [self.of(class_id) for class_id in range(1, num_classes + 1)]
        lacking = [class_id for class_id, (foreground, _) in enumerate(pairs, 1) if not len(foreground)]
        if lacking:
            raise CorruptArtifact(
                f"the kept prototypes have none for the classes {lacking} of {num_classes}. "
                "Run the seeds stage again with force=true"
            )
        return torch.stack([direction(foreground, context) for foreground, context in pairs])

    def summary(self) -> dict[str, Any]:
        """For each class and pool: how many prototypes are kept of how many clusters, and of each cluster whether it is
        kept, its probability and its size (0: the classifier's weights stand in). JSON types.
        """
        return {
            str(class_id): {"foreground": self._summary(class_id, False), "context": self._summary(class_id, True)}
            for class_id in self.class_ids.unique().tolist()
        }

    def _summary(self, class_id: int, context: bool) -> dict[str, Any]:
        mine = (self.class_ids == class_id) & (self.context == context)
        return {
            "kept": int(self.kept[mine].sum()),
            "clusters": int(mine.sum()),
            "chosen": self.kept[mine].tolist(),
            "probabilities": [round(value, 4) for value in self.probabilities[mine].tolist()],
            "sizes": self.sizes[mine].tolist(),
        }


class Pool:
    """A bounded uniform sample of positions from a stream of images.

    Each position has a random key. The pool keeps those with the largest keys, and once it has turned away a key it
    takes none below it again. So it holds every position above a level, whichever images are taken out on the way: a
    uniform sample of the positions of the images that stay. Without removals it holds the ``capacity`` largest keys,
    in whatever order the images came.

    Args:
        capacity: positions held at most.
        channels: D.
    """

    def __init__(self, capacity: int, channels: int) -> None:
        self._features = torch.empty(capacity, channels)  # pages that are never written take no memory
        self._places = torch.empty(capacity, 5, dtype=torch.int32)
        self._keys = torch.full((capacity,), FREE, dtype=torch.float64)
        self._level = FREE

    def __len__(self) -> int:
        return int((self._keys > FREE).sum())

    def add(self, features: Tensor, places: Tensor, keys: Tensor) -> None:
        """Offer ``(n, D)`` features with their ``(n, 5)`` places (image, row, column, grid) and ``(n,)`` keys."""
        fresh = (keys > self._level).nonzero()[:, 0]
        capacity = len(self._keys)
        keys = torch.cat([self._keys, keys[fresh]])
        best = keys.topk(capacity).indices
        lost = torch.ones(len(keys), dtype=torch.bool)
        lost[best] = False
        slots = lost[:capacity].nonzero()[:, 0]
        entering = best[best >= capacity]
        if lost.any():
            self._level = max(self._level, float(keys[lost].max()))
        self._keys[slots] = keys[entering]
        self._features[slots] = features[fresh[entering - capacity]]
        self._places[slots] = places[fresh[entering - capacity]]

    def remove(self, image: int) -> None:
        """Take out the positions of an image."""
        self._keys[self._places[:, 0] == image] = FREE

    def sample(self) -> tuple[Tensor, Tensor]:
        """Features ``(n, D)`` and places ``(n, 5)`` in the order of their keys, which no order of images changes."""
        order = self._keys.argsort(descending=True)[: len(self)]
        return self._features[order], self._places[order].long()


class Lpcam(FeatureCam):
    """LPCAM (Chen and Sun, CVPR 2023), Eqs. 1-6; LPCAM-F with ``context=False``.

    Fitting is one pass over the training images at scale 1. However many there are, the pools of all classes together
    hold at most ``memory_mib`` of features: ``memory / (2 C D 4 bytes)`` positions each. Beside them live one image's
    features and, while one pool is clustered, two copies of it.

    Args:
        clusters: K, the clusters of each pool. Paper: 12 on VOC, 20 on COCO.
        tau: share of a CAM's maximum from which a position is foreground, in (0,1]. Paper: 0.1 on VOC, 0.25 on COCO.
        mu_f: foreground prototypes have a probability above it, in [0,1). Paper: 0.9.
        mu_b: context prototypes have a probability below it, in (0,1]. Paper: 0.9 on VOC, 0.5 on COCO.
        context: whether to subtract the similarity to context prototypes.
        context_floor: context prototypes have at least this probability, in [0, mu_b): clusters that have nothing to
            do with the class cannot be confused with it. Not in the paper; the released program has 0.05 on VOC.
        images_per_class: images sampled for each class; None takes all of them. Paper: 100 on COCO.
        probability_over: ``classes`` or ``centres``, see ``class_probabilities``.
        fallback: what is kept of a class whose centres all lie below mu_f: the ``best`` one alone, or also those above
            mu_f times its probability (``relative``; ours). Two classes that always come together share the
            probability, so that none of their centres passes.
        memory_mib: of all pools together.
        seed: of the samples and of k-means.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        *,
        clusters: int = 12,
        tau: float = 0.1,
        mu_f: float = 0.9,
        mu_b: float = 0.9,
        context: bool = True,
        context_floor: float = 0.0,
        images_per_class: int | None = None,
        probability_over: Over = "classes",
        fallback: Fallback = "best",
        memory_mib: int = 2048,
        seed: int = 0,
    ) -> None:
        _require(clusters >= 1, "clusters", clusters, "at least 1")
        _require(0 < tau <= 1, "tau", tau, "above 0 and at most 1")
        _require(0 <= mu_f < 1, "mu_f", mu_f, "at least 0 and below 1")
        _require(0 < mu_b <= 1, "mu_b", mu_b, "above 0 and at most 1")
        _require(0 <= context_floor < mu_b, "context_floor", context_floor, f"at least 0 and below cam.mu_b={mu_b}")
        _require(images_per_class is None or images_per_class >= 1, "images_per_class", images_per_class, "1 or more")
        _require(probability_over in ("classes", "centres"), "probability_over", probability_over, "classes or centres")
        _require(fallback in ("best", "relative"), "fallback", fallback, "best or relative")
        _require(memory_mib >= 1, "memory_mib", memory_mib, "at least 1")
        _require(seed >= 0, "seed", seed, "at least 0")
        self.clusters, self.tau, self.mu_f, self.mu_b = clusters, tau, mu_f, mu_b
        self.context, self.context_floor = context, context_floor
        self.images_per_class, self.probability_over = images_per_class, probability_over
        self.fallback, self.memory_mib, self.seed = fallback, memory_mib, seed
        self.prototypes: Prototypes | None = None
        self._directions = torch.empty(0, 0)

    def check(self, network: Classifier) -> None:
        """Clustering needs faiss."""
        load_faiss()

    def describe(self, network: Classifier) -> dict[str, Any]:
        """See ``CamMethod.describe``; once there are prototypes, with their summary class by class."""
        described = super().describe(network) | {"positions_per_pool": self.capacity(*_weights(network).shape)}
        return described if self.prototypes is None else described | {"prototypes": self.prototypes.summary()}

    def fit(self, network: Classifier, images: Iterable[tuple[Tensor, Sequence[int]]]) -> dict[str, Tensor]:
        """Pool the features of each class, cluster them and select prototypes. See ``CamMethod.fit``.

        Args:
            network: the trained classifier.
            images: in the order of the training split; their places in it are kept with the prototypes. An image
                without classes is skipped.

        Returns:
            The tensors of ``Prototypes``.
        """
        weights = _weights(network)
        foreground, context = self._pools(network, weights, images)
        rows: list[Prototypes] = []
        stand_ins = []
        for class_id in range(1, len(weights) + 1):
            if class_id in foreground and len(foreground[class_id]):
                rows.append(self._select(foreground.pop(class_id), weights, class_id, context=False))
            else:
                stand_ins.append(class_id)
                rows.append(_stand_in(weights, class_id, self.probability_over))
                continue  # without a foreground, what is not marked is no context
            if class_id in context and len(context[class_id]):
                rows.append(self._select(context.pop(class_id), weights, class_id, context=True))
        silent = [class_id for class_id in stand_ins if class_id in foreground]
        if silent:
            log.warning("LPCAM: no position is marked by the CAM of the classes %s; their weights stand in", silent)
        if len(stand_ins) > len(silent):
            log.info("LPCAM: %d classes have no image; their weights stand in", len(stand_ins) - len(silent))
        state = Prototypes.joined(rows).to_tensors()
        self.restore(state)
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """See ``CamMethod.restore``."""
        self.prototypes = Prototypes.from_tensors(state)
        self._directions = self.prototypes.directions(int(self.prototypes.class_ids.max()))

    def maps(self, network: Classifier, features: Tensor, class_ids: ClassIds) -> Tensor:
        """See ``FeatureCam.maps``.

        Raises:
            RuntimeError: there are no prototypes yet.
        """
        if self.prototypes is None:
            raise RuntimeError("Lpcam has no prototypes yet: call fit or restore before layer_maps")
        directions = self._directions[[id - 1 for ids in class_ids for id in ids]].to(features.device)
        return functional.cam(unit(features, dim=1)[pair_items(class_ids)], directions)

    def capacity(self, num_classes: int, channels: int) -> int:
        """Positions that one pool may hold. The same with and without context, so that LPCAM-F differs in no sample."""
        fitting = self.memory_mib * 2**20 // (2 * num_classes * channels * 4)
        return max(self.clusters, min(fitting, POOL_LIMIT))

    def _pools(
        self, network: Classifier, weights: Tensor, images: Iterable[tuple[Tensor, Sequence[int]]]
    ) -> tuple[dict[int, Pool], dict[int, Pool]]:
        """The foreground and the context pool of each class that has an image."""
        foreground: dict[int, Pool] = {}
        context: dict[int, Pool] = {}
        chosen: dict[int, list[tuple[float, int]]] = {}
        capacity = self.capacity(*weights.shape)
        for index, (image, tags) in enumerate(images):
            random = np.random.default_rng((self.seed, index))  # one stream an image: its keys depend on no other
            image_key, class_ids = random.random(), []
            for class_id in tags:
                enters, leaves = self._choose(chosen.setdefault(class_id, []), image_key, index)
                class_ids += [class_id] if enters else []
                for pools in (foreground, context):
                    if leaves is not None and class_id in pools:
                        pools[class_id].remove(leaves)
            if not class_ids:
                continue
            with frozen(network), torch.no_grad():
                block = network.features(image[None])[0].float().cpu()
            cams = functional.cam(
                block.expand(len(class_ids), -1, -1, -1), weights[[class_id - 1 for class_id in class_ids]]
            )
            points, places = block.flatten(1).T, _places(index, block.shape[-2:])
            keys = torch.from_numpy(random.random(len(points)))
            usable = points.norm(dim=1) > 0  # a zero vector has no direction to cluster by
            for class_id, is_foreground in zip(class_ids, split_by_cam(cams, tau=self.tau).flatten(1), strict=True):
                for pools, mask in ((foreground, is_foreground), (context, ~is_foreground)):
                    if pools is foreground or self.context:
                        pool = pools.setdefault(class_id, Pool(capacity, len(block)))
                        mine = mask & usable
                        pool.add(points[mine], places[mine], keys[mine])
        return foreground, context

    def _choose(self, chosen: list[tuple[float, int]], key: float, index: int) -> tuple[bool, int | None]:
        """Whether an image becomes one of its class's sample, and which one it drives out (reservoir sampling)."""
        if self.images_per_class is None:
            return True, None
        if len(chosen) < self.images_per_class:
            heapq.heappush(chosen, (key, index))
            return True, None
        driven_out = heapq.heappushpop(chosen, (key, index))[1]
        return driven_out != index, None if driven_out == index else driven_out

    def _select(self, pool: Pool, weights: Tensor, class_id: int, *, context: bool) -> Prototypes:
        """The clusters of one pool, those that maps shall use marked (LPCAM, "Selecting Prototypes")."""
        points, places = pool.sample()
        clusters = cosine_kmeans(points, clusters=self.clusters, seed=self.seed)
        sizes = clusters.bincount()
        order = [k for k in sizes.argsort(descending=True, stable=True).tolist() if sizes[k]]
        members = [(clusters == k).nonzero()[:, 0] for k in order]
        centres = torch.stack([points[mine].mean(dim=0) for mine in members])
        probabilities = class_probabilities(centres, weights, class_id, over=self.probability_over)
        if context:
            kept = (probabilities >= self.context_floor) & (probabilities < self.mu_b)
            rule = f"in [{self.context_floor:g}, {self.mu_b:g}) (context_floor, mu_b)"
            below = torch.where(probabilities < self.mu_b, probabilities, -1)  # those that only the floor excludes
            best = below.argmax() if (below >= 0).any() else probabilities.argmin()
        else:
            kept = probabilities > self.mu_f
            rule = f"above {self.mu_f:g} (mu_f)"
            best = probabilities.argmax()
        if not kept.any():
            kept[best] = True
            if self.fallback == "relative" and not context:
                kept |= probabilities > self.mu_f * probabilities[best]
            log.warning(
                "LPCAM, class %d: no %s cluster has a probability %s; kept are %d, the best with %.3f",
                class_id, "context" if context else "foreground", rule, int(kept.sum()), probabilities[best],
            )  # fmt: skip
        patches = [_nearest(points[mine], places[mine], centre) for mine, centre in zip(members, centres, strict=True)]
        return Prototypes(
            centres=centres,
            class_ids=torch.full((len(order),), class_id),
            context=torch.full((len(order),), context),
            probabilities=probabilities.float(),
            sizes=sizes[order],
            kept=kept,
            patch_images=torch.stack([images for images, _, _ in patches]),
            patch_cells=torch.stack([cells for _, cells, _ in patches]),
            patch_similarities=torch.stack([similarities for _, _, similarities in patches]),
        )


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"cam.{name}={value} must be {expected}")


def _weights(network: Classifier) -> Tensor:
    """The classifier's linear layer as ``(C, D)`` float32 on the CPU."""
    return network.head.weight.detach().flatten(1).float().cpu()


def _places(image: int, grid: Sequence[int]) -> Tensor:
    """Image, row, column, grid height and grid width of each position, ``(h * w, 5)`` int32, row by row."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    places = [torch.full_like(rows, image), rows, columns, *(torch.full_like(rows, side) for side in grid)]
    return torch.stack(places, dim=-1).flatten(0, 1).int()


def _nearest(points: Tensor, places: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The positions of a cluster nearest to its centre: one an image, and further ones only to fill up.

    Returns:
        Images ``(5,)`` with -1 for none, cells ``(5, 4)`` and similarities ``(5,)``.
    """
    similarities = unit(points) @ unit(centre)
    ranked = similarities.argsort(descending=True, stable=True)
    seen: set[int] = set()
    first: list[int] = []
    again: list[int] = []
    for position, image in zip(ranked.tolist(), places[ranked, 0].tolist(), strict=True):
        (again if image in seen else first).append(position)
        seen.add(image)
        if len(first) == PATCHES:
            break
    nearest = (first + again)[:PATCHES]
    images = torch.full((PATCHES,), -1)
    cells, values = torch.zeros(PATCHES, 4, dtype=torch.int64), torch.zeros(PATCHES)
    images[: len(nearest)] = places[nearest, 0]
    cells[: len(nearest)] = places[nearest, 1:]
    values[: len(nearest)] = similarities[nearest]
    return images, cells, values


def _stand_in(weights: Tensor, class_id: int, over: Over) -> Prototypes:
    """The classifier's weights of a class as its one prototype: the map is then CAM on unit features."""
    centre = weights[class_id - 1][None].clone()
    return Prototypes(
        centres=centre,
        class_ids=torch.tensor([class_id]),
        context=torch.tensor([False]),
        probabilities=class_probabilities(centre, weights, class_id, over=over).float(),
        sizes=torch.tensor([0]),
        kept=torch.tensor([True]),
        patch_images=torch.full((1, PATCHES), -1),
        patch_cells=torch.zeros(1, PATCHES, 4, dtype=torch.int64),
        patch_similarities=torch.zeros(1, PATCHES),
    )
