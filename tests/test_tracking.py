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
from wandb.proto.wandb_internal_pb2 import ArtifactRecord, Record

from wsss import tracking
from wsss.artifacts import Artifact
from wsss.cams.prototypes import Prototypes
from wsss.console import quiet_libraries
from wsss.errors import ConfigError, Diverged
from wsss.stages.report import PATCH_SIDE, PATCHES_SHOWN
from wsss.tracking import CsvTracker, NullTracker, Picture, TensorBoardTracker, Tracker, Trackers, WandbTracker

WHO = {"stage": "seeds", "experiment": "voc_layercam", "fingerprint": "53cbf2f250e9"}


@pytest.fixture(autouse=True)
def clean_wandb(monkeypatch, tmp_path):
    """No key, no settings of whoever runs the tests, and a W&B session of this test alone."""
    for name in ("API_KEY", "MODE", "BASE_URL", "RUN_ID", "IDENTITY_TOKEN_FILE", "DATA_DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(tracking, "_announced", False)
    wandb.teardown()
    yield
    wandb.teardown()


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def read_records(directory: Path) -> list[Record]:
    """Read the one offline run below ``directory``: W&B's log is LevelDB's, a 7-byte head and then 32 KiB blocks."""
    wandb.teardown()  # W&B's writer is a process of its own; this waits for it
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    data, position, parts, records = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while position < len(data):
        if 32768 - position % 32768 < 7:  # no head fits into the rest of a block
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def history(directory: Path) -> list[dict]:
    """What was logged, row by row; the parts of a table or an image have dots in their keys."""
    rows = [record.history.item for record in read_records(directory) if record.HasField("history")]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def sent_artifacts(directory: Path) -> dict[str, ArtifactRecord]:
    """The artifacts of the one offline run below ``directory`` by type, but for those that hold tables."""
    found = [record.artifact for record in read_records(directory) if record.HasField("artifact")]
    return {artifact.type: artifact for artifact in found if artifact.type != "run_table"}


def summary_of(records: list[Record]) -> dict[str, Any]:
    """The summary of a run as it is at the end."""
    updates = [update for record in records for update in record.summary.update]
    return {update.key or ".".join(update.nested_key): json.loads(update.value_json) for update in updates}


def table_of(records: list[Record], name: str) -> list[list[Any]]:
    """The rows of a table that waits for its upload. The file that lies with the run's media holds no images."""
    entries = [entry for record in records for entry in record.artifact.manifest.contents]
    (path,) = (entry.local_path for entry in entries if entry.path == f"{name}.table.json")
    images = {entry.path for entry in entries if entry.local_path and Path(entry.local_path).is_file()}
    rows = json.loads(Path(path).read_text())["data"]
    assert all(cell["path"] in images for row in rows for cell in row if isinstance(cell, dict))
    return rows


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
        records, rows = read_records(tmp_path), history(tmp_path)
        run = next(record.run for record in records if record.HasField("run"))
        assert (run.project, run.run_group, run.job_type) == ("p", "voc_layercam", "seeds")
        assert (run.display_name, list(run.tags)) == ("seeds-53cbf2f250e9", ["t"])
        updates = [update for record in records for update in record.config.update]
        config = {item.key or ".".join(item.nested_key): item.value_json for item in updates}
        assert (json.loads(config["cam"]), json.loads(config["stage"])) == ({"gamma": 2}, "seeds")
        losses = [(row["trainer/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
        assert losses == [(0, 3.0), (1, 2.0)]
        assert next(row for row in rows if "val/miou" in row)["trainer/global_step"] == 7
        assert next(row["miou"] for row in rows if "miou" in row) == 0.412
        assert {row["curve_table.ncols"] for row in rows if "curve_table.ncols" in row} == {2}
        assert {row["iou.nrows"] for row in rows if "iou.nrows" in row} == {2}
        (overlays,) = (row for row in rows if "overlays.captions" in row)
        assert overlays["overlays.captions"] == ["2007_000033"]
        assert set(overlays["overlays.all_masks"][0]) == {"seeds", "truth"}
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
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
        assert {name: (one.name, one.use_after_commit) for name, one in sent.items()} == {
            "classifier": ("classifier-classifier1", True),
            "seeds": ("seeds-seeds1", False),
        }
        assert (made.use_after_commit, made.digest) == (False, sent["classifier"].digest), "one and the same version"
        for artifact, entries in ((classifier, made.manifest.contents), (seeds, sent["seeds"].manifest.contents)):
            names = ("manifest.json", "masks", "metrics.json", "weights.safetensors")  # not the checkpoint
            assert {entry.path: entry.ref for entry in entries} == {
                name: (artifact.directory / name).as_uri() for name in names
            }
            assert not any(entry.local_path for entry in entries), "nothing is copied for upload"
        metadata = json.loads(made.metadata)
        assert metadata["metrics"] == {"miou": 0.25}
        assert (metadata["supervision"], metadata["seed"], metadata["fingerprint"]) == ("image tags", 3, "classifier1")
        assert metadata["directory"] == str(classifier.directory)

    def test_a_stage_that_is_made_anew_is_a_new_version(self, tmp_path):
        digests = []
        for at, created in enumerate(("today", "tomorrow")):
            with WandbTracker(**WHO, directory=tmp_path / str(at), mode="offline") as tracker:
                tracker.log_output(store(tmp_path / "store", "seeds", "s1", created=created))
            digests.append(sent_artifacts(tmp_path / str(at))["seeds"].digest)
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
        assert [[name, patch["width"], patch["height"]] for name, patch in rows] == [["dog", 6, 4], ["cat", 2, 8]]
        assert not [record for record in caplog.records if record.name == "root"]

    def test_what_waits_for_the_upload_lies_beside_the_run(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
        with WandbTracker(**WHO, directory=tmp_path / "run", mode="offline") as tracker:
            tracker.log_table("iou", ["class"], [["dog"]])
            tracker.log_curve("curve", [(0.1, 0.3)], "threshold", "mIoU")
            tracker.log_output(store(tmp_path / "store", "seeds", "s1"))
        waiting = [
            entry.local_path
            for record in read_records(tmp_path / "run")
            for entry in record.artifact.manifest.contents
            if entry.local_path
        ]
        assert len(waiting) == 2
        assert all(Path(path).is_relative_to(tmp_path / "run") and Path(path).is_file() for path in waiting)
        assert not (tmp_path / "home").exists()
        assert "WANDB_DATA_DIR" not in os.environ

    def test_a_failed_run_is_closed_as_failed(self, tmp_path):
        with pytest.raises(RuntimeError), WandbTracker(**WHO, directory=tmp_path, mode="offline"):
            raise RuntimeError
        assert [record.exit.exit_code for record in read_records(tmp_path) if record.HasField("exit")] == [1]

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
            WandbTracker(**WHO, directory=tmp_path / name).finish(ok=True)
        (message,) = ours(caplog)
        assert "no API key" in message
        sync = message.split("wandb sync ")[1]
        assert list(Path(sync).glob("run-*.wandb"))

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

    def test_trouble_at_the_end_is_reported_and_not_raised(self, tmp_path, monkeypatch, caplog):
        run = MagicMock(dir=str(tmp_path / "run-1/files"))
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


def test_every_dashboard_of_a_pipeline(tmp_path):
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
    rows = {stage: history(logs[stage]) for stage in tiny.STAGES}
    keys = {stage: {key.partition(".")[0] for row in rows[stage] for key in row} for stage in tiny.STAGES}
    events = {stage: read_events(logs[stage] / "tensorboard") for stage in tiny.STAGES}
    tags = {stage: set(events[stage].Tags()["scalars"] + events[stage].Tags()["images"]) for stage in tiny.STAGES}

    for stage in tiny.STAGES:
        (run,) = (record.run for record in records[stage] if record.HasField("run"))
        assert (run.run_group, run.job_type) == (pipeline.experiment, stage)
        assert [record.exit.exit_code for record in records[stage] if record.HasField("exit")] == [0]
        updates = [update for record in records[stage] for update in record.config.update]
        config = {item.key: json.loads(item.value_json) for item in updates if item.key}
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
        used = {name for name, artifact in sent[stage].items() if artifact.use_after_commit}
        assert (used, set(sent[stage]) - used) == (needs, {stage})
        names = {f"{need}-{pipeline.fingerprint(need)}" for need in needs}
        assert set(json.loads((logs[stage] / "summary.json").read_text())["inputs"]) == names
        assert {sent[stage][need].digest for need in needs} == {sent[need][need].digest for need in needs}

    for stage, metric in (("classifier", "map"), ("segmenter", "miou")):
        curve = [row for row in rows[stage] if f"val/{metric}" in row]
        assert [row["epoch"] for row in curve][:2] == [0, 1]
        assert [row["trainer/global_step"] for row in curve][:2] == [3, 7], "four steps an epoch, counted from 0"
        assert [step for step, _ in scalars(events[stage], f"val/{metric}")][:2] == [3, 7]
        assert {"train/loss", f"val/{metric}", metric} <= keys[stage] & tags[stage]
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
    side = PATCHES_SHOWN * PATCH_SIDE
    assert [row[4]["width"] for row in table_of(records["seeds"], "prototypes")] == [side] * (len(table) - 1)
    assert "prototypes/square" in tags["seeds"]


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
            codes.append([record.exit.exit_code for record in records if record.HasField("exit")])
            ids |= {record.run.run_id for record in records if record.HasField("run")}
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

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL answer."""
        given = variables.get("input") or variables
        if operation == "UpsertBucket":
            owner = {"id": "P", "name": "wsss", "entity": {"id": "E", "name": "me"}}
            run = {"id": "R", "name": given["name"], "displayName": "", "config": "{}", "project": owner}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
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
            self.server.streamed.append(json.loads(body))
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
    wandb.teardown()
    (run,) = tmp_path.glob("run/wandb/offline-run-*")
    with serving() as server:
        environment = os.environ | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server.url, "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "wandb", "sync", str(run)]
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert "Finished syncing" in done.stderr

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
