"""``python -m wsss.export``: files that were loaded anew and compute what the network does, or none."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from wsss import export
from wsss.artifacts import Artifact
from wsss.build import build
from wsss.export import Deployed, Disagreement
from wsss.predict import Trained, load_segmenter

FINGERPRINT = "0123456789ab"
CLASSES = ("cat", "dog")
LABELS = {"0": "background", "1": "cat", "2": "dog"}
NETWORK = {"_target_": "wsss.models.Segmenter", "architecture": "DeepLabV3Plus", "encoder": "tu-test_efficientnet"}
Run = Callable[..., tuple[int, str]]
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")


def make_segmenter(root: Path, node: dict[str, Any]) -> Path:
    """A finished segmenter with random weights, whose logits have mean 0 and variance 1 for noise."""
    torch.manual_seed(0)
    network = build(OmegaConf.create({"segmenter": node}), "segmenter", num_labels=len(CLASSES) + 1).eval()
    with torch.no_grad():
        head = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
        logits = network(torch.rand(1, 3, 96, 96))
        spread, mean = logits.std(dim=(0, 2, 3)), logits.mean(dim=(0, 2, 3))
        head.weight /= spread[:, None, None, None]
        head.bias.copy_((head.bias - mean) / spread)
    artifact = Artifact(root, "segmenter", FINGERPRINT)
    artifact.write_weights(network)
    manifest = {
        "stage": "segmenter",
        "fingerprint": FINGERPRINT,
        "created": "2026-01-01T00:00:00+00:00",
        "supervision": "image tags (from masks)",
        "data": {"classes": list(CLASSES)},
        "config": {"segmenter": {**node, "weights": "bundled"}},
    }
    artifact.publish(manifest, {})
    return artifact.directory


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with tiny.contained():
        yield


@pytest.fixture(scope="module")
def deeplab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_segmenter(tmp_path_factory.mktemp("deeplab"), NETWORK)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_segmenter(tmp_path_factory.mktemp("small"), {"_target_": "tiny.TinySegmenter"})


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: exit code, and what it printed on both streams."""
    return tiny.runner(export.main, capsys)


def left() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name != "photo.png")


# --- what is exported -------------------------------------------------------------------------------------------------


class Channels(nn.Module):
    """Logits that are the channels, at half the size."""

    def forward(self, images: Tensor) -> Tensor:
        return images[..., ::2, ::2]


def test_deployed_divides_by_255_resizes_and_chooses():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 6)
    logits = Deployed(Channels(), resize=True)(image)
    assert torch.allclose(logits, torch.tensor([0, 0.2, 1]).view(1, 3, 1, 1).expand(1, 3, 4, 6))
    labels = Deployed(Channels(), labels=True, resize=True)(image)
    assert (labels.dtype, labels.tolist()) == (torch.uint8, [[[2] * 6] * 4])


def test_compare_by_hand():
    logits = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).repeat(1, 1, 1, 4)
    other = logits.clone()
    other[0, 0, 0, 0] = 0.25
    assert export.compare(other, logits, input="a", tolerance=0.5) == ("a", 0.25, 1.0)
    with pytest.raises(Disagreement, match=r"a: logits differ by 0\.25, more than 0\.2"):
        export.compare(other, logits, input="a", tolerance=0.2)
    other[0, 0, 0, 0] = 1.5
    with pytest.raises(Disagreement, match=r"only 75\.00 % of the labels are equal"):
        export.compare(other, logits, input="a", tolerance=2)
    other[0, 0, 0, 0] = torch.nan
    with pytest.raises(Disagreement, match="differ by nan"):
        export.compare(other, logits, input="a", tolerance=2)
    with pytest.raises(Disagreement, match=r"\(1, 2, 1, 3\)"):
        export.compare(logits[..., :3], logits, input="a")
    labels = torch.tensor([[[0, 1, 1, 2]]], dtype=torch.uint8)
    assert export.compare(labels, labels, input="a") == ("a", None, 1.0)
    with pytest.raises(Disagreement, match=r"torch\.int64"):
        export.compare(labels.long(), labels, input="a")
    with pytest.raises(Disagreement, match="only 50"):
        export.compare(labels.clamp(max=1) * 2, labels, input="a")


def test_dynamic_files_are_tried_at_two_sizes_on_noise_and_on_an_image():
    picture = np.zeros((10, 20, 3), np.uint8)
    found = [(name, tuple(image.shape)) for name, image in export.inputs((64, 96), dynamic=True, picture=picture)]
    assert found == [
        ("noise 1x3x64x96", (1, 3, 64, 96)),
        ("image 1x3x64x96", (1, 3, 64, 96)),
        ("noise 2x3x53x122", (2, 3, 53, 122)),
        ("image 1x3x53x122", (1, 3, 53, 122)),
    ]
    assert [name for name, _ in export.inputs((64, 96), dynamic=True, multiple=32)][1] == "noise 2x3x32x96"
    assert len(list(export.inputs((64, 96), dynamic=False))) == 1


