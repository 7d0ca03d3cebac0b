"""A sweep compared: the jobs are Hydra's own, the numbers those of their artifacts, and what is missing is told."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from omegaconf import OmegaConf
from PIL import Image

import wsss.compare
from wsss.artifacts import Artifact, read_json
from wsss.build import build
from wsss.charts import MOST_CURVES, Line
from wsss.cli import CONF
from wsss.compare import (
    Comparison,
    Row,
    Run,
    compare,
    compare_artifacts,
    main,
    most_finished,
    open_pipelines,
    plot,
    to_csv,
)
from wsss.differences import differing, find, flatten, short_names
from wsss.errors import ConfigError, MissingArtifact
from wsss.models import TimmClassifier
from wsss.pipeline import STAGES
from wsss.sweep import Job, Sweep, expand

FILES = {path.stem: path.read_text() for path in sorted((CONF / "sweep").glob("*.yaml"))}
SEARCHES = [name for name, text in FILES.items() if "override /hydra/sweeper" in text]
SWEEPS = [name for name in FILES if name not in SEARCHES]
GAMMAS = ("cam.fusion=max,mean", "cam.gamma=1,2")
Fake = Callable[..., list[Artifact]]


def numbers(job: Job) -> dict[str, Any]:
    """Metrics that a reader can foretell: mean beats max by 10, gamma 2 is the best, a seed adds its own percent."""
    cam, seed = job.config.cam, job.config.seed
    miou = 0.4 + 0.1 * (cam.get("fusion") == "mean") - 0.05 * abs(cam.get("gamma", 2) - 2) + 0.01 * seed
    return {
        "miou": miou,
        "miou_best": miou + 0.02,
        "threshold": 0.3,
        "threshold_best": 0.45,
        "precision": 0.6,
        "recall": 0.7,
        "fp": 0.7 - miou,
        "fn": 0.3,
        "iou": {"square": 0.5, "disc": None},
        "best": {"precision": 0.65},
        "images": 8,
        "curve": [[0.1, miou - 0.1], [0.3, miou], [0.5, miou + 0.02], [0.9, None]],
    }


@pytest.fixture
def overrides(tiny_set: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a tiny sweep."""
    return lambda *more: [*tiny.command(tiny_set, tmp_path), *more]


