"""Adam's moments and the fp32 master weights by parameter name, whatever shards them.

`capture` gathers them from torch's AdamW or from DeepSpeed's ZeRO 1, 2 and 3; `restore` puts them
back. In between they are plain full tensors, so a run may go on with another number of processes,
another ZeRO stage or without DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def capture(model: nn.Module, optimizer: torch.optim.Optimizer, engine: Any | None) -> dict:
    """Full fp32 CPU copies of weights and moments; a collective call: every rank must make it.

    Returns {"weights": {name: tensor}, "exp_avg": {...}, "exp_avg_sq": {...}, "adam_steps": int}.
    """
    result: dict = {"weights": {}, "exp_avg": {}, "exp_avg_sq": {}}
    if engine is not None and _adam_steps(optimizer, engine) > 0:
        _link_moments(engine)
    for name, parameter in model.named_parameters():
        result["weights"][name] = _on_cpu(_full_weight(parameter, engine))
        for moment in MOMENTS:
            value = _full_moment(parameter, moment, optimizer, engine)
            if value is not None:
                result[moment][name] = _on_cpu(value)
    # Checkpoints keep the order of the state dict, by which some loaders tell the version.
    result["weights"] = {name: result["weights"][name] for name in model.state_dict()}
    result["adam_steps"] = _adam_steps(optimizer, engine)
    return result


def restore(
    state: dict, model: nn.Module, optimizer: torch.optim.Optimizer, engine: Any | None
) -> None:
    """Writes what `capture` returned into a freshly built model and optimizer, on every rank."""
    steps = state["adam_steps"]
    if engine is not None:
        _create_zero_moments(engine, steps)
    for name, parameter in model.named_parameters():
        _set_weight(parameter, state["weights"][name], engine)
        if steps == 0 or name not in state["exp_avg"]:
            continue
        if engine is None:
            optimizer.state[parameter] = {
                # torch keeps its own step tensor in fp32 on the CPU, fused or not
                "step": torch.tensor(float(steps)),
                **{m: state[m][name].to(parameter.device, copy=True) for m in MOMENTS},
            }
            if optimizer.param_groups[0].get("fused"):
                on_device = optimizer.state[parameter]["step"].to(parameter.device)
                optimizer.state[parameter]["step"] = on_device
        else:
            for moment in MOMENTS:
                _set_zero_value(parameter, state[moment][name], moment)


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().to(device="cpu", dtype=torch.float32, copy=True)


def _full_weight(parameter: nn.Parameter, engine: Any | None) -> Tensor:
    if engine is None:
        return parameter
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        value = safe_get_full_fp32_param(parameter)
        if value is not None:
            return value
    if hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter


def _full_moment(
    parameter: nn.Parameter, moment: str, optimizer: torch.optim.Optimizer, engine: Any | None
) -> Tensor | None:
    if not parameter.requires_grad:
        return None
    if engine is None:
        return optimizer.state.get(parameter, {}).get(moment)
    if _adam_steps(optimizer, engine) == 0:
        return None
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(parameter, moment)


def _inner_parameters(engine: Any) -> Iterator[tuple[Tensor, dict]]:
    """(flat fp32 partition, its parameter group) of DeepSpeed's inner Adam on this rank."""
    zero = engine.optimizer
    groups = zero.optimizer.param_groups
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
            yield flat, groups[zero.sub_group_to_group_id[index]]
    else:
        for group in groups:
            for flat in group["params"]:
                yield flat, group


def _adam_steps(optimizer: torch.optim.Optimizer, engine: Any | None) -> int:
    if engine is None:
        steps = [int(s["step"]) for s in optimizer.state.values() if "step" in s]
        return max(steps, default=0)
    inner = engine.optimizer.optimizer
    for flat, group in _inner_parameters(engine):
        # DeepSpeed's FusedAdam counts in the group, the others per parameter.
        if "step" in inner.state.get(flat, {}):
            return int(inner.state[flat]["step"])
        if inner.state.get(flat) and "step" in group:
            return int(group["step"])
    return 0


def _create_zero_moments(engine: Any, steps: int) -> None:
    """Allocates the moments that DeepSpeed's inner optimizer would create in its first step."""
    if steps == 0:
        return
    inner = engine.optimizer.optimizer
    counts_in_group = type(inner).__name__ == "FusedAdam"
    for flat, group in _inner_parameters(engine):
        inner.state[flat] = {moment: torch.zeros_like(flat.data) for moment in MOMENTS}
        if counts_in_group:
            group["step"] = steps
        elif isinstance(inner, torch.optim.AdamW):
            inner.state[flat]["step"] = torch.tensor(float(steps))
        else:
            inner.state[flat]["step"] = steps
    _link_moments(engine)


def _link_moments(engine: Any) -> None:
    """Points every parameter at its slices of the moments (ZeRO 1 and 2).

    DeepSpeed 0.19 links after the first group's first step, when the other groups have no moments
    yet, and never again; so with several groups the links have to be made anew.
    """
    zero = engine.optimizer
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _set_weight(parameter: nn.Parameter, value: Tensor, engine: Any | None) -> None:
    with torch.no_grad():
        if engine is None:
            parameter.copy_(value)
            return
        if hasattr(parameter, "ds_id"):
            parameter.ds_tensor.copy_(_own_partition(parameter, value))
        else:
            parameter.copy_(value)
    if parameter.requires_grad:
        _set_zero_value(parameter, value, None)


def _set_zero_value(parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """Writes this rank's share of a full fp32 value into ZeRO's flat partition."""
    if hasattr(parameter, "ds_id"):
        zero = parameter._z3_optimizer
        zero.set_local_hp_param(_own_partition(parameter, value), parameter, key)
    elif parameter._hp_mapping is not None:
        parameter.set_full_hp_param(value, key)


def _own_partition(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's ZeRO-3 slice of `value`, zero-padded as DeepSpeed pads the last one."""
    size = parameter.ds_tensor.ds_numel if hasattr(parameter.ds_tensor, "ds_numel") else None
    size = size or parameter.ds_tensor.numel()
    rank = torch.distributed.get_rank()
    flat = value.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(flat, (0, size - flat.numel()))
