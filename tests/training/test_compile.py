"""Training with a real compiler; what can be said without one stands in test_fit.py."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_fit import SMALL, Killed, Watched, equal, make_plain_network, run

from wsss.artifacts import Artifact

COMPILER = os.environ.get("CXX", "g++")
pytestmark = [
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER})"),
    pytest.mark.filterwarnings("ignore"),  # of torch, about itself
]
RECIPE = replace(SMALL, epochs=None, iterations=6, validate_every=2)


def trained(
    root: Path, name: str, *, kills: tuple[tuple[int, int], ...] = (), compile: bool
) -> dict[str, torch.Tensor]:
    artifact = Artifact(root, "classifier", name)
    for kill in kills:
        with pytest.raises(Killed):
            run(Watched(RECIPE, kill=kill, network=make_plain_network()), artifact, compile=compile, checkpoint_every=1)
    shell = Watched(RECIPE, network=make_plain_network())
    weights = run(shell, artifact, compile=compile, checkpoint_every=1)
    artifact.write_weights(shell.network)
    assert list(load_file(artifact.directory / "weights.safetensors")) == sorted(weights)
    return weights


def test_a_compiled_training_is_the_same_up_to_rounding_and_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    calls = torch._dynamo.utils.counters["stats"]
    calls.clear()
    compiled = trained(tmp_path, "compiled", compile=True)
    assert calls["calls_captured"] > 1  # more than the trial
    plain = trained(tmp_path, "plain", compile=False)
    assert compiled.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=1e-4)
    assert equal(trained(tmp_path, "killed", kills=((0, 2), (1, 1)), compile=True), compiled)
