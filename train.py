"""Train a classifier on your own folder of pictures.

    python train.py --data_dir flowers --output_cat 102
    python train.py --data_dir flowers --output_cat 102 --learning_rate 0.01 --epochs 20
    torchrun --nproc_per_node=2 train.py --data_dir flowers --output_cat 102

The folder holds `train`, `valid` and `test`, each with one sub-folder of pictures a category.
The pictures go through a frozen ImageNet VGG once; a new head is then fitted on the features that
come out. The epoch that is best on `valid` is kept, and judged once on `test`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import features
import utils
from features import Features
from model import (
    ARCHITECTURES,
    FORMAT_VERSION,
    PARTS,
    Backbone,
    Classifier,
    Head,
    category_metrics,
    load_file,
    load_weights,
    metrics,
    save_checkpoint,
    save_file,
)
from utils import UserError, warn

CHECKPOINT = "assets/model/checkpoint_script.pth"
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-3  # of SGD; common values, not tuned
MAX_NORM = 1.0  # of the gradient: without it, small batches of 102 categories diverge
LABEL_SMOOTHING = 0.1  # Szegedy et al. 2016; 0.5 to 1 point of accuracy (benchmarks/README.md)
TAIL_RATE, HEAD_RATE = 0.1, 0.1  # of fine-tuning, in shares of --learning_rate
PAUSE = 2  # seconds at least between two states that an interrupted run could go on from
PICTURES = 8  # in a step of fine-tuning
MIRRORED_PARTS = [PARTS.index((top, round(1 - left - side, 3), side)) for top, left, side in PARTS]
MISTAKES = 12  # that the gallery shows at most
REPORT = ("history.csv", "categories.csv", "curves.png", "confusion.png", "mistakes.png")
FINE_TUNE = "train the last block too, for so many more epochs (%(default)s)"
TEMPERATURES = [2 ** (step / 20) for step in range(-40, 41)]  # 1/4 to 4


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` stands in for it.

    Raises:
        UserError: a flag is unknown, missing or has a value that makes no sense.
    """
    parser = utils.ArgumentParser(prog="train.py", description=__doc__)
    number = utils.whole_number
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", required=True, help="folder with train, valid and test, or categories")
    add("--output_cat", type=utils.count_or_text, help="number of categories; required")
    add("--download", action="store_true", help="fetch Oxford-102 if there is no such folder")
    add("--split", choices=["course", "official"], default="course", help="of --download")
    add("--check", nargs="?", const="-", metavar="FILE.csv", help="look at the data, do not train")
    add("--strict", action="store_true", help="stop at the first picture that cannot be read")
    add("--means", type=utils.triple, default=utils.MEANS, help="image means %(default)s")
    add("--stds", type=utils.stds, default=utils.STDS, help="their deviations %(default)s")
    add("--views", type=number(1, 1000), default=1, help="1 plain + random ones (%(default)s)")
    add("--workers", type=number(0, 256), help="processes that decode pictures (by the cores)")
    add = parser.add_argument_group("network").add_argument
    add("--arch", choices=list(ARCHITECTURES), default="vgg16", help="backbone (%(default)s)")
    add("--weights", default="imagenet", help="imagenet (found or fetched), none, or a file")
    add("--hidden_units", type=number(1), default=512, help="of the new head (%(default)s)")
    add("--dropout", type=utils.share, default=0.5, help="share of hidden units (%(default)s)")
    add = parser.add_argument_group("fitting").add_argument
    add("--learning_rate", type=utils.positive_number, default=0.03, help="highest (%(default)s)")
    add("--epochs", type=number(1), default=7, help="passes over the features (%(default)s)")
    add("--batch_size", type=number(1), default=16, help="parts of views a step (%(default)s)")
    add("--fine_tune", type=number(0), default=0, metavar="EPOCHS", help=FINE_TUNE)
    add("--seed", type=number(0), default=0, help="of all that is random (%(default)s)")
    add = parser.add_argument_group("machine").add_argument
    add("--save_dir", default=CHECKPOINT, help="file or folder (%(default)s)")
    add("--category_names", help=f"JSON file, category: name ({utils.CATEGORY_NAMES}, if there)")
    add("--no_report", action="store_true", help="write no tables and pictures beside it")
    add("--resume", action="store_true", help="go on where the same command was interrupted")
    add("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: CUDA or MPS (%(default)s)")
    add("--precision", choices=utils.PRECISIONS, default="auto", help="(%(default)s)")
    cache = "keeps features for later runs, 24 KB a view; delete it to clear them (%(default)s)"
    add("--cache_dir", default=str(features.default_cache_folder()), help=cache)
    add("--no_cache", action="store_true", help="keep no features for later runs")
    return parser.parse_args(arguments)


