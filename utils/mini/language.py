"""Pretraining of the mini language model: captions, then questions with their answers.

`utils/mini/pretrain.py` runs it, on text alone, in the very form of prompt that stage 2 uses.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from modules.foundation_model import PROMPT
from utils.data.datasets import fill_template
from utils.mini.scenes import Scene
from utils.mini.text import caption, questions


def text_of(scene: Scene, rng: np.random.Generator, ask: int) -> tuple[str, list[tuple[str, str]]]:
    """A caption and `ask` question-answer pairs, in the very form that stage 2 uses."""
    found, pairs = questions(scene, rng), []
    for row in (found[i] for i in rng.permutation(len(found))[:ask]):
        question = fill_template(row["question_content"], json.loads(row["templ_values"]))
        pairs.append((PROMPT.format(question=question), " " + row["anser"]))
    return caption(scene, rng), pairs


def _first_answer_tokens(weight: Tensor) -> Tensor:
    """(batch, tokens - 1), True where the first token of an answer is predicted."""
    answer = weight > 1
    return answer[:, 1:] & ~answer[:, :-1]


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
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.div_((2 * config.num_hidden_layers) ** 0.5)
    return model


def pretrain_qwen2(clips: dict[str, Scene], steps: int, out: Path, ask: int = 6) -> dict:
    """Train the tokenizer and the language model: caption, then questions with their answers."""
    rng = np.random.default_rng(1)
    drawn = list(clips.values())
    corpus = [text_of(s, rng, ask) for s in drawn[:3000]]
    lines = [c for c, _ in corpus] + [q + a for _, pairs in corpus for q, a in pairs]
    tokenizer = Qwen2Tokenizer(vocab={}, merges=[]).train_new_from_iterator(lines, vocab_size=512)
    model = new_model(tokenizer).train()
    end = tokenizer.eos_token_id

    def encode(scene: Scene) -> tuple[list[int], list[float]]:
        head, pairs = text_of(scene, rng, ask)
        ids = tokenizer(head)["input_ids"]
        weight = [1.0] * len(ids)
        for question, answer in pairs:
            q, a = tokenizer(question)["input_ids"], tokenizer(answer)["input_ids"] + [end]
            ids, weight = ids + q + a, weight + [0.2] * len(q) + [4.0] * len(a)
        return ids, weight

    def batch_of(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        ids, weights = zip(*([torch.tensor(x) for x in encode(s)] for s in scenes), strict=True)
        padded = partial(pad_sequence, batch_first=True)
        return padded(ids, padding_value=end), padded(weights)

    held, drawn = drawn[-256:], drawn[:-256]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    bar, smooth = tqdm(range(steps), "Qwen2"), 0.0
    for step in bar:
        ids, weight = batch_of([drawn[i] for i in rng.integers(len(drawn), size=24)])
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        flat = weight[:, 1:].flatten()
        loss = (loss * flat).sum() / flat.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            right = (logits.argmax(-1) == ids[:, 1:])[_first_answer_tokens(weight)]
            smooth += 0.3 * (right.float().mean().item() - smooth)
            bar.set_postfix(loss=f"{loss.item():.3f}", answers=f"{smooth:.3f}")

    model.eval()
    ids, weight = batch_of(held)
    with torch.inference_mode():
        guess = model(input_ids=ids).logits[:, :-1].argmax(-1)
    right = (guess == ids[:, 1:])[_first_answer_tokens(weight)].float().mean().item()
    model.save_pretrained(out / "qwen2")
    tokenizer.save_pretrained(out / "qwen2")
    return {"first_answer_token": round(right, 3)}
