"""The page of t-SNE points: what is written, and how it behaves in a browser."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers.limit import LIMIT
from utils.report.plots import COLOURS
from utils.report.tsne_page import INSTRUMENTS, instrument, place, write_page

CLIPS = 12
MODALITIES = ("visual", "audio", "text")
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1><!-- "
CAPTIONS = [HOSTILE, "line\u2028end __PLOTLY__", "纯音乐 <b>", *INSTRUMENTS[: CLIPS - 3]]


def arguments(seed=0):
    """Points on a grid, shuffled for each model, so that the mouse finds each of them."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(9), np.arange(4)), -1).reshape(-1, 2).astype(np.float32)
    points = {
        name: dict(zip(MODALITIES, np.split(generator.permutation(grid), 3), strict=True))
        for name in ("no alignment", "0", "tau <0.03>")
    }
    frames = list(generator.integers(0, 256, (CLIPS, 90, 160, 3), dtype=np.uint8))
    return points, list(CAPTIONS), frames, [f"clip-{i}" for i in range(CLIPS)]


def data_of(html):
    return json.loads(re.search(r'type="application/json">(.*?)</script>', html, re.DOTALL)[1])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    target = tmp_path_factory.mktemp("page") / "new" / "tsne.html"
    assert write_page(target, *arguments()) == str(target)
    return target


NAMED = {
    "A man plays the Piano.": "piano",
    "two drums, then a flute": "drum",
    "left acoustic_guitar and off-stage bell": "acoustic guitar",
    "a guitar": "acoustic guitar",
    "electric_bass and a guitar": "electric bass",
    "electric bass guitar": "electric bass",
    "an electric guitar beside a cello": "cello",
    "a bass guitar": "none named",
    "someone hits a conga": "congas",
    "CONGAS!": "congas",
    "a bassoon": "bassoon",
    "a pianist, a drummer, and bells": "bell",
    "the labelled cellophane": "none named",
    "": "none named",
}


def test_first_instrument_of_a_caption():
    """Only whole words count, in any case and number, and the first of several; each of the
    instruments is known by its own name, with a blank or an underscore."""
    own = {f"the {name} plays": name for name in INSTRUMENTS}
    own |= {f"the {name.replace(' ', '_')} plays": name for name in INSTRUMENTS}
    for caption, expected in (NAMED | own).items():
        assert instrument(caption) == expected, caption


def test_first_place_of_a_caption():
    """Likewise; what is off stage is no place."""
    for caption, expected in {
        "In a park under a blue banner": "park",
        "Along a busy street, an off-stage bell": "street",
        "The off-stage bell": "none named",
        "two men on a stage": "stage",
        "a parking lot": "none named",
        "": "none named",
    }.items():
        assert place(caption) == expected, caption


def test_page_needs_no_network(path):
    """Nothing that the page's own part loads lies outside the file."""
    html = path.read_text(encoding="utf-8")
    assert "Plotly" in html and len(html) > 1e6  # the library is inside
    own = re.sub(r"<script>.{100000,}?</script>", "", html, flags=re.DOTALL)
    assert len(own) < 300_000 and 'id="plot"' in own
    assert not re.search(r"https?://|\b(src|href)=\"(?!data:)", own)
    assert "default-src 'none'" in own


def test_captions_stay_text(path):
    """No caption can end the script element or open a comment, and each arrives unchanged."""
    html = path.read_text(encoding="utf-8")
    assert "window.hacked=1</script>" not in html and HOSTILE not in html
    written = re.search(r'type="application/json">(.*)\n', html)[1]
    assert written.count("<") == 1 and written.endswith("</script>") and "\u2028" not in written
    assert [clip["caption"] for clip in data_of(html)["clips"]] == CAPTIONS


def test_frames_are_small(path):
    """Each frame is a JPEG of at most 96 pixels in its own shape, so that the page stays small."""
    for clip in data_of(path.read_text(encoding="utf-8"))["clips"]:
        kind, _, content = clip["frame"].partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (96, 54)