# --- files ------------------------------------------------------------------------------------------------------------


def by_onnx(path: str) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])


LOADERS: dict[str, Callable[[str], Any]] = {
    "onnx": by_onnx,
    "pt": torch.jit.load,
    "pt2": lambda path: torch.export.load(path).module(),
}


@pytest.mark.parametrize("suffix", LOADERS)
def test_a_real_network_with_dynamic_sizes(suffix, deeplab, photo, run):
    code, said = run(deeplab, "-o", f"net.{suffix}", "--dynamic", "--size", 64, 96, "--image", photo)
    assert code == 0, said
    assert said.count("100.000") == 4
    network = load_segmenter(str(deeplab)).network
    image = torch.randint(0, 256, (3, 3, 96, 160), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(image / 255)
        assert expected.std() > 0.3
        found = LOADERS[suffix](f"net.{suffix}")(image)
    assert found.shape == (3, 3, 96, 160)
    assert (found - expected).abs().max() < 1e-4

    if suffix == "onnx":
        assert left() == ["net.onnx"]
        facts = {item.key: item.value for item in onnx.load("net.onnx").metadata_props}
        facts["labels"] = json.loads(facts["labels"])
    else:
        assert left() == [f"net.{suffix}", f"net.{suffix}.json"]
        facts = json.loads(Path(f"net.{suffix}.json").read_text())
    assert facts["labels"] == LABELS
    assert (facts["fingerprint"], facts["supervision"]) == (FINGERPRINT, "image tags (from masks)")
    assert facts["output"] == "logits: float32 (N, 3, H, W)"
    assert ("multiples of 32" in facts["input"]) == (suffix == "pt2")


@pytest.mark.parametrize("suffix", LOADERS)
def test_labels_of_one_size(suffix, small, run):
    code, said = run(small, "-o", f"net.{suffix}", "--output", "labels", "--size", 40, 52)
    assert code == 0, said
    network = load_segmenter(str(small)).network
    image = torch.randint(0, 256, (1, 3, 40, 52), dtype=torch.uint8)
    with torch.no_grad():
        found = LOADERS[suffix](f"net.{suffix}")(image)
        expected = network(image / 255).argmax(dim=1)
    assert found.dtype == torch.uint8
    assert found.shape == (1, 40, 52)
    assert (found == expected).float().mean() > 0.999
    assert 0 < (expected > 0).float().mean() < 1


def test_odd_sizes_in_onnx(small, run):
    assert run(small, "-o", "net.onnx", "--dynamic", "--size", 33, 47)[0] == 0
    assert by_onnx("net.onnx")(torch.zeros(2, 3, 35, 101, dtype=torch.uint8)).shape == (2, 3, 35, 101)


def test_pooling_to_a_grid_takes_the_other_exporter(monkeypatch, small, run):
    """The first exporter fails as it does on UPerNet, where the second takes half a minute."""
    asked = []
    original = torch.onnx.export

    def exporter(*arguments, dynamo, **options):
        asked.append(dynamo)
        if not dynamo:
            raise torch.onnx.errors.OnnxExporterError("adaptive_avg_pool2d, input size not accessible")
        options = {key: value for key, value in options.items() if key not in ("external_data", "verbose")}
        return original(*arguments, dynamo=False, **options)

    monkeypatch.setattr(torch.onnx, "export", exporter)
    assert run(small, "-o", "net.onnx", "--size", 32, 32)[0] == 0
    assert asked == [False, True]
    code, said = run(small, "-o", "other.onnx", "--size", 32, 32, "--dynamic")
    assert code == 2
    assert "adaptive_avg_pool2d" in said
    assert "Try it without --dynamic, or another format (torchscript, pt2)" in said
    assert left() == ["net.onnx"]


# --- nothing is left that does not agree ------------------------------------------------------------------------------


def _other_weights(network: Deployed, *arguments: Any) -> None:
    other = Deployed(tiny.TinySegmenter(num_labels=3), labels=network.labels).eval()
    export.write_torchscript(other, *arguments)


def _fixed_size(network: Deployed, example: Tensor, dynamic: bool, path: Path, facts: Any) -> None:
    frozen = nn.Sequential(nn.AdaptiveAvgPool2d((32, 32)), network.network)
    export.write_torchscript(Deployed(frozen).eval(), example, dynamic, path, facts)


def _half_written(network: Deployed, example: Tensor, dynamic: bool, path: Path, facts: Any) -> None:
    export.write_torchscript(network, example, dynamic, path, facts)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("write", "message"),
    [(_other_weights, "logits differ by"), (_fixed_size, "it gives"), (_half_written, "it cannot be loaded")],
)
@pytest.mark.parametrize("before", [b"an earlier file", None])
def test_a_file_that_disagrees_is_not_kept(write, message, before, small, run, monkeypatch):
    if before:
        Path("net.pt").write_bytes(before)
    monkeypatch.setitem(export.FORMATS, "torchscript", replace(export.FORMATS["torchscript"], write=write))
    code, said = run(small, "-o", "net.pt", "--dynamic", "--size", 32, 32)
    assert code == 1
    assert message in said
    assert left() == (["net.pt"] if before else [])
    if before:
        assert Path("net.pt").read_bytes() == before


