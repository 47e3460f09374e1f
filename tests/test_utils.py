"""utils: data folders, images and their views, category names."""

import builtins
import collections
import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import CATEGORIES, all_images, draw, load_views
from PIL import Image, ImageOps
from torchvision.models import VGG16_Weights
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

import utils
from image_files.digests import digest_of_file
from system.messages import UserError

# ---------------------------------------------------------------- data folders


def test_categories_are_numbered_in_string_order_in_every_split(images):
    data = utils.read_data_folder(images)
    assert data.class_to_idx == {"1": 0, "10": 1, "2": 2, "x y": 3}
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        assert data.labels(split) == [index for index in range(4) for _ in range(count)]
        folders = [path.split("/")[:2] for path in data.paths(split)]
        assert folders == [[split, CATEGORIES[index]] for index in data.labels(split)]
        assert all((images / path).is_file() for path in data.paths(split))


def test_a_category_that_valid_lacks_has_the_same_index_and_is_warned_of(own_images, capsys):
    shutil.rmtree(own_images / "valid" / "a")
    data = utils.list_images(own_images)
    utils.check_categories(data)
    assert data.class_to_idx == {"a": 0, "b": 1}
    assert data.labels("valid") == [1]
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and "valid" in warning and warning.endswith(": a")


def empty(folder):
    """Remove all that is in a folder."""
    shutil.rmtree(folder)
    folder.mkdir()


INVALID_FOLDERS = {
    "no folder": (lambda root: shutil.rmtree(root), ["--data_dir", "own images", "no such folder"]),
    "no train": (lambda root: shutil.rmtree(root / "train"), ["train", "no such folder"]),
    "two names": (
        lambda root: shutil.copytree(root / "valid", root / "Val"),
        ["valid", "Val", "keep only one"],
    ),
    "empty split": (lambda root: empty(root / "test"), ["test", "no category folders"]),
    "empty category": (lambda root: empty(root / "train" / "b"), ["'b'", "no image for train"]),
    "no images in valid": (
        lambda root: (empty(root / "valid" / "a"), empty(root / "valid" / "b")),
        ["no images for valid"],
    ),
    "unknown category": (
        lambda root: (root / "test" / "b").rename(root / "test" / "rose"),
        ["train has no category 'rose', but test has"],
    ),
    "one category": (
        lambda root: [shutil.rmtree(root / split / "b") for split in utils.SPLITS],
        ["only one category, 'a'"],
    ),
    "another case": (
        lambda root: (root / "test" / "b").rename(root / "test" / "B "),
        ["train has no category 'B ' (only 'b', which differs in", "), but test has"],
    ),
}


@pytest.mark.parametrize("case", INVALID_FOLDERS)
def test_an_invalid_data_folder_is_an_error_with_the_reason(own_images, case):
    change, words = INVALID_FOLDERS[case]
    change(own_images)
    with pytest.raises(UserError) as error:
        utils.read_data_folder(own_images)
    assert str(own_images) in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_a_folder_above_the_data_folder_is_an_error_with_the_flag_to_type(own_images):
    with pytest.raises(UserError, match=f"one level deeper; type --data_dir {own_images}$"):
        utils.list_images(own_images.parent)


