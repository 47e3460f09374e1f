"""Name the category of a picture.

    python predict.py --input image.jpg --checkpoint checkpoint.pth
    python predict.py --input image.jpg --checkpoint checkpoint.pth --top_k 5

The checkpoint is what train.py wrote. No network and no other weights are needed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

import utils
from model import Classifier, load_checkpoint

CATEGORY_NAMES = "cat_to_name.json"


class Prediction(NamedTuple):
    """One of a picture's most likely categories."""

    category: str  # the folder's name in the training data
    name: str  # what `--category_names` calls it
    probability: float  # 0-1


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` stands in for it.

    Raises:
        UserError: a flag is unknown, missing or has a value that makes no sense.
    """
    parser = utils.ArgumentParser(prog="predict.py", description=__doc__)
    add = parser.add_argument
    add("--input", required=True, help="path of a picture")
    add("--checkpoint", required=True, help="what train.py wrote")
    add(
        "--top_k",
        type=utils.whole_number(1),
        default=1,
        help="how many categories to show (%(default)s)",
    )
    add("--category_names", help=f"JSON file, category: name ({CATEGORY_NAMES}, if it is there)")
    add("--means", type=utils.triple, help="image means (the checkpoint's)")
    add("--stds", type=utils.stds, help="their standard deviations (the checkpoint's)")
    add("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: CUDA or MPS (%(default)s)")
    add("--precision", choices=utils.PRECISIONS, default="auto", help="(%(default)s)")
    add("--verbose", action="store_true", help="print the checkpoint's sha256, to stderr")
    return parser.parse_args(arguments)


@torch.inference_mode()
def predict(
    model: Classifier,
    images: Sequence[str | os.PathLike],
    *,
    top_k: int = 1,
    names: dict[str, str] | None = None,
    means: Sequence[float] | None = None,
    stds: Sequence[float] | None = None,
) -> list[list[Prediction]]:
    """The `top_k` most likely categories of each picture, the likeliest first.

    Args:
        model: from `load_checkpoint`.
        images: paths; they pass through the model in one batch.
        top_k: more than there are categories gives all of them.
        names: category folder -> name; one that is not in it keeps its folder's name.
        means, stds: instead of the checkpoint's.

    Raises:
        UserError: one of the files is no picture that can be read, or a probability no number.
    """
    views = torch.stack([utils.plain_view(utils.load_image(path)) for path in images])
    batch = utils.normalize(views, means or model.means, stds or model.stds)
    device = next(model.parameters()).device
    logits = model(batch.to(device))  # (N, num_classes)
    probs = (logits / model.temperature).softmax(1).cpu()
    if not probs.isfinite().all():
        raise utils.UserError("no finite probabilities: wrong --means or --stds, or checkpoint")
    categories = {index: category for category, index in model.class_to_idx.items()}
    return [
        [
            Prediction(
                categories[index], (names or {}).get(categories[index], categories[index]), p
            )
            for p, index in zip(*(column.tolist() for column in best), strict=True)
        ]
        for best in (row.topk(min(top_k, len(row))) for row in probs)
    ]


def table(predictions: Sequence[Prediction]) -> str:
    """Rank, probability, name and category of one picture's predictions, in aligned columns."""
    rows = [("rank", "probability", "name", "category")]
    for rank, p in enumerate(predictions, 1):
        names = map(utils.one_line, (p.name, p.category))
        rows.append((str(rank), f"{p.probability:.1%}", *names))
    width = max(len(row[2]) for row in rows)
    return "\n".join(f"{row[0]:>4}  {row[1]:>11}  {row[2]:{width}}  {row[3]}" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Predict, as the command line says."""
    args = parse_arguments(arguments)
    device = utils.select_device(args.device)
    names = {}
    if args.category_names or os.path.exists(CATEGORY_NAMES):
        names = utils.load_category_names(args.category_names or CATEGORY_NAMES)
    model = load_checkpoint(args.checkpoint).to(device)
    if args.verbose:
        sha256 = utils.sha256_of(args.checkpoint)
        print(f"{utils.one_line(args.checkpoint)}: sha256 {sha256}", file=sys.stderr)
    precision = utils.select_precision(device, args.precision)
    model.backbone.to(precision, memory_format=torch.channels_last)
    [predictions] = predict(
        model, [args.input], top_k=args.top_k, names=names, means=args.means, stds=args.stds
    )
    print(table(predictions))


if __name__ == "__main__":
    utils.run_script(main, "predict.py")
