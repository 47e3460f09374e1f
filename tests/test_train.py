"""train: fitting, evaluating, the command line and its errors."""

import copy
import csv
import math
import os
import re
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import (
    CATEGORIES,
    all_pictures,
    assert_error,
    backbone_of,
    draw,
    extract,
    make_pictures,
    not_root,
    run,
    same_bits,
    small_backbone,
    state_of,
    table_rows,
)
from PIL import Image, ImageOps
from torch.nn.functional import cross_entropy

import features
import model
import train
import utils
from model import PARTS, Head, metrics
from utils import UserError

REPORT = ["history.csv", "categories.csv", "curves.png", "confusion.png", "mistakes.png"]


def head_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("head.layers.")}


# ---------------------------------------------------------------- fitting, on made-up features


@pytest.fixture
def made_up(tmp_path):
    """40 rows of 6 parts of 6 features in a file, labels (3 categories), the same in memory."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    made = (rng.random((40, len(PARTS), 6)) + np.eye(6)[labels][:, None]).astype(np.float16)
    store = features.FeatureStore(tmp_path / "made up", 6)
    keys = [bytes([number] * features.KEY_BYTES) for number in range(40)]
    store.append(keys, made)
    store.close()
    return store.find(keys), torch.from_numpy(labels), torch.from_numpy(made).float()


def evaluate(head, kept, labels, rows, *batch_size):
    """The metrics of a head on some rows."""
    return metrics(train.compute_logits(head, kept, rows, *batch_size), labels[rows])


def fit(made_up, train_rows, valid_rows, labels=None, **changes):
    """A fitted head and its history."""
    torch.manual_seed(changes.pop("seed", 0))
    head = Head(6, 16, 3, 3, changes.pop("dropout", 0.5))
    settings = {"epochs": 10, "learning_rate": 0.05, "batch_size": 7} | changes
    labels = made_up[1] if labels is None else labels
    return head, train.fit(head, made_up[0], labels, train_rows, valid_rows, **settings)


def test_one_batch_can_be_overfitted(made_up):
    rows, noise = torch.arange(4), torch.tensor([0, 1, 2, 2, 1, 0, 1, 0] * 5)
    head, history = fit(made_up, rows, rows, noise, epochs=200, batch_size=8, dropout=0.0)
    found = evaluate(head, made_up[0], noise, rows)
    # The lowest loss with smoothing is at these probabilities.
    right, wrong = 1 - train.LABEL_SMOOTHING * 2 / 3, train.LABEL_SMOOTHING / 3
    least = -right * math.log(right) - 2 * wrong * math.log(wrong)
    assert found["accuracy"] == 1.0 and found["loss"] < 0.1
    assert history[-1]["train_loss"] == pytest.approx(least, abs=0.03)


def test_fitting_learns_what_can_be_learnt(made_up):
    head, history = fit(made_up, torch.arange(30), torch.arange(30, 40), epochs=60)
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert history[-1]["valid_accuracy"] >= 0.8


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_loss_and_accuracy_are_means_over_rows_for_any_batch_size(made_up, batch_size):
    kept, labels, made = made_up
    head, _ = fit(made_up, torch.arange(30), torch.arange(30, 40), epochs=1, learning_rate=1e-3)
    rows = torch.tensor([39, 0, 5, 5, *range(10, 27)])
    found = evaluate(head, kept, labels, rows, batch_size)
    with torch.inference_mode():
        logits = head(made[rows]).mean(1)
    right = [row.argmax().item() == labels[r] for row, r in zip(logits, rows, strict=True)]
    assert found["accuracy"] == sum(right) / len(rows) and 0 < found["accuracy"] < 1
    wanted = sum(cross_entropy(row, labels[r]) for row, r in zip(logits, rows, strict=True))
    assert found["loss"] == pytest.approx(wanted.item() / len(rows), rel=1e-5)


def test_the_losses_are_means_over_rows(made_up):
    rows = torch.cat([(made_up[1] == category).nonzero()[:9, 0] for category in range(3)])
    assert len(rows) == 27  # in batches of 7: the last one is smaller
    head, [row] = fit(made_up, rows, rows, epochs=1, learning_rate=1e-12, dropout=0.0)
    with torch.inference_mode():
        logits = head(made_up[2][rows]).flatten(0, 1)  # of each part
    labels = made_up[1][rows].repeat_interleave(len(PARTS))
    loss = cross_entropy(logits, labels, label_smoothing=train.LABEL_SMOOTHING).item()
    assert row["train_loss"] == pytest.approx(loss, rel=1e-4)
    found = evaluate(head, made_up[0], made_up[1], rows)
    assert (row["valid_loss"], row["valid_accuracy"]) == (found["loss"], found["accuracy"])


def test_features_are_standardised_by_the_training_rows(made_up):
    rows = torch.arange(3, 33)
    head, _ = fit(made_up, rows, torch.arange(3), epochs=1)
    made = made_up[2][rows].flatten(0, 1)
    torch.testing.assert_close(head.mean, made.mean(0))
    torch.testing.assert_close(head.std, made.std(0, correction=0))


def test_the_best_epoch_is_kept(made_up):
    kept, labels, _ = made_up
    rows, seen = torch.arange(40), []
    wrong = (labels + 1) % 3  # the more is learnt, the fewer of these are hit
    both = torch.cat([labels[:20], wrong[20:]])
    head, history = fit(
        made_up, rows[:20], rows[20:], both, epochs=30, report=lambda *row: seen.append(row)
    )
    assert [row["epoch"] for row in history] == list(range(1, 31))
    assert [row for row, _ in seen] == history
    best = max(history, key=lambda row: (row["valid_accuracy"], -row["valid_loss"]))
    assert best["valid_accuracy"] > history[-1]["valid_accuracy"]
    assert [row for row, is_best in seen if is_best][-1] == best
    found = evaluate(head, kept, both, rows[20:])
    assert (found["loss"], found["accuracy"]) == (best["valid_loss"], best["valid_accuracy"])
    assert not head.training


def test_the_temperature_makes_probabilities_believable():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    for factor in (0.5, 1.0, 3.0):  # too modest, right, too sure
        temperature = train.fit_temperature(logits * factor, labels)
        assert temperature == pytest.approx(factor, rel=0.1)
        found = metrics(logits * factor / temperature, labels)
        assert found["ece"] < 0.03
        assert found["accuracy"] == metrics(logits, labels)["accuracy"]
    assert metrics(logits * 3, labels)["ece"] > 0.05


def test_the_temperature_stays_within_bounds():
    logits = torch.eye(3)
    assert train.fit_temperature(logits, torch.tensor([0, 1, 2])) == min(train.TEMPERATURES)
    assert train.fit_temperature(logits, torch.tensor([1, 2, 0])) == max(train.TEMPERATURES)


def keep_in(folder):
    """A `keep` of `fit` that writes each epoch's state into a file of its own."""
    return lambda state: torch.save(state, folder / f"{state['history'][-1]['epoch']}.pth")


