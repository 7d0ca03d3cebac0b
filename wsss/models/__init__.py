"""Classifier and segmentation networks: plain modules that know nothing of Lightning or Hydra."""

from wsss.models.classifier import Classifier, ResNetClassifier, TimmClassifier, Vgg16Classifier
from wsss.models.folding import fold_batch_norm
from wsss.models.segmenter import Segmenter

__all__ = ["Classifier", "ResNetClassifier", "Segmenter", "TimmClassifier", "Vgg16Classifier", "fold_batch_norm"]
