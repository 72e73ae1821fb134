"""The foundation model: what its loss covers, and that batching changes neither loss nor answer."""

import shutil

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM

from modules.foundation_model import FoundationModel
from tests.helpers.tiny import NoHostData, NoHostSync

HIDDEN, VOCABULARY, LAYERS, END = 32, 64, 2, 0
NEVER = VOCABULARY  # an end token that no answer holds
TARGETS = ["q_proj", "v_proj"]


def tiny_qwen2(seed=0, layers=LAYERS):
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,  # large enough for the answers to depend on everything read
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    return Qwen2ForCausalLM(config).eval()


def lora_model(rank=4, dropout=0.0, layers=LAYERS, dtype=torch.float32):
    """A model with LoRA weights that are no longer zero."""
    model = FoundationModel(tiny_qwen2(layers=layers).to(dtype))
    model.add_lora(rank, 16, dropout, TARGETS)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def pad(rows, fill=END):
    """Rows of ids padded on the right, and the mask of the real ones."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[i < len(row) for i in range(longest)] for row in rows])


QUESTIONS = [[5, 9, 11, 3], [7], [8, 8, 2, 40, 41, 42, 43], [30, 31]]
ANSWERS = [[20, 21, END], [END], [22, END], [23, 24, 25, 26, END]]


def example(model, questions=QUESTIONS, answers=ANSWERS, seed=1):
    """Media, question, its mask, answer ids, their mask: what `answer_loss` reads."""
    noise = torch.Generator().manual_seed(seed)
    media = torch.randn(len(questions), 6, HIDDEN, generator=noise) * 0.3
    ids, question_mask = pad(questions)
    answer_ids, answer_mask = pad(answers)
    return media, model.embed(ids), question_mask, answer_ids, answer_mask


def reference_losses(model, media, questions, answers):
    """Loss of each answer token: each row by itself, the whole sequence, nothing padded."""
    losses = []
    for row, question, answer in zip(media, questions, answers, strict=True):
        read = torch.cat([row, model.embed(torch.tensor(question + answer))])[None]
        logits = model.language_model(inputs_embeds=read).logits[0].double()
        start = len(row) + len(question)  # where the answer's first token stands
        for k, wanted in enumerate(answer):
            scores = logits[start + k - 1]
            losses.append((scores.exp().sum().log() - scores[wanted]).item())
    return losses


@pytest.mark.parametrize("make", [lambda: FoundationModel(tiny_qwen2()), lora_model])
def test_answer_loss_is_its_definition(make):
    """The mean over all answer tokens of the batch, end of text included, and over them alone."""
    model = make()
    batch = example(model)
    expected = reference_losses(model, batch[0], QUESTIONS, ANSWERS)
    assert len(expected) == 3 + 1 + 2 + 5
    loss = model.answer_loss(*batch).item()
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize("answer", [[END], [20, END], [20, 21, END], [20, 21, 22, 23, END]])
def test_every_answer_token_and_the_end_count(answer):
    """One row by hand: the loss adds each answer token and the end-of-text token once."""
    model = FoundationModel(tiny_qwen2())
    batch = example(model, QUESTIONS[:1], [answer])
    expected = reference_losses(model, batch[0], QUESTIONS[:1], [answer])
    assert model.answer_loss(*batch).item() == pytest.approx(sum(expected) / len(answer), rel=1e-5)


def test_question_tokens_are_no_labels(monkeypatch):
    """Other question ids change what is read but nothing of what is to be predicted."""
    model, seen = FoundationModel(tiny_qwen2()), []

    def record(logits, labels, **how):
        seen.append(labels)
        return cross_entropy(logits, labels, **how)

    monkeypatch.setattr("modules.foundation_model.cross_entropy", record)
    others = [[(3 * i + 1) % VOCABULARY for i in row] for row in QUESTIONS]
    losses = [model.answer_loss(*example(model, q)).item() for q in (QUESTIONS, others)]
    assert abs(losses[0] - losses[1]) > 1e-3, "the question is not read"
    assert torch.equal(*seen) and seen[0][seen[0] >= 0].tolist() == sum(ANSWERS, [])
    expected = reference_losses(model, example(model)[0], others, ANSWERS)
    assert losses[1] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_padding_does_not_change_the_loss():
    """Neither what padding holds nor how much of it there is matters."""
    model = FoundationModel(tiny_qwen2())
    media, question, question_mask, answer_ids, answer_mask = example(model)
    loss = model.answer_loss(media, question, question_mask, answer_ids, answer_mask)
    noise = torch.Generator().manual_seed(2)
    wide = 100 * torch.randn(4, question.shape[1] + 9, HIDDEN, generator=noise)
    wide[:, : question.shape[1]][question_mask] = question[question_mask]
    wide_mask = torch.nn.functional.pad(question_mask, (0, 9))
    ids = torch.nn.functional.pad(answer_ids, (0, 5), value=33).masked_fill(
        ~torch.nn.functional.pad(answer_mask, (0, 5)), 33
    )
    ids_mask = torch.nn.functional.pad(answer_mask, (0, 5))
    torch.testing.assert_close(model.answer_loss(media, wide, wide_mask, ids, ids_mask), loss)


def test_batched_loss_is_that_of_the_rows():
    """The loss of a batch is the mean over its tokens, whatever their rows' lengths."""
    model = FoundationModel(tiny_qwen2())
    batch = example(model)
    alone = [
        len(answer) * model.answer_loss(row[None], *example(model, [question], [answer])[1:])
        for row, question, answer in zip(batch[0], QUESTIONS, ANSWERS, strict=True)
    ]
    torch.testing.assert_close(model.answer_loss(*batch), sum(alone) / sum(map(len, ANSWERS)))


