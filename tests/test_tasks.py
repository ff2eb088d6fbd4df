"""Which task, languages and column a set of flags means."""

import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.tasks import (
    FLEURS_GROUPS,
    FLEURS_LANGUAGES,
    TASKS,
    direction,
    is_key_language,
    nearest,
    nearest_language,
    select_task,
)


def test_fleurs_has_102_languages_each_in_one_of_seven_groups():
    assert [len(languages) for languages in FLEURS_GROUPS.values()] == [25, 16, 12, 20, 14, 11, 4]
    assert len(set(FLEURS_LANGUAGES)) == 102


def test_fleurs_languages_are_in_the_order_of_the_data_sets_labels():
    # Some `lang_id` class numbers of google/fleurs and google/xtreme_s, as their data set cards list them.
    for index, language in {0: "af_za", 4: "ast_es", 99: "yo_ng", 100: "yue_hant_hk", 101: "zu_za"}.items():
        assert FLEURS_LANGUAGES[index] == language


def test_number_of_languages_and_first_metric_of_each_task():
    assert {name: (len(task.languages), task.metrics[0]) for name, task in TASKS.items()} == {
        "mls": (8, "wer"),
        "voxpopuli": (14, "wer"),
        "babel": (5, "wer"),
        "fleurs-asr": (102, "cer"),
        "covost2": (21, "bleu"),
        "minds14": (14, "f1"),
        "fleurs-lang_id": (102, "accuracy"),
        "fleurs-retrieval": (102, "p_at_1"),
    }
    assert {task.greater_is_better == (task.kind != "ctc") for task in TASKS.values()} == {True}


@pytest.mark.parametrize(
    ("flags", "task", "config", "languages"),
    [
        ({"dataset_config_name": "mls.all"}, "mls", "mls.all", TASKS["mls"].languages),
        ({"dataset_config_name": "mls.pl"}, "mls", "mls.pl", ("pl",)),
        ({"dataset_config_name": "voxpopuli"}, "voxpopuli", "voxpopuli.all", TASKS["voxpopuli"].languages),
        ({"task": "mls", "language": "pl"}, "mls", "mls.pl", ("pl",)),
        ({"task": "mls", "dataset_config_name": "mls.pl", "language": "pl"}, "mls", "mls.pl", ("pl",)),
        ({"task": "minds14", "language": "fr-FR"}, "minds14", "minds14.fr-FR", ("fr-FR",)),
        ({"dataset_config_name": "covost2.fr.en"}, "covost2", "covost2.fr.en", ("fr.en",)),
        ({"task": "covost2", "language": "fr"}, "covost2", "covost2.fr.en", ("fr.en",)),
        ({"task": "covost2", "language": "zh.en"}, "covost2", "covost2.zh-CN.en", ("zh-CN.en",)),
        ({"dataset_config_name": "covost2.sv", "language": "sv-SE_en"}, "covost2", "covost2.sv-SE.en", ("sv-SE.en",)),
        ({"dataset_config_name": "covost2"}, "covost2", "covost2.all", TASKS["covost2"].languages),
        (
            {"dataset_config_name": "fleurs.all", "target_column_name": "transcription"},
            "fleurs-asr",
            "fleurs.all",
            FLEURS_LANGUAGES,
        ),
        (
            {"dataset_config_name": "fleurs.all", "target_column_name": "lang_id"},
            "fleurs-lang_id",
            "fleurs.all",
            FLEURS_LANGUAGES,
        ),
        (
            {"dataset_config_name": "fleurs.all", "target_column_name": "id"},
            "fleurs-retrieval",
            "fleurs.all",
            FLEURS_LANGUAGES,
        ),
        (
            {"task": "fleurs-asr", "language_group": "chinese_japanase_korean_cjk"},
            "fleurs-asr",
            "fleurs.all",
            ("cmn_hans_cn", "ja_jp", "ko_kr", "yue_hant_hk"),
        ),
    ],
)
def test_selection(flags, task, config, languages):
    selection = select_task(**flags)
    assert (selection.task.name, selection.config_name, selection.languages) == (task, config, languages)
    again = select_task(
        task=selection.task.name,
        dataset_config_name=selection.config_name,
        language=selection.language,
        language_group=selection.language_group,
        target_column_name=selection.target_column,
    )
    assert again == selection


def test_keys_are_named_by_language_or_by_code():
    assert select_task(task="fleurs-retrieval").key_language == "en"
    assert select_task(task="fleurs-retrieval", key_language="de_de").key_language == "de_de"
    assert select_task(task="mls", key_language="de").key_language is None
    for language, keys in (("en_us", "en"), ("en-US", "en_us"), ("EN", "en"), ("eng", "eng")):
        assert is_key_language(language, keys)
    for language, keys in (("eng", "en"), ("de_en", "en"), ("en_gb", "en_us"), ("en", "en_us")):
        assert not is_key_language(language, keys)


