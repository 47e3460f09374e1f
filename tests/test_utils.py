"""utils: the data folder, pictures and their views, what a user types."""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zlib

import numpy as np
import pytest
import torch
from conftest import CATEGORIES, LONG, ROOT, all_pictures, draw, make_pictures, not_root
from PIL import Image, ImageOps
from scipy.io import savemat
from torchvision.datasets import Flowers102
from torchvision.models import VGG16_Weights

import predict
import train
import utils
from utils import UserError

# ---------------------------------------------------------------- the data folder


def test_categories_are_numbered_in_string_order_in_every_split(pictures):
    data = utils.read_data_folder(pictures)
    assert data.class_to_idx == {"1": 0, "10": 1, "2": 2, "x y": 3}
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        assert data.labels[split] == [index for index in range(4) for _ in range(count)]
        folders = [path.split("/")[:2] for path in data.paths[split]]
        assert folders == [[split, CATEGORIES[index]] for index in data.labels[split]]
        assert all((pictures / path).is_file() for path in data.paths[split])


def test_a_category_that_valid_lacks_keeps_its_number_and_is_warned_of(own_pictures, capsys):
    shutil.rmtree(own_pictures / "valid" / "a")
    data = utils.read_data_folder(own_pictures)
    assert data.class_to_idx == {"a": 0, "b": 1}
    assert data.labels["valid"] == [1]
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and "valid" in warning and warning.endswith(": a")


def test_hidden_files_and_folders_are_ignored(own_pictures):
    before = utils.read_data_folder(own_pictures)
    (own_pictures / "train" / ".ipynb_checkpoints").mkdir()
    (own_pictures / "train" / "a" / ".DS_Store").touch()
    (own_pictures / "train" / "a" / "folder").mkdir()
    (own_pictures / "valid" / "notes.txt").touch()
    assert utils.read_data_folder(own_pictures) == before


ODD_NAMES = ["Gänseblümchen ひ", "two  blanks ", "line\nbreak", "\x1b[31mred", "-rf", "'\"$(x)`,;"]
ODD_NAMES.append(os.fsdecode(b"no text \xff\xfe"))


def test_any_name_is_a_name(own_pictures, capsys):
    for name in ODD_NAMES:
        (own_pictures / "train" / name).mkdir()
        draw(0, 1).save(own_pictures / "train" / name / f"{name}.png")
    data = utils.read_data_folder(own_pictures)
    assert list(data.class_to_idx) == sorted(["a", "b", *ODD_NAMES])
    assert {f"train/{name}/{name}.png" for name in ODD_NAMES} < set(data.paths["train"])
    for path in data.paths["train"]:
        assert utils.load_views(str(own_pictures), path, [0, 1]).shape == (2, 3, 224, 224)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("lacks 7 categories" in line for line in lines)
    assert "line break" in lines[0] and "\\x1b[31mred" in lines[0]


def test_links_that_lead_nowhere_or_in_a_circle_are_named(own_pictures):
    folder = own_pictures / "train" / "a"
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "nowhere.jpg").symlink_to("nothing")
    (folder / "up").symlink_to("..")
    (own_pictures / "train" / "circle").symlink_to("circle")
    (folder / "good.jpg").symlink_to("train_0.jpg")
    data = utils.read_data_folder(own_pictures)
    assert list(data.class_to_idx) == ["a", "b"]
    failures = utils.foresee(data)
    assert set(failures) == {"train/a/circle.jpg", "train/a/nowhere.jpg"}
    assert all(f"{own_pictures}/{path}: " in why for path, why in failures.items())
    assert utils.leave_out(data, failures).paths["train"] == [
        f"train/{name}.jpg"
        for name in ("a/good", "a/train_0", "a/train_1", "b/train_0", "b/train_1")
    ]


def test_a_hundred_thousand_files_are_listed_in_seconds(own_pictures):
    for number in range(100_000):
        os.close(os.open(own_pictures / "train" / "a" / f"{number}.jpg", os.O_CREAT | os.O_WRONLY))
    start = time.monotonic()
    data = utils.read_data_folder(own_pictures)
    failures = utils.foresee(data)
    assert time.monotonic() - start < 5
    assert len(data.paths["train"]) == 100_004 and len(failures) == 100_000
    shutil.rmtree(own_pictures)


# ---------------------------------------------------------------- what is known before


