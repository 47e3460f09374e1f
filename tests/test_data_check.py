"""data_check: leaks, unreadable files, and the report of --check."""

import builtins
import collections
import csv
import os
import re
import shutil

import numpy as np
import pytest
from conftest import all_images, assert_error, draw, make_images, not_root
from PIL import Image

import utils
from data_check import check_data_folder, check_files, exclude_images, inspect_images
from support.arguments import UserError

# ---------------------------------------------------------------- the files' status


def test_images_of_train_in_other_splits_are_reported(own_images, capsys):
    shutil.copy(own_images / "train" / "a" / "train_0.jpg", own_images / "test" / "b" / "x.jpg")
    shutil.copy(own_images / "valid" / "a" / "valid_0.jpg", own_images / "test" / "b" / "y.jpg")
    size = (own_images / "train" / "b" / "train_1.jpg").stat().st_size
    (own_images / "valid" / "b" / "same size.jpg").write_bytes(bytes(size))
    assert check_files(utils.read_data_folder(own_images)).failures == {}
    [warning] = capsys.readouterr().err.splitlines()
    assert "1 images of valid or test are also in train" in warning
    assert "the reported accuracy will be too high" in warning
    assert warning.endswith(": test/b/x.jpg (train/a/train_0.jpg)")


def test_files_are_read_only_if_train_and_another_split_have_that_size(locked_folder):
    locked_folder.chmod(0o755)
    root = make_images(locked_folder / "images", ("a",), 1, 1, 1)
    for name, size in (
        ("train/a/7", 7),
        ("valid/a/7", 7),
        ("train/a/9", 9),
        ("train/a/also 9", 9),
        ("valid/a/11", 11),
        ("test/a/11", 11),
    ):
        (root / name).write_bytes(bytes(size))
        (root / name).chmod(0)
    data = utils.read_data_folder(root)
    with not_root():
        failures = check_files(data).failures
    shutil.rmtree(root)
    assert set(failures) == {"train/a/7", "valid/a/7"}
    assert all("Permission denied" in reason for reason in failures.values())


def test_a_file_that_changes_gets_another_version(own_images):
    data = utils.read_data_folder(own_images)
    path = own_images / "train" / "a" / "train_0.jpg"
    before = check_files(data).versions
    assert set(before) == {path for paths in data.paths.values() for path in paths}
    assert check_files(data).versions == before
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))  # the same size
    newer = check_files(data).versions
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same time
    larger = check_files(data).versions
    path.unlink()
    missing = check_files(data).versions
    name = "train/a/train_0.jpg"
    assert len({versions[name] for versions in (before, newer, larger, missing)}) == 4
    for versions in (newer, larger, missing):
        assert versions | {name: before[name]} == before


def test_links_without_a_target_and_circular_links_are_reported(own_images):
    folder = own_images / "train" / "a"
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "nowhere.jpg").symlink_to("nothing")
    (folder / "up").symlink_to("..")
    (own_images / "train" / "circle").symlink_to("circle")
    (folder / "good.jpg").symlink_to("train_0.jpg")
    data = utils.read_data_folder(own_images)
    assert list(data.class_to_idx) == ["a", "b"]
    failures = check_files(data).failures
    assert set(failures) == {"train/a/circle.jpg", "train/a/nowhere.jpg"}
    assert all(f"{own_images}/{path}: " in reason for path, reason in failures.items())
    assert exclude_images(data, failures).paths["train"] == [
        f"train/{name}.jpg"
        for name in ("a/good", "a/train_0", "a/train_1", "b/train_0", "b/train_1")
    ]


@pytest.fixture
def count_calls(monkeypatch):
    """Count how often each path is passed to `os.stat`, `os.scandir` and `open`, by function."""
    counts = {name: collections.Counter() for name in ("stat", "scandir", "open")}

    def counted(name, function):
        def call(path, *args, **kwargs):
            counts[name][os.fspath(path)] += 1
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr(os, "stat", counted("stat", os.stat))
    monkeypatch.setattr(os, "scandir", counted("scandir", os.scandir))
    monkeypatch.setattr(builtins, "open", counted("open", open))
    yield counts
    monkeypatch.undo()


