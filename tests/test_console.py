"""What is printed at the end of a run of translation."""

from types import SimpleNamespace

from xtremes_jax import console
from xtremes_jax.tasks import TASKS


def test_groups_of_directions_are_shown_with_what_they_lack(capsys, tmp_path):
    results = {"predict_samples": 4, "predict_bleu": 21.5, "predict_bleu_fr.en": 30.0, "predict_bleu_it.en": 13.0}
    split = SimpleNamespace(languages=["fr.en", "it.en", "it.en", "fr.en"])
    arguments = SimpleNamespace(
        selection=SimpleNamespace(task=TASKS["covost2"]),
        data=SimpleNamespace(dataset_name="my/data", eval_split_name="validation", predict_split_name="test"),
        training=SimpleNamespace(do_train=True),
    )
    corpus = SimpleNamespace(splits={"predict": split}, synthetic=False)
    console.show_results(results, arguments, corpus, tmp_path)
    out = capsys.readouterr().out
    assert "average   21.5000\nfr.en     30.0000\nit.en     13.0000\n" in out
    assert "bleu, high resource languages (without de es ca): 30.00\n" in out
    assert "bleu, mid resource languages (without fa ru pt zh): 13.00\n" in out and "low resource" not in out