def test_pictures_of_train_in_other_splits_are_named(own_pictures, capsys):
    shutil.copy(own_pictures / "train" / "a" / "train_0.jpg", own_pictures / "test" / "b" / "x.jpg")
    shutil.copy(own_pictures / "valid" / "a" / "valid_0.jpg", own_pictures / "test" / "b" / "y.jpg")
    size = (own_pictures / "train" / "b" / "train_1.jpg").stat().st_size
    (own_pictures / "valid" / "b" / "as large.jpg").write_bytes(bytes(size))
    assert utils.foresee(utils.read_data_folder(own_pictures)) == {}
    [warning] = capsys.readouterr().err.splitlines()
    assert "1 pictures of valid or test are in train" in warning
    assert warning.endswith("test/b/x.jpg (train/a/train_0.jpg)")


def test_files_are_read_only_where_another_split_has_one_as_large(locked_folder):
    locked_folder.chmod(0o755)
    root = make_pictures(locked_folder / "pictures", ("a",), 1, 1, 1)
    for split, name, size in (("train", "one", 9), ("train", "two", 7), ("valid", "as two", 7)):
        path = root / split / "a" / name
        path.write_bytes(bytes(size))
        path.chmod(0)
    data = utils.read_data_folder(root)
    with not_root():
        failures = utils.foresee(data)
    shutil.rmtree(root)
    assert set(failures) == {"train/a/two", "valid/a/as two"}
    assert all("Permission denied" in why for why in failures.values())


def test_what_is_no_picture_by_its_size_or_kind_is_known_before(own_pictures, capsys):
    (own_pictures / "test" / "a" / "empty.jpg").touch()
    os.mkfifo(own_pictures / "test" / "a" / "pipe.jpg")
    data = utils.read_data_folder(own_pictures)
    failures = utils.foresee(data)
    assert set(failures) == {"test/a/empty.jpg", "test/a/pipe.jpg"}
    left = utils.leave_out(data, failures)
    assert (left.paths["test"], left.labels["test"]) == (
        ["test/a/test_0.jpg", "test/b/test_0.jpg"],
        [0, 1],
    )
    assert left.paths["train"] == data.paths["train"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("left out" in line for line in lines)
    with pytest.raises(UserError, match="empty.jpg: empty"):
        utils.leave_out(data, failures, strict=True)


@pytest.mark.parametrize(("split", "word"), [("train", "train/b: none"), ("valid", "valid: none")])
def test_nothing_left_is_an_error(own_pictures, split, word):
    data = utils.read_data_folder(own_pictures)
    failures = {p: f"{p}: bad" for p in data.paths[split] if split == "valid" or "/b/" in p}
    with pytest.raises(UserError, match=word):
        utils.leave_out(data, failures)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


BROKEN_FOLDERS = {
    "no folder": (lambda root: shutil.rmtree(root), ["own pictures", "no such folder"]),
    "no train": (lambda root: shutil.rmtree(root / "train"), ["train", "no such folder"]),
    "two names": (
        lambda root: shutil.copytree(root / "valid", root / "val"),
        ["valid", "val", "keep one"],
    ),
    "nothing": (lambda root: empty(root), ["own pictures", "no category folders"]),
    "empty split": (lambda root: empty(root / "test"), ["test", "no category folders"]),
    "empty category": (lambda root: empty(root / "train" / "b"), ["b", "no picture"]),
    "no pictures in valid": (
        lambda root: (empty(root / "valid" / "a"), empty(root / "valid" / "b")),
        ["valid", "no pictures"],
    ),
    "unknown category": (
        lambda root: (root / "test" / "b").rename(root / "test" / "rose"),
        ["'rose'", "test"],
    ),
}


@pytest.mark.parametrize("case", BROKEN_FOLDERS)
def test_a_data_folder_that_lacks_something_is_named(own_pictures, case):
    spoil, words = BROKEN_FOLDERS[case]
    spoil(own_pictures)
    with pytest.raises(UserError) as error:
        utils.read_data_folder(own_pictures)
    assert all(word in str(error.value) for word in words)


def test_a_data_folder_that_may_not_be_read_is_a_users_error(locked_folder):
    for path in (locked_folder, locked_folder / "flowers"):
        with pytest.raises(UserError, match="locked"), not_root():
            utils.read_data_folder(path)


# ---------------------------------------------------------------- without splits


@pytest.fixture
def unsplit(tmp_path):
    """A folder of two categories, "b" and "train station", of 60 pictures each, without splits."""
    for kind, category in enumerate(("b", "train station")):
        folder = tmp_path / "unsplit" / category
        folder.mkdir(parents=True)
        for number in range(60):
            draw(kind, number, 12, 10).save(folder / f"{number}.png")
    return tmp_path / "unsplit"


def place_of(data: utils.DataFolder) -> dict[str, str]:
    """The split of each picture."""
    return {path: split for split, paths in data.paths.items() for path in paths}


def test_a_folder_without_splits_is_split_by_content(unsplit, capsys):
    before = sorted(unsplit.rglob("*"))
    data = utils.read_data_folder(unsplit)
    [warning] = capsys.readouterr().err.splitlines()
    places = place_of(data)
    assert len(places) == 120 and data.class_to_idx == {"b": 0, "train station": 1}
    for split, low, high in (("train", 80, 112), ("valid", 4, 24), ("test", 4, 24)):
        assert low <= len(data.paths[split]) <= high
        assert f"{len(data.paths[split])} {split}" in warning
        assert {path.split("/")[0] for path in data.paths[split]} == set(data.class_to_idx)
        classes = [data.class_to_idx[path.split("/")[0]] for path in data.paths[split]]
        assert data.labels[split] == classes
    assert sorted(unsplit.rglob("*")) == before
    assert place_of(utils.read_data_folder(unsplit)) == places


def test_pictures_that_come_go_or_are_renamed_move_no_other(unsplit):
    before = place_of(utils.read_data_folder(unsplit))
    for number in range(100, 130):
        draw(2, number, 12, 10).save(unsplit / "b" / f"0{number}.png")
    (unsplit / "b" / "3.png").unlink()
    (unsplit / "b" / "4.png").rename(unsplit / "b" / "zzz.png")
    after = place_of(utils.read_data_folder(unsplit))
    assert after["b/zzz.png"] == before["b/4.png"]
    kept = before.keys() - {"b/3.png", "b/4.png"}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}


