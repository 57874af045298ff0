"""A new RWKV version is a model file, an operator folder and a row; nothing else is edited.

The toy version 99 mixes over time by an exponential moving average, a channel at a time.
"""

from __future__ import annotations

import filecmp
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.checkout import ROOT

PACKAGE = Path("src") / "rwkv_train"

# Stands in front of the end of the table in config/versions.py.
ROW = """        "99": Version(
            module="rwkv99",
            operator="average99",
            rwkv_lm_names=("x990",),
            conventions=_V5,
            sizes={"dim_ffn": _times(2)},
        ),
    }
)
DEFAULT_VERSION"""

OPERATOR = '''"""The moving average of version 99: state <- d state + (1 - d) v, d = sigmoid(w)."""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.arguments import check_reset, check_sequences, describe_call, prepare
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch

BACKENDS = backends_of("average99", "reference")


def average99(
    w: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the averages [B, T, A] and the final state [B, A]."""
    like = check_sequences("average99", {"v": v}, "[B, T, A]")
    batch, _, width = like.shape
    w = prepare("average99", "w", w, (width,), like)
    if state is not None:
        state = prepare("average99", "state", state, (batch, width), like)
    check_reset("average99", reset, like)
    tensors = (w, v) if state is None else (w, v, state)
    call = describe_call(
        "average99", like, tensors, has_state=state is not None, has_reset=reset is not None
    )
    return dispatch(BACKENDS, backend, call, (w, v, state, reset))
'''

REFERENCE = '''"""The average as a plain token loop."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call
from rwkv_train.ops.precision import compute_dtype


def refuses(call: Call) -> str | None:
    """Returns None: the loop serves every call."""
    return None


def run(w: Tensor, v: Tensor, state: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns outputs [B, T, A] and final state [B, A]; gradients by autograd."""
    values, decay = v.to(compute_dtype(v.dtype)), torch.sigmoid(w)
    mean = torch.zeros_like(values[:, 0]) if state is None else state
    outputs = []
    for t in range(v.shape[1]):
        if reset is not None:
            mean = mean.masked_fill(reset[:, t, None], 0)
        mean = decay * mean + (1 - decay) * values[:, t]
        outputs.append(mean)
    return torch.stack(outputs, 1).to(v.dtype), mean
'''

MODEL = '''"""Version 99: a gated moving average, and RWKV-4's channel mix."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.models.layers import Linear
from rwkv_train.models.residual import Residual, ShiftedNorm
from rwkv_train.models.rwkv4 import ChannelMix as ChannelMix
from rwkv_train.models.sizes import Shapes
from rwkv_train.models.spread_state import spread
from rwkv_train.models.table import HEAD, NORMS, Row, constant, orthogonal, rising, zeros
from rwkv_train.models.token_ranks import TokenRanks
from rwkv_train.ops.average99 import average99

NAME = "RWKV-99"
RESIDUAL_DROPOUT = True
OPTIONAL_KEYS: tuple[str, ...] = ()


class TimeMix(nn.Module):
    """Mixes over time by a moving average per channel."""

    def __init__(self, config: ResolvedModel, layer: int, backend: str, time_state: bool) -> None:
        super().__init__()
        D = config.n_embd
        self.backend = backend
        self.w = nn.Parameter(torch.zeros(D))
        self.x_v = nn.Parameter(torch.zeros(1, 1, D))
        self.value = Linear(D, D)
        self.gate = Linear(D, D)
        self.output = Linear(D, D)

    def forward(
        self,
        norm: ShiftedNorm,
        residual: Residual,
        carry: Tensor | None,
        shift: Tensor | None,
        wkv: Tensor | None,
        reset: Tensor | None,
        with_state: bool,
        ranks: TokenRanks | None = None,
    ) -> tuple[Residual, Tensor | None, Tensor, Tensor]:
        """Returns the residual, the carry as it came, new shift and operator state."""
        shares = (self.x_v, torch.zeros_like(self.x_v))
        stream, last, (xv, x), _ = norm(residual, shift, reset, shares)
        average = spread(average99, ranks, with_state)
        y, wkv = average(self.w, self.value(xv), wkv, backend=self.backend, reset=reset)
        out = self.output(torch.sigmoid(self.gate(x)) * y)
        return Residual(stream, out), carry, last, wkv


PARAMETERS = (
    Row("emb.weight", orthogonal(0.1), decayed=True),
    *NORMS,
    Row("blocks.*.att.w", constant(2.0)),
    Row("blocks.*.att.x_v", constant(0.5)),
    Row("blocks.*.att.value.weight", orthogonal(1.0), decayed=True),
    Row("blocks.*.att.gate.weight", zeros, decayed=True),
    Row("blocks.*.att.output.weight", zeros, decayed=True),
    Row("blocks.*.ffn.time_mix_k", rising(1.0)),
    Row("blocks.*.ffn.time_mix_r", rising(1.0)),
    Row("blocks.*.ffn.key.weight", orthogonal(1.0), decayed=True),
    Row("blocks.*.ffn.receptance.weight", zeros, decayed=True),
    Row("blocks.*.ffn.value.weight", zeros, decayed=True),
    HEAD,
)


def recognises(keys: Collection[str]) -> bool:
    """Tells whether the checkpoint keys `keys` are those of version 99."""
    return "blocks.0.att.x_v" in keys and "blocks.0.att.w" in keys


def sizes_from_shapes(shapes: Shapes) -> dict[str, int]:
    """Returns the fields of ModelConfig that only version 99 has: none."""
    return {}


def wkv_to_rwkv_package(wkv: Tensor) -> tuple[Tensor, ...]:
    """Returns the operator's state unchanged."""
    return (wkv,)
'''


