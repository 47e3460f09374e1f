"""image_files/names.py: files of names in any encoding, and names that are equal or look alike."""

import json

import pytest
from conftest import ROOT
from torchvision.datasets import Flowers102

from image_files.names import (
    CATEGORY_NAMES,
    display_names,
    load_names,
    look_alikes,
    name_categories,
    same_names,
)
from system.messages import UserError

NAMES = {"1": "pink primrose", "2": "Füßli", "ä": "日本"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_are_read_in_every_encoding_of_unicode(tmp_path, encoding):
    (tmp_path / "n.json").write_text(json.dumps(NAMES, ensure_ascii=False), encoding=encoding)
    assert load_names(tmp_path / "n.json") == NAMES


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"1": 5}', ["'1'", "5", "not a string"]),
        ('{"1": "é"}'.encode("latin-1"), ["encoding", "UTF-8"]),
        (b"[1]", ["JSON object"]),
        (b"{", ["not a JSON file"]),
        (b"", ["empty"]),
        (b"[" * 100000, ["not a JSON file"]),
    ],
)
def test_what_is_no_object_of_strings_is_refused_by_its_key(tmp_path, content, words):
    (tmp_path / "n.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_names(tmp_path / "n.json")
    for word in ["n.json", *words]:
        assert word in str(error.value)


def test_a_key_that_occurs_twice_is_reported(tmp_path, capsys):
    (tmp_path / "n.json").write_text('{"1": "a", "2": "b", "1": "c"}')
    assert load_names(tmp_path / "n.json") == {"1": "c", "2": "b"}
    assert "more than one name for 1" in capsys.readouterr().err


def test_blank_names_are_left_out(tmp_path):
    (tmp_path / "n.json").write_text('{"1": "", "2": "b", "3": " "}')
    assert load_names(tmp_path / "n.json") == {"2": "b"}


def test_a_surrogate_without_a_partner_is_replaced(tmp_path):
    (tmp_path / "n.json").write_text(r'{"1": "a\ud800b", "2": "\ud83c\udf3b"}')
    names = load_names(tmp_path / "n.json")
    assert names == {"1": "a\ufffdb", "2": "\U0001f33b"}
    "".join(names.values()).encode()


def test_equal_names_are_followed_by_their_category():
    names = {"1": "rose", "2": "rose", "3": "lily"}
    assert display_names(["1", "2", "3", "4"], names) == ["rose (1)", "rose (2)", "lily", "4"]
    assert same_names(names) == {"rose": ["1", "2"]}


@pytest.mark.parametrize(
    ("texts", "difference"),
    [
        (["rose", "Rose"], "upper and lower case"),
        (["rose", "rose "], "blanks"),
        (["red rose", "redrose", "red  rose"], "blanks"),
        (["caf\u00e9", "cafe\u0301"], "the encoding of accents"),
    ],
)
def test_names_that_look_alike_are_found_with_their_difference(texts, difference):
    [(group, found)] = look_alikes(["lily", *texts, "lilac"])
    assert group == [text for text in texts if text != "redrose"]
    assert found == difference


def test_oxfords_names_are_in_oxfords_order():
    names = load_names(ROOT / CATEGORY_NAMES)
    assert names == {str(number): name for number, name in enumerate(Flowers102.classes, 1)}


def test_categories_have_the_names_of_the_working_folders_file_as_far_as_it_has_them(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert name_categories(["1", "2"], None) == {"1": "1", "2": "2"}
    assert capsys.readouterr() == ("names: those of the folders\n", "")
    (tmp_path / CATEGORY_NAMES).write_text('{"1": "rose", "9": "lily"}')
    assert name_categories(["1", "2"], None) == {"1": "rose", "2": "2"}
    output, error = capsys.readouterr()
    assert output == f"names: {CATEGORY_NAMES}, 1 = rose\n"
    assert error == f"warning: {CATEGORY_NAMES}: has no name for 1 category: 2\n"
    assert name_categories(["a"], None) == {"a": "a"}  # the file is for other categories
    output, error = capsys.readouterr()
    assert output == f"names: those of the folders; {CATEGORY_NAMES} has none of them\n"
    assert error == ""
