"""A whole training step of every version: forward, backward, optimizer.

    python -m benchmarks.step [--layers 12 --width 768 --vocab 65536 --ctx_len 512 --batch 4]
                              [--precision fp32|bf16] [--versions 4567] [--grad_cp]
                              [--weights fp32|bf16] [--keep_heap 0|1] [--products chosen|torch]
                              [--operators]

Prints tokens/s, the shares of the step that the WKV operator and that the blocks' norms with their
residual sums and mixes take (measured alone on the same shapes in the same run; by torch: what the
latter would take without a fused operator, against the same step), the matrix-product FLOP/s of the
step against the rate that a plain product reaches here, on a GPU the peak memory, and the page
faults of a step. On a CPU the heap is kept and fp32 products are chosen as training does it
(--products torch: as torch takes them). Medians; ratios are within one run.
--weights bf16: bf16 weights with fp32 masters, in the place of autocast.

--operators tells besides what a step is made of, by kind of operator: time by torch's profiler,
bytes of all tensors read and written (in GB, and a layer in units of one bf16 [B, T, D]) and
launches, with the fused operators and, in the same run, with their references in their place.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.step_operators import compare
from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.models.backbone import RWKV
from rwkv_train.ops.norm_shift import moved_shift, norm_shift
from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv5 import wkv5
from rwkv_train.ops.wkv6 import wkv6
from rwkv_train.ops.wkv7 import wkv7
from rwkv_train.training.kept_heap import huge_page_bytes, keep_heap
from rwkv_train.training.whole_step import (
    TimedShape,
    dtype_named,
    initialized_model,
    median_seconds,
    own_loss,
    own_optimizer,
    own_sizes,
    plain_product,
    product_flops,
    products_chosen,
    random_batch,
    training_step,
)

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


def norm_seconds(
    model: RWKV,
    version: str,
    options: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
) -> float:
    """Times one block's two norms with residual sums and mixes, both passes.

    As in the step itself: the stream has the dtype of the weights, all else that of the products.
    """
    block = model.blocks[0]
    halves = ((block.ln1, block.att, MIXES[version][0]), (block.ln2, block.ffn, MIXES[version][1]))
    shape = (options.batch, options.ctx_len, block.ln1.weight.shape[0])
    x = torch.randn(shape, device=device, dtype=block.ln1.weight.dtype, requires_grad=True)
    out, gate, gradient = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    moves = torch.zeros(5, *shape, device=device, dtype=dtype, requires_grad=True)
    out.requires_grad_()
    gate.requires_grad_()

    def work() -> None:
        for norm, half, names in halves:
            mixes = torch.stack([half.get_parameter(name).flatten() for name in names])
            # The channel mix before is gated, but in RWKV-7; the time mix never.
            gated = half is block.att and version != "7"
            # RWKV-6's mixer has its own input, before the five that move.
            moved = half is block.att and version == "6"
            found = norm_shift(
                *(x, norm.weight, norm.bias, mixes[:1] if moved else mixes),
                out=out,
                gate=gate if gated else None,
                dtype=dtype,
                backend=backend,
            )
            results = [*found.mixed]
            if moved:
                results += moved_shift(found.normal, mixes[1:], moves)
            torch.autograd.backward(
                [found.stream, *results], [x.detach(), *[gradient] * len(results)]
            )

    seconds = median_seconds(work, device, options.repeats)
    model.zero_grad(set_to_none=True)
    return seconds


def prepared_step(
    version: str, options: argparse.Namespace, device: torch.device
) -> tuple[RWKV, Callable[[], None]]:
    """Returns a new model of a version and its step."""
    shape = _shape(options)
    model = initialized_model(version, shape, device, options.backend, options.grad_cp)
    masters = options.weights == "bf16"
    dtype = dtype_named(options.precision)
    autocast = None if masters or dtype == torch.float32 else dtype
    optimizer = own_optimizer(model, masters=masters)
    return model, training_step(own_loss(model), optimizer, random_batch(shape, device), autocast)


def measure(version: str, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Figures of one version."""
    dtype, shape = dtype_named(options.precision), _shape(options)
    model, step = prepared_step(version, options, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(step, device, options.repeats)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    operator = operator_seconds(version, own_sizes(version, shape), options, device, dtype)
    norms, plain_norms = (
        norm_seconds(model, version, options, device, dtype, backend)
        for backend in ("auto", "reference")
    )
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens/s": shape.tokens / seconds,
        "wkv share": operator * options.layers / seconds,
        "norm share": norms * options.layers / seconds,
        "plain norm share": plain_norms * options.layers / seconds,
        "flop/s": product_flops(model, shape, ["emb.weight"]) / seconds,
        "faults": faults,
        "GiB": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
    }


def _shape(options: argparse.Namespace) -> TimedShape:
    return TimedShape(options.layers, options.width, options.vocab, options.ctx_len, options.batch)


def main() -> None:
    """Runs what the module's docstring describes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=65536)
    parser.add_argument("--ctx_len", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--weights", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--versions", default="4567")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--grad_cp", action="store_true")
    parser.add_argument("--keep_heap", type=int, choices=(0, 1), default=1)
    parser.add_argument("--products", choices=("chosen", "torch"), default="chosen")
    parser.add_argument("--operators", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, shape = dtype_named(options.precision), _shape(options)
    heap = keep_heap() if device.type == "cpu" and options.keep_heap else "as it is"
    chosen = products_chosen(device, options.products)
    product, flops = plain_product(device, dtype, shape)
    rate = flops / median_seconds(product, device, 7)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads; {shape}, "
        f"products in {options.precision}, weights in {options.weights}; a plain product reaches "
        f"{rate / 1e9:.0f} GFLOP/s; heap {heap}; products {chosen}"
    )
    print(
        f"{'version':<9}{'parameters':>13}{'tokens/s':>10}{'wkv share':>11}"
        f"{'norm share':>13}{'(by torch)':>12}"
        f"{'of product rate':>17}{'GiB':>7}{'page faults':>13}{'huge pages':>12}"
    )
    for version in options.versions:
        row = measure(version, options, device)
        print(
            f"RWKV-{version:<4}{row['parameters']:>13,}{row['tokens/s']:>10.0f}"
            f"{row['wkv share']:>10.1%}"
            f"{row['norm share']:>12.1%}{row['plain norm share']:>12.1%}"
            f"{row['flop/s'] / rate:>17.2f}{row['GiB']:>7.1f}{row['faults']:>13,.0f}"
            f"{huge_page_bytes() / 2**20:>8.0f} MiB",
            flush=True,
        )
        if options.operators:
            for line in compare(lambda v=version: prepared_step(v, options, device)[1], shape):
                print(line, flush=True)


if __name__ == "__main__":
    main()
