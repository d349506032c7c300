"""Writes cifar10_py2.pickle and cifar100_py3.pickle: batches of two images as torchvision unpacks them.

The published files were made by Python 2 (protocol 2, byte strings as BINSTRING); a pickler that writes
`bytes` in that way makes the same stream. The second file is what Python 3 writes today (protocol 4).
Needs numpy. Run from this folder: python3 make_cifar_pickle.py
"""

import io
import pickle
import struct

import numpy


class Python2Pickler(pickle._Pickler):
    """Writes bytes and str as Python 2 wrote its strings."""

    def save_string(self, value):
        value = value.encode() if isinstance(value, str) else value
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + struct.pack("<B", len(value)) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch = dict(pickle._Pickler.dispatch)
    dispatch[bytes] = save_string
    dispatch[str] = save_string


def images():
    # Byte j of image i is (7 i + 3 j) mod 251.
    return (7 * numpy.arange(2)[:, None] + 3 * numpy.arange(3072)[None, :]).__mod__(251).astype(numpy.uint8)


out = io.BytesIO()
batch = {"batch_label": "training batch 1 of 5", "labels": [6, 9], "data": images(), "filenames": ["a.png", "b.png"]}
Python2Pickler(out, protocol=2).dump(batch)
open("cifar10_py2.pickle", "wb").write(out.getvalue())

batch = {"filenames": ["a.png", "b.png"], "fine_labels": [99, 0], "coarse_labels": [1, 2], "data": images()}
open("cifar100_py3.pickle", "wb").write(pickle.dumps(batch, protocol=4))
