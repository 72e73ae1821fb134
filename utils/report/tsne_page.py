"""One HTML page of t-SNE points to explore: hover over a point to see its clip. Works offline."""

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from plotly.offline import get_plotlyjs

from utils.data.datasets import Caption, media_paths
from utils.data.media import clip_frames
from utils.files import write_whole
from utils.report.plots import COLOURS, GREY, MODALITY_STYLE

FRAME_SIZE = 96  # pixels; a page of a thousand clips stays below 10 MB
NONE_NAMED, OTHER = "none named", "other"
PALE = "#CCCCCC"
# MUSIC-AVQA's 22 instruments and the mini world's bell.
INSTRUMENTS = (
    "accordion", "acoustic guitar", "bagpipe", "banjo", "bassoon", "bell", "cello", "clarinet",
    "congas", "drum", "electric bass", "erhu", "flute", "guzheng", "piano", "pipa", "saxophone",
    "suona", "trumpet", "tuba", "ukulele", "violin", "xylophone",
)  # fmt: skip
# Where people are filmed, as captions put it; the mini world's five among them.
PLACES = (
    "bathroom", "beach", "cave", "church", "classroom", "field", "forest", "garden", "gym", "hall",
    "house", "kitchen", "lake", "office", "park", "river", "road", "room", "shop", "snow",
    "square", "stadium", "stage", "street", "studio", "track", "yard",
)  # fmt: skip
SYNONYMS = {"conga": "congas", "guitar": "acoustic guitar"}
_WORDS = "|".join(sorted((*INSTRUMENTS, "conga"), key=len, reverse=True))
# A guitar called electric or bass is no acoustic guitar.
_NAMED = re.compile(rf"\b({_WORDS}|(?<!electric )(?<!bass )guitar)s?\b")
_PLACED = re.compile(rf"\b(?<!off )({'|'.join(PLACES)})s?\b")


def instrument(caption: str) -> str:
    """The first musical instrument that a caption names, or "none named".

    Instruments are whole words, one or many of them; an underscore or hyphen is a space.
    """
    return _first(_NAMED, caption)


def place(caption: str) -> str:
    """The first place that a caption names, likewise; what is off stage names none."""
    return _first(_PLACED, caption)


def _first(words: re.Pattern, caption: str) -> str:
    found = words.search(re.sub(r"[\s_-]+", " ", caption.lower()))
    return SYNONYMS.get(found[1], found[1]) if found else NONE_NAMED


def page_of_clips(
    points: dict[str, dict[str, np.ndarray]],
    rows: Sequence[Caption],
    root: str,
    media: str,
    path: str,
) -> str:
    """`write_page` for clips of a data set in `root`, each with its middle frame, from what was
    extracted or from the videos."""
    pictures = [media_paths(root, row.video_id, media)[-1] for row in rows]
    frames = [clip_frames(each, count=1, size=FRAME_SIZE)[0] for each in pictures]
    captions, names = [row.text for row in rows], [row.video_id for row in rows]
    return write_page(Path(path), points, captions, frames, names)


def write_page(
    path: Path,
    points: dict[str, dict[str, np.ndarray]],
    captions: Sequence[str],
    frames: Sequence[np.ndarray],
    names: Sequence[str],
) -> str:
    """Write the page and return its path.

    `points` holds (clips, 2) for each model's name and modality (visual, audio, text); each clip
    has a caption, a uint8 frame (height, width, 3) and a name.
    """
    xy = np.concatenate([a for of_model in points.values() for a in of_model.values()])
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = 0.04 * (high - low).max() or 1.0
    named = {
        "instrument": [instrument(caption) for caption in captions],
        "place": [place(caption) for caption in captions],
    }
    colours = {what: _colours(found) for what, found in named.items()}
    data = {
        "models": [
            {"name": name, **{m: np.round(of_model[m], 3).T.tolist() for m in MODALITY_STYLE}}
            for name, of_model in points.items()
        ],
        "ranges": np.stack([low - margin, high + margin], axis=1).tolist(),
        "colours": {
            "modality": {m: colour for m, (colour, _) in MODALITY_STYLE.items()},
            **colours,
        },
        "clips": [
            {
                "name": str(name),
                "caption": caption,
                "named": {what: found[i] for what, found in named.items()},
                "frame": _data_uri(frame),
            }
            for i, (name, caption, frame) in enumerate(zip(names, captions, frames, strict=True))
        ],
    }
    # Captions are anybody's text: without "<" none can end the script element, and json.dumps
    # escapes all that is not ASCII.
    parts = {"PLOTLY": get_plotlyjs(), "DATA": json.dumps(data).replace("<", r"\u003c")}
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, re.sub(r"__(PLOTLY|DATA)__", lambda match: parts[match[1]], template))
    return str(path)


def _colours(named: list[str]) -> dict[str, str]:
    """The colour of each name that is shown, the most frequent first, then of the others."""
    counts = Counter(sorted(n for n in named if n != NONE_NAMED))
    kept = [name for name, _ in counts.most_common(len(COLOURS))]
    colours = dict(zip(kept, COLOURS, strict=False))
    if len(counts) > len(kept):
        colours[OTHER] = GREY
    if NONE_NAMED in named:
        colours[NONE_NAMED] = PALE
    return colours


def _data_uri(frame: np.ndarray) -> str:
    image, file = Image.fromarray(frame), io.BytesIO()
    image.thumbnail((FRAME_SIZE, FRAME_SIZE))
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
