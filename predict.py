"""Name the category of a picture, or of a million.

    python predict.py --input image.jpg --checkpoint checkpoint.pth
    python predict.py --input image.jpg --checkpoint checkpoint.pth --top_k 5 --plot answer.png
    python predict.py --input photos --checkpoint checkpoint.pth --output names.csv
    torchrun --nproc_per_node=2 predict.py --input photos --checkpoint c.pth --output names.csv
    python predict.py --evaluate flowers/test --checkpoint checkpoint.pth

The checkpoint is what train.py wrote. No network and no other weights are needed. What a machine
may read goes to standard output or a file, all else to standard error. The exit status is 1 if a
picture of several could not be read, and 2 if something else is wrong.
"""

from __future__ import annotations

import argparse
import collections
import csv
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import utils
from model import (
    Classifier,
    heat_map,
    import_optional,
    load_checkpoint,
    metrics,
    onnx_probabilities,
    replace_file,
    save_onnx,
)
from utils import UserError, warn

PLOTTED = 5  # categories that --plot shows at least
BAR = 20  # characters, of a probability of 1
CONFUSIONS = 10  # that --evaluate lists at most
DIFFERENCE = 1e-4  # in probability, that an ONNX file may show at most
UNKNOWN = "unknown"  # the name of an answer below --min_probability
COLUMNS = ("path", "rank", "category", "name", "probability", "error")  # of CSV
FORMATS = ("csv", "jsonl", "json", "table")
HEADS, TAILS = {"csv": ",".join(COLUMNS) + "\n", "json": "["}, {"json": "\n]\n"}
# Names of files may be bytes that are no text: they are written, and read, as the same bytes.
AS_BYTES = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


class Prediction(NamedTuple):
    """One of a picture's most likely categories."""

    category: str  # the folder's name in the training data
    name: str  # what `--category_names` calls it
    probability: float  # 0-1


class Answer(NamedTuple):
    """What the network says of a picture: probabilities, or why it could not be read."""

    path: str
    probs: torch.Tensor | None  # (num_classes,) float32
    error: str = ""


