from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from wsss.errors import ConfigError
from wsss.models import TimmClassifier, weights

OPTIONS = ("weights=bundled", "weights=imagenet", "weights=/path/to/state_dict.safetensors", "weights=null")


class Opens:
    """An object that opens a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def says(error: pytest.ExceptionInfo[Exception], *parts: object) -> None:
    for part in parts:
        assert str(part) in str(error.value)


# --- bundled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", sorted(weights.BUNDLED))
def test_bundled_tensors_have_the_names_and_shapes_of_timm(encoder: str) -> None:
    state = weights.bundled_state(encoder)
    expected = timm.create_model(encoder).state_dict()
    assert list(state) == list(expected)
    assert [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in expected.values()]


def test_bundled_tensors_are_trained_ones_in_their_place() -> None:
    state = weights.bundled_state("tf_efficientnet_lite0")
    variances = torch.cat([value for key, value in state.items() if key.endswith("running_var")])
    assert (variances >= 0).all()  # what stands under this name is a variance ...
    assert not (variances == 1).any()  # ... and not the one that a new network starts with
    means = torch.cat([value for key, value in state.items() if key.endswith("running_mean")])
    assert (means < 0).any()


def test_bundled_weights_reach_the_encoder() -> None:
    state = weights.timm_state("tf_efficientnet_lite0", "bundled")
    network = TimmClassifier(encoder="tf_efficientnet_lite0", num_classes=2, weights="bundled")
    loaded = network.encoder.model.state_dict()
    assert set(state) - set(loaded) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)
    assert network.mean.flatten().tolist() == network.std.flatten().tolist() == [0.5] * 3


def test_no_bundle_for_other_encoders() -> None:
    with pytest.raises(ConfigError) as error:
        weights.timm_state("resnet50", "bundled")
    says(error, "no bundled weights for resnet50", *weights.BUNDLED, *OPTIONS)


def test_a_bundle_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.BUNDLED, "test_resnet", ("no_such_package", "File"))
    with pytest.raises(ConfigError, match="no-such-package is not installed: pip install it"):
        weights.bundled_state("test_resnet")


def test_a_bundle_of_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are matched by position, so a difference must be found before."""
    monkeypatch.setitem(weights.BUNDLED, "test_resnet", weights.BUNDLED["tf_efficientnet_lite0"])
    with pytest.raises(ConfigError, match="are not those of timm's test_resnet; another package version is needed"):
        weights.bundled_state("test_resnet")


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain.safetensors", "plain.pth", "wrapped.pth"])
def test_a_file_round_trip(tmp_path: Path, form: str) -> None:
    state = timm.create_model("test_resnet").state_dict()
    path = tmp_path / form
    if form.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if form.startswith("wrapped") else state, path)
    loaded = weights.timm_state("test_resnet", str(path))
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    network = TimmClassifier(encoder="test_resnet", num_classes=2, weights=str(path))
    assert all(torch.equal(value, state[key]) for key, value in network.encoder.model.state_dict().items())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        weights.file_state(tmp_path / "none.pth")
    says(error, tmp_path / "none.pth", *OPTIONS)


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
def test_a_broken_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not tensors")
    with pytest.raises(ConfigError) as error:
        weights.file_state(tmp_path / name)
    says(error, tmp_path / name, "no state dict of plain tensors")


@pytest.mark.parametrize(("content", "kind"), [([torch.zeros(1)], "list"), (torch.zeros(1), "Tensor")])
def test_a_file_of_something_else(tmp_path: Path, content: object, kind: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ConfigError) as error:
        weights.file_state(tmp_path / "other.pth")
    says(error, tmp_path / "other.pth", f"it holds a {kind}")


def test_a_pickled_object_is_not_built(tmp_path: Path) -> None:
    trap = tmp_path / "opened"
    torch.save({"weight": torch.zeros(1), "object": Opens(trap)}, tmp_path / "object.pth")
    with pytest.raises(ConfigError) as error:
        weights.file_state(tmp_path / "object.pth")
    says(error, tmp_path / "object.pth", "no state dict of plain tensors")
    assert not trap.exists()
    torch.load(tmp_path / "object.pth", weights_only=False)["object"].close()
    assert trap.exists()  # the trap works


def test_a_file_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for encoder, fault in (("resnet18", "do not fit ResNet"), ("test_convnext", "are not those of this network")):
        save_file(timm.create_model(encoder).state_dict(), path)
        with pytest.raises(ConfigError) as error:
            TimmClassifier(encoder="test_resnet", num_classes=2, weights=str(path))
        says(error, path, fault)


# --- downloads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [OSError("no route to host\nlong story"), RuntimeError(), ValueError("404")])
def test_a_failed_download_names_the_other_ways(failure: Exception) -> None:
    def fetch() -> weights.StateDict:
        raise failure

    with pytest.raises(ConfigError) as error:
        weights.download(fetch, "resnet50")
    reason = str(failure).splitlines()[0] if str(failure) else "RuntimeError"
    says(error, f"the ImageNet weights of resnet50 could not be downloaded ({reason})", *OPTIONS)
    assert "long story" not in str(error.value)
    assert error.value.__cause__ is failure


def test_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(1, 1)

    def create(name: str, *, pretrained: bool = False) -> nn.Module:
        assert (name, pretrained) == ("resnet50", True)
        return network

    monkeypatch.setattr(timm, "create_model", create)
    assert torch.equal(weights.timm_state("resnet50", "imagenet")["weight"], network.weight)


# --- loading -----------------------------------------------------------------------------------------------------


def test_load_wants_every_tensor_and_no_other() -> None:
    network = nn.Linear(1, 1)
    state = {"weight": torch.full((1, 1), 3.0), "bias": torch.ones(1)}
    weights.load(network, state, source="w")
    assert network(torch.full((1, 1), 2.0)).item() == 7
    with pytest.raises(ConfigError, match=r"the weights w are not those of this network: 1 tensors.*the first is bias"):
        weights.load(network, {"weight": state["weight"]}, source="w")
    with pytest.raises(ConfigError, match=r"1 tensors are missing or left over, the first is head\.bias"):
        weights.load(network, {**state, "head.bias": torch.ones(1)}, source="w")
    weights.load(network, {**state, "head.bias": torch.ones(1)}, source="w", ignore=("head.",))
    with pytest.raises(ConfigError, match="the weights w do not fit Linear"):
        weights.load(network, {**state, "bias": torch.ones(2)}, source="w")
