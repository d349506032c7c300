"""Writes state_dicts.txt: model, then name and shape of every tensor of torchvision's state dicts, in order.

The counters `num_batches_tracked` are left out. Needs torch and torchvision (meta device: no weights are made).
Run from this folder: python3 make_state_dicts.py
"""

import torch
import torchvision

MODELS = {
    "resnet18-imagenet": torchvision.models.resnet18,
    "resnet34-imagenet": torchvision.models.resnet34,
    "vgg11-imagenet": torchvision.models.vgg11_bn,
    "vgg16-imagenet": torchvision.models.vgg16_bn,
    "vgg19-imagenet": torchvision.models.vgg19_bn,
}

with open("state_dicts.txt", "w") as out:
    for name, build in MODELS.items():
        out.write(f"model {name}\n")
        with torch.device("meta"):
            state = build().state_dict()
        for key, tensor in state.items():
            if not key.endswith("num_batches_tracked"):
                out.write(f"{key} {'x'.join(map(str, tensor.shape))}\n")
