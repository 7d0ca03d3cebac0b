from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

import pytest
from pool_functions import die_once, misbehave, process, square, threads

from wsss.errors import DataError
from wsss.refine import ItemError, map_images


def numbered(values: list[int]) -> list[tuple[str, int]]:
    return [(f"image{i}", value) for i, value in enumerate(values)]


def test_inline_keeps_the_order_and_is_lazy():
    read: list[str] = []

    def items() -> Iterator[tuple[str, int]]:
        for name, value in numbered([3, 4]):
            read.append(name)
            yield name, value

    results = map_images(square, items(), workers=0)
    assert next(results) == ("image0", 9)
    assert read == ["image0"]
    assert list(results) == [("image1", 16)]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_name_the_item(workers):
    with pytest.raises(ItemError, match="image1: ValueError: negative") as caught:
        list(map_images(misbehave, numbered([1, -1]), workers=workers))
    assert isinstance(caught.value.__cause__, ValueError)
    if workers == 0:
        with pytest.raises(DataError, match=r"^image0: mask is unreadable$"):
            list(map_images(misbehave, numbered([-2]), workers=0))


def test_processes_give_every_result_with_bounded_lookahead():
    read: list[str] = []

    def items() -> Iterator[tuple[str, int]]:
        for name, value in numbered(list(range(12))):
            read.append(name)
            yield name, value

    results = map_images(square, items(), workers=1)
    first = next(results)
    assert len(read) <= 2 * 1 + 1
    assert dict([first, *results]) == {f"image{i}": i * i for i in range(12)}


def test_threads_of_this_process():
    here = dict(map_images(process, numbered([1, 2, 3]), workers=2, threads=True))
    assert here == dict.fromkeys(["image0", "image1", "image2"], os.getpid())
    with pytest.raises(ItemError, match="image1: ValueError: negative"):
        list(map_images(misbehave, numbered([1, -1]), workers=1, threads=True))


def test_workers_have_one_thread(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    ((of_torch, of_others),) = dict(map_images(threads, numbered([0]), workers=1)).values()
    assert of_torch == 1
    assert of_others
    assert set(of_others) == {1}
    assert os.environ["OPENBLAS_NUM_THREADS"] == "2"  # those of this process are its own affair
    assert "MKL_NUM_THREADS" not in os.environ


def test_an_item_that_kills_its_worker_is_named_and_takes_nothing_with_it():
    done = {}

    def collect() -> None:
        for name, value in map_images(misbehave, numbered([5, 6, -3]), workers=2):
            done[name] = value

    with pytest.raises(ItemError, match=r"^image2: the worker process died at it, twice"):
        collect()
    assert done == {"image0": 5, "image1": 6}


def test_no_item_is_lost_where_a_worker_dies_behind_the_back_of_its_consumer(tmp_path):
    """The pool breaks while results are looked at, and the next item has been drawn before that is known."""
    items = [(f"image{i}", (str(tmp_path / "died"), i)) for i in range(12)]
    found = {}
    for name, value in map_images(die_once, items, workers=2):
        found[name] = value
        time.sleep(0.3)
    assert found == {f"image{i}": i for i in range(12)}


def test_a_worker_that_dies_once_costs_nothing(tmp_path, caplog):
    """As where memory was short for a moment: what was under way is done again, and the rest too."""
    caplog.set_level(logging.WARNING, "wsss")
    items = [(f"image{i}", (str(tmp_path / "died"), i)) for i in range(8)]
    assert dict(map_images(die_once, items, workers=2)) == {f"image{i}": i for i in range(8)}
    assert len(caplog.messages) == 1
    assert "image3" in caplog.messages[0]


def test_edges():
    assert list(map_images(square, [], workers=1)) == []
    with pytest.raises(ValueError, match="got -1"):
        list(map_images(square, [], workers=-1))
