"""MNIST on CKKS ciphertexts by TenSEAL: the shapes of `cipher/networks`, to stand beside asymflow-cipher in one hour on one machine.

    pip install tenseal numpy
    python cipher_tenseal.py pkn|cnn [repeats]

conv 7x7 stride 3 with 4 channels by im2col, square, then 256 -> 10 (pkn) or 256 -> 64, square, 64 -> 10 (cnn). Weights are random: they
change no time. Degree 8192, moduli 31, 26 x (2 a level), 31 (TenSEAL's own tutorial of this network).
"""

import sys
import time

import numpy as np
import tenseal as ts


def main():
    name, repeats = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 7
    rng = np.random.default_rng(1)
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[31, 26, 26, 26, 26, 26, 26, 31])
    context.global_scale = 2**26
    started = time.perf_counter()
    context.generate_galois_keys()
    print(f"keys: {time.perf_counter() - started:.2f} s")
    public = context.serialize(save_secret_key=False, save_galois_keys=True, save_relin_keys=True)
    print(f"context with evaluation keys: {len(public) / 1e6:.1f} MB")
    kernels = rng.normal(0, 0.1, (4, 7, 7))
    first = rng.normal(0, 0.1, (256, 64 if name == "cnn" else 10))
    second = rng.normal(0, 0.1, (64, 10))
    image = rng.normal(0, 0.3, (28, 28))
    times = []
    for _ in range(repeats):
        encrypted, windows = ts.im2col_encoding(context, image.tolist(), 7, 7, 3)
        started = time.perf_counter()
        channels = [encrypted.conv2d_im2col(kernel.tolist(), windows) for kernel in kernels]
        values = ts.CKKSVector.pack_vectors(channels)
        values.square_()
        values = values.mm(first.tolist())
        if name == "cnn":
            values.square_()
            values = values.mm(second.tolist())
        times.append(time.perf_counter() - started)
    got = np.array(values.decrypt())
    patches = [image[3 * y : 3 * y + 7, 3 * x : 3 * x + 7] for y in range(8) for x in range(8)]
    plain = np.concatenate([[np.sum(kernel * patch) for patch in patches] for kernel in kernels]) ** 2 @ first
    if name == "cnn":
        plain = plain**2 @ second
    times.sort()
    print(f"input {len(encrypted.serialize()) / 1e3:.0f} kB, largest error {np.abs(got[:10] - plain).max():.4f}")
    print(f"evaluate: {times[len(times) // 2]:.2f} s ({times[0]:.2f} to {times[-1]:.2f}), n = {repeats}")


main()
