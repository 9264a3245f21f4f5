"""Staying with a job: what is shown, what is fetched, and how it ends."""

from __future__ import annotations

import json

import pytest
from fake_atelier import ended, event, progress
from fake_files import LORA, model, safetensors
from fake_shell import Shell

from atelier.errors import failed_precondition
from atelier.rpc.status import to_proto
from atelier.v1 import job_pb2

WARNING = job_pb2.LogLine(level=job_pb2.LogLine.LEVEL_WARNING, message="fp16 becomes bf16")


def test_progress_is_a_line_a_phase_and_a_line_a_tenth(shell: Shell) -> None:
    steps = [progress(i, i, 100, loss=0.25, learning_rate=1e-3, eta_seconds=100 - i, steps_per_second=2.0) for i in range(1, 101)]
    shell.fake.answers["WatchJob"] = [[progress(1, 1, 2, phase="latents"), *steps, ended()]]
    assert shell("jobs watch j1") == 0
    lines = shell.err.splitlines()
    assert lines[0] == "latents 1/2"
    assert lines[1] == "training 1/100  loss 0.2500  lr 0.001  2.00 steps/s  1:39 left"
    assert len(lines) == 1 + 11 and lines[-1].startswith("training 100/100") and "left" not in lines[-1]


def test_a_terminal_gets_bars(shell: Shell) -> None:
    shell.terminal = True
    shell.fake.answers["WatchJob"] = [[progress(1, 50, loss=0.25), event(2, log=WARNING), ended()]]
    assert shell("jobs watch j1") == 0
    assert "50/100" in shell.err and "━" in shell.err and "warning: fp16 becomes bf16" in shell.err


def test_warnings_checkpoints_and_lost_workers_are_lines(shell: Shell) -> None:
    lost = job_pb2.AttemptChange(attempt=1, reason="the worker was ended by signal 9")
    began = job_pb2.AttemptChange(attempt=2, reason="started")
    events = [
        event(1, log=WARNING),
        event(2, checkpoint=job_pb2.CheckpointWritten(step=5)),
        event(3, attempt=lost),
        event(4, attempt=began),
    ]
    shell.fake.answers["WatchJob"] = [[*events, ended()]]
    shell("jobs watch j1")
    assert shell.err.splitlines() == [
        "warning: fp16 becomes bf16",
        "checkpoint at step 5",
        "attempt 1: the worker was ended by signal 9",
    ]


