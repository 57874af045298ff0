"""Writes a checkpoint for another program: `rwkv-export --load_model X.pth --to gguf ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rwkv_train.command_line import OneLineParser, invoked_name, path_argument, program, status_of
from rwkv_train.errors import ConfigError
from rwkv_train.processors import prepare_threads

# Every target, with what reads it; `target_table.py` has the same names, and a test compares.
TARGET_WORDS = {
    "pth": "RWKV-LM, pip's rwkv, RWKV Runner",
    "safetensors": "a plain file of weights",
    "transformers": "RWKV-4: transformers' RwkvForCausalLM",
    "fla": "RWKV-6, 7: flash-linear-attention",
    "rwkv7-hf": "RWKV-7: rwkv7-hf, the same folder",
    "gguf": "RWKV-6, 7: llama.cpp, Ollama",
    "web-rwkv": "web-rwkv and Ai00, .st",
}
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "q8_0")


def export_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    targets = "; ".join(f"{name}: {words}" for name, words in TARGET_WORDS.items())
    p = OneLineParser(
        prog=invoked_name("python -m rwkv_train.export"),
        description="Writes a model for another program, opens it there, and compares the logits; "
        "what differs gets no file.",
    )
    add = p.add_argument
    add(
        "--load_model",
        required=True,
        type=path_argument,
        metavar="FILE",
        help="checkpoint, .pth or .safetensors, or an exported folder",
    )
    add("--to", required=True, choices=tuple(TARGET_WORDS), help=targets)
    add(
        "--output",
        required=True,
        type=path_argument,
        metavar="PATH",
        help="file or folder to write, which must not exist",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the numbers written, q8_0 for gguf only; auto: the model's own, or the only one "
        "that the target has",
    )
    add("--lora", type=path_argument, metavar="FILE", help="adapter to merge into the model")
    add(
        "--load_states",
        type=path_argument,
        metavar="FILE",
        help="trained initial states; written beside where the target has no place for them",
    )
    add(
        "--tokenizer",
        type=path_argument,
        metavar="NAME",
        help="world, bytes, a tokenizer.json or a vocabulary as .txt; else the run's own",
    )
    add(
        "--gguf_eot",
        metavar="ID",
        help="for gguf: the token at which llama.cpp also ends an answer, or none (default 261, a "
        "blank line, for the World vocabulary, as all published files have it)",
    )
    add(
        "--check",
        type=int,
        choices=(0, 1),
        default=1,
        help="compare logits with ours in fp64, which takes 8 more bytes of memory a parameter "
        "(default 1)",
    )
    add(
        "--card",
        type=int,
        choices=(0, 1),
        default=1,
        help="write a model card with the facts of the run: README.md in a folder, FILE.README.md "
        "next to a file (default 1)",
    )
    _add_hub_flags(p)
    return p


def _add_hub_flags(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add(
        "--hub_push",
        metavar="OWNER/NAME",
        help="upload to this repository of the Hugging Face hub; lists the files and asks before",
    )
    add("--hub_public", action="store_true", help="make a new repository public, not private")
    add("--yes", action="store_true", help="upload without asking")


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = export_parser().parse_args(argv)
    return status_of(lambda: _export(arguments), prints=False)


def _export(a: argparse.Namespace) -> None:
    prepare_threads()
    from rwkv_train.checkpoint.number_formats import precision_of
    from rwkv_train.export.exporting import card_path, export_model, require_free
    from rwkv_train.export.hub import push_uploads, require_hub, uploads_of
    from rwkv_train.export.model_source import read_source
    from rwkv_train.export.target import ExportOptions
    from rwkv_train.export.target_table import target_named

    target, out = target_named(a.to), Path(a.output)
    if a.gguf_eot is not None and target.name != "gguf":
        raise ConfigError(f"--gguf_eot {a.gguf_eot} is for --to gguf only; leave it out")
    # Before gigabytes are read in vain.
    require_free(out, target, card=bool(a.card))
    if a.hub_push:
        require_hub(a.hub_push, agreed=a.yes)
    elif a.yes or a.hub_public:
        raise ConfigError(
            f"{'--yes' if a.yes else '--hub_public'} belongs to --hub_push; give that"
        )
    model = read_source(
        Path(a.load_model),
        tokenizer=a.tokenizer,
        lora=None if a.lora is None else Path(a.lora),
        load_states=None if a.load_states is None else Path(a.load_states),
    )
    precision = precision_of(model.dtype) if a.precision == "auto" else a.precision
    if a.precision == "auto" and len(target.precisions) == 1:
        (precision,) = target.precisions
    print(f"{a.load_model}: {model.in_words()}")
    card, options = bool(a.card), ExportOptions(precision, a.gguf_eot)
    export_model(model, target, options, out, check=bool(a.check), card=card)
    if a.hub_push:
        uploads = uploads_of(out, card_path(out) if card else None)
        push_uploads(uploads, a.hub_push, out=out, private=not a.hub_public, agreed=a.yes)


if __name__ == "__main__":
    sys.exit(main())
