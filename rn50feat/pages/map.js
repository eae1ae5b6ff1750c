"use strict";
// Draws the points of a map, and shows the images behind them. Needs no network: `data` is part of the page.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

function decode(text, Kind) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Kind(bytes.buffer);
}

const xy = decode(data.xy, Uint16Array);
const near = decode(data.near, Int32Array);
const [folder, group, cluster] = [data.folder, data.group, data.cluster].map((text) => decode(text, Int32Array));
const names = data.names.split("\n");
const count = names.length;
const thumbs = new Map(data.thumbs);
const source = folder.map((number) => data.folders[number][2]);

// ---- Names and images

const path = (i) => data.folders[folder[i]][0] + names[i];

function address(i) {
  const [, start] = data.folders[folder[i]];
  const name = i in data.odd ? data.odd[i] : encodeURIComponent(names[i]);
  return start === null || !name ? "" : start + name;
}

function element(tag, settings = {}, ...children) {
  const made = Object.assign(document.createElement(tag), settings);
  made.append(...children);
  return made;
}

// The thumbnail, if the page has one, and above it the file, if it is on this machine.
function picture(i) {
  const frame = element("span", { className: "frame" });
  if (thumbs.has(i)) frame.append(element("img", { src: "data:image/jpeg;base64," + thumbs.get(i), alt: "" }));
  if (address(i)) {
    const whole = element("img", { src: address(i), alt: "", className: "whole" });
    whole.onerror = () => whole.remove();
    frame.append(whole);
  }
  return frame;
}

// A name wraps after its separators, and not inside its suffix.
function wrapping(text) {
  const parts = text.match(/[^/_.-]*[/_.-]*/g).filter(Boolean);
  if (parts.length > 1 && parts.at(-2).endsWith(".")) parts.push(parts.splice(-2).join(""));
  return parts.flatMap((part) => [part, element("wbr")]).slice(0, -1);
}

const decoded = new Map(); // thumbnails that can be drawn, null for those that are being decoded

// ---- The view: screen = point * scale + offset, in CSS pixels

const canvas = byId("canvas");
const context = canvas.getContext("2d", { alpha: false });
const view = { scale: 1, x: 0, y: 0 };
const spread = 65535;
let width, height, ratio, pixels, buffer, smallest;
let asked = false;

function redraw() {
  if (!asked) requestAnimationFrame(() => { asked = false; draw(); });
  asked = true;
}

function fit() {
  const box = canvas.getBoundingClientRect();
  const before = ratio;
  [width, height, ratio] = [box.width, box.height, Math.min(devicePixelRatio || 1, 2)];
  if (ratio !== before) decoded.clear();
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  pixels = context.createImageData(canvas.width, canvas.height);
  buffer = new Uint32Array(pixels.data.buffer);
  smallest = Math.min(width, height) / spread / 1.1;
  if (view.scale < smallest || !view.fitted) show(0, 0, spread, spread);
  view.fitted = true;
  redraw();
}

// Show a part of the map as large as there is room.
function show(left, top, right, bottom) {
  const room = 0.9 * Math.min(width / Math.max(right - left, 400), height / Math.max(bottom - top, 400));
  view.scale = Math.max(room, smallest);
  view.x = width / 2 - view.scale * (left + right) / 2;
  view.y = height / 2 - view.scale * (top + bottom) / 2;
  redraw();
}

function showPoints(points) {
  const box = [spread, spread, 0, 0];
  for (const i of points) {
    box[0] = Math.min(box[0], xy[2 * i]);
    box[1] = Math.min(box[1], xy[2 * i + 1]);
    box[2] = Math.max(box[2], xy[2 * i]);
    box[3] = Math.max(box[3], xy[2 * i + 1]);
  }
  if (points.length) show(...box);
}

function zoom(factor, x = width / 2, y = height / 2) {
  const scale = Math.min(Math.max(view.scale * factor, smallest / 2), 4);
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  redraw();
}

function pan(x, y) {
  view.x += x;
  view.y += y;
  redraw();
}

const screenX = (i) => xy[2 * i] * view.scale + view.x;
const screenY = (i) => xy[2 * i + 1] * view.scale + view.y;

// ---- Colours

