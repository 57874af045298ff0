"""The sections of the configuration that are about the machine: saves, hardware, logs.

Written as those of `schema`, which puts all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from rwkv_train.config.choices import Accelerator, BackendName, Precision, Strategy
from rwkv_train.config.limits import AtLeast, Between


@dataclass(frozen=True)
class SafetyConfig:
    """Saves besides mini-epochs, their retention, and the treatment of bad steps."""

    save_every_steps: Annotated[int | None, AtLeast(1)] = None
    """save the training state every so many optimizer steps too; None: not by steps"""
    save_every_minutes: Annotated[float, AtLeast(0)] = 30.0
    """save the training state when the last save is so many minutes old; 0: not by time"""
    save_in_background: bool = True
    """write while training continues; 0: training waits until the files are on disk"""
    state_format: Literal["auto", "file", "folder"] = "auto"
    """a training state is one file that the first process writes, or a folder into which each
    writes its part; auto: a folder where several train a whole model"""
    save_retry_seconds: Annotated[float, AtLeast(0)] = 60.0
    """seconds between the attempts of a save that failed; the third failure stops the run"""
    keep_last: Annotated[int, AtLeast(1)] = 2
    """training states to keep, newest first; rwkv-final.state is kept besides"""
    keep_every: Annotated[int | None, AtLeast(1)] = None
    """keep, whatever its age, what was saved at a multiple of so many steps; None: nothing"""
    keep_last_weights: Annotated[int | None, AtLeast(1)] = None
    """numbered rwkv-N.pth files to keep, newest first; None: all"""
    state_copies: str | None = None
    """folders for second copies of the states, by comma, each with its own rules:
    FOLDER:keep_last=2:keep_every=1000:every_steps=100 (all but the folder may be left out);
    partner:FOLDER is on the machine after the first, /dev/shm there its memory; a run resumes from
    the newest state of all places; None: no copies"""
    copies_wait_minutes: Annotated[float, AtLeast(0)] = 10.0
    """minutes that the end of a run waits for the last copies"""
    on_bad_step: Literal["skip", "stop"] = "skip"
    """a step whose loss or gradient is not finite, or a spike: leave it out, or stop the run"""
    spike_sigma: Annotated[float, AtLeast(0)] = 0.0
    """a loss so many standard deviations above the last 100 steps' mean is a spike; 0: none is"""
    bad_steps_before_rollback: Annotated[int, AtLeast(0)] = 3
    """skipped steps in a row after which the run goes back to an earlier state; 0: never"""
    max_rollbacks: Annotated[int, AtLeast(0)] = 3
    """times a run goes back before it stops with the cause"""


@dataclass(frozen=True)
class HardwareConfig:
    """Devices, precision and strategy of the run."""

    accelerator: Literal["auto", Accelerator] = "auto"
    """auto: a GPU if there is one"""
    devices: Annotated[int | None, Between(1, 1024)] = None
    """processes per machine, one per GPU; None: those of the launcher that started them, else all
    GPUs, or one process on a CPU"""
    dist_timeout: Annotated[float | None, AtLeast(1)] = None
    """seconds to wait for other processes; None: 300 for their start, 1800 in every step"""
    hang_timeout: Annotated[float, AtLeast(0)] = 600.0
    """seconds after which a process that stands still while others wait ends the run, with its name
    and its stack, for a restart; at least 5; 0: never"""
    num_nodes: Annotated[int | None, Between(1, 100_000)] = None
    """machines; None: those of the launcher that started the processes, else one"""
    context_parallel: Annotated[int, AtLeast(1)] = 1
    """processes that share the tokens of every sample, each reading a piece, in the memory of one;
    devices x num_nodes is a multiple of it; 1: each process reads samples of its own"""
    precision: Precision | None = None
    """fp32, tf32, bf16 or fp16; None: bf16 on a GPU (before Ampere fp16), fp32 on a CPU"""
    autocast: bool | None = None
    """keep fp32 weights, which every product rounds to 16 bits; 0: keep bf16 weights, and their
    fp32 masters in the optimizer; None: 0 on one GPU with adamw and under DeepSpeed, else 1"""
    strategy: Strategy = "auto"
    """auto: single_device for one process, else ddp on CPUs and deepspeed_stage_2 on GPUs"""
    ds_bucket_mb: Annotated[int, AtLeast(1)] = 200
    """DeepSpeed's bucket size in millions of elements"""
    wkv_backend: BackendName = "auto"
    """implementation of the WKV operators; auto: the fastest that accepts the call"""
    head_chunk: Annotated[int | None, AtLeast(1)] = None
    """rows per slice of the fused head and loss; None: 64 MiB of logits or, where the head
    learns, 4 rows a channel, of up to 512 MiB (on a GPU 1 GiB)"""
    keep_heap: bool = True
    """on a CPU keep the memory that a step frees for the next, on huge pages (Linux with glibc)"""
    skip_memory_check: bool = False
    """start although the memory that is predicted is more than there is"""
    compile: bool = False
    """compile the blocks with torch.compile: a minute at the first step, less time in all others;
    needs a C++ compiler, on a GPU triton; not with deepspeed_stage_3"""


@dataclass(frozen=True)
class LogConfig:
    """Logs, plots, progress bars, and what the model is asked while it trains."""

    wandb: str | None = None
    """Weights & Biases project; None: off"""
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    """offline and disabled need no account"""
    tensorboard: bool = False
    """write proj_dir/tensorboard for TensorBoard, the same curves as metrics.jsonl"""
    run_name: str | None = None
    """name of the run in wandb and TensorBoard; None: sizes and time, as RWKV-LM names it, and in
    TensorBoard the folder's own"""
    profile: Annotated[int | None, AtLeast(1)] = None
    """steps to profile once this start is warm, into proj_dir/profile-STEP.json.gz (Perfetto) and
    .txt; None: none"""
    measure_rate: bool = False
    """measure anew how fast this machine multiplies matrices, of which MFU is a share; 0: take what
    the cache knows of it"""
    enable_progress_bar: bool = True
    """show the progress bar"""
    plot: bool = True
    """redraw proj_dir/loss.png at every mini-epoch"""
    report: bool = True
    """renew proj_dir/report.html, a page of all that is known of the run, at every mini-epoch"""
    eval_tasks: str | None = None
    """tasks of lm-eval, by comma, at every mini-epoch that is saved and at the end; None: none"""
    eval_include: str | None = None
    """folder of more tasks for eval_tasks; None: the project's own and lm-eval's"""
    eval_limit: Annotated[int | None, AtLeast(1)] = None
    """most documents of each of eval_tasks; None: all"""
    sample_every: Annotated[int | None, AtLeast(1)] = None
    """steps between samples of text, the same seed every time; None: no samples"""
    sample_prompts: str | None = None
    """file of prompts for them, a line each, or .jsonl with a "prompt"; None: an empty one"""
    sample_tokens: Annotated[int, AtLeast(1)] = 64
    """tokens of each sample"""
