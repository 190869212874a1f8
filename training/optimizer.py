"""Muon for the matrices of the layers (Jordan et al. 2024), AdamW for embedding and norms."""

import jax
import jax.numpy as jnp


def orthogonalize(g, steps=5):
    """The nearest semi-orthogonal matrix to `g`, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = g.shape[0] <= g.shape[1]
    x = g if wide else g.T
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def is_matrix(path):
    return not any(getattr(key, "key", None) == "embedding" for key in path)


def init_state(params):
    first, second = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return {"first": first, "second": second, "step": jnp.zeros((), jnp.int32)}


def muon(param, grad, first, lr, momentum=0.95, decay=0.05):
    first = momentum * first + (1 - momentum) * grad
    direction = orthogonalize((1 - momentum) * grad + momentum * first)
    scale = max(1.0, param.shape[1] / param.shape[0]) ** 0.5
    return param * (1 - lr * decay) - lr * scale * direction, first


def adam(param, grad, first, second, step, lr, betas=(0.9, 0.97), eps=1e-10):
    first = betas[0] * first + (1 - betas[0]) * grad
    second = betas[1] * second + (1 - betas[1]) * grad * grad
    step = step.astype(jnp.float32)
    corrected = (first / (1 - betas[0] ** step)) / (jnp.sqrt(second / (1 - betas[1] ** step)) + eps)
    return param - lr * corrected, first, second


def update(params, grads, state, scale, muon_lr=0.02, adam_lr=0.004):
    """One step; `scale` is the schedule's factor on both learning rates."""
    step = state["step"] + 1
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = zip(paths, jax.tree.leaves(grads), jax.tree.leaves(state["first"]), jax.tree.leaves(state["second"]))
    new = []
    for (path, param), grad, first, second in leaves:
        if is_matrix(path) and param.ndim == 2:
            param, first = muon(param, grad, first, muon_lr * scale)
        else:
            param, first, second = adam(param, grad, first, second, step, adam_lr * scale)
        new.append((param, first, second))
    params, first, second = (jax.tree.unflatten(tree, part) for part in zip(*new))
    return params, {"first": first, "second": second, "step": step}
