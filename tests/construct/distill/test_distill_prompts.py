"""The teacher's prompt and its picture: what it must hold, and that the examples pass the gate they are held to."""

import base64
import json
import shutil
from io import BytesIO

import numpy as np
import pytest
from construct.distill.classroom import make_task, png, words
from PIL import Image

from vital_jax.construct.distill.overlay import teacher_view, tint, view_size
from vital_jax.construct.distill.prompts import FOLDER, MODES, load_prompts, request, request_hash
from vital_jax.construct.distill.replies import judge, read_completion, unwrap
from vital_jax.construct.gate import Violation, gate, steps_allowed
from vital_jax.construct.questions import load_templates, questions
from vital_jax.construct.tasks import public_licence, task_of

LEAK = Violation("leak", "overlay", "step 1", "red overlay")


@pytest.fixture(scope="module")
def prompts():
    return load_prompts()


def test_every_type_of_question_has_guidance_and_examples_that_pass_the_gate(prompts):
    assert prompts.types["types"].keys() == load_templates().keys()
    for kind, row in prompts.types["types"].items():
        low, high = steps_allowed(kind)
        counts = set()
        for example in row["examples"]:
            facts = {key: example[key] for key in ("target", "target_type", "modality")}
            verdict = gate(json.dumps(example["reply"]), question_type=kind, **facts)
            assert verdict.accepted, (kind, verdict.violations)
            reply = example["reply"]
            said = (reply["final_answer"], tuple(reply["reasoning_chain"]))
            assert (verdict.answer, verdict.chain) == said, "not as it would be kept"
            counts.add(len(verdict.chain))
        assert counts == set(range(low, high + 1)), kind


def test_the_example_has_an_allowed_number_of_steps_and_the_right_presence(prompts):
    def shown(**changes):
        text = prompts.user(make_task(0, **changes))
        return json.loads(next(line for line in text.splitlines() if line.startswith('{"final_answer"')))

    for steps in ((3, 3), (4, 4), (3, 4)):
        count = len(shown(question_type="reasoning", steps=steps)["reasoning_chain"])
        assert steps[0] <= count <= steps[1]
    assert shown()["final_answer"].startswith("Yes") and shown(mask=b"")["final_answer"].startswith("No")


def test_the_prompt_says_what_the_paper_lists(prompts):
    for part in ("teacher", "overlay", "ground truth", "ROI", "lesion", "patient", "final_answer", "reasoning_chain"):
        assert part in prompts.system
    text = prompts.user(make_task(0, target_type="organ", steps=(1, 1)))
    for part in ("liver", "organ", "CT of abdomen", "yesno", "exactly 1 step", "image number 0", "tinted red"):
        assert part in text, part
    assert "STRICT" not in text and "$" not in text and "$" not in prompts.system
    absent = prompts.user(make_task(0, mask=b""))
    assert "NOT in this image" in absent and "tinted" not in absent
    assert "one of them, word for word: yes; no" in prompts.user(make_task(0, options=("yes", "no")))
    assert "3 to 4 steps" in prompts.user(make_task(0, question_type="reasoning", steps=(3, 4)))


def test_strict_rules_name_the_violations_and_hide_the_refused_reply(prompts):
    text = prompts.user(make_task(0), [LEAK, LEAK, Violation("steps", "1 to 1 steps", "reply", "2 steps")])
    strict = text.partition("STRICT RULES")[2]
    assert strict.count("red overlay") == 1 and "2 steps" in strict and "from scratch" in strict


def test_the_version_follows_every_word(prompts, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "own")
    assert load_prompts(folder).version == prompts.version
    (folder / "3-no-leak.txt").write_text("Say nothing.")
    own = load_prompts(folder)
    assert own.version != prompts.version and "Say nothing." in own.system
    (folder / "types.json").write_text('{"types": {}, "views": {}, "options": "$options"}')
    with pytest.raises(ValueError, match=r"types\.json"):
        load_prompts(folder)
    (folder / "user.txt").unlink()
    with pytest.raises(ValueError, match=r"user\.txt missing"):
        load_prompts(folder)


