"""Predict the category of an image, or of a million images.

    python predict.py --input image.jpg --checkpoint checkpoint.pth
    python predict.py --input photos --checkpoint checkpoint.pth --output names.csv
    torchrun --nproc_per_node=2 predict.py --input photos --checkpoint c.pth --output names.csv
    python predict.py --evaluate flowers/test --checkpoint checkpoint.pth
    python predict.py --input image.jpg --checkpoint flowers.onnx

The checkpoint is what train.py wrote, or an ONNX file of --to_onnx, which needs no torch.
Predictions go to standard output or a file, messages to standard error. The exit status is 1 if an
image could not be read, and 2 after any other error.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # `python -P` does not
    from system import scripts

    scripts.prepare("predict.py")

import argparse
import collections
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from tqdm import tqdm

import utils
from evaluation.metrics import format_evaluation, format_unknown
from image_files import folders
from image_files.names import display_names
from inference import results
from inference.onnx_model import OnnxModel, is_onnx
from inference.output_file import OutputFile
from inference.predictor import Predictor, Probabilities
from system import arguments, devices, scripts
from system.arguments import whole_number
from system.files import save_figure, sha256_of
from system.messages import is_first_process, one_line, warn
from system.outputs import check_output, check_outputs
from system.scripts import import_optional
from system.torchrun import is_alone, process_group, scatter_and_gather

SETTINGS = ("top_k", "min_probability", "min_novelty")  # that --resume needs unchanged
MIN_PLOTTED = 5  # categories in the figure of --plot
CALIBRATION_IMAGES = 32  # of --int8; 8 are as good (benchmarks/README.md)
CALIBRATED = "goes with --to_onnx FILE, and --input flowers/train to calibrate on"
OUTPUTS = {"plot": "figure", "heatmap": "figure", "to_onnx": "ONNX model", "output": "output"}


def parse_arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; raises UserError if a flag is unknown, missing or invalid."""
    parser = arguments.ArgumentParser(
        prog="predict.py", description=__doc__, triples=("--means", "--stds")
    )
    add = parser.add_argument_group("images").add_argument
    add("--input", nargs="+", metavar="PATH", help="images, folders, patterns, or - for stdin")
    add("--evaluate", metavar="DIR", help="evaluate on DIR/<category>/*, or on DIR/test")
    add("--unknown", nargs="+", metavar="PATH", help="with --evaluate: images of no category")
    add("--checkpoint", help="what train.py wrote, or an ONNX file of --to_onnx; required")
    add("--means", type=arguments.triple, help="image means (the checkpoint's)")
    add("--stds", type=arguments.positive_triple, help="their deviations (the checkpoint's)")
    add = parser.add_argument_group("predictions").add_argument
    add("--top_k", type=whole_number(1), default=1, help="how many categories (%(default)s)")
    add("--category_names", help="JSON file, category: name (the checkpoint's)")
    minimum = f"a less probable prediction is {results.UNKNOWN!r} (%(default)s)"
    add("--min_probability", type=arguments.fraction, default=0.0, metavar="P", help=minimum)
    minimum = f"a prediction of an image with less is {results.UNKNOWN!r} (%(default)s)"
    add("--min_novelty", type=arguments.fraction, default=0.0, metavar="N", help=minimum)
    add("--plot", metavar="FILE.png", help="draw the image and its most likely categories")
    add("--heatmap", metavar="FILE.png", help="draw which locations support the prediction")
    add("--output", metavar="FILE", help="write a .csv, .jsonl or .json instead of a table")
    add("--format", choices=results.FORMATS, help="of standard output (table, without --output)")
    add("--resume", action="store_true", help="skip images that --output already has")
    add("--to_onnx", metavar="FILE", help="write an ONNX file; compare it on --input")
    add("--int8", action="store_true", help=f"of 8-bit integers; {CALIBRATED}")
    add("--quiet", action="store_true", help="no progress, no warnings, no summary")
    add("--verbose", action="store_true", help="print the checkpoint's sha256, to stderr")
    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: CUDA or MPS (%(default)s)")
    add("--precision", choices=devices.PRECISIONS, default="auto", help="(%(default)s)")
    add("--batch_size", type=whole_number(1), help="images in a pass (4 on a CPU, 128 on a GPU)")
    add("--workers", type=whole_number(0, 256), help="threads that decode images (by the cores)")
    args = parser.parse_args(command_line)
    check_combinations(args, parser.error)
    return args