@pytest.mark.parametrize("make", [lambda: FoundationModel(tiny_qwen2()), lora_model])
def test_logits_are_computed_for_answers_alone(make):
    """The vocabulary head sees the answers' positions, padded to the longest answer, and no more,
    however long the sequence is."""
    model, seen = make(), []
    head = model.language_model.get_output_embeddings()
    head.register_forward_hook(lambda _, read, out: seen.append(read[0].shape))
    for questions in (QUESTIONS, [30 * question for question in QUESTIONS]):
        model.answer_loss(*example(model, questions))
    assert seen == 2 * [(len(ANSWERS), max(map(len, ANSWERS)), HIDDEN)]


def test_no_attention_mask_is_built():
    """Every layer attends without a mask, which leaves it the kernel that needs none."""
    model, masks = FoundationModel(tiny_qwen2()), []
    for layer in model.decoder.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, named: masks.append(named["attention_mask"]), with_kwargs=True
        )
    model.answer_loss(*example(model))
    assert masks == LAYERS * [None]


@pytest.mark.parametrize("save", [False, True])
def test_a_step_waits_for_no_value(save):
    """Neither the loss nor its gradients make the host wait for what a tensor holds: on the meta
    device, where tensors hold nothing, they are computed all the same."""
    model = lora_model(dropout=0.1).train()
    if save:
        model.save_memory()
    inputs = example(model)
    with NoHostSync(), NoHostData():
        model.answer_loss(*inputs).backward()
        model.zero_grad()
    model.to("meta")
    media, *inputs = (tensor.detach().to("meta") for tensor in inputs)
    with NoHostSync(), NoHostData():
        model.answer_loss(media.requires_grad_(), *inputs).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.is_meta for p in (media, *trained))


def test_gradients_reach_all_that_was_received():
    """Every received token before the answer is trained, padding is not."""
    model = FoundationModel(tiny_qwen2())
    media, question, question_mask, *answer = example(model)
    media, question = media.requires_grad_(), question.detach().requires_grad_()
    model.answer_loss(media, question, question_mask, *answer).backward()
    assert media.grad.isfinite().all() and media.grad.abs().sum(-1).gt(0).all()
    assert question.grad[question_mask].abs().sum(-1).gt(0).all()
    assert question.grad[~question_mask].eq(0).all()


def naive_answer(model, media, question, end, most):
    """Greedy decoding as one would write it first: the whole sequence again for every token."""
    answer = []
    while len(answer) < most and (not answer or answer[-1] != end):
        ids = torch.tensor(question + answer)
        read = torch.cat([media, model.embed(ids)])[None]
        answer.append(model.language_model(inputs_embeds=read).logits[0, -1].argmax().item())
    return answer


