"""The token transmitter of a user device: frozen encoder, token compression, projection."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules.token_compression import Layout, compress, joined


class Windows(NamedTuple):
    """How much of the windows in which an encoder reads a clip is the clip itself: the last one is
    filled up with padding."""

    frames: Tensor  # (windows,), frames of the clip
    # (kept,), the patch tokens that begin within the clip, counted through all of its windows
    patches: Tensor


class Encoded(NamedTuple):
    """Tokens of clips as their encoder gives them, all or compressed."""

    tokens: Tensor  # (clips, special + patches, encoder width)
    layout: Layout  # of the patch tokens


def vivit_grid(config: Any) -> Tensor:
    """Where each of ViViT's patches lies, (patches, 3): time, height, width."""
    frames, *patch = config.tubelet_size
    return places_of(config.num_frames // frames, *patches_across(config.image_size, patch))


def videomae_grid(config: Any) -> Tensor:
    """Where each of VideoMAE's patches lies, (patches, 3): time, height, width."""
    across = patches_across(config.image_size, config.patch_size)
    return places_of(config.num_frames // config.tubelet_size, *across)


def frames_grid(config: Any) -> Tensor:
    """Where the patches of frames lie that are read one by one, (patches, 3): time, height,
    width."""
    return places_of(config.num_frames, *patches_across(config.image_size, config.patch_size))


def patches_across(image: int | Sequence[int], patch: int | Sequence[int]) -> tuple[int, int]:
    """Patches in height and width; sizes in pixels, one number for a square."""
    (height, width), (tall, wide) = (
        size if isinstance(size, Sequence) else (size, size) for size in (image, patch)
    )
    return height // tall, width // wide


def ast_grid(config: Any) -> Tensor:
    """Where each of AST's patches lies, (patches, 2): time and frequency, time fastest."""
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    columns = (config.max_length - config.patch_size) // config.time_stride + 1
    return places_of(rows, columns).flip(1)


def whisper_grid(config: Any) -> Tensor:
    """When each token of Whisper's encoder begins, (tokens, 1)."""
    return places_of(config.max_source_positions)


def places_of(*sizes: int) -> Tensor:
    """Every place of a grid of so many steps along each axis, the last axis fastest, in the host's
    memory: (places, axes), float32."""
    steps = [torch.arange(size, dtype=torch.float32, device="cpu") for size in sizes]
    return torch.cartesian_prod(*steps).reshape(-1, len(sizes))


# By the encoder's `model_type`: its configuration -> (patches, axes), time first.
GRIDS: dict[str, Callable[[Any], Tensor]] = {
    "vivit": vivit_grid,
    "videomae": videomae_grid,
    "clip_vision_model": frames_grid,
    "siglip_vision_model": frames_grid,
    "audio-spectrogram-transformer": ast_grid,
    "whisper": whisper_grid,
}


def attended(layer: nn.Module, states: Tensor, special: int) -> Tensor:
    """The attention that an encoder's layer pays to each patch from its special tokens, mean over
    these and over heads: (rows, special + tokens, width) to (rows, tokens)."""
    queries = layer.q_proj(states[:, :special]).unflatten(2, (-1, layer.head_dim))
    keys = layer.k_proj(states).unflatten(2, (-1, layer.head_dim))
    scores = torch.einsum("rshd,rthd->rhst", queries, keys) * layer.scaling
    return scores.float().softmax(dim=3).mean(dim=(1, 2))[:, special:]


class TokenTransmitter(nn.Module):
    """From a clip's picture or sound to a short sequence of tokens as wide as the language model.

    `encode` is the frozen part and runs once a clip; `forward` is the trained part and runs at
    every step on what `encode` gave.

    Args:
        encoder: a transformers encoder whose `last_hidden_state` begins with `special` tokens, of
            an architecture in `GRIDS`.
        special: its special tokens: 1 for ViViT (class), 2 for AST (class, distillation), 0 for
            encoders that have none.
        hidden: width of the language model's embeddings.
        length: patch tokens after compression.
        compression: a name in `COMPRESSIONS`.

    Raises:
        ValueError: for `attention` with an encoder that pays none from special tokens to patches.
    """

    def __init__(
        self,
        encoder: nn.Module,
        special: int,
        hidden: int,
        length: int,
        compression: str = "sliding_window",
    ):
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.special, self.length, self.compression = special, length, compression
        self._check_attention()
        self.projection = nn.Linear(encoder.config.hidden_size, hidden)
        self.places = GRIDS[encoder.config.model_type](encoder.config)  # (patches, axes)

    def train(self, mode: bool = True) -> "TokenTransmitter":
        super().train(mode)
        if self.encoder is not None:  # gone once every clip is cached
            self.encoder.eval()  # a frozen encoder draws no dropout
        return self

    def encode(
        self, inputs: Tensor, windows: list[Windows] | None = None, rows: int | None = None
    ) -> Encoded:
        """Compressed encoder tokens, (clips, special + length, encoder width), and their layout;
        arguments as `read`."""
        return self.compress(self.read(inputs, windows, rows, self.needs_attention))

    @property
    def needs_attention(self) -> bool:
        """Whether the compression asks for the attention that patches get."""
        return self.compression == "attention"

    def _check_attention(self) -> None:
        found = self.encoder is None or (self.special and hasattr(self.encoder, "layers"))
        if self.needs_attention and not found:
            raise ValueError(
                f"compression attention: {type(self.encoder).__name__} has no special tokens that "
                "attend to all patches; choose another compression"
            )

    def compress(self, clips: list[Encoded]) -> Encoded:
        """What `read` gave, compressed and put together: (clips, special + length, width). A clip
        of fewer patches than that has them repeated evenly."""
        found = []
        for tokens, layout in clips:
            if not self.needs_attention:  # though another compression asked for it
                layout = Layout(layout.places)
            patches = tokens.shape[1] - self.special
            if patches < self.length:
                even = torch.arange(self.length, device="cpu") * patches // self.length
                special, rest = tokens.split([self.special, patches], dim=1)
                tokens = torch.cat([special, rest[:, even.to(tokens.device)]], dim=1)
                layout = layout.each(lambda part, even=even: part[:, even])
            how = self.compression
            found.append(Encoded(*compress(tokens, self.length, self.special, how, layout)))
        tokens, layouts = zip(*found, strict=True)
        return Encoded(torch.cat(tokens), joined(layouts))

    @torch.no_grad()  # not inference_mode: `forward` trains on what this gives
    def read(
        self,
        inputs: Tensor,
        windows: list[Windows] | None = None,
        rows: int | None = None,
        attention: bool = False,
    ) -> list[Encoded]:
        """All encoder tokens of whole clips, (clips, special + patches, encoder width); one clip a
        part where clips are read in windows, with as many patches as it is long.

        Args:
            inputs: what the encoder reads: ViViT (clips, frames, 3, height, width); AST
                (windows, time, mel) with a clip's consecutive windows one after the other.
            windows: of each clip; None for one row of `inputs` a clip. The windows' patch tokens
                are joined along time, without those of padding, and their special tokens averaged
                in proportion to the frames that are the clip's, before compression.
            rows: of `inputs` an encoder call, at most; None for all.
            attention: find also the attention that patches get in the encoder's last layer.

        On an accelerator that has bfloat16 the encoder computes in it.
        """
        tokens, attention = self._call(inputs, rows or len(inputs), attention)
        if windows is None:
            layout = Layout(self.places.expand(len(tokens), -1, -1), attention)
            return [Encoded(tokens, layout)]
        counts = [len(w.frames) for w in windows]
        attentions = len(counts) * [None] if attention is None else attention.split(counts)
        clips = []
        for clip, heard, of in zip(tokens.split(counts), attentions, windows, strict=True):
            weights = (of.frames / of.frames.sum()).to(clip)  # (windows,)
            special = torch.einsum("w,wtd->td", weights, clip[:, : self.special])
            patches = clip[:, self.special :].flatten(0, 1)[of.patches.to(clip.device)]
            layout = Layout(self._along_time(len(clip)), heard)
            layout = layout.each(lambda part, kept=of.patches: part.flatten(0, 1)[None, kept])
            clips.append(Encoded(torch.cat([special, patches])[None], layout))
        return clips

    def _call(self, inputs: Tensor, rows: int, attention: bool) -> tuple[Tensor, Tensor | None]:
        """What the encoder says of its inputs, so many rows a call: (rows, special + patches,
        width), and if asked the attention that patches get (rows, patches), on the host."""
        seen: list[Tensor] = []

        def note(layer: nn.Module, args: tuple) -> None:
            seen.append(attended(layer, args[0], self.special))

        # Computed beside the layer, which keeps its fast kernel.
        last = self.encoder.layers[-1].attention if attention else None
        watch = last.register_forward_pre_hook(note) if attention else nullcontext()
        half = inputs.is_cuda and torch.cuda.is_bf16_supported()
        with watch, torch.autocast("cuda", torch.bfloat16, enabled=half):
            calls = [self.encoder(part).last_hidden_state.float() for part in inputs.split(rows)]
        return torch.cat(calls), torch.cat(seen).cpu() if attention else None

    def _along_time(self, windows: int) -> Tensor:
        """The places of the patches of so many consecutive windows, (windows, patches, axes)."""
        places = self.places.repeat(windows, 1, 1)
        steps = self.places[:, 0].max() + 1
        places[:, :, 0] += steps * torch.arange(windows, device="cpu")[:, None]
        return places

    def compressing(self, length: int, compression: str) -> "TokenTransmitter":
        """This transmitter with another compression; encoder and projection are shared."""
        other = copy(self)
        other.length, other.compression = length, compression
        other._check_attention()
        return other

    def forward(self, encoded: Tensor) -> Tensor:
        """Project (batch, special + length, encoder width) to (batch, special + length, hidden)."""
        return self.projection(encoded)

    def features(self, tokens: Tensor) -> Tensor:
        """What the contrastive loss reads of received tokens: the mean of the special ones, that
        is ViViT's class token, or AST's class and distillation tokens; of all tokens where an
        encoder has no special ones. (batch, hidden)."""
        return tokens[:, : self.special or None].mean(dim=1)