def test_fitting_goes_on_to_the_same_bits(made_up, tmp_path):
    rows = (torch.arange(30), torch.arange(30, 40))

    head, history = fit(made_up, *rows, keep=keep_in(tmp_path))
    for epoch in (1, 6, 10):
        state = torch.load(tmp_path / f"{epoch}.pth", weights_only=True)
        again, whole = fit(made_up, *rows, state=state, seed=epoch)
        assert whole == history
        assert same_bits(again.state_dict(), head.state_dict())


def test_a_loss_that_is_no_number_is_an_error_with_advice(made_up):
    with pytest.raises(UserError, match="--learning_rate smaller than 1e\\+30"):
        fit(made_up, torch.arange(30), torch.arange(30, 40), learning_rate=1e30)


def test_categories_of_any_size_are_seen_equally_often():
    torch.manual_seed(0)
    labels = torch.tensor([2] * 3 + [0] * 40 + [2] * 2 + [5] * 15)  # one category has none
    order = train.balanced_order(labels)
    assert torch.bincount(labels[order]).tolist() == [20, 0, 20, 0, 0, 20]
    counts = torch.bincount(order, minlength=60)
    assert counts[labels == 2].tolist() == [4] * 5  # all of them, equally often
    assert counts[labels == 0].max() == 1
    assert set(counts[labels == 5].tolist()) == {1, 2}
    assert (labels[order[:20]] == labels[order[0]]).float().mean() < 0.8  # mixed
    assert not torch.equal(order, train.balanced_order(labels))
    even = torch.arange(12) % 3
    assert sorted(train.balanced_order(even).tolist()) == list(range(12))


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 1), (1, 100), (3, 2), (3, 100), (8, 1)])
def test_tiny_sets_and_odd_batches_work(made_up, rows, batch_size):
    rows = torch.arange(rows)
    head, [row] = fit(made_up, rows, rows, epochs=1, batch_size=batch_size)
    assert all(np.isfinite(list(row.values())))
    torch.manual_seed(0)
    begun = Head(6, 16, 3, 3, 0.5).layers[-1].bias
    change = (head.layers[-1].bias - begun).norm() / begun.norm()
    assert change > 1e-3  # a single step has to teach something, too


@pytest.mark.parametrize(("classes", "sizes"), [(2, [5]), (1000, [1]), (20, [40, 4, 4, 4])])
def test_the_default_rate_works_for_any_number_and_size_of_categories(tmp_path, classes, sizes):
    rng = np.random.default_rng(0)
    counts = np.resize(sizes, classes)
    labels = torch.from_numpy(np.concatenate([np.repeat(range(classes), counts), range(classes)]))
    centres = rng.random((classes, 64))
    made = centres[labels][:, None] + 0.1 * rng.standard_normal((len(labels), len(PARTS), 64))
    store = features.FeatureStore(tmp_path, 64)
    keys = [number.to_bytes(features.KEY_BYTES, "big") for number in range(len(labels))]
    store.append(keys, made)
    store.close()
    defaults = train.parse_arguments(["--data_dir", "x", "--output_cat", str(classes)])
    torch.manual_seed(0)
    head = Head(64, defaults.hidden_units, classes, classes, defaults.dropout)
    names = ("epochs", "learning_rate", "batch_size")
    history = train.fit(
        head,
        store.find(keys),
        labels,
        torch.arange(counts.sum()),
        torch.arange(counts.sum(), len(labels)),  # one of each category
        **{name: getattr(defaults, name) for name in names},
    )
    assert max(row["valid_accuracy"] for row in history) >= 0.9


