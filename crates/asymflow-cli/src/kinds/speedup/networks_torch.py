"""Times a whole network in PyTorch, for experiments of kind `speedup` and the bench `trusted_networks`.

Arguments: name, samples, threads, repetitions. Prints two lines of sorted seconds, of an inference and of a
training step (forward, backward, SGD with momentum), each the better of the NCHW and the channels-last memory format.
"""

import sys
import time

import torch
import torchvision


def network(name):
    if name == "resnet18-imagenet":
        return torchvision.models.resnet18(num_classes=10)
    if name == "vgg16-imagenet":
        return torchvision.models.vgg16_bn(num_classes=10)
    if name == "resnet18-cifar":
        net = torchvision.models.resnet18(num_classes=10)
        net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = torch.nn.Identity()
        return net
    if name == "vgg16-cifar":
        net = torchvision.models.vgg16_bn(num_classes=10)
        net.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        net.classifier = torch.nn.Linear(512, 10)
        return net
    raise SystemExit(f"unknown network {name}")


def times(run, repeats):
    run()
    result = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        result.append(time.perf_counter() - start)
    return sorted(result)


def main():
    name, samples, threads, repeats = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    side = 32 if name.endswith("cifar") else 224
    best = None
    for layout in (torch.contiguous_format, torch.channels_last):
        net = network(name).to(memory_format=layout)
        x = torch.randn(samples, 3, side, side).contiguous(memory_format=layout)
        y = torch.arange(samples) % 10
        optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

        def infer():
            with torch.inference_mode():
                net(x)

        def step():
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()

        net.eval()
        inference = times(infer, repeats)
        net.train()
        found = (inference, times(step, repeats))
        middle = repeats // 2
        best = found if best is None else tuple(min(a, b, key=lambda t: t[middle]) for a, b in zip(best, found))
    for line in best:
        print(" ".join(f"{t:.6f}" for t in line))


if __name__ == "__main__":
    main()
