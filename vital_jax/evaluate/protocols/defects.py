"""What is known to be wrong with other scorers, as one table: what they do, what is done here instead, and where it is reproduced.

Found by reading their code at the commits that the protocols name, and checked by tests of both modes. "kept" means that it is the
published rule and stays in both modes.
"""

from dataclasses import dataclass

from vital_jax.evaluate.score import markdown


@dataclass(frozen=True)
class Defect:
    """One of them.

    Attributes:
      scorer: whose. does: what it does. example: where it shows. here: what is done instead. compat: the protocol that reproduces it, or
      why none.
    """

    scorer: str
    does: str
    example: str
    here: str
    compat: str


KIT, LLAVA, PATH, LMMS, PMC = "MedEvalKit", "LLaVA-Med", "PathVQA script", "lmms-eval", "PMC-VQA script"
KIT_MODE, LLAVA_MODE, PATH_MODE = "medevalkit compat", "llava_med compat", "pathvqa compat"

DEFECTS = (
    Defect(
        KIT,
        "(F1, precision, recall) are unpacked as (precision, recall, F1): the printed F1 is recall",
        '"left lower lobe of the lung" for "left lower lobe": 1.0, true F1 0.667 (0.75 without articles)',
        "token F1 is F1",
        KIT_MODE,
    ),
    Defect(
        KIT,
        "the open accuracy is divided by the number of open questions twice; its exact match (em), total and closed accuracy are not",
        "40 right of 200 open questions: printed 0.001, true 0.2",
        "divided once",
        f"{KIT_MODE} (divided once)",
    ),
    Defect(
        KIT,
        "tokens are sets: repeated words count once, full stops and commas stay on the words",
        '"no no yes" for "no yes": 1.0, true F1 0.8',
        "bags of tokens in SQuAD's normal form",
        KIT_MODE,
    ),
    Defect(
        KIT, "an empty open answer ends the run with an error", '""', "an empty answer is wrong", f"{KIT_MODE} (stops)"
    ),
    Defect(
        KIT,
        "yes and no are looked for inside words, and an answer with both is wrong",
        '"Yes, there is a nodule." for "yes": wrong',
        "whole words; a clause that begins with one decides, and one that asks, refuses or denies says neither",
        KIT_MODE,
    ),
    Defect(
        KIT,
        "an answer like none of the options is taken for option A",
        '"" with gold A: right',
        "no option is chosen: wrong",
        KIT_MODE,
    ),
    Defect(
        KIT,
        "a small letter before the first full stop is a choice, an abbreviation's too; of letters on the first and the last line the first "
        "counts",
        '"a. m. dose" is A',
        "a small letter before words is read only where its option's text follows; two lines with different letters choose none",
        KIT_MODE,
    ),
    Defect(
        KIT,
        "a letter with a colon behind it is deleted, and the nearest option is taken",
        '"B:" among "A. Uterus", "B. Left lung", "C. Liver cyst", "D. Spleen", "E. Brain" is E',
        "a letter is read whatever marks stand around it",
        KIT_MODE,
    ),
    Defect(
        KIT,
        "closed answers are compared with the spaces around them, and without their line breaks and full stops, which gold answers keep; "
        "open answers as they are",
        '"The answer is left" for "left": wrong (" left")',
        "spaces, line breaks and a full stop at the end do not count",
        KIT_MODE,
    ),
    Defect(
        KIT,
        "a box that is not closed is read as the text None; what several <answer> tags hold is joined",
        r'"\boxed{no" for "no": wrong',
        "the text itself is read; the last tag counts",
        KIT_MODE,
    ),
    Defect(
        KIT,
        "PathVQA with a judge: closed hits are set to 0 and never counted again",
        "closed accuracy 0 whatever was answered",
        "closed answers by rule, open ones by verdict",
        f"{KIT_MODE} judge",
    ),
    Defect(
        KIT,
        "SLAKE with a judge: closed hits by rule and by verdict are added",
        "closed accuracy up to 200 %",
        "closed answers by rule, open ones by verdict",
        f"{KIT_MODE} judge",
    ),
    Defect(
        KIT,
        "VQA-RAD with a judge: the total adds verdicts to the exact matches of the same open answers (VQA_RAD.py at 564d279)",
        'an open answer that is equal and judged right counts twice in "total acc"',
        "counted once",
        f"{KIT_MODE} judge",
    ),
    Defect(
        KIT,
        "VQA-RAD is split by the answer string (251 yes/no, 200 others), the data marks 272 closed",
        '"left" to a closed question is open there',
        "kept; the denominator is printed",
        "medevalkit",
    ),
    Defect(
        LLAVA,
        "a wrong closed answer with yes or no in it is dropped from the denominator",
        '"no" for "yes" is not counted; only answers without either are wrong',
        "every closed question counts",
        LLAVA_MODE,
    ),
    Defect(
        LLAVA,
        "a closed question that yes and no do not answer is wrong unless the answer holds yes or no, inside words too",
        '"left" for "left": wrong',
        "right where the answer states the gold answer as whole words",
        LLAVA_MODE,
    ),
    Defect(
        LLAVA,
        "the gold answer is looked for inside words and beside its opposite",
        '"it may be yes or no": right for "yes" and for "no"',
        "yes and no are whole words; a clause that begins with one decides, both of them elsewhere are neither",
        LLAVA_MODE,
    ),
    Defect(
        f"{LLAVA}, {PATH}",
        "a shared word counts as often as the answer has it, in the recall too",
        '"lung lung lung" for "left lung": recall 0.75, true 0.5',
        "clipped to how often both have it",
        f"{LLAVA_MODE}, {PATH_MODE}",
    ),
    Defect(
        f"{LLAVA}, {PATH}",
        '"exact match" is shared words over the words of the answer',
        '"left" for "left lower lobe": 1.0',
        "exact match is equality",
        f"{LLAVA_MODE}, {PATH_MODE}",
    ),
    Defect(
        PATH,
        "BLEU leaves n-grams without a match out, so no match at all gives the brevity penalty",
        '"entirely different words" for "left": BLEU-1 of 1.0, true 0',
        "BLEU is 0 where no n-gram matches",
        PATH_MODE,
    ),
    Defect(
        PATH,
        "the brevity penalty compares numbers of characters, not of words",
        '"pneumonia" for "pneumonia of it": BLEU-1 of 0.51, true 0.14',
        "words",
        PATH_MODE,
    ),
    Defect(
        PATH,
        "BLEU-n of an answer of fewer than n words divides by zero",
        '"2" with BLEU-1 (digits are taken out), "left" with BLEU-2',
        "such a BLEU is 0",
        f"{PATH_MODE} (not counted)",
    ),
    Defect(
        "MMMU, lmms-eval",
        "a choice that cannot be read is drawn at random: 1/4 of them are right. Seeds: MMMU 42, lmms-eval 0, MMMU-Pro none",
        '"I cannot tell."',
        "wrong",
        "mmmu compat, lmms_eval compat",
    ),
    Defect(
        "MMMU",
        "an open answer is split into sentences after it was made lower case, by a rule that looks for capitals: never",
        '"It is 3. The rest is noise." for "3": wrong',
        "kept",
        "mmmu",
    ),
    Defect(
        f"{LMMS}, MMMU-Pro",
        "a letter before a space or full stop counts inside longer words",
        '"MRA of the head" is read as A',
        "lmms_eval: a letter stands alone; MMMU-Pro: kept",
        "lmms_eval compat, mmmu",
    ),
    Defect(
        LMMS,
        "正常 (normal) counts as yes and 异常 (abnormal) as no",
        '"正常" for "是": right',
        "answers of their own",
        "lmms_eval compat",
    ),
    Defect(
        LMMS,
        "an answer without a word equals a gold answer without one",
        '"" for "-": right',
        "wrong",
        "lmms_eval compat",
    ),
    Defect(
        PMC,
        "only the last character of the decoded text is compared with the options",
        '"The answer is B.": a full stop is like no option',
        "letter, text, then the nearest option",
        "pmc_vqa compat",
    ),
    Defect(
        f"{KIT}, {PMC}, OmniMedVQA",
        "what is no plain letter or option goes to the nearest option by difflib's ratio, which favours short options that share letters; "
        "outside MedEvalKit it tells capitals apart",
        '"B" is nearest to the shortest option with a B in it; "Option B" among Uterus, Left lung, Liver cyst, Spleen is A in MedEvalKit',
        "a letter, an option's text and the only option that is stated go before it; several, denials and refusals choose none",
        f"{KIT_MODE}, pmc_vqa compat, omnimedvqa compat",
    ),
    Defect(
        "OmniMedVQA",
        "a question whose image or model fails is skipped without a word",
        "the denominator shrinks",
        "every question needs an answer",
        "none: what failed is not in a predictions file",
    ),
    Defect(
        "OmniMedVQA",
        "options are compared by their text, so of two with the same text either is right",
        '"Left lung" where A and B are both "Left lung"',
        "only the right option's letter",
        "omnimedvqa compat",
    ),
    Defect(
        "MedXpertQA",
        "the first capital A to E that stands alone is the choice, an article too",
        '"A lesion; D" is read as A',
        "kept",
        "medxpertqa",
    ),
    Defect(
        "MedXpertQA",
        "of an answer that says ' answer is ' twice, what stands between the first two is read",
        '"The answer is B, no, the answer is C" is read as B',
        "kept",
        "medxpertqa",
    ),
    Defect(
        "published tables",
        'the "closed accuracy" of VQA-RAD is of 451 (all), 251 (yes/no) or 272 (marked closed) questions, mixed within one row',
        "335/451 = 74.3 %, 196/272 = 72.1 %",
        "paper prints all three with N",
        "paper",
    ),
)


def defects_table() -> str:
    """The table in Markdown."""
    header = ["scorer", "what it does", "example", "here", "reproduced by"]
    return markdown(header, [[d.scorer, d.does, d.example, d.here, d.compat] for d in DEFECTS])