def test_each_file_is_looked_at_once_and_none_is_opened_without_need(own_images, count_calls):
    """Millions of files are listed in minutes, even on a file server."""
    for number, path in enumerate(all_images(own_images)):
        (own_images / path).write_bytes(bytes(1000 + number))
    for number in range(500):
        (own_images / "train" / "a" / f"{number}.jpg").write_bytes(bytes(number))
    shutil.copy(own_images / "train" / "b" / "train_1.jpg", own_images / "test" / "a" / "leak.jpg")
    paths = {f"{own_images}/{path}" for path in all_images(own_images)}
    for counter in count_calls.values():
        counter.clear()
    data = utils.read_data_folder(own_images)
    folders = [f"{own_images}/{split}" for split in utils.SPLITS]
    folders += [f"{folder}/{category}" for folder in folders for category in ("a", "b")]
    assert {path.rstrip("/"): n for path, n in count_calls["scandir"].items()} == dict.fromkeys(
        folders, 1
    )
    assert not paths & count_calls["stat"].keys() and not count_calls["open"]
    failures = check_files(data).failures
    assert set(failures) == {"train/a/0.jpg"}
    assert {path: count_calls["stat"][path] for path in paths} == dict.fromkeys(paths, 1)
    assert count_calls["open"] == {
        f"{own_images}/{path}": 1 for path in ("train/b/train_1.jpg", "test/a/leak.jpg")
    }


# ---------------------------------------------------------------- images that are left out


def test_files_that_cannot_be_images_are_left_out(own_images, capsys):
    (own_images / "test" / "a" / "empty.jpg").touch()
    os.mkfifo(own_images / "test" / "a" / "pipe.jpg")
    data = utils.read_data_folder(own_images)
    checked = check_files(data)
    assert set(checked.failures) == {"test/a/empty.jpg", "test/a/pipe.jpg"}
    readable = exclude_images(data, checked.failures)
    assert (readable.paths["test"], readable.labels["test"]) == (
        ["test/a/test_0.jpg", "test/b/test_0.jpg"],
        [0, 1],
    )
    for split in ("train", "valid"):
        assert readable.paths[split] == data.paths[split]
        assert readable.labels[split] == data.labels[split]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("left out" in line for line in lines)
    with pytest.raises(UserError, match=r"empty.jpg: empty \(--strict\)$"):
        exclude_images(data, checked.failures, strict=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("split", "reason"),
    [("train", "train/b: none of its images"), ("valid", "valid: none of its images")],
)
def test_no_readable_image_is_an_error(own_images, split, reason):
    data = utils.read_data_folder(own_images)
    failures = {p: f"{p}: bad" for p in data.paths[split] if split == "valid" or "/b/" in p}
    with pytest.raises(UserError, match=reason):
        exclude_images(data, failures)


# ---------------------------------------------------------------- findings


def test_an_inspection_finds_what_may_reduce_the_quality_of_a_training(own_images):
    train = own_images / "train"
    (train / "a" / "broken.jpg").write_text("not an image")
    shutil.copy(train / "a" / "train_0.jpg", train / "b" / "twice.jpg")
    shutil.copy(train / "b" / "train_1.jpg", own_images / "test" / "b" / "leak.jpg")
    draw(0, 7, 900, 250).save(train / "a" / "long.png")
    draw(0, 7, 750, 250).save(train / "a" / "not long.png")
    draw(1, 8, 224, 224).convert("L").save(train / "a" / "gray.png")
    draw(1, 9, 300, 223).save(train / "a" / "low.png")
    (train / "lily").mkdir()
    (own_images / "valid" / "rose").mkdir()
    draw(2, 9, 300, 250).save(own_images / "valid" / "rose" / "fine.png")
    findings = inspect_images(str(own_images), utils.list_images(own_images))
    assert {f[:3]: f.detail for f in findings if f.finding == "images"} == {
        ("images", "train", "a"): "7",
        ("images", "train", "b"): "3",
        ("images", "train", "lily"): "0",
        ("images", "valid", "a"): "1",
        ("images", "valid", "b"): "1",
        ("images", "valid", "rose"): "1",
        ("images", "test", "a"): "1",
        ("images", "test", "b"): "2",
    }
    others = [f for f in findings if f.finding not in ("images", "below 224 pixels")]
    assert {(f.finding, f.split, f.category, f.path.rsplit("/")[-1]) for f in others} == {
        ("unknown category", "valid", "rose", ""),
        ("empty category", "train", "lily", ""),
        ("unreadable", "train", "a", "broken.jpg"),
        ("duplicate", "train", "b", "twice.jpg"),
        ("duplicate", "test", "b", "leak.jpg"),
        ("long", "train", "a", "long.png"),
        ("mode", "train", "a", "gray.png"),
    }
    details = {f.path.rsplit("/")[-1]: f.detail for f in others}
    assert details["twice.jpg"] == "train/a/train_0.jpg"
    assert details["leak.jpg"] == "in another split: train/b/train_1.jpg"
    assert details["broken.jpg"].startswith("not an image")
    assert (details["long.png"], details["gray.png"]) == ("900 x 250", "L")
    small = {f.path: f.detail for f in findings if f.finding == "below 224 pixels"}
    assert small.pop("train/a/low.png") == "300 x 223"
    assert set(small) == {p for p in all_images(own_images) if not p.endswith("broken.jpg")}
    assert set(small.values()) == {"100 x 90"}


