"""The README's table of tensor shapes: `python -m benchmarks.shapes`.

Both presets' models are built on the meta device, where a forward pass costs nothing and needs no
weights, and a batch is led through both stages.
"""

import torch
from transformers import (
    ASTConfig,
    ASTModel,
    AutoConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    VivitConfig,
    VivitModel,
)

from modules.channel import Channel
from modules.foundation_model import FoundationModel
from modules.losses import masked_mean
from modules.token_receiver import TokenReceiver
from modules.token_transmitter import TokenTransmitter

# The published models' configurations, as far as they decide a shape. Layers are cut to one: a
# layer changes no shape.
PAPER = {
    "visual": VivitConfig(num_hidden_layers=1),
    "audio": ASTConfig(num_hidden_layers=1),
    "language": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=1,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}


def mini_configs(align) -> dict:
    """The shipped models' configurations."""
    return {
        "visual": AutoConfig.from_pretrained(align.visual_encoder),
        "audio": AutoConfig.from_pretrained(align.audio_encoder),
        "language": AutoConfig.from_pretrained(align.foundation_model),
    }


def trace(
    models: dict, align, avqa, question: int = 20, answer: int = 3
) -> list[tuple[str, tuple]]:
    """(what, shape) at every step of both stages, for one batch of each.

    Args:
        models: transformers configurations under `visual`, `audio` and `language`.
        align, avqa: the two stages' hyperparameters.
        question, answer: tokens of the longest question and answer in the batch.
    """
    with torch.device("meta"):
        vivit = VivitModel(models["visual"], add_pooling_layer=False)
        ast = ASTModel(models["audio"])
        foundation = FoundationModel(Qwen2ForCausalLM(models["language"]))
        hidden = foundation.hidden
        how = (align.compression,)
        img_tx = TokenTransmitter(vivit, 1, hidden, align.visual_tokens, *how)
        audio_tx = TokenTransmitter(ast, 2, hidden, align.audio_tokens, *how)
        receiver = TokenReceiver(hidden, align.receiver_width)
        channel = Channel("none")
        v, a = models["visual"], models["audio"]
        side = v.image_size if isinstance(v.image_size, int) else v.image_size[0]

        def media(batch: int, prefix: str) -> tuple[list, torch.Tensor, torch.Tensor]:
            frames = torch.empty(batch, v.num_frames, 3, side, side)
            sound = torch.empty(batch, a.max_length, a.num_mel_bins)
            seen, heard = img_tx.encode(frames).clone(), audio_tx.encode(sound).clone()
            rows = [
                ("frames", frames),
                ("ViViT tokens", vivit(frames).last_hidden_state),
                ("visual tokens, compressed (cached)", seen),
                ("visual tokens, projected and sent", img_tx(seen)),
                ("spectrogram", sound),
                ("AST tokens", ast(sound).last_hidden_state),
                ("audio tokens, compressed (cached)", heard),
                ("audio tokens, projected and sent", audio_tx(heard)),
            ]
            visual = receiver(channel(img_tx(seen), 10))
            audio = receiver(channel(audio_tx(heard), 10))
            return [(f"{prefix}{k}", t) for k, t in rows], visual, audio

        rows, visual, audio = media(align.batch, "1 · ")
        ids = torch.empty(align.batch, align.caption_tokens, dtype=torch.long)
        text = receiver(channel(foundation.embed(ids), 10))
        rows += [
            ("1 · visual tokens, received", visual),
            ("1 · audio tokens, received", audio),
            ("1 · caption, received (longest)", text),
            ("1 · visual feature", img_tx.features(visual)),
            ("1 · audio feature", audio_tx.features(audio)),
            ("1 · text feature", masked_mean(text, ids.bool())),
            ("1 · similarities", text[:, 0] @ text[:, 0].T),
        ]
        _, visual, audio = media(avqa.batch, "")
        both = torch.cat([visual, audio], dim=1)
        asked = foundation.embed(torch.empty(avqa.batch, question, dtype=torch.long))
        said = foundation.embed(torch.empty(avqa.batch, answer, dtype=torch.long))
        sequence = torch.cat([both, asked, said], dim=1)
        states = foundation.hidden_states(sequence)[:, -answer - 1 : -1]
        rows += [
            ("2 · media tokens, received", both),
            (f"2 · question, received ({question} tokens)", asked),
            (f"2 · whole sequence (answer of {answer} tokens)", sequence),
            ("2 · states that predict the answer", states),
            ("2 · logits", foundation.language_model.lm_head(states.flatten(0, 1))),
        ]
    return [(name, tuple(tensor.shape)) for name, tensor in rows]


def table() -> str:
    """The table in Markdown, a column a preset."""
    import task_align
    import task_avqa

    columns = []
    for preset in ("mini", "paper"):
        align, avqa = task_align.PRESETS[preset], task_avqa.PRESETS[preset]
        models = PAPER if preset == "paper" else mini_configs(align)
        columns.append(trace(models, align, avqa))
    lines = ["| stage · tensor | mini | paper |", "|---|---|---|"]
    for (name, mini), (_, paper) in zip(*columns, strict=True):
        lines.append(f"| {name} | {mini} | {paper} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
