"""The report of `make_data.py` on the data it made."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Sequence

from rwkv_train.data.binidx.layout import bin_path, idx_path, mask_path
from rwkv_train.data.binidx.manifest import Manifest, pair_digests
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.convert.pipeline import Converted
from rwkv_train.data.inspect.loss_mask_preview import marked_examples, supervised_line
from rwkv_train.data.sampling.magic_prime import largest_ctx_len, magic_prime
from rwkv_train.data.tokenize.tokenizer import Tokenizer

_PREVIEW_TOKENS = 100
_PREVIEW_CHARACTERS = 160
_KEYS_SHOWN = 12


def report(converted: Converted, ctx_len: int) -> str:
    """Returns counts, a preview of the first and last document, and the flags to train with."""
    (prefix, manifest), *held_out = converted.manifests.items()
    lines = [_counts(prefix, manifest)]
    lines += [f"{_counts(p, m)}, held out" for p, m in held_out]
    if converted.reused:
        lines.append("(already made from this input with these options; left as it was)")
    lines += _notes(converted)
    lines += leftovers(prefix, list(converted.manifests))
    # No flags for a part: token count and magic prime are those of the joined data.
    if "part" in manifest.made_from:
        lines.append("join all parts with make_data.py --merge PREFIX.part-*.json -o PREFIX")
        return "\n".join(lines)
    pairs = list(pair_digests(prefix, manifest))
    lines.append(what_is_inside([Binidx(pair) for pair in pairs], manifest, converted.tokenizer))
    if ctx_len > largest_ctx_len(manifest.tokens):
        lines.append(small_data_advice(manifest.tokens, ctx_len))
    else:
        val_prefix = held_out[0][0] if held_out else None
        flags = flag_line(prefix, manifest.tokens, ctx_len, manifest.vocab_size, val_prefix)
        lines.append(f"flags for train.py:\n{flags}")
    return "\n".join(lines)


def flag_line(
    prefix: str,
    tokens: int,
    ctx_len: int,
    vocab_size: int | None = None,
    val_prefix: str | None = None,
) -> str:
    """Returns the flags of train.py that belong to this data, on one line.

    Raises DataError when the data has fewer than three slots of ctx_len tokens.
    """
    flags = {
        "data_file": shlex.quote(prefix),
        "my_exit_tokens": tokens,
        "magic_prime": magic_prime(tokens, ctx_len),
        "ctx_len": ctx_len,
        "vocab_size": vocab_size,
        "val_data_file": val_prefix and shlex.quote(val_prefix),
    }
    return " ".join(f"--{name} {value}" for name, value in flags.items() if value is not None)


def primes_line(manifest: Manifest) -> str:
    """Returns the magic primes of the usual context lengths, `ctx_len: prime, ...`."""
    primes = ", ".join(f"{ctx_len}: {prime}" for ctx_len, prime in manifest.magic_primes.items())
    return primes or "too few tokens"


def small_data_advice(tokens: int, ctx_len: int) -> str:
    """Returns a note on data that is too small for the ctx_len, with the remedy."""
    largest = largest_ctx_len(tokens)
    advice = "more text is needed" if largest == 0 else f"use --ctx_len {largest} or less"
    return (
        f"note: {tokens} tokens are too few to train with --ctx_len {ctx_len}, which needs at "
        f"least {3 * ctx_len}; {advice}"
    )


def what_is_inside(pairs: Sequence[Binidx], manifest: Manifest, tokenizer: Tokenizer) -> str:
    """Shows some documents; with a loss mask also their supervised parts and share."""
    if manifest.sha256_mask is None:
        return preview(pairs[0], pairs[-1], tokenizer)
    return "\n".join([supervised_line(manifest), *marked_examples(pairs, tokenizer)])


def preview(first: Binidx, last: Binidx, tokenizer: Tokenizer) -> str:
    """Shows the beginning of the first pair's first and the last pair's last document."""
    lines = []
    for name, pair, number in (("first", first, 0), ("last", last, last.item_count - 1)):
        ids = pair.item(number)
        text = tokenizer.decode(ids[:_PREVIEW_TOKENS].tolist())
        is_cut = ids.size > _PREVIEW_TOKENS or len(text) > _PREVIEW_CHARACTERS
        shown = f"{text[:_PREVIEW_CHARACTERS]!r}{' ...' if is_cut else ''}"
        lines.append(f"{name} document ({ids.size} tokens): {shown}")
    return "\n".join(lines)


def leftovers(prefix: str, prefixes: Sequence[str]) -> list[str]:
    """Returns notes on files next to the data that look as if they belonged to it."""
    notes = []
    stale = f"{prefix}_val"
    if stale not in prefixes and bin_path(stale).exists():
        notes.append(f"note: {stale}.bin was held out of other data, not of this")
    # A killed run leaves them, and their names end with its process id.
    for path in (bin_path(prefix), idx_path(prefix), mask_path(prefix)):
        # A prefix may hold brackets, which glob would take for a pattern.
        for partial in sorted(path.parent.glob(f"{glob.escape(path.name)}.*.partial")):
            notes.append(f"note: {partial} is left from an interrupted run; it can be removed")
    return notes


def _counts(prefix: str, manifest: Manifest) -> str:
    more = "" if not manifest.shards else f" in {len(manifest.shards)} shards"
    ratio = manifest.bytes_per_token
    density = "" if ratio is None else f", {ratio:.2f} bytes of text per token"
    return (
        f"{prefix}: {manifest.documents} documents, {manifest.tokens} tokens{more} "
        f"({manifest.dtype}, tokenizer {manifest.tokenizer}{density})"
    )


def _notes(converted: Converted) -> list[str]:
    """Returns notes on documents that were changed or dropped, with the reasons."""
    filtered_out = converted.filtered_out
    counts = {
        "changed by the tokenizer's own normalization (of those checked)": converted.normalized,
        "skipped because they repeat an earlier one": filtered_out.duplicates,
        "skipped because they are shorter than --min_tokens": filtered_out.too_short,
        "skipped because they are longer than --max_tokens": filtered_out.too_long,
        "skipped because they cannot be used": converted.skipped,
    }
    notes = [
        f"note: {count} document{' was' if count == 1 else 's were'} {what}"
        for what, count in counts.items()
        if count
    ]
    if converted.unused:
        # Those that are in most rows first; nobody reads more of them.
        keys = sorted(converted.unused.items(), key=lambda item: -item[1])
        told = ", ".join(f"{key!r:.60} in {_rows(count)}" for key, count in keys[:_KEYS_SHOWN])
        more = f" and {len(keys) - _KEYS_SHOWN} more keys" if len(keys) > _KEYS_SHOWN else ""
        notes.append(f"note: text that was not used: {told}{more}")
    for remark, (count, first) in converted.remarks.items():
        notes.append(f"note: {_rows(count)} with {remark} (the first: {first})")
    notes += [f"note: {note}" for note in converted.notes]
    return notes + [f"  {fault}" for fault in converted.faults]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
