"""The page of explanations in a real browser: it draws, its controls and keys work, its downloads say what it shows, nothing leaves it."""

import csv
import io
import json
import socket
from types import SimpleNamespace

import browser
import numpy as np
import pytest
from pictured import SUMMARY, case, heat, with_steps
from sheets import HOSTILE, png

from vital_jax.construct.pages import outline
from vital_jax.explain.page import page

pytestmark = pytest.mark.slow
MRI = {"modality": "MRI", "question_type": "describe"}
LOGS = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
# The colours of a canvas, row by row, by way of a copy: of a canvas that is read often the browser complains.
PIXELS = (
    "(() => {{ const it = {c}; const copy = new OffscreenCanvas(it.width, it.height).getContext('2d', {{ willReadFrequently: true }});"
    "copy.drawImage(it, 0, 0); return Array.from(copy.getImageData(0, 0, it.width, it.height).data); }})()"
)
CANVAS = "document.querySelectorAll('#steps canvas')[{n}]"


def cases():
    """Ordinary, wrong, odd and hostile ones."""
    plain = case(0, 3)
    flat = with_steps(case(1, correct=False, metadata=MRI, complete=False), heat=(heat(0.3, 0.31),), similar=())
    blind = with_steps(case(2, correct=None, gold="", metadata=MRI), heat=(), similar=(), scores=None)
    second = png(np.full((30, 30, 3), 90, np.uint8))
    two = case(3, images=(*plain.images, second), masks=(*plain.masks, None))
    two = with_steps(two, heat=(heat(-0.5, 0.2), np.full((4, 6), np.nan, np.float32)))
    none = case(4, 0, metadata={})
    texts = {"id": HOSTILE, "question": HOSTILE, "answer": "=1+1", "metadata": {"modality": HOSTILE, "note": HOSTILE}}
    region = np.zeros((40, 60), bool)
    region[2:6, 3:9] = True
    return [plain, flat, blind, two, none, with_steps(case(5, **texts), text=HOSTILE, region=region)]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser with the page open, and the folder of its downloads."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.html").write_text(page(cases(), SUMMARY), encoding="utf-8")
    with browser.start() as found:
        found.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)
        yield SimpleNamespace(browser=found, folder=folder, path=folder / "page.html")


