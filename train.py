"""Train a classifier on your own folder of images.

    python train.py --data_dir flowers --output_cat 102
    python train.py --data_dir flowers --output_cat 102 --learning_rate 0.01
    python train.py --data_dir flowers --output_cat 102 --check_labels labels.csv
    torchrun --nproc_per_node=2 train.py --data_dir flowers --output_cat 102

The folder has one sub-folder of images for each category, or train, valid and
test with these sub-folders. The images go through a frozen ImageNet VGG once; a
new head is then fitted on the resulting features. Its probabilities are
calibrated on valid, and it is evaluated once on test. docs/training.md says
more.
"""

if __name__ == "__main__":  # before the imports below, which take seconds
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # not beside a link to it
    from system import scripts

    scripts.prepare("train.py")

import argparse
import copy
import os
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import model
import utils
from checks import data_folder, labels, review_page
from checks.corrections import correct_labels, exclude_listed
from checks.findings import MEASURES, Finding, write_findings, write_unreadable
from checks.galleries import galleries, outputs_of, write_galleries
from image_files.names import name_categories
from image_files.oxford102 import NUM_CATEGORIES, download_oxford102
from system import devices, scripts
from system.messages import UserError, counted, is_first_process, shorten, warn
from system.outputs import (
    Output,
    check_no_input_below,
    check_outputs,
    lock,
    output_path,
    path_beside,
)
from system.torchrun import process_group
from training import fitting, report
from training.command_line import CHECKPOINT, FEW_IMAGES, make_parser
from training.features import Settings, assist_extraction, extract, list_views
from training.resume import UnfinishedRun, check_unfinished, is_finished


