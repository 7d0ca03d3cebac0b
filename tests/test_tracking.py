"""Trackers, each by what it has written: CSV by hand, TensorBoard and W&B read back by their own readers.

And what happens without a key or a network, and what ``wandb sync`` then sends to a server.
"""

from __future__ import annotations

import wsss  # noqa: F401  # isort: skip  # before Lightning, which imports torchvision

import csv
import gzip
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny
import torch
import wandb
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset
from wandb.util import get_core_path

from wsss import tracking
from wsss.artifacts import Artifact
from wsss.cams.prototypes import Prototypes
from wsss.console import quiet_libraries
from wsss.errors import ConfigError, Diverged
from wsss.stages.context import Context
from wsss.stages.report import PATCH_SIDE, PATCHES_SHOWN, prototype_rows
from wsss.stages.seeds import show_prototypes
from wsss.tracking import CsvTracker, NullTracker, Picture, TensorBoardTracker, Tracker, Trackers, WandbTracker

WHO = {"stage": "seeds", "experiment": "voc_layercam", "fingerprint": "53cbf2f250e9"}
CURVES = ("train/loss_step", "lr/encoder", "lr/new")


@pytest.fixture(autouse=True)
def clean_wandb(monkeypatch, tmp_path):
    """No key, no settings of whoever runs the tests, and a W&B session of this test alone."""
    for name in ("API_KEY", "MODE", "BASE_URL", "RUN_ID", "IDENTITY_TOKEN_FILE", "DATA_DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(tracking, "_announced", set())
    wandb.teardown()
    yield
    wandb.teardown()


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def read_part(path: Path) -> list[dict[str, Any]]:
    """The records of a run's log by W&B's own reader, the one behind ``wandb leet inspect``."""
    wandb.teardown()  # W&B's writer is a process of its own; this waits for it
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(path)]
    command.append(str(path.parent.parent))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def read_records(directory: Path) -> list[dict[str, Any]]:
    """The records of the one offline run below ``directory``."""
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    return read_part(path)


def those(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """What the records of one kind say."""
    return [record[kind] for record in records if record["type"] == kind]


def rows_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was logged, row by row; the parts of a table or an image have dots in their keys."""
    return [record["item"] for record in those(records, "history")]


def history(directory: Path) -> list[dict[str, Any]]:
    """The rows of the one offline run below ``directory``."""
    return rows_of(read_records(directory))


def exit_codes(records: list[dict[str, Any]]) -> list[int]:
    """How the run ended."""
    return [record.get("exit_code", 0) for record in those(records, "exit")]


def config_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration of a run as it is at the end."""
    return dict(ChainMap(*reversed([record["update"] for record in those(records, "config") if "update" in record])))


def sent_artifacts(directory: Path) -> dict[str, dict[str, Any]]:
    """The artifacts of the one offline run below ``directory`` by type, but for those that hold tables."""
    found = those(read_records(directory), "artifact")
    return {artifact["type"]: artifact for artifact in found if artifact["type"] != "run_table"}


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of a run as it is at the end."""
    return dict(ChainMap(*reversed([record["update"] for record in those(records, "summary")])))


def waiting(records: list[dict[str, Any]]) -> dict[str, Path]:
    """The files that wait for their upload in artifacts, by their names there."""
    entries = [entry for artifact in those(records, "artifact") for entry in artifact["manifest"]["contents"]]
    return {entry["path"]: Path(entry["local_path"]) for entry in entries if "local_path" in entry}


def table_of(records: list[dict[str, Any]], name: str) -> list[list[Any]]:
    """The rows of a table that waits for its upload, with its images. The file beside the run's media holds none."""
    files = waiting(records)
    rows = json.loads(files[f"{name}.table.json"].read_text())["data"]
    return [[image_at(files[cell["path"]]) if isinstance(cell, dict) else cell for cell in row] for row in rows]


def image_at(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def read_events(directory: Path) -> EventAccumulator:
    """TensorBoard's own reader, with everything that is there."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def text(events: EventAccumulator, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def pixels(events: EventAccumulator, tag: str) -> np.ndarray:
    (event,) = events.Images(tag)
    return np.array(Image.open(io.BytesIO(event.encoded_image_string)))


def store(root: Path, stage: str, fingerprint: str, **manifest: Any) -> Artifact:
    """A finished artifact with a folder of masks, weights, and a checkpoint."""
    artifact = Artifact(root, stage, fingerprint)
    for name in ("a", "b"):
        artifact.write_mask(name, np.zeros((2, 2), np.uint8))
    artifact.write_weights(torch.nn.Linear(1, 1))
    artifact.checkpoint.write_bytes(b"state")
    artifact.publish({"supervision": "image tags", "experiment": "e", **manifest}, {"miou": 0.25, "iou": {"dog": 0.5}})
    return artifact


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this package logged; wandb's own records go to its debug.log and nowhere else."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("wsss")]


class Net(pl.LightningModule):
    """The smallest network that Lightning trains; its loss is 3 at step 0 and 2 at step 1."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(3.0))

    def training_step(self, batch, batch_idx):
        self.log("train/loss", self.value)
        return self.value

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1.0)


def fit(tracker: Tracker) -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        logger=tracker.lightning_loggers,
        accelerator="cpu",
        devices=1,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), DataLoader(TensorDataset(torch.zeros(2, 1))))


