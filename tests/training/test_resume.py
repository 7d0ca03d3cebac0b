"""Each training, as its stage runs it, is killed in the middle of an epoch and goes on to the same bytes."""

import warnings
from typing import Any

import pytest
import tiny
from conftest import MakePipeline

from wsss.pipeline import Pipeline
from wsss.training.affinity import AffinityShell
from wsss.training.shells import ClassifierShell, SegmenterShell

WALK = (
    "refiner=random_walk",
    "refiner.smoothing.0.steps=8",
    "recipe.affinity.epochs=2",
    "recipe.affinity.batch_size=2",
    "recipe.affinity.augment.size=32",
    "affinity.network.stages=[1,2]",
    "affinity.network.channels=8",
    "threshold.background=0.6",
)
STEPS = len(tiny.TRAIN) // 2  # per epoch, at batch size 2


class Killed(BaseException):
    """Stands for the end of the process."""


def counted(shell: type, steps: list[int], *, kill: int | None) -> Any:
    """The training step of ``shell``, which counts and ends the run at its call ``kill``."""
    step = shell.training_step

    def training_step(*arguments: Any) -> Any:
        steps.append(len(steps))
        if len(steps) == kill:
            raise Killed
        return step(*arguments)

    return training_step


@pytest.mark.parametrize(
    ("stage", "shell", "overrides"),
    [
        ("classifier", ClassifierShell, ()),
        ("affinity", AffinityShell, WALK),
        ("segmenter", SegmenterShell, ()),
        ("segmenter", SegmenterShell, ("recipe.segmenter.accumulate=2", "recipe.segmenter.keep=best_val")),
        ("segmenter", SegmenterShell, ("recipe.segmenter.epochs=null", "recipe.segmenter.iterations=7")),
    ],
)
def test_a_training_killed_within_an_epoch_goes_on_to_the_same_bytes(
    stage: str,
    shell: type,
    overrides: tuple[str, ...],
    finished: Pipeline,
    tiny_pipeline: MakePipeline,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pipeline(base: str) -> Pipeline:
        made = tiny_pipeline(*overrides, "trainer.checkpoint_every=1", base=tmp_path / base)
        tiny.adopt(made, finished, *(name for name in made.order(stage)[:-1] if name in tiny.STAGES))
        return made

    expected = pipeline("whole").make(stage)
    accumulate = 2 if "recipe.segmenter.accumulate=2" in overrides else 1
    killed = pipeline("killed")
    with monkeypatch.context() as patch:
        patch.setattr(shell, "training_step", counted(shell, [], kill=STEPS + 3))
        with pytest.raises(Killed):
            killed.make(stage)

    steps: list[int] = []
    monkeypatch.setattr(shell, "training_step", counted(shell, steps, kill=None))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="You're resuming from a checkpoint that ended before the epoch")
        resumed = tiny_pipeline(*overrides, "trainer.checkpoint_every=1", base=tmp_path / "killed").make(stage)
    total = 7 if "recipe.segmenter.iterations=7" in overrides else 2 * STEPS
    assert len(steps) == total - (STEPS + 2) // accumulate * accumulate
    assert tiny.results(resumed) == tiny.results(expected)


def test_checkpoints_move_no_number(finished: Pipeline, tiny_pipeline: MakePipeline) -> None:
    pipeline = tiny_pipeline("trainer.checkpoint_every=1", "trainer.channels_last=true")
    artifact = pipeline.make("classifier")
    assert artifact.fingerprint == finished.artifact("classifier").fingerprint
    assert tiny.results(artifact) == tiny.results(finished.artifact("classifier"))


def test_how_it_computes_is_not_fingerprinted(tiny_pipeline: MakePipeline) -> None:
    for override in ("trainer.compile=true", "trainer.channels_last=false", "trainer.checkpoint_every=null"):
        assert tiny_pipeline(override).fingerprint("segmenter") == tiny_pipeline().fingerprint("segmenter")
