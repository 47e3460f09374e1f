"""train.py: its command line, from the data folder to the checkpoint, and its errors."""

import csv
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    CATEGORIES,
    NAMES_WARNING,
    all_images,
    assert_error,
    backbone_of,
    draw,
    make_images,
    messages_of,
    run,
    run_and_list_imports,
    same_bits,
    state_of,
    table_rows,
)

import utils
from evaluation.calibration import TEMPERATURES
from model import Head, load_checkpoint
from predict import predict


def head_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("head.layers.")}


def epochs_of(done) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("epoch ")]


# ---------------------------------------------------------------- a training


def test_the_plan_the_epochs_and_the_results_are_printed(trained):
    names, *lines = trained.done.stdout.splitlines()
    text = trained.done.stdout
    assert names.startswith("names: ")
    for line, (split, count) in zip(
        lines, [("train", 16), ("valid", 8), ("test", 8)], strict=False
    ):
        assert re.fullmatch(rf"{split} +{count} images +4 categories", line)
    assert re.search(r"vgg16.*none.*2 view.*on cpu in (bfloat16|float32)", text)
    assert text.index(str(trained.checkpoint)) < text.index("epoch")
    epochs = epochs_of(trained.done)
    assert len(epochs) == 8
    for number, line in enumerate(epochs, 1):
        assert re.match(
            rf"epoch +{number}/8 +train loss +\d+\.\d+ +valid loss +\d+\.\d+ "
            r"+valid accuracy +\d+\.\d%",
            line,
        )
    assert re.search(r"test accuracy \d+\.\d% .*top-5 \d+\.\d%, mean of .* \d+\.\d%$", lines[-5])
    assert re.search(r"error \d+\.\d% at temperature \d\.\d\d \(\d+\.\d% without", lines[-4])
    assert re.fullmatch(r"\d of these images resemble no category \(novelty.*\)", lines[-3])
    assert f"--checkpoint {trained.checkpoint}" in lines[-2]
    assert re.fullmatch(
        rf"report: .*model\.history\.csv, .* in {trained.checkpoint.parent}", lines[-1]
    )


def test_training_does_not_import_what_takes_a_second(trained, tmp_path):
    flags = (*trained.flags, "--weights", "none", "--save_dir", tmp_path / "model.pth")
    names = ("torchvision", "torch._dynamo", "seaborn")
    output, imported = run_and_list_imports("train", names, *flags)
    assert imported == [] and "report: " in output


def test_progress_that_goes_to_a_file_is_plain_lines(trained):
    names, *lines = trained.done.stderr.splitlines()
    assert names == NAMES_WARNING
    assert 5 <= len(lines) <= 11
    assert all(re.fullmatch(r"features: \d+/48, \d+ s left", line) for line in lines)
    assert lines[-1] == "features: 48/48, 0 s left"


def test_the_checkpoint_stores_how_it_was_trained(trained, images):
    content = torch.load(trained.checkpoint, weights_only=True)
    assert content["class_to_idx"] == {"1": 0, "10": 1, "2": 2, "x y": 3}
    assert (content["arch"], content["hidden_units"], content["num_outputs"]) == ("vgg16", 64, 4)
    assert (list(content["means"]), list(content["stds"])) == (utils.MEANS, utils.STDS)
    arguments, metrics = content["arguments"], content["metrics"]
    assert (arguments["epochs"], arguments["seed"]) == (8, 0)
    assert arguments["data_dir"] == str(images)
    assert metrics["epoch"] == content["epoch"]
    accuracies = [
        float(re.search(r"accuracy +([\d.]+)%", line)[1]) for line in epochs_of(trained.done)
    ]
    assert max(accuracies) == round(100 * metrics["valid_accuracy"], 1)
    assert accuracies[content["epoch"] - 1] == max(accuracies)
    assert f"test accuracy {metrics['test_accuracy']:.1%}" in trained.done.stdout
    assert content["temperature"] in TEMPERATURES
    names = ("loss", "accuracy", "top5_accuracy", "class_accuracy", "ece")
    assert {name for name in metrics if "test" in name} == {
        *(f"test_{name}" for name in names),
        "test_ece_without_temperature",
    }
    assert metrics["test_top5_accuracy"] == 1  # of 4 categories
    assert metrics["test_accuracy"] >= 0.75  # even random weights separate colors


