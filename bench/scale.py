"""What a configuration costs at a number of images: time, disk, files and memory of each stage, on 1 and on many GPUs.

    python bench/scale.py +experiment=voc_layercam --count 10582 --val 1449
    python bench/scale.py +experiment=own_folder --count 10000000 --val 10000 --classes 100 --no-masks --index folder
    python bench/scale.py +experiment=msrc15_layercam --images /path/to/msrc15 --count 358 --val 115 --gpus 0 \
        --against artifacts

Any override of the scripts may stand beside the options, and is priced. What can be measured without a GPU is measured
here, on a few images, as processor seconds of one core, which neighbours disturb little:

cpu      decoding, views, seeds, refinement, masks and their measurement, by the functions that the stages call
network  floating-point operations (a multiplication and an addition are two) and calls into torch of each step, and
         the seconds that one core of this machine takes for it; bytes kept for the backward pass
disk     bytes and files of everything a stage writes for an image
index    (--index) seconds and bytes of memory an image for reading a data set, its fingerprint, and looking which
         images are done, on sets of hard links to one image; --entries says how many

Seconds on a GPU are NOT measured: they are operations / (--tflops, or --tflops-depthwise where a fifth of the
convolutions are depthwise), and no less than calls * --call-us. Weights that would be downloaded are left at random.

The wall time of a loop over images, each times their number:

shared   max((network + main process) / GPUs, loading / loaders); by trainer=ddp
pool     refinement / processes: workers of the configuration, else 16, and no more than a machine has cores; times
         shards, one on each machine
leader   network + main process, whatever is beside it
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import wsss  # noqa: F401  before torch: it tells OpenMP's threads not to spin while they wait

# isort: split
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from wsss.artifacts import Artifact, Seeds
from wsss.build import build
from wsss.cams import seed_scores
from wsss.cams.prototypes import Lpcam, cosine_kmeans
from wsss.cli import CONF
from wsss.config import Labels, register
from wsss.data import ImageSet
from wsss.data.cache import DiskImages
from wsss.data.demo import render_demo
from wsss.data.loading import tag_vector
from wsss.data.transforms import to_tensor
from wsss.data.voc import VocLayout
from wsss.errors import ConfigError, UserError
from wsss.inference import Inference, inference_of
from wsss.metrics import BoundaryFScore, ConfusionMatrix, ThresholdCurve, image_miou
from wsss.models.folding import fold_batch_norm
from wsss.models.structure import outputs_of
from wsss.pipeline import STAGES, Pipeline
from wsss.refine.auto_threshold import LabelEvidence
from wsss.stages import seeds as seeds_stage
from wsss.stages.context import build_recipe
from wsss.stages.labels import Source, refine_image
from wsss.stages.threshold import at_side
from wsss.training.affinity import AffinityShell
from wsss.training.shells import ClassifierShell, SegmenterShell, Shell, to_unit

PER_INODE = 50_000
"""Hard links to one file: file systems allow some ten thousand."""


LATER = {"backend"}
"""Keys that artifacts of earlier versions lack, and that cost nothing as they stand."""


# --- the configuration ------------------------------------------------------------------------------------------------


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration; weights that a library would download are left out."""
    register()

    def compose_with(more: Sequence[str]) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=[*overrides, *more])

    config = compose_with(())
    nodes = [node for node in ("classifier", "segmenter") if config[node].get("weights") == "imagenet"]
    return compose_with([f"{node}.weights=null" for node in nodes])


class Item(NamedTuple):
    """One image of the sample, with its tags, its truth and made-up scores: the truth, blurred."""

    id: str
    image: np.ndarray
    class_ids: np.ndarray
    truth: np.ndarray
    scores: np.ndarray


def sample(data: ImageSet, ids: Sequence[str], *, stride: int) -> list[Item]:
    """Images with objects; scores at the stride of the configuration."""
    items = []
    for id in ids:
        image, truth, class_ids = data.image(id), data.truth(id), np.array(data.class_ids(id), dtype=np.int64)
        blurred = np.stack([ndimage.gaussian_filter((truth == c).astype(np.float32), 12) for c in class_ids])
        peaks = blurred.max(axis=(1, 2), keepdims=True)
        items.append(Item(id, image, class_ids, truth, (blurred / peaks)[:, ::stride, ::stride]))
    return items


def drawn(folder: Path, *, width: int, height: int, count: int) -> ImageSet:
    """The demo set's images, cut to ``width`` x ``height``."""
    render_demo(folder, seed=0, train=count, val=1, size=max(width, height))
    for kind in ("JPEGImages", "SegmentationClass"):
        for path in (folder / kind).iterdir():
            with Image.open(path) as image:
                cut = image.crop((0, 0, width, height))
            cut.save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))
    return VocLayout(folder, name="drawn")


# --- measuring --------------------------------------------------------------------------------------------------------


def cpu(work: Callable[[Any], Any], items: Sequence[Any], *, rounds: int = 2) -> float:
    """Processor seconds of this process an item; the first call is not counted."""
    work(items[0])
    started = time.process_time()
    for _ in range(rounds):
        for item in items:
            work(item)
    return (time.process_time() - started) / (rounds * len(items))


class Calls(TorchDispatchMode):
    """Counts calls into torch that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one; views cost nothing on a GPU."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def convolution_backward(grad: Any, x: Any, weight: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Operations of a convolution's gradients. torch counts those of grouped ones as if they were not grouped."""
    transposed, mask = rest[4], rest[7]
    positions = math.prod((x if transposed else grad)[2:])
    return sum(mask[:2]) * 2 * grad[0] * positions * math.prod(weight)


@dataclass
class Step:
    """What one image costs a network: operations, calls into torch, seconds of one core, bytes kept for backward."""

    flops: float = 0.0
    calls: float = 0.0
    seconds: float = 0.0
    saved: float = 0.0

    def __mul__(self, factor: float) -> Step:
        return Step(self.flops * factor, self.calls, self.seconds * factor, self.saved * factor)


