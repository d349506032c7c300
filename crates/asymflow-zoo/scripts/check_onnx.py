"""ONNX files of PyTorch, and what onnxruntime computes of them.

    python crates/asymflow-zoo/scripts/check_onnx.py small
        writes the golden files of asymflow-engine's tests/onnx.rs
    python crates/asymflow-zoo/scripts/check_onnx.py expect
        writes onnxruntime's logits of those that lie there, as after tests/golden/make_torch1.py
    python crates/asymflow-zoo/scripts/check_onnx.py narrow
        writes classifiers of torchvision and timm with few channels beside them
    python crates/asymflow-zoo/scripts/check_onnx.py large target/release/examples/logits MODE…
        exports the classifiers whole with random weights, and compares the logits of each mode

Needs torch, torchvision, timm, onnx, onnxscript, onnxruntime.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
import onnx
import onnxruntime
import timm
import torch
import torchvision
from torch import nn

GOLDEN = pathlib.Path(__file__).parents[2] / "asymflow-engine" / "tests" / "golden"


def image(*shape):
    values = (numpy.arange(numpy.prod(shape)) * 7919) % 1009
    return (values.astype(numpy.float32) / numpy.float32(504.5) - 1).reshape(shape)


def logits(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0].reshape(-1)


def spread(model):
    """Normalisations that do something, without which a network of random weights hardly sees its input."""
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.1, 0.1)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.7, 1.3)
    return model.eval()


class Block(nn.Module):
    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out, eps=1e-3)
        self.act = nn.PReLU(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if stride > 1 else nn.Identity()

    def forward(self, x):
        return torch.relu(self.conv2(self.act(self.bn1(self.conv1(x)))) + self.shortcut(x))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.layers = nn.Sequential(Block(6, 6, 1), Block(6, 8, 2), Block(8, 8, 1))
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(32, 12)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(self.pool(self.layers(self.stem(x))).flatten(1))))


class Viewed(Small):
    """Flattens as people did before `flatten`: the number of samples, and products of sides."""

    def forward(self, x):
        x = self.pool(self.layers(self.stem(x)))
        x = torch.relu(self.fc1(x.view(x.size(0), -1)))
        return self.fc2(x.view(-1, x.size(1) * 1))


def export(model, shape, path, opset, **options):
    x = torch.from_numpy(image(*shape))
    torch.onnx.export(model, (x,), str(path), opset_version=opset, verbose=False, **options)
    # The exporter writes down where on this machine each node was traced.
    model = onnx.load(path, load_external_data=False)
    for noted in [model, model.graph, *model.graph.node, *model.graph.value_info]:
        del noted.metadata_props[:]
    path.write_bytes(model.SerializeToString())


def small():
    GOLDEN.mkdir(exist_ok=True)
    model, shape = spread(Small()), (1, 3, 16, 16)
    unfolded = dict(training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
    export(model, shape, GOLDEN / "small-13.onnx", 13, dynamo=False)
    export(model, shape, GOLDEN / "small-17-norms.onnx", 17, dynamo=False, **unfolded)
    export(model, shape, GOLDEN / "small-18-dynamo.onnx", 18, dynamo=True, external_data=False)
    export(model, shape, GOLDEN / "small-20-parts.onnx", 20, dynamo=True, external_data=True)
    names = dict(input_names=["x"], dynamic_axes={"x": {0: "samples"}})
    export(spread(Viewed()), shape, GOLDEN / "small-17-views.onnx", 17, dynamo=False, **names)
    other = onnx.load(GOLDEN / "small-17-norms.onnx")
    converted = onnx.version_converter.convert_version(other, 21)
    onnx.save(converted, GOLDEN / "small-21.onnx")
    expect()

    class Both(nn.Module):
        def forward(self, x):
            return torch.cat([x, x], dim=1).flatten(1)

    class Turned(nn.Module):
        def forward(self, x):
            return x.view(x.size(1), -1)

    class Split(nn.Module):
        def forward(self, x):
            return x.view(x.size(0) * x.size(1), -1)

    for name, model in [("turned", Turned()), ("split", Split())]:
        export(model, (1, 4, 16, 16), GOLDEN / f"{name}.onnx", 13, dynamo=False, **names)
    head = [nn.Flatten(), nn.Linear(16, 2)]
    pool = nn.AvgPool2d(8)
    refused = {
        "grouped": (nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), pool, *head), 13),
        "dilated": (nn.Sequential(nn.Conv2d(4, 4, 3, 1, 2, dilation=2), pool, *head), 13),
        "sigmoid": (nn.Sequential(nn.Sigmoid(), pool, *head), 13),
        "concatenated": (Both(), 13),
        "opset11": (nn.Sequential(pool, *head), 11),
    }
    for name, (model, opset) in refused.items():
        export(model.eval(), (1, 4, 16, 16), GOLDEN / f"{name}.onnx", opset, dynamo=False)


def expect():
    """Of all small files, those of make_torch1.py too."""
    path = GOLDEN / "onnx.json"
    expected = json.loads(path.read_text()) if path.is_file() else {}
    expected |= {file.name: [float(v) for v in logits(file, image(1, 3, 16, 16))] for file in GOLDEN.glob("small-*.onnx")}
    path.write_text(json.dumps(dict(sorted(expected.items())), indent=1) + "\n")


CLASSIFIERS = {
    "torchvision resnet18": lambda **more: torchvision.models.resnet18(**more),
    "torchvision vgg16": lambda **more: torchvision.models.vgg16(**more),
    "torchvision vgg11_bn": lambda **more: torchvision.models.vgg11_bn(**more),
    "torchvision resnet50": lambda **more: torchvision.models.resnet50(**more),
    "torchvision alexnet": lambda **more: torchvision.models.alexnet(**more),
    "timm resnet26d": lambda **more: timm.create_model("resnet26d", **more),
    "timm resnet34": lambda **more: timm.create_model("resnet34", **more),
    "timm vgg13_bn": lambda **more: timm.create_model("vgg13_bn", **more),
    "timm dla34": lambda **more: timm.create_model("dla34", **more),
}
PHOTOGRAPH = (1, 3, 224, 224)


def alive(model):
    """Weights and statistics with which every layer's output is of size one, as after training."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(8, *PHOTOGRAPH[1:]) * 2 - 1)
    return model.eval()


