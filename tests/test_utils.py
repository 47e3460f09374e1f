"""utils: data folders, images and their views, category names."""

import builtins
import collections
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CATEGORIES, all_images, draw, load_views, not_root
from PIL import Image, ImageOps
from torchvision.models import VGG16_Weights
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

import utils
from image_files import decoding, folders
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
    data = utils.read_data_folder(own_images)
    assert data.class_to_idx == {"a": 0, "b": 1}
    assert data.labels("valid") == [1]
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and "valid" in warning and warning.endswith(": a")


def test_hidden_files_and_folders_are_ignored(own_images):
    before = utils.read_data_folder(own_images)
    (own_images / "train" / ".ipynb_checkpoints").mkdir()
    (own_images / "train" / "a" / ".DS_Store").touch()
    (own_images / "train" / "a" / "folder").mkdir()
    (own_images / "valid" / "notes.txt").touch()
    assert utils.read_data_folder(own_images) == before


UNUSUAL_NAMES = [
    "Gänseblümchen ひ",
    "two  blanks ",
    "line\nbreak",
    "\x1b[31mred",
    "-rf",
    "'\"$(x)`,;",
    os.fsdecode(b"no text \xff\xfe"),
]


def test_files_and_folders_may_have_any_name(own_images, capsys):
    for name in UNUSUAL_NAMES:
        (own_images / "train" / name).mkdir()
        draw(0, 1).save(own_images / "train" / name / f"{name}.png")
    data = utils.read_data_folder(own_images)
    assert list(data.class_to_idx) == sorted(["a", "b", *UNUSUAL_NAMES])
    assert {f"train/{name}/{name}.png" for name in UNUSUAL_NAMES} < set(data.paths("train"))
    for path in data.paths("train"):
        assert load_views(own_images, path, [0, 1]).shape == (2, 3, 224, 224)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("lacks 7 categories" in line for line in lines)
    assert "line break" in lines[0] and "\\x1b[31mred" in lines[0]


def empty(folder):
    """Remove all that is in a folder."""
    shutil.rmtree(folder)
    folder.mkdir()


def nest(root, name):
    """Move all that is in a folder into a new folder in it."""
    root.rename(root.with_name("nested"))
    root.mkdir()
    root.with_name("nested").rename(root / name)


