"""The ceilings that everything else is a share of, measured in the same process: a copy of 1 GB, and the largest bf16
product. Then the products of the models' layers, forward and both gradients.
"""

import torch

from protocol import against_f64, cost_of, forward, measure, samples_of, spread

MODEL_TOKENS = 16384
# Inputs and outputs of the layers: q, k, v together; MLP up (gate and up together); MLP down; the LM head.
MODEL_LAYERS = {
    "gpt2-124m": [(768, 2304), (768, 3072), (3072, 768), (768, 50304)],
    "qwen2.5-0.5b": [(896, 1152), (896, 9728), (4864, 896), (896, 151936)],
    "qwen2.5-1.5b": [(1536, 2048), (1536, 17920), (8960, 1536), (1536, 151936)],
}


def run(lab):
    """Sets `lab.ceilings`: FLOP/s and bytes/s."""
    nbytes, n = (1 << 20, 256) if lab.tiny else (1 << 30, 8192)
    source = lab.randn(nbytes // 4, dtype=torch.float32)
    target = source.clone()
    copy = spread(samples_of(lab, [lambda: target.copy_(source), lambda: source.copy_(target)], 30, 5))
    lab.ceilings["bytes"] = 2 * nbytes / copy["median_s"]
    del source, target
    a, b = lab.randn(n, n), lab.randn(n, n)
    product = spread(samples_of(lab, [lambda: a @ b, lambda: b @ a], 30, 5))
    lab.ceilings["flop"] = 2 * n**3 / product["median_s"]
    lab.emit({"ceilings": dict(lab.ceilings), "copy": copy | {"copied_bytes": nbytes}, "product": product | {"n": n}})


def linear(lab, n, c, o):
    """The three products of y = x W^T, as `torch.matmul` does them."""
    shape, cost = f"N {n} C {c} O {o}", cost_of(flop=2 * n * c * o)
    x, w, dy = (n, c), (o, c), (n, o)
    make = lambda *shapes: lambda: tuple(lab.randn(*s) for s in shapes)
    rows = lambda inputs, out: ((inputs[0][:256], inputs[1]), out[:256])
    columns = lambda inputs, out: ((inputs[0][:, :256], inputs[1]), out[:256])
    measure(lab, "gemm NT, y = x W^T", shape, {"torch": forward(nt)}, make(x, w), cost, against_f64(nt, rows))
    measure(lab, "gemm NN, dx = dy W", shape, {"torch": forward(nn)}, make(dy, w), cost, against_f64(nn, rows))
    measure(lab, "gemm TN, dW = dy^T x", shape, {"torch": forward(tn)}, make(dy, x), cost, against_f64(tn, columns))


def nt(x, w):
    return x @ w.T


def nn(dy, w):
    return dy @ w


def tn(dy, x):
    return dy.T @ x


def products(lab):
    for n in [64] if lab.tiny else [8192]:
        linear(lab, n, n, n)
    tokens = 32 if lab.tiny else MODEL_TOKENS
    for layers in MODEL_LAYERS.values():
        for c, o in layers:
            linear(lab, tokens, *((c // 32, o // 32) if lab.tiny else (c, o)))
