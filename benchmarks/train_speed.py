"""Measure how long train.py takes, against the usual loop and against a lower bound.

    python benchmarks/train_speed.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

All in one run. Each side is a whole command from start to end, with its imports:
- train.py at default flags, with an empty cache;
- the same with `--precision float32`;
- at default flags, another learning rate and a full cache: alone, and two at once, in turn;
- the usual loop (usual_loop.py): each epoch runs the whole network on all images.
The lower bound of the first one is the number of its images times the seconds per image of the
fastest bare backbone (bare_backbone.py, before and after it), plus `import torch`.
`--skip_usual_loop` omits the slowest side.
"""

from __future__ import annotations

import re
import resource
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from bare_backbone import lower_bound
from common import ROOT, data_parser, import_seconds, run_script, show, timed, train_command

from system.arguments import whole_number
from utils import SPLITS, read_data_folder


def accuracy(output: str) -> float:
    """Return the test accuracy in a program's output, per cent."""
    match = re.search(r"test accuracy\s+([\d.]+)%", output)
    assert match, output
    return float(match[1])


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--epochs", type=whole_number(1), default=7)
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--rounds", type=whole_number(1), default=5, help="with a full cache")
    parser.add_argument("--skip_usual_loop", action="store_true")
    args = parser.parse_args()
    data = read_data_folder(args.data_dir)
    images = {split: len(data.of(split)) for split in SPLITS}
    flags = ["--epochs", str(args.epochs), "--seed", str(args.seed)]
    with tempfile.TemporaryDirectory() as folder:
        command = partial(train_command, args.data_dir, args.weights)
        flags_of_ours = [*flags, "--cache_dir", folder]
        before = lower_bound(args.weights), import_seconds()
        first = timed(*command(f"{folder}/first.pth", *flags_of_ours))
        after = lower_bound(args.weights), import_seconds()
        print(f"train.py: {first[0]:.1f} s, test accuracy {accuracy(first[1])} %", flush=True)
        floats = timed(*command(f"{folder}/float.pth", *flags_of_ours, "--precision", "float32"))
        again = [
            command(f"{folder}/{name}.pth", *flags_of_ours, "--learning_rate", "0.02")
            for name in ("a", "b")
        ]
        alone, together = [], []
        for _ in range(args.rounds):
            alone.append(timed(*again[0]))
            with ThreadPoolExecutor() as pool:
                pair = list(pool.map(lambda words: timed(*words), again))
            together.append(max(seconds for seconds, _ in pair))
    # The largest of all child processes so far.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kB on Linux
    backbone, imports = (statistics.mean(pair) for pair in zip(before, after, strict=True))
    least = sum(images.values()) * backbone + imports
    runs = {
        "train.py": first,
        "train.py --precision float32": floats,
        "train.py, another learning rate": (statistics.median(s for s, _ in alone), alone[0][1]),
        "two of these at once": (statistics.median(together), alone[0][1]),
    }
    print(f"lower bound {least:.1f} s: {1000 * backbone:.1f} ms an image, imports {imports:.1f} s")
    print(f"train.py: {first[0] / least:.2f} x the lower bound")
    ratio = statistics.median(t / a for t, (a, _) in zip(together, alone, strict=True))
    print(f"two at once: {ratio:.2f} x one, median of {args.rounds}")
    print(f"largest process: {peak:.2f} GB", flush=True)
    if not args.skip_usual_loop:
        script = str(ROOT / "benchmarks" / "usual_loop.py")
        data_flags = ["--data_dir", args.data_dir, "--weights", args.weights]
        runs["usual loop"] = timed(script, *data_flags, *flags)
    slowest = max(seconds for seconds, _ in runs.values())
    rows = [
        [name, f"{seconds:.1f}", f"{accuracy(output):.1f} %", f"{slowest / seconds:.1f} x"]
        for name, (seconds, output) in runs.items()
    ]
    result = {
        "images": images,
        "epochs": args.epochs,
        "seed": args.seed,
        "seconds": {name: seconds for name, (seconds, _) in runs.items()},
        "alone": [seconds for seconds, _ in alone],
        "together": together,
        "lower_bound": least,
        "peak_gb": peak,
    }
    header = ["command", "seconds", "test accuracy", "faster than the slowest"]
    show(f"{args.epochs} epochs on {images}", header, rows, result)


if __name__ == "__main__":
    run_script(main)
