"""A stranger's whole path with nothing but a hub: the repositories of the paper preset as they are
published (tests/helpers/published.py says what is known of them), from an empty home folder to both
stages. Nothing leaves this machine."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import ASTFeatureExtractor, AutoConfig, VivitImageProcessor

from benchmarks.full_size import caption_row, question_row
from tests.helpers.bad_media import tone, write_video
from tests.helpers.hub import serving
from tests.helpers.limit import LIMIT
from tests.helpers.published import AST, CONFIGS, PREPROCESSORS, QWEN, VIVIT, repositories, text
from utils.data.extraction import SAMPLE_RATE
from utils.data.media import audio_input, video_input
from utils.data.models import load_encoder

ROOT = Path(__file__).resolve().parents[1]
CLIPS = {"train": ("a", "b"), "val": ("c",), "test": ("d",)}
FEW = ("--steps", 2, "--batch", 2, "--workers", 0, "--encode_batch", 1, "--figures", "none")


def published(repo_id, folder):
    """A folder with the configuration files of a repository, without weights."""
    (folder / "config.json").write_bytes(text(CONFIGS[repo_id]))
    (folder / "preprocessor_config.json").write_bytes(text(PREPROCESSORS[repo_id]))
    return folder


def test_video_is_prepared_as_published(tmp_path):
    """Protects: what ViViT reads. Values are what rescaling, offset, mean and deviation of the
    repository's file make of them. The published crop is left out on purpose: frames are extracted
    at the size that it would leave, and are read whole."""
    folder = published(VIVIT, tmp_path)
    config, loaded = AutoConfig.from_pretrained(folder), VivitImageProcessor.from_pretrained(folder)
    assert config.model_type == "vivit" and config.num_frames == 32
    for name, value in PREPROCESSORS[VIVIT].items():
        if name not in ("image_processor_type", "crop_size", "size"):
            assert getattr(loaded, name) == value, name
    crop, size = loaded.crop_size, loaded.size
    assert (crop["height"], crop["width"], size["shortest_edge"]) == (224, 224, 256)
    rows = np.zeros((224, 224, 3), np.uint8)
    rows[:14] = 255  # which the published crop of 224 out of 256 rows would leave out
    for i in range(32):
        Image.fromarray(rows).save(tmp_path / f"frame_{i + 1:04}.png")
    pixels, _ = video_input(loaded, config, tmp_path)
    assert pixels.shape == (1, 32, 3, 224, 224) and pixels.dtype == torch.float32
    for part, value in ((pixels[..., :14, :], 255), (pixels[..., 14:, :], 0)):
        wanted = ((value / 127.5 - 1) - 0.5) / 0.5
        assert part.unique().tolist() == pytest.approx([wanted], abs=1e-5)


def test_sound_is_prepared_as_published(tmp_path):
    """Protects: what AST reads: 1,024 frames of 128 mel bands at 16 kHz, less the published mean,
    over twice the published deviation (github.com/YuanGongND/ast, src/dataloader.py)."""
    folder = published(AST, tmp_path)
    config, loaded = AutoConfig.from_pretrained(folder), ASTFeatureExtractor.from_pretrained(folder)
    for name, value in PREPROCESSORS[AST].items():
        if name != "feature_extractor_type":
            assert getattr(loaded, name) == value, name
    assert loaded.sampling_rate == SAMPLE_RATE
    sound = np.random.default_rng(0).normal(scale=0.1, size=10 * SAMPLE_RATE)
    wav = tmp_path / "a.wav"
    soundfile.write(wav, sound, SAMPLE_RATE)
    found, windows = audio_input(loaded, config, wav)
    assert found.shape == (1, 1024, 128) and found.dtype == torch.float32
    loaded.do_normalize = False
    plain, _ = audio_input(loaded, config, wav)
    real = int(windows.frames[0])
    wanted = (plain[0, :real] + 4.2677393) / (2 * 4.5689974)
    torch.testing.assert_close(found[0, :real], wanted)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A stranger's folder, with videos and annotations and nothing else, and a hub at a mirror's
    address that drops the line once; the models are fetched from it."""
    folder = tmp_path_factory.mktemp("home")
    write_data(folder)
    repos = repositories(tmp_path_factory.mktemp("hub"))
    with fetching(folder, repos, "model.safetensors") as home:
        yield home


@contextmanager
def fetching(folder, repos, cut):
    """A stranger's empty folder in which the models were fetched, while the line dropped once in
    the file `cut`."""
    with serving(repos) as hub:
        hub.cuts = {cut: 25 << 20}
        env = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "PATH": os.environ["PATH"]}
        env |= {"HF_ENDPOINT": hub.address, "OMP_NUM_THREADS": "1"}
        home = SimpleNamespace(folder=folder, env=env, hub=hub)
        home.fetched = call(home, "utils/hf-download.py").stdout
        yield home


def write_data(folder):
    """Four videos of 3 s with sound, and a caption and a question about each."""
    (folder / "videos").mkdir()
    (folder / "data" / "annotations").mkdir(parents=True)
    for split, names in CLIPS.items():
        for name in names:
            write_video(folder / "videos" / f"{name}.mp4", range(0, 36, 3), tone(3, 16000))
        for file, row in (("desc_", caption_row), ("avqa-", question_row)):
            rows = [row(name, i) for i, name in enumerate(names)]
            place = folder / "data" / "annotations" / f"{file}{split}.json"
            place.write_text(json.dumps(rows))


