"""What is going to happen, said before it happens."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping

import torch

from rwkv_train.config.resolved import ResolvedConfig, ResolvedOptim
from rwkv_train.config.run_length import RunLength, global_batch, window_len
from rwkv_train.config.schema import SafetyConfig
from rwkv_train.training.progress import Progress
from rwkv_train.training.start.resume_point import Origin


def print_header(
    config: ResolvedConfig,
    length: RunLength,
    origin: Origin,
    progress: Progress,
    *,
    parameters: int,
    data_tokens: int,
    groups: Mapping[str, int],
    derived: list[str],
    validation: str,
) -> None:
    """Prints the run's header; groups: description of each parameter group -> tensor count."""
    m, d, o, t, h = config.model, config.data, config.optim, config.train, config.hardware
    ranks = h.num_nodes * h.devices
    print(
        f"RWKV-{m.rwkv_version} {h.precision} on {ranks} x {_device_name(h.accelerator)}, "
        f"strategy {h.strategy}, torch {torch.__version__}"
    )
    _line(
        "model",
        f"{m.n_layer} layers, width {m.n_embd}, ffn {m.dim_ffn}, vocabulary "
        f"{m.vocab_size}, {parameters / 1e6:.1f} M parameters"
        + (", activation checkpointing" if t.grad_cp else ""),
    )
    _line(
        "data",
        f"{d.data_file} ({d.data_type}), {data_tokens:,} tokens, context {d.ctx_len}, "
        + (
            "random positions"
            if d.sampling != "permutation"
            else "mixed by weights"
            if d.magic_prime is None
            else f"magic prime {d.magic_prime}"
        )
        + (", reset at document starts" if d.reset_at_documents else ""),
    )
    accumulated = t.accumulate_grad_batches
    _line(
        "batch",
        f"{global_batch(config)} samples ({ranks} x {t.micro_bsz}"
        + (f" x {accumulated} accumulated" if accumulated > 1 else "")
        + f") = {length.tokens_per_step:,} tokens a step",
    )
    for line in _chunks(config):
        _line("chunks", line)
    _line(
        "length",
        f"{length.total_steps:,} steps, ended by {length.reason}"
        if length.total_steps is not None
        else "no end: stop it when you like",
    )
    _line(
        "mini-epoch",
        f"{length.epoch_steps:,} steps; saved every {t.epoch_save}"
        if t.epoch_save
        else f"{length.epoch_steps:,} steps; only the last is saved",
    )
    _line("validation", validation)
    _line("safety", _safety(config.safety))
    ramp = f"warmup {o.warmup_steps} steps" if o.warmup_steps else "no warmup"
    decay = f"{o.weight_decay:g}" + (
        f" to {o.weight_decay_final:g}" if o.weight_decay_final is not None else ""
    )
    _line(
        "optimizer",
        f"{_optimizer(o)}, rate {o.lr_init:g} to {o.lr_final:g} "
        f"({_curve(config)}), {ramp}, betas {o.beta1:g} {o.beta2:g}, eps "
        f"{o.adam_eps:g}, decay {decay}, clip {o.grad_clip:g}",
    )
    _line("groups", "; ".join(f"{name}: {count} tensors" for name, count in groups.items()))
    _line("start", _start(origin, progress))
    for line in derived:
        _line("note", line)
    for note in origin.notes:
        _line("note", note)
    print(flush=True)


def _chunks(config: ResolvedConfig) -> Iterator[str]:
    """How rows are read piece by piece, and what that costs."""
    t, ctx_len = config.train, config.data.ctx_len
    if t.chunk_len is None:
        return
    window = window_len(config)
    count = -(-window // t.chunk_len)
    if count > 1:
        often, cost = ("three times", "5/3") if t.grad_cp else ("twice", "4/3")
        yield (
            f"{window:,} tokens in {count} chunks of {t.chunk_len:,}, exact gradients; every "
            f"chunk is computed forward {often}: about {cost} of the arithmetic"
        )
    else:
        yield f"one of {window:,} tokens: nothing is recomputed"
    if window < ctx_len:
        yield (
            f"truncated backpropagation: {ctx_len // window} steps per sample of {ctx_len:,} "
            f"tokens, gradients within {window:,}, the state carried on"
        )


def _line(name: str, text: str) -> None:
    print(f"  {name:<11} {text}")


def _device_name(accelerator: str) -> str:
    if accelerator == "gpu":
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _optimizer(optim: ResolvedOptim) -> str:
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
    """When a state is saved between mini-epochs, and what a bad step leads to."""
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
    return f"{saved}; bad steps (not finite{spikes}) are left out{back}"


def _start(origin: Origin, progress: Progress) -> str:
    if origin.kind == "fresh":
        return "new initial weights"
    if origin.kind == "weights":
        step = f", at step {progress.step}" if progress.step else ""
        return f"weights of {origin.path}, empty optimizer{step}"
    if not origin.state["moments"]:
        return f"{origin.path}: continuation at step {progress.step}, empty optimizer"
    return f"{origin.path}: exact continuation at step {progress.step}"
