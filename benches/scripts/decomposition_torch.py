"""Times PyTorch's low-rank decompositions on the data that the `decomposition` bench exports.

usage: decomposition_torch.py DIR THREADS ROUNDS

DIR holds one raw little-endian float32 file for each input, of 32 samples of 64x1024. Prints one line for each
method: name, times in milliseconds (inputs in turn) and the relative residual on each input, separated by tabs.
"""

import sys
import time
from pathlib import Path

import torch

RANK = 8
SHAPE = (32, 64, 1024)


def svd_lowrank(x):
    u, s, v = torch.svd_lowrank(x, q=RANK, niter=2)
    return u * s.unsqueeze(-2), v.mT


def svd(x):
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u[..., :RANK] * s[..., None, :RANK], vh[..., :RANK, :]


def gram_eigh(x):
    _, vectors = torch.linalg.eigh(x @ x.mT)
    a = vectors[..., -RANK:]
    return a, a.mT @ x


def split(method, x):
    a, v = method(x)
    return torch.baddbmm(x, a, v, alpha=-1)


def main():
    directory, threads, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    files = sorted(directory.glob("*.f32"))
    inputs = [torch.frombuffer(bytearray(f.read_bytes()), dtype=torch.float32).reshape(SHAPE) for f in files]
    methods = {"torch.svd_lowrank": svd_lowrank, "torch Gram + eigh": gram_eigh, "torch.linalg.svd": svd}
    times = {name: [] for name in methods}
    with torch.inference_mode():
        for method in methods.values():
            split(method, inputs[0])
        for turn in range(rounds):
            x = inputs[turn % len(inputs)]
            for name, method in methods.items():
                start = time.perf_counter()
                split(method, x)
                times[name].append((time.perf_counter() - start) * 1e3)
        for name, method in methods.items():
            residuals = [float((split(method, x).double().norm() / x.double().norm())) for x in inputs]
            fields = [",".join(f"{t:.4f}" for t in times[name]), ",".join(f"{r:.6f}" for r in residuals)]
            print(name, *fields, sep="\t", flush=True)


main()
