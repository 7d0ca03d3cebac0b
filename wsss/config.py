"""The schema of what code reads from the configuration: a mistyped key fails at composition, not after a night.

Groups that construct an object (``data``, ``classifier``, ``cam``, ``threshold``, ``crf``, ``refiner``, ``affinity``,
``segmenter``, ``loss``, ``logger``) hold a ``_target_`` instead, whose signature is the schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from wsss.errors import ConfigError


class Upstream(Enum):
    """What to do when an earlier stage has not been run: name the command and stop, or build it."""

    require = "require"
    build = "build"


class Labels(Enum):
    """What the segmenter learns from.

    The refined seeds; what a first segmenter, which learnt from those, predicts for the training images (one round of
    self-training); or the true masks (the fully supervised ceiling).
    """

    refined = "refined"
    predicted = "predicted"
    ground_truth = "ground_truth"


class Keep(Enum):
    """Which weights a training keeps: the last, or the best on the validation split (recorded as supervision)."""

    last = "last"
    best_val = "best_val"


class Cache(Enum):
    """Where decoded images are kept, so that a file is decoded once and not once an epoch. Moves no number."""

    none = "none"
    memory = "memory"
    disk = "disk"


@dataclass
class RecipeConfig:
    """How a network is trained."""

    epochs: int | None = MISSING  # passes over the training images; null where iterations are set
    iterations: int | None = None  # optimizer steps, instead of epochs; the last pass is cut
    batch_size: int = MISSING  # images of one forward pass
    accumulate: int = 1  # forward passes of one optimizer step, which so learns from batch_size * accumulate images
    optimizer: Any = MISSING  # _partial_: called with the parameter groups
    schedule: Any = MISSING  # _partial_: (step, total steps) -> factor on the learning rate
    encoder_lr_factor: float = 1.0  # learning rate of pretrained layers, relative to new ones
    bias_lr_factor: float = 1.0  # learning rate of the biases of new layers, relative to their weights
    frozen_stages: int = 0  # the first stages of the encoder that are not trained
    frozen_batch_norm: bool = False  # batch norm keeps its pretrained statistics
    frozen_batch_norm_weights: bool = False  # and its scale and shift
    augment: Any = MISSING
    keep: Keep = Keep.last
    validate_every: int = 1  # epochs between looks at the validation split


@dataclass
class RecipesConfig:
    """The trainings."""

    classifier: RecipeConfig = field(default_factory=RecipeConfig)
    affinity: RecipeConfig = field(default_factory=RecipeConfig)
    segmenter: RecipeConfig = field(default_factory=RecipeConfig)


@dataclass
class SeedsConfig:
    """The views that seeds are computed from, and the grid they are kept on."""

    scales: list[float] = field(default_factory=lambda: [1.0, 0.5, 1.5, 2.0])
    flip: bool = True
    stride: int = 4
    batch_size: int = 1  # images of one size that go through the network together; more pays on GPUs
    precision: str = "32-true"  # or bf16-mixed, 16-mixed (GPU): faster there, coarser
    fold_batch_norm: bool = True  # into the convolutions: faster, the same maps up to rounding


@dataclass
class AffinityConfig:
    """How class boundaries are learnt, for refiners that walk along them."""

    radius: int = 10  # cells: pairs nearer than this are learnt from
    network: Any = MISSING
    labels: Any = MISSING  # a refiner: the confident labels to learn from


@dataclass
class InferenceConfig:
    """How a finished segmenter looks at an image."""

    scales: list[float] = field(default_factory=lambda: [1.0])  # sizes of the views, relative to the image
    flip: bool = True  # see each view mirrored too
    window: int | None = None  # pixels of a view: the side of windows that slide over it; null: views go whole
    overlap: float = 1 / 3  # of neighbouring windows, as a fraction of their side
    crf: Any = None  # an option of conf/crf/ that refines the segmenter's probabilities; null: none


@dataclass
class EvaluationConfig(InferenceConfig):
    """How results are measured. Thresholds of the labels stage stand in ``refiner``, not here."""

    seed_threshold: float = 0.3  # the fixed threshold of the seeds' miou
    seed_percentile: float | None = None  # thresholds relative to this percentile of a map (PaS), not to its maximum
    curve_steps: int = 19  # the curve has this many thresholds, evenly spaced inside (0, 1)
    tags: bool = False  # the segmenter's test predicts the tags of each image alone (recorded as supervision)


@dataclass
class SelfTrainingConfig(InferenceConfig):
    """How a first segmenter labels the training images for a second one (``labels=predicted``): with their tags."""

    confidence: float = 0.0  # pixels whose label has a lower probability are not learnt from


@dataclass
class ReportConfig:
    """What the report shows. Moves no number."""

    worst: int = 3  # images of each split with the lowest mIoU
    typical: int = 3  # images of each split around the middle


@dataclass
class TrainerConfig:
    """Where and how training runs. What moves a number by design is fingerprinted: ``precision``, and with
    ``strategy=ddp`` the number of processes (each takes batches of its own) and ``sync_batchnorm``.

    Memory format, compilation and the kind of device move results by rounding alone.
    """

    accelerator: str = "auto"
    devices: Any = 1  # with strategy=ddp: a number, a list, or auto for all
    strategy: str = "auto"  # ddp: one process for each device
    num_nodes: int = 1  # machines
    processes: int | None = None  # of the trainings meant, where another run did them; null: those of this run
    sync_batchnorm: bool = False  # with ddp, on GPUs: batch norm over the batches of all processes
    precision: str = "32-true"
    deterministic: Any = "warn"  # true: an operation that cannot be deterministic (some on GPUs) ends the run
    channels_last: bool = True  # colours of a pixel side by side in memory: faster on CPUs and tensor cores
    compile: bool = False  # torch.compile of the network while it trains; pays in long trainings on GPUs
    checkpoint_every: int | None = 500  # optimizer steps, beside the end of every epoch; null: there alone


@dataclass
class ShardConfig:
    """The part of a stage's images that this run does. Moves no number."""

    index: int = 0  # this run does the images index, index + count, ...
    count: int = 1


