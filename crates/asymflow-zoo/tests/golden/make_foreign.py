"""Writes foreign/: files as other programs leave them, each with what Pillow, torchvision or numpy see in it.

Needs numpy, Pillow, torchvision, opencv-python-headless, ImageMagick's convert and, for Python 2's pickles, nothing more: a pickler that writes strings as
Python 2 did. Run from this folder: python3 make_foreign.py
"""

import io
import json
import pathlib
import pickle
import struct
import subprocess

import cv2
import numpy
import PIL
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as tv

HERE = pathlib.Path(__file__).parent / "foreign"
HERE.mkdir(exist_ok=True)
WIDTH, HEIGHT = 40, 30


def pattern():
    y, x = numpy.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [6 * x + y, 255 - 5 * x, 8 * y + 20 * ((x // 5 + y // 5) % 2)]
    return numpy.clip(numpy.stack(planes, axis=-1), 0, 255).astype(numpy.uint8)


colour = Image.fromarray(pattern())
pictures = []


def reference(image, name):
    image.save(HERE / name, optimize=True)
    return name


def entry(file, what, image, tolerance=0, resize=None):
    """`image` is what Pillow makes of the file, as RGB or L."""
    name = reference(image, f"{pathlib.Path(file).stem}-{len(pictures)}.ref.png")
    channels = 1 if image.mode == "L" else 3
    shape = [channels, image.height, image.width]
    pictures.append(dict(file=file, what=what, reference=name, shape=shape, tolerance=tolerance, resize=resize))


def opened(file):
    return PIL.ImageOps.exif_transpose(Image.open(HERE / file)).convert("RGB")


import PIL.ImageOps  # noqa: E402

for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = f"turned-{orientation}.jpg"
    colour.save(HERE / file, quality=90, exif=exif)
    entry(file, f"JPEG by Pillow, EXIF orientation {orientation}", opened(file), 8)

jpeg = (HERE / "turned-1.jpg").read_bytes()
(HERE / "motion.jpg").write_bytes(jpeg + b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40)
entry("motion.jpg", "motion photograph: a film of 10 kB after the JPEG", opened("motion.jpg"), 8)
colour.save(HERE / "progressive.jpg", quality=90, progressive=True)
entry("progressive.jpg", "progressive JPEG by Pillow", opened("progressive.jpg"), 8)
colour.convert("CMYK").save(HERE / "cmyk.jpg", quality=95)
entry("cmyk.jpg", "CMYK JPEG by Pillow", opened("cmyk.jpg"), 12)
colour.save(HERE / "webp-named.jpg", format="WEBP", lossless=True)
entry("webp-named.jpg", "lossless WebP by Pillow, named .jpg", opened("webp-named.jpg"))
colour.save(HERE / "lossy.webp", quality=80)
entry("lossy.webp", "lossy WebP by Pillow", opened("lossy.webp"), 24)
colour.save(HERE / "plain.bmp")
entry("plain.bmp", "BMP by Pillow", opened("plain.bmp"))
colour.save(HERE / "lzw.tiff", compression="tiff_lzw")
entry("lzw.tiff", "TIFF, LZW, by Pillow", opened("lzw.tiff"))
frames = [colour.quantize(32), colour.rotate(180).quantize(32)]
frames[0].save(HERE / "film.gif", save_all=True, append_images=frames[1:])
entry("film.gif", "GIF of two frames by Pillow: the first", opened("film.gif"))
colour.quantize(16).save(HERE / "palette.png")
entry("palette.png", "PNG with a palette by Pillow", opened("palette.png"))
colour.convert("L").save(HERE / "grey.png")
entry("grey.png", "grey PNG by Pillow for three channels", opened("grey.png"))
entry("grey.png", "grey PNG by Pillow for one channel", Image.open(HERE / "grey.png"))
colour.save(HERE / "plain.png")
entry("plain.png", "colours for one channel: Pillow's mode L", colour.convert("L"))
clear = colour.copy()
clear.putalpha(128)
clear.save(HERE / "transparent.png")
entry("transparent.png", "half transparent PNG by Pillow", opened("transparent.png"))
cv2.imwrite(str(HERE / "opencv.png"), pattern()[..., ::-1])
entry("opencv.png", "PNG by OpenCV", opened("opencv.png"))
cv2.imwrite(str(HERE / "opencv.jpg"), pattern()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
entry("opencv.jpg", "JPEG by OpenCV", opened("opencv.jpg"), 8)
cv2.imwrite(str(HERE / "opencv.ppm"), pattern()[..., ::-1])
entry("opencv.ppm", "PPM by OpenCV", opened("opencv.ppm"))

filters = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
for name, number in filters.items():
    for width, height in [(17, 11), (97, 61)]:
        resize = dict(height=height, width=width, filter=name)
        entry("plain.png", f"{width}x{height}, {name}", colour.resize((width, height), number), 0, resize)
for shorter, height, width in [(16, 12, 14), (61, 37, 60)]:
    for name in ["bilinear", "bicubic"]:
        mode = getattr(torchvision.transforms.InterpolationMode, name.upper())
        image = tv.center_crop(tv.resize(colour, [shorter], mode, antialias=True), [height, width])
        resize = dict(height=height, width=width, shorter=shorter, filter=name)
        entry("plain.png", f"torchvision Resize({shorter}), CenterCrop({height}, {width}), {name}", image, 0, resize)

subprocess.run(["convert", HERE / "plain.png", "-depth", "16", f"PNG48:{HERE / 'magick-16.png'}"], check=True)
entry("magick-16.png", "PNG of 16 bits by ImageMagick", opened("magick-16.png"))
for file, options, tolerance in [
    ("magick.jpg", ["-sampling-factor", "4:2:0", "-interlace", "JPEG", "-quality", "92"], 24),
    ("magick.tif", ["-compress", "Zip"], 0),
    ("magick.bmp", [], 0),
    ("magick.gif", ["-colors", "32"], 0),
    ("magick.pgm", ["-colorspace", "Gray"], 0),
    ("magick.webp", ["-define", "webp:lossless=true"], 0),
]:
    subprocess.run(["convert", HERE / "plain.png", *options, HERE / file], check=True)
    entry(file, " ".join([file.split(".")[1].upper(), "by ImageMagick:", *options]), opened(file), tolerance)

(HERE / "pictures.json").write_text(json.dumps(pictures, indent=1) + "\n")


class Python2Pickler(pickle._Pickler):
    """Writes bytes and str as Python 2 wrote its strings."""

    def save_string(self, value):
        value = value.encode() if isinstance(value, str) else value
        if self.bin:
            short = len(value) < 256
            head = pickle.SHORT_BINSTRING + struct.pack("<B", len(value)) if short else pickle.BINSTRING + struct.pack("<i", len(value))
            self.write(head + value)
        else:
            self.write(pickle.STRING + repr(value)[1:].encode() + b"\n")
        self.memoize(value)

    dispatch = dict(pickle._Pickler.dispatch)
    dispatch[bytes] = save_string
    dispatch[str] = save_string


def images(count):
    # Byte j of image i is (7 i + 3 j) mod 251.
    return ((7 * numpy.arange(count)[:, None] + 3 * numpy.arange(3072)[None, :]) % 251).astype(numpy.uint8)


batches = {
    "py2-0": None,
    "py2-2": None,
    **{f"py3-{protocol}": {"data": images(2), "labels": [6, 9]} for protocol in range(6)},
    "bytes-keys-2": {b"data": images(2), b"labels": [6, 9]},
    "labels-array-5": {"data": images(2), "labels": numpy.array([6, 9])},
    "labels-scalars-2": {"data": images(2), "labels": [numpy.int64(6), numpy.int32(9)]},
    "images-4d-4": {"data": images(2).reshape(2, 3, 32, 32).transpose(0, 2, 3, 1).copy(), "labels": [6, 9]},
    "column-major-5": {"data": numpy.asfortranarray(images(2)), "labels": [6, 9]},
    "frombuffer-5": {"data": images(2), "labels": [6, 9], "extra": {"x": 1.5, "y": {1, 2}, "z": frozenset([3]), "t": True}},
}
for name, batch in batches.items():
    protocol = int(name[-1])
    out = io.BytesIO()
    if batch is None:
        Python2Pickler(out, protocol=protocol).dump({"data": images(2), "labels": [6, 9], "batch_label": "a\n'b'"})
    else:
        pickle.dump(batch, out, protocol=protocol)
    # Zeros would be as good an image and compress better, but hide what is wrong.
    (HERE / f"cifar-{name}.pickle").write_bytes(out.getvalue())

grey = pattern()[:20, :20, 0]
stack = numpy.stack([grey, grey[::-1], grey.T])
numpy.savez_compressed(HERE / "keras.npz", x_train=stack, y_train=[2, 0, 1], x_test=stack[:1], y_test=[2])
rgb = numpy.stack([pattern()[:28, :28]] * 2)
numpy.savez(
    HERE / "medmnist.npz",
    train_images=rgb, train_labels=numpy.array([[1], [0]], numpy.uint8),
    val_images=rgb[:1], val_labels=numpy.array([[0]]), test_images=rgb[:1], test_labels=numpy.array([[1]]),
)
floats = numpy.asfortranarray(stack / 255.0)
numpy.savez_compressed(HERE / "floats.npz", x_train=floats, y_train=[2, 0, 1], x_test=floats[:1].astype("f4"), y_test=[2])
