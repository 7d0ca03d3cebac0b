"""Where the numbers, curves, tables and pictures of a run go: CSV files, TensorBoard, Weights & Biases, all or nowhere.

One run per stage. Hydra builds each tracker as a partial, and the stage completes it:

    run = {"stage": "seeds", "experiment": "voc_layercam", "fingerprint": "53cbf2f250e9", "directory": path}
    with Trackers.build(factories, **run) as tracker:
        tracker.log_metrics({"miou": 0.412})

In distributed runs only rank 0 writes; on the others every call does nothing.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shlex
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable
from urllib.parse import urlsplit

import numpy as np
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger

from wsss.artifacts import Artifact
from wsss.console import is_main_process
from wsss.errors import ConfigError
from wsss.types import BACKGROUND, IGNORE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from wandb.sdk.wandb_run import Run

log = logging.getLogger(__name__)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """An image with masks to lay over it.

    Attributes:
        image: ``(H, W, 3)`` uint8, RGB.
        caption: the line below it, mostly the image's id.
        masks: name ("seeds", "ground truth") -> ``(H, W)`` uint8 labels.
        class_names: label -> name, for all masks; 0 ("background") and 255 ("ignored") may be left out.
    """

    image: np.ndarray
    caption: str = ""
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    class_names: Mapping[int, str] = field(default_factory=dict)


@runtime_checkable
class Tracker(Protocol):
    """What a stage can tell about itself. Use it as a context manager: it finishes the run whatever happens."""

    @property
    def lightning_loggers(self) -> list[Logger]:
        """Loggers for ``pl.Trainer(logger=...)``, so that learning curves land in the same run."""
        ...

    @property
    def takes_images(self) -> bool:
        """Whether it keeps images: what only serves to show them need not be made for one that does not."""
        ...

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the resolved configuration (plain values, no OmegaConf)."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers: a point of a learning curve, or final numbers if there is no step."""

    def log_curve(self, name: str, points: Points, x_label: str, y_label: str) -> None:
        """Record a curve that is not over time, such as mIoU over the threshold."""

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Record a table, such as IoU per class. A cell is text, a number, None, or an image ``(H, W, 3)`` uint8."""

    def log_images(self, name: str, pictures: Sequence[Picture]) -> None:
        """Record images with their masks."""

    def log_input(self, artifact: Artifact) -> None:
        """Record that the run reads a finished artifact."""

    def log_output(self, artifact: Artifact) -> None:
        """Record that the run has made ``artifact``, which is finished now."""

    def finish(self, ok: bool) -> None:
        """Close the run, as done or as failed. Only the first call counts."""

    def __enter__(self) -> Self:
        """Return the tracker itself."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Finish, as failed if there is an exception."""


class _Finishes:
    """The context manager that all trackers share."""

    def finish(self, ok: bool) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.finish(ok=error is None)


class TrackerFactory(Protocol):
    """What Hydra's ``_partial_: true`` gives: a tracker class with its own options already set."""

    def __call__(self, *, stage: str, experiment: str, fingerprint: str, directory: Path) -> Tracker:
        """Open the run of one stage; ``directory`` is where its files go."""
        ...


