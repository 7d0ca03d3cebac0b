"""``python -m wsss.compare``: a sweep, or any artifacts, as a table, a page and plots. Nothing is computed.

    python generate_seeds.py +sweep=lpcam_clusters +experiment=demo upstream=build
    python -m wsss.compare   +sweep=lpcam_clusters +experiment=demo
    python -m wsss.compare   --store artifacts --stage seeds --experiment demo
    python -m wsss.compare   --artifacts artifacts/seeds/53cbf2f250e9 seeds/0b7f

The overrides of a sweep give the same jobs, the same configurations and so the same fingerprints. What any other
artifacts differ in is read from their manifests.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from omegaconf import OmegaConf

from wsss import compare_page, differences
from wsss.artifacts import Artifact, fingerprint, write_text
from wsss.charts import MOST_CURVES, Bar, Line, Stat, bar_chart, curve_chart, line_chart
from wsss.cli import USER_ERROR
from wsss.console import console, format_cell, quiet_libraries, setup_logging, table
from wsss.data import ImageSet
from wsss.differences import Setting
from wsss.errors import ConfigError, CorruptArtifact, MissingArtifact, UserError
from wsss.pages import number
from wsss.pipeline import STAGES, Pipeline
from wsss.sweep import Sweep, expand

log = logging.getLogger("wsss.compare")  # run as a command, this module is called __main__


@dataclass(frozen=True)
class View:
    """What is shown of a stage unless the user says otherwise.

    Attributes:
        metrics: the columns of the table.
        plotted: the metrics of the plot.
        note: what a reader must know about the numbers.
    """

    metrics: tuple[str, ...]
    plotted: tuple[str, ...]
    note: str = ""


VIEWS = {
    "classifier": View(("map",), ("map",)),
    "seeds": View(
        ("miou", "threshold", "miou_best", "threshold_best", "precision", "recall", "fp", "fn"),
        ("miou", "miou_best"),
        "miou, precision, recall, fp and fn are at the fixed threshold; miou_best is at threshold_best, which was "
        "picked with the true masks.",
    ),
    "labels": View(
        ("miou", "miou_ignored"),
        ("miou", "miou_ignored"),
        "miou counts ignored pixels as background; miou_ignored leaves them out.",
    ),
    "segmenter": View(("miou", "ceiling"), ("miou",)),
}

T = TypeVar("T")

MOST_NAMED = 10
"""More broken artifacts than this are counted and not named."""

LONGEST_LABEL = 80
"""Letters that leave room for bars and lines beside them."""

LOWER_IS_BETTER = frozenset({"fp", "fn"})
SEED = "seed"
"""Jobs that differ in this key alone are repetitions of one experiment."""


@dataclass(frozen=True)
class Run:
    """One job and its artifact of the compared stage.

    Attributes:
        settings: what the job sets, by key.
        artifact: made or not.
        command: makes the artifact.
        manifest: what the artifact records; None where it is missing or cannot be read.
        metrics: the numbers by dotted name, fractions in [0,1]; empty where there is no manifest.
        curve: pairs of threshold and mIoU, for seeds that have been measured.
    """

    settings: Mapping[str, Setting]
    artifact: Artifact
    command: str
    manifest: Mapping[str, Any] | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    curve: Sequence[tuple[float, float | None]] = ()

    @property
    def finished(self) -> bool:
        """Whether it has numbers to compare."""
        return self.manifest is not None

    @property
    def supervision(self) -> str:
        """What it was learnt or chosen with; empty where that is not recorded."""
        return str((self.manifest or {}).get("supervision", ""))

    @property
    def data(self) -> str:
        """Hash of its images, tags and classes; empty where that is not recorded."""
        return str((self.manifest or {}).get("data", {}).get("sha256", ""))


@dataclass(frozen=True)
class Row:
    """One line of the table: a job, or the jobs that differ in their seed alone. At least one run."""

    settings: Mapping[str, Setting]
    runs: Sequence[Run]

    def stat(self, metric: str) -> Stat | None:
        """Mean and range of a metric over the runs that have it; None where none has."""
        return _stat(self.values(metric))

    def values(self, metric: str) -> list[float]:
        """A metric of the runs that have it."""
        return [value for run in self.runs if (value := run.metrics.get(metric)) is not None]

    def supervision(self) -> str:
        """What its runs were learnt or chosen with."""
        return " / ".join(dict.fromkeys(run.supervision for run in self.runs if run.supervision))

    @property
    def true_masks(self) -> bool:
        """Whether some run learnt from the masks of the training images."""
        return any("train masks" in run.supervision for run in self.runs)

    def label(self) -> str:
        """What tells this row apart, in a few words."""
        words = " ".join(setting.text for setting in self.settings.values())
        return words if len(words) <= LONGEST_LABEL else f"{words[: LONGEST_LABEL - 3]}..."


@dataclass(frozen=True)
class Comparison:
    """Finished jobs as rows, and what is missing.

    Attributes:
        title: what is compared.
        stage: the compared stage.
        keys: the swept keys that move a number of this stage; without ``seed`` where rows are grouped by it.
        rows: in the order of the sweep, or best first.
        runs: the finished jobs, one for each artifact.
        missing: the other jobs.
        metrics: the columns.
        best_by: the metric by which the best rows are found.
        fallback: what a row is called where no key tells it apart.
    """

    title: str
    stage: str
    keys: tuple[str, ...]
    rows: Sequence[Row]
    runs: Sequence[Run]
    missing: Sequence[Run]
    metrics: tuple[str, ...]
    best_by: str
    fallback: str

    @property
    def repeated(self) -> bool:
        """Whether some row holds several seeds."""
        return any(len(row.runs) > 1 for row in self.rows)

    @property
    def several_data(self) -> bool:
        """Whether rows stand for different images, tags or classes."""
        return len({run.data for run in self.runs}) > 1

    def best(self) -> list[Row]:
        """The rows with the best ``best_by``; none where there is nothing to choose from.

        No threshold is better than another, and numbers of different images do not say which row is. Beside rows that
        learnt from tags, one that learnt from true masks is a ceiling, and not the best of them.
        """
        weak = [row for row in self.rows if not row.true_masks]
        rows = [row for row in weak or self.rows if row.stat(self.best_by)]
        if len(rows) < 2 or _is_threshold(self.best_by) or self.several_data:
            return []
        highest = max(_rank(row, self.best_by) for row in rows)
        return [row for row in rows if isclose(_rank(row, self.best_by), highest, rel_tol=1e-9)]

    @property
    def partial(self) -> bool:
        """Whether some row shows a number that not all of its seeds have."""
        return any(0 < len(row.values(name)) < len(row.runs) for row in self.rows for name in self.metrics)

    def supervision(self) -> str | None:
        """What all rows were learnt or chosen with; None where they differ in it."""
        found = {row.supervision() for row in self.rows}
        return found.pop() if len(found) == 1 else None

    def constants(self) -> dict[str, float]:
        """The thresholds that are the same in every row: said once, they need no column."""
        found = {}
        for metric in self.metrics:
            values = {value for run in self.runs if (value := run.metrics.get(metric)) is not None}
            if _is_threshold(metric) and len(values) == 1 and len(self.rows) > 1:
                found[metric] = values.pop()
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and cells: a mark, the keys, the metrics, the number of seeds and the supervision where they tell."""
        constants = self.constants()
        best = [id(row) for row in self.best()]
        metrics = [metric for metric in self.metrics if metric not in constants]
        heads = ["", *differences.short_names(self.keys, taken=metrics).values(), *metrics]
        cells = [
            [
                "*" if id(row) in best else "",
                *(row.settings[key].text for key in self.keys),
                *(_cell(metric, row) for metric in metrics),
            ]
            for row in self.rows
        ]
        if not self.keys:
            heads.insert(1, "job")
            for line in cells:
                line.insert(1, self.fallback)
        if self.repeated:
            heads.append("n")
            for line, row in zip(cells, self.rows, strict=True):
                line.append(str(len(row.runs)))
        if self.supervision() is None:
            heads.append("supervision")
            for line, row in zip(cells, self.rows, strict=True):
                line.append(row.supervision() or "-")
        return heads, cells

    def notes(self) -> list[str]:
        """What a reader must know beside the table."""
        notes = [f"{metric} {value:.2f} in every row." for metric, value in self.constants().items()]
        if self.several_data:
            notes.append(
                "Made from or measured on different images, tags or classes: numbers of different images are not "
                "comparable, and no row is called the best."
            )
        if self.best():
            weak = " without true masks" if len({row.true_masks for row in self.rows}) > 1 else ""
            notes.append(f"* best {self.best_by}{' (lowest)' if _lower(self.best_by) else ''}{weak}.")
        if self.repeated:
            notes.append("mean (lowest-highest) over n seeds.")
        if self.partial:
            notes.append("[k]: over the k seeds that have this number.")
        if VIEWS[self.stage].note and set(VIEWS[self.stage].plotted) & set(self.metrics):
            notes.append(VIEWS[self.stage].note)
        if self.supervision():
            notes.append(f"Supervision of every row: {self.supervision()}.")
        return notes