@pytest.fixture
def page_of(chromium):
    """The browser, the page freshly opened; whatever a test does, the page logs nothing and asks for nothing but itself."""
    found = chromium.browser
    since = len(found.events)
    found.size(1280, 900)
    found.open(chromium.path)
    yield found
    found.run("1")
    logged = [event for event in found.events[since:] if event["method"] in LOGS]
    assert not logged
    asked = [
        event["params"]["request"]["url"]
        for event in found.events[since:]
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [chromium.path.as_uri()]


def text(found, selector):
    """What an element says."""
    return found.run(f"document.querySelector({json.dumps(selector)}).innerText")


def texts(found, selector):
    """What every such element says."""
    return found.run(f"Array.from(document.querySelectorAll({json.dumps(selector)}), (each) => each.innerText)")


def choose(found, identity, value):
    """Sets a control as a hand would, with the events that follow."""
    found.run(
        f"(() => {{ const it = document.querySelector({json.dumps(identity)}); it.value = {json.dumps(value)};"
        "for (const kind of ['input', 'change']) it.dispatchEvent(new Event(kind, { bubbles: true })); })()"
    )


def pixels(found, number):
    """Colours [patches, 3] of a heat map on the screen."""
    return np.array(found.run(PIXELS.format(c=CANVAS.format(n=number)))).reshape(-1, 4)[:, :3]


def test_it_shows_a_case(page_of):
    assert text(page_of, "#title") == "case/0 · CT · describe · 3 latent steps"
    assert text(page_of, "#shown") == "1 of 6, 4 of 5 right"
    asked = text(page_of, "#asked")
    for said in (
        "What of 0?",
        "A block.",
        "✓ right",
        "log-probability -0.50 nats over 2 tokens (0.78 per token",
        "Block.",
    ):
        assert said in asked
    assert texts(page_of, "#steps article h2:first-child") == ["Step 1", "Step 2", "Step 3"]
    second = texts(page_of, "#steps article")[1]
    for said in ("It lies 1.", "Gold 1.", "cosine 0.100 to 0.500", "hit", "0.250", "4.00", "block, CT, cosine 0.90"):
        assert said in second
    # A sentence stands below its heat map, and the original is bare.
    assert page_of.run(f"{CANVAS.format(n=1)}.closest('article').innerText.includes('It lies 1.')")
    assert page_of.run("document.querySelectorAll('#originals img').length") == 1
    assert texts(page_of, "#matrix tr")[2].split() == ["z2", "0.25", "1.00", "0.25"]
    assert texts(page_of, "#matrix tr")[4].split() == ["length", "3.00", "4.00", "5.00"]
    assert page_of.run("Array.from(document.images, (each) => each.complete && each.naturalWidth > 0).every(Boolean)")
    assert "yes" in text(page_of, ".scores") and "0.600" in text(page_of, ".scores")


def test_heat_is_drawn_where_it_is_and_on_one_scale(page_of):
    first, last = pixels(page_of, 0), pixels(page_of, 2)
    hot = 1 * 6 + 3
    # The case runs from 0.1 to 0.6: only the last step reaches the end of cividis, the first stays at (0.4 - 0.1) / 0.5.
    assert last[hot].tolist() == [254, 232, 56] and np.all(np.delete(last, hot, 0) == [0, 34, 78])
    # matplotlib's cividis at 0.6 and, below, at 0.8.
    np.testing.assert_allclose(first[hot], [148, 142, 119], atol=3)
    assert (text(page_of, "#low"), text(page_of, "#high")) == ("0.100", "0.600")
    choose(page_of, "#scale", "full")
    assert (text(page_of, "#low"), text(page_of, "#high")) == ("-1.000", "1.000")
    np.testing.assert_allclose(pixels(page_of, 2)[hot], [200, 184, 102], atol=3)
    choose(page_of, "#scale", "page")
    assert (text(page_of, "#low"), text(page_of, "#high")) == ("-0.500", "0.600")
    choose(page_of, "#map", "magma")
    assert pixels(page_of, 2)[hot].tolist() == [252, 253, 191]
    legend = np.array(page_of.run(PIXELS.format(c="document.getElementById('legend')"))).reshape(-1, 4)
    assert legend[0, :3].tolist() == [0, 0, 4] and legend[255, :3].tolist() == [252, 253, 191]
    assert "cosine -0.500 to 0.600" in page_of.run("document.getElementById('legend').getAttribute('aria-label')")


def test_opacity_and_outline(page_of):
    opacity = f"getComputedStyle({CANVAS.format(n=0)}).opacity"
    outline = "getComputedStyle(document.querySelector('#steps img.outline')).visibility"
    assert page_of.run(opacity) == "0.4" and page_of.run(outline) == "visible"
    choose(page_of, "#opacity", "0")
    assert page_of.run(opacity) == "0" and text(page_of, "#percent") == "0 %"
    page_of.key("m")
    assert page_of.run(outline) == "hidden" and not page_of.run("document.getElementById('outlines').checked")
    page_of.run("document.getElementById('outlines').click()")
    assert page_of.run(outline) == "visible"


def test_a_steps_own_region_is_outlined_on_its_map(page_of):
    drawn = "document.querySelector('#steps img.outline').src"
    one, _, _, _, _, own = cases()
    assert page_of.run(drawn) == outline(one.masks[0], (384, 256))
    choose(page_of, "#which", "5")
    assert page_of.run(drawn) == outline(own.steps[0].region, (384, 256))


def test_the_original_and_the_notice_stay_on_the_screen(page_of):
    # Not only within the window: nothing lies above its middle.
    seen = (
        "(() => {{ const it = document.querySelector('{0}'); const box = it.getBoundingClientRect();"
        "return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === it; }})()"
    )
    for width, height in ((1280, 480), (390, 844)):
        page_of.size(width, height)
        for place in (0, 0.5, 1):
            page_of.run(
                f"document.getElementById('steps').lastChild.scrollIntoView({{ block: 'end' }}); scrollBy(0, {place} * -200)"
            )
            for selector in ("footer", "#originals img"):
                assert page_of.run(seen.format(selector)), (width, selector)
        assert page_of.run("document.documentElement.scrollWidth <= innerWidth"), width
    page_of.run("scrollTo(0, 0)")
    assert page_of.run(seen.format("footer"))


def test_what_misleads_is_said(page_of):
    page_of.key("j")
    assert (
        texts(page_of, "#steps .flat")
        == ["Flat: all patches lie within 0.010, so where it is brightest means little."] * 2
    )
    assert "All maps of this case are flat" in text(page_of, "#range") and "Cut: the answer did not end." in text(
        page_of, "#asked"
    )
    assert "✗ wrong" in text(page_of, "#asked")
    page_of.key("j")
    assert (
        texts(page_of, "#steps .flat")
        == ["No heat map: this model has no visual projector. Do not rely on the text alone."] * 2
    )
    assert page_of.run("document.getElementById('looks').hidden") and "unknown" in text(page_of, "#asked")
    assert page_of.run("document.querySelectorAll('#originals img.outline').length") == 1
    page_of.key("j")
    assert page_of.run("document.querySelectorAll('#originals figure').length") == 2
    assert "image 2: this map holds values that are no numbers" in texts(page_of, "#steps article")[0]
    page_of.key("j")
    assert "No latent steps" in text(page_of, "#steps") and page_of.run("document.getElementById('against').hidden")


def test_filters_and_keys_without_a_mouse(page_of):
    page_of.key("ArrowRight")
    assert text(page_of, "#title").startswith("case/1") and page_of.run("document.activeElement.id") == "title"
    page_of.key("n", 2)
    assert page_of.run("document.activeElement.getAttribute('aria-label')") == "step 2 of 2"
    page_of.key("p")
    assert page_of.run("document.activeElement.getAttribute('aria-label')") == "step 1 of 2"
    page_of.key("k", 3)
    assert text(page_of, "#title").startswith("case/0") and page_of.run("document.getElementById('previous').disabled")
    choose(page_of, "[data-filter=verdict]", "wrong")
    assert text(page_of, "#shown") == "1 of 1, 0 of 1 right" and text(page_of, "#title").startswith("case/1")
    choose(page_of, "[data-filter=modality]", "CT")
    assert text(page_of, "#shown") == "none" and not page_of.run("document.getElementById('none').hidden")
    page_of.key("j")
    page_of.key("n")
    choose(page_of, "[data-filter=verdict]", "")
    assert text(page_of, "#shown") == "1 of 2, 2 of 2 right"
    choose(page_of, "#which", "3")
    assert text(page_of, "#title").startswith("case/3") and page_of.run("document.getElementById('next').disabled")


def test_tab_reaches_every_control_in_the_order_of_the_page(page_of):
    name = "document.activeElement.id || document.activeElement.dataset.filter || document.activeElement.tagName"
    reached = []
    while "scale" not in reached and len(reached) < 30:
        page_of.key("Tab")
        reached.append(page_of.run(name))
    # The button for the case before is switched off on the first.
    wanted = [
        "json",
        "csv",
        "verdict",
        "modality",
        "question_type",
        "which",
        "next",
        "outlines",
        "opacity",
        "map",
        "scale",
    ]
    assert [name for name in reached if name in wanted] == wanted
    # A slider moves by keys, which then are no keys of the page.
    page_of.run("document.getElementById('opacity').focus()")
    page_of.key("ArrowRight")
    assert text(page_of, "#percent") == "45 %" and text(page_of, "#title").startswith("case/0")


def test_everything_has_a_name(page_of):
    for _ in range(4):
        nodes = page_of.send("Accessibility.getFullAXTree")["nodes"]
        kinds = ("button", "combobox", "slider", "checkbox", "image", "img", "region", "article")
        of = [
            (node["role"]["value"], node.get("name", {}).get("value"))
            for node in nodes
            if not node["ignored"] and "role" in node
        ]
        found = [(role, name) for role, name in of if role in kinds]
        assert len(found) > 10 and all(name for _, name in found), [role for role, name in found if not name]
        assert page_of.run("Array.from(document.images).every((each) => each.alt)")
        page_of.key("j")
    page_of.key("k", 5)
    nodes = page_of.send("Accessibility.getFullAXTree")["nodes"]
    names = [node["name"]["value"] for node in nodes if not node["ignored"] and node.get("name", {}).get("value")]
    assert "heat map of step 2 over the CT image: cosine 0.100 to 0.500, highest in row 2, column 4 of 4 × 6" in names


def download(found, chromium, button, name):
    """Presses a button and reads the file that comes."""
    since = len(found.events)
    found.run(f"document.getElementById('{button}').focus()")
    found.key("Enter")
    begun = found.wait("Browser.downloadWillBegin", since)
    assert begun["suggestedFilename"] == name and begun["url"].startswith("blob:")
    found.wait("Browser.downloadProgress", since, state="completed")
    return (chromium.folder / name).read_text(encoding="utf-8")


def test_downloads_hold_what_the_filters_show(page_of, chromium):
    told = json.loads(download(page_of, chromium, "json", "explanations.json"))
    assert [one["id"] for one in told["cases"]] == [one.id for one in cases()]
    assert told["summary"]["table"][0]["own"] == 0.6 and "Not a medical device" in told["notice"]
    step = told["cases"][0]["steps"][1]
    assert step["text"] == "It lies 1." and step["scores"]["pointing"] is True and step["similar"][0]["cosine"] == 0.9
    np.testing.assert_allclose(np.reshape(step["heat"][0]["values"], (4, 6)), cases()[0].steps[1].heat[0], atol=1e-4)
    assert told["cases"][3]["steps"][0]["heat"][1] is None and told["cases"][5]["metadata"]["note"] == HOSTILE
    sheet = download(page_of, chromium, "csv", "explanations.csv")
    assert sheet[0] == "\ufeff"
    rows = list(csv.DictReader(io.StringIO(sheet[1:], newline="")))
    # A row for each step and image: 3, 2, 2, 2 x 2, one for the case without steps, 2.
    assert len(rows) == 14 and all(None not in row and None not in row.values() for row in rows)
    assert (rows[1]["text"], rows[1]["pointing"], rows[1]["cosine_high"], rows[1]["log_prob"]) == (
        "It lies 1.",
        "true",
        "0.5",
        "-0.5",
    )
    assert rows[-1]["question"] == HOSTILE and rows[-1]["answer"] == "'=1+1" and rows[11]["step"] == ""
    choose(page_of, "[data-filter=verdict]", "wrong")
    (chromium.folder / "explanations.json").unlink()
    told = json.loads(download(page_of, chromium, "json", "explanations.json"))
    assert [one["id"] for one in told["cases"]] == ["case/1"]


def test_markup_in_data_is_text(page_of):
    page_of.key("j", 5)
    assert HOSTILE in text(page_of, "#title") and text(page_of, "#asked").count(HOSTILE) == 1
    assert (
        page_of.run("document.scripts.length") == 2
        and page_of.run("document.querySelectorAll('[onerror]').length") == 0
    )


def test_the_policy_lets_nothing_out_or_in(chromium):
    """Whatever a script tried: neither a request nor a foreign script gets through."""
    found = chromium.browser
    found.open(chromium.path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        away = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        tried = found.run(
            "(async () => { const seen = []; document.addEventListener('securitypolicyviolation', (e) => seen.push(e.effectiveDirective));"
            f"await fetch('{away}').catch(() => 0); Object.assign(new Image(), {{ src: '{away}' }}); navigator.sendBeacon('{away}');"
            "const added = document.createElement('script'); added.textContent = 'window.broken = 1'; document.body.append(added);"
            "document.body.insertAdjacentHTML('beforeend', '<p style=\"color:red\" onclick=\"1\">x</p>');"
            "await new Promise((done) => setTimeout(done, 200)); return [seen, window.broken]; })()"
        )
        with pytest.raises(TimeoutError):
            server.accept()
    seen, broken = tried
    assert {"connect-src", "img-src", "script-src-elem", "style-src-attr"} <= set(seen) and broken is None


def test_a_case_that_a_reader_may_keep_open_long_does_not_grow(page_of):
    """Turning the pages leaves nothing behind."""
    count = "document.querySelectorAll('*').length"
    before = page_of.run(count)
    page_of.key("j", 5)
    page_of.key("k", 5)
    assert page_of.run(count) == before