def call(home, script, *flags):
    """Run a script in the stranger's folder to its end."""
    words = [sys.executable, str(ROOT / script), *map(str, flags)]
    options = {"cwd": home.folder, "env": home.env, "capture_output": True, "text": True}
    done = subprocess.run(words, **options, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_models_are_fetched_whole(home):
    """Protects: every model as safetensors under its published keys, ViViT's from a pickle; the
    dropped line was taken up where it broke; nothing was fetched that is not read."""
    begun = [begin for name, begin in home.hub.asked if name == "model.safetensors"]
    assert len(begun) == 3 and sorted(begun)[:2] == [0, 0] and 0 < max(begun) <= 25 << 20
    assert not {"README.md", ".gitattributes", "LICENSE"} & {name for name, _ in home.hub.asked}
    keys = {
        VIVIT: "vivit.encoder.layer.0.attention.attention.query.weight",
        AST: "audio_spectrogram_transformer.embeddings.distillation_token",
        QWEN: "model.embed_tokens.weight",
    }
    for repo_id, key in keys.items():
        folder = home.folder / "models" / Path(repo_id).name
        commit, files = home.hub.repos[repo_id]["main"]
        assert f"{repo_id}: fetched at commit {commit}" in home.fetched
        assert json.loads((folder / "revision.json").read_text())["commit"] == commit
        assert not list(folder.glob("*.bin")) and (folder / "config.json").is_file()
        weights = load_file(folder / "model.safetensors")
        assert key in weights and "lm_head.weight" not in weights
    assert sum(name == "pytorch_model.bin" for name, _ in home.hub.asked) == 1


@pytest.mark.slow
def test_pickles_alone_give_the_same_models(home, tmp_path):
    """Protects: a hub without any safetensors, one model in parts, and a dropped line end in the
    weights that the other hub gave, bit by bit, and in no pickle."""
    repos, cut = repositories(tmp_path, pickled=True), "pytorch_model-00001-of-00002.bin"
    (tmp_path / "home").mkdir()
    with fetching(tmp_path / "home", repos, cut) as other:
        assert max(begin for name, begin in other.hub.asked if name == cut) > 0
    for repo_id in repos:
        model = Path("models", Path(repo_id).name)
        folder = other.folder / model
        assert not list(folder.glob("*.bin*"))
        found = {k: v for part in folder.glob("*.safetensors") for k, v in load_file(part).items()}
        wanted = load_file(home.folder / model / "model.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "repo_id", "tokens"), [("visual", VIVIT, 1 + 16 * 14 * 14), ("audio", AST, 2 + 1212)]
)
def test_encoders_are_read_under_their_published_keys(home, kind, repo_id, tokens):
    """Protects: no weight of an encoder is drawn at random in place of the published one, whatever
    its head is called; float32, as many tokens as published."""
    folder = home.folder / "models" / Path(repo_id).name
    model, _ = load_encoder(folder, kind)
    assert model.embeddings.position_embeddings.shape == (1, tokens, 768)
    weights = load_file(folder / "model.safetensors")
    heads = {name for name in weights if name.startswith("classifier")}
    assert heads and marks({k: v for k, v in weights.items() if k not in heads}) == marks(
        model.state_dict()
    )


def marks(weights):
    """What tells weights apart whatever they are called: size, sum and precision, in order."""
    return sorted(
        (w.numel(), round(w.double().sum().item(), 6), str(w.dtype)) for w in weights.values()
    )


@pytest.mark.slow
def test_both_stages_of_the_paper_preset(home):
    """Protects: the path that the documentation describes, from videos to answers, in the paper
    preset's precision and sizes, with the commits of what was used in the checkpoint; the second
    stage by the hub's names, which go through the cache of the hub's own library."""
    call(home, "utils/raw_video_preprocess.py", "videos", "data/extraction", "--workers", 1)
    data = ("--preset", "paper", "--data", "data", "--cache", "cache", *FEW)
    call(home, "task_align.py", *data)
    aligned = json.loads((home.folder / "checkpoint/align-paper-tau0.07.json").read_text())
    assert aligned["config"]["dtype"] == "bfloat16" and aligned["retrieval"]["n"] == 1
    by_name = ("--visual_encoder", VIVIT, "--audio_encoder", AST)
    answer = ("--question_only", "false", "--test_snr_db", 12, "--answer_tokens", 2)
    call(home, "task_avqa.py", *data, *by_name, *answer, "--test_batch", 2)
    answered = json.loads((home.folder / "checkpoint/avqa-paper.json").read_text())
    assert answered["accuracy"]["n"] == 1
    for metrics in (aligned, answered):
        assert 0 < metrics["loss"]["last"] < 100
    for name in ("align-paper-tau0.07", "avqa-paper"):
        place = home.folder / "checkpoint" / f"{name}.pth"
        used = torch.load(place, weights_only=True)["about"]["models"]
        for field, repo_id in (("visual_encoder", VIVIT), ("foundation_model", QWEN)):
            assert used[field]["commit"] == home.hub.repos[repo_id]["main"][0]
    clip, checkpoint = (
        home.folder / "videos" / f"{CLIPS['test'][0]}.mp4",
        "checkpoint/avqa-paper.pth",
    )
    told = call(home, "ask.py", clip, "How many players?", "--checkpoint", checkpoint).stdout
    assert told.startswith("answer: ") and "together" in told
    assert (home.folder / "hf" / "hub").is_dir()
    assert not (home.folder / ".cache" / "huggingface").exists()
