"""What is left of a PPO step: sampling, reward shaping and GAE, whitening, the losses, AdamW with clipping. In PyTorch
these are many small kernels; the time is from the first to the last, the host's gaps included. The GAE is the loop
over time that TRL has.
"""

import torch
import torch.nn.functional as F

import torch_eager
from protocol import cost_of, forward, measure, relative

TEMPERATURE, TOP_K, TOP_P = 0.7, 50, 0.9


def sample(logits):
    return torch.multinomial(torch.softmax(logits.float() / TEMPERATURE, dim=-1), 1)


def sample_gumbel(logits):
    """The same distribution without normalising or sorting."""
    scaled = logits.float() / TEMPERATURE
    return (scaled - torch.empty_like(scaled).exponential_().log()).argmax(dim=-1)


def sample_truncated(logits):
    """With the processors that transformers' generate uses."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = logits.float()
    for processor in (TemperatureLogitsWarper(TEMPERATURE), TopKLogitsWarper(TOP_K), TopPLogitsWarper(TOP_P)):
        scores = processor(None, scores)
    return torch.multinomial(torch.softmax(scores, dim=-1), 1)


def gae(logprobs, ref_logprobs, scores, values):
    rewards = torch_eager.KL_COEF * (ref_logprobs - logprobs)
    rewards[:, -1] += scores
    return torch_eager.gae(rewards, values)


def losses(logprobs, old_logprobs, advantages, values, old_values, returns):
    """Loss and both gradients."""
    policy_loss, value_loss = torch_eager.ppo_losses(logprobs, old_logprobs, advantages, values, old_values, returns)
    return torch.autograd.grad(policy_loss + torch_eager.VF_COEF * value_loss, (logprobs, values))


def pairwise(scores, margin):
    chosen, rejected = scores.chunk(2)
    return torch.autograd.grad(-F.logsigmoid(chosen - rejected - margin).mean(), scores)


def in_f64(f):
    """The error of `f`, against itself in f64."""

    def check(inputs, outputs):
        return relative(outputs, f(*(t.detach().double().requires_grad_(t.requires_grad) for t in inputs)))

    return check


def sampling(lab, r, v):
    shape, cost = f"R {r} V {v}", cost_of(nbytes=r * v * lab.floats.itemsize)
    make = lambda: (lab.randn(r, v),)
    gumbel = lab.compile(sample_gumbel)
    peers = {"softmax and multinomial": forward(sample), "Gumbel-max, torch.compile": forward(gumbel)}
    measure(lab, "sample", shape, peers, make, cost)
    peers = {"transformers' processors": forward(sample_truncated)}
    measure(lab, "sample top-k 50 top-p 0.9", shape, peers, make, cost)


def scans(lab, b, t):
    wide = lambda *shape, grad=False: lab.randn(*shape, dtype=torch.float32, grad=grad)
    n = b * t
    make = lambda: (wide(b, t), wide(b, t), wide(b), wide(b, t))
    measure(lab, "gae with reward shaping", f"B {b} T {t}", {"eager loop": forward(gae)}, make, cost_of(nbytes=24 * n),
            in_f64(gae), runs=10)
    compiled = lab.compile(torch_eager.whitened)
    peers = {"eager": forward(torch_eager.whitened), "torch.compile": forward(compiled)}
    measure(lab, "whiten", f"N {n}", peers, lambda: (wide(n),), cost_of(nbytes=8 * n), in_f64(torch_eager.whitened))
    make = lambda: (wide(n, grad=True), wide(n), wide(n), wide(n, grad=True), wide(n), wide(n))
    compiled = lab.compile(torch_eager.ppo_losses)
    peers = {"eager": forward(losses), "torch.compile": forward(with_losses(compiled))}
    measure(lab, "ppo_loss", f"N {n}", peers, make, cost_of(nbytes=32 * n), in_f64(losses))


def with_losses(ppo_losses):
    """The gradients of a compiled loss."""

    def run(logprobs, old_logprobs, advantages, values, old_values, returns):
        policy_loss, value_loss = ppo_losses(logprobs, old_logprobs, advantages, values, old_values, returns)
        return torch.autograd.grad(policy_loss + torch_eager.VF_COEF * value_loss, (logprobs, values))

    return run


def pairs(lab, p):
    make = lambda: (lab.randn(2 * p, dtype=torch.float32, grad=True), lab.randn(p, dtype=torch.float32))
    measure(lab, "pairwise_loss", f"P {p}", {"eager": forward(pairwise)}, make, cost_of(nbytes=20 * p),
            in_f64(pairwise))


def fused_adamw(lab, n, clipped):
    """f32 masters and moments by torch's fused AdamW, then the copy in the floats that the model computes in; ours
    writes both in one pass. `clipped` adds clip_grad_norm_."""

    def prepare(inputs):
        masters, grads = inputs
        weights = masters.to(lab.floats)
        masters.grad = grads
        optimizer = torch.optim.AdamW([masters], lr=1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)

        def step():
            if clipped:
                torch.nn.utils.clip_grad_norm_([masters], 1.0)
            optimizer.step()
            with torch.no_grad():
                weights.copy_(masters)

        return step

    return prepare


def optimizer(lab, n):
    wide = lambda grad=False: lab.randn(n, dtype=torch.float32, grad=grad)
    make = lambda: (wide(True), wide())
    peers = {"fused AdamW and a bf16 copy": fused_adamw(lab, n, False),
             "fused AdamW, clip_grad_norm_ and a bf16 copy": fused_adamw(lab, n, True)}
    measure(lab, "adamw", f"n {n}", peers, make, cost_of(nbytes=(28 + (2 if lab.on_gpu else 0)) * n))
    norm = torch.linalg.vector_norm
    measure(lab, "global_norm", f"n {n}", {"eager": forward(norm)}, lambda: (wide(),), cost_of(nbytes=4 * n),
            in_f64(norm))


def run(lab):
    sampling(lab, *((4, 128) if lab.tiny else (512, 151936)))
    scans(lab, *((4, 16) if lab.tiny else (64, 512)))
    pairs(lab, 8 if lab.tiny else 4096)
    optimizer(lab, 1024 if lab.tiny else 1 << 27)
