"""Fits the head on features, and evaluates it.

    features (N, 6, 2048) -> fit -> head -> hidden layer, logits (N, num_classes) -> evaluate

The last epoch is used: to choose one on few validation images costs up to 1.6 points of accuracy
(docs/results.md).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from evaluation.calibration import fit_temperature
from evaluation.metrics import metrics
from model import Head
from networks.novelty import SCORES, NoveltyDetector, calibrated_novelty, uncertainty_of
from system.devices import one_thread
from system.messages import UserError, progress
from training.features import Features, list_views
from training.head_outputs import BATCH_SIZE, compute_logits, compute_outputs, fit_detector_on
from training.linear import fit_linear
from training.optimization import Sgd
from training.resume import UnfinishedRun, damaged_state
from training.sampling import (
    balanced_order,
    balanced_size,
    divide_into_folds,
    in_several_folds,
    mean_and_std,
)
from utils import SPLITS, DataFolder, exclude_images

LABEL_SMOOTHING = 0.1  # Szegedy et al. 2016; 0.5 to 1 point of accuracy (docs/results.md)
MAX_LOSS = 200  # of train and valid; that of guessing is 14 for a million categories
STATISTICS_BATCH_SIZE = 64  # views
FOLDS = 5  # of the cross-validation: fitting takes five times as long
# With fewer images of valid, those of train calibrate as well, if they are no more than that.
FEW_VALID = 50
MAX_CROSS_VALIDATED = 1000
# Of the linear classifier, whose features have a variance of 1 (docs/results.md).
RIDGE = 0.3
PRIOR_IMAGES = 20  # as how many training images the mean variance of all features counts
LINEAR_IMAGES = 15  # of a category: with so many, both classifiers' logits are equally large


class FitSettings(NamedTuple):
    """How a head is fitted.

    Attributes:
        epochs: passes over the features.
        learning_rate: the maximum of the schedule.
        batch_size: regions in a step.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 64


class Samples(NamedTuple):
    """Features of the views of a data folder, with their labels.

    Attributes:
        labels: (len(features),) int64, the index of each row's category.
        rows: by split, int64; those of train come first, then those of valid, then those of test.
        views: of each image of train; the first one is the plain one.
    """

    features: Features
    labels: torch.Tensor
    rows: dict[str, torch.Tensor]
    views: int = 1

    def plain_rows(self) -> torch.Tensor:
        """Return the row of the plain view of each image of all splits, (N,) int64."""
        train, *others = (self.rows[split] for split in SPLITS)
        return torch.cat([train[:: self.views], *others])

    def with_valid_in_train(self) -> Samples:
        """Return samples whose train has the images of valid as well; their valid is empty."""
        rows = {"train": torch.cat([self.rows["train"], self.rows["valid"]])}
        return self._replace(rows={**self.rows, **rows, "valid": self.rows["valid"][:0]})

    def averages(self) -> Iterator[torch.Tensor]:
        """Yield `Features.averages` of the plain view of each image, in batches."""
        return map(self.features.averages, self.plain_rows().split(BATCH_SIZE))


def label_features(features: Features, data: DataFolder, views: int) -> tuple[Samples, DataFolder]:
    """Leave out the images that could not be decoded, and label the features of all others.

    Args:
        features: of `list_views(data, views)`.

    Returns:
        The samples, and the data folder with their images, in the same order.

    Raises:
        UserError: see `utils.exclude_images`.
    """
    rows_left = []
    for row, view in enumerate(list_views(data, views)):
        if view.path not in features.failures:
            rows_left.append(row)
    data = exclude_images(data, features.failures)
    labels = [torch.tensor(data.labels(split)) for split in SPLITS]
    labels[0] = labels[0].repeat_interleave(views)
    ranges = torch.arange(len(rows_left)).split([len(part) for part in labels])
    rows = dict(zip(SPLITS, ranges, strict=True))
    return Samples(features.select(rows_left), torch.cat(labels), rows, views), data


def fit_heads(
    head: Head, final: Head | None, samples: Samples, settings: FitSettings, run: UnfinishedRun
) -> list[dict]:
    """Fit the head on train and, for --final, another one on train and valid; or resume that.

    Returns:
        The history of the first head.
    """
    run.check_features(samples.features.identity())
    epochs = settings.epochs
    if final is None:
        return fit(head, samples, settings, run=run, total_epochs=epochs)
    history = fit(head, samples, settings, run=run, total_epochs=2 * epochs)
    samples = samples.with_valid_in_train()
    fit(final, samples, settings, run=run, first_epoch=epochs + 1, total_epochs=2 * epochs)
    return history


