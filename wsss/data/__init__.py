"""Data sets, one typed sample, paired transforms and batches."""

from wsss.data.base import ImageSet
from wsss.data.coco import CocoSet
from wsss.data.dagm import DagmSet
from wsss.data.folder import FolderSet
from wsss.data.loading import DataModule, WholeImages
from wsss.data.sets import demo_set
from wsss.data.transforms import Augment
from wsss.data.voc import VOC_CLASSES, Voc2012, VocLayout

__all__ = [
    "VOC_CLASSES",
    "Augment",
    "CocoSet",
    "DagmSet",
    "DataModule",
    "FolderSet",
    "ImageSet",
    "Voc2012",
    "VocLayout",
    "WholeImages",
    "demo_set",
]