# ---------------------------------------------------------------- without splits


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two categories, "b" and "train station", of 60 images each, without splits."""
    root = tmp_path_factory.mktemp("drawn")
    for kind, category in enumerate(("b", "train station")):
        (root / category).mkdir()
        for number in range(60):
            draw(kind, number, 12, 10).save(root / category / f"{number}.png")
    return root


def test_a_folder_without_splits_is_split_by_content(drawn, capsys):
    before = sorted(drawn.rglob("*"))
    data = utils.read_data_folder(drawn)
    warning = capsys.readouterr().err
    assert len(data.images) == 120 and data.class_to_idx == {"b": 0, "train station": 1}
    for split, low, high in (("train", 80, 112), ("valid", 4, 24), ("test", 4, 24)):
        paths = data.paths(split)
        assert low <= len(paths) <= high
        assert f"{len(paths)} {split}" in warning
        categories = [path.split("/")[0] for path in paths]
        assert set(categories) == set(data.class_to_idx)
        assert data.labels(split) == [data.class_to_idx[category] for category in categories]
    assert sorted(drawn.rglob("*")) == before


def test_an_image_is_in_the_same_split_in_every_version_of_the_program(tmp_path):
    contents = {  # the digest of the content, as a fraction, is beside it
        "387": "test",  # 0.7958
        "236": "train",  # 0.8035
        "103": "train",  # 0.8999
        "221": "valid",  # 0.9002
    }
    (tmp_path / "b").mkdir()
    for content in contents:
        (tmp_path / "b" / f"name {content}").write_text(content)
    data = utils.read_images(utils.list_images(tmp_path))
    assert {image.path.split()[-1]: image.split for image in data.images} == contents


@pytest.mark.parametrize("missing", [["valid"], ["test"], ["valid", "test"]])
def test_a_missing_split_is_taken_from_train(drawn, missing, tmp_path, capsys):
    root = tmp_path / "flowers"
    root.mkdir()
    for split in {"train", "valid", "test"} - set(missing):
        (root / split).symlink_to(drawn)
    data = utils.read_data_folder(root)
    assert f"no {' or '.join(missing)} folder: split by content: " in capsys.readouterr().err
    splits = [image.split for image in data.images]
    assert splits == sorted(splits, key=utils.SPLITS.index)
    without_splits = utils.read_data_folder(drawn)
    for split in missing:
        assert data.paths(split) == [f"train/{path}" for path in without_splits.paths(split)]
    moved = sum(len(data.paths(split)) for split in missing)
    assert len(data.paths("train")) == 120 - moved


OTHER_NAMES = [("training", "Val", "testing"), ("TRAIN", "validation", "Test")]
OTHER_NAMES += [("train", "dev", "test")]


@pytest.mark.parametrize("names", OTHER_NAMES)
def test_the_splits_have_other_names_in_any_case(own_images, names):
    for split, name in zip(utils.SPLITS, names, strict=True):
        (own_images / split).rename(own_images / "moving")
        (own_images / "moving").rename(own_images / name)
    data = utils.list_images(own_images)
    folders = [data.paths(split)[0].split("/")[0] for split in utils.SPLITS]
    assert tuple(folders) == names


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


@pytest.mark.parametrize("folder", [".", "train"], ids=["splits", "no splits"])
def test_each_folder_is_listed_and_each_file_read_once(
    own_images, tmp_path, count_calls, monkeypatch, folder
):
    """Millions of files are listed in minutes, even on a file server."""
    monkeypatch.setattr("image_files.digests.MIN_AGE", -(10**18))  # all files are old enough
    root = own_images / folder
    folders = {str(path) for path in [root, *root.rglob("*")] if path.is_dir()}
    files = {str(path) for path in root.rglob("*/*.jpg")}
    for is_first in (True, False):
        for counter in count_calls.values():
            counter.clear()
        utils.read_images(utils.list_images(root), tmp_path / "cache")
        scanned = {path.rstrip("/"): n for path, n in count_calls["scandir"].items()}
        assert scanned == dict.fromkeys(folders, 1)
        assert {path: count_calls["stat"][path] for path in files} == dict.fromkeys(files, 1)
        opened = {path: count_calls["open"][path] for path in files}
        assert opened == dict.fromkeys(files, 1 if is_first else 0)


# ---------------------------------------------------------------- as people have it


def test_images_outside_of_the_categories_are_counted_and_named(own_images, capsys):
    draw(0, 50).save(own_images / "train" / "beside.jpg")
    draw(0, 51).save(own_images / "top.jpg")
    (own_images / "extra").mkdir()
    utils.list_images(own_images)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("warning: ") for line in lines)
    assert lines[0].endswith("own images: 1 folder is ignored, beside the splits: extra")
    where = "1 file is ignored, outside of the category folders"
    assert lines[1].endswith(f"own images: {where}: top.jpg")
    assert lines[2].endswith(f"train: {where}: beside.jpg")


def test_files_that_are_plainly_no_images_are_counted_in_one_line(own_images, capsys):
    before = utils.list_images(own_images)
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "b.TXT", "labels.csv", "meta.json"):
        (own_images / "train" / "a" / name).write_text("no image")
    (own_images / "cat_to_name.json").write_text("{}")
    (own_images / "__MACOSX").mkdir()
    (own_images / "train" / ".ipynb_checkpoints").mkdir()
    assert utils.list_images(own_images) == before
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"{own_images}/train: ignored files: 1 .csv, 1 .json, 2 .txt"


def test_categories_that_look_alike_are_warned_of(own_images, capsys):
    for name in ("A", "caf\u00e9", "cafe\u0301"):
        for split in utils.SPLITS:
            (own_images / split / name).mkdir()
            (own_images / split / name / "x.jpg").touch()
    utils.check_categories(utils.list_images(own_images))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "the categories 'A', 'a' differ only in upper and lower case" in lines[0]
    assert "differ only in the encoding of accents" in lines[1]


# ---------------------------------------------------------------- images that are left out


def test_images_that_are_left_out_are_warned_of(own_images, capsys):
    data = utils.list_images(own_images)
    left = utils.exclude_images(data, {"test/a/test_0.jpg": "it is empty"})
    assert left.paths("test") == ["test/b/test_0.jpg"] and left.labels("test") == [1]
    for split in ("train", "valid"):
        assert left.of(split) == data.of(split)
    assert capsys.readouterr().err == "warning: it is empty; left out\n"
    with pytest.raises(UserError, match=r"^it is empty \(--strict\)$"):
        utils.exclude_images(data, {"test/a/test_0.jpg": "it is empty"}, strict=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("split", "reason"),
    [("train", "train/b: none of its images"), ("valid", "valid: none of its images")],
)
def test_no_readable_image_is_an_error(own_images, split, reason):
    data = utils.list_images(own_images)
    errors = {p: f"{p}: bad" for p in data.paths(split) if split == "valid" or "/b/" in p}
    with pytest.raises(UserError, match=reason):
        utils.exclude_images(data, errors)


# ---------------------------------------------------------------- labeled folders


def test_a_labeled_folder_is_listed_with_the_indices_of_the_checkpoint(own_images):
    class_to_idx = {"a": 5, "b": 2, "c": 0}
    root = (own_images / "test").rename(own_images / "Testing")
    expected = [(f"{root}/a/test_0.jpg", 5), (f"{root}/b/test_0.jpg", 2)]
    assert utils.list_labeled(root, class_to_idx) == expected
    assert utils.list_labeled(own_images, class_to_idx) == expected  # of a data folder, test


def test_an_invalid_labeled_folder_is_a_users_error(own_images):
    root = own_images / "test"
    with pytest.raises(UserError, match=f"^{root}: the checkpoint does not know b$"):
        utils.list_labeled(root, {"a": 0})
    with pytest.raises(UserError, match=f"^{own_images}/nothing: no such folder$"):
        utils.list_labeled(own_images / "nothing", {"a": 0})
    empty(root / "a")
    empty(root / "b")
    with pytest.raises(UserError, match=f"^{root}: no images in its categories$"):
        utils.list_labeled(root, {"a": 0, "b": 1})


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 6), ("CMYK", 1)])
def test_a_large_jpeg_is_decoded_smaller_with_the_same_view(tmp_path, mode, orientation):
    large = draw(2, 7, 400, 340).resize((2400, 2040), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    large.save(tmp_path / "large.jpg", quality=95, exif=exif)
    image = utils.load_image(tmp_path / "large.jpg")
    assert sorted(image.size) == [2040 // 2, 2400 // 2]  # a quarter would be less than 512
    for size, shorter in ((64, 255), (448, 2040)):  # at least twice 73 and 512
        assert min(utils.load_image(tmp_path / "large.jpg", size=size).size) == shorter
    with Image.open(tmp_path / "large.jpg") as full:
        expected = utils.plain_view(ImageOps.exif_transpose(full).convert("RGB"))
    difference = utils.plain_view(image).astype(float) - expected
    assert np.abs(difference).mean() < 1  # of 255


def test_a_thumbnail_is_a_copy_of_at_most_512_pixels():
    image = Image.new("RGB", (300, 1024), "red")
    thumbnail = utils.thumbnail(image)
    assert image.size == (300, 1024) and thumbnail.size == (150, 512)
    assert thumbnail.getpixel((5, 5)) == (255, 0, 0)
    assert utils.thumbnail(Image.new("RGB", (40, 30))).size == (40, 30)


# ---------------------------------------------------------------- views


def cut_out(image: Image.Image, sides) -> Image.Image:
    left, top = (round((old - new) / 2) for old, new in zip(image.size, sides, strict=True))
    return image.crop((left, top, left + sides[0], top + sides[1]))


@pytest.mark.parametrize(("view_size", "short_side"), [(224, 256), (96, 110), (448, 512)])
@pytest.mark.parametrize(
    "size", [(100, 90), (640, 427), (300, 811), (257, 256), (259, 256), (256, 261), (14, 903)]
)
def test_plain_views_follow_from_the_numbers_for_other_programs(
    tmp_path, size, view_size, short_side
):
    """Nothing but these numbers is used here, with Pillow and Python's `round`."""
    numbers = utils.preprocessing(view_size)
    assert numbers["resize"] == short_side and numbers["image_size"] == view_size
    path = tmp_path / "image.png"
    draw(2, 5, *size).save(path)
    with Image.open(path) as image:
        image = image.convert("RGB")
    longest = numbers["max_aspect"] * min(image.size)
    image = cut_out(image, [min(side, longest) for side in image.size])
    short = min(image.size)
    sides = [short_side * side // short for side in image.size]
    image = cut_out(image.resize(sides, Image.Resampling.BILINEAR), (view_size, view_size))
    pixels = np.array(image)
    view = utils.load_plain_view(path, view_size)
    assert np.array_equal(view, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(100, 90), (640, 427), (300, 811), (257, 256), (224, 31)])
