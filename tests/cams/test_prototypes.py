from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsss.cams import functional, prototypes
from wsss.cams.prototypes import (
    Lpcam,
    Pool,
    Prototypes,
    class_probabilities,
    cosine_kmeans,
    cosine_maps,
    direction,
    lpcam,
    split_by_cam,
)
from wsss.errors import ConfigError, CorruptArtifact
from wsss.models import Classifier

Images = list[tuple[Tensor, Sequence[int]]]


def network_of(weights: Tensor, encoder: nn.Module | None = None) -> Classifier:
    """A classifier with these ``(C, D)`` weights; without an encoder its features are the image itself."""
    classes, channels = weights.shape
    network = Classifier(
        encoder or nn.Identity(), features=channels, num_classes=classes, stages={}, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    network.head.weight.data = weights.view(classes, channels, 1, 1).clone()
    return network


def picture(*pixels: Sequence[float], height: int = 1) -> Tensor:
    """An image of these pixels, ``(3, height, n / height)``."""
    return torch.tensor(pixels, dtype=torch.float32).T.reshape(3, height, -1)


RED, DIM_RED, GREEN, BLUE, BLACK = (1.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)
SHARP = torch.tensor([[9.0, -9.0, -9.0], [-9.0, 9.0, -9.0]])
"""Class 1 is red, class 2 green; blue is neither, and the classifier is sure."""


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_cosine_maps_by_hand() -> None:
    features = torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]]).T.view(1, 2, 1, 3)
    maps = cosine_maps(features, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(maps, torch.tensor([[[[0.6, -1, 0]], [[0, 0, 0]]]]))


def test_half_precision_features_are_computed_in_single() -> None:
    features = torch.rand(1, 8, 2, 2, generator=torch.Generator().manual_seed(0)).half()
    maps = lpcam(features * 1000, torch.ones(1, 8))  # the squares do not fit into half precision
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, lpcam(features.float(), torch.ones(1, 8)), atol=1e-3, rtol=0)


def test_lpcam_by_hand() -> None:
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).T.view(1, 2, 1, 2)
    red, green = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(lpcam(features, red), torch.tensor([[[0.6, 0.0]]]))
    torch.testing.assert_close(lpcam(features, torch.cat([red, green])), torch.tensor([[[0.7, 0.5]]]))
    torch.testing.assert_close(lpcam(features, green, red), torch.tensor([[[0.2, 1.0]]]))
    torch.testing.assert_close(lpcam(features, red, green), torch.tensor([[[0.0, 0.0]]]))
    assert torch.equal(lpcam(features, red, red[:0]), lpcam(features, red))


def test_lpcam_f_with_one_prototype_is_the_cosine_map() -> None:
    features, prototype = torch.randn(2, 5, 3, 4), torch.randn(1, 5)
    torch.testing.assert_close(lpcam(features, prototype), cosine_maps(features, prototype)[:, 0].relu())


def test_one_vector_stands_for_all_prototypes() -> None:
    features, foreground, context = torch.randn(2, 5, 3, 4), torch.randn(7, 5), torch.randn(4, 5)
    for of_context in (context, context[:0], None):
        vector = direction(foreground, of_context).expand(2, -1)
        expected = functional.cam(prototypes.unit(features, dim=1), vector)
        torch.testing.assert_close(lpcam(features, foreground, of_context), expected)


