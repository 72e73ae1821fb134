"""Pretraining of the mini language model: captions, and facts in bags, then questions about them.

`utils/mini/pretrain.py` runs it. A published language model has read of everything and needs few
steps to read tokens of picture and sound. A small one has to be shown what such tokens are: half of
what it reads are captions, half are bags of facts (utils/mini/facts.py), each token a sum of the
embeddings of words, pooled to some length and sent through noise as stage 2 does.
"""

import json
from collections import defaultdict
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from modules.foundation_model import IGNORED
from modules.token_compression import cells, window_bounds
from utils.mini.facts import (
    BANDS,
    COLUMNS,
    HEARD,
    ROWS,
    SEEN,
    SLICES,
    TUBELETS,
    heard_at_all,
    heard_by_patch,
    seen_at_all,
    seen_by_patch,
)
from utils.mini.lessons import Progress, asked, thoughts
from utils.mini.optimiser import Optimiser
from utils.mini.scenes import Scene
from utils.mini.text import caption

# Patch tokens of a bag, and how often: most teach to think, the short ones to do with little.
LENGTHS = {1: 0.08, 2: 0.08, 4: 0.14, 8: 0.15, 16: 0.25, 32: 0.15, 64: 0.15}
MEDIA_SNR, QUESTION_SNR = (-3.0, 25.0), (10.0, 30.0)  # dB, drawn between
# When the next questions come, from captions and from bags: below which share of wrong answers, and
# after how many in any case. Few bags count.
NEXT = ((0.08, 40_000), (0.15, 3_000))
BATCH, ASKED = 24, 8  # scenes a step, questions a scene
WRITTEN = 0.15  # what a word of a caption weighs beside one of an answer
# A type's share of right answers below which the model is not to be shipped.
CEILINGS = {"Comparative": 0.80, "": 0.90}


class Cycle(NamedTuple):
    """A part of the steps, in which the learning rate rises and falls once."""

    share: float  # of all steps
    lr: float  # peak
    bags: tuple[float, float]  # share of bags among what is read, at the beginning and at the end
    seed: int
    weak: bool = False  # ask all kinds of questions, by how often they are answered wrongly


CYCLES = (
    Cycle(8 / 15, 6e-3, (0.2, 0.8), 2),
    Cycle(2 / 15, 3e-3, (0.8, 0.8), 4),
    Cycle(5 / 15, 3e-3, (0.9, 0.9), 6, weak=True),
)


class Block(NamedTuple):
    """What stands after a prefix: a question with its answer, or a caption to be written."""

    ids: list[int]
    answer: int  # the last so many ids are to be predicted
    type: str
    template: str
    thoughts: tuple[tuple[int, int], ...] = ()  # what to think of at a place: place, id


def new_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A small Qwen2 with random weights, scaled so that it learns from the first step."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=384,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=0.08,  # about 1 / sqrt(hidden): attention has contrast from the start
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():  # a token must be heard beside what the layers add to it
        model.model.embed_tokens.weight.normal_(0, 1)
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.bias.normal_(0, 0.7)  # heads prefer some distance from the start
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.div_((2 * config.num_hidden_layers) ** 0.5)
    return model


def new_tokenizer(scenes: list[Scene], rng: np.random.Generator) -> Qwen2Tokenizer:
    """Byte-level BPE of captions, questions, answers and the words that stand for facts, in which
    each word becomes one token."""
    lines = []
    for scene in scenes:
        lines += [caption(scene, rng), *(q + a for q, a, *_ in asked(scene, rng, 40, {}))]
    lines += [" " + word for word in (*SEEN, *HEARD)]
    return Qwen2Tokenizer(vocab={}, merges=[]).train_new_from_iterator(lines, vocab_size=1024)


@cache
def pooling(kind: str, how: str, length: int) -> Tensor:
    """The weights with which patches are averaged, (length, patches), by the ways of
    modules/token_compression.py; patches in the order of the encoder's tokens."""
    if kind == "visual":
        places = np.array(list(product(range(TUBELETS), range(ROWS), range(COLUMNS))))
    else:  # AST counts frequency first
        places = np.array([(t, f) for f, t in product(range(BANDS), range(SLICES))])
    if how == "grid":
        weights = one_hot(torch.from_numpy(cells(places, length)), length).T.float()
    else:
        weights = torch.zeros(length, len(places))
        for i, (a, b) in enumerate(window_bounds(len(places), length)):
            if how == "uniform":
                a, b = (a + b - 1) // 2, (a + b - 1) // 2 + 1
            weights[i, a:b] = 1
    return weights / weights.sum(dim=1, keepdim=True)


