"""Name the category of a picture.

    python predict.py --input image.jpg --checkpoint checkpoint.pth
    python predict.py --input image.jpg --checkpoint checkpoint.pth --top_k 5 --plot answer.png

The checkpoint is what train.py wrote. No network and no other weights are needed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

import utils
from model import Classifier, heat_map, load_checkpoint

PLOTTED = 5  # categories that --plot shows at least
BAR = 20  # characters, of a probability of 1


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
    add = parser.add_argument_group("what to name").add_argument
    add("--input", required=True, help="path of a picture")
    add("--checkpoint", required=True, help="what train.py wrote")
    add("--means", type=utils.triple, help="image means (the checkpoint's)")
    add("--stds", type=utils.stds, help="their standard deviations (the checkpoint's)")
    add = parser.add_argument_group("answer").add_argument
    top = "how many categories to show (%(default)s)"
    add("--top_k", type=utils.whole_number(1), default=1, help=top)
    add("--category_names", help=f"JSON file, category: name ({utils.CATEGORY_NAMES}, if there)")
    add("--plot", metavar="FILE.png", help="draw the picture beside its likeliest categories")
    add("--heatmap", metavar="FILE.png", help="draw which places spoke for the answer")
    add("--verbose", action="store_true", help="print the checkpoint's sha256, to stderr")
    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: CUDA or MPS (%(default)s)")
    add("--precision", choices=utils.PRECISIONS, default="auto", help="(%(default)s)")
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


@torch.inference_mode()
def explain(
    model: Classifier,
    image: str | os.PathLike,
    category: str,
    *,
    means: Sequence[float] | None = None,
    stds: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Where a picture speaks for a category (a folder's name), be it the likeliest one or not.

    Returns:
        The part of the picture that the network sees, (224, 224, 3) uint8, and the heat of its
        places, (14, 14) float32, 0-1; see `model.heat_map`.

    Raises:
        UserError: the file is no picture that can be read.
    """
    view = utils.plain_view(utils.load_image(image))
    [seen] = utils.normalize(view[None], means or model.means, stds or model.stds)
    device = next(model.parameters()).device
    heat = heat_map(model, seen.to(device), model.class_to_idx[category])
    return view.permute(1, 2, 0).numpy(), heat.numpy()


def table(predictions: Sequence[Prediction]) -> str:
    """Rank, probability, name, category and a bar of one picture's predictions, in columns."""
    rows = [("rank", "probability", "name", "category", "")]
    block = "#" if "\u2588".encode(sys.stdout.encoding or "ascii", "ignore") == b"" else "\u2588"
    for rank, p in enumerate(predictions, 1):
        names = map(utils.one_line, (p.name, p.category))
        rows.append((str(rank), f"{p.probability:.1%}", *names, block * round(BAR * p.probability)))
    name, category = (max(len(row[column]) for row in rows) for column in (2, 3))
    lines = [f"{r[0]:>4}  {r[1]:>11}  {r[2]:{name}}  {r[3]:{category}}  {r[4]}" for r in rows]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Predict, as the command line says."""
    args = parse_arguments(arguments)
    device = utils.select_device(args.device)
    names = utils.load_category_names(args.category_names)
    model = load_checkpoint(args.checkpoint).to(device)
    if args.verbose:
        sha256 = utils.sha256_of(args.checkpoint)
        print(f"{utils.one_line(args.checkpoint)}: sha256 {sha256}", file=sys.stderr)
    precision = utils.select_precision(device, args.precision)
    model.backbone.to(precision, memory_format=torch.channels_last)
    top_k = max(args.top_k, PLOTTED)
    overrides = {"means": args.means, "stds": args.stds}
    [predictions] = predict(model, [args.input], top_k=top_k, names=names, **overrides)
    print(table(predictions[: args.top_k]), flush=True)
    if args.plot or args.heatmap:
        import plots  # here, because it takes a second
    if args.plot:
        image, caption = utils.load_thumbnail(args.input), os.path.basename(args.input)
        shown, probs = [p.name for p in predictions], [p.probability for p in predictions]
        utils.save_figure(plots.prediction_bars(image, shown, probs, caption), args.plot)
    if args.heatmap:
        best = predictions[0]
        seen, heat = explain(model, args.input, best.category, **overrides)
        utils.save_figure(plots.heat_map(seen, heat, best.name), args.heatmap)


if __name__ == "__main__":
    utils.run_script(main, "predict.py")
