"""Measure how long predict.py takes, against a lower bound.

    python benchmarks/predict_speed.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

- One image: the command `predict.py`, against `import torch, torchvision` and one forward pass of
  torchvision's VGG16 convolutions in a new process (float32, weights without values).
- Many images: what `predict.py --input FOLDER` runs, with decoding, against the bare backbone on
  images that are in memory already, at its fastest batch size (bare_backbone.py): the photographs
  as they are, and enlarged to 12 megapixels.
- The checkpoint, its ONNX file in float32, and in 8-bit integers: size, one image, its memory, many
  images, and the accuracy on valid.

Rounds of the sides alternate.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import torch
from bare_backbone import measure_all, random_images
from common import (
    CPU,
    ROOT,
    data_parser,
    default_precision,
    run_script,
    show,
    timed,
    train_command,
)
from PIL import Image

from model import Classifier, fast_copy, load_checkpoint
from predict import load_predictor, predict_stream
from system.arguments import whole_number
from system.devices import BATCH_SIZES, default_workers
from utils import read_data_folder

BATCH_SIZE = BATCH_SIZES["cpu"]
MANY = 100  # photographs in a round
MEMORY = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
LARGE, LARGE_SIZE = 20, (4000, 3000)  # enlarged photographs in a round, and their pixels
BARE = """
import torch, torchvision
with torch.device("meta"):
    features = torchvision.models.vgg16().features
features = features.to_empty(device="cpu").eval()
with torch.inference_mode():
    features(torch.rand(1, 3, 224, 224))
"""


def time_one_image(photo: str, checkpoint: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of both sides for one image, each a whole command."""
    times: dict[str, list[float]] = {"predict.py": [], "lower bound": []}
    command = [str(ROOT / "predict.py"), "--input", photo, "--checkpoint", checkpoint]
    for _ in range(rounds):
        times["predict.py"].append(timed(*command)[0])
        times["lower bound"].append(timed("-c", BARE)[0])
    return times


def enlarge(photos: list[str], folder: str) -> list[str]:
    """Write some photographs enlarged to LARGE_SIZE, as JPEG; returns their paths."""
    paths = []
    for number, photo in enumerate(photos[:LARGE]):
        image = Image.open(photo).convert("RGB").resize(LARGE_SIZE, Image.Resampling.LANCZOS)
        paths.append(f"{folder}/{number}.jpg")
        image.save(paths[-1], quality=90)
    return paths


