"""ONNX files of PyTorch, and what onnxruntime computes of them.

    python crates/asymflow-zoo/scripts/check_onnx.py small
        writes the golden files of asymflow-engine's tests/onnx.rs
    python crates/asymflow-zoo/scripts/check_onnx.py large target/release/examples/logits
        exports seven classifiers of torchvision and timm with random weights, and compares the trusted engine's logits

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
import torch
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


def export(model, shape, path, opset, **options):
    x = torch.from_numpy(image(*shape))
    torch.onnx.export(model, (x,), str(path), opset_version=opset, **options)
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
    other = onnx.load(GOLDEN / "small-17-norms.onnx")
    converted = onnx.version_converter.convert_version(other, 21)
    onnx.save(converted, GOLDEN / "small-21.onnx")
    files = sorted(GOLDEN.glob("small-*.onnx"))
    expected = {path.name: [float(v) for v in logits(path, image(*shape))] for path in files}
    (GOLDEN / "onnx.json").write_text(json.dumps(expected, indent=1) + "\n")

    class Both(nn.Module):
        def forward(self, x):
            return torch.cat([x, x], dim=1).flatten(1)

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


def large(program):
    import timm
    import torchvision.models as tv

    build = {
        "torchvision resnet18": lambda: tv.resnet18(weights=None),
        "torchvision vgg16": lambda: tv.vgg16(weights=None),
        "torchvision vgg11_bn": lambda: tv.vgg11_bn(weights=None),
        "torchvision resnet50": lambda: tv.resnet50(weights=None),
        "torchvision alexnet": lambda: tv.alexnet(weights=None),
        "timm resnet26d": lambda: timm.create_model("resnet26d"),
        "timm dla34": lambda: timm.create_model("dla34"),
        "timm resnet34": lambda: timm.create_model("resnet34", num_classes=100),
        "timm vgg13_bn": lambda: timm.create_model("vgg13_bn", num_classes=10),
    }
    shape = (1, 3, 224, 224)
    for name, make in build.items():
        for dynamo in [False, True]:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "model.onnx"
                export(spread(make()), shape, path, 18 if dynamo else 17, dynamo=dynamo)
                expected = logits(path, image(*shape))
                (path.parent / "image.f32").write_bytes(image(*shape).tobytes())
                run = subprocess.run([program, path, path.parent / "image.f32"], capture_output=True, text=True)
                exporter = "dynamo, opset 18" if dynamo else "tracing, opset 17"
                if run.returncode:
                    print(f"{name} ({exporter}): {run.stderr.strip()}", flush=True)
                    continue
                got = numpy.array(run.stdout.split(), dtype=numpy.float64)
                off, largest = abs(got - expected).max(), abs(expected).max()
                print(f"{name} ({exporter}): off by {off:.1e} of {largest:.2f}, {len(got)} logits", flush=True)


small() if sys.argv[1] == "small" else large(sys.argv[2])
