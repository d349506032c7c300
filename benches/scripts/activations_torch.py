"""Trains the zoo's networks with other activations in PyTorch on one GPU: the baseline of `pkn-cifar10` and `shared-relu-cifar10`.

    python3 activations_torch.py --data DIR --out DIR --epochs 20 NETWORK...

NETWORK is MODEL or MODEL+ACTIVATION as in an experiment's `model.names`, with MODEL one of resnet18-cifar, pkn-resnet10,
pkn-resnet14, pkn-resnet18. DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg. Writes one JSON line a network to
OUT/results.jsonl and, with --weights, its weights as safetensors under the zoo's names, in binary16.
Definitions are written from the papers' equations and are those of `asymflow_zoo`; evaluation uses running statistics.
"""

import argparse
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

STAGES = {
    "resnet18-cifar": [2, 2, 2, 2],
    "pkn-resnet10": [1, 1, 1, 1],
    "pkn-resnet14": [2, 2, 2],
    "pkn-resnet18": [2, 2, 2, 2],
}
WIDTHS = [64, 128, 256, 512]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Easing:
    """What eases training: shared by all activations of a network."""

    def __init__(self):
        self.sharing = 1.0
        self.range = None
        self.penalties = []


class Quadratic(nn.Module):
    """free: a x^2 + b x + c; kervolution: (x + c)^2; scaled: a (x + c)^2."""

    def __init__(self, form, initial, easing):
        super().__init__()
        self.form, self.easing = form, easing
        self.weight = nn.Parameter(torch.tensor(initial))

    def forward(self, x):
        x = x.float()
        if self.training and self.easing.range:
            limit, weight, exponent = self.easing.range
            ratio = x / limit
            inside = ratio.detach().clamp(-4, 4)
            slope = weight * exponent * inside.pow(exponent - 1)
            self.easing.penalties.append((slope * ratio).sum() / x.shape[0])
        w = self.weight
        if self.form == "kervolution":
            return (x + w[0]).square()
        if self.form == "scaled":
            return w[0] * (x + w[1]).square()
        return (w[0] * x + w[1]) * x + w[2]


class Hermite(nn.Module):
    """gamma (N(x) / 2 + s N((x^2 - 1) / sqrt 2) / sqrt(4 pi)) + beta."""

    def __init__(self, channels, easing, scale=1.0):
        super().__init__()
        self.easing, self.scale = easing, scale / math.sqrt(4 * math.pi)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.first = nn.BatchNorm2d(channels, affine=False)
        self.second = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x):
        x = x.float()
        y = self.first(x) * 0.5 + self.second((x.square() - 1) / math.sqrt(2)) * self.scale
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class SharedRelu(nn.Module):
    """D x, one decision for each block of channels x rows x columns, by its mean; held constant by the gradient."""

    def __init__(self, block, easing):
        super().__init__()
        self.block, self.easing = block, easing

    def forward(self, x):
        samples, channels, height, width = x.shape
        c, h, w = min(self.block[0], channels), min(self.block[1], height), min(self.block[2], width)
        with torch.no_grad():
            mean = x.float().reshape(samples, channels // c, c, height, width).mean(2)
            mean = F.avg_pool2d(mean, (h, w), ceil_mode=True)
            keep = (mean > 0).to(x.dtype).repeat_interleave(h, 2).repeat_interleave(w, 3)[:, :, :height, :width]
            keep = keep.repeat_interleave(c, 1)
            if self.training and self.easing.sharing < 1:
                keep = self.easing.sharing * keep + (1 - self.easing.sharing) * (x > 0).to(x.dtype)
        return x * keep


def activation(text, channels, easing):
    kind, *rest = text.split(":")
    if kind == "relu":
        return nn.ReLU()
    if kind == "react":
        return Quadratic("free", [0.009, 0.5, 0.47], easing)
    if kind in ("free", "scaled", "kervolution"):
        return Quadratic(kind, [float(part) for part in rest], easing)
    if kind == "hermite":
        return Hermite(channels, easing, *(float(part) for part in rest))
    if kind == "shared-relu":
        return SharedRelu([int(side) for side in rest[0].split("x")], easing)
    raise SystemExit(f"unknown activation {text!r}")


def conv(inputs, outputs, kernel, stride):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """A basic block with activations, or a PolyKervNet's: kervolutions before normalisation, none after the sum."""

    def __init__(self, inputs, width, stride, make, is_pkn):
        super().__init__()
        self.is_pkn = is_pkn
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, 1), nn.BatchNorm2d(width)
        self.act1 = make(width)
        self.act2 = nn.Identity() if is_pkn else make(width)
        self.dropout = nn.Dropout(0.2) if is_pkn else nn.Identity()
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.ModuleList([conv(inputs, width, 1, stride), nn.BatchNorm2d(width)])
            self.act3 = make(width) if is_pkn else nn.Identity()

    def forward(self, x):
        if self.is_pkn:
            y = self.bn2(self.conv2(self.dropout(self.bn1(self.act1(self.conv1(x))))))
        else:
            y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample[1](self.act3(self.downsample[0](x)))
        return self.dropout(self.act2(y + x))


