"""Fits the head on features, or fine-tunes the backbone's last block; evaluates the result.

    features (N, 6, 2048) -> fit -> head -> hidden layer, logits (N, num_classes) -> evaluate

SGD under a one-cycle learning rate schedule (Smith & Topin 2018). The last epoch is used: to choose
one on few validation images costs up to 1.7 points of accuracy (benchmarks/README.md).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from evaluation.calibration import fit_temperature
from evaluation.metrics import metrics
from model import REGIONS, Backbone, Head
from networks.novelty import SCORES, NoveltyDetector, calibrated_novelty
from networks.vgg import replace_second_stage
from system.devices import one_thread
from system.messages import progress
from training.features import Features, list_views
from training.head_outputs import BATCH_SIZE, compute_logits, compute_outputs, fit_detector_on
from training.optimization import OnEpoch, default_batch_size, format_epoch, optimize, used_epoch
from training.resume import UnfinishedRun
from training.sampling import in_several_folds, mean_and_std
from utils import SPLITS, DataFolder, exclude_images

LABEL_SMOOTHING = 0.1  # Szegedy et al. 2016; 0.5 to 1 point of accuracy (benchmarks/README.md)
BLOCK_RATE, HEAD_RATE = 0.1, 0.1  # of fine-tuning, as fractions of the learning rate
FINE_TUNE_BATCH_SIZE = 8  # views
STATISTICS_BATCH_SIZE = 64  # views


class Samples(NamedTuple):
    """Features of the views of a data folder, with their labels.

    Attributes:
        labels: (len(features),) int64, the index of each row's category.
        rows: by split, int64; those of train come first, then those of valid, then those of test.
        views: of each image of train; the first one is the plain one.
    """

    features: Any  # Features or FineTunedFeatures
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


def fit_network(
    args: argparse.Namespace,
    backbone: Backbone,
    head: Head,
    final: Head | None,
    samples: Samples,
    precision: torch.dtype,
    unfinished: UnfinishedRun,
) -> tuple[list[dict], Samples]:
    """Fit the head, then the final head or the backbone's last block if asked for; or resume that.

    Returns the history without the final head's epochs, and the samples; see `fine_tune`.
    """
    total = args.epochs + (args.epochs if final else args.fine_tune)
    state = unfinished.state_for(samples.features.identity())

    def on_epoch(row: dict, state: dict) -> None:
        print(format_epoch(row, total), flush=True)
        unfinished.save(state)

    fit_head = partial(
        fit,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        on_epoch=on_epoch,
    )
    history: list[dict] = []
    if not state or state.get("first_epoch") != args.epochs + 1:  # the head is not fitted yet
        history, state = fit_head(head, samples, state=state), None
    if final:
        history = fit_head(
            final,
            samples.with_valid_in_train(),
            first_epoch=args.epochs + 1,
            fitted=head,
            history=history,
            state=state,
        )
    if args.fine_tune:
        return fine_tune(
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
    return history[: args.epochs], samples


@one_thread()
def fit(
    head: Head,
    samples: Samples,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int | None,
    first_epoch: int = 1,
    fitted: Head | None = None,
    history: list[dict] | None = None,
    on_epoch: OnEpoch = lambda row, state: None,
    state: dict | None = None,
) -> list[dict]:
    """Fit a head on features, in one thread, with torch's global generator of random numbers.

    Args:
        samples: "train" is fitted; "valid", unless it is empty, is evaluated after each epoch.
        learning_rate: the maximum of the schedule.
        batch_size: regions in a step; None: see `default_batch_size`.
        first_epoch: its number in the history.
        fitted: another head, which the state includes.
        history, on_epoch, state: see `optimize`.

    Returns:
        The history, as `optimize` does. "train_loss" is that of regions, with label smoothing,
        "valid_loss" that of images, without.

    Raises:
        UserError: see `optimize`.
    """
    features, labels, rows = samples[:3]
    device, train_rows = head.mean.device, rows["train"]
    num_regions = features[train_rows[:1]].shape[1]
    batches = train_rows.split(STATISTICS_BATCH_SIZE)
    head.standardize_by(*mean_and_std(features[batch].flatten(0, 1) for batch in batches))

    def loss_of(indices: torch.Tensor) -> torch.Tensor:
        batch, regions = train_rows[indices // num_regions], indices % num_regions
        logits = head(features[batch, regions].to(device))  # (B, num_classes)
        return cross_entropy(logits, labels[batch].to(device), label_smoothing=LABEL_SMOOTHING)

    return optimize(
        nn.ModuleList([head, fitted]) if fitted else head,
        loss_of,
        labels[train_rows].repeat_interleave(num_regions),
        lambda: compute_logits(head, features, rows["valid"]),
        labels[rows["valid"]],
        learning_rate=learning_rate,
        rates=[(head, 1.0)],
        epochs=range(first_epoch, first_epoch + epochs),
        batch_size=batch_size or default_batch_size(labels[train_rows]),
        history=history,
        on_epoch=on_epoch,
        state=state,
    )


def fine_tune(
    backbone: Backbone,
    head: Head,
    samples: Samples,
    *,
    epochs: range,
    learning_rate: float,
    precision: torch.dtype,
    history: list[dict],
    on_epoch: OnEpoch = lambda row, state: None,
    state: dict | None = None,
) -> tuple[list[dict], Samples]:
    """Train the backbone's last block as well, with a fitted head, on stored features and maps.

    Views have one scale: 224 pixels at most. Half of the maps are mirrored at random. Backbone and
    head stay as they were if the last epoch is not better on valid than that of `fit`; see
    `used_epoch`.

    Args:
        epochs: their numbers in the history.
        history: of `fit`; the epochs are added to it.
        learning_rate: the head's in `fit`; see BLOCK_RATE and HEAD_RATE.
        precision: bfloat16 for convolutions in it, with weights in float32; else float32.

    See `fit` for the other arguments and errors.

    Returns:
        The history, and the samples with the features of the backbone as it is now.
    """
    features, labels, rows = samples[:3]
    device, train_rows = head.mean.device, rows["train"]
    tuned = FineTunedFeatures(backbone.to(device), features, precision)
    model = nn.ModuleList([backbone.last_block.requires_grad_(True), head])
    before = state.get("before", {}) if state else copy.deepcopy(model.state_dict())

    def loss_of(indices: torch.Tensor) -> torch.Tensor:
        batch = train_rows[indices]
        logits = head(tuned.mirrored(batch, torch.rand(len(batch)) < 0.5))  # (B, 6, num_classes)
        target = labels[batch].repeat_interleave(len(REGIONS)).to(device)
        return cross_entropy(logits.flatten(0, 1), target, label_smoothing=LABEL_SMOOTHING)

    history = optimize(
        model,
        loss_of,
        labels[train_rows],
        lambda: compute_logits(head, tuned, rows["valid"], FINE_TUNE_BATCH_SIZE),
        labels[rows["valid"]],
        learning_rate=learning_rate,
        rates=[(model[0], BLOCK_RATE), (head, HEAD_RATE)],
        epochs=epochs,
        batch_size=FINE_TUNE_BATCH_SIZE,
        history=history,
        on_epoch=lambda row, state: on_epoch(row, state | {"before": before}),
        state=state,
    )
    backbone.requires_grad_(False)
    if used_epoch(history, epochs.start - 1) is history[-1]:
        return history, samples._replace(features=tuned)
    model.load_state_dict(before)
    return history, samples


class FineTunedFeatures:
    """Features whose second stage is computed by the backbone's last block as it is now."""

    def __init__(self, backbone: Backbone, features: Features, precision: torch.dtype):
        self.backbone, self.features, self.precision = backbone, features, precision

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return features of views: (B,) int64 -> (B, len(REGIONS), num_features) float32."""
        return self.mirrored(rows, torch.zeros(len(rows), dtype=torch.bool))

    def mirrored(self, rows: torch.Tensor, is_mirrored: torch.Tensor) -> torch.Tensor:
        """Return features, of mirrored maps where `is_mirrored` (B,) bool says so.

        Regions on the left and on the right are then exchanged, in the first stage as well.
        """
        features, maps = self.features[rows], self.features.maps(rows)
        mirrored = [REGIONS.index((y, round(1 - x - side, 3), side)) for y, x, side in REGIONS]
        features[is_mirrored] = features[is_mirrored][:, mirrored]
        maps[is_mirrored] = maps[is_mirrored].flip(3)
        device = next(self.backbone.parameters()).device
        maps = maps.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            second = self.backbone.second_stage(maps)
        return replace_second_stage(features.to(device), second)


class Evaluation(NamedTuple):
    """What `evaluate` returns: how a fitted head is calibrated, and how good it is on test.

    Attributes:
        detector: None if `fit_detector` returns None.
        probs: (N, num_classes), of the N images of test.
        novelty: (N,); without a detector, it is NaN.
        metrics: of test, as "test_accuracy" and so on, with "test_ece_without_temperature".
    """

    temperature: float
    detector: NoveltyDetector | None
    probs: torch.Tensor
    novelty: torch.Tensor
    metrics: dict[str, float]


def evaluate(head: Head, samples: Samples, final: Head | None = None) -> Evaluation:
    """Fit temperature and novelty detector on train and valid; evaluate a fitted head on test.

    Args:
        head: was fitted on train.
        final: was fitted on train and valid, and is evaluated instead. It is calibrated by what
            `head` predicts for valid: it knows these images itself.
    """
    features, labels, rows = samples[:3]
    detector = fit_detector_on(head, features, labels, rows["train"])
    valid, known = compute_outputs(head, detector, features, rows["valid"])
    if final is not None:
        head, joined = final, samples.with_valid_in_train().rows["train"]
        if detector is not None:  # without one, nothing was measured that calibrates another
            detector = fit_detector_on(final, features, labels, joined)
    test, values = compute_outputs(head, detector, features, rows["test"])
    novelty = calibrated_novelty(detector, known, values)
    temperature, test_labels = fit_temperature(valid, labels[rows["valid"]]), labels[rows["test"]]
    measured = metrics(test / temperature, test_labels)
    measured["ece_without_temperature"] = metrics(test, test_labels)["ece"]
    probs = (test / temperature).softmax(1)
    measured = {f"test_{name}": value for name, value in measured.items()}
    return Evaluation(temperature, detector, probs, novelty, measured)


def cross_validate(
    new_head: Callable[[], Head],
    samples: Samples,
    folds: torch.Tensor,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int | None,
) -> CrossValidation:
    """Predict all images of all splits, each fold by a head that is fitted on the others.

    Args:
        folds: (N,) int64, of the images of `plain_rows`, whose plain views are predicted.

    See `fit` for the other arguments and errors.
    """
    features, labels, rows, views = samples
    plain, row_folds = samples.plain_rows(), torch.full_like(labels, -1)
    count = len(rows["train"]) // views
    row_folds[rows["train"]] = folds[:count].repeat_interleave(views)
    row_folds[plain[count:]] = folds[count:]

    def fit_on(train: torch.Tensor, valid: torch.Tensor) -> Head:
        head, part = new_head(), samples._replace(rows={"train": train, "valid": valid})
        fit(head, part, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size)
        return head

    return predict_folds(fit_on, features, labels, row_folds, plain)


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


def predict_folds(
    fit_on: Callable[[torch.Tensor, torch.Tensor], Any],
    features: Any,
    labels: torch.Tensor,
    folds: torch.Tensor,
    plain: torch.Tensor,
) -> CrossValidation:
    """Predict images, each fold by a head that is fitted on the others.

    Args:
        fit_on: fits a new head on the first rows, and evaluates it on the second.
        features, labels: of all rows; see `fitting.Samples`.
        folds: int64, of each row; -1: it is not used.
        plain: (N,) int64, the rows that are predicted, one an image.
    """
    logits = torch.empty(len(plain), int(labels.max()) + 1)
    scores = torch.empty(len(plain), len(SCORES))
    plain_folds = folds[plain]
    detector, is_valid = None, in_several_folds(labels[plain], plain_folds)
    numbers = plain_folds.unique().tolist()
    for fold in progress(numbers, len(numbers), "cross-validation", size=lambda _: 1):
        held_out = plain_folds == fold
        rows = ((folds != fold) & (folds >= 0)).nonzero()[:, 0]
        head = fit_on(rows, plain[held_out])
        fitted = fit_detector_on(head, features, labels, rows)
        logits[held_out], measured = compute_outputs(head, fitted, features, plain[held_out])
        scores[held_out] = measured if fitted else torch.nan
        detector = fitted or detector
    novelty = calibrated_novelty(detector, scores[~scores.isnan().any(1)], scores)
    temperature = fit_temperature(logits[is_valid], labels[plain][is_valid])
    return CrossValidation((logits / temperature).softmax(1), novelty, is_valid)
