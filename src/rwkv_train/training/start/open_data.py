"""The samples of a run, opened and checked before anything is written."""

from __future__ import annotations

from typing import Any, NamedTuple

from rwkv_train.config.mixture_list import mixture_components
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import global_batch, tokens_per_step, total_steps, windows_per_row
from rwkv_train.data.samples.dataset import TokenDataset, ValidationDataset, evenly_spread_samples
from rwkv_train.data.samples.mixed_dataset import MixedDataset
from rwkv_train.data.samples.sample_source import SampleSource, StepReading
from rwkv_train.data.sampling.held_out import HeldOut
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.mixture import Mixture
from rwkv_train.data.sampling.sample_order import Permutation, RandomStarts, SampleOrder
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import DataError
from rwkv_train.training.start.data_files import (
    DataFiles,
    OpenedData,
    open_files,
    require_whole_rows,
    row_tokens,
)
from rwkv_train.training.start.data_identity import DataIdentity, TrainingData, identify
from rwkv_train.training.start.mixture_notes import PartRead, mixture_notes


class HeldOutSource(NamedTuple):
    """Held-out samples of one source; bytes_per_token: of its text, None: not known."""

    name: str
    dataset: ValidationDataset
    bytes_per_token: float | None


class RunSamples(NamedTuple):
    """Samples to train on, by global number, and held-out ones, () without validation.

    notes: what people should know of them. data: what they are cut from; validation: the identity
    of --val_data_file, () without.
    """

    training: SampleSource
    held_out: tuple[HeldOutSource, ...]
    notes: list[str]
    data: TrainingData
    validation: tuple[DataIdentity, ...] = ()

    def identities(self) -> dict[str, list[dict[str, Any]]]:
        """Returns what a training state keeps of the data."""
        return {
            "training": [identity.as_dict() for identity in self.data.identities],
            "validation": [identity.as_dict() for identity in self.validation],
        }


def open_samples(config: ResolvedConfig, opened: OpenedData) -> RunSamples:
    """Returns the samples of a resolved configuration; DataError when some cannot be used.

    opened: the training data. That of --val_data_file is opened here, because nothing before
    depends on it.
    """
    data = config.data
    notes: list[str] = []
    training: SampleSource
    if opened.is_mixture:
        training = _mixed(config, opened.parts, notes)
    else:
        training = _training(config, opened.parts[0], data.magic_prime, opened.held_out)
    identities = TrainingData.of(opened.parts)
    if opened.held_out is not None:
        files = opened.parts[0]
        offsets = opened.held_out.spread_offsets(data.val_samples)
        held_out = _held_out(files, offsets, config, notes)
        # Copies of a held-out document lie elsewhere in the data, where they are trained on.
        notes += _repeated(files)
        return RunSamples(training, (held_out,), notes, identities)
    if data.val_data_file is not None:
        try:
            files = open_files(data.val_data_file, "binidx", data)
            _require_same_tokenizer(opened.parts[0], files)
            require_whole_rows(files, data.val_ctx_len, "val_ctx_len")
            offsets = evenly_spread_samples(
                files.source.tokens, data.val_ctx_len, data.val_samples, row_tokens(files)
            )
            held_out = _held_out(files, offsets, config, notes)
        except DataError as error:
            raise DataError(f"--val_data_file {data.val_data_file}: {error}") from error
        return RunSamples(training, (held_out,), notes, identities, (identify(files),))
    return RunSamples(training, (), notes, identities)


def _training(
    config: ResolvedConfig, files: DataFiles, prime: int | None, held_out: HeldOut | None = None
) -> TokenDataset:
    data = config.data
    require_whole_rows(files, data.ctx_len, "ctx_len")
    order: SampleOrder = RandomStarts(config.train.random_seed)
    if row_tokens(files) and (data.sampling == "random" or data.sample_offset % data.ctx_len):
        raise DataError(
            f"{files.name} is made of rows, of which --sampling random and --sample_offset would "
            "read parts; leave them out"
        )
    if data.sampling != "random":
        assert prime is not None, "permutation sampling needs a prime"
        order = Permutation(prime, data.sample_offset, held_out)
    return TokenDataset(
        files.source,
        data.ctx_len,
        order,
        vocab_size=config.model.vocab_size,
        loss_mask=files.mask,
        reading=_reading(config),
        starts=files.starts,
    )


def _reading(config: ResolvedConfig) -> StepReading:
    """Returns what an optimizer step of the run reads."""
    return StepReading(global_batch(config), windows_per_row(config))


