"""Runs of several processes, with gloo on the CPU: started from outside as torchrun would, or by the script itself."""

from __future__ import annotations

import _thread
import csv
import errno
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny
import torch
from conftest import MakePipeline
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pytorch_lightning.utilities import rank_zero_only
from safetensors.torch import load_file
from torch import Tensor, nn

from wsss import artifacts, distributed
from wsss.artifacts import Artifact, Seeds
from wsss.config import TrainerConfig
from wsss.data import DataModule
from wsss.distributed import Place, interleaved, started
from wsss.errors import ConfigError, DataError, LockTimeout, MissingArtifact
from wsss.models import Classifier
from wsss.pipeline import STAGES, Pipeline
from wsss.stages import segmenter
from wsss.stages.context import Context
from wsss.tracking import NullTracker
from wsss.training.fit import make_trainer
from wsss.training.shells import ClassifierShell

DDP = ("trainer=ddp", "trainer.accelerator=cpu")

# --- processes --------------------------------------------------------------------------------------------------------


def _process(work: Callable[[], Any], variables: dict[str, str], results: Any) -> None:
    os.environ.update(variables)
    rank_zero_only.rank = int(variables["RANK"])  # Lightning reads it when it is imported, which has happened before
    torch.set_num_threads(1)
    try:
        results.send(work())
    except Exception as error:
        results.send(repr(error))


def ranks(work: Callable[[], Any], count: int) -> list[Any]:
    """What ``work`` returns in each of ``count`` processes that find the variables of torchrun; None where it died."""
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(["wsss.cli", "tiny", "test_distributed"])
    port, running = find_free_network_port(), []
    for rank in range(count):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
        variables |= {"MASTER_PORT": port}
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_process, args=(work, {k: str(v) for k, v in variables.items()}, sender))
        process.start()
        sender.close()
        running.append((process, receiver))
    found = []
    for process, receiver in running:
        try:
            found.append(receiver.recv() if receiver.poll(120) else "hangs")
        except EOFError:
            found.append(None)
        process.join(20)
        assert not process.is_alive()
    return found


def _inside(work: Callable[[], Any], count: int) -> Any:
    with distributed.joined(TrainerConfig(accelerator="cpu", devices=count, strategy="ddp")):
        return work()


def connected(work: Callable[[], Any], count: int) -> list[Any]:
    """The same in processes that know each other."""
    return ranks(partial(_inside, work, count), count)


# --- one process ------------------------------------------------------------------------------------------------------


def test_one_process_is_all_of_the_run():
    assert (distributed.world(), distributed.rank(), distributed.leader()) == (1, 0, True)
    assert distributed.share([3, 4, 5]) == [3, 4, 5]
    assert distributed.gather("x") == ["x"]
    assert distributed.lead(lambda: 7) == 7
    assert distributed.total(np.array([1, 2])).tolist() == [1, 2]
    with distributed.joined(TrainerConfig(strategy="ddp", accelerator="cpu")):
        assert distributed.world() == 1


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_what_is_shared_out_comes_together_again(count: int):
    items = list(range(7))
    assert interleaved([items[rank::count] for rank in range(count)]) == items


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"devices": 1}, 1),
        ({"devices": [3]}, 1),
        ({"devices": 4}, 1),  # strategy=auto does not start processes; the configuration refuses it
        ({"strategy": "ddp", "devices": 4}, 4),
        ({"strategy": "ddp", "devices": [1, 5, 6]}, 3),
        ({"strategy": "ddp", "devices": "0,2"}, 2),
        ({"strategy": "ddp", "devices": 4, "num_nodes": 2}, 8),
        ({"strategy": "ddp", "devices": "auto", "accelerator": "cpu"}, 1),
        ({"strategy": "ddp_find_unused_parameters_true", "devices": 2}, 2),
    ],
)
def test_how_many_processes_are_asked_for(options: dict[str, Any], wanted: int):
    assert distributed.processes(TrainerConfig(**options)) == wanted