def test_the_backbone_is_unchanged_to_the_bit_and_the_head_is_not(trained):
    state = state_of(trained.checkpoint)
    backbone = {f"backbone.{name}": t for name, t in backbone_of().state_dict().items()}
    assert same_bits({name: t for name, t in state.items() if "backbone" in name}, backbone)
    torch.manual_seed(0)
    initial = Head(2048, 64, 4, 4, 0.5).state_dict()
    assert len(head_of(state)) == 4
    for name, tensor in head_of(state).items():
        assert not torch.equal(tensor, initial[name.removeprefix("head.")])


def test_the_same_command_gives_the_same_bits_from_cached_features(trained, train_again):
    done, path = train_again()
    assert done.returncode == 0 and messages_of(done) == [NAMES_WARNING]
    assert same_bits(state_of(path), state_of(trained.checkpoint))


def test_vgg13_and_one_view_of_one_image_per_category(call, tmp_path):
    data = make_images(tmp_path / "data", ("a", "b"), 1, 1, 1)
    flags = ("--arch", "vgg13", "--views", 1, "--epochs", 1, "--workers", 0, "--no_cache")
    flags += ("--weights", "none", "--save_dir", tmp_path / "13.pth", "--no_report")
    done = call("train.py", "--data_dir", data, "--output_cat", 2, *flags)
    assert done.returncode == 0, done.stderr
    assert "features: 6/6" in done.stderr
    assert torch.load(tmp_path / "13.pth", weights_only=True)["arch"] == "vgg13"
    image = data / all_images(data)[0]
    done = call("predict.py", "--input", image, "--checkpoint", tmp_path / "13.pth")
    (tmp_path / "13.pth").unlink()
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize(
    "flags",
    [
        ["--learning_rate", 0.001],
        ["--hidden_units", 3],
        ["--dropout", 0],
        ["--batch_size", 1000],
        ["--epochs", 1],
        ["--seed", 1],
    ],
    ids=lambda flags: f"{flags[0]} {flags[1]}",
)
def test_flags_of_the_head_have_an_effect_and_need_no_new_features(train_tiny, flags):
    assert train_tiny()[0].returncode == 0
    done, path = train_tiny()
    assert done.returncode == 0 and messages_of(done) == [NAMES_WARNING]
    before = head_of(state_of(path))
    done, path = train_tiny(*flags)
    assert done.returncode == 0 and messages_of(done) == [NAMES_WARNING]
    after = head_of(state_of(path))
    assert not same_bits(before, after)
    if "--seed" in flags:
        assert not any(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    "flags",
    [
        ["--views", 2],
        ["--image_size", 96],
        ["--means", "0.4,0.5,0.6"],
        ["--stds", "0.4,0.5,0.6"],
    ],
    ids=lambda flags: flags[0],
)
def test_flags_of_the_features_have_an_effect(train_tiny, flags):
    done, path = train_tiny()
    assert done.returncode == 0, done.stderr
    before = head_of(state_of(path))
    done, path = train_tiny(*flags, "--no_cache")
    assert done.returncode == 0, done.stderr
    count = 48 if "--views" in flags else 32
    assert f"features: {count}/{count}" in done.stderr
    assert not same_bits(head_of(state_of(path)), before)


