"""One video's sound and frames, as the encoders read them.

A video becomes OUT/ast_audio/ID.wav (16 kHz, mono, 16 bit) and OUT/vivit_frames/ID/frame_0001.png
and so on, spread evenly in time over the whole clip.
"""

import io
import os
import shutil
import wave
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from uuid import uuid4

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.reformatter import Interpolation
from PIL import Image

SAMPLE_RATE = 16000  # Hz, what AST reads
# Bilinear averages over all source pixels when it shrinks; without the two other flags, libswscale
# rounds down and pictures come out about two levels too dark.
SCALING = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
# Containers of videos, and of files that are often misnamed. Never playlists: a text file could
# make the decoder read other files.
FORMATS = "mov,matroska,webm,avi,flv,asf,ogg,mpeg,mpegts"
SCRATCH = ".partial-"  # prefix in OUT of what is not finished
Span = tuple[int, int, int]  # first and last presentation time, end of the last frame; time base


def targets(clip: Path, out: Path) -> tuple[Path, Path]:
    """Where the sound and the frames of a clip go."""
    return out / "ast_audio" / f"{clip.stem}.wav", out / "vivit_frames" / clip.stem


def finished(target: Path) -> bool:
    """Whether a target is there; it is whole if it is, but somebody may have emptied a folder."""
    return target.is_file() or (target / "frame_0001.png").is_file()


def extract_clip(
    path: Path, out: Path, frames: int = 32, fps: float | None = None, size: int = 224
) -> list[str]:
    """Extract one video to `out`, leaving alone what is there already.

    Returns what could not be had ("no audio stream"), nothing if the clip is complete. Sound and
    frames appear whole or not at all. Raises OSError, naming the file, if `out` cannot be written.
    """
    path, out, problems = Path(path), Path(out), []
    out.mkdir(parents=True, exist_ok=True)
    write_images = partial(write_frames, frames=frames, fps=fps, size=size)
    for target, write in zip(targets(path, out), (write_sound, write_images), strict=True):
        if finished(target):
            continue
        part = out / f"{SCRATCH}{uuid4().hex}"
        try:
            write(path, part)
            target.parent.mkdir(exist_ok=True)
            os.replace(part, target)
        except av.FFmpegError as error:
            problems.append(f"cannot be decoded ({error.strerror})")
        except OSError as error:  # the disk's fault, not the clip's: all others would fail too
            raise OSError(error.errno, error.strerror, str(target)) from error
        except Exception as error:  # whatever a damaged file makes the decoder raise
            problems.append(" ".join(str(error).split()) or type(error).__name__)
        finally:
            remove(part)
    return list(dict.fromkeys(problems))


