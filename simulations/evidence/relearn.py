"""Relearn time: how soon a model that is shown the forgotten samples again knows them as before.

A model that truly forgot needs as long as a retrained one (Golatkar et al. 2020, "Eternal Sunshine
of the Spotless Net"); one that merely hides what it knows needs a few steps.
"""

import numpy as np

from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.errors import TrainingError
from fedsparse.sparsity import State
from fedsparse.training.backend import LocalModel
from fedsparse.training.local import batches

MOST_STEPS = 200
SAMPLES = 2_000
"""Forgotten samples that are shown, at most."""
TESTED = 500
"""Of them, at most so many say after each step whether they are known again."""
MARGIN = 0.01
"""Below the original's accuracy at which it counts as reached: one stubborn sample is no memory."""


def shown(forgotten: Dataset, rng: np.random.Generator) -> tuple[Dataset, Dataset]:
    """Return the samples to train on and those to test on, the same for all models."""
    train = forgotten.take(np.sort(rng.permutation(len(forgotten))[:SAMPLES]))
    return train, train.take(np.sort(rng.permutation(len(train))[:TESTED]))


def steps(
    model: LocalModel,
    train: Dataset,
    test: Dataset,
    settings: ClientConfig,
    goal: float,
    rng: np.random.Generator,
) -> int | None:
    """Return the mini-batch steps on `train` until accuracy on `test` is `goal` less MARGIN.

    0 for a model that is there already; MOST_STEPS where it takes that many or more; None where
    training does not stay finite. The model is changed.
    """
    done, slots = 0, dict[str, State]()
    try:
        while model.evaluate(test).accuracy < goal - MARGIN:
            for index in batches(len(train), settings.batch_size, rng):
                batch = train.take(index)
                whole = settings.model_copy(update={"batch_size": len(index)})
                trained = model.train(batch, whole, rng=rng, epochs=1, optimizer_state=slots)
                slots, done = trained.slots(), done + 1
                if done >= MOST_STEPS or model.evaluate(test).accuracy >= goal - MARGIN:
                    return done
    except TrainingError:
        return None
    return done
