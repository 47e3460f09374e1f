"""Fit a head on the made-up features of a million pictures, and report time and peak memory.

    python benchmarks/million.py --pictures 1000000

Needs 25 GB of disk for a million pictures, in --folder.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

import numpy as np
import torch
from common import show

from features import FeatureStore
from model import PARTS, Head
from train import fit

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--pictures", type=int, default=1_000_000)
parser.add_argument("--num_features", type=int, default=2048)
parser.add_argument("--classes", type=int, default=100)
parser.add_argument("--folder", help="where the file is made (the system's temporary folder)")


def main() -> None:
    args = parser.parse_args()
    times, start = {}, time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rng = np.random.default_rng(0)
        centres = rng.random((args.classes, args.num_features), np.float32)
        labels = rng.integers(0, args.classes, args.pictures)
        store = FeatureStore(folder, args.num_features)
        keys = [number.to_bytes(16, "big") for number in range(args.pictures)]
        for first in range(0, args.pictures, 1000):
            some = labels[first : first + 1000]
            shape = (len(some), len(PARTS), args.num_features)
            noise = rng.standard_normal(shape, np.float32)
            store.append(keys[first : first + 1000], centres[some][:, None] + 3 * noise)
        store.close()
        times["writing"] = time.perf_counter() - start

        start = time.perf_counter()
        kept = FeatureStore(folder, args.num_features).find(keys)
        times["finding and checking"] = time.perf_counter() - start

        start = time.perf_counter()
        torch.manual_seed(0)
        rows = torch.arange(args.pictures)
        history = fit(
            Head(args.num_features, 512, args.classes, args.classes, 0.5),
            kept,
            torch.from_numpy(labels),
            rows[:-10_000],
            rows[-10_000:],
            epochs=1,
            learning_rate=0.03,
            batch_size=256,
        )
        times["one epoch"] = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
    rows = [[name, f"{seconds:.0f} s"] for name, seconds in times.items()]
    rows += [["peak memory", f"{peak:.2f} GB"]]
    rows += [["validation accuracy", f"{history[0]['valid_accuracy']:.1%}"]]
    result = {"seconds": times, "peak_gb": peak, "history": history}
    show(f"{args.pictures} pictures' features, {args.num_features} each", ["", ""], rows, result)


if __name__ == "__main__":
    main()
