"""Changes of what a resumed run reads: other data, another order, another length.

Both runs are described alike, from the settings that their states hold and from the identity of
their data, so that settings that come to the same are no change, however they are spelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_train.config.mixture_list import mixture_components
from rwkv_train.config.resume_differences import Change, Difference
from rwkv_train.config.resume_rules import Effect
from rwkv_train.data.sampling.held_out import HeldOut, hold_out
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.mixture import Mixture
from rwkv_train.data.sampling.sample_order import Permutation, RandomStarts, SampleOrder
from rwkv_train.errors import first_few
from rwkv_train.training.start.data_identity import DataIdentity, Kinship, TrainingData
from rwkv_train.training.start.sample_history import PartReading, Reading, tokens_read

# Samples to come that are looked at, each in some microseconds.
_AHEAD = 2000
_FIELDS = (
    "data_file",
    "mix_tokens",
    "ctx_len",
    "magic_prime",
    "sampling",
    "sample_offset",
    "random_seed",
)


class Place(NamedTuple):
    """The place at which a run resumes.

    read: samples read before; number: those before the next one, as this run counts them; left:
    samples to come, None without an end.
    """

    read: int
    number: int
    left: int | None


@dataclass(frozen=True)
class _Run:
    """The reading of one of the two runs.

    shares: of the mixture, at the begin and at the end; mix_tokens: between them, 0 if they are
    the same.
    """

    values: Mapping[str, Any]
    reading: Reading
    shares: tuple[Any, ...] = ()
    mix_tokens: int = 0


def sample_changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    found: Sequence[Difference],
    known: Sequence[DataIdentity] | None,
    data: TrainingData,
    place: Place,
) -> tuple[list[Change], list[str]]:
    """Returns what is read otherwise, and the names of `found` that this accounts for.

    before, now: leaf name -> value of both runs; known: identities of the data of the run before,
    None from a state that does not tell them.
    """
    differing = [difference for difference in found if difference.name in _FIELDS]
    names = [difference.name for difference in differing]
    if known is None and _must_be_other_data(before, now, names):
        told = ", ".join(str(d) for d in differing)
        text = f"{told}: the state does not tell its data, so that some may be read again"
        return [Change(("data_file",), Effect.REFUSED, text, "data")], names
    known = data.identities if known is None else known
    kin = data.kin_of(known)
    old = _run(before, [identity.tokens for identity in known])
    new = _run(now, [identity.tokens for identity in data.identities])
    if _same_samples(old, new, kin):
        grown = [data.files[i].name for i, (_, kind) in kin.items() if kind == "grown"]
        told = "the same samples come in the same order: what is new is not read"
        changes = [
            Change(("data_file",), Effect.TOLD, f"{name} has grown; {told}", "data grown")
            for name in grown
        ]
        return changes, names
    causes = _causes(differing, old, new, kin)
    texts = [*_data_texts(known, data.identities, kin)]
    texts += [str(d) for d in differing if d.name != "data_file" or not texts]
    effect = "; ".join([*_held_out_effect(old, new, kin), _again(old, new, kin, place)])
    label = ", ".join(f"{d.name} {d.now}" for d in differing if d.name != "data_file") or "data"
    text = f"{first_few(texts, 6)}: {effect}"
    return [Change(tuple(causes), Effect.REFUSED, text, label)], names


def _must_be_other_data(
    before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]
) -> bool:
    """Tells whether the data differ by what the settings alone say of them."""
    files = [
        [Path(part.path).name for part in mixture_components(values["data_file"])]
        for values in (before, now)
    ]
    # A prime that changes alone shows another size.
    resized = {"data_file", "magic_prime"} <= set(names) and "ctx_len" not in names
    return files[0] != files[1] or resized


def _run(values: Mapping[str, Any], tokens: Sequence[int]) -> _Run:
    ctx_len = values["ctx_len"]
    components = mixture_components(values["data_file"])
    parts = []
    for count in tokens:
        order: SampleOrder = RandomStarts(values["random_seed"])
        if values["sampling"] != "random":
            prime = None if components else values["magic_prime"]
            held_out = _held_out(values, count)
            order = Permutation(
                prime or magic_prime(count, ctx_len), values["sample_offset"], held_out
            )
        parts.append(PartReading(order, count, ctx_len))
    if not components:
        return _Run(values, Reading(tuple(parts)))
    begin, end = [c.begin for c in components], [c.end for c in components]
    change_tokens = 0 if begin == end else values.get("mix_tokens") or 0
    mixture = Mixture(begin, end, change_tokens // ctx_len)
    return _Run(values, Reading(tuple(parts), mixture), (begin, end), change_tokens)


def _held_out(values: Mapping[str, Any], tokens: int) -> HeldOut | None:
    split, ctx_len = values.get("val_split"), values["ctx_len"]
    if split is None:
        return None
    return hold_out(tokens, ctx_len, split, values.get("val_ctx_len") or ctx_len)


def _same_samples(old: _Run, new: _Run, kin: Mapping[int, tuple[int, Kinship]]) -> bool:
    """Tells whether every number stands for the same sample in both runs."""
    parts = new.reading.parts
    # In the same places: the picks of a mixture go by the place in the list.
    if len(parts) != len(old.reading.parts) or any(kin.get(i, (-1,))[0] != i for i in kin):
        return False
    shares = (old.shares, old.mix_tokens) == (new.shares, new.mix_tokens)
    same = len(kin) == len(parts) and shares
    return same and all(a.reads_as(b) for a, b in zip(parts, old.reading.parts))


def _causes(
    differing: Sequence[Difference], old: _Run, new: _Run, kin: Mapping[int, tuple[int, Kinship]]
) -> list[str]:
    """Returns the names under which the change may be accepted; not what follows from others."""
    others = (
        len(kin) < max(len(new.reading.parts), len(old.reading.parts)) or old.shares != new.shares
    )
    other_data = others or any(kind != "same" for _, kind in kin.values())
    # An order that changes without another setting is that of the parts.
    moved = any(i != j for i, (j, _) in kin.items())
    names = [d.name for d in differing if d.name != "data_file"]
    follow_from = ["data_file"] if other_data or moved else []
    follow_from += [name for name in names if name == "ctx_len"]
    # The prime is computed from both, and a mixture that is no longer one has no length of change.
    rest = [name for name in names if name not in ("ctx_len", "magic_prime", "mix_tokens")]
    if old.mix_tokens != new.mix_tokens and not other_data:
        rest += ["mix_tokens"]
    return [*follow_from, *rest] or names or ["data_file"]


def _data_texts(
    known: Sequence[DataIdentity],
    now: Sequence[DataIdentity],
    kin: Mapping[int, tuple[int, Kinship]],
) -> Iterator[str]:
    """Yields what has become of every data set."""
    matched = {j for j, _ in kin.values()}
    gone = [part for j, part in enumerate(known) if j not in matched]
    for i, part in enumerate(now):
        namesake = next((other for other in gone if other.name == part.name), None)
        if i not in kin and namesake is not None:
            gone.remove(namesake)
            yield (
                f"data_file {part.name} holds other data than before ({part.tokens:,} tokens; "
                f"there were {namesake.tokens:,})"
            )
        elif i not in kin:
            yield f"data_file {part.name} is other data ({part.tokens:,} tokens)"
        elif kin[i][1] == "grown":
            before = known[kin[i][0]].tokens
            yield f"data_file {part.name} has grown from {before:,} to {part.tokens:,} tokens"
    for part in gone:
        yield f"{part.name} ({part.tokens:,} tokens) is no longer read"


def _held_out_effect(old: _Run, new: _Run, kin: Mapping[int, tuple[int, Kinship]]) -> Iterator[str]:
    """Yields how many of the slots that are held out now may have been trained on."""
    order = new.reading.parts[0].order
    if not isinstance(order, Permutation) or order.held_out is None or 0 not in kin:
        return
    held_out, before = order.held_out, old.reading.parts[kin[0][0]]
    trained = tokens_read(before, before.order.samples_per_pass(before.tokens, before.ctx_len))
    if trained is None:
        return
    length = held_out.width * held_out.ctx_len
    begins = [held_out.offset(block) for block in range(min(held_out.blocks, _AHEAD))]
    leaked = sum(trained(begin, begin + length) > 0 for begin in begins)
    yield (
        f"{leaked} of the {len(begins)} samples that --val_split holds out are among those that "
        "were trained on"
    )


def _again(old: _Run, new: _Run, kin: Mapping[int, tuple[int, Kinship]], place: Place) -> str:
    """Returns how much of what comes next was read before."""
    ctx_len = new.values["ctx_len"]
    ahead = _AHEAD if place.left is None else min(place.left, _AHEAD)
    counts = old.reading.counts(place.read)
    read = {i: tokens_read(old.reading.parts[j], counts[j]) for i, (j, _) in kin.items()}
    if not read:
        return f"the {place.read:,} samples so far were of other data"
    if any(known is None for known in read.values()):
        return "samples at random positions were read before, among which those to come may be"
    again = 0
    for n in range(place.number + 1, place.number + 1 + ahead):
        part, number = new.reading.sample(n)
        known = read.get(part)
        if known is not None:
            offset = new.reading.parts[part].offset(number)
            again += known(offset, offset + ctx_len)
    return f"{again:,} of the next {ahead * ctx_len:,} tokens were read before"
