"""utils: the data folder, pictures and their views, what a user types."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import CATEGORIES, ROOT, all_pictures, draw, not_root
from PIL import Image
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
    "no split": (lambda root: shutil.rmtree(root / "valid"), ["valid", "no such folder"]),
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
