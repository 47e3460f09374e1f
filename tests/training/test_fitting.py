"""training.fitting: the head on made-up features, and its evaluation."""

import copy
import math
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import backbone_of, draw, extract, same_bits
from torch.nn.functional import cross_entropy

import train
import utils
from evaluation.calibration import fit_temperature
from evaluation.metrics import metrics
from model import REGIONS, Head
from networks import novelty
from system.messages import UserError
from training import features as features_module
from training import fitting
from training.feature_store import KEY_BYTES, MISSING, RecordStore
from training.features import Features, list_views
from training.fitting import FitSettings, Samples
from training.resume import UnfinishedRun
from training.sampling import divide_into_folds


def store_features(folder: Path, values: np.ndarray) -> Features:
    """Store features (N, len(REGIONS), num_features) in a file."""
    store = RecordStore(folder, values.shape[1:])
    keys = [number.to_bytes(KEY_BYTES, "big") for number in range(len(values))]
    store.append(keys, values)
    store.close()
    return Features(store, *store.find(keys))


def test_averages_of_two_scales_are_those_of_the_smaller_one(tmp_path):
    features = store_features(tmp_path, np.arange(2 * 12 * 8, dtype=np.float16).reshape(2, 12, 8))
    averages = features.averages(torch.tensor([1, 0]))
    assert averages.tolist() == [[144, 145, 148, 149], [48, 49, 52, 53]]


# ---------------------------------------------------------------- fitting, on made-up features


class MadeUp(NamedTuple):
    """40 rows of 6 regions of 6 features in a file, labels of 3 categories, the same in memory."""

    features: Features
    labels: torch.Tensor
    values: torch.Tensor


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> MadeUp:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    values = (rng.random((40, len(REGIONS), 6)) + np.eye(6)[labels][:, None]).astype(np.float16)
    features = store_features(tmp_path_factory.mktemp("made up"), values)
    return MadeUp(features, torch.from_numpy(labels), torch.from_numpy(values).float())


def evaluate(head, made_up, rows, labels) -> dict[str, float]:
    """Compute the metrics of a head on rows of features."""
    return metrics(fitting.compute_logits(head, made_up.features, rows), labels[rows])


SETTINGS = FitSettings(epochs=10, learning_rate=0.05, batch_size=7)


def fit(
    made_up, train_rows, valid_rows, labels=None, seed=0, dropout=0.5, saved_to=None, **changes
):
    """Return a fitted head and its history; `saved_to`: arguments of `fit` for an UnfinishedRun."""
    torch.manual_seed(seed)
    head = Head(6, 16, 3, 3, dropout)
    settings = SETTINGS._replace(**changes)
    labels = made_up.labels if labels is None else labels
    samples = Samples(made_up.features, labels, {"train": train_rows, "valid": valid_rows})
    return head, fitting.fit(head, samples, settings, **saved_to or {})


def test_one_batch_can_be_overfitted(made_up):
    rows, noise = torch.arange(4), torch.tensor([0, 1, 2, 2, 1, 0, 1, 0] * 5)
    settings = {"epochs": 100, "learning_rate": 0.2, "batch_size": 8, "dropout": 0.0}
    head, history = fit(made_up, rows, rows, noise, **settings)
    torch.nn.init.zeros_(head.linear.weight)  # ridge regression does not fit noise
    torch.nn.init.zeros_(head.linear.bias)
    measured = evaluate(head, made_up, rows, noise)
    # The lowest loss with smoothing is at these probabilities.
    correct, other = 1 - fitting.LABEL_SMOOTHING * 2 / 3, fitting.LABEL_SMOOTHING / 3
    lowest = -correct * math.log(correct) - 2 * other * math.log(other)
    assert measured["accuracy"] == 1.0 and measured["loss"] < 0.1
    assert history[-1]["train_loss"] == pytest.approx(lowest, abs=0.03)


@pytest.mark.parametrize("count", [6, 30])
def test_the_linear_classifier_counts_less_the_more_images_a_category_has(made_up, count):
    head, _ = fit(made_up, torch.arange(count), torch.arange(0), epochs=1)
    scale = math.log(1 + 9 * 3) * 15 / (count / 3)  # of 3 categories
    assert head.linear.bias.sum().item() == pytest.approx(scale, rel=1e-4)  # targets add up to it