def check_combinations(args: argparse.Namespace, error: Callable[[str], object]) -> None:
    """Call `error` if flags are missing or do not go together."""
    onnx, torch = is_onnx(args.checkpoint or ""), "needs a checkpoint and torch, not an ONNX file"
    more = args.input or args.output or args.format
    is_one = args.input is not None and is_single(args)
    is_comparable = not args.evaluate and (args.int8 or args.input is None or is_one)
    figures = args.heatmap or (args.plot and not args.evaluate)
    kind, new = results.format_of(args.output or "names.csv"), args.to_onnx or "a.onnx"
    ending = f"--output {args.output}: the name has to end in .csv, .jsonl or .json"
    for is_wrong, message in (
        (not (args.input or args.evaluate or args.to_onnx), "--input PATH is missing"),
        (not args.checkpoint, "--checkpoint FILE is missing: what train.py wrote"),
        (onnx and args.heatmap, f"--heatmap {torch}"),
        (onnx and args.to_onnx, f"--to_onnx {torch}"),
        (onnx and not is_alone(), f"torchrun {torch}"),
        (args.evaluate and more, "--evaluate goes without --input, --output and --format"),
        (args.unknown and not args.evaluate, "--unknown goes with --evaluate"),
        (not is_onnx(new), f"--to_onnx {new}: the name has to end in .onnx"),
        (args.int8 and not (args.to_onnx and args.input), f"--int8 {CALIBRATED}"),
        (args.to_onnx and not is_comparable, "--to_onnx goes with one image as --input, or none"),
        (figures and not is_one, "--plot and --heatmap are for one image"),
        (args.plot and args.plot == args.heatmap, "--plot and --heatmap have to be two files"),
        (args.resume and not args.output, "--resume goes with --output FILE"),
        (kind not in results.FILE_FORMATS, ending),
    ):
        if is_wrong:
            error(message)


def is_single(args: argparse.Namespace) -> bool:
    """Return whether predictions for one image are to be printed for a person."""
    if args.evaluate or args.output or args.format or len(args.input) > 1:
        return False
    [word] = args.input
    return not (word == "-" or os.path.isdir(word) or folders.is_pattern(word))


# ---------------------------------------------------------------- the library


def load_predictor(path: str | os.PathLike) -> Predictor:
    """Load a checkpoint of train.py, or, if its name ends in .onnx, an ONNX file of --to_onnx.

    Raises:
        UserError: the file is missing or not one of these, or it needs a package that is missing.
    """
    if is_onnx(path):
        return OnnxModel(path, utils.IMAGE_SIZES, utils.describe_plain_view)
    import_optional(f"{path}: a checkpoint", "torch")
    from model import load_checkpoint  # here, because it imports torch

    return load_checkpoint(path)


def predict(
    model: Predictor,
    images: Sequence[str | os.PathLike],
    *,
    top_k: int = 1,
    names: dict[str, str] | None = None,
    min_probability: float = 0.0,
    min_novelty: float = 0.0,
    means: Sequence[float] | None = None,
    stds: Sequence[float] | None = None,
) -> list[list[results.Prediction]]:
    """Return the `top_k` most likely categories of each image, the most likely first.

    Args:
        model: from `load_predictor`; several threads may share it.
        images: paths; they pass through the model in one batch. `predict_stream` takes any number.
        top_k: a number above the number of categories returns all of them.
        names: category folder -> name, instead of the checkpoint's.
        min_probability, min_novelty: what is below is "unknown"; see `most_likely`.
        means, stds: replace the checkpoint's.

    Raises:
        UserError: an image cannot be read, a probability is not finite, or there is no novelty.
    """
    model.check_novelty(min_novelty)
    views = [utils.load_plain_view(path, model.image_size) for path in images]
    outputs = zip(*model.predict_views(views, means, stds), strict=True)
    names = model.names if names is None else names
    settings = (model.categories, names, top_k, min_probability, min_novelty)
    return [results.most_likely(row, float(novelty), *settings) for row, novelty in outputs]