def compare(
    overrides: Sequence[str],
    *,
    stage: str | None = None,
    metrics: Sequence[str] = (),
    sort: str | None = None,
) -> tuple[Comparison, Path]:
    """Gather what the jobs of a sweep left.

    Args:
        overrides: the command line of the sweep.
        stage: the stage to compare; None takes the one with the most finished artifacts, of equals the latest.
        metrics: dotted names of numbers in ``metrics.json``; empty for the usual ones of the stage.
        sort: the metric that orders the rows, best first; None keeps the order of the sweep.

    Returns:
        The comparison, and the directory that its files go to by default.

    Raises:
        ConfigError: the jobs do not compose, or a stage or metric does not exist.
        MissingArtifact: no job is finished.
    """
    if stage is not None and stage not in STAGES:
        raise ConfigError(f"there is no stage {stage!r}. Choose one of: {', '.join(STAGES)}")
    sweep = expand(overrides)
    pipelines = open_pipelines(sweep)
    chosen = stage or most_finished(pipelines)
    if chosen is None:
        command = _sweep_command("seeds", overrides, sweep)
        raise MissingArtifact(
            f"none of the {len(sweep.jobs)} jobs has a finished stage in {pipelines[0].config.paths.artifacts}.\n"
            f"Run:  {command}     or another script with the same arguments"
        )
    everything = [_run(pipeline, job.settings, chosen) for pipeline, job in zip(pipelines, sweep.jobs, strict=True)]
    keys, runs = distinct(everything)
    if not any(run.finished for run in runs):
        raise MissingArtifact(
            f"none of the {len(runs)} jobs has finished {chosen} in {runs[0].artifact.root / chosen}.\n"
            f"Run:  {_sweep_command(chosen, overrides, sweep)}"
        )
    data = pipelines[0].data.name
    names = [name for name in (sweep.name, sweep.experiment or data) if name]
    comparison = _comparison(
        keys,
        runs,
        metrics,
        sort,
        stage=chosen,
        title=f"{chosen}: {' on '.join(names)}",
        fallback=sweep.experiment or data,
    )
    if sweep.name is None:  # two lists of values are two comparisons
        names.append(fingerprint({"overrides": sorted(overrides)})[:6])
    return comparison, Path(pipelines[0].config.paths.artifacts) / "compare" / "-".join(names) / chosen


