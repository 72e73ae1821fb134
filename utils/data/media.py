"""Read a clip's media, whatever their form, and make encoder inputs of them.

They are what the preprocessing wrote, a folder of frames and a wav file; or a video, of which the
same frames and the same sound are taken as the preprocessing would, without writing them.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps
from scipy.signal import resample_poly
from torch import Tensor
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor

from modules.token_transmitter import Windows, ast_grid
from utils.data.datasets import frames_path, video_path, wav_path
from utils.data.extraction import SAMPLE_RATE, frames_of, reason, sound_of
from utils.data.tracks import SUFFIXES, Clip, read_clip

FRAME_NAME = re.compile(r"frame_(\d+)\.(png|jpg|jpeg)", re.IGNORECASE)


class MediaError(ValueError):
    """A clip that cannot be read: one line with the file, what is wrong and what to do."""


def even_indices(total: int, count: int) -> list[int]:
    """`count` indices spread evenly over range(total), in order.

    Each is the centre of one of `count` equal segments, so a short clip (total < count) has all
    its items repeated about equally often, instead of its last one many times.
    """
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def is_video(path: Path) -> bool:
    """Whether a clip's media is its video: neither a wav file nor a folder of frames."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def of_video(path: Path, parts: Callable[[Clip], Iterator]) -> list:
    """All that `parts` yields of a video; MediaError where there is nothing, or damage."""
    try:
        if not path.is_file():  # to read a pipe would wait for ever
            raise ValueError("is not a file, or a link to nothing")
        return list(parts(read_clip(path)))
    except Exception as error:  # whatever a damaged file makes demuxer and decoder raise
        raise MediaError(f"{path}: {reason(error)}; replace or remove the video") from error


def clip_frames(path: Path, count: int, size: int) -> np.ndarray:
    """`count` frames spread evenly over a clip, uint8 RGB (frames, height, width, 3).

    Those in a folder are `read_frames`; those of a video are the ones that an extraction of so many
    frames of size x size pixels would have written. Raises MediaError.
    """
    if not is_video(path):
        return read_frames(path, count)
    shown = of_video(path, lambda clip: frames_of(clip, count, None, size))
    return np.concatenate([np.stack([pixels] * len(numbers)) for numbers, pixels in shown])


