"""Test accuracy of train.py at default flags, over several seeds.

    python benchmarks/accuracy.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS
    python benchmarks/accuracy.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS --per_category 5

Runs the command line once a seed and reads the checkpoint's metrics. `--per_category` trains on so
many pictures of each category, other ones for each seed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import ROOT, show, timed

from features import default_cache_folder
from utils import read_data_folder

COLUMNS = {
    "accuracy": "test_accuracy",
    "top-5": "test_top5_accuracy",
    "mean of categories": "test_class_accuracy",
    "calibration error": "test_ece",
    "without temperature": "test_ece_without_temperature",
}

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data_dir", default=os.environ.get("FLOWERS_DIR"))
parser.add_argument("--weights", default=os.environ.get("VGG16_WEIGHTS"))
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--per_category", type=int)
parser.add_argument("--cache_dir", default=str(default_cache_folder()))


def part(root: str, per_category: int, seed: int, folder: str) -> str:
    """A data folder of links: some of the training pictures, all of the others."""
    data = read_data_folder(root)
    for split, paths in data.paths.items():
        chosen = list(paths)
        if split == "train":
            random.Random(seed).shuffle(chosen)
        taken: dict[str, int] = {}
        for path in chosen:
            category = path.rsplit("/", 1)[0]
            taken[category] = taken.get(category, 0) + 1
            if split != "train" or taken[category] <= per_category:
                target = Path(folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(root, path).resolve())
    return folder


def main() -> None:
    args = parser.parse_args()
    results = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            root, checkpoint = args.data_dir, f"{folder}/checkpoint.pth"
            if args.per_category:
                root = part(args.data_dir, args.per_category, seed, f"{folder}/part")
            categories = len(read_data_folder(root).class_to_idx)
            command = ["--data_dir", root, "--output_cat", str(categories)]
            command += ["--weights", args.weights, "--save_dir", checkpoint]
            command += ["--seed", str(seed), "--cache_dir", args.cache_dir]
            start = time.perf_counter()
            timed(str(ROOT / "train.py"), *command)
            metrics = torch.load(checkpoint, weights_only=True)["metrics"]
            results.append({"seed": seed, "seconds": time.perf_counter() - start, **metrics})
    row = []
    for name in COLUMNS.values():
        values = [100 * result[name] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        row.append(f"{statistics.mean(values):.1f} ± {spread:.1f} %")
    title = f"{args.data_dir}: default flags, mean ± standard deviation over seeds {args.seeds}"
    if args.per_category:
        title += f", {args.per_category} training pictures a category"
    show(title, list(COLUMNS), [row], {"results": results})


if __name__ == "__main__":
    main()