def test_split_by_cam_by_hand() -> None:
    cams = torch.tensor([[[4.0, 2.0, 1.9, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    assert split_by_cam(cams, tau=0.5).tolist() == [[[True, True, False, False]], [[False] * 4]]


def test_probabilities_by_hand() -> None:
    """Logits of two centres for two classes: (0, ln 3) and (ln 4, 0)."""
    weights = torch.eye(2)
    centres = torch.tensor([[0.0, np.log(3)], [np.log(4), 0.0]])
    over_classes = class_probabilities(centres, weights, 1)
    over_centres = class_probabilities(centres, weights, 1, over="centres")
    torch.testing.assert_close(over_classes, torch.tensor([1 / 4, 4 / 5], dtype=torch.float64))
    torch.testing.assert_close(over_centres, torch.tensor([1 / 5, 4 / 5], dtype=torch.float64))
    with pytest.raises(ValueError, match="'positions' is unknown"):
        class_probabilities(centres, weights, 1, over="positions")  # type: ignore[arg-type]


def test_a_single_class_has_the_sigmoid() -> None:
    """A softmax over one class would be 1 for any centre, and no context would be left."""
    probabilities = class_probabilities(torch.tensor([[0.0], [np.log(3)]]), torch.ones(1, 1), 1)
    torch.testing.assert_close(probabilities, torch.tensor([1 / 2, 3 / 4], dtype=torch.float64))


def test_the_length_of_a_centre_decides() -> None:
    centres = torch.tensor([[0.1, 0.0], [10.0, 0.0]])
    weak, strong = class_probabilities(centres, torch.eye(2), 1).tolist()
    assert weak < 0.6 < 0.9 < strong


# --- clustering -------------------------------------------------------------------------------------------------------


def partition(clusters: Tensor) -> set[frozenset[int]]:
    return {frozenset((clusters == k).nonzero()[:, 0].tolist()) for k in clusters.unique()}


def test_clusters_are_by_direction() -> None:
    lengths = torch.tensor([1.0, 100.0, 2.0, 50.0, 1.0, 3.0])
    directions = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.05], [0.0, 1.0], [0.1, 1.0], [0.05, 1.0]])
    clusters = cosine_kmeans(directions * lengths[:, None], clusters=2, seed=0)
    assert partition(clusters) == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}


@pytest.mark.parametrize("clusters", [1, 2, 3, 12, 40])
def test_fewer_distinct_points_than_clusters(clusters: int) -> None:
    points = torch.eye(3)[torch.tensor([0, 1, 0, 2, 1, 0])]
    found = cosine_kmeans(points, clusters=clusters, seed=0)
    assert len(found.unique()) == min(clusters, 3)
    assert len(cosine_kmeans(points[:1], clusters=clusters, seed=0)) == 1


def test_clusters_do_not_depend_on_the_number_of_threads() -> None:
    import faiss

    points = torch.rand(4000, 64, generator=torch.Generator().manual_seed(0)) ** 4
    threads = faiss.omp_get_max_threads()
    try:
        found = []
        for faiss_threads in (1, 2, 3):
            faiss.omp_set_num_threads(faiss_threads)
            found.append(cosine_kmeans(points, clusters=8, seed=5))
    finally:
        faiss.omp_set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)
    assert not torch.equal(found[0], cosine_kmeans(points, clusters=8, seed=6))


def test_missing_faiss_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="pip install faiss-cpu"):
        Lpcam().check(network_of(SHARP))


# --- pools ------------------------------------------------------------------------------------------------------------