def test_a_type_without_guidance_is_named(prompts):
    with pytest.raises(ValueError, match="no guidance for questions of type 'other'"):
        prompts.user(make_task(0, question_type="other"))


def test_requests(prompts):
    body = request(make_task(0), b"jpeg", prompts, "m", extra={"temperature": 0})
    assert body["temperature"] == 0 and body["model"] == "m"
    system, user = body["messages"]
    assert system == {"role": "system", "content": prompts.system} and user["content"][0]["type"] == "text"
    url = user["content"][1]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) == b"jpeg"
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["additionalProperties"] is False
    kinds = [request(make_task(0), b"", prompts, "m", mode).get("response_format", {}).get("type") for mode in MODES]
    assert kinds == ["json_schema", "json_object", None]
    assert request_hash(body) == request_hash(dict(reversed(body.items())))
    assert request_hash(body) != request_hash(request(make_task(0), b"jpeh", prompts, "m", extra={"temperature": 0}))
    with pytest.raises(ValueError, match="'messages'"):
        request(make_task(0), b"", prompts, "m", extra={"messages": []})


# --- the picture ----------------------------------------------------------------------------------------------------


def test_tint_and_contour_are_the_papers():
    picture = Image.fromarray(np.full((6, 6, 3), (100, 50, 200), np.uint8))
    region = np.zeros((6, 6), bool)
    region[2:4, 2:5] = True
    pixels = np.asarray(tint(picture, region))
    assert (pixels[region] == (162, 30, 120)).all(), "0.6 x image + 0.4 x (255, 0, 0)"
    around = np.zeros((6, 6), bool)
    around[1:5, 1:6] = True
    assert (pixels[around & ~region] == (255, 255, 0)).all()
    assert (pixels[~around] == (100, 50, 200)).all()


@pytest.mark.parametrize(
    ("size", "view"),
    [((1000, 2000), (384, 768)), ((768, 500), (768, 500)), ((384, 10), (384, 10)), ((35, 70), (192, 384))],
)
def test_view_sizes(size, view):
    assert view_size(*size) == view


def seen(image, mask):
    return Image.open(BytesIO(teacher_view(image, mask, "task")))


def test_the_view_is_a_jpeg_with_the_target_where_it_is():
    picture = seen(png(1, (1536, 1600)), png(mask=True, size=(1536, 1600)))
    assert picture.format == "JPEG" and max(picture.size) == 768
    pixels = np.asarray(picture).astype(int)
    # The mask is rows 10-19 and columns 12-29 at a scale of 0.48: a few pixels, and still to be seen.
    assert (pixels[6:8, 7:13, 0] - pixels[6:8, 7:13, 2] > 60).all()
    assert (pixels[40:, 40:, 0] - pixels[40:, 40:, 2]).mean() < 5


def test_a_single_pixel_survives_shrinking():
    mask = np.zeros((1600, 1600), np.uint8)
    mask[800, 801] = 255
    file = BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    grey = BytesIO()
    Image.fromarray(np.full((1600, 1600), 90, np.uint8)).save(grey, "PNG")
    pixels = np.asarray(seen(grey.getvalue(), file.getvalue())).astype(int)
    yellow = (pixels[..., 0] > 180) & (pixels[..., 1] > 150) & (pixels[..., 2] < 80)
    assert 6 <= yellow.sum() <= 16


def test_an_absent_target_leaves_the_picture_plain():
    flat = BytesIO()
    Image.fromarray(np.full((400, 400), 90, np.uint8)).save(flat, "PNG")
    assert (np.abs(np.asarray(seen(flat.getvalue(), b"")).astype(int) - 90) <= 1).all()


