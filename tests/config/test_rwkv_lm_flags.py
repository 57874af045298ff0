"""The frozen table of RWKV-LM's flags: every change of an outcome must be made here as well."""

from __future__ import annotations

import pytest

from src.config.fields import fields
from src.config.load import load_config
from src.config.rwkv_lm_flags import FLAGS, Idle, Refused, Taken, translate
from src.errors import ConfigError

REFUSED = object()
NOTICED = object()  # accepted, has no effect, and says so
OFF = object()  # accepted without a word: the value means "off"

# (flag, value) -> (our field, its value in the loaded configuration) or one of the three above.
TABLE = {
    # --- files and run control
    ("load_model", ""): ("load_model", None),
    ("load_model", "0"): ("load_model", None),
    ("load_model", "base.pth"): ("load_model", "base.pth"),
    ("wandb", ""): ("wandb", None),
    ("wandb", "Test"): ("wandb", "Test"),
    ("proj_dir", "out/world/7b"): ("proj_dir", "out/world/7b"),
    ("random_seed", "-1"): ("random_seed", None),
    ("random_seed", "0"): ("random_seed", 0),
    ("random_seed", "42"): ("random_seed", 42),
    ("train_type", ""): ("train_type", "all"),
    ("train_type", "states"): ("train_type", "states"),
    ("train_type", "state"): REFUSED,
    ("epoch_steps", "1000"): ("epoch_steps", 1000),
    ("epoch_count", "500"): ("epoch_count", 500),
    ("epoch_count", "999999"): ("epoch_count", None),
    ("epoch_begin", "0"): ("epoch_begin", None),
    ("epoch_begin", "7"): ("epoch_begin", 7),
    ("epoch_save", "0"): ("epoch_save", 0),
    ("epoch_save", "10"): ("epoch_save", 10),
    ("my_exit", "99999999"): ("exit_epoch", None),
    ("my_exit", "20"): ("exit_epoch", 20),
    ("my_exit", "x"): REFUSED,
    ("my_exit_tokens", "1498226207"): ("exit_tokens", 1498226207),
    ("my_exit_tokens", "0"): ("exit_tokens", 0),
    ("my_exit_tokens", "-5000"): ("exit_tokens", -5000),
    ("my_exit_tokens", "1e9"): REFUSED,
    ("micro_bsz", "16"): ("micro_bsz", 16),
    # --- data
    ("data_file", "data/minipile"): ("data_file", "data/minipile"),
    ("data_type", "binidx"): ("data_type", "binidx"),
    ("data_type", "utf-8"): ("data_type", "utf-8"),
    ("data_type", "utf-16le"): ("data_type", "utf-16le"),
    ("data_type", "numpy"): ("data_type", "numpy"),
    ("data_type", "uint16"): ("data_type", "uint16"),
    ("data_type", "dummy"): ("data_type", "dummy"),
    ("data_type", "wds_img"): REFUSED,
    ("vocab_size", "0"): ("vocab_size", None),
    ("vocab_size", "65536"): ("vocab_size", 65536),
    ("ctx_len", "512"): ("ctx_len", 512),
    ("magic_prime", "0"): ("magic_prime", None),
    ("magic_prime", "2926181"): ("magic_prime", 2926181),
    ("my_pile_version", "1"): OFF,
    ("my_pile_version", "2"): REFUSED,
    ("my_pile_shift", "-1"): ("sample_offset", 0),
    ("my_pile_shift", "100"): ("sample_offset", 100),
    ("my_sample_len", "0"): OFF,
    ("my_sample_len", "1024"): REFUSED,
    ("my_qa_mask", "0"): OFF,
    ("my_qa_mask", "1"): REFUSED,
    ("my_random_steps", "0"): OFF,
    ("my_random_steps", "1000"): REFUSED,
    # --- schedule and optimizer
    ("lr_init", "6e-4"): ("lr_init", 6e-4),
    ("lr_final", "0"): ("lr_final", 0.0),
    ("warmup_steps", "-1"): ("warmup_steps", None),
    ("warmup_steps", "0"): ("warmup_steps", 0),
    ("warmup_steps", "10"): ("warmup_steps", 10),
    ("beta1", "0.9"): ("beta1", 0.9),
    ("beta2", "0.99"): ("beta2", 0.99),
    ("adam_eps", "1e-18"): ("adam_eps", 1e-18),
    ("weight_decay", "0.001"): ("weight_decay", 0.001),
    ("weight_decay_final", "-1"): ("weight_decay_final", None),
    ("weight_decay_final", "0"): ("weight_decay_final", None),
    ("weight_decay_final", "0.01"): ("weight_decay_final", 0.01),
    ("grad_clip", "0"): ("grad_clip", 0.0),
    ("layerwise_lr", "1"): ("layerwise_lr", True),
    ("layerwise_lr", "2"): ("layerwise_lr", True),
    ("layerwise_lr", "0"): ("layerwise_lr", False),
    ("layerwise_lr", "-1"): ("layerwise_lr", False),
    ("my_pile_edecay", "0"): ("hold_epochs", 0),
    ("my_pile_edecay", "3"): ("hold_epochs", 3),
    ("dropout", "0.1"): ("dropout", 0.1),
    ("grad_cp", "0"): ("grad_cp", False),
    ("grad_cp", "1"): ("grad_cp", True),
    ("grad_cp", None): ("grad_cp", True),
    ("grad_cp", "2"): REFUSED,
    ("grad_cp", "-1"): REFUSED,
    ("ds_bucket_mb", "2"): ("ds_bucket_mb", 2),
    # --- model shape
    ("n_layer", "12"): ("n_layer", 12),
    ("n_embd", "768"): ("n_embd", 768),
    ("dim_att", "0"): ("dim_att", None),
    ("dim_att", "-1"): ("dim_att", None),
    ("dim_att", "512"): ("dim_att", 512),
    ("dim_ffn", "0"): ("dim_ffn", None),
    ("dim_ffn", "2688"): ("dim_ffn", 2688),
    ("head_size_a", "64"): ("head_size", 64),
    ("head_size", "64"): ("head_size", 64),
    ("head_size_divisor", "8"): ("head_size_divisor", 8),
    ("my_testing", ""): ("rwkv_version", "4"),
    ("my_testing", "x052"): ("rwkv_version", "5"),
    ("my_testing", "r2r3r4"): ("rwkv_version", "5"),
    ("my_testing", "x060"): ("rwkv_version", "6"),
    ("my_testing", "x070"): ("rwkv_version", "7"),
    ("my_testing", "x060a"): REFUSED,
    ("my_testing", "x060b"): REFUSED,
    ("my_testing", "x060c"): REFUSED,
    ("my_testing", "x060-f4"): REFUSED,
    ("my_testing", "x052-f4"): REFUSED,
    ("my_testing", "mamba"): REFUSED,
    ("my_testing", "g"): REFUSED,
    ("my_testing", "a"): REFUSED,
    ("my_testing", "r"): REFUSED,
    ("my_testing", "r4"): REFUSED,
    ("my_testing", "X060"): REFUSED,
    ("my_testing", "x0600"): REFUSED,
    ("my_testing", "x080"): REFUSED,
    ("kernel", ""): NOTICED,
    ("kernel", "@rwkv3"): NOTICED,
    ("kernel", "@other"): REFUSED,
    ("head_chunk", "0"): ("head_chunk", None),
    ("head_chunk", "4096"): ("head_chunk", 4096),
    ("load_partial", "0"): ("load_partial", False),
    ("load_partial", "1"): ("load_partial", True),
    ("load_partial", "2"): REFUSED,
    ("pre_ffn", "0"): OFF,
    ("pre_ffn", "1"): REFUSED,
    ("head_qk", "0"): ("head_qk", 0),
    ("head_qk", "256"): ("head_qk", 256),
    ("tiny_att_dim", "0"): OFF,
    ("tiny_att_dim", "512"): REFUSED,
    ("tiny_att_layer", "-999"): OFF,
    ("tiny_att_layer", "5"): REFUSED,
    ("my_pos_emb", "0"): OFF,
    ("my_pos_emb", "32"): REFUSED,
    ("my_ffn_shift", "1"): NOTICED,
    ("my_att_shift", "0"): NOTICED,
    ("my_img_version", "0"): OFF,
    ("my_img_version", "1"): REFUSED,
    ("my_img_size", "0"): OFF,
    ("my_img_size", "224"): REFUSED,
    ("my_img_bit", "0"): OFF,
    ("my_img_bit", "8"): REFUSED,
    ("my_img_clip", "x"): OFF,
    ("my_img_clip", "B32"): REFUSED,
    ("my_img_clip_scale", "1"): OFF,
    ("my_img_clip_scale", "2"): REFUSED,
    ("my_img_l1_scale", "0"): OFF,
    ("my_img_l1_scale", "1"): REFUSED,
    ("my_img_encoder", "x"): NOTICED,
    ("my_pile_stage", "1"): ("train_stage", 1),
    ("my_pile_stage", "3"): ("train_stage", 3),
    ("my_pile_stage", "5"): REFUSED,
    ("train_stage", "0"): ("train_stage", 0),
    ("train_stage", "1"): ("train_stage", 1),
    ("train_stage", "2"): ("train_stage", 2),
    ("train_stage", "3"): ("train_stage", 3),
    ("train_stage", "4"): ("train_stage", 4),
    # --- Lightning 1.9.5, taken over
    ("accelerator", "gpu"): ("accelerator", "gpu"),
    ("accelerator", "cpu"): ("accelerator", "cpu"),
    ("accelerator", "cuda"): ("accelerator", "gpu"),
    ("accelerator", "tpu"): REFUSED,
    ("accelerator", "mps"): REFUSED,
    ("accelerator", "GPU"): REFUSED,
    ("devices", "8"): ("devices", 8),
    ("devices", "-1"): ("devices", None),
    ("devices", "auto"): ("devices", None),
    ("devices", "0,1"): REFUSED,
    ("num_nodes", "2"): ("num_nodes", 2),
    ("precision", "fp32"): ("precision", "fp32"),
    ("precision", "tf32"): ("precision", "tf32"),
    ("precision", "fp16"): ("precision", "fp16"),
    ("precision", "bf16"): ("precision", "bf16"),
    ("precision", "32"): ("precision", "fp32"),
    ("precision", "16"): ("precision", "fp16"),
    ("precision", "bf16-mixed"): ("precision", "bf16"),
    ("precision", "bf16-true"): REFUSED,
    ("precision", "64"): REFUSED,
    ("precision", "int8"): REFUSED,
    ("strategy", "auto"): ("strategy", "auto"),
    ("strategy", "ddp"): ("strategy", "ddp"),
    ("strategy", "single_device"): ("strategy", "single_device"),
    ("strategy", "deepspeed_stage_1"): ("strategy", "deepspeed_stage_1"),
    ("strategy", "deepspeed_stage_2"): ("strategy", "deepspeed_stage_2"),
    ("strategy", "deepspeed_stage_2_offload"): ("strategy", "deepspeed_stage_2_offload"),
    ("strategy", "deepspeed_stage_3"): ("strategy", "deepspeed_stage_3"),
    ("strategy", "deepspeed_stage_3_offload"): ("strategy", "deepspeed_stage_3_offload"),
    ("strategy", "ddp_find_unused_parameters_false"): ("strategy", "ddp"),
    ("strategy", "deepspeed"): REFUSED,
    ("strategy", "fsdp"): REFUSED,
    ("enable_progress_bar", "True"): ("enable_progress_bar", True),
    ("enable_progress_bar", "False"): ("enable_progress_bar", False),
    ("accumulate_grad_batches", "4"): ("accumulate_grad_batches", 4),
    ("accumulate_grad_batches", "None"): ("accumulate_grad_batches", 1),
    ("max_steps", "-1"): ("max_steps", None),
    ("max_steps", "20"): ("max_steps", 20),
    # --- Lightning 1.9.5, overwritten by RWKV-LM
    ("logger", "True"): NOTICED,
    ("enable_checkpointing", "False"): NOTICED,
    ("replace_sampler_ddp", "False"): NOTICED,
    ("gradient_clip_val", "1.0"): NOTICED,
    ("num_sanity_val_steps", "0"): NOTICED,
    ("check_val_every_n_epoch", "1"): NOTICED,
    ("log_every_n_steps", "50"): NOTICED,
    ("max_epochs", "-1"): NOTICED,
    # --- Lightning 1.9.5, at the default and refused
    ("gradient_clip_algorithm", "norm"): OFF,
    ("gradient_clip_algorithm", "value"): REFUSED,
    ("default_root_dir", "None"): OFF,
    ("default_root_dir", "runs"): REFUSED,
    ("num_processes", "None"): OFF,
    ("num_processes", "2"): REFUSED,
    ("gpus", "None"): OFF,
    ("gpus", "1"): REFUSED,
    ("auto_select_gpus", "False"): OFF,
    ("auto_select_gpus", "True"): REFUSED,
    ("tpu_cores", "None"): OFF,
    ("tpu_cores", "8"): REFUSED,
    ("ipus", "None"): OFF,
    ("ipus", "8"): REFUSED,
    ("overfit_batches", "0.0"): OFF,
    ("overfit_batches", "1"): REFUSED,
    ("track_grad_norm", "-1"): OFF,
    ("track_grad_norm", "2"): REFUSED,
    ("fast_dev_run", "False"): OFF,
    ("fast_dev_run", "True"): REFUSED,
    ("min_epochs", "None"): OFF,
    ("min_epochs", "1"): REFUSED,
    ("min_steps", "None"): OFF,
    ("min_steps", "1"): REFUSED,
    ("max_time", "None"): OFF,
    ("max_time", "00:01:00:00"): REFUSED,
    ("limit_train_batches", "1.0"): OFF,
    ("limit_train_batches", "0.5"): REFUSED,
    ("limit_val_batches", "1.0"): OFF,
    ("limit_val_batches", "0"): REFUSED,
    ("limit_test_batches", "None"): OFF,
    ("limit_test_batches", "5"): REFUSED,
    ("limit_predict_batches", "None"): OFF,
    ("limit_predict_batches", "5"): REFUSED,
    ("val_check_interval", "None"): OFF,
    ("val_check_interval", "100"): REFUSED,
    ("sync_batchnorm", "False"): OFF,
    ("sync_batchnorm", "True"): REFUSED,
    ("enable_model_summary", "True"): OFF,
    ("enable_model_summary", "False"): REFUSED,
    ("resume_from_checkpoint", "None"): OFF,
    ("resume_from_checkpoint", "x.ckpt"): REFUSED,
    ("profiler", "None"): OFF,
    ("profiler", "simple"): REFUSED,
    ("benchmark", "None"): OFF,
    ("benchmark", "True"): REFUSED,
    ("deterministic", "None"): OFF,
    ("deterministic", "True"): REFUSED,
    ("reload_dataloaders_every_n_epochs", "0"): OFF,
    ("reload_dataloaders_every_n_epochs", "1"): REFUSED,
    ("auto_lr_find", "False"): OFF,
    ("auto_lr_find", "True"): REFUSED,
    ("auto_scale_batch_size", "False"): OFF,
    ("auto_scale_batch_size", "power"): REFUSED,
    ("detect_anomaly", "False"): OFF,
    ("detect_anomaly", "True"): REFUSED,
    ("plugins", "None"): OFF,
    ("plugins", "x"): REFUSED,
    ("amp_backend", "native"): OFF,
    ("amp_backend", "apex"): REFUSED,
    ("amp_level", "None"): OFF,
    ("amp_level", "O2"): REFUSED,
    ("move_metrics_to_cpu", "False"): OFF,
    ("move_metrics_to_cpu", "True"): REFUSED,
    ("multiple_trainloader_mode", "max_size_cycle"): OFF,
    ("multiple_trainloader_mode", "min_size"): REFUSED,
    ("inference_mode", "True"): OFF,
    ("inference_mode", "False"): REFUSED,
    ("callbacks", "None"): OFF,
    ("callbacks", "x"): REFUSED,
}


