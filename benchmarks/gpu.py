"""Measure extraction and prediction on a GPU, end to end, and whether features agree with a CPU's.

    python benchmarks/gpu.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

- Extraction: images per second of `features.extract`, from files to stored features, by workers.
- Prediction: images per second of `predict.predict_stream`, from files to probabilities.
- The limits: decoding alone, by workers; the backbone alone, on images in the GPU's memory, and
  with the copy to it. The slowest of them is where the time goes.
- Agreement: the largest difference of a feature, relative to the largest feature, between the GPU
  and float32 on the CPU, in the GPU's default precision and in float32.

`--device cpu` runs all of it without a GPU, to see that it works.
"""

from __future__ import annotations

import collections
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from common import CPU, data_parser, load_backbone, run_script, show

from model import Backbone, Classifier, Head, fast_copy
from predict import predict_stream
from system.arguments import whole_number
from system.devices import default_batch_size, default_workers, select_device, select_precision
from system.workers import map_ahead
from training import features
from utils import MEANS, STDS, ImageFile, load_plain_view, normalize, read_data_folder

COMPARED = 32  # images


def rate(work: Callable[[], object], images: int, rounds: int) -> float:
    """Return the images per second of `work`: the median of some rounds, after one more."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return images / statistics.median(times[1:])


def consume(make: Callable[[], Iterable]) -> None:
    """Make an iterable and go through it."""
    collections.deque(make(), maxlen=0)


def classifier_of(backbone: Backbone) -> Classifier:
    """Return a classifier of three categories with this backbone and a random head."""
    head = Head(backbone.num_features, 512, 3, 3, 0.5)
    indices = {"a": 0, "b": 1, "c": 2}
    classifier = Classifier(
        backbone, head, arch="vgg16", class_to_idx=indices, means=MEANS, stds=STDS, image_size=224
    )
    return classifier.eval()


def extract_all(backbone: Backbone, root: str, images: list[ImageFile], **settings) -> None:
    """Compute the features of images, into a store that is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        views = features.views_of(images, [0])
        features.extract(backbone, root, views, features.Settings(**settings), folder)


@torch.inference_mode()
def run_backbone(backbone: Backbone, views: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Views (N, 3, 224, 224) uint8, on any device -> features on the CPU, in default batches."""
    size = default_batch_size(device.type, 224)
    batches = [backbone(normalize(batch.to(device))) for batch in views.split(size)]
    return torch.cat([batch.cpu() for batch in batches])


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--device", default="gpu", choices=["cpu", "gpu"])
    parser.add_argument("--images", type=whole_number(1), default=1000)
    parser.add_argument("--rounds", type=whole_number(1), default=5)
    args = parser.parse_args()
    device = select_device(args.device)
    precision, cores = select_precision(device), default_workers(device.type)
    data = read_data_folder(args.data_dir)
    backbone = load_backbone(args.weights)
    images = data.images[: args.images]
    files = [f"{data.root}/{image.path}" for image in images]
    count = len(images)
    loaded = [load_plain_view(file) for file in files[: default_batch_size(device.type, 224)]]
    views = torch.from_numpy(np.stack(loaded))
    fast = fast_copy(backbone, device, precision)
    classifier = classifier_of(backbone).to(device)
    classifier.backbone = fast
    measured = partial(rate, rounds=args.rounds)
    rates = {
        "backbone alone": measured(lambda: run_backbone(fast, views.to(device), device), len(views))
    }
    rates["backbone and copy"] = measured(lambda: run_backbone(fast, views, device), len(views))
    for workers in sorted({1, max(1, cores // 2), cores}):
        decode = partial(map_ahead, load_plain_view, files, workers, 4 * workers)
        rates[f"decoding alone, {workers} threads"] = measured(partial(consume, decode), count)
        stream = partial(predict_stream, classifier, files, workers=workers)
        stream = partial(stream, batch_size=default_batch_size(device.type, 224))
        rates[f"prediction, {workers} threads"] = measured(partial(consume, stream), count)
        settings = {"device": device, "precision": precision, "workers": workers}
        work = partial(extract_all, backbone, data.root, images, **settings)
        rates[f"extraction, {workers} workers"] = measured(work, count)
    expected = run_backbone(fast_copy(backbone, CPU, torch.float32), views[:COMPARED], CPU)
    differences = {}
    for dtype in dict.fromkeys((precision, torch.float32)):
        result = run_backbone(fast_copy(backbone, device, dtype), views[:COMPARED], device)
        difference = (result - expected).abs().max() / expected.max()
        differences[str(dtype).removeprefix("torch.")] = difference.item()
    for name, value in differences.items():
        print(f"largest difference of a feature in {name}: {value:.1e} of the largest one")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    rows = [[side, f"{value:.0f}"] for side, value in rates.items()]
    result = {"device": name, "precision": str(precision), "rates": rates}
    show(f"{count} images on {name}", ["", "images/s"], rows, result | {"differences": differences})


if __name__ == "__main__":
    run_script(main)