@one_thread()
def fit(
    head: Head,
    samples: Samples,
    settings: FitSettings,
    *,
    run: UnfinishedRun | None = None,
    first_epoch: int = 1,
    total_epochs: int = 0,
) -> list[dict]:
    """Fit a head on the features of train, in one thread; "valid", unless empty, is evaluated.

    Random numbers come from torch's global generator.

    If `run` was resumed (see `resume.UnfinishedRun`) and has a state of this head, it is loaded,
    and its epochs are skipped. On a CPU, the result is the same to the bit.

    Args:
        run: what epochs are saved to, and resumed from; they are printed as well.
        first_epoch: its number in the history and in `run`.
        total_epochs: of all heads, for the print.

    Returns:
        The history: for each epoch "epoch" and "train_loss", the mean over regions with label
        smoothing; if there are validation images, also "valid_loss", the mean over images without
        it, and "valid_accuracy" (0-1).

    Raises:
        UserError: the loss exceeds MAX_LOSS or is not finite, or the state is damaged.
    """
    labels = region_labels(samples)
    steps = math.ceil(balanced_size(labels) / settings.batch_size)  # of an epoch
    optimizer = Sgd(head.layers.parameters(), settings.learning_rate, settings.epochs * steps)
    numbers = range(first_epoch, first_epoch + settings.epochs)
    history: list[dict] = []
    if run is not None and first_epoch in run.states:
        has_valid = len(samples.rows["valid"]) > 0
        history = restore(head, optimizer, run.states[first_epoch], numbers, has_valid=has_valid)
    else:
        standardize(head, samples)
        fit_linear_on(head, samples, labels)
    for epoch in numbers[len(history) :]:
        train_loss = train_one_epoch(head, samples, labels, optimizer, settings.batch_size)
        row = {"epoch": epoch, "train_loss": train_loss, **validate(head, samples)}
        check_loss(row, settings.learning_rate)
        history.append(row)
        if run is not None:
            print(format_epoch(row, total_epochs), flush=True)
            state = {
                "head": head.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": history,
                "random": torch.get_rng_state(),
            }
            run.save(first_epoch, state)
    return history


