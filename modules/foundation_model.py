"""The foundation model at the base station: Qwen2.5, read and tuned through its embeddings."""

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from modules.losses import ratio

PROMPT_END = " Answer:"
PROMPT = "Question: {question}" + PROMPT_END
IGNORED = -100  # a target that costs nothing


class FoundationModel(nn.Module):
    """A causal language model that reads [visual, audio, question] tokens and writes the answer.

    The base weights stay frozen; `add_lora` adds the low-rank updates that stage 2 trains.
    """

    def __init__(self, language_model: nn.Module):
        super().__init__()
        self.language_model = language_model.requires_grad_(False)
        self.hidden = language_model.config.hidden_size

    def add_lora(self, rank: int, alpha: float, dropout: float, targets: list[str]) -> None:
        """Wrap the projections named in `targets` by LoRA (Hu et al., 2021); rank 0 adds none."""
        if rank:
            lora = LoraConfig(
                r=rank,
                lora_alpha=alpha,
                lora_dropout=dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            )
            self.language_model = get_peft_model(self.language_model, lora)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (batch, tokens) to embeddings (batch, tokens, hidden)."""
        return self.language_model.get_input_embeddings()(ids)

    def embedding_rms(self) -> Tensor:
        """Root mean square of an embedding entry, about 1e-2 in Qwen2.5, a number."""
        weight = self.language_model.get_input_embeddings().weight
        return weight.float().square().mean().sqrt()

    @property
    def decoder(self) -> nn.Module:
        """The language model without its vocabulary head."""
        model = self.language_model
        return (model.get_base_model() if hasattr(model, "get_base_model") else model).model

    def save_memory(self) -> None:
        """Keep no activations inside a layer: the backward pass computes them again."""
        self.language_model.activation_checkpointing_enable({"use_reentrant": False})

    def compile(self) -> None:
        """Compile the decoder's layers by torch.compile, one after the other as they are alike."""
        for layer in self.decoder.layers:
            layer.compile(dynamic=True)

    def hidden_states(self, embeddings: Tensor) -> Tensor:
        """The decoder's last hidden states, (batch, tokens, hidden); no vocabulary head.

        Attention is causal and sees every earlier position, so padding must come last.
        """
        # No mask for each kind of layer: scaled-dot-product attention then runs its causal
        # kernel, and the library does not look into the tensors to make one, for which the host
        # would have to wait.
        no_mask = dict.fromkeys(self.decoder.config.layer_types)
        return self.decoder(
            inputs_embeds=embeddings, attention_mask=no_mask, use_cache=False
        ).last_hidden_state

    def answer_loss(
        self, received: Tensor, mask: Tensor, answer_ids: Tensor, answer_mask: Tensor
    ) -> Tensor:
        """Cross-entropy of the answers and their end-of-text tokens, in nats a token, over the
        batch of all processes.

        Args:
            received: (batch, tokens, hidden), the received visual, audio and question tokens.
            mask: (batch, tokens), True at real tokens; padding may stand anywhere.
            answer_ids: (batch, answer tokens), the end-of-text token last, padded on the right.
            answer_mask: (batch, answer tokens), True at real tokens.

        Logits are computed at the answers' positions and nowhere else.
        """
        answer = self.embed(answer_ids)  # in the dtype that the model reads
        tokens = torch.cat([received.to(answer.dtype), answer], dim=1)
        # Move the padding to the end: under causal attention no real token then sees it, and no
        # attention mask is needed.
        real = torch.cat([mask, answer_mask], dim=1)
        order = real.long().argsort(dim=1, descending=True, stable=True)
        tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        states = self.hidden_states(tokens)  # (batch, tokens, hidden)
        # Answer token k stands at (received tokens) + k and is predicted one position earlier.
        first = mask.sum(dim=1, keepdim=True) - 1
        position = first + torch.arange(answer_ids.shape[1], device=first.device)
        position = position.clamp(max=tokens.shape[1] - 1)
        states = states.gather(1, position[..., None].expand(-1, -1, states.shape[-1]))
        logits = self.language_model.get_output_embeddings()(states)  # (batch, answer, vocab)
        # Padding of the answers is ignored, not cut out: its number is known to the device alone.
        target = answer_ids.masked_fill(~answer_mask, IGNORED)
        loss = cross_entropy(
            logits.flatten(0, 1).float(), target.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return ratio(loss, answer_mask.sum())

    @torch.inference_mode()
    def generate(
        self, received: Tensor, mask: Tensor, end_id: int, max_new_tokens: int = 8
    ) -> Tensor:
        """Answer ids by greedy decoding over the whole vocabulary, (batch, new tokens).

        Arguments as in `answer_loss`; rows that ended early are filled with `end_id`. Uses the
        key-value cache; a row's answer does not depend on the rows beside it.
        """
        # Padding goes to the front here, so that every row's next token comes last.
        order = mask.long().argsort(dim=1, stable=True)
        tokens = received.to(self.language_model.dtype)
        return self.language_model.generate(
            inputs_embeds=tokens.gather(1, order[..., None].expand_as(tokens)),
            attention_mask=mask.gather(1, order).long(),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=end_id,
            pad_token_id=end_id,
            use_cache=True,
        )
