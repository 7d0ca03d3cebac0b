"""Speed of class activation maps on a CPU, against the two libraries that a user would pick.

    python bench/cams.py [--networks lite0 resnet50 vgg16] [--rounds 7] [--threads 2] [--clock wall|cpu] [--only WORDS]

All variants compute LayerCAM maps of the same network (random weights) in one process: in each round every variant
runs once, in changing order, and medians over the rounds are printed. Read the ratios; milliseconds belong to the
machine and to its neighbours. On a busy machine take the processor time of this process (``--clock cpu``), which
neighbours disturb less, with one thread. Before the clock starts, the maps of all variants are compared.

pytorch-grad-cam   one call a class, for all images and for a view with its mirror image at once
torchcam           one forward pass, then one backward pass a class; likewise
ours               the network as it is
ours, folded       as the seeds stage runs it: batch norm folded into the convolutions, channels last
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import wsss  # noqa: F401  before torch: it tells OpenMP's threads not to spin while they wait

# isort: split
import torch
from timing import CLOCKS
from torch import Tensor, nn

from wsss.cams import CamMethod, LayerCam, ScoreCam, seed_scores
from wsss.cams.functional import resize_maps, scale_to_peak
from wsss.models import Classifier, ResNetClassifier, TimmClassifier, Vgg16Classifier, fold_batch_norm

NETWORKS: dict[str, Callable[[], Classifier]] = {
    "lite0": lambda: TimmClassifier(encoder="tf_efficientnet_lite0", num_classes=20),
    "resnet50": lambda: ResNetClassifier(depth=50, num_classes=20),
    "vgg16": lambda: Vgg16Classifier(num_classes=20),
}
SIZES = {"lite0": (375, 500), "resnet50": (256, 320), "vgg16": (160, 160)}
SCALES = (1.0, 0.5, 1.5, 2.0)
STRIDE = 4
VARIANTS = ("pytorch-grad-cam", "torchcam", "ours", "ours, folded")

Maps = list[Tensor]
"""One ``(P, h, w)`` tensor a layer; P counts the (image, class) pairs, image by image."""


@dataclass
class Case:
    """What is measured.

    Attributes:
        network: key of ``NETWORKS``.
        title: what sets it apart.
        stages: the layers.
        classes: classes of each image.
        size: of the images.
        images: how many go together.
        views: 4 scales and mirror images instead of one view.
        scored: Score-CAM instead of LayerCAM.
    """

    network: str
    title: str
    stages: Sequence[int]
    classes: int
    size: tuple[int, int]
    images: int = 1
    views: bool = False
    scored: bool = False
    class_ids: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.class_ids = [[1 + (at + 3 * k) % 20 for k in range(self.classes)] for at in range(self.images)]

    @property
    def name(self) -> str:
        """What the table says."""
        return f"{self.network} {self.size[0]}x{self.size[1]}, {self.title}"

    @property
    def method(self) -> CamMethod:
        """Ours."""
        return ScoreCam(stages=self.stages) if self.scored else LayerCam(stages=self.stages)


def cases(network: str) -> list[Case]:
    """The cases of one network."""
    size = SIZES[network]
    three, five = (3, 4, 5), (1, 2, 3, 4, 5)
    found = [Case(network, f"3 layers, {k} class{'es' if k > 1 else ''}", three, k, size) for k in (1, 2, 3)]
    found.append(Case(network, "5 layers, 2 classes", five, 2, size))
    found.append(Case(network, "3 layers, 2 classes, 4 scales + flip", three, 2, size, views=True))
    found.append(Case(network, "3 layers, 4 images of 2 classes", three, 2, size, images=4))
    if network == "lite0":
        found.append(Case(network, "Score-CAM of stage 2, 3 classes", (2,), 3, (128, 128), scored=True))
    return found


def prepared(network: Classifier) -> Classifier:
    """In evaluation mode, with the batch statistics of noise: those of an untrained network let signals die out."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    nn.init.normal_(network.head.weight, mean=0.01, std=0.05)
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 128, 128))
    return network.eval()


