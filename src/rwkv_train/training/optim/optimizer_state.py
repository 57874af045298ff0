"""The optimizer's moments and the fp32 master weights by parameter name, whatever shards them.

`capture` gathers them from a torch optimizer or from DeepSpeed's ZeRO 1, 2 and 3; `restore` puts
them back. In between they are plain full tensors, so a run may resume with another number of
processes, another ZeRO stage or without DeepSpeed.

A moment is any tensor that the optimizer keeps for a parameter: exp_avg and exp_avg_sq of Adam,
momentum_buffer of Muon, the 8-bit values and their scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_train.checkpoint.lazy_tensors import copied_to, write_into
from rwkv_train.checkpoint.part_tensors import element_run
from rwkv_train.training.optim.fused_adamw import FusedAdamW
from rwkv_train.training.optim.host_copies import HostCopies
from rwkv_train.training.optim.muon import MuonWithAdamW

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
MUON_MOMENTS = ("momentum_buffer",)


def capture(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    engine: Any | None,
    *,
    copies: HostCopies,
    frozen: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Returns full copies of weights (fp32) and moments. Collective.

    copies: makes them; a rank that keeps none takes part in the gathering alone. frozen: as in
    `full_weights`.

    Returns {"weights": {name: tensor}, "moments": {key: {name: tensor}}, "optimizer_steps": int}.
    """
    moments: dict[str, dict[str, Tensor]] = {}
    steps = updates_made(optimizer, engine)
    # Gathering needs the links, and every rank must make the same calls in the same order: hence
    # the keys by group below rather than by what this rank happens to have.
    if engine is not None and steps > 0:
        link_moments(engine)
    keys = {} if engine is None else moments_by_parameter(engine)
    weights = full_weights(model, optimizer, engine, copies=copies, frozen=frozen)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or steps == 0:
            continue
        found = (
            own_moments(parameter, optimizer)
            if engine is None
            else _gathered_moments(parameter, keys[id(parameter)])
        )
        for key, value in found:
            copies.keep(moments.setdefault(key, {}), name, value)
    return {"weights": weights, "moments": moments, "optimizer_steps": steps}


def restore(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, engine: Any | None
) -> None:
    """Writes what `capture` returned into a model and optimizer, fresh or in use.

    Every rank passes the whole state and takes its share.
    """
    steps = state["optimizer_steps"]
    # The optimizer of a run that goes back to an earlier state is not fresh.
    if engine is None:
        optimizer.state.clear()
    elif steps > 0 or engine.optimizer.optimizer.state:
        _create_zero_moments(engine, steps)
    fused = {id(p) for g in optimizer.param_groups if g.get("fused") for p in g["params"]}
    for name, parameter in model.named_parameters():
        # A frozen base model comes from its own file.
        if name not in state["weights"]:
            continue
        _set_weight(parameter, state["weights"], name, optimizer, engine)
        found = {key: values for key, values in state["moments"].items() if name in values}
        if steps == 0 or not found:
            continue
        if engine is None:
            device = parameter.device
            own: dict[str, Any] = {k: copied_to(device, v, name) for k, v in found.items()}
            optimizer.state[parameter] = own
            if "momentum_buffer" not in own:
                own["step"] = _step_counter(
                    optimizer, steps, parameter.device if id(parameter) in fused else None
                )
        else:
            for key, values in found.items():
                _set_zero_value(parameter, values, name, key)


