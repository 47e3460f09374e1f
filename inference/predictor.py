"""What predict.py asks of a model, whatever computes it: probabilities and novelty of views."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from system.messages import UserError


class Probabilities(NamedTuple):
    """Probabilities and novelty of one image, or the error that prevented them."""

    path: str
    probs: np.ndarray | None  # (num_classes,) float32
    novelty: float = math.nan
    error: str = ""


class Predictor:
    """The base of `model.Classifier`, which computes with torch, and of `onnx_model.OnnxModel`.

    Attributes:
        categories: (num_classes,) folders of the training data, by the index of their probability.
        class_to_idx: category -> that index.
        names: category -> name; empty if they are not known.
        means, stds: of the images, three each, range 0-1.
        image_size: pixels of the view's side.
        novelty_limit: an image with less novelty is reported to resemble none of the categories.
        has_novelty: whether `predict_views` computes the novelty.
        device_type: "cpu", "cuda" or "mps".
        trained_on: the data folder of the training; empty if it is not known.
    """

    categories: list[str]
    class_to_idx: dict[str, int]
    names: dict[str, str]
    means: Sequence[float]
    stds: Sequence[float]
    image_size: int
    novelty_limit: float
    has_novelty: bool
    device_type: str = "cpu"
    trained_on: str = ""

    def prepare(self, device: str, precision: str, is_one: bool = False) -> None:
        """Move to a device, "cpu" or "gpu", and to a precision, one of `devices.PRECISIONS`.

        Args:
            is_one: only one image will be predicted.

        Raises:
            UserError: they are not available.
        """
        raise NotImplementedError

    def compute(
        self, views: np.ndarray, means: Sequence[float], stds: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities and novelty of at least one view, for `predict_views`."""
        raise NotImplementedError

    def predict_views(
        self,
        views: Sequence[np.ndarray] | np.ndarray,
        means: Sequence[float] | None = None,
        stds: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (N, num_classes) and novelty (N,) of views, float32.

        Without a detector, novelty is NaN. Several threads may call it at once.

        Args:
            views: N of (3, image_size, image_size) uint8, or one array of them; N may be 0.
            means, stds: replace the model's.

        Raises:
            UserError: a probability is not finite.
        """
        if not len(views):
            return np.empty((0, len(self.categories)), np.float32), np.empty(0, np.float32)
        probs, novelty = self.compute(np.asarray(views), means or self.means, stds or self.stds)
        if not np.isfinite(probs).all():
            raise UserError("no finite probabilities: wrong --means or --stds, or checkpoint")
        return probs, novelty

    def check_novelty(self, min_novelty: float) -> None:
        """Raise UserError if `min_novelty` is above 0, and there is no novelty."""
        if min_novelty and not self.has_novelty:
            raise UserError("the checkpoint has no novelty, which min_novelty needs: train again")

    def all_names(self) -> list[str]:
        """Return the name of each category, or the category itself."""
        return [self.names.get(category, category) for category in self.categories]

    def settings(self) -> dict[str, Any]:
        """Return what predictions depend on beside the model's file, by the names of flags."""
        return {
            "--category_names": self.all_names(),
            "--means": [*self.means],
            "--stds": [*self.stds],
        }
