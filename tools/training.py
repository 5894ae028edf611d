"""Training runs for the benchmark ``checkpoint``, on the CPU: what a loop has to save, as it is between two steps.

run = FromScratch(seed=0)
for step in range(1, 301):
    run.step()
    state = run.state()
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from embeddings import neighbors, sources
from torch import nn
from torch.nn import functional

BATCH = 8
TEMPERATURE = 0.05


class Run(ABC):
    """``steps``: how many there will be; the rate rises in the first tenth, and falls until the last."""

    loss = float("nan")

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        warmup = max(1, steps // 10)

        def rate(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return self.decay(min(1.0, (step - warmup) / max(1, steps - warmup)))

        self.model, self.optimizer = model, optimizer
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    @abstractmethod
    def decay(self, done: float) -> float:
        """What is left of the rate when the part ``done`` of the steps is."""

    @abstractmethod
    def _loss(self) -> torch.Tensor: ...

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.loss = float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Weights, state of the optimizer and of the generators: tensors are the live ones, nothing is copied."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def frozen(self) -> float:
        """Which part of the weights has no gradient."""
        counts = [(weight.numel(), weight.requires_grad) for weight in self.model.parameters()]
        return sum(n for n, learned in counts if not learned) / sum(n for n, _ in counts)


class FromScratch(Run):
    """A causal transformer over bytes, on the sources of Python's standard library: every value changes in every step."""

    def __init__(self, steps: int, *, width: int = 384, layers: int = 6, context: int = 128) -> None:
        torch.manual_seed(0)
        model = _Bytes(width, layers, context)
        super().__init__(model, torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1), steps)
        self._text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources())), dtype=torch.uint8)
        self._context = context

    def decay(self, done: float) -> float:
        """As a cosine, to a tenth."""
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))

    def _loss(self) -> torch.Tensor:
        starts = torch.randint(len(self._text) - self._context - 1, (BATCH,))
        text = torch.stack([self._text[start : start + self._context + 1] for start in starts]).long()
        logits = self.model(text[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


class _Bytes(nn.Module):
    def __init__(self, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.position = nn.Parameter(torch.randn(context, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        found = self.layers(self.embedding(text) + self.position, mask=self.mask, is_causal=True)
        return self.head(found)


class FineTuned(Run):
    """A sentence embedding model, fine-tuned so that sentences which follow one another are near each other.

    Weights are frozen whose names begin with none of ``trainable``: they have no gradient, and no state in the optimizer.
    """

    def __init__(self, steps: int, directory: Path, trainable: tuple[str, ...]) -> None:
        import transformers

        torch.manual_seed(0)
        transformers.logging.disable_progress_bar()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32).train()
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.startswith(trainable))
        learned = [weight for weight in model.parameters() if weight.requires_grad]
        super().__init__(model, torch.optim.AdamW(learned, lr=2e-5), steps)
        self._batches = self._endless(neighbors())

    def decay(self, done: float) -> float:
        return 1 - done

    def _endless(self, pairs: list[tuple[str, str]]) -> Iterator[Any]:
        while True:
            order = torch.randperm(len(pairs)).tolist()
            for i in range(0, len(order) - BATCH + 1, BATCH):
                texts = [pairs[j][side] for side in (0, 1) for j in order[i : i + BATCH]]
                yield self._tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")

    def _loss(self) -> torch.Tensor:
        batch = next(self._batches)
        mask = batch["attention_mask"][..., None]
        hidden = self.model(**batch).last_hidden_state
        one, other = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).chunk(2)
        return functional.cross_entropy(one @ other.T / TEMPERATURE, torch.arange(len(one)))