def cut(row, end):
    """Ids up to the end token, which comes last if it is there."""
    return row[: row.index(end) + 1] if end in row else row


@pytest.mark.parametrize("make", [lambda: FoundationModel(tiny_qwen2()), lora_model])
def test_generate_is_greedy_decoding(make):
    """Batched answers are those of a plain loop of argmax, and those of one row at a time."""
    model = make()
    media, question, mask, _, _ = example(model)
    naive = [
        naive_answer(model, *row, end=NEVER, most=8) for row in zip(media, QUESTIONS, strict=True)
    ]
    end = naive[0][2]  # one row ends after its third token, the others when they say it or never
    expected = [cut(row, end) for row in naive]
    assert len(expected[0]) <= 3 < max(map(len, expected))
    answers = model.generate(media, question, mask, end, max_new_tokens=8).tolist()
    for i, (row, wanted) in enumerate(zip(answers, expected, strict=True)):
        assert row[: len(wanted)] == wanted
        assert set(row[len(wanted) :]) <= {end}, "after its end a row holds the end token alone"
        n = len(QUESTIONS[i])
        one = model.generate(media[i : i + 1], question[i : i + 1, :n], mask[i : i + 1, :n], end)
        assert cut(one[0].tolist(), end) == wanted


def test_generate_ignores_what_padding_holds():
    """The answers stay when padding is more and is not zero."""
    model = FoundationModel(tiny_qwen2())
    media, question, mask, _, _ = example(model)
    expected = model.generate(media, question, mask, NEVER, max_new_tokens=5)
    question = torch.where(mask[..., None], question, torch.full_like(question, 50.0))
    question = torch.cat([question, torch.full((4, 7, HIDDEN), -50.0)], dim=1)
    mask = torch.nn.functional.pad(mask, (0, 7))
    assert torch.equal(model.generate(media, question, mask, NEVER, max_new_tokens=5), expected)


def test_generate_uses_the_cache():
    """After the prompt one token a step is read."""
    model, read = FoundationModel(tiny_qwen2()), []
    layer = model.language_model.model.layers[0]
    layer.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    media, question, mask, _, _ = example(model)
    model.generate(media, question, mask, end_id=NEVER, max_new_tokens=4)
    assert read == [6 + 7, 1, 1, 1]


def test_generate_is_greedy_whatever_the_model_folder_says():
    """Settings that a published model brings along (sampling, penalties) do not change answers."""
    model = FoundationModel(tiny_qwen2())
    media, question, mask, _, _ = example(model)
    expected = model.generate(media, question, mask, NEVER, max_new_tokens=6)
    settings = model.language_model.generation_config
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = True, 5.0, 0.9, 50
    settings.repetition_penalty = 5.0
    assert torch.equal(model.generate(media, question, mask, NEVER, max_new_tokens=6), expected)


