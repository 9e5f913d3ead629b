"""Which option an answer names: letters in every form, texts within sentences, and the many ways to name none."""

import pytest

from vital_jax.scoring.choice import choose, letter, nearest_option, several

OPTIONS = ("Uterus", "Left lung", "lung", "Liver cyst")
MODALITIES = ("CT", "X-ray", "MRI", "Ultrasound")
ORGANS = ("Kidney", "Liver", "Spleen")
YES_NO = ("Yes", "No")
COUNTS = ("2", "3", "4", "10")
FINDINGS = ("No abnormality", "Pleural effusion", "Effusion", "Cannot be determined")
GERMS = ("S. aureus", "Candida", "E. coli", "Proteus", "Klebsiella")


@pytest.mark.parametrize(
    ("text", "name", "how"),
    [
        ("B", "B", "letter"),
        ("b", "B", "letter"),
        ("(c)", "C", "letter"),
        ("D.", "D", "letter"),
        ("**A**", "A", "letter"),
        ("B. Left lung", "B", "letter"),
        ("(D) something else", "D", "letter"),
        ("The answer is (A).", "A", "letter"),
        ("E", "", "none"),
        ("left lung.", "B", "text"),
        ("lung", "C", "text"),
        ("It shows the left lung", "B", "contained"),  # "lung" stands only inside "left lung"
        ("the uterus and a liver cyst", "", "none"),
        ("A cyst of the liver", "", "none"),  # an article is no choice
        ("a. m. dose", "", "none"),
        ("", "", "none"),
        ("*B*", "B", "letter"),
        ("[B]", "B", "letter"),
        ("‘B’。", "B", "letter"),
        ("Ｂ", "B", "letter"),
        ("\u200bB", "B", "letter"),
        ("*Answer*: B", "B", "letter"),
        ("Final Answer\nB", "B", "letter"),
        ("neither A nor D\n\nB", "B", "letter"),
        ("B\n\nD would be the uterus", "B", "letter"),
        ("A\n\nB", "", "none"),
        ("b. left lung", "B", "letter"),
        ("Option B", "B", "letter"),
        ("选B", "B", "letter"),
        ("B是正确的", "B", "letter within"),
        ("it's D", "D", "letter within"),
        ("I choose 'D' here", "D", "letter"),
        ("D's wall", "", "none"),
        ("A lesion; D", "D", "letter within"),
        ("A is right", "A", "letter"),
        ("The answer is not A but B", "B", "letter within"),
        ("A and B", "", "none"),
        ("(A), (B)", "", "none"),
        ("MRA", "", "none"),
    ],
)
def test_an_answer_names_an_option_or_none(text, name, how):
    assert choose(text, OPTIONS) == (name, how)


X_RAY = [
    # A letter before an option that begins with a capital, and every way to write a letter.
    "B. X-ray", "(B) X-ray", "B: X-ray", "B - X-ray", "B) X-ray", "B X-ray", "b) x-ray", "b: x-ray", "(b)", "b)", "B:", "B!",
     '"B"', "$B$", "`B`",
    "# B", "- B", "𝐁", "Ⓑ", "⒝", "Ｂ．Ｘ－ｒａｙ", "\u0392", "\u0412. X-ray",
    # In front of, behind and within words.
    "The answer is B.", "the answer is b", "Answer: b", "answer b", "Final answer: (B)", "**Answer:** B", "**Answer: B**", r"\boxed{B}",
    r"\boxed{\text{B}}", "<answer>B</answer>", "Option B", "I choose option b.", "The answer is option (b)", "The correct option is B",
    "The correct choice is (B) X-ray.", "So the answer is: **B) X-ray**", "**B. X-ray**", "Thus, B.", "I would go with B here.",
    "Most likely B",
    "the second option", "The second one.", "Second", "Option two", "option 2", "I would pick B over C", "X-ray (B)",
    # With an explanation.
    "B\nThe film shows the ribs on CT.", "B\n\nExplanation: A is wrong.", "B: because of the ribs", "B, because the ribs are not sharp",
    "B because A is not right", "The answer is B. CT would show slices.", "Answer: B\nExplanation: the answer is supported by the ribs",
    "B is the best answer because C would show more", "I'm not sure, but B", "As an AI, I can't view images. B",
    # Reasoning in front of it, the options repeated, the others denied.
    "<think>A. The answer is A? no</think>\n\nB", "Could be A.\n</think>\nX-ray", "Is it CT or MRI? X-ray.",
    "A. CT B. X-ray C. MRI D. Ultrasound\nB", "A. CT\nB. X-ray\nC. MRI\nD. Ultrasound\nThe answer is B.", "A is wrong. B is right.",
    "Option A is incorrect; option B is correct.", "A: incorrect. B: correct.",
    # By its text.
    "It is an X-ray.", "It is an x ray", "xray", "This is an X-ray, not a CT.", "It is not a CT but an X-ray",
    "Unlike CT, this is an X-ray.",
]  # fmt: skip


