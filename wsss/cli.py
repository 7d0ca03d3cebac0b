"""The command line: one configuration for every script, messages without tracebacks, exit code 2 for user errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from wsss import distributed, jobs
from wsss.config import check, register
from wsss.console import is_main_process, quiet_libraries, setup_logging
from wsss.errors import UserError
from wsss.jobs import USER_ERROR
from wsss.pipeline import STAGES, Pipeline
from wsss.report.index import write_index
from wsss.stages.report import write_reports

log = logging.getLogger(__name__)

CONF = Path(__file__).resolve().parent.parent / "conf"
INTERRUPTED = 130


def run_stage(stage: str) -> None:
    """The body of a script: compose the configuration and make one stage. Exits the process on failure."""

    def task(pipeline: Pipeline) -> None:
        artifact = pipeline.make(stage)
        if stage == "segmenter" and artifact.complete:
            _report(pipeline)

    _run(task, stage, [str(CONF.parent / STAGES[stage].script)])


def run_all() -> None:
    """The body of ``python -m wsss``: all stages in order, then the report."""

    def task(pipeline: Pipeline) -> None:
        if pipeline.make_all().complete:
            _report(pipeline, headline=True)

    _run(task, "segmenter", ["-m", "wsss"])


def _report(pipeline: Pipeline, *, headline: bool = False) -> None:
    """The page of the experiment, and its line in the index of the store."""
    write_reports(pipeline, headline=headline)
    write_index(Path(pipeline.config.paths.artifacts))


def _run(task: Callable[[Pipeline], None], stage: str, program: list[str]) -> None:
    if not CONF.is_dir():
        raise SystemExit(f"no configuration at {CONF}: run from a checkout, installed with pip install --editable .")
    register()
    composed = False

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def main(config: DictConfig) -> Any:
        nonlocal composed
        composed = True
        setup_logging()
        quiet_libraries()
        try:
            return jobs.attempt(lambda: _carry_out(config, task, stage, program), program)
        except UserError as error:
            if is_main_process() or distributed.world() > 1:  # before they are connected, all say the same
                log.error("%s: %s", type(error).__name__, error)
            raise SystemExit(USER_ERROR) from None
        except Exception as error:
            if not distributed.lost(error):
                raise
            if distributed.leader() and distributed.SUPERVISOR not in os.environ:
                log.error("another process of this run has ended before its work was done")
            raise SystemExit(distributed.LOST) from None

    jobs.forget()
    try:
        main()
    except (SystemExit, KeyboardInterrupt) as stop:
        failed = jobs.report()
        # Lightning makes an exit with 1 of an interrupt
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            if distributed.SUPERVISOR not in os.environ:  # which says so for all
                log.warning("interrupted; the same command goes on from here")
            raise SystemExit(INTERRUPTED) from None
        # Hydra ends with 1 when it cannot compose; a mistyped key or option is for the user to fix
        if stop.code == 1 and not composed and not jobs.begun():
            raise SystemExit(USER_ERROR) from None
        if failed:
            raise SystemExit(failed) from None
        raise
    if failed := jobs.report():
        raise SystemExit(failed)


def _carry_out(config: DictConfig, task: Callable[[Pipeline], None], stage: str, program: list[str]) -> float | None:
    """Do the task, in this process or in as many as are asked for; the metric that a sweep optimises."""
    check(config)
    settings = HydraConfig.get()

    def pipeline() -> Pipeline:
        choices = settings.runtime.choices
        return Pipeline(config, overrides=jobs.alone(settings), experiment=choices.get("experiment"))

    if distributed.must_start(config.trainer, sharded=config.shard.count > 1):
        # their own runs of Hydra: a job of a sweep becomes a run of its own, in the directory of the job
        directory = [f"hydra.run.dir='{settings.runtime.output_dir}'", "hydra.output_subdir=null"]
        command = [sys.executable, *program, *jobs.alone(settings), *directory]
        distributed.supervise(command, config.trainer, directory=Path(settings.runtime.cwd))
        return _metric(pipeline(), stage) if settings.mode is RunMode.MULTIRUN else None
    with distributed.joined(config.trainer):
        if not distributed.leader():
            setup_logging(logging.ERROR)
            distributed.told()  # the leader has read the data, and would have said what is wrong with it
            pipeline().follow()
            return None
        made = pipeline()
        distributed.tell("the data can be read")
        task(made)
        distributed.tell(None)
    return _metric(made, stage)


def _metric(pipeline: Pipeline, stage: str) -> float | None:
    artifact = pipeline.artifact(stage)
    return artifact.metrics.get(STAGES[stage].metric) if artifact.complete else None
