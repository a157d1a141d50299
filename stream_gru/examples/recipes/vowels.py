"""A Markov chain over the vowels: trained, scored against its entropy, and generated from the carried state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct

from stream_gru.core.types import F64, I64
from stream_gru.examples.recipes.results import RecipeResult
from stream_gru.examples.recipes.sequences import Sequences
from stream_gru.pipeline.generate import generate, prompt

LABELS = tuple("aeiou")
# Probability of the vowel of each column after that of each row.
CHAIN = np.array(
    [
        [0.10, 0.40, 0.20, 0.20, 0.10],
        [0.30, 0.05, 0.35, 0.10, 0.20],
        [0.20, 0.20, 0.10, 0.45, 0.05],
        [0.05, 0.25, 0.25, 0.05, 0.40],
        [0.50, 0.10, 0.15, 0.20, 0.05],
    ]
)


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Numbers of sequences of ``length`` vowels in each part; ``generated`` texts of ``text`` vowels each."""

    train: int = 32
    validation: int = 8
    test: int = 64
    length: int = 10_000
    generated: int = 20
    text: int = 500


def recordings(options: Options, data_path: Path | None) -> dict[str, Sequences]:
    """The parts train, validation and test; the class of a sample is the next vowel."""
    rng, parts = np.random.default_rng(1), {}
    for part, count in (("train", options.train), ("validation", options.validation), ("test", options.test)):
        text = draw(count, options.length + 1, rng)
        parts[part] = Sequences.equal(
            text[:, :-1].reshape(-1, 1).astype(np.float32), options.length, text[:, 1:].reshape(-1).astype(np.int32)
        )
    return parts


def draw(count: int, length: int, rng: np.random.Generator) -> I64:
    """Draw texts from the chain, (count, length) vowels; the first of each is uniform."""
    text = rng.integers(0, len(LABELS), (count, length))
    upto = CHAIN.cumsum(axis=1)
    chance = rng.random((count, length))
    for at in range(1, length):
        text[:, at] = (chance[:, at, None] > upto[text[:, at - 1]]).sum(axis=1).clip(max=len(LABELS) - 1)
    return text


def entropy() -> float:
    """Entropy of the next vowel given the last one, in nats: the lower bound of any model's cross-entropy."""
    values, vectors = np.linalg.eig(CHAIN.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    return float(-(stationary[:, None] * CHAIN * np.log(CHAIN)).sum())


def report_lines(options: Options, result: RecipeResult) -> Iterator[str]:
    """Cross-entropy beside the chain's entropy; the transitions of generated text beside the true ones."""
    found, bound = result.cross_entropy, entropy()
    yield f"test cross-entropy {found:.4f} nats per vowel; entropy of the chain {bound:.4f}; {found / bound - 1:+.2%}"
    names = [f"text-{number}" for number in range(options.generated)]
    made = generate(result.pipeline(), None, options.text, streams=names, seed=1)
    text = made.samples.values[:, 0].astype(np.int64).reshape(options.text, options.generated).T
    counts = transitions(text)
    chi2, freedom = chi_squared(counts)
    yield f"generated {counts.sum():,.0f} transitions; chi-squared {chi2:.1f} of {freedom} degrees of freedom"
    share = counts / counts.sum(axis=1, keepdims=True)
    spread = np.sqrt(CHAIN * (1 - CHAIN) / counts.sum(axis=1, keepdims=True))
    yield f"  largest deviation from the true chain: {np.abs((share - CHAIN) / spread).max():.1f} standard errors"
    for vowel, row, truth in zip(LABELS, share, CHAIN, strict=True):
        cells = "  ".join(f"{other} {a:.3f} ({b:.2f})" for other, a, b in zip(LABELS, row, truth, strict=True))
        yield f"  after {vowel}: {cells}"
    for start in ("ouu", "ioi"):
        out = result.pipeline().process(prompt(result.bundle.manifest, start, ["text"]))
        assert out.probabilities is not None  # noqa: S101 - for mypy
        row = zip(LABELS, out.probabilities[-1], CHAIN[LABELS.index(start[-1])], strict=True)
        yield f"  after {start!r}: " + "  ".join(f"{vowel} {a:.3f} ({b:.2f})" for vowel, a, b in row)


def transitions(text: I64) -> F64:
    """Counts of each vowel after each, (5, 5), in texts (count, length)."""
    pairs = text[:, :-1] * len(LABELS) + text[:, 1:]
    size = len(LABELS)
    return np.bincount(pairs.reshape(-1), minlength=size * size).reshape(size, size).astype(np.float64)


def chi_squared(counts: F64) -> tuple[float, int]:
    """Chi-squared of counted transitions against the chain, and its degrees of freedom (Pearson 1900)."""
    expected = counts.sum(axis=1, keepdims=True) * CHAIN
    size = len(LABELS)
    return float(((counts - expected) ** 2 / expected).sum()), size * (size - 1)
