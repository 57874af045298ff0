"""The loss scale of fp16, as training states hold it: torch's scaler and DeepSpeed's alike.

    torch        {"scale": s, "_growth_tracker": good steps since s changed, ...}, as torch has it
    DeepSpeed    {"scale": s, "zero": {counter: value}}

A run that changes to the other takes over the scale alone.
"""

from __future__ import annotations

from typing import Any

# The counters by which DeepSpeed's dynamic scaler decides when the scale grows or shrinks.
_ZERO_COUNTERS = ("cur_iter", "last_overflow_iter", "cur_hysteresis")


def capture_loss_scale(scaler: Any | None, engine: Any | None) -> dict[str, Any] | None:
    """Returns plain values for the training state; None in a run without a loss scale.

    scaler: torch's GradScaler; engine: DeepSpeed's, which has a scaler of its own.
    """
    zero = _zero_scaler(engine)
    if zero is not None:
        counters = {key: getattr(zero, key) for key in _ZERO_COUNTERS}
        return {"scale": float(zero.cur_scale), "zero": counters}
    return None if scaler is None else dict(scaler.state_dict())


def restore_loss_scale(
    saved: dict[str, Any] | None, scaler: Any | None, engine: Any | None
) -> None:
    """Takes over what `capture_loss_scale` gave, or as much of it as this run's scaler has."""
    # An fp16 run of another precision before, or torch's scaler that is switched off.
    if not saved or "scale" not in saved:
        return
    zero = _zero_scaler(engine)
    if zero is not None:
        zero.cur_scale = saved["scale"]
        for key, value in saved.get("zero", {}).items():
            setattr(zero, key, value)
    elif scaler is not None:
        own = scaler.state_dict()
        scaler.load_state_dict(
            {key: saved.get(key, value) for key, value in own.items()} if own else saved
        )


def _zero_scaler(engine: Any | None) -> Any | None:
    """Returns DeepSpeed's scaler if it moves: in bf16 and fp32 there is one that stays at 1."""
    scaler = None if engine is None else getattr(engine.optimizer, "loss_scaler", None)
    return scaler if hasattr(scaler, "cur_iter") else None
