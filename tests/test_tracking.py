"""Trackers: CSV by hand, W&B against its own files read back, and what happens without a key or a network."""

from __future__ import annotations

import wsss  # noqa: F401  # isort: skip  # before Lightning, which imports torchvision

import csv
import json
import logging
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import wandb
from torch.utils.data import DataLoader, TensorDataset
from wandb.proto.wandb_internal_pb2 import Record

from wsss import tracking
from wsss.console import quiet_libraries
from wsss.errors import ConfigError
from wsss.tracking import CsvTracker, NullTracker, Picture, Tracker, Trackers, WandbTracker

WHO = {"stage": "seeds", "experiment": "voc_layercam", "fingerprint": "53cbf2f250e9"}


@pytest.fixture(autouse=True)
def clean_wandb(monkeypatch, tmp_path):
    """No key, no settings of whoever runs the tests, and a W&B session of this test alone."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_RUN_ID", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
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
        }

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

    @pytest.mark.parametrize("kind", [NullTracker, CsvTracker, WandbTracker])
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
            assert len(tracker.lightning_loggers) == (kind is not NullTracker)
        assert not (tmp_path / "run").exists()


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

    def test_a_failed_run_is_closed_as_failed(self, tmp_path):
        with pytest.raises(RuntimeError), WandbTracker(**WHO, directory=tmp_path, mode="offline"):
            raise RuntimeError
        assert [record.exit.exit_code for record in read_records(tmp_path) if record.HasField("exit")] == [1]

    def test_disabled_writes_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "disabled")
        with WandbTracker(**WHO, directory=tmp_path, mode="online") as tracker:
            tracker.log_metrics({"miou": 0.4}, step=1)
            fit(tracker)
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
