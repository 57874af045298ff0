"""A saved configuration repeats its run: properties."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_train.config.machine_schema import HardwareConfig
from rwkv_train.config.resolve.resolve import for_saving, resolve
from rwkv_train.config.schema import DataConfig, RunConfig, TrainConfig
from tests.config.resolving import EIGHT_GPUS, MINIPILE, SMALL, config_of, found

LINES = st.lists(
    st.sampled_from(
        [
            "--micro_bsz 16",
            "--accumulate_grad_batches 3",
            "--devices 2",
            "--num_nodes 2",
            "--ctx_len 512",
            "--exit_tokens 0",
            "--exit_tokens 5000000",
            "--exit_tokens -5000000",
            "--epoch_count 3",
            "--epoch_steps 17",
            "--exit_epoch 1",
            "--max_steps 5",
            "--my_testing x060",
            "--my_testing ''",
            "--head_size_a 64",
            "--warmup_steps 3",
            "--sampling random",
            "--layerwise_lr 0",
            "--special_lr_factor 5",
            "--precision bf16",
            "--strategy ddp",
            "--weight_decay 0.1",
        ]
    ),
    unique=True,
).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(line=LINES, discovered=st.sampled_from([MINIPILE, SMALL, EIGHT_GPUS]))
def test_resolving_a_saved_configuration_changes_nothing(line, discovered):
    given_config = config_of(line)
    first, _ = resolve(given_config, discovered)
    saved = for_saving(first, given_config)
    again, _ = resolve(saved, discovered)
    assert again == first


@settings(max_examples=25, deadline=None)
@given(line=LINES, epoch=st.integers(0, 100))
def test_a_saved_configuration_goes_on_after_any_checkpoint(line, epoch):
    given_config = config_of(line)
    first, _ = resolve(given_config, MINIPILE)
    saved = first.as_given()
    discovered = found(
        "state", epoch, "out/x.state", model=saved.model, warmup_steps=saved.optim.warmup_steps
    )
    resumed, _ = resolve(for_saving(first, given_config), discovered)
    assert resumed.train.epoch_begin == epoch + 1
    assert dataclasses.replace(resumed.train, epoch_begin=0) == first.train
    assert (resumed.optim, resumed.data, resumed.hardware) == (
        first.optim,
        first.data,
        first.hardware,
    )


@settings(max_examples=40, deadline=None)
@given(micro=st.integers(1, 5000), accumulate=st.integers(1, 64), devices=st.integers(1, 16))
def test_a_mini_epoch_never_exceeds_40320_samples_by_more_than_a_step(micro, accumulate, devices):
    given_config = RunConfig(
        data=DataConfig(data_file="data/x", ctx_len=512),
        train=TrainConfig(micro_bsz=micro, accumulate_grad_batches=accumulate),
        hardware=HardwareConfig(devices=devices),
    )
    config, _ = resolve(given_config, MINIPILE)
    batch = micro * accumulate * devices
    samples = config.train.epoch_steps * batch
    assert samples <= 40320 < samples + batch or (config.train.epoch_steps == 1 and batch > 40320)
