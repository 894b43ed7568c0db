"""Warnings of what goes wrong without stopping a run, read from a step's metrics and given once."""

import warnings
from collections.abc import Iterator, Mapping

from sempa.config import Config

# Nats between a sentence's log-probability and the base's: some four nats for each of a dozen tokens.
FAR = 50.0


def warn_of_step(config: Config, step: int, record: Mapping[str, float], already_warned: set[str]) -> None:
    """Warn of what `record`, a step's metrics, shows to be wrong; once for each kind of finding.

    The kinds: a chosen sentence that becomes less likely (likelihood displacement, arXiv 2410.08847), log-ratios that
    explode, and a gradient of zero.
    """
    for kind, text in _findings(config, record):
        if kind not in already_warned:
            already_warned.add(kind)
            warnings.warn(f"step {step}: {text}", stacklevel=2)


def _findings(config: Config, record: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    rewards = {name: record.get(f"rewards/{name}", 0.0) for name in ("chosen", "rejected")}
    ratios = {name: reward / config.beta for name, reward in rewards.items()}
    if ratios["chosen"] < -FAR:
        yield (
            "displaced",
            f"the chosen sentences' log-ratio to the base is {ratios['chosen']:.0f} nats, so training makes them less "
            "likely too: raise anchor or retention, or lower preference or learning_rate",
        )
    for name, ratio in ratios.items():
        # Rejected sentences move far by design; beyond this the language model is lost.
        if abs(ratio) > 10 * FAR:
            yield (
                "exploded",
                f"the {name} sentences' log-ratio to the base is {ratio:.0f} nats, expected at most {10 * FAR:.0f} "
                "either way: lower learning_rate or raise beta",
            )
    if record["grad_norm"] == 0:
        yield "still", "the gradient is zero, so this step does not change the adapter: does the loss depend on it?"
