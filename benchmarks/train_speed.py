"""Measure how long train.py takes, against the usual loop and against a lower bound.

    python benchmarks/train_speed.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

All in one run. Each side is a whole command from start to end, with its imports:
- the usual loop (usual_loop.py): each epoch runs the whole network on all images;
- train.py at default flags (one view) and with --views 2, with an empty cache, and again with
  another learning rate and a full cache.
The lower bound of a run with an empty cache is the number of its passes times the seconds per image
of the backbone alone, which is measured before and after the run, plus the imports.
`--skip_usual_loop` omits the slowest side.
"""

from __future__ import annotations

import re
import resource
import tempfile

from common import (
    ROOT,
    LowerBound,
    data_parser,
    import_seconds,
    run_script,
    show,
    timed,
    train_command,
)

from support.arguments import whole_number
from utils import read_data_folder


def accuracy(output: str) -> float:
    """Return the test accuracy in a program's output, per cent."""
    match = re.search(r"test accuracy\s+([\d.]+)%", output)
    assert match, output
    return float(match[1])


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--epochs", type=whole_number(1), default=7)
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--views", type=whole_number(1), nargs="+", default=[1, 2])
    parser.add_argument("--skip_usual_loop", action="store_true")
    args = parser.parse_args()
    data = read_data_folder(args.data_dir)
    images = {split: len(paths) for split, paths in data.paths.items()}
    bound = LowerBound(args.weights)
    flags = ["--epochs", str(args.epochs), "--seed", str(args.seed)]
    runs: list[dict] = []

    def record(name: str, seconds: float, output: str, least: float | None = None) -> None:
        run = {"run": name, "seconds": seconds, "accuracy": accuracy(output), "lower_bound": least}
        runs.append(run)
        print(f"{name}: {seconds:.1f} s, test accuracy {run['accuracy']} %", flush=True)

    for views in args.views:
        with tempfile.TemporaryDirectory() as folder:
            cached = ["--views", str(views), "--cache_dir", folder]
            checkpoint = f"{folder}/checkpoint.pth"
            command = train_command(args.data_dir, args.weights, checkpoint, *flags, *cached)
            before = bound.seconds()
            first = timed(*command)
            backbone = (before + bound.seconds()) / 2
            passes = images["train"] * views + images["valid"] + images["test"]
            record(f"train.py --views {views}", *first, passes * backbone + import_seconds())
            again = timed(*command, "--learning_rate", "0.02")
            record(f"train.py --views {views}, another learning rate", *again)
        if views == args.views[0] and not args.skip_usual_loop:
            script = str(ROOT / "benchmarks" / "usual_loop.py")
            data_flags = ["--data_dir", args.data_dir, "--weights", args.weights]
            record("usual loop", *timed(script, *data_flags, *flags))

    # The largest of all child processes: train.py, if the usual loop is omitted.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kB on Linux
    print(f"largest process: {peak:.2f} GB")
    slowest = max(r["seconds"] for r in runs if args.skip_usual_loop or r["run"] == "usual loop")
    rows = []
    for run in runs:
        ratio = f"{slowest / run['seconds']:.1f} x"
        over = f"{run['seconds'] / run['lower_bound']:.2f} x" if run["lower_bound"] else ""
        rows.append([run["run"], f"{run['seconds']:.1f}", f"{run['accuracy']:.1f} %", ratio, over])
    reference = "slowest run" if args.skip_usual_loop else "usual loop"
    header = ["command", "seconds", "test accuracy", f"faster than the {reference}"]
    result = {"images": images, "epochs": args.epochs, "seed": args.seed, "runs": runs}
    title = f"{args.epochs} epochs on {images}"
    show(title, [*header, "over the lower bound"], rows, result | {"peak_gb": peak})


if __name__ == "__main__":
    run_script(main)