def test_rare_instruments_share_a_colour(path):
    """Seven instruments have colours of their own; the rest and clips without one are grey."""
    data = data_of(path.read_text(encoding="utf-8"))
    colours = data["colours"]["instrument"]
    assert list(colours)[7:] == ["other", "none named"]
    assert tuple(colours.values())[:7] == COLOURS
    named = [clip["named"]["instrument"] for clip in data["clips"]]
    assert sum(name not in colours for name in named) == CLIPS - 3 - 7
    assert named.count("none named") == 3


def test_one_clip_is_enough(tmp_path):
    """A page of one clip, whose points all coincide, still has axes of some length."""
    points = {"model": dict.fromkeys(MODALITIES, np.zeros((1, 2)))}
    target = tmp_path / "one.html"
    write_page(target, points, ["a"], [np.zeros((8, 8, 3), np.uint8)], ["clip"])
    assert data_of(target.read_text(encoding="utf-8"))["ranges"] == [[-1, 1], [-1, 1]]


class Opened:
    """The page in a browser, with what it complained about and what it tried to load."""

    def __init__(self, page, path):
        self.page, self.complaints, self.requests = page, [], []
        page.on("console", lambda m: m.type in ("error", "warning") and self.log(m.text))
        page.on("pageerror", lambda error: self.log(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#plot .point")

    def log(self, text):
        self.complaints.append(text)

    def points(self):
        """What is drawn: the place, shape and colour of each point."""
        return self.page.eval_on_selector_all(
            "#plot .point",
            "all => all.map(e => [e.getAttribute('transform'), e.getAttribute('d'), e.style.fill])",
        )

    def places(self):
        return [place for place, _, _ in self.points()]

    def colours(self):
        return [colour for _, _, colour in self.points()]

    def lines(self):
        return self.page.locator("#plot .js-line").count()

    def hover(self, modality, clip):
        """Put the mouse on a point and wait until the panel shows its clip."""
        index = MODALITIES.index(modality) * CLIPS + clip
        box = self.page.locator("#plot .point").nth(index).bounding_box()
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.page.wait_for_function(
            "name => document.getElementById('name').textContent === name", arg=f"clip-{clip}"
        )
        self.page.wait_for_function("document.getElementById('frame').naturalWidth > 0")


@pytest.fixture
def opened(browser, path):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(LIMIT * 1000)  # ms
    opened = Opened(page, path)
    yield opened
    hacked = page.evaluate("typeof window.hacked")
    page.close()
    assert hacked == "undefined", "a caption was run as a script"
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()], "the page tried to load something"


def test_page_draws_all_points(opened):
    """Three points of three shapes and colours and two lines a clip, in a square scale."""
    points = opened.points()
    assert len(points) == 3 * CLIPS and opened.lines() == 2 * CLIPS
    assert len({shape for _, shape, _ in points}) == len(set(opened.colours())) == 3
    assert opened.page.locator("#legend li").all_inner_texts() == [
        "●visual", "▲audio", "■text (caption)",
    ]  # fmt: skip
    per_unit = opened.page.evaluate(
        "['xaxis', 'yaxis'].map(a => { const { _length, range } ="
        " document.getElementById('plot')._fullLayout[a]; return _length / (range[1] - range[0]) })"
    )
    assert per_unit[0] == pytest.approx(per_unit[1])


def test_no_button_sends_the_data_away(opened):
    """Plotly's own set of buttons has one that opens its server."""
    buttons = opened.page.locator("#plot .modebar-btn")
    titles = [buttons.nth(i).get_attribute("data-title") for i in range(buttons.count())]
    assert len(titles) == 4 and not any(re.search("share|cloud", t, re.I) for t in titles), titles


def test_another_model_moves_the_points(opened):
    """Models stand in the given order, even one that is called by a number."""
    options = opened.page.locator("#model option").all_inner_texts()
    assert options == ["no alignment", "0", "tau <0.03>"]
    axes = "JSON.stringify(document.getElementById('plot').layout.xaxis.range)"
    first, range_before = opened.places(), opened.page.evaluate(axes)
    for model in options[1:]:
        opened.page.get_by_label("Model").select_option(label=model)
        assert sum(a != b for a, b in zip(first, opened.places(), strict=True)) > CLIPS
        assert opened.page.evaluate(axes) == range_before
    opened.page.select_option("#model", label=options[0])
    assert opened.places() == first


def test_colour_by_instrument(opened):
    """The colours and the legend change; all three points of a clip have one colour."""
    before = opened.colours()
    opened.page.get_by_label("Colour").select_option("instrument")
    after = opened.colours()
    assert before != after
    assert after[:CLIPS] == after[CLIPS : 2 * CLIPS] == after[2 * CLIPS :]
    assert len(set(after)) == 9  # seven, other, none named
    assert opened.page.locator("#legend li").count() == 3 + 9
    opened.page.select_option("#colour", "modality")
    assert opened.colours() == before


def test_colour_by_place(opened):
    """No caption here names a place: one colour for all, and the legend says so."""
    opened.page.get_by_label("Colour").select_option("place")
    assert len(set(opened.colours())) == 1
    legend = opened.page.locator("#legend").inner_text()
    assert "first place in the caption" in legend and "none named" in legend


def nearest(xy, clip):
    """The clip whose caption is nearest to the point of `clip`, its own if several are."""
    far = [np.hypot(*(xy[0][clip] - text)) for text in xy[1]]
    return clip if far[clip] == min(far) else int(np.argmin(far))


@pytest.mark.parametrize("modality", ["visual", "audio"])
def test_the_nearest_caption_is_shown(opened, path, modality):
    """Beside the clip's own, with its clip; how often it is the clip's own stands below the plot;
    a caption has none."""
    model = data_of(path.read_text(encoding="utf-8"))["models"][0]
    points = {m: np.array(model[m]).T for m in MODALITIES}
    found = [nearest((points[modality], points["text"]), clip) for clip in range(CLIPS)]
    other = next(clip for clip in range(CLIPS) if found[clip] != clip)
    opened.hover(modality, other)
    shown = f"Nearest caption, of clip-{found[other]}: {CAPTIONS[found[other]]}"
    assert opened.page.locator("#nearest").text_content() == shown
    share = round(100 * sum(i == clip for i, clip in enumerate(found)) / CLIPS)
    assert f"{share} % of the {modality} points" in opened.page.locator("#share").inner_text()
    opened.hover("text", other)
    opened.page.locator("#nearest").wait_for(state="hidden")


def test_lines_can_be_hidden(opened):
    """Without its tick the lines go, those of the clip hovered over as well, and points stay."""
    opened.hover("text", 4)
    assert opened.lines() == 2 * CLIPS + 2
    box = opened.page.get_by_label("Lines from a clip")
    box.uncheck()
    assert opened.lines() == 0 and len(opened.points()) == 3 * CLIPS + 3
    box.check()
    assert opened.lines() == 2 * CLIPS + 2


@pytest.mark.parametrize("modality", MODALITIES)
def test_hovering_shows_the_clip(opened, modality):
    """The panel has the clip's caption and frame, and its three points are marked."""
    assert not opened.page.locator("#frame").is_visible()
    for clip in (7, 3):
        opened.hover(modality, clip)
        assert opened.page.locator("#caption").text_content() == CAPTIONS[clip]
        assert modality in opened.page.locator("#kind").text_content()
        assert opened.page.locator("#frame").is_visible()
        places = opened.places()
        own = [places[clip + i * CLIPS] for i in range(3)]
        assert places[3 * CLIPS :] == own and opened.lines() == 2 * CLIPS + 2
    opened.page.locator("#model").hover()  # left there, the mouse would find another point under it
    opened.page.select_option("#model", label="tau <0.03>")
    places = opened.places()  # the marks follow the clip to another model
    assert places[3 * CLIPS :] == [places[3 + i * CLIPS] for i in range(3)]


def test_hostile_caption_is_shown_not_run(opened):
    """Markup in a caption is read as text."""
    opened.hover("audio", 0)
    assert opened.page.locator("#caption").text_content() == HOSTILE
    assert opened.page.locator("#caption *").count() == 0
