"""VALOR-32K and MUSIC-AVQA as they lie on disk: annotations, and which clips have media."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PLACEHOLDER = re.compile(r"<(Object|LR|LRer|FL|TH|LL|BA)>")
QUESTION_TYPES = tuple(
    f"{modality} {kind}"
    for modality, kinds in {
        "Audio": ("Counting", "Comparative"),
        "Visual": ("Counting", "Location"),
        "Audio-Visual": ("Existential", "Counting", "Location", "Comparative", "Temporal"),
    }.items()
    for kind in kinds
)


class DataError(ValueError):
    """A data set that cannot be read, in one line: the file, what is wrong, what to do."""


@dataclass(frozen=True)
class Caption:
    """A row of VALOR."""

    video_id: str
    text: str


@dataclass(frozen=True)
class Question:
    """A row of MUSIC-AVQA, its placeholders filled."""

    video_id: str  # text: leading zeros stay
    type: str  # one of QUESTION_TYPES
    template: str  # with placeholders
    text: str  # without
    answer: str

    @property
    def synthetic(self) -> bool:
        """Whether the video's sound was replaced: such ids begin with letters."""
        return not self.video_id[:1].isdigit()


@dataclass(frozen=True)
class AnnotationFile:
    """What names an annotation set in a result."""

    path: str
    sha256: str
    rows: int


def fill_template(content: str, values: list[str]) -> str:
    """Put `values` in the places of the placeholders, in order.

    `Is the <Object> louder?` with ["violin"] gives `Is the violin louder?`. A full-width
    question mark becomes a plain one.

    Raises:
        ValueError: when there are more or fewer values than placeholders.
    """
    places = PLACEHOLDER.findall(content)
    if len(places) != len(values):
        raise ValueError(f"{len(places)} placeholders but {len(values)} templ_values")
    rest = iter(values)
    text = PLACEHOLDER.sub(lambda _: str(next(rest)), content)
    return text.replace("？", "?").strip()


def annotation_path(root: str | Path, file: str) -> Path:
    """`root/annotations/file`, or `root/annotation/file`; DataError if neither is there."""
    root = Path(root)
    for folder in ("annotations", "annotation"):
        if (root / folder / file).is_file():
            return root / folder / file
    raise DataError(
        f"{root / 'annotations' / file}: not found; put the data set's annotations there, "
        "or run with --preset mini, which needs none"
    )


def _read_rows(path: Path, fields: tuple[str, ...]) -> tuple[list[dict], AnnotationFile]:
    content = path.read_bytes()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); download it again") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a {type(rows).__name__}, not a list of rows")
    if not rows:
        raise DataError(f"{path}: holds no rows; download it again")
    for number, row in enumerate(rows):
        missing = [f for f in fields if not isinstance(row, dict) or f not in row]
        if missing:
            raise DataError(f"{path}: row {number} has no field {missing[0]!r}; mend or remove it")
    return rows, AnnotationFile(str(path), hashlib.sha256(content).hexdigest(), len(rows))


def read_valor(root: str | Path, split: str) -> tuple[list[Caption], AnnotationFile]:
    """The captions of a split, and the file's hash and row count."""
    rows, file = _read_rows(annotation_path(root, f"desc_{split}.json"), ("video_id", "desc"))
    return [Caption(str(row["video_id"]), str(row["desc"]).strip()) for row in rows], file


def parse_question(row: dict, where: str) -> Question:
    """One row of MUSIC-AVQA; DataError naming `where` if it does not hold together."""
    try:
        kind = " ".join(json.loads(row["type"]))
        text = fill_template(row["question_content"], json.loads(row["templ_values"]))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}; mend or remove the row") from None
    if kind not in QUESTION_TYPES:
        raise DataError(f"{where}: unknown question type {kind!r}; mend or remove the row")
    return Question(
        video_id=str(row["video_id"]),
        type=kind,
        template=row["question_content"].strip(),
        text=text,
        answer=str(row["anser"]).strip(),
    )


def is_deleted(row: dict, where: str) -> bool:
    """Whether a row of MUSIC-AVQA is marked as deleted; DataError naming `where` if unclear."""
    mark = row.get("question_deleted") or 0
    try:
        return int(mark) != 0
    except (TypeError, ValueError):
        raise DataError(f"{where}: question_deleted is {mark!r}; mend or remove the row") from None


def read_music_avqa(root: str | Path, split: str) -> tuple[list[Question], AnnotationFile]:
    """The questions of a split without the deleted ones, and the file's hash and row count."""
    fields = ("video_id", "type", "question_content", "templ_values", "anser")
    path = annotation_path(root, f"avqa-{split}.json")
    rows, file = _read_rows(path, fields)
    kept = [(i, row) for i, row in enumerate(rows) if not is_deleted(row, f"{path}: row {i}")]
    return [parse_question(row, f"{path}: row {i}") for i, row in kept], file


def wav_path(root: str | Path, video_id: str) -> Path:
    return Path(root) / "extraction" / "ast_audio" / f"{video_id}.wav"


def frames_path(root: str | Path, video_id: str) -> Path:
    return Path(root) / "extraction" / "vivit_frames" / video_id


def with_media(root: str | Path, video_ids: list[str]) -> list[str]:
    """The distinct clips, in order, whose sound and frames were both extracted.

    Raises:
        DataError: when none was.
    """
    distinct = list(dict.fromkeys(video_ids))
    found = [v for v in distinct if wav_path(root, v).is_file() and frames_path(root, v).is_dir()]
    if distinct and not found:
        raise DataError(
            f"{Path(root) / 'extraction'}: none of the {len(distinct)} annotated clips is there; "
            "run utils/raw_video_preprocess.py on the videos first"
        )
    return found


def read_splits(read: Callable, root: str | Path) -> tuple[dict, dict, dict[str, int]]:
    """Every split by `read_valor` or `read_music_avqa`: the rows whose clip has media, the
    annotation files, and how many rows there were before."""
    rows, files, total = {}, {}, {}
    for split in ("train", "val", "test"):
        everything, files[split] = read(root, split)
        there = set(with_media(root, [row.video_id for row in everything]))
        rows[split] = [row for row in everything if row.video_id in there]
        total[split] = len(everything)
    return rows, files, total