# ---------------------------------------------------------------- fine-tuning, on small pictures


class Tunable(NamedTuple):
    """A small backbone and a head that one careful epoch was fitted for, and what they need."""

    backbone: model.Backbone
    head: Head
    kept: features.Features
    labels: torch.Tensor
    train_rows: torch.Tensor
    valid_rows: torch.Tensor
    best: dict


@pytest.fixture
def tunable(pictures, tmp_path):
    backbone, data = small_backbone(), utils.read_data_folder(pictures)
    views = [(path, 0) for path in data.paths["train"] + data.paths["valid"]]
    kept = extract(pictures, views, tmp_path, backbone, maps=True)
    labels = torch.tensor(data.labels["train"] + data.labels["valid"])
    rows = torch.arange(len(labels)).split(len(data.labels["train"]))
    torch.manual_seed(0)
    head = Head(backbone.num_features, 16, 4, 4, 0.0)
    [best] = train.fit(head, kept, labels, *rows, epochs=1, learning_rate=1e-4, batch_size=8)
    return Tunable(backbone, head, kept, labels, *rows, best)


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def fine_tune(tunable, **changes):
    settings = {"epochs": range(2, 6), "learning_rate": 2.0, "history": [tunable.best]} | changes
    return train.fine_tune(*tunable[:-1], precision=torch.float32, **settings)


def test_fine_tuning_trains_the_last_block_and_the_head_alone(tunable, pictures):
    backbone, head = copy_of(tunable.backbone), copy_of(tunable.head)
    history = fine_tune(tunable)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert history[-1]["train_loss"] < tunable.best["train_loss"]
    changed = {
        name
        for name, tensor in copy_of(tunable.backbone).items()
        if (tensor != backbone[name]).any()
    }
    assert changed == {"features.4.weight", "features.4.bias"}
    assert all((t != head[n]).any() for n, t in copy_of(tunable.head).items() if "layers" in n)
    assert not any(parameter.requires_grad for parameter in tunable.backbone.parameters())
    # What was measured on kept maps holds for pictures, too.
    data = utils.read_data_folder(pictures)
    views = [utils.load_views(str(pictures), path, [0]) for path in data.paths["valid"]]
    with torch.inference_mode():
        logits = tunable.head(tunable.backbone(utils.normalize(torch.cat(views)))).mean(1)
    found = metrics(logits, torch.tensor(data.labels["valid"]))
    best = max(history, key=train.quality)
    assert found["accuracy"] == best["valid_accuracy"]
    assert found["loss"] == pytest.approx(best["valid_loss"], rel=0.01)


def test_fine_tuning_goes_on_to_the_same_bits(tunable, tmp_path):
    begun = copy.deepcopy((tunable.backbone, tunable.head))

    torch.manual_seed(1)
    history = fine_tune(tunable, keep=keep_in(tmp_path))
    tuned = copy.deepcopy((tunable.backbone.state_dict(), tunable.head.state_dict()))
    for epoch in (2, 4, 5):
        again = tunable._replace(backbone=begun[0], head=begun[1])
        state = torch.load(tmp_path / f"{epoch}.pth", weights_only=True)
        assert fine_tune(again, state=state) == history
        assert same_bits(again.backbone.state_dict(), tuned[0])
        assert same_bits(again.head.state_dict(), tuned[1])


def test_fine_tuning_that_brings_nothing_changes_nothing(tunable):
    backbone, head = copy_of(tunable.backbone), copy_of(tunable.head)
    best = tunable.best | {"valid_accuracy": 1.0, "valid_loss": 0.0}
    assert len(fine_tune(tunable, history=[best])) == 5
    assert same_bits(tunable.backbone.state_dict(), backbone)
    assert same_bits(tunable.head.state_dict(), head)


def test_mirrored_maps_are_those_of_the_mirror_image(tmp_path):
    backbone = small_backbone()
    for layer in (backbone.features[0], backbone.features[4]):
        layer.weight.data += layer.weight.data.flip(3)  # so that they see no left and right
    image = draw(0, 1)
    image.save(tmp_path / "image.png")
    ImageOps.mirror(image).save(tmp_path / "mirror.png")
    views = [("image.png", 0), ("mirror.png", 0)]
    kept = extract(tmp_path, views, tmp_path / "cache", backbone, maps=True)
    tuned, rows = train.TunedFeatures(backbone, kept, torch.float32), torch.arange(2)
    found = tuned.mirrored(rows, torch.tensor([True, False]))
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.02)
    assert (tuned[rows][0] - tuned[rows][1]).abs().max() > 0.1
    torch.testing.assert_close(tuned[rows], kept[rows], rtol=0.01, atol=0.01)


