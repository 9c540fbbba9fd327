"use strict";
// The leaderboard's script: switches the figure, and sorts, filters and pages the table of cells.
(() => {
  const PAGE = 100;
  const find = (id) => document.getElementById(id);
  const board = JSON.parse(find("data").textContent);
  const [KEY, ATTACK, DEFENSE, DATA, NET, SEED, STATUS, SECONDS, SPENT, FAMILY, VALUES] =
    Array(11).keys();
  const FIXED = [
    { id: "attack", title: "Attack", at: ATTACK }, { id: "defense", title: "Defense", at: DEFENSE },
    { id: "data", title: "Data", at: DATA }, { id: "net", title: "Net", at: NET },
    { id: "seed", title: "Seed", at: SEED }, { id: "status", title: "Status", at: STATUS },
  ];
  const LAST = { id: "seconds", title: "Time", at: SECONDS };
  const inputs = ["figure", "filter", "family", "status"].map(find).filter(Boolean);
  const state = { sort: "", down: false, page: 0 };
  const haystacks = board.rows.map((row) => [
    ...row.slice(ATTACK, STATUS), `seed=${row[SEED]}`, row[STATUS], row[FAMILY],
    ...Object.values(row[VALUES]).map((v) => v[0]).filter((v) => typeof v === "string"),
  ].join(" ").toLowerCase());
  let shown = [];

  function make(tag, role, text) {
    const element = document.createElement(tag);
    if (role) element.setAttribute("role", role);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // A name may be broken where its parts meet.
  const soft = (name) => name.split(/(?<=[_.:-])/).flatMap((part, i) => (
    i ? [make("wbr"), part] : [part]));

  function columns() {
    const chosen = board.figures.findIndex((f) => f.name === find("figure")?.value);
    const usual = board.columns[find("family").value] || [];
    const family = board.rows.filter((r) => !find("family").value || r[FAMILY] === find("family").value);
    const first = chosen >= 0 && family.some((r) => chosen in r[VALUES]) ? [chosen] : [];
    const figures = [...first, ...usual.filter((i) => i !== chosen)].map((i) => (
      { id: `figure:${board.figures[i].name}`, title: board.figures[i].title, figure: i }));
    return [...FIXED, ...figures, LAST];
  }

  const value = (row, column) => (
    "figure" in column ? row[VALUES][column.figure]?.[0] : row[column.at]);

  // What is not known comes last, whichever way the rest is sorted.
  function order(column, down) {
    return (a, b) => {
      const [x, y] = [value(a, column) ?? null, value(b, column) ?? null];
      if (x === null || y === null) return (x === null) - (y === null);
      const sign = typeof x === "number" && typeof y === "number"
        ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return down ? -sign : sign;
    };
  }

  function select() {
    const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [family, status] = [find("family").value, find("status").value];
    shown = board.rows.filter((row, i) => (!family || row[FAMILY] === family)
      && (!status || row[STATUS] === status) && words.every((w) => haystacks[i].includes(w)));
    const column = columns().find((c) => c.id === state.sort);
    if (column) shown.sort(order(column, state.down));
    state.page = Math.min(state.page, Math.max(0, Math.ceil(shown.length / PAGE) - 1));
  }

  function heading(column) {
    const th = make("th", "columnheader");
    const sorted = column.id === state.sort;
    th.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
    th.scope = "col";
    const button = make("button", "", column.title);
    button.type = "button";
    button.dataset.sort = column.id;
    th.append(button);
    return th;
  }

  function cell(row, column) {
    const td = make("td", "cell");
    if (column.at === ATTACK) {
      const link = make("a");
      link.append(...soft(row[ATTACK]));
      link.href = `cell/${row[KEY]}.html`;
      link.setAttribute("aria-label", `${row[ATTACK]}, ${row[DEFENSE]}, seed ${row[SEED]}`);
      td.append(link);
    } else if (column.at === STATUS) {
      td.append(make("span", "", row[STATUS]));
      td.firstChild.className = `tag ${board.tones[row[STATUS]] || "error"}`;
    } else if ("figure" in column || column.at === SECONDS) {
      const text = column.at === SECONDS ? row[SPENT] : row[VALUES][column.figure]?.[1] || "";
      const cut = text.indexOf("[");
      td.className = typeof value(row, column) === "string" ? "caps" : "number";
      td.textContent = cut < 0 ? text : text.slice(0, cut);
      if (cut >= 0) td.append(make("i", "", text.slice(cut)));
    } else {
      td.append(...soft(String(row[column.at])));
    }
    if (column.at !== ATTACK && column.at !== DEFENSE) td.dataset.title = column.title;
    return td;
  }

  function draw() {
    select();
    const shownColumns = columns();
    const start = state.page * PAGE;
    const page = shown.slice(start, start + PAGE);
    const focused = document.activeElement?.dataset.sort;
    find("cells").tHead.rows[0].replaceChildren(...shownColumns.map(heading));
    find("cells").tBodies[0].replaceChildren(...page.map((row) => {
      const tr = make("tr", "row");
      tr.append(...shownColumns.map((column) => cell(row, column)));
      return tr;
    }));
    if (focused) find("cells").querySelector(`[data-sort="${CSS.escape(focused)}"]`)?.focus();
    const number = (n) => n.toLocaleString("en");
    find("count").textContent = shown.length
      ? `${number(start + 1)} to ${number(start + page.length)} of ${number(shown.length)} cells`
      : "No cell matches.";
    find("back").disabled = start === 0;
    find("on").disabled = start + PAGE >= shown.length;
  }

  function change() {
    draw();
    remember();
  }

  function switchFigure() {
    const name = find("figure")?.value;
    for (const part of document.querySelectorAll("[data-figure]")) {
      part.hidden = part.dataset.figure !== name;
    }
    for (const panel of document.querySelectorAll(".panel, #cost")) {
      panel.querySelector(".none").hidden = !!panel.querySelector("[data-figure]:not([hidden])");
    }
  }

  // The address keeps what is chosen, so that a view can be come back to and passed on.
  function remember() {
    const parts = new URLSearchParams(inputs.filter((e) => e.value).map((e) => [e.id, e.value]));
    if (state.sort) parts.set("sort", (state.down ? "-" : "") + state.sort);
    history.replaceState(null, "", `#${parts}`);
  }

  function recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    for (const input of inputs) {
      const known = parts.get(input.id);
      const fits = !input.options || [...input.options].some((o) => o.value === known);
      if (known !== null && fits) input.value = known;
    }
    const sort = parts.get("sort") || "";
    state.down = sort.startsWith("-");
    state.sort = sort.replace(/^-/, "");
  }

  function show(event) {
    const link = event.target.closest?.(".heat a");
    find("tip").hidden = !link;
    if (!link) return;
    find("tip").textContent = link.getAttribute("aria-label");
    const box = link.getBoundingClientRect();
    const tip = find("tip").getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.width / 2),
      document.documentElement.clientWidth - tip.width - 8);
    const above = box.top - tip.height - 8;
    find("tip").style.left = `${left}px`;
    find("tip").style.top = `${above > 4 ? above : box.bottom + 8}px`;
  }

  find("cells").tHead.addEventListener("click", (event) => {
    const id = event.target.closest("button")?.dataset.sort;
    if (!id) return;
    state.down = state.sort === id && !state.down;
    state.sort = id;
    state.page = 0;
    change();
  });
  find("cells").tBodies[0].addEventListener("click", (event) => {
    if (event.target.closest("a") || String(getSelection())) return;
    event.target.closest("tr")?.querySelector("a").click();
  });
  for (const input of inputs) {
    input.addEventListener("input", () => { state.page = 0; switchFigure(); change(); });
  }
  for (const [id, by] of [["back", -1], ["on", 1]]) {
    find(id).addEventListener("click", () => { state.page += by; draw(); });
  }
  for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, show);
  document.addEventListener("scroll", () => {
    show({ target: document.querySelector(".heat a:focus-visible") || document.body });
  }, true);
  recall();
  switchFigure();
  draw();
})();
