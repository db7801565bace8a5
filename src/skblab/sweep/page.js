"use strict";
/* What a packet or a program says comes into the page by textContent alone. */
(() => {
  const { about, head, rows, others, baseline, cells, lines } = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const LEFT = 90, WIDTH = 420, ROW = 22, MARGIN = 26;

  const make = (tag, text = "", name = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  const drawn = (tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const shade = (cell) => (cell.bad ? "bad" : cell.kind === "faster" ? "slower" : cell.kind);

  /* The options of TCP take more room than all the rest. */
  const short = (line) => line.replace(/, options \[[^\]]*\]/, "");
  const text = (numbers) => numbers.map((number) => lines[number]).join("");

  function talk(outcome) {
    const svg = $("talk"), ends = [];
    for (const [, from, to] of outcome.packets) for (const end of [from, to]) if (!ends.includes(end)) ends.push(end);
    const gap = ends.length > 1 ? WIDTH / (ends.length - 1) : 0;
    const place = (end) => LEFT + ends.indexOf(end) * gap;
    const height = MARGIN + 14 + outcome.packets.length * ROW, right = LEFT + WIDTH + 70;
    svg.replaceChildren();
    svg.setAttribute("width", right + 900);
    svg.setAttribute("height", height + 10);
    for (const end of ends) {
      svg.append(drawn("text", { x: place(end), y: 14, "text-anchor": "middle" }, end));
      svg.append(drawn("line", { x1: place(end), x2: place(end), y1: 20, y2: height, class: "life" }));
    }
    outcome.packets.forEach(([at, from, to, line, verdict], number) => {
      const y = MARGIN + 14 + number * ROW, name = verdict ? "fault" : "", x1 = place(from), x2 = place(to);
      const way = x2 >= x1 ? 1 : -1, lost = verdict.startsWith("drop"), end = lost ? (x1 + x2) / 2 : x2;
      svg.append(drawn("text", { x: 4, y: y + 4, class: "soft" }, at.toFixed(3)));
      svg.append(drawn("line", { x1, x2: end, y1: y, y2: y, class: name }));
      if (lost) svg.append(drawn("text", { x: end, y: y + 4, "text-anchor": "middle", class: "fault" }, "\u2715"));
      else svg.append(drawn("path", { d: `M${end},${y} l${-8 * way},-4 v8 z`, class: name }));
      svg.append(drawn("text", { x: right, y: y + 4, class: name }, (verdict ? `${verdict}: ` : "") + short(lines[line])));
    });
  }

  function show(cell, button) {
    for (const one of document.querySelectorAll("button.chosen")) one.classList.remove("chosen");
    if (button) button.classList.add("chosen");
    $("name").textContent = cell.name;
    const how = cell.end === "ended" ? `status ${cell.status}, ${cell.duration.toFixed(6)} s` : `${cell.end}: ${cell.why}`;
    $("outcome").textContent = [cell.words, how, ...cell.complaints].filter(Boolean).join("; ");
    $("command").textContent = cell.command;
    $("now").textContent = text(cell.now);
    $("before").textContent = text(cell.before);
    const differing = cell.counters.map(([name, before, now]) => {
      const row = make("tr");
      row.append(make("td", name), make("td", before, "number"), make("td", now, "number"));
      return row;
    });
    const top = make("tr");
    top.append(make("th", "counter"), make("th", about.before), make("th", about.now));
    $("counters").replaceChildren(top, ...differing);
    talk(cell);
  }

  function button(cell, text) {
    const element = make("button", text, shade(cell));
    element.addEventListener("click", () => show(cell, element));
    return element;
  }

  $("client").textContent = about.client;
  $("about").textContent = about.line;
  $("heading").textContent = about.heading;
  $("nowhead").textContent = about.now;
  $("beforehead").textContent = about.before;
  for (const [name, words] of about.legend) $("legend").append(make("i", "", name), ` ${words} `);
  const top = make("tr");
  top.append(...head.map((heading) => make("th", heading)));
  $("map").append(top);
  for (const [values, numbers] of rows) {
    const element = make("tr");
    for (const value of values) element.append(make("td", short(String(value)), Number.isNaN(Number(value)) ? "" : "number"));
    for (const number of numbers) {
      const place = make("td");
      place.append(number === null ? "-" : button(cells[number], cells[number].short || cells[number].words));
      element.append(place);
    }
    $("map").append(element);
  }
  const [heading, numbers] = others;
  if (numbers.length) $("others").append(make("h3", heading));
  for (const number of numbers) $("others").append(button(cells[number], `${cells[number].name}: ${cells[number].words}`));
  const first = cells.find((cell) => cell.bad) || baseline;
  if (first) show(first, document.querySelector("button.bad"));
})();
