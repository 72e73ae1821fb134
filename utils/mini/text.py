"""The mini world, part 4: captions in VALOR's form and questions in MUSIC-AVQA's form.

Both state facts of the scene alone. The wording is this project's own; the placeholders are the
data set's seven kinds (`<Object>`, `<LR>`, `<LRer>`, `<FL>`, `<TH>`, `<LL>`, `<BA>`).
"""

import json

import numpy as np

from utils.mini.scenes import INSTRUMENTS, Performer, Scene

NUMBERS = ("zero", "one", "two", "three")
PLACE_PHRASES = {
    "hall": ("In a hall", "Inside a hall"),
    "park": ("In a park", "On the grass of a park"),
    "beach": ("On a beach", "By the sea on a beach"),
    "street": ("On a street", "Along a busy street"),
    "cave": ("In a cave", "Inside a dark cave"),
}
PITCH_WORDS = {"low": "deep", "medium": "mellow", "high": "shrill"}
ORDER_WORDS = ("first", "second", "third")
LEVEL_WORDS = ("loud", "moderate", "soft")


def spoken(performer: Performer) -> str:
    """A performer as a caption names it: `left acoustic guitar`, `off-stage bell`."""
    place = "off-stage" if performer.position == "off" else performer.position
    return f"{place} {performer.instrument.replace('_', ' ')}"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One caption: where, who stands where, who is silent, the order of entry, how loud, who takes
    a rest, and what the music and the air are like."""
    place = PLACE_PHRASES[scene.place][rng.integers(2)]
    seen = _listed([spoken(p) for p in scene.on_stage])
    sentences = [f"{place} under a {scene.banner} banner we see a {seen}."]
    sentences += [f"The {spoken(p)} stays silent." for p in scene.on_stage if not p.sounding]
    ranked = by_level(scene.sounding)
    for order, p in zip(ORDER_WORDS, scene.sounding, strict=False):
        level, rest = LEVEL_WORDS[ranked.index(p)], " and rests" if p.rests else ""
        sentences.append(f"The {spoken(p)} enters {order}, {level}{rest}.")
    pitch = PITCH_WORDS[scene.pitch]
    sentences.append(f"The music is {scene.tempo} and {pitch}, with {scene.ambience} around.")
    return " ".join(sentences)


def by_level(performers: list[Performer]) -> list[Performer]:
    return sorted(performers, key=lambda p: -p.level)


def questions(scene: Scene, rng: np.random.Generator) -> list[dict]:
    """Every question that the scene can answer, one draw of its placeholders each.

    Rows have MUSIC-AVQA's `type`, `question_content`, `templ_values` and `anser` (sic). A yes/no
    question is drawn so that both answers are as likely wherever the scene allows both.

    One long list on purpose: a line a question, in the order in which the seed's numbers are drawn,
    which decides what world a seed gives.
    """
    rows: list[dict] = []
    on, off, heard = scene.on_stage, scene.off_stage, scene.sounding
    playing = [p for p in on if p.sounding]  # seen and heard
    silent = [p for p in on if not p.sounding]
    shown = [p.instrument for p in on]
    sounds = [p.instrument for p in heard]

    def ask(content: str, values: list[str], answer: str | int | bool) -> None:
        """A question of the `kind` at hand; its answer may be a number or whether it is so."""
        if isinstance(answer, bool):
            answer = "yes" if answer else "no"
        elif isinstance(answer, int):
            answer = NUMBERS[answer]
        rows.append(
            {
                "type": json.dumps(kind),
                "question_content": content,
                "templ_values": json.dumps(values),
                "anser": answer,
            }
        )

    def pick(items):
        return items[rng.integers(len(items))]

    def pair(performers: list[Performer]) -> list[Performer]:
        return [performers[i] for i in rng.permutation(len(performers))[:2]]

    def either_way(ranked: list[Performer]) -> list[Performer]:
        """The loudest and another one, in this order or the other."""
        order = 1 if rng.random() < 0.5 else -1
        return [ranked[0], pick(ranked[1:])][::order]

    kind = ("Audio", "Counting")
    ask("How many different instruments can you hear?", [], len(heard))
    target = pick(sounds if rng.random() < 0.5 else sorted(set(INSTRUMENTS) - set(sounds)))
    ask("Can you hear the <Object>?", [target], target in sounds)

    kind = ("Visual", "Counting")
    ask("How many players are on the stage?", [], len(on))
    target = pick(shown if rng.random() < 0.5 else sorted(set(INSTRUMENTS) - set(shown)))
    ask("Do you see the <Object>?", [target], target in shown)

    kind = ("Visual", "Location")
    ask("In what kind of place do they play?", [], scene.place)
    target = pick(on)
    ask("On which side is the <Object>?", [target.instrument], target.position)
    target = pick(on)
    ask("What does the <LR> player hold?", [target.position], target.instrument)
    if len(on) > 1:
        end, word = pick([(on[0], "leftest"), (on[-1], "rightest")])
        ask("Name the <LRer> instrument.", [word], end.instrument)

    kind = ("Audio-Visual", "Existential")
    ask("Is every sound made by somebody on the stage?", [], off is None)
    target = pick(silent if silent and rng.random() < 0.6 else on)
    ask("Does the <Object> on the stage make a sound?", [target.instrument], target.sounding)

    kind = ("Audio-Visual", "Counting")
    ask("How many players on the stage make a sound?", [], len(playing))
    ask("How many players never play?", [], len(on) - len(playing))

    if len(heard) > 1:
        kind = ("Audio", "Comparative")
        a, b = either_way(by_level(heard))
        both = [a.instrument, b.instrument]
        ask("Does the <Object> sound louder than the <Object>?", both, a.level > b.level)
        a, b = pair(heard)
        both = [a.instrument, b.instrument]
        ask("Does the <Object> start before the <Object>?", both, a.start < b.start)

    if len(playing) > 1:
        ranked, ordered = by_level(playing), sorted(playing, key=lambda p: p.start)
        kind = ("Audio-Visual", "Location")
        end, word = pick([(ranked[0], "loudest"), (ranked[-1], "softest")])
        ask("On which side is the <LL> player?", [word], end.position)
        end, word = pick([(ordered[0], "first"), (ordered[-1], "last")])
        own, others = end.position, [p.position for p in playing if p != end]
        side = own if rng.random() < 0.5 else pick(others)
        ask("Does the <FL> sound to enter come from the <LR>?", [word, side], side == own)

        kind = ("Audio-Visual", "Comparative")
        a, b = either_way(ranked)
        both = [a.position, b.position]
        ask("Does the <LR> player drown out the <LR> player?", both, a.level > b.level)
        a, b = pair(playing)
        both = [a.position, b.position]
        ask("Does the <LR> player enter earlier than the <LR> player?", both, a.start < b.start)

        kind = ("Audio-Visual", "Temporal")
        k = rng.integers(len(ordered))
        ask("Which instrument on the stage enters <TH>?", [ORDER_WORDS[k]], ordered[k].instrument)
        end, word = pick([(ordered[0], "first"), (ordered[-1], "last")])
        ask("Where is the player that enters <FL>?", [word], end.position)
        if len(playing) == 2:
            a, b = ordered if rng.random() < 0.5 else ordered[::-1]
            values = ["after" if b.start > a.start else "before", a.instrument]
            ask("Which instrument on the stage enters <BA> the <Object>?", values, b.instrument)

        resting = [p for p in playing if p.rests]
        if len(resting) == 1:
            ask("Which instrument on the stage takes a rest?", [], resting[0].instrument)
        target = pick(playing)
        ask("Does the <LR> player take a rest?", [target.position], target.rests)

    if len(playing) == 2:
        kind = ("Audio-Visual", "Location")
        a, b = pair(playing)
        ask("Which player joins the <Object> on the stage?", [a.instrument], b.instrument)
    return rows