@pytest.fixture(autouse=True)
def _composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composition takes a tenth of a second a job, and most tests need the jobs of a sweep twice."""
    composed = cache(lambda overrides: expand(overrides))
    monkeypatch.setattr("wsss.compare.expand", lambda overrides: composed(tuple(overrides)))


@pytest.fixture
def fake(overrides: Callable[..., list[str]]) -> Fake:
    """Publish made-up results of the jobs of a sweep; ``only`` says for which."""

    def publish(*more: str, stage: str = "seeds", only: Callable[[Job], bool] = lambda job: True) -> list[Artifact]:
        sweep = wsss.compare.expand(overrides(*more))
        made = []
        for job, pipeline in zip(sweep.jobs, open_pipelines(sweep), strict=True):
            artifact = pipeline.artifact(stage)
            if only(job) and not artifact.complete:
                artifact.prepare()
                artifact.publish({"wall_seconds": 1.5}, numbers(job))
            made.append(artifact)
        return made

    return publish


def lines(text: str) -> list[list[str]]:
    """The cells of a printed table, head first."""
    return [
        [cell.strip() for cell in line.strip("│┃").split("│" if "│" in line else "┃")]
        for line in text.splitlines()
        if line[:1] in "│┃"
    ]


def settings(sweep: Sweep, *keys: str) -> list[tuple[str, ...]]:
    return [tuple(job.settings[key].text for key in keys) for job in sweep.jobs]


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_a_command_line_without_a_sweep_is_one_job():
    (job,) = expand(["+experiment=demo", "cam=cam"]).jobs
    assert job.config == tiny.composed("+experiment=demo", "cam=cam")
    assert (job.experiment, job.overrides) == ("demo", ("+experiment=demo", "cam=cam"))


def test_lists_choices_and_ranges_are_read_as_hydra_reads_them():
    sweep = expand(["cam=cam,layercam", "seeds.scales=choice([1.0],[1.0,0.5])", "seed=range(0,2)", "data.name='a,b'"])
    assert settings(sweep, "cam", "seeds.scales", "seed") == [
        (cam, scales, seed) for cam in ("cam", "layercam") for scales in ("[1.0]", "[1.0,0.5]") for seed in ("0", "1")
    ]
    assert {job.config.data.name for job in sweep.jobs} == {"a,b"}
    assert [list(job.config.seeds.scales) for job in sweep.jobs[1:3]] == [[1.0], [1.0, 0.5]]
    assert sweep.jobs[0].config.cam._target_ == "wsss.cams.Cam"


@pytest.fixture
def own_sweep(tmp_path: Path) -> str:
    """The override that makes ``+sweep=mine`` known: cam is layercam, gamma is 1 or 2."""
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    params = {"cam": "layercam", "seeds.scales": "[1.0]", "cam.gamma": "1,2"}
    node = {"hydra": {"mode": "MULTIRUN", "sweeper": {"params": params}}}
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(node)}")
    return f"hydra.searchpath=[file://{tmp_path}/conf]"


@pytest.mark.parametrize(
    "order", [("+sweep=mine", "+experiment=voc_layercam"), ("+experiment=voc_layercam", "+sweep=mine")]
)
def test_a_sweep_file_wins_over_the_experiment_in_either_order_and_the_command_line_over_both(
    own_sweep: str, order: tuple[str, str]
):
    sweep = expand([own_sweep, *order])
    assert (sweep.name, sweep.experiment, sweep.multirun) == ("mine", "voc_layercam", True)
    assert settings(sweep, "cam", "cam.gamma") == [("layercam", "1"), ("layercam", "2")]
    assert [(job.config.cam.fusion, job.config.cam.gamma) for job in sweep.jobs] == [("mean", 1), ("mean", 2)]
    assert [job.overrides[0] for job in sweep.jobs] == [own_sweep] * 2
    sweep = expand([own_sweep, *order, "cam=layercam_paper", "cam.gamma=3", "seeds.scales=[0.5]"])
    assert [(job.config.cam.fusion, job.config.cam.gamma) for job in sweep.jobs] == [("max", 3)]
    assert [list(job.config.seeds.scales) for job in sweep.jobs] == [[0.5]]


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("cam=cam,layercm", ["cam/layercm", "layercam"]),
        ("cam.gama=1,2", ["cam.gama"]),
        ("seed=1,one", ["seed", "one"]),
        ("+sweep=nothing", ["sweep/nothing"]),
        ("seed=interval(0,1)", ["INTERVAL"]),
        ("seed=[1", ["seed=[1"]),
    ],
)
def test_jobs_that_do_not_compose_are_told_with_code_2(
    mistake: str, told: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main([mistake]) == 2
    output = capsys.readouterr().out
    assert "ConfigError" in output
    assert all(part in output for part in told), output


# --- the files in conf/sweep ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> TimmClassifier:
    return build(tiny.composed("classifier=efficientnet_lite0"), "classifier", num_classes=2, weights=None)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_job_of_a_sweep_file_composes_and_its_cam_can_be_built(name: str, network: TimmClassifier):
    sweep = expand(["+experiment=demo", f"+sweep={name}"])
    assert (sweep.name, sweep.multirun) == (name, True)
    assert len({OmegaConf.to_yaml(job.config) for job in sweep.jobs}) == len(sweep.jobs) > 4
    for job in sweep.jobs:
        build(job.config, "cam").check(network)
    if "python generate_seeds.py" in FILES[name] and name != "seeds_methods":
        assert {tuple(job.config.seeds.scales) for job in sweep.jobs} == {(1.0,)}


@pytest.mark.parametrize("name", FILES)
def test_a_sweep_file_holds_parameters_alone_and_names_its_commands(name: str):
    """What it would set at its root loses to an experiment that is named after it."""
    text = FILES[name]
    node = yaml.safe_load(text)
    assert set(node) - {"defaults"} == {"hydra"}
    assert ("defaults" in node) == (name in SEARCHES)
    assert set(node["hydra"]) == {"mode", "sweeper"}
    (script,) = (script for script in tiny.SCRIPTS if f"python {script:17} +sweep={name} " in text)
    if name in SEARCHES:
        stage = {script: stage for stage, script in zip(tiny.STAGES, tiny.SCRIPTS, strict=True)}[script]
        assert f"python -m wsss.compare   --store artifacts --stage {stage} " in text
    else:
        assert f"python -m wsss.compare   +sweep={name} " in text


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_goes_up_and_is_no_grid(name: str):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert yaml.safe_load(FILES[name])["hydra"]["sweeper"]["direction"] == "maximize"
    with pytest.raises(
        ConfigError, match=r"picks its jobs as it runs.* python -m wsss.compare --store artifacts --stage"
    ):
        expand(["+experiment=demo", f"+sweep={name}"])


# --- what is compared -------------------------------------------------------------------------------------------------


def test_rows_are_the_jobs_with_their_numbers(
    fake: Fake, overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = fake(*GAMMAS)
    assert main(overrides(*GAMMAS)) == 0
    output = capsys.readouterr().out
    head, *rows = lines(output)
    assert head == ["", "fusion", "gamma", "miou", "miou_best", "precision", "recall", "fp", "fn"]
    assert [row[:5] for row in rows] == [
        ["", "max", "1", "35.0", "37.0"],
        ["", "max", "2", "40.0", "42.0"],
        ["", "mean", "1", "45.0", "47.0"],
        ["*", "mean", "2", "50.0", "52.0"],
    ]
    for said in ("4 of 4 jobs", "threshold 0.30 in every row", "threshold_best 0.45", "* best miou.", "true masks"):
        assert said in output

    out = place(tmp_path)
    names = ["curves.png", "plot.png", "table.csv", "table.html", "table.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    found = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    assert [row["fingerprint"] for row in found] == [artifact.fingerprint for artifact in made]
    assert [float(row["miou_best"]) for row in found] == [artifact.metrics["miou_best"] for artifact in made]
    assert (found[2]["cam.fusion"], found[2]["cam.gamma"], found[2]["stage"]) == ("mean", "1", "seeds")
    page = (out / "table.md").read_text()
    assert r"| \* | mean | 2 | 50.0 | 52.0 |" in page
    assert f"    {shlex.join(['python', '-m', 'wsss.compare', *overrides(*GAMMAS)])}\n" in page
    for name in ("plot.png", "curves.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20


def test_metrics_order_and_place_can_be_chosen(
    fake: Fake, overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fake(*GAMMAS)
    options = ["--sort", "fp", "--out", str(tmp_path / "here"), "--metrics", "best.precision", "iou.disc", "images"]
    assert main([*options, *overrides(*GAMMAS)]) == 0  # the overrides stand right behind the metrics
    head, *rows = lines(capsys.readouterr().out)
    assert head == ["", "fusion", "gamma", "best.precision", "iou.disc", "images", "fp"]
    assert rows[0] == ["*", "mean", "2", "65.0", "-", "8", "20.0"]
    assert [row[-1] for row in rows] == ["20.0", "25.0", "30.0", "35.0"]
    assert (tmp_path / "here" / "plot.png").stat().st_size > 0


def test_the_same_arguments_as_the_sweep_had(fake: Fake, overrides, own_sweep: str, tmp_path: Path):
    arguments = overrides("+sweep=mine", "+experiment=demo", "data=voc_layout", own_sweep, "upstream=build")
    fake("+sweep=mine", "+experiment=demo", "data=voc_layout", own_sweep)
    assert main(["-m", *arguments]) == 0
    page = (tmp_path / "artifacts" / "compare" / "mine-demo" / "seeds" / "table.md").read_text()
    assert page.startswith("# seeds: mine on demo\n")
    assert "|  | gamma | miou |" in page


def test_a_job_alone(fake: Fake, overrides, capsys: pytest.CaptureFixture[str]):
    fake("cam.gamma=2")
    assert main(overrides("cam.gamma=2")) == 0
    head, row = lines(capsys.readouterr().out)
    assert head[:4] == ["", "job", "miou", "threshold"]
    assert row[:4] == ["", "own", "50.0", "0.30"]


def test_jobs_that_differ_in_their_seed_alone_share_a_row(fake: Fake, overrides, tmp_path: Path, capsys):
    sweep = ("cam.fusion=max,mean", "seed=0,1,5")
    fake(*sweep, only=lambda job: job.config.cam.fusion == "mean" or job.config.seed < 2)
    assert main(overrides(*sweep)) == 0
    head, *rows = lines(capsys.readouterr().out)
    assert (head[1:3], head[-1]) == (["fusion", "miou"], "n")
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        ("", "max", "40.5 (40.0-41.0)", "2"),
        ("*", "mean", "52.0 (50.0-55.0)", "3"),
    ]
    found = list(csv.DictReader((place(tmp_path) / "table.csv").open()))
    assert [(row["cam.fusion"], row["seed"]) for row in found] == [
        ("max", "0"), ("max", "1"), ("mean", "0"), ("mean", "1"), ("mean", "5"),
    ]  # fmt: skip


def test_seeds_alone_share_one_row_and_a_single_seed_is_a_column(fake: Fake, overrides):
    fake("seed=0,1")
    comparison, _ = compare(overrides("seed=0,1"))
    assert (comparison.keys, [len(row.runs) for row in comparison.rows]) == ((), [2])
    comparison, _ = compare(overrides("seed=1,2,3"))
    assert (comparison.keys, [row.label() for row in comparison.rows]) == (("seed",), ["1"])


def test_a_key_that_the_stage_does_not_read_makes_no_rows(fake: Fake, overrides):
    fake("cam=cam,layercam", "refiner=none,superpixel")
    comparison, _ = compare(overrides("cam=cam,layercam", "refiner=none,superpixel"))
    assert comparison.keys == ("cam",)
    assert [row.label() for row in comparison.rows] == ["cam", "layercam"]


def test_the_stage_is_the_one_with_the_most_results(fake: Fake, overrides):
    def chosen(*sweep: str) -> str | None:
        return most_finished(open_pipelines(expand(overrides(*sweep))))

    assert chosen(*GAMMAS) is None
    fake(stage="classifier")
    assert chosen(*GAMMAS) == "classifier"
    fake(*GAMMAS, only=lambda job: job.config.cam.gamma == 1)
    fake("cam.fusion=max", "cam.gamma=1", stage="labels")
    assert chosen(*GAMMAS) == "seeds"
    assert chosen("cam.fusion=max", "cam.gamma=1") == "labels"


def test_the_data_set_is_read_once(overrides, own_set: Path):
    pipelines = open_pipelines(expand(overrides(*GAMMAS)))
    assert len({id(pipeline.data) for pipeline in pipelines}) == 1
    pipelines = open_pipelines(expand(overrides("cam.gamma=1,2", f"data.root={pipelines[0].data.root},{own_set}")))
    assert [id(pipeline.data) for pipeline in pipelines].count(id(pipelines[0].data)) == 2


def test_short_names_are_not_those_of_metrics():
    assert short_names(["recipe/classifier", "cam.threshold"], taken=["threshold"]) == {
        "recipe/classifier": "classifier",
        "cam.threshold": "cam.threshold",
    }


# --- plots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sweep",
    [
        ("cam=cam,layercam", "seeds.flip=true,false"),
        ("cam.gamma=1,2,4",),
        ("cam.gamma=1,2", "seed=0,1"),
        ("cam.gamma=1,2", "seeds.stride=2,4", "cam.fusion=max,mean,product"),
        ("cam.gamma=0.01,1,100", "seed=0,1"),
    ],
    ids=" ".join,
)
def test_every_kind_of_sweep_is_drawn(sweep: tuple[str, ...], fake: Fake, overrides, tmp_path: Path):
    fake(*sweep)
    assert main(["--out", str(tmp_path / "out"), *overrides(*sweep)]) == 0
    assert all((tmp_path / "out" / name).stat().st_size > 5000 for name in ("plot.png", "curves.png"))


def test_the_axis_can_be_chosen_among_the_swept_numbers(fake: Fake, overrides, tmp_path: Path, capsys):
    sweep = ("cam.gamma=1,2", "seeds.stride=2,4", "cam.fusion=max,mean")
    fake(*sweep)
    assert main(["--x", "gamma", *overrides(*sweep)]) == 0
    assert main(["--x", "seeds.stride", *overrides(*sweep)]) == 0
    capsys.readouterr()
    assert main(["--x", "fusion", "--out", str(tmp_path / "out"), *overrides(*sweep)]) == 2
    assert "There are: cam.gamma, seeds.stride" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_many_curves_are_the_best_ones(fake: Fake, overrides, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    gammas = ",".join(str(1 + index / 100) for index in range(MOST_CURVES + 2))
    fake(f"cam.gamma={gammas}")
    drawn: dict[str, Any] = {}

    def draw(path: Path, shown: list[Line], **words: Any) -> None:
        drawn.update(words, lines=shown)
        path.write_bytes(b"")  # the page takes it in

    monkeypatch.setattr("wsss.compare.curve_chart", draw)
    assert main(overrides(f"cam.gamma={gammas}")) == 0
    assert [line.label for line in drawn["lines"]] == gammas.split(",")[2:]
    assert f"the {MOST_CURVES} best of {MOST_CURVES + 2} by miou" in drawn["title"]
    assert drawn["fixed"] == 0.3
    assert drawn["lines"][0].x == [0.1, 0.3, 0.5]  # not measured at 0.9


# --- what is not there ------------------------------------------------------------------------------------------------


def test_missing_jobs_are_listed_with_their_commands(fake: Fake, overrides, tmp_path: Path, capsys):
    fake(*GAMMAS, only=lambda job: job.config.cam.gamma != 2)
    assert main(overrides(*GAMMAS, "upstream=build")) == 0
    output = capsys.readouterr().out
    assert "2 of 4 jobs" in output
    commands = [line for line in output.splitlines() if line.startswith("python generate_seeds.py ")]
    assert len(commands) == 2
    for command, fusion in zip(commands, ("max", "mean"), strict=True):
        assert {f"cam.fusion={fusion}", "cam.gamma=2", "upstream=build"} <= set(shlex.split(command))
        assert command in (place(tmp_path) / "table.md").read_text()


def test_with_nothing_finished_the_sweep_is_named_with_code_2(fake: Fake, overrides, tmp_path: Path, capsys):
    assert main(overrides(*GAMMAS)) == 2
    assert "Run:  python generate_seeds.py -m " in capsys.readouterr().out
    fake(*GAMMAS)
    assert main(["--stage", "labels", *overrides(*GAMMAS)]) == 2
    output = capsys.readouterr().out
    assert "none of the 4 jobs has finished labels" in output
    assert "Run:  python refine.py -m " in output
    assert output.rstrip().endswith("upstream=build")
    assert not (tmp_path / "artifacts" / "compare").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--stage", "seds"], ["'seds'", ", ".join(STAGES)]),
        (["--metrics", "mioo"], ["'mioo'", "miou_best", "best.precision"]),
        (["--sort", "mioo"], ["'mioo'", "miou_best"]),
    ],
)
def test_an_unknown_stage_or_metric_is_told_with_code_2(
    options: list[str], told: list[str], fake: Fake, overrides, capsys
):
    fake("cam.gamma=1,2")
    assert main([*overrides("cam.gamma=1,2"), *options]) == 2
    output = capsys.readouterr().out
    assert all(part in output for part in told), output


def test_seeds_without_masks_have_a_row_and_no_plot(overrides, tmp_path: Path):
    for pipeline in open_pipelines(expand(overrides("cam.gamma=1,2"))):
        pipeline.artifact("seeds").prepare()
        pipeline.artifact("seeds").publish({}, {"miou": None, "threshold": 0.3, "images": 8})
    assert main(overrides("cam.gamma=1,2")) == 0
    out = place(tmp_path)
    assert sorted(path.name for path in out.iterdir()) == ["table.csv", "table.html", "table.md"]


# --- any artifacts ----------------------------------------------------------------------------------------------------


Publish = Callable[..., Artifact]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Publish a made-up artifact: its configuration, what it builds on, its mIoU."""

    def make(
        stage: str,
        name: str,
        config: dict[str, Any],
        miou: float | None = None,
        upstream: dict[str, str] | None = None,
        **more: Any,
    ) -> Artifact:
        artifact = Artifact(tmp_path / "store", stage, name)
        manifest = {
            "config": config,
            "upstream": upstream or {},
            "experiment": "mine",
            "data": {"name": "own"},
            "supervision": "image tags",
            "command": f"python {name}",
            "created": f"2026-11-21T10:00:{len(list((tmp_path / 'store').glob('*/*'))):02d}",
        }
        artifact.prepare()
        artifact.publish(manifest | more, {"miou": miou, "threshold": 0.3, "map": miou})
        return artifact

    return make


