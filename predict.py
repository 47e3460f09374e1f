"""Predict the category of an image, or of a million images.

    python predict.py --input image.jpg --checkpoint checkpoint.pth
    python predict.py --input photos --checkpoint checkpoint.pth --output names.csv
    python predict.py --input photos --checkpoint c.pth --sort_into sorted
    python predict.py --evaluate flowers/test --checkpoint checkpoint.pth
    python predict.py --checkpoint checkpoint.pth --to_html classifier.html

The checkpoint is what train.py wrote, or an ONNX file of --to_onnx, which needs
no torch. Predictions go to standard output or a file, messages to standard
error. The exit status is 1 if one of many images could not be read, and 2 after
any other error. docs/prediction.md says more.
"""

if __name__ == "__main__":  # before the imports below, which take seconds
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # not beside a link to it
    from system import scripts

    scripts.prepare("predict.py")

import argparse
import collections
import itertools
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from evaluation import report_page
from evaluation.metrics import format_evaluation, format_unknown
from image_files import folders
from image_files.names import display_names, load_names
from inference import classifier_page, onnx_model, output_file, results
from inference.command_line import FILE_ENDINGS, make_parser
from inference.formats import FILE_FORMATS, format_of, print_results
from inference.onnx_model import is_onnx
from inference.predictor import Predictor, Probabilities
from inference.sorting import PREDICTIONS, Sorter
from system import arguments, devices, scripts
from system.files import check_regular_file, save_figure, sha256_of
from system.messages import UserError, is_first_process, one_line, progress, warn
from system.outputs import Output, check_outputs
from system.pages import percent
from system.scripts import import_optional
from system.torchrun import is_alone, process_group, scatter_and_gather
from system.workers import map_ahead

SETTINGS = ("top_k", "min_probability", "min_novelty")  # that --resume needs unchanged
MIN_PLOTTED = 5  # categories in the figure of --plot
CALIBRATION_IMAGES = 32  # of --int8; 8 are as good (docs/performance.md)
CALIBRATED = "goes with --to_onnx or --to_html, and --input flowers/train to calibrate on"
NEEDS_TORCH = "needs a checkpoint and torch, not an ONNX file"


