"""Which streams of a video are read, and the time line that they share."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition, Stream

# What a video's name ends in.
SUFFIXES = (
    *(".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mts", ".m2ts", ".flv", ".f4v"),
    *(".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".ogg"),
)
# Containers of videos, and of files that are often misnamed. Never playlists: a text file could
# make the decoder read other files.
FORMATS = "mov,matroska,webm,avi,flv,asf,ogg,mpeg,mpegvideo,mpegts"
OPENING = {
    "format_whitelist": FORMATS,
    "protocol_whitelist": "file",
    # How far to look for streams, in µs and bytes: some containers announce none, and a sound that
    # begins after the usual 5 s would not be found.
    "analyzeduration": "60000000",
    "probesize": "50000000",
}
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
UNTIMED = "avi"  # the container that stores no presentation times, only an order of decoding
LOST = Fraction(1, 10)  # share of a clip that may be missing without a word


@dataclass(frozen=True)
class Track:
    """A stream as its packets tell it; times in s on the container's clock."""

    index: int
    packets: int
    start: Fraction
    end: Fraction
    declared: Fraction  # s that the container promises
    padding: Fraction  # s by which its encoder may have lengthened it: a delay and a last frame
    covered: Fraction  # s that are near a packet: at most one after each

    @property
    def seconds(self) -> Fraction:
        return self.end - self.start

    @property
    def plausible(self) -> bool:
        return self.seconds <= longest(self.covered)


@dataclass
class Clip:
    """A video file: the streams that are read, the time line that they share (s on the container's
    clock), and notes of what a user should know."""

    path: Path
    video: Track | None
    audio: Track | None
    start: Fraction
    end: Fraction
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> Fraction:
        return self.end - self.start

    def note_loss(self, what: str, covered: Fraction) -> None:
        """Note where `what` covers, in s, much less than the whole time line."""
        if covered < (1 - LOST) * self.seconds:
            self.notes.append(f"{what} for {float(covered):.2f} of {float(self.seconds):.2f} s")


def open_media(path: Path) -> InputContainer:
    # absolute, because a name like "http:x.mp4" would be taken for an address
    try:
        return av.open(str(path.absolute()), metadata_errors="ignore", options=OPENING)
    except av.ArgumentError:
        raise ValueError("is not in a video format") from None


def read_clip(path: Path) -> Clip:
    """Choose the streams of a video and find its time line, without decoding anything.

    Raises ValueError or av.FFmpegError for a file that is no video.
    """
    with open_media(path) as container:
        found, notes = read_tracks(container), []
        video = choose(container.streams.video, found, lambda c: c.width * c.height, notes)
        audio = choose(container.streams.audio, found, lambda c: c.channels, notes)
        declared = Fraction(container.duration or 0, av.time_base)
    for name, track in (("picture", video), ("sound", audio)):
        if track and not track.plausible:
            notes.append(f"the times of its {name} span {float(track.seconds):.0f} s: damaged")
    tracks = [track for track in (video, audio) if track]
    read = [track for track in tracks if track.plausible] or tracks
    clip = Clip(path, video, audio, *time_line(read), notes)
    if clip.seconds > longest(max((track.covered for track in read), default=Fraction(0))):
        raise ValueError(f"its times span {float(clip.seconds):.0f} s: damaged")
    promised = max([declared, *(track.declared for track in read)])
    if clip.seconds + max((t.padding for t in read), default=0) < (1 - LOST) * promised:
        seconds = f"{float(clip.seconds):.2f} of the {float(promised):.2f} s that it declares"
        notes.append(f"is cut off: holds {seconds}")
    return clip


def longest(covered: Fraction) -> Fraction:
    """The most s that packets which cover so many can span, if their times are not damaged."""
    return 60 + 10 * covered


def time_line(tracks: list[Track]) -> tuple[Fraction, Fraction]:
    """From the earliest start to the latest end. Where the sound stands out by no more than an
    encoder's padding, which not all containers declare, the picture's start or end holds."""
    if not tracks:
        return Fraction(0), Fraction(0)
    start, end = min(t.start for t in tracks), max(t.end for t in tracks)
    picture, padding = tracks[0], tracks[-1].padding
    return (
        picture.start if picture.start - start <= padding else start,
        picture.end if end - picture.end <= padding else end,
    )