@dataclass
class PathsConfig:
    """Where things lie. Moves no number."""

    artifacts: str = "artifacts"
    data: str = "datasets"
    logs: str = "logs"


@dataclass
class Config:
    """The root of the configuration, shared by all scripts."""

    seed: int = 0
    upstream: Upstream = Upstream.require
    force: bool = False
    labels: Labels = Labels.refined
    workers: int | None = None  # processes that load images and refine seeds; null: as the cores allow
    cache: Cache = Cache.none  # decoded images: in memory, or on disk below paths.artifacts. Moves no number
    data: Any = MISSING
    classifier: Any = MISSING
    cam: Any = MISSING
    threshold: Any = MISSING  # the background that scores compete with; the refiner takes it in
    crf: Any = MISSING  # likewise
    refiner: Any = MISSING
    affinity: AffinityConfig = field(default_factory=AffinityConfig)
    segmenter: Any = MISSING
    loss: Any = MISSING  # of the segmenter: (logits, labels) -> scalar
    recipe: RecipesConfig = field(default_factory=RecipesConfig)
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    logger: Any = None


def register() -> None:
    """Make the schema known to Hydra under the name that conf/config.yaml lists first."""
    ConfigStore.instance().store(name="schema", node=Config)


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check(config: DictConfig) -> None:
    """Refuse keys that the schema does not have, and values that would fail or mislead hours later.

    Composition refuses unknown keys too, except for those added with ``+KEY=VALUE``.

    Raises:
        ConfigError: names the key and what it may be.
    """
    try:
        OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(config))
    except ConfigKeyError as error:
        raise ConfigError(f"the configuration has no key {error.full_key!r}. Compare it with conf/") from None
    _check_values(config)


