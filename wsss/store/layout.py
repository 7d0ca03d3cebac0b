"""What lies where in a store: the files of a stage, the folders beside the stages, and what is made from what."""

from __future__ import annotations

import itertools

from wsss.pipeline import LEARNT_FROM, STAGES, TEACHER
from wsss.stages.segmenter import PREDICTIONS

RESULT = "segmenter"
"""The stage whose artifacts are results: that nothing is made of them does not make them unused."""

OLD = ".old"
CACHES = ("superpixels", "decoded")
FOLDERS = (*CACHES, "report", "compare")
"""What lies in a store beside the stages."""

FILES = {
    "classifier": ("weights",),
    "seeds": ("maps",),
    "threshold": (),
    "affinity": ("weights", "masks", "boundaries"),
    "labels": ("masks",),
    "relabels": ("masks",),
    "segmenter": ("weights", PREDICTIONS),
}
"""What a finished artifact of each stage holds beside its manifest and metrics: folders with a file for each image."""

SUFFIXES = {"maps": ".npz", "masks": ".png", "boundaries": ".npz", PREDICTIONS: ".png"}

OURS = {
    *SUFFIXES,
    "last.ckpt",
    "manifest.json",
    "metrics.json",
    "per_image.json",
    "weights.safetensors",
    "prototypes.safetensors",
    "seconds.txt",
}
"""Every name that a stage writes."""

Key = tuple[str, str]
"""Stage and name of a directory."""


def stage_of(need: str) -> str:
    """The stage of what a manifest names: the teacher is a segmenter."""
    return RESULT if need == TEACHER else need


def needs_of(stage: str) -> set[str]:
    """The stages that an artifact of ``stage`` can be made from directly."""
    needs = itertools.chain(*LEARNT_FROM.values()) if stage == RESULT else STAGES[stage].needs
    return {stage_of(need) for need in needs}


def earlier_than(stage: str) -> set[str]:
    """The stages that an artifact of ``stage`` can be made from, directly or through others."""
    found: set[str] = set()
    left = [stage]
    while left:
        new = needs_of(left.pop()) - found
        found |= new
        left += new
    return found