def compare_artifacts(
    names: Sequence[str] = (),
    *,
    store: Path | None = None,
    stage: str | None = None,
    experiment: str | None = None,
    metrics: Sequence[str] = (),
    sort: str | None = None,
) -> tuple[Comparison, Path]:
    """Gather any finished artifacts; the columns are what differs between their configurations, upstream included.

    Args:
        names: directories of artifacts, or digits or ``stage/digits`` in ``store`` (``differences.find``).
        store: all finished artifacts of this store are meant where none is named.
        stage: the stage to compare; None takes that of the named artifacts, or the one of which the store has most.
        experiment: those that this experiment made, which another may have reused.
        metrics: as for ``compare``.
        sort: as for ``compare``; None puts the oldest first.

    Returns:
        The comparison, and the directory that its files go to by default.

    Raises:
        ConfigError: a stage or metric does not exist, a name fits several artifacts, or they are of several stages.
        CorruptArtifact: a named artifact cannot be read; of a store, such ones are left out.
        MissingArtifact: there is nothing to compare.
    """
    if stage is not None and stage not in STAGES:
        raise ConfigError(f"there is no stage {stage!r}. Choose one of: {', '.join(STAGES)}")
    root = store or Path("artifacts")
    if names:
        named = [differences.find(name, store=root, prefer=stage) for name in names]
        manifests = {artifact: differences.read_manifest(artifact) for artifact in _once(named)}
    else:
        manifests = _readable(root, differences.finished(root, stage), differences.read_manifest)
        manifests = dict(sorted(manifests.items(), key=lambda item: str(item[1].get("created", ""))))
    made_by = {artifact: str(manifest.get("experiment", "")) for artifact, manifest in manifests.items()}
    found = [artifact for artifact in manifests if experiment in (None, made_by[artifact])]
    count = Counter(artifact.stage for artifact in found)
    if not count:
        makers = ", ".join(sorted(set(made_by.values()))) or "none"
        of = f" made by experiment {experiment} (there are some made by: {makers})" if experiment else ""
        hint = ". What was made before is reused and names its first maker" if experiment and made_by else ""
        raise MissingArtifact(f"no finished {stage or 'artifacts'}{of} in {root}{hint}. Name another with --store")
    if names and len(count) > 1 and stage is None:
        raise ConfigError(f"these artifacts are of several stages ({', '.join(count)}): numbers of one are compared")
    chosen = stage or max(reversed(STAGES), key=lambda name: count[name])
    found = [artifact for artifact in found if artifact.stage == chosen]
    if not found:
        raise MissingArtifact(f"none of the named artifacts is of {chosen}: they are of {', '.join(count)}")
    if others := sum(artifact.stage == chosen for artifact in manifests) - len(found):
        log.info(
            "left out: %d finished %s that other experiments made (what %s reused of them names its first maker)",
            others, chosen, experiment,
        )  # fmt: skip
    if names:
        measured = {artifact: _measured(artifact) for artifact in found}
    else:
        measured = _readable(root, found, _measured)
        found = list(measured)
        if not found:
            raise MissingArtifact(f"no finished {chosen} in {root} can be read")

    made_with = _told_apart({artifact: manifests[artifact] for artifact in found})
    runs = [
        Run(settings, artifact, manifests[artifact].get("command", ""), manifests[artifact], *measured[artifact])
        for artifact, settings in zip(found, made_with, strict=True)
    ]
    keys = tuple(dict.fromkeys(key for run in runs for key in run.settings))
    experiments = list(dict.fromkeys(made_by[artifact] for artifact in found))
    name = experiments[0] if len(experiments) == 1 else f"{len(experiments)} experiments"
    comparison = _comparison(keys, runs, metrics, sort, stage=chosen, title=f"{chosen}: {name}", fallback=name)
    which = [artifact.fingerprint[:4] for artifact in found] if names else ["all"]
    place = "-".join([name.replace(" ", "-"), *which][:9])
    return comparison, found[0].root / "compare" / place / chosen


