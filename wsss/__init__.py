"""Weakly supervised semantic segmentation: from image-level tags to pixel masks."""

from __future__ import annotations

import os

# Set before torch starts its threads: OpenMP threads that spin while they wait make a forward pass up to thirty times
# slower as soon as a DataLoader worker or a refinement process wants the same core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from wsss._memory import keep_freed_memory
from wsss._torchvision import declare_missing_ops

keep_freed_memory()
declare_missing_ops()

__version__ = "0.1.0"
