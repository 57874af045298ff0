"""A configuration resolved for a machine that is only imagined, by the rules of train.py."""

from __future__ import annotations

import dataclasses

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.discovered import (
    DataDiscovered,
    Discovered,
    MachineDiscovered,
    StartDiscovered,
)
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import RunConfig
from rwkv_train.config.versions import DEFAULT_VERSION
from rwkv_train.errors import ConfigError
from rwkv_train.planning.family import published_sizes, usual_vocabulary
from rwkv_train.planning.parameter_table import layer_state, tensor_shapes

# Beyond every machine there is, and where the numbers of tables stop being numbers.
_MOST_PARAMETERS = 10**15
# Stands for data that nobody has named: without any, train.py refuses to start.
_SOME_DATA = "DATA"
_SOME_MODEL = "MODEL.pth"


def imagined_run(
    given: RunConfig, *, model: str | None, tokens: float | None, has_bf16: bool
) -> tuple[ResolvedConfig, list[str]]:
    """Returns what train.py would resolve on a machine with such cards, and remarks.

    model: name of a published one.  tokens: of the run; has_bf16: whether the cards compute in it.
    Devices and version, where they are open, are one card and the default.  Raises ConfigError.
    """
    sizes = given.model if model is None else published_sizes(model, given.model)
    remarks = []
    if sizes.n_layer is None and sizes.n_embd is None and given.train.load_model is not None:
        raise ConfigError(
            f"--load_model {given.train.load_model} is not opened here: give --model, such as "
            "1.5B, or --n_layer and --n_embd; `train.py --plan 1` reads the file"
        )
    version = sizes.rwkv_version or DEFAULT_VERSION
    if sizes.vocab_size is None:
        vocabulary = usual_vocabulary(version)
        sizes = dataclasses.replace(sizes, vocab_size=vocabulary)
        remarks.append(f"vocab_size {vocabulary}: that of published models; none was given")
    if given.data.data_file is not None:
        remarks.append("data_file is not opened here; train.py --plan 1 reads tokens and tokenizer")
    hardware = given.hardware
    if hardware.accelerator == "auto":
        hardware = dataclasses.replace(hardware, accelerator="gpu")
    if hardware.devices is None:
        hardware = dataclasses.replace(hardware, devices=1)
    train = given.train
    if tokens is not None:
        if train.exit_tokens is not None and train.exit_tokens != int(tokens):
            raise ConfigError(
                f"--tokens {tokens:g} and --exit_tokens {train.exit_tokens} are the same budget; "
                "give one"
            )
        train = dataclasses.replace(train, exit_tokens=int(tokens))
    asked = dataclasses.replace(given, model=sizes, hardware=hardware, train=train)
    machine = MachineDiscovered(
        gpu_count=hardware.devices or 1,
        gpu_has_bf16=has_bf16,
        gpu_name="this card",
        has_bitsandbytes=True,
    )
    config, lines = planned_config(asked, machine, StartDiscovered(), None)
    return config, [*remarks, *lines]


def planned_config(
    given: RunConfig,
    machine: MachineDiscovered,
    start: StartDiscovered,
    data: DataDiscovered | None,
) -> tuple[ResolvedConfig, list[str]]:
    """Returns the resolved configuration of a run that is not started, and what it ignores.

    start, data: as far as they are known.  Raises ConfigError for what train.py would refuse, and
    for sizes that no machine holds.
    """
    if given.data.data_file is None and given.data.data_type != "dummy":
        some = dataclasses.replace(given.data, data_file=_SOME_DATA)
        given = dataclasses.replace(given, data=some)
    # Adapters and states need weights to start from, which here need not be there.
    remarks = []
    if start.path is None and given.train.train_type != "all":
        start = dataclasses.replace(start, path=given.train.load_model or _SOME_MODEL)
        if given.train.load_model is None:
            remarks.append(
                f"train_type {given.train.train_type} needs a model: "
                f"{given.train.proj_dir}/rwkv-init.pth, or --load_model FILE"
            )
    check_fields(given)
    config, lines = resolve(given, Discovered(data, start, machine))
    _check_sizes(config)
    return config, [*remarks, *(line for line in lines if " not used" in line)]


def _check_sizes(config: ResolvedConfig) -> None:
    shapes = tensor_shapes(config.model)
    if sum(tensor.copies * tensor.elements for tensor in shapes) > _MOST_PARAMETERS or (
        layer_state(config.model) * config.data.ctx_len > _MOST_PARAMETERS
    ):
        model = config.model
        raise ConfigError(
            f"--n_layer {model.n_layer} --n_embd {model.n_embd} --vocab_size {model.vocab_size} "
            f"--ctx_len {config.data.ctx_len}: no machine holds tensors of that size; take smaller "
            "ones"
        )