class Reader:
    """Makes batches of prefixes and blocks for one language model.

    Args:
        seed: of the questions, lengths and noise.
    """

    def __init__(self, model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, seed: int):
        self.model, self.embedding = model, model.get_input_embeddings()
        self.end = tokenizer.eos_token_id
        self.rng, self.noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.ids = cache(lambda text: tokenizer(text)["input_ids"])

    def blocks(
        self, scene: Scene, count: int, write: bool, shares: dict[str, float] | None
    ) -> list[Block]:
        """Questions, and with `write` the caption before them."""
        found = []
        if write:
            ids = [*self.ids(caption(scene, self.rng)), self.end]
            found.append(Block(ids, len(ids), "caption", ""))
        for prompt, answer, kind, template, values in asked(scene, self.rng, count, shares):
            after = [*self.ids(answer), self.end]
            thought, end = [], 0
            for value in values:
                end = prompt.index(" " + value, end) + len(value) + 1
                place = len(self.ids(prompt[:end])) - 1
                words = thoughts(scene, template, value) or [answer.strip()]
                thought += [(place + i, self.ids(" " + w)[0]) for i, w in enumerate(words)]
            ids = self.ids(prompt) + after
            found.append(Block(ids, len(after), kind, template, tuple(thought)))
        return found

    def bag(self, scenes: list[Scene], lengths: tuple[int, int], how: str) -> Tensor:
        """Ideal media tokens of unit mean power, (batch, 1 + visual + 2 + audio, hidden)."""
        kinds = (("visual", seen_at_all, seen_by_patch, SEEN, 1, 1),)
        kinds += (("audio", heard_at_all, heard_by_patch, HEARD, 2, BANDS),)
        parts = []
        for (kind, at_all, by_patch, words, special, bands), length in zip(
            kinds, lengths, strict=True
        ):
            whole = np.stack([[at_all(s)] * special for s in scenes])
            patches = np.stack(
                [np.tile(by_patch(s).reshape(-1, len(words)), (bands, 1)) for s in scenes]
            )
            patches = pooling(kind, how, length) @ torch.from_numpy(patches).float()
            facts = torch.cat([torch.from_numpy(whole).float(), patches], dim=1)
            words = [torch.tensor(self.ids(" " + word)) for word in words]
            meant = torch.stack([self.embedding(ids).mean(dim=0) for ids in words])
            tokens = facts @ meant  # (batch, special + length, hidden)
            parts.append(tokens / tokens.square().mean(dim=(1, 2), keepdim=True).sqrt())
        return torch.cat(parts, dim=1)

    def noisy(self, tokens: Tensor, snr_db: tuple[float, float]) -> Tensor:
        """As received at an SNR that each row draws, through the MMSE factor."""
        low, high = snr_db
        draw = low + (high - low) * torch.rand(len(tokens), 1, 1, generator=self.noise)
        snr = 10 ** (draw / 10)
        noise = torch.randn(tokens.shape, generator=self.noise)
        return (tokens + noise / snr.sqrt()) * snr / (1 + snr)

    def batch(
        self,
        scenes: list[Scene],
        count: int,
        lengths: tuple[int, int] | None,
        how: str = "grid",
        shares: dict[str, float] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[list[Block]]]:
        """What the model reads.

        Args:
            count: questions a scene.
            lengths: of the bags' visual and audio tokens; None for captions.
            shares: how often templates are asked, to teach: then what to think of is a target too.

        Returns:
            embeddings (batch, tokens, hidden); block (batch, tokens), 0 in the prefix and -1 in
            padding; positions, targets and their weights, (batch, tokens); each scene's blocks.
        """
        all_blocks = [self.blocks(s, count, lengths is not None, shares) for s in scenes]
        padded = partial(pad_sequence, batch_first=True)
        after = [torch.tensor([i for b in blocks for i in b.ids]) for blocks in all_blocks]
        if lengths is None:
            prefixes = [torch.tensor(self.ids(caption(s, self.rng))) for s in scenes]
            ids = padded([torch.cat(x) for x in zip(prefixes, after, strict=True)])
            heads, tokens = [len(p) for p in prefixes], self.embedding(ids)
        else:
            bag = self.noisy(self.bag(scenes, lengths, how), MEDIA_SNR)
            heads = [bag.shape[1]] * len(scenes)
            ids = padded(after)
            tokens = torch.cat([bag, self.noisy(self.embedding(ids), QUESTION_SNR)], dim=1)
        block, position, target = (torch.full(tokens.shape[:2], v) for v in (-1, 0, IGNORED))
        weight = torch.zeros(tokens.shape[:2])
        for row, (head, blocks) in enumerate(zip(heads, all_blocks, strict=True)):
            block[row, :head], position[row, :head] = 0, torch.arange(head)
            if lengths is None:  # the caption is written as well
                target[row, : head - 1] = ids[row, 1:head]
                weight[row, : head - 1] = WRITTEN
            at = head
            for number, part in enumerate(blocks, start=1):
                stop = at + len(part.ids)
                block[row, at:stop] = number
                position[row, at:stop] = head + torch.arange(len(part.ids))
                answer = torch.tensor(part.ids[-part.answer :])
                # A caption is the first block: the prefix's last token predicts its first word.
                first = stop - part.answer - 1
                target[row, first : stop - 1] = answer
                weight[row, first : stop - 1] = WRITTEN if part.type == "caption" else 1.0
                for place, what in part.thoughts if shares is not None else ():
                    target[row, at + place], weight[row, at + place] = what, 1.0
                at = stop
        return tokens, block, position, target, weight, all_blocks

    def mark(
        self, logits: Tensor, target: Tensor, block: Tensor, blocks: list[list[Block]]
    ) -> list[tuple[Block, bool]]:
        """Each question with whether its answer is right word for word."""
        wrong = ((logits.argmax(-1) != target) & (target != IGNORED)).numpy()  # (batch, tokens)
        marked = []
        for row, of_scene in enumerate(blocks):
            stop = int((block[row] == 0).sum())
            for one in of_scene:
                stop += len(one.ids)
                if one.template:
                    missed = wrong[row, stop - one.answer - 1 : stop - 1].any()
                    marked.append((one, not missed))
        return marked

    def logits(self, tokens: Tensor, block: Tensor, position: Tensor) -> Tensor:
        """(batch, tokens, vocabulary); a block sees the prefix and itself alone."""
        before = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        sees = (block[:, None] == 0) | (block[:, None] == block[:, :, None])
        mask = (sees & before)[:, None]  # (batch, 1, tokens, tokens)
        return self.model(
            inputs_embeds=tokens, attention_mask=mask, position_ids=position, use_cache=False
        ).logits


