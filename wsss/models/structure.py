"""What the modules of a network do: which are activations, what each returns, and in which order they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import log2
from typing import Any, TypeVar

from timm.layers import BatchNormAct2d
from torch import Tensor, nn

Key = TypeVar("Key", bound=Hashable)

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.Mish, nn.ELU)

TRACE_SIDE = 64
"""Side of the image of a trace: large enough for two positions at stride 32."""


class ActivationOnly(nn.Module):
    """What is left of timm's ``BatchNormAct2d`` once its batch norm is folded away; its parts keep their names."""

    def __init__(self, original: BatchNormAct2d) -> None:
        super().__init__()
        self.drop, self.act = original.drop, original.act

    def forward(self, features: Tensor) -> Tensor:
        """Activate ``(N, C, h, w)``."""
        return self.act(self.drop(features))


NORM_ACTS = (BatchNormAct2d, ActivationOnly)
"""Modules that end in an activation of their own, ``act``, and stand for it."""


def is_activated(module: nn.Module) -> bool:
    """Whether the output of ``module`` comes from an activation that it is or owns."""
    return isinstance(module, ACTIVATIONS) or (
        isinstance(module, NORM_ACTS) and not isinstance(module.act, nn.Identity)
    )


@dataclass(frozen=True, eq=False)
class Call:
    """One module call of a trace.

    Attributes:
        name: as in ``named_modules``; the prefix for the traced module itself.
        module: what was called.
        taken: which tensor came in, None where that was no tensor.
        given: which tensor came out.
        output: that tensor. It is changed later where the next module works in place.
        node: its autograd node at that time, None without autograd.
    """

    name: str
    module: nn.Module
    taken: Hashable
    given: Hashable
    output: Tensor
    node: Any


def trace(module: nn.Module, images: Tensor, *, prefix: str = "") -> list[Call]:
    """The calls of all modules below and including ``module``, in the order in which they finish, for one input.

    Runs in evaluation mode; flags and hooks are as before afterwards, whatever happens. Calls that return anything but
    one tensor are left out. ``prefix`` is the name of ``module`` in the network around it.
    """
    calls: list[Call] = []
    modules = dict(module.named_modules(prefix=prefix))

    def record(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            taken = _identity(inputs[0]) if inputs and isinstance(inputs[0], Tensor) else None
            calls.append(Call(name, modules[name], taken, _identity(output), output, output.grad_fn))

    with evaluation(module), hooked(modules, record):
        module(images)
    return calls


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the flags of all parts as before outside, whatever happens."""
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def hooked(modules: Mapping[Key, nn.Module], hook: Callable[[Key, tuple[Any, ...], Any], Any]) -> Iterator[None]:
    """Call ``hook`` with key, inputs and output after each call of ``modules`` inside; it may return another output."""
    with ExitStack() as undo:
        for key, module in modules.items():
            handle = module.register_forward_hook(lambda _m, inputs, output, key=key: hook(key, inputs, output))
            undo.callback(handle.remove)
        yield


def _identity(tensor: Tensor) -> Hashable:
    """Tells tensors apart, and one from itself after a change in place. Holds while the tensor lives."""
    return id(tensor), tensor._version


@contextmanager
def outputs_of(modules: Mapping[Key, nn.Module]) -> Iterator[dict[Key, Tensor]]:
    """Collect what ``modules`` return inside, as part of the graph.

    A hook that was there before comes first: where it replaces an output, the replacement is what is collected.
    """
    outputs: dict[Key, Tensor] = {}

    def record(key: Key, _inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs[key] = output.clone()  # the next module may work in place

    with hooked(modules, record):
        yield outputs


@dataclass(frozen=True)
class Layout:
    """What a trace of an encoder tells of its modules.

    Attributes:
        activated: layers whose output is an activated feature map, in the order of execution -> their stride.
        maps: modules that give one feature map with several positions in each forward pass.
        ends: modules whose output is that of the encoder.
    """

    activated: dict[str, int]
    maps: frozenset[str]
    ends: frozenset[str]


def layout(calls: Sequence[Call], *, image_side: int, preferred: Container[str]) -> Layout:
    """Read a trace of an encoder. Arguments as for ``activated_layers``."""
    times = Counter(call.name for call in calls)
    once = [call for call in calls if times[call.name] == 1]
    return Layout(
        activated_layers(calls, image_side=image_side, preferred=preferred),
        frozenset(call.name for call in once if call.output.ndim == 4 and min(call.output.shape[2:]) > 1),
        frozenset(call.name for call in once if call.given == calls[-1].given),
    )


def activated_layers(calls: Sequence[Call], *, image_side: int, preferred: Container[str]) -> dict[str, int]:
    """Names and strides of the layers whose output is an activated feature map, in the order of execution.

    Args:
        calls: the trace of an encoder.
        image_side: of the square image that was traced.
        preferred: names that win where several modules return the same tensor.
    """
    times = Counter(call.name for call in calls)
    owners = {call.name for call in calls if isinstance(call.module, NORM_ACTS)}
    names: dict[Hashable, list[str]] = {}  # activated tensor -> the modules that return it, from the inside out
    sides: dict[Hashable, int] = {}
    for call in calls:
        shape = call.output.shape
        is_map = call.output.ndim == 4 and shape[2] == shape[3] > 1  # neither a gate nor channels in the last place
        if is_map and is_activated(call.module):
            names.setdefault(call.given, [])
            sides[call.given] = shape[2]
        within_owner = call.name.rpartition(".")[0] in owners  # its owner stands for it
        if call.given in names and times[call.name] == 1 and not within_owner:
            names[call.given].append(call.name)
    chosen = {tensor: min(found, key=lambda name: name not in preferred) for tensor, found in names.items() if found}
    return {name: _stride(image_side, sides[tensor]) for tensor, name in chosen.items()}


def _stride(image_side: int, side: int) -> int:
    """The nearest power of two: without padding, a map is a little smaller than image / stride."""
    return 2 ** round(log2(image_side / side))
