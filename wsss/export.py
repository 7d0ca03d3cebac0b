"""``python -m wsss.export``: the network of a finished segmenter as one file that runs without this program.

    python -m wsss.export artifacts/segmenter/53cbf2f250e9 -o segmenter.onnx --dynamic

A file is loaded anew and compared with the network before it gets its name. Exit code 0: it agrees; 1: it does not, and
nothing is left; 2: nothing can be exported as asked.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.artifacts import write_atomically, write_json
from wsss.cli import INTERRUPTED, USER_ERROR
from wsss.console import quiet_libraries, setup_logging, table
from wsss.errors import ConfigError, UserError
from wsss.inference import SMALLEST_SIDE
from wsss.predict import Trained, add_segmenter, check_parents, explain, load_segmenter, read_picture
from wsss.viz import resize_to

log = logging.getLogger("wsss.export")  # run as a command, this module is called __main__

DISAGREES = 1
"""Exit code where the file does not compute what the network does."""

SIZE = (512, 512)
OUTPUTS = ("logits", "labels")
TOLERANCE = 1e-3
EQUAL_LABELS = 0.999
"""Share of the pixels that must have the same label: two logits may be as good as equal."""

OPSET = 18
LARGEST_SIDE, LARGEST_BATCH = 8192, 64
"""What torch.export promises for dynamic sizes."""

Forward = Callable[[Tensor], Tensor]


class Disagreement(Exception):
    """The exported file does not compute what the network does."""


class Deployed(nn.Module):
    """A segmenter as it is exported: normalisation, resizing and the choice of labels are inside.

    The input is uint8, as decoders give it, so that nobody can divide by 255 twice or not at all.

    Args:
        network: ``(N, 3, H, W)`` in [0,1] to logits ``(N, C+1, h, w)``, in evaluation mode.
        labels: give labels ``(N, H, W)`` uint8 and not logits ``(N, C+1, H, W)`` float32.
        resize: whether h, w differ from H, W.
    """

    def __init__(self, network: nn.Module, *, labels: bool = False, resize: bool = False) -> None:
        super().__init__()
        self.network = network
        self.labels = labels
        self.resize = resize

    def forward(self, image: Tensor) -> Tensor:
        """Logits or labels of ``(N, 3, H, W)`` uint8 RGB."""
        logits = self.network(image.to(torch.float32) / 255)
        if self.resize:
            logits = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return logits.argmax(dim=1).to(torch.uint8) if self.labels else logits


class OneSize(nn.Module):
    """Refuses images of another shape than that a network was traced at, whose sizes are in the trace as numbers.

    Args:
        network: of images ``shape``.
        shape: the only one that is taken.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.shape = list(shape)

    def forward(self, image: Tensor) -> Tensor:
        """What the network gives; ValueError for another shape."""
        if list(image.shape) != self.shape:
            raise ValueError(f"this file takes images of shape {self.shape}, not {image.shape}")
        return self.network(image)


