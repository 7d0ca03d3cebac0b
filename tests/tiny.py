"""A pipeline that runs in a second: a generated set in the VOC layout, small networks, and ways to run the stages."""

from __future__ import annotations

import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from torch import Tensor, nn

from wsss.artifacts import Artifact
from wsss.cli import CONF
from wsss.config import register
from wsss.models import Classifier, SegmentationNetwork
from wsss.palette import voc_palette
from wsss.pipeline import Pipeline
from wsss.refine import Extras
from wsss.types import IGNORE

REPOSITORY = CONF.parent
STAGES = ("classifier", "seeds", "labels", "segmenter")
SCRIPTS = ("train.py", "generate_seeds.py", "refine.py", "train_seg.py")
ALL = "-m wsss"

# --- the set ----------------------------------------------------------------------------------------------------------

CLASSES = ("square", "disc", "wedge")
COLOURS = ((200, 40, 40), (40, 180, 60), (50, 70, 210))
TRAIN_TAGS: tuple[tuple[int, ...], ...] = ((1,), (2,), (3,), (1, 2), (), (2, 3), (1, 3), (1,))
VAL_TAGS: tuple[tuple[int, ...], ...] = ((1,), (2,), (3,), (1, 2))
TRAIN = tuple(f"train_{i}" for i in range(len(TRAIN_TAGS)))
VAL = tuple(f"val_{i}" for i in range(len(VAL_TAGS)))
UNTAGGED = TRAIN[TRAIN_TAGS.index(())]
WIDTH, HEIGHT = 64, 48


def write_set(root: Path) -> Path:
    """Draw the set: a coloured shape for each class, a border of ignored pixels around it, one upright image."""
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split, ids, tags in (("train", TRAIN, TRAIN_TAGS), ("val", VAL, VAL_TAGS)):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for index, (id, class_ids) in enumerate(zip(ids, tags, strict=True)):
            size = (HEIGHT, WIDTH) if id == TRAIN[1] else (WIDTH, HEIGHT)
            _write_image(root, id, class_ids, size, np.random.default_rng([len(split), index]))
    return root


