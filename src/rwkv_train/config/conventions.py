"""What RWKV-LM's generations do differently, decided by the version trained.

RWKV-4 is trained as RWKV-LM's v4neo does, RWKV-5 and 6 as v5, RWKV-7 as v7/train_temp, so that
equal weights, data and flags give their loss curves.  The other differences need no entry: which
tensors learn at which rate stands in the version's own parameter table, v4neo's fixed gradient
clip of 1.0 is everyone's default, and v7's lack of a step-based schedule is a gap, not a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Conventions:
    """The habits of one generation.

    generation: the folder of RWKV-LM they are taken from.
    adam_eps: default of --adam_eps.
    warmup_floor: rate factor of the first warmup step, from which the ramp rises to 1.
    resume_warmup: stage -> steps of warmup after a resume with an empty optimizer.
    """

    generation: str
    adam_eps: float
    warmup_floor: float
    resume_warmup: Mapping[int, int] = field(
        default_factory=lambda: MappingProxyType({2: 10, 3: 30, 4: 30})
    )

    def warmup_after_resume(self, stage: int | None) -> int:
        """Steps of warmup at `stage`; going on by itself counts as stage 3, the normal one."""
        return self.resume_warmup[3 if stage is None else stage]


_V4NEO = Conventions("RWKV-v4neo", adam_eps=1e-8, warmup_floor=0.2)
_V5 = Conventions("RWKV-v5", adam_eps=1e-8, warmup_floor=0.01)
_V7 = Conventions(
    "RWKV-v7/train_temp",
    adam_eps=1e-18,
    warmup_floor=0.01,
    resume_warmup=MappingProxyType({2: 10, 3: 10, 4: 10}),
)

CONVENTIONS: Mapping[str, Conventions] = MappingProxyType(
    {"4": _V4NEO, "5": _V5, "6": _V5, "7": _V7}
)
