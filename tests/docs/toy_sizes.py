"""Makes the command lines of the documents small: what is added or changed, and nothing else.

train.py gets these in the place of its own, also where a file says them:

    n_layer, n_embd         the sizes of `LAYERS` and `WIDTHS`
    ctx_len, chunk_len, val_ctx_len   tokens of a sample or chunk: a 64th, 16 at least
    micro_bsz, accumulate_grad_batches, devices   2 at most; with several machines one device each
    exit_tokens             `STEPS` steps, and max_steps one less at most
    val_samples             2, of what is held out
    *_every, *_every_steps, eval_limit   those of `FEWER`
    accelerator, precision, num_workers, plot   a CPU in fp32, no processes for loading, no picture
    magic_prime, vocab_size   0, which is read from the data

make_data.py: the CTX_LEN behind REPEATS and --ctx_len, one process, and bytes where no tokenizer is
given, since the World vocabulary makes a model 128 times larger; on `WORLD` pages it stays.
Programs that write: at most `TOKENS` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from rwkv_train.config.command_line.argv import read_arguments, write_arguments
from rwkv_train.config.load import load_config
from rwkv_train.config.rwkv_lm.flags import FLAGS, Taken, translate
from rwkv_train.errors import TrainerError

LAYERS = {12: 2, 24: 3, 32: 3}
WIDTHS = {768: 64, 1024: 128, 2048: 128, 2560: 128}
STEPS = 4
TOKENS = 5
FEWER = {
    "val_every": 2,
    "save_every_steps": 2,
    "sample_every": 2,
    "epoch_steps": 2,
    "eval_limit": 2,
    "sample_tokens": 4,
    "head_chunk": 8,
}
# Pages about models that have the World vocabulary.
WORLD = ("docs/tutorials/finetune_on_chats.md",)


def tokens(number: int) -> int:
    """Returns the toy length of a sample or chunk."""
    return max(16, number // 64)


def small(page: str, program: str, arguments: Sequence[str]) -> list[str]:
    """Returns the toy command line of a program (as `Program.module` names it)."""
    if any(word in ("-h", "--help") for word in arguments):
        return list(arguments)
    if program == "rwkv_train.training":
        # What is wrong with a command line is the program's to say.
        with suppress(TrainerError):
            return small_run(arguments)
        return list(arguments)
    if program == "rwkv_train.data":
        return _small_data(page, arguments)
    if program in ("rwkv_train.inference", "rwkv_train.inference.chat"):
        return [*arguments, "--max_tokens", str(TOKENS)]
    return list(arguments)


def small_run(arguments: Sequence[str]) -> list[str]:
    """Returns a command line of train.py with toy sizes at its end."""
    given = load_config(translate(arguments).argv)
    model, data, train, hardware = given.model, given.data, given.train, given.hardware
    machines = hardware.num_nodes or 1
    devices = 1 if machines > 1 else min(2, hardware.devices or 1)
    micro_bsz, passes = min(2, train.micro_bsz), min(2, train.accumulate_grad_batches)
    sample = tokens(data.ctx_len)
    step_samples = micro_bsz * passes * devices * machines
    # A window of several chunks is a step.
    step_tokens = step_samples * (
        sample if train.bptt_chunks is None else train.bptt_chunks * tokens(train.chunk_len or 1)
    )
    sizes: dict[str, object] = {
        "ctx_len": sample,
        "micro_bsz": micro_bsz,
        "accumulate_grad_batches": passes,
        "exit_tokens": STEPS * step_tokens,
        "accelerator": "cpu",
        "precision": "fp32",
        "num_workers": 0,
        "plot": 0,
    }
    if data.val_data_file or data.val_split:
        sizes["val_samples"] = 2
    if hardware.num_nodes is not None:
        sizes["num_nodes"] = machines
    if hardware.devices is not None:
        sizes["devices"] = devices
    if train.max_steps is not None:
        sizes["max_steps"] = min(train.max_steps, STEPS - 1)
    if model.n_layer is not None:
        sizes["n_layer"] = LAYERS[model.n_layer]
    if model.n_embd is not None:
        sizes["n_embd"] = WIDTHS[model.n_embd]
    for name, length in (("chunk_len", train.chunk_len), ("val_ctx_len", data.val_ctx_len)):
        if length is not None:
            sizes[name] = tokens(length)
    given_values = {**vars(train), **vars(data), **vars(given.safety), **vars(given.log)}
    given_values["head_chunk"] = hardware.head_chunk
    for name, most in FEWER.items():
        if given_values[name] is not None and any(f"--{name}" in word for word in arguments):
            sizes[name] = most
    # Those of the toy data are read from it.
    for name, value in (("magic_prime", data.magic_prime), ("vocab_size", model.vocab_size)):
        if value is not None:
            sizes[name] = 0
    # Taken out where they stand: RWKV-LM's name of a setting must not say something else.
    kept = [flag for flag in read_arguments(arguments) if _field(flag.name) not in sizes]
    return [*write_arguments(kept), *(f"--{name}={value}" for name, value in sizes.items())]


def _field(name: str) -> str:
    row = FLAGS.get(name)
    return row.field if isinstance(row, Taken) else name


def _small_data(page: str, arguments: Sequence[str]) -> list[str]:
    words = list(arguments)
    if words[0] in ("--inspect", "--verify", "--verify_pair", "--merge"):
        return words
    for before, after in zip(range(len(words)), range(1, len(words))):
        if words[before].isdigit() and words[after].isdigit():
            # REPEATS and CTX_LEN
            words[after] = str(tokens(int(words[after])))
            break
    if "--synthetic" in words:
        return [*words, "--rows", "40", "--val_rows", "8"]
    if "--tokenizer" not in words and page not in WORLD:
        words += ["--tokenizer", "bytes"]
    return [*words, "--workers", "1"]