def _write_image(
    root: Path, id: str, class_ids: Sequence[int], size: tuple[int, int], rng: np.random.Generator
) -> None:
    width, height = size
    noise = rng.integers(90, 150, (height, width, 3), dtype=np.uint8)
    picture, mask = Image.fromarray(noise), Image.new("L", size)
    for slot, class_id in enumerate(class_ids):
        side = int(rng.integers(16, 22))
        x = int(rng.integers(2, width // 2 - side)) + slot * width // 2
        y = int(rng.integers(2, height - side - 2))
        _draw(ImageDraw.Draw(picture), class_id, (x, y, x + side, y + side), COLOURS[class_id - 1])
        _draw(ImageDraw.Draw(mask), class_id, (x, y, x + side, y + side), class_id, outline=IGNORE)
    mask.putpalette(voc_palette().tobytes())
    picture.save(root / "JPEGImages" / f"{id}.jpg", quality=95)
    mask.save(root / "SegmentationClass" / f"{id}.png")
    objects = "".join(f"<object><name>{CLASSES[class_id - 1]}</name></object>" for class_id in class_ids)
    (root / "Annotations" / f"{id}.xml").write_text(f"<annotation>{objects}</annotation>")


def _draw(
    pen: ImageDraw.ImageDraw, class_id: int, box: tuple[int, int, int, int], fill: Any, outline: Any = None
) -> None:
    if class_id == 1:
        pen.rectangle(box, fill=fill, outline=outline)
    elif class_id == 2:
        pen.ellipse(box, fill=fill, outline=outline)
    else:
        left, top, right, bottom = box
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=fill, outline=outline)


# --- networks ---------------------------------------------------------------------------------------------------------


def pause() -> None:
    """Wait for TINY_PAUSE seconds, so that a test can meet a process in the middle of its work."""
    time.sleep(float(os.environ.get("TINY_PAUSE", 0)))


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class TinyClassifier(Classifier):
    """Five small stages with batch norm (buffers to restore) and dropout (random numbers to repeat)."""

    def __init__(
        self,
        *,
        num_classes: int,
        encoder: str = "",
        weights: str | None = None,
        output_stride: int = 32,
        **options: Any,
    ) -> None:
        widths = (3, 8, 8, 12, 12, 16)
        blocks = [_block(a, b, 1 + (i in (0, 1, 2))) for i, (a, b) in enumerate(pairwise(widths))]
        super().__init__(
            nn.Sequential(*blocks, nn.Dropout2d(0.2)),
            features=widths[-1],
            num_classes=num_classes,
            stages={stage: str(stage - 1) for stage in range(1, 6)},
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            **options,
        )

    def features(self, images: Tensor) -> Tensor:
        pause()
        return super().features(images)


class TinySegmenter(SegmentationNetwork):
    """A full-resolution network of three layers."""

    step = 1

    def __init__(
        self, *, num_labels: int, architecture: str = "", encoder: str = "", weights: str | None = None
    ) -> None:
        super().__init__(mean=(0.5,) * 3, std=(1.0,) * 3)
        self.trunk = nn.Sequential(_block(3, 8, 1), _block(8, 8, 1), nn.Dropout2d(0.2))
        self.head = nn.Conv2d(8, num_labels, kernel_size=1)

    @property
    def encoder(self) -> nn.Module:
        return self.trunk

    def dense(self, normalised: Tensor) -> Tensor:
        pause()
        return self.head(self.trunk(normalised))


class Pause:
    """A smoothing step of a refiner that changes nothing."""

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        pause()
        return scores


class Deadly:
    """A smoothing step that ends its process at upright images, as a system short of memory would."""

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        if image.shape[0] > image.shape[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return scores


NETWORKS = (
    "classifier=timm",
    "classifier._target_=tiny.TinyClassifier",
    "classifier.weights=null",
    "segmenter=deeplabv3plus",
    "segmenter._target_=tiny.TinySegmenter",
    "segmenter.weights=null",
)
RECIPE = (
    "data=voc_layout",
    "cam=layercam",
    "refiner=none",
    *(
        f"recipe.{network}.{setting}"
        for network in ("classifier", "segmenter")
        for setting in ("epochs=2", "batch_size=2", "augment.size=32", "validate_every=1")
    ),
    "seeds.scales=[1.0]",
    "evaluation.scales=[1.0]",
    "trainer=cpu",
    "workers=0",
    "logger=none",
)


EXPERIMENT = "own_voc_layout"
REAL = (
    f"+experiment={EXPERIMENT}",
    "classifier=efficientnet_lite0",
    "segmenter=deeplabv3plus",
    *(
        f"recipe.{network}.{setting}"
        for network in ("classifier", "segmenter")
        for setting in ("epochs=1", "batch_size=4", "augment.size=64")
    ),
    "seeds.scales=[1.0,0.5]",
    "trainer=cpu",
    "workers=0",
    "logger=csv",
)
"""The networks of the demo and their bundled weights, as short as can be."""


def paths(root: Path, base: Path) -> tuple[str, ...]:
    """The overrides that read the set at ``root`` and write everything below ``base``."""
    return (f"data.root={root}", f"paths.artifacts={base}/artifacts", f"paths.logs={base}/logs")


def command(root: Path, base: Path, *overrides: str) -> tuple[str, ...]:
    """All that a script needs to run the tiny pipeline."""
    return (*NETWORKS, *RECIPE, *paths(root, base), *overrides)


# --- running ----------------------------------------------------------------------------------------------------------


def composed(*overrides: str) -> DictConfig:
    """The configuration that the scripts would see."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


_composed = cache(composed)


def pipeline(root: Path, base: Path, *overrides: str) -> Pipeline:
    """The tiny pipeline in this process, as ``command`` would make it.

    Composition takes a tenth of a second: options are composed, once for each choice of them, and values set later.
    """
    choices = tuple(item for item in overrides if item[0] == "+" or (CONF / item.partition("=")[0]).is_dir())
    config = _composed(*NETWORKS, *RECIPE, *choices).copy()
    config.merge_with_dotlist([*paths(root, base), *(item for item in overrides if item not in choices)])
    return Pipeline(config, overrides=command(root, base, *overrides))


def call(script: str, *arguments: str) -> tuple[int, str]:
    """Run a script, or ``-m wsss``, in this process: exit code and everything it printed. Far faster than a process."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output), contained():
        patch.setattr(sys, "argv", [script, *arguments])
        patch.setenv("COLUMNS", "200")
        try:
            if script == ALL:
                runpy.run_module("wsss", run_name="__main__")
            else:
                runpy.run_path(str(REPOSITORY / script), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, output.getvalue()


def files(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of each file below ``directory``: equal where nothing was written."""
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def results(artifact: Artifact) -> dict[str, bytes]:
    """The bytes of every file that a stage made, but for the manifest (times) and the checkpoint (the way there)."""
    return {
        str(path.relative_to(artifact.directory)): path.read_bytes()
        for path in sorted(artifact.directory.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "last.ckpt")
    }


def runner(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command in this process: exit code, and what it printed on both streams, which is no traceback."""

    def call(*arguments: object) -> tuple[int, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out + captured.err

    return call


def adopt(pipeline: Pipeline, other: Pipeline, *stages: str) -> None:
    """Copy finished artifacts of another store into that of ``pipeline``, as if its stages had been run."""
    for stage in stages:
        shutil.copytree(other.artifact(stage).directory, pipeline.artifact(stage).directory)


def _heed() -> None:
    """A background job of a shell ignores interrupts, one of nohup the end of the terminal; so would its children."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python with ``command`` in the repository; the networks of this module can be imported there."""
    variables = (
        os.environ | {"PYTHONPATH": f"{Path(__file__).parent}", "COLUMNS": "200", "OMP_NUM_THREADS": "1"} | environment
    )
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_heed,
    )


def execute(*command: str, **environment: str) -> tuple[int, str]:
    """Run Python with ``command`` to its end: exit code and everything it printed."""
    process = start(*command, **environment)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, output


def wait_for(condition: Any, process: subprocess.Popen[str], *, seconds: float = 120) -> None:
    """Return as soon as ``condition()`` holds; fail where the process ends before, or time runs out."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@contextmanager
def contained() -> Iterator[None]:
    """One thread, which is fastest for networks this small; what Lightning sets for the whole process is undone."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
