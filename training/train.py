"""Train one phase on prepared rows of one length, from a checkpoint or from the start.

    train.py --rows build/rows-256.npz --steps 1400 --batch 24 --out build/phase1.npz
    train.py --rows build/rows-512.npz --steps 300 --batch 12 --init build/phase1.npz --out build/phase2.npz
"""

import argparse
import dataclasses
import functools
import json
import pickle
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import model
import optimizer

ANSWER_WEIGHT = 4.0


def objective(config, chunk, params, tokens, positions, weights):
    logits = model.forward(config, params, tokens[:, :-1], positions[:, :-1], chunk)
    target, w = tokens[:, 1:], weights[:, 1:]
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    nll = jax.nn.logsumexp(logits, axis=-1) - picked
    right = (picked >= jnp.max(logits, axis=-1)).astype(jnp.float32)
    answer = (w == ANSWER_WEIGHT).astype(jnp.float32)
    plain = (w == 1.0).astype(jnp.float32)
    report = {
        "text_nll": jnp.sum(nll * plain) / jnp.sum(plain),
        "answer_nll": jnp.sum(nll * answer) / jnp.maximum(jnp.sum(answer), 1),
        "answer_right": jnp.sum(right * answer) / jnp.maximum(jnp.sum(answer), 1),
    }
    return jnp.sum(nll * w) / jnp.sum(w), report


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def train_step(config, chunk, params, state, tokens, positions, weights, scale):
    gradient = jax.value_and_grad(functools.partial(objective, config, chunk), has_aux=True)
    (loss, report), grads = gradient(params, tokens, positions, weights)
    params, state = optimizer.update(params, grads, state, scale)
    return params, state, dict(report, loss=loss)


def save(path, config, params, state):
    whole = {"config": dataclasses.asdict(config), "params": params, "state": state}
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(pickle.dumps(jax.tree.map(lambda a: np.asarray(a) if hasattr(a, "shape") else a, whole)))
    temporary.rename(path)


def load(path):
    whole = pickle.loads(Path(path).read_bytes())
    config = model.Config(**whole["config"])
    return config, jax.tree.map(jnp.asarray, whole["params"]), jax.tree.map(jnp.asarray, whole["state"])


def schedule(step, args):
    """Warm-up, then a straight line from `--start` to `--end`, constant until `--hold` of the steps."""
    warm = min(1.0, (step + 1) / args.warmup) if args.warmup else 1.0
    done = max(0.0, step / args.steps - args.hold) / max(1e-9, 1 - args.hold)
    return warm * (args.start + (args.end - args.start) * done)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--start", type=float, default=1.0)
    parser.add_argument("--end", type=float, default=1.0)
    parser.add_argument("--hold", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=1e9, help="end early, after so long")
    args = parser.parse_args()

    if args.init:
        config, params, state = load(args.init)
    else:
        config = model.Config()
        params = model.plant_recall(config, model.init_params(config, args.seed), args.seed + 1)
        state = optimizer.init_state(params)
    rows = np.load(args.rows)
    tokens, places, weights = (rows[name] for name in ("tokens", "positions", "weights"))
    order = np.random.default_rng(args.seed).permutation(len(tokens))
    print(model.parameter_count(params), "parameters,", len(tokens), "rows", flush=True)
    begin = saved = time.time()
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))  # save, then end
    log = args.out.with_suffix(".jsonl").open("w")
    step = 0
    for step in range(args.steps):
        pick = order[np.arange(step * args.batch, (step + 1) * args.batch) % len(order)]
        params, state, report = train_step(
            config, args.chunk, params, state, tokens[pick].astype(np.int32), places[pick].astype(np.int32),
            weights[pick].astype(np.float32) / 10, schedule(step, args))
        if step % 10 == 0:
            seconds = time.time() - begin
            record = {"step": step, "seconds": round(seconds, 1), **{k: round(float(v), 4) for k, v in report.items()}}
            log.write(json.dumps(record) + "\n")
            log.flush()
            print(record, flush=True)
        if time.time() - saved > 150:
            save(args.out, config, params, state)
            saved = time.time()
        if stopping or time.time() - begin > args.minutes * 60:
            break
    save(args.out, config, params, state)
    print("finished after step", step, "in", round(time.time() - begin), "s")


if __name__ == "__main__":
    main()
