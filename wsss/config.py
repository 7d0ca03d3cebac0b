"""The schema of what code reads from the configuration: a mistyped key fails at composition, not after a night.

Groups that construct an object (``data``, ``classifier``, ``cam``, ``refiner``, ``segmenter``, ``logger``) hold a
``_target_`` instead, whose signature is the schema.
"""

from __future__ import annotations

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
    """What the segmenter learns from: the refined seeds, or the true masks (the fully supervised ceiling)."""

    refined = "refined"
    ground_truth = "ground_truth"


class Keep(Enum):
    """Which weights a training keeps: the last, or the best on the validation split (recorded as supervision)."""

    last = "last"
    best_val = "best_val"


@dataclass
class RecipeConfig:
    """How a network is trained."""

    epochs: int = MISSING
    batch_size: int = MISSING
    optimizer: Any = MISSING  # _partial_: called with the parameter groups
    schedule: Any = MISSING  # _partial_: (step, total steps) -> factor on the learning rate
    encoder_lr_factor: float = 1.0  # learning rate of pretrained layers, relative to new ones
    frozen_stages: int = 0  # the first stages of the encoder that are not trained
    frozen_batch_norm: bool = False  # batch norm keeps its pretrained statistics
    augment: Any = MISSING
    keep: Keep = Keep.last
    validate_every: int = 1  # epochs between looks at the validation split


@dataclass
class RecipesConfig:
    """The two trainings."""

    classifier: RecipeConfig = field(default_factory=RecipeConfig)
    segmenter: RecipeConfig = field(default_factory=RecipeConfig)


@dataclass
class SeedsConfig:
    """The views that seeds are computed from, and the grid they are kept on."""

    scales: list[float] = field(default_factory=lambda: [1.0, 0.5, 1.5, 2.0])
    flip: bool = True
    stride: int = 4


@dataclass
class EvaluationConfig:
    """How results are measured. Thresholds of the labels stage stand in ``refiner``, not here."""

    seed_threshold: float = 0.3  # the fixed threshold of the seeds' miou
    curve_steps: int = 19  # the curve has this many thresholds, evenly spaced inside (0, 1)
    scales: list[float] = field(default_factory=lambda: [1.0])  # views of the segmenter's test
    flip: bool = True


@dataclass
class ReportConfig:
    """What the report shows. Moves no number."""

    worst: int = 3  # images of each split with the lowest mIoU
    typical: int = 3  # images of each split around the middle


@dataclass
class TrainerConfig:
    """Where and how training runs. Only ``precision`` can move a number by design, and only it is fingerprinted."""

    accelerator: str = "auto"
    devices: Any = 1
    strategy: str = "auto"
    num_nodes: int = 1
    precision: str = "32-true"
    deterministic: Any = True


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
    data: Any = MISSING
    classifier: Any = MISSING
    cam: Any = MISSING
    refiner: Any = MISSING
    segmenter: Any = MISSING
    recipe: RecipesConfig = field(default_factory=RecipesConfig)
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    logger: Any = MISSING


def register() -> None:
    """Make the schema known to Hydra under the name that conf/config.yaml lists first."""
    ConfigStore.instance().store(name="schema", node=Config)


def check(config: DictConfig) -> None:
    """Refuse keys that the schema does not have. Composition does that too, except for those added with ``+KEY=VALUE``.

    Raises:
        ConfigError: names the key.
    """
    try:
        OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(config))
    except ConfigKeyError as error:
        raise ConfigError(f"the configuration has no key {error.full_key!r}. Compare it with conf/") from None
