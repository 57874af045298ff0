"""Writing data files: folders are made, and what cannot be written is named."""

from __future__ import annotations

import pytest

from rwkv_train.data.storage.durable import close_durably, create_file, writing
from rwkv_train.errors import DataError
from rwkv_train.files import write_atomically


def test_a_file_is_created_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    file = create_file(path)
    file.write(b"content")
    close_durably(file)
    assert file.closed and path.read_bytes() == b"content"


def test_a_file_below_a_file_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write .*file/below: "):
        create_file(tmp_path / "file" / "below")


def test_a_failed_write_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DataError, match=r"cannot write .*file: No space"), writing(path):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
