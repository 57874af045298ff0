"""A plan as tables that people read."""

from __future__ import annotations

from rwkv_train.config.copy_places import PARTNER
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import tokens_per_step, window_len
from rwkv_train.planning.amounts import decimal_bytes, duration, gib, rounded, short_count
from rwkv_train.planning.cost import RunCost
from rwkv_train.planning.file_sizes import CopySize
from rwkv_train.planning.flops import WKV, WKV_WORK
from rwkv_train.planning.plan import UNCERTAIN, Device, Plan
from rwkv_train.planning.step_time import StepTime
from rwkv_train.planning.text_table import text_table

# Components of the memory, where their names need words.
_NAMES = {
    "master_weights": "fp32 masters",
    "head": "head and loss",
    "states": "states of chunks",
    "slack": "libraries, allocator",
    "batch": "tokens of the batch",
}
_PARTS = {
    "products": "products",
    "elementwise": "elementwise",
    "wkv": "WKV",
    "head": "head",
    "optimizer": "optimizer",
    "links": "waiting for links",
    "context": "waiting for context",
    "gaps": "pauses",
}
# Files of weights of which a reader may want fewer.
_MANY_FILES = 20


def plan_lines(plan: Plan) -> list[str]:
    """Returns the lines of a plan, sections with an empty line between them."""
    sections = [_run(plan), _parameters(plan), _flops(plan), _memory(plan), _files(plan)]
    sections += [section for section in (_speed(plan), _whole_run(plan)) if section]
    return [line for section in sections for line in ("", *section)][1:]


def hint_lines(plan: Plan, *, searched: bool) -> list[str]:
    """Returns a line for every flag of rwkv-plan that would say more.

    searched: whether settings that fit were searched for.
    """
    lines = [*_unused(plan)]
    on_cpu = plan.config.hardware.accelerator == "cpu"
    if plan.device.memory is None:
        known = "--memory 24GB says" if on_cpu else "--card NAME, or --memory 24GB, says"
        lines.append(f"{known} whether it fits{'' if on_cpu else '; --cards lists cards'}.")
    elif not searched and (plan.share or 0.0) > 1 - UNCERTAIN:
        lines.append("--fit searches settings that fit.")
    if on_cpu:
        return lines
    if plan.device.card is None:
        lines.append("--card NAME, or --rate 165e12, predicts the speed.")
    elif plan.tokens is None:
        lines.append("--tokens 300B adds time, energy and, with --price, money.")
    elif plan.wishes.price is None:
        lines.append("--price 2.5, of a card and hour, adds money.")
    return lines


def _unused(plan: Plan) -> list[str]:
    """Returns a line on wishes that need what is not known."""
    if plan.cost is not None:
        return []
    lacks_speed = plan.tokens_per_second is None
    names = ["price", "watts", *(["mfu"] if lacks_speed else [])]
    given = [f"--{name}" for name in names if getattr(plan.wishes, name) is not None]
    lacks = "the speed is" if lacks_speed else "the tokens of the run are"
    return [f"{' and '.join(given)}: not used, for {lacks} not known."] if given else []


def _run(plan: Plan) -> list[str]:
    config = plan.config
    model, train, hardware = config.model, config.train, config.hardware
    heads = f", heads of {model.head_size}" if model.head_size else ""
    learns = {
        "all": "",
        "states": "; the initial states learn",
        "lora": f"; adapters of rank {config.adapter.lora_r} learn",
    }[train.train_type]
    passes = train.accumulate_grad_batches
    times = f" x {passes} passes" if passes > 1 else ""
    places = f" x {plan.devices} devices" if plan.devices > 1 else ""
    sharing = hardware.context_parallel
    if sharing > 1:
        groups = "a group" if plan.devices == sharing else f"{plan.devices // sharing} groups"
        places = f" x {groups} of {sharing} devices that share a sample"
    return [
        f"RWKV-{model.rwkv_version}, {model.n_layer} layers, width {model.n_embd}{heads}, channel "
        f"mix {model.dim_ffn}, vocabulary {model.vocab_size}{learns}",
        f"{train.micro_bsz} x {window_len(config):,} tokens{times}{places} = "
        f"{tokens_per_step(config):,} a step",
        "; ".join([_weights(config), config.optim.optimizer, hardware.strategy, *_saving(config)]),
    ]


