"""The samples of a run, opened and checked before anything is written."""

from __future__ import annotations

from typing import NamedTuple

from src.config.resolve_length import global_batch
from src.config.schema import DataConfig, RunConfig
from src.config.windows import windows_per_row
from src.data.dataset import TokenDataset, ValidationDataset
from src.data.documents import DocumentStarts, document_starts
from src.data.manifest import manifest_prefix, read_manifest
from src.data.masks import LossMask, find_mask
from src.data.sources import Source, open_source, pairs_of
from src.errors import DataError


class RunSamples(NamedTuple):
    """Samples to train on, by global number, and held-out ones, None without validation."""

    training: TokenDataset
    held_out: ValidationDataset | None


def open_samples(config: RunConfig) -> RunSamples:
    """Both data sets of a resolved configuration; DataError when one cannot be used."""
    d = config.data
    source = open_source(d.data_file, d.data_type)
    training = TokenDataset(
        source, d.ctx_len, prime=d.magic_prime,
        shift=d.sample_offset, sampling=d.sampling, seed=config.train.random_seed,
        vocab_size=config.model.vocab_size,
        loss_mask=_mask(d, d.data_file, source), step_samples=global_batch(config),
        windows=windows_per_row(config),
        starts=_starts(d, source),
    )
    if d.val_data_file is None:
        return RunSamples(training, None)
    try:
        source = open_source(d.val_data_file, "binidx")
        held_out = ValidationDataset(
            source, d.ctx_len, d.val_samples, config.model.vocab_size,
            loss_mask=_mask(d, d.val_data_file, source), starts=_starts(d, source),
        )
        for _ in held_out:
            # Read once: bad data should not end a run at its first validation.
            continue
    except DataError as error:
        raise DataError(f"--val_data_file {d.val_data_file}: {error}") from error
    return RunSamples(training, held_out)


def mask_notes(samples: RunSamples) -> list[str]:
    """What a user may not expect of validation, a line each."""
    if samples.held_out is None:
        return []
    learns, judges = (data.loss_mask is not None for data in (samples.training, samples.held_out))
    if learns and not judges:
        return ["the held-out data has no loss mask: validation counts all of its tokens"]
    if judges and not learns:
        return ["validation counts what the held-out data's loss mask counts; training has no mask"]
    return []


def _mask(data: DataConfig, data_file: str | None, source: Source) -> LossMask | None:
    pairs = pairs_of(source)
    if data.loss_mask == "off" or not pairs:
        return None
    prefix = manifest_prefix(data_file)
    return find_mask(prefix, pairs, read_manifest(prefix))


def _starts(data: DataConfig, source: Source) -> DocumentStarts | None:
    return document_starts(source) if data.reset_at_documents else None