def test_the_same_picture_is_in_one_split_only(unsplit):
    for path in list(unsplit.glob("b/*.png")):
        shutil.copy(path, unsplit / "train station" / f"copy of {path.name}")
    places = place_of(utils.read_data_folder(unsplit))
    copies = [path for path in places if "copy of" in path]
    assert len(copies) == 60
    for path in copies:
        assert places[path] == places["b/" + path.rsplit(" ")[-1]]


@pytest.mark.parametrize("missing", [["valid"], ["test"], ["valid", "test"]])
def test_a_split_that_is_missing_is_taken_out_of_train(unsplit, missing, tmp_path, capsys):
    root = tmp_path / "flowers"
    shutil.copytree(unsplit, root / "train")
    for split in {"valid", "test"} - set(missing):
        shutil.copytree(unsplit, root / split)
    data = utils.read_data_folder(root)
    assert " or ".join(missing) in capsys.readouterr().err
    assert all(path.startswith("train/") for split in missing for path in data.paths[split])
    assert all(data.paths[split] for split in utils.SPLITS)
    whole = utils.read_data_folder(unsplit)
    for split in missing:
        assert data.paths[split] == [f"train/{path}" for path in whole.paths[split]]
    rest = 120 - sum(len(data.paths[split]) for split in missing)
    assert len(data.paths["train"]) == rest


@pytest.mark.parametrize("name", ["val", "validation"])
def test_valid_has_other_names(own_pictures, name):
    labels = utils.read_data_folder(own_pictures).labels
    (own_pictures / "valid").rename(own_pictures / name)
    data = utils.read_data_folder(own_pictures)
    assert data.labels == labels
    assert [path.split("/")[0] for path in data.paths["valid"]] == [name, name]