@torch.inference_mode()
def time_many_images(
    photos: list[str], large: list[str], model: Classifier, batch_size: int, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds per image of each side, for many images in a process.

    Args:
        batch_size: of the bare backbone.
    """
    times: dict[str, list[float]] = {"photographs": [], "12 megapixels": [], "lower bound": []}
    precision = default_precision()
    model.backbone = fast_copy(model.backbone, CPU, precision)
    images = random_images(batch_size, precision)
    model.backbone.features(images)  # the first pass prepares kernels
    for first in range(0, MANY * rounds, MANY):
        some = [photos[i % len(photos)] for i in range(first, first + MANY)]
        for name, paths in (("photographs", some), ("12 megapixels", large)):
            start, workers = time.perf_counter(), default_workers("cpu")
            for item in predict_stream(model, paths, batch_size=BATCH_SIZE, workers=workers):
                assert not item.error, item
            times[name].append((time.perf_counter() - start) / len(paths))
            start, passes = time.perf_counter(), len(paths) // batch_size
            for _ in range(passes):
                model.backbone.features(images)
            times["lower bound"].append((time.perf_counter() - start) / (passes * batch_size))
    return times


def export(checkpoint: str, train: str) -> dict[str, str]:
    """Write both ONNX files of a checkpoint; returns the paths of all three, by their names."""
    files = {"checkpoint": checkpoint, "ONNX, float32": f"{checkpoint}.onnx"}
    files["ONNX, int8"] = f"{checkpoint}.int8.onnx"
    command = [str(ROOT / "predict.py"), "--checkpoint", checkpoint, "--to_onnx"]
    timed(*command, files["ONNX, float32"])
    timed(*command, files["ONNX, int8"], "--int8", "--input", train)
    return files


def compare_files(
    files: dict[str, str], photos: list[str], labeled: list[tuple[str, int]], rounds: int
) -> dict[str, dict]:
    """Return what the same model costs in each of `files`, and how accurate it is on `labeled`."""
    models, results = {}, {}
    for name, path in files.items():
        models[name] = load_predictor(path)
        models[name].prepare("cpu", "auto")
        results[name] = {"megabytes": os.path.getsize(path) / 1e6, "start": [], "image": []}
    for first in range(0, MANY * rounds, MANY):
        some = [photos[i % len(photos)] for i in range(first, first + MANY)]
        for name, path in files.items():
            command = [str(ROOT / "predict.py"), "--input", photos[0], "--checkpoint", path]
            results[name]["start"].append(timed(*command)[0])
            start = time.perf_counter()
            for item in predict_stream(models[name], some, batch_size=BATCH_SIZE):
                assert not item.error, item
            results[name]["image"].append((time.perf_counter() - start) / MANY)
    for name, path in files.items():
        items = predict_stream(models[name], [path for path, _ in labeled])
        pairs = zip(items, labeled, strict=True)
        correct = sum(int(item.probs.argmax()) == label for item, (_, label) in pairs)
        results[name]["accuracy"] = correct / len(labeled)
        command = [str(ROOT / "predict.py"), "--input", photos[0], "--checkpoint", path]
        results[name]["memory"] = int(timed("-c", MEMORY, *command)[1]) * 1024 / 1e6
    return results


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=9)
    args = parser.parse_args()
    data = read_data_folder(args.data_dir)
    photos = [f"{data.root}/{path}" for path in data.paths("valid") + data.paths("test")]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/checkpoint.pth"
        timed(*train_command(args.data_dir, args.weights, checkpoint))
        single = time_one_image(photos[0], checkpoint, args.rounds)
        bare = measure_all(args.weights)["huge"]
        batch_size = int(min(bare, key=bare.__getitem__))
        valid = [f"{data.root}/{path}" for path in data.paths("valid")]
        labeled = list(zip(valid, data.labels("valid"), strict=True))
        files = export(checkpoint, f"{data.root}/train")
        compared = compare_files(files, photos, labeled, args.rounds)
        large, model = enlarge(photos, folder), load_checkpoint(checkpoint)
        many = time_many_images(photos, large, model, batch_size, args.rounds)
    rows = []
    sides = [("one image, whole command", single["predict.py"], single["lower bound"])]
    sides += [(f"many images, {x}", many[x], many["lower bound"]) for x in list(many)[:2]]
    for name, ours, least in sides:
        median, bound = statistics.median(ours), statistics.median(least)
        spread = f"{min(ours):.3f}-{max(ours):.3f}"
        rows.append([name, f"{median:.3f} ({spread})", f"{bound:.3f}", f"{median / bound:.2f} x"])
    columns = ["MB", "one image, s", "its memory, MB", "many, ms an image", "accuracy on valid"]
    table = []
    for name, values in compared.items():
        start, image = (statistics.median(values[key]) for key in ("start", "image"))
        row = [f"{values['megabytes']:.0f}", f"{start:.2f}", f"{values['memory']:.0f}"]
        table.append([name, *row, f"{1000 * image:.0f}", f"{values['accuracy']:.2%}"])
    show("The same model in three files", ["", *columns], table, compared)
    header = ["", "seconds, median (range)", "lower bound", "ratio"]
    result = {
        "photos": len(photos),
        "one_image": single,
        "bare_backbone": bare,
        "many_images": many,
    }
    show(f"{args.rounds} rounds", header, rows, result)


if __name__ == "__main__":
    run_script(main)
