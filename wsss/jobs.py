"""The jobs of a multirun: one that fails does not end the others, and is told at the end.

A job leaves ``job.json`` in its Hydra directory, which is how the process that started the multirun learns what became
of it, in whatever process or on whatever machine it ran.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from wsss import distributed, signals
from wsss.artifacts import read_json, write_json
from wsss.console import console, format_cell, setup_logging
from wsss.errors import ConfigError, CorruptArtifact, UserError

log = logging.getLogger(__name__)

USER_ERROR = 2
BUG = 1

RECORD, SWEEP = "job.json", "sweep.json"
RUNNING, DONE, FAILED = "running", "done", "failed"


@dataclass(frozen=True)
class Job:
    """What became of one job.

    Attributes:
        number: from 0, in the order of the sweep.
        own: the overrides that were not given for all jobs alike.
        command: makes it alone.
        state: running, done or failed; running also stands where its process was killed.
        error: what went wrong, as it is told to the user.
        user: whether the user can mend that.
        trace: where in the code it went wrong; empty where the user can mend it.
        value: the metric; None where nothing was measured.
        process: where it runs: number of the process, and machine.
    """

    number: int
    own: tuple[str, ...]
    command: str
    state: str = RUNNING
    error: str = ""
    user: bool = False
    trace: str = ""
    value: float | None = None
    process: str = ""


@dataclass(frozen=True)
class Failed:
    """What a failed job returns to the sweeper: no number, so that one which searches counts the trial as failed."""

    error: str


class Unmeasured(ConfigError):
    """A search has nothing to go by, in this job as in all others."""


_begun: Path | None = None


class Watch(Callback):
    """Hydra's callback that learns where the jobs of a multirun lie."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remember the directory of the sweep, and leave there what all jobs are given."""
        global _begun
        _begun = Path(config.hydra.sweep.dir).absolute()
        write_json(_begun / SWEEP, list(config.hydra.overrides.task))
        setup_logging()  # the jobs may run elsewhere
        logging.getLogger("hydra_plugins").setLevel(logging.ERROR)  # of a failed trial the job has told


def forget() -> None:
    """Know of no multirun: called before each."""
    global _begun
    _begun = None


def alone(settings: HydraConf) -> list[str]:
    """The overrides that make the job that Hydra runs now, alone also where a file of ``conf/sweep`` is among them."""
    by_file = settings.mode is RunMode.MULTIRUN and "sweep" in settings.runtime.choices
    return [*settings.overrides.task, *(["hydra.mode=RUN"] if by_file else [])]


def searching(settings: HydraConf) -> bool:
    """Whether the job that Hydra runs now belongs to a search, which needs a number from each."""
    return settings.mode is RunMode.MULTIRUN and not is_grid(settings.sweeper)


def is_grid(sweeper: Any) -> bool:
    """Whether the jobs of a configured sweeper are known before the first runs."""
    return str(sweeper._target_).endswith(".BasicSweeper")


def attempt(work: Callable[[], float | None], program: Sequence[str]) -> float | Failed | None:
    """Do the work of the job that Hydra runs now; in a multirun a failure is recorded and not raised.

    Not where several processes that something else has started do the job together: without one of them the others
    cannot go on.

    Args:
        work: returns the metric.
        program: what Python runs, without overrides.

    Raises:
        KeyboardInterrupt: the process was interrupted or told to end, whatever that has become on the way here.
        SystemExit: no other job could do better.
    """
    settings = HydraConfig.get()
    if settings.mode is not RunMode.MULTIRUN or distributed.started(os.environ):
        return work()
    given = read_json(Path(settings.sweep.dir) / SWEEP)
    own = beyond(given, settings.overrides.task)
    command = shlex.join(["python", *(Path(part).name for part in program), *alone(settings)])
    job = Job(settings.job.num, own, command, process=f"{os.getpid()} on {socket.gethostname()}")
    directory = Path(settings.runtime.output_dir)
    _write(directory, job)
    log.info("job %d: %s", job.number, " ".join(own) or "as given")
    try:
        value = work()
    except UserError as error:
        kind = ConfigError if isinstance(error, Unmeasured) else type(error)
        failed = replace(job, state=FAILED, error=f"{kind.__name__}: {error}", user=True)
        if isinstance(error, Unmeasured):
            _write(directory, failed)
            raise SystemExit(USER_ERROR) from None
        log.error("job %d: %s", job.number, failed.error)
    except (Exception, SystemExit) as error:
        if stop := signals.behind(error):
            raise stop from None
        said = f"its processes ended with code {error.code}" if isinstance(error, SystemExit) else str(error)
        user = isinstance(error, SystemExit) and error.code == USER_ERROR
        trace = "" if isinstance(error, SystemExit) else traceback.format_exc()
        failed = replace(
            job, state=FAILED, error=f"{type(error).__name__}: {said}".rstrip(": "), user=user, trace=trace
        )
        log.error("job %d: %s", job.number, failed.error, exc_info=not isinstance(error, SystemExit))
    else:
        _write(directory, replace(job, state=DONE, value=value))
        return value
    _write(directory, failed)
    return Failed(failed.error)


def beyond(given: Sequence[str], task: Sequence[str]) -> tuple[str, ...]:
    """The overrides of a job that were not given for all alike. Of what was given for a key, the last one holds.

    >>> beyond(["cam=cam", "seed=0", "seed=0,1"], ["cam=cam", "seed=0"])
    ('seed=0',)
    """
    last = {item.partition("=")[0]: item for item in given}
    return tuple(item for item in task if last.get(item.partition("=")[0]) != item)


def begun() -> list[Job]:
    """The jobs of this process's multirun that have begun, in their order; none without a multirun."""
    if _begun is None:
        return []
    found = []
    for path in _begun.glob(f"*/{RECORD}"):
        try:
            record = read_json(path)
        except CorruptArtifact:  # being written
            continue
        found.append(Job(**record | {"own": tuple(record["own"])}))
    return sorted(found, key=lambda job: job.number)


def report() -> int:
    """Tell which jobs did not come to their end, and what a search has found.

    Returns:
        The exit code: 0 where all is well (or there was no multirun), ``USER_ERROR`` where the user can mend each
        failure, else 1.
    """
    jobs = begun()
    bad = [job for job in jobs if job.state != DONE]
    if _begun is not None and (_begun / "optimization_results.yaml").is_file():
        _tell_best(OmegaConf.load(_begun / "optimization_results.yaml"))
    if not bad:
        if jobs:
            log.info("%d jobs done (%s)", len(jobs), _begun)
        return 0
    log.error("%d of %d jobs failed:", len(bad), len(jobs))
    for job in bad:
        error = job.error if job.state == FAILED else "did not come to its end: its process was stopped or killed"
        for line in (
            f"job {job.number}: {' '.join(job.own) or 'as given'}",
            *(f"    {part}" for part in error.splitlines()),
            f"    {job.command}",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return USER_ERROR if all(job.user for job in bad) else BUG


def _tell_best(found: Any) -> None:
    if "best_value" in found:
        setting = " ".join(f"{key}={value}" for key, value in found.best_params.items())
        log.info("best of the search: %s with %s", format_cell(found.best_value), setting)


def _write(directory: Path, job: Job) -> None:
    write_json(directory / RECORD, asdict(job))


__all__ = [
    "Failed",
    "Job",
    "Unmeasured",
    "Watch",
    "alone",
    "attempt",
    "begun",
    "forget",
    "is_grid",
    "report",
    "searching",
]
