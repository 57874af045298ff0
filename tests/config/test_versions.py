"""The table of versions fits the schema, the folders it names and RWKV-LM's names."""

from __future__ import annotations

import dataclasses

import pytest

from rwkv_train.config.command_line.fields import fields
from rwkv_train.config.resolved import SPECIFIC_SIZES, ResolvedModel
from rwkv_train.config.schema import ModelConfig
from rwkv_train.config.versions import DEFAULT_VERSION, VERSIONS, version_row, versions_with
from rwkv_train.errors import ConfigError
from tests.checkout import ROOT

PACKAGE = ROOT / "src" / "rwkv_train"


def test_the_choices_of_the_flag_are_the_rows():
    assert fields()["rwkv_version"].choices == tuple(VERSIONS)
    assert DEFAULT_VERSION in VERSIONS


def test_every_row_names_fields_files_and_stages_that_exist():
    names = {entry.name for entry in dataclasses.fields(ModelConfig)}
    for row in VERSIONS.values():
        assert {*row.sizes, *row.settings} <= names
        assert set(row.sizes) <= {"dim_ffn", *SPECIFIC_SIZES}
        assert (PACKAGE / "models" / f"{row.module}.py").is_file()
        assert (PACKAGE / "ops" / row.operator / "reference.py").is_file()
        assert set(row.conventions.resume_warmup) == {2, 3, 4}


def test_a_size_that_some_version_lacks_is_none_until_it_is_resolved():
    for name in SPECIFIC_SIZES:
        assert versions_with(name) != tuple(VERSIONS)
        assert getattr(ModelConfig(), name) is None
    narrowed = set(ResolvedModel.__annotations__)
    unknown = {e.name for e in dataclasses.fields(ModelConfig) if e.default is None}
    assert narrowed == unknown


def test_rwkv_lms_names_mean_one_version_each():
    names = [name for row in VERSIONS.values() for name in row.rwkv_lm_names]
    assert len(names) == len(set(names))


def test_an_unknown_version_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'8' is unknown, expected 4, 5, 6, 7"):
        version_row("8")
