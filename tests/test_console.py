"""Progress bars, tables and log lines, as they look on a terminal and in a log file."""

from __future__ import annotations

import wsss  # noqa: F401  # isort: skip  # before Lightning, which imports torchvision

import io
import logging
import re
import warnings

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

from wsss import console as ui


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    """Put a console of known kind in place of the shared one and return what it prints to."""
    out = io.StringIO()
    monkeypatch.setattr(ui, "console", Console(file=out, force_terminal=terminal, width=100, color_system=None))
    return out


@pytest.fixture
def log_file(monkeypatch):
    """Output of a console that is not a terminal."""
    return shown(monkeypatch, terminal=False)


@pytest.fixture
def terminal(monkeypatch):
    """Output of a console that is one."""
    return shown(monkeypatch, terminal=True)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(ui.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def restored_logging():
    """Put the package's logger back as it was."""
    logger = logging.getLogger("wsss")
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


class TestProgress:
    def test_log_file_gets_one_line_at_the_end(self, log_file, clock):
        for _ in ui.progress(range(240), "seeds", unit="img"):
            assert log_file.getvalue() == ""
            clock[0] += 19.4 / 240
        assert log_file.getvalue() == "seeds 240/240 12.4 img/s 19 s\n"

    def test_rate_counts_this_run_alone(self, log_file, clock):
        with ui.progress(100, "seeds", unit="img", completed=90) as bar:
            clock[0] += 5
            bar.advance(5)
            assert (bar.rate, bar.remaining) == (1.0, 5.0)
            clock[0] += 5
            bar.advance(5)
        assert log_file.getvalue() == "seeds 100/100 1.0 img/s 10 s\n"

    def test_an_iterable_is_the_work_that_is_left(self, log_file):
        assert list(ui.progress(["a", "b"], "seeds", completed=3)) == ["a", "b"]
        assert log_file.getvalue().startswith("seeds 5/5 ")

    def test_unknown_total(self, log_file):
        assert list(ui.progress(iter("ab"), "files")) == ["a", "b"]
        assert log_file.getvalue().startswith("files 2/? ")

    def test_an_error_inside_shows_how_far_it_came(self, log_file):
        def fail():
            with ui.progress(10, "seeds") as bar:
                bar.advance(3)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert log_file.getvalue().startswith("seeds 3/10 ")

    def test_nothing_done_has_no_rate(self, log_file):
        assert list(ui.progress([], "seeds", completed=7)) == []
        assert log_file.getvalue() == "seeds 7/7 0 s\n"

    def test_terminal_shows_bar_count_rate_and_times(self, terminal, clock):
        with ui.progress(20, "seeds [x]", unit="img", completed=10) as bar:
            clock[0] += 2
            bar.advance(5)
            assert bar.status() == "2.5 img/s 2 s ETA 2 s"
            clock[0] += 2
            bar.advance(5)
        assert re.search(r"seeds \[x\] ━+ 20/20 2.5 img/s 4 s", terminal.getvalue())

    def test_other_ranks_print_nothing(self, log_file, monkeypatch):
        monkeypatch.setattr(ui.rank_zero_only, "rank", 1)
        assert list(ui.progress([1], "seeds")) == [1]
        ui.table("t", [("a", 1)])
        assert log_file.getvalue() == ""


class TestTable:
    def test_cells(self, log_file):
        ui.table("Seeds [train]", [("mIoU at 0.30", 0.412), ("best", None), ("images", 240), ("where", "a[b]")])
        title, *lines = log_file.getvalue().splitlines()
        rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
        assert title == "Seeds [train]"
        assert rows == [["mIoU at 0.30", "41.2"], ["best", "-"], ["images", "240"], ["where", "a[b]"]]

    def test_columns(self, log_file):
        ui.table("IoU", [("dog", 0.5, float("nan"))], columns=("class", "weak", "full"))
        words = log_file.getvalue().split()
        assert [word for word in words if word.isalpha()] == ["IoU", "class", "weak", "full", "dog"]
        assert "50.0" in words

    def test_numpy_numbers(self):
        assert (ui.format_cell(torch.tensor([3]).numpy()[0]), ui.format_cell(torch.rand(1).numpy()[0] * 0)) == (
            "3",
            "0.0",
        )


class TestLogging:
    def test_log_file_lines_are_not_wrapped(self, log_file, restored_logging):
        ui.setup_logging("INFO")
        logging.getLogger("wsss.x").info("python train.py %s", "x" * 300)
        logging.getLogger("wsss.x").debug("hidden")
        assert re.fullmatch(r"\d\d:\d\d:\d\d INFO python train.py x{300}\n", log_file.getvalue())

    def test_terminal_line_has_no_path(self, terminal, restored_logging):
        ui.setup_logging()
        logging.getLogger("wsss.x").info("hello [b]")
        assert "hello [b]" in terminal.getvalue()
        assert "test_console" not in terminal.getvalue()

    def test_no_message_twice_and_root_file_keeps_them(self, log_file, restored_logging, tmp_path):
        root, hydra_out = logging.getLogger(), io.StringIO()
        handlers = [logging.StreamHandler(hydra_out), logging.FileHandler(tmp_path / "run.log")]
        for handler in handlers:
            root.addHandler(handler)
        try:
            ui.setup_logging()
            ui.setup_logging()
            logging.getLogger("wsss.x").warning("once")
            logging.getLogger("other").warning("theirs")
        finally:
            for handler in handlers:
                root.removeHandler(handler)
                handler.close()
        assert log_file.getvalue().count("once") == 1
        assert hydra_out.getvalue() == "theirs\n"
        assert (tmp_path / "run.log").read_text() == "once\ntheirs\n"


class Net(pl.LightningModule):
    """The smallest network that Lightning trains."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fail_at:
            raise RuntimeError("stop")
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.layer(batch[0]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=2)


def trainer(**options) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "logger": False}
    return pl.Trainer(accelerator="cpu", devices=1, **({"enable_checkpointing": False} | quiet | options))


class TestFitProgress:
    def test_one_line_for_the_whole_fit(self, log_file):
        trainer(max_epochs=2, callbacks=[ui.FitProgress()]).fit(Net(), loader(), loader())
        line = r"training 8/8 [\d.]+ it/s \d+ s epoch 2/2 loss [\d.e-]+\n"
        assert re.fullmatch(line, log_file.getvalue())

    def test_resumed_fit_starts_where_it_was(self, log_file, tmp_path):
        first = trainer(max_epochs=1)
        first.fit(Net(), loader())
        first.save_checkpoint(tmp_path / "last.ckpt")
        bars = []

        class Spy(ui.FitProgress):
            def on_train_start(self, trainer, pl_module):
                super().on_train_start(trainer, pl_module)
                bars.append((self._bar.completed, self._bar.total))

        trainer(max_epochs=3, callbacks=[Spy()]).fit(
            Net(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )
        assert bars == [(4, 12)]
        assert log_file.getvalue().startswith("training 12/12 ")

    def test_accumulated_gradients_count_as_one_step(self, log_file):
        trainer(max_epochs=2, accumulate_grad_batches=2, callbacks=[ui.FitProgress("fit")]).fit(Net(), loader())
        assert log_file.getvalue().startswith("fit 4/4 ")

    def test_a_failure_closes_the_bar(self, terminal):
        with pytest.raises(RuntimeError, match="stop"):
            trainer(max_epochs=1, callbacks=[ui.FitProgress()]).fit(Net(fail_at=2), loader())
        assert "2/4" in terminal.getvalue()
        assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is back


class TestQuietLibraries:
    def test_a_fit_prints_nothing(self, capfd):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ui.quiet_libraries()
            trainer(max_epochs=1).fit(Net(), loader(), loader())
        assert [str(entry.message) for entry in caught] == []
        assert capfd.readouterr() == ("", "")

    def test_other_warnings_stay(self):
        ui.quiet_libraries()
        with pytest.warns(UserWarning, match="something else"):
            warnings.warn("something else", stacklevel=1)

    def test_every_filter_has_a_reason(self):
        assert all(entry.message and entry.reason for entry in ui.IGNORED_WARNINGS)