def test_the_fine_tune_flag_goes_on_after_the_last_epoch(trained, train_again, call, pictures):
    states = []
    for _ in range(2):
        done, path = train_again("--fine_tune", 2)
        assert done.returncode == 0, done.stderr
        epochs = [line.split()[1] for line in done.stdout.splitlines() if line[:6] == "epoch "]
        assert epochs == [f"{number}/10" for number in range(1, 11)]
        states.append(state_of(path))
    assert same_bits(*states)
    content = torch.load(path, weights_only=True)
    before = state_of(trained.checkpoint)
    for name, tensor in content["state_dict"].items():
        tuned = content["epoch"] > 8 and int(re.search(r"\d+", name)[0]) >= 24
        if name.startswith("backbone."):
            assert torch.equal(tensor, before[name]) != tuned
    picture = pictures / "test" / "10" / "test_0.jpg"
    done = call("predict.py", "--input", picture, "--checkpoint", path)
    assert table_rows(done.stdout)[0][3] == "10"


# ---------------------------------------------------------------- the command line


def test_the_command_says_what_it_found_and_what_it_does(trained, pictures):
    lines = trained.done.stdout.splitlines()
    text = trained.done.stdout
    for line, (split, count) in zip(
        lines, [("train", 16), ("valid", 8), ("test", 8)], strict=False
    ):
        assert re.fullmatch(rf"{split} +{count} pictures +4 categories", line)
    assert re.search(r"vgg16.*none.*2 view.*on cpu in (bfloat16|float32)", text)
    assert text.index(str(trained.checkpoint)) < text.index("epoch")
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 8
    for number, line in enumerate(epochs, 1):
        assert re.match(
            rf"epoch +{number}/8 +train loss +\d+\.\d+ +valid loss +\d+\.\d+ "
            r"+valid accuracy +\d+\.\d%",
            line,
        )
    assert re.search(r"test accuracy \d+\.\d% .*top-5 \d+\.\d%, mean of .* \d+\.\d%$", lines[-4])
    assert re.search(r"error \d+\.\d% at temperature \d\.\d\d \(\d+\.\d% without", lines[-3])
    assert f"--checkpoint {trained.checkpoint}" in lines[-2]
    assert all(name in lines[-1] for name in REPORT)


def test_into_a_file_progress_is_plain_lines(trained):
    lines = trained.done.stderr.splitlines()
    assert 5 <= len(lines) <= 11
    assert all(re.fullmatch(r"features: \d+/48, \d+ s left", line) for line in lines)
    assert lines[-1] == "features: 48/48, 0 s left"


def test_the_checkpoint_tells_how_it_was_trained(trained, pictures):
    content = torch.load(trained.checkpoint, weights_only=True)
    assert content["class_to_idx"] == {"1": 0, "10": 1, "2": 2, "x y": 3}
    assert (content["arch"], content["hidden_units"], content["num_outputs"]) == ("vgg16", 64, 4)
    assert (list(content["means"]), list(content["stds"])) == (utils.MEANS, utils.STDS)
    arguments, metrics = content["arguments"], content["metrics"]
    assert (arguments["epochs"], arguments["seed"]) == (8, 0)
    assert arguments["data_dir"] == str(pictures)
    assert metrics["epoch"] == content["epoch"]
    lines = [line for line in trained.done.stdout.splitlines() if line.startswith("epoch ")]
    accuracies = [float(re.search(r"accuracy +([\d.]+)%", line)[1]) for line in lines]
    assert max(accuracies) == round(100 * metrics["valid_accuracy"], 1)
    assert accuracies[content["epoch"] - 1] == max(accuracies)
    assert f"test accuracy {metrics['test_accuracy']:.1%}" in trained.done.stdout
    assert content["temperature"] in train.TEMPERATURES
    names = (
        "loss",
        "accuracy",
        "top5_accuracy",
        "class_accuracy",
        "ece",
        "ece_without_temperature",
    )
    assert {name for name in metrics if "test" in name} == {f"test_{name}" for name in names}
    assert metrics["test_top5_accuracy"] == 1  # of 4 categories
    assert metrics["test_accuracy"] >= 0.75  # colours are told apart even by random weights


def test_the_backbone_is_unchanged_to_the_bit_and_the_head_is_not(trained):
    state = state_of(trained.checkpoint)
    backbone = {f"backbone.{name}": t for name, t in backbone_of().state_dict().items()}
    assert same_bits({name: t for name, t in state.items() if "backbone" in name}, backbone)
    torch.manual_seed(0)
    begun = Head(2048, 64, 4, 4, 0.5).state_dict()
    assert len(head_of(state)) == 4
    for name, tensor in head_of(state).items():
        assert not torch.equal(tensor, begun[name.removeprefix("head.")])