def read_tracks(container: InputContainer) -> dict[int, Track]:
    """The streams that have packets, by index."""
    streams = [*container.streams.video, *container.streams.audio]
    untimed = container.format.name == UNTIMED
    spans = defaultdict(list)  # (start, end) of each packet, in the stream's time base
    for packet in packets_of(container, streams) if streams else ():
        time = packet.dts if packet.pts is None or untimed else packet.pts
        if packet.size and time is not None and not packet.is_discard:
            skip, cut = padding(packet)
            spans[packet.stream_index].append((time + skip, (packet.duration or 0) - skip - cut))
    return {s.index: track_of(s, sorted(spans[s.index])) for s in streams if spans[s.index]}


def packets_of(container: InputContainer, streams: list[Stream]) -> Iterator[av.Packet]:
    try:
        yield from container.demux(streams)
    except IndexError:  # PyAV's, after the last packet, if a new stream appeared on the way
        return


def padding(packet: av.Packet) -> tuple[int, int]:
    """What the container declares to be the encoder's padding at the start and at the end of a
    packet, in its time base; the decoder leaves it out."""
    if not packet.has_sidedata("skip_samples"):
        return 0, 0
    content = bytes(packet.get_sidedata("skip_samples"))
    rate, whole = packet.stream.codec_context.sample_rate, packet.duration or 0
    first, last = (
        round(int.from_bytes(content[i : i + 4], "little") / (rate * packet.time_base))
        for i in (0, 4)
    )
    return min(first, whole), min(last, whole - min(first, whole))


def track_of(stream: Stream, packets: list[tuple[int, int]]) -> Track:
    """A track of the (start, duration) of its packets, in order of time."""
    (first, _), (last, duration) = packets[0], packets[-1]
    end = last + (duration or (last - first) // max(1, len(packets) - 1))
    # mp4 stores the time to the next frame in order of decoding, which for the last one shown may
    # be a gap that lies before it. The sum is right, but for a unit of rounding a frame elsewhere.
    total = first + sum(duration for _, duration in packets)
    end = total if last < total < end - len(packets) else end
    base = stream.time_base
    context, padding = stream.codec_context, 0
    if stream.type == "audio" and context is not None and context.codec.lossy:
        padding = 2 * sorted(duration for _, duration in packets)[len(packets) // 2]
    starts = [time for time, _ in packets] + [end]
    covered = sum(min(b - a, int(1 / base)) for a, b in zip(starts, starts[1:], strict=False))
    times = (first, end, stream.duration or 0, padding, covered)
    return Track(stream.index, len(packets), *(time * base for time in times))


def choose(
    streams: tuple[Stream, ...], tracks: dict[int, Track], size: Callable, notes: list[str]
) -> Track | None:
    """The track to read, as ffmpeg chooses: the default one, then the largest by `size` of its
    codec context. The container's pictures are none, and a single frame is no film if another
    stream moves. Raises ValueError if no stream has a known codec."""
    there = [s for s in streams if s.index in tracks and not s.disposition & PICTURES]
    candidates = [s for s in there if tracks[s.index].packets > 1] or there
    known = [s for s in candidates if s.codec_context is not None]
    if candidates and not known:
        raise ValueError(f"unknown {candidates[0].type} codec")
    if not known:
        return None
    best = max(
        known,
        key=lambda s: (bool(s.disposition & Disposition.default), size(s.codec_context), -s.index),
    )
    if others := [str(s.index) for s in there if s != best]:
        notes.append(f"{best.type} stream {best.index} is read, not {', '.join(others)}")
    return tracks[best.index]


def decoded(container: InputContainer, index: int) -> Iterator:
    """Yield (time in s, frame) of a stream, passing over packets that do not decode; None for a
    time that nobody tells."""
    stream, queue = container.streams[index], deque()
    untimed = stream.type == "video" and container.format.name == UNTIMED
    for packet in packets_of(container, [stream]):
        if untimed and packet.size:
            queue.append(packet.dts)
        try:
            frames = packet.decode()
        except av.FFmpegError:  # decoders report damage under many codes
            if queue:
                queue.popleft()
            continue
        for frame in frames:
            time = frame.dts if frame.pts is None else frame.pts
            time = queue.popleft() if queue else time  # frames come out in the order of showing
            yield None if time is None else time * stream.time_base, frame
