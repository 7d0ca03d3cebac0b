"""The stages as data: what each reads and needs, its fingerprint; run one, or build what it needs first."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from wsss import distributed
from wsss.artifacts import FINGERPRINT_DIGITS, Artifact, fingerprint
from wsss.build import build
from wsss.config import Labels, Upstream, check
from wsss.console import table
from wsss.data import ImageSet
from wsss.data.loading import cores
from wsss.errors import ConfigError, CorruptArtifact, DataError, MissingArtifact
from wsss.stages import affinity, classifier, labels, relabels, seeds, segmenter, threshold
from wsss.stages.context import Context, Outcome, device_of
from wsss.tracking import NullTracker, TrackerFactory, Trackers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        script: the command that runs it, together with what it needs of the stages with the same script.
        version: raise it when the code changes what comes out for the same configuration.
        reads: dotted paths of the configuration that can move its numbers.
        needs: the stages whose artifacts it reads.
        metric: the key of ``metrics.json`` that a sweep optimises.
        measures: the splits ("train", "val") whose masks its metrics read: masks that come later make it run again.
        build: constructs what the stage works with; called for every stage to run before any of them starts.
        run: does the work and measures it.
        shared: whether all processes of a run call ``run``, or the leader alone.
        share: does what belongs to one shard, and tells how many images are left; None: the stage has no shards.
    """

    script: str
    version: int
    reads: tuple[str, ...]
    needs: tuple[str, ...]
    metric: str
    measures: tuple[str, ...]
    build: Callable[[DictConfig, ImageSet], Any]
    run: Callable[[Context, Any], Outcome]
    shared: bool = True
    share: Callable[[Context, Any], int] | None = None


STAGES: dict[str, Stage] = {
    "classifier": Stage(
        script="train.py",
        version=1,
        reads=("seed", "data", "classifier", "recipe.classifier", "trainer.precision"),
        needs=(),
        metric="map",
        measures=(),
        build=classifier.build,
        run=classifier.run,
    ),
    "seeds": Stage(
        script="generate_seeds.py",
        version=1,
        reads=(
            "seed",
            "cam",
            "seeds",
            "evaluation.seed_threshold",
            "evaluation.seed_percentile",
            "evaluation.curve_steps",
        ),
        needs=("classifier",),
        metric="miou",
        measures=("train",),
        build=seeds.build,
        run=seeds.run,
        share=seeds.share,
    ),
    "threshold": Stage(
        script="refine.py",
        version=1,
        reads=("threshold.stage", "threshold.side", "threshold.images"),
        needs=("classifier", "seeds"),
        metric="miou",
        measures=(),
        build=threshold.build,
        run=threshold.run,
        shared=False,
    ),
    "affinity": Stage(
        script="refine.py",
        version=1,
        reads=("seed", "data", "affinity", "recipe.affinity", "trainer.precision"),
        needs=("classifier", "seeds", "threshold"),
        metric="miou",
        measures=("train",),
        build=affinity.build,
        run=affinity.run,
    ),
    "labels": Stage(
        script="refine.py",
        version=1,
        reads=("seed", "refiner"),
        needs=("seeds", "threshold", "affinity"),
        metric="miou",
        measures=("train",),
        build=labels.build,
        run=labels.run,
        shared=False,
        share=labels.share,
    ),
    "relabels": Stage(
        script="train_seg.py",
        version=1,
        reads=("self_training",),
        needs=("teacher",),
        metric="miou",
        measures=("train",),
        build=relabels.build,
        run=relabels.run,
        share=relabels.share,
    ),
    "segmenter": Stage(
        script="train_seg.py",
        version=1,
        reads=(
            "seed",
            "data",
            "labels",
            "segmenter",
            "loss",
            "recipe.segmenter",
            "evaluation.scales",
            "evaluation.flip",
            "evaluation.window",
            "evaluation.overlap",
            "evaluation.crf",
            "evaluation.tags",
            "trainer.precision",
        ),
        needs=("labels",),
        metric="miou",
        measures=("val",),
        build=segmenter.build,
        run=segmenter.run,
    ),
}

TEACHER = "teacher"
"""What a segmenter that learns from predicted labels builds on: the segmenter stage with ``labels=refined``."""

LEARNT_FROM: dict[Labels, tuple[str, ...]] = {
    Labels.refined: ("labels",),
    Labels.predicted: ("relabels",),
    Labels.ground_truth: (),
}
"""What the segmenter needs."""