def _check_values(config: DictConfig) -> None:
    def require(holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise ConfigError(f"{key}={OmegaConf.select(config, key)} must be {expected}")

    require(config.seed >= 0, "seed", "0 or more")
    require(config.workers is None or config.workers >= 0, "workers", "0 or more, or null")
    for name in ("classifier", "affinity", "segmenter"):
        recipe, key = config.recipe[name], f"recipe.{name}"
        if (recipe.epochs is None) == (recipe.iterations is None):
            raise ConfigError(
                f"{key}.epochs={recipe.epochs} and {key}.iterations={recipe.iterations}: set one of them, and the "
                f"other to null"
            )
        require(recipe.epochs is None or recipe.epochs >= 1, f"{key}.epochs", "1 or more")
        require(recipe.iterations is None or recipe.iterations >= 1, f"{key}.iterations", "1 or more")
        require(recipe.accumulate >= 1, f"{key}.accumulate", "1 or more")
        least = 2 if name == "segmenter" else 1  # batch norm on pooled features needs two values
        require(recipe.batch_size >= least, f"{key}.batch_size", f"{least} or more")
        require(recipe.validate_every >= 1, f"{key}.validate_every", "1 or more")
        require(recipe.encoder_lr_factor >= 0, f"{key}.encoder_lr_factor", "0 or more")
        require(recipe.bias_lr_factor >= 0, f"{key}.bias_lr_factor", "0 or more")
        require(0 <= recipe.frozen_stages <= 5, f"{key}.frozen_stages", "0 to 5")
    require(
        config.recipe.segmenter.frozen_stages == 0, "recipe.segmenter.frozen_stages", "0: segmenters train all stages"
    )
    affinity = config.recipe.affinity
    require(affinity.keep is Keep.last, "recipe.affinity.keep", "last: nothing is measured along the way")
    for key, only in (
        ("frozen_stages", 0),
        ("frozen_batch_norm", False),
        ("frozen_batch_norm_weights", False),
        ("encoder_lr_factor", 1),
    ):
        require(affinity[key] == only, f"recipe.affinity.{key}", f"{only}: the encoder is frozen as a whole")
    require(config.affinity.radius >= 2, "affinity.radius", "2 or more cells")
    for key in ("seeds.scales", "evaluation.scales", "self_training.scales"):
        scales = OmegaConf.select(config, key)
        require(len(scales) > 0 and min(scales) > 0, key, "a list of factors above 0")
    require(config.seeds.stride >= 1, "seeds.stride", "1 or more")
    require(config.seeds.batch_size >= 1, "seeds.batch_size", "1 or more")
    require(config.seeds.precision in PRECISIONS, "seeds.precision", f"one of {', '.join(PRECISIONS)}")
    require(0 <= config.evaluation.seed_threshold <= 1, "evaluation.seed_threshold", "from 0 to 1")
    percentile = config.evaluation.seed_percentile
    require(percentile is None or 0 < percentile <= 100, "evaluation.seed_percentile", "above 0 to 100, or null")
    require(config.evaluation.curve_steps >= 1, "evaluation.curve_steps", "1 or more")
    for key in ("evaluation", "self_training"):
        window, overlap = config[key].window, config[key].overlap
        require(window is None or window >= 32, f"{key}.window", "32 or more pixels, or null")
        require(0 <= overlap < 1, f"{key}.overlap", "0 or more and below 1")
    require(0 <= config.self_training.confidence <= 1, "self_training.confidence", "from 0 to 1")
    require(min(config.report.worst, config.report.typical) >= 0, "report", "0 or more images of a kind")
    trainer = config.trainer
    require(trainer.precision in PRECISIONS, "trainer.precision", f"one of {', '.join(PRECISIONS)}")
    every = trainer.checkpoint_every
    require(every is None or every >= 1, "trainer.checkpoint_every", "1 or more optimizer steps, or null")
    _check_processes(config, require)


def _check_processes(config: DictConfig, require: Callable[[bool, str, str], None]) -> None:
    trainer, shard = config.trainer, config.shard
    devices, listed = trainer.devices, OmegaConf.is_list(trainer.devices)
    numbers = list(devices) if listed else str(devices).split(",")
    known = all(re.fullmatch(r"\d+", str(number).strip()) for number in numbers if str(number).strip())
    require(
        (known and (listed or "," in str(devices) or int(devices) > 0) and len(numbers) > 0)
        or str(devices) in ("auto", "-1"),
        "trainer.devices",
        "a number above 0, a list, or auto",
    )
    require(trainer.num_nodes >= 1, "trainer.num_nodes", "1 or more")
    require(trainer.processes is None or trainer.processes >= 1, "trainer.processes", "1 or more, or null")
    strategies = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
    require(trainer.strategy in strategies, "trainer.strategy", f"one of {', '.join(strategies)}")
    if trainer.strategy == "auto":
        single = len(numbers) == 1 and (listed or str(devices) == "1")
        require(single, "trainer.devices", "1, or a list with one device; for more of them use trainer=ddp")
        require(trainer.num_nodes == 1, "trainer.num_nodes", "1; for more machines use trainer=ddp")
    require(shard.count >= 1, "shard.count", "1 or more")
    require(0 <= shard.index < shard.count, "shard.index", f"from 0 to {shard.count - 1} (shard.count - 1)")
    if shard.count > 1 and trainer.strategy != "auto":
        raise ConfigError("shard.count and trainer=ddp both share the work out; use one of them")
    if shard.count > 1 and config.force:
        raise ConfigError("force=true would delete what other shards have made; delete the stage's directory instead")
