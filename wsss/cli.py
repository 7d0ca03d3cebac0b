"""The command line: one configuration for every script, messages without tracebacks, exit code 2 for user errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from wsss.config import register
from wsss.console import quiet_libraries, setup_logging
from wsss.errors import UserError
from wsss.pipeline import STAGES, Pipeline
from wsss.stages.report import write_reports

log = logging.getLogger(__name__)

CONF = Path(__file__).resolve().parent.parent / "conf"
USER_ERROR = 2
INTERRUPTED = 130


def run_stage(stage: str) -> None:
    """The body of a script: compose the configuration and make one stage. Exits the process on failure."""

    def task(pipeline: Pipeline) -> float | None:
        artifact = pipeline.make(stage)
        if stage == "segmenter":
            write_reports(pipeline)
        return artifact.metrics.get(STAGES[stage].metric)

    _run(task)


def run_all() -> None:
    """The body of ``python -m wsss``: all stages in order, then the report."""

    def task(pipeline: Pipeline) -> float | None:
        artifact = pipeline.make_all()
        write_reports(pipeline, headline=True)
        return artifact.metrics.get(STAGES["segmenter"].metric)

    _run(task)


def _run(task: Callable[[Pipeline], float | None]) -> None:
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
        settings = HydraConfig.get()
        try:
            return task(
                Pipeline(
                    config,
                    overrides=list(settings.overrides.task),
                    experiment=settings.runtime.choices.get("experiment"),
                )
            )
        except UserError as error:
            log.error("%s: %s", type(error).__name__, error)
            raise SystemExit(USER_ERROR) from None

    try:
        main()
    except (SystemExit, KeyboardInterrupt) as stop:
        # Lightning makes an exit with 1 of an interrupt
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            log.warning("interrupted; the same command goes on from here")
            raise SystemExit(INTERRUPTED) from None
        # Hydra ends with 1 when it cannot compose; a mistyped key or option is for the user to fix
        if stop.code == 1 and not composed:
            raise SystemExit(USER_ERROR) from None
        raise
