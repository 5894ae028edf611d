"""Checkpoints of training: saved often, whole or not at all, by what changed (FORMAT.md section 10).

with CheckpointStore("s3://bucket/run", keep=3) as store:
    store.save_async(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, {"loss": loss})
    state = store.load()
"""

from mzstore.checkpoints.collection import Collected
from mzstore.checkpoints.store import Checkpoint, CheckpointStore, Saving

__all__ = ["Checkpoint", "CheckpointStore", "Collected", "Saving"]
