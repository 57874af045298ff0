"""A whole training step of every version: forward, backward, optimizer.

    python -m benchmarks.step [--layers 12 --width 768 --vocab 65536 --ctx_len 512 --batch 4]
                              [--precision fp32|bf16] [--versions 4567] [--grad_cp]
                              [--keep_heap 0|1]

Prints tokens/s, the shares of the step that the WKV operator and that token shift with its mixes
take (measured alone on the same shapes in the same run; by torch: what the latter would take
without a fused operator, against the same step), the matrix-product FLOP/s of the step
against the rate that a plain product reaches here, on a GPU the peak memory, and the page faults of
a step. On a CPU the heap is kept, as training does it. Medians; ratios are within one run.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.config.schema import ModelConfig
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize, parameter_groups
from rwkv_train.models.registry import build_model
from rwkv_train.ops.head_loss import Targets
from rwkv_train.ops.token_shift import token_shift
from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv5 import wkv5
from rwkv_train.ops.wkv6 import wkv6
from rwkv_train.ops.wkv7 import wkv7
from rwkv_train.training.kept_heap import huge_page_bytes, keep_heap

# Parameters that mix a token with the one before it, by version: time mix, channel mix.
MIXES = {
    "4": (["time_mix_k", "time_mix_v", "time_mix_r"], ["time_mix_k", "time_mix_r"]),
    "5": (["time_mix_k", "time_mix_v", "time_mix_r", "time_mix_g"], ["time_mix_k", "time_mix_r"]),
    "6": (
        [f"time_maa_{name}" for name in ("x", "w", "k", "v", "r", "g")],
        ["time_maa_k", "time_maa_r"],
    ),
    "7": ([f"x_{name}" for name in "rwkvag"], ["x_k"]),
}


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Returns the median duration of `work` after one warm-up."""
    times = []
    for attempt in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        if attempt:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: torch.device, dtype: torch.dtype, width: int, tokens: int) -> float:
    """Returns FLOP/s of a [tokens, width] x [width, 4 width] product: the floor of the step."""
    a = torch.randn(tokens, width, device=device, dtype=dtype)
    b = torch.randn(width, 4 * width, device=device, dtype=dtype)
    return 2 * tokens * width * 4 * width / median_seconds(lambda: a @ b, device, 7)


