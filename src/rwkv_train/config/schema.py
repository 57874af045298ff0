"""One frozen configuration, grouped in the sections that the layers receive.

A field is a name, a type with its limits, a default and one line of help, which `--help` prints.
`None` means "derive it": `resolve` does so and returns a `ResolvedConfig`. A leaf name stands in
one section only: `--n_layer 12` on the command line is `model.n_layer` in code and YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rwkv_train.config.choices import OptimizerName, VersionName
from rwkv_train.config.limits import Above, AtLeast, MultipleOf, Share
from rwkv_train.config.machine_schema import HardwareConfig, LogConfig, SafetyConfig
from rwkv_train.config.versions import WIDTH_UNIT


@dataclass(frozen=True)
class ModelConfig:
    """Shape and architecture of the network."""

    rwkv_version: VersionName | None = None
    """RWKV version: 4, 5 (x052), 6 (x060) or 7 (x070); None: the checkpoint's, else 7"""
    n_layer: Annotated[int | None, AtLeast(1)] = None
    """number of blocks; None: the checkpoint's, else 6"""
    n_embd: Annotated[int | None, AtLeast(1), MultipleOf(WIDTH_UNIT)] = None
    """width of the residual stream, a multiple of 32; None: the checkpoint's, else 512"""
    dim_att: Annotated[int | None, AtLeast(1), MultipleOf(WIDTH_UNIT)] = None
    """width of the time mix; None: n_embd"""
    dim_ffn: Annotated[int | None, AtLeast(1), MultipleOf(WIDTH_UNIT)] = None
    """hidden width of the channel mix; None: the version's rule (4x, or 3.5x rounded to 32)"""
    vocab_size: Annotated[int | None, AtLeast(1)] = None
    """rows of embedding and head; None: the checkpoint's, else the tokenizer's"""
    head_size: Annotated[int | None, AtLeast(1)] = None
    """channels per head (RWKV-5, 6, 7); None: the checkpoint's, else 64"""
    head_size_divisor: Annotated[int, AtLeast(1)] = 8
    """the group norm's eps is 1e-5 times its square; every runtime assumes 8"""
    rank_mix: Annotated[int | None, AtLeast(1)] = None
    """rank of RWKV-6's token-shift mixer; None: the checkpoint's, else 32"""
    rank_decay: Annotated[int | None, AtLeast(1)] = None
    """rank of the decay's low-rank pair (RWKV-6, 7); None: the checkpoint's, else the formula"""
    rank_iclr: Annotated[int | None, AtLeast(1)] = None
    """rank of RWKV-7's in-context learning rate; None: the checkpoint's, else the formula"""
    rank_value: Annotated[int | None, AtLeast(1)] = None
    """rank of RWKV-7's value residual; None: the checkpoint's, else the formula"""
    rank_gate: Annotated[int | None, AtLeast(1)] = None
    """rank of RWKV-7's gate; None: the checkpoint's, else the formula"""
    head_qk: Annotated[int, AtLeast(0)] = 0
    """width of the copy head added to the logits (RWKV-4, 5); 0: none"""
    dropout: Annotated[float, Share()] = 0.0
    """dropout rate on the embedding output and, up to RWKV-6, on the residual stream"""