def cam(name: str, **values: Any) -> dict[str, Any]:
    return {"seed": 0, "cam": {"_target_": f"wsss.cams.{name}", **values}}


@pytest.fixture
def store(publish: Publish, tmp_path: Path) -> Path:
    """Two classifiers, three sets of seeds over them, and labels of two."""
    publish("classifier", "c1", {"seed": 0, "classifier": {"_target_": "wsss.models.Vgg", "width": 1}}, 0.9)
    publish("classifier", "c2", {"seed": 0, "classifier": {"_target_": "wsss.models.Vgg", "width": 2}}, 0.8)
    publish("seeds", "5a11", cam("Cam"), 0.40, {"classifier": "c1"})
    publish("seeds", "5a22", cam("LayerCam", stages=[4, 5.0], gamma=2), 0.50, {"classifier": "c1"})
    publish("seeds", "5b33", cam("LayerCam", stages=[4, 5], gamma=3.0), 0.45, {"classifier": "c2"}, experiment="other")
    publish("labels", "1a", {"seed": 0, "refiner": {"_target_": "wsss.refine.Refiner"}}, 0.6, {"seeds": "5a11"})
    publish("labels", "1b", {"seed": 0, "refiner": {"_target_": "wsss.refine.Refiner"}}, 0.7, {"seeds": "5a22"})
    return tmp_path / "store"