def parse_arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; raises UserError if a flag is unknown, missing or invalid."""
    parser = make_parser(__doc__)
    args = parser.parse_args(command_line)
    if args.precision == "int8" and args.device == "gpu":
        parser.error("--precision int8 goes without --device gpu")
    if args.check and args.check_labels:
        parser.error("--check_labels does all that --check does: leave out --check")
    return args


def main(command_line: list[str] | None = None) -> None:
    """Train, or check the data, as the command line says."""
    args = parse_arguments(command_line)
    device = devices.select_device(args.device)
    workers = devices.default_workers(device.type) if args.workers is None else args.workers
    settings = Settings(
        means=args.means,
        stds=args.stds,
        image_size=args.image_size,
        device=device,
        workers=workers,
    )
    with process_group():
        if not is_first_process():
            if not args.check:
                assist_extraction(model.Backbone(args.arch), args.data_dir, settings)
            return
        if args.check or args.check_labels:
            check(args, settings)
            return
        path = output_path(args.save_dir, Path(CHECKPOINT).name)
        check_outputs(report.outputs_of(path, not args.no_report), inputs_of(args))
        with lock("--save_dir", path):
            check_unfinished(path)
            if args.resume and is_finished(path, vars(args)):
                print(f"{path} is finished: nothing to resume")
            else:
                train(args, settings, path)


def train(args: argparse.Namespace, settings: Settings, path: Path) -> None:
    """Train a classifier: data -> features -> fit -> evaluate -> checkpoint -> report."""
    start = time.monotonic()
    data = list_images(args)
    check_output_cat(args.output_cat, data)
    check_no_input_below("--save_dir", path.parent, args.data_dir, data.all_paths())
    names = name_categories(list(data.class_to_idx), args.category_names)
    data = utils.read_images(data, None if args.no_cache else args.cache_dir)
    failures = data.errors()
    data = data_folder.check_and_exclude(data, strict=args.strict)
    backbone = load_backbone(args)
    settings = with_precision(args, settings, backbone)
    make_head = partial(
        new_head, args, backbone.num_features, len(data.class_to_idx), settings.device
    )
    head = make_head()
    final = make_head() if args.final else None
    views = number_of_views(args, data)
    print(report.format_plan(args, data, path, settings, views), flush=True)
    unfinished = unfinished_run(args, path, data)
    cache = unfinished.folder if args.no_cache else args.cache_dir
    samples, data = extract_samples(args, settings, data, views, backbone, str(cache))
    failures |= samples.features.failures
    table = path_beside(path, report.UNREADABLE)
    write_unreadable(table, failures)
    if args.weights != "none":  # whose features mean nothing
        labels.warn_of_near_duplicates(data, samples.averages)
    untrained = copy.deepcopy(head)
    history = fitting.fit_heads(head, final, samples, fit_settings(args), unfinished)
    others = predict_train(args, untrained, samples) if fitting.needs_train(samples) else None
    evaluation = fitting.evaluate(head, samples, final, others)
    classifier = make_classifier(
        args,
        backbone=backbone,
        head=final or head,
        class_to_idx=data.class_to_idx,
        names=names,
        evaluation=evaluation,
        last_epoch=history[-1],
    )
    model.save_checkpoint(path, classifier)
    if failures:
        left_out = counted(len(failures), "image is", "images are")
        print(f"{left_out} unreadable and left out: see {table}")
    print(report.format_results(path, evaluation), flush=True)
    if not args.no_report:
        training = report.Training(
            arguments=vars(args),
            seconds=time.monotonic() - start,
            history=history,
            data=data,
            evaluation=evaluation,
            names=names,
        )
        written = report.write_report(path, training)
        print(f"report: {written[-1]}, and {len(written) - 1} other files beside it")
    unfinished.remove()


# ---------------------------------------------------------------- the steps


def inputs_of(args: argparse.Namespace) -> list[str | None]:
    """List the files beside images that the command reads."""
    return [args.weights, args.category_names, args.exclude, *(args.corrections or ())]


def check_output_cat(output_cat: int | None, data: utils.DataFolder) -> None:
    """Check the number of outputs; those beyond the number of categories give a warning.

    Args:
        data: from `utils.list_images`.

    Raises:
        UserError: it is missing, or there are more categories; it says what to type. Or it is the
            number of the folders of splits, which may be meant as categories.
    """
    num_classes = len(data.class_to_idx)
    folders = list(data.categories)
    described = f"{data.root} has {num_classes} categories ({shorten(data.class_to_idx, 10)})"
    output_cat = enough_outputs(output_cat, num_classes, described)
    if output_cat > num_classes and output_cat == len(folders):
        raise UserError(
            f"--output_cat {output_cat}: {data.root} has {num_classes} categories in "
            f"{shorten(folders)}; type --output_cat {num_classes}, or, if these folders are the "
            "categories, rename them"
        )
    if output_cat > num_classes:
        warn(
            f"--output_cat {output_cat}, but there are {num_classes} categories: the other "
            "outputs will never be predicted"
        )


def enough_outputs(output_cat: int | None, num_classes: int, described: str) -> int:
    """Return --output_cat; raises UserError, which says what to type, if it is missing or small.

    Args:
        described: where so many categories are, for the error.
    """
    if output_cat is None or output_cat < num_classes:
        value = "is missing" if output_cat is None else output_cat
        raise UserError(f"--output_cat {value}: {described}; type --output_cat {num_classes}")
    return output_cat


def list_images(args: argparse.Namespace) -> utils.DataFolder:
    """List the images of the data folder, which is downloaded if asked for.

    Those of --exclude are left out, and --corrections are applied.
    """
    if args.download:
        if args.output_cat is None and not os.path.exists(args.data_dir):  # before a long download
            described = f"{args.data_dir} will have {NUM_CATEGORIES} categories"
            enough_outputs(args.output_cat, NUM_CATEGORIES, described)
        download_oxford102(args.data_dir, args.split)
    data = utils.list_images(args.data_dir)
    if args.exclude:
        data = exclude_listed(data, args.exclude)
    if args.corrections:
        data = correct_labels(data, args.corrections)
    return data


def load_backbone(args: argparse.Namespace) -> model.Backbone:
    """Return the backbone with its weights, which may be downloaded."""
    backbone = model.Backbone(args.arch)
    model.load_weights(backbone, args.arch, args.weights, args.seed)
    return backbone


def with_precision(
    args: argparse.Namespace, settings: Settings, backbone: model.Backbone | None
) -> Settings:
    """Return settings with the precision that --precision means for these weights.

    Args:
        backbone: None: it is not loaded; --weights imagenet are then taken for what they should be.

    Raises:
        UserError: int8 does not go with them.
    """
    if backbone is None:
        has_int8 = args.arch == "vgg16" and args.weights == "imagenet"
    else:
        has_int8 = model.has_int8(backbone, settings.means, settings.stds)
    precision = model.select_precision(settings.device, args.precision, has_int8)
    return replace(settings, precision=precision)


def new_head(
    args: argparse.Namespace, num_features: int, num_classes: int, device: torch.device
) -> model.Head:
    """Return a head with random weights, which follow from --seed."""
    torch.manual_seed(args.seed)
    with devices.memory_for(f"--hidden_units {args.hidden_units}, --output_cat {args.output_cat}"):
        head = model.Head(
            num_features, args.hidden_units, args.output_cat, num_classes, args.dropout
        )
        return head.to(device)


def number_of_views(args: argparse.Namespace, data: utils.DataFolder) -> int:
    """Return how many views of each training image are used: --views, or a default."""
    if args.views is not None:
        return args.views
    return 2 if len(data.of("train")) < FEW_IMAGES * len(data.class_to_idx) else 1


def unfinished_run(args: argparse.Namespace, path: Path, data: utils.DataFolder) -> UnfinishedRun:
    """Return the run that --resume continues, or a new one."""
    arguments_and_format = vars(args) | {"format_version": model.FORMAT_VERSION}
    inputs = data_folder.describe_images(data)
    return UnfinishedRun(path, arguments_and_format, inputs, args.resume)


def predict_train(
    args: argparse.Namespace, head: model.Head, samples: fitting.Samples
) -> fitting.KnownLogits | None:
    """Predict the images of train by cross-validation, near-duplicates in one fold."""
    num_train = len(samples.rows["train"]) // samples.views
    groups = labels.group_near_duplicates(samples.averages, num_train)
    return fitting.predict_train(head, samples, groups, fit_settings(args))


def fit_settings(args: argparse.Namespace) -> fitting.FitSettings:
    """Return the flags that say how the head is fitted."""
    return fitting.FitSettings(args.epochs, args.learning_rate, args.batch_size)


def make_classifier(
    args: argparse.Namespace,
    *,
    backbone: model.Backbone,
    head: model.Head,
    class_to_idx: dict[str, int],
    names: dict[str, str],
    evaluation: fitting.Evaluation,
    last_epoch: dict,
) -> model.Classifier:
    """Return what a checkpoint holds: the networks, and how they were trained."""
    return model.Classifier(
        backbone,
        head,
        arch=args.arch,
        class_to_idx=class_to_idx,
        means=args.means,
        stds=args.stds,
        image_size=args.image_size,
        temperature=evaluation.temperature,
        detector=evaluation.detector,
        names=names,
        history={
            "epoch": last_epoch["epoch"],
            "metrics": last_epoch | evaluation.metrics,
            "arguments": vars(args),
        },
    )


def extract_samples(
    args: argparse.Namespace,
    settings: Settings,
    data: utils.DataFolder,
    num_views: int,
    backbone: model.Backbone,
    cache: str,
) -> tuple[fitting.Samples, utils.DataFolder]:
    """Compute the features that the folder `cache` lacks.

    Args:
        num_views: of each image of train.

    Returns:
        The samples, and the data folder without images that could not be decoded.
    """
    views = list_views(data, num_views)
    features = extract(backbone, args.data_dir, views, settings, cache, strict=args.strict)
    return fitting.label_features(features, data, num_views)


def check(args: argparse.Namespace, settings: Settings) -> None:
    """Report on a data folder without training, as a CSV file as well if one is named."""
    flag = "--check_labels" if args.check_labels else "--check"
    table = args.check_labels or args.check
    listed = list_images(args)
    if table == "-":
        table = ""
    else:
        outputs = [Output(flag, table, "table of findings")]
        if args.check_labels:
            outputs += [*outputs_of(table), review_page.output_of(table)]
        check_outputs(outputs, inputs_of(args))
        check_no_input_below(flag, Path(table).parent, args.data_dir, listed.all_paths())
    # Without a download, before the folder is known to be fine.
    backbone = None if args.weights == "imagenet" else load_backbone(args)
    data = utils.read_images(listed)
    findings, data = data_folder.check_data_folder(
        data,
        with_precision(args, settings, backbone),
        arch=args.arch,
        views=number_of_views(args, data),
        table=table,
        strict=args.strict,
    )
    names = name_categories(list(data.class_to_idx), args.category_names)
    if args.output_cat is not None:
        check_output_cat(args.output_cat, listed)
    if args.check_labels:
        backbone = backbone or load_backbone(args)
        findings += check_labels(args, settings, data, names, backbone)
        if table:
            write_findings(table, findings)
            write_galleries(table, args.data_dir, galleries(findings, names))
            page = review_page.output_of(table).path
            review_page.write_review_page(page, data, findings, names)
            print(f"saved {page}; open it in a browser to decide about the findings")
    if all(finding.finding in MEASURES for finding in findings):
        print("no problems found")
    elif not table:
        print(f"to list all findings: {flag} FILE.csv")


def check_labels(
    args: argparse.Namespace,
    settings: Settings,
    data: utils.DataFolder,
    names: dict[str, str],
    backbone: model.Backbone,
) -> list[Finding]:
    """Look for suspect labels, near-duplicates and outliers by features."""
    data = data_folder.check_and_exclude(data, strict=args.strict)
    num_classes = len(data.class_to_idx)
    args.output_cat = args.output_cat or num_classes
    settings = with_precision(args, settings, backbone)
    with tempfile.TemporaryDirectory() as folder:
        cache = folder if args.no_cache else args.cache_dir
        views = number_of_views(args, data)
        samples, data = extract_samples(args, settings, data, views, backbone, cache)
        return labels.check_labels(
            data,
            samples,
            names,
            new_head(args, backbone.num_features, num_classes, settings.device),
            fit_settings(args),
            seed=args.seed,
        )


if __name__ == "__main__":
    is_check = any(word.startswith("--check") for word in sys.argv)
    hint = "" if is_check else "; the same command with --resume continues from there"
    scripts.run_script(main, "train.py", hint)
