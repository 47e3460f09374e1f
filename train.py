"""Train a classifier on your own folder of images.

    python train.py --data_dir flowers --output_cat 102
    python train.py --data_dir flowers --output_cat 102 --learning_rate 0.01 --epochs 20
    torchrun --nproc_per_node=2 train.py --data_dir flowers --output_cat 102

The folder has `train`, `valid` and `test`, each with one sub-folder of images a category. The
images go through a frozen ImageNet VGG once; a new head is then fitted on the resulting features.
Its probabilities are calibrated on `valid`, and it is evaluated once on `test`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # `python -P` does not
    from support import startup

    startup.prepare("train.py")

import argparse
from functools import partial
from pathlib import Path

import torch

import data_check
import fitting
import model
import report
import utils
from features import Settings, assist_extraction, extract, list_views, seconds_per_view
from support import arguments
from support.arguments import UserError, warn, whole_number
from support.devices import PRECISIONS, default_workers, select_device, select_precision
from support.outputs import check_output, lock, output_path
from support.oxford102 import NUM_CATEGORIES, download_oxford102
from support.parallel import process_group
from support.record_store import default_cache_folder
from support.resume import UnfinishedRun, is_finished

CHECKPOINT = "assets/model/checkpoint_script.pth"
FINE_TUNE = "epochs in which the last block is trained as well, after the others (%(default)s)"


def parse_arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; raises UserError if a flag is unknown, missing or invalid."""
    parser = arguments.ArgumentParser(
        prog="train.py", description=__doc__, triples=("--means", "--stds")
    )
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", required=True, help="folder with train, valid and test, or categories")
    add("--output_cat", type=arguments.count_or_text, help="number of categories; required")
    add("--download", action="store_true", help="download Oxford-102 if the folder does not exist")
    add("--split", choices=["course", "official"], default="course", help="of --download")
    add("--check", nargs="?", const="-", metavar="FILE.csv", help="check the data, do not train")
    add("--strict", action="store_true", help="stop at the first image that cannot be read")
    add("--means", type=arguments.triple, default=utils.MEANS, help="image means %(default)s")
    add("--stds", type=arguments.positive_triple, default=utils.STDS, help="deviations %(default)s")
    add("--views", type=whole_number(1, 1000), default=1, help="the first is plain (%(default)s)")
    add("--workers", type=whole_number(0, 256), help="processes that decode images (by the cores)")
    add = parser.add_argument_group("network").add_argument
    add("--arch", choices=list(model.ARCHITECTURES), default="vgg16", help="backbone (%(default)s)")
    add("--weights", default="imagenet", help="imagenet (found or downloaded), none, or a file")
    add("--hidden_units", type=whole_number(1), default=512, help="of the new head (%(default)s)")
    add("--dropout", type=arguments.fraction, default=0.5, help="of hidden units (%(default)s)")
    add = parser.add_argument_group("fitting").add_argument
    rate = arguments.positive_number
    add("--learning_rate", type=rate, default=0.03, help="maximum of the schedule (%(default)s)")
    add("--epochs", type=whole_number(1), default=7, help="passes over the features (%(default)s)")
    add("--batch_size", type=whole_number(1), default=16, help="regions in a step (%(default)s)")
    add("--fine_tune", type=whole_number(0), default=0, metavar="EPOCHS", help=FINE_TUNE)
    add("--seed", type=whole_number(0), default=0, help="of everything random (%(default)s)")
    add = parser.add_argument_group("machine").add_argument
    add("--save_dir", default=CHECKPOINT, help="file or folder (%(default)s)")
    add("--category_names", help=f"JSON file, category: name ({utils.CATEGORY_NAMES}, if any)")
    add("--no_report", action="store_true", help="write no tables and figures beside it")
    add("--resume", action="store_true", help="continue the same command after an interruption")
    add("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: CUDA or MPS (%(default)s)")
    add("--precision", choices=PRECISIONS, default="auto", help="(%(default)s)")
    cache = "stores features for later runs, 24 KB a view; delete it to clear them (%(default)s)"
    add("--cache_dir", default=str(default_cache_folder()), help=cache)
    add("--no_cache", action="store_true", help="store no features for later runs")
    return parser.parse_args(command_line)