def test_what_differs_stands_in_columns_upstream_included(store: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--store", str(store), "--stage", "seeds"]) == 0
    output = capsys.readouterr().out
    assert lines(output) == [
        ["", "width", "cam", "gamma", "miou"],
        ["", "1", "Cam", "", "40.0"],
        ["*", "1", "LayerCam", "2", "50.0"],
        ["", "2", "LayerCam", "3", "45.0"],
    ]  # stages are the same wherever there are any
    assert "Supervision of every row: image tags." in output
    assert "threshold 0.30 in every row." in output
    assert main(["--store", str(store), "--stage", "labels"]) == 0
    assert [row[1] for row in lines(capsys.readouterr().out)] == ["cam", "Cam", "LayerCam"]
    page = (store / "compare" / "mine-all" / "labels" / "table.md").read_text()
    assert "| \\* | LayerCam | 70.0 |" in page


def test_artifacts_are_named_by_directory_or_fingerprint(store: Path, capsys: pytest.CaptureFixture[str]):
    names = ["--artifacts", str(store / "seeds" / "5a11"), "5b"]
    assert main([*names, "--store", str(store)]) == 0
    output = capsys.readouterr().out
    assert [row[-1] for row in lines(output)] == ["miou", "40.0", "45.0"]
    assert "2 experiments" in output
    assert main(["--store", str(store), "--stage", "seeds", "--experiment", "other"]) == 0
    assert lines(capsys.readouterr().out) == [["", "job", "miou", "threshold"], ["", "other", "45.0", "0.30"]]


def test_the_stage_of_a_store_is_the_one_with_the_most_artifacts(store: Path):
    comparison, place = compare_artifacts(store=store)
    assert (comparison.stage, len(comparison.rows)) == ("seeds", 3)
    assert place == store / "compare" / "2-experiments-all" / "seeds"
    comparison, _ = compare_artifacts(store=store, experiment="mine", sort="miou")
    assert [row.stat("miou").mean for row in comparison.rows] == [0.7, 0.6]  # of equals the latest


def test_artifacts_that_differ_in_their_seed_alone_share_a_row(publish: Publish, tmp_path: Path):
    for seed, miou in ((0, 0.4), (1, 0.5)):
        publish("seeds", f"a{seed}", {"seed": seed, "cam": {"_target_": "Cam"}}, miou)
        publish("seeds", f"b{seed}", {"seed": seed, "cam": {"_target_": "LayerCam"}}, miou + 0.1)
    comparison, _ = compare_artifacts(store=tmp_path / "store")
    assert comparison.keys == ("cam",)
    assert [row.stat("miou") for row in comparison.rows] == [(0.45, 0.4, 0.5), (0.55, 0.5, 0.6)]


def test_what_configurations_do_not_tell_apart_their_fingerprints_do(publish: Publish, tmp_path: Path):
    for name in ("aa", "bb"):  # another version of the code
        publish("seeds", name, cam("Cam"), 0.4)
    comparison, _ = compare_artifacts(store=tmp_path / "store")
    assert comparison.keys == ("fingerprint",)
    assert [row.label() for row in comparison.rows] == ["aa", "bb"]


def test_upstream_that_was_deleted_counts_by_its_fingerprint(publish: Publish, tmp_path: Path):
    for name in ("c1", "c2"):
        publish("seeds", f"s{name}", cam("Cam"), 0.4, {"classifier": name})
    comparison, _ = compare_artifacts(store=tmp_path / "store")
    assert [row.settings["classifier"].text for row in comparison.rows] == ["c1", "c2"]


def test_rows_of_different_supervision_say_so(publish: Publish, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    publish("segmenter", "aa", {"seed": 0, "labels": "refined"}, 0.5)
    publish("segmenter", "bb", {"seed": 0, "labels": "ground_truth"}, 0.6, supervision="train masks")
    assert main(["--store", str(tmp_path / "store")]) == 0
    output = capsys.readouterr().out
    assert [row[-1] for row in lines(output)] == ["supervision", "image tags", "train masks"]
    page = (tmp_path / "store" / "compare" / "mine-all" / "segmenter" / "table.html").read_text()
    assert page.count("train masks") == 3  # in the table, for sorting, and among the artifacts


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--artifacts", "ffff"], ["no finished artifact ffff", "--store"]),
        (["--artifacts", "5a"], ["5a fits", "5a11", "5a22"]),
        (["--artifacts", "5a11", "1a"], ["several stages (seeds, labels)"]),
        (["--artifacts", "1a", "--stage", "seeds"], ["none of the named artifacts is of seeds", "labels"]),
        (
            ["--stage", "seeds", "--experiment", "demo"],
            ["made by experiment demo", "made by: mine, other", "first maker"],
        ),
        (["--artifacts", ""], ["no finished artifact ''"]),
        (["--artifacts", "classifier/5a11", "5b"], ["no finished classifier", "begins with 5a11"]),
        (["--artifacts", "nonsense/path/5a11", "5b"], ["no finished artifact nonsense/path/5a11", "<stage>/<digits>"]),
        (["--artifacts", "seds/5a11", "5b"], ["no finished artifact seds/5a11", "one of classifier, seeds"]),
        (["--artifacts", "5", "--stage", "labels"], ["5 fits 5a11, 5a22, 5b33. Give more digits"]),
        (["--stage", "affinity"], ["no finished affinity"]),
        (["--stage", "sed"], ["'sed'", "seeds"]),
        (["cam=cam"], ["cam=cam", "Use one of them"]),
    ],
)
def test_a_mistake_in_naming_artifacts_is_told_with_code_2(options: list[str], told: list[str], store: Path, capsys):
    assert main([*options, "--store", str(store)]) == 2
    output = capsys.readouterr().out
    assert all(part in output for part in told), output