def test_the_same_command_gives_the_same_bits_from_kept_features(trained, train_again):
    done, path = train_again()
    assert done.returncode == 0 and done.stderr == ""
    assert same_bits(state_of(path), state_of(trained.checkpoint))


def test_another_seed_gives_another_head(trained, train_again):
    done, path = train_again("--seed", 1)
    assert done.returncode == 0 and done.stderr == ""
    before, after = state_of(trained.checkpoint), state_of(path)
    assert not any(torch.equal(t, head_of(after)[name]) for name, t in head_of(before).items())


@pytest.mark.parametrize(
    "flags",
    [
        ["--learning_rate", 0.001],
        ["--hidden_units", 3],
        ["--dropout", 0],
        ["--batch_size", 1000],
    ],
    ids=lambda flags: f"{flags[0]} {flags[1]}",
)
def test_flags_of_the_head_count_and_need_no_new_features(trained, train_again, flags):
    done, path = train_again(*flags)
    assert done.returncode == 0 and done.stderr == ""
    before, after = head_of(state_of(trained.checkpoint)), head_of(state_of(path))
    assert not same_bits(before, after)


def test_without_a_cache_the_same_seed_gives_the_same_bits(own_pictures, call, tmp_path):
    flags = ("--data_dir", own_pictures, "--output_cat", 2, "--weights", "none", "--no_cache")
    flags += ("--cache_dir", tmp_path / "cache", "--no_report")
    states = []
    for workers in (0, 2):
        path = tmp_path / f"{workers}.pth"
        done = call("train.py", *flags, "--workers", workers, "--save_dir", path)
        assert done.returncode == 0, done.stderr
        assert "features: 8/8" in done.stderr
        states.append(state_of(path))
        path.unlink()
    assert same_bits(*states)
    assert not (tmp_path / "cache").exists()


def test_vgg13_and_one_view_of_one_picture_a_category(call, tmp_path):
    data = make_pictures(tmp_path / "data", ("a", "b"), 1, 1, 1)
    flags = ("--arch", "vgg13", "--views", 1, "--epochs", 1, "--workers", 0, "--no_cache")
    flags += ("--weights", "none", "--save_dir", tmp_path / "13.pth")
    done = call("train.py", "--data_dir", data, "--output_cat", 2, *flags)
    assert done.returncode == 0, done.stderr
    assert "features: 6/6" in done.stderr
    assert torch.load(tmp_path / "13.pth", weights_only=True)["arch"] == "vgg13"
    picture = data / all_pictures(data)[0]
    done = call("predict.py", "--input", picture, "--checkpoint", tmp_path / "13.pth")
    (tmp_path / "13.pth").unlink()
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2


# ---------------------------------------------------------------- the report


def read_csv(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_report_is_written_beside_the_checkpoint_and_named_after_it(trained):
    beside = {path.name for path in trained.checkpoint.parent.iterdir()}
    assert beside == {"model.pth", *(f"model.{name}" for name in REPORT)}
    for name in REPORT[2:]:
        with Image.open(trained.checkpoint.with_suffix(f".{name}")) as image:
            assert image.format == "PNG" and min(image.size) > 100
            assert len(image.convert("RGB").getcolors(10**7)) > 20  # something is drawn


def test_the_history_has_the_epochs_that_were_printed(trained):
    rows = read_csv(trained.checkpoint.with_suffix(".history.csv"))
    lines = [line for line in trained.done.stdout.splitlines() if line.startswith("epoch ")]
    assert len(rows) == len(lines) == 8
    for row, line in zip(rows, lines, strict=True):
        number, *values = map(float, row.values())
        assert list(row) == ["epoch", "train_loss", "valid_loss", "valid_accuracy"]
        shown = [f"{values[0]:.3f}", f"{values[1]:.3f}", f"{values[2]:.1%}"]
        assert re.findall(r"[\d.]+%?", line) == [f"{number:.0f}", "8", *shown]


def test_the_categories_add_up_to_the_test_accuracy(trained, pictures):
    rows = read_csv(trained.checkpoint.with_suffix(".categories.csv"))
    oxford = utils.load_category_names()  # the tests run beside cat_to_name.json
    assert [(row["category"], row["name"]) for row in rows] == [
        (category, oxford.get(category, category)) for category in CATEGORIES
    ]
    assert [row["images"] for row in rows] == ["2"] * len(CATEGORIES)
    metrics = torch.load(trained.checkpoint, weights_only=True)["metrics"]
    right = sum(float(row["recall"]) * 2 for row in rows)
    assert right == pytest.approx(8 * metrics["test_accuracy"])


def test_names_in_the_report_are_those_that_were_asked_for(trained, weights_file, call, tmp_path):
    (tmp_path / "names.json").write_text('{"1": "one", "2": "two $ & two"}')
    flags = ("--category_names", tmp_path / "names.json", "--save_dir", tmp_path / "c.pth")
    done = call("train.py", *trained.flags, "--weights", weights_file, *flags)
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "c.categories.csv")
    assert [row["name"] for row in rows] == ["one", "10", "two $ & two", "x y"]
    (tmp_path / "c.pth").unlink()


