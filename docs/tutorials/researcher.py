"""An attack, a detector and a table with intervals: a tutorial for researchers.

It takes some minutes on a laptop, and no data set: `python docs/tutorials/researcher.py`.
"""

# A plan crosses attacks with defenses, data, nets and seeds. This one has a patch and a pattern
# over the whole image, each on two seeds, against a filter of inputs, a repair, and one detector.
# The images are drawn traffic signs, so that nothing has to be fetched.

from pathlib import Path

from gifthorse.cli.commands import run

PLAN = """
about = "A patch and a blended pattern against three kinds of defense."
profile = "smoke"

[[grid]]
data = ["trojai:1@32"]
nets = ["tiny"]
attacks = ["badnet", "blended"]
defenses = ["strip", "fine_tuning", "detector:weight_signature"]
seeds = 2
"""
plan = Path("tutorial.toml")
plan.write_text(PLAN, encoding="utf-8")

# See what it would do before it does anything: cells, what they share, what that costs.

assert run(["bench", "plan", str(plan)]) == 0

# Run it, here in this process; without `--executor serial` a pool of them works. Stop it whenever
# you like: what is done is not done again.

assert run(["bench", "run", str(plan), "--executor", "serial"]) == 0
assert run(["bench", "status", str(plan)]) == 0

# Tables, with 95 % intervals; clean twins are judged as well, which shows false alarms and what a
# repair costs a clean net. The records answer SQL.

assert run(["bench", "report", str(plan), "--format", "markdown"]) == 0
assert run(["bench", "query", str(plan), "select attack, avg(asr) from records group by 1"]) == 0

# What a method departs from in its paper stands under "Differs" in its page; read it before you
# compare with published numbers.

assert run(["explain", "weight_signature"]) == 0