def _told_apart(manifests: Mapping[Artifact, Mapping[str, Any]]) -> list[dict[str, Setting]]:
    """The settings of each artifact that others have otherwise; where none differ, its fingerprint."""

    @cache
    def below(artifact: Artifact) -> Mapping[str, Any] | None:
        if not artifact.complete:
            return None
        try:
            return differences.read_manifest(artifact)
        except CorruptArtifact as error:
            log.warning("what was made of %s counts by its fingerprint: %s", artifact.fingerprint, error)
            return None

    made_with = differences.differing(
        [differences.settings(artifact, manifest, below) for artifact, manifest in manifests.items()]
    )
    told = [tuple((key, setting.text) for key, setting in settings.items()) for settings in made_with]
    for artifact, settings, own in zip(manifests, made_with, told, strict=True):
        if told.count(own) > 1:
            settings[differences.FINGERPRINT] = Setting(artifact.fingerprint, artifact.fingerprint)
    return made_with


def _once(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """Without those that were named before, or are the same artifact in another store: they are no second seed."""
    found: dict[tuple[str, str], Artifact] = {}
    for artifact in artifacts:
        first = found.setdefault((artifact.stage, artifact.fingerprint), artifact)
        if first.directory.resolve() != artifact.directory.resolve():
            log.warning("left out: %s is the same artifact as %s", artifact.directory, first.directory)
    return list(found.values())


def _readable(root: Path, artifacts: Iterable[Artifact], read: Callable[[Artifact], T]) -> dict[Artifact, T]:
    """What ``read`` gives for each artifact of a store; those that cannot be read are left out and named."""
    found, broken = dict[Artifact, T](), []
    for artifact in artifacts:
        try:
            found[artifact] = read(artifact)
        except CorruptArtifact as error:
            broken.append(str(error))
    for said in broken[:MOST_NAMED]:
        log.warning("left out: %s", said)
    if broken:
        more = f", {len(broken) - MOST_NAMED} of them not named" if len(broken) > MOST_NAMED else ""
        log.warning(
            "left out: %d broken artifact%s%s. Look for more:  python -m wsss.store verify %s",
            len(broken), "" if len(broken) == 1 else "s", more, shlex.quote(str(root)),
        )  # fmt: skip
    return found


def _comparison(
    keys: Sequence[str],
    runs: Sequence[Run],
    metrics: Sequence[str],
    sort: str | None,
    *,
    stage: str,
    title: str,
    fallback: str,
) -> Comparison:
    finished = [run for run in runs if run.finished]
    shown = _check_metrics(metrics, finished, stage)
    best_by = sort or (STAGES[stage].metric if STAGES[stage].metric in shown else shown[0])
    shown = shown if best_by in shown else (*shown, *_check_metrics([best_by], finished, stage))
    grouped, rows = group(keys, finished)
    if sort:
        rows = sorted(rows, key=lambda row: _rank(row, sort), reverse=True)
    return Comparison(
        title=title,
        stage=stage,
        keys=grouped,
        rows=rows,
        runs=finished,
        missing=[run for run in runs if not run.finished],
        metrics=shown,
        best_by=best_by,
        fallback=fallback,
    )


def open_pipelines(sweep: Sweep) -> list[Pipeline]:
    """The pipeline of each job; a data set that several jobs share is read once."""
    opened: list[tuple[Any, ImageSet]] = []
    pipelines = []
    for job in sweep.jobs:
        node = OmegaConf.to_container(job.config.data, resolve=True)
        data = next((data for other, data in opened if other == node), None)
        pipeline = Pipeline(job.config, overrides=job.overrides, experiment=job.experiment, data=data)
        if data is None:
            opened.append((node, pipeline.data))
        pipelines.append(pipeline)
    return pipelines


def most_finished(pipelines: Sequence[Pipeline]) -> str | None:
    """The stage with the most finished artifacts; None where nothing is finished.

    Artifacts and not jobs are counted: the one classifier of a half-finished sweep over CAMs is not what is compared.
    Of equals the latest is taken, if it is finished for all jobs. Otherwise it is the first that all jobs differ in:
    what is missing of a study of refiners is labels, also where some of these were already taken to a segmenter.
    """
    made = {stage: {job.artifact(stage) for job in pipelines} for stage in STAGES}
    finished = {stage: sum(artifact.complete for artifact in found) for stage, found in made.items()}
    most = max(finished.values())
    equals = [stage for stage in STAGES if finished[stage] == most]
    if not most:
        return None
    if most == len(made[equals[-1]]):
        return equals[-1]
    return next((stage for stage in equals if len(made[stage]) == len(made["segmenter"])), equals[-1])


def _run(pipeline: Pipeline, settings: Mapping[str, Setting], stage: str) -> Run:
    artifact = pipeline.artifact(stage)
    command = pipeline.command(stage) + (" upstream=build" if pipeline.needs(stage) else "")
    if not artifact.complete:
        return Run(settings, artifact, command)
    try:
        return Run(settings, artifact, command, differences.read_manifest(artifact), *_measured(artifact))
    except CorruptArtifact as error:  # told, and made again like what is missing: one of many ends no comparison
        log.warning("left out: %s", error)
        return Run(settings, artifact, f"{command} force=true")


def _measured(artifact: Artifact) -> tuple[dict[str, float | None], list[tuple[float, float | None]]]:
    """Numbers and curve of a finished artifact.

    Raises:
        CorruptArtifact: its ``metrics.json`` cannot be read, or is no table of numbers.
    """
    metrics: Any = artifact.metrics
    if not isinstance(metrics, dict):
        raise CorruptArtifact(
            f"{artifact.directory / 'metrics.json'} holds no numbers. "
            f"Delete {artifact.directory} and run its stage again"
        )
    points = metrics.get("curve")
    pairs = (
        [point for point in points if isinstance(point, list) and len(point) == 2] if isinstance(points, list) else []
    )
    return numbers(metrics), [(at, number(miou)) for x, miou in pairs if (at := number(x)) is not None]


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """The numbers of ``metrics.json`` by dotted name; None where a number is not defined or not finite.

    >>> numbers({"miou": 0.5, "best": {"precision": float("nan")}, "ceiling": None, "curve": [[0.1, 0.2]]})
    {'miou': 0.5, 'best.precision': None, 'ceiling': None}
    """
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            found[f"{prefix}{name}"] = None if number(value) is None else value
    return found


def distinct(runs: Sequence[Run]) -> tuple[tuple[str, ...], list[Run]]:
    """The swept keys that move the fingerprint, and one run for each setting of them.

    A sweep over CAMs and refiners makes one set of seeds a CAM: among seeds, the refiner is no column.
    """
    names = dict.fromkeys(key for run in runs for key in run.settings)
    keys = [key for key in names if len({_text(run, key) for run in runs}) > 1]
    for key in tuple(keys):
        rest = [other for other in keys if other != key]
        if len({_texts(run, rest) for run in runs}) == len(
            {(_texts(run, rest), run.artifact.fingerprint) for run in runs}
        ):
            keys = rest
    first: dict[tuple[str, ...], Run] = {}
    for run in runs:
        first.setdefault(_texts(run, keys), run)
    return tuple(keys), list(first.values())


def group(keys: Sequence[str], runs: Sequence[Run]) -> tuple[tuple[str, ...], list[Row]]:
    """Rows of runs, and the keys that tell the rows apart: runs that differ in their seed alone share a row.

    Where each row would hold one run, ``seed`` stays a key like the others.
    """
    rest = tuple(key for key in keys if key != SEED)
    together: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        together.setdefault(_texts(run, rest), []).append(run)
    if len(together) == len(runs):
        return tuple(keys), [Row(_only(run, keys), [run]) for run in runs]
    return rest, [Row(_only(same[0], rest), same) for same in together.values()]


def _text(run: Run, key: str) -> str:
    return run.settings[key].text if key in run.settings else ""


def _texts(run: Run, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(_text(run, key) for key in keys)


def _only(run: Run, keys: Iterable[str]) -> dict[str, Setting]:
    return {key: run.settings.get(key, Setting("", None)) for key in keys}


def _check_metrics(wanted: Sequence[str], runs: Sequence[Run], stage: str) -> tuple[str, ...]:
    """The metrics to show.

    Raises:
        ConfigError: no finished job has one that was asked for.
    """
    there = dict.fromkeys(name for run in runs for name in run.metrics)
    if not wanted:
        known = {name for run in runs for name, value in run.metrics.items() if value is not None}
        usual = tuple(name for name in VIEWS[stage].metrics if name in known)
        return usual if STAGES[stage].metric in known else (STAGES[stage].metric,)
    for name in wanted:
        if name not in there:
            raise ConfigError(f"{stage} have no number {name!r}. There are: {', '.join(there)}")
    return tuple(dict.fromkeys(wanted))


def _stat(values: Iterable[float | None]) -> Stat | None:
    known = [value for value in values if value is not None]
    return Stat(fmean(known), min(known), max(known)) if known else None


def _lower(metric: str) -> bool:
    return metric.rpartition(".")[2] in LOWER_IS_BETTER


def _rank(row: Row, metric: str) -> float:
    """A number that is larger for a better row."""
    stat = row.stat(metric)
    if stat is None:
        return float("-inf")
    return -stat.mean if _lower(metric) else stat.mean


def _is_threshold(metric: str) -> bool:
    return metric.rpartition(".")[2].startswith("threshold")


def _cell(metric: str, row: Row) -> str:
    """A percentage with one decimal; thresholds as they are, counts whole. Behind a mean its range, and in brackets the
    number of runs that have it, where others have not.

    >>> run = Run({}, Artifact(Path(), "seeds", ""), "", metrics={"miou": 0.4, "ceiling": 0.8})
    >>> other = Run({}, Artifact(Path(), "seeds", ""), "", metrics={"miou": 0.5})
    >>> [_cell(name, Row({}, [run, other])) for name in ("miou", "ceiling", "map")]
    ['45.0 (40.0-50.0)', '80.0 [1]', '-']
    """
    stat, values = row.stat(metric), row.values(metric)
    if stat is None:
        return "-"
    count = all(isinstance(value, int) for value in values)
    mean, low, high = (
        f"{value:.2f}" if _is_threshold(metric) else f"{value:g}" if count else format_cell(value) for value in stat
    )
    spread = "" if stat.low == stat.high else f" ({low}-{high})"
    return f"{mean}{spread}{'' if len(values) == len(row.runs) else f' [{len(values)}]'}"


# --- files ------------------------------------------------------------------------------------------------------------


def to_markdown(comparison: Comparison, command: str) -> str:
    """The table as a page: what was compared, the table, notes, and the commands of what is missing."""
    heads, cells = comparison.table()
    lines = [f"# {comparison.title}", "", f"    {command}", "", _markdown_row(heads)]
    lines.append("|" + "---|" * len(heads))
    lines += [_markdown_row(row) for row in cells]
    for note in comparison.notes():
        lines += ["", note.replace("*", r"\*")]
    if comparison.missing:
        lines += ["", f"Missing ({len(comparison.missing)}):", ""]
        lines += [f"    {run.command}" for run in comparison.missing]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (r"\*" if cell == "*" else cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def to_csv(comparison: Comparison) -> str:
    """Every finished job, not grouped: full keys, fractions, the fingerprint and the seconds that it took.

    A number that a job does not have is an empty cell: how many of a row's seeds have it is seen by counting.
    """
    keys = dict.fromkeys([*comparison.keys, *([SEED] if comparison.repeated else [])])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, *comparison.metrics, "supervision", "stage", "fingerprint", "wall_seconds"])
    for row in comparison.rows:
        for run in row.runs:
            writer.writerow(
                [
                    *_texts(run, keys),
                    *("" if (value := run.metrics.get(name)) is None else value for name in comparison.metrics),
                    run.supervision,
                    comparison.stage,
                    run.artifact.fingerprint,
                    (run.manifest or {}).get("wall_seconds", ""),
                ]
            )
    return text.getvalue()


def plot(comparison: Comparison, path: Path, *, x: str | None = None) -> bool:
    """Draw the metrics over the one swept number (with several: over ``x``), or as bars; False where none is measured.

    Raises:
        ConfigError: ``x`` is no swept key with numbers.
    """
    key = _x_key(comparison, x)
    usual = [name for name in VIEWS[comparison.stage].plotted if name in comparison.metrics]
    metrics = [name for name in usual or comparison.metrics[:2] if any(row.stat(name) for row in comparison.rows)]
    if not metrics:
        return False
    if key is None:
        ranked = sorted(comparison.rows, key=lambda row: _rank(row, metrics[-1]), reverse=True)
        bars = [Bar(row.label() or comparison.fallback, [row.stat(name) for name in metrics]) for row in ranked]
        bar_chart(path, bars, metrics=metrics, title=comparison.title)
        return True
    rest = [other for other in comparison.keys if other != key]
    names = differences.short_names(comparison.keys)
    lines = {name: _lines(comparison.rows, name, key, rest) for name in metrics}
    legend = ", ".join(names[other] for other in rest)
    panels = list(lines.items())
    if len(metrics) > 1 and len(lines[metrics[0]]) == 1:  # one line a metric: they fit in one panel
        panels, legend = [("", [Line(name, line.x, line.y) for name, (line,) in panels])], ""
    line_chart(path, panels, title=comparison.title, x=names[key], legend=legend)
    return True


def _lines(rows: Sequence[Row], metric: str, key: str, rest: Sequence[str]) -> list[Line]:
    """One line for each setting of the other keys, its points sorted along the axis."""
    points: dict[str, list[tuple[float, Stat]]] = {}
    for row in rows:
        stat, at = row.stat(metric), as_number(row.settings[key].value)
        line = points.setdefault(" ".join(row.settings[other].text for other in rest), [])
        if stat is not None and at is not None:
            line.append((at, stat))
    ordered = {label: sorted(found) for label, found in points.items()}
    return [Line(label, [x for x, _ in found], [y for _, y in found]) for label, found in ordered.items()]


def as_number(value: Any) -> float | None:
    """The number that a setting is, or the only one that its list holds; else None.

    >>> as_number(4), as_number([5]), as_number([4, 5]), as_number("max"), as_number(True)
    (4.0, 5.0, None, None, None)
    """
    if isinstance(value, list) and len(value) == 1:
        return as_number(value[0])
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _x_key(comparison: Comparison, wanted: str | None) -> str | None:
    """The key of the horizontal axis: a number in every row; the one with the most values unless named."""
    values = {key: [as_number(row.settings[key].value) for row in comparison.rows] for key in comparison.keys}
    numeric = {key: len(set(found)) for key, found in values.items() if None not in found}
    if wanted is None:
        several = {key: count for key, count in numeric.items() if count > 1 and _makes_lines(comparison, key)}
        return max(several, key=lambda key: several[key]) if several else None
    names = differences.short_names(comparison.keys)
    for key in numeric:
        if wanted in (key, names[key]):
            return key
    raise ConfigError(f"--x {wanted}: no swept number of that name. There are: {', '.join(numeric) or 'none'}")


def _makes_lines(comparison: Comparison, key: str) -> bool:
    """Whether rows that differ in a key alone are the rule, so that few lines go through them."""
    rest = [other for other in comparison.keys if other != key]
    lines = {tuple(row.settings[other].text for other in rest) for row in comparison.rows}
    return len(lines) <= min(MOST_CURVES, len(comparison.rows) / 2)


def plot_curves(comparison: Comparison, path: Path) -> bool:
    """Draw mIoU over the threshold for the best rows, at most ``MOST_CURVES``; False where no job has a curve."""
    rows = [row for row in comparison.rows if any(run.curve for run in row.runs)]
    if not rows:
        return False
    shown = rows
    if len(rows) > MOST_CURVES:
        best = sorted(rows, key=lambda row: _rank(row, comparison.best_by), reverse=True)[:MOST_CURVES]
        shown = [row for row in rows if row in best]
    lines = [Line(row.label() or comparison.fallback, *_mean_curve(row.runs)) for row in shown]
    fixed = {value for run in comparison.runs if (value := run.metrics.get("threshold")) is not None}
    first = "highest" if _is_threshold(comparison.best_by) else "best"
    best_of = f" (the {MOST_CURVES} {first} of {len(rows)} by {comparison.best_by})" if len(rows) > MOST_CURVES else ""
    curve_chart(
        path,
        lines,
        title=f"{comparison.title}{best_of}",
        legend=", ".join(differences.short_names(comparison.keys).values()),
        fixed=fixed.pop() if len(fixed) == 1 else None,
    )
    return True


def _mean_curve(runs: Sequence[Run]) -> tuple[list[float], list[Stat]]:
    at: dict[float, list[float | None]] = {}
    for run in runs:
        for threshold, miou in run.curve:
            at.setdefault(threshold, []).append(miou)
    found = {threshold: stat for threshold, values in sorted(at.items()) if (stat := _stat(values))}
    return list(found), list(found.values())


# --- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The body of ``python -m wsss.compare``; returns the exit code."""
    setup_logging()
    quiet_libraries()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parse(arguments)
        comparison, place = _gather(options)
        _x_key(comparison, options.x)  # a mistake is told before anything is printed or written
        _print(comparison)
        command = shlex.join(["python", "-m", "wsss.compare", *arguments])
        _write(comparison, options.out or place, command, x=options.x)
    except UserError as error:
        log.error("%s: %s", type(error).__name__, error)
        return USER_ERROR
    return 0


def _gather(options: argparse.Namespace) -> tuple[Comparison, Path]:
    view = {"stage": options.stage, "metrics": options.metrics, "sort": options.sort}
    if not (options.artifacts or options.store):
        if options.experiment is not None:
            raise ConfigError(f"--experiment goes with --store; for a sweep write +experiment={options.experiment}")
        return compare(options.overrides, **view)
    if options.overrides:
        raise ConfigError(
            f"{options.overrides[0]}: overrides name the jobs of a sweep; --artifacts and --store name artifacts. "
            f"Use one of them"
        )
    return compare_artifacts(options.artifacts, store=options.store, experiment=options.experiment, **view)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wsss.compare",
        description="Compare finished artifacts: a table, a CSV file, an HTML page and plots. Give it the arguments "
        "that a sweep was started with (lists and ranges as cam=cam,layercam are sweeps with or without -m), or name "
        "artifacts or a store.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="as for the scripts: +sweep=NAME, cam.gamma=1,2, ..."
    )
    parser.add_argument(
        "--artifacts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="directories, or (beginnings of) fingerprints in the store: 53cb, labels/53cb",
    )
    parser.add_argument("--store", type=Path, metavar="DIR", help="all artifacts of a stage in it; default: artifacts")
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        help="with --store: those made by this experiment; what it reused names the one that made it first",
    )
    parser.add_argument("--stage", help=f"{', '.join(STAGES)}; default: the one with the most finished results")
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="NAME", help="numbers of metrics.json, best.precision"
    )
    parser.add_argument(
        "--sort",
        metavar="METRIC",
        help="best first by this metric, of thresholds the highest; default: the order of the sweep",
    )
    parser.add_argument("--x", metavar="KEY", help="the number along the plot's axis")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: <paths.artifacts>/compare/<sweep>-<experiment>/<stage>"
    )
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(list(arguments))
    # overrides that follow --metrics are taken for its names; no name of a metric has "="
    options.overrides += [name for name in options.metrics if "=" in name or name.startswith("~")]
    options.metrics = [name for name in options.metrics if name not in options.overrides]
    return options


