"""What a layer adds to a step's launches, matrix products left out.

A layer is the difference of a step with three and one with two.
"""

from __future__ import annotations

import pytest

from tests.gpu_standin.cells import MEASURED_STEP, VERSIONS, Cell, run_cell

# An offloaded optimizer copies and converts its shards in pieces, which no layer decides.
STRATEGIES = (
    ("single_device", 1, 60),
    ("ddp", 2, 60),
    ("deepspeed_stage_1", 2, 60),
    ("deepspeed_stage_2", 1, 60),
    ("deepspeed_stage_2", 2, 60),
    ("deepspeed_stage_3", 2, 60),
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("strategy", "cards", "most"), STRATEGIES)
def test_a_layer_launches_little_besides_its_products(
    strategy, cards, most, version, data, tmp_path
):
    cell = Cell(strategy, cards, "bf16", version)
    steps = []
    for layers in (2, 3):
        folder = tmp_path / str(layers)
        folder.mkdir()
        run = run_cell(cell, data, folder, layers=layers)
        assert run.ended.returncode == 0, run.ended.stderr
        steps.append((run.step(MEASURED_STEP).launches, run.products(MEASURED_STEP)))
    (two, products_of_two), (three, products_of_three) = steps
    products = products_of_three - products_of_two
    # each of a layer's matrices: forward, its own gradient, that of its input
    assert products >= 3 * 6, "these are not the products of a layer"
    assert three - two - products <= most
