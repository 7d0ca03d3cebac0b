"""Metrics of segmentation (confusion matrix, boundaries, threshold curve) and of classification (average precision)."""

from __future__ import annotations

from wsss.metrics.boundary import BoundaryFScore
from wsss.metrics.classification import average_precision, mean_average_precision
from wsss.metrics.confusion import (
    ConfusionMatrix,
    false_negatives,
    false_positives,
    image_miou,
    iou,
    miou,
    pixel_accuracy,
    precision,
    recall,
    summarize,
    summarize_pseudo_labels,
)
from wsss.metrics.paired import PairedDifference, paired_difference
from wsss.metrics.threshold import ThresholdCurve

__all__ = [
    "BoundaryFScore",
    "ConfusionMatrix",
    "PairedDifference",
    "ThresholdCurve",
    "average_precision",
    "false_negatives",
    "false_positives",
    "image_miou",
    "iou",
    "mean_average_precision",
    "miou",
    "paired_difference",
    "pixel_accuracy",
    "precision",
    "recall",
    "summarize",
    "summarize_pseudo_labels",
]
