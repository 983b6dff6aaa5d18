"""Operations on rows: norms, SwiGLU, GELU, rotary positions, cross-entropy on logits that exist. Each is bound by the
bytes that it must move, 2 a float; names, shapes and bytes are those of `src/selftest/workloads/rows.rs`.
"""

import torch
import torch.nn.functional as F

from protocol import against_f64, backward, cost_of, forward, gradients_against_f64, measure

EPS = 1e-5
HEAD_SIZE, POSITIONS = 128, 2048
CHECKED_ROWS = 512


def rms_norm(x, w):
    return F.rms_norm(x, w.shape, w, EPS)


def add_rms_norm(x, d, w):
    total = x + d
    return total, rms_norm(total, w)


def layer_norm(x, w, b):
    return F.layer_norm(x, w.shape, w, b, EPS)


def add_layer_norm(x, d, w, b):
    total = x + d
    return total, layer_norm(total, w, b)


def swiglu(gate, up):
    return F.silu(gate) * up


def gelu(x):
    return F.gelu(x, approximate="tanh")


def rope(x, cos, sin):
    """x [N, NH, HD], halves turned by cos and sin [N, 1, HD], in the floats of x, as transformers does."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def cross_entropy(logits, targets):
    return F.cross_entropy(logits.float(), targets)


def logprobs(logits, targets):
    """Log-probabilities at temperature 0.7 without a second copy of the logits: the chosen logit less the lse."""
    scaled = logits.float() / 0.7
    return scaled.gather(1, targets[:, None])[:, 0] - torch.logsumexp(scaled, dim=1)


def of_liger(name, *more):
    """A function of Liger's, imported when it runs."""

    def call(*inputs):
        from liger_kernel.transformers import functional

        return getattr(functional, name)(*inputs, *more)

    return call


def peers_of(lab, f, liger=None, kind=forward):
    peers = {"eager": kind(f), "torch.compile": kind(lab.compile(f))}
    return peers | ({"Liger": kind(liger)} if liger else {})


def first_rows(inputs, outputs):
    """The first rows of everything that has rows; gradients of weights need all of them and are left out."""
    tensors = [outputs] if torch.is_tensor(outputs) else list(outputs)
    cut = lambda t: t[:CHECKED_ROWS] if t.dim() > 1 else t
    return tuple(map(cut, inputs)), [cut(t) for t in tensors if t.dim() > 1]


def norms(lab, n, c):
    shape, row = f"N {n} C {c}", n * c * lab.floats.itemsize
    x, w = (lambda grad=False: lab.randn(n, c, grad=grad)), (lambda grad=False: lab.randn(c, grad=grad))
    check = lambda f: against_f64(f, first_rows)
    # Named, shaped and counted as ours.
    cases = [
        ("rms_norm forward", rms_norm, of_liger("liger_rms_norm", EPS), lambda: (x(), w()), 2),
        ("rms_norm forward with residual", add_rms_norm, None, lambda: (x(), x(), w()), 4),
        ("layer_norm forward", layer_norm, of_liger("liger_layer_norm", EPS), lambda: (x(), w(), w()), 2),
        ("layer_norm forward with residual", add_layer_norm, None, lambda: (x(), x(), w(), w()), 4),
    ]
    for name, f, liger, make, rows in cases:
        measure(lab, name, shape, peers_of(lab, f, liger), make, cost_of(nbytes=rows * row), check(f))
    # Whole, because weights gather over all rows; 16384 x 4096 in f64 is half a gigabyte a tensor.
    rms, layer = of_liger("liger_rms_norm", EPS), of_liger("liger_layer_norm", EPS)
    cases = [
        ("rms_norm backward", rms_norm, rms, lambda: (x(True), w(True), x())),
        ("layer_norm backward", layer_norm, layer, lambda: (x(True), w(True), w(True), x())),
    ]
    for name, f, liger, make in cases:
        measure(lab, name, shape, peers_of(lab, f, liger, backward), make, cost_of(nbytes=3 * row),
                gradients_against_f64(f))