class Result(NamedTuple):
    """What the user is told of a picture."""

    path: str
    predictions: list[Prediction]  # none if there is an error
    error: str = ""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` stands in for it.

    Raises:
        UserError: a flag is unknown, missing or has a value that makes no sense.
    """
    parser = utils.ArgumentParser(prog="predict.py", description=__doc__)
    number = utils.whole_number
    add = parser.add_argument_group("what to name").add_argument
    what = "pictures, folders with all below them, patterns, or - for a list on standard input"
    add("--input", nargs="+", metavar="PATH", help=what)
    add("--evaluate", metavar="DIR", help="judge by DIR/<category>/*, or by DIR/test")
    add("--checkpoint", help="what train.py wrote; required")
    add("--means", type=utils.triple, help="image means (the checkpoint's)")
    add("--stds", type=utils.stds, help="their standard deviations (the checkpoint's)")
    add = parser.add_argument_group("answer").add_argument
    add("--top_k", type=number(1), default=1, help="how many categories to show (%(default)s)")
    add("--category_names", help=f"JSON file, category: name ({utils.CATEGORY_NAMES}, if there)")
    least = f"an answer that is less probable is {UNKNOWN!r} (%(default)s)"
    add("--min_probability", type=utils.share, default=0.0, metavar="P", help=least)
    add("--plot", metavar="FILE.png", help="draw the picture and its likeliest categories")
    add("--heatmap", metavar="FILE.png", help="draw which places spoke for the answer")
    add("--output", metavar="FILE", help="write a .csv, .jsonl or .json instead of a table")
    add("--format", choices=FORMATS, help="of standard output (table, unless there is --output)")
    add("--resume", action="store_true", help="skip pictures that --output has already")
    add("--to_onnx", metavar="FILE", help="write the model for onnxruntime; try it on --input")
    add("--quiet", action="store_true", help="no progress, no warnings, no summary")
    add("--verbose", action="store_true", help="print the checkpoint's sha256, to stderr")
    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: CUDA or MPS (%(default)s)")
    add("--precision", choices=utils.PRECISIONS, default="auto", help="(%(default)s)")
    add("--batch_size", type=number(1), help="pictures in a pass (4 on a CPU, 128 on a GPU)")
    add("--workers", type=number(0, 256), help="threads that decode pictures (by the cores)")
    args = parser.parse_args(arguments)
    if not (args.input or args.evaluate or args.to_onnx):
        parser.error("--input PATH is missing")
    if not args.checkpoint:
        parser.error("--checkpoint FILE is missing: what train.py wrote")
    if args.evaluate and (args.input or args.output or args.format):
        parser.error("--evaluate goes without --input, --output and --format")
    if args.to_onnx and (args.evaluate or not (args.input is None or is_single(args))):
        parser.error("--to_onnx goes with one picture as --input, or none")
    if args.resume and not args.output:
        parser.error("--resume goes with --output FILE")
    if args.output and format_of(args.output) not in FORMATS[:3]:
        parser.error(f"--output {args.output}: the name has to end in .csv, .jsonl or .json")
    return args


# ---------------------------------------------------------------- predictions


def predict(
    model: Classifier,
    images: Sequence[str | os.PathLike],
    *,
    top_k: int = 1,
    names: dict[str, str] | None = None,
    min_probability: float = 0.0,
    means: Sequence[float] | None = None,
    stds: Sequence[float] | None = None,
) -> list[list[Prediction]]:
    """The `top_k` most likely categories of each picture, the likeliest first.

    Several threads may call it at once, with one model.

    Args:
        model: from `load_checkpoint`.
        images: paths; they pass through the model in one batch. `answer` takes any number.
        top_k: more than there are categories gives all of them.
        names: category folder -> name; one that is not in it keeps its folder's name.
        min_probability: a picture whose likeliest category has less is "unknown"; see `rank`.
        means, stds: instead of the checkpoint's.

    Raises:
        UserError: one of the files is no picture that can be read, or a probability no number.
    """
    views = torch.stack([utils.plain_view(utils.load_image(path)) for path in images])
    probs = probabilities(model, views, means, stds)
    return [rank(model, row, top_k, names or {}, min_probability) for row in probs]


@torch.inference_mode()
def probabilities(
    model: Classifier,
    views: torch.Tensor,
    means: Sequence[float] | None = None,
    stds: Sequence[float] | None = None,
) -> torch.Tensor:
    """Views (N, 3, 224, 224) uint8 -> probabilities (N, num_classes) float32, on the CPU.

    Raises:
        UserError: one is no number.
    """
    device = next(model.parameters()).device
    batch = utils.normalize(views.to(device), means or model.means, stds or model.stds)
    probs = (model(batch) / model.temperature).softmax(1).cpu()
    if not probs.isfinite().all():
        raise UserError("no finite probabilities: wrong --means or --stds, or checkpoint")
    return probs


def rank(
    model: Classifier,
    probs: torch.Tensor,
    top_k: int,
    names: dict[str, str],
    min_probability: float = 0.0,
) -> list[Prediction]:
    """The likeliest categories by a picture's probabilities (num_classes,).

    Where the first has less than `min_probability`, there is one, of no category, called "unknown".
    """
    best, indices = (column.tolist() for column in probs.topk(min(top_k, len(probs))))
    if best[0] < min_probability:
        return [Prediction("", UNKNOWN, best[0])]
    found = [model.categories[index] for index in indices]
    return [Prediction(c, names.get(c, c), p) for c, p in zip(found, best, strict=True)]


def answer(
    model: Classifier,
    paths: Iterable[str],
    *,
    batch_size: int = 4,
    workers: int = 1,
    means: Sequence[float] | None = None,
    stds: Sequence[float] | None = None,
) -> Iterator[Answer]:
    """The model's answer to each of any number of pictures, in their order, batch by batch.

    Args:
        workers: threads that decode a few pictures ahead; 0 decodes each one when its turn comes.

    Raises:
        UserError: a probability is no number. What cannot be read is an answer with an error.
    """
    decoded = decode(paths, workers, 2 * batch_size + workers)
    while batch := list(itertools.islice(decoded, batch_size)):
        views = [view for _, view, _ in batch if view is not None]
        probs = iter(probabilities(model, torch.stack(views), means, stds) if views else ())
        for path, view, error in batch:
            yield Answer(path, None if view is None else next(probs), error)


def decode(
    paths: Iterable[str], workers: int, ahead: int
) -> Iterator[tuple[str, torch.Tensor | None, str]]:
    """Each path with its plain view (3, 224, 224) uint8, or None and the reason."""

    def read(path: str) -> tuple[str, torch.Tensor | None, str]:
        try:
            return path, utils.plain_view(utils.load_image(path)), ""
        except UserError as error:
            return path, None, str(error).removeprefix(f"{path}: ")

    if not workers:
        yield from map(read, paths)
        return
    waiting: collections.deque[Future] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(read, path))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


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


# ---------------------------------------------------------------- output


def table(predictions: Sequence[Prediction]) -> str:
    """Rank, probability, name, category and a bar of one picture's predictions, in columns."""
    rows = [("rank", "probability", "name", "category", "")]
    block = "#" if "\u2588".encode(sys.stdout.encoding or "ascii", "ignore") == b"" else "\u2588"
    for place, p in enumerate(predictions, 1):
        names = map(utils.one_line, (p.name, p.category))
        bar = block * round(BAR * p.probability)
        rows.append((str(place), f"{p.probability:.1%}", *names, bar))
    name, category = (max(len(row[column]) for row in rows) for column in (2, 3))
    lines = [f"{r[0]:>4}  {r[1]:>11}  {r[2]:{name}}  {r[3]:{category}}  {r[4]}" for r in rows]
    return "\n".join(line.rstrip() for line in lines)


def format_of(path: str) -> str:
    """The format that a file's name asks for: what stands behind its last dot."""
    return os.path.splitext(path)[1][1:].lower()


def text_of(result: Result, kind: str, first: bool) -> str:
    """A result as it stands in a file, or in standard output, of one of FORMATS.

    HEADS stand before the `first` one, TAILS after the last.
    """
    if kind == "csv":
        return _csv_rows(result)
    if kind == "jsonl":
        return _json_object(result) + "\n"
    if kind == "json":
        return ("\n" if first else ",\n") + _json_object(result)
    if result.error:
        return ""  # it is said on standard error
    return f"{utils.one_line(result.path)}\n{table(result.predictions)}\n\n"


def printed(results: Iterable[Result], kind: str) -> Iterator[Result]:
    """Pass results on, and print each of them at once."""
    first = True
    sys.stdout.write(HEADS.get(kind, ""))
    for result in results:
        sys.stdout.write(text_of(result, kind, first))
        sys.stdout.flush()
        first = False
        yield result
    sys.stdout.write(TAILS.get(kind, ""))


def _json_object(result: Result) -> str:
    if result.error:
        return json.dumps({"path": result.path, "error": result.error})
    predictions = [
        {"rank": place, **p._asdict(), "probability": round(p.probability, 6)}
        for place, p in enumerate(result.predictions, 1)
    ]
    return json.dumps({"path": result.path, "predictions": predictions})


def _csv_rows(result: Result) -> str:
    rows = [
        (result.path, place, p.category, p.name, f"{p.probability:.6f}", "")
        for place, p in enumerate(result.predictions, 1)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(rows or [(result.path, "", "", "", "", result.error)])
    return text.getvalue()


class OutputFile:
    """A file of results that is moved into place when it is whole.

    Until then it is `FILE.partial`, which `resume` goes on from after an interruption; without
    one, it goes on from FILE itself.

    Attributes:
        done: how often each path is in it already.

    Raises:
        UserError: it cannot be written; or, with `resume`, what is there is no output.
    """

    def __init__(self, path: str, resume: bool):
        self.path, self.kind = Path(path), format_of(path)
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.done: collections.Counter[str] = collections.Counter()
        end = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise IsADirectoryError(0, "is a folder")
            whole = not self.partial.exists() and self.path.exists()
            if resume and whole:
                with open(self.path, "rb") as old:
                    replace_file(self.partial, lambda file: shutil.copyfileobj(old, file))
            if resume and self.partial.exists():
                self.done, end = read_output(self.partial, self.kind, whole)
            self.file = open(self.partial, "r+" if end else "w", **AS_BYTES)
            self.file.seek(end)
            self.file.truncate()
        except OSError as error:
            raise self._unusable(error) from error

    def missing(self, paths: Iterable[str]) -> Iterator[str]:
        """Those of the paths that are not in it yet."""
        for path in paths:
            if self.done[path]:
                self.done[path] -= 1  # a path that is given twice is there twice
            else:
                yield path

    def write(self, results: Iterable[Result]) -> None:
        """Write results as they come, then move the file into place.

        Raises:
            UserError: the disk is full, or the like.
        """
        try:
            with self.file:
                first = self.file.tell() == 0
                self.file.write(HEADS.get(self.kind, "") if first else "")
                for result in results:
                    self.file.write(text_of(result, self.kind, first))
                    self.file.flush()
                    first = False
                self.file.write(TAILS.get(self.kind, ""))
                self.file.flush()
                os.fsync(self.file.fileno())
            os.replace(self.partial, self.path)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"--output {self.path}: cannot write it: {error.strerror}")


def read_output(path: Path, kind: str, whole: bool) -> tuple[collections.Counter[str], int]:
    """How often each path has a result in a file that may be cut off; the byte where those end.

    Args:
        whole: it is not cut off. Else the last result of a CSV may lack rows, and does not count.

    Raises:
        UserError: it is none that this program writes.
    """
    done: collections.Counter[str] = collections.Counter()
    end, position, row, last = 0, 0, "", None
    with open(path, **AS_BYTES) as file:
        head = HEADS.get(kind, '{"path": ')
        if not head.startswith(file.read(len(head))):
            raise UserError(f"--resume: {path} is no .{kind} file of this program")
        file.seek(0)
        for line in file:
            row += line
            if kind == "csv" and row.count('"') % 2:
                continue  # within a path that has a line end
            start, position = position, position + len(row.encode(errors="surrogateescape"))
            if kind != "json" and not row.endswith("\n"):
                break  # cut off here
            try:
                if kind == "csv":
                    found, place = next(csv.reader([row]))[:2]
                    if place in ("", "1"):  # a result begins: the one before is whole
                        done.update([last] if last else [])
                        end, last = start, found
                elif row.strip() not in ("[", "]"):
                    record = row.rstrip("\n" if kind == "jsonl" else ",\n")
                    done[json.loads(record)["path"]] += 1
                    end = start + len(record.encode()) + (kind == "jsonl")
            except (ValueError, KeyError, TypeError):
                break  # cut off here
            row = ""
        if whole and last:
            done[last], end = done[last] + 1, position
    return done, end


# ---------------------------------------------------------------- the command line


def main(arguments: list[str] | None = None) -> None:
    """Predict, as the command line says."""
    args = parse_arguments(arguments)
    if args.to_onnx:
        return show_onnx(args)
    if is_single(args):
        return show_one(args)
    if args.heatmap or (args.plot and not args.evaluate):
        raise UserError("--plot and --heatmap are for one picture")
    from features import process_group  # here, because one picture does without

    with process_group() as process:
        unreadable = (judge if args.evaluate else show_many)(args, process == 0)
    if unreadable:
        sys.exit(1)


def is_single(args: argparse.Namespace) -> bool:
    """Whether one picture is asked for, to be shown to a person."""
    if args.evaluate or args.output or args.format or len(args.input) > 1:
        return False
    [word] = args.input
    return not (word == "-" or os.path.isdir(word) or utils.is_pattern(word))


def load(args: argparse.Namespace) -> Classifier:
    """The checkpoint, on the device and in the precision that are asked for."""
    device = utils.select_device(args.device)
    model = load_checkpoint(args.checkpoint).to(device)
    if args.verbose:
        sha256 = utils.sha256_of(args.checkpoint)
        print(f"{utils.one_line(args.checkpoint)}: sha256 {sha256}", file=sys.stderr)
    precision = utils.select_precision(device, args.precision)
    model.backbone.to(precision, memory_format=torch.channels_last)
    return model


def show_one(args: argparse.Namespace) -> None:
    """Print the answer to one picture, and draw what is asked for."""
    names = utils.load_category_names(args.category_names)
    model, [path] = load(args), args.input
    overrides = {"means": args.means, "stds": args.stds}
    view = utils.plain_view(utils.load_image(path))
    [probs] = probabilities(model, view[None], **overrides)
    print(table(rank(model, probs, args.top_k, names, args.min_probability)), flush=True)
    best = rank(model, probs, max(args.top_k, PLOTTED), names)
    if args.plot or args.heatmap:
        import plots  # here, because it takes a second
    if args.plot:
        image, caption = utils.load_thumbnail(path), os.path.basename(path)
        shown, values = [p.name for p in best], [p.probability for p in best]
        utils.save_figure(plots.prediction_bars(image, shown, values, caption), args.plot)
    if args.heatmap:
        seen, heat = explain(model, path, best[0].category, **overrides)
        utils.save_figure(plots.heat_map(seen, heat, best[0].name), args.heatmap)


def show_onnx(args: argparse.Namespace) -> None:
    """Write the model as an ONNX file, and compare what it says of a picture, if one is given.

    Raises:
        UserError: the answers differ.
    """
    names, model = utils.load_category_names(args.category_names), load_checkpoint(args.checkpoint)
    overrides = {"means": args.means, "stds": args.stds}
    if args.input:  # first, because an export takes its time
        import_optional("--to_onnx with --input", "onnxruntime")
        view = utils.plain_view(utils.load_image(args.input[0]))[None]
        wanted = probabilities(model, view, **overrides)
    save_onnx(model, args.to_onnx, names, **overrides)
    print(f"saved {args.to_onnx}", flush=True)
    if not args.input:
        return
    found = onnx_probabilities(args.to_onnx, view)
    difference = (wanted - found).abs().max().item()
    print(f"largest difference in probability: {difference:.1e}")
    if not difference <= DIFFERENCE:
        raise UserError(
            f"{args.to_onnx}: its probabilities differ by {difference:.1e}: do not use it"
        )


def answer_all(
    model: Classifier, args: argparse.Namespace, paths: Iterable[str]
) -> Iterator[Answer]:
    """The answers to many pictures. torchrun's other processes take a share, and get none."""
    from features import BATCH_SIZES, deal, fast_copy  # here, because one picture does without

    device = next(model.parameters()).device
    model.backbone = fast_copy(model.backbone, device, model.backbone.features[0].weight.dtype)
    size = args.batch_size or BATCH_SIZES[device.type]
    workers = utils.default_workers(device) if args.workers is None else args.workers
    how = {"batch_size": size, "workers": workers, "means": args.means, "stds": args.stds}
    for one in deal(paths, lambda some: answer(model, some, **how), 16 * size):
        if one.error and not args.quiet:
            warn(f"{one.path}: {one.error}")
        yield one


def show_many(args: argparse.Namespace, first: bool) -> int:
    """Print or write the answers to any number of pictures, as they come.

    Args:
        first: this is torchrun's first process, or the only one.

    Returns:
        How many could not be read.
    """
    names, model = utils.load_category_names(args.category_names), load(args)
    if not first:
        return len(list(answer_all(model, args, [])))
    paths = utils.find_pictures(args.input)
    some = list(itertools.islice(paths, 1))
    if not some and "-" not in args.input:
        raise UserError(f"--input {utils.shorten(args.input)}: no pictures there")
    output = OutputFile(args.output, args.resume) if args.output else None
    paths = itertools.chain(some, paths)
    counts = collections.Counter()

    def results() -> Iterator[Result]:
        for path, probs, error in answer_all(
            model, args, output.missing(paths) if output else paths
        ):
            counts[error != ""] += 1
            ranked = [] if error else rank(model, probs, args.top_k, names, args.min_probability)
            yield Result(path, ranked, error)

    there = output.done.total() if output else 0
    told = results()
    if args.format or not output:
        told = printed(told, args.format or "table")
    if output:
        from tqdm import tqdm

        hidden = args.quiet or not sys.stderr.isatty() or args.format is not None
        output.write(tqdm(told, unit=" pictures", disable=hidden))
    else:
        collections.deque(told, maxlen=0)
    if not args.quiet:
        already = f", {there} were in {args.output} already" if there else ""
        done = f"{counts[False]} pictures named, {counts[True]} could not be read{already}"
        print(done, file=sys.stderr)
    return counts[True]


def judge(args: argparse.Namespace, first: bool) -> int:
    """Print how good a checkpoint is on a labelled folder, and draw its confusion matrix if asked.

    See `show_many` for what it takes and returns.
    """
    names, model = utils.load_category_names(args.category_names), load(args)
    labelled = utils.list_labelled(args.evaluate, model.class_to_idx)
    answers = answer_all(model, args, [path for path, _ in labelled] if first else [])
    if not first:
        return len(list(answers))
    places = zip(labelled, answers, strict=True)
    found = [(label, one.probs) for (_, label), one in places if one.probs is not None]
    if not found:
        raise UserError(f"--evaluate {args.evaluate}: none of its pictures can be read")
    labels = torch.tensor([label for label, _ in found])
    probs = torch.stack([row for _, row in found])
    measured = metrics(probs.clamp(min=1e-30).log(), labels)
    shown = [names.get(category, category) for category in model.categories]
    print(
        f"{len(found)} pictures of {len(labels.unique())} categories: accuracy "
        f"{measured['accuracy']:.1%}, top-5 {measured['top5_accuracy']:.1%}, mean of the "
        f"categories {measured['class_accuracy']:.1%}, calibration error {measured['ece']:.1%}"
    )
    best, answered = probs.max(1)
    if args.min_probability:
        sure = best >= args.min_probability
        right = (answered == labels)[sure].double().mean().item() if sure.any() else 0
        print(
            f"{sure.double().mean().item():.1%} of them are answered with a probability of at "
            f"least {args.min_probability:g}, and {right:.1%} of these answers are right"
        )
    wrong = collections.Counter(
        (shown[label], shown[index])
        for label, index in zip(labels.tolist(), answered.tolist(), strict=True)
        if label != index
    )
    for (label, index), count in wrong.most_common(CONFUSIONS):
        print(utils.one_line(f"{count} of {label} taken for {index}"))
    if args.plot:
        import plots

        utils.save_figure(plots.confusion_matrix(labels, answered, shown), args.plot)
    return len(labelled) - len(found)


if __name__ == "__main__":
    hint = "; with --output, the same command with --resume goes on from there"
    utils.run_script(main, "predict.py", hint)