def chunks(count: int = 20, size: int = 7) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Features, places and keys of ``count`` images; the feature of a position is its key."""
    random = torch.Generator().manual_seed(1)
    found = []
    for image in range(count):
        keys = torch.rand(size, generator=random, dtype=torch.float64)
        places = torch.zeros(size, 5, dtype=torch.int32)
        places[:, 0] = image
        found.append((keys[:, None].float(), places, keys))
    return found


def pooled(offers: list[tuple[Tensor, Tensor, Tensor]], capacity: int) -> tuple[Tensor, Tensor]:
    pool = Pool(capacity, 1)
    for offer in offers:
        pool.add(*offer)
        assert len(pool) <= capacity
    return pool.sample()


@pytest.mark.parametrize("capacity", [1, 5, 30, 139, 140, 1000])
def test_a_pool_keeps_the_largest_keys_in_any_order_of_arrival(capacity: int) -> None:
    offers = chunks()
    features, places = pooled(offers, capacity)
    everything = torch.cat([keys for _, _, keys in offers]).sort(descending=True).values
    assert torch.equal(features[:, 0], everything[:capacity].float())
    for other in (pooled(offers[::-1], capacity), pooled(offers[7:] + offers[:7], capacity)):
        assert torch.equal(other[0], features)
        assert torch.equal(other[1], places)


def test_a_pool_without_some_images_holds_all_others_above_a_level() -> None:
    """A uniform sample: which positions stay depends on their keys alone."""
    offers, pool = chunks(), Pool(30, 1)
    for image, offer in enumerate(offers):
        pool.add(*offer)
        if image % 2:
            pool.remove(image - 1)
    features, places = pool.sample()
    left = [keys for image, (_, _, keys) in enumerate(offers) if image % 2]
    expected = torch.cat(left).sort(descending=True).values
    assert 15 < len(features) <= 30
    assert torch.equal(features[:, 0], expected[: len(features)].float())
    assert set(places[:, 0].tolist()) <= set(range(1, 20, 2))


def test_an_empty_offer_changes_nothing() -> None:
    pool = Pool(3, 1)
    pool.add(torch.empty(0, 1), torch.empty(0, 5, dtype=torch.int32), torch.empty(0, dtype=torch.float64))
    assert len(pool) == 0
    assert pool.sample()[0].shape == (0, 1)


# --- equations, literally ---------------------------------------------------------------------------------------------


Clustered = list[tuple[Tensor, Tensor]]


class Literal:
    """LPCAM as the paper writes it, in numpy loops. Positions are all kept; Eq. 3 is over classes.

    K-means has many fixed points, and which one it finds depends on how it starts. So the clusters are those that the
    program found, looked up by the values of a feature, and Lloyd's algorithm must have nothing to change in them.
    """

    def __init__(self, clustered: Clustered, weights: np.ndarray, tau: float, mu_f: float, mu_b: float) -> None:
        self.clustered, self.w, self.tau, self.mu_f, self.mu_b = clustered, weights, tau, mu_f, mu_b

    def cam(self, f: np.ndarray, n: int) -> np.ndarray:
        a = np.zeros(f.shape[1:])
        for i, j in np.ndindex(*a.shape):
            a[i, j] = max(0.0, float(self.w[n - 1] @ f[:, i, j]))
        return a / a.max() if a.max() > 0 else a

    def kmeans(self, points: list[np.ndarray], pool: int) -> list[np.ndarray]:
        theirs, clusters = self.clustered[pool]
        assert len(points) == len(theirs)
        of = {x.numpy().tobytes(): int(k) for x, k in zip(theirs, clusters, strict=True)}
        members: list[list[np.ndarray]] = [[] for _ in range(int(clusters.max()) + 1)]
        for x in points:
            members[of[x.astype(np.float32).tobytes()]].append(x)
        means = [np.mean([x / np.linalg.norm(x) for x in own], axis=0) for own in members]
        for k, own in enumerate(members):
            for x in own:
                assert k == np.argmax([x @ m / np.linalg.norm(m) for m in means])
        return [np.mean(own, axis=0) for own in members]

    def fit(self, features: list[np.ndarray], tags: list[Sequence[int]], n: int) -> tuple[list, list]:
        kept = []
        for is_context in (False, True):
            points = []
            for f, ids in zip(features, tags, strict=True):
                if n in ids:
                    cam = self.cam(f, n)
                    points += [f[:, i, j] for i, j in np.ndindex(*cam.shape) if (cam[i, j] < self.tau) == is_context]
            centres = self.kmeans(points, 2 * (n - 1) + is_context)
            z = [np.exp(c @ self.w[n - 1]) / sum(np.exp(c @ w) for w in self.w) for c in centres]
            kept.append(
                [c for c, p in zip(centres, z, strict=True) if (p < self.mu_b if is_context else p > self.mu_f)]
            )
            assert kept[-1]
        return kept[0], kept[1]

    def map(self, f: np.ndarray, foreground: list, context: list) -> np.ndarray:
        a = np.zeros(f.shape[1:])
        for i, j in np.ndindex(*a.shape):
            x = f[:, i, j]
            fg = [x @ p / np.linalg.norm(x) / np.linalg.norm(p) for p in foreground]
            bg = [x @ p / np.linalg.norm(x) / np.linalg.norm(p) for p in context]
            a[i, j] = max(0.0, sum(fg) / len(fg) - sum(bg) / len(bg))
        return a / a.max()


@pytest.fixture(scope="module")
def coloured() -> tuple[Classifier, Images]:
    """Images of noisy colours; a random network that turns them into 8 non-negative features."""
    random = torch.Generator().manual_seed(2)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    encoder[0].weight.data = torch.randn(8, 3, 1, 1, generator=random) * 4
    encoder[0].bias.data = torch.rand(8, generator=random)
    colours = torch.tensor([RED, GREEN, BLUE, (0.9, 0.8, 0.1), (0.2, 0.7, 0.8)])
    with torch.no_grad():
        responses = prototypes.unit(encoder(colours.T[None, :, None])[0, :, 0].T)
    network = network_of(3 * (responses[:3] - responses.mean(dim=0)), encoder)  # classes are red, green and blue
    tags: list[Sequence[int]] = [[1], [2], [], [3], [1, 2], [2, 3], [3, 1], [1], [2], [3]]
    images: Images = []
    for ids in tags:
        which = torch.randint(0, 5, (6, 7), generator=random)
        which[:3] = torch.tensor([[id - 1] for id in (*ids, *ids, *ids, 1, 1, 1)[:3]])
        noise = 0.1 * torch.randn(3, 6, 7, generator=random)
        images.append(((colours[which].permute(2, 0, 1) + noise).clamp(0, 1), ids))
    return network, images


def test_fit_and_maps_are_the_equations(coloured: tuple[Classifier, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = coloured
    clustered: Clustered = []

    def recorded(points: Tensor, *, clusters: int, seed: int) -> Tensor:
        clustered.append((points, cosine_kmeans(points, clusters=clusters, seed=seed)))
        return clustered[-1][1]

    monkeypatch.setattr(prototypes, "cosine_kmeans", recorded)
    settings = {"tau": 0.3, "mu_f": 0.6, "mu_b": 0.7}
    method = Lpcam(clusters=4, **settings)
    method.fit(network, iter(images))
    assert method.prototypes is not None
    with torch.no_grad():
        features = [network.features(image[None])[0].double().numpy() for image, _ in images]
    weights = network.head.weight.detach().flatten(1).double().numpy()
    literal = Literal(clustered, weights, **settings)
    for n in (1, 2, 3):
        foreground, context = literal.fit(features, [ids for _, ids in images], n)
        for ours, theirs in zip(method.prototypes.of(n), (foreground, context), strict=True):
            assert len(ours) == len(theirs)
            np.testing.assert_allclose(sorted(ours.tolist()), sorted(c.tolist() for c in theirs), atol=1e-5)
        for f, (image, _) in zip(features, images, strict=True):
            maps = method.layer_maps(network, image[None], [[n]])
            scores = method.fuse(maps, (6, 7))[0]
            np.testing.assert_allclose(scores, literal.map(f, foreground, context), atol=1e-5)
    assert not method.prototypes.kept.all()


def test_maps_of_several_images_and_classes(coloured: tuple[Classifier, Images]) -> None:
    network, images = coloured
    method = Lpcam(clusters=3)
    method.fit(network, images)
    assert method.prototypes is not None
    batch = torch.stack([image for image, _ in images[:3]])
    [maps] = method.layer_maps(network, batch, [[3, 1], [], [2]])
    assert not maps.requires_grad
    with torch.no_grad():
        features = network.features(batch)
    for one, (item, class_id) in zip(maps, [(0, 3), (0, 1), (2, 2)], strict=True):
        torch.testing.assert_close(one[None], lpcam(features[[item]], *method.prototypes.of(class_id)))
    assert method.layer_maps(network, batch, [[], [], []])[0].shape == (0, 6, 7)


def test_autocast_does_not_coarsen_the_maps(coloured: tuple[Classifier, Images]) -> None:
    network, images = coloured
    method = Lpcam(clusters=3)
    method.fit(network, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [maps] = method.layer_maps(network, images[0][0][None], [[1]])
        assert maps.dtype == torch.float32
        assert not torch.equal(maps, maps.bfloat16().float())


# --- fitting by hand --------------------------------------------------------------------------------------------------

IMAGES: Images = [
    (picture(RED, DIM_RED, BLUE, BLACK), [1]),
    (picture(RED, GREEN), []),
    (picture(GREEN, BLUE, BLUE), [2]),
    (picture(RED, BLUE, height=2), [1]),
]


def test_centres_are_means_of_raw_features() -> None:
    """Class 1 has red twice and half as strong once; black has no direction and is left out."""
    found = Prototypes.from_tensors(Lpcam(clusters=1).fit(network_of(SHARP), IMAGES))
    assert found.class_ids.tolist() == [1, 1, 2, 2]
    assert found.context.tolist() == [False, True, False, True]
    assert found.sizes.tolist() == [3, 2, 1, 2]
    torch.testing.assert_close(found.centres, torch.tensor([[2.5 / 3, 0, 0], BLUE, GREEN, BLUE]))
    torch.testing.assert_close(found.probabilities, torch.tensor([1.0, 0.5, 1.0, 0.5]))
    assert found.kept.all()


def test_patches_say_where_to_look() -> None:
    """Counted in the split, with the image that has no classes."""
    found = Prototypes.from_tensors(Lpcam(clusters=1).fit(network_of(SHARP), IMAGES))
    red, blue = found.patch_images[0], found.patch_images[1]
    assert sorted(red.tolist()) == [-1, -1, 0, 0, 3]
    assert set(red[:2].tolist()) == {0, 3}  # one an image, before a second of the same
    cells = {tuple(cell) for cell in found.patch_cells[0, :3].tolist()}
    assert cells == {(0, 0, 1, 4), (0, 1, 1, 4), (0, 0, 2, 1)}
    assert {tuple(cell) for cell in found.patch_cells[1, :2].tolist()} == {(0, 2, 1, 4), (1, 0, 2, 1)}
    assert sorted(blue.tolist()) == [-1, -1, -1, 0, 3]
    torch.testing.assert_close(found.patch_similarities[0], torch.tensor([1.0, 1, 1, 0, 0]))


def test_patches_come_from_many_images() -> None:
    images: Images = [(picture(*[RED] * 9), [1]) for _ in range(7)]
    found = Prototypes.from_tensors(Lpcam(clusters=1).fit(network_of(SHARP), images))
    assert len(set(found.patch_images[0].tolist())) == 5


def test_maps_by_hand() -> None:
    """Similarity to red minus similarity to blue."""
    method = Lpcam(clusters=1)
    network = network_of(SHARP)
    method.fit(network, IMAGES)
    image = picture(RED, DIM_RED, GREEN, BLUE, BLACK, (0.8, 0.0, 0.6))
    [maps] = method.layer_maps(network, image[None], [[1]])
    torch.testing.assert_close(maps, torch.tensor([[[1.0, 1, 0, 0, 0, 0.2]]]))
    assert method.fuse([maps * 3], (1, 6))[0, 0, 0] == 1


def test_the_selection_follows_its_limits() -> None:
    """Foreground: red and a yellowish green. Context: blue, and a green that belongs to the other class."""
    weights = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    images: Images = [(picture(RED, (0.25, 0.5, 0.0), (0.0, 0.1, 1.0), (0.0, 0.8, 0.0)), [1])]
    settings = {"clusters": 2, "tau": 0.2}
    found = Prototypes.from_tensors(Lpcam(**settings).fit(network_of(weights), images))
    torch.testing.assert_close(
        found.probabilities[:4].sort().values,
        torch.tensor([0.0392, 0.2689, 0.4013, 0.9820]),
        atol=1e-4,
        rtol=0,
    )

    def kept(**limits: float) -> list[float]:
        found = Prototypes.from_tensors(Lpcam(**settings, **limits).fit(network_of(weights), images))
        mine = found.kept & (found.class_ids == 1)
        return [round(value, 2) for value in sorted(found.probabilities[mine].tolist())]

    assert kept() == [0.04, 0.4, 0.98]
    assert kept(mu_f=0.2) == [0.04, 0.27, 0.4, 0.98]
    assert kept(mu_b=0.4) == [0.04, 0.98]
    assert kept(context_floor=0.05) == [0.4, 0.98]
    assert kept(probability_over="centres", mu_f=0.9) == [0.5, 0.5, 0.95]  # the context has logit 0 twice


# --- fallbacks --------------------------------------------------------------------------------------------------------


def test_without_a_sure_cluster_the_best_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    images: Images = [(picture(RED, (0.6, 0.5, 0.0), BLUE, (0.0, 0.0, 0.5)), [1]), (picture(GREEN), [2])]
    unsure = SHARP / 100
    with caplog.at_level(logging.WARNING, "wsss"):
        found = Prototypes.from_tensors(Lpcam(clusters=2, mu_b=0.1).fit(network_of(unsure), images))
    foreground, context = found.of(1)
    assert torch.equal(foreground, torch.tensor([RED]))
    assert len(context) == 1
    said = caplog.text
    assert "class 1: no foreground cluster has a probability above 0.9 (mu_f); kept are 1, the best with 0.545" in said
    assert "class 1: no context cluster has a probability in [0, 0.1)" in said


def test_without_a_context_cluster_above_the_floor_the_nearest_below_is_kept() -> None:
    """Not the least related one, which the floor is there to leave out."""
    images: Images = [(picture(RED, GREEN, BLUE), [1])]
    weights = torch.tensor([RED, (0.0, 2.0, 0.0), (0.0, 0.0, 1.0)]) * 4
    found = Prototypes.from_tensors(Lpcam(clusters=2, context_floor=0.3).fit(network_of(weights), images))
    context = found.probabilities[found.context & found.kept]
    assert context.tolist() == [found.probabilities[found.context].max()]
    assert found.probabilities[found.context].max() < 0.3


def test_the_relative_fallback_keeps_those_close_to_the_best(caplog: pytest.LogCaptureFixture) -> None:
    """Two classes with the same weights share the probability: 0.5 at most for red, less for the mixture."""
    weights = torch.tensor([RED, RED]) * 6
    images: Images = [(picture(RED, (0.8, 0.6, 0.0), (0.1, 0.9, 0.1)), [1, 2])]
    counts = {}
    for fallback in ("best", "relative"):
        method = Lpcam(clusters=3, tau=0.01, mu_f=0.9, fallback=fallback)
        found = Prototypes.from_tensors(method.fit(network_of(weights), images))
        counts[fallback] = len(found.of(1)[0])
        assert found.probabilities[(found.class_ids == 1) & ~found.context].max() <= 0.5
    assert counts == {"best": 1, "relative": 3}


def test_a_class_that_is_never_marked_has_its_weights(caplog: pytest.LogCaptureFixture) -> None:
    """Class 1 is silent on its images, class 2 has none."""
    network = network_of(SHARP)
    method = Lpcam(clusters=2)
    with caplog.at_level(logging.INFO, "wsss"):
        found = Prototypes.from_tensors(method.fit(network, [(picture(BLUE, GREEN), [1]), (picture(RED), [])]))
    assert "no position is marked by the CAM of the classes [1]; their weights stand in" in caplog.text
    assert "1 classes have no image; their weights stand in" in caplog.text
    for class_id in (1, 2):
        assert torch.equal(found.of(class_id)[0], SHARP[[class_id - 1]])
    assert found.sizes.tolist() == [0, 0]  # nor is there a context of what is not marked
    assert found.patch_images[found.sizes == 0].unique().tolist() == [-1]
    assert not len(found.of(1)[1])
    [maps] = method.layer_maps(network, picture(RED, GREEN)[None], [[2]])
    assert maps[0, 0, 0] == 0 < maps[0, 0, 1]


def test_without_any_image_the_weights_stand_in() -> None:
    found = Prototypes.from_tensors(Lpcam().fit(network_of(SHARP), []))
    assert torch.equal(found.centres, SHARP)


def test_lpcam_f_has_the_foreground_of_lpcam(coloured: tuple[Classifier, Images]) -> None:
    both = Prototypes.from_tensors(Lpcam(clusters=3).fit(*coloured))
    plain = Prototypes.from_tensors(Lpcam(clusters=3, context=False).fit(*coloured))
    assert not plain.context.any()
    assert torch.equal(plain.centres, both.centres[~both.context])


# --- one bounded pass -------------------------------------------------------------------------------------------------


def many(count: int, side: int = 12) -> Iterator[tuple[Tensor, Sequence[int]]]:
    """Images of both classes, made as they are asked for."""
    for index in range(count):
        random = torch.Generator().manual_seed(index)
        yield torch.rand(3, side, side, generator=random), [[1], [2], [1, 2], []][index % 4]


class Seen(nn.Identity):
    """Counts the images that go through it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, input: Tensor) -> Tensor:
        self.count += len(input)
        return input