def command_line(flag, value):
    return [f"--{flag}"] if value is None else [f"--{flag}", value]


def leaf(config, name):
    return getattr(getattr(config, fields()[name].section), name)


@pytest.mark.parametrize(("flag", "value"), TABLE, ids=lambda part: repr(part))
def test_each_flag_has_its_frozen_outcome(flag, value):
    outcome = TABLE[flag, value]
    argv = command_line(flag, value)
    if outcome is REFUSED:
        with pytest.raises(ConfigError, match=rf"--{flag}\b") as refusal:
            load_config(translate(argv).argv)
        assert "\n" not in str(refusal.value)
        return
    translation = translate(argv)
    if outcome in (OFF, NOTICED):
        assert translation.argv == []
        assert len(translation.notices) == (outcome is NOTICED)
    else:
        field, expected = outcome
        loaded = leaf(load_config(translation.argv), field)
        assert loaded == expected and type(loaded) is type(expected)


def test_the_frozen_table_misses_no_flag():
    seen = {flag for flag, _ in TABLE}
    assert set(FLAGS) <= seen
    refusals = {flag for (flag, _), outcome in TABLE.items() if outcome is REFUSED}
    assert {flag for flag, row in FLAGS.items() if isinstance(row, Refused)} <= refusals


def test_every_old_name_is_kept_apart_from_the_names_of_our_fields():
    for flag, row in FLAGS.items():
        if isinstance(row, Taken):
            assert row.field in fields()
        else:
            assert flag not in fields(), f"--{flag} is ours and may not be refused"
        if isinstance(row, Idle):
            assert row.notice


