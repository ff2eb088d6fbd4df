"""The XTREME-S tasks: what is predicted, from which column, how it is scored, in which languages.

Names, columns, languages and metrics are those of the XTREME-S benchmark (Conneau et al. 2022, arXiv:2203.10752) as its
data set `google/xtreme_s` and its reference script spell them; the FLEURS groups are those of arXiv:2205.12446.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from xtremes_jax.errors import InputError

XTREME_S = "google/xtreme_s"
"""The benchmark's own data set: only here must a language be one of the task's."""

FLEURS_GROUPS: dict[str, tuple[str, ...]] = {
    name: tuple(languages.split())
    for name, languages in {
        "western_european_we": "ast_es bs_ba ca_es cy_gb da_dk de_de el_gr en_us es_419 fi_fi fr_fr ga_ie gl_es hr_hr "
        "hu_hu is_is it_it kea_cv lb_lu mt_mt nb_no nl_nl oc_fr pt_br sv_se",
        "eastern_european_ee": "be_by bg_bg cs_cz et_ee hy_am ka_ge lt_lt lv_lv mk_mk pl_pl ro_ro ru_ru sk_sk sl_si "
        "sr_rs uk_ua",
        "central_asia_middle_north_african_cmn": "ar_eg az_az ckb_iq fa_ir he_il kk_kz ky_kg mn_mn ps_af tg_tj tr_tr "
        "uz_uz",
        "sub_saharan_african_ssa": "af_za am_et ff_sn ha_ng ig_ng kam_ke lg_ug ln_cd luo_ke nso_za ny_mw om_et sn_zw "
        "so_so sw_ke umb_ao wo_sn xh_za yo_ng zu_za",
        "south_asian_sa": "as_in bn_in gu_in hi_in kn_in ml_in mr_in ne_np or_in pa_in sd_in ta_in te_in ur_pk",
        "south_east_asian_sea": "ceb_ph fil_ph id_id jv_id km_kh lo_la mi_nz ms_my my_mm th_th vi_vn",
        "chinese_japanase_korean_cjk": "cmn_hans_cn ja_jp ko_kr yue_hant_hk",
    }.items()
}
"""Geographical group (the data set's `lang_group_id`, its spelling kept) -> FLEURS languages."""

FLEURS_LANGUAGES = tuple(sorted(language for group in FLEURS_GROUPS.values() for language in group))
"""All 102 languages, in the order of the data set's `lang_id` labels."""


COVOST2_SOURCES = tuple("fr de es ca it ru zh-CN pt fa et mn nl tr ar sv-SE lv sl ta ja id cy".split())
"""Languages of CoVoST 2 that are translated into English, as the data set spells them."""


@dataclass(frozen=True)
class TaskSpec:
    """One task of the benchmark."""

    name: str
    """The value of `--task`."""
    dataset: str
    """First half of a data set config: `f"{dataset}.{language}"`."""
    kind: Literal["ctc", "classification", "translation", "retrieval"]
    """The head and the loss: characters by CTC, one class a clip, the text of a decoder, or embeddings in which a
    sentence finds its own."""
    target_column: str
    """The column that is predicted unless `--target_column_name` says otherwise."""
    metrics: tuple[str, ...]
    """Names of the scores the XTREME-S metric returns (it has none for retrieval); the first is the main one."""
    greater_is_better: bool
    """Which way the first metric points."""
    languages: tuple[str, ...]
    """Languages of the benchmark, as its config names spell them; of translation the directions, such as `fr.en`."""

    @property
    def predicts_text(self) -> bool:
        """Whether the target is text, and not one class a clip."""
        return self.kind in ("ctc", "translation")

    @property
    def family(self) -> str:
        """What the task is one of, in words: recognition, classification or translation."""
        return {"ctc": "recognition"}.get(self.kind, self.kind)


def _recognition(name: str, dataset: str, languages: str | tuple[str, ...], primary: str = "wer") -> TaskSpec:
    languages = tuple(languages.split()) if isinstance(languages, str) else languages
    metrics = ("wer", "cer") if primary == "wer" else ("cer", "wer")
    return TaskSpec(name, dataset, "ctc", "transcription", metrics, False, languages)


RETRIEVAL_METRICS = ("p_at_1", "p_at_5", "mrr", "xsim_error")
"""Precision at 1 and 5, mean reciprocal rank, and the share of wrong matches by margin: see `evaluation/search.py`."""

_MINDS14 = tuple("cs-CZ de-DE en-AU en-GB en-US es-ES fr-FR it-IT ko-KR nl-NL pl-PL pt-PT ru-RU zh-CN".split())

TASKS: dict[str, TaskSpec] = {
    task.name: task
    for task in (
        _recognition("mls", "mls", "nl en fr de it pl pt es"),
        _recognition("voxpopuli", "voxpopuli", "en de fr es pl it ro hu cs nl fi hr sk sl"),
        _recognition("babel", "babel", "as ka lo sw tl"),
        _recognition("fleurs-asr", "fleurs", FLEURS_LANGUAGES, primary="cer"),
        TaskSpec(
            "covost2",
            "covost2",
            "translation",
            "translation",
            ("bleu",),
            True,
            tuple(f"{source}.en" for source in COVOST2_SOURCES),
        ),
        TaskSpec("minds14", "minds14", "classification", "intent_class", ("f1", "accuracy"), True, _MINDS14),
        TaskSpec("fleurs-lang_id", "fleurs", "classification", "lang_id", ("accuracy",), True, FLEURS_LANGUAGES),
        TaskSpec("fleurs-retrieval", "fleurs", "retrieval", "id", RETRIEVAL_METRICS, True, FLEURS_LANGUAGES),
    )
}
"""Every task that can be trained and scored, by the name `--task` takes."""

_TEXT_COLUMNS = frozenset({"transcription", "raw_transcription", "english_transcription", "translation"})
_CLASS_COLUMNS = frozenset({"lang_id", "intent_class", "gender", "lang_group_id"})


@dataclass(frozen=True)
class Selection:
    """What one run works on: a task, and the part of the data it takes."""

    task: TaskSpec
    language: str
    """`"all"`, or one language."""
    config_name: str
    """Data set config, such as `mls.all`; for other data the config as it was given."""
    languages: tuple[str, ...]
    """The languages of XTREME-S that this stands for: one, a group's, or all of the task's.

    Data other than `google/xtreme_s` may hold others: filter by these only if `language` is not "all" or
    `language_group` is set.
    """
    target_column: str | None
    """None where nothing is predicted: of clips that only enlarge the pool that is searched."""
    language_group: str | None = None
    """The FLEURS group that `languages` was narrowed to, if any."""
    key_language: str | None = None
    """Retrieval: the language of the keys, as `is_key_language` takes it; its clips are loaded beside `languages`."""


def nearest(name: str, known: Iterable[str]) -> str:
    """End of a sentence about an unknown name: `": did you mean X?"`, or `"."` when nothing known is like it."""
    folded = {choice.lower(): choice for choice in known}
    close = get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return f": did you mean {folded[close[0]]}?" if close else "."


def nearest_language(language: str, known: Iterable[str]) -> str:
    """Like `nearest`, but a code in another scheme (`fr` for `fr_fr` or `fr-FR`) counts as near."""

    def code(name: str) -> str:
        return name.lower().replace("-", "_").replace(".", "_").partition("_")[0]

    known = list(known)
    same = [name for name in known if code(name) == code(language)]
    if not same and "." in language:  # directions all end alike, which makes none of them near
        return "."
    return f": did you mean {' or '.join(same)}?" if same else nearest(language, known)


def direction(language: str) -> str:
    """A direction of CoVoST 2 as XTREME-S spells it: `fr.en` for `fr`, `fr_en` or `fr.en`, `zh-CN.en` for `zh`.

    What is not known as a source language is taken for one, so data of one's own may hold others: `xx` is `xx.en`, and
    `fr_fr` is `fr_fr.en`. Names of other targets (`en.de`) stay as they are.
    """
    source, mark, target = language.rpartition(".")
    if not mark:
        first, _, last = language.partition("_")
        either = "en" in (first.lower(), last.lower())
        source, target = (first, last) if either and last else (language, "en")
    plain = {name.lower(): name for name in COVOST2_SOURCES}
    plain |= {name.partition("-")[0].lower(): name for name in COVOST2_SOURCES}
    return f"{plain.get(source.lower(), source)}.{target}"


def select_task(
    *,
    task: str | None = None,
    dataset_config_name: str | None = None,
    language: str | None = None,
    language_group: str | None = None,
    target_column_name: str | None = None,
    dataset_name: str = XTREME_S,
    key_language: str = "en",
) -> Selection:
    """Work out the task, the languages and the target column from the flags of the same names.

    `--task mls --language pl` and `--dataset_config_name mls.pl` say the same; a config name without a language
    (`voxpopuli`) means all of them. The three FLEURS tasks share their configs and are told apart by the target column.

    Raises:
        InputError: the flags contradict each other, leave the task open, or name an unknown task, language or group.
    """
    dataset, config_language = _split_config(dataset_config_name)
    spec = _find_task(task, dataset, dataset_config_name, target_column_name)
    if dataset is not None and dataset != spec.dataset:
        raise InputError(
            f"--task {spec.name} does not go with --dataset_config_name {dataset_config_name}: its configs are named "
            f"{spec.dataset}.<language>. Drop one of the two flags."
        )
    if spec.kind == "translation":
        config_language, language = (
            direction(name) if name not in (None, "all") else name for name in (config_language, language)
        )
    if config_language and language and config_language != language:
        raise InputError(
            f"--dataset_config_name {dataset_config_name} and --language {language} name different languages. "
            "Drop one of the two flags."
        )
    language = config_language or language or "all"
    # A config of the user's own data ("default", say) is passed on as it stands.
    own_config = dataset_config_name is not None and dataset is None
    if own_config and dataset_name == XTREME_S:
        raise InputError(
            f"--dataset_config_name {dataset_config_name}: {XTREME_S} has no such config"
            f"{nearest(dataset_config_name, [f'{s.dataset}.all' for s in TASKS.values()])} "
            f"Use {spec.dataset}.all or {spec.dataset}.<language>."
        )
    return Selection(
        task=spec,
        language=language,
        config_name=dataset_config_name if own_config else f"{spec.dataset}.{language}",
        languages=_expand_languages(spec, language, language_group, dataset_name),
        target_column=_target_column(spec, target_column_name),
        language_group=language_group,
        key_language=key_language if spec.kind == "retrieval" else None,
    )


def is_key_language(language: str, key_language: str) -> bool:
    """Whether utterances in `language` are keys: it is `key_language` (`en_us`) or has this code (`en`)."""

    def plain(name: str) -> str:
        return name.lower().replace("-", "_")

    return plain(key_language) in (plain(language), plain(language).partition("_")[0])


def _split_config(config: str | None) -> tuple[str | None, str | None]:
    """`mls.pl` -> (`mls`, `pl`); (None, None) for a name that is not of the benchmark's form."""
    if config is None:
        return None, None
    dataset, _, language = config.partition(".")
    if dataset not in {spec.dataset for spec in TASKS.values()}:
        return None, None
    return dataset, language or "all"


def _find_task(task: str | None, dataset: str | None, config: str | None, target: str | None) -> TaskSpec:
    if task == "fleurs":
        raise InputError(
            "--task fleurs is not complete. Use fleurs-asr (recognition), fleurs-lang_id (language) or "
            "fleurs-retrieval (retrieval)."
        )
    if task is not None:
        if task not in TASKS:
            raise InputError(f"--task {task} is unknown{nearest(task, TASKS)} Tasks: {', '.join(TASKS)}.")
        return TASKS[task]
    if dataset is None:
        given = f"--dataset_config_name {config} does not say which task this is" if config else "No task was given"
        hint = nearest(config, [f"{spec.dataset}.all" for spec in TASKS.values()]) if config else "."
        raise InputError(f"{given}{hint} Add --task, one of: {', '.join(TASKS)}.")
    fitting = [spec for spec in TASKS.values() if spec.dataset == dataset]
    if len(fitting) > 1:
        # FLEURS: a text column means recognition, the language column identification, the sentence's id retrieval;
        # anything else is not a guess.
        fitting = [
            spec for spec in fitting if target == spec.target_column or (spec.kind == "ctc" and target in _TEXT_COLUMNS)
        ]
    if len(fitting) != 1:
        raise InputError(
            f"--dataset_config_name {config} serves three tasks. Add --task fleurs-asr (recognition), "
            "--task fleurs-lang_id (language identification) or --task fleurs-retrieval (the English utterance)."
        )
    return fitting[0]


def _expand_languages(spec: TaskSpec, language: str, group: str | None, dataset_name: str) -> tuple[str, ...]:
    if group is not None:
        if spec.dataset != "fleurs":
            raise InputError(f"--language_group is for the FLEURS tasks, not for {spec.name}. Use --language instead.")
        if language != "all":
            raise InputError(f"--language_group cannot be joined with --language {language}. Drop one of the two.")
        if group not in FLEURS_GROUPS:
            groups = ", ".join(FLEURS_GROUPS)
            raise InputError(f"--language_group {group} is unknown{nearest(group, FLEURS_GROUPS)} Groups: {groups}.")
        return FLEURS_GROUPS[group]
    if language == "all":
        return spec.languages
    if language not in spec.languages and dataset_name == XTREME_S:
        raise InputError(
            f"--language {language} is not a language of {spec.name}{nearest_language(language, spec.languages)} "
            f"Languages: all, {', '.join(spec.languages)}."
        )
    return (language,)


def _target_column(spec: TaskSpec, column: str | None) -> str:
    wrong, predicts = {
        "ctc": (_CLASS_COLUMNS, "predicts text"),
        "translation": (_CLASS_COLUMNS, "predicts text"),
        "classification": (_TEXT_COLUMNS, "predicts one class a clip"),
        "retrieval": (_CLASS_COLUMNS | _TEXT_COLUMNS, "needs the ids of sentences"),
    }[spec.kind]
    if column in wrong:
        raise InputError(
            f"--target_column_name {column} does not fit --task {spec.name}, which {predicts} ({spec.target_column}). "
            f"Drop the flag, or use the task that predicts {column}{': fleurs-lang_id' if column == 'lang_id' else ''}."
        )
    return column or spec.target_column