def test_pools_stay_within_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One MiB for 2 classes with 64 channels: 1024 positions a pool, less than one image has."""
    encoder = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU())
    network = network_of(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), encoder)
    lengths, add = [], Pool.add

    def counted(pool: Pool, *offer: Tensor) -> None:
        add(pool, *offer)
        lengths.append(len(pool))

    monkeypatch.setattr(Pool, "add", counted)
    method = Lpcam(clusters=2, memory_mib=1)
    assert method.capacity(2, 64) * 2 * 2 * 64 * 4 == 2**20
    method.fit(network, many(8, side=40))
    assert method.prototypes is not None
    assert max(lengths) == 1024
    assert method.prototypes.sizes.max() <= 1024


def test_a_pool_has_a_place_for_each_cluster_and_no_more_than_the_limit() -> None:
    assert Lpcam(memory_mib=1, clusters=20).capacity(80, 2048) == 20
    assert Lpcam().capacity(1, 3) == prototypes.POOL_LIMIT


def test_a_sample_of_images_for_each_class() -> None:
    """The settings of COCO. Each class has 3 of its 10 images, chosen by chance, with all their positions."""
    method = Lpcam(clusters=4, tau=0.25, mu_b=0.5, images_per_class=3)
    encoder = Seen()
    found = Prototypes.from_tensors(method.fit(network_of(SHARP, encoder), many(20, side=4)))
    for class_id in (1, 2):
        mine = found.class_ids == class_id
        images = set(found.patch_images[mine].flatten().tolist()) - {-1}
        assert len(images) == 3
        assert all(class_id in [[1], [2], [1, 2], []][image % 4] for image in images)
        assert max(images) > 5  # not the first ones
        assert found.sizes[mine].sum() == 3 * 16
    assert 3 <= encoder.count < 15  # an image that no class wants is not looked at


def test_every_image_is_as_likely_to_be_sampled() -> None:
    images: Images = [(picture(RED), [1])] * 6
    counts = np.zeros(6, dtype=int)
    for seed in range(40):
        found = Prototypes.from_tensors(Lpcam(clusters=1, images_per_class=2, seed=seed).fit(network_of(SHARP), images))
        counts[found.patch_images[0, :2]] += 1
    assert counts.sum() == 80
    assert 5 <= counts.min() <= counts.max() <= 22  # 13.3 expected, standard deviation 3


def test_equal_seeds_give_equal_prototypes(coloured: tuple[Classifier, Images]) -> None:
    network, images = coloured
    settings = {"clusters": 3, "images_per_class": 2}
    first, again, other = (Lpcam(**settings, seed=seed).fit(network, iter(images)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(first[name].shape == other[name].shape and torch.equal(first[name], other[name]) for name in first)


def test_the_network_is_left_as_it_was(coloured: tuple[Classifier, Images]) -> None:
    network, images = coloured
    network.train()
    Lpcam().fit(network, images)
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_restoring_is_fitting(coloured: tuple[Classifier, Images], tmp_path: Path) -> None:
    network, images = coloured
    fitted, restored = Lpcam(clusters=3), Lpcam(clusters=3)
    save_file(fitted.fit(network, images), tmp_path / "prototypes.safetensors")
    restored.restore(load_file(tmp_path / "prototypes.safetensors"))
    view = images[0][0][None]
    maps = [method.layer_maps(network, view, [[1, 3]])[0] for method in (fitted, restored)]
    assert torch.equal(*maps)
    assert restored.describe(network) == fitted.describe(network)


def test_maps_before_fitting_are_refused() -> None:
    with pytest.raises(RuntimeError, match="call fit or restore"):
        Lpcam().layer_maps(network_of(SHARP), torch.rand(1, 3, 2, 2), [[1]])


def test_a_state_of_something_else_is_refused() -> None:
    state = Lpcam().fit(network_of(SHARP), IMAGES)
    with pytest.raises(CorruptArtifact, match="lack centres"):
        Lpcam().restore({name: tensor for name, tensor in state.items() if name != "centres"})
    lone = {name: tensor[state["class_ids"] == 2] for name, tensor in state.items()}
    with pytest.raises(CorruptArtifact, match=r"none for the classes \[1\] of 2"):
        Lpcam().restore(lone)


def test_the_description_holds_what_was_learnt() -> None:
    network, method = network_of(SHARP), Lpcam(clusters=1)
    assert method.describe(network) == {"name": "Lpcam", "positions_per_pool": 65_536}
    method.fit(network, IMAGES)
    described = method.describe(network)
    assert json.loads(json.dumps(described)) == described
    assert described["prototypes"]["1"] == {
        "foreground": {"kept": 1, "clusters": 1, "chosen": [True], "probabilities": [1.0], "sizes": [3]},
        "context": {"kept": 1, "clusters": 1, "chosen": [True], "probabilities": [0.5], "sizes": [2]},
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clusters", 0),
        ("tau", 0.0),
        ("tau", 1.1),
        ("mu_f", 1.0),
        ("mu_f", -0.1),
        ("mu_b", 0.0),
        ("mu_b", 1.5),
        ("context_floor", 0.9),
        ("context_floor", -0.1),
        ("images_per_class", 0),
        ("probability_over", "pixels"),
        ("memory_mib", 0),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"cam\.{name}={value} must be"):
        Lpcam(**{name: value})  # type: ignore[arg-type]