@pytest.mark.parametrize("size", [96, 256])
def test_the_checkpoint_carries_the_image_size_to_the_prediction(train_tiny, call, images, size):
    done, path = train_tiny("--image_size", size)
    assert done.returncode == 0, done.stderr
    classifier = load_checkpoint(path)
    assert classifier.image_size == size
    files = sorted((images / "test").rglob("*.jpg"))
    views = np.stack([utils.load_plain_view(file, size) for file in files])
    probs, _ = classifier.predict_views(views)
    metrics = torch.load(path, weights_only=True)["metrics"]
    labels = [classifier.class_to_idx[file.parent.name] for file in files]
    accuracy = (probs.argmax(1) == np.array(labels)).mean()
    assert accuracy == pytest.approx(metrics["test_accuracy"])
    flags = ("--checkpoint", path, "--format", "csv", "--precision", "float32", "--top_k", 1)
    rows = list(csv.DictReader(call("predict.py", "--input", *files, *flags).stdout.splitlines()))
    for row, row_probs in zip(rows, probs, strict=True):
        assert float(row["probability"]) == pytest.approx(row_probs.max().item(), abs=1e-4)
    for [best], row_probs in zip(predict(classifier, files), probs, strict=True):
        assert best.probability == pytest.approx(row_probs.max().item(), abs=1e-4)
    done = call("predict.py", "--input", files[0], "--checkpoint", path, "--precision", "float32")
    assert table_rows(done.stdout)[0][1] == pytest.approx(100 * probs[0].max().item(), abs=0.06)


