"""Prediction time of predict.py against the bare minimum.

    python benchmarks/predict_speed.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

- One picture from a cold start: `predict.py`, against `import torch, torchvision` and one forward
  pass of torchvision's VGG16 convolutions (float32, values not even set). Runs alternate.
- Many pictures: what `predict.py --input FOLDER` runs, decoding included, against the bare
  backbone on batches that are in memory already. Rounds alternate.
- The same answers: top-1 in bfloat16 against float32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import ROOT, Floor, show, timed

from features import BATCH_SIZES, fast_copy
from model import load_checkpoint
from predict import answer, predict
from utils import default_workers, read_data_folder, select_precision

BARE = """
import torch, torchvision
with torch.device("meta"):
    features = torchvision.models.vgg16().features
features = features.to_empty(device="cpu").eval()
with torch.inference_mode():
    features(torch.rand(1, 3, 224, 224))
"""

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data_dir", default=os.environ.get("FLOWERS_DIR"))
parser.add_argument("--weights", default=os.environ.get("VGG16_WEIGHTS"))
parser.add_argument("--rounds", type=int, default=9)


def main() -> None:
    args = parser.parse_args()
    data = read_data_folder(args.data_dir)
    photos = [Path(args.data_dir, path) for path in data.paths["valid"] + data.paths["test"]]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/c.pth"
        command = [str(ROOT / "train.py"), "--output_cat", str(len(data.class_to_idx))]
        command += [
            "--data_dir",
            args.data_dir,
            "--weights",
            args.weights,
            "--save_dir",
            checkpoint,
        ]
        timed(*command)
        one = {"predict.py": [], "bare": []}
        for _ in range(args.rounds):
            call = [str(ROOT / "predict.py"), "--input", str(photos[0]), "--checkpoint", checkpoint]
            one["predict.py"].append(timed(*call)[0])
            one["bare"].append(timed("-c", BARE)[0])

        model = load_checkpoint(checkpoint)
        floor, batch, device = Floor("vgg16", args.weights), BATCH_SIZES["cpu"], torch.device("cpu")
        answers, many = {}, {"predict.py": [], "bare": []}
        for precision in ("float32", str(select_precision(device))[6:]):
            model = load_checkpoint(checkpoint)
            model.backbone.to(getattr(torch, precision), memory_format=torch.channels_last)
            groups = [photos[i : i + batch] for i in range(0, len(photos), batch)]
            answers[precision] = [p[0].category for group in groups for p in predict(model, group)]
        model.backbone = fast_copy(model.backbone, device, select_precision(device))
        for start in range(0, 40 * args.rounds, 40):
            some = [str(photos[i % len(photos)]) for i in range(start, start + 40)]
            many["bare"].append(floor.seconds())
            begin = time.perf_counter()
            all(answer(model, some, batch_size=batch, workers=default_workers(device)))
            many["predict.py"].append((time.perf_counter() - begin) / len(some))

    result = {"photos": len(photos), "one": one, "many": many}
    first, last = answers["float32"], list(answers.values())[-1]
    result["same_top_1"] = sum(a == b for a, b in zip(first, last, strict=True)) / len(first)
    rows = []
    for what, times in (("one picture, whole command", one), ("many pictures, each", many)):
        mine, bare = (statistics.median(t) for t in times.values())
        spread = f"{min(times[list(times)[0]]):.3f}-{max(times[list(times)[0]]):.3f}"
        rows.append([what, f"{mine:.3f} ({spread})", f"{bare:.3f}", f"{mine / bare:.2f} x"])
    header = ["", "seconds, median (range)", "bare minimum", "ratio"]
    print(f"same top-1 in {list(answers)[-1]} as in float32: {result['same_top_1']:.1%}")
    show(f"{args.rounds} rounds", header, rows, result)


if __name__ == "__main__":
    main()
