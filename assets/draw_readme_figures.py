"""Draw the figures of README.md, by real runs of the two commands.

    python assets/draw_readme_figures.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS
    python assets/draw_readme_figures.py --oxford102 flowers --weights $VGG16_WEIGHTS

The bars and the heat map are of a drawing of the sample; the confusion matrix is of the photographs
in `--data_dir`, which contains its `cat_to_name.json`; the suspect labels are those of Oxford-102.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ASSETS = Path(__file__).resolve().parent
DRAWING = ASSETS / "sample_flowers" / "test" / "54" / "drawing_033.jpg"


def run(script: str, *arguments: str | Path) -> None:
    """Run one of the project's commands from its folder."""
    command = [sys.executable, script, *map(str, arguments)]
    subprocess.run(command, cwd=ASSETS.parent, check=True)


def draw_suspect_labels(data_dir: str, weights: str) -> None:
    """Draw the suspect labels of a data folder, as JPEG, which photographs make large as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "labels.csv")
        flags = ("--weights", weights, "--check_labels", table)
        run("train.py", "--data_dir", Path(data_dir).resolve(), *flags)
        with Image.open(table.with_suffix(".suspects.png")) as figure:
            figure.convert("RGB").save(ASSETS / "suspect_labels.jpg", quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, default=os.environ.get("FLOWERS_DIR"))
    parser.add_argument("--weights", default=os.environ.get("VGG16_WEIGHTS", "imagenet"))
    parser.add_argument("--oxford102", help="data folder: draw its suspect labels, nothing else")
    args = parser.parse_args()
    if args.oxford102:
        return draw_suspect_labels(args.oxford102, args.weights)
    data_dir = Path(args.data_dir).resolve()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "checkpoint.pth")
        flags = ("--weights", args.weights, "--save_dir", checkpoint)
        run("train.py", "--data_dir", ASSETS / "sample_flowers", "--output_cat", 6, *flags)
        figures = ("--plot", ASSETS / "prediction.png", "--heatmap", ASSETS / "heat_map.png")
        run("predict.py", "--input", DRAWING, "--checkpoint", checkpoint, *figures)
        categories = len(list((data_dir / "train").iterdir()))
        names = ("--category_names", data_dir / "cat_to_name.json")
        run("train.py", "--data_dir", data_dir, "--output_cat", categories, *flags, *names)
        shutil.copy(checkpoint.with_suffix(".confusion.png"), ASSETS / "confusion_matrix.png")


if __name__ == "__main__":
    main()