@pytest.mark.parametrize("text", X_RAY)
def test_the_second_option(text):
    assert choose(text, MODALITIES)[0] == "B"


NOTHING = [
    "It is not CT.", "CT or X-ray", "CT and MRI", "Neither CT nor MRI", "CT, X-ray, MRI or ultrasound?", "I cannot tell.",
    "I cannot tell whether it is CT or MRI", "I'm not sure whether it is a CT.", "A. CT\nB. X-ray\nC. MRI\nD. Ultrasound",
    "A. CT, B. X-ray", "Either A or B.", "It is A, B or C.",
    "A/B", "B, C", "A or B", "B or A", "Both A and B", "Options A and B are both plausible", "The answer choices are A, B, C and D",
    "B. CT", "X-ray (A)", "The answer is unclear.", "B? The answer is unclear.", "None of these",
    "B?", "X-ray?", "anything but an X-ray", "e", "Option E", "It is hepatitis B",
    "There is no CT shown", "It does not show an X-ray", "I don't think it's an X-ray", "cannot be an MRI",
    "No image was provided", "not B",
    "It's not B.", "B is incorrect", "B isn't right", "<think>B", "Could be CT</think>",
]  # fmt: skip


@pytest.mark.parametrize("text", NOTHING)
@pytest.mark.parametrize("nearest", [False, True])
def test_no_option(text, nearest):
    if not (
        nearest and text in ("None of these", "It is hepatitis B", "Option E")
    ):  # these words may go to the nearest option
        assert choose(text, MODALITIES, nearest)[0] == ""


