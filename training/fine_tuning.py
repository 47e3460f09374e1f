"""Fine-tunes the backbone's last block together with a fitted head, on stored maps."""

from __future__ import annotations

import argparse
import copy
import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from evaluation.metrics import metrics
from model import REGIONS, Backbone, Head
from networks.vgg import replace_second_stage
from training.features import Features
from training.fitting import LABEL_SMOOTHING, Samples, check_loss, fit_heads, format_epoch, restore
from training.head_outputs import compute_logits
from training.optimization import Sgd
from training.resume import UnfinishedRun
from training.sampling import balanced_order, balanced_size

RATE = 0.1  # as a fraction of the learning rate
BATCH_SIZE = 8  # views


def fit_network(
    args: argparse.Namespace,
    backbone: Backbone,
    head: Head,
    final: Head | None,
    samples: Samples,
    precision: torch.dtype,
    run: UnfinishedRun,
) -> tuple[list[dict], Samples]:
    """Fit the heads, and the backbone's last block if asked for; returns what `fine_tune` does."""
    history = fit_heads(args, head, final, samples, run)
    if not args.fine_tune:
        return history, samples
    return fine_tune(
        backbone,
        head,
        samples,
        epochs=range(args.epochs + 1, args.epochs + args.fine_tune + 1),
        learning_rate=args.learning_rate,
        precision=precision,
        history=history,
        run=run,
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
    run: UnfinishedRun | None = None,
) -> tuple[list[dict], Samples]:
    """Train the backbone's last block as well, with a fitted head, on stored features and maps.

    Views have one scale: 224 pixels at most. Half of the maps are mirrored at random. Backbone and
    head stay as they were if the last epoch is not better on valid than that of `fit`; see
    `used_epoch`.

    Args:
        history: of `fit`; epochs with the numbers `epochs` are added to it.
        learning_rate: the head's in `fit`; see RATE.
        precision: bfloat16 for convolutions in it, with weights in float32; else float32.
        run: see `fit`.

    Returns:
        The history, and the samples with the features of the backbone as it is now.
    """
    rows = samples.rows
    labels = samples.labels[rows["train"]]
    tuned = FineTunedFeatures(backbone.to(head.mean.device), samples.features, precision)
    model = nn.ModuleList([backbone.last_block.requires_grad_(True), head])
    before = copy.deepcopy(model.state_dict())
    steps = math.ceil(balanced_size(labels) / BATCH_SIZE)  # of an epoch
    optimizer = Sgd(model.parameters(), RATE * learning_rate, len(epochs) * steps)
    tuned_history: list[dict] = []
    if run is not None and epochs.start in run.states:
        tuned_history = restore(model, optimizer, run.states[epochs.start], steps)
    for epoch in epochs[len(tuned_history) :]:
        train_loss = train_one_epoch(model, head, tuned, rows["train"], labels, optimizer)
        logits = compute_logits(head, tuned, rows["valid"], BATCH_SIZE)
        valid = metrics(logits, samples.labels[rows["valid"]])
        row = {"epoch": epoch, "train_loss": train_loss}
        row |= {"valid_loss": valid["loss"], "valid_accuracy": valid["accuracy"]}
        check_loss(row, learning_rate)
        tuned_history.append(row)
        if run is not None:
            print(format_epoch(row, epochs.stop - 1), flush=True)
            state = {
                "head": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": tuned_history,
                "random": torch.get_rng_state(),
            }
            run.save(epochs.start, state)
    backbone.requires_grad_(False)
    history = history + tuned_history
    if used_epoch(history, epochs.start - 1) is history[-1]:
        return history, samples._replace(features=tuned)
    print("fine-tuning did not improve the predictions on valid: its epochs are not used")
    model.load_state_dict(before)
    return history, samples


def train_one_epoch(
    model: nn.ModuleList,
    head: Head,
    tuned: FineTunedFeatures,
    train_rows: torch.Tensor,
    labels: torch.Tensor,
    optimizer: Sgd,
) -> float:
    """Take one step for each batch of views; returns the mean loss over views."""
    device = head.mean.device
    order = balanced_order(labels)
    total = 0.0
    model.train()
    for batch in order.split(BATCH_SIZE):
        features = tuned.mirrored(train_rows[batch], torch.rand(len(batch)) < 0.5)
        logits = head(features).flatten(0, 1)  # (B * num_regions, num_classes)
        target = labels[batch].repeat_interleave(len(REGIONS)).to(device)
        loss = cross_entropy(logits, target, label_smoothing=LABEL_SMOOTHING)
        optimizer.step(loss)
        total += loss.item() * len(batch)
    model.eval()
    return total / len(order)


def used_epoch(history: list[dict], epochs: int) -> dict:
    """Return the row of the epoch whose weights are used: that of the last one.

    If fine-tuning did not improve the accuracy on valid, or the loss at the same accuracy, it is
    the last epoch before.

    Args:
        epochs: the number of those before fine-tuning.
    """

    def quality(row: dict) -> tuple[float, float]:
        return row["valid_accuracy"], -row["valid_loss"]

    fitted, last = history[epochs - 1], history[-1]
    return last if quality(last) > quality(fitted) else fitted


class FineTunedFeatures(Features):
    """Features whose second stage is computed by the backbone's last block as it is now."""

    def __init__(self, backbone: Backbone, features: Features, precision: torch.dtype):
        self.backbone = backbone
        self.features = features
        self.precision = precision

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return features of views: (B,) int64 -> (B, len(REGIONS), num_features) float32."""
        return self.mirrored(rows, torch.zeros(len(rows), dtype=torch.bool))

    def mirrored(self, rows: torch.Tensor, is_mirrored: torch.Tensor) -> torch.Tensor:
        """Return features, of mirrored maps where `is_mirrored` (B,) bool says so.

        Regions on the left and on the right are then exchanged, in the first stage as well.
        """
        mirrored_regions = [
            REGIONS.index((top, round(1 - start - side, 3), side)) for top, start, side in REGIONS
        ]
        features = self.features[rows]
        maps = self.features.maps(rows)
        features[is_mirrored] = features[is_mirrored][:, mirrored_regions]
        maps[is_mirrored] = maps[is_mirrored].flip(3)
        device = next(self.backbone.parameters()).device
        maps = maps.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            second = self.backbone.second_stage(maps)
        return replace_second_stage(features.to(device), second)
