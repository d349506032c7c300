#!/usr/bin/env python3
"""Writes discrete_gaussian.json: probabilities of discrete Gaussian and Laplace noise, by 50-digit arithmetic."""

import json
from pathlib import Path

import mpmath

mpmath.mp.dps = 50


def table(weight):
    """Probabilities of 0, 1, 2, … until they fall below 1e-12; the distribution is symmetric."""
    weights = [weight(y) for y in range(2000)]
    total = weights[0] + 2 * mpmath.fsum(weights[1:])
    probabilities = [w / total for w in weights]
    return [float(p) for p in probabilities if p > 1e-12]


def main():
    sigmas = ["0.3", "0.5", "1.0", "1.3", "4.0", "37.25"]
    scales = ["0.2", "0.75", "1.0", "3.3", "50.0"]
    golden = {
        "mpmath": mpmath.__version__,
        "gaussian": [
            {"sigma": float(s), "pmf": table(lambda y, s=mpmath.mpf(s): mpmath.exp(-mpmath.mpf(y) ** 2 / (2 * s * s)))}
            for s in sigmas
        ],
        "laplace": [
            {"scale": float(s), "pmf": table(lambda y, s=mpmath.mpf(s): mpmath.exp(-mpmath.mpf(y) / s))} for s in scales
        ],
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden, indent=1) + "\n")


main()