def cross_validate(made_up, folds, labels=None, views=1, start=0) -> fitting.CrossValidation:
    """Cross-validate heads on rows from `start` to 30, as train, and on 10, as valid and test."""
    rows = {
        "train": torch.arange(start, 30),
        "valid": torch.arange(30, 36),
        "test": torch.arange(36, 40),
    }
    labels = made_up.labels if labels is None else labels
    torch.manual_seed(0)
    head = Head(6, 16, 3, 3, 0.5)
    samples = Samples(made_up.features, labels, rows, views)
    return fitting.cross_validate(head, samples, folds, SETTINGS)


def test_in_cross_validation_no_prediction_depends_on_the_images_own_label(made_up):
    folds = torch.arange(40) % 4
    result = cross_validate(made_up, folds)
    assert result.probs.shape == (40, 3) and result.is_valid.all()
    assert (result.probs.argmax(1) == made_up.labels).float().mean() > 0.8
    assert ((result.novelty >= 0) & (result.novelty <= 1)).all()
    changed = made_up.labels.clone()
    changed[3] = (changed[3] + 1) % 3  # row 3 is in fold 3
    other = cross_validate(made_up, folds, changed)
    same = result.probs.argmax(1) == other.probs.argmax(1)  # the temperature may differ
    assert same[folds == 3].all()
    assert not torch.equal(result.probs[folds != 3], other.probs[folds != 3])


def test_in_cross_validation_all_views_of_an_image_are_in_its_fold(made_up, monkeypatch):
    fitted, fit_head = [], fitting.fit

    def fit_and_record(head, samples, settings):
        fitted.append(samples.rows)
        return fit_head(head, samples, settings)

    monkeypatch.setattr(fitting, "fit", fit_and_record)
    # Of 15 images of train with two views each, and 10 others. The first one was not decoded.
    folds = torch.arange(25) % 5
    assert cross_validate(made_up, folds[1:], views=2, start=2).probs.shape == (24, 3)
    images = torch.cat([torch.arange(15).repeat_interleave(2), torch.arange(15, 25)])  # of rows
    folds[0] = -1
    for fold, rows in enumerate(fitted):
        fitted_images = ((folds != fold) & (folds >= 0)).nonzero()[:, 0].tolist()
        assert set(images[rows["train"]].tolist()) == set(fitted_images)
        assert images[rows["valid"]].tolist() == (folds == fold).nonzero()[:, 0].tolist()
        assert len(rows["train"]) == (32 if fold == 0 else 30)


def test_a_category_of_one_fold_is_not_valid(made_up):
    folds = torch.arange(40) % 4
    folds[made_up.labels == 1] = 2
    result = cross_validate(made_up, folds)
    assert torch.equal(result.is_valid, made_up.labels != 1)
    assert (result.probs.argmax(1) != 1)[made_up.labels == 1].all()
    assert result.novelty.isfinite().all()


def test_the_losses_are_means_over_rows(made_up):
    rows = torch.cat([(made_up.labels == category).nonzero()[:9, 0] for category in range(3)])
    assert len(rows) == 27  # in batches of 7: the last one is smaller
    head, [row] = fit(made_up, rows, rows, epochs=1, learning_rate=1e-12, dropout=0.0)
    with torch.inference_mode():
        logits = head(made_up.values[rows]).flatten(0, 1)  # of each region
    labels = made_up.labels[rows].repeat_interleave(len(REGIONS))
    loss = cross_entropy(logits, labels, label_smoothing=fitting.LABEL_SMOOTHING).item()
    assert row["train_loss"] == pytest.approx(loss, rel=1e-4)
    measured = evaluate(head, made_up, rows, made_up.labels)
    assert (row["valid_loss"], row["valid_accuracy"]) == (measured["loss"], measured["accuracy"])


def test_features_are_standardized_by_the_training_rows(made_up):
    rows = torch.arange(3, 33)
    head, _ = fit(made_up, rows, torch.arange(3), epochs=1)
    values = made_up.values[rows].flatten(0, 1)
    torch.testing.assert_close(head.mean, values.mean(0))
    torch.testing.assert_close(head.std, values.std(0, correction=0))


