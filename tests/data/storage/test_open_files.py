"""Files read by position: the same bytes whatever is open, bounded, and refused when replaced."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from rwkv_train.data.storage import open_files
from rwkv_train.data.storage.open_files import StoredFile
from rwkv_train.data.storage.recently_used import RecentlyUsed
from rwkv_train.errors import DataError


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> RecentlyUsed:
    """The files of this test: at most three of them stay open."""
    queue = RecentlyUsed(lambda: 3)
    monkeypatch.setattr(open_files, "_open_now", queue)
    return queue


@pytest.fixture
def files(tmp_path: Path, few: RecentlyUsed) -> list[StoredFile]:
    """Ten files of 100 bytes; byte i of file n is (i + n) % 256."""
    for number in range(10):
        (tmp_path / str(number)).write_bytes(content(number))
    return [StoredFile(tmp_path / str(number)) for number in range(10)]


def content(number: int) -> bytes:
    return bytes((i + number) % 256 for i in range(100))


def read(file: StoredFile, count: int, offset: int) -> bytes:
    target = np.zeros(count, np.uint8)
    file.read_into(target, offset)
    return target.tobytes()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_any_order_of_reads_gives_the_bytes_with_three_descriptors(
    files: list[StoredFile], few: RecentlyUsed
) -> None:
    others = descriptors() - 3
    for step in range(200):
        number, offset = step * step % 10, step % 90
        assert read(files[number], 10, offset) == content(number)[offset : offset + 10]
        assert descriptors() - others <= 3 and len(few) <= 3


def test_a_file_nobody_needs_is_closed(files: list[StoredFile]) -> None:
    # What other tests have left in cycles is closed first.
    gc.collect()
    before = descriptors()
    files.clear()
    gc.collect()
    assert descriptors() == before - 3


def test_a_file_in_use_stays_open_before_one_that_was_read_once(
    files: list[StoredFile], few: RecentlyUsed
) -> None:
    few.reduce_to(0)
    favourite = files[0]
    opened = []
    for number in range(1, 10):
        read(favourite, 1, 0)
        read(favourite, 1, 0)
        opened.append(favourite._descriptor)
        read(files[number], 1, 0)
    assert all(descriptor is opened[0] for descriptor in opened) and opened[0] is not None


def test_threads_read_right_while_files_are_closed_under_them(files: list[StoredFile]) -> None:
    faults = []

    def reader(seed: int) -> None:
        for step in range(2000):
            number, offset = (step * seed + step // 7) % 10, step % 91
            found = read(files[number], 9, offset)
            if found != content(number)[offset : offset + 9]:
                faults.append((seed, step))

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in (1, 3, 7, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_copy_in_another_process_reads_the_same_file(files: list[StoredFile]) -> None:
    assert read(pickle.loads(pickle.dumps(files[4])), 5, 7) == content(4)[7:12]


def test_a_file_that_was_replaced_while_it_was_closed_is_refused(
    files: list[StoredFile], few: RecentlyUsed, tmp_path: Path
) -> None:
    few.reduce_to(0)
    (tmp_path / "other").write_bytes(content(9))
    (tmp_path / "other").replace(tmp_path / "2")
    with pytest.raises(DataError, match="2 was replaced by another file while it was read"):
        read(files[2], 1, 0)
    (tmp_path / "3").unlink()
    with pytest.raises(DataError, match=r"cannot read .*3 any more: No such file"):
        read(files[3], 1, 0)
    # It may grow: whoever appends to a file leaves what was there.
    with (tmp_path / "4").open("ab") as file:
        file.write(b"more")
    assert read(files[4], 2, 98) == content(4)[98:]
    with pytest.raises(DataError, match="5 was cut off from 100 to 60 bytes"):
        os.truncate(tmp_path / "5", 60)
        read(files[5], 1, 0)


def test_a_file_that_is_cut_off_while_it_is_open_is_named(
    files: list[StoredFile], tmp_path: Path
) -> None:
    read(files[2], 1, 0)
    os.truncate(tmp_path / "2", 50)
    assert read(files[2], 50, 0) == content(2)[:50]
    with pytest.raises(DataError, match="2 was cut off from 100 to 50 bytes while it was read"):
        read(files[2], 20, 40)


def test_pieces_that_the_system_gives_are_put_together(
    files: list[StoredFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_files._read_at
    # A third of what is asked for, as a signal or a network file system may do it.
    monkeypatch.setattr(
        open_files,
        "_read_at",
        lambda number, target, offset: whole(
            number, memoryview(target).cast("B")[: -(-target.nbytes // 3)], offset
        ),
    )
    assert read(files[1], 64, 11) == content(1)[11:75]


def test_a_system_without_preadv_reads_the_same(
    files: list[StoredFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "_read_at", open_files._read_by_seeking)
    assert read(files[1], 64, 11) == content(1)[11:75]
    words = np.zeros(4, "<u2")
    files[1].read_into(words, 2)
    assert words.tobytes() == content(1)[2:10]


def test_where_descriptors_have_run_out_others_are_closed_for_one(
    files: list[StoredFile], few: RecentlyUsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, refusals = os.open, []

    def scarce(path: str, flags: int) -> int:
        if len(few):
            refusals.append(path)
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, flags)

    for number in (7, 8, 9):
        read(files[number], 1, 0)
    monkeypatch.setattr(os, "open", scarce)
    assert read(files[0], 3, 0) == content(0)[:3] and refusals


def test_a_quarter_of_the_descriptors_a_process_may_have_is_used() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for allowed, most in ((1024, 256), (64, 16), (20, 8), (hard, min(4096, hard // 4))):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            assert open_files._most_open() == most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DataError, match="a is empty"):
        StoredFile(tmp_path / "a")
