"use strict";
/* What a packet says comes into the page by textContent alone. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { about, functions, journeys, packets, steps, notes, bytes, lines, stacks } = data;
  const $ = (id) => document.getElementById(id);
  const JOURNEY_PX = 58, CALL_PX = 21, LANE_PX = 15;

  const make = (tag, text = "", name = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  const span_of = (ns) =>
    ns < 0 ? "" : ns < 1e3 ? `${ns} ns` : ns < 1e6 ? `${(ns / 1e3).toFixed(2)} us`
      : ns < 1e9 ? `${(ns / 1e6).toFixed(3)} ms` : `${(ns / 1e9).toFixed(3)} s`;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /* A list of which only the rows in sight are elements; it keeps one row chosen, and is worked by keys. */
  class Rows {
    constructor(element, height, draw, chose) {
      Object.assign(this, { element, height, draw, chose, items: [], at: 0 });
      this.room = element.appendChild(make("div"));
      element.addEventListener("scroll", () => this.paint());
      new ResizeObserver(() => this.paint()).observe(element);
      element.addEventListener("click", (event) => {
        const row = event.target.closest(".row");
        if (row) this.choose(Number(row.dataset.at));
      });
      element.addEventListener("keydown", (event) => {
        const page = Math.max(1, Math.floor(element.clientHeight / height) - 1);
        const move = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity }[event.key];
        if (!move || !this.items.length) return;
        event.preventDefault();
        this.choose(Math.min(this.items.length - 1, Math.max(0, this.at + move)));
      });
    }
    show(items, at = 0) {
      this.items = items;
      this.at = at;
      this.room.style.height = `${items.length * this.height}px`;
      this.reveal();
      this.paint();
    }
    choose(at) {
      this.at = at;
      this.reveal();
      this.paint();
      this.chose(this.items[at]);
    }
    reveal() {
      const top = this.at * this.height, bottom = top + this.height, view = this.element;
      if (top < view.scrollTop) view.scrollTop = top;
      else if (bottom > view.scrollTop + view.clientHeight) view.scrollTop = bottom - view.clientHeight;
    }
    paint() {
      const first = Math.max(0, Math.floor(this.element.scrollTop / this.height) - 4);
      const last = Math.min(this.items.length, first + Math.ceil(this.element.clientHeight / this.height) + 9);
      const rows = [];
      for (let at = first; at < last; at++) {
        const row = make("div", "", at === this.at ? "row chosen" : "row");
        row.dataset.at = at;
        row.id = `${this.element.id}-${at}`;
        row.style.top = `${at * this.height}px`;
        row.setAttribute("aria-selected", at === this.at);
        this.draw(row, this.items[at]);
        rows.push(row);
      }
      this.room.replaceChildren(...rows);
      this.element.setAttribute("aria-activedescendant", `${this.element.id}-${this.at}`);
    }
  }

  /* Header */
  $("command").textContent = about.command || "trace";
  $("about").textContent = [
    `Linux ${about.release}`, about.filter && `filter: ${about.filter}`, `${journeys.length} journeys`,
    `${Object.keys(packets).length} packets`, `${steps.at.length} steps`,
    about.lost === undefined || about.lost === null ? "not whole" : `events lost: ${about.lost}`,
    new Date(about.begin_ms).toISOString().replace("T", " ").replace(/\.\d+/, ""),
  ].filter(Boolean).join(" \u00b7 ");

  /* Journeys: what the packet is stands first, for a narrow list cuts the line's end off. */
  const parts = (summary) => {
    const at = summary.indexOf(": ");
    return at < 0 || !summary.slice(0, at).includes(" > ") ? ["", summary] : [summary.slice(0, at), summary.slice(at + 2)];
  };
  const journey_rows = new Rows($("journeys"), JOURNEY_PX, (row, number) => {
    const journey = journeys[number];
    row.setAttribute("role", "option");
    const [ends, what] = parts(packets[journey.packet]?.summary ?? `packet ${journey.packet}`);
    row.append(make("b", what), make("span", ends, "ends"));
    const line = make("span", `${(journey.at / 1e6).toFixed(3)} ms   `);
    if (journey.dropped) line.append(make("span", `dropped: ${journey.dropped}`, "died"), "   ");
    line.append((journey.held ? `held ${span_of(journey.held)}   ` : "") + `took ${span_of(journey.took)}`);
    row.append(line);
  }, (number) => open(number));
  let found = [];

  const texts = new Map();
  const text_of = (number) => {
    if (!texts.has(number)) {
      const journey = journeys[number], names = new Set();
      for (let at = journey.first; at < journey.first + journey.count; at++) {
        names.add(functions[steps.function[at]][0]);
        for (const [, words] of notes[at] ?? []) names.add(words);
      }
      const summaries = journey.packets.map((one) => packets[one]?.summary ?? "");
      texts.set(number, [...summaries, ...names, journey.dropped].join("\n").toLowerCase());
    }
    return texts.get(number);
  };
  const search = () => {
    const wanted = $("search").value.trim().toLowerCase(), dropped = $("dropped").checked;
    found = [];
    for (let number = 0; number < journeys.length; number++)
      if ((!dropped || journeys[number].dropped) && (!wanted || text_of(number).includes(wanted))) found.push(number);
    $("count").textContent = found.length === journeys.length ? `${found.length}` : `${found.length} of ${journeys.length}`;
    const at = Math.max(0, found.indexOf(chosen));
    journey_rows.show(found, at);
    if (found.length && found[at] !== chosen) open(found[at]);
    plot();
  };

  /* One journey's calls */
  let chosen = -1, step = -1, view = [0, 1];
  const folded = new Set();
  const has_inner = (at, end) => at + 1 < end && steps.depth[at + 1] > steps.depth[at];
  const before = { value: "= ", drop: "drop: " };
  const call_rows = new Rows($("calls"), CALL_PX, (row, at) => {
    const journey = journeys[chosen], inner = has_inner(at, journey.first + journey.count);
    row.setAttribute("role", "treeitem");
    row.setAttribute("aria-level", steps.depth[at] + 1);
    if (inner) row.setAttribute("aria-expanded", !folded.has(at));
    row.append(make("span", (steps.at[at] / 1e3).toFixed(2), "time"));
    row.append(make("span", steps.took[at] < 0 ? "" : (steps.took[at] / 1e3).toFixed(2), "took"));
    row.append("\u00a0\u00a0".repeat(steps.depth[at]), make("span", inner ? (folded.has(at) ? "+ " : "- ") : "", "fold"));
    row.append(functions[steps.function[at]][0] + "()");
    for (const [kind, words] of notes[at] ?? [])
      if (kind !== "device" && kind !== "end") row.append(make("span", (before[kind] ?? "") + words, `note ${kind}`));
  }, (at) => look(at));

  const list_calls = () => {
    const journey = journeys[chosen], end = journey.first + journey.count, listed = [];
    for (let at = journey.first; at < end; at++) {
      listed.push(at);
      if (folded.has(at)) {
        const depth = steps.depth[at];
        while (at + 1 < end && steps.depth[at + 1] > depth) at++;
      }
    }
    call_rows.show(listed, Math.max(0, listed.indexOf(step)));
  };

  const open = (number) => {
    chosen = number;
    const journey = journeys[number];
    $("packet").textContent = packets[journey.packet]?.summary ?? "";
    $("family").replaceChildren(...journey.packets.map((one) =>
      make("li", `packet ${one}${packets[one].from ? ` from packet ${packets[one].from}: ${packets[one].summary}` : ""}`)));
    let last = 1;
    for (let at = journey.first; at < journey.first + journey.count; at++)
      last = Math.max(last, steps.at[at] + Math.max(0, steps.took[at]));
    view = [0, last];
    step = journey.first;
    list_calls();
    look(step);
    plot();
  };

  /* One step */
  const bytes_at = (at) => {
    const packet = steps.packet[at];
    let now = null, then = null, line;
    for (let place = at; place >= journeys[chosen].first; place--)
      if (steps.packet[place] === packet && bytes[place] !== undefined) {
        if (now === null) { now = bytes[place]; line = lines[place]; if (place !== at) break; } else { then = bytes[place]; break; }
      }
    const numbers = (hex) => Array.from({ length: (hex ?? "").length / 2 }, (_, n) => parseInt(hex.substr(2 * n, 2), 16));
    return [numbers(now), then === null ? null : numbers(then), line];
  };
  const dump = (now, then) => {
    const pre = document.createDocumentFragment();
    for (let line = 0; line < now.length; line += 16) {
      pre.append(line.toString(16).padStart(4, "0") + "  ");
      for (let at = line; at < Math.min(line + 16, now.length); at++) {
        const hex = now[at].toString(16).padStart(2, "0");
        pre.append(then && then[at] !== now[at] ? make("mark", hex) : hex, at % 2 ? " " : "");
      }
      pre.append(" ".repeat(41 - Math.floor(Math.min(16, now.length - line) * 2.5)));
      pre.append(now.slice(line, line + 16).map((b) => (b > 31 && b < 127 ? String.fromCharCode(b) : ".")).join("") + "\n");
    }
    return pre;
  };
  const pairs = (list, items) => list.replaceChildren(...items.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
  const look = (at) => {
    step = at;
    const [name, file, line, signature] = functions[steps.function[at]], said = notes[at] ?? [];
    $("function").textContent = `${name}()`;
    $("signature").textContent = `${signature}   ${file}:${line}`;
    const packet = steps.packet[at];
    const facts = [["at", span_of(steps.at[at])]];
    if (steps.took[at] >= 0) facts.push(["took", span_of(steps.took[at])]);
    if (packet) facts.push(["packet", `${packet}`], ["skb->len", `${steps.length[at]}`]);
    const names = { value: "returned", drop: "dropped", kin: "kin", change: "changed", device: "device", field: "field", held: "held", verdict: "verdict", end: "then" };
    for (const [kind, words] of said) facts.push([names[kind], words]);
    pairs($("facts"), facts);
    $("stack-title").hidden = !stacks[at];
    $("stack").replaceChildren(...(stacks[at] ?? []).map((frame) => make("li", frame)));
    const [now, then, [summary, header] = ["", {}]] = packet ? bytes_at(at) : [[], null];
    $("line").textContent = summary;
    pairs($("layers"), Object.entries(header).map(([name, value]) => [name, `${value}`]));
    $("bytes").replaceChildren(dump(now, then));
    timeline();
  };

  /* Pictures */
  const canvas_of = (id) => {
    const canvas = $(id), scale = devicePixelRatio || 1, { width, height } = canvas.getBoundingClientRect();
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "11px ui-monospace, monospace";
    return [pen, width, height];
  };
  let dots = [];
  const plot = () => {
    const [pen, width, height] = canvas_of("plot"), shown = new Set(found);
    const span = Math.max(1, journeys.at(-1)?.at ?? 1), most = Math.max(1000, ...journeys.slice(0, 50000).map((one) => one.took));
    const low = Math.log10(1000), high = Math.log10(most * 1.3);
    const y = (ns) => height - 8 - (height - 20) * (Math.log10(Math.max(1000, ns)) - low) / (high - low || 1);
    pen.fillStyle = colour("--soft");
    pen.strokeStyle = colour("--line");
    for (let power = 3; power <= high; power++) {
      pen.beginPath(); pen.moveTo(0, y(10 ** power)); pen.lineTo(width, y(10 ** power)); pen.stroke();
      pen.fillText(span_of(10 ** power).replace(/\.0+/, ""), 4, y(10 ** power) - 2);
    }
    dots = [];
    journeys.forEach((one, number) => {
      const x = 64 + (width - 76) * one.at / span;
      dots.push([x, y(one.took), number]);
      pen.globalAlpha = shown.has(number) ? 1 : 0.15;
      if (one.held) {
        pen.strokeStyle = colour("--held"); pen.lineWidth = 3;
        pen.beginPath(); pen.moveTo(x, y(one.took)); pen.lineTo(x, y(one.took - one.held)); pen.stroke();
      }
      pen.fillStyle = colour(one.dropped ? "--died" : "--accent");
      pen.beginPath(); pen.arc(x, y(one.took), number === chosen ? 5 : 2.5, 0, 7); pen.fill();
    });
    pen.globalAlpha = 1;
  };
  $("plot").addEventListener("click", (event) => {
    const box = $("plot").getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const nearest = dots.filter(([, , n]) => found.includes(n)).sort((a, b) => (a[0] - x) ** 2 + (a[1] - y) ** 2 - (b[0] - x) ** 2 - (b[1] - y) ** 2)[0];
    if (nearest) journey_rows.choose(found.indexOf(nearest[2]));
  });

  const shade = (file) => `hsl(${hue(file)} 55% ${document.documentElement.classList.contains("dark") ? 34 : 78}%)`;
  const hue = (file) => { let sum = 0; for (const letter of file) sum = (sum * 31 + letter.charCodeAt(0)) % 360; return sum; };
  const timeline = () => {
    const [pen, width, height] = canvas_of("timeline"), journey = journeys[chosen];
    if (!journey) return;
    const [from, to] = view, x = (ns) => (ns - from) / (to - from) * width, files = new Set();
    pen.fillStyle = colour("--soft");
    for (let part = 0; part < 5; part++) pen.fillText(span_of(Math.round(from + (to - from) * part / 5)), width * part / 5 + 3, 11);
    const deepest = Math.max(...Array.from({ length: journey.count }, (_, n) => steps.depth[journey.first + n]));
    const lane = Math.max(4, Math.min(LANE_PX, (height - 18) / (deepest + 1)));
    for (let at = journey.first; at < journey.first + journey.count; at++) {
      const left = x(steps.at[at]), wide = Math.max(1, x(steps.at[at] + Math.max(0, steps.took[at])) - left);
      if (left > width || left + wide < 0) continue;
      const top = 16 + steps.depth[at] * lane, [name, file] = functions[steps.function[at]];
      pen.fillStyle = shade(file);
      files.add(file);
      pen.fillRect(left, top, wide, lane - 1);
      if (at === step) { pen.strokeStyle = colour("--accent"); pen.lineWidth = 2; pen.strokeRect(left, top, wide, lane - 1); }
      if (wide > 34 && lane >= 11) {
        pen.save(); pen.beginPath(); pen.rect(left, top, wide, lane); pen.clip();
        pen.fillStyle = colour("--ink"); pen.fillText(name, Math.max(left, 0) + 3, top + lane - 4); pen.restore();
      }
    }
    timeline.lane = lane;
    $("files").replaceChildren(...[...files].map((file) => {
      const item = make("li", file);
      item.style.setProperty("--shade", shade(file));
      return item;
    }));
  };
  const zoom = (factor, at = 0.5) => {
    const [from, to] = view, centre = from + (to - from) * at, span = Math.max(50, (to - from) * factor);
    view = [centre - span * at, centre + span * (1 - at)];
    timeline();
  };
  const whole = () => { const keep = step; open(chosen); step = keep; list_calls(); look(keep); };
  const pan = (share) => { const by = (view[1] - view[0]) * share; view = [view[0] + by, view[1] + by]; timeline(); };
  $("timeline").addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, event.offsetX / $("timeline").clientWidth);
  }, { passive: false });
  let dragged = null;
  $("timeline").addEventListener("pointerdown", (event) => { dragged = [event.clientX, 0]; $("timeline").setPointerCapture(event.pointerId); });
  $("timeline").addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const by = event.clientX - dragged[0];
    dragged = [event.clientX, dragged[1] + Math.abs(by)];
    pan(-by / $("timeline").clientWidth);
  });
  $("timeline").addEventListener("pointerup", (event) => {
    const moved = dragged?.[1] ?? 9;
    dragged = null;
    if (moved > 4) return;
    const ns = view[0] + (view[1] - view[0]) * event.offsetX / $("timeline").clientWidth;
    const depth = Math.floor((event.offsetY - 16) / timeline.lane), journey = journeys[chosen];
    for (let at = journey.first; at < journey.first + journey.count; at++)
      if (steps.depth[at] === depth && steps.at[at] <= ns && ns <= steps.at[at] + Math.max(0, steps.took[at])) {
        const row = call_rows.items.indexOf(at);
        if (row >= 0) call_rows.choose(row);
      }
  });

  /* Keys */
  $("calls").addEventListener("keydown", (event) => {
    const journey = journeys[chosen];
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      if (event.key === "ArrowRight") folded.delete(step);
      else if (has_inner(step, journey.first + journey.count) && !folded.has(step)) folded.add(step);
      else for (let at = step; at >= journey.first; at--) if (steps.depth[at] < steps.depth[step]) { look(at); break; }
      list_calls();
    }
  });
  $("journeys").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); $("calls").focus(); } });
  const theme = (dark) => {
    document.documentElement.classList.toggle("dark", dark);
    $("theme").setAttribute("aria-pressed", dark);
    $("theme").textContent = dark ? "Light" : "Dark";
    plot();
    timeline();
  };
  const help = () => { const keys = $("keys"); keys.hidden = !keys.hidden; $("help").setAttribute("aria-expanded", !keys.hidden); };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { $("search").blur(); $("journeys").focus(); return; }
    if (event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = {
      "/": () => $("search").focus(), "?": help, d: () => theme(!document.documentElement.classList.contains("dark")),
      "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1.6), 0: whole, ",": () => pan(-0.2), ".": () => pan(0.2),
    }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", (event) => { if (event.key === "Enter") $("journeys").focus(); });
  $("dropped").addEventListener("change", search);
  $("theme").addEventListener("click", () => theme(!document.documentElement.classList.contains("dark")));
  $("help").addEventListener("click", help);
  addEventListener("resize", () => { plot(); timeline(); });
  theme(matchMedia("(prefers-color-scheme: dark)").matches);
  search();
  $("journeys").focus();
  document.documentElement.dataset.ready = "1";
})();
