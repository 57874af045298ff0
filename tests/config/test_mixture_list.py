"""A name that ends like a weight is a data set where there is one of that name."""

from __future__ import annotations

import pytest

from rwkv_train.config.mixture_list import mixture_components
from rwkv_train.errors import ConfigError


@pytest.mark.parametrize("ending", [".idx", ".manifest.json"])
@pytest.mark.parametrize("name", ["books:2", "books:0.5", "a:1,b:2", "a:1..2", "a:b:3"])
def test_files_of_that_name_are_a_single_data_set(name, ending, tmp_path):
    assert mixture_components(str(tmp_path / name))
    (tmp_path / f"{name}{ending}").write_bytes(b"")
    assert mixture_components(str(tmp_path / name)) == ()


def test_in_a_list_such_a_data_set_needs_its_own_weight(tmp_path):
    (tmp_path / "books:2.idx").write_bytes(b"")
    name = tmp_path / "books:2"
    with pytest.raises(ConfigError, match=r"books:2 is the name of a data set.*books:2:1"):
        mixture_components(f"{name},other:1")
    assert [part.path for part in mixture_components(f"{name}:1,other:1")] == [str(name), "other"]
    # With data sets of both names it is a weight, as it always was.
    (tmp_path / "books.idx").write_bytes(b"")
    assert mixture_components(f"{name},other:1")[0].path == str(tmp_path / "books")
