"""Inside a layer, rooms import one another along the arrows of a list, and in no circle.

A room is a folder of a layer, or a file that lies in the layer itself. `ARROWS` has every arrow, so
a new one is a decision that a commit shows. A failing test prints the rows that changed.
"""

from __future__ import annotations

import difflib
import subprocess
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.checkout import ROOT
from tests.import_graph import circles, layer_of, own_imports, room_of

# room: the rooms of the same layer that it imports; a long row continues on indented lines.
ARROWS = """\
checkpoint.adapter_files: lazy_tensors weights
checkpoint.convert_state: lazy_tensors part_tensors resume state_folder state_parts
checkpoint.copy_files: digest names resume state_manifest
checkpoint.hf_names: fla_names web_rwkv_names weight_folder
checkpoint.merge: adapter_files number_formats weights
checkpoint.part_metadata: memory_shortage
checkpoint.part_tensors: element_boxes lazy_tensors memory_shortage names part_metadata
    state_parts
checkpoint.places: resume
checkpoint.resume: digest memory_shortage names space state_folder state_format
    state_manifest
checkpoint.retention: digest names resume state_manifest
checkpoint.state_folder: finite names part_tensors state_format state_manifest state_parts
checkpoint.state_manifest: digest names
checkpoint.state_parts: digest element_boxes names state_manifest
checkpoint.state_place: copy_files names resume retention
checkpoint.state_stream: names resume state_manifest
checkpoint.web_rwkv_names: fla_names
checkpoint.weight_folder: names
checkpoint.weights: checkpoint_kind finite fit_weights hf_names lazy_tensors
    memory_shortage provenance pth_file space tensor_files weight_folder weight_keys
checkpoint.weights_from_parts: digest number_formats state_folder weights
config.check: copy_places limits machine_schema mixture_list resume_rules run_length
    schema sections token_columns versions
config.choices: versions
config.command_line: schema sections
config.discovered: choices schema
config.load: command_line copy_places mixture_list resolved rwkv_lm schema sections
config.machine_schema: choices limits
config.resolve: check choices discovered machine_schema mixture_list resolved run_length
    rwkv_lm schema versions
config.resolved: choices machine_schema rwkv_lm schema sections versions
config.resume_differences: load mixture_list resolved resume_rules schema sections
config.resume_rules: resolved
config.run_length: resolved schema token_columns
config.rwkv_lm: choices command_line versions
config.schema: choices limits machine_schema versions
config.sections: machine_schema schema
data.__main__: convert inspect make_data_flags synthetic
data.binidx: sampling storage
data.chat: binidx text tokenize
data.convert: binidx chat storage text tokenize
data.inspect: binidx convert samples sampling storage tokenize
data.samples: binidx sampling storage tokenize
data.synthetic: binidx convert inspect text tokenize
data.text: storage
data.tokenize: binidx storage text
doctor.__main__: check_runner check_table doctor_report findings
doctor.build_tools: findings package_imports python_packages
doctor.check_runner: check_table child_command findings
doctor.check_table: build_tools disk_speed findings graphics_cards kernel_checks
    machine_state memory_checks network_checks package_imports process_limits
    processor_checks python_packages rings run_folder training_steps
doctor.disk_speed: findings run_folder
doctor.doctor_report: check_table findings
doctor.graphics_cards: findings python_packages
doctor.kernel_checks: findings
doctor.machine_state: findings
doctor.memory_checks: findings
doctor.network_checks: findings
doctor.package_imports: findings python_packages
doctor.process_limits: findings python_packages
doctor.processor_checks: findings
doctor.python_packages: findings
doctor.rings: child_command findings
doctor.run_folder: findings
doctor.training_steps: findings
evaluation.__main__: evaluated evaluations harness perplexity report scoring
evaluation.continuations: scoring
evaluation.decoding: scoring
evaluation.evaluations: documents harness perplexity questions scoring
evaluation.harness: harness_model scoring task_folders
evaluation.harness_model: continuations decoding documents evaluated perplexity questions
    scoring
evaluation.perplexity: documents scoring
evaluation.questions: continuations scoring
evaluation.report: comparison evaluations
export.__main__: exporting hub model_source target target_table
export.exporting: model_card model_source target verification
export.model_card: model_source run_facts target verification
export.target: model_source
export.target_table: target targets
export.targets: model_source target tokenizer_folder
export.tokenizer_folder: model_source world_definition
export.verification: model_source reference_logits target
inference.__main__: generating model_flags prompt_file
inference.chat: engine model_flags sampling writing writing_together
inference.embed: engine model_flags
inference.generate: engine writing writing_together
inference.generating: engine model_flags sampling speed writing writing_together
inference.model_flags: machine opening sampling
inference.opening: int8_loss loading machine
inference.recall: loading
inference.writing: stop_texts streaming
inference.writing_together: engine writing
models.adapters: backbone layers table
models.backbone: block layers residual rounded_weights row_chunks state token_ranks
models.block: layers residual row_borders state token_ranks
models.compiled_blocks: backbone
models.huge_pages: backbone
models.initial_state: backbone layers state
models.int8: backbone layers
models.layers: widening
models.native_step: backbone block int8 layers residual rwkv4 rwkv5 rwkv6 rwkv7 state
models.parameters: adapters backbone registry table
models.piece_exchange: token_ranks
models.recorded_step: backbone huge_pages native_step recorded_operators residual state
models.registry: backbone sizes
models.residual: layers widening
models.rounded_weights: residual widening
models.row_borders: residual token_ranks
models.row_chunks: state token_ranks
models.rwkv4: layers residual sizes spread_state table token_ranks
models.rwkv5: layers residual rwkv4 sizes spread_state table token_ranks
models.rwkv6: layers residual sizes spread_state table token_ranks widening
models.rwkv7: layers residual sizes spread_state table token_ranks two_products widening
models.rwkv_package: registry state
models.spread_state: piece_exchange state token_ranks
models.transfer: backbone registry table
models.two_products: layers
ops.adamw: backends native precision
ops.arguments: backends precision
ops.embedding_norm: arguments backends native precision
ops.head_loss: arguments backends native precision
ops.head_norm_gate: arguments backends native precision
ops.keys: arguments backends native precision
ops.matvec: arguments backends native precision
ops.native: backends precision
ops.norm_shift: arguments backends native precision
ops.pieces: arguments backends chunked native precision wkv4 wkv5 wkv6 wkv7
ops.sigmoid_gate: arguments backends native precision
ops.split_tanh: arguments backends native
ops.squared_relu: arguments backends native
ops.token_step: matvec native
ops.value_residual: arguments backends native precision
ops.wkv4: arguments backends native precision
ops.wkv5: arguments backends native precision wkv6
ops.wkv6: arguments backends chunked native precision
ops.wkv7: arguments backends chunked native precision
planning.__main__: plan_flags plan_program
planning.choice_text: amounts cards fit host_memory plan text_table
planning.cluster: amounts plan step_time text_table
planning.context_traffic: link_traffic
planning.file_sizes: held_parameters kept_activations parameter_table
planning.fit: cards memory plan smaller_settings step_time
planning.flops: parameter_table
planning.head_memory: kept_activations
planning.held_parameters: kept_activations parameter_table
planning.host_memory: held_parameters
planning.kept_activations: parameter_table
planning.memory: head_memory held_parameters kept_activations pass_sizes
planning.pass_sizes: parameter_table
planning.plan: cards cost file_sizes flops held_parameters host_memory memory
    parameter_table step_time
planning.plan_flags: amounts cards cluster plan
planning.plan_program: cards choice_text cluster fit plan plan_flags plan_record plan_text
    planned_run
planning.plan_record: fit plan
planning.plan_text: amounts cost file_sizes flops plan step_time text_table
planning.planned_run: family parameter_table
planning.smaller_settings: memory
planning.step_links: cards context_traffic link_traffic parameter_table
planning.step_time: cards context_traffic flops parameter_table step_links
report.__main__: comparison_page page_file run_page
report.comparison_page: folder_facts life_times loss_section page_blocks reference_band
    run_history run_page step_bins
report.curve_sections: page_blocks run_history step_bins
report.folder_facts: run_records
report.life_times: page_blocks run_history
report.loss_section: page_blocks run_endings run_history step_bins
report.page_blocks: step_bins
report.reference_band: page_blocks run_history step_bins
report.run_endings: page_blocks run_lives step_bins
report.run_history: run_lives run_records step_bins
report.run_lives: run_records
report.run_page: curve_sections folder_facts life_times loss_section page_blocks page_file
    reference_band run_endings run_history run_records table_sections
report.table_sections: folder_facts page_blocks run_history step_bins
serving.__main__: application opening_service server_process
serving.application: batching http_guard openai_api served_model waiting
serving.http_guard: openai_api served_model
serving.openai_api: batching served_model
serving.opening_service: batching served_model
serving.served_model: batching
serving.server_process: served_model
serving.waiting: batching openai_api
training.__main__: distributed environment launchers out_of_memory run start
training.bad_steps: checkpointing distributed module optim reporting run_clock start
training.carried_state: distributed
training.checkpointing: distributed environment module optim progress
training.distributed: environment launchers optim run_clock signals
training.finished: environment progress start
training.kept_heap: environment
training.live: distributed environment
training.loader: kept_heap launchers run_clock signals
training.module: carried_state distributed optim run_clock work_clock
training.observing: checkpointing live module progress reporting run_clock validation
training.out_of_memory: start
training.profiling: environment reporting run_clock
training.reporting: live progress start
training.run: bad_steps checkpointing distributed environment finished kept_heap launchers
    live loader module observing optim profiling progress reporting run_clock start
    step_callback step_meter step_reports trainer utilization validation
training.signals: launchers
training.start: carried_state checkpointing distributed environment launchers live optim
    progress
training.step_callback: bad_steps checkpointing distributed module observing optim
    profiling progress signals step_reports
training.step_meter: run_clock start utilization
training.step_reports: bad_steps progress reporting step_meter
training.trainer: distributed fp32_products
training.utilization: start
training.validation: checkpointing module progress reporting run_clock start
training.whole_step: fp32_products optim
verification.__main__: golden_file item_names outcome_table outcomes speeds
    verification_file verifying
verification.check_model: fixed_numbers item_names outcomes tolerances
verification.check_operators: golden_file operators outcomes tolerances
verification.check_run: golden_file golden_run item_names outcomes speeds
verification.golden_file: fixed_numbers
verification.golden_run: fixed_numbers
verification.operators: fixed_numbers tolerances
verification.outcome_table: outcomes
verification.verification_file: golden_file outcome_table outcomes verifying
verification.verifying: check_model check_operators check_run golden_file item_names
    outcomes
"""
# Stems that two files have on purpose: the backends of every operator, and names that Python or
# GitHub look for.
WANTED_TWINS = {"reference", "native", "chunked", "README", "__init__", "__main__", "conftest"}
SUFFIXES = {".py", ".h", ".cuh", ".cu", ".cpp", ".md", ".sh", ".csv"}


