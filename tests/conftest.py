"""Shared by all tests. What runs the pipeline is imported where it is asked for: most tests do without."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import wsss  # noqa: F401  declares what torchvision's import needs, before any test imports Lightning or timm

if TYPE_CHECKING:
    from wsss.pipeline import Pipeline

MakePipeline = Callable[..., "Pipeline"]


class Scripts(NamedTuple):
    """What the four scripts left, and what each printed."""

    pipeline: Pipeline
    outputs: dict[str, str]


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the one warning that is the libraries' own affair; see ``wsss.console.IGNORED_WARNINGS``."""
    config.addinivalue_line("filterwarnings", "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in the VOC layout that all tests share: read it, do not write."""
    import tiny

    return tiny.write_set(tmp_path_factory.mktemp("set") / "tiny")


@pytest.fixture
def own_set(tiny_set: Path, tmp_path: Path) -> Path:
    """A copy of the tiny set that a test may break."""
    return Path(shutil.copytree(tiny_set, tmp_path / "own_set"))


@pytest.fixture
def tiny_pipeline(tiny_set: Path, tmp_path: Path) -> Iterator[MakePipeline]:
    """Makes the tiny pipeline with further overrides, on another set (``root``) or in another store (``base``)."""
    import tiny

    def make(*overrides: str, root: Path = tiny_set, base: Path = tmp_path) -> Pipeline:
        return tiny.pipeline(root, base, *overrides)

    with tiny.contained():
        yield make


@pytest.fixture(scope="session")
def finished(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The tiny pipeline with its four stages made without interruption: read its artifacts, do not write."""
    import tiny

    with tiny.contained():
        pipeline = tiny.pipeline(tiny_set, tmp_path_factory.mktemp("finished"))
        pipeline.make_all()
    return pipeline


@pytest.fixture(scope="session")
def scripts(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    """The four scripts run once, each in a process of its own, with the real networks and an experiment."""
    import tiny

    from wsss.pipeline import Pipeline

    overrides = (*tiny.REAL, *tiny.paths(tiny_set, tmp_path_factory.mktemp("scripts")))
    outputs = {}
    for script in tiny.SCRIPTS:
        code, outputs[script] = tiny.execute(script, *overrides)
        assert code == 0, outputs[script]
    return Scripts(Pipeline(tiny.composed(*overrides), overrides=overrides, experiment=tiny.EXPERIMENT), outputs)


@pytest.fixture(params=["tiny networks", pytest.param("real networks", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest) -> Pipeline:
    """A pipeline with its four stages made, to read: once in this process, and once by the scripts."""
    if request.param == "tiny networks":
        return request.getfixturevalue("finished")
    return request.getfixturevalue("scripts").pipeline


@pytest.fixture(autouse=True)
def _no_log_handlers() -> None:
    """Every test starts without the program's log handlers: those of a command line run before would still print."""
    logging.getLogger("wsss").handlers.clear()