# ---------------------------------------------------------------- Oxford-102


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in the form of Oxford's, where a user may put it; 3 categories.

    torchvision's checksums and address are replaced by the archive's and by one that is closed.
    """
    folder = tmp_path / "oxford-102.download" / "flowers-102"
    folder.mkdir(parents=True)
    labels = np.array([1] * 20 + [2] * 14 + [3] * 6)
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as tar:
        for number, label in enumerate(labels, 1):
            path = tmp_path / f"image_{number:05d}.jpg"
            draw(label, number, 20, 16).save(path)
            tar.add(path, f"jpg/{path.name}")
    savemat(folder / "imagelabels.mat", {"labels": labels[None]})
    ids = {"trnid": [1, 21, 35], "valid": [2, 22, 36]}
    ids["tstid"] = [n for n in range(1, 41) if n not in ids["trnid"] + ids["valid"]]
    savemat(folder / "setid.mat", {name: np.array([numbers]) for name, numbers in ids.items()})
    files = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    sums = {k: (n, hashlib.md5((folder / n).read_bytes()).hexdigest()) for k, n in files.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", sums)
    monkeypatch.setattr(Flowers102, "_download_url_prefix", "http://127.0.0.1:9/")
    return folder


def test_oxford_102_is_laid_out_by_label(archive, tmp_path):
    utils.download_flowers(tmp_path / "flowers", "official")
    data = utils.read_data_folder(tmp_path / "flowers")
    assert data.class_to_idx == {"1": 0, "2": 1, "3": 2}
    assert data.paths["train"] == [
        f"train/{c}/image_{n:05d}.jpg" for c, n in [(1, 1), (2, 21), (3, 35)]
    ]
    assert data.paths["valid"] == [
        f"valid/{c}/image_{n:05d}.jpg" for c, n in [(1, 2), (2, 22), (3, 36)]
    ]
    assert len(data.paths["test"]) == 34
    for label, number in ((0, 7), (1, 30), (2, 40)):
        path = f"test/{label + 1}/image_{number:05d}.jpg"
        assert data.labels["test"][data.paths["test"].index(path)] == label
        wanted = (tmp_path / f"image_{number:05d}.jpg").read_bytes()
        assert (tmp_path / "flowers" / path).read_bytes() == wanted
    assert not (tmp_path / "flowers.partial").exists()


def test_the_course_split_is_a_tenth_of_each_category(archive, tmp_path):
    utils.download_flowers(tmp_path / "flowers")
    data = utils.read_data_folder(tmp_path / "flowers")
    counts = {split: np.bincount(labels).tolist() for split, labels in data.labels.items()}
    assert counts == {"train": [16, 12, 4], "valid": [2, 1, 1], "test": [2, 1, 1]}
    shutil.rmtree(tmp_path / "flowers")
    utils.download_flowers(tmp_path / "flowers")
    assert utils.read_data_folder(tmp_path / "flowers") == data


def test_a_download_that_was_interrupted_goes_on(archive, tmp_path, capsys):
    (tmp_path / "flowers.partial" / "train" / "99").mkdir(parents=True)  # from a laying-out
    (archive / "setid.mat").rename(archive / "later")
    with pytest.raises(UserError, match="flowers-102"):
        utils.download_flowers(tmp_path / "flowers")
    assert not (tmp_path / "flowers").exists()
    (archive / "later").rename(archive / "setid.mat")
    (archive / "jpg" / "image_00007.jpg").unlink()  # from an unpacking that did not end
    (archive / "jpg" / "image_00008.jpg").write_bytes(b"half")
    utils.download_flowers(tmp_path / "flowers")
    laid_out = all_pictures(tmp_path / "flowers")
    assert len(laid_out) == 40
    for path in laid_out:
        wanted = (tmp_path / path.rsplit("/")[-1]).read_bytes()
        assert (tmp_path / "flowers" / path).read_bytes() == wanted
    assert not (tmp_path / "flowers" / "train" / "99").exists()


def test_the_command_line_downloads_and_trains(archive, call, tmp_path):
    flags = ("--data_dir", f"{tmp_path / 'flowers'}/", "--output_cat", 3, "--download")
    flags += ("--weights", "none", "--views", 1, "--epochs", 1, "--workers", 0, "--no_cache")
    done = call("train.py", *flags, "--save_dir", tmp_path / "c.pth")
    assert done.returncode == 0, done.stderr
    assert re.search(r"train +32 pictures +3 categories", done.stdout)
    assert (tmp_path / "c.pth").is_file()
    assert sorted(os.listdir(tmp_path / "flowers")) == ["test", "train", "valid"]


def test_a_folder_that_is_there_is_left_alone(own_pictures, capsys):
    before = all_pictures(own_pictures)
    utils.download_flowers(own_pictures)
    assert all_pictures(own_pictures) == before
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_without_a_network_the_error_says_where_the_archive_goes(archive, tmp_path, damage):
    path = archive / "102flowers.tgz"
    path.unlink() if damage == "missing" else os.truncate(path, 100)
    with pytest.raises(UserError) as error:
        utils.download_flowers(tmp_path / "flowers")
    assert str(archive) in str(error.value) and "https://www.robots.ox.ac.uk" in str(error.value)
    assert not (tmp_path / "flowers").exists()


# ---------------------------------------------------------------- a look at the data


def test_an_inspection_finds_what_may_spoil_a_training(own_pictures):
    train = own_pictures / "train"
    (train / "a" / "broken.jpg").write_text("no picture")
    shutil.copy(train / "a" / "train_0.jpg", train / "b" / "twice.jpg")
    shutil.copy(train / "b" / "train_1.jpg", own_pictures / "test" / "b" / "leak.jpg")
    draw(0, 7, 900, 250).save(train / "a" / "long.png")
    draw(1, 8, 300, 250).convert("L").save(train / "a" / "grey.png")
    (train / "lily").mkdir()
    (own_pictures / "valid" / "rose").mkdir()
    draw(2, 9, 300, 250).save(own_pictures / "valid" / "rose" / "fine.png")
    found = utils.list_pictures(own_pictures)
    seen = utils.inspect_pictures(str(own_pictures), found)
    assert {f[:3]: f.detail for f in seen if f.finding == "pictures"} == {
        ("pictures", "train", "a"): "5",
        ("pictures", "train", "b"): "3",
        ("pictures", "train", "lily"): "0",
        ("pictures", "valid", "a"): "1",
        ("pictures", "valid", "b"): "1",
        ("pictures", "valid", "rose"): "1",
        ("pictures", "test", "a"): "1",
        ("pictures", "test", "b"): "2",
    }
    others = [f for f in seen if f.finding != "pictures" and f.finding != "below 224 pixels"]
    assert {(f.finding, f.split, f.category, f.path.rsplit("/")[-1]) for f in others} == {
        ("unknown category", "valid", "rose", ""),
        ("empty category", "train", "lily", ""),
        ("unreadable", "train", "a", "broken.jpg"),
        ("same picture", "train", "b", "twice.jpg"),
        ("same picture", "test", "b", "leak.jpg"),
        ("long", "train", "a", "long.png"),
        ("mode", "train", "a", "grey.png"),
    }
    details = {f.path.rsplit("/")[-1]: f.detail for f in others}
    assert details["twice.jpg"] == "train/a/train_0.jpg"
    assert details["leak.jpg"] == "in another split: train/b/train_1.jpg"
    assert details["broken.jpg"].startswith("not a picture")
    assert (details["long.png"], details["grey.png"]) == ("900 x 250", "L")
    small = {f.path for f in seen if f.finding == "below 224 pixels"}
    assert small == {p for p in all_pictures(own_pictures) if not p.endswith("broken.jpg")}


# ---------------------------------------------------------------- pictures


def test_a_picture_is_turned_upright(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = pixels[:, 30:, 2] = 255  # red on the left, blue on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left belongs at the top
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = utils.load_image(tmp_path / "turned.png")
    assert image.size == (40, 60)
    assert image.getpixel((20, 10)) == (255, 0, 0)
    assert image.getpixel((20, 50)) == (0, 0, 255)


# What each number of EXIF says (its standard, tag 0x0112), as steps from upright to stored: mirror
# left and right, then turn to the left so many times by a quarter.
ORIENTATIONS = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 1), 7: (1, 3)}
ORIENTATIONS[8] = (0, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("number", ORIENTATIONS)
def test_every_orientation_is_turned_upright(tmp_path, number, suffix):
    upright = np.array(draw(2, 7, 64, 48).resize((192, 144), Image.Resampling.BICUBIC))
    mirror, turns = ORIENTATIONS[number]
    stored = np.rot90(upright[:, ::-1] if mirror else upright, turns)
    exif = Image.Exif()
    exif[0x0112] = number
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options.get(suffix, {}))
    found = np.array(utils.load_image(path), int)
    assert found.shape == upright.shape
    difference = abs(found - upright)
    assert difference.max() <= (40 if suffix == "jpg" else 0) and difference.mean() < 2


RGB = np.array(draw(2, 3, 40, 30))
GREY = RGB[..., 1]
DEEP = (np.arange(1200).reshape(30, 40) * 54 + 100).astype(np.uint16)  # 100 to 64,846
ALPHA = np.linspace(0, 255, 1200).astype(np.uint8).reshape(30, 40)


def white_behind(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


def png(path, pixels: np.ndarray, colour_type: int, transparent: bytes = b"") -> None:
    """Write 16 bits a channel, which Pillow does for grey alone."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    for name, body in ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", data), (b"IEND", b"")):
        if body or name == b"IEND":
            checksum = zlib.crc32(name + body)
            content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)
    path.write_bytes(content)