def test_the_head_has_the_weights_of_the_last_epoch(made_up):
    rows = torch.arange(40)
    incorrect = (made_up.labels + 1) % 3  # the more is learned, the less probable these are
    both = torch.cat([made_up.labels[:20], incorrect[20:]])
    head, history = fit(made_up, rows[:20], rows[20:], both, epochs=30, batch_size=30)
    assert [row["epoch"] for row in history] == list(range(1, 31))
    last = history[-1]
    assert min(row["valid_loss"] for row in history) < last["valid_loss"]
    measured = evaluate(head, made_up, rows[20:], both)
    assert (measured["loss"], measured["accuracy"]) == (last["valid_loss"], last["valid_accuracy"])
    assert not head.training


class Run(UnfinishedRun):
    """A run that records each epoch's state in memory."""

    def __init__(self, states=None):
        self.states = states or {}
        self.saved = []

    def save(self, first_epoch, state):
        self.saved.append({first_epoch: copy.deepcopy(state)})


def test_fitting_resumes_to_the_same_bits(made_up, capsys, monkeypatch):
    rows = (torch.arange(30), torch.arange(30, 40))
    run = Run()
    head, history = fit(made_up, *rows, batch_size=20, saved_to={"run": run, "total_epochs": 10})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 10 and printed[-1].startswith("epoch 10/10  train loss ")
    monkeypatch.setattr(fitting, "standardize", lambda *_: pytest.fail("reads all features again"))
    for epoch in (1, 6, 10):
        resumed_run = Run(copy.deepcopy(run.saved[epoch - 1]))
        saved_to = {"run": resumed_run, "total_epochs": 10}
        resumed, complete = fit(made_up, *rows, batch_size=20, saved_to=saved_to, seed=epoch)
        assert complete == history
        assert same_bits(resumed.state_dict(), head.state_dict())
        assert capsys.readouterr().out.splitlines() == printed[epoch:]


DAMAGES = {
    "no head": lambda state: state.pop("head"),
    "another head": lambda state: state.update(head={}),
    "another random state": lambda state: state.update(random=torch.zeros(3)),
    "a longer history": lambda state: state["history"].append({**state["history"][0], "epoch": 9}),
    "a shorter history": lambda state: state["history"].pop(),
    "an empty history": lambda state: state.update(history=[]),
    "another number of steps": lambda state: state["optimizer"].update(steps=10**6),
    "a momentum less": lambda state: state["optimizer"]["momenta"].pop(),
    "a momentum of another shape": lambda state: state["optimizer"]["momenta"][0].resize_(1),
    "no train loss": lambda state: state["history"][0].pop("train_loss"),
    "no valid loss": lambda state: state["history"][0].pop("valid_loss"),
    "a loss that is no number": lambda state: state["history"][0].update(train_loss="1.5"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused(made_up, damage):
    rows = (torch.arange(30), torch.arange(30, 40))
    run = Run()
    fit(made_up, *rows, saved_to={"run": run}, epochs=3)
    states = run.saved[1]
    fit(made_up, *rows, saved_to={"run": Run(copy.deepcopy(states))}, epochs=3)
    DAMAGES[damage](states[1])
    with pytest.raises(UserError, match="^--resume: the state .* is damaged; leave out --resume"):
        fit(made_up, *rows, saved_to={"run": Run(states)}, epochs=3)


def test_a_loss_that_is_not_finite_is_an_error_with_advice(made_up):
    with pytest.raises(UserError, match="--learning_rate smaller than 1e\\+30"):
        fit(made_up, torch.arange(30), torch.arange(30, 40), learning_rate=1e30)


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 1), (3, 2), (3, 100)])
def test_tiny_sets_and_unusual_batches_work(made_up, rows, batch_size):
    rows = torch.arange(rows)
    head, [row] = fit(made_up, rows, rows, epochs=1, batch_size=batch_size)
    assert all(np.isfinite(list(row.values())))
    torch.manual_seed(0)
    initial = Head(6, 16, 3, 3, 0.5).layers[-1].bias
    change = (head.layers[-1].bias - initial).norm() / initial.norm()
    assert change > 1e-3  # even a single step has to teach something


