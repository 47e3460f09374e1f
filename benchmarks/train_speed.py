"""Training time of train.py against the usual loop, and against the bare backbone.

    python benchmarks/train_speed.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

All in one run, each side a whole command from start to end, the imports included:
- the usual loop (usual_loop.py): each epoch runs the whole network on all pictures;
- train.py at default flags (one view) and with --views 2, with an empty cache, and again
  with another learning rate and a full cache;
- the floor: the bare backbone's seconds an image, measured around each of our runs, times the
  number of passes, plus the imports.
`--skip_usual_loop` leaves out the slowest side.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import tempfile

from common import ROOT, Floor, import_seconds, show, timed

from utils import read_data_folder

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data_dir", default=os.environ.get("FLOWERS_DIR"))
parser.add_argument("--weights", default=os.environ.get("VGG16_WEIGHTS"))
parser.add_argument("--epochs", default="7")
parser.add_argument("--seed", default="0")
parser.add_argument("--views", type=int, nargs="+", default=[1, 2])
parser.add_argument("--skip_usual_loop", action="store_true")


def accuracy(printed: str) -> float:
    """The test accuracy in what a program printed, per cent."""
    return float(re.search(r"test accuracy\s+([\d.]+)%", printed)[1])


def main() -> None:
    args = parser.parse_args()
    data = read_data_folder(args.data_dir)
    pictures = {split: len(paths) for split, paths in data.paths.items()}
    floor = Floor("vgg16", args.weights)
    common = ["--data_dir", args.data_dir, "--weights", args.weights]
    common += ["--epochs", args.epochs, "--seed", args.seed]
    result = {"pictures": pictures, "epochs": int(args.epochs), "seed": int(args.seed), "runs": []}

    def record(name: str, seconds: float, printed: str, least: float | None = None) -> None:
        run = {"run": name, "seconds": seconds, "accuracy": accuracy(printed), "floor": least}
        result["runs"].append(run)
        print(f"{name}: {seconds:.1f} s, test accuracy {run['accuracy']} %", flush=True)

    for views in args.views:
        with tempfile.TemporaryDirectory() as folder:
            command = [str(ROOT / "train.py"), "--output_cat", str(len(data.class_to_idx)), *common]
            command += [
                "--views",
                str(views),
                "--cache_dir",
                folder,
                "--save_dir",
                f"{folder}/c.pth",
            ]
            before = floor.seconds()
            first = timed(*command)
            backbone = (before + floor.seconds()) / 2
            passes = pictures["train"] * views + pictures["valid"] + pictures["test"]
            record(f"train.py --views {views}", *first, passes * backbone + import_seconds())
            again = timed(*command, "--learning_rate", "0.02")
            record(f"train.py --views {views}, another learning rate", *again)
        if views == args.views[0] and not args.skip_usual_loop:
            usual = timed(str(ROOT / "benchmarks" / "usual_loop.py"), *common)
            record("usual loop", *usual)

    # Of one process; the largest of all that were started, so of train.py where it runs alone.
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"largest process: {result['peak_gb']:.2f} GB")
    slowest = max(
        run["seconds"]
        for run in result["runs"]
        if run["run"] == "usual loop" or args.skip_usual_loop
    )
    rows = []
    for run in result["runs"]:
        ratio = f"{slowest / run['seconds']:.1f} x"
        over = f"{run['seconds'] / run['floor']:.2f} x" if run["floor"] else ""
        rows.append([run["run"], f"{run['seconds']:.1f}", f"{run['accuracy']:.1f} %", ratio, over])
    header = [
        "command",
        "seconds",
        "test accuracy",
        "faster than the usual loop",
        "against the floor",
    ]
    show(f"{args.epochs} epochs on {pictures}", header, rows, result)


if __name__ == "__main__":
    main()