def room_arrows(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Returns room -> other rooms of its layer that it imports, from module -> imported modules."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, targets in arrows.items():
        rooms[room_of(module)] |= {room_of(t) for t in targets if layer_of(t) == layer_of(module)}
    return {room: targets - {room} for room, targets in rooms.items()}


def rows(arrows: dict[str, set[str]]) -> str:
    """Returns the table as it is written above, without the rooms that import no other."""
    written = ""
    for room, targets in sorted(arrows.items()):
        if targets:
            row = " ".join([f"{room}:", *sorted(target.partition(".")[2] for target in targets)])
            written += (
                textwrap.fill(row, 90, subsequent_indent="    ", break_on_hyphens=False) + "\n"
            )
    return written


def repeated_stems(paths: Iterable[Path]) -> dict[str, list[str]]:
    """Returns stem -> paths, where files of several folders share it.

    Files of one folder that differ in their suffix are one idea in two languages.
    """
    found: dict[str, dict[Path, Path]] = defaultdict(dict)
    for path in paths:
        if path.suffix in SUFFIXES and path.stem not in WANTED_TWINS:
            found[path.stem][path.parent] = path
    return {
        stem: sorted(path.as_posix() for path in places.values())
        for stem, places in sorted(found.items())
        if len(places) > 1
    }


def test_rooms_import_one_another_along_the_listed_arrows_only():
    actual = rows(room_arrows(own_imports()))
    changes = difflib.unified_diff(
        ARROWS.splitlines(), actual.splitlines(), "listed", "actual", n=0
    )
    assert actual == ARROWS, "\n".join(changes)


def test_no_rooms_import_each_other_in_a_circle():
    assert circles(room_arrows(own_imports())) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(own_imports()) == []


def test_the_check_of_circles_finds_them():
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "f": {"g"}, "g": {"f"}}
    assert sorted(circles(arrows)) == [["a", "b", "c"], ["f", "g"]]


