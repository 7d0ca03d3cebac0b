"""Makes ``import torchvision`` work where its compiled operators do not load.

The registry's torchvision wheel is a CUDA build. Beside a CPU-only torch its C++ library cannot be loaded, and the
import then fails with "operator torchvision::nms does not exist" (pytorch/vision#9085), which takes timm and
segmentation_models_pytorch down with it. Nothing in this package calls those operators; declaring their schemas is
enough for the import. Where the library loads, nothing is declared.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # a declared schema lives as long as this object


def declare_missing_ops() -> tuple[str, ...]:
    """Declare the schemas that torchvision's Python side needs, where its C++ library does not provide them.

    Call it before the first ``import torchvision``. Calling it again does nothing.

    Returns:
        The names of the operators that were declared; empty where torchvision's own library loads (or is absent).
    """
    global _library
    if _library is not None or _compiled_ops_load():
        return ()
    missing = tuple(name for name in _SCHEMAS if not _is_declared(name))
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        _library.define(_SCHEMAS[name])
    return missing


def _compiled_ops_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True  # no torchvision, nothing to repair
    candidates = [
        file
        for pattern in ("_C*.so", "_C*.pyd", "_C*.dylib")
        for file in Path(spec.submodule_search_locations[0]).glob(pattern)
    ]
    for library in candidates:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
    return _is_declared("nms")


def _is_declared(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)
