"""Memory for the copies of a save: that of the save before, unless somebody still reads it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from rwkv_train.training.optim.host_copies import HostCopies
from rwkv_train.training.optim.own_pieces import capture_pieces, prepare_copies
from rwkv_train.training.optim.reused_memory import ReusedMemory
from tests.training.optim.test_host_copies import trained


def test_a_block_is_lent_again_for_its_key_alone():
    memory = ReusedMemory()
    places = {key: memory.lend(key, (3, 4), torch.float32).data_ptr() for key in "ab"}
    assert places["a"] != places["b"]
    # given back: nobody has the tensors any more
    again = {key: memory.lend(key, (4, 3), torch.float32) for key in "ab"}
    assert {key: tensor.data_ptr() for key, tensor in again.items()} == places
    assert again["a"].shape == (4, 3)


def test_what_somebody_reads_is_never_lent():
    memory = ReusedMemory()
    lent = memory.lend("a", (6,), torch.float32)
    lent.fill_(1)
    # a part of it is enough, also one that has another shape and format
    part = lent.view(2, 3)[1].view(torch.int32)
    del lent
    other = memory.lend("a", (6,), torch.float32)
    other.fill_(2)
    assert part.view(torch.float32).tolist() == [1, 1, 1]
    place = other.data_ptr()
    del other, part
    assert memory.lend("a", (6,), torch.float32).data_ptr() == place


def test_a_block_has_exactly_the_bytes_that_are_asked_for():
    memory = ReusedMemory()
    for shape, dtype in (((4,), torch.float32), ((7,), torch.bfloat16), ((), torch.int64)):
        tensor = memory.lend("a", shape, dtype)
        assert tensor.shape == shape and tensor.dtype == dtype
        assert memory._blocks["a"].nbytes == tensor.nbytes
        del tensor
    assert memory.lend("a", (0, 3), torch.float32).shape == (0, 3)
    assert len(memory._blocks) == 1


def captured(copies: HostCopies, *part: object, **more: bool) -> dict[str, torch.Tensor]:
    pieces = capture_pieces(*part, None, copies=copies, rank=0, ranks=1, **more)["pieces"]
    return {".".join(piece.path): piece.values for piece in pieces}


def test_the_second_save_copies_into_the_memory_of_the_first():
    model, optimizer = trained()
    copies = HostCopies(keeps=True)
    places = {name: v.data_ptr() for name, v in captured(copies, model, optimizer).items()}
    assert len(places) == 3
    nn.init.constant_(model.weight, 7)
    # weights alone, as for best.pth, take theirs
    weights = captured(copies, model, optimizer, moments=False)
    assert weights["weights.weight"].eq(7).all()
    assert {name: v.data_ptr() for name, v in weights.items()}.items() < places.items()
    del weights
    found = captured(copies, model, optimizer)
    assert {name: v.data_ptr() for name, v in found.items()} == places
    assert torch.equal(
        found["moments.exp_avg.weight"], optimizer.state[model.weight]["exp_avg"].view(-1)
    )


def test_the_first_save_copies_into_memory_that_was_taken_before():
    model, optimizer = trained()
    copies = HostCopies(keeps=True)
    prepare_copies(model, optimizer, None, copies=copies, rank=1, ranks=2)
    copies._memory._preparing.join()
    places = {key: block.data_ptr() for key, block in copies._memory._blocks.items()}
    # 105 elements of three tensors: from the 54th on, 17 of the first moment and the second one
    sizes = {key: block.nbytes for key, block in copies._memory._blocks.items()}
    assert [*sizes.values()] == [4 * 17, 4 * 35]
    pieces = capture_pieces(model, optimizer, None, copies=copies, rank=1, ranks=2)["pieces"]
    assert {piece.path: piece.values.data_ptr() for piece in pieces} == places
    assert {piece.path: piece.values.nbytes for piece in pieces} == sizes


def test_a_save_waits_for_memory_that_is_being_taken(monkeypatch: pytest.MonkeyPatch):
    memory, go_on = ReusedMemory(), threading.Event()
    take = ReusedMemory._take

    def slow(own: ReusedMemory, sizes: dict) -> None:
        assert go_on.wait(20)
        take(own, sizes)

    monkeypatch.setattr(ReusedMemory, "_take", slow)
    memory.prepare({"a": 8})
    with ThreadPoolExecutor(1) as pool:
        lent = pool.submit(memory.lend, "a", (2,), torch.float32)
        assert not lent.done() and not memory._blocks
        go_on.set()
        assert lent.result(20).data_ptr() == memory._blocks["a"].data_ptr()


def test_a_save_that_is_still_being_written_keeps_its_values():
    model, optimizer = trained()
    copies = HostCopies(keeps=True)
    nn.init.constant_(model.weight, 1)
    first = captured(copies, model, optimizer)
    nn.init.constant_(model.weight, 2)
    second = captured(copies, model, optimizer)
    assert first["weights.weight"].eq(1).all() and second["weights.weight"].eq(2).all()


def test_a_copy_without_a_key_has_memory_of_its_own():
    copies, value = HostCopies(keeps=True), torch.arange(5.0)
    first, second = copies.copied(value), copies.copied(value)
    assert len({first.data_ptr(), second.data_ptr(), value.data_ptr()}) == 3
