#!/usr/bin/env python3
"""Writes dp_sgd.json: steps of a run by Opacus' data loader, and the noise multiplier and ε that it finds for them."""

import json
from pathlib import Path

import opacus
import torch
from opacus.accountants import PRVAccountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.data_loader import DPDataLoader

DELTA = 1e-5
# Records, batch, epochs, ε.
POINTS = [(48, 16, 3, 3.0), (10_000, 100, 5, 8.0), (1_000, 96, 10, 4.0)]


def point(records, batch, epochs, epsilon):
    data = torch.utils.data.TensorDataset(torch.zeros(records, 1))
    loader = DPDataLoader.from_data_loader(torch.utils.data.DataLoader(data, batch_size=batch))
    steps = epochs * len(loader)
    noise_multiplier = get_noise_multiplier(
        target_epsilon=epsilon,
        target_delta=DELTA,
        sample_rate=loader.sample_rate,
        steps=steps,
        accountant="prv",
        epsilon_tolerance=1e-4,
    )
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, loader.sample_rate, steps)]
    return {
        "records": records,
        "batch": batch,
        "epochs": epochs,
        "asked": epsilon,
        "rate": loader.sample_rate,
        "steps": steps,
        "noise_multiplier": noise_multiplier,
        "epsilon": float(accountant.get_epsilon(DELTA)),
    }


def main():
    golden = {"opacus": opacus.__version__, "delta": DELTA, "points": [point(*p) for p in POINTS]}
    Path(__file__).with_suffix(".json").write_text(json.dumps(golden, indent=1) + "\n")


main()
