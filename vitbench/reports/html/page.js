/* The page's controls, table and state. Names are only ever set as text; charts.js draws, DataTables pages and sorts. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const columns = new Map(data.columns.map((one) => [one.id, one]));
  const models = columns.get("model");
  const status = columns.get("status");
  // what all lines share stands in a sentence
  const shownColumns = data.columns.filter((of) => !of.condition || of.id === "model" || data.axes.includes(of.id));
  const OVER = ["image_size", "patches", "batch"].filter((id) => new Set(columns.get(id)?.values.filter((one) => one !== null)).size > 1);
  const numberColumns = data.columns.filter((one) => one.kind === "number" && !one.condition);
  const $ = (id) => document.getElementById(id);

  function make(tag, properties, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  }

  // values

  const all = Array.from({ length: data.lines }, (_, line) => line);
  const rawOf = (of, line) => of.values[line] ?? null;
  const textOf = (of, line) => {
    const value = rawOf(of, line);
    return value === null ? "" : of.kind === "text" ? of.texts[value] : String(value);
  };
  const modelOf = (line) => textOf(models, line);
  const command = (line) => data.repeat.map((part) => part.texts[part.values[line]] ?? "").join("");
  const heading = (of) => (of.unit ? `${of.name} (${of.unit})` : of.name);

  // state: what is chosen, in the URL's hash as far as the browser lets us

  const state = { filters: new Map(), search: "", cost: data.costs[0] ?? "", y: "", over: OVER.at(-1) ?? "", pins: data.markers.map(() => null) };

  /* the first line with all that trade-offs need shows what to compare at first */
  function chooseFirst() {
    const [accuracy, cost] = [columns.get("accuracy"), columns.get(state.cost)];
    const first = all.find((line) => accuracy && cost && rawOf(accuracy, line) !== null && rawOf(cost, line) !== null);
    for (const id of data.axes) state.filters.set(id, first === undefined ? "" : textOf(columns.get(id), first));
    // unless that leaves nothing to compare
    if (linesShown().length < 2) for (const id of data.axes) state.filters.set(id, "");
    // and the models of its front, as far as three colours go
    const chance = (line) => data.fronts[state.cost]?.[line] ?? 0;
    const likely = linesShown().filter((line) => chance(line) >= 0.5).sort((a, b) => chance(b) - chance(a));
    [...new Set(likely.map(modelOf))].slice(0, 3).forEach((model, place) => { state.pins[place] = model; });
  }

  function readHash() {
    const found = new URLSearchParams(location.hash.slice(1));
    for (const id of data.axes) if (found.has(id)) state.filters.set(id, found.get(id));
    for (const id of ["search", "cost", "y", "over"]) if (found.has(id)) state[id] = found.get(id);
    for (const id of found.has("pins") ? state.pins.keys() : []) {
      const model = found.getAll("pin")[id];
      state.pins[id] = models.texts.includes(model) && !state.pins.slice(0, id).includes(model) ? model : null;
    }
    if (!data.costs.includes(state.cost)) state.cost = data.costs[0] ?? "";
    if (!OVER.includes(state.over)) state.over = OVER.at(-1) ?? "";
    if (!linesShown().length) for (const id of data.axes) state.filters.set(id, "");
    if (!linesShown().length) state.search = "";
  }

  function writeHash() {
    const found = new URLSearchParams(state.filters);
    for (const id of ["search", "cost", "y", "over"]) if (state[id]) found.set(id, state[id]);
    found.set("pins", "");
    for (const model of state.pins) found.append("pin", model ?? "");
    try { history.replaceState(null, "", `#${found}`); } catch { /* a frame without an address keeps no state */ }
  }

  /* the lines that the controls leave, but for one axis */
  function linesShown(except = "") {
    const wanted = [...state.filters].filter(([id, value]) => value && id !== except).map(([id, value]) => {
      const of = columns.get(id);
      const place = of.kind === "text" ? of.texts.indexOf(value) : Number(value);
      return (line) => of.values[line] === place;
    });
    const part = state.search.toLowerCase();
    const named = part && new Set(models.texts.flatMap((name, place) => (name.toLowerCase().includes(part) ? [place] : [])));
    return all.filter((line) => wanted.every((one) => one(line)) && (!part || named.has(models.values[line])));
  }

  // controls

  function selectOf(name, pairs, value, change) {
    const select = make("select", { name }, ...pairs.map(([value, text]) => make("option", { value, textContent: text })));
    select.value = value;
    select.addEventListener("change", () => change(select.value));
    return select;
  }

  function labelled(text, control) {
    return make("label", {}, make("span", { textContent: text }), control);
  }

  const selects = new Map();
  function makeControls() {
    for (const id of data.axes) {
      const of = columns.get(id);
      const values = [...new Set(all.map((line) => textOf(of, line)).filter(Boolean))];
      if (values.every((value) => !Number.isNaN(parseFloat(value)))) values.sort((a, b) => parseFloat(a) - parseFloat(b));
      const select = selectOf(id, [["", "all"], ...values.map((value) => [value, value])], state.filters.get(id), (value) => {
        state.filters.set(id, value);
        if (!linesShown().length) {
          state.search = search.value = "";
          for (const other of data.axes) if (other !== id) state.filters.set(other, "");
        }
        update();
      });
      selects.set(id, select);
      $("axes").append(labelled(heading(of), select));
    }
    const search = make("input", { type: "search", name: "search", placeholder: "part of a name", value: state.search });
    search.addEventListener("input", () => { state.search = search.value; update(); });
    $("axes").append(labelled("model", search));
    $("controls").addEventListener("submit", (event) => event.preventDefault());
  }

  // what a chart shows, above it
  function choose(section, text, key, ids) {
    const pairs = ids.map((id) => [id, heading(columns.get(id))]);
    const select = selectOf(key, pairs, state[key], (value) => { state[key] = value; writeHash(); draw(section); });
    const place = document.querySelector(`#${section} .choices`);
    place.hidden = false;
    place.append(labelled(text, select));
  }

  function makeChoices() {
    if (document.querySelector("#tradeoffs .plot")) choose("tradeoffs", "accuracy against", "cost", data.costs);
    if (!$("scaling")) return;
    const ids = numberColumns.filter((one) => one.values.some((value) => value !== null)).map((one) => one.id);
    // what is most often asked for, of what there is
    if (!ids.includes(state.y)) state.y = ["latency", "training_step", "memory", "training_memory", ids[0]].find((id) => ids.includes(id)) ?? "";
    choose("scaling", "show", "y", ids);
    choose("scaling", "over", "over", OVER);
  }

  // charts

  function draw(id) {
    const section = $(id);
    const place = section?.querySelector(".plot");
    if (!place) return;
    const settings = { ...state, width: Math.max(Math.floor(place.clientWidth), 280) };
    const over = state.over === "patches" ? "image_size" : state.over; // patches have no control
    const lines = linesShown(id === "scaling" ? over : "");
    const { node, caption } = id === "training" ? charts.training(data, curves(), settings) : charts[id](data, lines, settings);
    place.replaceChildren(node);
    section.querySelector(".plot + .caption").textContent = caption;
  }

  /* the trainings of the runs and models that are shown */
  function curves() {
    const shown = new Set(linesShown().map((line) => `${textOf(columns.get("run"), line)}\n${modelOf(line)}`));
    return data.curves.filter((one) => shown.has(`${one.run}\n${one.model}`));
  }
  const CHARTS = ["tradeoffs", "scaling", "spread", "training"];

  // the table

  /* where a column's intervals lie, over all lines: of a small mark beside each */
  const spans = new Map(numberColumns.filter((one) => one.low && one.high).map((one) => {
    const ends = [...one.low, ...one.high].filter((value) => value !== null);
    const [low, high] = [ends.reduce((a, b) => Math.min(a, b), Infinity), ends.reduce((a, b) => Math.max(a, b), -Infinity)];
    const scale = low > 0 && high / low >= 4 ? Math.log : (value) => value;
    return [one.id, (value) => 100 * (scale(value) - scale(low)) / ((scale(high) - scale(low)) || 1)];
  }));

  function mark(of, line) {
    const [low, high, at] = [of.low[line], of.high[line], of.values[line]].map((value) => spans.get(of.id)(value));
    const bar = make("span", { className: "bar" });
    const tick = make("span", { className: "tick" });
    Object.assign(bar.style, { left: `${low}%`, width: `${Math.max(high - low, 1)}%` });
    tick.style.left = `${at}%`;
    const node = make("span", { className: "interval" }, bar, tick);
    node.setAttribute("aria-hidden", "true");
    return node;
  }

  const badge = (text, title) => make("span", { className: "badge", textContent: text, title: title ?? "" });
  const reasonOf = (of, line) => of.reason?.[line] ?? status?.reason?.[line] ?? "";

  function cell(of, line) {
    const node = make("span", { className: "value" });
    const value = rawOf(of, line);
    if (of.status?.[line] && value === null) node.append(badge(of.status[line], reasonOf(of, line)));
    else if (of.id === "status" && textOf(of, line) !== "ok") node.append(badge(textOf(of, line), reasonOf(of, line)));
    else if (value === null) node.append("–");
    else if (of.kind === "text") node.append(make("bdi", { textContent: textOf(of, line), title: textOf(of, line) }));
    else {
      const [number, interval] = charts.quantity(of, line, true, false).split(/ (?=\[)/);
      node.append(number);
      if (interval) node.append(" ", make("small", { textContent: interval }));
      if (spans.has(of.id) && of.low[line] !== null) node.append(mark(of, line));
    }
    const marks = of.marks?.[line]?.replace("≥", ""); // stands before the number
    if (marks) node.append(" ", make("span", { className: "mark", textContent: marks }));
    return node;
  }

  function colour(box) {
    const place = state.pins.indexOf(box.dataset.model);
    box.checked = place >= 0;
    box.style.setProperty("--colour", place < 0 ? "" : `var(--pin-${place})`);
    return box;
  }

  function pinBox(line) {
    const model = modelOf(line);
    const box = make("input", { type: "checkbox" });
    box.dataset.model = model;
    box.setAttribute("aria-label", `Pin ${model}`);
    return colour(box);
  }

  /* the command that repeats a line, and why it failed */
  function more(line) {
    const notes = data.columns.flatMap((of) => {
      const known = [of.status?.[line], of.reason?.[line]].filter(Boolean).join(": ");
      return known ? [make("li", { textContent: `${of.name}: ${known}` })] : [];
    });
    const code = make("code", { textContent: command(line) });
    const node = make("div", { className: "more" }, make("p", {}, "Repeats it, beside the run's folder: ", code));
    if (notes.length) node.append(make("ul", {}, ...notes));
    return node;
  }

  /* what is unknown comes last, whichever way */
  const compare = (sign) => (a, b) => (a === null || b === null ? (a === null) - (b === null) : sign * (a < b ? -1 : +(a > b)));

  let table;
  function makeTable() {
    const hidden = make("span", { className: "hidden", textContent: "command" });
    const head = make("tr", {}, make("th", { textContent: "pin", scope: "col" }), make("th", { scope: "col" }, hidden), ...shownColumns.map((of) => {
      const node = make("th", { scope: "col", className: of.kind }, make("span", { textContent: of.name }));
      if (of.unit) node.append(" ", make("small", { textContent: of.low ? `${of.unit}, 95 %` : of.unit }));
      return node;
    }));
    const node = make("table", { id: "grid" }, make("thead", {}, head));
    $("lines").append(node);
    $("lines").hidden = false;
    DataTable.type("known", { order: { asc: compare(1), desc: compare(-1) } });
    const sorted = (of) => (of.kind === "text" ? of.texts.map((text) => (of.id === "image_size" ? parseFloat(text) : text.toLowerCase())) : null);
    table = new DataTable(node, {
      data: [], pageLength: 25, lengthMenu: [25, 100, { label: "all", value: -1 }], deferRender: true, autoWidth: false, searching: false, order: [],
      layout: { topStart: null, topEnd: null, bottomStart: ["pageLength", "info"], bottomEnd: "paging" },
      language: { lengthMenu: "_MENU_ lines a page", info: "_START_–_END_ of _TOTAL_", infoEmpty: "no line", emptyTable: "No line is chosen." },
      columns: [
        { data: null, orderable: false, className: "pin", render: (_, type, line) => (type === "display" ? pinBox(line) : null) },
        { data: null, orderable: false, className: "command", render: (_, type, line) => {
          if (type !== "display") return null;
          const button = make("button", { type: "button", className: "small", textContent: "⋯", title: "The line's command" });
          button.setAttribute("aria-label", `Command of ${modelOf(line)}`);
          button.setAttribute("aria-expanded", "false");
          return button;
        } },
        ...shownColumns.map((of) => {
          const keys = sorted(of);
          const key = (line) => (rawOf(of, line) === null ? null : keys ? keys[of.values[line]] : of.values[line]);
          return { data: null, type: "known", className: of.kind, render: (_, type, line) => (type === "display" ? cell(of, line) : key(line)) };
        }),
      ],
    });
    node.addEventListener("change", (event) => event.target.dataset.model !== undefined && pin(event.target.dataset.model));
    node.addEventListener("click", (event) => {
      const button = event.target.closest("td.command > button");
      if (!button) return;
      const row = table.row(button.closest("tr"));
      if (row.child.isShown()) row.child.hide();
      else row.child(more(row.data())).show();
      button.setAttribute("aria-expanded", String(row.child.isShown()));
    });
  }

  function pin(model) {
    // the others keep their places, and so their colours and shapes
    const place = state.pins.includes(model) ? state.pins.indexOf(model) : state.pins.indexOf(null);
    if (place < 0) $("count").textContent = "Six models are pinned: take one off first.";
    else state.pins[place] = state.pins[place] === null ? model : null;
    // rows of other pages of the table, too; those without a node are still to be made
    for (const row of table.rows().nodes().toArray().filter(Boolean)) colour(row.querySelector("input[data-model]"));
    writeHash();
    CHARTS.forEach(draw);
  }

  // saving

  /* no cell is a formula to a spreadsheet */
  const csvText = (text) => {
    const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r']/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  function saveCsv() {
    const heads = data.columns.flatMap((of) => [heading(of), ...(of.low ? [`${of.name} low`, `${of.name} high`] : []), ...(of.status ? [`${of.name} status`] : [])]);
    const lines = table.rows({ order: "applied" }).data().toArray().map((line) => data.columns.flatMap((of) => [
      of.kind === "text" ? csvText(textOf(of, line)) : rawOf(of, line) ?? "",
      ...(of.low ? [of.low[line] ?? "", of.high[line] ?? ""] : []), ...(of.status ? [csvText(of.status[line] ?? "")] : []),
    ]).join(","));
    const link = make("a", { download: "vitbench.csv", href: URL.createObjectURL(new Blob([`${[heads.map(csvText).join(","), ...lines].join("\n")}\n`], { type: "text/csv" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // the whole

  function update() {
    const lines = linesShown();
    for (const [id, select] of selects) select.value = state.filters.get(id) ?? "";
    const count = new Set(lines.map((line) => models.values[line])).size;
    $("count").textContent = `${lines.length.toLocaleString("en")} of ${data.lines.toLocaleString("en")} lines, ${count} model${count === 1 ? "" : "s"}`;
    hideShared(lines);
    table.clear().rows.add(lines).draw();
    CHARTS.forEach(draw);
    writeHash();
  }

  /* what all shown lines share leaves the table and stands in the sentence above it; what none has leaves it, too */
  function hideShared(lines) {
    const shared = [];
    shownColumns.forEach((of, place) => {
      const known = new Set(lines.map((line) => of.status?.[line] ?? of.values[line]));
      const said = of === status || (of.condition && of !== models);
      table.column(place + 2).visible(known.size !== 1 || !(said || known.has(null)), false);
      if (said && known.size === 1 && textOf(of, lines[0])) shared.push([of.name, `${textOf(of, lines[0])} ${of.unit}`.trim()]);
    });
    shared.push(...data.constant);
    $("shared").textContent = shared.length ? `Shared by all lines shown: ${shared.map((pair) => pair.join(" ")).join(", ")}.` : "";
  }

  function setTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  }
  function makeTheme() {
    let theme = "";
    try { theme = localStorage.getItem("vitbench-theme") ?? ""; } catch { /* no storage in this frame */ }
    setTheme(theme);
    $("theme").value = theme;
    $("theme").parentNode.hidden = false;
    $("theme").addEventListener("change", (event) => {
      setTheme(event.target.value);
      try { localStorage.setItem("vitbench-theme", event.target.value); } catch { /* for this visit only */ }
    });
    let length = 25;
    addEventListener("beforeprint", () => { setTheme("light"); length = table.page.len(); table.page.len(-1).draw(); });
    addEventListener("afterprint", () => { setTheme($("theme").value); table.page.len(length).draw(); });
  }

  for (const node of document.querySelectorAll(".static")) node.remove();
  for (const node of [$("controls"), $("save"), document.querySelector(".legend")]) node.hidden = false;
  chooseFirst();
  readHash();
  makeControls();
  makeChoices();
  makeTable();
  makeTheme();
  update();
  document.addEventListener("pin", (event) => pin(event.detail));
  $("save").addEventListener("click", saveCsv);
  // links to sections would replace the state in the address
  for (const link of document.querySelectorAll('a[href^="#"]')) link.addEventListener("click", (event) => {
    event.preventDefault();
    const target = $(link.hash.slice(1));
    for (const folded of target.querySelectorAll(":scope > details")) folded.open ||= target.id !== "table";
    target.scrollIntoView();
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width !== innerWidth) CHARTS.forEach(draw);
    width = innerWidth;
  });
  performance.mark("drawn");
})();