def _weights(config: ResolvedConfig) -> str:
    hardware = config.hardware
    if hardware.autocast is None:
        return f"{hardware.precision} weights"
    if hardware.autocast:
        return f"fp32 weights, products in {hardware.precision}"
    return f"{hardware.precision} weights with fp32 masters"


def _saving(config: ResolvedConfig) -> list[str]:
    train = config.train
    chunks = [] if train.chunk_len is None else [f"chunks of {train.chunk_len}"]
    return [*(["grad_cp"] if train.grad_cp else []), *chunks]


def _parameters(plan: Plan) -> list[str]:
    table, total = plan.parameters, plan.parameters.total
    rows = [
        (kind.value, f"{count:,}", f"{count / total:.1%}")
        for kind, count in table.kinds.items()
        if count
    ]
    rows.append(("all", f"{total:,}", ""))
    if plan.config.train.train_type != "all":
        rows.append(("that learn", f"{plan.learnt:,}", f"{plan.learnt / total:.1%}"))
    state = f"One sequence's state: {table.state:,} numbers, {gib(4 * table.state)} in fp32."
    return [*text_table(("parameters", "", ""), rows, "lrr"), state]


def _flops(plan: Plan) -> list[str]:
    flops = plan.flops
    unit, name = (1e6, "MFLOPs") if flops.model_flops >= 1e7 else (1e3, "kFLOPs")
    parts = [*flops.parts.items(), ("all", (flops.forward, flops.backward, flops.recompute))]
    rows = [
        (part, *(f"{count / unit:,.1f}" if count else "-" for count in passes))
        for part, passes in parts
        if any(passes)
    ]
    heads = (f"{name} per token", "forward", "backward", "again")
    return [*text_table(heads, rows, "lrrr"), *_formula(plan)]


def _formula(plan: Plan) -> list[str]:
    """Returns the arithmetic of the forward pass in words, and what the other columns are."""
    flops, work = plan.flops, WKV_WORK[plan.config.model.rwkv_version]
    wkv = flops.parts[WKV].forward
    entries = "channels" if plan.config.model.head_size == 0 else "entries of states"
    lines = [
        f"Forward: 2 x {(flops.forward - wkv) // 2:,} elements of matrices + {work.forward} x "
        f"{wkv // work.forward:,} {entries} in WKV."
    ]
    if plan.config.train.train_type == "all":
        lines.append("Backward: twice the products, for inputs and matrices each has a gradient.")
    if flops.recompute:
        lines.append("Again: what was not kept is computed again; it is no part of MFU.")
    return [*lines, f"The model's FLOPs: {short_count(flops.model_flops)} a token."]


def _memory(plan: Plan) -> list[str]:
    total = plan.memory.total
    rows = [
        (_NAMES.get(name, name), gib(size), f"{size / total:.0%}")
        for name, size in plan.memory.components().items()
        if size
    ]
    rows.append(("all", gib(total), ""))
    title = "memory of the device" if plan.devices == 1 else "memory of each device"
    lines = text_table((title, "", ""), rows, "lrr")
    return [*lines, _verdict(plan), *_host(plan)]


def _verdict(plan: Plan) -> str:
    """Returns the line that says whether the run fits."""
    share, memory = plan.share, plan.device.memory
    if share is None or memory is None:
        return "At the worst moment of a step; the prediction errs by up to 10 %."
    name = "" if plan.device.name is None or plan.device.is_assumed else f", {plan.device.name}"
    taken = f"{share:.0%} of {gib(memory)}{name}"
    if abs(share - 1) <= UNCERTAIN:
        return f"May fit, or not: {taken}, and the prediction errs by up to 10 %."
    return f"{'Fits' if share < 1 else 'Does not fit'}: {taken}."


