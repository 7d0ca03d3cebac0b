"""Where the numbers, curves, tables and pictures of a run go: CSV files, Weights & Biases, both or nowhere.

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
import socket
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
from pytorch_lightning.loggers import Logger, WandbLogger

from wsss.console import is_main_process
from wsss.errors import ConfigError
from wsss.types import BACKGROUND, IGNORE

if TYPE_CHECKING:
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

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the resolved configuration (plain values, no OmegaConf)."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers: a point of a learning curve, or final numbers if there is no step."""

    def log_curve(self, name: str, points: Points, x_label: str, y_label: str) -> None:
        """Record a curve that is not over time, such as mIoU over the threshold."""

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Record a table, such as IoU per class."""

    def log_images(self, name: str, pictures: Sequence[Picture]) -> None:
        """Record images with their masks."""

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


class NullTracker(Trackers):
    """A tracker that does nothing, with the arguments of the others."""

    def __init__(self, *, stage: str = "", experiment: str = "", fingerprint: str = "", directory: Path | None = None):
        super().__init__()


# --- CSV --------------------------------------------------------------------------------------------------------------


class CsvTracker(_Finishes):
    """Plain files in ``directory``, written with the standard library alone.

    - ``metrics.csv``: the learning curves, one number a line (``step,name,value``), appended as they come. A resumed
      run goes on in the same file; where a step occurs twice, the later line holds.
    - ``<name>.csv``: each table and each curve that is not over time.
    - ``summary.json``: stage, experiment, fingerprint, configuration, final numbers, and whether the run went well.

    Images are left to the report and to other trackers.
    """

    def __init__(self, *, stage: str, experiment: str, fingerprint: str, directory: Path) -> None:
        self._directory = Path(directory)
        self._active = is_main_process()
        self._summary: dict[str, Any] = {
            "stage": stage,
            "experiment": experiment,
            "fingerprint": fingerprint,
            "ok": None,
            "metrics": {},
            "config": {},
        }

    @property
    def lightning_loggers(self) -> list[Logger]:
        """One logger that passes Lightning's numbers to :meth:`log_metrics`."""
        return [_ForwardingLogger(self, save_dir=self._directory)]

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
            self._append([(step, name, value) for name, value in numbers.items()])

    def log_curve(self, name: str, points: Points, x_label: str, y_label: str) -> None:
        """Write ``<name>.csv`` with the two labels as its head."""
        self.log_table(name, (x_label, y_label), points)

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write ``<name>.csv``."""
        if self._active:
            with _replacing(self._file(name)) as path, path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([columns, *rows])

    def log_images(self, name: str, pictures: Sequence[Picture]) -> None:
        """Do nothing."""

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
        if not self._active:
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


class _ForwardingLogger(Logger):
    """A Lightning logger that hands its numbers to a tracker."""

    def __init__(self, tracker: CsvTracker, save_dir: Path) -> None:
        super().__init__()
        self._tracker = tracker
        self._save_dir = save_dir

    @property
    def name(self) -> str:
        """The name under which Lightning would group files."""
        return "csv"

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


# --- Weights & Biases -------------------------------------------------------------------------------------------------

Mode = Literal["auto", "online", "offline", "disabled"]

_STEP = "trainer/global_step"
"""The x axis of learning curves; the name that Lightning's WandbLogger uses."""

_PROBE_SECONDS = 3.0

_announced = False
"""Whether this process has said already that runs are recorded offline."""