class Stubborn(tiny.TinySegmenter):
    """Does at one size what it does not do at others, as a trace would have it."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * float(images.shape[-1])


def test_a_trace_that_froze_a_size_is_found_out(tmp_path, run):
    segmenter = make_segmenter(tmp_path / "artifacts", {"_target_": "test_export.Stubborn"})
    assert run(segmenter, "-o", "net.pt", "--size", 32, 32)[0] == 0
    Path("net.pt").unlink()
    Path("net.pt.json").unlink()
    code, said = run(segmenter, "-o", "net.pt", "--size", 32, 32, "--dynamic")
    assert code == 1
    assert "noise 2x3x29x42: logits differ by" in said
    assert left() == ["artifacts"]


@pytest.mark.parametrize("shape", [(1, 3, 40, 32), (1, 3, 32, 40), (2, 3, 32, 32)])
def test_torchscript_of_one_size_refuses_others(shape, tmp_path, run):
    """The width that a trace holds as a number would come out wrong, without a word."""
    segmenter = make_segmenter(tmp_path / "artifacts", {"_target_": "test_export.Stubborn"})
    assert run(segmenter, "-o", "net.pt", "--size", 32, 32)[0] == 0
    network = torch.jit.load("net.pt")
    assert network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 3, 32, 32)
    with pytest.raises(torch.jit.Error, match=r"takes images of shape \[1, 3, 32, 32\]"):
        network(torch.zeros(shape, dtype=torch.uint8))


class Scaled(Stubborn):
    """As DeepLab-v2 with scales, whose sizes a trace freezes."""

    def __init__(self, *, num_labels: int, scales: Sequence[float] = (), **options: Any) -> None:
        super().__init__(num_labels=num_labels)


@pytest.mark.parametrize(("scales", "advice"), [([], "without --dynamic"), ([0.5], "segmenter.scales=[]")])
def test_sizes_that_a_network_freezes_come_with_what_to_do(scales, advice, tmp_path, run):
    segmenter = make_segmenter(tmp_path / "artifacts", {"_target_": "test_export.Scaled", "scales": scales})
    code, said = run(segmenter, "-o", "net.pt", "--size", 32, 32, "--dynamic")
    assert code == 1
    assert "Export it without --dynamic" in said
    assert advice in said
    assert ("scales" in said) == bool(scales)


def test_places_that_cannot_be_written_to(small, run, monkeypatch):
    Path("file").write_text("mine")
    code, said = run(small, "-o", "file/net.pt", "--size", 32, 32)
    assert code == 2
    assert "file is a file, not a folder" in said

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(export.FORMATS, "torchscript", replace(export.FORMATS["torchscript"], write=full))
    code, said = run(small, "-o", "net.pt", "--size", 32, 32)
    assert code == 2
    assert "net.pt: No space left on device. Free some space" in said
    assert left() == ["file"]


def test_what_cannot_be_exported_as_asked(small, run, monkeypatch):
    assert "name a --format" in run(small, "-o", "net.bin")[1]
    assert "multiples of 32" in run(small, "-o", "net.pt2", "--dynamic", "--size", 100, 64)[1]
    assert "is a folder" in run(small, "-o", ".", "--format", "onnx")[1]
    said = run(small, "-o", "net.pt", "--image", "nowhere.png")[1]
    assert "does not decode" in said
    assert "split" not in said
    assert "a must be a whole number" in run(small, "-o", "net.pt", "--size", "a", 64)[1]
    assert run(small.parent, "-o", "net.pt")[0] == 2
    assert run(small, "-o", "net.pt", "--size", 8, 8)[0] == 2
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, said = run(small, "-o", "net.onnx")
    assert code == 2
    assert "pip install --editable '.[export]'" in said
    assert left() == []


def test_export_returns_how_it_compares(small, tmp_path):
    trained: Trained = load_segmenter(str(small))
    (parity,) = export.export(trained, tmp_path / "net.pt", format="torchscript", size=(32, 48))
    assert parity == ("noise 1x3x32x48", 0.0, 1.0)