class Trackers(_Finishes):
    """Several trackers as one; with none of them, a tracker that does nothing."""

    def __init__(self, trackers: Iterable[Tracker] = ()) -> None:
        self._trackers = list(trackers)

    @classmethod
    def build(
        cls, factories: Iterable[TrackerFactory], *, stage: str, experiment: str, fingerprint: str, directory: Path
    ) -> Trackers:
        """Open every tracker; if one cannot be opened, those before it are closed as failed."""
        opened = cls()
        try:
            for factory in factories:
                opened._trackers.append(
                    factory(stage=stage, experiment=experiment, fingerprint=fingerprint, directory=directory)
                )
        except BaseException:
            opened.finish(ok=False)
            raise
        return opened

    @property
    def lightning_loggers(self) -> list[Logger]:
        """The loggers of all trackers."""
        return [logger for tracker in self._trackers for logger in tracker.lightning_loggers]

    @property
    def takes_images(self) -> bool:
        """Whether any of them does."""
        return any(tracker.takes_images for tracker in self._trackers)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Pass the configuration on."""
        self._tell(lambda tracker: tracker.log_config(config))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass the numbers on."""
        self._tell(lambda tracker: tracker.log_metrics(metrics, step))

    def log_curve(self, name: str, points: Points, x_label: str, y_label: str) -> None:
        """Pass the curve on."""
        self._tell(lambda tracker: tracker.log_curve(name, points, x_label, y_label))

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Pass the table on."""
        rows = list(rows)
        self._tell(lambda tracker: tracker.log_table(name, columns, rows))

    def log_images(self, name: str, pictures: Sequence[Picture]) -> None:
        """Pass the images on."""
        self._tell(lambda tracker: tracker.log_images(name, pictures))

    def log_input(self, artifact: Artifact) -> None:
        """Pass the artifact on."""
        self._tell(lambda tracker: tracker.log_input(artifact))

    def log_output(self, artifact: Artifact) -> None:
        """Pass the artifact on."""
        self._tell(lambda tracker: tracker.log_output(artifact))

    def _tell(self, message: Callable[[Tracker], None]) -> None:
        """Tell every tracker. One that cannot write is reported: it must not cost the user the work of the stage."""
        for tracker in self._trackers:
            try:
                message(tracker)
            except Exception as error:  # disks, networks and W&B itself fail in many ways
                log.warning("%s could not record: %r", type(tracker).__name__, error)

    def finish(self, ok: bool) -> None:
        """Close them all, also if one of them fails to close; then the first error is raised."""
        errors = [error for tracker in self._trackers if (error := _try_finish(tracker, ok)) is not None]
        if errors:
            raise errors[0]


def _try_finish(tracker: Tracker, ok: bool) -> Exception | None:
    try:
        tracker.finish(ok)
    except Exception as error:
        return error
    return None


def name_of(artifact: Artifact) -> str:
    """The name of an artifact wherever it is shown: the same science has the same one, whichever experiment made it."""
    return f"{artifact.stage}-{artifact.fingerprint}"


def facts_of(artifact: Artifact) -> dict[str, Any]:
    """What dashboards say of an artifact: where it lies, how it was made, and its final numbers."""
    manifest = artifact.manifest
    told = ("experiment", "seed", "supervision", "upstream", "command", "created", "wall_seconds", "git_commit")
    return {
        "fingerprint": artifact.fingerprint,
        "host": socket.gethostname(),
        "directory": str(artifact.directory.absolute()),
        **{key: manifest[key] for key in told if key in manifest},
        "metrics": {key: value for key, value in artifact.metrics.items() if isinstance(value, (int, float))},
    }


class NullTracker(Trackers):
    """A tracker that does nothing, with the arguments of the others."""

    def __init__(self, *, stage: str = "", experiment: str = "", fingerprint: str = "", directory: Path | None = None):
        super().__init__()


# --- CSV --------------------------------------------------------------------------------------------------------------


class CsvTracker(_Finishes):
    """Plain files in ``directory``, written with the standard library alone.

    - ``metrics.csv``: the learning curves, one number a line (``step,name,value``), appended as they come. What is
      told twice at one step, as Lightning does of the epoch, is one line. A resumed run goes on in the same file;
      where a step occurs twice, the later line holds.
    - ``<name>.csv``: each table and each curve that is not over time.
    - ``summary.json``: stage, experiment, fingerprint, configuration, final numbers, the artifacts that were read and
      made (name and directory), and whether the run went well.

    Images are left to the report and to other trackers, those in tables too.
    """

    def __init__(self, *, stage: str, experiment: str, fingerprint: str, directory: Path) -> None:
        self._directory = Path(directory)
        self._active = is_main_process()
        self._last: dict[str, tuple[int, float]] = {}
        self._summary: dict[str, Any] = {
            "stage": stage,
            "experiment": experiment,
            "fingerprint": fingerprint,
            "ok": None,
            "metrics": {},
            "config": {},
            "inputs": {},
            "outputs": {},
        }

    @property
    def lightning_loggers(self) -> list[Logger]:
        """One logger that passes Lightning's numbers to :meth:`log_metrics`."""
        return [_ForwardingLogger(self, name="csv", save_dir=self._directory)]

    @property
    def takes_images(self) -> bool:
        """No."""
        return False

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Put the configuration into summary.json."""
        self._summary["config"] = dict(config)
        self._write_summary()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append to metrics.csv; without a step, put the numbers into summary.json."""
        numbers = {name: float(value) for name, value in metrics.items()}
        if step is None:  # JSON knows no NaN
            self._summary["metrics"].update({k: v if math.isfinite(v) else None for k, v in numbers.items()})
            self._write_summary()
        else:
            new = {name: (step, value) for name, value in numbers.items() if self._last.get(name) != (step, value)}
            self._last |= new
            self._append([(at, name, value) for name, (at, value) in new.items()])

    def log_curve(self, name: str, points: Points, x_label: str, y_label: str) -> None:
        """Write ``<name>.csv`` with the two labels as its head."""
        self.log_table(name, (x_label, y_label), points)

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write ``<name>.csv``, without columns of images."""
        if self._active:
            columns, rows, _ = _without_images(columns, rows)
            with _replacing(self._file(name)) as path, path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([columns, *rows])

    def log_images(self, name: str, pictures: Sequence[Picture]) -> None:
        """Do nothing."""

    def log_input(self, artifact: Artifact) -> None:
        """Put it into summary.json."""
        self._summary["inputs"][name_of(artifact)] = str(artifact.directory.absolute())
        self._write_summary()

    def log_output(self, artifact: Artifact) -> None:
        """Put it into summary.json."""
        self._summary["outputs"][name_of(artifact)] = str(artifact.directory.absolute())
        self._write_summary()

    def finish(self, ok: bool) -> None:
        """Write down how it ended."""
        if self._summary["ok"] is None:
            self._summary["ok"] = ok
            self._write_summary()

    def _file(self, name: str) -> Path:
        stem = name.replace("/", "_").replace(" ", "_")
        if stem == "metrics":
            raise ValueError("a table named 'metrics' would overwrite the learning curves in metrics.csv")
        return self._directory / f"{stem}.csv"

    def _append(self, lines: list[tuple[int, str, float]]) -> None:
        if not self._active or not lines:
            return
        path = self._directory / "metrics.csv"
        self._directory.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("step", "name", "value"), *lines] if is_new else lines)

    def _write_summary(self) -> None:
        if self._active:
            with _replacing(self._directory / "summary.json") as path:
                path.write_text(json.dumps(self._summary, indent=2, default=str) + "\n", encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _without_images(
    columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> tuple[list[str], list[list[Any]], list[list[np.ndarray]]]:
    """A table without its columns of images, and the images of each row."""
    rows = [list(row) for row in rows]
    images = [[cell for cell in row if isinstance(cell, np.ndarray)] for row in rows]
    kept = [at for at in range(len(columns)) if not any(isinstance(row[at], np.ndarray) for row in rows)]
    return [columns[at] for at in kept], [[row[at] for at in kept] for row in rows], images


class _ForwardingLogger(Logger):
    """A Lightning logger that hands its numbers to a tracker."""

    def __init__(self, tracker: Tracker, *, name: str, save_dir: Path) -> None:
        super().__init__()
        self._tracker, self._name, self._save_dir = tracker, name, save_dir

    @property
    def name(self) -> str:
        """The name under which Lightning would group files."""
        return self._name

    @property
    def version(self) -> str:
        """No versions: one directory is one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """Where Lightning may put files that have no other place."""
        return str(self._save_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass the numbers on."""
        self._tracker.log_metrics(metrics, step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the stage records the whole configuration."""


# --- TensorBoard ------------------------------------------------------------------------------------------------------


class TensorBoardTracker(_Finishes):
    """TensorBoard's event files in ``directory/tensorboard``: ``tensorboard --logdir logs`` shows them by experiment.

    - Scalars: the learning curves over the optimizer steps; final numbers, which have no step, at step 0.
    - Curves that are not over time are scalars too, ``<name>/<y_label>``, so that those of several runs lie in one
      chart: TensorBoard's steps are whole numbers, and stand for thousandths of x. The text has x as it is.
    - Text: run, configuration, tables, and the artifacts that were read and made.
    - Images: each beside itself under its masks, in the colours of the report. Images in a table: one sheet for all
      rows that begin with the same cell, under what else the row says.

    A resumed run goes on in the same directory.
    """

    def __init__(self, *, stage: str, experiment: str, fingerprint: str, directory: Path) -> None:
        self._directory = Path(directory)
        self._writer: SummaryWriter | None = None
        if not is_main_process():
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory / "tensorboard"))
        run = {"stage": stage, "experiment": experiment, "fingerprint": fingerprint}
        self._writer.add_text("run", _markdown(("", ""), run.items()))

    @property
    def lightning_loggers(self) -> list[Logger]:
        """One logger that passes Lightning's numbers to :meth:`log_metrics`."""
        return [_ForwardingLogger(self, name="tensorboard", save_dir=self._directory)]

    @property
    def takes_images(self) -> bool:
        """Yes, unless this process records nothing."""
        return self._writer is not None

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration as YAML."""
        if self._writer is not None:
            lines = OmegaConf.to_yaml(OmegaConf.create(dict(config))).splitlines()
            self._writer.add_text("config", "\n".join(f"    {line}" for line in lines))  # indented: code in Markdown

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars."""
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, float(value), step or 0)

    def log_curve(self, name: str, points: Points, x_label: str, y_label: str) -> None:
        """Write a scalar per point, at the step ``1000 * x``, and all of them as a table."""
        if self._writer is not None:
            for x, y in points:
                if y is not None:
                    self._writer.add_scalar(f"{name}/{y_label}", float(y), round(1000 * x))
            self._writer.add_text(name, _markdown((x_label, y_label), points))

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write the text of a table, and sheets of its images."""
        if self._writer is None:
            return
        from wsss.viz import Tile, panel

        columns, rows, images = _without_images(columns, rows)
        self._writer.add_text(name, _markdown(columns, rows))
        sheets: dict[str, list[Tile]] = {}
        for (first, *rest), found in zip(rows, images, strict=True):
            title = "  ".join(_text(cell) for cell in rest)
            sheets.setdefault(_text(first), []).extend(Tile(title, image) for image in found)
        for title, tiles in sheets.items():
            if tiles:
                self._add_image(f"{name}/{title}", panel(tiles, columns=4, tile_width=240, title=title))

    def log_images(self, name: str, pictures: Sequence[Picture]) -> None:
        """Write each image beside what its masks make of it."""
        from wsss.viz import Tile, overlay_labels, panel

        for at, picture in enumerate(pictures):
            masked = [Tile(mask, overlay_labels(picture.image, labels)) for mask, labels in picture.masks.items()]
            self._add_image(f"{name}/{picture.caption or at}", panel([Tile("image", picture.image), *masked]))

    def log_input(self, artifact: Artifact) -> None:
        """Write what is known of it."""
        self._describe("input", artifact)

    def log_output(self, artifact: Artifact) -> None:
        """Write what is known of it."""
        self._describe("output", artifact)

    def finish(self, ok: bool) -> None:
        """Write down how it ended, and close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.add_text("ended", "well" if ok else "failed")
            writer.close()

    def _describe(self, role: str, artifact: Artifact) -> None:
        if self._writer is not None:
            self._writer.add_text(f"{role}/{name_of(artifact)}", _markdown(("", ""), facts_of(artifact).items()))

    def _add_image(self, tag: str, image: np.ndarray) -> None:
        if self._writer is not None:
            self._writer.add_image(tag, image, dataformats="HWC")


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown.

    >>> print(_markdown(("class", "iou"), [("cat|dog", 0.51239), ("cow", None)]))
    | class | iou |
    | --- | --- |
    | cat\\|dog | 0.5124 |
    | cow |  |
    """
    lines = [columns, ["---"] * len(columns), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(cell: Any) -> str:
    if isinstance(cell, (float, np.floating)):
        return f"{cell:.4g}"
    return "" if cell is None else str(cell).replace("|", "\\|")


# --- Weights & Biases -------------------------------------------------------------------------------------------------

Mode = Literal["auto", "online", "offline", "disabled"]

_STEP = "trainer/global_step"
"""The x axis of learning curves; the name that Lightning's WandbLogger uses."""

