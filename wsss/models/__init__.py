"""Classifier and segmentation networks: plain modules that know nothing of Lightning or Hydra."""

from wsss.models.classifier import Classifier, ResNet50Classifier, TimmClassifier, Vgg16Classifier
from wsss.models.segmenter import Segmenter

__all__ = ["Classifier", "ResNet50Classifier", "Segmenter", "TimmClassifier", "Vgg16Classifier"]