def train_one_epoch(
    head: Head, samples: Samples, labels: torch.Tensor, optimizer: Sgd, batch_size: int
) -> float:
    """Take a step for each batch of regions of train; returns the mean loss over the regions.

    An epoch has equally many regions of each label: this is 0.9 points of accuracy where categories
    have 4 to 40 images (docs/results.md), at no cost.

    Args:
        labels: from `region_labels`.
    """
    rows = samples.rows["train"]
    num_regions = len(labels) // len(rows)
    device = head.mean.device
    order = balanced_order(labels)
    total = 0.0
    head.train()
    for batch in order.split(batch_size):
        features = samples.features[rows[batch // num_regions], batch % num_regions]
        logits = head(features.to(device))  # (B, num_classes)
        target = labels[batch].to(device)
        loss = cross_entropy(logits, target, label_smoothing=LABEL_SMOOTHING)
        optimizer.step(loss)
        total += loss.item() * len(batch)
    head.eval()
    return total / len(order)


def validate(head: Head, samples: Samples) -> dict[str, float]:
    """Return "valid_loss" and "valid_accuracy"; nothing if there are no validation images."""
    rows = samples.rows["valid"]
    if len(rows) == 0:
        return {}
    valid = metrics(compute_logits(head, samples.features, rows), samples.labels[rows])
    return {"valid_loss": valid["loss"], "valid_accuracy": valid["accuracy"]}


def standardize(head: Head, samples: Samples) -> None:
    """Let a head standardize features by their mean and standard deviation over train."""
    batches = samples.rows["train"].split(STATISTICS_BATCH_SIZE)
    mean, std = mean_and_std(samples.features[batch].flatten(0, 1) for batch in batches)
    head.standardize_by(mean, std)


def fit_linear_on(head: Head, samples: Samples, labels: torch.Tensor) -> None:
    """Fit the linear classifier of a head, which standardizes already, on the regions of train.

    Args:
        labels: from `region_labels`.
    """
    rows = samples.rows["train"]
    num_regions = len(labels) // len(rows)

    def standardized() -> Iterator[torch.Tensor]:
        for batch in rows.split(STATISTICS_BATCH_SIZE):
            features = samples.features[batch].flatten(0, 1).to(head.mean.device)
            yield head.standardize(features)

    batches = zip(standardized(), labels.split(STATISTICS_BATCH_SIZE * num_regions), strict=True)

    # With label smoothing, the loss of the hidden layer is lowest where the logit of the label is
    # larger than others by this.
    margin = math.log(1 + head.num_classes * (1 - LABEL_SMOOTHING) / LABEL_SMOOTHING)
    counts = labels.bincount(minlength=head.num_outputs)
    num_images = len(rows) / samples.views
    images_of_label = num_images / int((counts > 0).sum())
    scale = margin * LINEAR_IMAGES / images_of_label
    # With few images, it is by chance that a feature has a small variance: its weight then gets a
    # larger penalty. To draw the variances themselves to their mean would be as accurate, and make
    # a third of the images of no category look usual to the hidden layer.
    variance = head.std.cpu().square()
    prior = PRIOR_IMAGES / (num_images + PRIOR_IMAGES)
    penalties = RIDGE * (1 - prior + prior * variance.mean() / variance)
    fit_linear(head.linear, batches, counts, penalties, scale)


def region_labels(samples: Samples) -> torch.Tensor:
    """Return the label of each region of each view of train, (views * num_regions,) int64."""
    rows = samples.rows["train"]
    num_regions = samples.features[rows[:1]].shape[1]
    return samples.labels[rows].repeat_interleave(num_regions)


def check_loss(row: dict[str, float], learning_rate: float) -> None:
    """Raise UserError if the loss of an epoch exceeds MAX_LOSS or is not finite."""
    train_loss = row["train_loss"]
    if not train_loss + row.get("valid_loss", 0) < MAX_LOSS:
        raise UserError(
            f"the loss is {train_loss:.3g} in epoch {row['epoch']}; "
            f"try a --learning_rate smaller than {learning_rate:g}"
        )


def format_epoch(row: dict[str, float], total_epochs: int) -> str:
    """Format a row of the history as a line."""
    width = len(str(total_epochs))
    line = f"epoch {row['epoch']:{width}}/{total_epochs}  train loss {row['train_loss']:6.3f}"
    if "valid_loss" in row:
        line += f"  valid loss {row['valid_loss']:6.3f}"
        line += f"  valid accuracy {row['valid_accuracy']:6.1%}"
    return line


def restore(
    head: Head, optimizer: Sgd, state: dict[str, Any], epochs: range, *, has_valid: bool
) -> list[dict]:
    """Load the state that `fit` saved after an epoch; returns its history.

    Args:
        epochs: the numbers of all epochs of the head.
        has_valid: whether these epochs have validation images.

    Raises:
        UserError: the state is damaged.
    """
    try:
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        history = list(state["history"])
        losses = [row["train_loss"] for row in history]
        if has_valid:
            losses += [row["valid_loss"] for row in history]
        is_valid = (
            0 < len(history) <= len(epochs)
            and [row["epoch"] for row in history] == list(epochs[: len(history)])
            and optimizer.steps * len(epochs) == len(history) * optimizer.total
            and all(type(loss) is float for loss in losses)
        )
    except Exception as error:
        raise damaged_state() from error
    if not is_valid:
        raise damaged_state()
    return history


class Evaluation(NamedTuple):
    """What `evaluate` returns: how a fitted head is calibrated, and how good it is on test.

    Attributes:
        detector: None if `fit_detector` returns None.
        labels: (N,) int64, of the N images of test.
        probs: (N, num_classes).
        novelty: (N,); without a detector, it is NaN.
        metrics: of test, as "test_accuracy" and so on, with "test_ece_without_temperature".
    """

    temperature: float
    detector: NoveltyDetector | None
    labels: torch.Tensor
    probs: torch.Tensor
    novelty: torch.Tensor
    metrics: dict[str, float]


class KnownLogits(NamedTuple):
    """Predictions for N images, each by a head that was not fitted on it.

    Attributes:
        logits: (N, num_classes).
        labels: (N,) int64.
    """

    logits: torch.Tensor
    labels: torch.Tensor


def evaluate(
    head: Head, samples: Samples, final: Head | None = None, others: KnownLogits | None = None
) -> Evaluation:
    """Fit temperature and novelty detector on train and valid; evaluate a fitted head on test.

    Args:
        head: was fitted on train.
        final: was fitted on train and valid, and is evaluated instead. It is calibrated by what
            `head` predicts for valid: it knows these images itself.
        others: of images of train, see `predict_train`; they calibrate as well.
    """
    features = samples.features
    labels = samples.labels
    rows = samples.rows
    detector = fit_detector_on(head, features, labels, rows["train"])
    valid_logits, valid_scores = compute_outputs(head, detector, features, rows["valid"])
    if final is not None:
        head = final
        if detector is not None:  # without one, nothing was measured that calibrates another
            train_rows = samples.with_valid_in_train().rows["train"]
            detector = fit_detector_on(final, features, labels, train_rows)
    logits, scores = compute_outputs(head, detector, features, rows["test"])
    known = KnownLogits(valid_logits, labels[rows["valid"]])
    if others is not None:
        pairs = zip(known, others, strict=True)
        known = KnownLogits(*(torch.cat(pair) for pair in pairs))
    temperature = fit_temperature(known.logits, known.labels)
    test_labels = labels[rows["test"]]
    test_metrics = metrics(logits / temperature, test_labels)
    test_metrics["ece_without_temperature"] = metrics(logits, test_labels)["ece"]
    return Evaluation(
        temperature=temperature,
        detector=detector,
        labels=test_labels,
        probs=(logits / temperature).softmax(1),
        novelty=calibrated_novelty(
            detector,
            scores,
            distance=valid_scores[:, 0],
            uncertainty=uncertainty_of(known.logits),
        ),
        metrics={f"test_{name}": value for name, value in test_metrics.items()},
    )


class CrossValidation(NamedTuple):
    """Predictions for N images, each by a network that was not fitted on it.

    Attributes:
        probs: (N, num_classes), calibrated.
        novelty: (N,); NaN: there is no detector.
        is_valid: (N,) bool, whether the network was fitted on other images of the category.
    """

    probs: torch.Tensor
    novelty: torch.Tensor
    is_valid: torch.Tensor


def cross_validate(
    head: Head, samples: Samples, folds: torch.Tensor, settings: FitSettings
) -> CrossValidation:
    """Predict all images of all splits, and calibrate the predictions; see `_predict_folds`."""
    logits, scores, detector = _predict_folds(head, samples, folds, settings)
    labels = samples.labels[samples.plain_rows()]
    is_valid = in_several_folds(labels, folds)
    temperature = fit_temperature(logits[is_valid], labels[is_valid])
    known_scores = scores[~scores.isnan().any(1)]
    return CrossValidation(
        probs=(logits / temperature).softmax(1),
        novelty=calibrated_novelty(detector, scores, *known_scores.unbind(1)),
        is_valid=is_valid,
    )


def needs_train(samples: Samples) -> bool:
    """Return whether valid is too small to calibrate a head, and train small enough to help."""
    num_train = len(samples.rows["train"]) // samples.views
    return len(samples.rows["valid"]) < FEW_VALID and num_train <= MAX_CROSS_VALIDATED


def predict_train(
    head: Head, samples: Samples, groups: torch.Tensor, settings: FitSettings
) -> KnownLogits | None:
    """Predict the images of train by cross-validation; those that are alone are left out.

    Args:
        head: see `_predict_folds`.
        groups: (N,) int64, of the images of train. Those of a group are in one fold: a head that
            knows a copy of an image is surer of it than of new ones.

    Returns:
        None if no category has images of two groups.
    """
    train = samples.rows["train"]
    labels = samples.labels[train[:: samples.views]]
    folds = divide_into_folds(labels, groups, FOLDS, seed=0)
    is_valid = in_several_folds(labels, folds)
    if not is_valid.any():
        return None
    rows = {"train": train, "valid": train[:0], "test": train[:0]}
    logits, _, _ = _predict_folds(head, samples._replace(rows=rows), folds, settings, delay=5)
    return KnownLogits(logits[is_valid], labels[is_valid])


def _predict_folds(
    head: Head, samples: Samples, folds: torch.Tensor, settings: FitSettings, delay: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, NoveltyDetector | None]:
    """Predict all images, each fold by a head that is fitted on the others.

    Args:
        head: with new weights; for each fold, a copy of it is fitted.
        folds: (N,) int64, of the images of `plain_rows`, whose plain views are predicted.
        delay: seconds before progress is shown.

    Returns:
        Logits (N, num_classes), scores (N, 2), and one of the detectors, if there is one.

    Raises:
        UserError: see `fit`.
    """
    features = samples.features
    plain_rows = samples.plain_rows()
    labels = samples.labels[plain_rows]
    # All views of an image are in its fold.
    count = len(samples.rows["train"]) // samples.views
    rows = torch.cat([samples.rows[split] for split in SPLITS])
    row_folds = torch.cat([folds[:count].repeat_interleave(samples.views), folds[count:]])
    logits = torch.empty(len(labels), int(samples.labels.max()) + 1)
    scores = torch.empty(len(labels), len(SCORES))
    last_detector = None
    random_state = torch.get_rng_state()
    numbers = folds.unique().tolist()
    for fold in progress(numbers, len(numbers), "cross-validation", size=lambda _: 1, delay=delay):
        is_held_out = folds == fold
        held_out = plain_rows[is_held_out]
        train_rows = rows[row_folds != fold]
        torch.set_rng_state(random_state)  # the same random numbers for each fold
        fold_head = copy.deepcopy(head)
        fold_samples = samples._replace(rows={"train": train_rows, "valid": held_out})
        fit(fold_head, fold_samples, settings)
        detector = fit_detector_on(fold_head, features, samples.labels, train_rows)
        fold_logits, fold_scores = compute_outputs(fold_head, detector, features, held_out)
        logits[is_held_out] = fold_logits
        scores[is_held_out] = fold_scores
        if detector is not None:
            last_detector = detector
    return logits, scores, last_detector