def checkpoint_path(save_dir: str) -> Path:
    """The file that `--save_dir` means; its folder is made, and tried by writing to it.

    Raises:
        UserError: no file can be written there.
    """
    path = Path(save_dir)
    if os.path.isdir(path) or save_dir.endswith(("/", os.sep)) or not path.suffix:
        path = path / Path(CHECKPOINT).name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if os.path.isdir(path):
            raise IsADirectoryError(0, "is a folder")
    except OSError as error:
        raise UserError(f"--save_dir {save_dir}: cannot write there: {error.strerror}") from error
    return path


def fit(
    head: Head,
    kept: Features,
    labels: torch.Tensor,
    train_rows: torch.Tensor,
    valid_rows: torch.Tensor,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    report: Callable[[dict, bool], None] = lambda row, best: None,
    keep: Callable[[dict], None] = lambda state: None,
    state: dict | None = None,
) -> list[dict]:
    """Fit a head on kept features by SGD under a one-cycle schedule (Smith & Topin 2018).

    The head ends up as it was after the epoch with the highest validation accuracy (of several,
    the one with the lowest validation loss). Random numbers come from torch's global generator.

    Args:
        labels: (len(kept),) int64, the index of each row's category.
        train_rows, valid_rows: the rows of `kept` to train on and to choose the epoch by.
        learning_rate: the highest of the schedule.
        report: called after each epoch with its row of the history, and whether it is the best.
        keep: called after each epoch with all that going on from there needs.
        state: what `keep` got after the epoch to go on from, to the same bits on a CPU.

    Returns:
        The history: for each epoch "epoch" (from 1), "train_loss" (cross entropy with label
        smoothing, mean over parts), "valid_loss" (without) and "valid_accuracy" (fraction 0-1).

    Raises:
        UserError: the loss is no longer finite.
    """
    device = head.mean.device
    head.standardize_by(*mean_and_std(kept, train_rows))

    def loss(some: torch.Tensor) -> torch.Tensor:
        rows, parts = train_rows[some // len(PARTS)], some % len(PARTS)
        logits = head(kept[rows, parts].to(device))
        return cross_entropy(logits, labels[rows].to(device), label_smoothing=LABEL_SMOOTHING)

    return descend(
        head,
        loss,
        labels[train_rows].repeat_interleave(len(PARTS)),
        lambda: metrics(compute_logits(head, kept, valid_rows), labels[valid_rows]),
        learning_rate=learning_rate,
        shares=[(head, 1.0)],
        epochs=range(1, epochs + 1),
        batch_size=batch_size,
        report=report,
        keep=keep,
        state=state,
    )


def fine_tune(
    backbone: Backbone,
    head: Head,
    kept: Features,
    labels: torch.Tensor,
    train_rows: torch.Tensor,
    valid_rows: torch.Tensor,
    *,
    epochs: range,
    learning_rate: float,
    precision: torch.dtype,
    history: list[dict],
    report: Callable[[dict, bool], None] = lambda row, best: None,
    keep: Callable[[dict], None] = lambda state: None,
    state: dict | None = None,
) -> list[dict]:
    """Train the backbone's last block too, with a fitted head, on kept features and maps.

    Half of the maps are mirrored at random. Backbone and head stay as they were unless an epoch is
    better on `valid_rows` than all of `history`, which the epochs are added to.

    Args:
        epochs: their numbers, as the history counts them.
        learning_rate: the head's in `fit`; see TAIL_RATE and HEAD_RATE.
        precision: bfloat16 for convolutions in it, with weights in float32; else float32.

    See `fit` for the others, what is returned, and errors.
    """
    device = head.mean.device
    tuned = TunedFeatures(backbone.to(device), kept, precision)
    model = nn.ModuleList([backbone.last_block.requires_grad_(True), head])

    def loss(some: torch.Tensor) -> torch.Tensor:
        rows = train_rows[some]
        logits = head(tuned.mirrored(rows, torch.rand(len(rows)) < 0.5))  # (N, len(PARTS), C)
        target = labels[rows].repeat_interleave(len(PARTS)).to(device)
        return cross_entropy(logits.flatten(0, 1), target, label_smoothing=LABEL_SMOOTHING)

    history = descend(
        model,
        loss,
        labels[train_rows],
        lambda: metrics(compute_logits(head, tuned, valid_rows, PICTURES), labels[valid_rows]),
        learning_rate=learning_rate,
        shares=[(model[0], TAIL_RATE), (head, HEAD_RATE)],
        epochs=epochs,
        batch_size=PICTURES,
        history=history,
        report=report,
        keep=keep,
        state=state,
    )
    backbone.requires_grad_(False)
    return history


class TunedFeatures:
    """Features (see `features.Features`) whose half of the last block is computed as it is now."""

    def __init__(self, backbone: Backbone, kept: Features, precision: torch.dtype):
        self.backbone, self.kept, self.precision = backbone, kept, precision

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """(B,) int64 -> (B, len(PARTS), num_features) float32."""
        return self.mirrored(rows, torch.zeros(len(rows), dtype=torch.bool))

    def mirrored(self, rows: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """The same, with the maps of those of `which` (B,) bool mirrored before the last block.

        The parts change sides then; those of the first stage do too.
        """
        first, maps = self.kept[rows], self.kept.maps(rows)
        first[which] = first[which][:, MIRRORED_PARTS]
        maps[which] = maps[which].flip(3)
        device = next(self.backbone.parameters()).device
        maps = maps.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            second = self.backbone.tail(maps)
        return torch.cat([first.to(device)[..., : -second.shape[2]], second], 2)


def descend(
    model: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor,
    evaluate: Callable[[], dict[str, float]],
    *,
    learning_rate: float,
    shares: list[tuple[nn.Module, float]],
    epochs: range,
    batch_size: int,
    report: Callable[[dict, bool], None],
    keep: Callable[[dict], None],
    state: dict | None,
    history: Sequence[dict] = (),
) -> list[dict]:
    """SGD under a one-cycle schedule (Smith & Topin 2018); the best epoch's weights stay.

    Args:
        loss_of: from the numbers (B,) of some of the samples, their mean loss.
        labels: (samples,) int64; see `balanced_order`.
        evaluate: the validation set's `metrics`.
        shares: parts of the model, and the share of the learning rate that each gets.
        epochs: their numbers.
        history: earlier epochs; if none surpasses them, the model stays as it is.

    See `fit` for the others, what is returned, and errors.
    """
    rates = [learning_rate * share for _, share in shares]
    groups = [{"params": part.parameters(), "lr": learning_rate} for part, _ in shares]
    optimizer = torch.optim.SGD(
        groups,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
        fused=next(model.parameters()).device.type == "cpu",  # a step takes less than half the time
    )
    # One step more than is taken: the last rate is next to 0, and might be the only one.
    categories = len(labels.unique())
    samples = categories * math.ceil(len(labels) / categories)  # as in `balanced_order`
    steps = len(epochs) * math.ceil(samples / batch_size) + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps)
    moving = {"model": model, "optimizer": optimizer, "schedule": schedule}
    history, best_state = list(history), copy.deepcopy(model.state_dict())
    if state:
        for name, part in moving.items():
            part.load_state_dict(state[name])
        history, best_state = state["history"], state["best_state"]
        torch.set_rng_state(state["random"])
    best = max(map(quality, history), default=None)
    for epoch in epochs[len(history) - epochs.start + 1 :]:
        model.train()
        total = 0.0
        for some in balanced_order(labels).split(batch_size):
            loss = loss_of(some)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(some)
        model.eval()
        valid = evaluate()
        train_loss = total / samples
        if not math.isfinite(train_loss + valid["loss"]):
            raise UserError(
                f"the loss is no longer finite in epoch {epoch}; try a --learning_rate smaller "
                f"than {learning_rate:g}"
            )
        row = {"epoch": epoch, "train_loss": train_loss}
        row |= {"valid_loss": valid["loss"], "valid_accuracy": valid["accuracy"]}
        is_best = best is None or quality(row) > best
        if is_best:
            best, best_state = quality(row), copy.deepcopy(model.state_dict())
        history.append(row)
        report(row, is_best)
        state = {name: part.state_dict() for name, part in moving.items()}
        state |= {"history": history, "best_state": best_state, "random": torch.get_rng_state()}
        keep(state | {"first_epoch": epochs.start})
    model.load_state_dict(best_state)
    return history


def balanced_order(labels: torch.Tensor) -> torch.Tensor:
    """Numbers of samples, in random order, for an epoch: as many of each category.

    A large category's samples do not all come then, and a small one's come several times. That is
    0.9 points of accuracy where 40 pictures stand against 4 (benchmarks/README.md), at no cost.
    """
    counts = torch.bincount(labels)
    counts = counts[counts > 0]
    if (counts == counts[0]).all():
        return torch.randperm(len(labels))
    each, chosen = math.ceil(len(labels) / len(counts)), []
    for own in labels.argsort(stable=True).split(counts.tolist()):
        times = math.ceil(each / len(own))
        chosen.append(torch.cat([own[torch.randperm(len(own))] for _ in range(times)])[:each])
    order = torch.cat(chosen)
    return order[torch.randperm(len(order))]


def quality(row: dict) -> tuple[float, float]:
    """What the epochs of a history are compared by: the accuracy, then the loss."""
    return row["valid_accuracy"], -row["valid_loss"]


@torch.inference_mode()
def compute_logits(
    head: nn.Module, kept: Features | TunedFeatures, rows: torch.Tensor, batch_size: int = 256
) -> torch.Tensor:
    """A head's logits (len(rows), num_classes) float32, on the CPU, for rows of kept features.

    They are the mean over the parts of each picture, as in `Classifier.forward`.
    """
    head.eval()
    device = next(head.parameters()).device
    logits = torch.empty(len(rows), head.num_classes)
    for start in range(0, len(rows), batch_size):
        some = slice(start, start + batch_size)
        logits[some] = head(kept[rows[some]].to(device)).mean(1).cpu()
    return logits


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature that logits (N, num_classes) of validation pictures are to be divided by.

    It makes probabilities believable and changes no answer: the one with the lowest cross entropy
    (Guo et al. 2017), within bounds, since pictures that are all answered right would ask for 0.
    """
    return min(TEMPERATURES, key=lambda t: cross_entropy(logits / t, labels).item())


def mean_and_std(kept: Features, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (num_features) float32 of each feature over `rows`."""
    total, squares = 0.0, 0.0
    for some in rows.split(64):
        values = kept[some].flatten(0, 1).double()  # (64 * len(PARTS), num_features)
        total, squares = total + values.sum(0), squares + values.square().sum(0)
    mean, squares = (x / (len(rows) * len(PARTS)) for x in (total, squares))
    return mean.float(), (squares - mean.square()).clamp(min=0).sqrt().float()


def main(arguments: list[str] | None = None) -> None:
    """Train, as the command line says."""
    args = parse_arguments(arguments)
    if args.check:
        return check(args)
    if not isinstance(args.output_cat, int):
        raise wrong_output_cat(args)
    with features.process_group() as rank:
        train(args, rank)


def train(args: argparse.Namespace, rank: int) -> None:
    """Train and write the checkpoint. Processes of a rank above 0 only help with the features."""
    device = utils.select_device(args.device)
    precision = utils.select_precision(device, args.precision)
    backbone, views, cache = Backbone(args.arch), [], args.cache_dir
    if rank == 0:
        path = checkpoint_path(args.save_dir)
        names = utils.load_category_names(args.category_names)
        if args.download:
            utils.download_flowers(args.data_dir, args.split)
        data = utils.read_data_folder(args.data_dir)
        unreadable = utils.foresee(data)
        data = utils.leave_out(data, unreadable, args.strict)
        torch.manual_seed(args.seed)
        head = new_head(args, backbone.num_features, len(data.class_to_idx))
        show_plan(args, data, path, device, precision)
        unfinished = Unfinished(path, args)
        if args.no_cache:
            cache = unfinished.folder
        load_weights(backbone, args.arch, args.weights, args.seed)
        views = list_views(data, args.views)
    kept = features.extract(
        backbone,
        args.data_dir,
        views,
        means=args.means,
        stds=args.stds,
        cache=cache,
        device=device,
        precision=precision,
        workers=utils.default_workers(device) if args.workers is None else args.workers,
        maps=args.fine_tune > 0,
        strict=args.strict,
    )
    if rank > 0:
        return
    left_out = list_unreadable(path, unreadable | kept.failures)
    labels, rows = label_rows(data, args.views, kept)
    head.to(device)
    total = args.epochs + args.fine_tune
    how = {
        "learning_rate": args.learning_rate,
        "report": lambda row, best: print(epoch_line(row, total, best), flush=True),
        "keep": unfinished.keep,
    }
    splits = (labels, rows["train"], rows["valid"])
    state = unfinished.state_for(kept.digest)
    if state and state["first_epoch"] > 1:
        history = state["history"]
    else:
        size = args.batch_size
        history = fit(head, kept, *splits, epochs=args.epochs, batch_size=size, state=state, **how)
        state = None
    if args.fine_tune:
        epochs = range(args.epochs + 1, total + 1)
        how |= {"precision": precision, "history": history}
        history = fine_tune(backbone, head, kept, *splits, epochs=epochs, state=state, **how)
    best = max(history, key=quality)
    if best["epoch"] > args.epochs:
        kept = TunedFeatures(backbone, kept, precision)
    temperature, probs, test = evaluate(head, kept, labels, rows)
    model = Classifier(
        backbone,
        head,
        arch=args.arch,
        class_to_idx=data.class_to_idx,
        means=args.means,
        stds=args.stds,
        image_size=utils.CROP,
        temperature=temperature,
        history={
            "epoch": best["epoch"],
            "metrics": {**best, **test},
            "arguments": vars(args),
        },
    )
    save_checkpoint(path, model)
    unfinished.remove()
    print(
        f"{left_out}"
        f"best epoch {best['epoch']}: test accuracy {test['test_accuracy']:.1%} ({len(probs)} "
        f"pictures), top-5 {test['test_top5_accuracy']:.1%}, mean of the categories "
        f"{test['test_class_accuracy']:.1%}\n"
        f"calibration error {test['test_ece']:.1%} at temperature {temperature:.2f} "
        f"({test['test_ece_without_temperature']:.1%} without)\n"
        f"saved {path}; to use it: python predict.py --input PICTURE --checkpoint {path}",
        flush=True,
    )
    if not args.no_report:
        files = [views[row][0] for row in rows["test"]]
        write_report(path, history, data, files, labels[rows["test"]], probs, names)


def list_views(data: utils.DataFolder, count: int) -> list[features.View]:
    """The views that a training needs: `count` of each picture of train, then the plain others."""
    views = [(picture, view) for picture in data.paths["train"] for view in range(count)]
    return views + [(picture, 0) for split in ("valid", "test") for picture in data.paths[split]]


def evaluate(
    head: Head,
    kept: Features | TunedFeatures,
    labels: torch.Tensor,
    rows: dict[str, torch.Tensor],
) -> tuple[float, torch.Tensor, dict[str, float]]:
    """Fit the temperature on valid, and judge a fitted head on test.

    Args:
        labels: (len(kept),) int64.
        rows: those of each split.

    Returns:
        The temperature, the probabilities (N, num_classes) of the N pictures of test, and their
        `metrics`, as "test_accuracy" and so on, with "test_ece_without_temperature".
    """
    temperature = fit_temperature(compute_logits(head, kept, rows["valid"]), labels[rows["valid"]])
    logits, truth = compute_logits(head, kept, rows["test"]), labels[rows["test"]]
    judged = metrics(logits / temperature, truth)
    judged["ece_without_temperature"] = metrics(logits, truth)["ece"]
    probs = (logits / temperature).softmax(1)
    return temperature, probs, {f"test_{name}": value for name, value in judged.items()}


def write_report(
    checkpoint: Path,
    history: list[dict],
    data: utils.DataFolder,
    files: list[str],
    labels: torch.Tensor,
    probs: torch.Tensor,
    names: dict[str, str],
) -> None:
    """Write tables and pictures of a training beside its checkpoint; see REPORT.

    Args:
        files, labels, probs: the paths in `data` of test's N pictures, the (N,) indices of their
            categories, and what was answered, (N, num_classes).
        names: of categories; one that is not in it keeps its folder's name.

    Raises:
        UserError: a file cannot be written, or one of the pictures is there no more.
    """
    import plots  # here, because it takes a second

    paths = [checkpoint.with_suffix(f".{name}") for name in REPORT]
    shown = [names.get(category, category) for category in data.class_to_idx]
    utils.write_table(paths[0], [list(history[0]), *(list(row.values()) for row in history)])
    rows = category_table(data.class_to_idx, shown, labels, probs)
    utils.write_table(paths[1], [list(rows[0]), *(list(row.values()) for row in rows)])
    best = max(history, key=quality)["epoch"]
    utils.save_figure(plots.learning_curves(history, best), paths[2])
    utils.save_figure(plots.confusion_matrix(labels, probs.argmax(1), shown), paths[3])
    worst = confident_mistakes(labels, probs)
    gallery = plots.mistakes_gallery(
        [utils.load_thumbnail(os.path.join(data.root, files[i])) for i in worst],
        [files[i] for i in worst],
        [shown[labels[i]] for i in worst],
        [shown[probs[i].argmax()] for i in worst],
        [probs[i].max().item() for i in worst],
    )
    utils.save_figure(gallery, paths[4])
    print(f"report: {', '.join(path.name for path in paths)} in {checkpoint.parent}")


def category_table(
    categories: Sequence[str], names: Sequence[str], labels: torch.Tensor, probs: torch.Tensor
) -> list[dict]:
    """A row a category: "category", "name" and its `category_metrics`."""
    measured = category_metrics(labels, probs.argmax(1), len(names))
    places = zip(categories, names, measured, strict=True)
    return [{"category": category, "name": name, **row} for category, name, row in places]


def confident_mistakes(labels: torch.Tensor, probs: torch.Tensor) -> list[int]:
    """The places of wrong answers among labels (N,), the most confident first; MISTAKES at most."""
    confidence, answers = probs.max(1)
    wrong = (answers != labels).nonzero()[:, 0]
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES].tolist()


