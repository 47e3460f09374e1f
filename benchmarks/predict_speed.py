"""Measure how long predict.py takes, against a lower bound.

    python benchmarks/predict_speed.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

- One image: the command `predict.py`, against `import torch, torchvision` and one forward pass of
  torchvision's VGG16 convolutions in a new process (float32, weights without values).
- Many images: what `predict.py --input FOLDER` runs, with decoding, against the bare backbone on
  images that are in memory already, at its fastest batch size (bare_backbone.py): the photographs
  as they are, and enlarged to 12 megapixels.
- Whether the predictions in the default precision are those in float32.

Rounds of the two sides alternate.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import torch
from bare_backbone import measure_all, random_images
from common import CPU, ROOT, data_parser, run_script, show, timed, train_command
from PIL import Image

from model import Classifier, fast_copy, load_checkpoint
from predict import predict, predict_stream
from support.arguments import whole_number
from support.devices import BATCH_SIZES, default_workers, select_precision
from utils import read_data_folder

BATCH_SIZE = BATCH_SIZES["cpu"]
MANY = 100  # photographs in a round
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
    precision = select_precision(CPU)
    model.backbone = fast_copy(model.backbone, CPU, precision)
    images = random_images(batch_size, precision)
    model.backbone.features(images)  # the first pass prepares kernels
    for first in range(0, MANY * rounds, MANY):
        some = [photos[i % len(photos)] for i in range(first, first + MANY)]
        for name, paths in (("photographs", some), ("12 megapixels", large)):
            start, workers = time.perf_counter(), default_workers(CPU)
            for item in predict_stream(model, paths, batch_size=BATCH_SIZE, workers=workers):
                assert not item.error, item
            times[name].append((time.perf_counter() - start) / len(paths))
            start, passes = time.perf_counter(), len(paths) // batch_size
            for _ in range(passes):
                model.backbone.features(images)
            times["lower bound"].append((time.perf_counter() - start) / (passes * batch_size))
    return times


def compare_precisions(photos: list[str], checkpoint: str) -> float:
    """Return the fraction of predictions in the default precision that are those in float32."""
    predictions = {}
    for precision in dict.fromkeys((torch.float32, select_precision(CPU))):
        model = load_checkpoint(checkpoint)
        model.backbone.to(precision, memory_format=torch.channels_last)
        batches = [photos[i : i + BATCH_SIZE] for i in range(0, len(photos), BATCH_SIZE)]
        predictions[precision] = [p[0].category for batch in batches for p in predict(model, batch)]
    first, *_, last = predictions[torch.float32], *predictions.values()
    return sum(a == b for a, b in zip(first, last, strict=True)) / len(photos)


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=9)
    args = parser.parse_args()
    data = read_data_folder(args.data_dir)
    photos = [f"{data.root}/{path}" for path in data.paths["valid"] + data.paths["test"]]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/checkpoint.pth"
        timed(*train_command(args.data_dir, args.weights, checkpoint))
        single = time_one_image(photos[0], checkpoint, args.rounds)
        bare = measure_all(args.weights)["huge"]
        batch_size = int(min(bare, key=bare.__getitem__))
        same_top_1 = compare_precisions(photos, checkpoint)
        large, model = enlarge(photos, folder), load_checkpoint(checkpoint)
        many = time_many_images(photos, large, model, batch_size, args.rounds)
    rows = []
    sides = [("one image, whole command", single["predict.py"], single["lower bound"])]
    sides += [(f"many images, {x}", many[x], many["lower bound"]) for x in list(many)[:2]]
    for name, ours, least in sides:
        median, bound = statistics.median(ours), statistics.median(least)
        spread = f"{min(ours):.3f}-{max(ours):.3f}"
        rows.append([name, f"{median:.3f} ({spread})", f"{bound:.3f}", f"{median / bound:.2f} x"])
    precision = str(select_precision(CPU)).removeprefix("torch.")
    print(f"same top-1 in {precision} as in float32: {same_top_1:.1%}")
    header = ["", "seconds, median (range)", "lower bound", "ratio"]
    result = {
        "photos": len(photos),
        "one_image": single,
        "bare_backbone": bare,
        "many_images": many,
        "same_top_1": same_top_1,
    }
    show(f"{args.rounds} rounds", header, rows, result)


if __name__ == "__main__":
    run_script(main)
