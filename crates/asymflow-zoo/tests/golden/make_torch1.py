"""Writes foreign/torch1*.pth and small-torch1-*.onnx of asymflow-engine's golden files, as PyTorch before 2.0 leaves them.

Needs PyTorch 1.13 and numpy 1.26 alone; what the scripts of the other files import beside these is not used here. Run from this folder:
python3 make_torch1.py, and after it scripts/check_onnx.py expect where onnxruntime is.
"""

import collections
import pathlib
import sys
import types

import torch

for absent in ["onnx", "onnxruntime", "timm", "torchvision"]:
    sys.modules.setdefault(absent, types.ModuleType(absent))
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))
from check_onnx import GOLDEN, Small, image, spread  # noqa: E402
from golden import value  # noqa: E402

assert torch.__version__.startswith("1."), torch.__version__
HERE = pathlib.Path(__file__).parent / "foreign"


def tiny():
    network = torch.nn.Sequential()
    network.add_module("conv1", torch.nn.Conv2d(3, 4, 3, bias=False))
    network.add_module("bn1", torch.nn.BatchNorm2d(4))
    network.add_module("fc", torch.nn.Linear(4, 2))
    tensors = collections.OrderedDict()
    for name, tensor in network.state_dict().items():
        data = value(name, tensor.numel()) if tensor.dtype.is_floating_point else None
        tensors[name] = tensor if data is None else torch.from_numpy(abs(data) if name.endswith("var") else data).reshape(tensor.shape)
    network.load_state_dict(tensors)
    return network


network = tiny()
torch.save(network.state_dict(), HERE / "torch1.pth")
torch.save(network.state_dict(), HERE / "torch1-legacy.pth", _use_new_zipfile_serialization=False)
optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
parallel = torch.nn.DataParallel(network)
checkpoint = {"epoch": 90, "arch": "tiny", "state_dict": parallel.state_dict(), "best_acc1": torch.tensor(71.2), "optimizer": optimiser.state_dict()}
torch.save(checkpoint, HERE / "torch1-imagenet.pth")

model = spread(Small())
for opset in [13, 16]:
    path = GOLDEN / f"small-torch1-{opset}.onnx"
    torch.onnx.export(model, (torch.from_numpy(image(1, 3, 16, 16)),), str(path), opset_version=opset)
