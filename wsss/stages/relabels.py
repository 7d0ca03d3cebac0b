"""Between two trainings of the segmenter: it labels the training images itself, with their tags, for the second one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from wsss import distributed
from wsss.build import build as build_node
from wsss.console import Bar, progress
from wsss.data import ImageSet
from wsss.data.transforms import to_tensor
from wsss.inference import Inference, inference_of
from wsss.models import SegmentationNetwork
from wsss.stages import labels
from wsss.stages.context import Context, Outcome, device_of, image_tags, pictures
from wsss.training.shells import to_unit
from wsss.types import IGNORE


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    network: SegmentationNetwork
    inference: Inference


def build(config: DictConfig, data: ImageSet) -> Parts:
    """Build the network without weights, and the views and CRF of ``self_training``."""
    network = build_node(config, "segmenter", num_labels=len(data.classes) + 1, weights=None)
    return Parts(network, inference_of(config, "self_training"))


def run(context: Context, parts: Parts) -> Outcome:
    """Label the images that are not done yet, then measure all of them."""
    data, artifact = context.data, context.artifact
    ids = data.ids(data.train)
    work(context, parts, ids)
    metrics, summary = distributed.lead(lambda: labels.evaluate(context))
    masks = {"labels": artifact.read_mask, "truth": data.mask}
    context.tracker.log_images("labels of the first segmenter", pictures(data, ids, masks))
    return Outcome(metrics, summary, image_tags(data))


def share(context: Context, parts: Parts) -> int:
    """Label the images of this run's shard; how many are left to others."""
    ids = context.data.ids(context.data.train)
    work(context, parts, context.part(ids))
    return sum(not context.artifact.has_mask(id) for id in ids)


def work(context: Context, parts: Parts, ids: Sequence[str]) -> None:
    """Label those of ``ids`` that are not done yet, each process of the run its share of them."""
    data, artifact = context.data, context.artifact
    context.upstream["teacher"].read_weights(parts.network)
    device = device_of(context.config.trainer)
    parts.network.eval().to(device)
    left = distributed.lead(lambda: [id for id in ids if not artifact.has_mask(id)])
    bar: Bar[Any]
    with progress(len(ids), artifact.stage, unit="img", completed=len(ids) - len(left)) as bar:
        for id in distributed.share(left):
            mask = relabel(
                parts,
                data.image(id),
                data.class_ids(id),
                confidence=context.config.self_training.confidence,
                device=device,
            )
            artifact.write_mask(id, mask)
            bar.advance(distributed.world())
        distributed.barrier()
        bar.update(len(ids))


def relabel(
    parts: Parts, picture: np.ndarray, class_ids: tuple[int, ...], *, confidence: float, device: torch.device
) -> np.ndarray:
    """What the network sees in an image whose tags are known.

    Args:
        parts: network and inference.
        picture: ``(H, W, 3)`` uint8.
        class_ids: of its tags; no other class comes out.
        confidence: labels whose probability before the CRF is lower become 255.
        device: of the network.

    Returns:
        ``(H, W)`` uint8.
    """
    image = to_unit(to_tensor(picture)).to(device)
    if not confidence:
        return parts.inference.labels(parts.network, image, picture=picture, allowed=class_ids)
    probabilities = parts.inference.probabilities(parts.network, image, allowed=class_ids)
    found = parts.inference.decide(probabilities, picture=picture)
    sure = np.take_along_axis(probabilities.cpu().numpy(), found[None].astype(np.int64), axis=0)[0] >= confidence
    return np.where(sure, found, np.uint8(IGNORE))