def weighted_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """nats a token."""
    loss = cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return (loss * weight.flatten()).sum() / weight.sum()


@torch.inference_mode()
def ceilings(reader: Reader, scenes: list[Scene], lengths: tuple[int, int] | None) -> dict:
    """The share of questions answered word for word, by type, from captions or from bags."""
    right = defaultdict(list)
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        tokens, block, position, target, _, blocks = reader.batch(part, 12, lengths)
        logits = reader.logits(tokens, block, position)
        for one, good in reader.mark(logits, target, block, blocks):
            right[one.type].append(good)
    return {kind: round(float(np.mean(v)), 3) for kind, v in sorted(right.items())}


def limits(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, scenes: list[Scene]
) -> dict[str, dict[str, float]]:
    """The ceilings with captions as clean text and with facts as bags of 64 and 64 tokens."""
    model.eval()
    reader = Reader(model, tokenizer, seed=5)
    found = {
        "caption": ceilings(reader, scenes, None),
        "facts": ceilings(reader, scenes, (64, 64)),
    }
    model.train()
    return found


def too_low(found: dict[str, float]) -> list[str]:
    """The types whose ceiling is too low to ship."""
    return [
        f"{kind} {share:.1%}"
        for kind, share in found.items()
        if share < next(least for word, least in CEILINGS.items() if kind.endswith(word))
    ]


def pretrain_qwen2(clips: dict[str, Scene], steps: int, out: Path) -> dict:
    """Train the tokenizer and the language model; returns its ceilings, and which are too low."""
    rng, scenes = np.random.default_rng(1), list(clips.values())
    held, scenes = scenes[-240:], scenes[:-240]
    tokenizer = new_tokenizer(scenes[:1000], rng)
    model = new_model(tokenizer).train()
    for cycle in CYCLES:
        teach(model, tokenizer, scenes, held[:96], cycle, round(steps * cycle.share), rng)
        rng = np.random.default_rng(3)

    found = limits(model, tokenizer, held)
    model.save_pretrained(out / "qwen2")
    tokenizer.save_pretrained(out / "qwen2")
    (out / "qwen2" / "ceilings.json").write_text(json.dumps(found, indent=1) + "\n")
    low = {k: too_low(v) for k, v in found.items()}
    return found | {"too low to ship": low}


def teach(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    drawn: list[Scene],
    held: list[Scene],
    cycle: Cycle,
    steps: int,
    rng: np.random.Generator,
) -> None:
    """One cycle of the learning rate, over scenes drawn from `drawn`; `held` are looked at on the
    way."""
    reader, of_captions, of_bags = (
        Reader(model, tokenizer, cycle.seed),
        *(Progress(*n, cycle.weak) for n in NEXT),
    )
    optimiser = Optimiser(model, model.model.layers, cycle.lr, steps, decay=0.01)
    bar = tqdm(range(steps), "Qwen2", mininterval=10)
    for step in bar:
        lengths, progress = None, of_captions
        if rng.random() < np.interp(step, (0, steps), cycle.bags):
            lengths = tuple(rng.choice(list(LENGTHS), size=2, p=list(LENGTHS.values())).tolist())
            progress = of_bags
        how = str(rng.choice(["grid", "grid", "sliding_window", "uniform"]))
        scenes = [drawn[i] for i in rng.integers(len(drawn), size=BATCH)]
        tokens, block, position, target, weight, blocks = reader.batch(
            scenes, ASKED, lengths, how, progress.shares()
        )
        logits = reader.logits(tokens, block, position)
        optimiser.step(weighted_loss(logits, target, weight))
        # Fewer tokens, or windows across rows, cannot tell all.
        if lengths is None or (how == "grid" and min(lengths) >= 16):
            marked = reader.mark(logits, target, block, blocks)
            progress.mark((one.template, right) for one, right in marked)
        if step % 250 == 249:
            bar.write(f"after {step + 1} steps: " + json.dumps(limits(model, tokenizer, held)))
            bar.write(f"learning {[*of_captions.shares()]} and {[*of_bags.shares()]}")
