#!/usr/bin/env python3
"""Trains demo-cnn+group-norm:8 by Opacus and without noise, on the recipe of `xtask/experiments/dp-sgd-mnist.toml`.

`halve FROM TO` writes MNIST at 14 x 14, means of 2 x 2 pixels, for both; `train DIR` prints one JSON line a run, and `time DIR`
milliseconds of training a sample, of plain PyTorch, Opacus and Opacus' ghost clipping. Needs torch and opacus.
"""

import gzip
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

PARTS = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}
TRAIN, TEST, BATCH, EPOCHS, RATE, MOMENTUM, CLIP, DELTA = 12_000, 10_000, 300, 4, 0.1, 0.9, 1.0, 1e-5


def read(path):
    data = gzip.open(f"{path}.gz").read() if Path(f"{path}.gz").exists() else Path(path).read_bytes()
    sides = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(sides)).reshape(sides)


def halve(source, target):
    for images, labels in PARTS.values():
        small = read(source / images).reshape(-1, 14, 2, 14, 2).mean((2, 4)).round().astype(np.uint8)
        header = bytes([0, 0, 8, 3]) + b"".join(side.to_bytes(4, "big") for side in small.shape)
        (target / images).write_bytes(header + small.tobytes())
        (target / labels).write_bytes(bytes([0, 0, 8, 1]) + len(small).to_bytes(4, "big") + read(source / labels).tobytes())


def load(folder):
    import torch

    read_part = lambda part, count: [read(folder / name)[:count] for name in PARTS[part]]
    (x, y), (test_x, test_y) = read_part("train", TRAIN), read_part("test", TEST)
    mean, deviation = x.mean() / 255, x.std() / 255
    normal = lambda images: torch.tensor((images / 255 - mean) / deviation, dtype=torch.float32)[:, None]
    label = lambda labels: torch.tensor(labels.astype(np.int64))
    return normal(x), label(y), normal(test_x), label(test_y)


def network():
    from torch import nn

    layers, channels = [], 1
    for out, pool in [(16, False), (32, True), (64, True), (64, False)]:
        conv = nn.Conv2d(channels, out, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, nn.GroupNorm(8, out), nn.ReLU()] + ([nn.MaxPool2d(2)] if pool else [])
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def prepared(x, y, epsilon=None, noise=None, ghost=False):
    """Model, optimiser, loss, loader and engine; without an ε or noise, plain."""
    import torch
    from opacus import PrivacyEngine

    model, loss = network(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    if epsilon is None and noise is None:
        return model, optimizer, loss, loader, None
    engine = PrivacyEngine(accountant="prv")
    common = {"module": model, "optimizer": optimizer, "data_loader": loader, "max_grad_norm": CLIP}
    if ghost:
        common |= {"criterion": loss, "grad_sample_mode": "ghost"}
    if epsilon is None:
        made = engine.make_private(noise_multiplier=noise, **common)
    else:
        made = engine.make_private_with_epsilon(target_epsilon=epsilon, target_delta=DELTA, epochs=EPOCHS, **common)
    if ghost:
        model, optimizer, loss, loader = made
    else:
        model, optimizer, loader = made
    return model, optimizer, loss, loader, engine


def train(folder, epsilon, seed):
    import torch

    torch.manual_seed(seed)
    x, y, test_x, test_y = load(folder)
    model, optimizer, loss, loader, engine = prepared(x, y, epsilon)
    steps, step, start = EPOCHS * len(loader), 0, time.time()
    for _ in range(EPOCHS):
        for images, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            step += 1
    seconds = time.time() - start
    model.eval()
    with torch.no_grad():
        right = sum((model(test_x[i : i + 1000]).argmax(1) == test_y[i : i + 1000]).sum().item() for i in range(0, TEST, 1000))
    spent = engine.get_epsilon(DELTA) if engine else None
    noise = optimizer.noise_multiplier if engine else 0.0
    print(json.dumps({"asked": epsilon, "seed": seed, "accuracy": right / TEST, "epsilon": spent, "steps": step, "noise_multiplier": noise, "seconds": seconds}), flush=True)


def timed(folder):
    import torch

    x, y, _, _ = load(folder)
    for name, arguments in [("plain", {}), ("opacus", {"noise": 1.0}), ("opacus, ghost", {"noise": 1.0, "ghost": True})]:
        torch.manual_seed(1)
        model, optimizer, loss, loader, _ = prepared(x, y, **arguments)
        times, start, samples = [], time.time(), 0
        for step, (images, labels) in enumerate(loader):
            begun = time.time()
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            times.append((time.time() - begun) * 1e3 / len(labels))
            if step == 20:
                break
        times = sorted(times[1:])
        print(json.dumps({"what": name, "ms_a_sample": times[len(times) // 2], "least": times[0], "most": times[-1], "n": len(times)}), flush=True)


def main():
    command, *arguments = sys.argv[1:]
    if command == "halve":
        return halve(*map(Path, arguments))
    import torch

    folder = Path(arguments[0])
    if command == "time":
        torch.set_num_threads(2)
        return timed(folder)
    for seed in (1, 2, 3):
        for epsilon in (8.0, 2.0, None):
            train(folder, epsilon, seed)


main()
