"""The XTREME-S metric for people who use Hugging Face `evaluate`, without a download.

    from xtremes_jax.evaluation.xtreme_s import XtremeS
    XtremeS(config_name="mls").compute(predictions=["it's sunny"], references=["it is sunny here"])

In a module of its own because importing `evaluate` takes seconds, and torch with it where that is installed; nothing
else in the package imports this.
"""

import datasets
import evaluate

from xtremes_jax.evaluation.metrics import METRICS
from xtremes_jax.tasks import TASKS


class XtremeS(evaluate.Metric):
    """`evaluate.load("xtreme_s", config_name)` with the same inputs and result keys, one config for each of our tasks.

    Recognition ("mls", "voxpopuli", "babel", "fleurs-asr") takes strings and returns "wer" and "cer";
    "covost2" takes strings and returns "bleu", from 0 to 100; "minds14" takes class numbers and returns "f1" and
    "accuracy"; "fleurs-lang_id" returns "accuracy". The original stopped working with jiwer 4, whose names it does not
    know.

    Raises:
        KeyError: `config_name` is not one of these tasks; "fleurs-retrieval" is none, as in the original: what is
            retrieved is no list of predictions beside references.
    """

    def _info(self) -> evaluate.MetricInfo:
        known = [name for name, task in TASKS.items() if task.predicts_text or task.kind == "classification"]
        if self.config_name not in known:
            raise KeyError(f"config_name must be one of {', '.join(known)}, not {self.config_name!r}.")
        kind = "string" if TASKS[self.config_name].predicts_text else "int64"
        return evaluate.MetricInfo(
            description="The scores of the XTREME-S benchmark: fractions, and BLEU from 0 to 100.",
            citation="Conneau et al. 2022, XTREME-S, arXiv:2203.10752.",
            inputs_description="predictions, references: one a clip, text or class numbers.",
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {name: METRICS[name](predictions, references) for name in TASKS[self.config_name].metrics}
