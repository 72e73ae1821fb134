"""One video's sound and frames, as the encoders read them.

A video becomes OUT/ast_audio/ID.wav (16 kHz, mono, 16 bit) and OUT/vivit_frames/ID/frame_0001.png
and so on, spread evenly in time over the whole clip. Sound and picture keep their common time line:
a stream that starts late begins with silence or with its first frame, and a gap stays as long as it
was. OUT/sources/ID.json says of which file they were made, and what is to be known about it.
"""

import io
import os
import wave
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from uuid import uuid4

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation
from PIL import Image

from utils.data.sources import SCRATCH, begin_record, end_record, remove, source_of, targets, there
from utils.data.tracks import Clip, decoded, open_media, read_clip

SAMPLE_RATE = 16000  # Hz, what AST reads
# Bilinear averages over all source pixels when it shrinks; without the two other flags, libswscale
# rounds down and pictures come out about two levels too dark.
SCALING = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
JITTER = Fraction(1, 20)  # s by which a time stamp may be off without being a gap
STANDS = Fraction(1, 4)  # s that a frame may stay on show without being a gap
SILENT = 32  # of 32768, the peak of a sound that nobody hears (-60 dB)
UNTAGGED = 2  # matrix coefficients, and the transfer characteristics of HDR (ITU-T H.273)
HDR = {16: "PQ", 18: "HLG"}


def extract_clip(
    path: Path, out: Path, frames: int = 32, fps: float | None = None, size: int = 224
) -> list[str]:
    """Extract one video to `out`, leaving alone what is there already of this very file.

    Returns what could not be had ("no audio stream"), nothing if the clip is complete; its record
    holds what else is to be known. Sound and frames appear whole or not at all, and results of
    another file of this name go. Raises OSError, naming the file, if `out` cannot be written.
    """
    path, out = Path(path), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        source = source_of(path)
    except OSError as error:  # it was moved meanwhile
        return [f"cannot be read ({error.strerror})"]
    record = begin_record(path, out, source)
    try:
        clip = read_clip(path)
    except Exception as error:  # whatever a damaged file makes the demuxer raise
        end_record(path, out, record, [])
        return [reason(error)]
    problems = []
    write_images = partial(write_frames, frames=frames, fps=fps, size=size)
    for target, write in zip(targets(path, out), (write_sound, write_images), strict=True):
        if not there(target) and (problem := write_target(clip, write, target, out)):
            problems.append(problem)
    end_record(path, out, record, clip.notes)
    return list(dict.fromkeys(problems))


def write_target(clip: Clip, write, target: Path, out: Path) -> str | None:
    """Write the sound or the frames of a clip; returns what was wrong with it, if anything."""
    part = out / f"{SCRATCH}{uuid4().hex}"
    try:
        write(clip, part)
        remove(target)  # an empty folder
        target.parent.mkdir(exist_ok=True)
        os.replace(part, target)
    except av.FFmpegError as error:
        return reason(error)
    except OSError as error:  # the disk's fault, not the clip's: all others would fail too
        raise OSError(error.errno, error.strerror, str(target)) from error
    except Exception as error:  # whatever a damaged file makes the decoder raise
        return reason(error)
    finally:
        remove(part)
    return None


def reason(error: Exception) -> str:
    """What an error says in one line, or its kind if it says nothing."""
    if isinstance(error, av.FFmpegError):
        return f"cannot be decoded ({error.strerror})"
    return " ".join(str(error).split()) or type(error).__name__