def test_json_is_a_line_an_event_and_the_job_at_the_end(shell: Shell) -> None:
    sample = job_pb2.SamplePicture(step=1, png=b"picture")
    shell.fake.answers["WatchJob"] = [[progress(1, 5), event(2, sample=sample), ended(outputs=[])]]
    assert shell(f"jobs watch j1 --json --output_dir {shell.folder}/out") == 0
    lines = [json.loads(line) for line in shell.out.splitlines()]
    assert lines[0]["event"]["progress"] == {"phase": "training", "step": "5", "total_steps": "100"}
    assert "png" not in lines[1]["event"]["sample"]
    assert lines[2]["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert (shell.folder / "out" / "samples" / "000001-0.png").read_bytes() == b"picture"


def test_a_failed_job_is_one_line_and_exit_code_1(shell: Shell) -> None:
    error = to_proto(failed_precondition("PARITY", "the engine does not agree\nwith eager"))
    shell.fake.answers["WatchJob"] = [[ended(job_pb2.JOB_STATE_FAILED, error=error)]]
    assert shell("jobs watch j1") == 1
    assert shell.err == "error: the engine does not agree with eager\n"


def test_the_error_is_json_too(shell: Shell) -> None:
    error = to_proto(failed_precondition("PARITY", "the engine does not agree"))
    shell.fake.answers["WatchJob"] = [[ended(job_pb2.JOB_STATE_FAILED, error=error)]]
    assert shell("--json jobs watch j1") == 1
    assert json.loads(shell.err)["error"]["reason"] == "PARITY"


def test_the_result_of_a_merge_is_written_as_the_file_that_was_named(shell: Shell) -> None:
    safetensors(shell.folder / "lora" / "lora-model.safetensors", LORA)
    output = job_pb2.JobOutput(role="single_file", artifact=shell.add("lora", "merged"))
    shell.add("lora", "base")
    shell.fake.answers["WatchJob"] = [[ended(outputs=[output])]]
    target = shell.folder / "out" / "mine.safetensors"
    assert shell(f"merge base merged:0.5 -o {target}") == 0
    assert target.is_file() and [path.name for path in target.parent.iterdir()] == ["mine.safetensors"]
    assert shell.fake.requests("Merge")[0].file_name == "mine"
    assert shell(f"merge base merged:0.5 -o {shell.folder}/folder") == 0
    assert (shell.folder / "folder" / "lora-model.safetensors").is_file()


@pytest.mark.parametrize(("server", "output", "said"), [(False, "engine", True), (False, "torchscript", False), (True, "engine", False)])
def test_an_engine_built_without_a_server_says_that_it_is_for_local_use(shell: Shell, server: bool, output: str, said: bool) -> None:
    shell.installation.up_runs = server
    made = job_pb2.JobOutput(role="engine", artifact=stored(shell))
    shell.fake.answers["WatchJob"] = [[ended(outputs=[made])]]
    assert shell(f"compile base --output {output} -o {shell.folder}/engine") == 0
    assert (f"for local use: it is signed with the key of {shell.folder}/data," in shell.err) is said


def test_ctrl_c_with_a_server_detaches_and_says_how_to_come_back(shell: Shell) -> None:
    shell.interrupt_at = 1
    shell.fake.answers["WatchJob"] = [[progress(1, 5), progress(2, 6), ended()]]
    assert shell(f"jobs watch j1 --output_dir {shell.folder}/out") == 130
    assert f"jobs/j1 goes on without you. Come back with: atelier jobs watch jobs/j1 --output_dir {shell.folder}/out" in shell.err
    assert "Cancel it with: atelier jobs cancel jobs/j1" in shell.err
    assert shell.fake.requests("CancelJob") == []


def test_a_command_that_is_suggested_has_the_flags_it_needs(shell: Shell) -> None:
    shell.interrupt_at = 1
    shell.fake.answers["WatchJob"] = [[progress(1, 5), progress(2, 6), ended()]]
    out = shell.folder / "my out"
    assert shell(["jobs", "watch", "j1", "--data", "my data", "--output_dir", str(out), "--logging_dir", "events"]) == 130
    assert f"atelier --data 'my data' jobs watch jobs/j1 --output_dir '{out}' --logging_dir events" in shell.err
    assert "atelier --data 'my data' jobs cancel jobs/j1" in shell.err


def test_ctrl_c_without_a_server_stops_at_a_checkpoint_and_says_how_to_go_on(shell: Shell) -> None:
    shell.installation.up_runs = False
    shell.interrupt_at = 1
    shell.fake.answers["WatchJob"] = [[progress(1, 5), progress(2, 6), ended()]]
    assert shell(f"jobs watch j1 --output_dir {shell.folder}/out") == 130
    assert "stops at a checkpoint" in shell.err
    assert f"It goes on with: atelier jobs watch jobs/j1 --output_dir {shell.folder}/out" in shell.err
    assert shell.installation.calls == [("inside", False), ("left", False)]


def test_the_folder_of_a_run_is_enough_to_come_back(shell: Shell) -> None:
    out = shell.folder / "out"
    out.mkdir()
    (out / "atelier.json").write_text(json.dumps({"job": "jobs/j7", "class_data_dir": str(shell.folder / "class")}))
    assert shell(f"jobs watch --output_dir {out}") == 0
    assert shell.fake.requests("WatchJob")[0].name == "jobs/j7"


@pytest.mark.parametrize("content", ["", "[]", '{"job": 1'])
def test_a_folder_whose_note_is_another_programs_is_named(shell: Shell, content: str) -> None:
    (shell.folder / "atelier.json").write_text(content)
    assert shell(f"jobs watch --output_dir {shell.folder}") == 1
    assert f"{shell.folder}/atelier.json names no job" in shell.err


def test_a_folder_of_files_is_not_put_into_one(shell: Shell) -> None:
    """The first of a pipeline's files is its text encoder."""
    made = job_pb2.JobOutput(role="model", artifact=stored(shell))
    shell.fake.answers["WatchJob"] = [[ended(outputs=[made])]]
    assert shell(f"convert base --to diffusers -o {shell.folder}/x/one.safetensors") == 1
    assert "name a folder" in shell.err and made.artifact in shell.err
    assert not (shell.folder / "x").exists()


def stored(shell: Shell) -> str:
    model(shell.folder / "model")
    return shell.add("model", "base")


def test_watch_needs_a_job_or_a_folder(shell: Shell) -> None:
    assert shell("jobs watch") == 2
    assert "name the job" in shell.err