def _host(plan: Plan) -> list[str]:
    """Returns a line on the memory of the machines that the cards are in."""
    host = plan.host
    parts = [(host.offloaded, "offloaded optimizer"), (host.saves, "copies that a save writes")]
    words = ", ".join(f"{name} {decimal_bytes(size)}" for size, name in parts if size)
    whose = "each machine's" if plan.config.hardware.num_nodes > 1 else "the machine's"
    return [f"In {whose} own memory: {words}."] if words else []


def _files(plan: Plan) -> list[str]:
    files, count = plan.files, plan.files.weight_files
    kept = "a new one at every save" if count is None else f"{count:,} files"
    rows = [
        ("rwkv-N.pth", decimal_bytes(files.weights), kept),
        ("rwkv-N.state", decimal_bytes(files.state), f"{files.states} kept, with the final one"),
    ]
    if files.most is not None:
        rows.append(("all at the end", decimal_bytes(files.most), ""))
    rows += [_copies(copy, plan.config.hardware.num_nodes) for copy in plan.copies]
    if plan.data is not None and plan.tokens is not None:
        size = decimal_bytes(plan.data.bin + plan.data.idx)
        rows.append((f"{short_count(plan.tokens)} tokens of data", size, ".bin and .idx"))
    lines = text_table(("files", "", ""), rows, "lrl")
    if count is not None and count > _MANY_FILES:
        lines.append("--epoch_save N saves every N-th mini-epoch, --keep_last_weights N keeps N.")
    return lines


def _copies(copy: CopySize, machines: int) -> tuple[str, str, str]:
    """Returns the row of a place for second copies."""
    folder = copy.place.folder
    if not copy.place.on_partner:
        return (f"in {folder}", decimal_bytes(copy.bytes), f"{copy.states} states at most")
    if machines == 1:
        return (f"{PARTNER}{folder}", "-", "one machine has no partner")
    return (f"{PARTNER}{folder}", decimal_bytes(copy.bytes), f"{copy.states} states at most")


def _speed(plan: Plan) -> list[str]:
    lines = [] if plan.step is None else _step(plan.step, plan.device)
    if plan.device.card is not None and plan.tokens_per_second is None:
        precision = plan.config.hardware.precision
        lines.append(f"speed: not known in {precision}; the table's rates are of 16 bits and tf32")
    if plan.wishes.mfu is not None and plan.tokens_per_second is not None:
        speed = short_count(plan.tokens_per_second)
        lines.append(f"at --mfu {plan.wishes.mfu:g}: {speed} tokens/s")
    return lines


def _step(step: StepTime, device: Device) -> list[str]:
    shares = sorted(
        ((getattr(step, name) / step.seconds, words) for name, words in _PARTS.items()),
        reverse=True,
    )
    lines = [
        f"speed by arithmetic, at best: {short_count(step.tokens_per_second)} tokens/s, MFU "
        f"{step.mfu:.0%}, {duration(step.seconds)} a step",
        "  " + ", ".join(f"{words} {share:.0%}" for share, words in shares if share >= 0.005),
    ]
    if device.is_assumed:
        lines.append("  bandwidth and link taken in proportion to those of an RTX 4090")
    if step.waits_for_host:
        lines.append("  the host's launches take longer than the card: give it more tokens a pass")
    return lines


def _whole_run(plan: Plan) -> list[str]:
    cost, name = plan.cost, plan.device.name
    return [] if cost is None or name is None else _cost(cost, name)


def _cost(cost: RunCost, name: str) -> list[str]:
    times = f"{duration(cost.seconds)} on {cost.devices} x {name}"
    sums = [f"{rounded(cost.gpu_hours)} GPU-hours"]
    if cost.energy is not None:
        sums.append(f"{rounded(cost.energy)} kWh of the cards alone")
    if cost.money is not None:
        sums.append(f"{cost.money:,.2f} at {cost.price:g} a card and hour")
    return [
        f"{short_count(cost.tokens)} tokens, {cost.flops:.3g} FLOPs of the model: {times}",
        "  " + ", ".join(sums),
    ]