def _mixed(config: ResolvedConfig, opened: tuple[DataFiles, ...], notes: list[str]) -> MixedDataset:
    """Returns the mixture's samples; says in `notes` how often each part is passed over."""
    data = config.data
    parts = mixture_components(data.data_file)
    datasets = []
    for files in opened:
        tokens = files.source.tokens
        try:
            # A prime of its own: with one for all, a small part would be read in a few strides.
            prime = None if data.sampling == "random" else magic_prime(tokens, data.ctx_len)
            datasets.append(_training(config, files, prime))
        except DataError as error:
            raise DataError(f"--data_file {files.name}: {error}") from error
    # In samples, so that a run that resumes with another batch has the same mixture.
    mixture = Mixture(
        [part.begin for part in parts],
        [part.end for part in parts],
        (data.mix_tokens or 0) // data.ctx_len,
    )
    # For the note only: without an end nobody can say how often a part will have been read.
    steps = total_steps(config)
    samples = 0 if steps is None else -(-steps * tokens_per_step(config) // data.ctx_len)
    notes += mixture_notes(
        [
            PartRead(part, dataset.tokens, count / len(dataset))
            for part, dataset, count in zip(parts, datasets, mixture.counts(samples))
        ],
        with_passes=samples > 0,
    )
    return MixedDataset(datasets, [part.path for part in parts], mixture, _reading(config))


def mask_notes(samples: RunSamples) -> list[str]:
    """Returns what a user may not expect of validation, a line each."""
    if not samples.held_out:
        return []
    learns = samples.training.has_loss_mask
    judges = any(source.dataset.loss_mask is not None for source in samples.held_out)
    if learns and not judges:
        return ["the held-out data has no loss mask: validation counts all of its tokens"]
    if judges and not learns:
        return ["validation counts what the held-out data's loss mask counts; training has no mask"]
    return []


def _held_out(
    files: DataFiles, offsets: list[int], config: ResolvedConfig, notes: list[str]
) -> HeldOutSource:
    """Returns the samples at these places, each of which is read once here."""
    dataset = ValidationDataset(
        files.source,
        config.data.val_ctx_len,
        offsets,
        config.model.vocab_size,
        loss_mask=files.mask,
        starts=files.starts,
    )
    # Bad data should end a run now, not after hours, at its first validation.
    for _ in dataset:
        continue
    ratio, why_not = _bytes_per_token(dataset, files, config.data.tokenizer)
    if ratio is None:
        notes.append(f"validation without bits per byte on {files.name}: {why_not}")
    return HeldOutSource(files.name, dataset, ratio)


def _require_same_tokenizer(training: DataFiles, held_out: DataFiles) -> None:
    """Raises DataError when the manifests of both name different tokenizers."""
    if training.manifest is None or held_out.manifest is None:
        return
    ours, theirs = (
        (manifest.tokenizer, manifest.vocab_size)
        for manifest in (training.manifest, held_out.manifest)
    )
    # By their sizes too: two paths may be one file that was moved.
    if ours[1] != theirs[1]:
        raise DataError(
            f"it was made with the tokenizer {theirs[0]} ({theirs[1]} ids), the training data with "
            f"{ours[0]} ({ours[1]} ids); make both with one"
        )


def _repeated(files: DataFiles) -> list[str]:
    """Returns a warning of data in which the held-out text occurs again elsewhere."""
    manifest = files.manifest
    repeats = 1 if manifest is None else manifest.made_from.get("repeats", 1)
    if repeats == 1:
        return []
    return [
        f"{files.name} holds every document {repeats} times: what --val_split holds out is "
        "trained on in the other copies, and its loss is too low; use make_data.py --validation "
        "instead"
    ]


def _bytes_per_token(
    dataset: ValidationDataset, files: DataFiles, tokenizer: str | None
) -> tuple[float | None, str]:
    """Returns the UTF-8 bytes of text a target stands for, or None and the reason.

    The manifest's figure, else that of the held-out targets themselves.
    """
    # Losses are summed over the targets that count, and bytes would be over all of them.
    if dataset.loss_mask is not None:
        return None, "its loss mask leaves out a part of the text"
    manifest = files.manifest
    if manifest is not None and manifest.bytes_per_token:
        return manifest.bytes_per_token, ""
    name = tokenizer if manifest is None else manifest.tokenizer
    if name is None:
        return None, "it has no manifest; --tokenizer would tell how many bytes a token has"
    try:
        decode = load_tokenizer(name).decode_bytes
        size = sum(len(decode(sample.targets.tolist())) for sample in dataset)
    except DataError as error:
        return None, str(error)
    return size / (len(dataset) * dataset.ctx_len) or None, "its targets decode to nothing"
