"""image_files.oxford102: the download of Oxford-102 and its two splits, from a small archive."""

import functools
import hashlib
import os
import re
import shutil
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import all_images, draw
from scipy.io import savemat
from torchvision.datasets import Flowers102

import utils
from image_files.oxford102 import download_oxford102
from system.messages import UserError

LABELS = [1] * 20 + [2] * 14 + [3] * 6  # of the images 1 to 40
OFFICIAL = {"train": [1, 21, 35], "valid": [2, 22, 36]}  # numbers of images
OFFICIAL["test"] = sorted(set(range(1, 41)) - {*OFFICIAL["train"], *OFFICIAL["valid"]})


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in the format of Oxford's, where a user may put it.

    torchvision's checksums and address are replaced by the archive's and by one that is closed.
    """
    folder = tmp_path / "oxford-102.download" / "flowers-102"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as tar:
        for number, label in enumerate(LABELS, 1):
            path = tmp_path / f"image_{number:05d}.jpg"
            draw(label, number, 20, 16).save(path)
            tar.add(path, f"jpg/{path.name}")
    savemat(folder / "imagelabels.mat", {"labels": np.array([LABELS])})
    names = {"train": "trnid", "valid": "valid", "test": "tstid"}
    ids = {names[split]: np.array([numbers]) for split, numbers in OFFICIAL.items()}
    savemat(folder / "setid.mat", ids)
    files = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    sums = {k: (n, hashlib.md5((folder / n).read_bytes()).hexdigest()) for k, n in files.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", sums)
    monkeypatch.setattr(Flowers102, "_download_url_prefix", "http://127.0.0.1:9/")
    return folder


def assert_all_images(root) -> None:
    """Assert that a data folder has the archive's 40 images with the content of the originals."""
    paths = all_images(root)
    assert len(paths) == 40
    for path in paths:
        original = root.parent / path.rsplit("/")[-1]
        assert (root / path).read_bytes() == original.read_bytes()


def test_the_official_split_is_linked_by_label(archive, tmp_path):
    download_oxford102(tmp_path / "flowers", "official")
    data = utils.read_data_folder(tmp_path / "flowers")
    for split, numbers in OFFICIAL.items():
        expected = [f"{split}/{LABELS[n - 1]}/image_{n:05d}.jpg" for n in numbers]
        assert data.paths(split) == expected
    assert_all_images(tmp_path / "flowers")
    assert not (archive.parent / "linked").exists()


def test_the_course_split_is_a_tenth_of_each_category(archive, tmp_path):
    download_oxford102(tmp_path / "flowers")
    data = utils.read_data_folder(tmp_path / "flowers")
    counts = {split: np.bincount(data.labels(split)).tolist() for split in utils.SPLITS}
    assert counts == {"train": [16, 12, 4], "valid": [2, 1, 1], "test": [2, 1, 1]}
    shutil.rmtree(tmp_path / "flowers")
    download_oxford102(tmp_path / "flowers")
    assert utils.read_data_folder(tmp_path / "flowers") == data


def test_an_interrupted_download_names_the_folder_and_is_continued(archive, tmp_path):
    linked = tmp_path / "oxford-102.download" / "linked"
    (linked / "train" / "99").mkdir(parents=True)  # from interrupted linking
    mine = tmp_path / "flowers.partial"
    mine.mkdir()
    (archive / "setid.mat").rename(archive / "later")
    with pytest.raises(UserError, match=f"{archive}$") as error:
        download_oxford102(tmp_path / "flowers")
    assert "https://www.robots.ox.ac.uk" in str(error.value)
    assert not (tmp_path / "flowers").exists()
    (archive / "later").rename(archive / "setid.mat")
    (archive / "jpg" / "image_00007.jpg").unlink()  # from interrupted unpacking
    (archive / "jpg" / "image_00008.jpg").write_bytes(b"incomplete")
    download_oxford102(tmp_path / "flowers")
    assert_all_images(tmp_path / "flowers")
    assert not (tmp_path / "flowers" / "train" / "99").exists() and mine.exists()


def test_a_file_system_without_links_gets_copies(archive, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    download_oxford102(tmp_path / "flowers")
    assert_all_images(tmp_path / "flowers")


def test_a_folder_that_cannot_be_written_is_named(archive, tmp_path):
    (tmp_path / "oxford-102.download" / "linked").touch()
    reason = f"^{re.escape(str(tmp_path / 'flowers'))}: cannot write Oxford-102: [A-Z]"
    with pytest.raises(UserError, match=reason):
        download_oxford102(tmp_path / "flowers")


def test_the_command_line_downloads_and_trains(archive, tiny, call, tmp_path):
    flags = ("--data_dir", f"{tmp_path / 'flowers'}/", "--output_cat", 3, "--download")
    flags += ("--arch", tiny, "--weights", "none", "--epochs", 1, "--workers", 0, "--no_cache")
    done = call("train.py", *flags, "--no_report", "--save_dir", tmp_path / "c.pth")
    assert done.returncode == 0, done.stderr
    assert re.search(r"train +32 images +3 categories", done.stdout)
    assert (tmp_path / "c.pth").is_file()
    assert sorted(os.listdir(tmp_path / "flowers")) == ["test", "train", "valid"]


def test_an_existing_folder_is_not_changed(own_images, capsys):
    before = all_images(own_images)
    download_oxford102(own_images)
    assert all_images(own_images) == before
    assert sorted(os.listdir(own_images.parent)) == [own_images.name]
    assert capsys.readouterr().out == f"{own_images} exists already: nothing to download\n"


def test_a_truncated_archive_is_downloaded_again(archive, tmp_path, monkeypatch):
    server = shutil.copytree(archive, tmp_path / "server")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=server)
    path = archive / "102flowers.tgz"
    path.write_bytes(path.read_bytes()[:-100])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(Flowers102, "_download_url_prefix", url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        download_oxford102(tmp_path / "flowers")
        server.shutdown()
    assert_all_images(tmp_path / "flowers")