# --- formats ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its names.
        write: writes a network, traced on an example, with or without dynamic sizes, and what is to be known of it.
        load: reads it anew.
        multiple: of what dynamic sides must be multiples.
        sidecar: whether what is to be known of it stands in a JSON file beside it.
    """

    suffix: str
    write: Callable[[Deployed, Tensor, bool, Path, Mapping[str, Any]], None]
    load: Callable[[Path], Forward]
    multiple: int = 1
    sidecar: bool = True


def write_onnx(network: Deployed, example: Tensor, dynamic: bool, path: Path, facts: Mapping[str, Any]) -> None:
    """ONNX with ``metadata_props``.

    The exporter that traces TorchScript takes a second and handles dynamic sizes of any value. It lacks pooling to a
    grid (UPerNet), for which there is the one on torch.export, at a fixed size.
    """
    onnx = _required("onnx")
    output = "labels" if network.labels else "logits"
    axes = {0: "batch", 2: "height", 3: "width"}
    sizes = {"image": axes, output: {0: "batch", 1: "height", 2: "width"} if network.labels else axes}
    names: dict[str, Any] = {"opset_version": OPSET, "input_names": ["image"], "output_names": [output]}
    try:
        torch.onnx.export(
            network, (example,), str(path), dynamo=False, dynamic_axes=sizes if dynamic else None, **names
        )
    except torch.onnx.errors.OnnxExporterError:
        if dynamic:
            raise
        _required("onnxscript")
        torch.onnx.export(network, (example,), str(path), dynamo=True, external_data=False, verbose=False, **names)
    model = onnx.load(str(path))
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(model, text)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def load_onnx(path: Path) -> Forward:
    """An ONNX file in onnxruntime, on the CPU."""
    session = _required("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def write_torchscript(network: Deployed, example: Tensor, dynamic: bool, path: Path, facts: Mapping[str, Any]) -> None:
    """TorchScript. Tracing keeps some sizes dynamic and turns others into numbers, so a fixed one is checked.

    A trace has no conditions: the check around it is compiled.
    """
    traced = torch.jit.trace(network, (example,), check_trace=False)
    torch.jit.save(traced if dynamic else torch.jit.script(OneSize(traced, example.shape)), str(path))


def load_torchscript(path: Path) -> Forward:
    """A TorchScript file, on the CPU."""
    return torch.jit.load(str(path), map_location="cpu")


def write_pt2(network: Deployed, example: Tensor, dynamic: bool, path: Path, facts: Mapping[str, Any]) -> None:
    """torch.export. Its dynamic sides are multiples of 32: it cannot follow the padding up to those."""
    sizes = None
    if dynamic:
        height, width = (torch.export.Dim(name, min=1, max=LARGEST_SIDE // 32) for name in ("height", "width"))
        sizes = {"image": {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH), 2: 32 * height, 3: 32 * width}}
    program = torch.export.export(network, (example,), dynamic_shapes=sizes)
    with path.open("wb") as file:
        torch.export.save(program, file)


def load_pt2(path: Path) -> Forward:
    """A file of torch.export, on the CPU."""
    with path.open("rb") as file:
        return torch.export.load(file).module()


FORMATS = {
    "onnx": Format(".onnx", write_onnx, load_onnx, sidecar=False),
    "torchscript": Format(".pt", write_torchscript, load_torchscript),
    "pt2": Format(".pt2", write_pt2, load_pt2, multiple=32),
}


def _required(package: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise ConfigError(f"ONNX needs the package {package}. Run:  pip install --editable '.[export]'") from error


# --- export and check -------------------------------------------------------------------------------------------------


class Parity(NamedTuple):
    """How a file compares with its network on one input.

    Attributes:
        input: which.
        difference: the largest of the logits; None where the file gives labels.
        equal: share of the pixels with the same label.
    """

    input: str
    difference: float | None
    equal: float


def compare(found: Tensor, expected: Tensor, *, input: str, tolerance: float = TOLERANCE) -> Parity:
    """Compare an output of a file with that of the network.

    Args:
        found: logits ``(N, C+1, H, W)`` or labels ``(N, H, W)``.
        expected: the same of the network.
        input: how messages call the input.
        tolerance: of logits.

    Raises:
        Disagreement: another shape or type, a logit that differs by more than ``tolerance`` or is not finite, or less
            than ``EQUAL_LABELS`` of the labels equal.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        of_file, of_network = (f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (found, expected))
        raise Disagreement(f"{input}: it gives {of_file}, the network {of_network}")
    if not expected.is_floating_point():
        parity = Parity(input, None, (found == expected).float().mean().item())
    else:
        same = (found.argmax(dim=1) == expected.argmax(dim=1)).float().mean().item()
        parity = Parity(input, (found - expected).abs().max().item(), same)
    if parity.difference is not None and not parity.difference <= tolerance:  # NaN too
        raise Disagreement(f"{input}: logits differ by {parity.difference:.3g}, more than {tolerance:g}")
    if parity.equal < EQUAL_LABELS:
        raise Disagreement(f"{input}: only {100 * parity.equal:.2f} % of the labels are equal")
    return parity


