"""Writes foreign/*.pth and foreign/*.safetensors: one tiny network's weights as people leave them.

Needs PyTorch, Opacus 1.6 and safetensors. Run from this folder: python3 make_weights.py
"""

import argparse
import collections
import json
import pathlib
import sys

import opacus
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))
from golden import value  # noqa: E402

HERE = pathlib.Path(__file__).parent / "foreign"
HERE.mkdir(exist_ok=True)
SHAPES = {
    "conv1.weight": (4, 3, 3, 3), "bn1.weight": (4,), "bn1.bias": (4,), "bn1.running_mean": (4,), "bn1.running_var": (4,),
    "fc.weight": (2, 4), "fc.bias": (2,),
}


def state(prefix="", dtype=torch.float32):
    tensors = collections.OrderedDict()
    for name, shape in SHAPES.items():
        data = value(name, torch.Size(shape).numel())
        tensors[prefix + name] = torch.from_numpy(abs(data) if name.endswith("var") else data).reshape(shape).to(dtype)
    tensors[prefix + "bn1.num_batches_tracked"] = torch.tensor(7)
    return tensors


def save(name, what, **options):
    torch.save(what, HERE / f"{name}.pth", **options)


save("legacy", state(), _use_new_zipfile_serialization=False)
save("legacy-nested", {"epoch": 3, "state_dict": state("module.")}, _use_new_zipfile_serialization=False)
save("opacus-batch-norm", state("_module."))
network = torch.nn.Sequential()
network.add_module("conv1", torch.nn.Conv2d(3, 4, 3, bias=False))
network.add_module("bn1", torch.nn.BatchNorm2d(4))
network.add_module("fc", torch.nn.Linear(4, 2))
# Groups in place of the batch normalisation, which Opacus does not train.
network = opacus.validators.ModuleValidator.fix(network)
network.load_state_dict({name: tensor for name, tensor in state().items() if name in network.state_dict()})
save("opacus", opacus.GradSampleModule(network).state_dict())
save("compiled-ddp", state("_orig_mod.module."))
save("ddp-compiled", state("module._orig_mod."))
save("net", {"net": state(), "acc": 93.1, "epoch": 199})
save("lightning", {"state_dict": state("model.net."), "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "pytorch-lightning_version": "2.5"})
save("backwards", collections.OrderedDict(reversed(state().items())))
save("double", state(dtype=torch.float64))
save("half", state(dtype=torch.float16))
save("bfloat", state(dtype=torch.bfloat16))
optimiser = {"state": {0: {"momentum_buffer": torch.ones(4, 3, 3, 3), "step": torch.tensor(5)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
save("with-optimiser", {"model": state(), "optimizer": optimiser, "args": argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("x")), "rng": torch.get_rng_state()})
turned = state()
turned["conv1.weight"] = turned["conv1.weight"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
turned["fc.weight"] = torch.cat([torch.zeros(1, 4), turned["fc.weight"]])[1:]
save("views", turned)
parameters = state()
for name in ["conv1.weight", "bn1.weight", "bn1.bias", "fc.weight", "fc.bias"]:
    parameters[name] = torch.nn.Parameter(parameters[name])
save("parameters", parameters)

names = list(state())
save_file(state(dtype=torch.bfloat16), HERE / "bfloat.safetensors")
first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
save_file({name: state()[name] for name in names[:3]}, HERE / first)
save_file({name: state()[name] for name in names[3:]}, HERE / second)
index = {"metadata": {"total_size": 1}, "weight_map": {name: first if name in names[:3] else second for name in names}}
(HERE / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