def test_digits_mean_the_named_stage_first_and_a_whole_fingerprint_wins(publish: Publish, tmp_path: Path):
    root = tmp_path / "store"
    for stage, name in (("seeds", "ab"), ("seeds", "abcd"), ("labels", "ab"), ("labels", "ac")):
        publish(stage, name, cam("Cam"), 0.5)
    (root / "seeds" / "aa.old").mkdir()
    (root / "seeds" / "aa.old" / "manifest.json").write_text("{}")

    def found(name: str, prefer: str | None = None) -> str:
        artifact = find(name, store=root, prefer=prefer)
        return f"{artifact.stage}/{artifact.fingerprint}"

    assert found("ac") == "labels/ac"
    assert found("ab", "seeds") == found("seeds/ab") == found(f"{root}/seeds/ab/") == "seeds/ab"
    assert found("ac", "seeds") == "labels/ac"
    with pytest.raises(ConfigError, match=r"ab fits seeds/ab, labels/ab\. Give more digits, or the stage: seeds/ab"):
        found("ab")
    with pytest.raises(MissingArtifact, match="aa: neither a directory"):
        found("aa")  # set aside


def test_a_directory_that_is_no_artifact_is_told(publish: Publish, store: Path, tmp_path: Path):
    (store / "seeds" / "5d").mkdir()
    with pytest.raises(MissingArtifact, match="5d is no finished artifact: it has no manifest"):
        find(str(store / "seeds" / "5d"), store=store)
    shutil.copytree(store / "seeds" / "5a11", tmp_path / "copies" / "5a11")
    with pytest.raises(ConfigError, match="it lies in copies, which is no stage"):
        find(str(tmp_path / "copies" / "5a11"), store=store)


