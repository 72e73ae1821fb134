"""Every architecture in ENCODERS, and the one that docs/extending.md adds: tiny, with random
weights, saved as it is published, and led through both stages."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

import task_align
import task_avqa
from modules.system import Alignment
from modules.token_transmitter import GRIDS, TokenTransmitter
from tests.helpers.scripts import ROOT, here, places
from tests.helpers.tiny import RATE, SIZES, write_clip
from utils.data import models as of_models
from utils.data.clips import ClipMedia, Collate, in_order
from utils.data.datasets import Caption, Question, wav_path
from utils.data.media import read_frames, read_wav
from utils.data.models import ENCODERS, build_system, load_encoder

FRAMES = 4  # of 32 x 32 pixels, in patches of 16: 2 x 2 a frame
SIDE = {"height": 32, "width": 32}
PICTURES = dict(SIZES, image_size=32, patch_size=16)
PICTURES.pop("initializer_range")
TEXT = dict(
    vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)


def save_videomae(folder):
    config = VideoMAEConfig(
        **PICTURES,
        num_frames=FRAMES,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    VideoMAEForPreTraining(config).save_pretrained(folder)
    VideoMAEImageProcessor(size=SIDE, crop_size=SIDE).save_pretrained(folder)


def save_clip(folder):
    """The whole of it, with its encoder of text, as published."""
    vision = {**PICTURES, "num_frames": FRAMES}
    CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision)).save_pretrained(folder)
    CLIPImageProcessor(crop_size=SIDE).save_pretrained(folder)


def save_clip_vision(folder):
    CLIPVisionModel(CLIPVisionConfig(**PICTURES, num_frames=FRAMES)).save_pretrained(folder)
    CLIPImageProcessor(crop_size=SIDE).save_pretrained(folder)


def save_siglip(folder):
    SiglipVisionModel(SiglipVisionConfig(**PICTURES, num_frames=FRAMES)).save_pretrained(folder)
    SiglipImageProcessor(size=SIDE).save_pretrained(folder)


def save_whole_siglip(folder):
    text = dict(TEXT, max_position_embeddings=16)
    vision = {**PICTURES, "num_frames": FRAMES}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessor(size=SIDE).save_pretrained(folder)


def save_whisper(folder):
    """Of one second a window, 50 tokens."""
    config = WhisperConfig(
        vocab_size=64,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=50,
        init_std=0.2,
        **dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)


def save_wav2vec2(folder):
    config = Wav2Vec2Config(
        **SIZES,
        vocab_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)


# By what is saved: how, the media, special tokens, patches of a clip or window, axes of their grid.
SAVED = {
    "videomae": (save_videomae, "visual", 0, 2 * 2 * 2, 3),
    "clip": (save_clip, "visual", 1, FRAMES * 2 * 2, 3),
    "clip_vision_model": (save_clip_vision, "visual", 1, FRAMES * 2 * 2, 3),
    "siglip": (save_whole_siglip, "visual", 0, FRAMES * 2 * 2, 3),
    "siglip_vision_model": (save_siglip, "visual", 0, FRAMES * 2 * 2, 3),
    "whisper": (save_whisper, "audio", 0, 50, 1),
    "wav2vec2": (save_wav2vec2, "audio", 0, 499, 1),
}
SECONDS = {"a": 0.3, "b": 1.55}


def example() -> str:
    """The encoder that docs/extending.md adds."""
    page = (ROOT / "docs" / "extending.md").read_text()
    return re.search(r"```python\n([^`]*?def wav2vec2_input.*?)```", page, re.S)[1]


@pytest.fixture(autouse=True)
def with_the_example(monkeypatch):
    """For a while the tables hold what the page adds to them."""
    for table in (ENCODERS, GRIDS):
        monkeypatch.setitem(table, "wav2vec2", None)  # which is taken away afterwards
    exec(example(), dict(vars(of_models)))


@pytest.fixture(params=SAVED)
def saved(request, tmp_path):
    """The name of an encoder, its folder, and what is known of it."""
    save, *known = SAVED[request.param]
    torch.manual_seed(0)
    save(tmp_path / "model")
    return request.param, tmp_path / "model", known


@pytest.fixture
def root(tmp_path):
    """Two clips, of which the second sounds for longer than a window of a second."""
    for seed, (name, seconds) in enumerate(SECONDS.items()):
        write_clip(tmp_path, name, seconds, seed)
    return tmp_path


def test_an_entry_loads_reads_and_encodes(saved, root):
    """The model's own tokens come out, special ones first, each patch with its place; the whole of
    a clip is read, and no token is one of padding."""
    _, folder, (kind, special, patches, axes) = saved
    encoder, reader = load_encoder(folder, kind)
    tx = TokenTransmitter(encoder, special, 12, 4, "grid")
    assert tx.places.shape == (patches, axes)
    assert len(tx.places.unique(dim=0)) == patches
    for name, seconds in SECONDS.items():
        inputs, windows = reader(reader.path(root, name))
        with torch.no_grad():
            wanted = encoder(inputs).last_hidden_state
        (clip,) = tx.read(inputs, windows and [windows])
        if kind == "visual":
            assert torch.equal(clip.tokens, wanted) and wanted.shape == (1, special + patches, 16)
        else:
            heard = wanted.flatten(0, 1)[windows.patches]
            assert torch.equal(clip.tokens[0], heard) and len(heard) <= len(wanted) * patches
            assert 0 <= len(heard) - 50 * seconds < 1.5  # tokens of 20 ms
        short, layout = tx.encode(inputs, windows and [windows])
        assert short.shape == (1, special + 4, 16) and layout.places.shape == (1, 4, axes)
        assert short.isfinite().all() and short.std(dim=1).min() > 0


def test_an_entry_trains_in_both_stages(saved, root, models):
    """With either contrast; where there are no special tokens the published one reads the mean of
    all, as such models are pooled by their own authors."""
    _, folder, (kind, special, *_) = saved
    folders = {
        f"{k}_encoder": str(folder if k == kind else models / k) for k in ("visual", "audio")
    }
    shared = dict(folders, visual_tokens=4, audio_tokens=4, compression="grid", channel="none")
    config = replace(task_align.PRESETS["mini"], **shared)
    system, processors = build_system(config)
    clips = ClipMedia([Caption("a", "a drum"), Caption("b", "bells")], root, processors.readers)
    (batch,) = in_order(clips, Collate(processors.tokenizer), 2)
    found = {}
    for contrast in ("special", "all"):
        losses, features = Alignment(system, replace(config, contrast=contrast))(batch, None)
        losses["loss"].backward()
        found[contrast] = features[kind]
        assert losses["loss"].isfinite()
        assert system.transmitters[kind].projection.weight.grad.any()
        system.zero_grad()
    assert torch.equal(found["special"], found["all"]) == (special == 0)

    model, _ = task_avqa.build_model(replace(task_avqa.PRESETS["mini"], **shared))
    asked = [Question(n, "Audio Counting", "How many?", "How many?", "two") for n in SECONDS]
    clips = ClipMedia(asked, root, processors.readers)
    (batch,) = in_order(clips, Collate(processors.tokenizer), 2)
    loss = model(batch, None)
    loss.backward()
    assert loss.isfinite() and model.system.transmitters[kind].projection.weight.grad.any()


@pytest.mark.parametrize("name", ["videomae", "clip", "siglip_vision_model"])
def test_pixels_are_scaled_as_an_encoder_wants_them(name, tmp_path):
    """By the mean and deviation that stand beside its weights."""
    save, kind, *_ = SAVED[name]
    save(tmp_path / "model")
    _, reader = load_encoder(tmp_path / "model", kind)
    write_clip(tmp_path, "a", 0.3, 0)
    path = reader.path(tmp_path, "a")
    for file in path.iterdir():
        with Image.open(file) as image:
            image.resize((32, 32)).save(file)
    inputs, _ = reader(path)
    frames = torch.from_numpy(read_frames(path, FRAMES)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(part)[:, None, None] for part in (
        reader.processor.image_mean, reader.processor.image_std,
    ))  # fmt: skip
    torch.testing.assert_close(inputs[0], (frames - mean) / std, rtol=1e-4, atol=1e-4)


def test_frames_are_read_one_by_one(root, tmp_path):
    """CLIP sees each frame as it sees a picture, in order, and its class tokens become one."""
    save_clip(tmp_path / "model")
    encoder, reader = load_encoder(tmp_path / "model", "visual")
    inputs, _ = reader(reader.path(root, "a"))
    with torch.no_grad():
        alone = encoder.tower(inputs[0]).last_hidden_state  # (frames, 1 + 4, 16)
        found = encoder(inputs).last_hidden_state[0]
    torch.testing.assert_close(found[0], alone[:, 0].mean(dim=0))
    torch.testing.assert_close(found[1:], alone[:, 1:].flatten(0, 1))


def test_frames_of_an_encoder_of_pictures(tmp_path):
    """Are 16, or as many as `num_frames` in its config.json says."""
    for many in (None, 6):
        config = CLIPVisionConfig(**PICTURES, **({"num_frames": many} if many else {}))
        CLIPVisionModel(config).save_pretrained(tmp_path / "model")
        CLIPImageProcessor(crop_size=SIDE).save_pretrained(tmp_path / "model")
        encoder, _ = load_encoder(tmp_path / "model", "visual")
        assert encoder.config.num_frames == (many or 16)


def test_whisper_hears_windows_to_their_end(root, tmp_path):
    """1.55 s are a window of 50 tokens and one of 28; the spectrograms are those that Whisper's own
    processor makes of each."""
    save_whisper(tmp_path / "model")
    _, reader = load_encoder(tmp_path / "model", "audio")
    inputs, windows = reader(reader.path(root, "b"))
    assert windows.frames.tolist() == [50, 28]
    assert windows.patches.tolist() == [*range(78)]
    sound = read_wav(wav_path(root, "b"))
    for part, spectrogram in zip((sound[:RATE], sound[RATE:]), inputs, strict=True):
        own = reader.processor(part, sampling_rate=RATE)["input_features"][0]
        assert np.allclose(own, spectrogram, atol=1e-5)


def test_compression_by_attention_needs_special_tokens(saved):
    """Where none attend to all patches it is refused in a line, before anything is encoded."""
    _, folder, (kind, special, *_) = saved
    encoder, _ = load_encoder(folder, kind)
    says = "compression attention: .* has no special tokens .* choose another"
    with pytest.raises(ValueError, match=says):
        TokenTransmitter(encoder, special, 12, 4, "attention")
    with pytest.raises(ValueError, match=says):
        TokenTransmitter(encoder, special, 12, 4).compressing(2, "attention")


def test_every_entry_is_tested():
    """But for those of the published system, which all other tests use."""
    assert {*ENCODERS} - {*SAVED} == {"vivit", "audio-spectrogram-transformer"}


@pytest.mark.slow
def test_the_scripts_run_with_other_encoders(mini_world, tmp_path):
    """Both stages, from the cache, with encoders that have no special tokens."""
    torch.manual_seed(0)
    save_videomae(tmp_path / "videomae")
    save_whisper(tmp_path / "whisper")
    flags = ("--visual_encoder", tmp_path / "videomae", "--audio_encoder", tmp_path / "whisper")
    flags += ("--visual_tokens", 4, "--audio_tokens", 8, "--steps", 2, "--batch", 8)
    flags += ("--name", "others", "--out", tmp_path, "--figures", "none", "--workers", 0)
    done = here("task_align.py", *places("task_align.py", mini_world), *flags)
    assert "R@1" in done.stdout
    flags += ("--init", tmp_path / "others.pth", "--name", "answers", "--test_snr_db", 12)
    flags += ("--question_only", "false")
    here("task_avqa.py", *places("task_avqa.py", mini_world), *flags)
    weights = torch.load(tmp_path / "answers.pth", weights_only=True)
    assert weights["img_tx"]["projection.weight"].shape[1] == 16
    assert not any(key.startswith("encoder.") for key in weights["img_tx"])
