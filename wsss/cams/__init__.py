"""Class activation maps: pure functions, the signals they need, and the methods a configuration names."""

from wsss.cams.methods import (
    Cam,
    CamMethod,
    FeatureCam,
    GradCam,
    GradCamPlusPlus,
    GradientCam,
    LayerCam,
    LayerCamNormal,
    LayeredCam,
    NormGrad,
    ScoreCam,
    ZoomCam,
)
from wsss.cams.prototypes import Lpcam
from wsss.cams.views import seed_scores

__all__ = [
    "Cam",
    "CamMethod",
    "FeatureCam",
    "GradCam",
    "GradCamPlusPlus",
    "GradientCam",
    "LayerCam",
    "LayerCamNormal",
    "LayeredCam",
    "Lpcam",
    "NormGrad",
    "ScoreCam",
    "ZoomCam",
    "seed_scores",
]