@pytest.mark.parametrize("rank", [1, 4])
def test_lora_adds_q_and_v_alone(rank):
    """LoRA adds a pair of matrices to each q_proj and v_proj, and those alone are trained."""
    model = FoundationModel(tiny_qwen2())
    before = sum(p.numel() for p in model.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    loss = model.answer_loss(*example(model))
    model.add_lora(rank, 16, 0.1, TARGETS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == LAYERS * 2 * 2
    assert all("lora_" in name and name.split(".lora_")[0][-6:] in TARGETS for name in trained)
    added = LAYERS * rank * ((HIDDEN + HIDDEN) + (HIDDEN + HIDDEN // 2))  # 4 query, 2 value heads
    assert sum(p.numel() for p in trained.values()) == added
    assert sum(p.numel() for p in model.parameters()) == before + added
    torch.testing.assert_close(model.eval().answer_loss(*example(model)), loss)


def test_lora_scale_and_dropout_are_the_asked_ones():
    """The update is alpha / rank times the product, with dropout in training alone."""
    model = FoundationModel(tiny_qwen2())
    model.add_lora(4, 16, 0.1, TARGETS)
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    assert all(m.scaling["default"] == 4.0 and m.lora_dropout["default"].p == 0.1 for m in layers)
    assert len(layers) == 2 * LAYERS


def test_rank_0_adds_nothing():
    """Rank 0 leaves the model as it is, without trainable weights."""
    model = FoundationModel(tiny_qwen2())
    before = [name for name, _ in model.named_parameters()]
    model.add_lora(0, 16, 0.1, TARGETS)
    assert [name for name, _ in model.named_parameters()] == before
    assert not any(p.requires_grad for p in model.parameters())


def test_training_leaves_the_base_weights():
    """An optimizer step moves the LoRA weights and leaves every bit of the base model."""
    model = lora_model().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    model.answer_loss(*example(model)).backward()
    optimizer.step()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            assert not torch.equal(weight, before[name]), name
        else:
            assert torch.equal(weight, before[name]) and weight.grad is None, name


@pytest.mark.parametrize("rank", [0, 4])
def test_half_precision_model_reads_full_precision_tokens(rank):
    """A foundation model in bfloat16 reads float32 tokens, as in the paper preset."""
    expected = FoundationModel(tiny_qwen2())
    loss = expected.answer_loss(*example(expected)).item()
    model = FoundationModel(tiny_qwen2().to(torch.bfloat16))
    model.add_lora(rank, 16, 0.0, TARGETS)
    media, question, *rest = example(model)
    media, question = media.float().requires_grad_(), question.float()
    found = model.answer_loss(media, question, *rest)
    found.backward()
    assert found.dtype == torch.float32 and found.item() == pytest.approx(loss, rel=0.05)
    assert media.grad.dtype == torch.float32 and media.grad.isfinite().all()
    assert model.generate(media.detach(), question, rest[0], END).shape[0] == len(QUESTIONS)


def test_half_precision_base_with_full_precision_lora():
    """LoRA is trained in float32 on a base that stays in bfloat16 and gets no gradient."""
    model = lora_model(dtype=torch.bfloat16).train()
    loss = model.answer_loss(*example(model))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            assert weight.dtype == weight.grad.dtype == torch.float32 and weight.grad.any(), name
        else:
            assert weight.dtype == torch.bfloat16 and weight.grad is None, name


def trained_step(model, batch):
    """Loss, the gradients of media and of every trained weight, and the bytes kept for them."""
    media, *rest = batch
    media, kept = media.clone().requires_grad_(), []
    model.zero_grad()
    torch.manual_seed(0)  # of LoRA's dropout
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.nbytes) or t, lambda t: t
    ):
        loss = model.answer_loss(media, *rest)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return loss.detach(), {"media": media.grad, **grads}, sum(kept)


def test_saving_memory_changes_nothing_but_memory():
    """Layers that are computed again going backward give the loss and the gradients of layers that
    are not, LoRA's dropout included, and keep far less in between."""
    model, computed = lora_model(dropout=0.1).train(), []
    for layer in model.decoder.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: computed.append(1))
    batch = example(model)
    loss, grads, kept = trained_step(model, batch)
    assert len(computed) == LAYERS
    answers = model.eval().generate(*batch[:3], NEVER)
    model.train().save_memory()
    computed.clear()
    again, found, less = trained_step(model, batch)
    assert len(computed) == 2 * LAYERS and less < kept / 3
    torch.testing.assert_close(again, loss)
    assert len(grads) == 1 + 4 * LAYERS and all(grad.any() for grad in grads.values())
    torch.testing.assert_close(found, grads)
    assert torch.equal(model.eval().generate(*batch[:3], NEVER), answers)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_give_the_same():
    """A compiled model has the loss and the gradients of one that is not, and is compiled once for
    sequences of all lengths."""
    model = lora_model(layers=1).train()
    others = [question + [3, 4, 5] for question in QUESTIONS]
    batches = [example(model), example(model, others, [[2, *answer] for answer in ANSWERS])]
    wanted = [trained_step(model, batch)[:2] for batch in batches]
    model.compile()
    found = [trained_step(model, batches[0])[:2]]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found.append(trained_step(model, batches[1])[:2])
    assert graphs == torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_embedding_rms():
    """The root mean square is that of the embedding entries."""
    model = FoundationModel(tiny_qwen2())
    weight = model.embed(torch.arange(VOCABULARY)).double()
    assert model.embedding_rms() == pytest.approx(weight.square().mean().sqrt().item(), rel=1e-5)
    assert model.embed(torch.tensor([[3, 4]])).shape == (1, 2, HIDDEN)
