"""How unusual an image is among images of the known categories: `NoveltyDetector`.

    hidden layer (N, D) and logits (N, num_classes) -> novelty (N,)

Novelty is the share of images of the known categories that are at least as unusual: 0.01 means one
in a hundred. Two scores say how unusual an image is. `distance` is large for what is far from every
category, `uncertainty` for what lies between them; docs/results.md compares them.
"""

from collections.abc import Iterable

import torch
from torch import nn

NOVELTY_LIMIT = 0.003  # novelty below which an image is reported; see docs/results.md
SCORES = ("distance", "uncertainty")  # the columns of `NoveltyDetector.scores`
UNCERTAINTY_WEIGHT = 0.8  # in the mean of the two shares; that of the distance is 0.2
PRIOR_STDS = (0.3, 1.2)  # what `calibrate` assumes of the scores' standard deviations
PRIOR_COUNT = 10  # as how many images that counts
MAX_UNITS = 512  # of the hidden layer that are used: the size of a checkpoint stays bounded


class NoveltyDetector(nn.Module):
    """Compares hidden layers and logits of images with those of known categories.

    `distance` is the logarithm of the squared Mahalanobis distance to the nearest category mean,
    with one covariance for all categories (Lee et al. 2018). `uncertainty` is the logarithm of the
    odds against the most likely category. Each is nearly normally distributed over known images,
    which turns it into a share of them; novelty is the weighted harmonic mean of the two shares
    (Wilson 2019), which is small if one of them is.

    Attributes:
        whitening: (D, D), multiplies hidden layers so that their covariance becomes the identity.
        means: (num_classes, D) of the categories, after whitening.
        calibration: (2, 2), mean and standard deviation (rows) of each of SCORES (columns).
    """

    whitening: torch.Tensor
    means: torch.Tensor
    calibration: torch.Tensor

    def __init__(self, hidden_units: int, num_classes: int):
        super().__init__()
        size = min(hidden_units, MAX_UNITS)
        self.register_buffer("whitening", torch.zeros(size, size))
        self.register_buffer("means", torch.zeros(num_classes, size))
        calibration = torch.zeros(2, len(SCORES))
        calibration[1] = 1
        self.register_buffer("calibration", calibration)

    def forward(self, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Hidden layers (N, hidden_units), logits (N, num_classes) -> novelty (N,), 0-1."""
        return self.novelty_of(self.scores(hidden, logits))

    def scores(self, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Hidden layers (N, hidden_units), logits (N, num_classes) -> SCORES (N, 2) float32."""
        x = hidden[:, : len(self.whitening)] @ self.whitening
        products = x @ self.means.T  # (N, num_classes)
        squares = x.square().sum(1, keepdim=True) - 2 * products + self.means.square().sum(1)
        distance = squares.amin(1).clamp(min=1e-6).log()
        return torch.stack([distance, uncertainty_of(logits)], 1)

    def novelty_of(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the novelty (N,) of scores (N, 2)."""
        mean, std = self.calibration
        shares = 0.5 * (1 - torch.erf((scores - mean) / std / 2**0.5))  # (N, 2)
        distance, uncertainty = shares.unbind(1)  # 1 / 0 is infinite, and makes novelty 0
        return 1 / ((1 - UNCERTAINTY_WEIGHT) / distance + UNCERTAINTY_WEIGHT / uncertainty)

    def check(self) -> None:
        """Raise ValueError if a standard deviation is not above 0."""
        if not (self.calibration[1] > 0).all():
            raise ValueError("invalid novelty detector")

    def calibrate(self, distance: torch.Tensor, uncertainty: torch.Tensor) -> None:
        """Set the distribution of both scores over known images.

        Args:
            distance, uncertainty: (N,) and (M,), of images of the categories that were not used in
                fitting; those of one may be more than those of the other.
        """
        columns = [
            _mean_and_spread(distance, PRIOR_STDS[0]),
            _mean_and_spread(uncertainty, PRIOR_STDS[1]),
        ]
        self.calibration.copy_(torch.stack(columns, 1))


def uncertainty_of(logits: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the odds against the most likely category: (N, C) -> (N,)."""
    prob = logits.softmax(1).amax(1).clamp(max=1 - 1e-6)
    return ((1 - prob) / prob).log()


def _mean_and_spread(scores: torch.Tensor, prior_std: float) -> torch.Tensor:
    """Return mean and standard deviation (2,) of scores (N,).

    The standard deviation is that of the scores above the mean, since large ones matter, and small
    ones are spread otherwise. With few images, it is closer to `prior_std`.
    """
    mean = scores.mean()
    excess = (scores - mean).clamp(min=0)
    squares = 2 * excess.square().sum() + PRIOR_COUNT * prior_std**2
    count = 2 * (excess > 0).sum()
    variance = squares / ((count - 1).clamp(min=0) + PRIOR_COUNT)
    variance *= 1 + 1 / len(scores)  # the mean is uncertain as well
    return torch.stack([mean, variance.sqrt()])


def fit_detector(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]], hidden_units: int, num_classes: int
) -> NoveltyDetector | None:
    """Return a detector of the images that a network was fitted on, to be calibrated on others.

    Args:
        batches: hidden layers (B, hidden_units) and labels (B,), on the CPU.

    Returns:
        None if all images of each category have the same hidden layer, as single images have.
    """
    detector = NoveltyDetector(hidden_units, num_classes)
    size = len(detector.whitening)
    counts = torch.zeros(num_classes, dtype=torch.float64)
    sums = torch.zeros(num_classes, size, dtype=torch.float64)
    products = torch.zeros(size, size, dtype=torch.float64)
    for hidden, labels in batches:
        x = hidden[:, :size].double()
        sums.index_add_(0, labels, x)
        counts += labels.bincount(minlength=num_classes)
        products += x.T @ x
    means = sums / counts[:, None].clamp(min=1)
    scatter = products - means.T @ sums  # around each image's category mean
    degrees = int(counts.sum()) - num_classes
    if degrees < 1 or scatter.trace() <= 1e-9 * products.trace():
        return None
    covariance = shrink_covariance(scatter / degrees, degrees)
    whitening = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    detector.whitening.copy_(whitening)
    # A category without images is never the nearest: it has the mean of another.
    nearest = torch.where(counts > 0, torch.arange(num_classes), counts.argmax())
    detector.means.copy_((means @ whitening)[nearest])
    return detector