def inputs(
    size: tuple[int, int], *, dynamic: bool, multiple: int = 1, picture: np.ndarray | None = None
) -> Iterator[tuple[str, Tensor]]:
    """What a file is tried on, by name: noise, and an image where there is one, each at two sizes if these are dynamic.

    Args:
        size: height and width that it is exported at.
        dynamic: whether it takes other sizes and several images.
        multiple: of what sides must be multiples.
        picture: ``(H, W, 3)`` uint8, RGB.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size
    sizes = [size]
    if dynamic:  # another shape, and odd sides where they are allowed
        other = (height * 3 // 4 + 5, width * 5 // 4 + 2)
        sizes.append((max(multiple, other[0] // multiple * multiple), max(multiple, other[1] // multiple * multiple)))
    for number, (rows, columns) in enumerate(sizes):
        shape = (1 + number, 3, rows, columns)
        noise = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        yield f"noise {shape[0]}x3x{rows}x{columns}", noise
        if picture is not None:
            resized = np.array(resize_to(picture, columns, height=rows))
            yield f"image 1x3x{rows}x{columns}", torch.from_numpy(resized).permute(2, 0, 1)[None].contiguous()


@torch.no_grad()
def export(
    trained: Trained,
    path: Path,
    *,
    format: str,
    output: str = "logits",
    size: tuple[int, int] = SIZE,
    dynamic: bool = False,
    picture: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> list[Parity]:
    """Write a segmenter as a file and compare it with the network; the file gets its name after that.

    Args:
        trained: the segmenter, on the CPU.
        path: the file.
        format: a key of ``FORMATS``.
        output: ``logits`` or ``labels``.
        size: height and width of its images; with ``dynamic`` those that it is traced at.
        dynamic: whether images may have other sizes, and come several at once.
        picture: ``(H, W, 3)`` uint8 to try it on beside noise.
        tolerance: of logits.

    Returns:
        How it compares, on each input.

    Raises:
        ConfigError: the network cannot be exported so.
        Disagreement: the file cannot be loaded, cannot be run, or computes something else; it is gone.
    """
    kind = FORMATS[format]
    if dynamic and any(side % kind.multiple for side in size):
        raise ConfigError(f"{format} with --dynamic takes sides that are multiples of {kind.multiple}, not {size}")
    example = torch.zeros(1 + dynamic, 3, *size, dtype=torch.uint8)
    logits = trained.network(example.float())
    network = Deployed(
        trained.network, labels=output == "labels", resize=logits.shape[-2:] != example.shape[-2:]
    ).eval()
    facts = _facts(trained, output=output, size=size, dynamic=dynamic, multiple=kind.multiple)
    parities: list[Parity] = []

    def write(partial: Path) -> None:
        partial.touch()  # that nothing can be written there is no fault of the format
        try:
            with _quiet():
                kind.write(network, example, dynamic, partial, facts)
        except (UserError, OSError):
            raise
        except Exception as error:  # exporters raise all kinds
            other = ", ".join(name for name in FORMATS if name != format)
            raise ConfigError(
                f"the network cannot be exported as {format}{' with --dynamic' * dynamic}: {_first_line(error)}. "
                f"Try {'it without --dynamic, or ' * dynamic}another format ({other})"
            ) from error
        try:
            with _quiet():
                forward = kind.load(partial)
        except UserError:
            raise
        except Exception as error:
            raise Disagreement(f"it cannot be loaded: {_first_line(error)}") from error
        for name, image in inputs(size, dynamic=dynamic, multiple=kind.multiple, picture=picture):
            try:
                found = forward(image)
            except Exception as error:
                advice = "" if image.shape[-2:] == size else f". {_without_sizes(trained)}"
                raise Disagreement(f"{name}: it cannot be run: {_first_line(error)}{advice}") from error
            try:
                parities.append(compare(found, network(image), input=name, tolerance=tolerance))
            except Disagreement as error:
                if image.shape[-2:] == size:
                    raise
                raise Disagreement(f"{error}. {_without_sizes(trained)}") from error

    sidecar = path.with_name(f"{path.name}.json")
    write_atomically(path, write)
    if kind.sidecar:
        write_json(sidecar, facts)
    return parities


def _facts(trained: Trained, *, output: str, size: tuple[int, int], dynamic: bool, multiple: int) -> dict[str, Any]:
    """What a user of the file must know."""
    shape = "(N, 3, H, W)" if dynamic else f"(1, 3, {size[0]}, {size[1]})"
    sides = f", H and W multiples of {multiple}" * (dynamic and multiple > 1)
    of_all = shape.replace("3", str(len(trained.names)), 1)
    return {
        "input": f"image: uint8 RGB {shape}{sides}, 0 to 255, not normalised",
        "output": f"logits: float32 {of_all}" if output == "logits" else f"labels: uint8 {shape.replace(' 3,', '', 1)}",
        "labels": {str(label): name for label, name in enumerate(trained.names)},
        "fingerprint": trained.manifest["fingerprint"],
        "supervision": trained.manifest["supervision"],
        "created": trained.manifest["created"],
        "command": trained.manifest.get("command", ""),
    }


def _without_sizes(trained: Trained) -> str:
    """What to do about a network that computes something else at other sizes once it is exported."""
    scales = trained.manifest["config"]["segmenter"].get("scales")
    return "Export it without --dynamic" + ", or train it with segmenter.scales=[]" * bool(scales)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own future and log; one that fails prints its whole graph, past Python's streams.

    What matters of that is found out by comparing.
    """
    level, streams = logging.root.manager.disable, [os.dup(1), os.dup(2)]
    sys.stdout.flush()
    sys.stderr.flush()
    logging.disable(logging.ERROR)
    try:
        with Path(os.devnull).open("w") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
    finally:
        logging.disable(level)
        for number, stream in zip((1, 2), streams, strict=True):
            os.dup2(stream, number)
            os.close(stream)


