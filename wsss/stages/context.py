"""What every stage is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig

from wsss import distributed
from wsss.artifacts import Artifact
from wsss.build import build
from wsss.config import TrainerConfig
from wsss.data import ImageSet
from wsss.data.cache import cached
from wsss.errors import ConfigError
from wsss.tracking import Picture, Tracker
from wsss.training.shells import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """Everything a stage may touch.

    Attributes:
        config: the composed configuration; interpolations resolve as they are read.
        data: the data set.
        artifact: where the stage writes.
        upstream: finished artifacts of the stages it needs, by name.
        tracker: where curves and pictures go.
        trained: a finished artifact of this stage that has its weights: only the test was another.
    """

    config: DictConfig
    data: ImageSet
    artifact: Artifact
    upstream: Mapping[str, Artifact]
    tracker: Tracker
    trained: Artifact | None = None

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """The images of this run's shard, or groups of them: all, where there is one shard."""
        return items[self.config.shard.index :: self.config.shard.count]

    def cached_data(self) -> ImageSet:
        """The data set for work that reads images again and again: decoded ones are kept as ``cache`` says."""
        return cached(self.data, self.config.cache.name, folder=Path(self.config.paths.artifacts) / "decoded")


@dataclass(frozen=True)
class Outcome:
    """What a stage found.

    Attributes:
        metrics: the content of ``metrics.json``.
        summary: rows of the table printed at the end.
        supervision: what the result was learnt or chosen with.
        facts: goes into the manifest beside the rest.
    """

    metrics: dict[str, Any]
    summary: Sequence[tuple[str, Any]]
    supervision: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def image_tags(data: ImageSet) -> str:
    """How image-level supervision is recorded."""
    return f"image tags (from {data.tag_source})"


def label_names(data: ImageSet) -> tuple[str, ...]:
    """Names of the labels 0..C."""
    return ("background", *data.classes)


def build_recipe(config: DictConfig, network: str) -> Recipe:
    """The recipe of ``classifier``, ``affinity`` or ``segmenter``, its optimiser, schedule and augmentation built.

    Raises:
        ConfigError: one of them cannot be built, or the schedule refuses its settings.
    """
    node = f"recipe.{network}"
    values = config.recipe[network]
    schedule = build(config, f"{node}.schedule")
    try:
        schedule(0, 1)
    except ValueError as error:
        raise ConfigError(f"{node}.schedule: {error}") from error
    return Recipe(
        optimizer=build(config, f"{node}.optimizer"),
        schedule=schedule,
        augment=build(config, f"{node}.augment"),
        keep=values.keep.name,
        **{
            name: values[name]
            for name in (
                "epochs",
                "iterations",
                "batch_size",
                "accumulate",
                "encoder_lr_factor",
                "bias_lr_factor",
                "frozen_stages",
                "frozen_batch_norm",
                "frozen_batch_norm_weights",
                "validate_every",
            )
        },
    )


def device_of(trainer: TrainerConfig) -> torch.device:
    """The device for work outside a Lightning loop: the GPU where there is one and the configuration allows it."""
    if trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", distributed.device_index(trainer, distributed.local_rank()))


def pictures(
    data: ImageSet, ids: Sequence[str], masks: Mapping[str, Callable[[str], np.ndarray | None]], *, count: int = 4
) -> list[Picture]:
    """The first few images of ``ids`` that have objects, with masks to lay over them, for the tracker.

    None in a process that has no tracker, which would read them in vain.
    """
    if not distributed.leader():
        return []
    chosen = [id for id in ids if data.class_ids(id)][:count]
    names = dict(enumerate(label_names(data)))
    return [
        Picture(
            image=data.image(id),
            caption=id,
            masks={name: mask for name, read in masks.items() if (mask := read(id)) is not None},
            class_names=names,
        )
        for id in chosen
    ]