def test_a_check_reports_images_below_the_image_size(call, images):
    flags = ("--data_dir", images, "--check", "--image_size", 96, "--arch", "vgg13")
    done = call("train.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "below 96 pixels" in done.stdout and "below 224 pixels" not in done.stdout


def test_the_final_head_learns_from_valid_as_well_and_is_calibrated_by_the_first(train_tiny):
    done, path = train_tiny()
    first = torch.load(path, weights_only=True)
    done, path = train_tiny("--final")
    assert done.returncode == 0, done.stderr
    final = torch.load(path, weights_only=True)
    lines = epochs_of(done)
    assert [line.split()[1] for line in lines] == [f"{number}/8" for number in range(1, 9)]
    assert ["valid" in line for line in lines] == [True] * 4 + [False] * 4
    assert final["temperature"] == first["temperature"]
    assert final["epoch"] == first["epoch"] == 4
    for name in ("train_loss", "valid_loss", "valid_accuracy"):
        assert final["metrics"][name] == first["metrics"][name]
    assert not same_bits(head_of(final["state_dict"]), head_of(first["state_dict"]))
    counts = [content["state_dict"]["head.mean"] for content in (first, final)]
    assert not torch.equal(*counts)  # of the features of train, and of train and valid
    assert final["arguments"]["final"]


def test_the_final_head_is_the_head_of_a_folder_whose_train_has_valid_too(
    train_tiny, call, own_images, tmp_path
):
    """Both see the same images in the same order; the categories have equally many."""
    joined = shutil.copytree(own_images, tmp_path / "joined")
    for path in (joined / "valid").rglob("*.jpg"):
        shutil.copy(path, joined / "train" / path.parent.name / path.name)
    means = []
    for root, flags in ((own_images, ["--final"]), (joined, [])):
        done, path = train_tiny("--data_dir", root, "--output_cat", 2, *flags)
        assert done.returncode == 0, done.stderr
        means.append(state_of(path))
    assert torch.allclose(means[0]["head.mean"], means[1]["head.mean"], atol=1e-5)
    assert torch.allclose(means[0]["head.std"], means[1]["head.std"], atol=1e-5)


def test_without_a_cache_the_same_seed_gives_the_same_bits(train_tiny, tmp_path):
    states = []
    for workers in (0, 2):
        cache = ("--no_cache", "--cache_dir", tmp_path / "cache")
        done, path = train_tiny(*cache, "--workers", workers)
        assert done.returncode == 0, done.stderr
        assert "features: 32/32" in done.stderr
        states.append(state_of(path))
    assert same_bits(*states)
    assert not (tmp_path / "cache").exists()


# ---------------------------------------------------------------- broken images


@pytest.fixture
def train_own(tiny, own_images, call, tmp_path):
    """Train a tiny network for one epoch on `own_images`, without a cache, in this process."""
    path = tmp_path / "c.pth"
    fixed = ("--data_dir", own_images, "--output_cat", 2, "--arch", tiny, "--weights", "none")
    fixed += ("--workers", 0, "--no_cache", "--epochs", 1, "--save_dir", path, "--no_report")
    return lambda *flags: (call("train.py", *fixed, *flags), path)


def test_a_broken_image_is_left_out_and_named(own_images, train_own):
    (own_images / "train" / "a" / "broken one.jpg").write_text("no image")
    (own_images / "test" / "b" / "broken two.jpg").touch()
    done, path = train_own()
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "broken two.jpg: empty" in warnings[0] and "broken one.jpg" in warnings[1]
    assert done.stderr.index("broken two.jpg") < done.stderr.index("features: ")
    assert "(2 images)" in done.stdout  # the test split has 3 files
    table = path.with_suffix(".unreadable.csv")
    assert f"2 images could not be read and were left out; {table} lists them" in done.stdout
    with open(table, newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason"],
            ["test/b/broken two.jpg", "empty"],
            ["train/a/broken one.jpg", "not an image, but a text file"],
        ]
    (own_images / "train" / "a" / "broken one.jpg").unlink()
    (own_images / "test" / "b" / "broken two.jpg").unlink()
    done, _ = train_own()
    assert done.returncode == 0 and "could not be read" not in done.stdout
    assert not table.exists()


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_strict_stops_at_the_first_broken_image(own_images, train_own, tmp_path, content):
    for number in range(8):  # so that there are several batches
        draw(0, number).save(own_images / "train" / "b" / f"{number}.jpg")
    (own_images / "train" / "a" / "a broken one.jpg").write_bytes(content)
    (own_images / "valid" / "b" / "z broken.jpg").write_text("no image either")
    done, path = train_own("--strict")
    assert_error(done, "a broken one.jpg", "--strict")
    assert "z broken" not in done.stderr and "features: 1" not in done.stderr
    assert content or "features" not in done.stderr  # an empty file is noticed before
    assert not list(tmp_path.glob("*.csv")) and not path.exists()


def test_unusual_names_go_through_a_complete_training(own_images, train_own, call, tmp_path):
    """Names with line ends, and of bytes that are no text, of categories and of broken files."""
    unusual = "line\nbreak " + os.fsdecode(b"\xff")
    for split in utils.SPLITS:
        (own_images / split / "a").rename(own_images / split / unusual)
    (own_images / "train" / "b" / f"{unusual}.jpg").write_text("no image")
    shutil.copy(own_images / "train" / "b" / "train_0.jpg", own_images / "test" / "b" / unusual)
    done, path = train_own()
    assert done.returncode == 0, done.stderr
    leak, *_, broken = done.stderr.splitlines()
    assert leak.startswith("warning: ") and "train/b/train_0.jpg" in leak
    assert broken.startswith("warning: ") and "line break \\udcff.jpg" in broken
    with open(path.with_suffix(".unreadable.csv"), newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1][0] == "train/b/line\nbreak \\udcff.jpg"
    image = own_images / "test" / unusual / "test_0.jpg"
    done = call("predict.py", "--input", image, "--checkpoint", path, "--top_k", 2)
    assert done.returncode == 0, done.stderr
    assert {category for *_, category in table_rows(done.stdout)} == {"b", "line break \\udcff"}
    done, _ = train_own("--check", tmp_path / "report.csv")
    assert done.returncode == 0 and "break \\udcff.jpg (not an image" in done.stdout


def test_a_report_with_unusual_names_is_written(own_images, tiny, call, tmp_path):
    unusual = "line\nbreak " + os.fsdecode(b"\xff")
    for split in utils.SPLITS:
        (own_images / split / "a").rename(own_images / split / unusual)
    flags = ("--arch", tiny, "--weights", "none", "--workers", 0, "--epochs", 1)
    flags += ("--save_dir", tmp_path / "c.pth", "--no_cache")
    done = call("train.py", "--data_dir", own_images, "--output_cat", 2, *flags)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "c.categories.csv", newline="", encoding="utf-8") as file:
        assert [row["category"] for row in csv.DictReader(file)] == ["b", "line\nbreak \\udcff"]


