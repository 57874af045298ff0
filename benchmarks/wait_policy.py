"""How long OpenMP's threads should look for work before they sleep: `python -m
benchmarks.wait_policy [--busy 2] [--rounds 5]`. Trains the demo's model for a few seconds in a
process of its own under every setting in turn, `rounds` times, beside `busy` other processes that
each keep a processor busy; prints tokens/s and the ratio to libgomp's default within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

SETTINGS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"{n} spins": {"GOMP_SPINCOUNT": str(n)} for n in (1_000, 10_000, 100_000)},
}
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
BATCH, CTX_LEN, VOCAB = 8, 256, 257


def speed(seconds: float) -> float:
    """Tokens/s of RWKV-6 with 4 layers and width 192 in fp32."""
    import torch

    from rwkv_train.config.resolve.model_sizes import complete_model
    from rwkv_train.config.schema import ModelConfig
    from rwkv_train.models.parameters import initialize
    from rwkv_train.models.registry import build_model

    sizes = ModelConfig(rwkv_version="6", n_layer=4, n_embd=192, vocab_size=VOCAB)
    model = build_model(complete_model(sizes))
    initialize(model, seed=0, lr_init=6e-4)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(VOCAB, (BATCH, CTX_LEN))

    def step() -> None:
        logits, _ = model(tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        step()
        steps += 1
    return steps * BATCH * CTX_LEN / (time.perf_counter() - begun)


def measured(setting: dict[str, str], seconds: float) -> float:
    """The speed in a process of its own, which has the setting from its start."""
    environment = {k: v for k, v in os.environ.items() if k not in POLICIES}
    command = [sys.executable, "-m", "benchmarks.wait_policy", "--measure", str(seconds)]
    done = subprocess.run(command, env=environment | setting, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return float(done.stdout)


def main() -> None:
    """Prints the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--busy", type=int, default=0, help="processes that run beside it")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=4.0, help="of a measurement")
    p.add_argument("--measure", type=float, help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.measure is not None:
        print(speed(options.measure))
        return
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)
    ]
    try:
        rounds = [
            {name: measured(setting, options.seconds) for name, setting in SETTINGS.items()}
            for _ in range(options.rounds)
        ]
    finally:
        for burner in burners:
            burner.kill()
    print(f"{options.busy} busy processes, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for name in SETTINGS:
        tokens = statistics.median(found[name] for found in rounds)
        ratios = sorted(found[name] / found["default"] for found in rounds)
        print(
            f"{name:14s} {tokens:8.0f} tokens/s, times the default: median "
            f"{statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )


if __name__ == "__main__":
    main()
