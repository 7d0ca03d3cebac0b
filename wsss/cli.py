"""The command line: one configuration for every script, messages without tracebacks, exit code 2 for user errors."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from wsss import distributed, jobs, signals
from wsss.config import check, register
from wsss.console import is_main_process, quiet_libraries, setup_logging
from wsss.data.loading import cores
from wsss.errors import ConfigError, UserError
from wsss.jobs import USER_ERROR
from wsss.pipeline import STAGES, Pipeline
from wsss.report.index import write_index
from wsss.stages.report import write_reports

log = logging.getLogger(__name__)

CONF = Path(__file__).resolve().parent.parent / "conf"
INTERRUPTED = 128 + signal.SIGINT

PLUGINS = {
    "launcher=joblib": ("hydra_joblib_launcher", "joblib"),
    "launcher=submitit_local": ("hydra_submitit_launcher", "slurm"),
    "launcher=submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "launcher=ray": ("hydra_ray_launcher", "ray"),
    "sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
}
"""Hydra's plugins by option: the module, and the extra that installs it."""


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
            with signals.raised():  # again: a launcher may have started this process
                return jobs.attempt(lambda: _carry_out(config, task, stage, program), program)
        except UserError as error:
            if is_main_process() or distributed.world() > 1:  # before they are connected, all say the same
                log.error("%s: %s", type(error).__name__, error)
            raise SystemExit(USER_ERROR) from None
        except Exception as error:
            if stop := signals.behind(error):
                raise stop from None
            if not distributed.lost(error):
                raise
            if distributed.leader() and distributed.SUPERVISOR not in os.environ:
                log.error("another process of this run has ended before its work was done")
            raise SystemExit(distributed.LOST) from None

    jobs.forget()
    with signals.raised():
        try:
            check_plugins(sys.argv[1:])
            main()
        except ConfigError as error:
            setup_logging()
            log.error("%s: %s", type(error).__name__, error)
            raise SystemExit(USER_ERROR) from None
        except (SystemExit, KeyboardInterrupt) as end:
            failed = jobs.report()
            if stop := signals.behind(end):
                if distributed.SUPERVISOR not in os.environ:  # which says so for all
                    log.warning("%s; the same command goes on from here", signals.say(stop))
                raise SystemExit(signals.exit_code(stop)) from None
            # Hydra ends with 1 when it cannot compose; a mistyped key or option is for the user to fix
            if isinstance(end, SystemExit) and end.code == 1 and not composed and not jobs.begun():
                raise SystemExit(USER_ERROR) from None
            if failed:
                raise SystemExit(failed) from None
            raise
        if failed := jobs.report():
            raise SystemExit(failed)


def check_plugins(arguments: Sequence[str]) -> None:
    """Refuse a launcher or sweeper of Hydra that cannot work here, of which Hydra would tell by its search path.

    Args:
        arguments: of the command line; a file of ``conf/sweep`` may choose one too.

    Raises:
        ConfigError: names what to install, or what to use instead.
    """
    lines = list(arguments)
    for argument in arguments:
        if found := re.fullmatch(r"\+?sweep=(\w+)", argument):
            path = CONF / "sweep" / f"{found[1]}.yaml"
            lines += path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        found = re.fullmatch(r"(?:\s*- override /)?hydra/(launcher|sweeper)(?:=|: *)(\w+)\s*", line)
        if found is None or (plugin := f"{found[1]}={found[2]}") not in PLUGINS:
            continue
        module, extra = PLUGINS[plugin]
        if not _installed(f"hydra_plugins.{module}"):
            raise ConfigError(f"hydra/{plugin} is not installed. Run:  pip install --editable '.[{extra}]'")
        looks = any(argument.split("=")[0] in ("-c", "--cfg", "-i", "--info") for argument in arguments)
        if found[2] == "submitit_slurm" and not looks and shutil.which("srun") is None:
            raise ConfigError(
                f"hydra/{plugin} hands the jobs to Slurm, and this machine has no srun. Start it where jobs are "
                f"submitted; hydra/launcher=submitit_local runs them on this machine"
            )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _carry_out(config: DictConfig, task: Callable[[Pipeline], None], stage: str, program: list[str]) -> float | None:
    """Do the task, in this process or in as many as are asked for; the metric that a sweep optimises."""
    check(config)
    settings = HydraConfig.get()

    def pipeline() -> Pipeline:
        choices = settings.runtime.choices
        made = Pipeline(config, overrides=jobs.alone(settings), experiment=choices.get("experiment"))
        if jobs.searching(settings):
            _check_search(made, stage)
        return made

    if distributed.must_start(config.trainer, sharded=config.shard.count > 1):
        distributed.check_start(config.trainer, cores=cores())
        if jobs.searching(settings):
            pipeline()
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


def _check_search(pipeline: Pipeline, stage: str) -> None:
    data = pipeline.data
    missing = [part for part in STAGES[stage].measures if not data.has_masks(getattr(data, part))]
    if missing:
        raise jobs.Unmeasured(
            f"the search needs a number from each job, and masks of {getattr(data, missing[0])} give it: the set "
            f"{data.name} has none. Run a grid instead: lists of values with -m, and neither hydra/sweeper nor "
            f"+sweep=optuna_..."
        )
    if pipeline.config.shard.count > 1:
        raise jobs.Unmeasured("the search needs a number from each job, and a shard gives none. Leave shard.count out")
