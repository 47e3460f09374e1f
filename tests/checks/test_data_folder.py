"""checks.data_folder: leaks, unreadable files, and the report of --check."""

import csv
import os
import re
import shutil

import numpy as np
import pytest
from conftest import TIMEOUT, all_images, assert_error, draw, start_training
from PIL import Image

import utils
from checks import data_folder
from checks.data_folder import check_data_folder, inspect_images, warn_of_copies
from system.messages import UserError
from training.features import Settings

# ---------------------------------------------------------------- copies


def test_copies_in_two_splits_and_in_two_categories_are_warned_of(own_images, capsys):
    shutil.copy(own_images / "train" / "a" / "train_0.jpg", own_images / "test" / "b" / "x.jpg")
    shutil.copy(own_images / "valid" / "a" / "valid_0.jpg", own_images / "test" / "a" / "y.jpg")
    shutil.copy(own_images / "train" / "b" / "train_1.jpg", own_images / "train" / "a" / "z.jpg")
    shutil.copy(own_images / "train" / "b" / "train_0.jpg", own_images / "train" / "b" / "ok.jpg")
    warn_of_copies(utils.read_data_folder(own_images))
    leaks, conflicts = capsys.readouterr().err.splitlines()
    assert "2 images are in two splits: the reported accuracy will be too high: " in leaks
    assert "test/b/x.jpg (train/a/train_0.jpg)" in leaks
    assert "test/a/y.jpg (valid/a/valid_0.jpg)" in leaks
    assert "2 images are in two categories; one of the labels is incorrect: " in conflicts
    assert "test/b/x.jpg (train/a/train_0.jpg)" in conflicts
    assert "train/b/train_1.jpg (train/a/z.jpg)" in conflicts


# ---------------------------------------------------------------- the report


@pytest.mark.parametrize(
    ("seconds_per_view", "views", "printed"),
    [
        (0.00123, 1, "8 views in about 0.0098 seconds"),
        (1e6, 1, "8 views in about 8000000 seconds"),  # not 8e+06
        (0.2, 3, "16 views in about 3.2 seconds"),  # 3 x 4 of train, 2 of valid, 2 of test
    ],
)
def test_the_estimate_has_two_significant_digits(
    own_images, tmp_path, capsys, monkeypatch, seconds_per_view, views, printed
):
    (own_images / "train" / "a" / "broken.jpg").write_text("not an image")
    (own_images / "test" / "a" / "broken.jpg").write_text("not an image")
    measured = []

    def measure(arch, root, paths, settings):
        measured.extend(paths)
        return seconds_per_view

    monkeypatch.setattr(data_folder, "seconds_per_view", measure)
    data = utils.read_images(utils.list_images(own_images))
    table = str(tmp_path / "report.csv")
    check_data_folder(data, Settings(), arch="vgg16", views=views, table=table)
    assert f"features: {printed}, if none are stored\n" in capsys.readouterr().out
    assert measured == [f"train/{c}/train_{n}.jpg" for c in ("a", "b") for n in (0, 1)]
    with open(tmp_path / "report.csv", newline="") as file:
        *_, last = csv.reader(file)
    assert last == ["seconds", "", "", "", printed.split()[-2], *[""] * 9]


def test_without_a_readable_image_of_train_nothing_is_measured(own_images, capsys):
    for path in all_images(own_images):
        if path.startswith("train"):
            (own_images / path).write_text("not an image")
    data = utils.read_images(utils.list_images(own_images))
    with pytest.raises(UserError, match="training would refuse it: no image for train in"):
        check_data_folder(data, Settings(), arch="no such architecture", views=2)
    assert "features: 4 views in about 0 seconds" in capsys.readouterr().out


def test_check_reports_and_trains_nothing(tiny, call, own_images, tmp_path):
    (own_images / "train" / "a" / "broken.jpg").write_text("not an image")
    (own_images / "valid" / "rose").mkdir()
    draw(2, 9).save(own_images / "valid" / "rose" / "fine.png")
    table = tmp_path / "report.csv"
    done = call("train.py", "--data_dir", own_images, "--arch", tiny, "--check", table)
    assert_error(done, "training would refuse it: train has no category 'rose', but valid has")
    assert re.search(r"train +5 images +2 categories, from 2 \(b\) to 3 images \(a\)", done.stdout)
    assert "unknown category (1): valid/rose (not in train)" in done.stdout
    assert re.search(r"unreadable, not an image.* \(1\): train/a/broken.jpg", done.stdout)
    pattern = r"features: 13 views in about (\S+) seconds, if none are stored"
    seconds = re.search(pattern, done.stdout)[1]
    assert float(seconds) > 0
    assert f"saved {table}\n" in done.stdout and "to train: " not in done.stdout
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["path"] for r in rows if r["finding"] == "unreadable"] == ["train/a/broken.jpg"]
    counts = {(r["split"], r["category"]): r["detail"] for r in rows if r["finding"] == "images"}
    assert counts["train", "a"] == "3" and counts["valid", "rose"] == "1"
    assert (rows[-1]["finding"], rows[-1]["detail"]) == ("seconds", seconds)
    assert sorted(os.listdir(tmp_path)) == ["own images", "report.csv"]


