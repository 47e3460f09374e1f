"""A stable division of the files of a category among train, valid and test, by their content."""

from collections.abc import Collection, Mapping


def divide(digests: Mapping[str, str], missing: Collection[str]) -> dict[str, str]:
    """Divide the files of one category among train and the splits that are missing.

    Files are ordered by their digests: the first tenth is test's, the last tenth valid's. Of three
    files or more, both get one at least, of ten or more two. Copies of a file are in one split.

    A file that is added moves no other file, or one. It moves two if the number of files of one
    split rises with it, and it falls into the other split: of 100 files that are added one by one
    to a category, two do so on average, and 32 move one file.

    Args:
        digests: in hexadecimal, by path; a file with "" is train's.
        missing: "valid", "test", or both.

    Returns:
        The split of each path.
    """
    ordered = sorted(set(digests.values()) - {""})
    count = len(ordered)
    # The two do not rise at the same number of files, where always two files would move.
    num_test = max((count + 5) // 10, _least(count, one=2, two=9))
    num_valid = max(count // 10, _least(count, one=3, two=10))
    split_of = dict.fromkeys(ordered, "train") | {"": "train"}
    if "test" in missing:
        split_of |= dict.fromkeys(ordered[:num_test], "test")
    if "valid" in missing:
        split_of |= dict.fromkeys(ordered[count - num_valid :], "valid")
    return {path: split_of[digest] for path, digest in digests.items()}


def _least(count: int, *, one: int, two: int) -> int:
    """Return how many of `count` files a split gets at least: one of `one`, two of `two` files."""
    return int(count >= one) + int(count >= two)
