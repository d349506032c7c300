"""Checks that PyTorch reads a state dict that `weight_files::write_pytorch` wrote of a torchvision model.

    python crates/asymflow-zoo/scripts/check_pytorch.py FILE MODEL

The weights must be those of `fill` in golden.py. Fails with a Python error where anything differs.
"""

import sys

import torch
import torchvision

from golden import fill

path, name = sys.argv[1:]
state = torch.load(path, weights_only=True)
assert all(torch.equal(tensor, other) for tensor, other in zip(state.values(), torch.load(path, mmap=True).values()))
build = getattr(torchvision.models, name)
model, expected = build(), build()
model.load_state_dict(state, strict=True)
with torch.no_grad():
    fill(expected)
for (key, got), want in zip(model.state_dict().items(), expected.state_dict().values()):
    assert got.dtype == want.dtype and torch.equal(got, want), key
print(f"{len(state)} tensors")
