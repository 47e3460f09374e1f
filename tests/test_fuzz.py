"""Whatever is typed, and whatever is in a file: it works, or one line says why not."""

import io
import zipfile

import pytest
import torch
from conftest import assert_error, draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import model
import predict
import train
import utils
from utils import UserError

# The same examples in every run. 2 seconds are no hang: the first one may import something.
common = settings(
    derandomize=True,
    database=None,
    deadline=2000,
    suppress_health_check=list(HealthCheck),
)

# ---------------------------------------------------------------- command lines

FLAGS = {
    "train.py": sorted(set(train.parse_arguments(["--data_dir", "d"]).__dict__) - {"download"}),
    "predict.py": sorted(
        predict.parse_arguments(["--input", "i", "--checkpoint", "c"]).__dict__,
    ),
}
LETTERS = st.characters(blacklist_characters="\0/", codec=None)
WORDS = st.one_of(
    st.sampled_from(
        ["", "-", "--", "0", "-1", "1", "3", "9" * 30, "nan", "1e400", "inf", "[1,2,3]", "0.5"]
        + ["[0.1,", "0.2,", "0.3]", "cpu", "vgg13", "none", "float32", "\n", "\udcff", "folder"]
        + ["file", "ａ", "=", "-h", "٣"]
    ),
    st.text(LETTERS, max_size=8),
    st.floats().map(str),
    st.integers().map(str),
)


@pytest.mark.parametrize("script", FLAGS)
def test_any_arguments_are_taken_or_refused_in_one_line(call, script, tmp_path, monkeypatch):
    """No --download: it would look for a network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no picture, no checkpoint")
    (tmp_path / "folder").mkdir()
    flag = st.sampled_from([f"--{name}" for name in FLAGS[script]])
    groups = st.lists(
        st.tuples(flag, WORDS).map(list) | st.lists(WORDS, max_size=2) | flag.map(lambda f: [f]),
        max_size=6,
    )

    @settings(common, max_examples=300)
    @given(groups, st.booleans())
    def check(groups, complete):
        words = [word for group in groups for word in group]
        if complete:
            given = {"train.py": "--data_dir=folder", "predict.py": "--input=file"}[script]
            also = "--output_cat=3" if script == "train.py" else "--checkpoint=file"
            words = [given, also, *words]  # what comes later counts
        done = call(script, *words)
        if done.returncode:
            assert_error(done)
        else:
            assert "usage: " in done.stdout and not done.stderr

    check()


# ---------------------------------------------------------------- files


@st.composite
def damage(draw, content: bytes) -> bytes:
    """A file with some bytes changed, put in or left out, or with its end cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, len(content) - 1) | st.integers(0, min(99, len(content) - 1)))
        new = draw(st.binary(max_size=4) | st.sampled_from([b"\xff" * 4, bytes(4)]))
        content[place : place + draw(st.integers(0, 4))] = new
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


def written(format: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    draw(2, 1, 24, 18).convert(mode).save(file, format=format, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "a description"
PICTURES = {
    "jpeg": written("jpeg", exif=EXIF),
    "jpeg, progressive": written("jpeg", "CMYK", progressive=True),
    "png": written("png", "RGBA", exif=EXIF),
    "png P": written("png", "P", transparency=b"\1\2\3"),
    "png I;16": written("png", "I;16"),
    "gif": written("gif", save_all=True, append_images=[draw(1, 1, 24, 18)], transparency=1),
    "webp": written("webp", exif=EXIF),
    "bmp": written("bmp"),
    "tiff": written("tiff", exif=EXIF),
    "tiff, packed": written("tiff", "RGBA", compression="tiff_lzw"),
    "tiff F": written("tiff", "F"),
    "ico": written("ico"),
    "tga": written("tga", rle=True),
    "ppm": written("ppm"),
    "jpeg 2000": written("jpeg2000"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_any_picture_is_read_or_refused(tmp_path, kind):
    path = tmp_path / "picture"

    @settings(common, max_examples=60)
    @given(damage(PICTURES[kind]))
    def check(content):
        path.write_bytes(content)
        try:
            image = utils.load_image(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
        else:
            assert image.mode == "RGB"
            assert utils.plain_view(image).shape == (3, 224, 224)

    check()


def checkpoint(**options) -> bytes:
    """A checkpoint whose tensors are too small: what is wrong with it shows last."""
    content = {"format_version": model.FORMAT_VERSION, "arch": "vgg13", "hidden_units": 2}
    content |= {"num_outputs": 3, "dropout": 0.5, "class_to_idx": {"a": 0, "b": 1}}
    content |= {"means": utils.MEANS, "stds": utils.STDS, "image_size": utils.CROP}
    content |= {"temperature": 1.5, "epoch": 1, "metrics": {"loss": 0.5}, "arguments": {"x": None}}
    content["state_dict"] = {"head.mean": torch.zeros(3), "backbone.features.0.bias": torch.ones(2)}
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def repack(pickled: bytes) -> bytes:
    """The checkpoint with another pickle in it, and right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive, zipfile.ZipFile(file, "w") as new:
        for name in archive.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else archive.read(name))
    return file.getvalue()


WHOLE = checkpoint()
with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
    [PICKLED] = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
CHECKPOINTS = {
    "archive": damage(WHOLE),
    "pickle": damage(PICKLED).map(repack),
    "old": damage(checkpoint(_use_new_zipfile_serialization=False)),
    "random": st.binary(max_size=200),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_any_checkpoint_is_refused(tmp_path, kind, capfd):
    path = tmp_path / "checkpoint"

    @settings(common, max_examples=300)
    @given(CHECKPOINTS[kind])
    def check(content):
        path.write_bytes(content)
        for load in (model.load_checkpoint, lambda p: model.load_weights(VGG, "vgg13", str(p))):
            with pytest.raises(UserError) as error:
                load(path)
            assert str(error.value).startswith(f"{path}: ")

    check()
    assert capfd.readouterr().err == ""


VGG = model.Backbone("vgg13")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(),
    lambda some: (
        st.lists(some, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(), some, max_size=4)
        | st.tuples(some, some)
    ),
    max_leaves=6,
)


def test_any_values_in_a_checkpoint_are_taken_or_refused(tmp_path):
    path = tmp_path / "checkpoint"
    whole = torch.load(io.BytesIO(WHOLE), weights_only=True)

    @settings(common, max_examples=300)
    @given(st.dictionaries(st.sampled_from(list(whole)), PLAIN, min_size=1, max_size=3))
    def check(changes):
        torch.save(whole | changes, path)
        with pytest.raises(UserError) as error:
            model.load_checkpoint(path)
        assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 1000

    check()