class TestCsv:
    def test_metrics_by_hand(self, tmp_path):
        with CsvTracker(**WHO, directory=tmp_path / "new") as tracker:
            tracker.log_config({"cam": {"gamma": 2}})
            tracker.log_metrics({"loss": 0.5, "map": 0.25}, step=0)
            tracker.log_metrics({"loss": torch.tensor(0.125)}, step=1)
            tracker.log_metrics({"miou": 0.412, "iou/train": float("nan")})
        expected = "step,name,value\n0,loss,0.5\n0,map,0.25\n1,loss,0.125\n"
        assert (tmp_path / "new/metrics.csv").read_text() == expected
        assert json.loads((tmp_path / "new/summary.json").read_text()) == {
            **WHO,
            "ok": True,
            "metrics": {"miou": 0.412, "iou/train": None},
            "config": {"cam": {"gamma": 2}},
            "inputs": {},
            "outputs": {},
        }

    def test_lineage(self, tmp_path):
        read, made = store(tmp_path / "store", "classifier", "c1"), store(tmp_path / "store", "seeds", "s1")
        with CsvTracker(**WHO, directory=tmp_path / "run") as tracker:
            tracker.log_input(read)
            tracker.log_output(made)
        summary = json.loads((tmp_path / "run/summary.json").read_text())
        assert summary["inputs"] == {"classifier-c1": str(read.directory)}
        assert summary["outputs"] == {"seeds-s1": str(made.directory)}

    def test_images_in_a_table_are_left_out(self, tmp_path):
        tracker, patch = CsvTracker(**WHO, directory=tmp_path), np.zeros((2, 2, 3), np.uint8)
        tracker.log_table("prototypes", ["class", "patch", "p"], [["dog", patch, 0.5], ["cat", None, 0.25]])
        assert read_csv(tmp_path / "prototypes.csv") == [["class", "p"], ["dog", "0.5"], ["cat", "0.25"]]
        assert not tracker.takes_images

    def test_curves_and_tables(self, tmp_path):
        tracker = CsvTracker(**WHO, directory=tmp_path)
        tracker.log_curve("curve", [(0.1, 0.3), (0.2, 0.4)], "threshold", "mIoU")
        tracker.log_table("iou per class", ["class", "IoU"], [["dog, small", 0.5], ["cat", None]])
        assert read_csv(tmp_path / "curve.csv") == [["threshold", "mIoU"], ["0.1", "0.3"], ["0.2", "0.4"]]
        assert read_csv(tmp_path / "iou_per_class.csv") == [["class", "IoU"], ["dog, small", "0.5"], ["cat", ""]]
        assert not list(tmp_path.glob("*.tmp"))

    def test_a_table_does_not_overwrite_the_learning_curves(self, tmp_path):
        with pytest.raises(ValueError, match="overwrite"):
            CsvTracker(**WHO, directory=tmp_path).log_table("metrics", ["a"], [])

    def test_what_lightning_tells_twice_is_one_line(self, tmp_path):
        """The epoch comes with the metric of validation and with the mean of the loss."""
        tracker = CsvTracker(**WHO, directory=tmp_path)
        for step, row in ((3, {"val/map": 0.5, "epoch": 0}), (3, {"train/loss": 2, "epoch": 0}), (7, {"epoch": 0})):
            tracker.log_metrics(row, step=step)
        lines = ["3,val/map,0.5", "3,epoch,0.0", "3,train/loss,2.0", "7,epoch,0.0"]
        assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == lines

    def test_a_resumed_run_appends(self, tmp_path):
        for step in (0, 1):
            CsvTracker(**WHO, directory=tmp_path).log_metrics({"loss": 1}, step=step)
        assert read_csv(tmp_path / "metrics.csv") == [
            ["step", "name", "value"],
            ["0", "loss", "1.0"],
            ["1", "loss", "1.0"],
        ]

    def test_learning_curves_of_lightning(self, tmp_path, recwarn):
        with CsvTracker(**WHO, directory=tmp_path) as tracker:
            fit(tracker)
        losses = [row for row in read_csv(tmp_path / "metrics.csv") if row[1] == "train/loss"]
        assert losses == [["0", "train/loss", "3.0"], ["1", "train/loss", "2.0"]]

    def test_a_failure_is_recorded(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), CsvTracker(**WHO, directory=tmp_path):
            raise KeyboardInterrupt
        assert json.loads((tmp_path / "summary.json").read_text())["ok"] is False


class TestComposite:
    def test_all_get_everything(self, tmp_path):
        factories = [partial(CsvTracker), NullTracker, CsvTracker]
        with Trackers.build(factories, **WHO, directory=tmp_path) as tracker:
            tracker.log_table("t", ["a"], iter([[1]]))
            assert len(tracker.lightning_loggers) == 2
        assert read_csv(tmp_path / "t.csv") == [["a"], ["1"]]

    def test_those_opened_are_closed_if_one_cannot_be(self, tmp_path):
        def broken(**_):
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            Trackers.build([CsvTracker, broken], **WHO, directory=tmp_path)
        assert json.loads((tmp_path / "summary.json").read_text())["ok"] is False

    def test_one_that_fails_to_close_does_not_keep_others_open(self, tmp_path):
        class Broken(NullTracker):
            def finish(self, ok):
                raise OSError("disk full")

        tracker = Trackers([Broken(), CsvTracker(**WHO, directory=tmp_path)])
        with pytest.raises(OSError, match="disk full"):
            tracker.finish(ok=True)
        assert json.loads((tmp_path / "summary.json").read_text())["ok"] is True

    def test_images_are_taken_where_one_of_them_takes_them(self, tmp_path):
        assert not Trackers().takes_images
        csv_only = Trackers.build([CsvTracker], **WHO, directory=tmp_path)
        with Trackers.build([CsvTracker, TensorBoardTracker], **WHO, directory=tmp_path) as both:
            assert (csv_only.takes_images, both.takes_images) == (False, True)

    @pytest.mark.parametrize("kind", [NullTracker, CsvTracker, TensorBoardTracker, WandbTracker])
    def test_other_ranks_write_nothing(self, kind, tmp_path, monkeypatch):
        monkeypatch.setattr("wsss.console.rank_zero_only.rank", 1)
        with kind(**WHO, directory=tmp_path / "run") as tracker:
            assert isinstance(tracker, Tracker)
            tracker.log_config({"a": 1})
            tracker.log_metrics({"a": 1.0})
            tracker.log_metrics({"a": 1.0}, step=3)
            tracker.log_curve("c", [(0, 0)], "x", "y")
            tracker.log_table("t", ["a"], [[1]])
            tracker.log_images("i", [Picture(np.zeros((2, 2, 3), np.uint8))])
            tracker.log_input(Artifact(tmp_path, "seeds", "none"))
            tracker.log_output(Artifact(tmp_path, "seeds", "none"))
            assert len(tracker.lightning_loggers) == (kind is not NullTracker)
            assert not tracker.takes_images
        assert not (tmp_path / "run").exists()


