"""The demo's steps, in order; each is timed, and says what it does."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from rich.console import Console

from atelier.artifacts.manifest import Kind
from atelier.cli.lineage import draw, lineage_of
from atelier.cli.progress import JobDisplay, view
from atelier.client import Client
from atelier.client.job_service import check, outputs
from atelier.demo import drawings, likeness, report
from atelier.demo.drawings import OTHERS, SUBJECT, UNSEEN, picture, prompt_of
from atelier.v1 import compiler_pb2, converter_pb2, image_pb2, job_pb2, server_pb2, trainer_pb2

IDENTIFIER = "sks"
KEPT = (("fox", "blue"), ("rocket", "pink"), ("ghost", "purple"))
"""What is asked for without the identifier, to see that the class is kept."""
SEEDS = (1, 2)
STEPS, GUIDANCE = 20, 4.0


@dataclass(kw_only=True)
class Walk:
    """One walk through; `folder` gets what it leaves."""

    client: Client
    folder: Path
    console: Console
    findings: report.Findings
    pictures: dict[str, list[Image.Image]] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step."""
        self.console.print(name, style="bold", markup=False)
        begin = time.monotonic()
        yield
        self.findings.times.append((name, time.monotonic() - begin))

    def run(self) -> None:
        """All steps."""
        with self.step("bring six pictures in"):
            drawings.write_training_pictures(self.folder / "pictures", identifier=IDENTIFIER)
            pictures = self.client.artifacts.upload(self.folder / "pictures", kind=Kind.DATASET, tags=[SUBJECT]).name
        with self.step("compile the graph (once for every fine-tune)"):
            self.job(
                self.client.compile(compiler_pb2.CompileRequest(model="base", profile=compiler_pb2.ShapeProfile(batch_sizes=[2, 4, 8])))
            )
        with self.step("deploy the model on board, and ask it for the subject"):
            self.deploy("before", "base")
            self.generate("before")
            self.client.deployments.delete("before")
        with self.step("train DreamBooth-LoRA"):
            trained = outputs(self.job(self.client.train(self.training(pictures))))
        with self.step("convert the LoRA to WebUI's form"):
            request = converter_pb2.ConvertRequest(source=trained["lora"], to=converter_pb2.FORMAT_LORA_WEBUI, tags=["az-octopus-webui"])
            converted = self.job(self.client.convert(request)).outputs[0].artifact
            self.client.artifacts.download(converted, self.folder / "webui")
        with self.step("merge it into the model"):
            loras = [converter_pb2.LoraRatio(lora=converted, ratio=1.0)]
            merged = self.job(self.client.merge(converter_pb2.MergeRequest(base="base", loras=loras, tags=["az-octopus"])))
        with self.step("deploy the merged model on the engine, and ask again"):
            self.deploy("az-octopus", merged.outputs[0].artifact)
            self.generate("after")
        with self.step("measure, and write it down"):
            self.measure()
            self.write(losses_csv=self.client.artifacts.read(trained["run"], "losses.csv").decode())

    def training(self, pictures: str) -> trainer_pb2.TrainRequest:
        """Better settings than the scripts' defaults for a small model: see docs/training.md."""
        return trainer_pb2.TrainRequest(
            method=trainer_pb2.METHOD_DREAMBOOTH_LORA,
            pretrained_model_name_or_path="base",
            instance_data_dir=pictures,
            instance_prompt=f"a {IDENTIFIER} emoji",
            class_prompt="a noto emoji",
            with_prior_preservation=True,
            num_class_images=24,
            sample_batch_size=8,
            class_guidance_scale=2.0,
            class_inference_steps=20,
            resolution=drawings.SIDE,
            train_batch_size=4,
            max_train_steps=300,
            checkpointing_steps=150,
            learning_rate=1e-3,
            lr_scheduler="cosine",
            lr_warmup_steps=0,
            rank=16,
            lora_layers="all",
            snr_gamma=5.0,
            seed=0,
            mixed_precision="no",  # at this size bf16 gains nothing without a compiled forward and backward
            tags=["az-octopus-lora"],
        )

    def job(self, job: job_pb2.Job) -> job_pb2.Job:
        """Stays with a job to its end. Raises why it failed."""
        with view(self.console) as shown:
            display = JobDisplay(shown, samples=None)
            for response in self.client.jobs.watch(job.name):
                job = response.job if response.HasField("job") else job
                if response.HasField("event"):
                    display.event(response.event)
        check(job)
        return job

    def deploy(self, name: str, model: str) -> None:
        """Puts a model into service, and waits until it answers."""
        self.client.deployments.create(name, server_pb2.Deployment(model=model, serve_eager=False, compile=False))
        for deployment in self.client.deployments.wait(name):
            self.console.print(f"  {name}: {deployment.message or 'ready'}", style="dim", markup=False)

    def generate(self, when: str) -> None:
        """The subject on backgrounds that it was not trained on, and prompts without it; many at once, as an endpoint has it."""
        deployment = "before" if when == "before" else "az-octopus"
        asked = [(prompt_of(IDENTIFIER, colour), seed) for seed in SEEDS for colour in UNSEEN]
        asked += [(kept_prompt(name, colour), SEEDS[0]) for name, colour in KEPT]
        (self.folder / when).mkdir(exist_ok=True)

        def make(index: int, prompt: str, seed: int) -> Image.Image:
            request = image_pb2.GenerateRequest(
                deployment=f"deployments/{deployment}", prompt=prompt, seed=seed, steps=STEPS, guidance_scale=GUIDANCE,
                sampler=image_pb2.SAMPLER_EULER_A,
            )  # fmt: skip
            *_, made = self.client.generate(request)
            assert isinstance(made, image_pb2.GeneratedImage)
            (self.folder / when / f"{index:02d}-{prompt.replace(' ', '-')}-{seed}.png").write_bytes(made.png)
            self.findings.facts[f"pictures {when} were computed by"] = made.engine
            return Image.open(io.BytesIO(made.png)).convert("RGB")

        with ThreadPoolExecutor(max_workers=4) as pool:
            self.pictures[when] = list(pool.map(make, range(len(asked)), *zip(*asked, strict=True)))

    def measure(self) -> None:
        """Likeness of the subject's pictures to it and to other objects, and what became of the other prompts."""
        count = len(SEEDS) * len(UNSEEN)
        references = {name: [picture(name, colour) for colour in UNSEEN] for name in (SUBJECT, *OTHERS)}
        before, after = (likeness.ranking(self.pictures[when][:count], references) for when in ("before", "after"))
        self.findings.likeness = {name: (before[name], after[name]) for name in after}
        kept = []
        for (name, colour), *pair in zip(KEPT, self.pictures["before"][count:], self.pictures["after"][count:], strict=True):
            own = [likeness.mean_likeness([made], references[name]) for made in pair]
            kept.append((kept_prompt(name, colour), own[0], own[1], likeness.likeness(*pair)))
        self.findings.kept = kept

    def write(self, *, losses_csv: str) -> None:
        """Leaves pictures, figures and page."""
        trained = [Image.open(path) for path in sorted((self.folder / "pictures").glob("*.png"))]
        rows = [report.Row(title=f"The six training pictures ({SUBJECT}, which the model has never seen)", pictures=trained)]
        labels = [f"{colour}, seed {seed}" for seed in SEEDS for colour in UNSEEN]
        for when, title in (("before", "Before"), ("after", "After")):
            title += f': "{prompt_of(IDENTIFIER, "...")}"'
            rows.append(report.Row(title=title, pictures=self.pictures[when][: len(labels)], labels=labels))
        pairs = list(zip(*(self.pictures[when][len(labels) :] for when in ("before", "after")), strict=True))
        title = f'Without the identifier, before and after: "{kept_prompt("...", "...")}"'
        labels = [f"{name}, {when}" for name, _ in KEPT for when in ("before", "after")]
        rows.append(report.Row(title=title, pictures=[picture for pair in pairs for picture in pair], labels=labels))
        report.sheet(rows).save(self.folder / "before-after.png")
        capture = Console(file=io.StringIO(), width=140, emoji=False)
        capture.print(draw(lineage_of(self.client, "az-octopus")))
        self.findings.lineage = capture.file.getvalue()  # type: ignore[attr-defined]
        report.write(self.findings, self.folder, losses_csv=losses_csv)


def kept_prompt(name: str, colour: str) -> str:
    """A prompt without the identifier."""
    return f"a noto emoji of a {name} on a {colour} background"


def summary(findings: report.Findings) -> Sequence[str]:
    """What the demo says at its end."""
    before, after = findings.likeness[SUBJECT]
    others = {name: pair[1] - pair[0] for name, pair in findings.likeness.items() if name != SUBJECT}
    most = max(others, key=lambda name: others[name])
    return (
        f"likeness to held-out drawings of the {SUBJECT}: {before:.2f} before, {after:.2f} after ({after - before:+.2f};"
        f" the most to another object: {most} {others[most]:+.2f})",
        *(f'"{prompt}": likeness to its own object {b:.2f} before, {a:.2f} after' for prompt, b, a, _ in findings.kept),
        f"{sum(seconds for _, seconds in findings.times):.0f} s in all",
    )
