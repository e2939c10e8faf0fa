/* The charts of the page. Each takes the page's data, the lines that are shown and the page's state, and gives
   {node, caption}. Only this file knows Observable Plot and d3. Names are only ever set as text. */
"use strict";
const charts = (() => {
  const MOST_NAMES = 20; // in one chart
  const MOST_POINTS = 2000; // drawn with intervals and names; of more only the points
  const MOST_ROWS = 40; // of the latency spread
  const MOST_STEPS = 1000; // drawn of one training
  const WINDOW = 9; // steps of the running mean
  const FONT = 12; // px
  const BACKGROUND = "var(--pico-background-color)";
  let resume = null; // the chart and the line at which Enter pinned a model: redrawn, the chart takes the focus back

  // values and names

  const column = (data, id) => data.columns.find((one) => one.id === id);
  const valueOf = (of, line) => {
    const value = of?.values[line] ?? null;
    return value !== null && of.kind === "text" ? of.texts[value] : value;
  };
  const heading = (of) => (of.unit ? `${of.name} (${of.unit})` : of.name);
  const plain = (name) => name.replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, " "); // on one line
  const isolated = (name) => `\u2068${plain(name)}\u2069`; // a name from right to left leaves the sentence as it is
  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

  function shortened(name, most) {
    const [letters, tail] = [[...plain(name)], Math.floor((most - 1) / 2)];
    if (letters.length <= most) return letters.join("");
    return [...letters.slice(0, most - 1 - tail), "…", ...letters.slice(-tail)].join("");
  }

  /* 14.5 [14.1, 14.9] ms with the digits of tables, of which the data's numbers have one more: as reports/format.py does,
     one more where the ends of the interval would read alike */
  const DECIMALS = { whole: 0, tenths: 1, hundredths: 2, thousandths: 3 };
  function quantity(of, line, interval = true, unit = true) {
    const value = of.values[line];
    const ends = [of.low?.[line], of.high?.[line]].filter((end) => end != null);
    const digits = of.precision === "counted" ? 4 : 3;
    const whole = value ? Math.floor(Math.log10(Math.abs(+value.toPrecision(digits)))) + 1 : digits;
    const least = Math.max(DECIMALS[of.precision] ?? digits - whole, 0);
    const alike = ends.length && ends[0] !== ends[1] && ends[0].toFixed(least) === ends[1].toFixed(least);
    const text = (number) => number.toFixed(least + (alike && !(of.precision in DECIMALS) ? 1 : 0));
    const between = interval && ends.length ? ` [${ends.map(text).join(", ")}]` : "";
    const bound = of.marks?.[line]?.includes("≥") ? "≥ " : "";
    return `${bound}${text(value)}${between}${unit ? ` ${of.unit || of.name}` : ""}`;
  }

  /* the conditions in which lines differ, but for the one left out, and for those that follow from another: the data of
     each run */
  function varying(data, lines, leftOut) {
    const follows = (one, other) => {
      const known = new Map(lines.map((line) => [other.values[line], one.values[line]]));
      return lines.every((line) => known.get(other.values[line]) === one.values[line]);
    };
    const differing = data.axes.filter((id) => id !== "model" && id !== leftOut).map((id) => column(data, id))
      .filter((one) => lines.some((line) => one.values[line] !== one.values[lines[0]]));
    return differing.filter((one, place) => !differing.slice(0, place).some((other) => follows(one, other)));
  }

  /* 224 px, batch 32, fused */
  function condition(by, line) {
    const texts = by.map((one) => {
      const value = plain(String(valueOf(one, line) ?? ""));
      if (one.unit && value) return `${value} ${one.unit}`;
      return /^(yes|no|on|off|none|true|false|[\d.]+)$/i.test(value) ? `${one.name} ${value}` : value;
    });
    return texts.filter(Boolean).join(", ");
  }

  /* what is drawn of lines; pin is the place among the pinned models, or -1 */
  function pointsOf(data, lines, x, y, by, state) {
    const models = column(data, "model");
    const pins = new Map(state.pins.map((model, place) => [model, place]));
    const names = models.texts.map((model) => [isolated(model), isolated(shortened(model, 28))]);
    return lines.map((line) => {
      const [model, where] = [valueOf(models, line), condition(by, line)];
      const point = { line, model, where, pin: pins.get(model) ?? -1, x: x.values[line], y: y.values[line] };
      const ends = { x1: x.low?.[line], x2: x.high?.[line], y1: y.low?.[line], y2: y.high?.[line] };
      const [name, label] = names[models.values[line]].map((text) => text + (where && `, ${where}`));
      return { ...point, ...ends, name, label };
    });
  }
  const pinned = (point) => (point.pin < 0 ? "" : ", pinned");

  /* grey for the others, then the colour and the shape of each pinned model */
  const looks = (data, state) => [
    { pin: -1, colour: "var(--grey)", symbol: "circle", r: 3.5, width: 1.2 },
    ...state.pins.map((_, pin) => ({ pin, colour: `var(--pin-${pin})`, symbol: data.markers[pin], r: 5, width: 2 })),
  ];
  const textColour = (point) => (point.pin < 0 ? "var(--pico-muted-color)" : `var(--pin-${point.pin})`);

  // axes

  /* logarithmic where the values span a factor of four, or as asked */
  function scaleOf(values, label, most, log = null) {
    const [low, high] = d3.extent(values);
    const type = low > 0 && (log ?? high / low >= 4) ? "log" : "linear";
    const factor = Math.max((high / low) ** 0.05, 1.05);
    const span = 0.06 * (high - low || Math.abs(high) || 1);
    const bottom = low < 0 ? low - span : Math.max(low - span, 0);
    const domain = type === "log" ? [low / factor, high * factor] : [bottom, high + span];
    return { type, domain, label, ticks: type === "log" ? logTicks(domain, most) : d3.ticks(...domain, most) };
  }

  function logTicks([low, high], most) {
    const sets = [d3.range(1, 10), [1, 2, 5], [1, 3], [1]].map((steps) =>
      d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1)
        .flatMap((power) => steps.map((step) => +`${step}e${power}`)).filter((value) => value >= low && value <= high));
    const found = sets.find((set) => set.length <= most) ?? sets.at(-1);
    return found.length > 1 ? found : d3.ticks(low, high, Math.min(most, 4));
  }
  const tickText = (value) => (Math.abs(value) >= 1e4 ? d3.format("~s")(value) : `${+value.toPrecision(4)}`);

  // what all charts share

  /* Plot's picture: without the style element, which the page's policy forbids, and without the labels of groups, which
     may have none. */
  function picture(state, height, { x, y, marks, ...options }) {
    const axes = (scale, grid, axis) => [
      grid(scale.ticks, { strokeOpacity: 0.1 }), axis(scale.ticks, { text: tickText, label: scale.label, tickSize: 4 }),
    ];
    const svg = Plot.plot({
      width: state.width, height, marginLeft: 44, marginRight: 16, marginTop: 24, marginBottom: 38, ...options,
      style: { fontSize: `${FONT}px`, overflow: "visible", background: "none" },
      x: { type: x.type, domain: x.domain, axis: null },
      y: { type: y.type, domain: y.domain, axis: null },
      marks: [axes(x, Plot.gridX, Plot.axisX), y.ticks ? axes(y, Plot.gridY, Plot.axisY) : [], marks],
    });
    for (const one of svg.querySelectorAll("style")) one.remove();
    for (const one of svg.querySelectorAll("[aria-label]")) one.removeAttribute("aria-label");
    return svg;
  }

  /* where points stand in a picture, in px, and what is said of them */
  function stopsIn(svg, points, text) {
    const [x, y] = [svg.scale("x"), svg.scale("y")];
    const place = (scale, value) => scale.apply(value) + (scale.bandwidth ?? 0) / 2;
    return points.map((one) => {
      const [left, right] = [one.x1, one.x2].map((end) => place(x, end ?? one.x));
      const ends = [left, right, ...[one.y2, one.y1].map((end) => place(y, end ?? one.y))];
      return { ...one, px: place(x, one.x), py: place(y, one.y), ends, text: () => text(one) };
    });
  }

  const canvas = document.createElement("canvas").getContext("2d");
  function widthOf(text) {
    canvas.font = `${FONT}px system-ui, sans-serif`;
    return canvas.measureText(text).width;
  }

  function write(group, text, full, x, y, anchor, colour) {
    group.append("text").attr("x", x).attr("y", y).attr("text-anchor", anchor).attr("fill", colour).text(text)
      .attr("stroke", BACKGROUND).attr("stroke-width", 5).attr("paint-order", "stroke").append("title").text(full);
  }

  /* Names beside points, the first ones first: off each other and, where there is room, off all points and intervals. A
     name that finds no room is left out, one of a pinned model only where it would cover another. */
  const BESIDE = [0, -13, 13, -26, 26, -40, 40].flatMap((dy) => [[1, dy], [-1, dy]]);
  const BEHIND = [0, -13, 13, -26, 26, -39, 39, -52, 52, -65, 65].map((dy) => [1, dy]);
  function writeNames(svg, named, stops, sides, frame) {
    const meets = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const inside = ({ left, right, top, bottom }) =>
      left >= frame.left && right <= frame.right && top >= frame.top && bottom <= frame.bottom;
    const crowd = stops.flatMap(({ px, py, ends: [left, right, top, bottom] }) => [
      { left: px - 5, right: px + 5, top: py - 5, bottom: py + 5 },
      { left, right, top: py - 1, bottom: py + 1 }, { left: px - 1, right: px + 1, top, bottom },
    ]);
    const group = d3.select(svg).append("g");
    const taken = [];
    for (const one of named) {
      if (taken.length === MOST_NAMES) break;
      const width = widthOf(one.label);
      const boxes = sides.map(([side, dy], place) => {
        const [left, y] = [one.px + (side > 0 ? 9 : -9 - width), one.py + dy];
        const box = { left, right: left + width, top: y - 7, bottom: y + 7 };
        const bad = !inside(box) || taken.some((other) => meets(box, other));
        return { ...box, bad, cost: place + 6 * crowd.filter((other) => meets(box, other)).length + 1000 * bad };
      });
      const box = d3.least(boxes, (one) => one.cost);
      if (box.bad || (one.pin < 0 && box.cost > 24)) continue;
      taken.push(box);
      write(group, one.label, one.name, box.left, box.top + 11, "start", textColour(one));
    }
  }

  const MOVES = new Map([
    ["ArrowRight", 1], ["ArrowUp", 1], ["ArrowLeft", -1], ["ArrowDown", -1],
    ["PageUp", 10], ["PageDown", -10], ["Home", -Infinity], ["End", Infinity],
  ]);

  /* The chart and the line that reads out one point: the pointer finds the nearest, arrow keys move in the order of x,
     Enter and a click pin. A slider is what screen readers announce at each move. */
  function explorable(name, svg, stops, alternative, caption) {
    stops.sort((a, b) => a.px - b.px || b.py - a.py);
    const hint = "Choose a point to pin its model: by pointer, or here by arrow keys and Enter.";
    const node = d3.create("div").attr("class", "chart");
    node.append(() => d3.select(svg).attr("role", "img").attr("aria-label", alternative).node());
    const ring = d3.select(svg).append("circle").attr("class", "ring").attr("r", 9)
      .attr("fill", "none").attr("stroke", "currentColor");
    const readout = node.append("p").attr("class", "readout").attr("role", "slider").attr("tabindex", 0)
      .attr("aria-label", `Points of ${alternative}`).attr("aria-valuemin", 1).attr("aria-valuemax", stops.length);
    let at = 0;
    const show = (place, seen = true) => {
      at = place;
      const text = stops[at].text();
      ring.attr("cx", stops[at].px).attr("cy", stops[at].py).attr("visibility", seen ? "visible" : "hidden");
      readout.text(seen ? text : hint).attr("aria-valuenow", at + 1).attr("aria-valuetext", text);
    };
    const hide = () => show(at, false);
    const pin = (stop) => node.node().dispatchEvent(new CustomEvent("pin", { detail: stop.model, bubbles: true }));
    const nearest = (event) => {
      const [px, py] = d3.pointer(event, svg);
      const place = d3.minIndex(stops, (one) => Math.hypot(one.px - px, one.py - py));
      return Math.hypot(stops[place].px - px, stops[place].py - py) < 24 ? place : -1;
    };
    const leave = () => (document.activeElement === readout.node() ? show(at) : hide());
    d3.select(svg).on("pointerleave", leave).on("pointermove", (event) => {
      const place = nearest(event);
      svg.style.cursor = place < 0 ? "" : "pointer";
      if (place < 0) leave();
      else show(place);
    }).on("click", (event) => nearest(event) >= 0 && pin(stops[nearest(event)]));
    readout.on("focus", () => show(at)).on("blur", hide).on("keydown", (event) => {
      if (event.key !== "Enter" && !MOVES.has(event.key)) return;
      event.preventDefault();
      if (event.key !== "Enter") return show(Math.min(Math.max(at + MOVES.get(event.key), 0), stops.length - 1));
      resume = { name, line: stops[at].line };
      pin(stops[at]);
    });
    if (resume?.name === name) {
      at = Math.max(stops.findIndex((one) => one.line === resume.line), 0);
      resume = null;
      requestAnimationFrame(() => document.activeElement === document.body && readout.node().focus());
    }
    hide();
    return { node: node.node(), caption };
  }

  /* why there is nothing to draw, and what to choose */
  function nothing(data, has, what) {
    const elsewhere = d3.range(data.lines).some(has);
    const why = elsewhere ? "Choose “all” above." : "Nor has any other line of this report.";
    const text = `No line that is shown has ${what}. ${why}`;
    return { node: d3.create("p").attr("class", "nothing").text(text).node(), caption: "" };
  }

  // the charts

  /* of each comparable condition the points that no other beats at both */
  function frontsOf(data, points, cost) {
    const more = cost === "throughput";
    const conditions = ["params", "flops"].includes(cost) ? data.conditions_of_any_batch : data.conditions;
    return d3.groups(points, (point) => conditions[point.line]).map(([, group]) => {
      const front = [];
      for (const point of d3.sort(group, (a, b) => (more ? b.x - a.x : a.x - b.x) || b.y - a.y)) {
        const best = front.at(-1);
        if (!best || point.y > best.y || (point.y === best.y && point.x === best.x)) front.push(point);
      }
      return front;
    });
  }

  function tradeoffs(data, lines, state) {
    const [x, y] = [column(data, state.cost), column(data, "accuracy")];
    const has = (line) => valueOf(x, line) !== null && valueOf(y, line) !== null;
    const shown = lines.filter(has);
    if (!shown.length) return nothing(data, has, `both accuracy and ${x?.name ?? state.cost}`);
    const points = pointsOf(data, shown, x, y, varying(data, shown), state);
    const [few, count] = [points.length <= MOST_POINTS, plural(points.length, "point")];
    const fronts = frontsOf(data, points, state.cost);
    const front = new Set(fronts.flat().map((point) => point.line));
    const chance = (point) => {
      const probability = data.fronts[state.cost]?.[point.line];
      return probability === undefined ? "" : `, probability ${probability.toFixed(2)}`;
    };
    const values = (point, interval) => `${quantity(y, point.line, interval)} at ${quantity(x, point.line, interval)}`;
    const [on, off] = [(point) => front.has(point.line), (point) => !front.has(point.line)];
    const text = (point) =>
      `${point.name}: ${values(point)}, ${on(point) ? "" : "not "}on the Pareto front${chance(point)}${pinned(point)}`;
    const known = (...keys) => keys.flatMap((key) => points.map((point) => point[key])).filter((value) => value != null);
    const height = Math.min(Math.max(state.width * 0.45, 300), 420);
    const steps = fronts.filter((one) => one.length > 1).map((one) =>
      Plot.line(one, { x: "x", y: "y", curve: "step-after", stroke: "var(--grey)", strokeWidth: 1.5 }));
    const svg = picture(state, height, {
      x: scaleOf(known("x", "x1", "x2"), heading(x), state.width / 90),
      y: scaleOf(known("y", "y1", "y2"), heading(y), 8, false),
      marks: [steps, looks(data, state).map(({ pin, colour, symbol, r, width }) => {
        const own = points.filter((point) => point.pin === pin);
        const whisker = { stroke: colour, strokeWidth: width, strokeOpacity: 0.7 };
        const dot = { x: "x", y: "y", symbol, r, stroke: colour, strokeWidth: width, title: few ? text : null };
        return [
          few ? Plot.ruleY(own, { ...whisker, y: "y", x1: "x1", x2: "x2" }) : [],
          few ? Plot.ruleX(own, { ...whisker, x: "x", y1: "y1", y2: "y2" }) : [],
          Plot.dot(own.filter(off), { ...dot, fill: BACKGROUND }), Plot.dot(own.filter(on), { ...dot, fill: colour }),
        ];
      })],
    });
    const stops = stopsIn(svg, points, text);
    const named = d3.sort(few ? stops : [], (one) => -(2 * (one.pin >= 0) + on(one)), (one) => -one.y);
    writeNames(svg, named, stops, BESIDE, { left: 44, right: state.width, top: 12, bottom: height - 38 });
    const best = d3.sort(points.filter(on), (point) => -point.y)
      .map((point) => `${point.label} (${values(point, false)}${chance(point)})`);
    const more = best.length > 6 ? `; and ${best.length - 6} more` : "";
    const several = fronts.length > 1 ? ` ${fronts.length} fronts: lines of different conditions are not compared.` : "";
    const caption = "Filled: the Pareto front, where no other point is better at both: "
      + `${best.slice(0, 6).join("; ")}${more}.${several} `
      + (data.fronts[state.cost] ? "The probability to be on it is by bootstrap, among all lines of the condition. " : "")
      + (few ? "Lines through points are 95 % intervals." : `Filter to see names and intervals: ${count} have no room.`);
    const alternative = `accuracy against ${x.name}, ${count}, ${front.size} on a Pareto front`;
    return explorable("tradeoffs", svg, stops, alternative, caption);
  }

  /* 231x240 is the size of a square image of as many pixels */
  function extentOf(of, line) {
    const sides = String(valueOf(of, line) ?? "").split("x").map(Number);
    return sides[0] > 0 ? Math.sqrt(sides[0] * sides.at(-1)) : null;
  }

  /* above each x one cross for each pinned model and status, and one for all others, in rows */
  function crossesOf(failed, key) {
    return d3.sort(d3.groups(failed, (point) => point.x), ([x]) => x).flatMap(([, there]) =>
      d3.sort(d3.groups(there, key), ([, some]) => -some[0].pin).map(([, some], row) => ({ some, row })));
  }

  function scaling(data, lines, state) {
    const [x, y] = [column(data, state.over), column(data, state.y)];
    const has = (line) => extentOf(x, line) !== null && valueOf(y, line) > 0;
    const fails = (line) => extentOf(x, line) !== null && valueOf(y, line) === null && y?.status?.[line] !== undefined;
    const drawn = lines.filter((line) => has(line) || fails(line));
    const positions = d3.sort(new Set(drawn.map((line) => extentOf(x, line))));
    if (!drawn.some(has) || positions.length < 2) {
      const elsewhere = (line) => has(line) && !positions.includes(extentOf(x, line));
      const what = `${y?.name ?? state.y} at two values of ${x?.name ?? state.over}`;
      return nothing(data, elsewhere, what);
    }
    const by = varying(data, drawn, state.over === "patches" ? "image_size" : state.over);
    const all = pointsOf(data, drawn, x, y, by, state)
      .map((point) => ({ ...point, x: extentOf(x, point.line) }));
    const [points, failed] = [all.filter((point) => has(point.line)), all.filter((point) => fails(point.line))];
    const few = points.length <= MOST_POINTS;
    const at = (point) => `${point.name}, ${x.name} ${valueOf(x, point.line)} ${x.unit}`.trim();
    const text = (point) => `${at(point)}: ${quantity(y, point.line)}${pinned(point)}`;
    const why = (point) => {
      const reason = y.reason?.[point.line] ?? column(data, "status")?.reason?.[point.line] ?? "";
      return `${at(point)}: ${[y.status[point.line], plain(reason)].filter(Boolean).join(", ")}${pinned(point)}`;
    };
    const crosses = crossesOf(failed, (point) => `${point.pin} ${y.status[point.line]}`);
    const marginTop = 24 + 14 * (d3.max(crosses, (one) => one.row + 1) ?? 0);
    const height = Math.min(Math.max(state.width * 0.4, 260), 380) + marginTop;
    const marginRight = Math.min(200, state.width * 0.3);
    const most = Math.ceil((positions.length * 40) / (state.width - marginRight));
    const svg = picture(state, height, {
      x: { ...scaleOf(positions, heading(x), 5, true), ticks: positions.filter((_, place) => place % most === 0) },
      y: scaleOf(points.map((point) => point.y), heading(y), 8, true), marginRight, marginTop,
      marks: looks(data, state).map(({ pin, colour, symbol, r, width }) => {
        const own = d3.sort(points.filter((point) => point.pin === pin), (point) => point.x);
        const [place, strokeOpacity] = [{ x: "x", y: "y", stroke: colour }, pin >= 0 ? 1 : few ? 0.6 : 0.2];
        return [
          Plot.line(own, { ...place, z: "name", strokeWidth: width, strokeOpacity }),
          pin < 0 ? [] : Plot.ruleX(own, { x: "x", y1: "y1", y2: "y2", stroke: colour }),
          few ? Plot.dot(own, { ...place, symbol, r: pin < 0 ? 2 : r, fill: BACKGROUND, title: text }) : [],
        ];
      }),
    });
    const stops = stopsIn(svg, points, text);
    const above = d3.select(svg).append("g").attr("class", "failed");
    const taken = []; // by row, up to which px
    const ends = crosses.map(({ some, row }) => {
      const [first, px, py] = [some[0], svg.scale("x").apply(some[0].x), marginTop - 10 - 14 * row];
      const full = some.slice(0, 12).map(why).join("; ") + (some.length > 12 ? `; and ${some.length - 12} more` : "");
      const words = `${some.length > 1 ? `${some.length} ` : ""}× ${y.status[first.line]}`;
      const word = px - widthOf(words) / 2 > (taken[row] ?? 0) ? words : "×";
      taken[row] = px + widthOf(word) / 2 + 4;
      write(above, word, full, px, py + 4, "middle", textColour(first));
      return { ...first, px, py, text: () => full };
    });
    const last = d3.groups(stops, (one) => one.name).map(([, some]) => d3.greatest(some, (one) => one.x));
    const named = d3.sort(last.filter((one) => few || one.pin >= 0), (one) => -one.pin, (one) => one.py);
    writeNames(svg, named, few ? stops : [], BEHIND, { left: 44, right: state.width, top: marginTop - 6, bottom: height - 30 });
    const caption = `${heading(y)} over ${heading(x)}, both logarithmic, one line a model${by.length ? " and condition" : ""}.`
      + (y.low ? " Lines through pinned points are 95 % intervals." : "")
      + (failed.length ? " Crosses above: what failed there." : "")
      + (few ? "" : ` Filter to see points and names: ${points.length.toLocaleString("en")} have no room.`);
    const alternative = `${y.name} over ${x.name}, ${plural(last.length, "line")}, ${plural(failed.length, "failure")}`;
    return explorable("scaling", svg, [...stops, ...ends], alternative, caption);
  }

  function spread(data, lines, state) {
    const latency = column(data, "latency");
    const has = (line) => data.spread[line] !== undefined;
    const all = lines.filter(has);
    if (!all.length) return nothing(data, has, "the latencies of single calls");
    const alone = { unit: latency.unit, values: d3.range(data.lines) }; // its lines as places, without intervals
    const rows = pointsOf(data, all, alone, alone, varying(data, all), state)
      .map((point) => ({ ...point, q: data.spread[point.line], x: data.spread[point.line][3] }));
    const shown = d3.sort(d3.sort(rows, (row) => -(row.pin >= 0), (row) => row.x).slice(0, MOST_ROWS), (row) => row.x);
    const marginLeft = Math.floor(Math.min(400, state.width * 0.34));
    const at = (row, place) => `${+row.q[place].toPrecision(3)} ${latency.unit}`;
    const text = (row) => `${row.name}: median ${at(row, 3)}, middle half ${at(row, 2)} to ${at(row, 4)}, `
      + `99 % of calls within ${at(row, 6)}${pinned(row)}`;
    const svg = picture(state, 42 + 22 * shown.length, {
      x: scaleOf(shown.flatMap((row) => [row.q[0], row.q[6]]), heading(latency), (state.width - marginLeft) / 60),
      y: { type: "band", domain: shown.map((row) => row.line) }, marginLeft, marginTop: 4,
      marks: looks(data, state).map(({ pin, colour, symbol }) => {
        const own = shown.filter((row) => row.pin === pin);
        const bar = (from, to, strokeWidth) => Plot.ruleY(own, {
          y: "y", x1: (row) => row.q[from], x2: (row) => row.q[to], stroke: colour, strokeWidth, title: text,
        });
        const median = pin < 0
          ? Plot.tickX(own, { x: "x", y: "y", stroke: BACKGROUND, strokeWidth: 2 })
          : Plot.dot(own, { x: "x", y: "y", symbol, r: 4.5, stroke: colour, strokeWidth: 2, fill: BACKGROUND });
        return [bar(0, 6, 1), bar(1, 5, 3), bar(2, 4, 9), median];
      }),
    });
    const [stops, names] = [stopsIn(svg, shown, text), d3.select(svg).append("g")];
    for (const one of stops) {
      const label = widthOf(one.label) < marginLeft - 12 ? one.label : shortened(one.name, Math.floor(marginLeft / 8));
      write(names, label, one.name, marginLeft - 8, one.py + 4, "end", textColour(one));
    }
    const caption = "How single calls scatter, after the warm-up, all processes together. Thin: 1st to 99th percentile; "
      + "middle: 10th to 90th; thick: 25th to 75th; gap or symbol: the median."
      + (all.length > shown.length ? ` Drawn are the pinned and the fastest, ${MOST_ROWS} of ${all.length} lines.` : "");
    return explorable("spread", svg, stops, `how single latencies scatter, ${plural(shown.length, "line")}`, caption);
  }

  /* what is drawn of trainings: of long ones one step in `every`. Names are the model and what not all share. */
  function trainingsOf(curves, state, every, letters) {
    const pins = new Map(state.pins.map((model, place) => [model, place]));
    const parts = (curve) => curve.label.split(", ");
    const shared = curves.map(parts).reduce((some, other) => some.filter((part) => other.includes(part)));
    const half = (WINDOW - 1) / 2;
    return curves.map((curve, line) => {
      const mean = (place) => d3.mean(curve.loss.slice(Math.max(place - half, 0), place + half + 1));
      const steps = d3.range(0, curve.steps.length, every)
        .map((place) => ({ line, x: curve.steps[place], loss: curve.loss[place], y: mean(place) }));
      const own = parts(curve).filter((part) => part !== curve.model && !shared.includes(part));
      const label = isolated(shortened([curve.model, ...own].join(", "), letters));
      const [{ x, y }, pin] = [steps.at(-1), pins.get(curve.model) ?? -1];
      return { line, model: curve.model, name: isolated(curve.label), label, pin, steps, x, y };
    });
  }

  function training(data, shown, state) {
    const curves = shown.filter((one) => one.loss.length);
    if (!curves.length) return nothing(data, () => data.curves.some((one) => one.loss.length), "the losses of a training");
    const every = Math.ceil(d3.max(curves, (one) => one.steps.length) / MOST_STEPS);
    const marginRight = Math.min(270, state.width * 0.3);
    const drawn = trainingsOf(curves, state, every, Math.floor(marginRight / 7));
    const steps = drawn.flatMap((one) => one.steps);
    const span = d3.extent(steps, (one) => one.x);
    const height = Math.min(Math.max(state.width * 0.35, 260), 340);
    const ticks = d3.ticks(...span, (state.width - marginRight) / 100);
    const svg = picture(state, height, {
      x: { type: "linear", domain: span, label: "optimizer step", ticks },
      y: scaleOf(steps.map((one) => one.loss), "training loss (nat)", 7, false), marginRight,
      marks: looks(data, state).map(({ pin, colour, symbol, r, width }) => {
        const mine = drawn.filter((one) => one.pin === pin);
        const own = mine.flatMap((one) => one.steps);
        const look = { x: "x", z: "line", stroke: colour };
        return [
          Plot.line(own, { ...look, y: "loss", strokeWidth: 0.7, strokeOpacity: 0.4 }),
          Plot.line(own, { ...look, y: "y", strokeWidth: width + 0.4, strokeOpacity: pin < 0 ? 0.7 : 1 }),
          pin < 0 ? [] : Plot.dot(mine, { x: "x", y: "y", symbol, r, stroke: colour, strokeWidth: width, fill: BACKGROUND }),
        ];
      }),
    });
    const text = (one) =>
      `${one.name}: training loss ${+one.y.toPrecision(3)} nat, the mean around step ${one.x}${pinned(one)}`;
    const stops = stopsIn(svg, drawn, text);
    const frame = { left: 44, right: state.width, top: 12, bottom: height - 30 };
    writeNames(svg, d3.sort(stops, (one) => -one.pin, (one) => one.py), stops, BEHIND, frame);
    const caption = `Training loss (nat) of each optimizer step, thin, and its running mean of ${WINDOW} steps, thick.`
      + (every > 1 ? ` One step in ${every} is drawn.` : "");
    return explorable("training", svg, stops, `training loss of ${plural(curves.length, "training")}`, caption);
  }

  return { tradeoffs, scaling, spread, training, quantity };
})();
