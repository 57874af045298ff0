"""A name that ends like a weight is a data set where there is one of that name."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rwkv_train.config.mixture_list import mixture_components, shown_data_file
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


def test_a_list_of_a_thousand_parts_is_no_file_name():
    # Longer than any path may be: the system refuses to look for such a file.
    given = ",".join(f"/some/folder/of/corpora/part-{i:04d}:{i + 1}.25" for i in range(1000))
    found = mixture_components(given)
    assert len(found) == 1000
    # sum of i + 1.25 for i = 0 ... 999: 499500 + 1250
    assert found[3] == ("/some/folder/of/corpora/part-0003", *[Fraction(425, 50075000)] * 2)


def test_a_message_names_the_first_parts_of_a_long_list():
    few, many = "a:1,b:2", ",".join(f"p{i}:{i}" for i in range(1, 1001))
    assert shown_data_file(few) == few
    assert shown_data_file(many) == "p1:1,p2:2,p3:3,p4:4,p5:5,p6:6 and 994 more"
    path = "a,b,c,d,e,f,g,h"
    assert shown_data_file(path) == path
    with pytest.raises(ConfigError) as raised:
        mixture_components(f"{many},x")
    assert "'x' has no weight" in str(raised.value) and len(str(raised.value)) < 250
