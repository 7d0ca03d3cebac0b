"""SIGTERM and SIGHUP, as schedulers, ``kill`` and closed terminals send them, to this process and to real ones."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import Tensor

from wsss import signals
from wsss.signals import Stopped, raised
from wsss.training.shells import ClassifierShell

LONG = ("recipe.classifier.epochs=1000", "logger=csv")
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Whoever runs the tests may ignore signals, as nohup does."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """To this process; returns where the handler has returned."""
    os.kill(os.getpid(), number)
    for _ in range(10):  # a handler runs between two instructions
        time.sleep(0.001)


# --- the exception ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_is_an_interrupt(number: signal.Signals):
    with pytest.raises(KeyboardInterrupt) as stop, raised():
        send(number)
    assert signals.number_of(stop.value) == number
    assert signal.getsignal(number) == signal.SIG_DFL
    assert signals.exit_code(pickle.loads(pickle.dumps(stop.value))) == 128 + number  # from a process of joblib


def test_a_signal_that_comes_twice_counts_once():
    """Slurm sends it to all processes, and the one that has started the others passes it on."""
    seen = []
    with raised():
        try:
            send(signal.SIGTERM)
        except Stopped:
            send(signal.SIGTERM)  # would end what clears up here
            seen.append("cleared up")
    assert seen == ["cleared up"]


def test_a_signal_is_heeded_again_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "_AGAIN", 0)
    with raised():
        for _ in range(2):
            with pytest.raises(Stopped):
                send(signal.SIGTERM)


def test_what_is_ignored_or_handled_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with raised():
            send(signal.SIGHUP)
            outer = signal.getsignal(signal.SIGTERM)
            with raised():
                assert signal.getsignal(signal.SIGTERM) is outer
            assert signal.getsignal(signal.SIGTERM) is outer
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_signals_alone():
    seen = []

    def work() -> None:
        with raised():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_an_interrupt_is_found_behind_what_it_has_become():
    try:
        try:
            try:
                raise Stopped(signal.SIGTERM)
            finally:
                raise OSError("the terminal is gone")
        except OSError:
            raise SystemExit(1) from None
    except SystemExit as error:
        stop = signals.behind(error)
    assert isinstance(stop, Stopped)
    assert signals.behind(SystemExit(1)) is None


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1")])
def test_training_ends_within_the_step(
    sweep: tuple[str, ...], tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Lightning would go on to the end of the step, and end with code 0; a multirun would go on to the next job."""
    step, begun, ended = ClassifierShell.training_step, [], []

    def told(self: ClassifierShell, batch: Any, index: int) -> Tensor:
        begun.append(index)
        if len(begun) == 3:
            send(signal.SIGTERM)
        ended.append(index)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierShell, "training_step", told)
        command = tiny.command(tiny_set, tmp_path, "trainer.checkpoint_every=1", "logger=csv")
        code, output = tiny.call("train.py", *sweep[:1], *command, *sweep[1:])
    assert code == 143, output
    assert (begun, ended) == ([0, 1, 2], [0, 1])
    assert "stopped by SIGTERM; the same command goes on from here" in output
    assert ("job 0: seed=0\n    did not come to its end" in output) == bool(sweep)
    check_left_in_order(tmp_path, output)
    code, output = tiny.call("train.py", *command)
    assert code == 0, output
    assert "going on from" in output


# --- runs -------------------------------------------------------------------------------------------------------------


def check_left_in_order(base: Path, output: str) -> None:
    """As after an interrupt: nothing is finished, the lock is free, the run of the tracker is closed as failed."""
    assert "Traceback" not in output
    assert not list(base.glob("artifacts/classifier/*/manifest.json"))
    assert list(base.glob("artifacts/classifier/*/last.ckpt"))
    (lock,) = base.glob("artifacts/classifier/*.lock")
    assert lock.read_text() == ""
    (summary,) = base.glob("logs/**/summary.json")
    assert json.loads(summary.read_text())["ok"] is False


def stopped(base: Path, *command: str, number: int = signal.SIGTERM) -> tuple[int, str]:
    """Send a signal in the middle of the training of ``command``: exit code and output."""
    process = tiny.start("train.py", *command, TINY_PAUSE="0.1")
    tiny.wait_for(lambda: list(base.rglob("last.ckpt")), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end(tiny_set: Path, tmp_path: Path, number: signal.Signals):
    code, output = stopped(tmp_path, *tiny.command(tiny_set, tmp_path, *LONG), number=number)
    assert code == 128 + number, output
    assert f"stopped by {number.name}; the same command goes on from here" in output
    check_left_in_order(tmp_path, output)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1")])
def test_a_multirun_that_is_told_to_end_begins_no_other_job(tiny_set: Path, tmp_path: Path, launcher: tuple[str, ...]):
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code, output = stopped(tmp_path, "-m", *tiny.command(tiny_set, tmp_path, *LONG, "seed=0,1"), *launcher)
    assert code == 143, output
    assert "stopped by SIGTERM" in output
    assert "job 0: seed=0\n    did not come to its end" in output
    assert "job 1" not in output
    check_left_in_order(tmp_path, output)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_processes_are_told_to_end_by_the_one_that_has_started_them(
    tiny_set: Path, tmp_path: Path, number: signal.Signals
):
    code, output = stopped(tmp_path, *tiny.command(tiny_set, tmp_path, *LONG, *DDP), number=number)
    assert code == 128 + number, output
    assert output.count(f"stopped by {number.name}; the same command goes on from here") == 1
    check_left_in_order(tmp_path, output)
