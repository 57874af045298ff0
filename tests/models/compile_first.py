"""Compiles a model of each version as the first call of a process, without a break in the graph.

python -m tests.models.compile_first
"""

from __future__ import annotations

import os
import sys

import torch
import torch._dynamo  # once for all forks

from rwkv_train.ops.head_loss import Targets
from tests.models.tiny import VERSIONS, random_tokens, tiny_model


def compile_first(version: str) -> None:
    """Makes the step that came first compiled, then one by torch; fails unless they agree."""
    tokens = random_tokens(2, 18)
    model = tiny_model(version, n_layer=1)
    loss = torch.compile(model.loss, backend="eager", fullgraph=True)
    found = []
    for function in (loss, model.loss):
        model.zero_grad()
        value = function(tokens[:, :-1], Targets(tokens[:, 1:]))
        value.backward()
        found.append([value.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def main() -> int:
    """Returns the first version that fails as exit status, 0 for none."""
    # OpenMP's threads would not be there in a fork.
    torch.set_num_threads(1)
    for version in VERSIONS:
        child = os.fork()
        if child == 0:
            compile_first(version)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            return int(version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