def remove(part: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


def write_sound(path: Path, target: Path) -> None:
    """Write the whole sound of a video as a mono 16-bit wav. Raises ValueError if it has none."""
    with open_media(path) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise ValueError("no audio stream")
        with wave.open(str(target), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", None))
            for samples in to_mono(decoded(container, stream)):
                file.writeframesraw(samples)
            if file.getnframes() == 0:
                raise ValueError("no decodable sound")


def to_mono(frames: Iterable[av.AudioFrame]) -> Iterator[bytes]:
    """Yield the samples of audio frames as 16-bit mono at SAMPLE_RATE."""
    # Rate and layout may change within a file, and a resampler takes only one of each.
    kinds = groupby(frames, lambda f: (f.sample_rate, f.format.name, f.layout.name))
    for (rate, *_), alike in kinds:
        if not 1_000 <= rate <= 1_000_000:  # a damaged header; the converted sound fills the disk
            raise ValueError(f"has a sample rate of {rate} Hz")
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        for frame in chain(alike, [None]):  # None asks for the samples held back
            for block in resampler.resample(frame):
                yield block.to_ndarray().tobytes()


def write_frames(path: Path, folder: Path, frames: int, fps: float | None, size: int) -> None:
    """Write frames spread evenly in time as folder/frame_0001.png and so on.

    Raises ValueError if the video has no video stream or no frame that decodes.
    """
    with open_media(path) as container:  # times come from the packets first: nothing is decoded
        packets = container.demux(video_stream(container))
        span = span_of([(p.pts, p.duration) for p in packets if p.size and not p.is_discard])
    seen = write_spread(path, folder, span, frames, fps, size)
    if seen[:2] != span[:2]:  # a damaged file, whose packets promise more than can be decoded
        shutil.rmtree(folder)
        write_spread(path, folder, seen, frames, fps, size)


def span_of(stamps: list[tuple[int | None, int | None]]) -> Span:
    """The span that frames of these (pts, duration) cover. Raises ValueError if none has a pts."""
    stamps = sorted((pts, duration or 0) for pts, duration in stamps if pts is not None)
    if not stamps:
        raise ValueError("no decodable frame")
    first, (last, duration) = stamps[0][0], stamps[-1]
    end = last + (duration or (last - first) // max(1, len(stamps) - 1))
    # mp4 stores the time to the next frame in order of decoding, which for the last one shown may
    # be a gap that lies before it. The sum is right, but for a unit of rounding a frame elsewhere.
    total = first + sum(duration for _, duration in stamps)
    return first, last, total if last < total < end - len(stamps) else end


def write_spread(
    path: Path, folder: Path, span: Span, frames: int, fps: float | None, size: int
) -> Span:
    """Cut a span into equal segments and write the frame that is on show at the centre of each.

    So a variable frame rate is respected, and too few frames are repeated evenly. Only one frame
    of full size is held at a time. Returns the span of the frames that were decoded.
    """
    folder.mkdir()
    first, _, end = span
    stamps, shown, number = [], None, 0
    with open_media(path) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1  # clips run in parallel already
        if fps:
            frames = max(1, round((end - first) * stream.time_base * Fraction(fps)))
            if frames > 100_000:  # a damaged time would fill the disk
                raise ValueError(f"would give {frames} frames; its times may be damaged")
        centres = [first + (2 * i + 1) * (end - first) // (2 * frames) for i in range(frames)]
        for frame in decoded(container, stream):
            if frame.pts is None:
                continue
            due = bisect_left(centres, frame.pts)
            if shown is not None and due > number:
                save_png(shown, folder, range(number, due), size)
                number = due
            shown = frame
            stamps.append((frame.pts, frame.duration))
        seen = span_of(stamps)
        if number < frames:
            save_png(shown, folder, range(number, frames), size)
    return seen


def save_png(frame: av.VideoFrame, folder: Path, numbers: Iterable[int], size: int) -> None:
    """Write one frame, upright and size x size pixels, under each of the numbers (from 0)."""
    # Squashed to a square, not cropped: who plays at the left edge may be the question.
    small = frame.reformat(size, size, "rgb24", interpolation=SCALING, threads=1)
    pixels = np.rot90(small.to_ndarray(), round(frame.rotation / 90))  # both counter-clockwise
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=1)
    for number in numbers:
        (folder / f"frame_{number + 1:04d}.png").write_bytes(png.getbuffer())


def open_media(path: Path) -> InputContainer:
    # absolute, because a name like "http:x.mp4" would be taken for an address
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        return av.open(str(path.absolute()), metadata_errors="ignore", options=options)
    except av.ArgumentError:
        raise ValueError("is not in a video format") from None


def video_stream(container: InputContainer) -> av.VideoStream:
    """The first real video stream; a cover picture is not one. Raises ValueError without it."""
    for stream in container.streams.video:
        if stream.codec_context is None:
            raise ValueError("unknown video codec")
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise ValueError("no video stream")


def decoded(container: InputContainer, stream: Stream) -> Iterator:
    """Yield the frames of a stream, passing over packets that do not decode."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:  # decoders report damage under many codes
            continue
        yield from frames
