"""Compare three ways to store cached features on disk: our own files, sqlite3 and lmdb.

    pip install lmdb
    python benchmarks/feature_store.py
    python benchmarks/feature_store.py --records 100000 --rounds 3

A record is a key of 16 bytes, 6 x 2048 float16 features (24 KB) and a checksum. Each round measures
all sides in turn; the table has the median, smallest and largest value, and the ratio of medians.
Then stores of 100 records are damaged. Needs Linux, and 33 KB of disk per record in --folder.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import resource
import sqlite3
import tempfile
import time
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import lmdb
import numpy as np
import torch
from common import show

from training.feature_store import MISSING, RecordStore

SHAPE = REGIONS, NUM_FEATURES = 6, 2048
VALUES = np.random.default_rng(0).random((256, *SHAPE)).astype("<f2")  # by a key's first byte
FORK = multiprocessing.get_context("fork")
SQLITE_SETUP = """
    PRAGMA page_size = 16384; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, key BLOB, checksum BLOB);
    CREATE TABLE IF NOT EXISTS regions (id INTEGER PRIMARY KEY, value BLOB);
"""
SQLITE_READ = "SELECT value FROM regions WHERE id BETWEEN ? AND ? ORDER BY id"
DAMAGE = {  # where in a file of `size` bytes
    "one bit flipped": random.randrange,
    "one bit flipped in the first 128 bytes": lambda size: random.randrange(128),
    "10 bytes cut off": lambda size: size - 10,
    "half cut off": lambda size: size // 2,
    "one of two writers killed": None,
}

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--records", type=int, default=20_000)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--tries", type=int, default=20, help="of each kind of damage")
parser.add_argument("--folder", help="where the stores are made (the system's temporary folder)")


def checksum(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(4, "little")


class OwnStore:
    """Append-only files of records of a fixed size."""

    def __init__(self, folder: str):
        self.db = RecordStore(folder, SHAPE)

    def write(self, keys: list[bytes], values: np.ndarray) -> None:
        self.db.append(keys, values)

    def find(self, keys: list[bytes]) -> np.ndarray:
        """Return which records are stored and undamaged, (N,) bool."""
        self.file, self.row = self.db.find(keys)
        return self.file != MISSING

    def read(self, rows: np.ndarray, regions: np.ndarray | None = None) -> torch.Tensor:
        """Read records by their index in `find`'s keys, or one region of each, as float32."""
        values = self.db.read(self.file[rows], self.row[rows], regions)
        return torch.from_numpy(values.astype(np.float32))


class SqliteStore:
    """A row per record for key and checksum, and a row per region for its features."""

    def __init__(self, folder: str):
        self.db = sqlite3.connect(Path(folder, "db"), timeout=60, isolation_level=None)
        self.db.executescript(SQLITE_SETUP)

    def write(self, keys: list[bytes], values: np.ndarray) -> None:
        insert = "INSERT INTO records (key, checksum) VALUES (?, ?)"
        self.db.execute("BEGIN IMMEDIATE")
        for key, value in zip(keys, values, strict=True):
            first = self.db.execute(insert, (key, checksum(key, value))).lastrowid * REGIONS
            rows = [(first + region, value[region].tobytes()) for region in range(REGIONS)]
            self.db.executemany("INSERT OR REPLACE INTO regions VALUES (?, ?)", rows)
        self.db.execute("COMMIT")

    def find(self, keys: list[bytes]) -> np.ndarray:
        wanted = {key: number for number, key in enumerate(keys)}
        self.first = np.full(len(keys), MISSING, np.int64)  # region
        for record, key, expected in self.db.execute("SELECT id, key, checksum FROM records"):
            with suppress(sqlite3.DatabaseError, TypeError):  # a damaged page or type of a value
                value = self.values(record * REGIONS, record * REGIONS + REGIONS - 1)
                if key in wanted and checksum(key, value) == expected:
                    self.first[wanted[key]] = record * REGIONS
        return self.first != MISSING

    def values(self, first: int, last: int) -> bytes:
        return b"".join(value for (value,) in self.db.execute(SQLITE_READ, (first, last)))

    def read(self, rows: np.ndarray, regions: np.ndarray | None = None) -> torch.Tensor:
        first = self.first[rows] + (0 if regions is None else regions)
        last = first + (REGIONS - 1 if regions is None else 0)
        data = b"".join(map(self.values, first.tolist(), last.tolist()))
        values = np.frombuffer(data, "<f2").reshape(len(rows), *SHAPE[regions is not None :])
        return torch.from_numpy(values.astype(np.float32))


class LmdbStore:
    """An entry per record; the file is memory-mapped, so that a region is a slice of its entry."""

    def __init__(self, folder: str):
        # 1 TB of addresses, not of disk. With `sync`, writing takes 10 times as long.
        self.db = lmdb.open(folder, map_size=1 << 40, sync=False)

    def write(self, keys: list[bytes], values: np.ndarray) -> None:
        with self.db.begin(write=True) as transaction:
            for key, value in zip(keys, values, strict=True):
                transaction.put(key, checksum(key, value) + value.tobytes())

    def find(self, keys: list[bytes]) -> np.ndarray:
        self.keys, found = keys, np.zeros(len(keys), bool)
        with self.db.begin(buffers=True) as transaction:
            for number, key in enumerate(keys):
                with suppress(lmdb.Error):  # a damaged page
                    entry = transaction.get(key, b"")
                    found[number] = checksum(key, entry[4:]) == entry[:4]
        return found

    def read(self, rows: np.ndarray, regions: np.ndarray | None = None) -> torch.Tensor:
        values = np.empty((len(rows), *SHAPE[regions is not None :]), "<f2")
        starts = 4 + 2 * NUM_FEATURES * (np.zeros(len(rows), int) if regions is None else regions)
        with self.db.begin(buffers=True) as transaction:
            for value, row, start in zip(values, rows.tolist(), starts.tolist(), strict=True):
                entry = transaction.get(self.keys[row])
                value[:] = np.frombuffer(entry, "<f2", value.size, start).reshape(value.shape)
        return torch.from_numpy(values.astype(np.float32))


