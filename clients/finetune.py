"""FedAvg with fine-tuning: the global model, trained a little more by whoever uses it."""

from clients.program import Personal, Program, Visit
from fedsparse.training.price import price


class FineTune(Program):
    """Plain rounds; the personal model is the global one after `finetune_epochs` more."""

    def personal(self, visit: Visit) -> Personal:
        """Train the received model on the client's data; nothing of that is kept."""
        job, mask = visit.job, visit.received.mask
        epochs = int(visit.settings["finetune_epochs"])
        if not epochs:
            return super().personal(visit)
        settings = job.settings.model_copy(update={"local_epochs": epochs})
        model, _ = visit.fit(visit.whole(), mask, purpose="fine-tuning", epochs=epochs)
        kept = None if mask is None else mask.layer_kept()
        cost = price(job.cost, settings, job.plan, len(job.data.train.y), kept)
        return Personal(model.whole(), mask, cost.flops)