def test_masks_turn_with_their_image():
    base = Image.fromarray(np.full((400, 500, 3), 60, np.uint8))
    exif = base.getexif()
    exif[274] = 6  # to be turned right by a quarter
    file = BytesIO()
    base.save(file, "PNG", exif=exif)
    mask = np.zeros((400, 500), np.uint8)
    mask[:40, :40] = 255  # upper left as stored, upper right when upright
    stored = BytesIO()
    Image.fromarray(mask).save(stored, "PNG")
    pixels = np.asarray(seen(file.getvalue(), stored.getvalue())).astype(int)
    assert pixels.shape[:2] == (500, 400)
    assert pixels[20, 380, 0] > 100 and pixels[20, 20, 0] < 70


def test_what_cannot_be_shown_is_named():
    with pytest.raises(ValueError, match="task: the mask is 30x30"):
        seen(png(), png(mask=True, size=(30, 30)))
    empty = BytesIO()
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(empty, "PNG")
    with pytest.raises(ValueError, match="mask is empty"):
        seen(png(), empty.getvalue())


def test_the_view_of_real_images(real):
    from vital_jax.construct.folders import MaskFolder

    for number, sample in enumerate(MaskFolder(real("sam_med2d_demo"), licence="Apache-2.0")):
        for question in questions(sample, 2, seed=0):
            task = task_of(sample, question)
            assert task.public and task.steps == steps_allowed(question.type)
            with Image.open(BytesIO(teacher_view(task.image, task.mask, task.id))) as picture:
                pixels = np.asarray(picture).astype(int)
            red = (pixels[..., 0] - pixels[..., 2]) > 40
            assert red.any() == bool(task.mask), task.id
        if number == 5:
            break


# --- replies ----------------------------------------------------------------------------------------------------------


def test_replies_are_read_from_any_gateway():
    body = {
        "choices": [{"finish_reason": None, "message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]
    }
    reply = read_completion(body)
    assert (reply.text, reply.finish, reply.tokens_in) == ("ab", "stop", None)
    refused = read_completion({"choices": [{"finish_reason": "stop", "message": {"content": None, "refusal": "No."}}]})
    assert refused.finish == "refusal" and refused.text == "No."
    for body in (None, {}, "text", {"choices": []}, {"choices": [{"message": None}]}):
        with pytest.raises(ValueError, match="not a chat completion"):
            read_completion(body)


def test_thought_and_fence_are_taken_off_and_nothing_else():
    assert unwrap(f"<think>\nhm {{}}\n</think>\n```json\n{words()}\n```") == words()
    assert unwrap("Sure: " + words()) == "Sure: " + words()


@pytest.mark.parametrize(
    ("text", "finish", "codes"),
    [
        (words(), "stop", ()),
        (words(), "length", ("cut-off",)),
        (words(), "content_filter", ("filtered",)),
        ("I cannot.", "refusal", ("refused",)),
        ("", "stop", ("json",)),
        ("The liver is seen.", "stop", ("json",)),
        (words("Yes.", "a step", "another step"), "stop", ("steps",)),
        (words("Yes.", "The red overlay shows it."), "stop", ("leak",)),
    ],
)
def test_judging(text, finish, codes):
    assert set(judge(make_task(), text, finish).codes) == set(codes)


def test_a_closed_question_is_answered_by_one_of_its_options():
    task = make_task(options=("left", "center", "right"), question_type="location_choice")
    assert judge(task, words("Left")).answer == "Left."
    assert judge(task, words("The liver lies on the left.")).codes == ("option",)


@pytest.mark.parametrize("licence", ["CC BY-SA 4.0", "CC-BY-NC-SA-4.0", "CC0", "Apache-2.0 (stated)", "MIT"])
def test_public_licences(licence):
    assert public_licence(licence)


@pytest.mark.parametrize(
    "licence", ["", "unknown", "research and educational use", "MITRE internal", "proprietary", "not CC BY"]
)
def test_licences_that_are_not_known_as_public(licence):
    assert not public_licence(licence)
