"""The job on FedJAX: its federated averaging over its jit backend, models in Haiku.

    python -m benchmarks.rivals.fedjax_job --job FOLDER --model tiny [--backend pmap]

One process; XLA uses the cores that it finds. The backend pmap trains one client a device, and
a CPU shows itself as two. FedJAX fills a client's last batch up with samples
drawn again, which costs it up to 31 samples a client that are not counted.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

if not hasattr(jax, "tree_map"):  # FedJAX 0.0.17 calls it; later releases of JAX moved it
    jax.tree_map = jax.tree_util.tree_map

import fedjax

from benchmarks.rivals import job

SHAPES = {"tiny": (8, 16, 3, 32), "leaf": (32, 64, 5, 512)}
"""Channels of both convolutions, their kernel, hidden units: as in `models.py`."""


def build(name: str) -> fedjax.Model:
    """Return a model as FedJAX's own EMNIST models are made."""
    first, second, kernel, hidden = SHAPES[name]

    def forward(batch, is_train=True):
        layers = [
            hk.Conv2D(first, kernel, padding="SAME"),
            jax.nn.relu,
            hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
            hk.Conv2D(second, kernel, padding="SAME"),
            jax.nn.relu,
            hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
            hk.Flatten(),
            hk.Linear(hidden),
            jax.nn.relu,
            hk.Linear(job.CLASSES),
        ]
        return hk.Sequential(layers)(batch["x"])

    return fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(forward),
        sample_batch={"x": np.zeros((1, 28, 28, 1), np.float32), "y": np.zeros(1, np.int64)},
        train_loss=lambda b, p: fedjax.metrics.unreduced_cross_entropy_loss(b["y"], p),
        eval_metrics={"accuracy": fedjax.metrics.Accuracy()},
    )


def main() -> None:
    """Run the job and print its line."""
    given = job.arguments(backend="jit")
    work = job.read(given.job)
    data = {}
    for client in range(len(work.parts)):
        x, y = work.own(client)
        data[client] = {"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1)), "y": y}
    federated = fedjax.InMemoryFederatedData(data)
    model = build(given.model)
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        grad_fn=fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(job.LR),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=job.BATCH),
    )
    with fedjax.for_each_client_backend(given.backend):
        key = jax.random.PRNGKey(0)
        state = algorithm.init(model.init(key))
        watch = job.Stopwatch()
        watch.start()
        for number in range(given.rounds + 1):
            key, *keys = jax.random.split(key, 1 + work.cohorts.shape[1])
            names = [int(client) for client in work.cohorts[number]]
            found = zip(federated.get_clients(names), keys, strict=True)
            clients = [(name, dataset, own) for (name, dataset), own in found]
            state, _ = algorithm.apply(state, clients)
            jax.block_until_ready(state.params)
            watch.lap(work.samples(number))
    logits = model.apply_for_eval(state.params, {"x": work.test_x.transpose(0, 2, 3, 1)})
    watch.report(
        "FedJAX",
        given.model,
        ("fedjax", "jax", "dm-haiku", "numpy"),
        parameters=sum(p.size for p in jax.tree_util.tree_leaves(state.params)),
        processes=1,
        threads="all cores",
        devices=len(jax.devices()),
        accuracy=float((jnp.argmax(logits, 1) == work.test_y).mean()),
    )


if __name__ == "__main__":
    main()