def test_a_toy_version_trains_with_a_model_file_an_operator_folder_and_a_row(tmp_path: Path):
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", copy)
    written = add_version(copy / PACKAGE)
    flags = {
        "my_testing": "x990", "data_type": "utf-8", "data_file": text(tmp_path), "ctx_len": 16,
        "n_layer": 2, "n_embd": 32, "micro_bsz": 4, "exit_tokens": 3 * 4 * 16, "num_workers": 0,
        "lr_init": "1e-2", "accelerator": "cpu", "devices": 1, "plot": 0,
        "proj_dir": tmp_path / "out", "wkv_backend": "reference", "enable_progress_bar": 0,
    }  # fmt: skip
    line = [sys.executable, "train.py", *(f"--{name}={value}" for name, value in flags.items())]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(line, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("RWKV-99 ")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    assert losses[2] < losses[0]
    assert (tmp_path / "out" / "rwkv-final.pth").is_file()
    assert changed(copy / PACKAGE) == written


def test_the_toy_versions_row_is_a_choice_of_the_command_line(tmp_path: Path):
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    add_version(copy / PACKAGE)
    code = (
        "from rwkv_train.config.load import load_config\n"
        "print(load_config(['--rwkv_version', '99']).model.rwkv_version)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout == b"99\n", done.stderr


def add_version(package: Path) -> set[Path]:
    """Adds version 99 to a copy of the package; returns the files written, below the package."""
    operator, model = Path("ops/average99"), Path("models/rwkv99.py")
    table = Path("config/versions.py")
    (package / operator).mkdir()
    (package / operator / "__init__.py").write_text(OPERATOR)
    (package / operator / "reference.py").write_text(REFERENCE)
    (package / model).write_text(MODEL)
    end = "    }\n)\nDEFAULT_VERSION"
    versions = (package / table).read_text()
    assert versions.count(end) == 1
    (package / table).write_text(versions.replace(end, ROW))
    return {operator / "__init__.py", operator / "reference.py", model, table}


def changed(package: Path) -> set[Path]:
    """Returns the files of a copy that are new or not as in this checkout."""
    files = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    here = ROOT / PACKAGE
    return {
        file
        for file in files
        if not (here / file).is_file()
        or not filecmp.cmp(package / file, here / file, shallow=False)
    }


def text(folder: Path) -> Path:
    """Writes a small text with a pattern that is quickly learnt; returns its path."""
    path = folder / "text.txt"
    path.write_text("abcabdabcabe" * 200)
    return path