def test_what_starters_tell():
    assert started({}) is None
    assert started({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    assert started({"RANK": "0", "WORLD_SIZE": "1"}) is None
    torchrun = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "GROUP_RANK": "1"}
    assert started(torchrun | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Place(5, 8, 1, 1, "a", 1)
    batch = {"SLURM_NTASKS": "9", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    batch |= {"SLURM_JOB_NODELIST": "node[06-08]", "SLURM_JOB_ID": "123456", "SLURM_JOB_NAME": "train"}
    assert started(batch) is None  # a script of sbatch is one process, however many tasks are reserved
    slurm = batch | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
    assert started(slurm) == Place(5, 8, 1, 1, "node06", 18456)
    assert started(slurm | {"SLURM_STEP_NODELIST": "node[07-08]"}) == Place(5, 8, 1, 1, "node07", 18456)
    assert started(slurm | {"SLURM_JOB_NAME": "bash"}) is None  # commands typed into an allocation


def test_what_is_started_must_be_what_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    two = TrainerConfig(accelerator="cpu", devices=2, strategy="ddp")
    assert distributed.must_start(two, sharded=False)
    assert not distributed.must_start(TrainerConfig(), sharded=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ConfigError, match=r"4 processes have been started, but .* ask for 2"):
        distributed.must_start(two, sharded=False)
    with pytest.raises(ConfigError, match="ask for 1"):
        distributed.must_start(TrainerConfig(), sharded=False)
    assert not distributed.must_start(TrainerConfig(), sharded=True)  # tasks of srun that share by shard.index
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert not distributed.must_start(two, sharded=False)


def test_a_batch_script_starts_its_processes_itself(monkeypatch: pytest.MonkeyPatch):
    for key, value in {"NTASKS": "2", "PROCID": "0", "JOB_ID": "77", "JOB_NAME": "batch"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert not distributed.must_start(TrainerConfig(), sharded=False)
    assert distributed.must_start(TrainerConfig(accelerator="cpu", devices=2, strategy="ddp"), sharded=False)
    with pytest.raises(ConfigError, match="not a step of srun"):
        distributed.supervise([], TrainerConfig(devices=2, num_nodes=2, strategy="ddp"), directory=Path())


@pytest.fixture
def two_started(monkeypatch: pytest.MonkeyPatch) -> TrainerConfig:
    """What is asked for, with the variables of the first of two processes, whose other one never comes."""
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "NODE_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return TrainerConfig(accelerator="cpu", devices=2, strategy="ddp")


def test_processes_that_do_not_come_are_not_waited_for_for_ever(
    two_started: TrainerConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="wsss")
    monkeypatch.setattr(distributed, "_MEETING", timedelta(seconds=2))
    monkeypatch.setattr(distributed, "_PATIENCE", 0.1)
    port = os.environ["MASTER_PORT"]
    with (
        pytest.raises(ConfigError, match=rf"2 processes .* at 127.0.0.1:{port} .* 1 of 2 came within 2 seconds"),
        distributed.joined(two_started),
    ):
        pass
    assert f"waiting for the 2 processes of this run to connect at 127.0.0.1:{port}" in caplog.text
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match="nobody listens there"), distributed.joined(two_started):
        pass


def test_a_port_in_use_is_told(two_started: TrainerConfig):
    with (
        socket.create_server(("", int(os.environ["MASTER_PORT"]))),
        pytest.raises(ConfigError, match="the port is in use"),
        distributed.joined(two_started),
    ):
        pass


# --- GPUs -------------------------------------------------------------------------------------------------------------


def show_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    """Let torch see so many."""
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize("devices", [4, [0, 3], "1,3"])
def test_more_devices_than_gpus_are_refused(devices: Any, monkeypatch: pytest.MonkeyPatch, two_started: TrainerConfig):
    show_gpus(monkeypatch, 3)
    trainer = TrainerConfig(devices=devices, strategy="ddp")
    with pytest.raises(ConfigError, match=r"asks for GPU 3 \(counted from 0\), and torch sees 3"):
        distributed.check_start(trainer, cores=64)
    with pytest.raises(ConfigError, match="asks for GPU 3"), distributed.joined(trainer):
        pass
    show_gpus(monkeypatch, 4)
    distributed.check_start(trainer, cores=1)


def test_a_process_that_sees_one_gpu_takes_it(two_started: TrainerConfig, monkeypatch: pytest.MonkeyPatch):
    """srun --gpus-per-task=1: the fourth process of a machine, too, has its GPU under the number 0."""
    show_gpus(monkeypatch, 1)
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(distributed, "_MEETING", timedelta(seconds=1))
    monkeypatch.setattr(distributed, "_apart", False)
    trainer = TrainerConfig(devices=2, strategy="ddp")
    for key in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(key, "1")
    with pytest.raises(ConfigError, match="nobody listens"), distributed.joined(trainer):
        pass
    assert taken == [0]
    assert (os.environ["LOCAL_RANK"], os.environ["NODE_RANK"]) == ("0", "1")
    monkeypatch.setattr(distributed, "world", lambda: 2)
    assert distributed.layout(trainer) == (1, 2)  # to Lightning: two machines with a GPU each
    monkeypatch.setattr(distributed, "_end_with_supervisor", lambda: None)
    monkeypatch.setenv(distributed.SUPERVISOR, "1")  # which shows every GPU to each
    with pytest.raises(ConfigError, match="torch sees 1"), distributed.joined(trainer):
        pass


def test_processes_on_the_cpu_are_as_many_as_it_can_serve(monkeypatch: pytest.MonkeyPatch):
    show_gpus(monkeypatch, 0)
    many = TrainerConfig(devices=9, strategy="ddp")
    with pytest.raises(ConfigError, match=r"9 processes on the CPU \(cores here: 2\). Use at most 4"):
        distributed.check_start(many, cores=2)
    distributed.check_start(many, cores=5)
    distributed.check_start(TrainerConfig(devices=4, strategy="ddp"), cores=1)
    with pytest.raises(ConfigError, match="asks for GPUs, but torch sees none"):
        distributed.check_start(TrainerConfig(accelerator="gpu", devices=2, strategy="ddp"), cores=64)


def _told_of_the_cpu() -> list[str]:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("wsss").addHandler(handler)
    logging.getLogger("wsss").setLevel("INFO")
    with distributed.joined(TrainerConfig(devices=2, strategy="ddp")):
        return told


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_that_there_is_no_gpu_is_told_once():
    assert ranks(_told_of_the_cpu, 2) == [["no GPU: 2 processes on the CPU"], []]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.devices=2", "use trainer=ddp"),
        ("trainer.devices=auto", "use trainer=ddp"),
        ("trainer.num_nodes=2", "use trainer=ddp"),
        ("trainer.devices=many", "a number above 0, a list, or auto"),
        ("trainer.devices=[]", "a number above 0, a list, or auto"),
        ("trainer.strategy=fsdp", "one of auto, ddp"),
        ("trainer.processes=0", "1 or more"),
        ("shard.count=0", "1 or more"),
        ("shard.index=2", "from 0 to 0"),
    ],
)
def test_values_that_cannot_be(tiny_pipeline: MakePipeline, override: str, told: str):
    with pytest.raises(ConfigError, match=told):
        tiny_pipeline(override)


def test_work_is_shared_out_in_one_way(tiny_pipeline: MakePipeline):
    with pytest.raises(ConfigError, match="use one of them"):
        tiny_pipeline("shard.count=2", "trainer.strategy=ddp")
    with pytest.raises(ConfigError, match="other shards"):
        tiny_pipeline("shard.count=2", "force=true")


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_the_number_of_processes_is_part_of_what_was_trained(finished: Pipeline, tiny_pipeline: MakePipeline):
    def moved(*overrides: str) -> set[str]:
        other = tiny_pipeline(*overrides)
        return {stage for stage in tiny.STAGES if other.fingerprint(stage) != finished.fingerprint(stage)}

    assert moved("trainer.strategy=ddp") == set()
    assert moved("trainer.sync_batchnorm=true") == set()  # of one process
    assert moved("trainer.strategy=ddp", "trainer.devices=2") == set(tiny.STAGES)
    two = tiny_pipeline("trainer.strategy=ddp", "trainer.devices=2")
    assert "trainer.processes" not in two.read_config("seeds")
    for same in (("trainer.processes=2",), ("trainer.strategy=ddp", "trainer.num_nodes=2")):
        assert tiny_pipeline(*same).fingerprint("segmenter") == two.fingerprint("segmenter")
    for other in ("trainer.devices=3", "trainer.sync_batchnorm=true"):
        assert tiny_pipeline("trainer.strategy=ddp", "trainer.devices=2", other).fingerprint("classifier") not in (
            two.fingerprint("classifier"),
            finished.fingerprint("classifier"),
        )


def test_results_of_more_processes_are_found_but_not_made(tiny_pipeline: MakePipeline):
    with pytest.raises(ConfigError, match=r"classifier is trained by 2 processes, and this run has 1"):
        tiny_pipeline("trainer.processes=2").make("classifier")
    pipeline = tiny_pipeline("trainer.processes=2")
    with pytest.raises(MissingArtifact) as told:
        pipeline.make("seeds")
    assert "trainer=ddp trainer.devices=2 trainer.accelerator=cpu" in str(told.value)  # and this would make it
    assert "trainer.processes" not in str(told.value)
    assert "trainer.processes=2" in pipeline.command("seeds")


# --- together ---------------------------------------------------------------------------------------------------------


def _talk() -> dict[str, Any]:
    rank = distributed.rank()
    network = nn.BatchNorm2d(1)
    network.running_mean += rank
    distributed.level_buffers(network)
    message = distributed.told() if rank else distributed.tell("go")
    return {
        "rank": rank,
        "leads": distributed.leader(),
        "share": list(distributed.share("abcd")),
        "together": distributed.collect([letter * 2 for letter in distributed.share("abcd")]),
        "sum": distributed.total(np.array([2**60 + 1, rank])).tolist(),
        "led": distributed.lead(lambda: f"from {distributed.rank()}"),
        "told": message,
        "mean": network.running_mean.item(),
    }


def test_processes_that_talk():
    first, second, third = connected(_talk, 3)
    assert [process["rank"] for process in (first, second, third)] == [0, 1, 2]
    assert [process["leads"] for process in (first, second, third)] == [True, False, False]
    assert (first["share"], second["share"], third["share"]) == (["a", "d"], ["b"], ["c"])
    assert [process["told"] for process in (first, second, third)] == [None, "go", "go"]
    for process in (first, second, third):
        assert process["together"] == ["aa", "bb", "cc", "dd"]
        assert process["sum"] == [3 * 2**60 + 3, 3]  # exact beyond what floats hold
        assert process["led"] == "from 0"
        assert process["mean"] == 0


def _leave() -> None:
    if distributed.rank():
        os._exit(9)
    distributed.told()


def _noticed() -> bool:
    try:
        _inside(_leave, 2)
    except RuntimeError as error:
        return distributed.lost(error)
    return False


def test_the_end_of_a_process_is_noticed():
    assert ranks(_noticed, 2) == [True, None]
    assert not distributed.lost(RuntimeError("Connection reset by peer"))  # there is no other


# --- the stages -------------------------------------------------------------------------------------------------------


class Plain(Classifier):
    """Neither batch norm nor dropout: a batch is the sum of its images."""

    def __init__(self, *, num_classes: int, weights: str | None = None, **_: Any) -> None:
        encoder = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        super().__init__(
            encoder, features=8, num_classes=num_classes, stages={5: "3"}, mean=(0.5,) * 3, std=(0.25,) * 3
        )


def _script(script: str, arguments: tuple[str, ...], prepare: Callable[[], Any] | None = None) -> tuple[int, str, Any]:
    seen = prepare() if prepare else None
    return (*tiny.call(script, *arguments), seen)


def run(script: str, *arguments: str, count: int, prepare: Callable[[], Any] | None = None) -> list[Any]:
    """Exit code, output and what ``prepare`` has noted, of a script in each of ``count`` processes."""
    return ranks(partial(_script, script, (*arguments, *DDP, f"trainer.devices={count}"), prepare), count)


def _note_writes() -> list[tuple[str, str]]:
    """Notes each file of an image, or of a network, that this process writes."""
    written: list[tuple[str, str]] = []

    def noting(kind: str) -> None:
        write = getattr(Artifact, kind)

        def noted(self: Artifact, what: Any, *arguments: Any, **options: Any) -> None:
            written.append((f"{self.stage} {kind}", what if isinstance(what, str) else ""))
            write(self, what, *arguments, **options)

        setattr(Artifact, kind, noted)

    for kind in ("write_seeds", "write_mask", "write_weights", "publish"):
        noting(kind)
    return written


OVERRIDES = ("labels=predicted", "recipe.segmenter.keep=best_val", "logger=csv")


@pytest.fixture(scope="module")
def in_three(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The whole pipeline by three processes, whose shares of 8 and of 4 images differ."""
    base = tmp_path_factory.mktemp("three")
    return base, run(tiny.ALL, *tiny.command(tiny_set, base, *OVERRIDES), count=3, prepare=_note_writes)


@pytest.fixture
def alone(in_three: tuple[Path, list[Any]], tiny_set: Path) -> Pipeline:
    """The same configuration in this process, to look at what the three made."""
    return tiny.pipeline(tiny_set, in_three[0], *OVERRIDES, "trainer.processes=3")


def test_the_whole_pipeline_by_three_processes(in_three: tuple[Path, list[Any]], alone: Pipeline):
    _, ((code, output, _), *others) = in_three
    assert code == 0, output
    assert "final val mIoU" in output
    assert "Warning" not in output
    assert [(code, output) for code, output, _ in others] == [(0, "")] * 2
    for stage in alone.order("segmenter"):
        assert alone.artifact(stage).complete, stage
    assert not list(Path(alone.config.paths.artifacts).rglob("*.partial"))


def test_every_image_is_written_once_and_the_rest_by_the_leader(in_three: tuple[Path, list[Any]]):
    writes = [seen for _, _, seen in in_three[1]]
    whole = sorted(item for seen in writes for item in seen)
    for kind, ids in (("seeds write_seeds", tiny.TRAIN), ("relabels write_mask", tiny.TRAIN)):
        by_process = [[id for what, id in seen if what == kind] for seen in writes]
        assert sorted(id for written in by_process for id in written) == sorted(ids), kind
        assert all(by_process), kind
    assert sorted(id for what, id in whole if what == "segmenter write_mask") == sorted(tiny.VAL * 2)  # and the teacher
    assert {what for seen in writes[1:] for what, _ in seen} == {
        "seeds write_seeds", "relabels write_mask", "segmenter write_mask",
    }  # fmt: skip


def test_metrics_are_those_of_one_process(alone: Pipeline, tiny_pipeline: MakePipeline, tiny_set: Path):
    """On the same weights, to the last bit."""
    single = tiny_pipeline(*OVERRIDES, "trainer.processes=3")
    tiny.adopt(single, alone, "classifier", "teacher")
    for stage in ("seeds", "labels", "relabels"):
        assert tiny.results(single.make(stage)) == tiny.results(alone.artifact(stage)), stage

    classifier = STAGES["classifier"].build(single.config, single.data)
    alone.artifact("classifier").read_weights(classifier.network)
    shell = ClassifierShell(classifier.network, classifier.recipe, seed=0)
    module = DataModule(single.data, augment=classifier.recipe.augment, batch_size=2, seed=0, workers=0)
    trainer = make_trainer(single.config.trainer, loggers=[], callbacks=[])
    (logged,) = trainer.validate(shell, datamodule=module, verbose=False)
    assert logged["val/map"] == np.float32(alone.artifact("classifier").metrics["map"])
    assert list(alone.artifact("classifier").metrics["ap"].values()) == shell.average_precisions().tolist()

    parts = segmenter.build(single.config, single.data)
    artifact = single.artifact("segmenter")
    alone.artifact("segmenter").read_weights(parts.network)
    metrics, _ = segmenter.evaluate(Context(single.config, single.data, artifact, {}, NullTracker()), parts)
    assert metrics == {key: alone.artifact("segmenter").metrics[key] for key in metrics}
    per_image = [a.directory / "per_image.json" for a in (artifact, alone.artifact("segmenter"))]
    assert per_image[0].read_bytes() == per_image[1].read_bytes()


def test_the_best_epoch_is_measured_over_all_processes(alone: Pipeline):
    """The checkpoint that was kept has the best of the logged values."""
    artifact = alone.artifact("segmenter")
    state = torch.load(artifact.checkpoint, weights_only=True)
    (kept,) = [value["best"] for key, value in state["callbacks"].items() if key.startswith("KeepBest")]
    assert kept == max(value for _, value in _logged(alone, "segmenter", "val/miou"))


def _logged(pipeline: Pipeline, stage: str, name: str) -> list[tuple[int, float]]:
    folder = Path(pipeline.config.paths.logs) / pipeline.experiment / f"{stage}-{pipeline.fingerprint(stage)}"
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [(int(row["step"]), float(row["value"])) for row in csv.DictReader(file) if row["name"] == name]


PLAIN = ("classifier._target_=test_distributed.Plain", "logger=csv", "trainer.checkpoint_every=1")


def test_two_processes_learn_what_one_does_from_batches_twice_the_size(tiny_set: Path, tmp_path: Path):
    bases = tmp_path / "one", tmp_path / "two"
    code, output = tiny.call("train.py", *tiny.command(tiny_set, bases[0], *PLAIN, "recipe.classifier.batch_size=4"))
    assert code == 0, output
    (code, output, _), _ = run("train.py", *tiny.command(tiny_set, bases[1], *PLAIN), count=2)
    assert code == 0, output
    one = tiny.pipeline(tiny_set, bases[0], *PLAIN, "recipe.classifier.batch_size=4")
    two = tiny.pipeline(tiny_set, bases[1], *PLAIN, "trainer.processes=2")
    weights = [load_file(p.artifact("classifier").directory / "weights.safetensors") for p in (one, two)]
    begun = _weights_at_the_start(one)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(value, begun[name], rtol=1e-4, atol=1e-6), "nothing learnt"
    losses = [_logged(p, "classifier", "train/loss") for p in (one, two)]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def _weights_at_the_start(pipeline: Pipeline) -> dict[str, Tensor]:
    pl.seed_everything(pipeline.config.seed, workers=True, verbose=False)
    parts = STAGES["classifier"].build(pipeline.config, pipeline.data)
    return parts.network.state_dict()


def _die_in_the_middle(*, of: int | None) -> None:
    """This process ends at the second batch of the second epoch, as if killed; with ``of``, that rank alone."""
    step = ClassifierShell.training_step

    def fatal(self: ClassifierShell, batch: Any, index: int) -> Tensor:
        if (self.current_epoch, index) == (1, 1) and of in (None, distributed.rank()):
            os._exit(9)
        return step(self, batch, index)

    ClassifierShell.training_step = fatal


EVERY_STEP = ("logger=csv", "trainer.checkpoint_every=1")


def test_a_killed_training_goes_on_to_the_same_bytes(tiny_set: Path, tmp_path: Path):
    bases = tmp_path / "whole", tmp_path / "killed"
    ((code, output, _), _) = run("train.py", *tiny.command(tiny_set, bases[0], *EVERY_STEP), count=2)
    assert code == 0, output
    again = tiny.command(tiny_set, bases[1], *EVERY_STEP)
    assert run("train.py", *again, count=2, prepare=partial(_die_in_the_middle, of=None)) == [None, None]
    whole, killed = (tiny.pipeline(tiny_set, base, *EVERY_STEP, "trainer.processes=2") for base in bases)
    assert not killed.artifact("classifier").complete
    ((code, output, _), _) = run("train.py", *again, count=2)
    assert "going on from" in output
    assert tiny.results(killed.artifact("classifier")) == tiny.results(whole.artifact("classifier"))
    assert _logged(killed, "classifier", "train/loss")[-1] == _logged(whole, "classifier", "train/loss")[-1]


def test_a_process_that_dies_ends_the_others(tiny_set: Path, tmp_path: Path):
    begun = time.monotonic()
    prepare = partial(_die_in_the_middle, of=1)
    first, second = run("train.py", *tiny.command(tiny_set, tmp_path), count=2, prepare=prepare)
    assert second is None
    code, output, _ = first
    assert code == distributed.LOST, output
    assert "another process of this run has ended" in output
    assert "Traceback" not in output
    assert time.monotonic() - begun < 100  # no wait for the end of a timeout


def _fail_at_one_image() -> None:
    write = Artifact.write_seeds

    def fail(self: Artifact, id: str, seeds: Seeds) -> None:
        if id == tiny.TRAIN[1]:
            raise DataError("disk full")
        write(self, id, seeds)

    Artifact.write_seeds = fail


def test_a_process_that_fails_says_why(tiny_set: Path, tmp_path: Path):
    command = tiny.command(tiny_set, tmp_path, "upstream=build")
    first, second = run("generate_seeds.py", *command, count=2, prepare=_fail_at_one_image)
    assert (first[0], second[0]) == (distributed.LOST, 2)
    assert "DataError: disk full" in second[1]
    assert "disk full" not in first[1]
    assert not tiny.pipeline(tiny_set, tmp_path, "trainer.processes=2").artifact("seeds").complete


def test_a_mistake_is_told_once(tiny_set: Path, tmp_path: Path):
    first, second = run("generate_seeds.py", *tiny.command(tiny_set, tmp_path), count=2)
    assert first[0] == 2
    assert "no finished classifier for this configuration" in first[1]
    assert second[:2] == (distributed.LOST, "")
    first, second = run("train.py", *tiny.command(tiny_set, tmp_path, "recipe.classifier.epochs=0"), count=2)
    assert (first[0], second[0]) == (2, 2)
    assert "recipe.classifier.epochs=0 must be 1 or more" in first[1]
    assert second[1] == ""


# --- started by the script itself -------------------------------------------------------------------------------------


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _ends(pid: int) -> bool:
    """Whether a process is gone in a moment: its output is closed before it is."""
    end = time.monotonic() + 30
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not _alive(pid)


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked up in /proc")


def supervise(tmp_path: Path, first: str, second: str) -> None:
    """Start two processes, without torch; each writes its id into a file before it does what is asked."""
    program = (
        "import os, signal, time; from pathlib import Path; rank = int(os.environ['RANK'])\n"
        "path = Path(f'{rank}.pid'); path.write_text(str(os.getpid()))\n"
        f"exec({[first, second]!r}[rank])"
    )
    trainer = TrainerConfig(accelerator="cpu", devices=2, strategy="ddp")
    distributed.supervise([sys.executable, "-c", program], trainer, directory=tmp_path)


@needs_proc
@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("time.sleep(60)", "exit(2)", 2),
        ("exit(2)", "time.sleep(60)", 2),
        ("exit(3)", "time.sleep(0.3); exit(2)", 2),  # the first has only lost the second
        ("signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)", "time.sleep(0.5); exit(3)", 3),
        ("time.sleep(60)", "time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)", 1),
        ("time.sleep(60)", "time.sleep(0.5); exit(128 + signal.SIGKILL)", 1),  # as those exit that heed a signal
    ],
)
def test_the_first_that_fails_ends_the_run(
    tmp_path: Path,
    first: str,
    second: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(distributed, "_GRACE", 1.0)
    with pytest.raises(SystemExit) as stop:
        supervise(tmp_path, first, second)
    assert stop.value.code == code
    pids = {path.stem: int(path.read_text()) for path in tmp_path.glob("*.pid")}
    assert not any(map(_alive, pids.values()))
    told = [record.getMessage() for record in caplog.records]
    if code == 1:
        assert told == [
            f"process 2 of 2 ({pids['1']}) was ended by SIGKILL; the others have been ended too. What is finished is "
            f"kept: the same command goes on from there"
        ]
    else:
        assert told == []  # it has said itself why


@needs_proc
def test_an_interrupt_reaches_every_process(tmp_path: Path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    threading.Timer(1.0, _thread.interrupt_main).start()
    note = "time.sleep(60)"
    try:
        with pytest.raises(KeyboardInterrupt):
            supervise(tmp_path, note, note)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not any(_alive(int(path.read_text())) for path in tmp_path.glob("*.pid"))


def test_processes_that_do_their_work(tmp_path: Path):
    note = "path.write_text(' '.join(os.environ[key] for key in ('WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR')))"
    supervise(tmp_path, note, note)
    assert [(tmp_path / f"{rank}.pid").read_text() for rank in (0, 1)] == ["2 0 127.0.0.1", "2 1 127.0.0.1"]


def test_other_machines_must_be_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="srun or torchrun"):
        distributed.supervise([], TrainerConfig(devices=2, num_nodes=2, strategy="ddp"), directory=Path())


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(("victim", "code"), [("interrupt", 130), ("supervisor", -signal.SIGKILL)])
def test_processes_end_together(tiny_set: Path, tmp_path: Path, victim: str, code: int):
    many = tiny.command(tiny_set, tmp_path, "recipe.classifier.epochs=1000", *DDP, "trainer.devices=2")
    process = tiny.start("train.py", *many, TINY_PAUSE="0.1")
    tiny.wait_for(lambda: list(tmp_path.rglob("last.ckpt")), process)
    leader, follower = _children(process.pid)
    process.send_signal(signal.SIGINT if victim == "interrupt" else signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert _ends(leader)
    assert _ends(follower)
    if victim == "interrupt":
        assert output.count("the same command goes on from here") == 1


@pytest.mark.slow
def test_jobs_of_a_sweep_start_processes_of_their_own(tiny_set: Path, tmp_path: Path):
    command = tiny.command(tiny_set, tmp_path, *DDP, "trainer.devices=2", "seed=5", "data.name='two words'")
    code, output = tiny.execute("train.py", "-m", *command)
    assert code == 0, output
    assert "mAP on val" in output
    assert tiny.pipeline(tiny_set, tmp_path, "seed=5", "trainer.processes=2").artifact("classifier").complete


# --- shards -----------------------------------------------------------------------------------------------------------


def test_shards_make_the_whole(finished: Pipeline, tiny_pipeline: MakePipeline, caplog: pytest.LogCaptureFixture):
    """The seeds and labels of two shards, made one after the other, are those of one run."""
    caplog.set_level("INFO", logger="wsss")
    first, second = (tiny_pipeline(f"shard.index={i}", "shard.count=2") for i in (0, 1))
    tiny.adopt(first, finished, "classifier")
    assert first.fingerprint("labels") == finished.fingerprint("labels")
    for stage, script in (("seeds", "generate_seeds.py"), ("labels", "refine.py")):
        caplog.clear()
        artifact = first.make(stage)
        assert not artifact.complete
        written = sorted(path.stem for path in artifact.directory.rglob("train_*"))
        assert written == sorted(tiny.TRAIN[0::2])
        assert f"{stage}: shard 0 of 2 is done; 4 of 8 images are left to others" in caplog.text
        (command,) = re.findall(rf"python {script} .*", caplog.text)
        assert "shard." not in command
        assert not first.make(stage).complete  # again: nothing to do, nothing broken
        before = {name: file for name, file in tiny.files(artifact.directory).items() if name != "seconds.txt"}
        assert second.make(stage).complete
        after = tiny.files(artifact.directory)
        assert {name: after[name] for name in before} == before
        assert tiny.results(artifact) == tiny.results(finished.artifact(stage))


def test_a_run_without_shards_finishes_them(finished: Pipeline, tiny_pipeline: MakePipeline):
    shard = tiny_pipeline("shard.index=1", "shard.count=3")
    tiny.adopt(shard, finished, "classifier")
    assert not shard.make("seeds").complete
    artifact = tiny_pipeline().make("seeds")
    assert tiny.results(artifact) == tiny.results(finished.artifact("seeds"))


def test_what_a_shared_stage_builds_on_is_made_whole_by_the_first(
    finished: Pipeline, tiny_pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
):
    """Shards of the labels that each left their part of the seeds to others would never come to the labels."""
    caplog.set_level("INFO", logger="wsss")
    shards = [tiny_pipeline(f"shard.index={i}", "shard.count=3", "upstream=build") for i in range(3)]
    tiny.adopt(shards[0], finished, "classifier")
    done = [shard.make("labels").complete for shard in shards]
    assert done == [False, False, True]
    assert caplog.text.count("seeds: /") == 1
    for stage in ("seeds", "labels"):
        assert tiny.results(shards[0].artifact(stage)) == tiny.results(finished.artifact(stage))


def test_all_stages_at_once_cannot_be_shared_out(tiny_pipeline: MakePipeline):
    with pytest.raises(ConfigError, match="shards share out one stage"):
        tiny_pipeline("shard.index=1", "shard.count=3").make_all()


def test_the_wall_time_is_that_of_all_shards(finished: Pipeline, tiny_pipeline: MakePipeline):
    shards = [tiny_pipeline(f"shard.index={i}", "shard.count=3") for i in range(3)]
    tiny.adopt(shards[0], finished, "classifier", "seeds")
    for shard in shards[:2]:
        shard.make("labels")
    artifact = shards[2].artifact("labels")
    artifact.add_seconds(100)  # as one that took longer
    before = artifact.seconds
    assert len(before) == 3
    shards[2].make("labels")
    parts = artifact.manifest["wall_parts"]
    assert parts[:3] == before
    assert len(parts) == 5  # the third shard, and the measuring
    assert artifact.manifest["wall_seconds"] == pytest.approx(sum(parts), abs=0.3)
    assert not (artifact.directory / "seconds.txt").exists()


def test_groups_of_images_are_shared_out_whole(finished: Pipeline, tiny_pipeline: MakePipeline):
    together = ("seeds.batch_size=3",)
    shards = [tiny_pipeline(*together, f"shard.index={i}", "shard.count=2") for i in (0, 1)]
    tiny.adopt(shards[0], finished, "classifier")
    assert not shards[0].make("seeds").complete
    assert shards[1].make("seeds").complete


def test_prototypes_are_learnt_by_the_first_shard(finished: Pipeline, tiny_pipeline: MakePipeline):
    shards = [tiny_pipeline("cam=lpcam", f"shard.index={i}", "shard.count=2") for i in (0, 1)]
    tiny.adopt(shards[0], finished, "classifier")
    shards[0].make("seeds")
    learnt = tiny.files(shards[0].artifact("seeds").directory)["prototypes.safetensors"]
    artifact = shards[1].make("seeds")
    assert artifact.complete
    assert tiny.files(artifact.directory)["prototypes.safetensors"] == learnt


def test_shards_work_side_by_side_and_nobody_publishes_meanwhile(tmp_path: Path):
    artifact = Artifact(tmp_path, "labels", "0123456789ab")
    with artifact.locked(shared=True), artifact.locked(shared=True, timeout=0):
        with pytest.raises(LockTimeout), artifact.locked(timeout=0):
            pass
        with artifact.locked(part="prototypes", timeout=0):
            pass
    with artifact.locked(timeout=0), pytest.raises(LockTimeout), artifact.locked(shared=True, timeout=0):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch):
    def flock(descriptor: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(artifacts.fcntl, "flock", flock)
    artifact = Artifact(tmp_path, "labels", "0123456789ab")
    with pytest.raises(ConfigError, match=r"\.lock cannot be locked .* paths\.artifacts"), artifact.locked():
        pass


def _shard(arguments: tuple[str, ...]) -> tuple[int, str]:
    """One of the tasks of srun, which it has told its number."""
    return tiny.call("generate_seeds.py", *arguments, f"shard.index={os.environ['RANK']}")


def test_shards_at_the_same_time(finished: Pipeline, tmp_path: Path):
    """Three processes at once; each image once, and one of them publishes."""
    pipeline = tiny.pipeline(finished.data.root, tmp_path)
    tiny.adopt(pipeline, finished, "classifier")
    found = ranks(partial(_shard, tiny.command(finished.data.root, tmp_path, "shard.count=3")), 3)
    assert [code for code, _ in found] == [0, 0, 0], found
    outputs = [output for _, output in found]
    assert sum("mIoU at 0.30" in output for output in outputs) == 1
    assert sorted(re.findall(r"^seeds (\d)/", "\n".join(outputs), re.MULTILINE))[:3] == ["2", "3", "3"]
    assert tiny.results(pipeline.artifact("seeds")) == tiny.results(finished.artifact("seeds"))


def test_a_script_of_a_shard_ends_well(finished: Pipeline, tmp_path: Path):
    tiny.adopt(tiny.pipeline(finished.data.root, tmp_path), finished, "classifier", "seeds")
    command = tiny.command(finished.data.root, tmp_path, "shard.count=2")
    for index, told in ((0, "4 of 8 images are left"), (1, "mIoU")):
        code, output = tiny.call("refine.py", *command, f"shard.index={index}")
        assert code == 0, output
        assert told in output
    manifest = json.loads(next((tmp_path / "artifacts" / "labels").glob("*/manifest.json")).read_text())
    assert "shard." not in manifest["command"]
