"""Reading frames and sound, in the forms that people's own extractions have. Bad ones:
test_bad_data.py."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.helpers.tiny import RATE, WINDOW
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


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_any_wav_becomes_mono_at_the_rate_asked(tmp_path, subtype, rate):
    """Rate, bit depth and channels are converted: length, pitch and loudness of a tone stay."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    soundfile.write(tmp_path / "x.wav", np.stack([tone, 0 * tone], 1), rate, subtype=subtype)
    sound = read_wav(tmp_path / "x.wav")
    assert sound.dtype == np.float32 and sound.shape == (32000,)
    assert np.abs(np.fft.rfft(sound[:16000])).argmax() == 440  # Hz
    assert abs(np.abs(sound[2000:-2000]).max() - 0.25) < 0.01


def test_sound_at_the_right_rate_is_untouched(tmp_path):
    """16-bit samples at 16 kHz come back exactly."""
    samples = np.array([0, 1, -1, 32767, -32768] * 100, np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 16000)
    assert np.array_equal(read_wav(tmp_path / "x.wav") * 32768, samples)


def test_sound_a_little_longer_than_its_windows(readers, tmp_path):
    """A rest below 0.1 s makes no window; of a longer one's window what is padding is known, and
    shifts no patch token of the sound."""
    rng, path = np.random.default_rng(0), tmp_path / "x.wav"
    for samples in (0, 1, 240, 400, 1104, 1599, 1600, 1601, 3200):
        sound = rng.normal(scale=0.1, size=WINDOW * RATE // 100 + samples)
        soundfile.write(path, sound, RATE)
        inputs, windows = readers["audio"](path)
        assert len(inputs) == len(windows.frames) == (2 if samples >= 1600 else 1), samples
        if samples >= 1600:
            assert windows.frames[1] == 1 + (samples - 400) // 160
            # The patches begin at frames 0, 10, 20 and 30, for low and for high frequencies.
            begun = -(-windows.frames[1].item() // 10)
            low = [*range(8, 8 + begun)]
            assert windows.patches.tolist() == [*range(8), *low, *(p + 4 for p in low)]


def test_a_short_sound_has_no_patches_of_padding(readers, tmp_path):
    """Also where the one window of a clip is not full."""
    soundfile.write(tmp_path / "x.wav", np.full(RATE // 5, 0.1), RATE)  # 0.2 s: 18 frames
    _, windows = readers["audio"](tmp_path / "x.wav")
    assert windows.frames.tolist() == [18]
    assert windows.patches.tolist() == [0, 1, 4, 5]


def test_a_header_that_promises_terabytes(tmp_path):
    """A sound is as long as the file, or refused in a line, whatever length its header says."""
    path = tmp_path / "x.wav"
    soundfile.write(path, np.zeros(4000), 16000, format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] |= 15  # with the next four bytes the number of samples
    path.write_bytes(content)
    try:
        assert len(read_wav(path)) == 4000
    except MediaError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
