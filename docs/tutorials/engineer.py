"""From a file that somebody sent to a gate that stays shut: a tutorial for engineers.

It takes a minute or two on a laptop: `python docs/tutorials/engineer.py`.
"""

# You were sent a traffic-sign classifier. What follows is what `gifthorse` on the command line
# does: `run(["inspect", ...])` is `gifthorse inspect ...`, and returns its exit status.

import json
from pathlib import Path

from gifthorse.cli.commands import run

GIFT = Path(__file__).parents[2] / "examples" / "gift"
MODEL, TWIN, IMAGES = (str(GIFT / n) for n in ("gift.safetensors", "twin.safetensors", "clean.npz"))

# First look, without opening: format, hash, tensors, and whether the file would run code. Compare
# the hash with what the author publishes. Status 0: nothing speaks against opening it.

assert run(["inspect", MODEL]) == 0

# Then scan it with a few clean images. One detector will do here. All formats come from one run:
# HTML for people, JSON for programs, SARIF for code scanning.

out = Path("out")
scan = ["--images", IMAGES, "--preset", "quick", "--device", "cpu"]
writes = [f"{form}={out / 'gift'}.{form}" for form in ("html", "json", "sarif")]
status = run(["scan", MODEL, *scan, *(word for path in writes for word in ("-o", path))])

# Status 1 is a finding: that is what stops a build. What was found is in the JSON.

assert status == 1
result = json.loads((out / "gift.json").read_text(encoding="utf-8"))
assert result["verdict"]["label"] == "BACKDOORED"
assert result["findings"][0]["goal"]["target"] == 14

# Its twin was trained on clean data. It passes, with status 0 and with words on what was not
# looked for: that is no certificate.

assert run(["scan", TWIN, *scan, "-o", f"json={out / 'twin.json'}"]) == 0

# Put both into one comment for the pull request, and make pages of everything that was ever
# scanned.

assert run(["report", str(out), "-f", "md"]) == 0
assert run(["index", str(out), "-o", str(out / "site")]) == 0
print("Open", out / "gift.html", "and", out / "site" / "index.html")
