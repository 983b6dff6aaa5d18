"""The language-model head: loss and its gradients in hidden states and weights, from bf16 hidden states x [N, C] and
weights W [V, C]. The limit is three bare products, 6 N C V FLOP.
"""

import torch
import torch.nn.functional as F

from protocol import cost_of, measure

SIZES = [(4096, 2048, 65536), (8192, 4096, 151936)]
CHECKED_ROWS = 256
CHUNK_ROWS = 2048


def loss_of(x, w, targets):
    """Materialised logits, cross-entropy in f32."""
    return F.cross_entropy((x @ w.T).float(), targets)


def bare_products(inputs):
    """Logits and both gradients without a loss: no form can do less."""
    x, w, _ = (t.detach() for t in inputs)
    logits = x @ w.T
    return lambda: (torch.matmul(x, w.T, out=logits), logits @ w, logits.T @ x)


def gradients_of(f):
    """Forward and backward as one call."""

    def prepare(inputs):
        x, w, targets = inputs
        return lambda: torch.autograd.grad(f(x, w, targets), (x, w))

    return prepare


def chunked(inputs):
    """Chunks of rows in plain PyTorch: the gradient of each chunk's logits at once, the weight's summed in f32."""
    x, w, targets = (t.detach() for t in inputs)

    def run():
        dx, dw = torch.empty_like(x), torch.zeros(w.shape, dtype=torch.float32, device=w.device)
        for at in range(0, len(x), CHUNK_ROWS):
            rows = slice(at, at + CHUNK_ROWS)
            dlogits = torch.softmax((x[rows] @ w.T).float(), dim=-1)
            dlogits[torch.arange(len(dlogits), device=x.device), targets[rows]] -= 1
            dlogits = (dlogits / len(x)).to(x.dtype)
            dx[rows] = dlogits @ w
            dw += dlogits.T @ x[rows]
        return dx, dw

    return run


def liger():
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def loss(x, w, targets):
        found = liger_fused_linear_cross_entropy(x, w, targets)
        return found[0] if isinstance(found, tuple) else getattr(found, "loss", found)

    return loss


def later(make):
    """A peer whose package is imported when it runs, so that its absence is a row."""
    return lambda inputs: gradients_of(make())(inputs)


def check(inputs, gradients):
    """The gradient in the first hidden states, which needs no other row: dx = (softmax - onehot) W / N."""
    x, w, targets = (t.detach()[:CHECKED_ROWS] if i != 1 else t.detach() for i, t in enumerate(inputs))
    w = w.double()
    dlogits = torch.softmax(x.double() @ w.T, dim=-1)
    dlogits[torch.arange(len(x), device=x.device), targets] -= 1
    expected = dlogits @ w / len(inputs[0])
    return float((gradients[0][:CHECKED_ROWS].double() - expected).norm() / expected.norm())


def run(lab):
    for n, c, v in [(32, 16, 64)] if lab.tiny else SIZES:
        shape, cost = f"N {n} C {c} V {v}", cost_of(flop=6 * n * c * v)
        # Weights of deviation 1 / sqrt(C) give logits of deviation 1, as a trained head's are of order 1.
        make = lambda: (lab.randn(n, c, grad=True), (lab.randn(v, c) * c**-0.5).requires_grad_(), lab.randint(v, n))
        name = "token_logprobs with the head, both ways"
        measure(lab, name, shape, {"bare products": bare_products}, make, cost)
        compiled = lab.compile(loss_of)
        peers = {"eager": gradients_of(loss_of), "torch.compile": gradients_of(compiled),
                 f"chunks of {CHUNK_ROWS}, eager": chunked, "Liger": later(liger)}
        measure(lab, name, shape, peers, make, cost, check)