class TestTensorBoard:
    def test_numbers_and_text(self, tmp_path):
        with TensorBoardTracker(**WHO, directory=tmp_path) as tracker:
            tracker.log_config({"cam": {"gamma": 2, "stages": [3, 4]}})
            fit(tracker)
            tracker.log_metrics({"val/miou": 0.25}, step=7)
            tracker.log_metrics({"miou": 0.5})
            tracker.log_curve("curve", [(0.05, 0.25), (0.5, 0.75), (0.9, None)], "threshold", "mIoU")
            tracker.log_table("iou per class", ["class", "iou"], [["dog", np.float64(0.5)], ["a|b", None]])
        events = read_events(tmp_path / "tensorboard")
        assert scalars(events, "train/loss") == [(0, 3.0), (1, 2.0)]
        assert (scalars(events, "val/miou"), scalars(events, "miou")) == ([(7, 0.25)], [(0, 0.5)])
        assert scalars(events, "curve/mIoU") == [(50, 0.25), (500, 0.75)]  # thousandths
        assert "| 0.05 | 0.25 |" in text(events, "curve")
        assert text(events, "iou per class").splitlines()[2:] == ["| dog | 0.5 |", "| a\\|b |  |"]
        lines = text(events, "config").splitlines()
        assert all(line.startswith("    ") for line in lines), "a block of code in Markdown"
        assert yaml.safe_load("\n".join(line[4:] for line in lines)) == {"cam": {"gamma": 2, "stages": [3, 4]}}
        assert "| stage | seeds |" in text(events, "run")
        assert text(events, "ended") == "well"

    def test_images_beside_their_masks(self, tmp_path):
        image, labels = np.full((20, 40, 3), 100, np.uint8), np.zeros((20, 40), np.uint8)
        labels[5:15, 5:35] = 1
        with TensorBoardTracker(**WHO, directory=tmp_path) as tracker:
            tracker.log_images(
                "seeds", [Picture(image, "2007_000033", {"seeds": labels, "truth": np.zeros_like(labels)})]
            )
        found = pixels(read_events(tmp_path / "tensorboard"), "seeds/2007_000033")
        middle = [found[found.shape[0] // 2 + 10, found.shape[1] * at // 6] for at in (1, 3, 5)]
        assert middle[0].tolist() == middle[2].tolist() == [100, 100, 100], "background keeps its colour"
        red, green, blue = middle[1].tolist()
        assert red > 100 > green == blue, "class 1 is dark red"

    def test_images_in_a_table(self, tmp_path):
        patch = np.full((8, 8, 3), 50, np.uint8)
        rows = [["dog", 0.5, patch], ["dog", 0.25, patch + 100], ["cat", 1.0, patch]]
        with TensorBoardTracker(**WHO, directory=tmp_path) as tracker:
            tracker.log_table("prototypes", ["class", "p", "patch"], iter(rows))
        events = read_events(tmp_path / "tensorboard")
        assert text(events, "prototypes").splitlines()[2:] == ["| dog | 0.5 |", "| dog | 0.25 |", "| cat | 1 |"]
        assert events.Tags()["images"] == ["prototypes/dog", "prototypes/cat"], "a sheet for each class"
        dog = pixels(events, "prototypes/dog")
        assert (dog == 50).all(axis=2).any()
        assert (dog == 150).all(axis=2).any()

    def test_lineage(self, tmp_path):
        read, made = store(tmp_path / "store", "classifier", "c1"), store(tmp_path / "store", "seeds", "s1")
        with TensorBoardTracker(**WHO, directory=tmp_path) as tracker:
            tracker.log_input(read)
            tracker.log_output(made)
        events = read_events(tmp_path / "tensorboard")
        assert f"| directory | {read.directory} |" in text(events, "input/classifier-c1")
        assert "| supervision | image tags |" in text(events, "output/seeds-s1")

    def test_a_failed_run_is_closed_as_failed_and_a_resumed_one_goes_on_beside_it(self, tmp_path):
        tracker = TensorBoardTracker(**WHO, directory=tmp_path)
        tracker.log_metrics({"loss": 2.0}, step=0)
        with pytest.raises(RuntimeError), tracker:
            raise RuntimeError
        assert text(read_events(tmp_path / "tensorboard"), "ended") == "failed"
        with TensorBoardTracker(**WHO, directory=tmp_path) as tracker:
            tracker.log_metrics({"loss": 1.0}, step=1)
        tracker.log_metrics({"loss": 0.0}, step=2)  # after the end: nothing
        assert scalars(read_events(tmp_path / "tensorboard"), "loss") == [(0, 2.0), (1, 1.0)]


class TestWandb:
    def test_an_offline_run_holds_everything(self, tmp_path, capfd):
        labels = np.array([[0, 1], [1, 255]], np.uint8)
        picture = Picture(np.zeros((2, 2, 3), np.uint8), "2007_000033", {"seeds": labels, "truth": labels}, {1: "dog"})
        quiet_libraries()
        with WandbTracker(**WHO, directory=tmp_path, project="p", tags=["t"], mode="offline") as tracker:
            tracker.log_config({"cam": {"gamma": 2}})
            fit(tracker)
            tracker.log_metrics({"val/miou": 0.25}, step=7)
            tracker.log_metrics({"miou": 0.412})
            tracker.log_curve("curve", [(0.1, 0.3), (0.2, 0.4)], "threshold", "mIoU")
            tracker.log_table("iou", ["class", "IoU"], [["dog", np.float64(0.5)], ["cat", None]])
            tracker.log_images("overlays", [picture])
        records = read_records(tmp_path)
        rows = rows_of(records)
        run, config = those(records, "run")[0], config_of(records)
        assert (run["project"], run["run_group"], run["job_type"]) == ("p", "voc_layercam", "seeds")
        assert (run["display_name"], run["tags"]) == ("seeds-53cbf2f250e9", ["t"])
        assert (config["cam"], config["stage"]) == ({"gamma": 2}, "seeds")
        losses = [(row["trainer/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
        assert losses == [(0, 3.0), (1, 2.0)]
        assert next(row for row in rows if "val/miou" in row)["trainer/global_step"] == 7
        assert next(row["miou"] for row in rows if "miou" in row) == 0.412
        assert {row["curve_table.ncols"] for row in rows if "curve_table.ncols" in row} == {2}
        assert {row["iou.nrows"] for row in rows if "iou.nrows" in row} == {2}
        (overlays,) = (row for row in rows if "overlays.captions" in row)
        assert overlays["overlays.captions"] == ["2007_000033"]
        assert set(overlays["overlays.all_masks"][0]) == {"seeds", "truth"}
        assert exit_codes(records) == [0]
        assert capfd.readouterr() == ("", "")

    def test_final_numbers_are_in_the_summary(self, tmp_path):
        with WandbTracker(**WHO, directory=tmp_path, mode="offline") as tracker:
            tracker.log_metrics({"val/miou": 0.25}, step=7)
            tracker.log_metrics({"miou": 0.412})
        summary = summary_of(read_records(tmp_path))
        assert (summary["miou"], summary["val/miou"], summary["trainer/global_step"]) == (0.412, 0.25, 7)

    def test_artifacts_are_references_and_tie_runs_together(self, tmp_path):
        classifier, seeds = (store(tmp_path / "store", stage, f"{stage}1", seed=3) for stage in ("classifier", "seeds"))
        with WandbTracker(**WHO, directory=tmp_path / "a", mode="offline") as tracker:
            tracker.log_output(classifier)
        with WandbTracker(**WHO, directory=tmp_path / "b", mode="offline") as tracker:
            tracker.log_input(classifier)
            tracker.log_output(seeds)
        (made,) = sent_artifacts(tmp_path / "a").values()
        sent = sent_artifacts(tmp_path / "b")
        assert {name: (one["name"], one.get("use_after_commit", False)) for name, one in sent.items()} == {
            "classifier": ("classifier-classifier1", True),
            "seeds": ("seeds-seeds1", False),
        }
        assert "use_after_commit" not in made
        assert made["digest"] == sent["classifier"]["digest"], "one and the same version"
        for artifact, one in ((classifier, made), (seeds, sent["seeds"])):
            names = ("manifest.json", "masks", "metrics.json", "weights.safetensors")  # not the checkpoint
            entries = one["manifest"]["contents"]
            assert {entry["path"]: entry["ref"] for entry in entries} == {
                name: (artifact.directory / name).as_uri() for name in names
            }
            assert not any("local_path" in entry for entry in entries), "nothing is copied for upload"
        metadata = json.loads(made["metadata"])
        assert metadata["metrics"] == {"miou": 0.25}
        assert (metadata["supervision"], metadata["seed"], metadata["fingerprint"]) == ("image tags", 3, "classifier1")
        assert metadata["directory"] == str(classifier.directory)

    def test_a_stage_that_is_made_anew_is_a_new_version(self, tmp_path):
        digests = []
        for at, created in enumerate(("today", "tomorrow")):
            with WandbTracker(**WHO, directory=tmp_path / str(at), mode="offline") as tracker:
                tracker.log_output(store(tmp_path / "store", "seeds", "s1", created=created))
            digests.append(sent_artifacts(tmp_path / str(at))["seeds"]["digest"])
        assert digests[0] != digests[1]

    def test_images_of_several_sizes_and_in_tables(self, tmp_path, caplog):
        """W&B warns of images of unequal sizes in one place, by a logger that also makes other messages come twice."""
        wide, tall = np.zeros((4, 6, 3), np.uint8), np.zeros((8, 2, 3), np.uint8)
        shown = [Picture(image, masks={"seeds": np.zeros(image.shape[:2], np.uint8)}) for image in (wide, tall)]
        with WandbTracker(**WHO, directory=tmp_path, mode="offline") as tracker:
            tracker.log_images("overlays", shown)
            tracker.log_table("prototypes", ["class", "patch"], [["dog", wide], ["cat", tall]])
        (row,) = (row for row in history(tmp_path) if "overlays.captions" in row or "overlays.width" in row)
        assert (row["overlays.width"], row["overlays.height"], row["overlays.count"]) == (6, 8, 2)
        (mask,) = (path for path in tmp_path.rglob("*.mask.png") if np.array(Image.open(path))[7, 0] == 0)
        assert np.array(Image.open(mask))[0].tolist() == [0, 0, 255, 255, 255, 255], "the border counts as ignored"
        rows = table_of(read_records(tmp_path), "prototypes")
        assert [[name, *patch.shape] for name, patch in rows] == [["dog", 4, 6, 3], ["cat", 8, 2, 3]]
        assert not [record for record in caplog.records if record.name == "root"]

    def test_what_waits_for_the_upload_lies_beside_the_run(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
        with WandbTracker(**WHO, directory=tmp_path / "run", mode="offline") as tracker:
            tracker.log_table("iou", ["class"], [["dog"]])
            tracker.log_curve("curve", [(0.1, 0.3)], "threshold", "mIoU")
            tracker.log_output(store(tmp_path / "store", "seeds", "s1"))
        files = waiting(read_records(tmp_path / "run")).values()
        assert len(files) == 2
        assert all(path.is_relative_to(tmp_path / "run") and path.is_file() for path in files)
        assert not (tmp_path / "home").exists()
        assert "WANDB_DATA_DIR" not in os.environ

    def test_a_failed_run_is_closed_as_failed(self, tmp_path):
        with pytest.raises(RuntimeError), WandbTracker(**WHO, directory=tmp_path, mode="offline"):
            raise RuntimeError
        assert exit_codes(read_records(tmp_path)) == [1]

    def test_disabled_writes_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "disabled")
        with WandbTracker(**WHO, directory=tmp_path, mode="online") as tracker:
            tracker.log_metrics({"miou": 0.4}, step=1)
            fit(tracker)
            tracker.log_input(Artifact(tmp_path, "seeds", "none"))
            assert not tracker.takes_images
        assert list(tmp_path.iterdir()) == []

    def test_offline_is_said_once(self, tmp_path, caplog):
        caplog.set_level(logging.INFO, logger="wsss.tracking")
        for name in ("a", "b"):
            WandbTracker(**WHO, directory=tmp_path / "my logs/voc" / name).finish(ok=True)
        (message,) = ours(caplog)
        assert "no API key" in message
        assert message.endswith(f": {tracking.upload_command(tmp_path / 'my logs')}")

    def test_settings_that_wandb_does_not_take_cost_the_dashboard_alone(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setenv("WANDB_BASE_URL", "no address")
        for name in ("a", "b"):
            with WandbTracker(**WHO, directory=tmp_path / name) as tracker:
                tracker.log_metrics({"miou": 0.4}, step=1)
                fit(tracker)
                assert not tracker.takes_images
        (message,) = ours(caplog)
        assert "nothing is recorded" in message
        assert "base_url" in message

    def test_an_unknown_wandb_mode_in_the_environment_is_a_mistake_of_the_user(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "garbage")
        with pytest.raises(ConfigError, match=r"WANDB_MODE='garbage'.*online, offline, disabled"):
            WandbTracker(**WHO, directory=tmp_path)

    def test_without_key_and_terminal_it_neither_asks_nor_hangs(self, tmp_path):
        """A process of its own, with stdin closed: it ends well and soon, and stdout holds nothing but our line."""
        script = (
            "import logging, sys; from pathlib import Path; from wsss.tracking import WandbTracker\n"
            "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
            "logging.getLogger('wsss').setLevel(logging.INFO)\n"
            f"for stage in ('seeds', 'labels'):\n"
            f"    who = dict(stage=stage, experiment='e', fingerprint='f', directory=Path({str(tmp_path)!r}, stage))\n"
            "    with WandbTracker(**who) as tracker: tracker.log_metrics({'miou': 0.5})\n"
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
        assert "wandb sync" in done.stdout
        assert done.stderr == ""
        assert any("miou" in row for row in history(tmp_path / "labels"))

    def test_an_interrupted_online_run_goes_on_under_its_id(self, tmp_path, monkeypatch):
        asked = []

        def init(**options):
            asked.append((options["mode"], options["id"]))
            return MagicMock(id="abc")

        monkeypatch.setattr(wandb, "init", init)
        monkeypatch.setattr(tracking, "choose_mode", lambda _: ("online", ""))
        for ok in (False, True, True):
            WandbTracker(**WHO, directory=tmp_path).finish(ok)
        assert asked == [("online", None), ("online", "abc"), ("online", None)]

    def test_a_run_whose_first_part_was_not_uploaded_begins_anew_online(self, tmp_path, monkeypatch):
        """Sent later, that part would come last, and say that the run failed."""
        asked = []
        WandbTracker(**WHO, directory=tmp_path, mode="offline").finish(ok=False)
        (part,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
        id = part.stem.removeprefix("run-")
        monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options["id"]) or MagicMock(id=id))
        monkeypatch.setattr(tracking, "choose_mode", lambda _: ("online", ""))
        WandbTracker(**WHO, directory=tmp_path).finish(ok=False)
        part.with_suffix(".wandb.synced").touch()
        WandbTracker(**WHO, directory=tmp_path).finish(ok=False)
        assert asked == [None, id]

    def test_trouble_at_the_end_is_reported_and_not_raised(self, tmp_path, monkeypatch, caplog):
        run = MagicMock(id="1", dir=str(tmp_path / "run-1/files"))
        run.finish.side_effect = ConnectionError("gone")
        monkeypatch.setattr(wandb, "init", lambda **_: run)
        tracker = WandbTracker(**WHO, directory=tmp_path)
        tracker.finish(ok=True)
        tracker.finish(ok=True)
        assert run.finish.call_count == 1
        assert f"(gone). Upload it with: wandb sync {tmp_path / 'run-1'}" in ours(caplog)[-1]


class TestChooseMode:
    def test_no_key(self):
        assert tracking.choose_mode("online") == ("offline", "no API key; `wandb login` stores one")

    def test_key_and_network(self, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
            assert tracking.choose_mode("auto") == ("online", "")

    def test_key_from_netrc(self, monkeypatch, tmp_path):
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1:1 login user password {'a' * 40}\n")
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
        assert tracking.choose_mode("online") == ("online", "")
        assert tracking.choose_mode("auto") == ("offline", "cannot reach http://127.0.0.1:1")

    @pytest.mark.parametrize(
        ("environment", "mode", "chosen"),
        [
            ("offline", "auto", "offline"),
            ("offline", "online", "offline"),
            ("dryrun", "auto", "offline"),
            ("disabled", "offline", "disabled"),
            ("online", "auto", "online"),
            ("online", "offline", "offline"),
        ],
    )
    def test_environment(self, monkeypatch, environment, mode, chosen):
        monkeypatch.setenv("WANDB_MODE", environment)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        assert tracking.choose_mode(mode)[0] == chosen

    def test_unknown(self):
        with pytest.raises(ConfigError, match="choose one of: auto"):
            tracking.choose_mode("on")


class TestReachable:
    def test_refused_and_unknown(self):
        assert not tracking.is_reachable("http://127.0.0.1:1")
        assert not tracking.is_reachable("http://")

    def test_bounded_when_the_name_server_is_silent(self, monkeypatch):
        def look_up(*_, **__):
            time.sleep(1.5)
            raise OSError

        monkeypatch.setattr(tracking.socket, "create_connection", look_up)
        start = time.monotonic()
        assert not tracking.is_reachable("https://example.org", seconds=0.1)
        assert time.monotonic() - start < 1

    def test_a_proxy_is_what_counts(self, monkeypatch):
        monkeypatch.setenv("https_proxy", "http://proxy.local:3128")
        monkeypatch.setenv("no_proxy", "inside.local")
        assert tracking._connect_address("https://api.wandb.ai") == ("proxy.local", 3128)
        assert tracking._connect_address("https://inside.local") == ("inside.local", 443)
        monkeypatch.setenv("https_proxy", "proxy.local:3128")
        assert tracking._connect_address("https://api.wandb.ai") == ("proxy.local", 3128)


@pytest.mark.slow
def test_a_server_that_never_answers(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    caplog.set_level(logging.INFO, logger="wsss.tracking")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        with WandbTracker(**WHO, directory=tmp_path, init_timeout=2) as tracker:
            tracker.log_metrics({"miou": 0.5})
    assert any("miou" in row for row in history(tmp_path))
    (message,) = ours(caplog)
    assert "the server did not accept the run" in message
    assert not (tmp_path / "wandb_run_id").exists()


# --- whole pipelines, and what is sent later -------------------------------------------------------------------------


def test_every_dashboard_of_a_pipeline(tmp_path, monkeypatch):
    """All stages with three trackers at once: nothing that one of them shows is missing in what it wrote."""
    root = tiny.write_set(tmp_path / "set")
    pipeline = tiny.pipeline(root, tmp_path, "logger=[csv,wandb,tensorboard]", "cam=lpcam")
    with tiny.contained():
        pipeline.make_all()
    logs = {
        stage: tmp_path / "logs" / pipeline.experiment / f"{stage}-{pipeline.fingerprint(stage)}"
        for stage in tiny.STAGES
    }
    records = {stage: read_records(logs[stage]) for stage in tiny.STAGES}
    rows = {stage: rows_of(records[stage]) for stage in tiny.STAGES}
    keys = {stage: {key.partition(".")[0] for row in rows[stage] for key in row} for stage in tiny.STAGES}
    events = {stage: read_events(logs[stage] / "tensorboard") for stage in tiny.STAGES}
    tags = {stage: set(events[stage].Tags()["scalars"] + events[stage].Tags()["images"]) for stage in tiny.STAGES}

    for stage in tiny.STAGES:
        (run,), config = those(records[stage], "run"), config_of(records[stage])
        assert (run["run_group"], run["job_type"]) == (pipeline.experiment, stage)
        assert exit_codes(records[stage]) == [0]
        assert (config["cam"]["_target_"], config["seed"]) == ("wsss.cams.Lpcam", 0)
        assert config["paths"]["logs"] == str(tmp_path / "logs"), "resolved"
        metrics = pipeline.artifact(stage).metrics
        numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
        summary = summary_of(records[stage])
        assert {key: summary[key] for key in numbers} == pytest.approx(numbers)
        assert {key: scalars(events[stage], key)[0][1] for key in numbers} == pytest.approx(numbers, rel=1e-6)
        csv_summary = json.loads((logs[stage] / "summary.json").read_text())
        assert csv_summary["metrics"] == pytest.approx(numbers)
        assert text(events[stage], "ended") == "well"

    way = {"classifier": set(), "seeds": {"classifier"}, "labels": {"seeds"}, "segmenter": {"labels"}}
    sent = {stage: sent_artifacts(logs[stage]) for stage in tiny.STAGES}
    for stage, needs in way.items():
        used = {name for name, artifact in sent[stage].items() if "use_after_commit" in artifact}
        assert (used, set(sent[stage]) - used) == (needs, {stage})
        names = {f"{need}-{pipeline.fingerprint(need)}" for need in needs}
        assert set(json.loads((logs[stage] / "summary.json").read_text())["inputs"]) == names
        assert [sent[stage][need]["digest"] for need in needs] == [sent[need][need]["digest"] for need in needs]

    for stage, metric in (("classifier", "map"), ("segmenter", "miou")):
        curve = [row for row in rows[stage] if f"val/{metric}" in row]
        assert [row["epoch"] for row in curve][:2] == [0, 1]
        assert [row["trainer/global_step"] for row in curve][:2] == [3, 7], "four steps an epoch, counted from 0"
        assert [step for step, _ in scalars(events[stage], f"val/{metric}")][:2] == [3, 7]
        assert {"train/loss", f"val/{metric}", metric} <= keys[stage] & tags[stage]
        steps = {
            name: [(row["trainer/global_step"], row[name]) for row in rows[stage] if name in row] for name in CURVES
        }
        lines = [(int(step), name, float(value)) for step, name, value in read_csv(logs[stage] / "metrics.csv")[1:]]
        assert len(lines) == len({(step, name) for step, name, _ in lines}), "one number for each step and name"
        for name, curve in steps.items():
            assert [step for step, _ in curve] == list(range(8)), "a short training is told step by step"
            assert [(step, value) for step, told, value in lines if told == name] == curve
            assert [value for _, value in scalars(events[stage], name)] == pytest.approx([y for _, y in curve])
        means = [value for _, told, value in lines if told == "train/loss"]
        losses = np.array([loss for _, loss in steps["train/loss_step"]])
        assert means == pytest.approx(losses.reshape(2, 4).mean(axis=1)), "batches of one size"
        factor = pipeline.config.recipe[stage].encoder_lr_factor
        rates, slow = ([rate for _, rate in steps[f"lr/{name}"]] for name in ("new", "encoder"))
        assert rates[0] == pipeline.config.recipe[stage].optimizer.lr
        assert sorted(rates, reverse=True) == rates
        assert slow == pytest.approx([factor * rate for rate in rates])
    shown = {
        "classifier": {"average precision"},
        "seeds": {"seeds IoU", "seeds", "prototypes", "threshold curve_table"},
        "labels": {"pseudo-label IoU", "pseudo-labels"},
        "segmenter": {"validation IoU", "predictions"},
    }
    for stage, names in shown.items():
        assert names <= keys[stage]
    assert {f"seeds/{id}" for id in tiny.TRAIN[:4]} | {"threshold curve/mIoU"} <= tags["seeds"]
    assert {f"pseudo-labels/{id}" for id in tiny.TRAIN[:4]} <= tags["labels"]
    assert {f"predictions/{id}" for id in tiny.VAL} <= tags["segmenter"]
    curve = dict(pipeline.artifact("seeds").metrics["curve"])
    assert dict(scalars(events["seeds"], "threshold curve/mIoU")) == pytest.approx(
        {round(1000 * at): value for at, value in curve.items()}, rel=1e-6
    )

    tensors = pipeline.artifact("seeds").read_tensors("prototypes")
    assert tensors is not None
    found = Prototypes.from_tensors(tensors)
    table = read_csv(logs["seeds"] / "prototypes.csv")
    assert table[0] == ["class", "kind", "probability", "cluster size"]
    shown_of_squares = [float(p) for name, kind, p, _ in table[1:] if (name, kind) == ("square", "object")]
    squares = found.probabilities[(found.class_ids == 1) & ~found.context.bool() & found.kept]
    assert shown_of_squares == pytest.approx(squares.tolist()[:8])
    patches = [view.patches for row in prototype_rows(pipeline.artifact("seeds"), pipeline.data) for view in row.views]
    for row, own in zip(table_of(records["seeds"], "prototypes"), patches, strict=True):
        assert row[4].shape == (PATCH_SIDE, PATCHES_SHOWN * PATCH_SIDE, 3)
        for at, patch in enumerate(own):
            assert np.array_equal(row[4][:, at * PATCH_SIDE : (at + 1) * PATCH_SIDE], patch)
    assert [bool(own) for own in patches] == [int(size) > 0 for _, _, _, size in table[1:]]
    assert "prototypes/square" in tags["seeds"]

    monkeypatch.setattr(type(pipeline.data), "image", None)  # a tracker without images reads none
    alone = CsvTracker(**WHO, directory=tmp_path / "alone")
    show_prototypes(Context(pipeline.config, pipeline.data, pipeline.artifact("seeds"), {}, alone))
    assert read_csv(tmp_path / "alone/prototypes.csv") == table


def test_every_job_has_a_run_of_its_own_which_is_closed_if_it_fails(tmp_path):
    """Two jobs of one process, as in a multirun; the first one fails."""
    root, codes, ids = tiny.write_set(tmp_path / "set"), [], set()
    with tiny.contained():
        for rate in ("1e30", "0.001"):
            options = ("logger=[wandb,tensorboard]", f"recipe.classifier.optimizer.lr={rate}")
            pipeline = tiny.pipeline(root, tmp_path, *options)
            logs = tmp_path / "logs" / pipeline.experiment / f"classifier-{pipeline.fingerprint('classifier')}"
            try:
                pipeline.make("classifier")
                how = "well"
            except Diverged:
                how = "failed"
            records = read_records(logs)
            codes.append(exit_codes(records))
            ids |= {run["run_id"] for run in those(records, "run")}
            assert text(read_events(logs / "tensorboard"), "ended") == how
    assert codes == [[1], [0]]
    assert len(ids) == 2
    assert wandb.run is None


class Server(ThreadingHTTPServer):
    """Answers what ``wandb sync`` asks, and remembers it: GraphQL operations, and the paths of uploaded files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.uploaded: dict[str, bytes] = {}
        self.streamed: list[dict[str, Any]] = []
        self.histories: dict[str, list[dict[str, Any]]] = {}

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL answer."""
        given = variables.get("input") or variables
        if operation == "UpsertBucket":
            owner = {"id": "P", "name": "wsss", "entity": {"id": "E", "name": "me"}}
            run = {"id": "R", "name": given["name"], "displayName": "", "config": "{}", "project": owner}
            self.histories.setdefault(given["name"], [])
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if operation == "RunResumeStatus" and given["name"] in self.histories:
            rows = self.histories[given["name"]]
            count = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
            tail = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]"}
            known = {"config": "{}", "wandbConfig": '{"t": {}}', "summaryMetrics": "{}", "tags": []}
            bucket = {"id": "R", "name": given["name"], "displayName": "", **count, **tail, **known}
            return {"model": {"id": "P", "name": "wsss", "entity": {"id": "E", "name": "me"}, "bucket": bucket}}
        if operation == "CreateArtifact":
            artifact = {"id": given["artifactCollectionName"], "state": "PENDING", "artifactSequence": {"id": "S"}}
            return {"createArtifact": {"artifact": artifact}}
        if operation == "CreateArtifactManifest":
            file = {"id": "F", "uploadUrl": f"{self.url}/manifest/{given['artifactID']}", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": given["artifactID"], "file": file}}}
        if operation == "CreateArtifactFiles":
            nodes = [
                {
                    **dict.fromkeys(("id", "name", "displayName"), file["name"]),
                    "uploadUrl": f"{self.url}/artifact/{re.sub(' ', '_', file['name'])}",
                    "uploadHeaders": [],
                    "artifact": {"id": file["artifactID"]},
                }
                for file in given["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/run/{re.sub(' ', '_', name)}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        return {}


class Handler(BaseHTTPRequestHandler):
    """One request to :class:`Server`."""

    server: Server

    def do_PUT(self) -> None:
        self.server.uploaded[self.path] = self._body()
        self._reply({})

    def do_GET(self) -> None:
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        answer = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            operation, variables = asked.get("operationName"), asked.get("variables") or {}
            self.server.asked.append((operation, variables.get("input") or variables))
            answer = {"data": self.server.answer(operation, variables)}
        elif self.path.endswith("file_stream"):
            part = json.loads(body)
            self.server.streamed.append(part)
            rows = self.server.histories[self.path.split("/")[-2]]
            new = [json.loads(line) for line in lines_of(part, "wandb-history.jsonl")]
            if new:
                rows[part["files"]["wandb-history.jsonl"]["offset"] :] = new
        self._reply(answer)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs for a while."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def sync(command: list[str], server: Server, home: Path) -> str:
    """Run W&B's own program with this server, as one who has logged in; what it says."""
    wandb.teardown()  # else it would be asked to use the service of this process
    environment = os.environ | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server.url, "HOME": str(home)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_command_that_is_said_uploads_every_run_and_joins_the_parts_of_one(tmp_path, caplog):
    """A classifier that is interrupted after step 4 goes on at step 3, where its checkpoint is; then the seeds."""
    caplog.set_level(logging.INFO, logger="wsss.tracking")
    logs, made = tmp_path / "my logs/e", store(tmp_path / "store", "classifier", "f")
    first = {"stage": "classifier", "experiment": "e", "fingerprint": "f", "directory": logs / "classifier-f"}
    tracker = WandbTracker(**first)
    for step in range(5):
        tracker.log_metrics({"train/loss": 8 - step}, step=step)
    tracker.finish(ok=False)
    wandb.teardown()
    (part,) = logs.glob("*/wandb/offline-run-*/run-*.wandb")
    os.truncate(part, part.stat().st_size - 5)  # as a process leaves it that is killed while it writes
    time.sleep(1.1)  # W&B names the folders by the second
    with WandbTracker(**first) as tracker:
        for step in range(3, 8):
            tracker.log_metrics({"train/loss": 8 - step}, step=step)
        tracker.log_output(made)
    with WandbTracker(**{**first, "stage": "seeds"}) as tracker:
        tracker.log_input(made)
    with serving() as server:
        said = sync(["sh", "-c", ours(caplog)[0].split(" with: ")[1]], server, tmp_path)
    assert said.count("Finished syncing") == len(list(logs.glob("*/wandb/offline-run-*/*.wandb.synced"))) == 3
    classifier, seeds = server.histories
    names = [given["name"] for name, given in server.asked if name == "UpsertBucket"]
    assert names == sorted(names, key=[classifier, seeds].index), "earlier stages first"
    curve = [(row["_step"], row["trainer/global_step"], row["train/loss"]) for row in server.histories[classifier]]
    assert curve[:5] == [(step, step, 8 - step) for step in range(5)]
    assert [(at, loss) for _, at, loss in curve[5:]] == [(step, 8 - step) for step in range(4, 8)]
    assert [step for step, _, _ in curve] == list(range(9))
    assert [part["exitcode"] for part in server.streamed if part.get("complete")] == [1, 0, 0]


def test_wandb_sync_sends_an_offline_run(tmp_path):
    """W&B's own program reads what was recorded and sends it to a server, which is asked for no more than it needs."""
    labels = np.array([[0, 1], [1, 255]], np.uint8)
    picture = Picture(np.zeros((2, 2, 3), np.uint8), "2007_000033", {"seeds": labels}, {1: "dog"})
    with WandbTracker(**WHO, directory=tmp_path / "run") as tracker:
        tracker.log_config({"cam": {"gamma": 2}})
        tracker.log_input(store(tmp_path / "store", "classifier", "c1"))
        tracker.log_metrics({"val/miou": 0.25}, step=7)
        tracker.log_images("overlays", [picture])
        tracker.log_table("iou", ["class", "iou"], [["dog", 0.5]])
        tracker.log_metrics({"miou": 0.5})
        tracker.log_output(store(tmp_path / "store", "seeds", "s1"))
    (run,) = tmp_path.glob("run/wandb/offline-run-*")
    with serving() as server:
        assert "Finished syncing" in sync([sys.executable, "-m", "wandb", "sync", str(run)], server, tmp_path)

    def all_of(operation: str) -> list[dict[str, Any]]:
        return [given for name, given in server.asked if name == operation]

    first = all_of("UpsertBucket")[0]
    assert (first["groupName"], first["jobType"], first["displayName"]) == (
        "voc_layercam",
        "seeds",
        "seeds-53cbf2f250e9",
    )
    created = {given["artifactCollectionName"]: given for given in all_of("CreateArtifact")}
    assert {name for name in created if not name.startswith("run-")} == {"classifier-c1", "seeds-s1"}
    runs = {name: created[name]["runName"] for name in ("classifier-c1", "seeds-s1")}
    assert runs == {"classifier-c1": None, "seeds-s1": run.name.rpartition("-")[2]}, "made by this run, and not by it"
    assert [given["artifactID"] for given in all_of("UseArtifact")] == ["classifier-c1"]
    assert {given["artifactID"] for given in all_of("CommitArtifact")} == set(created)

    manifest = json.loads(server.uploaded["/manifest/seeds-s1"])["contents"]
    assert manifest["masks"]["ref"] == (tmp_path / "store/seeds/s1/masks").as_uri()
    sent = set(server.uploaded)
    assert {path for path in sent if path.startswith("/artifact/")} == {"/artifact/iou.table.json"}
    assert not [path for path in sent if "weights" in path or "masks" in path], "the store stays where it is"
    assert len([path for path in sent if re.match(r"/run/media/images/overlays_\S+\.png", path)]) == 1
    assert len([path for path in sent if re.match(r"/run/media/images/mask/overlays_\S+\.mask\.png", path)]) == 1
    assert len([path for path in sent if re.match(r"/run/media/table/iou_\S+\.table\.json", path)]) == 1
    assert json.loads(server.uploaded["/run/wandb-summary.json"])["miou"] == 0.5
    assert yaml.safe_load(server.uploaded["/run/config.yaml"])["cam"]["value"] == {"gamma": 2}
    streamed = [json.loads(line) for part in server.streamed for line in lines_of(part, "wandb-history.jsonl")]
    assert [(row["trainer/global_step"], row["val/miou"]) for row in streamed if "val/miou" in row] == [(7, 0.25)]
    assert [part["exitcode"] for part in server.streamed if part.get("complete")] == [0]


def lines_of(part: dict[str, Any], name: str) -> list[str]:
    """The lines of a file in one message of W&B's file stream."""
    return part.get("files", {}).get(name, {}).get("content", [])