class WandbTracker(_Finishes):
    """One Weights & Biases run per stage: the group is the experiment, the job type is the stage.

    It never asks for a key and never waits without end. Without an API key, without a way to the server, or if the
    server does not answer in ``init_timeout`` seconds, the run is recorded offline in ``directory/wandb`` and one line
    says how to upload it later. ``WANDB_MODE=offline`` and ``WANDB_MODE=disabled`` win over ``mode``.

    An online run that was interrupted goes on under the same id when the stage is resumed: the id is kept in
    ``directory/wandb_run_id`` until the run ends well.

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
        self._project = project
        self._has_steps = False
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
        self._run.config.update({"stage": stage, "experiment": experiment, "fingerprint": fingerprint})

    @property
    def run(self) -> Run | None:
        """The W&B run; None on ranks other than 0, and once it is closed."""
        return self._run

    @property
    def lightning_loggers(self) -> list[Logger]:
        """Lightning's own W&B logger, on this run. Ranks other than 0 get one that writes nothing."""
        self._define_steps()
        return [WandbLogger(experiment=self._run, project=self._project, save_dir=str(self._directory))]

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Add to the run's configuration."""
        if self._run is not None:
            self._run.config.update(dict(config), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, over the global step if there is one."""
        if self._run is None:
            return
        if step is None:
            self._run.log(dict(metrics))
        else:
            self._define_steps()
            self._run.log({**metrics, _STEP: step})

    def log_curve(self, name: str, points: Points, x_label: str, y_label: str) -> None:
        """Log a line plot."""
        if self._run is None:
            return
        import wandb

        data = wandb.Table(columns=[x_label, y_label], data=[list(point) for point in points])
        self._run.log({name: wandb.plot.line(data, x_label, y_label, title=name)})

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Log a table."""
        if self._run is None:
            return
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def log_images(self, name: str, pictures: Sequence[Picture]) -> None:
        """Log images with masks that can be switched on and off."""
        if self._run is not None and pictures:
            self._run.log({name: [_overlay(picture) for picture in pictures]})

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

    @property
    def _id_file(self) -> Path:
        return self._directory / "wandb_run_id"

    def _define_steps(self) -> None:
        """Make the global step the x axis of everything; only in runs that have steps."""
        if self._run is not None and not self._has_steps:
            self._run.define_metric(_STEP)
            self._run.define_metric("*", step_metric=_STEP, step_sync=True)
            self._has_steps = True

    def _open(self, mode: Mode, options: dict[str, Any], init_timeout: float, finish_timeout: float) -> Run:
        import wandb

        settings: dict[str, Any] = {"silent": True, "console": "off"}  # W&B's capture of stdout would keep every bar
        settings |= {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
        options = {**options, "reinit": "create_new"}  # do not touch a run that the caller may have open
        chosen, reason = choose_mode(mode)
        if chosen == "online":
            try:
                return self._open_online(wandb.Settings(**settings), options)
            except Exception as error:  # whatever it is, it must not cost the user the work of this stage
                self._id_file.unlink(missing_ok=True)
                chosen, reason = "offline", f"the server did not accept the run: {_first_line(error)}"
        run = wandb.init(mode=chosen, settings=wandb.Settings(**settings), **options)
        if chosen == "offline":
            _announce_offline(run, reason)
        return run

    def _open_online(self, settings: Any, options: dict[str, Any]) -> Run:
        import wandb

        earlier = self._id_file.read_text(encoding="utf-8").strip() if self._id_file.exists() else None
        run = wandb.init(mode="online", id=earlier, resume="allow", settings=settings, **options)
        self._id_file.write_text(run.id + "\n", encoding="utf-8")
        log.info("W&B: %s", run.url)
        return run


def choose_mode(mode: str) -> tuple[Literal["online", "offline", "disabled"], str]:
    """Decide whether a W&B run can be online.

    Args:
        mode: what is asked for: "auto", "online", "offline" or "disabled".

    Returns:
        The mode for ``wandb.init``, and why it is offline (empty if it is not).
    """
    import wandb

    if mode not in ("auto", "online", "offline", "disabled"):
        raise ConfigError(f"W&B mode {mode!r} is not known; choose one of: auto, online, offline, disabled.")
    if mode == "disabled":
        return "disabled", ""
    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    configured = os.environ.get("WANDB_MODE") or settings.mode  # the latter knows `wandb offline` as well
    if configured == "disabled":
        return "disabled", ""
    if configured in ("offline", "dryrun"):
        return "offline", "WANDB_MODE"
    if mode == "offline":
        return "offline", "as configured"
    if not _has_credentials():
        return "offline", "no API key; `wandb login` stores one"
    insists = mode == "online" or os.environ.get("WANDB_MODE") in ("online", "run")
    if not insists and not is_reachable(settings.base_url):
        return "offline", f"cannot reach {settings.base_url}"
    return "online", ""


def _has_credentials() -> bool:
    """Whether W&B finds a key (environment, settings, netrc) or an identity token; it never asks."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.Error as error:
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


def _announce_offline(run: Run, reason: str) -> None:
    """Say once per process that runs are offline, and how to upload them."""
    global _announced
    level = logging.DEBUG if _announced else logging.INFO
    _announced = True
    log.log(level, "W&B: recording offline (%s). Upload later with: wandb sync %s", reason, _place(run))


def _place(run: Run) -> Path:
    """Where the files of a run lie, which is what ``wandb sync`` takes."""
    return Path(run.dir).parent


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _overlay(picture: Picture) -> Any:
    import wandb

    names = {BACKGROUND: "background", IGNORE: "ignored"} | {
        int(label): name for label, name in picture.class_names.items()
    }
    masks = {name: {"mask_data": labels, "class_labels": names} for name, labels in picture.masks.items()}
    return wandb.Image(picture.image, caption=picture.caption or None, masks=masks or None)
