"""Generated command lines and files: each works, or is refused in one line."""

import io
import zipfile

import pytest
import tiny_train
import torch
from conftest import assert_error, draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import model
import predict
import train
import utils
from system.messages import UserError

# The same examples in every run, however busy the machine is.
common = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

# ---------------------------------------------------------------- command lines

FLAGS = {
    "train.py": sorted(set(train.parse_arguments(["--data_dir", "d"]).__dict__) - {"download"}),
    "predict.py": sorted(predict.parse_arguments(["--input", "i", "--checkpoint", "c"]).__dict__),
}
REQUIRED = {
    "train.py": ["--data_dir=folder", "--output_cat=3"],
    "predict.py": ["--input=file", "--checkpoint=file"],
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
def test_any_command_line_is_accepted_or_refused_in_one_line(call, script, tmp_path, monkeypatch):
    """Without --download, which would use the network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("neither an image nor a checkpoint")
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
            words = [*REQUIRED[script], *words]  # of a flag that is repeated, the last one counts
        done = call(script, *words)
        if done.returncode:
            assert_error(done)
        else:
            assert "usage: " in done.stdout and not done.stderr

    check()


# ---------------------------------------------------------------- files


@st.composite
def damage(draw, content: bytes) -> bytes:
    """Generate `content` with a few bytes changed, inserted or removed, or truncated."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(content) - 1) | st.integers(0, min(99, len(content) - 1)))
        new = draw(st.binary(max_size=4) | st.sampled_from([b"\xff" * 4, bytes(4)]))
        content[start : start + draw(st.integers(0, 4))] = new
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


def encode(format: str, mode: str = "RGB", **options) -> bytes:
    """Return an image as the bytes of a file."""
    file = io.BytesIO()
    draw(2, 1, 24, 18).convert(mode).save(file, format=format, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "a description"
IMAGES = {
    "jpeg": encode("jpeg", exif=EXIF),
    "jpeg, progressive": encode("jpeg", "CMYK", progressive=True),
    "png": encode("png", "RGBA", exif=EXIF),
    "png P": encode("png", "P", transparency=b"\1\2\3"),
    "png I;16": encode("png", "I;16"),
    "gif": encode("gif", save_all=True, append_images=[draw(1, 1, 24, 18)], transparency=1),
    "webp": encode("webp", exif=EXIF),
    "bmp": encode("bmp"),
    "tiff": encode("tiff", exif=EXIF),
    "tiff, packed": encode("tiff", "RGBA", compression="tiff_lzw"),
    "tiff F": encode("tiff", "F"),
    "ico": encode("ico"),
    "tga": encode("tga", rle=True),
    "ppm": encode("ppm"),
    "jpeg 2000": encode("jpeg2000"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_any_image_file_is_decoded_or_refused(tmp_path, kind):
    path = tmp_path / "image"

    @settings(common, max_examples=60)
    @given(damage(IMAGES[kind]))
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


def checkpoint_bytes(**options) -> bytes:
    """Return the file of a checkpoint whose tensors are too small, which is noticed last."""
    content = {"format_version": model.FORMAT_VERSION, "arch": "tiny", "hidden_units": 2}
    content |= {"num_outputs": 3, "dropout": 0.5, "class_to_idx": {"a": 0, "b": 1}}
    content["names"] = {"a": "rose", "b": "ひ"}
    content |= {"means": utils.MEANS, "stds": utils.STDS}
    content |= model.program_settings("vgg16", utils.CROP)
    content["feature_layers"] = list(tiny_train.FEATURE_LAYERS)
    content |= {"temperature": 1.5, "epoch": 1, "metrics": {"loss": 0.5}, "arguments": {"x": None}}
    content["state_dict"] = {"head.mean": torch.zeros(3), "backbone.features.0.bias": torch.ones(2)}
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def repack(pickled: bytes) -> bytes:
    """Return CHECKPOINT with another pickle in it, and correct checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(CHECKPOINT)) as archive, zipfile.ZipFile(file, "w") as new:
        for name in archive.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else archive.read(name))
    return file.getvalue()


CHECKPOINT = checkpoint_bytes()
with zipfile.ZipFile(io.BytesIO(CHECKPOINT)) as archive:
    [PICKLED] = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
CHECKPOINTS = {
    "archive": damage(CHECKPOINT),
    "pickle": damage(PICKLED).map(repack),
    "old": damage(checkpoint_bytes(_use_new_zipfile_serialization=False)),
    "random": st.binary(max_size=200),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused(tiny, tmp_path, kind, capfd):
    path, backbone = tmp_path / "checkpoint", model.Backbone(tiny)

    @settings(common, max_examples=300)
    @given(CHECKPOINTS[kind])
    def check(content):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            model.load_checkpoint(path)
        assert str(error.value).startswith(f"{path}: ")
        with pytest.raises(UserError) as error:
            model.load_weights(backbone, tiny, str(path))
        assert str(error.value).startswith(f"{path}: ")

    check()
    assert capfd.readouterr().err == ""


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(),
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(), values, max_size=4)
        | st.tuples(values, values)
    ),
    max_leaves=6,
)


def test_any_values_in_a_checkpoint_are_refused_with_the_reason(tiny, tmp_path):
    path = tmp_path / "checkpoint"
    content = torch.load(io.BytesIO(CHECKPOINT), weights_only=True)
    path.write_bytes(CHECKPOINT)
    with pytest.raises(UserError, match="no tensor"):
        model.load_checkpoint(path)

    @settings(common, max_examples=300)
    @given(st.dictionaries(st.sampled_from(list(content)), PLAIN, min_size=1, max_size=3))
    def check(changes):
        torch.save(content | changes, path)
        with pytest.raises(UserError) as error:
            model.load_checkpoint(path)
        assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 1000

    check()