def predict_stream(
    model: Predictor,
    paths: Iterable[str],
    *,
    batch_size: int = 4,
    workers: int = 1,
    report: Callable[[str], object] = warn,
) -> Iterator[Probabilities]:
    """Yield probabilities and novelty of any number of images, in their order, batch by batch.

    Args:
        workers: threads that decode a few images ahead; 0 decodes each image when it is its turn.
        report: called with a line if something in a file had to be guessed.

    Raises:
        UserError: a probability is not finite. An image that cannot be read yields an error.
    """
    load = partial(utils.load_plain_view, size=model.image_size, report=report)
    return model.stream(paths, load, batch_size, workers)


# ---------------------------------------------------------------- the command line


def main(command_line: list[str] | None = None) -> None:
    """Predict, evaluate or export, as the command line says."""
    args = parse_arguments(command_line)
    inputs = [*(args.input or ()), args.checkpoint, args.category_names, utils.CATEGORY_NAMES]
    folders.check_words(args.input or ())
    check_outputs(vars(args), OUTPUTS, inputs)
    if args.plot or args.heatmap:
        import_optional("a figure", "matplotlib")
    if args.to_onnx or is_single(args):
        alone = export if args.to_onnx else predict_one
        return alone(args) if is_first_process() else None
    with process_group():
        model = load_model(args)
        work = evaluate if args.evaluate else predict_many
        unreadable = (
            work(model, args) if is_first_process() else len(list(stream_all(model, [], args)))
        )
    if unreadable:
        sys.exit(1)


def load_model(args: argparse.Namespace) -> Predictor:
    """Load the checkpoint, with what the flags replace, to their device and in their precision.

    The default file of names is used only for a checkpoint of format 4, which has none.
    """
    model = load_predictor(args.checkpoint)
    model.check_novelty(args.min_novelty)
    model.means, model.stds = args.means or model.means, args.stds or model.stds
    if args.category_names or not model.names:
        model.names = utils.load_category_names(args.category_names)
        if model.names and not (args.category_names or args.quiet or not is_first_process()):
            warn(f"{args.checkpoint} has no names of categories: used {utils.CATEGORY_NAMES}")
    if args.verbose:
        print(f"{one_line(args.checkpoint)}: sha256 {sha256_of(args.checkpoint)}", file=sys.stderr)
    if not args.to_onnx:  # whose weights bfloat16 would round
        model.prepare(args.device, args.precision)
    return model


def predict_one(args: argparse.Namespace) -> None:
    """Print the predictions for one image, and draw the figures that are asked for."""
    model, [path] = load_model(args), args.input
    image = utils.load_image(path, size=model.image_size)
    view = utils.plain_view(image, model.image_size)
    [probs], [novelty] = model.predict_views(view[None])
    likely = partial(results.most_likely, probs, float(novelty), model.categories, model.names)
    table = results.format_table(likely(args.top_k, args.min_probability, args.min_novelty))
    print(table, flush=True)
    if not (args.plot or args.heatmap):
        return
    from evaluation import plots  # here, because it takes a second

    best = likely(max(args.top_k, MIN_PLOTTED))
    best_names = display_names([p.category for p in best], model.names)
    if args.plot:
        caption = os.path.basename(path) + f" {results.UNLIKE}" * best[0].is_unusual()
        bars = (best_names, [p.probability for p in best], caption)
        save_figure(plots.prediction_bars(utils.thumbnail(image), *bars), args.plot)
    if args.heatmap:
        from model import heat_map

        heat = heat_map(model, view, best[0].category).numpy()  # type: ignore[arg-type]
        save_figure(plots.heat_map(view.transpose(1, 2, 0), heat, best_names[0]), args.heatmap)