def parse_arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; raises UserError if a flag is unknown, missing or invalid."""
    parser = make_parser(__doc__)
    args = parser.parse_args(command_line)
    if args.sort_into and not args.output:
        args.output = os.path.join(args.sort_into, PREDICTIONS)
    check_combinations(parser, args)
    return args


def check_combinations(parser: arguments.ArgumentParser, args: argparse.Namespace) -> None:
    """Raise UserError if flags are missing or do not go together."""
    is_export = args.to_onnx or args.to_html
    if not (args.input or args.evaluate or is_export):
        parser.error("--input PATH is missing")
    if not args.checkpoint:
        parser.error("--checkpoint FILE is missing: what train.py wrote")
    if is_onnx(args.checkpoint):
        if args.heatmap:
            parser.error(f"--heatmap {NEEDS_TORCH}")
        if args.to_onnx:
            parser.error(f"--to_onnx {NEEDS_TORCH}")
        if not is_alone():
            parser.error(f"torchrun {NEEDS_TORCH}")
    if args.heatmap and args.precision == "int8":
        parser.error("--heatmap goes without --precision int8")
    if args.evaluate and (args.input or args.output or args.format):
        parser.error("--evaluate goes without --input, --output and --format")
    if (args.unknown or args.report) and not args.evaluate:
        parser.error("--unknown and --report go with --evaluate")
    if args.report and not args.report.lower().endswith(".html"):
        parser.error(f"--report {args.report}: the name has to end in .html")
    if args.to_onnx and not is_onnx(args.to_onnx):
        parser.error(f"--to_onnx {args.to_onnx}: the name has to end in .onnx")
    if args.to_html and not args.to_html.lower().endswith(".html"):
        parser.error(f"--to_html {args.to_html}: the name has to end in .html")
    if args.to_html and is_onnx(args.checkpoint) and (args.input or args.means or args.stds):
        parser.error("--to_html of an ONNX file goes without --input, --means and --stds")
    if args.web_runtime and not args.to_html:
        parser.error("--web_runtime goes with --to_html")
    if args.int8 and not (is_export and args.input):
        parser.error(f"--int8 {CALIBRATED}")
    has_many = args.input and not (args.int8 or is_single(args))
    if is_export and (args.evaluate or has_many):
        parser.error("--to_onnx and --to_html go with one image as --input, or none")
    if (args.heatmap or (args.plot and not args.evaluate)) and not is_single(args):
        parser.error("--plot and --heatmap are for one image")
    if (args.resume or args.overwrite) and not args.output:
        parser.error("--resume and --overwrite go with --output FILE")
    if args.resume and args.overwrite:
        parser.error("--resume or --overwrite, not both")
    if args.output and format_of(args.output) not in FILE_FORMATS:
        parser.error(f"--output {args.output}: the name has to end in {FILE_ENDINGS}")


def is_single(args: argparse.Namespace) -> bool:
    """Return whether predictions for one image are to be printed for a person."""
    if args.evaluate or args.output or args.format or not args.input or len(args.input) > 1:
        return False
    [word] = args.input
    return not (word == "-" or os.path.isdir(word) or folders.is_pattern(word))


# ---------------------------------------------------------------- the library


def load_predictor(path: str | os.PathLike) -> Predictor:
    """Load a checkpoint of train.py, or, if its name ends in .onnx, an ONNX file of --to_onnx.

    Raises:
        UserError: the file is missing or not one of these, or it needs a package that is missing;
            or its images are prepared in another way than this program prepares them.
    """
    if is_onnx(path):
        model = onnx_model.OnnxModel(path)
        size = model.image_size
        if size not in utils.IMAGE_SIZES or model.preprocessing != utils.preprocessing(size):
            raise UserError(
                f"{path}: its images are prepared in another way than this program's; "
                f"{onnx_model.REMEDY}"
            )
        return model
    check_regular_file(path)
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: neither a checkpoint of train.py nor an ONNX file (FILE.onnx)")
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
        min_probability, min_novelty: an image with less of one of them is "unknown".
        means, stds: replace the checkpoint's.

    Raises:
        UserError: an image cannot be read, a probability is not finite, or there is no novelty.
    """
    model.check_novelty(min_novelty)
    views = [utils.load_plain_view(path, model.image_size) for path in images]
    probs, novelty = model.predict_views(views, means, stds)
    return [
        results.most_likely(
            model,
            probs[index],
            float(novelty[index]),
            top_k=top_k,
            names=names,
            min_probability=min_probability,
            min_novelty=min_novelty,
        )
        for index in range(len(views))
    ]


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

    def load(path: str) -> tuple[str, np.ndarray | None, str]:
        try:
            return path, utils.load_plain_view(path, model.image_size, report), ""
        except UserError as error:
            return path, None, str(error).removeprefix(f"{path}: ")

    loaded = map_ahead(load, paths, workers, 2 * batch_size + workers)
    while batch := list(itertools.islice(loaded, batch_size)):
        views = [view for _, view, _ in batch if view is not None]
        outputs = zip(*model.predict_views(views), strict=True)
        for path, view, error in batch:
            if view is None:
                yield Probabilities(path, None, error=error)
            else:
                probs, novelty = next(outputs)
                yield Probabilities(path, probs, float(novelty))


# ---------------------------------------------------------------- the command line


