"""Shared by all tests."""

import wsss  # noqa: F401  declares what torchvision's import needs, before any test imports Lightning or timm
