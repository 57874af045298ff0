"""Slots of the data that are never trained on, and the numbering of the others.

The data has floor(tokens / ctx_len) - 1 slots whose last target is inside for certain. Of these,
blocks of `width` neighbouring slots are held out, spread evenly; the others are numbered from 0 to
rest - 1, in order, and the sample permutation runs over these numbers:

    block j (from 0) stands after floor((2 j + 1) rest / (2 blocks)) training slots,
    training slot i stands after floor((q + 1) / 2) blocks,
        q = floor((2 blocks (i + 1) - 1) / rest).

So rest = floor((tokens - blocks * width * ctx_len) / ctx_len) - 1, and the magic prime is that of
data with so many fewer tokens. A training sample reads ctx_len + 1 tokens, the last one only as a
target: that one may be the first token of a held-out block, and no other is shared.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.errors import DataError


class HeldOut(NamedTuple):
    """`blocks` blocks of `width` slots between `rest` slots to train on, all of ctx_len tokens."""

    blocks: int
    width: int
    rest: int
    ctx_len: int

    @property
    def tokens(self) -> int:
        """Tokens that are not trained on."""
        return self.blocks * self.width * self.ctx_len

    def offset(self, block: int) -> int:
        """Returns the number of the first token of a held-out block."""
        before = (2 * block + 1) * self.rest // (2 * self.blocks)
        return (before + block * self.width) * self.ctx_len

    def spread_offsets(self, count: int) -> list[int]:
        """Returns the first tokens of `count` blocks in equal distances, both ends included."""
        count = min(count, self.blocks)
        return [self.offset(i * (self.blocks - 1) // max(count - 1, 1)) for i in range(count)]

    def training_slot(self, index: int) -> int:
        """Returns the slot in the data of training slot `index`, 0 <= index < rest."""
        # The module's q: inverts `offset`'s rounding in integers, exact at any size.
        odd = (2 * self.blocks * (index + 1) - 1) // self.rest
        return index + (odd + 1) // 2 * self.width

    def index_of(self, place: int) -> int | None:
        """Returns the training slot that is slot `place` of the data; None for any other slot."""
        index = bisect_left(range(self.rest), place, key=self.training_slot)
        trained = index < self.rest and self.training_slot(index) == place
        return index if trained else None


def hold_out(tokens: int, ctx_len: int, share: float, val_ctx_len: int) -> HeldOut:
    """Returns what `--val_split share` holds out of so many tokens.

    share: below 1 of the slots, from 1 on their number. A block is as wide as val_ctx_len needs;
    there are as many whole blocks as fit into what was asked for, and one at least. Raises
    DataError when too little would be left to train on.
    """
    slots = max(0, tokens // ctx_len - 1)
    asked = round(share * slots) if share < 1 else int(share)
    # Rounded up: a longer validation sample covers several slots.
    width = -(-val_ctx_len // ctx_len)
    blocks = max(1, asked // width)
    held_out = HeldOut(blocks, width, slots - blocks * width, ctx_len)
    try:
        magic_prime(tokens - held_out.tokens, ctx_len)
    except DataError as error:
        raise DataError(
            f"--val_split {share:g} holds out {blocks * width} of the {slots} samples of --ctx_len "
            f"{ctx_len} in {tokens} tokens"
            + (f" ({width} for each of --val_ctx_len {val_ctx_len})" if width > 1 else "")
            + ", and what is left is too little to train on; hold out less, or use a smaller "
            "--ctx_len"
        ) from error
    return held_out
