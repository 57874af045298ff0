"""--state_copies: folders for second copies, each with rules of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_train.config.copy_places import CopyPlace, copy_places, expand_copy_homes
from rwkv_train.errors import ConfigError


def test_every_place_has_its_own_rules_and_what_is_left_out_is_the_default():
    assert copy_places(None) == ()
    assert copy_places("/a, b/c:keep_last=5:keep_every=1000,/d:every_steps=20") == (
        CopyPlace(Path("/a"), keep_last=2),
        CopyPlace(Path("b/c"), keep_last=5, keep_every=1000),
        CopyPlace(Path("/d"), keep_last=2, every_steps=20),
    )


def test_a_folder_s_name_may_hold_colons():
    assert copy_places("C:/run:12:keep_last=1") == (CopyPlace(Path("C:/run:12"), keep_last=1),)


def test_it_tells_its_rules():
    (place,) = copy_places("/a:keep_last=5:keep_every=1000:every_steps=20")
    assert str(place) == ("/a (the last 5 and those at multiples of 1000 steps, one in 20 steps)")


def test_the_home_folder_is_written_out_in_every_item(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/x")
    assert expand_copy_homes("~/a:keep_last=1, ~/b") == "/home/x/a:keep_last=1,/home/x/b"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("/a,", "names no folder in ''"),
        (":keep_last=2", "names no folder"),
        ("/a:keep=2", "'keep=2' is none of keep_last, keep_every, every_steps"),
        ("/a:keep_last=2:keep_last=3", "'keep_last=3' is there twice"),
        ("/a:keep_last=0", "'keep_last=0' needs a whole number from 1 on"),
        ("/a:keep_last=two", "'keep_last=two' needs a whole number from 1 on"),
        ("/a:keep_last=-1", "needs a whole number"),
        ("/a:keep_last=2:b", "'b' is none of"),
    ],
)
def test_what_cannot_be_a_place_is_refused(given: str, why: str):
    with pytest.raises(ConfigError) as caught:
        copy_places(given)
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert "expected FOLDER or FOLDER:keep_last=2" in str(caught.value)


def test_a_place_may_be_on_the_partner_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/x")
    (place,) = copy_places("partner:/dev/shm/a:keep_last=1")
    assert place == CopyPlace(Path("/dev/shm/a"), keep_last=1, on_partner=True)
    assert str(place) == "/dev/shm/a of the partner machine (the last 1)"
    assert expand_copy_homes("partner:~/a,~/b") == "partner:/home/x/a,/home/x/b"
    # A folder of that name.
    assert copy_places("./partner:a") == (CopyPlace(Path("partner:a")),)