def test_other_spellings_are_accepted_with_a_notice():
    for argv in (
        ["--precision", "32"],
        ["--precision", "bf16-mixed"],
        ["--strategy", "ddp_find_unused_parameters_false"],
        ["--accelerator", "cuda"],
    ):
        (notice,) = translate(argv).notices
        assert argv[0] in notice and argv[1] in notice


def test_a_notice_is_given_once_however_often_the_flag_is():
    notices = translate(["--my_ffn_shift", "1", "--my_ffn_shift", "1"]).notices
    assert notices == ["--my_ffn_shift has no effect in RWKV-LM either"]


def stage(number, *more):
    return translate(["--my_pile_stage", number, *more])


def test_stage_2_of_the_older_generations_brings_its_rate_factor():
    old = load_config(stage("2").argv)
    assert (old.train.train_stage, old.optim.special_lr_factor) == (2, 5)
    new = load_config(translate(["--train_stage", "2"]).argv)
    assert (new.train.train_stage, new.optim.special_lr_factor) == (2, None)


def test_stages_0_and_4_of_the_older_generations_sample_at_random():
    sampling = {n: load_config(stage(n).argv).data.sampling for n in "01234"}
    assert sampling == {"0": "random", "1": None, "2": None, "3": None, "4": "random"}
    assert load_config(stage("4", "--sampling", "permutation").argv).data.sampling == "permutation"
    assert load_config(translate(["--train_stage", "4"]).argv).data.sampling is None