@pytest.mark.parametrize(("classes", "sizes"), [(2, [5]), (300, [1]), (20, [40, 4, 4, 4])])
def test_the_default_rate_works_for_any_number_and_size_of_categories(tmp_path, classes, sizes):
    rng = np.random.default_rng(0)
    counts = np.resize(sizes, classes)
    labels = torch.from_numpy(np.concatenate([np.repeat(range(classes), counts), range(classes)]))
    centers = rng.random((classes, 64))
    values = centers[labels][:, None] + 0.1 * rng.standard_normal((len(labels), len(REGIONS), 64))
    train_rows, valid_rows = torch.arange(len(labels)).split([counts.sum(), classes])
    rows = {"train": train_rows, "valid": valid_rows}  # valid: one of each category
    defaults = train.parse_arguments(["--data_dir", "x", "--output_cat", str(classes)])
    torch.manual_seed(0)
    head = Head(64, defaults.hidden_units, classes, classes, defaults.dropout)
    samples = Samples(store_features(tmp_path, values), labels, rows)
    history = fitting.fit(head, samples, train.fit_settings(defaults))
    assert max(row["valid_accuracy"] for row in history) >= 0.9


# ---------------------------------------------------------------- labels and evaluation


def test_what_cannot_be_decoded_is_left_out_of_images_labels_and_features(
    tiny, own_images, tmp_path
):
    for split in ("train", "valid", "test"):
        draw(3, 7).save(own_images / split / "a" / "z.jpg")
    backbone = backbone_of(tiny)
    data = utils.read_data_folder(own_images)
    views = list_views(data, 2)
    complete = extract(own_images, views, tmp_path / "complete", backbone)
    rows = {(view.path, view.number): row for row, view in enumerate(views)}
    extract(own_images, list_views(data, 1), tmp_path / "plain", backbone)
    for name in ("train/a/train_0.jpg", "test/a/test_0.jpg", "valid/a/z.jpg"):
        (own_images / name).write_text("no image")  # its plain view is stored, others are not
    splits = {"train": [0, 0, 1, 1], "valid": [0, 0, 1], "test": [0, 0, 1]}
    for cache in ("plain", "all"):
        features = extract(own_images, views, tmp_path / cache, backbone)
        samples, left = fitting.label_features(features, data, 2)
        assert {split: left.labels(split) for split in utils.SPLITS} == splits
        views_left = list_views(left, 2)
        labels = [*np.repeat(splits["train"], 2), *splits["valid"], *splits["test"]]
        assert samples.labels.tolist() == labels
        assert [len(rows) for rows in samples.rows.values()] == [
            2 * len(splits["train"]),
            len(splits["valid"]),
            len(splits["test"]),
        ]
        samples_rows = torch.cat(list(samples.rows.values()))
        assert samples_rows.tolist() == list(range(len(views_left)))
        expected = [rows[view.path, view.number] for view in views_left]
        assert torch.equal(samples.features[samples_rows], complete[torch.tensor(expected)])
        splits = {"train": [0, 0, 1, 1], "valid": [0, 1], "test": [0, 1]}
        data = utils.read_data_folder(own_images)
        views = list_views(data, 2)


SPLITS = {"train": torch.arange(20), "valid": torch.arange(20, 30), "test": torch.arange(30, 40)}


@pytest.fixture(scope="module")
def fitted(made_up) -> Head:
    head, _ = fit(made_up, SPLITS["train"], SPLITS["valid"])
    return head