def activations(lab, n, f):
    shape, row = f"N {n} F {f}", n * f * lab.floats.itemsize
    # Inputs, and how many of [N, F] move forward and backward. Gate and up are two tensors here: Liger wants them so.
    cases = [("swiglu", swiglu, of_liger("liger_swiglu"), 2, (3, 5)), ("gelu", gelu, None, 1, (2, 3))]
    for name, call, liger, inputs, (ahead, back) in cases:
        make = lambda grad: [lab.randn(n, f, grad=grad) for _ in range(inputs)]
        measure(lab, f"{name} forward", shape, peers_of(lab, call, liger), lambda: make(False),
                cost_of(nbytes=ahead * row), against_f64(call, first_rows))
        measure(lab, f"{name} backward", shape, peers_of(lab, call, liger, backward),
                lambda: [*make(True), lab.randn(n, f)], cost_of(nbytes=back * row),
                gradients_against_f64(call, first_rows))


def rotary(lab, n, c, hd):
    def make():
        frequency = 10000.0 ** (-torch.arange(0, hd, 2, device=lab.device) / hd)
        angles = (torch.arange(n, device=lab.device) % POSITIONS)[:, None] * frequency
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return lab.randn(n, c // hd, hd), angles.cos().to(lab.floats), angles.sin().to(lab.floats)

    nbytes = 2 * n * c * lab.floats.itemsize + 4 * min(n, POSITIONS) * hd
    measure(lab, "rope forward", f"N {n} heads {c // hd} HD {hd}", peers_of(lab, rope), make, cost_of(nbytes=nbytes),
            against_f64(rope, first_rows))


def logits(lab, sizes):
    """Cross-entropy and its gradient, one read and one write of the logits at least; log-probabilities, one read."""
    r, v = sizes[0]
    make = lambda: (lab.randn(r, v, grad=True), lab.randint(v, r))
    both = lambda f: lambda inputs: lambda: torch.autograd.grad(f(*inputs), inputs[0])
    peers = {"eager": both(cross_entropy), "torch.compile": both(lab.compile(cross_entropy)),
             "Liger": both(of_liger("liger_cross_entropy"))}
    measure(lab, "row cross-entropy, both ways", f"R {r} V {v}", peers, make,
            cost_of(nbytes=2 * r * v * lab.floats.itemsize), row_gradient)
    r, v = sizes[1]
    make = lambda: (lab.randn(r, v), lab.randint(v, r))
    measure(lab, "token_logprobs forward", f"R {r} V {v}", peers_of(lab, logprobs), make,
            cost_of(nbytes=r * v * lab.floats.itemsize), against_f64_logprobs)


def row_gradient(inputs, gradients):
    """(softmax - onehot) / R on the first rows."""
    x, targets = inputs[0].detach()[:64].double(), inputs[1][:64]
    expected = torch.softmax(x, dim=1)
    expected[torch.arange(len(x), device=x.device), targets] -= 1
    expected /= len(inputs[0])
    return float((gradients[0][:64].double() - expected).norm() / expected.norm())


def against_f64_logprobs(inputs, out):
    """Not through `logprobs` itself, which widens to f32."""
    x, targets = inputs[0][:64].double() / 0.7, inputs[1][:64]
    expected = torch.log_softmax(x, dim=1).gather(1, targets[:, None])[:, 0]
    return float((out[:64].double() - expected).norm() / expected.norm())


def run(lab):
    n, c = (32, 256) if lab.tiny else (16384, 4096)
    norms(lab, n, c)
    activations(lab, n, c)
    rotary(lab, n, c, 16 if lab.tiny else HEAD_SIZE)
    logits(lab, [(8, 128), (8, 128)] if lab.tiny else [(8192, 151936), (512, 151936)])