def test_a_category_without_a_readable_image_is_named(own_images, train_own):
    for path in (own_images / "train" / "b").iterdir():
        path.write_text("no image")
    done, path = train_own()
    assert_error(done, "train/b", "none of its images")
    assert not path.exists()


# ---------------------------------------------------------------- names


def test_the_plan_says_which_names_were_found_where(trained):
    expected = "names: cat_to_name.json, 1 = pink primrose, 10 = globe thistle, 2 = hard-leaved"
    assert expected in trained.done.stdout
    names = torch.load(trained.checkpoint, weights_only=True)["names"]
    assert names["1"] == "pink primrose" and names["x y"] == "x y"
    assert list(names) == list(CATEGORIES)


NAMES = {
    "some": ({"1": "one", "2": "two"}, ["has no name for 2 categories: 10, x y"]),
    "none": (
        {"a": "one"},
        ["has no name for 4 categories: 1, 10, 2, x y", "1 names fit no category: a"],
    ),
    "equal": (
        {"1": "rose", "10": "rose", "2": "lily", "x y": "tulip"},
        ["1, 10 have the same name, 'rose'"],
    ),
    "unused": (dict.fromkeys("abc", "z") | {c: c for c in CATEGORIES}, ["3 names fit no category"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_may_be_wrong_are_warned_of(train_tiny, tmp_path, case):
    names, expected = NAMES[case]
    path = tmp_path / "own names.json"
    path.write_text(json.dumps(names))
    done, checkpoint = train_tiny("--category_names", path)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in messages_of(done) if line.startswith("warning: ")]
    assert len(warnings) == len(expected)
    for warning, words in zip(warnings, expected, strict=True):
        assert f"{path}: " in warning and words in warning
    stored = torch.load(checkpoint, weights_only=True)["names"]
    assert stored == {category: names.get(category, category) for category in CATEGORIES}


def test_a_file_of_names_is_read_before_the_work(train_tiny, tmp_path):
    (tmp_path / "names.json").write_text('{"1": 5}')
    done, path = train_tiny("--category_names", tmp_path / "names.json")
    assert_error(done, "names.json", "'1'", "not a string")
    assert "features" not in done.stderr and not path.exists()


# ---------------------------------------------------------------- content, not names and times


@pytest.fixture
def bitmaps(tmp_path) -> Path:
    """Images of one size in bytes, with the same time: stripes in category a, squares in b."""
    root = tmp_path / "bitmaps"
    for split, count in (("train", 6), ("valid", 3), ("test", 3)):
        for kind, category in ((1, "a"), (2, "b")):
            (root / split / category).mkdir(parents=True)
            for number in range(count):
                path = root / split / category / f"{number}.bmp"
                draw(kind, 100 * utils.SPLITS.index(split) + number).save(path)
                os.utime(path, ns=(10**18, 10**18))
    return root


def test_swapped_images_are_computed_and_learned_anew(tiny, call, bitmaps, tmp_path):
    """Train, swap all images of two categories with `mv`, train again, and evaluate."""
    time.sleep(2.1)  # so that digests may be stored
    path = tmp_path / "c.pth"
    flags = ("--output_cat", 2, "--arch", tiny, "--weights", "none", "--workers", 0)
    flags += ("--views", 4, "--epochs", 8, "--batch_size", 8, "--learning_rate", 0.01)
    flags += ("--save_dir", path, "--no_report", "--cache_dir", tmp_path / "cache")
    accuracies, states = [], []
    for _ in range(2):
        done = call("train.py", "--data_dir", bitmaps, *flags)
        assert done.returncode == 0, done.stderr
        states.append(state_of(path))
        done = call("predict.py", "--evaluate", bitmaps, "--checkpoint", path)
        accuracies.append(re.search(r"accuracy +([\d.]+)%", done.stdout)[1])
        for split in utils.SPLITS:
            for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
                (bitmaps / split / old).rename(bitmaps / split / "moving")
                (bitmaps / split / "moving").rename(bitmaps / split / new)
    assert accuracies == ["100.0", "100.0"]
    assert not same_bits(*states)


# ---------------------------------------------------------------- --output_cat


def test_too_few_outputs_are_an_error_with_both_numbers(train_tiny):
    done, path = train_tiny("--output_cat", 3)
    assert_error(done, "--output_cat 3", "4 categories")
    assert not path.exists()


def test_spare_outputs_are_warned_of_and_never_predicted(train_tiny, call, images):
    assert train_tiny()[0].returncode == 0  # its features are cached
    done, path = train_tiny("--output_cat", 9)
    assert done.returncode == 0
    warning, names = messages_of(done)
    assert names == NAMES_WARNING
    assert warning.startswith("warning: ") and "9" in warning and "4 categories" in warning
    assert torch.load(path, weights_only=True)["num_outputs"] == 9
    image = images / all_images(images)[0]
    done = call("predict.py", "--input", image, "--checkpoint", path, "--top_k", 100)
    assert sorted(category for *_, category in table_rows(done.stdout)) == sorted(CATEGORIES)


@pytest.mark.parametrize("flags", [[], ["--output_cat", 1]])
def test_a_missing_or_too_small_number_of_outputs_is_an_error_with_advice(call, images, flags):
    done = call("train.py", "--data_dir", images, *flags)
    assert_error(done, "--output_cat", "type --output_cat 4")


def test_too_many_hidden_units_for_the_memory_are_an_error(train_tiny):
    units = 10**16  # no address space has as many bytes
    done, path = train_tiny("--hidden_units", units)
    assert_error(done, "not enough memory", f"--hidden_units {units}", "--output_cat 4")
    assert not path.exists()


# ---------------------------------------------------------------- data and output


def test_a_folder_without_splits_is_trained_on(tiny, call, tmp_path):
    for kind, category in enumerate(("a", "b")):
        folder = tmp_path / "mine" / category
        folder.mkdir(parents=True)
        for number in range(12):
            draw(kind, number, 40, 30).save(folder / f"{number}.png")
    flags = ("--arch", tiny, "--weights", "none", "--workers", 0, "--no_cache", "--epochs", 1)
    flags += ("--save_dir", tmp_path / "c.pth", "--no_report")
    done = call("train.py", "--data_dir", tmp_path / "mine", "--output_cat", 2, *flags)
    assert done.returncode == 0, done.stderr
    assert "features: 24/24" in done.stderr
    assert "no valid or test folder: split by content" in done.stderr
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    assert content["class_to_idx"] == {"a": 0, "b": 1}


def test_a_folder_as_save_dir_holds_the_checkpoint(train_tiny, tmp_path):
    done, _ = train_tiny("--save_dir", tmp_path / "new folder")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "new folder" / "checkpoint_script.pth"
    assert str(path) in done.stdout
    assert torch.load(path, weights_only=True)["arch"] == "tiny"


@pytest.mark.parametrize("kind", ["parent is a file", "is a folder", "x" * 5000])
def test_a_save_dir_that_cannot_be_written_is_noticed_before_the_work(call, images, tmp_path, kind):
    (tmp_path / "parent is a file").touch()
    (tmp_path / "is a folder" / "checkpoint_script.pth").mkdir(parents=True)
    target = tmp_path / kind if kind == "is a folder" else tmp_path / kind / "model.pth"
    cache = tmp_path / "cache"
    flags = ("--output_cat", 4, "--weights", "none", "--cache_dir", cache, "--save_dir", target)
    done = call("train.py", "--data_dir", images, *flags)
    assert_error(done, "--save_dir", kind[:100], "cannot write there")
    assert not cache.exists()


# ---------------------------------------------------------------- errors

INVALID_VALUES = {
    "--output_cat": ["0", "-1", "2.5", "many", "", "1" * 30],
    "--image_size": ["0", "32", "225", "1056", "448x448", "-64"],
    "--views": ["0", "1001", "two"],
    "--workers": ["-1", "257", "1.5"],
    "--arch": ["vgg19"],
    "--hidden_units": ["0", "-5", "nan"],
    "--dropout": ["1", "-0.1", "nan", "half"],
    "--learning_rate": ["0", "-0.1", "nan", "inf", "fast"],
    "--epochs": ["0", "-1", "1e3"],
    "--batch_size": ["0", "-1", "x"],
    "--seed": ["-1", "x", "0.5"],
    "--device": ["tpu"],
    "--precision": ["int4"],
    "--means": ["1,2"],
    "--stds": ["1,2,0"],
}


@pytest.mark.parametrize(
    ("flag", "value"),
    [(flag, value) for flag, values in INVALID_VALUES.items() for value in values],
)
def test_an_invalid_value_is_named(call, images, flag, value):
    values = {"--data_dir": str(images), "--output_cat": "3"} | {flag: value}
    done = call("train.py", *(word for pair in values.items() for word in pair))
    assert_error(done, flag, value)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ([], "--data_dir"),
        (["--data_dir", "flowers", "--output_cat", "3", "--color", "red"], "--color"),
        (["--data_dir", "flowers", "--output_cat"], "--output_cat"),
        (["--data_dir", "flowers", "--check", "--check_labels"], "leave out --check"),
    ],
)
def test_missing_and_unknown_flags_are_named(call, flags, word):
    assert_error(call("train.py", *flags), word)


