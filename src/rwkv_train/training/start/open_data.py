"""The samples of a run, opened and checked before anything is written."""

from __future__ import annotations

from typing import NamedTuple

from rwkv_train.config.mixture_list import MixtureComponent, mixture_components
from rwkv_train.config.resolved import ResolvedConfig, ResolvedData
from rwkv_train.config.run_length import global_batch, tokens_per_step, total_steps, windows_per_row
from rwkv_train.data.binidx.loss_mask import LossMask, find_mask
from rwkv_train.data.binidx.manifest import manifest_prefix, read_manifest
from rwkv_train.data.samples.dataset import TokenDataset, ValidationDataset, evenly_spread_samples
from rwkv_train.data.samples.document_starts import DocumentStarts, document_starts
from rwkv_train.data.samples.mixed_dataset import MixedDataset
from rwkv_train.data.samples.sample_source import SampleSource, StepReading
from rwkv_train.data.samples.token_sources import Source, open_source, pairs_of
from rwkv_train.data.sampling.held_out import HeldOut
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.mixture import Mixture
from rwkv_train.data.sampling.sample_order import Permutation, RandomStarts, SampleOrder
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import DataError
from rwkv_train.training.start.discover import held_out_of


class HeldOutSource(NamedTuple):
    """Held-out samples of one source; bytes_per_token: of its text, None: not known."""

    name: str
    dataset: ValidationDataset
    bytes_per_token: float | None


class RunSamples(NamedTuple):
    """Samples to train on, by global number, and held-out ones, () without validation.

    notes: what people should know of them.
    """

    training: SampleSource
    held_out: tuple[HeldOutSource, ...]
    notes: list[str]


class _Data(NamedTuple):
    """The tokens of one --data_file or --val_data_file and what lies beside them."""

    name: str | None
    source: Source
    mask: LossMask | None
    starts: DocumentStarts | None


def open_samples(config: ResolvedConfig) -> RunSamples:
    """All data of a resolved configuration; DataError when some of it cannot be used."""
    d = config.data
    notes: list[str] = []
    parts = mixture_components(d.data_file)
    if parts:
        split, training = None, _mixed(config, parts, notes)
    else:
        data = _open(d.data_file, d.data_type, d)
        split = held_out_of(d, data.source)
        training = _training(config, data, d.magic_prime, split)
    if split is not None:
        held_out = _held_out(data, split.spread_offsets(d.val_samples), config, notes)
        notes += _repeated(d.data_file)
    elif d.val_data_file is not None:
        try:
            data = _open(d.val_data_file, "binidx", d)
            offsets = evenly_spread_samples(data.source.tokens, d.val_ctx_len, d.val_samples)
            held_out = _held_out(data, offsets, config, notes)
        except DataError as error:
            raise DataError(f"--val_data_file {d.val_data_file}: {error}") from error
    else:
        return RunSamples(training, (), notes)
    return RunSamples(training, (held_out,), notes)


def _training(
    config: ResolvedConfig, data: _Data, prime: int | None, held_out: HeldOut | None = None
) -> TokenDataset:
    d = config.data
    order: SampleOrder = RandomStarts(config.train.random_seed)
    if d.sampling != "random":
        assert prime is not None, "permutation sampling needs a prime"
        order = Permutation(prime, d.sample_offset, held_out)
    return TokenDataset(
        data.source,
        d.ctx_len,
        order,
        vocab_size=config.model.vocab_size,
        loss_mask=data.mask,
        reading=_reading(config),
        starts=data.starts,
    )


def _reading(config: ResolvedConfig) -> StepReading:
    """Returns what an optimizer step of the run reads."""
    return StepReading(global_batch(config), windows_per_row(config))


def _mixed(
    config: ResolvedConfig, parts: tuple[MixtureComponent, ...], notes: list[str]
) -> MixedDataset:
    """The mixture's samples; says in `notes` how often each part is passed over."""
    d = config.data
    datasets = []
    for part in parts:
        data = _open(part.path, "binidx", d)
        try:
            prime = None if d.sampling == "random" else magic_prime(data.source.tokens, d.ctx_len)
            datasets.append(_training(config, data, prime))
        except DataError as error:
            raise DataError(f"--data_file {part.path}: {error}") from error
    mixture = Mixture(
        [part.begin for part in parts],
        [part.end for part in parts],
        (d.mix_tokens or 0) // d.ctx_len,
    )
    steps = total_steps(config)
    samples = 0 if steps is None else -(-steps * tokens_per_step(config) // d.ctx_len)
    for part, dataset, count in zip(parts, datasets, mixture.counts(samples)):
        change = "" if part.begin == part.end else f" to {float(part.end):.4g}"
        passes = f", {count / len(dataset):.3g} passes" if samples else ""
        notes.append(
            f"part {part.path}: share {float(part.begin):.4g}{change}, {dataset.source.tokens:,} "
            f"tokens{passes}"
        )
    return MixedDataset(datasets, [part.path for part in parts], mixture, _reading(config))


def mask_notes(samples: RunSamples) -> list[str]:
    """What a user may not expect of validation, a line each."""
    if not samples.held_out:
        return []
    learns = samples.training.has_loss_mask
    judges = any(source.dataset.loss_mask is not None for source in samples.held_out)
    if learns and not judges:
        return ["the held-out data has no loss mask: validation counts all of its tokens"]
    if judges and not learns:
        return ["validation counts what the held-out data's loss mask counts; training has no mask"]
    return []


def _open(data_file: str | None, data_type: str, data: ResolvedData) -> _Data:
    source = open_source(data_file, data_type)
    pairs, mask = pairs_of(source), None
    if data.loss_mask != "off" and pairs:
        prefix = manifest_prefix(data_file)
        mask = find_mask(prefix, pairs, read_manifest(prefix))
    starts = document_starts(source) if data.reset_at_documents else None
    return _Data(data_file, source, mask, starts)


def _held_out(
    data: _Data, offsets: list[int], config: ResolvedConfig, notes: list[str]
) -> HeldOutSource:
    """The samples at these places, read once: bad data should not end a run at a validation."""
    dataset = ValidationDataset(
        data.source,
        config.data.val_ctx_len,
        offsets,
        config.model.vocab_size,
        loss_mask=data.mask,
        starts=data.starts,
    )
    for _ in dataset:
        continue
    ratio, why_not = _bytes_per_token(dataset, data.name, config.data.tokenizer)
    if ratio is None:
        notes.append(f"validation without bits per byte on {data.name}: {why_not}")
    return HeldOutSource(data.name, dataset, ratio)


def _repeated(prefix: str) -> list[str]:
    """Warns of data in which the held-out text occurs again elsewhere."""
    manifest = read_manifest(prefix)
    repeats = 1 if manifest is None else manifest.made_from.get("repeats", 1)
    if repeats == 1:
        return []
    return [
        f"{prefix} holds every document {repeats} times: what --val_split holds out is trained on "
        "in the other copies, and its loss is too low; use make_data.py --validation instead"
    ]


def _bytes_per_token(
    dataset: ValidationDataset, prefix: str, tokenizer: str | None
) -> tuple[float | None, str]:
    """UTF-8 bytes of text a target stands for, or None and the reason.

    The manifest's figure, else that of the held-out targets themselves.
    """
    if dataset.loss_mask is not None:
        return None, "its loss mask leaves out a part of the text"
    manifest = read_manifest(prefix)
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