@pytest.mark.parametrize("flag", ["--check", "--check_labels"])
@pytest.mark.parametrize("splits", [("",), utils.SPLITS])
def test_folders_without_images_are_reported(tiny, call, tmp_path, flag, splits):
    for split in splits:
        for category in ("a", "b"):
            (tmp_path / "empty" / split / category).mkdir(parents=True)
    flags = ("--arch", tiny, "--weights", "none", flag, tmp_path / "report.csv")
    done = call("train.py", "--data_dir", tmp_path / "empty", *flags)
    assert_error(done, "training would refuse it: no images for train")
    assert "train        0 images      0 categories, 0 of each\n" in done.stdout
    assert (tmp_path / "report.csv").read_text().startswith("finding,")


def test_a_folder_without_problems_is_said_to_have_none(tiny, call, own_images):
    flags = ("--arch", tiny, "--image_size", 64, "--check")
    done = call("train.py", "--data_dir", own_images, *flags)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.endswith("\nno problems found\n")


def test_a_check_that_is_stopped_cannot_be_resumed(images):
    flags = ("--data_dir", images, "--arch", "tiny", "--check")
    with start_training(flags, env={"PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout.readline().startswith("train ")
        process.terminate()
        assert process.communicate(timeout=TIMEOUT)[1] == "train.py: terminated\n"


def test_an_image_with_damaged_metadata_is_inspected(own_images):
    path = own_images / "train" / "a" / "text.png"
    draw(0, 7, 300, 250).save(path)
    png = path.read_bytes()
    path.write_bytes(png[:33] + b"\0\0\0\4tEXta\0bcnot its checksum"[:16] + png[33:])
    _, findings = inspect_images(utils.read_images(utils.list_images(own_images)), 96)
    assert not [finding for finding in findings if finding.path == "train/a/text.png"]


def test_check_without_a_file_prints_only(tiny, call, own_images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--arch", tiny, "--image_size", 96, "--check")
    done = call("train.py", "--data_dir", own_images, *flags)
    assert done.returncode == 0 and done.stderr == ""
    assert "below 96 pixels (8): train/a/train_0.jpg (100 x 90), " in done.stdout
    assert "\nto train: --output_cat 2\n" in done.stdout
    assert done.stdout.endswith("\nto list all findings: --check FILE.csv\n")
    assert sorted(os.listdir(tmp_path)) == ["own images"]


# ---------------------------------------------------------------- the inspection


def test_an_inspection_finds_what_may_reduce_the_quality_of_a_training(own_images):
    train = own_images / "train"
    (train / "a" / "broken.jpg").write_text("not an image")
    shutil.copy(train / "a" / "train_0.jpg", train / "b" / "twice.jpg")
    shutil.copy(train / "b" / "train_1.jpg", own_images / "test" / "b" / "leak.jpg")
    draw(0, 7, 900, 250).save(train / "a" / "long.png")
    draw(0, 7, 750, 250).save(train / "a" / "not long.png")
    draw(1, 8, 224, 224).convert("L").save(train / "a" / "gray.png")
    draw(1, 9, 300, 223).save(train / "a" / "low.png")
    dark = np.full((300, 300), 2000, np.uint16)
    Image.fromarray(dark).save(train / "a" / "dark.png")
    (train / "lily").mkdir()
    for name in ("rose", "lily"):
        (own_images / "valid" / name).mkdir()
        draw(2, ord(name[0]), 300, 250).save(own_images / "valid" / name / "fine.png")
    data, findings = inspect_images(utils.read_images(utils.list_images(own_images)), 224)
    assert list(data.errors()) == ["train/a/broken.jpg"]
    counts = {(f.split, f.category): f.detail for f in findings if f.finding == "images"}
    assert len(counts) == 9 and counts["train", "a"] == "8"
    assert counts["train", "lily"] == "0" and counts["valid", "rose"] == "1"
    others = [f for f in findings if f.finding not in ("images", "below 224 pixels")]
    assert {(f.finding, f.split, f.category, f.path.rsplit("/")[-1]) for f in others} == {
        ("unknown category", "valid", "rose", ""),
        ("empty category", "train", "lily", ""),
        ("unreadable", "train", "a", "broken.jpg"),
        ("duplicate", "train", "b", "twice.jpg"),
        ("duplicate", "test", "b", "leak.jpg"),
        ("long", "train", "a", "long.png"),
        ("mode", "train", "a", "gray.png"),
        ("mode", "train", "a", "dark.png"),
        ("pixels", "train", "a", "dark.png"),
    }
    copies = {f.other_path: f.distance for f in others if f.finding == "duplicate"}
    assert copies == {"train/a/train_0.jpg": 0, "train/b/train_1.jpg": 0}
    assert [f.detail for f in others if f.finding == "pixels"] == ["comes out nearly black"]
    details = {f.path.rsplit("/")[-1]: f.detail for f in others}
    assert details["twice.jpg"] == "in another category: train/a/train_0.jpg"
    assert details["leak.jpg"] == "in another split: train/b/train_1.jpg"
    assert details["broken.jpg"].startswith("not an image")
    assert (details["long.png"], details["gray.png"]) == ("900 x 250", "L")
    small = {f.path: f.detail for f in findings if f.finding == "below 224 pixels"}
    assert small.pop("train/a/low.png") == "300 x 223"
    assert set(small) == {p for p in all_images(own_images) if not p.endswith("broken.jpg")}
    assert set(small.values()) == {"100 x 90"}
