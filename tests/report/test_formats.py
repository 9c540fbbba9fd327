"""Formats that other tools take: what they hold, by their schemas, and what they never let act."""

from __future__ import annotations

import csv
import io
import json
import re
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from markdown_it import MarkdownIt
from tests.report.examples import backdoored, inconclusive, nothing_found, spoiled
from tests.report.test_hostile import ACTING, HOSTILE, poisoned

from gifthorse.core.types import Finding, Goal, Origin, Report
from gifthorse.report import SUMMARIES, WRITERS
from gifthorse.report.formats import atlas
from gifthorse.report.formats.issues import Issue, address, doubts, issues
from gifthorse.report.json import collect
from gifthorse.report.words import RULES

HERE = Path(__file__).parent
GOLDEN = {"csv": "csv", "cyclonedx": "cdx.json", "github": "txt", "junit": "xml", "md": "md",
          "sarif": "sarif"}  # fmt: skip
SCHEMAS = {"sarif": "sarif-2.1.0.json", "cyclonedx": "cyclonedx-1.6.json"}
INJECTED = [
    "]]></failure><failure>",
    "=cmd()",
    "@SUM(1+1)",
    "::set-output name=a::b",
    "a\n::error::b",
    "%0A::error::b",
    "a,b=c::d",
    "a|b\n|---|---|",
    "`x` ``y",
    "![x](http://evil.test/p.png)",
    "[x](javascript:alert%281%29)",
    "@org/team see #1, www.evil.test and http://evil.test",
    "# title\n\n- list",
    "</summary></details><h1>x</h1>",
    "{0} {{1}}",
    "not \ufffe\uffff XML",
    "../../etc/passwd",
]


def three() -> tuple[Report, ...]:
    return backdoored(), nothing_found(), inconclusive()


def refused() -> Report:
    """A file that was not opened, and nothing more."""
    check = Finding("FS001", "CRITICAL", 0.0, "It asks for posix.system.")
    origin = Origin("bad.pt", "ab" * 32, 9, "pytorch")
    return replace(
        nothing_found(),
        label="NOT SCANNED",
        reason="It asks for posix.system.",
        origin=origin,
        preparation=None,
        verdicts=(),
        checks=(check,),
        not_covered=(),
    )


def drawn(form: str, reports: Sequence[Report]) -> str:
    return SUMMARIES[form]([collect(report) for report in reports])


def parsed(form: str, *reports: Report) -> Any:
    return json.loads(drawn(form, reports or three()))


# 1. What they hold ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", sorted(SUMMARIES))
def test_documents_are_the_golden_ones(form: str) -> None:
    path = HERE / "golden" / f"results.{GOLDEN[form]}"
    assert drawn(form, three()) == path.read_text(encoding="utf-8"), f"look at {path.name}"


@pytest.mark.parametrize("form", sorted(SCHEMAS))
@pytest.mark.parametrize("make", [backdoored, nothing_found, inconclusive, refused])
@pytest.mark.parametrize("spoil", [False, True])
def test_json_follows_the_schema(form: str, make: Callable[[], Report], spoil: bool) -> None:
    report = make()
    report = spoiled(report) if spoil and report.verdicts else report
    follows(form, parsed(form, report))


def follows(form: str, document: Any) -> None:
    validator(form).validate(document)


@cache
def validator(form: str) -> Any:
    schema = json.loads((HERE / "schemas" / SCHEMAS[form]).read_text(encoding="utf-8"))
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


@pytest.mark.parametrize("form", sorted(SUMMARIES))
def test_no_model_at_all_is_a_document_too(form: str) -> None:
    text = drawn(form, ())
    if form in SCHEMAS:
        follows(form, json.loads(text))
    if form == "junit":
        assert ElementTree.fromstring(text).get("tests") == "0"
    assert drawn(form, three()[:1]) == WRITERS[form](backdoored())


