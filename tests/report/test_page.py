"""The page, in a real browser."""

import json
import os
import shutil

import pytest

pytest.importorskip("selenium")
from rich.console import Console
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from etb_plugin.comparison import Comparison
from etb_plugin.experiment import read_experiment
from etb_plugin.files import Paced
from etb_plugin.report.live import Live
from etb_plugin.report.running import RunningPage
from etb_plugin.report.runs import examples, read_runs
from tests.command import etb

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("page")
    call = ("--methods", "ibp,expected", "--eps", "0.05,0.1", "--seed", "0,1", "--model", "mlp-12x2", "--epochs", "3")
    limits = ("--test-limit", "60", "--pgd-steps", "5")
    done = etb("compare", *call, *limits, "--out", "runs/mine", cwd=made)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def browser(folder, tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        assert "CI" not in os.environ, "CI has to have chromium and chromedriver"
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"):
        options.add_argument(f"--{argument}")
    for argument in ("disable-background-networking", "disable-component-update", "window-size=1200,900"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.get((folder / "runs/mine/report.html").as_uri())
    yield driver
    driver.quit()


def column(browser, number):
    return [row.find_elements(By.TAG_NAME, "td")[number].text for row in rows(browser)]


def rows(browser):
    return browser.find_element(By.CSS_SELECTOR, "table.sortable").find_elements(By.CSS_SELECTOR, "tbody tr")


def test_the_tables_sort_by_any_column(browser):
    assert column(browser, 0) == ["ibp, eps 0.05", "ibp, eps 0.1", "expected, eps 0.05", "expected, eps 0.1"]
    headers = browser.find_element(By.CSS_SELECTOR, "table.sortable").find_elements(By.CSS_SELECTOR, "th button")
    for number in (1, 2, len(headers) - 1):
        headers[number].click()
        falling = [
            float(row.find_elements(By.TAG_NAME, "td")[number].get_attribute("data-value")) for row in rows(browser)
        ]
        assert falling == sorted(falling, reverse=True)
        headers[number].click()
        rising = [
            float(row.find_elements(By.TAG_NAME, "td")[number].get_attribute("data-value")) for row in rows(browser)
        ]
        assert rising == sorted(rising) == falling[::-1] or len(set(rising)) < 4
    headers[0].click()
    assert column(browser, 0) == sorted(column(browser, 0))


def test_light_and_dark_differ_and_the_button_changes_them(browser):
    def paper():
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    button = browser.find_element(By.CSS_SELECTOR, "button.theme")
    before = paper()
    button.click()
    assert paper() != before
    button.click()
    assert paper() == before
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    browser.execute_script("delete document.documentElement.dataset.theme")
    assert paper() == "rgb(21, 24, 27)"


def test_the_page_needs_nothing_from_elsewhere_and_makes_no_error(browser, folder):
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(name.startswith("data:") for name in asked)
    images = browser.find_elements(By.TAG_NAME, "img")
    assert len(images) > 8
    assert all(browser.execute_script("return arguments[0].naturalWidth", image) > 0 for image in images)
    text = (folder / "runs/mine/report.html").read_text()
    assert "NOT a certificate" in text
    assert "://" not in text.split("<pre>")[0].split("base64")[0]


def test_rows_are_filtered_and_sorted_from_the_keyboard(browser):
    field = browser.find_element(By.CSS_SELECTOR, "input[type=search]")
    field.send_keys("EXPECTED")
    assert [row.text.split(",")[0] for row in rows(browser) if row.is_displayed()] == ["expected"] * 2
    field.send_keys(Keys.BACKSPACE * 8)
    assert all(row.is_displayed() for row in rows(browser))
    header = browser.find_element(By.CSS_SELECTOR, "table.sortable th:nth-child(2) button")
    browser.execute_script("arguments[0].focus()", header)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "table.sortable th:nth-child(2)").get_attribute("aria-sort")


def test_a_name_opens_its_images_with_margins_that_the_certificates_are_made_of(browser, folder):
    link = browser.find_element(By.CSS_SELECTOR, "table.sortable a")
    name = link.text
    browser.execute_script("arguments[0].focus()", link)
    link.send_keys(Keys.ENTER)
    (opened,) = [d for d in browser.find_elements(By.CSS_SELECTOR, "details[id^=images]") if d.get_property("open")]
    assert opened.text.startswith(f"{name}: its images")
    assert [heading.text for heading in opened.find_elements(By.TAG_NAME, "h3")] == ["seed 0", "seed 1"]
    tables = opened.find_elements(By.TAG_NAME, "table")
    (run,) = read_runs([folder / "runs/mine"])
    seeds = [one for one in examples(run) if one.name == name]
    assert [example.seed for example in seeds] == [0, 1]
    for table, example in zip(tables, seeds, strict=True):
        shown = {row.find_element(By.TAG_NAME, "td").text: row for row in table.find_elements(By.TAG_NAME, "tr")}
        assert len(shown[f"difference\nx {1 / (2 * 0.1):.3g}"].find_elements(By.TAG_NAME, "img")) == 8
        for bound_name in ("ibp", "crown-ibp"):
            cells = shown[f"margin by\n{bound_name}"].find_elements(By.TAG_NAME, "td")[1:]
            assert [float(cell.text) for cell in cells] == pytest.approx(example.margins[bound_name].tolist(), rel=0.01)
            green = [bool(cell.find_elements(By.CLASS_NAME, "certified")) for cell in cells]
            assert green == [value > 0 for value in example.margins[bound_name]]
        changed = example.before != example.after
        assert not (changed & (example.margins["ibp"] > 0)).any()


def test_the_policy_runs_no_script_but_the_pages_own(browser, folder):
    text = (folder / "runs/mine/report.html").read_text()
    hostile = text.replace(
        "<main>", "<main><img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    )
    assert hostile != text
    (folder / "hostile.html").write_text(hostile)
    here = browser.current_url
    browser.get((folder / "hostile.html").as_uri())
    assert browser.title != "run"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
    browser.get(here)


def test_while_a_run_goes_on_its_page_shows_cells_curves_and_the_time_left(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(Paced, "every", 0.0)
    monkeypatch.setattr(Paced, "share", 0.0)
    flags = {"methods": "nominal,expected", "model": "mlp-12x2", "epochs": 4, "test_limit": 40, "pgd_steps": 3}
    comparison = Comparison(read_experiment(None, {**flags, "train_limit": 400, "out": str(tmp_path / "run")}))
    file = tmp_path / "run/report.html"

    class Stopping(Live):
        def training(self, name, progress):
            super().training(name, progress)
            if name == "expected" and progress.epoch == 3:
                (tmp_path / "seen.html").write_text(file.read_text())
                raise KeyboardInterrupt

    page = RunningPage(comparison)
    with pytest.raises(KeyboardInterrupt), page, Stopping(Console(quiet=True), page.due) as live:
        comparison.run(live)
    here, seen = browser.current_url, tmp_path / "seen.html"
    refresh = '<meta http-equiv="refresh" content="5">'
    assert seen.read_text().count(refresh) == 1
    seen.write_text(seen.read_text().replace(refresh, ""))  # or the elements below grow stale on a slow machine
    browser.get(seen.as_uri())
    assert "1 of 2 cells done, 1 running" in browser.find_element(By.TAG_NAME, "header").text
    cells = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "table.cells tbody tr")]
    assert cells[0] == "nominal done"  # it takes a tenth, so that it comes first on the busiest machine
    assert cells[1].startswith("expected running epoch ")
    bars = browser.find_elements(By.CSS_SELECTOR, "table.cells progress")
    assert float(bars[0].get_attribute("value")) == 1 > float(bars[1].get_attribute("value")) > 0
    titles = [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".curves figcaption")]
    assert titles[:3] == ["loss", "training accuracy (%)", "certified by IBP (%), 100 training images"]
    points = [
        len(one.get_attribute("points").split())
        for one in browser.find_elements(By.CSS_SELECTOR, ".curves figure:first-child polyline")
    ]
    assert points[0] == 4 > points[1] >= 2
    assert "NOT a certificate" in browser.page_source
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    browser.get(file.as_uri())
    assert not browser.find_elements(By.CSS_SELECTOR, "meta[http-equiv=refresh]")
    assert "stopped: the same command goes on" in browser.find_element(By.TAG_NAME, "header").text
    browser.get(here)