def test_help_is_not_an_error(call):
    done = call("train.py", "--help")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    for word in ("--data_dir", "--cache_dir", "24 KB a view", "delete it to clear"):
        assert word in text


def test_missing_weights_are_named(train_tiny):
    done, path = train_tiny("--weights", "no such file.pth")
    assert_error(done, "no such file.pth")
    assert not path.exists()


def test_a_missing_data_folder_is_named_by_the_script(tmp_path):
    flags = ("--output_cat", 3, "--save_dir", tmp_path / "model.pth")
    done = run("train.py", "--data_dir", tmp_path / "nowhere", *flags)
    assert_error(done, tmp_path / "nowhere", "no such folder")


def test_gpu_without_a_gpu_is_an_error(train_tiny):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    assert_error(train_tiny("--device", "gpu")[0], "--device", "gpu")


# ---------------------------------------------------------------- files that are not replaced


def test_inputs_are_not_replaced(own_images, tiny, call, tmp_path):
    weights, names = tmp_path / "weights.pth", tmp_path / "names.json"
    torch.save(backbone_of("tiny").state_dict(), weights)
    names.write_text('{"a": "rose"}')
    image = own_images / "train" / "a" / "train_0.jpg"
    (tmp_path / "link.pth").symlink_to(weights)
    flags = ("--data_dir", own_images, "--output_cat", 2, "--arch", tiny, "--epochs", 1)
    flags += ("--weights", weights, "--category_names", names, "--workers", 0, "--no_cache")
    before = {path: path.read_bytes() for path in (weights, names, image)}
    for path in (*before, tmp_path / "link.pth"):
        assert_error(call("train.py", *flags, "--save_dir", path), "--save_dir", path)
    assert_error(call("train.py", *flags, "--check", image), "--check", image)
    done = call("train.py", *flags, "--save_dir", own_images / "train" / "a" / "model.pth")
    assert_error(done, "contains images")
    assert {path: path.read_bytes() for path in before} == before
    assert all_images(own_images) == sorted(all_images(own_images))
    assert sorted(path.name for path in image.parent.iterdir()) == ["train_0.jpg", "train_1.jpg"]


def test_a_table_of_findings_replaces_one_only(own_images, tiny, call, tmp_path):
    table = tmp_path / "table.csv"
    flags = ("--data_dir", own_images, "--arch", tiny, "--check", table)
    for _ in range(2):
        assert call("train.py", *flags).returncode == 0
    table.write_text("name,age\n")
    assert_error(call("train.py", *flags), "--check", "table.csv: exists and is no table of")
    assert table.read_text() == "name,age\n"
