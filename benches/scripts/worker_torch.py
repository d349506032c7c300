"""Times a network and its convolutions in PyTorch, beside `asymflow-torch` (its example `beside_pytorch`).

Arguments: device as behind `torch:`, network, samples, repetitions. Prints one line of JSON a measurement and memory format:
seconds of an inference, of a training step (forward, backward, SGD with momentum) and of all convolutions one after the other,
each with both gradients; every repetition but the first, in order. Inputs, answers and gradients stay on the device.
"""

import json
import pathlib
import sys
import time

import torch

# The networks of the zoo in PyTorch; beside this script where it was taken elsewhere.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent / "crates/asymflow-cli/src/kinds/speedup"))
from networks_torch import network  # noqa: E402

KINDS = {"f32": None, "tf32": None, "f16": torch.float16, "bf16": torch.bfloat16}


def read_device(text):
    parts = text.split(":") if text else []
    arithmetic = parts.pop() if parts and parts[-1] in KINDS else "f32"
    return torch.device(":".join(parts) or "cpu"), arithmetic


def times(device, repeats, run):
    result = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        result.append(time.perf_counter() - start)
    return result[1:]


def whole(device, kind, name, samples, repeats, layout):
    net = network(name).to(device, memory_format=layout)
    side = 32 if name.endswith("cifar") else 224
    x = torch.randn(samples, 3, side, side, device=device).contiguous(memory_format=layout)
    y = torch.arange(samples, device=device) % 10
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def forward():
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            return net(x)

    def infer():
        with torch.inference_mode():
            forward()

    def step():
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(forward().float(), y).backward()
        optimiser.step()

    net.eval()
    yield "inference", times(device, repeats, infer)
    net.train()
    yield "step", times(device, repeats, step)


def convolutions(device, kind, name, samples, repeats, layout):
    cases = []

    def remember(module, inputs, output):
        make = lambda shape: torch.randn(shape, device=device, dtype=kind).contiguous(memory_format=layout)
        weight = make(module.weight.shape).requires_grad_()
        cases.append((make((samples, *inputs[0].shape[1:])).requires_grad_(), weight, make((samples, *output.shape[1:])), module))

    net = network(name).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(remember)
    side = 32 if name.endswith("cifar") else 224
    with torch.no_grad():
        net(torch.zeros(1, 3, side, side))

    def run():
        for x, weight, dy, module in cases:
            y = torch.nn.functional.conv2d(x, weight, stride=module.stride, padding=module.padding)
            torch.autograd.grad(y, [x, weight], dy)

    yield "convolutions", times(device, repeats, run)


def main():
    device, arithmetic = read_device(sys.argv[1])
    name, samples, repeats = sys.argv[2], *map(int, sys.argv[3:])
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    for layout in (torch.contiguous_format, torch.channels_last):
        for measure in (whole, convolutions):
            for what, seconds in measure(device, KINDS[arithmetic], name, samples, repeats, layout):
                about = {"library": "pytorch", "layout": str(layout), "device": sys.argv[1], "network": name, "batch": samples}
                print(json.dumps(about | {"what": what, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