class Network(nn.Module):
    def __init__(self, name):
        super().__init__()
        model, _, kind = name.partition("+")
        is_pkn = model.startswith("pkn-")
        kind = kind or ("kervolution:1" if is_pkn else "relu")
        self.easing = Easing()
        make = lambda channels: activation(kind, channels, self.easing)
        self.is_pkn = is_pkn
        self.conv1, self.bn1, self.act = conv(3, 64, 3, 1), nn.BatchNorm2d(64), make(64)
        channels, self.stages = 64, []
        for stage, (blocks, width) in enumerate(zip(STAGES[model], WIDTHS)):
            layers = []
            for index in range(blocks):
                layers.append(Block(channels, width, 2 if stage and not index else 1, make, is_pkn))
                channels = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            self.stages.append(f"layer{stage + 1}")
        self.fc = nn.Linear(channels, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.bn1(self.act(self.conv1(x))) if self.is_pkn else self.act(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(x.mean((2, 3)))

    def zoo_weights(self):
        """Tensors under the names of `asymflow_zoo`."""
        renamed = {}
        for name, value in self.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            for ours, theirs in self.renames(name):
                name = name.replace(ours, theirs)
            renamed[name] = value
        return renamed

    def renames(self, name):
        act = ".kerv." if self.is_pkn else ".act."
        pairs = [(".act1.", f".conv1{act}"), (".act2.", f".conv2{act}"), (".act3.", f".downsample.0{act}")]
        if name.startswith("act."):
            pairs.append(("act.", f"conv1{act}"))
        pairs += [(f"{which}.running_{what}", f"{which}_{what}") for which in ("first", "second") for what in ("mean", "var")]
        return pairs


def read_split(folder):
    """Images as bytes N x 3 x 32 x 32 and labels, in the order of sorted names."""
    classes = sorted(os.listdir(folder))
    paths = [(os.path.join(folder, name, file), label) for label, name in enumerate(classes) for file in sorted(os.listdir(os.path.join(folder, name)))]
    with ThreadPoolExecutor(16) as pool:
        images = list(pool.map(lambda item: numpy.asarray(Image.open(item[0]).convert("RGB")), paths))
    images = torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([label for _, label in paths])


def augmented(images, generator):
    """Random crops of the image padded by 4 zeros after normalisation, and horizontal flips, on the device."""
    n = images.shape[0]
    padded = F.pad(images, (4, 4, 4, 4))
    dy, dx = (torch.randint(0, 9, (n, 1), generator=generator, device=images.device) for _ in range(2))
    flip = torch.rand(n, 1, generator=generator, device=images.device) < 0.5
    rows = dy + torch.arange(32, device=images.device)
    columns = torch.arange(32, device=images.device).expand(n, 32)
    columns = dx + torch.where(flip, 31 - columns, columns)
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def evaluate(network, images, labels):
    network.eval()
    correct = 0
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        for x, y in zip(images.split(1000), labels.split(1000)):
            correct += (network(x).argmax(1) == y).sum().item()
    return correct / len(labels)


def range_penalty(epoch, arguments):
    if not arguments.range_limit:
        return None
    warm_up = [(4, 0.01), (6, 0.02), (8, 0.1), (10, 0.2)]
    exponent, share = warm_up[epoch] if epoch < len(warm_up) else (10, 1.0)
    return arguments.range_limit, arguments.range_weight * share, exponent


def train(name, data, arguments, seed):
    torch.manual_seed(seed)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    (train_x, train_y), (test_x, test_y) = data
    network = Network(name).to(DEVICE).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), arguments.learning_rate, momentum=0.9, weight_decay=5e-4)
    steps = math.ceil(len(train_x) / arguments.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: 0.5 * (1 + math.cos(math.pi * s / max(1, steps * arguments.epochs))))
    curve, start, diverged = [], time.time(), False
    for epoch in range(arguments.epochs):
        network.train()
        network.easing.range = range_penalty(epoch, arguments)
        order = torch.randperm(len(train_x), generator=generator, device=DEVICE)
        losses = []
        for step, batch in enumerate(order.split(arguments.batch)):
            done = epoch + step / steps
            network.easing.sharing = min(1.0, done / arguments.anneal_epochs) if arguments.anneal_epochs else 1.0
            network.easing.penalties.clear()
            x = augmented(train_x[batch], generator).to(memory_format=torch.channels_last)
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = network(x)
            loss = F.cross_entropy(logits.float(), train_y[batch])
            losses.append(loss.detach())
            if network.easing.penalties:
                loss = loss + sum(network.easing.penalties) / len(network.easing.penalties)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), arguments.clip_norm)
            optimiser.step()
            schedule.step()
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            diverged = True
            break
        last = epoch + 1 == arguments.epochs
        if last or (epoch + 1) % arguments.evaluate_every == 0:
            curve.append([epoch + 1, evaluate(network, test_x, test_y)])
            print(f"{name} seed {seed} epoch {epoch + 1}: loss {mean:.3f} accuracy {100 * curve[-1][1]:.2f} at {time.time() - start:.0f} s", flush=True)
    return network, {
        "network": name,
        "seed": seed,
        "epochs": arguments.epochs,
        "batch": arguments.batch,
        "learning_rate": arguments.learning_rate,
        "clip_norm": arguments.clip_norm,
        "anneal_epochs": arguments.anneal_epochs,
        "range_limit": arguments.range_limit,
        "diverged": diverged,
        "accuracy": curve[-1][1] if curve and not diverged else None,
        "curve": curve,
        "seconds": round(time.time() - start, 1),
        "card": torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU",
        "torch": torch.__version__,
        "precision": "bfloat16 autocast",
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--clip-norm", type=float, default=5.0)
    parser.add_argument("--anneal-epochs", type=float, default=0)
    parser.add_argument("--range-limit", type=float, default=0)
    parser.add_argument("--range-weight", type=float, default=1e-5)
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--weights", action="store_true")
    arguments = parser.parse_args()
    cache = os.path.join(arguments.data, "decoded.pt")
    if os.path.exists(cache):
        splits = torch.load(cache)
    else:
        splits = [read_split(os.path.join(arguments.data, part)) for part in ("train", "test")]
        torch.save(splits, cache)
    # As `asymflow_zoo::data::Normalization`: mean and deviation of each channel of the training images.
    pixels = splits[0][0].double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    normalise = lambda x: ((x.to(DEVICE).float() / 255 - mean.to(DEVICE).float()[:, None, None]) / std.to(DEVICE).float()[:, None, None])
    data = [(normalise(x), y.to(DEVICE)) for x, y in splits]
    torch.backends.cudnn.benchmark = True
    for name in arguments.networks:
        for seed in arguments.seeds:
            network, result = train(name, data, arguments, seed)
            with open(os.path.join(arguments.out, "results.jsonl"), "a") as file:
                file.write(json.dumps(result) + "\n")
            if arguments.weights:
                from safetensors.torch import save_file

                tensors = {key: value.half().contiguous() for key, value in network.zoo_weights().items()}
                save_file(tensors, os.path.join(arguments.out, f"{name}-seed{seed}.safetensors".replace(":", "-")))


main()