class Unfinished:
    """What a run that is interrupted leaves beside its checkpoint, for `--resume` to go on from.

    A folder with the arguments, the state after the last epoch and, with --no_cache, the features.

    Raises:
        UserError: with --resume, if the interrupted run had other arguments; or no folder can be
            made.
    """

    def __init__(self, checkpoint: Path, args: argparse.Namespace):
        self.folder = checkpoint.with_name(f"{checkpoint.name}.unfinished")
        self.path = self.folder / "state.pth"
        self.arguments = {name: value for name, value in vars(args).items() if name != "resume"}
        self.arguments["format_version"] = FORMAT_VERSION
        self.features, self.content, self.written = "", None, -math.inf
        if args.resume and self.path.exists():
            what = "state of an interrupted run"
            # A copy: a file that is mapped cannot be replaced everywhere.
            self.content = copy.deepcopy(load_file(self.path, what))
            if not isinstance(self.content, dict) or "arguments" not in self.content:
                raise UserError(f"{self.path}: not the {what}; delete it")
            before = self.content["arguments"]
            for name, value in self.arguments.items():
                if before.get(name) != value:
                    raise UserError(
                        f"--resume: the interrupted run had --{name} {before.get(name)}, not "
                        f"{value}; type that, or leave out --resume to start from the beginning"
                    )
            return
        if args.resume:
            warn(f"--resume: nothing to go on from in {self.folder}: starting from the beginning")
        self.remove()
        self.keep(None)

    def keep(self, state: dict | None) -> None:
        """Write the state, unless that was done a moment ago; None: no epoch is finished."""
        if state and time.monotonic() - self.written < PAUSE:
            return
        content = {"arguments": self.arguments, "features": self.features, "state": state}
        save_file(content, self.path)
        self.written = time.monotonic()

    def state_for(self, features: str) -> dict | None:
        """The state to go on from, if any, with the features of this digest.

        Raises:
            UserError: they have changed since.
        """
        self.features = features
        if not self.content or not self.content["state"]:
            return None
        if self.content["features"] != features:
            raise UserError(
                "--resume: the pictures have changed since then; without it, training starts anew"
            )
        return self.content["state"]

    def remove(self) -> None:
        """Delete it, if it is there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def wrong_output_cat(args: argparse.Namespace) -> UserError:
    """The error that tells which number to type for `--output_cat`, if the data folder says it."""
    given = "is missing" if args.output_cat is None else f"{args.output_cat!r}"
    try:
        count = len(utils.list_pictures(args.data_dir)["train"])
    except UserError as error:
        return UserError(f"--output_cat {given}: not a whole number from 1 on; and {error}")
    return UserError(
        f"--output_cat {given}: {args.data_dir} has {count} categories; type --output_cat {count}"
    )


def new_head(args: argparse.Namespace, num_features: int, num_classes: int) -> Head:
    """A head with random weights, after a look at `--output_cat`.

    Raises:
        UserError: there are more categories than outputs, or no memory for that many units.
    """
    if args.output_cat < num_classes:
        raise wrong_output_cat(args)
    if args.output_cat > num_classes:
        warn(
            f"--output_cat {args.output_cat}, but there are {num_classes} categories: the spare "
            "outputs will never be predicted"
        )
    try:
        return Head(num_features, args.hidden_units, args.output_cat, num_classes, args.dropout)
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"not enough memory for --hidden_units {args.hidden_units} and "
            f"--output_cat {args.output_cat}"
        ) from error


def show_plan(
    args: argparse.Namespace,
    data: utils.DataFolder,
    path: Path,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    """Print what was found, and what will be done and written."""
    for split in utils.SPLITS:
        categories = len(set(data.labels[split]))
        print(f"{split:5}  {len(data.paths[split]):7} pictures  {categories:5} categories")
    print(
        f"{args.arch} with weights {args.weights}, {args.views} view(s) of each training picture, "
        f"on {device} in {str(precision).removeprefix('torch.')}"
    )
    cache = "nowhere (--no_cache)" if args.no_cache else f"in {args.cache_dir}"
    print(f"will write {path}; features are kept {cache}", flush=True)


def check(args: argparse.Namespace) -> None:
    """Report what is in a data folder, without training; into a CSV file too, if one is named."""
    found = utils.list_pictures(args.data_dir)
    findings = utils.inspect_pictures(args.data_dir, found)
    for split, categories in found.items():
        sizes = sorted((len(pictures), category) for category, pictures in categories.items())
        print(
            f"{split:5}  {sum(size for size, _ in sizes):7} pictures  {len(sizes):5} categories, "
            f"of {sizes[0][0]} ({sizes[0][1]}) to {sizes[-1][0]} ({sizes[-1][1]})"
        )
    for kind in dict.fromkeys(finding.finding for finding in findings):
        if kind != "pictures":
            some = [f for f in findings if f.finding == kind]
            shown = [f"{f.path or f'{f.split}/{f.category}'} ({f.detail})" for f in some]
            print(utils.one_line(f"{kind}: {len(some)}: {utils.shorten(shown)}"))
    broken = {f.path for f in findings if f.finding == "unreadable"}
    pictures = {
        split: [path for paths in categories.values() for path in paths if path not in broken]
        for split, categories in found.items()
    }
    views = sum(map(len, pictures.values())) + len(pictures["train"]) * (args.views - 1)
    minutes = 0.0
    if pictures["train"]:
        minutes = seconds_per_view(args, pictures["train"]) * views / 60
    print(f"features: {views} views in about {minutes:.1f} minutes on this machine")
    print(f"to train: --output_cat {len(found['train'])}")
    if args.check != "-":
        table = [*findings, utils.Finding("minutes", "", "", "", f"{minutes:.2f}")]
        utils.write_table(args.check, [utils.Finding._fields, *table])


def seconds_per_view(args: argparse.Namespace, pictures: list[str]) -> float:
    """Seconds that decoding a view and its backbone take here: the median of some of `pictures`."""
    device = utils.select_device(args.device)
    backbone = Backbone(args.arch)
    load_weights(backbone, args.arch, "none")
    precision = utils.select_precision(device, args.precision)
    backbone, times = features.fast_copy(backbone, device, precision), []
    with torch.inference_mode():
        for path in pictures[:1] + pictures[:: max(1, len(pictures) // 8)]:
            start = time.perf_counter()
            view = utils.load_views(args.data_dir, path, [0])
            backbone(utils.normalize(view.to(device), args.means, args.stds)).cpu()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one prepares kernels


def label_rows(
    data: utils.DataFolder, views: int, kept: Features
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The label of each row of `kept`, and the rows of each split whose picture could be decoded.

    Rows are in the order train (each picture's views in turn), valid, test.

    Raises:
        UserError: a category of train, or another split, has no picture left.
    """
    utils.leave_out(data, kept.failures)
    labels = {split: torch.tensor(data.labels[split]) for split in utils.SPLITS}
    labels["train"] = labels["train"].repeat_interleave(views)
    decoded = torch.from_numpy(kept.file >= 0)
    rows, start = {}, 0
    for split in utils.SPLITS:
        end = start + len(labels[split])
        rows[split] = start + decoded[start:end].nonzero()[:, 0]
        start = end
    return torch.cat([labels[split] for split in utils.SPLITS]), rows


def list_unreadable(checkpoint: Path, failures: dict[str, str]) -> str:
    """Write the pictures that were left out into a table beside the checkpoint; a line on them.

    Where there are none, the table of an earlier run goes.
    """
    path = checkpoint.with_suffix(".unreadable.csv")
    if not failures:
        with contextlib.suppress(OSError):
            path.unlink()
        return ""
    rows = [(picture, why.split(f"{picture}: ", 1)[-1]) for picture, why in failures.items()]
    utils.write_table(path, [("path", "reason"), *rows])
    return f"{len(failures)} pictures could not be read and were left out; {path} lists them\n"


def epoch_line(row: dict, epochs: int, best: bool) -> str:
    """A row of the history, as people read it."""
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}  train loss {row['train_loss']:6.3f}  "
        f"valid loss {row['valid_loss']:6.3f}  valid accuracy {row['valid_accuracy']:6.1%}"
        f"{'  best so far' if best else ''}"
    )


if __name__ == "__main__":
    utils.run_script(main, "train.py", "; the same command with --resume goes on from there")
