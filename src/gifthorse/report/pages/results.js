"use strict";
// The script of the pages of results: sorts and filters models, puts two scans side by side.
(() => {
  const find = (id) => document.getElementById(id);
  const number = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

  function models() {
    const body = find("cells").tBodies[0];
    const rows = [...body.rows];
    const words = rows.map((row) => row.textContent.toLowerCase());
    const heads = [...find("cells").tHead.rows[0].cells];

    // What is not known comes last, whichever way the rest is sorted.
    function sort(column, down) {
      const key = (row) => row.cells[column].dataset.sort;
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!x || !y) return !x - !y;
        const numeric = !Number.isNaN(Number(x)) && !Number.isNaN(Number(y));
        const sign = numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
        return down ? -sign : sign;
      };
      body.append(...[...rows].sort(order));
      heads.forEach((head, i) => head.setAttribute(
        "aria-sort", i === column ? (down ? "descending" : "ascending") : "none"));
    }

    function filter() {
      const asked = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      const verdict = find("verdict").value;
      let count = 0;
      rows.forEach((row, i) => {
        const fits = verdict === "changed" ? "changed" in row.dataset
          : !verdict || row.dataset.verdict === verdict;
        row.hidden = !(fits && asked.every((word) => words[i].includes(word)));
        count += !row.hidden;
      });
      find("count").textContent = count === rows.length
        ? number(count, "model") : `${count.toLocaleString("en")} of ${number(rows.length, "model")}`;
    }

    // The address keeps what is chosen, so that a view can be come back to and passed on.
    function remember() {
      const parts = new URLSearchParams();
      for (const id of ["filter", "verdict"]) if (find(id).value) parts.set(id, find(id).value);
      const place = heads.findIndex((head) => head.getAttribute("aria-sort") !== "none");
      if (place >= 0) {
        const down = heads[place].getAttribute("aria-sort") === "descending";
        parts.set("sort", (down ? "-" : "") + place);
      }
      history.replaceState(null, "", `#${parts}`);
    }

    const known = new URLSearchParams(location.hash.slice(1));
    for (const id of ["filter", "verdict"]) find(id).value = known.get(id) || "";
    const asked = known.get("sort") || "";
    const place = Number(asked.replace("-", ""));
    if (asked && heads[place]) sort(place, asked.startsWith("-"));
    filter();
    heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
      sort(i, head.getAttribute("aria-sort") === "ascending");
      remember();
    }));
    for (const id of ["filter", "verdict"]) {
      find(id).addEventListener("input", () => { filter(); remember(); });
    }
    body.addEventListener("click", (event) => {
      if (event.target.closest("a") || String(getSelection())) return;
      event.target.closest("tr")?.querySelector("a").click();
    });
  }

  function comparison() {
    const scans = JSON.parse(find("data").textContent);
    const cell = (tag, text) => {
      const made = document.createElement(tag);
      made.textContent = text;
      return made;
    };
    for (const [id, chosen] of [["old", scans.length - 2], ["new", scans.length - 1]]) {
      find(id).append(...scans.map((scan, i) => new Option(scan.name, i)));
      find(id).value = Math.max(0, chosen);
    }

    function draw() {
      const [a, b] = ["old", "new"].map((id) => scans[find(id).value]);
      const names = [...new Set([...Object.keys(b.facts), ...Object.keys(a.facts)])];
      const differ = names.filter((name) => a.facts[name] !== b.facts[name]);
      const shown = find("all").checked ? names : differ;
      const heads = find("compared").tHead.rows[0].cells;
      [heads[1].textContent, heads[2].textContent] = [a.name, b.name];
      find("compared").tBodies[0].replaceChildren(...shown.map((name) => {
        const row = document.createElement("tr");
        row.append(cell("th", name), ...[a, b].map((scan) => cell("td", scan.facts[name] || "-")));
        row.cells[0].scope = "row";
        if (differ.includes(name)) row.className = "chosen";
        return row;
      }));
      find("count").textContent = differ.length
        ? `${number(differ.length, "fact")} differ${differ.length === 1 ? "s" : ""}`
        : "Nothing differs.";
    }

    for (const id of ["old", "new", "all"]) find(id).addEventListener("input", draw);
    draw();
  }

  if (find("cells")) models();
  if (find("compared")) comparison();
})();