const PALETTE = ["#4e86c6", "#e07b27", "#3f9e57", "#d04a4a", "#9468bd", "#a86f54", "#db6fb4", "#6f8f2f", "#1fa5b5",
  "#c49b1a"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const number = (color) => {
  const [red, green, blue] = color.startsWith("#") ? [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16))
    : color.match(/\d+/g).map(Number);
  return (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
};
const colors = new Uint32Array(count);
let paper, faint, ground, ink;

// The most common values get a colour each, the others are grey.
function paint() {
  const style = getComputedStyle(canvas);
  [ground, paper, ink] = [style.backgroundColor, number(style.backgroundColor), style.color];
  faint = number(dark.matches ? "#45454c" : "#cfcfcd");
  const grey = number(dark.matches ? "#8a8a93" : "#85858c");
  const by = byId("by").value;
  const value = { folder, source, group, cluster }[by];
  const label = {
    folder: (v) => data.folders[v][0] || "./",
    source: (v) => data.sources[v] || "./",
    group: () => "near-identical to others",
    cluster: (v) => `cluster ${v + 1}`,
  }[by];
  const sizes = new Map();
  for (const v of value) sizes.set(v, (sizes.get(v) || 0) + 1);
  const items = [];
  if (by === "group") {
    const alone = sizes.get(0) || 0;
    for (let i = 0; i < count; i++) colors[i] = value[i] ? number(PALETTE[value[i] % PALETTE.length]) : faint;
    if (alone < count) items.push([PALETTE[1], label(), count - alone]);
  } else {
    const common = [...sizes].sort((a, b) => b[1] - a[1]).slice(0, PALETTE.length);
    const chosen = new Map(common.map(([v], at) => [v, number(PALETTE[at])]));
    for (let i = 0; i < count; i++) colors[i] = chosen.get(value[i]) ?? grey;
    common.forEach(([v, size], at) => items.push([PALETTE[at], label(v), size]));
    const rest = count - common.reduce((sum, [, size]) => sum + size, 0);
    if (rest) items.push([dark.matches ? "#8a8a93" : "#85858c", "others", rest]);
  }
  byId("legend").replaceChildren(...items.map(([color, text, size]) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = color;
    return element("li", {}, swatch, ...wrapping(text), ` ${size.toLocaleString("en")}`);
  }));
  redraw();
}

// ---- Drawing

const THUMB = 44;
let selected = -1;
let matches = null; // a byte for each point, or null without a search
let drawn = []; // the thumbnails that are shown: points, and where they are

function draw() {
  buffer.fill(paper);
  const size = Math.round(ratio * Math.min(9, Math.max(2, 2.5 * Math.sqrt(view.scale / smallest * 4e3 / (count + 1e3)))));
  const [scale, left, top] = [view.scale * ratio, view.x * ratio - size / 2, view.y * ratio - size / 2];
  const line = canvas.width, right = line - size, bottom = canvas.height - size;
  for (const wanted of matches ? [0, 1] : [1]) {
    for (let i = 0; i < count; i++) {
      if (matches && matches[i] !== wanted) continue;
      const x = xy[2 * i] * scale + left, y = xy[2 * i + 1] * scale + top;
      if (x < 0 || y < 0 || x >= right || y >= bottom) continue;
      const color = wanted ? colors[i] : faint;
      const first = (y | 0) * line + (x | 0);
      for (let row = 0; row < size; row++) {
        for (let at = first + row * line, end = at + size; at < end; at++) buffer[at] = color;
      }
    }
  }
  context.putImageData(pixels, 0, 0);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawn = [];
  if (byId("images").checked) drawThumbs();
  if (selected >= 0) drawSelection();
  if (document.activeElement === canvas && canvas.matches(":focus-visible")) drawCross();
  context.setTransform(1, 0, 0, 1, 0, 0);
}

// Thumbnails have an order: the first ones are far from each other. Each takes its place if that is still free.
function drawThumbs() {
  const step = 2 * THUMB;
  const columns = Math.ceil(width / step) + 1;
  const taken = new Set();
  for (const [i, text] of thumbs) {
    if (matches && !matches[i]) continue;
    const x = screenX(i), y = screenY(i);
    if (x < 0 || y < 0 || x > width || y > height) continue;
    const place = Math.floor(y / step) * columns + Math.floor(x / step);
    if (taken.has(place)) continue;
    taken.add(place);
    if (!decoded.has(i)) prepare(i, text);
    const image = decoded.get(i);
    if (!image) continue;
    const w = image.width / ratio, h = image.height / ratio;
    context.drawImage(image, x - w / 2, y - h / 2, w, h);
    drawn.push([i, x, y, w, h]);
    context.lineWidth = 1;
    context.strokeStyle = ink;
    context.strokeRect(x - w / 2, y - h / 2, w, h);
  }
}

