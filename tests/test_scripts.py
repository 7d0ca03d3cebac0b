"""The command line, by real processes: the four scripts, ``python -m wsss``, sweeps, and processes that are killed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from conftest import MakePipeline, Scripts

from wsss.pipeline import STAGES, Pipeline

MESSAGE = re.compile(r"^\d\d:\d\d:\d\d (INFO|WARNING|ERROR) ", re.MULTILINE)


def directories(store: Path) -> dict[str, int]:
    """Stage -> how many finished artifacts it has."""
    return {stage: len(list((store / stage).glob("*/manifest.json"))) for stage in tiny.STAGES}


# --- the four scripts -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_script_prints_one_table_with_its_numbers(scripts: Scripts):
    for stage, script in zip(tiny.STAGES, tiny.SCRIPTS, strict=True):
        output, artifact = scripts.outputs[script], scripts.pipeline.artifact(stage)
        assert f"{stage}  {artifact.fingerprint}" in output
        assert f"{100 * artifact.metrics[STAGES[stage].metric]:.1f} " in output
        assert output.count("\N{BOX DRAWINGS LIGHT DOWN AND RIGHT}") == 1, "one table"
        assert re.findall(MESSAGE, output) == ["INFO"] * (2 if stage == "segmenter" else 1)
        for noise in ("Warning", "Traceback", "litlogger", "GPU available", "site-packages"):
            assert noise not in output


@pytest.mark.slow
def test_the_last_script_says_where_the_report_is(scripts: Scripts):
    (printed,) = re.findall(r"report: (\S+)", scripts.outputs["train_seg.py"])
    html = Path(printed).read_text(encoding="utf-8")
    for stage in tiny.STAGES:
        assert f"{100 * scripts.pipeline.artifact(stage).metrics[STAGES[stage].metric]:.1f}" in html
    assert Path(printed).name == f"{tiny.EXPERIMENT}-{scripts.pipeline.fingerprint('segmenter')}.html"


@pytest.mark.slow
def test_curves_are_logged_below_the_experiment(scripts: Scripts):
    logs = Path(scripts.pipeline.config.paths.logs) / tiny.EXPERIMENT
    runs = {f"{stage}-{scripts.pipeline.fingerprint(stage)}" for stage in tiny.STAGES}
    assert {path.name for path in logs.iterdir()} == runs
    assert (
        "train/loss" in (logs / f"classifier-{scripts.pipeline.fingerprint('classifier')}" / "metrics.csv").read_text()
    )
    assert (logs / f"seeds-{scripts.pipeline.fingerprint('seeds')}" / "threshold_curve.csv").is_file()


@pytest.mark.slow
def test_all_of_it_at_once_reuses_what_the_scripts_made(scripts: Scripts):
    store = Path(scripts.pipeline.config.paths.artifacts)
    before = tiny.files(store)
    code, output = tiny.execute("-m", "wsss", *scripts.pipeline.overrides)
    assert code == 0, output
    for stage in tiny.STAGES:
        assert f"{stage}: reusing {scripts.pipeline.artifact(stage).directory}" in output
    after = tiny.files(store)
    assert {name for name in after if after[name] != before.get(name)} <= {
        f"report/{p.name}" for p in (store / "report").iterdir()
    }
    headline = output[output.index(f"{tiny.EXPERIMENT} on ") :]
    for label in ("classifier mAP", "seed mIoU", "pseudo-label mIoU", "final val mIoU", "report"):
        assert label in headline


@pytest.mark.slow
def test_the_ceiling_is_shown_beside_the_weak_result(scripts: Scripts, tmp_path: Path):
    shutil.copytree(Path(scripts.pipeline.config.paths.artifacts), tmp_path / "artifacts")
    overrides = (*tiny.REAL, *tiny.paths(scripts.pipeline.data.root, tmp_path))
    code, output = tiny.call("train_seg.py", *overrides, "labels=ground_truth")
    assert code == 0, output
    assert directories(tmp_path / "artifacts") == {"classifier": 1, "seeds": 1, "labels": 1, "segmenter": 2}
    weak = scripts.pipeline.artifact("segmenter")
    (full,) = ({p.name for p in (tmp_path / "artifacts" / "segmenter").glob("*/")} - {weak.fingerprint},)
    html = (tmp_path / "artifacts" / "report" / f"{tiny.EXPERIMENT}-{weak.fingerprint}.html").read_text(
        encoding="utf-8"
    )
    assert "of what it reaches with true masks" in html
    assert len(full) == 1


@pytest.mark.parametrize("script", tiny.SCRIPTS)
def test_a_script_run_again_reuses_its_result(script: str, finished: Pipeline, tmp_path: Path):
    store = Path(finished.config.paths.artifacts)
    shutil.copytree(store, tmp_path / "artifacts")
    before = tiny.files(tmp_path / "artifacts")
    stage = tiny.STAGES[tiny.SCRIPTS.index(script)]
    code, output = tiny.call(script, *tiny.command(finished.data.root, tmp_path))
    assert code == 0, output
    assert f"{stage}: reusing {tmp_path}/artifacts/{stage}/{finished.fingerprint(stage)}" in output
    after = tiny.files(tmp_path / "artifacts")
    assert {name: after[name] for name in before} == before
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} <= {"report"}


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train.py", "seeds.scals=[1.0]"), ["scals"]),
        (("refine.py", "+experiment=dmeo"), ["experiment/dmeo", "demo", "voc_layercam"]),
        (("-m", "wsss", "+experiment=own_voc_layout"), ["data.root"]),
    ],
)
def test_a_mistake_ends_the_process_with_code_2(arguments: tuple[str, ...], told: list[str], tmp_path: Path):
    places = [f"paths.{name}={tmp_path}/{name}" for name in ("artifacts", "data", "logs")]
    code, output = tiny.execute(*arguments, *places)
    assert code == 2, output
    assert all(part in output for part in told), output
    assert "Traceback" not in output
    assert not (tmp_path / "artifacts").exists()
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_the_command_in_the_message_is_the_one_that_helps(tiny_set: Path, tmp_path: Path):
    """Copied into a shell as it stands, it makes the stage that was missing."""
    overrides = tiny.command(tiny_set, tmp_path, "upstream=require", "data.name=two words")
    code, output = tiny.call("generate_seeds.py", *overrides)
    assert code == 2, output
    assert f"no finished classifier for this configuration (looked in {tmp_path}/artifacts/classifier/" in output
    found = re.search(r"Run:  (python train\.py .+?)     or add upstream=build", output)
    assert found is not None, output
    assert not (tmp_path / "artifacts").exists()

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "PYTHONPATH": str(Path(tiny.__file__).parent)}
    subprocess.run(found.group(1), shell=True, cwd=tiny.REPOSITORY, env=variables, check=True, capture_output=True)
    code, output = tiny.call("generate_seeds.py", *overrides)
    assert code == 0, output
    assert directories(tmp_path / "artifacts") == {"classifier": 1, "seeds": 1, "labels": 0, "segmenter": 0}
    assert shlex.split(found.group(1))[0] == "python"


# --- sweeps -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_shares_what_its_jobs_have_in_common(tiny_set: Path, tmp_path: Path):
    sweep = ("cam=cam,layercam", "refiner=none,superpixel", "upstream=build")
    code, output = tiny.execute("refine.py", "-m", *tiny.command(tiny_set, tmp_path), *sweep)
    assert code == 0, output
    assert directories(tmp_path / "artifacts") == {"classifier": 1, "seeds": 2, "labels": 4, "segmenter": 0}


def test_a_sweep_ends_at_the_first_mistake_with_code_2(tiny_set: Path, tmp_path: Path):
    sweep = ("cam=cam,layercm", "upstream=build")
    code, output = tiny.call("generate_seeds.py", "-m", *tiny.command(tiny_set, tmp_path), *sweep)
    assert code == 2, output
    assert "cam/layercm" in output
    assert not (tmp_path / "artifacts").exists()


# --- killed processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pipeline_killed_in_every_stage_ends_as_one_that_was_not(finished: Pipeline, tmp_path: Path):
    """SIGKILL in the middle of each stage; the same command goes on, and what was finished is not made again."""
    store, slow = tmp_path / "artifacts", "+refiner.smoothing=[{_target_:tiny.Pause}]"
    command = ("-m", "wsss", *tiny.command(finished.data.root, tmp_path, slow))
    moments = {
        "classifier": "classifier/*/last.ckpt",
        "seeds": "seeds/*/maps/*.npz",
        "labels": "labels/*/masks/*.png",
        "segmenter": "segmenter/*/last.ckpt",
    }
    for stage, pattern in moments.items():
        process = tiny.start(*command, TINY_PAUSE="0.15")
        tiny.wait_for(lambda pattern=pattern: list(store.glob(pattern)), process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        unfinished = [name for name, made in directories(store).items() if not made]
        assert unfinished == list(tiny.STAGES[tiny.STAGES.index(stage) :])
    seeds = tiny.files(store / "seeds")

    code, output = tiny.execute(*command)
    assert code == 0, output
    assert directories(store) == dict.fromkeys(tiny.STAGES, 1)
    assert tiny.files(store / "seeds") == seeds
    assert not list(store.rglob("*.partial"))
    again = tiny.pipeline(finished.data.root, tmp_path, slow)
    for stage in tiny.STAGES:
        assert tiny.results(again.artifact(stage)) == tiny.results(finished.artifact(stage)), stage


@pytest.mark.slow
def test_refinement_killed_in_its_processes_goes_on(finished: Pipeline, tiny_pipeline: MakePipeline, tmp_path: Path):
    overrides = ("workers=2", "+refiner.smoothing=[{_target_:tiny.Pause}]")
    pipeline = tiny_pipeline(*overrides)
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    directory = pipeline.artifact("labels").directory
    process = tiny.start("refine.py", *tiny.command(finished.data.root, tmp_path, *overrides), TINY_PAUSE="0.5")
    tiny.wait_for(lambda: len(list(directory.glob("masks/*.png"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # its own processes end with it: they would keep the pipe open
    assert not pipeline.artifact("labels").complete
    before = {name: file for name, file in tiny.files(directory).items() if name.endswith(".png")}
    assert 2 <= len(before) < len(tiny.TRAIN)

    pipeline = tiny_pipeline(*overrides, "workers=0")
    artifact = pipeline.make("labels")
    after = tiny.files(directory)
    assert {name: after[name] for name in before} == before
    assert not list(directory.rglob("*.partial"))
    unpaused = tiny.results(finished.artifact("labels"))
    assert tiny.results(artifact) == unpaused  # the pause changes nothing but the fingerprint


@pytest.mark.slow
def test_an_interrupt_is_answered_without_a_traceback(tiny_set: Path, tmp_path: Path):
    # more epochs than a starved machine can finish before the interrupt arrives
    many = tiny.command(tiny_set, tmp_path, "recipe.classifier.epochs=200")
    process = tiny.start("train.py", *many, TINY_PAUSE="0.1")
    tiny.wait_for(lambda: list(tmp_path.rglob("last.ckpt")), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on from here" in output
    assert "Traceback" not in output
    assert directories(tmp_path / "artifacts")["classifier"] == 0


@pytest.mark.slow
def test_two_processes_on_the_same_stage(
    finished: Pipeline, tiny_pipeline: MakePipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The first works; the second, this one, waits for it and takes its result."""
    caplog.set_level("INFO", logger="wsss")
    pipeline = tiny_pipeline()
    process = tiny.start("train.py", *tiny.command(finished.data.root, tmp_path), TINY_PAUSE="0.15")
    tiny.wait_for(lambda: any(path.read_text() for path in tmp_path.rglob("*.lock")), process)
    artifact = pipeline.make("classifier")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert pipeline.made == set()
    assert f"waiting: process {process.pid} on " in caplog.text
    assert "classifier: reusing" in caplog.text
    assert "reusing" not in output
    assert tiny.results(artifact) == tiny.results(finished.artifact("classifier"))
