"""Compare the settings of feature extraction: batch size, layout, precision, decoding, workers.

    python benchmarks/choices.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS
    python benchmarks/choices.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS --device gpu

The last table compares the whole extraction with decoding alone and with the backbone alone: it
cannot be faster than the slower of the two.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import data_parser, load_backbone, run_script, show
from PIL import Image

from model import Backbone, fast_copy
from system.arguments import whole_number
from system.devices import BATCH_SIZES, select_device, select_precision
from training.features import Settings, extract, views_of
from utils import load_views, plain_view, read_data_folder


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--rounds", type=whole_number(1), default=5)
    parser.add_argument("--images", type=whole_number(1), default=200)
    args = parser.parse_args()
    device = select_device(args.device)
    backbone = load_backbone(args.weights)
    backbone_table(backbone, device, args.rounds)
    decoding_table(args)
    extraction_table(backbone, device, args)


@torch.inference_mode()
def backbone_table(backbone: Backbone, device: torch.device, rounds: int) -> None:
    """Measure milliseconds per image by batch size, precision and layout, in turn each round."""
    sides = {}
    for dtype in ("float32", "bfloat16"):
        for layout in ("contiguous_format", "channels_last"):
            side = copy.deepcopy(backbone).to(
                device, getattr(torch, dtype), memory_format=getattr(torch, layout)
            )
            sides[f"{dtype} {layout}"] = (side.features, dtype, layout)
    if device.type == "cpu":
        integers = fast_copy(backbone, device, torch.int8)
        sides["int8"] = (integers.features, "float32", "contiguous_format")
    compiled = copy.deepcopy(sides["bfloat16 channels_last"][0])
    sides["torch.compile, bfloat16"] = (torch.compile(compiled), "bfloat16", "channels_last")
    sizes = (1, 2, 4, 8, 32) if device.type == "cpu" else (8, 32, 128, 256)
    times = {(name, size): [] for name in sides for size in sizes}
    failed = {}
    for number in range(rounds + 1):  # the first round is not counted
        for (name, size), measured in times.items():
            if name in failed:
                continue
            run, dtype, layout = sides[name]
            images = torch.rand(size, 3, 224, 224, device=device, dtype=getattr(torch, dtype))
            images = images.contiguous(memory_format=getattr(torch, layout))
            start = time.perf_counter()
            try:
                run(images).sum().item()
            except Exception as error:  # torch.compile needs a C++ compiler
                failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
                continue
            if number:
                measured.append((time.perf_counter() - start) / size * 1000)
    result = {
        f"{name}, batch {size}": statistics.median(measured) if measured else failed[name]
        for (name, size), measured in times.items()
    }
    rows = [
        [name, *(f"{statistics.median(t):.0f}" if (t := times[name, s]) else "-" for s in sizes)]
        for name in sides
    ]
    header = ["batch size", *sizes]
    show("Convolutions, milliseconds per image", header, rows, result | {"failed": failed})


def decoding_table(args: argparse.Namespace) -> None:
    """Measure milliseconds for the plain view of a JPEG, with and without draft mode."""
    data = read_data_folder(args.data_dir)
    photo = Image.open(Path(args.data_dir, data.paths("train")[0])).convert("RGB")
    rows, result = [], {}
    for width, height in (photo.size, (1600, 1200), (4000, 3000)):
        file = io.BytesIO()
        photo.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
        times, views = {False: [], True: []}, {}
        for _ in range(args.rounds):
            for draft in times:
                start = time.perf_counter()
                image = Image.open(io.BytesIO(file.getvalue()))
                if draft:
                    image.draft("RGB", (512, 512))  # at least twice what the view needs
                views[draft] = plain_view(image.convert("RGB"))
                times[draft].append((time.perf_counter() - start) * 1000)
        full, draft = (statistics.median(t) for t in times.values())
        difference = float(np.abs(views[True].astype(float) - views[False]).mean())
        rows.append([f"{width} x {height}", f"{full:.1f}", f"{draft:.1f}", f"{difference:.2f}"])
        result[f"{width} x {height}"] = {"full": full, "draft": draft, "difference": difference}
    header = ["JPEG", "full decoding, ms", "draft mode, ms", "mean difference of a pixel, 0-255"]
    show("Decoding and resizing an image", header, rows, result)


def extraction_table(backbone: Backbone, device: torch.device, args: argparse.Namespace) -> None:
    """Measure images per second, end to end, by number of workers; and of the backbone alone."""
    data = read_data_folder(args.data_dir)
    views = views_of(data.of("train")[: args.images], [0])
    precision = select_precision(device, has_int8=True)
    bare = fast_copy(backbone, device, precision)
    batch = torch.rand(BATCH_SIZES[device.type], 3, 224, 224, device=device)
    workers = (0, 1, 2, 4) if device.type == "cpu" else (1, 4, 8, 16)
    rates = {name: [] for name in ("backbone alone", *workers)}
    for _ in range(args.rounds):
        for name, measured in rates.items():
            start, count = time.perf_counter(), 0
            if name == "backbone alone":
                with torch.inference_mode():
                    while count < len(views):
                        bare(batch).cpu()
                        count += len(batch)
            else:
                settings = Settings(device=device, precision=precision, workers=name)
                with tempfile.TemporaryDirectory() as folder:
                    extract(backbone, args.data_dir, views, settings, folder, strict=True)
                count = len(views)
            measured.append(count / (time.perf_counter() - start))
    result = {str(name): statistics.median(measured) for name, measured in rates.items()}
    rows = [
        [name if isinstance(name, str) else f"extract(), {name} workers", f"{rate:.1f}"]
        for name, rate in zip(rates, result.values(), strict=True)
    ]
    start = time.perf_counter()
    for view in views[:50]:
        load_views(args.data_dir, view.path, view.digest, [0])
    decoding = len(views[:50]) / (time.perf_counter() - start)
    rows.append(["decoding alone, one process", f"{decoding:.1f}"])
    show("Images per second", ["", "images/s"], rows, result | {"decoding": decoding})


if __name__ == "__main__":
    run_script(main)
