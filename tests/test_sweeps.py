"""Multiruns: a job that fails ends no other and is told; searches; jobs side by side share what they build on."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml

from wsss import cli, jobs
from wsss.artifacts import read_json, write_json
from wsss.errors import ConfigError
from wsss.refine import Extras

Command = Callable[..., list[str]]


class Buggy:
    """A smoothing step with a mistake in its code."""

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras) -> np.ndarray:
        raise RuntimeError("no such pixel")


BUG = "[{_target_:test_sweeps.Buggy}]"


@pytest.fixture
def command(tiny_set: Path, tmp_path: Path) -> Command:
    return lambda *more: list(tiny.command(tiny_set, tmp_path, "upstream=build", *more))


def records(base: Path) -> list[dict[str, Any]]:
    """What the jobs of the one multirun below ``base`` left, in their order."""
    found = [read_json(path) for path in base.glob("logs/hydra/*/*/job.json")]
    return sorted(found, key=lambda record: record["number"])


def made(output: str) -> dict[str, int]:
    """How often each stage was begun, by what the jobs printed."""
    return dict(Counter(re.findall(r"INFO (classifier|seeds|labels): /", output)))


# --- jobs that fail ---------------------------------------------------------------------------------------------------


def test_a_job_that_fails_ends_no_other_and_is_listed_at_the_end(command: Command, tmp_path: Path):
    code, output = tiny.call("generate_seeds.py", "-m", *command("cam=layercam", "cam.stages=[4],[9],[5]"))
    assert code == 2, output
    assert [record["state"] for record in records(tmp_path)] == ["done", "failed", "done"]
    assert made(output) == {"classifier": 1, "seeds": 2}
    listed = output[output.index("1 of 3 jobs failed:") :].splitlines()
    assert listed[1] == "job 1: cam.stages=[9]"
    assert listed[2].startswith("    ConfigError: no stage 9")
    assert "Traceback" not in output
    ran = shlex.split(listed[3])
    assert ran[:2] == ["python", "generate_seeds.py"]
    code, alone = tiny.call(ran[1], *ran[2:])
    assert (code, "no stage 9" in alone, "jobs failed" in alone) == (2, True, False)


def test_a_bug_ends_no_other_job_either_and_shows_where_it_is(command: Command, tmp_path: Path):
    code, output = tiny.call("refine.py", "-m", *command(f"+refiner.smoothing=choice({BUG},[])", "seed=0,-1"))
    assert code == 1, output  # not all of it can be mended by the user
    states = [(record["state"], record["user"], bool(record["trace"])) for record in records(tmp_path)]
    assert states == [("failed", False, True), ("failed", True, False), ("done", False, False), ("failed", True, False)]
    assert "3 of 4 jobs failed:" in output
    assert 'raise RuntimeError("no such pixel")' in output[: output.index("3 of 4 jobs failed:")]
    assert "    ItemError: train_0: RuntimeError: no such pixel" in output[output.index("3 of 4 jobs failed:") :]
    assert "seed=-1 must be 0 or more" in output


def test_a_value_that_was_given_before_is_still_the_job_s_own(command: Command, tmp_path: Path):
    code, output = tiny.call("train.py", "-m", *command("seed=0", "seed=0,1"))
    assert code == 0, output
    assert [record["own"] for record in records(tmp_path)] == [["seed=0"], ["seed=1"]]
    assert "as given" not in output


def test_what_all_jobs_return_is_their_metric(command: Command, tmp_path: Path):
    code, output = tiny.call("train.py", "-m", *command("seed=0,1"))
    assert code == 0, output
    assert "2 jobs done" in output
    for record in records(tmp_path):
        assert record["own"] == [f"seed={record['number']}"]
        paths = (tmp_path / "artifacts" / "classifier").glob("*/manifest.json")
        (made_by,) = (path.parent for path in paths if read_json(path)["seed"] == record["number"])
        assert record["value"] == read_json(made_by / "metrics.json")["map"]


def test_a_mistake_that_no_job_survives_is_told_before_any_begins(command: Command, tmp_path: Path):
    code, output = tiny.call("train.py", "-m", *command("seed=0,one"))
    assert (code, records(tmp_path)) == (2, [])
    assert "one" in output


def test_a_single_run_leaves_no_record(command: Command, tmp_path: Path):
    code, output = tiny.call("generate_seeds.py", *command("cam=layercam", "cam.stages=[9]"))
    assert (code, records(tmp_path)) == (2, [])
    assert "jobs" not in output


def test_a_job_whose_process_was_killed_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for job in (jobs.Job(0, ("seed=0",), "python train.py seed=0"), jobs.Job(1, (), "", state=jobs.DONE, value=0.5)):
        jobs._write(tmp_path / str(job.number), job)
    monkeypatch.setattr(jobs, "_begun", tmp_path)
    assert [job.state for job in jobs.begun()] == [jobs.RUNNING, jobs.DONE]
    assert jobs.report() == 1
    output = capsys.readouterr().out
    assert "job 0: seed=0\n    did not come to its end" in output
    assert output.rstrip().endswith("python train.py seed=0")


def test_a_record_that_is_being_written_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_json(tmp_path / "0" / jobs.RECORD, {})
    (tmp_path / "0" / jobs.RECORD).write_text('{"number": 0')
    monkeypatch.setattr(jobs, "_begun", tmp_path)
    assert (jobs.begun(), jobs.report()) == ([], 0)


# --- searches ---------------------------------------------------------------------------------------------------------


def test_a_search_finds_the_best_of_its_trials(command: Command, tmp_path: Path):
    """Three trials of the shipped study on the tiny set: the largest mIoU of the seeds is what it reports."""
    pytest.importorskip("optuna")
    arguments = command("+sweep=optuna_layercam", "hydra.sweeper.n_trials=3", "cam.stages=[1,2,3]")
    code, output = tiny.call("generate_seeds.py", *arguments)
    assert code == 0, output
    assert made(output) == {"classifier": 1, "seeds": 3}
    trials = {}
    for path in (tmp_path / "artifacts" / "seeds").glob("*/manifest.json"):
        gamma = read_json(path)["config"]["cam"]["gamma"]
        trials[gamma] = read_json(path.parent / "metrics.json")["miou"]
    assert len(set(trials.values())) > 1
    (results,) = tmp_path.glob("logs/hydra/*/optimization_results.yaml")
    found = yaml.safe_load(results.read_text())
    assert found["best_value"] == max(trials.values())
    assert trials[found["best_params"]["cam.gamma"]] == max(trials.values())
    assert f"best of the search: {100 * max(trials.values()):.1f} with cam.gamma=" in output


def test_a_trial_that_fails_ends_no_search(command: Command, tmp_path: Path):
    pytest.importorskip("optuna")
    arguments = command("+sweep=optuna_layercam", "hydra.sweeper.n_trials=4", "cam.stages=choice([5],[9])")
    code, output = tiny.call("generate_seeds.py", *arguments)
    assert code == 2, output
    states = Counter(record["state"] for record in records(tmp_path))
    assert states["done"] + states["failed"] == 4
    assert min(states.values()) > 0
    assert f"{states['failed']} of 4 jobs failed:" in output
    assert "best of the search" in output
    failed = next(record for record in records(tmp_path) if record["state"] == "failed")
    assert failed["command"].endswith(" hydra.mode=RUN")  # alone it is one run and no search


def without_masks(root: Path) -> list[str]:
    shutil.rmtree(root / "SegmentationClass")
    return [f"data.root={root}", "data.tags=xml"]


def test_a_search_without_masks_ends_at_its_first_job(command: Command, own_set: Path, tmp_path: Path):
    pytest.importorskip("optuna")
    arguments = command("+sweep=optuna_layercam", "hydra.sweeper.n_trials=3", *without_masks(own_set))
    code, output = tiny.call("generate_seeds.py", *arguments)
    assert code == 2, output
    assert "Traceback" not in output
    assert "1 of 1 jobs failed:" in output
    assert "    ConfigError: the search needs a number from each job, and masks of train give it" in output
    assert made(output) == {}  # before any work


def test_a_grid_needs_no_masks_and_a_search_of_the_classifier_neither(command: Command, own_set: Path, tmp_path: Path):
    pytest.importorskip("optuna")
    bare = without_masks(own_set)
    code, output = tiny.call("train.py", "-m", *command("hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", *bare))
    assert code == 0, output
    code, output = tiny.call("generate_seeds.py", "-m", *command("cam=cam,layercam", *bare))
    assert code == 0, output
    assert made(output) == {"seeds": 2}


# --- plugins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("hydra/launcher=joblib", r"hydra/launcher=joblib .* pip install --editable '\.\[joblib\]'"),
        ("hydra/launcher=submitit_local", r"'\.\[slurm\]'"),
        ("hydra/launcher=ray", r"'\.\[ray\]'"),
        ("hydra/sweeper=optuna", r"'\.\[optuna\]'"),
        ("+sweep=optuna_layercam", r"hydra/sweeper=optuna .* '\.\[optuna\]'"),
    ],
)
def test_a_plugin_that_is_missing_is_named(argument: str, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=told):
        cli.check_plugins(["-m", argument])


@pytest.mark.parametrize("missing", [None, ModuleNotFoundError("hydra_plugins")])
def test_a_missing_plugin_ends_the_process_with_code_2(
    missing: Exception | None, command: Command, monkeypatch: pytest.MonkeyPatch
):
    def find(module: str) -> None:
        if missing:
            raise missing

    monkeypatch.setattr(cli, "find_spec", find)
    code, output = tiny.call("train.py", "-m", *command("hydra/launcher=ray"))
    assert code == 2, output
    assert output.count("ConfigError") == 1
    assert "pip install --editable '.[ray]'" in output


def test_a_machine_without_slurm_is_told_of_the_other_launcher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "find_spec", lambda module: module)
    monkeypatch.setattr(cli.shutil, "which", lambda program: None)
    with pytest.raises(ConfigError, match="submitit_local runs them on this machine"):
        cli.check_plugins(["-m", "hydra/launcher=submitit_slurm"])
    cli.check_plugins(["hydra/launcher=submitit_slurm", "--cfg", "job"])
    cli.check_plugins(["hydra/launcher=submitit_local", "+sweep=optuna_layercam", "+sweep=none_such"])
    monkeypatch.setattr(cli.shutil, "which", lambda program: f"/usr/bin/{program}")
    cli.check_plugins(["-m", "hydra/launcher=submitit_slurm"])


def test_every_plugin_of_the_extras_is_known():
    """By its module, which is the name of the package in pyproject.toml."""
    extras = tomllib.loads((tiny.REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for module, extra in cli.PLUGINS.values():
        assert any(part.startswith(module.replace("_", "-")) for part in extras[extra]), module


# --- jobs side by side ------------------------------------------------------------------------------------------------

GRID = ("cam=cam,gradcam", "refiner=none,pamr")


def check_grid(output: str, base: Path) -> None:
    """One classifier, two sets of seeds, four of labels, each made once."""
    assert made(output) == {"classifier": 1, "seeds": 2, "labels": 4}, output
    for stage, count in (("classifier", 1), ("seeds", 2), ("labels", 4)):
        assert len(list((base / "artifacts" / stage).glob("*/manifest.json"))) == count
    assert [record["state"] for record in records(base)] == ["done"] * 4


@pytest.mark.slow
def test_two_workers_make_what_they_share_once(command: Command, tmp_path: Path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    code, output = tiny.execute("refine.py", "-m", *command(*GRID), *launcher, TINY_PAUSE="0.2")
    assert code == 0, output
    check_grid(output, tmp_path)
    assert len({record["process"] for record in records(tmp_path)}) == 2
    assert "4 jobs done" in output


@pytest.mark.slow
def test_workers_list_what_failed(command: Command, tmp_path: Path):
    """By a mistake of the user and by a bug, in processes of joblib."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    arguments = command(f"+refiner.smoothing=choice({BUG},[])", "seed=0,-1")
    code, output = tiny.execute("refine.py", "-m", *arguments, *launcher)
    assert code == 1, output
    assert [record["state"] for record in records(tmp_path)] == ["failed", "failed", "done", "failed"]
    listed = output[output.index("3 of 4 jobs failed:") :]
    assert "ItemError: train_0: RuntimeError: no such pixel" in listed
    assert "ConfigError: seed=-1 must be 0 or more" in listed


