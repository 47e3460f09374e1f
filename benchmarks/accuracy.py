"""Test accuracy of train.py at default flags and with --fine_tune, over several seeds.

    python benchmarks/accuracy.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS
    python benchmarks/accuracy.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS --per_category 5
    python benchmarks/accuracy.py --data_dir flowers --weights imagenet

Runs the command line once a seed and row, and reads the checkpoint's metrics. `--per_category`
trains on so many pictures of each category, other ones for each seed. The last command is for
Oxford-102, after `train.py --download --split course` or `official`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from pathlib import Path

import torch
from common import ROOT, show, timed

from features import default_cache_folder
from utils import read_data_folder

PUBLISHED = [  # VGGs on these photographs, as their authors report them
    [
        "Oxford-17, VGG16 features, logistic regression, 90/10 and 70/30",
        "85.3 and 88.2 %",
        "Gogul & Sathiesh Kumar 2017, https://github.com/Gogul09/flower-recognition",
    ],
    [
        "Oxford-102, frozen VGG16, global average pooling, validation",
        "80.1 %",
        "https://github.com/baroudioussama/Flower-Classification-Oxford-102-",
    ],
    [
        "Oxford-102, VGG16, course project, test",
        "92.7 %",
        "https://github.com/janaalbader28/AWS_Nanodegree_Image_Classifier",
    ],
    [
        "Oxford-102, VGG-S fine-tuned on the official test set, tested on the training set",
        "95.1 %",
        "https://github.com/jimgoo/caffe-oxford102",
    ],
]
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
parser.add_argument("--fine_tune", type=int, nargs="+", default=[0, 5], help="a row for each")
parser.add_argument("--cache_dir", default=str(default_cache_folder()))


def part(root: str, per_category: int, seed: int, folder: str) -> None:
    """Make a data folder of links: some of the training pictures, all of the others."""
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


def run(args: argparse.Namespace, seed: int, fine_tune: int) -> dict:
    """The metrics in the checkpoint of one training, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        root, checkpoint = args.data_dir, f"{folder}/checkpoint.pth"
        if args.per_category:
            # In one place for all rows, so that they find each other's features.
            root = f"{args.folder}/{args.per_category} of {seed}"
            if not os.path.exists(root):
                part(args.data_dir, args.per_category, seed, root)
        categories = len(read_data_folder(root).class_to_idx)
        command = ["--data_dir", root, "--output_cat", str(categories)]
        command += ["--weights", args.weights, "--save_dir", checkpoint, "--seed", str(seed)]
        command += ["--cache_dir", args.cache_dir, "--fine_tune", str(fine_tune)]
        seconds, _ = timed(str(ROOT / "train.py"), *command)
        content = torch.load(checkpoint, weights_only=True)
        return {"seed": seed, "seconds": seconds, "epoch": content["epoch"], **content["metrics"]}


def main() -> None:
    args = parser.parse_args()
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as args.folder:
        for fine_tune in args.fine_tune:
            name = f"--fine_tune {fine_tune}" if fine_tune else "default flags"
            results[name] = [run(args, seed, fine_tune) for seed in args.seeds]
            row = [name]
            for column in COLUMNS.values():
                values = [100 * result[column] for result in results[name]]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                row.append(f"{statistics.mean(values):.1f} ± {spread:.1f} %")
            row.append(f"{max(result['seconds'] for result in results[name]):.0f} s")
            rows.append(row)
            print(*row, flush=True)
    title = f"{args.data_dir}, test split, mean ± standard deviation over seeds {args.seeds}"
    if args.per_category:
        title += f", {args.per_category} training pictures a category"
    for line in PUBLISHED:
        print("published: " + ", ".join(line))
    show(title, ["", *COLUMNS, "longest run"], rows, {"results": results})


if __name__ == "__main__":
    main()
