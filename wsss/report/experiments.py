"""What a store knows of an experiment: its last artifact, what that was made from, and the numbers of each step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from wsss.artifacts import Artifact, fingerprint
from wsss.differences import finished, read_manifest
from wsss.errors import CorruptArtifact
from wsss.pages import number
from wsss.pipeline import STAGES
from wsss.store.differences import merged
from wsss.store.layout import stage_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """A finished artifact and those below it.

    Attributes:
        artifact: the last one, for example a segmenter.
        chain: all that are finished by the name of their step, itself included: ``teacher`` is the first segmenter of a
            round of self-training.
        manifests: what each records.
        metrics: the numbers of each, fractions in [0, 1].
    """

    artifact: Artifact
    chain: Mapping[str, Artifact]
    manifests: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Any]]

    @property
    def stage(self) -> str:
        """The stage of the last artifact."""
        return self.artifact.stage

    @property
    def fingerprint(self) -> str:
        """That of the last artifact."""
        return self.artifact.fingerprint

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the last artifact records."""
        return self.manifests[self.stage]

    @property
    def name(self) -> str:
        """The experiment that made it."""
        return str(self.manifest.get("experiment", "?"))

    @property
    def data(self) -> Mapping[str, Any]:
        """What is recorded of the data."""
        found = self.manifest.get("data")
        return found if isinstance(found, Mapping) else {}

    @property
    def data_name(self) -> str:
        """Name of the data set."""
        return str(self.data.get("name", "?"))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes 1..C."""
        return tuple(self.data.get("classes", ()))

    @property
    def supervision(self) -> str:
        """What it was learnt or chosen with."""
        return str(self.manifest.get("supervision", ""))

    @property
    def created(self) -> str:
        """Day and minute in UTC; empty where it is not recorded."""
        return str(self.manifest.get("created", ""))[:16].replace("T", " ")

    @property
    def seconds(self) -> float | None:
        """Wall time of all its stages; None where none is recorded."""
        found = [number(manifest.get("wall_seconds")) for manifest in self.manifests.values()]
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) if known else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all its stages were made with, by dotted key, in the order of the pipeline."""
        # the last step stands first, and so before its teacher, which is of the same stage
        steps = sorted(self.manifests, key=lambda step: -list(STAGES).index(stage_of(step)))
        return merged(self.manifests[step] for step in steps)

    @property
    def true_masks(self) -> bool:
        """Whether it learnt from masks: a ceiling, and no weak supervision."""
        return self.settings.get("labels") == "ground_truth"

    def value(self, stage: str, key: str) -> float | None:
        """A number of a step; None where it was not measured."""
        return number(self.metrics.get(stage, {}).get(key))

    def ratio(self) -> float | None:
        """mIoU of the segmenter over that of the same one trained on true masks; None where one is not known."""
        own, full = self.value("segmenter", "miou"), self.value("segmenter", "ceiling")
        return None if own is None or not full else own / full


def read_experiment(artifact: Artifact) -> Experiment:
    """Read an artifact and all that it was made from, as far as that is still there.

    Raises:
        CorruptArtifact: a manifest or metrics cannot be read.
    """
    chain = {artifact.stage: artifact}
    manifests: dict[str, Mapping[str, Any]] = {}
    left = [artifact.stage]
    while left:
        step = left.pop(0)
        manifests[step] = read_manifest(chain[step])
        for need, digits in manifests[step].get("upstream", {}).items():
            below = Artifact(artifact.root, stage_of(need), digits)
            if need not in chain and below.complete:
                chain[need] = below
                left.append(need)
    return Experiment(artifact, chain, manifests, {step: found.metrics for step, found in chain.items()})


def read_experiments(root: Path, stage: str = "segmenter") -> list[Experiment]:
    """All finished artifacts of a stage, the newest first. What cannot be read is left out, and logged.

    Raises:
        MissingArtifact: there is no such folder.
    """
    found = []
    for artifact in finished(root, stage):
        try:
            found.append(read_experiment(artifact))
        except CorruptArtifact as error:
            log.warning("left out: %s", error)
    return sorted(with_ceilings(found), key=lambda one: one.created, reverse=True)


def with_ceilings(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The same with the mIoU of those among them that learnt from true masks and are else alike.

    A segmenter records the ceiling that was known when it was finished. Often it is measured later.
    """
    full = {_without_labels(one): one.value("segmenter", "miou") for one in experiments if one.true_masks}
    return [
        replace(one, metrics={**one.metrics, "segmenter": {**one.metrics["segmenter"], "ceiling": ceiling}})
        if not one.true_masks and (ceiling := full.get(_without_labels(one))) is not None
        else one
        for one in experiments
    ]


def _without_labels(one: Experiment) -> str:
    """What a segmenter shares with its ceiling: data, network, training and test."""
    config = {key: value for key, value in one.manifest.get("config", {}).items() if key != "labels"}
    return fingerprint({"data": one.data.get("sha256"), "config": config})


def same_data(experiments: Sequence[Experiment]) -> bool:
    """Whether all were made from and measured on the same images, tags and classes."""
    return len({str(one.data.get("sha256")) for one in experiments}) == 1


__all__ = ["Experiment", "read_experiment", "read_experiments", "same_data", "with_ceilings"]