def clip_sound(path: Path, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """The sound of a clip, float32 (samples,) at `sample_rate` Hz: `read_wav` of a wav file; that
    of a video is the one that an extraction would have written. Raises MediaError."""
    if not is_video(path):
        return read_wav(path, sample_rate)
    sound = np.concatenate(of_video(path, sound_of))  # 16 bit
    return resampled(sound.astype(np.float32) / 32768, SAMPLE_RATE, sample_rate)


def read_frames(folder: Path, count: int | None = None) -> np.ndarray:
    """Read frame_N.png, .jpg or .jpeg in the order of N, other files ignored.

    Returns uint8 RGB (frames, height, width, 3): all frames, or `count` spread evenly over them.
    Frames of another size than the first are resized to it.
    Raises MediaError if the folder holds no frames or one of them is damaged.
    """
    paths = frame_paths(Path(folder))
    chosen = even_indices(len(paths), len(paths) if count is None else count)
    images = {i: read_image(paths[i]) for i in dict.fromkeys(chosen)}
    size = images[chosen[0]].size
    arrays = {
        i: np.asarray(image if image.size == size else image.resize(size))
        for i, image in images.items()
    }
    return np.stack([arrays[i] for i in chosen])


def frame_paths(folder: Path) -> list[Path]:
    """The frame files of a folder sorted by the number in their names (1, 2, 10).

    Raises MediaError if there are none.
    """
    try:
        matches = [(FRAME_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    except OSError as error:
        raise MediaError(
            f"{folder}: cannot be listed ({error.strerror}); extract the clip's frames first"
        ) from error
    numbered = sorted((int(match[1]), path) for match, path in matches if match)
    if not numbered:
        raise MediaError(f"{folder}: holds no frame_*.png or .jpg; extract the clip's frames again")
    return [path for _, path in numbered]


def read_image(path: Path) -> Image.Image:
    """Read one image as 8-bit RGB, turned as its EXIF says. Raises MediaError if it is damaged."""
    try:
        with warnings.catch_warnings():  # a damaged header may promise a picture of gigabytes
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path)
        with opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
                grey = np.asarray(image).astype(np.float32) / 257  # 65535 / 255
                return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds on a damaged file
        raise MediaError(
            f"{path}: not a readable image ({reason(error)}); "
            "delete the folder it is in and extract the clip again"
        ) from error


def read_wav(path: Path, sample_rate: int = 16000) -> np.ndarray:
    """Read a sound file of any rate, bit depth and number of channels as mono.

    Returns float32 (samples,) at `sample_rate` Hz, full scale being 1; channels are averaged.
    Raises MediaError if the file is missing, damaged, empty, or has impossible samples or rate.
    """
    try:
        sound, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (OSError, RuntimeError, MemoryError) as error:
        raise MediaError(
            f"{path}: not a readable wav ({reason(error)}); extract the clip's audio again"
        ) from error
    if len(sound) == 0:
        raise MediaError(f"{path}: holds no samples; extract the clip's audio again")
    if not np.abs(sound).max() < 1e10:  # nor is NaN below it; the spectrum would overflow
        raise MediaError(
            f"{path}: holds samples that are not finite or far too large; extract the audio again"
        )
    if not 1_000 <= rate <= 1_000_000:  # to convert these takes gigabytes
        raise MediaError(f"{path}: has a sample rate of {rate} Hz; extract the audio again")
    return resampled(sound.mean(axis=1), rate, sample_rate)


def resampled(sound: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Sound (samples,) at `rate` Hz as float32 at `sample_rate` Hz."""
    common = math.gcd(rate, sample_rate)
    if rate != sample_rate:
        sound = resample_poly(sound, sample_rate // common, rate // common)
    return sound.astype(np.float32)


def video_input(processor: Any, config: Any, path: Path) -> tuple[Tensor, None]:
    """A clip's frames as ViViT and other encoders read them, by a processor of videos or pictures:
    (1, frames, 3, height, width), float32, without padding.

    Frames are resized to the model's size whole: a centre crop would cut off the performers at
    the sides.
    """
    side = config.image_size
    wanted = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
    frames = clip_frames(path, config.num_frames, max(wanted))  # (frames, height, width, 3)
    out = processor(
        list(frames),
        do_resize=frames.shape[1:3] != wanted,
        size={"height": wanted[0], "width": wanted[1]},
        do_center_crop=False,
        input_data_format="channels_last",  # not guessed: a picture may be 3 pixels high
        return_tensors="np",
    )
    pixels = torch.from_numpy(np.asarray(out["pixel_values"], dtype=np.float32))
    return pixels.reshape(1, config.num_frames, -1, *wanted), None


def audio_input(extractor: ASTFeatureExtractor, config: Any, path: Path) -> tuple[Tensor, Windows]:
    """A clip's sound as AST reads it, (windows, time, mel), float32, and how much of the windows is
    sound.

    The whole clip is read as consecutive windows of the model's length (10.24 s for the published
    one), so that no sound is dropped, but for a rest below 0.1 s.
    """
    rate = extractor.sampling_rate
    hop, frame = rate // 100, rate // 40  # kaldi's 10 ms hop and 25 ms frame
    windows = windows_of(path, rate, extractor.max_length * hop, frame - hop)
    out = extractor(windows, sampling_rate=rate, return_tensors="np")
    inputs = torch.from_numpy(np.asarray(out["input_values"], dtype=np.float32))
    frames = torch.tensor([1 + (len(window) - frame) // hop for window in windows])
    within = frames[:, None] > patch_starts(config)  # (windows, patches)
    return inputs, Windows(frames, within.flatten().nonzero()[:, 0])


def whisper_input(
    extractor: WhisperFeatureExtractor, config: Any, path: Path
) -> tuple[Tensor, Windows]:
    """A clip's sound as Whisper's encoder reads it, (windows, mel, time), float32: consecutive
    windows of 30 s, and how much of them is sound."""
    rate = extractor.sampling_rate
    windows = windows_of(path, rate, extractor.n_samples)
    out = extractor(windows, sampling_rate=rate, return_tensors="np")
    inputs = torch.from_numpy(np.asarray(out["input_features"], dtype=np.float32))
    samples = 2 * extractor.hop_length  # of a token, which stands for two frames
    tokens = torch.tensor([-(-len(window) // samples) for window in windows])
    within = tokens[:, None] > torch.arange(config.max_source_positions)  # (windows, tokens)
    return inputs, Windows(tokens, within.flatten().nonzero()[:, 0])


def windows_of(path: Path, rate: int, step: int, overlap: int = 0) -> list[np.ndarray]:
    """The whole sound of a clip in consecutive windows of `step` samples at `rate` Hz, each with
    `overlap` more of what follows, the last as long as the rest, of which less than 0.1 s makes
    none. Raises MediaError, for a sound shorter than 25 ms too."""
    wave = clip_sound(path, rate)
    if len(wave) < 0.025 * rate:
        raise MediaError(f"{path}: shorter than 25 ms; remove the clip")
    starts = [i for i in range(0, len(wave), step) if i == 0 or len(wave) - i >= rate // 10]
    return [wave[i : i + step + overlap] for i in starts]


def patch_starts(config: Any) -> Tensor:
    """The frame of the spectrogram at which each of AST's patch tokens begins, (patches,): in their
    order, all times of the lowest frequencies first."""
    return (config.time_stride * ast_grid(config)[:, 0]).long()


@dataclass(frozen=True)
class Reader:
    """Turns a clip's media into encoder inputs (rows, ...); picklable, for loader workers."""

    kind: str  # of media: visual or audio
    read: Callable[[Any, Any, Path], tuple[Tensor, Windows | None]]
    processor: Any
    config: Any  # the encoder's, of transformers
    media: str = "extraction"  # what it reads: folders that the preprocessing wrote, or `videos`

    def __call__(self, path: Path) -> tuple[Tensor, Windows | None]:
        """The inputs, and how much of them is the clip where it is read in windows."""
        return self.read(self.processor, self.config, path)

    def path(self, root: str | Path, video_id: str) -> Path:
        """Where a clip's media of this kind lies."""
        if self.media == "videos":
            return video_path(root, video_id)
        return (wav_path if self.kind == "audio" else frames_path)(root, video_id)
