"""networks.novelty: the detector of images that are none of the categories."""

import numpy as np
import pytest
import torch

from networks import novelty
from networks.novelty import NoveltyDetector, fit_detector, shrink_covariance

CLASSES, UNITS = 3, 8


def vectors(labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Make vectors (N, UNITS) around a mean for each label, with one covariance."""
    generator = torch.Generator().manual_seed(1)
    means = 10 * torch.rand(CLASSES, UNITS, generator=generator)
    mixing = torch.randn(UNITS, UNITS, generator=generator)
    generator.manual_seed(seed)
    return means[labels] + torch.randn(len(labels), UNITS, generator=generator) @ mixing


def logits_of(labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Make logits (N, CLASSES) that are highest at the label."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(labels), CLASSES, generator=generator)
    logits[torch.arange(len(labels)), labels] += 5
    return logits


@pytest.fixture(scope="module")
def detector() -> NoveltyDetector:
    labels = torch.arange(600) % CLASSES
    batches = zip(vectors(labels).split(7), labels.split(7), strict=True)
    detector = fit_detector(batches, UNITS, CLASSES)
    detector.calibrate(*detector.scores(vectors(labels, 1), logits_of(labels, 1)).unbind(1))
    return detector


def test_distance_is_that_of_mahalanobis_to_the_nearest_mean(detector):
    labels = torch.arange(600) % CLASSES
    x = vectors(labels).double().numpy()
    means = np.stack([x[labels == label].mean(0) for label in range(CLASSES)])
    residuals = x - means[labels]
    covariance = torch.from_numpy(residuals.T @ residuals / (600 - CLASSES))
    inverse = np.linalg.inv(shrink_covariance(covariance, 600 - CLASSES))
    others = vectors(labels[:10], 2).double().numpy()
    differences = others[:, None] - means
    expected = np.einsum("nki,ij,nkj->nk", differences, inverse, differences).min(1)
    measured = detector.scores(torch.from_numpy(others).float(), logits_of(labels[:10]))
    np.testing.assert_allclose(measured[:, 0].exp(), expected, rtol=1e-4)


def test_uncertainty_is_the_odds_against_the_most_likely_category(detector):
    probs = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.35, 0.25], [1.0, 0.0, 0.0]])
    measured = detector.scores(torch.zeros(3, UNITS), probs.log().clamp(min=-1e4))
    assert measured[:2, 1].exp().tolist() == pytest.approx([0.25, 1.5], rel=1e-4)
    assert measured[:, 1].isfinite().all()


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_novelty_is_the_share_of_known_images_that_are_as_unusual(detector, share):
    labels = torch.arange(30000) % CLASSES
    values = detector(vectors(labels, 3), logits_of(labels, 3))
    assert ((values >= 0) & (values <= 1)).all()
    assert 0.5 * share < (values < share).float().mean() < 2 * share


def test_what_is_far_and_what_lies_between_categories_is_novel(detector):
    labels = torch.arange(300) % CLASSES
    known = detector(vectors(labels, 4), logits_of(labels, 4))
    far = detector(vectors(labels, 4) + 20, logits_of(labels, 4))
    between = detector(vectors(labels, 4), torch.zeros(300, CLASSES))
    assert known.median() > 0.2
    assert far.max() < 1e-4 and between.max() < 0.01
    assert detector(torch.full((1, UNITS), 1e6), logits_of(labels[:1])).item() == 0


def test_fewer_images_than_units_and_units_that_are_never_active_give_finite_values():
    labels = torch.arange(6) % CLASSES
    x = vectors(labels)
    x[:, 2] = 0
    detector = fit_detector([(x, labels)], UNITS, CLASSES)
    detector.calibrate(*detector.scores(vectors(labels[:1], 5), logits_of(labels[:1])).unbind(1))
    detector.check()
    values = detector(vectors(labels, 6), logits_of(labels))
    assert values.isfinite().all()


def test_single_images_of_categories_give_no_detector():
    labels = torch.arange(CLASSES)
    assert fit_detector([(vectors(labels), labels)], UNITS, CLASSES) is None
    equal = vectors(labels)[[0, 1, 2, 2]]
    assert fit_detector([(equal, torch.tensor([0, 1, 2, 2]))], UNITS, CLASSES) is None


def test_a_category_without_images_changes_nothing():
    labels = torch.arange(60) % CLASSES
    without = labels[labels != 1], vectors(labels)[labels != 1]
    detector = fit_detector([(without[1], without[0])], UNITS, CLASSES)
    fewer = fit_detector([(without[1], without[0].clamp(max=1))], UNITS, CLASSES - 1)
    args = (torch.cat([vectors(labels, 1)[1:], torch.zeros(1, UNITS)]), logits_of(labels))
    torch.testing.assert_close(detector.scores(*args)[:, 1], fewer.scores(*args)[:, 1])
    torch.testing.assert_close(
        detector.scores(*args)[:, 0], fewer.scores(*args)[:, 0], rtol=0.02, atol=0.02
    )


def test_the_number_of_units_is_limited(monkeypatch):
    monkeypatch.setattr(novelty, "MAX_UNITS", 5)
    labels = torch.arange(60) % CLASSES
    detector = fit_detector([(vectors(labels), labels)], UNITS, CLASSES)
    assert detector.whitening.shape == (5, 5) and detector.means.shape == (CLASSES, 5)
    of_five = fit_detector([(vectors(labels)[:, :5], labels)], 5, CLASSES)
    args = (vectors(labels, 1), logits_of(labels))
    assert torch.equal(detector.scores(*args), of_five.scores(args[0][:, :5], args[1]))


def test_a_few_images_are_calibrated_with_the_deviations_of_the_prior():
    detector = NoveltyDetector(UNITS, CLASSES)
    detector.calibrate(torch.tensor([6.0]), torch.tensor([-1.0]))
    mean, std = detector.calibration
    assert mean.tolist() == [6.0, -1.0]
    prior = torch.tensor(novelty.PRIOR_STDS)
    torch.testing.assert_close(std, prior * 2**0.5)  # the mean is as uncertain as an image
    noise = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0))
    values = noise * torch.tensor([0.1, 3.0]) + torch.tensor([6.0, -1.0])
    detector.calibrate(*values.unbind(1))
    torch.testing.assert_close(
        detector.calibration, torch.stack([values.mean(0), values.std(0)]), rtol=0.01, atol=0.01
    )


def test_shrinkage_is_that_of_the_formula():
    """The expected weight was computed by the OAS of scikit-learn 1.9.1."""
    x = np.random.RandomState(0).standard_normal((10, 4)) * [1, 2, 3, 4]
    x -= x.mean(0)
    covariance = torch.from_numpy(x.T @ x / 10)
    shrunken = shrink_covariance(covariance, 10)
    scale = covariance.trace() / 4
    weights = (shrunken - covariance) / (scale * torch.eye(4) - covariance)
    torch.testing.assert_close(weights, torch.full((4, 4), 0.6736888094056525).double())
    assert torch.equal(shrink_covariance(torch.eye(4), 10), torch.eye(4))
