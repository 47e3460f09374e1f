"""The outputs of a head for rows of features, in batches, on the CPU."""

from collections.abc import Iterator

import torch

from model import Head
from networks.novelty import SCORES, NoveltyDetector, fit_detector
from training.features import Features

BATCH_SIZE = 256  # views


@torch.inference_mode()
def hidden_and_logits(
    head: Head, features: Features, rows: torch.Tensor, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a head's hidden layer (B, hidden_units) and logits (B, num_classes) of batches of rows.

    Args:
        rows: (N,) int64, of features.
    """
    head.eval()
    for batch in rows.split(batch_size):
        hidden, logits = head.image_outputs(features[batch].to(head.mean.device))
        yield hidden.cpu(), logits.cpu()


@torch.inference_mode()
def compute_outputs(
    head: Head,
    detector: NoveltyDetector | None,
    features: Features,
    rows: torch.Tensor,
    batch_size: int = BATCH_SIZE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (N, num_classes), and the detector's scores (N, 2): NaN without a detector."""
    logits = torch.empty(len(rows), head.num_classes)
    scores = torch.full((len(rows), len(SCORES)), torch.nan)
    start = 0
    for hidden, batch_logits in hidden_and_logits(head, features, rows, batch_size):
        batch = slice(start, start + len(hidden))
        logits[batch] = batch_logits
        if detector is not None:
            scores[batch] = detector.scores(hidden, batch_logits)
        start += len(hidden)
    return logits, scores


def compute_logits(
    head: Head, features: Features, rows: torch.Tensor, batch_size: int = BATCH_SIZE
) -> torch.Tensor:
    """Return a head's logits (N, num_classes) float32 for rows (N,) of features."""
    logits, _ = compute_outputs(head, None, features, rows, batch_size)
    return logits


def fit_detector_on(
    head: Head, features: Features, labels: torch.Tensor, rows: torch.Tensor
) -> NoveltyDetector | None:
    """Fit a detector on the hidden layer of these rows of features; see `fit_detector`."""
    hidden_layers = (hidden for hidden, _ in hidden_and_logits(head, features, rows))
    batches = zip(hidden_layers, labels[rows].split(BATCH_SIZE), strict=True)
    return fit_detector(batches, head.hidden_units, head.num_classes)
