from __future__ import annotations

from fake_atelier import ended
from fake_files import LORA, safetensors
from fake_shell import PNG, Shell

from atelier.v1 import converter_pb2, job_pb2


def test_a_single_file_and_its_preview_go_where_webui_looks(shell: Shell) -> None:
    written = safetensors(shell.folder / "sd" / "v1-5.safetensors", "model.diffusion_model.out.2.weight")
    (shell.folder / "sd" / "preview.png").write_bytes(PNG)
    shell.add("sd", "sd15:v1")
    assert shell(f"artifacts export sd15:v1 --webui {shell.folder}/webui") == 0
    folder = shell.folder / "webui" / "models" / "Stable-diffusion"
    assert {path.name for path in folder.iterdir()} == {"sd15-v1.safetensors", "sd15-v1.png"}
    assert (folder / "sd15-v1.safetensors").read_bytes() == written.read_bytes()
    assert not shell.fake.requests("Convert")


def test_a_lora_is_converted_first(shell: Shell) -> None:
    safetensors(shell.folder / "az" / "az.safetensors", LORA)
    source = shell.add("az", "az")
    safetensors(shell.folder / "converted" / "lora.safetensors", "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight")
    converted = shell.add("converted", "other")
    shell.fake.answers["WatchJob"] = [[ended(outputs=[job_pb2.JobOutput(role="lora", artifact=converted)])]]
    assert shell(f"artifacts export az --webui {shell.folder}/webui") == 0
    (request,) = shell.fake.requests("Convert")
    assert (request.source, request.to) == (source, converter_pb2.FORMAT_LORA_WEBUI)
    assert b"lora_unet_" in (shell.folder / "webui" / "models" / "Lora" / "az.safetensors").read_bytes()


def test_pictures_are_nothing_for_webui(shell: Shell) -> None:
    shell.pictures("octopus", 1)
    shell.add("octopus", "octopus")
    assert shell(f"artifacts export octopus --webui {shell.folder}/webui") == 1
    assert shell.err == "error: NAME: octopus is of kind DATASET; WebUI takes MODEL, SINGLE_FILE, LORA\n"
    assert not (shell.folder / "webui").exists()