INVALID_FOLDERS = {
    "no folder": (lambda root: shutil.rmtree(root), ["--data_dir", "own images", "no such folder"]),
    "no train": (lambda root: shutil.rmtree(root / "train"), ["train", "no such folder"]),
    "two names": (
        lambda root: shutil.copytree(root / "valid", root / "Val"),
        ["valid", "Val", "keep only one"],
    ),
    "one level too high": (
        lambda root: nest(root, "flowers"),
        ["one level deeper", "type --data_dir", os.path.join("own images", "flowers")],
    ),
    "nothing": (lambda root: empty(root), ["own images", "no category folders"]),
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


def test_a_data_folder_that_may_not_be_read_is_a_users_error(locked_folder):
    for path in (locked_folder, locked_folder / "flowers"):
        with pytest.raises(UserError, match="locked"), not_root():
            utils.read_data_folder(path)


# ---------------------------------------------------------------- without splits


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two categories, "b" and "train station", of 60 images each, without splits; see `unsplit`."""
    root = tmp_path_factory.mktemp("drawn")
    for kind, category in enumerate(("b", "train station")):
        (root / category).mkdir()
        for number in range(60):
            draw(kind, number, 12, 10).save(root / category / f"{number}.png")
    return root


@pytest.fixture
def unsplit(drawn, tmp_path):
    """A copy of `drawn`, which a test may change."""
    return shutil.copytree(drawn, tmp_path / "unsplit")


def split_by_path(root) -> dict[str, str]:
    """Return the split of each image of a data folder."""
    data = utils.read_data_folder(root)
    return {image.path: image.split for image in data.images}


def test_a_folder_without_splits_is_split_by_content(unsplit, capsys):
    before = sorted(unsplit.rglob("*"))
    data = utils.read_data_folder(unsplit)
    [warning] = capsys.readouterr().err.splitlines()
    splits = split_by_path(unsplit)
    assert len(splits) == 120 and data.class_to_idx == {"b": 0, "train station": 1}
    for split, low, high in (("train", 80, 112), ("valid", 4, 24), ("test", 4, 24)):
        assert low <= len(data.paths(split)) <= high
        assert f"{len(data.paths(split))} {split}" in warning
        assert {path.split("/")[0] for path in data.paths(split)} == set(data.class_to_idx)
        labels = [data.class_to_idx[path.split("/")[0]] for path in data.paths(split)]
        assert data.labels(split) == labels
        assert {path for path in splits if splits[path] == split} == set(data.paths(split))
    assert sorted(unsplit.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "split"),
    [  # the digest of the content, as a fraction, is beside it
        (b"387", "train"),  # 0.7958
        (b"236", "valid"),  # 0.8035
        (b"103", "valid"),  # 0.8999
        (b"221", "test"),  # 0.9002
    ],
)
def test_an_image_is_in_the_same_split_in_every_version_of_the_program(unsplit, content, split):
    (unsplit / "b" / "image").write_bytes(content)
    assert split_by_path(unsplit)["b/image"] == split


@pytest.mark.parametrize("count", [3, 4, 10])
def test_a_category_of_three_images_has_one_in_each_split(tmp_path, count):
    for kind in range(3):
        (tmp_path / str(kind)).mkdir()
        for number in range(count):
            draw(kind, number, 12, 10).save(tmp_path / str(kind) / f"{number}.png")
    data = utils.read_data_folder(tmp_path)
    assert all(set(data.labels(split)) == {0, 1, 2} for split in utils.SPLITS)
    assert data == utils.read_data_folder(tmp_path)


def test_images_that_are_added_removed_or_renamed_move_no_other(unsplit):
    before = split_by_path(unsplit)
    for number in range(100, 130):
        draw(2, number, 12, 10).save(unsplit / "b" / f"0{number}.png")
    (unsplit / "b" / "3.png").unlink()
    (unsplit / "b" / "4.png").rename(unsplit / "b" / "zzz.png")
    after = split_by_path(unsplit)
    assert after["b/zzz.png"] == before["b/4.png"]
    unchanged = before.keys() - {"b/3.png", "b/4.png"}
    assert {path: after[path] for path in unchanged} == {path: before[path] for path in unchanged}


def test_copies_of_an_image_are_in_one_split(unsplit):
    for path in list(unsplit.glob("b/*.png")):
        shutil.copy(path, unsplit / "train station" / f"copy of {path.name}")
    splits = split_by_path(unsplit)
    copies = [path for path in splits if "copy of" in path]
    assert len(copies) == 60
    for path in copies:
        assert splits[path] == splits["b/" + path.rsplit(" ")[-1]]


@pytest.mark.parametrize("missing", [["valid"], ["test"], ["valid", "test"]])
def test_a_missing_split_is_taken_from_train(drawn, missing, tmp_path, capsys):
    root = tmp_path / "flowers"
    root.mkdir()
    for split in {"train", "valid", "test"} - set(missing):
        (root / split).symlink_to(drawn)
    data = utils.read_data_folder(root)
    assert f"no {' or '.join(missing)} folder: split by content: " in capsys.readouterr().err
    assert [image.split for image in data.images] == sorted(
        [image.split for image in data.images], key=utils.SPLITS.index
    )
    assert all(path.startswith("train/") for split in missing for path in data.paths(split))
    assert all(data.paths(split) for split in utils.SPLITS)
    without_splits = utils.read_data_folder(drawn)
    for split in missing:
        assert data.paths(split) == [f"train/{path}" for path in without_splits.paths(split)]
    moved = sum(len(data.paths(split)) for split in missing)
    assert len(data.paths("train")) == 120 - moved


OTHER_SPLITS = [
    ("Train", "Val", "Test"),
    ("training", "validation", "testing"),
    ("TRAIN", "dev", "test"),
    ("train", "VALID", "Testing"),
]


@pytest.mark.parametrize("names", OTHER_SPLITS)
def test_the_splits_have_other_names_in_any_case(own_images, names):
    before = utils.read_data_folder(own_images)
    for split, name in zip(utils.SPLITS, names, strict=True):
        (own_images / split).rename(own_images / "moving")
        (own_images / "moving").rename(own_images / name)
    data = utils.read_data_folder(own_images)
    assert data.class_to_idx == before.class_to_idx
    for split, name in zip(utils.SPLITS, names, strict=True):
        assert data.labels(split) == before.labels(split)
        assert {path.split("/")[0] for path in data.paths(split)} == {name}
    assert utils.list_labeled(own_images, data.class_to_idx) == [
        (str(own_images / path), label)
        for path, label in zip(data.paths("test"), data.labels("test"), strict=True)
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


@pytest.mark.parametrize("has_splits", [True, False])
def test_each_folder_is_listed_and_each_file_read_once(
    own_images, tmp_path, count_calls, monkeypatch, has_splits
):
    """Millions of files are listed in minutes, even on a file server."""
    monkeypatch.setattr("image_files.digests.MIN_AGE", -(10**18))  # all files are old enough
    root = own_images if has_splits else own_images / "train"
    for kind in range(4):
        draw(kind, 70 + kind).save(root / "more.jpg" if has_splits else root / "a" / f"{kind}.jpg")
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


def test_sub_folders_of_a_category_belong_to_it(own_images):
    folder = own_images / "train" / "a" / "from my phone" / "2024"
    folder.mkdir(parents=True)
    draw(0, 50).save(folder / "deep.jpg")
    data = utils.read_data_folder(own_images)
    path = "train/a/from my phone/2024/deep.jpg"
    assert dict(zip(data.paths("train"), data.labels("train"), strict=True))[path] == 0
    assert list(data.class_to_idx) == ["a", "b"]
    assert all(len(image.digest) == 32 for image in data.images)


def test_images_outside_of_the_categories_are_counted_and_named(own_images, capsys):
    draw(0, 50).save(own_images / "train" / "beside.jpg")
    draw(0, 51).save(own_images / "top.jpg")
    (own_images / "extra").mkdir()
    utils.read_data_folder(own_images)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("warning: ") for line in lines)
    assert lines[0].endswith("own images: 1 folders beside the splits are ignored: extra")
    where = "1 files outside of the category folders are ignored"
    assert lines[1].endswith(f"own images: {where}: top.jpg")
    assert lines[2].endswith(f"train: {where}: beside.jpg")


def test_files_that_are_plainly_no_images_are_counted_in_one_line(own_images, capsys):
    before = utils.read_data_folder(own_images)
    for name in ("Thumbs.db", "desktop.ini", "notes.txt", "b.TXT", "labels.csv", "meta.json"):
        (own_images / "train" / "a" / name).write_text("no image")
    (own_images / "cat_to_name.json").write_text("{}")
    (own_images / "__MACOSX").mkdir()
    (own_images / "train" / "__MACOSX").mkdir()
    assert utils.read_data_folder(own_images) == before
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"{own_images}/train: ignored files: 1 .csv, 1 .json, 2 .txt"


def test_categories_that_look_alike_are_warned_of(own_images, capsys):
    for name, count in (("A", 1), ("caf\u00e9", 1), ("cafe\u0301", 1)):
        for split in utils.SPLITS:
            (own_images / split / name).mkdir()
            draw(3, count).save(own_images / split / name / "x.jpg")
    utils.read_data_folder(own_images)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "the categories 'A', 'a' differ only in upper and lower case" in lines[0]
    assert "differ only in the encoding of accents" in lines[1]


# ---------------------------------------------------------------- images that are left out


def test_images_that_are_left_out_are_warned_of(own_images, capsys):
    data = utils.read_data_folder(own_images)
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
    data = utils.read_data_folder(own_images)
    errors = {p: f"{p}: bad" for p in data.paths(split) if split == "valid" or "/b/" in p}
    with pytest.raises(UserError, match=reason):
        utils.exclude_images(data, errors)


# ---------------------------------------------------------------- labeled folders, inputs


def test_a_labeled_folder_is_listed_with_the_indices_of_the_checkpoint(own_images):
    class_to_idx = {"a": 5, "b": 2, "c": 0}
    expected = [
        (f"{own_images}/test/a/test_0.jpg", 5),
        (f"{own_images}/test/b/test_0.jpg", 2),
    ]
    assert utils.list_labeled(own_images / "test", class_to_idx) == expected
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


def test_a_folder_that_cannot_be_read_is_an_input_itself(locked_folder):
    """The error of reading it is then reported as that of an image."""
    with not_root():
        assert list(folders.find_files([str(locked_folder)])) == [str(locked_folder)]


# ---------------------------------------------------------------- images


def test_an_image_is_turned_upright(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = pixels[:, 30:, 2] = 255  # red on the left, blue on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated: the left side belongs at the top
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = utils.load_image(tmp_path / "turned.png")
    assert image.size == (40, 60)
    assert image.getpixel((20, 10)) == (255, 0, 0)
    assert image.getpixel((20, 50)) == (0, 0, 255)


# What each value of EXIF's tag 0x0112 means, as steps from the upright to the stored image: mirror
# it horizontally (0 or 1 times), then rotate it counterclockwise by 90 degrees (0 to 3 times).
ORIENTATIONS = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 1), 7: (1, 3)}
ORIENTATIONS[8] = (0, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("number", ORIENTATIONS)
def test_every_orientation_is_turned_upright(tmp_path, number, suffix):
    upright = np.array(draw(2, 7, 64, 48).resize((192, 144), Image.Resampling.BICUBIC))
    mirror, rotations = ORIENTATIONS[number]
    stored = np.rot90(upright[:, ::-1] if mirror else upright, rotations)
    exif = Image.Exif()
    exif[0x0112] = number
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options.get(suffix, {}))
    decoded = np.array(utils.load_image(path), int)
    assert decoded.shape == upright.shape
    difference = abs(decoded - upright)
    assert difference.max() <= (40 if suffix == "jpg" else 0) and difference.mean() < 2


RGB = np.array(draw(2, 3, 40, 30))
GRAY = RGB[..., 1]
DEEP = (np.arange(1200).reshape(30, 40) * 54 + 100).astype(np.uint16)  # 100 to 64,846
ALPHA = np.linspace(0, 255, 1200).astype(np.uint8).reshape(30, 40)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend gray or RGB pixels with a white background."""
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    opacity = alpha[..., None] / 255
    return pixels * opacity + 255 * (1 - opacity)


def png(path, pixels: np.ndarray, color_type: int, transparent: bytes = b"") -> None:
    """Write a PNG of 16 bits a channel, as Pillow can for gray only."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    for name, body in ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", data), (b"IEND", b"")):
        if body or name == b"IEND":
            checksum = zlib.crc32(name + body)
            content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)
    path.write_bytes(content)


def save(pixels, mode=None, **options):
    """Return a function that saves pixels, or an image, with the options of `Image.save`."""

    def save_to(path):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(path, **options)

    return save_to


def palette() -> Image.Image:
    """Return RGB with a palette of 16 colors."""
    return Image.fromarray(RGB).quantize(16)


def paletted(transparent: dict[int, int]) -> np.ndarray:
    """Return the pixels of `palette()` on white, with the alpha of these entries."""
    image = palette()
    alpha = np.full(256, 255, np.uint8)
    alpha[list(transparent)] = list(transparent.values())
    return on_white(np.array(image.convert("RGB")), alpha[np.array(image)])


def two_frames(**options):
    """Return a function that saves an animation; its first frame is RGB."""
    second = Image.fromarray(255 - RGB)
    return save(RGB, save_all=True, append_images=[second], **options)


# Format and mode: a function that writes the file, the expected pixels, their largest difference.
FORMATS = {
    "png RGB": (save(RGB, format="png"), RGB, 0),
    "png L": (save(GRAY, format="png"), GRAY, 0),
    "png L, transparent": (
        save(GRAY, format="png", transparency=int(GRAY[0, 0])),
        np.where(GRAY == GRAY[0, 0], 255, GRAY),
        0,
    ),
    "png 1": (save(GRAY > 128, format="png"), (GRAY > 128) * 255, 0),
    "png LA": (
        save(np.dstack([GRAY, ALPHA]), format="png"),
        on_white(GRAY, ALPHA),
        1,
    ),
    "png RGBA": (save(np.dstack([RGB, ALPHA]), format="png"), on_white(RGB, ALPHA), 1),
    "png P": (save(palette(), format="png"), paletted({}), 0),
    "png P, transparent": (
        save(palette(), format="png", transparency=3),
        paletted({3: 0}),
        0,
    ),
    "png P, alpha": (
        save(palette(), format="png", transparency=bytes([255, 9, 200, 0])),
        paletted({1: 9, 2: 200, 3: 0}),
        1,
    ),
    "png I;16": (save(DEEP, format="png"), DEEP / 257, 1),
    "png I;16, transparent": (
        lambda path: png(path, DEEP, 0, struct.pack(">H", DEEP[3, 4])),
        np.where(DEEP == DEEP[3, 4], 255, DEEP / 257),
        1,
    ),
    "png 16-bit RGB": (lambda path: png(path, RGB * 257.0, 2), RGB, 0),
    "png 16-bit LA": (
        lambda path: png(path, np.dstack([GRAY, ALPHA]) * 257.0, 4),
        on_white(GRAY, ALPHA),
        1,
    ),
    "png 16-bit RGBA": (
        lambda path: png(path, np.dstack([RGB, ALPHA]) * 257.0, 6),
        on_white(RGB, ALPHA),
        1,
    ),
    "gif, two frames": (two_frames(format="gif"), None, 0),
    "gif, transparent": (save(palette(), format="gif", transparency=3), paletted({3: 0}), 0),
    "webp, two frames": (two_frames(format="webp", lossless=True), RGB, 0),
    "webp RGBA": (
        save(np.dstack([RGB, ALPHA]), format="webp", lossless=True, exact=True),
        on_white(RGB, ALPHA),
        1,
    ),
    "bmp RGB": (save(RGB, format="bmp"), RGB, 0),
    "tiff RGB": (save(RGB, format="tiff", compression="tiff_lzw"), RGB, 0),
    "tiff RGBA": (save(np.dstack([RGB, ALPHA]), format="tiff"), on_white(RGB, ALPHA), 1),
    "tiff I;16": (save(DEEP, format="tiff"), DEEP / 257, 1),
    "tiff I;16B": (save(DEEP.astype(">u2"), format="tiff"), DEEP / 257, 1),
    "tiff I": (save(DEEP.astype(np.int32), format="tiff"), DEEP / 257, 1),
    "tiff I, 32 bits": (
        save(DEEP.astype(np.int32) * 30_000 - 10**9, format="tiff"),
        (DEEP - 100) / (DEEP.max() - 100) * 255,
        1,
    ),
    "tiff F, 0-1": (save(np.float32(DEEP / 65535), format="tiff"), DEEP / 257, 1),
    "tiff F, 0-255": (save(np.float32(GRAY), format="tiff"), GRAY, 0),
    "tiff F, not numbers": (
        save(np.float32(np.where(DEEP % 5, DEEP / 65535, np.nan)), format="tiff"),
        np.where(DEEP % 5, DEEP / 257, 0),
        1,
    ),
    "tiff CMYK": (save(RGB, "CMYK", format="tiff"), RGB, 1),
    "tiff YCbCr": (save(RGB, "YCbCr", format="tiff"), RGB, 3),
    "tiff LAB": (save(RGB, "LAB", format="tiff"), RGB, 20),
    "ppm, 16 bits": (
        lambda path: path.write_bytes(b"P5 40 30 65535\n" + DEEP.astype(">u2").tobytes()),
        DEEP / 257,
        1,
    ),
    "jpeg L": (save(GRAY, format="jpeg", quality=98), GRAY, 12),
    "jpeg RGB": (save(RGB, format="jpeg", quality=98, subsampling=0), RGB, 12),
    "jpeg CMYK, as Adobe": (save(RGB, "CMYK", format="jpeg", quality=98), RGB, 20),
}


@pytest.mark.parametrize("case", FORMATS)
def test_every_format_and_mode_becomes_rgb_whatever_the_name(tmp_path, case):
    write, expected, tolerance = FORMATS[case]
    path = tmp_path / "written"
    write(path)
    if expected is None:  # GIF reduces colors: compare with a file of the first frame only
        Image.fromarray(RGB).save(tmp_path / "first", format="gif")
        with Image.open(tmp_path / "first") as first:
            expected = np.array(first.convert("RGB"))
    expected = np.broadcast_to(np.float64(expected).reshape(30, 40, -1), (30, 40, 3))
    for name in ("image.jpg", "image.png", "image.txt", "image"):
        image = utils.load_image(path.rename(tmp_path / name))
        path = tmp_path / name
        assert (image.mode, image.size) == ("RGB", (40, 30))
        difference = np.array(image, int) - expected.round()
        assert abs(difference).max() <= tolerance


@pytest.mark.parametrize("mode", ["HSV", "RGBX", "PA", "RGBa"])
def test_modes_that_only_some_formats_have_become_rgb(mode):
    image = palette() if mode == "PA" else Image.fromarray(RGB)
    expected = np.array(image.convert("RGB"), int)
    image = image.convert("RGBA").convert(mode) if mode == "RGBa" else image.convert(mode)
    difference = abs(np.array(decoding._to_srgb(image, {}, print), int) - expected)
    assert difference.max() <= (12 if mode == "HSV" else 0)


def test_an_image_with_damaged_metadata_is_decoded(tmp_path):
    draw(0, 1).save(tmp_path / "image.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\1" * 50)
    assert utils.load_image(tmp_path / "image.png").tobytes() == draw(0, 1).tobytes()


def test_a_very_long_image_does_not_exhaust_the_memory(tmp_path):
    """Its short side, 1 pixel, becomes 256; its long side would become 15 million."""
    resource = pytest.importorskip("resource", reason="this system cannot limit the memory")
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("this system does not report a process's memory")
    Image.new("L", (60_000, 1), 200).save(tmp_path / "line.png")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    try:
        view = utils.plain_view(utils.load_image(tmp_path / "line.png"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert view.shape == (3, 224, 224) and (view == 200).all()


@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 1), ("RGB", 6), ("L", 1), ("CMYK", 6)])
def test_a_large_jpeg_is_decoded_smaller_with_the_same_view(tmp_path, mode, orientation):
    large = draw(2, 7, 400, 340).resize((2400, 2040), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    large.save(tmp_path / "large.jpg", quality=95, exif=exif)
    image = utils.load_image(tmp_path / "large.jpg")
    assert sorted(image.size) == [2040 // 2, 2400 // 2]  # a quarter would be less than 512
    with Image.open(tmp_path / "large.jpg") as full:
        expected = utils.plain_view(ImageOps.exif_transpose(full).convert("RGB"))
    difference = utils.plain_view(image).astype(float) - expected
    assert np.abs(difference).mean() < 1  # of 255


def truncated(path):
    draw(0, 0).save(path)
    os.truncate(path, path.stat().st_size // 2)


def bomb(path):
    """Write a small file whose header declares 100,000 x 100,000 pixels."""
    draw(0, 0).save(path, format="png")
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])


# Files that are no images: a function that makes the file, and the reason in the error.
UNREADABLE = {
    "missing": (lambda path: None, "cannot read it: No such file or directory"),
    "too large": (bomb, "too large: .*decompression bomb"),
    "EPS": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n\n{}loop"),
        "cannot read it: EPS is a program, not an image",
    ),
    "pipe": (os.mkfifo, "not a file"),
    "folder": (lambda path: path.mkdir(), "not a file"),
    "circular link": (lambda path: path.symlink_to(path.name), "cannot read it: Too many levels"),
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("not an image"), "not an image"),
    "truncated": (truncated, "(cannot read it|damaged image): "),
}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_image_is_named_with_the_reason(tmp_path, case, suffix):
    make, reason = UNREADABLE[case]
    path = tmp_path / f"broken.{suffix}"
    make(path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {reason}"):
        utils.load_image(path)


@pytest.mark.parametrize("case", [case for case in FORMATS if "two frames" not in case])
def test_a_truncated_image_is_refused(tmp_path, case):
    write, path = FORMATS[case][0], tmp_path / "image"
    write(path)
    content = path.read_bytes()
    for size in range(0, len(content) * 3 // 4, len(content) // 12):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: "):
            utils.load_image(path)


def test_an_image_that_may_not_be_read_is_named(locked_folder):
    path = locked_folder / "mine.png"
    draw(0, 0).save(path)
    path.chmod(0)
    locked_folder.chmod(0o755)
    try:
        with pytest.raises(UserError, match="mine.png: cannot read it: Permission"), not_root():
            utils.load_image(path)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("size", "expected"), [((1200, 600), (512, 256)), ((300, 1024), (150, 512)), ((40, 30),) * 2]
)
def test_a_thumbnail_is_a_small_copy(size, expected):
    image = Image.new("RGB", size, "red")
    thumbnail = utils.thumbnail(image)
    assert (image.size, thumbnail.size) == (size, expected) and thumbnail is not image
    assert thumbnail.getpixel((5, 5)) == (255, 0, 0)


# ---------------------------------------------------------------- views


def matches_torchvision(image) -> bool:
    """Return whether the normalized plain view equals that of torchvision's preset, bit by bit."""
    views = utils.normalize(utils.plain_view(image)[None])
    return torch.equal(views[0], VGG16_Weights.IMAGENET1K_V1.transforms()(image))


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
def test_plain_views_of_drawn_images_equal_torchvisions(size):
    assert matches_torchvision(draw(2, 5, *size))


def test_plain_views_of_photographs_equal_torchvisions(flowers_dir):
    photographs = sorted((flowers_dir / "test").glob("*/*"))[::20]
    assert photographs
    for path in photographs:
        assert matches_torchvision(utils.load_image(path))


def test_means_and_standard_deviations_are_used():
    views = utils.plain_view(draw(1, 1))[None]
    means, stds = (0.1, 0.2, 0.3), (2.0, 4.0, 8.0)
    expected = torch.from_numpy(views) / 255 - torch.tensor(means).view(3, 1, 1)
    expected /= torch.tensor(stds).view(3, 1, 1)
    torch.testing.assert_close(utils.normalize(views, means, stds), expected)


def test_random_views_follow_from_their_seed_alone():
    image = draw(2, 3, 300, 200)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    view = utils.random_view(image, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert np.array_equal(utils.random_view(image, 1), view)
    views = np.stack([utils.random_view(image, seed) for seed in range(12)])
    assert views.shape == (12, 3, 224, 224) and views.dtype == np.uint8
    assert len(np.unique(views, axis=0)) == 12


@pytest.mark.parametrize("size", [(300, 200), (31, 224), (640, 427)])
def test_random_views_equal_torchvisions(size):
    image = draw(2, 5, *size)
    for seed in range(8):
        torch.manual_seed(seed)
        box = RandomResizedCrop.get_params(image, [0.5, 1], [3 / 4, 4 / 3])
        expected = F.resized_crop(image, *box, [96, 96])
        expected = F.hflip(expected) if torch.rand(1) < 0.5 else expected
        assert np.array_equal(utils.random_view(image, seed, 96), F.pil_to_tensor(expected))


def test_random_views_are_sometimes_mirrored():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, :, 0] = np.linspace(0, 255, 100)  # brighter to the right
    image = Image.fromarray(pixels)
    views = [utils.random_view(image, seed)[0] for seed in range(40)]
    mirrored = sum(bool(view[:, 0].mean() > view[:, -1].mean()) for view in views)
    assert 5 < mirrored < 35


def test_views_are_numbered(images):
    path = all_images(images)[0]
    views = load_views(images, path, [0, 1, 2])
    image = utils.load_image(images / path)
    assert np.array_equal(views[0], utils.plain_view(image))
    assert np.array_equal(views[1], views[0][:, :, ::-1])
    assert len(np.unique(views, axis=0)) == 3
    assert np.array_equal(load_views(images, path, [2])[0], views[2])


def test_views_have_the_size_that_is_asked_for(images):
    path = all_images(images)[0]
    views = load_views(images, path, [0, 1, 2], 96)
    image = utils.load_image(images / path, size=96)
    assert views.shape == (3, 3, 96, 96)
    assert np.array_equal(views[0], utils.plain_view(image, 96))
    large = torch.from_numpy(load_views(images, path, [2])[0])
    small = F.resize(large, [96, 96], antialias=True).float()
    assert (torch.from_numpy(views[2]) - small).abs().mean() < 8  # the same rectangle


def test_a_large_jpeg_is_decoded_for_the_size_of_its_views(tmp_path):
    draw(1, 3, 3200, 2400).save(tmp_path / "large.jpg")
    sizes = [min(utils.load_image(tmp_path / "large.jpg", size=s).size) for s in (64, 224, 448)]
    assert sizes[0] < sizes[1] < sizes[2]
    [view] = load_views(tmp_path, "large.jpg", [0], 448)
    assert np.array_equal(view, utils.load_plain_view(tmp_path / "large.jpg", 448))
    assert all(
        side >= 2 * utils.short_side(s) for side, s in zip(sizes, (64, 224, 448), strict=True)
    )


def test_random_views_follow_from_the_images_content(tmp_path):
    draw(2, 1).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    draw(2, 1).save(tmp_path / "other.png", optimize=True)  # equal pixels in other bytes
    names = ("a.png", "b.png", "other.png")
    first, copy, other = (load_views(tmp_path, name, [0, 2]) for name in names)
    assert np.array_equal(first, copy)
    assert np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


def test_views_are_decoded_from_the_bytes_that_were_digested(images, count_calls):
    path = all_images(images)[0]
    digest = digest_of_file(images / path)
    count_calls["open"].clear()
    utils.load_views(str(images), path, digest, [0, 1, 2])
    assert count_calls["open"][str(images / path)] == 1
    count_calls["open"].clear()
    utils.load_plain_view(images / path)
    assert count_calls["open"][str(images / path)] == 1


def test_views_of_other_content_than_expected_are_refused(images):
    path = all_images(images)[0]
    with pytest.raises(UserError, match=re.escape(f"{images}/{path}: has changed")):
        utils.load_views(str(images), path, "0" * 32, [0])