@pytest.mark.parametrize(
    ("options", "text", "name"),
    [
        (ORGANS, "It is not the kidney.", ""),
        (ORGANS, "It is the kidney, not the liver.", "A"),
        (ORGANS, "The kidney is not shown; the liver is.", "B"),
        (ORGANS, "No, it is the kidney.", "A"),
        (ORGANS, "There is no doubt that it is the kidney.", "A"),
        (ORGANS, "The kidney is absent", ""),
        (ORGANS, "liver rather than spleen", "B"),
        (ORGANS, "not kidney, liver or spleen", ""),
        (ORGANS, "Kidney/liver", ""),
        (YES_NO, "Yes", "A"),
        (YES_NO, "A. Yes", "A"),
        (YES_NO, "(B)", "B"),
        (YES_NO, "Yes, there is no doubt", "A"),
        (YES_NO, "There is no nodule", "B"),
        (YES_NO, "Yes/No", ""),
        (YES_NO, "yes and no", ""),
        (YES_NO, "Yes or no? I am not sure.", ""),
        (YES_NO, "I would not say yes", ""),
        (YES_NO, "no image was provided", ""),
        (COUNTS, "two", "A"),
        (COUNTS, "There are three nodules", "B"),
        (COUNTS, "Ten.", "D"),
        (COUNTS, "B", "B"),
        (COUNTS, "C. 4", "C"),
        (COUNTS, "1", ""),
        (COUNTS, "20", ""),
        (COUNTS, "2.5", ""),
        (COUNTS, "2 or 3", ""),
        (FINDINGS, "There is an effusion", "C"),
        (FINDINGS, "There is a pleural effusion", "B"),
        (FINDINGS, "I see no abnormality", "A"),
        (FINDINGS, "It cannot be determined", "D"),
        (FINDINGS, "D. Cannot be determined", "D"),
        (FINDINGS, "No effusion", ""),
        (GERMS, "C. E. coli", "C"),
        (GERMS, "E. coli", "C"),
        (GERMS, "The culture grew E. coli.", "C"),
        (GERMS, "E. Klebsiella", "E"),
        (("B-cell lymphoma", "Sarcoidosis"), "A. B-cell lymphoma", "A"),
        (("Normal", "Effusion", "Fracture", "A lung nodule"), "D. A lung nodule", "D"),
        (("Normal", "Effusion", "Fracture", "A lung nodule"), "A lung nodule", "D"),
        (("Effusion", "Pneumothorax"), "B. I see a visceral pleural line.", "B"),
        (("left", "right"), "left or right", ""),
        (("left", "right"), "Left side, left", "A"),
        (("x", "y", "Both A and B"), "Both A and B", "C"),
        (("CT", "MRI", "None of the above"), "None of the above", "C"),
        (("CT", "infarct"), "infarct", "B"),
        (("<5 mm", ">5 mm"), "> 5 mm", "B"),
        (("5", "-5"), "-5", "B"),
        (("HER2-", "HER2+"), "HER2+", "B"),
        (("左肺", "右肺"), "是左肺。", "A"),
        (("Left lung", "Left lung"), "left lung", ""),
    ],
)
def test_texts_of_options(options, text, name):
    assert choose(text, options)[0] == name


def test_the_nearest_option_is_difflibs_and_comes_last():
    assert nearest_option("Uterrus", OPTIONS) == "A"
    assert choose("uterrus", OPTIONS) == ("", "none") and choose("uterrus", OPTIONS, nearest=True) == ("A", "nearest")
    # A letter of no option and several letters are no reason to look for the nearest.
    assert choose("e", OPTIONS, nearest=True) == ("", "none") == choose("A or D", OPTIONS, nearest=True)
    assert nearest_option("", OPTIONS) == "" == nearest_option("§", OPTIONS)
    assert choose("", OPTIONS, nearest=True) == ("", "none")
    # Equal ratios: the first.
    assert nearest_option("ab", ("xa", "xb")) == "A"
    # Why letters go first: alone, the rule takes a short option that holds the letter.
    assert nearest_option("B", ("Brain", "Bone")) == "B" and choose("A", ("Brain", "Bone"))[0] == "A"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A, C", "AC"),
        ("DA", "AD"),
        ("C and A.", "AC"),
        ("(A) Uterus, (D) Liver cyst", "AD"),
        ("The answer is A and C", "AC"),
        ("uterus; liver cyst", "AD"),
        ("A and D, but not B", "AD"),
        ("not the uterus", ""),
        ("I cannot tell.", ""),
    ],
)
def test_several_letters(text, names):
    assert several(text, OPTIONS) == names


@pytest.mark.parametrize("loop", ["no CT, and I am not sure (a). ", "*", " ", "A and ", "I cannot "])
def test_a_reply_that_repeats_itself_is_read_at_its_ends(loop):
    many = loop * 30_000  # without a bound these take minutes
    assert choose(f"{many}\nThe answer is B.", MODALITIES)[0] == "B"
    assert choose(f"B\n{many}", MODALITIES)[0] == "B"


def test_private_characters_name_nothing():
    assert choose("\ue001 \ue802", MODALITIES) == ("", "none") and choose("\ue000B\ue000", MODALITIES)[0] == "B"


def test_letters_end_at_z():
    with pytest.raises(ValueError, match="no options"):
        choose("B", ())
    assert (letter(0), letter(25)) == ("A", "Z")
    with pytest.raises(ValueError, match="option number 27 has no letter"):
        letter(26)
