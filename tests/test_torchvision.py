import subprocess
import sys

import pytest
import torch

from wsss import _torchvision

IMPORT = """
import sys
import wsss
assert "torchvision" not in sys.modules
import torchvision
import torch
print(torchvision.__name__, hasattr(torch.ops.torchvision, "nms"), wsss._torchvision.declare_missing_ops())
"""


def test_torchvision_imports_after_this_package() -> None:
    """With a CPU-only torch and a CUDA build of torchvision this fails without the declarations."""
    result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "torchvision True ()\n"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is declared so far; what is declared is listed and goes no further."""
    declared: list[str] = []

    class Library:
        def __init__(self, namespace: str, kind: str) -> None:
            assert (namespace, kind) == ("torchvision", "FRAGMENT")

        def define(self, schema: str) -> None:
            declared.append(schema.partition("(")[0])

    monkeypatch.setattr(_torchvision, "_library", None)
    monkeypatch.setattr(torch.library, "Library", Library)
    return declared


def test_nothing_is_declared_where_the_compiled_operators_load(
    fresh: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_torchvision, "_compiled_ops_load", lambda: True)
    assert _torchvision.declare_missing_ops() == ()
    assert fresh == []
    assert _torchvision._library is None


def test_only_what_is_missing_is_declared_and_only_once(fresh: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torchvision, "_compiled_ops_load", lambda: False)
    monkeypatch.setattr(_torchvision, "_is_declared", lambda name: name == "nms")
    assert _torchvision.declare_missing_ops() == ("qnms",)
    assert _torchvision.declare_missing_ops() == ()
    assert fresh == ["qnms"]


def test_without_torchvision_there_is_nothing_to_repair(fresh: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torchvision.importlib.util, "find_spec", lambda name: None)
    assert _torchvision.declare_missing_ops() == ()
    assert fresh == []