def main(command_line: list[str] | None = None) -> None:
    """Predict, evaluate or export, as the command line says."""
    args = parse_arguments(command_line)
    folders.check_words(args.input or ())
    inputs = [*(args.input or ()), *(args.unknown or ()), args.checkpoint, args.category_names]
    check_outputs(list_outputs(args), inputs)
    if args.plot or args.heatmap:
        import_optional("a figure", "matplotlib")
    if args.to_onnx or args.to_html:
        if is_first_process():
            export(args)
        return
    if is_single(args):
        if is_first_process():
            predict_one(args)
        return
    with process_group():
        model = load_model(args)
        if not is_first_process():
            collections.deque(stream_all(model, [], args), maxlen=0)
            unreadable = 0  # the first process counts them
        elif args.evaluate:
            unreadable = evaluate(model, args)
        else:
            unreadable = predict_many(model, args)
    if unreadable:
        sys.exit(1)


def list_outputs(args: argparse.Namespace) -> list[Output]:
    """List all files that the command will write."""
    outputs = []
    if args.plot:
        outputs.append(Output("--plot", args.plot, "figure"))
    if args.heatmap:
        outputs.append(Output("--heatmap", args.heatmap, "figure"))
    if args.report:
        outputs.append(Output("--report", args.report, "page"))
    if args.to_onnx:
        outputs.append(Output("--to_onnx", args.to_onnx, "ONNX model"))
    if args.to_html:
        outputs.append(Output("--to_html", args.to_html, "page"))
    if args.output:
        outputs += output_file.outputs_of(args.output)
    return outputs


def load_model(args: argparse.Namespace) -> Predictor:
    """Load the checkpoint, with what the flags replace, to their device and in their precision."""
    model = load_predictor(args.checkpoint)
    model.check_novelty(args.min_novelty)
    if args.means:
        model.means = args.means
    if args.stds:
        model.stds = args.stds
    if args.category_names:
        model.names = load_names(args.category_names)
    if args.verbose:
        print(f"{one_line(args.checkpoint)}: sha256 {sha256_of(args.checkpoint)}", file=sys.stderr)
    if not (args.to_onnx or args.to_html):  # whose weights bfloat16 would round
        model.prepare(args.device, args.precision, is_single(args))
    return model


def predict_one(args: argparse.Namespace) -> None:
    """Print the predictions for one image, and draw the figures that are asked for."""
    model = load_model(args)
    [path] = args.input
    image = utils.load_image(path, size=model.image_size)
    view = utils.plain_view(image, model.image_size)
    [probs], [novelty] = model.predict_views(view[None])
    print(results.format_table(predictions_of(model, probs, float(novelty), args)), flush=True)
    if not (args.plot or args.heatmap):
        return
    from evaluation import plots  # here, because it takes a second

    best = results.most_likely(model, probs, float(novelty), top_k=max(args.top_k, MIN_PLOTTED))
    names = display_names([p.category for p in best], model.names)
    if args.plot:
        caption = os.path.basename(path)
        if best[0].is_unusual:
            caption += f" {results.UNLIKE}"
        best_probs = [p.probability for p in best]
        figure = plots.prediction_bars(utils.thumbnail(image), names, best_probs, caption)
        save_figure(figure, args.plot)
        print(f"saved {args.plot}")
    if args.heatmap:
        from model import heat_map

        heat = heat_map(model, view, best[0].category).numpy()  # type: ignore[arg-type]
        share = utils.CROP / utils.RESIZE
        figure = plots.heat_map(utils.thumbnail(image), heat, names[0], share)
        save_figure(figure, args.heatmap)
        print(f"saved {args.heatmap}")


def predictions_of(
    model: Predictor, probs: np.ndarray, novelty: float, args: argparse.Namespace
) -> list[results.Prediction]:
    """Return the predictions for an image that the flags ask for."""
    return results.most_likely(
        model,
        probs,
        novelty,
        top_k=args.top_k,
        min_probability=args.min_probability,
        min_novelty=args.min_novelty,
    )