def save(pixels, mode=None, **options):
    """A function that saves pixels (or an image) in a format."""

    def into(path):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(path, **options)

    return into


def palette() -> Image.Image:
    return Image.fromarray(RGB).quantize(16)


def paletted(transparent: dict[int, int]) -> np.ndarray:
    """What `palette()` looks like, its entries with this alpha, on white."""
    image = palette()
    alpha = np.full(256, 255, np.uint8)
    alpha[list(transparent)] = list(transparent.values())
    return white_behind(np.array(image.convert("RGB")), alpha[np.array(image)])


def two_frames(**options):
    other = Image.fromarray(255 - RGB)
    return save(RGB, save_all=True, append_images=[other], **options)


KINDS = {  # format and mode: how it is written, how it should look, by how much it may differ
    "png RGB": (save(RGB, format="png"), RGB, 0),
    "png L": (save(GREY, format="png"), GREY, 0),
    "png L, transparent": (
        save(GREY, format="png", transparency=int(GREY[0, 0])),
        np.where(GREY == GREY[0, 0], 255, GREY),
        0,
    ),
    "png 1": (save(GREY > 128, format="png"), (GREY > 128) * 255, 0),
    "png LA": (
        save(np.dstack([GREY, ALPHA]), format="png"),
        white_behind(GREY, ALPHA),
        1,
    ),
    "png RGBA": (save(np.dstack([RGB, ALPHA]), format="png"), white_behind(RGB, ALPHA), 1),
    "png P": (save(palette(), format="png"), paletted({}), 0),
    "png P, one transparent": (save(palette(), format="png", transparency=3), paletted({3: 0}), 0),
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
        lambda path: png(path, np.dstack([GREY, ALPHA]) * 257.0, 4),
        white_behind(GREY, ALPHA),
        1,
    ),
    "png 16-bit RGBA": (
        lambda path: png(path, np.dstack([RGB, ALPHA]) * 257.0, 6),
        white_behind(RGB, ALPHA),
        1,
    ),
    "gif, two frames": (two_frames(format="gif"), None, 0),
    "gif, transparent": (save(palette(), format="gif", transparency=3), paletted({3: 0}), 0),
    "webp, two frames": (two_frames(format="webp", lossless=True), RGB, 0),
    "webp RGBA": (
        save(np.dstack([RGB, ALPHA]), format="webp", lossless=True, exact=True),
        white_behind(RGB, ALPHA),
        1,
    ),
    "bmp RGB": (save(RGB, format="bmp"), RGB, 0),
    "tiff RGB": (save(RGB, format="tiff", compression="tiff_lzw"), RGB, 0),
    "tiff RGBA": (save(np.dstack([RGB, ALPHA]), format="tiff"), white_behind(RGB, ALPHA), 1),
    "tiff I;16": (save(DEEP, format="tiff"), DEEP / 257, 1),
    "tiff I;16B": (save(DEEP.astype(">u2"), format="tiff"), DEEP / 257, 1),
    "tiff I": (save(DEEP.astype(np.int32), format="tiff"), DEEP / 257, 1),
    "tiff I, 32 bits": (
        save(DEEP.astype(np.int32) * 30_000 - 10**9, format="tiff"),
        (DEEP - 100) / (DEEP.max() - 100) * 255,
        1,
    ),
    "tiff F, 0-1": (save(np.float32(DEEP / 65535), format="tiff"), DEEP / 257, 1),
    "tiff F, 0-255": (save(np.float32(GREY), format="tiff"), GREY, 0),
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
    "jpeg L": (save(GREY, format="jpeg", quality=98), GREY, 12),
    "jpeg RGB": (save(RGB, format="jpeg", quality=98, subsampling=0), RGB, 12),
    "jpeg CMYK, as Adobe": (save(RGB, "CMYK", format="jpeg", quality=98), RGB, 20),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_becomes_rgb_whatever_it_is_called(tmp_path, kind):
    write, expected, tolerance = KINDS[kind]
    path = tmp_path / "written"
    write(path)
    if expected is None:  # colours were reduced: what it looks like without other frames
        Image.fromarray(RGB).save(tmp_path / "one", format="gif")
        with Image.open(tmp_path / "one") as one:
            expected = np.array(one.convert("RGB"))
    expected = np.broadcast_to(np.float64(expected).reshape(30, 40, -1), (30, 40, 3))
    for name in ("picture.jpg", "picture.png", "picture.txt", "picture"):
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
    difference = abs(np.array(utils._to_rgb(image), int) - expected)
    assert difference.max() <= (12 if mode == "HSV" else 0)


