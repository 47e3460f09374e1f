"""Files with random damage: each is read, or refused in one line that names it."""

import io
import zipfile

import pytest
import torch
from conftest import draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import model
import utils
from system.messages import UserError

# The same examples in every run, however busy the machine is.
common = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def damage(draw, content: bytes) -> bytes:
    """Generate `content` with a few bytes changed, inserted or removed."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content) - 1) | st.integers(0, min(99, len(content) - 1)))
        new = draw(st.binary(max_size=4) | st.sampled_from([b"\xff" * 4, bytes(4)]))
        content[start : start + draw(st.integers(0, 4))] = new
    return bytes(content)


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "a description"
IMAGES = [("jpeg", "CMYK"), ("png", "RGBA"), ("png", "P"), ("png", "I;16"), ("gif", "P")]
IMAGES += [("webp", "RGB"), ("tiff", "RGB"), ("tiff", "F"), ("jpeg2000", "RGB")]


@pytest.mark.parametrize(("kind", "mode"), IMAGES)
def test_any_image_file_is_decoded_or_refused(tmp_path, kind, mode):
    path, file = tmp_path / "image", io.BytesIO()
    draw(2, 1, 24, 18).convert(mode).save(file, kind, exif=EXIF, progressive=True)

    @settings(common, max_examples=60)
    @given(damage(file.getvalue()))
    def check(content):
        path.write_bytes(content)
        try:
            image = utils.load_image(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
        else:
            assert utils.plain_view(image).shape == (3, 224, 224)

    check()


def test_a_checkpoint_with_another_pickle_is_refused(checkpoint, tmp_path, capfd):
    """Its checksums are correct, as those of somebody who means harm."""
    path = tmp_path / "checkpoint"
    content = torch.load(checkpoint, weights_only=True) | {"state_dict": {"a": torch.ones(2)}}
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    [pickled] = [name for name in members if name.endswith("data.pkl")]

    @settings(common, max_examples=200)
    @given(damage(members[pickled]))
    def check(changed):
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, changed if name == pickled else member)
        with pytest.raises(UserError) as error:
            model.load_checkpoint(path)
        assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 1000

    check()
    assert capfd.readouterr().err == ""
