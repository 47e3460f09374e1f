"""train.py: its command line, from the data folder to the checkpoint, and its errors."""

import csv
import json
import os
import re
import shutil

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
    messages_of,
    same_bits,
    state_of,
    table_rows,
)

import utils
from evaluation.calibration import TEMPERATURES
from model import load_checkpoint
from predict import predict


def head_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("head.layers.")}


def epochs_of(done) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("epoch ")]


# ---------------------------------------------------------------- a training


def test_the_plan_the_epochs_and_the_results_are_printed(trained):
    text = trained.done.stdout
    assert text.startswith("names: cat_to_name.json, 1 = pink primrose, 10 = globe thistle, 2 = ")
    for split, count in (("train", 16), ("valid", 8), ("test", 8)):
        assert re.search(rf"^{split} +{count} images +4 categories$", text, re.MULTILINE)
    assert re.search(r"^network   vgg16, weights none, on cpu in (bfloat16|float32)$", text, re.M)
    assert "\nviews     2 of each training image, 224 pixels\n" in text
    assert text.index(str(trained.checkpoint)) < text.index("epoch")
    *_, accuracy, calibration, unusual, saved, use, report = text.splitlines()
    assert re.search(r"test accuracy \d+\.\d% .*top-5 \d+\.\d%, mean of .* \d+\.\d%$", accuracy)
    assert re.search(r"error \d+\.\d% at temperature \d\.\d\d \(\d+\.\d% without", calibration)
    assert re.match(r"\d of these images resemble no category", unusual)
    assert saved == f"saved {trained.checkpoint}; to use it:"
    assert use == f" python predict.py --input IMAGE --checkpoint {trained.checkpoint}"
    page = trained.checkpoint.with_suffix(".report.html")
    assert report == f"report: {page}, and 6 other files beside it"


def test_training_does_not_import_what_takes_a_second(trained):
    assert "torch" in trained.imported
    assert not {"torchvision", "torch._dynamo", "seaborn"} & set(trained.imported)


def test_the_checkpoint_stores_how_it_was_trained(trained, images):
    content = torch.load(trained.checkpoint, weights_only=True)
    assert content["class_to_idx"] == {"1": 0, "10": 1, "2": 2, "x y": 3}
    assert (content["arch"], content["hidden_units"], content["num_outputs"]) == ("vgg16", 64, 4)
    assert (list(content["means"]), list(content["stds"])) == (utils.MEANS, utils.STDS)
    arguments, metrics = content["arguments"], content["metrics"]
    assert (arguments["epochs"], arguments["seed"]) == (8, 0)
    assert arguments["data_dir"] == str(images)
    assert metrics["epoch"] == content["epoch"] == 8
    assert f"test accuracy {metrics['test_accuracy']:.1%}" in trained.done.stdout
    assert content["temperature"] in TEMPERATURES
    names = ("loss", "accuracy", "top5_accuracy", "class_accuracy", "ece")
    assert {name for name in metrics if "test" in name} == {
        *(f"test_{name}" for name in names),
        "test_ece_without_temperature",
    }
    assert metrics["test_top5_accuracy"] == 1  # of 4 categories
    assert metrics["test_accuracy"] >= 0.75  # even random weights separate colors


def test_the_same_command_gives_the_same_bits_from_cached_features(trained, train_again):
    done, path = train_again()
    assert done.returncode == 0 and messages_of(done) == [NAMES_WARNING]
    assert same_bits(state_of(path), state_of(trained.checkpoint))


# ---------------------------------------------------------------- flags

HEAD_FLAGS = {"--learning_rate": 0.001, "--dropout": 0, "--batch_size": 1000, "--seed": 1}
FEATURE_FLAGS = {"--views": 3, "--means": "0.4,0.5,0.6", "--stds": "0.4,0.5,0.6"}


@pytest.mark.parametrize(("flag", "value"), (HEAD_FLAGS | FEATURE_FLAGS).items())
def test_flags_have_an_effect_and_those_of_the_head_need_no_new_features(
    train_tiny, tmp_path, flag, value
):
    cache = ("--cache_dir", tmp_path / "cache")
    done, path = train_tiny(*cache)
    before = head_of(state_of(path))
    done, path = train_tiny(*cache, flag, value)
    assert done.returncode == 0, done.stderr
    assert ("features: " in done.stderr) == (flag in FEATURE_FLAGS)
    after = head_of(state_of(path))
    assert not same_bits(before, after)
    if flag == "--seed":
        assert not any(torch.equal(tensor, after[name]) for name, tensor in before.items())


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
    means = [content["state_dict"]["head.mean"] for content in (first, final)]
    assert not torch.equal(*means)  # of the features of train, and of train and valid


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
    assert f"2 images are unreadable and left out: see {table}" in done.stdout
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


def test_strict_stops_at_the_first_broken_image(own_images, train_own, tmp_path):
    for number in range(8):  # so that there are several batches
        draw(0, number).save(own_images / "train" / "b" / f"{number}.jpg")
    (own_images / "train" / "a" / "a broken one.jpg").write_text("no image")
    (own_images / "valid" / "b" / "z broken.jpg").write_text("no image either")
    done, path = train_own("--strict")
    assert_error(done, "a broken one.jpg", "--strict")
    assert "z broken" not in done.stderr and "features: 1" not in done.stderr
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
    assert done.returncode == 0
    assert re.search(r"^unreadable, not an image.* \(1\): .*break \\udcff.jpg$", done.stdout, re.M)


# ---------------------------------------------------------------- names