def _print(comparison: Comparison) -> None:
    jobs = len(comparison.runs) + len(comparison.missing)
    heads, cells = comparison.table()
    table(f"{comparison.title}, {len(comparison.runs)} of {jobs} jobs", cells, columns=heads, wide=True)
    for note in comparison.notes():
        console.print(note, markup=False, highlight=False)
    if comparison.missing:
        log.warning("missing: %d of %d jobs. What makes them:", len(comparison.missing), jobs)
        for run in comparison.missing:
            console.print(run.command, markup=False, highlight=False, soft_wrap=True)


def _write(comparison: Comparison, directory: Path, command: str, *, x: str | None) -> None:
    write_text(directory / "table.md", to_markdown(comparison, command))
    write_text(directory / "table.csv", to_csv(comparison))
    drawings: dict[str, Callable[[Path], bool]] = {
        "plot.png": lambda path: plot(comparison, path, x=x),
        "curves.png": lambda path: plot_curves(comparison, path),
    }
    drawn = [name for name, draw in drawings.items() if draw(directory / name)]
    page = compare_page.render(comparison, command, [directory / name for name in drawn])
    write_text(directory / "table.html", page)
    log.info("written to %s: %s", directory, ", ".join(["table.md", "table.csv", "table.html", *drawn]))


def _sweep_command(stage: str, overrides: Sequence[str], sweep: Sweep) -> str:
    """The command that makes all jobs."""
    kept = [item for item in overrides if item.split("=")[0].lstrip("+") not in ("upstream", "force")]
    multirun = [] if sweep.multirun or len(sweep.jobs) == 1 else ["-m"]
    upstream = ["upstream=build"] if STAGES[stage].needs else []
    return shlex.join(["python", STAGES[stage].script, *multirun, *kept, *upstream])


if __name__ == "__main__":
    raise SystemExit(main())


__all__ = [
    "Comparison",
    "Row",
    "Run",
    "compare",
    "compare_artifacts",
    "main",
    "plot",
    "plot_curves",
    "to_csv",
    "to_markdown",
]