def main(command_line: list[str] | None = None) -> None:
    """Train, or check the data, as the command line says."""
    args = parse_arguments(command_line)
    device = select_device(args.device)
    precision = select_precision(device, args.precision)
    workers = default_workers(device) if args.workers is None else args.workers
    settings = Settings(args.means, args.stds, device, precision, workers, args.fine_tune > 0)
    if args.check:
        return check(args, settings)
    with process_group() as rank:
        if rank > 0:
            return assist_extraction(model.Backbone(args.arch), args.data_dir, settings)
        path = output_path(args.save_dir, Path(CHECKPOINT).name)
        check_output("--save_dir", path, "checkpoint", [args.weights, args.category_names])
        with lock("--save_dir", path):
            if args.resume and is_finished(path, vars(args)):
                return print(f"{path} is finished: nothing to resume")
            train(args, settings, path)


def train(args: argparse.Namespace, settings: Settings, path: Path) -> None:
    """Train a classifier: data -> features -> fit -> evaluate -> checkpoint -> report."""
    images = list_images(args)
    data_check.check_report_folder(args.data_dir, images, path.parent)
    names = data_check.check_names(args.category_names, list(images["train"]))
    data, failures = load_data(args, images)
    backbone, head = new_network(args, len(data.class_to_idx), settings.device)
    print_plan(args, data, path, settings)
    arguments_and_format = vars(args) | {"format_version": model.FORMAT_VERSION}
    inputs = data_check.describe(data)
    unfinished = UnfinishedRun(path, arguments_and_format, inputs, args.resume)
    model.load_weights(backbone, args.arch, args.weights, args.seed)
    views = list_views(data, args.views)
    cache = unfinished.folder if args.no_cache else args.cache_dir
    features = extract(backbone, args.data_dir, views, settings, cache, strict=args.strict)
    data_check.exclude_images(data, features.failures)
    failures |= features.failures
    table = report.write_unreadable(path, failures)
    samples = fitting.label_features(features, data, args.views)
    history, samples = fit_network(args, backbone, head, samples, settings.precision, unfinished)
    evaluation = fitting.evaluate(head, samples)
    used = fitting.used_epoch(history, args.epochs)
    metrics = used | evaluation.metrics
    classifier = model.Classifier(
        backbone,
        head,
        arch=args.arch,
        class_to_idx=data.class_to_idx,
        means=args.means,
        stds=args.stds,
        image_size=utils.CROP,
        temperature=evaluation.temperature,
        detector=evaluation.detector,
        names=names,
        history={"epoch": used["epoch"], "metrics": metrics, "arguments": vars(args)},
    )
    model.save_checkpoint(path, classifier)
    if used is not history[-1]:
        print("fine-tuning did not improve the predictions on valid: its epochs are not used")
    if failures:
        print(f"{len(failures)} images could not be read and were left out; {table} lists them")
    print(report.format_results(path, evaluation), flush=True)
    if not args.no_report:
        rows = samples.rows["test"]
        test = ([views[row].path for row in rows], samples.labels[rows], evaluation.probs)
        written = report.write_report(path, history, used["epoch"], data, *test, names)
        print(f"report: {', '.join(file.name for file in written)} in {path.parent}")
    unfinished.remove()


# ---------------------------------------------------------------- before the work


def list_images(args: argparse.Namespace) -> utils.Images:
    """List the images of the data folder, which is downloaded if asked for."""
    if args.download:
        if not (Path(args.data_dir).exists() or isinstance(args.output_cat, int)):
            check_output_cat(args, NUM_CATEGORIES)
        download_oxford102(args.data_dir, args.split)
    images = utils.list_images(args.data_dir)
    check_output_cat(args, len(images["train"]))
    return images


def load_data(
    args: argparse.Namespace, images: utils.Images
) -> tuple[utils.DataFolder, dict[str, str]]:
    """Read the data folder without files that cannot be images, and why those are left out."""
    memo = None if args.no_cache else args.cache_dir
    data = utils.read_data_folder(args.data_dir, memo, images)
    data_check.warn_of_copies(data)
    return data_check.exclude_images(data, data.failures, strict=args.strict), data.failures


