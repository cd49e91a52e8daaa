"""Data sets of images and labels, and what is done to an image before the network sees it."""

from twins_trt.data.ade20k import ADE20K_CLASSES, ADE20K_PALETTE
from twins_trt.data.datasets import Dataset, Item, Sample, open_dataset
from twins_trt.data.images import IGNORE_INDEX, IMAGE_SUFFIXES, read_image, read_label
from twins_trt.data.palette import camvid_palette, generated_palette
from twins_trt.data.preprocessing import ADE20K_TEST, Preprocessing

__all__ = [
    "ADE20K_CLASSES",
    "ADE20K_PALETTE",
    "ADE20K_TEST",
    "IGNORE_INDEX",
    "IMAGE_SUFFIXES",
    "Dataset",
    "Item",
    "Preprocessing",
    "Sample",
    "camvid_palette",
    "generated_palette",
    "open_dataset",
    "read_image",
    "read_label",
]