// Decode a thumbnail in the size that it is drawn in: 130 of them then take a few milliseconds.
function prepare(i, text) {
  const image = element("img", { src: "data:image/jpeg;base64," + text });
  decoded.set(i, null);
  image.onload = async () => {
    const share = THUMB * ratio / Math.max(image.naturalWidth, image.naturalHeight);
    const [w, h] = [image.naturalWidth, image.naturalHeight].map((side) => Math.max(1, Math.round(side * share)));
    decoded.set(i, await createImageBitmap(image, { resizeWidth: w, resizeHeight: h, resizeQuality: "medium" }));
    redraw();
  };
}

function drawSelection() {
  const lines = new Path2D();
  for (const other of neighbours(selected)) {
    lines.moveTo(screenX(selected), screenY(selected));
    lines.lineTo(screenX(other), screenY(other));
    ring(lines, other, 6);
  }
  ring(lines, selected, 11);
  outline(lines);
}

function ring(lines, i, radius) {
  lines.moveTo(screenX(i) + radius, screenY(i));
  lines.arc(screenX(i), screenY(i), radius, 0, 7);
}

function drawCross() {
  outline(new Path2D(`M${width / 2 - 8} ${height / 2}h16m-8-8v16`));
}

// Lines that can be seen on any image.
function outline(lines) {
  for (const [color, thickness] of [[ground, 5], [ink, 2]]) {
    context.strokeStyle = color;
    context.lineWidth = thickness;
    context.stroke(lines);
  }
}

// ---- Finding points: those of each cell of a grid are next to each other in `cells`

const SIDE = 256, CELL = 65536 / SIDE;
const starts = new Uint32Array(SIDE * SIDE + 1);
const cells = new Uint32Array(count);
const cellOf = (i) => (xy[2 * i + 1] / CELL | 0) * SIDE + (xy[2 * i] / CELL | 0);
for (let i = 0; i < count; i++) starts[cellOf(i) + 1]++;
for (let at = 1; at < starts.length; at++) starts[at] += starts[at - 1];
const filled = starts.slice();
for (let i = 0; i < count; i++) cells[filled[cellOf(i)]++] = i;

// The thumbnail at a place on the screen, or the point that is nearest to it, at most `most` pixels away; -1 if none is.
function pointAt(x, y, most = 14) {
  const thumb = drawn.findLast(([, tx, ty, w, h]) => Math.abs(x - tx) <= w / 2 && Math.abs(y - ty) <= h / 2);
  if (thumb) return thumb[0];
  const [px, py, reach] = [(x - view.x) / view.scale, (y - view.y) / view.scale, most / view.scale];
  const clamp = (value) => Math.min(SIDE - 1, Math.max(0, value / CELL | 0));
  let best = -1, least = reach * reach;
  for (let row = clamp(py - reach); row <= clamp(py + reach); row++) {
    const line = row * SIDE;
    for (let at = starts[line + clamp(px - reach)]; at < starts[line + clamp(px + reach) + 1]; at++) {
      const i = cells[at];
      if (matches && !matches[i]) continue;
      const apart = (xy[2 * i] - px) ** 2 + (xy[2 * i + 1] - py) ** 2;
      if (apart <= least) [best, least] = [i, apart];
    }
  }
  return best;
}

function neighbours(i) {
  return [...near.subarray(i * data.k, (i + 1) * data.k)].filter((other) => other >= 0);
}

// ---- The panel: one image and its neighbours, or the images that a search found

function select(i, center = false) {
  selected = i;
  if (center) {
    pan(width / 2 - screenX(i), height / 2 - screenY(i));
  }
  const place = `cluster ${cluster[i] + 1}` + (group[i] ? ", near-identical to others" : "");
  const name = element("p", { className: "path" }, ...wrapping(path(i)));
  const parts = [element("h2", { id: "chosen", tabIndex: -1 }, "Image"), picture(i), name, element("p", {}, place)];
  if (address(i)) parts.push(element("p", {}, element("a", { href: address(i) }, "Open the file")));
  parts.push(element("h3", {}, "Most similar images"), buttons(neighbours(i)));
  byId("details").replaceChildren(...parts);
  byId("status").textContent = `${path(i)}: ${place}`;
  redraw();
}

