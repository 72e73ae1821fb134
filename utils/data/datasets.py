"""VALOR-32K and MUSIC-AVQA as they lie on disk: annotations, and which clips have media."""

import hashlib
import json
import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.data.answers import normalise_answer
from utils.data.tracks import SUFFIXES

FILE_NAME = re.compile(r"(?!\.\.?$)[^/\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # never outside a folder
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
        ValueError: when there are more or fewer values than placeholders, or one is not text.
    """
    if not isinstance(content, str) or not _are_texts(values):
        raise ValueError(f"cannot fill {reprlib.repr(content)} with {reprlib.repr(values)}")
    places = PLACEHOLDER.findall(content)
    if len(places) != len(values):
        raise ValueError(f"{len(places)} placeholders but {len(values)} templ_values")
    rest = iter(values)
    text = PLACEHOLDER.sub(lambda _: next(rest), content)
    return text.replace("？", "?").strip()


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def annotation_path(root: str | Path, file: str) -> Path:
    """`root/annotations/file`, or `root/annotation/file`, or `root/file`; DataError if there is
    none of them."""
    root = Path(root)
    for folder in ("annotations", "annotation", "."):
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
    captions = []
    for number, row in enumerate(rows):
        where = f"{file.path}: row {number}"
        captions.append(Caption(_video_id(row, where), _text(row["desc"], f"{where}: desc")))
    return captions, file


def _text(value: Any, where: str) -> str:
    """`value` without blanks around it; DataError naming `where` if it is no text."""
    if not isinstance(value, str):
        raise DataError(f"{where} is {reprlib.repr(value)}, not text; mend or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can hold half a character
        raise DataError(f"{where}: {error}; mend or remove the row") from None
    return value.strip()


def _texts(value: Any, where: str) -> list[str]:
    """The texts of a JSON list within the JSON; DataError naming `where` if it is none."""
    try:
        texts = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        texts = None
    if not _are_texts(texts):
        raise DataError(
            f"{where} is {reprlib.repr(value)}, not a JSON list of texts; mend or remove the row"
        )
    return texts


def _video_id(row: dict, where: str) -> str:
    """The row's video_id; DataError if it could not name a file in the data set's folders."""
    name = row["video_id"]
    _text(name, f"{where}: video_id")
    if not FILE_NAME.fullmatch(name) or len(name.encode()) > 200:
        raise DataError(
            f"{where}: video_id is {reprlib.repr(name)}, not a file's name; mend or remove the row"
        )
    return name


def parse_question(row: dict, where: str) -> Question:
    """One row of MUSIC-AVQA; DataError naming `where` if it does not hold together."""
    kind = " ".join(_texts(row["type"], f"{where}: type"))
    if kind not in QUESTION_TYPES:
        raise DataError(
            f"{where}: unknown question type {reprlib.repr(kind)}; mend or remove the row"
        )
    template = _text(row["question_content"], f"{where}: question_content")
    values = _texts(row["templ_values"], f"{where}: templ_values")
    try:
        text = fill_template(template, values)
    except ValueError as error:
        raise DataError(f"{where}: {error}; mend or remove the row") from None
    return Question(
        video_id=_video_id(row, where),
        type=kind,
        template=template,
        text=_text(text, f"{where}: templ_values"),
        answer=_answer(row["anser"], f"{where}: anser"),
    )


def _answer(value: Any, where: str) -> str:
    """The text of an answer; DataError naming `where` if saying nothing would be right."""
    answer = _text(value, where)
    if not normalise_answer(answer):
        raise DataError(f"{where} is {reprlib.repr(value)}, no answer; mend or remove the row")
    return answer


def contradicting(rows: Sequence[Caption] | Sequence[Question]) -> int:
    """How many questions are asked of the same clip again with another answer: not all of these
    can be answered right. Captions do not contradict one another."""
    questions = [row for row in rows if isinstance(row, Question)]
    answers = defaultdict(set)
    for q in questions:
        answers[q.video_id, q.text].add(normalise_answer(q.answer))
    return sum(len(answers[q.video_id, q.text]) > 1 for q in questions)


def is_deleted(row: dict, where: str) -> bool:
    """Whether a row of MUSIC-AVQA is marked as deleted; DataError naming `where` if unclear."""
    mark = row.get("question_deleted") or 0
    try:
        return int(mark) != 0
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{where}: question_deleted is {reprlib.repr(mark)}; mend or remove the row"
        ) from None


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


def video_path(root: str | Path, video_id: str) -> Path:
    """The clip's video, by whichever name there is; the .mp4 where there is none."""
    paths = (Path(root) / "videos" / f"{video_id}{suffix}" for suffix in SUFFIXES)
    return next((p for p in paths if p.exists()), Path(root) / "videos" / f"{video_id}.mp4")


def media_paths(root: str | Path, video_id: str, media: str) -> list[Path]:
    """All files and folders of a clip: of its `extraction`, or of its `videos`."""
    if media == "videos":
        return [video_path(root, video_id)]
    return [wav_path(root, video_id), frames_path(root, video_id)]


def without_media(
    root: str | Path, video_ids: list[str], media: str = "extraction"
) -> dict[str, str]:
    """The clips whose sound or frames were not extracted, or whose videos are not there, each with
    the reason.

    Raises:
        DataError: when that is all of them.
    """
    absent, lacks = {}, "no such video" if media == "videos" else "not extracted"
    for video_id in dict.fromkeys(video_ids):
        gone = [str(p) for p in media_paths(root, video_id, media) if not p.exists()]
        if gone:
            absent[video_id] = f"{' and '.join(gone)}: {lacks}"
    if absent and absent.keys() == set(video_ids):
        do = "run utils/raw_video_preprocess.py on the videos first"
        if media == "videos":
            do = "put them there as ID.mp4, or leave out --media videos to read an extraction"
        raise DataError(
            f"{Path(root) / media}: none of the {len(absent)} annotated clips is there; {do}"
        )
    return absent


def listing(left_out: dict[str, str]) -> str:
    """How a run names the clips that it leaves out: a line each, with the reason."""
    lines = [f"  {video_id}: {reason}" for video_id, reason in sorted(left_out.items())]
    return "\n".join([f"{len(left_out)} clips left out:", *lines])


def read_splits(read: Callable, root: str | Path) -> tuple[dict, dict]:
    """The rows of every split by `read_valor` or `read_music_avqa`, and the annotation files."""
    found = {split: read(root, split) for split in ("train", "val", "test")}
    return {k: rows for k, (rows, _) in found.items()}, {k: file for k, (_, file) in found.items()}