def stream_all(
    model: Predictor, paths: Iterable[str], args: argparse.Namespace
) -> Iterator[Probabilities]:
    """Yield the probabilities of many images; torchrun's other processes compute a share."""
    default = devices.default_batch_size(model.device_type, model.image_size)
    batch_size = args.batch_size or default
    workers = args.workers
    if workers is None:
        workers = devices.default_workers(model.device_type)

    def report(message: str) -> None:
        if not args.quiet:
            warn(message)

    def compute(paths: Iterable[str]) -> Iterator[Probabilities]:
        return predict_stream(model, paths, batch_size=batch_size, workers=workers, report=report)

    for item in scatter_and_gather(paths, compute, 16 * batch_size):
        if item.error:
            report(f"{item.path}: {item.error}")
        yield item


def predict_many(model: Predictor, args: argparse.Namespace) -> int:
    """Print or write predictions for any number of images; returns how many are unreadable."""
    paths = folders.find_files(args.input)
    summary = results.Summary(model.novelty_limit)
    already = ""

    def predict_all(paths: Iterable[str]) -> Iterator[results.Result]:
        for path, probs, novelty, error in stream_all(model, paths, args):
            best = [] if probs is None else predictions_of(model, probs, novelty, args)
            result = results.Result(path, best, error)
            summary.add(result)
            yield result

    if args.output:
        settings = {f"--{name}": vars(args)[name] for name in SETTINGS}
        settings |= model.settings() | {"--checkpoint": sha256_of(args.checkpoint)}
        settings["--sort_into"] = args.sort_into and os.path.realpath(args.sort_into)
        settings["--sort_by"] = args.sort_into and args.sort_by
        output = output_file.OutputFile(args.output, args.resume, settings, args.overwrite)
        sorter = None
        if args.sort_into:
            is_link = args.sort_by == "link"
            reserved = [os.path.basename(written.path) for written in list_outputs(args)]
            sorter = Sorter(args.sort_into, model.categories, is_link, output.resume, reserved)
            paths = sorter.outside(paths)
        with output:
            count = output.done.total()
            if count:
                already = f", {count} were in {args.output} already"
            missing: Iterable[str] = output.missing(paths)
            if "-" not in args.input:  # a list that may have no end
                missing = list(missing)
            stream = predict_all(missing)
            if sorter:
                stream = sorter.sort(stream)
            if args.format:
                stream = print_results(stream, args.format)
            elif not args.quiet:
                stream = show_progress(stream, count, missing)
            output.write(stream)
            summary.unreadable = output.unreadable  # also those of the run that is resumed
    else:
        stream = print_results(predict_all(paths), args.format or "table")
        collections.deque(stream, maxlen=0)
    if not args.quiet:
        print(f"{summary}{already}", file=sys.stderr)
    return summary.unreadable


def show_progress(
    stream: Iterator[results.Result], done: int, missing: Iterable[str]
) -> Iterator[results.Result]:
    """Yield results and show progress: with the time left if it is known which images are missing.

    Args:
        done: number of images that were done before.
    """
    if isinstance(missing, list):
        total = done + len(missing)
        return progress(stream, total, "images", size=lambda _: 1, done=done, delay=1)
    return iter(tqdm(stream, unit=" images", disable=not sys.stderr.isatty()))


def evaluate(model: Predictor, args: argparse.Namespace) -> int:
    """Print how good a checkpoint is on labeled images; returns how many are unreadable."""
    labeled = utils.list_labeled(args.evaluate, model.class_to_idx, model.trained_on)
    paths = [path for path, _ in labeled]
    unknown_paths = list(folders.find_files(args.unknown or ()))
    check_outputs(list_outputs(args), [*paths, *unknown_paths])
    items = list(stream_all(model, [*paths, *unknown_paths], args))
    known = items[: len(labeled)]
    probs, novelty = results.stack(known, f"--evaluate {args.evaluate}")
    pairs = zip(labeled, known, strict=True)
    labels = [label for (_, label), item in pairs if item.probs is not None]
    names = display_names(model.categories, model.names)
    min_novelty = args.min_novelty or model.novelty_limit
    lines = format_evaluation(
        probs,
        labels,
        names,
        min_probability=args.min_probability,
        novelty=novelty,
        min_novelty=min_novelty,
    )
    figures = [unusual_figure("unusual images", novelty, min_novelty)]
    if args.unknown:
        unknown = items[len(labeled) :]
        unknown_probs, unknown_novelty = results.stack(unknown, f"--unknown {args.unknown[0]}")
        lines += format_unknown(
            probs=probs,
            novelty=novelty,
            unknown_probs=unknown_probs,
            unknown_novelty=unknown_novelty,
            min_novelty=min_novelty,
        )
        figures.append(unusual_figure("images of --unknown", unknown_novelty, min_novelty))
    for line in lines:
        print(one_line(line))
    if args.plot:
        from evaluation import plots

        save_figure(plots.confusion_matrix(labels, probs.argmax(1), names), args.plot)
        print(f"saved {args.plot}")
    if args.report:
        files = [item.path for item in known if item.probs is not None]
        write_report(args, files=files, labels=labels, probs=probs, names=names, figures=figures)
    return sum(item.probs is None for item in items)


