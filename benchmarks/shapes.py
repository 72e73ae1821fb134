"""The tables of tensor shapes and channel uses in docs/shapes.md: `python -m benchmarks.shapes`.

Both presets' models are built on the meta device, where a forward pass costs nothing and needs no
weights, and a batch is led through both stages' own forward passes; hooks note what passes.
"""

import torch
from torch import nn
from transformers import ASTConfig, ASTModel, AutoConfig, Qwen2ForCausalLM, VivitConfig, VivitModel

import task_align
import task_avqa
from benchmarks import full_size
from benchmarks.experiments import page
from modules.system import MEDIA, Alignment, Answering, Batch, System
from modules.token_compression import COMPRESSIONS, clip_uses, side_bits
from modules.token_transmitter import GRIDS, Windows
from utils.data.media import patch_starts
from utils.files import shipped

# The published models' configurations, as far as they decide a shape. Layers are cut to one: a
# layer changes no shape.
PAPER = {
    "visual": VivitConfig(num_hidden_layers=1),
    "audio": ASTConfig(num_hidden_layers=1),
    "language": full_size.qwen(**{**full_size.QWEN_1_5B, "num_hidden_layers": 1}),
}
QUESTION, ANSWER = 20, 3  # tokens of the longest question and answer in the batch


def mini_configs() -> dict:
    """The shipped models' configurations."""
    c = task_align.PRESETS["mini"]
    folders = {"visual": c.visual_encoder, "audio": c.audio_encoder, "language": c.foundation_model}
    return {kind: AutoConfig.from_pretrained(shipped(folder)) for kind, folder in folders.items()}


def encoders_of(models: dict) -> dict:
    """Both encoders, each with the number of its special tokens."""
    vivit = VivitModel(models["visual"], add_pooling_layer=False)
    return {"visual": (vivit, 1), "audio": (ASTModel(models["audio"]), 2)}


def system_of(models: dict, config) -> System:
    return System(config, encoders_of(models), Qwen2ForCausalLM(models["language"]))


def media_batch(models: dict, config, text: int, packed: int = 1) -> Batch:
    """A batch of encoder inputs, as in a run without a cache, and of texts of so many tokens, of
    which `packed` share a clip."""
    v, a, clips = models["visual"], models["audio"], config.batch // packed
    side = v.image_size if isinstance(v.image_size, int) else v.image_size[0]
    ids, answer = (torch.zeros(config.batch, n, dtype=torch.long) for n in (text, ANSWER))
    return Batch(
        visual=torch.empty(clips, v.num_frames, 3, side, side),
        audio=torch.empty(clips, a.max_length, a.num_mel_bins),
        clip=torch.arange(clips).repeat_interleave(packed),
        ids=ids,
        mask=ids == 0,
        text=torch.zeros(config.batch, dtype=torch.long),
        answer_ids=answer,
        answer_mask=answer == 0,
        text_tokens=packed * (text + ANSWER),
        rows=[],
        windows=clips
        * [Windows(torch.tensor([1]), torch.arange(len(patch_starts(a)), device="cpu"))],
    )


def watch(module: nn.Module, name: str, seen: dict, reads: str = "", says: str = "") -> None:
    """Note the shapes that a module reads and gives, under names that begin with `name`."""

    def note(_module, args, kwargs, out):
        read = args[0] if args else kwargs["inputs_embeds"]
        out = getattr(out, "last_hidden_state", out)
        for what, tensor in ((reads, read), (says, out)):
            if what:
                seen[f"{name} · {what}"] = tuple(tensor.shape)

    module.register_forward_hook(note, with_kwargs=True)


def watch_system(system: System, stage: str, seen: dict, text: str) -> None:
    watch(system.img_tx.encoder, stage, seen, "frames", "ViViT tokens")
    watch(system.audio_tx.encoder, stage, seen, "spectrogram", "AST tokens")
    for kind, tx, receiver in (
        ("visual", system.img_tx, system.img_receiver),
        ("audio", system.audio_tx, system.audio_receiver),
    ):
        compressed = f"{kind} tokens, compressed (cached)"
        watch(tx, stage, seen, compressed, f"{kind} tokens, projected and sent")
        watch(receiver, stage, seen, says=f"{kind} tokens, received")
    watch(system.text_receiver, stage, seen, says=text)


def trace(models: dict, align, avqa) -> dict[str, tuple]:
    """The shapes at every step of both stages, for one batch of each.

    Args:
        models: transformers configurations under `visual`, `audio` and `language`.
        align, avqa: the two stages' hyperparameters.
    """
    seen: dict[str, tuple] = {}
    with torch.device("meta"):
        aligning = Alignment(system_of(models, align), align)
        watch_system(aligning.system, "1", seen, "caption, received (longest)")
        _, features = aligning(media_batch(models, align, align.caption_tokens), None)
        for kind, feature in features.items():
            seen[f"1 · {kind} feature"] = tuple(feature.shape)

        answering = Answering(system_of(models, avqa), avqa, end_id=0)
        foundation = answering.system.foundation
        watch_system(answering.system, "2", seen, f"question, received ({QUESTION} tokens)")
        watch(
            foundation.decoder, "2", seen, f"whole sequence ({avqa.packed} questions and answers)"
        )
        head = foundation.language_model.get_output_embeddings()
        watch(head, "2", seen, "states that predict the answer", "logits")
        answering(media_batch(models, avqa, QUESTION, avqa.packed), None)
    return seen


def table() -> str:
    """The table in Markdown, a column a preset."""
    mini, paper = (
        trace(models, task_align.PRESETS[preset], task_avqa.PRESETS[preset])
        for preset, models in (("mini", mini_configs()), ("paper", PAPER))
    )
    rows = [[name, shape, paper[name]] for name, shape in mini.items()]
    return page.table(["stage · tensor", "mini", "paper"], rows, rule="---").rstrip()


def uses() -> str:
    """What a clip of each preset costs on air by each compression, in Markdown: complex symbols,
    and how many of them carry side information."""
    head, columns = ["compression"], []
    for preset, models in (("mini", mini_configs()), ("paper", PAPER)):
        config = task_align.PRESETS[preset]
        for kind, special in zip(MEDIA, (1, 2), strict=True):
            patches = len(GRIDS[models[kind].model_type](models[kind]))
            length = getattr(config, f"{kind}_tokens")
            sent = special + length, models["language"].hidden_size
            bits = {how: side_bits(how, patches, length) for how in COMPRESSIONS}
            head.append(f"{kind}, {preset}: {length} of {patches:,} patches")
            columns.append([symbols(*sent, of, config.snr_db) for of in bits.values()])
    rows = [list(row) for row in zip(COMPRESSIONS, *columns, strict=True)]
    return page.table(head, rows, rule="---").rstrip()


def symbols(tokens: int, hidden: int, bits: float, snr_db: float) -> str:
    """Complex symbols, and those of them that carry so many bits beside the tokens."""
    total = clip_uses(tokens, hidden, bits, snr_db)
    beside = total - clip_uses(tokens, hidden, 0.0, snr_db)
    return f"{total:,.0f}" + (f" ({beside:,.0f})" if bits else "")


if __name__ == "__main__":
    print(f"{table()}\n\n{uses()}")