ASKING = {"labels": "refiner", "affinity": "affinity.labels"}
"""The stages that need the threshold and affinity stages only where their refiner asks for them, and its node."""

NOT_HASHED = frozenset(f"data.{key}" for key in ("root", "name", "sbd", "sbd_count", "download", "cache"))
"""Keys below a stage's ``reads`` that move no number."""

ADDED = {
    f"recipe.{network}.{key}": value
    for network in ("classifier", "affinity", "segmenter")
    for key, value in (
        ("iterations", None),
        ("accumulate", 1),
        ("bias_lr_factor", 1),
        ("frozen_batch_norm_weights", False),
        ("augment.fit", True),
    )
} | {"data.white": None}
"""Keys that came later, with the values that do what was done before: so set, they move no fingerprint."""


class Pipeline:
    """The stages for one configuration.

    Args:
        config: the composed configuration.
        overrides: the command-line overrides that made it, repeated in messages and manifests.
        experiment: name of the chosen experiment; without one, the data set's name.
        data: the data set, where it has been read already.

    Raises:
        ConfigError: the configuration has a key that nothing reads.
        ConfigError, DataError: the data set cannot be read.
    """

    def __init__(
        self,
        config: DictConfig,
        *,
        overrides: Sequence[str] = (),
        experiment: str | None = None,
        data: ImageSet | None = None,
    ) -> None:
        check(config)
        self.config = config
        self.overrides = tuple(overrides)
        self.data: ImageSet = data or build(config, "data")
        self.experiment = experiment or self.data.name
        self.made: set[str] = set()
        self._fingerprints: dict[str, str] = {}
        self._asked: dict[str, dict[str, bool]] = {}
        self._facts: dict[str, Any] | None = None

    def needs(self, stage: str) -> tuple[str, ...]:
        """The stages that ``stage`` reads.

        What a segmenter needs depends on ``labels``: true masks need none, predicted ones a first segmenter. Labels,
        and what affinities are learnt from, need a chosen threshold and affinities where their refiner asks for them.

        Raises:
            ConfigError: the refiner cannot be built.
        """
        if stage == TEACHER:
            return self.teacher.needs("segmenter")
        if stage == "segmenter":
            return LEARNT_FROM[self.config.labels]
        if stage not in ASKING:
            return STAGES[stage].needs
        if stage not in self._asked:
            refiner = build(self.config, ASKING[stage])
            self._asked[stage] = {"threshold": refiner.needs_threshold, "affinity": refiner.needs_boundaries}
        return tuple(need for need in STAGES[stage].needs if self._asked[stage].get(need, True))

    def order(self, stage: str) -> tuple[str, ...]:
        """``stage`` and all it builds on, in the order in which they run."""
        earlier = (name for need in self.needs(stage) for name in self.order(need))
        return tuple(dict.fromkeys((*earlier, stage)))

    @cached_property
    def teacher(self) -> Pipeline:
        """The pipeline whose segmenter is the teacher of this one's."""
        return self.with_labels(Labels.refined)

    def owner(self, stage: str) -> tuple[Pipeline, str]:
        """Where a stage is carried out: the pipeline, and its name there."""
        return (self.teacher, "segmenter") if stage == TEACHER else (self, stage)

    def artifact(self, stage: str) -> Artifact:
        """The artifact of ``stage`` for this configuration, made or not."""
        if stage == TEACHER:
            return self.teacher.artifact("segmenter")
        return Artifact(Path(self.config.paths.artifacts), stage, self.fingerprint(stage))

    def fingerprint(self, stage: str) -> str:
        """hash(stage, its version, the configuration it reads, the split's ids and tags, upstream fingerprints)."""
        if stage == TEACHER:
            return self.teacher.fingerprint("segmenter")
        if stage not in self._fingerprints:
            measured = [self.data.has_masks(getattr(self.data, split)) for split in STAGES[stage].measures]
            self._fingerprints[stage] = fingerprint(self._facts_of(stage) | {"measured": measured})
        return self._fingerprints[stage]

    def training_fingerprint(self, stage: str) -> str:
        """What decides the weights of a stage: its fingerprint without what the test alone reads."""
        pipeline, name = self.owner(stage)
        facts = pipeline._facts_of(name)
        facts["config"] = {key: value for key, value in facts["config"].items() if not key.startswith("evaluation.")}
        return fingerprint(facts)

    def _facts_of(self, stage: str) -> dict[str, Any]:
        """What a stage computes from. Of a teacher the weights count, not how they were tested."""
        return {
            "stage": stage,
            "version": STAGES[stage].version,
            "config": self.read_config(stage),
            "data": self.data_facts(),
            "upstream": {
                need: self.training_fingerprint(need) if need == TEACHER else self.fingerprint(need)
                for need in self.needs(stage)
            },
        }

    def read_config(self, stage: str) -> dict[str, Any]:
        """The resolved part of the configuration that can move the stage's numbers, by dotted path.

        None for what an option does not have: a stage that is asked for nothing has a fingerprint too.
        """
        resolved: Any = OmegaConf.to_container(self.config, resolve=True, enum_to_str=True)

        def at(path: str) -> Any:
            return reduce(
                lambda node, key: node.get(key) if isinstance(node, dict) else None, path.split("."), resolved
            )

        read = {path: _hashable(at(path), path) for path in STAGES[stage].reads}
        processes = distributed.training_processes(self.config.trainer) if _trains(stage) else 1
        if processes > 1:  # each takes batches of its own
            synced = {"trainer.sync_batchnorm": True} if self.config.trainer.sync_batchnorm else {}
            read |= {"trainer.processes": processes} | synced
        return read

    def data_facts(self) -> dict[str, Any]:
        """What identifies the data: classes, the ids of both splits, and the tags and file size of every image.

        Raises:
            DataError: no training image has a tag.
        """
        if self._facts is None:
            data = self.data
            if not any(data.tags(data.train).values()):
                raise DataError(
                    f"no image of {data.train} has a tag (read from {data.tag_source} in {data.root}), so there is "
                    f"nothing to learn. In masks, the pixels of class k have the value k; 255 means ignored"
                )
            self._facts = {
                "classes": data.classes,
                **{
                    split: [
                        (id, tags, data.image_path(id).stat().st_size) for id, tags in sorted(data.tags(split).items())
                    ]
                    for split in (data.train, data.val)
                },
            }
        return self._facts

    def data_digest(self) -> str:
        """SHA-256 of what identifies the data, as manifests record it."""
        return hashlib.sha256(repr(self.data_facts()).encode()).hexdigest()

    def command(self, stage: str) -> str:
        """The shell command that runs ``stage`` with this configuration."""
        left_out = {"upstream", "force", "shard.index", "shard.count"}
        trainer = self.config.trainer
        added = []
        if trainer.processes and trainer.strategy == "auto" and _trains(stage):  # found so, and not made so
            left_out |= {"trainer", "trainer.processes", "trainer.devices"}
            added = ["trainer=ddp", f"trainer.devices={trainer.processes}"]
            added += ["trainer.accelerator=cpu"] if trainer.accelerator == "cpu" else []
        kept = [override for override in self.overrides if override.split("=")[0].lstrip("+") not in left_out]
        return shlex.join(["python", STAGES[stage].script, *kept, *added])

    def make(self, stage: str) -> Artifact:
        """Run one stage, or reuse its artifact; deal with missing upstream as ``upstream`` says.

        Raises:
            MissingArtifact: an earlier stage is missing and ``upstream`` is ``require``.
        """
        artifact = self.artifact(stage)
        if artifact.complete and not self.config.force:
            self._reuse(artifact)
            return artifact
        missing = [name for name in self.order(stage)[:-1] if not self.artifact(name).complete]
        asked = [name for name in missing if self._stage(name).script != STAGES[stage].script]
        if asked and self.config.upstream is Upstream.require:
            raise MissingArtifact(
                f"no finished {asked[0]} for this configuration (looked in {self.artifact(asked[0]).directory}).\n"
                f"Run:  {self.command(asked[0])}     or add upstream=build"
            )
        self._run_all((*missing, stage), forced={stage} if self.config.force else set(), script=STAGES[stage].script)
        return artifact

    def make_all(self) -> Artifact:
        """Run the stages in order, reusing what is complete. With ``force=true`` each is done again.

        Raises:
            ConfigError: shards are asked for.
        """
        if self.config.shard.count > 1:
            raise ConfigError(
                "shards share out one stage, and this makes them all. Give shard.index and shard.count to "
                "generate_seeds.py or refine.py, one after the other"
            )
        order = self.order("segmenter")
        if self.config.force:
            self._run_all(order, forced=set(order))
        else:
            for name in order:
                if self.artifact(name).complete:
                    self._reuse(self.artifact(name))
            self._run_all([name for name in order if not self.artifact(name).complete], forced=set())
        return self.artifact("segmenter")

    def _run_all(self, stages: Sequence[str], *, forced: set[str], script: str = "") -> None:
        """Run stages. Shards share out those of ``script``; what these build on is made by the one that comes first."""
        self._check_trainer()
        self._check_processes(stages)
        # every mistake in the configuration shows here, before the first hour of work
        trackers, parts = build(self.config, "logger") or {}, {}
        self._warn_of_overlap()
        for name in stages:
            pl.seed_everything(self.config.seed, workers=True, verbose=False)
            pipeline, stage = self.owner(name)
            parts[name] = STAGES[stage].build(pipeline.config, self.data)
        for name in stages:
            pipeline, stage = self.owner(name)
            if STAGES[stage].script != script:
                pipeline = pipeline.whole
            pipeline._run(stage, parts.pop(name), trackers.values(), force=name in forced)
            if stage in pipeline.made:
                self.made.add(name)
            if not pipeline.artifact(stage).complete:  # other shards have images left
                break

    def follow(self) -> None:
        """Take part, as one of several processes, in the stages that the leader runs, until it says that all is done.

        The leader alone decides what is run, locks, logs and publishes.
        """
        while (message := distributed.told()) is not None:
            name, labels_of, fingerprints, trained = message
            pipeline, root = self.with_labels(Labels[labels_of]), Path(self.config.paths.artifacts)
            artifact = Artifact(root, name, fingerprints[name])
            pl.seed_everything(self.config.seed, workers=True, verbose=False)
            parts = STAGES[name].build(pipeline.config, self.data)
            upstream = {
                need: Artifact(root, self.owner(need)[1], fingerprints[need]) for need in fingerprints if need != name
            }
            other = None if trained is None else Artifact(artifact.root, name, trained)
            pl.seed_everything(self.config.seed, workers=True, verbose=False)
            STAGES[name].run(Context(pipeline.config, self.data, artifact, upstream, NullTracker(), other), parts)

    def _stage(self, name: str) -> Stage:
        return STAGES[self.owner(name)[1]]

    def _check_trainer(self) -> None:
        if self.config.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ConfigError("trainer asks for a GPU, but torch sees none. Use trainer=default (or trainer=cpu)")
        if device_of(self.config.trainer).type == "cpu":  # Lightning would compute in bf16, under the other's name
            for key in ("trainer.precision", "seeds.precision"):
                if OmegaConf.select(self.config, key) == "16-mixed":
                    raise ConfigError(f"{key}=16-mixed needs a GPU, and this run has none. Use bf16-mixed or 32-true")
        count, train, val = distributed.world(), self.data.train, self.data.val
        if count > min(len(self.data.ids(train)), len(self.data.ids(val))):
            raise ConfigError(f"{count} processes, but {train} or {val} has fewer images. Use fewer trainer.devices")
        if self.config.trainer.sync_batchnorm and count > 1 and device_of(self.config.trainer).type == "cpu":
            raise ConfigError("trainer.sync_batchnorm=true needs GPUs")

    def _check_processes(self, stages: Iterable[str]) -> None:
        meant = distributed.training_processes(self.config.trainer)
        for stage in stages:
            pipeline, name = self.owner(stage)
            if _trains(name) and meant != distributed.world() and (self.config.force or not pipeline._trained(name)):
                raise ConfigError(
                    f"trainer.processes={meant} says that {stage} is trained by {meant} processes, and this run has "
                    f"{distributed.world()}. Make {stage} with trainer=ddp trainer.devices={meant}, or leave "
                    f"trainer.processes out"
                )

    def _warn_of_overlap(self) -> None:
        shared = sorted(set(self.data.ids(self.data.train)) & set(self.data.ids(self.data.val)))
        if shared:
            log.warning(
                "%d images are in both %s and %s (the first is %s): numbers on %s are not of unseen images",
                len(shared), self.data.train, self.data.val, shared[0], self.data.val,
            )  # fmt: skip

    def _reuse(self, artifact: Artifact) -> None:
        metric = artifact.metrics.get(STAGES[artifact.stage].metric)
        number = "" if metric is None else f" ({STAGES[artifact.stage].metric} {100 * metric:.1f})"
        log.info("%s: reusing %s%s", artifact.stage, artifact.directory, number)

    def _run(self, name: str, parts: Any, trackers: Iterable[TrackerFactory], *, force: bool) -> None:
        artifact = self.artifact(name)
        if self.config.shard.count > 1 and STAGES[name].share and not self._share(name, parts):
            return
        with artifact.locked():
            if artifact.complete and not force:  # another process finished it while this one waited
                self._reuse(artifact)
                return
            if force:
                artifact.set_aside()
            try:
                self._work(name, parts, trackers, force=force)
            except BaseException:
                artifact.restore()  # a forced run that fails costs nothing of what was there
                raise
            artifact.drop_old()

    def _share(self, name: str, parts: Any) -> bool:
        """Do the part of this shard, beside others that do theirs; whether all images are there now."""
        artifact, share, shard = self.artifact(name), STAGES[name].share, self.config.shard
        assert share is not None
        with artifact.locked(shared=True):
            if artifact.complete:
                return True
            artifact.directory.mkdir(parents=True, exist_ok=True)
            pl.seed_everything(self.config.seed, workers=True, verbose=False)
            upstream = {need: self.artifact(need) for need in self.needs(name)}
            started = time.perf_counter()
            try:
                left = share(Context(self.config, self.data, artifact, upstream, NullTracker()), parts)
            finally:
                artifact.add_seconds(time.perf_counter() - started)
        if left:
            log.info(
                "%s: shard %d of %d is done; %d of %d images are left to others. The last of them finishes the stage; "
                "if one does not come to its end, this does:  %s",
                name, shard.index, shard.count, left, len(self.data.ids(self.data.train)), self.command(name),
            )  # fmt: skip
        return not left

    def _work(self, name: str, parts: Any, trackers: Iterable[TrackerFactory], *, force: bool) -> None:
        artifact = self.artifact(name)
        artifact.prepare()
        log.info("%s: %s", name, artifact.directory)
        pl.seed_everything(self.config.seed, workers=True, verbose=False)
        with self._tracker(artifact, trackers) as tracker:
            started = time.perf_counter()
            try:
                outcome = self._carry_out(name, parts, tracker, force=force)
            except BaseException:
                artifact.add_seconds(time.perf_counter() - started)
                raise
            metrics = outcome.metrics | (self.ceiling() if name == "segmenter" else {})
            seconds = [*artifact.seconds, time.perf_counter() - started]
            artifact.publish(self._manifest(name, outcome, seconds), metrics)
            tracker.log_metrics({key: value for key, value in metrics.items() if isinstance(value, (int, float))})
            tracker.log_output(artifact)
        self.made.add(name)
        table(f"{name}  {artifact.fingerprint}", outcome.summary)

    def _carry_out(self, name: str, parts: Any, tracker: Trackers, *, force: bool) -> Outcome:
        """Let the stage do its work, in all processes of the run where it is shared."""
        stage, artifact = STAGES[name], self.artifact(name)
        upstream = {need: self.artifact(need) for need in self.needs(name)}
        trained = None if force else self._trained(name)
        for found in (*upstream.values(), *([trained] if trained else [])):
            tracker.log_input(found)
        if stage.shared:  # with the fingerprints, for which every file of the set is looked at
            fingerprints = {each: self.fingerprint(each) for each in (name, *self.needs(name))}
            distributed.tell((name, self.config.labels.name, fingerprints, trained and trained.fingerprint))
        return stage.run(Context(self.config, self.data, artifact, upstream, tracker, trained), parts)

    def _trained(self, name: str) -> Artifact | None:
        """A finished segmenter with the weights of this one, which was tested in another way: the last one trained."""
        own = self.artifact(name)
        if name != "segmenter" or own.checkpoint.is_file():  # a training that was interrupted goes on
            return None
        wanted, found = self.training_fingerprint(name), []
        for path in own.directory.parent.glob(f"{'[0-9a-f]' * FINGERPRINT_DIGITS}/manifest.json"):
            other = Artifact(own.root, name, path.parent.name)
            with contextlib.suppress(CorruptArtifact):  # what is broken helps nobody, and harms nobody here
                manifest = other.manifest
                if other != own and other.has_weights and manifest.get("training") == wanted:
                    found.append(("weights_of" not in manifest["facts"], manifest["created"], other))
        return max(found, key=lambda item: item[:2])[2] if found else None

    def ceiling(self) -> dict[str, float]:
        """``ceiling``: the fully supervised mIoU of the same segmenter, where it has been measured; else nothing."""
        if self.config.labels is Labels.ground_truth:
            return {}
        full = self.with_labels(Labels.ground_truth).artifact("segmenter")
        return {"ceiling": full.metrics["miou"]} if full.complete else {}

    def with_labels(self, labels: Labels) -> Pipeline:
        """The same pipeline with a segmenter that learns from other labels."""
        return self._alike(labels=labels)

    @cached_property
    def whole(self) -> Pipeline:
        """The same pipeline without shards: this one, if it has none."""
        return self._alike(shard={"index": 0, "count": 1}) if self.config.shard.count > 1 else self

    def _alike(self, **changes: Any) -> Pipeline:
        config = self.config.copy()
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
        other = Pipeline(config, overrides=self.overrides, experiment=self.experiment, data=self.data)
        other._facts = self._facts  # of the same images: every file need not be looked at again
        return other

    def _tracker(self, artifact: Artifact, factories: Iterable[TrackerFactory]) -> Trackers:
        directory = Path(self.config.paths.logs) / self.experiment / f"{artifact.stage}-{artifact.fingerprint}"
        tracker = Trackers.build(
            factories,
            stage=artifact.stage,
            experiment=self.experiment,
            fingerprint=artifact.fingerprint,
            directory=directory,
        )
        tracker.log_config(OmegaConf.to_container(self.config, resolve=True, enum_to_str=True))  # type: ignore[arg-type]
        return tracker

    def _supervision(self, name: str, outcome: Outcome) -> str:
        """What the result was learnt or chosen with, here and in earlier stages; not how those were tested."""
        own = outcome.supervision.split("; ")
        earlier = [self.artifact(need).manifest["supervision"].split("; ") for need in self.needs(name)]
        kept = [part for parts in earlier for part in parts if not part.endswith("(inference)")]
        return "; ".join(dict.fromkeys(own[:1] + kept + own[1:]))

    def _manifest(self, name: str, outcome: Outcome, seconds: Sequence[float]) -> dict[str, Any]:
        return {
            "stage": name,
            "version": STAGES[name].version,
            "fingerprint": self.fingerprint(name),
            **({"training": self.training_fingerprint(name)} if name == "segmenter" else {}),
            "experiment": self.experiment,
            "seed": self.config.seed,
            "supervision": self._supervision(name, outcome),
            "upstream": {need: self.fingerprint(need) for need in self.needs(name)},
            "data": {
                "name": self.data.name,
                "root": str(self.data.root.absolute()),
                "tags": self.data.tag_source,
                "classes": list(self.data.classes),
                "splits": {
                    "train": {"name": self.data.train, "images": len(self.data.ids(self.data.train))},
                    "val": {"name": self.data.val, "images": len(self.data.ids(self.data.val))},
                },
                "sha256": self.data_digest(),
            },
            "config": self.read_config(name),
            "command": self.command(name),
            "facts": dict(outcome.facts),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(sum(seconds), 1),  # of all runs and shards that worked on it
            "wall_parts": [round(part, 1) for part in seconds],
            **environment(),
        }


def _trains(stage: str) -> bool:
    return "trainer.precision" in STAGES[stage].reads


def _hashable(value: Any, path: str) -> Any:
    """Drop what moves no number; let a file of weights stand for its content and not for its name."""
    if isinstance(value, dict):
        paths = {key: f"{path}.{key}" for key in value}
        return {
            key: _hashable(item, paths[key])
            for key, item in value.items()
            if paths[key] not in NOT_HASHED and not (paths[key] in ADDED and ADDED[paths[key]] == item)
        }
    if isinstance(value, list):
        return [_hashable(item, path) for item in value]
    if path.endswith(".weights") and isinstance(value, str) and Path(value).is_file():
        with Path(value).open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return value


def environment() -> dict[str, Any]:
    """Commit, versions and hardware: recorded, not hashed."""
    packages = (
        "torch",
        "torchvision",
        "pytorch-lightning",
        "timm",
        "segmentation-models-pytorch",
        "numpy",
        "scikit-image",
    )
    return {
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "hardware": {
            "machine": platform.machine(),
            "cores": cores(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this program, with ``-dirty`` where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