# --- the command ------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    """Export what a command line asks for, and print how the file compares.

    Raises:
        UserError: nothing can be exported as asked.
        Disagreement: the file does not compute what the network does.
    """
    format = arguments.format or next(
        (name for name, kind in FORMATS.items() if kind.suffix == arguments.out.suffix.lower()), None
    )
    if format is None:
        endings = ", ".join(f"{kind.suffix} ({name})" for name, kind in FORMATS.items())
        raise ConfigError(f"-o {arguments.out}: name a --format, or give a name that ends in one of {endings}")
    if arguments.out.is_dir():
        raise ConfigError(f"-o {arguments.out} is a folder; give the name of a file in it")
    check_parents(arguments.out)
    for package in ("onnx", "onnxruntime") if format == "onnx" else ():
        _required(package)
    trained = load_segmenter(arguments.segmenter)
    picture = None if arguments.image is None else read_picture(arguments.image, white=trained.white)
    parities = export(
        trained,
        arguments.out,
        format=format,
        output=arguments.output,
        size=tuple(arguments.size),
        dynamic=arguments.dynamic,
        picture=picture,
        tolerance=arguments.tolerance,
    )
    rows = [
        (parity.input, "-" if parity.difference is None else f"{parity.difference:.1e}", f"{100 * parity.equal:.3f}")
        for parity in parities
    ]
    table(f"{arguments.out} against the network", rows, columns=("input", "largest difference", "% equal labels"))
    log.info("written and checked: %s (%.1f MB)", arguments.out, arguments.out.stat().st_size / 1e6)


def main(arguments: Sequence[str] | None = None) -> int:
    """The body of ``python -m wsss.export``; returns the exit code."""
    options = parser().parse_args(list(sys.argv[1:] if arguments is None else arguments))
    setup_logging()
    quiet_libraries()
    try:
        run(options)
    except UserError as error:
        log.error("%s: %s", type(error).__name__, error)
        return USER_ERROR
    except Disagreement as error:
        log.error("the exported file does not agree with the network and is not kept. %s", error)
        return DISAGREES
    except OSError as error:
        log.error("%s", explain(error, options.out))
        return USER_ERROR
    except KeyboardInterrupt:
        log.warning("interrupted")
        return INTERRUPTED
    return 0


EXAMPLES = """\
examples:
  python -m wsss.export artifacts/segmenter/53cbf2f250e9 -o segmenter.onnx --dynamic --image photo.jpg
  python -m wsss.export 53cbf2 -o segmenter.pt --output labels --size 375 500
  python -m wsss.export 53cbf2 -o segmenter.pt2 --dynamic

The file takes images as decoders give them: uint8 RGB (N, 3, H, W), 0 to 255. Normalisation is inside; what comes out
has the size of the image: logits float32 (N, C+1, H, W), or labels uint8 (N, H, W). It is one view of the network,
without scales, flip, windows or a CRF. Names of the labels, fingerprint and supervision are in the metadata of an ONNX
file, and beside the others in FILE.json.

Without --dynamic it takes one image of one size and refuses others. pt2 with --dynamic takes sides that are multiples
of 32.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m wsss.export",
        description="The network of a finished segmenter as one file for ONNX, TorchScript or torch.export, compared "
        "with the network before it is kept.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_segmenter(made)
    made.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the file; replaced if it exists")
    made.add_argument("--format", choices=FORMATS, help="default: as FILE ends (.onnx, .pt, .pt2)")
    made.add_argument("--output", choices=OUTPUTS, default=OUTPUTS[0], help="what comes out; default: logits")
    made.add_argument(
        "--size", nargs=2, type=_side, default=list(SIZE), metavar=("H", "W"), help="in pixels; default: 512 512"
    )
    made.add_argument("--dynamic", action="store_true", help="images of any size, several at once")
    made.add_argument("--image", type=Path, metavar="FILE", help="compare on this image too")
    made.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="T", help=f"of logits; default: {TOLERANCE:g}"
    )
    return made


def _side(text: str) -> int:
    with suppress(ValueError):
        if SMALLEST_SIDE <= int(text) <= LARGEST_SIDE:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text} must be a whole number, {SMALLEST_SIDE} to {LARGEST_SIDE}")


if __name__ == "__main__":
    raise SystemExit(main())
