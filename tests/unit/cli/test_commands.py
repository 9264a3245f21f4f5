"""The other commands, as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_atelier import serving
from fake_files import LORA, model, safetensors
from fake_shell import Shell

from atelier.cli.command import hoisted
from atelier.cli.convert import lora_ratio
from atelier.errors import AtelierError, Status, unavailable
from atelier.v1 import compiler_pb2, converter_pb2, image_pb2, job_pb2, server_pb2


@pytest.fixture
def stocked(shell: Shell) -> Shell:
    model(shell.folder / "model")
    safetensors(shell.folder / "az" / "az.safetensors", LORA)
    safetensors(shell.folder / "sd" / "v1-5.safetensors", "model.diffusion_model.out.2.weight")
    (shell.folder / "legacy").mkdir()
    (shell.folder / "legacy" / "lora.bin").write_bytes(b"\x80\x02}q\x00.")
    for name, tag in {"model": "base", "az": "az", "sd": "sd"}.items():
        shell.add(name, tag)
    return shell


@pytest.mark.parametrize(
    ("source", "to", "wanted"),
    [
        ("base", "webui", converter_pb2.FORMAT_SINGLE_FILE),
        ("base", "single-file", converter_pb2.FORMAT_SINGLE_FILE),
        ("sd", "diffusers", converter_pb2.FORMAT_DIFFUSERS),
        ("az", "webui", converter_pb2.FORMAT_LORA_WEBUI),
        ("az", "diffusers", converter_pb2.FORMAT_LORA_DIFFUSERS),
        ("az", "peft", converter_pb2.FORMAT_LORA_PEFT),
        ("{}/legacy/lora.bin", "webui", converter_pb2.FORMAT_LORA_WEBUI),
    ],
)
def test_convert_tells_the_format_by_what_the_source_is(stocked: Shell, source: str, to: str, wanted: int) -> None:
    assert stocked(f"convert {source.format(stocked.folder)} --to {to}") == 0
    assert stocked.fake.requests("Convert")[0].to == wanted


def test_a_model_cannot_become_peft(stocked: Shell) -> None:
    assert stocked("convert base --to peft") == 1
    assert stocked.err == "error: --to: a MODEL cannot become peft; choose webui, diffusers, single-file\n"


@pytest.mark.parametrize(
    ("word", "parts"),
    [("az", ("az", 1.0)), ("az:0.8", ("az", 0.8)), ("az:latest", ("az:latest", 1.0)), ("az:latest:-1", ("az:latest", -1.0))],
)
def test_a_lora_has_its_ratio_behind_a_colon(word: str, parts: tuple[str, float]) -> None:
    assert lora_ratio(word) == parts


def test_a_ratio_that_is_no_number_is_refused(stocked: Shell) -> None:
    assert stocked("merge base az:nan") == 1
    assert "finite" in stocked.err


def test_merge_takes_several_loras_and_files(stocked: Shell) -> None:
    assert stocked(f"merge sd az:0.5 {stocked.folder}/az/az.safetensors:0.25 --precision fp16") == 0
    request = stocked.fake.requests("Merge")[0]
    assert [lora.ratio for lora in request.loras] == [0.5, 0.25]
    assert request.loras[0].lora == request.loras[1].lora
    assert request.precision == converter_pb2.SAVE_PRECISION_FP16 and request.file_name == ""


def test_compile_asks_for_what_was_asked(stocked: Shell) -> None:
    line = "compile base --backend inductor --precision bf16 --output torchscript --width 128 --height 64 --batch-sizes 2,4 --validate-only"
    assert stocked(line) == 0
    request = stocked.fake.requests("Compile")[0]
    assert (request.backend, request.precision) == (compiler_pb2.BACKEND_INDUCTOR, compiler_pb2.ENGINE_PRECISION_BF16)
    assert request.output == compiler_pb2.COMPILE_OUTPUT_TORCHSCRIPT and request.validate_only
    assert (request.profile.width, request.profile.height, list(request.profile.batch_sizes)) == (128, 64, [2, 4])


def test_batch_sizes_that_are_no_numbers_are_refused(stocked: Shell) -> None:
    assert stocked("compile base --batch-sizes a,b") == 1
    assert "--batch-sizes" in stocked.err


def test_deploy_waits_until_it_answers(stocked: Shell) -> None:
    assert stocked("deploy base --name fox") == 0
    request = stocked.fake.requests("CreateDeployment")[0]
    assert request.deployment_id == "fox" and request.deployment.compile
    assert not request.deployment.HasField("serve_eager"), "the pool says"
    assert stocked.out == "deployments/fox  ready\n"


def test_deploy_again_changes_the_model_without_a_restart(stocked: Shell) -> None:
    stocked.fake.answers["CreateDeployment"] = [AtelierError(Status.ALREADY_EXISTS, "DEPLOYMENT_EXISTS", "there is one")]
    assert stocked("deploy base --name fox --no-wait") == 0
    request = stocked.fake.requests("UpdateDeployment")[0]
    assert request.deployment.name == "deployments/fox" and "model" in request.update_mask.paths


def test_a_deployment_does_not_move_to_another_pool(stocked: Shell) -> None:
    stocked.fake.answers["CreateDeployment"] = [AtelierError(Status.ALREADY_EXISTS, "DEPLOYMENT_EXISTS", "there is one")]
    stocked.fake.answers["GetDeployment"] = [server_pb2.Deployment(name="deployments/fox", pool="pools/local")]
    assert stocked("deploy base --name fox --pool pools/other --no-wait") == 1
    assert "fox is on pools/local and cannot move" in stocked.err and not stocked.fake.requests("UpdateDeployment")


def test_deployments_and_pools_are_tables(stocked: Shell) -> None:
    stocked("deploy base --name fox")
    fingerprint = server_pb2.Fingerprint(product="cpu-x86-64-v4", backends={"openvino": "2026.4"})
    pools = server_pb2.ListPoolsResponse(pools=[server_pb2.Pool(name="pools/local", gpu="cpu", replicas=1, fingerprints=[fingerprint])])
    stocked.fake.answers["ListPools"] = [pools]
    assert stocked("deployments") == 0 and stocked.out.splitlines()[1].startswith("fox ")
    assert stocked("pools") == 0 and "openvino 2026.4" in stocked.out
    assert stocked("pools --json") == 0 and json.loads(stocked.out)["pools"][0]["gpu"] == "cpu"


def test_generate_writes_the_picture(shell: Shell) -> None:
    target = shell.folder / "fox.png"
    line = [
        "generate",
        "a fox",
        "-o",
        str(target),
        "--deployment",
        "fox",
        "--steps",
        "5",
        "--sampler",
        "dpmpp-2m",
        "--seed",
        "3",
        "--preview",
    ]
    assert shell(line) == 0
    request = shell.fake.requests("Generate")[0]
    assert request == image_pb2.GenerateRequest(
        deployment="deployments/fox", prompt="a fox", steps=5, sampler=image_pb2.SAMPLER_DPMPP_2M, seed=3, count=1, preview_steps=3
    )
    assert target.read_bytes() == b"png0"
    assert [path.name for path in shell.folder.glob("*.png")] == ["fox.png"]
    assert "seed 3" in shell.out


def test_several_pictures_are_numbered(shell: Shell) -> None:
    assert shell(["generate", "a fox", "-o", str(shell.folder / "fox.png"), "--count", "2", "--guidance_scale", "0", "--json"]) == 0
    assert sorted(path.name for path in shell.folder.glob("*.png")) == ["fox-0.png", "fox-1.png"]
    assert [json.loads(line)["index"] for line in shell.out.splitlines()] == [0, 1]
    assert shell.fake.requests("Generate")[0].HasField("guidance_scale")


def test_jobs_are_a_table(shell: Shell) -> None:
    running = job_pb2.Job(
        name="jobs/j1", state=job_pb2.JOB_STATE_RUNNING, progress=job_pb2.JobProgress(phase="training", step=3, total_steps=9)
    )
    shell.fake.answers["ListJobs"] = [job_pb2.ListJobsResponse(jobs=[running])]
    assert shell("jobs list --state running") == 0
    assert "jobs/j1" in shell.out and "training 3/9" in shell.out
    assert shell.fake.requests("ListJobs")[0].state == job_pb2.JOB_STATE_RUNNING


def test_a_table_in_a_pipe_has_a_line_a_row(shell: Shell) -> None:
    shell.width = 40
    job = job_pb2.Job(
        name="jobs/8c2c107691a3", state=job_pb2.JOB_STATE_RUNNING, progress=job_pb2.JobProgress(phase="making class pictures")
    )
    shell.fake.answers["ListJobs"] = [job_pb2.ListJobsResponse(jobs=[job])]
    assert shell("jobs list") == 0
    assert shell.out.count("\n") == 2 and "making class pictures" in shell.out


def test_long_flags_are_whole_in_the_help_of_a_narrow_terminal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert shell("train dreambooth-lora --help") == 0
    shown = capsys.readouterr().out
    assert "--pretrained_model_nam" in shown and "e_or_path" in shown and "--pretrained_model_na…" not in shown


def test_a_job_that_waits_says_for_what(shell: Shell) -> None:
    job = job_pb2.Job(name="jobs/j1", state=job_pb2.JOB_STATE_PENDING, waits_for="0/3 nodes are available")
    shell.fake.answers["ListJobs"] = [job_pb2.ListJobsResponse(jobs=[job])]
    shell.fake.answers["GetJob"] = [job]
    for line in ("jobs list", "jobs get j1"):
        assert shell(line) == 0 and "waits: 0/3 nodes are available" in shell.out


def test_jobs_are_cancelled_and_deleted_by_id(shell: Shell) -> None:
    assert shell("jobs cancel j1") == 0 and shell.out == "jobs/j1 is cancelled\n"
    assert shell("jobs delete jobs/j1") == 0
    assert shell.fake.requests("DeleteJob")[0].name == "jobs/j1"


def test_artifacts_are_listed_tagged_downloaded_and_deleted(stocked: Shell) -> None:
    assert stocked("artifacts list --kind lora") == 0 and "az:latest" in stocked.out and "base" not in stocked.out
    assert stocked("artifacts tag mine az") == 0 and "mine:latest" in stocked.out
    assert stocked(f"artifacts download mine {stocked.folder}/back") == 0 and (stocked.folder / "back" / "az.safetensors").exists()
    assert stocked("artifacts get mine --json") == 0
    name = json.loads(stocked.out)["name"]
    assert stocked(f"artifacts delete {name[10:20]}") == 0 and "is deleted" in stocked.out
    assert stocked("artifacts get mine") == 1 and stocked.err.startswith("error: there is no artifact 'mine'")


def test_import_takes_what_is_here(stocked: Shell) -> None:
    assert stocked(f"artifacts import {stocked.folder}/az --tag other") == 0
    assert "LORA" in stocked.out and "other:latest" in stocked.out


def test_up_says_where_it_answers(shell: Shell) -> None:
    assert shell(f"up --data {shell.folder}/mine --listen 127.0.0.1:0") == 0
    assert shell.installation.calls == [("up", (shell.folder / "mine", "127.0.0.1:0", False))]
    assert f"atelier answers at {shell.installation.target}" in shell.out


def test_up_takes_a_word_for_ports_without_tls(shell: Shell) -> None:
    assert shell("up --insecure") == 0
    assert shell.installation.calls[0][1][1:] == ("", True)


def test_serve_runs_one_service(shell: Shell) -> None:
    assert shell("serve trainer") == 0
    assert shell.installation.calls == [("serve", "trainer")]
    assert shell("serve everything") == 2


def test_without_a_server_the_services_run_inside(shell: Shell) -> None:
    shell.installation.up_runs = False
    assert shell("jobs list") == 0
    assert shell(["generate", "a fox", "-o", str(shell.folder / "fox.png")]) == 0
    assert shell.installation.calls == [("inside", False), ("left", False), ("inside", True), ("left", True)]


def test_a_named_server_comes_first_and_gets_the_token_of_the_file(shell: Shell) -> None:
    (shell.folder / "token").write_text("secret\n")
    with serving(shell.fake, token="secret") as target:
        assert shell(f"jobs list --server {target} --token_file {shell.folder}/token") == 0
        assert shell(f"jobs list --server {target}") == 1
    assert shell.err == f"error: {target} asks for its token; give it with --token-file or ATELIER_TOKEN_FILE\n"


def test_a_token_file_that_is_not_there_is_named(shell: Shell) -> None:
    assert shell("jobs list --token-file nowhere") == 1
    assert "cannot read nowhere" in shell.err


def test_global_flags_may_stand_anywhere() -> None:
    line = ["jobs", "--json", "list", "--data=x", "--server", "a:1", "--", "--json"]
    assert hoisted(line) == ["--json", "--data=x", "--server", "a:1", "jobs", "list", "--", "--json"]


def test_errors_of_the_server_are_one_line_and_exit_code_1(shell: Shell) -> None:
    shell.fake.answers["DeleteJob"] = [unavailable("RESTARTING", "the server restarts; try again")]
    assert shell("jobs delete j1") == 1
    assert shell.err == "error: the server restarts; try again\n"


@pytest.mark.parametrize("line", ["jobs lst", "nothing", "jobs cancel", "convert base", "generate a --seed x", "deploy base", "jobs"])
def test_lines_that_make_no_sense_end_with_exit_code_2(shell: Shell, line: str) -> None:
    assert shell(line) == 2
    assert shell.err.count("\n") <= 1


def test_paths_with_a_colon_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:1").write_text("")
    assert lora_ratio("a:1") == ("a:1", 1.0)


def test_migrate_says_what_the_ledger_has(shell: Shell) -> None:
    assert shell("migrate") == 0
    assert shell.installation.calls == [("migrate", "")] and "0002" in shell.out
