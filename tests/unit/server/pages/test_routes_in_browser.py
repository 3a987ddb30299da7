"""The pages in a real browser, on storage that was made without training."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import fake_training
from support.browser import Browser
from support.experiments import FakeRun, many
from support.serving import Site, serving

from raytrain.server import launcher

pytestmark = pytest.mark.browser

LARGEST = 300_000
HOSTILE = "<img src=x onerror=window.hacked=1>"
SCRIPT = "</script><script>window.hacked=1</script>"
CONFIG = "name: typed\nseed: 1\nenvironment:\n  env: CartPole-v1\nstop:\n  iterations: 2\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("browser")
    storage = place / "results"
    many(storage, 16, iterations=12)
    hostile = FakeRun(storage, "hostile", stop=30).start().train(4).end_stage(HOSTILE, SCRIPT)
    hostile.train(6).kill().start().lose_exactness(SCRIPT).train(3).fail(SCRIPT)
    hostile.event(hostile.trials[0], SCRIPT, SCRIPT)
    rows = hostile.trials[0].place / "result.json"
    measured = json.dumps({"custom": {SCRIPT: {"mean": 1.0}}})[1:-1]
    rows.write_text(rows.read_text().replace('"done"', f'{measured}, "done"'))
    fork = hostile.fork("fork", "best").start().train(2)
    # A config's name is letters and digits; a directory may have any.
    hostile.place.rename(storage / HOSTILE)
    fork.place.rename(storage / f"fork of {HOSTILE}")
    (place / "configs").mkdir()
    (place / "configs" / f"{HOSTILE}.yaml").write_text(CONFIG.replace("typed", json.dumps(HOSTILE)))
    with serving(place) as site:
        site.scan()
        yield site


# What is there when a page is complete.
PAGES: dict[str, tuple[str, str]] = {
    "runs": ("/", "#run-{plain}"),
    "run": ("/runs/{plain}", "#charts .main-svg"),
    "new": ("/new", "#problems p"),
    "compare": ("/compare?ids={plain},{trials}", "#draw .main-svg"),
    "lineage": ("/lineage", "#tree svg"),
    "models": ("/models", "#models table"),
    "nodes": ("/nodes", "#nodes p"),
}
LOOKS = [
    name if name in ("runs", "run") else pytest.param(name, marks=pytest.mark.slow)
    for name in PAGES
]


def enter(browser: Browser, site: Site, name: str) -> None:
    path, complete = PAGES[name]
    runs = {"plain": site.run_of("run-0005"), "trials": site.run_of("run-0013")}
    browser.enter(site, path.format(**runs))
    browser.find(complete.format(**runs))
    browser.says("#live", "live") if browser.script("return innerWidth > 760") else None


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_whole_light_and_usable_by_everybody(
    browser: Browser, site: Site, name: str
) -> None:
    enter(browser, site, name)
    browser.shoot(name)
    assert browser.barriers() == []
    assert browser.hear() == []
    loaded = browser.script(
        "return performance.getEntriesByType('resource').concat("
        "performance.getEntriesByType('navigation')).map(e => [e.name, e.decodedBodySize])"
    )
    sizes = {name: size for name, size in loaded if "plotly.min.js" not in name}
    assert sum(sizes.values()) < LARGEST, sizes
    assert {name for name in sizes if not name.startswith(site.url)} == set()


@pytest.mark.parametrize("name", LOOKS)
def test_pages_in_the_dark(browser: Browser, site: Site, name: str) -> None:
    browser.look(dark=True)
    enter(browser, site, name)
    browser.shoot(f"{name}-dark")
    assert browser.barriers() == []


@pytest.mark.parametrize("name", LOOKS)
def test_pages_on_a_phone(browser: Browser, site: Site, name: str) -> None:
    browser.look(width=390, height=844)
    enter(browser, site, name)
    browser.shoot(f"{name}-phone")
    assert browser.script("return document.documentElement.scrollWidth") <= 390
    assert browser.barriers() == []


def test_the_picture_of_the_readme(browser: Browser, site: Site) -> None:
    run = FakeRun(site.results, "halfcheetah", stop=200, every=10).start()
    run.trials[0].stage = "walk"
    run.train(60).end_stage("walk", "run").train(28).kill(after_s=90).start().train(40)
    run.lose("preemption", after_s=40).train(30)
    with run.running():
        browser.look(width=1280, height=800)
        browser.enter(site, f"/runs/{site.run_of('halfcheetah')}")
        browser.says("#title", "running")
        browser.until(lambda: len(browser.all("#charts .main-svg")) > 6)
        browser.says("#curves-key", "preemption")

        def drawn() -> bool:
            """Of the picture, the path alone is not as it was; the page may renew it meanwhile."""
            browser.script(
                "const all = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);"
                "while (all.nextNode()) all.currentNode.data ="
                "  all.currentNode.data.replace(arguments[0], '/home/me/results')",
                str(site.results),
            )
            browser.shoot("readme")
            return str(site.results) not in browser.text("#run")

        browser.until(drawn)


def test_no_name_is_run_as_code(browser: Browser, site: Site) -> None:
    run, fork = site.run_of(HOSTILE), site.run_of(f"fork of {HOSTILE}")
    for path, complete in (
        ("/?q=onerror", f"#run-{run}"),
        (f"/runs/{run}", "#charts .main-svg"),
        (f"/runs/{fork}", "#checkpoints-body table"),
        (f"/compare?ids={run},{fork}", "#draw .main-svg"),
        ("/lineage", "#tree svg"),
        ("/models", "#models table"),
        (f"/new?run={run}", "#problems p"),
    ):
        browser.enter(site, path)
        browser.find(complete)
        browser.until(lambda: "onerror" in browser.script("return document.body.innerHTML"))
        assert browser.script(
            "return window.hacked === undefined && !document.querySelector('img')"
        )
    browser.enter(site, f"/runs/{run}")
    browser.says("#events-body", SCRIPT)
    browser.says("#notes", SCRIPT)
    browser.click("[data-do=fork]")
    browser.says("dialog h2", HOSTILE)
    assert browser.script("return window.hacked === undefined && !document.querySelector('img')")
    assert browser.hear() == []


def test_rows_change_without_a_reload(browser: Browser, site: Site) -> None:
    live = FakeRun(site.results, "live", stop=100).start().train(4)
    row = f"#run-{site.run_of('live')}"
    browser.enter(site)
    browser.says(row, "16,000")
    browser.click(f"{row} .pick input")
    FakeRun(site.results, "later", stop=100, begin=time.time()).start().train(1)
    live.train(6)
    site.scan()
    browser.says(row, "40,000")
    browser.says("#table", "later")
    assert browser.find(f"{row} .pick input").is_selected()
    focused = browser.script("return document.activeElement.closest('tr')?.id")
    assert f"#{focused}" == row
    live.delete()
    site.scan()
    browser.says(row, "gone")


def test_a_run_changes_without_a_reload(browser: Browser, site: Site) -> None:
    live = FakeRun(site.results, "watched", stop=100).start().train(4)
    browser.enter(site, f"/runs/{site.run_of('watched')}")
    browser.says("#checkpoints-body", "checkpoint_000004")
    shown = "return document.querySelector('#charts .draw')?.data?.at(-1).x.length"
    browser.until(lambda: browser.script(shown) == 4)
    live.train(4).kill().start()
    site.scan()
    browser.says("#checkpoints-body", "checkpoint_000008")
    browser.says("#events-body", "The previous attempt ended without saving.")
    browser.until(lambda: browser.script(shown) == 8)
    live.interrupt()
    site.scan()
    browser.says("#title", "interrupted")


def test_curves_are_zoomed_together_and_smoothed(browser: Browser, site: Site) -> None:
    enter(browser, site, "run")
    ranges = (
        "return [...document.querySelectorAll('#charts .draw')].map("
        "d => d.layout?.xaxis.range?.map(Math.round).join())"
    )
    browser.until(lambda: None not in browser.script(ranges))
    browser.script(
        "Plotly.relayout(document.querySelector('#charts .draw'),"
        "{'xaxis.range[0]': 20000, 'xaxis.range[1]': 60000})"
    )
    browser.until(lambda: set(browser.script(ranges)) == {"20000,60000"})
    browser.click("#axis label:nth-of-type(3)")
    browser.until(lambda: "20000,60000" not in browser.script(ranges))
    last = "return document.querySelector('#charts .draw').data.at(-1).y.at(-1)"
    smooth = browser.script(last)
    browser.script(
        "const s = document.querySelector('#smooth'); s.value = 0;"
        "s.dispatchEvent(new Event('input'))"
    )
    browser.until(lambda: browser.script(last) != smooth)


def test_runs_are_found_chosen_and_compared_by_keyboard(browser: Browser, site: Site) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.enter(site)
    browser.says("#live", "live")
    browser.press("/", *"run-00")
    browser.until(lambda: browser.script("return location.search").startswith("?q=run-00"))
    browser.until(lambda: len(browser.all(".pick input")) == 16)
    browser.script("document.querySelector('.pick input').focus()")
    browser.press(Keys.SPACE, Keys.ARROW_DOWN, Keys.SPACE)
    browser.says("#picked-count", "2 runs")
    browser.click("#picked .primary")
    browser.until(lambda: len(browser.all("#chips li")) == 2)
    browser.find("#draw .main-svg")


def test_the_mean_over_seeds(browser: Browser, site: Site) -> None:
    ids = ",".join(site.run_of(f"run-00{number}") for number in ("00", "05", "08", "13"))
    browser.enter(site, f"/compare?ids={ids}")
    browser.find("#draw .main-svg")
    browser.click("#seeds")
    browser.says("#key", "interquartile mean of")


def test_the_interquartile_mean_cuts_a_quarter_at_each_end(browser: Browser, site: Site) -> None:
    browser.enter(site)
    module = "import(document.querySelector('[type=module]').src.replace('runs.js', 'iqm.js'))"
    for values, mean in (
        ([8, 1, 7, 2, 6, 3, 5, 4], 4.5),
        ([1, 1, 3, 1000], 2.0),
        ([0.0, 6.0, 60.0], (0.25 * 0 + 6 + 0.25 * 60) / 1.5),
        ([5], 5.0),
    ):
        assert browser.awaited(f"{module}.then(m => m.iqm(arguments[0]))", values) == mean


def test_a_copied_command_is_in_the_clipboard(browser: Browser, site: Site) -> None:
    run = site.run_of("run-0005")
    enter(browser, site, "run")
    found = site.get(f"/api/runs/{run}/checkpoints").document["checkpoints"]
    best = next(each for each in found if each["path"] == "best" and each["trial"] == "trial_00000")
    row = f"[id='checkpoint-{best['trial']}/best']"
    for text in (best["commands"]["fork"], best["commands"]["load_policy"], best["full_path"]):
        browser.click(f"{row} [data-copy={json.dumps(text)}]")
        browser.holds(text)


def test_buttons_say_what_they_will_do(browser: Browser, site: Site) -> None:
    from selenium.webdriver.common.keys import Keys

    enter(browser, site, "run")
    browser.find("#checkpoints-body table")
    for action, told in (
        ("extend", "it stays the same run"),
        ("fork", "A new run begins from the checkpoint"),
        ("verify", "Every byte of"),
        ("audit", "the weights are compared bit for bit"),
        ("evaluate", "plays whole episodes"),
        ("export", "acts without Ray"),
        ("prune", "Nothing is deleted before you have seen it"),
    ):
        browser.click(f"[data-do={action}]")
        browser.says("dialog", told)
        browser.says("dialog .command", "raytrain ")
        assert browser.barriers("dialog") == []
        browser.press(Keys.ESCAPE)
        browser.until(lambda: not browser.all("dialog"))
        assert browser.script("return document.activeElement.dataset.do") == action


def test_a_verification_leaves_a_dated_verdict(browser: Browser, site: Site) -> None:
    run = FakeRun(site.results, "verified", stop=6).start().train(6)
    browser.enter(site, f"/runs/{site.run_of('verified')}")
    browser.says("#checkpoints-body", "sizes right")
    browser.click("[data-do=verify]")
    browser.click("dialog .primary")
    browser.says("#toasts", "is right")
    browser.says("#checkpoints-body", "every byte")
    damaged = run.place / "trial_00000" / "final" / "policy.safetensors"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    browser.click("[data-do=verify]")
    browser.click("dialog .primary")
    browser.says("#toasts", "Damaged: trial_00000/final")
    browser.says("#checkpoints-body", "damaged")


def test_a_prune_shows_its_plan_first(browser: Browser, site: Site) -> None:
    run = FakeRun(site.results, "pruned", stop=20, keep=5).start().train(12)
    browser.enter(site, f"/runs/{site.run_of('pruned')}")
    browser.says("#checkpoints-body", "checkpoint_000004")
    browser.click("[data-do=prune]")
    browser.click("dialog .primary")
    browser.says("dialog h2", "Delete 4 checkpoints")
    assert len(list(run.place.glob("*/checkpoint_*"))) == 5
    browser.click("dialog .danger")
    browser.until(lambda: len(list(run.place.glob("*/checkpoint_*"))) == 1)
    browser.until(lambda: "checkpoint_000004" not in browser.text("#checkpoints-body"))


def test_configs_are_compared(browser: Browser, site: Site) -> None:
    browser.enter(site, f"/runs/{site.run_of('run-0007')}")
    browser.find("#config-body .yaml")
    browser.choose("#other", "parent")
    browser.says("#diff-body", "stop.iterations")


def test_mistakes_are_shown_at_their_lines(browser: Browser, site: Site) -> None:
    browser.enter(site, "/new")
    browser.says("#problems", "No mistake is known")
    browser.paste("#yaml", CONFIG + "trainin:\n  lr: 1\n")
    browser.says("#problems", "Line 7")
    browser.says("#problems", "trainin")
    assert [line.text for line in browser.all("#gutter .wrong")] == ["7"]
    browser.click("#problems [data-line]")
    selected = browser.script(
        "const t = document.querySelector('#yaml');"
        "return t.value.slice(t.selectionStart, t.selectionEnd)"
    )
    assert selected == "trainin:"
    browser.click("#start")
    browser.says("#start-error", "The config has mistakes")
    browser.paste("#yaml", CONFIG)
    browser.says("#problems", "No mistake is known")
    assert browser.all("#gutter .wrong") == []


def test_what_is_typed_while_the_page_loads_stays(browser: Browser, site: Site) -> None:
    held = (
        "const fetched = window.fetch;"
        "window.fetch = async (...asked) => {"
        "  if (String(asked[0]).includes('/configs')) await new Promise((go) => (window.go = go));"
        "  return fetched(...asked);"
        "};"
    )
    with browser.beforehand(held):
        browser.enter(site, "/new")
        browser.until(lambda: browser.script("return Boolean(window.go)"))
        browser.paste("#yaml", CONFIG)
        browser.script("window.go()")
        browser.says("#problems", "No mistake is known")
        browser.until(lambda: browser.all("#source optgroup"))
        assert browser.script("return document.querySelector('#yaml').value") == CONFIG


def test_the_form_and_the_text_are_one(browser: Browser, site: Site) -> None:
    browser.enter(site, "/new")
    browser.says("#problems", "No mistake is known")
    browser.paste("#yaml", CONFIG)
    browser.click("#mode label:nth-of-type(2)")
    assert browser.find("[id='key-environment.env']").get_attribute("value") == "CartPole-v1"
    assert browser.all("[id^='key-curriculum.']") == []
    browser.type("#find-key", "learning rate")
    browser.type("[id='key-training.lr']", "3.0e-4\t")
    browser.shoot("new-form")
    assert browser.barriers() == []
    browser.type("#find-key", "training.gamma")
    browser.type("[id='key-training.gamma']", "2\t")
    browser.says("#problems", "gamma")
    browser.click("#mode label:nth-of-type(1)")
    text = browser.script("return document.querySelector('#yaml').value")
    assert "training:\n  lr: 0.0003\n  gamma: 2\n" in text
    assert "env: CartPole-v1" in text


def test_a_new_run_begins_with_the_config_of_another(browser: Browser, site: Site) -> None:
    browser.enter(site, f"/new?run={site.run_of('run-0000')}")
    browser.until(
        lambda: "env: CartPole-v1" in browser.script("return document.querySelector('#yaml').value")
    )
    assert browser.find("#name").get_attribute("value") == "run-0000-2"


def test_a_run_is_started_watched_stopped_resumed_and_forked(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a process that trains nothing; `tests/runs/test_server_pages.py` trains."""
    monkeypatch.setattr(launcher, "PROGRAM", fake_training.PROGRAM)
    with serving(tmp_path) as site:
        browser.enter(site, "/new")
        browser.paste("#yaml", CONFIG)
        browser.says("#problems", "No mistake is known")
        browser.click("#start")
        browser.says("dialog", "goes on if this page or the server is closed")
        browser.click("dialog .primary")
        browser.says("h1", "typed")
        browser.says("#title", "running")
        browser.says("#log-body", "iteration 4")

        browser.click("[data-do=stop]")
        browser.says("dialog", "gets SIGTERM")
        browser.click("dialog .danger")
        browser.says("#toasts", "saved checkpoint_000004 at iteration 4")
        browser.says("#title", "interrupted")

        for name in ("typed", "child"):
            (site.results / f"{name}.go").touch()
        browser.click("[data-do=resume]")
        browser.says("dialog", "Nothing has to be trained again")
        browser.click("dialog .primary")
        browser.says("#title", "finished")

        browser.click("[data-do=fork]")
        browser.paste("dialog [name=name]", "child")
        browser.says("dialog .command", "--name child")
        browser.click("dialog .primary")
        browser.says("h1", "child")
        browser.says("#where", "fork of typed")
        browser.says("#title", "finished")
    assert (site.results / "signals").read_text() == "typed\n"


def test_a_server_that_is_gone_is_seen(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serving(tmp_path_factory.mktemp("gone")) as site:
        browser.enter(site)
        browser.says("#live", "live")
    browser.says("#live", "not connected")
