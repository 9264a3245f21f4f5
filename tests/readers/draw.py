"""Draws one picture with whatever transformers and diffusers this Python has: MODEL_FOLDER OUT.npy [LORA_FILE | SINGLE_FILE]."""

from __future__ import annotations

import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
extra = Path(sys.argv[3]) if len(sys.argv) > 3 else None
if extra is not None and extra.name.startswith("single"):
    pipeline = diffusers.StableDiffusionPipeline.from_single_file(extra, config=str(folder), safety_checker=None, local_files_only=True)
else:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    if extra is not None:
        pipeline.load_lora_weights(extra.parent, weight_name=extra.name)
pipeline = pipeline.to(torch.float32)
pipeline.set_progress_bar_config(disable=True)
image = pipeline(
    "a noto emoji of a fox", num_inference_steps=3, width=64, height=64, generator=torch.Generator().manual_seed(0), output_type="np"
).images[0]
np.save(out, image)
print(transformers.__version__, diffusers.__version__)
