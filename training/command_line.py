"""The flags of train.py."""

import argparse

import model
import utils
from image_files.names import CATEGORY_NAMES
from system import arguments, devices
from system.arguments import whole_number
from training.feature_store import default_cache_folder

CHECKPOINT = "assets/model/checkpoint_script.pth"
FEW_IMAGES = 30  # of a category: a second view of each is then used (docs/results.md)


def make_parser(description: str | None) -> arguments.ArgumentParser:
    """Return the parser of the command line; its help begins with `description`."""
    parser = arguments.ArgumentParser(
        prog="train.py",
        usage="train.py --data_dir DIR --output_cat N [options]",
        description=description,
        triples=("--means", "--stds"),
    )
    add_main_flags(parser)
    add_data_flags(parser)
    add_view_flags(parser)
    add_network_flags(parser)
    add_machine_flags(parser)
    return parser


def add_main_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that most people need."""
    add = parser.add_argument_group("main flags").add_argument
    add(
        "--data_dir",
        required=True,
        metavar="DIR",
        help="folder with train, valid and test, or with a folder for each category; required",
    )
    add(
        "--output_cat",
        type=whole_number(1),
        metavar="N",
        help="number of categories; required for training",
    )
    add(
        "--save_dir",
        default=CHECKPOINT,
        metavar="PATH",
        help=("file of the checkpoint; in a folder, it is called checkpoint_script.pth"),
    )
    add(
        "--learning_rate",
        type=arguments.positive_number,
        default=0.03,
        metavar="RATE",
        help="highest learning rate of the schedule",
    )
    add("--epochs", type=whole_number(1), default=7, metavar="N", help="passes over the features")
    add = parser.add_argument_group("output").add_argument
    add(
        "--no_report",
        action="store_true",
        help="write no page, tables and figures beside the checkpoint",
    )
    add("--resume", action="store_true", help="continue the same command after an interruption")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about the data folder and its labels."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--check",
        nargs="?",
        const="-",
        metavar="FILE.csv",
        help=("do not train: check the data folder; with a file, write all findings as a table"),
    )
    add(
        "--check_labels",
        nargs="?",
        const="-",
        metavar="FILE.csv",
        help=(
            "do not train: check as --check does, and look for incorrect labels and "
            "near-duplicates; with a file, write a table, and a page (.html) beside it"
        ),
    )
    add(
        "--corrections",
        action="extend",
        nargs="+",
        metavar="FILE.csv",
        help="correct labels by the tables that pages of --check_labels saved",
    )
    add(
        "--exclude",
        metavar="FILE",
        help=("leave out the images in the column path of a table, or in a list of paths"),
    )
    add("--strict", action="store_true", help="stop at the first image that cannot be read")
    add(
        "--category_names",
        metavar="FILE.json",
        help=(f"names of the categories (default: {CATEGORY_NAMES}, if it exists)"),
    )
    add(
        "--download",
        action="store_true",
        help="download Oxford-102, if the data folder does not exist",
    )
    add(
        "--split",
        choices=["course", "official"],
        default="course",
        help="how --download divides Oxford-102",
    )


def add_view_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about views of images."""
    add = parser.add_argument_group("views of images").add_argument
    sizes = utils.IMAGE_SIZES
    size = arguments.multiple_of(sizes.step, sizes[0], sizes[-1])
    add(
        "--image_size",
        type=size,
        default=utils.CROP,
        metavar="PIXELS",
        help=(
            f"side of a view, a multiple of {sizes.step} from {sizes[0]} to {sizes[-1]}; "
            "448 is better for many similar categories, and about five times slower"
        ),
    )
    views = (
        "views of each training image: 1 plain, 2 also mirrored, more: random crops "
        f"(default: 2 with fewer than {FEW_IMAGES} training images per category, else 1)"
    )
    add("--views", type=whole_number(1, 1000), metavar="N", help=views)
    add(
        "--means",
        type=arguments.triple,
        default=utils.MEANS,
        metavar="RGB",
        help=(
            "means of red, green and blue (0-1) that are subtracted; the backbone was "
            "trained with the default"
        ),
    )
    add(
        "--stds",
        type=arguments.positive_triple,
        default=utils.STDS,
        metavar="RGB",
        help=("standard deviations of red, green and blue that views are divided by"),
    )


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about the network and how it is fitted."""
    add = parser.add_argument_group("network").add_argument
    add(
        "--arch",
        choices=list(model.ARCHITECTURES),
        default="vgg16",
        help="architecture of the frozen backbone",
    )
    add(
        "--weights",
        default="imagenet",
        metavar="WEIGHTS",
        help=(
            "weights of the backbone: imagenet (they are downloaded once), none (random, "
            "for tests), or a file with torchvision's keys"
        ),
    )
    add(
        "--hidden_units",
        type=whole_number(1),
        default=512,
        metavar="N",
        help="units of the hidden layer",
    )
    add(
        "--dropout",
        type=arguments.fraction,
        default=0.5,
        metavar="P",
        help="share of the hidden units that each step leaves out",
    )
    add = parser.add_argument_group("fitting").add_argument
    add(
        "--batch_size",
        type=whole_number(1),
        default=64,
        metavar="N",
        help="regions (parts) of images in a step",
    )
    add(
        "--final",
        action="store_true",
        help="after the training, fit a second head on train and valid, and use that one",
    )
    add(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="seed of all random numbers; the same seed gives the same weights",
    )


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about this machine."""
    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=["cpu", "gpu"], default="cpu", help=devices.DEVICE_HELP)
    add("--precision", choices=devices.PRECISIONS, default="auto", help=devices.PRECISION_HELP)
    add(
        "--workers",
        type=whole_number(0, 256),
        metavar="N",
        help=("processes that decode images (default: half of the cores, with a GPU all)"),
    )
    add(
        "--cache_dir",
        default=str(default_cache_folder()),
        metavar="DIR",
        help=("folder of stored features, for later trainings; delete it to clear them"),
    )
    add("--no_cache", action="store_true", help="store no features for later trainings")
