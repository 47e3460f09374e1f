"""image_files.splits: the content of the files of a category decides their splits."""

import collections
import hashlib
import random

from image_files.splits import divide

BOTH = ("valid", "test")


def digests_of(count: int, seed: int = 0) -> dict[str, str]:
    """Return the digests of files "0", "1" and so on."""
    texts = [f"{seed} {number}" for number in range(count)]
    return {str(n): hashlib.sha256(text.encode()).hexdigest() for n, text in enumerate(texts)}


def sizes_of(count: int, missing=BOTH) -> tuple[int, ...]:
    splits = collections.Counter(divide(digests_of(count), missing).values())
    return tuple(splits[name] for name in ("train", "valid", "test"))


def test_each_split_has_its_share_of_a_category():
    expected = {1: (1, 0, 0), 2: (1, 0, 1), 3: (1, 1, 1), 8: (6, 1, 1), 10: (6, 2, 2)}
    expected |= {24: (20, 2, 2), 30: (24, 3, 3), 40: (32, 4, 4), 95: (76, 9, 10), 0: (0, 0, 0)}
    assert {count: sizes_of(count) for count in expected} == expected
    assert sizes_of(40, ["test"]) == (36, 0, 4) and sizes_of(40, ["valid"]) == (36, 4, 0)


def test_the_content_decides_and_not_the_name_or_the_order():
    digests = digests_of(30)
    splits = divide(digests, BOTH)
    shuffled = list(digests.items())
    random.Random(1).shuffle(shuffled)
    renamed = divide({f"new {path}": digest for path, digest in shuffled}, BOTH)
    assert renamed == {f"new {path}": split for path, split in splits.items()}
    copies = divide(digests | {f"copy {path}": digests[path] for path in digests}, BOTH)
    assert all(copies[path] == copies[f"copy {path}"] == splits[path] for path in digests)


def test_files_without_digest_do_not_take_the_place_of_others():
    assert divide({"a": "", "b": ""}, BOTH) == {"a": "train", "b": "train"}
    digests = digests_of(12)
    assert divide(digests | {"broken": ""}, BOTH) == divide(digests, BOTH) | {"broken": "train"}


def test_a_file_that_is_added_moves_as_few_others_as_promised():
    moves: collections.Counter[int] = collections.Counter()
    for seed in range(200):
        digests = digests_of(100, seed)
        before: dict[str, str] = {}
        for count in range(1, 101):
            splits = divide(dict(list(digests.items())[:count]), BOTH)
            moves[sum(splits[path] != split for path, split in before.items())] += 1
            before = splits
    assert set(moves) == {0, 1, 2}
    assert 0.31 < moves[1] / moves.total() < 0.33  # as the docstring says
    assert 0.019 < moves[2] / moves.total() < 0.024
