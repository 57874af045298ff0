"""The network around the blocks: what all versions share."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.errors import ConfigError
from rwkv_train.models.block import Block, drops
from rwkv_train.models.layers import Embedding, Head, LayerNorm, Linear
from rwkv_train.models.residual import Residual, ShiftedNorm
from rwkv_train.models.rounded_weights import call_rounded
from rwkv_train.models.row_chunks import chunked_loss, read_in_chunks
from rwkv_train.models.state import ModelState
from rwkv_train.models.token_ranks import TokenRanks, repeatable
from rwkv_train.ops.head_loss import Targets


class RWKV(nn.Module):
    """A language model of any version; parameter names are the checkpoint keys.

    Parallel and recurrent use are the same call: tokens in, logits and the state after them out.
    All weights start at zero; `parameters.initialize` or `load_state_dict` gives them values.

    config: the sizes it was built from.
    chunk_len: tokens that the loss reads at a time (`models.row_chunks`); None: all.
    optional_keys: keys (patterns) that a checkpoint may lack, for `checkpoint.fit_weights`.
    """

    def __init__(
        self,
        version: ModuleType,
        config: ResolvedModel,
        *,
        wkv_backend: str = "auto",
        grad_cp: bool = False,
        train_states: bool = False,
        chunk_len: int | None = None,
    ) -> None:
        super().__init__()
        if chunk_len is not None and config.head_qk:
            raise ConfigError(
                "head_qk looks back at every token, which a model that reads its rows in chunks "
                "cannot; leave --chunk_len out"
            )
        self.config = config
        self.grad_cp = grad_cp
        self.chunk_len = chunk_len
        self.train_states = train_states
        # State tuning begins with a file that has no initial states yet.
        self.optional_keys: tuple[str, ...] = (*version.OPTIONAL_KEYS, "blocks.*.att.time_state")
        V, D = config.vocab_size, config.n_embd
        self.emb = Embedding(V, D)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(version, config, layer, wkv_backend, train_states)
            for layer in range(config.n_layer)
        )
        self.ln_out = ShiftedNorm(D)
        self.head = Head(D, V)
        if config.head_qk:
            self.head_q = Linear(D, config.head_qk)
            self.head_k = Linear(D, config.head_qk)

    def forward(
        self, tokens: Tensor, state: ModelState | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Returns the logits [B, T, V] and the state after the last token.

        tokens: [B, T] int64.  state: that of the tokens before; None: nothing came before.
        reset: [B, T] bool; True where a document starts, which sees nothing of what came before.
        """
        x, new_state = self.features(tokens, state, reset=reset)
        return self.head(x, extra_logits=self._copy_logits(x, tokens, state, reset)), new_state

    def loss(
        self,
        tokens: Tensor,
        targets: Targets,
        *,
        state: ModelState | None = None,
        reset: Tensor | None = None,
    ) -> Tensor:
        """Returns the mean cross entropy of `targets`: a scalar in fp32 (fp64 for fp64 models).

        tokens, state, reset: as `forward`.  targets: one for every token, see `ops.head_loss`.
        The gradient includes the L2Wrap term, see there too.
        """
        return self.loss_and_state(tokens, targets, state=state, reset=reset, with_state=False)[0]

    def loss_and_state(
        self,
        tokens: Tensor,
        targets: Targets,
        *,
        state: ModelState | None = None,
        reset: Tensor | None = None,
        with_state: bool = True,
        ranks: TokenRanks | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """Returns `loss` and the state after the last token, through which gradients flow.

        with_state: whether the state is wanted; without, it may be None.
        ranks: those that share the rows, of which tokens, targets and reset are this rank's columns
            (`config.token_columns`); the loss is its part of the rows' and `targets.total` given.
            The states are those of the rows, equal on all ranks. Collective then, as its backward.
        """
        if self.chunk_len is None or tokens.shape[1] <= self.chunk_len:
            return self._loss_of_all(tokens, targets, state, reset, ranks, with_state=with_state)
        return chunked_loss(
            self._loss_of_piece, self.chunk_len, tokens, targets, state, reset, ranks
        )

    def _loss_of_piece(
        self,
        tokens: Tensor,
        targets: Targets,
        state: ModelState | None,
        reset: Tensor | None,
        ranks: TokenRanks | None,
        *,
        recomputed: bool = False,
    ) -> tuple[Tensor, ModelState]:
        loss, new_state = self._loss_of_all(
            tokens, targets, state, reset, ranks, recomputed=recomputed
        )
        assert new_state is not None, "the state was asked for"
        return loss, new_state

    def _loss_of_all(
        self,
        tokens: Tensor,
        targets: Targets,
        state: ModelState | None,
        reset: Tensor | None,
        ranks: TokenRanks | None,
        *,
        recomputed: bool = False,
        with_state: bool = True,
    ) -> tuple[Tensor, ModelState | None]:
        x, new_state = self._read(tokens, state, reset, with_state, ranks)
        extra = self._copy_logits(x, tokens, state, reset)
        return self.head(x, targets, extra_logits=extra, recomputed=recomputed), new_state

    def token_losses(
        self,
        tokens: Tensor,
        ids: Tensor,
        state: ModelState | None = None,
        *,
        reset: Tensor | None = None,
        head_rows: int | None = None,
        chunk_len: int | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Returns every target's cross entropy, [B, T] without gradients, and the state afterwards.

        ids: [B, T], the targets.  head_rows: as `Targets.rows`.
        chunk_len: tokens read at a time; None: as many as for the loss.  The rest: as `forward`.
        """
        chunk_len = chunk_len or self.chunk_len or tokens.shape[1]

        def read(part: slice, state: ModelState | None) -> tuple[Tensor, ModelState]:
            piece, starts = tokens[:, part], None if reset is None else reset[:, part]
            x, state_after = self.features(piece, state, reset=starts)
            extra = self._copy_logits(x, piece, state, starts)
            targets = Targets(ids[:, part], rows=head_rows)
            return self.head(x, targets, extra_logits=extra, per_token=True), state_after

        with torch.no_grad():
            losses, state = read_in_chunks(read, tokens.shape[1], chunk_len, state)
        return torch.cat(losses, 1), state

    def features(
        self, tokens: Tensor, state: ModelState | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Returns the head's input [B, T, C] and the state after it; arguments as `forward`."""
        x, new_state = self._read(tokens, state, reset, with_state=True)
        assert new_state is not None, "the state was asked for"
        return x, new_state

    def _read(
        self,
        tokens: Tensor,
        state: ModelState | None,
        reset: Tensor | None,
        with_state: bool,
        ranks: TokenRanks | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """Returns what `features` does, without `with_state` None in place of the state."""
        if reset is not None and self.train_states:
            raise ConfigError(
                "trained initial states and resets at document starts do not go together: a reset "
                "empties the state; train states on one document per sample"
            )
        assert state is None or len(state) == len(self.blocks), "a state has one entry per block"
        residual, carry = Residual(self.embedded(tokens)), None
        new_state = []
        for layer, block in enumerate(self.blocks):
            layer_state = None if state is None else state[layer]
            arguments = (residual, carry, layer_state, reset, with_state)
            # Without gradients nothing is kept, so that recomputing would only cost time.
            if self.grad_cp and torch.is_grad_enabled():
                # Not reentrant: that form wants a gradient for some input, and with frozen
                # embeddings the first block has none.
                residual, carry, layer_state = checkpoint(
                    _repeated(block, ranks), *arguments, use_reentrant=False
                )
            else:
                residual, carry, layer_state = call_rounded(block, *arguments, ranks)
            new_state.append(layer_state)
        return self.ln_out(residual).mixed[0], tuple(new_state) if with_state else None

    def embedded(self, tokens: Tensor) -> Tensor:
        """Returns what the first block reads, [B, T, C]: the embedding behind the first norm."""
        norm = cast(LayerNorm, self.blocks[0].ln0)
        # Dropped channels differ from place to place, and with them the norm of a token.
        x: Tensor = (
            norm(self.drop(self.emb(tokens))) if drops(self.drop) else self.emb(tokens, norm)
        )
        return x

    def _copy_logits(
        self, x: Tensor, tokens: Tensor, state: ModelState | None, reset: Tensor | None
    ) -> Tensor | None:
        """Returns the logits [B, T, V] of the copy head (head_qk = Q), None without one.

        Position t adds (W_q x_t) . (W_k x_s) / Q to the logit of every token s <= t it has seen.
        """
        if not self.config.head_qk:
            return None
        if state is not None:
            raise ConfigError(
                "a model with head_qk looks back at every token and has no recurrent form: give "
                "all tokens at once, without a state"
            )
        B, T = tokens.shape
        # No softmax: RWKV-LM adds the scores to the logits as they are.
        scores = self.head_q(x) @ self.head_k(x).transpose(1, 2) / self.config.head_qk  # [B, T, T]
        # With the diagonal: the token that is being read may be copied too.
        scores = scores.tril()
        if reset is not None:
            # The running count of starts numbers the documents of a row.
            document = reset.cumsum(1)
            scores = scores * (document.unsqueeze(2) == document.unsqueeze(1))
        seen = tokens.unsqueeze(1).expand(B, T, T)
        logits: Tensor = scores.new_zeros(B, T, self.config.vocab_size)
        logits.scatter_add_(2, seen, scores)
        return logits


def _repeated(block: nn.Module, ranks: TokenRanks | None) -> Callable[..., Any]:
    """Returns a call of `block` that may be made again, without a word to the other ranks."""
    again = repeatable(ranks)
    return lambda *arguments: call_rounded(block, *arguments, again())