class Bench:
    """The variants of one case, each a call without arguments that returns the fused maps.

    Args:
        case: what to measure.
        network: as it is.
        folded: as the seeds stage runs it.
    """

    def __init__(self, case: Case, network: Classifier, folded: Classifier) -> None:
        import pytorch_grad_cam
        import torchcam.methods

        self.case, self.network, self.folded = case, network, folded
        self.images = torch.rand(case.images, 3, *case.size, generator=torch.Generator().manual_seed(1))
        linear = nn.Linear(network.head.in_channels, network.head.out_channels, bias=False)
        linear.weight = nn.Parameter(network.head.weight.data.flatten(1))
        self.plain = nn.Sequential(network.encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()
        self.layers = [network.get_submodule(network.layer(stage)) for stage in case.stages]
        self.grad_cam_class = pytorch_grad_cam.ScoreCAM if case.scored else pytorch_grad_cam.LayerCAM
        self.torchcam_class = torchcam.methods.ScoreCAM if case.scored else torchcam.methods.LayerCAM

    def run(self, variant: str) -> Tensor:
        """``(P, H, W)`` fused maps; the libraries' order of pairs is class by class."""
        calls = {
            "pytorch-grad-cam": self.grad_cam,
            "torchcam": self.torchcam,
            "ours": lambda: self.ours(self.network),
            "ours, folded": lambda: self.ours(self.folded),
        }
        return calls[variant]()

    def ours(self, network: Classifier) -> Tensor:
        """Through the functions that the seeds stage calls."""
        case, method = self.case, self.case.method
        if case.views:
            [scores] = seed_scores(
                method, network, list(self.images), case.class_ids, scales=SCALES, flip=True, stride=STRIDE
            )
            return scores
        return method.fuse(self._our_maps(network), case.size)

    def _our_maps(self, network: Classifier) -> Maps:
        images = self.images.contiguous(memory_format=torch.channels_last) if network is self.folded else self.images
        return self.case.method.layer_maps(network, images, self.case.class_ids)

    def grad_cam(self) -> Tensor:
        """As its documentation shows it: one call a class, which resizes the layers to the image and averages them."""
        with self.grad_cam_class(self.plain, self.layers) as cam:
            if not self.case.views:
                batch = self._normalised(self.images)
                return torch.cat([torch.from_numpy(cam(batch, self._targets(ids))) for ids in self._rounds()])
            total = None
            for batch in self._views():
                pairs = [torch.from_numpy(cam(batch, self._targets(ids * 2))) for ids in self._rounds()]
                maps = torch.stack([plain + mirrored.flip(-1) for plain, mirrored in pairs])
                maps = resize_maps(maps, self._grid())
                total = maps if total is None else total + maps
            return scale_to_peak(total)

    def torchcam(self) -> Tensor:
        """One forward pass for all classes."""
        with self.torchcam_class(self.plain, self.layers) as extractor:
            if not self.case.views:
                return torch.cat(
                    [
                        extractor.fuse_cams([layer.detach() for layer in maps], self.case.size)
                        for maps in self._torchcam_rounds(extractor, self._normalised(self.images), self._rounds())
                    ]
                )
            totals: Maps = []
            for batch in self._views():
                rounds = [ids * 2 for ids in self._rounds()]
                found = list(self._torchcam_rounds(extractor, batch, rounds, normalized=False))
                # gradients of a small view are larger; see GradientCam.layer_maps
                positions = found[0][-1][0].numel()
                merged = [
                    resize_maps(torch.stack([plain + mirrored.flip(-1) for plain, mirrored in layer]), self._grid())
                    * positions
                    for layer in zip(*found, strict=True)
                ]
                totals = [a + b for a, b in zip(totals, merged, strict=True)] if totals else merged
            return self.case.method.fuse(totals, self._grid())

    def _torchcam_rounds(
        self, extractor: Any, batch: Tensor, rounds: list[list[int]], **options: Any
    ) -> Iterable[list[Tensor]]:
        gradients = not self.case.scored
        with torch.set_grad_enabled(gradients):
            scores = self.plain(batch)
        for k, ids in enumerate(rounds):
            if gradients:
                options["retain_graph"] = k + 1 < len(rounds)
            yield extractor([id - 1 for id in ids], scores, **options)

    def _rounds(self) -> list[list[int]]:
        """The k-th class of every image, for each k."""
        return [list(ids) for ids in zip(*self.case.class_ids, strict=True)]

    def _targets(self, ids: list[int]) -> list[Callable[[Tensor], Tensor]]:
        return [lambda output, at=id - 1: output[at] for id in ids]

    def _grid(self) -> tuple[int, int]:
        height, width = self.case.size
        return -(-height // STRIDE), -(-width // STRIDE)

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.network.mean) / self.network.std

    def _views(self) -> Iterable[Tensor]:
        """Each scale of the one image, with its mirror image."""
        for scale in SCALES:
            size = tuple(round(side * scale) for side in self.case.size)
            view = nn.functional.interpolate(
                self.images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1
            ).clamp(0, 1)
            yield self._normalised(torch.cat([view, view.flip(-1)]))

    # --- the same maps? ----------------------------------------------------------------------------------------------

    def check(self) -> float:
        """Compare the maps of all variants, layer by layer where there is one view.

        Ours equal those of the libraries. Another memory layout, or folding, rounds otherwise: where an activation near
        0 falls on the other side of a ReLU, a few positions differ (in double precision they do not), so what is looked
        at is the correlation. For Score-CAM too: the libraries bring masks to the size of the image in other ways.
        Views are compared with torchcam alone, since pytorch-grad-cam normalises each call.

        Returns:
            The lowest correlation of two variants' maps.

        Raises:
            AssertionError: the maps are not the same.
        """
        if self.case.views:
            theirs, ours, folded = ([self.run(variant)] for variant in VARIANTS[1:])
            return min(_correlation(ours, theirs, 0.999), _correlation(folded, ours, 0.999))
        ours, folded = self._our_maps(self.network), self._our_maps(self.folded)
        libraries = (self._grad_cam_maps(), self._torchcam_maps())
        if not self.case.scored:
            assert max(_difference(ours, theirs) for theirs in libraries) <= 1e-4, "ours and a library's maps differ"
        least = 0.9 if self.case.scored else 0.999
        return min(_correlation(folded, ours, 0.999), *(_correlation(ours, theirs, least) for theirs in libraries))

    def _grad_cam_maps(self) -> Maps:
        """What a call computes before it resizes and averages."""
        batch, rounds = self._normalised(self.images), []
        for ids in self._rounds():
            with self.grad_cam_class(self.plain, self.layers) as cam:
                raw, inner = [], cam.get_cam_image
                cam.get_cam_image = lambda *args, raw=raw, inner=inner: raw.append(inner(*args)) or raw[-1]
                cam(batch, self._targets(ids))
                rounds.append([torch.from_numpy(maps).relu() for maps in raw])
        return self._by_image(rounds)

    def _torchcam_maps(self) -> Maps:
        with self.torchcam_class(self.plain, self.layers) as extractor:
            rounds = self._torchcam_rounds(extractor, self._normalised(self.images), self._rounds(), normalized=False)
            return self._by_image([[layer.detach().relu() for layer in maps] for maps in rounds])

    def _by_image(self, rounds: list[Maps]) -> Maps:
        """From class by class to image by image."""
        return [torch.stack(layer, dim=1).flatten(0, 1) for layer in zip(*rounds, strict=True)]


def _difference(ours: Maps, theirs: Maps) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max((scale_to_peak(a) - scale_to_peak(b)).abs().max().item() for a, b in pairs)


def _correlation(ours: Maps, theirs: Maps, least: float) -> float:
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    found = min(torch.corrcoef(torch.stack(pair).flatten(1))[0, 1].item() for pair in pairs)
    assert found >= least, f"maps of two variants correlate {found:.4f} alone"
    return found


def measure(bench: Bench, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each variant."""
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for at in range(rounds + 1):
        shift = at % len(VARIANTS)
        for variant in VARIANTS[shift:] + VARIANTS[:shift]:
            start = clock()
            bench.run(variant)
            if at:  # the first round warms up
                seconds[variant].append(clock() - start)
    return {variant: 1000 * statistics.median(values) for variant, values in seconds.items()}


def main() -> None:
    """Print a line a case: milliseconds of each variant, and speeds relative to the libraries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", default="", help="cases whose title holds these words")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"Medians of {options.rounds} alternating rounds in ms ({options.clock} clock, {options.threads} threads);"
        " ours and ours, folded: how many times as fast as each library; the lowest correlation of two variants' maps."
    )
    print(_row("case", VARIANTS, ["grad-cam", "torchcam"] * 2, "correlation"))
    for name in options.networks:
        network = prepared(NETWORKS[name]())
        for case in cases(name):
            if options.only not in case.name:
                continue
            folded = fold_batch_norm(network, keep=case.method.tapped(network)).to(memory_format=torch.channels_last)
            bench = Bench(case, network, folded)
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for every Score-CAM
                correlation = bench.check()
                took = measure(bench, options.rounds, CLOCKS[options.clock])
            milliseconds = [f"{took[variant]:.0f}" for variant in VARIANTS]
            ratios = [f"{took[library] / took[ours]:.1f}x" for ours in VARIANTS[2:] for library in VARIANTS[:2]]
            print(_row(case.name, milliseconds, ratios, f"{correlation:.4f}"), flush=True)


def _row(name: str, milliseconds: Sequence[str], ratios: Sequence[str], correlation: str) -> str:
    columns = [f"{value:>17s}" for value in milliseconds] + [f"{value:>10s}" for value in ratios]
    return f"{name:55s}" + "".join(columns) + f"{correlation:>13s}"


if __name__ == "__main__":
    main()