def test_normalized_plain_views_equal_torchvisions_bit_by_bit(size):
    image = draw(2, 5, *size)
    views = utils.normalize(utils.plain_view(image)[None])
    assert torch.equal(views[0], VGG16_Weights.IMAGENET1K_V1.transforms()(image))


@pytest.mark.parametrize("size", [(300, 200), (31, 224), (640, 427)])
def test_random_views_equal_torchvisions_and_follow_from_their_seed_alone(size):
    image = draw(2, 5, *size)
    for seed in range(8):
        torch.manual_seed(seed)
        box = RandomResizedCrop.get_params(image, [0.5, 1], [3 / 4, 4 / 3])
        expected = F.resized_crop(image, *box, [96, 96])
        expected = F.hflip(expected) if torch.rand(1) < 0.5 else expected
        torch.manual_seed(99)
        state = torch.get_rng_state()
        assert np.array_equal(utils.random_view(image, seed, 96), F.pil_to_tensor(expected))
        assert torch.equal(torch.get_rng_state(), state)


def test_views_are_numbered_and_decoded_from_the_bytes_that_were_digested(images, count_calls):
    path = all_images(images)[0]
    digest = digest_of_file(images / path)
    count_calls["open"].clear()
    views = utils.load_views(str(images), path, digest, [0, 1, 2, 3], 96)
    assert count_calls["open"][str(images / path)] == 1
    assert views.shape == (4, 3, 96, 96) and views.dtype == np.uint8
    assert np.array_equal(views[0], utils.load_plain_view(images / path, 96))
    assert np.array_equal(views[1], views[0][:, :, ::-1])
    assert len({view.tobytes() for view in views}) == 4
    assert np.array_equal(load_views(images, path, [2], 96)[0], views[2])


