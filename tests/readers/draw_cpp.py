"""Draws pictures with stable-diffusion.cpp, a reader in C++: SINGLE_FILE LORA_FOLDER OUT_FOLDER PROMPT..."""

from __future__ import annotations

import sys
from pathlib import Path

from stable_diffusion_cpp import StableDiffusion

model, loras, out = (Path(word) for word in sys.argv[1:4])
reader = StableDiffusion(model_path=str(model), lora_model_dir=str(loras), n_threads=2, verbose=True)
for index, prompt in enumerate(sys.argv[4:]):
    (picture,) = reader.generate_image(prompt, width=128, height=128, sample_steps=2, cfg_scale=1.0, seed=0)
    picture.save(out / f"{index}.png")