def step(work: Callable[[], Any], *, images: int, per_call: float | None = None) -> Step:
    """Measure ``work`` on ``images``; on a GPU one call of it serves ``per_call`` of them."""
    work()
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {torch.ops.aten.convolution_backward: convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=own)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), counter, Calls() as calls:
        work()
    started = time.process_time()
    work()
    seconds = time.process_time() - started
    kept = sum(saved.values()) / images
    return Step(counter.get_total_flops() / images, calls.count / (per_call or images), seconds / images, kept)


def training_step(shell: Shell, recipe: Any, loss: Callable[[Tensor], Tensor]) -> Step:
    """A step of a training; two images stand for the batch."""
    size, shown = recipe.augment.size, 2
    images = torch.randint(0, 256, (shown, 3, size, size), dtype=torch.uint8)
    optimizer = recipe.optimizer([{"params": [p for p in shell.network.parameters() if p.requires_grad]}])
    optimizer.param_groups[0] |= {"foreach": True, "lr": 0.0}  # few calls, as on GPUs; the weights stay
    shell.network.train()
    shell._freeze_batch_norm()

    def work() -> None:
        optimizer.zero_grad()
        loss(images).backward()
        optimizer.step()

    return step(work, images=shown, per_call=recipe.batch_size)


@torch.no_grad()
def settle(network: nn.Module, images: Tensor) -> None:
    """Give batch norm the statistics of these images: those of random weights would let values grow beyond bounds."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 1.0
    network.train()
    network(images)
    network.eval()
    for module, momentum in zip(norms, before, strict=True):
        module.momentum = momentum


def depthwise(network: nn.Module) -> bool:
    """Whether a fifth of the convolutions or more are depthwise, which GPUs compute far below their peak."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return 5 * sum(module.groups == module.in_channels > 1 for module in convolutions) >= len(convolutions)


# --- what a stage costs -----------------------------------------------------------------------------------------------


@dataclass
class Part:
    """One loop over images within a stage.

    Attributes:
        stage: and ``what``: its name.
        count: images it goes over, all epochs together, by the number of processes: a recipe in iterations takes as
            many batches in each.
        where: ``shared`` by the processes of trainer=ddp, in the ``pool`` of the leader, or by the ``leader`` alone.
        net: what the network does for an image; ``light`` for one with depthwise convolutions.
        main: processor seconds an image in the process that drives the network (for ``pool``: in a worker).
        loader: processor seconds an image in loader processes.
        sharded: whether shard.count divides it.
    """

    stage: str
    what: str
    count: Callable[[int], float]
    where: str = "shared"
    net: Step = field(default_factory=Step)
    light: bool = False
    main: float = 0.0
    loader: float = 0.0
    sharded: bool = False


@dataclass
class Kept:
    """What a stage leaves on the disk: bytes and files an image of the training or validation split, and once."""

    stage: str
    what: str
    images: float
    bytes_each: float
    once: float = 0.0
    files_each: float = 1.0


@dataclass
class Costs:
    """Everything that was measured of a configuration."""

    parts: list[Part] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)


