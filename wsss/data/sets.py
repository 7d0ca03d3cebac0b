"""Data sets that know where they come from."""

from __future__ import annotations

from pathlib import Path

from wsss.data.demo import render_demo
from wsss.data.voc import VocLayout


def demo_set(root: str | Path, *, name: str, seed: int, train_images: int, val_images: int, size: int) -> VocLayout:
    """The embedded demo set, rendered into ``root`` unless it is there. See ``render_demo``.

    Raises:
        DataError: ``root`` holds something else.
    """
    render_demo(Path(root), seed=seed, train=train_images, val=val_images, size=size)
    return VocLayout(root, name=name)
