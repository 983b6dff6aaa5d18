"""A step of supervised fine-tuning in PyTorch: transformers' model with SDPA on random weights and ids, cross-entropy,
clipping, fused AdamW. `autocast` keeps f32 weights and moments and computes in bf16, as we do; `bf16` keeps bf16
weights and moments, which is faster and loses small updates. Rows are halved until a step fits the card.
"""

import gc

import torch
import torch.nn.functional as F

import shapes
from protocol import STEP_RUNS, samples_of, spread, told

# Liger stays last: it replaces classes of transformers for the rest of the process.
VARIANTS = ("autocast, eager", "autocast, torch.compile", "bf16, torch.compile", "autocast, Liger")


def model_of(lab, name, variant):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = shapes.config_of(name, lab.tiny)
    if "Liger" in variant:
        patch_with_liger(config.model_type)
    dtype = lab.floats if variant.startswith("bf16") else torch.float32
    with torch.device(lab.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.train()


def patch_with_liger(model_type):
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2

    if model_type != "qwen2":
        raise NotImplementedError(f"Liger has no {model_type}")
    apply_liger_kernel_to_qwen2()


def loss_of(lab, model, variant, name):
    """The loss of a batch of ids; Liger's model computes it inside, without logits."""
    vocabulary = shapes.sizes_of(shapes.raw_config(name, lab.tiny))[3]

    def loss(ids):
        if "Liger" in variant:
            return model(ids, labels=ids, use_cache=False).loss
        logits = model(ids, use_cache=False).logits
        labels = F.pad(ids[:, 1:], (0, 1), value=-100)
        return F.cross_entropy(logits.view(-1, vocabulary).float(), labels.view(-1))

    return loss


def stepper(lab, name, variant, rows, length):
    model = model_of(lab, name, variant)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    spared = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-5, fused=True)
    loss = loss_of(lab, model, variant, name)
    loss = lab.compile(loss) if "torch.compile" in variant else loss
    vocabulary = shapes.sizes_of(shapes.raw_config(name, lab.tiny))[3]
    cast = variant.startswith("autocast")
    # A new batch every step: the batches are made before, as a loader's worker would.
    batches = [lab.randint(vocabulary, rows, length) for _ in range(4)]

    def step(ids):
        with torch.autocast(lab.device.type, torch.bfloat16, enabled=cast):
            found = loss(ids)
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return [lambda ids=ids: step(ids) for ids in batches]


def measured(lab, name, variant, rows, length):
    """A step of `rows` rows, or of half as many if that is too much."""
    if lab.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found = spread(samples_of(lab, stepper(lab, name, variant, rows, length), 2 if lab.tiny else STEP_RUNS, 3))
    peak = torch.cuda.max_memory_allocated() if lab.on_gpu else None
    tokens = rows * length
    raw = shapes.raw_config(name, lab.tiny)
    found |= {"per_run": tokens, "rate": tokens / found["median_s"], "unit": "tokens/s", "rows": rows}
    return found | {"cost_kind": "flop", "cost_per_unit": shapes.flop_per_token(raw, length), "peak_bytes": peak}


def fitting(work, most):
    """`work` on as many rows as fit: the first of most, most / 2, ... that does not run out of memory."""
    rows = most
    while True:
        try:
            return work(rows)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows //= 2
        gc.collect()
        torch.cuda.empty_cache()


def run(lab):
    steps_of(lab, ("gpt2-124m", "qwen2.5-0.5b"))


def run_large(lab):
    steps_of(lab, ("qwen2.5-1.5b",))


def steps_of(lab, models):
    for variant in VARIANTS:
        for name in models:
            rows, length = (2, 16) if lab.tiny else (shapes.SFT_ROWS[name], shapes.SFT_LENGTH)
            with told(lab, "sft", name, f"PyTorch, {variant}"):
                torch._dynamo.reset()
                found = fitting(lambda n: measured(lab, name, variant, n, length), rows)
                peer = f"PyTorch, {variant}" + (f", {found['rows']} rows fit" if found["rows"] != rows else "")
                lab.emit({"name": "sft", "shape": name, "peer": peer} | found)