@dataclass(frozen=True)
class DataConfig:
    """Sources of the tokens and the order of reading them."""

    data_file: str | None = None
    """binidx prefix without extension; for the other data types a file; several binidx prefixes
    with weights: a:0.7,b:0.3, or a:0.7..0.3,b:0.3..0.7 for weights that change over the run"""
    mix_tokens: Annotated[int | None, AtLeast(1)] = None
    """tokens over which the weights of data_file change; None: the run's budget"""
    data_type: Literal["binidx", "numpy", "uint16", "utf-8", "utf-16le", "dummy"] = "binidx"
    """binidx, or one of RWKV-LM's small formats (read at random positions)"""
    ctx_len: Annotated[int, AtLeast(1)] = 1024
    """tokens per sample; one more is read as the last target"""
    magic_prime: Annotated[int | None, AtLeast(2)] = None
    """modulus of the sample permutation, prime and 2 mod 3; None: computed from the data"""
    sampling: Literal["permutation", "random"] | None = None
    """permutation: every slot once per pass; random: uniform positions; None: by stage and type"""
    sample_offset: Annotated[int, AtLeast(0)] = 0
    """tokens added to every sample's offset (permutation sampling)"""
    loss_mask: Literal["auto", "on", "off"] = "auto"
    """weigh the targets by PREFIX.mask, as make_data.py --chat_template writes it: auto: where
    there is one; on: refuse training data without; off: every token counts"""
    reset_at_documents: bool = False
    """state and token shift start anew where a document starts inside a sample"""
    val_data_file: str | None = None
    """held-out binidx prefix for the validation loss; None: no validation, or val_split's"""
    val_split: Annotated[float | None, Above(0)] = None
    """slots of ctx_len tokens of data_file that are held out from training and validated on: a
    share below 1, or their number from 1 on; None: none"""
    val_samples: Annotated[int, AtLeast(1)] = 128
    """samples per validation, spread evenly over the held-out data; at most all of val_split's"""
    val_ctx_len: Annotated[int | None, AtLeast(1)] = None
    """tokens per validation sample; beyond ctx_len the state is carried from part to part, so that
    memory stays that of ctx_len; None: ctx_len"""
    tokenizer: str | None = None
    """world, bytes or the path of a tokenizer.json; None: what the data's manifest says"""
    num_workers: Annotated[int, AtLeast(0)] = 2
    """loader processes per training process"""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule (rates are base rates; parameter groups multiply them)."""

    lr_init: Annotated[float, AtLeast(0)] = 6e-4
    """base learning rate at the start"""
    lr_final: Annotated[float, AtLeast(0)] = 1e-5
    """base learning rate at the end; 0 makes the step-based schedule linear"""
    warmup_steps: Annotated[int | None, AtLeast(-1)] = None
    """steps of linear warmup; -1: none; None: none on a fresh run, as in RWKV-LM, 10 or 30 when
    resuming from bare weights, the run's own when resuming exactly"""
    beta1: Annotated[float, Share()] = 0.9
    """Adam's decay of the first moment"""
    beta2: Annotated[float, Share()] = 0.99
    """Adam's decay of the second moment"""
    adam_eps: Annotated[float | None, Above(0)] = None
    """added to the root of the second moment; None: 1e-8, for RWKV-7 1e-18"""
    weight_decay: Annotated[float, AtLeast(0)] = 0.0
    """decoupled weight decay of the large matrices"""
    weight_decay_final: Annotated[float | None, Above(0)] = None
    """weight decay at the end, reached geometrically; None: constant"""
    grad_clip: Annotated[float, AtLeast(0)] = 1.0
    """global gradient norm is scaled down to this; 0: off"""
    layerwise_lr: bool = True
    """use the per-group rate factors (2x and 3x groups)"""
    special_lr_factor: Annotated[int | None, AtLeast(1)] = None
    """5: RWKV-LM's stage 2, one factor for both special groups; None: the version's own factors"""
    hold_epochs: Annotated[int, AtLeast(0)] = 0
    """mini-epochs to hold lr_init before the step-based schedule starts to fall"""
    optimizer: Literal["auto", OptimizerName] = "auto"
    """adamw; muon: Muon for the hidden matrices, AdamW for the rest; adam8bit: Adam with moments
    of 8 bits (bitsandbytes, GPU); auto: that of the state the run resumes from, else adamw"""
    muon_lr: Annotated[float | None, Above(0)] = None
    """base rate of Muon's matrices, falling as lr_init does; None: lr_init, or 0.02 with
    muon_adjust_lr original"""
    muon_momentum: Annotated[float, Share()] = 0.95
    """Muon's decay of the momentum"""
    muon_nesterov: bool = True
    """look ahead along the momentum (Nesterov)"""
    muon_adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """scale of an m x n update: 0.2 sqrt(max(m, n)), so that AdamW's rates fit; original:
    sqrt(max(1, m / n))"""


