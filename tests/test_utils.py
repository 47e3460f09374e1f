"""utils: the data folder, pictures and their views, what a user types."""

import hashlib
import json
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch
from conftest import CATEGORIES, ROOT, all_pictures, draw, not_root
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


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    red = Image.new("RGB", (30, 20), (255, 0, 0))
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    if mode == "I;16":
        Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(path)
    else:
        red.convert(mode).save(path, **({"transparency": 0} if mode == "P" else {}))
    image = utils.load_image(path)
    assert (image.mode, image.size) == ("RGB", (30, 20))
    if mode in ("RGB", "RGBA", "P", "CMYK"):
        pixel = np.array(image.getpixel((15, 10)), int)
        assert abs(pixel - (255, 0, 0)).max() <= 3


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


BROKEN_PICTURES = {
    "missing": lambda path: None,
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
    with pytest.raises(UserError, match=str(path)):
        utils.load_image(path)


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