def test_metadata_that_is_broken_spoils_no_picture(tmp_path):
    draw(0, 1).save(tmp_path / "odd.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\1" * 50)
    assert utils.load_image(tmp_path / "odd.png").tobytes() == draw(0, 1).tobytes()


def test_a_line_of_a_picture_does_not_fill_the_memory(tmp_path):
    """Its short side, 1 pixel, becomes 256; its long side would become 15 million."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("this system does not tell how much memory a process has")
    Image.new("L", (60_000, 1), 200).save(tmp_path / "line.png")
    program = """
import resource, sys, utils
with open("/proc/self/statm") as file:
    limit = int(file.read().split()[0]) * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
view = utils.plain_view(utils.load_image(sys.argv[1]))
assert view.shape == (3, 224, 224) and (view == 200).all()
"""
    command = [sys.executable, "-c", program, tmp_path / "line.png"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_decoded_smaller_with_the_same_view(tmp_path, mode, turned):
    large = draw(2, 7, 400, 340).resize((2400, 2040), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turned
    large.save(tmp_path / "large.jpg", quality=95, exif=exif)
    image = utils.load_image(tmp_path / "large.jpg")
    assert sorted(image.size) == [2040 // 2, 2400 // 2]  # a quarter would be less than 512
    with Image.open(tmp_path / "large.jpg") as whole:
        expected = utils.plain_view(ImageOps.exif_transpose(whole).convert("RGB"))
    difference = utils.plain_view(image).float() - expected.float()
    assert difference.abs().mean() < 1  # of 255


def cut_off(path):
    draw(0, 0).save(path)
    os.truncate(path, path.stat().st_size // 2)


def bomb(path):
    """A small file that says to be 100,000 pixels high and wide."""
    draw(0, 0).save(path, format="png")
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])


BROKEN_PICTURES = {
    "missing": lambda path: None,
    "too large": bomb,
    "EPS": lambda path: path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n\n{}loop"
    ),
    "not a file": lambda path: os.mkfifo(path),
    "it": lambda path: path.symlink_to(path.name),
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("no picture at all"),
    "cut off": cut_off,
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("case", BROKEN_PICTURES)
def test_a_file_that_is_no_picture_is_named(tmp_path, case, suffix):
    path = tmp_path / f"broken.{suffix}"
    BROKEN_PICTURES[case](path)
    with pytest.raises(UserError, match=str(path)) as error:
        utils.load_image(path)
    assert case in str(error.value) or case in ("missing", "text", "cut off", "folder")


@pytest.mark.parametrize("kind", [k for k in KINDS if "two frames" not in k])
def test_a_picture_that_lost_its_end_is_refused(tmp_path, kind):
    write, path = KINDS[kind][0], tmp_path / "whole"
    write(path)
    content = path.read_bytes()
    for left in range(0, len(content) * 3 // 4, len(content) // 12):
        (tmp_path / "cut").write_bytes(content[:left])
        with pytest.raises(UserError, match="cut: "):
            utils.load_image(tmp_path / "cut")


def test_a_picture_that_may_not_be_read_is_named(locked_folder):
    draw(0, 0).save(locked_folder / "mine.png")
    (locked_folder / "mine.png").chmod(0)
    locked_folder.chmod(0o755)
    with pytest.raises(UserError, match="mine.png: cannot read it: Permission"), not_root():
        utils.load_image(locked_folder / "mine.png")
    (locked_folder / "mine.png").unlink()


def transforms_like_torchvision(image):
    views = utils.normalize(utils.plain_view(image)[None])
    return torch.equal(views[0], VGG16_Weights.IMAGENET1K_V1.transforms()(image))


@pytest.mark.parametrize("size", [(100, 90), (640, 427), (300, 811), (257, 256), (224, 31)])
def test_plain_views_are_torchvisions_on_made_pictures(size):
    assert transforms_like_torchvision(draw(2, 5, *size))


def test_plain_views_are_torchvisions_on_photographs(flowers_dir):
    photographs = sorted((flowers_dir / "test").glob("*/*"))[::20]
    assert photographs
    for path in photographs:
        assert transforms_like_torchvision(utils.load_image(path))


def test_means_and_deviations_are_used():
    views = utils.plain_view(draw(1, 1))[None]
    other = utils.normalize(views, (0.1, 0.2, 0.3), (2.0, 4.0, 8.0))
    wanted = (views / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [2.0, 4.0, 8.0]
    ).view(3, 1, 1)
    torch.testing.assert_close(other, wanted)


def test_random_views_follow_from_their_seed_alone():
    image = draw(2, 3, 300, 200)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    view = utils.random_view(image, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(utils.random_view(image, 1), view)
    views = torch.stack([utils.random_view(image, seed) for seed in range(12)])
    assert views.shape == (12, 3, 224, 224) and views.dtype == torch.uint8
    assert len(views.unique(dim=0)) == 12


def test_random_views_are_sometimes_mirrored():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, :, 0] = np.linspace(0, 255, 100)  # brighter to the right
    image = Image.fromarray(pixels)
    views = [utils.random_view(image, seed)[0].float() for seed in range(40)]
    mirrored = sum(bool(view[:, 0].mean() > view[:, -1].mean()) for view in views)
    assert 5 < mirrored < 35


def test_views_are_numbered(pictures):
    path = all_pictures(pictures)[0]
    views = utils.load_views(str(pictures), path, [0, 1, 2])
    image = utils.load_image(pictures / path)
    assert torch.equal(views[0], utils.plain_view(image))
    assert len(views.unique(dim=0)) == 3
    assert torch.equal(utils.load_views(str(pictures), path, [2])[0], views[2])


def test_what_a_random_view_shows_follows_from_the_pictures_path(tmp_path):
    draw(2, 1).save(tmp_path / "one.png")
    draw(2, 1).save(tmp_path / "other.png")
    one, other = (
        utils.load_views(str(tmp_path), f"{name}.png", [0, 1]) for name in ("one", "other")
    )
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


# ---------------------------------------------------------------- category names


def test_oxfords_names_are_in_oxfords_order():
    names = utils.load_category_names(ROOT / "cat_to_name.json")
    assert names == {str(number): name for number, name in enumerate(Flowers102.classes, 1)}


BROKEN_NAMES = {
    "missing": None,
    "no json": "{1: rose",
    "list": '["rose"]',
    "numbers": '{"1": 1}',
    "binary": b"\xff\xfe\x00",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", BROKEN_NAMES)
def test_names_that_cannot_be_used_are_a_users_error(tmp_path, case):
    content, path = BROKEN_NAMES[case], tmp_path / "names.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=str(path)):
        utils.load_category_names(path)


def test_names_may_be_of_any_language(tmp_path):
    names = {"1": "Gänseblümchen", "2": "ひまわり"}
    (tmp_path / "names.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    assert utils.load_category_names(tmp_path / "names.json") == names


# ---------------------------------------------------------------- device and command line


def test_gpu_without_a_gpu_is_a_users_error():
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="--device"):
        utils.select_device("gpu")


def test_cpu_is_the_cpu():
    assert utils.select_device("cpu") == torch.device("cpu")


def test_precision_is_the_one_that_is_named():
    cpu = torch.device("cpu")
    assert utils.select_precision(cpu, "float32") == torch.float32
    assert utils.select_precision(cpu, "bfloat16") == torch.bfloat16
    assert utils.select_precision(cpu) in (torch.float32, torch.bfloat16)


SCRIPTS = {
    "train": (train.parse_arguments, ["--data_dir", "d", "--output_cat", "3"]),
    "predict": (predict.parse_arguments, ["--input", "i.jpg", "--checkpoint", "c.pth"]),
}
SPELLINGS = [
    ["--F", "[0.4,", "0.5,", "0.6]"],  # unquoted, as a shell splits it
    ["--F", "[0.4, 0.5, 0.6]"],
    ["--F", "[0.4,0.5,0.6]"],
    ["--F", "0.4,0.5,0.6"],
    ["--F", "0.4, 0.5, 0.6"],
    ["--F", "0.4", "0.5", "0.6"],
    ["--F", "0.4 0.5 0.6"],
    ["--F", "[0.4", "0.5", "0.6]"],
    ["--F", "(0.4 0.5 0.6)"],
    ["--F=[0.4,", "0.5,", "0.6]"],
    ["--F=0.4,0.5,0.6"],
    ["--F", "4e-1", ".5", "+0.60"],
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["means", "stds"])
@pytest.mark.parametrize("words", SPELLINGS, ids=" ".join)
def test_three_numbers_in_every_spelling(script, flag, words):
    parse, required = SCRIPTS[script]
    words = [word.replace("--F", f"--{flag}") for word in words]
    for arguments in (required + words, words + required):
        args = parse(arguments)
        assert list(getattr(args, flag)) == [0.4, 0.5, 0.6]


@pytest.mark.parametrize("words", [["-0.4", "-0.5", "0.6"], ["[-0.4,", "-0.5,", "0.6]"]])
def test_means_may_be_negative(words):
    for parse, required in SCRIPTS.values():
        assert list(parse([*required, "--means", *words]).means) == [-0.4, -0.5, 0.6]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--means", ["nan", "0.5", "0.5"]),
        ("--means", ["0.5", "inf", "0.5"]),
        ("--means", ["0.5,0.5"]),
        ("--means", ["0.1", "0.2", "0.3", "0.4"]),
        ("--means", ["a,b,c"]),
        ("--means", [""]),
        ("--means", []),
        ("--stds", ["0.5", "0", "0.5"]),
        ("--stds", ["0.5", "-0.1", "0.5"]),
        ("--stds", ["0.5", "0.5", "nan"]),
    ],
)
def test_wrong_triples_are_errors_that_name_the_flag(script, flag, words):
    parse, required = SCRIPTS[script]
    with pytest.raises(UserError, match=flag):
        parse([*required, flag, *words])


def test_flags_are_not_abbreviated():
    with pytest.raises(UserError, match="--epoch"):
        train.parse_arguments(["--data_dir", "d", "--output_cat", "3", "--epoch", "2"])


def test_a_stopped_script_leaves_one_line(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        utils.run_script(main, "train.py")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "train.py: stopped\n"


def test_an_error_of_several_lines_becomes_one(capsys):
    def main():
        raise UserError("one\n\n   two")

    with pytest.raises(SystemExit) as stop:
        utils.run_script(main, "train.py")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "train.py: error: one two\n"