SIDES = {"own": OwnStore, "sqlite3": SqliteStore, "lmdb": LmdbStore}


def write(side, folder: str, keys: list[bytes], done=None) -> None:
    """Write records in batches of 4, as the extraction does; `done` counts them."""
    store = side(folder)
    for start in range(0, len(keys), 4):
        batch = keys[start : start + 4]
        store.write(batch, VALUES[[key[0] for key in batch]])
        if done is not None:
            done.value += len(batch)
    store.db.close()


def in_child(function, *args):
    """Call in a new process, and return the result or the name of the exception."""
    with ProcessPoolExecutor(1, FORK) as pool:
        try:
            return pool.submit(function, *args).result()
        except Exception as error:  # BrokenProcessPool: a crash
            return type(error).__name__


def memory(side, folder: str, keys: list[bytes]) -> float:
    """MB that this process grows by, at most, to find and read all records."""
    before, store = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, side(folder)
    store.find(keys)
    for rows in np.array_split(np.arange(len(keys)), len(keys) // 256 + 1):
        store.read(rows)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(side, folder: str, keys: list[bytes]) -> dict[str, float]:
    """One round of one side: seconds, memory, disk."""
    rng, result = np.random.default_rng(1), {}

    def seconds(name: str, function, *args) -> None:
        os.sync()
        start = time.perf_counter()
        function(*args)
        result[f"{name}, s"] = time.perf_counter() - start

    def read(batches: int, size: int, regions: bool = False) -> None:
        for _ in range(batches):
            rows = rng.integers(0, len(keys), size)
            store.read(rows, rng.integers(0, REGIONS, size) if regions else None)

    seconds("write all", write, side, folder, keys)
    store = side(folder)
    seconds("find and verify all", store.find, keys)
    seconds("5000 batches of 16 regions", read, 5000, 16, True)
    seconds("100 batches of 64 records", read, 100, 64)
    seconds("25 batches of 256 records", read, 25, 256)
    store.db.close()
    result["memory growth, MB"] = in_child(memory, side, folder, keys)
    size = sum(path.stat().st_blocks * 512 for path in Path(folder).iterdir())
    return result | {"KB on disk per record": size / len(keys) / 1024}


def check(side, folder: str, keys: list[bytes]) -> str:
    """Find and read twice; the first time, the missing records are written again."""
    counts = []
    for _ in range(2):
        store = side(folder)
        found = store.find(keys)
        expected = VALUES[np.frombuffer(b"".join(keys), np.uint8)[::16][found]]
        wrong = (store.read(np.flatnonzero(found)).numpy() != expected).any((1, 2))
        store.db.close()
        write(side, folder, [keys[n] for n in np.flatnonzero(~found)])
        counts += [len(keys) - int(found.sum()), int(wrong.sum())]
    return f"{counts[0]} lost" if not any(counts[1:]) else f"lost, wrong, both again: {counts}"


def damage(kind: str, side, folder: str, keys: list[bytes]) -> str:
    """Damage a new store's largest file, or kill one of two writers, and check the store."""
    if DAMAGE[kind] is None:
        done, half = FORK.Value("i", 0), len(keys) // 2
        moment = random.randrange(half)
        jobs = [(side, folder, keys[:half], done), (side, folder, keys[half:])]
        writers = [FORK.Process(target=write, args=job) for job in jobs]
        for writer in writers:
            writer.start()
        while done.value < moment:
            time.sleep(0.0005)
        writers[0].kill()
        writers[1].join()
        return in_child(check, side, folder, keys[: done.value] + keys[half:])
    write(side, folder, keys[:100])
    path = max(Path(folder).iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    position = DAMAGE[kind](len(data))
    if "flipped" in kind:
        data[position] ^= 1 << random.randrange(8)
    else:
        del data[position:]
    path.write_bytes(data)
    return in_child(check, side, folder, keys[:100])


def main() -> None:
    args = parser.parse_args()
    keys = [random.randbytes(16) for _ in range(args.records)]
    rounds = {side: [] for side in SIDES}
    outcomes = {side: {kind: Counter() for kind in DAMAGE} for side in SIDES}
    for side in list(SIDES) * args.rounds:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rounds[side].append(measure(SIDES[side], folder, keys))
    for side, kind, _ in itertools.product(SIDES, DAMAGE, range(args.tries)):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            outcomes[side][kind][damage(kind, SIDES[side], folder, keys[:2000])] += 1
    rows = []
    for name in rounds["own"][0]:
        values = [[one[name] for one in rounds[side]] for side in SIDES]
        cells = [f"{np.median(v):.3g} ({min(v):.3g}-{max(v):.3g})" for v in values]
        ratios = [np.median(v) / np.median(values[0]) for v in values]
        rows.append([name, *cells, " : ".join(f"{ratio:.2g}" for ratio in ratios)])
    for kind in DAMAGE:
        counts = [outcomes[side][kind].most_common() for side in SIDES]
        rows.append([kind, *["; ".join(f"{n} x {what}" for what, n in c) for c in counts], ""])
    result = {"rounds": rounds, "outcomes": outcomes}
    show(f"{args.records} records, {args.rounds} rounds", ["", *SIDES, "ratio"], rows, result)


if __name__ == "__main__":
    main()
