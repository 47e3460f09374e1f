"""The flags of predict.py."""

import argparse

from inference.classifier_page import RUNTIME
from inference.formats import FILE_FORMATS, FORMATS
from inference.results import UNKNOWN
from system import arguments, devices
from system.arguments import whole_number

FILE_ENDINGS = " or ".join(f".{name}" for name in FILE_FORMATS)


def make_parser(description: str | None) -> arguments.ArgumentParser:
    """Return the parser of the command line; its help begins with `description`."""
    parser = arguments.ArgumentParser(
        prog="predict.py",
        usage="predict.py --input PATH --checkpoint FILE [options]",
        description=description,
        triples=("--means", "--stds"),
    )
    add_main_flags(parser)
    add_prediction_flags(parser)
    add_output_flags(parser)
    add_export_flags(parser)
    add_machine_flags(parser)
    return parser


def add_main_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that most people need, and those of an evaluation."""
    add = parser.add_argument_group("main flags").add_argument
    add(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, folders, patterns, or - for a list on standard input",
    )
    add(
        "--checkpoint",
        metavar="FILE",
        help="what train.py wrote, or an ONNX file of --to_onnx; required",
    )
    add(
        "--top_k",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="number of most likely categories",
    )
    add(
        "--output",
        metavar="FILE",
        help=(f"write the predictions to a {FILE_ENDINGS}, instead of a table on the screen"),
    )
    add(
        "--category_names",
        metavar="FILE.json",
        help="names of the categories (default: those of the checkpoint)",
    )
    add = parser.add_argument_group("evaluation, instead of --input").add_argument
    add(
        "--evaluate",
        metavar="DIR",
        help="evaluate on the images in DIR/CATEGORY; of a folder with train and test, in test",
    )
    add(
        "--report",
        metavar="FILE.html",
        help="write a page about the evaluation",
    )
    add(
        "--unknown",
        nargs="+",
        metavar="PATH",
        help="images of no category, to be distinguished from the others",
    )


def add_prediction_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about predictions."""
    add = parser.add_argument_group("predictions").add_argument
    minimum = f"name a prediction {UNKNOWN!r} if"
    add(
        "--min_probability",
        type=arguments.fraction,
        default=0.0,
        metavar="P",
        help=f"{minimum} its probability is below P",
    )
    add(
        "--min_novelty",
        type=arguments.fraction,
        default=0.0,
        metavar="P",
        help=f"{minimum} the novelty of its image is below P",
    )
    add(
        "--means",
        type=arguments.triple,
        metavar="RGB",
        help=("means of red, green and blue, 0-1 (default: those of the checkpoint)"),
    )
    add(
        "--stds",
        type=arguments.positive_triple,
        metavar="RGB",
        help="standard deviations of red, green and blue (default: those of the checkpoint)",
    )


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about files and figures."""
    add = parser.add_argument_group("output").add_argument
    add(
        "--format",
        choices=[*FORMATS],
        help="format of standard output (default: table, or nothing with --output)",
    )
    add(
        "--resume",
        action="store_true",
        help="continue an interrupted --output: skip the images that it has",
    )
    add(
        "--overwrite",
        action="store_true",
        help=("discard the results of an interrupted --output, which are an error otherwise"),
    )
    add("--sort_into", metavar="DIR", help="copy each image into the folder DIR/CATEGORY")
    add(
        "--sort_by",
        choices=["copy", "link"],
        default="copy",
        help="whether --sort_into copies images, or makes links",
    )
    add(
        "--plot",
        metavar="FILE.png",
        help=(
            "draw one image and its most likely categories; with --evaluate, the confusion matrix"
        ),
    )
    add(
        "--heatmap",
        metavar="FILE.png",
        help="draw which locations of one image support its prediction",
    )
    add(
        "--quiet",
        action="store_true",
        help="print no progress, warnings and summary on standard error",
    )
    add(
        "--verbose",
        action="store_true",
        help="print the sha256 of the checkpoint on standard error",
    )


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about other forms of the classifier."""
    add = parser.add_argument_group("other forms of the classifier").add_argument
    add(
        "--to_onnx",
        metavar="FILE.onnx",
        help=("write an ONNX file, which needs no torch; compare it on --input, if there is one"),
    )
    add("--to_html", metavar="FILE.html", help="write a page that predicts images in a browser")
    add(
        "--web_runtime",
        metavar="DIR",
        help=f"put the runtime into the page: folder of the npm package {RUNTIME}",
    )
    add(
        "--int8",
        action="store_true",
        help="write 8-bit integers, calibrated on the images of --input",
    )


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about this machine."""
    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=["cpu", "gpu"], default="cpu", help=devices.DEVICE_HELP)
    add(
        "--precision",
        choices=devices.PRECISIONS,
        default="auto",
        help=(f"{devices.PRECISION_HELP}; one image is never predicted in int8 by auto"),
    )
    add(
        "--batch_size",
        type=whole_number(1),
        metavar="N",
        help="images that are predicted at once (default: 4, with CUDA 128, fewer if large)",
    )
    add(
        "--workers",
        type=whole_number(0, 256),
        metavar="N",
        help=("threads that decode images (default: half of the cores, with a GPU all)"),
    )
