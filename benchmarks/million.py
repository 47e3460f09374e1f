"""Fit a head on random features of a million images; measure seconds and peak memory.

    python benchmarks/million.py --images 1000000

Needs 25 GB of disk for a million images, in --folder.
"""

from __future__ import annotations

import resource
import tempfile
import time

import numpy as np
import torch
from common import run_script, show

from model import REGIONS, Head
from system.arguments import ArgumentParser, whole_number
from training.feature_store import KEY_BYTES, RecordStore
from training.features import Features
from training.fitting import FitSettings, Samples, fit

VALID = 10_000  # images of valid, or half of them if that is less


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=whole_number(2), default=1_000_000)
    parser.add_argument("--num_features", type=whole_number(1), default=2048)
    parser.add_argument("--classes", type=whole_number(1), default=100)
    parser.add_argument("--folder", help="for the files (the system's temporary folder)")
    args = parser.parse_args()
    shape = (len(REGIONS), args.num_features)
    times, start = {}, time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rng = np.random.default_rng(0)
        centers = rng.random((args.classes, args.num_features), np.float32)
        labels = rng.integers(0, args.classes, args.images)
        store = RecordStore(folder, shape)
        keys = [number.to_bytes(KEY_BYTES, "big") for number in range(args.images)]
        for first in range(0, args.images, 1000):
            batch = labels[first : first + 1000]
            noise = rng.standard_normal((len(batch), *shape), np.float32)
            store.append(keys[first : first + 1000], centers[batch][:, None] + 3 * noise)
        store.close()
        times["writing"] = time.perf_counter() - start

        start = time.perf_counter()
        store = RecordStore(folder, shape)
        features = Features(store, *store.find(keys))
        times["finding and checking"] = time.perf_counter() - start

        start = time.perf_counter()
        torch.manual_seed(0)
        valid = min(VALID, args.images // 2)
        train_rows, valid_rows = torch.arange(args.images).split([args.images - valid, valid])
        history = fit(
            Head(args.num_features, 512, args.classes, args.classes, 0.5),
            Samples(features, torch.from_numpy(labels), {"train": train_rows, "valid": valid_rows}),
            FitSettings(epochs=1, learning_rate=0.03, batch_size=256),
        )
        times["one epoch"] = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
    rows = [[name, f"{seconds:.0f} s"] for name, seconds in times.items()]
    rows += [["peak memory", f"{peak:.2f} GB"]]
    rows += [["validation accuracy", f"{history[0]['valid_accuracy']:.1%}"]]
    result = {"seconds": times, "peak_gb": peak, "history": history}
    show(f"Features of {args.images} images, {args.num_features} each", ["", ""], rows, result)


if __name__ == "__main__":
    run_script(main)