def bytes_of(path: Path) -> float:
    """Bytes of a file on a disk that gives it blocks of 4 KiB."""
    return -(-path.stat().st_size // 4096) * 4096


def weights_and_state(network: nn.Module, recipe: Any) -> tuple[float, float]:
    """Bytes of ``weights.safetensors`` and of ``last.ckpt``."""
    state = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    trained = [p for p in network.parameters() if p.requires_grad]
    probe = [torch.zeros(2, requires_grad=True)]
    optimizer = recipe.optimizer([{"params": probe}])
    probe[0].grad = torch.ones(2)
    optimizer.step()
    moments = sum(isinstance(v, Tensor) and v.numel() == 2 for v in optimizer.state[probe[0]].values())
    return state, state + moments * 4 * sum(p.numel() for p in trained)


def passes(recipe: Any, count: int, processes: int) -> float:
    """Views that a training draws in all processes; of iterations each takes a batch in every process."""
    if recipe.iterations:
        return recipe.iterations * recipe.batch_size * recipe.accumulate * processes
    return recipe.epochs * count


def validations(recipe: Any, count: int, processes: int) -> float:
    """How often a training looks at the validation split."""
    epochs = passes(recipe, count, processes) / count
    return max(1, math.floor(epochs / recipe.validate_every) + (recipe.iterations is not None and epochs % 1 > 0))


def memory_of_worker(*work: Any) -> tuple[int, int]:
    """Bytes of a process of the pool before it refines an image, and at its peak."""
    torch.set_num_threads(1)
    base = resident()
    refine_image(*work)
    return base, resident("VmHWM")


class Meter:
    """Measures one configuration on a sample of images.

    Args:
        config: composed.
        data: the set that the sample is from.
        items: the sample.
        folder: for scratch files.
        options: of the command line.
    """

    def __init__(
        self, config: DictConfig, data: ImageSet, items: list[Item], folder: Path, options: argparse.Namespace
    ) -> None:
        self.config, self.data, self.items, self.options = config, data, items, options
        self.classes = options.classes or len(data.classes)
        self.labels = self.classes + 1
        self.count, self.val, self.masks = options.count, options.val, not options.no_masks
        self.seeds, self.affinity = Artifact(folder, "seeds", "0" * 12), Artifact(folder, "affinity", "0" * 12)
        self.made = Artifact(folder, "labels", "0" * 12)
        self.costs = Costs()
        area = [item.image.shape[0] * item.image.shape[1] for item in items]
        self.area = float(np.mean(area)) / area[0]  # of an image of the sample, relative to the first
        for item in items:
            size = (item.image.shape[0], item.image.shape[1])
            self.seeds.write_seeds(item.id, Seeds(item.class_ids, item.scores, size))
        self.decode = cpu(lambda i: data.image(i.id), items)
        self.truth = cpu(lambda i: data.truth(i.id), items)
        self.note("decode an image", self.decode)
        self.note("read and check a true mask", self.truth)

    def note(self, what: str, seconds: float) -> None:
        """Remember a cost for the first table."""
        self.costs.notes.append(f"| {what} | {1000 * seconds:.1f} |")

    def add(self, stage: str, what: str, count: float | Callable[[int], float], **more: Any) -> None:
        """Remember a loop over images."""
        self.costs.parts.append(Part(stage, what, count if callable(count) else lambda _: count, **more))

    def keep(self, stage: str, what: str, images: float, bytes_each: float, **more: Any) -> None:
        """Remember what is left on the disk."""
        self.costs.kept.append(Kept(stage, what, images, bytes_each, **more))

    def measure(self) -> Costs:
        """All stages of the configuration."""
        classifier = self.classifier()
        self.seeds_of(classifier)
        refiner = build(self.config, "refiner")
        if refiner.needs_boundaries:
            labels = build(self.config, "affinity.labels")
            if labels.needs_threshold:
                self.threshold(classifier)
            self.boundaries(classifier, labels)
        elif refiner.needs_threshold:
            self.threshold(classifier)
        self.pseudo_labels("labels", refiner, sharded=True)
        self.segmenter()
        pixels = float(np.mean([item.truth.size for item in self.items]))
        if self.config.cache.name == "disk":
            self.keep("all", "decoded images (cache=disk)", self.count + self.val, math.ceil(3 * pixels / 4096) * 4096)
        return self.costs

    def view(self, augment: Any, *, mask: bool) -> float:
        """Seconds of a random view, decoding included."""
        seed = iter(range(10**6))
        draw = cpu(lambda i: augment(i.image, i.truth if mask else None, seed=next(seed)), self.items)
        self.note(f"draw a view of {augment.size} pixels{' with mask' * mask}", draw)
        return self.decode + draw

    def training(self, stage: str, shell: Shell, recipe: Any, loss: Callable[[Tensor], Tensor], *, mask: bool) -> None:
        """The training loop, and what it leaves."""
        found = training_step(shell, recipe, loss)
        reading = cpu(lambda i: self.data.mask(i.id), self.items) if mask else 0.0
        loader = self.view(recipe.augment, mask=mask) + reading
        light = depthwise(shell.network)
        length = f"{recipe.iterations} steps" if recipe.iterations else f"{recipe.epochs} epochs"
        views = partial(passes, recipe, self.count)
        self.add(stage, f"train, {length}", views, net=found, light=light, loader=loader)
        weights, state = weights_and_state(shell.network, recipe)
        self.keep(stage, "weights and last.ckpt", 0, 0, once=weights + state)

    def classifier(self) -> nn.Module:
        """Training and mAP."""
        recipe = build_recipe(self.config, "classifier")
        network = build(self.config, "classifier", num_classes=self.classes)
        shell = ClassifierShell(network, recipe, seed=0)
        tags = torch.stack([tag_vector((1,), self.classes)] * 2)

        def loss(images: Tensor) -> Tensor:
            return F.multilabel_soft_margin_loss(network(to_unit(images)), tags)

        self.training("classifier", shell, recipe, loss, mask=False)
        settle(network, to_unit(torch.stack([recipe.augment(i.image, seed=0)[0] for i in self.items])))
        seen = self.seen(lambda image: network(image[None]))
        known = {"net": seen, "light": depthwise(network), "loader": self.decode}
        self.add("classifier", "validate", lambda p: (validations(recipe, self.count, p) + 1) * self.val, **known)
        return network

    @torch.no_grad()
    def seen(self, work: Callable[[Tensor], Any]) -> Step:
        """A step on one whole image."""
        image = to_unit(to_tensor(self.items[0].image))
        return step(lambda: work(image), images=1) * self.area

    def seeds_of(self, network: nn.Module) -> None:
        """Class activation maps of the training images, kept and measured."""
        config = self.config.seeds
        method = build(self.config, "cam")
        plain = fold_batch_norm(network, keep=method.tapped(network)) if config.fold_batch_norm else network
        light = depthwise(network)
        pairs = [(to_unit(to_tensor(i.image)), i.class_ids.tolist()) for i in self.items]
        if isinstance(method, Lpcam):
            self.prototypes(method, plain, light)
        method.fit(plain, iter(pairs))
        views = sum(scale**2 for scale in config.scales)
        classes = max(1, round(float(np.mean([len(i.class_ids) for i in self.items]))))
        item = next((i for i in self.items if len(i.class_ids) == classes), self.items[0])
        image, made = to_unit(to_tensor(item.image)), []

        def work() -> None:
            made[:] = seed_scores(
                method, plain, [image], [item.class_ids.tolist()], scales=[1.0], flip=config.flip, stride=config.stride
            )

        area = float(np.mean([i.image.shape[0] * i.image.shape[1] for i in self.items]))
        found = step(work, images=1, per_call=config.batch_size) * (views * area / (image.shape[1] * image.shape[2]))
        found.calls *= len(config.scales)
        found.saved /= views / max(config.scales) ** 2
        size = (image.shape[1], image.shape[2])
        probe = Artifact(self.seeds.root, "seeds", "1" * 12)
        write = cpu(lambda _: probe.write_seeds("x", Seeds(item.class_ids, made[0].cpu().numpy(), size)), [0], rounds=5)
        self.note("write seeds", write)
        count, known = self.count, {"sharded": True, "light": light}
        self.add("seeds", "maps", count, net=found, main=write, loader=self.decode, **known)
        self.keep("seeds", "maps", count, bytes_of(probe.directory / "maps" / "x.npz"))
        if self.masks:
            curve = ThresholdCurve(
                self.labels, np.linspace(0, 1, self.config.evaluation.curve_steps + 2)[1:-1].tolist()
            )

            def along(item: Item) -> None:
                seeds = self.seeds.read_seeds(item.id)
                scores = seeds_stage._measured_scores(seeds, self.config.evaluation)
                curve.update(item.truth, seeds.class_ids, scores)

            measured = cpu(along, self.items) + self.truth
            self.note("measure seeds along the curve", measured)
            self.add("seeds", "evaluate", count, main=measured)

    def prototypes(self, method: Lpcam, network: nn.Module, light: bool) -> None:
        """LPCAM's pass over the images, which the leader makes alone."""
        seen = self.seen(lambda image: network.features(image[None]))
        per_class = self.count * float(np.mean([len(i.class_ids) for i in self.items])) / self.classes
        limit = method.images_per_class
        share = 1.0
        if limit is not None:  # a reservoir takes in so many on the way
            share = min(1.0, self.classes * limit * (1 + math.log(max(1, per_class / limit))) / self.count)
        self.add("seeds", "LPCAM: read every image", self.count, where="leader", main=self.decode)
        self.add("seeds", "LPCAM: features", share * self.count, where="leader", net=seen, light=light)
        with torch.no_grad():
            width = network.features(torch.zeros(1, 3, 64, 64)).shape[1]
        positions = method.capacity(self.classes, width)
        points = torch.rand(positions, width)
        clustering = cpu(lambda _: cosine_kmeans(points, clusters=method.clusters, seed=0), [0], rounds=1)
        self.note(f"LPCAM: cluster a pool of {positions} x {width}", clustering)
        self.add("seeds", "LPCAM: cluster", 2 * self.classes, where="leader", main=clustering)

    def threshold(self, network: nn.Module) -> None:
        """The background chosen without masks, on a bounded number of images."""
        background = build(self.config, "threshold")
        layer = network.get_submodule(network.layer(background.stage))
        features: list[np.ndarray] = []

        def look(image: Tensor) -> None:
            with outputs_of({0: layer}) as outputs:
                network.features(at_side(image, background.side)[None])
            features[:] = [outputs[0][0].numpy()]

        seen = self.seen(look)
        evidence = LabelEvidence(self.labels, len(features[0]))
        item = self.items[0]
        scores = self.seeds.read_seeds(item.id).scores
        summed = cpu(lambda _: evidence.update(features[0], item.class_ids, scores, fold=0), [0], rounds=3)
        self.note("threshold=auto: add an image", summed)
        count = self.count if background.images is None else min(self.count, background.images)
        main = self.decode + summed
        self.add("threshold", "features", count, where="leader", net=seen, light=depthwise(network), main=main)

    def boundaries(self, network: nn.Module, labels: Any) -> None:
        """The affinity stage: confident labels, a training, a boundary map of each image."""
        self.pseudo_labels("affinity", labels, sharded=False)
        recipe = build_recipe(self.config, "affinity")
        edges = build(self.config, "affinity.network", classifier=network)
        shell = AffinityShell(edges, recipe, seed=0, radius=self.config.affinity.radius)
        item = self.items[0]
        side = recipe.augment.size
        view = torch.stack([recipe.augment(item.image, item.truth, seed=s)[1].long() for s in (0, 1)])
        assert view.shape[-1] == side

        def loss(images: Tensor) -> Tensor:
            return shell.training_step({"image": images, "labels": view}, 0)

        self.training("affinity", shell, recipe, loss, mask=True)
        edges.eval()
        made: list[Tensor] = []

        def look(image: Tensor) -> None:
            made[:] = [edges.boundaries(image)]

        seen = self.seen(look)
        write = cpu(lambda _: self.affinity.write_boundaries("x", made[0].numpy()), [0], rounds=3)
        self.note("write boundaries", write)
        kept = {"light": depthwise(edges), "main": self.decode + write}
        self.add("affinity", "boundaries", self.count, net=seen, **kept)
        self.keep("affinity", "boundaries", self.count, bytes_of(self.affinity.directory / "boundaries" / "x.npz"))
        for item in self.items:
            cells = [-(-length // edges.stride) for length in item.image.shape[:2]]
            rough = ndimage.gaussian_gradient_magnitude(item.image.mean(axis=2), 2)
            rough = ndimage.zoom(rough / rough.max(), [c / s for c, s in zip(cells, rough.shape, strict=True)], order=1)
            self.affinity.write_boundaries(item.id, rough.clip(0, 1)[: cells[0], : cells[1]])

    def pseudo_labels(self, stage: str, refiner: Any, *, sharded: bool) -> None:
        """A refiner over all images, in the pool of the leader, then its measurement there."""
        if refiner.needs_threshold:
            refiner.choose(0.3)
        made = Artifact(self.made.root, stage, "2" * 12)
        source = Source(self.seeds, self.affinity if refiner.needs_boundaries else None)
        store = self.seeds.root / "superpixels"
        spent = 0.0
        for item in self.items:  # superpixels are computed once an image, so that each image is refined once here
            started = time.process_time()
            refine_image(refiner, source, made, (item.id, self.data.image_path(item.id)))
            spent += time.process_time() - started
        spent /= len(self.items)
        self.note(f"{stage}: refine an image, files included", spent)
        self.add(stage, "refine", self.count, where="pool", main=spent, sharded=sharded)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            work = (refiner, source, made, (self.items[0].id, self.data.image_path(self.items[0].id)))
            base, peak = pool.apply(memory_of_worker, work)
        self.costs.memory.append(f"a worker that refines ({stage}): {size(base)}, at its peak {size(peak)}")
        masks = float(np.mean([bytes_of(made.directory / "masks" / f"{item.id}.png") for item in self.items]))
        self.keep(stage, "masks", self.count, masks)
        kept = [bytes_of(path) for path in store.rglob("*.npz")] if store.is_dir() else []
        if kept:
            self.keep(stage, "superpixels", self.count, float(np.mean(kept)))
        if self.masks:
            confusion = ConfusionMatrix(self.labels)

            def measure(item: Item) -> None:
                found = made.read_mask(item.id)
                confusion.update(item.truth, found)
                image_miou(item.truth, found, self.labels)

            measured = cpu(measure, self.items) + self.truth
            self.note(f"{stage}: measure a mask", measured)
            self.add(stage, "evaluate", self.count, where="leader", main=measured)
            self.keep(stage, "per_image.json", self.count, 44, files_each=0)

    def segmenter(self) -> None:
        """Training and test; before a second one, with labels=predicted, the relabelling."""
        recipe = build_recipe(self.config, "segmenter")
        network = build(self.config, "segmenter", num_labels=self.labels)
        loss_of = build(self.config, "loss")
        shell = SegmenterShell(network, recipe, seed=0, loss=loss_of, truth=None, num_labels=self.labels)
        labels = torch.randint(0, self.labels, (2, recipe.augment.size, recipe.augment.size))
        labels[:, :, : recipe.augment.size // 8] = 255

        def loss(images: Tensor) -> Tensor:
            outputs = network.training_outputs(to_unit(images))
            return torch.stack([loss_of(logits, labels) for logits in outputs]).sum()

        again = self.config.labels is Labels.predicted
        for stage in ("teacher", "segmenter") if again else ("segmenter",):
            self.training(stage, shell, recipe, loss, mask=True)
        network.eval()
        light = depthwise(network)
        one = self.seen(lambda image: Inference().labels(network, image))
        confusion = ConfusionMatrix(self.labels)
        measured = cpu(lambda i: confusion.update(i.truth, i.truth), self.items) + self.truth if self.masks else 0.0
        known = {"net": one, "light": light, "loader": self.decode, "main": measured}
        self.add("segmenter", "validate", lambda p: validations(recipe, self.count, p) * self.val, **known)
        self.test("segmenter", "test", inference_of(self.config), self.val, network, light, borders=True)
        if again:
            own = inference_of(self.config, "self_training")
            self.test("relabels", "relabel", own, self.count, network, light, borders=False)

    def soft(self, item: Item) -> Tensor:
        """``(C+1, H, W)`` probabilities in which the labels of an image alone matter."""
        shape = (item.truth.shape[0], item.truth.shape[1])
        probabilities = np.full((self.labels, *shape), 1e-4, dtype=np.float32)
        scores = seeds_stage.full_size_scores(Seeds(item.class_ids, item.scores, shape)).numpy()
        probabilities[item.class_ids] = scores.clip(1e-4, 1)
        probabilities[0] = 1 - probabilities[1:].max(axis=0)
        return torch.from_numpy(probabilities / probabilities.sum(axis=0))

    def test(
        self, stage: str, what: str, inference: Any, count: int, network: nn.Module, light: bool, *, borders: bool
    ) -> None:
        """Whole images through the views of a test, its CRF, the mask and its measurement, one after the other."""
        plain = Inference(scales=(1.0,), flip=inference.flip, window=inference.window, overlap=inference.overlap)
        seen = self.seen(lambda image: plain.labels(network, image)) * sum(scale**2 for scale in inference.scales)
        seen.calls *= len(inference.scales)
        made = Artifact(self.made.root, stage, "3" * 12)
        soft = {item.id: self.soft(item) for item in self.items}

        def decide(item: Item) -> None:
            if inference.crf is not None:
                inference.decide(soft[item.id], picture=item.image)
            made.write_mask(item.id, np.where(item.truth == 255, 0, item.truth))

        main = self.decode + cpu(decide, self.items, rounds=1)
        if self.masks:
            confusion = ConfusionMatrix(self.labels)

            def measure(item: Item) -> None:
                confusion.update(item.truth, np.roll(item.truth, 4))
                image_miou(item.truth, item.truth, self.labels)
                if borders:
                    BoundaryFScore(self.labels).update(item.truth, np.where(item.truth == 255, 0, item.truth))

            main += cpu(measure, self.items) + self.truth
        self.note(f"{stage}: {what} an image, without the network", main)
        self.add(stage, what, count, net=seen, light=light, main=main, sharded=stage == "relabels")
        masks = float(np.mean([bytes_of(made.directory / "masks" / f"{item.id}.png") for item in self.items]))
        self.keep(stage, "masks" if stage == "relabels" else "predictions", count, masks)


# --- the data set's index ---------------------------------------------------------------------------------------------


def linked(folder: Path, names: Sequence[str], source: Path) -> None:
    """Hard links to copies of ``source`` in ``folder``."""
    for parent in {os.path.dirname(name) for name in names}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    content = source.read_bytes()
    for at, name in enumerate(names):
        if at % PER_INODE == 0:
            original = folder / name
            original.write_bytes(content)
        else:
            os.link(original, folder / name)


def lay_out(layout: str, root: Path, count: int, image: Path, mask: Path) -> list[str]:
    """A set of ``count`` links to one image; the overrides that read it. An eighth of it is for validation."""
    ids = [f"{at // 1000:05d}/{at:08d}" if layout == "folder" else f"{at:08d}" for at in range(count)]
    held_out = count // 8
    if layout == "folder":
        linked(root / "images", [f"{id}{image.suffix}" for id in ids], image)
        rows = (
            f"{id}{image.suffix},class {at % 20},{'val' if at < held_out else 'train'}" for at, id in enumerate(ids)
        )
        (root / "tags.csv").write_text("image,tags,split\n" + "\n".join(rows) + "\n")
        return ["data=folder", f"data.root={root}"]
    if layout == "voc_layout":
        linked(root / "JPEGImages", [f"{id}{image.suffix}" for id in ids], image)
        linked(root / "SegmentationClass", [f"{id}.png" for id in ids], mask)
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        (lists / "val.txt").write_text("\n".join(ids[:held_out]))
        (lists / "train.txt").write_text("\n".join(ids[held_out:]))
        return ["data=voc_layout", f"data.root={root}"]
    categories = ", ".join(f'{{"id": {n}, "name": "class {n}"}}' for n in range(1, 81))
    shape = ", ".join(["123.45", "67.89"] * 20)  # as long as the polygons of COCO's annotations
    for split, own in (("val2014", ids[:held_out]), ("train2014", ids[held_out:])):
        linked(root / split, [f"{id}.jpg" for id in own], image)
        (root / "annotations").mkdir(exist_ok=True)
        with (root / "annotations" / f"instances_{split}.json").open("w") as file:
            images = (f'{{"id": {int(id)}, "file_name": "{id}.jpg", "width": 500, "height": 375}}' for id in own)
            file.write(f'{{"categories": [{categories}], "images": [{", ".join(images)}], "annotations": [')
            entries = (
                f'{{"id": {8 * at + k}, "image_id": {int(id)}, "category_id": {1 + (at + k) % 80}, "iscrowd": 0, '
                f'"segmentation": [[{shape}]], "area": 1.0, "bbox": [1.0, 1.0, 1.0, 1.0]}}'
                for at, id in enumerate(own)
                for k in range(7)  # 7.3 an image in COCO
            )
            file.write(",\n".join(entries) + "]}")
    return ["data=coco2014", f"data.root={root}", f"data.cache={root}/cache"]


def resident(key: str = "VmRSS") -> int:
    """Bytes of memory of this process; ``VmHWM``: at their peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def private() -> int:
    """Bytes of memory that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


@contextmanager
def timed(found: dict[str, float], name: str) -> Iterator[None]:
    """Processor seconds, and memory that stays, of a block."""
    gc.collect()
    before, started = resident(), time.process_time()
    yield
    found[f"{name} s"] = time.process_time() - started
    gc.collect()
    found[f"{name} bytes"] = resident() - before


def probe_index(overrides: Sequence[str], artifacts: Path, seeds_file: Path | None) -> dict[str, float]:
    """Read a set, identify it, look which of its images are done; in a process of its own."""
    torch.set_num_threads(1)
    config = composed(["+experiment=own_folder", *overrides, f"paths.artifacts={artifacts}"])
    found: dict[str, float] = {"base": resident()}
    with timed(found, "read"):
        data: ImageSet = build(config, "data")
    ids = [*data.ids(data.train), *data.ids(data.val)]
    found["images"], trained = len(ids), data.ids(data.train)
    pipeline = Pipeline(config, data=data)
    with timed(found, "facts"):
        pipeline.data_facts()
    with timed(found, "hash"):
        pipeline.fingerprint("classifier")
    tracemalloc.start()  # freed memory is kept and used again, so that the process need not grow
    groups = seeds_stage._groups(data, trained, 1)
    found["groups bytes"] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    seeds = pipeline.artifact("seeds")
    if seeds_file is not None:
        linked(seeds.directory / "maps", [f"{id}.npz" for id in trained], seeds_file)
    with timed(found, "done"):
        sum(not seeds.has_seeds(id) for id in trained)
    with timed(found, "prepare"):
        seeds.prepare()
    found["peak"] = resident("VmHWM")
    # the header of every image is read; of many images the disk has no room for the pixels, which it says then
    with timed(found, "cache"), suppress(ConfigError):
        DiskImages(data, artifacts / "decoded")
    found["train"] = len(groups)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    if os.fork() == 0:  # what a loader process makes its own of what it was forked with, by looking at every image
        before = private()
        for at in np.random.default_rng(0).permutation(len(trained)).tolist():
            data.image_path(trained[at]), data.class_ids(trained[at])
        sender.send(private() - before)
        os._exit(0)
    found["loader bytes"] = receiver.recv()
    os.wait()
    return found


def indexes(
    layouts: Sequence[str], entries: Sequence[int], items: list[Item], data: ImageSet, folder: Path
) -> list[tuple]:
    """``(layout, count, found)`` of each set."""
    item = items[0]
    masks, rows = folder / "one.png", []
    mask = np.where(item.truth == 255, 255, item.truth)
    Image.fromarray(mask).save(masks)
    seeds = Artifact(folder, "seeds", "4" * 12)
    seeds.write_seeds("x", Seeds(item.class_ids, item.scores, (item.image.shape[0], item.image.shape[1])))
    context = multiprocessing.get_context("spawn")
    for layout in layouts:
        for count in entries:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                root = Path(place, "set")
                root.mkdir()
                overrides = lay_out(layout, root, count, data.image_path(item.id), masks)
                with context.Pool(1) as pool:
                    npz = seeds.directory / "maps" / "x.npz"
                    rows.append((layout, count, pool.apply(probe_index, (overrides, Path(place, "artifacts"), npz))))
    return rows


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What the work runs on.

    Attributes:
        gpus: 0 is a CPU alone, of which one core computes.
        cores: processor cores of a GPU.
        node: GPUs of one machine.
        tflops: operations a second, for dense networks; ``light`` for those with depthwise convolutions.
        call: seconds of a call into torch.
        workers: as in the configuration: loaders of each process, and processes of the pool; None as the cores allow.
        shards: machines that share pools out (shard.count).
    """

    gpus: int
    cores: int
    node: int
    tflops: float
    light: float
    call: float
    workers: int | None = None
    shards: int = 1

    @property
    def loaders(self) -> int:
        """Loader processes of each GPU; more than its cores allow do not load faster."""
        return max(1, min(self.workers or 8, self.cores - 2))

    def network(self, part: Part) -> float:
        """Seconds of the network for one image."""
        if not self.gpus:
            return part.net.seconds
        rate = 1e12 * (self.light if part.light else self.tflops)
        return max(part.net.flops / rate, part.net.calls * self.call)

    def wall(self, part: Part) -> tuple[float, str]:
        """Seconds of a part, and what binds it."""
        net = self.network(part)
        count = part.count(max(1, self.gpus))
        if not self.gpus:
            return count * (net + part.main + part.loader), "cpu"
        if part.where == "leader":
            return count * (net + part.main + part.loader), "leader"
        if part.where == "pool":
            machine = self.cores * min(self.gpus, self.node)
            pool = min(self.workers or 16, machine) * (self.shards if part.sharded else 1)
            return count * part.main / pool, "pool"
        loaders = self.loaders
        driven, loaded = (net + part.main) / self.gpus, part.loader / (self.gpus * loaders)
        return count * max(driven, loaded), ("loaders" if loaded > driven else "gpu" if net > part.main else "main")


def told(seconds: float) -> str:
    """A duration."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}" if seconds < 100 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def size(number: float) -> str:
    """Bytes."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= length:
            return f"{number / length:.3g} {unit}"
    return f"{number:.0f} B"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print Markdown."""
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_steps(costs: Costs, machine: Machine) -> None:
    """What the network does."""
    rows = []
    for part in costs.parts:
        if part.net.flops:
            gflops, seconds = part.net.flops / 1e9, part.net.seconds
            on_gpu = machine.network(part)
            rows.append([
                part.stage, part.what, f"{gflops:.3g}", f"{part.net.calls:.0f}", f"{seconds:.3g}",
                f"{gflops / seconds:.0f}", f"{1000 * on_gpu:.3g}" + " c" * (on_gpu > part.net.flops / 1e12 / (
                    machine.light if part.light else machine.tflops) * 1.0001), size(part.net.saved),
            ])  # fmt: skip
    header = [
        "stage",
        "step, an image",
        "GFLOP",
        "calls",
        "s, one core",
        "GFLOP/s there",
        "ms, GPU (assumed)" if machine.gpus else "ms",
        "kept for backward",
    ]
    table("Network (GFLOP, calls, seconds and bytes measured; c: bound by calls)", header, rows)


def print_times(costs: Costs, machines: Sequence[Machine], names: Sequence[str]) -> None:
    """Wall time of each part on each machine, and of its total the share that more GPUs do not shorten."""
    rows, totals = [], [0.0] * len(machines)
    fixed = [0.0] * len(machines)
    for part in costs.parts:
        count = part.count(1)
        row = [part.stage, part.what, f"{count:,.0f}", told(count * (part.main + part.loader))]
        for at, machine in enumerate(machines):
            seconds, bound = machine.wall(part)
            totals[at] += seconds
            fixed[at] += seconds if bound == "leader" or (bound == "pool" and machine.shards == 1) else 0
            row.append(f"{told(seconds)} {bound}")
        rows.append(row)
    rows.append(["all", "", "", "", *(f"**{told(total)}**" for total in totals)])
    rows.append(
        [
            "",
            "of it in the leader's machine alone",
            "",
            "",
            *(f"{100 * a / b:.0f} %" for a, b in zip(fixed, totals, strict=True)),
        ]
    )
    table("Time, and what binds it", ["stage", "part", "images", "core time", *names], rows)


def print_disk(costs: Costs) -> None:
    """Bytes and files."""
    rows = []
    for kept in costs.kept:
        total = kept.images * kept.bytes_each + kept.once
        each = size(kept.bytes_each) if kept.images else ""
        rows.append([kept.stage, kept.what, each, size(total), f"{kept.images * kept.files_each:,.0f}"])
    whole = sum(k.images * k.bytes_each + k.once for k in costs.kept)
    files = sum(k.images * k.files_each for k in costs.kept)
    rows.append(["all", "", "", size(whole), f"{files:,.0f}"])
    table("Disk (blocks of 4 KiB)", ["stage", "what", "an image", "in all", "files"], rows)


def print_index(rows: list[tuple[str, int, dict[str, float]]], count: int, *, cores: int, node: int) -> None:
    """The index, an image and in all."""
    header = ["set", "images", "read", "tags, sizes", "one hash", "look if done", "partial files", "cache=disk",
              "kept", "groups", "peak", "own of a loader"]  # fmt: skip
    lines, said = [], []
    for layout, entries, found in rows:
        images, train = found["images"], found["train"]
        of = {"read": images, "facts": images, "hash": images, "done": train, "prepare": train, "cache": images}
        each = {name: found[f"{name} s"] / number for name, number in of.items()}
        kept = (found["read bytes"] + found["facts bytes"]) / images
        groups, own = found["groups bytes"] / train, found["loader bytes"] / train
        numbers = [kept, groups, (found["peak"] - found["base"]) / images, own]
        lines.append([
            layout, f"{entries:,}", *(f"{1e6 * seconds:.0f}" for seconds in each.values()),
            *(f"{number:.0f}" for number in numbers),
        ])  # fmt: skip
        if entries == max(number for name, number, _ in rows if name == layout):
            lines.append([
                "", f"so {count:,}", *(told(count * seconds) for seconds in each.values()),
                *(size(count * number) for number in numbers),
            ])  # fmt: skip
            loaders = max(1, min(8, cores - 2))
            machine = node * (found["base"] + count * kept + loaders * count * own)
            start, hashed = each["read"] + each["facts"], each["hash"]
            said.append(
                f"{layout}, {count:,} images, {node} processes with {loaders} loaders each on a machine: "
                f"{size(node * (found['base'] + count * numbers[2]))} at start, {size(machine)} once the loaders have "
                f"looked at every image. A start with 6 hashes: {told(count * (start + 6 * hashed))} of a core"
            )
    table("Index: microseconds of one core, and bytes of memory, an image", header, lines)
    print("\n" + "\n".join(said))


def agrees(older: Any, newer: Any) -> bool:
    """Whether two configurations are the same but for keys of ``LATER`` that ``older`` does not have."""
    if isinstance(older, dict) and isinstance(newer, dict):
        known = older.keys() | (newer.keys() & LATER)
        return known >= newer.keys() and all(key in newer and agrees(older[key], newer[key]) for key in older)
    return bool(older == newer)


def print_against(folder: Path, config: DictConfig, data: ImageSet, costs: Costs, machine: Machine) -> None:
    """Beside what was measured: the wall time of finished artifacts of this very configuration."""
    pipeline, rows = Pipeline(config, data=data), []
    for stage in STAGES:
        own = [part for part in costs.parts if part.stage == stage]
        wanted = json.loads(json.dumps(pipeline.read_config(stage), default=str))
        walls = []
        for path in sorted((folder / stage).glob("*/manifest.json")):
            manifest = json.loads(path.read_text())
            same = agrees(manifest["config"] | {"seed": wanted.get("seed")}, wanted | {"seed": wanted.get("seed")})
            if same and manifest["data"]["splits"]["train"]["images"] == len(data.ids(data.train)):
                walls.append(manifest["wall_seconds"])
        if own and walls:
            said = sum(machine.wall(part)[0] for part in own)
            times = f"{min(walls):.0f}" if len(walls) == 1 else f"{min(walls):.0f} to {max(walls):.0f} ({len(walls)})"
            rows.append([stage, f"{said:.0f}", times, f"{float(np.median(walls)) / said:.2f}"])
    table(
        "Predicted for one core, and taken",
        ["stage", "predicted s", "wall s of finished runs", "median / predicted"],
        rows,
    )


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The text above as it stands, and the defaults of all options that have a word of help."""


def main() -> None:
    """Measure, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    add = parser.add_argument
    add("overrides", nargs="*", help="of the configuration")
    add(
        "--images",
        type=Path,
        help="a set in VOC's layout with masks, of which a few are taken; without it, they are drawn",
    )
    add("--split", default="train", help="of --images")
    add("--sample", type=int, default=6, help="images that are measured")
    add("--width", type=int, default=500, help="of drawn images")
    add("--height", type=int, default=375, help="of drawn images")
    add("--count", type=int, default=10_582, help="training images")
    add("--val", type=int, default=1_449, help="validation images")
    add("--classes", type=int, help="default: those of the sample")
    add("--no-masks", action="store_true", help="the set has none, so that nothing is measured with them")
    add("--gpus", type=int, nargs="+", default=[1, 64], help="0: one core alone")
    add("--cores-per-gpu", type=int, default=8, help="of a machine")
    add("--gpus-per-machine", type=int, default=8, help="shards are one a machine")
    add("--tflops", type=float, default=15, help="ASSUMED operations a second of a GPU")
    add("--tflops-depthwise", type=float, default=2, help="ASSUMED, for networks with depthwise convolutions")
    add("--call-us", type=float, default=10, help="ASSUMED microseconds of a call into torch")
    add("--index", nargs="*", choices=("folder", "voc_layout", "coco"), default=[], help="measure indexes of such sets")
    add("--entries", type=int, nargs="+", default=[10_000, 100_000], help="sizes of the indexes that are measured")
    add("--only-index", action="store_true")
    add("--against", type=Path, help="a store: compare with the wall time of its artifacts (one core, --gpus 0)")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.images:
            try:
                data = VocLayout(options.images, train=options.split, val=options.split)
            except UserError as error:
                parser.error(f"--images takes a set in the layout of PASCAL VOC; without it images are drawn. {error}")
        else:
            data = drawn(folder / "drawn", width=options.width, height=options.height, count=4 * options.sample)
        ids = [id for id in data.ids(data.train) if data.class_ids(id)][: options.sample]
        config = composed(options.overrides)
        items = sample(data, ids, stride=config.seeds.stride)
        sizes = ", ".join(f"{i.image.shape[1]}x{i.image.shape[0]} ({len(i.class_ids)})" for i in items)
        print(f"{' '.join(options.overrides)}\nsample (classes): {sizes}")
        print(f"priced for --count {options.count:,} training and --val {options.val:,} validation images of that size")
        started = time.perf_counter()
        if not options.only_index:
            base = resident()
            costs = Meter(config, data, items, folder / "artifacts", options).measure()
            report(costs, options, folder, data, config)
            costs.memory.append(f"this process: {size(base)} after the imports, at its peak {size(resident('VmHWM'))}")
            print("\nMemory: " + "; ".join(costs.memory))
        if options.index:
            rows = indexes(options.index, options.entries, items, data, folder)
            size_of = {"cores": options.cores_per_gpu, "node": options.gpus_per_machine}
            print_index(rows, options.count + options.val, **size_of)
        print(f"\nmeasured in {told(time.perf_counter() - started)}")


def report(costs: Costs, options: argparse.Namespace, folder: Path, data: ImageSet, config: DictConfig) -> None:
    """The tables of one configuration."""
    machines, names = [], []
    for gpus in options.gpus:
        common = (gpus, options.cores_per_gpu, options.gpus_per_machine, options.tflops, options.tflops_depthwise)
        machines.append(Machine(*common, options.call_us / 1e6, config.workers))
        names.append(f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else "one core")
        nodes = -(-gpus // options.gpus_per_machine)
        if nodes > 1:
            machines.append(Machine(*common, options.call_us / 1e6, config.workers, shards=nodes))
            names.append(f"{gpus}, shard.count={nodes}")
    print("\n| processor milliseconds of one core, an image | |\n|---|---|\n" + "\n".join(costs.notes))
    print_steps(costs, machines[0])
    print_times(costs, machines, names)
    print_disk(costs)
    if options.against:
        own = VocLayout(options.images)
        print_against(options.against, config, own, costs, Machine(0, 1, 1, 1, 1, 0))


if __name__ == "__main__":
    main()
