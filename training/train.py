"""Train the bundled model: tokenizer, text, GPT-2, checkpoints, log and export, in one command.

    python training/train.py --text FOLDER --out FOLDER

A run that was killed goes on from its last checkpoint when the same command is given again.
README.md beside this file says what every part does.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

import bpe
import corpus
from batches import Batches
from optimizer import Schedule, make_optimizers, set_rate
from run_files import Log, Progress, load_checkpoint, save_checkpoint

CONTEXT = 256
SMALL_ROWS, LARGE_ROWS, SMALL_UNTIL = 16, 32, 5_000_000
CHECK_EVERY = 200
SAVE_SECONDS = 180


def model_config() -> GPT2Config:
    """GPT-2's own layout, small: 4.27 million parameters with the embedding counted once."""
    return GPT2Config(
        vocab_size=bpe.VOCABULARY,
        n_positions=CONTEXT,
        n_embd=256,
        n_layer=4,
        n_head=4,
        activation_function="gelu_new",
        resid_pdrop=0.05,
        embd_pdrop=0.05,
        attn_pdrop=0.0,
        bos_token_id=bpe.VOCABULARY - 1,
        eos_token_id=bpe.VOCABULARY - 1,
        tie_word_embeddings=True,
    )


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="folder of *.train.txt.xz files")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and log")
    parser.add_argument("--tokens", type=int, default=32_000_000, help="training tokens in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    parser.add_argument("--start", type=Path, help="an exported folder whose weights a second round starts from")
    parser.add_argument("--export", type=Path, help="folder for the finished model")
    parser.add_argument("--notice", type=Path, help="file to write the storybooks' credits to")
    return parser.parse_args()


@dataclass
class Trainer:
    """The parts of a run and how far it has come."""

    model: GPT2LMHeadModel
    batches: Batches
    device: torch.device
    begun: Progress
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.step, self.tokens, self.seconds = self.begun.step, self.begun.tokens, self.begun.seconds
        self.optimizers = make_optimizers(self.model)
        self._loss = torch.compile(self._plain_loss, dynamic=False)

    def _plain_loss(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    def schedule(self, total: int) -> Schedule:
        """Of this round: a second one only touches up, at a rate that falls from its beginning."""
        first = self.begun == Progress()
        tokens = total - self.begun.tokens
        return Schedule(tokens) if first else Schedule(tokens, peak=0.5, decay=1.0)

    def train_step(self, schedule: Schedule) -> torch.Tensor:
        """One batch and one update; returns the batch's loss in nats a token."""
        rows = SMALL_ROWS if self.tokens < SMALL_UNTIL else LARGE_ROWS
        ids = torch.from_numpy(self.batches.draw(self.step, rows, self.tokens)).to(self.device)
        set_rate(self.optimizers, schedule.factor(self.step - self.begun.step, self.tokens - self.begun.tokens))
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self._loss(ids)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += rows * CONTEXT
        return loss.detach()

    @torch.no_grad()
    def check(self, streams: dict[str, np.ndarray]) -> dict[str, float]:
        """A quick look at the validation losses: 64 windows of each text, for the log only."""
        self.model.eval()
        losses = {}
        for name, ids in streams.items():
            starts = np.linspace(0, len(ids) - CONTEXT - 1, 64).astype(int)
            rows = np.stack([ids[s : s + CONTEXT + 1] for s in starts]).astype(np.int64)
            rows = torch.from_numpy(rows).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16):
                losses[name] = float(self._plain_loss(rows))
        self.model.train()
        return losses


def prepare(options: argparse.Namespace) -> tuple[Trainer, dict[str, np.ndarray]]:
    """Tokenizer, encoded text, model and batches, before any training."""
    options.out.mkdir(parents=True, exist_ok=True)
    documents = corpus.training_documents(options.text)
    if options.start:
        shutil.copyfile(options.start / "tokenizer.json", options.out / "tokenizer.json")
    tokenizer = bpe.load_or_train(options.out / "tokenizer.json", documents)
    streams = corpus.prepare(options.text, tokenizer, options.out / "tokens")
    validation = {
        name: corpus.encode_documents(tokenizer, corpus.read_documents(options.text / f"{name}.txt.xz"))
        for name in ("ts_valid", "mix_valid")
    }
    torch.manual_seed(options.seed)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model = GPT2LMHeadModel(model_config()).to(device)
    batches = Batches(streams, tokenizer, CONTEXT + 1, options.seed)
    begun = Progress()
    if options.start:
        model.load_state_dict(GPT2LMHeadModel.from_pretrained(options.start, dtype=torch.float32).state_dict())
        begun = Progress.of_export(options.start)
        batches.restore(begun.batches(CONTEXT))
    return Trainer(model, batches, device, begun), validation


def train(trainer: Trainer, validation: dict[str, np.ndarray], options: argparse.Namespace) -> None:
    """Train until `options.tokens`, saving now and then, when stopped, and at the end."""
    checkpoint = options.out / "checkpoint.pt"
    log = Log(options.out / "log.csv", options.tokens)
    with contextlib.suppress(FileNotFoundError):
        load_checkpoint(checkpoint, trainer)
    log.forget_after(trainer.step)
    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(True))
    trainer.model.train()
    saved = started = time.monotonic()
    before = trainer.seconds
    schedule = trainer.schedule(options.tokens)
    while trainer.tokens < options.tokens and not stop:
        loss = trainer.train_step(schedule)
        trainer.seconds = before + time.monotonic() - started
        if trainer.step % 20 == 0:
            checks = trainer.check(validation) if trainer.step % CHECK_EVERY == 0 else {}
            log.write(trainer, float(loss), checks)
        if time.monotonic() - saved > SAVE_SECONDS:
            save_checkpoint(checkpoint, trainer, options)
            saved = time.monotonic()
    save_checkpoint(checkpoint, trainer, options)
    if stop:
        sys.exit("stopped; the same command goes on from here")


def main() -> None:
    """Prepare, train, and export where that was asked for."""
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    trainer, validation = prepare(options)
    train(trainer, validation, options)
    if options.export:
        from export import export

        export(options.out, options.text, options.export, options.notice, model_config())


if __name__ == "__main__":
    main()
