"""Classifier and segmentation networks: plain modules that know nothing of Lightning or Hydra."""

from wsss.models.classifier import Classifier, ResNetClassifier, TimmClassifier, Vgg16Classifier
from wsss.models.deeplab import LargeFOV, ResNetDeepLabV2, TimmDeepLabV2
from wsss.models.folding import fold_batch_norm
from wsss.models.segmenter import SegmentationNetwork, Segmenter

__all__ = [
    "Classifier",
    "LargeFOV",
    "ResNetClassifier",
    "ResNetDeepLabV2",
    "SegmentationNetwork",
    "Segmenter",
    "TimmClassifier",
    "TimmDeepLabV2",
    "Vgg16Classifier",
    "fold_batch_norm",
]
