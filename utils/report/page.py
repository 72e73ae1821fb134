"""A local page on which the trained system is asked about clips, by Gradio, which is optional."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils.data.datasets import DataError, Question, read_music_avqa

LOWEST_DB, HIGHEST_DB = -18.0, 30.0  # of the slider
# Answers to (video, question, SNR in dB, visual tokens, audio tokens), with their probabilities and
# the system's own first, and a table of what was sent.
Answers = Callable[[str, str, float, int, int], tuple[dict[str, float], str]]


def check_gradio() -> None:
    """ValueError where Gradio is not installed."""
    if find_spec("gradio") is None:
        raise ValueError("--page: needs Gradio, which is optional; pip install gradio")


def offered(data: str) -> dict[str, list[Question]]:
    """The videos of a data set's test clips with their questions, where they lie as those of the
    mini world do, beside their annotations."""
    found: dict[str, list[Question]] = {}
    with suppress(DataError):
        for row in read_music_avqa(data, "test")[0]:
            found.setdefault(str(Path(data, "videos", f"{row.video_id}.mp4")), []).append(row)
    return {path: rows for path, rows in found.items() if Path(path).is_file()}


def build(
    answers: Answers, data: str, snr_db: float, lengths: list[int], longest: list[int]
) -> Any:
    """The page, as `gradio.Blocks`.

    Args:
        data: folder of the data set whose test clips it offers.
        snr_db: dB, at which it begins.
        lengths, longest: patch tokens of picture and sound: at first, and at most.
    """
    import gradio as gr

    clips = offered(data)
    names = [(Path(path).stem, path) for path in clips]
    with gr.Blocks(title="Token communication", analytics_enabled=False) as page:
        gr.Markdown(
            "## Ask about a clip\nIts picture, its sound and the question cross a wireless channel "
            "as tokens; the answer is made of what arrives."
        )
        with gr.Row():
            clip = gr.Dropdown(names, label="Test clip", value=None, visible=bool(names))
            question = gr.Dropdown(
                [], label="Question", allow_custom_value=True, value="", scale=3, elem_id="question"
            )
        with gr.Row():
            video = gr.Video(label="A test clip, or one of your own", sources=["upload"])
            with gr.Column():
                start = min(max(snr_db, LOWEST_DB), HIGHEST_DB)
                snr = gr.Slider(LOWEST_DB, HIGHEST_DB, start, step=1, label="SNR (dB)")
                kinds = zip(("Visual", "Audio"), lengths, longest, strict=True)
                tokens = [
                    gr.Slider(1, most, first, step=1, label=f"{kind} tokens")
                    for kind, first, most in kinds
                ]
                button = gr.Button("Ask", variant="primary")
                answer = gr.Textbox(label="Answer", elem_id="answer")
        with gr.Row():
            likeliest = gr.Label(label="Likeliest answers", elem_id="likeliest", show_heading=False)
            sent = gr.Code(
                label="What was sent", elem_id="sent", language=None, show_line_numbers=False
            )
        clip.input(partial(chosen, clips), clip, [video, question])
        video.upload(own_clip, None, [clip, question])
        gr.on(
            [button.click, question.input, *(slider.release for slider in (snr, *tokens))],
            partial(asked, answers),
            [video, question, snr, *tokens],
            [answer, likeliest, sent],
        )
        if names:
            page.load(partial(begin, clips), None, [clip, video, question])
    return page


def begin(clips: dict[str, list[Question]]) -> list:
    """The first test clip."""
    path = next(iter(clips))
    return [path, *chosen(clips, path)]


def chosen(clips: dict[str, list[Question]], path: str) -> list:
    """A test clip in the player, and the questions about it, with their true answers."""
    import gradio as gr

    if not Path(path).is_file():
        raise gr.Error(f"{path}: not there any more; choose another clip")
    asked = [(f"{row.text} (true answer: {row.answer})", row.text) for row in clips[path]]
    return [path, gr.Dropdown(asked, value=clips[path][0].text)]


def own_clip() -> list:
    """A clip of one's own: no test clip, and no questions that are known."""
    import gradio as gr

    return [None, gr.Dropdown([], value="")]


def asked(answers: Answers, video: str | None, question: str | None, *settings: float) -> tuple:
    """The answer, all answers with their probabilities, and what was sent."""
    import gradio as gr

    if not video or not question:
        raise gr.Error("choose a clip and ask a question")
    try:
        found, sent = answers(video, question, *settings)
    except (ValueError, OSError) as error:  # a video that cannot be read
        raise gr.Error(" ".join(str(error).split())) from None
    named = {text or "(nothing)": p for text, p in found.items()}
    return next(iter(named)), named, sent


def serve(page: Any, data: str, **options: Any) -> Any:
    """Show the page in the browser until the program is stopped; `options` are Gradio's."""
    import gradio as gr

    return page.launch(
        allowed_paths=[data],  # of the test clips
        theme=gr.themes.Default(font=["sans-serif"], font_mono=["monospace"]),  # fetches no fonts
        **{"inbrowser": True, **options},
    )
