"""What ranks tell one another about states travels while they compute something else."""

from __future__ import annotations

import pytest

from rwkv_train.models import piece_exchange
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.state import detach_state
from tests.models.spread_rows import T, rows, spread_model
from tests.models.thread_ranks import Row, ThreadRanks, columns_of, in_threads, learn
from tests.models.tiny import VERSIONS, random_tokens

# Of RWKV-4 the receptance is the gate.
MEANWHILE = {
    "4": ([], ["receptance.weight"]),
    "5": (["receptance"], ["gate.weight"]),
    "6": (["receptance"], ["gate.weight"]),
    "7": (["receptance"], ["g2", "g1"]),
}
every_version = pytest.mark.parametrize("version", VERSIONS)


def events_of(version: str, size: int, row: Row, grad_cp: bool = False) -> list[list[str]]:
    """What every rank does in the time mix of a model of one layer, in order."""
    columns = columns_of(T, size, None)

    def work(ranks: ThreadRanks) -> list[str]:
        model = spread_model(version)
        model.blocks, model.grad_cp = model.blocks[:1], grad_cp
        note_products(model, ranks.events)
        of_state = None if row.state is None else 1.0
        learn(model, row.columns(columns[ranks.rank]), ranks, row.total, of_state)
        return ranks.events

    return in_threads(size, work)[0]


def note_products(model: RWKV, events: list[str]) -> None:
    """Writes down when a product of the time mix is made, and when a matrix has its gradient."""
    att = model.blocks[0].att
    for name, module in att.named_children():
        module.register_forward_hook(lambda *_, name=name: events.append(name))
    for name, parameter in att.named_parameters():
        if parameter.dim() == 2 and parameter.requires_grad:
            parameter.register_hook(lambda _, name=name: events.append(name))


def while_it_travels(events: list[str], exchange: str) -> list[list[str]]:
    """What was done between the beginning of each exchange of this name and the wait for it."""
    begins = [i for i, event in enumerate(events) if event == f"{exchange} begins"]
    waits = [i for i, event in enumerate(events) if event == f"{exchange} is waited for"]
    return [events[begin + 1 : wait] for begin, wait in zip(begins, waits, strict=True)]


@every_version
@pytest.mark.parametrize("grad_cp", [False, True])
def test_receptance_and_gate_are_computed_while_states_travel(version: str, grad_cp: bool):
    for events in events_of(version, 3, rows(resets=True), grad_cp):
        # Forwards, backwards; a pass that is made again tells nothing.
        assert while_it_travels(events, "gather") == list(MEANWHILE[version])


@every_version
def test_it_is_so_too_where_the_row_goes_on(version: str):
    row = rows(resets=True)
    model = spread_model(version)
    model.blocks = model.blocks[:1]
    _, before = model.features(random_tokens(2, 9, seed=7))
    row.state = detach_state(before)
    for events in events_of(version, 2, row):
        assert while_it_travels(events, "gather") == list(MEANWHILE[version])


@every_version
def test_the_first_round_of_a_scan_travels_meanwhile(version: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(piece_exchange, "SCANNED_FROM", 3)
    (events, *_) = events_of(version, 3, rows(resets=True))
    # Two borders, each handed on at once, before and behind.
    forward = while_it_travels(events, "pass on 1")
    backward = while_it_travels(events, "pass on -1")
    assert forward == [[], MEANWHILE[version][0], []]
    assert backward == [[], MEANWHILE[version][1], []]
    assert while_it_travels(events, "pass on 2") == while_it_travels(events, "pass on -2") == [[]]