def test_a_store_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for options in ([], ["--stage", "seeds"], ["--artifacts", "5a"]):
        assert main([*options, "--store", str(tmp_path / "nothere")]) == 2
        assert f"no folder {tmp_path / 'nothere'}" in capsys.readouterr().out


def test_what_other_experiments_made_is_counted(store: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--store", str(store), "--stage", "seeds", "--experiment", "other"]) == 0
    assert "left out: 2 finished seeds that other experiments made" in capsys.readouterr().out
    assert main(["--store", str(store), "--stage", "labels", "--experiment", "mine"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_the_same_artifact_in_two_stores_is_one_seed(publish: Publish, tmp_path: Path, capsys):
    for seed in (0, 1):
        publish("seeds", f"a{seed}", {"seed": seed, "cam": {"_target_": "Cam"}}, 0.4)
    shutil.copytree(tmp_path / "store" / "seeds", tmp_path / "copy" / "seeds")
    copies = [str(tmp_path / name / "seeds" / "a0") for name in ("store", "copy")]
    names = [*copies, copies[0], str(tmp_path / "store" / "seeds" / "a1")]
    assert main(["--artifacts", *names]) == 0
    output = capsys.readouterr().out
    assert output.count("left out") == 1
    assert f"left out: {copies[1]} is the same artifact as {copies[0]}" in output
    assert [row[-1] for row in lines(output)] == ["n", "2"]


# --- rows that are one, and rows that are not ------------------------------------------------------------------------


def test_seeds_of_different_images_are_no_row(publish: Publish, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed, digest, miou in ((0, "aaaaaa0", 0.4), (1, "aaaaaa0", 0.5), (2, "bbbbbb0", 0.9)):
        data = {"name": "own", "sha256": digest}
        publish("seeds", f"a{seed}", {"seed": seed, "cam": {"_target_": "Cam"}}, miou, data=data)
    assert main(["--store", str(tmp_path / "store")]) == 0
    output = capsys.readouterr().out
    assert lines(output) == [
        ["", "sha256", "miou", "n"],
        ["", "aaaaaa", "45.0 (40.0-50.0)", "2"],
        ["", "bbbbbb", "90.0", "1"],
    ]  # and no best one
    assert "numbers of different images are not comparable" in " ".join(output.split())
    out = tmp_path / "store" / "compare" / "mine-all" / "seeds"
    for name in ("table.md", "table.html"):
        assert "numbers of different images are not comparable" in (out / name).read_text()
    assert 'class="best"' not in (out / "table.html").read_text()


def test_seeds_of_different_stage_versions_are_no_row(publish: Publish, tmp_path: Path):
    for seed, under, own in ((0, 1, 1), (1, 1, 1), (2, 2, 1), (3, 2, 2)):
        publish("classifier", f"c{seed}", {"seed": seed}, 0.9, version=under)
        publish("seeds", f"a{seed}", cam("Cam") | {"seed": seed}, 0.5, {"classifier": f"c{seed}"}, version=own)
    comparison, _ = compare_artifacts(store=tmp_path / "store", stage="seeds")
    assert comparison.keys == ("classifier.version", "seeds.version")
    assert [(row.label(), len(row.runs)) for row in comparison.rows] == [("1 1", 2), ("2 1", 1), ("2 2", 1)]
    with pytest.raises(ConfigError, match="no swept number"):
        plot(comparison, tmp_path / "plot.png", x="seeds.version")


def test_the_version_of_a_stage_that_some_did_without_is_no_column(publish: Publish, tmp_path: Path):
    refiner = {"_target_": "Refiner", "labelling": {"_target_": "Threshold"}}
    publish("threshold", "7a", {}, 0.5, version=1)
    publish("labels", "1a", {"seed": 0, "refiner": refiner}, 0.5, version=1)
    for name, target in (("1b", "Chosen"), ("1c", "GraphCut")):
        chosen = {"seed": 0, "refiner": refiner | {"labelling": {"_target_": target}}}
        publish("labels", name, chosen, 0.6, {"threshold": "7a"}, version=1)
    comparison, _ = compare_artifacts(store=tmp_path / "store", stage="labels")
    assert comparison.keys == ("refiner.labelling",)


def test_a_number_that_not_all_seeds_have_says_how_many_have_it(publish: Publish, tmp_path: Path, capsys):
    for seed, ceilings in ((0, [0.8, 0.7]), (1, [None, 0.9]), (2, [None, None])):
        for name, ceiling in zip("ab", ceilings, strict=True):
            made = publish("segmenter", f"{name}{seed}", {"seed": seed, "segmenter": {"_target_": name}}, 0.5)
            made.publish(made.manifest, {"miou": 0.5, **({} if ceiling is None else {"ceiling": ceiling})})
    assert main(["--store", str(tmp_path / "store")]) == 0
    output = capsys.readouterr().out
    assert [row[1:] for row in lines(output)] == [
        ["segmenter", "miou", "ceiling", "n"],
        ["a", "50.0", "80.0 [1]", "3"],
        ["b", "50.0", "80.0 (70.0-90.0) [2]", "3"],
    ]
    assert "[k]: over the k seeds that have this number." in output
    out = tmp_path / "store" / "compare" / "mine-all" / "segmenter"
    assert "| 80.0 [1] | 3 |" in (out / "table.md").read_text()
    page = (out / "table.html").read_text()
    assert '80.0<span class="range">[1]</span>' in page
    assert '80.0<span class="range">70.0-90.0</span><span class="range">[2]</span>' in page
    found = list(csv.DictReader((out / "table.csv").open()))
    assert [row["ceiling"] for row in found] == ["0.8", "", "", "0.7", "0.9", ""]  # a line each


def test_counts_that_not_all_seeds_have_are_no_fractions(publish: Publish, tmp_path: Path):
    for seed, images in ((0, 8), (1, None)):
        made = publish("seeds", f"a{seed}", cam("Cam") | {"seed": seed}, 0.5)
        made.publish(made.manifest, {"miou": 0.5, "images": images})
    comparison, _ = compare_artifacts(store=tmp_path / "store", metrics=["images"])
    assert comparison.table() == (["", "job", "images", "n"], [["", "mine", "8 [1]", "2"]])


def test_all_rows_that_tie_are_the_best(publish: Publish, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, target, miou in (("aa", "Cam", 0.5), ("bb", "LayerCam", 0.4), ("cc", "ZoomCam", 0.5)):
        publish("seeds", name, cam(target), miou)
    assert main(["--store", str(tmp_path / "store")]) == 0
    assert [row[:2] for row in lines(capsys.readouterr().out)[1:]] == [["*", "Cam"], ["", "LayerCam"], ["*", "ZoomCam"]]
    page = (tmp_path / "store" / "compare" / "mine-all" / "seeds" / "table.html").read_text()
    assert page.count('<tr class="best">') == 2


def test_no_threshold_is_the_best(fake: Fake, overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for artifact, threshold in zip(fake(*GAMMAS), (0.1, 0.4, 0.2, 0.3), strict=True):
        artifact.publish(artifact.manifest, artifact.metrics | {"threshold_best": threshold})
    assert main(["--sort", "threshold_best", *overrides(*GAMMAS)]) == 0
    output = capsys.readouterr().out
    head, *rows = lines(output)
    assert [row[head.index("threshold_best")] for row in rows] == ["0.40", "0.30", "0.20", "0.10"]
    assert "*" not in {row[0] for row in rows}
    assert "best threshold_best" not in output
    page = (place(tmp_path) / "table.html").read_text()
    assert "is marked" not in page
    assert 'class="best"' not in page


# --- what is broken --------------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_none(publish: Publish, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, target, text in (("aa", "Cam", "NaN"), ("bb", "LayerCam", "Infinity"), ("cc", "Lpcam", "0.5")):
        made = publish("seeds", name, cam(target))
        (made.directory / "metrics.json").write_text(f'{{"miou": {text}, "curve": [[0.1, {text}], [NaN, 0.2], 3]}}')
    assert main(["--store", str(tmp_path / "store")]) == 0
    assert [row[:3] for row in lines(capsys.readouterr().out)[1:]] == [
        ["", "Cam", "-"], ["", "LayerCam", "-"], ["", "Lpcam", "50.0"],
    ]  # fmt: skip
    out = tmp_path / "store" / "compare" / "mine-all" / "seeds"
    assert [row["miou"] for row in csv.DictReader((out / "table.csv").open())] == ["", "", "0.5"]
    comparison, _ = compare_artifacts(store=tmp_path / "store")
    assert [run.curve for run in comparison.runs] == [[(0.1, None)], [(0.1, None)], [(0.1, 0.5)]]


BROKEN = [
    ("manifest.json", "[]", "is no manifest"),
    ("manifest.json", '{"upstream": []}', "is no manifest"),
    ("manifest.json", '{"stage": "labels", "fingerprint": "5a22"}', "is that of labels/5a22"),
    ("manifest.json", '{"config": {', "cannot be read"),
    ("metrics.json", "[0.5]", "holds no numbers"),
    ("metrics.json", "", "cannot be read"),
    ("metrics.json", None, "cannot be read"),
]


@pytest.mark.parametrize(("name", "text", "told"), BROKEN)
def test_what_is_broken_in_a_store_is_left_out_and_named(
    name: str, text: str | None, told: str, store: Path, capsys: pytest.CaptureFixture[str]
):
    path = store / "seeds" / "5a22" / name
    path.unlink() if text is None else path.write_text(text)
    assert main(["--store", str(store), "--stage", "seeds"]) == 0
    output = capsys.readouterr().out
    assert [row[-1] for row in lines(output)] == ["miou", "40.0", "45.0"]
    assert f"left out: {path} {told}" in output
    assert f"left out: 1 broken artifact. Look for more:  python -m wsss.store verify {store}" in output
    assert main(["--store", str(store), "--artifacts", "5a11", "5a22"]) == 2
    output = capsys.readouterr().out
    assert f"CorruptArtifact: {path} {told}" in output


def test_upstream_that_is_broken_counts_by_its_fingerprint(store: Path, capsys: pytest.CaptureFixture[str]):
    (store / "classifier" / "c2" / "manifest.json").write_text("[]")
    assert main(["--store", str(store), "--stage", "seeds"]) == 0
    output = capsys.readouterr().out
    assert output.count("what was made of c2 counts by its fingerprint") == 1
    assert [row[-1] for row in lines(output)] == ["miou", "40.0", "50.0", "45.0"]
    assert any("c2" in row for row in lines(output))


def test_a_broken_job_of_a_sweep_is_to_be_made_again(fake: Fake, overrides, capsys: pytest.CaptureFixture[str]):
    broken = fake(*GAMMAS)[2].directory / "metrics.json"
    broken.write_text("{")
    assert main(overrides(*GAMMAS)) == 0
    output = capsys.readouterr().out
    assert "3 of 4 jobs" in output
    assert f"left out: {broken} cannot be read" in output
    (command,) = [line for line in output.splitlines() if line.startswith("python generate_seeds.py ")]
    assert {"cam.fusion=mean", "cam.gamma=1", "upstream=build", "force=true"} <= set(shlex.split(command))


def test_the_experiment_of_a_sweep_is_an_override(capsys: pytest.CaptureFixture[str]):
    assert main(["--experiment", "demo"]) == 2
    assert "+experiment=demo" in capsys.readouterr().out


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_holds_everything_and_needs_nothing(store: Path, publish: Publish):
    publish("seeds", "5c", cam("<b>Cam"), None, {"classifier": "c1"})
    assert main(["--store", str(store), "--stage", "seeds"]) == 0
    page = (store / "compare" / "2-experiments-all" / "seeds" / "table.html").read_text()
    assert page.count('<tr class="best">') == 1
    assert "<b>Cam" not in page
    assert "&lt;b&gt;Cam" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", page)
    assert page.count("data:image/png;base64,") == 1  # no curves were measured
    assert 'data-value="0.5"' in page  # sorted by the number
    assert 'data-value="-inf"' in page  # not measured: below all others
    assert page.count("<summary>show</summary>") == 4
    for part in ("5a22", "image tags", "python 5b33", "python -m wsss.compare --store"):
        assert part in page


def test_the_page_of_a_sweep_lists_what_is_missing(fake: Fake, overrides, tmp_path: Path):
    fake("cam.gamma=1,2", "seed=0,1", only=lambda job: job.config.cam.gamma == 1)
    assert main(overrides("cam.gamma=1,2", "seed=0,1")) == 0
    page = (place(tmp_path) / "table.html").read_text()
    assert "2 jobs are missing" in page
    assert page[page.index("<h2>Missing</h2>") :].count("python generate_seeds.py") == 2
    assert '<span class="range">45.0-46.0</span>' in page
    artifacts = page[page.index("<h2>Artifacts</h2>") : page.index("<h2>Missing</h2>")]
    assert "<td>seed=0</td>" in artifacts  # and neither gamma, which those that are there share, nor what all jobs set
    assert "<td>seed=1</td>" in artifacts


# --- real sweeps ------------------------------------------------------------------------------------------------------


def run(command: str | Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """A command as a user types it in the repository, with the tiny networks at hand."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "PYTHONPATH": str(Path(tiny.__file__).parent), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        command, cwd=tiny.REPOSITORY, env=os.environ | variables, capture_output=True, text=True, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("flag", [[], ["-m"]], ids=["hydra.mode", "-m"])
def test_what_hydra_ran_is_what_is_compared(flag: list[str], own_sweep: str, overrides, tmp_path: Path):
    """A sweep file and a list of the command line, 2 x 2 jobs; the numbers are those that the jobs wrote."""
    arguments = overrides(own_sweep, "+sweep=mine", "cam.fusion=max,mean", "upstream=build")
    code, output = tiny.call("generate_seeds.py", *flag, *arguments)
    assert code == 0, output
    ran = {path.parent.name: read_json(path) for path in (tmp_path / "artifacts" / "seeds").glob("*/metrics.json")}
    assert len(ran) == 4
    comparison, _ = compare(arguments)
    assert (comparison.stage, comparison.keys, comparison.missing) == ("seeds", ("cam.gamma", "cam.fusion"), [])
    assert {run.artifact.fingerprint: run.metrics["miou"] for run in comparison.runs} == {
        name: metrics["miou"] for name, metrics in ran.items()
    }
    for row in csv.DictReader(io.StringIO(to_csv(comparison))):
        assert float(row["miou_best"]) == ran[row["fingerprint"]]["miou_best"]
        config = read_json(tmp_path / "artifacts" / "seeds" / row["fingerprint"] / "manifest.json")["config"]["cam"]
        assert (str(config["gamma"]).removesuffix(".0"), config["fusion"]) == (row["cam.gamma"], row["cam.fusion"])


@pytest.mark.slow
def test_the_command_of_a_missing_job_makes_it(own_sweep: str, overrides, tmp_path: Path):
    """By real processes: one job of two is run, its sibling made by the command that is printed."""
    arguments = overrides(own_sweep, "+sweep=mine", "data.name=two words")
    code, output = tiny.call("generate_seeds.py", *arguments, "cam.gamma=1", "upstream=build")
    assert code == 0, output
    first = run([sys.executable, "-m", "wsss.compare", *arguments], check=True)
    (command,) = re.findall(r"^python generate_seeds.py .+$", first.stdout, flags=re.MULTILINE)
    run(command, shell=True, check=True)
    second = run([sys.executable, "-m", "wsss.compare", *arguments], check=True)
    assert "2 of 2 jobs" in second.stdout
    assert "WARNING" not in second.stdout
    assert "┃ gamma ┃" in second.stdout
    with pytest.raises(MissingArtifact):
        compare(arguments, stage="labels")
    with pytest.raises(ConfigError):
        compare(arguments, stage="seeds", metrics=["nothing"])


def test_a_ceiling_is_not_the_best_of_weak_ones():
    weak, better, full = (
        Row({}, [Run({}, Artifact(Path(), "segmenter", name), "", {"supervision": supervision}, {"miou": value})])
        for name, value, supervision in (
            ("a", 0.5, "image tags"),
            ("b", 0.6, "image tags"),
            ("c", 0.8, "train masks"),
        )
    )
    assert among(weak, better, full).best() == [better]
    assert "* best miou without true masks." in among(weak, better, full).notes()
    assert among(full, full).best() == [full, full]
    assert "* best miou." in among(weak, better).notes()
    assert "* best miou." in among(full, full).notes()


def among(*rows: Row) -> Comparison:
    runs = [run for row in rows for run in row.runs]
    return Comparison("", "segmenter", (), rows, runs, (), ("miou",), "miou", "")


def test_a_seed_that_follows_the_seed_of_all_keeps_no_rows_apart():
    made = [flatten({"seed": seed, "cam": {"_target_": "Lpcam", "seed": seed}}) for seed in (0, 1)]
    assert [list(found) for found in differing(made)] == [["seed"], ["seed"]]
    own = flatten({"seed": 2, "cam": {"_target_": "Lpcam", "seed": 7}})
    assert [list(found) for found in differing([*made, own])] == [["seed", "cam.seed"]] * 3


def test_what_has_no_classifier_has_no_other_one():
    """A segmenter that learnt from true masks, beside two that differ in their classifier's training."""
    weak = [flatten({"recipe": {"classifier": {"epochs": epochs, "lr": 1}}, "labels": "refined"}) for epochs in (6, 12)]
    found = differing([*weak, flatten({"labels": "ground_truth"})])
    assert [list(one) for one in found] == [["recipe.classifier.epochs", "labels"]] * 2 + [["labels"]]


def place(base: Path) -> Path:
    """Where the one comparison of seeds without a file of conf/sweep was put."""
    (found,) = (base / "artifacts" / "compare").glob("own-*/seeds")
    return found
