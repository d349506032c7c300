"""ResNet-18 for 32x32 images, full ReLU, secret weights, by CrypTen: to stand beside asymflow's secret shares in one hour on one machine.

    pip install --no-deps crypten==0.4.1 omegaconf antlr4-python3-runtime==4.9.3    # beside torch
    python shares_crypten.py [repeats]

Two parties on loopback (gloo), a trusted first party deals. Weights are random: they change neither time nor bytes. Prints seconds and the
bytes that the parties send each other for one image.
"""

import statistics
import sys
import time
import types

import torch

# CrypTen's ONNX converter, which is not used here, imports a module that PyTorch has dropped.
gone = types.ModuleType("torch.onnx._internal.registration")
gone.registry = None
sys.modules.setdefault("torch.onnx._internal.registration", gone)

import crypten  # noqa: E402
import crypten.communicator as comm  # noqa: E402
import crypten.mpc as mpc  # noqa: E402
import crypten.nn as cnn  # noqa: E402


class Block(cnn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = cnn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = cnn.BatchNorm2d(outputs)
        self.conv2 = cnn.Conv2d(outputs, outputs, 3, stride=1, padding=1, bias=False)
        self.bn2 = cnn.BatchNorm2d(outputs)
        self.has_shortcut = stride != 1 or inputs != outputs
        if self.has_shortcut:
            self.conv3 = cnn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.bn3 = cnn.BatchNorm2d(outputs)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (self.bn3(self.conv3(x)) if self.has_shortcut else x)).relu()


class ResNet18(cnn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = cnn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = cnn.BatchNorm2d(64)
        widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
        self.blocks = [Block(*width) for width in widths]
        for index, block in enumerate(self.blocks):
            self.register_module(f"block{index}", block)
        self.fc = cnn.Linear(512, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(3).mean(2))


@mpc.run_multiprocess(world_size=2)
def run(repeats):
    torch.set_num_threads(1)
    crypten.cfg.communicator.verbose = True
    torch.manual_seed(1)
    model = ResNet18().eval().encrypt(src=0)
    seconds = []
    for repeat in range(repeats + 1):
        x = crypten.cryptensor(torch.rand(1, 3, 32, 32), src=1)
        comm.get().reset_communication_stats()
        started = time.perf_counter()
        model(x).get_plain_text()
        if repeat:
            seconds.append(time.perf_counter() - started)
    stats = comm.get().get_communication_stats()
    return seconds, stats


if __name__ == "__main__":
    crypten.init()
    answers = run(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    seconds = sorted(answers[0][0])
    sent = sum(stats["bytes"] for _, stats in answers)
    print(f"CrypTen {crypten.__version__}, PyTorch {torch.__version__}")
    print(f"seconds: median {statistics.median(seconds):.3f} ({seconds[0]:.3f} to {seconds[-1]:.3f}), n = {len(seconds)}")
    # Each party counts what it sends and what it receives.
    print(f"megabytes for one image: {sent / 2e6:.1f}, rounds {answers[0][1]['rounds']}")
