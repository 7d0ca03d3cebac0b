from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from wsss.metrics.paired import paired_difference, shared


def test_by_head():
    first, second = {"a": 0.5, "b": 0.2, "c": 0.4, "d": 0.9}, {"a": 0.6, "b": 0.1, "c": 0.4, "e": 1.0}
    found = paired_difference(first, second)
    assert found is not None
    assert (found.better, found.worse, found.equal, found.images) == (1, 1, 1, 3)
    assert found.mean == pytest.approx(0)
    assert (found.low, found.high) == pytest.approx((-0.1, 0.1))  # with three images a draw of one alone is not rare


def test_an_image_that_one_lacks_is_left_out():
    assert shared({"b": 0.1, "a": None, "c": 0.3}, {"a": 0.2, "b": 0.4, "c": None}) == [("b", 0.1, 0.4)]
    assert paired_difference({"a": None}, {"a": 0.5}) is None
    assert paired_difference({}, {}) is None


def test_a_difference_that_all_images_share_is_certain():
    found = paired_difference({str(i): i / 20 for i in range(10)}, {str(i): i / 20 + 0.1 for i in range(10)})
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.better == 10


def test_the_interval_is_that_of_scipy_and_the_other_way_round_its_mirror():
    rng = np.random.default_rng(1)
    first = {f"{i:03}": value for i, value in enumerate(rng.random(200))}
    second = {id: value + rng.normal(0.02, 0.1) for id, value in first.items()}
    found, back = paired_difference(first, second), paired_difference(second, first)
    assert found is not None
    assert back is not None
    values = np.array([second[id] - first[id] for id in sorted(first)])
    other = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=1e-3)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=1e-12)
    assert found == paired_difference(first, second)  # drawn with a seed


def test_many_images_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch):
    first = {str(i): 0.1 * i for i in range(10)}
    second = {str(i): 0.01 * i * i for i in range(10)}
    whole = paired_difference(first, second)
    monkeypatch.setattr("wsss.metrics.paired.CELLS", 30)
    assert paired_difference(first, second) == whole
