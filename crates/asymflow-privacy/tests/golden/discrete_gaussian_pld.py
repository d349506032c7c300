#!/usr/bin/env python3
"""Writes discrete_gaussian_pld.json: ε of discrete Gaussian noise by dp-accounting's privacy loss distributions."""

import importlib.metadata
import json
from pathlib import Path

from dp_accounting.pld import privacy_loss_distribution as pld

DELTA = 1e-5
# σ and sensitivity in steps of the grid, and how often it is used.
POINTS = [
    (0.5, 1, 1),
    (1.0, 1, 1),
    (1.3, 2, 1),
    (2.0, 1, 5),
    (3.0, 2, 20),
    (10.0, 3, 100),
    (64.0, 64, 1),
    (64.0, 16, 10),
    (1024.0, 256, 1),
    (1024.0, 1878, 1),
    (1024.0, 3122, 1),
    (4096.0, 400, 50),
]


def epsilon(sigma, sensitivity, count):
    single = pld.from_discrete_gaussian_mechanism(
        sigma, sensitivity, value_discretization_interval=1e-5, use_connect_dots=True
    )
    return single.self_compose(count).get_epsilon_for_delta(DELTA)


def main():
    golden = {
        "dp-accounting": importlib.metadata.version("dp-accounting"),
        "delta": DELTA,
        "points": [
            {"sigma": s, "sensitivity": d, "count": n, "epsilon": float(epsilon(s, d, n))} for s, d, n in POINTS
        ],
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(golden, indent=1) + "\n")


main()
