"""checks.corrections: --exclude and --corrections, and the tables and lists that they read."""

import os
import sys

import pytest

from checks.corrections import correct_labels, exclude_listed, read_rows
from image_files.digests import digest_of_file
from system.messages import UserError
from utils import list_images

# ---------------------------------------------------------------- tables and lists


@pytest.mark.parametrize(
    "text",
    [
        'finding,path\noutlier,"a, b/ü.jpg"\nseconds,\noutlier,c.jpg\n',
        "Path;finding\na, b/ü.jpg;outlier\nc.jpg;outlier\n",
        "finding\tpath\r\noutlier\ta, b/ü.jpg\r\noutlier\tc.jpg\r\n",
        "a, b/ü.jpg\r\n\r\nc.jpg",
        "a, b/ü.jpg\0c.jpg\0",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_paths_are_read_from_tables_of_spreadsheets_and_from_lists(tmp_path, text, encoding):
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    finding = "outlier" if "outlier" in text else ""
    rows = read_rows(tmp_path / "list.csv")
    assert [row["path"] for row in rows] == ["a, b/ü.jpg", "c.jpg"]
    assert [row.get("finding", "") for row in rows] == [finding, finding]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"\xfc.jpg", "save it as UTF-8"),
        (b"finding,path\nseconds,\n", "no path in it"),
        (b"\n \n", "no path in it"),
        (b"path,x\n" + b"a" * 200_000, "not a CSV file"),
        (b'path,x\na.jpg,"5 inch\nb.jpg,x\n', "not a CSV file: .*a quotation mark missing"),
    ],
)
def test_a_file_without_paths_is_a_users_error(tmp_path, content, words):
    if content is not None:
        (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_rows(tmp_path / "list.csv")


def test_rows_that_are_no_reason_to_leave_an_image_out_are_refused(tmp_path, images):
    path = tmp_path / "labels.csv"
    path.write_text("finding,path\nsuspect label,a.jpg\nmode,b.jpg\nlong,c.jpg\nmode,d.jpg\n")
    with pytest.raises(UserError, match="no reason to leave .*: 2 mode, 1 long; delete these rows"):
        exclude_listed(list_images(images), path)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_an_image_of_a_linked_category_is_found_by_any_of_its_paths(
    own_images, tmp_path, monkeypatch
):
    train = own_images / "train"
    (train / "b").rename(tmp_path / "disk")
    (train / "b").symlink_to("../../disk")
    (train / "c").symlink_to("../../disk")
    monkeypatch.chdir(tmp_path)
    paths = {
        "train/b/train_0.jpg": ["train/b/train_0.jpg"],
        f"{own_images.name}/train/a/train_0.jpg": ["train/a/train_0.jpg"],
        str(train / "c" / "train_1.jpg"): ["train/b/train_1.jpg", "train/c/train_1.jpg"],
        "disk/train_0.jpg": ["train/b/train_0.jpg", "train/c/train_0.jpg"],
    }
    for path, expected in paths.items():
        (tmp_path / "list.txt").write_text(path)
        data = list_images(own_images)
        left = exclude_listed(data, "list.txt").all_paths()
        assert [name for name in data.all_paths() if name not in left] == expected


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reads no CSV with a NUL")
def test_a_path_with_a_nul_is_of_no_image(own_images, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path\ntrain/a/train_0.jpg\ntr\0ain/x.jpg\n")
    left = exclude_listed(list_images(own_images), str(tmp_path / "list.csv"))
    assert "train/a/train_0.jpg" not in left.all_paths()
    assert "1 row names no image of" in capsys.readouterr().err


# ---------------------------------------------------------------- corrections


def correct(root, tmp_path, text):
    """Apply a table to a data folder; returns split, category and path of its images."""
    table = tmp_path / "corrections.csv"
    table.write_text(text)
    data = correct_labels(list_images(root), [str(table)])
    return data, [(image.category, image.path) for image in data.images]


def test_images_get_another_label_or_are_left_out_and_no_file_moves(own_images, tmp_path, capsys):
    before = sorted(path for path in own_images.rglob("*"))
    digest = digest_of_file(own_images / "train/a/train_0.jpg")
    text = (
        "path,action,category,digest\n"
        f"train/a/train_0.jpg,relabel,b,{digest}\n"
        f"{own_images}/train/b/train_1.jpg,exclude,,\n"
        "train/b/train_0.jpg,keep,,of another file\n"
    )
    data, images = correct(own_images, tmp_path, text)
    assert images == [
        ("a", "train/a/train_1.jpg"),
        ("b", "train/a/train_0.jpg"),
        ("b", "train/b/train_0.jpg"),
        ("a", "valid/a/valid_0.jpg"),
        ("b", "valid/b/valid_0.jpg"),
        ("a", "test/a/test_0.jpg"),
        ("b", "test/b/test_0.jpg"),
    ]
    assert data.labels("train") == [0, 1, 1]
    assert "1 image gets another label, 1 is left out, 1 is confirmed" in capsys.readouterr().out
    assert before == sorted(path for path in own_images.rglob("*"))


def test_labels_may_come_from_a_table_alone(own_images, tmp_path, capsys):
    text = "path,category\ntrain/a/train_0.jpg,c\ntrain/a/train_1.jpg,b\nvalid/a/valid_0.jpg,b\n"
    data, _ = correct(own_images, tmp_path, text + "test/a/test_0.jpg,c\n")
    assert data.categories == {"train": ["b", "c"], "valid": ["b"], "test": ["b", "c"]}
    assert "categories without a folder: c" in (lines := capsys.readouterr().out)
    assert "categories without images now: a" in lines


def test_a_label_that_an_image_has_is_confirmed(own_images, tmp_path, capsys):
    rows = "train/a/train_0.jpg,relabel,a\ntrain/b/train_0.jpg,relabel,b\n"
    rows += "train/b/train_1.jpg,exclude,b\n"
    data, _ = correct(own_images, tmp_path, f"path,action,category\n{rows}")
    assert data.labels("train") == [0, 0, 1]
    line = "0 images get another label, 1 is left out, 2 are confirmed"
    assert line in capsys.readouterr().out


def test_a_table_of_findings_is_no_table_of_corrections(own_images, tmp_path):
    text = "finding,category,path\nsuspect label,a,train/a/train_0.jpg\n"
    with pytest.raises(UserError, match="a table of findings, .* corrections.csv .* --exclude"):
        correct(own_images, tmp_path, text)


def test_a_new_category_is_printed_on_one_line(own_images, tmp_path, capsys):
    rows = "\n".join(f'train/a/train_{n}.jpg,"\x1b[31mred\nx"' for n in (0, 1))
    data, _ = correct(own_images, tmp_path, f"path,category\n{rows}\nvalid/a/valid_0.jpg,b\n")
    assert data.categories["train"] == ["\x1b[31mred\nx", "b"]
    assert (
        "\n--corrections: categories without a folder: \\x1b[31mred x\n" in capsys.readouterr().out
    )


def test_a_later_file_replaces_what_an_earlier_one_says_and_its_keep_confirms_it(
    own_images, tmp_path
):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    rows = "train/a/train_0.jpg,relabel,b\ntrain/a/train_1.jpg,relabel,b\n"
    first.write_text(f"path,action,category\n{rows}train/b/train_0.jpg,keep,\n")
    rows = "train/a/train_0.jpg,keep,\ntrain/a/train_1.jpg,exclude,\n"
    second.write_text(f"path,action,category\n{rows}train/b/train_0.jpg,relabel,a\n")
    data = correct_labels(list_images(own_images), [str(first), str(second)])
    labels = {image.path: image.category for image in data.images if image.split == "train"}
    assert labels == {
        "train/a/train_0.jpg": "b",
        "train/b/train_0.jpg": "a",
        "train/b/train_1.jpg": "b",
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("train/a/train_0.jpg,relabel,,", "'' is not a category"),
        ("train/a/train_0.jpg,relabel,../b,", "'../b' is not a category"),
        ("train/a/train_0.jpg,delete,,", "action 'delete' is not keep, exclude or relabel"),
        (
            "train/a/train_0.jpg,exclude,,0123",
            "the content of 1 image has changed since .*: train/a/train_0.jpg",
        ),
        ("train/a/train_0.jpg,keep,,\ntrain/a/train_0.jpg,exclude,,", "two rows say different"),
        ("train/a/gone.jpg,exclude,,", "has no image of"),
    ],
)
def test_a_row_that_is_not_clear_is_an_error(own_images, tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        correct(own_images, tmp_path, f"path,action,category,digest\n{row}\n")
