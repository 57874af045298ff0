"""Prints what a run is going to do, before it does it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence

import torch

from rwkv_train.config.machine_schema import SafetyConfig
from rwkv_train.config.mixture_list import shown_data_file
from rwkv_train.config.resolved import ResolvedConfig, ResolvedOptim
from rwkv_train.config.run_length import (
    RunLength,
    global_batch,
    own_window_len,
    readers,
    window_len,
)
from rwkv_train.models.parameters import ParameterGroup


def print_header(
    config: ResolvedConfig,
    length: RunLength,
    *,
    processes: str,
    start: str,
    parameters: int,
    data_tokens: int,
    groups: Sequence[ParameterGroup],
    held_out: Sequence[tuple[str, int]],
    changes: Sequence[str],
    operators: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> None:
    """Prints the run's header.

    processes: how many, and who started them; start: where the run starts; changes: since the last
    start, a line each; parameters: of the model, frozen ones too; held_out: name and number of
    validation samples of each source; operators: name and text of the lines about backends and
    memory; notes: a line each.
    """
    hardware = config.hardware
    print(
        f"RWKV-{config.model.rwkv_version} {hardware.precision} on "
        f"{hardware.num_nodes * hardware.devices} x {_device_name(hardware.accelerator)}, "
        f"strategy {hardware.strategy}, torch {torch.__version__}"
    )
    _line("processes", processes)
    _line("model", _model(config, parameters))
    _line("data", _data(config, data_tokens))
    _line("batch", _batch(config, length))
    if config.hardware.context_parallel > 1:
        _line("context", _sharing(config))
    for line in _chunks(config):
        _line("chunks", line)
    _line("length", _length(length))
    _line("mini-epoch", f"{length.epoch_steps:,} steps; {_saved(config.train.epoch_save)}")
    _line("validation", _validation(config, held_out))
    _line("safety", _safety(config.safety))
    _line("optimizer", _optimizer(config))
    _line("groups", "; ".join(_group(group) for group in groups))
    for name, text in operators:
        _line(name, text)
    _line("start", start)
    if changes:
        _line("changed", "since the last start:")
    for change in changes:
        _line("", change)
    for note in notes:
        _line("note", note)
    print(flush=True)


def _line(name: str, text: str) -> None:
    print(f"  {name:<11} {text}")


def _model(config: ResolvedConfig, parameters: int) -> str:
    model = config.model
    return (
        f"{model.n_layer} layers, width {model.n_embd}, ffn {model.dim_ffn}, vocabulary "
        f"{model.vocab_size}, {parameters / 1e6:.1f} M parameters"
        + (", activation checkpointing" if config.train.grad_cp else "")
        + (", compiled blocks: the first step takes a minute" if config.hardware.compile else "")
    )


def _data(config: ResolvedConfig, tokens: int) -> str:
    data = config.data
    if data.sampling != "permutation":
        order = "random positions"
    elif data.magic_prime is None:
        order = "mixed by weights"
    else:
        order = f"magic prime {data.magic_prime}"
    name = "random tokens" if data.data_file is None else shown_data_file(data.data_file)
    return f"{name} ({data.data_type}), {tokens:,} tokens, context {data.ctx_len}, {order}" + (
        ", reset at document starts" if data.reset_at_documents else ""
    )


def _batch(config: ResolvedConfig, length: RunLength) -> str:
    train, sharing = config.train, config.hardware.context_parallel
    accumulated = train.accumulate_grad_batches
    several = "s" if readers(config.hardware) > 1 else ""
    groups = f" group{several} of {sharing} processes" if sharing > 1 else ""
    return (
        f"{global_batch(config)} samples ({readers(config.hardware)}{groups} x {train.micro_bsz}"
        + (f" x {accumulated} accumulated" if accumulated > 1 else "")
        + f") = {length.tokens_per_step:,} tokens a step"
    )


def _length(length: RunLength) -> str:
    if length.total_steps is None:
        return "no end: stop it when you like"
    return f"{length.total_steps:,} steps, ended by {length.reason}"


def _saved(every: int) -> str:
    """Returns which mini-epochs are saved: the first, then every so many, and the last."""
    if every <= 1:
        return "each is saved" if every else "only the last is saved"
    return f"one of {every} is saved, the first and the last always"


def _validation(config: ResolvedConfig, held_out: Sequence[tuple[str, int]]) -> str:
    """Returns what is validated, on how many samples, and when."""
    if not held_out:
        return "none"
    data, train = config.data, config.train
    names = ", ".join(f"{count} x {data.val_ctx_len} tokens of {name}" for name, count in held_out)
    often = f"every {train.val_every} steps and " if train.val_every else ""
    best = "; the best is kept" if train.save_best else ""
    return f"{names}, {often}at every mini-epoch that is saved{best}"


def _group(group: ParameterGroup) -> str:
    """Returns a parameter group as people name it: rate factor and whether it decays."""
    decays = " with decay" if group.weight_decay > 0 else ""
    muon = " by Muon" if group.hidden_matrices else ""
    return f"{group.lr_factor:g}x{decays}{muon}: {len(group.parameters)} tensors"


def _sharing(config: ResolvedConfig) -> str:
    return (
        f"{window_len(config):,} tokens of a sample on {config.hardware.context_parallel} "
        f"processes, {own_window_len(config):,} each, exact gradients"
    )


def _chunks(config: ResolvedConfig) -> Iterator[str]:
    """Yields how rows are read piece by piece, and what that costs."""
    train, ctx_len = config.train, config.data.ctx_len
    window, sharing = window_len(config), config.hardware.context_parallel
    if train.chunk_len is None:
        return
    count = -(-own_window_len(config) // train.chunk_len)
    if count > 1:
        often, cost = ("three times", "5/3") if train.grad_cp else ("twice", "4/3")
        size = train.chunk_len * sharing
        yield (
            f"{window:,} tokens in {count} chunks of {size:,}, exact gradients; every chunk is "
            f"computed forward {often}: about {cost} of the arithmetic"
        )
    else:
        yield f"one of {window:,} tokens: nothing is recomputed"
    if window < ctx_len:
        yield (
            f"truncated backpropagation: {ctx_len // window} steps per sample of {ctx_len:,} "
            f"tokens, gradients within {window:,}, the state carried on"
        )


def _device_name(accelerator: str) -> str:
    if accelerator == "gpu":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {threads} thread{'' if threads == 1 else 's'})"


def _optimizer(config: ResolvedConfig) -> str:
    optim = config.optim
    ramp = f"warmup {optim.warmup_steps} steps" if optim.warmup_steps else "no warmup"
    decay = f"{optim.weight_decay:g}"
    if optim.weight_decay_final is not None:
        decay += f" to {optim.weight_decay_final:g}"
    return (
        f"{_algorithm(optim)}, rate {optim.lr_init:g} to {optim.lr_final:g} "
        f"({_curve(config)}), {ramp}, betas {optim.beta1:g} {optim.beta2:g}, eps "
        f"{optim.adam_eps:g}, decay {decay}, clip {optim.grad_clip:g}"
    )


def _algorithm(optim: ResolvedOptim) -> str:
    if optim.optimizer == "adam8bit":
        return "AdamW with 8-bit moments"
    if optim.optimizer == "adamw":
        return "AdamW"
    nesterov = ", Nesterov" if optim.muon_nesterov else ""
    return (
        f"Muon for the hidden matrices (rate {optim.muon_lr:g}, momentum "
        f"{optim.muon_momentum:g}{nesterov}, {optim.muon_adjust_lr}) and AdamW"
    )


def _curve(config: ResolvedConfig) -> str:
    tokens = config.train.exit_tokens
    if config.optim.lr_init == config.optim.lr_final:
        return "constant"
    if tokens > 0:
        return "cosine over the token budget"
    shape = "linear" if config.optim.lr_final == 0 else "exponential"
    shape += f" over {config.train.epoch_count} mini-epochs"
    return f"mean of cosine and {shape}" if tokens < 0 else shape


def _safety(safety: SafetyConfig) -> str:
    """Returns when a state is saved between mini-epochs, and what a bad step leads to."""
    times = []
    if safety.save_every_steps is not None:
        times.append(f"{safety.save_every_steps:,} steps")
    if safety.save_every_minutes > 0:
        times.append(f"{safety.save_every_minutes:g} minutes")
    saved = f"state every {' and '.join(times)}" if times else "state at mini-epochs only"
    spikes = f", spikes above {safety.spike_sigma:g} sigma too" if safety.spike_sigma else ""
    if safety.on_bad_step == "stop":
        return f"{saved}; a bad step (not finite{spikes}) ends the run"
    back = (
        f", {safety.bad_steps_before_rollback} in a row go back to an earlier state"
        if safety.bad_steps_before_rollback
        else ""
    )
    return f"{saved}; bad steps (not finite{spikes}) are skipped{back}"
