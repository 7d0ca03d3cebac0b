"""Data sets, one typed sample, paired transforms and batches."""

from wsss.data.loading import DataModule, WholeImages
from wsss.data.sets import demo_set
from wsss.data.transforms import Augment
from wsss.data.voc import VOC_CLASSES, VocLayout

__all__ = ["VOC_CLASSES", "Augment", "DataModule", "VocLayout", "WholeImages", "demo_set"]
