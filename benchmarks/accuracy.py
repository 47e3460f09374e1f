"""Test accuracy of train.py with several flags, over several seeds.

    python benchmarks/accuracy.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS
    python benchmarks/accuracy.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS --per_category 5
    python benchmarks/accuracy.py --data_dir flowers --weights imagenet
    python benchmarks/accuracy.py --data_dir flowers --rows "image_size 448, final" --seeds 0

Runs train.py once for each seed and row, and reads the metrics from the checkpoint.
`--per_category N` trains on N images of each category; each seed selects others. The third command
is for Oxford-102, after `train.py --download --split course` or `official`. A row is a list of
flags of train.py, without their hyphens.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from pathlib import Path

import torch
from common import (
    data_parser,
    default_precision,
    mean_and_deviation,
    run_script,
    show,
    timed,
    train_command,
)

from system.arguments import whole_number
from training import features
from training.feature_store import default_cache_folder
from utils import SPLITS, list_images, read_data_folder

PUBLISHED = [  # VGGs on these photographs, as their authors report them: images, accuracy, source
    [
        "Oxford-17, VGG16 features, logistic regression, 90/10 and 70/30",
        "85.3 and 88.2 %",
        "Gogul & Sathiesh Kumar 2017, https://github.com/Gogul09/flower-recognition",
    ],
    [
        "Oxford-102, official split, VGG-19 frozen, trained on train and valid",
        "96.4 %",
        "Xie et al., InterActive, CVPR 2016, https://arxiv.org/abs/1605.00052",
    ],
    [
        "Oxford-102, course split, VGG16",
        "92.7 %",
        "https://github.com/janaalbader28/AWS_Nanodegree_Image_Classifier",
    ],
    [
        "Oxford-102, VGG16 frozen, global average pooling, validation",
        "80.1 %",
        "https://github.com/baroudioussama/Flower-Classification-Oxford-102-",
    ],
    [
        "Oxford-102, VGG-S, trained in full on the official test set, tested on train",
        "95.1 %",
        "https://github.com/jimgoo/caffe-oxford102",
    ],
]
ROWS = ["default", "image_size 448", "image_size 448, final"]
COLUMNS = {
    "accuracy": "test_accuracy",
    "top-5": "test_top5_accuracy",
    "mean of categories": "test_class_accuracy",
    "calibration error": "test_ece",
    "without temperature": "test_ece_without_temperature",
}


def link_subset(root: str, per_category: int, seed: int, folder: str) -> None:
    """Link `per_category` images of each category of train, and all other images, in `folder`."""
    data = read_data_folder(root)
    for split in SPLITS:
        shuffled = data.paths(split)
        if split == "train":
            random.Random(seed).shuffle(shuffled)
        counts: dict[str, int] = {}
        for path in shuffled:
            category = path.rsplit("/", 1)[0]
            counts[category] = counts.get(category, 0) + 1
            if split != "train" or counts[category] <= per_category:
                target = Path(folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(root, path).resolve())


def flags_of(row: str) -> list[str]:
    """Return the flags of a row: "image_size 448, final" -> --image_size, 448, --final."""
    if row == "default":
        return []
    items = [item.split() for item in row.split(",")]
    return [word for name, *values in items for word in (f"--{name}", *values)]


def train(args: argparse.Namespace, seed: int, row: str, subsets: str) -> dict:
    """Train once; returns the checkpoint's metrics and the seconds that it took.

    Args:
        subsets: a folder for subsets of the data; all rows of a seed share one.
    """
    root = args.data_dir
    if args.per_category:
        root = f"{subsets}/{args.per_category} of {seed}"
        if not os.path.exists(root):
            link_subset(args.data_dir, args.per_category, seed, root)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/checkpoint.pth"
        flags = ["--seed", str(seed), "--cache_dir", args.cache_dir, "--no_report", *flags_of(row)]
        seconds, _ = timed(*train_command(root, args.weights, checkpoint, *flags))
        content = torch.load(checkpoint, weights_only=True)
    size = {"image_size": content["image_size"]}
    return {"seed": seed, "seconds": seconds, **size, **content["metrics"]}


def seconds_per_image(root: str, image_size: int) -> float:
    """Measure how long one image takes, from its file to its features."""
    settings = features.Settings(precision=default_precision(), image_size=image_size)
    return features.seconds_per_view("vgg16", root, list_images(root).all_paths(), settings)


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--per_category", type=whole_number(1), help="images of train (all)")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="FLAGS", help=f"{ROWS}")
    parser.add_argument("--cache_dir", default=str(default_cache_folder()))
    args = parser.parse_args()
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as subsets:
        for name in args.rows:
            results[name] = [train(args, seed, name, subsets) for seed in args.seeds]
            row = [name]
            for column in COLUMNS.values():
                row.append(mean_and_deviation([100 * r[column] for r in results[name]], 1))
            per_image = seconds_per_image(args.data_dir, results[name][0]["image_size"])
            row += [f"{1000 * per_image:.0f} ms"]
            row.append(f"{max(result['seconds'] for result in results[name]):.0f} s")
            rows.append(row)
            print(*row, flush=True)
    title = f"{args.data_dir}, test split, mean ± standard deviation over seeds {args.seeds}"
    if args.per_category:
        title += f", {args.per_category} training images per category"
    for line in PUBLISHED:
        print("published: " + ", ".join(line))
    show(title, ["", *COLUMNS, "an image", "longest run"], rows, {"results": results})


if __name__ == "__main__":
    run_script(main)
