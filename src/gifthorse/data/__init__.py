"""Clean images: samples in memory, readers, packed data sets, augmentation."""

from gifthorse.data.augment import augment
from gifthorse.data.gallery import Gallery
from gifthorse.data.packed import load_packed
from gifthorse.data.readers import READERS, read
from gifthorse.data.samples import InMemory, Subset, batches, labels_of, near, split, whole

__all__ = [
    "READERS",
    "Gallery",
    "InMemory",
    "Subset",
    "augment",
    "batches",
    "labels_of",
    "load_packed",
    "near",
    "read",
    "split",
    "whole",
]
