"""Opens a page in headless Chromium and asks it what a person would see."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import kaleido

# Runs before anything of the page, which says itself that nothing may run.
_WATCH = """<script>
window.problems = [];
addEventListener("error", e => problems.push("script: " + e.message));
addEventListener("unhandledrejection", e => problems.push("promise: " + e.reason));
addEventListener("securitypolicyviolation", e => problems.push("refused: " + e.blockedURI));
</script>"""

# Lays the page out at a given width and resolves to what it looks like then.
_LOOK = """
function look(page, width) {
  return new Promise(resolve => {
    const frame = document.createElement("iframe");
    frame.style.cssText = "border:0;height:900px;width:" + width + "px";
    // All images have loaded by then, or failed to; what was refused is told a moment later.
    frame.onload = () => setTimeout(() => {
      const inside = frame.contentWindow, there = frame.contentDocument;
      const broken = [...there.images].filter(image => !image.complete || !image.naturalWidth);
      const sizes = [...there.querySelectorAll("img.chart")].flatMap(image => {
        const drawing = new DOMParser().parseFromString(atob(image.src.split(",")[1]), "image/svg+xml").documentElement;
        const scale = image.clientWidth / drawing.viewBox.baseVal.width;
        return [...drawing.querySelectorAll("text")].map(text => parseFloat(text.style.fontSize) * scale);
      });
      const loaded = inside.performance.getEntriesByType("resource").map(entry => entry.name);
      resolve(JSON.stringify({
        browser: navigator.userAgent, problems: inside.problems, images: there.images.length,
        broken: broken.map(image => image.alt || image.src.slice(0, 60)),
        shown: [...there.images].filter(image => image.naturalWidth && image.clientWidth > 40).length,
        asked_for: loaded.filter(name => !name.startsWith("data:")),
        width: there.documentElement.scrollWidth, least_chart_text: Math.min(...sizes, 100),
        text: there.body.innerText.length,
      }));
    }, 300);
    frame.srcdoc = page;
    document.body.append(frame);
  });
}
"""

_TIMEOUT = 120


def look_at(page, width, folder):
    """Opens a page in every Chromium there is: the one that the package kaleido brings, and the system's, if any.

    Args:
      page: HTML text.
      width: of the window, pixels.
      folder: for files of its own.

    Returns:
      A list of what each browser saw: `browser`, `problems` (script errors, refused requests), `broken` and `images`,
      `shown` (images that take up space), `asked_for` (other files), `width` (of the content), `least_chart_text`
      (pixels), `text` (number of characters).
    """
    head, body = page.split("<head>", 1)
    page = f"{head}<head>{_WATCH}{body}"
    found = [_ask_kaleido(page, width, folder)]
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return [*found, _ask_chromium(system, page, width, folder)] if system else found


def _ask_kaleido(page, width, folder):
    # It is made for drawing Plotly's figures: it loads a script and calls Plotly.toImage with what it reads.
    script = folder / "look.js"
    script.write_text(
        _LOOK + 'window.Plotly = {version: "2.0.0", toImage: f => look(f.data[0].page, f.data[0].width)};'
    )
    program = Path(kaleido.__file__).parent / "executable" / "kaleido"
    command = [program, "plotly", f"--plotlyjs={script}", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    figure = {"data": [{"page": page, "width": width}], "layout": {}}
    asked = json.dumps({"format": "svg", "width": 10, "height": 10, "scale": 1, "data": figure})
    process = subprocess.run(command, input=asked + "\n", capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    answer = json.loads(process.stdout.splitlines()[-1])
    assert answer["code"] == 0, answer
    return json.loads(answer["result"])


def _ask_chromium(program, page, width, folder):
    wrapper = folder / "wrapper.html"
    asked = json.dumps([page, width]).replace("</", "<\\/")
    wrapper.write_text(
        f"<!doctype html><meta charset=utf-8><body><script>{_LOOK}look(...{asked}).then(seen => {{"
        'document.body.textContent = "SEEN" + encodeURIComponent(seen) + "END"; });</script></body>'
    )
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", wrapper.as_uri()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    seen = re.search(r"SEEN(%7B\S+%7D)END", process.stdout)
    assert seen, f"{program} did not answer: {process.stderr[-2000:]}"
    return json.loads(unquote(seen[1]))