def new_network(
    args: argparse.Namespace, num_classes: int, device: torch.device
) -> tuple[model.Backbone, model.Head]:
    """Return a backbone without values, and a head with random weights.

    Raises:
        UserError: the memory is too small.
    """
    if args.output_cat > num_classes:
        warn(
            f"--output_cat {args.output_cat}, but there are {num_classes} categories: the other "
            "outputs will never be predicted"
        )
    torch.manual_seed(args.seed)
    backbone = model.Backbone(args.arch)
    sizes = (backbone.num_features, args.hidden_units, args.output_cat, num_classes)
    try:
        return backbone, model.Head(*sizes, args.dropout).to(device)
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"not enough memory for --hidden_units {args.hidden_units} and "
            f"--output_cat {args.output_cat}"
        ) from error


def check_output_cat(args: argparse.Namespace, num_classes: int) -> None:
    """Raise UserError, which says what to type, unless there is an output for each category."""
    if isinstance(args.output_cat, int) and args.output_cat >= num_classes:
        return
    value = "is missing" if args.output_cat is None else args.output_cat
    raise UserError(
        f"--output_cat {value}: {args.data_dir} has {num_classes} categories; "
        f"type --output_cat {num_classes}"
    )


def print_plan(
    args: argparse.Namespace, data: utils.DataFolder, path: Path, settings: Settings
) -> None:
    """Print what was found, what will be done and what will be written."""
    for split in utils.SPLITS:
        categories = len(set(data.labels[split]))
        print(f"{split:5}  {len(data.paths[split]):7} images  {categories:5} categories")
    print(
        f"{args.arch} with weights {args.weights}, {args.views} view(s) of each training image, "
        f"on {settings.device} in {str(settings.precision).removeprefix('torch.')}"
    )
    cache = "not stored (--no_cache)" if args.no_cache else f"stored in {args.cache_dir}"
    print(f"will write {path}; features are {cache}", flush=True)


# ---------------------------------------------------------------- the work


def fit_network(
    args: argparse.Namespace,
    backbone: model.Backbone,
    head: model.Head,
    samples: fitting.Samples,
    precision: torch.dtype,
    unfinished: UnfinishedRun,
) -> tuple[list[dict], fitting.Samples]:
    """Fit the head, and fine-tune if asked for; resumes an interrupted run.

    Returns:
        The history, and the samples with the features of the backbone as it is now.
    """
    total = args.epochs + args.fine_tune
    state = unfinished.state_for(samples.features.identity())

    def on_epoch(row: dict, state: dict) -> None:
        print(report.format_epoch(row, total), flush=True)
        unfinished.save(state)

    history: list[dict] = []
    if not state or state.get("first_epoch") != args.epochs + 1:  # the head is not fitted yet
        history = fitting.fit(
            head,
            samples,
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            batch_size=args.batch_size,
            on_epoch=on_epoch,
            state=state,
        )
        state = None
    if not args.fine_tune:
        return history, samples
    return fitting.fine_tune(
        backbone,
        head,
        samples,
        epochs=range(args.epochs + 1, total + 1),
        learning_rate=args.learning_rate,
        precision=precision,
        history=history,
        on_epoch=on_epoch,
        state=state,
    )


def check(args: argparse.Namespace, settings: Settings) -> None:
    """Report on a data folder without training, as a CSV file as well if one is named."""
    measure = partial(seconds_per_view, args.arch, args.data_dir, settings=settings)
    table = args.check if args.check != "-" else ""
    if table:
        check_output("--check", table, "table of findings", [args.category_names])
    categories = data_check.check_data_folder(
        args.data_dir, args.views, measure, table, strict=args.strict
    )
    data_check.check_names(args.category_names, categories)
    if args.output_cat is not None:
        check_output_cat(args, len(categories))


if __name__ == "__main__":
    arguments.run_script(main, "train.py", "; the same command with --resume continues from there")