def test_without_a_report_the_checkpoint_stands_alone(train_again):
    done, path = train_again()  # with --no_report
    assert done.returncode == 0 and "report:" not in done.stdout
    assert [other for other in path.parent.iterdir() if other.name.startswith("again")] == [path]


def test_a_report_that_cannot_be_written_is_named_and_the_checkpoint_is_safe(
    trained, weights_file, call, tmp_path
):
    (tmp_path / "c.confusion.png").mkdir()
    flags = ("--weights", weights_file, "--save_dir", tmp_path / "c.pth")
    assert_error(call("train.py", *trained.flags, *flags), "c.confusion.png")
    assert same_bits(state_of(tmp_path / "c.pth"), state_of(trained.checkpoint))
    (tmp_path / "c.pth").unlink()


def test_the_most_confident_mistakes_come_first():
    probs = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]])
    labels = torch.tensor([0, 0, 0, 1, 0])
    assert train.confident_mistakes(labels, probs) == [4, 2, 3, 1]
    many = probs[[2]].expand(50, 2)
    worst = train.confident_mistakes(torch.zeros(50, dtype=int), many)
    assert worst == list(range(train.MISTAKES))
    assert train.confident_mistakes(probs.argmax(1), probs) == []


# ---------------------------------------------------------------- broken pictures


def test_a_broken_picture_is_left_out_and_named(own_pictures, call, tmp_path):
    (own_pictures / "train" / "a" / "broken one.jpg").write_text("no picture")
    (own_pictures / "test" / "b" / "broken two.jpg").touch()
    flags = ("--weights", "none", "--workers", 0, "--cache_dir", tmp_path / "cache", "--epochs", 1)
    flags += ("--save_dir", tmp_path / "c.pth", "--no_report")
    done = call("train.py", "--data_dir", own_pictures, "--output_cat", 2, *flags)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "broken two.jpg: empty" in warnings[0] and "broken one.jpg" in warnings[1]
    assert done.stderr.index("broken two.jpg") < done.stderr.index("features: ")
    assert "(2 pictures)" in done.stdout  # the test split has 3 files
    table = tmp_path / "c.unreadable.csv"
    assert f"2 pictures could not be read and were left out; {table} lists them" in done.stdout
    with open(table, newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason"],
            ["test/b/broken two.jpg", "empty"],
            ["train/a/broken one.jpg", "not a picture (or of a format that is not known)"],
        ]
    (own_pictures / "train" / "a" / "broken one.jpg").unlink()
    (own_pictures / "test" / "b" / "broken two.jpg").unlink()
    done = call("train.py", "--data_dir", own_pictures, "--output_cat", 2, *flags)
    assert done.returncode == 0 and "could not be read" not in done.stdout
    assert not table.exists()
    (tmp_path / "c.pth").unlink()


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_strict_stops_at_the_first_broken_picture(own_pictures, call, tmp_path, content):
    for number in range(8):  # enough to tell the first batch from all
        draw(0, number).save(own_pictures / "train" / "b" / f"{number}.jpg")
    (own_pictures / "train" / "a" / "a broken one.jpg").write_bytes(content)
    (own_pictures / "valid" / "b" / "z broken.jpg").write_text("no picture either")
    flags = ("--weights", "none", "--workers", 0, "--no_cache", "--strict")
    flags += ("--save_dir", tmp_path / "c.pth")
    done = call("train.py", "--data_dir", own_pictures, "--output_cat", 2, *flags)
    assert_error(done, "a broken one.jpg", "--strict")
    assert "z broken" not in done.stderr and "features: 1" not in done.stderr
    assert content or "features" not in done.stderr  # an empty file is known before
    assert not list(tmp_path.glob("*.csv")) and not (tmp_path / "c.pth").exists()