def test_the_arrows_of_rooms_leave_out_other_layers_and_the_room_itself():
    arrows = {"a.b.c": {"a.b.d", "a.e", "f.g"}, "a.b.d": {"a.h.i"}, "a.e": set()}
    found = room_arrows(arrows)
    assert found == {"a.b": {"a.e", "a.h"}, "a.e": set()}
    assert rows(found) == "a.b: e h\n"


def test_no_two_files_of_different_folders_have_one_stem():
    folders = [ROOT / name for name in ("src", "tests", "benchmarks", "cuda")]
    files = [path.relative_to(ROOT) for folder in folders for path in folder.rglob("*.*")]
    found = repeated_stems(files)
    assert not found, "\n".join(f"{stem}: {' '.join(paths)}" for stem, paths in found.items())


def test_the_check_of_stems_tells_a_repetition_from_a_pair_and_a_wanted_twin():
    names = ("a/x.h", "a/x.cpp", "b/y.py", "c/y.cuh", "b/native.py", "c/native.py")
    assert repeated_stems(map(Path, names)) == {"y": ["b/y.py", "c/y.cuh"]}


def test_nothing_imports_the_package_by_the_name_of_its_folder():
    # Put together here, so that this file does not hold it itself.
    searched = "from " + "src"
    done = subprocess.run(
        ["git", "grep", "-n", searched], cwd=ROOT, capture_output=True, text=True, check=False
    )
    # 1: nothing found; 128: no checkout, nothing to search.
    assert done.returncode in (1, 128), done.stdout
