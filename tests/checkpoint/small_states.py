"""Training states that are small."""

from __future__ import annotations

import torch


def small_state(step: int, **more: object) -> dict:
    """A small training state; 10 tokens a step."""
    weights = {"a": torch.arange(6.0).reshape(2, 3) + step, "b": torch.tensor(0.1)}
    moments = {name: torch.ones_like(value) for name, value in weights.items()}
    return {
        "step": step,
        "tokens_per_step": 10,
        "weights": weights,
        "optimizer": "adam",
        "moments": {"exp_avg": moments, "exp_avg_sq": moments},
        "optimizer_steps": step,
        "rng": [{"cpu": torch.get_rng_state()}],
        "epoch_loss_sum": 0.1 + 0.2,
        "config": "train:\n  x: 1\n",
        "scaler": None,
        **more,
    }