def test_names_that_may_be_wrong_are_warned_of(train_tiny, tmp_path):
    names = {"1": "rose", "10": "rose", "a": "lily", "b": "tulip"}
    path = tmp_path / "own names.json"
    path.write_text(json.dumps(names))
    done, checkpoint = train_tiny("--category_names", path)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in messages_of(done) if line.startswith(f"warning: {path}: ")]
    for words in (
        "has no name for 2 categories: 2, x y",
        "1, 10 have the same name, 'rose'",
        "2 names fit no category",
    ):
        assert len([line for line in warnings if words in line]) == 1
    stored = torch.load(checkpoint, weights_only=True)["names"]
    assert stored == {"1": "rose", "10": "rose", "2": "2", "x y": "x y"}


def test_a_file_of_names_is_read_before_the_work(train_tiny, tmp_path):
    (tmp_path / "names.json").write_text('{"1": 5}')
    done, path = train_tiny("--category_names", tmp_path / "names.json")
    assert_error(done, "names.json", "'1'", "not a string")
    assert "features" not in done.stderr and not path.exists()


# ---------------------------------------------------------------- --output_cat


def test_spare_outputs_are_warned_of_and_never_predicted(train_tiny, call, images):
    done, path = train_tiny("--output_cat", 9)
    assert done.returncode == 0
    assert "warning: --output_cat 9, but there are 4 categories" in done.stderr
    assert torch.load(path, weights_only=True)["num_outputs"] == 9
    image = images / all_images(images)[0]
    done = call("predict.py", "--input", image, "--checkpoint", path, "--top_k", 100)
    assert sorted(category for *_, category in table_rows(done.stdout)) == sorted(CATEGORIES)


@pytest.mark.parametrize("flags", [[], ["--output_cat", 3]])
def test_a_missing_or_too_small_number_of_outputs_is_an_error_with_advice(call, images, flags):
    done = call("train.py", "--data_dir", images, *flags)
    assert_error(done, "--output_cat", "4 categories (1, 10, 2, x y); type --output_cat 4")


def test_a_number_of_outputs_that_means_the_folders_of_the_splits_is_an_error(train_own):
    done, _ = train_own("--output_cat", 3)
    assert_error(done, "has 2 categories in train, valid, test", "rename them")
    done, _ = train_own("--output_cat", 4)
    assert done.returncode == 0


def test_too_many_hidden_units_for_the_memory_are_an_error(train_tiny):
    units = 10**16  # no address space has as many bytes
    done, path = train_tiny("--hidden_units", units)
    assert_error(done, "not enough memory", f"--hidden_units {units}", "--output_cat 4")
    assert not path.exists()


# ---------------------------------------------------------------- data and output


def test_a_folder_as_save_dir_holds_the_checkpoint(train_tiny, tmp_path):
    cache = ("--no_cache", "--cache_dir", tmp_path / "cache")
    done, _ = train_tiny("--save_dir", tmp_path / "new folder", *cache)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache").exists()
    path = tmp_path / "new folder" / "checkpoint_script.pth"
    assert str(path) in done.stdout
    assert torch.load(path, weights_only=True)["arch"] == "tiny"


# ---------------------------------------------------------------- errors

INVALID_VALUES = {
    "--output_cat": ["0", "many"],
    "--image_size": ["32", "225", "1056"],
    "--views": ["0", "1001"],
    "--workers": ["-1", "257"],
    "--arch": ["vgg19"],
    "--hidden_units": ["0"],
    "--dropout": ["1", "-0.1"],
    "--learning_rate": ["0", "nan"],
    "--epochs": ["0"],
    "--batch_size": ["0"],
    "--seed": ["-1"],
    "--device": ["tpu"],
    "--precision": ["int4"],
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


def test_missing_weights_are_named(train_tiny):
    done, path = train_tiny("--weights", "no such file.pth")
    assert_error(done, "no such file.pth")
    assert not path.exists()


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
        done = call("train.py", *flags, "--save_dir", path)
        assert_error(done, "--save_dir", path)
        assert "features: " not in done.stderr  # before the work
    done = call("train.py", *flags, "--check", image)
    assert_error(done, "--check", image, "exists and is no table of findings")
    done = call("train.py", *flags, "--save_dir", own_images / "train" / "a" / "model.pth")
    assert_error(done, "contains images")
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in image.parent.iterdir()) == ["train_0.jpg", "train_1.jpg"]


def test_the_plan_says_which_checkpoint_is_replaced(train_tiny, images):
    done, path = train_tiny()
    assert "replaces" not in done.stdout
    accuracy = torch.load(path, weights_only=True)["metrics"]["test_accuracy"]
    done, _ = train_tiny()
    expected = f", trained on {images}, test accuracy {accuracy:.1%}\n"
    assert f"writes    {path}\nreplaces  that of 2" in done.stdout and expected in done.stdout


def test_a_list_beside_the_checkpoint_is_not_deleted_by_the_training_that_reads_it(
    train_tiny, tmp_path
):
    table = tmp_path / "tiny.unreadable.csv"
    table.write_text("path,reason\ntrain/1/train_0.jpg,blurred\n")
    done, path = train_tiny("--exclude", table)
    assert_error(done, "--save_dir", "tiny.unreadable.csv: this command reads that file")
    assert "blurred" in table.read_text() and not path.exists()


def test_trainings_with_other_numbers_in_their_names_have_a_report_each(train_tiny, tmp_path):
    for rate in ("0.01", "0.03"):
        flags = ("--learning_rate", rate, "--save_dir", tmp_path / f"lr{rate}")
        assert train_tiny(*flags, report=True)[0].returncode == 0
    assert len(list(tmp_path.glob("lr0.0?.history.csv"))) == 2