def without_moments(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a training state without moments, from which an optimizer starts empty."""
    return {**state, "moments": {}, "optimizer_steps": 0}


def full_weights(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    engine: Any | None,
    *,
    copies: HostCopies,
    frozen: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Returns full fp32 copies of the weights, in the order of the state dict. Collective.

    frozen: values that need no copy, by name, the same names on every rank: those of a parameter
    that does not learn are a bf16 rounding under DeepSpeed.
    """
    frozen = frozen or {}
    found: dict[str, Tensor] = dict(frozen)
    for name, parameter in model.named_parameters():
        if name not in frozen:
            copies.keep(found, name, _full_weight(parameter, optimizer, engine))
    # Checkpoints keep the order of the state dict, by which some loaders tell the version.
    return {name: found[name] for name in model.state_dict() if name in found}


def _step_counter(
    optimizer: torch.optim.Optimizer, steps: int, device: torch.device | None
) -> Tensor | int:
    """Returns a count as the optimizer keeps it.

    torch's AdamW: an fp32 tensor, on the device if it is fused; others: an int.
    """
    if isinstance(optimizer, (torch.optim.AdamW, MuonWithAdamW)):
        return torch.tensor(float(steps), device=device)
    return steps


def master_of(parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Returns the fp32 value of a parameter, which may be a bf16 copy of it."""
    return optimizer.master_of(parameter) if isinstance(optimizer, FusedAdamW) else parameter


def _full_weight(
    parameter: nn.Parameter, optimizer: torch.optim.Optimizer, engine: Any | None
) -> Tensor:
    if engine is None:
        return master_of(parameter, optimizer)
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        # The master weight: the parameter itself may be a bf16 copy of it.
        value: Tensor | None = safe_get_full_fp32_param(parameter)
        if value is not None:
            return value
    if hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter


def own_moments(
    parameter: nn.Parameter, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    """Yields the moments of a parameter that is whole, and what each is called."""
    for key, value in optimizer.state.get(parameter, {}).items():
        if key != "step" and isinstance(value, Tensor):
            yield key, value


def _gathered_moments(
    parameter: nn.Parameter, keys: tuple[str, ...]
) -> Iterator[tuple[str, Tensor]]:
    from deepspeed.utils import safe_get_full_optimizer_state

    for key in keys:
        value = safe_get_full_optimizer_state(parameter, key)
        if value is not None:
            yield key, value


def moments_by_parameter(engine: Any) -> dict[int, tuple[str, ...]]:
    """Returns id of every trained parameter -> the moments it has; the same on every rank."""
    zero = engine.optimizer
    stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    groups = zero.optimizer.param_groups
    keys: dict[int, tuple[str, ...]] = {}
    for index, parameters in enumerate(zero.fp16_groups if stage_3 else zero.bit16_groups):
        group = groups[zero.sub_group_to_group_id[index] if stage_3 else index]
        keys.update((id(parameter), _moments_of(group)) for parameter in parameters)
    return keys


def _moments_of(group: dict[str, Any]) -> tuple[str, ...]:
    return MUON_MOMENTS if group.get("is_muon") else ADAM_MOMENTS


def _inner_parameters(engine: Any) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yields (flat fp32 partition, its parameter group) of DeepSpeed's inner Adam on this rank."""
    zero = engine.optimizer
    groups = zero.optimizer.param_groups
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
            yield flat, groups[zero.sub_group_to_group_id[index]]
    else:
        for group in groups:
            for flat in group["params"]:
                yield flat, group


def updates_made(optimizer: torch.optim.Optimizer, engine: Any | None) -> int:
    """Returns the updates the optimizer has made; Muon's matrices have no counter of their own."""
    if engine is None:
        counted = [int(s["step"]) for s in optimizer.state.values() if "step" in s]
        return max(counted, default=0)
    inner = engine.optimizer.optimizer
    counted = [
        int(inner.state[flat]["step"])
        for flat, _ in _inner_parameters(engine)
        if "step" in inner.state.get(flat, {})
    ]
    return max(counted, default=0)


def _create_zero_moments(engine: Any, steps: int) -> None:
    """Allocates the moments that DeepSpeed's inner optimizer would create in its first step."""
    inner = engine.optimizer.optimizer
    for flat, group in _inner_parameters(engine):
        moments = _moments_of(group)
        inner.state[flat] = {key: torch.zeros_like(flat.data) for key in moments}
        if moments == ADAM_MOMENTS:
            inner.state[flat]["step"] = _step_counter(
                inner, steps, flat.device if group.get("fused") else None
            )
    link_moments(engine)


def link_moments(engine: Any) -> None:
    """Points every parameter at its slices of the moments (ZeRO 1 and 2).

    DeepSpeed 0.19 links after the first group's first step, when the other groups have no moments
    yet, and never again; so with several groups the links have to be made anew.
    """
    zero = engine.optimizer
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


# Parameters are Any where DeepSpeed has hung attributes of its own on them.
def _set_weight(
    parameter: Any,
    values: Mapping[str, Tensor],
    name: str,
    optimizer: torch.optim.Optimizer,
    engine: Any | None,
) -> None:
    with torch.no_grad():
        if hasattr(parameter, "ds_id"):
            parameter.ds_tensor.copy_(_own_partition(parameter, values, name))
        else:
            # Into the parameters themselves: a model beside them would be twice the memory.
            write_into(parameter, values, name)
            master = parameter if engine is not None else master_of(parameter, optimizer)
            if master is not parameter:
                write_into(master, values, name)
    if engine is not None and parameter.requires_grad:
        _set_zero_value(parameter, values, name, None)


def _set_zero_value(
    parameter: Any, values: Mapping[str, Tensor], name: str, key: str | None
) -> None:
    """Writes this rank's share of a full fp32 value into ZeRO's flat partition."""
    if hasattr(parameter, "ds_id"):
        zero = parameter._z3_optimizer
        zero.set_local_hp_param(_own_partition(parameter, values, name), parameter, key)
    elif parameter._hp_mapping is not None:
        own = parameter._hp_mapping.lp_fragment_address
        write_into(parameter._hp_mapping.get_hp_fragment(key).data, values, name, own.start)


def _own_partition(parameter: Any, values: Mapping[str, Tensor], name: str) -> Tensor:
    """Returns this rank's ZeRO-3 slice of a value, zero-padded as DeepSpeed pads the last one."""
    first, last, size = zero3_run(parameter)
    return nn.functional.pad(element_run(values, name, first, last), (0, size - (last - first)))


def zero3_run(parameter: Any) -> tuple[int, int, int]:
    """Returns the first and last + 1 element of this rank's ZeRO-3 slice, and its padded size."""
    size = parameter.ds_tensor.ds_numel if hasattr(parameter.ds_tensor, "ds_numel") else None
    size = size or parameter.ds_tensor.numel()
    rank = torch.distributed.get_rank()
    first, last = (min(place * size, parameter.ds_numel) for place in (rank, rank + 1))
    return first, last, size