def test_random_views_follow_from_the_images_content(tmp_path):
    draw(2, 1).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    draw(2, 1).save(tmp_path / "other.png", optimize=True)  # equal pixels in other bytes
    names = ("a.png", "b.png", "other.png")
    first, copy, other = (load_views(tmp_path, name, [0, 2]) for name in names)
    assert np.array_equal(first, copy)
    assert np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


def test_views_of_other_content_than_expected_are_refused(images):
    path = all_images(images)[0]
    with pytest.raises(UserError, match=re.escape(f"{images}/{path}: has changed")):
        utils.load_views(str(images), path, "0" * 32, [0])


def test_a_category_that_is_called_as_a_split_is_not_taken_for_it(tmp_path):
    for name in ("train/2019", "train/2020", "bus", "car"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").touch()
    with pytest.raises(UserError, match="of splits, train, .* with images, bus, car; move"):
        utils.list_images(tmp_path)


def test_a_category_without_any_image_is_ignored_with_a_warning(own_images, capsys):
    for split in utils.SPLITS:
        (own_images / split / "c").mkdir()
    (own_images / "train" / "c" / "notes.txt").write_text("later")
    assert list(utils.list_images(own_images).class_to_idx) == ["a", "b"]
    assert "warning: " in (err := capsys.readouterr().err) and "without images" in err
