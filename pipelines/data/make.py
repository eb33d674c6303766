#!/usr/bin/env python3
"""Makes optdigits.safetensors and fontdigits.safetensors. Nobody needs to run it: both files are in the repository.

    python3 -m venv venv && venv/bin/pip install pillow==12.0.0 numpy==2.3.4 safetensors==0.8.0
    venv/bin/python make.py SCRATCH [--sheet SHEET.png]

SCRATCH holds the downloads (140 MB): it fetches with pip and, on Debian 12, with apt-get and dpkg what is not there yet, and
checks every file against its SHA-256. The same pinned versions give the same bytes.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HERE = Path(__file__).resolve().parent
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SKLEARN = "scikit-learn==1.9.1"
SKLEARN_DIGITS = "sklearn/datasets/data/digits.csv.gz"
DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"

SIZE = 16  # pixels of a finished image
SCALE = 8  # drawing is done SCALE times larger
CANVAS = SIZE * SCALE
BOX = 14 * SCALE  # the longer side of a digit


def check(data, sha256, what):
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        sys.exit(f"{what}: SHA-256 is {found}, not {sha256}")


def save(path, tensors, metadata):
    """A safetensors file whose bytes depend on its content alone (the library orders metadata by chance)."""
    header, offset = {"__metadata__": metadata}, 0
    for name, array in tensors.items():
        kind = {"uint8": "U8", "uint32": "U32"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    print(path.name, path.stat().st_size, "bytes", hashlib.sha256(path.read_bytes()).hexdigest())


def optdigits(scratch):
    """UCI optdigits: rows of 64 counts 0..16 and a label; 0..16 becomes 0..255."""
    wheels = list(scratch.glob("scikit_learn-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", SKLEARN, "-d", scratch]
        subprocess.run(command, check=True)
        wheels = list(scratch.glob("scikit_learn-*.whl"))
    packed = zipfile.ZipFile(wheels[0]).read(SKLEARN_DIGITS)
    check(packed, DIGITS_SHA256, SKLEARN_DIGITS)
    rows = csv.reader(io.StringIO(gzip.decompress(packed).decode()))
    table = np.array([[int(float(cell)) for cell in row] for row in rows])
    images = np.floor(table[:, :64] * 255 / 16 + 0.5).astype(np.uint8).reshape(-1, 8, 8, 1)
    tensors = {"labels": table[:, 64].astype(np.uint32), "images": images}
    metadata = {"classes": json.dumps(CLASSES), "source": "UCI optdigits (Alpaydin and Kaynak, 1998), test part, CC BY 4.0"}
    save(HERE / "optdigits.safetensors", tensors, metadata)


def faces(scratch):
    """Every font file of fonts.json, in its order."""
    for entry in json.loads((HERE / "fonts.json").read_text()):
        package, version = entry["package"], entry["version"]
        debs = list(scratch.glob(f"{package}_*.deb"))
        if not debs:
            subprocess.run(["apt-get", "download", f"{package}={version}"], cwd=scratch, check=True)
            debs = list(scratch.glob(f"{package}_*.deb"))
        check(debs[0].read_bytes(), entry["sha256"], debs[0].name)
        root = scratch / "unpacked" / package
        if not root.exists():
            root.mkdir(parents=True)
            subprocess.run(["dpkg", "-x", debs[0], root], check=True)
        for face in entry["faces"]:
            yield min(path for path in root.rglob(face) if path.is_file())


def fit(image, box=BOX):
    """The ink, its longer side scaled to `box`, in the middle of the canvas."""
    image = image.crop(image.getbbox())
    scale = box / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(image, ((CANVAS - image.width) // 2, (CANVAS - image.height) // 2))
    return canvas


def draw(font, digit):
    image = Image.new("L", (400, 400))
    ImageDraw.Draw(image).text((200, 200), str(digit), font=font, fill=255, anchor="mm")
    return fit(image)


def disc(image, radius):
    """Dilation by a disc."""
    ink = np.array(image)
    out = ink.copy()
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dx * dx + dy * dy <= radius * radius:
                out = np.maximum(out, np.roll(ink, (dy, dx), (0, 1)))
    return Image.fromarray(out)


def skeleton(image):
    """Zhang and Suen (1984), "A fast parallel algorithm for thinning digital patterns"."""
    ink = np.pad(np.array(image) > 127, 1).astype(np.uint8)
    while True:
        before = int(ink.sum())
        for odd in (0, 1):
            p = [np.roll(ink, (-dy, -dx), (0, 1)) for dy, dx in [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]]
            around = sum(p)
            rises = sum((p[k] == 0) & (p[(k + 1) % 8] == 1) for k in range(8))
            north, east, south, west = p[0], p[2], p[4], p[6]
            free = (north * east * west == 0) & (north * south * west == 0) if odd else (north * east * south == 0) & (east * south * west == 0)
            ink[(ink == 1) & (around >= 2) & (around <= 6) & (rises == 1) & free] = 0
        if int(ink.sum()) == before:
            return Image.fromarray(ink[1:-1, 1:-1] * 255)


def crisp(image):
    return image


def soft(image):
    return image.filter(ImageFilter.GaussianBlur(1.1 * SCALE))


def bold(image):
    return disc(fit(image, BOX - 10), 5)


def thin(image):
    return disc(fit(skeleton(image), BOX - 8), 4)


def slanted(image):
    return fit(image.transform(image.size, Image.Transform.AFFINE, (1, 0.45, -0.225 * CANVAS, 0, 1, 0), Image.Resampling.BICUBIC))


def small(image):
    return fit(image, 9 * SCALE)


STYLES = [crisp, soft, bold, thin, slanted, small]


def fontdigits(scratch):
    images, labels, styles = [], [], []
    for path in faces(scratch):
        font = ImageFont.truetype(str(path), 160)
        plain = [draw(font, digit) for digit in range(10)]
        if len({image.tobytes() for image in plain}) < 10:
            sys.exit(f"{path}: it does not hold ten different digits")
        for k, style in enumerate(STYLES):
            for digit, image in enumerate(plain):
                images.append(np.array(style(image).resize((SIZE, SIZE), Image.Resampling.BOX)))
                labels.append(digit)
                styles.append(k)
    tensors = {"labels": np.array(labels, np.uint32), "styles": np.array(styles, np.uint32), "images": np.stack(images)[..., None]}
    names = [style.__name__ for style in STYLES]
    metadata = {"classes": json.dumps(CLASSES), "styles": json.dumps(names), "source": "digits rendered in the fonts of fonts.json"}
    save(HERE / "fontdigits.safetensors", tensors, metadata)
    return tensors["images"][..., 0].reshape(-1, len(STYLES), 10, SIZE, SIZE)


def sheet(fonts, path, columns=3):
    """One row a font: the styles side by side for the digits 0..9."""
    rows = [np.concatenate([np.concatenate(list(style), 1) for style in font], 1) for font in fonts]
    rows += [np.zeros_like(rows[0])] * (-len(rows) % columns)
    per = len(rows) // columns
    Image.fromarray(np.concatenate([np.concatenate(rows[k * per : (k + 1) * per], 0) for k in range(columns)], 1)).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    optdigits(args.scratch)
    fonts = fontdigits(args.scratch)
    if args.sheet:
        sheet(fonts, args.sheet)


if __name__ == "__main__":
    main()
