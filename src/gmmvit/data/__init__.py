"""Data set name -> uint8 tensors `[N, C, H, W]`, labels, classes and statistics.

>>> from gmmvit.data import load_dataset
>>> load_dataset("digits").train.images.shape
torch.Size([1293, 1, 8, 8])
"""

from gmmvit.data.cached import Cached, cached, clear_cache
from gmmvit.data.given import each_image
from gmmvit.data.image import decode_image
from gmmvit.data.inspection import Inspection, inspect_dataset
from gmmvit.data.load import count_training, dataset_names, load_dataset
from gmmvit.data.named import class_names, numbered_classes
from gmmvit.data.records import DataError, Dataset, Split

__all__ = [
    "Cached", "DataError", "Dataset", "Inspection", "Split", "cached", "class_names", "clear_cache", "count_training",
    "dataset_names", "decode_image", "each_image", "inspect_dataset", "load_dataset", "numbered_classes",
]  # fmt: skip