def outputs_of(head, made_up) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the hidden layer and the logits of all rows."""
    with torch.inference_mode():
        return head.image_outputs(made_up.values)


def assert_same_detector(detector, expected) -> None:
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(detector.state_dict()[name], tensor)


def test_the_temperature_comes_from_valid_and_the_metrics_from_test(made_up, fitted):
    evaluation = fitting.evaluate(fitted, Samples(made_up.features, made_up.labels, SPLITS))
    _, logits = outputs_of(fitted, made_up)
    temperature = fit_temperature(logits[20:30], made_up.labels[20:30])
    assert evaluation.temperature == temperature != 1
    torch.testing.assert_close(evaluation.probs, (logits[30:] / temperature).softmax(1))
    labels = made_up.labels[30:]
    expected = {f"test_{k}": v for k, v in metrics(logits[30:] / temperature, labels).items()}
    expected["test_ece_without_temperature"] = metrics(logits[30:], labels)["ece"]
    assert evaluation.metrics == pytest.approx(expected, rel=1e-4)


def test_the_detector_is_fitted_on_train_and_calibrated_on_valid(made_up, fitted):
    evaluation = fitting.evaluate(fitted, Samples(made_up.features, made_up.labels, SPLITS))
    hidden, logits = outputs_of(fitted, made_up)
    expected = novelty.fit_detector([(hidden[:20], made_up.labels[:20])], 16, 3)
    expected.calibrate(*expected.scores(hidden[20:30], logits[20:30]).unbind(1))
    assert_same_detector(evaluation.detector, expected)
    torch.testing.assert_close(evaluation.novelty, expected(hidden[30:], logits[30:]))


def test_a_final_head_is_evaluated_but_calibrated_by_the_first_one(made_up, fitted):
    final, _ = fit(made_up, torch.arange(30), SPLITS["valid"])
    samples = Samples(made_up.features, made_up.labels, SPLITS)
    first = fitting.evaluate(fitted, samples)
    evaluation = fitting.evaluate(fitted, samples, final)
    first_hidden, first_logits = outputs_of(fitted, made_up)
    hidden, logits = outputs_of(final, made_up)
    assert evaluation.temperature == first.temperature
    torch.testing.assert_close(evaluation.probs, (logits[30:] / first.temperature).softmax(1))
    # of train and valid
    expected = novelty.fit_detector([(hidden[:30], made_up.labels[:30])], 16, 3)
    expected.calibrate(*first.detector.scores(first_hidden[20:30], first_logits[20:30]).unbind(1))
    assert_same_detector(evaluation.detector, expected)
    torch.testing.assert_close(evaluation.novelty, expected(hidden[30:], logits[30:]))


def test_with_few_images_in_valid_those_of_train_calibrate_by_cross_validation(made_up, fitted):
    samples = Samples(made_up.features, made_up.labels, SPLITS)
    torch.manual_seed(0)
    head = Head(6, 16, 3, 3, 0.5)
    random_state = torch.get_rng_state()
    groups = torch.arange(20) // 2
    others = fitting.predict_train(head, samples, groups, SETTINGS)
    assert others is not None and torch.equal(others.labels, made_up.labels[:20])
    # The images of a fold are predicted by a head that was fitted on the others.
    folds = divide_into_folds(others.labels, groups, fitting.FOLDS, seed=0)
    in_fold = folds == folds[0]
    held_out = torch.arange(20)[in_fold]
    rows = {"train": torch.arange(20)[~in_fold], "valid": held_out}
    torch.set_rng_state(random_state)
    fitting.fit(head, samples._replace(rows=rows), SETTINGS)
    expected = fitting.compute_logits(head, made_up.features, held_out)
    torch.testing.assert_close(others.logits[in_fold], expected)
    incorrect = others._replace(labels=others.labels.roll(1))
    before = fitting.evaluate(fitted, samples)
    evaluation = fitting.evaluate(fitted, samples, others=incorrect)
    _, logits = outputs_of(fitted, made_up)
    all_logits = torch.cat([logits[20:30], others.logits])
    all_labels = torch.cat([made_up.labels[20:30], incorrect.labels])
    temperature = fit_temperature(all_logits, all_labels)
    assert evaluation.temperature == temperature != before.temperature
    mean, _ = evaluation.detector.calibration
    assert mean[0] == before.detector.calibration[0, 0]  # distances are of valid only
    assert mean[1] == pytest.approx(novelty.uncertainty_of(all_logits).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "train_images, valid_images, is_needed",
    [(1000, 49, True), (1000, 50, False), (1001, 49, False), (1, 0, True)],
)
def test_train_calibrates_if_valid_has_few_images_and_train_not_many(
    made_up, train_images, valid_images, is_needed
):
    rows = {"train": torch.zeros(2 * train_images), "valid": torch.zeros(valid_images)}
    samples = Samples(made_up.features, made_up.labels, rows, views=2)
    assert fitting.needs_train(samples) == is_needed


def test_copies_in_train_are_in_one_fold(tmp_path):
    values = np.random.default_rng(0).random((10, len(REGIONS), 256)).repeat(2, 0)
    labels = torch.arange(20) // 2 % 2
    rows = dict(zip(SPLITS, torch.arange(20).split([20, 0, 0]), strict=True))
    samples = Samples(store_features(tmp_path, values.astype(np.float16)), labels, rows)
    args = train.parse_arguments(["--data_dir", "photos", "--output_cat", "2"])
    head = Head(256, 16, 2, 2, 0.5)

    def predict(groups: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return fitting.predict_train(head, samples, groups, train.fit_settings(args)).logits

    torch.manual_seed(0)
    logits = train.predict_train(args, head, samples).logits
    assert torch.equal(logits, predict(torch.arange(20) // 2))
    assert not torch.allclose(logits, predict(torch.arange(20)))


def test_single_images_of_categories_are_not_cross_validated(made_up):
    single = torch.stack([(made_up.labels == k).nonzero()[0, 0] for k in range(3)])
    samples = Samples(made_up.features, made_up.labels, {**SPLITS, "train": single})
    head = Head(6, 16, 3, 3, 0.5)
    assert fitting.predict_train(head, samples, torch.arange(3), SETTINGS) is None


@pytest.mark.parametrize("is_final", [False, True])
def test_categories_of_one_image_in_train_have_no_detector(made_up, fitted, is_final):
    """Also where they have more together with valid: nothing calibrates the final head's."""
    single = torch.stack([(made_up.labels == k).nonzero()[0, 0] for k in range(3)])
    samples = Samples(made_up.features, made_up.labels, {**SPLITS, "train": single})
    evaluation = fitting.evaluate(fitted, samples, fitted if is_final else None)
    assert evaluation.detector is None and evaluation.novelty.isnan().all()