def test_the_page_shows_the_figures_of_the_results(browser, folder):
    cells = json.loads((folder / "runs/mine/results.json").read_text())["cells"]
    mean = (
        sum(c["clean_accuracy"] for c in cells if (c["method"], c["eps_train"], c["eps_test"]) == ("ibp", 0.05, 0.05))
        / 2
    )
    (shown,) = [row for row in rows(browser) if row.text.startswith("ibp, eps 0.05")]
    assert float(shown.find_elements(By.TAG_NAME, "td")[1].get_attribute("data-value")) == pytest.approx(mean)


def test_reports_and_a_leaderboard_are_written_by_the_command(folder):
    for form, sign in (("markdown", "| eps |"), ("latex", r"\toprule"), ("csv", "eps_test,"), ("json", '"rows"')):
        done = etb("report", "runs/mine", "--format", form, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert sign in done.stdout
    shutil.copytree(folder / "runs/mine", folder / "runs/deep/mine")
    done = etb("leaderboard", "runs", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = (folder / "runs/leaderboard.html").read_text()
    assert "Leaderboard: 2 runs" in text
    assert "ibp (runs/deep/mine), eps 0.05" in text
    for wrong, message in (
        (("report", "none"), "there is no file or folder none"),
        (("report", "runs/mine", "--format", "pdf"), "'pdf' is not one of 'console', 'markdown', 'latex'"),
        (("report", "runs/mine", "--format", "html"), "name one by --out"),
        (("report", "runs/mine", "--against", "me"), "write --against paper"),
        (("report", "runs/mine", "--against", "paper", "--format", "csv"), "figures stand in console and html"),
        (("leaderboard", "none"), "there is no file or folder none"),
    ):
        done = etb(*wrong, cwd=folder)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