def test_references_of_sarif_lead_to_what_they_name() -> None:
    (run,) = parsed("sarif", *three(), refused())["runs"]
    rules, taxa = run["tool"]["driver"]["rules"], run["taxonomies"][0]["taxa"]
    found = [(r["ruleId"], r["level"]) for r in run["results"]]
    assert found == [("BD001", "error"), ("FS001", "error")]
    for one in run["results"]:
        assert rules[one["ruleIndex"]]["id"] == one["ruleId"]
        assert [taxa[t["index"]]["id"] for t in one["taxa"]] == [t["id"] for t in one["taxa"]]
        place = one["locations"][0]["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][place["index"]]["location"]["uri"] == place["uri"]
        assert one["provenance"]["invocationIndex"] == place["index"]
    assert [i["exitCode"] for i in run["invocations"]] == [1, 0, 3, 2]
    assert [i["executionSuccessful"] for i in run["invocations"]] == [True, True, False, False]
    told = [n["descriptor"]["id"] for i in run["invocations"]
            for n in i["toolExecutionNotifications"] if "descriptor" in n]  # fmt: skip
    assert told == ["IN001"]


def test_a_fingerprint_is_of_bytes_rule_and_goal_alone() -> None:
    def marks(report: Report) -> list[str]:
        (run,) = parsed("sarif", report)["runs"]
        return [r["partialFingerprints"]["gifthorse/v1"] for r in run["results"]]

    report = backdoored()
    moved = replace(report, origin=replace(report.origin, path="x.pt"), run=nothing_found().run)
    other = replace(report, origin=replace(report.origin, sha256="00" * 32))
    first = replace(report.verdicts[1].findings[0], goal=Goal(13))
    aimed = replace(report, verdicts=(replace(report.verdicts[1], findings=(first,)),))
    assert marks(report) == marks(moved)
    assert len({*marks(report), *marks(other), *marks(aimed)}) == 3


def test_references_of_cyclonedx_lead_to_what_they_name() -> None:
    bom = parsed("cyclonedx", *three(), refused())
    declared = bom["declarations"]
    models = [c["bom-ref"] for c in bom["components"]]
    claims = {c["bom-ref"]: c for c in declared["claims"]}
    evidence = {e["bom-ref"] for e in declared["evidence"]}
    assert [c["target"] for c in claims.values()] == models
    assert {v["affects"][0]["ref"] for v in bom["vulnerabilities"]} == {models[0], models[3]}
    for claim in claims.values():
        assert evidence.issuperset([*claim["evidence"], *claim.get("counterEvidence", [])])
    kept = [attested["map"][0] for attested in declared["attestations"]]
    assert [k["claims"] for k in kept] == [["model-1/claim"], ["model-2/claim"], [], []]
    assert kept[0]["confidence"]["score"] == 0.97
    assert not any("confidence" in k for k in kept[1:])  # uncalibrated, or no verdict
    assert parsed("cyclonedx")["serialNumber"] == parsed("cyclonedx")["serialNumber"]


def test_junit_counts_what_has_no_verdict_as_an_error() -> None:
    root = ElementTree.fromstring(drawn("junit", (*three(), refused())))
    counts = [tuple(int(s.get(k, "")) for k in ("tests", "failures", "errors")) for s in root]
    assert counts == [(3, 2, 0), (2, 0, 0), (1, 0, 1), (1, 0, 1)]
    assert tuple(root.get(k) for k in ("tests", "failures", "errors")) == ("7", "2", "2")


def test_a_grave_verdict_has_an_issue_and_one_without_a_verdict_a_doubt() -> None:
    report = backdoored()
    mute = replace(report, verdicts=(replace(report.verdicts[1], findings=()),))
    (issue,) = issues(collect(mute))
    assert (issue.rule, issue.severity, issue.message) == ("BD010", "MEDIUM", mute.reason)
    for label in ("INCONCLUSIVE", "ERROR", "NOT SCANNED"):
        empty = replace(nothing_found(), label=label, reason="why", verdicts=(), checks=())
        assert doubts(collect(empty)) == (Issue("", "HIGH", "why"),)
    assert issues(collect(nothing_found())) == doubts(collect(nothing_found())) == ()


def test_two_detectors_on_one_goal_are_one_issue() -> None:
    report = backdoored()
    again = replace(report.verdicts[1], method="pixel")
    both = replace(report, verdicts=(*report.verdicts, again))
    assert len(issues(collect(both))) == 1


def test_every_technique_is_of_a_rule_and_every_backdoor_has_one() -> None:
    assert {t for signs in atlas.SIGNS.values() for t in signs} == set(atlas.TECHNIQUES)
    assert set(atlas.SIGNS) <= set(RULES)
    assert {rule for rule in RULES if rule.startswith("BD")} <= set(atlas.SIGNS)


def test_a_path_in_the_working_folder_is_given_from_there(monkeypatch: pytest.MonkeyPatch,
                                                         tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    paths = (tmp_path / "a b" / "c#.pt", "./d.pt", "/elsewhere/e.pt", "hf:org/name")
    results = [collect(replace(refused(), origin=Origin(str(path)))) for path in paths]
    expected = ["a%20b/c%23.pt", "d.pt", "file:///elsewhere/e.pt", "hf%3Aorg/name"]
    assert [address(r) for r in results] == expected


def test_a_comment_is_never_longer_than_one_may_be() -> None:
    many = [replace(r, reason="x" * 3000) for r in three()] * 400
    text = drawn("md", many)
    assert len(text) < 65_536
    assert text.count("<details>") == text.count("</details>") > 0


# 2. What they never let act -------------------------------------------------------------------

COMMAND = re.compile(r"::(error|warning|notice) file=[^:,]+,title=[^:,]+::[^\n]+")
COMMENT = "<!-- -->"
OURS = {"<details>", "</details>", "<summary>", "</summary>", "<sub>", "</sub>", COMMENT}


def keys(value: Any) -> Any:
    """The structure of JSON without its texts and numbers."""
    if isinstance(value, dict):
        return {name: keys(v) for name, v in value.items() if name != "serialNumber"}
    return [keys(v) for v in value] if isinstance(value, list) else type(value).__name__


def skeleton(form: str, text: str) -> Any:
    """What a reader of a format makes of a document, but for the words in it."""
    if form in SCHEMAS:
        document = json.loads(text)
        follows(form, document)
        return keys(document)
    if form == "junit":
        return [(e.tag, sorted(e.attrib)) for e in ElementTree.fromstring(text).iter()]
    if form == "csv":
        rows = list(csv.reader(io.StringIO(text)))
        assert not [c for row in rows for c in row if c[:1] in tuple("=+-@\t\r")]
        return [len(row) for row in rows]
    if form == "github":
        assert all(COMMAND.fullmatch(line) for line in text.splitlines())
        return len(text.splitlines())
    return marked(text)


def marked(text: str) -> list[str]:
    """The markup of a comment, as GitHub's dialect has it; nothing of it is a stranger's."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    out = []
    for token in reader.parse(text):
        inner = [t for t in token.children or [] if t.type not in ("text", "text_special")]
        raw = [t.content for t in (token, *inner) if t.type in ("html_block", "html_inline")]
        said = [t.content for t in token.children or [] if t.type.startswith("text")]
        assert {tag for html in raw for tag in re.findall(r"<[^>]*>", html)} <= OURS
        assert not [t for t in inner if t.type.startswith(("link", "image", "autolink"))]
        assert not [s for s in said if re.search(r"@\w|#\d|://|www\.", s)]
        out += [token.type, *(t.type for t in inner if t.content != COMMENT)]
    return [kind for kind in out if kind != "softbreak"]


@pytest.mark.parametrize("form", sorted(SUMMARIES))
@pytest.mark.parametrize("name", [*HOSTILE, *INJECTED])
def test_nothing_that_a_file_says_acts(form: str, name: str) -> None:
    text = drawn(form, [named(name), nothing_found()])
    assert not ACTING.search(text)
    text.encode("utf-8")
    assert skeleton(form, text) == skeleton(form, drawn(form, [named("harmless"), nothing_found()]))


def named(name: str) -> Report:
    """A report with a text wherever a stranger may put it, under rules that we know."""
    report = poisoned(name)
    known = [replace(f, rule="BD001") for f in report.verdicts[0].findings]
    verdict = replace(report.verdicts[0], findings=tuple(known))
    checks = tuple(replace(check, rule="IN003") for check in report.checks)
    return replace(report, verdicts=(verdict,), checks=checks)


@pytest.mark.parametrize("name", [*HOSTILE, *INJECTED])
def test_a_strange_rule_is_no_index(name: str) -> None:
    document = parsed("sarif", poisoned(name))
    follows("sarif", document)
    assert all("ruleIndex" not in r for r in document["runs"][0]["results"])
    for form in ("github", "junit", "csv"):
        skeleton(form, drawn(form, [poisoned(name)]))


def test_what_is_shown_is_still_what_it_said() -> None:
    odd = "a,b::c%d|e`f"
    assert urllib.parse.unquote(address(collect(named(odd)))) == odd
    assert f"``{odd}``" in drawn("md", [named(odd)])
    assert "::error file=a%2Cb%3A%3Ac%25d|e`f,title=" in drawn("github", [named(odd)])