def few(channels):
    return {3: 3, 10: 10, 4096: 32}.get(channels, max(4, channels // 32))


def thin(model):
    """The same layers with a thirty-second of the channels, at least four."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                options = dict(bias=child.bias is not None, dilation=child.dilation, groups=child.groups)
                sides = child.kernel_size, child.stride, child.padding
                setattr(module, name, nn.Conv2d(few(child.in_channels), few(child.out_channels), *sides, **options))
            elif isinstance(child, nn.Linear):
                setattr(module, name, nn.Linear(few(child.in_features), few(child.out_features)))
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(few(child.num_features)))
    return model


def narrow():
    """Committed, so those that are imported."""
    expected = json.loads((GOLDEN / "onnx.json").read_text())
    for name, make in CLASSIFIERS.items():
        if name == "timm dla34":
            continue
        torch.manual_seed(7)
        path = GOLDEN / f"{name.split()[1]}.onnx"
        export(alive(thin(make(num_classes=10))), PHOTOGRAPH, path, 17, dynamo=False)
        expected[path.name] = [float(v) for v in logits(path, image(*PHOTOGRAPH))]
    (GOLDEN / "onnx.json").write_text(json.dumps(dict(sorted(expected.items())), indent=1) + "\n")


def large(program, *modes):
    for name, make in CLASSIFIERS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.onnx"
            torch.manual_seed(7)
            model = alive(make())
            for dynamo in [False, True]:
                export(model, PHOTOGRAPH, path, 18 if dynamo else 17, dynamo=dynamo)
                expected = logits(path, image(*PHOTOGRAPH))
                (path.parent / "image.f32").write_bytes(image(*PHOTOGRAPH).tobytes())
                for mode in modes if dynamo else modes[:1]:
                    run = subprocess.run([program, path, path.parent / "image.f32", mode], capture_output=True, text=True)
                    which = f"{name} ({'dynamo, opset 18' if dynamo else 'tracing, opset 17'}), {mode}"
                    if run.returncode:
                        print(f"{which}: {run.stderr.strip()}", flush=True)
                        continue
                    got = numpy.array(run.stdout.split(), dtype=numpy.float64)
                    off, largest = abs(got - expected).max(), abs(expected).max()
                    print(f"{which}: off by {off:.1e} of {largest:.2f}, {len(got)} logits", flush=True)


if __name__ == "__main__":
    {"small": small, "expect": expect, "narrow": narrow, "large": large}[sys.argv[1]](*sys.argv[2:])
