"""The foundation model: what its loss covers, and that neither batches nor questions which share
their clip change a loss or an answer."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from modules.foundation_model import FoundationModel, Received
from tests.helpers.draw import gaussian, seeded
from tests.helpers.tiny import NoHostData, NoHostSync, tiny_qwen2
from utils.data.clips import pad

HIDDEN, VOCABULARY, LAYERS, END = 32, 64, 2, 0
MEDIA = 6  # tokens of a clip
NEVER = VOCABULARY  # an end token that no answer holds
TARGETS = ["q_proj", "v_proj"]


def base_model(layers=LAYERS, dtype=torch.float32):
    """A model without LoRA, whose answers depend on everything that it reads."""
    torch.manual_seed(0)
    language_model = tiny_qwen2(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
        eos_token_id=END,
        pad_token_id=END,
    )
    return FoundationModel(language_model.to(dtype)).eval()


def lora_model(rank=4, dropout=0.0, layers=LAYERS, dtype=torch.float32):
    """A model with LoRA weights that are no longer zero."""
    model = base_model(layers, dtype)
    model.add_lora(rank, 16, dropout, TARGETS)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


QUESTIONS = [[5, 9, 11, 3], [7], [8, 8, 2, 40, 41, 42, 43], [30, 31]]
ANSWERS = [[20, 21, END], [END], [22, END], [23, 24, 25, 26, END]]
MODELS = pytest.mark.parametrize("make", [base_model, lora_model])
ALONE = [0, 1, 2, 3]  # the clip of each question
CLIPS = pytest.mark.parametrize("clip", [ALONE, [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]])


def example(model, questions=QUESTIONS, answers=ANSWERS, clip=ALONE):
    """What is received, answer ids and their mask, and the most tokens of a clip's questions and
    answers: what `answer_loss` reads."""
    ids, mask = pad(questions, END)
    media = 0.3 * gaussian(max(clip) + 1, MEDIA, HIDDEN)
    received = Received(
        media=media,
        media_mask=mask.new_ones(media.shape[:2]),
        question=model.embed(ids),
        question_mask=mask,
        clip=torch.tensor(clip),
    )
    tokens = [0] * len(media)
    for i, question, answer in zip(clip, questions, answers, strict=True):
        tokens[i] += len(question) + len(answer)
    return received, *pad(answers, END), max(tokens)


def apart(received):
    """The same questions, each with media of its own."""
    clip = received.clip
    media = {"media": received.media[clip], "media_mask": received.media_mask[clip]}
    return replace(received, **media, clip=torch.arange(len(clip)))


def scatter(tokens, mask, seed):
    """The same rows in more padding, which stands anywhere and is not zero."""
    source, wide = seeded(seed), tokens.shape[1] + 9
    places = torch.stack([torch.randperm(wide, generator=source) < n for n in mask.sum(dim=1)])
    spread = 50 * gaussian(len(mask), wide, tokens.shape[2])
    spread[places] = tokens[mask]
    return spread, places


def spread(received, seed=0):
    """Media and questions in more padding."""
    media, media_mask = scatter(received.media, received.media_mask, seed)
    question, question_mask = scatter(received.question, received.question_mask, seed + 1)
    return Received(media, media_mask, question, question_mask, received.clip)


def rows(received):
    """The tokens that stand before each answer where every question is read by itself."""
    media = [row[real] for row, real in zip(received.media, received.media_mask, strict=True)]
    texts = zip(received.clip, received.question, received.question_mask, strict=True)
    return [torch.cat([media[clip], row[real]]) for clip, row, real in texts]


def reference_losses(model, received, answers):
    """Loss of each answer token: each question by itself, the whole sequence, nothing padded."""
    losses = []
    for row, answer in zip(rows(received), answers, strict=True):
        read = torch.cat([row, model.embed(torch.tensor(answer))])[None]
        logits = model.language_model(inputs_embeds=read).logits[0].double()
        for k, wanted in enumerate(answer):
            scores = logits[len(row) + k - 1]
            losses.append((scores.exp().sum().log() - scores[wanted]).item())
    return losses


@MODELS
@CLIPS
@pytest.mark.parametrize("answers", [ANSWERS, [[20]] * 4, [[END]] * 4, [[END], *ANSWERS[1:]]])
def test_answer_loss_is_its_definition(make, clip, answers):
    """The mean over all answer tokens of the batch, end of text included, and over them alone: each
    adds what it costs in a row by itself, whatever the lengths of the rows beside it, and whichever
    questions it shares a sequence with."""
    model = make()
    batch = example(model, answers=answers, clip=clip)
    expected = reference_losses(model, batch[0], answers)
    assert len(expected) == sum(map(len, answers))
    loss = model.answer_loss(*batch).item()
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_question_tokens_are_no_labels(monkeypatch):
    """Other question ids change what is read but nothing of what is to be predicted."""
    model, seen = base_model(), []

    def record(logits, labels, **how):
        seen.append(labels)
        return cross_entropy(logits, labels, **how)

    monkeypatch.setattr("modules.foundation_model.cross_entropy", record)
    others = [[(3 * i + 1) % VOCABULARY for i in row] for row in QUESTIONS]
    losses = [model.answer_loss(*example(model, q)).item() for q in (QUESTIONS, others)]
    assert abs(losses[0] - losses[1]) > 1e-3, "the question is not read"
    assert torch.equal(*seen) and seen[0][seen[0] >= 0].tolist() == sum(ANSWERS, [])
    expected = reference_losses(model, example(model, others)[0], ANSWERS)
    assert losses[1] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@CLIPS
def test_padding_changes_neither_loss_nor_answers(clip):
    """What padding holds, how much of it there is and where it stands do not matter."""
    model = base_model()
    received, ids, mask, most = example(model, clip=clip)
    loss = model.answer_loss(received, ids, mask, most)
    answers = model.generate(received, NEVER, 5)
    wide_mask = torch.nn.functional.pad(mask, (0, 5))
    wide_ids = torch.nn.functional.pad(ids, (0, 5)).masked_fill(~wide_mask, 33)
    for seed in range(3):
        padded = spread(received, seed)
        for room in (most, most + 7):
            found = model.answer_loss(padded, wide_ids, wide_mask, room)
            torch.testing.assert_close(found, loss)
        assert torch.equal(model.generate(padded, NEVER, 5), answers)


@CLIPS
def test_questions_of_a_clip_do_not_see_each_other(clip):
    """Other tokens of one question and of its answer change its own scores and no other's, before
    or after it; other media of a clip change those of all its questions."""
    model, seen = base_model(), []
    head = model.language_model.get_output_embeddings()
    head.register_forward_hook(lambda _, read, scores: seen.append(scores))
    received, ids, mask, most = example(model, clip=clip)
    model.answer_loss(received, ids, mask, most)

    def changed():
        pairs = zip(seen[0], seen.pop(), mask, strict=True)
        return [(a[real] - b[real]).abs().max().item() > 1e-4 for a, b, real in pairs]

    for i in range(4):
        question, said = received.question.clone(), ids.clone()
        question[i] += 0.3 * gaussian(*question[i].shape)
        said[i, :-1] = (said[i, :-1] + 5) % VOCABULARY
        model.answer_loss(replace(received, question=question), said, mask, most)
        assert changed() == [j == i for j in range(4)]
    for i in range(max(clip) + 1):
        media = received.media.clone()
        media[i, 2] += 0.3
        model.answer_loss(replace(received, media=media), ids, mask, most)
        assert changed() == [j == i for j in clip]


@MODELS
@CLIPS
def test_logits_are_computed_for_answers_alone(make, clip):
    """The vocabulary head sees the answers' positions, padded to the longest answer, and no more,
    however long the sequence is."""
    model, seen = make(), []
    head = model.language_model.get_output_embeddings()
    head.register_forward_hook(lambda _, read, out: seen.append(read[0].shape))
    for questions in (QUESTIONS, [30 * question for question in QUESTIONS]):
        model.answer_loss(*example(model, questions, clip=clip))
    assert seen == 2 * [(len(ANSWERS), max(map(len, ANSWERS)), HIDDEN)]


@CLIPS
def test_no_attention_mask_is_built(clip):
    """Where each question has its own clip every layer attends without a mask, which leaves it the
    kernel that needs none. Where questions share a clip its media stand in the sequence once, and
    no longer than the clip with most text needs."""
    model, masks, read = base_model(), [], []
    for layer in model.decoder.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, named: masks.append(named["attention_mask"]), with_kwargs=True
        )
        layer.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[:2]))
    model.answer_loss(*example(model, clip=clip))
    assert len(masks) == LAYERS and all((mask is None) == (clip == ALONE) for mask in masks)
    lengths = [0] * (max(clip) + 1)
    for i, question, answer in zip(clip, QUESTIONS, ANSWERS, strict=True):
        lengths[i] += len(question) + len(answer)
    assert read == LAYERS * [(len(lengths), MEDIA + max(lengths))]


@CLIPS
@pytest.mark.parametrize("save", [False, True])
def test_a_step_waits_for_no_value(save, clip):
    """Neither the loss nor its gradients make the host wait for what a tensor holds: on the meta
    device, where tensors hold nothing, they are computed all the same."""
    model = lora_model(dropout=0.1).train()
    if save:
        model.save_memory()
    received, ids, mask, most = example(model, clip=clip)
    with NoHostSync(), NoHostData():
        model.answer_loss(received, ids, mask, most).backward()
        model.zero_grad()
    model.to("meta")
    parts = {name: part.detach().to("meta") for name, part in vars(received).items()}
    for name in ("media", "question"):
        parts[name].requires_grad_()
    ids, mask = ids.to("meta"), mask.to("meta")
    with NoHostSync(), NoHostData():
        model.answer_loss(Received(**parts), ids, mask, most).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.is_meta for p in (parts["media"], parts["question"], *trained))


@CLIPS
def test_gradients_reach_all_that_was_received(clip):
    """Every received token before the answer is trained, padding is not."""
    model = base_model()
    received, *answer = example(model, clip=clip)
    received = spread(received)
    for part in ("media", "question"):
        setattr(received, part, getattr(received, part).detach().requires_grad_())
    model.answer_loss(received, *answer).backward()
    for part in ("media", "question"):
        grad, real = getattr(received, part).grad, getattr(received, f"{part}_mask")
        assert grad.isfinite().all() and grad[real].abs().sum(-1).gt(0).all()
        assert grad[~real].eq(0).all()


def naive_answer(model, received, end, most):
    """Greedy decoding as one would write it first: the whole sequence again for every token."""
    answer = []
    while len(answer) < most and (not answer or answer[-1] != end):
        read = torch.cat([received, model.embed(torch.tensor(answer, dtype=torch.long))])[None]
        answer.append(model.language_model(inputs_embeds=read).logits[0, -1].argmax().item())
    return answer


def cut(row, end):
    """Ids up to the end token, which comes last if it is there."""
    return row[: row.index(end) + 1] if end in row else row


@MODELS
@CLIPS
def test_generate_is_greedy_decoding(make, clip):
    """Batched answers are those of a plain loop of argmax, and those of one question at a time,
    whichever questions share their media."""
    model = make()
    received = spread(example(model, clip=clip)[0])
    naive = [naive_answer(model, row, end=NEVER, most=8) for row in rows(received)]
    end = naive[0][2]  # one row ends after its third token, the others when they say it or never
    expected = [cut(row, end) for row in naive]
    assert len(expected[0]) <= 3 < max(map(len, expected))
    answers = model.generate(received, end, max_new_tokens=8).tolist()
    single = apart(received)
    for i, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        assert answer[: len(wanted)] == wanted
        assert set(answer[len(wanted) :]) <= {end}, "after its end a row holds the end token alone"
        one = {name: part[i : i + 1] for name, part in vars(single).items() if name != "clip"}
        one = model.generate(Received(**one, clip=torch.tensor([0])), end)
        assert cut(one[0].tolist(), end) == wanted


@MODELS
@pytest.mark.parametrize("ends_after", [1, 3, 9])
def test_alternatives_are_greedy_from_other_first_tokens(make, ends_after):
    """The first is what `generate` writes, if that is nothing, an answer, or one that does not end;
    each other one goes on greedily from its first token; their probabilities are products over
    their tokens."""
    model, most = make(), 4
    received, *_ = example(model, QUESTIONS[:1], ANSWERS[:1], [0])
    end = naive_answer(model, rows(received)[0], NEVER, most=9)[ends_after - 1]
    ids, probability = model.alternatives(received, end, most, count=5)
    assert cut(ids[0].tolist(), end) == cut(model.generate(received, end, most)[0].tolist(), end)
    media, text = received.media[0], received.question[0]

    def following(written: list[int]) -> torch.Tensor:
        tokens = torch.cat([media, text, model.embed(torch.tensor(written, dtype=torch.long))])
        return model.language_model(inputs_embeds=tokens[None]).logits[0, -1].softmax(dim=0)

    with torch.inference_mode():
        assert ids[:, 0].tolist() == following([]).topk(5).indices.tolist()
        for row, said in zip(ids.tolist(), probability, strict=True):
            written = row[: row.index(end) + 1] if end in row else row
            parts = [following(written[:i]) for i in range(len(written))]
            each = [part[token] for part, token in zip(parts, written, strict=True)]
            assert said.item() == pytest.approx(torch.stack(each).prod().item(), rel=1e-4)
            greedy = [part.argmax().item() for part in parts[1:]]
            assert written[1:] == greedy and set(row[len(written) :]) <= {end}


@CLIPS
def test_generate_uses_the_cache(clip):
    """The media of each clip are read once, then the questions, then one token a step."""
    model, read = base_model(), []
    layer = model.language_model.model.layers[0]
    layer.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape[:2])))
    model.generate(example(model, clip=clip)[0], end_id=NEVER, max_new_tokens=4)
    assert read == [(max(clip) + 1, MEDIA), (4, 7), (4, 1), (4, 1), (4, 1)]


def test_generate_is_greedy_whatever_the_model_folder_says():
    """Settings that a published model brings along (sampling, penalties) do not change answers."""
    model = base_model()
    received = example(model)[0]
    expected = model.generate(received, NEVER, max_new_tokens=6)
    settings = model.language_model.generation_config
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = True, 5.0, 0.9, 50
    settings.repetition_penalty = 5.0
    assert torch.equal(model.generate(received, NEVER, max_new_tokens=6), expected)


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_lora_adds_q_and_v_alone(rank):
    """LoRA adds a pair of matrices to each q_proj and v_proj, and those alone are trained: alpha /
    rank times their product, with the asked dropout. Rank 0 leaves the model as it is."""
    model = base_model()
    before = dict(model.named_parameters())
    assert not any(p.requires_grad for p in before.values())
    loss = model.answer_loss(*example(model))
    model.add_lora(rank, 16, 0.1, TARGETS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name and name.split(".lora_")[0][-6:] in TARGETS for name in trained)
    added = LAYERS * rank * ((HIDDEN + HIDDEN) + (HIDDEN + HIDDEN // 2))  # 4 query, 2 value heads
    assert sum(p.numel() for p in trained.values()) == added
    assert sum(1 for _ in model.parameters()) == len(before) + len(trained)
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    assert len(trained) == 2 * len(layers) == (4 * LAYERS if rank else 0)
    for layer in layers:
        assert layer.scaling["default"] == 16 / rank and layer.lora_dropout["default"].p == 0.1
    assert rank or [name for name, _ in model.named_parameters()] == [*before]
    torch.testing.assert_close(model.eval().answer_loss(*example(model)), loss)


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


@MODELS
@CLIPS
def test_half_precision_base_with_full_precision_tokens_and_lora(make, clip):
    """A foundation model in bfloat16 reads float32 tokens, as in the paper preset, and gets no
    gradient; LoRA on it is trained in float32."""
    expected, model = make(), make(dtype=torch.bfloat16)
    loss = expected.answer_loss(*example(expected, clip=clip)).item()
    received, *rest = example(model, clip=clip)
    received.media = received.media.detach().float().requires_grad_()
    received.question = received.question.float()
    found = model.answer_loss(received, *rest)
    found.backward()
    assert found.dtype == torch.float32 and found.item() == pytest.approx(loss, rel=0.05)
    assert received.media.grad.dtype == torch.float32 and received.media.grad.isfinite().all()
    assert len(model.generate(received, END)) == len(QUESTIONS)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            assert weight.dtype == weight.grad.dtype == torch.float32 and weight.grad.any(), name
        else:
            assert weight.dtype == torch.bfloat16 and weight.grad is None, name


def trained_step(model, batch, divide=lambda received: received):
    """Loss, the gradients of what was received and of every trained weight, and the bytes kept for
    them."""
    (received, *rest), kept = batch, []
    leaves = {k: getattr(received, k).detach().clone() for k in ("media", "question")}
    leaves = {k: leaf.requires_grad_() for k, leaf in leaves.items()}
    received = divide(replace(received, **leaves))
    model.zero_grad()
    torch.manual_seed(0)  # of LoRA's dropout
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.nbytes) or t, lambda t: t
    ):
        loss = model.answer_loss(received, *rest)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    grads |= {name: leaf.grad for name, leaf in leaves.items()}
    return loss.detach(), grads, sum(kept)


@MODELS
@pytest.mark.parametrize("clip", [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]])
def test_sharing_media_changes_neither_loss_nor_gradients(make, clip):
    """Questions in one sequence with their clip give the loss and every gradient, of the media, of
    the questions and of LoRA, of one sequence a question, to 1e-5."""
    model = make()
    batch = example(model, clip=clip)
    loss, grads, _ = trained_step(model, batch)
    wanted, of_each, _ = trained_step(model, batch, apart)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads, of_each, rtol=1e-5, atol=1e-5)
    assert all(grad.any() for grad in grads.values())


@CLIPS
def test_saving_memory_changes_nothing_but_memory(clip):
    """Layers that are computed again going backward give the loss and the gradients of layers that
    are not, LoRA's dropout included, and keep far less in between."""
    model, computed = lora_model(dropout=0.1).train(), []
    for layer in model.decoder.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: computed.append(1))
    batch = example(model, clip=clip)
    loss, grads, kept = trained_step(model, batch)
    assert len(computed) == LAYERS
    answers = model.eval().generate(batch[0], NEVER)
    model.train().save_memory()
    computed.clear()
    again, found, less = trained_step(model, batch)
    assert len(computed) == 2 * LAYERS and less < kept / 3
    torch.testing.assert_close(again, loss)
    assert len(grads) == 2 + 4 * LAYERS and all(grad.any() for grad in grads.values())
    torch.testing.assert_close(found, grads)
    assert torch.equal(model.eval().generate(batch[0], NEVER), answers)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("clip", [ALONE, [0, 0, 1, 1]])
def test_compiled_layers_give_the_same(clip):
    """A compiled model has the loss and the gradients of one that is not, and is compiled once for
    sequences of all lengths."""
    model = lora_model(layers=1).train()
    others = [question + [3, 4, 5] for question in QUESTIONS]
    more = [[2, *answer] for answer in ANSWERS]
    batches = [example(model, clip=clip), example(model, others, more, clip)]
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
    model = base_model()
    weight = model.embed(torch.arange(VOCABULARY)).double()
    assert model.embedding_rms() == pytest.approx(weight.square().mean().sqrt().item(), rel=1e-5)
    assert model.embed(torch.tensor([[3, 4]])).shape == (1, 2, HIDDEN)
