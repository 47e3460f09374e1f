"""Draw the figures of README.md, by real runs of the two commands.

    python assets/draw_readme_figures.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

The bars and the heat map are of a drawing of the sample; the confusion matrix is of the photographs
in `--data_dir`, which contains its `cat_to_name.json`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ASSETS = Path(__file__).resolve().parent
DRAWING = ASSETS / "sample_flowers" / "test" / "54" / "drawing_033.jpg"


def run(script: str, *arguments: str | Path) -> None:
    """Run one of the project's commands from its folder."""
    command = [sys.executable, script, *map(str, arguments)]
    subprocess.run(command, cwd=ASSETS.parent, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, default=os.environ.get("FLOWERS_DIR"))
    parser.add_argument("--weights", default=os.environ.get("VGG16_WEIGHTS", "imagenet"))
    args = parser.parse_args()
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