def stream_all(
    model: Predictor, paths: Iterable[str], args: argparse.Namespace
) -> Iterator[Probabilities]:
    """Yield the probabilities of many images; torchrun's other processes compute a share."""
    model.prepare_for_many()
    kind, workers = model.device_type, args.workers
    batch_size = args.batch_size or devices.default_batch_size(kind, model.image_size)
    workers = devices.default_workers(kind) if workers is None else workers
    report: Callable[[str], object] = str if args.quiet else warn
    work = partial(predict_stream, model, batch_size=batch_size, workers=workers, report=report)
    for item in scatter_and_gather(paths, work, 16 * batch_size):
        if item.error:
            report(f"{item.path}: {item.error}")
        yield item


def predict_many(model: Predictor, args: argparse.Namespace) -> int:
    """Print or write predictions for any number of images; returns how many are unreadable."""
    paths, summary, already = folders.find_files(args.input), results.Summary(), 0
    settings = (model.categories, model.names, args.top_k, args.min_probability, args.min_novelty)

    def ranked(paths: Iterable[str]) -> Iterator[results.Result]:
        for path, probs, novelty, error in stream_all(model, paths, args):
            best = [] if probs is None else results.most_likely(probs, novelty, *settings)
            result = results.Result(path, best, error)
            summary.add(result)
            yield result

    if args.output:
        made_with = {f"--{name}": vars(args)[name] for name in SETTINGS}
        made_with |= model.settings() | {"--checkpoint": sha256_of(args.checkpoint)}
        with OutputFile(args.output, args.resume, made_with) as output:
            already, stream = output.done.total(), ranked(output.missing(paths))
            if args.format:
                stream = results.print_results(stream, args.format)
            is_hidden = args.quiet or args.format or not sys.stderr.isatty()
            output.write(tqdm(stream, unit=" images", disable=bool(is_hidden)))
    else:
        collections.deque(results.print_results(ranked(paths), args.format or "table"), maxlen=0)
    if not args.quiet:
        suffix = f", {already} were in {args.output} already" if already else ""
        print(f"{summary}{suffix}", file=sys.stderr)
    return summary.unreadable


def evaluate(model: Predictor, args: argparse.Namespace) -> int:
    """Print how good a checkpoint is on labeled images; returns how many are unreadable."""
    labeled = utils.list_labeled(args.evaluate, model.class_to_idx, model.trained_on)
    if args.plot:
        check_output("--plot", args.plot, "figure", [path for path, _ in labeled])
    paths = [path for path, _ in labeled] + [*folders.find_files(args.unknown or ())]
    items = list(stream_all(model, paths, args))
    labels = [label for (_, label), x in zip(labeled, items, strict=False) if x.probs is not None]
    probs, novelty = results.stack(items[: len(labeled)], f"--evaluate {args.evaluate}")
    names = display_names(model.categories, model.names)
    min_novelty = args.min_novelty or results.UNUSUAL
    lines = format_evaluation(probs, labels, names, args.min_probability, novelty, min_novelty)
    if args.unknown:
        of_unknown = results.stack(items[len(labeled) :], f"--unknown {args.unknown[0]}")
        lines += format_unknown(probs, novelty, *of_unknown, min_novelty)
    print(*map(one_line, lines), sep="\n")
    if args.plot:
        from evaluation import plots

        save_figure(plots.confusion_matrix(labels, probs.argmax(1), names), args.plot)
    return sum(item.probs is None for item in items)


def export(args: argparse.Namespace) -> None:
    """Write the model as an ONNX file, and compare it on images."""
    model, paths = load_model(args), list(folders.find_files(args.input or ()))
    from inference import onnx_export  # here, because it imports torch

    paths = paths[:: math.ceil(len(paths) / CALIBRATION_IMAGES) or 1]
    views = [utils.load_plain_view(path, model.image_size) for path in paths]
    for line in onnx_export.export(model, args.to_onnx, views, args.int8):
        print(line, flush=True)


if __name__ == "__main__":
    hint = "; with --output, the same command with --resume continues from there"
    scripts.run_script(main, "predict.py", hint)
