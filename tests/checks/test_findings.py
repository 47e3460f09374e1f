"""checks.findings: lines and tables of what was noticed."""

import csv

from checks.findings import (
    Finding,
    compare,
    find_copies,
    print_findings,
    write_findings,
)
from utils import ImageFile

# ---------------------------------------------------------------- findings


def test_each_kind_has_a_line_with_the_first_ones(capsys):
    findings = [Finding("long", "train", "a", f"train/a/{i}.jpg", "900 x 20") for i in range(7)]
    findings.insert(1, Finding("empty category", "train", "b\nc", detail="no image"))
    print_findings(findings)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "empty category (1): train/b c (no image)"
    assert second.startswith("long (7): train/a/0.jpg (900 x 20), train/a/1.jpg (900 x 20), ")
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
        "unreadable, an HEIC image (2): a.heic, c.heic",
        "unreadable, empty (1): b.jpg",
        "duplicate in another category (1): z.jpg (y.jpg)",
        "duplicate in another split (1): x.jpg (y.jpg)",
    ]
    assert last.startswith("duplicate (13): 0.jpg (copy 0)")


def test_a_table_has_what_a_finding_has(tmp_path):
    suspect = Finding("suspect label", "train", "a", "a, b.jpg", "text", 3, 0.0, "b", 0.75)
    write_findings(tmp_path / "table.csv", [suspect, Finding("seconds", detail="12")])
    with open(tmp_path / "table.csv", newline="") as file:
        header, first, second = csv.reader(file)
    assert tuple(header) == Finding._fields
    assert first[:6] == ["suspect label", "train", "a", "a, b.jpg", "text", "3"]
    assert first[6:] == ["0.000000", "b", "0.750000", *[""] * 5]
    assert second == ["seconds", "", "", "", "12", *[""] * 9]


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
