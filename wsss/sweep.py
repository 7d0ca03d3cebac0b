"""A sweep as data: the jobs that Hydra's own sweeper runs for a command line, each with its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from wsss.cli import CONF
from wsss.config import register
from wsss.differences import Setting
from wsss.errors import ConfigError
from wsss.jobs import is_grid


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        overrides: the command line that makes this job alone.
        settings: what those overrides say, by key (without ``+``).
        config: the composed configuration, as the scripts see it.
        experiment: name of the chosen experiment, if any.
    """

    overrides: tuple[str, ...]
    settings: Mapping[str, Setting]
    config: DictConfig
    experiment: str | None


@dataclass(frozen=True)
class Sweep:
    """The jobs of one command line, in the order in which they run.

    Attributes:
        name: name of the file in ``conf/sweep``, if one is chosen.
        experiment: name of the experiment that all jobs share, if there is one.
        multirun: whether the configuration itself asks for a multirun, so that ``-m`` is not needed.
        jobs: at least one.
    """

    name: str | None
    experiment: str | None
    multirun: bool
    jobs: tuple[Job, ...]


def expand(overrides: Sequence[str]) -> Sweep:
    """The jobs that ``script.py -m OVERRIDES`` runs: a command line without a sweep is one job.

    ``hydra.sweeper.params`` come first and the command line may replace them, as in Hydra's basic sweeper, whose own
    functions do the work here.

    Raises:
        ConfigError: the overrides or one of the jobs do not compose, or the sweeper searches instead of running a grid.
    """
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"), _told():
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)
        sweeper, choices = master.hydra.sweeper, master.hydra.runtime.choices
        if not is_grid(sweeper):
            raise ConfigError(
                f"{sweeper._target_} picks its jobs as it runs; only a grid (Hydra's basic sweeper) is known. Compare "
                f"what it has made so far:  python -m wsss.compare --store {master.paths.artifacts} --stage <stage>"
            )
        written = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(
            written + list(master.hydra.overrides.task)
        )
        (grid,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        return Sweep(
            name=choices.get("sweep"),
            experiment=choices.get("experiment"),
            multirun=master.hydra.mode == RunMode.MULTIRUN,
            jobs=tuple(_job(loader, master, job) for job in grid),
        )


def _job(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> Job:
    config = loader.load_sweep_config(master, list(overrides))
    experiment = config.hydra.runtime.choices.get("experiment")
    everything = (*master.hydra.overrides.hydra, *overrides)
    with open_dict(config):
        del config["hydra"]  # as Hydra does before it calls the script
    settings = {
        override.key_or_group: Setting(override.get_value_element_as_str(), override.value())
        for override in OverridesParser.create().parse_overrides(list(overrides))
    }
    return Job(everything, settings, config, experiment)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into one message with its causes, without the machinery's traceback."""
    try:
        yield
    except OverrideParseException as error:
        raise ConfigError(f"{error.override} cannot be read: {error.message}") from None
    except (HydraException, OmegaConfBaseException) as error:
        said: list[str] = []
        cause: BaseException | None = error
        while isinstance(cause, (HydraException, OmegaConfBaseException)):
            if str(cause) and str(cause) not in said:
                said.append(str(cause))
            cause = cause.__cause__
        raise ConfigError("\n".join(said)) from error