def write_sound(clip: Clip, target: Path) -> None:
    """Write the sound of a clip, as `sound_of` gives it, as a mono 16-bit wav."""
    with wave.open(str(target), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", None))
        for samples in sound_of(clip):
            file.writeframesraw(samples.tobytes())


def sound_of(clip: Clip) -> Iterator[np.ndarray]:
    """Yield the sound of a clip, stretch by stretch, as mono int16 at SAMPLE_RATE: in all as long
    as its time line, with silence where there is none. Raises ValueError if there is no sound at
    all."""
    if clip.audio is None:
        raise ValueError("no audio stream")
    length, given, heard, peak = samples_in(clip.seconds), 0, 0, 0
    with open_media(clip.path) as container:
        for place, samples in placed(decoded(container, clip.audio.index), clip.start):
            place = given if place is None else min(place, length)
            if place > given:
                yield np.zeros(place - given, np.int16)
                given = place
            samples = samples[given - place :][: length - given]  # an overlap is heard once
            yield samples
            given += len(samples)
            heard += len(samples)
            peak = max(peak, int(np.abs(samples.astype(np.int32)).max(initial=0)))
    yield np.zeros(length - given, np.int16)
    if not heard:
        raise ValueError("no decodable sound")
    clip.note_loss("sound", Fraction(heard, SAMPLE_RATE))
    if peak < SILENT:
        clip.notes.append("its sound is silent")


def placed(
    frames: Iterable[tuple[Fraction | None, av.AudioFrame]], start: Fraction
) -> Iterator[tuple[int | None, np.ndarray]]:
    """Yield stretches of sound as 16-bit mono at SAMPLE_RATE, each with its place, in samples, on
    the time line that begins at `start`; None where it goes on after the one before."""
    resampler, kind, due = None, None, start  # `due`: s at which the next frame should begin
    for time, frame in frames:
        if not 1_000 <= frame.sample_rate <= 1_000_000:  # a damaged header
            raise ValueError(f"has a sample rate of {frame.sample_rate} Hz")
        # Rate and layout may change within a file, and a resampler takes only one of each.
        now = (frame.sample_rate, frame.format.name, frame.layout.name)
        jump = time is not None and (kind is None or abs(time - due) > JITTER)
        if jump or now != kind:
            if resampler is not None:
                yield None, resampled(resampler, None)
            resampler, kind = av.AudioResampler("s16", "mono", SAMPLE_RATE), now
        due = time if jump else due
        frame.pts = None  # the resampler would fill small gaps itself
        yield samples_in(due - start) if jump else None, resampled(resampler, frame)
        due += Fraction(frame.samples, frame.sample_rate)
    if resampler is not None:
        yield None, resampled(resampler, None)


def resampled(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> np.ndarray:
    """What comes out for a frame, or the samples held back for None."""
    blocks = [block.to_ndarray().ravel() for block in resampler.resample(frame)]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.int16)


def samples_in(seconds: Fraction) -> int:
    return round(seconds * SAMPLE_RATE)


def write_frames(clip: Clip, folder: Path, frames: int, fps: float | None, size: int) -> None:
    """Write the frames of a clip, as `frames_of` gives them, as folder/frame_0001.png and so on."""
    folder.mkdir()
    for numbers, pixels in frames_of(clip, frames, fps, size):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=1)
        for number in numbers:
            (folder / f"frame_{number + 1:04d}.png").write_bytes(png.getbuffer())


def frames_of(
    clip: Clip, frames: int, fps: float | None, size: int
) -> Iterator[tuple[range, np.ndarray]]:
    """Cut the time line into equal segments and yield the frames that are on show at their centres:
    the numbers of the segments that show a frame (from 0), and its pixels (size, size, 3), uint8.

    So a variable frame rate is respected, and too few frames are repeated evenly. Only one frame
    of full size is held at a time. Raises ValueError if there is no frame that decodes.
    """
    if clip.video is None:
        raise ValueError("no video stream")
    if fps:
        frames = max(1, round(clip.seconds * Fraction(fps)))
        if frames > 100_000:  # a damaged time would fill the disk
            raise ValueError(f"would give {frames} frames; its times may be damaged")
    centres = [clip.start + Fraction(2 * i + 1, 2 * frames) * clip.seconds for i in range(frames)]
    shown, number, spans, good = None, 0, [], 0
    with open_media(clip.path) as container:
        container.streams[clip.video.index].codec_context.thread_count = 1  # clips run in parallel
        for time, frame in decoded(container, clip.video.index):
            if time is None:
                continue
            due = bisect_left(centres, time)
            if shown is not None and due > number:
                yield range(number, due), square(shown, size)
                number = due
            shown = frame
            spans.append((time, frame.duration * frame.time_base))
            good += not frame.is_corrupt
        if shown is None:
            raise ValueError("no decodable frame")
        if number < frames:
            yield range(number, frames), square(shown, size)
    clip.note_loss("picture", on_show(spans, clip.end) * min(1, Fraction(good, clip.video.packets)))
    if kind := HDR.get(int(shown.color_trc)):
        clip.notes.append(f"is HDR ({kind}) and not tone-mapped: its colours are pale")


def on_show(frames: list[tuple[Fraction, Fraction]], end: Fraction) -> Fraction:
    """The s before `end` in which one of the frames, (time, duration), stands that is not only held
    over a gap; all that they last if that is more, because the order of durations may be wrong."""
    ends = [time for time, _ in frames[1:]] + [end]
    stays = [max(duration, STANDS) for _, duration in frames]
    seen = sum(min(e - t, s) for (t, _), e, s in zip(frames, ends, stays, strict=True) if e > t)
    return max(seen, sum(duration for _, duration in frames))


def square(frame: av.VideoFrame, size: int) -> np.ndarray:
    """A frame as it is to be shown, (size, size, 3), uint8."""
    # By convention untagged video is bt709 from HD on; libswscale would take it for bt601.
    hd = frame.colorspace == UNTAGGED and frame.height >= 720
    # Squashed to a square, not cropped: who plays at the left edge may be the question.
    small = frame.reformat(
        *(size, size, "rgb24"),
        src_colorspace=Colorspace.ITU709 if hd else None,
        interpolation=SCALING,
        threads=1,
    )
    return upright(small.to_ndarray(), frame)


def upright(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turn and mirror pixels (height, width, 3) as the display matrix of their frame says, to the
    nearest of the eight ways in which a picture can lie."""
    matrices = [data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    if not matrices:
        return pixels
    # Row by row, what a step to the right and one down become, in right and down (ISO 14496-12).
    (a, b), (c, d) = np.frombuffer(bytes(matrices[0]), "<i4").reshape(3, 3)[:2, :2] / 65536
    if abs(a) + abs(d) < abs(b) + abs(c):  # right and down change places
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