@dataclass(frozen=True)
class TrainConfig:
    """One run: what is trained, from where, how long, what is saved when."""

    proj_dir: str = "out"
    """folder of checkpoints, logs and plots; created when missing"""
    load_model: str | None = None
    """weights to start from (.pth or .safetensors); None: proj_dir, else fresh ones; at stage 1
    a smaller model, from which a larger one is made (n_layer, n_embd)"""
    load_partial: bool = False
    """fill tensors that the checkpoint lacks with fresh initial values"""
    train_stage: Literal[0, 1, 2, 3, 4] | None = None
    """0: start from load_model or fresh; 1: write rwkv-init.pth and leave;
    2 to 4: resume from proj_dir's newest checkpoint; None: resume if there is one, else start"""
    micro_bsz: Annotated[int, AtLeast(1)] = 8
    """samples per process and forward pass"""
    accumulate_grad_batches: Annotated[int, AtLeast(1)] = 1
    """forward passes per optimizer step"""
    global_batch_size: Annotated[int | None, AtLeast(1)] = None
    """samples per optimizer step over all processes, whose number may then change: micro_bsz is the
    most of a forward pass; None: processes x micro_bsz x accumulate_grad_batches, under torchrun
    that of the state"""
    exit_tokens: int | None = None
    """token budget of the cosine schedule and of the run; None: one pass over the data;
    0: step-based schedule only; negative: the mean of cosine and step-based rates"""
    max_steps: Annotated[int | None, AtLeast(1)] = None
    """stop after this many optimizer steps in all, saved like a mini-epoch; None: no limit"""
    exit_epoch: Annotated[int | None, AtLeast(0)] = None
    """leave at the end of the mini-epoch with this number; None: no limit"""
    epoch_steps: Annotated[int | None, AtLeast(1)] = None
    """optimizer steps per mini-epoch; None: 40320 samples' worth"""
    epoch_count: Annotated[int | None, AtLeast(0)] = None
    """length of the step-based schedule in mini-epochs, and the run's at most; None: the data's"""
    epoch_begin: Annotated[int | None, AtLeast(0)] = None
    """number of the first mini-epoch; None: after the newest checkpoint"""
    epoch_save: Annotated[int, AtLeast(0)] = 5
    """save rwkv-N.pth every so many mini-epochs; 0: only the last"""
    val_every: Annotated[int | None, AtLeast(1)] = None
    """steps between validations, besides those at every mini-epoch that is saved; None: no more"""
    save_best: bool = False
    """keep the weights of the lowest validation loss so far in best.pth"""
    save_fp32: bool = False
    """write checkpoints in fp32 instead of the training precision"""
    train_type: Literal["all", "states", "lora"] = "all"
    """what learns: all parameters, only the initial states, or low-rank adapters (flags lora_…)"""
    random_seed: Annotated[int | None, AtLeast(0)] = None
    """seed of initial weights, dropout and random sampling; None: 0"""
    accept_changes: str | None = None
    """settings, by comma, that a resumed run may have otherwise although another course of samples
    or another model follows: ctx_len, data_file, ... as the refusal names them; None: none"""
    plan: bool = False
    """print what the run takes (parameters, memory, files, time) and leave; nothing is written"""
    grad_cp: bool = False
    """activation checkpointing: recompute every block in the backward pass"""
    chunk_len: Annotated[int | None, AtLeast(1)] = None
    """read every sample in chunks of so many tokens: exact gradients in the memory of one chunk;
    None: at once"""
    bptt_chunks: Annotated[int | None, AtLeast(1)] = None
    """truncated backpropagation: an optimizer step per so many chunks of a sample, the state
    carried on without its gradient; None: gradients through the whole sample"""


@dataclass(frozen=True)
class AdapterConfig:
    """Low-rank adapters of --train_type lora."""

    lora_r: Annotated[int, AtLeast(1)] = 8
    """rank of the adapters"""
    lora_alpha: Annotated[float, Above(0)] = 16.0
    """their output is multiplied by lora_alpha / lora_r"""
    lora_dropout: Annotated[float, Share()] = 0.0
    """dropout rate on their input"""
    lora_targets: str | None = None
    """matrices that get one, by comma: att.key, or key for att.key and ffn.key, or att;
    None: all large matrices of the blocks"""
    lora_init: Literal["lora", "pissa"] = "lora"
    """lora: starts at zero; pissa: starts as the largest singular directions of each matrix"""
    lora_dora: bool = False
    """also learn the length of every row of the adapted matrices (DoRA)"""
    lora_train: str | None = None
    """trained fully besides the adapters, by comma: time (mixes, decays and all other small tensors
    of the blocks), ln (norms), emb, head; None: nothing"""


@dataclass(frozen=True)
class RunConfig:
    """Everything a run needs; written to proj_dir/config.yaml once resolved."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    log: LogConfig = field(default_factory=LogConfig)


def listed(words: str | None) -> tuple[str, ...]:
    """Returns the words of a field that holds a list with commas; () for None."""
    return tuple(word.strip() for word in (words or "").split(",") if word.strip())
