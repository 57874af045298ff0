"""The only place that sets environment variables: those a launched library insists on.

Lightning starts the ranks 1..n-1 of a node as copies of this process with LOCAL_RANK set, so what
is set here reaches them too. Nothing is ever read from the environment to decide what a run does,
except by Lightning and DeepSpeed themselves (MASTER_ADDR, NODE_RANK, ...).
"""

from __future__ import annotations

import logging
import os
import warnings


def prepare_libraries(accelerator: str) -> None:
    """Sets up logging and device choice of Lightning, DeepSpeed and wandb before their import.

    accelerator: "cpu" or "gpu", already resolved.
    """
    # DeepSpeed otherwise takes a GPU that is present although the run is on the CPU.
    os.environ["DS_ACCELERATOR"] = "cpu" if accelerator == "cpu" else "cuda"
    # DeepSpeed's start-up talk (builder probing, every collective) hides our own messages.
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|deepspeed)\b.*")
    warnings.filterwarnings("ignore", message=".*pkg_resources.*")
    # DeepSpeed calls collectives by names that torch is about to rename.
    warnings.filterwarnings("ignore", message=r".*`torch\.distributed\.\w+` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
    if _local_rank() != 0:
        # Which kernels cannot be built is a matter of the machine; its first process tells.
        logging.getLogger("rwkv_train.ops").setLevel(logging.ERROR)


def is_rank_zero() -> bool:
    """Tells whether this process prints and writes: the first of the first node.

    Needed before Lightning knows its ranks; these variables are set by Lightning's own launcher,
    torchrun and SLURM.
    """
    group = os.environ.get("GROUP_RANK", os.environ.get("SLURM_NODEID", "0"))
    node = os.environ.get("NODE_RANK", group)
    rank = os.environ.get("RANK")
    return int(rank) == 0 if rank is not None else _local_rank() == 0 and int(node) == 0


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def visible_gpus() -> list[str] | None:
    """Returns the cards that CUDA_VISIBLE_DEVICES names, None where it is not set.

    Words that stand for no card, as batch systems write them, are left out with all behind them.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return None
    named = [word.strip() for word in given.split(",")]
    hidden = ("", "-1", "NoDevFiles", "none", "void")
    return named[: next((n for n, word in enumerate(named) if word in hidden), len(named))]


def is_local_rank_zero() -> bool:
    """Tells whether this process speaks for its machine."""
    return _local_rank() == 0


def extension_root() -> str | None:
    """Returns where the user wants torch's extensions, None for the usual place."""
    return os.environ.get("TORCH_EXTENSIONS_DIR")


def extension_compiler() -> str:
    """Returns the C++ compiler that torch calls for extensions."""
    return os.environ.get("CXX") or "c++"


def put_on_path(folder: str) -> None:
    """Lets programs in a folder be found by name, after all others."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    if folder not in folders:
        os.environ["PATH"] = os.pathsep.join([*folders, folder])
