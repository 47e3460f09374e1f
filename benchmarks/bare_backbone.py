"""Measure the frozen convolutions alone, by batch size, on images that are in memory already.

    python benchmarks/bare_backbone.py --weights $VGG16_WEIGHTS

No program that runs them can take less time than the fastest row: it is the lower bound of
train_speed.py and predict_speed.py. In each round, every batch size has its turn. Large arrays are
allocated as the system does (default) or in huge pages (huge), each in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import time

import torch
from common import CPU, default_precision, load_backbone, run_script, show, timed, weights_parser

from model import fast_copy
from system.arguments import whole_number

BATCH_SIZES = (1, 2, 4, 8, 16)
ALLOCATIONS = {"default": "0", "huge": "1"}  # values of torch's variable THP_MEM_ALLOC_ENABLE


def random_images(size: int, precision: torch.dtype) -> torch.Tensor:
    """Return (size, 3, 224, 224), in the order of memory in which the convolutions run."""
    dtype = torch.float32 if precision == torch.int8 else precision
    images = torch.rand(size, 3, 224, 224, dtype=dtype)
    return images.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def measure(weights: str, rounds: int) -> dict[str, float]:
    """Return the median seconds per image by batch size, in this process."""
    precision = default_precision()
    layers = fast_copy(load_backbone(weights), CPU, precision).features
    times: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    for number in range(rounds + 1):  # the first round prepares kernels
        for size, measured in times.items():
            images = random_images(size, precision)
            start = time.perf_counter()
            layers(images)
            if number:
                measured.append((time.perf_counter() - start) / size)
    return {str(size): statistics.median(measured) for size, measured in times.items()}


def measure_all(weights: str, rounds: int = 7) -> dict[str, dict[str, float]]:
    """Return the seconds per image by allocation and batch size; each allocation in a process."""
    command = (__file__, "--weights", weights, "--rounds", str(rounds), "--one")
    return {
        name: json.loads(timed(*command, THP_MEM_ALLOC_ENABLE=value)[1])
        for name, value in ALLOCATIONS.items()
    }


def lower_bound(weights: str) -> float:
    """Return the least seconds per image over all batch sizes and allocations."""
    return min(min(times.values()) for times in measure_all(weights).values())


def main() -> None:
    parser = weights_parser(__doc__)
    parser.add_argument("--rounds", type=whole_number(1), default=7)
    parser.add_argument("--one", action="store_true", help="as this process allocates; print JSON")
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(measure(args.weights, args.rounds)))
    measured = measure_all(args.weights, args.rounds)
    rows = [
        [name, *(f"{1000 * seconds:.1f}" for seconds in times.values())]
        for name, times in measured.items()
    ]
    title = "Convolutions alone, milliseconds per image, medians"
    show(title, ["allocation, batch size", *map(str, BATCH_SIZES)], rows, measured)


if __name__ == "__main__":
    run_script(main)
