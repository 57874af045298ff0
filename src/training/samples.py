"""The samples of a run, opened and checked before anything is written."""

from __future__ import annotations

from typing import NamedTuple

from src.config.schema import RunConfig
from src.data.dataset import TokenDataset, ValidationDataset
from src.data.sources import open_source
from src.errors import DataError


class RunSamples(NamedTuple):
    """Samples to train on, by global number, and held-out ones, None without validation."""

    training: TokenDataset
    held_out: ValidationDataset | None


def open_samples(config: RunConfig) -> RunSamples:
    """Both data sets of a resolved configuration; DataError when one cannot be used."""
    d = config.data
    training = TokenDataset(
        open_source(d.data_file, d.data_type), d.ctx_len, prime=d.magic_prime,
        shift=d.sample_offset, sampling=d.sampling, seed=config.train.random_seed,
        vocab_size=config.model.vocab_size,
    )
    if d.val_data_file is None:
        return RunSamples(training, None)
    try:
        source = open_source(d.val_data_file, "binidx")
        held_out = ValidationDataset(source, d.ctx_len, d.val_samples, config.model.vocab_size)
        for _ in held_out:
            # Read once: bad data should not end a run at its first validation.
            continue
    except DataError as error:
        raise DataError(f"--val_data_file {d.val_data_file}: {error}") from error
    return RunSamples(training, held_out)
