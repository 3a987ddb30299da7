"""A whole run from the browser: started, watched, stopped, resumed, finished and forked."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.browser import Browser
from support.running import TINY, Holds, Reference, rows
from support.serving import Site, serving

# Four starts of Ray, and a browser beside them.
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(3600)]

POINTS = "return document.querySelector('#charts .draw')?.data?.at(-1).x.length ?? 0"


def start(browser: Browser, site: Site, config: dict[str, object]) -> None:
    """By the form of `/new`; then the page of the run is there."""
    browser.enter(site, "/new")
    browser.paste("#yaml", yaml.safe_dump(config))
    browser.says("#problems", "No mistake is known")
    browser.click("#start")
    browser.says("dialog", "goes on if this page or the server is closed")
    browser.click("dialog .primary")
    browser.until(lambda: "/runs/" in browser.driver.current_url)


def test_from_the_form_to_a_fork(browser: Browser, tmp_path: Path, undisturbed: Reference) -> None:
    with serving(tmp_path) as site:
        holds = Holds(site.configs, 5)
        trial = site.results / "run" / "trial_00000"
        start(browser, site, {**TINY, **holds.sections})
        browser.says("#title", "running")
        browser.until(lambda: browser.script(POINTS) == 5)
        browser.says("#log-body", " of 12")

        browser.click("[data-do=stop]")
        browser.says("dialog", "Nothing that was trained is lost")
        browser.click("dialog .danger")
        browser.says("#toasts", "Waiting until the run has saved")
        holds.release()
        browser.says("#toasts", "saved checkpoint_")
        browser.says("#title", "interrupted")
        assert 5 <= len(rows(trial)) < 12

        browser.click("[data-do=resume]")
        browser.says("dialog .command", f"raytrain resume {site.results / 'run'}")
        browser.click("dialog .primary")
        browser.says("#title", "finished")
        assert [row["weights_sha256"] for row in rows(trial)] == undisturbed.digests()
        browser.until(lambda: browser.script(POINTS) == 12)
        digest = browser.text("[id='checkpoint-trial_00000/final'] .digest")
        assert undisturbed.digests()[-1].startswith(digest)
        browser.says("#timeline", "training")
        browser.shoot("run-trained")

        browser.click("[data-do=fork]")
        browser.paste("dialog [name=name]", "child")
        browser.paste("dialog [name=set]", "stop.iterations=13")
        browser.click("dialog .primary")
        browser.says("h1", "child")
        browser.says("#where", "fork of run/trial_00000/")
        browser.says("#title", "finished")
        assert len(rows(site.results / "child" / "trial_00000")) == 1
        assert browser.hear() == []
