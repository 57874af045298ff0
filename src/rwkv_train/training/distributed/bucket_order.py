"""DDP whose sums have one order from the first step on, so that a resumed run repeats their bits.

torch puts gradients into buckets by the order of the parameters, and anew after the first step by
the order in which gradients became ready. Where an element lies in a bucket decides in which order
the values of three and more ranks are added: the first step after a resume would be rounded
otherwise than the same step of a run that was not interrupted.
"""

from __future__ import annotations

from pytorch_lightning.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel


class DataParallelStrategy(DDPStrategy):
    """Lightning's DDP with buckets that are settled before the first step."""

    def configure_ddp(self) -> None:
        """Wraps the model and settles its buckets. Collective."""
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel), "Lightning has just wrapped it"
        settle_buckets(self.model)


def settle_buckets(model: DistributedDataParallel) -> None:
    """Makes torch build its final buckets now, from gradients of zero. Collective."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.reducer.prepare_for_backward([])
    # The last one's gradient is ready first, as in a backward pass.
    total = sum(p.flatten()[0].float() for p in parameters) * 0
    total.backward()
    model.reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None
