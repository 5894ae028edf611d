"""A training loop that saves while it goes on, and that goes on where it was, bit for bit, whenever it was killed.

    python examples/train.py s3://bucket/run --steps 1000

A small transformer learns to continue sequences of numbers, on the CPU. Kill it as you like, start it again: it ends with the same
weights, the same optimizer and the same random numbers as a run that nobody killed.
"""

import argparse
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mzstore.checkpoints import CheckpointStore

WORDS, LENGTH, WIDTH, BATCH = 64, 32, 64, 16


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        return self.head(self.layers(self.words(sequence) + self.places, mask=mask, is_causal=True))


class Batches:
    """Batches of ``data`` in a new order each epoch; where it is, is part of the state."""

    def __init__(self, data: torch.Tensor) -> None:
        self._data, self._generator = data, torch.Generator().manual_seed(0)
        self._order, self._position = torch.randperm(len(data), generator=self._generator), 0

    def next(self) -> torch.Tensor:
        if self._position + BATCH > len(self._data):
            self._order, self._position = torch.randperm(len(self._data), generator=self._generator), 0
        chosen = self._order[self._position : self._position + BATCH]
        self._position += BATCH
        return self._data[chosen]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "order": self._order, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self._order, self._position = state["order"], state["position"]


def sequences() -> torch.Tensor:
    """Progressions with a step of their own."""
    generator = torch.Generator().manual_seed(1)
    first, step = (torch.randint(0, WORDS, (500, 1), generator=generator) for _ in range(2))
    return (first + step * torch.arange(LENGTH + 1)) % WORDS


def train(url: str, steps: int, every: int, threads: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)  # sums of floats depend on it
    torch.use_deterministic_algorithms(True)
    model, batches = Model(), Batches(sequences())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "batches": batches}
    with CheckpointStore(url, keep=3, best="loss") as store:
        first = 0
        if store.steps():
            state = store.load()
            for name, part in parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["random"])
            first = state["step"]
            print(f"goes on after step {first}", flush=True)
        for step in range(first + 1, steps + 1):
            batch = batches.next()
            loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % every == 0 or step == steps:
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {"random": torch.get_rng_state(), "step": step}
                store.save_async(step, state, {"loss": loss.item()})  # copies it, and saves while training goes on
            print(f"step {step}: loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url", help="where checkpoints are: a directory, or a prefix such as s3://bucket/run")
    arguments.add_argument("--steps", type=int, default=1000)
    arguments.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    arguments.add_argument("--threads", type=int, default=1)
    given = arguments.parse_args()
    train(given.url, given.steps, given.every, given.threads)
