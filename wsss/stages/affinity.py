"""Between seeds and labels, where a refiner asks for it: class boundaries learnt from confident labels (IRN)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from wsss import distributed
from wsss.build import build as build_node
from wsss.console import progress
from wsss.data import DataModule, ImageSet
from wsss.data.transforms import to_tensor
from wsss.errors import ConfigError, DataError
from wsss.models import Classifier
from wsss.models.boundary import BoundaryNetwork
from wsss.refine import Refiner
from wsss.stages.context import Context, Outcome, build_recipe, device_of, image_tags, pictures
from wsss.stages.labels import Source, evaluate, hand_over_threshold, refine_all, shrunk
from wsss.training.affinity import AffinityShell
from wsss.training.fit import fit
from wsss.training.shells import Recipe, to_unit
from wsss.types import BACKGROUND, IGNORE


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    classifier: Classifier
    network: BoundaryNetwork
    recipe: Recipe
    refiner: Refiner


def build(config: DictConfig, data: ImageSet) -> Parts:
    """Build the refiner of the confident labels, and the boundary network on a classifier without weights."""
    classifier = build_node(config, "classifier", num_classes=len(data.classes), weights=None)
    network = build_node(config, "affinity.network", classifier=classifier)
    refiner = build_node(config, "affinity.labels")
    if refiner.needs_boundaries:
        raise ConfigError("affinity.labels: boundaries are learnt from these labels, which cannot need them already")
    return Parts(classifier, network, build_recipe(config, "affinity"), refiner)


def run(context: Context, parts: Parts) -> Outcome:
    """Make the confident labels, learn boundaries from them, and keep those of every training image."""
    config, data, artifact = context.config, context.data, context.artifact
    ids = data.ids(data.train)
    context.upstream["classifier"].read_weights(parts.classifier)
    hand_over_threshold(context, parts.refiner)

    def confident() -> tuple[dict[str, Any], list[tuple[str, Any]]]:
        paths = {id: data.image_path(id) for id in ids}
        source, device = Source(context.upstream["seeds"], white=data.white), device_of(config.trainer)
        refine_all(artifact, parts.refiner, source, paths, workers=config.workers, device=device)
        check_confident(context)
        return evaluate(context)  # of the confident labels, which are all that is learnt from

    metrics, summary = distributed.lead(confident)
    shell = AffinityShell(parts.network, parts.recipe, seed=config.seed, radius=config.affinity.radius)
    module = DataModule(
        context.cached_data(),
        augment=parts.recipe.augment,
        batch_size=parts.recipe.batch_size,
        workers=config.workers,
        seed=config.seed,
        masks=artifact.read_mask,
    )
    fit(shell, module, artifact, config.trainer, loggers=context.tracker.lightning_loggers)
    distributed.lead(lambda: artifact.write_weights(parts.network))
    artifact.read_weights(parts.network)
    keep_boundaries(context, parts.network, parts.refiner)
    masks = {"labels": artifact.read_mask, "truth": data.mask}
    context.tracker.log_images("confident labels", pictures(data, ids, masks))
    facts = {"labels": repr(parts.refiner)}
    return Outcome(metrics, [(f"confident labels: {name}", value) for name, value in summary], image_tags(data), facts)


def check_confident(context: Context) -> None:
    """Refuse confident labels without boundaries to learn from.

    Raises:
        DataError: no image has both a class and background among its confident labels.
    """
    for id in context.data.ids(context.data.train):
        found = np.unique(context.artifact.read_mask(id))
        if BACKGROUND in found and ((found != BACKGROUND) & (found != IGNORE)).any():
            return
    raise DataError(
        "no image has both a class and background among its confident labels, so there is no boundary to learn. "
        "Set another threshold, or affinity.labels.labelling.margin"
    )


def keep_boundaries(context: Context, network: BoundaryNetwork, refiner: Refiner) -> None:
    """Write the boundaries of every training image that has none yet, at the size at which ``refiner`` works.

    So ``affinity.labels.max_side`` bounds the memory of the network and that of the walks along the boundaries.
    """
    data, artifact, device = context.data, context.artifact, device_of(context.config.trainer)
    network.eval().to(device)
    for id in progress(distributed.share(data.ids(data.train)), "affinity: boundaries", unit="img"):
        if not artifact.has_boundaries(id):
            pixels = data.image(id)
            image = to_unit(to_tensor(shrunk(pixels, refiner.working_size(pixels.shape[:2])))).to(device)
            artifact.write_boundaries(id, network.boundaries(image).cpu().numpy())
    distributed.barrier()