@pytest.mark.slow
def test_jobs_of_submitit(command: Command, tmp_path: Path):
    """Its local executor, which starts a process for each job as Slurm would."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    code, output = tiny.execute("generate_seeds.py", "-m", *command("cam=layercam", "cam.stages=[4],[9]"), *launcher)
    assert code == 2, output
    assert [record["state"] for record in records(tmp_path)] == ["done", "failed"]
    assert "1 of 2 jobs failed:\njob 1: cam.stages=[9]\n    ConfigError: no stage 9" in output
    assert len(list((tmp_path / "artifacts" / "seeds").glob("*/manifest.json"))) == 1


@pytest.mark.slow
def test_jobs_of_ray(command: Command, tmp_path: Path):
    """A cluster of this machine alone."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs pip install '.[ray]'")
    launcher = ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2")
    code, output = tiny.execute("refine.py", "-m", *command(*GRID), *launcher)
    assert code == 0, output
    for stage, count in (("classifier", 1), ("seeds", 2), ("labels", 4)):
        assert len(list((tmp_path / "artifacts" / stage).glob("*/manifest.json"))) == count
    assert [record["state"] for record in records(tmp_path)] == ["done"] * 4
    assert len({record["process"] for record in records(tmp_path)}) == 2


@pytest.mark.slow
def test_shards_on_ray(command: Command, tmp_path: Path):
    """What the README shows: the shards of a stage are a sweep, and the last of them finishes it."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs pip install '.[ray]'")
    launcher = ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2")
    code, output = tiny.execute("refine.py", "-m", *command("shard.count=3", "shard.index=range(3)"), *launcher)
    assert code == 0, output
    (labels,) = (tmp_path / "artifacts" / "labels").glob("*/manifest.json")
    assert len(list((labels.parent / "masks").glob("**/*.png"))) == len(tiny.TRAIN)


def test_a_record_is_json_that_a_person_can_read(tmp_path: Path):
    job = jobs.Job(3, ("cam=cam",), "python train.py cam=cam")
    jobs._write(tmp_path, job)
    content = json.loads((tmp_path / jobs.RECORD).read_text())
    assert (content["number"], content["own"], content["state"]) == (3, ["cam=cam"], "running")