def operator_seconds(
    version: str,
    config: ResolvedModel,
    options: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Times forward and backward of one layer's WKV operator at the step's shape."""
    b, t, c = options.batch, options.ctx_len, config.n_embd

    def random(*shape: int, as_dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device, dtype=as_dtype, requires_grad=True)

    if version == "4":
        arguments = [
            random(c, as_dtype=torch.float32),
            random(c, as_dtype=torch.float32),
            random(b, t, c),
            random(b, t, c),
        ]
        function = wkv4
    else:
        n = config.head_size
        h = c // n
        rows = [random(b, t, h, n) for _ in range(5)]
        head = [random(h, n, as_dtype=torch.float32) for _ in range(2)]
        decay = random(b, t, h, n, as_dtype=torch.float32)
        r, k, v, a, kappa = rows
        arguments, function = {
            "5": ([r, k, v, *head], wkv5),
            "6": ([r, k, v, decay, head[1]], wkv6),
            "7": ([r, decay, k, v, a, kappa], wkv7),
        }[version]
        if version == "7":
            with torch.no_grad():
                a.copy_(-torch.nn.functional.normalize(a.float(), dim=-1))
                kappa.copy_(-a * 0.5)

    def work() -> None:
        y, _ = function(*arguments, backend=options.backend)
        y.sum().backward()

    return median_seconds(work, device, options.repeats)


def shift_seconds(
    model: RWKV,
    version: str,
    options: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
) -> float:
    """Times one block's token shifts and mixes, both passes, without the products after them.

    As in the step itself: a mixed-precision step has x in fp32, results and moves in `dtype`.
    """
    block, width = model.blocks[0], model.blocks[0].ln1.weight.shape[0]
    places = [
        [getattr(m, name) for name, _ in m.named_parameters(recurse=False) if name in names]
        for m, names in ((block.att, MIXES[version][0]), (block.ffn, MIXES[version][1]))
    ]
    if version == "6":
        # the mixer's own input comes first, then the five that move
        places[0:1] = [places[0][:1], places[0][1:]]
    shape = (options.batch, options.ctx_len, width)
    x = torch.randn(shape, device=device, requires_grad=True)
    gradient = torch.randn(shape, device=device, dtype=dtype)
    moves = torch.zeros(5, *shape, device=device, dtype=dtype, requires_grad=True)

    def work() -> None:
        for place, shares in enumerate(places):
            mixes = torch.stack([share.flatten() for share in shares])
            moved = moves if version == "6" and place == 1 else None
            mixed = token_shift(x, mixes, moves=moved, dtype=dtype, backend=backend)
            torch.autograd.backward(mixed, [gradient] * len(mixed))

    seconds = median_seconds(work, device, options.repeats)
    model.zero_grad(set_to_none=True)
    return seconds


def measure(version: str, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Figures of one version."""
    dtype = DTYPES[options.precision]
    config = complete_model(
        ModelConfig(
            rwkv_version=version,
            n_layer=options.layers,
            n_embd=options.width,
            vocab_size=options.vocab,
        )
    )
    model = build_model(config, wkv_backend=options.backend, grad_cp=options.grad_cp).to(device)
    initialize(model, seed=0, lr_init=6e-4)
    groups = parameter_groups(model, weight_decay=0.001)
    optimizer = torch.optim.AdamW(
        [{"params": g.parameters, "weight_decay": g.weight_decay} for g in groups],
        lr=1e-5,
        fused=True,
    )
    tokens = torch.randint(options.vocab, (options.batch, options.ctx_len + 1), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model.loss(tokens[:, :-1], Targets(tokens[:, 1:]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(step, device, options.repeats)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    count = options.batch * options.ctx_len
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() >= 2 and n != "emb.weight"
    )
    operator = operator_seconds(version, config, options, device, dtype)
    shifts, plain_shifts = (
        shift_seconds(model, version, options, device, dtype, backend)
        for backend in ("auto", "reference")
    )
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens/s": count / seconds,
        "wkv share": operator * options.layers / seconds,
        "shift share": shifts * options.layers / seconds,
        "plain shift share": plain_shifts * options.layers / seconds,
        "flop/s": 6 * matrices * count / seconds,
        "faults": faults,
        "GiB": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
    }


def main() -> None:
    """Runs what the module's docstring describes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=65536)
    parser.add_argument("--ctx_len", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--versions", default="4567")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--grad_cp", action="store_true")
    parser.add_argument("--keep_heap", type=int, choices=(0, 1), default=1)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[options.precision]
    heap = keep_heap() if device.type == "cpu" and options.keep_heap else "as it is"
    rate = matmul_rate(device, dtype, options.width, options.batch * options.ctx_len)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads; L{options.layers}"
        f" D{options.width} V{options.vocab}, {options.batch} x {options.ctx_len}, "
        f"{options.precision}; a plain product reaches {rate / 1e9:.0f} GFLOP/s; heap {heap}"
    )
    print(
        f"{'version':<9}{'parameters':>13}{'tokens/s':>10}{'wkv share':>11}"
        f"{'shift share':>13}{'(by torch)':>12}"
        f"{'of product rate':>17}{'GiB':>7}{'page faults':>13}{'huge pages':>12}"
    )
    for version in options.versions:
        row = measure(version, options, device)
        print(
            f"RWKV-{version:<4}{row['parameters']:>13,}{row['tokens/s']:>10.0f}"
            f"{row['wkv share']:>10.1%}"
            f"{row['shift share']:>12.1%}{row['plain shift share']:>12.1%}"
            f"{row['flop/s'] / rate:>17.2f}{row['GiB']:>7.1f}{row['faults']:>13,.0f}"
            f"{huge_page_bytes() / 2**20:>8.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
