"""Reading frames and sound, in the forms that people's own extractions have."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from utils.data.media import MediaError, even_indices, read_frames, read_wav


def save_grey(folder, name, level, size=(6, 4)):
    Image.new("RGB", size, (level,) * 3).save(folder / name)


def test_even_indices():
    """Indices are centres of equal segments, and repeat evenly when there are too few items."""
    assert even_indices(100, 4) == [12, 37, 62, 87]
    assert even_indices(5, 5) == [0, 1, 2, 3, 4]
    assert even_indices(2, 5) == [0, 0, 1, 1, 1]
    assert even_indices(7, 1) == [3]
    for total in range(1, 40):
        repeats = np.bincount(even_indices(total, 32), minlength=total)
        assert repeats.max() - repeats.min() <= 1
    with pytest.raises(ValueError):
        even_indices(0, 3)


def test_frames_are_sorted_by_number(tmp_path):
    """frame_10 comes after frame_2, with or without leading zeros, and other files are ignored."""
    for name in ("frame_10.png", "frame_2.PNG", "frame_0001.png"):
        save_grey(tmp_path, name, 20 * int(name[6:].split(".")[0]))
    (tmp_path / "notes.txt").touch()
    save_grey(tmp_path, "thumbnail.png", 255)
    save_grey(tmp_path, "frame_3.png.png", 255)
    frames = read_frames(tmp_path)
    assert frames.dtype == np.uint8 and frames.shape == (3, 4, 6, 3)
    assert frames[:, 0, 0, 0].tolist() == [20, 40, 200]


def test_frames_are_resampled_evenly(tmp_path):
    """`count` picks frames spread over all of them, whether there are more or fewer."""
    for i in range(4):
        save_grey(tmp_path, f"frame_{i}.png", i)
    assert read_frames(tmp_path, 2)[:, 0, 0, 0].tolist() == [1, 3]
    assert read_frames(tmp_path, 8)[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_any_image_becomes_8_bit_rgb(tmp_path):
    """Grey, transparent, palette and 16-bit images keep their brightness; JPEG is read too."""
    Image.new("L", (6, 4), 128).save(tmp_path / "frame_1.png")
    Image.new("RGBA", (6, 4), (128, 128, 128, 255)).save(tmp_path / "frame_2.png")
    Image.new("RGB", (6, 4), (128,) * 3).quantize(4).save(tmp_path / "frame_3.png")
    Image.fromarray(np.full((4, 6), 128 * 257, np.uint16)).save(tmp_path / "frame_4.png")
    Image.new("RGB", (6, 4), (128,) * 3).save(tmp_path / "frame_5.jpg")
    Image.new("L", (6, 4), 128).save(tmp_path / "frame_6.jpeg")
    frames = read_frames(tmp_path)
    assert frames.shape == (6, 4, 6, 3)
    assert np.abs(frames.astype(int) - 128).max() <= 1


def test_frames_take_the_size_of_the_first(tmp_path):
    """A frame of another size does not make the clip unreadable."""
    save_grey(tmp_path, "frame_1.png", 10)
    save_grey(tmp_path, "frame_2.png", 20, size=(12, 9))
    assert read_frames(tmp_path).shape == (2, 4, 6, 3)


@pytest.mark.parametrize("damage", ["absent", "empty", "noise", "truncated"])
def test_bad_frames_end_in_one_line(tmp_path, damage):
    """A missing, empty or damaged frame folder is named in one line."""
    folder = tmp_path / "clip"
    if damage != "absent":
        folder.mkdir()
    if damage == "noise":
        (folder / "frame_1.png").write_bytes(b"noise" * 100)
    if damage == "truncated":
        Image.effect_noise((64, 64), 50).save(folder / "frame_1.png")
        (folder / "frame_1.png").write_bytes((folder / "frame_1.png").read_bytes()[:900])
    with pytest.raises(MediaError) as caught:
        read_frames(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_any_wav_becomes_mono_at_the_rate_asked(tmp_path, subtype):
    """Rate, bit depth and channels are converted: the tone and its loudness stay."""
    rate = 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    soundfile.write(tmp_path / "x.wav", np.stack([tone, 0 * tone], 1), rate, subtype=subtype)
    sound = read_wav(tmp_path / "x.wav")
    assert sound.dtype == np.float32 and sound.shape == (32000,)
    assert np.abs(np.fft.rfft(sound[:16000])).argmax() == 440  # Hz
    assert abs(np.abs(sound[2000:-2000]).max() - 0.25) < 0.02


def test_sound_at_the_right_rate_is_untouched(tmp_path):
    """16-bit samples at 16 kHz come back exactly."""
    samples = np.array([0, 1, -1, 32767, -32768] * 100, np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 16000)
    assert np.array_equal(read_wav(tmp_path / "x.wav") * 32768, samples)


@pytest.mark.parametrize("damage", ["absent", "noise", "no bytes", "no samples", "not finite"])
def test_bad_sound_ends_in_one_line(tmp_path, damage):
    """A missing, damaged or empty wav is named in one line."""
    path = tmp_path / "x.wav"
    if damage == "noise":
        path.write_bytes(b"noise" * 100)
    if damage == "no bytes":
        path.touch()
    if damage == "no samples":
        soundfile.write(path, np.zeros(0), 16000)
    if damage == "not finite":
        soundfile.write(path, np.array([0.0, np.nan, np.inf]), 16000, subtype="FLOAT")
    with pytest.raises(MediaError) as caught:
        read_wav(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
