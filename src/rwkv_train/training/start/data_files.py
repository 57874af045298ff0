"""The files of --data_file, opened once: `discover` looks at them, `open_data` makes samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rwkv_train.config.mixture_list import mixture_components
from rwkv_train.config.schema import DataConfig
from rwkv_train.data.binidx.loss_mask import LossMask, find_mask
from rwkv_train.data.binidx.manifest import Manifest, manifest_prefix, read_manifest
from rwkv_train.data.samples.document_starts import DocumentStarts, document_starts
from rwkv_train.data.samples.sharded_tokens import ShardedTokens
from rwkv_train.data.samples.token_sources import Source, open_source, pairs_of
from rwkv_train.data.sampling.held_out import HeldOut, hold_out
from rwkv_train.errors import DataError, first_few


class DataFiles(NamedTuple):
    """The tokens of one data set and what lies next to them.

    name: as given; "dummy" for the text that needs no file.
    mask: None also where --loss_mask off leaves it unread; has_mask: whether there is one.
    starts: of documents; None: the run does not ask for them.
    """

    name: str
    source: Source
    manifest: Manifest | None
    mask: LossMask | None
    has_mask: bool
    starts: DocumentStarts | None


class OpenedData(NamedTuple):
    """The data of a run: one data set, or the parts of a mixture in the order of the list.

    held_out: what --val_split keeps from training; None without it.
    """

    parts: tuple[DataFiles, ...]
    is_mixture: bool
    held_out: HeldOut | None


def open_data_files(data: DataConfig) -> OpenedData:
    """Opens the training data; DataError when it cannot be used."""
    components = mixture_components(data.data_file)
    if components:
        return OpenedData(_open_parts([part.path for part in components], data), True, None)
    name = "dummy" if data.data_file is None else data.data_file
    files = open_files(name, data.data_type, data)
    return OpenedData((files,), False, _held_out_slots(data, files.source.tokens))


def open_files(name: str, data_type: str, data: DataConfig) -> DataFiles:
    """Opens one data set; DataError when it cannot be used.

    data: says whether mask and documents are used. Of a training data set or a validation's.
    """
    source = open_source(name, data_type)
    starts = document_starts(source) if data.reset_at_documents else None
    if data_type != "binidx":
        # A manifest that lies next to such a file by chance is of other data.
        return DataFiles(name, source, None, None, False, starts)
    # Read with the shards, of which it may list thousands.
    manifest = source.manifest if isinstance(source, ShardedTokens) else read_manifest(name)
    if data.loss_mask == "off":
        # Unread, so that a damaged mask does no harm; the manifest tells that there is one.
        promised = manifest is not None and manifest.sha256_mask is not None
        return DataFiles(name, source, manifest, None, promised, starts)
    mask = find_mask(manifest_prefix(name), pairs_of(source), manifest)
    return DataFiles(name, source, manifest, mask, mask is not None, starts)


def row_tokens(files: DataFiles) -> int | None:
    """Returns the length of the rows that the data is made of; None: it is running text."""
    return None if files.manifest is None else files.manifest.row_tokens


def require_whole_rows(files: DataFiles, ctx_len: int, flag: str) -> None:
    """Raises DataError when samples of ctx_len tokens, given by `flag`, would cut the rows.

    A question would be asked without what it asks for.
    """
    length = row_tokens(files)
    if length is not None and ctx_len % length:
        raise DataError(
            f"{files.name} is made of rows of {length} tokens, which samples of --{flag} "
            f"{ctx_len} would cut; use --{flag} {length}"
        )


def _open_parts(paths: Sequence[str], data: DataConfig) -> tuple[DataFiles, ...]:
    """Opens the parts of a mixture; DataError, which tells of all of them, when some fail."""
    parts, faults = [], []
    for path in paths:
        try:
            parts.append(open_files(path, "binidx", data))
        except DataError as error:
            faults.append(str(error))
    if len(faults) > 1:
        raise DataError(
            f"{len(faults)} of the {len(paths)} parts of --data_file cannot be used: "
            f"{first_few(faults, 3, '; ')}"
        )
    if faults:
        raise DataError(faults[0])
    return tuple(parts)


def _held_out_slots(data: DataConfig, tokens: int) -> HeldOut | None:
    if data.val_split is None:
        return None
    # The same lengths give the same slots at every start: nothing of them has to be saved.
    return hold_out(tokens, data.ctx_len, data.val_split, data.val_ctx_len or data.ctx_len)