def test_the_older_generations_have_no_token_budget_unless_one_is_given():
    assert load_config(stage("3").argv).train.exit_tokens == 0
    assert load_config(stage("3", "--my_exit_tokens", "5000").argv).train.exit_tokens == 5000
    assert load_config(translate(["--train_stage", "3"]).argv).train.exit_tokens is None


def test_stage_0_of_the_older_generations_lasts_500_times_1000_steps():
    train = load_config(stage("0").argv).train
    assert (train.epoch_count, train.epoch_steps) == (500, 1000)
    train = load_config(stage("0", "--epoch_steps", "20", "--epoch_count", "3").argv).train
    assert (train.epoch_count, train.epoch_steps) == (3, 20)
    with_budget = load_config(stage("0", "--my_exit_tokens", "9999").argv).train
    assert with_budget.epoch_count is None


def test_the_data_sets_the_schedule_length_in_the_other_old_stages():
    translation = stage("3", "--epoch_count", "7")
    assert load_config(translation.argv).train.epoch_count is None
    assert any("--epoch_count 7" in notice for notice in translation.notices)
    assert stage("3", "--epoch_count", "999999").notices == []


def test_two_names_of_one_setting_may_agree_but_not_contradict():
    agreed = translate(["--my_pile_stage", "3", "--train_stage", "3"])
    assert load_config(agreed.argv).train.train_stage == 3
    with pytest.raises(ConfigError, match=r"--my_pile_stage and --train_stage"):
        translate(["--my_pile_stage", "2", "--train_stage", "3"])
    with pytest.raises(ConfigError, match=r"--head_size_a and --head_size "):
        translate(["--head_size_a", "64", "--head_size", "32"])


def test_the_last_of_two_equal_flags_wins_as_in_shell_scripts():
    argv = translate(["--micro_bsz", "8", "--micro_bsz", "2"]).argv
    assert load_config(argv).train.micro_bsz == 2


def test_unknown_flags_are_left_for_the_loader():
    assert translate(["--nonsense", "1"]).argv == ["--nonsense=1"]


def test_help_passes_untouched():
    assert translate(["--my_testing", "x060a", "--help"]).argv == [
        "--my_testing",
        "x060a",
        "--help",
    ]