def shrink_covariance(covariance: torch.Tensor, count: int) -> torch.Tensor:
    """Return a well-conditioned covariance (D, D): a mean of it and a multiple of the identity.

    The weight is that of the oracle approximating shrinkage estimator (Chen et al. 2010, formula
    23), which needs no pass over the samples.

    Args:
        count: of the samples, less those that their means take.
    """
    size = len(covariance)
    scale = covariance.trace() / size
    squares = covariance.square().mean()
    weight = (squares + scale**2) / ((count + 1) * (squares - scale**2 / size)).clamp(min=1e-300)
    weight = weight.clamp(max=1)
    identity = torch.eye(size, dtype=covariance.dtype)
    return (1 - weight) * covariance + weight * scale * identity


def calibrated_novelty(
    detector: NoveltyDetector | None,
    scores: torch.Tensor,
    distance: torch.Tensor,
    uncertainty: torch.Tensor,
) -> torch.Tensor:
    """Calibrate a detector on known images, and return the novelty (N,) of scores (N, 2).

    Without a detector, it is NaN.

    Args:
        distance, uncertainty: see `NoveltyDetector.calibrate`.
    """
    if detector is None:
        return torch.full((len(scores),), torch.nan)
    detector.calibrate(distance, uncertainty)
    return detector.novelty_of(scores)
