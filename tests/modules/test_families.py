"""The foundation model over every family of causal language models that it is meant for: tiny
random ones of each class give what the library itself computes of whole sequences."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from modules.channel import unit_power
from modules.foundation_model import FoundationModel, misread
from modules.token_receiver import WordDetector
from tests.modules.test_foundation_model import (
    ALONE,
    ANSWERS,
    END,
    HIDDEN,
    LAYERS,
    NEVER,
    VOCABULARY,
    apart,
    example,
    reference_losses,
    rows,
    spread,
    trained_step,
)

SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    initializer_range=0.3,
    bos_token_id=END,
    eos_token_id=END,
    pad_token_id=END,
)
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 64}
WINDOW = 4  # tokens that a layer with a sliding window sees, fewer than a clip has
LAYER_TYPES = ["sliding_attention", "full_attention"]
GEMMA = {**GROUPED, "head_dim": 8, "sliding_window": WINDOW, "layer_types": LAYER_TYPES}

# A class, its configuration, and whether the embeddings are those of the vocabulary head.
FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**GROUPED, tie_word_embeddings=True), True),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**GROUPED, tie_word_embeddings=False), False),
    "llama": (LlamaForCausalLM, LlamaConfig(**GROUPED, tie_word_embeddings=False), False),
    "smollm2": (LlamaForCausalLM, LlamaConfig(**GROUPED, tie_word_embeddings=True), True),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA), True),
    "gemma3-capped": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**GEMMA, final_logit_softcapping=2.0),
        True,
    ),
    "gpt2": (
        GPT2LMHeadModel,
        # without dropout, which the library's default has
        GPT2Config(**SIZES, n_positions=96, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0),
        True,
    ),
    "mistral": (MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=WINDOW), False),
}
FAMILY = pytest.mark.parametrize("family", FAMILIES)
SHARED = [0, 0, 1, 1]  # the clip of each question
CLIPS = pytest.mark.parametrize("clip", [ALONE, SHARED, [0, 0, 0, 0]])


def family_model(family, rank=0, targets=()):
    """A tiny model of a family, with LoRA weights that are no longer zero if any."""
    kind, config, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = FoundationModel(kind._from_config(config, attn_implementation="sdpa"))
    model.add_lora(rank, 16, 0.0, targets)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    return model.eval()


def lora_layers(model):
    """The names of the layers that hold LoRA weights."""
    return {n.rpartition(".")[2] for n, part in model.named_modules() if hasattr(part, "lora_A")}


@FAMILY
@CLIPS
def test_loss_is_that_of_a_plain_forward_pass(family, clip):
    """Protects: masks by kind of layer, positions and scores of each family, over clips longer than
    a sliding window; padding anywhere."""
    model = family_model(family)
    received, *rest = example(model, clip=clip)
    expected = reference_losses(model, received, ANSWERS)
    for batch in (received, spread(received)):
        loss = model.answer_loss(batch, *rest).item()
        assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@CLIPS
def test_what_texts_begin_with_stands_once_in_front(clip):
    """Protects: Llama and Gemma, whose texts begin with a token without which they read badly."""
    model = family_model("llama")
    received, *rest = example(model, clip=clip)
    first = model.embed(torch.tensor([2])).expand(len(received.media), 1, -1)
    seen = torch.ones(len(first), 1, dtype=torch.bool)
    behind = replace(
        received,
        media=torch.cat([first, received.media], dim=1),
        media_mask=torch.cat([seen, received.media_mask], dim=1),
    )
    wanted = model.answer_loss(behind, *rest), model.generate(behind, NEVER, max_new_tokens=4)
    before = model.answer_loss(received, *rest)
    model.start = torch.tensor([2])
    found = model.answer_loss(received, *rest), model.generate(received, NEVER, max_new_tokens=4)
    assert found[0] == wanted[0] != before and torch.equal(found[1], wanted[1])


@FAMILY
@CLIPS
def test_generation_is_the_librarys_own(family, clip):
    """Protects: cached keys, positions and masks of generation. `generate` of transformers decodes
    each row by itself from its embeddings."""
    model = family_model(family)
    received = spread(example(model, clip=clip)[0])
    answers = model.generate(received, NEVER, max_new_tokens=8)
    for row, answer in zip(rows(received), answers, strict=True):
        wanted = model.language_model.generate(
            inputs_embeds=row[None],
            attention_mask=torch.ones(1, len(row)),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=NEVER,
            pad_token_id=END,
        )
        assert answer.tolist() == wanted[0].tolist()


@FAMILY
@pytest.mark.parametrize("save", [False, True])
def test_packed_questions_cost_what_they_cost_alone(family, save):
    """Protects: the loss and every gradient, of media, questions and LoRA, to 1e-5, also where
    layers are computed again going backward."""
    model = family_model(family, rank=4)
    batch = example(model, clip=SHARED)
    loss, grads, kept = trained_step(model, batch, apart)
    if save:
        model.train().save_memory()
    found, of_shared, less = trained_step(model, batch)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_shared, grads, rtol=1e-5, atol=1e-5)
    assert all(grad.any() for grad in grads.values()) and (not save or less < kept / 2)


@FAMILY
def test_embeddings_are_what_the_model_reads(family):
    """Protects: tied embeddings stay one tensor, also under LoRA; the table of words is that of
    `embed`, which Gemma scales, so that a detected word is the one that was sent."""
    model, ids = family_model(family, rank=2), torch.arange(VOCABULARY)
    language_model = model.language_model
    table, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    assert (table.weight is head.weight) == FAMILIES[family][2]
    torch.testing.assert_close(model.words(), model.embed(ids))
    assert model.embedding_rms() == pytest.approx(model.embed(ids).square().mean().sqrt().item())
    sent = model.embed(ids[None, 3:9])
    found = WordDetector(model.words)(unit_power(sent, torch.ones(1, 6, dtype=torch.bool)))
    torch.testing.assert_close(found, sent)
    by_ids = language_model(input_ids=ids[None, 3:9]).logits
    torch.testing.assert_close(language_model(inputs_embeds=sent).logits, by_ids)


@FAMILY
def test_lora_changes_layers_that_the_family_has(family):
    """Protects: by default the family's usual ones, in every layer; `all-linear` as peft has it,
    every linear layer but the vocabulary head; names of one's own; and a name that no layer has is
    refused in a line that says which there are."""
    usual = {"c_attn"} if family == "gpt2" else {"q_proj", "v_proj"}
    model = family_model(family, rank=2)
    assert lora_layers(model) == usual
    count = sum(1 for part in model.modules() if hasattr(part, "lora_A"))
    assert count == LAYERS * len(usual)
    plain = family_model(family).language_model
    head = plain.get_output_embeddings()
    linear = [m for m in plain.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    everywhere = family_model(family, 2, ["all-linear"])
    assert sum(1 for part in everywhere.modules() if hasattr(part, "lora_A")) == len(linear)
    some = "c_fc" if family == "gpt2" else "up_proj"
    assert lora_layers(family_model(family, 2, [some])) == {some}
    with pytest.raises(ValueError, match=rf"lora_targets query: .*{some}.*all-linear") as error:
        family_model(family, 2, [some, "query"])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_lora_matrices_lie_as_the_weights_do(family, recwarn):
    """Protects: GPT-2's weights are stored the other way round, which peft must know, or it warns
    and the product has another shape; adding the product to the weight changes nothing."""
    model = family_model(family, rank=2)
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]
    batch = example(model)
    loss = model.answer_loss(*batch)
    model.language_model = model.language_model.merge_and_unload()
    torch.testing.assert_close(model.answer_loss(*batch), loss)


@FAMILY
def test_what_is_read_as_assumed_is_let_through(family):
    """Protects: the check at loading lets every one of these families through, also in half
    precision, whose rounding it must tell from another attention."""
    assert misread(family_model(family)) < 1e-5
    assert misread(FoundationModel(family_model(family).language_model.bfloat16())) < 0.1


def test_other_attention_is_told_from_rounding():
    """Protects: attention in both directions, and weights that are drawn small, do not pass as
    rounding."""
    bert = BertLMHeadModel(BertConfig(**{**SIZES, "initializer_range": 0.05}, intermediate_size=64))
    config = Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True)
    for model in (bert, Gemma3ForCausalLM._from_config(config, attn_implementation="sdpa")):
        assert misread(FoundationModel(model.eval())) > 1e-3
