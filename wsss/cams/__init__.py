"""Class activation maps: pure functions, the signals they need, and the methods a configuration names."""

from wsss.cams.methods import Cam, CamMethod, GradCam, GradientCam, LayerCam
from wsss.cams.views import seed_scores

__all__ = ["Cam", "CamMethod", "GradCam", "GradientCam", "LayerCam", "seed_scores"]