function buttons(points) {
  return element("ol", { className: "near" }, ...points.map((i) => {
    const button = element("button", { type: "button" }, picture(i), element("span", {}, ...wrapping(names[i])));
    button.onclick = () => { select(i, true); byId("chosen").focus({ preventScroll: true }); };
    return element("li", {}, button);
  }));
}

function search() {
  const wanted = byId("search").value.toLowerCase();
  matches = null;
  selected = -1;
  const found = [];
  if (wanted) {
    matches = new Uint8Array(count);
    const folders = data.folders.map(([name]) => name.toLowerCase());
    for (let i = 0; i < count; i++) {
      if ((folders[folder[i]] + names[i].toLowerCase()).includes(wanted)) {
        matches[i] = 1;
        found.push(i);
      }
    }
  }
  const shown = found.slice(0, 24);
  byId("status").textContent = wanted ? `${found.length.toLocaleString("en")} ${found.length === 1 ? "image" : "images"} found` : "";
  byId("details").replaceChildren(...(shown.length ? [element("h2", {}, "Found"), buttons(shown)] : []));
  redraw();
  return found;
}

// ---- Mouse, touch and keyboard

const pointers = new Map();
let moved = 0;

function hover(event) {
  const i = event && event.pointerType !== "touch" && !pointers.size ? pointAt(event.offsetX, event.offsetY) : -1;
  const card = byId("hover");
  canvas.style.cursor = i < 0 ? "grab" : "pointer";
  card.hidden = i < 0;
  if (i < 0) { card.dataset.point = ""; return; }
  if (card.dataset.point !== String(i)) {
    card.dataset.point = i;
    card.replaceChildren(picture(i), element("span", {}, ...wrapping(names[i])));
  }
  const x = screenX(i), y = screenY(i);
  card.style.left = `${x > width / 2 ? x - card.offsetWidth - 14 : x + 14}px`;
  card.style.top = `${Math.max(0, Math.min(height - card.offsetHeight, y - card.offsetHeight / 2))}px`;
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  if (!pointers.size) moved = 0;
  pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
  hover(null);
});
canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return hover(event);
  const now = [event.offsetX, event.offsetY];
  const other = [...pointers].find(([id]) => id !== event.pointerId);
  pointers.set(event.pointerId, now);
  moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
  if (other) {
    const [x, y] = other[1];
    zoom(Math.hypot(now[0] - x, now[1] - y) / Math.max(1, Math.hypot(before[0] - x, before[1] - y)), x, y);
  } else {
    pan(now[0] - before[0], now[1] - before[1]);
  }
});
canvas.addEventListener("pointerup", (event) => {
  if (pointers.delete(event.pointerId) && !pointers.size && moved < 5) {
    const i = pointAt(event.offsetX, event.offsetY, event.pointerType === "touch" ? 24 : 14);
    if (i >= 0) select(i);
  }
});
canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
canvas.addEventListener("pointerleave", () => hover(null));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), event.offsetX, event.offsetY);
  hover(null);
}, { passive: false });
const all = () => show(0, 0, spread, spread);
const KEYS = {
  ArrowLeft: () => pan(60, 0),
  ArrowRight: () => pan(-60, 0),
  ArrowUp: () => pan(0, 60),
  ArrowDown: () => pan(0, -60),
  "+": () => zoom(1.3),
  "=": () => zoom(1.3),
  "-": () => zoom(1 / 1.3),
  0: all,
  Enter: () => { const i = pointAt(width / 2, height / 2, Math.max(width, height)); if (i >= 0) select(i); },
  Escape: () => { selected = -1; byId("details").replaceChildren(); redraw(); },
};
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});
canvas.addEventListener("focus", redraw);
canvas.addEventListener("blur", redraw);
byId("in").onclick = () => zoom(1.5);
byId("out").onclick = () => zoom(1 / 1.5);
byId("all").onclick = all;
byId("by").onchange = paint;
byId("images").onchange = redraw;
byId("search").oninput = search;
byId("find").onsubmit = (event) => { event.preventDefault(); showPoints(search()); };
for (const button of document.querySelectorAll("[data-cluster]")) {
  button.onclick = () => {
    const wanted = Number(button.dataset.cluster);
    showPoints(Array.from(cluster.keys()).filter((i) => cluster[i] === wanted));
    canvas.scrollIntoView({ block: "nearest" });
  };
}
dark.addEventListener("change", paint);
new ResizeObserver(fit).observe(canvas);
fit();
paint();