def test_odd_names_go_through_a_whole_training(own_pictures, call, tmp_path):
    """Names with line ends, and of bytes that are no text, of categories and of broken files."""
    odd = "line\nbreak " + os.fsdecode(b"\xff")
    for split in utils.SPLITS:
        (own_pictures / split / "a").rename(own_pictures / split / odd)
    (own_pictures / "train" / "b" / f"{odd}.jpg").write_text("no picture")
    shutil.copy(own_pictures / "train" / "b" / "train_0.jpg", own_pictures / "test" / "b" / odd)
    flags = ("--weights", "none", "--arch", "vgg13", "--workers", 0, "--no_cache", "--epochs", 1)
    flags += ("--save_dir", tmp_path / "c.pth")
    done = call("train.py", "--data_dir", own_pictures, "--output_cat", 2, *flags)
    assert done.returncode == 0, done.stderr
    leak, *_, broken = done.stderr.splitlines()
    assert leak.startswith("warning: ") and "train/b/train_0.jpg" in leak
    assert broken.startswith("warning: ") and "line break \\udcff.jpg" in broken
    with open(tmp_path / "c.unreadable.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1][0] == "train/b/line\nbreak \\udcff.jpg"
    picture = own_pictures / "test" / odd / "test_0.jpg"
    flags = ("--checkpoint", tmp_path / "c.pth", "--top_k", 2)
    done = call("predict.py", "--input", picture, *flags)
    assert done.returncode == 0, done.stderr
    assert {category for *_, category in table_rows(done.stdout)} == {"b", "line break \\udcff"}
    done = call("train.py", "--data_dir", own_pictures, "--check", tmp_path / "report.csv")
    assert done.returncode == 0 and "break \\udcff.jpg (not a picture" in done.stdout
    (tmp_path / "c.pth").unlink()


def test_a_category_without_a_picture_that_can_be_read_is_named(own_pictures, call, tmp_path):
    for path in (own_pictures / "train" / "b").iterdir():
        path.write_text("no picture")
    flags = ("--weights", "none", "--workers", 0, "--no_cache", "--views", 1)
    flags += ("--save_dir", tmp_path / "c.pth")
    done = call("train.py", "--data_dir", own_pictures, "--output_cat", 2, *flags)
    assert_error(done, "train/b", "none of its pictures")
    assert not (tmp_path / "c.pth").exists()


# ---------------------------------------------------------------- --output_cat


def test_too_few_outputs_are_an_error_with_both_numbers(train_again):
    done, path = train_again("--output_cat", 3)
    assert_error(done, "--output_cat 3", "4 categories")
    assert not path.exists()


def test_spare_outputs_are_warned_of_and_never_predicted(train_again, call, pictures):
    done, path = train_again("--output_cat", 9)
    assert done.returncode == 0
    [warning] = done.stderr.splitlines()
    assert warning.startswith("warning: ") and "9" in warning and "4 categories" in warning
    assert torch.load(path, weights_only=True)["num_outputs"] == 9
    picture = pictures / all_pictures(pictures)[0]
    done = call("predict.py", "--input", picture, "--checkpoint", path, "--top_k", 100)
    assert sorted(category for *_, category in table_rows(done.stdout)) == sorted(CATEGORIES)


@pytest.mark.parametrize("flags", [[], ["--output_cat", "many"], ["--output_cat", 0]])
def test_a_missing_or_wrong_number_of_outputs_is_told(call, pictures, flags):
    assert_error(
        call("train.py", "--data_dir", pictures, *flags), "--output_cat", "type --output_cat 4"
    )


# ---------------------------------------------------------------- other data folders


def test_a_folder_without_splits_is_trained_on(call, tmp_path):
    for kind, category in enumerate(("a", "b")):
        folder = tmp_path / "mine" / category
        folder.mkdir(parents=True)
        for number in range(12):
            draw(kind, number, 40, 30).save(folder / f"{number}.png")
    flags = ("--weights", "none", "--workers", 0, "--no_cache", "--views", 1, "--epochs", 1)
    flags += ("--save_dir", tmp_path / "c.pth")
    done = call("train.py", "--data_dir", tmp_path / "mine", "--output_cat", 2, *flags)
    assert done.returncode == 0, done.stderr
    assert "features: 24/24" in done.stderr
    assert "no valid or test folder: split by content" in done.stderr
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    assert content["class_to_idx"] == {"a": 0, "b": 1}
    (tmp_path / "c.pth").unlink()


def test_check_reports_and_trains_nothing(call, own_pictures, tmp_path):
    (own_pictures / "train" / "a" / "broken.jpg").write_text("no picture")
    (own_pictures / "valid" / "rose").mkdir()
    report = tmp_path / "report.csv"
    done = call("train.py", "--data_dir", own_pictures, "--check", report)
    assert done.returncode == 0 and done.stderr == ""
    assert re.search(r"train +5 pictures +2 categories, of 2 \(b\) to 3 \(a\)", done.stdout)
    assert "unknown category: 1: valid/rose (not in train)" in done.stdout
    assert re.search(r"unreadable: 1: train/a/broken.jpg \(not a picture", done.stdout)
    assert re.search(r"features: 8 views in about [\d.]+ minutes", done.stdout)  # 4 + 2 + 2
    assert "--output_cat 2" in done.stdout
    with open(report, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["finding"], r["path"]) for r in rows if r["finding"] == "unreadable"} == {
        ("unreadable", "train/a/broken.jpg")
    }
    counts = {(r["split"], r["category"]): r["detail"] for r in rows if r["finding"] == "pictures"}
    assert counts["train", "a"] == "3" and counts["valid", "rose"] == "0"
    assert float(rows[-1]["detail"]) > 0 and rows[-1]["finding"] == "minutes"
    assert not list(tmp_path.rglob("*.pth"))


