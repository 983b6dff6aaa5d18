"""Attention by SDPA's backends. Training: causal, forward and backward, the backward also in torch's deterministic
mode. Decoding: one query token of every row against its cache, with grouped heads. FLOP of a causal forward pass are
2 B T^2 NH HD (half of the square), 2.5 times that backward; a decoding step reads keys and values once.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from protocol import against_f64, backward, cost_of, forward, gradients_against_f64, measure

BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# Rows, length, query heads, key-value heads, head size. The first two are those of `benches/kernels.rs`.
TRAINING = [
    (8, 2048, 32, 32, 64), (8, 2048, 16, 4, 128), (8, 2048, 16, 16, 128), (16, 1024, 12, 12, 64), (16, 1024, 14, 2, 64),
    (2, 8192, 32, 32, 64), (2, 8192, 16, 16, 128),
]
DECODING = [(256, 2048, 32, 8, 128), (32, 512, 14, 2, 64), (128, 512, 14, 2, 64), (256, 1024, 14, 2, 64)]


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def look(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def repeated(f):
    """For a backend without grouped heads: every query head gets its own copy of keys and values."""

    def run(q, k, v):
        n = q.shape[1] // k.shape[1]
        return f(q, k.repeat_interleave(n, dim=1), v.repeat_interleave(n, dim=1))

    return run


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def inside(context, prepare):
    """The peer with its forward and its timed call under a context, entered for every call."""

    def prepared(inputs):
        with context():
            run = prepare(inputs)

        def call():
            with context():
                return run()

        return call

    return prepared


def with_backend(backend, prepare):
    return inside(lambda: sdpa_kernel([backend]), prepare)


def peers_of(f, prepare, grouped):
    """The backends; where heads are grouped, the memory-efficient one gets repeated keys and values."""
    no_groups = lambda backend: grouped and backend == SDPBackend.EFFICIENT_ATTENTION
    call = lambda backend: repeated(f) if no_groups(backend) else f
    named = lambda name, backend: f"{name}, repeated heads" if no_groups(backend) else name
    return {named(name, b): with_backend(b, prepare(call(b))) for name, b in BACKENDS.items()}


def first_group(*tensors):
    """The first row and the query heads of its first key-value head."""
    q, k = tensors[0], tensors[1]
    n = q.shape[1] // k.shape[1]
    return tuple(t[:1, : n if t.shape[1] == q.shape[1] else 1] for t in tensors)


def cut(inputs, out):
    n = inputs[0].shape[1] // inputs[1].shape[1]
    return first_group(*inputs), out[:1, :n]


def cut_gradients(inputs, gradients):
    return first_group(*inputs), first_group(*gradients)


def training(lab):
    for b, t, nh, nkv, hd in [(2, 64, 4, 2, 16)] if lab.tiny else TRAINING:
        shape, flop = f"B {b} T {t} heads {nh}:{nkv} HD {hd} causal", 2 * b * t**2 * nh * hd
        make = lambda grad: lambda: tuple(lab.randn(b, heads, t, hd, grad=grad) for heads in (nh, nkv, nkv))
        both = lambda: (*make(True)(), lab.randn(b, nh, t, hd))
        peers = peers_of(attend, forward, nh != nkv)
        measure(lab, "attention forward", shape, peers, make(False), cost_of(flop=flop), against_f64(attend, cut))
        peers = peers_of(attend, backward, nh != nkv)
        peers |= {f"{name}, deterministic": inside(deterministic, peer) for name, peer in peers.items()}
        measure(lab, "attention backward", shape, peers, both, cost_of(flop=2.5 * flop),
                gradients_against_f64(attend, cut_gradients))


def decoding(lab):
    for b, t, nh, nkv, hd in [(2, 64, 4, 2, 16)] if lab.tiny else DECODING:
        shape = f"B {b} T {t} heads {nh}:{nkv} HD {hd}"
        make = lambda: (lab.randn(b, nh, 1, hd), lab.randn(b, nkv, t, hd), lab.randn(b, nkv, t, hd))
        nbytes = 2 * b * (t + 1) * nkv * hd * lab.floats.itemsize
        measure(lab, "attention decode", shape, peers_of(look, forward, nh != nkv), make, cost_of(nbytes=nbytes),
                against_f64(look, cut))
