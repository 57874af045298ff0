"""The process group of a run, made here, and the answers that Lightning gets instead of guessing.

Lightning and DeepSpeed take a group that exists; they would otherwise read the environment, each in
its own way.
"""

from __future__ import annotations

import socket
import struct
from datetime import timedelta

import torch
from lightning_fabric.plugins.environments import ClusterEnvironment

# torch.distributed names it in no __all__.
from torch.distributed import HashStore  # type: ignore[attr-defined]

from rwkv_train.config.resolved import ResolvedHardware
from rwkv_train.errors import TrainingError
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.distributed.rendezvous import announced
from rwkv_train.training.environment import set_unless_given
from rwkv_train.training.launchers.launch import Launch

# Of <linux/sockios.h>: the IPv4 address of an interface.
_SIOCGIFADDR = 0x8915


# lightning_fabric ships no types.
class DecidedEnvironment(ClusterEnvironment):  # type: ignore[misc]
    """Lightning's questions about processes, answered from the decision."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        """True: those that Lightning would start have been started."""
        return True

    @property
    def main_address(self) -> str:
        """The machine of rank zero."""
        return self._launch.main_address

    @property
    def main_port(self) -> int:
        """The port of the store."""
        return self._launch.main_port

    @staticmethod
    def detect() -> bool:
        """Returns False: it is passed, never looked for."""
        return False

    def world_size(self) -> int:
        """Returns the number of processes."""
        return self._launch.world_size

    def set_world_size(self, size: int) -> None:
        """Checks what Lightning works out itself."""
        assert size == self._launch.world_size, (size, self._launch)

    def global_rank(self) -> int:
        """Returns this process's rank."""
        return self._launch.rank

    def set_global_rank(self, rank: int) -> None:
        """Ignores what Lightning works out from the machine's number, which launchers need not."""

    def local_rank(self) -> int:
        """Returns this process's number on its machine."""
        return self._launch.local_rank

    def node_rank(self) -> int:
        """Returns the machine's number."""
        return self._launch.node_rank


def begin_group(ranks: Ranks, hardware: ResolvedHardware) -> None:
    """Makes torch's process group, if the strategy needs one. Collective.

    Raises TrainingError when it has another size than was decided.
    """
    launch = ranks.launch
    if hardware.strategy == "single_device":
        return
    if not torch.distributed.is_initialized():
        on_gpu = hardware.accelerator == "gpu"
        if on_gpu:
            torch.cuda.set_device(launch.local_rank)
        elif launch.num_nodes > 1:
            _choose_interface(launch.main_address)
        with announced("the other ranks to build their process group", launch.rank == 0):
            torch.distributed.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=ranks.connection("group") if launch.world_size > 1 else HashStore(),
                rank=launch.rank,
                world_size=launch.world_size,
                timeout=timedelta(seconds=ranks.step_seconds),
            )
    size = torch.distributed.get_world_size()
    if size != launch.world_size:
        raise TrainingError(
            f"the process group has {size} process(es) instead of {launch.world_size}, those of an "
            "earlier run in this process; start the program anew"
        )


def end_group(hardware: ResolvedHardware) -> None:
    """Ends the group of several ranks, so that another run in this process can make its own.

    Collective.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    if hardware.strategy.startswith("deepspeed"):
        from deepspeed import comm

        # It keeps groups made of this one, and would go on with them.
        comm.destroy_process_group()
        comm.comm.cdb = None
    else:
        torch.distributed.destroy_process_group()


def _choose_interface(main_address: str) -> None:
    """Sets the network interface of gloo: the one that leads to the main machine.

    It would take that of the machine's own name, which often stands for the loopback.
    """
    # Absent on Windows, where gloo chooses.
    try:
        import fcntl
    except ImportError:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing; any port will do.
            probe.connect((main_address, 9))
        except OSError:
            # IPv6 only.
            return
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                # It has no address.
                continue
            if socket.inet_ntoa(answer[20:24]) == own:
                set_unless_given("GLOO_SOCKET_IFNAME", name)
                return