def test_a_report_that_cannot_be_written_is_named(call, own_pictures, tmp_path):
    target = tmp_path / "nowhere" / "report.csv"
    done = call("train.py", "--data_dir", own_pictures, "--check", target)
    assert_error(done, target)


# ---------------------------------------------------------------- --save_dir


@pytest.mark.parametrize(
    ("save_dir", "file"),
    [
        ("model.pth", "model.pth"),
        ("there", "there/checkpoint_script.pth"),
        ("there.v2", "there.v2/checkpoint_script.pth"),
        ("new", "new/checkpoint_script.pth"),
        ("new.v2/", "new.v2/checkpoint_script.pth"),
        ("new/deep/model.pt", "new/deep/model.pt"),
    ],
)
def test_save_dir_is_a_file_or_a_folder(tmp_path, save_dir, file):
    (tmp_path / "there").mkdir()
    (tmp_path / "there.v2").mkdir()
    path = train.checkpoint_path(f"{tmp_path}/{save_dir}")
    assert path == tmp_path / file
    assert path.parent.is_dir() and not list(path.parent.glob("*.p*"))


def test_a_folder_as_save_dir_holds_the_checkpoint(train_again, tmp_path):
    done, _ = train_again("--save_dir", tmp_path / "new folder")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "new folder" / "checkpoint_script.pth"
    assert str(path) in done.stdout
    assert torch.load(path, weights_only=True)["arch"] == "vgg16"
    path.unlink()


@pytest.mark.parametrize("kind", ["parent is a file", "is a folder", "x" * 5000])
def test_a_place_that_cannot_be_written_is_found_before_the_work(call, pictures, tmp_path, kind):
    (tmp_path / "parent is a file").touch()
    (tmp_path / "is a folder" / "checkpoint_script.pth").mkdir(parents=True)
    target = tmp_path / kind if kind == "is a folder" else tmp_path / kind / "model.pth"
    cache = tmp_path / "cache"
    flags = ("--output_cat", 4, "--weights", "none", "--cache_dir", cache, "--save_dir", target)
    done = call("train.py", "--data_dir", pictures, *flags)
    assert_error(done, "--save_dir", kind)
    assert not cache.exists()


@pytest.mark.parametrize("mode", [0o000, 0o555])
@pytest.mark.parametrize("name", ["model.pth", "new/model.pth", "new/folder"])
def test_a_folder_that_may_not_be_written_is_a_users_error(locked_folder, name, mode):
    locked_folder.chmod(mode)
    with pytest.raises(UserError, match="--save_dir .*locked"), not_root():
        train.checkpoint_path(str(locked_folder / name))


# ---------------------------------------------------------------- errors

WRONG_VALUES = {
    "--output_cat": ["0", "-1", "2.5", "many", "", "1" * 30],
    "--views": ["0", "1001", "two"],
    "--workers": ["-1", "257", "1.5"],
    "--arch": ["vgg19"],
    "--hidden_units": ["0", "-5", "nan"],
    "--dropout": ["1", "-0.1", "nan", "half"],
    "--learning_rate": ["0", "-0.1", "nan", "inf", "fast"],
    "--epochs": ["0", "-1", "1e3"],
    "--batch_size": ["0", "-1", "x"],
    "--fine_tune": ["-1", "x", "1.5"],
    "--seed": ["-1", "x", "0.5"],
    "--device": ["tpu"],
    "--precision": ["int8"],
    "--means": ["1,2"],
    "--stds": ["1,2,0"],
}


@pytest.mark.parametrize(
    ("flag", "value"), [(flag, value) for flag, values in WRONG_VALUES.items() for value in values]
)
def test_a_wrong_value_is_named(call, flag, value):
    values = {"--data_dir": "flowers", "--output_cat": "3"} | {flag: value}
    done = call("train.py", *(word for pair in values.items() for word in pair))
    assert_error(done, flag, repr(value))


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ([], "--data_dir"),
        (["--data_dir", "flowers"], "--output_cat"),
        (["--data_dir", "flowers", "--output_cat", "3", "--colour", "red"], "--colour"),
        (["--data_dir", "flowers", "--output_cat"], "--output_cat"),
    ],
)
def test_missing_and_unknown_flags_are_named(call, flags, word):
    assert_error(call("train.py", *flags), word)


def test_help_is_no_error(call):
    done = call("train.py", "--help")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    for word in ("--data_dir", "--cache_dir", "24 KB a view", "delete it to clear"):
        assert word in text


def test_weights_that_are_missing_are_named(train_again):
    done, path = train_again("--weights", "no such file.pth")
    assert_error(done, "no such file.pth")
    assert not path.exists()


def test_a_missing_data_folder_is_named_by_the_script(tmp_path):
    flags = ("--output_cat", 3, "--save_dir", tmp_path / "model.pth")
    done = run("train.py", "--data_dir", tmp_path / "nowhere", *flags)
    assert_error(done, tmp_path / "nowhere", "no such folder")


def test_gpu_without_a_gpu_is_an_error(train_again):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    assert_error(train_again("--device", "gpu")[0], "--device", "gpu")
