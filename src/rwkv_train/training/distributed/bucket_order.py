"""DDP whose sums have one order from the first step on, so that a resumed run repeats their bits.

torch puts gradients into buckets by the order of the parameters, and anew after the first step by
the order in which gradients became ready. Where an element lies in a bucket decides in which order
the values of three and more ranks are added: the first step after a resume would be rounded
otherwise than the same step of a run that was not interrupted.

Gradients lie in the buckets themselves, and a bucket is divided by the number of ranks as a whole:
torch does it tensor by tensor, a launch for each.
"""

# No `from __future__ import annotations`: torch compares the hook's annotations with types.

import torch
from torch import distributed

# torch.distributed names it in no __all__.
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from rwkv_train.training.distributed.faults_alone import LeavesFaultsAlone


class DataParallelStrategy(LeavesFaultsAlone):
    """Lightning's DDP with buckets that are settled before the first step."""

    def __init__(self) -> None:
        # One forward pass uses every trained parameter, so no search for unused ones.
        super().__init__(find_unused_parameters=False, gradient_as_bucket_view=True)

    def configure_ddp(self) -> None:
        """Wraps the model and settles its buckets. Collective."""
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel), "Lightning has just wrapped it"
        self.model.register_comm_hook(self.model.process_group, mean_of_bucket)
        settle_buckets(self.model)


def mean_of_bucket(
    group: distributed.ProcessGroup, bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Returns the future mean of a bucket over the ranks of `group`. Collective.

    Bit for bit DDP's own: every rank's part times 1 / ranks, then the sum.
    """
    gradients = bucket.buffer()
    gradients.mul_(1 / group.size())
    work = distributed.all_reduce(gradients, group=group, async_op=True)
    assert work is not None, "this process is one of the group"
    # torch takes a tensor from a hook, where the call has a list of one.
    mean: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda sums: sums.value()[0])
    return mean


def settle_buckets(model: DistributedDataParallel) -> None:
    """Makes torch build its final buckets now, from gradients of zero. Collective."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.reducer.prepare_for_backward([])
    # The last one's gradient is ready first, as in a backward pass.
    firsts = torch.stack([p.flatten()[0].float() for p in parameters])
    (firsts.sum() * 0).backward()  # type: ignore[no-untyped-call]  # torch declares no types of it
    model.reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None
