"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const island = JSON.parse(document.getElementById("island").textContent);
  const spacer = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
  const $ = (selector, inside) => [...(inside || document).querySelectorAll(selector)];
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const className = (index) => (index < 0 ? "another class" : island.classes[index]);
  const percent = (score) => (score === null ? "" : `${(100 * score).toFixed(score > 0.995 ? 1 : 0)} %`);

  // Sorts a table by the column of the pressed heading.
  const sort = (button) => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const column = [...heading.parentNode.children].indexOf(heading);
    const number = button.dataset.sort === "n";
    const down = heading.getAttribute("aria-sort") === "descending";
    const value = (row) => {
      const cell = row.children[column];
      const text = cell.dataset.v !== undefined ? cell.dataset.v : cell.textContent.trim();
      return number ? parseFloat(text.replace(/,/g, "").replace("−", "-")) || 0 : text;
    };
    const rows = [...body.rows].map((row) => [value(row), row]);
    rows.sort((one, other) => (number ? one[0] - other[0] : one[0].localeCompare(other[0], undefined, {numeric: true})));
    if (number !== down) rows.reverse();
    for (const [, row] of rows) body.append(row);
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", number !== down ? "descending" : "ascending");
  };

  // A picture with its caption.
  const card = (row) => {
    const known = island.pictures[row];
    const item = make("li", "card");
    const button = make("button", "pic");
    button.type = "button";
    button.dataset.picture = row;
    button.title = known.path;
    button.append(image(known, ""));
    const text = make("span", "what");
    const says = make("span");
    says.append(make("span", `tag ${known.isNew ? "new" : "old"}`), make("b", "", className(known.after[0][0])));
    says.append(make("span", "muted", percent(known.after[0][1])));
    const line = make("span", "muted");
    line.append(make("span", "cut", known.before.length ? `before: ${className(known.before[0][0])}` : `labelled ${className(known.label)}`));
    text.append(says, line);
    item.append(button, text);
    return item;
  };
  const image = (known, extra) => {
    if (!known.k) return make("span", `hole ${extra}`, `${known.alt}: ${known.why}`);
    const element = make("img", `${known.k} ${extra}`);
    element.src = spacer;
    element.alt = known.alt;
    return element;
  };
  const list = (panel, title, rows, count) => {
    panel.append(make("h3", "", title));
    const cards = make("ul", "cards");
    cards.append(...rows.map(card));
    panel.append(cards);
    if (rows.length < count) panel.append(make("p", "small muted", `${rows.length} of ${count} shown.`));
  };
  const open = (host, fill) => {
    const panel = make("div", "panel");
    fill(panel);
    const close = make("button", "btn", "close");
    close.type = "button";
    close.addEventListener("click", () => {
      host.replaceChildren();
      for (const pressed of $("[aria-pressed]")) pressed.removeAttribute("aria-pressed");
    });
    panel.append(close);
    host.replaceChildren(panel);
    panel.scrollIntoView({block: "nearest"});
  };
  const press = (button) => {
    for (const pressed of $("[aria-pressed]")) pressed.removeAttribute("aria-pressed");
    button.setAttribute("aria-pressed", "true");
  };
  const number = (button) => (button ? Math.abs(parseInt(button.textContent.replace("−", "-").replace(/,/g, ""), 10)) : 0);

  const showCell = (button) => {
    press(button);
    const key = button.dataset.cell;
    const which = button.closest("table").dataset.matrix;
    const [row, column] = key.split(",").map(Number);
    const what = row === column ? `${island.names[row]}, ${island.condensed && row === island.names.length - 1 ? "among themselves" : "recognised"}` : `${island.names[row]} taken for ${island.names[column]}`;
    const rows = (side) => (island.cells[side] || {})[key] || [];
    const count = (side) => number(document.querySelector(`[data-matrix="${side}"] [data-cell="${key}"]`));
    open(document.getElementById("cell"), (panel) => {
      if (which !== "difference") {
        list(panel, `${what}: ${count(which)} ${which}`, rows(which), count(which));
        return;
      }
      for (const [side, words] of [["came", "came into the cell"], ["left", "left it"]]) {
        const moved = (island.moved[side] || {})[key] || 0;
        list(panel, `${what}: ${moved} ${words}`, rows(side), moved);
      }
    });
  };
  const showPair = (button) => {
    const key = button.dataset.pair;
    const [label, answer] = key.split(",").map(Number);
    const [before, after] = button.dataset.counts.split(",");
    open(document.getElementById("pair"), (panel) => {
      const what = `${className(label)} taken for ${className(answer)}`;
      for (const [side, count] of [["after", after], ["before", before]])
        if (island.pairs[side] && count) list(panel, `${what}: ${count} ${side}`, island.pairs[side][key] || [], Number(count));
    });
  };

  // A picture in large, with both models' answers and its path.
  const zoom = (row) => {
    const known = island.pictures[row];
    const body = document.getElementById("zoom-body");
    document.getElementById("zoom-title").textContent = `labelled ${className(known.label)}`;
    const answers = make("div", "answers");
    for (const [title, top] of [["before", known.before], ["now", known.after]]) {
      if (!top.length) continue;
      const column = make("div");
      column.append(make("b", "", title));
      const list = make("ol");
      for (const [index, score] of top) {
        const line = make("li", index === known.label ? "better" : "", `${percent(score)} ${className(index)}`);
        list.append(line);
      }
      column.append(list);
      answers.append(column);
    }
    const path = make("span", "codeline");
    path.append(make("span", "code", known.path));
    const copy = make("button", "btn", "copy");
    copy.type = "button";
    copy.dataset.copy = known.path;
    path.append(copy);
    body.replaceChildren(image(known, "zoom"), make("p", "muted small", known.isNew ? "a new picture" : "an old picture"), answers, path, make("p"));
    document.getElementById("zoom").showModal();
  };

  const copyText = (text, button) => {
    const done = () => {
      const was = button.textContent;
      button.textContent = "copied";
      setTimeout(() => (button.textContent = was), 1200);
    };
    const byHand = () => {
      const field = make("textarea");
      field.value = text;
      (button.closest("dialog") || document.body).append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
      done();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand);
    else byHand();
  };

  // Galleries: which cards are shown.
  const opened = new Set();
  const filter = () => {
    const origin = document.getElementById("by-origin").value;
    const label = document.getElementById("by-class").value;
    for (const gallery of $("[data-gallery]")) {
      const key = gallery.dataset.gallery;
      let shown = 0;
      const cards = $(".card", gallery);
      for (const each of cards) {
        const fits = (!origin || each.dataset.origin === origin) && (!label || each.dataset.label === label);
        const filtered = origin || label;
        each.hidden = !fits || (!filtered && !opened.has(key) && "more" in each.dataset);
        shown += !each.hidden;
      }
      const line = document.querySelector(`[data-shown="${key}"]`);
      line.dataset.of = line.dataset.of || line.textContent.replace(/^\S+ of /, "");
      line.textContent = `${shown} of ${line.dataset.of}`;
      document.querySelector(`[data-all="${key}"]`).hidden = cards.every((each) => !("more" in each.dataset) || !each.hidden) || Boolean(origin || label);
    }
  };

  // Tables of many classes: the rows whose name contains a text.
  for (const field of $("[data-filter]"))
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase();
      for (const row of $(`#${field.dataset.filter} .scroll tbody tr`))
        row.hidden = !row.cells[0].title.toLowerCase().includes(wanted);
    });

  // Charts: the values at the epoch under the pointer.
  for (const box of $("[data-chart]")) {
    const points = island.charts[box.dataset.chart] || [];
    const svg = box.querySelector("svg");
    const hair = box.querySelector(".hair");
    const tip = box.querySelector(".tip");
    const width = svg.viewBox.baseVal.width;
    const hide = () => {
      hair.style.visibility = "hidden";
      tip.style.display = "none";
    };
    box.addEventListener("pointerleave", hide);
    addEventListener("resize", hide);
    box.addEventListener("pointermove", (event) => {
      const bounds = svg.getBoundingClientRect();
      const x = ((event.clientX - bounds.left) / bounds.width) * width;
      let near = null;
      for (const point of points) if (!near || Math.abs(point.x - x) < Math.abs(near.x - x)) near = point;
      if (!near || Math.abs(near.x - x) > 60) return hide();
      hair.setAttribute("x1", near.x);
      hair.setAttribute("x2", near.x);
      hair.style.visibility = "visible";
      tip.replaceChildren(make("b", "", near.title), ...near.values.map(([key, name, value]) => make("div", `c-${key}`, `${name} ${value}`)));
      tip.style.display = "block";
      const at = (near.x / width) * bounds.width;
      tip.style.left = `${Math.max(0, at > bounds.width / 2 ? at - tip.offsetWidth - 10 : at + 10)}px`;
    });
  }

  document.addEventListener("click", (event) => {
    const target = event.target.closest("button");
    if (!target) return;
    const data = target.dataset;
    if (data.sort) sort(target);
    else if (data.cell) showCell(target);
    else if (data.pair) showPair(target);
    else if (data.picture) zoom(data.picture);
    else if (data.copy !== undefined) copyText(data.copy, target);
    else if (data.all) {
      opened.add(data.all);
      filter();
    }
  });
  document.getElementById("zoom").addEventListener("click", (event) => {
    if (event.target.id === "zoom") event.target.close();
  });
  if (document.getElementById("by-origin")) {
    for (const id of ["by-origin", "by-class"]) document.getElementById(id).addEventListener("change", filter);
    filter();
  }
})();
