"""checks.findings: lines and tables of what was noticed, and reading paths from tables."""

import csv

import pytest

from checks.findings import (
    Finding,
    compare,
    find_copies,
    print_findings,
    read_paths,
    write_findings,
)
from system.messages import UserError
from utils import ImageFile

# ---------------------------------------------------------------- findings


def test_each_kind_has_a_line_with_the_first_ones(capsys):
    findings = [Finding("long", "train", "a", f"train/a/{i}.jpg", "900 x 20") for i in range(7)]
    findings.insert(1, Finding("empty category", "train", "b\nc", detail="no image"))
    print_findings(findings)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "empty category: 1: train/b c (no image)"
    assert second.startswith("long: 7: train/a/0.jpg (900 x 20), train/a/1.jpg (900 x 20), ")
    assert second.count("900 x 20") == 5 and second.endswith(", ...")


def test_findings_are_grouped_by_their_cause_the_worst_first(capsys):
    findings = [Finding("duplicate", path=f"{i}.jpg", detail=f"copy {i}") for i in range(13)]
    findings += [
        Finding("unreadable", path="a.heic", detail="an HEIC image"),
        Finding("duplicate", path="x.jpg", detail="in another split: y.jpg"),
        Finding("unreadable", path="b.jpg", detail="empty"),
        Finding("duplicate", path="z.jpg", detail="in another category: y.jpg"),
        Finding("unreadable", path="c.heic", detail="an HEIC image"),
    ]
    print_findings(findings)
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [
        "unreadable, an HEIC image: 2: a.heic, c.heic",
        "unreadable, empty: 1: b.jpg",
        "duplicate in another category: 1: z.jpg (y.jpg)",
        "duplicate in another split: 1: x.jpg (y.jpg)",
    ]
    assert last.startswith("duplicate: 13: 0.jpg (copy 0)")


def test_a_table_has_what_a_finding_has(tmp_path):
    suspect = Finding("suspect label", "train", "a", "a, b.jpg", "text", 3, 0.0, "b", 0.75)
    write_findings(tmp_path / "table.csv", [suspect, Finding("seconds", detail="12")])
    with open(tmp_path / "table.csv", newline="") as file:
        header, first, second = csv.reader(file)
    assert tuple(header) == Finding._fields
    assert first[:6] == ["suspect label", "train", "a", "a, b.jpg", "text", "3"]
    assert first[6:] == ["0.000000", "b", "0.750000", "", "", ""]
    assert second == ["seconds", "", "", "", "12", *[""] * 7]


def test_a_similar_file_is_in_the_same_place_or_in_another():
    image = ImageFile("train", "a", "y")
    assert compare(image, ImageFile("train", "a", "x")) == "x"
    assert compare(image, ImageFile("test", "b", "x")) == "in another split and category: x"


def test_copies_are_found_by_their_digest():
    v, w, x, y, z = (
        ImageFile("train", "a", path, digest)
        for path, digest in [("v", "1"), ("w", "2"), ("x", "1"), ("y", "1"), ("z", "")]
    )  # z cannot be read
    assert list(find_copies([v, w, x, y, z, z])) == [(x, v), (y, v)]


# ---------------------------------------------------------------- paths


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
    assert read_paths(tmp_path / "list.csv") == {"a, b/ü.jpg": finding, "c.jpg": finding}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"\xfc.jpg", "save it as UTF-8"),
        (b"finding,path\nseconds,\n", "no path in it"),
        (b"\n \n", "no path in it"),
        (b"path,x\n" + b"a" * 200_000, "not a CSV file"),
    ],
)
def test_a_file_without_paths_is_a_users_error(tmp_path, content, words):
    if content is not None:
        (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_paths(tmp_path / "list.csv")


def test_rows_that_are_no_reason_to_leave_an_image_out_are_refused(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("finding,path\nsuspect label,a.jpg\nmode,b.jpg\nlong,c.jpg\nmode,d.jpg\n")
    with pytest.raises(UserError, match="no reason to leave .*: 2 mode, 1 long; delete these rows"):
        read_paths(path)