# ---------------------------------------------------------------- memory


def test_features_are_the_same_in_memory_and_in_the_file(tmp_path, monkeypatch):
    values = np.random.default_rng(0).random((5, 6, 8)).astype(np.float16)
    loaded, read = store_features(tmp_path, values), store_features(tmp_path, values)
    rows, regions = torch.tensor([3, 0, 3]), torch.tensor([5, 1, 0])
    read.file[1] = loaded.file[1] = MISSING
    assert torch.equal(loaded[rows], torch.from_numpy(values)[rows].float())
    assert not loaded[torch.tensor([1])].any()
    monkeypatch.setattr(features_module, "MEMORY_LIMIT", values.nbytes - 1)
    assert torch.equal(read[rows], loaded[rows]) and loaded[rows].dtype == torch.float32
    assert torch.equal(read[rows, regions], loaded[rows, regions])
    for path in tmp_path.glob("*.features"):
        path.unlink()
    assert torch.equal(loaded[rows, regions], torch.from_numpy(values)[rows, regions].float())
    with pytest.raises(UserError, match="the cached features are gone"):
        read[rows]


def test_fitting_uses_one_thread_and_gives_the_others_back(made_up):
    rows, before = torch.arange(30), torch.get_num_threads()
    seen = []
    run = Run()
    run.save = lambda *_: seen.append(torch.get_num_threads())
    try:
        torch.set_num_threads(3)
        fit(made_up, rows, rows, saved_to={"run": run})
        assert torch.get_num_threads() == 3 and set(seen) == {1}
    finally:
        torch.set_num_threads(before)


def test_memory_does_not_grow_with_the_number_of_images_above_the_limit(tmp_path, monkeypatch):
    values = np.random.default_rng(0).random((3000, len(REGIONS), 256), np.float32)
    features = store_features(tmp_path, values)
    num_bytes = values.nbytes // 2  # of float16
    monkeypatch.setattr(features_module, "MEMORY_LIMIT", num_bytes - 1)
    rows = dict(zip(SPLITS, torch.arange(3000).split(1000), strict=True))
    samples = Samples(features, torch.arange(3000) % 2, rows)
    head = Head(256, 4, 2, 2, 0.0)
    tracemalloc.start()  # features are read by numpy, whose arrays it counts
    fitting.fit(head, samples, FitSettings(epochs=1, learning_rate=0.05, batch_size=64))
    fitting.evaluate(head, samples)
    for _ in samples.averages():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_bytes / 100 < peak < num_bytes / 2
