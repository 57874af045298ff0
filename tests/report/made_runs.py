"""Makes folders of runs by hand, with every kind of record that a run can leave."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TOKENS = 2048
SETTINGS = """\
model: {rwkv_version: '6', n_layer: 4, n_embd: 192, vocab_size: 257}
data: {data_file: data/python-bytes, ctx_len: 256}
optim: {lr_init: 0.003, lr_final: 0.0003, warmup_steps: 10, optimizer: adamw}
train: {proj_dir: out, micro_bsz: 8, exit_tokens: 2048000, train_type: all}
hardware: {precision: fp32, devices: 1, num_nodes: 1}
"""
# Ends the element of the data, begins a comment in it, ends a line of JavaScript, is no character.
NASTY = (
    "</script><script>throw 1</script><!-- <img src=x onerror=alert(1)> \u2028\u2029 \ud800 é 世 😀"
)


def step_record(step: int, **more: Any) -> dict[str, Any]:
    """The record of a step whose loss falls from 5.5 to 1.4."""
    return {
        "step": step,
        "loss": 1.4 + 4.1 * math.exp(-step / 30) + 0.05 * math.sin(step),
        "lr": 3e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(step, 1000) / 1000))),
        "weight_decay": 0.001,
        "grad_norm": 0.5 + 1 / (1 + step / 10),
        "tokens": (step + 1) * TOKENS,
        "tokens_per_second": 5000.0 + step % 7 * 50,
        "loop_share": 0.01,
        **more,
    }


def timed(step: int, **more: Any) -> dict[str, Any]:
    """A step with the shares of its time, of which every hundredth is followed by a save."""
    saves = step % 100 == 99
    seconds = TOKENS / 5000 * (2 if saves else 1)
    kinds = ("embedding", "head", "time mix", "channel mix", "vectors")
    found = step_record(
        step,
        seconds=seconds,
        data_share=0.02,
        communication_share=None,
        save_share=0.4 if saves else 0.0,
        validation_share=0.1 if saves else 0.0,
        mfu=0.41,
        mfu_card=None,
        memory=900_000_000 + step * 1000,
    )
    if step % 20 == 0:
        found["grad_norms"] = {kind: 0.1 * (i + 1) for i, kind in enumerate(kinds)}
    return found | more


def everything(steps: int = 400) -> Iterable[dict[str, Any]]:
    """All kinds of records in the order of a run."""
    yield {"step": 0, "tokens": 0, "start_up_seconds": 12.0, "lost_seconds": 0.0}
    for step in range(steps):
        tokens = (step + 1) * TOKENS
        if step in (120, 121, 122):
            yield {
                "step": step,
                "skipped": "loss is NaN",
                "samples": [step * 8 + 1, step * 8 + 8],
                "suspects": [step * 8 + 3],
                "tokens": tokens,
            }
            if step == 122:
                back = {"rollback": "rwkv-step-100.state", "left_out": [801, 984]}
                yield {"step": step, **back, "tokens": tokens}
            continue
        yield timed(step)
        if step % 100 == 99:
            yield validation(step)
            yield {
                "step": step,
                "samples": [{"prompt": "def ", "text": f"f(x):\n    return {step}"}],
                "logit_difference": 1e-6,
            }
            figures = {"acc": 0.3 + step / 1000, "acc_stderr": 0.02, "note": "no number"}
            yield {"step": step, "eval": {"lambada": figures, "piqa": {"acc": 0.5}}}
    ending = {"ending_seconds": 4.0, "save_share": 0.5, "validation_share": 0.25}
    yield {"step": steps - 1, "tokens": steps * TOKENS, **ending}


def validation(step: int) -> dict[str, Any]:
    """A validation a little above the training loss."""
    loss = step_record(step)["loss"] + 0.1
    names = ("0-1", "1-2", "2-4", "4-8", "8-16", "16-32", "32-64", "64-128", "128-256")
    return {
        "step": step,
        "val_loss": loss,
        "val_perplexity": math.exp(loss),
        "val_bits_per_byte": loss / math.log(2),
        "val_tokens": 32768.0,
        "val_loss_by_position": {n: loss + 1 / (i + 1) - 0.3 for i, n in enumerate(names)},
        "val_loss_by_source": {"books": loss - 0.1, "code": loss + 0.1},
    }


def start(step: int = 0, **more: Any) -> dict[str, Any]:
    """The record of a start in starts.jsonl."""
    return {
        "run": "a" * 32,
        "time": f"2026-11-30T0{9 + step // 1000}:00:00+00:00",
        "code_version": "0.2.0",
        "from": "rwkv-init.pth",
        "step": step,
        "tokens": step * TOKENS,
        "changes": [],
        "labels": [],
        "machine": {
            "python": "3.11.7",
            "memory": 25_276_502_016,
            "packages": {"torch": "2.13.0+cpu"},
            "cuda": None,
            "cards": [{"name": "H200", "memory": 150 * 2**30, "capability": "9.0"}],
        },
        **more,
    }


PLAN = {
    "memory": {"weights": 9_600_000, "optimizer": 19_200_000, "activations": 700_000_000},
    "total": 1_000_000_000,
    "limit": 25_000_000_000,
    "flops_per_token": 15_000_000,
    "parameters": 2_400_000,
}


def make_run(
    folder: Path,
    records: Iterable[Mapping[str, Any]],
    starts: Iterable[Mapping[str, Any]] = (),
    settings: str | None = SETTINGS,
    plan: Mapping[str, Any] | None = None,
    lives: Iterable[Mapping[str, Any]] = (),
) -> Path:
    """Writes the files of a run; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {"metrics.jsonl": "", "times.jsonl": ""}
    for record in records:
        is_time = record.keys() & {"start_up_seconds", "ending_seconds"}
        files["times.jsonl" if is_time else "metrics.jsonl"] += json.dumps(record) + "\n"
    for name, text in files.items():
        (folder / name).write_text(text)
    for name, told in (("starts.jsonl", starts), ("lives.jsonl", lives)):
        text = "".join(json.dumps(r) + "\n" for r in told)
        if text:
            (folder / name).write_text(text)
    if settings is not None:
        (folder / "config.yaml").write_text(settings)
    if plan is not None:
        (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def make_full_run(folder: Path) -> Path:
    """Writes a run that has everything a page can show."""
    change = {"changes": ["lr_init 0.003 -> 0.002: another course"], "labels": ["lr_init 0.002"]}
    return make_run(
        folder, everything(), [start(), start(200, **change, code_version="0.2.1")], plan=PLAN
    )


def life(number: int, event: str, step: int, until: float, **more: Any) -> dict[str, Any]:
    """A line of lives.jsonl; until: seconds since the run began, on 30 November 2026 at 9."""
    began = 1_796_029_200.0
    return {
        "life": number,
        "event": event,
        "began": began,
        "until": began + until,
        "tokens": step * TOKENS,
        "lost_steps": 0,
        "seconds": {},
        "step": step,
        **more,
    }


def make_disturbed_run(folder: Path) -> Path:
    """Writes a run whose first start hung and whose second was killed, and one machine was slow."""
    hung = "rank 3 on gpu07: stands still in data after step 240 for 60 s while 3 wait for it"
    lives = [
        life(1, "start", 0, 0),
        life(1, "steps", 0, 20, seconds={"restart": 20}),
        life(1, "left", 240, 200, seconds={"restart": 20, "lost": 60}),
        life(1, "left", 240, 201, seconds={"restart": 21, "lost": 60}, fault=hung, status=75),
        life(2, "start", 200, 211, lost_steps=40, seconds={"restart": 31, "lost": 80}),
        life(2, "steps", 200, 225, lost_steps=40, seconds={"restart": 43, "reload": 2, "lost": 80}),
        life(
            *(3, "start", 300, 400),
            lost_steps=65,
            seconds={"restart": 43, "reload": 2, "lost": 90, "down": 30},
        ),
        life(
            *(3, "steps", 300, 415),
            lost_steps=65,
            seconds={"restart": 55, "reload": 5, "lost": 90, "down": 30},
        ),
        life(
            *(3, "end", 400, 500),
            lost_steps=65,
            seconds={"restart": 55, "reload": 5, "lost": 90, "down": 30, "ending": 4},
        ),
    ]
    line = "gpu02 is slow: all 8 ranks, 0.61 s a step without waiting, 1.4 x the others"
    slow = [
        {"step": 349, "slow": [line], "tokens": 350 * TOKENS},
        {"step": 379, "slow": [], "tokens": 380 * TOKENS},
    ]
    records = [*(timed(step) for step in range(400)), *slow]
    records.sort(key=lambda record: (record["step"], "slow" in record))
    starts = [start(), start(200), start(300)]
    return make_run(folder, records, starts, plan=PLAN, lives=lives)
