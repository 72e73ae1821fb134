"""What the mini language model is asked while it learns to read, and in which order.

A small model that is asked everything at once learns hard questions late or never. Here a few kinds
of questions come at a time, simple ones first; and where a question names a player, the model is
taught what to think of there, of which the answer is made.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice

import numpy as np

from modules.foundation_model import PROMPT
from utils.data.datasets import fill_template
from utils.mini.scenes import Scene
from utils.mini.text import LEVEL_WORDS, ORDER_WORDS, by_level, questions, spoken

FRONT = 4  # templates that are learnt at a time
REHEARSED = 0.05  # how often one comes that has been or will be learnt, beside 1 of these
MEMORY = 0.02  # what one answer weighs in the running share of wrong ones

# In which order templates are learnt, from what one look at a caption answers to what takes
# several; all others come last. A few at a time are learnt in some hundred steps, all at once not
# in a thousand.
ORDER = (
    "On which side is the <Object>?",
    "What does the <LR> player hold?",
    "Do you see the <Object>?",
    "How loud is the <Object>?",
    "When does the <Object> enter?",
    "How loud is the <LR> player?",
    "When does the <LR> player enter?",
    "Who enters <TH>?",
    "Who is <level>?",
    "Does the <Object> rest?",
    "Name the <LRer> instrument.",
    "Can you hear the <Object>?",
    "Does the <Object> on the stage make a sound?",
    "Does the <Object> sound louder than the <Object>?",
    "Does the <Object> start before the <Object>?",
    "Does the <LR> player take a rest?",
    "Does the <LR> player drown out the <LR> player?",
    "Does the <LR> player enter earlier than the <LR> player?",
    "Which instrument on the stage enters <TH>?",
    "Where is the player that enters <FL>?",
    "On which side is the <LL> player?",
    "Does the <FL> sound to enter come from the <LR>?",
)


# Questions of several steps: what to think of the player that a word names, at this word and those
# that follow it. Picture and sound are joined by the instrument.
THOUGHTS = {
    "Does the <Object> sound louder than the <Object>?": ("level",),
    "Does the <Object> start before the <Object>?": ("turn",),
    "Does the <LR> player drown out the <LR> player?": ("level",),
    "Does the <LR> player enter earlier than the <LR> player?": ("turn",),
    "On which side is the <LL> player?": ("level", "instrument"),
    "Does the <FL> sound to enter come from the <LR>?": ("turn", "instrument"),
    "Where is the player that enters <FL>?": ("turn", "instrument"),
    "Does the <LR> player take a rest?": ("instrument",),
}


class Progress:
    """Of each template the share of wrong answers of late, and so which of them come next."""

    def __init__(self, learnt: float, patience: int, weak: bool = False):
        """The next template comes when fewer answers than the share `learnt` are wrong, or after
        `patience` answers: noise keeps some from ever being learnt. With `weak` all come at once,
        those that are answered wrongly more often."""
        self.learnt, self.patience, self.weak = learnt, patience, weak
        self.wrong: dict[str, float] = defaultdict(lambda: 1.0)
        self.answers: Counter[str] = Counter()

    def shares(self) -> dict[str, float]:
        """How often templates are asked: the first few in order that are not learnt come often."""
        if self.weak:
            return {t: max(wrong, REHEARSED) for t, wrong in self.wrong.items()}
        ahead = (
            template
            for template in dict.fromkeys([*ORDER, *self.wrong])
            if self.wrong[template] > self.learnt and self.answers[template] < self.patience
        )
        return dict.fromkeys(islice(ahead, FRONT), 1.0)

    def mark(self, answers: Iterable[tuple[str, bool]]) -> None:
        """Keep account of answers: template, and whether it was right."""
        for template, right in answers:
            self.answers[template] += 1
            self.wrong[template] += MEMORY * ((not right) - self.wrong[template])


def asked(
    scene: Scene, rng: np.random.Generator, count: int, shares: dict[str, float] | None = None
) -> list[tuple[str, str, str, str, tuple[str, ...]]]:
    """Some of the scene's questions in the form that stage 2 uses: prompt, answer, type, template
    and its values.

    Args:
        shares: how often templates come; None asks the data set's own, and all alike.
    """
    draws = 1 if shares is None else 3  # each of its placeholders once
    found = [
        (
            fill_template(row["question_content"], json.loads(row["templ_values"])),
            row["anser"],
            " ".join(json.loads(row["type"])),
            row["question_content"],
            tuple(json.loads(row["templ_values"])),
        )
        for _ in range(draws)
        for row in questions(scene, rng)
    ]
    share = np.ones(len(found))
    if shares is not None:
        found += [
            (asks, says, "step", template, (about,))
            for template, about, asks, says in steps_of_thought(scene)
        ]
        found = list(dict.fromkeys(found))
        share = np.array([shares.get(template, REHEARSED) for *_, template, _ in found])
    # Drawn without replacement by their shares (Efraimidis and Spirakis, 2006).
    order = np.argsort(rng.exponential(size=len(found)) / share)
    return [
        (PROMPT.format(question=asks), " " + says, *rest)
        for asks, says, *rest in (found[i] for i in order[:count])
    ]


def steps_of_thought(scene: Scene) -> list[tuple[str, str, str, str]]:
    """Questions of one step each, as template, value, question and answer: who has which place,
    level and turn. Those of the data set join two or three such steps."""
    ranked, found = by_level(scene.sounding), []
    for order, p in zip(ORDER_WORDS, scene.sounding, strict=False):
        level, name = LEVEL_WORDS[ranked.index(p)], p.instrument
        side = "off-stage" if p.position == "off" else p.position
        for template, about, answer in (
            ("How loud is the <LR> player?", side, level),
            ("How loud is the <Object>?", name, level),
            ("Who is <level>?", level, spoken(p)),
            ("When does the <LR> player enter?", side, order),
            ("When does the <Object> enter?", name, order),
            ("Who enters <TH>?", order, spoken(p)),
            ("Does the <Object> rest?", name, "yes" if p.rests else "no"),
        ):
            found.append((template, about, re.sub("<.*>", about, template), answer))
    return found


def thoughts(scene: Scene, template: str, value: str) -> list[str]:
    """What to think of where a question names a player, a word a token from there on: its level,
    turn or instrument; empty where nothing comes before the answer."""
    if template not in THOUGHTS:
        return []
    ranked, heard = by_level(scene.sounding), scene.sounding
    playing = {
        "first": [p for p in heard if p.position != "off"],
        "loudest": [p for p in ranked if p.position != "off"],
    }
    playing |= {"last": playing["first"][::-1], "softest": playing["loudest"][::-1]}
    if value in playing:
        who = playing[value][0]
    else:
        who = next(p for p in (*scene.on_stage, *heard) if value in (p.position, p.instrument))
    of = {"instrument": who.instrument.replace("_", " ")}
    if who in heard:
        of |= {"level": LEVEL_WORDS[ranked.index(who)], "turn": ORDER_WORDS[heard.index(who)]}
    return [of[what] for what in THOUGHTS[template] if what in of]
