"""Writes the golden files of tests/golden.rs from PyTorch and torchvision.

    python crates/asymflow-zoo/scripts/golden.py

Weights and inputs come from a formula that both sides compute (`value` below), so that only results need
to be stored. Files are written to crates/asymflow-zoo/tests/golden/.
"""

import json
import pathlib

import numpy as np
import torch
import torchvision

OUT = pathlib.Path(__file__).parent.parent / "tests" / "golden"
MASK = (1 << 64) - 1


def fnv(name: str) -> int:
    """64-bit FNV-1a of a name."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def value(name: str, count: int) -> np.ndarray:
    """`count` numbers in [-1, 1): splitmix64 of the name's hash plus the index, upper 24 bits."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv(name)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) / (1 << 23) - 1.0).astype(np.float32)


def fill(model: torch.nn.Module) -> None:
    """He-uniform kernels, biases and shifts in ±0.1, scales around 1, variances around 1."""
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        raw = value(name, tensor.numel())
        if tensor.dim() > 1:
            scale = np.float32(np.sqrt(6.0 / (tensor.numel() // tensor.shape[0])))
            data = scale * raw
        elif name.endswith("running_var"):
            data = np.float32(1.0) + np.float32(0.25) * raw
        elif name.endswith("weight"):
            data = np.float32(1.0) + np.float32(0.25) * raw
        else:
            data = np.float32(0.1) * raw
        tensor.copy_(torch.from_numpy(data).reshape(tensor.shape))


def cifar_resnet(model: torch.nn.Module, classes: int) -> torch.nn.Module:
    """torchvision's ResNet with the stem of the CIFAR form."""
    model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = torch.nn.Identity()
    model.fc = torch.nn.Linear(512, classes)
    return model


def cifar_vgg(model: torch.nn.Module, classes: int) -> torch.nn.Module:
    """torchvision's VGG with the classifier of the CIFAR form."""
    model.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    model.classifier = torch.nn.Linear(512, classes)
    return model


def logits(name: str, model: torch.nn.Module, side: int) -> dict:
    """The first 16 logits of one image."""
    fill(model)
    model.eval()
    x = torch.from_numpy(value("input", 3 * side * side)).reshape(1, 3, side, side)
    with torch.no_grad():
        y = model(x)[0].double().numpy()
    return {"model": name, "classes": len(y), "logits": [float(v) for v in y[:16]]}


def training() -> dict:
    """Two steps of SGD on resnet18-cifar: logits, input gradients and some weights."""
    model = cifar_resnet(torchvision.models.resnet18(), 10)
    fill(model)
    model.train()
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    steps = []
    for step in range(2):
        x = torch.from_numpy(value(f"input{step}", 4 * 3 * 32 * 32)).reshape(4, 3, 32, 32).requires_grad_()
        dy = torch.from_numpy(value(f"gradient{step}", 4 * 10) * np.float32(0.03125)).reshape(4, 10)
        sgd.zero_grad()
        y = model(x)
        y.backward(dy)
        sgd.step()
        state = model.state_dict()
        probes = ["conv1.weight", "bn1.running_mean", "bn1.running_var", "bn1.weight", "layer2.0.downsample.0.weight",
                  "layer4.1.bn2.bias", "layer4.1.bn2.running_var", "fc.weight", "fc.bias"]
        steps.append({
            "logits": [float(v) for v in y.detach().flatten()],
            "input_gradient": [float(v) for v in x.grad.flatten()[:64]],
            "weights": {p: [float(v) for v in state[p].flatten()[:8]] for p in probes},
        })
    return {"model": "resnet18-cifar", "steps": steps}


def readers() -> None:
    """One tiny network's weights as .pth (plain, nested, half) and as .safetensors."""
    state = {}
    for name, shape in [("conv1.weight", (4, 3, 3, 3)), ("bn1.weight", (4,)), ("bn1.bias", (4,)),
                        ("bn1.running_mean", (4,)), ("bn1.running_var", (4,)), ("fc.weight", (2, 4)), ("fc.bias", (2,))]:
        state[name] = torch.from_numpy(value(name, int(np.prod(shape)))).reshape(shape)
    # No variance is negative.
    state["bn1.running_var"] = state["bn1.running_var"].abs()
    # Stored transposed, so that a reader that ignores strides is caught.
    state["fc.weight"] = state["fc.weight"].t().contiguous().t()
    state["bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save(state, OUT / "tiny.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, OUT / "tiny-nested.pth")
    save_safetensors({k: v.contiguous().numpy() for k, v in state.items()}, OUT / "tiny.safetensors")


def save_safetensors(tensors: dict, path: pathlib.Path) -> None:
    """The format in its plainest form: a length, a JSON header, the bytes."""
    header, body = {}, b""
    for name, array in sorted(tensors.items()):
        dtype = {"float32": "F32", "int64": "I64"}[str(array.dtype)]
        data = array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    models = torchvision.models
    golden = []
    with torch.no_grad():
        for name, make in [("resnet18", models.resnet18), ("resnet34", models.resnet34)]:
            golden.append(logits(f"{name}-imagenet", make(), 224))
            golden.append(logits(f"{name}-cifar", cifar_resnet(make(), 10), 32))
        for name, make in [("vgg11", models.vgg11_bn), ("vgg16", models.vgg16_bn), ("vgg19", models.vgg19_bn)]:
            golden.append(logits(f"{name}-imagenet", make(), 224))
            golden.append(logits(f"{name}-cifar", cifar_vgg(make(), 10), 32))
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    (OUT / "logits.json").write_text(json.dumps({"versions": versions, "models": golden}, indent=1) + "\n")
    (OUT / "training.json").write_text(json.dumps({"versions": versions, **training()}, indent=1) + "\n")
    readers()


if __name__ == "__main__":
    main()
