"""The foundation model at the base station: any causal language model of transformers (Qwen2.5 in
the paper), read and tuned through its embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from modules.losses import ratio

PROMPT_END = " Answer:"
PROMPT = "Question: {question}" + PROMPT_END
IGNORED = -100  # a target that costs nothing
ALL_LINEAR = "all-linear"  # peft's name for every linear layer but the vocabulary head


@dataclass
class Received:
    """What the base station restored of clips and the questions about them; padding may stand
    anywhere."""

    media: Tensor  # (clips, media tokens, hidden), visual tokens before audio tokens
    media_mask: Tensor  # (clips, media tokens), True at real tokens
    question: Tensor  # (questions, question tokens, hidden)
    question_mask: Tensor  # (questions, question tokens), True at real tokens
    clip: Tensor  # (questions,), the row of `media` that each question is about


class FoundationModel(nn.Module):
    """A causal language model that reads [visual, audio, question] tokens and writes the answer.

    The base weights stay frozen; `add_lora` adds the low-rank updates that stage 2 trains.

    Args:
        language_model: the base model.
        start: ids of what its texts begin with, one token in Llama and Gemma and none in Qwen2.5;
            it stands once, in front of the media.
    """

    def __init__(self, language_model: nn.Module, start: Sequence[int] = ()):
        super().__init__()
        self.register_buffer("start", torch.tensor(start, dtype=torch.long), persistent=False)
        self.language_model = language_model.requires_grad_(False)
        self.hidden = language_model.config.hidden_size

    def add_lora(
        self, rank: int, alpha: float, dropout: float, targets: Sequence[str] = ()
    ) -> None:
        """Wrap the layers named in `targets` by LoRA (Hu et al., 2021); rank 0 adds none.

        Args:
            targets: names of layers, or `all-linear` alone; empty for those that peft has for the
                model's family, which are mostly its query and value projections.

        Raises:
            ValueError: in one line, for a name that no layer has.
        """
        if not rank:
            return
        model = self.language_model
        layers = dict(model.named_modules())
        linear = {n: type(x) for n, x in layers.items() if isinstance(x, (nn.Linear, Conv1D))}
        if not targets:
            targets = LORA_TARGETS.get(model.config.model_type, ["q_proj", "v_proj"])
        for target in targets if list(targets) != [ALL_LINEAR] else ():
            if not any(f".{name}".endswith(f".{target}") for name in layers):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
                raise ValueError(
                    f"lora_targets {target}: no layer of {type(model).__name__} has this name; "
                    f"choose from {known}, or {ALL_LINEAR} alone"
                )
        lora = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=ALL_LINEAR if ALL_LINEAR in targets else list(targets),
            fan_in_fan_out=Conv1D in linear.values(),  # GPT-2's weights lie the other way round
            task_type="CAUSAL_LM",
        )
        self.language_model = get_peft_model(model, lora)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (batch, tokens) to embeddings (batch, tokens, hidden)."""
        return self.language_model.get_input_embeddings()(ids)

    def words(self) -> Tensor:
        """The embeddings of all words, (vocabulary, hidden), as `embed` gives them: the model's own
        table, no copy but in families that scale it before they read it, as Gemma does."""
        table = self.language_model.get_input_embeddings()
        scale = getattr(table, "embed_scale", None)  # a number without dimensions
        return table.weight if scale is None else table.weight * scale.to(table.weight.dtype)

    def embedding_rms(self) -> Tensor:
        """Root mean square of an embedding entry, about 1e-2 in Qwen2.5, a number."""
        return self.words().float().square().mean().sqrt()

    def begun(self, received: Received) -> Received:
        """What was restored, behind what texts begin with."""
        if not len(self.start):
            return received
        media = received.media
        start = self.embed(self.start).to(media.dtype).expand(len(media), -1, -1)
        seen = received.media_mask.new_ones(start.shape[:2])
        return replace(
            received,
            media=torch.cat([start, media], dim=1),
            media_mask=torch.cat([seen, received.media_mask], dim=1),
        )

    def scores(self, states: Tensor) -> Tensor:
        """Logits over the vocabulary, (..., vocabulary), of last hidden states (..., hidden)."""
        logits = self.language_model.get_output_embeddings()(states)
        cap = getattr(self.language_model.config, "final_logit_softcapping", None)  # of Gemma 2
        return cap * torch.tanh(logits / cap) if cap else logits

    @property
    def decoder(self) -> nn.Module:
        """The language model without its vocabulary head."""
        return self.language_model.get_decoder()

    def save_memory(self) -> None:
        """Keep no activations inside a layer: the backward pass computes them again."""
        self.language_model.activation_checkpointing_enable({"use_reentrant": False})

    def compile(self) -> None:
        """Compile the decoder's layers by torch.compile, one after the other as they are alike."""
        for part in self.decoder.children():
            for layer in part if isinstance(part, nn.ModuleList) else ():
                layer.compile(dynamic=True)

    def hidden_states(
        self, embeddings: Tensor, sees: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """The decoder's last hidden states, (batch, tokens, hidden); no vocabulary head.

        Args:
            embeddings: (batch, tokens, hidden).
            sees: (batch, tokens, cached + tokens), True where a token sees another or itself; its
                position is the number of others that it sees. Without it attention is causal and
                sees every earlier position, so padding must come last.
            cache: keys and values of tokens before these, which are added to it.
        """
        return self.decoder(
            inputs_embeds=embeddings,
            attention_mask=attention_masks(self.decoder.config, sees, embeddings.dtype),
            position_ids=None if sees is None else sees.sum(dim=2) - 1,
            cache=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def answer_loss(
        self, received: Received, answer_ids: Tensor, answer_mask: Tensor, text_tokens: int
    ) -> Tensor:
        """Cross-entropy of the answers and their end-of-text tokens, in nats a token, over the
        batch of all processes.

        The questions of a clip share its media in one sequence, [media, question, answer, question,
        answer, ...]. A question and its answer see the media and themselves, and their positions go
        on from the media's, so each answer costs what it costs in a sequence of its own. (Packing
        without contamination: Krell et al., 2021, arXiv 2107.02027.)

        Args:
            answer_ids: (questions, answer tokens), the end-of-text token last, padded on the right.
            answer_mask: (questions, answer tokens), True at real tokens.
            text_tokens: of questions and answers together, at the clip that has most.

        Logits are computed at the answers' positions and nowhere else.
        """
        logits = self.answer_logits(received, answer_ids, answer_mask, text_tokens)
        # Padding of the answers is ignored, not cut out: its number is known to the device alone.
        target = answer_ids.masked_fill(~answer_mask, IGNORED)
        loss = cross_entropy(
            logits.flatten(0, 1).float(), target.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return ratio(loss, answer_mask.sum())

    def would_write(
        self, received: Received, answer_ids: Tensor, answer_mask: Tensor, text_tokens: int
    ) -> Tensor:
        """Whether `generate` would write exactly these answers, (questions,): each of their tokens
        is the most likely one behind those before it. One pass tells, where writing takes one for
        each token. Arguments as for `answer_loss`."""
        logits = self.answer_logits(received, answer_ids, answer_mask, text_tokens)
        return ((logits.argmax(dim=-1) == answer_ids) | ~answer_mask).all(dim=1)

    def answer_logits(
        self, received: Received, answer_ids: Tensor, answer_mask: Tensor, text_tokens: int
    ) -> Tensor:
        """Of each answer's tokens, (questions, answer tokens, vocabulary); see `answer_loss`."""
        answer, received = self.embed(answer_ids), self.begun(received)
        tokens, block, place = pack(received, answer, answer_mask, text_tokens)
        packed = len(received.clip) > len(received.media)
        states = self.hidden_states(tokens, visible(block) if packed else None)
        # An answer's token is predicted one position earlier.
        states = states.flatten(0, 1)[place[:, received.question.shape[1] :] - 1]
        return self.scores(states)

    @torch.inference_mode()
    def generate(self, received: Received, end_id: int, max_new_tokens: int = 8) -> Tensor:
        """Answer ids by greedy decoding over the whole vocabulary, (questions, new tokens); rows
        that ended early are filled with `end_id`.

        The media of a clip are read once, and each of its questions goes on from their keys and
        values. An answer does not depend on the questions beside it.
        """
        dtype, clip, cache = self.language_model.dtype, received.clip, DynamicCache()
        received = self.begun(received)
        media, seen = move_padding(received.media, received.media_mask, to_front=False)
        self.hidden_states(media.to(dtype), cache=cache)
        cache.batch_select_indices(clip)  # now a row a question
        # Padding of questions goes to the front, so that the next token of each comes last.
        tokens, real = move_padding(received.question, received.question_mask, to_front=True)
        real = torch.cat([seen[clip], real], dim=1)  # (questions, cached + question tokens)
        said, ended = [], torch.zeros_like(clip, dtype=torch.bool)
        while len(said) < max_new_tokens and not ended.all():
            new = tokens.shape[1]
            sees = real[:, None].expand(-1, new, -1).tril(real.shape[1] - new)
            states = self.hidden_states(tokens.to(dtype), sees, cache)
            scores = self.scores(states[:, -1])  # (questions, vocabulary)
            said.append(scores.argmax(dim=1).masked_fill(ended, end_id))
            ended = ended | (said[-1] == end_id)
            tokens, real = self.embed(said[-1])[:, None], pad(real, (0, 1), value=True)
        return torch.stack(said, dim=1)

    @torch.inference_mode()
    def alternatives(
        self, received: Received, end_id: int, max_new_tokens: int = 8, count: int = 5
    ) -> tuple[Tensor, Tensor]:
        """What may be answered to one question: the `count` likeliest first tokens, each carried on
        by greedy decoding. The first of these answers is the one that `generate` writes.

        Returns:
            ids: (count, new tokens), filled with `end_id` where an answer ended early.
            probability: (count,), of each answer with its end among all that could be written.
        """
        asked = received.question_mask.sum()
        ids = received.clip.new_full((1, 1), end_id)  # any token: only what precedes it is read
        logits = self.answer_logits(received, ids, ids == end_id, asked + 1)
        first = logits[0, 0].topk(count).indices[:, None]  # (count, 1)
        question = received.question.expand(count, -1, -1)
        mask, clip = received.question_mask.expand(count, -1), received.clip.expand(count)
        received = replace(received, question=question, question_mask=mask, clip=clip)
        question = torch.cat([question, self.embed(first)], dim=1)
        begun = replace(received, question=question, question_mask=pad(mask, (0, 1), value=True))
        rest = self.generate(begun, end_id, max_new_tokens)
        ids = torch.cat([first, rest], dim=1)[:, :max_new_tokens]
        ended = (ids == end_id).cumsum(dim=1)
        real = (ended == 0) | ((ended == 1) & (ids == end_id))  # (count, new tokens)
        ids = ids.masked_fill(~real, end_id)
        logits = self.answer_logits(received, ids, real, count * asked + real.sum())
        each = logits.float().log_softmax(dim=2).gather(2, ids[..., None])[..., 0]
        return ids, each.masked_fill(~real, 0).sum(dim=1).exp()


@torch.inference_mode()
def misread(model: FoundationModel) -> float:
    """By what share of their size the scores of two answers that share a sequence differ from what
    the library computes of each in a row by itself. It is rounding where attention is causal and
    takes the masks and positions that it is given, and the scores are those of `scores`."""
    ids = torch.arange(1, 13, device=model.language_model.device)
    media, question, answer = ids[None, :4], ids[4:8].view(2, 2), ids[8:].view(2, 2)
    real, media_tokens = torch.ones_like(answer, dtype=torch.bool), model.embed(media)
    received = Received(
        media=media_tokens,
        media_mask=torch.ones_like(media, dtype=torch.bool),
        question=model.embed(question),
        question_mask=real,
        clip=torch.zeros_like(answer[:, 0]),
    )
    found = model.answer_logits(received, answer, real, text_tokens=8)
    texts = torch.cat([received.question, model.embed(answer)], dim=1)
    rows = torch.cat([media_tokens.expand(2, -1, -1), texts], dim=1)
    wanted = model.language_model(inputs_embeds=rows).logits[:, -3:-1]
    return ((found - wanted).float().norm() / wanted.float().norm()).item()


def attention_masks(
    config: PreTrainedConfig, sees: Tensor | None, dtype: torch.dtype
) -> Tensor | dict[str, Tensor | None] | None:
    """What a decoder of this configuration takes as `attention_mask`, by kind of layer where it has
    kinds: added to the scores, (batch, 1, tokens, cached + tokens), for `sees` as `hidden_states`
    has it. A layer with a sliding window sees the last so many of these.

    Without a mask scaled-dot-product attention runs its causal kernel. Where it is given as None
    for each kind the library does not look into the tensors to make one, for which the host would
    have to wait.
    """
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if sees is None:
        return dict.fromkeys(kinds) if kinds and {*kinds} == {"full_attention"} else None
    # Positions count what is seen, so the distance to a token is the number of those seen after it.
    near = sees & (sees.flip(2).cumsum(dim=2).flip(2) <= window) if window else sees
    if not kinds:
        return added(near, dtype)
    return {"full_attention": added(sees, dtype), "sliding_attention": added(near, dtype)}


def added(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, (batch, 1, tokens, cached + tokens): 0 where a token sees
    another, and so little elsewhere that it does not."""
    unseen = torch.finfo(dtype).min
    return torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, unseen)[:, None]


def pack(
    received: Received, answer: Tensor, answer_mask: Tensor, text_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Each clip's media, the questions about it with their answers, and all padding behind them.

    Args:
        answer: (questions, answer tokens, hidden), in the dtype of what is returned.
        answer_mask, text_tokens: as for `answer_loss`.

    Returns:
        tokens: (clips, media tokens + text_tokens, hidden).
        block: (clips, media tokens + text_tokens), 0 at the media, else the question's number from
            1 on.
        place: (questions, question + answer tokens), where each of their tokens stands among
            `tokens.flatten(0, 1)`.
    """
    media, clip = received.media.to(answer.dtype), received.clip
    text = torch.cat([received.question.to(answer.dtype), answer], dim=1)
    real = torch.cat([received.question_mask, answer_mask], dim=1)
    width = media.shape[1] + text_tokens
    end = len(media) * width  # behind the last sequence: padding goes there and is cut off
    earlier = (clip[:, None] == clip).tril(-1)  # (questions, questions), of the same clip
    before = received.media_mask.sum(dim=1)[clip] + (earlier * real.sum(dim=1)).sum(dim=1)
    place = places(real, clip * width + before, end)
    of_media = places(received.media_mask, torch.arange(0, end, width, device=clip.device), end)
    number = torch.arange(1, len(clip) + 1, device=clip.device)[:, None].expand_as(place)
    at = torch.cat([of_media.flatten(), place.flatten()])
    values = torch.cat([media.flatten(0, 1), text.flatten(0, 1)])
    owner = torch.cat([torch.zeros_like(of_media).flatten(), number.flatten()])
    tokens, block = (
        each.new_zeros(end + 1, *each.shape[1:])
        .index_copy(0, at, each)[:-1]
        .unflatten(0, (-1, width))
        for each in (values, owner)
    )
    return tokens, block, place


def places(mask: Tensor, start: Tensor, end: int) -> Tensor:
    """Numbers (rows, tokens) that count each row's real tokens from `start` (rows,) on; `end` at
    padding."""
    return (start[:, None] + mask.cumsum(dim=1) - 1).masked_fill(~mask, end)


def visible(block: Tensor) -> Tensor:
    """(clips, tokens, tokens), True where a token sees another: itself, earlier ones of its block
    and the media, which are block 0 of (clips, tokens)."""
    seen = block[:, None]
    return ((seen == 0) | (seen == block[:, :, None])).tril()


def move_padding(tokens: Tensor, mask: Tensor, to_front: bool) -> tuple[Tensor, Tensor]:
    """Tokens (rows, tokens, hidden) and their mask (rows, tokens) with all padding at one end."""
    order = mask.long().argsort(dim=1, descending=not to_front, stable=True)
    return tokens.gather(1, order[..., None].expand_as(tokens)), mask.gather(1, order)
