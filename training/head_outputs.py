"""The outputs of a head for rows of features, in batches, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from networks.novelty import SCORES, NoveltyDetector, fit_detector

BATCH_SIZE = 256  # views


@torch.inference_mode()
def hidden_and_logits(
    head: Any, features: Any, rows: torch.Tensor, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a head's hidden layer (B, hidden_units) and logits (B, num_classes) of batches of rows.

    Args:
        head: with `image_hidden` and `output`; see `model.Head`.
        features: `features[rows]` are those of a batch, (B, num_regions, num_features).
    """
    head.eval()
    for batch in rows.split(batch_size):
        hidden = head.image_hidden(features[batch].to(head.mean.device))
        yield hidden.cpu(), head.output(hidden).cpu()


@torch.inference_mode()
def compute_outputs(
    head: Any,
    detector: NoveltyDetector | None,
    features: Any,
    rows: torch.Tensor,
    batch_size: int = BATCH_SIZE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (N, num_classes), and a detector's scores (N, 2), or any without a detector."""
    logits = torch.empty(len(rows), head.num_classes)
    scores = torch.empty(len(rows), len(SCORES))
    starts = range(0, len(rows), batch_size)
    batches = hidden_and_logits(head, features, rows, batch_size)
    for start, (hidden, part) in zip(starts, batches, strict=True):
        batch = slice(start, start + batch_size)
        logits[batch] = part
        if detector is not None:
            scores[batch] = detector.scores(hidden, part)
    return logits, scores


def compute_logits(
    head: Any, features: Any, rows: torch.Tensor, batch_size: int = BATCH_SIZE
) -> torch.Tensor:
    """Return a head's logits (len(rows), num_classes) float32 for rows of features."""
    return compute_outputs(head, None, features, rows, batch_size)[0]


def fit_detector_on(
    head: Any, features: Any, labels: torch.Tensor, rows: torch.Tensor
) -> NoveltyDetector | None:
    """Fit a detector on the hidden layer of these rows of features; see `fit_detector`."""
    hidden = (values for values, _ in hidden_and_logits(head, features, rows))
    parts = zip(hidden, labels[rows].split(BATCH_SIZE), strict=True)
    return fit_detector(parts, head.hidden_units, head.num_classes)