def unusual_figure(label: str, novelty: np.ndarray, min_novelty: float) -> tuple[str, str, str]:
    """Return a figure of the report: the share of images with a novelty (N,) below a limit."""
    share = float(np.mean(novelty < min_novelty))
    return label, percent(share), "resemble none of the categories"


def write_report(
    args: argparse.Namespace,
    *,
    files: Sequence[str],
    labels: Sequence[int],
    probs: np.ndarray,
    names: Sequence[str],
    figures: Sequence[tuple[str, str, str]],
) -> None:
    """Write the page of --report about images that could be read.

    Args:
        files, labels, probs, figures: see `report_page.write_report_page`.
    """
    indices, needed = report_page.choose_images(labels, probs)
    urls = utils.embed_images([files[i] for i in indices], report_page.SIDE, needed)
    report_page.write_report_page(
        args.report,
        title=f"Evaluation on {args.evaluate}",
        figures=figures,
        settings=vars(args),
        history=[],
        categories=names,
        labels=labels,
        probs=probs,
        files=files,
        images=dict(zip(indices, urls, strict=False)),
    )
    print(f"saved {args.report}")


def export(args: argparse.Namespace) -> None:
    """Write the model as an ONNX file, a page, or both, and compare them on images."""
    runtime = classifier_page.read_runtime(args.web_runtime) if args.web_runtime else {}
    model = load_model(args)
    with tempfile.TemporaryDirectory() as folder:
        onnx = args.to_onnx or os.path.join(folder, "model.onnx")
        if is_onnx(args.checkpoint):
            onnx = args.checkpoint
        else:
            export_onnx(args, model, onnx)
        if args.to_html:
            content = Path(onnx).read_bytes()
            preprocessing = utils.preprocessing(model.image_size)
            classifier_page.write_classifier_page(
                args.to_html, model, content, preprocessing, runtime
            )
            size = os.path.getsize(args.to_html)
            print(f"saved {args.to_html} ({size / 1e6:.0f} MB): open it in a browser, or send it")


def export_onnx(args: argparse.Namespace, model: Predictor, onnx: str) -> None:
    """Write the model as an ONNX file, and compare it on the images of --input."""
    from inference import onnx_export  # here, because it imports torch

    paths = list(folders.find_files(args.input or ()))
    chosen = choose_evenly(paths, CALIBRATION_IMAGES)
    views = [utils.load_plain_view(path, model.image_size) for path in chosen]
    for line in onnx_export.export(model, onnx, views, args.int8):
        if args.to_onnx or not line.startswith("saved"):
            print(line, flush=True)


def choose_evenly(paths: Sequence[str], count: int) -> Sequence[str]:
    """Return `count` of some paths, from beginning to end at equal distances; or all, if fewer."""
    if len(paths) <= count:
        return paths
    return [paths[i * len(paths) // count] for i in range(count)]


if __name__ == "__main__":
    hint = "; with --output, the same command with --resume continues from there"
    scripts.run_script(main, "predict.py", hint)