def test_other_data_may_hold_other_languages_and_configs():
    selection = select_task(task="mls", dataset_config_name="default", language="xx", dataset_name="my/data")
    assert (selection.config_name, selection.language, selection.languages) == ("default", "xx", ("xx",))


def test_target_column_is_the_tasks_or_the_one_given():
    assert select_task(task="minds14").target_column == "intent_class"
    assert select_task(task="fleurs-asr", target_column_name="raw_transcription").target_column == "raw_transcription"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "Add --task"),
        ({"task": "msl"}, "did you mean mls"),
        ({"task": "fleurs"}, "fleurs-asr"),
        ({"task": "covost2", "language": "pl"}, r"pl.en is not a language of covost2\. Languages: all, fr.en, de.en"),
        ({"task": "covost2", "language": "en.de"}, "en.de is not a language"),
        ({"dataset_config_name": "covost2.fr.en", "language": "de"}, "different languages"),
        ({"task": "covost2", "target_column_name": "lang_id"}, "predicts text"),
        ({"task": "minds14", "target_column_name": "translation"}, "one class a clip"),
        ({"dataset_config_name": "fleurs.all"}, "serves three tasks.*fleurs-asr.*fleurs-lang_id.*fleurs-retrieval"),
        ({"task": "fleurs-retrieval", "target_column_name": "transcription"}, "needs the ids of sentences"),
        ({"task": "fleurs-retrieval", "target_column_name": "lang_id"}, "fleurs-lang_id"),
        ({"dataset_config_name": "fleurs.all"}, "Add --task fleurs-asr"),
        ({"dataset_config_name": "fleurs.all", "target_column_name": "gender"}, "Add --task fleurs-asr"),
        ({"dataset_config_name": "minds41.all"}, "did you mean minds14.all"),
        ({"dataset_config_name": "default", "task": "mls"}, "has no such config"),
        ({"dataset_config_name": "mls.all", "task": "minds14"}, "does not go with"),
        ({"dataset_config_name": "mls.pl", "language": "de"}, "different languages"),
        ({"dataset_config_name": "mls.pl", "language": "all"}, "different languages"),
        ({"task": "mls", "language": "xx"}, "Languages: all, nl"),
        ({"task": "fleurs-asr", "language": "fr"}, "did you mean fr_fr"),
        ({"task": "minds14", "language": "en"}, "did you mean en-AU or en-GB or en-US"),
        ({"task": "mls", "language_group": "south_asian_sa"}, "FLEURS"),
        ({"task": "fleurs-asr", "language_group": "south_asian"}, "did you mean south_asian_sa"),
        ({"task": "fleurs-asr", "language_group": "south_asian_sa", "language": "hi_in"}, "cannot be joined"),
        ({"task": "mls", "target_column_name": "lang_id"}, "fleurs-lang_id"),
        ({"task": "minds14", "target_column_name": "transcription"}, "one class a clip"),
    ],
)
def test_refused_selection_says_what_to_do(flags, message):
    with pytest.raises(InputError, match=message):
        select_task(**flags)


def test_a_direction_has_one_spelling():
    for name in ("fr", "fr_en", "fr.en", "FR.en"):
        assert direction(name) == "fr.en"
    assert [direction(name) for name in ("zh", "zh_en", "zh-CN.en", "zh-cn")] == ["zh-CN.en"] * 4
    for name, expected in {
        "xx": "xx.en",
        "pt-BR": "pt-BR.en",
        "fr_fr": "fr_fr.en",
        "en.de": "en.de",
        "en_de": "en.de",
    }.items():
        assert direction(name) == expected
    assert [direction(name) for name in TASKS["covost2"].languages] == list(TASKS["covost2"].languages)


def test_a_language_in_another_scheme_is_near():
    assert nearest_language("fr", iter(["de_de", "fr_fr", "fr-CA"])) == ": did you mean fr_fr or fr-CA?"
    assert nearest_language("FR-fr", ["fr_fr"]) == ": did you mean fr_fr?"
    assert nearest_language("frr_x", ["fr_fr", "de_de"]) == nearest("frr_x", ["fr_fr", "de_de"])


def test_nearest_ignores_case_and_stays_silent_about_nothing_near():
    assert nearest("FR_FR", ["fr_fr", "de_de"]) == ": did you mean fr_fr?"
    assert nearest("qqq", ["fr_fr", "de_de"]) == "."