_HEAD, _BLOCK = 7, 32768
"""Bytes of W&B's logs: of the head of the file and of each chunk, and of a block."""

_PROBE_SECONDS = 3.0
_READ_SECONDS = 60.0

_announced: set[str] = set()
"""What this process has said already of how its runs are recorded."""

_MODES = ("online", "offline", "disabled", "run", "dryrun")
"""What ``WANDB_MODE`` may say; the last two are W&B's older words for the first two."""


class WandbTracker(_Finishes):
    """One Weights & Biases run per stage: the group is the experiment, the job type is the stage.

    It never asks for a key and never waits without end. Without an API key, without a way to the server, or if the
    server does not answer in ``init_timeout`` seconds, the run is recorded offline in ``directory/wandb`` and one line
    says how to upload it and all others later. ``WANDB_MODE=offline`` and ``WANDB_MODE=disabled`` win over ``mode``.
    Where W&B cannot open a run at all, one warning says so, and nothing is recorded.

    Artifacts are references to the store, nothing of which is copied or uploaded: one for each file and folder of it,
    the small ones (JSON) with a checksum, so that a stage that is made anew is a new version. Their names are
    ``<stage>-<fingerprint>``, their metadata what the manifest says, and a run is tied to those it reads, so that W&B
    draws the way from the classifier to the segmenter, across experiments that share a part of it.

    A run that was interrupted goes on under the same id when the stage is resumed: the id is kept in
    ``directory/wandb_run_id`` until the run ends well. Steps that are recorded already, and that the stage repeats from
    its checkpoint, are not logged again. Offline, each part is a folder of its own, and ``wandb sync`` joins them,
    earlier parts first; a run whose earlier parts were not uploaded does not go on online, but begins anew there.

    Args:
        stage: the job type.
        experiment: the group.
        fingerprint: part of the run's name and of its configuration.
        directory: where W&B keeps its files.
        project: the W&B project.
        entity: the W&B user or team; None for the default of the account.
        name: the run's display name; None for ``<stage>-<fingerprint>``.
        tags: the run's tags.
        mode: "auto" goes online where that works; "online" leaves out the quick look at the network.
        init_timeout: seconds to wait for the server when the run is opened.
        finish_timeout: seconds to wait for uploads when it is closed; what is left can be uploaded with ``wandb sync``.

    Raises:
        ConfigError: ``mode`` or the environment variable ``WANDB_MODE`` is none of W&B's.
    """

    def __init__(
        self,
        *,
        stage: str,
        experiment: str,
        fingerprint: str,
        directory: Path,
        project: str = "wsss",
        entity: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        mode: Mode = "auto",
        init_timeout: float = 20.0,
        finish_timeout: float = 300.0,
    ) -> None:
        self._directory = Path(directory)
        self._has_steps, self._step = False, -1
        self._run: Run | None = None
        if not is_main_process():
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        options = {
            "project": project,
            "entity": entity,
            "group": experiment,
            "job_type": stage,
            "name": name or f"{stage}-{fingerprint}",
            "tags": list(tags),
            "dir": str(self._directory),
        }
        self._run = self._open(mode, options, init_timeout, finish_timeout)
        self.log_config({"stage": stage, "experiment": experiment, "fingerprint": fingerprint})

    @property
    def run(self) -> Run | None:
        """The W&B run; None on ranks other than 0, where W&B could open none, and once it is closed."""
        return self._run

    @property
    def lightning_loggers(self) -> list[Logger]:
        """One logger that passes Lightning's numbers to :meth:`log_metrics`."""
        return [_ForwardingLogger(self, name="wandb", save_dir=self._directory)]

    @property
    def takes_images(self) -> bool:
        """Yes, unless this process records nothing."""
        return self._run is not None and not self._run.disabled

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Add to the run's configuration."""
        if self._run is not None:
            self._run.config.update(dict(config), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, over the global step if there is one; not those of a step before the last one."""
        if self._run is None:
            return
        if step is None:
            self._run.log(dict(metrics))
        elif step >= self._step:
            self._define_steps()
            self._run.log({**metrics, _STEP: step})
            self._step = step

    def log_curve(self, name: str, points: Points, x_label: str, y_label: str) -> None:
        """Log a line plot."""
        if self._run is None:
            return
        import wandb

        data = wandb.Table(columns=[x_label, y_label], data=[list(point) for point in points])
        self._log_tables({name: wandb.plot.line(data, x_label, y_label, title=name)})

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Log a table."""
        if self._run is None:
            return
        import wandb

        data = [[wandb.Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row] for row in rows]
        self._log_tables({name: wandb.Table(columns=list(columns), data=data)})

    def log_images(self, name: str, pictures: Sequence[Picture]) -> None:
        """Log images with masks that can be switched on and off.

        W&B wants what is logged together at one size: smaller images get a border, which masks call ignored.
        """
        if self._run is not None and pictures:
            height, width = np.max([picture.image.shape[:2] for picture in pictures], axis=0)
            self._run.log({name: [_overlay(picture, height, width) for picture in pictures]})

    def log_input(self, artifact: Artifact) -> None:
        """Tie the run to an artifact that it reads, which is declared here if W&B does not know it yet.

        This is what W&B's ``use_artifact`` records of an artifact of one's own; that method itself refuses to work
        offline, and online it waits for the server without end.
        """
        if self._run is not None and not self._run.disabled:
            self._run._log_artifact(_reference(artifact), is_user_created=True, use_after_commit=True)

    def log_output(self, artifact: Artifact) -> None:
        """Declare the artifact that the run has made."""
        if self._run is not None and not self._run.disabled:
            self._run.log_artifact(_reference(artifact))

    def finish(self, ok: bool) -> None:
        """Close the run with exit code 0 or 1. W&B's own trouble with that is reported, and not raised."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=0 if ok else 1)
        except Exception as error:
            log.warning("W&B: the run was not closed properly (%s). Upload it with: wandb sync %s", error, _place(run))
        if ok:
            self._id_file.unlink(missing_ok=True)

    def _log_tables(self, row: dict[str, Any]) -> None:
        """Log what W&B copies before it uploads it: beside the run, for ``wandb sync``, and not in the user's home."""
        if self._run is not None:
            with _environment("WANDB_DATA_DIR", str(self._directory / "wandb" / "data")):
                self._run.log(row)

    @property
    def _id_file(self) -> Path:
        return self._directory / "wandb_run_id"

    def _unfinished(self, mode: str) -> str | None:
        """The id of the run that this one goes on with; None if there is none."""
        if not self._id_file.is_file():
            return None
        id = self._id_file.read_text(encoding="utf-8").strip()
        sent = [path.with_suffix(".wandb.synced").exists() for path in self._parts(id) if _is_offline(path)]
        if mode == "online" and not all(sent):
            return None  # sent later, those parts would come after this one and say how the run ended
        return id or None

    def _parts(self, id: str) -> list[Path]:
        return sorted(self._directory.glob(f"wandb/*run-*-{id}/run-{id}.wandb"))

    def _define_steps(self) -> None:
        """Make the global step the x axis of everything; only in runs that have steps."""
        if self._run is not None and not self._has_steps:
            self._run.define_metric(_STEP)
            self._run.define_metric("*", step_metric=_STEP, step_sync=True)
            self._has_steps = True

    def _open(self, mode: Mode, options: dict[str, Any], init_timeout: float, finish_timeout: float) -> Run | None:
        import wandb

        settings: dict[str, Any] = {"silent": True, "console": "off"}  # W&B's capture of stdout would keep every bar
        settings |= {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
        options = {**options, "reinit": "create_new"}  # do not touch a run that the caller may have open
        try:
            chosen, reason = choose_mode(mode)
        except ConfigError:
            raise
        except Exception as error:  # a variable or a file of settings that W&B does not take
            wandb.teardown()  # the next run would go on with the settings that it has read so far
            self._say_nothing_is_recorded(error)
            return None
        if chosen == "online":
            try:
                run = self._init(chosen, settings, options)
                log.info("W&B: %s", run.url)
                return run
            except Exception as error:  # whatever it is, it must not cost the user the work of this stage
                chosen, reason = "offline", f"the server did not accept the run: {_first_line(error)}"
        try:
            run = self._init(chosen, settings, options)
        except Exception as error:
            self._say_nothing_is_recorded(error)
            return None
        if chosen == "offline":
            _say_once(
                logging.INFO,
                "W&B: recording offline (%s). Upload all runs later, in their order, with: %s",
                reason,
                upload_command(self._directory.parent.parent),
            )
        return run

    @staticmethod
    def _say_nothing_is_recorded(error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines()[:3]]  # which setting stands in the second
        reason = " ".join(lines) or type(error).__name__
        _say_once(logging.WARNING, "W&B: nothing is recorded, for it could not open a run: %s", reason)

    def _init(
        self, mode: Literal["online", "offline", "disabled"], settings: dict[str, Any], options: dict[str, Any]
    ) -> Run:
        import wandb

        if mode == "disabled":
            return wandb.init(mode="disabled", settings=wandb.Settings(**settings), **options)
        id = self._unfinished(mode)
        parts = self._parts(id) if id else []
        for path in filter(_is_offline, parts):
            _drop_half_record(path)
        self._step = max(map(_last_step, parts), default=-1)
        # offline as well: `wandb sync` then asks the server how far the run is, and appends
        run = wandb.init(mode=mode, id=id, resume="allow", settings=wandb.Settings(**settings), **options)
        self._id_file.write_text(run.id + "\n", encoding="utf-8")
        return run


def choose_mode(mode: str) -> tuple[Literal["online", "offline", "disabled"], str]:
    """Decide whether a W&B run can be online.

    Args:
        mode: what is asked for: "auto", "online", "offline" or "disabled".

    Returns:
        The mode for ``wandb.init``, and why it is offline (empty if it is not).

    Raises:
        ConfigError: ``mode`` or ``WANDB_MODE`` is none of them.
    """
    import wandb

    if mode not in ("auto", "online", "offline", "disabled"):
        raise ConfigError(f"W&B mode {mode!r} is not known; choose one of: auto, online, offline, disabled.")
    asked = os.environ.get("WANDB_MODE", "")
    if asked and asked not in _MODES:
        raise ConfigError(f"WANDB_MODE={asked!r} is not known; unset it, or choose one of: {', '.join(_MODES)}.")
    if mode == "disabled":
        return "disabled", ""
    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    configured = asked or settings.mode  # the latter knows `wandb offline` as well
    if configured == "disabled":
        return "disabled", ""
    if configured in ("offline", "dryrun"):
        return "offline", "WANDB_MODE"
    if mode == "offline":
        return "offline", "as configured"
    if not _has_credentials():
        return "offline", "no API key; `wandb login` stores one"
    insists = mode == "online" or asked in ("online", "run")
    if not insists and not is_reachable(settings.base_url):
        return "offline", f"cannot reach {settings.base_url}"
    return "online", ""


@contextmanager
def _environment(name: str, default: str) -> Iterator[None]:
    """Set an environment variable for a while, unless the user has."""
    if name in os.environ:
        yield
        return
    os.environ[name] = default
    try:
        yield
    finally:
        del os.environ[name]


def _has_credentials() -> bool:
    """Whether W&B finds a key (environment, settings, netrc) or an identity token; it never asks."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception as error:  # of a key of the wrong form, of a server's address, of the file that holds them
        log.warning("W&B: %s", _first_line(error))
        return False


def is_reachable(url: str, seconds: float = _PROBE_SECONDS) -> bool:
    """Whether the host of ``url``, or the proxy configured for it, accepts a connection in time.

    The look-up of the name is bounded as well: it runs in a thread that is left behind if it takes too long.
    """
    address = _connect_address(url)
    answered = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection(address, timeout=seconds):
            answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _connect_address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    host, proxies = parts.hostname or "", urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(host):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def upload_command(logs: Path) -> str:
    """What uploads all offline runs below ``logs``, earlier ones first: an artifact is made before it is used.

    >>> print(upload_command(Path("/my logs")))
    (cd '/my logs' && for run in $(ls -dtr */*/wandb/offline-run-*); do wandb sync "$run"; done)
    """
    loop = 'for run in $(ls -dtr */*/wandb/offline-run-*); do wandb sync "$run"; done'
    return f"(cd {shlex.quote(str(logs.absolute()))} && {loop})"


def _say_once(level: int, message: str, *values: Any) -> None:
    """Say to the user once per process how its runs are recorded; for those that follow, it is a detail."""
    log.log(logging.DEBUG if message in _announced else level, message, *values)
    _announced.add(message)


def _is_offline(path: Path) -> bool:
    """Whether a run's log, in the folder that W&B gave it, was recorded offline."""
    return path.parent.name.startswith("offline-")


def _drop_half_record(path: Path) -> None:
    """Cut off what a killed process has left of the last record of its log.

    ``wandb sync`` never takes such a log for sent, and would send it again each time, behind the parts that came later.
    The format is LevelDB's: after 7 bytes blocks of 32 KiB, of chunks with a head of 7 bytes (checksum, length, kind).
    """
    with suppress(OSError):
        data = path.read_bytes()
        position = whole = _HEAD
        while data.startswith(b":W&B") and position + _HEAD <= len(data):
            left = _BLOCK - position % _BLOCK
            if left < _HEAD:
                position += left
                continue
            length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
            position += _HEAD + length
            if kind in (1, 4) and position <= len(data):  # a whole record, or the last part of one
                whole = position
        if _HEAD < whole < len(data):
            os.truncate(path, whole)


def _last_step(path: Path) -> int:
    """The last global step in a run's log, by W&B's own reader; -1 if there is none, or W&B has no such reader.

    A process that was killed has told W&B more than lies there.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(path)]
    environment = os.environ | {"WANDB_MODE": "offline"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_READ_SECONDS
        )
        return int(json.loads(done.stdout)["summary"][_STEP])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return -1


def _place(run: Run) -> Path:
    """Where the files of a run lie, which is what ``wandb sync`` takes."""
    return Path(run.dir).parent


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _reference(artifact: Artifact) -> Any:
    """A W&B artifact that points to the files and folders of one in the store. It takes no longer for more images."""
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
    from wandb.sdk.lib.hashutil import md5_string
    from wandb.sdk.lib.paths import LogicalPath

    found = wandb.Artifact(name_of(artifact), type=artifact.stage, metadata=facts_of(artifact))
    for path in sorted(artifact.directory.absolute().iterdir()):
        uri = path.as_uri()
        if path.is_dir():  # add_reference would list every file below
            entry = ArtifactManifestEntry(path=LogicalPath(path.name), ref=uri, digest=md5_string(uri))
            found.manifest.add_entry(entry)
        elif path != artifact.checkpoint.absolute():  # serves to resume, and may be deleted
            found.add_reference(uri, name=path.name, checksum=path.suffix == ".json")
    return found


def _overlay(picture: Picture, height: int, width: int) -> Any:
    import wandb

    def fill(array: np.ndarray, value: int) -> np.ndarray:
        border = [(0, height - array.shape[0]), (0, width - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
        return np.pad(array, border, constant_values=value)

    names = {BACKGROUND: "background", IGNORE: "ignored"} | {
        int(label): name for label, name in picture.class_names.items()
    }
    masks = {name: {"mask_data": fill(labels, IGNORE), "class_labels": names} for name, labels in picture.masks.items()}
    return wandb.Image(fill(picture.image, 255), caption=picture.caption or None, masks=masks or None)
