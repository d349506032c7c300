#!/usr/bin/env python3
"""Writes opendp_discrete_gaussian.json: counts of discrete Gaussian noise drawn by opendp (`pip install opendp`)."""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import opendp.prelude as dp

SAMPLES = 200_000


def counts(sigma):
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    noise = dp.m.make_gaussian(*space, scale=sigma)([0] * SAMPLES)
    return dict(sorted(Counter(noise).items()))


def main():
    dp.enable_features("contrib")
    golden = {
        "opendp": version("opendp"),
        "call": "make_gaussian(vector_domain(atom_domain(T=int)), l2_distance(T=float), scale=sigma)([0] * samples)",
        "samples": SAMPLES,
        "drawn": [{"sigma": sigma, "counts": counts(sigma)} for sigma in (0.5, 1.3, 4.0, 20.0)],
    }
    path = Path(__file__).with_name("opendp_discrete_gaussian.json")
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