# ---------------------------------------------------------------- the report


@pytest.mark.parametrize(
    ("seconds_per_view", "views", "printed"),
    [
        (0.00123, 1, "8 views in about 0.0098 seconds"),
        (12.3456, 1, "8 views in about 99 seconds"),
        (98765.4, 1, "8 views in about 790000 seconds"),
        (1e6, 1, "8 views in about 8000000 seconds"),
        (0.2, 3, "16 views in about 3.2 seconds"),  # 3 x 4 of train, 2 of valid, 2 of test
    ],
)
def test_the_estimate_has_two_significant_digits(
    own_images, tmp_path, capsys, seconds_per_view, views, printed
):
    (own_images / "train" / "a" / "broken.jpg").write_text("not an image")
    (own_images / "test" / "a" / "broken.jpg").write_text("not an image")
    measured = []

    def measure(paths):
        measured.extend(paths)
        return seconds_per_view

    check_data_folder(str(own_images), views, measure, str(tmp_path / "report.csv"))
    assert f"features: {printed} on this machine\n" in capsys.readouterr().out
    assert measured == [f"train/{c}/train_{n}.jpg" for c in ("a", "b") for n in (0, 1)]
    with open(tmp_path / "report.csv", newline="") as file:
        *_, last = csv.reader(file)
    assert last == ["seconds", "", "", "", printed.split()[-2]]


def test_without_a_readable_image_of_train_nothing_is_measured(own_images, capsys):
    for path in all_images(own_images):
        if path.startswith("train"):
            (own_images / path).write_text("not an image")

    def measure(paths):
        raise AssertionError("no image to measure")

    check_data_folder(str(own_images), 2, measure)
    assert "features: 4 views in about 0 seconds" in capsys.readouterr().out


def test_check_reports_and_trains_nothing(tiny, call, own_images, tmp_path):
    (own_images / "train" / "a" / "broken.jpg").write_text("not an image")
    (own_images / "valid" / "rose").mkdir()
    table = tmp_path / "report.csv"
    done = call("train.py", "--data_dir", own_images, "--arch", tiny, "--check", table)
    assert done.returncode == 0 and done.stderr == ""
    assert re.search(r"train +5 images +2 categories, of 2 \(b\) to 3 \(a\)", done.stdout)
    assert "unknown category: 1: valid/rose (not in train)" in done.stdout
    assert re.search(r"unreadable: 1: train/a/broken.jpg \(not an image", done.stdout)
    seconds = re.search(r"features: 8 views in about (\S+) seconds on this machine", done.stdout)[1]
    assert float(seconds) > 0
    assert "--output_cat 2" in done.stdout
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["path"] for r in rows if r["finding"] == "unreadable"] == ["train/a/broken.jpg"]
    counts = {(r["split"], r["category"]): r["detail"] for r in rows if r["finding"] == "images"}
    assert counts["train", "a"] == "3" and counts["valid", "rose"] == "0"
    assert (rows[-1]["finding"], rows[-1]["detail"]) == ("seconds", seconds)
    assert sorted(os.listdir(tmp_path)) == ["own images", "report.csv"]


def test_check_without_a_file_prints_only(tiny, call, own_images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("train.py", "--data_dir", own_images, "--arch", tiny, "--check")
    assert done.returncode == 0 and done.stderr == ""
    assert re.search(r"below 224 pixels: 8: train/a/train_0.jpg \(100 x 90\), ", done.stdout)
    assert sorted(os.listdir(tmp_path)) == ["own images"]


def test_a_report_that_cannot_be_written_is_named(tiny, call, own_images, tmp_path):
    target = tmp_path / "no folder" / "report.csv"
    done = call("train.py", "--data_dir", own_images, "--arch", tiny, "--check", target)
    assert_error(done, target)


def test_pixels_whose_meaning_is_uncertain_are_a_finding(tiny, own_images, call):
    dark = own_images / "train" / "a" / "dark.png"
    Image.fromarray(np.full((300, 300), 2000, np.uint16)).save(dark)
    done = call("train.py", "--data_dir", own_images, "--arch", tiny, "--check")
    assert done.returncode == 0
    assert "pixels: 1: train/a/dark.png (comes out nearly black)" in done.stdout
